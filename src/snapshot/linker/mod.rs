//! From resources to snapshots: what is referred to is resolved, what lives is carried over,
//! and what is incomplete waits while the old stays in force. Owned by one task.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use weft_api::Kind;

use super::{
    Backend, LiveFilter, LiveHost, LiveListener, LiveTable, Snapshot, TcpBackend, clusters_of,
    clusters_of_listener,
};
use crate::{
    cluster::Cluster,
    config::{
        Arrival, ClusterConfig, ClusterType, Direction, Endpoints, Filter, Listener, PortProtocol,
        RouteAction, RouteSource, RouteTable, TcpConfig, Value, VirtualHost, WeightedClusters,
    },
    telemetry::{Metrics, Side, Tls},
};

/// A destination that no request asked for in this time is given up.
const UNUSED: Duration = Duration::from_secs(600);
/// Looked-up authorities at one time. Each is up to three names of the stream (virtual host,
/// cluster, endpoints), which may have 10,000 (docs/xds.md).
const MAX_HOSTS: usize = 2048;
/// The longest VHDS name that is asked for, bytes: a host name of 253, a port, a table.
/// One that is too long for the control plane would end the stream, again and again.
pub const MAX_NAME: usize = 320;
/// When there are too many, those that no request asked for in this time, seconds, make room.
const IDLE_SECONDS: u32 = 10;

/// A captured connection without a byte in this time is closed.
const IDLE: Option<Duration> = Some(Duration::from_secs(3600));

/// Resource names to be subscribed to, by kind.
pub type Wanted = BTreeSet<(Kind, Arc<str>)>;

/// What the control plane said about a name.
#[derive(Debug)]
enum Known<T> {
    Here(Arc<T>),
    Absent,
}

impl<T> Known<T> {
    fn here(&self) -> Option<&Arc<T>> {
        match self {
            Self::Here(value) => Some(value),
            Self::Absent => None,
        }
    }
}

type Resources<T> = BTreeMap<Arc<str>, Known<T>>;

/// All resources, and what was linked from them last.
#[derive(Debug)]
pub struct Linker {
    metrics: Arc<Metrics>,
    workers: usize,
    listeners: Resources<Listener>,
    tables: Resources<RouteTable>,
    hosts: Resources<VirtualHost>,
    clusters: Resources<ClusterConfig>,
    endpoints: Resources<Endpoints>,
    /// Authorities that requests asked for, and when (seconds) they were asked for first.
    demanded: BTreeMap<Arc<str>, u32>,
    live: Live,
}

#[derive(Debug, Default)]
struct Live {
    listeners: HashMap<Arc<str>, Arc<LiveListener>>,
    tables: HashMap<Arc<str>, Arc<LiveTable>>,
    hosts: HashMap<Arc<str>, Option<Arc<LiveHost>>>,
    clusters: HashMap<Arc<str>, Arc<Cluster>>,
}

impl Linker {
    /// A linker without resources.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, workers: usize) -> Self {
        Self {
            metrics,
            workers,
            listeners: BTreeMap::new(),
            tables: BTreeMap::new(),
            hosts: BTreeMap::new(),
            clusters: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            demanded: BTreeMap::new(),
            live: Live::default(),
        }
    }

    /// Takes a resource. Endpoints of a live cluster are in force at once; true means that
    /// [`Self::link`] has something to do.
    pub fn update(&mut self, name: &Arc<str>, value: Value) -> bool {
        let name = name.clone();
        match value {
            Value::Listener(v) => drop(self.listeners.insert(name, Known::Here(v))),
            Value::Route(v) => drop(self.tables.insert(name, Known::Here(v))),
            Value::VirtualHost(v) => drop(self.hosts.insert(name, Known::Here(v))),
            Value::Cluster(v) => drop(self.clusters.insert(name, Known::Here(v))),
            Value::Endpoints(v) => {
                let known = self.live.clusters.values().filter(
                    |cluster| matches!(&cluster.config.kind, ClusterType::Eds(eds) if *eds == name),
                );
                let mut linked = false;
                for cluster in known {
                    cluster.update(&v, self.workers);
                    cluster.publish(&self.metrics);
                    linked = true;
                }
                self.endpoints.insert(name, Known::Here(v));
                return !linked;
            }
            Value::Secret(_) => return false,
        }
        true
    }

    /// Takes the news that a resource does not exist (any more).
    pub fn remove(&mut self, kind: Kind, name: &Arc<str>) -> bool {
        match kind {
            Kind::Listener => drop(self.listeners.remove(name)),
            Kind::Route => drop(self.tables.insert(name.clone(), Known::Absent)),
            Kind::VirtualHost => drop(self.hosts.insert(name.clone(), Known::Absent)),
            Kind::Cluster => drop(self.clusters.insert(name.clone(), Known::Absent)),
            Kind::Endpoint => drop(self.endpoints.insert(name.clone(), Known::Absent)),
            Kind::Secret => return false,
        }
        true
    }

    /// A request asks for an authority by its VHDS name. False if it cannot be looked up:
    /// there are too many, or no name is as long.
    pub fn demand(&mut self, name: &str, now_seconds: u32) -> bool {
        if self.demanded.contains_key(name) {
            return true;
        }
        if name.len() > MAX_NAME
            || (self.demanded.len() >= MAX_HOSTS && !self.give_up_one(now_seconds))
        {
            return false;
        }
        self.demanded.insert(name.into(), now_seconds);
        true
    }

    /// Makes room for one more: names that do not exist must not keep out those that do, and
    /// a scan of many ports or names must not keep out what is called next.
    fn give_up_one(&mut self, now_seconds: u32) -> bool {
        let absent = |name: &Arc<str>| matches!(self.live.hosts.get(name), Some(None));
        let candidates = self.demanded.iter().map(|(name, since)| {
            let used = self.last_used(name, *since);
            (!absent(name), used, name)
        });
        let idle = |used: u32| now_seconds.saturating_sub(used) >= IDLE_SECONDS;
        let least = candidates
            .min()
            .filter(|(exists, used, _)| !exists || idle(*used))
            .map(|(.., name)| name.clone());
        least.is_some_and(|name| self.demanded.remove(&name).is_some())
    }

    /// When a name that is demanded since then was asked for last, in seconds.
    fn last_used(&self, name: &str, since: u32) -> u32 {
        let host = self.live.hosts.get(name).and_then(Option::as_ref);
        host.map_or(since, |host| host.last_used().max(since))
    }

    /// Gives up destinations that nobody has asked for lately; true if there were any.
    pub fn expire(&mut self, now_seconds: u32) -> bool {
        let before = self.demanded.len();
        let unused = UNUSED.as_secs() as u32;
        let mut demanded = std::mem::take(&mut self.demanded);
        demanded.retain(|name, since| {
            now_seconds.saturating_sub(self.last_used(name, *since)) < unused
        });
        self.demanded = demanded;
        self.demanded.len() != before
    }

    /// Resolves everything. What refers to something that has not arrived keeps its last
    /// linked form, or stays away.
    pub fn link(&mut self) -> (Snapshot, Wanted) {
        self.live.clusters = self.link_clusters();
        self.live.hosts = self.link_hosts();
        self.live.tables = self.link_tables();
        self.live.listeners = self.link_listeners();
        let wanted = self.wanted();
        self.forget_unwanted(&wanted);
        let handed_over =
            |listener: &&Arc<LiveListener>| listener.config.arrival == Arrival::HandedOver;
        let snapshot = Snapshot {
            handed_over: (self.live.listeners.values().filter(handed_over))
                .map(|listener| (listener.config.address.port(), listener.clone()))
                .collect(),
            listeners: self.live.listeners.clone(),
            tables: self.live.tables.clone(),
            hosts: self.live.hosts.clone(),
            clusters: self.live.clusters.clone(),
        };
        (snapshot, wanted)
    }

    /// Listeners that wait for what they refer to, as of the last [`Self::link`].
    #[must_use]
    pub fn waiting(&self) -> Vec<Arc<str>> {
        let names = self.listeners.keys();
        names
            .filter(|name| !self.live.listeners.contains_key(*name))
            .cloned()
            .collect()
    }

    fn link_clusters(&self) -> HashMap<Arc<str>, Arc<Cluster>> {
        let mut clusters = HashMap::new();
        for (name, known) in &self.clusters {
            let live = self.live.clusters.get(name);
            // A cluster that was removed but is still referred to stays until it is not.
            let Some(config) = known.here() else {
                if let Some(live) = live.filter(|_| self.is_referred_to(name)) {
                    clusters.insert(name.clone(), live.clone());
                }
                continue;
            };
            let same = live.filter(|live| live.config == *config);
            let cluster = match (&config.kind, same) {
                (_, Some(live)) => Some(live.clone()),
                (ClusterType::Static(endpoints), None) => {
                    Some(self.new_cluster(config, endpoints, live))
                }
                (ClusterType::Original | ClusterType::Dns { .. }, None) => {
                    Some(self.new_cluster(config, &Endpoints::default(), live))
                }
                (ClusterType::Eds(eds), None) => match self.endpoints.get(eds) {
                    Some(Known::Here(endpoints)) => Some(self.new_cluster(config, endpoints, live)),
                    Some(Known::Absent) => {
                        Some(self.new_cluster(config, &Endpoints::default(), live))
                    }
                    None => live.cloned(),
                },
            };
            if let Some(cluster) = cluster {
                clusters.insert(name.clone(), cluster);
            }
        }
        clusters
    }

    fn new_cluster(
        &self,
        config: &Arc<ClusterConfig>,
        endpoints: &Endpoints,
        live: Option<&Arc<Cluster>>,
    ) -> Arc<Cluster> {
        let previous = live.map(|cluster| &**cluster);
        let cluster = Cluster::link(config.clone(), endpoints, previous, self.workers);
        cluster.publish(&self.metrics);
        Arc::new(cluster)
    }

    fn is_referred_to(&self, name: &Arc<str>) -> bool {
        let by_host = self
            .live
            .hosts
            .values()
            .flatten()
            .any(|host| clusters_of(&host.config).any(|cluster| cluster == name));
        let by_table = || {
            let hosts = self.live.tables.values().flat_map(|table| table.hosts());
            hosts
                .flat_map(|host| clusters_of(&host.config))
                .any(|cluster| cluster == name)
        };
        by_host
            || by_table()
            || self
                .live
                .listeners
                .values()
                .any(|listener| clusters_of_listener(&listener.config).contains(&name))
    }

    /// Whether all these clusters are linked or known not to exist.
    fn resolved<'a>(&self, mut names: impl Iterator<Item = &'a Arc<str>>) -> bool {
        names.all(|name| {
            self.live.clusters.contains_key(name)
                || matches!(self.clusters.get(name), Some(Known::Absent))
        })
    }

    fn link_hosts(&self) -> HashMap<Arc<str>, Option<Arc<LiveHost>>> {
        let mut hosts = HashMap::new();
        for name in self.demanded.keys() {
            let live = self.live.hosts.get(name);
            let linked = match self.hosts.get(name) {
                Some(Known::Absent) => Some(None),
                Some(Known::Here(config)) if self.resolved(clusters_of(config)) => {
                    Some(Some(self.link_demanded(name, config)))
                }
                // Not here yet: what was linked before stays in force, with its clusters as
                // they are now.
                _ => live.map(|live| Some(self.link_demanded(name, &live.as_ref()?.config))),
            };
            if let Some(linked) = linked {
                hosts.insert(name.clone(), linked);
            }
        }
        hosts
    }

    fn link_demanded(&self, name: &str, config: &Arc<VirtualHost>) -> Arc<LiveHost> {
        let previous = self.live.hosts.get(name).and_then(Option::as_ref);
        let captured = is_address(name).then_some(&**config);
        let tcp = captured.map_or_else(Vec::new, |config| self.captured_tcp(config));
        self.link_host(config, Side::Client, tcp, previous)
    }

    fn link_host(
        &self,
        config: &Arc<VirtualHost>,
        side: Side,
        tcp: Vec<TcpBackend>,
        previous: Option<&Arc<LiveHost>>,
    ) -> Arc<LiveHost> {
        let (service, namespace) = self.labels_of(config);
        let routes: Vec<Vec<Backend>> = config
            .routes
            .iter()
            .map(|route| match &route.action {
                RouteAction::Forward(forward) => self.backends(&forward.clusters, |name, tls| {
                    (side == Side::Client).then(|| {
                        self.metrics
                            .client_route((service, namespace), &route.name, name, tls)
                    })
                }),
                RouteAction::Redirect(_) | RouteAction::Direct(_) => Vec::new(),
            })
            .collect();
        if let Some(previous) = previous
            && previous.config == *config
            && same_clusters(&previous.routes, &routes)
        {
            return previous.clone();
        }
        // A name that DNS asks for takes no requests.
        let routed = side == Side::Client && config.addresses.is_none();
        let unrouted = routed.then(|| {
            self.metrics
                .client_route((service, namespace), "", "", Tls::None)
        });
        let last_used = AtomicU32::new(previous.map_or(0, |host| host.last_used()));
        Arc::new(LiveHost {
            tcp,
            config: config.clone(),
            routes,
            unrouted,
            last_used,
        })
    }

    /// The metric labels of the service and namespace that a virtual host is of: those of its
    /// own cluster, or what names say.
    fn labels_of<'a>(&'a self, host: &'a VirtualHost) -> (&'a str, &'a str) {
        let own = own_cluster(host);
        let live = own.and_then(|name| self.live.clusters.get(name));
        match live.map(|cluster| &cluster.config) {
            Some(config) if !config.namespace.is_empty() => (&config.service, &config.namespace),
            _ => service_of(own.unwrap_or(&host.name)),
        }
    }

    /// The backends of a virtual host's CONNECT route, for connections that carry bytes.
    fn captured_tcp(&self, config: &VirtualHost) -> Vec<TcpBackend> {
        if config.protocol == PortProtocol::Http {
            return Vec::new();
        }
        let connect = config.routes.iter().find_map(|route| match &route.action {
            RouteAction::Forward(forward) if forward.terminate_connect => Some(forward),
            _ => None,
        });
        let Some(forward) = connect else {
            return Vec::new();
        };
        self.backends(&forward.clusters, |_, _| None)
            .into_iter()
            .zip(&forward.clusters.clusters)
            .map(|(backend, entry)| {
                let tls = backend.cluster.as_ref().map_or(Tls::None, |c| c.tls());
                let target = client_target(&backend);
                TcpBackend {
                    metrics: self.metrics.connections(Side::Client, &target, tls),
                    cluster: backend.cluster,
                    weight: entry.weight,
                    idle_timeout: IDLE,
                }
            })
            .collect()
    }

    fn backends<M>(&self, weighted: &WeightedClusters, metrics: M) -> Vec<Backend>
    where
        M: Fn(&str, Tls) -> Option<Arc<crate::telemetry::RouteMetrics>>,
    {
        weighted
            .clusters
            .iter()
            .map(|entry| {
                let cluster = self.live.clusters.get(&entry.name).cloned();
                let name = cluster.as_ref().map_or_else(
                    || entry.name.clone(),
                    |cluster| cluster.config.service.clone(),
                );
                let tls = cluster.as_ref().map_or(Tls::None, |cluster| cluster.tls());
                Backend {
                    metrics: metrics(&name, tls),
                    name,
                    cluster,
                }
            })
            .collect()
    }

    fn link_table(
        &self,
        config: &Arc<RouteTable>,
        side: Side,
        previous: Option<&Arc<LiveTable>>,
    ) -> Arc<LiveTable> {
        let before = |host: &Arc<VirtualHost>| {
            previous.and_then(|table| table.hosts().find(|live| live.config.name == host.name))
        };
        let hosts: Vec<_> = config
            .virtual_hosts
            .iter()
            .map(|host| self.link_host(host, side, Vec::new(), before(host)))
            .collect();
        if let Some(previous) = previous
            && previous.config == *config
            && previous.hosts().count() == hosts.len()
            && previous.hosts().zip(&hosts).all(|(a, b)| Arc::ptr_eq(a, b))
        {
            return previous.clone();
        }
        Arc::new(LiveTable::new(config.clone(), &hosts))
    }

    fn link_tables(&self) -> HashMap<Arc<str>, Arc<LiveTable>> {
        let mut tables = HashMap::new();
        for (name, known) in &self.tables {
            let live = self.live.tables.get(name);
            let table = match known {
                Known::Here(config)
                    if self.resolved(
                        config
                            .virtual_hosts
                            .iter()
                            .flat_map(|host| clusters_of(host)),
                    ) =>
                {
                    Some(self.link_table(config, Side::Client, live))
                }
                _ => live.map(|live| self.link_table(&live.config, Side::Client, Some(live))),
            };
            if let Some(table) = table {
                tables.insert(name.clone(), table);
            }
        }
        tables
    }

    fn link_listeners(&self) -> HashMap<Arc<str>, Arc<LiveListener>> {
        let mut listeners = HashMap::new();
        for (name, config) in &self.listeners {
            let Some(config) = config.here() else {
                continue;
            };
            let live = self.live.listeners.get(name);
            let tables_here = config.chains.iter().all(|chain| match &chain.filter {
                Filter::Http(http) => match &http.routes {
                    RouteSource::Rds(table) => self.live.tables.contains_key(table),
                    RouteSource::Inline(_) => true,
                },
                Filter::Tcp(_) => true,
            });
            let warm = tables_here && self.resolved(clusters_of_listener(config).into_iter());
            let linked = if warm {
                Some(self.link_listener(config, live))
            } else {
                live.map(|live| self.link_listener(&live.config, Some(live)))
            };
            if let Some(linked) = linked {
                listeners.insert(name.clone(), linked);
            }
        }
        listeners
    }

    fn link_listener(
        &self,
        config: &Arc<Listener>,
        previous: Option<&Arc<LiveListener>>,
    ) -> Arc<LiveListener> {
        let side = match config.direction {
            Direction::Inbound => Side::Server,
            Direction::Outbound => Side::Client,
        };
        let chains = config
            .chains
            .iter()
            .enumerate()
            .map(|(index, chain)| match &chain.filter {
                Filter::Http(http) => match &http.routes {
                    RouteSource::Rds(name) => LiveFilter::Rds(name.clone()),
                    RouteSource::Inline(table) => {
                        let before =
                            previous.and_then(|listener| match listener.chains.get(index) {
                                Some(LiveFilter::Http(table)) => Some(table),
                                _ => None,
                            });
                        LiveFilter::Http(self.link_table(table, side, before))
                    }
                },
                Filter::Tcp(tcp) => LiveFilter::Tcp(self.tcp_backends(config, side, tcp)),
            })
            .collect();
        Arc::new(LiveListener {
            config: config.clone(),
            chains,
        })
    }

    fn tcp_backends(&self, listener: &Listener, side: Side, tcp: &TcpConfig) -> Vec<TcpBackend> {
        self.backends(&tcp.clusters, |_, _| None)
            .into_iter()
            .zip(&tcp.clusters.clusters)
            .map(|(backend, entry)| {
                let target = match side {
                    Side::Client => client_target(&backend),
                    Side::Server => listener
                        .port
                        .map(|port| port.to_string())
                        .unwrap_or_default(),
                };
                let tls = match side {
                    Side::Client => backend.cluster.as_ref().map_or(Tls::None, |c| c.tls()),
                    Side::Server if listener.chains.iter().any(|c| c.tls.is_some()) => Tls::Mtls,
                    Side::Server => Tls::None,
                };
                let metrics = self.metrics.connections(side, &target, tls);
                TcpBackend {
                    cluster: backend.cluster,
                    weight: entry.weight,
                    idle_timeout: tcp.idle_timeout,
                    metrics,
                }
            })
            .collect()
    }

    /// Every name that something refers to: also what is in force and about to be replaced,
    /// whose clusters must not grow old while it is.
    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::new();
        let mut clusters: BTreeSet<Arc<str>> = BTreeSet::new();
        let hosts = self.live.hosts.values().flatten();
        let tables = self.live.tables.values().flat_map(|table| table.hosts());
        for host in hosts.chain(tables) {
            clusters.extend(clusters_of(&host.config).cloned());
        }
        for listener in self.live.listeners.values() {
            clusters.extend(clusters_of_listener(&listener.config).into_iter().cloned());
        }
        for listener in self.listeners.values().filter_map(Known::here) {
            for chain in &listener.chains {
                if let Filter::Http(http) = &chain.filter
                    && let RouteSource::Rds(name) = &http.routes
                {
                    wanted.insert((Kind::Route, name.clone()));
                }
                if let Some(tls) = &chain.tls {
                    wanted.insert((Kind::Secret, tls.bundle.clone()));
                }
            }
            clusters.extend(clusters_of_listener(listener).into_iter().cloned());
        }
        for table in self.tables.values().filter_map(Known::here) {
            clusters.extend(
                table
                    .virtual_hosts
                    .iter()
                    .flat_map(|host| clusters_of(host))
                    .cloned(),
            );
        }
        for name in self.demanded.keys() {
            wanted.insert((Kind::VirtualHost, name.clone()));
            if let Some(Known::Here(host)) = self.hosts.get(name) {
                clusters.extend(clusters_of(host).cloned());
            }
        }
        for name in clusters {
            if let Some(Known::Here(config)) = self.clusters.get(&name) {
                if let ClusterType::Eds(eds) = &config.kind {
                    wanted.insert((Kind::Endpoint, eds.clone()));
                }
                if let Some(tls) = &config.tls {
                    wanted.insert((Kind::Secret, tls.bundle.clone()));
                }
            }
            wanted.insert((Kind::Cluster, name));
        }
        wanted
    }

    /// Drops resources that nothing refers to, so that asking again means asking anew.
    fn forget_unwanted(&mut self, wanted: &Wanted) {
        let wants = |kind: Kind| move |name: &Arc<str>| wanted.contains(&(kind, name.clone()));
        self.tables.retain(|name, _| wants(Kind::Route)(name));
        self.hosts.retain(|name, _| wants(Kind::VirtualHost)(name));
        self.clusters.retain(|name, _| wants(Kind::Cluster)(name));
        self.endpoints.retain(|name, _| wants(Kind::Endpoint)(name));
        self.live.tables.retain(|name, _| wants(Kind::Route)(name));
        let (stay, gone): (HashMap<_, _>, HashMap<_, _>) = std::mem::take(&mut self.live.clusters)
            .into_iter()
            .partition(|(name, _)| wants(Kind::Cluster)(name));
        self.live.clusters = stay;
        for cluster in gone.into_values() {
            cluster.close();
            let (of, namespace) = (&cluster.config.service, &cluster.config.namespace);
            // The ports of a pod share their labels.
            let mut others = self.live.clusters.values().map(|other| &other.config);
            if !others.any(|other| other.service == *of && other.namespace == *namespace) {
                self.metrics.forget_endpoints(of, namespace);
            }
        }
    }
}

/// Whether a VHDS name asks for an address, as captured connections do.
fn is_address(name: &str) -> bool {
    let authority = name
        .split_once('/')
        .map_or(name, |(_, authority)| authority);
    authority.parse::<SocketAddr>().is_ok()
}

/// The metric label of where a client's TCP connection goes.
fn client_target(backend: &Backend) -> String {
    match &backend.cluster {
        Some(cluster) if !cluster.config.namespace.is_empty() => {
            format!("{}.{}", cluster.config.service, cluster.config.namespace)
        }
        Some(cluster) => cluster.config.service.to_string(),
        None => backend.name.to_string(),
    }
}

fn same_clusters(a: &[Vec<Backend>], b: &[Vec<Backend>]) -> bool {
    let same = |a: &Backend, b: &Backend| match (&a.cluster, &b.cluster) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    };
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)))
}

/// The cluster of a virtual host's CONNECT route: its service's own, however the client wrote
/// the authority.
fn own_cluster(host: &VirtualHost) -> Option<&Arc<str>> {
    let own = host.routes.iter().find_map(|route| match &route.action {
        RouteAction::Forward(forward) if forward.terminate_connect => {
            forward.clusters.clusters.first()
        }
        _ => None,
    });
    own.map(|cluster| &cluster.name)
}

/// Service and namespace as a name like `outbound/post.blog:80` has them.
fn service_of(name: &str) -> (&str, &str) {
    let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
    host.split_once('.').unwrap_or((host, ""))
}

#[cfg(test)]
mod tests;
