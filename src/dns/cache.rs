//! Answers of the resolvers, kept for their TTL and a while longer for when the resolvers
//! fail (RFC 8767). Pure, and bounded in entries and bytes.
//!
//! There are two generations. New and used answers are in the young one; when that is full
//! the old one is dropped and the young one takes its place. What is used stays, what is not
//! goes, and nothing is ever searched for.

use std::{collections::HashMap, mem, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::wire::{self, Lifetime, Query, Scan};

/// Which queries have the same answer; see [`Query::key`].
pub type Key = Box<[u8]>;

/// An answer is asked for again after this, whatever its TTL.
const MAX_FRESH: u32 = 300;
/// The same for the answer that there is nothing.
const MAX_FRESH_ABSENT: u32 = 30;
/// A TTL of 0 would send every look-up to the resolvers.
const MIN_FRESH: u32 = 1;
/// How long after its end an answer is still better than none.
const STALE: Duration = Duration::from_secs(3600);
/// The TTL that such an answer is given with (RFC 8767, 4).
const STALE_TTL: u32 = 30;
/// How long the resolvers are left alone about a name after they failed (RFC 8767, 5).
const RETRY: Duration = Duration::from_secs(30);
/// What an entry costs beside its bytes, roughly.
const OVERHEAD: usize = 200;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Answers.
    pub entries: usize,
    /// Bytes of answers and keys.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entries: 8192,
            bytes: 4 * 1024 * 1024,
        }
    }
}

/// A kept answer.
#[derive(Debug)]
pub struct Entry {
    packet: Box<[u8]>,
    ttls: Box<[u16]>,
    stored: Instant,
    expires: Instant,
}

impl Entry {
    /// The answer for a query with the entry's key: TTLs are less by its age.
    #[must_use]
    pub fn fresh(&self, query: &Query, now: Instant) -> Vec<u8> {
        let age = now.saturating_duration_since(self.stored).as_secs();
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        self.with_ttls(query, |ttl| ttl.saturating_sub(age))
    }

    /// The answer after its time.
    #[must_use]
    pub fn stale(&self, query: &Query) -> Vec<u8> {
        self.with_ttls(query, |_| STALE_TTL)
    }

    fn with_ttls(&self, query: &Query, change: impl Fn(u32) -> u32) -> Vec<u8> {
        let mut packet = self.packet.to_vec();
        wire::change_ttls(&mut packet, &self.ttls, change);
        query.adopt(&mut packet);
        packet
    }
}

/// What the cache has.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing that may be used.
    Nothing,
    /// An answer whose time has not ended.
    Fresh(Arc<Entry>),
    /// An answer whose time has ended, to be used if the resolvers fail.
    Stale(Arc<Entry>),
    /// The same, and the resolvers have just failed: they are not to be asked.
    Failing(Arc<Entry>),
}

#[derive(Debug)]
struct Slot {
    entry: Arc<Entry>,
    ask_after: Instant,
}

#[derive(Debug, Default)]
struct Generation {
    slots: HashMap<Key, Slot>,
    bytes: usize,
}

/// The kept answers.
#[derive(Debug)]
pub struct Cache {
    bounds: Bounds,
    young: Generation,
    old: Generation,
}

impl Cache {
    /// An empty one.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            young: Generation::default(),
            old: Generation::default(),
        }
    }

    /// What there is for a key.
    pub fn find(&mut self, key: &Key, now: Instant) -> Found {
        if !self.young.slots.contains_key(key)
            && let Some(slot) = self.old.remove(key)
        {
            self.put(key.clone(), slot);
        }
        let Some(slot) = self.young.slots.get(key) else {
            return Found::Nothing;
        };
        let entry = slot.entry.clone();
        if now < entry.expires {
            Found::Fresh(entry)
        } else if now >= entry.expires + STALE {
            self.young.remove(key);
            Found::Nothing
        } else if now < slot.ask_after {
            Found::Failing(entry)
        } else {
            Found::Stale(entry)
        }
    }

    /// Keeps an answer if it may be kept.
    pub fn insert(&mut self, key: Key, packet: &[u8], scan: Scan, now: Instant) {
        let seconds = match scan.lifetime {
            Lifetime::Found(ttl) => ttl.clamp(MIN_FRESH, MAX_FRESH),
            Lifetime::Absent(ttl) => ttl.clamp(MIN_FRESH, MAX_FRESH_ABSENT),
            Lifetime::None => return,
        };
        let entry = Entry {
            packet: packet.into(),
            ttls: scan.ttls.into(),
            stored: now,
            expires: now + Duration::from_secs(seconds.into()),
        };
        self.old.remove(&key);
        let slot = Slot {
            entry: Arc::new(entry),
            ask_after: now,
        };
        self.put(key, slot);
    }

    /// The resolvers failed to answer this. Concerns an answer whose time has ended.
    pub fn failed(&mut self, key: &Key, now: Instant) {
        for generation in [&mut self.young, &mut self.old] {
            if let Some(slot) = generation.slots.get_mut(key) {
                slot.ask_after = now + RETRY;
            }
        }
    }

    /// Answers that are kept.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.slots.len() + self.old.slots.len()
    }

    fn put(&mut self, key: Key, slot: Slot) {
        self.young.remove(&key);
        let cost = cost(&key, &slot);
        if cost > self.bounds.bytes / 2 {
            return;
        }
        let full = self.young.slots.len() >= self.bounds.entries / 2;
        if full || self.young.bytes + cost > self.bounds.bytes / 2 {
            self.old = mem::take(&mut self.young);
        }
        self.young.bytes += cost;
        self.young.slots.insert(key, slot);
    }
}

impl Generation {
    fn remove(&mut self, key: &Key) -> Option<Slot> {
        let slot = self.slots.remove(key)?;
        self.bytes -= cost(key, &slot);
        Some(slot)
    }
}

fn cost(key: &Key, slot: &Slot) -> usize {
    OVERHEAD + key.len() + slot.entry.packet.len() + 2 * slot.entry.ttls.len()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Bounds, Cache, Found, Key};
    use crate::dns::{
        tests::message::{self, a, aaaa, cname, message, query, soa},
        wire::{self, Query},
    };

    fn keep(cache: &mut Cache, query: &Query, answer: &[u8], now: Instant) -> Key {
        let key = query.key().unwrap();
        let scan = wire::scan(answer, query.kind()).unwrap();
        cache.insert(key.clone(), answer, scan, now);
        key
    }

    fn state(found: &Found) -> &'static str {
        match found {
            Found::Nothing => "nothing",
            Found::Fresh(_) => "fresh",
            Found::Stale(_) => "stale",
            Found::Failing(_) => "failing",
        }
    }

    #[test]
    fn answers_are_kept_for_their_time() {
        let q = query("example.org", wire::A);
        let (found, none) = ([1, 2, 3, 4], wire::Rcode::NO_NAME);
        let ok = wire::Rcode::OK;
        for (what, answer, fresh) in [
            (
                "ttl",
                message(&q, ok, &[a("example.org", found, 60)], &[]),
                60,
            ),
            (
                "cap",
                message(&q, ok, &[a("example.org", found, 86_400)], &[]),
                300,
            ),
            (
                "floor",
                message(&q, ok, &[a("example.org", found, 0)], &[]),
                1,
            ),
            (
                "sign",
                message(&q, ok, &[a("example.org", found, 1 << 31)], &[]),
                1,
            ),
            (
                "chain",
                message(
                    &q,
                    ok,
                    &[cname("example.org", "b.org", 7), a("b.org", found, 60)],
                    &[],
                ),
                7,
            ),
            (
                "no name",
                message(&q, none, &[], &[soa("org", 900, 20)]),
                20,
            ),
            (
                "no name, SOA's own ttl",
                message(&q, none, &[], &[soa("org", 5, 20)]),
                5,
            ),
            (
                "no name, cap",
                message(&q, none, &[], &[soa("org", 900, 900)]),
                30,
            ),
            ("no data", message(&q, ok, &[], &[soa("org", 900, 20)]), 20),
            (
                "no data behind a chain",
                message(
                    &q,
                    ok,
                    &[cname("example.org", "b.org", 7)],
                    &[soa("org", 900, 20)],
                ),
                7,
            ),
            ("no name without SOA", message(&q, none, &[], &[]), 0),
            (
                "no data without SOA",
                message(&q, ok, &[aaaa("example.org", 60)], &[]),
                0,
            ),
            ("failure", message(&q, wire::Rcode::FAILED, &[], &[]), 0),
            (
                "truncated",
                message::truncated(message(&q, ok, &[a("example.org", found, 60)], &[])),
                0,
            ),
        ] {
            let mut cache = Cache::new(Bounds::default());
            let now = Instant::now();
            let key = keep(&mut cache, &q, &answer, now);
            let at = |seconds: u64| now + Duration::from_secs(seconds);
            if fresh == 0 {
                assert_eq!(state(&cache.find(&key, now)), "nothing", "{what}");
                continue;
            }
            assert_eq!(state(&cache.find(&key, at(fresh - 1))), "fresh", "{what}");
            assert_eq!(state(&cache.find(&key, at(fresh))), "stale", "{what}");
            assert_eq!(
                state(&cache.find(&key, at(fresh + 3599))),
                "stale",
                "{what}"
            );
            assert_eq!(
                state(&cache.find(&key, at(fresh + 3600))),
                "nothing",
                "{what}"
            );
        }
    }

    #[test]
    fn resolvers_that_failed_are_left_alone() {
        let mut cache = Cache::new(Bounds::default());
        let q = query("example.org", wire::A);
        let now = Instant::now();
        let answer = message(
            &q,
            wire::Rcode::OK,
            &[a("example.org", [1, 2, 3, 4], 10)],
            &[],
        );
        let key = keep(&mut cache, &q, &answer, now);
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        cache.failed(&key, at(20));
        assert_eq!(state(&cache.find(&key, at(49))), "failing");
        assert_eq!(state(&cache.find(&key, at(50))), "stale");
        cache.failed(&key, at(50));
        keep(&mut cache, &q, &answer, at(51));
        assert_eq!(state(&cache.find(&key, at(52))), "fresh");
        assert_eq!(state(&cache.find(&key, at(61))), "stale");
    }

    #[test]
    fn answers_age_and_keep_the_case_of_the_question() {
        let mut cache = Cache::new(Bounds::default());
        let first = query("example.org", wire::A);
        let records = [
            cname("example.org", "b.org", 70),
            a("b.org", [1, 2, 3, 4], 60),
        ];
        let answer = message(&first, wire::Rcode::OK, &records, &[]);
        let now = Instant::now();
        let key = keep(&mut cache, &first, &answer, now);
        let mut second = query("eXAMple.Org", wire::A).packet().to_vec();
        wire::set_id(&mut second, 0xbeef);
        let wire::Incoming::Question(second) = wire::read(second) else {
            panic!("a query");
        };
        assert_eq!(second.key(), Some(key.clone()));
        let Found::Fresh(entry) = cache.find(&key, now) else {
            panic!("kept");
        };
        let fresh = entry.fresh(&second, now + Duration::from_secs(25));
        assert!(wire::is_answer(&fresh, second.packet()));
        let end = second.packet().len();
        assert_eq!(fresh[12..end], second.packet()[12..], "the case is kept");
        assert_eq!(message::ttls(&fresh), [45, 35]);
        assert_eq!(message::ttls(&entry.stale(&second)), [30, 30]);
        assert_eq!(fresh.len(), answer.len());
        let of_same_case = entry.fresh(&first, now);
        assert_eq!(of_same_case, answer, "byte for byte");
    }

    #[test]
    fn entries_and_bytes_are_bounded_and_what_is_used_stays() {
        let now = Instant::now();
        for bounds in [
            Bounds {
                entries: 100,
                bytes: usize::MAX,
            },
            Bounds {
                entries: usize::MAX,
                bytes: 20_000,
            },
        ] {
            let mut cache = Cache::new(bounds);
            let fill = |cache: &mut Cache, name: &str| {
                let q = query(name, wire::A);
                let answer = message(&q, wire::Rcode::OK, &[a(name, [1, 2, 3, 4], 60)], &[]);
                keep(cache, &q, &answer, now)
            };
            let used = fill(&mut cache, "used.org");
            for n in 0..5_000 {
                fill(&mut cache, &format!("{n}.org"));
                assert_eq!(state(&cache.find(&used, now)), "fresh", "{n}");
                let bytes = cache.young.bytes + cache.old.bytes;
                let entries = cache.young.slots.len() + cache.old.slots.len();
                assert!(bytes <= bounds.bytes && entries <= bounds.entries, "{n}");
            }
            for generation in [&cache.young, &cache.old] {
                let sum: usize = generation
                    .slots
                    .iter()
                    .map(|(k, s)| super::cost(k, s))
                    .sum();
                assert_eq!(generation.bytes, sum);
            }
        }
    }

    #[test]
    fn an_answer_that_is_too_large_is_not_kept() {
        let mut cache = Cache::new(Bounds {
            entries: 10,
            bytes: 2_000,
        });
        let q = query("big.org", wire::A);
        let many: Vec<_> = (0..200).map(|n| a("big.org", [10, 0, 0, n], 60)).collect();
        let answer = message(&q, wire::Rcode::OK, &many, &[]);
        let now = Instant::now();
        let key = keep(&mut cache, &q, &answer, now);
        assert_eq!(state(&cache.find(&key, now)), "nothing");
    }
}
