//! The load: closed loops that keep a number of requests in flight (what a request costs at
//! saturation), and an open loop at a fixed rate (what a request waits).

pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod rate;
pub(crate) mod response;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Context as _, Result};
use crate::netns::Host;
use crate::procfs;

/// Where a subject takes requests, and for whom.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// The authority of the requests.
    pub(crate) host: String,
    /// The host that the load comes from; none: this one.
    pub(crate) from: Option<Arc<Host>>,
}

impl Target {
    /// A new connection, without Nagle's delay.
    pub(crate) async fn connect(&self) -> Result<TcpStream> {
        if let Some(host) = &self.from {
            return host.connect(self.address).await;
        }
        let stream = TcpStream::connect(self.address)
            .await
            .context(self.address)?;
        stream.set_nodelay(true).context(self.address)?;
        Ok(stream)
    }

    /// Runs `f` on the host that the load comes from; threads that it starts stay there.
    pub(crate) fn within<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        match &self.from {
            Some(host) => host.within(f),
            None => Ok(f()),
        }
    }
}

/// What the connections of one load share. One thread; nothing is locked.
#[derive(Debug)]
pub(crate) struct Shared {
    measuring: Cell<bool>,
    stopped: Cell<bool>,
    stats: RefCell<Stats>,
}

/// What was seen in the window. Latencies are in nanoseconds.
#[derive(Debug, Clone)]
pub(crate) struct Stats {
    pub(crate) failed: u64,
    /// The first failure, in words.
    pub(crate) failure: Option<String>,
    pub(crate) latency: Histogram<u64>,
}

impl Stats {
    pub(crate) fn new() -> Self {
        let latency =
            Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("the bounds are in order");
        Self {
            failed: 0,
            failure: None,
            latency,
        }
    }

    pub(crate) fn succeed(&mut self, latency: Duration) {
        self.latency
            .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn fail(&mut self, why: &(impl ToString + ?Sized)) {
        self.failed += 1;
        self.failure.get_or_insert_with(|| why.to_string());
    }
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            measuring: Cell::new(false),
            stopped: Cell::new(false),
            stats: RefCell::new(Stats::new()),
        }
    }

    /// Whether to send no more.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Counts one request that ended now.
    pub(crate) fn count(&self, started: Instant, result: Result<()>) {
        if self.measuring.get() {
            let mut stats = self.stats.borrow_mut();
            match result {
                Ok(()) => stats.succeed(started.elapsed()),
                Err(error) => stats.fail(&error),
            }
        } else if let Err(error) = result {
            // A failure outside of the window still spoils the row.
            self.stats.borrow_mut().fail(&error);
        }
    }
}

/// The window of one load, with what the watched processes used in it.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) stats: Stats,
    pub(crate) elapsed: Duration,
    /// CPU time of each watched process, in their order.
    pub(crate) cpu: Vec<Duration>,
    /// Shares of the machine's time, 0 to 1: taken by the hypervisor; used by processes that
    /// are neither watched nor this one.
    pub(crate) steal: f64,
    pub(crate) foreign: f64,
}

/// Reads of the counters at one instant.
pub(crate) struct Snapshot {
    at: Instant,
    cpu: Vec<Duration>,
    own: Duration,
    machine: procfs::Machine,
}

impl Snapshot {
    pub(crate) fn take(pids: &[u32]) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            cpu: pids
                .iter()
                .map(|pid| procfs::cpu(*pid))
                .collect::<Result<_>>()?,
            own: procfs::cpu(std::process::id())?,
            machine: procfs::machine()?,
        })
    }

    /// What lies between this snapshot and a later one.
    pub(crate) fn until(&self, later: &Self, stats: Stats) -> Measured {
        let cpu: Vec<Duration> = self
            .cpu
            .iter()
            .zip(&later.cpu)
            .map(|(a, b)| b.saturating_sub(*a))
            .collect();
        let known = cpu.iter().sum::<Duration>() + later.own.saturating_sub(self.own);
        let total = later
            .machine
            .total
            .saturating_sub(self.machine.total)
            .max(1) as f64;
        let busy = later.machine.busy.saturating_sub(self.machine.busy) as f64;
        let known_ticks = known.as_secs_f64() * 100.0;
        Measured {
            stats,
            elapsed: later.at - self.at,
            cpu,
            steal: later.machine.steal.saturating_sub(self.machine.steal) as f64 / total,
            foreign: ((busy - known_ticks) / total).max(0.0),
        }
    }
}

/// Lets connections that are already running warm up, measures them for `window`, and tells
/// them to stop. `pids` are watched; all processes that serve the load should be among them.
pub(crate) async fn window(
    shared: &Shared,
    pids: &[u32],
    warm_up: Duration,
    window: Duration,
) -> Result<Measured> {
    sleep(warm_up).await;
    let before = Snapshot::take(pids).context("before the load")?;
    shared.measuring.set(true);
    sleep(window).await;
    shared.measuring.set(false);
    let after = Snapshot::take(pids).context("after the load")?;
    shared.stopped.set(true);
    let stats = shared.stats.replace(Stats::new());
    Ok(before.until(&after, stats))
}

/// Waits for the last responses; a loop that is still waiting after a second is a failure.
pub(crate) async fn settle(mut tasks: JoinSet<()>, measured: Result<Measured>) -> Result<Measured> {
    let all = async { while tasks.join_next().await.is_some() {} };
    let hung = timeout(Duration::from_secs(1), all).await.is_err();
    let mut measured = measured?;
    if hung {
        measured
            .stats
            .fail(&format!("{} requests were not answered", tasks.len()));
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_time_is_what_nobody_known_used() {
        let at = Instant::now();
        let snapshot = |at, cpu_ms, own_ms, busy, steal, total| Snapshot {
            at,
            cpu: vec![Duration::from_millis(cpu_ms)],
            own: Duration::from_millis(own_ms),
            machine: procfs::Machine { busy, steal, total },
        };
        let before = snapshot(at, 100, 50, 1000, 10, 5000);
        let after = snapshot(at + Duration::from_secs(1), 600, 350, 1100, 20, 5200);
        let measured = before.until(&after, Stats::new());
        assert_eq!(measured.cpu, [Duration::from_millis(500)]);
        assert_eq!(measured.elapsed, Duration::from_secs(1));
        assert!((measured.steal - 0.05).abs() < 1e-9);
        // 100 ticks busy, 80 of them ours, of 200.
        assert!((measured.foreign - 0.10).abs() < 1e-9);
    }

    #[test]
    fn the_first_failure_is_kept() {
        let mut stats = Stats::new();
        stats.fail("one");
        stats.fail("two");
        assert_eq!((stats.failed, stats.failure.as_deref()), (2, Some("one")));
    }
}
