//! Tells a client's connection that is idle, which is fine, from one that drips a request
//! head. One timer for each connection, none for each request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// A request head must be complete in this time; looked at every [`TICK`].
const HEAD: Duration = Duration::from_secs(30);
/// How often a connection is looked at.
pub(super) const TICK: Duration = Duration::from_secs(10);

/// Counters of one connection.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Bytes from the client.
    received: Arc<AtomicU64>,
    /// `received` when the last request ended: more than that is the head of the next one.
    at_rest: AtomicU64,
    /// Requests that have begun.
    served: AtomicU64,
    /// Requests that have not ended.
    active: AtomicUsize,
}

impl Pulse {
    /// The counter of received bytes, for the byte stream.
    pub(super) fn received(&self) -> Arc<AtomicU64> {
        self.received.clone()
    }

    /// A request begins; it ends when the guard is dropped.
    pub(super) fn request(self: &Arc<Self>) -> ActiveGuard {
        self.served.fetch_add(1, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        ActiveGuard(self.clone())
    }

    fn read(&self) -> Reading {
        let received = self.received.load(Ordering::Relaxed);
        Reading {
            served: self.served.load(Ordering::Relaxed),
            active: self.active.load(Ordering::Relaxed) > 0,
            partial: received > self.at_rest.load(Ordering::Relaxed),
        }
    }
}

/// One request in flight.
#[derive(Debug)]
pub(super) struct ActiveGuard(Arc<Pulse>);

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        let pulse = &self.0;
        let received = pulse.received.load(Ordering::Relaxed);
        pulse.at_rest.store(received, Ordering::Relaxed);
        pulse.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    served: u64,
    active: bool,
    /// Bytes have come that belong to no request yet.
    partial: bool,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Leave it.
    Fine,
    /// Nothing for too long: end it politely.
    Idle,
    /// A head that does not end: cut it.
    SlowHead,
}

/// Judges a connection by what has changed since the last look.
#[derive(Debug)]
pub(super) struct Watch {
    idle: Option<Duration>,
    /// HTTP/2 sends frames that belong to no request.
    heads: bool,
    last: Reading,
    since: Instant,
}

impl Watch {
    /// A watch over a new connection. `heads`: bytes between requests are heads (HTTP/1).
    pub(super) fn new(idle: Option<Duration>, heads: bool, now: Instant) -> Self {
        let last = Reading {
            served: 0,
            active: false,
            partial: false,
        };
        Self {
            idle,
            heads,
            last,
            since: now,
        }
    }

    /// Looks at the connection. Pure but for the counters.
    pub(super) fn look(&mut self, pulse: &Pulse, now: Instant) -> Verdict {
        self.judge(pulse.read(), now)
    }

    fn judge(&mut self, reading: Reading, now: Instant) -> Verdict {
        let partial = reading.partial && self.heads;
        let reading = Reading { partial, ..reading };
        if reading.active || reading != self.last {
            self.last = reading;
            self.since = now;
            return Verdict::Fine;
        }
        let waited = now.duration_since(self.since);
        if partial && waited >= HEAD {
            Verdict::SlowHead
        } else if !partial && self.idle.is_some_and(|idle| waited >= idle) {
            Verdict::Idle
        } else {
            Verdict::Fine
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Reading, Verdict, Watch};

    const IDLE: Reading = Reading {
        served: 1,
        active: false,
        partial: false,
    };
    const BUSY: Reading = Reading {
        served: 2,
        active: true,
        partial: false,
    };
    const DRIP: Reading = Reading {
        served: 1,
        active: false,
        partial: true,
    };

    fn check(heads: bool, looks: &[(u64, Reading, Verdict)]) {
        let start = Instant::now();
        let mut watch = Watch::new(Some(Duration::from_secs(60)), heads, start);
        for &(seconds, reading, expected) in looks {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(watch.judge(reading, now), expected, "{seconds} {reading:?}");
        }
    }

    #[test]
    fn idle_connections_live_until_their_timeout() {
        check(
            true,
            &[
                (10, IDLE, Verdict::Fine),
                (69, IDLE, Verdict::Fine),
                (70, IDLE, Verdict::Idle),
            ],
        );
    }

    #[test]
    fn heads_must_end() {
        check(
            true,
            &[
                (10, IDLE, Verdict::Fine),
                (20, DRIP, Verdict::Fine),
                (40, DRIP, Verdict::Fine),
                (50, DRIP, Verdict::SlowHead),
            ],
        );
        // HTTP/2 pings and settings are no heads.
        check(
            false,
            &[
                (10, DRIP, Verdict::Fine),
                (60, DRIP, Verdict::Fine),
                (70, DRIP, Verdict::Idle),
            ],
        );
    }

    #[test]
    fn requests_take_as_long_as_they_take() {
        check(
            true,
            &[
                (10, BUSY, Verdict::Fine),
                (1000, BUSY, Verdict::Fine),
                (1010, IDLE, Verdict::Fine),
                (1069, IDLE, Verdict::Fine),
                (1070, IDLE, Verdict::Idle),
            ],
        );
    }
}
