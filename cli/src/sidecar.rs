//! A sidecar as a child process: this program once more, configured by its environment.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
use tokio::process::Command;
use weft_proxy::limits;

use crate::internal;
use crate::output::{Exit, Failure};
use crate::scrape;
use crate::supervise::{Child, Teller};

/// What a sidecar is told.
#[derive(Debug, Clone)]
pub(crate) struct Sidecar<'a> {
    /// The control plane, `host:port`.
    pub control: String,
    /// `<namespace>/<workload>`.
    pub workload: String,
    /// The join token; none if it has an identity already.
    pub token: Option<String>,
    /// Its full admin address.
    pub admin: SocketAddr,
    /// Its public admin address: `/ready` and `/metrics`.
    pub public_admin: SocketAddr,
    /// Which requests are logged: `off`, `errors` or `all`.
    pub access_log: &'a str,
    /// How long open streams have when it is stopped, in whole seconds.
    pub grace: Duration,
    /// The user and group that it runs as; ours if none.
    pub owner: Option<(u32, u32)>,
    /// Further settings: the variable after `WEFT_PROXY_`, and its value.
    pub more: Vec<(&'static str, String)>,
}

impl Sidecar<'_> {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// This program cannot be started again.
    pub(crate) fn spawn(&self, name: String) -> io::Result<Child> {
        let mut command = Command::new(self.program()?);
        command.arg0("weft").arg(internal::PROXY);
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        for (key, _) in std::env::vars_os() {
            // What is set for another sidecar on this machine is not for this one; how much of
            // the machine a sidecar may use is.
            let key_text = key.to_string_lossy();
            let setting = key_text.strip_prefix("WEFT_PROXY_");
            let limit = |name: &str| limits::TABLE.iter().any(|limit| limit.name == name);
            if setting.is_some_and(|name| !limit(name)) {
                command.env_remove(&key);
            }
        }
        command
            .env("WEFT_PROXY_CONTROL", &self.control)
            .env("WEFT_PROXY_WORKLOAD", &self.workload)
            .env("WEFT_PROXY_ADMIN", self.admin.to_string())
            .env("WEFT_PROXY_PUBLIC_ADMIN", self.public_admin.to_string())
            .env("WEFT_PROXY_ACCESS_LOG", self.access_log)
            .env("WEFT_PROXY_GRACE", self.grace.as_secs().to_string());
        let token = self.token.iter().map(|token| ("TOKEN", token));
        let more = self.more.iter().map(|(name, value)| (*name, value));
        for (name, value) in token.chain(more) {
            command.env(format!("WEFT_PROXY_{name}"), value);
        }
        if std::env::var_os("WEFT_LOG").is_none() && std::env::var_os("RUST_LOG").is_none() {
            command.env("WEFT_LOG", "warn");
        }
        Child::spawn(name, command)
    }

    /// This program. Another user may not be allowed to get to it by its path (/root/bin/weft).
    fn program(&self) -> io::Result<PathBuf> {
        match self.owner {
            Some(_) => Ok("/proc/self/exe".into()),
            None => std::env::current_exe(),
        }
    }
}

/// Whether the sidecar behind a public admin address says that it is ready.
pub(crate) async fn is_ready(public_admin: SocketAddr) -> bool {
    matches!(
        scrape::fetch(public_admin, "/ready").await,
        Ok((StatusCode::OK, _))
    )
}

/// Waits until a sidecar that has been started says that it is ready. Cancel safe.
///
/// # Errors
///
/// Another process has one of its ports; it is not ready after [`START_TIMEOUT`].
pub(crate) async fn started(sidecar: &Teller, public_admin: SocketAddr) -> Result<(), Failure> {
    let what = format!("{} to be ready", sidecar.name);
    let ready = async {
        while !is_ready(public_admin).await {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    tokio::select! {
        ready = in_time(&what, ready) => match ready {
            Ok(()) => Ok(()),
            Err(mut failure) => {
                // Its own words are better than ours, if it can still speak.
                if let Ok((_, why)) = scrape::fetch(public_admin, "/ready").await {
                    failure.message += &format!(": {}", why.trim_end());
                }
                Err(failure)
            }
        },
        line = sidecar.mentioned(PORT_TAKEN) => {
            Err(Failure::new(Exit::Problems, format!("{} cannot listen\n    {line}", sidecar.name)))
        }
    }
}

/// What a sidecar logs, and goes on trying, when another process has a port of its listeners.
const PORT_TAKEN: &str = "is in use by another process";

/// The time for one step of a start.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits for a step of a start.
///
/// # Errors
///
/// It takes longer than [`START_TIMEOUT`].
pub(crate) async fn in_time(what: &str, work: impl Future<Output = ()>) -> Result<(), Failure> {
    let timed = tokio::time::timeout(START_TIMEOUT, work).await;
    timed.map_err(|_| {
        let seconds = START_TIMEOUT.as_secs();
        Failure::new(Exit::TimedOut, format!("waited {seconds} s for {what}"))
            .help("set WEFT_LOG=info and try again to see why")
    })
}
