//! HOT. Which endpoint takes the next request: pure decisions over an [`EndpointSet`].

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::endpoint::{Endpoint, EndpointSet, is_tried};
use crate::{config::LoadBalancing, util::Rng};

/// Chooses an endpoint that was not tried before.
pub(super) fn pick(
    balancing: &LoadBalancing,
    set: &EndpointSet,
    tried: &[SocketAddr],
    turn: &AtomicUsize,
    rng: &Rng,
) -> Option<Arc<Endpoint>> {
    let usable = &set.usable;
    match usable.len() {
        0 => return None,
        1 => return (!is_tried(&usable[0], tried)).then(|| usable[0].clone()),
        _ => {}
    }
    let index = match balancing {
        LoadBalancing::RoundRobin => next_turn(set, turn),
        LoadBalancing::Random => sample(set, rng),
        LoadBalancing::LeastRequest => {
            let (a, b) = two(set, rng);
            if usable[b].active() < usable[a].active() {
                b
            } else {
                a
            }
        }
        LoadBalancing::PeakEwma { .. } => {
            let (a, b) = two(set, rng);
            if usable[b].cost() < usable[a].cost() {
                b
            } else {
                a
            }
        }
    };
    if !is_tried(&usable[index], tried) {
        return Some(usable[index].clone());
    }
    let next = (1..usable.len()).map(|step| &usable[(index + step) % usable.len()]);
    next.into_iter()
        .find(|endpoint| !is_tried(endpoint, tried))
        .cloned()
}

/// One at random, by weight.
fn sample(set: &EndpointSet, rng: &Rng) -> usize {
    match set.cumulated.last() {
        None => (rng.next() % set.usable.len() as u64) as usize,
        Some(total) => at_weight(set, rng.next() % total),
    }
}

/// In turn, each as often as it weighs.
fn next_turn(set: &EndpointSet, turn: &AtomicUsize) -> usize {
    let n = turn.fetch_add(1, Ordering::Relaxed);
    match set.cumulated.last() {
        None => n % set.usable.len(),
        Some(&total) => {
            // A stride that has no factor in common with the total visits every share once
            // a round, and spreads the shares of one endpoint over the round.
            at_weight(set, (n as u64).wrapping_mul(stride(total)) % total)
        }
    }
}

fn at_weight(set: &EndpointSet, at: u64) -> usize {
    set.cumulated.partition_point(|&sum| sum <= at)
}

fn stride(total: u64) -> u64 {
    let from = total * 618 / 1000;
    (from.max(1)..)
        .find(|step| gcd(*step, total) == 1)
        .unwrap_or(1)
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Two different ones at random; each weighs as configured.
fn two(set: &EndpointSet, rng: &Rng) -> (usize, usize) {
    let n = set.usable.len();
    let a = sample(set, rng);
    let b = sample(set, rng);
    if a == b {
        (a, (a + 1 + (rng.next() % (n as u64 - 1)) as usize) % n)
    } else {
        (a, b)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, atomic::AtomicUsize},
        time::Duration,
    };

    use super::{pick, stride};
    use crate::{
        cluster::{EndpointSet, Pick},
        config::{ClusterConfig, ClusterType, EndpointConfig, Endpoints, Health, LoadBalancing},
        util::Rng,
    };

    const EWMA: LoadBalancing = LoadBalancing::PeakEwma {
        decay: Duration::from_secs(10),
        default_rtt: Duration::from_millis(30),
    };

    fn set(balancing: &LoadBalancing, endpoints: &[(u32, Health)]) -> EndpointSet {
        let cluster = ClusterConfig {
            name: "c".into(),
            service: "c".into(),
            namespace: "n".into(),
            kind: ClusterType::Eds("c".into()),
            connect_timeout: Duration::from_secs(5),
            balancing: balancing.clone(),
            protocol: None,
            tls: None,
            warnings: vec![],
        };
        let endpoints = endpoints
            .iter()
            .enumerate()
            .map(|(n, &(weight, health))| EndpointConfig {
                address: format!("127.0.0.1:{}", 1000 + n).parse().unwrap(),
                identity: None,
                workload: "w".into(),
                weight,
                health,
            })
            .collect();
        let endpoints = Endpoints {
            cluster: "c".into(),
            endpoints,
            warnings: vec![],
        };
        EndpointSet::build(&cluster, &endpoints, None, 1)
    }

    fn shares(balancing: &LoadBalancing, endpoints: &[(u32, Health)], n: usize) -> Vec<usize> {
        let set = set(balancing, endpoints);
        let (turn, rng) = (AtomicUsize::new(0), Rng::new(3));
        let mut counts = vec![0; endpoints.len()];
        for _ in 0..n {
            let chosen = pick(balancing, &set, &[], &turn, &rng).unwrap();
            counts[usize::from(chosen.dest.address.port()) - 1000] += 1;
        }
        counts
    }

    #[test]
    fn shares_follow_the_weights() {
        use Health::Healthy;
        let even = [(1, Healthy), (1, Healthy)];
        assert_eq!(shares(&LoadBalancing::RoundRobin, &even, 10), [5, 5]);
        let uneven = [(3, Healthy), (1, Healthy), (6, Healthy)];
        assert_eq!(
            shares(&LoadBalancing::RoundRobin, &uneven, 100),
            [30, 10, 60]
        );
        let random = shares(&LoadBalancing::Random, &uneven, 10_000);
        for (got, want) in random.iter().zip([3000, 1000, 6000]) {
            assert!(got.abs_diff(want) < 200, "{random:?}");
        }
    }

    #[test]
    fn draining_endpoints_are_the_last_resort_and_unhealthy_ones_none() {
        use Health::{Draining, Healthy, Unhealthy};
        for balancing in [LoadBalancing::RoundRobin, LoadBalancing::Random, EWMA] {
            assert_eq!(
                shares(&balancing, &[(1, Healthy), (1, Draining)], 8),
                [8, 0]
            );
            assert_eq!(
                shares(&balancing, &[(1, Unhealthy), (1, Draining)], 8),
                [0, 8]
            );
        }
        let none = set(&EWMA, &[(1, Unhealthy)]);
        assert!(pick(&EWMA, &none, &[], &AtomicUsize::new(0), &Rng::new(1)).is_none());
    }

    #[test]
    fn what_was_tried_is_not_chosen_again() {
        let set = set(&EWMA, &[(1, Health::Healthy); 3]);
        let (turn, rng) = (AtomicUsize::new(0), Rng::new(1));
        let mut tried = Vec::new();
        for _ in 0..3 {
            let chosen = pick(&EWMA, &set, &tried, &turn, &rng).unwrap();
            assert!(!tried.contains(&chosen.dest.address));
            tried.push(chosen.dest.address);
        }
        assert!(pick(&EWMA, &set, &tried, &turn, &rng).is_none());
    }

    #[test]
    fn load_and_latency_decide() {
        let set = set(&EWMA, &[(1, Health::Healthy); 2]);
        let (turn, rng) = (AtomicUsize::new(0), Rng::new(1));
        let slow = Pick::new(set.usable[0].clone());
        slow.answered(Duration::from_millis(500));
        drop(slow);
        Pick::new(set.usable[1].clone()).answered(Duration::from_millis(1));
        for _ in 0..20 {
            let chosen = pick(&EWMA, &set, &[], &turn, &rng).unwrap();
            assert!(Arc::ptr_eq(&chosen, &set.usable[1]));
        }
        let busy: Vec<Pick> = (0..3).map(|_| Pick::new(set.usable[1].clone())).collect();
        let chosen = pick(&LoadBalancing::LeastRequest, &set, &[], &turn, &rng).unwrap();
        assert!(Arc::ptr_eq(&chosen, &set.usable[0]));
        drop(busy);
        assert_eq!(set.usable[1].active(), 0);
    }

    #[test]
    fn fast_endpoints_share_alike() {
        let set = set(&EWMA, &[(1, Health::Healthy); 2]);
        let (turn, rng) = (AtomicUsize::new(0), Rng::new(1));
        for (endpoint, micros) in set.usable.iter().zip([250, 700]) {
            // The assumed latency of a new endpoint fades as answers come.
            let pick = Pick::new(endpoint.clone());
            pick.settled(Duration::from_micros(micros));
        }
        let first = (0..1000)
            .filter(|_| {
                Arc::ptr_eq(
                    &pick(&EWMA, &set, &[], &turn, &rng).unwrap(),
                    &set.usable[0],
                )
            })
            .count();
        assert!((400..600).contains(&first), "{first}");
    }

    #[test]
    fn strides_share_no_factor_with_the_total() {
        for total in 1..200 {
            assert_eq!(super::gcd(stride(total), total), 1, "{total}");
        }
    }
}
