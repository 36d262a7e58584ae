//! An origin that does what a script says, connection by connection: HTTP/1 in raw bytes or
//! HTTP/2 in raw frames, right or wrong, with waits and ends of every kind.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{Log, Server, anywhere};
use crate::raw1::Slicing;
use crate::raw2::{Frame, POLITE, Peer};
use crate::strict;

/// The stream of the newest request, for [`Step::Frame`].
pub const NEWEST: u32 = u32::MAX;
/// A head longer than this is none.
const MOST_HEAD: usize = 16 << 20;
/// Repetitions within each other.
const DEEPEST: usize = 8;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// HTTP/1: reads the head of a request, up to its empty line.
    Head,
    /// HTTP/1: reads a whole request, strictly.
    Request,
    /// HTTP/2: reads the client's preface and sends these SETTINGS.
    Accept(Vec<(u16, u32)>),
    /// HTTP/2: reads until one more request has come; it is [`NEWEST`] then.
    Stream,
    /// HTTP/2: reads until a frame of this type comes.
    Await(u8),
    /// Writes bytes.
    Bytes(Vec<u8>),
    /// Writes bytes in slices.
    Sliced(Vec<u8>, Slicing),
    /// HTTP/2: writes a frame; [`NEWEST`] stands for a stream.
    Frame(Frame),
    /// Waits so long.
    Sleep(Duration),
    /// Waits until the test says [`Script::go`].
    Wait,
    /// Does steps so many times.
    Repeat(usize, Vec<Self>),
    /// Reads and forgets until the other side closes.
    Drain,
    /// FIN, and goes on reading.
    HalfClose,
    /// Ends the connection; RST if something was not read.
    Close,
    /// Ends the connection with RST.
    Reset,
}

/// What a connection has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The targets of the requests whose heads were read.
    pub targets: Vec<String>,
    /// Steps that were done, repetitions counted.
    pub steps: usize,
    /// What went wrong, if a step could not be done. Not an error: a peer that closes early.
    pub failure: Option<String>,
    /// Whether it has ended.
    pub ended: bool,
}

/// The origin.
pub struct Script {
    server: Server,
    log: Arc<Log<Record>>,
    gate: Arc<Semaphore>,
}

impl Script {
    /// Listens on a free port of 127.0.0.1; `steps` says what each connection does, by its
    /// number from 0. After its last step a connection is closed.
    pub async fn start(steps: impl Fn(usize) -> Vec<Step> + Send + 'static) -> io::Result<Self> {
        Self::on(anywhere().await?, steps)
    }

    /// Serves a listener.
    pub fn on(
        listener: TcpListener,
        steps: impl Fn(usize) -> Vec<Step> + Send + 'static,
    ) -> io::Result<Self> {
        let log: Arc<Log<Record>> = Arc::default();
        let gate = Arc::new(Semaphore::new(0));
        let (shared, shared_gate) = (log.clone(), gate.clone());
        let server = Server::new(listener, move |number, stream| {
            let (log, steps) = (shared.clone(), steps(number));
            log.change(|records| records.push(Record::default()));
            let mut player = Player {
                peer: Some(Peer::silent(stream).manners(POLITE)),
                newest: 0,
                number,
                log: log.clone(),
                gate: shared_gate.clone(),
            };
            async move {
                let played = player.play(&steps, 0).await;
                // Before the log says so.
                player.peer.take();
                log.change(|records| {
                    records[number].failure = played.err().map(|error| error.to_string());
                    records[number].ended = true;
                });
            }
        })?;
        Ok(Self { server, log, gate })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Lets one [`Step::Wait`] go on, also one that is still to come.
    pub fn go(&self) {
        self.gate.add_permits(1);
    }

    /// What has happened so far, by connection.
    pub fn records(&self) -> Vec<Record> {
        self.log.seen()
    }

    /// Waits until what has happened is as wanted.
    pub async fn until(
        &self,
        what: &str,
        patience: Duration,
        is_wanted: impl Fn(&[Record]) -> bool,
    ) -> io::Result<Vec<Record>> {
        self.log.until(what, patience, is_wanted).await
    }
}

/// One connection.
struct Player {
    /// None once it has ended.
    peer: Option<Peer<TcpStream>>,
    newest: u32,
    number: usize,
    log: Arc<Log<Record>>,
    gate: Arc<Semaphore>,
}

type Playing<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

impl Player {
    fn play<'a>(&'a mut self, steps: &'a [Step], depth: usize) -> Playing<'a> {
        Box::pin(async move {
            for step in steps {
                match step {
                    Step::Repeat(_, _) if depth >= DEEPEST => {
                        return Err(io::Error::other("repetitions too deep"));
                    }
                    Step::Repeat(times, steps) => {
                        for _ in 0..*times {
                            self.play(steps, depth + 1).await?;
                        }
                    }
                    step => self.take(step).await?,
                }
                let number = self.number;
                self.log.change(|records| records[number].steps += 1);
            }
            Ok(())
        })
    }

    async fn take(&mut self, step: &Step) -> io::Result<()> {
        let Some(peer) = &mut self.peer else {
            return Err(io::Error::other("a step after the end"));
        };
        match step {
            Step::Head => {
                let head = head(peer).await?;
                let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
                let line = String::from_utf8_lossy(line).into_owned();
                let target = line.split(' ').nth(1).unwrap_or_default();
                self.came(target);
            }
            Step::Request => {
                let target = request(peer).await?;
                self.came(&target);
            }
            Step::Accept(settings) => peer.welcome(settings).await?,
            Step::Stream => {
                self.newest = peer.request(self.newest).await?;
                let message = peer.message(self.newest);
                let path = message.map_or_else(String::new, |message| message.header(":path"));
                self.came(&path);
            }
            Step::Await(kind) => {
                peer.until(|frame| frame.kind == *kind).await?;
            }
            Step::Bytes(bytes) => peer.write(bytes).await?,
            Step::Sliced(bytes, slicing) => {
                for slice in slicing.of(bytes) {
                    peer.write(slice).await?;
                    tokio::task::yield_now().await;
                }
            }
            Step::Frame(frame) => {
                let mut frame = frame.clone();
                if frame.stream == NEWEST {
                    frame.stream = self.newest;
                }
                peer.send(&frame).await?;
            }
            Step::Sleep(time) => tokio::time::sleep(*time).await,
            Step::Wait => {
                let permit = self.gate.acquire().await;
                permit.map_err(io::Error::other)?.forget();
            }
            Step::Repeat(_, _) => {}
            Step::Drain => {
                while peer.fill().await? {
                    peer.unread().clear();
                }
            }
            Step::HalfClose => peer.stream().shutdown().await?,
            Step::Close => self.peer = None,
            Step::Reset => {
                peer.stream().set_zero_linger()?;
                self.peer = None;
            }
        }
        Ok(())
    }

    fn came(&self, target: &str) {
        let number = self.number;
        self.log
            .change(|records| records[number].targets.push(target.to_owned()));
    }
}

async fn more(peer: &mut Peer) -> io::Result<()> {
    match peer.fill().await? {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A head, with what follows left unread.
async fn head(peer: &mut Peer) -> io::Result<Vec<u8>> {
    loop {
        let unread = peer.unread();
        if let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(unread.drain(..end + 4).collect());
        }
        if unread.len() > MOST_HEAD {
            return Err(io::Error::other("a head without end"));
        }
        more(peer).await?;
    }
}

/// The target of a whole request, with what follows left unread.
async fn request(peer: &mut Peer) -> io::Result<String> {
    let mut reader = strict::Reader::requests();
    let mut read = 0;
    loop {
        let unread = peer.unread();
        reader.push(&unread[read..]).map_err(io::Error::other)?;
        read = unread.len();
        if let Some(request) = reader.take() {
            unread.drain(..request.end);
            return Ok(request.target().to_owned());
        }
        more(peer).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PATIENCE;
    use crate::raw1::{Client, End};
    use crate::raw2::Block;
    use crate::raw2::frame::{DATA, END_STREAM};

    const GET: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";

    fn ok() -> Step {
        Step::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())
    }

    #[tokio::test]
    async fn http1_goes_by_the_script() {
        let script = Script::start(|number| match number {
            0 => vec![
                Step::Repeat(2, vec![Step::Request, ok()]),
                Step::Head,
                Step::Wait,
                Step::Sliced(b"HTTP/1.1 200 OK\r\n\r\nbye".to_vec(), Slicing::Pieces(3)),
                Step::HalfClose,
                Step::Drain,
            ],
            1 => vec![Step::Head, Step::Reset],
            _ => vec![Step::Request, Step::Close, ok()],
        })
        .await
        .unwrap();
        let mut client = Client::connect(script.address()).await.unwrap();
        client.expect(strict::Asked::Plain);
        client.expect(strict::Asked::Plain);
        client.write(GET.repeat(2)).await.unwrap();
        for _ in 0..2 {
            assert_eq!(client.answer().await.unwrap().text(), "ok");
        }
        client.send(GET).await.unwrap();
        script.go();
        assert_eq!(client.answer().await.unwrap().text(), "bye");
        drop(client);
        let ended = |records: &[Record]| records[0].ended;
        let records = script.until("the end", PATIENCE, ended).await.unwrap();
        assert_eq!((records[0].targets.len(), &records[0].failure), (3, &None));
        let mut client = Client::connect(script.address()).await.unwrap();
        client.send(GET).await.unwrap();
        assert_eq!(client.ended().await.unwrap(), End::Reset);
        let mut client = Client::connect(script.address()).await.unwrap();
        client.send(GET).await.unwrap();
        assert_eq!(client.ended().await.unwrap(), End::Closed);
        let ended = |records: &[Record]| records.iter().all(|record| record.ended);
        let records = script.until("the end", PATIENCE, ended).await.unwrap();
        assert_eq!(records[2].failure.as_deref(), Some("a step after the end"));
    }

    #[tokio::test]
    async fn http2_goes_by_the_script() {
        let head = Frame::headers(NEWEST, 0, Block::answer(200).bytes());
        let script = Script::start(move |_| {
            vec![
                Step::Accept(vec![]),
                Step::Stream,
                Step::Frame(head.clone()),
                Step::Await(DATA),
                Step::Frame(Frame::data(NEWEST, END_STREAM, *b"ok")),
                Step::Stream,
                Step::Frame(Frame::goaway(1, 0)),
                Step::Drain,
            ]
        })
        .await
        .unwrap();
        let mut peer = Peer::connect(script.address(), &[]).await.unwrap();
        let block = Block::request("POST", "a", "/one").bytes();
        let body = Frame::data(1, END_STREAM, *b"x");
        peer.send_all(&[Frame::headers(1, 0, block), body])
            .await
            .unwrap();
        assert_eq!(peer.whole(1).await.unwrap().body, b"ok");
        peer.get(3, "a", "/two").await.unwrap();
        let goaway = peer
            .until(|frame| frame.kind == crate::raw2::frame::GOAWAY)
            .await;
        assert_eq!(goaway.unwrap().number(0), 1);
        assert_eq!(script.records()[0].targets, ["/one", "/two"]);
    }
}
