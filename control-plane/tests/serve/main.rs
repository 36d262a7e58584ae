//! The control plane as its clients see it: a real server, real TLS, real files.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Buf as _, BufMut as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use weft_api::Kind;
use weft_api::envoy::config::core::v3::HealthStatus;
use weft_api::envoy::service::discovery::v3::DiscoveryRequest;
use weft_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_certs::{KeyPair, SpiffeId, SvidVerifier, SystemClock, WorkloadCert};
use weft_control::app::{App, Options};

mod captured;
mod drain;
mod registration;
mod support;
mod upgrade;

use support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_joins_subscribes_and_sees_an_edit_at_once() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let svid = plane.svid("web").await;
    assert_eq!(svid.id.as_str(), "spiffe://demo.mesh/ns/blog/sa/web");
    let mut ads = plane.ads(&svid, "blog/web").await;
    ads.expect("listener: outbound").await;
    ads.subscribe(Kind::Route, &["outbound"]).await;
    ads.expect("route: outbound").await;
    ads.subscribe(Kind::Secret, &["ROOTCA"]).await;
    ads.expect("secret: ROOTCA").await;
    ads.subscribe(Kind::VirtualHost, &["outbound/post", "outbound/nobody"])
        .await;
    ads.expect("virtual_host: outbound/post -outbound/nobody")
        .await;
    ads.subscribe(Kind::Cluster, &["post.blog:80"]).await;
    ads.expect("cluster: post.blog:80").await;
    ads.subscribe(Kind::Endpoint, &["post.blog:80"]).await;
    let response = ads.expect("endpoint: post.blog:80").await;
    assert_eq!(health(&response), [HealthStatus::Healthy]);
    plane
        .until_page("/debug/clients", "\"state\": \"synced\"")
        .await;

    let edited = Instant::now();
    std::fs::write(directory.path().join("config/v2.yaml"), POST_V2).unwrap();
    let response = ads.expect("endpoint: post.blog:80").await;
    let taken = edited.elapsed();
    assert_eq!(health(&response).len(), 2);
    assert!(taken < Duration::from_millis(200), "{taken:?}");

    let nobody = MESH.replace("name: post,", "name: nobody,");
    let nobody = nobody.split("---").nth(1).unwrap();
    std::fs::write(directory.path().join("config/nobody.yaml"), nobody).unwrap();
    ads.expect("virtual_host: outbound/nobody").await;

    // What is wrong is said, and changes nothing for the sidecar.
    std::fs::write(directory.path().join("config/v2.yaml"), "kind: [").unwrap();
    plane.until_page("/debug/config", "v2.yaml").await;
    plane
        .until_page("/metrics", "weft_control_diagnostics{level=\"error\"} 1")
        .await;
    let other = MESH.replace("demo.mesh", "other.mesh");
    std::fs::write(directory.path().join("config/mesh.yaml"), other).unwrap();
    plane
        .until_page(
            "/debug/config",
            "the certificate authority is of `demo.mesh`",
        )
        .await;
    let silence = tokio::time::timeout(Duration::from_millis(200), ads.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    let metrics = plane.page("/metrics").await;
    assert!(
        metrics.contains("weft_control_proxies{state=\"synced\",version=\"unknown\"} 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("weft_control_csr_total{result=\"joined\"} 1"),
        "{metrics}"
    );
    assert!(
        !metrics.contains("weft_control_propagation_seconds_count 0"),
        "{metrics}"
    );
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_nothing() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let (address, fingerprint) = (plane.address, plane.fingerprint);
    let (token, unused) = (plane.token("web"), plane.token("post"));
    let key = KeyPair::generate().unwrap();
    let csr = key.csr_pem(None).unwrap();
    let chain = plane.join(&token, &csr, 0).await.unwrap();
    let svid = WorkloadCert::from_chain(&chain, &key).unwrap();
    let mut ads = plane.ads(&svid, "blog/web").await;
    let response = ads.expect("listener: outbound").await;
    let version = response.resources[0].version.clone();
    plane.stop().await;
    let status = ads.next().await.unwrap_err();
    assert!(
        matches!(status.code(), Code::Unavailable | Code::Unknown),
        "{status}"
    );

    let plane = Plane::start_with(directory.path(), |options| options.listen = address).await;
    assert_eq!(plane.fingerprint, fingerprint);
    let mut ads = plane.ads(&svid, "blog/web").await;
    let again = ads.expect("listener: outbound").await;
    assert_eq!(again.resources[0].version, version);
    plane
        .join(&token, &csr, 0)
        .await
        .expect("the same key may ask again");
    let other = KeyPair::generate().unwrap().csr_pem(None).unwrap();
    let status = plane.join(&token, &other, 0).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    plane.join(&unused, &other, 0).await.unwrap();
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_a_bad_configuration_keeps_what_worked() {
    let directory = directory();
    let config = directory.path().join("config");
    let plane = Plane::start(directory.path()).await;
    let svid = plane.svid("web").await;
    let versions = async |plane: &Plane| {
        let mut ads = plane.ads(&svid, "blog/web").await;
        let listener = ads.expect("listener: outbound").await;
        ads.subscribe(Kind::Endpoint, &["post.blog:80"]).await;
        let endpoint = ads.expect("endpoint: post.blog:80").await;
        [listener, endpoint].map(|response| response.resources[0].version.clone())
    };
    let before = versions(&plane).await;
    let stored = directory.path().join("data/last-good");
    soon(async {
        while !stored.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    plane.stop().await;

    // Every document is bad, the trust domain's too; then the directory is gone.
    let bad = MESH.replace("spec:", "spec: &x");
    std::fs::write(
        config.join("mesh.yaml"),
        bad.replace("metadata:", "metadat:"),
    )
    .unwrap();
    for gone in [false, true] {
        if gone {
            std::fs::remove_dir_all(&config).unwrap();
        }
        let options = Options {
            data: Some(directory.path().join("data")),
            listen: any_port(),
            admin: any_port(),
            ..Options::new(&config)
        };
        let bound = App::bind(options).await.unwrap();
        let found = bound.diagnostics();
        assert!(!found.is_empty());
        assert!(found.iter().all(|d| d.in_force.is_some()), "{found:?}");
        let plane = Plane::run(bound);
        assert_eq!(versions(&plane).await, before);
        plane.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_for_the_callers_identity_only() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let key = KeyPair::generate().unwrap();
    let csr = key.csr_pem(None).unwrap();
    let web: SpiffeId = "spiffe://demo.mesh/ns/blog/sa/web".parse().unwrap();
    let post: SpiffeId = "spiffe://demo.mesh/ns/blog/sa/post".parse().unwrap();
    let for_post = key.csr_pem(Some(&post)).unwrap();
    let token = plane.token("web");
    let anonymous = plane.channel(None).await;
    let mut unsigned = csr.clone();
    let middle = csr.len() / 2;
    let other = if unsigned.as_bytes()[middle] == b'A' {
        "B"
    } else {
        "A"
    };
    unsigned.replace_range(middle..=middle, other);

    // token, signing request, lifetime; code, part of the text
    let cases = [
        (
            None,
            csr.as_str(),
            0,
            Code::Unauthenticated,
            "send a join token",
        ),
        (Some("x"), &csr, 0, Code::Unauthenticated, "malformed"),
        (
            Some(token.as_str()),
            "",
            0,
            Code::InvalidArgument,
            "csr of spiffe://demo.mesh/ns/blog/sa/web",
        ),
        (Some(&token), &unsigned, 0, Code::InvalidArgument, "csr of"),
        (Some(&token), &csr, -1, Code::InvalidArgument, "negative"),
        (
            Some(&token),
            &for_post,
            0,
            Code::PermissionDenied,
            "for spiffe://demo.mesh/ns/blog/sa/post, but the caller proved to be spiffe://demo.mesh/ns/blog/sa/web",
        ),
    ];
    for (token, csr, ttl, code, text) in cases {
        let status = sign(anonymous.clone(), token, csr, ttl).await.unwrap_err();
        assert_eq!(status.code(), code, "{text}: {status}");
        assert!(status.message().contains(text), "{text}: {status}");
    }

    // None of them used the token up. The lifetime is clamped.
    let wanted = key.csr_pem(Some(&web)).unwrap();
    let chain = sign(anonymous.clone(), Some(&token), &wanted, i64::MAX)
        .await
        .unwrap();
    assert_eq!(chain.len(), 3);
    let svid = WorkloadCert::from_chain(&chain, &key).unwrap();
    let lifetime = svid.not_after.duration_since(SystemTime::now()).unwrap();
    assert!(
        lifetime <= Duration::from_secs(7 * 24 * 3600),
        "{lifetime:?}"
    );

    // Renewal: by the certificate, for the same identity and a new key.
    let renewing = plane.channel(Some(&svid)).await;
    let next = KeyPair::generate().unwrap();
    let chain = sign(renewing.clone(), None, &next.csr_pem(None).unwrap(), 0)
        .await
        .unwrap();
    let renewed = WorkloadCert::from_chain(&chain, &next).unwrap();
    assert_eq!(renewed.id, web);
    let status = sign(renewing.clone(), None, &for_post, 0)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    // A bad token is not made good by a certificate.
    let status = sign(renewing, Some("x"), &csr, 0).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let metrics = plane.page("/metrics").await;
    for line in [
        "{result=\"denied\"} 2",
        "{result=\"invalid\"} 3",
        "{result=\"unauthenticated\"} 3",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_that_share_a_token_one_joins() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let token = plane.token("web");
    let channel = plane.channel(None).await;
    let attempts = (0..100).map(|_| {
        let (channel, token) = (channel.clone(), token.clone());
        let csr = KeyPair::generate().unwrap().csr_pem(None).unwrap();
        tokio::spawn(async move { sign(channel, Some(&token), &csr, 0).await.is_ok() })
    });
    let attempts: Vec<_> = attempts.collect();
    let mut joined = 0;
    for attempt in attempts {
        joined += usize::from(attempt.await.unwrap());
    }
    assert_eq!(joined, 1);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_that_workload_is_refused() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let post = plane.svid("post").await;
    let nodes = [
        (
            "blog/web",
            Code::PermissionDenied,
            "workload blog/web must be spiffe://demo.mesh/ns/blog/sa/web, but the certificate of this connection is of spiffe://demo.mesh/ns/blog/sa/post",
        ),
        (
            "shop/cart",
            Code::PermissionDenied,
            "spiffe://demo.mesh/ns/shop/sa/<any>",
        ),
        ("post-v1", Code::InvalidArgument, "<namespace>/<workload>"),
        ("", Code::InvalidArgument, "<namespace>/<workload>"),
        (
            "blog/../shop",
            Code::InvalidArgument,
            "<namespace>/<workload>",
        ),
    ];
    for (node, code, text) in nodes {
        let channel = plane.channel(Some(&post)).await;
        let status = match Ads::open(channel, node).await {
            Ok(mut ads) => ads.next().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!(status.code(), code, "{node}: {status}");
        assert!(status.message().contains(text), "{node}: {status}");
    }
    // One without a document is served: no listeners yet, but lookups.
    let mut ads = plane.ads(&post, "blog/new").await;
    ads.expect("listener:").await;
    ads.subscribe(Kind::VirtualHost, &["outbound/post"]).await;
    ads.expect("virtual_host: outbound/post").await;
    // Its document appears and is of another identity: it is not served any more.
    let document = POST_V2
        .replace("post-v2", "new")
        .replace("serviceAccount: post", "serviceAccount: new");
    std::fs::write(directory.path().join("config/new.yaml"), document).unwrap();
    let status = ads.next().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");

    let anonymous = plane.channel(None).await;
    let status = Ads::open(anonymous.clone(), "blog/web")
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("CreateCertificate"), "{status}");
    let requests = tokio_stream::iter([DiscoveryRequest::default()]);
    let mut client = AggregatedDiscoveryServiceClient::new(anonymous);
    let status = soon(client.stream_aggregated_resources(requests))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_shuts_down_drains_and_one_that_breaks_does_not() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    let mut watcher = plane.ads(&web, "blog/web").await;
    watcher.expect("listener: outbound").await;
    watcher.subscribe(Kind::Endpoint, &["post.blog:80"]).await;
    let response = watcher.expect("endpoint: post.blog:80").await;
    assert_eq!(health(&response), [HealthStatus::Healthy]);

    let mut ads = plane.ads(&post, "blog/post-v1").await;
    ads.expect("listener: inbound|8080 outbound").await;
    let Ads {
        requests,
        mut responses,
    } = ads;
    drop(requests);
    let response = watcher.expect("endpoint: post.blog:80").await;
    assert_eq!(health(&response), [HealthStatus::Draining]);
    assert_eq!(
        soon(responses.message()).await.unwrap(),
        None,
        "the stream ends without error"
    );
    drop(responses);

    // A connection that breaks is no shutdown: here the network between the two does.
    let (relay_address, relay) = plane.relay().await;
    let channel = plane.channel_to(relay_address, Some(&post)).await;
    let mut ads = Ads::open(channel, "blog/post-v1").await.unwrap();
    ads.told().await;
    plane.until_page("/debug/clients", "blog/post-v1").await;
    let response = watcher.expect("endpoint: post.blog:80").await;
    assert_eq!(health(&response), [HealthStatus::Healthy]);
    relay.abort();
    ads.next().await.unwrap_err();
    plane
        .until_page("/metrics", "weft_control_connections 1")
        .await;
    assert!(
        plane
            .page("/debug/config")
            .await
            .contains("\"draining\": []")
    );

    // What drains is still known after a restart.
    let mut ads = plane.ads(&post, "blog/post-v1").await;
    ads.told().await;
    drop(ads.requests);
    let response = watcher.expect("endpoint: post.blog:80").await;
    assert_eq!(health(&response), [HealthStatus::Draining]);
    plane.stop().await;
    let plane = Plane::start(directory.path()).await;
    assert!(
        plane
            .page("/debug/config")
            .await
            .contains("\"blog/post-v1\"")
    );
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_cut_and_holds_up_nobody() {
    let directory = directory();
    let mut services = String::new();
    for n in 0..500 {
        services += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: blog}}\nspec: {{selector: {{app: post}}, ports: [{{port: 80, targetPort: 8080}}]}}\n"
        );
    }
    std::fs::write(directory.path().join("config/many.yaml"), services).unwrap();
    let stall = Duration::from_millis(500);
    let plane = Plane::start_with(directory.path(), |options| options.stall_deadline = stall).await;
    let web = plane.svid("web").await;
    let mut stuck = plane.ads(&web, "blog/web").await;
    let names: Vec<String> = (0..500).map(|n| format!("s{n}.blog:80")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // More than its window of 64 KiB, in more responses than the server keeps ready.
    for kind in [
        Kind::Cluster,
        Kind::Endpoint,
        Kind::Route,
        Kind::VirtualHost,
        Kind::Secret,
    ] {
        stuck.subscribe(kind, &names).await;
    }
    let mut reader = plane.ads(&web, "blog/web").await;
    reader.expect("listener: outbound").await;
    reader.subscribe(Kind::Endpoint, &["post.blog:80"]).await;
    reader.expect("endpoint: post.blog:80").await;
    let edited = Instant::now();
    std::fs::write(directory.path().join("config/v2.yaml"), POST_V2).unwrap();
    reader.expect("endpoint: post.blog:80").await;
    let taken = edited.elapsed();
    assert!(taken < stall, "held up for {taken:?}");
    plane
        .until_page("/metrics", "weft_control_stalled_total 1")
        .await;
    plane
        .until_page("/metrics", "weft_control_connections 1")
        .await;
    let cut = async { while stuck.responses.message().await.is_ok_and(|m| m.is_some()) {} };
    soon(cut).await;
    plane.stop().await;
}

/// Sends bytes as they are in place of a message.
#[derive(Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_only_its_own_connection() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let svid = plane.svid("web").await;
    let mut ads = plane.ads(&svid, "blog/web").await;
    ads.expect("listener: outbound").await;

    // Not TLS.
    let mut plain = TcpStream::connect(plane.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    soon(plain.read_to_end(&mut rest)).await.unwrap();
    // TLS, but not HTTP/2; and HTTP/2 frames that are none.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    for start in [&b""[..], preface] {
        let verifier = Arc::new(SvidVerifier::new(
            plane.bundle.clone(),
            Arc::new(SystemClock),
        ));
        let mut tls = tls_stream(plane.address, verifier, Some(&svid))
            .await
            .unwrap();
        tls.write_all(start).await.unwrap();
        tls.write_all(&[0xff; 4096]).await.unwrap();
        let mut rest = Vec::new();
        // Closed, with or without TLS's own farewell.
        let _ = soon(tls.read_to_end(&mut rest)).await;
    }
    // A message that is no protobuf, first and later.
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let channel = plane.channel(Some(&svid)).await;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let messages = tokio_stream::iter([vec![0xff; 64]]);
    let answer = client
        .streaming(Request::new(messages), path.parse().unwrap(), RawCodec)
        .await;
    let status = match answer {
        Ok(mut answer) => soon(answer.get_mut().message()).await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::Internal, "{status}");

    plane
        .until_page("/metrics", "weft_control_handshakes_failed_total 1")
        .await;
    ads.subscribe(Kind::VirtualHost, &["outbound/post"]).await;
    ads.expect("virtual_host: outbound/post").await;
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named_with_the_option_that_chooses_it() {
    let directory = directory();
    let taken = TcpListener::bind(any_port()).await.unwrap();
    let address = taken.local_addr().unwrap();
    let options = Options {
        listen: address,
        admin: any_port(),
        ..Options::new(directory.path().join("config"))
    };
    let admin = Options {
        listen: any_port(),
        admin: address,
        ..options.clone()
    };
    for (options, flag) in [(options, "--listen"), (admin, "--admin")] {
        let error = App::bind(options).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains(flag), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_configuration_directory_is_not_an_empty_mesh() {
    let options = Options {
        listen: any_port(),
        admin: any_port(),
        ..Options::new("/nonexistent/config")
    };
    let error = App::bind(options).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/config"), "{error}");
    assert!(error.contains("--config"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_it_ends_everything() {
    let directory = directory();
    let plane = Plane::start_with(directory.path(), |options| options.data = None).await;
    let svid = plane.svid("web").await;
    let mut ads = plane.ads(&svid, "blog/web").await;
    ads.expect("listener: outbound").await;
    plane.task.abort();
    ads.next().await.unwrap_err();
    let refused = async { while TcpStream::connect(plane.address).await.is_ok() {} };
    soon(refused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_few_streams_and_small_requests() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let svid = plane.svid("web").await;
    let channel = plane.channel(Some(&svid)).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut ads = Ads::open(channel.clone(), "blog/web").await.unwrap();
        ads.expect("listener: outbound").await;
        streams.push(ads);
    }
    let status = Ads::open(channel.clone(), "blog/web").await.err().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    // One that ends makes room, one that asks for too much is ended.
    let mut last = streams.pop().unwrap();
    last.subscribe(Kind::Route, &["x".repeat(5 << 20).as_str()])
        .await;
    last.next().await.unwrap_err();
    drop(last);
    let room = async {
        loop {
            if let Ok(ads) = Ads::open(channel.clone(), "blog/web").await {
                break ads;
            }
        }
    };
    soon(room).await.expect("listener: outbound").await;
    streams[0].subscribe(Kind::Secret, &["ROOTCA"]).await;
    streams[0].expect("secret: ROOTCA").await;
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_others_is_absent() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let web = plane.svid("web").await;
    let post = plane.svid("post").await;
    // The owner first, so that the bytes are in the memory of the snapshot.
    let mut owner = plane.ads(&post, "blog/post-v1").await;
    owner.expect("listener: inbound|8080 outbound").await;
    owner.subscribe(Kind::Cluster, &["inbound|8080"]).await;
    owner.expect("cluster: inbound|8080").await;
    let mut ads = plane.ads(&web, "blog/web").await;
    ads.expect("listener: outbound").await;
    for (kind, name) in [
        (Kind::Listener, "inbound|8080"),
        (Kind::Cluster, "inbound|8080"),
        (Kind::Secret, "default"),
        (Kind::Secret, "blog/post-v1"),
        (Kind::Endpoint, "inbound|8080"),
        (Kind::Cluster, "../blog/post-v1"),
    ] {
        ads.subscribe(kind, &[name]).await;
        ads.expect(&format!("{kind}: -{name}")).await;
    }
    plane.stop().await;
}

/// A sidecar that connects and shuts down without pause: each time, endpoints change.
async fn churn(channel: Channel) {
    loop {
        let mut ads = Ads::open(channel.clone(), "blog/post-v1").await.unwrap();
        ads.told().await;
        drop(ads.requests);
        while ads.responses.message().await.is_ok_and(|m| m.is_some()) {}
    }
}

/// 300 sidecars come back at once while 100 connections say nothing, one client connects
/// and shuts down as fast as it can, and the configuration changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_that_reconnect_at_once_are_served() {
    let directory = directory();
    let plane = Plane::start(directory.path()).await;
    let (web, post) = (plane.svid("web").await, plane.svid("post").await);
    let plane = Arc::new(plane);
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(plane.address).await.unwrap());
    }
    let churn = tokio::spawn(churn(plane.channel(Some(&post)).await));
    let begun = Instant::now();
    let clients: Vec<_> = (0..300)
        .map(|n| {
            let (plane, svid) = (plane.clone(), web.clone());
            tokio::spawn(async move {
                let mut ads = plane.ads(&svid, &format!("blog/new-{n}")).await;
                ads.expect("listener:").await;
                ads.subscribe(Kind::VirtualHost, &["outbound/post"]).await;
                ads.expect("virtual_host: outbound/post").await;
                ads
            })
        })
        .collect();
    let mut connected = Vec::new();
    for client in clients {
        connected.push(client.await.unwrap());
    }
    let taken = begun.elapsed();
    assert!(taken < PATIENCE, "connecting took {taken:?}");
    println!("300 connected in {taken:?}");

    let edited = Instant::now();
    let service = MESH.split("---").nth(1).unwrap();
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: blog}\nspec: {parentRefs: [{group: '', kind: Service, name: post, port: 80}], rules: [{name: new, backendRefs: [{name: post, port: 80}]}]}\n";
    assert!(service.contains("name: post"));
    std::fs::write(directory.path().join("config/route.yaml"), route).unwrap();
    for ads in &mut connected {
        ads.expect("virtual_host: outbound/post").await;
    }
    let taken = edited.elapsed();
    println!("300 updated in {taken:?}");
    assert!(taken < Duration::from_secs(5), "telling took {taken:?}");
    churn.abort();
    drop((connected, silent));
    plane
        .until_page("/metrics", "weft_control_connections 0")
        .await;
    assert!(
        plane
            .page("/debug/clients")
            .await
            .contains("\"clients\": []")
    );
}
