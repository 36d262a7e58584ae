//! Accepting connections that speak HTTP/1.1 or HTTP/2 without saying so: the first bytes
//! tell, and are left in the socket, so that finding out costs nothing afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::error::{Context as _, Result};

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// What these first bytes mean; `None` while too few have come.
fn classify(first: &[u8]) -> Option<Protocol> {
    const PREFACE: &[u8] = b"PRI ";
    let known = first.len().min(PREFACE.len());
    if first[..known] != PREFACE[..known] {
        return Some(Protocol::Http1);
    }
    (known == PREFACE.len()).then_some(Protocol::Http2)
}

/// Waits for the first bytes; `None` when the client leaves without any.
pub(crate) async fn protocol(stream: &TcpStream) -> Option<Protocol> {
    let mut first = [0; 4];
    loop {
        let n = stream.peek(&mut first).await.ok()?;
        if n == 0 {
            return None;
        }
        if let Some(protocol) = classify(&first[..n]) {
            return Some(protocol);
        }
        // `peek` returns at once for bytes that it has returned before.
        sleep(Duration::from_millis(1)).await;
    }
}

/// A listening socket.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .context(format!("listen on {address}"))
}

/// The next connection, without Nagle's delay.
pub(crate) async fn next(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // It fails only on a connection that is gone already.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            // Out of descriptors, most likely: others may close some.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        for (first, expect) in [
            (&b"P"[..], None),
            (b"PR", None),
            (b"PRI", None),
            (b"PRI ", Some(Protocol::Http2)),
            (b"PRO", Some(Protocol::Http1)),
            (b"GET ", Some(Protocol::Http1)),
            (b"", None),
        ] {
            assert_eq!(classify(first), expect, "{first:?}");
        }
    }
}
