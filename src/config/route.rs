//! `envoy.config.route.v3`: route tables, virtual hosts, routes and what they do.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use regex::Regex;
use weft_api::{
    any,
    envoy::config::{
        core::v3::{DataSource, HeaderValueOption, data_source, header_value_option},
        route::v3 as pb,
    },
    google::protobuf::Any,
};

use super::{
    matcher::{self, HeaderMatcher, PathMatcher, QueryMatcher},
    problems::{Problems, parts},
};

/// `RouteConfiguration`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteTable {
    /// The resource name.
    pub name: Arc<str>,
    /// In the order of the resource.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// `vhds` is set: unknown authorities are looked up as `<name>/<authority>`.
    pub on_demand: bool,
    /// Fields that were set and have no effect; of an inline table, the listener has them.
    pub warnings: Vec<String>,
}

/// `VirtualHost`.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualHost {
    /// For people and metrics.
    pub name: Arc<str>,
    /// Authorities that it answers for.
    pub domains: Vec<Domain>,
    /// In order; the first match wins.
    pub routes: Vec<Route>,
    /// Fields that were set and have no effect; of a host in a table, the table has them.
    pub warnings: Vec<String>,
}

/// One entry of `VirtualHost.domains`, lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// `post.blog`.
    Exact(String),
    /// `*.blog` or `*-x.blog`, without the star.
    Suffix(String),
    /// `post.*`, without the star.
    Prefix(String),
    /// `*`.
    Any,
}

/// `Route`.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The metric label; empty for the default route.
    pub name: Arc<str>,
    /// When it applies.
    pub matches: RouteMatch,
    /// What it does.
    pub action: RouteAction,
    /// Changes to the request, of the route and then of what it is in.
    pub request_headers: HeaderMutations,
    /// Changes to the response, of the route and then of what it is in.
    pub response_headers: HeaderMutations,
}

/// `RouteMatch`: all of it must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteMatch {
    /// The path specifier.
    pub path: PathMatcher,
    /// `case_sensitive`, default true.
    pub case_sensitive: bool,
    /// `headers`, the method among them.
    pub headers: Vec<HeaderMatcher>,
    /// `query_parameters`.
    pub query: Vec<QueryMatcher>,
    /// `grpc`: only requests whose content type is gRPC.
    pub grpc: bool,
}

/// What matching looks at. The path is matched as it came, without decoding.
#[derive(Clone, Copy, Debug)]
pub struct RequestKey<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target; its path and query are used.
    pub uri: &'a Uri,
    /// The authority as the client wrote it.
    pub authority: &'a str,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

/// What a route does with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteAction {
    /// `route`.
    Forward(Forward),
    /// `redirect`.
    Redirect(Redirect),
    /// `direct_response`.
    Direct(DirectResponse),
}

/// `RouteAction` with clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// Where to.
    pub clusters: WeightedClusters,
    /// `timeout`: from the end of the request to the end of the response; `None` is off.
    /// Envoy's default of 15 s applies when the field is absent.
    pub timeout: Option<Duration>,
    /// `retry_policy.per_try_timeout`.
    pub per_try_timeout: Option<Duration>,
    /// `prefix_rewrite`, `regex_rewrite`.
    pub path_rewrite: Option<PathRewrite>,
    /// `host_rewrite_literal`.
    pub host_rewrite: Option<HostRewrite>,
    /// `upgrade_configs` has `CONNECT` with `connect_config`: end the CONNECT here.
    pub terminate_connect: bool,
}

/// `cluster` or `weighted_clusters`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedClusters {
    /// At least one, with weight above 0 in sum; entries of weight 0 are left out.
    pub clusters: Vec<WeightedCluster>,
    /// The sum of the weights, above 0.
    pub total_weight: u64,
}

/// One share of the traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedCluster {
    /// The cluster's resource name.
    pub name: Arc<str>,
    /// Its share of the total.
    pub weight: u32,
    /// Changes to the request of this share.
    pub request_headers: HeaderMutations,
    /// Changes to its response.
    pub response_headers: HeaderMutations,
}

impl WeightedClusters {
    /// The cluster for a uniformly random number; any `u64` will do.
    #[must_use]
    pub fn choose(&self, random: u64) -> usize {
        if self.clusters.len() == 1 {
            return 0;
        }
        let mut at = random % self.total_weight;
        for (index, cluster) in self.clusters.iter().enumerate() {
            let weight = u64::from(cluster.weight);
            if at < weight {
                return index;
            }
            at -= weight;
        }
        self.clusters.len() - 1
    }
}

/// How the path changes on its way upstream. The query always stays.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    /// `prefix_rewrite`: the matched prefix becomes this.
    Prefix(String),
    /// `regex_rewrite`: each match of the pattern in the path becomes the substitution, which
    /// is in the syntax of [`Regex::replace_all`].
    Regex(Regex, String),
}

impl PartialEq for PathRewrite {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex(a, x), Self::Regex(b, y)) => a.as_str() == b.as_str() && x == y,
            _ => false,
        }
    }
}

/// How the authority changes on its way upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRewrite {
    /// `host_rewrite_literal`.
    Literal(HeaderValue),
}

/// Header changes, in the order of the fields: removals after additions, as Envoy does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderMutations {
    /// `OVERWRITE_IF_EXISTS_OR_ADD`.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// `OVERWRITE_IF_EXISTS`.
    pub replace: Vec<(HeaderName, HeaderValue)>,
    /// `ADD_IF_ABSENT`.
    pub add_if_absent: Vec<(HeaderName, HeaderValue)>,
    /// `APPEND_IF_EXISTS_OR_ADD`.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// `*_headers_to_remove`.
    pub remove: Vec<HeaderName>,
    /// The changes of the virtual host and the route table around, which come after.
    pub outer: Vec<Arc<Self>>,
}

impl HeaderMutations {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
            && self.replace.is_empty()
            && self.add_if_absent.is_empty()
            && self.add.is_empty()
            && self.remove.is_empty()
            && self.outer.is_empty()
    }

    /// Applies the changes. An added value joins existing ones as a field of its own.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.replace {
            if headers.contains_key(name) {
                headers.insert(name, value.clone());
            }
        }
        for (name, value) in &self.add_if_absent {
            if !headers.contains_key(name) {
                headers.insert(name, value.clone());
            }
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
        for outer in &self.outer {
            outer.apply(headers);
        }
    }
}

/// `RedirectAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    /// `scheme_redirect` or `https_redirect`.
    pub scheme: Option<String>,
    /// `host_redirect`.
    pub host: Option<String>,
    /// `port_redirect`.
    pub port: Option<u16>,
    /// `path_redirect`, `prefix_rewrite`.
    pub path: Option<RedirectPath>,
    /// `strip_query`.
    pub strip_query: bool,
    /// `response_code`, default 301.
    pub status: StatusCode,
}

/// How a redirect changes the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// `path_redirect`.
    Full(String),
    /// `prefix_rewrite`.
    Prefix(String),
}

/// `DirectResponseAction`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// `status`.
    pub status: StatusCode,
    /// `body.inline_string` or `inline_bytes`.
    pub body: Bytes,
}

impl VirtualHost {
    /// The first route that matches, as an index of `routes`. Does not allocate, but for what
    /// header and query matchers say.
    #[must_use]
    pub fn find(&self, key: &RequestKey<'_>) -> Option<usize> {
        self.routes.iter().position(|r| r.matches.matches(key))
    }
}

impl Domain {
    fn read(p: &mut Problems, field: &str, text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (domain, rest) = if text == "*" {
            return Some(Self::Any);
        } else if let Some(suffix) = text.strip_prefix('*') {
            (Self::Suffix(suffix.to_owned()), suffix)
        } else if let Some(prefix) = text.strip_suffix('*') {
            (Self::Prefix(prefix.to_owned()), prefix)
        } else {
            (Self::Exact(text.clone()), text.as_str())
        };
        if rest.is_empty() || rest.contains('*') {
            p.reject(
                field,
                format_args!("{text:?} must be a name, *.name, name.* or *"),
            );
            return None;
        }
        Some(domain)
    }
}

impl RouteMatch {
    /// Whether all of it holds. A CONNECT to an authority has no path: only
    /// `connect_matcher` matches it, and nothing else.
    #[must_use]
    pub fn matches(&self, key: &RequestKey<'_>) -> bool {
        let path = key.uri.path();
        let connect = key.method == Method::CONNECT && path.is_empty();
        let path_matches = match (&self.path, connect) {
            (PathMatcher::Connect, connect) => connect,
            (_, true) => false,
            (matcher, false) => matcher.matches(path, self.case_sensitive),
        };
        path_matches
            && self.headers.iter().all(|m| m.matches(key))
            && self.query.iter().all(|m| m.matches(key.uri.query()))
            && (!self.grpc || is_grpc(key.headers))
    }

    fn read(p: &mut Problems, from: &pb::RouteMatch) -> Option<Self> {
        p.unsupported(from.runtime_fraction.is_some(), "runtime_fraction");
        p.unsupported(!from.cookies.is_empty(), "cookies");
        p.unsupported(from.tls_context.is_some(), "tls_context");
        p.unsupported(!from.dynamic_metadata.is_empty(), "dynamic_metadata");
        p.unsupported(!from.filter_state.is_empty(), "filter_state");
        let headers = each(p, "headers", &from.headers, HeaderMatcher::read);
        let query = each(
            p,
            "query_parameters",
            &from.query_parameters,
            QueryMatcher::read,
        );
        Some(Self {
            path: PathMatcher::read(p, from.path_specifier.as_ref())?,
            case_sensitive: from.case_sensitive.is_none_or(|b| b.value),
            headers,
            query,
            grpc: from.grpc.is_some(),
        })
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Reads a route table; its name is checked by the caller, which knows where it came from.
pub(super) fn read_table(p: &mut Problems, from: &pb::RouteConfiguration) -> Option<RouteTable> {
    p.unsupported(!from.vhost_header.is_empty(), "vhost_header");
    p.unsupported(
        from.most_specific_header_mutations_wins,
        "most_specific_header_mutations_wins",
    );
    p.unsupported(
        from.ignore_path_parameters_in_path_matching,
        "ignore_path_parameters_in_path_matching",
    );
    p.unsupported(
        from.ignore_port_in_host_matching,
        "ignore_port_in_host_matching",
    );
    p.unsupported(!from.route_specifiers.is_empty(), "route_specifiers");
    filter_config(p, &from.typed_per_filter_config);
    p.ignored(
        !from.internal_only_headers.is_empty(),
        "internal_only_headers",
    );
    p.ignored(
        !from.request_mirror_policies.is_empty(),
        "request_mirror_policies",
    );
    if let Some(vhds) = &from.vhds {
        p.ads("vhds.config_source", vhds.config_source.as_ref());
    }
    let outer = Outer {
        request: outer_mutations(
            p,
            "request_headers",
            &from.request_headers_to_add,
            &from.request_headers_to_remove,
        ),
        response: outer_mutations(
            p,
            "response_headers",
            &from.response_headers_to_add,
            &from.response_headers_to_remove,
        ),
        retry: None,
        max_body: from
            .max_direct_response_body_size_bytes
            .map_or(MAX_DIRECT_BODY, |limit| limit.value as usize),
    };
    let virtual_hosts = each(p, "virtual_hosts", &from.virtual_hosts, |p, host| {
        read_host_in(p, host, &outer).map(Arc::new)
    });
    unique_domains(p, &virtual_hosts);
    Some(RouteTable {
        name: from.name.as_str().into(),
        virtual_hosts,
        on_demand: from.vhds.is_some(),
        warnings: Vec::new(),
    })
}

/// Each domain has one virtual host, and each name one virtual host.
fn unique_domains(p: &mut Problems, hosts: &[Arc<VirtualHost>]) {
    let mut domains: HashMap<&Domain, &str> = HashMap::new();
    let mut names: HashMap<&str, ()> = HashMap::new();
    for host in hosts {
        if names.insert(&host.name, ()).is_some() {
            p.reject(
                "virtual_hosts",
                format_args!("the name {:?} is there twice", &*host.name),
            );
        }
        for domain in &host.domains {
            if let Some(other) = domains.insert(domain, &host.name)
                && other != &*host.name
            {
                p.reject(
                    "virtual_hosts",
                    format_args!(
                        "{other:?} and {:?} both have the domain {:?}",
                        &*host.name,
                        domain.to_string()
                    ),
                );
            }
        }
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// What routes take over from the table and the virtual host around them.
#[derive(Clone, Default)]
struct Outer<'a> {
    request: Vec<Arc<HeaderMutations>>,
    response: Vec<Arc<HeaderMutations>>,
    retry: Option<&'a pb::RetryPolicy>,
    max_body: usize,
}

/// Reads a virtual host that was sent as a resource of its own.
pub(super) fn read_host(p: &mut Problems, from: &pb::VirtualHost) -> Option<VirtualHost> {
    let outer = Outer {
        max_body: MAX_DIRECT_BODY,
        ..Outer::default()
    };
    read_host_in(p, from, &outer)
}

fn read_host_in(
    p: &mut Problems,
    from: &pb::VirtualHost,
    table: &Outer<'_>,
) -> Option<VirtualHost> {
    let name = p.not_empty("name", &from.name);
    host_extras(p, from);
    if from.domains.is_empty() {
        p.reject("domains", "must have at least one");
    }
    let mut domains = Vec::with_capacity(from.domains.len());
    for (index, text) in from.domains.iter().enumerate() {
        let field = format!("domains[{index}]");
        if let Some(domain) = Domain::read(p, &field, text) {
            if domains.contains(&domain) {
                p.reject(&field, format_args!("{text:?} is there twice"));
            }
            domains.push(domain);
        }
    }
    let mut outer = table.clone();
    outer.retry = from.retry_policy.as_ref();
    let request = outer_mutations(
        p,
        "request_headers",
        &from.request_headers_to_add,
        &from.request_headers_to_remove,
    );
    outer.request.splice(..0, request);
    let response = outer_mutations(
        p,
        "response_headers",
        &from.response_headers_to_add,
        &from.response_headers_to_remove,
    );
    outer.response.splice(..0, response);
    let routes = each(p, "routes", &from.routes, |p, r| Route::read(p, r, &outer));
    Some(VirtualHost {
        name: name?,
        domains,
        routes,
        warnings: Vec::new(),
    })
}

#[allow(deprecated)] // Deprecated fields that a sender may still set.
fn host_extras(p: &mut Problems, from: &pb::VirtualHost) {
    p.unsupported(from.matcher.is_some(), "matcher");
    p.unsupported(from.require_tls != 0, "require_tls");
    p.unsupported(!from.route_specifiers.is_empty(), "route_specifiers");
    filter_config(p, &from.typed_per_filter_config);
    p.ignored(!from.rate_limits.is_empty(), "rate_limits");
    p.ignored(from.cors.is_some(), "cors");
    p.ignored(
        from.include_request_attempt_count,
        "include_request_attempt_count",
    );
    p.ignored(
        from.include_attempt_count_in_response,
        "include_attempt_count_in_response",
    );
    p.ignored(
        from.include_is_timeout_retry_header,
        "include_is_timeout_retry_header",
    );
    p.ignored(
        from.retry_policy_typed_config.is_some(),
        "retry_policy_typed_config",
    );
    p.ignored(from.hedge_policy.is_some(), "hedge_policy");
    p.ignored(
        !from.request_mirror_policies.is_empty(),
        "request_mirror_policies",
    );
}

/// Configuration of HTTP filters that Weft does not have may restrict access.
fn filter_config(p: &mut Problems, from: &HashMap<String, Any>) {
    let mut names: Vec<_> = from.iter().collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    for (name, config) in names {
        let field = format!("typed_per_filter_config[{name}]");
        match any::unpack::<pb::FilterConfig>(config) {
            Ok(config) if config.is_optional => p.ignored(true, &field),
            _ => p.unsupported(true, &field),
        }
    }
}

impl Route {
    #[allow(deprecated)] // Deprecated fields that a sender may still set.
    fn read(p: &mut Problems, from: &pb::Route, outer: &Outer<'_>) -> Option<Self> {
        p.unsupported(!from.route_specifiers.is_empty(), "route_specifiers");
        filter_config(p, &from.typed_per_filter_config);
        p.ignored(from.tracing.is_some(), "tracing");
        p.ignored(
            from.per_request_buffer_limit_bytes.is_some(),
            "per_request_buffer_limit_bytes",
        );
        p.ignored(
            from.request_body_buffer_limit.is_some(),
            "request_body_buffer_limit",
        );
        let mut request_headers = mutations(
            p,
            "request_headers",
            &from.request_headers_to_add,
            &from.request_headers_to_remove,
        );
        request_headers.outer.clone_from(&outer.request);
        let mut response_headers = mutations(
            p,
            "response_headers",
            &from.response_headers_to_add,
            &from.response_headers_to_remove,
        );
        response_headers.outer.clone_from(&outer.response);
        let matches = p.at("match", |p| match &from.r#match {
            Some(from) => RouteMatch::read(p, from),
            None => {
                p.reject("", "is missing");
                None
            }
        });
        let action = RouteAction::read(p, from.action.as_ref(), outer);
        Some(Self {
            name: from.name.as_str().into(),
            matches: matches?,
            action: action?,
            request_headers,
            response_headers,
        })
    }
}

impl RouteAction {
    fn read(p: &mut Problems, from: Option<&pb::route::Action>, outer: &Outer<'_>) -> Option<Self> {
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
    pub(super) fn one(name: Arc<str>) -> Self {
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
    pub(super) fn sum(p: &mut Problems, mut clusters: Vec<WeightedCluster>) -> Option<Self> {
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

/// Data that came with the resource. Files and variables of the sidecar are none of the
/// control plane's business.
pub(super) fn inline<'a>(p: &mut Problems, field: &str, from: &'a DataSource) -> Option<&'a [u8]> {
    match &from.specifier {
        Some(data_source::Specifier::InlineString(text)) => Some(text.as_bytes()),
        Some(data_source::Specifier::InlineBytes(bytes)) => Some(bytes),
        _ => {
            p.reject(field, "must be inline_string or inline_bytes");
            None
        }
    }
}

fn outer_mutations(
    p: &mut Problems,
    field: &str,
    add: &[HeaderValueOption],
    remove: &[String],
) -> Vec<Arc<HeaderMutations>> {
    let mutations = mutations(p, field, add, remove);
    if mutations.is_empty() {
        Vec::new()
    } else {
        vec![Arc::new(mutations)]
    }
}

/// Reads `<field>_to_add` and `<field>_to_remove`.
fn mutations(
    p: &mut Problems,
    field: &str,
    add: &[HeaderValueOption],
    remove: &[String],
) -> HeaderMutations {
    let mut all = HeaderMutations::default();
    for (index, option) in add.iter().enumerate() {
        p.at(format_args!("{field}_to_add[{index}]"), |p| {
            add_mutation(p, &mut all, option)
        });
    }
    for (index, name) in remove.iter().enumerate() {
        let field = format!("{field}_to_remove[{index}]");
        all.remove.extend(mutable_name(p, &field, name));
    }
    all
}

#[allow(deprecated)] // `append` is what older senders set.
fn add_mutation(p: &mut Problems, all: &mut HeaderMutations, from: &HeaderValueOption) {
    use header_value_option::HeaderAppendAction as Action;
    let Some(header) = &from.header else {
        p.reject("header", "is missing");
        return;
    };
    let name = mutable_name(p, "header.key", &header.key);
    let bytes = if header.value.is_empty() {
        header.raw_value.clone()
    } else {
        match literal(&header.value) {
            Ok(text) => text.into_bytes(),
            Err(command) => {
                p.reject(
                    "header.value",
                    format_args!("{command} is not supported; write %% for a percent sign"),
                );
                return;
            }
        }
    };
    let value = HeaderValue::from_bytes(&bytes);
    if value.is_err() {
        p.reject("header.value", "has control characters");
    }
    let action = match from.append {
        Some(append) if !append.value => Action::OverwriteIfExistsOrAdd as i32,
        _ => from.append_action,
    };
    let action = Action::try_from(action);
    if action.is_err() {
        p.reject(
            "append_action",
            format_args!("{} is not known", from.append_action),
        );
    }
    let (Some(name), Ok(value), Ok(action)) = (name, value, action) else {
        return;
    };
    if value.is_empty() && !from.keep_empty_value {
        p.warn(
            "header.value",
            "is empty and has no effect without keep_empty_value",
        );
        return;
    }
    match action {
        Action::AppendIfExistsOrAdd => all.add.push((name, value)),
        Action::AddIfAbsent => all.add_if_absent.push((name, value)),
        Action::OverwriteIfExists => all.replace.push((name, value)),
        Action::OverwriteIfExistsOrAdd => {
            // In the order of the list it would overwrite what was added before.
            all.add.retain(|(added, _)| *added != name);
            all.set.push((name, value));
        }
    }
}

/// A header that may be changed: not one that frames the message or names the host.
fn mutable_name(p: &mut Problems, field: &str, name: &str) -> Option<HeaderName> {
    let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
        p.reject(field, format_args!("{name:?} is no header name"));
        return None;
    };
    let fixed = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    if fixed.contains(&parsed) {
        p.reject(
            field,
            format_args!("{parsed} must not be changed by a route"),
        );
        return None;
    }
    Some(parsed)
}

/// A value without Envoy's command operators: `%%` is a percent sign. A `%` that starts no
/// command is one too.
///
/// # Errors
/// The command operator that was found.
fn literal(value: &str) -> Result<String, &str> {
    let mut text = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        text.push('%');
        rest = after;
        if let Some(after) = after.strip_prefix('%') {
            rest = after;
        } else if let Some(end) = command_end(after) {
            let start = value.len() - after.len() - 1;
            return Err(&value[start..start + end + 2]);
        }
    }
    text.push_str(rest);
    Ok(text)
}

/// Where the closing `%` of `NAME%` or `NAME(...)%` is.
fn command_end(text: &str) -> Option<usize> {
    let name = text
        .bytes()
        .take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
        .count();
    let rest = &text[name..];
    let closes = rest.starts_with('%') || rest.starts_with('(');
    (name > 0 && closes).then(|| text.find('%')).flatten()
}

/// Reads all elements of a list, so that every bad one is reported.
pub(super) fn each<F, T>(
    p: &mut Problems,
    field: &str,
    from: &[F],
    mut read: impl FnMut(&mut Problems, &F) -> Option<T>,
) -> Vec<T> {
    let elements = from.iter().enumerate();
    elements
        .filter_map(|(index, element)| p.at(format_args!("{field}[{index}]"), |p| read(p, element)))
        .collect()
}

/// Envoy's default for `RouteAction.timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's default for `max_direct_response_body_size_bytes`.
const MAX_DIRECT_BODY: usize = 4096;

#[cfg(test)]
mod tests {
    use http::Request;
    use weft_api::{
        Kind,
        any::pack,
        envoy::{
            config::core::v3::{self as core, HeaderValue as HeaderPb},
            r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
        },
        google::protobuf::{BoolValue, Duration as DurationPb, UInt32Value},
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

    fn applied(
        add: Vec<HeaderValueOption>,
        remove: &[&str],
        before: &[(&str, &str)],
    ) -> Vec<String> {
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
}
