//! `Cluster`: a service port over mTLS, or the workload's own application.

use std::collections::{BTreeSet, HashMap};

use weft_api::any::pack;
use weft_api::envoy::config::cluster::v3 as api;
use weft_api::envoy::config::core::v3 as core;
use weft_api::envoy::config::endpoint::v3 as endpoint_api;
use weft_api::envoy::extensions::load_balancing_policies as balancers;
use weft_api::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_api::envoy::extensions::upstreams::http::v3 as http;
use weft_api::extensions::PeakEwma;

use super::{Context, Node, endpoint, names, proto};
use crate::model::{Balancer, Protocol, Service, ServicePort, Workload, WorkloadPort};
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
    if let Some(workload) = cx.mesh.workload(node.namespace, node.workload) {
        names.extend(workload.ports.iter().map(|p| inbound_name(p.port)));
    }
    names
}

pub(super) fn inbound_name(port: u16) -> String {
    format!("{}{port}", names::INBOUND)
}

pub(super) fn cluster(cx: &Context<'_>, node: &Node<'_>, name: &str) -> Option<api::Cluster> {
    if let Some(port) = name.strip_prefix(names::INBOUND) {
        let workload = cx.mesh.workload(node.namespace, node.workload)?;
        return Some(inbound(workload.port(names::number(port)?)?));
    }
    let (service, port) = names::find_cluster(cx.mesh, name)?;
    Some(outbound(cx, service, port))
}

fn outbound(cx: &Context<'_>, service: &Service, port: &ServicePort) -> api::Cluster {
    api::Cluster {
        name: names::cluster(service, port),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(proto::ads()),
            ..Default::default()
        }),
        connect_timeout: Some(proto::duration(service.policy.connect_timeout)),
        load_balancing_policy: Some(balancing(service.policy.balancer)),
        typed_extension_protocol_options: match port.protocol {
            Protocol::Tcp => HashMap::new(),
            Protocol::Grpc | Protocol::Http2 => protocol_options(http2()),
            Protocol::Http | Protocol::Undeclared => protocol_options(as_downstream()),
        },
        transport_socket: Some(proto::transport_socket(&upstream_tls(cx, service, port))),
        metadata: Some(proto::metadata(&[
            ("namespace", proto::string_value(&service.namespace)),
            ("port", proto::number_value(port.port)),
            ("service", proto::string_value(&service.name)),
        ])),
        ..Default::default()
    }
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
    cx: &Context<'_>,
    service: &Service,
    port: &ServicePort,
) -> tls::UpstreamTlsContext {
    let alpn = match port.protocol {
        Protocol::Tcp => ALPN_TCP,
        _ => ALPN_HTTP,
    };
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: identities(cx, service, port)
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
        sni: format!(
            "{}.{}.svc.{}",
            service.name, service.namespace, cx.mesh.config.cluster_domain
        ),
        ..Default::default()
    }
}

/// Who may answer for a service port. Without workloads it is an identity that the CA
/// signs for nobody: an empty list would mean everybody.
fn identities(cx: &Context<'_>, service: &Service, port: &ServicePort) -> BTreeSet<String> {
    let mut identities: BTreeSet<String> = endpoint::endpoints(cx.mesh, service, port)
        .filter_map(|(workload, _)| endpoint::identity(cx.mesh, workload))
        .map(|id| id.to_string())
        .collect();
    if identities.is_empty() {
        identities.insert(format!(
            "spiffe://{}/ns/{}/svc/{}",
            cx.mesh.trust_domain(),
            service.namespace,
            service.name
        ));
    }
    identities
}

fn inbound(port: &WorkloadPort) -> api::Cluster {
    let name = inbound_name(port.port);
    let endpoint = endpoint_api::LbEndpoint {
        host_identifier: Some(endpoint_api::lb_endpoint::HostIdentifier::Endpoint(
            endpoint_api::Endpoint {
                address: Some(proto::address(port.app.ip(), port.app.port())),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    let options = match port.protocol {
        Protocol::Tcp => HashMap::new(),
        Protocol::Http => protocol_options(http1()),
        Protocol::Http2 | Protocol::Grpc => protocol_options(http2()),
        Protocol::Undeclared => protocol_options(as_downstream()),
    };
    api::Cluster {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        connect_timeout: Some(proto::duration(
            crate::model::Policy::default().connect_timeout,
        )),
        typed_extension_protocol_options: options,
        load_assignment: Some(endpoint_api::ClusterLoadAssignment {
            cluster_name: name,
            endpoints: vec![endpoint_api::LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn protocol_options(
    options: UpstreamProtocolOptions,
) -> HashMap<String, weft_api::google::protobuf::Any> {
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
