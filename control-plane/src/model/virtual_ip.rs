//! Addresses for services that have none: applications resolve a name to one, connect to it,
//! and the sidecar that captures the connection knows the service by it.
//!
//! Applications and resolvers remember addresses, so a service keeps its own for as long as
//! there is room: also while it does not exist, and whatever comes and goes beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use sha2::{Digest, Sha256};

/// A service: its namespace and its name.
pub(crate) type ServiceKey = (String, String);

/// The first two octets of all virtual addresses: of the block that nobody is given
/// (RFC 1112, 240.0.0.0/4), so that they collide with no real network.
const PREFIX: [u8; 2] = [240, 240];
/// The addresses of the block but its first and its last.
const FIRST: u16 = 1;
const LAST: u16 = u16::MAX - 1;
/// How many addresses may be taken before those of services that are gone are given away.
const MAX_REMEMBERED: usize = 1 << 15;

/// Which service has which virtual address; no two have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualIps {
    by_service: BTreeMap<ServiceKey, Ipv4Addr>,
}

impl VirtualIps {
    /// Takes up what was allocated before.
    ///
    /// # Errors
    /// An address that is none of the block, or that two services have.
    pub(crate) fn restore(by_service: BTreeMap<ServiceKey, Ipv4Addr>) -> Result<Self, String> {
        let mut owners: BTreeMap<Ipv4Addr, &ServiceKey> = BTreeMap::new();
        for (key, address) in &by_service {
            if slot_of(*address).is_none() {
                return Err(format!("{address} is not a virtual address"));
            }
            if let Some((namespace, name)) = owners.insert(*address, key) {
                return Err(format!(
                    "{address} is that of {namespace}/{name} and of {}/{}",
                    key.0, key.1
                ));
            }
        }
        Ok(Self { by_service })
    }

    /// Every address that is not to be given to another service, also those of services that
    /// are gone; sorted by namespace and name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ServiceKey, Ipv4Addr)> {
        self.by_service.iter().map(|(key, address)| (key, *address))
    }

    /// The address of a service.
    pub(crate) fn of(&self, namespace: &str, name: &str) -> Option<Ipv4Addr> {
        let key = (namespace.to_owned(), name.to_owned());
        self.by_service.get(&key).copied()
    }

    /// The allocation after this one in which all these services have an address: those that
    /// had one keep it, the others get the first that is free from the hash of their name on.
    /// The result depends on the two sets and on nothing else. A service has none only if
    /// there are more than 65,534.
    #[must_use]
    pub(crate) fn assign(&self, services: &BTreeSet<ServiceKey>) -> Self {
        let mut next = self.clone();
        let known = |key: &&ServiceKey| next.by_service.contains_key(*key);
        let new = services.len() - services.iter().filter(known).count();
        if next.by_service.len() + new > MAX_REMEMBERED {
            next.by_service.retain(|key, _| services.contains(key));
        }
        let mut taken = vec![false; usize::from(u16::MAX) + 1];
        for slot in next.by_service.values().filter_map(|ip| slot_of(*ip)) {
            taken[usize::from(slot)] = true;
        }
        for key in services {
            if next.by_service.contains_key(key) {
                continue;
            }
            let Some(slot) = free_slot(&taken, hash(key)) else {
                break;
            };
            taken[usize::from(slot)] = true;
            next.by_service.insert(key.clone(), address_of(slot));
        }
        next
    }
}

/// Whether an address is for Weft to give away.
pub(crate) fn is_virtual(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(ip) if ip.octets()[..2] == PREFIX)
}

/// The first slot that is free, from one on and around.
fn free_slot(taken: &[bool], from: u16) -> Option<u16> {
    (from..=LAST)
        .chain(FIRST..from)
        .find(|slot| !taken[usize::from(*slot)])
}

fn hash((namespace, name): &ServiceKey) -> u16 {
    let digest = Sha256::digest(format!("{namespace}/{name}"));
    let mut word = [0; 8];
    word.copy_from_slice(&digest[..8]);
    let slots = u64::from(LAST - FIRST) + 1;
    let offset = u64::from_be_bytes(word) % slots;
    FIRST + u16::try_from(offset).unwrap_or(0)
}

fn address_of(slot: u16) -> Ipv4Addr {
    let [high, low] = slot.to_be_bytes();
    Ipv4Addr::new(PREFIX[0], PREFIX[1], high, low)
}

fn slot_of(address: Ipv4Addr) -> Option<u16> {
    let [a, b, high, low] = address.octets();
    let slot = u16::from_be_bytes([high, low]);
    ([a, b] == PREFIX && (FIRST..=LAST).contains(&slot)).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> ServiceKey {
        ("shop".to_owned(), format!("service-{number}"))
    }

    fn keys(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<ServiceKey> {
        numbers.into_iter().map(key).collect()
    }

    /// Panics if two have one address, or if one of `services` has none.
    fn check(ips: &VirtualIps, services: &BTreeSet<ServiceKey>) {
        let addresses: BTreeSet<Ipv4Addr> = ips.iter().map(|(_, address)| address).collect();
        assert_eq!(addresses.len(), ips.iter().count());
        assert!(addresses.iter().all(|a| is_virtual(IpAddr::V4(*a))));
        for (namespace, name) in services {
            assert!(ips.of(namespace, name).is_some(), "{namespace}/{name}");
        }
    }

    #[test]
    fn a_hash_is_the_same_in_every_release() {
        let services = BTreeSet::from([("blog".to_owned(), "post".to_owned())]);
        let ips = VirtualIps::default().assign(&services);
        let expected = hash(&("blog".to_owned(), "post".to_owned()));
        assert_eq!(ips.of("blog", "post"), Some(address_of(expected)));
        assert_eq!(
            ips.of("blog", "post").unwrap().to_string(),
            "240.240.136.185",
            "whoever changes this breaks connections of running applications"
        );
        assert_eq!(ips.of("blog", "other"), None);
    }

    /// Services come and go at random: who has an address keeps it, and also has it again
    /// after it was gone.
    #[test]
    fn addresses_are_stable() {
        let mut state: u64 = 7;
        let mut next = |bound: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % bound
        };
        let mut ips = VirtualIps::default();
        let mut ever: BTreeMap<ServiceKey, Ipv4Addr> = BTreeMap::new();
        for _ in 0..200 {
            let services = keys((0..next(400)).map(|_| next(3_000)).collect::<Vec<_>>());
            ips = ips.assign(&services);
            check(&ips, &services);
            for (namespace, name) in &services {
                let address = ips.of(namespace, name).unwrap();
                let before = ever.insert((namespace.clone(), name.clone()), address);
                assert!(before.is_none_or(|before| before == address), "{name}");
            }
            assert_eq!(ips.assign(&services), ips);
        }
        assert!(ever.len() > 2_000, "{}", ever.len());
    }

    #[test]
    fn what_is_gone_is_forgotten_when_there_are_many() {
        let half = keys(0..MAX_REMEMBERED / 2);
        let ips = VirtualIps::default().assign(&half);
        let few = keys([1, 2]);
        assert_eq!(ips.assign(&few), ips);
        let others = keys(MAX_REMEMBERED / 2..MAX_REMEMBERED + 1);
        let ips = ips.assign(&others);
        check(&ips, &others);
        assert_eq!(ips.iter().count(), others.len());
    }

    #[test]
    fn the_block_has_an_end() {
        let all = usize::from(LAST - FIRST) + 1;
        let services = keys(0..all);
        let ips = VirtualIps::default().assign(&services);
        check(&ips, &services);
        let ips = ips.assign(&keys(0..=all));
        assert_eq!(ips.iter().count(), all);
        let missing = (0..=all).filter(|n| ips.of("shop", &key(*n).1).is_none());
        assert_eq!(missing.count(), 1);
    }

    #[test]
    fn what_cannot_be_is_not_restored() {
        let entry = |name: &str, address: [u8; 4]| {
            let key = ("blog".to_owned(), name.to_owned());
            (key, Ipv4Addr::from(address))
        };
        let good = BTreeMap::from([
            entry("a", [240, 240, 0, 1]),
            entry("b", [240, 240, 255, 254]),
        ]);
        assert_eq!(VirtualIps::restore(good).unwrap().iter().count(), 2);
        for (entries, reason) in [
            ([entry("a", [10, 0, 0, 1])].to_vec(), "10.0.0.1 is not"),
            (
                [entry("a", [240, 240, 0, 0])].to_vec(),
                "240.240.0.0 is not",
            ),
            (
                [entry("a", [240, 240, 255, 255])].to_vec(),
                "240.240.255.255 is not",
            ),
            (
                [entry("a", [240, 240, 0, 9]), entry("b", [240, 240, 0, 9])].to_vec(),
                "240.240.0.9 is that of blog/a and of blog/b",
            ),
        ] {
            let error = VirtualIps::restore(entries.into_iter().collect()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
