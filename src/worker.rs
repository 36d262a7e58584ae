//! What every connection of one worker thread shares.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::{
    cluster::{Cluster, Original, Pick},
    config::ClusterType,
    dns::Resolver,
    drain::Drain,
    error::{Error, Reason},
    identity::IdentityStore,
    limits::Limits,
    memory::{Account, Charge, Memory, Opened},
    snapshot::{LiveHost, SnapshotStore},
    telemetry::{AccessLog, Metrics},
    upstream::Connector,
    util::{Place, Places, Rng},
};

/// How long a first look-up waits for the control plane.
pub const LOOKUP: Duration = Duration::from_secs(5);
/// The same while there is no connection to one; it may be about to come.
const DISCONNECTED_LOOKUP: Duration = Duration::from_secs(1);

/// What a connection of a client costs at the least: its buffers, and the tasks that serve it.
const CONNECTION: usize = 16 * 1024;

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
    /// The bounds in force.
    pub limits: Arc<Limits>,
    /// The memory of the process.
    pub memory: Arc<Memory>,
    /// Places for connections of clients.
    pub places: Arc<Places>,
    /// Plaintext GETs that strict ports let through: the application's port, path and query.
    pub probes: Arc<[(u16, PathAndQuery)]>,
    /// Finds the addresses of names outside of the mesh.
    pub resolver: Arc<Resolver>,
    /// Asks for destinations that the snapshot does not have, by VHDS name.
    pub demand: mpsc::UnboundedSender<String>,
    /// When the process started.
    pub started: Instant,
}

/// What an open connection of a client takes from the process, until it is dropped.
#[derive(Debug)]
pub struct Admitted {
    _place: Place,
    _memory: Option<Charge>,
    opened: Opened,
}

impl Admitted {
    /// What the connection makes the process keep.
    #[must_use]
    pub fn account(&self) -> Arc<Account> {
        self.opened.account().clone()
    }

    /// Its number, for [`Memory::served_by`].
    #[must_use]
    pub fn number(&self) -> u64 {
        self.opened.number()
    }
}

/// What the control plane says of a destination's name.
#[derive(Clone, Debug)]
pub enum Found {
    /// It is this.
    Host(Arc<LiveHost>),
    /// It is nothing of the mesh.
    Absent,
}

impl Shared {
    /// Whether there is a connection to the control plane.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.metrics.control_connected.get() == 1
    }

    /// Lets a connection of a client in.
    ///
    /// # Errors
    /// With what there is too little of, as `weft_overloaded_total` calls it.
    pub fn admit(&self) -> Result<Admitted, &'static str> {
        let place = self.places.take().ok_or("connections")?;
        let memory = self.memory.charge(CONNECTION).ok_or("memory")?;
        Ok(Admitted {
            _place: place,
            _memory: Some(memory),
            opened: Opened::new(&self.memory),
        })
    }

    /// Counts what goes on from a connection that was let in, when that ends.
    #[must_use]
    pub fn admit_further(&self) -> Admitted {
        Admitted {
            _place: self.places.overfill(),
            _memory: self.memory.charge(CONNECTION),
            opened: Opened::new(&self.memory),
        }
    }

    /// What is known of a VHDS name; `None`: it was not looked up yet.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<Found> {
        match self.snapshots.load().hosts.get(name)? {
            Some(host) => {
                host.touch(self.started.elapsed().as_secs() as u32);
                Some(Found::Host(host.clone()))
            }
            None => Some(Found::Absent),
        }
    }

    /// The same, asking the control plane first if need be: for at most 5 s, or 1 s without a
    /// connection to one. `None`: it did not answer. Cancel safe.
    pub async fn look_up(&self, name: &str) -> Option<Found> {
        if let Some(found) = self.host(name) {
            return Some(found);
        }
        let patience = if self.is_connected() {
            LOOKUP
        } else {
            DISCONNECTED_LOOKUP
        };
        self.ask(name.to_owned(), patience, || self.host(name))
            .await
    }

    /// Asks the control plane for a name, and looks with `find` at each configuration that
    /// comes until it is there. `None`: it was not, for `patience`. Cancel safe.
    pub async fn ask<T>(
        &self,
        name: String,
        patience: Duration,
        mut find: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let mut changes = self.snapshots.watch();
        // The receiver is gone only when the process ends.
        let _ = self.demand.send(name);
        let waiting = async {
            loop {
                if let Some(found) = find() {
                    return Some(found);
                }
                changes.changed().await.ok()?;
            }
        };
        timeout(patience, waiting).await.ok()?
    }
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
            limits: shared.limits.clone(),
        };
        Arc::new(Self {
            id,
            shared,
            connector,
            rng: Rng::new(seed.wrapping_add(id as u64)),
        })
    }

    /// Chooses an endpoint that is not among `tried`; `None` if there is none.
    ///
    /// # Errors
    /// When a cluster of the original destination is used without one, or a name has no
    /// address.
    pub async fn pick(
        &self,
        cluster: &Cluster,
        tried: &[SocketAddr],
        original: Option<&Original>,
    ) -> Result<Option<Pick>, Error> {
        match &cluster.config.kind {
            ClusterType::Eds(_) | ClusterType::Static(_) => Ok(cluster.pick(tried, &self.rng)),
            ClusterType::Original => {
                let Some(original) = original else {
                    let words = format!(
                        "{} has no destination: the connection was made to the sidecar's own port",
                        cluster.config.name
                    );
                    return Err(Error::new(Reason::LoopDetected, words));
                };
                let pick = cluster.pick_at(original.destination, original.source);
                Ok(tried.is_empty().then_some(pick))
            }
            ClusterType::Dns { host, port } => {
                Box::pin(self.pick_named(cluster, host, *port, tried)).await
            }
        }
    }

    async fn pick_named(
        &self,
        cluster: &Cluster,
        host: &str,
        port: u16,
        tried: &[SocketAddr],
    ) -> Result<Option<Pick>, Error> {
        let addresses = self
            .shared
            .resolver
            .addresses(host)
            .await
            .map_err(|error| Error::new(Reason::NoEndpoints, error))?;
        let untried: Vec<_> = addresses
            .iter()
            .map(|ip| SocketAddr::new(*ip, port))
            .filter(|address| !tried.contains(address))
            .collect();
        let Some(last) = untried.len().checked_sub(1) else {
            return Ok(None);
        };
        let chosen = untried[self.rng.next() as usize % (last + 1)];
        Ok(Some(cluster.pick_at(chosen, None)))
    }

    /// Seconds since the process started.
    #[must_use]
    pub fn seconds(&self) -> u32 {
        self.shared.started.elapsed().as_secs() as u32
    }
}
