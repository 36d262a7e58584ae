//! Open loop: requests go out by the clock, whether or not earlier ones have been answered.
//! Latency counts from the instant at which a request was due, so that a proxy cannot hide
//! a stall by slowing down its clients (coordinated omission). Each connection is a thread
//! of its own with blocking sockets: a runtime's timers tick in milliseconds, too coarse here.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Target, http1, response};
use crate::error::{Context as _, Error, Result};

/// A response that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(10);

/// A rate, spread evenly over connections.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) target: Target,
    pub(crate) path: String,
    pub(crate) per_second: u32,
    pub(crate) connections: u32,
}

/// What became of one request.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// When it was due, when it went out, and when its response had been read.
    pub(crate) due: Instant,
    pub(crate) sent: Instant,
    pub(crate) done: Instant,
    /// The version that answered (200), or what went wrong.
    pub(crate) result: std::result::Result<Option<String>, String>,
}

/// A load that is running; stops when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Sample>>>,
}

impl Spec {
    /// Starts the load, on the target's host if it has one.
    pub(crate) fn start(&self) -> Result<Running> {
        self.target.within(|| self.start_here())
    }

    fn start_here(&self) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now() + Duration::from_millis(20);
        let interval = Duration::from_secs(1) * self.connections / self.per_second.max(1);
        let threads = (0..self.connections)
            .map(|i| {
                let (spec, stop) = (self.clone(), stop.clone());
                let first = begin + interval * i / self.connections;
                thread::spawn(move || spec.drive(first, interval, &stop))
            })
            .collect();
        Running { stop, threads }
    }

    fn drive(&self, first: Instant, interval: Duration, stop: &AtomicBool) -> Vec<Sample> {
        let request = http1::request(&self.target.host, &self.path);
        let mut samples = Vec::new();
        let mut connection = None;
        let mut due = first;
        while !stop.load(Ordering::Relaxed) {
            sleep_until(due);
            let sent = Instant::now();
            let result = self
                .exchange(&mut connection, request.as_bytes())
                .map_err(|error| error.to_string());
            if result.is_err() {
                connection = None;
            }
            samples.push(Sample {
                due,
                sent,
                done: Instant::now(),
                result,
            });
            due += interval;
        }
        samples
    }

    fn exchange(
        &self,
        connection: &mut Option<TcpStream>,
        request: &[u8],
    ) -> Result<Option<String>> {
        let stream = match connection {
            Some(stream) => stream,
            None => connection.insert(self.connect()?),
        };
        stream.write_all(request).context("write")?;
        let (mut buffer, mut filled) = ([0; 4096], 0);
        loop {
            let n = stream.read(&mut buffer[filled..]).context("read")?;
            if n == 0 {
                return Err(Error::new("the connection was closed"));
            }
            filled += n;
            let Some(head) = response::parse(&buffer[..filled]).map_err(Error::new)? else {
                continue;
            };
            let body = head.body.context("the response has no content-length")?;
            if filled < head.length + body {
                continue;
            }
            if head.status != 200 {
                let reason = head.header("weft-reason").unwrap_or("-");
                return Err(Error::new(format!(
                    "status {}, weft-reason {reason}",
                    head.status
                )));
            }
            let version = head.header("x-version").map(str::to_owned);
            if head.closes() {
                *connection = None;
            }
            return Ok(version);
        }
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.target.address).context("connect")?;
        stream.set_nodelay(true).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE)).context("connect")?;
        Ok(stream)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, and more exact than the runtime's timers"
)]
fn sleep_until(due: Instant) {
    if let Some(left) = due.checked_duration_since(Instant::now()) {
        thread::sleep(left);
    }
}

impl Running {
    /// Ends the load and returns all samples in the order in which they were sent.
    pub(crate) async fn finish(mut self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        let join = move || {
            threads
                .into_iter()
                .map(JoinHandle::join)
                .collect::<std::result::Result<Vec<_>, _>>()
        };
        let samples = tokio::task::spawn_blocking(join)
            .await
            .context("the load")?;
        let mut samples = samples
            .map_err(|_| Error::new("a thread of the load panicked"))?
            .concat();
        samples.sort_by_key(|sample| sample.sent);
        Ok(samples)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
