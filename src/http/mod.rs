//! The HTTP path: from a connection's bytes to the last byte of the answer.

mod admission;
mod authority;
mod forward;
mod headers;
mod pulse;
pub mod readings;
mod reply;
mod server;
mod stall;
mod tracked;
mod translate;
mod tunnel;

use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use weft_certs::spiffe::SpiffeId;

use crate::{
    cluster::{Cluster, Endpoint, Original, Pick},
    config::{ClusterType, Filter, HttpConfig},
    drain::{ConnectionGuard, Use},
    memory::{Account, Pressure},
    snapshot::{LiveFilter, LiveHost, LiveListener, LiveTable, MAX_NAME, Snapshot},
    telemetry::{RouteMetrics, Side, Tls},
    worker::{Admitted, Worker},
};

pub use server::{HttpVersion, serve};

/// What the requests of one connection share.
#[derive(Debug)]
pub struct Connection {
    /// The worker that serves it.
    pub worker: Arc<Worker>,
    /// The listener that accepted it.
    pub listener: Arc<LiveListener>,
    /// Which chain of the listener.
    pub chain: usize,
    /// Inside a CONNECT tunnel, or captured: the authority that all requests are for.
    pub only_authority: Option<Box<str>>,
    /// Captured: where it was meant to go.
    pub original: Option<Original>,
    /// The endpoint there, once it was called.
    made: OnceLock<(Arc<Cluster>, Arc<Endpoint>)>,
    /// Only configured probes of the application's health may pass: the client has not said
    /// who it is.
    pub probes_only: bool,
    /// How it is protected.
    pub tls: Tls,
    /// Who the client proved to be.
    pub peer: Option<SpiffeId>,
    pulse: Arc<pulse::Pulse>,
    server_metrics: Mutex<Vec<(Arc<str>, Arc<RouteMetrics>)>>,
    /// What was found for the last request: most clients stay with one authority.
    last: Mutex<Option<Found>>,
}

/// The virtual host of an authority, as a snapshot said.
#[derive(Debug)]
struct Found {
    /// Compared only. It keeps the place of a former snapshot, so that no later one has the
    /// same, but not what was in it.
    snapshot: Weak<Snapshot>,
    authority: Box<str>,
    host: Arc<LiveHost>,
}

/// Keeps a connection active, and a shutdown waiting for it, until dropped.
#[derive(Debug)]
struct HandedOver {
    _active: pulse::ActiveGuard,
    _open: ConnectionGuard,
    _admitted: Admitted,
}

/// Where a connection's routes are now.
enum Routes {
    Table(Arc<LiveTable>),
    NotReady,
}

impl Connection {
    /// A connection's context.
    #[must_use]
    pub fn new(
        worker: Arc<Worker>,
        listener: Arc<LiveListener>,
        chain: usize,
        tls: Tls,
        peer: Option<SpiffeId>,
        account: Arc<Account>,
    ) -> Self {
        Self {
            worker,
            listener,
            chain,
            only_authority: None,
            original: None,
            made: OnceLock::new(),
            probes_only: false,
            tls,
            peer,
            pulse: Arc::new(pulse::Pulse::new(account)),
            server_metrics: Mutex::default(),
            last: Mutex::default(),
        }
    }

    /// Counts what goes on when HTTP has ended: a switched connection or a tunnel.
    fn handed_over(&self) -> HandedOver {
        let drain = &self.worker.shared.drain;
        let open = drain.connection(&self.listener.config.name);
        open.becomes(Use::Switched);
        HandedOver {
            _active: self.pulse.hold(),
            _open: open,
            _admitted: self.worker.shared.admit_further(),
        }
    }

    /// The endpoint that a captured connection was meant for; `None` if the cluster has
    /// another way to find its endpoints.
    fn meant_for(&self, cluster: &Arc<Cluster>) -> Option<Pick> {
        let original = self.original.as_ref()?;
        if cluster.config.kind != ClusterType::Original {
            return None;
        }
        let make = || cluster.endpoint_at(original.destination, original.source);
        let (of, endpoint) = self.made.get_or_init(|| (cluster.clone(), make()));
        let same = Arc::ptr_eq(of, cluster);
        Some(Pick::new(if same { endpoint.clone() } else { make() }))
    }

    /// Whether its client is to go elsewhere after this request: there is a shutdown, or too
    /// little memory for connections that wait.
    fn is_fading(&self) -> bool {
        self.worker.shared.drain.is_draining() || self.is_short_of_memory()
    }

    /// Whether memory is too short for connections that wait.
    fn is_short_of_memory(&self) -> bool {
        self.worker.shared.memory.pressure() >= Pressure::High
    }

    /// Whose calls it carries.
    #[must_use]
    pub fn side(&self) -> Side {
        self.listener.side()
    }

    /// The connection manager's configuration.
    fn http(&self) -> Option<&HttpConfig> {
        match self
            .listener
            .config
            .chains
            .get(self.chain)
            .map(|chain| &chain.filter)
        {
            Some(Filter::Http(http)) => Some(http),
            _ => None,
        }
    }

    /// The route table in force: a long-lived connection follows the configuration.
    fn routes(&self, snapshot: &Snapshot) -> Routes {
        let current = snapshot.listeners.get(&self.listener.config.name);
        let filter = current
            .and_then(|listener| listener.chains.get(self.chain))
            .filter(|filter| !matches!(filter, LiveFilter::Tcp(_)))
            .or_else(|| self.listener.chains.get(self.chain));
        match filter {
            Some(LiveFilter::Http(table)) => Routes::Table(table.clone()),
            Some(LiveFilter::Rds(name)) => snapshot
                .tables
                .get(name)
                .cloned()
                .map_or(Routes::NotReady, Routes::Table),
            _ => Routes::NotReady,
        }
    }

    /// The virtual host of an authority if the last request was for it too, and this snapshot
    /// was in force.
    fn found_last(&self, snapshot: &Arc<Snapshot>, authority: &str) -> Option<Arc<LiveHost>> {
        let last = self.last.lock();
        let found = last.as_ref()?;
        let same = Weak::as_ptr(&found.snapshot) == Arc::as_ptr(snapshot);
        (same && *found.authority == *authority).then(|| found.host.clone())
    }

    /// Remembers a virtual host for [`Self::found_last`].
    fn found(&self, snapshot: &Arc<Snapshot>, authority: &str, host: &Arc<LiveHost>) {
        if authority.len() <= MAX_NAME {
            *self.last.lock() = Some(Found {
                snapshot: Arc::downgrade(snapshot),
                authority: authority.into(),
                host: host.clone(),
            });
        }
    }

    /// Where inbound requests of this client on a route are counted.
    fn server_metrics(&self, route: &Arc<str>) -> Arc<RouteMetrics> {
        let mut known = self.server_metrics.lock();
        if let Some((_, metrics)) = known.iter().find(|(name, _)| name == route) {
            return metrics.clone();
        }
        let port = self
            .listener
            .config
            .port
            .map(|port| port.to_string())
            .unwrap_or_default();
        let client = self.peer.as_ref().map_or(("unknown", ""), |peer| {
            (
                peer.service_account().unwrap_or("unknown"),
                peer.namespace().unwrap_or_default(),
            )
        });
        let metrics = self
            .worker
            .shared
            .metrics
            .server_route(&port, route, client, self.tls);
        known.push((route.clone(), metrics.clone()));
        metrics
    }
}
