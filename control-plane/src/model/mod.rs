//! What the configuration means: one validated, sorted value, equal when it means the
//! same. Built from documents by [`Mesh::build`], read by `translate`.
//!
//! What needs several documents is resolved here once: which workloads a service has,
//! which routes and which policy apply to it.

mod address;
mod build;
#[cfg(test)]
mod tests;
mod virtual_ip;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use weft_certs::spiffe::TrustDomain;

pub(crate) use address::Owner;
pub use virtual_ip::VirtualIps;
pub(crate) use virtual_ip::{ServiceKey, is_virtual};

/// The ports of a sidecar that captures: admin, outbound, inbound, public admin, DNS. They
/// are no application's.
pub const SIDECAR_PORTS: [u16; 5] = [14000, 14001, 14006, 14020, 14053];

/// Everything that is in force. [`Mesh::default`] is the mesh without documents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mesh {
    pub(crate) config: MeshConfig,
    pub(crate) services: ByName<Service>,
    pub(crate) workloads: ByName<Workload>,
    /// By age, then namespace and name: the order of precedence.
    pub(crate) routes: Vec<Route>,
    pub(crate) grants: Vec<ReferenceGrant>,
    /// Made of the services and workloads.
    book: address::AddressBook,
}

impl Mesh {
    /// The trust domain of every identity in the mesh.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.config.trust_domain
    }

    /// Whether inbound plaintext is accepted.
    #[must_use]
    pub fn mtls_mode(&self) -> MtlsMode {
        self.config.mtls
    }

    /// The workload of that name.
    #[must_use]
    pub fn workload(&self, namespace: &str, name: &str) -> Option<&Workload> {
        self.workloads.find(namespace, name)
    }

    /// All workloads, sorted by namespace and name.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.iter()
    }

    /// The service of that name.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.find(namespace, name)
    }

    /// All services, sorted by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter()
    }

    /// The number of routes of all kinds.
    #[must_use]
    pub fn route_count(&self) -> usize {
        self.routes.len()
    }
}

/// Objects by namespace and name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ByName<T>(BTreeMap<String, BTreeMap<String, T>>);

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> ByName<T> {
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<&T> {
        self.0.get(namespace)?.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.values().flat_map(BTreeMap::values)
    }

    fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &T> {
        self.0.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    fn find_mut(&mut self, namespace: &str, name: &str) -> Option<&mut T> {
        self.0.get_mut(namespace)?.get_mut(name)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.values_mut().flat_map(BTreeMap::values_mut)
    }

    fn insert(&mut self, namespace: &str, name: &str, value: T) {
        self.0
            .entry(namespace.to_owned())
            .or_default()
            .insert(name.to_owned(), value);
    }
}

/// `MeshConfig`: the settings of the whole mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshConfig {
    /// `spec.trustDomain`, default `cluster.local`.
    pub trust_domain: TrustDomain,
    /// `spec.clusterDomain`, default `cluster.local`: what full service names end with.
    pub cluster_domain: String,
    /// `spec.mtls.mode`, default strict.
    pub mtls: MtlsMode,
    /// `spec.outbound.unknown`, default allow.
    pub unknown: UnknownDestinations,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local"
                .parse()
                .expect("cluster.local is a valid trust domain"),
            cluster_domain: "cluster.local".to_owned(),
            mtls: MtlsMode::Strict,
            unknown: UnknownDestinations::Allow,
        }
    }
}

/// What becomes of captured connections to addresses that are no service and no workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownDestinations {
    /// They go where they were meant to go, as they are.
    Allow,
    /// They are refused.
    Deny,
}

/// Whether a sidecar accepts callers without an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsMode {
    /// Only mTLS.
    Strict,
    /// mTLS and plaintext.
    Permissive,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, and HTTP/2 when the client speaks it.
    Http,
    /// HTTP/2 without TLS, also to clients of HTTP/1.1.
    Http2,
    /// gRPC, over HTTP/2.
    Grpc,
    /// Bytes.
    Tcp,
    /// Not said: detected per connection.
    Undeclared,
}

impl Protocol {
    /// The word for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Undeclared => "undeclared",
        }
    }
}

/// A `Service`: a name for workloads, with ports.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.ports` over TCP, in the order of the document.
    pub ports: Vec<ServicePort>,
    /// `spec.clusterIP: None`: names stand for the addresses of its workloads, and routes
    /// cannot attach to it.
    pub headless: bool,
    /// `spec.clusterIPs`, else its virtual address; empty if it is headless.
    pub addresses: Vec<IpAddr>,
    /// `spec.externalName`, in lower case: the service is outside of the mesh.
    pub external_name: Option<String>,
    /// `spec.selector`; without one no workload is behind the service.
    pub(crate) selector: BTreeMap<String, String>,
    /// Names of the workloads that the selector picks, sorted.
    pub(crate) workloads: Vec<String>,
    /// Indexes into [`Mesh::routes`] of the routes with this service as a parent.
    pub(crate) routes: Vec<usize>,
    /// The TrafficPolicy in force, or the defaults.
    pub(crate) policy: Policy,
}

impl Service {
    /// The port with that number.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`.
    pub name: Option<String>,
    /// `port`.
    pub port: u16,
    /// `targetPort`, default the number of `port`.
    pub target: Target,
    /// From `appProtocol`, the port's name or its number.
    pub protocol: Protocol,
}

/// Which port of a workload a service port means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

/// A `Workload`: one running copy of an application with its sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.labels`: what selectors of services match.
    pub labels: BTreeMap<String, String>,
    /// `spec.serviceAccount`, default `default`.
    pub service_account: String,
    /// `spec.address`: where its peers reach the sidecar.
    pub address: IpAddr,
    /// `spec.additionalAddresses`: the same workload under other addresses. Only with capture.
    pub additional_addresses: Vec<IpAddr>,
    /// `spec.capture`; without it, the application calls the sidecar's ports itself.
    pub capture: Option<Capture>,
    /// `spec.ports`.
    pub ports: Vec<WorkloadPort>,
    /// `spec.outbound.port`, default 14001: the sidecar's proxy port for its application.
    pub outbound_port: u16,
    /// `spec.upstreams`.
    pub upstreams: Vec<Upstream>,
    /// `spec.weight`, 0 to 1000, default 1; 0 takes no requests.
    pub weight: u32,
}

impl Workload {
    /// The port with that number of the application.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&WorkloadPort> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// The port that a service port means.
    #[must_use]
    pub fn target(&self, target: &Target) -> Option<&WorkloadPort> {
        self.ports.iter().find(|port| match target {
            Target::Number(number) => port.port == *number,
            Target::Name(name) => port.name.as_ref() == Some(name),
        })
    }

    /// All its addresses, `spec.address` first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.address).chain(self.additional_addresses.iter().copied())
    }

    /// How callers reach it for a service port. Capture takes every port, declared or not;
    /// without it there are only those that are declared.
    #[must_use]
    pub(crate) fn reach(&self, target: &Target) -> Option<Reach> {
        let declared = self.target(target).map(|port| Reach {
            port: port.listen,
            transport: Transport::Mtls,
        });
        declared.or_else(|| match (&self.capture, target) {
            (Some(_), Target::Number(port)) => Some(Reach {
                port: *port,
                transport: self.transport(*port),
            }),
            _ => None,
        })
    }

    /// How callers have to connect to a port on its addresses.
    #[must_use]
    pub(crate) fn transport(&self, port: u16) -> Transport {
        let Some(capture) = &self.capture else {
            return Transport::Mtls;
        };
        let passes = match capture.inbound_ports {
            InboundPorts::All => capture.exclude_inbound_ports.binary_search(&port).is_err(),
            InboundPorts::Declared => self.port(port).is_some(),
        };
        if passes && !SIDECAR_PORTS.contains(&port) {
            Transport::Mtls
        } else {
            Transport::Plaintext
        }
    }
}

/// `spec.capture`: the kernel leads connections from and to the application to the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// `mode`, default redirect.
    pub mode: CaptureMode,
    /// `inboundPorts`, default all.
    pub inbound_ports: InboundPorts,
    /// `excludeInboundPorts`, sorted: connections to them do not pass the sidecar. Empty unless
    /// all others do.
    pub exclude_inbound_ports: Vec<u16>,
}

/// Which connections that arrive at the workload's addresses pass the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundPorts {
    /// Those to all ports.
    All,
    /// Those to the ports that the workload declares: it shares its addresses with others.
    Declared,
}

/// By what the kernel captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureMode {
    /// NAT: the application sees the sidecar as its client.
    Redirect,
    /// Transparent proxying: the application sees the client's address.
    Tproxy,
}

/// How a workload is reached for a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// The port on its addresses.
    pub(crate) port: u16,
    pub(crate) transport: Transport,
}

/// What callers speak on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TLS between the sidecars.
    Mtls,
    /// The connection does not pass a sidecar at its end.
    Plaintext,
}

/// One port that a workload offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// `name`.
    pub name: Option<String>,
    /// `port`: the number that services target.
    pub port: u16,
    /// `protocol`, else that of the services that target the port.
    pub protocol: Protocol,
    /// The port that peers connect to: `listen`, default 14006; with capture `port`.
    pub listen: u16,
    /// `app`: where the application listens, default 127.0.0.1 and `port`. With capture the
    /// default, `None`, is the address that the peer connected to.
    pub app: Option<SocketAddr>,
}

/// A destination with a local port of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The namespace of the service.
    pub namespace: String,
    /// The name of the service.
    pub service: String,
    /// The port of the service; `None` is its only one.
    pub port: Option<u16>,
    /// The port on 127.0.0.1.
    pub local_port: u16,
}

/// The kind of a route, in order of precedence where several meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// `GRPCRoute`.
    Grpc,
    /// `HTTPRoute`.
    Http,
    /// `TCPRoute`.
    Tcp,
}

impl RouteKind {
    /// The name of the document's kind.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
            Self::Tcp => "TCPRoute",
        }
    }
}

/// A route of any kind. A TCPRoute has one rule without matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Which kind.
    pub kind: RouteKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.creationTimestamp`, seconds since 1970; files usually have none.
    pub(crate) created: Option<i64>,
    /// The services that it is attached to.
    pub(crate) parents: Vec<Parent>,
    pub(crate) rules: Vec<Rule>,
}

/// A service that a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// `None` is every port.
    pub(crate) port: Option<u16>,
}

/// One rule of a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rule {
    pub(crate) name: Option<String>,
    /// At least one; any of them.
    pub(crate) matches: Vec<Match>,
    pub(crate) request_headers: HeaderChanges,
    pub(crate) response_headers: HeaderChanges,
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) redirect: Option<Redirect>,
    pub(crate) backends: Vec<Backend>,
    /// Zero is none.
    pub(crate) timeout: Duration,
    pub(crate) try_timeout: Option<Duration>,
}

/// What a request must have, all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) path: PathMatch,
    pub(crate) method: Option<String>,
    pub(crate) headers: Vec<ValueMatch>,
    pub(crate) query: Vec<ValueMatch>,
    /// Greater goes first; compared among matches of one kind of route only.
    pub(crate) rank: [usize; 5],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathMatch {
    Exact(String),
    /// Whole segments; without a trailing `/`; empty means every path.
    Prefix(String),
    Regex(String),
}

/// A header or a query parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValueMatch {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) is_regex: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeaderChanges {
    pub(crate) set: Vec<(String, String)>,
    pub(crate) add: Vec<(String, String)>,
    pub(crate) remove: Vec<String>,
}

impl HeaderChanges {
    pub(crate) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathChange {
    Full(String),
    Prefix(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewrite {
    pub(crate) hostname: Option<String>,
    pub(crate) path: Option<PathChange>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redirect {
    pub(crate) scheme: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<PathChange>,
    pub(crate) status: u16,
}

/// Where a rule sends its share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) weight: u32,
    pub(crate) request_headers: HeaderChanges,
    pub(crate) response_headers: HeaderChanges,
}

/// A `ReferenceGrant`: routes of other namespaces may use services of this one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReferenceGrant {
    /// The namespace that grants.
    pub(crate) namespace: String,
    /// Pairs of route kind and namespace.
    pub(crate) from: Vec<(RouteKind, String)>,
    /// Names of services; `None` is all of them.
    pub(crate) to: Vec<Option<String>>,
}

/// What a `TrafficPolicy` says about a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `spec.loadBalancer.policy`.
    pub balancer: Balancer,
    /// `spec.connectTimeout`, default 5 s.
    pub connect_timeout: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            balancer: Balancer::PeakEwma,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// The faster and less loaded of two random ones.
    PeakEwma,
    /// In turns.
    RoundRobin,
    /// The less loaded of two random ones.
    LeastRequest,
    /// Any.
    Random,
}
