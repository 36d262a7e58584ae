//! Opaque TCP, and ports that do not say what they speak: whoever speaks first is heard
//! without delay, and each direction ends on its own.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::app::{self, Server};
use crate::support::http1::get;
use crate::support::http2;
use crate::support::mesh::{Mesh, Workload, pair, route, service};
use crate::support::{soon, until};

/// Greets, then sends back what it gets; at the end of the client it says how much it was.
async fn greeter() -> Server {
    app::tcp(|mut stream| async move {
        stream.write_all(b"220 welcome\r\n").await.unwrap();
        counted(stream).await;
    })
    .await
}

/// Waits for the client, then does the same.
async fn listener() -> Server {
    app::tcp(counted).await
}

async fn counted(mut stream: TcpStream) {
    let mut total = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => {
                total += n;
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    let end = format!("total {total}\r\n");
    // The client may have gone.
    let _ = stream.write_all(end.as_bytes()).await;
}

async fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut seen = vec![0; bytes.len()];
    soon("bytes", stream.read_exact(&mut seen)).await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&seen),
        String::from_utf8_lossy(bytes)
    );
}

/// Sends, half-closes, and reads to the end.
async fn half_close(stream: &mut TcpStream, sent: &[u8]) -> Vec<u8> {
    stream.write_all(sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("the end", stream.read_to_end(&mut rest))
        .await
        .unwrap();
    rest
}

#[tokio::test]
async fn servers_that_speak_first_are_heard_at_once() {
    let app = greeter().await;
    for protocol in [Some("tcp"), None] {
        let pair = pair(protocol, &app).await;
        // The first one pays for the handshakes.
        let mut stream = TcpStream::connect(pair.local).await.unwrap();
        expect(&mut stream, b"220 welcome\r\n").await;
        let started = Instant::now();
        let mut stream = TcpStream::connect(pair.local).await.unwrap();
        expect(&mut stream, b"220 welcome\r\n").await;
        let waited = started.elapsed();
        assert!(waited.as_millis() < 500, "{protocol:?}: {waited:?}");
        stream.write_all(b"EHLO me\r\n").await.unwrap();
        expect(&mut stream, b"EHLO me\r\n").await;
        let rest = half_close(&mut stream, b"QUIT\r\n").await;
        assert_eq!(rest, b"QUIT\r\ntotal 15\r\n", "{protocol:?}");
        let opaque = "weft_tcp_connections_closed_total{side=\"client\",target=\"echo.test\",\
                      tls=\"mtls\",reason=\"\"}";
        pair.client.until_metric(opaque, |n| n >= 1.0).await;
        let sent = "weft_tcp_sent_bytes_total{side=\"server\"}";
        pair.server.until_metric(sent, |n| n >= 30.0).await;
    }
}

#[tokio::test]
async fn clients_that_speak_first_are_heard() {
    let app = listener().await;
    for protocol in [Some("tcp"), None] {
        let pair = pair(protocol, &app).await;
        for greeting in [
            &b"*1\r\n$4\r\nPING\r\n"[..],
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            b"GET key\r\n",
            b"\x16\x03\x01\x00\x05hello",
            b"PRI",
            b"G",
        ] {
            let mut stream = TcpStream::connect(pair.local).await.unwrap();
            let rest = half_close(&mut stream, greeting).await;
            let expected = [greeting, format!("total {}\r\n", greeting.len()).as_bytes()].concat();
            assert_eq!(rest, expected, "{protocol:?} {greeting:?}");
        }
        let all = "weft_tcp_connections_closed_total{side=\"server\",reason=\"\",tls=\"mtls\"}";
        pair.server.until_metric(all, |n| n == 6.0).await;
        let open = "weft_tcp_connections_open";
        pair.client.until_metric(open, |n| n == 0.0).await;
    }
}

#[tokio::test]
async fn servers_may_end_first() {
    let app = app::tcp(|mut stream| async move {
        stream.write_all(b"bye").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "after");
    })
    .await;
    for protocol in [Some("tcp"), None] {
        let pair = pair(protocol, &app).await;
        let mut stream = TcpStream::connect(pair.local).await.unwrap();
        let mut seen = String::new();
        soon("the server's end", stream.read_to_string(&mut seen))
            .await
            .unwrap();
        assert_eq!(seen, "bye");
        // The other direction is still open.
        stream.write_all(b"after").await.unwrap();
        drop(stream);
        let received = "weft_tcp_received_bytes_total{side=\"server\"}";
        pair.server.until_metric(received, |n| n == 5.0).await;
        let closed = "weft_tcp_connections_closed_total{side=\"client\",reason=\"\"}";
        pair.client.until_metric(closed, |n| n == 1.0).await;
    }
}

#[tokio::test]
async fn much_goes_through_in_both_directions() {
    let app = listener().await;
    let pair = pair(Some("tcp"), &app).await;
    let bytes: Vec<u8> = (0..4_000_000).map(|i| (i * 7 % 253) as u8).collect();
    let (mut read, mut write) = TcpStream::connect(pair.local).await.unwrap().into_split();
    let sent = bytes.clone();
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    soon("4 MB", read.read_to_end(&mut back)).await.unwrap();
    writing.await.unwrap();
    let end = back.split_off(bytes.len());
    assert!(back == bytes);
    assert_eq!(end, b"total 4000000\r\n");
    let received = "weft_tcp_received_bytes_total{side=\"client\",target=\"echo.test\"}";
    pair.client
        .until_metric(received, |n| n == 4_000_000.0)
        .await;
}

#[tokio::test]
async fn http_is_detected_where_nothing_is_declared() {
    let app = app::echo("echo").await;
    let pair = pair(None, &app).await;
    let reply = get(pair.local, "anything", "/one").await;
    assert_eq!(reply.outcome(), (200, ""));
    assert_eq!(reply.header("x-version"), Some("HTTP/1.1"));
    assert_eq!(reply.header("seen-host"), Some("anything"));
    let mut client = http2::connect(pair.local).await;
    let reply = http2::get(&mut client, "http://anything/two").await;
    assert_eq!(reply.head.status(), 200);
    assert_eq!(reply.header("x-version"), "HTTP/2.0", "as the client spoke");
    for (protocol, version) in [("http1", 1.0), ("http2", 1.0)] {
        let detected = format!("weft_protocol_detections_total{{protocol=\"{protocol}\"}}");
        pair.client.until_metric(&detected, |n| n == version).await;
    }
    for (sidecar, side) in [(&pair.client, "client"), (&pair.server, "server")] {
        let series = format!("weft_{side}_requests_total{{code=\"200\",tls=\"mtls\"}}");
        sidecar.until_metric(&series, |n| n == 2.0).await;
    }
    // Through the outbound port it is HTTP as well.
    let reply = get(pair.outbound, "echo", "/three").await;
    assert_eq!(reply.outcome(), (200, ""));
}

#[tokio::test]
async fn declared_http_needs_no_authority_on_a_port_of_its_own() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let reply = get(pair.local, "localhost:1234", "/").await;
    assert_eq!(reply.outcome(), (200, ""));
    assert_eq!(reply.header("seen-host"), Some("localhost:1234"));
}

#[tokio::test]
async fn a_client_without_a_server_is_cut() {
    let app = listener().await;
    let gone = app.address;
    drop(app);
    until("the port is free", async || {
        match TcpStream::connect(gone).await {
            Ok(_) => Err("still open".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    let server = Workload::new("echo").serves_at(8080, gone);
    let client = Workload::new("client").upstream("echo").upstream("nobody");
    let documents = service("echo", "app: echo", Some("tcp"))
        + &service("nobody", "app: nobody", Some("tcp"))
        + &server.yaml()
        + &client.yaml();
    let mesh = Mesh::strict(&documents).await;
    let server = mesh.sidecar(&server).await;
    let sidecar = mesh.sidecar(&client).await;
    assert_cut(client.local()).await;
    let refused = "weft_tcp_connections_closed_total{reason=\"connect_refused\"}";
    server.until_metric(refused, |n| n == 1.0).await;
    assert_cut(client.local_of(1)).await;
    let none = "weft_tcp_connections_closed_total{target=\"nobody.test\",reason=\"no_endpoints\"}";
    sidecar.until_metric(none, |n| n == 1.0).await;
}

async fn assert_cut(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut seen = Vec::new();
    // An end or a reset.
    let _ = soon("the end", stream.read_to_end(&mut seen)).await;
    assert_eq!(seen, b"");
}

/// Says its name and closes.
async fn named(name: &'static str) -> Server {
    app::tcp(move |mut stream| async move {
        let _ = stream.write_all(name.as_bytes()).await;
    })
    .await
}

async fn says(address: SocketAddr) -> Result<String, String> {
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(|e| e.to_string())?;
    let mut name = String::new();
    let read = stream.read_to_string(&mut name).await;
    read.map_err(|e| e.to_string())?;
    Ok(name)
}

#[tokio::test]
async fn connections_are_divided_by_weight() {
    let (one, two) = (named("one").await, named("two").await);
    let first = Workload::replica("db", "one").serves(&one);
    let second = Workload::replica("db", "two").serves(&two);
    let client = Workload::new("client").upstream("db");
    let backends = |one: u32, two: u32| {
        let rule = format!(
            "  - backendRefs: [{{name: one, port: 80, weight: {one}}}, {{name: two, port: 80, weight: {two}}}]"
        );
        route("TCPRoute", "db", &rule)
    };
    let documents = [
        service("db", "app: db", Some("tcp")),
        service("one", "app: db, version: one", Some("tcp")),
        service("two", "app: db, version: two", Some("tcp")),
        first.yaml(),
        second.yaml(),
        client.yaml(),
    ];
    let mesh = Mesh::strict(&documents.concat()).await;
    mesh.write("route.yaml", &backends(0, 1));
    let _first = mesh.sidecar(&first).await;
    let _second = mesh.sidecar(&second).await;
    let sidecar = mesh.sidecar(&client).await;
    for _ in 0..10 {
        assert_eq!(says(client.local()).await.unwrap(), "two");
    }
    mesh.write("route.yaml", &backends(3, 1));
    until("the new weights", async || {
        match says(client.local()).await? {
            name if name == "one" => Ok(()),
            name => Err(name),
        }
    })
    .await;
    let mut ones = 0;
    for _ in 0..200 {
        ones += u32::from(says(client.local()).await.unwrap() == "one");
    }
    // 150 are expected; 5 standard deviations are 31.
    assert!((119..=181).contains(&ones), "{ones} of 200");
    let closed = "weft_tcp_connections_closed_total{side=\"client\",reason=\"\"}";
    sidecar.until_metric(closed, |n| n >= 211.0).await;
}
