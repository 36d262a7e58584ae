//! HOT. One request on one connection. Says exactly whether a request that failed can have
//! reached the application: what was never sent may be sent elsewhere, whatever its method.

use std::convert::Infallible;

use http::{
    Extensions, HeaderMap, Method, Request, Response, Uri, Version, header::UPGRADE, uri::Scheme,
};
use hyper::{body::Incoming, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt as _, sync::mpsc};

use super::{
    connect::{Connector, Dest},
    pool::{Lease, Pool},
};
use crate::{
    body::{Body, Interrupted, Rewind},
    error::{Error, Reason, chain_text},
    limits::Limits,
    wire::{Asked, Expected},
};

/// What is spoken to the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, one request at a time on a pooled connection.
    Http1,
    /// HTTP/2, streams of shared connections.
    Http2,
}

/// Sends the request and waits for the head of the answer. After an error the request is
/// still there if, and only if, not one byte of it can have been processed: it was not sent,
/// or the server of HTTP/2 has said so (a stream above the last of its GOAWAY, REFUSED_STREAM;
/// RFC 9113 8.7) and at most 64 KiB of its body are gone. Dropping the
/// future resets the stream (HTTP/2) or closes the connection (HTTP/1.1).
///
/// # Errors
/// With the reason.
pub async fn send(
    connector: &Connector,
    dest: &Dest,
    pool: &Pool,
    protocol: Protocol,
    req: &mut Option<Request<Body>>,
) -> Result<(Response<Incoming>, Lease), Error> {
    match protocol {
        Protocol::Http1 => send_http1(connector, dest, pool, req).await,
        // Boxed: the future of a request is moved several times, and most need less room.
        Protocol::Http2 => Box::pin(send_http2(connector, dest, pool, req)).await,
    }
}

async fn send_http1(
    connector: &Connector,
    dest: &Dest,
    pool: &Pool,
    req: &mut Option<Request<Body>>,
) -> Result<(Response<Incoming>, Lease), Error> {
    let mut kept = true;
    loop {
        let (mut connection, idle) = match kept.then(|| pool.take_idle()).flatten() {
            Some((connection, idle)) => (connection, Some(idle)),
            None => (Box::pin(Pool::open_http1(connector, dest)).await?, None),
        };
        let Some(mut request) = req.take() else {
            return Err(already_sent());
        };
        // A kept connection may be closing at this moment. Without a byte of the answer the
        // request may go elsewhere if it can be repeated (RFC 9110 9.2.2), and whatever it is
        // if not a byte of it has left: the judge looks at a connection that was idle for long.
        let repeatable = request.method().is_idempotent();
        let spare = idle
            .filter(|idle| repeatable || *idle >= Expected::IDLE)
            .and_then(|_| request.body_mut().tape());
        let expected = &connection.expected;
        expected.send(asked(&request), idle.unwrap_or_default(), spare.is_some());
        match connection.send.try_send_request(request).await {
            Ok(response) => {
                if let Some(body) = spare {
                    body.release();
                }
                return Ok((response, Lease::Http1(connection)));
            }
            Err(mut failed) => {
                *req = failed.take_message();
                let untouched = expected.is_untouched();
                let unanswered = !expected.is_begun() && was_closed(failed.error());
                if req.is_none()
                    && (untouched || repeatable && unanswered)
                    && let Some(body) = spare.and_then(|body| body.body())
                {
                    let again = again(expected.take_head(), body, &connector.limits);
                    *req = Box::pin(again).await;
                }
                // A kept connection that died while idle: the next one, or a new one.
                if req.is_none() || idle.is_none() {
                    return Err(reason_of(failed.error()));
                }
                // Once more, and not on every connection there is: perhaps they die of it.
                kept = untouched;
            }
        }
    }
}

/// The request whose head was written so, with the case of its names. hyper has taken the request
/// apart, and reads here what it wrote. `None` if there is no head.
async fn again(head: Vec<u8>, body: Body, limits: &Limits) -> Option<Request<Body>> {
    let (mut near, far) = tokio::io::duplex(head.len().max(1));
    near.write_all(&head).await.ok()?;
    drop(near);
    let (read, mut heads) = mpsc::channel(1);
    let service = service_fn(|request: Request<Incoming>| {
        let _ = read.try_send(request.into_parts().0);
        std::future::pending::<Result<Response<String>, Infallible>>()
    });
    let mut builder = server::conn::http1::Builder::new();
    if let Some(fields) = limits.hyper_fields() {
        builder.max_headers(fields);
    }
    let reading = builder
        .preserve_header_case(true)
        .max_buf_size(limits.http1_buffer())
        .serve_connection(TokioIo::new(far), service);
    let parts = tokio::select! {
        parts = heads.recv() => parts,
        _ = reading => heads.try_recv().ok(),
    };
    Some(Request::from_parts(parts?, body))
}

/// What the end of the answer depends on.
fn asked(request: &Request<Body>) -> Asked {
    match *request.method() {
        Method::HEAD => Asked::Head,
        Method::CONNECT => Asked::Connect,
        _ if request.headers().contains_key(UPGRADE) => Asked::Upgrade,
        _ => Asked::Plain,
    }
}

/// Whether the connection ended before a byte of the answer.
fn was_closed(error: &hyper::Error) -> bool {
    let io = std::error::Error::source(error)
        .and_then(|cause| cause.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind);
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || matches!(io, Some(BrokenPipe | ConnectionAborted | ConnectionReset))
}

async fn send_http2(
    connector: &Connector,
    dest: &Dest,
    pool: &Pool,
    req: &mut Option<Request<Body>>,
) -> Result<(Response<Incoming>, Lease), Error> {
    // A connection that is going away gives back what was not sent, and says what it has not
    // looked at; a fresh one takes both.
    let mut moved = 0;
    loop {
        let guard = pool.http2(connector, dest).await?;
        let Some(mut request) = req.take() else {
            return Err(already_sent());
        };
        let spare = Spare::of(&mut request);
        match guard.sender().try_send_request(request).await {
            Ok(response) => {
                if let Some(Spare { body, .. }) = spare {
                    body.release();
                }
                return Ok((response, Lease::Http2 { _stream: guard }));
            }
            Err(mut failed) => {
                *req = failed.take_message();
                if req.is_none() && was_refused(failed.error()) {
                    *req = spare.and_then(Spare::request);
                }
                if req.is_none() || moved == 2 {
                    return Err(reason_of(failed.error()));
                }
                pool.forget(&guard);
                moved += 1;
            }
        }
    }
}

/// What a request is made from once more.
struct Spare {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    extensions: Extensions,
    body: Rewind,
}

impl Spare {
    /// `None` if its body cannot be read again.
    fn of(request: &mut Request<Body>) -> Option<Self> {
        let body = request.body_mut().tape()?;
        Some(Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            extensions: request.extensions().clone(),
            body,
        })
    }

    /// `None` if too much of the body is gone.
    fn request(self) -> Option<Request<Body>> {
        let mut request = Request::new(self.body.body()?);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers;
        *request.extensions_mut() = self.extensions;
        Some(request)
    }
}

/// Whether the server says that it has not looked at the request. A GOAWAY is the error of the
/// streams above its last one only; the others go on, or end with the connection.
fn was_refused(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            let refused = h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM);
            return h2.is_remote() && (h2.is_go_away() || refused);
        }
        cause = error.source();
    }
    false
}

fn already_sent() -> Error {
    Error::new(Reason::Internal, "a request was to be sent twice")
}

/// The reason of a failure after the connection was made, before the answer or within it.
pub fn reason_of(error: &hyper::Error) -> Error {
    let text = chain_text(error);
    // The request body broke off, and it comes from the client. Not so the other error of
    // this kind: the connection ended while the request waited, and its cause is a text.
    let from_body = std::error::Error::source(error)
        .is_some_and(|cause| cause.is::<Interrupted>() || cause.is::<std::io::Error>());
    if error.is_user() && from_body {
        return Error::new(client_reason(error), text);
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            let reason = if h2.is_reset() && !h2.is_remote() && !h2.is_library() {
                // hyper resets the stream when the request body breaks off.
                Reason::ClientClosed
            } else if h2.is_reset() {
                Reason::PeerReset
            } else if h2.is_go_away() || h2.is_io() {
                Reason::PeerClosed
            } else {
                Reason::PeerProtocolError
            };
            return Error::new(reason, text);
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{ConnectionReset, InvalidData, InvalidInput};
            let reason = match io.kind() {
                ConnectionReset => Reason::PeerReset,
                // How the decoder of chunks says that they are malformed.
                InvalidData | InvalidInput => Reason::PeerProtocolError,
                _ => Reason::PeerClosed,
            };
            return Error::new(reason, text);
        }
        cause = error.source();
    }
    let reason = if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
        Reason::PeerProtocolError
    } else {
        Reason::PeerClosed
    };
    Error::new(reason, text)
}

/// The reason of a request body that broke off: malformed, or gone with its client.
fn client_reason(error: &hyper::Error) -> Reason {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let malformed = error.downcast_ref::<std::io::Error>().is_some_and(|io| {
            use std::io::ErrorKind::{InvalidData, InvalidInput};
            matches!(io.kind(), InvalidData | InvalidInput)
        });
        if malformed {
            return Reason::ClientProtocolError;
        }
        cause = error.source();
    }
    Reason::ClientClosed
}

/// The target in the form that the protocol wants: origin form for HTTP/1.1, with scheme and
/// authority for HTTP/2.
///
/// # Errors
/// [`Reason::ClientProtocolError`] when they do not make a target.
pub fn target(uri: Uri, protocol: Protocol, authority: Option<&str>) -> Result<Uri, Error> {
    let bad = |e: http::uri::InvalidUriParts| {
        Error::new(
            Reason::ClientProtocolError,
            format!("the request target: {e}"),
        )
    };
    let mut parts = uri.into_parts();
    match protocol {
        Protocol::Http1 => {
            parts.scheme = None;
            parts.authority = None;
        }
        Protocol::Http2 => {
            parts.scheme = Some(Scheme::HTTP);
            let authority = authority.unwrap_or_default();
            parts.authority = Some(authority.parse().map_err(|_| {
                Error::new(
                    Reason::ClientProtocolError,
                    format!("`{authority}` is no authority"),
                )
            })?);
        }
    }
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    Uri::from_parts(parts).map_err(bad)
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        pin::Pin,
        sync::Arc,
        task::{Context, Poll},
        time::Duration,
    };

    use bytes::Bytes;
    use http::{Request, Response, Version};
    use http_body::Frame;
    use http_body_util::{BodyExt, Full};
    use hyper::{
        body::Incoming,
        client::conn::{http1, http2},
        service::service_fn,
    };
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::{Protocol, again, reason_of, send, target};
    use crate::{
        body::Body,
        error::Reason,
        limits::Limits,
        telemetry::Metrics,
        upstream::{Connector, Dest, Pool},
    };

    /// A request body that breaks off.
    struct Broken(io::ErrorKind);

    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
            Poll::Ready(Some(Err(self.0.into())))
        }
    }

    #[tokio::test]
    async fn a_request_body_that_breaks_off_is_no_fault_of_the_server() {
        for (kind, expected) in [
            (io::ErrorKind::UnexpectedEof, Reason::ClientClosed),
            (io::ErrorKind::InvalidInput, Reason::ClientProtocolError),
        ] {
            let (client, _server) = tokio::io::duplex(1024);
            let (mut send, connection) = http1::handshake(TokioIo::new(client)).await.unwrap();
            tokio::spawn(connection);
            let post = Request::post("/").body(Broken(kind)).unwrap();
            let error = send.send_request(post).await.unwrap_err();
            assert_eq!(reason_of(&error).reason, expected, "{error:?}");
        }
        let (client, server) = tokio::io::duplex(1024);
        let _server = tokio::spawn(async move {
            let mut server = h2::server::handshake(server).await.unwrap();
            while server.accept().await.is_some() {}
        });
        let (mut send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(client))
            .await
            .unwrap();
        tokio::spawn(connection);
        let body = Broken(io::ErrorKind::UnexpectedEof);
        let post = Request::post("http://a/").body(body).unwrap();
        let error = send.send_request(post).await.unwrap_err();
        assert_eq!(reason_of(&error).reason, Reason::ClientClosed, "{error:?}");
    }

    #[tokio::test]
    async fn a_request_that_is_sent_again_is_written_as_before() {
        let head = b"PUT /a?b=%20 HTTP/1.1\r\nHost: a\r\nX-ODD-case: 1\r\nx-Odd: \xff\r\n\
                     X-odd-CASE: 2\r\nContent-Length: 0\r\n\r\n";
        let limits = Limits::default();
        let request = again(head.to_vec(), Body::Empty, &limits).await.unwrap();
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut send, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(near))
            .await
            .unwrap();
        tokio::spawn(connection);
        tokio::spawn(async move { send.send_request(request).await });
        let mut written = vec![0; head.len()];
        far.read_exact(&mut written).await.unwrap();
        let lines = |head: &[u8]| {
            let mut lines: Vec<_> = head.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            // Fields of different names have no order.
            lines[1..].sort();
            lines
        };
        assert_eq!(lines(&written), lines(head));
        for none in [&b""[..], b"GET / HTTP/1.1\r\n", b"\r\n\r\n"] {
            let again = again(none.to_vec(), Body::Empty, &limits).await;
            assert!(again.is_none(), "{none:?}");
        }
    }

    /// Refuses the first `refusals` streams as `how` says, then answers with what it was sent.
    async fn refusing(refusals: usize, how: Refusal) -> Dest {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for connection in 0.. {
                let (tcp, _) = listener.accept().await.unwrap();
                if how == Refusal::GoAway && connection < refusals {
                    tokio::spawn(go_away(tcp));
                } else {
                    tokio::spawn(echo(tcp, usize::from(connection < refusals)));
                }
            }
        });
        Dest {
            address,
            source: None,
            tls: None,
            timeout: Duration::from_secs(5),
        }
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Refusal {
        RefusedStream,
        GoAway,
    }

    /// Reads the request, and then says that it has not looked at it.
    async fn go_away(mut tcp: TcpStream) {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        tcp.write_all(&SETTINGS).await.unwrap();
        let mut preface = [0; 24];
        tcp.read_exact(&mut preface).await.unwrap();
        let mut ended = false;
        while !ended {
            let mut head = [0; 9];
            tcp.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            tcp.read_exact(&mut payload).await.unwrap();
            // DATA or HEADERS with END_STREAM.
            ended = head[3] <= 1 && head[4] & 1 == 1;
        }
        tcp.write_all(&GOAWAY).await.unwrap();
        let _ = tcp.read(&mut [0; 64]).await;
    }

    async fn echo(tcp: TcpStream, mut refusals: usize) {
        let mut server = h2::server::handshake(tcp).await.unwrap();
        while let Some(Ok((request, mut respond))) = server.accept().await {
            let refuse = refusals > 0;
            refusals = refusals.saturating_sub(1);
            tokio::spawn(async move {
                let mut body = request.into_body();
                let mut all = Vec::new();
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    body.flow_control().release_capacity(data.len()).unwrap();
                    all.extend_from_slice(&data);
                }
                if refuse {
                    return respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data(all.into(), true).unwrap();
            });
        }
    }

    /// Sends the bytes as a client of ours would, so that the body is one that hyper read.
    async fn posted(dest: Dest, bytes: Vec<u8>) -> Result<Vec<u8>, Reason> {
        let (client, server) = tokio::io::duplex(1 << 20);
        let service = service_fn(move |req: Request<Incoming>| {
            let dest = dest.clone();
            async move {
                let connector = Connector {
                    identity: Arc::default(),
                    metrics: Metrics::new(),
                    limits: Arc::default(),
                };
                let pool = Pool::default();
                let uri = "http://a/".parse().unwrap();
                let (mut parts, body) = req.into_parts();
                parts.uri = target(uri, Protocol::Http2, Some("a")).unwrap();
                parts.version = Version::HTTP_2;
                parts.headers.clear();
                let req = Request::from_parts(parts, Body::request(body, &Arc::default()).0);
                let sent = send(&connector, &dest, &pool, Protocol::Http2, &mut Some(req)).await;
                Ok::<_, String>(match sent {
                    Ok((response, lease)) => {
                        let bytes = response.into_body().collect().await.unwrap().to_bytes();
                        drop(lease);
                        Response::new(Full::new(bytes))
                    }
                    Err(error) => Response::builder()
                        .status(502)
                        .body(Full::from(error.reason.slug()))
                        .unwrap(),
                })
            }
        });
        let serving = hyper::server::conn::http1::Builder::new();
        tokio::spawn(serving.serve_connection(TokioIo::new(server), service));
        let (mut send, connection) = http1::handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        let post = Request::post("/")
            .header("host", "a")
            .body(Full::new(Bytes::from(bytes)));
        let response = send.send_request(post.unwrap()).await.unwrap();
        let ok = response.status() == 200;
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        if ok {
            return Ok(bytes.to_vec());
        }
        Err(Reason::from_slug(std::str::from_utf8(&bytes).unwrap()).unwrap())
    }

    #[tokio::test]
    async fn what_the_server_has_not_looked_at_is_sent_again() {
        for (refusals, how, size, expected) in [
            (1, Refusal::RefusedStream, 0, None),
            (2, Refusal::RefusedStream, 10_000, None),
            (1, Refusal::GoAway, 0, None),
            (2, Refusal::GoAway, 10_000, None),
            (1, Refusal::GoAway, 60_000, None),
            // More than is held of a body.
            (1, Refusal::RefusedStream, 65_537, Some(Reason::PeerReset)),
            // Again and again.
            (3, Refusal::RefusedStream, 10, Some(Reason::PeerReset)),
            (3, Refusal::GoAway, 10, Some(Reason::PeerClosed)),
        ] {
            let dest = refusing(refusals, how).await;
            let bytes: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let found = posted(dest, bytes.clone()).await;
            match expected {
                None => assert!(found == Ok(bytes), "{refusals} {size}: {:?}", found.err()),
                Some(reason) => assert_eq!(found.err(), Some(reason), "{refusals} {size}"),
            }
        }
    }
}
