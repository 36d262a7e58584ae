//! Probes of captured pods. HTTP probes stay as they are: the sidecar is told to let exactly
//! these through. A port check through a capture would always succeed, and a gRPC or HTTPS
//! probe would be refused as plaintext or foreign TLS: these go to the sidecar, which asks the
//! application.

use super::problem::{Problem, Report};
use super::yaml::{Entry, Node, map, number, text};

/// Where the sidecar answers probes.
const PUBLIC_ADMIN: u16 = 14020;
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HOOKS: [&str; 2] = ["postStart", "preStop"];
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// What the sidecar has to know of the probes of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// `port/path` of GETs to let through.
    pub http: Vec<String>,
    /// Ports that it checks.
    pub tcp: Vec<String>,
    /// `port` or `port/service` of gRPC health checks.
    pub grpc: Vec<String>,
}

/// Whether the containers under this key of a pod have probes.
const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

/// Rewrites what must be; returns what the sidecar has to know, and the handlers that were
/// replaced, as `{container: {probe: handler}}`. Probes of ports in `uncaptured` stay.
pub(crate) fn rewrite(spec: &mut Node, uncaptured: &[u16], report: &mut Report) -> (Plan, Node) {
    let mut plan = Plan::default();
    let mut replaced = map::<String>([]);
    for list in CONTAINERS {
        if spec.get(list).is_none() {
            continue;
        }
        for (at, container) in spec.list_at(list).iter_mut().enumerate() {
            let mut one = One {
                name: container.text_at(&["name"]).unwrap_or_default().to_owned(),
                path: format!("spec.{list}[{at}]"),
                ports: named_ports(container),
                uncaptured,
                plan: &mut plan,
                report,
            };
            for kind in PROBES {
                if let Some(original) = one.probe(container, kind) {
                    let name = one.name.clone();
                    replaced.map_at(&name).set(kind, original);
                }
            }
            for hook in HOOKS {
                one.hook(container, hook);
            }
        }
    }
    (plan, replaced)
}

/// Puts replaced handlers back.
pub(crate) fn restore(spec: &mut Node, replaced: &Node) {
    for list in CONTAINERS {
        if spec.get(list).is_none() {
            continue;
        }
        for container in spec.list_at(list) {
            let name = container.text_at(&["name"]).unwrap_or_default();
            let Some(probes) = replaced.get(name) else {
                continue;
            };
            for probe in probes.entries() {
                let ours = container
                    .text_at(&[&probe.key, "httpGet", "path"])
                    .is_some_and(|path| path.starts_with("/probe/"));
                let handler = probe.value.entries().first();
                if let (true, Some(handler)) = (ours, handler) {
                    let node = container.map_at(&probe.key);
                    replace(node, "httpGet", &handler.key, handler.value.clone());
                }
            }
        }
    }
}

/// Puts another handler into the place of one.
fn replace(probe: &mut Node, old: &str, new: &str, handler: Node) {
    let entry = probe.entries_mut().iter_mut().find(|e| e.key == old);
    if let Some(entry) = entry {
        let (above, right) = (
            std::mem::take(&mut entry.value.above),
            entry.value.right.take(),
        );
        *entry = Entry {
            key: new.to_owned(),
            quoted: false,
            value: Node {
                above,
                right,
                ..handler
            },
        };
    }
}

/// The named TCP ports of a container.
fn named_ports(container: &Node) -> Vec<(String, u16)> {
    let ports = container.get("ports").into_iter().flat_map(Node::items);
    ports
        .filter_map(|port| {
            let number = port.get("containerPort")?.as_number()?;
            let name = port.text_at(&["name"])?;
            Some((name.to_owned(), u16::try_from(number).ok()?))
        })
        .collect()
}

/// One container.
struct One<'a> {
    name: String,
    path: String,
    ports: Vec<(String, u16)>,
    uncaptured: &'a [u16],
    plan: &'a mut Plan,
    report: &'a mut Report,
}

impl One<'_> {
    /// Rewrites a probe if it must be; returns the handler that was there.
    fn probe(&mut self, container: &mut Node, kind: &str) -> Option<Node> {
        let probe = container.get(kind)?;
        let handlers = HANDLERS.into_iter();
        let (handler, node) = handlers.filter_map(|h| Some((h, probe.get(h)?))).next()?;
        let (port, elsewhere) = self.target(node, &format!("{kind}.{handler}"))?;
        if elsewhere || self.uncaptured.contains(&port) {
            return None;
        }
        let path = match handler {
            "httpGet" if is_https(node) => {
                self.report.warn(format!(
                    "{}.{kind}: an HTTPS probe becomes a check of port {port}: the sidecar takes no TLS but the mesh's",
                    self.path
                ));
                add(&mut self.plan.tcp, port.to_string());
                format!("/probe/tcp/{port}")
            }
            "httpGet" => {
                self.let_through(node, port, &format!("{kind}.httpGet"));
                return None;
            }
            "tcpSocket" => {
                add(&mut self.plan.tcp, port.to_string());
                format!("/probe/tcp/{port}")
            }
            _ => {
                let target = match node.text_at(&["service"]).unwrap_or_default() {
                    "" => port.to_string(),
                    service if is_service(service) => format!("{port}/{service}"),
                    service => {
                        self.report.error(Problem::new(format!(
                            "{}.{kind}.grpc.service: `{service}` is no name of a gRPC service",
                            self.path
                        )));
                        return None;
                    }
                };
                add(&mut self.plan.grpc, target.clone());
                format!("/probe/grpc/{target}")
            }
        };
        let original = map([(handler, node.clone())]);
        let to = map([("path", text(path)), ("port", number(PUBLIC_ADMIN))]);
        replace(container.map_at(kind), handler, "httpGet", to);
        Some(original)
    }

    /// Lets the GET of a lifecycle hook through.
    fn hook(&mut self, container: &Node, hook: &str) {
        let Some(node) = container.at(&["lifecycle", hook, "httpGet"]) else {
            return;
        };
        let field = format!("lifecycle.{hook}.httpGet");
        let Some((port, elsewhere)) = self.target(node, &field) else {
            return;
        };
        if elsewhere || self.uncaptured.contains(&port) {
            return;
        }
        if is_https(node) {
            self.report.error(
                Problem::new(format!(
                    "{}.{field}: HTTPS would be refused: the sidecar takes no TLS but the mesh's",
                    self.path
                ))
                .help(format!(
                    "use scheme HTTP, or exec, or set weft.dev/skip-inbound-ports: \"{port}\""
                )),
            );
            return;
        }
        self.let_through(node, port, &field);
    }

    fn let_through(&mut self, node: &Node, port: u16, field: &str) {
        let path = node.text_at(&["path"]).unwrap_or("/");
        let path = path.strip_prefix('/').unwrap_or(path);
        let good = |c: char| c.is_ascii_graphic() && c != ',' && c != '#';
        if path.chars().all(good) {
            add(&mut self.plan.http, format!("{port}/{path}"));
            return;
        }
        self.report.error(
            Problem::new(format!(
                "{}.{field}.path: `/{path}` has a comma, a `#` or a space, so that the sidecar cannot be told of it",
                self.path
            ))
            .help(format!(
                "use another path, or set weft.dev/skip-inbound-ports: \"{port}\""
            )),
        );
    }

    /// The port of a handler, and whether it is on another host than the pod.
    fn target(&mut self, handler: &Node, field: &str) -> Option<(u16, bool)> {
        let elsewhere = handler.text_at(&["host"]).is_some_and(|h| !h.is_empty());
        let node = handler.get("port");
        let by_number = node.and_then(Node::as_number);
        let port = match node.and_then(Node::as_text) {
            Some(name) => {
                let mut ports = self.ports.iter();
                let named = ports.find(|(known, _)| known == name);
                named.map(|(_, port)| *port).or_else(|| name.parse().ok())
            }
            None => by_number.and_then(|port| u16::try_from(port).ok()),
        };
        if let Some(port @ 1..) = port {
            return Some((port, elsewhere));
        }
        let problem = Problem::new(format!(
            "{}.{field}.port is neither a port nor the name of one",
            self.path
        ));
        self.report.error(problem.help(format!(
            "names are those in {}.ports; there are: {}",
            self.path,
            self.known()
        )));
        None
    }

    fn known(&self) -> String {
        let names: Vec<&str> = self.ports.iter().map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return "none".to_owned();
        }
        names.join(", ")
    }
}

fn is_https(http_get: &Node) -> bool {
    let scheme = http_get.text_at(&["scheme"]);
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
}

fn is_service(name: &str) -> bool {
    name.chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_' || c == '-')
}

fn add(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::super::emit::{emit, inline};
    use super::super::yaml::parse;
    use super::*;

    fn pod(container: &str) -> Node {
        let text = format!(
            "containers:\n- name: web\n  ports: [{{name: http, containerPort: 8080}}, {{containerPort: 9}}]\n  {}\n",
            container.replace('\n', "\n  ")
        );
        parse(&text).unwrap().unwrap().root
    }

    fn planned(container: &str, uncaptured: &[u16]) -> (Plan, Node, Vec<String>) {
        let mut spec = pod(container);
        let mut report = Report::default();
        let (plan, replaced) = rewrite(&mut spec, uncaptured, &mut report);
        if report.errors.is_empty() {
            let mut back = spec.clone();
            restore(&mut back, &replaced);
            assert_eq!(inline(&back), inline(&pod(container)), "{container}");
        }
        (plan, spec, report.lines())
    }

    #[test]
    fn each_kind_of_probe() {
        for (probe, http, tcp, grpc) in [
            (
                "livenessProbe: {httpGet: {path: /x?a=1, port: http}}",
                "8080/x?a=1",
                "",
                "",
            ),
            ("livenessProbe: {httpGet: {port: 9}}", "9/", "", ""),
            (
                "livenessProbe: {httpGet: {path: x, port: \"9\"}}",
                "9/x",
                "",
                "",
            ),
            (
                "livenessProbe: {httpGet: {host: other, port: 9}}",
                "",
                "",
                "",
            ),
            ("startupProbe: {tcpSocket: {port: http}}", "", "8080", ""),
            ("readinessProbe: {grpc: {port: 9}}", "", "", "9"),
            (
                "readinessProbe: {grpc: {port: 9, service: a.B}}",
                "",
                "",
                "9/a.B",
            ),
            ("readinessProbe: {exec: {command: [x]}}", "", "", ""),
            (
                "lifecycle: {preStop: {httpGet: {path: /bye, port: 9}}}",
                "9/bye",
                "",
                "",
            ),
            ("lifecycle: {postStart: {exec: {command: [x]}}}", "", "", ""),
        ] {
            let (plan, _, report) = planned(probe, &[]);
            let got = (plan.http.join(","), plan.tcp.join(","), plan.grpc.join(","));
            let expect = (http.to_owned(), tcp.to_owned(), grpc.to_owned());
            assert_eq!((got, report), (expect, Vec::new()), "{probe}");
        }
    }

    #[test]
    fn rewritten_in_place_with_timing_kept() {
        let probe = "livenessProbe:\n  initialDelaySeconds: 3\n  tcpSocket: # of mine\n    port: 9\n  periodSeconds: 5";
        let (_, spec, _) = planned(probe, &[]);
        let text = emit(spec.items().first().unwrap_or(&spec));
        let expect = "  livenessProbe:\n    initialDelaySeconds: 3\n    httpGet: # of mine\n      path: /probe/tcp/9\n      port: 14020\n    periodSeconds: 5\n";
        assert!(text.ends_with(expect), "{text}");
    }

    #[test]
    fn https_is_a_port_check() {
        let (plan, _, report) = planned("livenessProbe: {httpGet: {port: 9, scheme: HTTPS}}", &[]);
        assert_eq!(plan.tcp, ["9"]);
        assert!(report[0].starts_with("warning: spec.containers[0].livenessProbe: an HTTPS"));
        let hook = "lifecycle: {preStop: {httpGet: {port: 9, scheme: HTTPS}}}";
        let (_, _, report) = planned(hook, &[]);
        assert!(report[0].contains("would be refused"), "{report:?}");
        let (plan, _, report) = planned(hook, &[9]);
        assert_eq!((plan, report), (Plan::default(), Vec::new()));
    }

    #[test]
    fn uncaptured_ports_are_left_alone() {
        let probe = "livenessProbe: {tcpSocket: {port: 9}}";
        let (plan, spec, _) = planned(probe, &[9]);
        assert_eq!(plan, Plan::default());
        assert!(emit(&spec).contains("livenessProbe: {tcpSocket: {port: 9}}"));
    }

    #[test]
    fn mistakes_are_named() {
        for (probe, expect) in [
            (
                "livenessProbe: {tcpSocket: {port: htp}}",
                "livenessProbe.tcpSocket.port is neither a port nor the name of one | names are those in spec.containers[0].ports; there are: http",
            ),
            (
                "livenessProbe: {httpGet: {path: /}}",
                "livenessProbe.httpGet.port is neither",
            ),
            ("livenessProbe: {tcpSocket: {port: 70000}}", "neither"),
            (
                "livenessProbe: {httpGet: {path: '/a,b', port: 9}}",
                "has a comma",
            ),
            (
                "livenessProbe: {grpc: {port: 9, service: a/b}}",
                "no name of a gRPC service",
            ),
        ] {
            let (_, _, report) = planned(probe, &[]);
            assert!(report[0].contains(expect), "{probe}: {report:?}");
        }
    }
}
