//! Clients and servers that mean harm, or that do not know better: what they send is framed
//! anew, counted against whoever sent it, and never speaks for the mesh.

use tokio::io::AsyncReadExt as _;

use crate::support::app;
use crate::support::http1::{Http1, get, get_with, send};
use crate::support::mesh::{Mesh, Sidecar, Workload, pair, service, settings};

#[tokio::test]
async fn the_chunked_body_of_a_get_arrives() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let head = "GET / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n";
    let reply = send(pair.outbound, &format!("{head}5\r\nhello\r\n0\r\n\r\n")).await;
    assert_eq!(reply.outcome(), (200, ""));
    assert!(reply.text().contains("hello"), "{}", reply.text());
}

#[tokio::test]
async fn an_answer_with_two_lengths_is_none() {
    let app = app::raw(|_| {
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\n\r\n"
            .to_owned()
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let reply = get(pair.outbound, "echo", "/").await;
    assert_eq!(reply.outcome(), (502, "peer_protocol_error"));
}

#[tokio::test]
async fn only_the_mesh_speaks_for_the_mesh() {
    let app = app::raw(|head| {
        let length = head.len();
        format!("HTTP/1.1 200 OK\r\nweft-reason: forged\r\ncontent-length: {length}\r\n\r\n{head}")
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let reply = get_with(pair.outbound, "echo", "/", "weft-reason: forged\r\n").await;
    assert_eq!(reply.outcome(), (200, ""));
    assert!(!reply.text().contains("forged"), "{}", reply.text());
}

#[tokio::test]
async fn a_client_is_blamed_for_its_own_body() {
    // Reads to the end, and answers nothing.
    let app = app::tcp(|mut stream| async move {
        let mut seen = Vec::new();
        let _ = stream.read_to_end(&mut seen).await;
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let head = "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: chunked\r\n\r\n";
    let reply = send(pair.outbound, &format!("{head}nonsense\r\n")).await;
    assert_eq!(reply.outcome(), (400, "client_protocol_error"));
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    client.write(format!("{head}5\r\nhello\r\n")).await.unwrap();
    let in_flight = "weft_server_requests_in_flight";
    pair.server.until_metric(in_flight, |n| n == 1.0).await;
    drop(client);
    let gone = "weft_client_requests_total{reason=\"client_closed\"}";
    pair.client.until_metric(gone, |n| n == 1.0).await;
    pair.server.until_metric(in_flight, |n| n == 0.0).await;
}

#[tokio::test]
async fn an_answer_to_head_keeps_its_reason() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    let request = "HEAD / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n";
    client.write(request).await.unwrap();
    let reply = client.head().await.unwrap();
    assert_eq!(reply.outcome(), (404, "no_route"));
    let counted = "weft_client_requests_total{method=\"HEAD\",reason=\"no_route\"}";
    pair.client.until_metric(counted, |n| n == 1.0).await;
}

#[tokio::test]
async fn both_sides_give_the_same_reason() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    // Nothing listens there any more: the server's sidecar says so, and the client's repeats it.
    drop(app);
    let reply = get(pair.outbound, "echo", "/").await;
    assert_eq!(reply.outcome(), (502, "connect_refused"));
    let client = r#"weft_client_requests_total{reason="connect_refused",code="502"}"#;
    pair.client.until_metric(client, |n| n == 1.0).await;
    let server = r#"weft_server_requests_total{reason="connect_refused",code="502"}"#;
    pair.server.until_metric(server, |n| n == 1.0).await;
}

#[tokio::test]
async fn a_name_too_long_for_the_control_plane_does_not_end_the_stream() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let endless = format!("{}.example", "x".repeat(4_000));
    let reply = get(pair.outbound, &endless, "/").await;
    assert_eq!(reply.outcome(), (404, "no_route"));
    // Asked of the control plane.
    let reply = get(pair.outbound, "echo.test", "/").await;
    assert_eq!(reply.outcome(), (200, ""));
    let connected = pair.client.metrics().await.sum("weft_control_connected");
    assert_eq!(connected, 1.0);
}

#[tokio::test]
async fn a_probe_carries_nothing_but_its_question() {
    // Would switch protocols for whoever asks, and says what has arrived.
    let app = app::raw(|head| match head.contains("upgrade: websocket") {
        true => "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                 upgrade: websocket\r\n\r\n"
            .to_owned(),
        false => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
    })
    .await;
    let workload = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    let mut settings = settings(&workload, &mesh.token(&workload), mesh.control);
    settings.insert("PROBES".to_owned(), "8080/healthz".to_owned());
    let sidecar = Sidecar::start(&settings).await.unwrap();
    sidecar.ready().await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let refused = (403, "identity_required");
    for (line, more, expected) in [
        ("GET /healthz HTTP/1.1", "", (200, "")),
        ("HEAD /healthz HTTP/1.1", "", (200, "")),
        ("GET http://echo/healthz HTTP/1.1", "", (200, "")),
        ("GET /healthz?x HTTP/1.1", "", refused),
        ("GET //healthz HTTP/1.1", "", refused),
        ("GET /healthz/ HTTP/1.1", "", refused),
        ("GET /%68ealthz HTTP/1.1", "", refused),
        ("GET /a/../healthz HTTP/1.1", "", refused),
        ("POST /healthz HTTP/1.1", "", refused),
        ("OPTIONS * HTTP/1.1", "", refused),
        ("CONNECT echo:80 HTTP/1.1", "", refused),
        ("GET /healthz HTTP/1.1", upgrade, refused),
        (
            "GET /healthz HTTP/1.1",
            "content-length: 5\r\n\r\nhello",
            refused,
        ),
        (
            "GET /healthz HTTP/1.1",
            "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            refused,
        ),
    ] {
        let host = if line.starts_with("CONNECT") {
            "echo:80"
        } else {
            "echo"
        };
        let request = format!("{line}\r\nhost: {host}\r\n{more}\r\n");
        let mut client = Http1::connect(workload.inbound()).await.unwrap();
        client.write(&request).await.unwrap();
        let reply = client.head().await.unwrap();
        assert_eq!(reply.outcome(), expected, "{request}");
    }
    // On one connection: what was admitted once admits nothing else.
    let mut client = Http1::connect(workload.inbound()).await.unwrap();
    for (path, expected) in [("/healthz", (200, "")), ("/secret", refused)] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: echo\r\n\r\n");
        assert_eq!(client.exchange(request).await.unwrap().outcome(), expected);
    }
}

#[tokio::test]
async fn a_body_is_held_to_its_limit_however_it_comes() {
    let app = app::echo("echo").await;
    let workload = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    let mut settings = settings(&workload, &mesh.token(&workload), mesh.control);
    settings.insert("MAX_BODY_BYTES".to_owned(), "8".to_owned());
    let sidecar = Sidecar::start(&settings).await.unwrap();
    sidecar.ready().await;
    let head = "POST / HTTP/1.1\r\nhost: echo\r\n";
    let refused = (413, "body_too_large");
    for (rest, expected) in [
        ("content-length: 8\r\n\r\n12345678", (200, "")),
        ("content-length: 9\r\n\r\n123456789", refused),
        (
            "transfer-encoding: chunked\r\n\r\n4\r\n1234\r\n4\r\n5678\r\n0\r\n\r\n",
            (200, ""),
        ),
        (
            "transfer-encoding: chunked\r\n\r\n4\r\n1234\r\n5\r\n56789\r\n0\r\n\r\n",
            refused,
        ),
    ] {
        let reply = send(workload.outbound, &format!("{head}{rest}")).await;
        assert_eq!(reply.outcome(), expected, "{rest}");
    }
    let broken = "weft_http_violations_total{peer=\"downstream\",rule=\"body_too_large\"}";
    sidecar.until_metric(broken, |n| n == 2.0).await;
}

#[tokio::test]
async fn trailers_say_nothing_that_belongs_in_a_head() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let reply = send(
        pair.outbound,
        "POST / HTTP/1.1\r\nhost: echo\r\nte: trailers\r\n\
         trailer: x-sum, authorization, content-length\r\ntransfer-encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\nx-sum: 7\r\nauthorization: me\r\ncontent-length: 9\r\n\r\n",
    )
    .await;
    assert_eq!((reply.status, reply.text()), (200, "abc".to_owned()));
    assert_eq!(reply.trailers, [("x-sum".to_owned(), "7".to_owned())]);
}
