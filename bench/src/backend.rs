//! The hidden subcommand `backend`: the application behind every proxy. HTTP/1.1 and HTTP/2
//! without TLS on one port: 100 bytes on any path, a store of accounts under `/accounts/`,
//! the caller's address at `/peer`, `n` bytes at `/size/n`, the request's own body at `/echo`,
//! nothing at all at `/stall`, a WebSocket echo, a gRPC echo for all methods (unary and streaming are the same to it).
//! With `--tcp` also a line protocol in which the server speaks first.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::accept::{self, Protocol};
use crate::error::Result;
use crate::ws;

/// The first line of the TCP protocol; the name of the backend follows.
pub(crate) const GREETING: &str = "220 bench queue ";

/// What to serve, and where.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Address of HTTP.
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// Address of the line protocol.
    #[arg(long)]
    pub(crate) tcp: Option<SocketAddr>,
    /// What the answers call it (`x-version`).
    #[arg(long, default_value = "v1")]
    pub(crate) name: String,
}

/// The longest body at `/size/`.
const LONGEST: usize = 1 << 30;

/// What the kernel keeps of answers that nobody reads, on each connection. By default it would be
/// megabytes on loopback, and thousands of such connections are what some checks are about.
const UNSENT: u32 = 64 << 10;

type Body = Either<Full<Bytes>, BoxBody<Bytes, hyper::Error>>;

#[derive(Debug)]
struct App {
    version: HeaderValue,
    accounts: parking_lot::Mutex<BTreeMap<String, Bytes>>,
}

/// Serves until killed.
pub(crate) async fn run(options: Options) -> Result<()> {
    let version = HeaderValue::from_str(&options.name)
        .map_err(|_| crate::error::Error::new("--name: not a header value"))?;
    let app = Arc::new(App {
        version,
        accounts: parking_lot::Mutex::default(),
    });
    let http = accept::bind(options.listen).await?;
    if let Some(address) = options.tcp {
        tokio::spawn(serve_lines(accept::bind(address).await?, options.name));
    }
    loop {
        let stream = accept::next(&http).await;
        tokio::spawn(serve_http(stream, app.clone()));
    }
}

async fn serve_http(stream: TcpStream, app: Arc<App>) {
    // It fails only on a connection that is gone already.
    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
    let Some(protocol) = accept::protocol(&stream).await else {
        return;
    };
    let Ok(peer) = stream.peer_addr() else {
        return;
    };
    let service = service_fn(move |request| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(answer(&app, peer, request).await) }
    });
    let io = TokioIo::new(stream);
    // How a connection ends is the business of whoever is measured.
    let _ = match protocol {
        Protocol::Http1 => {
            http1::Builder::new()
                .serve_connection(io, service)
                .with_upgrades()
                .await
        }
        Protocol::Http2 => {
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(1000)
                .serve_connection(io, service)
                .await
        }
    };
}

async fn answer(app: &App, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let mut response = if is_grpc(request.headers()) {
        grpc_echo(request.into_body())
    } else if let Some(id) = request.uri().path().strip_prefix("/accounts/") {
        let id = id.to_owned();
        account(app, &id, request).await
    } else if request
        .headers()
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
    {
        websocket(request)
    } else if request.uri().path() == "/echo" {
        echo(request)
    } else if let Some(length) = request.uri().path().strip_prefix("/size/") {
        let length = length.parse().ok().filter(|length| *length <= LONGEST);
        length.map_or_else(
            || full(StatusCode::BAD_REQUEST, "a size up to 1 GiB\n"),
            zeros,
        )
    } else if request.uri().path() == "/stall" {
        // The caller is held, and what it still sends is not read.
        std::future::pending().await
    } else if request.uri().path() == "/peer" {
        full(StatusCode::OK, peer.ip().to_canonical().to_string())
    } else {
        full(StatusCode::OK, Bytes::from_static(&[b'x'; 100]))
    };
    response
        .headers_mut()
        .insert("x-version", app.version.clone());
    if head {
        // Its length stays.
        *response.body_mut() = Either::Left(Full::default());
    }
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn full(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response
}

/// The body and its trailers come back as they come, with the field `x-nonce`.
fn echo(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(Either::Right(body.boxed()));
    for name in ["x-nonce", "trailer"] {
        if let Some(value) = head.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// A body of so many zeros, without that much memory.
fn zeros(length: usize) -> Response<Body> {
    const PIECE: &[u8] = &[0; 64 << 10];
    let rest = move |left: usize| {
        let piece = Bytes::from_static(&PIECE[..left.min(PIECE.len())]);
        let left = left - piece.len();
        async move { (!piece.is_empty()).then(|| (Ok(Frame::data(piece)), left)) }
    };
    let body = StreamBody::new(stream::unfold(length, rest));
    let mut response = Response::new(Either::Right(body.boxed()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// Every message comes back as it is, when it comes; the status follows at the end.
fn grpc_echo(body: Incoming) -> Response<Body> {
    let trailers = async {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Some(Ok(trailers))
    };
    let mut response = Response::new(Either::Right(
        body.with_trailers(Box::pin(trailers)).boxed(),
    ));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

/// POST creates (409 if it exists), PUT writes, GET reads, DELETE removes.
async fn account(app: &App, id: &str, request: Request<Incoming>) -> Response<Body> {
    let method = request.method().clone();
    let Ok(body) = request.into_body().collect().await else {
        return full(StatusCode::BAD_REQUEST, "the body is incomplete\n");
    };
    let body = body.to_bytes();
    let mut accounts = app.accounts.lock();
    match method {
        Method::GET => match accounts.get(id) {
            Some(account) => full(StatusCode::OK, account.clone()),
            None => full(StatusCode::NOT_FOUND, "no such account\n"),
        },
        Method::POST if accounts.contains_key(id) => {
            full(StatusCode::CONFLICT, "the account exists\n")
        }
        Method::POST => {
            accounts.insert(id.to_owned(), body.clone());
            full(StatusCode::CREATED, body)
        }
        Method::PUT => {
            accounts.insert(id.to_owned(), body.clone());
            full(StatusCode::OK, body)
        }
        Method::DELETE => match accounts.remove(id) {
            Some(_) => full(StatusCode::NO_CONTENT, ""),
            None => full(StatusCode::NOT_FOUND, "no such account\n"),
        },
        _ => full(StatusCode::METHOD_NOT_ALLOWED, ""),
    }
}

fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request
        .headers()
        .get("sec-websocket-key")
        .and_then(|key| key.to_str().ok())
    else {
        return full(StatusCode::BAD_REQUEST, "no sec-websocket-key\n");
    };
    let accept = ws::accept(key);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // The other side may leave at any time.
            let _ = websocket_echo(TokioIo::new(upgraded)).await;
        }
    });
    let mut response = full(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(
        "sec-websocket-accept",
        HeaderValue::from_str(&accept).expect("base64 is a header value"),
    );
    response
}

async fn websocket_echo(mut io: TokioIo<hyper::upgrade::Upgraded>) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        while let Some(frame) = ws::decode(&mut buffer).map_err(std::io::Error::other)? {
            io.write_all(&ws::encode(&frame, None)).await?;
            if frame.opcode == ws::CLOSE {
                return io.shutdown().await;
            }
        }
        if io.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

async fn serve_lines(listener: TcpListener, name: String) {
    loop {
        let stream = accept::next(&listener).await;
        let name = name.clone();
        tokio::spawn(async move {
            // The other side may leave at any time.
            let _ = echo_lines(stream, &name).await;
        });
    }
}

async fn echo_lines(stream: TcpStream, name: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream
        .write_all(format!("{GREETING}{name}\r\n").as_bytes())
        .await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        stream.write_all(format!("250 {line}").as_bytes()).await?;
        line.clear();
    }
    stream.shutdown().await
}
