//! What a route does with a request: forwarding, redirects and direct responses.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use weft_api::envoy::config::route::v3 as pb;

use super::{
    DirectResponse, Forward, HeaderMutations, HostRewrite, Outer, PathRewrite, Redirect,
    RedirectPath, RouteAction, WeightedCluster, WeightedClusters, filter_config, mutations,
};
use crate::config::{
    matcher,
    problems::{Problems, each, inline, parts},
};

impl RouteAction {
    pub(super) fn read(
        p: &mut Problems,
        from: Option<&pb::route::Action>,
        outer: &Outer<'_>,
    ) -> Option<Self> {
        use pb::route::Action;
        match from {
            Some(Action::Route(from)) => p
                .at("route", |p| Forward::read(p, from, outer))
                .map(Self::Forward),
            Some(Action::Redirect(from)) => p
                .at("redirect", |p| Redirect::read(p, from))
                .map(Self::Redirect),
            Some(Action::DirectResponse(from)) => p
                .at("direct_response", |p| {
                    DirectResponse::read(p, from, outer.max_body)
                })
                .map(Self::Direct),
            Some(Action::FilterAction(_)) => {
                p.unsupported(true, "filter_action");
                None
            }
            Some(Action::NonForwardingAction(_)) => {
                p.unsupported(true, "non_forwarding_action");
                None
            }
            None => {
                p.reject(
                    "action",
                    "is missing; set route, redirect or direct_response",
                );
                None
            }
        }
    }
}

impl Forward {
    fn read(p: &mut Problems, from: &pb::RouteAction, outer: &Outer<'_>) -> Option<Self> {
        forward_extras(p, from);
        let clusters = WeightedClusters::read(p, from.cluster_specifier.as_ref());
        let path_rewrite = path_rewrite(p, from);
        let host_rewrite = host_rewrite(p, from.host_rewrite_specifier.as_ref());
        let timeout = p.timeout("timeout", parts!(from.timeout), Some(DEFAULT_TIMEOUT));
        let per_try_timeout = from
            .retry_policy
            .as_ref()
            .or(outer.retry)
            .and_then(|retry| p.at("retry_policy", |p| per_try_timeout(p, retry)));
        let terminate_connect = terminates_connect(p, &from.upgrade_configs);
        Some(Self {
            clusters: clusters?,
            timeout,
            per_try_timeout,
            path_rewrite,
            host_rewrite,
            terminate_connect,
        })
    }
}

#[allow(deprecated)] // Deprecated fields that a sender may still set.
fn forward_extras(p: &mut Problems, from: &pb::RouteAction) {
    p.unsupported(from.metadata_match.is_some(), "metadata_match");
    p.unsupported(from.path_rewrite_policy.is_some(), "path_rewrite_policy");
    p.unsupported(!from.path_rewrite.is_empty(), "path_rewrite");
    p.ignored(from.append_x_forwarded_host, "append_x_forwarded_host");
    p.ignored(from.idle_timeout.is_some(), "idle_timeout");
    p.ignored(from.flush_timeout.is_some(), "flush_timeout");
    p.ignored(
        from.retry_policy_typed_config.is_some(),
        "retry_policy_typed_config",
    );
    p.ignored(
        !from.request_mirror_policies.is_empty(),
        "request_mirror_policies",
    );
    p.ignored(from.priority != 0, "priority");
    p.ignored(!from.rate_limits.is_empty(), "rate_limits");
    p.ignored(!from.hash_policy.is_empty(), "hash_policy");
    p.ignored(from.cors.is_some(), "cors");
    p.ignored(from.max_grpc_timeout.is_some(), "max_grpc_timeout");
    p.ignored(from.grpc_timeout_offset.is_some(), "grpc_timeout_offset");
    p.ignored(
        from.internal_redirect_policy.is_some(),
        "internal_redirect_policy",
    );
    p.ignored(
        from.internal_redirect_action != 0,
        "internal_redirect_action",
    );
    p.ignored(from.hedge_policy.is_some(), "hedge_policy");
    p.ignored(from.max_stream_duration.is_some(), "max_stream_duration");
}

fn per_try_timeout(p: &mut Problems, from: &pb::RetryPolicy) -> Option<Duration> {
    let retries = from.num_retries.is_none_or(|n| n.value > 0);
    p.ignored(retries && !from.retry_on.is_empty(), "retry_on");
    p.ignored(from.per_try_idle_timeout.is_some(), "per_try_idle_timeout");
    p.timeout("per_try_timeout", parts!(from.per_try_timeout), None)
}

fn terminates_connect(p: &mut Problems, from: &[pb::route_action::UpgradeConfig]) -> bool {
    let mut terminates = false;
    for (index, upgrade) in from.iter().enumerate() {
        let enabled = upgrade.enabled.is_none_or(|b| b.value);
        p.at(format_args!("upgrade_configs[{index}]"), |p| {
            match (&upgrade.connect_config, enabled) {
                (Some(connect), true) if upgrade.upgrade_type.eq_ignore_ascii_case("CONNECT") => {
                    p.unsupported(
                        connect.proxy_protocol_config.is_some(),
                        "connect_config.proxy_protocol_config",
                    );
                    p.unsupported(connect.allow_post, "connect_config.allow_post");
                    terminates = true;
                }
                (Some(_), true) => p.reject("connect_config", "needs the upgrade_type CONNECT"),
                _ => p.ignored(true, "upgrade_type"),
            }
        });
    }
    terminates
}

fn path_rewrite(p: &mut Problems, from: &pb::RouteAction) -> Option<PathRewrite> {
    let prefix = (!from.prefix_rewrite.is_empty()).then_some(&from.prefix_rewrite);
    match (prefix, &from.regex_rewrite) {
        (None, None) => None,
        (Some(prefix), None) => {
            rewritten_path(p, "prefix_rewrite", prefix);
            Some(PathRewrite::Prefix(prefix.clone()))
        }
        (Some(_), Some(_)) => {
            p.reject("regex_rewrite", "excludes prefix_rewrite; set one of them");
            None
        }
        (None, Some(rewrite)) => p.at("regex_rewrite", |p| {
            let Some(pattern) = &rewrite.pattern else {
                p.reject("pattern", "is missing");
                return None;
            };
            let pattern = matcher::search(p, "pattern.regex", pattern)?;
            let substitution = substitution(p, &rewrite.substitution, pattern.captures_len())?;
            Some(PathRewrite::Regex(pattern, substitution))
        }),
    }
}

fn rewritten_path(p: &mut Problems, field: &str, path: &str) {
    let fits = |b: u8| b.is_ascii_graphic() && b != b'#' && b != b'?';
    if !path.bytes().all(fits) {
        p.reject(field, "must be a path: ASCII without spaces, '?' and '#'");
    }
}

/// Envoy's substitution (`\1`, `\\`) in the syntax of the regex crate (`${1}`, `\`).
fn substitution(p: &mut Problems, from: &str, groups: usize) -> Option<String> {
    let mut to = String::with_capacity(from.len());
    let mut chars = from.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => to.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => to.push('\\'),
                Some(digit) if digit.to_digit(10).is_some_and(|d| (d as usize) < groups) => {
                    to.push_str("${");
                    to.push(digit);
                    to.push('}');
                }
                _ => {
                    p.reject(
                        "substitution",
                        "a backslash must be followed by a backslash or the number of a group",
                    );
                    return None;
                }
            },
            c => to.push(c),
        }
    }
    Some(to)
}

fn host_rewrite(
    p: &mut Problems,
    from: Option<&pb::route_action::HostRewriteSpecifier>,
) -> Option<HostRewrite> {
    use pb::route_action::HostRewriteSpecifier as Specifier;
    match from {
        None => None,
        Some(Specifier::HostRewriteLiteral(host)) => {
            // Envoy reads an empty literal as none.
            if host.is_empty() {
                return None;
            }
            if host.parse::<http::uri::Authority>().is_err() {
                p.reject(
                    "host_rewrite_literal",
                    format_args!("{host:?} is no authority"),
                );
                return None;
            }
            HeaderValue::from_str(host).ok().map(HostRewrite::Literal)
        }
        Some(Specifier::AutoHostRewrite(auto)) => {
            p.unsupported(auto.value, "auto_host_rewrite");
            None
        }
        Some(Specifier::HostRewriteHeader(_)) => {
            p.unsupported(true, "host_rewrite_header");
            None
        }
        Some(_) => {
            p.unsupported(true, "host_rewrite_path_regex");
            None
        }
    }
}

impl WeightedClusters {
    fn read(p: &mut Problems, from: Option<&pb::route_action::ClusterSpecifier>) -> Option<Self> {
        use pb::route_action::ClusterSpecifier as Specifier;
        match from {
            Some(Specifier::Cluster(name)) => p.not_empty("cluster", name).map(Self::one),
            Some(Specifier::WeightedClusters(from)) => p.at("weighted_clusters", |p| {
                p.ignored(
                    from.random_value_specifier.is_some(),
                    "random_value_specifier",
                );
                let clusters = each(p, "clusters", &from.clusters, WeightedCluster::read);
                Self::sum(p, clusters)
            }),
            Some(Specifier::ClusterHeader(_)) => {
                p.unsupported(true, "cluster_header");
                None
            }
            Some(_) => {
                p.unsupported(true, "cluster_specifier_plugin");
                None
            }
            None => {
                p.reject("", "has no cluster; set cluster or weighted_clusters");
                None
            }
        }
    }

    /// All traffic to one cluster.
    pub(in crate::config) fn one(name: Arc<str>) -> Self {
        let cluster = WeightedCluster {
            name,
            weight: 1,
            request_headers: HeaderMutations::default(),
            response_headers: HeaderMutations::default(),
        };
        Self {
            clusters: vec![cluster],
            total_weight: 1,
        }
    }

    /// Leaves out shares of 0 and sums the others.
    pub(in crate::config) fn sum(
        p: &mut Problems,
        mut clusters: Vec<WeightedCluster>,
    ) -> Option<Self> {
        clusters.retain(|c| c.weight > 0);
        let total_weight: u64 = clusters.iter().map(|c| u64::from(c.weight)).sum();
        if total_weight == 0 {
            p.reject("clusters", "must have a weight above 0 in sum");
            return None;
        }
        if total_weight > u64::from(u32::MAX) {
            p.reject(
                "clusters",
                format_args!("the weights sum to more than {}", u32::MAX),
            );
            return None;
        }
        Some(Self {
            clusters,
            total_weight,
        })
    }
}

impl WeightedCluster {
    fn read(p: &mut Problems, from: &pb::weighted_cluster::ClusterWeight) -> Option<Self> {
        p.unsupported(!from.cluster_header.is_empty(), "cluster_header");
        p.unsupported(from.metadata_match.is_some(), "metadata_match");
        p.unsupported(
            from.host_rewrite_specifier.is_some(),
            "host_rewrite_literal",
        );
        filter_config(p, &from.typed_per_filter_config);
        let name = p.not_empty("name", &from.name);
        let request_headers = mutations(
            p,
            "request_headers",
            &from.request_headers_to_add,
            &from.request_headers_to_remove,
        );
        let response_headers = mutations(
            p,
            "response_headers",
            &from.response_headers_to_add,
            &from.response_headers_to_remove,
        );
        Some(Self {
            name: name?,
            weight: from.weight.map_or(0, |w| w.value),
            request_headers,
            response_headers,
        })
    }
}

impl Redirect {
    fn read(p: &mut Problems, from: &pb::RedirectAction) -> Option<Self> {
        use pb::redirect_action::{PathRewriteSpecifier as Path, SchemeRewriteSpecifier as Scheme};
        let scheme = match &from.scheme_rewrite_specifier {
            Some(Scheme::HttpsRedirect(true)) => Some("https".to_owned()),
            Some(Scheme::SchemeRedirect(scheme)) if matches!(&**scheme, "http" | "https") => {
                Some(scheme.clone())
            }
            Some(Scheme::SchemeRedirect(scheme)) => {
                p.reject(
                    "scheme_redirect",
                    format_args!("{scheme:?} must be http or https"),
                );
                None
            }
            Some(Scheme::HttpsRedirect(false)) | None => None,
        };
        let path = match &from.path_rewrite_specifier {
            Some(Path::PathRedirect(path)) => {
                rewritten_path(p, "path_redirect", path);
                if !path.starts_with('/') {
                    p.reject("path_redirect", "must start with '/'");
                }
                Some(RedirectPath::Full(path.clone()))
            }
            Some(Path::PrefixRewrite(prefix)) => {
                rewritten_path(p, "prefix_rewrite", prefix);
                Some(RedirectPath::Prefix(prefix.clone()))
            }
            Some(Path::RegexRewrite(_)) => {
                p.unsupported(true, "regex_rewrite");
                None
            }
            Some(Path::PathRewrite(_)) => {
                p.unsupported(true, "path_rewrite");
                None
            }
            None => None,
        };
        let host = (!from.host_redirect.is_empty()).then(|| from.host_redirect.clone());
        if host
            .as_ref()
            .is_some_and(|h| h.parse::<http::uri::Authority>().is_err())
        {
            p.reject(
                "host_redirect",
                format_args!("{:?} is no host", from.host_redirect),
            );
        }
        let port = u16::try_from(from.port_redirect).map(|port| (port != 0).then_some(port));
        if port.is_err() {
            p.reject("port_redirect", "must be 65535 or less");
        }
        let status = match from.response_code {
            0 => StatusCode::MOVED_PERMANENTLY,
            1 => StatusCode::FOUND,
            2 => StatusCode::SEE_OTHER,
            3 => StatusCode::TEMPORARY_REDIRECT,
            4 => StatusCode::PERMANENT_REDIRECT,
            other => {
                p.reject("response_code", format_args!("{other} is not known"));
                return None;
            }
        };
        Some(Self {
            scheme,
            host,
            port: port.ok()?,
            path,
            strip_query: from.strip_query,
            status,
        })
    }
}

impl DirectResponse {
    fn read(p: &mut Problems, from: &pb::DirectResponseAction, max_body: usize) -> Option<Self> {
        p.unsupported(from.body_format.is_some(), "body_format");
        let status = u16::try_from(from.status)
            .ok()
            .filter(|status| (200..600).contains(status))
            .and_then(|status| StatusCode::from_u16(status).ok());
        if status.is_none() {
            p.reject(
                "status",
                format_args!("{} must be from 200 to 599", from.status),
            );
        }
        let body = match &from.body {
            Some(body) => inline(p, "body", body).map(Bytes::copy_from_slice),
            None => Some(Bytes::new()),
        };
        if body.as_ref().is_some_and(|body| body.len() > max_body) {
            p.reject("body", format_args!("is longer than {max_body} bytes"));
        }
        Some(Self {
            status: status?,
            body: body?,
        })
    }
}

/// Envoy's default for `RouteAction.timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
