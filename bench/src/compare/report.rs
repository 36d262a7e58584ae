//! What a comparison says: rows, ratios, and enough of the circumstances to judge them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Options;
use super::stats::{Spread, ratio, round};
use super::subject::{Pair, Skipped, Subject};
use super::workload::{Sample, Workload};
use crate::error::{Context as _, Result};
use crate::load::Measured;
use crate::procfs::Memory;

const MIB: f64 = 1024.0 * 1024.0;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    date: String,
    command: String,
    /// `debug` or `release`: how this program, the floor with it, was built. Weft's programs
    /// come from the same directory unless `--bin-dir` says otherwise.
    build: &'static str,
    machine: MachineFacts,
    versions: BTreeMap<&'static str, String>,
    rounds: u32,
    seconds: f64,
    workloads: BTreeMap<&'static str, &'static str>,
    skipped: Vec<Skipped>,
    idle: Vec<Idle>,
    rows: Vec<Row>,
    /// Weft's figure over the peer's, of the medians over the rounds unless the name ends in
    /// `_min`. Absent when a row that it needs is absent or invalid.
    ratios: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize)]
struct MachineFacts {
    processor: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
}

/// Memory of the proxies before their first request.
#[derive(Debug, Serialize)]
struct Idle {
    subject: &'static str,
    rss_mib: Pair<f64>,
    private_dirty_mib: Pair<f64>,
}

/// One subject under one load.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    subject: &'static str,
    workload: &'static str,
    /// No request failed, in any round.
    valid: bool,
    requests: u64,
    failed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    requests_per_second: Option<Spread>,
    p50_us: Option<Spread>,
    p99_us: Option<Spread>,
    /// Percentile less that of `direct` in the same round.
    added_p50_us: Option<Spread>,
    added_p99_us: Option<Spread>,
    cpu_us_per_request: Option<CpuSpread>,
    rss_mib: Option<Pair<f64>>,
    private_dirty_mib: Option<Pair<f64>>,
    /// Of the machine's time: taken by the hypervisor, used by strangers.
    steal_percent: Option<Spread>,
    foreign_percent: Option<Spread>,
}

#[derive(Debug, Serialize)]
struct CpuSpread {
    client: Spread,
    server: Spread,
    mean: Spread,
}

/// One valid measurement in figures.
#[derive(Debug, Clone, Copy)]
struct Figures {
    round: u32,
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: Option<Pair<f64>>,
    steal: f64,
    foreign: f64,
}

impl Figures {
    fn new(round: u32, measured: &Measured) -> Option<Self> {
        let requests = measured.stats.latency.len();
        if requests == 0 {
            return None;
        }
        let micros = |quantile| measured.stats.latency.value_at_quantile(quantile) as f64 / 1000.0;
        let per_request = |i: usize| measured.cpu[i].as_secs_f64() * 1e6 / requests as f64;
        // Proxies come first; `direct` has none, and watches applications alone.
        let cpu = (measured.cpu.len() >= 3).then(|| Pair {
            client: per_request(0),
            server: per_request(1),
        });
        Some(Self {
            round,
            rate: requests as f64 / measured.elapsed.as_secs_f64(),
            p50: micros(0.5),
            p99: micros(0.99),
            cpu,
            steal: measured.steal * 100.0,
            foreign: measured.foreign * 100.0,
        })
    }
}

impl Row {
    fn new(subject: &'static str, workload: Workload, samples: &[Sample]) -> Option<Self> {
        let of = |subject: &'static str| {
            samples
                .iter()
                .filter(move |sample| sample.subject == subject && sample.workload == workload)
        };
        let figures = |subject| -> Vec<Figures> {
            of(subject)
                .filter_map(|sample| Figures::new(sample.round, sample.result.as_ref().ok()?))
                .collect()
        };
        of(subject).next()?;
        let (mut requests, mut failed, mut failure) = (0, 0, None);
        for sample in of(subject) {
            match &sample.result {
                Ok(measured) => {
                    requests += measured.stats.latency.len();
                    failed += measured.stats.failed;
                    failure = failure.or_else(|| measured.stats.failure.clone());
                }
                Err(error) => {
                    failed += 1;
                    failure = failure.or_else(|| Some(error.to_string()));
                }
            }
        }
        let (own, direct) = (figures(subject), figures("direct"));
        let spread = |value: fn(&Figures) -> f64| Spread::of(own.iter().map(value));
        let added = |value: fn(&Figures) -> f64| {
            let base = |round| direct.iter().find(|base| base.round == round);
            Spread::of(
                own.iter()
                    .filter_map(|figures| Some(value(figures) - value(base(figures.round)?))),
            )
        };
        let cpu = |value: fn(Pair<f64>) -> f64| {
            Spread::of(own.iter().filter_map(|figures| figures.cpu.map(value)))
        };
        let memory = of(subject).filter_map(|sample| sample.memory).next_back();
        Some(Self {
            subject,
            workload: workload.name(),
            valid: failed == 0 && requests > 0,
            requests,
            failed,
            failure,
            requests_per_second: spread(|figures| figures.rate),
            p50_us: spread(|figures| figures.p50),
            p99_us: spread(|figures| figures.p99),
            added_p50_us: added(|figures| figures.p50).filter(|_| subject != "direct"),
            added_p99_us: added(|figures| figures.p99).filter(|_| subject != "direct"),
            cpu_us_per_request: cpu(|pair| pair.client)
                .zip(cpu(|pair| pair.server))
                .zip(cpu(|pair| f64::midpoint(pair.client, pair.server)))
                .filter(|_| subject != "direct")
                .map(|((client, server), mean)| CpuSpread {
                    client,
                    server,
                    mean,
                }),
            rss_mib: memory.map(|pair| mib(pair, |memory| memory.rss)),
            private_dirty_mib: memory.map(|pair| mib(pair, |memory| memory.private_dirty)),
            steal_percent: spread(|figures| figures.steal),
            foreign_percent: spread(|figures| figures.foreign),
        })
    }
}

fn mib(pair: Pair<Memory>, value: fn(Memory) -> u64) -> Pair<f64> {
    Pair {
        client: round(value(pair.client) as f64 / MIB),
        server: round(value(pair.server) as f64 / MIB),
    }
}

impl Report {
    pub(crate) fn new(
        options: &Options,
        subjects: &[Subject],
        skipped: Vec<Skipped>,
        samples: &[Sample],
    ) -> Result<Self> {
        let rows: Vec<Row> = Workload::ALL
            .into_iter()
            .flat_map(|workload| {
                subjects
                    .iter()
                    .filter_map(move |subject| Row::new(subject.name, workload, samples))
            })
            .collect();
        let idle: Vec<Idle> = subjects
            .iter()
            .filter_map(|subject| {
                let memory = subject.idle?;
                Some(Idle {
                    subject: subject.name,
                    rss_mib: mib(memory, |memory| memory.rss),
                    private_dirty_mib: mib(memory, |memory| memory.private_dirty),
                })
            })
            .collect();
        Ok(Self {
            api_version: "bench.weft.dev/v1",
            kind: "Comparison",
            date: OffsetDateTime::now_utc()
                .format(&Rfc3339)
                .context("the date")?,
            command: std::env::args().collect::<Vec<_>>().join(" "),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            machine: MachineFacts::read(),
            versions: subjects
                .iter()
                .map(|subject| (subject.name, subject.version.clone()))
                .collect(),
            rounds: options.rounds,
            seconds: options.seconds,
            workloads: Workload::ALL
                .into_iter()
                .map(|workload| (workload.name(), workload.about()))
                .collect(),
            skipped,
            ratios: ratios(&rows, &idle),
            idle,
            rows,
        })
    }

    /// Whether no request failed anywhere, and Weft was measured if it was to be.
    pub(crate) fn valid(&self) -> bool {
        self.rows.iter().all(|row| row.valid)
            && self.skipped.iter().all(|skipped| skipped.subject != "weft")
    }

    /// For people: medians with minima where these say more.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{}, {} cores, {} MiB, Linux {}\n{}, {} rounds of {} s: median (minimum)\n",
            self.machine.processor,
            self.machine.cores,
            self.machine.memory_mib,
            self.machine.kernel,
            self.date,
            self.rounds,
            self.seconds
        );
        if self.build == "debug" {
            text += "  a debug build: its figures say nothing beside those of Envoy and HAProxy\n";
        }
        for (subject, version) in &self.versions {
            push(&mut text, format_args!("  {subject:<8} {version}\n"));
        }
        for workload in Workload::ALL {
            let rows: Vec<&Row> = self
                .rows
                .iter()
                .filter(|row| row.workload == workload.name())
                .collect();
            if rows.is_empty() {
                continue;
            }
            push(
                &mut text,
                format_args!("\n{}: {}\n", workload.name(), workload.about()),
            );
            text += "  subject   requests/s     p50 us     p99 us   CPU us/request client      server        \
                     mean          RSS MiB     foreign CPU\n";
            for row in rows {
                text += &row.line();
            }
        }
        if !self.ratios.is_empty() {
            text += "\nratios\n";
        }
        for (name, value) in &self.ratios {
            push(&mut text, format_args!("  {name:<44} {value:>8.3}\n"));
        }
        for Skipped { subject, why } in &self.skipped {
            push(&mut text, format_args!("skipped: {subject}: {why}\n"));
        }
        text
    }
}

impl Row {
    fn line(&self) -> String {
        let median = |spread: &Option<Spread>| {
            spread.map_or("-".to_owned(), |spread| format!("{:.0}", spread.median))
        };
        let both = |spread: Spread| format!("{:.1} ({:.1})", spread.median, spread.min);
        let cpu = |value: fn(&CpuSpread) -> Spread| {
            self.cpu_us_per_request
                .as_ref()
                .map_or("-".to_owned(), |cpu| both(value(cpu)))
        };
        let rss = self.rss_mib.map_or("-".to_owned(), |pair| {
            format!("{:.1} {:.1}", pair.client, pair.server)
        });
        let mut line = format!(
            "  {:<8} {:>11} {:>10} {:>10}   {:>21} {:>13} {:>13} {:>14} {:>12} %\n",
            self.subject,
            median(&self.requests_per_second),
            median(&self.p50_us),
            median(&self.p99_us),
            cpu(|cpu| cpu.client),
            cpu(|cpu| cpu.server),
            cpu(|cpu| cpu.mean),
            rss,
            median(&self.foreign_percent),
        );
        if !self.valid {
            let why = self.failure.as_deref().unwrap_or("no request was answered");
            push(
                &mut line,
                format_args!(
                    "           INVALID: {} of {} failed: {why}\n",
                    self.failed,
                    self.requests + self.failed
                ),
            );
        }
        line
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments)
        .expect("a String takes everything");
}

/// Weft against each peer.
fn ratios(rows: &[Row], idle: &[Idle]) -> BTreeMap<String, f64> {
    let row = |subject: &str, workload: Workload| {
        rows.iter()
            .find(|row| row.subject == subject && row.workload == workload.name() && row.valid)
    };
    let mut ratios = BTreeMap::new();
    for peer in ["floor", "explicit", "envoy", "haproxy"] {
        let mut put = |name: &str, workload: Workload, value: fn(&Row) -> Option<f64>| {
            let pair = row("weft", workload)
                .and_then(value)
                .zip(row(peer, workload).and_then(value));
            if let Some(value) = pair.and_then(|(weft, peer)| ratio(weft, peer)) {
                ratios.insert(format!("{name}_vs_{peer}"), value);
            }
        };
        put("cpu_per_request", Workload::Http1C32, |row| {
            Some(row.cpu_us_per_request.as_ref()?.mean.median)
        });
        put("requests_per_second", Workload::Http1C32, |row| {
            Some(row.requests_per_second?.median)
        });
        put("grpc_cpu_per_call", Workload::Grpc, |row| {
            Some(row.cpu_us_per_request.as_ref()?.mean.median)
        });
        put("grpc_calls_per_second", Workload::Grpc, |row| {
            Some(row.requests_per_second?.median)
        });
        put("http2_cpu_per_request", Workload::Http2, |row| {
            Some(row.cpu_us_per_request.as_ref()?.mean.median)
        });
        put("added_p50", Workload::Rate, |row| {
            Some(row.added_p50_us?.median)
        });
        put("added_p99", Workload::Rate, |row| {
            Some(row.added_p99_us?.median)
        });
        put("p50_one_connection", Workload::Http1C1, |row| {
            Some(row.p50_us?.median)
        });
        let minima = [
            ("cpu_per_request", Workload::Http1C32),
            ("grpc_cpu_per_call", Workload::Grpc),
        ];
        for (name, workload) in minima {
            let least = |row: &Row| Some(row.cpu_us_per_request.as_ref()?.mean.min);
            let pair = row("weft", workload)
                .and_then(least)
                .zip(row(peer, workload).and_then(least));
            if let Some(value) = pair.and_then(|(weft, peer)| ratio(weft, peer)) {
                ratios.insert(format!("{name}_vs_{peer}_min"), value);
            }
        }
        let private = |subject: &str| {
            let idle = idle.iter().find(|idle| idle.subject == subject)?;
            Some(f64::midpoint(
                idle.private_dirty_mib.client,
                idle.private_dirty_mib.server,
            ))
        };
        let pair = private("weft").zip(private(peer));
        if let Some(value) = pair.and_then(|(weft, peer)| ratio(weft, peer)) {
            ratios.insert(format!("idle_private_dirty_vs_{peer}"), value);
        }
    }
    ratios
}

impl MachineFacts {
    /// What cannot be found out is left empty or 0.
    fn read() -> Self {
        let field = |path: &str, name: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default();
            line.trim_start_matches(['\t', ' ', ':']).trim().to_owned()
        };
        let memory = field("/proc/meminfo", "MemTotal");
        Self {
            processor: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap_or_default()
                / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::Error;
    use crate::load::Stats;

    fn sample(
        subject: &'static str,
        round: u32,
        latency_us: u64,
        cpu_ms: &[u64],
        failed: bool,
    ) -> Sample {
        let mut stats = Stats::new();
        for _ in 0..1000 {
            stats.succeed(Duration::from_micros(latency_us));
        }
        if failed {
            stats.fail("status 503");
        }
        let cpu = cpu_ms.iter().copied().map(Duration::from_millis).collect();
        let result = Ok(Measured {
            stats,
            elapsed: Duration::from_secs(2),
            cpu,
            steal: 0.0,
            foreign: 0.1,
        });
        Sample {
            subject,
            workload: Workload::Http1C32,
            round,
            result,
            memory: None,
        }
    }

    fn rows(samples: &[Sample]) -> Vec<Row> {
        ["direct", "floor", "weft", "envoy", "haproxy"]
            .into_iter()
            .filter_map(|subject| Row::new(subject, Workload::Http1C32, samples))
            .collect()
    }

    #[test]
    fn rows_and_ratios() {
        let samples = [
            sample("direct", 1, 50, &[9], false),
            sample("weft", 1, 150, &[20, 40, 9], false),
            sample("envoy", 1, 450, &[100, 140, 9], false),
            sample("direct", 2, 70, &[9], false),
            sample("weft", 2, 190, &[30, 50, 9], false),
            sample("envoy", 2, 450, &[100, 140, 9], false),
        ];
        let rows = rows(&samples);
        let weft = rows.iter().find(|row| row.subject == "weft").unwrap();
        assert!(weft.valid && weft.requests == 2000);
        assert_eq!(weft.requests_per_second.unwrap().median, 500.0);
        let cpu = weft.cpu_us_per_request.as_ref().unwrap();
        assert_eq!(
            (cpu.client.min, cpu.server.max, cpu.mean.median),
            (20.0, 50.0, 35.0)
        );
        let added = weft.added_p50_us.unwrap();
        assert!(
            (added.min - 100.0).abs() < 1.0 && (added.max - 120.0).abs() < 1.0,
            "{added:?}"
        );
        let direct = rows.iter().find(|row| row.subject == "direct").unwrap();
        assert!(direct.cpu_us_per_request.is_none() && direct.added_p50_us.is_none());
        let ratios = ratios(&rows, &[]);
        assert_eq!(ratios.get("cpu_per_request_vs_envoy"), Some(&0.292));
        assert_eq!(ratios.get("cpu_per_request_vs_envoy_min"), Some(&0.25));
        assert_eq!(ratios.get("requests_per_second_vs_envoy"), Some(&1.0));
        assert!(!ratios.contains_key("cpu_per_request_vs_haproxy"));
    }

    #[test]
    fn failures_make_a_row_invalid_and_take_its_ratios_away() {
        let mut samples = vec![
            sample("weft", 1, 10, &[1, 1, 1], true),
            sample("envoy", 1, 10, &[1, 1, 1], false),
        ];
        let result = Err(Error::new("connection refused"));
        samples.push(Sample {
            subject: "haproxy",
            workload: Workload::Http1C32,
            round: 1,
            result,
            memory: None,
        });
        let rows = rows(&samples);
        let facts: Vec<_> = rows
            .iter()
            .map(|row| (row.subject, row.valid, row.failed))
            .collect();
        assert_eq!(
            facts,
            [
                ("weft", false, 1),
                ("envoy", true, 0),
                ("haproxy", false, 1)
            ]
        );
        assert!(ratios(&rows, &[]).is_empty());
        assert!(
            rows[0]
                .line()
                .contains("INVALID: 1 of 1001 failed: status 503"),
            "{}",
            rows[0].line()
        );
        assert!(rows[2].line().contains("connection refused"));
    }
}
