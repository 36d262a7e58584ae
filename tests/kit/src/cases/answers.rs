//! What bad servers answer (T9).

use std::time::Duration;

use crate::raw1::{Attempt, End, Plan, Slicing};
use crate::strict::{self, Asked, Message};

/// In bytes that are never to be seen by any client.
const NEVER: &[u8] = b"SMUGGLED";

/// What the client must get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This status and this body, as one strict answer.
    Passed(u16, &'static str),
    /// 502 in its place.
    Refused,
    /// Its head and a part of the body may pass, but not its end; or 502.
    Broken,
    /// Either as it is, with this status and body, or 502: both are right.
    Either(u16, &'static str),
}

/// What a server sends for one request, and what must come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerCase {
    /// Unique within its table.
    pub name: String,
    /// The method of the request that it answers: GET or HEAD.
    pub method: &'static str,
    /// The bytes on the wire. The server closes after them if `closes`.
    pub bytes: Vec<u8>,
    /// See `bytes`.
    pub closes: bool,
    /// What the client gets. Whatever it is, no other request may be answered with what is left.
    pub expected: Answer,
    /// Whether the connection to the server may serve another request afterwards.
    pub reusable: bool,
}

type Row = (&'static str, &'static str, &'static [u8], bool, Answer);

const GET: &str = "GET";
const HEAD: &str = "HEAD";
const OK: Answer = Answer::Passed(200, "hello");
const NO: Answer = Answer::Refused;

#[rustfmt::skip]
const TABLE: &[Row] = &[
    ("plain", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, OK),
    ("chunked", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false, OK),
    ("trailers", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n", false, OK),
    ("close-delimited", GET, b"HTTP/1.1 200 OK\r\n\r\nhello", true, OK),
    ("http/1.0", GET, b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", true, OK),
    ("http/1.0, close-delimited", GET, b"HTTP/1.0 200 OK\r\n\r\nhello", true, OK),
    ("no reason", GET, b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", false, OK),
    ("no blank after status", GET, b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", false, OK),
    ("long reason", GET, b"HTTP/1.1 200 All is well, \xe9\t!\r\nContent-Length: 5\r\n\r\nhello", false, OK),
    ("status 599", GET, b"HTTP/1.1 599 Own\r\nContent-Length: 5\r\n\r\nhello", false, Answer::Passed(599, "hello")),
    ("204", GET, b"HTTP/1.1 204 No Content\r\n\r\n", false, Answer::Passed(204, "")),
    ("304 with a length", GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, Answer::Passed(304, "")),
    ("head with a length", HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, Answer::Passed(200, "")),
    ("head with chunks", HEAD, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, Answer::Passed(200, "")),
    ("100 first", GET, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, OK),
    ("103 first", GET, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, OK),
    // Framing.
    ("length and coding", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false, NO),
    ("coding and length", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 15\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false, NO),
    ("two lengths", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("two lengths, unequal", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 13\r\n\r\nhelloSMUGGLED", false, NO),
    ("list of lengths", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", false, NO),
    ("length with plus", GET, b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", false, NO),
    ("length with minus", GET, b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", true, NO),
    ("length in hex", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello", false, NO),
    ("length with letters", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5abc\r\n\r\nhello", true, NO),
    ("empty length", GET, b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello", true, NO),
    ("length too large", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551621\r\n\r\nhello", true, NO),
    ("two codings", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false, NO),
    ("gzip, chunked", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false, NO),
    ("identity", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nhello", true, NO),
    ("xchunked", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true, NO),
    ("quoted chunked", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \"chunked\"\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true, NO),
    ("empty coding", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\nhello", true, NO),
    ("coding in http/1.0", GET, b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true, NO),
    ("204 with a length", GET, b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", false, Answer::Either(204, "")),
    ("204 with a body", GET, b"HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\nSMUGGLED", false, Answer::Either(204, "")),
    ("204 and bytes", GET, b"HTTP/1.1 204 No Content\r\n\r\nSMUGGLED", false, Answer::Either(204, "")),
    ("304 and bytes", GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\nSMUGGLED", false, Answer::Either(304, "")),
    ("head and bytes", HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nSMUGGLED", false, Answer::Either(200, "")),
    ("bytes after the end", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloSMUGGLED", false, Answer::Either(200, "hello")),
    ("an answer after the end", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nSMUGGLED", false, Answer::Either(200, "hello")),
    ("an answer after the last chunk", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nSMUGGLED", false, Answer::Either(200, "hello")),
    // Status lines.
    ("status 000", GET, b"HTTP/1.1 000 Zero\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("status 099", GET, b"HTTP/1.1 099 Low\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("status 600", GET, b"HTTP/1.1 600 High\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("status 999", GET, b"HTTP/1.1 999 High\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("status 1000", GET, b"HTTP/1.1 1000 Long\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("status 20", GET, b"HTTP/1.1 20 Short\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("status 2xx", GET, b"HTTP/1.1 2xx Letters\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("status +20", GET, b"HTTP/1.1 +20 Sign\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("no status", GET, b"HTTP/1.1 OK\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("two blanks", GET, b"HTTP/1.1  200 OK\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("tab after status", GET, b"HTTP/1.1 200\tOK\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("nul in reason", GET, b"HTTP/1.1 200 O\0K\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("cr in reason", GET, b"HTTP/1.1 200 O\rK\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("http/1.2", GET, b"HTTP/1.2 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("http/2.0", GET, b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("icy", GET, b"ICY 200 OK\r\nContent-Length: 5\r\n\r\nhello", true, NO),
    ("http/0.9", GET, b"<html>hello</html>", true, NO),
    ("empty line first", GET, b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("a request", GET, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true, NO),
    // Fields.
    ("lf after status line", GET, b"HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("lf after a field", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\n\r\nhello", false, NO),
    ("lf ends the head", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\nhello", true, NO),
    ("only lf", GET, b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", true, NO),
    ("cr in value", GET, b"HTTP/1.1 200 OK\r\na: b\rContent-Length: 0\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("lf in value", GET, b"HTTP/1.1 200 OK\r\na: b\nset-cookie: SMUGGLED\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("nul in value", GET, b"HTTP/1.1 200 OK\r\na: b\0\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("escape in value", GET, b"HTTP/1.1 200 OK\r\na: \x1bb\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("folded", GET, b"HTTP/1.1 200 OK\r\na: b\r\n c\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("empty name", GET, b"HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("blank before colon", GET, b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello", true, NO),
    ("no colon", GET, b"HTTP/1.1 200 OK\r\nSMUGGLED\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    ("name with obs-text", GET, b"HTTP/1.1 200 OK\r\na\xff: b\r\nContent-Length: 5\r\n\r\nhello", false, NO),
    // What nobody asked for.
    ("101 that nobody asked for", GET, b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nSMUGGLED", false, NO),
    ("100 with a body", GET, b"HTTP/1.1 100 Continue\r\nContent-Length: 8\r\n\r\nSMUGGLEDHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true, NO),
    ("only 100", GET, b"HTTP/1.1 100 Continue\r\n\r\n", true, NO),
    // Cut.
    ("nothing", GET, b"", true, NO),
    ("half a status line", GET, b"HTTP/1.1 20", true, NO),
    ("half a head", GET, b"HTTP/1.1 200 OK\r\nContent-Le", true, NO),
    ("head without its end", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", true, NO),
    ("half a body", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", true, Answer::Broken),
    ("no body", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Answer::Broken),
    ("half a chunk", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello", true, Answer::Broken),
    ("no last chunk", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", true, Answer::Broken),
    ("no end of trailers", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n", true, Answer::Broken),
    // Chunks.
    ("bad size", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n", false, Answer::Broken),
    ("size with a prefix", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", false, Answer::Broken),
    ("size with a blank", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n", false, Answer::Broken),
    ("size too large", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", false, Answer::Broken),
    ("lf after size", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", false, Answer::Broken),
    ("nothing after data", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", false, Answer::Broken),
    ("lf ends the body", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\n", false, Answer::Broken),
    ("trailer with nul", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\na: \0\r\n\r\n", false, Answer::Broken),
    ("trailer without a colon", GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nSMUGGLED\r\n\r\n", false, Answer::Broken),
];

/// T9. `informational` is how many interim answers may come before one answer.
pub fn answers(informational: usize) -> Vec<AnswerCase> {
    let mut cases: Vec<AnswerCase> = TABLE
        .iter()
        .map(|(name, method, bytes, closes, expected)| AnswerCase {
            name: (*name).to_owned(),
            method,
            bytes: bytes.to_vec(),
            closes: *closes,
            expected: *expected,
            reusable: !*closes && matches!(expected, Answer::Passed(..)),
        })
        .collect();
    let early = "HTTP/1.1 103 Early Hints\r\n\r\n";
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let mut add = |name: &str, bytes: String, expected| {
        cases.push(AnswerCase {
            name: name.to_owned(),
            method: GET,
            bytes: bytes.into_bytes(),
            closes: false,
            expected,
            reusable: expected == OK,
        });
    };
    add(
        "interim answers within",
        early.repeat(informational) + last,
        OK,
    );
    add(
        "interim answers above",
        early.repeat(informational + 1) + last,
        NO,
    );
    add("interim answers far above", early.repeat(100) + last, NO);
    let large = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(10 << 20));
    add("head of 10 MB", large, NO);
    let many = "a: b\r\n".repeat(10_000);
    add(
        "10,000 fields",
        format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
        NO,
    );
    cases
}

impl AnswerCase {
    /// The request, to a path of its own, and how to send it.
    pub fn plan(&self, host: &str, path: &str, patience: Duration) -> Plan {
        let request = format!("{} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n", self.method);
        Plan {
            asked: vec![Asked::of(request.as_bytes())],
            bytes: request.into_bytes(),
            slicing: Slicing::Whole,
            then_half_close: false,
            patience,
        }
    }
}

/// Judges what the client got; what is wrong, in words.
pub fn judge_answer(case: &AnswerCase, attempt: &Attempt) -> Result<(), String> {
    let seen = &attempt.received;
    let result = match seen.windows(NEVER.len()).any(|window| window == NEVER) {
        true => Err("what is left after an answer was seen by a client".to_owned()),
        false => judge(case, attempt),
    };
    result.map_err(|wrong| format!("answer {}: {wrong}", case.name))
}

fn judge(case: &AnswerCase, attempt: &Attempt) -> Result<(), String> {
    if attempt.end == End::Open {
        return Err("the connection was left open".to_owned());
    }
    let asked = Asked::of(case.method.as_bytes());
    let asked = match case.method {
        HEAD => Asked::Head,
        _ => asked,
    };
    let read = strict::answers(&attempt.received, &[asked]);
    let last = read.map(|reading| reading.messages.into_iter().next_back());
    let got = |status: u16, body: &str| {
        let is_it = |answer: &Message| answer.status() == status && answer.body == body.as_bytes();
        matches!(&last, Ok(Some(answer)) if is_it(answer))
    };
    let refused = matches!(&last, Ok(Some(answer)) if answer.status() == 502);
    let is_right = match case.expected {
        Answer::Passed(status, body) => got(status, body),
        Answer::Refused => refused,
        Answer::Either(status, body) => refused || got(status, body),
        // Cut off, and not in a way that reads as a whole answer.
        Answer::Broken => refused || last.is_err() || attempt.received.is_empty(),
    };
    match is_right {
        true => Ok(()),
        false => Err(format!("{last:?} instead of {:?}", case.expected)),
    }
}
