//! `Listener`: where the application calls out, and where peers call in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use prost::{Message, Name};
use weft_api::any::pack;
use weft_api::envoy::config::core::v3 as core;
use weft_api::envoy::config::listener::v3 as api;
use weft_api::envoy::config::route::v3::RouteConfiguration;
use weft_api::envoy::data::dns::v3::DnsTable;
use weft_api::envoy::extensions::filters::http::router::v3::Router;
use weft_api::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use weft_api::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use weft_api::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use weft_api::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use weft_api::envoy::extensions::filters::udp::dns_filter::v3 as dns;
use weft_api::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_api::google::protobuf as pb;

use super::cluster::{ALPN_HTTP, ALPN_TCP, inbound_name, workload};
use super::{Context, Node, names, proto, route};
use crate::model::{
    Capture, CaptureMode, Mesh, MtlsMode, Protocol, Service, ServicePort, UnknownDestinations,
    Upstream, Workload, WorkloadPort,
};
use dns::dns_filter_config::{ServerContextConfig, server_context_config};
use hcm::http_connection_manager::RouteSpecifier;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const EVERYWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// Where the kernel leads connections to a captured application.
const INBOUND_PORT: u16 = 14006;
/// Where the kernel leads the DNS queries of a captured application.
const DNS_PORT: u16 = 14053;
/// What the HTTP inspector finds in plaintext.
const PLAIN_HTTP: &[&str] = &["http/1.1", "h2c"];

/// The listeners of a node; none until its document exists.
pub(super) fn names(cx: &Context<'_>, node: &Node<'_>) -> Vec<String> {
    let Some(workload) = workload(cx, node) else {
        return Vec::new();
    };
    let captured = [names::DNS, names::INBOUND_ANY].map(str::to_owned);
    let captured = captured.into_iter().filter(|_| workload.capture.is_some());
    let inbound = workload.ports.iter().map(|port| inbound_name(port.port));
    let outbound = workload
        .upstreams
        .iter()
        .filter(|upstream| destination(cx.mesh, upstream).is_some())
        .map(|upstream| format!("{}{}", names::OUTBOUND_PORT, upstream.local_port));
    captured
        .chain(inbound)
        .chain([names::OUTBOUND.to_owned()])
        .chain(outbound)
        .collect()
}

pub(super) fn listener(cx: &Context<'_>, node: &Node<'_>, name: &str) -> Option<api::Listener> {
    let workload = workload(cx, node)?;
    match (name, &workload.capture) {
        (names::OUTBOUND, None) => return Some(proxy(workload)),
        (names::OUTBOUND, Some(_)) => return Some(captured_outbound(cx, workload)),
        (names::INBOUND_ANY, Some(capture)) => return Some(captured_inbound(cx, capture)),
        (names::DNS, Some(_)) => return Some(captured_dns(cx, workload)),
        _ => {}
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

/// Where the kernel leads the connections of the application: the same proxy, and a way out
/// for those that are not for the mesh.
fn captured_outbound(cx: &Context<'_>, workload: &Workload) -> api::Listener {
    let leave = || {
        let filter = tcp_filter(names::PASSTHROUGH, vec![(names::PASSTHROUGH.to_owned(), 1)]);
        chain(names::PASSTHROUGH, filter)
    };
    let mut listener = api::Listener {
        additional_addresses: also_at(proto::address(LOCALHOST_V6, workload.outbound_port)),
        use_original_dst: yes(),
        default_filter_chain: match cx.mesh.config.unknown {
            UnknownDestinations::Allow => Some(leave()),
            UnknownDestinations::Deny => None,
        },
        ..proxy(workload)
    };
    // Or the default chain would never apply.
    for http in &mut listener.filter_chains {
        http.filter_chain_match = Some(api::FilterChainMatch {
            application_protocols: strings(PLAIN_HTTP),
            ..Default::default()
        });
    }
    listener.listener_filters.push(http_inspector());
    listener
}

/// Where the kernel leads connections to the application: those to declared ports are handed
/// over to the listeners of these, the others are served here.
fn captured_inbound(cx: &Context<'_>, capture: &Capture) -> api::Listener {
    let cluster = format!("{}{}", names::INBOUND, names::ANY_PORT);
    api::Listener {
        name: names::INBOUND_ANY.to_owned(),
        address: Some(proto::address(EVERYWHERE, INBOUND_PORT)),
        additional_addresses: also_at(proto::address(EVERYWHERE_V6, INBOUND_PORT)),
        use_original_dst: yes(),
        transparent: match capture.mode {
            CaptureMode::Redirect => None,
            CaptureMode::Tproxy => yes(),
        },
        traffic_direction: core::TrafficDirection::Inbound as i32,
        filter_chains: inbound_chains(cx, &cluster, Protocol::Undeclared),
        listener_filters: inspectors(),
        metadata: Some(proto::metadata(&[])),
        ..Default::default()
    }
}

/// Where the kernel leads the application's DNS queries. The addresses of the mesh's names
/// are asked for one by one, as virtual hosts; what is listed are names that look like others'.
fn captured_dns(cx: &Context<'_>, workload: &Workload) -> api::Listener {
    let config = dns::DnsFilterConfig {
        stat_prefix: names::DNS.to_owned(),
        server_config: Some(ServerContextConfig {
            config_source: Some(server_context_config::ConfigSource::InlineDnsTable(
                DnsTable::default(),
            )),
        }),
        ..Default::default()
    };
    let external = cx.mesh.external_names(&workload.namespace);
    api::Listener {
        name: names::DNS.to_owned(),
        address: Some(proto::udp_address(LOCALHOST, DNS_PORT)),
        additional_addresses: also_at(proto::udp_address(LOCALHOST_V6, DNS_PORT)),
        udp_listener_config: Some(api::UdpListenerConfig::default()),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        listener_filters: vec![listener_filter("envoy.filters.udp.dns_filter", &config)],
        metadata: Some(proto::metadata(&[
            (
                "cluster_domain",
                proto::string_value(&cx.mesh.config.cluster_domain),
            ),
            ("external", proto::list_value(external)),
        ])),
        ..Default::default()
    }
}

fn also_at(address: core::Address) -> Vec<api::AdditionalAddress> {
    vec![api::AdditionalAddress {
        address: Some(address),
        ..Default::default()
    }]
}

fn yes() -> Option<pb::BoolValue> {
    Some(pb::BoolValue { value: true })
}

/// Where peers reach a port of the application. A captured one has no socket of its own.
fn inbound(cx: &Context<'_>, workload: &Workload, port: &WorkloadPort) -> api::Listener {
    let name = inbound_name(port.port);
    let (ip, bind_to_port) = match workload.capture {
        None => (workload.address, None),
        Some(_) => (EVERYWHERE, Some(pb::BoolValue { value: false })),
    };
    api::Listener {
        name: name.clone(),
        address: Some(proto::address(ip, port.listen)),
        bind_to_port,
        traffic_direction: core::TrafficDirection::Inbound as i32,
        filter_chains: inbound_chains(cx, &name, port.protocol),
        listener_filters: inspectors(),
        metadata: Some(proto::metadata(&[("port", proto::number_value(port.port))])),
        ..Default::default()
    }
}

/// What peers may speak on the way to a cluster of the application.
fn inbound_chains(cx: &Context<'_>, cluster: &str, protocol: Protocol) -> Vec<api::FilterChain> {
    let has_http = protocol != Protocol::Tcp;
    let has_tcp = matches!(protocol, Protocol::Tcp | Protocol::Undeclared);
    let http = || {
        let table: RouteConfiguration = route::forward_table(cluster, cluster.to_owned());
        http_filter(cluster, RouteSpecifier::RouteConfig(table))
    };
    let bytes = || tcp_filter(cluster, vec![(cluster.to_owned(), 1)]);
    let mut chains = Vec::new();
    if has_http {
        chains.push(mtls_chain("mtls-http", ALPN_HTTP, http()));
    }
    if has_tcp {
        chains.push(mtls_chain("mtls-tcp", ALPN_TCP, bytes()));
    }
    if cx.mesh.config.mtls == MtlsMode::Permissive {
        if has_http {
            chains.push(plain_chain("plain-http", PLAIN_HTTP, http()));
        }
        if has_tcp {
            chains.push(plain_chain("plain-tcp", &[], bytes()));
        }
    }
    chains
}

fn inspectors() -> Vec<api::ListenerFilter> {
    vec![
        listener_filter(
            "envoy.filters.listener.tls_inspector",
            &TlsInspector::default(),
        ),
        http_inspector(),
    ]
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
