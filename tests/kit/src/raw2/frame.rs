//! Frames (RFC 9113, 4.1 and 6), right and wrong alike.

/// DATA.
pub const DATA: u8 = 0;
/// HEADERS.
pub const HEADERS: u8 = 1;
/// PRIORITY.
pub const PRIORITY: u8 = 2;
/// RST_STREAM.
pub const RST_STREAM: u8 = 3;
/// SETTINGS.
pub const SETTINGS: u8 = 4;
/// PUSH_PROMISE.
pub const PUSH_PROMISE: u8 = 5;
/// PING.
pub const PING: u8 = 6;
/// GOAWAY.
pub const GOAWAY: u8 = 7;
/// WINDOW_UPDATE.
pub const WINDOW_UPDATE: u8 = 8;
/// CONTINUATION.
pub const CONTINUATION: u8 = 9;

/// Flag of SETTINGS and PING.
pub const ACK: u8 = 0x1;
/// Flag of DATA and HEADERS.
pub const END_STREAM: u8 = 0x1;
/// Flag of HEADERS, PUSH_PROMISE and CONTINUATION.
pub const END_HEADERS: u8 = 0x4;
/// Flag of DATA, HEADERS and PUSH_PROMISE.
pub const PADDED: u8 = 0x8;
/// Flag of HEADERS.
pub const WITH_PRIORITY: u8 = 0x20;

/// Setting: size of the peer's dynamic table.
pub const HEADER_TABLE_SIZE: u16 = 1;
/// Setting: whether pushes are taken.
pub const ENABLE_PUSH: u16 = 2;
/// Setting: streams at one time.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
/// Setting: the window that a stream begins with.
pub const INITIAL_WINDOW_SIZE: u16 = 4;
/// Setting: the longest frame that is taken.
pub const MAX_FRAME_SIZE: u16 = 5;
/// Setting: bytes of a header list.
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// What a client begins with.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame; nothing is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream, 31 bits.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Any frame.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            flags,
            stream,
            payload: payload.into(),
        }
    }

    /// DATA with these flags.
    pub fn data(stream: u32, flags: u8, bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(DATA, flags, stream, bytes)
    }

    /// HEADERS with a whole block, and these flags besides.
    pub fn headers(stream: u32, flags: u8, block: impl Into<Vec<u8>>) -> Self {
        Self::new(HEADERS, flags | END_HEADERS, stream, block)
    }

    /// RST_STREAM.
    pub fn reset(stream: u32, code: u32) -> Self {
        Self::new(RST_STREAM, 0, stream, code.to_be_bytes())
    }

    /// SETTINGS.
    pub fn settings(settings: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        Self::new(SETTINGS, 0, 0, payload)
    }

    /// PING.
    pub fn ping(number: u64) -> Self {
        Self::new(PING, 0, 0, number.to_be_bytes())
    }

    /// GOAWAY.
    pub fn goaway(last: u32, code: u32) -> Self {
        let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
        Self::new(GOAWAY, 0, 0, payload)
    }

    /// WINDOW_UPDATE of a stream, or of the connection (0).
    pub fn window(stream: u32, by: u32) -> Self {
        Self::new(WINDOW_UPDATE, 0, stream, by.to_be_bytes())
    }

    /// PRIORITY on a stream, which comes to depend on another.
    pub fn priority(stream: u32, on: u32) -> Self {
        let mut payload = on.to_be_bytes().to_vec();
        payload.push(16);
        Self::new(PRIORITY, 0, stream, payload)
    }

    /// The acknowledgement of a SETTINGS or PING.
    pub fn ack(&self) -> Self {
        let payload = match self.kind {
            PING => self.payload.clone(),
            _ => Vec::new(),
        };
        Self::new(self.kind, ACK, 0, payload)
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The number of four bytes from `at` on; 0 if they are not there.
    pub fn number(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..at + 4);
        bytes.map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// The payload of DATA, HEADERS or PUSH_PROMISE without padding, priority and promised
    /// stream; `None` if they are longer than it.
    pub fn content(&self) -> Option<&[u8]> {
        let mut rest = &self.payload[..];
        if matches!(self.kind, DATA | HEADERS | PUSH_PROMISE) && self.has(PADDED) {
            let (padding, after) = rest.split_first()?;
            rest = after.get(..after.len().checked_sub(usize::from(*padding))?)?;
        }
        match self.kind {
            HEADERS if self.has(WITH_PRIORITY) => rest.get(5..),
            PUSH_PROMISE => rest.get(4..),
            _ => Some(rest),
        }
    }

    /// As it is on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + self.payload.len());
        self.write(&mut out);
        out
    }

    /// Writes it at the end of `out`. The length is cut to the 24 bits that it has.
    pub fn write(&self, out: &mut Vec<u8>) {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        out.extend(&length.to_be_bytes()[1..]);
        out.extend([self.kind, self.flags]);
        out.extend(self.stream.to_be_bytes());
        out.extend(&self.payload);
    }

    /// Takes a frame off the front; `None` while it is not all there.
    pub fn take(buffer: &mut Vec<u8>) -> Option<Self> {
        let head: &[u8; 9] = buffer.first_chunk()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if buffer.len() < 9 + length {
            return None;
        }
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let frame = Self::new(head[3], head[4], stream, &buffer[9..9 + length]);
        buffer.drain(..9 + length);
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let frames = [
            Frame::settings(&[(MAX_FRAME_SIZE, 16_384), (ENABLE_PUSH, 0)]),
            Frame::headers(1, END_STREAM, *b"block"),
            Frame::data(1, 0, vec![7; 70_000]),
            Frame::goaway(3, 11),
        ];
        let wire: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        let (mut buffer, mut read) = (Vec::new(), Vec::new());
        for byte in wire {
            buffer.push(byte);
            read.extend(Frame::take(&mut buffer));
        }
        assert_eq!(read, frames);
        assert_eq!(
            (read[3].number(0), read[3].number(4), read[3].number(8)),
            (3, 11, 0)
        );
    }

    #[test]
    fn content_is_without_padding_and_priority() {
        for (kind, flags, payload, expected) in [
            (DATA, 0, &b"abc"[..], Some(&b"abc"[..])),
            (DATA, PADDED, b"\x02abc", Some(b"a")),
            (DATA, PADDED, b"\x04abc", None),
            (DATA, PADDED, b"", None),
            (HEADERS, WITH_PRIORITY, b"12345abc", Some(b"abc")),
            (
                HEADERS,
                WITH_PRIORITY | PADDED,
                b"\x0112345abc",
                Some(b"ab"),
            ),
            (HEADERS, WITH_PRIORITY, b"123", None),
            (PUSH_PROMISE, 0, b"1234abc", Some(b"abc")),
            (CONTINUATION, PADDED, b"\x09abc", Some(b"\x09abc")),
        ] {
            let frame = Frame::new(kind, flags, 1, payload);
            assert_eq!(frame.content(), expected, "{frame:?}");
        }
    }
}
