//! Connections to the control plane: accept, TLS handshake, and who is at the other end.
//!
//! A client may come without a certificate (its first contact, with a join token); what it
//! then may do is decided per call. Handshakes have a deadline and are bounded in number,
//! and every connection can be cut from outside, whatever HTTP/2 is waiting for.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use weft_certs::SpiffeId;
use weft_certs::verify::{peer_id, svid_error_of_io};

use crate::metrics::Metrics;

/// A handshake that takes longer is cut.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A connection without a certificate is cut after this: it is for one signing request.
const ANONYMOUS_DEADLINE: Duration = Duration::from_secs(60);
/// How many handshakes may be under way; further connections wait in the listen queue.
const MAX_HANDSHAKES: usize = 1_000;
/// How many discovery streams a connection may have: each keeps what it subscribed to, and
/// a sidecar needs one.
pub(crate) const MAX_STREAMS: usize = 4;
/// After a failed accept (no file descriptors left), before the next.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection. An extension of each of its requests.
#[derive(Clone)]
pub struct Peer {
    /// Where it connected from.
    pub address: SocketAddr,
    /// What it proved to be; `None` if it showed no certificate.
    pub svid: Option<Svid>,
    cutter: Arc<Cutter>,
    /// One permit for each further discovery stream.
    streams: Arc<Semaphore>,
}

/// What a client proved in the handshake.
#[derive(Clone, Debug)]
pub struct Svid {
    /// Its identity.
    pub id: SpiffeId,
    /// When that proof ends.
    pub not_after: SystemTime,
}

impl Peer {
    /// The right to one discovery stream, for as long as it is kept; `None` when the
    /// connection has [`MAX_STREAMS`] of them.
    pub(crate) fn stream_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.streams.clone().try_acquire_owned().ok()
    }

    /// Ends the connection at once, even if the client does not read.
    pub fn cut(&self) {
        self.cutter.cut();
    }
}

/// Ends a connection from outside: its I/O fails from then on.
#[derive(Default)]
struct Cutter {
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Cutter {
    fn cut(&self) {
        // Release: the flag is seen by whoever the waker wakes.
        self.cut.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Registers the task; both directions are polled by the same one.
    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        self.waker.register(cx.waker());
        if self.cut.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// The open connections of one server; cuts them all when it goes.
#[derive(Clone, Default)]
pub(crate) struct Connections {
    open: Arc<Mutex<HashMap<u64, Arc<Cutter>>>>,
    next: Arc<AtomicU64>,
}

impl Connections {
    fn open(&self) -> (u64, Arc<Cutter>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let cutter = Arc::<Cutter>::default();
        self.open.lock().insert(number, cutter.clone());
        (number, cutter)
    }

    /// Ends every connection at once.
    pub(crate) fn cut_all(&self) {
        for cutter in self.open.lock().values() {
            cutter.cut();
        }
    }
}

/// An accepted connection after its handshake.
pub(crate) struct Connection {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    /// When its I/O fails; `None` is never.
    deadline: Option<Pin<Box<Sleep>>>,
    number: u64,
    connections: Connections,
    metrics: Arc<Metrics>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.open.lock().remove(&self.number);
        self.metrics.connections.dec();
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl Connection {
    /// Fails when the connection was cut or is past its deadline.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.peer.cutter.check(cx)?;
        match self.deadline.as_mut().map(|d| d.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Err(io::ErrorKind::TimedOut.into()),
            Some(Poll::Pending) | None => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// Accepts until dropped, handing each connection over after its handshake. Dropping it
/// ends the handshakes under way.
pub(crate) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections: Connections,
    metrics: Arc<Metrics>,
    accepted: mpsc::Sender<Connection>,
) {
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let mut handshakes = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        while handshakes.try_join_next().is_some() {}
        let (acceptor, connections) = (acceptor.clone(), connections.clone());
        let (metrics, accepted) = (metrics.clone(), accepted.clone());
        handshakes.spawn(async move {
            let handshake = handshake(&acceptor, stream);
            let result = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await;
            drop(slot);
            match result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok((tls, svid)) => {
                    let connection = Connection::new(tls, address, svid, connections, metrics);
                    // Fails only when the server has ended: then the connection is to end.
                    let _ = accepted.send(connection).await;
                }
                Err(error) => {
                    metrics.handshakes_failed.inc();
                    let reason = svid_error_of_io(&error).map_or("handshake", |e| e.slug());
                    tracing::info!(%address, reason, error = ?error.to_string(), "refused a connection");
                }
            }
        });
    }
}

impl Connection {
    fn new(
        tls: TlsStream<TcpStream>,
        address: SocketAddr,
        svid: Option<Svid>,
        connections: Connections,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (number, cutter) = connections.open();
        metrics.connections.inc();
        let anonymous = svid.is_none();
        Self {
            tls,
            peer: Peer {
                address,
                svid,
                cutter,
                streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            },
            deadline: anonymous.then(|| Box::pin(tokio::time::sleep(ANONYMOUS_DEADLINE))),
            number,
            connections,
            metrics,
        }
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> io::Result<(TlsStream<TcpStream>, Option<Svid>)> {
    stream.set_nodelay(true)?;
    let tls = acceptor.accept(stream).await?;
    let svid = match tls.get_ref().1.peer_certificates() {
        None | Some([]) => None,
        Some(chain) => Some(Svid {
            id: peer_id(chain).map_err(io::Error::other)?,
            not_after: not_after(&chain[0]).ok_or(io::ErrorKind::InvalidData)?,
        }),
    };
    Ok((tls, svid))
}

fn not_after(leaf: &[u8]) -> Option<SystemTime> {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let seconds = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
