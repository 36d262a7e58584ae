//! HPACK (RFC 7541) by hand: blocks that say exactly what a test wants, also what no encoder
//! would, and a decoder for what comes back.

use std::collections::VecDeque;

use super::huffman;

/// The static table, from index 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The size of the dynamic table unless SETTINGS say another.
const TABLE: usize = 4_096;
/// What a block may come to when it is decoded.
const MOST: usize = 64 << 20;

/// A field: name and value, any bytes.
pub type Field = (Vec<u8>, Vec<u8>);

/// Writes a header block, representation by representation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block(Vec<u8>);

impl Block {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The pseudo-header fields of a request, as literals.
    pub fn request(method: &str, authority: &str, path: &str) -> Self {
        Self::new()
            .literal(":method", method)
            .literal(":scheme", "http")
            .literal(":authority", authority)
            .literal(":path", path)
    }

    /// The pseudo-header field of an answer, as a literal.
    pub fn answer(status: u16) -> Self {
        Self::new().literal(":status", status.to_string())
    }

    /// A field of a table: up to 61 of the static one, from 62 on the newest of the dynamic one.
    #[must_use]
    pub fn indexed(mut self, index: usize) -> Self {
        self.integer(0x80, 7, index);
        self
    }

    /// A field without indexing.
    #[must_use]
    pub fn literal(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.named(0x00, 4, name.as_ref(), value.as_ref())
    }

    /// A field that enters the dynamic table.
    #[must_use]
    pub fn incremental(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.named(0x40, 6, name.as_ref(), value.as_ref())
    }

    /// A field that is never to be indexed.
    #[must_use]
    pub fn never(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.named(0x10, 4, name.as_ref(), value.as_ref())
    }

    /// A change of the size of the dynamic table.
    #[must_use]
    pub fn table_size(mut self, size: usize) -> Self {
        self.integer(0x20, 5, size);
        self
    }

    /// Any bytes.
    #[must_use]
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend(bytes.as_ref());
        self
    }

    /// What was written.
    pub fn bytes(self) -> Vec<u8> {
        self.0
    }

    fn named(mut self, kind: u8, bits: u32, name: &[u8], value: &[u8]) -> Self {
        self.integer(kind, bits, 0);
        self.integer(0, 7, name.len());
        self.0.extend(name);
        self.integer(0, 7, value.len());
        self.0.extend(value);
        self
    }

    /// An integer with a prefix of so many bits (RFC 7541, 5.1).
    fn integer(&mut self, kind: u8, bits: u32, mut value: usize) {
        let most = (1_usize << bits) - 1;
        let low = |value: usize| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
        if value < most {
            self.0.push(kind | low(value));
            return;
        }
        self.0.push(kind | low(most));
        value -= most;
        while value >= 0x80 {
            self.0.push(low(value & 0x7f) | 0x80);
            value >>= 7;
        }
        self.0.push(low(value));
    }
}

/// Reads header blocks, in the order in which they were sent.
#[derive(Debug)]
pub struct Decoder {
    entries: VecDeque<Field>,
    size: usize,
    /// What the other side keeps to.
    most: usize,
    /// What it may set.
    allowed: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            most: TABLE,
            allowed: TABLE,
        }
    }
}

impl Decoder {
    /// Says which size of the dynamic table our SETTINGS allow.
    pub fn allow(&mut self, size: usize) {
        self.allowed = size;
    }

    /// Reads a block; what is wrong with it, in words.
    pub fn decode(&mut self, block: &[u8]) -> Result<Vec<Field>, &'static str> {
        let mut rest = block;
        let (mut fields, mut size) = (Vec::new(), 0);
        while let [first, ..] = *rest {
            let field = if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                self.entry(index)?
            } else if first & 0xe0 == 0x20 {
                let most = integer(&mut rest, 5)?;
                if most > self.allowed {
                    return Err("a table larger than SETTINGS allow");
                }
                self.most = most;
                self.evict();
                continue;
            } else {
                let is_incremental = first & 0x40 != 0;
                let index = integer(&mut rest, if is_incremental { 6 } else { 4 })?;
                let name = match index {
                    0 => string(&mut rest)?,
                    index => self.entry(index)?.0,
                };
                let field = (name, string(&mut rest)?);
                if is_incremental {
                    self.size += cost(&field);
                    self.entries.push_front(field.clone());
                    self.evict();
                }
                field
            };
            size += cost(&field);
            if size > MOST {
                return Err("a block larger than this decoder takes");
            }
            fields.push(field);
        }
        Ok(fields)
    }

    fn entry(&self, index: usize) -> Result<Field, &'static str> {
        let from_static =
            |(name, value): &(&str, &str)| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        match index.checked_sub(1) {
            None => Err("index 0"),
            Some(at) if at < STATIC.len() => Ok(from_static(&STATIC[at])),
            Some(at) => {
                let entry = self.entries.get(at - STATIC.len());
                entry.cloned().ok_or("an index beyond the tables")
            }
        }
    }

    fn evict(&mut self) {
        while self.size > self.most
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= cost(&entry);
        }
    }
}

/// RFC 7541, 4.1
fn cost(field: &Field) -> usize {
    field.0.len() + field.1.len() + 32
}

fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, &'static str> {
    const CUT: &str = "an integer that is cut off";
    let most = (1_usize << bits) - 1;
    let mut next = || {
        let (first, after) = rest.split_first().ok_or(CUT)?;
        *rest = after;
        Ok::<_, &'static str>(usize::from(*first))
    };
    let mut value = next()? & most;
    if value < most {
        return Ok(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("an integer that is too large")
}

fn string(rest: &mut &[u8]) -> Result<Vec<u8>, &'static str> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (bytes, after) = rest
        .split_at_checked(length)
        .ok_or("a string that is cut off")?;
    *rest = after;
    match is_huffman {
        true => huffman::decode(bytes).ok_or("a malformed Huffman string"),
        false => Ok(bytes.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, value: &str) -> Field {
        (name.into(), value.into())
    }

    #[test]
    fn what_was_written_is_read() {
        let long = "x".repeat(5_000);
        let block = Block::request("GET", "a", "/")
            .indexed(7)
            .incremental("cookie", "a=b")
            .indexed(62)
            .never("secret", &long)
            .incremental("second", "2")
            .indexed(63)
            .bytes();
        let mut decoder = Decoder::default();
        let fields = decoder.decode(&block).unwrap();
        assert_eq!(
            fields[4..],
            [
                field(":scheme", "https"),
                field("cookie", "a=b"),
                field("cookie", "a=b"),
                field("secret", &long),
                field("second", "2"),
                field("cookie", "a=b"),
            ]
        );
        assert_eq!(
            decoder.decode(&Block::new().indexed(62).bytes()).unwrap(),
            [field("second", "2")]
        );
        let none = Block::new().table_size(0).indexed(62).bytes();
        assert!(decoder.decode(&none).is_err());
    }

    #[test]
    fn examples_of_the_rfc_are_read() {
        // RFC 7541, C.6.1 and C.6.2: two answers with Huffman strings on one connection, of a
        // table of 256 bytes.
        let mut decoder = Decoder {
            most: 256,
            ..Decoder::default()
        };
        let first = b"\x48\x82\x64\x02\x58\x85\xae\xc3\x77\x1a\x4b\x61\x96\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff\x6e\x91\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3";
        let date = field("date", "Mon, 21 Oct 2013 20:13:21 GMT");
        let place = field("location", "https://www.example.com");
        let private = field("cache-control", "private");
        let expected = [
            field(":status", "302"),
            private.clone(),
            date.clone(),
            place.clone(),
        ];
        assert_eq!(decoder.decode(first).unwrap(), expected);
        assert_eq!(decoder.size, 222);
        let second = b"\x48\x83\x64\x0e\xff\xc1\xc0\xbf";
        let expected = [field(":status", "307"), private, date, place];
        assert_eq!(decoder.decode(second).unwrap(), expected);
        assert_eq!(decoder.size, 222);
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for bad in [
            &b"\x80"[..],
            b"\xff\xff\xff\xff\xff\xff\xff",
            b"\xbe",
            b"\x00\x05ab",
            b"\x3f\xe2\x1f",
            b"\x7f",
        ] {
            assert!(Decoder::default().decode(bad).is_err(), "{bad:?}");
        }
    }
}
