//! The demo while it runs: reads the sidecars' metrics once a second and shows them; the whole
//! measured window at the end.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};
use weft_certs::spiffe::{SpiffeId, TrustDomain};

use super::edges::{Edge, Problem, Totals};
use super::mesh::{self, Member, NAMESPACE, TRUST_DOMAIN};
use super::{Demo, bot, table};
use crate::output::{API_VERSION, Exit, Failure, Format, Output};
use crate::printed_or_closed;
use crate::scrape;
use crate::sidecar;
use crate::supervise::Signals;

/// Shows the demo until the window is over or a signal comes.
///
/// # Errors
///
/// A part of the demo ends, or stdout cannot be written.
pub(super) async fn watch(
    demo: &mut Demo,
    window: Option<Duration>,
    signals: &mut Signals,
    out: &Output,
) -> Result<(), Failure> {
    let members = demo.members.clone();
    let base = demo.unless_one_ends(read(&members)).await?;
    traffic_is_up(demo, &base, out);
    let mut show = Show::new(base, look(&members));
    let end = window.map(|window| show.started + window);
    let mut ticks = tokio::time::interval_at(show.started + REFRESH, REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = signals.next() => break,
            () = at(end) => break,
            _ = ticks.tick() => {}
        }
        let now = tokio::select! {
            now = demo.unless_one_ends(read(&members)) => now?,
            _ = signals.next() => break,
        };
        if !show.refresh(now, out)? {
            return Ok(());
        }
    }
    if out.format == Format::Jsonl {
        return Ok(());
    }
    let now = demo.unless_one_ends(read(&members)).await?;
    let whole = show.whole(&now);
    if out.format == Format::Table {
        return printed_or_closed(show.table(&whole, out));
    }
    let report = Report {
        api_version: API_VERSION,
        control_plane: ControlPlane {
            address: demo.control.address.to_string(),
            admin: demo.control.admin.to_string(),
            trust_domain: demo.control.trust_domain.clone(),
        },
        workloads: workloads(&members).await,
        window: whole,
    };
    printed_or_closed(out.json(&report))
}

/// Never ends without a deadline.
async fn at(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

fn traffic_is_up(demo: &Demo, base: &Totals, out: &Output) {
    let edges = base.edges(REFRESH);
    let encrypted = edges.iter().filter(|edge| edge.mtls).count();
    out.done(
        "mTLS",
        format_args!(
            "{:<23} web is spiffe://{}/ns/{NAMESPACE}/sa/web",
            format!("{encrypted} of {} edges", edges.len()),
            demo.control.trust_domain
        ),
    );
    out.done(
        "traffic",
        format_args!(
            "{:<23} stop with Ctrl-C; nothing is left behind\n",
            format!("{} requests/s", bot::RATE)
        ),
    );
}

/// How to see the fault with one's own eyes, with the ports of this run.
fn look(members: &[Member]) -> Option<String> {
    let web = members.iter().find(|member| member.role.name == "web")?;
    let outbound = web.outbound_address();
    Some(format!(
        "look     curl -i -H 'Host: post-v2.blog' http://{outbound}/posts/1"
    ))
}

/// What to do about failures with a reason.
fn help(reason: &str) -> String {
    match reason {
        "app_error" => "weft demo fix   (shifts the canary back to 0 %)".to_owned(),
        other => format!("the mesh could not deliver ({other}): WEFT_LOG=info weft demo says why"),
    }
}

/// Reads the metrics of all sidecars.
async fn read(members: &[Member]) -> Result<Totals, Failure> {
    let texts = join_all(
        members
            .iter()
            .map(|member| async move { (member, metrics(member).await) }),
    );
    let mut totals = Totals::default();
    for (member, text) in texts.await {
        let samples = text.and_then(|text| scrape::parse(&text).map_err(|error| error.to_string()));
        let samples = samples.map_err(|error| {
            let name = member.role.name;
            Failure::new(Exit::Problems, format!("the sidecar of {name}: {error}"))
        })?;
        totals.read(member.role.service, &samples, mesh::service_of);
    }
    Ok(totals)
}

/// A busy machine may need more than one try.
async fn metrics(member: &Member) -> Result<String, String> {
    let mut tries = 1;
    loop {
        match scrape::fetch(member.public_admin_address(), "/metrics").await {
            Ok((StatusCode::OK, text)) => return Ok(text),
            Ok((status, _)) => return Err(format!("/metrics: {status}")),
            Err(error) if tries == 3 => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

/// What was measured, within one window.
#[derive(Debug, Serialize)]
struct Window {
    seconds: f64,
    edges: Vec<Edge>,
    problems: Vec<Problem>,
}

/// One line of `-o jsonl`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    #[serde(flatten)]
    window: &'a Window,
}

/// The document of `-o json`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    control_plane: ControlPlane,
    workloads: Vec<Workload>,
    #[serde(flatten)]
    window: Window,
}

#[derive(Debug, Serialize)]
struct ControlPlane {
    address: String,
    admin: String,
    trust_domain: String,
}

#[derive(Debug, Serialize)]
struct Workload {
    name: &'static str,
    namespace: &'static str,
    spiffe_id: String,
    ready: bool,
}

async fn workloads(members: &[Member]) -> Vec<Workload> {
    join_all(members.iter().map(|member| async move {
        let name = member.role.name;
        Workload {
            name,
            namespace: NAMESPACE,
            spiffe_id: spiffe_id(name),
            ready: sidecar::is_ready(member.public_admin_address()).await,
        }
    }))
    .await
}

/// The identity that the CA gives to a workload of the demo.
fn spiffe_id(service_account: &str) -> String {
    let domain: TrustDomain = TRUST_DOMAIN
        .parse()
        .expect("the demo's trust domain is valid");
    let id = SpiffeId::workload(&domain, NAMESPACE, service_account);
    id.expect("the demo's names are valid").to_string()
}

/// What has been shown so far.
struct Show {
    started: Instant,
    base: Totals,
    /// Readings of the last seconds, oldest first: what the refreshing table is about.
    recent: VecDeque<(Instant, Totals)>,
    look: Option<String>,
    lines: usize,
}

impl Show {
    fn new(base: Totals, look: Option<String>) -> Self {
        let started = Instant::now();
        let recent = VecDeque::from([(started, base.clone())]);
        Self {
            started,
            base,
            recent,
            look,
            lines: 0,
        }
    }

    /// Everything since the start.
    fn whole(&self, now: &Totals) -> Window {
        window(now, &self.base, self.started.elapsed())
    }

    /// Shows a new reading, in the formats that refresh. False when nobody looks any more.
    fn refresh(&mut self, now: Totals, out: &Output) -> Result<bool, Failure> {
        let at = Instant::now();
        while self.recent.len() > 1 && at - self.recent[0].0 > SLIDING {
            self.recent.pop_front();
        }
        let (since, earlier) = &self.recent[0];
        let window = window(&now, earlier, at - *since);
        self.recent.push_back((at, now));
        let printed = match out.format {
            Format::Table if out.live => self.table(&window, out),
            Format::Jsonl => out.json(&Line {
                api_version: API_VERSION,
                window: &window,
            }),
            Format::Table | Format::Json => Ok(()),
        };
        let closed = printed.is_err();
        printed_or_closed(printed)?;
        Ok(!closed)
    }

    /// Prints the table; on a terminal in the place of the one before.
    fn table(&mut self, window: &Window, out: &Output) -> io::Result<()> {
        let text = table::render(
            &window.edges,
            &window.problems,
            self.look.as_deref(),
            out.paint,
        );
        let back = match self.lines {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        };
        self.lines = text.lines().count();
        out.data(&format!("{back}{text}"))
    }
}

fn window(now: &Totals, earlier: &Totals, length: Duration) -> Window {
    let counted = now.since(earlier);
    let seconds = (length.as_secs_f64() * 10.0).round() / 10.0;
    Window {
        seconds,
        edges: counted.edges(length),
        problems: counted.problems(help),
    }
}

const REFRESH: Duration = Duration::from_secs(1);
/// The time that the refreshing table is about.
const SLIDING: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_of_the_demo() {
        assert_eq!(spiffe_id("web"), "spiffe://demo.mesh/ns/blog/sa/web");
    }
}
