//! `weft-proxy supervise <pid>`: stands in for a process that has handed over. Whoever started
//! that process knows its number only: this one has it now, passes signals on to the process
//! that serves, and ends as that one ends. As process 1 it also collects what has ended.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use rustix::process::{Pid, Signal as Number, WaitOptions, kill_process, test_kill_process, wait};

use super::life::{Program, Signal, signals};
use crate::{bootstrap::log_filter, telemetry::logging};

const TICK: Duration = Duration::from_millis(100);

/// Passes a signal on.
pub(super) fn relay(pid: u32, signal: Signal) {
    let number = match signal {
        Signal::Terminate => Number::TERM,
        Signal::Upgrade => Number::USR2,
        Signal::Reload => Number::HUP,
    };
    if let Some(pid) = known(pid)
        && let Err(error) = kill_process(pid, number)
    {
        tracing::warn!(%error, ?signal, pid = pid.as_raw_nonzero(), "a signal cannot be passed on");
    }
}

fn known(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Replaces this process by a supervisor of `pid`; returns only if that fails.
pub(super) fn become_supervisor(program: &Program, pid: u32, door: Option<&Path>) -> ExitCode {
    let mut command = Command::new(&program.file);
    command.arg("supervise").arg(pid.to_string());
    if let Some(door) = door {
        command.arg("--door").arg(door);
    }
    let error = command.arg("--").args(&program.arguments).exec();
    eprintln!(
        "error: {}: cannot be run as the supervisor of process {pid}: {error}",
        program.file.display()
    );
    ExitCode::FAILURE
}

/// `supervise <pid> [--door SOCKET] [-- arguments of run]`. Exit code: that of the process that
/// serves at the end, 128 and its number after a signal; 2 when the arguments are wrong.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some((pid, door, arguments)) = parse(arguments) else {
        eprintln!("error: usage: weft-proxy supervise <pid> [--door SOCKET] [-- ARGUMENTS OF RUN]");
        return ExitCode::from(2);
    };
    let program = Program {
        arguments,
        ..Program::this(None)
    };
    let result = logging::start(&log_filter()).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        runtime.block_on(supervise(pid, door.as_deref(), &program))
    });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

type Arguments = (u32, Option<PathBuf>, Vec<OsString>);

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Arguments> {
    let pid = arguments.next()?.to_str()?.parse().ok()?;
    known(pid)?;
    let mut door = None;
    loop {
        match arguments.next() {
            None => return Some((pid, door, Vec::new())),
            Some(word) if word == "--door" => door = Some(arguments.next()?.into()),
            Some(word) if word == "--" => return Some((pid, door, arguments.collect())),
            Some(_) => return None,
        }
    }
}

/// Who serves, and who else belongs to the workload.
#[derive(Debug)]
struct Family {
    serving: u32,
    /// Started by this process: new ones that have not taken over, or have and are `serving`.
    started: BTreeSet<u32>,
}

/// What the end of a process means.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// The workload is served by `serving` still, or by another now.
    Go,
    /// Nobody serves.
    End,
}

impl Family {
    /// A process has ended. `holder` is who answers at the door now.
    fn ended(&mut self, pid: u32, holder: Option<u32>) -> Then {
        self.started.remove(&pid);
        if pid != self.serving {
            return Then::Go;
        }
        // It was relieved by another, or one is just taking over from the dead.
        match holder.or_else(|| self.started.last().copied()) {
            Some(next) => {
                self.serving = next;
                Then::Go
            }
            None => Then::End,
        }
    }
}

async fn supervise(pid: u32, door: Option<&Path>, program: &Program) -> Result<u8, String> {
    let mut signals = signals()?;
    let mut family = Family {
        serving: pid,
        started: BTreeSet::new(),
    };
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tracing::info!(pid, "standing in for the process that serves the workload");
    loop {
        tokio::select! {
            Some(signal) = signals.recv() => match signal {
                Signal::Upgrade => match program.start() {
                    Ok(child) => {
                        tracing::info!(pid = child.id(), "upgrade: the program is started again");
                        family.started.insert(child.id());
                    }
                    Err(error) => tracing::error!(%error, program = %program.file.display(),
                        "upgrade: cannot be started"),
                },
                Signal::Terminate => {
                    // The old first: what has not taken over must not after this.
                    let all: BTreeSet<u32> = family.started.iter().copied().collect();
                    relay(family.serving, signal);
                    for pid in all.into_iter().filter(|pid| *pid != family.serving) {
                        relay(pid, signal);
                    }
                }
                Signal::Reload => relay(family.serving, signal),
            },
            _ = ticks.tick() => {
                for (pid, code) in collect(family.serving) {
                    let holder = door.and_then(|door| weft_handover::holder(door).ok().flatten());
                    let holder = holder.filter(|holder| *holder != pid);
                    if family.ended(pid, holder) == Then::End {
                        tracing::info!(pid, code, "the process that served has ended");
                        return Ok(code);
                    }
                }
            }
        }
    }
}

/// Every process that has ended since the last call, with its exit code. `serving` may be no
/// child of this one; then its code is not known and counts as 0.
fn collect(serving: u32) -> Vec<(u32, u8)> {
    let mut ended = Vec::new();
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => u8::try_from(code).unwrap_or(1),
            (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
            (None, None) => continue,
        };
        ended.push((pid.as_raw_nonzero().get().unsigned_abs(), code));
    }
    let is_listed = ended.iter().any(|(pid, _)| *pid == serving);
    let gone = known(serving).is_none_or(|pid| test_kill_process(pid).is_err());
    if gone && !is_listed {
        ended.push((serving, 0));
    }
    ended
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, ffi::OsString};

    use super::{Family, Then, parse};

    #[test]
    fn arguments_are_understood() {
        let of = |text: &str| parse(text.split_whitespace().map(OsString::from));
        assert_eq!(of("7"), Some((7, None, Vec::new())));
        let all = of("7 --door /s/d -- --bootstrap /b").unwrap();
        assert_eq!(all.1.unwrap().to_str(), Some("/s/d"));
        assert_eq!(all.2, ["--bootstrap", "/b"]);
        for bad in ["", "x", "0", "-4", "7 8", "7 --door"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn it_ends_with_the_one_that_serves() {
        // (serving, started, who ends, who answers) -> (what then, serving)
        for (serving, started, ended, holder, expected) in [
            (7, vec![], 7, None, (Then::End, 7)),
            // A new one has failed.
            (7, vec![8], 8, Some(7), (Then::Go, 7)),
            // A new one has taken over, and the old has drained.
            (7, vec![8], 7, Some(8), (Then::Go, 8)),
            // The old dies while the new one takes over.
            (7, vec![8], 7, None, (Then::Go, 8)),
            (8, vec![8], 8, None, (Then::End, 8)),
            // An orphan of somebody else.
            (7, vec![], 9, Some(7), (Then::Go, 7)),
        ] {
            let mut family = Family {
                serving,
                started: BTreeSet::from_iter(started),
            };
            let then = family.ended(ended, holder);
            assert_eq!((then, family.serving), expected);
        }
    }
}
