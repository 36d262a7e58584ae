//! The running control plane: bind, then run until told to stop.
//!
//! Start order: configuration, authority, join tokens, listeners. [`App::bind`] does all that
//! can fail, so that whoever starts it learns of it at once; [`Bound::run`] serves.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tower::util::MapRequestLayer;
use weft_api::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use weft_api::identity::istio_certificate_service_server::IstioCertificateServiceServer;
use weft_certs::{
    Ca, CaError, CertError, SpiffeError, SpiffeId, SvidVerifier, SystemClock, TrustDomain, tls,
};

use crate::admin::Admin;
use crate::ads::server::{Ads, MAX_REQUEST_BYTES, STALL_DEADLINE, watch_ending};
use crate::cache::{Snapshots, load_draining};
use crate::certificate::{OwnCertificate, maintain};
use crate::clients::Clients;
use crate::config::{Diagnostic, Level};
use crate::connection::{self, Connection, Connections};
use crate::drain::DRAIN_DEADLINE;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::presence::{self, Presence};
use crate::registration::Registrations;
use crate::sockets::{ADMIN, GRPC, Sockets};
use crate::source::{FileSource, Load};
use crate::storage::DataLock;
use crate::token::{TokenError, Tokens};
use crate::{CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT};

/// Where sidecars connect unless told otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:14012";
/// Where the admin pages are unless told otherwise.
pub const DEFAULT_ADMIN: &str = "127.0.0.1:14014";
/// How long streams may take to end after the shutdown has begun.
const GRACE: Duration = Duration::from_secs(5);
/// How many connections may wait to be served after their handshake.
const ACCEPT_QUEUE: usize = 64;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A signing request is far smaller; the limit on what is parsed is that of `weft_certs`.
const MAX_SIGNING_REQUEST_BYTES: usize = 64 * 1024;
/// Per connection: a sidecar needs one stream and now and then a signature.
const MAX_CONCURRENT_STREAMS: u32 = 100;
/// Where the authority is, below the data directory.
pub const CA_DIRECTORY: &str = "ca";

/// What to serve, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory with the mesh's documents.
    pub config: PathBuf,
    /// The directory of the authority, the join tokens and the last good documents; `None`
    /// keeps them in memory, and they end with the process.
    pub data: Option<PathBuf>,
    /// Where sidecars connect. Port 0 takes any free port.
    pub listen: SocketAddr,
    /// Where the admin pages are. Port 0 takes any free port.
    pub admin: SocketAddr,
    /// How long a sidecar may leave a response unread before it is cut. Default 30 s.
    pub stall_deadline: Duration,
    /// How long a sidecar that shuts down waits until the others have acknowledged it.
    /// Default 10 s.
    pub drain_deadline: Duration,
}

impl Options {
    /// Everything in memory, on the default addresses.
    #[must_use]
    pub fn new(config: impl Into<PathBuf>) -> Self {
        Self {
            config: config.into(),
            data: None,
            listen: DEFAULT_LISTEN.parse().expect("the constant is an address"),
            admin: DEFAULT_ADMIN.parse().expect("the constant is an address"),
            stall_deadline: STALL_DEADLINE,
            drain_deadline: DRAIN_DEADLINE,
        }
    }
}

/// Why the control plane cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration directory cannot be read, and nothing is known of it. Serving the empty mesh instead would take
    /// everything away from sidecars that were configured before a restart.
    #[error("cannot read the configuration directory {path}: {source}; --config names it")]
    Config {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The data directory cannot be had.
    #[error("cannot use the data directory {path}: {source}{}", data_help(.source))]
    Data {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nobody would serve the connections that come there.
    #[error(
        "the service manager has opened {0}, which nothing listens on: name the sockets `grpc` and `admin` (FileDescriptorName=), or give their addresses by --listen and --admin"
    )]
    Unused(String),
    /// A port that cannot be had.
    #[error("cannot listen on {address}: {source}{}", bind_help(.source, .flag))]
    Listen {
        /// The address wanted.
        address: SocketAddr,
        /// The option that chooses it.
        flag: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The authority cannot be used.
    #[error("cannot use the certificate authority: {0}")]
    Ca(#[from] CaError),
    /// The authority made a certificate that cannot be used.
    #[error("cannot make the control plane's own certificate: {0}")]
    Certificate(#[from] CertError),
    /// The control plane can have no identity.
    #[error("cannot make the control plane's own identity: {0}")]
    Identity(#[from] SpiffeError),
    /// The token store cannot be used.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// The server ended.
    #[error("the server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

fn data_help(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            "; one control plane has it: stop that one, or send it SIGUSR2 to be replaced by a new version"
        }
        _ => "; --data names it",
    }
}

fn bind_help(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; another process has the port: stop it, or choose another with {flag}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("; no interface of this machine has the address: choose another with {flag}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("; the port needs more rights: choose one above 1023 with {flag}")
        }
        _ => format!("; {flag} chooses the address"),
    }
}

/// The control plane.
pub struct App;

impl App {
    /// Whether the configuration can be read, without a change to anything. Blocks on the disk.
    ///
    /// # Errors
    /// What stops a control plane with these options from serving.
    pub fn check_config(options: &Options) -> Result<(), AppError> {
        let mut source = FileSource::new(&options.config);
        if let Some(data) = &options.data {
            source = source.keeping(data);
        }
        readable(options, &source)?;
        source.load();
        Ok(())
    }

    /// Whether a control plane could start again with these options; for the process that has
    /// the data directory. Blocks on the disk.
    ///
    /// # Errors
    /// What would stop it.
    pub fn check(options: &Options) -> Result<(), AppError> {
        Self::check_config(options)?;
        let Some(data) = &options.data else {
            return Ok(());
        };
        let ca = Ca::open(&data.join(CA_DIRECTORY))?;
        Tokens::open(data, ca.trust_domain().clone(), ca.root_fingerprint())?;
        Ok(())
    }

    /// Loads, opens and binds everything. Nothing is served before [`Bound::run`].
    ///
    /// Blocks shortly on the disk. Needs a tokio runtime.
    ///
    /// # Errors
    /// The first thing that stops it from serving. Errors in the documents do not.
    pub async fn bind(options: Options) -> Result<Bound, AppError> {
        Self::bind_with(options, Sockets::default()).await
    }

    /// As [`Self::bind`], but listens on the given sockets where they are those asked for.
    ///
    /// # Errors
    /// As there; also when there is no use for a socket of the service manager.
    pub async fn bind_with(options: Options, mut sockets: Sockets) -> Result<Bound, AppError> {
        let lock = lock(&options).await?;
        let registrations = match &options.data {
            Some(data) => Registrations::open(data),
            None => Registrations::default(),
        };
        let mut source = FileSource::new(&options.config)
            .with_registrations(registrations.clone())
            .locking(lock.clone());
        if let Some(data) = &options.data {
            source = source.keeping(data);
        }
        readable(&options, &source)?;
        let load = source.load();
        let trust_domain = load.mesh.trust_domain().clone();
        let now = SystemTime::now();
        let ca = Arc::new(open_ca(&options, &trust_domain, now)?);
        let fingerprint = ca.root_fingerprint();
        let tokens = match &options.data {
            Some(data) => Tokens::open(data, trust_domain.clone(), fingerprint)?,
            None => Tokens::in_memory(trust_domain.clone(), fingerprint),
        };
        tokens.sweep(now)?;
        let own = SpiffeId::workload(&trust_domain, CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT)?;
        let certificate = OwnCertificate::issue(&ca, &own)?;
        let activated = sockets.is_activated();
        let listener = listen(&mut sockets, GRPC, options.listen, "--listen").await?;
        let admin_listener = listen(&mut sockets, ADMIN, options.admin, "--admin").await?;
        match sockets.unused() {
            Some(unused) if activated => return Err(AppError::Unused(unused)),
            Some(unused) => tracing::info!(unused, "nothing listens there any more"),
            None => {}
        }
        let local = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
        let root_pem = ca.bundle().to_pem(&trust_domain);
        let clients = Clients::default();
        let metrics = Arc::new(Metrics::new(clients.clone(), registrations.clone()));
        let draining = options.data.as_deref().map(load_draining);
        let draining = draining.unwrap_or_default();
        let snapshots = Snapshots::new(load.mesh.clone(), &root_pem, draining);
        let configuration = Configuration::new(
            snapshots,
            metrics.clone(),
            trust_domain,
            registrations.clone(),
        );
        configuration.take(load);
        Ok(Bound {
            address: local(&listener, options.listen),
            admin_address: local(&admin_listener, options.admin),
            fingerprint,
            root_pem,
            tokens: tokens.clone(),
            serving: Serving {
                listener,
                admin_listener,
                source,
                ca,
                tokens,
                own,
                certificate,
                clients,
                registrations,
                metrics,
                configuration,
                data: options.data,
                lock,
                activated,
                stall_deadline: options.stall_deadline,
                drain_deadline: options.drain_deadline,
            },
        })
    }
}

/// A control plane that has its ports, and waits to be run.
pub struct Bound {
    /// Where sidecars connect.
    pub address: SocketAddr,
    /// Where the admin pages are.
    pub admin_address: SocketAddr,
    /// The SHA-256 of the root certificate's DER.
    pub fingerprint: [u8; 32],
    /// The trust bundle.
    pub root_pem: String,
    /// Makes join tokens; may be cloned and used while the control plane runs.
    pub tokens: Tokens,
    serving: Serving,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound")
            .field("address", &self.address)
            .field("admin_address", &self.admin_address)
            .finish_non_exhaustive()
    }
}

impl Bound {
    /// The trust domain of the mesh.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        self.serving.own.trust_domain()
    }

    /// What is wrong with the configuration at this moment.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        self.serving.configuration.diagnostics.read().clone()
    }

    /// The sockets that it listens on, to be passed on to another process.
    ///
    /// # Errors
    /// When this process may open no more files.
    pub fn sockets(&self) -> io::Result<Sockets> {
        let Serving {
            listener,
            admin_listener,
            activated,
            ..
        } = &self.serving;
        Sockets::shared([(GRPC, listener), (ADMIN, admin_listener)], *activated)
    }

    /// Serves until `shutdown` ends; then tells every sidecar and waits up to 5 s for the
    /// streams to end. Dropping it ends everything at once.
    ///
    /// # Errors
    /// When serving fails.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AppError> {
        self.serving.run(shutdown).await
    }
}

struct Serving {
    listener: TcpListener,
    admin_listener: TcpListener,
    source: FileSource,
    ca: Arc<Ca>,
    tokens: Tokens,
    own: SpiffeId,
    certificate: Arc<OwnCertificate>,
    clients: Clients,
    registrations: Registrations,
    metrics: Arc<Metrics>,
    configuration: Configuration,
    data: Option<PathBuf>,
    lock: Option<DataLock>,
    /// The sockets are the service manager's.
    activated: bool,
    stall_deadline: Duration,
    drain_deadline: Duration,
}

impl Serving {
    async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AppError> {
        let (stop, stopped) = watch::channel(false);
        // The tasks of tonic's connections outlive its future: this ends them with ours.
        let connections = CutOnDrop(Connections::default());
        let (accepted, incoming) = mpsc::channel(ACCEPT_QUEUE);
        let grpc = self.server(ReceiverStream::new(incoming), stopped.clone());
        let admin = self.admin(stopped).serve(self.admin_listener);
        let accept = connection::accept(
            self.listener,
            acceptor(&self.ca, self.certificate.clone()),
            connections.0.clone(),
            self.metrics.clone(),
            accepted,
        );
        let configuration = self.configuration;
        let snapshots = configuration.snapshots.clone();
        let registrations = self.registrations;
        let presence = self.data.map(|data| {
            let (lock, registrations) = (self.lock.clone(), registrations.clone());
            Arc::new(Presence::new(data, snapshots, registrations, lock))
        });
        let remember = presence::remember(presence.clone());
        let expire = presence::expire(registrations);
        let follow = self.source.watch(move |load| configuration.take(load));
        let maintain = maintain(self.ca, self.own, self.certificate, self.tokens, self.lock);
        tokio::pin!(grpc, admin);
        tokio::select! {
            () = shutdown => {}
            result = &mut grpc => return result,
            () = &mut admin => {}
            () = accept => {}
            () = follow => {}
            () = maintain => {}
            () = remember => {}
            () = expire => {}
        }
        tracing::info!("shutting down");
        stop.send_replace(true);
        let deadline = tokio::time::sleep(GRACE);
        let result = tokio::select! {
            result = &mut grpc => result,
            () = &mut admin => Ok(()),
            () = deadline => Ok(()),
        };
        if let Some(presence) = presence {
            presence.store();
        }
        result
    }

    fn server(
        &self,
        incoming: ReceiverStream<Connection>,
        mut stopped: watch::Receiver<bool>,
    ) -> impl Future<Output = Result<(), AppError>> + use<> {
        let ads = Ads {
            snapshots: self.configuration.snapshots.clone(),
            clients: self.clients.clone(),
            registrations: self.registrations.clone(),
            metrics: self.metrics.clone(),
            shutdown: stopped.clone(),
            stall_deadline: self.stall_deadline,
            drain_deadline: self.drain_deadline,
        };
        let identity = Identity {
            ca: self.ca.clone(),
            tokens: self.tokens.clone(),
            own: self.own.clone(),
            metrics: self.metrics.clone(),
        };
        let ads = AggregatedDiscoveryServiceServer::new(ads)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(usize::MAX);
        let identity = IstioCertificateServiceServer::new(identity)
            .max_decoding_message_size(MAX_SIGNING_REQUEST_BYTES);
        let router = Server::builder()
            .layer(MapRequestLayer::new(watch_ending))
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .add_service(ads)
            .add_service(identity);
        let incoming = incoming.map(Ok::<_, io::Error>);
        async move {
            let stop = async move {
                // Fails when the sender is gone: that is a stop too.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            router.serve_with_incoming_shutdown(incoming, stop).await?;
            Ok(())
        }
    }

    fn admin(&self, shutdown: watch::Receiver<bool>) -> Admin {
        Admin {
            snapshots: self.configuration.snapshots.clone(),
            clients: self.clients.clone(),
            registrations: self.registrations.clone(),
            metrics: self.metrics.clone(),
            diagnostics: self.configuration.diagnostics.clone(),
            trust_domain: self.own.trust_domain().clone(),
            fingerprint: self.ca.root_fingerprint(),
            shutdown,
        }
    }
}

struct CutOnDrop(Connections);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.cut_all();
    }
}

fn open_ca(options: &Options, trust_domain: &TrustDomain, now: SystemTime) -> Result<Ca, CaError> {
    let Some(data) = &options.data else {
        return Ok(Ca::create(trust_domain, now));
    };
    let directory = data.join(CA_DIRECTORY);
    let (ca, created) = Ca::open_or_create(&directory, trust_domain, now)?;
    if created {
        tracing::info!(directory = %directory.display(), %trust_domain, "made a certificate authority");
    }
    Ok(ca)
}

async fn listen(
    sockets: &mut Sockets,
    name: &str,
    address: SocketAddr,
    flag: &'static str,
) -> Result<TcpListener, AppError> {
    let listener = match sockets.take(name, address) {
        Ok(Some(listener)) => Ok(listener),
        Ok(None) => TcpListener::bind(address).await,
        Err(error) => Err(error),
    };
    listener.map_err(|source| AppError::Listen {
        address,
        flag,
        source,
    })
}

async fn lock(options: &Options) -> Result<Option<DataLock>, AppError> {
    let Some(data) = &options.data else {
        return Ok(None);
    };
    match DataLock::take(data).await {
        Ok(lock) => Ok(Some(lock)),
        Err(source) => Err(AppError::Data {
            path: data.clone(),
            source,
        }),
    }
}

/// Fails if the configuration cannot be read and nothing is known of it.
fn readable(options: &Options, source: &FileSource) -> Result<(), AppError> {
    match std::fs::read_dir(&options.config) {
        Err(error) if source.is_empty() => Err(AppError::Config {
            path: options.config.clone(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// TLS 1.3, HTTP/2; a client certificate is verified if there is one. The server's chain
/// ends with the root: a client that knows only its fingerprint can check it.
fn acceptor(ca: &Ca, certificate: Arc<OwnCertificate>) -> TlsAcceptor {
    let verifier = SvidVerifier::new(Arc::new(ca.bundle()), Arc::new(SystemClock)).mandatory(false);
    TlsAcceptor::from(Arc::new(tls::server_config(
        Arc::new(verifier),
        certificate,
        &[b"h2"],
    )))
}

/// Where loads of the configuration go.
struct Configuration {
    snapshots: Snapshots,
    metrics: Arc<Metrics>,
    diagnostics: Arc<RwLock<Vec<Diagnostic>>>,
    trust_domain: TrustDomain,
    registrations: Registrations,
}

impl Configuration {
    fn new(
        snapshots: Snapshots,
        metrics: Arc<Metrics>,
        trust_domain: TrustDomain,
        registrations: Registrations,
    ) -> Self {
        Self {
            snapshots,
            metrics,
            diagnostics: Arc::default(),
            trust_domain,
            registrations,
        }
    }

    /// Puts a load in force and logs what is newly wrong with it.
    fn take(&self, load: Load) {
        let mut diagnostics = load.diagnostics;
        let asked = load.mesh.trust_domain();
        if *asked != self.trust_domain {
            diagnostics.push(self.other_trust_domain(asked));
        } else {
            if self.snapshots.publish(load.mesh) {
                let generation = self.snapshots.current().generation();
                tracing::info!(generation, "new configuration");
            }
            self.registrations.put_in_force(load.registered);
        }
        self.metrics
            .generation
            .set(self.snapshots.current().generation().cast_signed());
        let of = |level| diagnostics.iter().filter(|d| d.level == level).count();
        self.metrics.errors.set(count(of(Level::Error)));
        self.metrics.warnings.set(count(of(Level::Warning)));
        let current = self.snapshots.current();
        let mesh = current.mesh();
        self.metrics.services.set(count(mesh.services().count()));
        self.metrics.workloads.set(count(mesh.workloads().count()));
        self.metrics.routes.set(count(mesh.route_count()));
        log_news(&self.diagnostics.read(), &diagnostics);
        *self.diagnostics.write() = diagnostics;
    }

    /// Every certificate of the mesh is of the authority's trust domain: another one would
    /// make all of them worthless at once.
    fn other_trust_domain(&self, asked: &TrustDomain) -> Diagnostic {
        Diagnostic {
            level: Level::Error,
            file: String::new(),
            line: 0,
            column: 0,
            kind: "MeshConfig".to_owned(),
            name: String::new(),
            field: "spec.trustDomain".to_owned(),
            message: format!(
                "is `{asked}`, but the certificate authority is of `{}`",
                self.trust_domain
            ),
            help: "set it back, or start a control plane with another --data directory".to_owned(),
            in_force: Some("the whole configuration before this change"),
        }
    }
}

/// A number of things as a gauge wants it.
fn count(things: usize) -> i64 {
    i64::try_from(things).unwrap_or(i64::MAX)
}

/// Logs each diagnostic once: when it appears, and when the last one is gone.
fn log_news(before: &[Diagnostic], now: &[Diagnostic]) {
    let known: BTreeSet<String> = before.iter().map(Diagnostic::to_string).collect();
    for diagnostic in now {
        let text = diagnostic.to_string();
        if known.contains(&text) {
            continue;
        }
        match diagnostic.level {
            Level::Error => tracing::error!("{text}"),
            Level::Warning => tracing::warn!("{text}"),
        }
    }
    if now.is_empty() && !before.is_empty() {
        tracing::info!("the configuration has no problems any more");
    }
}
