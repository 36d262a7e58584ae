//! One immutable picture of the configuration, linked with live clusters. A request loads it
//! once and sees one configuration to its end.

mod linker;
mod table;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

pub use linker::{Linker, MAX_NAME, Wanted};
pub use table::{LiveTable, normalize};

use crate::{
    cluster::Cluster,
    config::{Direction, Filter, Listener, RouteAction, RouteSource, VirtualHost},
    telemetry::{ConnectionMetrics, RouteMetrics, Side},
};

/// The configuration in force. Immutable.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By resource name.
    pub listeners: HashMap<Arc<str>, Arc<LiveListener>>,
    /// Listeners without a socket of their own, by port.
    handed_over: HashMap<u16, Arc<LiveListener>>,
    /// Route tables from RDS.
    pub tables: HashMap<Arc<str>, Arc<LiveTable>>,
    /// Looked-up authorities, by their VHDS name; `None` is known not to exist.
    pub hosts: HashMap<Arc<str>, Option<Arc<LiveHost>>>,
    /// By resource name.
    pub clusters: HashMap<Arc<str>, Arc<Cluster>>,
}

/// A listener with its chains resolved.
#[derive(Debug)]
pub struct LiveListener {
    /// As configured.
    pub config: Arc<Listener>,
    /// One for each chain of the configuration.
    pub chains: Vec<LiveFilter>,
}

impl Snapshot {
    /// The listener that takes captured connections for a port of the application.
    #[must_use]
    pub fn handed_over(&self, port: u16) -> Option<&Arc<LiveListener>> {
        self.handed_over.get(&port)
    }
}

impl LiveListener {
    /// Whose calls it carries.
    #[must_use]
    pub fn side(&self) -> Side {
        match self.config.direction {
            Direction::Inbound => Side::Server,
            Direction::Outbound => Side::Client,
        }
    }
}

/// What a chain hands its connections to.
#[derive(Debug)]
pub enum LiveFilter {
    /// HTTP with an inline route table.
    Http(Arc<LiveTable>),
    /// HTTP with the route table of this name.
    Rds(Arc<str>),
    /// Opaque TCP: one backend for each weighted cluster.
    Tcp(Vec<TcpBackend>),
}

/// One share of a TCP listener's connections.
#[derive(Debug)]
pub struct TcpBackend {
    /// `None`: the cluster does not exist.
    pub cluster: Option<Arc<Cluster>>,
    /// Its share.
    pub weight: u32,
    /// A connection without a byte in this time is closed.
    pub idle_timeout: Option<std::time::Duration>,
    /// Where its connections are counted.
    pub metrics: ConnectionMetrics,
}

/// A virtual host with its routes resolved.
#[derive(Debug)]
pub struct LiveHost {
    /// As configured.
    pub config: Arc<VirtualHost>,
    /// One for each route of the configuration.
    pub routes: Vec<Vec<Backend>>,
    /// Where captured TCP connections go: the backends of the CONNECT route.
    pub tcp: Vec<TcpBackend>,
    /// Where requests are counted that match no route, or that need no backend.
    pub unrouted: Option<Arc<RouteMetrics>>,
    /// Seconds since the start of the process, at the last request.
    last_used: AtomicU32,
}

/// One share of a route's requests.
#[derive(Debug)]
pub struct Backend {
    /// The service's name: the metric label.
    pub name: Arc<str>,
    /// `None`: it does not exist or is not permitted.
    pub cluster: Option<Arc<Cluster>>,
    /// Where its requests are counted, on the client side.
    pub metrics: Option<Arc<RouteMetrics>>,
}

impl LiveHost {
    /// Remembers that a request came.
    pub fn touch(&self, now_seconds: u32) {
        if self.last_used.load(Ordering::Relaxed) != now_seconds {
            self.last_used.store(now_seconds, Ordering::Relaxed);
        }
    }

    /// When the last request came, seconds since the start of the process.
    #[must_use]
    pub fn last_used(&self) -> u32 {
        self.last_used.load(Ordering::Relaxed)
    }
}

/// The snapshot in force, and a signal when it changes.
#[derive(Debug)]
pub struct SnapshotStore {
    current: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self {
            current: ArcSwap::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl SnapshotStore {
    /// The snapshot now. Do not hold it across an await; see [`Self::load_full`].
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The snapshot now, to keep.
    #[must_use]
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts a snapshot into force.
    pub fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// Changes with each snapshot.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// The names of the clusters that a virtual host refers to.
fn clusters_of(host: &VirtualHost) -> impl Iterator<Item = &Arc<str>> {
    host.routes
        .iter()
        .filter_map(|route| match &route.action {
            RouteAction::Forward(forward) => Some(&forward.clusters),
            RouteAction::Redirect(_) | RouteAction::Direct(_) => None,
        })
        .flat_map(|weighted| weighted.clusters.iter().map(|cluster| &cluster.name))
}

/// The names of the clusters that a listener refers to, without those of RDS tables.
fn clusters_of_listener(listener: &Listener) -> Vec<&Arc<str>> {
    let mut names = Vec::new();
    for chain in &listener.chains {
        match &chain.filter {
            Filter::Http(http) => {
                if let RouteSource::Inline(table) = &http.routes {
                    names.extend(
                        table
                            .virtual_hosts
                            .iter()
                            .flat_map(|host| clusters_of(host)),
                    );
                }
            }
            Filter::Tcp(tcp) => names.extend(tcp.clusters.clusters.iter().map(|c| &c.name)),
        }
    }
    names
}
