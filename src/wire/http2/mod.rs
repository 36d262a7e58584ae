//! HOT. Which frames of an HTTP/2 peer may pass: their heads (RFC 9113 section 4.1) are read,
//! their payloads are not. h2 and hyper judge what frames mean; here is bounded how many of
//! them may come without work that justifies them, which those do not bound or bound by the
//! life of a connection, and what would make us lose track of the frames.
//!
//! Pure: bytes and the time in, a verdict out; linear, no allocation.

mod budget;
#[cfg(test)]
mod tests;
mod unread;

use std::time::Instant;

use super::Waiting;
use crate::limits::Limits;
use budget::{Account, Kind, Work};
use unread::Unread;

pub use budget::{Allowance, BUDGETS, FROM_CLIENTS, FROM_SERVERS};

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We read a client.
    Server,
    /// We read a server.
    Client,
}

/// What depends on settings; all other numbers are in [`FROM_CLIENTS`] and [`FROM_SERVERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The largest payload of a frame that we have announced (SETTINGS_MAX_FRAME_SIZE), in
    /// bytes: 16,384 to 16,777,215.
    pub frame: u32,
    /// The largest head that is answered, in bytes. Its header block may be two frames longer,
    /// so that one a little too large is refused by itself (431) instead of its connection.
    pub head: u32,
    /// What the peer may send of DATA before it is read, in bytes.
    pub window: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            frame: 16_384,
            head: 65_536,
            window: 65_535,
        }
    }
}

impl From<&Limits> for Budget {
    fn from(limits: &Limits) -> Self {
        Self {
            head: u32::try_from(limits.max_head_bytes).unwrap_or(u32::MAX),
            window: limits.http2_connection_window,
            ..Self::default()
        }
    }
}

impl Budget {
    const fn block(&self) -> u64 {
        self.head as u64 + 2 * self.frame as u64
    }
}

/// CONTINUATION frames of one header block; six full ones carry the longest block.
pub const MAX_CONTINUATIONS: u32 = 16;
/// DATA without END_STREAM that carries less is counted, in bytes. As long as the prefix of a
/// gRPC message, so that an empty message is none of them.
pub const SMALL_DATA: u32 = 5;

/// Why a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glitch {
    /// RFC 9113 section 7, for the GOAWAY.
    pub error: u32,
    /// One of a closed set of words, for the log, metrics, and the GOAWAY.
    pub rule: &'static str,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// RFC 9218 section 7.1.
const PRIORITY_UPDATE: u8 = 16;

/// On DATA and HEADERS.
const END_STREAM: u8 = 0x1;
/// On SETTINGS and PING.
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The frames of one connection, in both directions.
#[derive(Debug)]
pub struct Frames {
    role: Role,
    budget: Budget,
    account: Account,
    inbound: Reader,
    /// Bytes of the preface that were received.
    preface: usize,
    /// Whether the peer's first frame has begun, and whether it is the one that was begun last.
    begun: bool,
    in_first: bool,
    block: Option<Block>,
    /// Whether the frame that was begun last belongs to a header block.
    in_head: bool,
    /// HEADERS of clients that have begun.
    heads: u32,
    /// The highest stream that the peer has opened, and the same when bytes passed last.
    opened: u32,
    passed: u32,
    outbound: Reader,
    /// Bytes of the preface that were sent.
    preface_sent: usize,
    /// Whether a frame of ours has begun, and whether a header block has that did not end.
    spoken: bool,
    block_sent: bool,
    cut: Option<Glitch>,
    /// RST_STREAM frames received.
    resets: u32,
    unread: Unread,
}

/// A header block that was begun.
#[derive(Debug)]
struct Block {
    stream: u32,
    bytes: u64,
    continuations: u32,
}

impl Frames {
    /// Of a connection on which nothing was received or sent.
    #[must_use]
    pub fn new(role: Role, budget: Budget) -> Self {
        let (table, preface, preface_sent) = match role {
            Role::Server => (&FROM_CLIENTS, 0, PREFACE.len()),
            Role::Client => (&FROM_SERVERS, PREFACE.len(), 0),
        };
        Self {
            role,
            budget,
            account: Account::new(table),
            inbound: Reader::default(),
            preface,
            begun: false,
            in_first: false,
            block: None,
            in_head: false,
            heads: 0,
            opened: 0,
            passed: 0,
            outbound: Reader::default(),
            preface_sent,
            spoken: false,
            block_sent: false,
            cut: None,
            resets: 0,
            unread: Unread::new(budget.window),
        }
    }

    /// Judges the next bytes that were received, in any slicing. All of them may pass, or none.
    ///
    /// # Errors
    /// What the peer, or what it made us send, is cut for; from then on always the same.
    pub fn received(&mut self, input: &[u8], now: Instant) -> Result<(), Glitch> {
        if let Some(glitch) = self.cut {
            return Err(glitch);
        }
        self.account.tick(now);
        let judged = self.judge(input);
        match judged {
            Ok(()) => self.passed = self.opened,
            Err(glitch) => self.cut = Some(glitch),
        }
        judged
    }

    /// Follows the next bytes that were sent, in any slicing.
    pub fn sent(&mut self, mut output: &[u8]) {
        let skip = output.len().min(PREFACE.len() - self.preface_sent);
        self.preface_sent += skip;
        output = &output[skip..];
        while let Some(frame) = self.outbound.next(&mut output, number) {
            if let Err(glitch) = self.follow(&frame) {
                self.cut.get_or_insert(glitch);
            }
        }
    }

    /// Whether what was sent ends with a whole frame, and not inside of a header block: a
    /// GOAWAY may follow.
    #[must_use]
    pub fn may_say_goodbye(&self) -> bool {
        self.spoken && !self.block_sent && self.outbound.is_at_border()
    }

    /// How many streams the peer has reset.
    #[must_use]
    pub const fn resets(&self) -> u32 {
        self.resets
    }

    /// Bytes of DATA that were received and that certainly nobody has read.
    #[must_use]
    pub fn unread(&self) -> u32 {
        self.unread.certain()
    }

    /// What the peer has begun and should end.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        if !self.begun || (self.in_first && self.inbound.is_in_payload()) {
            Waiting::Preface
        } else if self.block.is_some() || (self.in_head && self.inbound.is_in_payload()) {
            Waiting::Head
        } else {
            Waiting::Nothing
        }
    }

    /// The highest stream of the peer whose HEADERS, or some of them, have passed: for the
    /// GOAWAY. Those above may be asked for again elsewhere.
    #[must_use]
    pub fn last_stream(&self) -> u32 {
        self.passed
    }

    /// How many HEADERS of a client have begun, modulo 2^32.
    #[must_use]
    pub fn heads(&self) -> u32 {
        self.heads
    }

    fn judge(&mut self, mut input: &[u8]) -> Result<(), Glitch> {
        if self.preface < PREFACE.len() {
            let n = input.len().min(PREFACE.len() - self.preface);
            if input[..n] != PREFACE[self.preface..self.preface + n] {
                return wrong("preface");
            }
            self.preface += n;
            input = &input[n..];
        }
        while let Some(frame) = self.inbound.next(&mut input, pad_length) {
            self.take(&frame)?;
        }
        Ok(())
    }

    /// Judges a frame that was received.
    fn take(&mut self, frame: &Frame) -> Result<(), Glitch> {
        if frame.length > self.budget.frame {
            return Err(Glitch {
                error: FRAME_SIZE_ERROR,
                rule: "frame_size",
            });
        }
        self.in_first = !self.begun;
        if !self.begun {
            if frame.kind != SETTINGS || frame.has(ACK) {
                return wrong("first_frame");
            }
            self.begun = true;
        }
        self.in_head = matches!(frame.kind, HEADERS | CONTINUATION);
        if self.block.is_some() || frame.kind == CONTINUATION {
            return self.take_continuation(frame);
        }
        match frame.kind {
            DATA => {
                self.unread.received(frame.length);
                let data = frame.data();
                if data >= SMALL_DATA {
                    if data >= 1024 {
                        self.account.earn(Work::KibReceived, data / 1024);
                    }
                    Ok(())
                } else if frame.has(END_STREAM) {
                    Ok(())
                } else {
                    self.spend(Kind::SmallData, 1)
                }
            }
            HEADERS => self.take_headers(frame),
            PRIORITY | PRIORITY_UPDATE => self.spend(Kind::Priority, 1),
            RST_STREAM => {
                self.resets = self.resets.saturating_add(1);
                self.spend(Kind::Reset, 1)
            }
            SETTINGS => self.spend(Kind::Settings, 1 + frame.length / 64),
            PING => self.spend(Kind::Ping, 1),
            GOAWAY => self.spend(Kind::GoAway, 1),
            WINDOW_UPDATE => self.spend(Kind::WindowUpdate, 1),
            // Clients never push, and we tell servers not to.
            PUSH_PROMISE => wrong("push"),
            _ => self.spend(Kind::Unknown, 1),
        }
    }

    fn take_headers(&mut self, frame: &Frame) -> Result<(), Glitch> {
        if self.role == Role::Server {
            self.heads = self.heads.wrapping_add(1);
            self.opened = self.opened.max(frame.stream);
        }
        self.spend(Kind::Headers, 1)?;
        self.grow_block(
            frame,
            Block {
                stream: frame.stream,
                bytes: 0,
                continuations: 0,
            },
        )
    }

    /// Nothing but the rest of a header block may come in it, and nowhere else.
    fn take_continuation(&mut self, frame: &Frame) -> Result<(), Glitch> {
        match self.block.take() {
            Some(block) if frame.kind == CONTINUATION && frame.stream == block.stream => {
                let continuations = block.continuations + 1;
                if continuations > MAX_CONTINUATIONS {
                    return too_much("continuation_flood");
                }
                self.grow_block(
                    frame,
                    Block {
                        continuations,
                        ..block
                    },
                )
            }
            _ => wrong("header_block"),
        }
    }

    fn grow_block(&mut self, frame: &Frame, mut block: Block) -> Result<(), Glitch> {
        block.bytes += u64::from(frame.length);
        if block.bytes > self.budget.block() {
            return too_much("header_block_size");
        }
        self.block = (!frame.has(END_HEADERS)).then_some(block);
        Ok(())
    }

    /// Follows a frame that we send.
    fn follow(&mut self, frame: &Frame) -> Result<(), Glitch> {
        self.spoken = true;
        match frame.kind {
            DATA => {
                self.account.earn(Work::DataSent, 1);
                let kib = frame.length.div_ceil(1024);
                self.account.earn(Work::KibSent, kib);
            }
            HEADERS => {
                self.block_sent = !frame.has(END_HEADERS);
                self.account.earn(Work::Head, 1);
            }
            CONTINUATION => self.block_sent = !frame.has(END_HEADERS),
            WINDOW_UPDATE if frame.stream == 0 => {
                self.unread.told(u32::from_be_bytes(frame.start));
            }
            RST_STREAM => {
                return match u32::from_be_bytes(frame.start) {
                    PROTOCOL_ERROR | FLOW_CONTROL_ERROR | FRAME_SIZE_ERROR | COMPRESSION_ERROR => {
                        self.spend(Kind::ResetMade, 1)
                    }
                    STREAM_CLOSED => self.spend(Kind::ClosedMade, 1),
                    REFUSED_STREAM => self.spend(Kind::Refused, 1),
                    // Not its fault: we cancel, or have answered early.
                    _ => Ok(()),
                };
            }
            _ => {}
        }
        Ok(())
    }

    fn spend(&mut self, kind: Kind, cost: u32) -> Result<(), Glitch> {
        self.account.spend(kind, cost).or_else(too_much)
    }
}

fn too_much(rule: &'static str) -> Result<(), Glitch> {
    Err(Glitch {
        error: ENHANCE_YOUR_CALM,
        rule,
    })
}

fn wrong(rule: &'static str) -> Result<(), Glitch> {
    Err(Glitch {
        error: PROTOCOL_ERROR,
        rule,
    })
}

/// A GOAWAY frame: `last_stream` as of [`Frames::last_stream`], an error code, and words for
/// whoever reads the peer's log.
#[must_use]
pub fn goaway(last_stream: u32, error: u32, debug: &str) -> Vec<u8> {
    // As much as every peer takes.
    let debug = &debug.as_bytes()[..debug.len().min(1024)];
    let mut frame = Vec::with_capacity(HEAD + 8 + debug.len());
    frame.extend_from_slice(&[0, 0, 0, GOAWAY, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&(last_stream & STREAM).to_be_bytes());
    frame.extend_from_slice(&error.to_be_bytes());
    frame.extend_from_slice(debug);
    let length = (frame.len() - HEAD) as u16;
    frame[1..3].copy_from_slice(&length.to_be_bytes());
    frame
}

/// Bytes of a frame's head.
const HEAD: usize = 9;
/// A stream is 31 bits; the other one is reserved and ignored.
const STREAM: u32 = 0x7fff_ffff;

/// The head of a frame, and the first bytes of its payload where they matter.
#[derive(Debug)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
    start: [u8; 4],
}

impl Frame {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of DATA without padding.
    fn data(&self) -> u32 {
        if self.has(PADDED) {
            self.length.saturating_sub(1 + u32::from(self.start[0]))
        } else {
            self.length
        }
    }
}

/// How many bytes of the payload matter in what is received.
fn pad_length(kind: u8, flags: u8) -> usize {
    usize::from(kind == DATA && flags & PADDED != 0)
}

/// How many bytes of the payload matter in what is sent.
fn number(kind: u8, _flags: u8) -> usize {
    if matches!(kind, RST_STREAM | WINDOW_UPDATE) {
        4
    } else {
        0
    }
}

/// Finds the frames of one direction.
#[derive(Debug, Default)]
struct Reader {
    /// The head that has begun, and what matters of its payload.
    buf: [u8; HEAD + 4],
    have: usize,
    /// What is left of the payload.
    rest: usize,
}

impl Reader {
    /// The next frame that begins in `input`; `None` when it is used up. `start` says how much
    /// of the payload matters.
    fn next(&mut self, input: &mut &[u8], start: fn(u8, u8) -> usize) -> Option<Frame> {
        let skip = self.rest.min(input.len());
        self.rest -= skip;
        *input = &input[skip..];
        match input.split_first_chunk::<HEAD>() {
            Some((head, rest)) if self.have == 0 => {
                self.buf[..HEAD].copy_from_slice(head);
                self.have = HEAD;
                *input = rest;
            }
            _ => self.fill(input, HEAD)?,
        }
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3, ..] = self.buf;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let start = start(kind, flags).min(length as usize);
        let mut first = [0; 4];
        if start > 0 {
            self.fill(input, HEAD + start)?;
            first[..start].copy_from_slice(&self.buf[HEAD..HEAD + start]);
        }
        self.have = 0;
        self.rest = length as usize - start;
        Some(Frame {
            length,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & STREAM,
            start: first,
        })
    }

    /// Fills the buffer up to `want`; `None` when there is not enough.
    fn fill(&mut self, input: &mut &[u8], want: usize) -> Option<()> {
        let n = want.saturating_sub(self.have).min(input.len());
        self.buf[self.have..self.have + n].copy_from_slice(&input[..n]);
        self.have += n;
        *input = &input[n..];
        (self.have >= want).then_some(())
    }

    fn is_at_border(&self) -> bool {
        self.have == 0 && self.rest == 0
    }

    fn is_in_payload(&self) -> bool {
        self.rest > 0
    }
}
