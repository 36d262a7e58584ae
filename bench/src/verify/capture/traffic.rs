//! The load of an application that knows nothing of the mesh, from inside of its host: 2,000
//! requests a second over keep-alive HTTP/1.1, HTTP/2, gRPC streams and WebSockets, sent by
//! the clock. A client as good ones are: it reads GOAWAY and `connection: close`, looks
//! whether an idle connection has ended before it uses it, and tries nothing twice but what a
//! GOAWAY says was not looked at (RFC 9113 6.8), as clients of gRPC and HTTP/2 do.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{Context as _, Error, Result};
use crate::load::http2::grpc_frame;
use crate::load::{http1, response};
use crate::netns::Host;
use crate::ws;

/// A response that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections and, on each, the time between two requests: 1,200 + 600 + 100 + 100 a second.
const HTTP1: (u32, Duration) = (24, Duration::from_millis(20));
const HTTP2: (u32, Duration) = (6, Duration::from_millis(10));
const STREAMS: (u32, Duration) = (8, Duration::from_millis(80));
const MESSAGE: &[u8] = &[b'm'; 100];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Http1,
    Http2,
    Grpc,
    WebSocket,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Grpc, Self::WebSocket];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "http/2",
            Self::Grpc => "grpc",
            Self::WebSocket => "websocket",
        }
    }
}

/// What became of one request, or of one message of a stream.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) kind: Kind,
    /// When its stream began, if it is a message of one that has begun.
    pub(super) began: Option<std::time::Instant>,
    /// When it was to go out, and when its answer was there.
    pub(super) due: std::time::Instant,
    pub(super) done: std::time::Instant,
    pub(super) result: std::result::Result<(), String>,
}

/// A load that is running; stops when dropped.
#[derive(Debug)]
pub(super) struct Traffic {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the tasks of one load share.
struct Shared {
    target: SocketAddr,
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
}

impl Traffic {
    /// Calls the application `backend` at `target`, from the host.
    pub(super) fn start(host: &Host, target: SocketAddr) -> Result<Self> {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("a runtime for the load")?;
        let shared = (samples.clone(), stop.clone());
        let thread = host.within(|| {
            std::thread::spawn(move || {
                let (samples, stop) = shared;
                let shared = Rc::new(Shared {
                    target,
                    samples,
                    stop,
                });
                LocalSet::new().block_on(&runtime, drive(&shared));
            })
        })?;
        Ok(Self {
            samples,
            stop,
            thread: Some(thread),
        })
    }

    /// What has come to an end since the last call.
    pub(super) fn take(&self) -> Vec<Sample> {
        std::mem::take(&mut self.samples.lock())
    }

    /// Ends the load after what is in flight; returns what `take` would.
    pub(super) async fn finish(mut self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let join = tokio::task::spawn_blocking(move || thread.join());
            join.await
                .context("the load")?
                .map_err(|_| Error::new("the load panicked"))?;
        }
        Ok(self.take())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn add(&self, kind: Kind, began: Option<Instant>, due: Instant, result: &Result<()>) {
        let result = result.as_ref().copied().map_err(ToString::to_string);
        let sample = Sample {
            kind,
            began: began.map(Instant::into_std),
            due: due.into_std(),
            done: std::time::Instant::now(),
            result,
        };
        self.samples.lock().push(sample);
    }

    async fn connect(&self) -> Result<TcpStream> {
        let stream = timeout(PATIENCE, TcpStream::connect(self.target))
            .await
            .context("connect")?
            .context("connect")?;
        stream.set_nodelay(true).context("connect")?;
        Ok(stream)
    }

    async fn http2(&self) -> Result<SendRequest<Bytes>> {
        let stream = self.connect().await?;
        let (sender, connection) = timeout(PATIENCE, h2::client::handshake(stream))
            .await
            .context("HTTP/2")?
            .context("HTTP/2")?;
        // Its end is seen by the requests on it.
        spawn_local(async move { drop(connection.await) });
        Ok(sender)
    }

    fn request(&self, path: &str) -> http::request::Builder {
        Request::builder().uri(format!("http://{}{path}", self.target))
    }
}

async fn drive(shared: &Rc<Shared>) {
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for (kind, (connections, interval)) in
        Kind::ALL.into_iter().zip([HTTP1, HTTP2, STREAMS, STREAMS])
    {
        for i in 0..connections {
            let (shared, first) = (shared.clone(), start + interval * i / connections);
            tasks.spawn_local(async move {
                match kind {
                    Kind::Http1 => http1_loop(&shared, first, interval).await,
                    Kind::Http2 => http2_loop(&shared, first, interval).await,
                    Kind::Grpc | Kind::WebSocket => {
                        let messages = 12 + 12 * i / connections;
                        session_loop(&shared, kind, first, interval, messages).await;
                    }
                }
            });
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn http1_loop(shared: &Shared, mut due: Instant, interval: Duration) {
    let request = http1::request(&shared.target.to_string(), "/");
    let mut connection = None;
    while !shared.stopped() {
        sleep_until(due).await;
        let result = http1_exchange(shared, &mut connection, request.as_bytes()).await;
        if result.is_err() {
            connection = None;
        }
        shared.add(Kind::Http1, None, due, &result);
        due += interval;
    }
}

async fn http1_exchange(
    shared: &Shared,
    connection: &mut Option<TcpStream>,
    request: &[u8],
) -> Result<()> {
    if connection
        .as_ref()
        .is_some_and(|stream| matches!(stream.try_read(&mut [0]), Ok(0)))
    {
        *connection = None;
    }
    let stream = match connection {
        Some(stream) => stream,
        None => connection.insert(shared.connect().await?),
    };
    stream.write_all(request).await.context("write")?;
    let mut buffer = BytesMut::with_capacity(4096);
    loop {
        read(stream, &mut buffer).await?;
        let Some(head) = response::parse(&buffer).map_err(Error::new)? else {
            continue;
        };
        let body = head.body.context("the response has no content-length")?;
        if buffer.len() < head.length + body {
            continue;
        }
        let reason = head.header("weft-reason").unwrap_or("-");
        let result = expect(head.status, reason);
        if head.closes() {
            *connection = None;
        }
        return result;
    }
}

fn expect(status: u16, reason: &str) -> Result<()> {
    if status == 200 {
        return Ok(());
    }
    Err(Error::new(format!("status {status} {reason}")))
}

async fn read(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<()> {
    let n = timeout(PATIENCE, stream.read_buf(buffer))
        .await
        .context("read")?
        .context("read")?;
    if n == 0 {
        return Err(Error::new(format!(
            "closed after {} bytes of the answer",
            buffer.len()
        )));
    }
    Ok(())
}

async fn http2_loop(shared: &Rc<Shared>, mut due: Instant, interval: Duration) {
    let mut connection = None;
    let mut tasks = JoinSet::new();
    while !shared.stopped() {
        sleep_until(due).await;
        match usable(shared, &mut connection).await {
            Ok(mut sender) => {
                let shared = shared.clone();
                tasks.spawn_local(async move {
                    let result = http2_exchange(&shared, &mut sender).await;
                    shared.add(Kind::Http2, None, due, &result);
                });
            }
            Err(error) => shared.add(Kind::Http2, None, due, &Err(error)),
        }
        while tasks.try_join_next().is_some() {}
        due += interval;
    }
    while tasks.join_next().await.is_some() {}
}

/// The connection if it takes another stream, else a new one.
async fn usable(
    shared: &Shared,
    connection: &mut Option<SendRequest<Bytes>>,
) -> Result<SendRequest<Bytes>> {
    if let Some(sender) = connection
        && let Ok(Ok(())) = timeout(PATIENCE, poll_fn(|cx| sender.poll_ready(cx))).await
    {
        return Ok(sender.clone());
    }
    *connection = None;
    let mut sender = shared.http2().await?;
    poll_fn(|cx| sender.poll_ready(cx))
        .await
        .context("HTTP/2")?;
    Ok(connection.insert(sender).clone())
}

async fn http2_exchange(shared: &Shared, sender: &mut SendRequest<Bytes>) -> Result<()> {
    let exchange = async {
        let response = loop {
            let request = shared.request("/").body(()).context("request")?;
            let (response, _) = sender.send_request(request, true).context("send")?;
            match response.await {
                Err(error) if not_looked_at(&error) => {
                    *sender = usable(shared, &mut None).await?;
                }
                answered => break answered.context("response")?,
            }
        };
        let reason = response
            .headers()
            .get("weft-reason")
            .and_then(|value| value.to_str().ok());
        expect(response.status().as_u16(), reason.unwrap_or("-"))?;
        let mut body = response.into_body();
        let mut received = 0;
        while let Some(data) = body.data().await {
            let data = data.context("body")?;
            received += data.len();
            // It fails only when the stream is over, and then nothing is lost.
            let _ = body.flow_control().release_capacity(data.len());
        }
        if received == 100 {
            Ok(())
        } else {
            Err(Error::new(format!("{received} bytes of 100")))
        }
    };
    timeout(PATIENCE, exchange).await.context("no answer")?
}

/// Whether the stream is above the last one of a GOAWAY.
fn not_looked_at(error: &h2::Error) -> bool {
    error.is_remote() && error.is_go_away()
}

/// Streams, one after the other: `messages` in each, the next when the last has come back.
async fn session_loop(
    shared: &Shared,
    kind: Kind,
    first: Instant,
    interval: Duration,
    messages: u32,
) {
    let mut due = first;
    let mut connection = None;
    while !shared.stopped() {
        sleep_until(due).await;
        let clock = Clock {
            shared,
            kind,
            began: None,
            due,
            interval,
            left: messages,
        };
        let clock = match kind {
            Kind::Grpc => grpc_session(&mut connection, clock).await,
            _ => websocket_session(clock).await,
        };
        due = clock.due;
    }
}

/// When the messages of a session are due, and what becomes of them.
struct Clock<'a> {
    shared: &'a Shared,
    kind: Kind,
    /// When the first message was due, once it has come back.
    began: Option<Instant>,
    due: Instant,
    interval: Duration,
    left: u32,
}

impl Clock<'_> {
    /// Counts the message that was due; `true` if another one is to be sent, when it is due.
    async fn next(&mut self, result: &Result<()>) -> bool {
        self.shared.add(self.kind, self.began, self.due, result);
        self.began.get_or_insert(self.due);
        self.due += self.interval;
        self.left = self.left.saturating_sub(1);
        let more = result.is_ok() && self.left > 0;
        if more {
            sleep_until(self.due).await;
        }
        more
    }
}

async fn grpc_session<'a>(
    connection: &mut Option<SendRequest<Bytes>>,
    mut clock: Clock<'a>,
) -> Clock<'a> {
    let start = async {
        let mut sender = usable(clock.shared, connection).await?;
        let request = clock.shared.request("/bench.Echo/Stream").method("POST");
        let request = request
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = request.body(()).context("request")?;
        sender.send_request(request, false).context("send")
    };
    let (response, mut send) = match start.await {
        Ok(stream) => stream,
        Err(error) => {
            clock.next(&Err(error)).await;
            return clock;
        }
    };
    let frame = grpc_frame(MESSAGE);
    let (mut response, mut body) = (Some(response), None);
    loop {
        let last = clock.left == 1;
        let exchange = async {
            let sent = send.send_data(frame.clone(), last);
            if let Some(response) = response.take() {
                let response = match response.await {
                    Err(error) if not_looked_at(&error) => return Ok(Progress::Again),
                    answered => answered.context("response")?,
                };
                sent.context("send")?;
                expect(response.status().as_u16(), "-")?;
                if let Some(status) = response.headers().get("grpc-status") {
                    let reason = response.headers().get("weft-reason");
                    return Err(Error::new(format!("grpc-status {status:?} {reason:?}")));
                }
                body = Some(response.into_body());
            } else {
                sent.context("send")?;
            }
            let body = body.as_mut().context("no response")?;
            let mut received = 0;
            while received < frame.len() {
                let data = body
                    .data()
                    .await
                    .context("the stream ended early")?
                    .context("body")?;
                received += data.len();
                // It fails only when the stream is over, and then nothing is lost.
                let _ = body.flow_control().release_capacity(data.len());
            }
            if !last {
                return Ok(Progress::Back);
            }
            while let Some(data) = body.data().await {
                data.context("body")?;
            }
            let trailers = body.trailers().await.context("trailers")?;
            let status = trailers
                .as_ref()
                .and_then(|trailers| trailers.get("grpc-status"));
            match status {
                Some(status) if status == "0" => Ok(Progress::Back),
                status => Err(Error::new(format!("grpc-status {status:?}"))),
            }
        };
        let result = timeout(PATIENCE, exchange)
            .await
            .context("no answer")
            .flatten();
        let result = match result {
            // The next session begins with the message that was due.
            Ok(Progress::Again) => return clock,
            Ok(Progress::Back) => Ok(()),
            Err(error) => Err(error),
        };
        if !clock.next(&result).await {
            return clock;
        }
    }
}

/// What became of a message of a gRPC stream.
enum Progress {
    /// It has come back.
    Back,
    /// The server has not looked at the stream.
    Again,
}

async fn websocket_session(mut clock: Clock<'_>) -> Clock<'_> {
    let mut stream = match websocket_open(clock.shared).await {
        Ok(stream) => stream,
        Err(error) => {
            clock.next(&Err(error)).await;
            return clock;
        }
    };
    let frame = ws::Frame {
        opcode: ws::TEXT,
        payload: MESSAGE.to_vec(),
    };
    let bytes = ws::encode(&frame, Some([1, 2, 3, 4]));
    loop {
        let exchange = async {
            stream.write_all(&bytes).await.context("write")?;
            let mut buffer = BytesMut::new();
            loop {
                read(&mut stream, &mut buffer).await?;
                let mut received = buffer.to_vec();
                match ws::decode(&mut received).map_err(Error::new)? {
                    Some(answer) if answer == frame => return Ok(()),
                    Some(answer) => {
                        return Err(Error::new(format!("answered opcode {}", answer.opcode)));
                    }
                    None => {}
                }
            }
        };
        let result = exchange.await;
        if !clock.next(&result).await {
            return clock;
        }
    }
}

async fn websocket_open(shared: &Shared) -> Result<TcpStream> {
    let mut stream = shared.connect().await?;
    let request = format!(
        "GET /socket HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        shared.target
    );
    stream
        .write_all(request.as_bytes())
        .await
        .context("write")?;
    let mut buffer = BytesMut::new();
    loop {
        read(&mut stream, &mut buffer).await?;
        if let Some(head) = response::parse(&buffer).map_err(Error::new)? {
            return if head.status == 101 {
                Ok(stream)
            } else {
                Err(Error::new(format!(
                    "status {} {}",
                    head.status,
                    head.header("weft-reason").unwrap_or("-")
                )))
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;
    use crate::netns::{self, Family, Network};

    /// Straight to the application nothing is lost, and the rate is what it says.
    #[tokio::test]
    async fn an_application_answers_all_of_it() {
        if let Some(missing) = netns::missing() {
            eprintln!("skipped: {missing}");
            return;
        }
        let network = Network::new().unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
        let options = backend::Options {
            listen,
            tcp: None,
            name: "v1".to_owned(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _server = network
            .router
            .within(|| std::thread::spawn(move || runtime.block_on(backend::run(options))))
            .unwrap();
        network.router.connect(listen).await.ok();
        let traffic = Traffic::start(&network.router, listen).unwrap();
        let start = Instant::now();
        let mut samples = Vec::new();
        while samples.len() < 2000 && start.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
            samples.extend(traffic.take());
        }
        let took = start.elapsed();
        samples.extend(traffic.finish().await.unwrap());
        let failure = samples.iter().find(|sample| sample.result.is_err());
        assert!(failure.is_none(), "{failure:?}");
        assert!(
            (0.8..3.0).contains(&took.as_secs_f64()),
            "2000 requests in {took:?}"
        );
        for kind in Kind::ALL {
            assert!(samples.iter().any(|sample| sample.kind == kind), "{kind:?}");
        }
        assert_eq!(network.router.ip(Family::V4), netns::address(0, Family::V4));
    }
}
