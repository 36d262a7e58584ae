//! HOT. Header rules of a proxy: what ends here, what a rewrite changes.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    uri::PathAndQuery,
};

use crate::{
    config::{PathMatcher, PathRewrite, Redirect, RedirectPath},
    error::{Error, Reason},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes what is meant for this hop only (RFC 9110 section 7.6.1): the fields that
/// `Connection` names and those that always are. `TE: trailers` stays: both hops can carry
/// trailers, and gRPC demands it.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    // Most messages have none of them: one look at each name is cheaper than a lookup of
    // each field.
    let any = headers.keys().any(|name| {
        [CONNECTION, UPGRADE, TE, TRANSFER_ENCODING].contains(name)
            || [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS].contains(name)
    });
    if any || keep_upgrade {
        strip(headers, keep_upgrade);
    }
}

fn strip(headers: &mut HeaderMap, keep_upgrade: bool) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // These delimit or route the message; no client may take them away.
            .filter(|name| ![HOST, TE, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name))
            .filter(|name| !(keep_upgrade && *name == UPGRADE))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if keep_upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(HTTP2_SETTINGS);
    if headers.remove(TRANSFER_ENCODING).is_some() {
        // The coding said where the body ends; the length does not (RFC 9112 section 6.3).
        headers.remove(CONTENT_LENGTH);
    }
    if let Some(te) = headers.get(TE) {
        let trailers = te.to_str().is_ok_and(|te| {
            te.split(',')
                .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        });
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
}

/// Whether the client asks to switch to WebSocket.
pub(super) fn wants_websocket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|name| name.eq_ignore_ascii_case("websocket"))
        && headers.get_all(CONNECTION).iter().any(|value| {
            value.to_str().is_ok_and(|value| {
                value
                    .split(',')
                    .any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
            })
        })
}

/// The path as the route rewrites it; the query stays.
pub(super) fn rewrite_path(
    uri: &Uri,
    matcher: &PathMatcher,
    rewrite: &PathRewrite,
) -> Result<PathAndQuery, Error> {
    let path = uri.path();
    let new: Cow<'_, str> = match rewrite {
        // The `*` of OPTIONS has no prefix.
        PathRewrite::Prefix(_) if path == "*" => Cow::Borrowed(path),
        PathRewrite::Prefix(to) => replace_prefix(path, matcher, to),
        PathRewrite::Regex(pattern, to) => pattern.replace_all(path, to.as_str()),
    };
    let text = match uri.query() {
        Some(query) => format!("{new}?{query}"),
        None => new.into_owned(),
    };
    text.parse().map_err(|_| {
        let words = format!("the rewritten path `{text}` is no path");
        Error::new(Reason::ClientProtocolError, words)
    })
}

/// Replaces the matched prefix and joins on segment borders: `/v2` to `/` makes `/v2/x`
/// become `/x`, not `//x`.
fn replace_prefix<'a>(path: &'a str, matcher: &PathMatcher, to: &str) -> Cow<'a, str> {
    let matched = match matcher {
        // A prefix that ends in a slash ends before it: `/` to `/xyz` makes `/bar` become
        // `/xyz/bar` (Gateway API, HTTPPathModifier).
        PathMatcher::Prefix(m) => m.strip_suffix('/').unwrap_or(m).len(),
        PathMatcher::Exact(m) | PathMatcher::Segments(m) => m.len(),
        PathMatcher::Regex(_) => path.len(),
        PathMatcher::Connect => 0,
    };
    let rest = path.get(matched..).unwrap_or_default();
    let by_segment = !matches!(matcher, PathMatcher::Prefix(_)) || to.ends_with('/');
    let new = match (to.strip_suffix('/'), rest) {
        (_, "") => to.to_owned(),
        (Some(to), rest) if by_segment && rest.starts_with('/') => format!("{to}{rest}"),
        _ => format!("{to}{rest}"),
    };
    if new.starts_with('/') {
        Cow::Owned(new)
    } else {
        Cow::Owned(format!("/{new}"))
    }
}

/// The `Location` of a redirect. The scheme is `http` inside the mesh; a port is written
/// unless it is the scheme's own.
pub(super) fn location(
    redirect: &Redirect,
    uri: &Uri,
    authority: &str,
    matcher: &PathMatcher,
) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host, port.parse().ok())
        }
        _ => (authority, None),
    };
    let host = redirect.host.as_deref().unwrap_or(host);
    // A new scheme means its own port, unless the rule names one (Gateway API).
    let port = redirect.port.or(if redirect.scheme.is_some() {
        None
    } else {
        port
    });
    let own = if scheme == "https" { 443 } else { 80 };
    let port = port
        .filter(|port| *port != own)
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    // An absolute target says `*` by having no path (RFC 9112, 3.2.4).
    let found = Some(uri.path()).filter(|path| *path != "*").unwrap_or("");
    let path: Cow<'_, str> = match &redirect.path {
        None => Cow::Borrowed(found),
        Some(RedirectPath::Full(path)) => Cow::Borrowed(path),
        Some(RedirectPath::Prefix(to)) => replace_prefix(found, matcher, to),
    };
    let query = match uri.query() {
        Some(query) if !redirect.strip_query => format!("?{query}"),
        _ => String::new(),
    };
    format!("{scheme}://{host}{port}{path}{query}")
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};

    use super::{location, replace_prefix, rewrite_path, strip_hop_by_hop, wants_websocket};
    use crate::config::{PathMatcher, PathRewrite, Redirect, RedirectPath};

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    name.parse::<HeaderName>().unwrap(),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        let check = |input: &[(&str, &str)], left: &[&str]| {
            let mut map = headers(input);
            strip_hop_by_hop(&mut map, false);
            let mut names: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, left, "{input:?}");
        };
        check(
            &[("connection", "close, X-A"), ("x-a", "1"), ("x-b", "2")],
            &["x-b"],
        );
        check(
            &[("keep-alive", "1"), ("proxy-connection", "x"), ("a", "1")],
            &["a"],
        );
        check(&[("te", "trailers, gzip")], &["te"]);
        check(&[("te", "gzip")], &[]);
        check(
            &[
                ("upgrade", "h2c"),
                ("connection", "upgrade, http2-settings"),
                ("http2-settings", "x"),
            ],
            &[],
        );
        check(
            &[("transfer-encoding", "chunked"), ("content-length", "3")],
            &[],
        );
        // The fields that delimit and route the message cannot be taken away.
        check(
            &[
                ("connection", "host, content-length"),
                ("host", "a"),
                ("content-length", "1"),
            ],
            &["content-length", "host"],
        );
    }

    #[test]
    fn websocket_upgrades_are_kept() {
        let mut map = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
        ]);
        assert!(wants_websocket(&map));
        strip_hop_by_hop(&mut map, true);
        assert_eq!(map["connection"], "upgrade");
        assert_eq!(map["upgrade"], "WebSocket");
        assert!(!wants_websocket(&headers(&[("upgrade", "websocket")])));
        assert!(!wants_websocket(&headers(&[
            ("connection", "upgrade"),
            ("upgrade", "h2c")
        ])));
    }

    #[test]
    fn prefixes_join_on_segment_borders() {
        let segments = |m: &str| PathMatcher::Segments(m.to_owned());
        for (path, matcher, to, expected) in [
            ("/v2/x", segments("/v2"), "/", "/x"),
            ("/v2", segments("/v2"), "/", "/"),
            ("/v2", segments("/v2"), "/v3", "/v3"),
            ("/v2/x", segments("/v2"), "/v3", "/v3/x"),
            ("/v2/x", segments("/v2"), "/v3/", "/v3/x"),
            ("/v2/", segments("/v2"), "/v3", "/v3/"),
            ("/x", PathMatcher::Prefix("/".into()), "/a", "/a/x"),
            ("/", PathMatcher::Prefix("/".into()), "/a", "/a/"),
            ("/v1x", PathMatcher::Prefix("/v1".into()), "/v2", "/v2x"),
            ("/x", PathMatcher::Prefix("/".into()), "/a/", "/a/x"),
        ] {
            assert_eq!(
                replace_prefix(path, &matcher, to),
                expected,
                "{path} {matcher:?} {to}"
            );
        }
    }

    #[test]
    fn the_star_of_options_is_not_rewritten() {
        let matcher = PathMatcher::Prefix("/".into());
        let rewrite = PathRewrite::Prefix("/a".into());
        for (uri, expected) in [("*", "*"), ("/x?y", "/a/x?y")] {
            let uri: Uri = uri.parse().unwrap();
            let path = rewrite_path(&uri, &matcher, &rewrite).unwrap();
            assert_eq!(path.as_str(), expected);
        }
    }

    #[test]
    fn redirects_are_written_in_full() {
        let plain = Redirect {
            scheme: None,
            host: None,
            port: None,
            path: None,
            strip_query: false,
            status: StatusCode::FOUND,
        };
        let prefix = PathMatcher::Segments("/a".into());
        let check = |redirect: &Redirect, authority: &str, uri: &str, expected: &str| {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(location(redirect, &uri, authority, &prefix), expected);
        };
        check(&plain, "post", "*", "http://post");
        let host = Redirect {
            host: Some("example.org".into()),
            ..plain.clone()
        };
        check(&host, "post:80", "/a?x=1", "http://example.org/a?x=1");
        let port = Redirect {
            port: Some(8083),
            ..plain.clone()
        };
        check(&port, "post", "/a", "http://post:8083/a");
        let scheme = Redirect {
            scheme: Some("https".into()),
            ..plain.clone()
        };
        check(&scheme, "post:8080", "/a", "https://post/a");
        let path = Redirect {
            path: Some(RedirectPath::Prefix("/b".into())),
            ..plain.clone()
        };
        check(&path, "post:8080", "/a/c", "http://post:8080/b/c");
        let full = Redirect {
            path: Some(RedirectPath::Full("/z".into())),
            strip_query: true,
            ..plain
        };
        check(&full, "post", "/a?q", "http://post/z");
    }
}
