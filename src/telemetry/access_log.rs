//! The access log: one JSON object a line on standard output, through a bounded queue and
//! one writer thread. What does not fit in the queue is dropped and counted in the next line.

use std::{
    fmt::Write as _,
    io::Write as _,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::stream_info::{Outcome, StreamInfo};
use crate::error::Reason;

const QUEUE: usize = 4096;
const BATCH_BYTES: usize = 64 * 1024;
const ERRORS_PER_SECOND: u64 = 20;
const SLOW_SECONDS: f64 = 1.0;

/// Which streams are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// None.
    Off,
    /// Failures, refusals and streams slower than 1 s, at most 20 a second.
    #[default]
    Errors,
    /// All.
    All,
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "errors" => Ok(Self::Errors),
            "all" => Ok(Self::All),
            _ => Err(format!(
                "`{text}` is no access log policy; use off, errors or all"
            )),
        }
    }
}

/// The way into the log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    policy: Policy,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lines: Option<SyncSender<String>>,
    dropped: AtomicU64,
    /// Upper 40 bits: the second; lower 24: lines in it.
    window: AtomicU64,
}

/// One finished stream.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) info: &'a StreamInfo,
    pub(super) outcome: Outcome,
    pub(super) reason: Reason,
    pub(super) seconds: f64,
    pub(super) overhead: f64,
}

impl AccessLog {
    /// A log with its writer thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(policy: Policy) -> std::io::Result<Self> {
        let lines = if policy == Policy::Off {
            None
        } else {
            let (sender, receiver) = sync_channel(QUEUE);
            std::thread::Builder::new()
                .name("access-log".to_owned())
                .spawn(move || write_lines(&receiver))?;
            Some(sender)
        };
        let shared = Shared {
            lines,
            dropped: AtomicU64::new(0),
            window: AtomicU64::new(0),
        };
        Ok(Self {
            policy,
            shared: Arc::new(shared),
        })
    }

    /// Whether a stream with this end is logged.
    pub(super) fn wants(&self, outcome: Outcome, seconds: f64) -> bool {
        match self.policy {
            Policy::Off => false,
            Policy::All => true,
            Policy::Errors => {
                (outcome != Outcome::Success || seconds > SLOW_SECONDS) && self.within_rate()
            }
        }
    }

    /// Counts a line against the rate; over it the line is dropped and counted.
    fn within_rate(&self) -> bool {
        let second = OffsetDateTime::now_utc().unix_timestamp().unsigned_abs();
        let previous = self.shared.window.fetch_add(1, Ordering::Relaxed);
        if previous >> 24 != second & 0xff_ffff_ffff {
            self.shared
                .window
                .store((second & 0xff_ffff_ffff) << 24 | 1, Ordering::Relaxed);
            return true;
        }
        let fits = previous & 0xff_ffff < ERRORS_PER_SECOND;
        if !fits {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    pub(super) fn write(&self, entry: &Entry<'_>) {
        let Some(lines) = &self.shared.lines else {
            return;
        };
        let suppressed = self.shared.dropped.swap(0, Ordering::Relaxed);
        if lines.try_send(format_line(entry, suppressed)).is_err() {
            self.shared
                .dropped
                .fetch_add(suppressed + 1, Ordering::Relaxed);
        }
    }
}

fn write_lines(lines: &Receiver<String>) {
    let mut batch = String::new();
    while let Ok(line) = lines.recv() {
        batch.clear();
        batch.push_str(&line);
        while batch.len() < BATCH_BYTES {
            match lines.try_recv() {
                Ok(line) => batch.push_str(&line),
                Err(_) => break,
            }
        }
        // A closed standard output is no reason to stop serving.
        let _ = std::io::stdout().lock().write_all(batch.as_bytes());
    }
}

fn format_line(entry: &Entry<'_>, suppressed: u64) -> String {
    let info = entry.info;
    let mut line = Line(String::with_capacity(512));
    line.text(
        "time",
        &OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default(),
    );
    line.text(
        "level",
        if entry.outcome == Outcome::Success {
            "info"
        } else {
            "warn"
        },
    );
    line.text("side", info.side.name());
    line.text("http.request.method", info.method.as_str());
    line.text("url.path", info.uri.path());
    let authority = info
        .authority
        .as_ref()
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    line.text("server.address", authority.as_deref().unwrap_or_default());
    line.raw("http.response.status_code", &info.code);
    if let Some(code) = info.grpc_code {
        line.raw("rpc.grpc.status_code", &code);
    }
    line.text("outcome", entry.outcome.name());
    line.text("reason", entry.reason.slug());
    let by_mesh = !matches!(entry.reason, Reason::None | Reason::AppError);
    line.text("by", if by_mesh { "mesh" } else { "app" });
    if let Some(detail) = &info.detail {
        line.text("detail", detail);
    }
    line.text("route", info.route.as_deref().unwrap_or_default());
    line.text("backend", info.backend.as_deref().unwrap_or_default());
    if let Some(upstream) = info.upstream {
        line.text("upstream", &upstream.to_string());
    }
    line.raw("attempts", &info.attempts);
    line.raw("duration_s", &format_args!("{:.6}", entry.seconds));
    line.raw("overhead_s", &format_args!("{:.6}", entry.overhead));
    line.text("tls", info.tls.name());
    if let Some(peer) = &info.peer {
        line.text("peer_id", peer.as_str());
    }
    line.raw("bytes_out", &info.bytes_out);
    if suppressed > 0 {
        line.raw("suppressed", &suppressed);
    }
    line.end()
}

/// One JSON object under construction.
struct Line(String);

impl Line {
    fn key(&mut self, key: &str) {
        self.0
            .push_str(if self.0.is_empty() { "{\"" } else { ",\"" });
        self.0.push_str(key);
        self.0.push_str("\":");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        self.0.push('"');
        for c in value.chars() {
            match c {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                c if c.is_control() => {
                    let _ = write!(self.0, "\\u{:04x}", u32::from(c));
                }
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }

    fn raw(&mut self, key: &str, value: &impl std::fmt::Display) {
        self.key(key);
        let _ = write!(self.0, "{value}");
    }

    fn end(mut self) -> String {
        self.0.push_str("}\n");
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{AccessLog, ERRORS_PER_SECOND, Line, Outcome, Policy};

    #[test]
    fn lines_are_json_whatever_the_values() {
        let mut line = Line(String::new());
        line.text("a", "x\"\\\n\u{1}é");
        line.raw("b", &7);
        let value: serde_json::Value = serde_json::from_str(&line.end()).unwrap();
        assert_eq!(value["a"], "x\"\\\n\u{1}é");
        assert_eq!(value["b"], 7);
    }

    #[test]
    fn the_policy_decides() {
        let errors = AccessLog::start(Policy::Errors).unwrap();
        assert!(!errors.wants(Outcome::Success, 0.1));
        assert!(errors.wants(Outcome::Success, 1.5));
        assert!(errors.wants(Outcome::Failure, 0.1));
        let off = AccessLog::start(Policy::Off).unwrap();
        assert!(!off.wants(Outcome::Failure, 9.0));
        assert!(
            "some"
                .parse::<Policy>()
                .unwrap_err()
                .contains("off, errors or all")
        );
    }

    #[test]
    fn errors_are_limited_in_rate() {
        let log = AccessLog::start(Policy::Errors).unwrap();
        let passed = (0..1000)
            .filter(|_| log.wants(Outcome::Failure, 0.0))
            .count() as u64;
        // A second may turn over in between.
        assert!(
            (ERRORS_PER_SECOND..=2 * ERRORS_PER_SECOND).contains(&passed),
            "{passed}"
        );
    }
}
