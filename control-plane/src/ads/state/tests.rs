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
    let mut client = Client::new(&[(CDS, "same", "1"), (CDS, "changed", "2"), (CDS, "new", "1")]);
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

#[test]
fn how_far_a_client_is_with_some_endpoints() {
    use Progress::{Applied, Pending, Rejected};
    let names = owned(&["a", "b"]);
    let progress = |client: &Client, generation| client.stream.progress(EDS, &names, generation);
    let mut client = Client::new(&[(EDS, "a", "1"), (EDS, "c", "1")]);
    assert_eq!(progress(&client, 2), Applied, "it has none of them");
    client.subscribe(EDS, &["a", "c"]);
    assert_eq!(progress(&client, 2), Pending, "it has not been told");
    client.expect(&["endpoint: a@1 c@1"]);
    assert_eq!(progress(&client, 2), Pending, "it has not answered");

    // While that waits for its answer, `a` changes: the older answer is not enough.
    client.change(EDS, "a", "2");
    client.expect(&[]);
    client.ack(EDS);
    assert_eq!(progress(&client, 2), Applied);
    assert_eq!(progress(&client, 3), Pending, "that was an older one");
    client.expect(&["endpoint: a@2"]);
    assert_eq!(progress(&client, 3), Pending);
    client.ack(EDS);
    assert_eq!(progress(&client, 3), Applied);

    // What it has not been told of waits; what does not change needs no answer.
    assert_eq!(progress(&client, 4), Pending);
    client.change(EDS, "c", "2");
    assert_eq!(progress(&client, 4), Pending);
    client.expect(&["endpoint: c@2"]);
    assert_eq!(progress(&client, 4), Applied, "only `c` is unanswered");

    // Many changes between two answers are one.
    client.change(EDS, "a", "3");
    client.change(EDS, "a", "4");
    client.ack(EDS);
    client.expect(&["endpoint: a@4"]);
    client.change(EDS, "a", "5");
    client.ack(EDS);
    assert_eq!(progress(&client, 6), Applied, "5 came after it");
    assert_eq!(progress(&client, 7), Pending);
    client.expect(&["endpoint: a@5"]);
    client.nack(EDS, "no");
    assert_eq!(progress(&client, 7), Rejected);

    client.unsubscribe(EDS, &["a"]);
    assert_eq!(progress(&client, 8), Applied, "it has it no more");
    assert_eq!(client.stream.held(EDS).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn a_removal_that_is_held_back_is_not_answered() {
    let mut client = Client::new(&[(CDS, "a", "1"), (EDS, "a", "1"), (RDS, "r", "1")]);
    for kind in [CDS, EDS] {
        client.subscribe(kind, &["a"]);
    }
    client.subscribe(RDS, &["r"]);
    client.expect(&["cluster: a@1", "endpoint: a@1", "route: r@1"]);
    for kind in [CDS, EDS] {
        client.ack(kind);
    }
    let names = owned(&["a"]);
    client.delete(EDS, "a");
    client.expect(&[]);
    let generation = client.mesh.generation;
    let progress = |client: &Client| client.stream.progress(EDS, &names, generation);
    assert_eq!(
        progress(&client),
        Progress::Pending,
        "a route may refer to it"
    );
    client.ack(RDS);
    client.expect(&["endpoint: -a"]);
    assert_eq!(progress(&client), Progress::Pending);
    client.ack(EDS);
    assert_eq!(progress(&client), Progress::Applied);
}
