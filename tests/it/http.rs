//! HTTP through two sidecars: messages arrive as they were sent, and nothing of one hop is
//! seen on the next.

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame};
use hyper::{HeaderMap, Request, Version};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::support::app::{self, Body, full};
use crate::support::http1::{Http1, get, get_with, send};
use crate::support::http2::{self, whole};
use crate::support::mesh::pair;
use crate::support::soon;

#[tokio::test]
async fn methods_and_bodies_arrive() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for body in ["", "some bytes"] {
            let request = format!(
                "{method} /a/%20b?c=d&e HTTP/1.1\r\nhost: echo\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let reply = client.exchange(request).await.unwrap();
            assert_eq!(reply.outcome(), (200, ""), "{method}");
            assert_eq!(reply.header("x-method"), Some(method));
            assert_eq!(reply.header("x-path"), Some("/a/%20b?c=d&e"));
            assert_eq!(reply.header("seen-host"), Some("echo"));
            assert_eq!(reply.text(), body, "{method}");
        }
    }
    let requests = |side: &str, more: &str| {
        format!("weft_{side}_requests_total{{{more},tls=\"mtls\",code=\"200\",reason=\"\"}}")
    };
    let sent = requests("client", "service=\"echo\",service_namespace=\"test\"");
    pair.client.until_metric(&sent, |n| n == 12.0).await;
    let arrived = requests("server", "client=\"client\",client_namespace=\"test\"");
    pair.server.until_metric(&arrived, |n| n == 12.0).await;
}

#[tokio::test]
async fn answers_without_bodies_leave_the_connection_usable() {
    let app = app::raw(|head| {
        let line = head.split(' ').collect::<Vec<_>>();
        match (line[0], line[1]) {
            ("HEAD", _) => "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
            (_, "/204") => "HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n",
            (_, "/304") => "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole",
        }
        .to_owned()
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    let request =
        |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nhost: echo\r\n\r\n");
    client.write(request("HEAD", "/")).await.unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), Some("1234"));
    let reply = client.exchange(request("GET", "/204")).await.unwrap();
    assert_eq!((reply.status, reply.header("x-a")), (204, Some("b")));
    assert_eq!(reply.header("content-length"), None);
    assert_eq!(reply.header("transfer-encoding"), None);
    let reply = client.exchange(request("GET", "/304")).await.unwrap();
    assert_eq!((reply.status, reply.header("etag")), (304, Some("\"x\"")));
    let reply = client.exchange(request("GET", "/")).await.unwrap();
    assert_eq!((reply.status, reply.text()), (200, "whole".to_owned()));
    assert_eq!(app.accepted(), 1, "no answer has cost the connection");
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let app = app::echo("echo").await;
    let http = pair(Some("http"), &app).await;
    let http2 = pair(Some("kubernetes.io/h2c"), &app).await;
    for pair in [&http, &http2] {
        let reply = send(
            pair.outbound,
            "POST / HTTP/1.1\r\nhost: echo\r\nte: trailers\r\ntrailer: x-sum\r\n\
             transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nx-sum: 7\r\n\r\n",
        )
        .await;
        assert_eq!((reply.status, reply.text()), (200, "abcdefg".to_owned()));
        assert_eq!(reply.header("seen-te"), Some("trailers"));
        assert_eq!(reply.trailers, [("x-sum".to_owned(), "7".to_owned())]);

        let (body, stream) = http2::channel();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "4".parse().unwrap());
        body.send(Frame::data("wxyz".into())).unwrap();
        body.send(Frame::trailers(trailers)).unwrap();
        drop(body);
        let request = Request::post("http://echo/")
            .header("te", "trailers")
            .header("trailer", "x-sum")
            .body(stream)
            .unwrap();
        let mut client = http2::connect(pair.outbound).await;
        let reply = soon("an answer", client.send_request(request)).await;
        let reply = whole(reply.unwrap()).await;
        assert_eq!(reply.body, "wxyz");
        assert_eq!(reply.trailers["x-sum"], "4");
        let requests = "weft_client_requests_total";
        pair.client.until_metric(requests, |n| n == 2.0).await;
        let good = format!("{requests}{{code=\"200\",reason=\"\"}}");
        let good = pair.client.metrics().await.sum(&good);
        assert_eq!(good, 2.0, "both ended well");
    }
}

#[tokio::test]
async fn http2_is_spoken_as_declared() {
    let app = app::echo("echo").await;
    let http = pair(Some("http"), &app).await;
    let http2 = pair(Some("http2"), &app).await;
    for (pair, version) in [(&http, "HTTP/1.1"), (&http2, "HTTP/2.0")] {
        let reply = get(pair.outbound, "echo", "/").await;
        assert_eq!(reply.header("x-version"), Some(version));
        let mut client = http2::connect(pair.outbound).await;
        let reply = http2::get(&mut client, "http://echo/x?y").await;
        assert_eq!(reply.head.status(), 200);
        assert_eq!(reply.head.version(), Version::HTTP_2);
        assert_eq!(reply.header("x-version"), version);
        assert_eq!(reply.header("x-path"), "/x?y");
        let authority = [reply.header("seen-host"), reply.header("x-authority")];
        assert!(authority.contains(&"echo"), "{authority:?}");
    }
}

#[tokio::test]
async fn the_server_decides_whether_a_body_is_sent() {
    let (refused, mut rest) = mpsc::unbounded_channel();
    let app = app::tcp(move |mut stream| {
        let refused = refused.clone();
        async move {
            while let Some(head) = app::head(&mut stream).await {
                if !head.starts_with("PUT /yes ") {
                    let answer = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                    break;
                }
                let wanted = b"HTTP/1.1 100 Continue\r\n\r\n";
                stream.write_all(wanted).await.unwrap();
                let mut body = [0; 5];
                stream.read_exact(&mut body).await.unwrap();
                assert_eq!(&body, b"hello");
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
            }
            let mut rest = Vec::new();
            // The connection may be reset by a proxy that does not need it any more.
            let _ = stream.read_to_end(&mut rest).await;
            let _ = refused.send(rest);
        }
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let request = |path: &str| {
        format!(
            "PUT {path} HTTP/1.1\r\nhost: echo\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        )
    };
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    client.write(request("/yes")).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 100);
    let reply = client.exchange("hello").await.unwrap();
    assert_eq!((reply.status, reply.text()), (200, "ok".to_owned()));

    let mut client = Http1::connect(pair.outbound).await.unwrap();
    client.write(request("/no")).await.unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(
        head.status, 417,
        "the first answer, without a 100 before it"
    );
    drop(client);
    let rest = soon("the end of the refused request", rest.recv()).await;
    let rest = rest.expect("the server runs");
    assert_eq!(rest, b"", "no byte of the body reached the server");
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    const SIZE: usize = 8 << 20;
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i * 31 % 251) as u8).collect();
    let sum = Sha256::digest(&bytes);

    let client = Http1::connect(pair.outbound).await.unwrap();
    let (mut read, mut write) = client.stream.into_split();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\ncontent-length: {SIZE}\r\n\r\n"
    );
    let body = bytes.clone();
    let writing = tokio::spawn(async move {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&body).await.unwrap();
        write
    });
    let mut answer = Vec::new();
    soon("8 MiB", read.read_to_end(&mut answer)).await.unwrap();
    drop(writing.await.unwrap());
    let start = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&answer[..start]).to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let body = if head.contains("transfer-encoding: chunked") {
        dechunked(&answer[start..])
    } else {
        answer[start..].to_vec()
    };
    assert_eq!(body.len(), SIZE);
    assert_eq!(Sha256::digest(&body), sum);

    let (body, stream) = http2::channel();
    for chunk in bytes.chunks(100_000) {
        body.send(Frame::data(chunk.to_vec().into())).unwrap();
    }
    drop(body);
    let mut client = http2::connect(pair.outbound).await;
    let request = Request::post("http://echo/").body(stream).unwrap();
    let reply = soon("an answer", client.send_request(request)).await;
    let reply = whole(reply.unwrap()).await;
    assert_eq!(reply.body.len(), SIZE);
    assert_eq!(Sha256::digest(&reply.body), sum);
}

fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = std::str::from_utf8(&bytes[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return out;
        }
        out.extend(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 2 + size + 2..];
    }
}

#[tokio::test]
async fn names_keep_their_case_and_order() {
    let app = app::raw(|head| {
        format!(
            "HTTP/1.1 200 Fine\r\nContent-Length: {}\r\nX-CamelCase: A\r\nETag: \"1\"\r\n\
             Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n{head}",
            head.len()
        )
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let reply = send(
        pair.outbound,
        "GET / HTTP/1.1\r\nHost: echo\r\nX-MiXed: 1\r\nSOAPAction: \"x\"\r\nX-Two: a\r\nX-Two: b\r\n\r\n",
    )
    .await;
    let seen = reply.text();
    for line in ["Host: echo\r\n", "X-MiXed: 1\r\n", "SOAPAction: \"x\"\r\n"] {
        assert!(seen.contains(line), "{seen}");
    }
    assert!(seen.contains("X-Two: a\r\nX-Two: b\r\n"), "{seen}");
    let names: Vec<&str> = reply.fields.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["Content-Length", "X-CamelCase", "ETag"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let cookies = reply.fields.iter().filter(|(name, _)| name == "Set-Cookie");
    let cookies: Vec<&str> = cookies.map(|(_, value)| value.as_str()).collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

#[tokio::test]
async fn what_is_for_one_hop_ends_there() {
    let app = app::raw(|head| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: x-hop\r\nx-hop: 1\r\n\
             keep-alive: timeout=5\r\nx-end: 1\r\n\r\n{head}",
            head.len()
        )
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let more = "keep-alive: 5\r\nproxy-connection: keep-alive\r\nupgrade: h2c\r\n\
                http2-settings: AAMAAABk\r\nte: gzip\r\nx-end: 1\r\n";
    let request = format!(
        "GET / HTTP/1.1\r\nhost: echo\r\nconnection: keep-alive, X-Hop, upgrade, http2-settings\r\nx-hop: 1\r\n{more}\r\n"
    );
    let reply = send(pair.outbound, &request).await;
    assert_eq!(reply.status, 200);
    let seen = reply.text().to_lowercase();
    assert!(seen.contains("\r\nx-end: 1\r\n"), "{seen}");
    for name in [
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "http2-settings",
        "te",
        "connection",
    ] {
        assert!(!seen.contains(&format!("\r\n{name}:")), "{name} in {seen}");
    }
    assert_eq!(reply.header("x-end"), Some("1"));
    for name in ["x-hop", "keep-alive"] {
        assert_eq!(reply.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn requests_that_are_not_valid_are_refused_here() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    for request in [
        "GET / HTTP/1.1\r\nhost: echo\r\nhost: echo\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: echo\r\nhost: other\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET http://other/ HTTP/1.1\r\nhost: echo\r\n\r\n",
    ] {
        let reply = send(pair.outbound, request).await;
        assert_eq!(reply.outcome(), (400, "client_protocol_error"), "{request}");
    }
    for (request, status) in [
        ("GET /\r\n\r\n", 400),
        (
            "GET / HTTP/1.1\r\nhost: echo\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nhost: echo\r\ntransfer-encoding: x\r\n\r\n",
            501,
        ),
    ] {
        let mut client = Http1::connect(pair.outbound).await.unwrap();
        let reply = client.exchange(request).await.unwrap();
        assert_eq!(reply.status, status, "{request}");
        assert!(client.is_closed().await, "{request}");
    }
    assert_eq!(app.accepted(), 0, "nothing of it reached the application");
    let refused = "weft_client_requests_total{code=\"400\",reason=\"client_protocol_error\"}";
    pair.client.until_metric(refused, |n| n == 6.0).await;
}

#[tokio::test]
async fn connections_end_when_the_client_asks_and_are_kept_otherwise() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    for _ in 0..10 {
        let mut client = Http1::connect(pair.outbound).await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n";
        let reply = client.exchange(request).await.unwrap();
        assert_eq!(
            (reply.status, reply.header("connection")),
            (200, Some("close"))
        );
        assert!(client.is_closed().await);
    }
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    for _ in 0..10 {
        let reply = client
            .exchange("GET / HTTP/1.1\r\nhost: echo\r\n\r\n")
            .await;
        assert_eq!(reply.unwrap().status, 200);
    }
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    let reply = client
        .exchange("GET / HTTP/1.0\r\nhost: echo\r\n\r\n")
        .await;
    assert_eq!(reply.unwrap().status, 200);
    assert!(client.is_closed().await, "HTTP/1.0 closes");
    assert_eq!(app.accepted(), 1, "all of them over one connection");
    let handshakes = "weft_tls_handshakes_total{side=\"client\",result=\"ok\"}";
    assert_eq!(pair.client.metrics().await.sum(handshakes), 1.0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    let requests: String = (0..5)
        .map(|i| format!("POST /{i} HTTP/1.1\r\nhost: echo\r\ncontent-length: 1\r\n\r\n{i}"))
        .collect();
    client.write(requests).await.unwrap();
    for i in 0..5 {
        let reply = client.reply().await.unwrap();
        assert_eq!(reply.header("x-path"), Some(format!("/{i}").as_str()));
        assert_eq!(reply.text(), i.to_string());
    }
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_request() {
    let (gone, mut noticed) = mpsc::unbounded_channel();
    let app = app::http(move |request| {
        let gone = gone.clone();
        async move {
            struct Tell(mpsc::UnboundedSender<()>);
            impl Drop for Tell {
                fn drop(&mut self) {
                    let _ = self.0.send(());
                }
            }
            // Once that it is here, and once that it has gone.
            let _ = gone.send(());
            let _tell = Tell(gone);
            if request.uri().path() == "/slow" {
                std::future::pending::<()>().await;
            }
            hyper::Response::new(full("quick"))
        }
    })
    .await;
    let pair = pair(Some("http2"), &app).await;
    let mut client = http2::connect(pair.outbound).await;
    let request = Request::get("http://echo/slow").body(full("")).unwrap();
    let answer = tokio::spawn(client.send_request(request));
    let in_flight = "weft_server_requests_in_flight";
    soon("the request at the application", noticed.recv()).await;
    pair.server.until_metric(in_flight, |n| n == 1.0).await;
    answer.abort();
    soon("the application's end", noticed.recv()).await;
    let closed = "weft_client_requests_total{reason=\"client_closed\"}";
    pair.client.until_metric(closed, |n| n == 1.0).await;
    pair.server.until_metric(in_flight, |n| n == 0.0).await;
    let reply = http2::get(&mut client, "http://echo/quick").await;
    assert_eq!(reply.body, "quick", "the connection goes on");
}

#[tokio::test]
async fn a_server_that_breaks_off_is_not_taken_for_an_end() {
    let app = app::tcp(|mut stream| async move {
        let Some(head) = app::head(&mut stream).await else {
            return;
        };
        let half = if head.starts_with("GET /none") {
            ""
        } else if head.starts_with("GET /length") {
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"
        } else {
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"
        };
        stream.write_all(half.as_bytes()).await.unwrap();
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let reply = get(pair.outbound, "echo", "/none").await;
    assert_eq!(reply.outcome(), (502, "peer_closed"));
    for path in ["/length", "/chunked"] {
        let mut client = Http1::connect(pair.outbound).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: echo\r\n\r\n");
        let error = client.exchange(request).await.unwrap_err();
        assert!(
            error.starts_with("closed after") || error.starts_with("read"),
            "{error}"
        );
    }
    let broken = "weft_server_requests_total{reason=\"peer_closed\",outcome=\"failure\"}";
    pair.server.until_metric(broken, |n| n == 3.0).await;
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let app = app::http(|request| async move {
        let collected = request.into_body().collect().await.unwrap();
        hyper::Response::new(full(collected.to_bytes()))
    })
    .await;
    let pair = pair(Some("http2"), &app).await;
    let client = http2::connect(pair.outbound).await;
    let calls: Vec<_> = (0..200)
        .map(|i| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let text = format!("stream {i}");
                let request = Request::post("http://echo/")
                    .body(full(text.clone()))
                    .unwrap();
                let reply = client.send_request(request).await.unwrap();
                assert_eq!(whole(reply).await.body, text);
            })
        })
        .collect();
    for call in calls {
        soon("a stream", call).await.unwrap();
    }
    assert!(app.accepted() <= 4, "{} connections", app.accepted());
}

#[tokio::test]
async fn the_bytes_of_bodies_are_counted() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let reply = get_with(pair.outbound, "echo", "/", "").await;
    assert_eq!(reply.status, 200);
    let request = "POST / HTTP/1.1\r\nhost: echo\r\ncontent-length: 1000\r\n\r\n".to_owned()
        + &"x".repeat(1000);
    assert_eq!(send(pair.outbound, &request).await.body.len(), 1000);
    for direction in ["request", "response"] {
        let client =
            format!("weft_{direction}_bytes_total{{side=\"client\",target=\"echo.test\"}}");
        pair.client.until_metric(&client, |n| n == 1000.0).await;
        let server = format!("weft_{direction}_bytes_total{{side=\"server\"}}");
        pair.server.until_metric(&server, |n| n == 1000.0).await;
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_streams_as_it_is_written() {
    let (write, body) = http2::channel();
    let body = parking_lot::Mutex::new(Some(body));
    let body = std::sync::Arc::new(body);
    let app = app::http(move |_| {
        let body: Body = body.lock().take().unwrap();
        async move { hyper::Response::new(body) }
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let mut client = Http1::connect(pair.outbound).await.unwrap();
    client
        .write("GET / HTTP/1.1\r\nhost: echo\r\n\r\n")
        .await
        .unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    for text in ["one", "two"] {
        write.send(Frame::data(text.into())).unwrap();
        let chunk = client.take(3 + 3 + 2).await.unwrap();
        assert_eq!(chunk, format!("3\r\n{text}\r\n").as_bytes());
    }
    drop(write);
    assert_eq!(client.take(5).await.unwrap(), b"0\r\n\r\n");
}

#[tokio::test]
async fn an_empty_stream_of_http2_has_no_body() {
    let app = app::http(|request| async move {
        let empty = request.body().is_end_stream();
        let length = request.headers().get("content-length").cloned();
        let chunked = request.headers().contains_key("transfer-encoding");
        let text = format!("{empty} {length:?} {chunked}");
        hyper::Response::new(full(text))
    })
    .await;
    let pair = pair(Some("http"), &app).await;
    let mut client = http2::connect(pair.outbound).await;
    let reply = http2::get(&mut client, "http://echo/").await;
    assert_eq!(reply.body, "true None false");
}
