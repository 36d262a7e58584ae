//! HOT. One record per stream: it collects the facts and writes metrics and access log
//! once, at the end of the stream or when it is dropped.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Uri};
use tokio::time::Instant;
use weft_certs::spiffe::SpiffeId;

use super::{
    access_log::{AccessLog, Entry},
    metrics::{Finished, RouteMetrics, Tls},
};
use crate::error::Reason;

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Our application calls somebody.
    Client,
    /// Somebody calls our application.
    Server,
}

impl Side {
    /// The label value and log field.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// How a stream counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An answer that is no error.
    Success,
    /// A mesh reason, or a 5xx or gRPC server code of the application.
    Failure,
    /// Refused by policy.
    Denied,
}

impl Outcome {
    /// The label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Denied => "denied",
        }
    }
}

/// The facts of one stream.
#[derive(Debug)]
pub struct StreamInfo {
    /// Client or server.
    pub side: Side,
    /// When its head was read.
    pub started: Instant,
    /// The method.
    pub method: Method,
    /// The target as it came.
    pub uri: Uri,
    /// Host or `:authority`.
    pub authority: Option<HeaderValue>,
    /// How the connection to the peer sidecar is protected.
    pub tls: Tls,
    /// The peer of the downstream connection, if it proved who it is.
    pub peer: Option<SpiffeId>,
    /// The route's name, once known.
    pub route: Option<Arc<str>>,
    /// The backend service, once known.
    pub backend: Option<Arc<str>>,
    /// The endpoint that was tried last.
    pub upstream: Option<SocketAddr>,
    /// Where it is counted, once known.
    pub metrics: Option<Arc<RouteMetrics>>,
    /// The status sent to the client; 0 if none was.
    pub code: u16,
    /// The gRPC status, of gRPC calls.
    pub grpc_code: Option<u8>,
    /// Whether the request is a gRPC call.
    pub is_grpc: bool,
    /// Why the mesh answered or ended it.
    pub reason: Reason,
    /// The reason that the peer's sidecar gave for its answer.
    pub peer_reason: Option<Reason>,
    /// What exactly happened, for the log.
    pub detail: Option<String>,
    /// Tries so far.
    pub attempts: u32,
    /// When the current wait for the upstream began.
    pub waiting: Option<Instant>,
    /// Time spent waiting for the upstream so far, seconds.
    pub upstream_seconds: f64,
    /// Time that the proxy added before the head of the answer, seconds.
    pub overhead_seconds: f64,
    /// Bytes of the response body.
    pub bytes_out: u64,
    /// The stream goes on elsewhere: this record is not written. See [`Self::split`].
    pub handed_over: bool,
    /// Where the log goes.
    pub log: AccessLog,
}

impl StreamInfo {
    /// Names the place where the stream is counted; once.
    pub fn count_under(&mut self, metrics: Arc<RouteMetrics>) {
        if self.metrics.is_none() {
            metrics.begin();
            self.metrics = Some(metrics);
        }
    }

    /// The wait for the upstream begins, now.
    pub fn wait_begins(&mut self) {
        self.waiting = Some(Instant::now());
    }

    /// The wait for the upstream is over; how long it was, if there was one.
    pub fn wait_ends(&mut self) -> Option<Duration> {
        let waited = self.waiting.take()?.elapsed();
        self.upstream_seconds += waited.as_secs_f64();
        Some(waited)
    }

    /// The head of the answer goes out.
    pub fn head_sent(&mut self) {
        let total = self.started.elapsed().as_secs_f64();
        self.overhead_seconds = (total - self.upstream_seconds).max(0.0);
    }

    /// Takes the record over to a stream that goes on elsewhere. What stays behind is not
    /// counted and not logged.
    #[must_use]
    pub fn split(&mut self) -> Self {
        let blank = Self {
            side: self.side,
            started: self.started,
            method: Method::GET,
            uri: Uri::default(),
            authority: None,
            tls: self.tls,
            peer: None,
            route: None,
            backend: None,
            upstream: None,
            metrics: None,
            code: 0,
            grpc_code: None,
            is_grpc: false,
            reason: Reason::None,
            peer_reason: None,
            detail: None,
            attempts: 0,
            waiting: None,
            upstream_seconds: 0.0,
            overhead_seconds: 0.0,
            bytes_out: 0,
            handed_over: true,
            log: self.log.clone(),
        };
        std::mem::replace(self, blank)
    }

    /// How the stream counts, by what is known now.
    #[must_use]
    pub fn outcome(&self) -> (Outcome, Reason) {
        match self.reason {
            Reason::None => {}
            Reason::IdentityRequired => return (Outcome::Denied, self.reason),
            _ => return (Outcome::Failure, self.reason),
        }
        let grpc_failed = self.grpc_code.is_some_and(is_grpc_server_error);
        if self.code >= 500 || grpc_failed {
            (Outcome::Failure, Reason::AppError)
        } else {
            (Outcome::Success, Reason::None)
        }
    }
}

/// gRPC codes that say that the server failed, not that the call was wrong.
const fn is_grpc_server_error(code: u8) -> bool {
    // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
    matches!(code, 2 | 4 | 12 | 13 | 14 | 15)
}

impl Drop for StreamInfo {
    fn drop(&mut self) {
        if self.handed_over {
            return;
        }
        if self.code == 0 {
            // No head went out: the status that the reason stands for.
            self.code = self.reason.row().status;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        self.wait_ends();
        let (outcome, reason) = self.outcome();
        let overhead = self.overhead_seconds;
        if let Some(metrics) = &self.metrics {
            metrics.response_bytes().inc_by(self.bytes_out);
            let method = &self.method;
            let (code, grpc_code) = (self.code, self.grpc_code);
            metrics.finish(&Finished {
                method,
                code,
                grpc_code,
                outcome,
                reason,
                seconds,
                overhead,
            });
        }
        if self.log.wants(outcome, seconds) {
            self.log.write(&Entry {
                info: self,
                outcome,
                reason,
                seconds,
                overhead,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_grpc_server_error;

    #[test]
    fn grpc_codes_of_the_caller_are_no_failures() {
        let failures: Vec<u8> = (0..17).filter(|&code| is_grpc_server_error(code)).collect();
        assert_eq!(failures, [2, 4, 12, 13, 14, 15]);
    }
}
