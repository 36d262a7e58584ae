//! HOT. One request on one connection. Says exactly whether a request that failed can have
//! reached the application: what was never sent may be sent elsewhere, whatever its method.

use http::{Request, Response, Uri, uri::Scheme};
use hyper::body::Incoming;

use super::{
    connect::{Connector, Dest},
    pool::{Lease, Pool},
};
use crate::{
    body::Body,
    error::{Error, Reason, chain_text},
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
/// still there if, and only if, not one byte of it can have been processed. Dropping the
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
    loop {
        let idle = pool.take_idle();
        let reused = idle.is_some();
        let mut sender = match idle {
            Some(sender) => sender,
            None => Box::pin(Pool::open_http1(connector, dest)).await?,
        };
        let Some(request) = req.take() else {
            return Err(already_sent());
        };
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, Lease::Http1(sender))),
            Err(mut failed) => {
                *req = failed.take_message();
                // A kept connection that died while idle: the next one, or a new one.
                if req.is_none() || !reused {
                    return Err(reason_of(failed.error()));
                }
            }
        }
    }
}

async fn send_http2(
    connector: &Connector,
    dest: &Dest,
    pool: &Pool,
    req: &mut Option<Request<Body>>,
) -> Result<(Response<Incoming>, Lease), Error> {
    // A connection that is going away gives its unsent requests back; a fresh one takes them.
    let mut moved = 0;
    loop {
        let guard = pool.http2(connector, dest).await?;
        let Some(request) = req.take() else {
            return Err(already_sent());
        };
        match guard.sender().try_send_request(request).await {
            Ok(response) => return Ok((response, Lease::Http2 { _stream: guard })),
            Err(mut failed) => {
                *req = failed.take_message();
                if req.is_none() || moved == 2 {
                    return Err(reason_of(failed.error()));
                }
                pool.forget(&guard);
                moved += 1;
            }
        }
    }
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
        .is_some_and(|cause| cause.is::<hyper::Error>() || cause.is::<std::io::Error>());
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
        task::{Context, Poll},
    };

    use bytes::Bytes;
    use http::Request;
    use http_body::{Body, Frame};
    use hyper::client::conn::{http1, http2};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::reason_of;
    use crate::error::Reason;

    /// A request body that breaks off.
    struct Broken(io::ErrorKind);

    impl Body for Broken {
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
}
