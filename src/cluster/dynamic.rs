//! Endpoints that are made when a connection needs them: those of ORIGINAL_DST clusters,
//! which are wherever the client's connection was meant to go, and of LOGICAL_DNS clusters.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use super::endpoint::Endpoint;
use crate::{
    config::{ClusterConfig, EndpointConfig, Health},
    upstream::Pool,
};

/// An endpoint without requests for this long is given up, with its idle connections.
const UNUSED: Duration = Duration::from_secs(60);
/// Endpoints of one cluster that keep idle connections; further ones keep none.
const MAX_KEPT: usize = 1024;

/// Where to, and which address to call from.
type Key = (SocketAddr, Option<IpAddr>);

/// The endpoints of one cluster that were made so far. Shared: behind a lock that is taken
/// once for each request.
#[derive(Debug, Default)]
pub(super) struct Dynamic {
    made: Mutex<HashMap<Key, (Arc<Endpoint>, Instant)>>,
}

impl Dynamic {
    /// The endpoint for a destination; made if it is not there.
    pub(super) fn endpoint(
        &self,
        cluster: &ClusterConfig,
        (address, source): Key,
        workers: usize,
    ) -> Arc<Endpoint> {
        let now = Instant::now();
        let mut made = self.made.lock();
        if let Some((endpoint, used)) = made.get_mut(&(address, source)) {
            *used = now;
            return endpoint.clone();
        }
        let config = EndpointConfig {
            address,
            identity: None,
            workload: "".into(),
            weight: 1,
            health: Health::Healthy,
        };
        let endpoint = Arc::new(Endpoint::new(
            super::endpoint::dest(cluster, &config, source),
            &config,
            cluster,
            workers,
        ));
        if made.len() < MAX_KEPT {
            made.insert((address, source), (endpoint.clone(), now));
        } else {
            // It serves its connection and keeps nothing after that.
            endpoint.pools().for_each(Pool::close);
        }
        endpoint
    }

    /// Closes what has idled for too long and gives up what nobody uses.
    pub(super) fn sweep(&self, now: Instant) {
        self.made.lock().retain(|_, (endpoint, used)| {
            endpoint.pools().for_each(|pool| pool.sweep(now));
            let unused = endpoint.active() == 0 && now.duration_since(*used) >= UNUSED;
            if unused {
                endpoint.pools().for_each(Pool::close);
            }
            !unused
        });
    }

    /// Ends all idle connections.
    pub(super) fn close(&self) {
        for (_, (endpoint, _)) in self.made.lock().drain() {
            endpoint.pools().for_each(Pool::close);
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.made.lock().len()
    }
}
