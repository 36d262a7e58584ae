//! The admin interfaces: one read-only for everybody, one complete for this machine only.

mod ask;
mod checks;
mod dump;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};
use weft_api::Kind;

pub use ask::post;
pub use checks::Checks;

use crate::{drain::Phase, worker::Shared, xds::Farewell};

/// What the configuration task knows and the admin interface tells. Shared: atomics and
/// short locks, none on the request path.
#[derive(Debug)]
pub struct Status {
    /// `namespace/name`.
    pub workload: String,
    /// How many processes have served this workload without a gap, this one included.
    pub generation: u32,
    /// When this process started.
    pub started: SystemTime,
    /// What of the application may be checked.
    pub checks: Checks,
    /// When the configuration from disk was saved, while there was no control plane yet.
    pub from_disk: Mutex<Option<SystemTime>>,
    /// How the sidecar has parted from the control plane, if it has.
    pub left: watch::Sender<Option<Farewell>>,
    /// Another process serves the workload now; the state directory is its.
    pub replaced: AtomicBool,
    /// Whether clients are to be asked to go elsewhere.
    pub drain: watch::Sender<bool>,
    /// The stream to the control plane is open.
    pub connected: AtomicBool,
    /// Why it is not.
    pub disconnected: Mutex<String>,
    /// Rejected resources, and why, until a good version comes or they are gone.
    pub rejected: Mutex<BTreeMap<(Kind, Arc<str>), String>>,
    /// Listeners that could not be opened, by name.
    pub listeners: Mutex<BTreeMap<Arc<str>, String>>,
    /// Listeners whose clusters or routes have not arrived.
    pub waiting: Mutex<Vec<Arc<str>>>,
    /// Listeners that accept connections.
    pub bound: Mutex<BTreeMap<Arc<str>, std::net::SocketAddr>>,
    /// Somebody asks for a shutdown.
    pub shutdown: Notify,
}

impl Status {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(workload: String, generation: u32, checks: Checks) -> Self {
        Self {
            workload,
            generation,
            started: SystemTime::now(),
            checks,
            from_disk: Mutex::default(),
            left: watch::Sender::new(None),
            replaced: AtomicBool::new(false),
            drain: watch::Sender::new(false),
            connected: AtomicBool::new(false),
            disconnected: Mutex::default(),
            rejected: Mutex::default(),
            listeners: Mutex::default(),
            waiting: Mutex::default(),
            bound: Mutex::default(),
            shutdown: Notify::new(),
        }
    }
}

/// Which interface a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everybody may read.
    Public,
    /// This machine only.
    Full,
}

#[derive(Debug)]
struct Admin {
    shared: Arc<Shared>,
    status: Arc<Status>,
    scope: Scope,
}

const CONNECTIONS: usize = 128;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one interface for ever.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, status: Arc<Status>, scope: Scope) {
    let admin = Arc::new(Admin {
        shared,
        status,
        scope,
    });
    let limit = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = limit.clone().acquire_owned().await else {
            return;
        };
        let Ok((tcp, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |req| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(admin.answer(&req).await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(tcp), service);
            if let Err(error) = serving.await {
                tracing::debug!(%error, "admin connection ended");
            }
        });
    }
}

type Answer = Response<Full<Bytes>>;

/// The paths of both interfaces, for the index: path, method, scope, what it tells.
const PATHS: &[(&str, Method, Scope, &str)] = &[
    ("/live", Method::GET, Scope::Public, "the process is alive"),
    (
        "/ready",
        Method::GET,
        Scope::Public,
        "identity, configuration and listeners are in place",
    ),
    ("/healthz/ready", Method::GET, Scope::Public, "the same"),
    ("/metrics", Method::GET, Scope::Public, "Prometheus metrics"),
    ("/stats/prometheus", Method::GET, Scope::Public, "the same"),
    (
        "/version",
        Method::GET,
        Scope::Public,
        "the version, and which process this is",
    ),
    (
        "/probe/tcp/<port>",
        Method::GET,
        Scope::Public,
        "whether the application listens on a port of WEFT_PROXY_TCP_PROBES",
    ),
    (
        "/probe/grpc/<port>[/<service>]",
        Method::GET,
        Scope::Public,
        "the application's health by gRPC, of WEFT_PROXY_GRPC_PROBES",
    ),
    (
        "/server_info",
        Method::GET,
        Scope::Full,
        "this process: version, generation, start, connections",
    ),
    (
        "/config_dump",
        Method::GET,
        Scope::Full,
        "the configuration in force",
    ),
    (
        "/clusters",
        Method::GET,
        Scope::Full,
        "clusters and endpoints with their load",
    ),
    ("/listeners", Method::GET, Scope::Full, "listening sockets"),
    (
        "/certs",
        Method::GET,
        Scope::Full,
        "the identity of this workload",
    ),
    (
        "/drain",
        Method::POST,
        Scope::Full,
        "ask clients to go elsewhere; does not exit",
    ),
    ("/undrain", Method::POST, Scope::Full, "take /drain back"),
    ("/drain_listeners", Method::POST, Scope::Full, "the same"),
    ("/shutdown", Method::POST, Scope::Full, "drain and exit"),
    ("/quitquitquit", Method::POST, Scope::Full, "the same"),
];

impl Admin {
    async fn answer(&self, req: &Request<Incoming>) -> Answer {
        let path = req.uri().path();
        if path == "/" {
            return text(StatusCode::OK, &self.index());
        }
        let known = PATHS.iter().find(|(known, _, scope, _)| {
            matches(known, path) && (self.scope == Scope::Full || *scope == Scope::Public)
        });
        let Some((_, method, ..)) = known else {
            return text(StatusCode::NOT_FOUND, "no such page; / lists them\n");
        };
        let head_of_get = req.method() == Method::HEAD && method == Method::GET;
        if req.method() != method && !head_of_get {
            let hint = format!("use {method}: curl -X {method} http://<address>{path}\n");
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, &hint);
            if let Ok(allow) = method.as_str().parse() {
                answer.headers_mut().insert(header::ALLOW, allow);
            }
            return answer;
        }
        self.page(path).await
    }

    async fn page(&self, path: &str) -> Answer {
        match path {
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" | "/healthz/ready" => self.ready(),
            "/metrics" | "/stats/prometheus" => self.metrics().await,
            "/version" => json(&dump::version(&self.status)),
            "/config_dump" => json(&dump::config(&self.shared, &self.status)),
            "/clusters" => json(&dump::clusters(&self.shared)),
            "/listeners" => json(&dump::listeners(&self.status)),
            "/certs" => json(&dump::certs(&self.shared)),
            "/server_info" => json(&dump::server_info(&self.shared, &self.status)),
            "/drain" | "/drain_listeners" => {
                self.status.drain.send_replace(true);
                text(StatusCode::OK, "draining\n")
            }
            "/undrain" if self.shared.drain.phase() >= Phase::Closing => text(
                StatusCode::CONFLICT,
                "too late: connections are being closed\n",
            ),
            "/undrain" => {
                self.status.drain.send_replace(false);
                text(StatusCode::OK, "serving\n")
            }
            path if path.starts_with(checks::PREFIX) => {
                match self.status.checks.run(&path[checks::PREFIX.len()..]).await {
                    Ok(()) => text(StatusCode::OK, "ok\n"),
                    Err(failed) => text(failed.status(), &format!("{failed}\n")),
                }
            }
            _ => {
                self.status.shutdown.notify_one();
                text(StatusCode::OK, "shutting down\n")
            }
        }
    }

    fn ready(&self) -> Answer {
        match readiness(&self.shared, &self.status) {
            Ok(()) => text(StatusCode::OK, &self.ready_text()),
            Err(why) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                &format!("not ready: {why}\n"),
            ),
        }
    }

    fn ready_text(&self) -> String {
        match *self.status.from_disk.lock() {
            Some(saved) => {
                let age = saved.elapsed().unwrap_or_default().as_secs();
                format!("ready\nconfiguration from disk, saved {age} s ago; no control plane yet\n")
            }
            None => "ready\n".to_owned(),
        }
    }

    async fn metrics(&self) -> Answer {
        let metrics = self.shared.metrics.clone();
        let rendered = tokio::task::spawn_blocking(move || metrics.render()).await;
        let mut answer = text(StatusCode::OK, &rendered.unwrap_or_default());
        answer.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        answer
    }

    fn index(&self) -> String {
        PATHS
            .iter()
            .filter(|(_, _, scope, _)| self.scope == Scope::Full || *scope == Scope::Public)
            .map(|(path, method, _, what)| format!("{method:<5} {path:<30} {what}\n"))
            .collect()
    }
}

/// Whether the sidecar can serve, and if not, why.
///
/// # Errors
/// With what is missing.
pub fn readiness(shared: &Shared, status: &Status) -> Result<(), String> {
    if shared.drain.phase() > Phase::Serving {
        return Err("shutting down".to_owned());
    }
    if shared.identity.state().is_none() {
        return Err(
            "no certificate yet; is the control plane reachable and the join token valid?"
                .to_owned(),
        );
    }
    if let Some((name, error)) = status.listeners.lock().iter().next() {
        return Err(format!("listener {name}: {error}"));
    }
    let snapshot = shared.snapshots.load_full();
    let in_force = |name: &str| snapshot.listeners.contains_key(name);
    if let Some(why) = never_good(&status.rejected.lock(), in_force) {
        return Err(why);
    }
    if status.bound.lock().is_empty() {
        let why = if status.connected.load(Ordering::Relaxed) {
            "the control plane has no listeners for this workload; is there a Workload document with this name?".to_owned()
        } else {
            format!("no configuration yet: {}", status.disconnected.lock())
        };
        return Err(why);
    }
    if let Some(name) = status.waiting.lock().first() {
        return Err(format!(
            "listener {name}: what it refers to has not arrived"
        ));
    }
    Ok(())
}

/// Why the first listener that has no version in force was rejected.
fn never_good(
    rejected: &BTreeMap<(Kind, Arc<str>), String>,
    in_force: impl Fn(&str) -> bool,
) -> Option<String> {
    let mut listeners = rejected
        .iter()
        .filter(|((kind, _), _)| *kind == Kind::Listener);
    let (_, why) = listeners.find(|((_, name), _)| !in_force(name))?;
    let first = why.lines().next().unwrap_or_default();
    Some(format!("a listener was rejected: {first}"))
}

/// Whether a path is the one of a page; those of probes go on after their prefix.
fn matches(known: &str, path: &str) -> bool {
    match known.split_once('<') {
        Some((prefix, _)) => path.starts_with(prefix),
        None => known == path,
    }
}

fn text(status: StatusCode, body: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    answer
}

fn json(value: &serde_json::Value) -> Answer {
    let mut answer = text(StatusCode::OK, &format!("{value:#}\n"));
    let kind = header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_api::Kind;

    use super::never_good;

    #[test]
    fn a_listener_that_was_never_good_is_missed() {
        // (rejected, in force, what is missed)
        for (rejected, in_force, expected) in [
            (vec![], vec![], None),
            (vec![(Kind::Listener, "outbound")], vec!["outbound"], None),
            (
                vec![(Kind::Listener, "outbound")],
                vec!["inbound"],
                Some("outbound"),
            ),
            (
                vec![(Kind::Listener, "inbound"), (Kind::Listener, "outbound")],
                vec!["inbound"],
                Some("outbound"),
            ),
            (vec![(Kind::Cluster, "outbound")], vec![], None),
        ] {
            let all: BTreeMap<_, _> = rejected
                .iter()
                .map(|(kind, name)| ((*kind, (*name).into()), format!("{name}: x: no\n{name}: y")))
                .collect();
            let found = never_good(&all, |name| in_force.contains(&name));
            let expected = expected.map(|name| format!("a listener was rejected: {name}: x: no"));
            assert_eq!(found, expected, "{rejected:?} {in_force:?}");
        }
    }
}
