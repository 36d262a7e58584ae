//! Endpoints with what they carry, and the immutable sets that requests choose from.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use weft_certs::spiffe::SpiffeId;

use super::ewma::Ewma;
use crate::{
    config::{ClusterConfig, EndpointConfig, Endpoints, Health, LoadBalancing},
    upstream::{Dest, Pool, TlsTarget},
};

/// The latency that a failure counts as: an endpoint that fails fast must not look fast.
const FAILURE_LATENCY: Duration = Duration::from_millis(500);

/// Latencies up to this, in microseconds, count as the same.
const SAME_LATENCY_MICROS: f32 = 1_000.0;

/// One endpoint. Shared: atomics, and one pool for each worker.
#[derive(Debug)]
pub struct Endpoint {
    /// Where and how to connect.
    pub dest: Dest,
    /// The workload's name; empty if unknown.
    pub workload: Arc<str>,
    identity: Option<SpiffeId>,
    active: AtomicU32,
    latency: Ewma,
    decay: Duration,
    pools: Box<[Pool]>,
}

impl Endpoint {
    pub(super) fn new(
        dest: Dest,
        config: &EndpointConfig,
        cluster: &ClusterConfig,
        workers: usize,
    ) -> Self {
        let (decay, initial) = match cluster.balancing {
            LoadBalancing::PeakEwma { decay, default_rtt } => (decay, default_rtt),
            _ => (Duration::from_secs(10), Duration::ZERO),
        };
        Self {
            dest,
            workload: config.workload.clone(),
            identity: config.identity.clone(),
            active: AtomicU32::new(0),
            latency: Ewma::new(initial, now_ms()),
            decay,
            pools: (0..workers).map(|_| Pool::default()).collect(),
        }
    }

    /// The connections of one worker.
    #[must_use]
    pub fn pool(&self, worker: usize) -> &Pool {
        &self.pools[worker]
    }

    /// All pools.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    /// Requests in flight.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// The price of one more request: latency times load. Differences under 1 ms are noise
    /// and decide nothing: load does, and chance.
    #[must_use]
    pub fn cost(&self) -> f32 {
        let latency = self.latency.micros(self.decay, now_ms());
        latency.max(SAME_LATENCY_MICROS) * (self.active() + 1) as f32
    }

    /// Smoothed latency, for the dump.
    #[must_use]
    pub fn latency(&self) -> Duration {
        Duration::from_micros(self.latency.micros(self.decay, now_ms()) as u64)
    }
}

/// A chosen endpoint; counts as one request in flight until dropped.
#[derive(Debug)]
pub struct Pick {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
}

impl Pick {
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.active.fetch_add(1, Ordering::Relaxed);
        Self { endpoint }
    }

    /// Feeds the time to the head of an answer.
    pub fn answered(&self, latency: Duration) {
        let endpoint = &self.endpoint;
        endpoint.latency.observe(latency, endpoint.decay, now_ms());
    }

    /// Makes the average what it would be after many such answers.
    #[cfg(test)]
    pub fn settled(&self, latency: Duration) {
        self.endpoint.latency.reset(latency, now_ms());
    }

    /// Feeds a failure.
    pub fn failed(&self) {
        self.answered(FAILURE_LATENCY);
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.endpoint.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The endpoints of a cluster at one time. Immutable.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// All, in the order of the resource.
    pub all: Vec<(Arc<Endpoint>, Health, u32)>,
    /// Those that take requests: the healthy ones, or the draining if there are no others.
    pub usable: Vec<Arc<Endpoint>>,
    /// Cumulated weights of `usable`; empty if all weigh the same.
    pub(super) cumulated: Vec<u64>,
}

impl EndpointSet {
    /// Builds a set; endpoints whose destination stays are taken over from `previous`.
    #[must_use]
    pub fn build(
        cluster: &ClusterConfig,
        endpoints: &Endpoints,
        previous: Option<&Self>,
        workers: usize,
    ) -> Self {
        let all: Vec<(Arc<Endpoint>, Health, u32)> = endpoints
            .endpoints
            .iter()
            .map(|config| {
                let dest = dest(cluster, config, None);
                let known = previous.and_then(|set| {
                    set.all.iter().map(|(e, ..)| e).find(|e| {
                        e.dest == dest
                            && e.workload == config.workload
                            && e.identity == config.identity
                    })
                });
                let endpoint = known
                    .cloned()
                    .unwrap_or_else(|| Arc::new(Endpoint::new(dest, config, cluster, workers)));
                for pool in endpoint.pools() {
                    match config.health {
                        Health::Healthy => pool.reopen(),
                        // We close idle connections first, so that no request meets a
                        // connection that the leaving endpoint is just closing.
                        Health::Draining | Health::Unhealthy => pool.close(),
                    }
                }
                (endpoint, config.health, config.weight.max(1))
            })
            .collect();
        if let Some(previous) = previous {
            let gone = previous
                .all
                .iter()
                .filter(|(old, ..)| !all.iter().any(|(new, ..)| Arc::ptr_eq(old, new)));
            gone.flat_map(|(endpoint, ..)| endpoint.pools())
                .for_each(Pool::close);
        }
        let of = |health: Health| all.iter().filter(move |(_, h, _)| *h == health);
        let wanted = if of(Health::Healthy).next().is_some() {
            Health::Healthy
        } else {
            Health::Draining
        };
        let usable: Vec<_> = of(wanted).map(|(e, ..)| e.clone()).collect();
        let weights: Vec<u32> = of(wanted).map(|(_, _, weight)| *weight).collect();
        let uneven = weights.windows(2).any(|pair| pair[0] != pair[1]);
        let mut sum = 0;
        let cumulated = if uneven {
            weights
                .iter()
                .map(|weight| {
                    sum += u64::from(*weight);
                    sum
                })
                .collect()
        } else {
            Vec::new()
        };
        Self {
            all,
            usable,
            cumulated,
        }
    }

    /// How many are ready, draining and unhealthy.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, usize); 3] {
        let of = |health| self.all.iter().filter(|(_, h, _)| *h == health).count();
        [
            ("ready", of(Health::Healthy)),
            ("draining", of(Health::Draining)),
            ("unhealthy", of(Health::Unhealthy)),
        ]
    }
}

pub(super) fn dest(
    cluster: &ClusterConfig,
    config: &EndpointConfig,
    source: Option<IpAddr>,
) -> Dest {
    let tls = cluster.tls.as_ref().map(|tls| TlsTarget {
        sni: tls.sni.clone(),
        identities: match &config.identity {
            Some(identity) => [identity.clone()].into(),
            None => tls.identities.as_slice().into(),
        },
    });
    Dest {
        address: config.address,
        source,
        tls,
        timeout: cluster.connect_timeout,
    }
}

/// Milliseconds since the first call, wrapping.
fn now_ms() -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u32
}

/// Whether an address was tried.
pub(super) fn is_tried(endpoint: &Endpoint, tried: &[SocketAddr]) -> bool {
    tried.contains(&endpoint.dest.address)
}
