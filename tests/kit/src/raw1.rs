//! A raw HTTP/1 client: sends any bytes in any slices, reads answers strictly, and says how
//! the other side ended the connection. Over any stream, so over TLS as well.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::strict::{Asked, Message, Reader};
use crate::{PATIENCE, within};

/// What is kept of what a connection received.
const KEPT: usize = 4 << 20;

/// How bytes are cut into writes. With `TCP_NODELAY` each write is a segment, and a server
/// that is quick reads each of them alone; with [`Client::pace`] every server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slicing {
    /// One write.
    Whole,
    /// Writes of so many bytes, at least 1.
    Pieces(usize),
    /// Two writes, the second from this offset on.
    At(usize),
}

impl Slicing {
    /// The slices, none of them empty.
    pub fn of(self, bytes: &[u8]) -> Vec<&[u8]> {
        match self {
            Self::Pieces(size) => bytes.chunks(size.max(1)).collect(),
            Self::At(at) if (1..bytes.len()).contains(&at) => {
                let (first, second) = bytes.split_at(at);
                vec![first, second]
            }
            Self::Whole | Self::At(_) => vec![bytes],
        }
    }
}

/// How a connection ended, as seen by who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// FIN.
    Closed,
    /// RST, or TLS without its goodbye.
    Reset,
    /// Not at all: it was still open when patience ran out.
    Open,
}

impl End {
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Open,
            _ => Self::Reset,
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client<S = TcpStream> {
    stream: S,
    reader: Reader,
    received: Vec<u8>,
    patience: Duration,
    pace: Duration,
}

impl Client {
    /// Connects, without Nagle's delay.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = within(PATIENCE, "connect", TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self::new(stream))
    }

    /// Ends the connection with RST.
    pub fn reset(self) -> io::Result<()> {
        self.stream.set_zero_linger()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Speaks over this stream.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            reader: Reader::answers(),
            received: Vec::new(),
            patience: PATIENCE,
            pace: Duration::ZERO,
        }
    }

    /// How long any one read or write may take; 10 s unless set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long to wait between two slices; not at all unless set.
    #[must_use]
    pub fn pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// The stream itself.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Writes bytes, and says nothing about answers: see [`expect`](Self::expect).
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.write_sliced(bytes, Slicing::Whole).await
    }

    /// Writes bytes in slices.
    pub async fn write_sliced(
        &mut self,
        bytes: impl AsRef<[u8]>,
        slicing: Slicing,
    ) -> io::Result<()> {
        let slices = slicing.of(bytes.as_ref());
        write_slices(&mut self.stream, &slices, self.pace, self.patience).await
    }

    /// Says what the next answer will be for.
    pub fn expect(&mut self, asked: Asked) {
        self.reader.expect(asked);
    }

    /// Writes one request; its answer is expected.
    pub async fn send(&mut self, request: impl AsRef<[u8]>) -> io::Result<()> {
        self.expect(Asked::of(request.as_ref()));
        self.write(request).await
    }

    /// Writes one request and reads its answer.
    pub async fn exchange(&mut self, request: impl AsRef<[u8]>) -> io::Result<Message> {
        self.send(request).await?;
        self.answer().await
    }

    /// The next answer that is not an interim one.
    pub async fn answer(&mut self) -> io::Result<Message> {
        loop {
            let message = self.next().await?;
            if message.status() == 101 || message.status() >= 200 {
                return Ok(message);
            }
        }
    }

    /// The next answer, also an interim one. An answer that is not strictly one is an error of
    /// kind `InvalidData`.
    pub async fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.reader.take() {
                return Ok(message);
            }
            if !self.fill().await? {
                self.reader.end().map_err(invalid)?;
                let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed");
                return self.reader.take().ok_or_else(closed);
            }
        }
    }

    /// The head of an answer whose body is still to come (or the whole, if that is here).
    pub async fn head(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.reader.take() {
                return Ok(message);
            }
            if let Some(message) = self.reader.current() {
                return Ok(message.clone());
            }
            if !self.fill().await? {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed"));
            }
        }
    }

    /// After a switch of protocols: some bytes; none at the end.
    pub async fn opaque(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let bytes = self.reader.take_opaque();
            if !bytes.is_empty() || !self.fill().await? {
                return Ok(bytes);
            }
        }
    }

    /// Says that nothing more will be written.
    pub async fn half_close(&mut self) -> io::Result<()> {
        within(self.patience, "half-close", self.stream.shutdown()).await?
    }

    /// How the other side ends the connection; what it still sends must be answers that are
    /// expected.
    pub async fn ended(&mut self) -> io::Result<End> {
        loop {
            match self.fill().await {
                Ok(true) => {}
                Ok(false) => return Ok(End::Closed),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
                Err(error) => return Ok(End::of(&error)),
            }
        }
    }

    /// Everything that was received, up to 4 MiB.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Reads some bytes; `false` at the end.
    async fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; 16 << 10];
        let reading = self.stream.read(&mut buffer);
        let read = within(self.patience, "a byte of an answer", reading).await??;
        let bytes = &buffer[..read];
        keep(&mut self.received, bytes);
        self.reader.push(bytes).map_err(invalid)?;
        Ok(read > 0)
    }
}

fn invalid(violation: crate::strict::Violation) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, violation)
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = KEPT - kept.len().min(KEPT);
    kept.extend(&bytes[..bytes.len().min(room)]);
}

async fn write_slices<W: AsyncWrite + Unpin>(
    stream: &mut W,
    slices: &[&[u8]],
    pace: Duration,
    patience: Duration,
) -> io::Result<()> {
    for (i, slice) in slices.iter().enumerate() {
        if i > 0 {
            match pace {
                Duration::ZERO => tokio::task::yield_now().await,
                pace => tokio::time::sleep(pace).await,
            }
        }
        within(patience, "a write", stream.write_all(slice)).await??;
        within(patience, "a write", stream.flush()).await??;
    }
    Ok(())
}

/// What to do on a connection of its own: see [`attempt`].
#[derive(Debug, Clone)]
pub struct Plan {
    /// What to write.
    pub bytes: Vec<u8>,
    /// In which slices.
    pub slicing: Slicing,
    /// What is asked in them, as long as all goes well.
    pub asked: Vec<Asked>,
    /// Half-close as soon as all is written, and not only when all is answered.
    pub then_half_close: bool,
    /// When to give up.
    pub patience: Duration,
}

/// What came of a [`Plan`].
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What was received, up to 4 MiB.
    pub received: Vec<u8>,
    /// How it ended.
    pub end: End,
    /// Whether everything could be written.
    pub wrote_all: bool,
}

/// Writes while it reads, as nobody needs to read what he refuses; half-closes when all
/// is answered, and reads to the end.
pub async fn attempt<S: AsyncRead + AsyncWrite + Unpin>(stream: S, plan: &Plan) -> Attempt {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let (answered, all_answered) = oneshot::channel::<()>();
    let write = async {
        let slices = plan.slicing.of(&plan.bytes);
        let written = write_slices(&mut writing, &slices, Duration::ZERO, plan.patience).await;
        if !plan.then_half_close {
            // Resolves when the other half drops its end: all is answered, or it has ended.
            let _ = all_answered.await;
        }
        // The other side may have closed already.
        let _ = writing.shutdown().await;
        written.is_ok()
    };
    let read = async {
        let mut answered = Some(answered);
        let mut reader = Reader::answers();
        for asked in &plan.asked {
            reader.expect(*asked);
        }
        let (mut received, mut finals) = (Vec::new(), 0);
        let mut buffer = vec![0; 16 << 10];
        loop {
            if finals >= plan.asked.len() {
                answered.take();
            }
            let read = within(plan.patience, "an answer", reading.read(&mut buffer)).await;
            match read.and_then(|read| read) {
                Ok(0) => return (received, End::Closed),
                Ok(read) => {
                    keep(&mut received, &buffer[..read]);
                    // What is wrong is for whoever looks at what was received.
                    let _ = reader.push(&buffer[..read]);
                    while let Some(message) = reader.take() {
                        finals += usize::from(message.status() == 101 || message.status() >= 200);
                    }
                }
                Err(error) => return (received, End::of(&error)),
            }
        }
    };
    let (wrote_all, (received, end)) = tokio::join!(write, read);
    Attempt {
        received,
        end,
        wrote_all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::capture::Capture;

    #[test]
    fn slices_keep_bytes() {
        let bytes = b"0123456789";
        for (slicing, count) in [
            (Slicing::Whole, 1),
            (Slicing::Pieces(1), 10),
            (Slicing::Pieces(3), 4),
            (Slicing::Pieces(0), 10),
            (Slicing::At(4), 2),
            (Slicing::At(0), 1),
            (Slicing::At(10), 1),
        ] {
            let slices = slicing.of(bytes);
            assert_eq!(slices.len(), count, "{slicing:?}");
            assert_eq!(slices.concat(), bytes, "{slicing:?}");
        }
    }

    #[tokio::test]
    async fn answers_are_read_strictly() {
        let origin = Capture::answering(|request| match request.target() {
            "/bad" => b"HTTP/1.1 200 OK\ncontent-length: 0\r\n\r\n".to_vec(),
            "/early" => {
                b"HTTP/1.1 103 \r\n\r\nHTTP/1.1 200 \r\ncontent-length: 1\r\n\r\nx".to_vec()
            }
            _ => b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\nmore".to_vec(),
        })
        .await
        .unwrap();
        let request = |path| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut client = Client::connect(origin.address()).await.unwrap();
        let answer = client.exchange(request("/early")).await.unwrap();
        assert_eq!((answer.status(), &*answer.body), (200, &b"x"[..]));
        let error = client.exchange(request("/bad")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut client = Client::connect(origin.address()).await.unwrap();
        let error = client.exchange(request("/more")).await;
        let error = match error {
            Ok(_) => client.ended().await.map(|_| ()).unwrap_err(),
            Err(error) => error,
        };
        assert!(error.to_string().contains("to nothing"), "{error}");
    }

    #[tokio::test]
    async fn an_attempt_ends_when_all_is_answered() {
        let origin = Capture::start().await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let mut plan = Plan {
            bytes: request.repeat(3).into_bytes(),
            slicing: Slicing::Pieces(7),
            asked: vec![Asked::Plain; 3],
            then_half_close: false,
            patience: PATIENCE,
        };
        let stream = TcpStream::connect(origin.address()).await.unwrap();
        let tried = attempt(stream, &plan).await;
        assert_eq!((tried.end, tried.wrote_all), (End::Closed, true));
        let answers = crate::strict::answers(&tried.received, &plan.asked).unwrap();
        assert_eq!(answers.messages.len(), 3);
        plan.bytes = b"GET / HT".to_vec();
        plan.then_half_close = true;
        let stream = TcpStream::connect(origin.address()).await.unwrap();
        let tried = attempt(stream, &plan).await;
        assert_eq!((tried.end, tried.received.len()), (End::Closed, 0));
    }
}
