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

#[cfg(test)]
mod tests {
    //! Transcripts: what a client sends, what it is answered. One line per response:
    //! `kind: name@version ... -removed ...`.

    use std::collections::BTreeMap;

    use super::*;
    use weft_api::google::rpc::Status;

    const CDS: Kind = Kind::Cluster;
    const EDS: Kind = Kind::Endpoint;
    const LDS: Kind = Kind::Listener;
    const RDS: Kind = Kind::Route;
    const VHDS: Kind = Kind::VirtualHost;

    /// A mesh of made-up resources: `(kind, name) -> text`.
    #[derive(Default)]
    struct Fake {
        generation: u64,
        resources: BTreeMap<(Kind, String), Arc<Encoded>>,
    }

    impl Fake {
        fn set(&mut self, kind: Kind, name: &str, body: &str) {
            let mut encoded = Encoded::new(CDS, body.as_bytes().to_vec());
            if kind == LDS {
                encoded.routes = [format!("{name}-routes")].into();
            }
            self.generation += 1;
            self.resources
                .insert((kind, name.to_owned()), Arc::new(encoded));
        }

        fn remove(&mut self, kind: Kind, name: &str) {
            self.generation += 1;
            self.resources.remove(&(kind, name.to_owned()));
        }

        fn version(&self, kind: Kind, name: &str) -> String {
            self.resources[&(kind, name.to_owned())].version_text()
        }
    }

    impl View for Fake {
        fn generation(&self) -> u64 {
            self.generation
        }

        fn wildcard(&self, kind: Kind) -> Vec<String> {
            let of_kind = self.resources.keys().filter(|(k, _)| *k == kind);
            of_kind.map(|(_, name)| name.clone()).collect()
        }

        fn resource(&self, kind: Kind, name: &str) -> Option<Arc<Encoded>> {
            self.resources.get(&(kind, name.to_owned())).cloned()
        }
    }

    /// A client and its stream.
    #[derive(Default)]
    struct Client {
        mesh: Fake,
        stream: Stream,
        /// The nonce of the last response of each kind.
        nonces: BTreeMap<Kind, String>,
    }

    impl Client {
        fn new(resources: &[(Kind, &str, &str)]) -> Self {
            let mut client = Self::default();
            for (kind, name, body) in resources {
                client.mesh.set(*kind, name, body);
            }
            client
        }

        fn send(&mut self, request: DeltaDiscoveryRequest) -> Heard {
            self.stream.on_request(request, &self.mesh).unwrap()
        }

        fn subscribe(&mut self, kind: Kind, names: &[&str]) -> Heard {
            self.send(DeltaDiscoveryRequest {
                resource_names_subscribe: owned(names),
                ..request(kind)
            })
        }

        fn unsubscribe(&mut self, kind: Kind, names: &[&str]) -> Heard {
            self.send(DeltaDiscoveryRequest {
                resource_names_unsubscribe: owned(names),
                ..request(kind)
            })
        }

        fn reconnect(&mut self, kind: Kind, names: &[&str], has: &[(&str, &str)]) -> Heard {
            self.stream = Stream::default();
            self.begin(kind, names, has)
        }

        fn begin(&mut self, kind: Kind, names: &[&str], has: &[(&str, &str)]) -> Heard {
            let has = has
                .iter()
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
            self.send(DeltaDiscoveryRequest {
                resource_names_subscribe: owned(names),
                initial_resource_versions: has.collect(),
                ..request(kind)
            })
        }

        fn ack(&mut self, kind: Kind) -> Heard {
            let response_nonce = self.nonces[&kind].clone();
            self.send(DeltaDiscoveryRequest {
                response_nonce,
                ..request(kind)
            })
        }

        fn nack(&mut self, kind: Kind, text: &str) -> Heard {
            let response_nonce = self.nonces[&kind].clone();
            self.send(DeltaDiscoveryRequest {
                response_nonce,
                error_detail: Some(Status {
                    code: 3,
                    message: text.to_owned(),
                    details: Vec::new(),
                }),
                ..request(kind)
            })
        }

        fn change(&mut self, kind: Kind, name: &str, body: &str) {
            self.mesh.set(kind, name, body);
            self.stream.on_snapshot();
        }

        fn delete(&mut self, kind: Kind, name: &str) {
            self.mesh.remove(kind, name);
            self.stream.on_snapshot();
        }

        /// All responses until there is nothing more to say.
        #[track_caller]
        fn expect(&mut self, expected: &[&str]) {
            let mut said = Vec::new();
            while let Some(push) = self.stream.next_response(&self.mesh) {
                let response = push.response;
                let name = push
                    .kind
                    .map_or(response.type_url.as_str(), |kind| kind.name());
                let mut line = format!("{name}:");
                for resource in &response.resources {
                    let any = resource.resource.as_ref().unwrap();
                    assert_eq!(any.type_url, response.type_url);
                    let body = Encoded::new(CDS, any.value.clone());
                    assert_eq!(resource.version, body.version_text());
                    let body = String::from_utf8_lossy(&any.value);
                    line += &format!(" {}@{body}", resource.name);
                }
                for removed in &response.removed_resources {
                    line += &format!(" -{removed}");
                }
                if let Some(kind) = push.kind {
                    self.nonces.insert(kind, response.nonce);
                }
                said.push(line);
            }
            assert_eq!(said, expected);
        }
    }

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn request(kind: Kind) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    #[test]
    fn a_first_request_without_names_is_the_wildcard() {
        for names in [&[][..], &["*"][..]] {
            let mut client = Client::new(&[(LDS, "a", "1"), (LDS, "b", "1")]);
            client.subscribe(LDS, names);
            client.expect(&["listener: a@1 b@1"]);
            client.ack(LDS);
            client.expect(&[]);
            client.change(LDS, "c", "1");
            client.expect(&["listener: c@1"]);
            client.ack(LDS);
            client.delete(LDS, "a");
            client.expect(&["listener: -a"]);
        }
    }

    #[test]
    fn an_empty_wildcard_is_answered_once() {
        let mut client = Client::default();
        client.subscribe(LDS, &[]);
        client.expect(&["listener:"]);
        client.ack(LDS);
        client.stream.on_snapshot();
        client.expect(&[]);
    }

    #[test]
    fn kinds_without_wildcard_are_asked_for_nothing_by_no_name() {
        let mut client = Client::new(&[(VHDS, "outbound/post", "1")]);
        client.subscribe(VHDS, &[]);
        client.expect(&[]);
        client.change(VHDS, "outbound/post", "2");
        client.expect(&[]);
        client.subscribe(VHDS, &["outbound/post"]);
        client.expect(&["virtual_host: outbound/post@2"]);
    }

    #[test]
    fn a_name_is_always_answered_and_pushed_when_it_appears() {
        let mut client = Client::new(&[(VHDS, "outbound/post", "1")]);
        client.subscribe(VHDS, &["outbound/post", "outbound/nobody"]);
        client.expect(&["virtual_host: outbound/post@1 -outbound/nobody"]);
        client.ack(VHDS);
        client.stream.on_snapshot();
        client.expect(&[]);
        client.change(VHDS, "outbound/nobody", "1");
        client.expect(&["virtual_host: outbound/nobody@1"]);
        client.ack(VHDS);
        client.delete(VHDS, "outbound/nobody");
        client.expect(&["virtual_host: -outbound/nobody"]);
        client.ack(VHDS);
        // The client may have forgotten what it had: both are answered again.
        client.subscribe(VHDS, &["outbound/post", "outbound/nobody"]);
        client.expect(&["virtual_host: outbound/post@1 -outbound/nobody"]);
    }

    #[test]
    fn an_unsubscribed_name_is_not_told_about() {
        let mut client = Client::new(&[(EDS, "a", "1"), (EDS, "b", "1")]);
        client.subscribe(EDS, &["a", "b"]);
        client.expect(&["endpoint: a@1 b@1"]);
        client.ack(EDS);
        client.unsubscribe(EDS, &["a"]);
        client.expect(&[]);
        client.change(EDS, "a", "2");
        client.delete(EDS, "a");
        client.expect(&[]);
        client.change(EDS, "b", "2");
        client.expect(&["endpoint: b@2"]);
    }

    #[test]
    fn unsubscribing_from_what_the_wildcard_covers_sends_it_again() {
        let mut client = Client::new(&[(CDS, "a", "1"), (CDS, "b", "1")]);
        client.subscribe(CDS, &["*", "a"]);
        client.expect(&["cluster: a@1 b@1"]);
        client.ack(CDS);
        client.unsubscribe(CDS, &["a"]);
        client.expect(&["cluster: a@1"]);
        client.ack(CDS);
        client.unsubscribe(CDS, &["*"]);
        client.change(CDS, "a", "2");
        client.expect(&[]);
        // The wildcard of old clients goes the same way, and names added to it stay.
        let mut client = Client::new(&[(CDS, "a", "1"), (CDS, "b", "1")]);
        client.subscribe(CDS, &[]);
        client.expect(&["cluster: a@1 b@1"]);
        client.ack(CDS);
        client.subscribe(CDS, &["a"]);
        client.expect(&["cluster: a@1"]);
        client.ack(CDS);
        client.unsubscribe(CDS, &["*"]);
        client.change(CDS, "a", "2");
        client.change(CDS, "b", "2");
        client.expect(&["cluster: a@2"]);
    }

    #[test]
    fn a_reconnecting_client_gets_the_difference() {
        let mut client =
            Client::new(&[(CDS, "same", "1"), (CDS, "changed", "2"), (CDS, "new", "1")]);
        let same = client.mesh.version(CDS, "same");
        client.reconnect(
            CDS,
            &[],
            &[
                ("same", &same),
                ("changed", "0123456789abcdef"),
                ("gone", "v7"),
            ],
        );
        // Held removals are a response of their own.
        client.expect(&["cluster: changed@2 new@1"]);
        client.ack(CDS);
        client.expect(&["cluster: -gone"]);
    }

    #[test]
    fn a_reconnecting_client_that_is_up_to_date_hears_nothing() {
        let mut client = Client::new(&[(LDS, "l1", "4"), (EDS, "c1", "7")]);
        let (l1, c1) = (
            client.mesh.version(LDS, "l1"),
            client.mesh.version(EDS, "c1"),
        );
        client.reconnect(LDS, &[], &[("l1", &l1)]);
        client.begin(EDS, &["c1"], &[("c1", &c1)]);
        client.expect(&[]);
        client.change(EDS, "c1", "8");
        client.expect(&["endpoint: c1@8"]);
    }

    #[test]
    fn a_reconnecting_client_learns_what_is_gone_by_name() {
        let mut client = Client::new(&[(VHDS, "outbound/a", "1")]);
        client.reconnect(
            VHDS,
            &["outbound/a", "outbound/b", "outbound/c"],
            &[
                ("outbound/a", "an older server's"),
                ("outbound/b", "1"),
                ("stray", "1"),
            ],
        );
        client.expect(&["virtual_host: outbound/a@1 -outbound/b -outbound/c"]);
    }

    #[test]
    fn one_response_per_kind_is_outstanding_and_the_latest_wins() {
        let mut client = Client::new(&[(LDS, "a", "1")]);
        client.subscribe(LDS, &[]);
        client.expect(&["listener: a@1"]);
        client.change(LDS, "a", "2");
        client.change(LDS, "a", "3");
        client.change(LDS, "b", "1");
        client.delete(LDS, "b");
        client.expect(&[]);
        client.ack(LDS);
        client.expect(&["listener: a@3"]);
        // Other kinds are not held up.
        client.change(LDS, "a", "4");
        client.mesh.set(RDS, "r", "1");
        client.subscribe(RDS, &["r"]);
        client.expect(&["route: r@1"]);
    }

    #[test]
    fn a_rejected_resource_is_sent_again_only_when_it_changes() {
        let mut client = Client::new(&[(LDS, "a", "bad"), (LDS, "b", "1")]);
        client.subscribe(LDS, &[]);
        client.expect(&["listener: a@bad b@1"]);
        let heard = client.nack(LDS, "a: address: missing");
        let outcome = Outcome {
            kind: LDS,
            generation: 2,
            changed: false,
        };
        assert_eq!(
            heard,
            Heard::Nack(outcome, "a: address: missing".to_owned())
        );
        let rejected = |client: &Client| client.stream.summaries().next().unwrap().1.rejected;
        assert_eq!(rejected(&client).as_deref(), Some("a: address: missing"));
        client.stream.on_snapshot();
        client.expect(&[]);
        client.change(LDS, "b", "2");
        client.expect(&["listener: b@2"]);
        client.ack(LDS);
        client.change(LDS, "a", "good");
        client.expect(&["listener: a@good"]);
        client.ack(LDS);
        assert_eq!(rejected(&client), None);
    }

    #[test]
    fn a_stale_nonce_acknowledges_nothing_but_its_names_count() {
        let mut client = Client::new(&[(EDS, "a", "1"), (EDS, "b", "1")]);
        client.subscribe(EDS, &["a"]);
        client.expect(&["endpoint: a@1"]);
        let stale = client.nonces[&EDS].clone();
        client.ack(EDS);
        client.change(EDS, "a", "2");
        client.expect(&["endpoint: a@2"]);
        let heard = client.send(DeltaDiscoveryRequest {
            response_nonce: stale,
            resource_names_subscribe: owned(&["b"]),
            error_detail: Some(Status::default()),
            ..request(EDS)
        });
        assert_eq!(heard, Heard::Nothing);
        client.expect(&[]);
        client.ack(EDS);
        client.expect(&["endpoint: b@1"]);
    }

    #[test]
    fn nonces_are_fresh_and_acks_say_what_they_acknowledge() {
        let mut client = Client::new(&[(LDS, "a", "1"), (RDS, "r", "1")]);
        client.subscribe(LDS, &[]);
        client.subscribe(RDS, &["r"]);
        client.expect(&["listener: a@1", "route: r@1"]);
        assert_ne!(client.nonces[&LDS], client.nonces[&RDS]);
        client.ack(LDS);
        client.ack(RDS);
        assert!(client.stream.is_settled());
        client.change(RDS, "r", "2");
        assert!(!client.stream.is_settled());
        client.expect(&["route: r@2"]);
        let heard = client.ack(RDS);
        let outcome = Outcome {
            kind: RDS,
            generation: 3,
            changed: true,
        };
        assert_eq!(heard, Heard::Ack(outcome));
    }

    /// Envoy at start: clusters, their endpoints, and only then the ACK of the clusters.
    #[test]
    fn envoy_starts() {
        let mut client = Client::new(&[
            (CDS, "c1", "1"),
            (EDS, "c1", "1"),
            (LDS, "l1", "1"),
            (RDS, "l1-routes", "1"),
        ]);
        client.subscribe(CDS, &[]);
        client.expect(&["cluster: c1@1"]);
        client.subscribe(EDS, &["c1"]);
        client.expect(&["endpoint: c1@1"]);
        client.ack(EDS);
        client.ack(CDS);
        client.subscribe(LDS, &[]);
        client.expect(&["listener: l1@1"]);
        client.subscribe(RDS, &["l1-routes"]);
        client.expect(&["route: l1-routes@1"]);
        client.ack(RDS);
        client.ack(LDS);
        client.expect(&[]);
        assert!(client.stream.is_settled());
    }

    /// Envoy holds the ACK of a changed cluster back until it gets its endpoints, even if
    /// those did not change, and does not ask for them.
    #[test]
    fn a_changed_cluster_brings_its_endpoints_and_a_listener_its_routes() {
        let mut client = Client::new(&[
            (CDS, "c1", "1"),
            (CDS, "c2", "1"),
            (EDS, "c1", "1"),
            (EDS, "c2", "1"),
            (LDS, "l1", "1"),
            (RDS, "l1-routes", "1"),
        ]);
        client.subscribe(CDS, &[]);
        client.subscribe(EDS, &["c1", "c2"]);
        client.subscribe(LDS, &[]);
        client.subscribe(RDS, &["l1-routes"]);
        client.expect(&[
            "cluster: c1@1 c2@1",
            "endpoint: c1@1 c2@1",
            "listener: l1@1",
            "route: l1-routes@1",
        ]);
        for kind in [CDS, EDS, LDS, RDS] {
            client.ack(kind);
        }
        client.expect(&[]);
        client.change(CDS, "c1", "2");
        client.expect(&["cluster: c1@2", "endpoint: c1@1"]);
        client.ack(EDS);
        client.ack(CDS);
        client.change(LDS, "l1", "2");
        client.expect(&["listener: l1@2", "route: l1-routes@1"]);
        client.ack(LDS);
        client.ack(RDS);
        client.expect(&[]);
        // Not subscribed, not sent.
        client.unsubscribe(EDS, &["c2"]);
        client.change(CDS, "c2", "2");
        client.expect(&["cluster: c2@2"]);
    }

    #[test]
    fn pushes_go_in_order_and_removals_after_what_referred_to_them() {
        let mut client = Client::new(&[(CDS, "old", "1"), (EDS, "old", "1"), (RDS, "r", "to old")]);
        client.subscribe(RDS, &["r"]);
        client.subscribe(CDS, &[]);
        client.subscribe(EDS, &["old", "new"]);
        client.expect(&["cluster: old@1", "endpoint: old@1 -new", "route: r@to old"]);
        for kind in [CDS, EDS, RDS] {
            client.ack(kind);
        }
        client.mesh.remove(CDS, "old");
        client.mesh.remove(EDS, "old");
        client.mesh.set(CDS, "new", "1");
        client.mesh.set(EDS, "new", "1");
        client.change(RDS, "r", "to new");
        client.expect(&["cluster: new@1", "endpoint: new@1", "route: r@to new"]);
        client.ack(CDS);
        client.ack(EDS);
        client.expect(&[]);
        assert!(!client.stream.is_settled());
        client.ack(RDS);
        client.expect(&["cluster: -old", "endpoint: -old"]);
        client.ack(CDS);
        client.ack(EDS);
        assert!(client.stream.is_settled());
    }

    #[test]
    fn big_pushes_are_split() {
        let big = "x".repeat(MAX_RESPONSE_BYTES / 2);
        let mut client = Client::new(&[]);
        for name in ["a", "b", "c", "d", "e"] {
            client.mesh.set(CDS, name, &big);
        }
        client.subscribe(CDS, &[]);
        let mut counts = Vec::new();
        while let Some(push) = client.stream.next_response(&client.mesh) {
            assert!(push.bytes <= 2 * MAX_RESPONSE_BYTES);
            counts.push(push.response.resources.len());
            client.nonces.insert(CDS, push.response.nonce);
            client.ack(CDS);
        }
        assert_eq!(counts, [2, 2, 1]);
        assert!(client.stream.is_settled());
    }

    #[test]
    fn a_stream_has_bounds() {
        let mut client = Client::default();
        let names: Vec<String> = (0..MAX_SUBSCRIPTIONS).map(|n| n.to_string()).collect();
        let all = DeltaDiscoveryRequest {
            resource_names_subscribe: names,
            ..request(EDS)
        };
        client.send(all.clone());
        client.send(all);
        let one_more = DeltaDiscoveryRequest {
            resource_names_subscribe: owned(&["one more"]),
            ..request(VHDS)
        };
        let refused = client.stream.on_request(one_more, &client.mesh);
        assert_eq!(refused, Err(Refusal::TooManyNames));
        let long = DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["x".repeat(MAX_NAME_BYTES + 1)],
            ..request(VHDS)
        };
        let refused = client.stream.on_request(long, &client.mesh);
        assert_eq!(refused, Err(Refusal::NameTooLong(MAX_NAME_BYTES + 1)));
        let long_type = DeltaDiscoveryRequest {
            type_url: "x".repeat(MAX_NAME_BYTES + 1),
            ..DeltaDiscoveryRequest::default()
        };
        let refused = client.stream.on_request(long_type, &client.mesh);
        assert_eq!(refused, Err(Refusal::NameTooLong(MAX_NAME_BYTES + 1)));

        let long_names = (0..3_000).map(|n| format!("{n:01000}")).collect();
        let bytes = DeltaDiscoveryRequest {
            resource_names_subscribe: long_names,
            ..request(EDS)
        };
        let mut client = Client::default();
        let refused = client.stream.on_request(bytes, &client.mesh);
        assert_eq!(refused, Err(Refusal::TooManyNames));
        let versions = (0..=MAX_INITIAL_VERSIONS).map(|n| (n.to_string(), String::new()));
        let known = DeltaDiscoveryRequest {
            initial_resource_versions: versions.collect(),
            ..request(CDS)
        };
        let mut client = Client::default();
        let refused = client.stream.on_request(known, &client.mesh);
        assert_eq!(refused, Err(Refusal::TooManyVersions));
    }

    #[test]
    fn the_largest_requests_take_no_time() {
        let mut client = Client::default();
        for n in 0..5_000 {
            client
                .mesh
                .set(CDS, &format!("cluster-of-the-mesh-{n:06}"), "x");
        }
        let names = |count: usize| (0..count).map(|n| format!("cluster-of-the-mesh-{n:06}"));
        let start = std::time::Instant::now();
        let begin = DeltaDiscoveryRequest {
            resource_names_subscribe: names(MAX_SUBSCRIPTIONS).collect(),
            initial_resource_versions: names(MAX_INITIAL_VERSIONS)
                .map(|name| (name, "1".to_owned()))
                .collect(),
            ..request(CDS)
        };
        client.stream.on_request(begin, &client.mesh).unwrap();
        let wildcard = DeltaDiscoveryRequest {
            resource_names_subscribe: owned(&[WILDCARD]),
            ..request(CDS)
        };
        client.stream.on_request(wildcard, &client.mesh).unwrap();
        for _ in 0..3 {
            let forget = DeltaDiscoveryRequest {
                resource_names_unsubscribe: names(MAX_SUBSCRIPTIONS).collect(),
                ..request(CDS)
            };
            client.stream.on_request(forget, &client.mesh).unwrap();
        }
        let taken = start.elapsed();
        assert!(taken < std::time::Duration::from_secs(2), "{taken:?}");
    }

    #[test]
    fn types_that_are_not_served_are_answered_as_absent() {
        let mut client = Client::default();
        let unknown = DeltaDiscoveryRequest {
            type_url: "type.googleapis.com/envoy.service.runtime.v3.Runtime".to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        client.send(unknown.clone());
        client.send(DeltaDiscoveryRequest {
            resource_names_subscribe: owned(&["rtds", "*"]),
            ..unknown.clone()
        });
        client.expect(&[
            "type.googleapis.com/envoy.service.runtime.v3.Runtime:",
            "type.googleapis.com/envoy.service.runtime.v3.Runtime: -rtds",
        ]);
        // Its ACK is no new question.
        client.send(DeltaDiscoveryRequest {
            response_nonce: "1".to_owned(),
            ..unknown.clone()
        });
        client.expect(&[]);
        let refused = (0..=MAX_FOREIGN)
            .map(|_| client.stream.on_request(unknown.clone(), &client.mesh))
            .find_map(Result::err);
        assert_eq!(refused, Some(Refusal::TooManyForeign));
    }
}
