use std::{collections::BTreeMap, time::Duration};

use super::{Bootstrap, Capture, ExitAfter};
use crate::limits::Limits;

fn parse(settings: &[(&str, &str)]) -> Result<Bootstrap, String> {
    let mut map: BTreeMap<String, String> = [
        ("WORKLOAD", "blog/web"),
        ("TOKEN", &format!("{}.a.b", "0".repeat(64))),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    for (name, value) in settings {
        map.insert((*name).to_owned(), (*value).to_owned());
    }
    Bootstrap::parse(&map, None).map_err(|error| error.to_string())
}

#[test]
fn defaults_hold() {
    let b = parse(&[]).unwrap();
    assert_eq!((b.namespace.as_str(), b.workload.as_str()), ("blog", "web"));
    assert_eq!(b.admin.to_string(), "127.0.0.1:14000");
    assert_eq!(b.workers, 1);
    assert_eq!(b.grace.as_secs(), 30);
    assert_eq!((b.state, b.exit_after), (None, ExitAfter::Connections));
    assert_eq!(b.upgrade_grace, Duration::from_secs(600));
    assert!(b.probes.is_empty() && b.tcp_probes.is_empty() && b.grpc_probes.is_empty());
    assert!(b.dns_upstreams.is_empty() && b.registration.is_none());
}

#[test]
fn who_asks_a_sidecar_for_something_needs_its_address_only() {
    let admin = |settings: &[(&str, &str)]| {
        let settings = settings
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let admin = Bootstrap::parse_admin(&settings.collect());
        admin.map_or_else(|error| error.to_string(), |admin| admin.to_string())
    };
    assert_eq!(admin(&[]), "127.0.0.1:14000");
    assert_eq!(admin(&[("ADMIN", "127.0.0.1:1")]), "127.0.0.1:1");
    let elsewhere = [("TOKEN_FILE", "/not/there"), ("WORKLOAD", "")];
    assert_eq!(admin(&elsewhere), "127.0.0.1:14000");
    let wanted = "WEFT_PROXY_ADMIN: `here` is not an address such as 127.0.0.1:14000";
    assert_eq!(admin(&[("ADMIN", "here")]), wanted);
}

#[test]
fn limits_are_read_and_refused_outside_of_their_range() {
    assert_eq!(parse(&[]).unwrap().limits, Limits::default());
    let limits = parse(&[("MAX_FIELDS", "16"), ("MEMORY", "0"), ("BODY_TIMEOUT", "5")]);
    let limits = limits.unwrap().limits;
    assert_eq!((limits.max_fields, limits.memory), (16, 0));
    assert_eq!(limits.body_timeout, Duration::from_secs(5));
    let wrong = [
        ("MAX_FIELDS", "15"),
        ("MAX_CONNECTIONS", "1"),
        ("HEAD_TIMEOUT", ""),
    ];
    let wanted = "WEFT_PROXY_MAX_FIELDS: `15` is not a number from 16 to 10000\n\
                  WEFT_PROXY_HEAD_TIMEOUT: `` is not a number from 1 to 3600\n\
                  WEFT_PROXY_MAX_CONNECTIONS: `1` is not a number from 16 to 10000000, \
                  or 0: half of the files that the process may open";
    assert_eq!(parse(&wrong).unwrap_err(), wanted);
    let apart = parse(&[
        ("HTTP2_CONNECTION_WINDOW", "262144"),
        ("STREAM_WINDOW", "65537"),
    ]);
    assert_eq!(
        apart.unwrap_err(),
        "WEFT_PROXY_HTTP2_CONNECTION_WINDOW: 262144 is less than four times \
         WEFT_PROXY_STREAM_WINDOW, 262148: one slow reader would stop all others"
    );
}

#[test]
fn lists_are_read() {
    let b = parse(&[
        ("STATE", "/var/lib/weft"),
        ("EXIT_AFTER", "application"),
        ("PROBES", "8080/healthz, 8081/ready?full=1,"),
        ("TCP_PROBES", "9000"),
        ("GRPC_PROBES", "50051,50051/shop.Cart"),
        ("DNS_UPSTREAMS", "10.96.0.10,[fd00::1]:5353,fd00::2"),
        ("REGISTER", "true"),
        ("ADDRESSES", "10.9.0.2,fd00:9::2"),
        ("LABELS", "app=web,track="),
        ("PORTS", "http:8080,9090"),
        ("CAPTURE", "tproxy"),
        ("EXCLUDE_INBOUND", "9999,9998"),
    ])
    .unwrap();
    assert_eq!(b.state.unwrap().to_str(), Some("/var/lib/weft"));
    assert_eq!(b.exit_after, ExitAfter::Application);
    let probes: Vec<String> = b.probes.iter().map(|(p, q)| format!("{p}{q}")).collect();
    assert_eq!(probes, ["8080/healthz", "8081/ready?full=1"]);
    assert_eq!(b.tcp_probes, [9000]);
    let cart = Some("shop.Cart".to_owned());
    assert_eq!(b.grpc_probes, [(50_051, None), (50_051, cart)]);
    let resolvers: Vec<String> = b.dns_upstreams.iter().map(ToString::to_string).collect();
    assert_eq!(
        resolvers,
        ["10.96.0.10:53", "[fd00::1]:5353", "[fd00::2]:53"]
    );
    let r = b.registration.unwrap();
    assert_eq!(r.addresses.len(), 2);
    assert_eq!(
        (r.labels["app"].as_str(), r.labels["track"].as_str()),
        ("web", "")
    );
    assert_eq!(r.ports, [("http".to_owned(), 8080), (String::new(), 9090)]);
    assert_eq!(r.capture, Capture::Tproxy);
    assert_eq!(r.exclude_inbound, [9999, 9998]);
}

#[test]
fn with_a_state_directory_a_token_may_be_missing_but_not_wrong() {
    let without = [("TOKEN", ""), ("STATE", "/x")];
    let error = parse(&without).unwrap().token.unwrap_err();
    assert!(error.contains("set WEFT_PROXY_TOKEN"), "{error}");
    let gone = [("TOKEN", ""), ("STATE", "/x"), ("TOKEN_FILE", "/none")];
    let error = parse(&gone).unwrap().token.unwrap_err();
    assert!(error.contains("WEFT_PROXY_TOKEN_FILE: /none"), "{error}");
    assert!(
        parse(&[("TOKEN", "")])
            .unwrap_err()
            .contains("set WEFT_PROXY_TOKEN")
    );
    let wrong = parse(&[("TOKEN", "abc"), ("STATE", "/x")]).unwrap_err();
    assert!(wrong.contains("not of the form"), "{wrong}");
}

#[test]
fn variables_of_kubernetes_are_no_settings() {
    for name in ["SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_80_TCP_ADDR"] {
        assert!(parse(&[(name, "tcp://10.0.0.1:80")]).is_ok(), "{name}");
    }
}

#[test]
fn each_mistake_is_named() {
    for (name, value, expected) in [
        ("ADMIN", "x", "WEFT_PROXY_ADMIN: `x` is not an address"),
        ("WORKERS", "0", "a number from 1 to 64"),
        ("WORKERS", "65", "a number from 1 to 64"),
        ("GRACE", "-1", "a number from 0 to 3600"),
        ("ACCESS_LOG", "some", "off, errors or all"),
        ("WORKLOAD", "web", "namespace/name"),
        ("CONTROL", "host", "is not host:port"),
        ("TOKEN", "abc", "the join token is not of the form"),
        ("ADMNI", "x", "WEFT_PROXY_ADMNI is no setting"),
        ("STATE", "here", "`here` is not an absolute path"),
        (
            "EXIT_AFTER",
            "never",
            "`never` is not connections or application",
        ),
        ("UPGRADE_GRACE", "90000", "a number from 0 to 86400"),
        ("PROBES", "8080", "`8080` is not a port and a path"),
        ("PROBES", "0/x", "`0/x` is not a port and a path"),
        ("TCP_PROBES", "http", "`http` is not a port"),
        ("GRPC_PROBES", "50051/", "`50051/` is not a port, or"),
        ("GRPC_PROBES", "50051/a b", "is not a port, or"),
        (
            "DNS_UPSTREAMS",
            "dns.google",
            "`dns.google` is not an address of a resolver",
        ),
        (
            "DNS_UPSTREAMS",
            "1.1.1.1:0",
            "is not an address of a resolver",
        ),
        ("REGISTER", "yes", "`yes` is not true or false"),
        (
            "LABELS",
            "app=web",
            "no effect without WEFT_PROXY_REGISTER=true",
        ),
    ] {
        let error = parse(&[(name, value)]).unwrap_err();
        assert!(error.contains(expected), "{name}={value}: {error}");
    }
    for (name, value, expected) in [
        ("ADDRESSES", "", "needs the addresses"),
        (
            "ADDRESSES",
            "127.0.0.1",
            "`127.0.0.1` is not an address where peers",
        ),
        ("LABELS", "app", "`app` is not a label"),
        ("PORTS", ":80", "`:80` is not a port such as"),
        ("CAPTURE", "yes", "redirect, tproxy or off"),
        ("INBOUND_PORTS", "80", "all or declared"),
        ("EXCLUDE_INBOUND", "70000", "is not a port"),
    ] {
        let mut settings = vec![("REGISTER", "true"), ("ADDRESSES", "10.0.0.7")];
        settings.push((name, value));
        let error = parse(&settings).unwrap_err();
        assert!(error.contains(expected), "{name}={value}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let many = vec!["80"; 65].join(",");
    let error = parse(&[("TCP_PROBES", &many)]).unwrap_err();
    assert!(error.contains("more than 64 items"), "{error}");
    let both = parse(&[("WORKERS", "x"), ("GRACE", "y")]).unwrap_err();
    assert_eq!(both.lines().count(), 2);
}
