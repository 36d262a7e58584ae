//! What the sidecar asks of the control plane and what an answer means: the client half of
//! delta xDS as a state machine without I/O.
//!
//! Subscriptions and the versions that are held outlive a stream; on a new one all of them
//! are sent, so that the control plane answers with the difference. A rejected resource keeps
//! its last good version, here and at the caller.
//! (https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds)

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use weft_api::{
    Kind,
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    },
    google::rpc::Status,
};

use crate::config::{self, Rejected, Value};

/// What the stream has told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A stream is open: the control plane answers.
    Connected,
    /// The stream has ended, or could not be opened, for this reason. What was sent stays.
    Disconnected(String),
    /// A resource is new or was sent again.
    Updated(Arc<str>, Value, Raw),
    /// A resource that was there is gone.
    Removed(Kind, Arc<str>),
    /// A resource that was subscribed to does not exist (yet).
    Absent(Kind, Arc<str>),
    /// A resource cannot be used; the last good value, if any, stays in force.
    Rejected(Rejected),
    /// The sidecar has left. Nothing is told any more until it returns.
    Left(Farewell),
}

/// A resource as it was sent, to be kept for the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// The control plane's version.
    pub version: String,
    /// The encoded message.
    pub bytes: Bytes,
}

/// How a sidecar that leaves has parted from the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Nobody will call any more: everybody knows.
    Acknowledged,
    /// The control plane was told and has not answered in time.
    Unanswered,
    /// There was no control plane to tell.
    NotConnected,
}

/// The client's half of delta ADS.
#[derive(Debug)]
pub(super) struct State {
    node: Node,
    /// Whether a stream is open, and whether its first request has been made.
    stream: Stream,
    kinds: [Subscriptions; Kind::ALL.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Closed,
    /// Open, but nothing has been sent: the next request carries the node.
    Silent,
    Open,
}

/// The subscriptions of one kind.
#[derive(Debug, Default)]
struct Subscriptions {
    /// Whether everything of this kind is subscribed to.
    wildcard: bool,
    /// Whether this kind has been asked for on this stream.
    opened: bool,
    /// What is subscribed to by name or was sent, with the last good version.
    resources: BTreeMap<Arc<str>, Option<String>>,
    subscribe: BTreeSet<Arc<str>>,
    unsubscribe: BTreeSet<Arc<str>>,
}

impl State {
    /// Without a stream. All listeners are subscribed to, and nothing else.
    pub(super) fn new(node: Node) -> Self {
        let mut kinds: [Subscriptions; Kind::ALL.len()] = Default::default();
        kinds[index(Kind::Listener)].wildcard = true;
        Self {
            node,
            stream: Stream::Closed,
            kinds,
        }
    }

    /// Holds a resource from an earlier stream, maybe of another process.
    pub(super) fn hold(&mut self, kind: Kind, name: Arc<str>, version: String) {
        let kind = &mut self.kinds[index(kind)];
        kind.resources.insert(name, Some(version));
    }

    /// Subscribes to a name; nothing happens if it is. Listeners come unasked.
    pub(super) fn subscribe(&mut self, kind: Kind, name: Arc<str>) {
        let open = self.stream != Stream::Closed;
        let kind = &mut self.kinds[index(kind)];
        if kind.wildcard || kind.resources.contains_key(&name) {
            return;
        }
        kind.resources.insert(name.clone(), None);
        if open {
            kind.unsubscribe.remove(&name);
            kind.subscribe.insert(name);
        }
    }

    /// Forgets a name and what is held of it.
    pub(super) fn unsubscribe(&mut self, kind: Kind, name: &str) {
        let open = self.stream != Stream::Closed;
        let kind = &mut self.kinds[index(kind)];
        if kind.wildcard {
            return;
        }
        if let Some((name, _)) = kind.resources.remove_entry(name)
            && open
        {
            kind.subscribe.remove(&name);
            kind.unsubscribe.insert(name);
        }
    }

    /// A stream has been opened: the next requests ask for everything again, with the
    /// versions that are held.
    pub(super) fn opened(&mut self) {
        self.stream = Stream::Silent;
        for kind in &mut self.kinds {
            kind.opened = false;
            kind.unsubscribe.clear();
            kind.subscribe.clear();
            if kind.wildcard {
                kind.subscribe.insert(WILDCARD.into());
            } else {
                kind.subscribe.extend(kind.resources.keys().cloned());
            }
        }
    }

    /// The stream is gone. What is held stays.
    pub(super) fn closed(&mut self) {
        self.stream = Stream::Closed;
    }

    /// The requests that tell the control plane what has changed since the last call.
    pub(super) fn requests(&mut self) -> Vec<DeltaDiscoveryRequest> {
        if self.stream == Stream::Closed {
            return Vec::new();
        }
        let mut requests = Vec::new();
        for kind in Kind::ALL {
            if let Some(mut request) = self.kinds[index(kind)].request() {
                request.type_url = kind.type_url().to_owned();
                if self.stream == Stream::Silent {
                    self.stream = Stream::Open;
                    request.node = Some(self.node.clone());
                }
                requests.push(request);
            }
        }
        requests
    }

    /// Takes a response: what it means, and the request that accepts it, or that names every
    /// bad resource. Good resources apply in either case.
    pub(super) fn on_response(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> (Vec<Event>, DeltaDiscoveryRequest) {
        let mut answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        };
        let Some(kind) = Kind::from_type_url(&answer.type_url) else {
            answer.error_detail = Some(refusal(format!("{} is not supported", answer.type_url)));
            return (Vec::new(), answer);
        };
        let held = &mut self.kinds[index(kind)];
        let mut events = Vec::new();
        let mut problems = Vec::new();
        let mut seen = HashSet::new();
        for resource in response.resources {
            let name: Arc<str> = resource.name.as_str().into();
            let twice = !seen.insert(name.clone());
            match held.accept(kind, &name, resource, twice) {
                Ok(Some((value, raw))) => events.push(Event::Updated(name, value, raw)),
                Ok(None) => {}
                Err(rejected) => {
                    // One that came unasked is to be told of when it goes.
                    held.resources.entry(name).or_insert(None);
                    problems.push(rejected.to_string());
                    events.push(Event::Rejected(rejected));
                }
            }
        }
        let named = response.removed_resource_names.into_iter().map(|n| n.name);
        for name in response.removed_resources.into_iter().chain(named) {
            events.extend(held.remove(kind, &name));
        }
        if !problems.is_empty() {
            answer.error_detail = Some(refusal(problems.join("\n")));
        }
        (events, answer)
    }
}

impl Subscriptions {
    fn request(&mut self) -> Option<DeltaDiscoveryRequest> {
        let subscribe = mem::take(&mut self.subscribe);
        let unsubscribe = mem::take(&mut self.unsubscribe);
        // The first request of a kind without names would subscribe to all of it.
        let first = !self.opened;
        if subscribe.is_empty() && (first || unsubscribe.is_empty()) {
            return None;
        }
        self.opened = true;
        let strings = |names: BTreeSet<Arc<str>>| names.iter().map(ToString::to_string).collect();
        let held = self.resources.iter();
        // What comes unasked is not answered for by name: without a good version we claim
        // none that is known, so as to hear what has become of it.
        let unknown = self.wildcard.then(String::new);
        let versions = held.filter_map(|(name, version)| {
            Some((name.to_string(), version.clone().or(unknown.clone())?))
        });
        Some(DeltaDiscoveryRequest {
            resource_names_subscribe: strings(subscribe),
            resource_names_unsubscribe: if first {
                Vec::new()
            } else {
                strings(unsubscribe)
            },
            initial_resource_versions: versions.filter(|_| first).collect(),
            ..Default::default()
        })
    }

    /// The value of a resource, or nothing if nobody wants it or if it only says that it is
    /// alive.
    fn accept(
        &mut self,
        kind: Kind,
        name: &Arc<str>,
        resource: Resource,
        twice: bool,
    ) -> Result<Option<(Value, Raw)>, Rejected> {
        let held = self.resources.get(name);
        if held.is_none() && !self.wildcard {
            return Ok(None);
        }
        let reject = |problem: &str| {
            Err(Rejected {
                kind,
                name: name.clone(),
                problems: vec![problem.to_owned()],
            })
        };
        if twice {
            return reject("resource: is there twice in one response");
        }
        let Some(body) = resource.resource else {
            if held.is_some_and(Option::is_some) {
                return Ok(None);
            }
            return reject("resource: is missing");
        };
        if body.type_url != kind.type_url() {
            return reject(&format!(
                "resource: is a {} in a response of {}",
                body.type_url,
                kind.type_url()
            ));
        }
        let value = config::parse(kind, name, &body.value)?;
        let raw = Raw {
            version: resource.version,
            bytes: body.value.into(),
        };
        self.resources
            .insert(name.clone(), Some(raw.version.clone()));
        Ok(Some((value, raw)))
    }

    fn remove(&mut self, kind: Kind, name: &str) -> Option<Event> {
        let (name, version) = self.resources.remove_entry(name)?;
        if !self.wildcard {
            self.resources.insert(name.clone(), None);
        }
        Some(if version.is_some() {
            Event::Removed(kind, name)
        } else {
            Event::Absent(kind, name)
        })
    }
}

fn index(kind: Kind) -> usize {
    kind as usize
}

/// A NACK's error, cut to a size that every server reads.
fn refusal(mut message: String) -> Status {
    if message.len() > MAX_REFUSAL {
        message.truncate(message.floor_char_boundary(MAX_REFUSAL));
        message.push_str("\n...");
    }
    Status {
        code: tonic::Code::InvalidArgument as i32,
        message,
        details: Vec::new(),
    }
}

/// The name that stands for all resources of a kind.
const WILDCARD: &str = "*";
/// The longest text of a NACK, in bytes.
const MAX_REFUSAL: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use prost::Message;
    use weft_api::{
        envoy::{
            config::{
                endpoint::v3::{
                    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
                },
                route::v3::RouteConfiguration,
            },
            service::discovery::v3::ResourceName,
        },
        google::protobuf::Any,
    };

    use super::*;

    const E: Kind = Kind::Endpoint;

    fn state() -> State {
        State::new(Node {
            id: "blog/post".into(),
            ..Default::default()
        })
    }

    fn opened() -> State {
        let mut state = state();
        state.opened();
        state.requests();
        state
    }

    fn endpoints(name: &str, version: &str) -> Resource {
        let message = ClusterLoadAssignment {
            cluster_name: name.into(),
            ..Default::default()
        };
        resource(E, name, version, message.encode_to_vec())
    }

    /// An endpoint without an address.
    fn bad_endpoints(name: &str, version: &str) -> Resource {
        let endpoint = LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint::default())),
            ..Default::default()
        };
        let message = ClusterLoadAssignment {
            cluster_name: name.into(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..Default::default()
            }],
            ..Default::default()
        };
        resource(E, name, version, message.encode_to_vec())
    }

    fn resource(kind: Kind, name: &str, version: &str, value: Vec<u8>) -> Resource {
        Resource {
            name: name.into(),
            version: version.into(),
            resource: Some(Any {
                type_url: kind.type_url().into(),
                value,
            }),
            ..Default::default()
        }
    }

    fn response(kind: Kind, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: "n7".into(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    /// A request in one line: kind, +subscribed, -unsubscribed, =held versions, node.
    fn line(request: &DeltaDiscoveryRequest) -> String {
        let kind = Kind::from_type_url(&request.type_url).expect("kind");
        let mut words = vec![kind.to_string()];
        let subscribe = request.resource_names_subscribe.iter();
        words.extend(subscribe.map(|name| format!("+{name}")));
        let unsubscribe = request.resource_names_unsubscribe.iter();
        words.extend(unsubscribe.map(|name| format!("-{name}")));
        let versions: BTreeMap<_, _> = request.initial_resource_versions.iter().collect();
        words.extend(versions.iter().map(|(name, v)| format!("{name}={v}")));
        words.extend(request.node.as_ref().map(|node| format!("@{}", node.id)));
        words.join(" ")
    }

    fn lines(state: &mut State) -> Vec<String> {
        state.requests().iter().map(line).collect()
    }

    /// Events in one line each.
    fn told(events: &[Event]) -> Vec<String> {
        let tell = |event: &Event| match event {
            Event::Updated(name, value, _) => format!("updated {} {name}", value.kind()),
            Event::Removed(kind, name) => format!("removed {kind} {name}"),
            Event::Absent(kind, name) => format!("absent {kind} {name}"),
            Event::Rejected(rejected) => format!("rejected {} {rejected}", rejected.kind),
            Event::Connected | Event::Disconnected(_) | Event::Left(_) => "connection".into(),
        };
        events.iter().map(tell).collect()
    }

    #[test]
    fn a_stream_starts_with_all_listeners_and_the_node_once() {
        let mut state = state();
        state.subscribe(E, "b".into());
        state.subscribe(E, "a".into());
        assert!(state.requests().is_empty(), "there is no stream");
        state.opened();
        assert_eq!(
            lines(&mut state),
            ["endpoint +a +b @blog/post", "listener +*"]
        );
        assert!(state.requests().is_empty(), "nothing has changed");
    }

    #[test]
    fn subscriptions_are_sent_as_differences() {
        let mut state = opened();
        state.subscribe(E, "a".into());
        state.subscribe(E, "a".into());
        state.subscribe(Kind::Cluster, "c".into());
        assert_eq!(lines(&mut state), ["cluster +c", "endpoint +a"]);
        state.subscribe(E, "a".into());
        assert!(state.requests().is_empty());
        state.subscribe(E, "b".into());
        state.unsubscribe(E, "a");
        state.unsubscribe(E, "never");
        assert_eq!(lines(&mut state), ["endpoint +b -a"]);
        state.unsubscribe(E, "b");
        assert_eq!(lines(&mut state), ["endpoint -b"]);
    }

    #[test]
    fn a_name_that_comes_back_is_asked_for_again() {
        let mut state = opened();
        state.subscribe(E, "a".into());
        state.requests();
        state.on_response(response(E, vec![endpoints("a", "1")], &[]));
        state.unsubscribe(E, "a");
        state.subscribe(E, "a".into());
        assert_eq!(lines(&mut state), ["endpoint +a"]);
    }

    #[test]
    fn the_first_request_of_a_kind_never_lacks_names() {
        // It would subscribe to every cluster of the mesh.
        let mut state = opened();
        state.subscribe(Kind::Cluster, "c".into());
        state.unsubscribe(Kind::Cluster, "c");
        assert!(state.requests().is_empty());
        state.subscribe(Kind::Cluster, "d".into());
        assert_eq!(lines(&mut state), ["cluster +d"]);
        state.unsubscribe(Kind::Cluster, "d");
        assert_eq!(lines(&mut state), ["cluster -d"]);
    }

    #[test]
    fn listeners_are_not_subscribed_by_name() {
        let mut state = opened();
        state.subscribe(Kind::Listener, "outbound".into());
        state.unsubscribe(Kind::Listener, "outbound");
        assert!(state.requests().is_empty());
    }

    #[test]
    fn a_new_stream_tells_what_is_held() {
        let mut state = opened();
        for name in ["a", "b", "c"] {
            state.subscribe(E, name.into());
        }
        state.requests();
        let resources = vec![endpoints("a", "1"), endpoints("b", "1")];
        state.on_response(response(E, resources, &["c"]));
        state.on_response(response(E, vec![bad_endpoints("b", "2")], &[]));
        state.subscribe(E, "pending".into());
        state.closed();
        state.unsubscribe(E, "a");
        state.subscribe(E, "d".into());
        assert!(state.requests().is_empty());
        state.opened();
        assert_eq!(
            lines(&mut state),
            ["endpoint +b +c +d +pending b=1 @blog/post", "listener +*"]
        );
        state.subscribe(E, "e".into());
        assert_eq!(lines(&mut state), ["endpoint +e"]);
    }

    #[test]
    fn what_was_kept_on_disk_is_claimed_and_can_be_removed() {
        let mut state = state();
        for (kind, name) in [
            (Kind::Listener, "outbound"),
            (Kind::Listener, "inbound|80"),
            (E, "a"),
            (E, "gone"),
        ] {
            state.hold(kind, name.into(), "7".into());
        }
        state.subscribe(E, "a".into());
        state.subscribe(E, "new".into());
        state.unsubscribe(E, "gone");
        state.opened();
        assert_eq!(
            lines(&mut state),
            [
                "endpoint +a +new a=7 @blog/post",
                "listener +* inbound|80=7 outbound=7"
            ]
        );
        // A listener that is gone while nobody looked.
        let answer = response(Kind::Listener, Vec::new(), &["inbound|80"]);
        assert_eq!(
            told(&state.on_response(answer).0),
            ["removed listener inbound|80"]
        );
        let (events, _) = state.on_response(response(E, Vec::new(), &["a"]));
        assert_eq!(told(&events), ["removed endpoint a"]);
    }

    #[test]
    fn resources_come_with_their_bytes() {
        let mut state = opened();
        state.subscribe(E, "a".into());
        let sent = endpoints("a", "3");
        let bytes = sent.resource.clone().expect("body").value;
        let (events, _) = state.on_response(response(E, vec![sent], &[]));
        let [Event::Updated(_, _, raw)] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert_eq!((raw.version.as_str(), &*raw.bytes), ("3", &*bytes));
    }

    #[test]
    fn resources_are_updated_removed_or_absent() {
        let mut state = opened();
        state.subscribe(E, "a".into());
        state.subscribe(E, "b".into());
        let good = vec![endpoints("a", "1"), endpoints("unasked", "1")];
        let (events, answer) = state.on_response(response(E, good, &["b", "unasked"]));
        assert_eq!(told(&events), ["updated endpoint a", "absent endpoint b"]);
        assert_eq!(answer.response_nonce, "n7");
        assert_eq!(answer.type_url, E.type_url());
        assert_eq!(answer.error_detail, None);
        let (events, _) = state.on_response(response(E, Vec::new(), &["a"]));
        assert_eq!(told(&events), ["removed endpoint a"]);
        let (events, _) = state.on_response(response(E, Vec::new(), &["a"]));
        assert_eq!(told(&events), ["absent endpoint a"]);
        let (events, _) = state.on_response(response(E, vec![endpoints("b", "2")], &[]));
        assert_eq!(told(&events), ["updated endpoint b"]);
        let mut named = response(E, Vec::new(), &[]);
        named.removed_resource_names = vec![ResourceName {
            name: "b".into(),
            ..Default::default()
        }];
        assert_eq!(told(&state.on_response(named).0), ["removed endpoint b"]);
    }

    #[test]
    fn an_answer_that_crosses_an_unsubscription_is_accepted_and_dropped() {
        let mut state = opened();
        state.subscribe(E, "a".into());
        state.unsubscribe(E, "a");
        let (events, answer) = state.on_response(response(E, vec![bad_endpoints("a", "1")], &[]));
        assert_eq!((events, answer.error_detail), (Vec::new(), None));
    }

    #[test]
    fn a_refusal_names_every_bad_resource_and_the_good_ones_apply() {
        let mut state = opened();
        for name in ["a", "b", "c", "d", "e"] {
            state.subscribe(E, name.into());
        }
        let mut bare = endpoints("c", "1");
        bare.resource = None;
        let mut foreign = endpoints("d", "1");
        if let Some(any) = &mut foreign.resource {
            any.type_url = Kind::Route.type_url().into();
        }
        let resources = vec![
            bad_endpoints("a", "1"),
            endpoints("b", "1"),
            bare,
            foreign,
            endpoints("e", "1"),
            endpoints("e", "2"),
        ];
        let (events, answer) = state.on_response(response(E, resources, &[]));
        let address =
            "endpoints[0].lb_endpoints[0].endpoint.address: is missing; set socket_address";
        let problems = [
            format!("a: {address}"),
            "c: resource: is missing".into(),
            format!(
                "d: resource: is a {} in a response of {}",
                Kind::Route.type_url(),
                E.type_url()
            ),
            "e: resource: is there twice in one response".into(),
        ];
        let error = answer.error_detail.expect("NACK");
        assert_eq!(error.code, 3);
        assert_eq!(error.message, problems.join("\n"));
        assert_eq!(answer.response_nonce, "n7");
        let [a, c, d, e] = problems.map(|line| format!("rejected endpoint {line}"));
        let good = |name: &str| format!("updated endpoint {name}");
        assert_eq!(told(&events), [a, good("b"), c, d, good("e"), e]);
        state.opened();
        assert_eq!(
            lines(&mut state)[0],
            "endpoint +a +b +c +d +e b=1 e=1 @blog/post",
            "only good versions are held"
        );
    }

    #[test]
    fn a_sign_of_life_changes_nothing() {
        let mut state = opened();
        state.subscribe(E, "a".into());
        state.on_response(response(E, vec![endpoints("a", "1")], &[]));
        let mut heartbeat = endpoints("a", "1");
        heartbeat.resource = None;
        let (events, answer) = state.on_response(response(E, vec![heartbeat], &[]));
        assert_eq!((events, answer.error_detail), (Vec::new(), None));
    }

    #[test]
    fn listeners_come_and_go_unasked() {
        let mut state = opened();
        let kind = Kind::Listener;
        let bad = resource(kind, "outbound", "1", Vec::new());
        let (events, answer) = state.on_response(response(kind, vec![bad], &["gone"]));
        assert!(answer.error_detail.is_some());
        assert!(
            matches!(events.as_slice(), [Event::Rejected(_)]),
            "{events:?}"
        );
        // A listener that is held is told of on the next stream, one that was rejected as one
        // of no version that there is, and their end is an event.
        let held = &mut state.kinds[index(kind)].resources;
        held.insert("inbound|80".into(), Some("4".into()));
        state.opened();
        assert_eq!(
            lines(&mut state),
            ["listener +* inbound|80=4 outbound= @blog/post"]
        );
        let gone = response(kind, Vec::new(), &["inbound|80", "outbound"]);
        assert_eq!(
            told(&state.on_response(gone).0),
            ["removed listener inbound|80", "absent listener outbound"]
        );
        assert!(state.kinds[index(kind)].resources.is_empty());
    }

    #[test]
    fn a_kind_that_nobody_knows_is_refused() {
        let mut state = opened();
        let mut unknown = response(E, Vec::new(), &[]);
        unknown.type_url = "type.googleapis.com/x.Y".into();
        let (events, answer) = state.on_response(unknown);
        assert!(events.is_empty());
        assert_eq!(answer.type_url, "type.googleapis.com/x.Y");
        let error = answer.error_detail.expect("NACK");
        assert_eq!(error.message, "type.googleapis.com/x.Y is not supported");
    }

    #[test]
    fn a_long_refusal_is_cut() {
        let cut = refusal("\u{e4}".repeat(MAX_REFUSAL)).message;
        assert_eq!(cut.len(), MAX_REFUSAL + "\n...".len());
        assert_eq!(refusal("short".into()).message, "short");
    }

    #[test]
    fn values_arrive_with_their_kind() {
        let mut state = opened();
        state.subscribe(Kind::Route, "outbound".into());
        let message = RouteConfiguration {
            name: "outbound".into(),
            ..Default::default()
        };
        let route = resource(Kind::Route, "outbound", "1", message.encode_to_vec());
        let (events, _) = state.on_response(response(Kind::Route, vec![route], &[]));
        assert_eq!(told(&events), ["updated route outbound"]);
    }
}
