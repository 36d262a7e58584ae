//! Shutdown under load: peers are told to go elsewhere, what has begun is finished, and no
//! request fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::{Request, Response};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::app::{self, Server, full};
use crate::support::http1::{self, Http1};
use crate::support::http2::{self, whole};
use crate::support::mesh::{Mesh, Sidecar, Workload, pair, service};
use crate::support::soon;

const GET: &str = "GET / HTTP/1.1\r\nhost: echo\r\n\r\n";
const GRACE: Duration = Duration::from_secs(20);

/// Requests that go on until told to stop; the result is how many there were, and the
/// failures.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(tokio::spawn(http1::kept_alive(address, GET, stop.clone())));
        }
        for _ in 0..2 {
            clients.push(tokio::spawn(http2_load(address, stop.clone())));
        }
        Self { stop, clients }
    }

    async fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut requests, mut failures) = (0, Vec::new());
        for client in self.clients {
            let (sent, failed) = soon("the end of the load", client).await.unwrap();
            requests += sent;
            failures.extend(failed);
        }
        (requests, failures)
    }
}

async fn http2_load(address: SocketAddr, stop: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let (mut sent, mut failures) = (0, Vec::new());
    let mut client = http2::connect(address).await;
    while !stop.load(Ordering::Relaxed) {
        sent += 1;
        let request = Request::post("http://echo/").body(full("hello")).unwrap();
        match client.send_request(request).await {
            Ok(reply) => {
                let reply = whole(reply).await;
                if reply.head.status() != 200 || reply.body != "hello" {
                    failures.push(format!("{:?} {}", reply.head, reply.body.len()));
                }
            }
            Err(error) => failures.push(format!("h2: {error}")),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (sent, failures)
}

async fn no_request_fails(protocol: &str, workers: usize) {
    let apps: [Server; 2] = [app::echo("one").await, app::echo("two").await];
    let workloads = [
        Workload::replica("echo", "one")
            .serves(&apps[0])
            .workers(workers),
        Workload::replica("echo", "two").serves(&apps[1]),
    ];
    let client = Workload::new("client").workers(workers);
    let documents = service("echo", "app: echo", Some(protocol))
        + &workloads[0].yaml()
        + &workloads[1].yaml()
        + &client.yaml();
    let mesh = Mesh::strict(&documents).await;
    let mut leaving = mesh.sidecar(&workloads[0]).await;
    let staying = mesh.sidecar(&workloads[1]).await;
    let sidecar = mesh.sidecar(&client).await;
    let load = Load::start(client.outbound);
    for server in [&leaving, &staying] {
        let served = "weft_server_requests_total{code=\"200\"}";
        server.until_metric(served, |n| n >= 50.0).await;
    }
    let started = Instant::now();
    leaving.shut_down();
    leaving.ended().await;
    let took = started.elapsed();
    assert!(took < GRACE / 2, "{took:?}");
    let draining = "weft_endpoints{service=\"echo\",state=\"draining\"}";
    sidecar.until_metric(draining, |n| n == 1.0).await;
    let served = "weft_server_requests_total{code=\"200\"}";
    let so_far = staying.metrics().await.sum(served);
    staying.until_metric(served, |n| n >= so_far + 50.0).await;
    let (requests, failures) = load.finish().await;
    assert!(requests > 140, "{requests}");
    assert_eq!(failures, [""; 0], "of {requests}");
    let failed = "weft_client_requests_total{outcome=\"failure\"}";
    assert_eq!(sidecar.metrics().await.sum(failed), 0.0);

    // It comes back and gets requests again.
    let back = mesh.sidecar(&workloads[0]).await;
    let ready = "weft_endpoints{service=\"echo\",state=\"ready\"}";
    sidecar.until_metric(ready, |n| n == 2.0).await;
    let load = Load::start(client.outbound);
    back.until_metric(served, |n| n >= 20.0).await;
    let (_, failures) = load.finish().await;
    assert_eq!(failures, [""; 0]);
}

#[tokio::test]
async fn no_request_fails_over_http1() {
    no_request_fails("http", 1).await;
}

#[tokio::test]
async fn no_request_fails_over_http2() {
    no_request_fails("http2", 1).await;
}

#[tokio::test]
async fn no_request_fails_with_several_workers() {
    no_request_fails("http", 2).await;
    no_request_fails("http2", 2).await;
}

#[tokio::test]
async fn what_has_begun_is_finished() {
    let (go, gate) = mpsc::unbounded_channel::<()>();
    let gate = Arc::new(tokio::sync::Mutex::new(gate));
    let app = app::http(move |request| {
        let gate = gate.clone();
        async move {
            if request.uri().path() == "/slow" {
                gate.lock().await.recv().await;
            }
            Response::new(full("done"))
        }
    })
    .await;
    let mut pair = pair(Some("http"), &app).await;
    let mut slow = Http1::connect(pair.outbound).await.unwrap();
    slow.write("GET /slow HTTP/1.1\r\nhost: echo\r\n\r\n")
        .await
        .unwrap();
    let waiting = "weft_server_requests_in_flight";
    pair.server.until_metric(waiting, |n| n == 1.0).await;
    let idle = Http1::connect(pair.outbound).await.unwrap();

    // First the server's sidecar, then the client's: both wait for the request.
    let started = Instant::now();
    pair.server.shut_down();
    let told = not_ready(&pair.server).await;
    assert!(told.contains("shutting down"), "{told}");
    pair.client.shut_down();
    not_ready(&pair.client).await;
    let mut other = Http1::connect(pair.outbound).await.unwrap();
    let reply = other.exchange(GET).await.unwrap();
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, Some("close"))
    );
    assert!(other.is_closed().await);
    go.send(()).unwrap();
    let reply = slow.reply().await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
    assert_eq!(reply.header("connection"), Some("close"));
    // The connection that nobody uses is closed, too.
    let mut idle = idle;
    assert!(idle.is_closed().await);
    pair.server.ended().await;
    pair.client.ended().await;
    assert!(started.elapsed() < GRACE / 2, "{:?}", started.elapsed());
}

async fn not_ready(sidecar: &Sidecar) -> String {
    sidecar.not_ready("shutting down").await
}

#[tokio::test]
async fn the_admin_interface_can_end_it() {
    let app = app::echo("echo").await;
    let mut pair = pair(Some("http"), &app).await;
    let mut admin = Http1::connect(pair.server.admin).await.unwrap();
    let request = "POST /shutdown HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n";
    // Only the full interface may.
    let mut public = Http1::connect(pair.server.public).await.unwrap();
    assert_eq!(public.exchange(request).await.unwrap().status, 404);
    assert_eq!(admin.exchange(request).await.unwrap().status, 200);
    pair.server.ended().await;
}

#[tokio::test]
async fn switched_connections_and_tunnels_have_the_grace_period() {
    let app = app::tcp(|mut stream| async move {
        if app::head(&mut stream).await.is_some() {
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
            stream.write_all(switch).await.unwrap();
        }
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let mut http = pair(Some("http"), &app).await;
    let plain = app::tcp(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let mut tcp = pair(Some("tcp"), &plain).await;
    let open = [
        (
            &http,
            "GET / HTTP/1.1\r\nhost: echo\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            101,
        ),
        (
            &tcp,
            "CONNECT echo:80 HTTP/1.1\r\nhost: echo:80\r\n\r\n",
            200,
        ),
    ];
    let mut streams = Vec::new();
    for (pair, request, status) in open {
        let mut client = Http1::connect(pair.outbound).await.unwrap();
        client.write(request).await.unwrap();
        assert_eq!(client.head().await.unwrap().status, status);
        streams.push(client);
    }
    for sidecar in [
        &mut http.client,
        &mut http.server,
        &mut tcp.client,
        &mut tcp.server,
    ] {
        sidecar.shut_down();
    }
    let ended = async {
        tokio::select! {
            () = http.client.ended() => "the client's sidecar of the WebSocket",
            () = http.server.ended() => "the server's sidecar of the WebSocket",
            () = tcp.client.ended() => "the client's sidecar of the tunnel",
            () = tcp.server.ended() => "the server's sidecar of the tunnel",
        }
    };
    // Idle connections are closed after 3 s; these are not idle, whatever they do.
    let early = tokio::time::timeout(Duration::from_secs(4), ended).await;
    assert_eq!(early.ok(), None, "has ended too early");
    for client in &mut streams {
        client.write("still here").await.unwrap();
        assert_eq!(client.take(10).await.unwrap(), b"still here");
    }
    drop(streams);
    for sidecar in [
        &mut http.client,
        &mut http.server,
        &mut tcp.client,
        &mut tcp.server,
    ] {
        sidecar.ended().await;
    }
}
