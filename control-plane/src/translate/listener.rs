//! `Listener`: where the application calls out, and where peers call in.

use std::net::{IpAddr, Ipv4Addr};

use prost::{Message, Name};
use weft_api::any::pack;
use weft_api::envoy::config::core::v3 as core;
use weft_api::envoy::config::listener::v3 as api;
use weft_api::envoy::config::route::v3::RouteConfiguration;
use weft_api::envoy::extensions::filters::http::router::v3::Router;
use weft_api::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use weft_api::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use weft_api::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use weft_api::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use weft_api::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_api::google::protobuf as pb;

use super::cluster::{ALPN_HTTP, ALPN_TCP, inbound_name, workload};
use super::{Context, Node, names, proto, route};
use crate::model::{
    Mesh, MtlsMode, Protocol, Service, ServicePort, Upstream, Workload, WorkloadPort,
};
use hcm::http_connection_manager::RouteSpecifier;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What the HTTP inspector finds in plaintext.
const PLAIN_HTTP: &[&str] = &["http/1.1", "h2c"];

/// The listeners of a node; none until its document exists.
pub(super) fn names(cx: &Context<'_>, node: &Node<'_>) -> Vec<String> {
    let Some(workload) = workload(cx, node) else {
        return Vec::new();
    };
    let inbound = workload.ports.iter().map(|port| inbound_name(port.port));
    let outbound = workload
        .upstreams
        .iter()
        .filter(|upstream| destination(cx.mesh, upstream).is_some())
        .map(|upstream| format!("{}{}", names::OUTBOUND_PORT, upstream.local_port));
    inbound
        .chain([names::OUTBOUND.to_owned()])
        .chain(outbound)
        .collect()
}

pub(super) fn listener(cx: &Context<'_>, node: &Node<'_>, name: &str) -> Option<api::Listener> {
    let workload = workload(cx, node)?;
    if name == names::OUTBOUND {
        return Some(proxy(workload));
    }
    if let Some(port) = name.strip_prefix(names::INBOUND) {
        let port = workload.port(names::number(port)?)?;
        return Some(inbound(cx, workload, port));
    }
    let local_port = names::number(name.strip_prefix(names::OUTBOUND_PORT)?)?;
    let upstream = workload
        .upstreams
        .iter()
        .find(|u| u.local_port == local_port)?;
    let (service, port) = destination(cx.mesh, upstream)?;
    Some(outbound(cx, node, name, local_port, (service, port)))
}

fn destination<'a>(mesh: &'a Mesh, upstream: &Upstream) -> Option<(&'a Service, &'a ServicePort)> {
    let service = mesh.service(&upstream.namespace, &upstream.service)?;
    let port = match upstream.port {
        Some(port) => service.port(port)?,
        None => match service.ports.as_slice() {
            [only] => only,
            _ => return None,
        },
    };
    Some((service, port))
}

/// The sidecar as the HTTP proxy of its application.
fn proxy(workload: &Workload) -> api::Listener {
    let routes = RouteSpecifier::Rds(hcm::Rds {
        route_config_name: names::OUTBOUND.to_owned(),
        config_source: Some(proto::ads()),
    });
    api::Listener {
        name: names::OUTBOUND.to_owned(),
        address: Some(proto::address(LOCALHOST, workload.outbound_port)),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        filter_chains: vec![chain("http", http_filter(names::OUTBOUND, routes))],
        metadata: Some(proto::metadata(&[])),
        ..Default::default()
    }
}

/// A local port for one destination.
fn outbound(
    cx: &Context<'_>,
    node: &Node<'_>,
    name: &str,
    local_port: u16,
    (service, port): (&Service, &ServicePort),
) -> api::Listener {
    let http = || {
        let table = route::service_table(cx, node, name, service, port);
        chain(
            "http",
            http_filter(name, RouteSpecifier::RouteConfig(table)),
        )
    };
    let bytes = || {
        let clusters = route::tcp_clusters(cx, node, service, port);
        chain("tcp", tcp_filter(name, clusters))
    };
    let mut listener = api::Listener {
        name: name.to_owned(),
        address: Some(proto::address(LOCALHOST, local_port)),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        metadata: Some(proto::metadata(&[
            ("namespace", proto::string_value(&service.namespace)),
            ("port", proto::number_value(port.port)),
            ("service", proto::string_value(&service.name)),
        ])),
        ..Default::default()
    };
    match port.protocol {
        Protocol::Tcp => listener.filter_chains.push(bytes()),
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => listener.filter_chains.push(http()),
        Protocol::Undeclared => {
            let mut http = http();
            http.filter_chain_match = Some(api::FilterChainMatch {
                application_protocols: strings(PLAIN_HTTP),
                ..Default::default()
            });
            listener.filter_chains.push(http);
            listener.default_filter_chain = Some(bytes());
            listener.listener_filters.push(http_inspector());
        }
    }
    listener
}

/// Where peers reach a port of the application.
fn inbound(cx: &Context<'_>, workload: &Workload, port: &WorkloadPort) -> api::Listener {
    let name = inbound_name(port.port);
    let has_http = port.protocol != Protocol::Tcp;
    let has_tcp = matches!(port.protocol, Protocol::Tcp | Protocol::Undeclared);
    let http = || {
        let table: RouteConfiguration = route::forward_table(&name, name.clone());
        http_filter(&name, RouteSpecifier::RouteConfig(table))
    };
    let bytes = || tcp_filter(&name, vec![(name.clone(), 1)]);
    let mut filter_chains = Vec::new();
    if has_http {
        filter_chains.push(mtls_chain("mtls-http", ALPN_HTTP, http()));
    }
    if has_tcp {
        filter_chains.push(mtls_chain("mtls-tcp", ALPN_TCP, bytes()));
    }
    if cx.mesh.config.mtls == MtlsMode::Permissive {
        if has_http {
            filter_chains.push(plain_chain("plain-http", PLAIN_HTTP, http()));
        }
        if has_tcp {
            filter_chains.push(plain_chain("plain-tcp", &[], bytes()));
        }
    }
    api::Listener {
        name: name.clone(),
        address: Some(proto::address(workload.address, port.listen)),
        traffic_direction: core::TrafficDirection::Inbound as i32,
        filter_chains,
        listener_filters: vec![
            listener_filter(
                "envoy.filters.listener.tls_inspector",
                &TlsInspector::default(),
            ),
            http_inspector(),
        ],
        metadata: Some(proto::metadata(&[("port", proto::number_value(port.port))])),
        ..Default::default()
    }
}

fn mtls_chain(name: &str, alpn: &[&str], filter: api::Filter) -> api::FilterChain {
    let validation =
        tls::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(
            proto::secret_reference(names::TRUST_BUNDLE),
        );
    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(proto::common_tls(alpn, validation)),
        require_client_certificate: Some(pb::BoolValue { value: true }),
        ..Default::default()
    };
    api::FilterChain {
        filter_chain_match: Some(api::FilterChainMatch {
            transport_protocol: "tls".to_owned(),
            application_protocols: strings(alpn),
            ..Default::default()
        }),
        transport_socket: Some(proto::transport_socket(&context)),
        ..chain(name, filter)
    }
}

fn plain_chain(name: &str, protocols: &[&str], filter: api::Filter) -> api::FilterChain {
    api::FilterChain {
        filter_chain_match: Some(api::FilterChainMatch {
            transport_protocol: "raw_buffer".to_owned(),
            application_protocols: strings(protocols),
            ..Default::default()
        }),
        ..chain(name, filter)
    }
}

fn chain(name: &str, filter: api::Filter) -> api::FilterChain {
    api::FilterChain {
        name: name.to_owned(),
        filters: vec![filter],
        ..Default::default()
    }
}

fn http_filter(stat_prefix: &str, routes: RouteSpecifier) -> api::Filter {
    let upgrade = |kind: &str| hcm::http_connection_manager::UpgradeConfig {
        upgrade_type: kind.to_owned(),
        ..Default::default()
    };
    let manager = hcm::HttpConnectionManager {
        codec_type: hcm::http_connection_manager::CodecType::Auto as i32,
        stat_prefix: stat_prefix.to_owned(),
        http_filters: vec![hcm::HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(
                &Router::default(),
            ))),
            ..Default::default()
        }],
        upgrade_configs: vec![upgrade("websocket"), upgrade("CONNECT")],
        route_specifier: Some(routes),
        ..Default::default()
    };
    filter("envoy.filters.network.http_connection_manager", &manager)
}

fn tcp_filter(stat_prefix: &str, mut clusters: Vec<(String, u32)>) -> api::Filter {
    let specifier = if clusters.len() == 1 {
        tcp::tcp_proxy::ClusterSpecifier::Cluster(clusters.remove(0).0)
    } else {
        tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(tcp::tcp_proxy::WeightedCluster {
            clusters: clusters
                .into_iter()
                .map(
                    |(name, weight)| tcp::tcp_proxy::weighted_cluster::ClusterWeight {
                        name,
                        weight,
                        ..Default::default()
                    },
                )
                .collect(),
        })
    };
    let proxy = tcp::TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(specifier),
        ..Default::default()
    };
    filter("envoy.filters.network.tcp_proxy", &proxy)
}

fn filter<M: Message + Name>(name: &str, config: &M) -> api::Filter {
    api::Filter {
        name: name.to_owned(),
        config_type: Some(api::filter::ConfigType::TypedConfig(pack(config))),
    }
}

fn http_inspector() -> api::ListenerFilter {
    listener_filter(
        "envoy.filters.listener.http_inspector",
        &HttpInspector::default(),
    )
}

fn listener_filter<M: Message + Name>(name: &str, config: &M) -> api::ListenerFilter {
    api::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(api::listener_filter::ConfigType::TypedConfig(pack(config))),
        ..Default::default()
    }
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}
