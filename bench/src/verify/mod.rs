//! `verify`: runs the mesh as a user would, as processes on loopback or on hosts made of
//! network namespaces, and compares what is seen with what is promised. An area is a list of groups; a group starts a mesh of its own
//! and makes its cases; everything that it started is gone when it returns.

mod bad_input;
mod canary;
mod capture;
mod drain;
mod exposition;
mod http;
mod identity;
mod metrics;
mod protocols;
mod relay;
mod tls;
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use regex::Regex;
use serde::Serialize;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use crate::compare::Output;
use crate::error::{Context as _, Error, Result};
use crate::netns;
use crate::weft::{BinDir, Programs};

/// A case that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// What to check
    #[arg(value_enum)]
    area: Area,
    /// Shorter loads, same checks
    #[arg(long)]
    quick: bool,
    /// Only the groups that this matches, such as `canary|drain`
    #[arg(long, value_name = "REGEX")]
    only: Option<Regex>,
    /// Leave logs, documents and state of each group where they are, and say where
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    bin_dir: BinDir,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Area {
    /// The main path: protocols, canary, identity, drain, metrics, bad input
    Main,
    /// Transparent capture and the life of sidecars, on hosts made of network namespaces (needs root)
    Capture,
    /// HTTP as hostile peers speak it: framing, authorities, paths, translation, floods, resources
    Http,
}

#[derive(Debug, Clone, Copy)]
enum Group {
    Protocols,
    Canary,
    Identity,
    Drain,
    Metrics,
    BadInput,
    Capture(capture::Group),
    Http(http::Group),
}

impl Area {
    const fn groups(self) -> &'static [Group] {
        match self {
            Self::Main => &[
                Group::Protocols,
                Group::Canary,
                Group::Identity,
                Group::Drain,
                Group::Metrics,
                Group::BadInput,
            ],
            Self::Capture => &[
                Group::Capture(capture::Group::Init),
                Group::Capture(capture::Group::Redirect),
                Group::Capture(capture::Group::Tproxy),
                Group::Capture(capture::Group::Route),
                Group::Capture(capture::Group::Outside),
                Group::Capture(capture::Group::Detection),
                Group::Capture(capture::Group::Stability),
                Group::Capture(capture::Group::Lifecycle),
            ],
            Self::Http => http::GROUPS,
        }
    }
}

impl Group {
    const fn name(self) -> &'static str {
        match self {
            Self::Protocols => "protocols",
            Self::Canary => "canary",
            Self::Identity => "identity",
            Self::Drain => "drain",
            Self::Metrics => "metrics",
            Self::BadInput => "bad-input",
            Self::Capture(group) => group.name(),
            Self::Http(group) => group.name(),
        }
    }

    async fn run(self, setting: &Setting, cases: &mut Cases) -> Result<()> {
        match self {
            Self::Protocols => protocols::run(setting, cases).await,
            Self::Canary => canary::run(setting, cases).await,
            Self::Identity => identity::run(setting, cases).await,
            Self::Drain => drain::run(setting, cases).await,
            Self::Metrics => metrics::run(setting, cases).await,
            Self::BadInput => bad_input::run(setting, cases).await,
            Self::Capture(group) => Box::pin(group.run(setting, cases)).await,
            Self::Http(group) => Box::pin(group.run(setting, cases)).await,
        }
    }
}

/// What a group works with.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) programs: Programs,
    pub(crate) quick: bool,
    dir: TempDir,
}

impl Setting {
    /// A directory of the group's own, removed at its end.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    ok: bool,
    seen: String,
}

/// Judges what was seen.
pub(crate) fn seen(ok: bool, seen: impl Into<String>) -> Finding {
    Finding {
        ok,
        seen: seen.into(),
    }
}

/// The record of one case.
#[derive(Debug, Clone, Serialize)]
struct Case {
    name: String,
    expected: String,
    seen: String,
    ok: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    skipped: bool,
    seconds: f64,
}

/// The cases so far; prints each when it is known.
#[derive(Debug)]
pub(crate) struct Cases {
    group: &'static str,
    print: bool,
    all: Vec<Case>,
}

impl Cases {
    /// Makes one check. An error of it is a failure of the case.
    pub(crate) async fn check(
        &mut self,
        name: &str,
        expected: impl Into<String>,
        check: impl Future<Output = Result<Finding>>,
    ) {
        self.check_within(PATIENCE, name, expected, check).await;
    }

    /// As `check`, for what takes longer.
    pub(crate) async fn check_within(
        &mut self,
        patience: Duration,
        name: &str,
        expected: impl Into<String>,
        check: impl Future<Output = Result<Finding>>,
    ) {
        let start = Instant::now();
        let finding = match timeout(patience, Box::pin(check)).await {
            Ok(Ok(finding)) => finding,
            Ok(Err(error)) => seen(false, error.to_string()),
            Err(_) => seen(false, format!("no result in {patience:?}")),
        };
        self.add(name, expected.into(), finding, false, start.elapsed());
    }

    /// Says why a case could not be made.
    pub(crate) fn skip(
        &mut self,
        name: &str,
        expected: impl Into<String>,
        missing: impl Into<String>,
    ) {
        self.add(
            name,
            expected.into(),
            seen(true, missing),
            true,
            Duration::ZERO,
        );
    }

    fn add(
        &mut self,
        name: &str,
        expected: String,
        finding: Finding,
        skipped: bool,
        took: Duration,
    ) {
        let case = Case {
            name: format!("{}/{name}", self.group),
            expected,
            seen: finding.seen,
            ok: finding.ok,
            skipped,
            seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
        };
        if self.print {
            println!("{}", case.line());
        }
        self.all.push(case);
    }

    fn summary(&self) -> Summary {
        let count = |which: fn(&Case) -> bool| self.all.iter().filter(|case| which(case)).count();
        Summary {
            passed: count(|case| case.ok && !case.skipped),
            failed: count(|case| !case.ok),
            skipped: count(|case| case.skipped),
        }
    }
}

impl Case {
    fn line(&self) -> String {
        let mark = match (self.skipped, self.ok) {
            (true, _) => "skip",
            (false, true) => "ok  ",
            (false, false) => "FAIL",
        };
        let Self {
            name,
            expected,
            seen,
            seconds,
            ..
        } = self;
        if self.ok {
            return format!("{mark} {name} ({seconds:.2} s): {seen}");
        }
        let seen = seen.replace('\n', "\n            ");
        format!("{mark} {name} ({seconds:.2} s)\n  expected: {expected}\n      seen: {seen}")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Summary {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Runs an area. Exit 1 when a case fails.
pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    if options.area == Area::Capture
        && let Some(missing) = netns::missing()
    {
        // Without `--quick` somebody wants to know that it holds.
        if !options.quick {
            return Err(Error::new(missing));
        }
        eprintln!("skipped: verify capture: {missing}");
        return Ok(ExitCode::SUCCESS);
    }
    let programs = options.bin_dir.programs()?;
    let mut cases = Cases {
        group: "",
        print: options.output == Output::Table,
        all: Vec::new(),
    };
    let start = Instant::now();
    for group in options.area.groups() {
        if options
            .only
            .as_ref()
            .is_some_and(|only| !only.is_match(group.name()))
        {
            continue;
        }
        let dir = tempfile::Builder::new()
            .prefix("weft-verify-")
            .disable_cleanup(options.keep)
            .tempdir()
            .context("make a temporary directory")?;
        if options.keep {
            eprintln!("{}: {}", group.name(), dir.path().display());
        }
        let setting = Setting {
            programs: programs.clone(),
            quick: options.quick,
            dir,
        };
        cases.group = group.name();
        if let Err(error) = Box::pin(group.run(&setting, &mut cases)).await {
            let finding = seen(false, error.to_string());
            cases.add(
                "setup",
                "the mesh of this group starts".to_owned(),
                finding,
                false,
                Duration::ZERO,
            );
        }
    }
    let summary = cases.summary();
    match options.output {
        Output::Table => {
            let skipped = if summary.skipped > 0 {
                format!(", {} skipped", summary.skipped)
            } else {
                String::new()
            };
            println!(
                "{} passed, {} failed{skipped} ({:.1} s)",
                summary.passed,
                summary.failed,
                start.elapsed().as_secs_f64()
            );
        }
        Output::Json => {
            let document = serde_json::json!({
                "apiVersion": "bench.weft.dev/v1",
                "kind": "Verification",
                "area": options.area.to_possible_value().map(|value| value.get_name().to_owned()),
                "quick": options.quick,
                "passed": summary.passed,
                "failed": summary.failed,
                "skipped": summary.skipped,
                "cases": cases.all,
            });
            println!(
                "{}",
                serde_json::to_string_pretty(&document).context("write JSON")?
            );
        }
    }
    Ok(if summary.failed == 0 && summary.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn cases_are_counted_and_written() {
        let mut cases = Cases {
            group: "g",
            print: false,
            all: Vec::new(),
        };
        cases
            .check("good", "1", async { Ok(seen(true, "1")) })
            .await;
        cases
            .check("bad", "1", async { Ok(seen(false, "2\n3")) })
            .await;
        cases
            .check("broken", "1", async { Err(Error::new("no connection")) })
            .await;
        cases.skip("absent", "1", "no curl");
        assert_eq!(
            cases.summary(),
            Summary {
                passed: 1,
                failed: 2,
                skipped: 1
            }
        );
        let lines: Vec<String> = cases
            .all
            .iter()
            .map(|case| {
                Case {
                    seconds: 0.0,
                    ..case.clone()
                }
                .line()
            })
            .collect();
        assert_eq!(lines[0], "ok   g/good (0.00 s): 1");
        assert_eq!(
            lines[1],
            "FAIL g/bad (0.00 s)\n  expected: 1\n      seen: 2\n            3"
        );
        assert!(lines[2].ends_with("seen: no connection"));
        assert_eq!(lines[3], "skip g/absent (0.00 s): no curl");
    }
}
