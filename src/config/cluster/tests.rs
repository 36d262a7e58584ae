//! Tables of good and bad messages.

use weft_api::{
    Kind,
    any::pack,
    envoy::{
        config::{
            core::v3::{
                Address, ConfigSource, Metadata, SocketAddress, TransportSocket,
                TypedExtensionConfig, address, config_source, socket_address, transport_socket,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
            },
        },
        extensions::{
            load_balancing_policies::{maglev::v3::Maglev, ring_hash::v3::RingHash},
            transport_sockets::tls::v3::{
                CertificateValidationContext, CommonTlsContext, SdsSecretConfig,
                SubjectAltNameMatcher, UpstreamTlsContext, common_tls_context,
                common_tls_context::ValidationContextType,
            },
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{
        Duration as DurationPb, Struct, UInt32Value, Value as Json, value::Kind as JsonKind,
    },
};

use super::*;
use crate::config::{
    Value,
    testing::{check, good},
};

const NAME: &str = "post.blog:80";

fn seconds(seconds: i64) -> Option<DurationPb> {
    Some(DurationPb { seconds, nanos: 0 })
}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        config_source_specifier: Some(
            config_source::ConfigSourceSpecifier::Ads(Default::default()),
        ),
        ..Default::default()
    })
}

fn eds(change: impl FnOnce(&mut pb::Cluster)) -> pb::Cluster {
    let mut cluster = pb::Cluster {
        name: NAME.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(cluster_pb::EdsClusterConfig {
            eds_config: ads(),
            ..Default::default()
        }),
        ..Default::default()
    };
    change(&mut cluster);
    cluster
}

fn parsed(message: &pb::Cluster) -> Arc<ClusterConfig> {
    match good(Kind::Cluster, &message.name, message) {
        Value::Cluster(cluster) => cluster,
        other => panic!("{other:?}"),
    }
}

fn bad(message: &pb::Cluster, expect: &[&str]) {
    check(Kind::Cluster, NAME, message, expect);
}

fn policies(configs: &[Any]) -> Option<pb::LoadBalancingPolicy> {
    let policy = |config: &Any| pb::load_balancing_policy::Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: "x".into(),
            typed_config: Some(config.clone()),
        }),
    };
    Some(pb::LoadBalancingPolicy {
        policies: configs.iter().map(policy).collect(),
    })
}

fn peak_ewma() -> Any {
    pack(&PeakEwma::default())
}

fn san(pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: 3,
        matcher: Some(StringMatcher {
            match_pattern: Some(pattern),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn exact(id: &str) -> SubjectAltNameMatcher {
    san(MatchPattern::Exact(id.into()))
}

fn tls(names: Vec<SubjectAltNameMatcher>) -> UpstreamTlsContext {
    let sds = |name: &str| SdsSecretConfig {
        name: name.into(),
        sds_config: ads(),
    };
    let combined = common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: names,
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(sds("ROOTCA")),
        ..Default::default()
    };
    UpstreamTlsContext {
        sni: "post.blog.svc.cluster.local".into(),
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![sds("default")],
            alpn_protocols: vec!["h2".into(), "http/1.1".into()],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                combined,
            )),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn socket(context: &UpstreamTlsContext) -> Option<TransportSocket> {
    Some(TransportSocket {
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack(context))),
        ..Default::default()
    })
}

fn options(protocol: Option<options::UpstreamProtocolOptions>) -> HttpProtocolOptions {
    HttpProtocolOptions {
        upstream_protocol_options: protocol,
        ..Default::default()
    }
}

fn with_options(options: &HttpProtocolOptions) -> pb::Cluster {
    eds(|c| {
        c.typed_extension_protocol_options =
            [(HttpProtocolOptions::full_name(), pack(options))].into();
    })
}

fn explicit(
    protocol: Option<options::explicit_http_config::ProtocolConfig>,
) -> Option<options::UpstreamProtocolOptions> {
    Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(
        options::ExplicitHttpConfig {
            protocol_config: protocol,
        },
    ))
}

fn string(text: &str) -> Json {
    Json {
        kind: Some(JsonKind::StringValue(text.into())),
    }
}

#[test]
fn the_ports_of_a_pod_have_one_label() {
    let weft = Struct {
        fields: [
            ("workload".to_owned(), string("post-0")),
            ("namespace".to_owned(), string("blog")),
        ]
        .into(),
    };
    for port in ["8080", "9999"] {
        let found = parsed(&eds(|c| {
            c.name = format!("pod|10.9.0.2:{port}");
            c.metadata = Some(Metadata {
                filter_metadata: [("weft.dev".to_owned(), weft.clone())].into(),
                ..Default::default()
            });
        }));
        assert_eq!((&*found.service, &*found.namespace), ("pod|post-0", "blog"));
    }
}

#[test]
fn a_service() {
    let downstream =
        options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(Default::default());
    let mut message = with_options(&options(Some(downstream)));
    let weft = Struct {
        fields: [
            ("service".to_owned(), string("post")),
            ("namespace".to_owned(), string("blog")),
        ]
        .into(),
    };
    message.metadata = Some(Metadata {
        filter_metadata: [("weft.dev".to_owned(), weft)].into(),
        ..Default::default()
    });
    message.connect_timeout = seconds(3);
    message.load_balancing_policy = policies(&[peak_ewma(), pack(&LeastRequest::default())]);
    let ids = [
        "spiffe://mesh.test/ns/blog/sa/a",
        "spiffe://mesh.test/ns/blog/sa/b",
    ];
    message.transport_socket = socket(&tls(ids.map(exact).to_vec()));
    let expect = ClusterConfig {
        name: NAME.into(),
        service: "post".into(),
        namespace: "blog".into(),
        kind: ClusterType::Eds(NAME.into()),
        connect_timeout: Duration::from_secs(3),
        balancing: LoadBalancing::PeakEwma {
            decay: Duration::from_secs(10),
            default_rtt: Duration::from_millis(30),
        },
        protocol: Some(HttpProtocol::Downstream),
        tls: Some(UpstreamTls {
            sni: "post.blog.svc.cluster.local".into(),
            identities: ids.map(|id| id.parse().expect("SPIFFE ID")).to_vec(),
            alpn: vec![AppProtocol::Http2, AppProtocol::Http1],
            bundle: "ROOTCA".into(),
        }),
        warnings: Vec::new(),
    };
    assert_eq!(*parsed(&message), expect);
}

#[test]
fn an_application() {
    let address = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(8080)),
        ..Default::default()
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
            address: Some(Address {
                address: Some(address::Address::SocketAddress(address)),
            }),
            ..Default::default()
        })),
        ..Default::default()
    };
    let mut message = pb::Cluster {
        name: "inbound|8080".into(),
        load_assignment: Some(ClusterLoadAssignment {
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let found = parsed(&message);
    let ClusterType::Static(endpoints) = &found.kind else {
        panic!("{:?}", found.kind);
    };
    assert_eq!(&*endpoints.cluster, "inbound|8080");
    assert_eq!(endpoints.endpoints[0].address.port(), 8080);
    assert_eq!((&*found.service, &*found.namespace), ("inbound|8080", ""));
    assert_eq!(found.connect_timeout, Duration::from_secs(5));
    assert_eq!(found.balancing, LoadBalancing::RoundRobin);
    assert_eq!((found.protocol, &found.tls), (None, &None));
    message.load_assignment.as_mut().expect("one").endpoints[0].lb_endpoints[0] =
        LbEndpoint::default();
    check(
        Kind::Cluster,
        "inbound|8080",
        &message,
        &["load_assignment.endpoints[0].lb_endpoints[0].endpoint: is missing"],
    );
    message.load_assignment = None;
    check(
        Kind::Cluster,
        "inbound|8080",
        &message,
        &["load_assignment: is missing in a STATIC cluster"],
    );
}

#[test]
fn discovery_types() {
    let named = eds(|c| {
        if let Some(config) = &mut c.eds_cluster_config {
            config.service_name = "other".into();
        }
    });
    assert_eq!(parsed(&named).kind, ClusterType::Eds("other".into()));
    let check = |kind, found: &str| {
        let problem =
            format!("type: {found} is not supported; use EDS, STATIC, ORIGINAL_DST or LOGICAL_DNS");
        bad(&eds(|c| c.cluster_discovery_type = Some(kind)), &[&problem]);
    };
    check(ClusterDiscoveryType::Type(1), "STRICT_DNS");
    check(
        ClusterDiscoveryType::ClusterType(Default::default()),
        "cluster_type",
    );
    let file = Some(ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::ApiConfigSource(
            Default::default(),
        )),
        ..Default::default()
    });
    bad(
        &eds(|c| c.eds_cluster_config.as_mut().expect("EDS").eds_config = file),
        &["eds_cluster_config.eds_config: must be ads"],
    );
    bad(
        &eds(|c| c.name = "other".into()),
        &["name: is \"other\", but the resource was sent as \"post.blog:80\""],
    );
}

#[test]
fn connect_timeouts() {
    bad(
        &eds(|c| c.connect_timeout = seconds(0)),
        &["connect_timeout: must be above 0 s"],
    );
    bad(
        &eds(|c| c.connect_timeout = seconds(-1)),
        &["connect_timeout: must be 0 s or more, and no more than 10,000 years"],
    );
}

#[test]
fn balancing_by_policy() {
    let check = |configs: &[Any], expect: LoadBalancing, warnings: &[&str]| {
        let found = parsed(&eds(|c| {
            c.load_balancing_policy = policies(configs);
            c.lb_policy = 5;
        }));
        assert_eq!(found.balancing, expect);
        assert_eq!(found.warnings, warnings);
    };
    let unknown = pack(&RingHash::default());
    check(
        &[unknown.clone(), pack(&RoundRobin::default())],
        LoadBalancing::RoundRobin,
        &[],
    );
    check(&[pack(&Random::default())], LoadBalancing::Random, &[]);
    let choices = |value| {
        pack(&LeastRequest {
            choice_count: Some(UInt32Value { value }),
            ..Default::default()
        })
    };
    check(&[choices(2)], LoadBalancing::LeastRequest, &[]);
    check(
        &[choices(3)],
        LoadBalancing::LeastRequest,
        &["load_balancing_policy.policies[0]: has no effect"],
    );
    let tuned = |decay, rtt| {
        let mut policy = PeakEwma {
            decay_time: Some(Default::default()),
            default_rtt: Some(Default::default()),
        };
        if let (Some(a), Some(b)) = (&mut policy.decay_time, &mut policy.default_rtt) {
            (a.seconds, b.nanos) = (decay, rtt);
        }
        pack(&policy)
    };
    let expect = LoadBalancing::PeakEwma {
        decay: Duration::from_secs(4),
        default_rtt: Duration::from_millis(5),
    };
    check(&[tuned(4, 5_000_000)], expect, &[]);
    bad(
        &eds(|c| c.load_balancing_policy = policies(&[tuned(0, 0)])),
        &[
            "load_balancing_policy.policies[0].decay_time: must be above 0 s",
            "load_balancing_policy.policies[0].default_rtt: must be above 0 s",
        ],
    );
    bad(
        &eds(|c| c.load_balancing_policy = policies(&[unknown, pack(&Maglev::default())])),
        &[
            "load_balancing_policy.policies: has none that is supported: PeakEwma, RoundRobin, \
           LeastRequest, Random",
        ],
    );
}

#[test]
fn balancing_by_enum() {
    let check = |policy, expect| {
        assert_eq!(parsed(&eds(|c| c.lb_policy = policy)).balancing, expect);
    };
    check(0, LoadBalancing::RoundRobin);
    check(1, LoadBalancing::LeastRequest);
    check(3, LoadBalancing::Random);
    let check = |policy, found: &str| {
        let problem = format!(
            "lb_policy: {found} is not supported; use ROUND_ROBIN, LEAST_REQUEST or RANDOM"
        );
        bad(&eds(|c| c.lb_policy = policy), &[&problem]);
    };
    check(2, "RING_HASH");
    check(5, "MAGLEV");
    check(6, "CLUSTER_PROVIDED");
    check(7, "LOAD_BALANCING_POLICY_CONFIG");
    check(99, "this policy");
}

#[test]
#[allow(deprecated)]
fn protocols() {
    use options::explicit_http_config::ProtocolConfig;
    let check = |message: pb::Cluster, expect| assert_eq!(parsed(&message).protocol, expect);
    let with = |config| with_options(&options(explicit(Some(config))));
    check(
        with(ProtocolConfig::HttpProtocolOptions(Default::default())),
        Some(HttpProtocol::Http1),
    );
    check(
        with(ProtocolConfig::Http2ProtocolOptions(Default::default())),
        Some(HttpProtocol::Http2),
    );
    check(eds(|_| {}), None);
    let old = eds(|c| c.http2_protocol_options = Some(Default::default()));
    check(old, Some(HttpProtocol::Http2));
    check(
        eds(|c| c.protocol_selection = 1),
        Some(HttpProtocol::Downstream),
    );
    let key = format!(
        "typed_extension_protocol_options[{}]",
        HttpProtocolOptions::full_name()
    );
    let refuse = |protocol, problem: &str| {
        let message = with_options(&options(protocol));
        bad(&message, &[&format!("{key}{problem}")]);
    };
    let none = ": has no protocol; set explicit_http_config or use_downstream_protocol_config";
    refuse(None, none);
    refuse(explicit(None), none);
    refuse(
        explicit(Some(ProtocolConfig::Http3ProtocolOptions(
            Default::default(),
        ))),
        ".explicit_http_config.http3_protocol_options: is not supported; leave it out",
    );
    refuse(
        Some(options::UpstreamProtocolOptions::AutoConfig(
            Default::default(),
        )),
        ".auto_config: is not supported; use explicit_http_config or \
         use_downstream_protocol_config",
    );
    let mut filtered = options(explicit(Some(ProtocolConfig::HttpProtocolOptions(
        Default::default(),
    ))));
    filtered.http_filters = vec![HttpFilter {
        config_type: Some(ConfigType::TypedConfig(pack(&UpstreamCodec::default()))),
        ..Default::default()
    }];
    check(with_options(&filtered), Some(HttpProtocol::Http1));
    filtered.http_filters.push(HttpFilter::default());
    filtered.header_validation_config = Some(Default::default());
    bad(
        &with_options(&filtered),
        &[
            &format!("{key}.http_filters: is not supported; leave it out"),
            &format!("{key}.header_validation_config: is not supported; leave it out"),
        ],
    );
    bad(
        &eds(|c| {
            c.typed_extension_protocol_options = [("envoy.x".to_owned(), Any::default())].into();
        }),
        &["typed_extension_protocol_options[envoy.x]: is not supported; leave it out"],
    );
}

#[test]
fn peers_are_named_exactly() {
    let nobody = eds(|c| c.transport_socket = socket(&tls(Vec::new())));
    assert_eq!(
        parsed(&nobody).tls.as_ref().map(|t| t.identities.len()),
        Some(0)
    );
    let at = "transport_socket.common_tls_context.combined_validation_context.\
              default_validation_context.match_typed_subject_alt_names";
    let mut dns = exact("spiffe://mesh.test/ns/b/sa/a");
    dns.san_type = 2;
    let mut any_case = exact("spiffe://mesh.test/ns/b/sa/a");
    any_case.matcher.as_mut().expect("matcher").ignore_case = true;
    let names = vec![
        exact("spiffe://mesh.test/ns/b/sa/a"),
        dns,
        any_case,
        san(MatchPattern::Prefix("spiffe://mesh.test/".into())),
        SubjectAltNameMatcher {
            san_type: 3,
            ..Default::default()
        },
        exact("post"),
    ];
    let Err(error) = "post".parse::<SpiffeId>() else {
        panic!("no SPIFFE ID");
    };
    bad(
        &eds(|c| c.transport_socket = socket(&tls(names))),
        &[
            &format!("{at}[1].san_type: must be URI"),
            &format!("{at}[2].matcher: must be exact, without ignore_case"),
            &format!("{at}[3].matcher: must be exact, without ignore_case"),
            &format!("{at}[4].matcher: must be exact, without ignore_case"),
            &format!("{at}[5].matcher.exact: \"post\": {error}"),
        ],
    );
}

#[test]
#[allow(deprecated)]
fn tls_contexts_never_fail_open() {
    let mut context = tls(Vec::new());
    context.sni = String::new();
    context.auto_host_sni = true;
    context.auto_sni_san_validation = true;
    bad(
        &eds(|c| c.transport_socket = socket(&context)),
        &[
            "transport_socket.auto_host_sni: is not supported; leave it out",
            "transport_socket.auto_sni_san_validation: is not supported; leave it out",
            "transport_socket.sni: \"\" must be a DNS name",
        ],
    );
    let mut context = tls(Vec::new());
    let common = context.common_tls_context.as_mut().expect("common");
    if let Some(ValidationContextType::CombinedValidationContext(combined)) =
        &mut common.validation_context_type
    {
        combined.validation_context_certificate_provider = Some(Default::default());
        combined.validation_context_sds_secret_config = None;
        let names = combined.default_validation_context.as_mut();
        let names = names.expect("default context");
        names.match_subject_alt_names = vec![Default::default()];
        names.system_root_certs = Some(Default::default());
    }
    let at = "transport_socket.common_tls_context.combined_validation_context";
    let default = format!("{at}.default_validation_context");
    bad(
        &eds(|c| c.transport_socket = socket(&context)),
        &[
            &format!(
                "{at}.validation_context_certificate_provider: is not supported; leave it out"
            ),
            &format!("{default}.system_root_certs: is not supported; leave it out"),
            &format!("{default}.match_subject_alt_names: is not supported; leave it out"),
            &format!("{at}.validation_context_sds_secret_config: is missing"),
        ],
    );
}

#[test]
fn what_would_change_the_destination_is_rejected() {
    let message = eds(|c| {
        c.transport_socket_matches = vec![Default::default()];
        c.transport_socket_matcher = Some(Default::default());
        c.filters = vec![Default::default()];
        c.lb_subset_config = Some(Default::default());
        c.upstream_config = Some(Default::default());
    });
    let fields = [
        "transport_socket_matches",
        "transport_socket_matcher",
        "filters",
        "lb_subset_config",
        "upstream_config",
    ];
    let expect = fields.map(|field| format!("{field}: is not supported; leave it out"));
    bad(&message, &expect.each_ref().map(String::as_str));
}

#[test]
fn warnings_name_what_has_no_effect() {
    let check = |change: fn(&mut pb::Cluster), expect: &[&str]| {
        assert_eq!(parsed(&eds(change)).warnings, expect);
    };
    check(|_| {}, &[]);
    check(
        |c| {
            c.circuit_breakers = Some(pb::CircuitBreakers {
                thresholds: vec![Thresholds {
                    priority: 1,
                    track_remaining: true,
                    ..Default::default()
                }],
                ..Default::default()
            });
            c.common_lb_config = Some(Default::default());
        },
        &[],
    );
    check(
        |c| {
            c.circuit_breakers = Some(pb::CircuitBreakers {
                per_host_thresholds: vec![Thresholds {
                    max_connections: Some(UInt32Value { value: 1 }),
                    ..Default::default()
                }],
                ..Default::default()
            });
            c.outlier_detection = Some(Default::default());
            c.health_checks = vec![Default::default()];
            c.load_assignment = Some(Default::default());
        },
        &[
            "circuit_breakers: has no effect",
            "outlier_detection: has no effect",
            "health_checks: has no effect",
            "load_assignment: has no effect",
        ],
    );
}

#[test]
fn the_original_destination_needs_no_endpoints() {
    let original = |change: fn(&mut pb::Cluster)| {
        eds(|c| {
            c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(4));
            c.lb_policy = 6;
            c.eds_cluster_config = None;
            change(c);
        })
    };
    assert_eq!(parsed(&original(|_| {})).kind, ClusterType::Original);
    bad(
        &original(|c| c.load_assignment = Some(Default::default())),
        &["load_assignment: is not supported; leave it out"],
    );
}

#[test]
fn a_name_has_one_endpoint() {
    let named = |hosts: &[(&str, u32)]| {
        let endpoint = |(host, port): &(&str, u32)| LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
                address: Some(Address {
                    address: Some(address::Address::SocketAddress(SocketAddress {
                        address: (*host).into(),
                        port_specifier: Some(socket_address::PortSpecifier::PortValue(*port)),
                        ..Default::default()
                    })),
                }),
                ..Default::default()
            })),
            ..Default::default()
        };
        eds(|c| {
            c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(2));
            c.eds_cluster_config = None;
            c.load_assignment = Some(ClusterLoadAssignment {
                endpoints: vec![LocalityLbEndpoints {
                    lb_endpoints: hosts.iter().map(endpoint).collect(),
                    ..Default::default()
                }],
                ..Default::default()
            });
        })
    };
    let expect = ClusterType::Dns {
        host: "db.example.com".into(),
        port: 5432,
    };
    assert_eq!(parsed(&named(&[("db.example.com", 5432)])).kind, expect);
    let problem = "load_assignment: must have exactly one endpoint with a name and a port";
    for hosts in [
        &[][..],
        &[("", 1)],
        &[("a", 0)],
        &[("a", 65536)],
        &[("a", 1), ("b", 1)],
    ] {
        bad(&named(hosts), &[problem]);
    }
}
