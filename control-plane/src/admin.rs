//! The admin server: metrics, health and a look inside. Read only, HTTP/1.1.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use weft_certs::TrustDomain;

use crate::cache::Snapshots;
use crate::clients::Clients;
use crate::config::Diagnostic;
use crate::hex;
use crate::metrics::Metrics;
use crate::registration::Registrations;

/// How many admin connections may be open; further ones wait.
const MAX_CONNECTIONS: usize = 100;
/// How long a client may take to send a request's head.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// What the admin pages show. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) snapshots: Snapshots,
    pub(crate) clients: Clients,
    pub(crate) registrations: Registrations,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) diagnostics: Arc<RwLock<Vec<Diagnostic>>>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) shutdown: watch::Receiver<bool>,
}

impl Admin {
    /// Serves until dropped.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            while connections.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let admin = self.clone();
            connections.spawn(async move {
                let service = service_fn(|request| {
                    let admin = admin.clone();
                    async move { Ok::<_, Infallible>(admin.answer(&request)) }
                });
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_DEADLINE)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "an admin connection failed");
                }
                drop(slot);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
            response
                .headers_mut()
                .insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/metrics" => reply(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                self.metrics.render(),
            ),
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" if *self.shutdown.borrow() => {
                text(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
            }
            "/ready" => text(StatusCode::OK, "ready\n"),
            "/version" => page(&json!({
                "name": env!("CARGO_PKG_NAME"),
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
            })),
            "/debug/config" => page(&self.config()),
            "/debug/clients" => page(&self.clients.to_json()),
            "/debug/registrations" => page(&self.registrations.to_json()),
            "/" => text(
                StatusCode::OK,
                "/metrics\n/live\n/ready\n/version\n/debug/config\n/debug/clients\n/debug/registrations\n",
            ),
            _ => text(StatusCode::NOT_FOUND, "no such page; / lists them\n"),
        }
    }

    fn config(&self) -> Value {
        let snapshot = self.snapshots.current();
        let draining = snapshot.draining().iter();
        let draining: Vec<String> = draining.map(|(ns, name)| format!("{ns}/{name}")).collect();
        let mesh = snapshot.mesh();
        json!({
            "generation": snapshot.generation(),
            "trust_domain": self.trust_domain.as_str(),
            "root_sha256": hex(&self.fingerprint),
            "services": mesh.services().count(),
            "workloads": mesh.workloads().count(),
            "routes": mesh.route_count(),
            "draining": draining,
            "diagnostics": *self.diagnostics.read(),
        })
    }
}

fn page(value: &Value) -> Response<Full<Bytes>> {
    reply(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body.to_owned())
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let value = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
