//! Shutting down in steps: leave (tell the control plane, serve everything), drain (take new
//! work still, ask everybody to move on) and close (end what is idle). Connections count
//! themselves.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;

/// What a client that has just connected has for its first byte when idle connections close.
const LAST_CHANCE: Duration = Duration::from_millis(500);

/// How far the shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal service.
    Serving,
    /// Normal service, while the control plane tells everybody that it will end.
    Leaving,
    /// Everything is served, answers ask the peer to go elsewhere.
    Draining,
    /// Idle connections are closed, the rest ends with its current stream.
    Closing,
}

/// What a connection is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Requests; or nobody knows yet.
    Http = 0,
    /// What follows a switch of protocols: WebSocket, CONNECT.
    Switched = 1,
    /// Bytes.
    Tcp = 2,
}

/// How many connections a listener has, by [`Use`].
#[derive(Debug, Default)]
struct Counts([AtomicUsize; 3]);

/// The process-wide shutdown state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: Arc<watch::Sender<Phase>>,
    draining: Arc<AtomicBool>,
    /// By listener; as many as there ever were names of listeners.
    connections: Arc<Mutex<BTreeMap<Arc<str>, Arc<Counts>>>>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            draining: Arc::new(AtomicBool::new(false)),
            connections: Arc::default(),
        }
    }
}

impl Drain {
    /// Moves on to a later phase.
    pub fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = (*phase).max(to);
            self.draining
                .store(*phase >= Phase::Draining, Ordering::Relaxed);
            later
        });
    }

    /// Back to normal service: for new connections and requests, and as long as nothing has
    /// been closed. False if it is too late.
    pub fn resume(&self) -> bool {
        let mut resumed = false;
        self.phase.send_if_modified(|phase| {
            resumed = *phase < Phase::Closing;
            let changes = resumed && *phase != Phase::Serving;
            if changes {
                *phase = Phase::Serving;
                self.draining.store(false, Ordering::Relaxed);
            }
            changes
        });
        resumed
    }

    /// How far the shutdown has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether clients are asked to go elsewhere. One load: for the request path.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A receiver of phases.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Ends shortly after idle connections are to be closed: who has not said a byte by then
    /// must not use up the grace period.
    pub async fn last_chance(&self) {
        // The sender lives as long as this.
        let _ = self.watch().wait_for(|now| *now >= Phase::Closing).await;
        tokio::time::sleep(LAST_CHANCE).await;
    }

    /// Counts one connection of a user, to the listener of this name, until the guard is
    /// dropped.
    #[must_use]
    pub fn connection(&self, listener: &Arc<str>) -> ConnectionGuard {
        let counts = {
            let mut listeners = self.connections.lock();
            match listeners.get(listener) {
                Some(counts) => counts.clone(),
                None => listeners.entry(listener.clone()).or_default().clone(),
            }
        };
        counts.0[Use::Http as usize].fetch_add(1, Ordering::Relaxed);
        ConnectionGuard {
            counts,
            used: AtomicU8::new(Use::Http as u8),
        }
    }

    /// How many connections of users are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        let listeners = self.connections.lock();
        let counts = listeners.values().flat_map(|counts| &counts.0);
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// What the open connections are, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let listeners = self.connections.lock();
        let lines = listeners
            .iter()
            .map(|(name, counts)| (name, counts.0.each_ref().map(|c| c.load(Ordering::Relaxed))));
        let texts = lines
            .filter(|(_, counts)| counts.iter().sum::<usize>() > 0)
            .map(|(name, [http, switched, tcp])| {
                let kinds = [
                    (http, "HTTP"),
                    (switched, "WebSocket or CONNECT"),
                    (tcp, "TCP"),
                ];
                let kinds = kinds.into_iter().filter(|(count, _)| *count > 0);
                let texts: Vec<String> = kinds.map(|(n, kind)| format!("{n} {kind}")).collect();
                format!("{name}: {}", texts.join(", "))
            });
        let texts: Vec<String> = texts.collect();
        if texts.is_empty() {
            return "none".to_owned();
        }
        texts.join("; ")
    }
}

/// One open connection.
pub struct ConnectionGuard {
    counts: Arc<Counts>,
    used: AtomicU8,
}

impl ConnectionGuard {
    /// Says what it is used for from now on.
    pub fn becomes(&self, used: Use) {
        let before = self.used.swap(used as u8, Ordering::Relaxed);
        self.counts.0[usize::from(before)].fetch_sub(1, Ordering::Relaxed);
        self.counts.0[used as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for ConnectionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionGuard")
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let used = self.used.load(Ordering::Relaxed);
        self.counts.0[usize::from(used)].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{Drain, Phase, Use};

    #[test]
    fn phases_go_forward_until_they_are_taken_back() {
        let drain = Drain::default();
        drain.advance(Phase::Leaving);
        assert!(!drain.is_draining() && drain.phase() == Phase::Leaving);
        drain.advance(Phase::Draining);
        assert!(drain.is_draining());
        assert!(drain.resume());
        assert!(!drain.is_draining() && drain.phase() == Phase::Serving);
        drain.advance(Phase::Closing);
        drain.advance(Phase::Draining);
        assert_eq!(*drain.watch().borrow(), Phase::Closing);
        assert!(drain.is_draining());
        assert!(!drain.resume(), "connections have been closed");
        assert!(drain.is_draining());
    }

    #[test]
    fn connections_are_counted_by_listener_and_use() {
        let drain = Drain::default();
        assert_eq!((drain.connections(), &*drain.summary()), (0, "none"));
        let one = drain.connection(&"inbound|80".into());
        let two = drain.connection(&"inbound|80".into());
        let three = drain.connection(&"outbound".into());
        two.becomes(Use::Tcp);
        three.becomes(Use::Switched);
        assert_eq!(drain.connections(), 3);
        let summary = "inbound|80: 1 HTTP, 1 TCP; outbound: 1 WebSocket or CONNECT";
        assert_eq!(drain.summary(), summary);
        drop((one, two));
        assert_eq!(drain.summary(), "outbound: 1 WebSocket or CONNECT");
        drop(three);
        assert_eq!(drain.connections(), 0);
    }
}
