use std::collections::BTreeSet;

use tokio::net::TcpStream;

use super::*;
use crate::PATIENCE;
use crate::origin::capture::{Capture, Connection};
use crate::raw1::{Attempt, End, attempt};

const NUMBERS: Numbers = Numbers {
    head: 65_536,
    target: 32_768,
    fields: 100,
    trailer: 16_384,
    extension: 256,
    added: (0, 0),
};

fn every_case() -> Vec<Case> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut cases = all("app");
    cases.extend(codings("app", &every_byte).into_iter().filter(|case| {
        // Those of few bytes are there already.
        case.name.starts_with("coding with 0x")
            && !FEW
                .iter()
                .any(|byte| case.name.contains(&format!("{byte:#04x} ")))
    }));
    cases.extend(limits("app", &NUMBERS));
    cases
}

/// Refused for what they mean, not for how they are written.
fn is_policy(name: &str) -> bool {
    name.starts_with("connection ")
        || name.starts_with("twin ")
        || name == "absolute, another host"
        || NUMBERS_POLICY.contains(&name)
}

const NUMBERS_POLICY: [&str; 11] = [
    "fields above",
    "fields far above",
    "target above",
    "head above",
    "head far above",
    "cookies above",
    "target without end",
    "extension above",
    "extension far above",
    "trailers above",
    "trailer above",
];

#[test]
fn names_are_unique() {
    let mut seen = BTreeSet::new();
    for case in every_case() {
        assert!(seen.insert(case.name.clone()), "{}", case.name);
    }
    assert!(seen.len() > 2_500, "{}", seen.len());
    let mut seen = BTreeSet::new();
    for case in answers(8) {
        assert!(seen.insert(case.name.clone()), "{}", case.name);
    }
}

#[test]
fn the_tables_agree_with_the_judge() {
    for case in every_case() {
        let read = strict::requests(&case.bytes);
        let name = &case.name;
        match case.expected.then {
            Then::Nothing if case.means.is_none() => {
                let reading = read.unwrap_or_else(|violation| panic!("{name}: {violation}"));
                assert!(reading.whole, "{name}");
                assert_eq!(reading.messages.len(), case.expected.requests, "{name}");
            }
            Then::Nothing => {}
            Then::Refused(_) | Then::Broken(_) if is_policy(name) || case.is_cut() => {}
            Then::Refused(_) | Then::Broken(_) => assert!(read.is_err(), "{name} is strict"),
            Then::Incomplete => assert!(!read.unwrap().whole, "{name}"),
        }
        assert_eq!(case.requests().len(), case.expected.requests, "{name}");
    }
}

#[test]
fn answers_agree_with_the_judge() {
    for case in answers(8) {
        let asked = case.plan("app", "/", PATIENCE).asked;
        let read = strict::answers(&case.bytes, &asked);
        match case.expected {
            Answer::Passed(status, body) => {
                let reading = read.unwrap_or_else(|wrong| panic!("{}: {wrong}", case.name));
                let last = reading.messages.last().unwrap();
                assert_eq!(
                    (last.status(), &*last.text()),
                    (status, body),
                    "{}",
                    case.name
                );
            }
            Answer::Broken | Answer::Either(..) => assert!(read.is_err(), "{}", case.name),
            Answer::Refused => {
                let is_strict = read.is_ok_and(|read| read.whole && !read.messages.is_empty());
                let is_limit = case.name.contains("above")
                    || ["head of 10 MB", "10,000 fields", "only 100"].contains(&&*case.name);
                assert!(!is_strict || is_limit, "{}", case.name);
            }
        }
    }
}

fn seen(bytes: &str, end: End) -> Attempt {
    Attempt {
        received: bytes.as_bytes().to_vec(),
        end,
        wrote_all: true,
    }
}

fn arrived(bytes: &str) -> Vec<Connection> {
    vec![Connection {
        bytes: bytes.as_bytes().to_vec(),
        ..Connection::default()
    }]
}

#[test]
fn the_judge_finds_what_is_wrong() {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    const NO: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let get = "GET /case HTTP/1.1\r\nhost: app\r\nx: 1\r\n\r\n";
    let one = Case::new("one", get, ONE);
    let bad = Case::new("bad", "GET /case HTTP/1.1\nhost: app\r\n\r\n", REFUSED);
    let closed = End::Closed;
    for (case, received, end, upstream, expected) in [
        (&one, OK, closed, get, None),
        (&one, OK, closed, "", Some("nothing arrived")),
        (&one, NO, closed, get, Some("answered with 400")),
        (&one, "", closed, get, Some("0 of 1 requests answered")),
        (&one, OK, End::Open, get, Some("left open")),
        (
            &one,
            OK,
            closed,
            "GET /b HTTP/1.1\r\nhost: app\r\nx: 1\r\n\r\n",
            Some("target \"/b\""),
        ),
        (
            &one,
            OK,
            closed,
            "GET /case HTTP/1.1\r\nhost: b\r\nx: 1\r\n\r\n",
            Some("host \"b\""),
        ),
        (
            &one,
            OK,
            closed,
            "GET /case HTTP/1.1\r\nhost: app\r\n\r\n",
            Some("field \"none\""),
        ),
        (&one, OK, closed, &get.repeat(2), Some("a request too many")),
        (
            &one,
            OK,
            closed,
            &format!("{get}GET /"),
            Some("a part of a request"),
        ),
        (
            &one,
            OK,
            closed,
            &get.replace("x: 1", "x : 1"),
            Some("not strict"),
        ),
        (&one, &OK.replace('\r', ""), closed, get, Some("not strict")),
        (&bad, NO, closed, "", None),
        (&bad, NO, closed, get, Some("too many")),
        (&bad, OK, closed, "", Some("[200]")),
        (&bad, "", End::Reset, "", Some("[]")),
        (&bad, NO, End::Open, "", Some("left open")),
    ] {
        let result = judge(case, &seen(received, end), &arrived(upstream));
        match expected {
            None => assert_eq!(result, Ok(()), "{} {upstream:?}", case.name),
            Some(words) => {
                let wrong = result.unwrap_err();
                assert!(wrong.contains(words), "{wrong} has no {words}");
            }
        }
    }
}

#[test]
fn the_judge_of_answers_finds_what_is_wrong() {
    let all = answers(8);
    let case = |name: &str| all.iter().find(|case| case.name == name).unwrap();
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    const BAD: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n";
    for (name, received, right) in [
        ("plain", OK, true),
        ("plain", BAD, false),
        ("plain", "", false),
        ("two lengths", BAD, true),
        ("two lengths", OK, false),
        (
            "half a body",
            "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello",
            true,
        ),
        ("half a body", OK, false),
        ("half a body", BAD, true),
        ("bytes after the end", OK, true),
        ("bytes after the end", BAD, true),
        ("bytes after the end", &format!("{OK}SMUGGLED"), false),
    ] {
        let result = judge_answer(case(name), &seen(received, End::Closed));
        assert_eq!(result.is_ok(), right, "{name} {received:?} {result:?}");
    }
}

/// A tunnel is no proxy: the judge finds that, and finds nothing where nothing is wrong.
#[tokio::test]
async fn a_tunnel_passes_what_is_good_and_nothing_else() {
    let origin = Capture::start().await.unwrap();
    let (mut right, mut wrong) = (0, 0);
    for case in heads("app") {
        origin.forget(PATIENCE).await.unwrap();
        let stream = TcpStream::connect(origin.address()).await.unwrap();
        let tried = attempt(stream, &case.plan(Slicing::Pieces(5), PATIENCE)).await;
        let result = judge(&case, &tried, &origin.connections());
        match case.expected.then {
            Then::Nothing if case.means.is_none() => {
                assert_eq!(result, Ok(()));
                right += 1;
            }
            // A body that is cut passes as such.
            Then::Broken(_) => {}
            _ => {
                assert!(result.is_err(), "{}", case.name);
                wrong += 1;
            }
        }
    }
    assert!(right > 15 && wrong > 100, "{right} {wrong}");
}
