//! What every connection of one worker thread shares.

use std::sync::Arc;

use tokio::{sync::mpsc, time::Instant};

use crate::{
    drain::Drain,
    identity::IdentityStore,
    snapshot::SnapshotStore,
    telemetry::{AccessLog, Metrics},
    upstream::Connector,
    util::Rng,
};

/// What the process shares. Immutable; its parts are atomics or swapped as a whole.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub snapshots: SnapshotStore,
    /// Our identity.
    pub identity: Arc<IdentityStore>,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// The access log.
    pub log: AccessLog,
    /// The shutdown state.
    pub drain: Drain,
    /// Asks for destinations that the snapshot does not have, by VHDS name.
    pub demand: mpsc::UnboundedSender<String>,
    /// When the process started.
    pub started: Instant,
}

/// One worker thread.
#[derive(Debug)]
pub struct Worker {
    /// Its number from 0: which pool of an endpoint is its own.
    pub id: usize,
    /// What the process shares.
    pub shared: Arc<Shared>,
    /// Opens upstream connections.
    pub connector: Connector,
    /// Random numbers of this worker.
    pub rng: Rng,
}

impl Worker {
    /// A worker; the same seed makes the same choices.
    #[must_use]
    pub fn new(id: usize, shared: Arc<Shared>, seed: u64) -> Arc<Self> {
        let connector = Connector {
            identity: shared.identity.clone(),
            metrics: shared.metrics.clone(),
        };
        Arc::new(Self {
            id,
            shared,
            connector,
            rng: Rng::new(seed.wrapping_add(id as u64)),
        })
    }

    /// Seconds since the process started.
    #[must_use]
    pub fn seconds(&self) -> u32 {
        self.shared.started.elapsed().as_secs() as u32
    }
}
