//! Self-registration: a sidecar says in `Node.metadata` what a Workload document would say.
//!
//! [`Registration`] is what one said, validated as the document that it stands for;
//! [`Registry`] decides which are in force, without I/O and clock; [`Registrations`] is the
//! one that streams, the configuration source and the disk share.

mod kept;
mod registry;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use crate::cache::Workload;
use crate::config::Document;
pub use registry::{
    KEPT_AFTER_BREAK, MAX_PER_IDENTITY, MAX_REGISTRATIONS, RECLAIM_AFTER, Refusal, Registry,
};
pub use request::{Invalid, Registration, asked};

/// The registrations of a control plane. Cheap to clone; all clones are the same. The lock is
/// held shortly and never across a wait.
#[derive(Clone, Debug)]
pub struct Registrations {
    registry: Arc<Mutex<Registry>>,
    /// The number of the last change.
    changes: watch::Sender<u64>,
    /// The last change that is in force.
    in_force: watch::Sender<u64>,
}

impl Default for Registrations {
    fn default() -> Self {
        Self {
            registry: Arc::default(),
            changes: watch::Sender::new(0),
            in_force: watch::Sender::new(0),
        }
    }
}

impl Registrations {
    /// Those that were stored in a data directory, to be confirmed by their sidecars. Blocks
    /// on the disk.
    #[must_use]
    pub fn open(data: &Path) -> Self {
        let registrations = Self::default();
        registrations
            .registry
            .lock()
            .restore(kept::load(data), Instant::now());
        registrations
    }

    /// Stores them for the time after a restart. Blocks on the disk.
    ///
    /// # Errors
    /// When the data directory cannot be written.
    pub fn store(&self, data: &Path) -> io::Result<()> {
        let all: Vec<Arc<Registration>> = self.registry.lock().all().cloned().collect();
        kept::store(data, &all)
    }

    /// Puts a registration in force while the guard is kept.
    ///
    /// # Errors
    /// When it is one too many, or claims what is another's.
    pub fn register(&self, registration: Registration) -> Result<Registered, Refusal> {
        let workload = registration.workload().clone();
        let changed = self
            .registry
            .lock()
            .register(Arc::new(registration), Instant::now())?;
        Ok(Registered {
            change: self.changed(changed),
            registrations: self.clone(),
            workload,
            left: false,
        })
    }

    /// Forgets those that are gone for long enough.
    pub fn expire(&self) {
        let changed = self.registry.lock().expire(Instant::now());
        self.changed(changed);
    }

    /// Whether that workload has registered itself with that address.
    #[must_use]
    pub fn holds(&self, namespace: &str, name: &str, address: IpAddr) -> bool {
        self.registry.lock().holds(namespace, name, address)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.registry.lock().len()
    }

    /// The page `/debug/registrations`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        self.registry.lock().to_json(Instant::now())
    }

    /// Follows the number of the last change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The documents that the registrations stand for, sorted by name, and the number of the
    /// last change in them.
    #[must_use]
    pub(crate) fn documents(&self) -> (u64, Vec<Arc<Document>>) {
        // The number first: a change meanwhile is then at worst taken in twice.
        let change = *self.changes.borrow();
        (change, self.registry.lock().documents())
    }

    /// Notes that a mesh with all changes up to `change` is in force.
    pub fn put_in_force(&self, change: u64) {
        self.in_force.send_replace(change);
    }

    /// Numbers a change. Returns the number of the last one.
    fn changed(&self, changed: bool) -> u64 {
        if changed {
            self.changes.send_modify(|number| *number += 1);
        }
        *self.changes.borrow()
    }
}

/// A registration that a stream holds. Dropped, the stream broke: it is kept for
/// [`KEPT_AFTER_BREAK`].
#[derive(Debug)]
pub struct Registered {
    registrations: Registrations,
    workload: Workload,
    change: u64,
    left: bool,
}

impl Registered {
    /// Waits until a mesh with it is in force, for `time` at most; whether it is.
    pub async fn in_force(&self, time: Duration) -> bool {
        let mut in_force = self.registrations.in_force.subscribe();
        let reached = in_force.wait_for(|number| *number >= self.change);
        matches!(tokio::time::timeout(time, reached).await, Ok(Ok(_)))
    }

    /// The sidecar has left, and nobody calls it: the registration ends at once.
    pub fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut registry = self.registrations.registry.lock();
        let changed = registry.closed(&self.workload, self.left, Instant::now());
        drop(registry);
        self.registrations.changed(changed);
    }
}
