//! Applications: small servers, by connection or by request.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{HeaderName, TRAILER};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::loopback;

/// A body of any kind.
pub(crate) type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// A body of bytes that are known.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(Into::into).boxed_unsync()
}

/// A server that listens until dropped; its connections end with it.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Server {
    /// How many connections have arrived.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves each connection with `serve`.
pub(crate) async fn tcp<F, Fut>(serve: F) -> Server
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(loopback(0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let task = tokio::spawn(async move {
        // Dropped with the task, and the connections with it.
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            connections.spawn(serve(stream));
        }
    });
    Server {
        address,
        accepted,
        task: task.abort_handle(),
    }
}

/// Answers each request, of HTTP/1 and HTTP/2, with `answer`.
pub(crate) async fn http<F, Fut>(answer: F) -> Server
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    tcp(move |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answering = answer(request);
                async move { Ok::<_, Infallible>(answering.await) }
            });
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http1().preserve_header_case(true);
            // A client that goes away is no news.
            let _ = server
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        }
    })
    .await
}

/// Sends each request back: the body and its trailers as they are, each field as
/// `seen-<name>`, and what else there is as `x-...`. The path `/status/<code>` decides the
/// status.
pub(crate) async fn echo(name: &'static str) -> Server {
    http(move |request| async move { echoed(name, request) }).await
}

/// The answer of [`echo`].
pub(crate) fn echoed(name: &str, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let status = parts.uri.path().strip_prefix("/status/");
    let mut response = Response::builder()
        .status(status.unwrap_or("200"))
        .header("x-app", name)
        .header("x-method", parts.method.as_str())
        .header("x-version", format!("{:?}", parts.version))
        .header("x-path", target);
    if let Some(authority) = parts.uri.authority() {
        response = response.header("x-authority", authority.as_str());
    }
    for (field, value) in &parts.headers {
        response = response.header(
            HeaderName::try_from(format!("seen-{field}")).unwrap(),
            value,
        );
        if field == TRAILER {
            response = response.header(TRAILER, value);
        }
    }
    let body = if body.is_end_stream() {
        full("")
    } else {
        body.map_err(Into::into).boxed_unsync()
    };
    response.body(body).unwrap()
}

/// Answers the head of each HTTP/1 request with what `answer` writes; for requests without
/// bodies.
pub(crate) async fn raw(answer: impl Fn(&str) -> String + Clone + Send + Sync + 'static) -> Server {
    tcp(move |mut stream| {
        let answer = answer.clone();
        async move {
            while let Some(head) = head(&mut stream).await {
                let answered = stream.write_all(answer(&head).as_bytes()).await;
                if answered.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Reads the head of a request, byte by byte: what follows is left in the stream.
pub(crate) async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}
