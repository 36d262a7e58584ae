//! Child processes that never outlive this one: each has a pipe on stdin whose end tells it that
//! we are gone, its own process group (a Ctrl-C at the terminal is ours to handle), and its last
//! log lines kept for the error message.

use std::collections::VecDeque;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{self, Command};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::output::{Exit, Failure};

/// The time that a child has between SIGTERM and SIGKILL.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// A child process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: process::Child,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
}

/// The last lines that a child wrote.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<VecDeque<String>>,
    changed: Notify,
}

impl Child {
    /// Starts a child whose output is kept.
    ///
    /// # Errors
    ///
    /// The program cannot be started.
    pub(crate) fn spawn(name: impl Into<String>, mut command: Command) -> io::Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let log = Arc::new(Log::default());
        let mut readers = Vec::new();
        readers.extend(
            process
                .stdout
                .take()
                .map(|out| tokio::spawn(keep(out, Arc::clone(&log)))),
        );
        readers.extend(
            process
                .stderr
                .take()
                .map(|err| tokio::spawn(keep(err, Arc::clone(&log)))),
        );
        Ok(Self {
            name: name.into(),
            process,
            log,
            readers,
        })
    }

    /// A handle that hears the child independently of who owns it.
    pub(crate) fn teller(&self) -> Teller {
        Teller {
            name: self.name.clone(),
            log: Arc::clone(&self.log),
        }
    }

    /// Waits for the end of the process. Cancel safe.
    pub(crate) async fn exited(&mut self) -> io::Result<ExitStatus> {
        // Not `wait` first thing: that would close stdin, which tells the child to end.
        let lifeline = self.process.stdin.take();
        let status = KeepStdin {
            process: &mut self.process,
            lifeline,
        }
        .wait()
        .await;
        if status.is_ok() {
            for reader in &mut self.readers {
                // A grandchild may hold the pipe open; its words are not waited for.
                let _ = tokio::time::timeout(Duration::from_millis(200), reader).await;
            }
            self.readers.clear();
        }
        status
    }

    /// Waits for an end that should not come, and tells of it. Cancel safe.
    pub(crate) async fn failure(&mut self) -> Failure {
        let how = match self.exited().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let message = format!("{} has ended ({how}){}", self.name, self.last_lines());
        Failure::new(Exit::Problems, message)
    }

    /// Sends a signal. A process that has ended already is left alone.
    pub(crate) fn signal(&self, signal: Signal) {
        signal_pid(self.process.id(), signal);
    }

    /// Sends SIGTERM, waits up to `grace`, then kills. Returns how the process ended.
    pub(crate) async fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        match tokio::time::timeout(grace, self.exited()).await {
            Ok(status) => status,
            Err(_) => {
                self.process.start_kill()?;
                self.exited().await
            }
        }
    }

    /// The last lines that the child wrote, indented for an error message.
    pub(crate) fn last_lines(&self) -> String {
        let lines = self.log.lines.lock();
        let skip = lines.len().saturating_sub(SHOWN_LINES);
        lines
            .iter()
            .skip(skip)
            .map(|line| format!("\n    {line}"))
            .collect()
    }
}

/// Hears what a child writes, whoever owns the child.
#[derive(Debug, Clone)]
pub(crate) struct Teller {
    /// The name of the child.
    pub name: String,
    log: Arc<Log>,
}

impl Teller {
    /// Waits until the child has written `line`. Never ends if it does not; cancel safe.
    pub(crate) async fn said(&self, line: &str) {
        self.heard(|have| have == line).await;
    }

    /// Waits until the child has written a line with `part` in it, and returns that. Never ends
    /// if it does not; cancel safe.
    pub(crate) async fn mentioned(&self, part: &str) -> String {
        self.heard(|have| have.contains(part)).await
    }

    async fn heard(&self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            let changed = self.log.changed.notified();
            let found = self
                .log
                .lines
                .lock()
                .iter()
                .find(|line| wanted(line))
                .cloned();
            match found {
                Some(line) => return line,
                None => changed.await,
            }
        }
    }
}

/// Waits with stdin kept open, and puts it back when the wait is cancelled.
struct KeepStdin<'a> {
    process: &'a mut process::Child,
    lifeline: Option<process::ChildStdin>,
}

impl KeepStdin<'_> {
    async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }
}

impl Drop for KeepStdin<'_> {
    fn drop(&mut self) {
        self.process.stdin = self.lifeline.take();
    }
}

/// Sends a signal to a process that is known not to be reaped yet (`Child::id` is None
/// afterwards, so a reused pid is never hit).
pub(crate) fn signal_pid(pid: Option<u32>, signal: Signal) {
    let pid = pid
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // The only failure is that it has just ended, which is what the signal is for.
        let _ = kill_process(pid, signal);
    }
}

async fn keep(from: impl AsyncRead + Unpin, log: Arc<Log>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut kept = log.lines.lock();
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
        drop(kept);
        log.changed.notify_waiters();
    }
}

const KEPT_LINES: usize = 200;
const SHOWN_LINES: usize = 12;

/// The signals that end or reload a foreground command.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    /// Listens from now on; the default actions no longer happen.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup: unix::signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Child::spawn("shell", command).unwrap()
    }

    #[tokio::test]
    async fn keeps_words_and_status() {
        let mut child = shell("echo ready; echo broken >&2; exit 7");
        child.teller().said("ready").await;
        assert_eq!(child.exited().await.unwrap().code(), Some(7));
        assert_eq!(child.teller().name, "shell");
        assert_eq!(child.teller().mentioned("oke").await, "broken");
        assert!(
            child.last_lines().contains("\n    broken"),
            "{}",
            child.last_lines()
        );
        let mut child = shell("echo broken >&2; exit 7");
        let failure = child.failure().await.to_string();
        assert_eq!(
            failure,
            "error: shell has ended (exit status: 7)\n    broken"
        );
    }

    #[tokio::test]
    async fn waiting_does_not_close_the_lifeline() {
        let mut child = shell("read line; echo gone; exit 3");
        let early = tokio::time::timeout(Duration::from_millis(200), child.exited()).await;
        assert!(
            early.is_err(),
            "the child saw the end of stdin while we were alive"
        );
        drop(child.process.stdin.take());
        assert_eq!(child.exited().await.unwrap().code(), Some(3));
    }

    #[tokio::test]
    async fn stops_by_term_first() {
        let mut polite = shell("trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done");
        polite.teller().said("ready").await;
        assert_eq!(polite.stop(GRACE).await.unwrap().code(), Some(4));
        let mut plain = shell("exec sleep 60");
        assert_eq!(plain.stop(GRACE).await.unwrap().signal(), Some(15));
    }

    #[tokio::test]
    async fn kills_what_ignores_term() {
        let mut child = shell("trap '' TERM; echo ready; while :; do sleep 1; done");
        child.teller().said("ready").await;
        assert_eq!(
            child
                .stop(Duration::from_millis(50))
                .await
                .unwrap()
                .signal(),
            Some(9)
        );
    }
}
