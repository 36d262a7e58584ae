//! HOT. A request on its way to the version of HTTP that is spoken upstream: what the other
//! version wants said differently, and nothing else. What ends at this hop is gone by then.

use http::{
    HeaderMap, HeaderValue, Method, Version,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING},
    request::Parts,
};

use crate::{error::Reason, fields::Violation};

/// Whether content follows the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The head is all.
    None,
    /// Perhaps of a length that is not known.
    Follows,
}

/// Joins the cookies of HTTP/2, which may come in crumbs, to the one field that they are
/// everywhere else (RFC 9113, 8.2.3).
///
/// # Errors
/// Never for values that were values before.
pub(super) fn join_cookies(fields: &mut HeaderMap) -> Result<(), Violation> {
    let mut all = Vec::new();
    for crumb in fields.get_all(COOKIE) {
        if !all.is_empty() {
            all.extend_from_slice(b"; ");
        }
        all.extend_from_slice(crumb.as_bytes());
    }
    let joined = HeaderValue::try_from(all)
        .map_err(|error| Violation::new(Reason::ClientProtocolError, "cookie", error))?;
    fields.insert(COOKIE, joined);
    Ok(())
}

/// Makes the head one of HTTP/1.1 for `host`. Says how the content ends where HTTP/2 did not
/// have to, and announces `TE` as HTTP/1.1 wants it (RFC 9110, 10.1.4).
pub(super) fn to_http1(parts: &mut Parts, host: &HeaderValue, content: Content) {
    let from_http2 = parts.version == Version::HTTP_2;
    parts.version = Version::HTTP_11;
    let fields = &mut parts.headers;
    if fields.get(HOST) != Some(host) {
        fields.insert(HOST, host.clone());
    }
    if !fields.contains_key(CONTENT_LENGTH) {
        let expected = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
        match content {
            // Said outright: for GET, hyper takes silence for no content.
            Content::Follows => {
                fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            // Servers ask for a length where content is to be expected (RFC 9110, 8.6).
            Content::None if from_http2 && expected => {
                fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            Content::None => {}
        }
    }
    if fields.contains_key(TE) {
        // Nothing else is left of `Connection` but the switch.
        let options = if fields.contains_key(CONNECTION) {
            "upgrade, TE"
        } else {
            "TE"
        };
        fields.insert(CONNECTION, HeaderValue::from_static(options));
    }
}

/// Makes the head one of HTTP/2; its target names the authority.
pub(super) fn to_http2(parts: &mut Parts) {
    parts.version = Version::HTTP_2;
    parts.headers.remove(HOST);
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Request, Version};

    use super::{Content, join_cookies, to_http1, to_http2};

    fn fields(map: &HeaderMap) -> Vec<(String, String)> {
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let mut fields: Vec<_> = map
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), text(value)))
            .collect();
        fields.sort();
        fields
    }

    #[test]
    fn cookies_are_one_field() {
        for (crumbs, expected) in [
            (&["a=1"][..], "a=1"),
            (&["a=1", "b=2"], "a=1; b=2"),
            (&["a=1; b=2", "c=3", "d=4"], "a=1; b=2; c=3; d=4"),
            (&["", "a=1"], "a=1"),
            (&["a=\u{1f36a}".trim_end_matches('\u{1f36a}'), "b"], "a=; b"),
        ] {
            let mut map = HeaderMap::new();
            for crumb in crumbs {
                map.append("cookie", HeaderValue::from_str(crumb).unwrap());
            }
            join_cookies(&mut map).unwrap();
            assert_eq!(fields(&map), [("cookie".to_owned(), expected.to_owned())]);
        }
    }

    #[test]
    fn heads_become_those_of_http1() {
        use Content::{Follows, None};
        const H1: Version = Version::HTTP_11;
        const H2: Version = Version::HTTP_2;
        let host = ("host", "a");
        let chunked = ("transfer-encoding", "chunked");
        let zero = ("content-length", "0");
        for (version, method, content, before, expected) in [
            (H2, "GET", None, &[][..], &[host][..]),
            (H2, "GET", Follows, &[], &[host, chunked]),
            (
                H2,
                "GET",
                Follows,
                &[("content-length", "5")],
                &[("content-length", "5"), host],
            ),
            (H2, "POST", None, &[], &[zero, host]),
            (H2, "PUT", None, &[], &[zero, host]),
            (H2, "PATCH", None, &[zero], &[zero, host]),
            (H2, "DELETE", None, &[], &[host]),
            (H2, "HEAD", None, &[], &[host]),
            (H2, "GET", None, &[host], &[host]),
            (H2, "GET", None, &[("host", "other")], &[host]),
            (
                H2,
                "GET",
                None,
                &[("te", "trailers")],
                &[("connection", "TE"), host, ("te", "trailers")],
            ),
            (H1, "POST", None, &[host], &[host]),
            (H1, "POST", Follows, &[host], &[host, chunked]),
            (Version::HTTP_10, "GET", None, &[], &[host]),
            (
                H1,
                "GET",
                None,
                &[("connection", "upgrade"), host, ("te", "trailers")],
                &[("connection", "upgrade, TE"), host, ("te", "trailers")],
            ),
        ] {
            let request = Request::builder().method(method).version(version);
            let (mut parts, ()) = before
                .iter()
                .fold(request, |request, (name, value)| {
                    request.header(*name, *value)
                })
                .body(())
                .unwrap()
                .into_parts();
            to_http1(&mut parts, &HeaderValue::from_static("a"), content);
            let expected: Vec<_> = expected
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            let case = format!("{version:?} {method} {content:?} {before:?}");
            assert_eq!(fields(&parts.headers), expected, "{case}");
            assert_eq!(parts.version, H1);
        }
    }

    #[test]
    fn heads_become_those_of_http2() {
        let request = Request::get("/").header("host", "a").header("x-a", "1");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        to_http2(&mut parts);
        assert_eq!(parts.version, Version::HTTP_2);
        assert_eq!(fields(&parts.headers), [("x-a".to_owned(), "1".to_owned())]);
    }
}
