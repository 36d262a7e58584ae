//! A raw HTTP/2 peer, client or server: frames and header blocks by hand, and a window that is
//! the test's. What it does on its own is in [`Manners`]. Over any stream.

mod flood;
pub mod frame;
pub mod hpack;
mod huffman;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub use flood::{Flood, Reading};
pub use frame::Frame;
pub use hpack::{Block, Field};

use crate::raw1::End;
use crate::{PATIENCE, within};
use frame::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PUSH_PROMISE,
    RST_STREAM, SETTINGS,
};

/// What is kept of all bodies together.
const MOST_BODIES: usize = 256 << 20;
/// Streams of which something is kept; the oldest is forgotten.
const MOST_STREAMS: usize = 100_000;

/// What a peer answers on its own when it reads. All of it, unless a test says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manners {
    /// Acknowledge SETTINGS.
    pub settings: bool,
    /// Acknowledge PING.
    pub pings: bool,
    /// Give back the window of the DATA that was read, of stream and connection.
    pub windows: bool,
}

/// None: says only what it is told to.
pub const RUDE: Manners = Manners {
    settings: false,
    pings: false,
    windows: false,
};

/// All.
pub const POLITE: Manners = Manners {
    settings: true,
    pings: true,
    windows: true,
};

/// What has arrived on one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Header blocks: interim answers, head, trailers, in order.
    pub heads: Vec<Vec<Field>>,
    /// The DATA.
    pub body: Vec<u8>,
    /// Whether END_STREAM has come.
    pub ended: bool,
    /// The code of RST_STREAM, if that has come.
    pub reset: Option<u32>,
}

impl Message {
    /// The head: the first block that is not an interim answer's.
    pub fn head(&self) -> &[Field] {
        let is_final = |head: &&Vec<Field>| !value(head, ":status").starts_with('1');
        self.heads.iter().find(is_final).map_or(&[], Vec::as_slice)
    }

    /// The status, 0 if there is none.
    pub fn status(&self) -> u16 {
        self.header(":status").parse().unwrap_or_default()
    }

    /// The value of a field of the head, empty if there is none.
    pub fn header(&self, name: &str) -> String {
        value(self.head(), name)
    }

    /// The value of a trailer, empty if there is none.
    pub fn trailer(&self, name: &str) -> String {
        match &self.heads[..] {
            [_, .., last] => value(last, name),
            _ => String::new(),
        }
    }
}

fn value(fields: &[Field], name: &str) -> String {
    let found = fields.iter().find(|(field, _)| field == name.as_bytes());
    found.map_or_else(String::new, |(_, value)| {
        String::from_utf8_lossy(value).into_owned()
    })
}

/// How the other side ended the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goodbye {
    /// Code, last stream and debug data of the last GOAWAY, if one came.
    pub goaway: Option<(u32, u32, String)>,
    /// The end itself.
    pub end: End,
}

impl Goodbye {
    /// The code of the GOAWAY, if one came.
    pub fn code(&self) -> Option<u32> {
        self.goaway.as_ref().map(|(code, _, _)| *code)
    }
}

/// A connection.
#[derive(Debug)]
pub struct Peer<S = TcpStream> {
    stream: S,
    buffer: Vec<u8>,
    decoder: hpack::Decoder,
    /// A header block that is not complete, its stream, and whether that ends with it.
    block: Option<(u32, bool, Vec<u8>)>,
    streams: BTreeMap<u32, Message>,
    kept: usize,
    goaway: Option<(u32, u32, String)>,
    manners: Manners,
    patience: Duration,
}

impl Peer {
    /// Connects as a client, and sends preface and SETTINGS.
    pub async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> io::Result<Self> {
        let stream = within(PATIENCE, "connect", TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        let mut peer = Self::silent(stream);
        peer.begin(settings).await?;
        Ok(peer)
    }

    /// Ends the connection with RST.
    pub fn abort(self) -> io::Result<()> {
        self.stream.set_zero_linger()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// A client or server that has said nothing yet.
    pub fn silent(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            decoder: hpack::Decoder::default(),
            block: None,
            streams: BTreeMap::new(),
            kept: 0,
            goaway: None,
            manners: POLITE,
            patience: PATIENCE,
        }
    }

    /// As a client: sends preface and SETTINGS.
    pub async fn begin(&mut self, settings: &[(u16, u32)]) -> io::Result<()> {
        let settings = Frame::settings(settings).bytes();
        self.write([&PREFACE[..], &settings].concat()).await
    }

    /// As a server: reads the client's preface, and sends SETTINGS.
    pub async fn accept(stream: S, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut peer = Self::silent(stream);
        peer.welcome(settings).await?;
        Ok(peer)
    }

    pub(crate) async fn welcome(&mut self, settings: &[(u16, u32)]) -> io::Result<()> {
        while self.buffer.len() < PREFACE.len() {
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let preface: Vec<u8> = self.buffer.drain(..PREFACE.len()).collect();
        if preface != PREFACE {
            let message = format!("no preface: {:?}", preface.escape_ascii().to_string());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.send(&Frame::settings(settings)).await
    }

    /// What it answers on its own from now on.
    #[must_use]
    pub fn manners(mut self, manners: Manners) -> Self {
        self.manners = manners;
        self
    }

    /// How long any one read or write may take; 10 s unless set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Writes any bytes.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let writing = async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        };
        within(self.patience, "a write", writing).await?
    }

    /// Writes a frame.
    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.write(frame.bytes()).await
    }

    /// Writes frames at once.
    pub async fn send_all(&mut self, frames: &[Frame]) -> io::Result<()> {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        self.write(bytes).await
    }

    /// Writes a request without a body.
    pub async fn get(&mut self, stream: u32, authority: &str, path: &str) -> io::Result<()> {
        let block = Block::request("GET", authority, path).bytes();
        self.send(&Frame::headers(stream, END_STREAM, block)).await
    }

    /// The next frame, after manners. What is in it is in [`message`](Self::message) as well.
    pub async fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = Frame::take(&mut self.buffer) {
                self.note(&frame)?;
                self.answer_to(&frame).await?;
                return Ok(frame);
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads until a frame is as wanted.
    pub async fn until(&mut self, is_wanted: impl Fn(&Frame) -> bool) -> io::Result<Frame> {
        loop {
            let frame = self.next().await?;
            if is_wanted(&frame) {
                return Ok(frame);
            }
        }
    }

    /// What has arrived on a stream so far.
    pub fn message(&self, stream: u32) -> Option<&Message> {
        self.streams.get(&stream)
    }

    /// Reads until a stream has ended or was reset, and takes what came on it.
    pub async fn whole(&mut self, stream: u32) -> io::Result<Message> {
        loop {
            let is_over = |message: &Message| message.ended || message.reset.is_some();
            if self.streams.get(&stream).is_some_and(is_over) {
                let message = self.streams.remove(&stream).unwrap_or_default();
                self.kept -= message.body.len();
                return Ok(message);
            }
            self.next().await?;
        }
    }

    /// Drops what came on a stream; what comes later counts anew.
    pub fn forget(&mut self, stream: u32) {
        let message = self.streams.remove(&stream).unwrap_or_default();
        self.kept -= message.body.len();
    }

    /// As a server: reads until a header block is complete on a stream that was not `known`;
    /// which.
    pub async fn request(&mut self, known: u32) -> io::Result<u32> {
        loop {
            let newest = self.streams.range(known + 1..).next();
            if let Some((stream, _)) = newest.filter(|(_, message)| !message.heads.is_empty()) {
                return Ok(*stream);
            }
            self.next().await?;
        }
    }

    /// A round trip: whatever was sent before has been read by the other side.
    pub async fn ping(&mut self, number: u64) -> io::Result<()> {
        let ping = Frame::ping(number);
        self.send(&ping).await?;
        let ack = ping.ack();
        self.until(|frame| *frame == ack).await.map(|_| ())
    }

    /// Reads to the end.
    pub async fn goodbye(&mut self) -> Goodbye {
        let end = loop {
            match self.next().await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break End::Closed,
                Err(error) => break End::of(&error),
            }
        };
        Goodbye {
            goaway: self.goaway.clone(),
            end,
        }
    }

    /// Keeps what a frame brings.
    fn note(&mut self, frame: &Frame) -> io::Result<()> {
        match frame.kind {
            HEADERS | PUSH_PROMISE => {
                let content = frame.content().ok_or_else(|| invalid("padding"))?.to_vec();
                // Of a promise, the block is about the promised stream.
                let stream = match frame.kind {
                    PUSH_PROMISE => frame.number(usize::from(frame.has(frame::PADDED))),
                    _ => frame.stream,
                };
                let ends = frame.kind == HEADERS && frame.has(END_STREAM);
                self.block = Some((stream, ends, content));
            }
            CONTINUATION => {
                let block = self.block.as_mut().ok_or_else(|| invalid("no block"))?;
                block.2.extend(&frame.payload);
            }
            DATA => {
                let content = frame.content().ok_or_else(|| invalid("padding"))?;
                let message = self.streams.entry(frame.stream).or_default();
                message.ended |= frame.has(END_STREAM);
                self.kept += content.len();
                if self.kept > MOST_BODIES {
                    return Err(invalid("more bodies than this peer keeps"));
                }
                message.body.extend(content);
            }
            RST_STREAM => {
                let message = self.streams.entry(frame.stream).or_default();
                message.reset = Some(frame.number(0));
            }
            GOAWAY => {
                let debug = frame.payload.get(8..).unwrap_or_default();
                let debug = String::from_utf8_lossy(debug).into_owned();
                self.goaway = Some((frame.number(4), frame.number(0), debug));
            }
            _ => {}
        }
        if matches!(frame.kind, HEADERS | PUSH_PROMISE | CONTINUATION)
            && frame.has(END_HEADERS)
            && let Some((stream, ends, block)) = self.block.take()
        {
            let fields = self.decoder.decode(&block).map_err(invalid)?;
            let message = self.streams.entry(stream).or_default();
            message.heads.push(fields);
            message.ended |= ends;
        }
        while self.streams.len() > MOST_STREAMS {
            if let Some((_, message)) = self.streams.pop_first() {
                self.kept -= message.body.len();
            }
        }
        Ok(())
    }

    async fn answer_to(&mut self, frame: &Frame) -> io::Result<()> {
        let mut answer = Vec::new();
        match frame.kind {
            SETTINGS if self.manners.settings && !frame.has(ACK) => frame.ack().write(&mut answer),
            PING if self.manners.pings && !frame.has(ACK) => frame.ack().write(&mut answer),
            DATA if self.manners.windows && !frame.payload.is_empty() => {
                let by = u32::try_from(frame.payload.len()).unwrap_or_default();
                Frame::window(0, by).write(&mut answer);
                if !frame.has(END_STREAM) {
                    Frame::window(frame.stream, by).write(&mut answer);
                }
            }
            _ => return Ok(()),
        }
        // A peer that says goodbye may not read any more: what it says counts, not this.
        match self.write(&answer).await {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(error),
            _ => Ok(()),
        }
    }

    /// What was read and is in no frame yet.
    pub(crate) fn unread(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The stream itself.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Reads some bytes; `false` at the end.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        let reading = self.stream.read_buf(&mut self.buffer);
        Ok(within(self.patience, "a frame", reading).await?? > 0)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
