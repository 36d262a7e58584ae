//! `weft demo`: a whole mesh on this machine, without root and without traces. The control plane
//! runs in this process; every sidecar and every application is a child process. The table is
//! what the callers' sidecars measured.

pub(crate) mod apps;
mod bot;
mod edges;
mod live;
mod mesh;
mod queue;
mod state;
mod table;

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use clap::Subcommand;
use futures_util::FutureExt;
use futures_util::future::{join_all, select_all, try_join_all};
use http::{HeaderMap, Method, StatusCode};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::control::Control;
use crate::duration;
use crate::files;
use crate::internal;
use crate::output::{API_VERSION, Exit, Failure, Format, Output};
use crate::printed_or_closed;
use crate::sidecar::{self, START_TIMEOUT, Sidecar, in_time};
use crate::supervise::{Child, GRACE, Signals};
use mesh::{BROKEN, FIXED, Member, NAMESPACE, ROUTE_FILE, Split};
use state::StateFile;

pub(crate) use mesh::{free_ports, loopback};
pub(crate) use state::is_alive;

/// Start a whole mesh on this machine: services, sidecars, traffic, and one planted fault.
///
/// Starts a control plane, seven workloads with a sidecar each, a traffic bot, a canary and one
/// planted fault, all on 127.0.0.1 and without root. Stops with Ctrl-C and leaves nothing behind.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Measure for this long, then stop, e.g. 20s or 1m. Until Ctrl-C if absent.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    window: Option<Duration>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take the failing canary back, in the demo that runs in another shell.
    Fix,
    /// Give the failing canary its tenth of the traffic again.
    Break,
}

/// Runs the demo, or changes the one that runs.
///
/// # Errors
///
/// A part of the demo fails; none runs that could be changed.
pub(crate) fn run(args: &Args, out: &Output) -> Result<(), Failure> {
    match args.action {
        Some(Action::Fix) => shift(FIXED, out),
        Some(Action::Break) => shift(BROKEN, out),
        None => {
            crate::log("error", out);
            crate::runtime()?.block_on(demo(args.window, out))
        }
    }
}

/// Changes the weights of the canary in the configuration of the running demo.
fn shift(split: Split, out: &Output) -> Result<(), Failure> {
    let state = state::find()?;
    let path = state.config.join(ROUTE_FILE);
    files::replace(&path, &mesh::canary(split))
        .map_err(|error| Failure::io(path.display(), &error))?;
    if out.format == Format::Table {
        out.done(
            "canary",
            format_args!("post v1 {} % / v2 {} %", split.v1, split.v2),
        );
        return Ok(());
    }
    let weights = json!({ "post-v1": split.v1, "post-v2": split.v2 });
    printed_or_closed(out.json(&json!({ "apiVersion": API_VERSION, "weights": weights })))
}

async fn demo(window: Option<Duration>, out: &Output) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::io("signals", &error))?;
    let mut demo = tokio::select! {
        demo = Demo::prepare() => demo?,
        _ = signals.next() => return Ok(()),
    };
    let started = tokio::select! {
        started = demo.start(out) => started.map(|()| Started::Yes),
        _ = signals.next() => Ok(Started::Cancelled),
    };
    let ended = match started {
        Ok(Started::Yes) => live::watch(&mut demo, window, &mut signals, out).await,
        Ok(Started::Cancelled) => Ok(()),
        Err(failure) => Err(failure),
    };
    tokio::select! {
        () = demo.stop() => {}
        // Impatience: what has not stopped yet is killed as it is dropped.
        _ = signals.next() => {}
    }
    ended
}

enum Started {
    Yes,
    Cancelled,
}

/// Everything that runs, or is about to.
struct Demo {
    dir: TempDir,
    control: Control,
    members: Vec<Member>,
    apps: Vec<Child>,
    sidecars: Vec<Child>,
    state: Option<StateFile>,
}

/// Why a start did not work.
enum StartError {
    /// Somebody took a port between our finding it free and its use: another try may work.
    PortTaken(Failure),
    Failed(Failure),
}

impl From<Failure> for StartError {
    /// A child that ends because of a taken port says so in its last words.
    fn from(failure: Failure) -> Self {
        if failure.message.contains("in use") {
            Self::PortTaken(failure)
        } else {
            Self::Failed(failure)
        }
    }
}

impl Demo {
    /// Makes the directory and starts the control plane, both without content.
    async fn prepare() -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix(state::DIR_PREFIX).tempdir();
        let dir = dir.map_err(|error| Failure::io("cannot make a temporary directory", &error))?;
        let config = dir.path().join("config");
        fs::create_dir(&config).map_err(|error| Failure::io(config.display(), &error))?;
        // The trust domain is in the configuration: it has to be there first.
        let members = members()?;
        write_config(&config, &members)?;
        let control = Control::start(config, None, loopback(0), loopback(0)).await?;
        Ok(Self {
            dir,
            control,
            members,
            apps: Vec::new(),
            sidecars: Vec::new(),
            state: None,
        })
    }

    /// Starts the workloads, and returns once every edge has carried a request.
    async fn start(&mut self, out: &Output) -> Result<(), Failure> {
        let mut tries = 1;
        loop {
            match self.try_start(out).await {
                Ok(()) => return Ok(()),
                Err(StartError::PortTaken(_)) if tries < MAX_TRIES => tries += 1,
                Err(StartError::PortTaken(failure) | StartError::Failed(failure)) => {
                    return Err(failure);
                }
            }
            self.stop_children().await;
            self.members = members()?;
            write_config(&self.dir.path().join("config"), &self.members)?;
        }
    }

    async fn try_start(&mut self, out: &Output) -> Result<(), StartError> {
        for member in self.members.clone() {
            self.spawn_sidecar(member)?;
            // The bot starts once there is something to talk to.
            if member.role.protocol.is_some() {
                self.spawn_app(member)?;
            }
        }
        let work = workloads_ready(&self.members, &self.apps, &self.sidecars);
        self.unless_one_ends(work).await?;
        self.announce(out)?;
        self.unless_one_ends(first_requests(self.members.clone()))
            .await?;
        self.spawn_app(self.bot())?;
        Ok(())
    }

    fn bot(&self) -> Member {
        *self.members.last().expect("the roles are not empty")
    }

    fn spawn_sidecar(&mut self, member: Member) -> Result<(), Failure> {
        let name = member.role.name;
        let sidecar = Sidecar {
            control: self.control.address.to_string(),
            workload: format!("{NAMESPACE}/{name}"),
            token: Some(self.control.token(NAMESPACE, name)?),
            admin: loopback(member.admin),
            public_admin: member.public_admin_address(),
            access_log: "off",
            grace: Duration::from_secs(1),
            owner: None,
            more: Vec::new(),
        };
        let child = sidecar.spawn(format!("the sidecar of {name}"));
        self.sidecars
            .push(child.map_err(|error| Failure::io("cannot start a sidecar", &error))?);
        Ok(())
    }

    fn spawn_app(&mut self, member: Member) -> Result<(), Failure> {
        let name = member.role.name;
        let failed = |error| Failure::io(format_args!("cannot start {name}"), &error);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .args([internal::APP, name])
            .arg(format!("--listen={}", loopback(member.app)))
            .arg(format!("--outbound={}", member.outbound_address()))
            .arg(format!("--queue={}", loopback(member.upstream)));
        self.apps.push(Child::spawn(name, command).map_err(failed)?);
        Ok(())
    }

    fn announce(&mut self, out: &Output) -> Result<(), Failure> {
        let config = self.dir.path().join("config");
        let state = StateFile::announce(&config);
        self.state = Some(state.map_err(|error| Failure::io("cannot announce the demo", &error))?);
        let detail = "in memory, throw-away CA (trust domain";
        let address = self.control.address.to_string();
        out.done(
            "control plane",
            format_args!("{address:<23} {detail} {})", self.control.trust_domain),
        );
        let Split { v1, v2 } = BROKEN;
        out.done(
            &format!("{} workloads", self.members.len()),
            format_args!(
                "{:<23} post v1 {v1} % / v2 {v2} %",
                "bot → web → account, post, storage → queue;"
            ),
        );
        Ok(())
    }

    /// Does the work, unless a child or the control plane ends meanwhile.
    async fn unless_one_ends<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let children = self.apps.iter_mut().chain(&mut self.sidecars);
        let ends = children.map(|child| child.failure().boxed());
        tokio::select! {
            done = work => done,
            (failure, ..) = select_all(ends) => Err(failure),
            ended = self.control.ended() => {
                ended?;
                Err(Failure::new(Exit::Problems, "the control plane has ended"))
            }
        }
    }

    async fn stop_children(&mut self) {
        // Callers first: nobody's last request finds its peer gone.
        for group in [&mut self.apps, &mut self.sidecars] {
            join_all(group.iter_mut().map(|child| child.stop(GRACE))).await;
            group.clear();
        }
    }

    async fn stop(mut self) {
        self.stop_children().await;
        drop(self.state.take());
        self.control.stop().await;
        // A directory that cannot be removed is in the system's place for such.
        let _ = self.dir.close();
    }
}

fn members() -> Result<Vec<Member>, Failure> {
    mesh::members(&mut SmallRng::from_os_rng()).map_err(|error| Failure::io("ports", &error))
}

fn write_config(config: &std::path::Path, members: &[Member]) -> Result<(), Failure> {
    for (name, text) in mesh::documents(members, BROKEN) {
        let path = config.join(name);
        files::replace(&path, &text).map_err(|error| Failure::io(path.display(), &error))?;
    }
    Ok(())
}

/// Returns once every application listens and every sidecar is ready, or one of them fails.
fn workloads_ready(
    members: &[Member],
    apps: &[Child],
    sidecars: &[Child],
) -> impl Future<Output = Result<(), Failure>> + use<> {
    let apps: Vec<_> = apps.iter().map(Child::teller).collect();
    let addresses = members.iter().map(Member::public_admin_address);
    let sidecars: Vec<_> = sidecars.iter().map(Child::teller).zip(addresses).collect();
    async move {
        let apps = apps.iter().map(|app| async move {
            in_time(&format!("{} to listen", app.name), app.said(apps::READY)).await
        });
        let sidecars = sidecars
            .iter()
            .map(|(teller, address)| sidecar::started(teller, *address));
        tokio::try_join!(try_join_all(apps), try_join_all(sidecars))?;
        Ok(())
    }
}

/// A first request along every edge, from the sidecar of `from`.
struct Probe {
    from: &'static str,
    host: &'static str,
    method: Method,
    path: &'static str,
    status: StatusCode,
}

/// Post 7 is one that both versions serve.
fn probes() -> [Probe; 5] {
    let probe = |from, host, method, path, status| Probe {
        from,
        host,
        method,
        path,
        status,
    };
    [
        probe(
            "bot",
            "web.blog",
            Method::GET,
            "/accounts/1",
            StatusCode::OK,
        ),
        probe("bot", "web.blog", Method::GET, "/posts/7", StatusCode::OK),
        probe(
            "bot",
            "web.blog",
            Method::PUT,
            "/attachments/first",
            StatusCode::CREATED,
        ),
        probe(
            "web",
            "post-v1.blog",
            Method::GET,
            "/posts/7",
            StatusCode::OK,
        ),
        probe(
            "web",
            "post-v2.blog",
            Method::GET,
            "/posts/7",
            StatusCode::OK,
        ),
    ]
}

/// Returns once a request has gone through along every edge.
async fn first_requests(members: Vec<Member>) -> Result<(), Failure> {
    let sent = probes().into_iter().map(|probe| {
        let from = members.iter().find(|member| member.role.name == probe.from);
        let outbound = from.expect("probes start at members").outbound_address();
        async move {
            let peer = apps::Peer::new(probe.host, outbound);
            let mut last = String::new();
            let tried =
                tokio::time::timeout(START_TIMEOUT, succeed(&peer, &probe, &mut last)).await;
            tried.map_err(|_| {
                let path = format!("{} → {}{}", probe.from, probe.host, probe.path);
                Failure::new(
                    Exit::TimedOut,
                    format!("no request goes through {path}: {last}"),
                )
                .help("see why with WEFT_LOG=info weft demo")
            })
        }
    });
    join_all(sent).await.into_iter().collect()
}

/// Sends a request until it succeeds; keeps what it was answered last.
async fn succeed(peer: &apps::Peer, probe: &Probe, last: &mut String) {
    loop {
        let body = Bytes::from_static(b"weft");
        match peer
            .call(probe.method.clone(), probe.path, HeaderMap::new(), body)
            .await
        {
            // The front hides a failing post; a first request must not be fooled.
            Ok((status, body))
                if status == probe.status && !contains(&body, b"missing_because") =>
            {
                return;
            }
            Ok((status, body)) => *last = format!("{status} {}", String::from_utf8_lossy(&body)),
            Err(error) => *last = error,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

const MAX_TRIES: u32 = 3;
