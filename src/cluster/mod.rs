//! Clusters as they live: configuration plus endpoints with their load and connections.

mod balancer;
mod dynamic;
mod endpoint;
mod ewma;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicUsize},
};

use arc_swap::ArcSwap;

use dynamic::Dynamic;
pub use endpoint::{Endpoint, EndpointSet, Pick};

use crate::{
    config::{AppProtocol, ClusterConfig, ClusterType, Endpoints},
    telemetry::{Metrics, Tls},
    util::Rng,
};

/// Where a captured connection was meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The address that the client connected to.
    pub destination: SocketAddr,
    /// The address that the connection onwards comes from; `None`: any of ours.
    pub source: Option<IpAddr>,
}

/// One cluster. Its endpoints are swapped as a whole; what they carry (load, connections)
/// lives on as long as address and identity stay.
#[derive(Debug)]
pub struct Cluster {
    /// As configured.
    pub config: Arc<ClusterConfig>,
    endpoints: ArcSwap<EndpointSet>,
    dynamic: Dynamic,
    workers: usize,
    turn: AtomicUsize,
}

impl Cluster {
    /// Links a configuration with endpoints, taking over what `previous` has.
    #[must_use]
    pub fn link(
        config: Arc<ClusterConfig>,
        endpoints: &Endpoints,
        previous: Option<&Self>,
        workers: usize,
    ) -> Self {
        let before = previous.map(|cluster| cluster.endpoints.load_full());
        let set = EndpointSet::build(&config, endpoints, before.as_deref(), workers);
        if let Some(previous) = previous {
            previous.dynamic.close();
        }
        Self {
            config,
            endpoints: ArcSwap::from_pointee(set),
            dynamic: Dynamic::default(),
            workers,
            turn: AtomicUsize::new(0),
        }
    }

    /// Whether its endpoints are made when a connection needs them: [`Self::pick_at`].
    #[must_use]
    pub fn is_dynamic(&self) -> bool {
        matches!(
            self.config.kind,
            ClusterType::Original | ClusterType::Dns { .. }
        )
    }

    /// The endpoint at an address, for a dynamic cluster.
    #[must_use]
    pub fn pick_at(&self, address: SocketAddr, source: Option<IpAddr>) -> Pick {
        Pick::new(self.endpoint_at(address, source))
    }

    /// The same, to be picked many times with [`Pick::new`].
    #[must_use]
    pub fn endpoint_at(&self, address: SocketAddr, source: Option<IpAddr>) -> Arc<Endpoint> {
        let key = (address, source);
        self.dynamic.endpoint(&self.config, key, self.workers)
    }

    /// Swaps the endpoints.
    pub fn update(&self, endpoints: &Endpoints, workers: usize) {
        let before = self.endpoints.load_full();
        let set = EndpointSet::build(&self.config, endpoints, Some(&before), workers);
        self.endpoints.store(Arc::new(set));
    }

    /// The endpoints now.
    #[must_use]
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    /// How connections to it are protected.
    #[must_use]
    pub fn tls(&self) -> Tls {
        if self.config.tls.is_some() {
            Tls::Mtls
        } else {
            Tls::None
        }
    }

    /// Whether it only speaks opaque TCP.
    #[must_use]
    pub fn is_tcp_only(&self) -> bool {
        match &self.config.tls {
            Some(tls) => tls.alpn == [AppProtocol::Tcp],
            None => self.config.protocol.is_none(),
        }
    }

    /// Chooses an endpoint that is not among `tried`; `None` if there is none.
    pub fn pick(&self, tried: &[SocketAddr], rng: &Rng) -> Option<Pick> {
        let set = self.endpoints.load();
        balancer::pick(&self.config.balancing, &set, tried, &self.turn, rng).map(Pick::new)
    }

    /// Closes idle connections: nothing refers to the cluster any more.
    pub fn close(&self) {
        for (endpoint, ..) in &self.endpoints.load().all {
            endpoint.pools().for_each(crate::upstream::Pool::close);
        }
        self.dynamic.close();
    }

    /// Closes connections that have been idle for too long.
    pub fn sweep(&self, now: tokio::time::Instant) {
        for (endpoint, ..) in &self.endpoints.load().all {
            endpoint.pools().for_each(|pool| pool.sweep(now));
        }
        self.dynamic.sweep(now);
    }

    /// Publishes the endpoint counts.
    pub fn publish(&self, metrics: &Metrics) {
        let set = self.endpoints.load();
        metrics.set_endpoints(&self.config.service, &self.config.namespace, set.counts());
    }
}
