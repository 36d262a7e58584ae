//! Where the groups about resources play: the sidecar of a client and that of a server, each
//! with settings of its own and in surroundings of its own, and what can be seen of them.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Context as _, Error, Result};
use crate::load::{Target, rate};
use crate::process::{Process, Spec, free_address};
use crate::procfs;
use crate::verify::Setting;
use crate::verify::world::{client, failures, start_app, until_answered};
use crate::weft::{self, Control, Port, Reply, Sidecar, Workload, exchange_on, write_config};

/// The service whose application is called with HTTP/1, and that which is called with HTTP/2.
pub(super) const PLAIN: &str = "echo.bench";
pub(super) const SECOND: &str = "second.bench";

/// How one sidecar is started.
#[derive(Debug, Clone, Default)]
pub(super) struct Start {
    settings: Vec<(&'static str, u64)>,
    /// A program with arguments that starts it.
    under: Vec<String>,
}

impl Start {
    /// With these settings, `WEFT_PROXY_` left out.
    pub(super) fn with(settings: &[(&'static str, u64)]) -> Self {
        Self {
            settings: settings.to_vec(),
            under: Vec::new(),
        }
    }

    /// With at most so many open files.
    pub(super) fn files(mut self, limit: u32) -> Self {
        self.under = vec!["prlimit".to_owned(), format!("--nofile={limit}:{limit}")];
        self
    }

    /// By a program with arguments, whose last ones will be the sidecar and its own.
    pub(super) fn under(mut self, command: Vec<String>) -> Self {
        self.under = command;
        self
    }

    fn apply(&self, spec: Spec) -> Spec {
        let spec = self.settings.iter().fold(spec, |spec, (name, value)| {
            spec.env(&format!("WEFT_PROXY_{name}"), value.to_string())
        });
        match self.under.split_first() {
            Some((program, args)) => {
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                spec.under(program, &args)
            }
            None => spec,
        }
    }
}

/// A running mesh of two. The application is two services: what is pooled for one is no
/// connection to the other.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) client: Sidecar,
    pub(super) server: Sidecar,
    /// Where the client's sidecar takes requests, and where the server's takes mTLS.
    pub(super) outbound: SocketAddr,
    pub(super) inbound: SocketAddr,
    /// Kept running.
    _control: Control,
    _app: Process,
}

impl Pair {
    /// In the directory `name` of the group.
    pub(super) async fn start(
        setting: &Setting,
        name: &str,
        client_start: &Start,
        server_start: &Start,
    ) -> Result<Self> {
        let dir = setting.dir().join(name);
        fs::create_dir_all(&dir).context(dir.display())?;
        let (app_at, app) = start_app(&dir, "v1", None).await?;
        let (outbound, inbound) = (free_address()?, free_address()?);
        let port = |port, protocol, listen| Port {
            port,
            protocol: Some(protocol),
            listen,
            app: app_at,
        };
        let server = Workload {
            name: "server",
            account: "echo",
            app: "echo",
            version: "",
            ports: vec![
                port(8080, "http", inbound),
                port(8081, "http2", free_address()?),
            ],
            outbound: Some(free_address()?),
            upstreams: Vec::new(),
        };
        let text = weft::mesh_config()
            + &weft::service("echo", "app: echo", 8080, Some("http"))
            + &weft::service("second", "app: echo", 8081, Some("http2"))
            + &server.yaml()
            + &client(outbound, Vec::new()).yaml();
        write_config(&dir, "mesh.yaml", &text)?;
        let control = Control::start(&setting.programs, &dir).await?;
        let server = control
            .sidecar_as("bench", "server", "echo", |spec| server_start.apply(spec))
            .await?;
        let mut client = control
            .sidecar_as("bench", "client", "client", |spec| client_start.apply(spec))
            .await?;
        client.process.listens(outbound).await?;
        until_answered(outbound, PLAIN, |reply| reply.status == 200).await?;
        Ok(Self {
            client,
            server,
            outbound,
            inbound,
            _control: control,
            _app: app,
        })
    }

    /// Good requests at that rate over 16 connections.
    pub(super) fn load(&self, per_second: u32) -> Result<rate::Running> {
        rate::Spec {
            target: Target {
                address: self.outbound,
                host: PLAIN.to_owned(),
                from: None,
            },
            path: "/".to_owned(),
            per_second,
            connections: 16,
        }
        .start()
    }

    /// One GET on a connection of its own; an error after 2 s.
    pub(super) async fn get(&self, host: &str, path: &str) -> Result<Reply> {
        let answer = async {
            let stream = TcpStream::connect(self.outbound).await.context("connect")?;
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            exchange_on(stream, request.as_bytes()).await
        };
        timeout(Duration::from_secs(2), answer)
            .await
            .context("no answer in 2 s")?
    }

    /// How long it takes until a new connection gets a 200.
    pub(super) async fn recovered(&self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let last = match self.get(PLAIN, "/").await {
                Ok(reply) if reply.status == 200 => return Ok(start.elapsed()),
                Ok(reply) => reply.line(),
                Err(error) => error.to_string(),
            };
            if start.elapsed() > limit {
                return Err(Error::new(format!("no 200 in {limit:?}; the last: {last}")));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The sum of the series of a metric that have all these labels, `name="value"`; 0 if none.
pub(super) async fn metric(sidecar: &Sidecar, name: &str, labels: &[&str]) -> Result<f64> {
    let (status, text) = weft::get(sidecar.public_admin, "localhost", "/metrics").await?;
    if status != 200 {
        return Err(Error::new(format!("/metrics: status {status}")));
    }
    Ok(sum(&text, name, labels))
}

fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let is_it = rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label));
        is_it.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    };
    // `sum` of nothing would be -0.
    text.lines()
        .filter_map(value)
        .fold(0.0, |sum, value| sum + value)
}

/// The open files of a process.
pub(super) fn files(pid: u32) -> Result<usize> {
    let dir = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&dir).context(&dir)?.count())
}

/// Waits until a process has at most so many open files; how long that took.
pub(super) async fn files_fall(pid: u32, to: usize, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let now = files(pid)?;
        if now <= to {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            return Err(Error::new(format!(
                "{now} open files after {limit:?}; {to} at most are expected"
            )));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Watches the memory of a process until it is dropped.
#[derive(Debug)]
pub(super) struct Peak {
    peak: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Peak {
    pub(super) fn watch(pid: u32) -> Self {
        let peak = Arc::new(AtomicU64::new(0));
        let highest = peak.clone();
        let task = tokio::spawn(async move {
            while let Ok(memory) = procfs::memory(pid) {
                highest.fetch_max(memory.rss, Ordering::Relaxed);
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { peak, task }
    }

    /// Bytes at the highest point so far.
    pub(super) fn bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Good traffic in one window.
#[derive(Debug, Clone)]
pub(super) struct Quality {
    sent: usize,
    failed: usize,
    /// The first failure, in words; or empty.
    failure: String,
    p50: Duration,
    pub(super) p99: Duration,
}

impl Quality {
    /// Latency counts from when a request was due.
    pub(super) fn of(samples: &[rate::Sample]) -> Self {
        let (failed, failure) = failures(samples);
        let mut latencies: Vec<Duration> = samples
            .iter()
            .map(|sample| sample.done.saturating_duration_since(sample.due))
            .collect();
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            let last = latencies.len().saturating_sub(1);
            latencies.get(index.min(last)).copied().unwrap_or_default()
        };
        Self {
            sent: samples.len(),
            failed,
            failure,
            p50: at(0.50),
            p99: at(0.99),
        }
    }

    /// The share of requests that were answered with 200.
    pub(super) fn answered(&self) -> f64 {
        1.0 - self.failed as f64 / self.sent.max(1) as f64
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{} of {} failed{}, p50 {}, p99 {}",
            self.failed,
            self.sent,
            self.failure,
            milliseconds(self.p50),
            milliseconds(self.p99)
        )
    }
}

pub(super) fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_labels() {
        let text = "# TYPE a counter\na{what=\"x\",b=\"1\"} 2\na{what=\"y\"} 4\nab 8\nb 16\n";
        for (name, labels, expect) in [
            ("a", &[][..], 6.0),
            ("a", &["what=\"x\""], 2.0),
            ("a", &["what=\"z\""], 0.0),
            ("b", &[], 16.0),
        ] {
            assert!(
                (sum(text, name, labels) - expect).abs() < 1e-9,
                "{name} {labels:?}"
            );
        }
    }

    #[test]
    fn quality_counts_failures_and_finds_percentiles() {
        let due = std::time::Instant::now();
        let sample = |ms, result| rate::Sample {
            due,
            sent: due,
            done: due + Duration::from_millis(ms),
            result,
        };
        let mut samples: Vec<_> = (0..99).map(|_| sample(1, Ok(None))).collect();
        samples.push(sample(50, Err("x".to_owned())));
        let quality = Quality::of(&samples);
        assert_eq!(
            quality.line(),
            "1 of 100 failed (first: x), p50 1.0 ms, p99 50.0 ms"
        );
        assert!((quality.answered() - 0.99).abs() < 1e-9);
        assert_eq!(Quality::of(&[]).p99, Duration::ZERO);
    }
}
