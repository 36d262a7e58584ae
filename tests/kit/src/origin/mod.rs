//! Servers to put behind a proxy. Each listens until it is dropped, and its connections end
//! with it.

pub mod capture;
pub mod nonce;
pub mod script;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::within;

/// Connections at one time; those above wait in the backlog.
const MOST_CONNECTIONS: usize = 20_000;
/// After an error of `accept`, such as no descriptor left.
const BREATH: Duration = Duration::from_millis(10);

/// A listener with a task for each connection.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    task: AbortHandle,
}

impl Server {
    /// Serves connections with what `serve` makes of them and of their number, from 0.
    pub(crate) fn new<F, Fut>(listener: TcpListener, serve: F) -> io::Result<Self>
    where
        F: Fn(usize, TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            // Dropped with the task, and the connections with it.
            let mut connections = JoinSet::new();
            let mut number = 0;
            loop {
                while connections.try_join_next().is_some() {}
                if connections.len() >= MOST_CONNECTIONS {
                    connections.join_next().await;
                }
                match listener.accept().await {
                    Ok((stream, _)) => {
                        // Without it answers are late, not wrong.
                        let _ = stream.set_nodelay(true);
                        connections.spawn(serve(number, stream));
                        number += 1;
                    }
                    Err(_) => tokio::time::sleep(BREATH).await,
                }
            }
        });
        Ok(Self {
            address,
            task: task.abort_handle(),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A listener on a free port of 127.0.0.1.
pub(crate) async fn anywhere() -> io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", 0)).await
}

/// What was seen, for tests to wait for.
#[derive(Debug)]
pub(crate) struct Log<T> {
    entries: Mutex<Vec<T>>,
    /// Counts changes.
    changed: watch::Sender<u64>,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl<T: Clone> Log<T> {
    pub(crate) fn change(&self, change: impl FnOnce(&mut Vec<T>)) {
        change(&mut self.entries.lock());
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn seen(&self) -> Vec<T> {
        self.entries.lock().clone()
    }

    pub(crate) async fn until(
        &self,
        what: &str,
        patience: Duration,
        is_wanted: impl Fn(&[T]) -> bool,
    ) -> io::Result<Vec<T>> {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                changed.borrow_and_update();
                if is_wanted(&self.entries.lock()) {
                    return;
                }
                // The sender is ours: this cannot fail.
                let _ = changed.changed().await;
            }
        };
        within(patience, what, waiting).await?;
        Ok(self.seen())
    }
}
