//! Children: started with their output in a file, and gone when their owner is. A dropped
//! `Process` is killed; if this process itself is killed, the kernel kills the children,
//! because each is started through the hidden subcommand `child`, which asks for that
//! (`PR_SET_PDEATHSIG`) and then becomes the program.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use std::{env, fs};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Context as _, Error, Result};

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
}

impl Spec {
    pub(crate) fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// A hidden subcommand of this program.
    pub(crate) fn own(name: impl Into<String>, subcommand: &str) -> Result<Self> {
        let me = env::current_exe().context("the path of this program")?;
        Ok(Self::new(name, me).arg(subcommand))
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// A flag and its value.
    pub(crate) fn pair(self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg(flag).arg(value)
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// The same, started by another program: `prlimit --nofile=256 <program> <its arguments>`.
    pub(crate) fn under(mut self, program: impl Into<PathBuf>, args: &[&str]) -> Self {
        let inner = std::mem::replace(&mut self.program, program.into());
        let front = args.iter().map(OsString::from).chain([inner.into()]);
        self.args.splice(0..0, front);
        self
    }

    /// Starts it in `dir`, which also gets its output as `<name>.log`.
    pub(crate) fn start(&self, dir: &Path) -> Result<Process> {
        let log = dir.join(format!("{}.log", self.name.replace('/', "-")));
        let output = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .context(log.display())?;
        let errors = output.try_clone().context(log.display())?;
        let child = self
            .command(dir)?
            .stdout(output)
            .stderr(errors)
            .spawn()
            .context(format!("start {}", self.program.display()))?;
        let pid = child.id().context(format!("{} ended at once", self.name))?;
        Ok(Process {
            name: self.name.clone(),
            pid,
            log,
            child,
        })
    }

    /// Runs it to its end and returns what it wrote.
    pub(crate) async fn run(&self, dir: &Path, limit: Duration) -> Result<Output> {
        let output = timeout(limit, self.command(dir)?.output())
            .await
            .context(format!("{} did not end in {limit:?}", self.name))?
            .context(format!("run {}", self.program.display()))?;
        Ok(Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The program as a child of this one, which ends with it.
    fn command(&self, dir: &Path) -> Result<Command> {
        let me = env::current_exe().context("the path of this program")?;
        let mut command = Command::new(me);
        command
            .arg("child")
            .arg("--")
            .arg(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(dir)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }
}

/// What a program that has ended left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// The standard output if the program succeeded.
    pub(crate) fn ok(self, what: &str) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        Err(Error::new(format!(
            "{what}: {}: {}",
            exit_text(self.status),
            self.stderr.trim()
        )))
    }
}

/// A running child; killed when dropped, but gone only a while later: what it had (ports) is
/// free after [`Process::wait`].
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) pid: u32,
    log: PathBuf,
    child: tokio::process::Child,
}

impl Process {
    /// All that it has written so far.
    pub(crate) fn output(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The end of its output, for messages; without access logs, which are JSON.
    pub(crate) fn tail(&self) -> String {
        let output = self.output();
        let own: Vec<&str> = output
            .lines()
            .filter(|line| !line.starts_with('{'))
            .collect();
        tail(&own.join("\n"), 12)
    }

    /// Its exit status if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id out of range")?;
        rustix::process::kill_process(pid, signal).context(format!("signal {}", self.name))
    }

    /// Asks it to end (SIGTERM) and waits; an error if it is still there after `limit`.
    pub(crate) async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        self.wait(limit).await
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        timeout(limit, self.child.wait())
            .await
            .context(format!(
                "{} (process {}) was still running after {limit:?}",
                self.name, self.pid
            ))?
            .context(&self.name)
    }

    /// Waits until `probe` says yes; fails early when the process ends. What answers the probe
    /// must be this process: one that had the port before has to be gone.
    pub(crate) async fn until<F>(
        &mut self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut() -> F,
    ) -> Result<()>
    where
        F: Future<Output = bool>,
    {
        let deadline = Instant::now() + limit;
        loop {
            if probe().await {
                return Ok(());
            }
            if let Some(status) = self.ended() {
                let end = exit_text(status);
                return Err(Error::new(format!(
                    "{} ended ({end}) before it {what}:\n{}",
                    self.name,
                    self.tail()
                )));
            }
            if Instant::now() >= deadline {
                return Err(Error::new(format!(
                    "{} has not {what} in {limit:?}:\n{}",
                    self.name,
                    self.tail()
                )));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until it accepts connections at `address`.
    pub(crate) async fn listens(&mut self, address: SocketAddr) -> Result<()> {
        self.until("listened", Duration::from_secs(20), || async move {
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await
    }
}

/// `exit 1` or `signal 9`.
pub(crate) fn exit_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown end".to_owned(),
    }
}

/// The last `lines` lines.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The hidden subcommand `child`: becomes `command` and dies with its parent.
/// Returns only when that fails.
pub(crate) fn become_child(command: &[OsString]) -> Error {
    let Some((program, args)) = command.split_first() else {
        return Error::new("child: no command given");
    };
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return Error::new(format!("child: {error}"));
    }
    let error = std::process::Command::new(program).args(args).exec();
    Error::new(format!("{}: {error}", Path::new(program).display()))
}

/// A loopback address that nothing listened on a moment ago, and that this process was not given
/// before: the kernel chooses at random, and a mesh of fifty ports would get one of them twice.
pub(crate) fn free_address() -> Result<SocketAddr> {
    const TRIES: usize = 1000;
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..TRIES {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
        let address = listener.local_addr().context("find a free port")?;
        if GIVEN.lock().insert(address.port()) {
            return Ok(address);
        }
    }
    Err(Error::new("find a free port: all that there are were used"))
}

/// The first program of that name in `PATH` or in the system's own directories.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_start_another() {
        let spec = Spec::new("a", "inner").arg("-x").under("outer", &["-y"]);
        assert_eq!(spec.program, Path::new("outer"));
        assert_eq!(spec.args, ["-y", "inner", "-x"]);
    }

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
        assert_eq!(tail("", 5), "");
    }

    #[test]
    fn free_addresses_can_be_bound() {
        let address = free_address().unwrap();
        assert!(address.ip().is_loopback());
        TcpListener::bind(address).unwrap();
        let many: BTreeSet<_> = (0..500).map(|_| free_address().unwrap()).collect();
        assert_eq!(many.len(), 500);
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(which("sh").is_some());
        assert!(which("no-such-program-at-all").is_none());
    }

    #[test]
    fn exits_and_signals_are_told_apart() {
        assert_eq!(exit_text(ExitStatus::from_raw(3 << 8)), "exit 3");
        assert_eq!(exit_text(ExitStatus::from_raw(9)), "signal 9");
    }
}
