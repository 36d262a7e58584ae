//! A process from its start to its end: taking over, serving, being relieved, draining.

use std::{
    env,
    ffi::OsString,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command as Process},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::{Instant, timeout},
};
use weft_handover::{Socket, State, has_manager, notify};

use super::{
    Admin, App,
    configure::{Configuration, Flush, Inputs, Stops},
    handover::{DOOR, Door, Predecessor, Successor, TAKEOVER, blocking},
    node::node,
    resources,
    saved::Saver,
    seed,
    shutdown::{fade, shut_down},
};
use crate::{
    admin::{self, Scope, Status, readiness},
    bootstrap::Bootstrap,
    drain::Phase,
    identity::{ControlPlane, FirstContact, keep_renewed},
    util::Rng,
    worker::Shared,
    xds::Command,
};

/// A new process that is ready waits this long for a control plane, so that it does not begin
/// with what another heard last.
const CONTROL_PATIENCE: Duration = Duration::from_secs(2);
/// A program that was started again and has not taken over by now is ended.
const CHILD_PATIENCE: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(20);
const FLUSH: Duration = Duration::from_secs(3);

/// What the process is asked for from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Drain and exit.
    Terminate,
    /// Start the program again; the new process takes over.
    Upgrade,
    /// Read the settings again, which cannot be.
    Reload,
}

/// How a process has ended that has done what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing is left to do.
    Ended,
    /// Whoever started this process believes that it serves: it has to stand in for this one.
    StandIn(u32),
}

/// SIGTERM, SIGINT, SIGUSR2 and SIGHUP.
///
/// # Errors
/// When the system does not let them be caught.
pub(super) fn signals() -> Result<mpsc::UnboundedReceiver<Signal>, String> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, signals) = mpsc::unbounded_channel();
    for (kind, meaning) in [
        (SignalKind::terminate(), Signal::Terminate),
        (SignalKind::interrupt(), Signal::Terminate),
        (SignalKind::user_defined2(), Signal::Upgrade),
        (SignalKind::hangup(), Signal::Reload),
    ] {
        let mut caught = signal(kind).map_err(|error| format!("signals: {error}"))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while caught.recv().await.is_some() && sender.send(meaning).is_ok() {}
        });
    }
    Ok(signals)
}

/// How this program was started, so that it can be started again: the file that has its name
/// by then, which may be a new version.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// An absolute path.
    pub(super) file: PathBuf,
    /// Arguments of `run`.
    pub(super) arguments: Vec<OsString>,
}

impl Program {
    /// This process, with its bootstrap file.
    pub(super) fn this(bootstrap: Option<&Path>) -> Self {
        let name = env::args_os().next().map(PathBuf::from).unwrap_or_default();
        let here = env::current_dir().unwrap_or_default();
        let path = env::var_os("PATH").unwrap_or_default();
        let own = || env::current_exe().unwrap_or_else(|_| name.clone());
        let arguments = match bootstrap {
            Some(file) => vec!["--bootstrap".into(), here.join(file).into_os_string()],
            None => Vec::new(),
        };
        Self {
            file: resolve(&name, &here, &path).unwrap_or_else(own),
            arguments,
        }
    }

    /// Starts it once more.
    pub(super) fn start(&self) -> std::io::Result<Child> {
        Process::new(&self.file)
            .arg("run")
            .args(&self.arguments)
            .spawn()
    }
}

/// The file that a shell would run for `name`. Links are kept: they may lead to another version
/// later.
fn resolve(name: &Path, here: &Path, path: &std::ffi::OsStr) -> Option<PathBuf> {
    if name.as_os_str().is_empty() {
        return None;
    }
    if name.components().count() > 1 || name.is_absolute() {
        return Some(here.join(name));
    }
    env::split_paths(path)
        .map(|directory| here.join(directory).join(name))
        .find(|file| file.is_file())
}

/// Aborts a task when dropped.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Task {
    Task(tokio::spawn(task).abort_handle())
}

/// The program that was started again.
#[derive(Debug)]
struct Upgrade {
    child: Child,
    since: Instant,
}

/// An offer to a successor that is being considered.
type Offering = Pin<Box<dyn Future<Output = Result<Successor, String>> + Send>>;

/// What serving needs, and leaving.
struct Life {
    bootstrap: Bootstrap,
    shared: Arc<Shared>,
    status: Arc<Status>,
    admin: Admin,
    public_admin: Admin,
    stops: Stops,
    commands: mpsc::UnboundedSender<Command>,
    flushes: mpsc::Sender<Flush>,
    program: Option<Program>,
    go: watch::Sender<bool>,
}

impl App {
    /// Serves until it is told to end, or until another process has taken over.
    pub(super) async fn live(
        self,
        mut signals: mpsc::UnboundedReceiver<Signal>,
        program: Option<Program>,
    ) -> Result<Outcome, String> {
        let Self {
            bootstrap,
            shared,
            status,
            workers,
            demands,
            gauge,
            admin,
            public_admin,
            inherited,
            directory,
            kept,
            predecessor,
        } = self;
        let control = ControlPlane {
            address: bootstrap.control.as_str().into(),
            first_contact: bootstrap
                .token
                .as_ref()
                .ok()
                .map(|token| FirstContact { root: token.root }),
            identity: shared.identity.clone(),
        };
        let renewing = spawn(keep_renewed(
            control.clone(),
            bootstrap.token.clone().ok(),
            shared.metrics.clone(),
            Arc::new(Rng::new(seed())),
        ));
        let _measuring = spawn(resources::measure(gauge, shared.metrics.clone()));
        let saver = match directory.clone() {
            Some(directory) => Some(Saver::start(
                directory,
                &status.workload,
                &shared.identity,
                &shared.metrics,
            )?),
            None => None,
        };
        let (commands, received) = mpsc::unbounded_channel();
        let (flushes, flush_requests) = mpsc::channel(1);
        let (go, gone) = watch::channel(false);
        let mut configuration = Configuration::new(
            &shared,
            &status,
            workers,
            commands.clone(),
            inherited.clone(),
            saver,
            gone,
        );
        if let Some(kept) = kept {
            configuration.restore(kept);
        }
        let inputs = Inputs {
            commands: received,
            demands,
            flushes: flush_requests,
        };
        let node = node(&bootstrap);
        let life = Life {
            stops: configuration.stops(),
            bootstrap,
            shared,
            status,
            admin,
            public_admin,
            commands,
            flushes,
            program,
            go,
        };
        let living = async {
            if let Some(predecessor) = predecessor {
                tokio::select! {
                    taken = life.take_over(predecessor) => taken?,
                    // The old process sees that this one goes, and serves on.
                    () = told_to_end(&mut signals) => return Ok(Outcome::Ended),
                }
                inherited.close_rest();
            }
            let door = directory.map(|directory| directory.path(DOOR));
            life.serve(&mut signals, door.as_deref(), renewing).await
        };
        // Configuration goes on arriving while connections drain.
        tokio::select! {
            () = configuration.run(control, node, inputs) => Ok(Outcome::Ended),
            outcome = living => outcome,
        }
    }
}

impl Life {
    /// Gets everything in force, and relieves the process that serves until now.
    async fn take_over(&self, predecessor: Predecessor) -> Result<(), String> {
        let started = Instant::now();
        let ready = async {
            loop {
                let waited = started.elapsed() >= CONTROL_PATIENCE;
                let connected = self.status.connected.load(Ordering::Relaxed);
                match readiness(&self.shared, &self.status) {
                    Ok(()) if connected || waited => return,
                    _ => tokio::time::sleep(POLL).await,
                }
            }
        };
        if timeout(TAKEOVER - CONTROL_PATIENCE, ready).await.is_err() {
            let why = match readiness(&self.shared, &self.status) {
                Ok(()) => "it came too late".to_owned(),
                Err(why) => why,
            };
            let why = format!("the new process is not ready: {why}");
            let told = why.clone();
            blocking(move || predecessor.give_up(&told)).await;
            return Err(why);
        }
        blocking(move || predecessor.relieve()).await?;
        tracing::info!(generation = self.status.generation, after = ?started.elapsed(),
            "took over: this process serves the workload now");
        Ok(())
    }

    /// Accepts, until it is told to end or relieved.
    async fn serve(
        &self,
        signals: &mut mpsc::UnboundedReceiver<Signal>,
        door: Option<&Path>,
        renewing: Task,
    ) -> Result<Outcome, String> {
        self.go.send_replace(true);
        let mut tasks = self.serve_admin()?;
        let (knock, mut knocks) = mpsc::channel(1);
        if let Some(path) = door {
            // Whether there can be an upgrade is not worth refusing to serve.
            match Door::open(path) {
                Ok(door) => tasks.push(spawn(answer_door(
                    door,
                    self.status.workload.clone(),
                    knock,
                ))),
                Err(error) => tracing::error!(%error, "no upgrade without restart is possible"),
            }
        }
        tasks.push(spawn(tell_ready(self.shared.clone(), self.status.clone())));
        let mut drains = self.status.drain.subscribe();
        let mut offering: Option<Offering> = None;
        let mut upgrade: Option<Upgrade> = None;
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(signal) = signals.recv() => match signal {
                    Signal::Terminate => break,
                    Signal::Upgrade => self.start_again(&mut upgrade),
                    Signal::Reload => tracing::info!(
                        "SIGHUP: nothing to do; configuration comes from the control plane and needs no reload"
                    ),
                },
                () = self.status.shutdown.notified() => break,
                // The sender lives as long as this.
                Ok(()) = drains.changed() => {
                    let drains = *drains.borrow_and_update();
                    self.ask_to_go(drains);
                }
                Some(successor) = knocks.recv(), if offering.is_none() => {
                    offering = self.offer(successor).await;
                }
                result = considered(&mut offering) => {
                    offering = None;
                    self.shared.metrics.handover(result.is_ok());
                    match result {
                        Ok(successor) => {
                            let pid = self.relieved_by(successor, tasks, renewing).await;
                            let ours = upgrade.as_ref().is_some_and(|u| u.child.id() == pid);
                            return Ok(self.fade(signals, pid, ours).await);
                        }
                        Err(error) => tracing::error!(%error,
                            "the upgrade has failed; this process serves on as if nothing had happened"),
                    }
                }
                _ = ticks.tick() => watch_over(&mut upgrade),
            }
        }
        if let Some(mut upgrade) = upgrade.take() {
            // It has not taken over; it must not after this.
            let _ = upgrade.child.kill();
            let _ = upgrade.child.wait();
        }
        drop(offering);
        tell(&[State::Stopping]);
        let limits = (self.bootstrap.grace, self.bootstrap.exit_after);
        shut_down(
            &self.shared,
            &self.status,
            &self.commands,
            &self.stops,
            limits,
        )
        .await;
        self.flush().await;
        Ok(Outcome::Ended)
    }

    fn serve_admin(&self) -> Result<Vec<Task>, String> {
        let mut tasks = Vec::new();
        for (admin, scope) in [
            (&self.admin, Scope::Full),
            (&self.public_admin, Scope::Public),
        ] {
            for listener in admin.listeners()? {
                let (shared, status) = (self.shared.clone(), self.status.clone());
                tasks.push(spawn(admin::serve(listener, shared, status, scope)));
            }
        }
        Ok(tasks)
    }

    /// `/drain` and `/undrain`.
    fn ask_to_go(&self, drains: bool) {
        let drain = &self.shared.drain;
        if drains {
            tracing::info!("draining on request; clients are asked to go elsewhere");
            self.status.left.send_replace(None);
            let _ = self.commands.send(Command::Leave);
            drain.advance(Phase::Draining);
        } else if drain.phase() == Phase::Draining && drain.resume() {
            tracing::info!("serving again on request");
            self.status.left.send_replace(None);
            let _ = self.commands.send(Command::Return);
        }
    }

    /// SIGUSR2.
    fn start_again(&self, upgrade: &mut Option<Upgrade>) {
        let Some(program) = &self.program else {
            return;
        };
        if self.bootstrap.state.is_none() {
            tracing::error!("SIGUSR2: an upgrade without restart needs WEFT_PROXY_STATE");
            return;
        }
        if upgrade.is_some() {
            tracing::warn!("SIGUSR2: an upgrade is going on already");
            return;
        }
        match program.start() {
            Ok(child) => {
                tracing::info!(program = %program.file.display(), pid = child.id(), "upgrade: the program is started again");
                *upgrade = Some(Upgrade {
                    child,
                    since: Instant::now(),
                });
            }
            Err(error) => {
                tracing::error!(%error, program = %program.file.display(), "upgrade: cannot be started; this process serves on");
            }
        }
    }

    /// Everything on disk, and all sockets: what a successor begins with.
    async fn offer(&self, successor: Successor) -> Option<Offering> {
        if self.shared.drain.phase() > Phase::Serving {
            let refused =
                blocking(move || successor.refuse("it is draining; /undrain takes that back"));
            refused.await;
            return None;
        }
        self.flush().await;
        match self.sockets() {
            Ok(sockets) => Some(Box::pin(successor.offer(self.status.generation, sockets))),
            Err(error) => {
                let why = format!("its sockets cannot be passed on: {error}");
                tracing::error!(why, "the upgrade has failed");
                blocking(move || successor.refuse(&why)).await;
                None
            }
        }
    }

    fn sockets(&self) -> std::io::Result<Vec<Socket>> {
        let mut all = self.stops.sockets()?;
        for socket in self.admin.0.iter().chain(&self.public_admin.0) {
            all.push(socket.try_clone()?);
        }
        Ok(all)
    }

    /// Waits until everything is on disk, for at most 3 s.
    async fn flush(&self) {
        let (done, waiting) = oneshot::channel();
        if self.flushes.send(done).await.is_ok() {
            let _ = timeout(FLUSH, waiting).await;
        }
    }

    /// The other process has everything in force: stops accepting, and tells it so. Returns
    /// its process ID.
    async fn relieved_by(&self, successor: Successor, tasks: Vec<Task>, renewing: Task) -> u32 {
        let pid = successor.pid();
        // The last that this process writes; without a pause before the next line.
        self.flush().await;
        self.status.replaced.store(true, Ordering::Relaxed);
        // A break says nothing to the control plane; an end would say that the workload ends.
        let _ = self.commands.send(Command::Break);
        self.stops.stop_all();
        drop((tasks, renewing));
        if pid != std::process::id() {
            tell(&[State::MainPid(pid)]);
        }
        blocking(move || successor.done()).await;
        tracing::info!(
            pid,
            connections = self.shared.drain.summary(),
            "another process has taken over; what is open here ends with its connections"
        );
        pid
    }

    /// Ends with its connections. `ours`: this process has started the other one.
    async fn fade(
        &self,
        signals: &mut mpsc::UnboundedReceiver<Signal>,
        pid: u32,
        ours: bool,
    ) -> Outcome {
        // Under a service manager that was told, the other process is the service now.
        let stands_in = std::process::id() == 1 || (ours && !has_manager());
        let limits = (self.bootstrap.upgrade_grace, self.bootstrap.grace);
        fade(&self.shared, signals, limits, |signal| {
            if stands_in {
                super::supervise::relay(pid, signal);
            }
        })
        .await;
        if stands_in {
            Outcome::StandIn(pid)
        } else {
            Outcome::Ended
        }
    }
}

async fn told_to_end(signals: &mut mpsc::UnboundedReceiver<Signal>) {
    loop {
        match signals.recv().await {
            Some(Signal::Terminate) => return,
            // Of no use before this process serves.
            Some(Signal::Upgrade | Signal::Reload) => {}
            None => std::future::pending().await,
        }
    }
}

/// Waits for a successor; for ever without one.
async fn considered(offering: &mut Option<Offering>) -> Result<Successor, String> {
    match offering {
        Some(offering) => offering.await,
        None => std::future::pending().await,
    }
}

async fn answer_door(door: Door, workload: String, knocks: mpsc::Sender<Successor>) {
    while knocks.send(door.knock(&workload).await).await.is_ok() {}
}

/// Looks after the program that was started again, as long as it has not taken over.
fn watch_over(upgrade: &mut Option<Upgrade>) {
    let Some(running) = upgrade else {
        return;
    };
    match running.child.try_wait() {
        Ok(None) if running.since.elapsed() < CHILD_PATIENCE => return,
        Ok(None) => {
            tracing::error!(
                pid = running.child.id(),
                "upgrade: the new process has not taken over in 45 s; it is ended and this one serves on"
            );
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        Ok(Some(status)) => tracing::error!(%status,
            "upgrade: the new process has ended before it took over; this one serves on"),
        Err(error) => tracing::error!(%error, "upgrade: the new process is out of sight"),
    }
    *upgrade = None;
}

/// Tells the service manager once everything is in force.
async fn tell_ready(shared: Arc<Shared>, status: Arc<Status>) {
    while readiness(&shared, &status).is_err() {
        tokio::time::sleep(POLL).await;
    }
    tell(&[State::Ready]);
}

fn tell(states: &[State]) {
    if let Err(error) = notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, path::Path};

    use super::resolve;

    #[test]
    fn a_program_is_found_where_a_shell_finds_it() {
        let here = Path::new("/srv");
        let of = |name: &str, path: &str| resolve(Path::new(name), here, OsStr::new(path));
        assert_eq!(of("/opt/weft-proxy", ""), Some("/opt/weft-proxy".into()));
        assert_eq!(of("./weft-proxy", "/bin"), Some("/srv/./weft-proxy".into()));
        assert_eq!(
            of("bin/weft-proxy", "/bin"),
            Some("/srv/bin/weft-proxy".into())
        );
        assert_eq!(of("", "/bin"), None);
        assert_eq!(of("weft-proxy", "/nowhere"), None);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weft-proxy");
        std::fs::write(&file, "").unwrap();
        let path = format!("/nowhere:{}", directory.path().display());
        assert_eq!(of("weft-proxy", &path), Some(file));
    }
}
