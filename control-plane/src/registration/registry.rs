//! Which registrations are in force: pure, with the clock as an argument.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Registration;
use crate::cache::Workload;
use crate::config::Document;

/// How many registrations there may be.
pub const MAX_REGISTRATIONS: usize = 10_000;
/// How many of them one identity may have.
pub const MAX_PER_IDENTITY: usize = 2_000;
/// How long a registration outlives a stream that broke, or a restart of the control plane.
pub const KEPT_AFTER_BREAK: Duration = Duration::from_secs(60);
/// How long a stream has to be gone before another identity may have its name or address.
pub const RECLAIM_AFTER: Duration = Duration::from_secs(10);
/// How many registrations of one identity may change at once.
const BURST: f64 = 1_000.0;
/// How many may change in a second when that is used up.
const RATE: f64 = 50.0;

/// Why a registration is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is another's.
    #[error(
        "the workload {namespace}/{name} is registered by the service account {owner}; use another name, or wait until its sidecar is gone"
    )]
    Name {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// Who has it.
        owner: String,
    },
    /// The address is another's.
    #[error(
        "node.metadata[\"weft.dev\"].addresses: {address} is that of the workload {owner}, which has another identity; a registration cannot take it over"
    )]
    Address {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        owner: String,
    },
    /// There are too many.
    #[error("{0} workloads have registered themselves, which is the most there may be")]
    Full(usize),
    /// The identity has too many.
    #[error(
        "{0} workloads of this identity have registered themselves, which is the most there may be"
    )]
    FullForIdentity(usize),
    /// The identity changes too much.
    #[error("too many workloads of this identity register themselves at once; try again later")]
    TooFast,
}

/// The registrations that count.
#[derive(Debug, Default)]
pub struct Registry {
    entries: BTreeMap<Workload, Entry>,
    /// Who has registered each address.
    addresses: HashMap<IpAddr, Vec<Workload>>,
    /// How many each identity has, and how many more it may change now.
    identities: HashMap<(String, String), Quota>,
}

#[derive(Debug)]
struct Entry {
    registration: Arc<Registration>,
    presence: Presence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// So many streams hold it.
    Open(usize),
    /// The last stream broke then.
    Gone(Instant),
    /// It was read from the disk then, and may well be alive.
    Restored(Instant),
}

#[derive(Debug)]
struct Quota {
    held: usize,
    /// Changes left.
    tokens: f64,
    /// When that was so.
    at: Instant,
}

impl Quota {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.tokens = (self.tokens + passed.as_secs_f64() * RATE).min(BURST);
        self.at = now;
    }
}

impl Entry {
    fn streams(&self) -> usize {
        match self.presence {
            Presence::Open(streams) => streams,
            Presence::Gone(_) | Presence::Restored(_) => 0,
        }
    }

    /// Whether another identity may not have its name and its addresses yet.
    fn is_defended(&self, now: Instant) -> bool {
        match self.presence {
            Presence::Open(_) | Presence::Restored(_) => true,
            Presence::Gone(since) => now.saturating_duration_since(since) < RECLAIM_AFTER,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        match self.presence {
            Presence::Open(_) => false,
            Presence::Gone(since) | Presence::Restored(since) => {
                now.saturating_duration_since(since) >= KEPT_AFTER_BREAK
            }
        }
    }
}

impl Registry {
    /// Puts in what was stored. Each is kept as if its stream had just broken, but defended
    /// against other identities all that time: its sidecar may be about to come back.
    pub fn restore(&mut self, stored: Vec<Registration>, now: Instant) {
        for registration in stored.into_iter().take(MAX_REGISTRATIONS) {
            self.insert(Arc::new(registration), Presence::Restored(now), now);
        }
    }

    /// A stream registers a workload. Returns whether anything is different now.
    ///
    /// # Errors
    /// When it cannot be taken; nothing has changed then.
    pub fn register(
        &mut self,
        registration: Arc<Registration>,
        now: Instant,
    ) -> Result<bool, Refusal> {
        let workload = registration.workload();
        let known = self.entries.get_mut(workload);
        if let Some(entry) = known {
            if entry.registration.same(&registration) {
                entry.presence = Presence::Open(entry.streams() + 1);
                return Ok(false);
            }
            if !entry.registration.same_identity(&registration) && entry.is_defended(now) {
                return Err(Refusal::Name {
                    namespace: workload.0.clone(),
                    name: workload.1.clone(),
                    owner: entry.registration.service_account().to_owned(),
                });
            }
        }
        self.check_addresses(&registration, now)?;
        self.charge(&registration, now)?;
        // Whoever had an address and is gone does not come back to it.
        for gone in self.others_at(&registration) {
            if !matches!(self.entries[&gone].presence, Presence::Open(_)) {
                self.remove(&gone);
            }
        }
        let streams = self.entries.get(workload).map_or(0, Entry::streams);
        self.insert(registration, Presence::Open(streams + 1), now);
        Ok(true)
    }

    /// A stream that held a registration has ended; `left` is after a clean end. Returns
    /// whether anything is different now.
    pub fn closed(&mut self, workload: &Workload, left: bool, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(workload) else {
            return false;
        };
        let streams = entry.streams().saturating_sub(1);
        entry.presence = match streams {
            0 => Presence::Gone(now),
            _ => Presence::Open(streams),
        };
        let ends = left && streams == 0;
        if ends {
            self.remove(&workload.clone());
        }
        ends
    }

    /// Removes those that are gone for long enough. Returns whether there were any.
    pub fn expire(&mut self, now: Instant) -> bool {
        let over = self.entries.iter().filter(|(_, entry)| entry.is_over(now));
        let over: Vec<Workload> = over.map(|(workload, _)| workload.clone()).collect();
        for workload in &over {
            self.remove(workload);
        }
        self.identities.retain(|_, quota| {
            quota.refill(now);
            quota.held > 0 || quota.tokens < BURST
        });
        !over.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether that workload is registered with that address.
    #[must_use]
    pub fn holds(&self, namespace: &str, name: &str, address: IpAddr) -> bool {
        let owners = self.addresses.get(&address).into_iter().flatten();
        owners.into_iter().any(|(n, w)| n == namespace && w == name)
    }

    /// All of them, sorted by name.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Registration>> {
        self.entries.values().map(|entry| &entry.registration)
    }

    /// The documents that they stand for, sorted by name.
    pub(super) fn documents(&self) -> Vec<Arc<Document>> {
        self.all().map(|r| r.document().clone()).collect()
    }

    pub(super) fn to_json(&self, now: Instant) -> Value {
        let entries = self.entries.values().map(|entry| {
            let registration = &entry.registration;
            let (namespace, name) = registration.workload();
            let (state, since) = match entry.presence {
                Presence::Open(_) => ("connected", None),
                Presence::Gone(since) => ("gone", Some(since)),
                Presence::Restored(since) => ("restored", Some(since)),
            };
            json!({
                "workload": format!("{namespace}/{name}"),
                "service_account": registration.service_account(),
                "addresses": registration.addresses(),
                "state": state,
                "seconds": since.map(|since| now.saturating_duration_since(since).as_secs()),
            })
        });
        json!({ "registrations": entries.collect::<Vec<_>>() })
    }

    /// The other workloads that have one of its addresses.
    fn others_at(&self, registration: &Registration) -> Vec<Workload> {
        let at = registration.addresses().iter();
        let owners = at.filter_map(|address| self.addresses.get(address));
        let owners = owners.flatten().filter(|w| *w != registration.workload());
        let mut owners: Vec<Workload> = owners.cloned().collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    fn check_addresses(&self, registration: &Registration, now: Instant) -> Result<(), Refusal> {
        for workload in self.others_at(registration) {
            let owner = &self.entries[&workload];
            if owner.registration.same_identity(registration) || !owner.is_defended(now) {
                continue;
            }
            let theirs = owner.registration.addresses();
            let ours = registration.addresses().iter();
            if let Some(address) = ours.copied().find(|address| theirs.contains(address)) {
                return Err(Refusal::Address {
                    address,
                    owner: format!("{}/{}", workload.0, workload.1),
                });
            }
        }
        Ok(())
    }

    /// Takes one change from what the identity may do.
    fn charge(&mut self, registration: &Registration, now: Instant) -> Result<(), Refusal> {
        let is_new = !self.entries.contains_key(registration.workload());
        if is_new && self.entries.len() >= MAX_REGISTRATIONS {
            return Err(Refusal::Full(MAX_REGISTRATIONS));
        }
        let quota = self.quota(registration, now);
        if is_new && quota.held >= MAX_PER_IDENTITY {
            return Err(Refusal::FullForIdentity(MAX_PER_IDENTITY));
        }
        if quota.tokens < 1.0 {
            return Err(Refusal::TooFast);
        }
        quota.tokens -= 1.0;
        Ok(())
    }

    fn quota(&mut self, registration: &Registration, now: Instant) -> &mut Quota {
        let (namespace, account) = registration.identity();
        let key = (namespace.to_owned(), account.to_owned());
        let quota = self.identities.entry(key).or_insert(Quota {
            held: 0,
            tokens: BURST,
            at: now,
        });
        quota.refill(now);
        quota
    }

    fn insert(&mut self, registration: Arc<Registration>, presence: Presence, now: Instant) {
        let workload = registration.workload().clone();
        self.remove(&workload);
        for address in registration.addresses() {
            let owners = self.addresses.entry(*address).or_default();
            owners.push(workload.clone());
        }
        self.quota(&registration, now).held += 1;
        let entry = Entry {
            registration,
            presence,
        };
        self.entries.insert(workload, entry);
    }

    fn remove(&mut self, workload: &Workload) {
        let Some(entry) = self.entries.remove(workload) else {
            return;
        };
        for address in entry.registration.addresses() {
            if let Some(owners) = self.addresses.get_mut(address) {
                owners.retain(|owner| owner != workload);
                if owners.is_empty() {
                    self.addresses.remove(address);
                }
            }
        }
        let (namespace, account) = entry.registration.identity();
        let key = (namespace.to_owned(), account.to_owned());
        if let Some(quota) = self.identities.get_mut(&key) {
            quota.held = quota.held.saturating_sub(1);
        }
    }
}
