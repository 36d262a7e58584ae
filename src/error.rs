//! The closed table of reasons. Every answer that the proxy itself makes is born from one
//! row of it, and header, access log, metric label and documentation say the same word.

use std::fmt;

use http::StatusCode;

/// Why the mesh, and not the application, decided the outcome of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Delivered; the slug is empty.
    None,
    /// The application answered with an error; the mesh only carried it.
    AppError,
    /// No route matched, or the authority is no service.
    NoRoute,
    /// The route points at a backend that does not exist or is not permitted.
    BackendMissing,
    /// A captured connection to an address that is no service, where those are denied.
    UnknownDestination,
    /// The destination is the sidecar itself.
    LoopDetected,
    /// Plaintext on a port that demands mTLS.
    IdentityRequired,
    /// The service has no endpoint that takes requests.
    NoEndpoints,
    /// Nothing listens at the endpoint.
    ConnectRefused,
    /// No TCP answer in time.
    ConnectTimeout,
    /// The TLS handshake failed.
    TlsFailed,
    /// The peer proved another identity than expected.
    IdentityMismatch,
    /// The peer reset the stream before it answered.
    PeerReset,
    /// The peer closed the connection before it answered.
    PeerClosed,
    /// The peer's answer was not valid HTTP.
    PeerProtocolError,
    /// The last try took longer than the per-try timeout.
    AttemptTimeout,
    /// The request took longer than its timeout.
    RequestTimeout,
    /// No byte moved for too long.
    IdleTimeout,
    /// The caller went away before the answer.
    ClientClosed,
    /// The request was not valid HTTP.
    ClientProtocolError,
    /// The request's head has too many fields or bytes.
    HeadersTooLarge,
    /// The request's target has too many bytes.
    TargetTooLong,
    /// The request's body has more bytes than this sidecar lets through.
    BodyTooLarge,
    /// Nothing arrived of the request's body for too long.
    BodyTimeout,
    /// The request uses what this proxy does not implement.
    NotImplemented,
    /// The proxy is short of memory, descriptors or ports.
    ProxyOverloaded,
    /// The proxy has no configuration for this yet.
    NotReady,
    /// A bug in the proxy.
    Internal,
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// The reason.
    pub reason: Reason,
    /// The stable word: header `weft-reason`, log field, metric label, docs anchor.
    pub slug: &'static str,
    /// The status of a proxy-made answer; 499 is written to the log only.
    pub status: u16,
    /// The gRPC status code of the same.
    pub grpc: u8,
    /// Envoy's response flag.
    pub flag: &'static str,
    /// One sentence for people.
    pub sentence: &'static str,
    /// What to look at first.
    pub help: &'static str,
}

const fn row(
    reason: Reason,
    slug: &'static str,
    (status, grpc, flag): (u16, u8, &'static str),
    sentence: &'static str,
    help: &'static str,
) -> Row {
    Row {
        reason,
        slug,
        status,
        grpc,
        flag,
        sentence,
        help,
    }
}

const CANCELLED: u8 = 1;
const DEADLINE_EXCEEDED: u8 = 4;
const RESOURCE_EXHAUSTED: u8 = 8;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;
const UNAUTHENTICATED: u8 = 16;

/// The table, in the order of [`Reason`].
#[rustfmt::skip]
pub const TABLE: [Row; 28] = [
    row(Reason::None, "", (200, 0, ""),
        "delivered; the application answered", ""),
    row(Reason::AppError, "app_error", (200, 0, "-"),
        "the application answered with an error; the mesh only carried it",
        "read the application's log"),
    row(Reason::NoRoute, "no_route", (404, UNIMPLEMENTED, "NR"),
        "no route matches the request, or its authority names no service of the mesh",
        "check the Host header against the Services, and the rules of the service's routes; add a catch-all rule"),
    row(Reason::BackendMissing, "backend_missing", (500, UNAVAILABLE, "NC"),
        "the matching rule points at a backend that does not exist or that no ReferenceGrant permits",
        "fix the backendRef or add the grant"),
    row(Reason::UnknownDestination, "unknown_destination", (502, UNAVAILABLE, "NR"),
        "the address is no service of the mesh, and the mesh lets its workloads call nothing else",
        "declare the destination as a Service (type ExternalName), or set spec.outbound.unknown of the MeshConfig to allow"),
    row(Reason::LoopDetected, "loop_detected", (508, INTERNAL, "-"),
        "the destination is the sidecar itself",
        "call the application's own port, not one of the sidecar's"),
    row(Reason::IdentityRequired, "identity_required", (403, UNAUTHENTICATED, "-"),
        "this port takes mTLS only and the caller used plaintext",
        "give the caller a sidecar, or set mtls.mode to permissive"),
    row(Reason::NoEndpoints, "no_endpoints", (503, UNAVAILABLE, "UH"),
        "the service has no endpoint that takes requests",
        "is a workload selected by the Service, and is it up?"),
    row(Reason::ConnectRefused, "connect_refused", (502, UNAVAILABLE, "UF"),
        "nothing listens at the endpoint's address",
        "is the application listening there? is targetPort right?"),
    row(Reason::ConnectTimeout, "connect_timeout", (504, UNAVAILABLE, "UF"),
        "the endpoint did not answer the TCP connection in time",
        "look for a firewall or a dead host"),
    row(Reason::TlsFailed, "tls_failed", (502, UNAVAILABLE, "UF"),
        "the TLS handshake failed",
        "compare the two trust bundles, certificates and clocks"),
    row(Reason::IdentityMismatch, "identity_mismatch", (502, UNAVAILABLE, "UF"),
        "the peer proved another identity than the service's",
        "a stale endpoint, or the workload runs under the wrong service account"),
    row(Reason::PeerReset, "peer_reset", (502, UNAVAILABLE, "UR"),
        "the server reset the stream before it answered",
        "look for a crash or a limit of the server"),
    row(Reason::PeerClosed, "peer_closed", (502, UNAVAILABLE, "UC"),
        "the server closed the connection before it answered",
        "raise the server's keep-alive timeout above 55 s"),
    row(Reason::PeerProtocolError, "peer_protocol_error", (502, INTERNAL, "UPE"),
        "the server's answer was not valid HTTP",
        "is the port declared with the right protocol?"),
    row(Reason::AttemptTimeout, "attempt_timeout", (504, DEADLINE_EXCEEDED, "UT"),
        "the last try took longer than timeouts.backendRequest of its rule",
        "compare the timeout with the server's latency"),
    row(Reason::RequestTimeout, "request_timeout", (504, DEADLINE_EXCEEDED, "UT"),
        "the request took longer than timeouts.request of its rule",
        "compare the timeout with the server's latency"),
    row(Reason::IdleTimeout, "idle_timeout", (504, DEADLINE_EXCEEDED, "SI"),
        "no byte moved for too long",
        "a stream that may be silent for long needs keep-alive messages"),
    row(Reason::ClientClosed, "client_closed", (499, CANCELLED, "DC"),
        "the caller went away before the answer",
        "is the caller's timeout shorter than our latency?"),
    row(Reason::ClientProtocolError, "client_protocol_error", (400, INTERNAL, "DPE"),
        "the request was not valid HTTP",
        "look at the request that the caller wrote; the access log has the rule that it breaks"),
    row(Reason::HeadersTooLarge, "headers_too_large", (431, RESOURCE_EXHAUSTED, "DPE"),
        "the request has too many header fields, or too many bytes of them",
        "send less, such as smaller cookies or tokens; or raise WEFT_PROXY_MAX_FIELDS or WEFT_PROXY_MAX_HEAD_BYTES"),
    row(Reason::TargetTooLong, "target_too_long", (414, RESOURCE_EXHAUSTED, "DPE"),
        "the request's target is too long",
        "send the data in the body, or raise WEFT_PROXY_MAX_TARGET_BYTES"),
    row(Reason::BodyTooLarge, "body_too_large", (413, RESOURCE_EXHAUSTED, "DPE"),
        "the request's body is larger than this sidecar lets through",
        "send less, or raise WEFT_PROXY_MAX_BODY_BYTES"),
    row(Reason::BodyTimeout, "body_timeout", (408, DEADLINE_EXCEEDED, "DPE"),
        "the caller began to send a body and nothing of it arrived for too long",
        "did the caller hang in the middle of its upload? if it is meant to be silent, raise WEFT_PROXY_BODY_TIMEOUT"),
    row(Reason::NotImplemented, "not_implemented", (501, UNIMPLEMENTED, "DPE"),
        "the request uses a transfer coding that this proxy does not implement",
        "send the body chunked or with its length; compress by Content-Encoding"),
    row(Reason::ProxyOverloaded, "proxy_overloaded", (503, UNAVAILABLE, "OM"),
        "the sidecar is short of memory, descriptors or ports and takes no new work",
        "look at weft_memory_pressure and weft_overloaded_total; give the sidecar more, or its clients less to do"),
    row(Reason::NotReady, "not_ready", (503, UNAVAILABLE, "-"),
        "the proxy has no configuration for this destination yet",
        "can the sidecar reach its control plane?"),
    row(Reason::Internal, "internal", (500, INTERNAL, "-"),
        "a bug in the proxy",
        "please report it"),
];

impl Reason {
    /// The row of the table.
    #[must_use]
    pub const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Whether the client caused it: no endpoint is to blame.
    #[must_use]
    pub const fn is_of_the_client(self) -> bool {
        matches!(
            self,
            Self::ClientClosed
                | Self::ClientProtocolError
                | Self::HeadersTooLarge
                | Self::TargetTooLong
                | Self::BodyTooLarge
                | Self::BodyTimeout
                | Self::NotImplemented
        )
    }

    /// Whether a failed try says something about the endpoint that was tried: what the client
    /// did, or what is missing here, does not.
    #[must_use]
    pub const fn blames_endpoint(self) -> bool {
        !self.is_of_the_client() && !matches!(self, Self::ProxyOverloaded | Self::NotReady)
    }

    /// The stable word; empty for [`Reason::None`].
    #[must_use]
    pub const fn slug(self) -> &'static str {
        self.row().slug
    }

    /// The reason of a slug; `None` for a word that is not in the table.
    #[must_use]
    pub fn from_slug(slug: &str) -> Option<Self> {
        let row = TABLE
            .iter()
            .find(|row| !row.slug.is_empty() && row.slug == slug)?;
        Some(row.reason)
    }

    /// The status of the answer that the proxy makes for it.
    #[must_use]
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// A failed stream: the reason, and words for the log. The words may name addresses and
/// identities; they are never sent to the peer.
#[derive(Clone, Debug)]
pub struct Error {
    /// The row of the table.
    pub reason: Reason,
    /// What exactly happened.
    pub detail: String,
}

impl Error {
    /// An error with words for the log.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.slug(), self.detail)
    }
}

impl std::error::Error for Error {}

/// An error with all that caused it.
#[must_use]
pub fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Reason, TABLE};

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.reason as usize, index, "{}", row.slug);
            assert_eq!(row.reason.slug(), row.slug);
            let named = (!row.slug.is_empty()).then_some(row.reason);
            assert_eq!(Reason::from_slug(row.slug), named);
        }
    }

    #[test]
    fn slugs_are_unique_and_answers_have_a_status() {
        let mut slugs: Vec<_> = TABLE.iter().map(|row| row.slug).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), TABLE.len());
        for row in &TABLE {
            assert_eq!(row.reason.status().as_u16(), row.status);
            assert!(
                row.reason == Reason::None || !row.help.is_empty(),
                "{}",
                row.slug
            );
        }
    }
}
