//! `Cluster`: a service port over mTLS, or the workload's own application.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use weft_api::any::pack;
use weft_api::envoy::config::cluster::v3 as api;
use weft_api::envoy::config::core::v3 as core;
use weft_api::envoy::config::endpoint::v3 as endpoint_api;
use weft_api::envoy::extensions::load_balancing_policies as balancers;
use weft_api::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_api::envoy::extensions::upstreams::http::v3 as http;
use weft_api::extensions::PeakEwma;

use super::{Context, Node, endpoint, names, proto};
use crate::model::{
    Balancer, Policy, Protocol, Service, ServicePort, Transport, UnknownDestinations, Workload,
    WorkloadPort,
};
use api::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
use http::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
    explicit_http_config::ProtocolConfig,
};
use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// The ALPN protocols of connections between sidecars.
pub(super) const ALPN_HTTP: &[&str] = &["h2", "http/1.1"];
pub(super) const ALPN_TCP: &[&str] = &["weft-tcp"];

/// Of the clusters without end, `pod|`, none: they are asked for by name.
pub(super) fn names(cx: &Context<'_>, node: &Node<'_>) -> Vec<String> {
    let services = cx.mesh.services();
    let mut names: Vec<String> = services
        .flat_map(|service| {
            service
                .ports
                .iter()
                .map(|port| names::cluster(service, port))
        })
        .collect();
    let Some(workload) = workload(cx, node) else {
        return names;
    };
    names.extend(workload.ports.iter().map(|p| inbound_name(p.port)));
    if workload.capture.is_some() {
        names.push(format!("{}{}", names::INBOUND, names::ANY_PORT));
        if passthrough(cx).is_some() {
            names.push(names::PASSTHROUGH.to_owned());
        }
    }
    names
}

pub(super) fn inbound_name(port: u16) -> String {
    format!("{}{port}", names::INBOUND)
}

pub(super) fn cluster(cx: &Context<'_>, node: &Node<'_>, name: &str) -> Option<api::Cluster> {
    if let Some(port) = name.strip_prefix(names::INBOUND) {
        let workload = workload(cx, node)?;
        if port == names::ANY_PORT {
            workload.capture.as_ref()?;
            return Some(original(name, protocol_options(as_downstream())));
        }
        return Some(inbound(name, workload.port(names::number(port)?)?));
    }
    if name == names::PASSTHROUGH {
        return passthrough(cx);
    }
    if let Some(pod) = names::find_pod(cx.mesh, name) {
        return Some(single(cx, &pod));
    }
    let (service, port) = names::find_cluster(cx.mesh, name)?;
    Some(match &service.external_name {
        Some(host) => external(service, port, host),
        None => outbound(cx, service, port),
    })
}

fn outbound(cx: &Context<'_>, service: &Service, port: &ServicePort) -> api::Cluster {
    let (transport, members) = cx.mesh.endpoints(service, port);
    let tls = || {
        let ids = members.iter().map(|(workload, _)| *workload);
        let sni = format!(
            "{}.{}.svc.{}",
            service.name, service.namespace, cx.mesh.config.cluster_domain
        );
        let nobody = format!("svc/{}", service.name);
        let identities = identities(cx, ids, &service.namespace, &nobody);
        proto::transport_socket(&upstream_tls(port.protocol, &identities, sni))
    };
    api::Cluster {
        load_balancing_policy: Some(balancing(service.policy.balancer)),
        transport_socket: (transport == Transport::Mtls).then(tls),
        metadata: Some(service_metadata(service, port)),
        ..discovered(
            names::cluster(service, port),
            port.protocol,
            &service.policy,
        )
    }
}

/// One workload at one of its addresses.
fn single(cx: &Context<'_>, pod: &names::Pod<'_>) -> api::Cluster {
    let names::Pod { workload, address } = pod;
    let tls = || {
        let domain = &cx.mesh.config.cluster_domain;
        let sni = format!(
            "{}.{}.pod.{domain}",
            dashed(address.ip()),
            workload.namespace
        );
        let nobody = format!("pod/{}", workload.name);
        let identities = identities(cx, [*workload], &workload.namespace, &nobody);
        proto::transport_socket(&upstream_tls(pod.protocol(), &identities, sni))
    };
    let policy = Policy::default();
    api::Cluster {
        load_balancing_policy: Some(balancing(policy.balancer)),
        transport_socket: (pod.transport() == Transport::Mtls).then(tls),
        metadata: Some(proto::metadata(&[
            ("namespace", proto::string_value(&workload.namespace)),
            ("port", proto::number_value(address.port())),
            ("workload", proto::string_value(&workload.name)),
        ])),
        ..discovered(pod.cluster(), pod.protocol(), &policy)
    }
}

/// An address as one label of a name.
fn dashed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string().replace('.', "-"),
        // Not the short form: a label neither begins nor ends with a dash.
        IpAddr::V6(ip) => ip.segments().map(|part| format!("{part:x}")).join("-"),
    }
}

/// What clusters have in common whose endpoints are told apart from them.
fn discovered(name: String, protocol: Protocol, policy: &Policy) -> api::Cluster {
    api::Cluster {
        name,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(proto::ads()),
            ..Default::default()
        }),
        connect_timeout: Some(proto::duration(policy.connect_timeout)),
        typed_extension_protocol_options: outbound_options(protocol),
        ..Default::default()
    }
}

/// A host outside of the mesh, without mTLS.
fn external(service: &Service, port: &ServicePort, host: &str) -> api::Cluster {
    let name = names::cluster(service, port);
    api::Cluster {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns as i32)),
        connect_timeout: Some(proto::duration(service.policy.connect_timeout)),
        load_balancing_policy: Some(balancing(Balancer::RoundRobin)),
        typed_extension_protocol_options: outbound_options(port.protocol),
        load_assignment: Some(assignment(name, proto::named_address(host, port.port))),
        metadata: Some(service_metadata(service, port)),
        ..Default::default()
    }
}

/// Where connections go that are not for the mesh; none if they may not.
fn passthrough(cx: &Context<'_>) -> Option<api::Cluster> {
    match cx.mesh.config.unknown {
        UnknownDestinations::Allow => Some(original(names::PASSTHROUGH, HashMap::new())),
        UnknownDestinations::Deny => None,
    }
}

/// Where the connection was meant to go.
fn original(name: &str, options: ProtocolOptions) -> api::Cluster {
    api::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(
            DiscoveryType::OriginalDst as i32,
        )),
        lb_policy: api::cluster::LbPolicy::ClusterProvided as i32,
        connect_timeout: Some(proto::duration(Policy::default().connect_timeout)),
        typed_extension_protocol_options: options,
        ..Default::default()
    }
}

fn service_metadata(service: &Service, port: &ServicePort) -> core::Metadata {
    proto::metadata(&[
        ("namespace", proto::string_value(&service.namespace)),
        ("port", proto::number_value(port.port)),
        ("service", proto::string_value(&service.name)),
    ])
}

/// The policies in order of preference: the client takes the first that it knows.
fn balancing(balancer: Balancer) -> api::LoadBalancingPolicy {
    let least_request = proto::extension(
        "envoy.load_balancing_policies.least_request",
        &balancers::least_request::v3::LeastRequest::default(),
    );
    let policies = match balancer {
        Balancer::PeakEwma => vec![
            proto::extension("weft.extensions.v1.PeakEwma", &PeakEwma::default()),
            least_request,
        ],
        Balancer::LeastRequest => vec![least_request],
        Balancer::RoundRobin => vec![proto::extension(
            "envoy.load_balancing_policies.round_robin",
            &balancers::round_robin::v3::RoundRobin::default(),
        )],
        Balancer::Random => vec![proto::extension(
            "envoy.load_balancing_policies.random",
            &balancers::random::v3::Random::default(),
        )],
    };
    api::LoadBalancingPolicy {
        policies: policies
            .into_iter()
            .map(|config| api::load_balancing_policy::Policy {
                typed_extension_config: Some(config),
            })
            .collect(),
    }
}

fn upstream_tls(
    protocol: Protocol,
    identities: &BTreeSet<String>,
    sni: String,
) -> tls::UpstreamTlsContext {
    let alpn = match protocol {
        Protocol::Tcp => ALPN_TCP,
        _ => ALPN_HTTP,
    };
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: identities
                .iter()
                .map(|identity| tls::SubjectAltNameMatcher {
                    san_type: tls::subject_alt_name_matcher::SanType::Uri as i32,
                    matcher: Some(proto::exact(identity)),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(proto::secret_reference(names::TRUST_BUNDLE)),
        ..Default::default()
    };
    tls::UpstreamTlsContext {
        common_tls_context: Some(proto::common_tls(
            alpn,
            ValidationContextType::CombinedValidationContext(validation),
        )),
        sni,
        ..Default::default()
    }
}

/// Who may answer. Without workloads it is an identity that the CA signs for nobody: an empty
/// list would mean everybody.
fn identities<'a>(
    cx: &Context<'_>,
    workloads: impl IntoIterator<Item = &'a Workload>,
    namespace: &str,
    nobody: &str,
) -> BTreeSet<String> {
    let mut identities: BTreeSet<String> = workloads
        .into_iter()
        .filter_map(|workload| endpoint::identity(cx.mesh, workload))
        .map(|id| id.to_string())
        .collect();
    if identities.is_empty() {
        identities.insert(format!(
            "spiffe://{}/ns/{namespace}/{nobody}",
            cx.mesh.trust_domain()
        ));
    }
    identities
}

/// The application itself: where its document says, else where the peer connected to.
fn inbound(name: &str, port: &WorkloadPort) -> api::Cluster {
    let options = match port.protocol {
        Protocol::Tcp => HashMap::new(),
        Protocol::Http => protocol_options(http1()),
        Protocol::Http2 | Protocol::Grpc => protocol_options(http2()),
        Protocol::Undeclared => protocol_options(as_downstream()),
    };
    let Some(app) = port.app else {
        return original(name, options);
    };
    api::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        connect_timeout: Some(proto::duration(Policy::default().connect_timeout)),
        typed_extension_protocol_options: options,
        load_assignment: Some(assignment(
            name.to_owned(),
            proto::address(app.ip(), app.port()),
        )),
        ..Default::default()
    }
}

/// The one endpoint of a cluster that carries it.
fn assignment(cluster_name: String, address: core::Address) -> endpoint_api::ClusterLoadAssignment {
    let endpoint = endpoint_api::LbEndpoint {
        host_identifier: Some(endpoint_api::lb_endpoint::HostIdentifier::Endpoint(
            endpoint_api::Endpoint {
                address: Some(address),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    endpoint_api::ClusterLoadAssignment {
        cluster_name,
        endpoints: vec![endpoint_api::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn outbound_options(protocol: Protocol) -> ProtocolOptions {
    match protocol {
        Protocol::Tcp => HashMap::new(),
        Protocol::Grpc | Protocol::Http2 => protocol_options(http2()),
        Protocol::Http | Protocol::Undeclared => protocol_options(as_downstream()),
    }
}

/// By name; there is at most one.
type ProtocolOptions = HashMap<String, weft_api::google::protobuf::Any>;

fn protocol_options(options: UpstreamProtocolOptions) -> ProtocolOptions {
    let options = http::HttpProtocolOptions {
        upstream_protocol_options: Some(options),
        ..Default::default()
    };
    HashMap::from([(HTTP_OPTIONS.to_owned(), pack(&options))])
}

fn http1() -> UpstreamProtocolOptions {
    explicit(ProtocolConfig::HttpProtocolOptions(
        core::Http1ProtocolOptions::default(),
    ))
}

fn http2() -> UpstreamProtocolOptions {
    explicit(ProtocolConfig::Http2ProtocolOptions(
        core::Http2ProtocolOptions::default(),
    ))
}

fn explicit(config: ProtocolConfig) -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(config),
    })
}

/// HTTP/2 if the client speaks it: Envoy upgrades only with both options present.
fn as_downstream() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(core::Http1ProtocolOptions::default()),
        http2_protocol_options: Some(core::Http2ProtocolOptions::default()),
        ..Default::default()
    })
}

/// The workload behind a node, if its document exists.
pub(super) fn workload<'a>(cx: &Context<'a>, node: &Node<'_>) -> Option<&'a Workload> {
    cx.mesh.workload(node.namespace, node.workload)
}
