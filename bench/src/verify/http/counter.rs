//! An application that counts: requests that have begun, those at one time, bytes of answers
//! that were taken from it. HTTP/1 and HTTP/2. `/slow` is answered after two seconds, `/stall`
//! never, `/size/n` with `n` bytes, everything else at once. Bodies are read by those that wait,
//! to see their clients leave.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::accept::{self, Protocol};
use crate::error::{Context as _, Result};
use crate::process::free_address;

/// What `/slow` waits.
pub(super) const SLOW: Duration = Duration::from_secs(2);
const SEND_BUFFER: usize = 64 << 10;
const PIECE: &[u8] = &[b'z'; 16 << 10];

/// The counts; those of now go down again.
#[derive(Debug, Default)]
pub(super) struct Counts {
    begun: AtomicU64,
    now: AtomicU64,
    most: AtomicU64,
    given: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Counter {
    address: SocketAddr,
    counts: Arc<Counts>,
    task: AbortHandle,
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Counter {
    pub(super) async fn start() -> Result<Self> {
        let address = free_address()?;
        let listener = accept::bind(address).await?;
        let counts = Arc::<Counts>::default();
        let shared = counts.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let stream = accept::next(&listener).await;
                // What is taken from it is seen here, and not kept by the kernel. If the kernel
                // does not want to, more is taken.
                let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER);
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        Ok(Self {
            address,
            counts,
            task: task.abort_handle(),
        })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that have begun.
    pub(super) fn begun(&self) -> u64 {
        self.counts.begun.load(Ordering::Relaxed)
    }

    /// The most at one time since the last time that this was asked.
    pub(super) fn most(&self) -> u64 {
        let now = self.counts.now.load(Ordering::Relaxed);
        self.counts.most.swap(now, Ordering::Relaxed)
    }

    /// Bytes of answers that were taken.
    pub(super) fn given(&self) -> u64 {
        self.counts.given.load(Ordering::Relaxed)
    }

    /// Waits until nobody waits for an answer, for 10 s at most.
    pub(super) async fn rests(&self) -> Result<()> {
        let rest = async {
            while self.counts.now.load(Ordering::Relaxed) > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let left = tokio::time::timeout(Duration::from_secs(10), rest).await;
        left.context("requests are at the application that nobody waits for")
    }
}

/// One request at the application.
struct Guest(Arc<Counts>);

impl Guest {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.begun.fetch_add(1, Ordering::Relaxed);
        let now = counts.now.fetch_add(1, Ordering::Relaxed) + 1;
        counts.most.fetch_max(now, Ordering::Relaxed);
        Self(counts.clone())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(stream: TcpStream, counts: Arc<Counts>) {
    let Some(protocol) = accept::protocol(&stream).await else {
        return;
    };
    let service = service_fn(move |request| {
        let counts = counts.clone();
        async move { Ok::<_, Infallible>(answer(&counts, request).await) }
    });
    let io = TokioIo::new(stream);
    // How a connection ends is for who is tested to say.
    let _ = match protocol {
        Protocol::Http1 => http1::Builder::new().serve_connection(io, service).await,
        Protocol::Http2 => {
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(1000)
                .serve_connection(io, service)
                .await
        }
    };
}

async fn answer(
    counts: &Arc<Counts>,
    request: Request<Incoming>,
) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let guest = Guest::new(counts);
    let path = request.uri().path().to_owned();
    match &*path {
        "/slow" => stay(request.into_body(), SLOW).await,
        "/stall" => stay(request.into_body(), Duration::MAX).await,
        _ => {}
    }
    let size = path
        .strip_prefix("/size/")
        .and_then(|size| size.parse().ok());
    let Some(size) = size else {
        let body = Full::new(Bytes::from_static(&[b'x'; 100]));
        return Response::new(body.boxed_unsync());
    };
    let rest = move |(left, guest): (usize, Guest)| async move {
        let piece = Bytes::from_static(&PIECE[..left.min(PIECE.len())]);
        if piece.is_empty() {
            return None;
        }
        let left = left - piece.len();
        guest
            .0
            .given
            .fetch_add(piece.len() as u64, Ordering::Relaxed);
        Some((Ok(Frame::data(piece)), (left, guest)))
    };
    let body = StreamBody::new(stream::unfold((size, guest), rest));
    let mut response = Response::new(body.boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    response
}

/// Waits, but not for longer than the client sends its body.
async fn stay(mut body: Incoming, time: Duration) {
    let left = async {
        loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return,
                None => std::future::pending().await,
            }
        }
    };
    // Either way it is over.
    let _ = tokio::time::timeout(time, left).await;
}
