//! HOT. What the value of a field may have in it, eight bytes at a time.

/// Whether the bytes may be a field's value: HTAB, SP, VCHAR and obs-text.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    let plain = match bytes.last_chunk::<8>() {
        // The last word covers the rest, and bytes before it once more.
        Some(last) => words.iter().all(|word| is_plain(*word)) && is_plain(*last),
        None => rest.iter().all(|b| is_text_byte(*b)),
    };
    plain || bytes.iter().all(|b| is_text_byte(*b))
}

const fn is_text_byte(b: u8) -> bool {
    (b >= 0x20 || b == b'\t') && b != 0x7f
}

/// Whether no byte is a control character; HTAB counts as one.
const fn is_plain(word: [u8; 8]) -> bool {
    controls(word) == 0
}

/// The highest bit of each byte that is a control character. The borrow of a subtraction may
/// reach the next byte, but only from one that is one: the first is always right.
const fn controls(word: [u8; 8]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_le_bytes(word);
    let del = word ^ (ONES * 0x7f);
    let below = word.wrapping_sub(ONES * 0x20) & !word;
    let zero = del.wrapping_sub(ONES) & !del;
    (below | zero) & (ONES * 0x80)
}

/// Where the first control character is; HTAB counts as one.
pub(super) fn first_control(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let found = controls(*word);
        if found != 0 {
            return Some(at * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let at = rest.iter().position(|b| *b < 0x20 || *b == 0x7f)?;
    Some(words.len() * 8 + at)
}
