//! A storm of cancels (T58): half of all clients leave at some point of their exchange, over
//! HTTP/1 by FIN or RST, over HTTP/2 by a reset of the stream or the end of the connection.
//! Those who stay get what is theirs, and when all have gone nothing of them is left.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::echo::{Http1, Job, http2, log_uniform, roomy};
use super::lanes::Dice;
use super::pair::{PLAIN, Pair, SECOND, Start, files, mebibytes, metric};
use crate::error::{Context as _, Error, Result};
use crate::procfs;
use crate::verify::{Cases, Finding, Setting, seen};
use crate::weft::Sidecar;

/// Clients of each protocol and service.
const CLIENTS: usize = 12;
/// Streams that share a connection of HTTP/2.
const STREAMS: usize = 4;
/// Who stays is answered within it.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the figures of a process that leaks nothing may still differ by.
const FILES_ROOM: usize = 24;
const MEMORY_ROOM: u64 = 16 << 20;

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let (warm, long, limit) = if setting.quick {
        let seconds = Duration::from_secs;
        (seconds(2), seconds(5), seconds(60))
    } else {
        let seconds = Duration::from_secs;
        (seconds(30), seconds(600), seconds(900))
    };
    let pair = Pair::start(setting, "cancel", &Start::default(), &Start::default()).await?;
    let expected = format!(
        "half of the clients leave for {long:?}: who stays gets his own bytes, and afterwards nothing is in flight, files \
         are those after a storm of {warm:?} + {FILES_ROOM}, memory that + {}",
        mebibytes(MEMORY_ROOM)
    );
    cases
        .check_within(limit, "storm", expected, storms(&pair, warm, long))
        .await;
    Ok(())
}

async fn storms(pair: &Pair, warm: Duration, long: Duration) -> Result<Finding> {
    let sidecars = [&pair.client, &pair.server];
    storm(pair, warm, 0).await?;
    let base = [rest(sidecars[0]).await?, rest(sidecars[1]).await?];
    let score = storm(pair, long, 1 << 40).await?;
    let after = [rest(sidecars[0]).await?, rest(sidecars[1]).await?];
    let back = |i: usize| {
        let (base, after): (&Rest, &Rest) = (&base[i], &after[i]);
        after.in_flight == 0.0
            && after.files <= base.files + FILES_ROOM
            && after.memory <= base.memory + MEMORY_ROOM
    };
    let both = back(0) && back(1);
    let many = score.left > 100 && score.stayed > 100;
    let first = score.first_wrong.as_ref();
    let first = first.map(|wrong| format!(" (first: {wrong})"));
    Ok(seen(
        both && many && score.wrong == 0,
        format!(
            "{} left, {} stayed, {} of these wrong{}; client's sidecar {} -> {}; server's {} -> {}",
            score.left,
            score.stayed,
            score.wrong,
            first.unwrap_or_default(),
            base[0].line(),
            after[0].line(),
            base[1].line(),
            after[1].line()
        ),
    ))
}

/// What a sidecar has when nobody wants anything.
#[derive(Debug)]
struct Rest {
    in_flight: f64,
    files: usize,
    memory: u64,
}

impl Rest {
    fn line(&self) -> String {
        let Self {
            in_flight,
            files,
            memory,
        } = self;
        format!(
            "{in_flight} in flight, {files} files, {}",
            mebibytes(*memory)
        )
    }
}

/// Waits until nothing is in flight, for 5 s at most, then looks.
async fn rest(sidecar: &Sidecar) -> Result<Rest> {
    let start = Instant::now();
    let in_flight = loop {
        let outbound = metric(sidecar, "weft_client_requests_in_flight", &[]).await?;
        let inbound = metric(sidecar, "weft_server_requests_in_flight", &[]).await?;
        if outbound + inbound == 0.0 || start.elapsed() > Duration::from_secs(5) {
            break outbound + inbound;
        }
        sleep(Duration::from_millis(50)).await;
    };
    let pid = sidecar.process.pid;
    Ok(Rest {
        in_flight,
        files: files(pid)?,
        memory: procfs::memory(pid)?.rss,
    })
}

/// What the clients of a storm share.
#[derive(Debug)]
struct Sky {
    at: SocketAddr,
    over: AtomicBool,
    nonces: AtomicU64,
    score: Mutex<Score>,
}

#[derive(Debug, Default)]
struct Score {
    left: u64,
    stayed: u64,
    wrong: u64,
    first_wrong: Option<String>,
}

impl Score {
    fn wrong(&mut self, error: &impl ToString) {
        self.wrong += 1;
        self.first_wrong.get_or_insert_with(|| error.to_string());
    }
}

/// What one client is about to do.
struct Intent {
    job: Job,
    /// After which time it leaves.
    leaves: Option<Duration>,
}

impl Sky {
    fn intent(&self, dice: &mut Dice) -> Option<Intent> {
        if self.over.load(Ordering::Relaxed) {
            return None;
        }
        let length = log_uniform(dice, 0, 256 << 10);
        let piece = log_uniform(dice, 1.max(length / 50), 64 << 10);
        let microseconds = log_uniform(dice, 1, 30_000);
        Some(Intent {
            job: Job {
                nonce: self.nonces.fetch_add(1, Ordering::Relaxed),
                length,
                chunked: dice.below(2) == 0,
                trailer: false,
                piece: usize::try_from(piece).unwrap_or(usize::MAX),
                burst: 0,
            },
            leaves: (dice.below(2) == 0).then(|| Duration::from_micros(microseconds)),
        })
    }

    /// Makes an exchange, or leaves in the middle; the result of one that was not left.
    async fn attempt<T>(
        &self,
        intent: &Intent,
        exchange: impl Future<Output = Result<T>>,
    ) -> Option<T> {
        let done = timeout(intent.leaves.unwrap_or(PATIENCE), exchange).await;
        let mut score = self.score.lock();
        let result = match (done, intent.leaves) {
            (Err(_), Some(_)) => {
                score.left += 1;
                return None;
            }
            (Err(_), None) => Err(Error::new(format!("no answer in {PATIENCE:?}"))),
            (Ok(result), _) => result,
        };
        score.stayed += 1;
        result.map_err(|error| score.wrong(&error)).ok()
    }
}

async fn storm(pair: &Pair, length: Duration, first_nonce: u64) -> Result<Score> {
    let sky = Arc::new(Sky {
        at: pair.outbound,
        over: AtomicBool::new(false),
        nonces: AtomicU64::new(first_nonce),
        score: Mutex::default(),
    });
    let mut clients = JoinSet::new();
    for host in [PLAIN, SECOND] {
        for seed in 0..CLIENTS as u64 {
            clients.spawn(over_http1(sky.clone(), host, seed));
        }
        for seed in 0..(CLIENTS / STREAMS) as u64 {
            clients.spawn(over_http2(sky.clone(), host, seed));
        }
    }
    sleep(length).await;
    sky.over.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.context("a client")?;
    }
    Ok(std::mem::take(&mut *sky.score.lock()))
}

async fn over_http1(sky: Arc<Sky>, host: &'static str, seed: u64) {
    let mut dice = Dice::new(2 * seed + 1);
    let mut connection: Option<Http1> = None;
    while let Some(intent) = sky.intent(&mut dice) {
        let open = match connection.take() {
            Some(http1) => Ok(http1),
            None => TcpStream::connect(sky.at).await.map(Http1::new),
        };
        let mut http1 = match open {
            Ok(http1) => http1,
            Err(error) => {
                sky.score.lock().wrong(&error);
                return;
            }
        };
        match sky
            .attempt(&intent, http1.exchange(host, &intent.job))
            .await
        {
            Some(true) => connection = Some(http1),
            Some(false) => {}
            None if dice.below(2) == 0 => http1.reset(),
            None => {}
        }
    }
}

/// Connections that live for some hundred requests; the last ones of their streams end with them.
async fn over_http2(sky: Arc<Sky>, host: &'static str, seed: u64) {
    let mut dice = Dice::new(1000 + seed);
    while !sky.over.load(Ordering::Relaxed) {
        let (sender, driver) = match connect(sky.at).await {
            Ok(connected) => connected,
            Err(error) => {
                sky.score.lock().wrong(&error);
                return;
            }
        };
        let driver = tokio::spawn(driver);
        let mut streams = JoinSet::new();
        for _ in 0..STREAMS {
            let dice = Dice::new(dice.below(1 << 30) as u64);
            streams.spawn(stream(sky.clone(), sender.clone(), host, dice));
        }
        drop(sender);
        while streams.join_next().await.is_some() {}
        driver.abort();
        // All streams have ended: now one more is left with its connection.
        if let Ok((mut sender, driver)) = connect(sky.at).await
            && let Some(mut intent) = sky.intent(&mut dice)
        {
            let driver = tokio::spawn(driver);
            intent.leaves = Some(Duration::from_millis(1));
            sky.attempt(&intent, http2(&mut sender, host, &intent.job))
                .await;
            driver.abort();
        }
    }
}

async fn connect(
    at: SocketAddr,
) -> Result<(SendRequest<Bytes>, h2::client::Connection<TcpStream>)> {
    let stream = TcpStream::connect(at).await.context("connect")?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    roomy().handshake(stream).await.context("HTTP/2 handshake")
}

async fn stream(sky: Arc<Sky>, mut sender: SendRequest<Bytes>, host: &'static str, mut dice: Dice) {
    for _ in 0..100 {
        let Some(intent) = sky.intent(&mut dice) else {
            return;
        };
        sky.attempt(&intent, http2(&mut sender, host, &intent.job))
            .await;
    }
}
