//! An origin that says what it was asked: for each request it returns the nonce, the SHA-256 of
//! the body as it arrived, and how often that nonce has come; and it sends a body that the client
//! can check by the nonce alone. HTTP/1 and HTTP/2 with prior knowledge on one port. What mixes
//! up, repeats or changes anything is found out.
//!
//! Fields of a request: `x-nonce` (required, at most 64 bytes), `x-answer` (bytes of the answer's
//! body, default 0), `x-answer-piece` (the longest piece of it, default 16,384), `x-answer-trailer`
//! (the answer ends with a trailer `x-end`, the SHA-256 of its body, and has no length).
//! Of an answer: `x-nonce`, `x-sha256` and `x-length` (of the request's body), `x-execution`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

use super::{Log, Server, anywhere};
use crate::random::Random;

/// Nonces that are remembered; a request with one more is refused with 507.
const MOST: usize = 4_000_000;
const LONGEST_NONCE: usize = 64;
const PIECE: usize = 16_384;

/// How often requests with a nonce were seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Their heads: what an application begins to execute.
    pub started: u64,
    /// Their bodies to the end.
    pub complete: u64,
}

/// The origin.
pub struct Nonces {
    server: Server,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    counts: parking_lot::Mutex<HashMap<String, Count>>,
    /// One entry: the sum.
    total: Log<Count>,
}

impl Seen {
    /// Counts; how often the nonce has started, or nothing if there are too many nonces.
    fn count(&self, nonce: &str, count: impl Fn(&mut Count)) -> Option<u64> {
        let mut counts = self.counts.lock();
        if counts.len() >= MOST && !counts.contains_key(nonce) {
            return None;
        }
        let of_nonce = counts.entry(nonce.to_owned()).or_default();
        count(of_nonce);
        let started = of_nonce.started;
        drop(counts);
        self.total.change(|total| {
            if total.is_empty() {
                total.push(Count::default());
            }
            count(&mut total[0]);
        });
        Some(started)
    }
}

impl Nonces {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> io::Result<Self> {
        Self::on(anywhere().await?)
    }

    /// Serves a listener.
    pub fn on(listener: TcpListener) -> io::Result<Self> {
        let seen = Arc::new(Seen::default());
        let shared = seen.clone();
        let server = Server::new(listener, move |_, stream| {
            let seen = shared.clone();
            async move {
                let service = service_fn(move |request| {
                    let seen = seen.clone();
                    async move { Ok::<_, Infallible>(answer(&seen, request).await) }
                });
                // How a connection ends is for whoever is tested to say.
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })?;
        Ok(Self { server, seen })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How often a nonce has come.
    pub fn count(&self, nonce: &str) -> Count {
        let counts = self.seen.counts.lock();
        counts.get(nonce).copied().unwrap_or_default()
    }

    /// How often any has.
    pub fn total(&self) -> Count {
        self.seen.total.seen().first().copied().unwrap_or_default()
    }

    /// The nonces that have started more than once.
    pub fn repeated(&self) -> Vec<String> {
        let counts = self.seen.counts.lock();
        let repeated = counts.iter().filter(|(_, count)| count.started > 1);
        repeated.map(|(nonce, _)| nonce.clone()).collect()
    }

    /// Forgets what has come.
    pub fn forget(&self) {
        self.seen.counts.lock().clear();
        self.seen.total.change(Vec::clear);
    }

    /// Waits until the sum of all is as wanted.
    pub async fn until(
        &self,
        what: &str,
        patience: Duration,
        is_wanted: impl Fn(Count) -> bool,
    ) -> io::Result<()> {
        let is_wanted = |total: &[Count]| is_wanted(total.first().copied().unwrap_or_default());
        self.seen.total.until(what, patience, is_wanted).await?;
        Ok(())
    }
}

/// The body of the answer to a nonce, in pieces of random length up to `piece`; a client can
/// send it just as well.
pub fn payload(nonce: &str, length: u64, piece: usize) -> impl Iterator<Item = Bytes> + use<> {
    let mut bytes = Random::of(nonce);
    let mut sizes = Random::of(nonce);
    let mut left = length;
    let mut word = Vec::new();
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let size = 1 + sizes.below(piece.max(1) as u64);
        let size = usize::try_from(size.min(left)).unwrap_or(1);
        left -= size as u64;
        let mut out = Vec::with_capacity(size + 8);
        out.append(&mut word);
        while out.len() < size {
            out.extend(bytes.next().to_le_bytes());
        }
        word = out.split_off(size);
        Some(out.into())
    })
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn digest(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Sha256::new();
    for piece in pieces {
        hash.update(piece);
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

type Pieces = Box<dyn Iterator<Item = Bytes> + Send>;

/// Pieces, and perhaps a trailer with their digest.
struct Answer {
    pieces: Pieces,
    left: Option<u64>,
    /// Over what was sent, if a trailer follows.
    hash: Option<Sha256>,
}

impl Answer {
    fn empty() -> Self {
        Self {
            pieces: Box::new(std::iter::empty()),
            left: Some(0),
            hash: None,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(piece) = self.pieces.next() {
            if let Some(hash) = &mut self.hash {
                hash.update(&piece);
            }
            if let Some(left) = &mut self.left {
                *left -= piece.len() as u64;
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let trailer = self.hash.take().map(|hash| {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", text(&hex(&hash.finalize())));
            Ok(Frame::trailers(trailers))
        });
        Poll::Ready(trailer)
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0) && self.hash.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("?"))
}

async fn answer(seen: &Seen, request: Request<Incoming>) -> Response<Answer> {
    let field = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
    let number = |name: &str| field(name).and_then(|text| text.parse::<u64>().ok());
    let length = number("x-answer").unwrap_or_default();
    let piece = number("x-answer-piece").and_then(|piece| usize::try_from(piece).ok());
    let has_trailer = field("x-answer-trailer").is_some();
    let nonce = match field("x-nonce") {
        Some(nonce) if (1..=LONGEST_NONCE).contains(&nonce.len()) => nonce.to_owned(),
        _ => return refused(StatusCode::BAD_REQUEST),
    };
    let Some(execution) = seen.count(&nonce, |count| count.started += 1) else {
        return refused(StatusCode::INSUFFICIENT_STORAGE);
    };
    let mut body = request.into_body();
    let (mut hash, mut received) = (Sha256::new(), 0_u64);
    while let Some(frame) = body.frame().await {
        // The client is gone, or broke off: nobody reads this.
        let Ok(frame) = frame else {
            return refused(StatusCode::BAD_REQUEST);
        };
        if let Ok(data) = frame.into_data() {
            hash.update(&data);
            received += data.len() as u64;
        }
    }
    // It was there when it started.
    let _ = seen.count(&nonce, |count| count.complete += 1);
    let mut response = Response::new(Answer {
        pieces: Box::new(payload(&nonce, length, piece.unwrap_or(PIECE))),
        left: (!has_trailer).then_some(length),
        hash: has_trailer.then(Sha256::new),
    });
    let fields = response.headers_mut();
    fields.insert("x-nonce", text(&nonce));
    fields.insert("x-sha256", text(&hex(&hash.finalize())));
    fields.insert("x-length", received.into());
    fields.insert("x-execution", execution.into());
    if has_trailer {
        fields.insert("trailer", HeaderValue::from_static("x-end"));
    }
    response
}

fn refused(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Answer::empty());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PATIENCE;
    use crate::raw1::Client;
    use crate::raw2::frame::END_STREAM;
    use crate::raw2::{Block, Frame, Peer};

    #[test]
    fn a_payload_is_the_same_in_any_pieces() {
        let whole = |length, piece| payload("n", length, piece).collect::<Vec<_>>().concat();
        for length in [0, 1, 7, 8, 9, 100_000] {
            for piece in [0, 1, 3, 8, 1_000_000] {
                assert_eq!(whole(length, piece), whole(length, 5), "{length} {piece}");
                assert_eq!(whole(length, piece).len() as u64, length);
            }
        }
        assert_ne!(whole(8, 8), payload("m", 8, 8).collect::<Vec<_>>().concat());
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest(payload("n", 0, 1)), empty);
    }

    #[tokio::test]
    async fn http1_is_answered_and_counted() {
        let origin = Nonces::start().await.unwrap();
        let mut client = Client::connect(origin.address()).await.unwrap();
        let request = "POST / HTTP/1.1\r\nhost: a\r\nx-nonce: n1\r\nx-answer: 70000\r\nte: trailers\r\n\
                       x-answer-trailer: 1\r\ncontent-length: 5\r\n\r\nhello";
        for execution in ["1", "2"] {
            let answer = client.exchange(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.header("x-nonce"), Some("n1"));
            assert_eq!(answer.header("x-sha256"), Some(&*digest(["hello"])));
            assert_eq!(answer.header("x-length"), Some("5"));
            assert_eq!(answer.header("x-execution"), Some(execution));
            let expected = digest(payload("n1", 70_000, 9));
            assert_eq!(digest([&answer.body]), expected);
            assert_eq!(answer.trailer("x-end"), Some(&*expected));
            assert!(answer.chunks > 2, "{}", answer.chunks);
        }
        assert_eq!(origin.repeated(), ["n1"]);
        let count = Count {
            started: 2,
            complete: 2,
        };
        assert_eq!((origin.count("n1"), origin.total()), (count, count));
        let none = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(client.exchange(none).await.unwrap().status(), 400);
        let half = "POST / HTTP/1.1\r\nhost: a\r\nx-nonce: n2\r\ncontent-length: 5\r\n\r\nhel";
        client.send(half).await.unwrap();
        let begun = |total: Count| total.started == 3;
        origin.until("the start", PATIENCE, begun).await.unwrap();
        client.reset().unwrap();
        assert_eq!(
            origin.count("n2"),
            Count {
                started: 1,
                complete: 0
            }
        );
        origin.forget();
        assert_eq!(origin.total(), Count::default());
    }

    #[tokio::test]
    async fn http2_is_answered() {
        let origin = Nonces::start().await.unwrap();
        let mut peer = Peer::connect(origin.address(), &[]).await.unwrap();
        let block = Block::request("POST", "a", "/")
            .literal("x-nonce", "n")
            .literal("x-answer", "100000")
            .bytes();
        let body = Frame::data(1, END_STREAM, *b"hello");
        peer.send_all(&[Frame::headers(1, 0, block), body])
            .await
            .unwrap();
        let answer = peer.whole(1).await.unwrap();
        assert_eq!(
            (answer.status(), answer.header("x-sha256")),
            (200, digest(["hello"]))
        );
        assert_eq!(digest([answer.body]), digest(payload("n", 100_000, PIECE)));
    }
}
