//! Chunked bodies (T10), good and bad.

use super::{BROKEN, Case, Expected, ONE, TWO, with_host};

const HEAD: &[u8] = b"POST /case HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n";
/// After a body that is wrong: what must not become a request.
const SMUG: &[u8] = b"GET /smug HTTP/1.1\r\nHost: {host}\r\n\r\n";

const GOOD: &[(&str, &[u8], Expected)] = &[
    ("nothing", b"0\r\n\r\n", ONE),
    ("one chunk", b"5\r\nhello\r\n0\r\n\r\n", ONE),
    ("several", b"1\r\nh\r\n4\r\nello\r\n0\r\n\r\n", ONE),
    ("small hex", b"a\r\n0123456789\r\n0\r\n\r\n", ONE),
    ("capital hex", b"A\r\n0123456789\r\n0\r\n\r\n", ONE),
    ("zeros first", b"0005\r\nhello\r\n0\r\n\r\n", ONE),
    (
        "sixteen digits",
        b"0000000000000005\r\nhello\r\n0\r\n\r\n",
        ONE,
    ),
    ("many zeros at the end", b"5\r\nhello\r\n000\r\n\r\n", ONE),
    ("extension", b"5;a\r\nhello\r\n0\r\n\r\n", ONE),
    ("extensions", b"5;a=b;c;d=e\r\nhello\r\n0;f\r\n\r\n", ONE),
    (
        "quoted extension",
        b"5;a=\"b; \\\"c\\\"\"\r\nhello\r\n0\r\n\r\n",
        ONE,
    ),
    (
        "data like a chunk",
        b"c\r\n0\r\n\r\nGET /sm\r\n0\r\n\r\n",
        ONE,
    ),
    ("data like line ends", b"4\r\n\r\n\r\n\r\n0\r\n\r\n", ONE),
    ("trailer", b"5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n", ONE),
    (
        "trailers",
        b"5\r\nhello\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n",
        ONE,
    ),
    (
        "then another",
        b"5\r\nhello\r\n0\r\n\r\nGET /second HTTP/1.1\r\nHost: {host}\r\n\r\n",
        TWO,
    ),
    (
        "trailer, then another",
        b"0\r\nx-sum: 1\r\n\r\nGET /second HTTP/1.1\r\nHost: {host}\r\n\r\n",
        TWO,
    ),
];

const BAD: &[(&str, &[u8])] = &[
    ("no size", b"\r\nhello\r\n0\r\n\r\n"),
    ("letters", b"xyz\r\nhello\r\n0\r\n\r\n"),
    ("hex prefix", b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("capital hex prefix", b"0X5\r\nhello\r\n0\r\n\r\n"),
    ("plus", b"+5\r\nhello\r\n0\r\n\r\n"),
    ("minus", b"-5\r\nhello\r\n0\r\n\r\n"),
    ("minus zero", b"-0\r\n\r\n"),
    ("underscore", b"0_5\r\nhello\r\n0\r\n\r\n"),
    ("point", b"5.0\r\nhello\r\n0\r\n\r\n"),
    ("h suffix", b"5h\r\nhello\r\n0\r\n\r\n"),
    ("comma", b"5,\r\nhello\r\n0\r\n\r\n"),
    ("blank first", b" 5\r\nhello\r\n0\r\n\r\n"),
    ("tab first", b"\t5\r\nhello\r\n0\r\n\r\n"),
    ("blank last", b"5 \r\nhello\r\n0\r\n\r\n"),
    ("tab last", b"5\t\r\nhello\r\n0\r\n\r\n"),
    ("vertical tab last", b"5\x0b\r\nhello\r\n0\r\n\r\n"),
    ("nul last", b"5\0\r\nhello\r\n0\r\n\r\n"),
    ("blank inside", b"0 5\r\nhello\r\n0\r\n\r\n"),
    ("words after a blank", b"5 abc\r\nhello\r\n0 abc\r\n\r\n"),
    ("quoted", b"\"5\"\r\nhello\r\n0\r\n\r\n"),
    ("0xa0", b"\xa05\r\nhello\r\n0\r\n\r\n"),
    ("full-width digit", b"\xef\xbc\x95\r\nhello\r\n0\r\n\r\n"),
    (
        "seventeen digits",
        b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    ),
    ("2^63", b"8000000000000000\r\nhello\r\n0\r\n\r\n"),
    ("2^64 - 1", b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    ("2^64 and 5", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    (
        "2^32 twice and 5",
        b"100000000000000000000000000000005\r\nhello\r\n0\r\n\r\n",
    ),
    ("lf after size", b"5\nhello\r\n0\r\n\r\n"),
    ("cr after size", b"5\rhello\r\n0\r\n\r\n"),
    ("crcr after size", b"5\r\rhello\r\n0\r\n\r\n"),
    ("crcrlf after size", b"5\r\r\nhello\r\n0\r\n\r\n"),
    ("lf after data", b"5\r\nhello\n0\r\n\r\n"),
    ("cr after data", b"5\r\nhello\r0\r\n\r\n"),
    ("nothing after data", b"5\r\nhello0\r\n\r\n"),
    ("two bytes after data", b"5\r\nhelloXX0\r\n\r\n"),
    ("two empty lines after data", b"5\r\nhello\r\n\r\n0\r\n\r\n"),
    ("more data than size", b"4\r\nhello\r\n0\r\n\r\n"),
    ("less data than size", b"6\r\nhello\r\n0\r\n\r\n"),
    ("lf in extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    ("cr in extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("crcr in extension", b"5;a=b\r\rhello\r\n0\r\n\r\n"),
    ("cr before extension", b"5\r;a\r\nhello\r\n0\r\n\r\n"),
    ("nul in extension", b"5;a\0\r\nhello\r\n0\r\n\r\n"),
    ("escape in extension", b"5;a=\"\x1b\"\r\nhello\r\n0\r\n\r\n"),
    ("lf after last chunk", b"5\r\nhello\r\n0\n\r\n"),
    ("lf ends the body", b"5\r\nhello\r\n0\r\n\n"),
    ("two bytes end the body", b"5\r\nhello\r\n0\r\nXX"),
    ("cr ends the body", b"5\r\nhello\r\n0\r\n\rX"),
    ("trailer without a colon", b"0\r\nX\r\n\r\n"),
    ("trailer with an empty name", b"0\r\n: b\r\n\r\n"),
    ("trailer with a blank name", b"0\r\na : b\r\n\r\n"),
    ("trailer with lf", b"0\r\na: b\nc: d\r\n\r\n"),
    ("trailer with cr", b"0\r\na: b\rc: d\r\n\r\n"),
    ("trailer with nul", b"0\r\na: \0\r\n\r\n"),
    ("trailer folded", b"0\r\na: b\r\n c\r\n\r\n"),
    ("trailer that is folded first", b"0\r\n a: b\r\n\r\n"),
    ("a request in place of trailers", b"0\r\n"),
];

/// Fields that must not be trailers: they are dropped, and never become fields of the head.
const NEVER: &[&str] = &[
    "content-length: 5",
    "transfer-encoding: chunked",
    "host: smuggled",
    "authorization: smuggled",
    "cookie: smuggled=1",
    "content-type: text/smuggled",
    "connection: close",
    "weft-reason: smuggled",
];

/// T10: chunks, extensions and trailers.
pub fn chunks(host: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, body, expected) in GOOD {
        let bytes = with_host(&[HEAD, body].concat(), host);
        cases.push(Case::new(format!("chunks: {name}"), bytes, *expected));
    }
    for (name, body) in BAD {
        let bytes = with_host(&[HEAD, body, SMUG].concat(), host);
        cases.push(Case::new(format!("bad chunks: {name}"), bytes, BROKEN));
    }
    for trailer in NEVER {
        let with = |trailer: &str| {
            let body = format!("5\r\nhello\r\n0\r\n{trailer}x-sum: 1\r\n\r\n");
            with_host(&[HEAD, body.as_bytes()].concat(), host)
        };
        let case = Case::new(
            format!("trailer {trailer}"),
            with(&format!("{trailer}\r\n")),
            ONE,
        );
        cases.push(case.meaning(with("")));
    }
    cases
}
