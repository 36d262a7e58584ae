//! One delta xDS stream as a pure state machine: no I/O, no clock.
//!
//! The driver feeds requests with [`Stream::on_request`], says with
//! [`Stream::on_snapshot`] that the configuration may have changed, and takes what is to be
//! sent from [`Stream::next_response`] until that is `None`. Per type at most one response
//! is unacknowledged; what changes meanwhile is coalesced, the latest state wins.
//!
//! Protocol: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use weft_api::Kind;
use weft_api::envoy::config::core::v3::ControlPlane;
use weft_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use weft_api::google::protobuf::Any;

use super::View;
use crate::cache::Encoded;

#[cfg(test)]
mod tests;

/// How many names one stream may subscribe to, all types together.
pub const MAX_SUBSCRIPTIONS: usize = 10_000;
/// How many bytes those names may have together.
pub const MAX_SUBSCRIBED_BYTES: usize = 2 * 1024 * 1024;
/// How many resources a client may say that it has when it begins a type.
pub const MAX_INITIAL_VERSIONS: usize = 50_000;
/// The longest name of a resource or a type, in bytes.
pub const MAX_NAME_BYTES: usize = 1_024;
/// A response is closed when its resources reach this size; the rest follows after its ACK.
pub const MAX_RESPONSE_BYTES: usize = 3 * 1024 * 1024;
/// How many unanswered requests for types that Weft does not serve may queue.
const MAX_FOREIGN: usize = 64;
/// How much of a client's error text is kept, in characters.
const MAX_DETAIL_CHARS: usize = 2_000;
/// The subscription name that stands for every resource of a type.
const WILDCARD: &str = "*";

/// The state of one stream.
#[derive(Debug, Default)]
pub struct Stream {
    subscriptions: [Subscription; Kind::ALL.len()],
    foreign: VecDeque<Foreign>,
    nonces: u64,
}

/// A response to send, with what the driver measures about it.
#[derive(Debug)]
pub struct Push {
    /// The type; `None` for one that Weft does not serve.
    pub kind: Option<Kind>,
    /// The message.
    pub response: DeltaDiscoveryResponse,
    /// The size of its resources in bytes.
    pub bytes: usize,
    /// Whether it carries a change of configuration, not only an answer.
    pub changed: bool,
}

/// What a request said about an earlier response.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing, or something about a response that is no longer the latest.
    Nothing,
    /// The client applied the response.
    Ack(Outcome),
    /// The client rejected the response.
    Nack(Outcome, String),
}

/// The response that was acknowledged or rejected.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its type.
    pub kind: Kind,
    /// The snapshot that it was made from.
    pub generation: u64,
    /// Whether it carried a change of configuration.
    pub changed: bool,
}

/// A request that ends the stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Over [`MAX_SUBSCRIPTIONS`] or [`MAX_SUBSCRIBED_BYTES`].
    #[error(
        "a stream may subscribe to {MAX_SUBSCRIPTIONS} names of {MAX_SUBSCRIBED_BYTES} bytes in all; unsubscribe from what is not used"
    )]
    TooManyNames,
    /// Over [`MAX_INITIAL_VERSIONS`].
    #[error(
        "a client may begin with {MAX_INITIAL_VERSIONS} resources of a type; begin without initial_resource_versions"
    )]
    TooManyVersions,
    /// Over [`MAX_NAME_BYTES`].
    #[error("a name of {0} bytes; the longest allowed has {MAX_NAME_BYTES}")]
    NameTooLong(usize),
    /// Requests for unknown types come faster than their answers are read.
    #[error("more than {MAX_FOREIGN} requests for types that are not served wait for an answer")]
    TooManyForeign,
}

/// What is known of one type, for the admin page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Whether the client takes everything of this type.
    pub wildcard: bool,
    /// How many names it subscribed to.
    pub names: usize,
    /// How many resources it has been sent and not had taken back.
    pub resources: usize,
    /// The snapshot whose response it acknowledged last.
    pub acked_generation: Option<u64>,
    /// Whether a response waits for its acknowledgement.
    pub waiting: bool,
    /// Why it rejected the last response; `None` once a later one was applied.
    pub rejected: Option<String>,
}

/// How far a client is with some resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It has not been told, or has not answered.
    Pending,
    /// It applied them, or does not have them any more.
    Applied,
    /// It rejected what it was told, and stays with what it had.
    Rejected,
}

#[derive(Debug, Default)]
struct Subscription {
    begun: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the client was told last, ACKed or not: a rejected resource is not sent again
    /// until its bytes change.
    told: BTreeMap<String, Told>,
    /// Names that get an answer even if nothing changed.
    due: BTreeSet<String>,
    /// An answer is owed even if it is empty.
    owed: bool,
    /// Something may differ from what was told.
    dirty: bool,
    /// Removals wait until nothing refers to what is removed.
    held: bool,
    outstanding: Option<Outstanding>,
    acked_generation: Option<u64>,
    rejected: Option<String>,
    /// The last snapshot whose every difference the client has been sent.
    told_generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Version(u64),
    /// The client has it in a version that is none of ours.
    Foreign,
    Absent,
}

#[derive(Debug)]
struct Outstanding {
    nonce: String,
    generation: u64,
    changed: bool,
    /// The resources in it, found or removed.
    names: HashSet<String>,
}

#[derive(Debug)]
struct Foreign {
    type_url: String,
    names: Vec<String>,
}

/// What becomes of resources that are gone and that something may still refer to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removals {
    Tell,
    Hold,
}

impl Stream {
    /// Takes in one request.
    ///
    /// # Errors
    /// When the stream is to be ended; the text is for the client.
    pub fn on_request(
        &mut self,
        request: DeltaDiscoveryRequest,
        view: &impl View,
    ) -> Result<Heard, Refusal> {
        check_size(&request)?;
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            return self.on_foreign(request);
        };
        let subscription = &mut self.subscriptions[kind as usize];
        let detail = request.error_detail.map(|status| status.message);
        let heard = subscription.acknowledge(kind, &request.response_nonce, detail);
        let first = !subscription.begun;
        if first {
            subscription.begin(
                kind,
                &request.resource_names_subscribe,
                &request.initial_resource_versions,
            );
        }
        subscription.subscribe(request.resource_names_subscribe, first);
        if !request.resource_names_unsubscribe.is_empty() {
            let members = view.wildcard(kind);
            subscription.unsubscribe(request.resource_names_unsubscribe, &members);
        }
        let names = self.subscriptions.iter().flat_map(|s| &s.names);
        let (count, bytes) = names.fold((0, 0), |(n, bytes), name| (n + 1, bytes + name.len()));
        if count > MAX_SUBSCRIPTIONS || bytes > MAX_SUBSCRIBED_BYTES {
            return Err(Refusal::TooManyNames);
        }
        Ok(heard)
    }

    /// Takes in that a newer snapshot exists.
    pub fn on_snapshot(&mut self) {
        for subscription in &mut self.subscriptions {
            subscription.dirty |= subscription.begun;
        }
    }

    /// The next response to send now; `None` when there is nothing to say, or all that there
    /// is waits for an acknowledgement.
    pub fn next_response(&mut self, view: &impl View) -> Option<Push> {
        if let Some(foreign) = self.foreign.pop_front() {
            return Some(self.foreign_response(foreign, view));
        }
        for kind in Kind::ALL {
            // Make before break: a cluster goes only when the client has the listeners and
            // routes that no longer refer to it.
            let removals = match kind {
                Kind::Cluster | Kind::Endpoint => Removals::Hold,
                _ => Removals::Tell,
            };
            if let Some(push) = self.respond(kind, view, removals) {
                return Some(push);
            }
        }
        let referring = [Kind::Listener, Kind::Route, Kind::VirtualHost];
        let referred = referring
            .iter()
            .any(|kind| self.subscriptions[*kind as usize].outstanding.is_some());
        if referred {
            return None;
        }
        [Kind::Cluster, Kind::Endpoint]
            .into_iter()
            .find_map(|kind| self.respond(kind, view, Removals::Tell))
    }

    /// Whether the client has applied or rejected everything that there is to say.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.subscriptions
            .iter()
            .all(|s| s.outstanding.is_none() && !s.dirty && !s.held)
    }

    /// The names of a type that the client has, or would be told of.
    pub fn held(&self, kind: Kind) -> impl Iterator<Item = &str> {
        let subscription = &self.subscriptions[kind as usize];
        let told = subscription.told.iter();
        let told = told.filter(|(name, told)| {
            **told != Told::Absent && !subscription.names.contains(name.as_str())
        });
        told.map(|(name, _)| name)
            .chain(&subscription.names)
            .map(String::as_str)
    }

    /// How far the client is with some resources, as they are in the snapshot `generation` or
    /// in a later one. What it holds no more counts as applied.
    #[must_use]
    pub fn progress(&self, kind: Kind, names: &[String], generation: u64) -> Progress {
        let subscription = &self.subscriptions[kind as usize];
        let mut held = names.iter().filter(|name| subscription.holds(name));
        let waits = |name: &String| {
            subscription.told_generation < generation
                || subscription
                    .outstanding
                    .as_ref()
                    .is_some_and(|outstanding| outstanding.names.contains(name))
        };
        match held.clone().next() {
            None => Progress::Applied,
            Some(_) if held.any(waits) => Progress::Pending,
            Some(_) if subscription.rejected.is_some() => Progress::Rejected,
            Some(_) => Progress::Applied,
        }
    }

    /// What is known of each type that the client has asked for.
    pub fn summaries(&self) -> impl Iterator<Item = (Kind, Summary)> {
        Kind::ALL
            .into_iter()
            .zip(&self.subscriptions)
            .filter(|(_, s)| s.begun)
            .map(|(kind, s)| (kind, s.summary()))
    }

    fn respond(&mut self, kind: Kind, view: &impl View, removals: Removals) -> Option<Push> {
        let subscription = &mut self.subscriptions[kind as usize];
        let look = subscription.dirty || (subscription.held && removals == Removals::Tell);
        if !subscription.begun || subscription.outstanding.is_some() || !look {
            return None;
        }
        let difference = subscription.difference(kind, view, removals);
        subscription.dirty = difference.more;
        subscription.held = difference.held;
        if !difference.more && !difference.held {
            subscription.told_generation = view.generation();
        }
        if difference.is_empty() && !subscription.owed {
            return None;
        }
        subscription.owed = false;
        subscription.mark_told(&difference);
        self.nonces += 1;
        let nonce = format!("{:x}", self.nonces);
        subscription.outstanding = Some(Outstanding {
            nonce: nonce.clone(),
            generation: view.generation(),
            changed: difference.changed,
            names: difference.names().cloned().collect(),
        });
        self.follow_up(kind, &difference.found);
        Some(difference.into_push(kind, view.generation(), nonce))
    }

    /// A client holds a changed cluster back until its endpoints arrive, and a changed
    /// listener until its routes do, even if those are the same as before.
    fn follow_up(&mut self, kind: Kind, found: &[(String, Arc<Encoded>)]) {
        match kind {
            Kind::Cluster => {
                let endpoints = &mut self.subscriptions[Kind::Endpoint as usize];
                for (name, _) in found {
                    endpoints.repeat(name);
                }
            }
            Kind::Listener => {
                let routes = &mut self.subscriptions[Kind::Route as usize];
                for name in found.iter().flat_map(|(_, encoded)| encoded.routes.iter()) {
                    routes.repeat(name);
                }
            }
            _ => {}
        }
    }

    /// A type that Weft does not serve has no resources: each name is answered as absent, so
    /// that the client does not wait for it.
    fn on_foreign(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, Refusal> {
        if request.resource_names_subscribe.is_empty() && !request.response_nonce.is_empty() {
            return Ok(Heard::Nothing);
        }
        let names: usize = self.foreign.iter().map(|f| f.names.len()).sum();
        if names + request.resource_names_subscribe.len() > MAX_SUBSCRIPTIONS {
            return Err(Refusal::TooManyNames);
        }
        if self.foreign.len() == MAX_FOREIGN {
            return Err(Refusal::TooManyForeign);
        }
        self.foreign.push_back(Foreign {
            type_url: request.type_url,
            names: request.resource_names_subscribe,
        });
        Ok(Heard::Nothing)
    }

    fn foreign_response(&mut self, foreign: Foreign, view: &impl View) -> Push {
        self.nonces += 1;
        let mut removed = foreign.names;
        removed.retain(|name| name != WILDCARD);
        removed.sort_unstable();
        removed.dedup();
        Push {
            kind: None,
            response: DeltaDiscoveryResponse {
                removed_resources: removed,
                ..response(
                    foreign.type_url,
                    view.generation(),
                    format!("{:x}", self.nonces),
                )
            },
            bytes: 0,
            changed: false,
        }
    }
}

/// Bounds what one request can make the server keep or compare.
fn check_size(request: &DeltaDiscoveryRequest) -> Result<(), Refusal> {
    let subscribe = &request.resource_names_subscribe;
    let unsubscribe = &request.resource_names_unsubscribe;
    let has = &request.initial_resource_versions;
    let names = subscribe.iter().chain(unsubscribe).chain(has.keys());
    let mut names = names.chain([&request.type_url]);
    if let Some(name) = names.find(|name| name.len() > MAX_NAME_BYTES) {
        return Err(Refusal::NameTooLong(name.len()));
    }
    if subscribe.len() > MAX_SUBSCRIPTIONS || unsubscribe.len() > MAX_SUBSCRIPTIONS {
        return Err(Refusal::TooManyNames);
    }
    if has.len() > MAX_INITIAL_VERSIONS {
        return Err(Refusal::TooManyVersions);
    }
    Ok(())
}

impl Subscription {
    fn begin(&mut self, kind: Kind, names: &[String], has: &HashMap<String, String>) {
        self.begun = true;
        // A first request without names is the wildcard of older clients; for the types that
        // are only asked for by name it asks for nothing.
        self.wildcard = names.is_empty() && kind.has_wildcard();
        self.owed = self.wildcard && has.is_empty();
        self.dirty = true;
        let names: HashSet<&String> = names.iter().collect();
        let all = self.wildcard || names.iter().any(|name| *name == WILDCARD);
        for (name, version) in has {
            if all || names.contains(name) {
                self.told.insert(name.clone(), Told::parse(version));
            }
        }
    }

    fn subscribe(&mut self, names: Vec<String>, first: bool) {
        for name in names {
            self.dirty = true;
            if name == WILDCARD {
                self.wildcard = true;
                self.owed |= self.told.is_empty();
                continue;
            }
            // A name is always answered, as the client may have forgotten what it had,
            // except where this first request says which version it has.
            if !first || !self.told.contains_key(&name) {
                self.due.insert(name.clone());
            }
            self.names.insert(name);
        }
    }

    fn unsubscribe(&mut self, names: Vec<String>, members: &[String]) {
        let members: HashSet<&String> = members.iter().collect();
        for name in names {
            if name == WILDCARD {
                self.wildcard = false;
                self.owed = false;
                let names = &self.names;
                self.told.retain(|name, _| names.contains(name));
                continue;
            }
            self.names.remove(&name);
            self.due.remove(&name);
            if self.wildcard && members.contains(&name) {
                // The client forgets it, the wildcard still covers it: it needs it anew.
                self.due.insert(name);
                self.dirty = true;
            } else {
                self.told.remove(&name);
            }
        }
    }

    fn acknowledge(&mut self, kind: Kind, nonce: &str, error: Option<String>) -> Heard {
        let Some(outstanding) = self.outstanding.take_if(|o| o.nonce == nonce) else {
            return Heard::Nothing;
        };
        let outcome = Outcome {
            kind,
            generation: outstanding.generation,
            changed: outstanding.changed,
        };
        match error {
            Some(text) => {
                let text: String = text.chars().take(MAX_DETAIL_CHARS).collect();
                self.rejected = Some(text.clone());
                Heard::Nack(outcome, text)
            }
            None => {
                self.rejected = None;
                self.acked_generation = Some(outstanding.generation);
                Heard::Ack(outcome)
            }
        }
    }

    fn holds(&self, name: &str) -> bool {
        let told = self.told.get(name);
        self.names.contains(name) || told.is_some_and(|told| *told != Told::Absent)
    }

    /// Makes a name due again if the client has it or waits for it.
    fn repeat(&mut self, name: &str) {
        if self.names.contains(name) || (self.wildcard && self.told.contains_key(name)) {
            self.due.insert(name.to_owned());
            self.dirty = true;
        }
    }

    fn difference(&self, kind: Kind, view: &impl View, removals: Removals) -> Difference {
        let members = if self.wildcard {
            view.wildcard(kind)
        } else {
            Vec::new()
        };
        let wanted: BTreeSet<&str> = members
            .iter()
            .chain(&self.names)
            .map(String::as_str)
            .collect();
        let mut difference = Difference::default();
        for &name in &wanted {
            if difference.bytes >= MAX_RESPONSE_BYTES {
                difference.more = true;
                return difference;
            }
            let told = self.told.get(name).copied();
            let due = self.due.contains(name);
            match view.resource(kind, name) {
                Some(encoded) => {
                    let same = told == Some(Told::Version(encoded.version));
                    if due || !same {
                        difference.changed |= !due && !self.owed;
                        difference.add(name, encoded);
                    }
                }
                None if due => difference.remove(name),
                None if !matches!(told, None | Some(Told::Absent)) => {
                    difference.take_back(name, removals);
                }
                None => {}
            }
        }
        for name in self
            .told
            .keys()
            .filter(|name| !wanted.contains(name.as_str()))
        {
            difference.take_back(name, removals);
        }
        difference
    }

    fn mark_told(&mut self, difference: &Difference) {
        for (name, encoded) in &difference.found {
            self.due.remove(name);
            self.told
                .insert(name.clone(), Told::Version(encoded.version));
        }
        for name in &difference.removed {
            self.due.remove(name);
            if self.names.contains(name) {
                self.told.insert(name.clone(), Told::Absent);
            } else {
                self.told.remove(name);
            }
        }
    }

    fn summary(&self) -> Summary {
        let absent = self.told.values().filter(|told| **told == Told::Absent);
        Summary {
            wildcard: self.wildcard,
            names: self.names.len(),
            resources: self.told.len() - absent.count(),
            acked_generation: self.acked_generation,
            waiting: self.outstanding.is_some(),
            rejected: self.rejected.clone(),
        }
    }
}

impl Told {
    fn parse(version: &str) -> Self {
        Encoded::parse_version(version).map_or(Self::Foreign, Self::Version)
    }
}

/// What a client is to be told now.
#[derive(Default)]
struct Difference {
    found: Vec<(String, Arc<Encoded>)>,
    removed: Vec<String>,
    bytes: usize,
    /// There is more than fits into one response.
    more: bool,
    /// There are removals that wait.
    held: bool,
    /// It says something that was not asked for.
    changed: bool,
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.found.is_empty() && self.removed.is_empty()
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        let found = self.found.iter().map(|(name, _)| name);
        found.chain(&self.removed)
    }

    fn add(&mut self, name: &str, encoded: Arc<Encoded>) {
        self.bytes += encoded.body.len() + name.len();
        self.found.push((name.to_owned(), encoded));
    }

    fn remove(&mut self, name: &str) {
        self.bytes += name.len();
        self.removed.push(name.to_owned());
    }

    fn take_back(&mut self, name: &str, removals: Removals) {
        if removals == Removals::Hold {
            self.held = true;
            return;
        }
        self.changed = true;
        self.remove(name);
    }

    fn into_push(self, kind: Kind, generation: u64, nonce: String) -> Push {
        let resources = self.found.into_iter().map(|(name, encoded)| Resource {
            name,
            version: encoded.version_text(),
            resource: Some(Any {
                type_url: kind.type_url().to_owned(),
                value: encoded.body.to_vec(),
            }),
            ..Resource::default()
        });
        Push {
            kind: Some(kind),
            response: DeltaDiscoveryResponse {
                resources: resources.collect(),
                removed_resources: self.removed,
                ..response(kind.type_url().to_owned(), generation, nonce)
            },
            bytes: self.bytes,
            changed: self.changed,
        }
    }
}

fn response(type_url: String, generation: u64, nonce: String) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url,
        nonce,
        system_version_info: generation.to_string(),
        control_plane: Some(ControlPlane {
            identifier: concat!("weft-control/", env!("CARGO_PKG_VERSION")).to_owned(),
        }),
        ..DeltaDiscoveryResponse::default()
    }
}
