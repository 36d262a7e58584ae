//! Transfer codings (T2, T3): `Transfer-Encoding` bent in every way in which some server reads
//! `chunked` and another does not. All come with a `Content-Length` that covers the body, in
//! which there is a request for who reads chunks.

use super::{BAD_CODING, Case, Expected, ONE, refused, with_host};

/// The bytes that are most often read in two ways.
pub const FEW: &[u8] = &[
    0x00, 0x01, 0x04, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x1f, 0x20, 0x7f, 0x85, 0xa0, 0xff,
];

/// Values that are not exactly `chunked`.
const VALUES: &[(&str, &[u8])] = &[
    ("xchunked", b"xchunked"),
    ("chunkedx", b"chunkedx"),
    ("chunk", b"chunk"),
    ("identity", b"identity"),
    ("gzip", b"gzip"),
    ("gzip, chunked", b"gzip, chunked"),
    ("chunked, gzip", b"chunked, gzip"),
    ("chunked, identity", b"chunked, identity"),
    ("identity, chunked", b"identity, chunked"),
    ("chunked, chunked", b"chunked, chunked"),
    ("comma first", b",chunked"),
    ("comma last", b"chunked,"),
    ("commas", b", ,chunked"),
    ("chunked, cow", b"chunked, cow"),
    ("cow, chunked", b"cow, chunked"),
    ("words", b"cow chunked bar"),
    ("quoted", b"\"chunked\""),
    ("in apostrophes", b"'chunked'"),
    ("with a parameter", b"chunked;q=1"),
    ("with a semicolon", b"chunked;"),
    ("with a colon", b":chunked"),
    ("with an equals sign", b"=chunked"),
    ("pigeons", b"pigeons"),
    ("empty", b""),
    ("a blank", b" "),
    ("long s", b"chun\xe2\x84\xaaed"),
    ("accent", b"ch\x96nked"),
    ("in brackets", b"[chunked]"),
    ("percent", b"%63hunked"),
    ("null", b"null"),
];

/// Whole lines.
const LINES: &[(&str, &[u8])] = &[
    ("plain", b"Transfer-Encoding: chunked"),
    ("two blanks", b"Transfer-Encoding:  chunked"),
    ("capitals", b"TRANSFER-ENCODING: CHUNKED"),
    ("mixed case", b"tRANSFER-eNCODING: cHUNKED"),
    (
        "twice",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ),
    (
        "twice in two cases",
        b"Transfer-Encoding: chunked\r\ntransfer-encoding: chunked",
    ),
    (
        "identity, then chunked",
        b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    ),
    (
        "chunked, then identity",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    ),
    (
        "empty, then chunked",
        b"Transfer-Encoding:\r\nTransfer-Encoding: chunked",
    ),
    (
        "cow, then chunked",
        b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
    ),
    ("folded", b"Transfer-Encoding:\r\n chunked"),
    ("folded with a tab", b"Transfer-Encoding:\r\n\tchunked"),
    ("folded by lf", b"Transfer-Encoding:\n chunked"),
    ("folded list", b"Transfer-Encoding: chunked,\r\n identity"),
    ("name with a blank", b"Transfer Encoding: chunked"),
    ("name folded", b"Transfer-\r\n Encoding: chunked"),
    ("name with cr", b"Transfer\r-Encoding: chunked"),
    ("name with 0x82", b"Transf\x82r-Encoding: chunked"),
    ("name in quotes", b"\"Transfer-Encoding\": chunked"),
    ("after a cr", b"X: X\rTransfer-Encoding: chunked"),
    ("after an lf", b"X: X\nTransfer-Encoding: chunked"),
    ("after crcrlf", b"X: X\r\r\nTransfer-Encoding: chunked"),
    ("after lfcr", b"X: X\n\rTransfer-Encoding: chunked"),
    ("no colon", b"Transfer-Encoding chunked"),
    ("two colons", b"Transfer-Encoding:: chunked"),
    (
        "with a second line after nul",
        b"Transfer-Encoding: \0chunked",
    ),
];

/// Lines that are other fields: they say nothing about the body.
const OTHERS: &[(&str, &[u8])] = &[
    ("content-encoding", b"Content-Encoding: chunked"),
    ("te", b"X-Transfer-Encoding: chunked"),
    ("in a value", b"X: Transfer-Encoding: chunked"),
];

const CHUNKED: &[u8] = b"Transfer-Encoding: chunked";

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | 0x20..=0x7e | 0x80..)
}

/// T2, T3: the tables, and each of `bytes` in each of ten places.
pub fn codings(host: &str, bytes: &[u8]) -> Vec<Case> {
    let bad = refused(BAD_CODING);
    let mut cases = Vec::new();
    let mut add = |name: String, line: &[u8], expected: Expected| {
        cases.push(Case::new(name, with_length(host, line), expected));
    };
    for (name, value) in VALUES {
        add(
            format!("coding {name}"),
            &[b"Transfer-Encoding: ", *value].concat(),
            bad,
        );
    }
    for (name, line) in LINES {
        add(format!("coding line {name}"), line, bad);
    }
    for (name, line) in OTHERS {
        add(format!("no coding: {name}"), line, ONE);
    }
    for byte in bytes.iter().copied() {
        let other_name = if is_token(byte) { ONE } else { bad };
        let in_value = if is_text(byte) { ONE } else { bad };
        let places: [(&str, &[u8], &[u8], Expected); 10] = [
            ("before value", b"Transfer-Encoding:", b"chunked", bad),
            ("after name", b"Transfer-Encoding", b": chunked", other_name),
            ("before name", b"", CHUNKED, other_name),
            ("after value", CHUNKED, b"", bad),
            ("between fields", b"X: X", CHUNKED, in_value),
            ("before another field", CHUNKED, b"X: X", bad),
            ("after cr", b"X: X\r", CHUNKED, bad),
            ("before lf", b"X: X", b"\nTransfer-Encoding: chunked", bad),
            (
                "after value and cr",
                b"Transfer-Encoding: chunked\r",
                b"X: X",
                bad,
            ),
            ("after value, before lf", CHUNKED, b"\nX: X", bad),
        ];
        for (place, before, after, expected) in places {
            add(
                format!("coding with {byte:#04x} {place}"),
                &[before, &[byte], after].concat(),
                expected,
            );
        }
    }
    cases.extend(without_length(host));
    cases
}

fn with_length(host: &str, line: &[u8]) -> Vec<u8> {
    let body = format!("0\r\n\r\nGET /smug HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let length = body.len();
    let mut bytes = format!("POST /case HTTP/1.1\r\nHost: {host}\r\n").into_bytes();
    bytes.extend(line);
    bytes.extend(format!("\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes());
    bytes
}

/// Codings that come without a length, or after it.
fn without_length(host: &str) -> Vec<Case> {
    let bad = refused(BAD_CODING);
    let mut cases = Vec::new();
    let mut add = |name: String, bytes: Vec<u8>, expected: Expected| {
        cases.push(Case::new(name, with_host(&bytes, host), expected));
    };
    let head = b"POST /case HTTP/1.1\r\nHost: {host}\r\n";
    let body = b"5\r\nhello\r\n0\r\n\r\n";
    for (name, value) in VALUES {
        let line = [b"Transfer-Encoding: ", *value, b"\r\n\r\n"].concat();
        add(
            format!("only coding {name}"),
            [head, &*line, body].concat(),
            bad,
        );
    }
    for (name, line, expected) in [
        ("plain", &b"Transfer-Encoding: chunked\r\n\r\n"[..], ONE),
        ("capitals", b"TRANSFER-ENCODING: CHUNKED\r\n\r\n", ONE),
        (
            "blanks around",
            b"Transfer-Encoding: \t chunked\t \r\n\r\n",
            ONE,
        ),
        ("no blank", b"Transfer-Encoding:chunked\r\n\r\n", ONE),
        (
            "twice",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            bad,
        ),
        (
            "length first",
            b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n\r\n",
            bad,
        ),
        (
            "length after",
            b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n\r\n",
            bad,
        ),
        (
            "length of 0",
            b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
            bad,
        ),
        (
            "length of nothing",
            b"Content-Length:\r\nTransfer-Encoding: chunked\r\n\r\n",
            bad,
        ),
    ] {
        add(
            format!("only coding line {name}"),
            [head, line, body].concat(),
            expected,
        );
    }
    let old = b"POST /case HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n";
    add(
        "coding in http/1.0".into(),
        [&old[..], b"\r\n", body].concat(),
        bad,
    );
    let both = [&old[..], b"Content-Length: 15\r\n\r\n", body].concat();
    add("coding and length in http/1.0".into(), both, bad);
    let kept = [&old[..], b"Connection: keep-alive\r\n\r\n", body].concat();
    add("coding in http/1.0, kept alive".into(), kept, bad);
    let get = b"GET /case HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n";
    add("chunks of a get".into(), [get, &body[..]].concat(), ONE);
    cases
}
