//! What must hold for any bytes: the bodies of the fuzz targets in `tests/fuzz`. They panic
//! where it does not. Their corpora run as ordinary tests here.
//!
//! The first byte of an input says how the rest is read; nothing but a panic comes out.

use std::{sync::Arc, time::Instant};

use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};

use crate::{
    detect::{Detected, classify},
    http::readings::{self, Readings, readings},
    wire::{
        chunks::{Chunks, Progress},
        head::{HeadLimits, RequestHead, ResponseHead},
        http1::{Asked, Expected, Requests, Responses, Resume, Step},
        http2::{Budget, Frames, Role},
    },
};

/// A target: its name, which is that of its corpus, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 7] = [
    ("head", head),
    ("requests", requests),
    ("responses", responses),
    ("chunks", chunks),
    ("frames", frames),
    ("detect", detect),
    ("readings", path_readings),
];

/// Small, so that inputs reach them.
const LIMITS: HeadLimits = HeadLimits {
    head: 1024,
    target: 256,
    fields: 12,
    trailer: 256,
    extension: 32,
    informational: 2,
};

/// What a fuzzed connection asked for, by the byte that says how to read.
fn asked(how: u8) -> Asked {
    [Asked::Plain, Asked::Head, Asked::Upgrade, Asked::Connect][usize::from(how % 4)]
}

/// The input in pieces: whole, byte by byte, and by another length.
fn slicings(how: u8, input: &[u8]) -> [std::slice::Chunks<'_, u8>; 3] {
    let other = 2 + usize::from(how >> 2);
    [input.len().max(1), 1, other].map(|size| input.chunks(size))
}

/// Heads of requests and of answers: what is accepted ends where it says, is the same when it
/// is read again, is not complete a byte earlier, and is nothing that hyper would refuse.
pub fn head(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let request = |bytes: &[u8]| RequestHead::default().read(bytes, &LIMITS);
    if let Ok(Some(found)) = request(data) {
        let exact = &data[..found.len];
        assert!(exact.ends_with(b"\r\n\r\n"));
        assert_eq!(request(exact), Ok(Some(found)));
        assert_eq!(request(&exact[..found.len - 1]), Ok(None));
        let mut reader = RequestHead::default();
        assert_eq!(reader.read(exact, &LIMITS), Ok(Some(found)));
        let line = reader.line(exact).expect("it was accepted");
        assert!(Method::from_bytes(line.method.as_bytes()).is_ok());
        let uri: Uri = line.target.parse().expect("hyper takes it");
        if line.target.starts_with('/') {
            assert_eq!(
                uri.path_and_query().map(|p| p.as_str()),
                Some(&*line.target)
            );
        }
        hyper_takes(exact);
    }
    let response = |bytes: &[u8]| ResponseHead::default().read(bytes, asked(how), &LIMITS);
    if let Ok(Some(found)) = response(data) {
        let exact = &data[..found.len];
        assert!(exact.ends_with(b"\r\n\r\n"));
        assert_eq!(response(exact), Ok(Some(found)));
        assert_eq!(response(&exact[..found.len - 1]), Ok(None));
        assert!(StatusCode::from_u16(found.status).is_ok());
        hyper_takes(exact);
    }
}

/// Reads the fields of an accepted head in the simplest way there is.
fn hyper_takes(head: &[u8]) {
    let text = head.strip_prefix(b"\r\n").unwrap_or(head);
    let mut lines = text.split(|byte| *byte == b'\n');
    for line in lines.by_ref().skip(1) {
        let line = line.strip_suffix(b"\r").expect("lines end in CRLF");
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
        assert!(HeaderName::from_bytes(&line[..colon]).is_ok());
        assert!(HeaderValue::from_bytes(&line[colon + 1..]).is_ok());
    }
    assert_eq!(
        lines.next(),
        Some(&b""[..]),
        "nothing behind the empty line"
    );
}

/// What came out of a connection.
#[derive(Debug, PartialEq)]
struct Outcome {
    passed: Vec<u8>,
    step: Step,
    heads: u64,
}

/// Gives a machine pieces as a reader of a socket does.
fn feed<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    mut read: impl FnMut(&[u8]) -> (usize, Step),
) -> (Vec<u8>, Step) {
    let (mut held, mut passed, mut last) = (Vec::new(), Vec::new(), Step::More);
    for piece in pieces {
        held.extend_from_slice(piece);
        let (more, step) = read(&held);
        passed.extend(held.drain(..more));
        match step {
            Step::More => assert!(held.is_empty()),
            Step::Partial => assert!(!held.is_empty() && held.len() < LIMITS.head),
            Step::Held | Step::Refused(_) | Step::Broken(_) => {}
        }
        last = step;
    }
    (passed, last)
}

/// The requests of a connection: the same however they are cut; what passed is read again as
/// what it was, and all of it passes.
pub fn requests(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let resume = if how % 2 == 0 {
        Resume::Http
    } else {
        Resume::Switched
    };
    let run = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut machine = Requests::new(LIMITS);
        let (passed, step) = feed(pieces, |input| {
            let mut passed = 0;
            loop {
                let (more, step) = machine.read(&input[passed..]);
                passed += more;
                if step != Step::Held {
                    return (passed, step);
                }
                machine.resume(resume);
            }
        });
        let heads = machine.heads();
        let line = machine.line().cloned();
        let marker = matches!(step, Step::Refused(_)).then(|| machine.marker());
        (
            Outcome {
                passed,
                step,
                heads,
            },
            line,
            marker,
        )
    };
    let [whole, others @ ..] = slicings(how, data).map(|mut pieces| run(&mut pieces));
    for other in others {
        assert_eq!(other, whole);
    }
    let (whole, _, marker) = whole;
    assert!(data.starts_with(&whole.passed));
    let (again, ..) = run(&mut std::iter::once(&whole.passed[..]));
    assert_eq!(again.passed, whole.passed);
    assert!(
        matches!(again.step, Step::More | Step::Partial),
        "{again:?}"
    );
    let refused = u64::from(matches!(whole.step, Step::Refused(_)));
    assert_eq!(again.heads + refused, whole.heads);
    if let Some(marker) = marker {
        // It stands in for the head, so there must be no way to read it as two.
        let end = marker.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        assert_eq!(end, Some(marker.len() - 4));
        hyper_takes(&marker);
    }
}

/// The answers on a connection, to one request: as [`requests`].
pub fn responses(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let run = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let expected = Arc::new(Expected::default());
        expected.send(asked(how), std::time::Duration::ZERO, false);
        let mut machine = Responses::new(LIMITS, expected.clone());
        let (passed, step) = feed(pieces, |input| machine.read(input));
        let open = expected.asked().is_some();
        (passed, step, open, machine.end())
    };
    let [whole, others @ ..] = slicings(how, data).map(|mut pieces| run(&mut pieces));
    for other in others {
        assert_eq!(other, whole);
    }
    let (passed, step, open, end) = whole;
    assert!(data.starts_with(&passed));
    assert!(!matches!(step, Step::Held | Step::Refused(_)));
    let (again, step_again, open_again, end_again) = run(&mut std::iter::once(&passed[..]));
    assert_eq!((again, open_again), (passed, open));
    assert_eq!(step_again, Step::More);
    if step == Step::More {
        assert_eq!(end_again, end);
    }
}

/// A chunked body: the same however it is cut, and the same as a reader says that takes the
/// grammar word by word.
pub fn chunks(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let run = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut machine = Chunks::new(0);
        let (mut held, mut passed, mut end) = (Vec::new(), 0, None);
        for piece in pieces {
            held.extend_from_slice(piece);
            let (more, progress) = match machine.read(&held, &LIMITS) {
                Ok((more, progress)) => (more, Ok(progress)),
                Err((more, rule)) => (more, Err(rule)),
            };
            held.drain(..more);
            passed += more;
            assert!(progress != Ok(Progress::Partial) || held.len() < LIMITS.trailer);
            end = Some(progress);
            if !matches!(progress, Ok(Progress::More | Progress::Partial)) {
                break;
            }
        }
        (passed, end)
    };
    let [whole, others @ ..] = slicings(how, data).map(|mut pieces| run(&mut pieces));
    for other in others {
        assert_eq!(other, whole);
    }
    let (passed, end) = whole;
    match end {
        Some(Ok(Progress::End)) => assert_eq!(plain_chunks(data), Some(passed)),
        Some(Err(_)) | None => {}
        Some(Ok(_)) => assert_eq!(plain_chunks(data), None),
    }
}

/// The bytes of a chunked body, read with no thought of speed; `None` if it does not end.
/// Refuses less than the machine does.
fn plain_chunks(data: &[u8]) -> Option<usize> {
    let line = |at: usize| {
        let end = data[at..].windows(2).position(|bytes| bytes == b"\r\n")?;
        Some((&data[at..at + end], at + end + 2))
    };
    let mut at = 0;
    loop {
        let (head, next) = line(at)?;
        let size = head.split(|byte| *byte == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        at = next;
        if size == 0 {
            break;
        }
        at = at.checked_add(size)?;
        if data.get(at..at.checked_add(2)?)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    loop {
        let (trailer, next) = line(at)?;
        at = next;
        if trailer.is_empty() {
            return Some(at);
        }
    }
}

/// The frames of an HTTP/2 connection: the verdict is the same however they are cut, also of
/// those that we send, and it stays.
pub fn frames(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let role = if how % 2 == 0 {
        Role::Server
    } else {
        Role::Client
    };
    let now = Instant::now();
    let received = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut machine = Frames::new(role, Budget::default());
        for piece in pieces {
            if let Err(glitch) = machine.received(piece, now) {
                assert_eq!(machine.received(b"", now), Err(glitch));
                return Err(glitch);
            }
        }
        Ok((machine.last_stream(), machine.waiting()))
    };
    let [whole, others @ ..] = slicings(how, data).map(|mut pieces| received(&mut pieces));
    for other in others {
        assert_eq!(other, whole);
    }
    let sent = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut machine = Frames::new(role, Budget::default());
        pieces.for_each(|piece| machine.sent(piece));
        (machine.may_say_goodbye(), machine.received(b"", now))
    };
    let [whole, others @ ..] = slicings(how, data).map(|mut pieces| sent(&mut pieces));
    for other in others {
        assert_eq!(other, whole);
    }
}

/// What a connection speaks: once it is told, more bytes do not change it.
pub fn detect(data: &[u8]) {
    let mut told = Detected::NeedMore;
    for end in 0..=data.len() {
        let now = classify(&data[..end]);
        assert!(
            told == Detected::NeedMore || told == now,
            "{told:?}, then {now:?}"
        );
        told = now;
    }
}

/// The readings of a path: few, all different, the path itself first; none more for a plain one.
pub fn path_readings(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else {
        return;
    };
    match readings(path) {
        Readings::Plain | Readings::TooMany => {}
        Readings::Several(texts) => {
            assert!(!readings::is_plain(path) && texts.len() > 1);
            assert_eq!(texts[0], path);
            for (at, text) in texts.iter().enumerate() {
                assert!(!texts[..at].contains(text), "{text:?} twice");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::PathBuf};

    use super::{LIMITS, RequestHead, TARGETS};
    use crate::{
        util::Rng,
        wire::{
            head::{Response, ResponseHead},
            http1::Asked,
        },
    };

    const MOST_FILES: usize = 60;
    const LONGEST_FILE: usize = 4096;

    fn root() -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "tests", "fuzz"]
            .iter()
            .collect()
    }

    /// Names and bytes of the inputs of a target.
    fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
        let directory = root().join("corpus").join(target);
        let mut inputs: Vec<_> = fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read(entry.path()).unwrap())
            })
            .collect();
        inputs.sort();
        inputs
    }

    #[test]
    fn corpora_hold() {
        for (target, run) in TARGETS {
            let inputs = corpus(target);
            assert!((5..=MOST_FILES).contains(&inputs.len()), "{target}");
            for (name, bytes) in inputs {
                assert!(bytes.len() < LONGEST_FILE, "{target}/{name}");
                println!("{target}/{name}"); // Shown when it fails.
                run(&bytes);
            }
        }
    }

    #[test]
    fn every_target_can_be_fuzzed() {
        let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
        let named: BTreeSet<&str> = manifest
            .lines()
            .filter_map(|line| {
                line.strip_prefix("path = \"targets/")?
                    .strip_suffix(".rs\"")
            })
            .collect();
        let targets: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        assert_eq!(named, targets);
        for target in targets {
            let file = root().join("targets").join(format!("{target}.rs"));
            let text = fs::read_to_string(&file).unwrap();
            let name = if target == "readings" {
                "path_readings"
            } else {
                target
            };
            assert!(
                text.contains(&format!("weft_proxy::fuzz::{name}(")),
                "{target}"
            );
        }
    }

    /// Our reading of a head against httparse, which was written by others: whatever is
    /// accepted here it accepts, with the same words.
    fn agrees(data: &[u8]) -> bool {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut reader = RequestHead::default();
        if let Ok(Some(found)) = reader.read(data, &LIMITS) {
            let line = reader.line(data).unwrap();
            let mut theirs = httparse::Request::new(&mut fields);
            assert_eq!(
                theirs.parse(data),
                Ok(httparse::Status::Complete(found.len))
            );
            assert_eq!(theirs.method, Some(&*line.method));
            assert_eq!(theirs.path, Some(&*line.target));
            let minor = u8::from(line.version == http::Version::HTTP_11);
            assert_eq!(theirs.version, Some(minor));
            same_fields(&data[..found.len], theirs.headers);
            return true;
        }
        let found = ResponseHead::default().read(data, Asked::Plain, &LIMITS);
        let Ok(Some(Response { len, status, .. })) = found else {
            return false;
        };
        let mut theirs = httparse::Response::new(&mut fields);
        assert_eq!(theirs.parse(data), Ok(httparse::Status::Complete(len)));
        assert_eq!(theirs.code, Some(status));
        same_fields(&data[..len], theirs.headers);
        true
    }

    /// The fields as they stand in the head, and as httparse read them.
    fn same_fields(head: &[u8], theirs: &[httparse::Header<'_>]) {
        let head = head.strip_prefix(b"\r\n").unwrap_or(head);
        let lines = head.split(|byte| *byte == b'\n').skip(1);
        let ours: Vec<(&[u8], &[u8])> = lines
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            .map(|line| {
                let colon = line.iter().position(|byte| *byte == b':').unwrap();
                (&line[..colon], line[colon + 1..].trim_ascii())
            })
            .collect();
        let theirs: Vec<(&[u8], &[u8])> = theirs
            .iter()
            .map(|field| (field.name.as_bytes(), field.value.trim_ascii()))
            .collect();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn what_is_accepted_another_parser_reads_the_same() {
        const MUTATIONS: usize = 100_000;
        let seed = std::env::var("WEFT_SEED").ok();
        let seed = seed.map_or(0x5eed, |seed| seed.parse().expect("WEFT_SEED is a number"));
        println!("WEFT_SEED={seed}"); // Shown when it fails.
        let seeds: Vec<Vec<u8>> = ["head", "requests", "responses"]
            .into_iter()
            .flat_map(corpus)
            .filter_map(|(_, bytes)| Some(bytes.split_first()?.1.to_vec()))
            .collect();
        let accepted = seeds.iter().filter(|data| agrees(data)).count();
        assert!(accepted >= 20, "{accepted} of the corpora");
        let rng = Rng::new(seed);
        let mut accepted = 0;
        for _ in 0..MUTATIONS {
            let mut data = seeds[below(&rng, seeds.len())].clone();
            for _ in 0..=below(&rng, 3) {
                mutate(&mut data, &rng, &seeds);
            }
            accepted += usize::from(agrees(&data));
        }
        // Or nothing was compared.
        assert!(accepted > MUTATIONS / 50, "{accepted}");
    }

    fn below(rng: &Rng, end: usize) -> usize {
        usize::try_from(rng.next() % end.max(1) as u64).unwrap()
    }

    /// Changes a byte, takes some out, or puts in bytes that matter to parsers or that another
    /// input has.
    fn mutate(data: &mut Vec<u8>, rng: &Rng, seeds: &[Vec<u8>]) {
        const WORDS: [&[u8]; 12] = [
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b":",
            b"\0",
            b"\x7f",
            b"\x80",
            b"\r\n\r\n",
            b",",
            b"\x0b",
        ];
        let at = below(rng, data.len() + 1);
        match below(rng, 5) {
            0 if at < data.len() => data[at] = below(rng, 256).to_le_bytes()[0],
            1 if at < data.len() => data[at] ^= 1 << below(rng, 8),
            2 => {
                let end = data.len().min(at + 1 + below(rng, 8));
                data.drain(at..end);
            }
            3 => {
                let other = &seeds[below(rng, seeds.len())];
                let from = below(rng, other.len() + 1);
                let to = other.len().min(from + below(rng, 40));
                data.splice(at..at, other[from..to].iter().copied());
            }
            _ => {
                let word = WORDS[below(rng, WORDS.len())];
                data.splice(at..at, word.iter().copied());
            }
        }
    }
}
