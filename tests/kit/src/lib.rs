//! Peers that misbehave, and peers that record: what tests put around a proxy to see every
//! byte of it. Uses nothing of Weft; speaks to anything over a stream.
//!
//! | piece | for |
//! |---|---|
//! | [`raw1`] | an HTTP/1 client that sends any bytes in any slices and reads answers strictly |
//! | [`raw2`] | an HTTP/2 peer, client or server: frames, header blocks and windows by hand, floods |
//! | [`strict`] | the judge: reads bytes as strict HTTP/1 messages or says which byte is wrong |
//! | [`cases`] | tables of what hostile clients and servers send, what must come of each, and the judge |
//! | [`origin::capture`] | a server that keeps every byte of every connection |
//! | [`origin::nonce`] | a server that says what arrived (SHA-256) and how often, over HTTP/1 and HTTP/2 |
//! | [`origin::script`] | a server that does what a script says, in raw bytes or raw frames |
//! | [`fault`] | a TCP proxy that delays, slices, slows, cuts, corrupts and stalls |
//!
//! ```no_run
//! use weft_kit::{origin::capture::Capture, raw1};
//! # async fn example(proxy: std::net::SocketAddr) -> std::io::Result<()> {
//! let origin = Capture::start().await?; // lead the proxy to origin.address()
//! let mut client = raw1::Client::connect(proxy).await?;
//! let answer = client.exchange("GET / HTTP/1.1\r\nhost: app\r\n\r\n").await?;
//! assert_eq!(answer.status(), 200);
//! let seen = origin.connections()[0].reading().expect("one strict request");
//! assert_eq!(seen.messages[0].target(), "/");
//! # Ok(()) }
//! ```
//!
//! Everything that waits gives up after [`PATIENCE`], or after what its caller says; everything
//! that keeps bytes has a bound. Servers stop when they are dropped, with their connections.

pub mod cases;
pub mod fault;
pub mod origin;
mod random;
pub mod raw1;
pub mod raw2;
pub mod strict;

use std::io;
use std::time::Duration;

/// How long anything is waited for if nobody says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Awaits, but not for longer than `patience`; `what` is in the error.
pub(crate) async fn within<F: Future>(
    patience: Duration,
    what: &str,
    future: F,
) -> io::Result<F::Output> {
    tokio::time::timeout(patience, future).await.map_err(|_| {
        let message = format!("{what}: nothing for {patience:?}");
        io::Error::new(io::ErrorKind::TimedOut, message)
    })
}
