//! The names of resources, and what an authority, an address and a DNS name mean.

use std::net::{IpAddr, SocketAddr};

use crate::model::{
    Mesh, Owner, Protocol, Service, ServicePort, Transport, Workload, WorkloadPort,
};

/// The route table of a sidecar, its listener, and the prefix of its virtual hosts.
pub(super) const OUTBOUND: &str = "outbound";
/// Listeners of single destinations.
pub(super) const OUTBOUND_PORT: &str = "outbound|";
/// The listener of captured connections to ports that are not declared.
pub(super) const INBOUND_ANY: &str = "inbound";
/// Listeners and clusters towards the application.
pub(super) const INBOUND: &str = "inbound|";
/// The cluster towards the application for ports that are not declared, after [`INBOUND`].
pub(super) const ANY_PORT: &str = "*";
/// The listener for DNS.
pub(super) const DNS: &str = "dns";
/// Virtual hosts that say what a DNS name stands for.
pub(super) const DNS_NAME: &str = "dns/";
/// The cluster of connections that go where they were meant to go.
pub(super) const PASSTHROUGH: &str = "passthrough";
/// Clusters of one port of one captured workload.
const POD: &str = "pod|";
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

/// Where a request or a connection goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Destination<'a> {
    /// A port of a service.
    Service(&'a Service, &'a ServicePort),
    /// A port of one workload.
    Pod(Pod<'a>),
}

/// A port of a captured workload at one of its addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pod<'a> {
    pub(super) workload: &'a Workload,
    pub(super) address: SocketAddr,
}

impl<'a> Pod<'a> {
    /// The name of its cluster.
    pub(super) fn cluster(&self) -> String {
        format!("{POD}{}", self.address)
    }

    fn port(&self) -> Option<&'a WorkloadPort> {
        self.workload.port(self.address.port())
    }

    pub(super) fn protocol(&self) -> Protocol {
        let port = self.port();
        port.map_or(Protocol::Undeclared, |port| port.protocol)
    }

    pub(super) fn transport(&self) -> Transport {
        self.workload.transport(self.address.port())
    }
}

/// The workload port of a cluster name, which has one spelling only.
pub(super) fn find_pod<'a>(mesh: &'a Mesh, name: &str) -> Option<Pod<'a>> {
    let text = name.strip_prefix(POD)?;
    let address = socket_address(text).filter(|address| address.to_string() == text)?;
    match at_address(mesh, address)? {
        Destination::Pod(pod) => Some(pod),
        Destination::Service(..) => None,
    }
}

/// What an authority means in a namespace: a name as in [`resolve_host`], with or without a
/// port, or an address with a port. It is in lower case and without a trailing dot.
pub(super) fn resolve<'a>(
    mesh: &'a Mesh,
    namespace: &str,
    authority: &str,
) -> Option<Destination<'a>> {
    if let Some(address) = socket_address(authority) {
        return at_address(mesh, address);
    }
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
    Some(Destination::Service(service, port))
}

/// An address and a port, however they are spelt; IPv4 in the clothes of IPv6 is IPv4.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    // A zone means another thing on each machine.
    let has_zone = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    (address.port() != 0 && !has_zone).then_some(address)
}

fn at_address(mesh: &Mesh, address: SocketAddr) -> Option<Destination<'_>> {
    match mesh.owner(address.ip())? {
        Owner::Service(service) => {
            let port = service.port(address.port())?;
            Some(Destination::Service(service, port))
        }
        Owner::Workload(workload) => Some(Destination::Pod(Pod { workload, address })),
    }
}

/// The service of a name in a namespace: `post`, `post.blog`, `post.blog.svc`,
/// `post.blog.svc.cluster.local`, and the first two with `.mesh.localhost`.
fn resolve_host<'a>(mesh: &'a Mesh, namespace: &str, host: &str) -> Option<&'a Service> {
    let (name, rest) = match host.strip_suffix(LOCAL_SUFFIX) {
        Some(short) => short.split_once('.').unwrap_or((short, namespace)),
        None => match host.split_once('.') {
            None => (host, namespace),
            Some((name, rest)) => (name, without_suffix(mesh, rest)),
        },
    };
    // A namespace has no dots, so anything longer is found nowhere.
    mesh.service(rest, name)
}

/// A name without the suffixes that all names of services have, if it has one.
fn without_suffix<'a>(mesh: &Mesh, name: &'a str) -> &'a str {
    name.strip_suffix(&mesh.config.cluster_domain)
        .and_then(|rest| rest.strip_suffix(".svc."))
        .or_else(|| name.strip_suffix(".svc"))
        .unwrap_or(name)
}

/// The addresses of a DNS name, and for how many seconds they may be remembered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ttl: u16,
}

/// A service keeps its address.
const SERVICE_TTL: u16 = 30;
/// Workloads come and go.
const WORKLOAD_TTL: u16 = 5;

/// What a DNS name, in lower case and without a trailing dot, stands for in a namespace.
/// `None`: it is no name of the mesh.
pub(super) fn resolve_dns(mesh: &Mesh, namespace: &str, name: &str) -> Option<Answer> {
    let service = resolve_host(mesh, namespace, name).or_else(|| mesh.external(namespace, name));
    match service {
        Some(service) if service.headless => Some(Answer {
            addresses: captured(mesh, service)
                .filter(|workload| workload.weight > 0)
                .flat_map(Workload::addresses)
                .collect(),
            ttl: WORKLOAD_TTL,
        }),
        Some(service) if service.addresses.is_empty() => None,
        Some(service) => Some(Answer {
            addresses: service.addresses.clone(),
            ttl: SERVICE_TTL,
        }),
        None => Some(Answer {
            addresses: resolve_member(mesh, name)?.addresses().collect(),
            ttl: WORKLOAD_TTL,
        }),
    }
}

/// The workload of `<workload>.<headless service>.<namespace>`, with or without a suffix.
/// Names of workloads may have dots.
fn resolve_member<'a>(mesh: &'a Mesh, name: &str) -> Option<&'a Workload> {
    let (name, namespace) = without_suffix(mesh, name).rsplit_once('.')?;
    let (name, service) = name.rsplit_once('.')?;
    let service = mesh.service(namespace, service).filter(|s| s.headless)?;
    let index = service.workloads.binary_search_by(|w| w.as_str().cmp(name));
    let workload = mesh.workload(namespace, &service.workloads[index.ok()?])?;
    workload.capture.is_some().then_some(workload)
}

/// The workloads behind a service that take connections at their own addresses.
pub(super) fn captured<'a>(
    mesh: &'a Mesh,
    service: &'a Service,
) -> impl Iterator<Item = &'a Workload> {
    let names = service.workloads.iter();
    names
        .filter_map(|name| mesh.workload(&service.namespace, name))
        .filter(|workload| workload.capture.is_some())
}

#[cfg(test)]
mod tests {
    use super::{Destination, find_pod, resolve, resolve_dns};
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
            let found = resolve(&mesh, from, authority).map(|found| match found {
                Destination::Service(service, port) => super::cluster(service, port),
                Destination::Pod(pod) => pod.cluster(),
            });
            assert_eq!(found.as_deref(), expect, "{authority} from {from}");
        }
    }

    const CAPTURED: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  clusterIPs: [10.96.4.7, 'fd00:96::7']
  ports: [{name: http, port: 80}, {name: tcp, port: 81}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: db}, clusterIP: None, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: old, namespace: shop}
spec: {selector: {app: old}, clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: shop}
spec: {type: ExternalName, externalName: api.example.com, ports: [{port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: svc, namespace: svc}
spec: {selector: {app: web}, clusterIP: 10.96.4.9, ports: [{port: 80}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: db.0, namespace: shop, labels: {app: db}}
spec:
  address: 10.9.0.5
  additionalAddresses: ['fd00:9::5']
  capture: {excludeInboundPorts: [9999]}
  ports: [{port: 5432}]
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: db.1, namespace: shop, labels: {app: db}}
spec: {address: 10.9.0.6, weight: 0, capture: {}, ports: [{port: 5432}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: old-0, namespace: shop, labels: {app: old}}
spec: {address: 10.9.0.7, ports: [{port: 80}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: shadow, namespace: shop}
spec: {address: 10.96.4.9, capture: {}}
";

    #[test]
    fn addresses() {
        let mesh = mesh(CAPTURED);
        let virtual_ip = |name: &str| mesh.service("shop", name).unwrap().addresses[0];
        let pay = virtual_ip("pay");
        let pay_443 = format!("{pay}:443");
        let pay_80 = format!("{pay}:80");
        for (authority, expect) in [
            ("10.96.4.7:80", Some("web.shop:80")),
            ("10.96.4.7:81", Some("web.shop:81")),
            ("[fd00:96::7]:81", Some("web.shop:81")),
            // However it is spelt.
            ("[fd00:0096:0::0:7]:80", Some("web.shop:80")),
            ("[FD00:96::7]:80", Some("web.shop:80")),
            ("[::ffff:10.96.4.7]:80", Some("web.shop:80")),
            ("[::ffff:a60:407]:80", Some("web.shop:80")),
            ("[::ffff:10.9.0.5]:80", Some("pod|10.9.0.5:80")),
            ("[fe80::1%1]:80", None),
            // No port of the service, and no port at all.
            ("10.96.4.7:82", None),
            ("10.96.4.7:0", None),
            ("10.96.4.7", None),
            ("[fd00:96::7]", None),
            ("fd00:96::7:80", None),
            ("010.96.4.7:80", None),
            (pay_443.as_str(), Some("pay.shop:443")),
            (pay_80.as_str(), None),
            // Every port of a captured workload, at all its addresses.
            ("10.9.0.5:5432", Some("pod|10.9.0.5:5432")),
            ("[fd00:9::5]:5432", Some("pod|[fd00:9::5]:5432")),
            ("[fd00:9:0::5]:9999", Some("pod|[fd00:9::5]:9999")),
            ("10.9.0.6:1", Some("pod|10.9.0.6:1")),
            // A workload without capture, and nobody.
            ("10.9.0.7:80", None),
            ("10.9.0.7:14006", None),
            ("10.9.0.99:80", None),
            ("240.240.0.0:80", None),
            // A service goes before a workload.
            ("10.96.4.9:80", Some("svc.svc:80")),
            ("10.96.4.9:81", None),
        ] {
            for from in ["shop", "elsewhere"] {
                let found = resolve(&mesh, from, authority).map(|found| match found {
                    Destination::Service(service, port) => super::cluster(service, port),
                    Destination::Pod(pod) => pod.cluster(),
                });
                assert_eq!(found.as_deref(), expect, "{authority} from {from}");
            }
        }
    }

    #[test]
    fn clusters_of_workloads_have_one_spelling() {
        let mesh = mesh(CAPTURED);
        for (name, expect) in [
            ("pod|10.9.0.5:5432", true),
            ("pod|[fd00:9::5]:5432", true),
            ("pod|[fd00:9:0::5]:5432", false),
            ("pod|[::ffff:10.9.0.5]:5432", false),
            ("pod|10.9.0.5:05432", false),
            ("pod|10.9.0.5", false),
            ("pod|10.9.0.7:80", false),
            ("pod|10.96.4.7:80", false),
            ("pod|", false),
            ("10.9.0.5:5432", false),
        ] {
            assert_eq!(find_pod(&mesh, name).is_some(), expect, "{name}");
        }
    }

    #[test]
    fn dns_names() {
        let mesh = mesh(CAPTURED);
        let virtual_ip = |name: &str| mesh.service("shop", name).unwrap().addresses[0].to_string();
        let (web, db) = ("10.96.4.7 fd00:96::7 30", "10.9.0.5 fd00:9::5 5");
        let pay = format!("{} 30", virtual_ip("pay"));
        let pay = pay.as_str();
        for (from, name, expect) in [
            ("shop", "web", Some(web)),
            ("shop", "web.shop", Some(web)),
            ("shop", "web.shop.svc", Some(web)),
            ("shop", "web.shop.svc.cluster.local", Some(web)),
            ("shop", "web.mesh.localhost", Some(web)),
            ("shop", "web.shop.mesh.localhost", Some(web)),
            ("batch", "web", None),
            ("batch", "web.shop", Some(web)),
            ("batch", "web.shop.svc.cluster.local", Some(web)),
            ("batch", "web.batch", None),
            ("svc", "svc.svc", Some("10.96.4.9 30")),
            // The workloads that can be connected to, but not those that take nothing.
            ("batch", "db.shop", Some(db)),
            ("batch", "old.shop", Some("5")),
            ("batch", "db.0.db.shop.svc.cluster.local", Some(db)),
            ("batch", "db.0.db.shop.svc", Some(db)),
            ("batch", "db.0.db.shop", Some(db)),
            ("batch", "db.1.db.shop.svc", Some("10.9.0.6 5")),
            ("batch", "old-0.old.shop.svc", None),
            ("batch", "0.db.shop.svc", None),
            ("batch", "db.0.web.shop.svc", None),
            ("shop", "db.0.db", None),
            ("shop", "db.0", None),
            // A name of others is known where its service is.
            ("shop", "pay", Some(pay)),
            ("batch", "pay.shop", Some(pay)),
            ("shop", "api.example.com", Some(pay)),
            ("batch", "api.example.com", None),
            ("shop", "example.com", None),
            ("shop", "www.api.example.com", None),
            // Lower case, without a dot at the end, without a port: that is the sidecar's work.
            ("shop", "WEB", None),
            ("shop", "web.shop.", None),
            ("shop", "web:80", None),
            ("shop", "10.96.4.7", None),
            ("shop", "cluster.local", None),
            ("shop", "svc.cluster.local", None),
            ("shop", ".svc.cluster.local", None),
            (
                "shop",
                "web.shop.svc.cluster.local.shop.svc.cluster.local",
                None,
            ),
            ("shop", "", None),
        ] {
            let found = resolve_dns(&mesh, from, name).map(|answer| {
                let addresses = answer.addresses.iter().map(ToString::to_string);
                let words: Vec<String> = addresses.chain([answer.ttl.to_string()]).collect();
                words.join(" ")
            });
            assert_eq!(found.as_deref(), expect, "{name} from {from}");
        }
    }
}
