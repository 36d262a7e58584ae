//! Workloads without a document that say themselves what they are.

use std::path::Path;

use tonic::{Code, Status};
use weft_api::envoy::config::core::v3::{HealthStatus, Node, address::Address};
use weft_api::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use weft_api::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use weft_api::google::protobuf::{ListValue, Struct, Value, value};
use weft_api::{Kind, any};
use weft_certs::WorkloadCert;

use crate::support::*;

fn text(text: &str) -> Value {
    kind(value::Kind::StringValue(text.to_owned()))
}

fn kind(kind: value::Kind) -> Value {
    Value { kind: Some(kind) }
}

fn list(values: Vec<Value>) -> Value {
    kind(value::Kind::ListValue(ListValue { values }))
}

fn object(fields: Vec<(&str, Value)>) -> Value {
    let fields = fields
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value));
    kind(value::Kind::StructValue(Struct {
        fields: fields.collect(),
    }))
}

/// A captured pod of `app: post` with the application at port 8080.
pub(crate) fn node(id: &str, address: &str) -> Node {
    let port = object(vec![
        ("name", text("http")),
        ("port", kind(value::Kind::NumberValue(8080.0))),
    ]);
    let own = object(vec![
        ("register", kind(value::Kind::BoolValue(true))),
        ("addresses", list(vec![text(address)])),
        ("labels", object(vec![("app", text("post"))])),
        ("ports", list(vec![port])),
        ("capture", text("redirect")),
        ("excludeInboundPorts", list(vec![])),
    ]);
    let metadata = Struct {
        fields: [("weft.dev".to_owned(), own)].into(),
    };
    Node {
        metadata: Some(metadata),
        ..Ads::node(id)
    }
}

impl Plane {
    async fn register(&self, svid: &WorkloadCert, id: &str, address: &str) -> Ads {
        let channel = self.channel(Some(svid)).await;
        Ads::open_as(channel, node(id, address)).await.unwrap()
    }

    /// How a registration is refused.
    async fn refusal(&self, svid: &WorkloadCert, node: Node) -> Status {
        let channel = self.channel(Some(svid)).await;
        let mut ads = Ads::open_as(channel, node).await.unwrap();
        ads.next().await.unwrap_err()
    }
}

/// `address:port health` of each endpoint.
fn endpoints(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let resource = response.resources[0].resource.as_ref().unwrap();
    let assignment: ClusterLoadAssignment = any::unpack(resource).unwrap();
    let localities = assignment.endpoints.into_iter();
    let endpoints = localities.flat_map(|locality| locality.lb_endpoints);
    let endpoints = endpoints.map(|endpoint| {
        let draining = endpoint.health_status() == HealthStatus::Draining;
        let Some(HostIdentifier::Endpoint(endpoint)) = endpoint.host_identifier else {
            panic!("no endpoint");
        };
        let Some(Address::SocketAddress(at)) = endpoint.address.unwrap().address else {
            panic!("no address");
        };
        let port = at.port_specifier.unwrap();
        let port = match port {
            weft_api::envoy::config::core::v3::socket_address::PortSpecifier::PortValue(p) => p,
            other => panic!("{other:?}"),
        };
        let state = if draining { " draining" } else { "" };
        format!("{}:{port}{state}", at.address)
    });
    endpoints.collect()
}

/// The mesh of the other tests without the document of `post-v1`.
fn without_documents(directory: &Path) {
    let parts: Vec<&str> = MESH.split("---").collect();
    let mesh = [parts[0], parts[1], parts[3]].join("---");
    std::fs::write(directory.join("config/mesh.yaml"), mesh).unwrap();
}

const CAPTURED: &str = "listener: dns inbound inbound|8080 outbound";

async fn watcher(plane: &Plane, web: &WorkloadCert) -> Ads {
    let mut ads = plane.ads(web, "blog/watcher").await;
    ads.expect("listener:").await;
    ads.subscribe(Kind::Endpoint, &["post.blog:80"]).await;
    ads
}

const ENDPOINTS: &str = "endpoint: post.blog:80";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_workload_while_its_stream_is_open_and_until_nobody_calls_it() {
    let directory = directory();
    without_documents(directory.path());
    let plane = Plane::start(directory.path()).await;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    let mut watcher = watcher(&plane, &web).await;
    assert!(endpoints(&watcher.expect(ENDPOINTS).await).is_empty());

    // Its first answer has its listeners: there is no moment without.
    let mut ads = plane.register(&post, "blog/post-1", "10.9.0.2").await;
    ads.expect(CAPTURED).await;
    let response = watcher.expect(ENDPOINTS).await;
    assert_eq!(endpoints(&response), ["10.9.0.2:8080"]);
    plane
        .until_page("/metrics", "weft_control_registrations 1")
        .await;
    let page = plane.page("/debug/registrations").await;
    assert!(
        page.contains("\"blog/post-1\"") && page.contains("connected"),
        "{page}"
    );

    // Another of the group, and the first leaves.
    let mut second = plane.register(&post, "blog/post-2", "10.9.0.3").await;
    second.expect(CAPTURED).await;
    let response = watcher.expect(ENDPOINTS).await;
    assert_eq!(endpoints(&response), ["10.9.0.2:8080", "10.9.0.3:8080"]);
    drop(ads.requests);
    let response = watcher.next().await.unwrap();
    assert_eq!(
        endpoints(&response),
        ["10.9.0.2:8080 draining", "10.9.0.3:8080"]
    );
    assert!(plane.page("/debug/registrations").await.contains("post-1"));
    watcher.ack(&response).await;
    let response = watcher.expect(ENDPOINTS).await;
    assert_eq!(endpoints(&response), ["10.9.0.3:8080"]);
    assert_eq!(soon(ads.responses.message()).await.unwrap(), None);
    let page = plane.page("/debug/config").await;
    assert!(page.contains("\"draining\": []"), "{page}");
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_break_and_a_restart_of_the_control_plane_change_nothing() {
    let directory = directory();
    without_documents(directory.path());
    let plane = Plane::start(directory.path()).await;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    let mut ads = plane.register(&post, "blog/post-1", "10.9.0.2").await;
    ads.expect(CAPTURED).await;
    let mut leaving = plane.register(&post, "blog/post-2", "10.9.0.3").await;
    leaving.expect(CAPTURED).await;
    let mut first = watcher(&plane, &web).await;
    assert_eq!(endpoints(&first.expect(ENDPOINTS).await).len(), 2);
    drop(leaving.requests);
    let response = first.next().await.unwrap();
    assert_eq!(
        endpoints(&response),
        ["10.9.0.2:8080", "10.9.0.3:8080 draining"]
    );
    plane.stop().await;
    assert_eq!(ads.next().await.unwrap_err().code(), Code::Unavailable);
    let status = soon(leaving.responses.message()).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::Unavailable,
        "not acknowledged: {status}"
    );

    let plane = Plane::start(directory.path()).await;
    let page = plane.page("/debug/registrations").await;
    assert!(page.contains("restored"), "{page}");
    let mut second = watcher(&plane, &web).await;
    let response = second.expect(ENDPOINTS).await;
    assert_eq!(
        endpoints(&response),
        ["10.9.0.2:8080", "10.9.0.3:8080 draining"]
    );
    // It comes back as if nothing had happened; a break after that is none either.
    let (address, relay) = plane.relay().await;
    let channel = plane.channel_to(address, Some(&post)).await;
    let again = Ads::open_as(channel, node("blog/post-1", "10.9.0.2")).await;
    let mut again = again.unwrap();
    again.expect(CAPTURED).await;
    plane.until_page("/debug/registrations", "connected").await;
    relay.abort();
    plane.until_page("/debug/registrations", "gone").await;
    let mut third = watcher(&plane, &web).await;
    assert_eq!(endpoints(&third.expect(ENDPOINTS).await).len(), 2);
    plane.stop().await;

    // A file that cannot be used is set aside, and the start goes on.
    let file = directory.path().join("data/registrations.json");
    std::fs::write(&file, "nonsense").unwrap();
    let plane = Plane::start(directory.path()).await;
    let page = plane.page("/debug/registrations").await;
    assert!(page.contains("\"registrations\": []"), "{page}");
    let aside = directory.path().join("data/registrations.json.rejected");
    assert_eq!(std::fs::read_to_string(aside).unwrap(), "nonsense");
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_of_the_same_name_counts() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    let mut ads = plane.register(&post, "blog/post-1", "10.9.0.2").await;
    ads.expect(CAPTURED).await;
    let mut twice = plane.register(&post, "blog/post-v1", "10.9.0.3").await;
    twice.expect("listener: inbound|8080 outbound").await;
    let mut watcher = watcher(&plane, &web).await;
    let response = watcher.expect(ENDPOINTS).await;
    assert_eq!(endpoints(&response), ["10.9.0.2:8080", "127.0.0.1:14106"]);
    let page = plane.page("/debug/config").await;
    assert!(page.contains("registers itself, too"), "{page}");

    // The document goes: what the sidecar says counts.
    without_documents(directory.path());
    let response = watcher.expect(ENDPOINTS).await;
    assert_eq!(endpoints(&response), ["10.9.0.2:8080", "10.9.0.3:8080"]);
    // A document for another identity comes: it is not that workload any more.
    let other = POST_V2
        .replace("post-v2", "post-1")
        .replace("serviceAccount: post", "serviceAccount: other");
    std::fs::write(directory.path().join("config/other.yaml"), other).unwrap();
    let status = loop {
        match ads.next().await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_or_not_ones_own_is_refused() {
    let directory = directory();
    let more = "
---
apiVersion: v1
kind: Service
metadata: {name: virtual, namespace: blog}
spec: {clusterIP: 10.96.0.7, selector: {app: x}, ports: [{port: 80}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: captured, namespace: blog}
spec: {serviceAccount: web, address: 10.9.0.9, capture: {}}
";
    std::fs::write(directory.path().join("config/more.yaml"), more).unwrap();
    let plane = Plane::start(directory.path()).await;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    let mut ads = plane.register(&post, "blog/post-1", "10.9.0.2").await;
    ads.expect(CAPTURED).await;
    for (svid, id, address, code, text) in [
        (
            &web,
            "blog/web-1",
            "nowhere",
            Code::InvalidArgument,
            "node.metadata[\"weft.dev\"].addresses[0]: `nowhere` is not an IP",
        ),
        (&web, "web-1", "10.9.0.3", Code::InvalidArgument, "node.id"),
        (
            &web,
            "shop/web-1",
            "10.9.0.3",
            Code::PermissionDenied,
            "sa/web",
        ),
        (
            &web,
            "blog/post-1",
            "10.9.0.3",
            Code::PermissionDenied,
            "service account post",
        ),
        (
            &web,
            "blog/web-1",
            "10.9.0.2",
            Code::PermissionDenied,
            "the workload blog/post-1",
        ),
        (
            &post,
            "blog/post-3",
            "10.9.0.9",
            Code::PermissionDenied,
            "Workload blog/captured",
        ),
        (
            &post,
            "blog/post-3",
            "10.96.0.7",
            Code::PermissionDenied,
            "Service blog/virtual",
        ),
        // A document says whose workload that is.
        (
            &web,
            "blog/post-v1",
            "10.9.0.3",
            Code::PermissionDenied,
            "sa/post",
        ),
    ] {
        let status = plane.refusal(svid, node(id, address)).await;
        assert_eq!(status.code(), code, "{id} {address}: {status}");
        assert!(status.message().contains(text), "{id} {address}: {status}");
    }
    let page = plane.page("/debug/registrations").await;
    assert_eq!(page.matches("\"workload\"").count(), 1, "{page}");
    for line in [
        "result=\"invalid\"} 2",
        "result=\"conflict\"} 5",
        "result=\"registered\"} 2",
    ] {
        let line = format!("weft_control_registrations_total{{{line}");
        plane.until_page("/metrics", &line).await;
    }
    // Nobody else is the worse for it.
    ads.subscribe(Kind::Secret, &["ROOTCA"]).await;
    ads.expect("secret: ROOTCA").await;
    plane.stop().await;
}

/// Many sidecars that register themselves at once, as after a restart of a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_register_at_once() {
    let directory = directory();
    without_documents(directory.path());
    let plane = Plane::start(directory.path()).await;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    let plane = std::sync::Arc::new(plane);
    let clients: Vec<_> = (0..200)
        .map(|n| {
            let (plane, post) = (plane.clone(), post.clone());
            tokio::spawn(async move {
                let (id, address) = (format!("blog/post-{n}"), format!("10.9.{n}.2"));
                let mut ads = plane.register(&post, &id, &address).await;
                ads.expect(CAPTURED).await;
                ads
            })
        })
        .collect();
    let mut open = Vec::new();
    for client in clients {
        open.push(client.await.unwrap());
    }
    let mut watcher = watcher(&plane, &web).await;
    assert_eq!(endpoints(&watcher.expect(ENDPOINTS).await).len(), 200);
}
