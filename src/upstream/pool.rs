//! HOT. The connections to one endpoint: a stack of idle HTTP/1.1 connections, and HTTP/2
//! connections shared by their streams. A pool lives in its endpoint, so the connections of
//! a removed endpoint end with their last stream.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::connect::{Connector, Dest};
use crate::{
    body::Body,
    config::AppProtocol,
    error::{Error, Reason},
    io::Io,
    wire::{Expected, Frames, Guarded, Responses, Role, Signals},
};

/// Idle HTTP/1.1 connections that are kept; more are closed when they come back.
const MAX_IDLE: usize = 1024;
/// Shorter than the usual keep-alive of servers, so that we close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// Streams before the server has said how many it takes; one that takes fewer would refuse
/// the rest.
const FIRST_STREAMS: usize = 1;
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections of one worker to one endpoint.
#[derive(Debug, Default)]
pub struct Pool {
    closed: AtomicBool,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Arc<Shared>>>,
    /// Held while an HTTP/2 connection is opened, so that a burst opens one.
    opening: tokio::sync::Mutex<()>,
    /// Failed attempts to open an HTTP/2 connection.
    failures: AtomicU64,
    last_failure: Mutex<Option<Error>>,
}

/// An HTTP/1.1 connection, for one request at a time.
#[derive(Debug)]
pub struct Http1 {
    pub(super) send: http1::SendRequest<Body>,
    /// What its judge is told of the request.
    pub(super) expected: Arc<Expected>,
}

#[derive(Debug)]
struct Idle {
    connection: Http1,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    send: http2::SendRequest<Body>,
    streams: AtomicU32,
}

/// A connection in use by one request.
#[derive(Debug)]
pub enum Lease {
    /// Exclusive, until the response has ended.
    Http1(Http1),
    /// One stream of a shared connection.
    Http2 {
        /// Counts the stream until it is dropped.
        _stream: StreamGuard,
    },
}

/// Counts one stream of a shared connection until it is dropped.
#[derive(Debug)]
pub struct StreamGuard(Arc<Shared>);

impl StreamGuard {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.streams.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }

    /// A sender for one request.
    pub(super) fn sender(&self) -> http2::SendRequest<Body> {
        self.0.send.clone()
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// An idle HTTP/1.1 connection, the one used last, and for how long it was idle; dead ones
    /// on the way are dropped.
    pub(super) fn take_idle(&self) -> Option<(Http1, Duration)> {
        let mut idle = self.idle.lock();
        while let Some(Idle { connection, since }) = idle.pop() {
            if connection.send.is_ready() {
                return Some((connection, since.elapsed()));
            }
        }
        None
    }

    /// Gives an HTTP/1.1 connection back after its response has ended.
    pub fn give_back(&self, connection: Http1) {
        if connection.send.is_closed() || self.closed.load(Ordering::Relaxed) {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// Opens an HTTP/1.1 connection.
    pub(super) async fn open_http1(connector: &Connector, dest: &Dest) -> Result<Http1, Error> {
        let limits = &connector.limits;
        let io = connector.connect(dest, AppProtocol::Http1).await?;
        let expected = Arc::<Expected>::default();
        let signals = Arc::<Signals>::default();
        let responses = Responses::new(limits.as_ref().into(), expected.clone());
        let io = Guarded::responses(io, responses, signals.clone());
        let mut builder = http1::Builder::new();
        if let Some(fields) = limits.hyper_fields() {
            builder.max_headers(fields);
        }
        let (send, connection) = builder
            .preserve_header_case(true)
            .max_buf_size(limits.http1_buffer())
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| Error::new(Reason::PeerClosed, error.to_string()))?;
        let metrics = connector.metrics.clone();
        tokio::spawn(async move {
            let ended = connection.with_upgrades().await;
            if let Some(rule) = signals.cut() {
                metrics.http_violation("upstream", rule);
            } else if let Err(error) = ended {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        Ok(Http1 { send, expected })
    }

    /// A stream on a shared HTTP/2 connection; opens one if none has room.
    pub(super) async fn http2(
        &self,
        connector: &Connector,
        dest: &Dest,
    ) -> Result<StreamGuard, Error> {
        let most = connector.limits.http2_upstream_streams;
        if let Some(guard) = self.shared_stream(most) {
            return Ok(guard);
        }
        let failures = self.failures.load(Ordering::Relaxed);
        let _opening = self.opening.lock().await;
        if let Some(guard) = self.shared_stream(most) {
            return Ok(guard);
        }
        // Whoever waited while an attempt failed shares its failure: no line of timeouts.
        if self.failures.load(Ordering::Relaxed) != failures
            && let Some(error) = self.last_failure.lock().clone()
        {
            return Err(error);
        }
        match open_http2(connector, dest).await {
            Ok(send) => {
                let shared = Arc::new(Shared {
                    send,
                    streams: AtomicU32::new(0),
                });
                let guard = StreamGuard::new(&shared);
                self.shared.lock().push(shared);
                Ok(guard)
            }
            Err(error) => {
                *self.last_failure.lock() = Some(error.clone());
                self.failures.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    fn shared_stream(&self, most: usize) -> Option<StreamGuard> {
        let mut shared = self.shared.lock();
        shared.retain(|connection| !connection.send.is_closed());
        shared
            .iter()
            .find(|connection| (connection.streams.load(Ordering::Relaxed) as usize) < most)
            .map(StreamGuard::new)
    }

    /// Takes a connection out of use that told us to go away.
    pub(super) fn forget(&self, guard: &StreamGuard) {
        self.shared
            .lock()
            .retain(|connection| !Arc::ptr_eq(connection, &guard.0));
    }

    /// Closes connections that have been idle for too long. Called every few seconds.
    pub fn sweep(&self, now: Instant) {
        self.idle.lock().retain(|idle| {
            !idle.connection.send.is_closed() && now.duration_since(idle.since) < IDLE_TIMEOUT
        });
        self.shared
            .lock()
            .retain(|connection| !connection.send.is_closed());
    }

    /// Closes what is idle now and keeps nothing from here on: the endpoint is leaving.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.idle.lock().clear();
        self.shared.lock().clear();
    }

    /// Undoes [`Self::close`]: the endpoint is back.
    pub fn reopen(&self) {
        self.closed.store(false, Ordering::Relaxed);
    }
}

async fn open_http2(connector: &Connector, dest: &Dest) -> Result<http2::SendRequest<Body>, Error> {
    let limits = &connector.limits;
    let io: Io = connector.connect(dest, AppProtocol::Http2).await?;
    // Sidecars take more streams than we open, and a stream that waited for its turn would
    // be lost when a sidecar that shuts down says so first.
    let first_streams = match dest.tls {
        Some(_) => limits.http2_upstream_streams,
        None => FIRST_STREAMS,
    };
    let signals = Arc::<Signals>::default();
    let frames = Frames::new(Role::Client, limits.as_ref().into());
    let io = Guarded::frames(io, frames, signals.clone());
    let (send, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.http2_connection_window)
        .initial_max_send_streams(first_streams)
        .max_header_list_size(limits.max_head_bytes as u32)
        .max_send_buf_size(limits.send_buffer)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        // Cancelled calls reset streams; too many must not end the connection of others.
        .max_local_error_reset_streams(None)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| Error::new(Reason::PeerProtocolError, error.to_string()))?;
    let metrics = connector.metrics.clone();
    tokio::spawn(async move {
        let ended = connection.await;
        if let Some(rule) = signals.cut() {
            metrics.http_violation("upstream", rule);
        } else if let Err(error) = ended {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(send)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::Pin, sync::Arc, time::Duration};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body::Body as _;
    use hyper::{body::Incoming, server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::{net::TcpListener, time::timeout};

    use super::{Connector, Dest, Lease, Pool};
    use crate::{
        body::Body,
        telemetry::Metrics,
        upstream::{Protocol, send},
    };

    /// A server of bodies of `size` bytes that takes `streams` at one time.
    async fn server(streams: u32, size: usize) -> Dest {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let service = service_fn(move |_: Request<Incoming>| async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let body = Body::Full(Bytes::from(vec![0; size]));
                    Ok::<_, std::convert::Infallible>(Response::new(body))
                });
                let serving = http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(streams)
                    .serve_connection(TokioIo::new(tcp), service);
                tokio::spawn(serving);
            }
        });
        Dest {
            address,
            source: None,
            tls: None,
            timeout: Duration::from_secs(5),
        }
    }

    async fn one(
        connector: &Connector,
        dest: &Dest,
        pool: &Pool,
    ) -> Result<(Response<Incoming>, Lease), crate::error::Error> {
        let mut req = Some(Request::get("http://a/").body(Body::Empty).unwrap());
        send(connector, dest, pool, Protocol::Http2, &mut req).await
    }

    fn connector() -> Connector {
        Connector {
            identity: Arc::default(),
            metrics: Metrics::new(),
            limits: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_burst_keeps_to_the_streams_that_the_server_takes() {
        let dest = server(2, 1).await;
        let (connector, pool) = (Arc::new(connector()), Arc::new(Pool::default()));
        let burst: Vec<_> = (0..30)
            .map(|_| {
                let (connector, pool, dest) = (connector.clone(), pool.clone(), dest.clone());
                tokio::spawn(async move { one(&connector, &dest, &pool).await.map(drop) })
            })
            .collect();
        for request in burst {
            request.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_do_not_stop_the_others() {
        let dest = server(250, 300 * 1024).await;
        let (connector, pool) = (connector(), Pool::default());
        let mut unread = Vec::new();
        for _ in 0..40 {
            unread.push(one(&connector, &dest, &pool).await.unwrap());
        }
        // Their windows are full by then.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (mut response, _lease) = one(&connector, &dest, &pool).await.unwrap();
        let first = poll_fn(|cx| Pin::new(response.body_mut()).poll_frame(cx));
        let first = timeout(Duration::from_secs(5), first).await.unwrap();
        assert!(first.unwrap().unwrap().is_data());
        assert_eq!(pool.shared.lock().len(), 1);
    }
}
