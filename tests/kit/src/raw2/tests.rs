use bytes::Bytes;
use http::Response;

use super::frame::{INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS};
use super::*;
use crate::origin::{Server, anywhere};

/// h2's server: answers each request with what it has brought, and a trailer.
async fn echo() -> Server {
    let listener = anywhere().await.unwrap();
    Server::new(listener, |_, stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let path = request.uri().path().to_owned();
                let mut body = request.into_body();
                let head = Response::builder().status(503).header("x-path", path);
                let mut out = respond
                    .send_response(head.body(()).unwrap(), false)
                    .unwrap();
                while let Some(Ok(bytes)) = body.data().await {
                    body.flow_control().release_capacity(bytes.len()).unwrap();
                    // The client may have gone.
                    let _ = out.send_data(bytes, false);
                }
                let mut trailers = http::HeaderMap::new();
                trailers.insert("x-end", "1".parse().unwrap());
                let _ = out.send_trailers(trailers);
            });
        }
    })
    .unwrap()
}

#[tokio::test]
async fn requests_are_answered() {
    let server = echo().await;
    let mut peer = Peer::connect(server.address(), &[]).await.unwrap();
    peer.get(1, "a", "/one").await.unwrap();
    let block = Block::request("POST", "a", "/two")
        .incremental("x", "y")
        .bytes();
    peer.send_all(&[
        Frame::headers(3, 0, block),
        Frame::data(3, 0, *b"hello "),
        Frame::data(3, END_STREAM, *b"there"),
    ])
    .await
    .unwrap();
    let two = peer.whole(3).await.unwrap();
    assert_eq!((two.status(), &*two.body), (503, &b"hello there"[..]));
    assert_eq!(
        (&*two.header("x-path"), &*two.trailer("x-end")),
        ("/two", "1")
    );
    let one = peer.whole(1).await.unwrap();
    assert_eq!((one.status(), &*one.header("x-path")), (503, "/one"));
    peer.ping(7).await.unwrap();
}

#[tokio::test]
async fn windows_are_the_tests() {
    let server = echo().await;
    let settings = [(INITIAL_WINDOW_SIZE, 3)];
    let mut peer = Peer::connect(server.address(), &settings).await.unwrap();
    peer = peer.manners(Manners {
        windows: false,
        ..POLITE
    });
    let block = Block::request("POST", "a", "/").bytes();
    let body = Frame::data(1, END_STREAM, *b"hello");
    peer.send_all(&[Frame::headers(1, 0, block), body])
        .await
        .unwrap();
    peer.until(|frame| frame.kind == DATA).await.unwrap();
    peer.ping(1).await.unwrap();
    assert_eq!(peer.message(1).unwrap().body, b"hel");
    peer.send(&Frame::window(1, 9)).await.unwrap();
    assert_eq!(peer.whole(1).await.unwrap().body, b"hello");
}

#[tokio::test]
async fn a_flood_ends_when_the_server_has_had_enough() {
    let server = echo().await;
    for reading in [Reading::All, Reading::Nothing] {
        let mut peer = Peer::connect(server.address(), &[]).await.unwrap();
        let block = Block::request("GET", "a", "/").bytes();
        let flood = peer
            .flood(reading, |n| match n {
                0 => Some(vec![Frame::new(HEADERS, END_STREAM, 1, block.clone())]),
                1_000_000 => None,
                _ => Some(vec![Frame::new(
                    CONTINUATION,
                    0,
                    1,
                    [0x00, 1, b'a', 1, b'b'],
                )]),
            })
            .await;
        assert_ne!(flood.goodbye.end, End::Open, "{flood:?}");
        assert!(flood.frames < 1_000_000, "{flood:?}");
    }
    let mut peer = Peer::connect(server.address(), &[]).await.unwrap();
    let pings = |n| (n < 25).then(|| vec![Frame::window(0, 1)]);
    let flood = peer.flood(Reading::Every(10), pings).await;
    assert_eq!((flood.frames, flood.goodbye.end), (25, End::Open));
}

#[tokio::test]
async fn goaway_is_heard() {
    let server = echo().await;
    let mut peer = Peer::connect(server.address(), &[]).await.unwrap();
    peer.send(&Frame::data(0, 0, *b"x")).await.unwrap();
    let goodbye = peer.goodbye().await;
    assert_eq!(goodbye.code(), Some(1), "{goodbye:?}");
    assert_ne!(goodbye.end, End::Open);
}

#[tokio::test]
async fn it_is_a_server_too() {
    let listener = anywhere().await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let settings = [(MAX_CONCURRENT_STREAMS, 10)];
        let mut peer = Peer::accept(stream, &settings).await.unwrap();
        let stream = peer.request(0).await.unwrap();
        let request = peer.whole(stream).await.unwrap();
        let block = Block::answer(200)
            .literal("x-seen", request.header(":path"))
            .bytes();
        peer.send_all(&[
            Frame::headers(stream, 0, block),
            Frame::data(stream, END_STREAM, request.body),
        ])
        .await
        .unwrap();
        peer.goodbye().await
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(connection);
    let request = http::Request::post("http://a/x").body(()).unwrap();
    let (answer, mut body) = sender.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let answer = within(PATIENCE, "an answer", answer)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.headers()["x-seen"], "/x");
    let data = answer.into_body().data().await.unwrap().unwrap();
    assert_eq!(data, "hello");
    drop((sender, body));
    driving.await.unwrap().unwrap();
    let goodbye = within(PATIENCE, "the end", serving).await.unwrap().unwrap();
    assert_eq!(goodbye.end, End::Closed);
}
