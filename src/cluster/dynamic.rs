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
            // A connection that calls it again and again has it at hand.
            let held = endpoint.active() > 0 || Arc::strong_count(endpoint) > 1;
            let unused = !held && now.duration_since(*used) >= UNUSED;
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
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use tokio::time::Instant;

    use super::{Dynamic, MAX_KEPT, UNUSED};
    use crate::{
        cluster::Pick,
        config::{ClusterConfig, ClusterType, LoadBalancing},
    };

    fn config() -> ClusterConfig {
        ClusterConfig {
            name: "inbound|8080".into(),
            service: "inbound|8080".into(),
            namespace: "".into(),
            kind: ClusterType::Original,
            connect_timeout: UNUSED,
            balancing: LoadBalancing::RoundRobin,
            protocol: None,
            tls: None,
            warnings: Vec::new(),
        }
    }

    fn address(n: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 80))
    }

    #[tokio::test]
    async fn an_endpoint_is_made_once_for_destination_and_source() {
        let (dynamic, config) = (Dynamic::default(), config());
        let of = |n, source| dynamic.endpoint(&config, (address(n), source), 1);
        let first = of(1, None);
        assert!(Arc::ptr_eq(&first, &of(1, None)));
        assert!(!Arc::ptr_eq(&first, &of(2, None)));
        let source = Some(address(9).ip());
        let other = of(1, source);
        assert!(!Arc::ptr_eq(&first, &other));
        assert_eq!(
            (other.dest.address, other.dest.source),
            (address(1), source)
        );
    }

    #[tokio::test]
    async fn what_nobody_uses_is_given_up() {
        let (dynamic, config) = (Dynamic::default(), config());
        let used = Pick::new(dynamic.endpoint(&config, (address(1), None), 1));
        dynamic.endpoint(&config, (address(2), None), 1);
        dynamic.sweep(Instant::now());
        assert_eq!(dynamic.made.lock().len(), 2);
        let later = Instant::now() + UNUSED;
        dynamic.sweep(later);
        assert_eq!(dynamic.made.lock().len(), 1);
        let at_hand = used.endpoint.clone();
        drop(used);
        dynamic.sweep(later);
        assert_eq!(dynamic.made.lock().len(), 1);
        drop(at_hand);
        dynamic.sweep(later);
        assert_eq!(dynamic.made.lock().len(), 0);
    }

    #[tokio::test]
    async fn there_is_a_bound() {
        let (dynamic, config) = (Dynamic::default(), config());
        for n in 0..MAX_KEPT + 10 {
            let endpoint = dynamic.endpoint(&config, (address(n), None), 1);
            assert_eq!(endpoint.dest.address, address(n));
        }
        assert_eq!(dynamic.made.lock().len(), MAX_KEPT);
    }
}
