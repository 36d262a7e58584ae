//! Tables of good and bad messages, and of what they match.

use http::{HeaderName, Request};
use weft_api::{
    Kind,
    any::pack,
    envoy::{
        config::core::v3::{
            self as core, DataSource, HeaderValue as HeaderPb, HeaderValueOption, data_source,
        },
        r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
    },
    google::protobuf::{
        BoolValue, Duration as DurationPb, ListValue, Struct, UInt32Value, Value as Json,
        value::Kind as JsonKind,
    },
};

use super::*;
use crate::config::{
    Value,
    matcher::{HeaderTest, StringMatcher},
    testing::{check, good},
};

type Path = pb::route_match::PathSpecifier;
type To = pb::route_action::ClusterSpecifier;
type Host = pb::route_action::HostRewriteSpecifier;

fn seconds(seconds: i64) -> Option<DurationPb> {
    Some(DurationPb { seconds, nanos: 0 })
}

fn forward(change: impl FnOnce(&mut pb::RouteAction)) -> pb::Route {
    let mut action = pb::RouteAction {
        cluster_specifier: Some(To::Cluster("post.blog:80".into())),
        ..Default::default()
    };
    change(&mut action);
    route(Path::Prefix("/".into()), pb::route::Action::Route(action))
}

fn redirect(change: impl FnOnce(&mut pb::RedirectAction)) -> pb::Route {
    let mut action = pb::RedirectAction::default();
    change(&mut action);
    route(
        Path::Prefix("/".into()),
        pb::route::Action::Redirect(action),
    )
}

fn direct(status: u32, body: Option<data_source::Specifier>) -> pb::Route {
    let action = pb::DirectResponseAction {
        status,
        body: body.map(|specifier| DataSource {
            specifier: Some(specifier),
            ..Default::default()
        }),
        ..Default::default()
    };
    route(
        Path::Prefix("/".into()),
        pb::route::Action::DirectResponse(action),
    )
}

fn route(path: Path, action: pb::route::Action) -> pb::Route {
    pb::Route {
        r#match: Some(pb::RouteMatch {
            path_specifier: Some(path),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    }
}

fn host(routes: Vec<pb::Route>) -> pb::VirtualHost {
    pb::VirtualHost {
        name: "post".into(),
        domains: vec!["*".into()],
        routes,
        ..Default::default()
    }
}

fn table(hosts: Vec<pb::VirtualHost>) -> pb::RouteConfiguration {
    pb::RouteConfiguration {
        name: "outbound".into(),
        virtual_hosts: hosts,
        ..Default::default()
    }
}

fn parsed(message: &pb::VirtualHost) -> Arc<VirtualHost> {
    match good(Kind::VirtualHost, "outbound/post", message) {
        Value::VirtualHost(host) => host,
        other => panic!("{other:?}"),
    }
}

fn parsed_table(message: &pb::RouteConfiguration) -> Arc<RouteTable> {
    match good(Kind::Route, "outbound", message) {
        Value::Route(table) => table,
        other => panic!("{other:?}"),
    }
}

fn parsed_route(message: pb::Route) -> Route {
    parsed(&host(vec![message])).routes[0].clone()
}

fn forwarded(message: pb::Route) -> Forward {
    match parsed_route(message).action {
        RouteAction::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

/// The problems of one route, without the path that leads to it.
fn bad(message: pb::Route, expect: &[&str]) {
    let expect: Vec<String> = expect.iter().map(|l| format!("routes[0].{l}")).collect();
    let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
    check(
        Kind::VirtualHost,
        "outbound/post",
        &host(vec![message]),
        &expect,
    );
}

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher {
        regex: text.into(),
        engine_type: None,
    }
}

#[test]
fn a_table_without_hosts_looks_them_up() {
    let mut message = table(Vec::new());
    assert!(!parsed_table(&message).on_demand);
    message.vhds = Some(pb::Vhds {
        config_source: Some(core::ConfigSource {
            config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
                Default::default(),
            )),
            ..Default::default()
        }),
    });
    let found = parsed_table(&message);
    assert!(found.on_demand && found.virtual_hosts.is_empty());
    assert_eq!(&*found.name, "outbound");
}

#[test]
fn domains() {
    let check = |text: &str, expect: Domain| {
        let mut message = host(Vec::new());
        message.domains = vec![text.into()];
        assert_eq!(parsed(&message).domains, std::slice::from_ref(&expect));
        assert_eq!(expect.to_string(), text.to_ascii_lowercase());
    };
    check("*", Domain::Any);
    check("Post.Blog:80", Domain::Exact("post.blog:80".into()));
    check("*.Blog", Domain::Suffix(".blog".into()));
    check("*-x.blog", Domain::Suffix("-x.blog".into()));
    check("post.*", Domain::Prefix("post.".into()));
}

#[test]
fn bad_domains() {
    let check = |domains: &[&str], expect: &[&str]| {
        let mut message = host(Vec::new());
        message.domains = domains.iter().map(ToString::to_string).collect();
        check(Kind::VirtualHost, "outbound/post", &message, expect);
    };
    check(&[], &["domains: must have at least one"]);
    check(
        &["", "a.*.b", "**"],
        &[
            "domains[0]: \"\" must be a name, *.name, name.* or *",
            "domains[1]: \"a.*.b\" must be a name, *.name, name.* or *",
            "domains[2]: \"**\" must be a name, *.name, name.* or *",
        ],
    );
    check(&["a", "A"], &["domains[1]: \"A\" is there twice"]);
}

#[test]
fn a_domain_has_one_host_and_a_name_too() {
    let mut first = host(Vec::new());
    first.domains = vec!["*.b".into(), "a".into()];
    let mut second = first.clone();
    second.name = "other".into();
    second.domains = vec!["A".into(), "b".into()];
    let third = pb::VirtualHost {
        domains: vec!["c".into()],
        ..first.clone()
    };
    check(
        Kind::Route,
        "outbound",
        &table(vec![first, second, third]),
        &[
            "virtual_hosts: \"post\" and \"other\" both have the domain \"a\"",
            "virtual_hosts: the name \"post\" is there twice",
        ],
    );
}

#[test]
fn the_first_route_that_matches_wins() {
    let to = |path: Path| {
        let mut message = forward(|_| {});
        message.r#match = Some(pb::RouteMatch {
            path_specifier: Some(path),
            ..Default::default()
        });
        message
    };
    let mut grpc = to(Path::Path("/blog.Posts/Get".into()));
    let mut post = to(Path::PathSeparatedPrefix("/v2".into()));
    let mut any_case = to(Path::Path("/Case".into()));
    if let (Some(grpc), Some(post), Some(any_case)) =
        (&mut grpc.r#match, &mut post.r#match, &mut any_case.r#match)
    {
        grpc.grpc = Some(Default::default());
        #[allow(deprecated)]
        let exact = pb::header_matcher::HeaderMatchSpecifier::ExactMatch("POST".into());
        post.headers = vec![pb::HeaderMatcher {
            name: ":method".into(),
            header_match_specifier: Some(exact),
            ..Default::default()
        }];
        post.query_parameters = vec![pb::QueryParameterMatcher {
            name: "q".into(),
            ..Default::default()
        }];
        any_case.case_sensitive = Some(BoolValue { value: false });
    }
    let found = parsed(&host(vec![
        grpc,
        post,
        any_case,
        to(Path::SafeRegex(regex("/v[0-9]+"))),
        to(Path::Path("/only".into())),
        to(Path::ConnectMatcher(Default::default())),
    ]));
    let check = |method: &str, uri: &str, content: Option<&str>, expect: Option<usize>| {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(content) = content {
            request = request.header("content-type", content);
        }
        let request = request.body(()).expect("request");
        let key = RequestKey {
            method: request.method(),
            uri: request.uri(),
            path: request.uri().path(),
            authority: "post",
            headers: request.headers(),
        };
        assert_eq!(found.find(&key), expect, "{method} {uri} {content:?}");
    };
    let grpc = "/blog.Posts/Get";
    check("POST", grpc, Some("application/grpc"), Some(0));
    check("POST", grpc, Some("application/grpc+proto"), Some(0));
    check("POST", grpc, Some("application/grpc-web"), None);
    check("POST", grpc, None, None);
    check("POST", "/v2/x?q=1", None, Some(1));
    check("POST", "http://post/v2?q", None, Some(1));
    check("GET", "/v2?q=1", None, Some(3));
    check("POST", "/v2", None, Some(3));
    check("POST", "/v2/x", None, None);
    check("GET", "/cASE", None, Some(2));
    check("GET", "/v33", None, Some(3));
    check("GET", "/v33/", None, None);
    check("GET", "/only", None, Some(4));
    check("GET", "/ONLY", None, None);
    check("CONNECT", "post:80", None, Some(5));
    // Extended CONNECT has a path and is a request like any other.
    check("CONNECT", "http://post/only", None, Some(4));
    check("OPTIONS", "*", None, None);
}

#[test]
fn a_connect_is_for_no_other_route() {
    let found = parsed(&host(vec![forward(|_| {})]));
    let request = Request::connect("post:80").body(()).expect("request");
    let key = RequestKey {
        method: request.method(),
        uri: request.uri(),
        path: request.uri().path(),
        authority: "post",
        headers: request.headers(),
    };
    assert_eq!(found.find(&key), None);
}

#[test]
fn bad_matches() {
    let bad_match = |change: fn(&mut pb::RouteMatch), expect: &[&str]| {
        let mut message = forward(|_| {});
        change(message.r#match.as_mut().expect("match"));
        bad(message, expect);
    };
    let mut without = forward(|_| {});
    without.r#match = None;
    bad(without, &["match: is missing"]);
    bad_match(
        |m| m.path_specifier = None,
        &[
            "match: has no path; set path, prefix, path_separated_prefix, safe_regex or \
            connect_matcher",
        ],
    );
    bad_match(
        |m| {
            m.runtime_fraction = Some(Default::default());
            m.cookies = vec![Default::default()];
            m.tls_context = Some(Default::default());
            m.dynamic_metadata = vec![Default::default()];
            m.filter_state = vec![Default::default()];
        },
        &[
            "match.runtime_fraction: is not supported; leave it out",
            "match.cookies: is not supported; leave it out",
            "match.tls_context: is not supported; leave it out",
            "match.dynamic_metadata: is not supported; leave it out",
            "match.filter_state: is not supported; leave it out",
        ],
    );
    bad_match(
        |m| {
            m.headers = vec![Default::default()];
            m.query_parameters = vec![Default::default()];
            m.path_specifier = Some(Path::SafeRegex(Default::default()));
        },
        &[
            "match.headers[0].name: \"\" is no header name",
            "match.query_parameters[0].name: must not be empty",
            "match.safe_regex: must not be empty",
        ],
    );
}

#[test]
fn forwarding_has_defaults() {
    let expect = Forward {
        clusters: WeightedClusters::one("post.blog:80".into()),
        timeout: Some(Duration::from_secs(15)),
        per_try_timeout: None,
        path_rewrite: None,
        host_rewrite: None,
        terminate_connect: false,
    };
    assert_eq!(forwarded(forward(|_| {})), expect);
    let route = parsed_route(forward(|_| {}));
    assert!(route.matches.case_sensitive && route.request_headers.is_empty());
    assert_eq!(&*route.name, "");
}

#[test]
fn timeouts() {
    assert_eq!(forwarded(forward(|a| a.timeout = seconds(0))).timeout, None);
    let retry = |timeout| pb::RetryPolicy {
        num_retries: Some(UInt32Value { value: 0 }),
        per_try_timeout: seconds(timeout),
        ..Default::default()
    };
    let own = forward(|a| {
        a.timeout = seconds(3);
        a.retry_policy = Some(retry(2));
    });
    let found = forwarded(own.clone());
    assert_eq!(found.timeout, Some(Duration::from_secs(3)));
    assert_eq!(found.per_try_timeout, Some(Duration::from_secs(2)));
    let mut message = host(vec![own, forward(|_| {})]);
    message.retry_policy = Some(retry(9));
    let found = parsed(&message);
    let tries = found.routes.iter().map(|r| match &r.action {
        RouteAction::Forward(forward) => forward.per_try_timeout.map(|d| d.as_secs()),
        other => panic!("{other:?}"),
    });
    assert_eq!(tries.collect::<Vec<_>>(), [Some(2), Some(9)]);
    let range = "must be 0 s or more, and no more than 10,000 years";
    bad(
        forward(|a| {
            a.timeout = seconds(-1);
            a.retry_policy = Some(retry(-1));
        }),
        &[
            &format!("route.timeout: {range}"),
            &format!("route.retry_policy.per_try_timeout: {range}"),
        ],
    );
}

fn share(name: &str, weight: u32) -> pb::weighted_cluster::ClusterWeight {
    pb::weighted_cluster::ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    }
}

fn weighted(clusters: Vec<pb::weighted_cluster::ClusterWeight>) -> pb::Route {
    forward(|action| {
        action.cluster_specifier = Some(To::WeightedClusters(pb::WeightedCluster {
            clusters,
            ..Default::default()
        }));
    })
}

#[test]
fn weights_sum_and_choose() {
    let absent = pb::weighted_cluster::ClusterWeight {
        weight: None,
        ..share("d", 0)
    };
    let message = weighted(vec![share("a", 1), share("b", 0), share("c", 2), absent]);
    let clusters = forwarded(message).clusters;
    let names: Vec<_> = clusters.clusters.iter().map(|c| &*c.name).collect();
    assert_eq!((names, clusters.total_weight), (vec!["a", "c"], 3));
    let chosen: Vec<_> = (0..6).map(|random| clusters.choose(random)).collect();
    assert_eq!(chosen, [0, 1, 1, 0, 1, 1]);
    assert_eq!(clusters.choose(u64::MAX), 0);
}

#[test]
fn bad_clusters() {
    let to = |to: Option<To>| forward(|action| action.cluster_specifier = to);
    bad(
        to(None),
        &["route: has no cluster; set cluster or weighted_clusters"],
    );
    bad(
        to(Some(To::Cluster(String::new()))),
        &["route.cluster: must not be empty"],
    );
    bad(
        to(Some(To::ClusterHeader("x".into()))),
        &["route.cluster_header: is not supported; leave it out"],
    );
    bad(
        to(Some(To::ClusterSpecifierPlugin("x".into()))),
        &["route.cluster_specifier_plugin: is not supported; leave it out"],
    );
    bad(
        weighted(vec![share("a", 0)]),
        &["route.weighted_clusters.clusters: must have a weight above 0 in sum"],
    );
    bad(
        weighted(vec![share("a", u32::MAX), share("b", 1)]),
        &["route.weighted_clusters.clusters: the weights sum to more than 4294967295"],
    );
    let odd = pb::weighted_cluster::ClusterWeight {
        cluster_header: "x".into(),
        metadata_match: Some(Default::default()),
        host_rewrite_specifier: Some(
            pb::weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(
                "x".into(),
            ),
        ),
        ..share("", 1)
    };
    let at = "route.weighted_clusters.clusters";
    bad(
        weighted(vec![share("a", 1), odd]),
        &[
            &format!("{at}[1].cluster_header: is not supported; leave it out"),
            &format!("{at}[1].metadata_match: is not supported; leave it out"),
            &format!("{at}[1].host_rewrite_literal: is not supported; leave it out"),
            &format!("{at}[1].name: must not be empty"),
        ],
    );
}

fn rewrite(pattern: &str, substitution: &str) -> pb::Route {
    forward(|action| {
        action.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(regex(pattern)),
            substitution: substitution.into(),
        });
    })
}

#[test]
fn path_rewrites() {
    let check = |pattern, substitution, path, expect| {
        let found = forwarded(rewrite(pattern, substitution)).path_rewrite;
        let Some(PathRewrite::Regex(pattern, substitution)) = found else {
            panic!("{found:?}");
        };
        assert_eq!(pattern.replace_all(path, &*substitution), expect);
    };
    check("^[^?]*", "/new", "/a/b", "/new");
    check("^/(\\w+)/(\\w+)$", "/\\2/\\1x", "/a/b", "/b/ax");
    check("a", "$1", "/a/a", "/$1/$1");
    check("a", "\\0\\0", "/a", "/aa");
    check("a", "\\\\", "/a", "/\\");
    let prefix = forward(|a| a.prefix_rewrite = "/new".into());
    assert_eq!(
        forwarded(prefix).path_rewrite,
        Some(PathRewrite::Prefix("/new".into()))
    );
}

#[test]
fn bad_path_rewrites() {
    bad(
        rewrite("(", ""),
        &["route.regex_rewrite.pattern.regex: is no valid regex: unclosed group"],
    );
    let substitution = "route.regex_rewrite.substitution: a backslash must be followed by a \
                        backslash or the number of a group";
    bad(rewrite("a", "\\1"), &[substitution]);
    bad(rewrite("a", "\\x"), &[substitution]);
    bad(rewrite("a", "\\"), &[substitution]);
    bad(
        forward(|a| a.regex_rewrite = Some(Default::default())),
        &["route.regex_rewrite.pattern: is missing"],
    );
    let mut both = rewrite("a", "b");
    if let Some(pb::route::Action::Route(action)) = &mut both.action {
        action.prefix_rewrite = "/x".into();
    }
    bad(
        both,
        &["route.regex_rewrite: excludes prefix_rewrite; set one of them"],
    );
    bad(
        forward(|a| a.prefix_rewrite = "/a b".into()),
        &["route.prefix_rewrite: must be a path: ASCII without spaces, '?' and '#'"],
    );
}

#[test]
fn host_rewrites() {
    let to = |to: Host| forward(|action| action.host_rewrite_specifier = Some(to));
    let literal = |host: &str| to(Host::HostRewriteLiteral(host.into()));
    let check = |message, expect: Option<&'static str>| {
        let expect = expect.map(|host| HostRewrite::Literal(HeaderValue::from_static(host)));
        assert_eq!(forwarded(message).host_rewrite, expect);
    };
    check(literal("post:80"), Some("post:80"));
    check(literal(""), None);
    check(to(Host::AutoHostRewrite(BoolValue { value: false })), None);
    bad(
        literal("a b"),
        &["route.host_rewrite_literal: \"a b\" is no authority"],
    );
    bad(
        to(Host::AutoHostRewrite(BoolValue { value: true })),
        &["route.auto_host_rewrite: is not supported; leave it out"],
    );
    bad(
        to(Host::HostRewriteHeader("x".into())),
        &["route.host_rewrite_header: is not supported; leave it out"],
    );
    bad(
        to(Host::HostRewritePathRegex(Default::default())),
        &["route.host_rewrite_path_regex: is not supported; leave it out"],
    );
}

#[test]
fn connect_is_terminated_where_it_is_configured() {
    let upgrade = |kind: &str, connect: bool, enabled: Option<bool>| {
        forward(|action| {
            action.upgrade_configs = vec![pb::route_action::UpgradeConfig {
                upgrade_type: kind.into(),
                enabled: enabled.map(|value| BoolValue { value }),
                connect_config: connect.then(Default::default),
            }];
        })
    };
    let check = |message, expect| {
        assert_eq!(forwarded(message).terminate_connect, expect);
    };
    check(upgrade("CONNECT", true, None), true);
    check(upgrade("connect", true, Some(true)), true);
    check(upgrade("CONNECT", true, Some(false)), false);
    check(upgrade("CONNECT", false, None), false);
    check(upgrade("websocket", false, None), false);
    bad(
        upgrade("websocket", true, None),
        &["route.upgrade_configs[0].connect_config: needs the upgrade_type CONNECT"],
    );
    let mut odd = upgrade("CONNECT", true, None);
    if let Some(pb::route::Action::Route(action)) = &mut odd.action
        && let Some(connect) = &mut action.upgrade_configs[0].connect_config
    {
        connect.allow_post = true;
        connect.proxy_protocol_config = Some(Default::default());
    }
    let at = "route.upgrade_configs[0].connect_config";
    bad(
        odd,
        &[
            &format!("{at}.proxy_protocol_config: is not supported; leave it out"),
            &format!("{at}.allow_post: is not supported; leave it out"),
        ],
    );
}

#[test]
fn what_would_change_the_destination_is_rejected() {
    bad(
        forward(|a| {
            a.metadata_match = Some(Default::default());
            a.path_rewrite_policy = Some(Default::default());
            a.path_rewrite = "/x".into();
        }),
        &[
            "route.metadata_match: is not supported; leave it out",
            "route.path_rewrite_policy: is not supported; leave it out",
            "route.path_rewrite: is not supported; leave it out",
        ],
    );
    let mut message = host(Vec::new());
    message.name = String::new();
    message.require_tls = 2;
    message.matcher = Some(Default::default());
    check(
        Kind::VirtualHost,
        "outbound/post",
        &message,
        &[
            "name: must not be empty",
            "matcher: is not supported; leave it out",
            "require_tls: is not supported; leave it out",
        ],
    );
    let mut message = table(Vec::new());
    message.name = "inbound".into();
    message.vhost_header = "x".into();
    message.most_specific_header_mutations_wins = true;
    message.ignore_path_parameters_in_path_matching = true;
    message.ignore_port_in_host_matching = true;
    message.vhds = Some(pb::Vhds {
        config_source: Some(core::ConfigSource {
            config_source_specifier: Some(
                core::config_source::ConfigSourceSpecifier::PathConfigSource(Default::default()),
            ),
            ..Default::default()
        }),
    });
    check(
        Kind::Route,
        "outbound",
        &message,
        &[
            "name: is \"inbound\", but the resource was sent as \"outbound\"",
            "vhost_header: is not supported; leave it out",
            "most_specific_header_mutations_wins: is not supported; leave it out",
            "ignore_path_parameters_in_path_matching: is not supported; leave it out",
            "ignore_port_in_host_matching: is not supported; leave it out",
            "vhds.config_source: must be ads",
        ],
    );
}

#[test]
fn filters_that_may_restrict_access_are_rejected_per_route_too() {
    let required = pack(&pb::FilterConfig::default());
    let optional = pack(&pb::FilterConfig {
        is_optional: true,
        ..Default::default()
    });
    let mut message = forward(|_| {});
    message.typed_per_filter_config =
        [("b".into(), optional), ("a".into(), required.clone())].into();
    bad(
        message,
        &["typed_per_filter_config[a]: is not supported; leave it out"],
    );
    let mut message = host(Vec::new());
    message.typed_per_filter_config = [("a".into(), required)].into();
    check(
        Kind::VirtualHost,
        "outbound/post",
        &message,
        &["typed_per_filter_config[a]: is not supported; leave it out"],
    );
}

#[test]
fn warnings_name_what_has_no_effect() {
    let mut route = forward(|a| {
        a.append_x_forwarded_host = true;
        a.hash_policy = vec![Default::default()];
        a.retry_policy = Some(pb::RetryPolicy {
            retry_on: "5xx".into(),
            ..Default::default()
        });
    });
    route.tracing = Some(Default::default());
    let mut message = table(vec![host(vec![route])]);
    message.virtual_hosts[0].rate_limits = vec![Default::default()];
    assert_eq!(
        parsed_table(&message).warnings,
        [
            "virtual_hosts[0].rate_limits: has no effect",
            "virtual_hosts[0].routes[0].tracing: has no effect",
            "virtual_hosts[0].routes[0].route.append_x_forwarded_host: has no effect",
            "virtual_hosts[0].routes[0].route.hash_policy: has no effect",
            "virtual_hosts[0].routes[0].route.retry_policy.retry_on: has no effect",
        ]
    );
    assert!(parsed(&host(vec![forward(|_| {})])).warnings.is_empty());
}

#[test]
fn redirects() {
    use pb::redirect_action::{PathRewriteSpecifier as To, SchemeRewriteSpecifier as Scheme};
    let found = |message| match parsed_route(message).action {
        RouteAction::Redirect(redirect) => redirect,
        other => panic!("{other:?}"),
    };
    let plain = Redirect {
        scheme: None,
        host: None,
        port: None,
        path: None,
        strip_query: false,
        status: StatusCode::MOVED_PERMANENTLY,
    };
    assert_eq!(found(redirect(|_| {})), plain);
    let full = redirect(|r| {
        r.scheme_rewrite_specifier = Some(Scheme::SchemeRedirect("https".into()));
        r.host_redirect = "www.blog".into();
        r.port_redirect = 8443;
        r.path_rewrite_specifier = Some(To::PathRedirect("/new".into()));
        r.strip_query = true;
    });
    let expect = Redirect {
        scheme: Some("https".into()),
        host: Some("www.blog".into()),
        port: Some(8443),
        path: Some(RedirectPath::Full("/new".into())),
        strip_query: true,
        ..plain
    };
    assert_eq!(found(full), expect);
    let prefix = redirect(|r| {
        r.scheme_rewrite_specifier = Some(Scheme::HttpsRedirect(true));
        r.path_rewrite_specifier = Some(To::PrefixRewrite("/x".into()));
    });
    let prefix = found(prefix);
    assert_eq!(prefix.scheme.as_deref(), Some("https"));
    assert_eq!(prefix.path, Some(RedirectPath::Prefix("/x".into())));
    for (code, status) in [301, 302, 303, 307, 308].into_iter().enumerate() {
        let code = i32::try_from(code).expect("small");
        let message = redirect(|r| r.response_code = code);
        assert_eq!(found(message).status.as_u16(), status);
    }
}

#[test]
fn bad_redirects() {
    use pb::redirect_action::{PathRewriteSpecifier as To, SchemeRewriteSpecifier as Scheme};
    bad(
        redirect(|r| {
            r.scheme_rewrite_specifier = Some(Scheme::SchemeRedirect("ftp".into()));
            r.host_redirect = "a b".into();
            r.port_redirect = 65536;
            r.path_rewrite_specifier = Some(To::PathRedirect("new?x".into()));
            r.response_code = 9;
        }),
        &[
            "redirect.scheme_redirect: \"ftp\" must be http or https",
            "redirect.path_redirect: must be a path: ASCII without spaces, '?' and '#'",
            "redirect.path_redirect: must start with '/'",
            "redirect.host_redirect: \"a b\" is no host",
            "redirect.port_redirect: must be 65535 or less",
            "redirect.response_code: 9 is not known",
        ],
    );
    bad(
        redirect(|r| {
            r.path_rewrite_specifier = Some(To::RegexRewrite(Default::default()));
        }),
        &["redirect.regex_rewrite: is not supported; leave it out"],
    );
    bad(
        redirect(|r| r.path_rewrite_specifier = Some(To::PathRewrite("/x".into()))),
        &["redirect.path_rewrite: is not supported; leave it out"],
    );
}

#[test]
fn direct_responses() {
    use data_source::Specifier;
    let text = |text: &str| Some(Specifier::InlineString(text.into()));
    let check = |message, status: u16, body: &[u8]| {
        let expect = RouteAction::Direct(DirectResponse {
            status: StatusCode::from_u16(status).expect("status"),
            body: Bytes::copy_from_slice(body),
        });
        assert_eq!(parsed_route(message).action, expect);
    };
    check(direct(200, None), 200, b"");
    check(direct(503, text("down")), 503, b"down");
    check(
        direct(599, Some(Specifier::InlineBytes(vec![0]))),
        599,
        &[0],
    );
    let range = |found| format!("direct_response.status: {found} must be from 200 to 599");
    bad(direct(199, None), &[&range(199)]);
    bad(direct(600, None), &[&range(600)]);
    bad(direct(65736, None), &[&range(65736)]);
    bad(
        direct(200, Some(Specifier::Filename("/etc/passwd".into()))),
        &["direct_response.body: must be inline_string or inline_bytes"],
    );
    let long = "x".repeat(4097);
    bad(
        direct(200, text(&long)),
        &["direct_response.body: is longer than 4096 bytes"],
    );
    let mut message = table(vec![host(vec![direct(200, text(&long))])]);
    message.max_direct_response_body_size_bytes = Some(UInt32Value { value: 4097 });
    assert_eq!(parsed_table(&message).virtual_hosts.len(), 1);
}

#[test]
fn bad_actions() {
    use pb::route::Action;
    let mut none = forward(|_| {});
    none.action = None;
    bad(
        none,
        &["action: is missing; set route, redirect or direct_response"],
    );
    let of = |action| route(Path::Prefix("/".into()), action);
    bad(
        of(Action::FilterAction(Default::default())),
        &["filter_action: is not supported; leave it out"],
    );
    bad(
        of(Action::NonForwardingAction(Default::default())),
        &["non_forwarding_action: is not supported; leave it out"],
    );
}

fn option(key: &str, value: &str, action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderPb {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append_action: action,
        ..Default::default()
    }
}

const APPEND: i32 = 0;
const ADD_IF_ABSENT: i32 = 1;
const OVERWRITE: i32 = 2;
const OVERWRITE_IF_EXISTS: i32 = 3;

fn applied(add: Vec<HeaderValueOption>, remove: &[&str], before: &[(&str, &str)]) -> Vec<String> {
    let mut message = forward(|_| {});
    message.request_headers_to_add = add;
    message.request_headers_to_remove = remove.iter().map(ToString::to_string).collect();
    let mut headers = HeaderMap::new();
    for (name, value) in before {
        let name = HeaderName::try_from(*name).expect("name");
        headers.append(name, HeaderValue::from_str(value).expect("value"));
    }
    parsed_route(message).request_headers.apply(&mut headers);
    lines(&headers)
}

fn lines(headers: &HeaderMap) -> Vec<String> {
    let line = |(name, value): (&HeaderName, &HeaderValue)| {
        format!("{name}: {}", value.to_str().expect("text"))
    };
    let mut lines: Vec<_> = headers.iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn headers_are_changed() {
    let before = [("a", "1"), ("a", "2")];
    let check = |add: HeaderValueOption, expect: &[&str]| {
        assert_eq!(applied(vec![add.clone()], &[], &before), expect, "{add:?}");
    };
    check(option("A", "3", APPEND), &["a: 1", "a: 2", "a: 3"]);
    check(option("a", "3", ADD_IF_ABSENT), &["a: 1", "a: 2"]);
    check(option("b", "3", ADD_IF_ABSENT), &["a: 1", "a: 2", "b: 3"]);
    check(option("a", "3", OVERWRITE), &["a: 3"]);
    check(option("b", "3", OVERWRITE), &["a: 1", "a: 2", "b: 3"]);
    check(option("a", "3", OVERWRITE_IF_EXISTS), &["a: 3"]);
    check(option("b", "3", OVERWRITE_IF_EXISTS), &["a: 1", "a: 2"]);
    // No value, no change, unless the value is meant to be empty.
    check(option("b", "", APPEND), &["a: 1", "a: 2"]);
    let mut empty = option("b", "", APPEND);
    empty.keep_empty_value = true;
    check(empty, &["a: 1", "a: 2", "b: "]);
    let mut raw = option("b", "", APPEND);
    raw.header.as_mut().expect("header").raw_value = b"r".to_vec();
    check(raw, &["a: 1", "a: 2", "b: r"]);
    #[allow(deprecated)]
    let old = HeaderValueOption {
        append: Some(BoolValue { value: false }),
        ..option("a", "3", APPEND)
    };
    check(old, &["a: 3"]);
    assert_eq!(applied(Vec::new(), &["A", "x"], &before), [""; 0]);
    let list = vec![option("a", "3", APPEND), option("a", "4", OVERWRITE)];
    assert_eq!(applied(list, &[], &before), ["a: 4"]);
    let list = vec![option("a", "3", OVERWRITE), option("a", "4", APPEND)];
    assert_eq!(applied(list, &[], &before), ["a: 3", "a: 4"]);
    let removed = applied(vec![option("b", "3", APPEND)], &["b"], &before);
    assert_eq!(removed, ["a: 1", "a: 2"], "removals come after additions");
}

#[test]
fn header_values_are_literal() {
    let check = |value, expect: &str| {
        let found = applied(vec![option("a", value, APPEND)], &[], &[]);
        assert_eq!(found, [format!("a: {expect}")]);
    };
    check("100%%", "100%");
    check("100%", "100%");
    check("50% of %%X%%", "50% of %X%");
    check("%lower%", "%lower%");
    check("%2F", "%2F");
    let check = |value, command: &str| {
        let mut message = forward(|_| {});
        message.request_headers_to_add = vec![option("a", value, APPEND)];
        let problem = format!(
            "request_headers_to_add[0].header.value: {command} is not supported; write %% \
             for a percent sign"
        );
        bad(message, &[&problem]);
    };
    check(
        "x %DOWNSTREAM_REMOTE_ADDRESS% y",
        "%DOWNSTREAM_REMOTE_ADDRESS%",
    );
    check("%%%REQ(:path)%", "%REQ(:path)%");
}

#[test]
fn outer_changes_come_after_inner_ones() {
    let mut route = forward(|_| {});
    route.request_headers_to_add = vec![option("a", "route", OVERWRITE)];
    let mut inner = host(vec![route]);
    inner.request_headers_to_add =
        vec![option("a", "host", APPEND), option("b", "host", OVERWRITE)];
    inner.response_headers_to_remove = vec!["server".into()];
    let mut message = table(vec![inner]);
    message.request_headers_to_add = vec![option("b", "table", OVERWRITE)];
    let found = parsed_table(&message);
    let route = &found.virtual_hosts[0].routes[0];
    let mut headers = HeaderMap::new();
    route.request_headers.apply(&mut headers);
    assert_eq!(lines(&headers), ["a: host", "a: route", "b: table"]);
    headers.insert("server", HeaderValue::from_static("x"));
    assert!(!route.response_headers.is_empty());
    route.response_headers.apply(&mut headers);
    assert!(!headers.contains_key("server"));
}

#[test]
fn bad_header_changes() {
    let mut message = forward(|_| {});
    message.request_headers_to_add = vec![
        HeaderValueOption::default(),
        option("a b", "1", APPEND),
        option("Host", "1", OVERWRITE),
        option("a", "1\n", APPEND),
        option("a", "1", 9),
    ];
    message.response_headers_to_remove = vec![":status".into(), "content-length".into()];
    bad(
        message,
        &[
            "request_headers_to_add[0].header: is missing",
            "request_headers_to_add[1].header.key: \"a b\" is no header name",
            "request_headers_to_add[2].header.key: host must not be changed by a route",
            "request_headers_to_add[3].header.value: has control characters",
            "request_headers_to_add[4].append_action: 9 is not known",
            "response_headers_to_remove[0]: \":status\" is no header name",
            "response_headers_to_remove[1]: content-length must not be changed by a route",
        ],
    );
}

#[test]
fn shares_change_headers_too() {
    let mut changed = share("a", 1);
    changed.request_headers_to_add = vec![option("x", "1", OVERWRITE)];
    changed.response_headers_to_remove = vec!["y".into()];
    let clusters = forwarded(weighted(vec![changed])).clusters;
    let share = &clusters.clusters[0];
    assert_eq!(share.request_headers.set.len(), 1);
    assert_eq!(share.response_headers.remove, ["y"]);
}

#[test]
fn values_are_compared_by_meaning() {
    let message = rewrite("a+", "b");
    assert_eq!(parsed_route(message.clone()), parsed_route(message));
    assert_ne!(
        parsed_route(rewrite("a+", "b")),
        parsed_route(rewrite("a", "b"))
    );
    let exact = HeaderTest::Value(StringMatcher::Exact("a".into()));
    assert_ne!(exact, HeaderTest::Value(StringMatcher::Prefix("a".into())));
}

/// Metadata `weft.dev` of a virtual host.
fn with_metadata(fields: &[(&str, JsonKind)]) -> pb::VirtualHost {
    let value = |kind: &JsonKind| Json {
        kind: Some(kind.clone()),
    };
    let fields = fields
        .iter()
        .map(|(key, kind)| ((*key).to_owned(), value(kind)));
    let weft = Struct {
        fields: fields.collect(),
    };
    pb::VirtualHost {
        metadata: Some(Metadata {
            filter_metadata: [("weft.dev".to_owned(), weft)].into(),
            ..Default::default()
        }),
        ..host(vec![])
    }
}

#[test]
fn a_port_may_be_declared() {
    let of = |text: &str| with_metadata(&[("protocol", JsonKind::StringValue(text.into()))]);
    for (text, expect) in [
        ("", PortProtocol::Detected),
        ("http", PortProtocol::Http),
        ("http2", PortProtocol::Http),
        ("grpc", PortProtocol::Http),
        ("tcp", PortProtocol::Tcp),
    ] {
        assert_eq!(parsed(&of(text)).protocol, expect, "{text}");
    }
    assert_eq!(parsed(&host(vec![])).protocol, PortProtocol::Detected);
    let problem = "metadata[weft.dev].protocol: \"udp\" must be http, http2, grpc, tcp or empty";
    check(Kind::VirtualHost, "outbound/post", &of("udp"), &[problem]);
}

#[test]
fn a_name_stands_for_addresses() {
    let of = |addresses: &[&str], ttl: f64| {
        let values = addresses.iter().map(|text| Json {
            kind: Some(JsonKind::StringValue((*text).into())),
        });
        let list = ListValue {
            values: values.collect(),
        };
        with_metadata(&[
            ("addresses", JsonKind::ListValue(list)),
            ("ttl", JsonKind::NumberValue(ttl)),
        ])
    };
    let found = parsed(&of(&["10.0.0.1", "fd00::1"], 30.0))
        .addresses
        .clone();
    let found = found.expect("addresses");
    assert_eq!(found.ttl, 30);
    let texts: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.0.0.1", "fd00::1"]);
    assert_eq!(parsed(&host(vec![])).addresses, None);
    for (message, problem) in [
        (
            of(&["10.0.0.1:80"], 30.0),
            "metadata[weft.dev].addresses: \"10.0.0.1:80\" is no IP address",
        ),
        (
            of(&[], 1e6),
            "metadata[weft.dev].ttl: must be a number from 0 to 86400",
        ),
    ] {
        check(Kind::VirtualHost, "outbound/post", &message, &[problem]);
    }
}
