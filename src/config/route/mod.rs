//! `envoy.config.route.v3`: route tables, virtual hosts, routes and what they do.

mod action;
mod headers;

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use regex::Regex;
use weft_api::{
    any,
    envoy::config::{core::v3::Metadata, route::v3 as pb},
    google::protobuf::Any,
};

pub(super) use headers::HeaderMutations;
use headers::{mutations, outer_mutations};

use super::{
    matcher::{HeaderMatcher, PathMatcher, QueryMatcher},
    problems::{Problems, each},
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
    /// Metadata `protocol`: what the port was declared to speak.
    pub protocol: PortProtocol,
    /// Metadata `addresses` and `ttl`: what a DNS name stands for.
    pub addresses: Option<Addresses>,
    /// Fields that were set and have no effect; of a host in a table, the table has them.
    pub warnings: Vec<String>,
}

/// What a service's port was declared to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortProtocol {
    /// Nothing was declared: each connection tells.
    #[default]
    Detected,
    /// `http`, `http2`, `grpc`.
    Http,
    /// `tcp`: bytes.
    Tcp,
}

/// The answer to a DNS query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4 and IPv6.
    pub addresses: Arc<[IpAddr]>,
    /// How long it may be kept, in seconds.
    pub ttl: u32,
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

/// What matching looks at. Nothing of it is decoded here.
#[derive(Clone, Copy, Debug)]
pub struct RequestKey<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target; its query is used.
    pub uri: &'a Uri,
    /// The path of the target, or another reading of it.
    pub path: &'a str,
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
        let path = key.path;
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

    /// Whether the path makes a difference, but for CONNECT, which has none.
    #[must_use]
    pub fn looks_at_path(&self) -> bool {
        let all = match &self.path {
            PathMatcher::Prefix(prefix) => prefix.len() <= 1,
            PathMatcher::Connect => true,
            PathMatcher::Exact(_) | PathMatcher::Segments(_) | PathMatcher::Regex(_) => false,
        };
        !all || self.headers.iter().any(HeaderMatcher::looks_at_path)
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
    let metadata = from.metadata.as_ref();
    Some(VirtualHost {
        protocol: PortProtocol::read(p, metadata),
        addresses: Addresses::read(p, metadata),
        name: name?,
        domains,
        routes,
        warnings: Vec::new(),
    })
}

impl PortProtocol {
    fn read(p: &mut Problems, from: Option<&Metadata>) -> Self {
        match p.metadata_string(from, "protocol") {
            None | Some("") => Self::Detected,
            Some("http" | "http2" | "grpc") => Self::Http,
            Some("tcp") => Self::Tcp,
            Some(other) => {
                let words = format_args!("{other:?} must be http, http2, grpc, tcp or empty");
                p.reject("metadata[weft.dev].protocol", words);
                Self::Detected
            }
        }
    }
}

impl Addresses {
    fn read(p: &mut Problems, from: Option<&Metadata>) -> Option<Self> {
        let texts = p.metadata_strings(from, "addresses");
        let ttl = p.metadata_seconds(from, "ttl")?;
        let mut addresses = Vec::with_capacity(texts.len());
        for text in texts {
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => p.reject(
                    "metadata[weft.dev].addresses",
                    format_args!("{text:?} is no IP address"),
                ),
            }
        }
        Some(Self {
            addresses: addresses.into(),
            ttl,
        })
    }
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

/// Envoy's default for `max_direct_response_body_size_bytes`.
const MAX_DIRECT_BODY: usize = 4096;

#[cfg(test)]
mod tests;
