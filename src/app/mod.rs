//! The process: what starts in which order, and how it ends.

mod configure;
mod names;
mod sockets;

use std::{
    future::Future, net::SocketAddr, path::Path, process::ExitCode, sync::Arc, time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    admin::{self, Scope, Status},
    bootstrap::Bootstrap,
    dns::{Resolver, Source},
    drain::{Drain, Phase},
    identity::{ControlPlane, Credentials, FirstContact, IdentityStore, keep_renewed},
    listener,
    snapshot::SnapshotStore,
    telemetry::{AccessLog, Metrics, logging},
    util::Rng,
    worker::{Shared, Worker},
    xds::Command,
};

/// Peers learn within this time that they must not open new connections here.
const MIN_DRAIN: Duration = Duration::from_secs(1);
/// Then what is idle is closed.
const IDLE_DRAIN: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

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
    let result = logging::start(&bootstrap.log).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        runtime.block_on(async {
            let app = App::bind(bootstrap).await?;
            app.run(signal()).await;
            Ok(())
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// SIGTERM or SIGINT.
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
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
    admin: (TcpListener, SocketAddr),
    public_admin: (TcpListener, SocketAddr),
}

/// Work for a worker: a socket to accept from until told to stop.
#[derive(Debug)]
struct Job {
    name: Arc<str>,
    socket: std::net::TcpListener,
    stop: watch::Receiver<bool>,
}

impl App {
    /// Opens the admin interfaces and starts the workers.
    ///
    /// # Errors
    /// When an address cannot be bound or a thread cannot be started.
    pub async fn bind(bootstrap: Bootstrap) -> Result<Self, String> {
        let (demand, demands) = mpsc::unbounded_channel();
        let metrics = Metrics::new();
        let shared = Arc::new(Shared {
            snapshots: SnapshotStore::default(),
            identity: Arc::new(IdentityStore::default()),
            resolver: Resolver::new(Source::default(), Vec::new(), metrics.clone()),
            metrics,
            log: AccessLog::start(bootstrap.access_log)
                .map_err(|error| format!("the access log cannot be started: {error}"))?,
            drain: Drain::default(),
            probes: Arc::default(),
            demand,
            started: Instant::now(),
        });
        count_panics(&shared.metrics);
        let admin = bind_admin(bootstrap.admin, "WEFT_PROXY_ADMIN")?;
        let public_admin = bind_admin(bootstrap.public_admin, "WEFT_PROXY_PUBLIC_ADMIN")?;
        let workers = (0..bootstrap.workers)
            .map(|id| start_worker(id, shared.clone()))
            .collect::<Result<_, _>>()?;
        let status = Arc::new(Status::default());
        Ok(Self {
            bootstrap,
            shared,
            status,
            workers,
            demands,
            admin,
            public_admin,
        })
    }

    /// Where the full admin interface listens.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.1
    }

    /// Where the read-only admin interface listens.
    #[must_use]
    pub fn public_admin_address(&self) -> SocketAddr {
        self.public_admin.1
    }

    /// Serves until `shutdown` is ready, then drains: open streams have the grace period.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self {
            bootstrap,
            shared,
            status,
            workers,
            demands,
            admin,
            public_admin,
        } = self;
        for (listener, scope) in [(admin.0, Scope::Full), (public_admin.0, Scope::Public)] {
            tokio::spawn(admin::serve(
                listener,
                shared.clone(),
                status.clone(),
                scope,
            ));
        }
        let control = ControlPlane {
            address: bootstrap.control.as_str().into(),
            first_contact: FirstContact {
                root: bootstrap.token.root,
            },
            identity: shared.identity.clone(),
        };
        let rng = Arc::new(Rng::new(seed()));
        let credentials = Credentials {
            token: bootstrap.token.clone(),
        };
        let renewing = tokio::spawn(keep_renewed(
            control.clone(),
            credentials,
            shared.metrics.clone(),
            rng,
        ));
        let (commands, received) = mpsc::unbounded_channel();
        let configuration = configure::Configuration::new(
            &shared,
            &status,
            workers.clone(),
            commands.clone(),
            Arc::default(),
        );
        let stops = configuration.stops();
        let node = configure::node(&bootstrap);
        let life = async {
            tokio::select! {
                () = shutdown => {}
                () = status.shutdown.notified() => {}
            }
            drain(&shared, &commands, &stops, bootstrap.grace).await;
        };
        // Configuration goes on arriving while connections drain.
        tokio::select! {
            () = configuration.run(control, node, received, demands) => {}
            () = life => {}
        }
        renewing.abort();
    }
}

/// Everything is served on while peers learn to go elsewhere; then the sockets close.
async fn drain(
    shared: &Shared,
    commands: &mpsc::UnboundedSender<Command>,
    stops: &configure::Stops,
    grace: Duration,
) {
    let started = Instant::now();
    let drain = &shared.drain;
    tracing::info!(connections = drain.connections(), "shutting down");
    // The receiver is gone only if configuration has ended, which is as good as left.
    let _ = commands.send(Command::Leave);
    drain.advance(Phase::Draining);
    while started.elapsed() < grace {
        let waited = started.elapsed();
        if waited >= MIN_DRAIN && drain.connections() == 0 {
            break;
        }
        if waited >= IDLE_DRAIN {
            drain.advance(Phase::Closing);
        }
        tokio::time::sleep(POLL).await;
    }
    stops.stop_all();
    drain.advance(Phase::Closing);
    // What was in the kernel's queue when the sockets closed is served too.
    tokio::time::sleep(POLL).await;
    while started.elapsed() < grace && drain.connections() > 0 {
        tokio::time::sleep(POLL).await;
    }
    match drain.connections() {
        0 => tracing::info!("all connections have ended"),
        left => tracing::warn!(left, "the grace period is over; connections are cut"),
    }
}

fn bind_admin(address: SocketAddr, setting: &str) -> Result<(TcpListener, SocketAddr), String> {
    let open = || {
        let socket = listener::bind(address, 1)?.remove(0);
        let bound = socket.local_addr().map_err(|error| error.to_string())?;
        Ok((
            TcpListener::from_std(socket).map_err(|error| error.to_string())?,
            bound,
        ))
    };
    open().map_err(|error: String| format!("{setting}: {error}"))
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
                            let accepting =
                                listener::accept(worker.clone(), job.name, socket, job.stop);
                            tokio::spawn(accepting);
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
