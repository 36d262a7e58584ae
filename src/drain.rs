//! Shutting down in two steps: drain (serve what is there, take new work, ask everybody to
//! move on) and close (end what is idle). Connections count themselves.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::watch;

/// How far the shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal service.
    Serving,
    /// Everything is served, answers ask the peer to go elsewhere.
    Draining,
    /// Idle connections are closed, the rest ends with its current stream.
    Closing,
}

/// The process-wide shutdown state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: Arc<watch::Sender<Phase>>,
    draining: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            draining: Arc::new(AtomicBool::new(false)),
            connections: Arc::new(AtomicUsize::new(0)),
        }
    }
}

impl Drain {
    /// Moves on to a later phase.
    pub fn advance(&self, to: Phase) {
        self.draining
            .store(to >= Phase::Draining, Ordering::Relaxed);
        self.phase.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = (*phase).max(to);
            later
        });
    }

    /// Whether a shutdown has begun. One load: for the request path.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A receiver of phases.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Counts one connection of a user until the guard is dropped.
    #[must_use]
    pub fn connection(&self) -> ConnectionGuard {
        self.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard(self.connections.clone())
    }

    /// How many connections of users are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// One open connection.
#[derive(Debug)]
pub struct ConnectionGuard(Arc<AtomicUsize>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{Drain, Phase};

    #[test]
    fn phases_only_go_forward_and_guards_count() {
        let drain = Drain::default();
        assert!(!drain.is_draining());
        drain.advance(Phase::Closing);
        drain.advance(Phase::Draining);
        assert_eq!(*drain.watch().borrow(), Phase::Closing);
        assert!(drain.is_draining());
        let guard = drain.connection();
        assert_eq!(drain.connections(), 1);
        drop(guard);
        assert_eq!(drain.connections(), 0);
    }
}
