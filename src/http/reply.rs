//! Answers that the proxy makes itself, in the shape that the client understands.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{body::Body, config::DirectResponse, error::Reason};

pub(super) const WEFT_REASON: HeaderName = HeaderName::from_static("weft-reason");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request is a gRPC call.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// The answer for a reason. gRPC callers get a trailers-only response; others a status with
/// one sentence. Addresses and identities stay in the log.
pub(super) fn failure(reason: Reason, grpc: bool) -> Response<Body> {
    let row = reason.row();
    let slug = HeaderValue::from_static(row.slug);
    if grpc {
        let mut response = Response::new(Body::Empty);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(row.grpc)));
        let message = format!("weft: {} ({})", row.sentence, row.slug);
        if let Ok(message) = HeaderValue::try_from(message) {
            headers.insert(GRPC_MESSAGE, message);
        }
        headers.insert(WEFT_REASON, slug);
        return response;
    }
    let text = format!("weft: {} ({})\n", row.sentence, row.slug);
    let mut response = Response::new(Body::Full(Bytes::from(text)));
    *response.status_mut() = reason.status();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(WEFT_REASON, slug);
    response
}

/// The trailers that end a gRPC stream whose server went away.
pub(super) fn grpc_trailers(reason: Reason) -> HeaderMap {
    let row = reason.row();
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(GRPC_STATUS, HeaderValue::from(u16::from(row.grpc)));
    if let Ok(message) = HeaderValue::try_from(format!("weft: {} ({})", row.sentence, row.slug)) {
        trailers.insert(GRPC_MESSAGE, message);
    }
    trailers
}

/// The gRPC status of a response head or of trailers. A code that does not exist is UNKNOWN,
/// as it is to clients: no server may invent label values.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    const UNKNOWN: u8 = 2;
    let status: Option<u8> = headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok();
    Some(status.filter(|code| *code <= 16).unwrap_or(UNKNOWN))
}

/// `direct_response`.
pub(super) fn direct(direct: &DirectResponse) -> Response<Body> {
    let mut response = Response::new(Body::Full(direct.body.clone()));
    *response.status_mut() = direct.status;
    response
}

/// `redirect`.
pub(super) fn redirect(status: StatusCode, location: String) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::{failure, grpc_status, is_grpc};
    use crate::error::Reason;

    #[test]
    fn grpc_is_told_from_what_only_looks_like_it() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
    }

    #[test]
    fn grpc_codes_that_do_not_exist_are_unknown() {
        let mut headers = HeaderMap::new();
        assert_eq!(grpc_status(&headers), None);
        for (value, expected) in [("0", 0), ("16", 16), ("17", 2), ("300", 2), ("x", 2)] {
            headers.insert("grpc-status", HeaderValue::from_static(value));
            assert_eq!(grpc_status(&headers), Some(expected), "{value}");
        }
    }

    #[test]
    fn both_kinds_of_callers_get_the_reason() {
        let http = failure(Reason::BackendMissing, false);
        assert_eq!(http.status(), 500);
        assert_eq!(http.headers()["weft-reason"], "backend_missing");
        let grpc = failure(Reason::NoRoute, true);
        assert_eq!(grpc.status(), 200);
        assert_eq!(grpc.headers()["grpc-status"], "12");
        assert_eq!(grpc.headers()["weft-reason"], "no_route");
    }
}
