//! What a shutdown waits for, and taking it back.

use std::time::Duration;

use rustix::process::Signal;
use tokio::net::TcpStream;

use super::process::Process;
use crate::support::app::{self, full};
use crate::support::http1::{self, Http1};
use crate::support::http2;
use crate::support::mesh::{Mesh, Sidecar, Workload, pair, service, settings};
use crate::support::{loopback, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: echo\r\n\r\n";

#[tokio::test]
async fn a_shutdown_can_wait_for_the_application() {
    let app = app::echo("echo").await;
    // Another workload that the application calls while it ends.
    let other = app::echo("other").await;
    let ending = Workload::new("echo").serves(&app);
    let called = Workload::new("other").serves(&other);
    let documents = service("echo", "app: echo", Some("http"))
        + &service("other", "app: other", Some("http"))
        + &ending.yaml()
        + &called.yaml();
    // The application is this process, which no process of the sidecar is. Its port must be the
    // declared one for the sidecar to know it.
    let port = app.address.port();
    let documents = documents.replace("port: 8080,", &format!("port: {port},"));
    let documents = documents.replace("targetPort: 8080", &format!("targetPort: {port}"));
    let mesh = Mesh::strict(&documents).await;
    let _called = mesh.sidecar(&called).await;
    let mut settings = settings(&ending, &mesh.token(&ending), mesh.control);
    settings.insert("EXIT_AFTER".to_owned(), "application".to_owned());
    let mut process = Process::start(&settings);
    process.ready().await;
    let call = "GET / HTTP/1.1\r\nhost: other\r\n\r\n";
    let mut client = Http1::connect(ending.outbound).await.unwrap();
    assert_eq!(client.exchange(call).await.unwrap().status, 200);
    process.signal(Signal::TERM);
    process
        .logged("shutting down still waiting_for=\"the application to close its ports\"")
        .await;
    // After 5 s at least: everything works, and nobody is asked to go.
    let mut client = Http1::connect(ending.outbound).await.unwrap();
    let reply = client.exchange(call).await.unwrap();
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, None),
        "{}",
        reply.text()
    );
    drop(app);
    let reply = until("the request to go elsewhere", async || {
        match client.exchange(call).await {
            Ok(reply) if reply.header("connection").is_none() => Err("not yet".to_owned()),
            reply => Ok(reply),
        }
    })
    .await;
    assert_eq!(reply.unwrap().status, 200);
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_drain_can_be_taken_back() {
    let app = app::echo("echo").await;
    let mut pair = pair(Some("http"), &app).await;
    let admin = pair.server.admin;
    let post = async |path: &str| {
        let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
        http1::send(admin, &request).await.status
    };
    assert_eq!(http1::send(pair.outbound, GET).await.status, 200);
    assert_eq!(post("/drain").await, 200);
    let draining = "weft_endpoints{service=\"echo\",state=\"draining\"}";
    pair.client.until_metric(draining, |n| n == 1.0).await;
    pair.server.not_ready("shutting down").await;
    assert_eq!(http1::send(pair.outbound, GET).await.status, 200);
    assert_eq!(post("/undrain").await, 200);
    pair.client.until_metric(draining, |n| n == 0.0).await;
    pair.server.ready().await;
    assert_eq!(http1::send(pair.outbound, GET).await.status, 200);
    // Twice is once, and a shutdown after it does not wait for an answer that was given.
    for _ in 0..2 {
        assert_eq!(post("/drain").await, 200);
    }
    pair.client.until_metric(draining, |n| n == 1.0).await;
    let started = std::time::Instant::now();
    pair.server.shut_down();
    pair.server.ended().await;
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_silent_tunnel_does_not_hold_up_the_end() {
    let app = app::echo("echo").await;
    let mut pair = pair(Some("http"), &app).await;
    let mut tunnel = Http1::connect(pair.outbound).await.unwrap();
    let connect = "CONNECT echo:80 HTTP/1.1\r\nhost: echo:80\r\n\r\n";
    tunnel.write(connect).await.unwrap();
    assert_eq!(tunnel.head().await.unwrap().status, 200);
    let started = std::time::Instant::now();
    pair.client.shut_down();
    pair.client.ended().await;
    // The grace period is 20 s.
    assert!(
        started.elapsed() < Duration::from_secs(9),
        "{:?}",
        started.elapsed()
    );
    assert!(tunnel.is_closed().await);
}

#[tokio::test]
async fn the_application_is_checked_on_behalf_of_others() {
    let health = app::http(|request| async move {
        let asked = request.uri().path() == "/grpc.health.v1.Health/Check";
        // HealthCheckResponse { status: SERVING }, as one gRPC message.
        let body = if asked {
            &b"\0\0\0\0\x02\x08\x01"[..]
        } else {
            b""
        };
        let mut trailers = hyper::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let (sender, frames) = http2::channel();
        sender.send(hyper::body::Frame::data(body.into())).unwrap();
        sender.send(hyper::body::Frame::trailers(trailers)).unwrap();
        hyper::Response::builder()
            .header("content-type", "application/grpc")
            .body(frames)
            .unwrap()
    })
    .await;
    let closed = app::http(|_| async { hyper::Response::new(full("")) }).await;
    let workload = Workload::new("echo").serves(&health);
    let mesh = Mesh::strict(&workload.yaml()).await;
    let mut settings = settings(&workload, &mesh.token(&workload), mesh.control);
    let (open, gone) = (health.address.port(), closed.address.port());
    settings.insert("TCP_PROBES".to_owned(), format!("{open},{gone}"));
    settings.insert("GRPC_PROBES".to_owned(), format!("{open},{gone}/shop.Cart"));
    let sidecar = Sidecar::start(&settings).await.unwrap();
    sidecar.ready().await;
    drop(closed);
    until("a port that is free", async || {
        match TcpStream::connect(loopback(gone)).await {
            Err(_) => Ok(()),
            Ok(_) => Err("open".to_owned()),
        }
    })
    .await;
    for (path, status) in [
        (format!("tcp/{open}"), 200),
        (format!("tcp/{gone}"), 503),
        ("tcp/1".to_owned(), 404),
        (format!("grpc/{open}"), 200),
        (format!("grpc/{gone}/shop.Cart"), 503),
        (format!("grpc/{open}/shop.Cart"), 404),
    ] {
        let reply = http1::get(sidecar.public, "a", &format!("/probe/{path}")).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
    }
}
