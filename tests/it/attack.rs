//! Attacks on what one connection keeps from one request to the next: the order of refusals and
//! switches, kept connections, deadlines, and what is held for a peer that takes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;

use crate::support::app::{self, Server};
use crate::support::http1::{Http1, send, try_send};
use crate::support::mesh::{Mesh, Sidecar, Workload, service, settings};

/// A sidecar in front of `app`, with settings of its own; it calls itself.
async fn alone(app: &Server, more: &[(&str, &str)]) -> (Mesh, Sidecar, Workload) {
    let workload = Workload::new("echo").serves(app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    let mut settings = settings(&workload, &mesh.token(&workload), mesh.control);
    for (name, value) in more {
        settings.insert((*name).to_owned(), (*value).to_owned());
    }
    let sidecar = Sidecar::start(&settings).await.unwrap();
    sidecar.ready().await;
    (mesh, sidecar, workload)
}

const WEBSOCKET: &str = "connection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[tokio::test]
async fn an_upgrade_behind_another_request_still_switches() {
    let app = app::tcp(|mut stream| async move {
        while let Some(head) = app::head(&mut stream).await {
            if head.contains("upgrade: websocket") {
                let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                              upgrade: websocket\r\n\r\n";
                stream.write_all(switch.as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                return;
            }
            sleep(Duration::from_millis(100)).await;
            let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(ok.as_bytes()).await.unwrap();
        }
    })
    .await;
    let (_mesh, _sidecar, workload) = alone(&app, &[]).await;
    let mut client = Http1::connect(workload.outbound).await.unwrap();
    let both = format!(
        "GET /1 HTTP/1.1\r\nhost: echo\r\n\r\nGET /2 HTTP/1.1\r\nhost: echo\r\n{WEBSOCKET}\r\n"
    );
    client.write(both).await.unwrap();
    assert_eq!(client.reply().await.unwrap().status, 200);
    assert_eq!(client.reply().await.unwrap().status, 101);
    client.write("no HTTP\r\n\r\n").await.unwrap();
    assert_eq!(client.take(11).await.unwrap(), b"no HTTP\r\n\r\n");
}

#[tokio::test]
async fn an_answer_before_the_body_of_an_upgrade_ends_does_not_hold_the_next_request() {
    let app = app::tcp(|mut stream| async move {
        while let Some(head) = app::head(&mut stream).await {
            let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(ok.as_bytes()).await.unwrap();
            if head.starts_with("POST") {
                stream.read_exact(&mut [0; 10]).await.unwrap();
            }
        }
    })
    .await;
    let (_mesh, _sidecar, workload) = alone(&app, &[]).await;
    let mut client = Http1::connect(workload.outbound).await.unwrap();
    let post = "POST / HTTP/1.1\r\nhost: echo\r\nconnection: upgrade, http2-settings\r\n\
                upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\
                content-length: 10\r\n\r\n";
    assert_eq!(client.exchange(post).await.unwrap().status, 200);
    let rest = "0123456789GET / HTTP/1.1\r\nhost: echo\r\n\r\n";
    assert_eq!(client.exchange(rest).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_request_that_kills_connections_kills_two_at_most() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    let app = app::tcp(move |mut stream| {
        let counter = counter.clone();
        async move {
            while let Some(head) = app::head(&mut stream).await {
                if head.starts_with("GET /poison") {
                    counter.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                sleep(Duration::from_millis(200)).await;
                let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(ok.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let (_mesh, _sidecar, workload) = alone(&app, &[]).await;
    let get = "GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n";
    let all = (0..8).map(|_| try_send(workload.outbound, get));
    for reply in futures_util::future::join_all(all).await {
        assert_eq!(reply.unwrap().status, 200);
    }
    assert_eq!(app.accepted(), 8);
    let reply = send(
        workload.outbound,
        "GET /poison HTTP/1.1\r\nhost: echo\r\n\r\n",
    )
    .await;
    assert_eq!(reply.outcome(), (502, "peer_closed"));
    let seen = seen.load(Ordering::Relaxed);
    assert!(seen <= 2, "sent {seen} times");
}
