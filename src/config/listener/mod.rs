//! `envoy.config.listener.v3.Listener`.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use weft_api::{
    any,
    envoy::{
        config::{
            core::v3::{Address, TrafficDirection},
            listener::v3::{self as pb, filter, listener_filter},
        },
        extensions::filters::{
            http::router::v3::Router,
            listener::{http_inspector::v3::HttpInspector, tls_inspector::v3::TlsInspector},
            network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, http_connection_manager as hcm, http_filter,
                },
                tcp_proxy::v3::{TcpProxy, tcp_proxy},
            },
            udp::dns_filter::v3::DnsFilterConfig,
        },
    },
    google::protobuf::BoolValue,
};

use super::{
    problems::{Problems, each, parts},
    route::{self, HeaderMutations, RouteTable, WeightedCluster, WeightedClusters},
    tls,
};

/// Which side of the workload a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Calls that other workloads make to ours.
    Inbound,
    /// Calls that our workload makes.
    Outbound,
}

/// One listening socket and what happens to its connections.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// The resource name, as in `inbound|8080`.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// `additional_addresses`: it listens there too, if the machine has that address family.
    pub additional: Vec<SocketAddr>,
    /// How connections get here.
    pub arrival: Arrival,
    /// `traffic_direction`.
    pub direction: Direction,
    /// Metadata `port`: the application's port (inbound) or the service port (outbound).
    pub port: Option<u16>,
    /// Metadata `service` and `namespace`, of a listener for one destination.
    pub service: Option<(Arc<str>, Arc<str>)>,
    /// The chains, most specific match wins as in Envoy.
    pub chains: Vec<FilterChain>,
    /// It serves DNS and has no chains.
    pub dns: Option<DnsConfig>,
    /// Fields that were set and have no effect.
    pub warnings: Vec<String>,
}

/// How connections reach a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Clients connect to its address.
    Direct,
    /// `use_original_dst`: clients connected to other addresses and the kernel led them here;
    /// those for the port of a [`Self::HandedOver`] listener are handed over to it.
    Redirected,
    /// The same with `transparent`: the socket has the original destination as its own
    /// address, and the application shall see the client's address.
    Transparent,
    /// `bind_to_port: false`: it has no socket and gets its port's connections from a
    /// redirected one.
    HandedOver,
}

impl Arrival {
    /// Whether the kernel leads connections here that were meant for other addresses.
    #[must_use]
    pub const fn is_captured(self) -> bool {
        matches!(self, Self::Redirected | Self::Transparent)
    }
}

/// A UDP listener with `envoy.filters.udp.dns_filter`: names of the mesh, and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Metadata `cluster_domain`, as in `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Metadata `external`: names outside of the mesh that it has an address for.
    pub external: Vec<Arc<str>>,
}

/// One way to treat a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterChain {
    /// When the chain applies.
    pub matches: ChainMatch,
    /// Terminate TLS so; `None` is plaintext.
    pub tls: Option<DownstreamTls>,
    /// What serves the bytes.
    pub filter: Filter,
}

/// `FilterChainMatch`, the parts that Weft supports. Empty means any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// `transport_protocol`.
    pub transport: Option<TransportProtocol>,
    /// `application_protocols`: ALPN in TLS, detected in plaintext.
    pub applications: Vec<AppProtocol>,
}

/// `transport_protocol` of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportProtocol {
    /// The client started with a TLS ClientHello.
    Tls,
    /// Anything else.
    RawBuffer,
}

/// An application protocol, by its ALPN name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// `http/1.1` (and `http/1.0`).
    Http1,
    /// `h2` in TLS, `h2c` in plaintext.
    Http2,
    /// `weft-tcp`: bytes that the mesh does not look into.
    Tcp,
}

impl AppProtocol {
    /// The ALPN identifier.
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
            Self::Tcp => b"weft-tcp",
        }
    }

    /// The protocol of an ALPN identifier or of Envoy's name for what was detected.
    #[must_use]
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        match name {
            b"http/1.1" | b"http/1.0" => Some(Self::Http1),
            b"h2" | b"h2c" => Some(Self::Http2),
            b"weft-tcp" => Some(Self::Tcp),
            _ => None,
        }
    }
}

/// `DownstreamTlsContext`: mutual TLS 1.3 with the sidecar's own identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownstreamTls {
    /// Whether a client without a certificate is refused.
    pub require_client_certificate: bool,
    /// `alpn_protocols`, in order of preference.
    pub alpn: Vec<AppProtocol>,
    /// The name of the secret with the trust bundle.
    pub bundle: Arc<str>,
}

/// The network filter that ends a chain.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// `HttpConnectionManager`.
    Http(HttpConfig),
    /// `TcpProxy`.
    Tcp(TcpConfig),
}

/// `HttpConnectionManager`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConfig {
    /// Where routes come from.
    pub routes: RouteSource,
    /// `upgrade_configs` has `websocket`.
    pub websocket: bool,
    /// `upgrade_configs` has `CONNECT`.
    pub connect: bool,
    /// `common_http_protocol_options.idle_timeout` of a connection; default 1 h, `None` is off.
    pub idle_timeout: Option<Duration>,
}

/// `route_specifier`.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteSource {
    /// `rds`: the name of a RouteConfiguration.
    Rds(Arc<str>),
    /// `route_config`.
    Inline(Arc<RouteTable>),
}

/// `TcpProxy`.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpConfig {
    /// `cluster` or `weighted_clusters`.
    pub clusters: WeightedClusters,
    /// `idle_timeout`; default 1 h, `None` (0 s) is off.
    pub idle_timeout: Option<Duration>,
}

pub(super) fn read(p: &mut Problems, name: &str, from: &pb::Listener) -> Option<Listener> {
    let name = p.name("name", &from.name, name);
    extras(p, from);
    let udp = from.udp_listener_config.is_some();
    let address_of = |p: &mut Problems, from: &Option<Address>| match udp {
        true => p.udp_address("address", from.as_ref()),
        false => p.address("address", from.as_ref()),
    };
    let address = address_of(p, &from.address);
    let direction = match TrafficDirection::try_from(from.traffic_direction) {
        Ok(TrafficDirection::Inbound) => Some(Direction::Inbound),
        Ok(TrafficDirection::Outbound) => Some(Direction::Outbound),
        _ => {
            p.reject("traffic_direction", "must be INBOUND or OUTBOUND");
            None
        }
    };
    let metadata = from.metadata.as_ref();
    let port = p.metadata_port(metadata, "port");
    let service = match (
        p.metadata_string(metadata, "service"),
        p.metadata_string(metadata, "namespace"),
    ) {
        (Some(service), Some(namespace)) => Some((service.into(), namespace.into())),
        (None, None) => None,
        _ => {
            p.reject(
                "metadata[weft.dev]",
                "must have both service and namespace, or none",
            );
            None
        }
    };
    let additional = each(
        p,
        "additional_addresses",
        &from.additional_addresses,
        |p, a| {
            p.unsupported(a.socket_options.is_some(), "socket_options");
            address_of(p, &a.address)
        },
    );
    let dns = DnsConfig::read(p, from);
    if dns.is_none() {
        for (index, filter) in from.listener_filters.iter().enumerate() {
            p.at(format_args!("listener_filters[{index}]"), |p| {
                listener_filter(p, filter)
            });
        }
    }
    let mut chains = each(p, "filter_chains", &from.filter_chains, read_chain);
    if let Some(chain) = &from.default_filter_chain {
        p.at("default_filter_chain", |p| {
            p.unsupported(
                chain
                    .filter_chain_match
                    .as_ref()
                    .is_some_and(|m| *m != Default::default()),
                "filter_chain_match",
            );
            chains.extend(read_chain(p, chain));
        });
    }
    match (&dns, chains.is_empty()) {
        (Some(_), false) => p.reject("filter_chains", "must be empty where DNS is served"),
        (None, true) if from.filter_chains.is_empty() && from.default_filter_chain.is_none() => {
            p.reject("filter_chains", "must have at least one");
        }
        _ => {}
    }
    distinct(p, &chains);
    Some(Listener {
        name,
        address: address?,
        additional,
        arrival: Arrival::read(p, from),
        direction: direction?,
        port,
        service,
        chains,
        dns,
        warnings: Vec::new(),
    })
}

#[allow(deprecated)] // Deprecated fields that a sender may still set.
fn extras(p: &mut Problems, from: &pb::Listener) {
    p.unsupported(from.fcds_config.is_some(), "fcds_config");
    p.unsupported(from.filter_chain_matcher.is_some(), "filter_chain_matcher");
    p.unsupported(from.deprecated_v1.is_some(), "deprecated_v1");
    p.unsupported(from.api_listener.is_some(), "api_listener");
    p.unsupported(from.listener_specifier.is_some(), "internal_listener");
    p.ignored(from.freebind.is_some_and(|b| b.value), "freebind");
    p.ignored(!from.socket_options.is_empty(), "socket_options");
    p.ignored(!from.access_log.is_empty(), "access_log");
    p.ignored(from.enable_mptcp, "enable_mptcp");
    p.ignored(from.tcp_keepalive.is_some(), "tcp_keepalive");
}

impl Arrival {
    fn read(p: &mut Problems, from: &pb::Listener) -> Self {
        let set = |value: &Option<BoolValue>| value.as_ref().is_some_and(|b| b.value);
        let bound = from.bind_to_port.as_ref().is_none_or(|b| b.value);
        match (bound, set(&from.use_original_dst), set(&from.transparent)) {
            (true, false, false) => Self::Direct,
            (true, true, false) => Self::Redirected,
            (true, true, true) => Self::Transparent,
            (false, false, false) => Self::HandedOver,
            (true, false, true) => {
                p.reject("transparent", "needs use_original_dst");
                Self::Direct
            }
            (false, ..) => {
                p.reject(
                    "bind_to_port",
                    "must not be false with use_original_dst or transparent",
                );
                Self::HandedOver
            }
        }
    }
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".into(),
            external: Vec::new(),
        }
    }
}

impl DnsConfig {
    fn read(p: &mut Problems, from: &pb::Listener) -> Option<Self> {
        let metadata = from.metadata.as_ref();
        let is_dns = |filter: &pb::ListenerFilter| {
            matches!(&filter.config_type, Some(listener_filter::ConfigType::TypedConfig(config))
                if any::holds::<DnsFilterConfig>(config))
        };
        match (
            from.udp_listener_config.is_some(),
            from.listener_filters.as_slice(),
        ) {
            (false, _) => None,
            (true, [filter]) if is_dns(filter) => Some(Self {
                cluster_domain: p
                    .metadata_string(metadata, "cluster_domain")
                    .map_or_else(|| Self::default().cluster_domain, Into::into),
                external: p.metadata_strings(metadata, "external"),
            }),
            (true, _) => {
                p.reject(
                    "udp_listener_config",
                    "is for DNS only: the one listener filter must be DnsFilterConfig",
                );
                None
            }
        }
    }
}

fn listener_filter(p: &mut Problems, from: &pb::ListenerFilter) {
    p.unsupported(from.filter_disabled.is_some(), "filter_disabled");
    match &from.config_type {
        Some(listener_filter::ConfigType::TypedConfig(config))
            if any::holds::<TlsInspector>(config) || any::holds::<HttpInspector>(config) => {}
        Some(listener_filter::ConfigType::TypedConfig(config)) => p.reject(
            "typed_config",
            format_args!(
                "{} is not supported; use tls_inspector or http_inspector",
                config.type_url
            ),
        ),
        _ => p.reject("typed_config", "is missing"),
    }
}

/// Two chains for the same connections would leave one without use.
fn distinct(p: &mut Problems, chains: &[FilterChain]) {
    let mut seen = HashSet::new();
    for chain in chains {
        let ChainMatch {
            transport,
            applications,
        } = &chain.matches;
        let any = applications.is_empty().then_some(None);
        let keys = any.into_iter().chain(applications.iter().map(|a| Some(*a)));
        for key in keys {
            if !seen.insert((*transport, key)) {
                let what = key.map_or("any protocol".to_owned(), |a| {
                    String::from_utf8_lossy(a.alpn()).into_owned()
                });
                p.reject(
                    "filter_chains",
                    format_args!("two chains match the same connections ({what})"),
                );
            }
        }
    }
}

#[allow(deprecated)] // use_proxy_proto would change whom a connection comes from.
fn read_chain(p: &mut Problems, from: &pb::FilterChain) -> Option<FilterChain> {
    p.unsupported(
        from.use_proxy_proto.is_some_and(|b| b.value),
        "use_proxy_proto",
    );
    let matches = match &from.filter_chain_match {
        Some(matches) => p.at("filter_chain_match", |p| ChainMatch::read(p, matches)),
        None => Some(ChainMatch::default()),
    };
    let tls = tls::read_downstream(p, from.transport_socket.as_ref());
    let filter = match from.filters.as_slice() {
        [filter] => p.at("filters[0]", |p| Filter::read(p, filter)),
        filters => {
            p.reject(
                "filters",
                format_args!(
                    "must be one HttpConnectionManager or TcpProxy and nothing else, not {}",
                    filters.len()
                ),
            );
            None
        }
    };
    let (matches, tls, filter) = (matches?, tls?, filter?);
    match (matches.transport, &tls, &filter) {
        (Some(TransportProtocol::RawBuffer), Some(_), _) => p.reject(
            "transport_socket",
            "terminates TLS in a chain for plaintext (raw_buffer)",
        ),
        (Some(TransportProtocol::Tls), None, Filter::Http(_)) => p.reject(
            "transport_socket",
            "is missing: HTTP inside TLS cannot be read without it",
        ),
        _ => {}
    }
    Some(FilterChain {
        matches,
        tls,
        filter,
    })
}

impl ChainMatch {
    fn read(p: &mut Problems, from: &pb::FilterChainMatch) -> Option<Self> {
        p.unsupported(from.destination_port.is_some(), "destination_port");
        p.unsupported(!from.prefix_ranges.is_empty(), "prefix_ranges");
        p.unsupported(!from.address_suffix.is_empty(), "address_suffix");
        p.unsupported(from.suffix_len.is_some(), "suffix_len");
        p.unsupported(
            !from.direct_source_prefix_ranges.is_empty(),
            "direct_source_prefix_ranges",
        );
        p.unsupported(from.source_type != 0, "source_type");
        p.unsupported(
            !from.source_prefix_ranges.is_empty(),
            "source_prefix_ranges",
        );
        p.unsupported(!from.source_ports.is_empty(), "source_ports");
        p.unsupported(!from.server_names.is_empty(), "server_names");
        let transport = match from.transport_protocol.as_str() {
            "" => None,
            "tls" => Some(TransportProtocol::Tls),
            "raw_buffer" => Some(TransportProtocol::RawBuffer),
            other => {
                p.reject(
                    "transport_protocol",
                    format_args!("{other:?} must be tls or raw_buffer"),
                );
                return None;
            }
        };
        let read = each(
            p,
            "application_protocols",
            &from.application_protocols,
            |p, name| tls::read_protocol(p, name),
        );
        // Several names stand for one protocol: http/1.0 and http/1.1, h2 and h2c.
        let mut applications = Vec::with_capacity(read.len());
        for protocol in read {
            if !applications.contains(&protocol) {
                applications.push(protocol);
            }
        }
        Some(Self {
            transport,
            applications,
        })
    }
}

impl Filter {
    fn read(p: &mut Problems, from: &pb::Filter) -> Option<Self> {
        let Some(filter::ConfigType::TypedConfig(config)) = &from.config_type else {
            p.reject("typed_config", "is missing");
            return None;
        };
        p.at("typed_config", |p| {
            if any::holds::<HttpConnectionManager>(config) {
                let manager: HttpConnectionManager = p.unpack("", config)?;
                HttpConfig::read(p, &manager).map(Self::Http)
            } else if any::holds::<TcpProxy>(config) {
                let proxy: TcpProxy = p.unpack("", config)?;
                TcpConfig::read(p, &proxy).map(Self::Tcp)
            } else {
                p.reject(
                    "",
                    format_args!(
                        "{} is not supported; use HttpConnectionManager or TcpProxy",
                        config.type_url
                    ),
                );
                None
            }
        })
    }
}

impl HttpConfig {
    fn read(p: &mut Problems, from: &HttpConnectionManager) -> Option<Self> {
        manager_extras(p, from);
        p.ignored(from.stream_idle_timeout.is_some(), "stream_idle_timeout");
        http_filters(p, &from.http_filters);
        let mut config = Self {
            routes: RouteSource::Rds("".into()),
            websocket: false,
            connect: false,
            idle_timeout: p.at("common_http_protocol_options", |p| {
                let options = from.common_http_protocol_options.as_ref();
                p.timeout(
                    "idle_timeout",
                    parts!(options.and_then(|o| o.idle_timeout)),
                    Some(IDLE_TIMEOUT),
                )
            }),
        };
        for (index, upgrade) in from.upgrade_configs.iter().enumerate() {
            p.at(format_args!("upgrade_configs[{index}]"), |p| {
                p.unsupported(!upgrade.filters.is_empty(), "filters");
                let enabled = upgrade.enabled.is_none_or(|b| b.value);
                if upgrade.upgrade_type.eq_ignore_ascii_case("websocket") {
                    config.websocket = enabled;
                } else if upgrade.upgrade_type.eq_ignore_ascii_case("CONNECT") {
                    config.connect = enabled;
                } else {
                    p.ignored(enabled, "upgrade_type");
                }
            });
        }
        config.routes = RouteSource::read(p, from.route_specifier.as_ref())?;
        Some(config)
    }
}

fn manager_extras(p: &mut Problems, from: &HttpConnectionManager) {
    p.unsupported(
        from.codec_type == hcm::CodecType::Http3 as i32,
        "codec_type",
    );
    p.unsupported(from.xff_num_trusted_hops > 0, "xff_num_trusted_hops");
    p.unsupported(
        !from.original_ip_detection_extensions.is_empty(),
        "original_ip_detection_extensions",
    );
    p.unsupported(
        !from.early_header_mutation_extensions.is_empty(),
        "early_header_mutation_extensions",
    );
    p.unsupported(
        from.typed_header_validation_config.is_some(),
        "typed_header_validation_config",
    );
    p.ignored(from.codec_type != hcm::CodecType::Auto as i32, "codec_type");
    p.ignored(from.tracing.is_some(), "tracing");
    p.ignored(!from.access_log.is_empty(), "access_log");
    p.ignored(
        from.max_request_headers_kb.is_some(),
        "max_request_headers_kb",
    );
    p.ignored(from.request_timeout.is_some(), "request_timeout");
    p.ignored(
        from.request_headers_timeout.is_some(),
        "request_headers_timeout",
    );
    p.ignored(
        from.forward_client_cert_details != hcm::ForwardClientCertDetails::Sanitize as i32,
        "forward_client_cert_details",
    );
    p.ignored(
        from.normalize_path.is_some_and(|b| b.value),
        "normalize_path",
    );
    p.ignored(from.merge_slashes, "merge_slashes");
    p.ignored(
        from.path_with_escaped_slashes_action != 0,
        "path_with_escaped_slashes_action",
    );
    p.ignored(
        from.path_normalization_options.is_some(),
        "path_normalization_options",
    );
    p.ignored(from.local_reply_config.is_some(), "local_reply_config");
    p.ignored(from.strip_matching_host_port, "strip_matching_host_port");
    p.ignored(from.strip_port_mode.is_some(), "strip_any_host_port");
    p.ignored(from.strip_trailing_host_dot, "strip_trailing_host_dot");
    if let Some(options) = &from.common_http_protocol_options {
        p.at("common_http_protocol_options", |p| {
            p.ignored(
                options.max_connection_duration.is_some(),
                "max_connection_duration",
            );
            p.ignored(options.max_stream_duration.is_some(), "max_stream_duration");
            p.ignored(options.max_headers_count.is_some(), "max_headers_count");
            p.ignored(
                options.headers_with_underscores_action != 0,
                "headers_with_underscores_action",
            );
            p.ignored(
                options.max_requests_per_connection.is_some(),
                "max_requests_per_connection",
            );
        });
    }
}

/// Only the router, which ends the chain. Another filter may be there if it says that it may
/// be left out.
fn http_filters(p: &mut Problems, from: &[HttpFilter]) {
    for (index, filter) in from.iter().enumerate() {
        p.at(format_args!("http_filters[{index}]"), |p| {
            http_filter(p, filter)
        });
    }
    if !from
        .last()
        .is_some_and(|last| !last.disabled && is_router(last))
    {
        p.reject("http_filters", "must end with the router");
    }
}

fn http_filter(p: &mut Problems, from: &HttpFilter) {
    let config = match &from.config_type {
        Some(http_filter::ConfigType::TypedConfig(config)) => Some(config),
        _ => None,
    };
    if let Some(config) = config
        && is_router(from)
    {
        let router: Option<Router> = p.unpack("typed_config", config);
        let upstream = router.is_some_and(|r| !r.upstream_http_filters.is_empty());
        p.unsupported(upstream, "typed_config.upstream_http_filters");
        return;
    }
    let name = config.map_or("a filter without typed_config", |config| &config.type_url);
    if from.is_optional || from.disabled {
        p.warn("", format_args!("{name} is not supported and left out"));
    } else {
        p.reject(
            "",
            format_args!("{name} is not supported; only the router is"),
        );
    }
}

fn is_router(from: &HttpFilter) -> bool {
    matches!(&from.config_type, Some(http_filter::ConfigType::TypedConfig(config))
        if any::holds::<Router>(config))
}

impl RouteSource {
    fn read(p: &mut Problems, from: Option<&hcm::RouteSpecifier>) -> Option<Self> {
        match from {
            Some(hcm::RouteSpecifier::Rds(rds)) => p.at("rds", |p| {
                p.ads("config_source", rds.config_source.as_ref());
                p.not_empty("route_config_name", &rds.route_config_name)
                    .map(Self::Rds)
            }),
            Some(hcm::RouteSpecifier::RouteConfig(table)) => p
                .at("route_config", |p| route::read_table(p, table))
                .map(|table| Self::Inline(Arc::new(table))),
            Some(hcm::RouteSpecifier::ScopedRoutes(_)) => {
                p.reject("scoped_routes", "is not supported; use rds or route_config");
                None
            }
            None => {
                p.reject("", "has no routes; set rds or route_config");
                None
            }
        }
    }
}

impl TcpConfig {
    fn read(p: &mut Problems, from: &TcpProxy) -> Option<Self> {
        p.unsupported(from.metadata_match.is_some(), "metadata_match");
        p.unsupported(from.tunneling_config.is_some(), "tunneling_config");
        p.unsupported(from.on_demand.is_some(), "on_demand");
        p.ignored(!from.access_log.is_empty(), "access_log");
        p.ignored(!from.hash_policy.is_empty(), "hash_policy");
        p.ignored(from.max_connect_attempts.is_some(), "max_connect_attempts");
        p.ignored(
            from.downstream_idle_timeout.is_some(),
            "downstream_idle_timeout",
        );
        p.ignored(
            from.upstream_idle_timeout.is_some(),
            "upstream_idle_timeout",
        );
        p.ignored(
            from.max_downstream_connection_duration.is_some(),
            "max_downstream_connection_duration",
        );
        let idle_timeout = p.timeout(
            "idle_timeout",
            parts!(from.idle_timeout),
            Some(IDLE_TIMEOUT),
        );
        let clusters = match &from.cluster_specifier {
            Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => {
                p.not_empty("cluster", name).map(WeightedClusters::one)
            }
            Some(tcp_proxy::ClusterSpecifier::WeightedClusters(from)) => {
                p.at("weighted_clusters", |p| {
                    let clusters = each(p, "clusters", &from.clusters, |p, share| {
                        p.unsupported(share.metadata_match.is_some(), "metadata_match");
                        Some(WeightedCluster {
                            name: p.not_empty("name", &share.name)?,
                            weight: share.weight,
                            request_headers: HeaderMutations::default(),
                            response_headers: HeaderMutations::default(),
                        })
                    });
                    WeightedClusters::sum(p, clusters)
                })
            }
            None => {
                p.reject("", "has no cluster; set cluster or weighted_clusters");
                None
            }
        };
        Some(Self {
            clusters: clusters?,
            idle_timeout,
        })
    }
}

/// Envoy's default idle time of a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
