//! Good clients beside the bad ones: one of HTTP/1 and one of HTTP/2, each on connections of its
//! own, each with 100 requests a second by the clock.
//!
//! That an attack harms nobody means here: no request of theirs fails, and the 99th percentile
//! of their latency stays under twice the highest of three figures: that without the attack,
//! before and after it, and [`NOISE`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout};

use super::pair::{Quality, milliseconds};
use crate::error::{Context as _, Error, Result};
use crate::load::{Target, rate};

/// Percentiles below it are those of the machine.
const NOISE: Duration = Duration::from_millis(5);
const PER_SECOND: u32 = 100;
const CONNECTIONS: u32 = 4;
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// A load that runs.
#[derive(Debug)]
pub(super) struct Victims {
    http1: rate::Running,
    http2: JoinHandle<Result<Vec<rate::Sample>>>,
    stop: Arc<AtomicBool>,
}

/// How they fared.
#[derive(Debug, Clone)]
pub(super) struct Fared {
    http1: Quality,
    http2: Quality,
}

impl Victims {
    pub(super) fn start(address: SocketAddr, host: &str) -> Result<Self> {
        let target = Target {
            address,
            host: host.to_owned(),
            from: None,
        };
        let http1 = rate::Spec {
            target,
            path: "/victim".to_owned(),
            per_second: PER_SECOND,
            connections: CONNECTIONS,
        }
        .start()?;
        let stop = Arc::<AtomicBool>::default();
        let (is_over, host) = (stop.clone(), host.to_owned());
        // A thread of its own, so that the attackers of this process are not in its way.
        let http2 = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().context("a runtime")?;
            LocalSet::new().block_on(&runtime, drive(address, &host, &is_over))
        });
        Ok(Self { http1, http2, stop })
    }

    pub(super) async fn finish(self) -> Result<Fared> {
        self.stop.store(true, Ordering::Relaxed);
        let http1 = self.http1.finish().await?;
        let http2 = tokio::task::spawn_blocking(|| self.http2.join());
        let http2 = http2.await.context("the load")?;
        let http2 = http2.map_err(|_| Error::new("a thread of the load panicked"))??;
        Ok(Fared {
            http1: Quality::of(&http1),
            http2: Quality::of(&http2),
        })
    }

    /// A load that runs for a while and ends.
    pub(super) async fn undisturbed(
        address: SocketAddr,
        host: &str,
        window: Duration,
    ) -> Result<Fared> {
        let victims = Self::start(address, host)?;
        sleep(window).await;
        victims.finish().await
    }
}

impl Fared {
    /// Whether the attack during which they fared so has harmed them, by how they fare without.
    pub(super) fn is_well(&self, before: &Self, after: &Self) -> bool {
        let well = |during: &Quality, before: &Quality, after: &Quality| {
            let bound = before.p99.max(after.p99).max(NOISE) * 2;
            during.answered() >= 1.0 && during.p99 < bound
        };
        well(&self.http1, &before.http1, &after.http1)
            && well(&self.http2, &before.http2, &after.http2)
    }

    pub(super) fn line(&self, before: &Self, after: &Self) -> String {
        let line = |during: &Quality, before: &Quality, after: &Quality| {
            let (before, after) = (milliseconds(before.p99), milliseconds(after.p99));
            format!("{} (undisturbed p99 {before} and {after})", during.line())
        };
        format!(
            "victims: HTTP/1 {}, HTTP/2 {}",
            line(&self.http1, &before.http1, &after.http1),
            line(&self.http2, &before.http2, &after.http2)
        )
    }
}

/// What is expected of them, in words.
pub(super) fn promise() -> String {
    let floor = milliseconds(NOISE);
    format!(
        "victims at {PER_SECOND}/s on HTTP/1 and on HTTP/2: none fails, p99 < 2 x max(undisturbed, {floor})"
    )
}

async fn drive(address: SocketAddr, host: &str, stop: &AtomicBool) -> Result<Vec<rate::Sample>> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true).context("connect")?;
    let handshake = timeout(PATIENCE, h2::client::handshake(stream)).await;
    let (sender, connection) = handshake.context("HTTP/2")?.context("HTTP/2")?;
    let connection = tokio::task::spawn_local(connection);
    let mut due = Instant::now() + Duration::from_millis(20);
    let mut requests = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        sleep_until(due.into()).await;
        let (sender, uri) = (sender.clone(), format!("http://{host}/victim"));
        let was_due = due;
        requests.spawn_local(async move {
            let sent = Instant::now();
            let result = timeout(PATIENCE, get(sender, uri)).await;
            let result = result.unwrap_or_else(|_| Err("no answer in 10 s".to_owned()));
            rate::Sample {
                due: was_due,
                sent,
                done: Instant::now(),
                result: result.map(|()| None),
            }
        });
        due += Duration::from_secs(1) / PER_SECOND;
    }
    let samples = requests.join_all().await;
    connection.abort();
    Ok(samples)
}

async fn get(mut sender: SendRequest<Bytes>, uri: String) -> std::result::Result<(), String> {
    let text = |error: h2::Error| error.to_string();
    std::future::poll_fn(|cx| sender.poll_ready(cx))
        .await
        .map_err(text)?;
    let request = Request::get(uri).body(()).map_err(|e| e.to_string())?;
    let (response, _) = sender.send_request(request, true).map_err(text)?;
    let response = response.await.map_err(text)?;
    if response.status() != 200 {
        let reason = response.headers().get("weft-reason");
        return Err(format!("status {}, {reason:?}", response.status()));
    }
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let length = data.map_err(text)?.len();
        // It fails only when the stream is over, and then nothing is lost.
        let _ = body.flow_control().release_capacity(length);
    }
    Ok(())
}
