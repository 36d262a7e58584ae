//! The names of resources, and what an authority means.

use crate::model::{Mesh, Service, ServicePort};

/// The route table of a sidecar, and the prefix of its virtual hosts.
pub(super) const OUTBOUND: &str = "outbound";
/// Listeners of single destinations.
pub(super) const OUTBOUND_PORT: &str = "outbound|";
/// Listeners and clusters towards the application.
pub(super) const INBOUND: &str = "inbound|";
/// The trust bundle.
pub(super) const TRUST_BUNDLE: &str = "ROOTCA";
/// The workload's own certificate.
pub(super) const OWN_CERTIFICATE: &str = "default";
/// The suffix by which programs on one machine reach services without DNS.
const LOCAL_SUFFIX: &str = ".mesh.localhost";

/// The name of the cluster of a service port.
pub(super) fn cluster(service: &Service, port: &ServicePort) -> String {
    format!("{}.{}:{}", service.name, service.namespace, port.port)
}

/// The name of a cluster that does not exist on purpose.
pub(super) fn missing(namespace: &str, name: &str, port: u16) -> String {
    format!("missing|{namespace}/{name}:{port}")
}

/// The service port of a cluster name.
pub(super) fn find_cluster<'a>(
    mesh: &'a Mesh,
    name: &str,
) -> Option<(&'a Service, &'a ServicePort)> {
    let (host, port) = name.split_once(':')?;
    let (service, namespace) = host.split_once('.')?;
    let service = mesh.service(namespace, service)?;
    Some((service, service.port(number(port)?)?))
}

/// A port in its one canonical spelling.
pub(super) fn number(text: &str) -> Option<u16> {
    let number: u16 = text.parse().ok()?;
    (number != 0 && number.to_string() == text).then_some(number)
}

/// The service port that an authority means in a namespace. The authority is in lower
/// case and without a trailing dot.
pub(super) fn resolve<'a>(
    mesh: &'a Mesh,
    namespace: &str,
    authority: &str,
) -> Option<(&'a Service, &'a ServicePort)> {
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(number(port)?)),
        None => (authority, None),
    };
    let service = resolve_host(mesh, namespace, host)?;
    let port = match port {
        Some(port) => service.port(port)?,
        None => service.port(80).or(match service.ports.as_slice() {
            [only] => Some(only),
            _ => None,
        })?,
    };
    Some((service, port))
}

fn resolve_host<'a>(mesh: &'a Mesh, namespace: &str, host: &str) -> Option<&'a Service> {
    let (name, rest) = match host.strip_suffix(LOCAL_SUFFIX) {
        Some(short) => short.split_once('.').unwrap_or((short, namespace)),
        None => match host.split_once('.') {
            None => (host, namespace),
            Some((name, rest)) => {
                let rest = rest
                    .strip_suffix(&format!(".svc.{}", mesh.config.cluster_domain))
                    .or_else(|| rest.strip_suffix(".svc"))
                    .unwrap_or(rest);
                (name, rest)
            }
        },
    };
    // A namespace has no dots, so anything longer is found nowhere.
    mesh.service(rest, name)
}

#[cfg(test)]
mod tests {
    use super::resolve;
    use crate::translate::tests::mesh;

    #[test]
    fn authorities() {
        let mesh = mesh(
            "
apiVersion: v1
kind: Service
metadata: {name: post, namespace: blog}
spec: {selector: {app: post}, ports: [{port: 80, name: http}, {port: 81, name: tcp}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: data}
spec: {selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: data}
spec: {selector: {app: two}, ports: [{port: 1, name: a}, {port: 2, name: b}]}
---
apiVersion: v1
kind: Service
metadata: {name: mesh, namespace: localhost}
spec: {selector: {app: mesh}, ports: [{port: 7}]}
",
        );
        for (from, authority, expect) in [
            ("blog", "post", Some("post.blog:80")),
            ("blog", "post:80", Some("post.blog:80")),
            ("blog", "post:81", Some("post.blog:81")),
            ("blog", "post:82", None),
            ("blog", "post:080", None),
            ("blog", "post:", None),
            ("blog", "post:x", None),
            ("data", "post", None),
            ("data", "post.blog", Some("post.blog:80")),
            ("data", "post.blog:81", Some("post.blog:81")),
            ("data", "post.blog.svc", Some("post.blog:80")),
            ("data", "post.blog.svc.cluster.local", Some("post.blog:80")),
            (
                "data",
                "post.blog.svc.cluster.local:81",
                Some("post.blog:81"),
            ),
            ("data", "post.blog.cluster.local", None),
            ("data", "post.blog.svc.example.org", None),
            ("blog", "post.mesh.localhost", Some("post.blog:80")),
            ("data", "post.blog.mesh.localhost:81", Some("post.blog:81")),
            ("data", "post.blog.svc.mesh.localhost", None),
            ("data", "db", Some("db.data:5432")),
            ("data", "two", None),
            ("data", "two:2", Some("two.data:2")),
            ("data", "mesh.localhost", Some("mesh.localhost:7")),
            ("blog", "", None),
            ("blog", ".blog", None),
            ("blog", "post.", None),
            ("blog", "[::1]:80", None),
        ] {
            let found = resolve(&mesh, from, authority).map(|(s, p)| super::cluster(s, p));
            assert_eq!(found.as_deref(), expect, "{authority} from {from}");
        }
    }
}
