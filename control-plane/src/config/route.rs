//! `HTTPRoute`, `GRPCRoute` and `TCPRoute` of Gateway API, as bound to Services.
//!
//! All three become the same rules: a gRPC method is a path, a TCP rule has no matches.
//! Limits and cross-field rules are those of the Gateway API CRDs.

use std::time::Duration;

use super::field::{Field, Object};
use super::policy::service_only;
use super::{Content, Meta, Reference, Role, check, duration, label};
use crate::model::{
    Backend, HeaderChanges, Match, Parent, PathChange, PathMatch, Redirect, Rewrite, Route,
    RouteKind, Rule, ValueMatch,
};

const MAX_PARENTS: usize = 32;
const MAX_RULES: usize = 64;
const MAX_MATCHES: usize = 64;
const MAX_FILTERS: usize = 16;
const MAX_BACKENDS: usize = 16;
const MAX_VALUES: usize = 16;

pub(super) fn decode_http(object: &Object<'_>, meta: &Meta) -> (Option<Content>, Vec<Reference>) {
    decode(object, meta, RouteKind::Http)
}

pub(super) fn decode_grpc(object: &Object<'_>, meta: &Meta) -> (Option<Content>, Vec<Reference>) {
    decode(object, meta, RouteKind::Grpc)
}

pub(super) fn decode_tcp(object: &Object<'_>, meta: &Meta) -> (Option<Content>, Vec<Reference>) {
    decode(object, meta, RouteKind::Tcp)
}

fn decode(object: &Object<'_>, meta: &Meta, kind: RouteKind) -> (Option<Content>, Vec<Reference>) {
    let mut references = Vec::new();
    let Some(spec) = object.required("spec").and_then(|f| f.object()) else {
        return (None, references);
    };
    let mut route = Route {
        kind,
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        created: meta.created,
        parents: Vec::new(),
        rules: Vec::new(),
    };
    if let Some(parents) = spec.required("parentRefs") {
        for item in parents.items(MAX_PARENTS) {
            if let Some(parent) = decode_parent(&item, meta, &mut references) {
                route.parents.push(parent);
            }
        }
    }
    if kind != RouteKind::Tcp
        && let Some(hostnames) = spec.optional("hostnames")
    {
        hostnames.items(16);
        hostnames.warning(
            "`hostnames` have no effect on a route of a Service",
            "the service that was called decides; remove the field",
        );
    }
    spec.unsupported(&["useDefaultGateways"]);
    if let Some(field) = spec.required("rules") {
        let items = field.items(MAX_RULES);
        if items.is_empty() {
            field.error("a route needs a rule", "add an item with `backendRefs`");
        }
        if kind == RouteKind::Tcp && items.len() > 1 {
            field.error(
                "a TCPRoute has one rule",
                "connections cannot be told apart",
            );
        }
        for item in &items {
            route
                .rules
                .extend(decode_rule(item, &route, &mut references));
        }
        check_rule_names(&field, &route.rules);
        check_reachable(&items, &route.rules);
    }
    spec.finish();
    (Some(Content::Route(route)), references)
}

fn check_rule_names(field: &Field<'_>, rules: &[Rule]) {
    for (i, rule) in rules.iter().enumerate() {
        if rule.name.is_some() && rules[..i].iter().any(|other| other.name == rule.name) {
            let name = rule.name.as_deref().unwrap_or_default();
            field.error(
                format!("two rules are named `{name}`"),
                "rule names are unique",
            );
        }
    }
}

/// A PathPrefix goes before every regular expression, so `/` without conditions leaves
/// those nothing.
fn check_reachable(items: &[Field<'_>], rules: &[Rule]) {
    let takes_all = |matched: &Match| {
        matched.path == PathMatch::Prefix(String::new())
            && matched.method.is_none()
            && matched.headers.is_empty()
            && matched.query.is_empty()
            && matched.rank[0] > 0
    };
    if !rules.iter().flat_map(|rule| &rule.matches).any(takes_all) {
        return;
    }
    for (item, rule) in items.iter().zip(rules) {
        let is_regex = |matched: &Match| matches!(matched.path, PathMatch::Regex(_));
        if rule.matches.iter().any(is_regex) {
            item.warning(
                "no request reaches the RegularExpression match",
                "another rule takes every path, and a PathPrefix goes first; give it a condition",
            );
        }
    }
}

fn decode_parent(item: &Field<'_>, meta: &Meta, references: &mut Vec<Reference>) -> Option<Parent> {
    let object = item.object()?;
    let is_service = service_only(&object, "gateway.networking.k8s.io", "Gateway");
    let name = object.required("name").and_then(|f| label(&f));
    let namespace = object.optional("namespace").map(|f| label(&f));
    let port = object.optional("port").and_then(|f| f.port());
    object.unsupported(&["sectionName"]);
    object.finish();
    let (name, namespace) = (name?, namespace.unwrap_or(Some(&meta.namespace))?);
    if is_service {
        references.push(Reference::new(item, Role::Parent, namespace, name, port));
    }
    Some(Parent {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        port,
    })
}

fn decode_rule(item: &Field<'_>, route: &Route, references: &mut Vec<Reference>) -> Option<Rule> {
    let object = item.object()?;
    let mut rule = Rule {
        name: object.optional("name").and_then(|f| rule_name(&f)),
        ..Rule::default()
    };
    if route.kind == RouteKind::Tcp {
        rule.matches.push(match_all(route.kind));
    } else {
        if let Some(matches) = object.optional("matches") {
            for item in matches.items(MAX_MATCHES) {
                rule.matches.extend(match route.kind {
                    RouteKind::Grpc => decode_grpc_match(&item),
                    _ => decode_http_match(&item),
                });
            }
        }
        if rule.matches.is_empty() {
            rule.matches.push(match_all(route.kind));
        }
        if let Some(filters) = object.optional("filters") {
            decode_filters(&filters, route.kind, &mut rule);
        }
        object.unsupported(&["sessionPersistence"]);
    }
    if route.kind == RouteKind::Http {
        if let Some(timeouts) = object.optional("timeouts") {
            decode_timeouts(&timeouts, &mut rule);
        }
        object.unsupported(&["retry"]);
    }
    if let Some(backends) = object.optional("backendRefs") {
        for item in backends.items(MAX_BACKENDS) {
            rule.backends
                .extend(decode_backend(&item, route, references));
        }
        if rule.redirect.is_some() && !rule.backends.is_empty() {
            backends.error(
                "a rule that redirects has no backends",
                "remove `backendRefs` or the RequestRedirect filter",
            );
        }
    }
    object.finish();
    if rule.redirect.is_none() && rule.backends.iter().all(|backend| backend.weight == 0) {
        item.warning(
            "no backend takes requests: they are answered 500",
            "add `backendRefs` with a weight above 0",
        );
    }
    check_prefix_replacement(item, &rule);
    Some(rule)
}

fn rule_name(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if !check::is_object_name(text) {
        field.error(
            format!("`{text}` is not a valid name"),
            "use lower-case letters, digits, `-` and `.`",
        );
    }
    Some(text.to_owned())
}

/// What a prefix is replaced by is only clear if there is one prefix.
fn check_prefix_replacement(item: &Field<'_>, rule: &Rule) {
    let rewrite = rule.rewrite.as_ref().and_then(|r| r.path.as_ref());
    let redirect = rule.redirect.as_ref().and_then(|r| r.path.as_ref());
    let replaces = matches!(rewrite.or(redirect), Some(PathChange::Prefix(_)));
    let one_prefix = matches!(
        rule.matches.as_slice(),
        [Match {
            path: PathMatch::Prefix(_),
            ..
        }]
    );
    if replaces && !one_prefix {
        item.error(
            "ReplacePrefixMatch needs exactly one match, and it must be of type PathPrefix",
            "split the rule, one for each match",
        );
    }
}

/// What a rule without matches has; the least specific of its kind.
fn match_all(kind: RouteKind) -> Match {
    let mut all = http_match(
        PathMatch::Prefix(String::new()),
        None,
        Vec::new(),
        Vec::new(),
    );
    if kind == RouteKind::Grpc {
        all.rank = [0; 5];
    }
    all
}

/// An HTTP match with its rank: exact path, longest prefix, method, number of headers,
/// number of query parameters.
fn http_match(
    path: PathMatch,
    method: Option<String>,
    headers: Vec<ValueMatch>,
    query: Vec<ValueMatch>,
) -> Match {
    // Kind and length in one number: lengths are at most 1024.
    let path_rank = match &path {
        PathMatch::Exact(value) => 20_000 + value.len(),
        PathMatch::Prefix(value) => 10_000 + value.len(),
        PathMatch::Regex(value) => value.len(),
    };
    let rank = [
        path_rank,
        usize::from(method.is_some()),
        headers.len(),
        query.len(),
        0,
    ];
    Match {
        path,
        method,
        headers,
        query,
        rank,
    }
}

fn decode_http_match(item: &Field<'_>) -> Option<Match> {
    let object = item.object()?;
    let path = object.optional("path").map_or_else(
        || Some(PathMatch::Prefix(String::new())),
        |f| decode_path(&f),
    );
    let methods = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    let method = object
        .optional("method")
        .and_then(|f| f.choice(&methods.map(|method| (method, method))));
    let headers = object.optional("headers").map(|f| decode_values(&f, true));
    let query = object
        .optional("queryParams")
        .map(|f| decode_values(&f, false));
    object.finish();
    Some(http_match(
        path?,
        method.map(str::to_owned),
        headers.unwrap_or_default(),
        query.unwrap_or_default(),
    ))
}

fn decode_path(field: &Field<'_>) -> Option<PathMatch> {
    let object = field.object()?;
    let kind = object.optional("type").map_or(Some("PathPrefix"), |f| {
        f.choice(&["Exact", "PathPrefix", "RegularExpression"].map(|word| (word, word)))
    });
    let value = object.optional("value");
    object.finish();
    let text = value.as_ref().map_or(Some("/"), Field::text)?;
    let kind = kind?;
    let checked = if kind == "RegularExpression" {
        check::regex(text)
    } else {
        check::match_path(text).map_err(str::to_owned)
    };
    if let Err(help) = checked {
        value
            .as_ref()
            .unwrap_or(field)
            .error(format!("`{text}` is not a valid path"), help);
        return None;
    }
    Some(match kind {
        "Exact" => PathMatch::Exact(text.to_owned()),
        "RegularExpression" => PathMatch::Regex(text.to_owned()),
        _ => PathMatch::Prefix(text.trim_end_matches('/').to_owned()),
    })
}

fn decode_values(field: &Field<'_>, headers: bool) -> Vec<ValueMatch> {
    let mut out: Vec<ValueMatch> = Vec::new();
    for item in field.items(MAX_VALUES) {
        let Some(object) = item.object() else {
            continue;
        };
        let is_regex = object.optional("type").map_or(Some(false), |f| {
            f.choice(&[("Exact", false), ("RegularExpression", true)])
        });
        let name = object.required("name").and_then(|f| Some((f.text()?, f)));
        let value = object.required("value").and_then(|f| Some((f.text()?, f)));
        object.finish();
        let (Some((name, name_field)), Some((value, value_field)), Some(is_regex)) =
            (name, value, is_regex)
        else {
            continue;
        };
        // Query parameters have the same rule for names in Gateway API.
        if let Err(help) = check::header_name(name) {
            name_field.error(format!("`{name}` is not a valid name"), help);
        }
        let checked = if is_regex {
            check::regex(value)
        } else {
            check::header_value(value).map_err(str::to_owned)
        };
        if let Err(help) = checked {
            value_field.error(format!("`{value}` is not a valid value"), help);
        }
        let name = if headers {
            name.to_ascii_lowercase()
        } else {
            name.to_owned()
        };
        if out.iter().any(|other| other.name == name) {
            name_field.error(format!("`{name}` is matched twice"), "join the conditions");
        }
        out.push(ValueMatch {
            name,
            value: value.to_owned(),
            is_regex,
        });
    }
    out
}

/// A gRPC match with its rank: exact method, characters of the service, of the method,
/// number of headers.
fn decode_grpc_match(item: &Field<'_>) -> Option<Match> {
    let object = item.object()?;
    let method = object.optional("method").map(|f| decode_grpc_method(&f));
    let headers = object.optional("headers").map(|f| decode_values(&f, true));
    object.finish();
    let headers = headers.unwrap_or_default();
    let (path, mut rank) = match method {
        Some(found) => found?,
        None => (PathMatch::Prefix(String::new()), [0; 5]),
    };
    rank[3] = headers.len();
    Some(Match {
        path,
        method: None,
        headers,
        query: Vec::new(),
        rank,
    })
}

fn decode_grpc_method(field: &Field<'_>) -> Option<(PathMatch, [usize; 5])> {
    let object = field.object()?;
    let is_regex = object.optional("type").map_or(Some(false), |f| {
        f.choice(&[("Exact", false), ("RegularExpression", true)])
    });
    let part = |name: &'static str| {
        let field = object.optional(name)?;
        Some((field.text()?.to_owned(), field))
    };
    let (service, method) = (part("service"), part("method"));
    object.finish();
    let is_regex = is_regex?;
    if service.is_none() && method.is_none() {
        field.error(
            "a method match needs `service` or `method`",
            "name at least one",
        );
        return None;
    }
    for (text, field) in [&service, &method].into_iter().flatten() {
        let checked = if is_regex {
            check::regex(text)
        } else if !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._".contains(&b))
        {
            Ok(())
        } else {
            Err("use letters, digits, `_` and `.`, for example `helloworld.Greeter`".to_owned())
        };
        if let Err(help) = checked {
            field.error(format!("`{text}` is not a valid name"), help);
            return None;
        }
    }
    let length = |part: &Option<(String, Field<'_>)>| part.as_ref().map_or(0, |(t, _)| t.len());
    let rank = [
        usize::from(!is_regex),
        length(&service),
        length(&method),
        0,
        0,
    ];
    let path = match (&service, &method, is_regex) {
        (Some((service, _)), Some((method, _)), false) => {
            PathMatch::Exact(format!("/{service}/{method}"))
        }
        _ => {
            let part = |part: &Option<(String, Field<'_>)>| match part {
                None => "[^/]+".to_owned(),
                Some((text, _)) if is_regex => format!("(?:{text})"),
                Some((text, _)) => regex::escape(text),
            };
            PathMatch::Regex(format!("/{}/{}", part(&service), part(&method)))
        }
    };
    Some((path, rank))
}

fn decode_filters(field: &Field<'_>, kind: RouteKind, rule: &mut Rule) {
    let mut seen = Vec::new();
    for item in field.items(MAX_FILTERS) {
        let Some(object) = item.object() else {
            continue;
        };
        let Some(name) = filter_type(&object, kind) else {
            continue;
        };
        if seen.contains(&name) {
            item.error(format!("a second {name} filter"), "join the two");
        }
        seen.push(name);
        match name {
            "RequestHeaderModifier" => {
                if let Some(f) = object.required("requestHeaderModifier") {
                    rule.request_headers = decode_header_changes(&f);
                }
            }
            "ResponseHeaderModifier" => {
                if let Some(f) = object.required("responseHeaderModifier") {
                    rule.response_headers = decode_header_changes(&f);
                }
            }
            "RequestRedirect" => {
                rule.redirect = object
                    .required("requestRedirect")
                    .and_then(|f| decode_redirect(&f));
            }
            _ => {
                rule.rewrite = object
                    .required("urlRewrite")
                    .and_then(|f| decode_rewrite(&f));
            }
        }
        object.finish();
    }
    if seen.contains(&"RequestRedirect") && seen.contains(&"URLRewrite") {
        field.error(
            "RequestRedirect and URLRewrite exclude each other",
            "a redirected request is not forwarded; remove one of them",
        );
    }
}

/// The type of a filter that Weft has; others are errors.
fn filter_type(object: &Object<'_>, kind: RouteKind) -> Option<&'static str> {
    let mut types: Vec<(&'static str, (&'static str, bool))> = vec![
        ("RequestHeaderModifier", ("RequestHeaderModifier", true)),
        ("ResponseHeaderModifier", ("ResponseHeaderModifier", true)),
        ("RequestMirror", ("RequestMirror", false)),
        ("ExtensionRef", ("ExtensionRef", false)),
    ];
    if kind == RouteKind::Http {
        types.extend([
            ("RequestRedirect", ("RequestRedirect", true)),
            ("URLRewrite", ("URLRewrite", true)),
            ("CORS", ("CORS", false)),
            ("ExternalAuth", ("ExternalAuth", false)),
        ]);
    }
    let field = object.required("type")?;
    let (name, supported) = field.choice(&types)?;
    if !supported {
        field.error(
            format!("the filter {name} is not supported yet"),
            "remove the filter; nothing is silently ignored",
        );
        return None;
    }
    Some(name)
}

fn decode_header_changes(field: &Field<'_>) -> HeaderChanges {
    let mut out = HeaderChanges::default();
    let Some(object) = field.object() else {
        return out;
    };
    for (name, list) in [("set", &mut out.set), ("add", &mut out.add)] {
        let Some(field) = object.optional(name) else {
            continue;
        };
        for item in field.items(MAX_VALUES) {
            let Some((name, value)) = decode_header(&item) else {
                continue;
            };
            if list.iter().any(|(other, _)| *other == name) {
                item.error(format!("`{name}` is listed twice"), "list each header once");
            }
            list.push((name, value));
        }
    }
    if let Some(field) = object.optional("remove") {
        for item in field.items(MAX_VALUES) {
            let Some(name) = item.text() else { continue };
            if let Err(help) = check::mutable_header(name) {
                item.error(format!("`{name}` cannot be removed"), help);
            }
            out.remove.push(name.to_ascii_lowercase());
        }
    }
    object.finish();
    out
}

fn decode_header(item: &Field<'_>) -> Option<(String, String)> {
    let object = item.object()?;
    let name = object.required("name").and_then(|f| Some((f.text()?, f)));
    let value = object.required("value").and_then(|f| Some((f.text()?, f)));
    object.finish();
    let ((name, name_field), (value, value_field)) = (name?, value?);
    if let Err(help) = check::mutable_header(name) {
        name_field.error(format!("`{name}` cannot be set"), help);
    }
    if let Err(help) = check::header_value(value) {
        value_field.error(format!("{value:?} is not a valid value"), help);
    }
    Some((name.to_ascii_lowercase(), value.to_owned()))
}

fn decode_redirect(field: &Field<'_>) -> Option<Redirect> {
    let object = field.object()?;
    let words = [("http", "http"), ("https", "https")];
    let codes = [301, 302, 303, 307, 308];
    let status = object.optional("statusCode").map_or(Some(302), |f| {
        let code = f.integer(0..=999)?;
        if !codes.contains(&code) {
            f.error(
                format!("{code} is not a redirect"),
                "use 301, 302, 303, 307 or 308",
            );
        }
        u16::try_from(code).ok()
    });
    let redirect = Redirect {
        scheme: object
            .optional("scheme")
            .and_then(|f| f.choice(&words))
            .map(str::to_owned),
        hostname: object.optional("hostname").and_then(|f| hostname(&f)),
        port: object.optional("port").and_then(|f| f.port()),
        path: object.optional("path").and_then(|f| decode_path_change(&f)),
        status: status.unwrap_or(302),
    };
    object.finish();
    Some(redirect)
}

fn decode_rewrite(field: &Field<'_>) -> Option<Rewrite> {
    let object = field.object()?;
    let rewrite = Rewrite {
        hostname: object.optional("hostname").and_then(|f| hostname(&f)),
        path: object.optional("path").and_then(|f| decode_path_change(&f)),
    };
    object.finish();
    Some(rewrite)
}

fn hostname(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if !check::is_object_name(text) || text.parse::<std::net::IpAddr>().is_ok() {
        field.error(
            format!("`{text}` is not a host name"),
            "write a name in lower case without a port, for example example.org",
        );
        return None;
    }
    Some(text.to_owned())
}

fn decode_path_change(field: &Field<'_>) -> Option<PathChange> {
    let object = field.object()?;
    let is_prefix = object
        .required("type")
        .and_then(|f| f.choice(&[("ReplaceFullPath", false), ("ReplacePrefixMatch", true)]));
    let (wanted, other) = match is_prefix {
        Some(true) => ("replacePrefixMatch", "replaceFullPath"),
        _ => ("replaceFullPath", "replacePrefixMatch"),
    };
    let value = match (is_prefix, object.optional(other)) {
        (None, _) => object.optional(wanted).and(None),
        (Some(_), None) => object.required(wanted),
        (Some(_), Some(field)) => {
            field.error(
                format!("`{other}` does not belong to this type"),
                format!("use `{wanted}`"),
            );
            object.optional(wanted)
        }
    };
    object.finish();
    let value = value?;
    let text = value.text()?;
    // An empty prefix means the same as `/`.
    let text = if text.is_empty() && is_prefix == Some(true) {
        "/"
    } else {
        text
    };
    if let Err(help) = check::plain_path(text) {
        value.error(format!("`{text}` is not a valid path"), help);
        return None;
    }
    Some(if is_prefix? {
        PathChange::Prefix(text.to_owned())
    } else {
        PathChange::Full(text.to_owned())
    })
}

fn decode_timeouts(field: &Field<'_>, rule: &mut Rule) {
    let Some(object) = field.object() else { return };
    let request = object.optional("request").and_then(|f| duration(&f));
    let attempt = object
        .optional("backendRequest")
        .and_then(|f| Some((duration(&f)?, f)));
    object.finish();
    rule.timeout = request.unwrap_or(Duration::ZERO);
    let Some((attempt, field)) = attempt else {
        return;
    };
    let limited = request.is_some_and(|request| !request.is_zero());
    if limited && (attempt > rule.timeout || attempt.is_zero()) {
        field.error(
            "`backendRequest` is longer than `request`",
            "a try is a part of the whole; make it shorter or remove it",
        );
    }
    rule.try_timeout = Some(attempt).filter(|attempt| !attempt.is_zero());
}

fn decode_backend(
    item: &Field<'_>,
    route: &Route,
    references: &mut Vec<Reference>,
) -> Option<Backend> {
    let object = item.object()?;
    service_only(&object, "", "Service");
    let name = object.required("name").and_then(|f| label(&f));
    let namespace = object.optional("namespace").map(|f| label(&f));
    let port = object.required("port").and_then(|f| f.port());
    let weight = object
        .optional("weight")
        .map_or(Some(1), |f| f.integer(0..=1_000_000));
    let mut filters = Rule::default();
    if route.kind != RouteKind::Tcp
        && let Some(field) = object.optional("filters")
    {
        decode_filters(&field, route.kind, &mut filters);
        if filters.redirect.is_some() || filters.rewrite.is_some() {
            field.error(
                "on a backend only header filters are supported yet",
                "move the filter to the rule",
            );
        }
    }
    object.finish();
    let (name, namespace) = (name?, namespace.unwrap_or(Some(&route.namespace))?);
    let (port, weight) = (
        port?,
        weight.and_then(|w| u32::try_from(w).ok()).unwrap_or(1),
    );
    if weight > 0 {
        let role = Role::Backend;
        references.push(Reference::new(item, role, namespace, name, Some(port)));
    }
    Some(Backend {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        port,
        weight,
        request_headers: filters.request_headers,
        response_headers: filters.response_headers,
    })
}
