//! One process relieves another: nothing is lost, and a new one that fails harms nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::Request;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{keeping, without_token};
use crate::support::app::{self, full};
use crate::support::http1::{self, Http1};
use crate::support::http2::{self, whole};
use crate::support::mesh::{Mesh, Settings, Sidecar, Workload, service};
use crate::support::{soon, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: echo\r\n\r\n";

/// Clients of all kinds that go on until told to stop, and what went wrong.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    fn start(address: std::net::SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = vec![
            tokio::spawn(http1::kept_alive(address, GET, stop.clone())),
            tokio::spawn(http1::kept_alive(address, GET, stop.clone())),
            tokio::spawn(connecting(address, stop.clone())),
            tokio::spawn(streams(address, stop.clone())),
        ];
        Self { stop, clients }
    }

    async fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut requests = 0;
        for client in self.clients {
            let (sent, failures) = soon("the end of the load", client).await.unwrap();
            assert_eq!(failures, [""; 0], "of {sent}");
            assert!(sent > 20, "{sent}");
            requests += sent;
        }
        requests
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// A new connection for each request: none is refused.
async fn connecting(address: std::net::SocketAddr, stop: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let (mut sent, mut failures) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        sent += 1;
        match http1::try_send(address, GET).await {
            Ok(reply) if reply.status == 200 => {}
            Ok(reply) => failures.push(format!("{:?}", reply.outcome())),
            Err(error) => failures.push(format!("new connection: {error}")),
        }
        pause().await;
    }
    (sent, failures)
}

/// Streams of one HTTP/2 connection; after GOAWAY of the next.
async fn streams(address: std::net::SocketAddr, stop: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let (mut sent, mut failures) = (0, Vec::new());
    let mut client = http2::connect(address).await;
    while !stop.load(Ordering::Relaxed) {
        if client.ready().await.is_err() {
            client = http2::connect(address).await;
            continue;
        }
        sent += 1;
        let request = Request::post("http://echo/").body(full("hello")).unwrap();
        match client.try_send_request(request).await {
            Ok(reply) => {
                let reply = whole(reply).await;
                if reply.head.status() != 200 || reply.body != "hello" {
                    failures.push(format!("{:?}", reply.head));
                }
            }
            // GOAWAY came before it was sent: nobody has seen it.
            Err(error) if error.message().is_some() => sent -= 1,
            Err(error) => failures.push(format!("h2: {}", error.error())),
        }
        pause().await;
    }
    (sent, failures)
}

/// The settings of a process that takes over from this one.
fn successor(settings: &Settings, before: &Sidecar) -> Settings {
    let mut settings = without_token(settings);
    settings.insert("ADMIN".to_owned(), before.admin.to_string());
    settings.insert("PUBLIC_ADMIN".to_owned(), before.public.to_string());
    settings
}

async fn generation(sidecar: &Sidecar) -> u64 {
    let reply = http1::get(sidecar.admin, "admin", "/server_info").await;
    let info: serde_json::Value = serde_json::from_str(&reply.text()).unwrap();
    info["generation"].as_u64().unwrap()
}

async fn until_generation(sidecar: &Sidecar, wanted: u64) {
    until("another process", async || {
        match generation(sidecar).await {
            found if found == wanted => Ok(()),
            found => Err(format!("generation {found}")),
        }
    })
    .await;
}

/// An application that switches to an echo of bytes when asked, and answers requests.
async fn switching() -> app::Server {
    app::tcp(|mut stream| async move {
        while let Some(head) = app::head(&mut stream).await {
            if head.contains("upgrade: websocket") {
                let switch = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
                stream.write_all(switch).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                return;
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn upgrades_lose_nothing(workers: [usize; 2]) {
    let app = app::echo("echo").await;
    let socket = switching().await;
    let plain = app::tcp(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let server = Workload::new("echo")
        .serves(&app)
        .serves_at(8081, socket.address)
        .serves_at(8082, plain.address);
    let client = Workload::new("client").upstream("ws").upstream("tcp");
    let documents = service("echo", "app: echo", Some("http"))
        + &service("ws", "app: echo", Some("http")).replace("8080", "8081")
        + &service("tcp", "app: echo", Some("tcp")).replace("8080", "8082")
        + &server.yaml()
        + &client.yaml();
    let mesh = Mesh::strict(&documents).await;
    let directory = tempfile::tempdir().unwrap();
    let of = |name: &str, workload: &Workload, workers: usize| {
        let mut settings = keeping(&mesh, workload, &directory.path().join(name));
        settings.insert("WORKERS".to_owned(), workers.to_string());
        settings
    };
    let server_settings = of("server", &server, workers[0]);
    let client_settings = of("client", &client, workers[0]);
    let mut old_server = Sidecar::start(&server_settings).await.unwrap();
    old_server.ready().await;
    let mut old_client = Sidecar::start(&client_settings).await.unwrap();
    old_client.ready().await;

    let load = Load::start(client.outbound);
    let served = "weft_server_requests_total{code=\"200\"}";
    old_server.until_metric(served, |n| n >= 100.0).await;
    let mut websocket = Http1::connect(client.local()).await.unwrap();
    let hello = "GET / HTTP/1.1\r\nhost: ws\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    websocket.write(hello).await.unwrap();
    assert_eq!(websocket.head().await.unwrap().status, 101);
    let mut bytes = Http1::connect(client.local_of(1)).await.unwrap();
    bytes.write("one").await.unwrap();
    assert_eq!(bytes.take(3).await.unwrap(), b"one");

    // First the server's sidecar, then the client's, under load; with more or fewer workers.
    let mut next = successor(&server_settings, &old_server);
    next.insert("WORKERS".to_owned(), workers[1].to_string());
    let new_server = Sidecar::start(&next).await.unwrap();
    until_generation(&new_server, 2).await;
    let mut next = successor(&client_settings, &old_client);
    next.insert("WORKERS".to_owned(), workers[1].to_string());
    let new_client = Sidecar::start(&next).await.unwrap();
    until_generation(&new_client, 2).await;
    assert_eq!(new_server.metrics().await.sum("weft_generation"), 2.0);
    new_server.until_metric(served, |n| n >= 100.0).await;
    new_client
        .until_metric("weft_client_requests_total{code=\"200\"}", |n| n >= 100.0)
        .await;
    let requests = load.finish().await;
    assert!(requests > 200, "{requests}");
    // Nobody was told that the workload ends.
    let draining = "weft_endpoints{state=\"draining\"}";
    assert_eq!(new_client.metrics().await.sum(draining), 0.0);
    new_client
        .until_metric("weft_control_connected", |n| n == 1.0)
        .await;

    // What was open is served by the old ones until it ends, and then they do.
    for stream in [&mut websocket, &mut bytes] {
        stream.write("still here").await.unwrap();
        assert_eq!(stream.take(10).await.unwrap(), b"still here");
    }
    drop((websocket, bytes));
    old_client.ended().await;
    old_server.ended().await;
    assert_eq!(http1::send(client.outbound, GET).await.status, 200);
}

#[tokio::test]
async fn an_upgrade_loses_nothing() {
    upgrades_lose_nothing([1, 1]).await;
}

#[tokio::test]
async fn an_upgrade_may_change_the_number_of_workers() {
    upgrades_lose_nothing([1, 2]).await;
    upgrades_lose_nothing([2, 1]).await;
}

#[tokio::test]
async fn an_upgrade_that_fails_harms_nobody() {
    let app = app::echo("echo").await;
    let server = Workload::new("echo").serves(&app);
    let other = Workload::new("other");
    let documents = service("echo", "app: echo", Some("http")) + &server.yaml() + &other.yaml();
    let mesh = Mesh::strict(&documents).await;
    let directory = tempfile::tempdir().unwrap();
    let settings = keeping(&mesh, &server, directory.path());
    let sidecar = Sidecar::start(&settings).await.unwrap();
    sidecar.ready().await;
    let door = directory.path().join("handover.sock");

    // One that takes the sockets and dies, one that says that it cannot, one that is no sidecar.
    let failed = "weft_handovers_total{result=\"failed\"}";
    let request = serde_json::json!({ "version": "9", "workload": "test/echo" });
    let patience = Duration::from_secs(5);
    for (count, verdict) in [
        (1.0, None),
        (2.0, Some(serde_json::json!({ "Failed": "no disk" }))),
    ] {
        let (door, request) = (door.clone(), request.clone());
        let taken = tokio::task::spawn_blocking(move || {
            let mut channel = weft_handover::connect(&door).unwrap().unwrap();
            channel.send(&request, patience).unwrap();
            let answer: serde_json::Value = channel.receive(patience).unwrap();
            assert_eq!(answer["Take"]["generation"], 1, "{answer}");
            let sockets = channel.receive_sockets(patience).unwrap();
            if let Some(verdict) = verdict {
                channel.send(&verdict, patience).unwrap();
            }
            sockets.len()
        });
        // Inbound, outbound and two admin interfaces.
        assert_eq!(taken.await.unwrap(), 4);
        sidecar.until_metric(failed, |n| n == count).await;
        let inbound = TcpStream::connect(server.inbound()).await;
        assert!(inbound.is_ok(), "it serves on");
        assert_eq!(generation(&sidecar).await, 1);
    }
    // A process of another workload gets nothing, and is told why.
    let mut foreign = keeping(&mesh, &other, directory.path());
    foreign.insert("PUBLIC_ADMIN".to_owned(), "127.0.0.1:0".to_owned());
    let error = Sidecar::start(&foreign).await.err().unwrap();
    assert!(
        error.contains("the directory is of workload test/echo"),
        "{error}"
    );
    // One whose settings do not fit fails before it gives a verdict.
    let mut wrong = successor(&settings, &sidecar);
    let busy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    wrong.insert("ADMIN".to_owned(), busy.local_addr().unwrap().to_string());
    let error = Sidecar::start(&wrong).await.err().unwrap();
    assert!(error.contains("WEFT_PROXY_ADMIN"), "{error}");
    sidecar.until_metric(failed, |n| n == 3.0).await;
    // And one that is right takes over after all of that.
    let next = Sidecar::start(&successor(&settings, &sidecar))
        .await
        .unwrap();
    until_generation(&next, 2).await;
    let inbound = TcpStream::connect(server.inbound()).await;
    assert!(inbound.is_ok());
}
