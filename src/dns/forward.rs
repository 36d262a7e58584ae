//! What the resolvers know: the cache, one query for many that ask the same, and answers
//! from the time before the resolvers failed.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::Shared};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout},
};

use super::{
    AnsweredBy, Transport,
    cache::{Bounds, Cache, Entry, Found, Key},
    exchange::{self, Failure, Request},
    upstreams::{Source, Upstreams},
    wire::{self, Query, Rcode},
};
use crate::telemetry::Metrics;

/// Addresses of one host that are used.
const MAX_ADDRESSES: usize = 256;

/// How long and how often resolvers are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// One resolver, once.
    pub(super) per_try: Duration,
    /// All tries of a query.
    pub(super) total: Duration,
    /// How long a client waits for a new answer if there is an old one (RFC 8767, 5): less
    /// than clients wait for us.
    pub(super) patience: Duration,
    /// Queries that wait for resolvers at one time.
    pub(super) outstanding: usize,
    /// The kept answers.
    pub(super) cache: Bounds,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_try: Duration::from_secs(2),
            total: Duration::from_secs(5),
            patience: Duration::from_millis(1800),
            outstanding: 1024,
            cache: Bounds::default(),
        }
    }
}

/// An answer, and who knew it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) packet: Vec<u8>,
    pub(super) by: AnsweredBy,
}

/// A query to the resolvers that is under way; all who ask the same wait for it.
type Flight = Shared<oneshot::Receiver<Option<Bytes>>>;

/// The resolvers of the machine, with a cache. One for the process: shared by all listeners
/// and workers, so that nothing is asked twice.
#[derive(Debug)]
pub struct Resolver {
    limits: Limits,
    upstreams: Mutex<Upstreams>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<(Key, Transport), Flight>>,
    outstanding: Arc<Semaphore>,
    /// Query IDs are a keyed hash of a counter: nobody outside can guess them.
    id_key: RandomState,
    id_counter: AtomicU64,
    metrics: Arc<Metrics>,
}

/// What is to be done for a query.
enum Step {
    Answer(Answered),
    Wait(Flight, Option<Arc<Entry>>),
}

/// Ends a flight, also when its task panics or is cancelled.
struct Landing {
    resolver: Arc<Resolver>,
    key: (Key, Transport),
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.resolver.flights.lock().remove(&self.key);
    }
}

impl Resolver {
    /// Reads the list of resolvers. `own` are the addresses at which DNS is served here; they
    /// are never asked.
    #[must_use]
    pub fn new(source: Source, own: Vec<SocketAddr>, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::with_limits(source, own, metrics, Limits::default())
    }

    pub(super) fn with_limits(
        source: Source,
        own: Vec<SocketAddr>,
        metrics: Arc<Metrics>,
        limits: Limits,
    ) -> Arc<Self> {
        Arc::new(Self {
            upstreams: Mutex::new(Upstreams::new(source, own, Instant::now())),
            cache: Mutex::new(Cache::new(limits.cache)),
            flights: Mutex::default(),
            outstanding: Arc::new(Semaphore::new(limits.outstanding)),
            id_key: RandomState::new(),
            id_counter: AtomicU64::new(0),
            metrics,
            limits,
        })
    }

    /// The addresses of a host, IPv4 first, at most 256: from the cache while their TTL
    /// lasts, and for up to an hour longer while the resolvers fail. An address is itself.
    /// Takes at most 5 s. Search lists and `/etc/hosts` are not read. Cancel safe.
    ///
    /// # Errors
    /// When there is no address; the text says why and names the host.
    pub async fn addresses(self: &Arc<Self>, host: &str) -> Result<Arc<[IpAddr]>, String> {
        if let Ok(address) = host.parse() {
            return Ok(Arc::new([address]));
        }
        let (a, aaaa) = (Query::new(host, wire::A)?, Query::new(host, wire::AAAA)?);
        let (v4, v6) = tokio::join!(
            self.resolve(&a, Transport::Udp),
            self.resolve(&aaaa, Transport::Udp)
        );
        let mut found = wire::addresses(&v4.packet, wire::A);
        found.extend(wire::addresses(&v6.packet, wire::AAAA));
        found.truncate(MAX_ADDRESSES);
        if !found.is_empty() {
            return Ok(found.into());
        }
        let failed = [&v4, &v6]
            .into_iter()
            .any(|answer| Rcode::of(&answer.packet).is_failure());
        Err(match Rcode::of(&v4.packet) {
            _ if failed => format!("{host}: the DNS resolvers gave no answer"),
            Rcode::NO_NAME => format!("{host}: there is no such name in DNS"),
            _ => format!("{host}: the name has no address in DNS"),
        })
    }

    /// The answer to a query: kept, or of the resolvers, or SERVFAIL. Cancel safe; the query
    /// to the resolvers goes on for the next who asks.
    pub(super) async fn resolve(self: &Arc<Self>, query: &Query, transport: Transport) -> Answered {
        let Some(key) = query.key() else {
            return match self
                .relay(query.packet(), transport, query.udp_limit())
                .await
            {
                Some(answer) => answer,
                None => failed(query),
            };
        };
        let (flight, stale) = match self.step(key, query, transport) {
            Step::Answer(answer) => return answer,
            Step::Wait(flight, stale) => (flight, stale),
        };
        let arrived = match stale {
            None => flight.await,
            // Whoever waits for longer than clients do has waited for nothing.
            Some(_) => timeout(self.limits.patience, flight)
                .await
                .unwrap_or(Ok(None)),
        };
        let answer = arrived.ok().flatten();
        match (answer, stale) {
            (Some(answer), None) => adopted(&answer, query),
            (Some(answer), Some(_)) if !Rcode::of(&answer).is_failure() => adopted(&answer, query),
            (_, Some(stale)) => Answered {
                packet: stale.stale(query),
                by: AnsweredBy::Stale,
            },
            (None, None) => failed(query),
        }
    }

    /// Passes a request of any kind to the resolvers and back; no cache. `None` when there is
    /// no answer.
    pub(super) async fn relay(
        &self,
        packet: &[u8],
        transport: Transport,
        udp_limit: usize,
    ) -> Option<Answered> {
        let _permit = self.permit()?;
        let mut answer = self.ask(packet, transport, udp_limit, None).await.ok()?;
        if let Some(id) = packet.first_chunk() {
            wire::set_id(&mut answer, u16::from_be_bytes(*id));
        }
        Some(Answered {
            packet: answer,
            by: AnsweredBy::Resolver,
        })
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.outstanding.clone().try_acquire_owned().ok();
        if permit.is_none() {
            self.metrics.dns_resolver_failure(Failure::Overload.name());
        }
        permit
    }

    /// Looks into the cache and, if need be, joins or begins a flight.
    fn step(self: &Arc<Self>, key: Key, query: &Query, transport: Transport) -> Step {
        let now = Instant::now();
        let mut flights = self.flights.lock();
        // Under the lock of the flights: an answer is kept before its flight ends.
        let stale = match self.cache.lock().find(&key, now) {
            Found::Fresh(entry) => {
                return Step::Answer(Answered {
                    packet: entry.fresh(query, now),
                    by: AnsweredBy::Cache,
                });
            }
            Found::Failing(entry) => return Step::Answer(from_stale(&entry, query)),
            Found::Stale(entry) => Some(entry),
            Found::Nothing => None,
        };
        let key = (key, transport);
        if let Some(flight) = flights.get(&key) {
            return Step::Wait(flight.clone(), stale);
        }
        let Some(permit) = self.permit() else {
            return Step::Answer(match stale {
                Some(entry) => from_stale(&entry, query),
                None => failed(query),
            });
        };
        let (send, receive) = oneshot::channel();
        let flight = receive.shared();
        flights.insert(key.clone(), flight.clone());
        let landing = Landing {
            resolver: self.clone(),
            key,
        };
        // Ends by itself after `limits.total`.
        tokio::spawn(fly(landing, permit, query.clone(), send));
        Step::Wait(flight, stale)
    }

    /// Asks the resolvers in turn, the silent ones again while there is time. When all answer
    /// with an error, the last of these answers is the answer.
    async fn ask(
        &self,
        packet: &[u8],
        transport: Transport,
        udp_limit: usize,
        kind: Option<u16>,
    ) -> Result<Vec<u8>, Failure> {
        let started = Instant::now();
        let mut pending = self.upstreams.lock().order(started);
        let mut result = Err(Failure::NoResolver);
        if pending.is_empty() {
            self.metrics
                .dns_resolver_failure(Failure::NoResolver.name());
        }
        let mut sent = packet.to_vec();
        while !pending.is_empty() {
            let mut silent = Vec::new();
            for resolver in pending {
                let left = self.limits.total.saturating_sub(started.elapsed());
                if left.is_zero() {
                    return result;
                }
                wire::set_id(&mut sent, self.next_id());
                let request = Request {
                    packet: &sent,
                    transport,
                    udp_limit,
                };
                let time = left.min(self.limits.per_try);
                let answer = exchange::ask(resolver, request, time).await;
                let failure = match judge(answer, kind) {
                    Judged::Good(answer) => {
                        self.upstreams.lock().answered(resolver);
                        if wire::is_truncated(&answer) {
                            self.metrics.dns_resolver_failure(Failure::Truncated.name());
                        }
                        return Ok(answer);
                    }
                    Judged::Error(answer) => {
                        self.upstreams.lock().answered(resolver);
                        result = Ok(answer);
                        Failure::ErrorAnswer
                    }
                    Judged::Failed(failure) => {
                        if result.is_err() {
                            result = Err(failure);
                        }
                        failure
                    }
                };
                self.metrics.dns_resolver_failure(failure.name());
                tracing::debug!(%resolver, ?failure, "the resolver gave no answer");
                if failure == Failure::Timeout {
                    silent.push(resolver);
                    // A try that the end of the query cut short says little.
                    if time == self.limits.per_try {
                        let mut upstreams = self.upstreams.lock();
                        upstreams.timed_out(resolver, Instant::now());
                    }
                }
            }
            pending = silent;
        }
        result
    }

    fn next_id(&self) -> u16 {
        let count = self.id_counter.fetch_add(1, Ordering::Relaxed);
        (self.id_key.hash_one(count) & 0xffff) as u16
    }
}

#[cfg(test)]
impl Resolver {
    /// Keeps an answer as if it had come then.
    pub(super) fn keep(&self, key: Key, answer: &[u8], scan: wire::Scan, then: Instant) {
        self.cache.lock().insert(key, answer, scan, then);
    }

    /// Queries under way.
    pub(super) fn in_flight(&self) -> usize {
        self.flights.lock().len()
    }

    /// Answers that are kept.
    pub(super) fn kept(&self) -> usize {
        self.cache.lock().len()
    }
}

/// What the answer of one resolver is worth.
enum Judged {
    Good(Vec<u8>),
    Error(Vec<u8>),
    Failed(Failure),
}

fn judge(answer: Result<Vec<u8>, Failure>, kind: Option<u16>) -> Judged {
    match answer {
        Err(failure) => Judged::Failed(failure),
        Ok(answer) if Rcode::of(&answer).is_failure() => Judged::Error(answer),
        // What is cut may be cut anywhere.
        Ok(answer) if wire::is_truncated(&answer) => Judged::Good(answer),
        Ok(answer) => match kind {
            Some(kind) if wire::scan(&answer, kind).is_none() => Judged::Failed(Failure::Malformed),
            _ => Judged::Good(answer),
        },
    }
}

/// Gets the answer for all who wait, and keeps it.
async fn fly(
    landing: Landing,
    _permit: OwnedSemaphorePermit,
    query: Query,
    send: oneshot::Sender<Option<Bytes>>,
) {
    let resolver = &landing.resolver;
    let (key, transport) = &landing.key;
    let started = Instant::now();
    let kind = Some(query.kind());
    let answer = resolver.ask(query.packet(), *transport, query.udp_limit(), kind);
    let answer = answer.await.ok();
    let now = Instant::now();
    let took = now.duration_since(started);
    resolver.metrics.dns_forwarded(took.as_secs_f64());
    let good = answer
        .as_ref()
        .filter(|answer| !Rcode::of(answer).is_failure());
    match good {
        Some(answer) => {
            if let Some(scan) = wire::scan(answer, query.kind()) {
                let mut cache = resolver.cache.lock();
                cache.insert(key.clone(), answer, scan, now);
            }
        }
        None => resolver.cache.lock().failed(key, now),
    }
    // They may all have gone.
    let _ = send.send(answer.map(Bytes::from));
}

fn adopted(answer: &[u8], query: &Query) -> Answered {
    let mut packet = answer.to_vec();
    query.adopt(&mut packet);
    Answered {
        packet,
        by: AnsweredBy::Resolver,
    }
}

fn from_stale(entry: &Entry, query: &Query) -> Answered {
    Answered {
        packet: entry.stale(query),
        by: AnsweredBy::Stale,
    }
}

fn failed(query: &Query) -> Answered {
    Answered {
        packet: query.reply(Rcode::FAILED),
        by: AnsweredBy::Error,
    }
}
