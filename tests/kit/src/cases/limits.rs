//! Both sides of every number (T8, T10).

use super::{Case, Expected, ONE, Then, passed, refused};

/// The numbers of whoever is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Bytes of a head, request line and empty line included.
    pub head: usize,
    /// Bytes of a target.
    pub target: usize,
    /// Fields of a head.
    pub fields: usize,
    /// Bytes of a trailer section.
    pub trailer: usize,
    /// Bytes of the extensions of one chunk.
    pub extension: usize,
    /// What the tested adds to a message on its way, in fields and bytes: cases that must pass
    /// stay so far below the numbers.
    pub added: (usize, usize),
}

/// A head too large.
const HEAD: Expected = refused(&[431]);
const TARGET: Expected = refused(&[414]);
const BODY: Expected = passed(0, Then::Broken(&[400, 431]));

/// T8: heads, targets, fields, trailers and extensions, just within and just above the numbers,
/// and far above.
pub fn limits(host: &str, numbers: &Numbers) -> Vec<Case> {
    let (fields, bytes) = numbers.added;
    let mut cases = Vec::new();
    let request = |target: &str, fields: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
    };
    // One is Host.
    let with_fields = |count: usize| request("/case", &"a: b\r\n".repeat(count.saturating_sub(1)));
    let with_target = |length: usize| request(&format!("/{}", "x".repeat(length - 1)), "");
    let with_head = |length: usize| {
        let rest = request("/case", "a: \r\n").len();
        request("/case", &format!("a: {}\r\n", "x".repeat(length - rest)))
    };
    for (name, bytes, expected) in [
        ("fields within", with_fields(numbers.fields - fields), ONE),
        ("fields above", with_fields(numbers.fields + 1), HEAD),
        ("fields far above", with_fields(numbers.fields * 50), HEAD),
        ("target within", with_target(numbers.target - bytes), ONE),
        ("target above", with_target(numbers.target + 1), TARGET),
        ("head within", with_head(numbers.head - bytes), ONE),
        ("head above", with_head(numbers.head + 1), HEAD),
        ("head far above", with_head(numbers.head * 16), HEAD),
    ] {
        cases.push(Case::new(name, bytes, expected));
    }
    let cookies = request("/case", &"cookie: a=b\r\n".repeat(numbers.fields + 1));
    cases.push(Case::new("cookies above", cookies, HEAD));
    let endless = format!("GET /{}", "x".repeat(numbers.head.max(numbers.target) * 4));
    cases.push(Case::new(
        "target without end",
        endless,
        refused(&[414, 431]),
    ));
    let chunked = |body: &str| {
        let coding = "Transfer-Encoding: chunked\r\n";
        format!("POST /case HTTP/1.1\r\nHost: {host}\r\n{coding}\r\n{body}")
    };
    let extended =
        |length: usize| chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(length)));
    let trailed = |count: usize| chunked(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(count)));
    for (name, bytes, expected) in [
        ("extension within", extended(numbers.extension - 8), ONE),
        ("extension above", extended(numbers.extension * 2), BODY),
        ("extension far above", extended(1 << 20), BODY),
        ("trailers within", trailed(numbers.fields / 2), ONE),
        ("trailers above", trailed(numbers.fields * 10), BODY),
        (
            "trailer above",
            chunked(&format!(
                "0\r\na: {}\r\n\r\n",
                "x".repeat(numbers.trailer + 1)
            )),
            BODY,
        ),
    ] {
        cases.push(Case::new(name, bytes, expected));
    }
    cases
}
