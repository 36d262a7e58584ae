//! What a connection speaks, by its first bytes.

use std::{io, time::Duration};

use bytes::Bytes;
use memchr::memchr;
use tokio::time::timeout;

use crate::{config::AppProtocol, io::Io};

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// A TLS record with a handshake.
    Tls,
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// Something else.
    Opaque,
    /// Too few bytes to tell.
    NeedMore,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longer than every registered method.
const LONGEST_METHOD: usize = 24;

/// Classifies the first bytes. Pure.
#[must_use]
pub fn classify(bytes: &[u8]) -> Detected {
    let Some(&first) = bytes.first() else {
        return Detected::NeedMore;
    };
    if first == 0x16 {
        return match bytes.get(1) {
            Some(3) => Detected::Tls,
            Some(_) => Detected::Opaque,
            None => Detected::NeedMore,
        };
    }
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return if common == PREFACE.len() {
            Detected::Http2
        } else {
            Detected::NeedMore
        };
    }
    request_line(bytes)
}

/// An HTTP/1 request line: a method in capitals, a space, and a target that starts as one.
/// That is as much as tells it from protocols in which clients speak words too.
fn request_line(bytes: &[u8]) -> Detected {
    let method = bytes
        .iter()
        .take_while(|b| b.is_ascii_uppercase() || **b == b'-')
        .count();
    match bytes.get(method) {
        None if method <= LONGEST_METHOD => Detected::NeedMore,
        Some(b' ') if (1..=LONGEST_METHOD).contains(&method) => match bytes.get(method + 1) {
            None => Detected::NeedMore,
            Some(b'/' | b'*') => version(&bytes[method + 1..]),
            Some(b) if b.is_ascii_alphanumeric() || *b == b'[' => version(&bytes[method + 1..]),
            Some(_) => Detected::Opaque,
        },
        _ => Detected::Opaque,
    }
}

/// The rest of a request line must end in ` HTTP/1.x`.
fn version(rest: &[u8]) -> Detected {
    /// The longest target that a setting may allow, and the version.
    const LONGEST: usize = 64 * 1024;
    let rest = &rest[..rest.len().min(LONGEST)];
    let Some(end) = memchr(b'\n', rest) else {
        return if rest.len() == LONGEST {
            Detected::Opaque
        } else {
            Detected::NeedMore
        };
    };
    let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
    let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
    if version.starts_with(b"HTTP/1.") {
        Detected::Http1
    } else {
        Detected::Opaque
    }
}

/// Reads until the bytes tell, and puts them back.
///
/// # Errors
/// When the connection fails first. Not cancel safe: what was read is lost.
pub async fn read(mut io: Io) -> io::Result<(Io, Detected)> {
    let mut seen = Vec::new();
    let detected = loop {
        match classify(&seen) {
            Detected::NeedMore => {}
            detected => break detected,
        }
        if io.read_more(&mut seen).await? == 0 {
            // It ended before it told: whatever it is, it is no HTTP.
            break Detected::Opaque;
        }
    };
    Ok((io.rewind(Bytes::from(seen)), detected))
}

/// Which HTTP a client speaks that is known to speak HTTP: only the HTTP/2 preface makes a
/// difference, and what is malformed is for the HTTP/1 parser to refuse.
///
/// # Errors
/// When the connection fails or ends before it told, says nothing for `idle`, or does not finish
/// a preface in the time for a head.
pub async fn http(
    mut io: Io,
    idle: Option<Duration>,
    head: Duration,
) -> io::Result<(Io, AppProtocol)> {
    let mut seen = Vec::new();
    let first = io.read_more(&mut seen);
    let mut read = match idle {
        Some(idle) => timeout(idle, first).await??,
        None => first.await?,
    };
    let telling = async {
        while read > 0 {
            let common = seen.len().min(PREFACE.len());
            if seen[..common] != PREFACE[..common] {
                return Ok(AppProtocol::Http1);
            }
            if common == PREFACE.len() {
                return Ok(AppProtocol::Http2);
            }
            read = io.read_more(&mut seen).await?;
        }
        Err(io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    let protocol = timeout(head, telling).await??;
    Ok((io.rewind(Bytes::from(seen)), protocol))
}

#[cfg(test)]
mod tests {
    use super::{Detected, PREFACE, classify};

    #[test]
    fn first_bytes_tell() {
        use Detected::{Http1, Http2, NeedMore, Opaque, Tls};
        for (input, expected) in [
            (&b""[..], NeedMore),
            (b"\x16", NeedMore),
            (b"\x16\x03\x01\x02", Tls),
            (b"\x16\x99", Opaque),
            (b"G", NeedMore),
            (b"GET /", NeedMore),
            (b"GET / HTTP/1.1\r\n", Http1),
            (b"GET / HTTP/1.0\n", Http1),
            (b"POST http://a/b HTTP/1.1\r\nHost: a\r\n", Http1),
            (b"CONNECT a:1 HTTP/1.1\r\n", Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Http1),
            (b"M-SEARCH / HTTP/1.1\r\n", Http1),
            (b"GET key\r\n", Opaque),
            (b"PUB topic 5\r\n", Opaque),
            (b"HELO\r\n", Opaque),
            (b"EHLO host\r\n", Opaque),
            (b"get / HTTP/1.1\r\n", Opaque),
            (b"\x00\x00\x00", Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Opaque),
            (b"PRI", NeedMore),
            (PREFACE, Http2),
        ] {
            assert_eq!(
                classify(input),
                expected,
                "{:?}",
                String::from_utf8_lossy(input)
            );
        }
        for cut in 1..PREFACE.len() {
            assert_eq!(classify(&PREFACE[..cut]), NeedMore, "{cut}");
        }
        // What is too long is told as such, however much of it is there.
        let word = "A".repeat(25);
        assert_eq!(classify(word.as_bytes()), Opaque);
        assert_eq!(classify(format!("{word} /").as_bytes()), Opaque);
        assert_eq!(classify(format!("{} /", &word[1..]).as_bytes()), NeedMore);
        for (target, told) in [(65_000, Http1), (66_000, Opaque)] {
            let line = format!("GET {} HTTP/1.1\r\n", "/".repeat(target));
            assert_eq!(classify(line.as_bytes()), told, "{target}");
        }
        assert_eq!(classify(&b"GET /".repeat(13_000)), NeedMore);
        assert_eq!(classify(&b"GET /".repeat(14_000)), Opaque);
    }
}
