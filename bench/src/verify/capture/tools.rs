//! Programs that the applications of the cases are made of.

use std::path::Path;
use std::time::Duration;

use crate::error::{Context as _, Result};
use crate::pods::Pod;
use crate::process::which;
use crate::verify::{Finding, seen};

/// How long a foreign client may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// What curl has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// 0 if there was no answer.
    pub(crate) status: u16,
    /// As curl writes it: `1.1`, `2`.
    pub(crate) version: String,
    /// The address that the name had.
    pub(crate) address: String,
    pub(crate) body: String,
    /// Why there was no answer.
    pub(crate) error: String,
}

impl Fetched {
    pub(crate) fn line(&self) -> String {
        let Self {
            status,
            version,
            address,
            body,
            error,
        } = self;
        let body = crate::weft::shown(body);
        format!("{status} over HTTP/{version} from {address} {body} {error}")
            .trim()
            .to_owned()
    }
}

/// Runs curl in the pod, as an application without rights.
pub(crate) async fn curl(pod: &Pod, dir: &Path, args: &[&str]) -> Result<Fetched> {
    let curl = which("curl").context("no curl: apt-get install curl")?;
    let spec = pod
        .app("curl", curl)
        .arg("--silent")
        .arg("--show-error")
        .pair("--noproxy", "*")
        .pair("--max-time", "10")
        .pair("--write-out", "\n%{http_code} %{http_version} %{remote_ip}");
    let output = args
        .iter()
        .fold(spec, |spec, arg| spec.arg(arg))
        .run(dir, LIMIT)
        .await?;
    let (body, facts) = output
        .stdout
        .rsplit_once('\n')
        .context("curl wrote nothing")?;
    let mut facts = facts.split(' ').map(str::to_owned);
    Ok(Fetched {
        status: facts
            .next()
            .and_then(|code| code.parse().ok())
            .unwrap_or_default(),
        version: facts.next().unwrap_or_default(),
        address: facts.next().unwrap_or_default(),
        body: body.to_owned(),
        error: output.stderr.trim().to_owned(),
    })
}

/// Judges an answer by its status and something else.
pub(crate) fn fetched(got: &Fetched, status: u16, also: bool) -> Finding {
    seen(got.status == status && also, got.line())
}
