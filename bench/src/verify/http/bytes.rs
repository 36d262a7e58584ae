//! Byte truth (T57): bodies of every size, cut into pieces at random, with and without trailers,
//! over HTTP/1 and HTTP/2 and from one to the other, pass three sidecars and proxies that delay
//! and slice what is between them. What the application echoes is what was sent, byte by byte,
//! and nobody gets what is another's.
//!
//! `client` calls the service `middle`, whose application is the outbound port of its own
//! sidecar; a route has made `echo` of the Host, which is the service of `server`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use weft_kit::fault::{Fault, Rules, Way};

use super::echo::{Http1, Job, http2, log_uniform, roomy};
use super::lanes::Dice;
use super::pair::{Peak, mebibytes};
use crate::error::{Context as _, Error, Result};
use crate::process::{Process, free_address};
use crate::verify::world::{client, start_app, until_answered};
use crate::verify::{Cases, Finding, Setting, seen};
use crate::weft::{self, Control, Port, Sidecar, Workload, write_config};

/// Connections of HTTP/1, and streams of HTTP/2, to each service.
const LANES: usize = 8;
/// Streams of one connection.
const STREAMS: usize = 4;
/// Bodies of one connection of HTTP/2.
const BODIES: usize = 2000;
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(120);
const LARGEST: u64 = 100_000_000;
/// Small writes for each read of a proxy that slices: enough for a head and the first chunk lines
/// behind it, byte by byte.
const SLICES: usize = 512;

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let (count, largest, limit) = if setting.quick {
        (3_000, 16 << 20, Duration::from_secs(60))
    } else {
        (1_000_000, LARGEST, Duration::from_secs(3600))
    };
    let chain = Chain::start(setting).await?;
    let expected = format!(
        "{count} bodies of 0 to {largest} bytes through three sidecars, {} ways: nonce, length, SHA-256 and trailer of \
         each come back",
        WAYS.len()
    );
    cases
        .check_within(limit, "echo", expected, chain.all(count, largest))
        .await;
    Ok(())
}

/// How a body goes: what the client speaks, and to which service.
#[derive(Debug, Clone, Copy)]
struct Path {
    http2: bool,
    host: &'static str,
}

/// The application of `middle` speaks HTTP/1, that of `middle2` HTTP/2: two of the four ways
/// are translated.
const WAYS: [Path; 4] = [
    Path {
        http2: false,
        host: "middle.bench",
    },
    Path {
        http2: true,
        host: "middle.bench",
    },
    Path {
        http2: false,
        host: "middle2.bench",
    },
    Path {
        http2: true,
        host: "middle2.bench",
    },
];

/// Three sidecars in a row.
struct Chain {
    sidecars: [Sidecar; 3],
    /// Where the client's sidecar takes requests, behind a proxy that spoils them.
    entry: SocketAddr,
    faults: Arc<Vec<Fault>>,
    /// Kept running.
    _control: Control,
    _app: Process,
}

impl Chain {
    async fn start(setting: &Setting) -> Result<Self> {
        let dir = setting.dir();
        let (app_at, app) = start_app(dir, "v1", None).await?;
        let outbounds = [free_address()?, free_address()?, free_address()?];
        let mut faults = Vec::new();
        let mut fault = async |to| {
            let fault = Fault::start(to, faults.len() as u64).await;
            let fault = fault.context("a proxy that spoils")?;
            let address = fault.address();
            faults.push(fault);
            Ok::<_, Error>(address)
        };
        let entry = fault(outbounds[0]).await?;
        let mut text = weft::mesh_config() + &client(outbounds[0], Vec::new()).yaml();
        let mut services = Vec::new();
        for (name, outbound, app) in [
            ("middle", outbounds[1], outbounds[1]),
            ("echo", outbounds[2], app_at),
        ] {
            let (mut behind, mut before) = (Vec::new(), Vec::new());
            for (number, protocol, suffix) in [(8080, "http", ""), (8081, "http2", "2")] {
                let service = format!("{name}{suffix}");
                text += &weft::service(&service, &format!("app: {name}"), number, Some(protocol));
                services.push(service);
                let listen = free_address()?;
                let port = Port {
                    port: number,
                    protocol: Some(protocol),
                    listen,
                    app: fault(app).await?,
                };
                before.push(Port {
                    listen: fault(listen).await?,
                    ..port.clone()
                });
                behind.push(port);
            }
            // Peers are led to the document that the service selects; the sidecar runs the other.
            let real = format!("{name}-behind");
            let server = Workload {
                name: &real,
                account: name,
                app: "behind",
                version: "",
                ports: behind,
                outbound: Some(outbound),
                upstreams: Vec::new(),
            };
            text += &server.yaml();
            let led = Workload {
                name,
                app: name,
                ports: before,
                outbound: None,
                ..server
            };
            text += &led.yaml();
        }
        text += &(rewrite("middle", "echo") + &rewrite("middle2", "echo2"));
        write_config(dir, "mesh.yaml", &text)?;
        let control = Control::start(&setting.programs, dir).await?;
        let last = control.sidecar("bench", "echo-behind", "echo").await?;
        let middle = control.sidecar("bench", "middle-behind", "middle").await?;
        let mut first = control.sidecar("bench", "client", "client").await?;
        first.process.listens(outbounds[0]).await?;
        for host in WAYS.map(|way| way.host) {
            until_answered(entry, host, |reply| reply.status == 200).await?;
        }
        Ok(Self {
            sidecars: [first, middle, last],
            entry,
            faults: Arc::new(faults),
            _control: control,
            _app: app,
        })
    }

    async fn all(self, count: u64, largest: u64) -> Result<Finding> {
        let peaks = self
            .sidecars
            .each_ref()
            .map(|sidecar| Peak::watch(sidecar.process.pid));
        let start = Instant::now();
        let work = Arc::new(Mutex::new(Work {
            next: 0,
            count,
            largest,
            ..Work::default()
        }));
        let mut spoil = JoinSet::new();
        spoil.spawn(keep_spoiling(self.faults.clone()));
        let mut workers = JoinSet::new();
        for way in WAYS {
            let (entry, work) = (self.entry, &work);
            if way.http2 {
                for _ in 0..LANES / STREAMS {
                    workers.spawn(over_http2(entry, way.host, work.clone()));
                }
            } else {
                for _ in 0..LANES {
                    workers.spawn(over_http1(entry, way.host, work.clone()));
                }
            }
        }
        while let Some(worker) = workers.join_next().await {
            worker.context("a worker")?;
        }
        drop(spoil);
        let elapsed = start.elapsed();
        let work = work.lock();
        let peaks: Vec<String> = peaks.iter().map(|peak| mebibytes(peak.bytes())).collect();
        let failed = work.failed;
        let first = work.first.as_ref();
        let first = first.map(|first| format!(" (first: {first})"));
        Ok(seen(
            failed == 0 && work.done == count,
            format!(
                "{} of {count} right, {failed} wrong{}; {} and {} trailers echoed, the largest {} bytes, in {:.1} s ({:.0} a second); \
                 peak memory {}",
                work.done,
                first.unwrap_or_default(),
                mebibytes(work.bytes),
                work.trailers,
                work.longest,
                elapsed.as_secs_f64(),
                work.done as f64 / elapsed.as_secs_f64(),
                peaks.join(", ")
            ),
        ))
    }
}

/// A route that gives requests to a service the name of another one.
fn rewrite(service: &str, name: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {service}, namespace: bench}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: {service}}}]\n  rules:\n  - filters: [{{type: URLRewrite, \
         urlRewrite: {{hostname: {name}.bench}}}}]\n    backendRefs: [{{name: {service}, port: 80}}]\n"
    )
}

/// What is to be done, and what came of it.
#[derive(Debug, Default)]
struct Work {
    next: u64,
    count: u64,
    largest: u64,
    done: u64,
    failed: u64,
    first: Option<String>,
    bytes: u64,
    trailers: u64,
    longest: u64,
}

impl Work {
    /// The next body; none when all are taken, or enough have failed.
    fn take(&mut self) -> Option<Job> {
        if self.is_over() {
            return None;
        }
        let number = self.next;
        self.next += 1;
        Some(job(number, self.count, self.largest))
    }

    fn is_over(&self) -> bool {
        self.next == self.count || self.failed >= 20
    }

    fn note(&mut self, job: &Job, result: Result<()>) {
        match result {
            Ok(()) => {
                self.done += 1;
                self.bytes += job.length;
                self.trailers += u64::from(job.trailer && job.chunked);
                self.longest = self.longest.max(job.length);
            }
            Err(error) => {
                self.failed += 1;
                self.first.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

/// Body `number` of `count`. One in a hundred has up to 1 MiB, one in a thousand up to 10 MiB,
/// one in twenty thousand up to `largest`, one exactly that; all others up to 64 KiB.
fn job(number: u64, count: u64, largest: u64) -> Job {
    let mut dice = Dice::new(number.wrapping_mul(0xff51_afd7_ed55_8ccd));
    let range = match number {
        0 => (0, 0),
        n if n == count / 2 => (largest, largest),
        n if n % 20_000 == 19_999 => (10 << 20, largest),
        n if n % 1000 == 999 => (1 << 20, 10 << 20),
        n if n % 100 == 99 => (64 << 10, 1 << 20),
        _ => (0, 64 << 10),
    };
    let length = log_uniform(&mut dice, range.0, range.1);
    // A tenth in up to a few hundred pieces: every piece costs all that handle it, and most bodies of
    // the world come in few.
    let parts = if dice.below(10) == 0 { 100 } else { 4 };
    let smallest = (length / parts).clamp(1, 16 << 10);
    let piece = log_uniform(&mut dice, smallest, 64 << 10);
    Job {
        nonce: number,
        length,
        chunked: dice.below(2) == 0,
        trailer: dice.below(2) == 0,
        piece: usize::try_from(piece).unwrap_or(usize::MAX),
        burst: if dice.below(2) == 0 { 0 } else { 64 << 10 },
    }
}

async fn over_http1(entry: SocketAddr, host: &'static str, work: Arc<Mutex<Work>>) {
    let mut connection = None;
    loop {
        let Some(job) = work.lock().take() else {
            return;
        };
        let exchange = async {
            let mut http1 = match connection.take() {
                Some(http1) => http1,
                None => Http1::new(TcpStream::connect(entry).await.context("connect")?),
            };
            let again = http1.exchange(host, &job).await?;
            // Now and then somebody else begins anew.
            if again && job.nonce % 100 != 7 {
                connection = Some(http1);
            }
            Ok(())
        };
        let result = timeout(PATIENCE, exchange).await;
        let result = result.unwrap_or_else(|_| Err(late(&job)));
        work.lock().note(&job, result);
    }
}

fn late(job: &Job) -> Error {
    Error::new(format!("no end in {PATIENCE:?} of {job:?}"))
}

/// On one connection after the other: h2 ends one for the 101st empty DATA frame of its life that
/// ends no stream, and there is one before the trailers of an empty body.
async fn over_http2(entry: SocketAddr, host: &'static str, work: Arc<Mutex<Work>>) {
    while !work.lock().is_over() {
        on_one_connection(entry, host, &work).await;
    }
}

async fn on_one_connection(entry: SocketAddr, host: &'static str, work: &Arc<Mutex<Work>>) {
    let connect = async {
        let stream = TcpStream::connect(entry).await.context("connect")?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        roomy().handshake(stream).await.context("HTTP/2 handshake")
    };
    let (sender, driver) = match connect.await {
        Ok(connected) => connected,
        Err(error) => {
            let mut work = work.lock();
            work.failed += 1;
            work.first.get_or_insert_with(|| error.to_string());
            return;
        }
    };
    let mut tasks = JoinSet::new();
    // Ends with its streams; how is seen by them.
    tasks.spawn(async move {
        let _ = driver.await;
    });
    for _ in 0..STREAMS {
        let (mut sender, work) = (sender.clone(), work.clone());
        tasks.spawn(async move {
            for _ in 0..BODIES / STREAMS {
                let Some(job) = work.lock().take() else {
                    return;
                };
                let result = timeout(PATIENCE, http2(&mut sender, host, &job)).await;
                let result = result.unwrap_or_else(|_| Err(late(&job)));
                work.lock().note(&job, result);
            }
        });
    }
    drop(sender);
    while tasks.join_next().await.is_some() {}
}

/// Other rules for every proxy, ten times a second.
async fn keep_spoiling(faults: Arc<Vec<Fault>>) {
    let mut dice = Dice::new(57);
    loop {
        for fault in faults.iter() {
            for way in [Way::ToServer, Way::ToClient] {
                fault.set(way, rules(&mut dice));
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn rules(dice: &mut Dice) -> Rules {
    let slice = match dice.below(12) {
        0 => Some(log_uniform(dice, 1, 16 << 10)),
        _ => None,
    };
    let (delay, jitter) = match dice.below(12) {
        0 => (dice.below(3), dice.below(3)),
        _ => (0, 0),
    };
    Rules {
        delay: Duration::from_millis(delay as u64),
        jitter: Duration::from_millis(jitter as u64),
        slice: slice.and_then(|slice| usize::try_from(slice).ok()),
        slices: Some(SLICES),
        ..Rules::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_sizes_that_are_promised() {
        let count = 1_000_000;
        let jobs: Vec<Job> = (0..count).map(|n| job(n, count, LARGEST)).collect();
        assert_eq!(jobs[0].length, 0);
        assert_eq!(jobs.iter().map(|job| job.length).max(), Some(LARGEST));
        let above = |least| jobs.iter().filter(|job| job.length > least).count();
        assert!((9_000..11_000).contains(&above(64 << 10)));
        assert!((900..1100).contains(&above(1 << 20)));
        assert!((40..60).contains(&above(10 << 20)));
        let sum: u64 = jobs.iter().map(|job| job.length).sum();
        assert!((10 << 30..25_u64 << 30).contains(&sum), "{sum}");
        for chunked in [false, true] {
            for trailer in [false, true] {
                let share = jobs
                    .iter()
                    .filter(|job| (job.chunked, job.trailer) == (chunked, trailer))
                    .count();
                assert!((200_000..300_000).contains(&share), "{chunked} {trailer}");
            }
        }
    }
}
