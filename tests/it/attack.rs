//! Attacks on what one connection keeps from one request to the next: the order of refusals and
//! switches, kept connections, deadlines, and what is held for a peer that takes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;

use weft_kit::raw1::End;
use weft_kit::raw2::frame::{END_HEADERS, END_STREAM, INITIAL_WINDOW_SIZE};
use weft_kit::raw2::{Block, Frame, Manners, POLITE, Peer};

use crate::support::app::{self, Server};
use crate::support::http1::{Http1, send, try_send};
use crate::support::mesh::{Mesh, Sidecar, Workload, service, settings};
use crate::support::soon;

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

#[tokio::test]
async fn a_body_that_stands_still_ends_its_request() {
    // Answers when it has read all.
    let app = app::http(|request| async move {
        let whole = request.into_body().collect().await;
        hyper::Response::new(app::full(whole.map(|w| w.to_bytes()).unwrap_or_default()))
    })
    .await;
    let (_mesh, sidecar, workload) = alone(&app, &[("BODY_TIMEOUT", "1")]).await;
    let mut client = Http1::connect(workload.outbound).await.unwrap();
    client
        .write("POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 10\r\n\r\n12345")
        .await
        .unwrap();
    let reply = client.reply().await.unwrap();
    assert_eq!(reply.outcome(), (408, "body_timeout"));
    assert!(client.is_closed().await);
    let ended = "weft_server_requests_in_flight";
    sidecar.until_metric(ended, |n| n == 0.0).await;
    let blamed = "weft_client_requests_total{reason=\"body_timeout\",code=\"408\"}";
    sidecar.until_metric(blamed, |n| n == 1.0).await;
}

#[tokio::test]
async fn who_reads_slowly_but_steadily_lives() {
    let app = app::tcp(|mut stream| async move {
        while app::head(&mut stream).await.is_some() {
            let ok = "HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n";
            stream.write_all(ok.as_bytes()).await.unwrap();
            for _ in 0..1000 {
                if stream.write_all(&[b'x'; 100_000]).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let (_mesh, sidecar, workload) = alone(&app, &[("WRITE_TIMEOUT", "2")]).await;
    let mut client = Http1::connect(workload.outbound).await.unwrap();
    client
        .write("GET / HTTP/1.1\r\nhost: echo\r\n\r\n")
        .await
        .unwrap();
    let mut sum = 0;
    let mut buf = vec![0; 25_000];
    for _ in 0..50 {
        let n = soon("bytes", client.stream.read(&mut buf)).await;
        match n {
            Ok(n) if n > 0 => sum += n,
            other => panic!("cut after {sum}: {other:?}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
    let cut = sidecar
        .metrics()
        .await
        .sum("weft_http_violations_total{rule=\"write_timeout\"}");
    assert_eq!(cut, 0.0, "after {sum}");
}

#[tokio::test]
async fn an_early_answer_does_not_leave_its_body_to_another() {
    // Answers without reading the body, and takes that for a request.
    let app = app::tcp(|mut stream| async move {
        while let Some(head) = app::head(&mut stream).await {
            let path = head.split(' ').nth(1).unwrap();
            if path == "/evil" {
                sleep(Duration::from_millis(100)).await;
            }
            let ok = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
                path.len()
            );
            if stream.write_all(ok.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let (_mesh, _sidecar, workload) = alone(&app, &[]).await;
    let mut client = Http1::connect(workload.outbound).await.unwrap();
    let smuggled = "GET /evil HTTP/1.1\r\nhost: echo\r\n\r\n";
    let post = format!(
        "POST /a HTTP/1.1\r\nhost: echo\r\ncontent-length: {}\r\n\r\n",
        smuggled.len()
    );
    let reply = client.exchange(post).await.unwrap();
    assert_eq!(reply.text(), "/a");
    let next = format!("{smuggled}GET /c HTTP/1.1\r\nhost: echo\r\n\r\n");
    assert_eq!(client.exchange(next).await.unwrap().text(), "/c");
    let get = "GET /b HTTP/1.1\r\nhost: echo\r\n\r\n";
    assert_eq!(send(workload.outbound, get).await.text(), "/b");
}

/// The client takes no more of each answer than a byte, and the streams have ended on our side.
#[tokio::test]
async fn what_h2_keeps_for_a_client_that_takes_nothing_is_charged_and_ends() {
    const STREAMS: u32 = 200;
    let app = app::raw(|_| {
        let body = "x".repeat(8_000);
        format!("HTTP/1.1 200 OK\r\ncontent-length: 8000\r\n\r\n{body}")
    })
    .await;
    let (_mesh, sidecar, workload) = alone(&app, &[("WRITE_TIMEOUT", "1")]).await;
    let window = [(INITIAL_WINDOW_SIZE, 1)];
    let peer = Peer::connect(workload.outbound, &window).await.unwrap();
    let mut peer = peer.manners(Manners {
        windows: false,
        ..POLITE
    });
    let streams = || (0..STREAMS).map(|n| 2 * n + 1);
    for stream in streams() {
        peer.get(stream, "echo", "/").await.unwrap();
    }
    for stream in streams() {
        while peer.message(stream).is_none_or(|m| m.body.is_empty()) {
            peer.next().await.unwrap();
        }
    }
    // Nothing is in flight, and all of it is kept.
    let in_flight = "weft_client_requests_in_flight";
    sidecar.until_metric(in_flight, |n| n == 0.0).await;
    let charged = "weft_memory_used_bytes{source=\"charged\"}";
    sidecar.until_metric(charged, |n| n > 1_500_000.0).await;
    assert_eq!(peer.goodbye().await.end, End::Closed);
    let cut = "weft_http_violations_total{peer=\"downstream\",rule=\"write_timeout\"}";
    sidecar.until_metric(cut, |n| n == 1.0).await;
    sidecar.until_metric(charged, |n| n < 500_000.0).await;
}

/// The words of a refusal would wait for the window; its head says why, and is the end.
#[tokio::test]
async fn refusals_leave_nothing_behind_for_a_client_that_takes_nothing() {
    const STREAMS: u32 = 60;
    let app = app::echo("echo").await;
    let (_mesh, _sidecar, workload) = alone(&app, &[]).await;
    let shut = [(INITIAL_WINDOW_SIZE, 0)];
    let mut peer = Peer::connect(workload.outbound, &shut).await.unwrap();
    let streams = || (0..STREAMS).map(|n| 2 * n + 1);
    for stream in streams() {
        let crumb = |block: Block, _| block.literal("cookie", "a=b");
        let block = (0..101).fold(Block::request("GET", "echo", "/"), crumb);
        let flags = END_HEADERS | END_STREAM;
        let frame = Frame::headers(stream, flags, block.bytes());
        peer.send(&frame).await.unwrap();
    }
    for stream in streams() {
        while peer.message(stream).is_none_or(|m| m.heads.is_empty()) {
            peer.next().await.unwrap();
        }
    }
    let refused = |stream| {
        let message = peer.message(stream).unwrap();
        let reason = message.header("weft-reason");
        assert_eq!((message.status(), &reason[..]), (431, "headers_too_large"));
        message.ended
    };
    let ended = streams().filter(|stream| refused(*stream)).count();
    // Some wait, since most clients read.
    assert!((30..60).contains(&ended), "{ended}");
}

#[tokio::test]
async fn who_waits_for_its_answer_may_be_silent_and_nobody_else() {
    let app = app::echo("echo").await;
    let (_mesh, _sidecar, workload) = alone(&app, &[("BODY_TIMEOUT", "1")]).await;
    let head = "POST / HTTP/1.1\r\nhost: echo\r\n";
    let mut client = Http1::connect(workload.outbound).await.unwrap();
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
    client.write(chunked).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
    sleep(Duration::from_millis(2_500)).await;
    client.write("2\r\nhi\r\n0\r\n\r\n").await.unwrap();
    let whole = b"2\r\nhi\r\n0\r\n\r\n";
    assert_eq!(client.take(whole.len()).await.unwrap(), whole);

    // Has its answer, and goes on with its request for ever.
    let app = app::raw(|_| "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
    let (_mesh, _sidecar, workload) = alone(&app, &[("BODY_TIMEOUT", "1")]).await;
    let mut client = Http1::connect(workload.outbound).await.unwrap();
    let post = format!("{head}content-length: 10\r\n\r\n12345");
    assert_eq!(client.exchange(post).await.unwrap().outcome(), (200, ""));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn what_may_have_run_is_not_sent_again() {
    for (method, answer, reset, times) in [
        ("GET", "", false, 2),
        ("PUT", "", true, 2),
        ("POST", "", false, 1),
        ("POST", "", true, 1),
        ("GET", "HTTP/1.1 20", false, 1),
        ("GET", "HTTP/1.1 20", true, 1),
        ("GET", "HTTP/1.1 103 Early Hints\r\n\r\n", false, 1),
        ("GET", "no HTTP\r\n\r\n", false, 1),
    ] {
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = seen.clone();
        let app = app::tcp(move |mut stream| {
            let counter = counter.clone();
            async move {
                while let Some(head) = app::head(&mut stream).await {
                    if head.contains("/last") {
                        stream.read_exact(&mut [0; 3]).await.unwrap();
                        counter.fetch_add(1, Ordering::Relaxed);
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        // Before a reset throws it away.
                        sleep(Duration::from_millis(50)).await;
                        if reset {
                            stream.set_zero_linger().unwrap();
                        }
                        return;
                    }
                    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(ok.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let (_mesh, _sidecar, workload) = alone(&app, &[]).await;
        let first = "GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n";
        assert_eq!(send(workload.outbound, first).await.status, 200);
        let fields = "host: echo\r\ncontent-length: 3\r\nconnection: close\r\n";
        let request = format!("{method} /last HTTP/1.1\r\n{fields}\r\nabc");
        let reply = send(workload.outbound, &request).await;
        let seen = seen.load(Ordering::Relaxed);
        assert_eq!((reply.status, seen), (502, times), "{method} {answer:?}");
    }
}
