//! The loads, and what one measurement of one of them yields.

use std::time::Duration;

use super::subject::{Pair, Subject};
use crate::error::Result;
use crate::load::http2::Call;
use crate::load::{Measured, Snapshot, Stats, http1, http2, rate};
use crate::procfs::Memory;

/// Fixed rate of the open loop: well under what the slowest subject can do.
const RATE: u32 = 1000;
const STREAMS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    Http1C1,
    Http1C32,
    Http1C256,
    Http2,
    Grpc,
    Rate,
}

/// One measurement.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) subject: &'static str,
    pub(crate) workload: Workload,
    pub(crate) round: u32,
    pub(crate) result: Result<Measured>,
    /// Of the proxies, right after the load.
    pub(crate) memory: Option<Pair<Memory>>,
}

impl Workload {
    pub(crate) const ALL: [Self; 6] = [
        Self::Http1C1,
        Self::Http1C32,
        Self::Http1C256,
        Self::Http2,
        Self::Grpc,
        Self::Rate,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Http1C1 => "http1-c1",
            Self::Http1C32 => "http1-c32",
            Self::Http1C256 => "http1-c256",
            Self::Http2 => "http2-s64",
            Self::Grpc => "grpc-s64",
            Self::Rate => "http1-rate1000",
        }
    }

    pub(crate) const fn about(self) -> &'static str {
        match self {
            Self::Http1C1 => "HTTP/1.1, 1 connection, closed loop",
            Self::Http1C32 => "HTTP/1.1, 32 connections, closed loop",
            Self::Http1C256 => "HTTP/1.1, 256 connections, closed loop",
            Self::Http2 => "HTTP/2, 64 streams on 1 connection, closed loop",
            Self::Grpc => "gRPC unary, 64 streams on 1 connection, closed loop",
            Self::Rate => {
                "HTTP/1.1, 1000 requests/s on 16 connections, open loop, latency from when a request was due"
            }
        }
    }

    /// Runs it against the subject; the watched processes are the subject's.
    pub(crate) async fn run(self, subject: &Subject, length: Duration) -> Result<Measured> {
        let warm_up = (length / 5).clamp(Duration::from_millis(200), Duration::from_secs(1));
        let pids = subject.pids();
        match self {
            Self::Http1C1 => http1::run(&subject.http1, 1, &pids, warm_up, length).await,
            Self::Http1C32 => http1::run(&subject.http1, 32, &pids, warm_up, length).await,
            Self::Http1C256 => http1::run(&subject.http1, 256, &pids, warm_up, length).await,
            Self::Http2 => {
                http2::run(&subject.http2, Call::Get, STREAMS, &pids, warm_up, length).await
            }
            Self::Grpc => {
                http2::run(&subject.grpc, Call::Grpc, STREAMS, &pids, warm_up, length).await
            }
            Self::Rate => at_rate(subject, &pids, warm_up, length).await,
        }
    }
}

async fn at_rate(
    subject: &Subject,
    pids: &[u32],
    warm_up: Duration,
    length: Duration,
) -> Result<Measured> {
    let spec = rate::Spec {
        target: subject.http1.clone(),
        path: "/".to_owned(),
        per_second: RATE,
        connections: 16,
    };
    let running = spec.start()?;
    tokio::time::sleep(warm_up).await;
    let (from, before) = (std::time::Instant::now(), Snapshot::take(pids)?);
    tokio::time::sleep(length).await;
    let (to, after) = (std::time::Instant::now(), Snapshot::take(pids)?);
    let samples = running.finish().await?;
    Ok(before.until(&after, in_window(&samples, from, to)))
}

/// Requests that were due in the window count, and failures at any time do.
fn in_window(samples: &[rate::Sample], from: std::time::Instant, to: std::time::Instant) -> Stats {
    let mut stats = Stats::new();
    for sample in samples {
        match &sample.result {
            Err(error) => stats.fail(error),
            Ok(_) if from <= sample.due && sample.due < to => {
                stats.succeed(sample.done - sample.due)
            }
            Ok(_) => {}
        }
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_half_open_and_failures_count_anywhere() {
        let start = std::time::Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let sample =
            |due, done, result: std::result::Result<Option<String>, String>| rate::Sample {
                due: at(due),
                sent: at(due),
                done: at(done),
                result,
            };
        let samples = [
            sample(5, 6, Ok(None)),
            sample(10, 12, Ok(None)),
            sample(19, 29, Ok(None)),
            sample(20, 21, Ok(None)),
            sample(30, 31, Err("status 503".to_owned())),
        ];
        let stats = in_window(&samples, at(10), at(20));
        assert_eq!((stats.latency.len(), stats.failed), (2, 1));
        assert!(stats.latency.max() >= 10_000_000 && stats.latency.max() < 10_100_000);
    }
}
