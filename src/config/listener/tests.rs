//! Tables of good and bad messages.

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
        Any, BoolValue, Duration as DurationPb, ListValue, Struct, UInt32Value, Value as Json,
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
        config_source_specifier: Some(
            config_source::ConfigSourceSpecifier::Ads(Default::default()),
        ),
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
        additional: Vec::new(),
        arrival: Arrival::Direct,
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
            }),
        }],
        dns: None,
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
        let Filter::Http(http) = &parsed(&listener(vec![manager(change)])).chains[0].filter else {
            panic!("no HTTP");
        };
        assert_eq!((http.idle_timeout, http.websocket, http.connect), expect);
    };
    check(
        |m| {
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
        (Some(Duration::from_secs(7)), true, false),
    );
    check(|_| {}, (Some(Duration::from_secs(3600)), false, false));
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
fn how_connections_arrive() {
    let no = || Some(BoolValue { value: false });
    let arrival = |bind: Option<BoolValue>, original: Option<BoolValue>, transparent| {
        let mut message = listener(vec![tcp(|_| {})]);
        message.bind_to_port = bind;
        message.use_original_dst = original;
        message.transparent = transparent;
        message
    };
    for (message, expect) in [
        (arrival(None, None, None), Arrival::Direct),
        (arrival(yes(), no(), no()), Arrival::Direct),
        (arrival(None, yes(), None), Arrival::Redirected),
        (arrival(None, yes(), yes()), Arrival::Transparent),
        (arrival(no(), None, None), Arrival::HandedOver),
    ] {
        assert_eq!(parsed(&message).arrival, expect, "{message:?}");
    }
    bad(
        &arrival(None, None, yes()),
        &["transparent: needs use_original_dst"],
    );
    let both = "bind_to_port: must not be false with use_original_dst or transparent";
    bad(&arrival(no(), yes(), None), &[both]);
    bad(&arrival(no(), None, yes()), &[both]);
}

#[test]
fn a_listener_may_have_several_addresses() {
    let mut message = listener(vec![tcp(|_| {})]);
    let other = SocketAddress {
        address: "::1".into(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(15001)),
        ..Default::default()
    };
    message.additional_addresses = vec![pb::AdditionalAddress {
        address: Some(Address {
            address: Some(address::Address::SocketAddress(other)),
        }),
        ..Default::default()
    }];
    let expect: SocketAddr = "[::1]:15001".parse().expect("address");
    assert_eq!(parsed(&message).additional, [expect]);
    message.additional_addresses.push(Default::default());
    bad(
        &message,
        &["additional_addresses[1].address: is missing; set socket_address"],
    );
}

#[test]
fn dns_has_a_listener_of_its_own() {
    let dns = |filters: Vec<Any>| {
        let mut message = listener(vec![]);
        if let Some(Address {
            address: Some(address::Address::SocketAddress(address)),
        }) = &mut message.address
        {
            address.protocol = socket_address::Protocol::Udp as i32;
        }
        message.udp_listener_config = Some(Default::default());
        message.listener_filters = filters
            .into_iter()
            .map(|config| pb::ListenerFilter {
                config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
                ..Default::default()
            })
            .collect();
        message
    };
    let filter = || pack(&DnsFilterConfig::default());
    let mut message = dns(vec![filter()]);
    let plain = parsed(&message).dns.clone().expect("DNS");
    assert_eq!(
        (&*plain.cluster_domain, plain.external.len()),
        ("cluster.local", 0)
    );
    let text = |text: &str| Json {
        kind: Some(JsonKind::StringValue(text.into())),
    };
    let names = ListValue {
        values: vec![text("db.example.com")],
    };
    message.metadata = metadata(&[
        ("cluster_domain", JsonKind::StringValue("mesh.test".into())),
        ("external", JsonKind::ListValue(names)),
    ]);
    let own = parsed(&message).dns.clone().expect("DNS");
    assert_eq!(&*own.cluster_domain, "mesh.test");
    assert_eq!(own.external, ["db.example.com".into()]);
    message.metadata = metadata(&[("external", JsonKind::StringValue("x".into()))]);
    bad(
        &message,
        &["metadata[weft.dev].external: must be a list of strings"],
    );
    let only =
        "udp_listener_config: is for DNS only: the one listener filter must be DnsFilterConfig";
    let none = "filter_chains: must have at least one";
    bad(&dns(vec![]), &[only, none]);
    let mut message = dns(vec![filter()]);
    message.filter_chains = vec![tcp(|_| {})];
    bad(
        &message,
        &["filter_chains: must be empty where DNS is served"],
    );
}

#[test]
#[allow(deprecated)]
fn what_would_change_the_connections_is_rejected() {
    let mut message = listener(vec![tcp(|_| {})]);
    message.fcds_config = Some(Default::default());
    message.filter_chain_matcher = Some(Default::default());
    message.deprecated_v1 = Some(Default::default());
    message.api_listener = Some(Default::default());
    message.listener_specifier = Some(pb::listener::ListenerSpecifier::InternalListener(
        Default::default(),
    ));
    let fields = [
        "fcds_config",
        "filter_chain_matcher",
        "deprecated_v1",
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
    let expect =
        fields.map(|field| format!("filter_chain_match.{field}: is not supported; leave it out"));
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
        &["http_filters[0]: a filter without typed_config is not supported; only the router is"],
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
            m.route_specifier = Some(hcm::RouteSpecifier::ScopedRoutes(ScopedRoutes::default()));
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
