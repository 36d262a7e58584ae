//! Accepting connections and handing each to the chain that serves it.

mod captured;
mod connection;
mod opaque;
mod socket;

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch};

use crate::worker::Worker;

pub use socket::{bind_for, is_without_family};

/// Pause after an accept error that is ours: no file descriptors, no memory.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Accepts connections on one socket until `stop` is set. Which configuration serves a
/// connection is decided when it arrives, so a new configuration needs no new socket.
pub async fn accept(
    worker: Arc<Worker>,
    name: Arc<str>,
    socket: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((tcp, client)) => serve(&worker, &name, tcp, client),
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, listener = %name, "cannot accept; is the limit of open files too low?");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
    // What the kernel has queued by now has a client that thinks it is connected.
    while let Ok(Ok((tcp, client))) = tokio::time::timeout(Duration::ZERO, socket.accept()).await {
        serve(&worker, &name, tcp, client);
    }
}

fn serve(
    worker: &Arc<Worker>,
    name: &Arc<str>,
    tcp: tokio::net::TcpStream,
    client: std::net::SocketAddr,
) {
    let Some(listener) = worker.shared.snapshots.load().listeners.get(name).cloned() else {
        return;
    };
    tokio::spawn(connection::serve(worker.clone(), listener, tcp, client));
}

/// Errors of a connection that died in the queue; the socket is fine.
fn is_of_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
