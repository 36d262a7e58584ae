//! Who drains and who has registered, on disk for the time after a restart.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cache::{Snapshots, Workload, store_draining};
use crate::registration::Registrations;
use crate::storage::DataLock;

/// How often is looked for registrations whose sidecars are gone.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two writes of who drains and who has registered.
const STORE_PAUSE: Duration = Duration::from_millis(100);

/// The files of which workloads drain and which have registered themselves. Writes go one
/// after the other, each with what is true when it begins: one that is late must not undo the
/// last.
pub(crate) struct Presence {
    data: PathBuf,
    snapshots: Snapshots,
    registrations: Registrations,
    /// What is in the files: the workloads that drain, and the last change of registrations.
    stored: Mutex<Option<(BTreeSet<Workload>, u64)>>,
    _lock: Option<DataLock>,
}

impl Presence {
    /// Nothing is stored yet.
    pub(crate) fn new(
        data: PathBuf,
        snapshots: Snapshots,
        registrations: Registrations,
        lock: Option<DataLock>,
    ) -> Self {
        Self {
            data,
            snapshots,
            registrations,
            stored: Mutex::new(None),
            _lock: lock,
        }
    }

    /// Stores what is different now. Blocks on the disk.
    pub(crate) fn store(&self) {
        let mut stored = self.stored.lock();
        let draining = self.snapshots.current().draining().clone();
        if stored
            .as_ref()
            .is_none_or(|(before, _)| *before != draining)
        {
            store_draining(&self.data, &draining);
        }
        let change = *self.registrations.subscribe().borrow();
        if stored.as_ref().is_none_or(|(_, before)| *before != change)
            && let Err(error) = self.registrations.store(&self.data)
        {
            tracing::warn!(data = %self.data.display(), %error, "cannot store the registrations: a restart forgets them");
        }
        *stored = Some((draining, change));
    }
}

/// Stores who drains and who has registered whenever that changes, forever; only the latest
/// matters.
pub(crate) async fn remember(presence: Option<Arc<Presence>>) {
    let Some(presence) = presence else {
        return std::future::pending().await;
    };
    let mut snapshots = presence.snapshots.subscribe();
    let mut registrations = presence.registrations.subscribe();
    loop {
        tokio::select! {
            // Neither fails: we hold the other sides.
            _ = snapshots.changed() => {}
            _ = registrations.changed() => {}
        }
        snapshots.mark_unchanged();
        registrations.mark_unchanged();
        let presence = presence.clone();
        // A panic inside is logged by its hook; the next change stores all again.
        let _ = tokio::task::spawn_blocking(move || presence.store()).await;
        tokio::time::sleep(STORE_PAUSE).await;
    }
}

/// Forgets registrations whose sidecars are gone, forever.
pub(crate) async fn expire(registrations: Registrations) {
    let mut interval = tokio::time::interval(EXPIRE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        registrations.expire();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::load_draining;
    use crate::source::FileSource;

    #[test]
    fn a_late_write_stores_what_is_true_by_then() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        std::fs::create_dir(&config).unwrap();
        let workload = "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: post, namespace: blog}\nspec: {address: 127.0.0.1}\n";
        std::fs::write(config.join("a.yaml"), workload).unwrap();
        let mesh = FileSource::new(&config).load().mesh;
        let presence = Arc::new(Presence::new(
            directory.path().to_owned(),
            Snapshots::new(mesh, "", BTreeSet::new()),
            Registrations::default(),
            None,
        ));
        let before = presence.stored.lock();
        let late = std::thread::spawn({
            let presence = presence.clone();
            move || presence.store()
        });
        std::thread::park_timeout(Duration::from_millis(20));
        drop(presence.snapshots.connected("blog", "post").ended());
        drop(before);
        late.join().unwrap();
        assert_eq!(load_draining(directory.path()).len(), 1);
    }
}
