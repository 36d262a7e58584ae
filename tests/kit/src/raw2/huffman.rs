//! The Huffman code of HPACK (RFC 7541, appendix B), as far as reading it goes. The code is
//! canonical: the lengths of its words say all.

/// Bits of the word of each byte, and of the end of the string.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const LONGEST: usize = 30;
const END: usize = 256;

/// Reads a string; `None` if it is malformed: the word for its end inside, or padding that is
/// not up to 7 bits of ones.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let code = code();
    let mut out = Vec::new();
    let (mut word, mut length) = (0_u32, 0_usize);
    for byte in bytes {
        for bit in (0..8).rev() {
            word = word << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let Level { first, symbols } = &code[length];
            let symbol = word
                .checked_sub(*first)
                .and_then(|at| symbols.get(at as usize));
            match symbol {
                Some(&END) => return None,
                Some(symbol) => {
                    out.push(u8::try_from(*symbol).ok()?);
                    (word, length) = (0, 0);
                }
                None if length == LONGEST => return None,
                None => {}
            }
        }
    }
    (length < 8 && word == (1 << length) - 1).then_some(out)
}

/// The words of one length: the first of them, and whose they are.
#[derive(Default)]
struct Level {
    first: u32,
    symbols: Vec<usize>,
}

fn code() -> Vec<Level> {
    let mut levels = vec![Level::default()];
    let mut next = 0;
    for length in 1..=LONGEST {
        next <<= 1;
        let of_length = |symbol: &usize| usize::from(LENGTHS[*symbol]) == length;
        let symbols: Vec<usize> = (0..LENGTHS.len()).filter(of_length).collect();
        let count = u32::try_from(symbols.len()).unwrap_or_default();
        levels.push(Level {
            first: next,
            symbols,
        });
        next += count;
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_complete() {
        // Kraft's sum is one: every sequence of bits is read.
        let sum: u64 = LENGTHS
            .iter()
            .map(|length| 1 << (LONGEST as u8 - length))
            .sum();
        assert_eq!(sum, 1 << LONGEST);
    }

    #[test]
    fn examples_of_the_rfc_are_read() {
        // RFC 7541, C.4 and C.6.
        for (bytes, text) in [
            (
                &b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..],
                "www.example.com",
            ),
            (b"\xa8\xeb\x10\x64\x9c\xbf", "no-cache"),
            (b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", "custom-value"),
            (b"\x64\x02", "302"),
            (b"\xae\xc3\x77\x1a\x4b", "private"),
            (b"", ""),
        ] {
            assert_eq!(decode(bytes).as_deref(), Some(text.as_bytes()), "{text}");
        }
        for bad in [&b"\xff\xff\xff\xff"[..], b"\x64\x02\x00", b"\xff"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}
