//! Resources of small meshes; whole ones are in the golden files.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use weft_api::Kind;
use weft_api::json::to_json;

use super::{Context, Node, Scope, resource, scope, wildcard};
use crate::config::parse_file;
use crate::model::{Mesh, VirtualIps};

/// The mesh of a text of documents; panics on errors.
pub(super) fn mesh(text: &str) -> Mesh {
    let parsed = parse_file(&Arc::from("mesh.yaml"), text);
    let documents: Vec<_> = parsed
        .iter()
        .map(|p| {
            let document = p.document.as_ref();
            Arc::clone(document.unwrap_or_else(|| panic!("{:?}", p.diagnostics)))
        })
        .collect();
    Mesh::build(&documents, &mut VirtualIps::default()).0
}

const POST: &str = "
apiVersion: v1
kind: Service
metadata: {name: post, namespace: blog}
spec: {selector: {app: post}, ports: [{port: 80, appProtocol: http, targetPort: web}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: post, namespace: blog, labels: {app: post}}
spec: {address: 10.0.0.1, serviceAccount: writer, ports: [{name: web, port: 8080}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: spare, namespace: blog, labels: {app: post}}
spec: {address: 10.0.0.2, weight: 0, ports: [{name: web, port: 8080}]}
---
";

/// Looks resources up as `blog/post`.
struct Fixture {
    mesh: Mesh,
    draining: BTreeSet<(String, String)>,
}

impl Fixture {
    fn new(text: &str) -> Self {
        Self {
            mesh: mesh(&format!("{POST}{text}")),
            draining: BTreeSet::new(),
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            mesh: &self.mesh,
            roots_pem: "PEM",
            draining: &self.draining,
        }
    }

    fn bytes(&self, kind: Kind, name: &str) -> Option<Vec<u8>> {
        let node = Node {
            namespace: "blog",
            workload: "post",
        };
        let built = resource(&self.context(), &node, kind, name)?;
        assert_eq!(built.scope, scope(kind, name));
        Some(built.body)
    }

    fn json(&self, kind: Kind, name: &str) -> Value {
        let body = self
            .bytes(kind, name)
            .unwrap_or_else(|| panic!("no {kind} {name}"));
        to_json(kind.type_url(), &body).unwrap()
    }

    /// The actions of the routes of `post` but for the CONNECT route, each in short form.
    fn actions(&self) -> Vec<Value> {
        let host = self.json(Kind::VirtualHost, "outbound/post");
        let routes = host["routes"].as_array().unwrap();
        let (connect, rest) = routes.split_last().unwrap();
        assert!(connect["match"]["connect_matcher"].is_object());
        rest.iter().map(|route| route["route"].clone()).collect()
    }
}

fn http_route(rules: &str) -> String {
    format!(
        "
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r, namespace: blog}}
spec:
  parentRefs: [{{group: '', kind: Service, name: post}}]
  rules: {rules}
"
    )
}

#[test]
fn names_that_are_nothing() {
    let fixture = Fixture::new("");
    for (kind, name) in [
        (Kind::Listener, "inbound|80"),
        (Kind::Listener, "inbound|08080"),
        (Kind::Listener, "outbound|1"),
        (Kind::Listener, ""),
        (Kind::Route, "inbound|8080"),
        (Kind::VirtualHost, "outbound"),
        (Kind::VirtualHost, "outboundpost"),
        (Kind::VirtualHost, "outbound/nothing"),
        (Kind::VirtualHost, "post"),
        (Kind::Cluster, "post.blog"),
        (Kind::Cluster, "post.blog:81"),
        (Kind::Cluster, "post.blog:080"),
        (Kind::Cluster, "missing|blog/post:80"),
        (Kind::Cluster, "inbound|80"),
        (Kind::Endpoint, "inbound|8080"),
        (Kind::Endpoint, "x.blog:80"),
        (Kind::Secret, "default"),
    ] {
        assert_eq!(fixture.bytes(kind, name), None, "{kind} {name}");
    }
}

#[test]
fn scopes_and_wildcards() {
    for (kind, name, expect) in [
        (Kind::Listener, "outbound", Scope::Node),
        (Kind::Route, "outbound", Scope::Namespace),
        (Kind::VirtualHost, "outbound/post", Scope::Namespace),
        (Kind::Cluster, "post.blog:80", Scope::Mesh),
        (Kind::Cluster, "inbound|80", Scope::Node),
        (Kind::Endpoint, "post.blog:80", Scope::Mesh),
        (Kind::Secret, "ROOTCA", Scope::Mesh),
    ] {
        assert_eq!(scope(kind, name), expect, "{kind} {name}");
    }
    let fixture = Fixture::new("");
    let all = |workload: &str, kind: Kind| {
        let node = Node {
            namespace: "blog",
            workload,
        };
        wildcard(&fixture.context(), &node, kind)
    };
    assert_eq!(all("post", Kind::Listener), ["inbound|8080", "outbound"]);
    assert_eq!(all("post", Kind::Cluster), ["post.blog:80", "inbound|8080"]);
    assert_eq!(all("stranger", Kind::Cluster), ["post.blog:80"]);
    assert!(all("stranger", Kind::Listener).is_empty());
    assert!(all("post", Kind::Secret).is_empty());
}

#[test]
fn a_stranger_may_look_up_destinations() {
    let fixture = Fixture::new("");
    let node = Node {
        namespace: "elsewhere",
        workload: "stranger",
    };
    let found = |kind, name| resource(&fixture.context(), &node, kind, name).is_some();
    assert!(!found(Kind::Listener, "outbound"));
    assert!(found(Kind::Route, "outbound"));
    assert!(found(Kind::VirtualHost, "outbound/post.blog"));
    assert!(!found(Kind::VirtualHost, "outbound/post"));
    assert!(found(Kind::Cluster, "post.blog:80"));
}

#[test]
fn bytes_are_the_same_each_time() {
    let fixture = Fixture::new("");
    let other = Fixture::new("");
    assert_eq!(fixture.mesh, other.mesh);
    for (kind, name) in [
        (Kind::Cluster, "post.blog:80"),
        (Kind::Endpoint, "post.blog:80"),
        (Kind::Listener, "inbound|8080"),
    ] {
        for _ in 0..50 {
            assert_eq!(fixture.bytes(kind, name), other.bytes(kind, name), "{kind}");
        }
    }
}

#[test]
fn endpoints_have_health_and_identity() {
    let mut fixture = Fixture::new("");
    let health = |fixture: &Fixture| {
        let assignment = fixture.json(Kind::Endpoint, "post.blog:80");
        let endpoints = assignment["endpoints"][0]["lb_endpoints"].clone();
        // The workload of weight 0 is left out.
        assert_eq!(endpoints.as_array().unwrap().len(), 1);
        let weft = &endpoints[0]["metadata"]["filter_metadata"]["weft.dev"];
        assert_eq!(weft["identity"], "spiffe://cluster.local/ns/blog/sa/writer");
        assert_eq!(weft["workload"], "post");
        endpoints[0]["health_status"].clone()
    };
    assert_eq!(health(&fixture), "HEALTHY");
    fixture
        .draining
        .insert(("blog".to_owned(), "post".to_owned()));
    assert_eq!(health(&fixture), "DRAINING");
}

#[test]
fn nobody_behind_a_service_means_that_nobody_is_accepted() {
    let fixture = Fixture::new(
        "
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: blog}
spec: {selector: {app: none}, ports: [{port: 80}]}
",
    );
    let cluster = fixture.json(Kind::Cluster, "empty.blog:80");
    let validation = &cluster["transport_socket"]["typed_config"]["common_tls_context"]["combined_validation_context"]
        ["default_validation_context"];
    let names = validation["match_typed_subject_alt_names"]
        .as_array()
        .unwrap();
    assert_eq!(names.len(), 1);
    assert_eq!(
        names[0]["matcher"]["exact"],
        "spiffe://cluster.local/ns/blog/svc/empty"
    );
    let assignment = fixture.json(Kind::Endpoint, "empty.blog:80");
    assert_eq!(
        assignment,
        serde_json::json!({ "cluster_name": "empty.blog:80" })
    );
}

#[test]
fn shares_of_backends() {
    for (backends, expect) in [
        ("[{name: post, port: 80}]", r#"{"cluster":"post.blog:80"}"#),
        (
            "[{name: post, port: 80}, {name: gone, port: 80, weight: 3}]",
            r#"{"weighted":[["post.blog:80",1],["missing|blog/gone:80",3]]}"#,
        ),
        (
            "[{name: post, port: 80}, {name: gone, port: 80, weight: 0}]",
            r#"{"cluster":"post.blog:80"}"#,
        ),
        (
            "[{name: pay, namespace: bank, port: 80}]",
            r#"{"cluster":"missing|bank/pay:80"}"#,
        ),
        (
            "[{name: post, port: 81}]",
            r#"{"cluster":"missing|blog/post:81"}"#,
        ),
        (
            "[{name: post, port: 80, weight: 0}]",
            r#"{"cluster":"missing|blog/r:0"}"#,
        ),
        ("[]", r#"{"cluster":"missing|blog/r:0"}"#),
    ] {
        let bank = "
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: bank}
spec: {selector: {app: pay}, ports: [{port: 80}]}
";
        let route = http_route(&format!("[{{backendRefs: {backends}}}]"));
        let actions = Fixture::new(&format!("{bank}{route}")).actions();
        assert_eq!(actions.len(), 1);
        let found = match actions[0]["weighted_clusters"]["clusters"].as_array() {
            None => serde_json::json!({ "cluster": actions[0]["cluster"] }),
            Some(clusters) => {
                let shares = clusters
                    .iter()
                    .map(|c| (c["name"].clone(), c["weight"].clone()));
                serde_json::json!({ "weighted": shares.collect::<Vec<_>>() })
            }
        };
        assert_eq!(found.to_string(), expect, "{backends}");
    }
}

#[test]
fn matches_are_ordered_by_precision() {
    // The names say the expected order.
    let rules = "
  - {name: r9, matches: [{}]}
  - {name: r8, matches: [{queryParams: [{name: a, value: b}]}]}
  - {name: r7, matches: [{headers: [{name: a, value: b}]}]}
  - {name: r6, matches: [{headers: [{name: a, value: b}], queryParams: [{name: a, value: b}]}]}
  - {name: r5, matches: [{method: GET}]}
  - {name: r4, matches: [{path: {value: /a}}]}
  - {name: r3, matches: [{path: {value: /a}, method: GET}]}
  - {name: r2, matches: [{path: {value: /abc/}}]}
  - {name: r1, matches: [{path: {type: Exact, value: /}}]}
  - {name: r0, matches: [{path: {type: Exact, value: /a}}]}
  - {name: regex, matches: [{path: {type: RegularExpression, value: '/a+', }, method: GET}]}
";
    let fixture = Fixture::new(&http_route(rules));
    let host = fixture.json(Kind::VirtualHost, "outbound/post");
    let names: Vec<&str> = host["routes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|route| route["name"].as_str())
        .collect();
    let expect: Vec<String> = (0..10)
        .map(|n| format!("blog/r#r{n}"))
        .chain(["blog/r#regex".to_owned()])
        .collect();
    assert_eq!(names, expect);
}

#[test]
fn timeouts_and_full_paths() {
    let rule = "[{timeouts: {request: 1500ms, backendRequest: 1s}, backendRefs: [{name: post, port: 80}],
        filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/a\\1'}}}]}]";
    let action = Fixture::new(&http_route(rule)).actions().remove(0);
    assert_eq!(action["timeout"], "1.500s");
    assert_eq!(
        action["retry_policy"],
        serde_json::json!({ "num_retries": 0, "per_try_timeout": "1s" })
    );
    assert_eq!(action["regex_rewrite"]["substitution"], "/a\\\\1");
}

#[test]
fn header_values_are_literal() {
    let rule = "[{backendRefs: [{name: post, port: 80}], filters: [{type: RequestHeaderModifier,
        requestHeaderModifier: {set: [{name: a, value: '100% %REQ(b)%'}]}}]}]";
    let fixture = Fixture::new(&http_route(rule));
    let host = fixture.json(Kind::VirtualHost, "outbound/post");
    let header = &host["routes"][0]["request_headers_to_add"][0]["header"];
    assert_eq!(header["value"], "100%% %%REQ(b)%%");
}

#[test]
fn plaintext_is_accepted_in_permissive_mode_only() {
    let names = |mode: &str| -> Vec<String> {
        let config = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: m}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        );
        let listener = Fixture::new(&config).json(Kind::Listener, "inbound|8080");
        let chains = listener["filter_chains"].as_array().unwrap();
        chains
            .iter()
            .map(|chain| chain["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names("strict"), ["mtls-http"]);
    assert_eq!(names("permissive"), ["mtls-http", "plain-http"]);
}

#[test]
fn the_trust_bundle() {
    let secret = Fixture::new("").json(Kind::Secret, "ROOTCA");
    assert_eq!(
        secret["validation_context"]["trusted_ca"]["inline_string"],
        "PEM"
    );
}

/// Callers of `blog/post`, captured, and what else there may be.
fn captured(config: &str, more: &str) -> Fixture {
    let text = POST.replacen(
        "spec: {address: 10.0.0.1, serviceAccount: writer, ports: [{name: web, port: 8080}]}",
        "spec: {address: 10.0.0.1, serviceAccount: writer, capture: {CAPTURE}, ports: [{name: web, port: 8080}, {name: db, port: 5432, protocol: tcp}]}",
        1,
    );
    let text = text.replace("CAPTURE", config);
    Fixture {
        mesh: mesh(&format!("{text}{more}")),
        draining: BTreeSet::new(),
    }
}

const DENY: &str = "
apiVersion: weft.dev/v1alpha1
kind: MeshConfig
metadata: {name: m}
spec: {outbound: {unknown: deny}}
";

#[test]
fn names_of_a_captured_node() {
    let allow = captured("", "");
    let deny = captured("", DENY);
    for (fixture, kind, expect) in [
        (
            &allow,
            Kind::Listener,
            ["dns", "inbound", "inbound|8080", "inbound|5432", "outbound"].as_slice(),
        ),
        (
            &allow,
            Kind::Cluster,
            &[
                "post.blog:80",
                "inbound|8080",
                "inbound|5432",
                "inbound|*",
                "passthrough",
            ],
        ),
        (
            &deny,
            Kind::Cluster,
            &["post.blog:80", "inbound|8080", "inbound|5432", "inbound|*"],
        ),
    ] {
        let node = |workload| Node {
            namespace: "blog",
            workload,
        };
        assert_eq!(wildcard(&fixture.context(), &node("post"), kind), expect);
        for name in expect {
            fixture.json(kind, name);
        }
        // What a workload without capture has is as before.
        let spare = wildcard(&fixture.context(), &node("spare"), kind);
        let known: &[&str] = match kind {
            Kind::Listener => &["inbound|8080", "outbound"],
            _ => &["post.blog:80", "inbound|8080"],
        };
        assert_eq!(spare, known);
        for name in ["dns", "inbound", "inbound|*"] {
            let found = resource(&fixture.context(), &node("spare"), kind, name);
            assert_eq!(found, None, "{name}");
        }
    }
    assert_eq!(deny.bytes(Kind::Cluster, "passthrough"), None);
    assert_eq!(scope(Kind::Cluster, "passthrough"), Scope::Mesh);
    assert_eq!(scope(Kind::Cluster, "pod|10.0.0.1:1"), Scope::Mesh);
    assert_eq!(scope(Kind::Cluster, "inbound|*"), Scope::Node);
    assert_eq!(scope(Kind::VirtualHost, "dns/post"), Scope::Namespace);
}

#[test]
fn unknown_destinations_leave_only_if_they_may() {
    let outbound = |more: &str| captured("", more).json(Kind::Listener, "outbound");
    let allow = outbound("");
    let filter = &allow["default_filter_chain"]["filters"][0];
    assert_eq!(filter["typed_config"]["cluster"], "passthrough");
    assert_eq!(allow["use_original_dst"], true);
    assert_eq!(allow["filter_chains"].as_array().unwrap().len(), 1);
    assert!(outbound(DENY)["default_filter_chain"].is_null());
    let cluster = captured("", "").json(Kind::Cluster, "passthrough");
    assert_eq!(
        cluster,
        serde_json::json!({
            "name": "passthrough",
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "5s",
        })
    );
}

#[test]
fn inbound_is_captured_by_redirection_or_transparently() {
    for (config, transparent) in [
        ("", Value::Null),
        ("mode: redirect", Value::Null),
        ("mode: tproxy", Value::Bool(true)),
    ] {
        let fixture = captured(config, "");
        let inbound = fixture.json(Kind::Listener, "inbound");
        assert_eq!(inbound["use_original_dst"], true, "{config}");
        assert_eq!(inbound["transparent"], transparent, "{config}");
        assert!(inbound["bind_to_port"].is_null());
        let declared = fixture.json(Kind::Listener, "inbound|5432");
        assert_eq!(declared["bind_to_port"], false);
        assert_eq!(declared["address"]["socket_address"]["address"], "0.0.0.0");
        assert_eq!(declared["address"]["socket_address"]["port_value"], 5432);
        let cluster = fixture.json(Kind::Cluster, "inbound|5432");
        assert_eq!(cluster["type"], "ORIGINAL_DST");
        assert!(cluster["typed_extension_protocol_options"].is_null());
    }
    let permissive = DENY.replace("outbound: {unknown: deny}", "mtls: {mode: permissive}");
    let inbound = captured("", &permissive).json(Kind::Listener, "inbound");
    let chains = inbound["filter_chains"].as_array().unwrap();
    let names: Vec<&str> = chains.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["mtls-http", "mtls-tcp", "plain-http", "plain-tcp"]);
}

/// The identities that may answer in a cluster, and none if it is not TLS.
fn accepted(cluster: &Value) -> Vec<&str> {
    let validation = &cluster["transport_socket"]["typed_config"]["common_tls_context"]["combined_validation_context"]
        ["default_validation_context"];
    let names = validation["match_typed_subject_alt_names"].as_array();
    let names = names.into_iter().flatten();
    names
        .map(|n| n["matcher"]["exact"].as_str().unwrap())
        .collect()
}

#[test]
fn a_port_of_one_workload() {
    let mut fixture = captured("excludeInboundPorts: [9999]", "");
    let writer = ["spiffe://cluster.local/ns/blog/sa/writer"];
    for (port, protocol, identities, alpn) in [
        (
            8080,
            "http",
            writer.as_slice(),
            serde_json::json!(["h2", "http/1.1"]),
        ),
        (5432, "tcp", &writer, serde_json::json!(["weft-tcp"])),
        (7777, "", &writer, serde_json::json!(["h2", "http/1.1"])),
        (9999, "", &[], Value::Null),
        // The sidecar's public admin pages.
        (14020, "", &[], Value::Null),
    ] {
        let name = format!("pod|10.0.0.1:{port}");
        let host = fixture.json(Kind::VirtualHost, &format!("outbound/10.0.0.1:{port}"));
        assert_eq!(
            host["metadata"]["filter_metadata"]["weft.dev"]["protocol"],
            protocol
        );
        let routes = host["routes"].as_array().unwrap();
        let clusters: Vec<&Value> = routes.iter().map(|r| &r["route"]["cluster"]).collect();
        let expect = if protocol == "tcp" { 1 } else { 2 };
        assert_eq!(
            clusters,
            vec![&Value::String(name.clone()); expect],
            "{port}"
        );
        assert!(routes[expect - 1]["match"]["connect_matcher"].is_object());
        let cluster = fixture.json(Kind::Cluster, &name);
        assert_eq!(accepted(&cluster), identities, "{port}");
        let tls = &cluster["transport_socket"]["typed_config"];
        assert_eq!(tls["common_tls_context"]["alpn_protocols"], alpn, "{port}");
        let assignment = fixture.json(Kind::Endpoint, &name);
        let endpoint = &assignment["endpoints"][0]["lb_endpoints"][0];
        let address = &endpoint["endpoint"]["address"]["socket_address"];
        assert_eq!(address["address"], "10.0.0.1");
        assert_eq!(address["port_value"], port);
        let weft = &endpoint["metadata"]["filter_metadata"]["weft.dev"];
        assert_eq!(weft["identity"].is_null(), identities.is_empty(), "{port}");
        assert!(super::has_endpoint(&fixture.mesh, &name, "blog", "post"));
        assert!(!super::has_endpoint(&fixture.mesh, &name, "blog", "spare"));
    }
    fixture
        .draining
        .insert(("blog".to_owned(), "post".to_owned()));
    let assignment = fixture.json(Kind::Endpoint, "pod|10.0.0.1:8080");
    let endpoint = &assignment["endpoints"][0]["lb_endpoints"][0];
    assert_eq!(endpoint["health_status"], "DRAINING");
}

/// A service reaches ports that pass the sidecar by mTLS, and those that do not in plaintext;
/// never both at once.
#[test]
fn services_of_ports_that_are_left_out() {
    let service = "
---
apiVersion: v1
kind: Service
metadata: {name: metrics, namespace: blog}
spec: {selector: {app: m}, ports: [{port: 80, targetPort: 9999}]}
";
    let workload = |name: &str, number: u8, spec: &str| {
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: blog, labels: {{app: m}}}}\nspec: {{address: 10.0.1.{number}, {spec}}}\n"
        )
    };
    let excluded = "capture: {excludeInboundPorts: [9999]}";
    let declared = "capture: {inboundPorts: declared}, ports: [{port: 80}]";
    let served = "capture: {inboundPorts: declared}, ports: [{port: 9999}]";
    for (specs, expect, mtls) in [
        (
            [excluded, excluded],
            ["10.0.1.0:9999", "10.0.1.1:9999"].as_slice(),
            false,
        ),
        // Capture takes ports that are not declared.
        ([excluded, "capture: {}"], &["10.0.1.1:9999"], true),
        (
            ["ports: [{port: 9999}]", excluded],
            &["10.0.1.0:14006"],
            true,
        ),
        (["weight: 1", "weight: 2"], &[], true),
        // It may be told to take those only that are.
        ([declared; 2], &["10.0.1.0:9999", "10.0.1.1:9999"], false),
        ([declared, served], &["10.0.1.1:9999"], true),
    ] {
        let [a, b] = specs;
        let text = [service, &workload("a", 0, a), &workload("b", 1, b)].concat();
        let fixture = Fixture::new(&text);
        let cluster = fixture.json(Kind::Cluster, "metrics.blog:80");
        assert_eq!(!accepted(&cluster).is_empty(), mtls, "{specs:?}");
        let assignment = fixture.json(Kind::Endpoint, "metrics.blog:80");
        let endpoints = assignment["endpoints"][0]["lb_endpoints"].as_array();
        let addresses: Vec<String> = endpoints
            .into_iter()
            .flatten()
            .map(|endpoint| {
                let address = &endpoint["endpoint"]["address"]["socket_address"];
                let identity = &endpoint["metadata"]["filter_metadata"]["weft.dev"]["identity"];
                assert_eq!(identity.is_string(), mtls, "{specs:?}");
                format!(
                    "{}:{}",
                    address["address"].as_str().unwrap(),
                    address["port_value"]
                )
            })
            .collect();
        assert_eq!(addresses, expect, "{specs:?}");
    }
}

#[test]
fn a_host_outside_of_the_mesh() {
    let fixture = Fixture::new(
        "
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: blog}
spec: {type: ExternalName, externalName: api.example.com, ports: [{name: http, port: 80}, {name: https, port: 443}]}
",
    );
    let cluster = fixture.json(Kind::Cluster, "pay.blog:80");
    assert_eq!(cluster["type"], "LOGICAL_DNS");
    assert!(cluster["transport_socket"].is_null());
    let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
    let address = &endpoint["address"]["socket_address"];
    assert_eq!(address["address"], "api.example.com");
    assert_eq!(address["port_value"], 80);
    assert_eq!(
        cluster["load_balancing_policy"]["policies"][0]["typed_extension_config"]["name"],
        "envoy.load_balancing_policies.round_robin"
    );
    assert_eq!(fixture.bytes(Kind::Endpoint, "pay.blog:80"), None);
    let https = fixture.json(Kind::VirtualHost, "outbound/pay:443");
    assert_eq!(https["routes"].as_array().unwrap().len(), 1);
}

#[test]
fn bytes_of_a_port_with_routes_go_where_its_tcp_route_says() {
    let route =
        http_route("[{backendRefs: [{name: post, port: 80, weight: 3}, {name: gone, port: 1}]}]")
            .replace("kind: HTTPRoute", "kind: TCPRoute")
            .replace(
                "gateway.networking.k8s.io/v1\n",
                "gateway.networking.k8s.io/v1alpha2\n",
            );
    let undeclared = POST.replace(", appProtocol: http", "");
    let fixture = Fixture {
        mesh: mesh(&format!("{undeclared}{route}")),
        draining: BTreeSet::new(),
    };
    let address = fixture.mesh.service("blog", "post").unwrap().addresses[0];
    for name in ["outbound/post".to_owned(), format!("outbound/{address}:80")] {
        let host = fixture.json(Kind::VirtualHost, &name);
        let routes = host["routes"].as_array().unwrap();
        assert_eq!(routes[0]["route"]["cluster"], "post.blog:80");
        let clusters = &routes[1]["route"]["weighted_clusters"]["clusters"];
        let shares: Vec<String> = clusters
            .as_array()
            .unwrap()
            .iter()
            .map(|c| format!("{} {}", c["name"].as_str().unwrap(), c["weight"]))
            .collect();
        assert_eq!(
            shares,
            ["post.blog:80 3", "missing|blog/gone:1 1"],
            "{name}"
        );
    }
}
