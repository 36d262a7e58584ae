//! What the name of a field means to a proxy. Lists of words and questions about them; names
//! are in lower case. Who asks: admission, and whoever passes trailers on.

use std::fmt;

use http::{HeaderMap, HeaderName};

use crate::{
    error::{Error, Reason},
    limits::Limits,
};

/// The beginning of the names that only the mesh itself says.
pub const OWN: &str = "weft-";

/// What RFC 9113, 6.5.2 adds to name and value of each field.
pub const OVERHEAD: usize = 32;

/// Whose message a field is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A request.
    Client,
    /// An answer.
    Server,
}

impl Sender {
    /// The reason for a message of this sender that cannot pass.
    #[must_use]
    pub const fn fault(self) -> Reason {
        match self {
            Self::Client => Reason::ClientProtocolError,
            Self::Server => Reason::PeerProtocolError,
        }
    }

    /// The reason for one that is too large.
    #[must_use]
    pub const fn excess(self) -> Reason {
        match self {
            Self::Client => Reason::HeadersTooLarge,
            Self::Server => Reason::PeerProtocolError,
        }
    }
}

/// Concerns one connection only (RFC 9110, 7.6.1; RFC 9113, 8.2.2).
#[must_use]
pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Says where a message ends, what its bytes are, where it goes, or who sent it: the receiver
/// relies on it, so no `Connection` may take it away.
#[must_use]
pub fn is_protected(name: &str) -> bool {
    is_content(name)
        || is_identity(name)
        || name.starts_with("content-")
        || name.starts_with("grpc-")
        || matches!(name, "host" | "transfer-encoding" | "date" | "expect")
}

/// A name with `_` that servers in the manner of CGI (RFC 3875, 4.1.18) cannot tell from one
/// with `-` that matters.
#[must_use]
pub fn is_twin(name: &str) -> bool {
    if !name.contains('_') {
        return false;
    }
    let other = name.replace('_', "-");
    is_content(&other) || is_identity(&other) || is_hop_by_hop(&other)
}

/// Frames or describes the content.
fn is_content(name: &str) -> bool {
    matches!(
        name,
        "content-disposition"
            | "content-encoding"
            | "content-language"
            | "content-length"
            | "content-location"
            | "content-range"
            | "content-type"
    )
}

/// Says who the sender is, on whose behalf, or in which call.
fn is_identity(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "baggage"
            | "cookie"
            | "forwarded"
            | "origin"
            | "proxy-authorization"
            | "set-cookie"
            | "traceparent"
            | "tracestate"
            | "via"
            | "x-real-ip"
            | "x-request-id"
    ) || [OWN, "x-weft-", "x-forwarded-", "x-envoy-", "l5d-"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Must not come after the content: it would have to be known before (RFC 9110, 6.5.1), or
/// it is for one connection, or it says who is who; or it is no name (RFC 9110, 5.6.2), which
/// HTTP/2 lets through.
fn must_not_trail(name: &str) -> bool {
    name.contains('"')
        || is_hop_by_hop(name)
        || is_content(name)
        || is_identity(name)
        || is_twin(name)
        || matches!(
            name,
            "age"
                | "cache-control"
                | "date"
                | "expect"
                | "expires"
                | "host"
                | "if-match"
                | "if-modified-since"
                | "if-none-match"
                | "if-range"
                | "if-unmodified-since"
                | "location"
                | "max-forwards"
                | "pragma"
                | "proxy-authenticate"
                | "range"
                | "retry-after"
                | "vary"
                | "warning"
                | "www-authenticate"
        )
}

/// A message that breaks a rule of HTTP, or of ours.
#[derive(Debug)]
pub struct Violation {
    /// One of a closed set of words, for metrics.
    pub rule: &'static str,
    /// The reason, and words that begin with the rule.
    pub error: Error,
}

impl Violation {
    /// A violation with words for the log.
    pub fn new(reason: Reason, rule: &'static str, words: impl fmt::Display) -> Self {
        let error = Error::new(reason, format!("{rule}: {words}"));
        Self { rule, error }
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        violation.error
    }
}

/// The size of fields as RFC 9113, 6.5.2 counts them.
#[must_use]
pub fn list_size(fields: &HeaderMap) -> usize {
    let size = |(name, value): (&HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.len() + OVERHEAD
    };
    fields.iter().map(size).sum()
}

/// Judges the trailers of a message: what must not be one is dropped (RFC 9110, 6.5.1), the
/// rest stays as it came. They are never merged into the head.
///
/// # Errors
/// When they are too many or too large; the message must break off.
pub fn trailers(fields: &mut HeaderMap, sender: Sender, limits: &Limits) -> Result<(), Violation> {
    let size = list_size(fields);
    if fields.len() > limits.max_fields || size > limits.max_trailer_bytes {
        let words = format_args!("{} trailers of {size} bytes", fields.len());
        return Err(Violation::new(sender.excess(), "trailers_too_large", words));
    }
    if fields.keys().any(|name| must_not_trail(name.as_str())) {
        let names: Vec<HeaderName> = fields.keys().cloned().collect();
        for name in names.iter().filter(|name| must_not_trail(name.as_str())) {
            fields.remove(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::{Sender, is_protected, is_twin, list_size, trailers};
    use crate::{error::Reason, limits::Limits};

    #[test]
    fn what_the_receiver_relies_on_is_protected() {
        for name in [
            "host",
            "content-length",
            "content-anything",
            "transfer-encoding",
            "authorization",
            "proxy-authorization",
            "cookie",
            "set-cookie",
            "date",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-client-cert",
            "x-real-ip",
            "x-request-id",
            "traceparent",
            "tracestate",
            "baggage",
            "grpc-timeout",
            "l5d-client-id",
            "x-envoy-internal",
            "weft-reason",
            "x-weft-anything",
        ] {
            assert!(is_protected(name), "{name}");
        }
        for name in ["te", "close", "keep-alive", "upgrade", "x-mine", "accept"] {
            assert!(!is_protected(name), "{name}");
        }
    }

    #[test]
    fn twins_are_told_from_names_with_underscores() {
        for name in [
            "content_length",
            "content_type",
            "transfer_encoding",
            "x_forwarded_for",
            "x_forwarded-for",
            "x_real_ip",
            "set_cookie",
            "proxy_authorization",
            "keep_alive",
            "weft_reason",
            "x_envoy_internal",
        ] {
            assert!(is_twin(name), "{name}");
        }
        for name in [
            "content_id",
            "grpc_shard",
            "user_id",
            "my_content_length",
            "content-length",
            "_",
        ] {
            assert!(!is_twin(name), "{name}");
        }
    }

    fn fields(list: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn trailers_that_come_too_late_are_dropped() {
        let mut map = fields(&[
            ("grpc-status", "0"),
            ("grpc-message", "fine"),
            ("x-sum", "1"),
            ("x-sum", "2"),
            ("content-digest", "sha-256=:x:"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "other"),
            ("authorization", "x"),
            ("cookie", "a=b"),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
            ("connection", "close"),
            ("trailer", "x"),
            ("content_length", "5"),
            ("weft-reason", "forged"),
            ("x-forwarded-for", "1.2.3.4"),
            ("if-match", "x"),
        ]);
        // As h2 reads names.
        let quoted = HeaderName::from_lowercase(b"x\"sum").unwrap();
        map.append(quoted, HeaderValue::from_static("1"));
        assert!(trailers(&mut map, Sender::Client, &Limits::default()).is_ok());
        let left = [
            ("grpc-status", "0"),
            ("grpc-message", "fine"),
            ("x-sum", "1"),
            ("x-sum", "2"),
            ("content-digest", "sha-256=:x:"),
        ];
        assert_eq!(map, fields(&left));
    }

    #[test]
    fn trailers_are_bounded() {
        let limits = Limits {
            max_fields: 16,
            max_trailer_bytes: 1_000,
            ..Limits::default()
        };
        let many = |count: usize| {
            let list: Vec<_> = (0..count).map(|_| ("x-a", "1")).collect();
            fields(&list)
        };
        let long = |length: usize| {
            let value = "v".repeat(length);
            fields(&[("x-a", &value)])
        };
        for (mut map, fits) in [
            (many(16), true),
            (many(17), false),
            (long(1_000 - 32 - 3), true),
            (long(1_000 - 32 - 2), false),
        ] {
            let size = list_size(&map);
            let judged = trailers(&mut map, Sender::Client, &limits);
            assert_eq!(judged.is_ok(), fits, "{} {size}", map.len());
            for (sender, reason) in [
                (Sender::Client, Reason::HeadersTooLarge),
                (Sender::Server, Reason::PeerProtocolError),
            ] {
                let reasons = trailers(&mut map, sender, &limits).map_err(|v| v.error.reason);
                assert_eq!(reasons, if fits { Ok(()) } else { Err(reason) });
            }
        }
    }
}
