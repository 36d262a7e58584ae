//! The process: what starts in which order, and how it ends.

mod configure;
mod handover;
mod life;
mod names;
mod node;
mod resources;
mod saved;
mod shutdown;
mod sockets;
mod supervise;

use std::{
    future::Future,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::SystemTime,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};
use weft_handover::Socket;

use self::{
    handover::{DOOR, Predecessor, blocking},
    life::{Outcome, Program, Signal},
    saved::{CONFIG, IDENTITY, Kept},
    sockets::{Inherited, divide},
};
use crate::{
    admin::{self, Checks, Status},
    bootstrap::Bootstrap,
    config::Arrival,
    dns::{Resolver, Source},
    drain::Drain,
    identity::{IdentityStore, Restored, SavedError},
    listener,
    memory::Gauge,
    snapshot::SnapshotStore,
    state::Directory,
    telemetry::{AccessLog, Metrics, logging},
    util::Places,
    worker::{Shared, Worker},
};

pub use self::supervise::main as supervise;

/// `weft-proxy drain`: asks the sidecar that has the settings of this environment to drain, as
/// `POST /drain` does, and returns. For the hook of a container that is about to end. Of the
/// settings it needs the admin interface alone.
#[must_use]
pub fn drain(file: Option<&Path>) -> ExitCode {
    let asked = Bootstrap::read_admin(file)
        .map_err(|error| error.to_string())
        .and_then(|admin| admin::post(admin, "/drain"));
    match asked {
        Ok(answer) => {
            print!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `weft-proxy run`: reads the settings, serves until SIGTERM or SIGINT, drains, exits.
/// Exit codes: 0 after a drain, 1 on a failure, 2 when the settings are wrong.
#[must_use]
pub fn main(file: Option<&Path>) -> ExitCode {
    let bootstrap = match Bootstrap::read(file) {
        Ok(bootstrap) => bootstrap,
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("error: {line}");
            }
            return ExitCode::from(2);
        }
    };
    let program = Program::this(file);
    let door = bootstrap.state.as_ref().map(|state| state.join(DOOR));
    let result = logging::start(&bootstrap.log).and_then(|()| {
        resources::raise_open_files();
        // Before there are threads: the environment is changed.
        let given = weft_handover::activation().map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        let outcome = runtime.block_on(async {
            let signals = life::signals()?;
            let app = App::start(bootstrap, given).await?;
            app.live(signals, Some(program.clone())).await
        });
        runtime.shutdown_background();
        outcome
    });
    match result {
        Ok(Outcome::Ended) => ExitCode::SUCCESS,
        Ok(Outcome::StandIn(pid)) => supervise::become_supervisor(&program, pid, door.as_deref()),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A sidecar whose admin interfaces listen and whose workers wait.
#[derive(Debug)]
pub struct App {
    bootstrap: Bootstrap,
    shared: Arc<Shared>,
    status: Arc<Status>,
    workers: Vec<mpsc::UnboundedSender<Job>>,
    demands: mpsc::UnboundedReceiver<String>,
    gauge: Gauge,
    admin: Admin,
    public_admin: Admin,
    inherited: Arc<Inherited>,
    directory: Option<Directory>,
    /// The configuration from disk.
    kept: Option<Kept>,
    /// The process to take over from.
    predecessor: Option<Predecessor>,
}

/// An admin interface: its sockets, to be served and to be passed on.
#[derive(Debug)]
struct Admin(Vec<Socket>);

/// Work for a worker: a socket to accept from, from `go` until `stop`.
#[derive(Debug)]
struct Job {
    name: Arc<str>,
    socket: std::net::TcpListener,
    go: watch::Receiver<bool>,
    stop: watch::Receiver<bool>,
}

impl App {
    /// Opens the admin interfaces and starts the workers.
    ///
    /// # Errors
    /// When an address cannot be bound, a thread cannot be started, or the state directory is
    /// not ours.
    pub async fn bind(bootstrap: Bootstrap) -> Result<Self, String> {
        Self::start(bootstrap, Vec::new()).await
    }

    /// [`Self::bind`] with sockets that were opened by somebody else. If another process of
    /// this workload serves from the same state directory, it is asked for its sockets, and
    /// serves on until everything is in force here.
    async fn start(bootstrap: Bootstrap, given: Vec<Socket>) -> Result<Self, String> {
        let workload = format!("{}/{}", bootstrap.namespace, bootstrap.workload);
        let directory = match &bootstrap.state {
            Some(path) => {
                Some(Directory::open(path).map_err(|e| format!("WEFT_PROXY_STATE: {e}"))?)
            }
            None => None,
        };
        let mut sockets = given;
        let mut predecessor = None;
        if let Some(directory) = &directory {
            let (door, workload) = (directory.path(DOOR), workload.clone());
            let asked = blocking(move || Predecessor::ask(&door, &workload)).await?;
            if let Some((found, theirs)) = asked {
                sockets.extend(theirs);
                predecessor = Some(found);
            }
        }
        let begun = Self::build(bootstrap, workload, directory, sockets, &predecessor);
        match begun {
            Ok(mut app) => {
                app.predecessor = predecessor;
                Ok(app)
            }
            Err(why) => {
                if let Some(predecessor) = predecessor {
                    predecessor.give_up(&why);
                }
                Err(why)
            }
        }
    }

    fn build(
        bootstrap: Bootstrap,
        workload: String,
        directory: Option<Directory>,
        sockets: Vec<Socket>,
        predecessor: &Option<Predecessor>,
    ) -> Result<Self, String> {
        let (demand, demands) = mpsc::unbounded_channel();
        let metrics = Metrics::new();
        let limits = &bootstrap.limits;
        let identity = Arc::new(IdentityStore::new(limits));
        let gauge = Gauge::new(limits.memory);
        let places = resources::max_connections(limits.max_connections);
        let kept = match &directory {
            Some(directory) => recall(directory, &workload, &identity),
            None => None,
        };
        if identity.state().is_none()
            && let Err(why) = &bootstrap.token
        {
            return Err(format!(
                "there is no valid identity and no join token: {why}"
            ));
        }
        let source = match bootstrap.dns_upstreams.as_slice() {
            [] => Source::default(),
            fixed => Source::Fixed(fixed.to_vec()),
        };
        let shared = Arc::new(Shared {
            snapshots: SnapshotStore::default(),
            identity,
            resolver: Resolver::new(source, Vec::new(), metrics.clone()),
            metrics,
            log: AccessLog::start(bootstrap.access_log)
                .map_err(|error| format!("the access log cannot be started: {error}"))?,
            drain: Drain::default(),
            limits: Arc::new(limits.clone().within(gauge.memory().budget())),
            memory: gauge.memory(),
            places: Places::new(places),
            probes: bootstrap.probes.clone().into(),
            demand,
            started: Instant::now(),
        });
        count_panics(&shared.metrics);
        let inherited = Arc::new(Inherited::new(sockets));
        let bind = |address, name, setting| {
            let sockets = inherited.tcp(name, address, Arrival::Direct, 1);
            sockets
                .map(Admin)
                .map_err(|error| format!("{setting}: {error}"))
        };
        let admin = bind(bootstrap.admin, "admin", "WEFT_PROXY_ADMIN")?;
        let public = bootstrap.public_admin;
        let mut public_admin = bind(public, "public-admin", "WEFT_PROXY_PUBLIC_ADMIN")?;
        if let Some(address) = also_in_ipv6(public)
            && !listener::is_without_family(address)
        {
            let more = bind(address, "public-admin", "WEFT_PROXY_PUBLIC_ADMIN")?;
            public_admin.0.extend(more.0);
        }
        let workers = (0..bootstrap.workers)
            .map(|id| start_worker(id, shared.clone()))
            .collect::<Result<_, _>>()?;
        let registration = bootstrap.registration.as_ref();
        let checks = Checks {
            tcp: bootstrap.tcp_probes.clone(),
            grpc: bootstrap.grpc_probes.clone(),
            addresses: registration.map_or_else(Vec::new, |r| r.addresses.clone()),
        };
        let generation = predecessor.as_ref().map_or(0, |before| before.generation) + 1;
        shared.metrics.generation.set(i64::from(generation));
        Ok(Self {
            bootstrap,
            shared,
            status: Arc::new(Status::new(workload, generation, checks)),
            workers,
            demands,
            gauge,
            admin,
            public_admin,
            inherited,
            directory,
            kept,
            predecessor: None,
        })
    }

    /// Where the full admin interface listens.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Where the read-only admin interface listens.
    #[must_use]
    pub fn public_admin_address(&self) -> SocketAddr {
        self.public_admin.address()
    }

    /// Serves until `shutdown` is ready, then drains: open streams have the grace period.
    /// Ends, too, when another process has taken over and everything here has ended.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (sender, signals) = mpsc::unbounded_channel();
        let telling = async {
            shutdown.await;
            // The receiver lives as long as the other future.
            let _ = sender.send(Signal::Terminate);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = self.live(signals, None) => {
                if let Err(error) = result {
                    tracing::error!(%error, "ended");
                }
            }
            () = telling => {}
        }
    }
}

/// All addresses of the machine are those of IPv6, too: the probes of a pod come to either.
fn also_in_ipv6(address: SocketAddr) -> Option<SocketAddr> {
    let all = address.ip() == Ipv4Addr::UNSPECIFIED && address.port() != 0;
    all.then(|| (Ipv6Addr::UNSPECIFIED, address.port()).into())
}

impl Admin {
    fn address(&self) -> SocketAddr {
        // There is at least one: `Inherited::tcp` binds one for each worker.
        self.0
            .first()
            .map_or(([0, 0, 0, 0], 0).into(), Socket::address)
    }

    /// Its sockets for the runtime.
    fn listeners(&self) -> Result<Vec<TcpListener>, String> {
        let divided = divide(&self.0, 1)?;
        divided
            .into_iter()
            .map(|(_, socket)| TcpListener::from_std(socket).map_err(|error| error.to_string()))
            .collect()
    }
}

/// Takes identity and configuration from disk, as far as they are there and ours. What is not
/// used is said in the log; it counts as absent.
fn recall(directory: &Directory, workload: &str, identity: &IdentityStore) -> Option<Kept> {
    let refused =
        |error: crate::state::Refused| tracing::error!(%error, "state from disk is refused");
    let payload = directory.read(IDENTITY).map_err(refused).ok()??;
    match Restored::read(&payload, workload, SystemTime::now()) {
        Ok(restored) => {
            if let Err(error) = identity.restore(restored) {
                tracing::error!(%error, "the identity from disk is not usable");
                return None;
            }
        }
        Err(error @ SavedError::Expired(_)) => {
            tracing::warn!(%error, file = %directory.path(IDENTITY).display(),
                "the identity from disk is over; joining with the token");
            return None;
        }
        Err(SavedError::Foreign(why)) => {
            refused(directory.refuse(IDENTITY, why));
            return None;
        }
    }
    let id = identity.id()?;
    tracing::info!(%id, "this workload has its certificate from disk");
    let payload = directory.read(CONFIG).map_err(refused).ok()??;
    match Kept::read(&payload, workload, id.trust_domain().as_str()) {
        Ok(kept) => Some(kept),
        Err(why) => {
            refused(directory.refuse(CONFIG, why));
            None
        }
    }
}

fn start_worker(id: usize, shared: Arc<Shared>) -> Result<mpsc::UnboundedSender<Job>, String> {
    let (sender, mut jobs) = mpsc::unbounded_channel::<Job>();
    let failed = |error: std::io::Error| format!("worker {id} cannot be started: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    std::thread::Builder::new()
        .name(format!("worker-{id}"))
        .spawn(move || {
            let worker = Worker::new(id, shared, seed());
            runtime.block_on(async {
                while let Some(job) = jobs.recv().await {
                    match TcpListener::from_std(job.socket) {
                        Ok(socket) => {
                            let mut go = job.go;
                            let accepting =
                                listener::accept(worker.clone(), job.name, socket, job.stop);
                            tokio::spawn(async move {
                                // A sender that is gone means that it never comes to that.
                                if go.wait_for(|go| *go).await.is_ok() {
                                    accepting.await;
                                }
                            });
                        }
                        Err(error) => tracing::error!(%error, listener = %job.name, "no socket"),
                    }
                }
            });
        })
        .map_err(failed)?;
    Ok(sender)
}

fn count_panics(metrics: &Arc<Metrics>) {
    let metrics = metrics.clone();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        metrics.panics.inc();
        before(info);
    }));
}

/// A seed that differs between processes.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("weft")
}
