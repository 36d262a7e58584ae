//! Connections that change their protocol: WebSocket, and CONNECT of applications that use
//! the sidecar as an HTTP proxy.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::app::{self, Server};
use crate::support::http1::{Http1, get, send};
use crate::support::mesh::{Mesh, Workload, pair, service};
use crate::support::soon;

/// Switches to WebSocket and sends every byte back; `/no` is refused.
async fn websocket() -> Server {
    app::tcp(|mut stream| async move {
        while let Some(head) = app::head(&mut stream).await {
            let lower = head.to_lowercase();
            let asked = lower.contains("\r\nupgrade: websocket\r\n")
                && lower.contains("\r\nconnection: upgrade\r\n");
            if !asked || head.starts_with("GET /no ") {
                let refusal = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno";
                stream.write_all(refusal).await.unwrap();
                continue;
            }
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                           Connection: Upgrade\r\nSec-WebSocket-Accept: abc\r\n\r\nhello";
            stream.write_all(switch).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            return;
        }
    })
    .await
}

fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: echo\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

#[tokio::test]
async fn websockets_carry_bytes_both_ways() {
    let app = websocket().await;
    for protocol in [Some("http"), None] {
        let pair = pair(protocol, &app).await;
        for address in [pair.outbound, pair.local] {
            let mut client = Http1::connect(address).await.unwrap();
            client.write(handshake("/chat")).await.unwrap();
            let head = client.head().await.unwrap();
            assert_eq!(head.status, 101);
            assert_eq!(head.header("upgrade"), Some("websocket"));
            assert_eq!(head.header("sec-websocket-accept"), Some("abc"));
            assert_eq!(client.take(5).await.unwrap(), b"hello");
            for frame in ["\u{1}one", "two\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"] {
                client.write(frame).await.unwrap();
                assert_eq!(client.take(frame.len()).await.unwrap(), frame.as_bytes());
            }
            let large = vec![7_u8; 300_000];
            let (mut read, mut write) = client.stream.split();
            let mut back = vec![0; large.len()];
            let (written, echoed) = soon(
                "a large frame",
                futures_util::future::join(write.write_all(&large), read.read_exact(&mut back)),
            )
            .await;
            written.unwrap();
            echoed.unwrap();
            assert!(back == large);
            client.stream.shutdown().await.unwrap();
            assert!(client.is_closed().await, "the end goes through too");
        }
        let switched = "weft_client_requests_total{code=\"101\",outcome=\"success\"}";
        pair.client.until_metric(switched, |n| n == 2.0).await;
        let switched = "weft_server_requests_total{code=\"101\",outcome=\"success\"}";
        pair.server.until_metric(switched, |n| n == 2.0).await;
    }
}

#[tokio::test]
async fn a_refused_handshake_is_an_ordinary_answer() {
    let app = websocket().await;
    let pair = pair(Some("http"), &app).await;
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    for _ in 0..2 {
        let reply = client.exchange(handshake("/no")).await.unwrap();
        assert_eq!((reply.outcome(), reply.text().as_str()), ((403, ""), "no"));
    }
    // Other protocols are not passed on: the server sees an ordinary request.
    let reply = send(
        pair.outbound,
        "GET / HTTP/1.1\r\nhost: echo\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n",
    )
    .await;
    assert_eq!(reply.status, 403);
}

#[tokio::test]
async fn a_server_may_not_switch_unasked() {
    let app = app::raw(|_| {
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: foo\r\nconnection: upgrade\r\n\r\n".to_owned()
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let reply = get(pair.outbound, "echo", "/").await;
    assert_eq!(reply.outcome(), (502, "peer_protocol_error"));
}

#[tokio::test]
async fn connect_to_an_http_service_is_still_measured_as_http() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    client
        .write("CONNECT echo:80 HTTP/1.1\r\nhost: echo:80\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    for path in ["/one", "/two"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: anything\r\n\r\n");
        let reply = client.exchange(request).await.unwrap();
        assert_eq!(reply.header("x-path"), Some(path));
        assert_eq!(reply.header("seen-host"), Some("anything"));
    }
    drop(client);
    let inside = "weft_client_requests_total{service=\"echo\",method=\"GET\",code=\"200\"}";
    pair.client.until_metric(inside, |n| n == 2.0).await;
}

#[tokio::test]
async fn connect_to_a_tcp_service_is_a_tunnel() {
    let app = app::tcp(|mut stream| async move {
        stream.write_all(b"220 hello\r\n").await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let pair = pair(Some("tcp"), &app).await;
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    client
        .write("CONNECT echo:80 HTTP/1.1\r\nhost: echo:80\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    assert_eq!(client.take(11).await.unwrap(), b"220 hello\r\n");
    client.write("bytes").await.unwrap();
    assert_eq!(client.take(5).await.unwrap(), b"bytes");
    client.stream.shutdown().await.unwrap();
    assert!(client.is_closed().await);
    let closed = "weft_tcp_connections_closed_total{target=\"echo.test\",reason=\"\"}";
    pair.client.until_metric(closed, |n| n == 1.0).await;

    let reply = get(pair.outbound, "echo", "/").await;
    assert_eq!(reply.outcome(), (404, "no_route"), "it is no HTTP service");
}

#[tokio::test]
async fn connect_goes_to_services_only() {
    let app = app::echo("echo").await;
    let server = Workload::new("echo").serves(&app);
    let client = Workload::new("client");
    let documents = service("echo", "app: echo", Some("tcp"))
        + &service("empty", "app: nobody", Some("tcp"))
        + &server.yaml()
        + &client.yaml();
    let mesh = Mesh::strict(&documents).await;
    let _client = mesh.sidecar(&client).await;
    for (authority, outcome) in [
        ("example.org:443", (404, "no_route")),
        ("127.0.0.1:22", (404, "no_route")),
        ("echo:81", (404, "no_route")),
        ("empty:80", (503, "no_endpoints")),
        ("echo:80", (502, "connect_refused")),
    ] {
        let request = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
        let reply = send(client.outbound, &request).await;
        assert_eq!(reply.outcome(), outcome, "{authority}");
    }
    let stream = TcpStream::connect(client.outbound).await;
    assert!(stream.is_ok(), "the sidecar goes on");
}

#[tokio::test]
async fn a_draining_sidecar_still_switches() {
    let app = websocket().await;
    let pair = pair(Some("http"), &app).await;
    // A sidecar that has left the control plane looks nothing up any more.
    let mut before = Http1::connect(pair.outbound).await.unwrap();
    before.write(handshake("/chat")).await.unwrap();
    assert_eq!(before.head().await.unwrap().status, 101);
    for sidecar in [&pair.client, &pair.server] {
        let mut admin = Http1::connect(sidecar.admin).await.unwrap();
        let request = "POST /drain HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(admin.exchange(request).await.unwrap().status, 200);
    }
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    client.write(handshake("/chat")).await.unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(head.status, 101);
    assert_eq!(head.header("connection"), Some("upgrade"));
    assert_eq!(client.take(5).await.unwrap(), b"hello");
}
