//! HOT. Bodies on the path: never boxed, never copied.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    error::Reason,
    fields::{self, Sender, Violation},
    limits::Limits,
    util::Gate,
};

/// A request or response body.
#[derive(Debug, Default)]
pub enum Body {
    /// No bytes.
    #[default]
    Empty,
    /// One buffer, made here.
    Full(Bytes),
    /// What the other side sends.
    Incoming(Source),
    /// A request body that is not asked for until the upstream wants it
    /// (`Expect: 100-continue`): polling it makes hyper send `100 Continue` downstream.
    Gated(Source, Gate),
    /// A request body that can be read again from its beginning, as long as the tape holds it.
    Taped(Reader),
}

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// Its sender broke off, or it was malformed.
    #[error("the body broke off")]
    Peer(#[from] hyper::Error),
    /// It breaks a rule, as [`Rules::broken`] says.
    #[error("the body breaks a rule")]
    Refused,
}

/// What a request body is held to on its way, and what came of it. Shared by the body and by
/// who answers for it.
#[derive(Debug)]
pub struct Rules {
    limits: Arc<Limits>,
    bytes: AtomicU64,
    /// Whether its answer is on the way.
    answering: AtomicBool,
    /// Whether all of it was read.
    ended: AtomicBool,
    broken: OnceLock<Violation>,
}

/// The answer to a request is on its way while this lives: the client may say nothing for as
/// long as it likes, since it may wait for what the server says.
#[derive(Debug)]
pub struct Answering(Arc<Rules>);

impl Answering {
    /// Whether the request was read to its end.
    #[must_use]
    pub fn to_all(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.store(false, Ordering::Relaxed);
    }
}

impl Rules {
    /// The rule that the body has broken.
    pub fn broken(&self) -> Option<&Violation> {
        self.broken.get()
    }

    /// The answer begins.
    #[must_use]
    pub fn answering(self: &Arc<Self>) -> Answering {
        self.answering.store(true, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// What is broken when nothing has arrived for `patience`.
    fn silent(patience: Duration) -> Violation {
        let words = format_args!("nothing arrived for {patience:?}");
        Violation::new(Reason::BodyTimeout, "body_timeout", words)
    }

    fn judge(&self, frame: &mut Frame<Bytes>) -> Result<(), Violation> {
        let most = self.limits.max_body_bytes;
        if let Some(trailers) = frame.trailers_mut() {
            fields::trailers(trailers, Sender::Client, &self.limits)?;
        } else if let (Some(data), 1..) = (frame.data_ref(), most) {
            let length = data.len() as u64;
            let bytes = self.bytes.fetch_add(length, Ordering::Relaxed) + length;
            if bytes > most {
                let words = format_args!("more than {most} bytes");
                return Err(Violation::new(
                    Reason::BodyTooLarge,
                    "body_too_large",
                    words,
                ));
            }
        }
        Ok(())
    }
}

/// The body of a message that hyper reads.
#[derive(Debug)]
pub struct Source {
    incoming: Incoming,
    /// Where its bytes are counted.
    counter: Option<IntCounter>,
    rules: Option<Arc<Rules>>,
    silence: Silence,
}

/// How long somebody has waited for the next frame of a body. One that is not asked for cannot
/// be late.
#[derive(Debug, Default)]
struct Silence {
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    /// Whether there was none for `patience`; not while `excused`. The timer is armed again when
    /// it fires and not before: a frame costs one look at the clock.
    fn is_over(&mut self, cx: &mut Context<'_>, patience: Duration, excused: bool) -> bool {
        let since = self.since.get_or_insert_with(Instant::now);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(*since + patience)));
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if excused {
                *since = now;
            } else if now >= *since + patience {
                return true;
            }
            timer.as_mut().reset(*since + patience);
        }
        false
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        let mut polled = Pin::new(&mut self.incoming)
            .poll_frame(cx)
            .map_err(Interrupted::Peer);
        let Some(rules) = &self.rules else {
            return polled;
        };
        let Poll::Ready(next) = &mut polled else {
            let patience = rules.limits.body_timeout;
            let excused = rules.answering.load(Ordering::Relaxed);
            if self.silence.is_over(cx, patience, excused) {
                let _ = rules.broken.set(Rules::silent(patience));
                return Poll::Ready(Some(Err(Interrupted::Refused)));
            }
            return Poll::Pending;
        };
        self.silence.since = None;
        if self.incoming.is_end_stream() || next.is_none() {
            rules.ended.store(true, Ordering::Relaxed);
        }
        if let Some(Ok(frame)) = next {
            if let (Some(counter), Some(data)) = (&self.counter, frame.data_ref()) {
                counter.inc_by(data.len() as u64);
            }
            if let Err(violation) = rules.judge(frame) {
                let _ = rules.broken.set(violation);
                return Poll::Ready(Some(Err(Interrupted::Refused)));
            }
        }
        polled
    }
}

/// The most of a request body that is held to be sent again, in bytes.
const MAX_TAPE: usize = 64 * 1024;

/// What was read of a request body, and the rest of it. Buffers are shared, not copied. The
/// lock is taken for each frame and never contended: of several readers only the last reads.
#[derive(Debug)]
struct Tape {
    source: Source,
    /// From the beginning; empty once it is not held any more.
    held: Vec<Held>,
    bytes: usize,
    /// Whether what is read is held: it may be wanted again and is not too much.
    holding: bool,
    /// The reader that counts.
    reader: usize,
}

#[derive(Clone, Debug)]
enum Held {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// Reads a tape from its beginning.
#[derive(Debug)]
pub struct Reader {
    tape: Arc<Mutex<Tape>>,
    next: usize,
    number: usize,
}

/// Gives a request body back for another try.
#[derive(Debug)]
pub struct Rewind(Option<Arc<Mutex<Tape>>>);

impl Rewind {
    /// There will be no other try: from here on nothing is held.
    pub fn release(self) {
        if let Some(tape) = self.0 {
            tape.lock().holding = false;
        }
    }

    /// The body once more, and earlier readers end; `None` if too much of it is gone.
    #[must_use]
    pub fn body(&self) -> Option<Body> {
        let Some(tape) = &self.0 else {
            return Some(Body::Empty);
        };
        let mut locked = tape.lock();
        if !locked.holding {
            return None;
        }
        locked.reader += 1;
        Some(Body::Taped(Reader {
            tape: tape.clone(),
            next: 0,
            number: locked.reader,
        }))
    }
}

impl Tape {
    fn hold(&mut self, frame: &Frame<Bytes>) {
        // What keeps a frame counts too: those of one byte each are the worst.
        self.bytes += size_of::<Held>() + frame.data_ref().map_or(0, Bytes::len);
        self.holding &= self.bytes <= MAX_TAPE;
        if !self.holding {
            // The reader is past all of it.
            self.held = Vec::new();
        } else if let Some(data) = frame.data_ref() {
            self.held.push(Held::Data(data.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            self.held.push(Held::Trailers(trailers.clone()));
        }
    }

    /// A body that broke off is never sent again: the error was said, and what is held of it
    /// would look whole.
    fn broke_off(&mut self) {
        self.holding = false;
        self.held = Vec::new();
    }

    /// What is held and was not read by a reader that will read `next`.
    fn ahead(&self, next: usize) -> &[Held] {
        self.held.get(next..).unwrap_or_default()
    }
}

impl Reader {
    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        let tape = &mut *self.tape.lock();
        if self.number != tape.reader {
            return Poll::Ready(None);
        }
        if let Some(held) = tape.held.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(match held.clone() {
                Held::Data(data) => Frame::data(data),
                Held::Trailers(trailers) => Frame::trailers(trailers),
            })));
        }
        let polled = tape.source.poll(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                tape.hold(frame);
                self.next += 1;
            }
            Poll::Ready(Some(Err(_))) => tape.broke_off(),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let tape = self.tape.lock();
        tape.ahead(self.next).is_empty() && tape.source.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let tape = self.tape.lock();
        let bytes = tape.ahead(self.next).iter().map(|held| match held {
            Held::Data(data) => data.len() as u64,
            Held::Trailers(_) => 0,
        });
        let (ahead, rest) = (bytes.sum::<u64>(), tape.source.incoming.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + ahead);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint
    }
}

impl Body {
    /// The body of an answer; an empty one costs nothing later.
    #[must_use]
    pub fn answer(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        Self::Incoming(Source {
            incoming,
            counter: None,
            rules: None,
            silence: Silence::default(),
        })
    }

    /// The body of a request, and what it is held to; nothing if it is empty.
    #[must_use]
    pub fn request(incoming: Incoming, limits: &Arc<Limits>) -> (Self, Option<Arc<Rules>>) {
        if incoming.is_end_stream() {
            return (Self::Empty, None);
        }
        let rules = Arc::new(Rules {
            limits: limits.clone(),
            bytes: AtomicU64::new(0),
            answering: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            broken: OnceLock::new(),
        });
        let body = Self::Incoming(Source {
            incoming,
            counter: None,
            rules: Some(rules.clone()),
            silence: Silence::default(),
        });
        (body, Some(rules))
    }

    /// Not asked for until the gate is open.
    #[must_use]
    pub fn gated(self, gate: Gate) -> Self {
        match self {
            Self::Incoming(source) => Self::Gated(source, gate),
            other => other,
        }
    }
}

impl Body {
    /// Makes a request body one that can be sent again. `None` for what waits for a word of
    /// the server before it is sent.
    pub fn tape(&mut self) -> Option<Rewind> {
        match std::mem::take(self) {
            Self::Empty => Some(Rewind(None)),
            Self::Incoming(source) => {
                let tape = Arc::new(Mutex::new(Tape {
                    source,
                    held: Vec::new(),
                    bytes: 0,
                    holding: true,
                    reader: 0,
                }));
                *self = Self::Taped(Reader {
                    tape: tape.clone(),
                    next: 0,
                    number: 0,
                });
                Some(Rewind(Some(tape)))
            }
            Self::Taped(reader) => {
                let tape = reader.tape.clone();
                *self = Self::Taped(reader);
                Some(Rewind(Some(tape)))
            }
            other @ (Self::Full(_) | Self::Gated(..)) => {
                *self = other;
                None
            }
        }
    }

    /// Counts the bytes of a body that is read from the other side.
    pub fn count(&mut self, counter: Option<IntCounter>) {
        if let Self::Incoming(source) = self {
            source.counter = counter;
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Incoming(source) => source.poll(cx),
            Self::Taped(reader) => reader.poll(cx),
            Self::Gated(source, gate) => {
                ready!(gate.poll_open(cx));
                source.poll(cx)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Incoming(source) | Self::Gated(source, _) => source.incoming.is_end_stream(),
            Self::Taped(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Incoming(source) | Self::Gated(source, _) => source.incoming.size_hint(),
            Self::Taped(reader) => reader.size_hint(),
        }
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, Interrupted>>>;

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

    use http::Response;
    use http_body_util::{BodyExt, Empty};
    use hyper::{server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{io::AsyncWriteExt, sync::mpsc, time::timeout};

    use super::{Body, Silence};
    use crate::limits::Limits;

    /// The body of a request whose bytes after the head are these.
    async fn body(bytes: impl AsRef<[u8]>) -> Body {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let (bodies, mut came) = mpsc::channel(1);
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let bodies = bodies.clone();
            async move {
                let _ = bodies.send(request.into_body()).await;
                // The connection stays until the body is read.
                bodies.closed().await;
                Ok::<_, std::convert::Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
            }
        });
        tokio::spawn(async move {
            let serving = http1::Builder::new().serve_connection(TokioIo::new(server), service);
            let _ = serving.await;
        });
        let head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        client.write_all(head).await.unwrap();
        client.write_all(bytes.as_ref()).await.unwrap();
        drop(client);
        let incoming = came.recv().await.unwrap();
        tokio::spawn(async move { came.recv().await });
        Body::request(incoming, &Arc::new(Limits::default())).0
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_while_somebody_listens_and_is_not_excused() {
        const PATIENCE: Duration = Duration::from_secs(5);
        /// Whether it was over when somebody has listened for so many seconds.
        async fn over(silence: &mut Silence, seconds: u64, excused: bool) -> bool {
            let listening = poll_fn(|cx| match silence.is_over(cx, PATIENCE, excused) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            });
            let listening = timeout(Duration::from_secs(seconds), listening);
            listening.await.is_ok()
        }
        let mut silence = Silence::default();
        assert!(!over(&mut silence, 4, false).await);
        // A frame, and nobody asks for the next.
        silence.since = None;
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!over(&mut silence, 4, false).await);
        assert!(over(&mut silence, 2, false).await);
        silence.since = None;
        assert!(!over(&mut silence, 60, true).await);
        assert!(!over(&mut silence, 3, false).await);
        assert!(over(&mut silence, 3, false).await);
    }

    #[tokio::test]
    async fn what_is_taped_can_be_read_again() {
        let mut first = body(b"3\r\nabc\r\n0\r\n\r\n").await;
        let rewind = first.tape().unwrap();
        assert_eq!(first.collect().await.unwrap().to_bytes(), "abc");
        let second = rewind.body().unwrap();
        assert_eq!(second.collect().await.unwrap().to_bytes(), "abc");
    }

    #[tokio::test]
    async fn many_small_frames_are_not_held() {
        for (chunks, held) in [(50, true), (2_000, false)] {
            let mut first = body("1\r\na\r\n".repeat(chunks) + "0\r\n\r\n").await;
            let rewind = first.tape().unwrap();
            assert_eq!(first.collect().await.unwrap().to_bytes().len(), chunks);
            assert_eq!(rewind.body().is_some(), held, "{chunks}");
        }
    }

    /// Read again, it would be what came before it broke off, with an end.
    #[tokio::test]
    async fn what_broke_off_cannot_be_read_again() {
        for bytes in [&b"3\r\nabc\r\nbad"[..], b"bad\r\n", b"3\r\nab"] {
            let mut first = body(bytes).await;
            let rewind = first.tape().unwrap();
            first.collect().await.unwrap_err();
            assert!(rewind.body().is_none(), "{bytes:?}");
        }
    }
}
