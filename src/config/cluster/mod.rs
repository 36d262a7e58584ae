//! `envoy.config.cluster.v3.Cluster`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use prost::Name;
use weft_api::{
    any,
    envoy::{
        config::cluster::v3::{
            self as pb, circuit_breakers::Thresholds, cluster as cluster_pb,
            cluster::ClusterDiscoveryType,
        },
        extensions::{
            filters::{
                http::upstream_codec::v3::UpstreamCodec,
                network::http_connection_manager::v3::{HttpFilter, http_filter::ConfigType},
            },
            load_balancing_policies::{
                least_request::v3::LeastRequest, random::v3::Random, round_robin::v3::RoundRobin,
            },
            upstreams::http::v3::{HttpProtocolOptions, http_protocol_options as options},
        },
    },
    extensions::PeakEwma,
    google::protobuf::Any,
};
use weft_certs::spiffe::SpiffeId;

use super::{
    endpoint::{self, Endpoints},
    listener::AppProtocol,
    problems::{Problems, parts},
    tls,
};

/// One upstream service as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterConfig {
    /// The resource name, as in `post-v2.blog:80`.
    pub name: Arc<str>,
    /// The label of metrics: metadata `service`, or `pod|` and metadata `workload`, or else the
    /// resource name.
    pub service: Arc<str>,
    /// Metadata `namespace`; empty if absent.
    pub namespace: Arc<str>,
    /// Where endpoints come from.
    pub kind: ClusterType,
    /// Default 5 s.
    pub connect_timeout: Duration,
    /// How an endpoint is chosen.
    pub balancing: LoadBalancing,
    /// What is spoken to endpoints; `None` for TCP, and HTTP/1.1 if a route leads there.
    pub protocol: Option<HttpProtocol>,
    /// mTLS to endpoints; `None` is plaintext.
    pub tls: Option<UpstreamTls>,
    /// Fields that were set and have no effect, for the log and the dump.
    pub warnings: Vec<String>,
}

/// `Cluster.type`.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterType {
    /// `EDS`: the name of the ClusterLoadAssignment.
    Eds(Arc<str>),
    /// `STATIC`, with the assignment inline.
    Static(Endpoints),
    /// `ORIGINAL_DST`: where the client's connection was meant to go.
    Original,
    /// `LOGICAL_DNS`: the addresses of a name, by the sidecar's own resolver.
    Dns {
        /// The name.
        host: Arc<str>,
        /// The port of all addresses.
        port: u16,
    },
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadBalancing {
    /// `weft.extensions.v1.PeakEwma`: two random choices, latency times load decides.
    PeakEwma {
        /// How fast an old peak is forgotten. Default 10 s.
        decay: Duration,
        /// Assumed for an endpoint that has not answered. Default 30 ms.
        default_rtt: Duration,
    },
    /// In turn.
    RoundRobin,
    /// Two random choices, fewer requests in flight decides.
    LeastRequest,
    /// At random.
    Random,
}

/// `HttpProtocolOptions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpProtocol {
    /// `explicit_http_config.http_protocol_options`.
    Http1,
    /// `explicit_http_config.http2_protocol_options`.
    Http2,
    /// `use_downstream_protocol_config`: what the client speaks.
    Downstream,
}

/// `UpstreamTlsContext`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Server name indication.
    pub sni: Arc<str>,
    /// `match_typed_subject_alt_names`: who may answer, where an endpoint does not say.
    /// Empty accepts nobody.
    pub identities: Vec<SpiffeId>,
    /// `alpn_protocols`.
    pub alpn: Vec<AppProtocol>,
    /// The name of the secret with the trust bundle.
    pub bundle: Arc<str>,
}

pub(super) fn read(p: &mut Problems, name: &str, from: &pb::Cluster) -> Option<ClusterConfig> {
    let name = p.name("name", &from.name, name);
    extras(p, from);
    let metadata = from.metadata.as_ref();
    let service = p.metadata_string(metadata, "service").map(Arc::from);
    let workload = p.metadata_string(metadata, "workload");
    // An address of one workload with any port: the labels of metrics must not grow with the
    // ports that somebody tries.
    let pod = workload.map(|workload| format!("pod|{workload}").into());
    let namespace = p.metadata_string(metadata, "namespace");
    let kind = ClusterType::read(p, &name, from);
    let connect_timeout = p
        .duration("connect_timeout", parts!(from.connect_timeout))
        .unwrap_or(CONNECT_TIMEOUT);
    if connect_timeout.is_zero() {
        p.reject("connect_timeout", "must be above 0 s");
    }
    let balancing = LoadBalancing::read(p, from);
    let protocol = protocol(p, from);
    let tls = tls::read_upstream(p, from.transport_socket.as_ref());
    Some(ClusterConfig {
        service: service.or(pod).unwrap_or_else(|| name.clone()),
        namespace: namespace.unwrap_or_default().into(),
        name,
        kind: kind?,
        connect_timeout,
        balancing: balancing?,
        protocol: protocol?,
        tls: tls?,
        warnings: Vec::new(),
    })
}

#[allow(deprecated)] // Deprecated fields that a sender may still set.
fn extras(p: &mut Problems, from: &pb::Cluster) {
    p.unsupported(
        !from.transport_socket_matches.is_empty(),
        "transport_socket_matches",
    );
    p.unsupported(
        from.transport_socket_matcher.is_some(),
        "transport_socket_matcher",
    );
    p.unsupported(!from.filters.is_empty(), "filters");
    p.unsupported(from.lb_subset_config.is_some(), "lb_subset_config");
    p.unsupported(from.upstream_config.is_some(), "upstream_config");
    // Absent means Envoy's defaults: no limit that would be felt, and no ejection.
    let breakers = from.circuit_breakers.as_ref();
    let limits = breakers.is_some_and(|b| {
        let all = b.thresholds.iter().chain(&b.per_host_thresholds);
        all.into_iter().any(|t| *t != without_limits(t))
    });
    p.ignored(limits, "circuit_breakers");
    p.ignored(from.outlier_detection.is_some(), "outlier_detection");
    p.ignored(!from.health_checks.is_empty(), "health_checks");
    p.ignored(
        from.max_requests_per_connection.is_some(),
        "max_requests_per_connection",
    );
    p.ignored(
        from.common_http_protocol_options.is_some(),
        "common_http_protocol_options",
    );
    p.ignored(from.lb_config.is_some(), "lb_config");
    p.ignored(
        from.common_lb_config
            .as_ref()
            .is_some_and(|c| *c != Default::default()),
        "common_lb_config",
    );
    p.ignored(from.upstream_bind_config.is_some(), "upstream_bind_config");
    p.ignored(
        from.upstream_connection_options.is_some(),
        "upstream_connection_options",
    );
    p.ignored(from.lrs_server.is_some(), "lrs_server");
    p.ignored(from.preconnect_policy.is_some(), "preconnect_policy");
    p.ignored(
        from.connection_pool_per_downstream_connection,
        "connection_pool_per_downstream_connection",
    );
    p.ignored(
        from.close_connections_on_host_health_failure,
        "close_connections_on_host_health_failure",
    );
}

/// Thresholds that limit nothing, for the same priority.
fn without_limits(from: &Thresholds) -> Thresholds {
    Thresholds {
        priority: from.priority,
        track_remaining: from.track_remaining,
        ..Default::default()
    }
}

impl ClusterType {
    fn read(p: &mut Problems, name: &Arc<str>, from: &pb::Cluster) -> Option<Self> {
        use cluster_pb::DiscoveryType;
        let kind = match from.cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind).ok(),
            Some(ClusterDiscoveryType::ClusterType(_)) => None,
            None => Some(DiscoveryType::Static),
        };
        match kind {
            Some(DiscoveryType::Eds) => {
                p.ignored(from.load_assignment.is_some(), "load_assignment");
                let config = from.eds_cluster_config.as_ref();
                p.ads(
                    "eds_cluster_config.eds_config",
                    config.and_then(|c| c.eds_config.as_ref()),
                );
                Some(Self::Eds(match config {
                    Some(config) if !config.service_name.is_empty() => {
                        config.service_name.as_str().into()
                    }
                    _ => name.clone(),
                }))
            }
            Some(DiscoveryType::Static) => {
                let Some(assignment) = &from.load_assignment else {
                    p.reject("load_assignment", "is missing in a STATIC cluster");
                    return None;
                };
                let mut endpoints = p.at("load_assignment", |p| endpoint::read(p, assignment));
                if endpoints.cluster.is_empty() {
                    endpoints.cluster = name.clone();
                }
                Some(Self::Static(endpoints))
            }
            Some(DiscoveryType::OriginalDst) => {
                p.unsupported(from.load_assignment.is_some(), "load_assignment");
                Some(Self::Original)
            }
            Some(DiscoveryType::LogicalDns) => {
                let named = p.at("load_assignment", |p| {
                    endpoint::read_name(p, from.load_assignment.as_ref())
                });
                named.map(|(host, port)| Self::Dns { host, port })
            }
            other => {
                let found = other.map_or("cluster_type", |kind| kind.as_str_name());
                p.reject(
                    "type",
                    format_args!(
                        "{found} is not supported; use EDS, STATIC, ORIGINAL_DST or LOGICAL_DNS"
                    ),
                );
                None
            }
        }
    }
}

fn is_original(from: &pb::Cluster) -> bool {
    let original = cluster_pb::DiscoveryType::OriginalDst as i32;
    from.cluster_discovery_type == Some(ClusterDiscoveryType::Type(original))
}

impl LoadBalancing {
    fn read(p: &mut Problems, from: &pb::Cluster) -> Option<Self> {
        use cluster_pb::LbPolicy;
        if let Some(list) = &from.load_balancing_policy {
            return p.at("load_balancing_policy", |p| Self::first_known(p, list));
        }
        match LbPolicy::try_from(from.lb_policy) {
            Ok(LbPolicy::RoundRobin) => Some(Self::RoundRobin),
            Ok(LbPolicy::LeastRequest) => Some(Self::LeastRequest),
            Ok(LbPolicy::Random) => Some(Self::Random),
            // There is one endpoint: the original destination.
            Ok(LbPolicy::ClusterProvided) if is_original(from) => Some(Self::RoundRobin),
            other => {
                let found = other.map_or("this policy", |policy| policy.as_str_name());
                p.reject(
                    "lb_policy",
                    format_args!(
                        "{found} is not supported; use ROUND_ROBIN, LEAST_REQUEST or RANDOM"
                    ),
                );
                None
            }
        }
    }

    fn first_known(p: &mut Problems, from: &pb::LoadBalancingPolicy) -> Option<Self> {
        for (index, policy) in from.policies.iter().enumerate() {
            let extension = policy.typed_extension_config.as_ref();
            let Some(config) = extension.and_then(|e| e.typed_config.as_ref()) else {
                continue;
            };
            let field = format!("policies[{index}]");
            if any::holds::<PeakEwma>(config) {
                return p.at(field, |p| Self::peak_ewma(p, config));
            }
            if any::holds::<RoundRobin>(config) {
                let policy: RoundRobin = p.unpack(&field, config)?;
                p.ignored(policy != RoundRobin::default(), &field);
                return Some(Self::RoundRobin);
            }
            if any::holds::<LeastRequest>(config) {
                let mut policy: LeastRequest = p.unpack(&field, config)?;
                // Two choices are what is made anyway.
                policy.choice_count = policy.choice_count.filter(|n| n.value != 2);
                p.ignored(policy != LeastRequest::default(), &field);
                return Some(Self::LeastRequest);
            }
            if any::holds::<Random>(config) {
                let policy: Random = p.unpack(&field, config)?;
                p.ignored(policy != Random::default(), &field);
                return Some(Self::Random);
            }
        }
        p.reject(
            "policies",
            "has none that is supported: PeakEwma, RoundRobin, LeastRequest, Random",
        );
        None
    }

    fn peak_ewma(p: &mut Problems, config: &Any) -> Option<Self> {
        let policy: PeakEwma = p.unpack("", config)?;
        let decay = p.duration("decay_time", parts!(policy.decay_time));
        let default_rtt = p.duration("default_rtt", parts!(policy.default_rtt));
        for (field, value) in [("decay_time", decay), ("default_rtt", default_rtt)] {
            if value.is_some_and(|d| d.is_zero()) {
                p.reject(field, "must be above 0 s");
            }
        }
        Some(Self::PeakEwma {
            decay: decay.unwrap_or(DECAY),
            default_rtt: default_rtt.unwrap_or(DEFAULT_RTT),
        })
    }
}

/// What is spoken to endpoints: `Some(None)` where nothing is said.
#[allow(deprecated)] // gRPC control planes still send http2_protocol_options.
fn protocol(p: &mut Problems, from: &pb::Cluster) -> Option<Option<HttpProtocol>> {
    let key = HttpProtocolOptions::full_name();
    unknown_options(p, &from.typed_extension_protocol_options, &key);
    if let Some(packed) = from.typed_extension_protocol_options.get(&key) {
        let field = format!("typed_extension_protocol_options[{key}]");
        return p.at(field, |p| {
            let options: HttpProtocolOptions = p.unpack("", packed)?;
            protocol_options(p, &options).map(Some)
        });
    }
    Some(if from.http2_protocol_options.is_some() {
        Some(HttpProtocol::Http2)
    } else if from.protocol_selection
        == cluster_pb::ClusterProtocolSelection::UseDownstreamProtocol as i32
    {
        Some(HttpProtocol::Downstream)
    } else {
        None
    })
}

fn unknown_options(p: &mut Problems, from: &HashMap<String, Any>, known: &str) {
    let mut keys: Vec<_> = from.keys().filter(|key| *key != known).collect();
    keys.sort_unstable();
    for key in keys {
        p.unsupported(true, &format!("typed_extension_protocol_options[{key}]"));
    }
}

fn protocol_options(p: &mut Problems, from: &HttpProtocolOptions) -> Option<HttpProtocol> {
    use options::{UpstreamProtocolOptions as Protocol, explicit_http_config::ProtocolConfig};
    p.unsupported(!from.http_filters.iter().all(is_codec), "http_filters");
    p.unsupported(
        from.header_validation_config.is_some(),
        "header_validation_config",
    );
    p.ignored(
        from.common_http_protocol_options
            .as_ref()
            .is_some_and(|o| *o != Default::default()),
        "common_http_protocol_options",
    );
    p.ignored(
        from.upstream_http_protocol_options.is_some(),
        "upstream_http_protocol_options",
    );
    p.ignored(from.outlier_detection.is_some(), "outlier_detection");
    p.ignored(
        !from.request_mirror_policies.is_empty(),
        "request_mirror_policies",
    );
    p.ignored(!from.hash_policy.is_empty(), "hash_policy");
    p.ignored(from.retry_policy.is_some(), "retry_policy");
    let explicit = match &from.upstream_protocol_options {
        Some(Protocol::UseDownstreamProtocolConfig(_)) => return Some(HttpProtocol::Downstream),
        Some(Protocol::ExplicitHttpConfig(explicit)) => explicit.protocol_config.as_ref(),
        Some(Protocol::AutoConfig(_)) => {
            p.reject(
                "auto_config",
                "is not supported; use explicit_http_config or use_downstream_protocol_config",
            );
            return None;
        }
        None => None,
    };
    match explicit {
        Some(ProtocolConfig::HttpProtocolOptions(_)) => Some(HttpProtocol::Http1),
        Some(ProtocolConfig::Http2ProtocolOptions(_)) => Some(HttpProtocol::Http2),
        Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
            p.unsupported(true, "explicit_http_config.http3_protocol_options");
            None
        }
        None => {
            p.reject(
                "",
                "has no protocol; set explicit_http_config or use_downstream_protocol_config",
            );
            None
        }
    }
}

fn is_codec(filter: &HttpFilter) -> bool {
    matches!(&filter.config_type, Some(ConfigType::TypedConfig(config))
        if any::holds::<UpstreamCodec>(config))
}

/// Envoy's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// `PeakEwma.decay_time`.
const DECAY: Duration = Duration::from_secs(10);
/// `PeakEwma.default_rtt`.
const DEFAULT_RTT: Duration = Duration::from_millis(30);

#[cfg(test)]
mod tests;
