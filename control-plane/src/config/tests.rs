//! What people get to read: every message with its place, field and help.

use std::sync::Arc;

use super::{Diagnostic, Level, parse_file};

fn findings(text: &str) -> Vec<Diagnostic> {
    parse_file(&Arc::from("mesh.yaml"), text)
        .into_iter()
        .flat_map(|parsed| parsed.diagnostics)
        .collect()
}

fn shown(text: &str) -> String {
    let lines: Vec<String> = findings(text).iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// An HTTPRoute whose one rule is this flow mapping, on line 6, from column 5.
fn http_rule(rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: post, namespace: blog}}
spec:
  parentRefs: [{{group: '', kind: Service, name: post}}]
  rules:
  - {rule}
"
    )
}

#[test]
fn the_whole_message() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: post
  namespace: blog
spec:
  parentRefs:
  - {group: '', kind: Service, name: post}
  rules:
  - backendRefs:
    - {name: post, port: 80}
    matchs:
    - path: {value: /}
";
    assert_eq!(
        shown(text),
        "error: mesh.yaml:13:5: HTTPRoute blog/post: spec.rules[0].matchs: unknown field `matchs`
  help: did you mean `matches`?"
    );
}

/// `field: message | help` of the only finding for one rule.
fn check_rule(rule: &str, expect: &str) {
    let found = findings(&http_rule(rule));
    let lines: Vec<String> = found
        .iter()
        .map(|d| format!("{}: {} | {}", d.field, d.message, d.help))
        .collect();
    let expect: Vec<&str> = Some(expect).into_iter().filter(|e| !e.is_empty()).collect();
    assert_eq!(lines.len(), expect.len(), "{rule}\n{lines:#?}");
    for (line, expect) in lines.iter().zip(expect) {
        assert!(
            line.starts_with(expect),
            "{rule}\nfound  {line}\nexpect {expect}"
        );
        assert_eq!(found[0].line, 7, "{rule}");
    }
}

#[test]
fn http_rules() {
    let backend = "backendRefs: [{name: a, port: 80}]";
    for (rule, expect) in [
        ("{BACKEND}", ""),
        (
            "{BACKEND, matches: [{path: {type: Prefix, value: /}}]}",
            "spec.rules[0].matches[0].path.type: `Prefix` is not a known value | did you mean `PathPrefix`?",
        ),
        (
            "{BACKEND, matches: [{path: {value: a}}]}",
            "spec.rules[0].matches[0].path.value: `a` is not a valid path | a path starts with `/`",
        ),
        (
            "{BACKEND, matches: [{path: {type: RegularExpression, value: '('}}]}",
            "spec.rules[0].matches[0].path.value: `(` is not a valid path | error: unclosed group",
        ),
        (
            "{BACKEND, matches: [{method: get}]}",
            "spec.rules[0].matches[0].method: `get` is not a known value | did you mean `GET`?",
        ),
        (
            "{BACKEND, matches: [{headers: [{name: a, value: 1}]}]}",
            "spec.rules[0].matches[0].headers[0].value: expected a string, found the number 1 | write the value in quotes",
        ),
        (
            "{BACKEND, matches: [{headers: [{name: a b, value: x}]}]}",
            "spec.rules[0].matches[0].headers[0].name: `a b` is not a valid name",
        ),
        (
            "{BACKEND, matches: [{headers: [{name: A, value: x}, {name: a, value: y}]}]}",
            "spec.rules[0].matches[0].headers[1].name: `a` is matched twice",
        ),
        (
            "{BACKEND, retry: {attempts: 3}}",
            "spec.rules[0].retry: `retry` is not supported yet | remove the field; nothing is silently ignored",
        ),
        (
            "{BACKEND, sessionPersistence: {}}",
            "spec.rules[0].sessionPersistence: `sessionPersistence` is not supported yet",
        ),
        (
            "{BACKEND, filters: [{type: RequestMirror, requestMirror: {}}]}",
            "spec.rules[0].filters[0].type: the filter RequestMirror is not supported yet",
        ),
        (
            "{BACKEND, filters: [{type: CORS, cors: {}}]}",
            "spec.rules[0].filters[0].type: the filter CORS is not supported yet",
        ),
        (
            "{BACKEND, filters: [{type: URLRewrite, urlRewrite: {hostname: 'A:1'}}]}",
            "spec.rules[0].filters[0].urlRewrite.hostname: `A:1` is not a host name",
        ),
        (
            "{filters: [{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}]}",
            "spec.rules[0].filters: RequestRedirect and URLRewrite exclude each other",
        ),
        (
            "{BACKEND, filters: [{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}]}",
            "spec.rules[0].filters[1]: a second URLRewrite filter",
        ),
        (
            "{BACKEND, filters: [{type: RequestRedirect, requestRedirect: {}}]}",
            "spec.rules[0].backendRefs: a rule that redirects has no backends",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 300}}]}",
            "spec.rules[0].filters[0].requestRedirect.statusCode: 300 is not a redirect | use 301, 302, 303, 307 or 308",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {port: 0}}]}",
            "spec.rules[0].filters[0].requestRedirect.port: 0 is out of range | the value must be from 1 to 65535",
        ),
        (
            "{BACKEND, filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /a}}}], matches: [{path: {type: Exact, value: /b}}]}",
            "spec.rules[0]: ReplacePrefixMatch needs exactly one match",
        ),
        (
            "{BACKEND, filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /a}}}], matches: [{path: {value: /b}}, {path: {value: /c}}]}",
            "spec.rules[0]: ReplacePrefixMatch needs exactly one match",
        ),
        (
            "{BACKEND, filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /a}}}]}",
            "spec.rules[0].filters[0].urlRewrite.path.replacePrefixMatch: `replacePrefixMatch` does not belong to this type | use `replaceFullPath`",
        ),
        (
            "{BACKEND, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: a}]}}]}",
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].name: `Host` cannot be set | use a URLRewrite filter",
        ),
        (
            "{BACKEND, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: a, value: \"b\\nc\"}]}}]}",
            "spec.rules[0].filters[0].requestHeaderModifier.add[0].value: \"b\\nc\" is not a valid value",
        ),
        (
            "{BACKEND, timeouts: {request: 1.5s}}",
            "spec.rules[0].timeouts.request: `1.5s` is not a duration",
        ),
        (
            "{BACKEND, timeouts: {request: 1s, backendRequest: 2s}}",
            "spec.rules[0].timeouts.backendRequest: `backendRequest` is longer than `request`",
        ),
        ("{BACKEND, timeouts: {request: 0s, backendRequest: 2s}}", ""),
        (
            "{backendRefs: [{name: a}]}",
            "spec.rules[0].backendRefs[0]: required field `port` is missing",
        ),
        (
            "{backendRefs: [{name: a, port: 80, weight: 1000001}]}",
            "spec.rules[0].backendRefs[0].weight: 1000001 is out of range",
        ),
        (
            "{backendRefs: [{name: a, port: '80'}]}",
            "spec.rules[0].backendRefs[0].port: expected a whole number, found the text \"80\" | remove the quotes",
        ),
        (
            "{backendRefs: [{name: a, port: 80, kind: Bucket}]}",
            "spec.rules[0].backendRefs[0]: Bucket of the group \"\" is not supported",
        ),
        (
            "{backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {}}]}]}",
            "spec.rules[0].backendRefs[0].filters: on a backend only header filters are supported yet",
        ),
        (
            "{matches: [{path: {value: /}}]}",
            "spec.rules[0]: no backend takes requests: they are answered 500",
        ),
        (
            "{BACKEND, matches: [{path: {type: RegularExpression, value: /a}}, {}]}",
            "spec.rules[0]: no request reaches the RegularExpression match",
        ),
    ] {
        check_rule(&rule.replace("BACKEND", backend), expect);
    }
}

#[test]
fn other_documents() {
    for (text, expect) in [
        (
            "apiVersion: v1\nkind: Deployment\nmetadata: {name: a}\n",
            "mesh.yaml:2:7: kind: `Deployment` is not a known kind\n  help: the kinds are Service, HTTPRoute",
        ),
        (
            "apiVersion: v1\nkind: service\nmetadata: {name: a}\n",
            "mesh.yaml:2:7: kind: `service` is not a known kind\n  help: did you mean `Service`?",
        ),
        (
            "apiVersion: v2\nkind: Service\nmetadata: {name: a}\nspec: {selector: {a: b}, ports: [{port: 1}]}\n",
            "mesh.yaml:1:13: Service default/a: apiVersion: `v2` is not a known version of Service\n  help: use `v1`",
        ),
        ("a: [", "error: mesh.yaml:1:"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nmetadata: {name: b}\n",
            "error: mesh.yaml:4:1: duplicate mapping key",
        ),
        ("- a\n", "mesh.yaml:1:1: expected a mapping, found a list"),
        (
            "kind: Service\n",
            "mesh.yaml:1:1: required field `apiVersion` is missing",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: A}\nspec: {selector: {a: b}, ports: [{port: 1}]}\n",
            "metadata.name: `A` is not a valid name",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {a: b}, ports: [{port: 1}, {port: 2}]}\n",
            "spec.ports[0]: a port of several needs a `name`",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {a: b}, ports: [{port: 1, protocol: UDP}]}\n",
            "warning: mesh.yaml:4:34: Service default/a: spec.ports[0]: the mesh carries TCP only",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {address: localhost}\n",
            "spec.address: `localhost` is not an IP address",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {address: 10.0.0.1, weight: 1001}\n",
            "spec.weight: 1001 is out of range\n  help: the value must be from 0 to 1000",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {address: 10.0.0.1, ports: [{port: 80, listen: 1}, {name: b, port: 81}]}\n",
            "spec.ports[1]: a port of several needs `listen`",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {address: 127.0.0.1, ports: [{port: 14006}]}\n",
            "spec: ports[0].app is 127.0.0.1:14006, which is ports[0].listen of the sidecar",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {address: 10.0.0.1, upstreams: [{service: b, localPort: 14001}]}\n",
            "spec: upstreams[0].localPort and outbound.port both want 127.0.0.1:14001",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: a}\nspec: {trustDomain: A b}\n",
            "spec.trustDomain: `A b` is not a trust domain",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: a}\nspec: {mtls: {mode: off}}\n",
            "spec.mtls.mode: `off` is not a known value\n  help: one of: permissive, strict",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a}\nspec: {targetRefs: [{group: '', kind: Service, name: b}], connectTimeout: 0s}\n",
            "spec.connectTimeout: the timeout is out of range",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a}\nspec: {targetRefs: [{kind: Service, name: b}], loadBalancer: {policy: RoundRobbin}}\n",
            "spec.loadBalancer.policy: `RoundRobbin` is not a known value\n  help: did you mean `RoundRobin`?",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: a, port: 1}]}]}\n",
            "spec.parentRefs[0]: Gateway of the group \"gateway.networking.k8s.io\" is not supported\n  help: only Services are",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: a}\nspec: {parentRefs: [{group: '', kind: Service, name: b}], rules: [{matches: [{method: {}}], backendRefs: [{name: a, port: 1}]}]}\n",
            "spec.rules[0].matches[0].method: a method match needs `service` or `method`",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: a}\nspec: {parentRefs: [{group: '', kind: Service, name: b}], rules: [{filters: [{type: URLRewrite}], backendRefs: [{name: a, port: 1}]}]}\n",
            "spec.rules[0].filters[0].type: `URLRewrite` is not a known value",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {name: a}\nspec: {parentRefs: [{group: '', kind: Service, name: b}], rules: [{backendRefs: [{name: a, port: 1}]}, {backendRefs: [{name: a, port: 1}]}]}\n",
            "spec.rules: a TCPRoute has one rule",
        ),
    ] {
        let found = shown(text);
        assert!(
            found.contains(expect),
            "{text}\nfound  {found}\nexpect {expect}"
        );
    }
}

/// `field: message | help` of each finding.
fn short(text: &str) -> Vec<String> {
    let found = findings(text);
    let line = |d: &Diagnostic| format!("{}: {} | {}", d.field, d.message, d.help);
    found.iter().map(line).collect()
}

/// Each spec has the one finding, or none if that is empty.
fn check_specs(kind: &str, table: &[(&str, &str)]) {
    for (spec, expect) in table {
        let text = format!("{kind}\nmetadata: {{name: a}}\nspec: {{{spec}}}\n");
        let lines = short(&text);
        let expect: Vec<&str> = Some(*expect)
            .into_iter()
            .filter(|e| !e.is_empty())
            .collect();
        assert_eq!(lines.len(), expect.len(), "{spec}\n{lines:#?}");
        for (line, expect) in lines.iter().zip(expect) {
            assert!(
                line.starts_with(expect),
                "{spec}\nfound  {line}\nexpect {expect}"
            );
        }
    }
}

#[test]
fn captured_workloads() {
    check_specs(
        "apiVersion: weft.dev/v1alpha1\nkind: Workload",
        &[
            ("address: 10.0.0.1, capture: {}", ""),
            ("address: 'fd00::1', capture: {mode: redirect}", ""),
            (
                "address: 10.0.0.1, capture: null, ports: [{port: 80, listen: 81}]",
                "",
            ),
            (
                "address: 10.0.0.1, capture: {mode: tproxy}, additionalAddresses: ['fd00::1', 10.0.0.2], outbound: {port: 15001}, ports: [{port: 80, app: '127.0.0.1:8080'}, {name: b, port: 81, app: '10.0.0.1:81'}]",
                "",
            ),
            (
                "address: 10.0.0.1, capture: true",
                "spec.capture: expected a mapping, found the boolean true",
            ),
            (
                "address: 10.0.0.1, capture: {mode: nat}",
                "spec.capture.mode: `nat` is not a known value | one of: redirect, tproxy",
            ),
            (
                "address: 10.0.0.1, capture: {excludeInboundPort: [1]}",
                "spec.capture.excludeInboundPort: unknown field `excludeInboundPort` | did you mean `excludeInboundPorts`?",
            ),
            (
                "address: 10.0.0.1, capture: {excludeInboundPorts: [9999, 80]}, ports: [{port: 80}]",
                "spec.capture.excludeInboundPorts[1]: port 80 is also in `ports` | a port passes the sidecar or it does not",
            ),
            (
                "address: 10.0.0.1, capture: {inboundPorts: declared}, ports: [{port: 80}]",
                "",
            ),
            (
                "address: 10.0.0.1, capture: {inboundPorts: some}",
                "spec.capture.inboundPorts: `some` is not a known value | one of: all, declared",
            ),
            (
                "address: 10.0.0.1, capture: {inboundPorts: declared, excludeInboundPorts: [1]}",
                "spec.capture.excludeInboundPorts: no port passes the sidecar but those in `ports` | remove it, or `inboundPorts: declared`",
            ),
            (
                "address: 10.0.0.1, capture: {excludeInboundPorts: [1, 1]}",
                "spec.capture.excludeInboundPorts[1]: port 1 is given twice",
            ),
            (
                "address: 10.0.0.1, capture: {excludeInboundPorts: [0]}",
                "spec.capture.excludeInboundPorts[0]: 0 is out of range",
            ),
            (
                "address: 10.0.0.1, capture: {excludeInboundPorts: [14020]}",
                "spec.capture.excludeInboundPorts[0]: 14020 is a port of the sidecar, which is never captured",
            ),
            (
                "address: 10.0.0.1, capture: {}, ports: [{port: 80, listen: 14006}]",
                "spec.ports[0].listen: a captured workload has no `listen`: peers connect to the application's own port | remove `listen`, or `capture`",
            ),
            (
                "address: 10.0.0.1, capture: {}, ports: [{port: 14000}]",
                "spec.ports[0].port: 14000 is a port of the sidecar",
            ),
            (
                "address: 10.0.0.1, capture: {}, ports: [{port: 14006}]",
                "spec.ports[0].port: 14006 is a port of the sidecar",
            ),
            (
                "address: 10.0.0.1, capture: {}, ports: [{port: 14020}]",
                "spec.ports[0].port: 14020 is a port of the sidecar",
            ),
            (
                "address: 10.0.0.1, capture: {}, ports: [{port: 14053}]",
                "spec.ports[0].port: 14053 is a port of the sidecar",
            ),
            (
                "address: 10.0.0.1, capture: {}, outbound: {port: 15001}, ports: [{port: 15001}]",
                "spec: ports[0].port and outbound.port are both 15001",
            ),
            (
                "address: 10.0.0.1, capture: {}, outbound: {port: 14053}",
                "spec: outbound.port and port 14053 both want 127.0.0.1:14053",
            ),
            (
                "address: 10.0.0.1, capture: {}, upstreams: [{service: b, localPort: 14020}]",
                "spec: upstreams[0].localPort and port 14020 both want 127.0.0.1:14020",
            ),
            (
                "address: 10.0.0.1, capture: {}, ports: [{port: 80, app: '127.0.0.1:14006'}]",
                "spec: ports[0].app is 127.0.0.1:14006, which is port 14006 of the sidecar",
            ),
            (
                "address: 10.0.0.1, capture: {}, ports: [{port: 80, app: '10.0.0.1:14006'}]",
                "spec: ports[0].app is 10.0.0.1:14006, which is port 14006 of the sidecar",
            ),
            (
                "address: 10.0.0.1, capture: {}, ports: [{port: 80}, {port: 80}]",
                "spec: ports[1] has the number or name of another port",
            ),
            (
                "address: 127.0.0.1, capture: {}",
                "spec.address: peers cannot reach a captured workload at 127.0.0.1 | capture needs an address of the workload's own",
            ),
            (
                "address: 10.0.0.1, capture: {}, additionalAddresses: ['::1']",
                "spec.additionalAddresses[0]: peers cannot reach a captured workload at ::1",
            ),
            (
                "address: 10.0.0.1, capture: {}, additionalAddresses: ['::']",
                "spec.additionalAddresses[0]: peers cannot connect to ::",
            ),
            (
                // A caller that connects to it reaches itself.
                "address: '::ffff:0.0.0.0', capture: {}",
                "spec.address: peers cannot connect to 0.0.0.0",
            ),
            (
                "address: '::ffff:224.0.0.1', capture: {}",
                "spec.address: peers cannot connect to 224.0.0.1",
            ),
            (
                "address: 255.255.255.255",
                "spec.address: peers cannot connect to 255.255.255.255",
            ),
            (
                // Something else on each machine, such as what gives a cloud's credentials away.
                "address: 169.254.169.254, capture: {}",
                "spec.address: peers cannot connect to 169.254.169.254",
            ),
            (
                "address: 'fe80::1', capture: {}",
                "spec.address: peers cannot connect to fe80::1",
            ),
            (
                "address: 240.240.0.7, capture: {}",
                "spec.address: 240.240.0.7 is in 240.240.0.0/16, which the mesh gives to services",
            ),
            (
                "address: 10.0.0.1, capture: {}, additionalAddresses: ['::ffff:10.0.0.1']",
                "spec.additionalAddresses[0]: 10.0.0.1 is given twice",
            ),
            (
                "address: 10.0.0.1, capture: {}, additionalAddresses: ['fd00::1', 'fd00:0::1']",
                "spec.additionalAddresses[1]: fd00::1 is given twice",
            ),
            (
                "address: 10.0.0.1, capture: {}, additionalAddresses: [10.0.1.1, 10.0.1.2, 10.0.1.3, 10.0.1.4, 10.0.1.5, 10.0.1.6, 10.0.1.7, 10.0.1.8, 10.0.1.9]",
                "spec.additionalAddresses: 9 items, at most 8 are allowed",
            ),
            (
                "address: 10.0.0.1, additionalAddresses: [10.0.0.2]",
                "spec.additionalAddresses: `additionalAddresses` needs `capture`",
            ),
        ],
    );
}

#[test]
fn addresses_and_names_of_services() {
    let inside = |more: &str| format!("selector: {{a: b}}, ports: [{{port: 80}}], {more}");
    let outside = |more: &str| format!("type: ExternalName, ports: [{{port: 443}}], {more}");
    let table: &[(String, &str)] = &[
        (inside("clusterIP: ''"), ""),
        (inside("clusterIP: None, clusterIPs: [None]"), ""),
        (inside("clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1']"), ""),
        (inside("clusterIPs: ['fd00::1', 10.96.0.1]"), ""),
        (
            inside("clusterIP: none"),
            "spec.clusterIP: `none` is not an IP address | write an IP address, or None",
        ),
        (
            inside("clusterIP: 10.96.0.1, clusterIPs: ['fd00::1', 10.96.0.1]"),
            "spec.clusterIPs[0]: `clusterIPs` begins with fd00::1, but `clusterIP` is 10.96.0.1 | the first of `clusterIPs` is `clusterIP`",
        ),
        (
            inside("clusterIP: None, clusterIPs: [10.96.0.1]"),
            "spec.clusterIPs[0]: `clusterIPs` begins with 10.96.0.1, but `clusterIP` is None",
        ),
        (
            inside("clusterIPs: [None, 10.96.0.1]"),
            "spec.clusterIPs[0]: `None` stands alone",
        ),
        (
            inside("clusterIPs: [10.96.0.1, 10.96.0.1]"),
            "spec.clusterIPs[1]: 10.96.0.1 is given twice",
        ),
        (
            inside("clusterIPs: [10.96.0.1, 10.96.0.2]"),
            "spec.clusterIPs[1]: 10.96.0.2 is a second address of its family",
        ),
        (
            inside("clusterIPs: [10.96.0.1, 'fd00::1', 10.96.0.2]"),
            "spec.clusterIPs: 3 items, at most 2 are allowed",
        ),
        (
            inside("clusterIP: 127.0.0.1"),
            "spec.clusterIP: 127.0.0.1 cannot be the address of a service",
        ),
        (
            inside("clusterIP: 0.0.0.0"),
            "spec.clusterIP: 0.0.0.0 cannot be the address of a service",
        ),
        (
            inside("clusterIP: 240.240.7.7"),
            "spec.clusterIP: 240.240.7.7 is in 240.240.0.0/16, which the mesh gives away itself | remove the field",
        ),
        (
            inside("externalName: api.example.com"),
            "spec.externalName: `externalName` is for services of `type: ExternalName` | add that type, or remove the field",
        ),
        (outside("externalName: API.example.com"), ""),
        (outside("externalName: api.example.com, clusterIP: ''"), ""),
        (
            outside("selector: {}"),
            "spec: required field `externalName` is missing",
        ),
        (
            outside("externalName: api.example.com, selector: {a: b}"),
            "spec.selector: no workload is behind an ExternalName service | remove `selector`, or `type: ExternalName`",
        ),
        (
            outside("externalName: api.example.com, clusterIP: 10.96.0.1"),
            "spec.clusterIP: an ExternalName service has no cluster IP | remove the field",
        ),
        (
            outside("externalName: api.example.com, clusterIPs: [None]"),
            "spec.clusterIPs: an ExternalName service has no cluster IP",
        ),
        (
            outside("externalName: 10.0.0.1"),
            "spec.externalName: `10.0.0.1` is not a DNS name | an address is not a name",
        ),
        (
            outside("externalName: 'fd00::1'"),
            "spec.externalName: `fd00::1` is not a DNS name | an address is not a name",
        ),
        (
            outside("externalName: 'api.example.com:443'"),
            "spec.externalName: `api.example.com:443` is not a DNS name | write the full name of a host",
        ),
        (
            outside("externalName: api"),
            "spec.externalName: `api` is not a DNS name | write the full name of a host",
        ),
        (
            "type: ExternalName, externalName: api.example.com, ports: [{port: 443, targetPort: 443}]".to_owned(),
            "",
        ),
        (
            "type: ExternalName, externalName: api.example.com, ports: [{port: 443, targetPort: 8443}]".to_owned(),
            "spec.ports: port 443 has another `targetPort` | connections to an ExternalName service go to `port`",
        ),
        (
            "type: ExternalName, externalName: api.example.com".to_owned(),
            "spec: required field `ports` is missing",
        ),
    ];
    let table: Vec<(&str, &str)> = table.iter().map(|(spec, e)| (spec.as_str(), *e)).collect();
    check_specs("apiVersion: v1\nkind: Service", &table);
}

#[test]
fn unknown_destinations() {
    check_specs(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig",
        &[
            ("outbound: {unknown: allow}", ""),
            ("outbound: {unknown: deny}", ""),
            ("outbound: {}", ""),
            (
                "outbound: {unknown: drop}",
                "spec.outbound.unknown: `drop` is not a known value | one of: allow, deny",
            ),
            (
                "outbound: {unkown: deny}",
                "spec.outbound.unkown: unknown field `unkown` | did you mean `unknown`?",
            ),
        ],
    );
}

#[test]
fn a_finding_without_a_place_says_none() {
    let finding = Diagnostic {
        level: Level::Error,
        file: String::new(),
        line: 0,
        column: 0,
        kind: "MeshConfig".to_owned(),
        name: String::new(),
        field: "spec.trustDomain".to_owned(),
        message: "is wrong".to_owned(),
        help: String::new(),
        in_force: None,
    };
    assert_eq!(
        finding.to_string(),
        "error: MeshConfig: spec.trustDomain: is wrong"
    );
}

#[test]
fn every_problem_of_a_document_is_reported_in_order() {
    let text = http_rule("{matchs: [], backendRefs: [{nam: a, port: 0}]}");
    let found = findings(&text);
    let fields: Vec<&str> = found.iter().map(|d| d.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.rules[0].matchs",
            "spec.rules[0].backendRefs[0]",
            "spec.rules[0].backendRefs[0].nam",
            "spec.rules[0].backendRefs[0].port",
        ]
    );
}

#[test]
fn a_bad_document_spoils_only_itself() {
    let good = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {a: b}, ports: [{port: 1}]}\n";
    let text = format!(
        "{good}---\nb: [\n---\n{}",
        good.replace("name: a", "name: c")
    );
    let parsed = parse_file(&Arc::from("mesh.yaml"), &text);
    let good: Vec<bool> = parsed.iter().map(|p| p.document.is_some()).collect();
    assert_eq!(good, [true, false, true]);
    assert!(
        parsed[1].diagnostics[0].line >= 6,
        "{:?}",
        parsed[1].diagnostics
    );
}

const DAMAGE: &[u8] = b" -:[]{}'\"&*!|>%@#,\n\t0a~\\\xff";

/// Damaged documents are reported, never a panic, and never a document with a problem.
#[test]
fn no_text_is_too_bad() {
    let examples = [
        include_str!("../../../examples/routing.yaml"),
        include_str!("../../../examples/grpc.yaml"),
        include_str!("../../../examples/captured.yaml"),
    ];
    let mut state: u64 = 1;
    let mut next = |bound: usize| {
        // A linear congruential generator is random enough to damage text.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % bound
    };
    for round in 0..300 {
        let mut text = examples[round % examples.len()].as_bytes().to_vec();
        for _ in 0..=next(20) {
            let at = next(text.len());
            let byte = DAMAGE[next(DAMAGE.len())];
            match next(4) {
                0 => text[at] = byte,
                1 => drop(text.remove(at)),
                2 if next(10) == 0 => text.truncate(at.max(1)),
                _ => text.insert(at, byte),
            }
        }
        let text = String::from_utf8_lossy(&text);
        for parsed in parse_file(&Arc::from("mesh.yaml"), &text) {
            let errors = parsed
                .diagnostics
                .iter()
                .filter(|d| d.level == Level::Error);
            assert_eq!(errors.count() > 0, parsed.document.is_none(), "{text}");
        }
    }
}
