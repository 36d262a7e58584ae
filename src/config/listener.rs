//! `envoy.config.listener.v3.Listener`.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use weft_api::{
    any,
    envoy::{
        config::{
            core::v3::TrafficDirection,
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
        },
    },
};

use super::{
    problems::{Problems, parts},
    route::{self, HeaderMutations, RouteTable, WeightedCluster, WeightedClusters, each},
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
    /// `traffic_direction`.
    pub direction: Direction,
    /// Metadata `port`: the application's port (inbound) or the service port (outbound).
    pub port: Option<u16>,
    /// Metadata `service` and `namespace`, of a listener for one destination.
    pub service: Option<(Arc<str>, Arc<str>)>,
    /// The chains, most specific match wins as in Envoy.
    pub chains: Vec<FilterChain>,
    /// Fields that were set and have no effect.
    pub warnings: Vec<String>,
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
    /// `stream_idle_timeout`; default 5 min, `None` (0 s) is off.
    pub stream_idle_timeout: Option<Duration>,
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
    let address = p.address("address", from.address.as_ref());
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
    for (index, filter) in from.listener_filters.iter().enumerate() {
        p.at(format_args!("listener_filters[{index}]"), |p| {
            listener_filter(p, filter)
        });
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
    if from.filter_chains.is_empty() && from.default_filter_chain.is_none() {
        p.reject("filter_chains", "must have at least one");
    }
    distinct(p, &chains);
    Some(Listener {
        name,
        address: address?,
        direction: direction?,
        port,
        service,
        chains,
        warnings: Vec::new(),
    })
}

#[allow(deprecated)] // Deprecated fields that a sender may still set.
fn extras(p: &mut Problems, from: &pb::Listener) {
    p.unsupported(
        !from.additional_addresses.is_empty(),
        "additional_addresses",
    );
    p.unsupported(from.fcds_config.is_some(), "fcds_config");
    p.unsupported(from.filter_chain_matcher.is_some(), "filter_chain_matcher");
    p.unsupported(
        from.use_original_dst.is_some_and(|b| b.value),
        "use_original_dst",
    );
    p.unsupported(from.transparent.is_some_and(|b| b.value), "transparent");
    p.unsupported(from.bind_to_port.is_some_and(|b| !b.value), "bind_to_port");
    p.unsupported(from.deprecated_v1.is_some(), "deprecated_v1");
    p.unsupported(from.udp_listener_config.is_some(), "udp_listener_config");
    p.unsupported(from.api_listener.is_some(), "api_listener");
    p.unsupported(from.listener_specifier.is_some(), "internal_listener");
    p.ignored(from.freebind.is_some_and(|b| b.value), "freebind");
    p.ignored(!from.socket_options.is_empty(), "socket_options");
    p.ignored(!from.access_log.is_empty(), "access_log");
    p.ignored(from.enable_mptcp, "enable_mptcp");
    p.ignored(from.tcp_keepalive.is_some(), "tcp_keepalive");
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
            stream_idle_timeout: p.timeout(
                "stream_idle_timeout",
                parts!(from.stream_idle_timeout),
                Some(STREAM_IDLE_TIMEOUT),
            ),
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
/// Envoy's default idle time of a stream.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use weft_api::{
        Kind,
        any::pack,
        envoy::{
            config::{
                core::v3::{
                    Address, ConfigSource, Metadata, SocketAddress, TransportSocket, address,
                    config_source, socket_address, transport_socket,
                },
                route::v3::{RouteConfiguration, VirtualHost},
            },
            extensions::{
                filters::{
                    http::cors::v3::Cors,
                    listener::original_dst::v3::OriginalDst,
                    network::{
                        http_connection_manager::v3::{Rds, ScopedRoutes},
                        rbac::v3::Rbac,
                    },
                },
                transport_sockets::{
                    raw_buffer::v3::RawBuffer,
                    tls::v3::{
                        CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
                        SdsSecretConfig, SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
                        common_tls_context, common_tls_context::ValidationContextType,
                    },
                },
            },
        },
        google::protobuf::{
            Any, BoolValue, Duration as DurationPb, Struct, UInt32Value, Value as Json,
            value::Kind as JsonKind,
        },
    };

    use super::*;
    use crate::config::{
        Value,
        testing::{check, good},
    };

    fn yes() -> Option<BoolValue> {
        Some(BoolValue { value: true })
    }

    fn seconds(seconds: i64) -> Option<DurationPb> {
        Some(DurationPb { seconds, nanos: 0 })
    }

    fn ads() -> Option<ConfigSource> {
        Some(ConfigSource {
            config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(
                Default::default(),
            )),
            ..Default::default()
        })
    }

    fn network(config: Any) -> pb::Filter {
        pb::Filter {
            config_type: Some(filter::ConfigType::TypedConfig(config)),
            ..Default::default()
        }
    }

    fn http(config: &Any) -> HttpFilter {
        HttpFilter {
            config_type: Some(http_filter::ConfigType::TypedConfig(config.clone())),
            ..Default::default()
        }
    }

    fn router() -> HttpFilter {
        http(&pack(&Router::default()))
    }

    fn manager(change: impl FnOnce(&mut HttpConnectionManager)) -> pb::FilterChain {
        let mut manager = HttpConnectionManager {
            http_filters: vec![router()],
            route_specifier: Some(hcm::RouteSpecifier::Rds(Rds {
                config_source: ads(),
                route_config_name: "outbound".into(),
            })),
            ..Default::default()
        };
        change(&mut manager);
        chain(pack(&manager))
    }

    fn tcp(change: impl FnOnce(&mut TcpProxy)) -> pb::FilterChain {
        let mut proxy = TcpProxy {
            cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster("db.blog:5432".into())),
            ..Default::default()
        };
        change(&mut proxy);
        chain(pack(&proxy))
    }

    fn chain(config: Any) -> pb::FilterChain {
        pb::FilterChain {
            filters: vec![network(config)],
            ..Default::default()
        }
    }

    fn matching(mut chain: pb::FilterChain, transport: &str, apps: &[&str]) -> pb::FilterChain {
        chain.filter_chain_match = Some(pb::FilterChainMatch {
            transport_protocol: transport.into(),
            application_protocols: apps.iter().map(ToString::to_string).collect(),
            ..Default::default()
        });
        chain
    }

    fn socket(config: Any) -> Option<TransportSocket> {
        Some(TransportSocket {
            config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
            ..Default::default()
        })
    }

    fn sds(name: &str) -> SdsSecretConfig {
        SdsSecretConfig {
            name: name.into(),
            sds_config: ads(),
        }
    }

    fn context() -> DownstreamTlsContext {
        let common = CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: 4,
                tls_maximum_protocol_version: 4,
                ..Default::default()
            }),
            tls_certificate_sds_secret_configs: vec![sds("default")],
            alpn_protocols: vec!["h2".into(), "http/1.1".into()],
            validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(
                sds("ROOTCA"),
            )),
            ..Default::default()
        };
        DownstreamTlsContext {
            common_tls_context: Some(common),
            require_client_certificate: yes(),
            ..Default::default()
        }
    }

    fn with_tls(mut chain: pb::FilterChain, context: &DownstreamTlsContext) -> pb::FilterChain {
        chain.transport_socket = socket(pack(context));
        chain
    }

    fn metadata(fields: &[(&str, JsonKind)]) -> Option<Metadata> {
        let fields = fields.iter().map(|(key, kind)| {
            let value = Json {
                kind: Some(kind.clone()),
            };
            ((*key).to_owned(), value)
        });
        let weft = Struct {
            fields: fields.collect(),
        };
        Some(Metadata {
            filter_metadata: [("weft.dev".to_owned(), weft)].into(),
            ..Default::default()
        })
    }

    fn listener(chains: Vec<pb::FilterChain>) -> pb::Listener {
        let address = SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(15001)),
            ..Default::default()
        };
        pb::Listener {
            name: "outbound".into(),
            address: Some(Address {
                address: Some(address::Address::SocketAddress(address)),
            }),
            traffic_direction: 2,
            filter_chains: chains,
            ..Default::default()
        }
    }

    fn parsed(message: &pb::Listener) -> Arc<Listener> {
        match good(Kind::Listener, &message.name, message) {
            Value::Listener(listener) => listener,
            other => panic!("{other:?}"),
        }
    }

    fn bad(message: &pb::Listener, expect: &[&str]) {
        check(Kind::Listener, "outbound", message, expect);
    }

    /// The problems of one filter chain, without the path that leads to it.
    fn bad_chain(chain: pb::FilterChain, expect: &[&str]) {
        let expect: Vec<String> = expect
            .iter()
            .map(|line| format!("filter_chains[0].{line}"))
            .collect();
        let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
        bad(&listener(vec![chain]), &expect);
    }

    #[test]
    fn the_outbound_listener() {
        let upgrade = |kind: &str| hcm::UpgradeConfig {
            upgrade_type: kind.into(),
            ..Default::default()
        };
        let message = listener(vec![manager(|m| {
            m.upgrade_configs = vec![upgrade("websocket"), upgrade("CONNECT")];
        })]);
        let expect = Listener {
            name: "outbound".into(),
            address: "127.0.0.1:15001".parse().expect("address"),
            direction: Direction::Outbound,
            port: None,
            service: None,
            chains: vec![FilterChain {
                matches: ChainMatch::default(),
                tls: None,
                filter: Filter::Http(HttpConfig {
                    routes: RouteSource::Rds("outbound".into()),
                    websocket: true,
                    connect: true,
                    idle_timeout: Some(Duration::from_secs(3600)),
                    stream_idle_timeout: Some(Duration::from_secs(300)),
                }),
            }],
            warnings: Vec::new(),
        };
        assert_eq!(*parsed(&message), expect);
    }

    #[test]
    fn a_listener_for_one_destination() {
        let mut message = listener(vec![matching(manager(|_| {}), "", &["http/1.1", "h2c"])]);
        message.name = "outbound|5432".into();
        message.default_filter_chain = Some(tcp(|_| {}));
        message.metadata = metadata(&[
            ("service", JsonKind::StringValue("db".into())),
            ("namespace", JsonKind::StringValue("blog".into())),
            ("port", JsonKind::NumberValue(5432.0)),
        ]);
        let inspector = pb::ListenerFilter {
            config_type: Some(listener_filter::ConfigType::TypedConfig(pack(
                &HttpInspector::default(),
            ))),
            ..Default::default()
        };
        message.listener_filters = vec![inspector];
        let found = parsed(&message);
        assert_eq!(found.port, Some(5432));
        assert_eq!(found.service, Some(("db".into(), "blog".into())));
        let applications = &found.chains[0].matches.applications;
        assert_eq!(*applications, [AppProtocol::Http1, AppProtocol::Http2]);
        assert_eq!(found.chains[1].matches, ChainMatch::default());
        let expect = Filter::Tcp(TcpConfig {
            clusters: WeightedClusters::one("db.blog:5432".into()),
            idle_timeout: Some(Duration::from_secs(3600)),
        });
        assert_eq!(found.chains[1].filter, expect);
    }

    #[test]
    fn a_permissive_inbound_listener() {
        let mut tcp_context = context();
        if let Some(common) = &mut tcp_context.common_tls_context {
            common.alpn_protocols = vec!["weft-tcp".into()];
        }
        let inline = || {
            manager(|m| {
                m.route_specifier = Some(hcm::RouteSpecifier::RouteConfig(RouteConfiguration {
                    name: "inbound|80".into(),
                    ..Default::default()
                }));
            })
        };
        let mut message = listener(vec![
            with_tls(matching(inline(), "tls", &["h2", "http/1.1"]), &context()),
            with_tls(matching(tcp(|_| {}), "tls", &["weft-tcp"]), &tcp_context),
            matching(inline(), "raw_buffer", &["http/1.0", "http/1.1", "h2c"]),
            matching(tcp(|_| {}), "raw_buffer", &[]),
        ]);
        message.name = "inbound|80".into();
        message.traffic_direction = 1;
        let found = parsed(&message);
        assert_eq!(found.direction, Direction::Inbound);
        let tls = DownstreamTls {
            require_client_certificate: true,
            alpn: vec![AppProtocol::Http2, AppProtocol::Http1],
            bundle: "ROOTCA".into(),
        };
        assert_eq!(found.chains[0].tls, Some(tls));
        assert_eq!(found.chains[2].tls, None);
        let raw = ChainMatch {
            transport: Some(TransportProtocol::RawBuffer),
            applications: vec![AppProtocol::Http1, AppProtocol::Http2],
        };
        assert_eq!(found.chains[2].matches, raw);
        let Filter::Http(HttpConfig {
            routes: RouteSource::Inline(table),
            ..
        }) = &found.chains[0].filter
        else {
            panic!("{:?}", found.chains[0].filter);
        };
        assert_eq!(&*table.name, "inbound|80");
    }

    #[test]
    fn timeouts_and_upgrades() {
        let check = |change: fn(&mut HttpConnectionManager), expect| {
            let Filter::Http(http) = &parsed(&listener(vec![manager(change)])).chains[0].filter
            else {
                panic!("no HTTP");
            };
            let timeouts = (http.idle_timeout, http.stream_idle_timeout);
            assert_eq!((timeouts, http.websocket, http.connect), expect);
        };
        check(
            |m| {
                m.stream_idle_timeout = seconds(0);
                m.common_http_protocol_options = Some(Default::default());
                if let Some(options) = &mut m.common_http_protocol_options {
                    options.idle_timeout = seconds(7);
                }
                m.upgrade_configs = vec![
                    hcm::UpgradeConfig {
                        upgrade_type: "WebSocket".into(),
                        ..Default::default()
                    },
                    hcm::UpgradeConfig {
                        upgrade_type: "connect".into(),
                        enabled: Some(BoolValue { value: false }),
                        ..Default::default()
                    },
                ];
            },
            ((Some(Duration::from_secs(7)), None), true, false),
        );
        let default = (
            Some(Duration::from_secs(3600)),
            Some(Duration::from_secs(300)),
        );
        check(|_| {}, (default, false, false));
        let off = listener(vec![tcp(|t| t.idle_timeout = seconds(0))]);
        assert!(matches!(
            &parsed(&off).chains[0].filter,
            Filter::Tcp(TcpConfig {
                idle_timeout: None,
                ..
            })
        ));
    }

    #[test]
    fn bad_listeners() {
        let mut message = listener(Vec::new());
        message.name = "other".into();
        message.address = None;
        message.traffic_direction = 0;
        message.metadata = metadata(&[
            ("service", JsonKind::StringValue("db".into())),
            ("port", JsonKind::NumberValue(0.5)),
        ]);
        let port = "metadata[weft.dev].port: must be a number from 1 to 65535";
        bad(
            &message,
            &[
                "name: is \"other\", but the resource was sent as \"outbound\"",
                "address: is missing; set socket_address",
                "traffic_direction: must be INBOUND or OUTBOUND",
                port,
                "metadata[weft.dev]: must have both service and namespace, or none",
                "filter_chains: must have at least one",
            ],
        );
        for kind in [
            JsonKind::NumberValue(0.0),
            JsonKind::NumberValue(65536.0),
            JsonKind::NumberValue(f64::NAN),
            JsonKind::StringValue("80".into()),
        ] {
            let mut message = listener(vec![tcp(|_| {})]);
            message.metadata = metadata(&[("port", kind)]);
            bad(&message, &[port]);
        }
    }

    #[test]
    #[allow(deprecated)]
    fn what_would_change_the_connections_is_rejected() {
        let mut message = listener(vec![tcp(|_| {})]);
        message.additional_addresses = vec![Default::default()];
        message.fcds_config = Some(Default::default());
        message.filter_chain_matcher = Some(Default::default());
        message.use_original_dst = yes();
        message.transparent = yes();
        message.bind_to_port = Some(BoolValue { value: false });
        message.deprecated_v1 = Some(Default::default());
        message.udp_listener_config = Some(Default::default());
        message.api_listener = Some(Default::default());
        message.listener_specifier = Some(pb::listener::ListenerSpecifier::InternalListener(
            Default::default(),
        ));
        let fields = [
            "additional_addresses",
            "fcds_config",
            "filter_chain_matcher",
            "use_original_dst",
            "transparent",
            "bind_to_port",
            "deprecated_v1",
            "udp_listener_config",
            "api_listener",
            "internal_listener",
        ];
        let expect = fields.map(|field| format!("{field}: is not supported; leave it out"));
        bad(&message, &expect.each_ref().map(String::as_str));
        let mut message = listener(vec![tcp(|_| {})]);
        message.listener_filters = vec![
            pb::ListenerFilter {
                config_type: Some(listener_filter::ConfigType::TypedConfig(pack(
                    &OriginalDst::default(),
                ))),
                ..Default::default()
            },
            pb::ListenerFilter {
                filter_disabled: Some(Default::default()),
                ..Default::default()
            },
        ];
        bad(
            &message,
            &[
                "listener_filters[0].typed_config: \
                 type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst \
                 is not supported; use tls_inspector or http_inspector",
                "listener_filters[1].filter_disabled: is not supported; leave it out",
                "listener_filters[1].typed_config: is missing",
            ],
        );
    }

    #[test]
    fn chains_must_differ() {
        let check = |chains: Vec<pb::FilterChain>, default, expect: &[&str]| {
            let mut message = listener(chains);
            message.default_filter_chain = default;
            bad(&message, expect);
        };
        let with = |transport, apps| matching(tcp(|_| {}), transport, apps);
        let twice = |what| format!("filter_chains: two chains match the same connections ({what})");
        check(
            vec![with("", &[]), with("", &[])],
            None,
            &[&twice("any protocol")],
        );
        check(
            vec![with("", &[])],
            Some(tcp(|_| {})),
            &[&twice("any protocol")],
        );
        check(
            vec![with("", &["h2", "http/1.1"]), with("", &["h2c"])],
            None,
            &[&twice("h2")],
        );
        check(
            vec![
                with("", &["h2"]),
                with("raw_buffer", &["h2"]),
                with("", &[]),
            ],
            None,
            &[],
        );
        check(
            Vec::new(),
            Some(with("tls", &[])),
            &["default_filter_chain.filter_chain_match: is not supported; leave it out"],
        );
    }

    #[test]
    fn bad_chain_matches() {
        let mut message = tcp(|_| {});
        message.filter_chain_match = Some(pb::FilterChainMatch {
            destination_port: Some(UInt32Value { value: 80 }),
            prefix_ranges: vec![Default::default()],
            address_suffix: "x".into(),
            suffix_len: Some(UInt32Value { value: 8 }),
            direct_source_prefix_ranges: vec![Default::default()],
            source_type: 1,
            source_prefix_ranges: vec![Default::default()],
            source_ports: vec![80],
            server_names: vec!["post".into()],
            ..Default::default()
        });
        let fields = [
            "destination_port",
            "prefix_ranges",
            "address_suffix",
            "suffix_len",
            "direct_source_prefix_ranges",
            "source_type",
            "source_prefix_ranges",
            "source_ports",
            "server_names",
        ];
        let expect = fields
            .map(|field| format!("filter_chain_match.{field}: is not supported; leave it out"));
        bad_chain(message, &expect.each_ref().map(String::as_str));
        bad_chain(
            matching(tcp(|_| {}), "quic", &[]),
            &["filter_chain_match.transport_protocol: \"quic\" must be tls or raw_buffer"],
        );
        bad_chain(
            matching(tcp(|_| {}), "", &["h2", "istio"]),
            &[
                "filter_chain_match.application_protocols[1]: \"istio\" is not known; use \
               http/1.1, h2, h2c or weft-tcp",
            ],
        );
    }

    #[test]
    #[allow(deprecated)]
    fn bad_chains() {
        let only = "must be one HttpConnectionManager or TcpProxy and nothing else";
        let mut none = tcp(|_| {});
        none.filters.clear();
        bad_chain(none, &[&format!("filters: {only}, not 0")]);
        let mut two = tcp(|_| {});
        two.filters.insert(0, network(pack(&Rbac::default())));
        bad_chain(two, &[&format!("filters: {only}, not 2")]);
        bad_chain(
            chain(pack(&Rbac::default())),
            &["filters[0].typed_config: \
               type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC is not \
               supported; use HttpConnectionManager or TcpProxy"],
        );
        let mut empty = tcp(|_| {});
        empty.filters = vec![pb::Filter::default()];
        bad_chain(empty, &["filters[0].typed_config: is missing"]);
        let mut broken = tcp(|_| {});
        let mut any = pack(&TcpProxy::default());
        any.value = vec![0xff];
        broken.filters = vec![network(any)];
        let message = listener(vec![broken]);
        let value = prost::Message::encode_to_vec(&message);
        let rejected = crate::config::parse(Kind::Listener, "outbound", &value).expect_err("bad");
        assert!(
            rejected.problems[0]
                .starts_with("filter_chains[0].filters[0].typed_config: the bytes are no such"),
            "{rejected}"
        );
        let mut proxied = tcp(|_| {});
        proxied.use_proxy_proto = yes();
        bad_chain(
            proxied,
            &["use_proxy_proto: is not supported; leave it out"],
        );
        bad_chain(
            with_tls(matching(tcp(|_| {}), "raw_buffer", &[]), &context()),
            &["transport_socket: terminates TLS in a chain for plaintext (raw_buffer)"],
        );
        bad_chain(
            matching(manager(|_| {}), "tls", &[]),
            &["transport_socket: is missing: HTTP inside TLS cannot be read without it"],
        );
        // Bytes of a TLS connection may pass as they are.
        parsed(&listener(vec![matching(tcp(|_| {}), "tls", &[])]));
    }

    #[test]
    fn transport_sockets() {
        let mut plain = tcp(|_| {});
        plain.transport_socket = socket(pack(&RawBuffer::default()));
        assert_eq!(parsed(&listener(vec![plain])).chains[0].tls, None);
        let mut foreign = tcp(|_| {});
        foreign.transport_socket = socket(pack(&UpstreamTlsContext::default()));
        bad_chain(
            foreign,
            &["transport_socket: expected \
                 envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, found \
                 type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"],
        );
        let mut empty = tcp(|_| {});
        empty.transport_socket = Some(TransportSocket::default());
        bad_chain(empty, &["transport_socket: has no typed_config"]);
    }

    /// The problems of a TLS context, without the path that leads to it.
    fn bad_tls(change: impl FnOnce(&mut DownstreamTlsContext), expect: &[&str]) {
        let mut context = context();
        change(&mut context);
        let expect: Vec<String> = expect
            .iter()
            .map(|line| format!("transport_socket.{line}"))
            .collect();
        let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
        bad_chain(with_tls(tcp(|_| {}), &context), &expect);
    }

    /// The problems of its common part.
    fn bad_common(change: impl FnOnce(&mut CommonTlsContext), expect: &[&str]) {
        let expect: Vec<String> = expect
            .iter()
            .map(|line| format!("common_tls_context.{line}"))
            .collect();
        let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
        bad_tls(
            |context| change(context.common_tls_context.as_mut().expect("common")),
            &expect,
        );
    }

    #[test]
    fn tls_contexts_never_fail_open() {
        bad_tls(
            |c| {
                c.require_sni = yes();
                c.ocsp_staple_policy = 1;
                c.common_tls_context = None;
            },
            &[
                "require_sni: is not supported; leave it out",
                "ocsp_staple_policy: is not supported; leave it out",
                "common_tls_context: is missing",
            ],
        );
        bad_common(
            |c| {
                c.tls_certificates = vec![Default::default()];
                c.tls_certificate_provider_instance = Some(Default::default());
                c.custom_tls_certificate_selector = Some(Default::default());
                c.custom_handshaker = Some(Default::default());
                c.key_log = Some(Default::default());
            },
            &[
                "tls_certificates: is not supported; leave it out",
                "tls_certificate_provider_instance: is not supported; leave it out",
                "custom_tls_certificate_selector: is not supported; leave it out",
                "custom_handshaker: is not supported; leave it out",
                "key_log: is not supported; leave it out",
            ],
        );
        bad_common(
            |c| {
                c.tls_params = Some(TlsParameters {
                    tls_minimum_protocol_version: 9,
                    tls_maximum_protocol_version: 3,
                    ecdh_curves: vec!["P-521".into()],
                    signature_algorithms: vec!["rsa_pkcs1_sha256".into()],
                    compliance_policies: vec![0],
                    ..Default::default()
                });
            },
            &[
                "tls_params.tls_minimum_protocol_version: must be TLSv1_3 or less",
                "tls_params.tls_maximum_protocol_version: must be TLSv1_3: the mesh speaks \
                 nothing older",
                "tls_params.ecdh_curves: is not supported; leave it out",
                "tls_params.signature_algorithms: is not supported; leave it out",
                "tls_params.compliance_policies: is not supported; leave it out",
            ],
        );
        let own = "tls_certificate_sds_secret_configs: must be one secret named \"default\"";
        bad_common(|c| c.tls_certificate_sds_secret_configs.clear(), &[own]);
        bad_common(
            |c| c.tls_certificate_sds_secret_configs = vec![sds("other")],
            &[own],
        );
        bad_common(
            |c| c.tls_certificate_sds_secret_configs.push(sds("default")),
            &[own],
        );
        bad_common(
            |c| c.alpn_protocols.push("spdy".into()),
            &["alpn_protocols[2]: \"spdy\" is not known; use http/1.1, h2, h2c or weft-tcp"],
        );
        let file = Some(ConfigSource {
            config_source_specifier: Some(config_source::ConfigSourceSpecifier::PathConfigSource(
                Default::default(),
            )),
            ..Default::default()
        });
        bad_common(
            |c| c.tls_certificate_sds_secret_configs[0].sds_config = file,
            &["tls_certificate_sds_secret_configs[0].sds_config: must be ads"],
        );
    }

    #[test]
    fn clients_are_always_validated() {
        let missing = "must have validation_context_sds_secret_config or \
                       combined_validation_context";
        let nowhere = |change: fn(&mut CommonTlsContext)| {
            bad_tls(
                |c| change(c.common_tls_context.as_mut().expect("common")),
                &[&format!("common_tls_context: {missing}")],
            );
        };
        nowhere(|c| c.validation_context_type = None);
        nowhere(|c| {
            c.validation_context_type =
                Some(ValidationContextType::ValidationContext(Default::default()));
        });
        bad_common(
            |c| {
                c.validation_context_type = Some(
                    ValidationContextType::ValidationContextSdsSecretConfig(Default::default()),
                );
            },
            &["validation_context_sds_secret_config.name: must not be empty"],
        );
        let combined = |context| {
            Some(ValidationContextType::CombinedValidationContext(
                common_tls_context::CombinedCertificateValidationContext {
                    default_validation_context: Some(context),
                    validation_context_sds_secret_config: Some(sds("ROOTCA")),
                    ..Default::default()
                },
            ))
        };
        let context = CertificateValidationContext {
            trusted_ca: Some(Default::default()),
            verify_certificate_spki: vec!["x".into()],
            verify_certificate_hash: vec!["x".into()],
            trust_chain_verification: 1,
            ..Default::default()
        };
        let at = "combined_validation_context.default_validation_context";
        bad_common(
            |c| c.validation_context_type = combined(context),
            &[
                &format!("{at}.trusted_ca: is not supported; leave it out"),
                &format!("{at}.verify_certificate_spki: is not supported; leave it out"),
                &format!("{at}.verify_certificate_hash: is not supported; leave it out"),
                &format!("{at}.trust_chain_verification: is not supported; leave it out"),
            ],
        );
        let mut only = SubjectAltNameMatcher {
            san_type: 3,
            ..Default::default()
        };
        only.matcher = Some(weft_api::envoy::r#type::matcher::v3::StringMatcher {
            match_pattern: Some(
                weft_api::envoy::r#type::matcher::v3::string_matcher::MatchPattern::Exact(
                    "spiffe://mesh.test/ns/b/sa/a".into(),
                ),
            ),
            ..Default::default()
        });
        let context = CertificateValidationContext {
            match_typed_subject_alt_names: vec![only],
            ..Default::default()
        };
        bad_common(
            |c| c.validation_context_type = combined(context),
            &[&format!(
                "{at}.match_typed_subject_alt_names: is not supported; leave it out"
            )],
        );
    }

    #[test]
    fn http_filters_end_with_the_router() {
        let check = |filters: Vec<HttpFilter>, expect: &[&str]| {
            let expect: Vec<String> = expect
                .iter()
                .map(|line| format!("filters[0].typed_config.{line}"))
                .collect();
            let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
            bad_chain(manager(|m| m.http_filters = filters), &expect);
        };
        let cors = pack(&Cors::default());
        let name = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
        check(
            vec![http(&cors), router()],
            &[&format!(
                "http_filters[0]: {name} is not supported; only the router is"
            )],
        );
        check(
            vec![router(), http(&cors)],
            &[
                &format!("http_filters[1]: {name} is not supported; only the router is"),
                "http_filters: must end with the router",
            ],
        );
        check(Vec::new(), &["http_filters: must end with the router"]);
        let mut disabled = router();
        disabled.disabled = true;
        check(vec![disabled], &["http_filters: must end with the router"]);
        check(
            vec![HttpFilter::default(), router()],
            &[
                "http_filters[0]: a filter without typed_config is not supported; only the router is",
            ],
        );
        let inner = Router {
            upstream_http_filters: vec![Default::default()],
            ..Default::default()
        };
        check(
            vec![http(&pack(&inner))],
            &["http_filters[0].typed_config.upstream_http_filters: is not supported; leave it out"],
        );
        let mut optional = http(&cors);
        optional.is_optional = true;
        let message = listener(vec![manager(|m| m.http_filters.insert(0, optional))]);
        let warning = format!(
            "filter_chains[0].filters[0].typed_config.http_filters[0]: {name} is not supported \
             and left out"
        );
        assert_eq!(parsed(&message).warnings, [warning]);
    }

    #[test]
    fn bad_managers() {
        let check = |change: fn(&mut HttpConnectionManager), expect: &[&str]| {
            let expect: Vec<String> = expect
                .iter()
                .map(|line| format!("filters[0].typed_config{line}"))
                .collect();
            let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
            bad_chain(manager(change), &expect);
        };
        check(
            |m| m.route_specifier = None,
            &[": has no routes; set rds or route_config"],
        );
        check(
            |m| m.route_specifier = Some(hcm::RouteSpecifier::Rds(Rds::default())),
            &[".rds.route_config_name: must not be empty"],
        );
        check(
            |m| {
                m.route_specifier =
                    Some(hcm::RouteSpecifier::ScopedRoutes(ScopedRoutes::default()));
            },
            &[".scoped_routes: is not supported; use rds or route_config"],
        );
        check(
            |m| {
                m.route_specifier = Some(hcm::RouteSpecifier::RouteConfig(RouteConfiguration {
                    virtual_hosts: vec![VirtualHost {
                        name: "a".into(),
                        ..Default::default()
                    }],
                    ..Default::default()
                }));
            },
            &[".route_config.virtual_hosts[0].domains: must have at least one"],
        );
        check(
            |m| {
                m.codec_type = 3;
                m.xff_num_trusted_hops = 1;
                m.original_ip_detection_extensions = vec![Default::default()];
                m.early_header_mutation_extensions = vec![Default::default()];
                m.typed_header_validation_config = Some(Default::default());
                m.stream_idle_timeout = seconds(-1);
                m.upgrade_configs = vec![hcm::UpgradeConfig {
                    filters: vec![Default::default()],
                    ..Default::default()
                }];
            },
            &[
                ".codec_type: is not supported; leave it out",
                ".xff_num_trusted_hops: is not supported; leave it out",
                ".original_ip_detection_extensions: is not supported; leave it out",
                ".early_header_mutation_extensions: is not supported; leave it out",
                ".typed_header_validation_config: is not supported; leave it out",
                ".stream_idle_timeout: must be 0 s or more, and no more than 10,000 years",
                ".upgrade_configs[0].filters: is not supported; leave it out",
            ],
        );
    }

    #[test]
    fn tcp_shares() {
        let shares = |list: &[(&str, u32)]| {
            let share = |(name, weight): &(&str, u32)| tcp_proxy::weighted_cluster::ClusterWeight {
                name: (*name).into(),
                weight: *weight,
                ..Default::default()
            };
            let clusters = list.iter().map(share).collect();
            tcp(|t| {
                t.cluster_specifier = Some(tcp_proxy::ClusterSpecifier::WeightedClusters(
                    tcp_proxy::WeightedCluster { clusters },
                ));
            })
        };
        let found = parsed(&listener(vec![shares(&[("a", 1), ("b", 3)])]));
        let Filter::Tcp(config) = &found.chains[0].filter else {
            panic!("no TCP");
        };
        assert_eq!(config.clusters.total_weight, 4);
        let at = "filters[0].typed_config";
        bad_chain(
            shares(&[("a", 0)]),
            &[&format!(
                "{at}.weighted_clusters.clusters: must have a weight above 0 in sum"
            )],
        );
        bad_chain(
            shares(&[("a", 1), ("", 1)]),
            &[&format!(
                "{at}.weighted_clusters.clusters[1].name: must not be empty"
            )],
        );
        bad_chain(
            tcp(|t| t.cluster_specifier = None),
            &[&format!(
                "{at}: has no cluster; set cluster or weighted_clusters"
            )],
        );
        bad_chain(
            tcp(|t| {
                t.metadata_match = Some(Default::default());
                t.tunneling_config = Some(Default::default());
                t.on_demand = Some(Default::default());
            }),
            &[
                &format!("{at}.metadata_match: is not supported; leave it out"),
                &format!("{at}.tunneling_config: is not supported; leave it out"),
                &format!("{at}.on_demand: is not supported; leave it out"),
            ],
        );
    }

    #[test]
    fn warnings_name_what_has_no_effect() {
        let mut message = listener(vec![manager(|m| {
            m.codec_type = 1;
            m.normalize_path = yes();
            m.request_timeout = seconds(1);
            m.upgrade_configs = vec![hcm::UpgradeConfig {
                upgrade_type: "h2c".into(),
                ..Default::default()
            }];
            m.common_http_protocol_options = Some(Default::default());
            if let Some(options) = &mut m.common_http_protocol_options {
                options.max_stream_duration = seconds(1);
            }
        })]);
        message.freebind = yes();
        let at = "filter_chains[0].filters[0].typed_config";
        assert_eq!(
            parsed(&message).warnings,
            [
                "freebind: has no effect".to_owned(),
                format!("{at}.codec_type: has no effect"),
                format!("{at}.request_timeout: has no effect"),
                format!("{at}.normalize_path: has no effect"),
                format!("{at}.common_http_protocol_options.max_stream_duration: has no effect"),
                format!("{at}.upgrade_configs[0].upgrade_type: has no effect"),
            ]
        );
    }
}
