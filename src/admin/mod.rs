//! The admin interfaces: one read-only for everybody, one complete for this machine only.

mod dump;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Notify};

use crate::worker::Shared;

/// What the configuration task knows and the admin interface tells. Shared: atomics and
/// short locks, none on the request path.
#[derive(Debug, Default)]
pub struct Status {
    /// The stream to the control plane is open.
    pub connected: AtomicBool,
    /// Why it is not.
    pub disconnected: Mutex<String>,
    /// Rejected resources by `kind/name`, until a good version comes.
    pub rejected: Mutex<BTreeMap<String, String>>,
    /// Listeners that could not be opened, by name.
    pub listeners: Mutex<BTreeMap<Arc<str>, String>>,
    /// Listeners whose clusters or routes have not arrived.
    pub waiting: Mutex<Vec<Arc<str>>>,
    /// Listeners that accept connections.
    pub bound: Mutex<BTreeMap<Arc<str>, std::net::SocketAddr>>,
    /// Somebody asks for a shutdown.
    pub shutdown: Notify,
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
    ("/version", Method::GET, Scope::Public, "the version"),
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
            *known == path && (self.scope == Scope::Full || *scope == Scope::Public)
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
            "/version" => json(&dump::version()),
            "/config_dump" => json(&dump::config(&self.shared, &self.status)),
            "/clusters" => json(&dump::clusters(&self.shared)),
            "/listeners" => json(&dump::listeners(&self.status)),
            "/certs" => json(&dump::certs(&self.shared)),
            "/drain" | "/drain_listeners" => {
                self.shared.drain.advance(crate::drain::Phase::Draining);
                text(StatusCode::OK, "draining\n")
            }
            _ => {
                self.status.shutdown.notify_one();
                text(StatusCode::OK, "shutting down\n")
            }
        }
    }

    fn ready(&self) -> Answer {
        match readiness(&self.shared, &self.status) {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(why) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                &format!("not ready: {why}\n"),
            ),
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
            .map(|(path, method, _, what)| format!("{method:<5} {path:<20} {what}\n"))
            .collect()
    }
}

/// Whether the sidecar can serve, and if not, why.
///
/// # Errors
/// With what is missing.
pub fn readiness(shared: &Shared, status: &Status) -> Result<(), String> {
    if shared.drain.is_draining() {
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
