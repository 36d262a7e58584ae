//! What documents mean together: attachment, precedence, permission, conflicts.

use std::sync::Arc;

use super::{Mesh, Protocol, VirtualIps};
use crate::config::{Level, parse_file};

fn build(text: &str) -> (Mesh, Vec<String>) {
    let parsed = parse_file(&Arc::from("mesh.yaml"), text);
    let documents: Vec<_> = parsed
        .iter()
        .map(|p| {
            Arc::clone(
                p.document
                    .as_ref()
                    .unwrap_or_else(|| panic!("{:?}", p.diagnostics)),
            )
        })
        .collect();
    let (mesh, findings) = Mesh::build(&documents, &mut VirtualIps::default());
    (mesh, findings.iter().map(ToString::to_string).collect())
}

fn service(namespace: &str, name: &str, port: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: {port}}}]}}
"
    )
}

fn route(kind: &str, namespace: &str, name: &str, parent: &str, backend: &str) -> String {
    format!(
        "
---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, {parent}}}]
  rules: [{{backendRefs: [{{{backend}}}]}}]
"
    )
}

/// The names of the routes that clients in a namespace get for port 80 of `blog/post`.
fn routes_of(mesh: &Mesh, client: &str) -> Vec<String> {
    let service = mesh.service("blog", "post").unwrap();
    mesh.routes_for(service, 80, client)
        .iter()
        .map(|route| format!("{} {}/{}", route.kind.name(), route.namespace, route.name))
        .collect()
}

#[test]
fn routes_attach_by_namespace_port_and_kind() {
    let parent = "name: post, namespace: blog";
    let backend = "name: post, namespace: blog, port: 80";
    let r = |kind: &str, namespace: &str, name: &str, extra: &str| {
        route(kind, namespace, name, &format!("{parent}{extra}"), backend)
    };
    let table: &[(&str, Vec<String>, &str, &[&str])] = &[
        ("no route", vec![], "blog", &[]),
        (
            "a producer route is for everyone",
            vec![r("HTTPRoute", "blog", "a", "")],
            "shop",
            &["HTTPRoute blog/a"],
        ),
        (
            "a consumer route is for its own namespace",
            vec![r("HTTPRoute", "shop", "a", "")],
            "blog",
            &[],
        ),
        (
            "and replaces the producer's",
            vec![
                r("GRPCRoute", "blog", "a", ""),
                r("HTTPRoute", "shop", "b", ""),
            ],
            "shop",
            &["HTTPRoute shop/b"],
        ),
        (
            "another namespace's consumer route changes nothing",
            vec![
                r("HTTPRoute", "blog", "a", ""),
                r("HTTPRoute", "shop", "b", ""),
            ],
            "other",
            &["HTTPRoute blog/a"],
        ),
        (
            "a port that differs does not attach",
            vec![r("HTTPRoute", "blog", "a", ", port: 81")],
            "blog",
            &[],
        ),
        (
            "a port that is the same does",
            vec![r("HTTPRoute", "blog", "a", ", port: 80")],
            "blog",
            &["HTTPRoute blog/a"],
        ),
        (
            "GRPCRoute before HTTPRoute before TCPRoute",
            vec![
                r("TCPRoute", "blog", "a", ""),
                r("HTTPRoute", "blog", "b", ""),
                r("GRPCRoute", "blog", "c", ""),
            ],
            "blog",
            &["GRPCRoute blog/c"],
        ),
        (
            "HTTPRoute before TCPRoute",
            vec![
                r("TCPRoute", "blog", "a", ""),
                r("HTTPRoute", "blog", "b", ""),
            ],
            "blog",
            &["HTTPRoute blog/b"],
        ),
        (
            "several of one kind, by name",
            vec![
                r("HTTPRoute", "blog", "b", ""),
                r("HTTPRoute", "blog", "a", ""),
            ],
            "blog",
            &["HTTPRoute blog/a", "HTTPRoute blog/b"],
        ),
    ];
    for (what, routes, client, expect) in table {
        let (mesh, _) = build(&format!(
            "{}{}",
            service("blog", "post", "80"),
            routes.concat()
        ));
        assert_eq!(routes_of(&mesh, client), *expect, "{what}");
    }
}

#[test]
fn older_routes_go_first() {
    let dated = |name: &str, date: &str| {
        route(
            "HTTPRoute",
            "blog",
            name,
            "name: post",
            "name: post, port: 80",
        )
        .replace("namespace: blog}", &format!("namespace: blog{date}}}"))
    };
    let text = [
        service("blog", "post", "80"),
        dated("a", ""),
        dated("b", ", creationTimestamp: 2026-02-01T00:00:00Z"),
        dated("c", ", creationTimestamp: 2026-01-01T00:00:00Z"),
    ];
    let (mesh, _) = build(&text.concat());
    assert_eq!(
        routes_of(&mesh, "blog"),
        ["HTTPRoute blog/c", "HTTPRoute blog/b", "HTTPRoute blog/a"]
    );
}

#[test]
fn other_namespaces_have_to_grant() {
    let grant = |namespace: &str, kind: &str, from: &str, to: &str| {
        format!(
            "
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {{name: g, namespace: {namespace}}}
spec:
  from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}]
  to: [{{group: '', kind: Service{to}}}]
"
        )
    };
    for (what, grants, allowed) in [
        ("nothing", String::new(), false),
        ("all", grant("bank", "HTTPRoute", "blog", ""), true),
        (
            "by name",
            grant("bank", "HTTPRoute", "blog", ", name: pay"),
            true,
        ),
        (
            "another name",
            grant("bank", "HTTPRoute", "blog", ", name: x"),
            false,
        ),
        (
            "another kind of route",
            grant("bank", "GRPCRoute", "blog", ""),
            false,
        ),
        (
            "another namespace's route",
            grant("bank", "HTTPRoute", "shop", ""),
            false,
        ),
        (
            "granted elsewhere",
            grant("blog", "HTTPRoute", "blog", ""),
            false,
        ),
    ] {
        let text = [
            service("blog", "post", "80"),
            service("bank", "pay", "80"),
            route(
                "HTTPRoute",
                "blog",
                "r",
                "name: post",
                "name: pay, namespace: bank, port: 80",
            ),
            grants,
        ];
        let (mesh, findings) = build(&text.concat());
        let route = &mesh.routes[0];
        let backend = &route.rules[0].backends[0];
        assert_eq!(mesh.backend(route, backend).is_ok(), allowed, "{what}");
        let warned = findings
            .iter()
            .any(|f| f.contains("no ReferenceGrant allows"));
        assert_eq!(warned, !allowed, "{what}: {findings:?}");
    }
    // The service that a route is attached to is what its clients asked for.
    let text = [
        service("bank", "pay", "80"),
        route(
            "HTTPRoute",
            "blog",
            "r",
            "name: pay, namespace: bank",
            "name: pay, namespace: bank, port: 80",
        ),
    ];
    let (mesh, findings) = build(&text.concat());
    let route = &mesh.routes[0];
    assert!(mesh.backend(route, &route.rules[0].backends[0]).is_ok());
    assert!(findings.is_empty(), "{findings:?}");
}

#[test]
fn what_cannot_be_meant_is_warned_about() {
    let post = service("blog", "post", "80, appProtocol: http");
    let cache = service("blog", "cache", "6379");
    let workload = |name: &str, labels: &str, spec: &str| {
        format!(
            "
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: blog, labels: {{{labels}}}}}
spec: {{address: 10.0.0.1, {spec}}}
"
        )
    };
    let policy = |name: &str| {
        format!(
            "
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: blog}}
spec: {{targetRefs: [{{group: '', kind: Service, name: post}}], connectTimeout: 1s}}
"
        )
    };
    let http = |parent: &str, backend: &str| route("HTTPRoute", "blog", "r", parent, backend);
    for (documents, expect) in [
        (
            http("name: post", "name: pots, port: 80"),
            "HTTPRoute blog/r: spec.rules[0].backendRefs[0]: Service blog/pots does not exist\n  help: requests for it are answered 500 backend_missing; did you mean `post`?",
        ),
        (
            http("name: post", "name: post, port: 81"),
            "spec.rules[0].backendRefs[0]: Service blog/post has no port 81\n  help: requests for it are answered 500 backend_missing; its ports are 80",
        ),
        (
            http("name: nowhere", "name: post, port: 80"),
            "spec.parentRefs[0]: Service blog/nowhere does not exist\n  help: the route is not attached to it until it exists",
        ),
        (
            http("name: cache", "name: post, port: 80"),
            "spec.parentRefs[0]: port 6379 of Service blog/cache is tcp\n  help: this HTTPRoute has no effect there",
        ),
        (
            route(
                "TCPRoute",
                "blog",
                "t",
                "name: post",
                "name: post, port: 80",
            ),
            "TCPRoute blog/t: spec.parentRefs[0]: port 80 of Service blog/post is http",
        ),
        (
            [
                route(
                    "HTTPRoute",
                    "blog",
                    "r",
                    "name: post",
                    "name: post, port: 80",
                ),
                route(
                    "GRPCRoute",
                    "blog",
                    "g",
                    "name: post",
                    "name: post, port: 80",
                ),
            ]
            .concat(),
            "HTTPRoute blog/r: spec.parentRefs[0]: GRPCRoute blog/g takes port 80 of Service blog/post",
        ),
        (
            workload("w", "app: post", "ports: [{port: 81}]"),
            "Service blog/post: spec.ports[0].targetPort: not a port of Workload w",
        ),
        (
            workload("w", "app: post", "ports: [{port: 80, protocol: grpc}]"),
            "Workload blog/w: spec.ports[0].protocol: grpc, but port 80 of Service blog/post is http",
        ),
        (
            [
                workload("v", "", "ports: [{port: 80}]"),
                workload("w", "", "ports: [{port: 81}]"),
            ]
            .concat(),
            "Workload blog/w: spec.ports[0].listen: 10.0.0.1:14006 is also that of Workload blog/v",
        ),
        (
            workload("w", "", "upstreams: [{service: nowhere, localPort: 1}]"),
            "spec.upstreams[0].service: Service blog/nowhere does not exist\n  help: there is no listener for it until it exists",
        ),
        (
            [policy("a"), policy("b")].concat(),
            "TrafficPolicy blog/b: spec.targetRefs[0]: Service blog/post already has TrafficPolicy blog/a",
        ),
        (
            service("blog", "cache", "1"),
            "error: mesh.yaml:15:1: Service blog/cache: already defined in mesh.yaml:9",
        ),
    ] {
        let (_, findings) = build(&[post.clone(), cache.clone(), documents].concat());
        assert_eq!(findings.len(), 1, "{expect}\n{findings:#?}");
        assert!(
            findings[0].contains(expect),
            "found  {}\nexpect {expect}",
            findings[0]
        );
    }
}

#[test]
fn there_is_one_mesh_config() {
    let config = |name: &str, domain: &str| {
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: {name}}}\nspec: {{trustDomain: {domain}}}\n"
        )
    };
    let parsed = parse_file(
        &Arc::from("mesh.yaml"),
        &[config("a", "first.mesh"), config("b", "second.mesh")].concat(),
    );
    let documents: Vec<_> = parsed.iter().filter_map(|p| p.document.clone()).collect();
    let (mesh, findings) = Mesh::build(&documents, &mut VirtualIps::default());
    assert_eq!(mesh.trust_domain().as_str(), "first.mesh");
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].level, Level::Error);
}

#[test]
fn ports_without_a_protocol_have_that_of_their_services() {
    let workload = "
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: w, namespace: blog, labels: {app: post}}
spec: {address: 10.0.0.1, ports: [{port: 80}]}
";
    let protocol = |services: &str| {
        let (mesh, _) = build(&format!("{services}{workload}"));
        mesh.workload("blog", "w").unwrap().ports[0].protocol
    };
    let http = service("blog", "post", "80, appProtocol: http");
    let other = http.replace("name: post", "name: other");
    assert_eq!(protocol(""), Protocol::Undeclared);
    assert_eq!(protocol(&http), Protocol::Http);
    assert_eq!(protocol(&format!("{http}{other}")), Protocol::Http);
    let other = other.replace("appProtocol: http", "appProtocol: tcp");
    assert_eq!(protocol(&format!("{http}{other}")), Protocol::Undeclared);
}

fn external(namespace: &str, name: &str, host: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{type: ExternalName, externalName: {host}, ports: [{{port: 443}}]}}
"
    )
}

fn with_ip(name: &str, ips: &str) -> String {
    service("blog", name, "80").replace("ports:", &format!("clusterIPs: [{ips}], ports:"))
}

fn captured(name: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: blog, labels: {{app: {name}}}}}
spec: {{capture: {{}}, {spec}}}
"
    )
}

#[test]
fn who_shares_an_address_is_told() {
    for (documents, expect) in [
        (
            [with_ip("a", "10.96.0.1"), with_ip("b", "10.96.0.1")],
            Some("Service blog/b: spec.clusterIP: 10.96.0.1 is also that of Service blog/a"),
        ),
        (
            [
                with_ip("a", "10.96.0.1, 'fd00::1'"),
                with_ip("b", "10.96.0.2, 'fd00::1'"),
            ],
            Some("Service blog/b: spec.clusterIP: fd00::1 is also that of Service blog/a"),
        ),
        ([with_ip("a", "10.96.0.1"), with_ip("b", "10.96.0.2")], None),
        (
            [with_ip("a", "10.0.0.1"), captured("w", "address: 10.0.0.1")],
            Some("Workload blog/w: spec.address: 10.0.0.1 is also that of Service blog/a"),
        ),
        (
            [
                captured("v", "address: 10.0.0.1"),
                captured(
                    "w",
                    "address: 10.0.0.2, additionalAddresses: [10.0.0.3, 10.0.0.1]",
                ),
            ],
            Some(
                "Workload blog/w: spec.additionalAddresses[1]: 10.0.0.1 is also that of Workload blog/v",
            ),
        ),
        (
            [
                captured("v", "address: 10.0.0.1"),
                captured("w", "address: 10.0.0.1").replace("capture: {}, ", ""),
            ],
            None,
        ),
        (
            [
                external("blog", "a", "api.example.com"),
                external("blog", "b", "API.example.com"),
            ],
            Some(
                "Service blog/b: spec.externalName: `api.example.com` is also that of Service blog/a",
            ),
        ),
        (
            [
                external("blog", "a", "api.example.com"),
                external("shop", "b", "api.example.com"),
            ],
            None,
        ),
        (
            [
                external("blog", "a", "post.blog.svc.cluster.local"),
                String::new(),
            ],
            Some(
                "Service blog/a: spec.externalName: `post.blog.svc.cluster.local` is a name of the mesh",
            ),
        ),
        (
            [
                service("blog", "post", "80, targetPort: 9"),
                [
                    captured("v", "address: 10.0.0.1").replace("app: v", "app: post"),
                    captured("w", "address: 10.0.0.2")
                        .replace("app: w", "app: post")
                        .replace("capture: {}", "capture: {excludeInboundPorts: [9]}"),
                ]
                .concat(),
            ],
            Some(
                "Service blog/post: spec.ports[0].targetPort: left out by `excludeInboundPorts` of Workload w, but not by all others",
            ),
        ),
    ] {
        let (_, findings) = build(&documents.concat());
        let expect: Vec<&str> = expect.into_iter().collect();
        assert_eq!(findings.len(), expect.len(), "{expect:?}\n{findings:#?}");
        for (found, expect) in findings.iter().zip(expect) {
            assert!(found.contains(expect), "found  {found}\nexpect {expect}");
        }
    }
}

/// Whatever the order of the documents, and with whatever beside them.
#[test]
fn the_mesh_does_not_depend_on_the_order_of_documents() {
    let mut documents: Vec<String> = (0..60)
        .map(|n| service("blog", &format!("s{n}"), "80"))
        .chain([
            with_ip("x", "10.96.0.1"),
            with_ip("y", "10.96.0.1"),
            external("blog", "e", "api.example.com"),
            external("blog", "f", "api.example.com"),
            captured("v", "address: 10.0.0.1"),
            captured("w", "address: 10.0.0.1"),
        ])
        .collect();
    let (first, _) = build(&documents.concat());
    for turn in [1, 17, 40] {
        documents.rotate_left(turn);
        assert_eq!(build(&documents.concat()).0, first);
    }
    let addresses: std::collections::BTreeSet<_> = first
        .services()
        .filter(|s| s.name.starts_with('s') || s.external_name.is_some())
        .flat_map(|s| &s.addresses)
        .collect();
    assert_eq!(addresses.len(), 62);
    let owner = |address: &str| first.owner(address.parse().unwrap()).map(|o| o.describe());
    assert_eq!(owner("10.96.0.1").as_deref(), Some("Service blog/x"));
    assert_eq!(owner("10.0.0.1").as_deref(), Some("Workload blog/v"));
    assert_eq!(owner("10.0.0.2"), None);
}

#[test]
fn a_service_keeps_its_address_while_others_come_and_go() {
    let names = |range: std::ops::Range<usize>| -> String {
        range
            .map(|n| service("blog", &format!("s{n}"), "80"))
            .collect()
    };
    let mut ips = VirtualIps::default();
    let address = |mesh: &Mesh, name: &str| mesh.service("blog", name).unwrap().addresses.clone();
    let mut build = |text: &str| {
        let parsed = parse_file(&Arc::from("mesh.yaml"), text);
        let documents: Vec<_> = parsed.iter().filter_map(|p| p.document.clone()).collect();
        Mesh::build(&documents, &mut ips).0
    };
    let before = build(&names(0..300));
    let other = build(&names(150..450));
    let after = build(&names(0..450));
    for n in 0..450 {
        let name = format!("s{n}");
        let known = if n < 300 { &before } else { &other };
        assert_eq!(address(&after, &name), address(known, &name), "{name}");
    }
    // One that gets a cluster IP has no other, and none that is headless has any.
    let mesh = build(&[with_ip("s1", "10.96.0.1"), with_ip("s2", "None")].concat());
    assert_eq!(
        address(&mesh, "s1"),
        ["10.96.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert!(address(&mesh, "s2").is_empty());
    assert_eq!(address(&build(&names(1..2)), "s1"), address(&before, "s1"));
}
