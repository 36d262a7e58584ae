//! A small netlink client: messages with attributes, requests, dumps, and batches.
//!
//! Source: `linux/netlink.h`; netlink(7). Integers of the header are in host order.

use std::{io, time::Duration};

use rustix::{
    fd::OwnedFd,
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType,
        netlink::SocketAddrNetlink,
        recvfrom, sendto, socket_with,
        sockopt::{
            Timeout, set_socket_recv_buffer_size, set_socket_send_buffer_size, set_socket_timeout,
        },
    },
};

/// The answer is acknowledged, or an error.
pub const ACK: u16 = 0x4;
/// All objects of a kind.
pub const DUMP: u16 = 0x300;
/// What is there is replaced.
pub const REPLACE: u16 = 0x100;
/// What is there is an error.
pub const EXCLUSIVE: u16 = 0x200;
/// What is not there is made.
pub const CREATE: u16 = 0x400;
/// It is added at the end.
pub const APPEND: u16 = 0x800;

const REQUEST: u16 = 0x1;
const ERROR: u16 = 0x2;
const DONE: u16 = 0x3;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
/// The kernel answers at once; this is for a kernel that does not.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A batch of the longest lists is below 200 KiB.
const BUFFER: usize = 1 << 20;
/// Answers that one dump may have; a host with more chains or routes is none of ours.
const MOST_ANSWERS: usize = 1 << 20;

/// One message, being written.
#[derive(Clone, Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// A message of this type and with these flags (a request in any case), and the fixed part
    /// of its body, whose length is a multiple of four.
    #[must_use]
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(body);
        Self(bytes)
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(start);
    }

    /// Adds an attribute with a text that ends in a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.close(start);
    }

    /// Adds an attribute with a number in network order.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Adds an attribute that holds attributes.
    pub fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NESTED);
        write(self);
        self.close(start);
    }

    /// What follows the header, as a receiver gets it.
    #[cfg(test)]
    pub fn body(&self) -> &[u8] {
        &self.0[HEADER..]
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        // Lists are bounded so that no attribute comes near 64 KiB.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// The attributes in some bytes: type and value; ends at the first that is malformed.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A text that ends in a zero byte.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let part = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(part.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(part.try_into().ok()?))
}

/// One answer of the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Answer<'a> {
    /// Success or failure of the request with this number.
    Status(u32, Result<(), Errno>),
    /// The end of a dump.
    Done(u32),
    /// An object: type and body.
    Object(u32, u16, &'a [u8]),
}

/// The messages of a datagram; what is malformed ends it.
fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let kind = u16_at(bytes, 4)?;
        let sequence = u32_at(bytes, 8)?;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(match kind {
            ERROR => Answer::Status(sequence, status(body)),
            DONE => match status(body) {
                Ok(()) => Answer::Done(sequence),
                error => Answer::Status(sequence, error),
            },
            _ => Answer::Object(sequence, kind, body),
        })
    })
}

/// The error at the head of a body: zero or a negative errno; nothing is success.
fn status(body: &[u8]) -> Result<(), Errno> {
    match u32_at(body, 0).map_or(0, u32::cast_signed) {
        0 => Ok(()),
        code => Err(Errno::from_raw_os_error(code.saturating_neg())),
    }
}

/// A connection to one subsystem of the kernel.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one; no protocol means routing.
    ///
    /// # Errors
    /// When the kernel has no such protocol.
    pub fn open(protocol: Option<Protocol>) -> Result<Self, Errno> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&fd, direction, Some(TIMEOUT))?;
        }
        set_socket_send_buffer_size(&fd, BUFFER)?;
        set_socket_recv_buffer_size(&fd, BUFFER)?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; 1 << 16],
        })
    }

    /// Sends one request and waits until it is done.
    ///
    /// # Errors
    /// The kernel's answer, or no answer in time.
    pub fn request(&mut self, mut message: Message) -> Result<(), Errno> {
        let flags = u16_at(&message.0, 6).unwrap_or(0) | ACK;
        message.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.batch(vec![message]).map_err(|(_, error)| error)
    }

    /// Sends several messages at once and waits for the acknowledgement of the last one that
    /// asks for it.
    ///
    /// # Errors
    /// The kernel's first error, and which message it is about.
    pub fn batch(&mut self, messages: Vec<Message>) -> Result<(), (usize, Errno)> {
        let first = self.sequence;
        let mut last = first;
        let mut bytes = Vec::new();
        for message in messages {
            let acknowledged = u16_at(&message.0, 6).is_some_and(|flags| flags & ACK != 0);
            if acknowledged {
                last = self.sequence;
            }
            bytes.extend(message.finish(self.sequence));
            self.sequence = self.sequence.wrapping_add(1);
        }
        let nowhere = |error| (0, error);
        self.send(&bytes).map_err(nowhere)?;
        for _ in 0..MOST_ANSWERS {
            let length = self.receive().map_err(nowhere)?;
            for answer in answers(&self.buffer[..length]) {
                if let Answer::Status(sequence, result) = answer {
                    let at = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(0);
                    result.map_err(|error| (at, error))?;
                    if sequence == last {
                        return Ok(());
                    }
                }
            }
        }
        Err(nowhere(Errno::OVERFLOW))
    }

    /// Asks for all objects of a kind: `each` gets type and body.
    ///
    /// # Errors
    /// The kernel's answer, or no answer in time.
    pub fn dump(
        &mut self,
        message: Message,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Errno> {
        let wanted = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&message.finish(wanted))?;
        for _ in 0..MOST_ANSWERS {
            let length = self.receive()?;
            for answer in answers(&self.buffer[..length]) {
                match answer {
                    Answer::Status(sequence, result) if sequence == wanted => return result,
                    Answer::Done(sequence) if sequence == wanted => return Ok(()),
                    Answer::Object(sequence, kind, body) if sequence == wanted => each(kind, body),
                    _ => {}
                }
            }
        }
        Err(Errno::OVERFLOW)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let kernel = SocketAddrNetlink::new(0, 0);
        retry(|| sendto(&self.fd, bytes, SendFlags::empty(), &kernel)).map(drop)
    }

    /// The length of the next datagram of the kernel; others may send to us, too.
    fn receive(&mut self) -> Result<usize, Errno> {
        for _ in 0..MOST_ANSWERS {
            let (_, length, from) =
                retry(|| recvfrom(&self.fd, &mut self.buffer[..], RecvFlags::empty()))?;
            let sender = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
            if sender.is_some_and(|sender| sender.pid() == 0) {
                return Ok(length.min(self.buffer.len()));
            }
        }
        Err(Errno::OVERFLOW)
    }
}

/// Calls again when a signal came in between.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
            result => return result,
        }
    }
}

/// The error in words.
pub fn explain(error: Errno) -> String {
    io::Error::from(error).to_string()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::{ACK, Answer, DONE, ERROR, Message, answers, attributes, text};

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it() {
        let mut message = Message::new(0x0a01, ACK, &[1, 0, 0, 0]);
        message.text(1, "ab");
        message.nested(2, |inner| inner.number(3, 0x0102_0304));
        let bytes = message.finish(7);
        let mut expected = Vec::new();
        expected.extend(40_u32.to_ne_bytes());
        expected.extend(0x0a01_u16.to_ne_bytes());
        expected.extend((ACK | 1).to_ne_bytes());
        expected.extend(7_u32.to_ne_bytes());
        expected.extend(0_u32.to_ne_bytes());
        expected.extend([1, 0, 0, 0]);
        expected.extend(7_u16.to_ne_bytes());
        expected.extend(1_u16.to_ne_bytes());
        expected.extend(*b"ab\0\0");
        expected.extend(12_u16.to_ne_bytes());
        expected.extend(0x8002_u16.to_ne_bytes());
        expected.extend(8_u16.to_ne_bytes());
        expected.extend(3_u16.to_ne_bytes());
        expected.extend([1, 2, 3, 4]);
        assert_eq!(bytes, expected);
        let found: Vec<(u16, &[u8])> = attributes(&bytes[20..]).collect();
        assert_eq!(found[0], (1, &b"ab\0"[..]));
        assert_eq!(text(found[0].1), "ab");
        assert_eq!(found[1].0, 2);
        assert_eq!(attributes(found[1].1).next(), Some((3, &[1, 2, 3, 4][..])));
    }

    #[test]
    fn answers_are_told_apart() {
        let mut bytes = Vec::new();
        let refused = Errno::PERM.raw_os_error().wrapping_neg().to_ne_bytes();
        bytes.extend(Message::new(ERROR, 0, &[0; 4]).finish(1));
        bytes.extend(Message::new(ERROR, 0, &refused).finish(2));
        bytes.extend(Message::new(0x0a03, 0, &[9; 4]).finish(3));
        bytes.extend(Message::new(DONE, 0, &[0; 4]).finish(3));
        bytes.extend(Message::new(DONE, 0, &refused).finish(4));
        bytes.extend([0xff; 7]);
        let found: Vec<Answer<'_>> = answers(&bytes).collect();
        assert_eq!(
            found,
            [
                Answer::Status(1, Ok(())),
                Answer::Status(2, Err(Errno::PERM)),
                Answer::Object(3, 0x0a03, &[9; 4]),
                Answer::Done(3),
                Answer::Status(4, Err(Errno::PERM)),
            ]
        );
    }

    #[test]
    fn malformed_bytes_end_the_reading() {
        for bytes in [&[][..], &[3, 0, 1, 0], &[8, 0, 1, 0, 1], &[0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
            assert_eq!(answers(bytes).count(), 0, "{bytes:?}");
        }
    }
}
