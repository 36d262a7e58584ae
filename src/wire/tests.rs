//! Tables of bytes for the machines of HTTP/1. Each input is given whole, byte by byte, and cut
//! at each offset: what comes out must be the same.

use std::{collections::BTreeSet, str::from_utf8, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, Uri, Version};

use super::{
    head::{HeadLimits, RequestHead, is_authority},
    http1::{Asked, Expected, Line, Refusal, Requests, Responses, Resume, Step},
    rules::TABLE,
};
use crate::{error::Reason, limits::Limits};

/// Small, so that both sides of each fit a table.
const LIMITS: HeadLimits = HeadLimits {
    head: 200,
    target: 40,
    fields: 5,
    trailer: 30,
    extension: 8,
    informational: 2,
};

/// One of the two machines.
trait Machine {
    fn read(&mut self, input: &[u8]) -> (usize, Step);
}

impl Machine for Requests {
    fn read(&mut self, input: &[u8]) -> (usize, Step) {
        self.read(input)
    }
}

impl Machine for Responses {
    fn read(&mut self, input: &[u8]) -> (usize, Step) {
        self.read(input)
    }
}

/// Gives the machine `input` in these pieces, as a reader of a socket does. How many bytes
/// passed, and the last step.
fn feed<'a>(machine: &mut impl Machine, pieces: impl Iterator<Item = &'a [u8]>) -> (usize, Step) {
    let mut held = Vec::new();
    let mut passed = 0;
    let mut last = Step::More;
    for piece in pieces {
        held.extend_from_slice(piece);
        let (more, step) = machine.read(&held);
        held.drain(..more);
        passed += more;
        match step {
            Step::More => assert!(held.is_empty()),
            Step::Partial => assert!(!held.is_empty()),
            Step::Held | Step::Refused(_) | Step::Broken(_) => {}
        }
        last = step;
    }
    (passed, last)
}

/// The outcome of every way to cut `input`; it must be one.
fn outcome<T: Machine, O: PartialEq + std::fmt::Debug>(
    input: &[u8],
    new: impl Fn() -> T,
    look: impl Fn(&T) -> O,
) -> (usize, Step, O) {
    let run = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut machine = new();
        let (passed, step) = feed(&mut machine, pieces);
        (passed, step, look(&machine))
    };
    let whole = run(&mut std::iter::once(input));
    let shown = String::from_utf8_lossy(input);
    let dripped = run(&mut input.chunks(1));
    assert_eq!(dripped, whole, "byte by byte: {shown:?}");
    for at in 1..input.len() {
        let (begin, end) = input.split_at(at);
        assert_eq!(run(&mut [begin, end].into_iter()), whole, "{at}: {shown:?}");
    }
    whole
}

/// What is expected of some bytes.
#[derive(Clone, Copy, Debug)]
enum Is {
    /// All passes; so many heads.
    Whole(u64),
    /// All but so many bytes passes; those begin something.
    Partial(usize),
    /// All but so many bytes passes; those wait for the switch.
    Held(usize),
    /// All but so many bytes passes; those are refused by this rule.
    Refused(&'static str, usize),
}
use Is::{Held, Partial, Refused, Whole};

/// The whole of the input refused.
fn no(rule: &'static str) -> Is {
    Refused(rule, usize::MAX)
}

/// Why nothing more passes.
fn refusal(step: Step) -> Option<Refusal> {
    match step {
        Step::Refused(refusal) | Step::Broken(refusal) => Some(refusal),
        Step::More | Step::Partial | Step::Held => None,
    }
}

fn check(input: &[u8], is: Is, passed: usize, step: Step) {
    let shown = String::from_utf8_lossy(input);
    let (left, right_step) = match is {
        Whole(_) => (0, step == Step::More),
        Partial(left) => (left, step == Step::Partial),
        Held(left) => (left, step == Step::Held),
        Refused(rule, left) => {
            let refused = refusal(step).map(|refusal| refusal.rule);
            let same = refused == Some(rule);
            (left.min(input.len()), same)
        }
    };
    assert!(right_step, "{shown:?}: {step:?} instead of {is:?}");
    assert_eq!(input.len() - passed, left, "{shown:?}: {step:?}");
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Requests and what becomes of them. `<H>` in a text stands for `Host: a` CRLF.
fn requests() -> Vec<(Vec<u8>, Is)> {
    let mut table: Vec<(Vec<u8>, Is)> = Vec::new();
    let mut add = |text: &str, is| table.push((text.replace("<H>", "Host: a\r\n").into(), is));

    // Whole heads, and how they end.
    add("", Whole(0));
    add(GET, Whole(1));
    add(&format!("{GET}{GET}{GET}"), Whole(3));
    add("GET / HTTP/1.0\r\n\r\n", Whole(1));
    add("\r\nGET / HTTP/1.0\r\n\r\n", Whole(1));
    add("\r\n", Partial(2));
    add("G", Partial(1));
    add("GET / HTTP/1.1\r\n<H>\r", Partial(26));
    add(&format!("{GET}\r\nGET "), Partial(6));
    add("\r\n\r\nGET / HTTP/1.0\r\n\r\n", no("empty_lines"));
    add("\nGET / HTTP/1.0\r\n\r\n", no("bare_lf"));
    add("GET / HTTP/1.1\n<H>\r\n", no("bare_lf"));
    add("GET / HTTP/1.1\r\nHost: a\n\r\n", no("bare_lf"));
    add("GET / HTTP/1.1\r\n<H>\n", no("bare_lf"));
    add(&format!("{GET}\n"), Refused("bare_lf", 1));
    add("GET / HTTP/1.1\r\n<H>X: a\rb\r\n\r\n", no("bare_cr"));
    add("GET / HTTP/1.1\r\n<H>X: a\r\r\n\r\n", no("bare_cr"));
    add("GET / HTTP/1.1\r\n<H>\rX: a\r\n\r\n", no("field_name"));
    add("GET / HTTP/1.1\r\n<H>X: a\0b\r\n\r\n", no("control"));
    add("GET / HTTP/1.1\r\n<H>X: a\x7f\r\n\r\n", no("control"));

    // Request lines.
    for method in ["get", "M-SEARCH", "!#$%&'*+-.^_`|~09", "TRACE"] {
        add(&format!("{method} / HTTP/1.1\r\n<H>\r\n"), Whole(1));
    }
    for line in [
        "GET",
        "GET /",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "G(T / HTTP/1.1",
        "G\x00T / HTTP/1.1",
        "GET / / HTTP/1.1",
        "GET / http/1.1",
        "/ HTTP/1.1",
        "GET / HTTP/1.1\r",
        "GET  HTTP/1.1",
        "\rGET / HTTP/1.1",
    ] {
        let rule = match line {
            "GET / HTTP/1.1\r" => "version",
            "GET  HTTP/1.1" => "target_form",
            _ => "request_line",
        };
        add(&format!("{line}\r\n<H>\r\n"), no(rule));
    }
    for version in ["1.2", "1.", "1.10", "0.9", "2", "2.0", "3.0", "01.1", "1,1"] {
        add(&format!("GET / HTTP/{version}\r\n<H>\r\n"), no("version"));
    }
    add("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", no("http2_preface"));

    // Targets.
    for target in [
        "//",
        "/a/../b;c?d=e&f=%00%2e",
        "/\"{}|\\^[]'",
        "/?`{}|\\^[]'?/",
        "http://a/",
        "HTTPS://a.b:80/c?d",
        "http://a",
        "http://a?b",
        "http://[::1]:8080/",
    ] {
        add(
            &format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"),
            Whole(1),
        );
    }
    for (target, rule) in [
        ("/#", "target"),
        ("/?a#b", "target"),
        ("/<", "target"),
        ("/>", "target"),
        ("/`", "target"),
        ("/?\"", "target"),
        ("/\u{e9}", "target"),
        ("/a\x01", "target"),
        ("/a\x7f", "target"),
        ("http://", "target"),
        ("http:///a", "target"),
        ("http://u@a/", "target"),
        ("http://a,b/", "target"),
        ("http://a#b", "target"),
        ("http://a:/", "target"),
        ("http://a/b#c", "target"),
        ("http://a\\b/", "target"),
        ("admin", "target_form"),
        ("a:80", "target_form"),
        ("*", "target_form"),
        ("?a", "target_form"),
        ("http:/a", "target_form"),
        ("ftp://a/", "target_form"),
    ] {
        add(&format!("GET {target} HTTP/1.1\r\n<H>\r\n"), no(rule));
    }
    add("OPTIONS * HTTP/1.1\r\n<H>\r\n", Whole(1));
    add("OPTIONS *a HTTP/1.1\r\n<H>\r\n", no("target_form"));
    for target in ["a:80", "[::1]:443", "1.2.3.4:0"] {
        add(&format!("CONNECT {target} HTTP/1.1\r\n<H>\r\n"), Held(0));
    }
    for target in [
        "a",
        "a:",
        "/",
        "*",
        "http://a:80",
        "u@a:80",
        "a:80/",
        ":80",
        "a:65536",
    ] {
        add(
            &format!("CONNECT {target} HTTP/1.1\r\n<H>\r\n"),
            no("target_form"),
        );
    }

    // Limits.
    let target = |n: usize| format!("GET /{} HTTP/1.1\r\n<H>\r\n", "a".repeat(n - 1));
    add(&target(40), Whole(1));
    add(&target(41), no("target_too_long"));
    let head = |n: usize| format!("GET / HTTP/1.0\r\nX: {}\r\n\r\n", "a".repeat(n - 23));
    add(&head(200), Whole(1));
    add(&head(201), no("head_too_large"));
    add(&head(1000), no("head_too_large"));
    add(&"a".repeat(199), Partial(199));
    add(&"a".repeat(200), no("target_too_long"));
    add(
        &format!("GET / HTTP/1.1\r\n<H>{}\r\n", "A: b\r\n".repeat(4)),
        Whole(1),
    );
    add(
        &format!("GET / HTTP/1.1\r\n<H>{}\r\n", "A: b\r\n".repeat(5)),
        no("too_many_fields"),
    );

    // Fields.
    for field in [
        "X:",
        "X: ",
        "X:\t a\t ",
        "X:a:b",
        "!#$%&'*+-.^_`|~09: a",
        "X: \u{e9}\"(),/",
    ] {
        add(&format!("GET / HTTP/1.1\r\n<H>{field}\r\n\r\n"), Whole(1));
    }
    for (field, rule) in [
        (" X: a", "obs_fold"),
        ("\tX: a", "obs_fold"),
        ("X: a\r\n b", "obs_fold"),
        ("X: a\r\n\t", "obs_fold"),
        ("X : a", "space_before_colon"),
        ("X\t: a", "space_before_colon"),
        ("Content-Length : 1", "space_before_colon"),
        (": a", "field_name"),
        (":", "field_name"),
        ("X", "field_name"),
        ("X a", "field_name"),
        ("X Y: a", "field_name"),
        ("X(: a", "field_name"),
        ("X\u{e9}: a", "field_name"),
        ("X\x00: a", "field_name"),
        ("\"X\": a", "field_name"),
        ("{X}: a", "field_name"),
    ] {
        add(&format!("GET / HTTP/1.1\r\n<H>{field}\r\n\r\n"), no(rule));
        let first = if rule == "obs_fold" && field.starts_with('X') {
            continue;
        } else {
            field
        };
        add(&format!("GET / HTTP/1.1\r\n{first}\r\n<H>\r\n"), no(rule));
    }

    // Host.
    for host in [
        "a",
        "A.b-c_d~e",
        "a:0",
        "a:65535",
        "[::1]",
        "[::1]:80",
        "1.2.3.4:5",
        " a\t",
    ] {
        add(&format!("GET / HTTP/1.1\r\nhOsT:{host}\r\n\r\n"), Whole(1));
        add(&format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n"), Whole(1));
    }
    for host in [
        "",
        "a b",
        "a/b",
        "a/b?c",
        "u@a",
        "a,b",
        "a#",
        "a\\b",
        "a:b",
        "a:",
        ":80",
        "a:65536",
        "a:123456",
        "a:99999999999999999999",
        "a:+1",
        "a::1",
        "::1",
        "[::1",
        "::1]",
        "[::1]a",
        "[::g]",
        "[]",
        "[v1.a]",
        "[fe80::1%eth0]",
        "a%2eb",
        "\u{e9}",
        "\"a\"",
        "a:80:80",
        "a;b,c",
        "<a>",
        "http://a",
    ] {
        add(
            &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            no("host"),
        );
        add(
            &format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n"),
            no("host"),
        );
    }
    add("GET / HTTP/1.1\r\n\r\n", no("no_host"));
    add("GET http://a/ HTTP/1.1\r\n\r\n", no("no_host"));
    add("GET / HTTP/1.1\r\n<H><H>\r\n", no("two_hosts"));
    add("GET / HTTP/1.0\r\n<H><H>\r\n", no("two_hosts"));
    add("GET / HTTP/1.1\r\n<H>Hos: b\r\nHostt: c\r\n\r\n", Whole(1));

    // Content-Length.
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\n<H>{fields}\r\n{body}");
    for (length, body) in [("3", "abc"), ("0", ""), ("003", "abc"), (" \t3 \t", "abc")] {
        add(
            &post(&format!("Content-Length:{length}\r\n"), body),
            Whole(1),
        );
        let pipelined = format!("{body}{GET}");
        add(
            &post(&format!("content-LENGTH: {length}\r\n"), &pipelined),
            Whole(2),
        );
    }
    add(&post("Content-Length: 3\r\n", "ab"), Whole(1));
    add(&post("Content-Length: 3\r\n", "abcd"), Partial(1));
    add(
        &post("Content-Length: 9223372036854775807\r\n", "a"),
        Whole(1),
    );
    for length in [
        "",
        "+3",
        "-3",
        "0x3",
        "3,3",
        "3, 3",
        "3 3",
        "3a",
        "a3",
        "\"3\"",
        "3.0",
        "3;a",
        "1e1",
        "9223372036854775808",
        "9999999999999999999",
        "00000000000000000003",
        "\u{0663}",
        "3_0",
        "3\x0b",
    ] {
        let rule = if length.contains('\x0b') {
            "control"
        } else {
            "length"
        };
        add(
            &post(&format!("Content-Length: {length}\r\n"), "abc"),
            no(rule),
        );
    }
    add(
        &post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
        no("two_lengths"),
    );
    add(
        &post("Content-Length: 3\r\ncontent-length: 4\r\n", "abc"),
        no("two_lengths"),
    );

    // Transfer-Encoding.
    for coding in ["chunked", "Chunked", "\tchunked \t", "CHUNKED"] {
        let fields = format!("Transfer-Encoding:{coding}\r\n");
        add(&post(&fields, "1\r\na\r\n0\r\n\r\n"), Whole(1));
        add(
            &post(&fields, &format!("1\r\na\r\n0\r\n\r\n{GET}")),
            Whole(2),
        );
    }
    for (coding, rule) in [
        ("gzip", "unknown_coding"),
        ("identity", "unknown_coding"),
        ("xchunked", "unknown_coding"),
        ("chunkedx", "unknown_coding"),
        ("gzip, chunked", "unknown_coding"),
        ("", "coding"),
        (",chunked", "coding"),
        ("chunked,", "coding"),
        ("chunked, gzip", "coding"),
        ("chunked, chunked", "coding"),
        ("chunked;a=b", "coding"),
        ("\"chunked\"", "coding"),
        ("'chunked'", "unknown_coding"),
        ("chun ked", "coding"),
        ("chunked chunked", "coding"),
        ("[chunked]", "coding"),
        ("chunked\u{85}", "coding"),
        ("chunked\x0b", "control"),
        ("\x0bchunked", "control"),
        ("chunked\r\n , gzip", "obs_fold"),
    ] {
        let fields = format!("Transfer-Encoding: {coding}\r\n");
        add(&post(&fields, "0\r\n\r\n"), no(rule));
    }
    for (fields, rule) in [
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "two_codings",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
            "two_codings",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            "length_and_coding",
        ),
        (
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "length_and_coding",
        ),
        (
            "Content-Length: 0\r\ntransfer-encoding:chunked\r\n",
            "length_and_coding",
        ),
    ] {
        add(&post(fields, "0\r\n\r\n"), no(rule));
    }
    let old = "POST / HTTP/1.0\r\n";
    add(
        &format!("{old}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        no("coding_in_http10"),
    );
    for method in ["POST", "PUT", "PATCH"] {
        add(&format!("{method} / HTTP/1.0\r\n\r\n"), no("no_length"));
        add(
            &format!("{method} / HTTP/1.0\r\nContent-Length: 0\r\n\r\n"),
            Whole(1),
        );
        add(&format!("{method} / HTTP/1.1\r\n<H>\r\n"), Whole(1));
    }
    add("DELETE / HTTP/1.0\r\n\r\n", Whole(1));
    add(
        &format!("GET / HTTP/1.1\r\n<H>Content-Length: 1\r\n\r\na{GET}"),
        Whole(2),
    );

    // A switch of protocols.
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    add(&format!("GET / HTTP/1.1\r\n<H>{upgrade}\r\n"), Held(0));
    add(
        &format!("GET / HTTP/1.1\r\n<H>{upgrade}\r\n\x00\x01"),
        Held(2),
    );
    add(
        &format!("GET / HTTP/1.1\r\n<H>{upgrade}\r\n{GET}"),
        Held(GET.len()),
    );
    add(
        &format!("{GET}GET / HTTP/1.1\r\n<H>{upgrade}\r\n{GET}"),
        Held(GET.len()),
    );
    add(
        "GET / HTTP/1.1\r\n<H>upgrade:h2c\r\nContent-Length: 2\r\n\r\nabc",
        Held(1),
    );
    add(
        "GET / HTTP/1.1\r\n<H>upgrade:h2c\r\nContent-Length: 2\r\n\r\na",
        Whole(1),
    );
    add("CONNECT a:80 HTTP/1.1\r\n<H>\r\n\r\n", Held(2));
    add(
        "CONNECT a:80 HTTP/1.1\r\n<H>Content-Length: 0\r\n\r\n",
        Held(0),
    );
    add(
        "CONNECT a:80 HTTP/1.1\r\n<H>Content-Length: 1\r\n\r\na",
        no("connect_with_body"),
    );
    let chunked = "Transfer-Encoding: chunked\r\n";
    add(
        &format!("CONNECT a:80 HTTP/1.1\r\n<H>{chunked}\r\n"),
        no("connect_with_body"),
    );

    // Nothing passes behind a refusal.
    add(&format!("GET / HTTP/1.1\r\n\r\n{GET}"), no("no_host"));
    let bad = format!("GET / HTTP/1.2\r\n\r\n{GET}");
    add(&format!("{GET}{bad}"), Refused("version", bad.len()));

    // Chunks.
    let mut body = |body: &str, is| {
        let is = match is {
            Refused(rule, left) => Refused(rule, left.min(body.len())),
            is => is,
        };
        add(&post("Transfer-Encoding: chunked\r\n", body), is);
    };
    for whole in [
        "0\r\n\r\n",
        "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
        "0000000000000001\r\na\r\n0000000000000000\r\n\r\n",
        "1;a\r\nb\r\n0;a=\"b\"\r\n\r\n",
        "1;\r\n\r\r\n0\r\n\r\n",
        "1; a= b\t\r\n\n\r\n0\r\n\r\n",
        "1;1234567\r\na\r\n0;1234567\r\n\r\n",
        "0\r\nA: b\r\nC:\r\n\r\n",
        "0\r\nA: 34567890123456789012345\r\n\r\n",
        "0\r\nA:\r\nB:\r\nC:\r\n\r\n",
        "7fffffffffffffff\r\na",
        "2\r\na",
        "2\r\nab\r\n",
        "2\r\n",
    ] {
        body(whole, Whole(1));
    }
    for (part, left) in [
        ("1", 1),
        ("1\r", 2),
        ("1;a", 3),
        ("1\r\na\r", 1),
        ("1\r\na\r\n0\r\n\r", 1),
        ("0\r\nA: b", 4),
        ("0\r\nA: b\r\n\r", 1),
    ] {
        body(part, Partial(left));
    }
    let whole = usize::MAX;
    for (bad, rule, left) in [
        ("\r\n", "chunk_size", whole),
        ("\n", "bare_lf", whole),
        (";\r\n", "chunk_size", whole),
        (" 1\r\na\r\n0\r\n\r\n", "chunk_size", whole),
        ("1 \r\na\r\n0\r\n\r\n", "chunk_size", whole),
        ("1 ;a\r\na\r\n0\r\n\r\n", "chunk_size", whole),
        ("+1\r\na\r\n0\r\n\r\n", "chunk_size", whole),
        ("-1\r\na\r\n0\r\n\r\n", "chunk_size", whole),
        ("0x1\r\na\r\n0\r\n\r\n", "chunk_size", whole),
        ("1_0\r\na\r\n0\r\n\r\n", "chunk_size", whole),
        ("g\r\n", "chunk_size", whole),
        ("1,\r\n", "chunk_size", whole),
        ("\"1\"\r\n", "chunk_size", whole),
        ("1\0\r\n", "chunk_size", whole),
        ("1\r\r\n", "chunk_size", whole),
        ("8000000000000000\r\n", "chunk_size", whole),
        ("ffffffffffffffff\r\n", "chunk_size", whole),
        ("10000000000000000\r\n", "chunk_size", whole),
        ("00000000000000001\r\n", "chunk_size", whole),
        ("1\na\r\n0\r\n\r\n", "bare_lf", whole),
        ("1;a\nb\r\n", "bare_lf", whole),
        ("1;a\rb\r\n", "chunk_extension", whole),
        ("1;\0\r\n", "chunk_extension", whole),
        ("1;\x7f\r\n", "chunk_extension", whole),
        ("1;12345678\r\n", "chunk_extension", whole),
        ("12345678901234567890123456", "chunk_extension", whole),
        ("1\r\na\r\n0;12345678\r\n\r\n", "chunk_extension", 14),
        ("1\r\nab\r\n0\r\n\r\n", "chunk_end", 8),
        ("1\r\na\n0\r\n\r\n", "chunk_end", 6),
        ("1\r\na\r0\r\n\r\n", "chunk_end", 6),
        ("1\r\na0\r\n\r\n", "chunk_end", 5),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", "field_name", 18),
        ("0\r\n A: b\r\n\r\n", "obs_fold", 9),
        ("0\r\nA : b\r\n\r\n", "space_before_colon", 9),
        ("0\r\nA: b\r\n c\r\n\r\n", "obs_fold", 6),
        ("0\r\n: b\r\n\r\n", "field_name", 7),
        ("0\r\nA: b\0\r\n\r\n", "control", 9),
        ("0\r\nA: b\rc\r\n\r\n", "bare_cr", 10),
        ("0\r\nA: b\n\r\n", "bare_lf", 7),
        ("0\r\n\n", "bare_lf", 1),
        (
            "0\r\nA: 345678901234567890123456\r\n\r\n",
            "trailers_too_large",
            2,
        ),
        (
            "0\r\nA: 3456789012345678901234567890123456",
            "trailers_too_large",
            37,
        ),
        ("0\r\nA:\r\nB:\r\nC:\r\nD:\r\n\r\n", "too_many_fields", 6),
    ] {
        body(bad, Refused(rule, left));
    }
    table
}

#[test]
fn requests_pass_or_are_refused_however_they_are_cut() {
    for (input, is) in requests() {
        let new = || Requests::new(LIMITS);
        let (passed, step, heads) = outcome(&input, new, Requests::heads);
        check(&input, is, passed, step);
        let shown = String::from_utf8_lossy(&input);
        match is {
            Whole(expected) => assert_eq!(heads, expected, "{shown:?}"),
            Refused(..) => assert!(heads > 0, "{shown:?}"),
            Partial(_) | Held(_) => {}
        }
        if let Some(Refusal { reason, rule }) = refusal(step) {
            let row = TABLE.iter().find(|row| row.word == rule).unwrap();
            assert_eq!(reason, row.reason, "{shown:?}");
            assert!(reason.is_of_the_client(), "{shown:?}");
        }
    }
}

/// Answers, to what was asked.
fn responses() -> Vec<(Asked, Vec<u8>, Is)> {
    use Asked::{Connect, Head, Plain, Upgrade};
    let mut table: Vec<(Asked, Vec<u8>, Is)> = Vec::new();
    let mut add = |asked, text: &str, is| table.push((asked, text.as_bytes().to_vec(), is));

    add(Plain, "", Whole(0));
    for line in [
        "HTTP/1.1 200 OK",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 200 ",
        "HTTP/1.1 200",
        "HTTP/1.1 599 \u{e9}\t a",
    ] {
        add(
            Plain,
            &format!("{line}\r\nContent-Length: 1\r\n\r\na"),
            Whole(0),
        );
        add(Plain, &format!("{line}\r\n\r\nuntil it closes"), Whole(0));
        add(Plain, &format!("{line}\n\r\n"), no("bare_lf"));
    }
    for line in [
        "",
        "200 OK",
        "HTTP/1.2 200 OK",
        "HTTP/2 200",
        "http/1.1 200 OK",
        "ICY 200 OK",
        " HTTP/1.1 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1\t200 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 200OK",
        "HTTP/1.1 200\tOK",
        "HTTP/1.1 000 OK",
        "HTTP/1.1 099 OK",
        "HTTP/1.1 600 OK",
        "HTTP/1.1 999 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1 20",
        "HTTP/1.1 ",
        "HTTP/1.1",
        "A: b",
    ] {
        add(Plain, &format!("{line}\r\n\r\n"), no("status_line"));
    }
    add(Plain, "HTTP/1.1 200 O\0K\r\n\r\n", no("control"));
    add(Plain, "HTTP/1.1 200 O\rK\r\n\r\n", no("bare_cr"));

    let ok = |fields: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}");
    let chunked = "Transfer-Encoding: chunked\r\n";
    add(Plain, &ok(chunked, "1\r\na\r\n0\r\nA: b\r\n\r\n"), Whole(0));
    add(
        Plain,
        &ok(chunked, "1\r\na\r\n0\r\n\r\nb"),
        Refused("unasked_answer", 1),
    );
    add(Plain, &ok(chunked, "1\r\na\r"), Partial(1));
    add(
        Plain,
        &ok("Content-Length: 1\r\n", "ab"),
        Refused("unasked_answer", 1),
    );
    add(
        Plain,
        &ok("Content-Length: 0\r\n", "\r\n"),
        Refused("unasked_answer", 2),
    );
    add(Plain, &ok("Host: a b\r\nHost: c\r\n", ""), Whole(0));
    for (fields, rule) in [
        ("Content-Length: 1\r\nContent-Length: 1\r\n", "two_lengths"),
        ("Content-Length: 1, 1\r\n", "length"),
        (
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "length_and_coding",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "length_and_coding",
        ),
        ("Transfer-Encoding: gzip\r\n", "unknown_coding"),
        ("Transfer-Encoding: gzip, chunked\r\n", "unknown_coding"),
        ("Transfer-Encoding: chunked, gzip\r\n", "coding"),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "two_codings",
        ),
        ("X: a\r\n b\r\n", "obs_fold"),
        (" X: a\r\n", "obs_fold"),
        ("X : a\r\n", "space_before_colon"),
        (": a\r\n", "field_name"),
        ("X: a\0\r\n", "control"),
        ("A:\r\nB:\r\nC:\r\nD:\r\nE:\r\nF:\r\n", "too_many_fields"),
    ] {
        for asked in [Plain, Head] {
            add(asked, &ok(fields, "a"), no(rule));
        }
    }
    add(Plain, &ok("A:\r\nB:\r\nC:\r\nD:\r\nE:\r\n", ""), Whole(0));
    let old = "HTTP/1.0 200 OK\r\n";
    add(
        Plain,
        &format!("{old}{chunked}\r\n0\r\n\r\n"),
        no("coding_in_http10"),
    );
    let big = |n: usize| ok(&format!("X: {}\r\n", "a".repeat(n - 24)), "");
    add(Plain, &big(200), Whole(0));
    add(Plain, &big(201), no("head_too_large"));
    add(Plain, &ok(chunked, "g\r\n"), Refused("chunk_size", 3));
    let trailers = format!("0\r\nA: {}", "a".repeat(40));
    add(
        Plain,
        &ok(chunked, &trailers),
        Refused("trailers_too_large", 43),
    );

    // No body where there can be none.
    for (asked, status) in [
        (Head, 200),
        (Head, 404),
        (Plain, 304),
        (Plain, 204),
        (Head, 204),
    ] {
        let head = format!("HTTP/1.1 {status} A\r\n");
        add(asked, &format!("{head}\r\n"), Whole(0));
        add(asked, &format!("{head}\r\na"), Refused("unasked_answer", 1));
        add(asked, &format!("{head}Content-Length: 0\r\n\r\n"), Whole(0));
        let (long, coded) = match status {
            204 => (no("status_with_body"), no("status_with_body")),
            _ => (Refused("unasked_answer", 1), Refused("unasked_answer", 5)),
        };
        add(asked, &format!("{head}Content-Length: 1\r\n\r\na"), long);
        add(asked, &format!("{head}{chunked}\r\n0\r\n\r\n"), coded);
    }

    // Informational answers.
    let final_ok = ok("Content-Length: 1\r\n", "a");
    for status in [100, 102, 103, 199] {
        let head = format!("HTTP/1.1 {status} A\r\n");
        add(Plain, &format!("{head}\r\n"), Whole(0));
        add(Plain, &format!("{head}\r\n{final_ok}"), Whole(0));
        add(
            Head,
            &format!("{head}A: b\r\n\r\n{head}\r\n{final_ok}"),
            Refused("unasked_answer", 1),
        );
        add(Plain, &format!("{head}\r\n{head}\r\n{final_ok}"), Whole(0));
        let third = format!("{head}\r\n");
        let three = format!("{head}\r\n{head}\r\n{third}");
        add(
            Plain,
            &three,
            Refused("too_many_informational", third.len()),
        );
        add(
            Plain,
            &format!("{head}Content-Length: 1\r\n\r\na"),
            no("status_with_body"),
        );
        add(
            Plain,
            &format!("{head}{chunked}\r\n"),
            no("status_with_body"),
        );
    }

    // A switch of protocols.
    let switch = "HTTP/1.1 101 A\r\nUpgrade: websocket\r\nConnection: upgrade\r\n";
    add(Upgrade, &format!("{switch}\r\n\0\n anything"), Whole(0));
    add(
        Upgrade,
        &format!("HTTP/1.1 103 A\r\n\r\n{switch}\r\n\0"),
        Whole(0),
    );
    add(
        Upgrade,
        &format!("{switch}Content-Length: 1\r\n\r\na"),
        no("status_with_body"),
    );
    add(
        Upgrade,
        &format!("{final_ok}\0"),
        Refused("unasked_answer", 1),
    );
    add(Upgrade, &ok("", "until it closes"), Whole(0));
    for asked in [Plain, Head, Connect] {
        add(asked, &format!("{switch}\r\n\0"), no("unasked_switch"));
    }
    for status in ["200 OK", "204 A", "299"] {
        add(
            Connect,
            &format!("HTTP/1.1 {status}\r\n\r\n\0\n anything"),
            Whole(0),
        );
        let body = format!("HTTP/1.1 {status}\r\nContent-Length: 1\r\n\r\na");
        add(Connect, &body, no("status_with_body"));
    }
    let refused = "HTTP/1.1 403 A\r\nContent-Length: 1\r\n\r\na";
    add(Connect, refused, Whole(0));
    add(
        Connect,
        &format!("{refused}b"),
        Refused("unasked_answer", 1),
    );
    table
}

fn answering(asked: Option<Asked>) -> Responses {
    let expected = Arc::new(Expected::default());
    if let Some(asked) = asked {
        expected.send(asked, Duration::ZERO, false);
    }
    Responses::new(LIMITS, expected)
}

#[test]
fn answers_pass_or_are_refused_however_they_are_cut() {
    for (asked, input, is) in responses() {
        let (passed, step, ()) = outcome(&input, || answering(Some(asked)), |_| ());
        check(&input, is, passed, step);
        if let Some(refusal) = refusal(step) {
            assert_eq!(refusal.reason, Reason::PeerProtocolError);
        }
    }
    let nobody = outcome(b"HTTP/1.1 200 OK\r\n\r\n", || answering(None), |_| ());
    check(
        b"HTTP/1.1 200 OK\r\n\r\n",
        no("unasked_answer"),
        nobody.0,
        nobody.1,
    );
}

#[test]
fn every_rule_is_broken_by_an_input_of_the_tables() {
    let of = |is: &Is| match is {
        Refused(rule, _) => Some(*rule),
        _ => None,
    };
    let mut broken: BTreeSet<&str> = requests().iter().filter_map(|(_, is)| of(is)).collect();
    broken.extend(responses().iter().filter_map(|(_, _, is)| of(is)));
    // By the end of a stream only: its own test.
    broken.insert("cut_short");
    let rules: BTreeSet<&str> = TABLE.iter().map(|row| row.word).collect();
    assert_eq!(broken, rules);
}

#[test]
fn the_end_of_a_stream_cuts_an_answer_or_not() {
    let ok = "HTTP/1.1 200 OK\r\n";
    for (input, whole) in [
        (String::new(), true),
        ("H".into(), false),
        (ok.to_owned(), false),
        ("HTTP/1.1 100 A\r\n\r\n".into(), true),
        ("HTTP/1.1 100 A\r\n\r\nH".into(), false),
        (format!("{ok}\r\n"), true),
        (format!("{ok}\r\na"), true),
        (format!("{ok}Content-Length: 2\r\n\r\n"), false),
        (format!("{ok}Content-Length: 2\r\n\r\na"), false),
        (format!("{ok}Content-Length: 2\r\n\r\nab"), true),
        (format!("{ok}Content-Length: 0\r\n\r\n"), true),
        (format!("{ok}Transfer-Encoding: chunked\r\n\r\n"), false),
        (
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n1\r\na"),
            false,
        ),
        (
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n0\r\n"),
            false,
        ),
        (
            format!("{ok}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            true,
        ),
    ] {
        let look = |machine: &Responses| machine.end();
        let (.., end) = outcome(input.as_bytes(), || answering(Some(Asked::Plain)), look);
        assert_eq!(end.is_ok(), whole, "{input:?}");
        assert!(end.err().is_none_or(|refusal| refusal.rule == "cut_short"));
    }
    let mut refused = answering(Some(Asked::Plain));
    refused.read(b"\n");
    assert_eq!(refused.end().unwrap_err().rule, "bare_lf");
}

#[test]
fn one_connection_answers_one_request_after_the_other() {
    let expected = Arc::new(Expected::default());
    let mut responses = Responses::new(LIMITS, expected.clone());
    let early: &[u8] = b"HTTP/1.1 100 A\r\n\r\n";
    for round in 0..10 {
        expected.send(Asked::Plain, Duration::ZERO, false);
        // The count of 1xx begins anew.
        for _ in 0..2 {
            assert_eq!(responses.read(early), (early.len(), Step::More), "{round}");
        }
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
        assert_eq!(responses.read(whole), (whole.len(), Step::More), "{round}");
        assert_eq!(expected.asked(), None);
    }
    let (0, Step::Broken(refusal)) = responses.read(early) else {
        panic!("an answer to nothing");
    };
    assert_eq!(refusal.rule, "unasked_answer");
    // For good.
    expected.send(Asked::Plain, Duration::ZERO, false);
    assert_eq!(responses.read(early), (0, Step::Broken(refusal)));
}

#[test]
fn what_is_held_goes_on_as_it_is_told() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n";
    let both = format!("{head}{GET}");
    for (how, heads, opaque) in [(Resume::Http, 2, false), (Resume::Switched, 1, true)] {
        let mut requests = Requests::new(LIMITS);
        // Out of turn: without effect.
        requests.resume(Resume::Switched);
        assert_eq!(requests.read(both.as_bytes()), (head.len(), Step::Held));
        assert_eq!(requests.read(GET.as_bytes()), (0, Step::Held));
        assert_eq!(requests.read(b""), (0, Step::Held));
        assert!(!requests.waiting());
        requests.resume(how);
        assert_eq!(requests.read(GET.as_bytes()), (GET.len(), Step::More));
        assert_eq!(requests.heads(), heads);
        let (passed, step) = requests.read(b"\n");
        assert_eq!((passed, step == Step::More), (usize::from(opaque), opaque));
    }
}

#[test]
fn a_head_is_waited_for_from_its_first_byte_to_its_last() {
    let mut requests = Requests::new(LIMITS);
    assert!(!requests.waiting());
    // The empty line that old clients send behind a body begins nothing.
    requests.read(b"\r\n");
    assert!(!requests.waiting());
    let request = b"\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    for end in 3..=request.len() {
        let head = end < request.len() - 3;
        let mut requests = Requests::new(LIMITS);
        requests.read(&request[..end]);
        assert_eq!(requests.waiting(), head, "{end}");
    }
    requests.read(b"\r\n\r\n");
    assert!(!requests.waiting(), "refused");
}

#[test]
fn a_refused_head_keeps_its_line_if_that_was_good() {
    for (input, line) in [
        (GET.to_owned(), None),
        (
            "GET /a?b HTTP/1.1\r\n\r\n".into(),
            Some(("GET", "/a?b", Version::HTTP_11)),
        ),
        ("\r\nx * HTTP/1.0\r\n \r\n".into(), None),
        (
            "\r\nx /y HTTP/1.0\r\n \r\n".into(),
            Some(("x", "/y", Version::HTTP_10)),
        ),
        (
            format!("{GET}PUT http://a HTTP/1.1\r\nX\r\n"),
            Some(("PUT", "http://a", Version::HTTP_11)),
        ),
        ("GET /# HTTP/1.1\r\n\r\n".into(), None),
        (
            "GET / HTTP/1.1\r\n\n".into(),
            Some(("GET", "/", Version::HTTP_11)),
        ),
    ] {
        let new = || Requests::new(LIMITS);
        let look = |machine: &Requests| machine.line().cloned();
        let (.., found) = outcome(input.as_bytes(), new, look);
        let line = line.map(|(method, target, version)| Line {
            method: method.into(),
            target: target.into(),
            version,
        });
        assert_eq!(found, line, "{input:?}");
    }
}

/// Bytes that were looked at are not looked at again before their line is complete, and never
/// after: they may as well be others.
#[test]
fn dripping_is_linear() {
    let head = b"\r\nGET / HTTP/1.1\r\nHost: a\r\nLonger: aaaaaaaaaaaaaaaa\r\nB: c\r\n\r\n";
    let mut reader = RequestHead::default();
    let mut line = 0;
    for end in 1..head.len() {
        let complete = head[end - 1] == b'\n';
        let mut input = head[..end].to_vec();
        let gone = if complete { line } else { end - 1 };
        input[..gone].fill(b'\n');
        assert_eq!(reader.read(&input, &LIMITS), Ok(None), "{end}");
        if complete {
            line = end;
        }
    }
    let mut input = head.to_vec();
    input[..line].fill(b'\n');
    let request = reader.read(&input, &LIMITS).unwrap().unwrap();
    assert_eq!(request.len, head.len());
}

#[test]
fn extensions_of_a_whole_body_are_bounded() {
    let limits = HeadLimits::from(&Limits::default());
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("1;{}\r\na\r\n", "e".repeat(255));
    for (chunks, fine) in [(64, true), (65, false)] {
        let mut requests = Requests::new(limits);
        let input = format!("{head}{}", chunk.repeat(chunks));
        let (passed, step) = requests.read(input.as_bytes());
        assert_eq!(step == Step::More, fine, "{chunks}");
        assert_eq!(passed, head.len() + 64 * chunk.len());
    }
}

#[test]
fn the_limits_are_those_of_the_settings() {
    let limits = Limits::default();
    let head = HeadLimits::from(&limits);
    assert_eq!(head.head, limits.max_head_bytes);
    assert_eq!(head.target, limits.max_target_bytes);
    assert_eq!(head.fields, limits.max_fields);
    assert_eq!(head.trailer, limits.max_trailer_bytes);
    assert_eq!(head.extension, limits.max_chunk_extension_bytes);
    assert_eq!(head.informational, limits.max_informational);
}

/// Every byte at every place of a head: what passes is what hyper's types take, too, so that
/// hyper never refuses what passed here.
#[test]
fn what_passes_is_what_hyper_takes() {
    type Takes = fn(&[u8]) -> bool;
    let places: [(&str, &str, Takes); 8] = [
        ("a", " / HTTP/1.1\r\nHost: a\r\n\r\n", |b| {
            Method::from_bytes(b).is_ok()
        }),
        ("GET /", " HTTP/1.1\r\nHost: a\r\n\r\n", takes_target),
        ("GET /?", " HTTP/1.1\r\nHost: a\r\n\r\n", takes_target),
        (
            "GET http://a",
            "b HTTP/1.1\r\nHost: a\r\n\r\n",
            takes_target,
        ),
        ("CONNECT a", "b:1 HTTP/1.1\r\nHost: a\r\n\r\n", takes_target),
        ("GET / HTTP/1.1\r\nHost: a\r\nX", ": a\r\n\r\n", |b| {
            takes_name(b)
        }),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a", "b\r\n\r\n", |b| {
            HeaderValue::from_bytes(b).is_ok()
        }),
        ("GET / HTTP/1.1\r\nHost: a", "b\r\n\r\n", |b| {
            Uri::try_from(b).is_ok()
        }),
    ];
    // How many of the 256 bytes pass there; 3 tables of RFC 9110 and RFC 3986 in numbers.
    let counts = [77, 90, 90, 78, 76, 78, 224, 76];
    for ((before, after, takes), count) in places.into_iter().zip(counts) {
        let mut passes = 0;
        for byte in 0..=255 {
            let input = [before.as_bytes(), &[byte], after.as_bytes()].concat();
            let (passed, step) = Requests::new(LIMITS).read(&input);
            if refusal(step).is_some() {
                continue;
            }
            assert_eq!(passed, input.len(), "{byte:#x} after {before:?}");
            passes += 1;
            let begin = before.rfind([' ', '\n']).map_or(0, |at| at + 1);
            let end = after.find([' ', ':', '\r']).unwrap_or_default();
            let piece = &input[begin..input.len() - after.len() + end];
            assert!(takes(piece), "{byte:#x} after {before:?}: {piece:?}");
        }
        assert_eq!(passes, count, "{before:?}");
    }
}

/// Up to the colon, which may be the byte itself.
fn takes_name(field: &[u8]) -> bool {
    let name = field.split(|byte| *byte == b':').next();
    name.is_some_and(|name| HeaderName::from_bytes(name).is_ok())
}

fn takes_target(target: &[u8]) -> bool {
    let uri = Uri::try_from(target);
    uri.is_ok_and(|uri| {
        let text = from_utf8(target).unwrap();
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        text.ends_with(path) || path == "/" || text.contains('?')
    })
}

#[test]
fn an_authority_is_a_host_with_an_optional_port() {
    for good in [
        "a",
        "a.b.",
        "a:1",
        "a_b",
        "[::]",
        "[1:2:3:4:5:6:7:8]:80",
        "[::1.2.3.4]",
        "1.2",
    ] {
        assert!(is_authority(good.as_bytes()), "{good}");
        assert!(good.parse::<http::uri::Authority>().is_ok(), "{good}");
    }
    for bad in [
        "", ":", ":1", "a:", "a:b", "u@a", "a,b", "a%41", "[", "[]", "[a]", "[::1]x", "a]",
    ] {
        assert!(!is_authority(bad.as_bytes()), "{bad}");
    }
}
