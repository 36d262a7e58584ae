//! `RouteConfiguration` and `VirtualHost`: what happens to requests for a service port.

use std::cmp::Reverse;
use std::time::Duration;

use weft_api::envoy::config::core::v3 as core;
use weft_api::envoy::config::route::v3 as api;
use weft_api::envoy::r#type::matcher::v3 as matcher;
use weft_api::google::protobuf as pb;

use super::names::Destination;
use super::{Context, Node, names, proto};
use crate::model::{
    Backend, HeaderChanges, Match, PathChange, PathMatch, Protocol, Redirect, Route, RouteKind,
    Rule, Service, ServicePort, ValueMatch,
};
use api::header_matcher::HeaderMatchSpecifier;
use api::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use api::route::Action;
use api::route_action::{ClusterSpecifier, HostRewriteSpecifier, UpgradeConfig};
use api::route_match::PathSpecifier;
use core::header_value_option::HeaderAppendAction;

/// The route table of sidecars: everything is looked up by authority.
pub(super) fn configuration(name: &str) -> Option<api::RouteConfiguration> {
    (name == names::OUTBOUND).then(|| api::RouteConfiguration {
        name: name.to_owned(),
        vhds: Some(api::Vhds {
            config_source: Some(proto::ads()),
        }),
        ..Default::default()
    })
}

/// The virtual host of `outbound/<authority or address>`, or of `dns/<name>`.
pub(super) fn virtual_host(
    cx: &Context<'_>,
    node: &Node<'_>,
    name: &str,
) -> Option<api::VirtualHost> {
    if let Some(host) = name.strip_prefix(names::DNS_NAME) {
        return dns_name(cx, node, name, host);
    }
    let authority = name.strip_prefix(names::OUTBOUND)?.strip_prefix('/')?;
    let (routes, protocol) = match names::resolve(cx.mesh, node.namespace, authority)? {
        Destination::Service(service, port) => (routes(cx, node, service, port), port.protocol),
        Destination::Pod(pod) => (pod_routes(&pod), pod.protocol()),
    };
    Some(api::VirtualHost {
        name: name.to_owned(),
        domains: vec![authority.to_owned()],
        routes,
        metadata: Some(port_metadata(protocol)),
        ..Default::default()
    })
}

/// What a DNS name stands for; there is nothing to route.
fn dns_name(cx: &Context<'_>, node: &Node<'_>, name: &str, host: &str) -> Option<api::VirtualHost> {
    let answer = names::resolve_dns(cx.mesh, node.namespace, host)?;
    let addresses = answer.addresses.iter().map(ToString::to_string);
    Some(api::VirtualHost {
        name: name.to_owned(),
        domains: vec![host.to_owned()],
        metadata: Some(proto::metadata(&[
            ("addresses", proto::list_value(addresses)),
            ("ttl", proto::number_value(answer.ttl)),
        ])),
        ..Default::default()
    })
}

/// What is spoken on a port, for connections that nobody names a host for.
fn port_metadata(protocol: Protocol) -> core::Metadata {
    let word = match protocol {
        Protocol::Undeclared => "",
        declared => declared.name(),
    };
    proto::metadata(&[("protocol", proto::string_value(word))])
}

/// A table of one service for a listener of its own.
pub(super) fn service_table(
    cx: &Context<'_>,
    node: &Node<'_>,
    name: &str,
    service: &Service,
    port: &ServicePort,
) -> api::RouteConfiguration {
    api::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![api::VirtualHost {
            name: names::cluster(service, port),
            domains: vec!["*".to_owned()],
            routes: routes(cx, node, service, port),
            metadata: Some(port_metadata(port.protocol)),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A table that sends everything to one cluster, for as long as it takes.
pub(super) fn forward_table(name: &str, cluster: String) -> api::RouteConfiguration {
    api::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![api::VirtualHost {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![forward_all(cluster)],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn forward_all(cluster: String) -> api::Route {
    api::Route {
        r#match: Some(api::RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(Action::Route(api::RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
            timeout: Some(proto::duration(Duration::ZERO)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// The routes of one port of one workload: all of it, or bytes only.
fn pod_routes(pod: &names::Pod<'_>) -> Vec<api::Route> {
    let http = (pod.protocol() != Protocol::Tcp).then(|| forward_all(pod.cluster()));
    http.into_iter()
        .chain([connect(vec![(pod.cluster(), 1)])])
        .collect()
}

/// The routes of a service port in order of precedence; the CONNECT route is last: it is for
/// bytes, and goes where the TCPRoute of the port says.
/// A port that is declared TCP has no other: requests are not what it understands.
fn routes(
    cx: &Context<'_>,
    node: &Node<'_>,
    service: &Service,
    port: &ServicePort,
) -> Vec<api::Route> {
    let mut out = Vec::new();
    if port.protocol != Protocol::Tcp {
        let attached = cx.mesh.routes_for(service, port.port, node.namespace);
        if attached
            .first()
            .is_none_or(|route| route.kind == RouteKind::Tcp)
        {
            out.push(forward_all(names::cluster(service, port)));
        } else {
            out.extend(
                ordered(&attached)
                    .into_iter()
                    .map(|entry| route(cx, &entry)),
            );
        }
    }
    out.push(connect(tcp_clusters(cx, node, service, port)));
    out
}

/// One match of one rule: what becomes one xDS route.
struct Candidate<'a> {
    route: &'a Route,
    index: usize,
    rule: &'a Rule,
    matched: &'a Match,
}

/// All matches of all rules, the most specific first; of equals the older route's, then
/// the earlier rule's, then the earlier match (the sort is stable).
fn ordered<'a>(routes: &[&'a Route]) -> Vec<Candidate<'a>> {
    let mut out = Vec::new();
    for route in routes {
        for (index, rule) in route.rules.iter().enumerate() {
            out.extend(rule.matches.iter().map(|matched| Candidate {
                route,
                index,
                rule,
                matched,
            }));
        }
    }
    out.sort_by_key(|candidate| Reverse(candidate.matched.rank));
    out
}

fn route(cx: &Context<'_>, candidate: &Candidate<'_>) -> api::Route {
    let Candidate {
        route,
        index,
        rule,
        matched,
    } = candidate;
    let label = rule.name.clone().unwrap_or_else(|| index.to_string());
    let action = match &rule.redirect {
        Some(redirect) => Action::Redirect(redirect_action(redirect)),
        None => Action::Route(route_action(cx, route, rule)),
    };
    api::Route {
        name: format!("{}/{}#{label}", route.namespace, route.name),
        r#match: Some(route_match(matched)),
        request_headers_to_add: headers_to_add(&rule.request_headers),
        request_headers_to_remove: rule.request_headers.remove.clone(),
        response_headers_to_add: headers_to_add(&rule.response_headers),
        response_headers_to_remove: rule.response_headers.remove.clone(),
        action: Some(action),
        ..Default::default()
    }
}

fn route_match(matched: &Match) -> api::RouteMatch {
    let path = match &matched.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        PathMatch::Prefix(prefix) if prefix.is_empty() => PathSpecifier::Prefix("/".to_owned()),
        PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.clone()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(proto::regex(pattern)),
    };
    let method = matched.method.as_ref().map(|method| ValueMatch {
        name: ":method".to_owned(),
        value: method.clone(),
        is_regex: false,
    });
    api::RouteMatch {
        path_specifier: Some(path),
        headers: method
            .iter()
            .chain(&matched.headers)
            .map(|header| api::HeaderMatcher {
                name: header.name.clone(),
                header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string_match(
                    header,
                ))),
                ..Default::default()
            })
            .collect(),
        query_parameters: matched
            .query
            .iter()
            .map(|query| api::QueryParameterMatcher {
                name: query.name.clone(),
                query_parameter_match_specifier: Some(
                    api::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(
                        string_match(query),
                    ),
                ),
            })
            .collect(),
        ..Default::default()
    }
}

fn string_match(value: &ValueMatch) -> matcher::StringMatcher {
    if value.is_regex {
        proto::matches_regex(&value.value)
    } else {
        proto::exact(&value.value)
    }
}

fn headers_to_add(changes: &HeaderChanges) -> Vec<core::HeaderValueOption> {
    let option =
        |(name, value): &(String, String), action: HeaderAppendAction| core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: name.clone(),
                // A percent sign would begin a command operator.
                value: value.replace('%', "%%"),
                ..Default::default()
            }),
            append_action: action as i32,
            ..Default::default()
        };
    let set = changes.set.iter();
    let add = changes.add.iter();
    set.map(|header| option(header, HeaderAppendAction::OverwriteIfExistsOrAdd))
        .chain(add.map(|header| option(header, HeaderAppendAction::AppendIfExistsOrAdd)))
        .collect()
}

fn route_action(cx: &Context<'_>, route: &Route, rule: &Rule) -> api::RouteAction {
    let mut action = api::RouteAction {
        cluster_specifier: Some(http_clusters(cx, route, rule)),
        timeout: Some(proto::duration(rule.timeout)),
        retry_policy: rule.try_timeout.map(|timeout| api::RetryPolicy {
            num_retries: Some(pb::UInt32Value { value: 0 }),
            per_try_timeout: Some(proto::duration(timeout)),
            ..Default::default()
        }),
        ..Default::default()
    };
    if let Some(rewrite) = &rule.rewrite {
        action.host_rewrite_specifier = rewrite
            .hostname
            .clone()
            .map(HostRewriteSpecifier::HostRewriteLiteral);
        match &rewrite.path {
            Some(PathChange::Full(path)) => {
                action.regex_rewrite = Some(matcher::RegexMatchAndSubstitute {
                    pattern: Some(proto::regex("^[^?]*")),
                    // A backslash would refer to a group.
                    substitution: path.replace('\\', "\\\\"),
                });
            }
            Some(PathChange::Prefix(prefix)) => action.prefix_rewrite.clone_from(prefix),
            None => {}
        }
    }
    action
}

/// The backends that take a share of the traffic, by cluster.
fn shares<'a>(cx: &Context<'_>, route: &Route, rule: &'a Rule) -> Vec<(String, &'a Backend)> {
    rule.backends
        .iter()
        .filter(|backend| backend.weight > 0)
        .map(|backend| match cx.mesh.backend(route, backend) {
            Ok((service, port)) => (names::cluster(service, port), backend),
            Err(_) => {
                let name = names::missing(&backend.namespace, &backend.name, backend.port);
                (name, backend)
            }
        })
        .collect()
}

/// A rule that sends nowhere is answered like one with a backend that does not exist.
fn nowhere(route: &Route) -> String {
    names::missing(&route.namespace, &route.name, 0)
}

fn http_clusters(cx: &Context<'_>, route: &Route, rule: &Rule) -> ClusterSpecifier {
    let shares = shares(cx, route, rule);
    let plain = |backend: &Backend| {
        backend.request_headers.is_empty() && backend.response_headers.is_empty()
    };
    match shares.as_slice() {
        [] => ClusterSpecifier::Cluster(nowhere(route)),
        [(name, backend)] if plain(backend) => ClusterSpecifier::Cluster(name.clone()),
        _ => ClusterSpecifier::WeightedClusters(api::WeightedCluster {
            clusters: shares
                .into_iter()
                .map(|(name, backend)| api::weighted_cluster::ClusterWeight {
                    name,
                    weight: Some(pb::UInt32Value {
                        value: backend.weight,
                    }),
                    request_headers_to_add: headers_to_add(&backend.request_headers),
                    request_headers_to_remove: backend.request_headers.remove.clone(),
                    response_headers_to_add: headers_to_add(&backend.response_headers),
                    response_headers_to_remove: backend.response_headers.remove.clone(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }),
    }
}

/// The clusters of a service port for bytes, with weights: those of its TCPRoute, if it
/// has one, else its own.
pub(super) fn tcp_clusters(
    cx: &Context<'_>,
    node: &Node<'_>,
    service: &Service,
    port: &ServicePort,
) -> Vec<(String, u32)> {
    let own = || vec![(names::cluster(service, port), 1)];
    let routes = cx.mesh.routes_for(service, port.port, node.namespace);
    let Some(route) = routes.first().filter(|route| route.kind == RouteKind::Tcp) else {
        return own();
    };
    let Some(rule) = route.rules.first() else {
        return own();
    };
    let shares = shares(cx, route, rule);
    if shares.is_empty() {
        return vec![(nowhere(route), 1)];
    }
    shares
        .into_iter()
        .map(|(name, backend)| (name, backend.weight))
        .collect()
}

fn redirect_action(redirect: &Redirect) -> api::RedirectAction {
    let code = match redirect.status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    api::RedirectAction {
        scheme_rewrite_specifier: redirect
            .scheme
            .clone()
            .map(SchemeRewriteSpecifier::SchemeRedirect),
        host_redirect: redirect.hostname.clone().unwrap_or_default(),
        port_redirect: redirect.port.unwrap_or(0).into(),
        path_rewrite_specifier: redirect.path.clone().map(|path| match path {
            PathChange::Full(path) => PathRewriteSpecifier::PathRedirect(path),
            PathChange::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
        }),
        response_code: code as i32,
        ..Default::default()
    }
}

/// CONNECT: an HTTP proxy's way to open a TCP connection, and where captured connections go
/// that are not HTTP.
fn connect(mut clusters: Vec<(String, u32)>) -> api::Route {
    let specifier = if clusters.len() == 1 {
        ClusterSpecifier::Cluster(clusters.remove(0).0)
    } else {
        let weighted =
            clusters
                .into_iter()
                .map(|(name, weight)| api::weighted_cluster::ClusterWeight {
                    name,
                    weight: Some(pb::UInt32Value { value: weight }),
                    ..Default::default()
                });
        ClusterSpecifier::WeightedClusters(api::WeightedCluster {
            clusters: weighted.collect(),
            ..Default::default()
        })
    };
    api::Route {
        r#match: Some(api::RouteMatch {
            path_specifier: Some(PathSpecifier::ConnectMatcher(
                api::route_match::ConnectMatcher {},
            )),
            ..Default::default()
        }),
        action: Some(Action::Route(api::RouteAction {
            cluster_specifier: Some(specifier),
            timeout: Some(proto::duration(Duration::ZERO)),
            upgrade_configs: vec![UpgradeConfig {
                upgrade_type: "CONNECT".to_owned(),
                connect_config: Some(api::route_action::upgrade_config::ConnectConfig::default()),
                ..Default::default()
            }],
            ..Default::default()
        })),
        ..Default::default()
    }
}
