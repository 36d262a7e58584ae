//! The judge of what was sent: a strict reader of HTTP/1 (RFC 9112, RFC 9110) that repairs
//! nothing. Bytes are one well-formed message after the other, each of them with exactly one
//! reading, or they are a [`Violation`]. Made to be obviously right, not fast: it takes a line
//! or a piece of a body at a time, and shares no code with any other reader.

mod message;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;

pub use message::{Field, Framing, Message};

/// What is kept of one body.
const MOST_BODY: usize = 256 << 20;
/// A line longer than this is no line.
const MOST_LINE: usize = 16 << 20;

/// Where and why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Offset in everything that was read, near to what is wrong.
    pub at: usize,
    /// The rule, in words.
    pub rule: &'static str,
    /// What is around there, escaped.
    pub near: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "byte {}: {}, near \"{}\"",
            self.at, self.rule, self.near
        )
    }
}

impl std::error::Error for Violation {}

/// What an answer is for, which decides whether it has a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Asked {
    /// Any other request.
    #[default]
    Plain,
    /// HEAD: its answers have no body.
    Head,
    /// A request with `Upgrade`: 101 ends HTTP.
    Upgrade,
    /// CONNECT: 2xx ends HTTP.
    Connect,
}

impl Asked {
    /// What a request asks for, by its first bytes; `Upgrade` only if it has such a field.
    pub fn of(request: &[u8]) -> Self {
        let head = request.windows(4).position(|four| four == b"\r\n\r\n");
        let head = String::from_utf8_lossy(&request[..head.unwrap_or(request.len())]);
        match head.split(' ').next() {
            Some("HEAD") => Self::Head,
            Some("CONNECT") => Self::Connect,
            _ if head.to_ascii_lowercase().contains("\r\nupgrade:") => Self::Upgrade,
            _ => Self::Plain,
        }
    }
}

/// All the messages in some bytes.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Those that are complete.
    pub messages: Vec<Message>,
    /// The one that is not: a head that was complete, of which body or trailers are missing.
    pub unfinished: Option<Message>,
    /// Whether the bytes end where a message does.
    pub whole: bool,
    /// After a switch of protocols: what is not HTTP any more.
    pub opaque: Vec<u8>,
}

/// Reads the log of a connection on which requests were sent. What is incomplete at the end is
/// no violation if nothing in it is wrong so far.
pub fn requests(log: &[u8]) -> Result<Reading, Violation> {
    read(Reader::requests(), log)
}

/// As [`requests`], where the protocol was switched by request number `switched` (from 0).
pub fn requests_until_switch(log: &[u8], switched: usize) -> Result<Reading, Violation> {
    let mut reader = Reader::requests();
    reader.switch_after(switched);
    read(reader, log)
}

/// Reads the log of a connection on which the answers to these requests were sent, and that
/// has ended.
pub fn answers(log: &[u8], asked: &[Asked]) -> Result<Reading, Violation> {
    let mut reader = Reader::answers();
    for asked in asked {
        reader.expect(*asked);
    }
    reader.push(log)?;
    reader.end()?;
    Ok(reader.reading())
}

fn read(mut reader: Reader, log: &[u8]) -> Result<Reading, Violation> {
    reader.push(log)?;
    Ok(reader.reading())
}

#[derive(Debug)]
enum Kind {
    Requests { switched: Option<usize> },
    Answers { asked: VecDeque<Asked> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A start line begins here.
    Start,
    Fields,
    /// So many bytes of a body whose length was given.
    Exactly(u64),
    ChunkLine,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
    /// Not HTTP any more.
    Opaque,
}

/// Reads as bytes come.
#[derive(Debug)]
pub struct Reader {
    kind: Kind,
    state: State,
    /// What was not read yet, and where in everything it begins.
    buffer: VecDeque<u8>,
    at: usize,
    /// How much of `buffer` is known to hold no line end.
    searched: usize,
    /// The line that was read last, and where it began.
    last_line: Vec<u8>,
    line_at: usize,
    current: Option<Message>,
    done: VecDeque<Message>,
    /// How many messages were complete so far.
    count: usize,
    violation: Option<Violation>,
}

impl Reader {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            state: State::Start,
            buffer: VecDeque::new(),
            at: 0,
            searched: 0,
            last_line: Vec::new(),
            line_at: 0,
            current: None,
            done: VecDeque::new(),
            count: 0,
            violation: None,
        }
    }

    /// Of what clients send.
    pub fn requests() -> Self {
        Self::new(Kind::Requests { switched: None })
    }

    /// Of what servers send. Each answer needs an [`expect`](Self::expect).
    pub fn answers() -> Self {
        Self::new(Kind::Answers {
            asked: VecDeque::new(),
        })
    }

    /// Says what the next answer that nothing was said about is for.
    pub fn expect(&mut self, next: Asked) {
        if let Kind::Answers { asked } = &mut self.kind {
            asked.push_back(next);
        }
    }

    /// What follows request number `n` (from 0) is not HTTP.
    pub fn switch_after(&mut self, n: usize) {
        if let Kind::Requests { switched } = &mut self.kind {
            *switched = Some(n);
        }
    }

    /// Reads more. After a violation nothing is read any more; it is returned each time.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if let Some(violation) = &self.violation {
            return Err(violation.clone());
        }
        self.buffer.extend(bytes);
        loop {
            match self.step() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(violation) => {
                    self.violation = Some(violation.clone());
                    return Err(violation);
                }
            }
        }
    }

    /// The other side has closed: completes a body that ends so, and otherwise is a violation
    /// unless nothing is missing.
    pub fn end(&mut self) -> Result<(), Violation> {
        if let Some(violation) = &self.violation {
            return Err(violation.clone());
        }
        match self.state {
            State::UntilClose => self.complete(),
            State::Start if self.buffer.is_empty() => {}
            State::Opaque => {}
            _ => {
                let violation = self.here(self.buffer.len(), "the message is cut off");
                self.violation = Some(violation.clone());
                return Err(violation);
            }
        }
        Ok(())
    }

    /// The next complete message that was not taken.
    pub fn take(&mut self) -> Option<Message> {
        self.done.pop_front()
    }

    /// The message whose head is complete, and that is not.
    pub fn current(&self) -> Option<&Message> {
        let has_head = !matches!(self.state, State::Start | State::Fields);
        self.current.as_ref().filter(|_| has_head)
    }

    /// Whether no message has begun that is not complete.
    pub fn is_at_border(&self) -> bool {
        self.violation.is_none() && self.state == State::Start && self.buffer.is_empty()
    }

    /// Whether the protocol was switched.
    pub fn is_opaque(&self) -> bool {
        self.state == State::Opaque
    }

    /// After a switch of protocols: what came since, once.
    pub fn take_opaque(&mut self) -> Vec<u8> {
        match self.state {
            State::Opaque => self.consume(self.buffer.len()),
            _ => Vec::new(),
        }
    }

    fn reading(mut self) -> Reading {
        let opaque = self.take_opaque();
        let whole = self.is_at_border() || self.is_opaque();
        let unfinished = self.current().cloned();
        Reading {
            messages: self.done.into(),
            unfinished,
            whole,
            opaque,
        }
    }

    /// Reads one line or one piece; `false`: there is none yet.
    fn step(&mut self) -> Result<bool, Violation> {
        match self.state {
            State::Start => {
                if let Kind::Answers { asked } = &self.kind
                    && asked.is_empty()
                    && !self.buffer.is_empty()
                {
                    return Err(self.here(0, "an answer to nothing"));
                }
                let at = self.at;
                let Some(line) = self.line()? else {
                    return Ok(false);
                };
                let line = self.rule(rules::start_line(&line, self.is_requests()))?;
                self.current = Some(Message::new(at, line));
                self.state = State::Fields;
            }
            State::Fields => {
                let Some(line) = self.line()? else {
                    return Ok(false);
                };
                if line.is_empty() {
                    self.head_is_complete()?;
                } else {
                    let field = self.rule(rules::field(&line))?;
                    self.message().fields.push(field);
                }
            }
            State::Exactly(left) => {
                let piece = self.piece(left)?;
                if piece == 0 {
                    return Ok(false);
                }
                self.state = State::Exactly(left - piece);
                if left == piece {
                    self.complete();
                }
            }
            State::ChunkLine => {
                let Some(line) = self.line()? else {
                    return Ok(false);
                };
                let (size, extension) = self.rule(rules::chunk_line(&line))?;
                let message = self.message();
                message.chunks += 1;
                message.extensions += extension;
                self.state = match size {
                    0 => State::Trailers,
                    size => State::ChunkData(size),
                };
            }
            State::ChunkData(left) => {
                let piece = self.piece(left)?;
                if piece == 0 {
                    return Ok(false);
                }
                self.state = match left - piece {
                    0 => State::ChunkEnd,
                    left => State::ChunkData(left),
                };
            }
            State::ChunkEnd => {
                let wanted = b"\r\n";
                for (i, byte) in self.buffer.iter().take(2).enumerate() {
                    if *byte != wanted[i] {
                        return Err(self.here(i, "a chunk is not followed by CRLF"));
                    }
                }
                if self.buffer.len() < 2 {
                    return Ok(false);
                }
                self.consume(2);
                self.state = State::ChunkLine;
            }
            State::Trailers => {
                let Some(line) = self.line()? else {
                    return Ok(false);
                };
                if line.is_empty() {
                    self.complete();
                } else {
                    let field = self.rule(rules::trailer(&line))?;
                    self.message().trailers.push(field);
                }
            }
            State::UntilClose => {
                return Ok(self.piece(u64::MAX)? > 0);
            }
            State::Opaque => return Ok(false),
        }
        Ok(true)
    }

    fn is_requests(&self) -> bool {
        matches!(self.kind, Kind::Requests { .. })
    }

    /// A rule that may have been broken by the last line.
    fn rule<T>(&self, result: Result<T, &'static str>) -> Result<T, Violation> {
        result.map_err(|rule| Violation {
            at: self.line_at,
            rule,
            near: self.last_line.escape_ascii().to_string(),
        })
    }

    fn message(&mut self) -> &mut Message {
        self.current
            .as_mut()
            .expect("there is a message in all states but `Start` and `Opaque`")
    }

    fn head_is_complete(&mut self) -> Result<(), Violation> {
        let next = match &self.kind {
            Kind::Requests { .. } => None,
            Kind::Answers { asked } => asked.front().copied(),
        };
        let message = self.message();
        let framing = match next {
            None => rules::request_framing(message),
            Some(asked) => rules::answer_framing(message, asked),
        };
        let framing = self.rule(framing)?;
        self.message().framing = framing;
        self.state = match framing {
            Framing::None | Framing::Length(0) => {
                self.complete();
                return Ok(());
            }
            Framing::Length(length) => State::Exactly(length),
            Framing::Chunked => State::ChunkLine,
            Framing::UntilClose => State::UntilClose,
        };
        Ok(())
    }

    /// The message is complete; decides what comes then.
    fn complete(&mut self) {
        let Some(mut message) = self.current.take() else {
            return;
        };
        message.end = self.at;
        self.state = State::Start;
        match &mut self.kind {
            Kind::Requests { switched } => {
                if *switched == Some(self.count) {
                    self.state = State::Opaque;
                }
            }
            Kind::Answers { asked } => {
                let status = message.status();
                let switches = match asked.front() {
                    Some(Asked::Upgrade) => status == 101,
                    Some(Asked::Connect) => (200..300).contains(&status),
                    _ => false,
                };
                if switches {
                    self.state = State::Opaque;
                }
                if switches || status >= 200 {
                    asked.pop_front();
                }
            }
        }
        self.count += 1;
        self.done.push_back(message);
    }

    /// Takes a line off the buffer, without its CRLF.
    fn line(&mut self) -> Result<Option<Vec<u8>>, Violation> {
        let mut i = self.searched;
        while i < self.buffer.len() {
            match self.buffer[i] {
                b'\r' => match self.buffer.get(i + 1) {
                    Some(b'\n') => {
                        self.line_at = self.at;
                        let mut line = self.consume(i + 2);
                        line.truncate(i);
                        self.last_line = line[..i.min(200)].to_vec();
                        return Ok(Some(line));
                    }
                    Some(_) => return Err(self.here(i, "a CR without LF")),
                    None => break,
                },
                b'\n' => return Err(self.here(i, "an LF without CR")),
                0 => return Err(self.here(i, "a NUL")),
                _ => i += 1,
            }
        }
        self.searched = i;
        if i > MOST_LINE {
            return Err(self.here(i, "an endless line"));
        }
        Ok(None)
    }

    /// Moves at most `most` bytes into the body; how many.
    fn piece(&mut self, most: u64) -> Result<u64, Violation> {
        let have = self.buffer.len();
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(have);
        if self.message().body.len() + length > MOST_BODY {
            return Err(self.here(0, "a body longer than this reader keeps"));
        }
        let bytes = self.consume(length);
        self.message().body.extend(bytes);
        Ok(length as u64)
    }

    fn consume(&mut self, length: usize) -> Vec<u8> {
        self.at += length;
        self.searched = 0;
        self.buffer.drain(..length).collect()
    }

    /// A violation so far into the buffer.
    fn here(&self, offset: usize, rule: &'static str) -> Violation {
        let from = offset.saturating_sub(20);
        let near: Vec<u8> = self.buffer.iter().skip(from).take(60).copied().collect();
        Violation {
            at: self.at + offset,
            rule,
            near: near.escape_ascii().to_string(),
        }
    }
}
