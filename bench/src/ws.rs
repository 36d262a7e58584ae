//! As much of WebSocket (RFC 6455) as an echo needs: the handshake and single frames of up
//! to 64 KiB. Pure: bytes in, bytes out.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;

/// One unfragmented frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`.
pub(crate) fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest::digest(
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        text.as_bytes(),
    ))
}

/// Takes one frame off the front of `buffer`; `None` while it is not all there.
/// A frame too long for this codec is an error.
pub(crate) fn decode(buffer: &mut Vec<u8>) -> Result<Option<Frame>, &'static str> {
    let [first, second, ..] = buffer[..] else {
        return Ok(None);
    };
    let (length, mut at) = match second & 0x7f {
        127 => return Err("a WebSocket frame longer than 64 KiB"),
        126 => match buffer.get(2..4) {
            Some(bytes) => (usize::from(u16::from_be_bytes([bytes[0], bytes[1]])), 4),
            None => return Ok(None),
        },
        short => (usize::from(short), 2),
    };
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        match buffer.get(at..at + 4) {
            Some(bytes) => mask.copy_from_slice(bytes),
            None => return Ok(None),
        }
        at += 4;
    }
    if buffer.len() < at + length {
        return Ok(None);
    }
    let payload = buffer[at..at + length]
        .iter()
        .zip(mask.iter().cycle())
        .map(|(byte, key)| byte ^ key)
        .collect();
    buffer.drain(..at + length);
    Ok(Some(Frame {
        opcode: first & 0x0f,
        payload,
    }))
}

/// The bytes of a frame; clients mask (`mask`), servers do not. At most 64 KiB - 1.
pub(crate) fn encode(frame: &Frame, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut bytes = vec![0x80 | frame.opcode];
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match u8::try_from(frame.payload.len()) {
        Ok(length @ 0..=125) => bytes.push(masked | length),
        _ => {
            let length =
                u16::try_from(frame.payload.len()).expect("payloads here are shorter than 64 KiB");
            bytes.push(masked | 126);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    bytes.extend(
        frame
            .payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_the_example_of_the_rfc() {
        assert_eq!(
            accept("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn frames_survive_the_wire_in_any_pieces() {
        for (length, mask) in [
            (0, None),
            (5, Some([1, 2, 3, 4])),
            (125, None),
            (126, Some([9; 4])),
            (60_000, None),
        ] {
            let frame = Frame {
                opcode: TEXT,
                payload: vec![b'x'; length],
            };
            let bytes = encode(&frame, mask);
            let mut buffer = Vec::new();
            for (i, byte) in bytes.iter().enumerate() {
                assert_eq!(decode(&mut buffer), Ok(None), "{length} at {i}");
                buffer.push(*byte);
            }
            buffer.push(0x88);
            assert_eq!(decode(&mut buffer), Ok(Some(frame)), "{length}");
            assert_eq!(buffer, [0x88], "the next frame stays");
        }
    }

    #[test]
    fn too_long_frames_are_refused() {
        assert!(decode(&mut vec![0x81, 127]).is_err());
    }
}
