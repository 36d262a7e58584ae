//! The table. Sections are those of the suite: of h2spec's own chapters in `generic`, of
//! RFC 7540 in `http2`, of RFC 7541 in `hpack`.

use weft_kit::raw2::frame::{
    DATA, ENABLE_PUSH, END_STREAM, INITIAL_WINDOW_SIZE, PADDED, PRIORITY, WITH_PRIORITY,
};
use weft_kit::raw2::{Block, Frame};

use super::Expected::{Answer, Connection, Data, Pong, PongOrEnd, Settled, Stands};
use super::frames::{Frames, Last};
use super::{Case, Expected, Step, Suite, http2};

pub(super) const COMPRESSION: &[u32] = &[9];
const CANCEL: u32 = 8;

/// `custom-key`, `custom-value` and `no-cache` in the Huffman code (RFC 7541, appendix C).
const KEY: [u8; 8] = [0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f];
const VALUE: [u8; 9] = [0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf];
const NO_CACHE: [u8; 6] = [0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
/// The index of `cache-control` in the static table.
const CACHE_CONTROL: u8 = 24;

/// All of them.
pub(super) fn all(authority: &str) -> Vec<Case> {
    let mut table = Table {
        suite: Suite::Generic,
        cases: Vec::new(),
    };
    let frames = Frames::new(authority);
    generic(&mut table, frames);
    generic_hpack(&mut table, frames);
    table.suite = Suite::Http2;
    http2::add(&mut table, frames);
    table.suite = Suite::Hpack;
    hpack(&mut table, frames);
    table.cases
}

pub(super) struct Table {
    suite: Suite,
    cases: Vec<Case>,
}

impl Table {
    /// A case that sends frames.
    pub(super) fn sends(
        &mut self,
        section: &'static str,
        words: &'static str,
        frames: &[Frame],
        expected: Expected,
    ) {
        self.does(section, words, vec![Step::Send(frames.to_vec())], expected);
    }

    pub(super) fn does(
        &mut self,
        section: &'static str,
        words: &'static str,
        steps: Vec<Step>,
        expected: Expected,
    ) {
        self.cases.push(Case {
            suite: self.suite,
            section,
            words,
            steps,
            expected,
        });
    }
}

pub(super) fn send(frame: Frame) -> Step {
    Step::Send(vec![frame])
}

/// PRIORITY with all that it may say.
pub(super) fn priority(stream: u32, on: u32, weight: u8) -> Frame {
    let mut payload = on.to_be_bytes().to_vec();
    payload.push(weight);
    Frame::new(PRIORITY, 0, stream, payload)
}

const EXCLUSIVE: u32 = 1 << 31;

/// A payload with padding of so many bytes.
fn padded(padding: u8, payload: &[u8]) -> Vec<u8> {
    let zeros = vec![0; usize::from(padding)];
    [&[padding], payload, &zeros].concat()
}

pub(super) fn window_of(size: u32) -> Frame {
    Frame::settings(&[(INITIAL_WINDOW_SIZE, size)])
}

pub(super) fn reset(stream: u32) -> Frame {
    Frame::reset(stream, CANCEL)
}

pub(super) fn end_of(stream: u32) -> Frame {
    Frame::data(stream, END_STREAM, *b"test")
}

fn generic(t: &mut Table, f: Frames<'_>) {
    t.does("1", "preface and SETTINGS", vec![], Stands);
    let ping = Frame::ping(7);
    t.sends(
        "2",
        "PRIORITY on an idle stream",
        &[priority(1, 0, 255), ping.clone()],
        Pong(7),
    );
    let held = [window_of(0), f.get(1)];
    let [settings, get] = held;
    t.sends(
        "2",
        "WINDOW_UPDATE on a half-closed stream",
        &[settings.clone(), get.clone(), Frame::window(1, 1)],
        Data(1),
    );
    t.sends(
        "2",
        "PRIORITY on a half-closed stream",
        &[
            settings,
            get.clone(),
            priority(1, 0, 255),
            Frame::window(1, 1),
        ],
        Data(1),
    );
    t.sends(
        "2",
        "RST_STREAM on a half-closed stream",
        &[get.clone(), reset(1), ping.clone()],
        PongOrEnd(7),
    );
    t.does(
        "2",
        "PRIORITY on a closed stream",
        vec![
            send(get.clone()),
            Step::Ended,
            Step::Send(vec![priority(1, 0, 255), ping.clone()]),
        ],
        Pong(7),
    );
    t.sends("3.1", "DATA", &[f.post(1), end_of(1)], Answer);
    let some = Frame::data(1, 0, *b"test");
    t.sends("3.1", "several DATA", &[f.post(1), some, end_of(1)], Answer);
    let with_padding = Frame::new(DATA, END_STREAM | PADDED, 1, padded(8, b"test"));
    t.sends(
        "3.1",
        "DATA with padding",
        &[f.post(1), with_padding],
        Answer,
    );
    t.sends("3.2", "HEADERS", std::slice::from_ref(&get), Answer);
    let block = f.fields().bytes();
    let with_padding = Frame::headers(1, END_STREAM | PADDED, padded(8, &block));
    t.sends("3.2", "HEADERS with padding", &[with_padding], Answer);
    let with_priority = [&EXCLUSIVE.to_be_bytes()[..], &[255], &block].concat();
    let with_priority = Frame::headers(1, END_STREAM | WITH_PRIORITY, with_priority);
    t.sends("3.2", "HEADERS with priority", &[with_priority], Answer);
    for (words, frame) in [
        ("weight 1", priority(1, 0, 0)),
        ("weight 256", priority(1, 0, 255)),
        ("depends on a stream", priority(3, 1, 0)),
        ("exclusive", priority(1, EXCLUSIVE, 0)),
        (
            "on an idle stream above that of the HEADERS",
            priority(3, 0, 255),
        ),
    ] {
        t.sends("3.3", words, &[frame, get.clone()], Answer);
    }
    t.sends(
        "3.4",
        "RST_STREAM",
        &[f.post(1), reset(1), ping.clone()],
        Pong(7),
    );
    t.sends(
        "3.5",
        "SETTINGS",
        &[Frame::settings(&[(ENABLE_PUSH, 0)])],
        Settled,
    );
    t.sends("3.7", "PING", std::slice::from_ref(&ping), Pong(7));
    t.sends(
        "3.8",
        "GOAWAY",
        &[Frame::goaway(0, 0), ping.clone()],
        PongOrEnd(7),
    );
    t.sends(
        "3.9",
        "WINDOW_UPDATE of the connection",
        &[Frame::window(0, 1), ping],
        Pong(7),
    );
    t.sends(
        "3.9",
        "WINDOW_UPDATE of a stream",
        &[get.clone(), Frame::window(1, 1)],
        Answer,
    );
    let begun = f.begun(1, END_STREAM);
    t.sends(
        "3.10",
        "CONTINUATION",
        &[begun.clone(), f.more(1, Last::Yes)],
        Answer,
    );
    t.sends(
        "3.10",
        "several CONTINUATION",
        &[begun, f.more(1, Last::No), f.more(1, Last::Yes)],
        Answer,
    );
    t.sends("4", "GET", &[get], Answer);
    let head = Block::request("HEAD", f.authority(), "/");
    t.sends("4", "HEAD", &[f.with(head)], Answer);
    t.sends("4", "POST", &[f.post(1), end_of(1)], Answer);
    let trailers = Block::new().literal("x-end", "1").bytes();
    t.sends(
        "4",
        "POST with trailers",
        &[
            Frame::headers(1, 0, f.post_fields().literal("trailer", "x-end").bytes()),
            Frame::data(1, 0, *b"test"),
            Frame::headers(1, END_STREAM, trailers),
        ],
        Answer,
    );
}

/// A literal: the first byte says of which kind, then name and value.
fn literal(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[kind], name, value].concat()
}

/// A string as it is, or in the Huffman code. Strings here are shorter than 127 bytes.
fn string(bytes: &[u8], flag: u8) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap_or(126) | flag;
    [&[length], bytes].concat()
}

const HUFFMAN: u8 = 0x80;

fn generic_hpack(t: &mut Table, f: Frames<'_>) {
    // `user-agent` with an empty value.
    t.sends(
        "5",
        "an indexed field",
        &[f.with(f.fields().indexed(58))],
        Answer,
    );
    let indexed = |kind: u8, bits: u8| {
        let most = (1 << bits) - 1;
        match CACHE_CONTROL < most {
            true => vec![kind | CACHE_CONTROL],
            false => vec![kind | most, CACHE_CONTROL - most],
        }
    };
    for (words, bytes) in [
        (
            "incremental, indexed name",
            [indexed(0x40, 6), string(b"no-cache", 0)],
        ),
        (
            "incremental, indexed name, Huffman",
            [indexed(0x40, 6), string(&NO_CACHE, HUFFMAN)],
        ),
        (
            "without indexing, indexed name",
            [indexed(0, 4), string(b"no-cache", 0)],
        ),
        (
            "without indexing, indexed name, Huffman",
            [indexed(0, 4), string(&NO_CACHE, HUFFMAN)],
        ),
        (
            "never indexed, indexed name",
            [indexed(0x10, 4), string(b"no-cache", 0)],
        ),
        (
            "never indexed, indexed name, Huffman",
            [indexed(0x10, 4), string(&NO_CACHE, HUFFMAN)],
        ),
    ] {
        t.sends(
            "5",
            words,
            &[f.with(f.fields().raw(bytes.concat()))],
            Answer,
        );
    }
    let (plain_key, plain_value) = (string(b"custom-key", 0), string(b"custom-value", 0));
    let (key, value) = (string(&KEY, HUFFMAN), string(&VALUE, HUFFMAN));
    for (words, bytes) in [
        (
            "incremental, new name",
            literal(0x40, &plain_key, &plain_value),
        ),
        (
            "incremental, new name, Huffman",
            literal(0x40, &key, &value),
        ),
        (
            "without indexing, new name",
            literal(0, &plain_key, &plain_value),
        ),
        (
            "without indexing, new name, Huffman",
            literal(0, &key, &value),
        ),
        (
            "never indexed, new name",
            literal(0x10, &plain_key, &plain_value),
        ),
        (
            "never indexed, new name, Huffman",
            literal(0x10, &key, &value),
        ),
    ] {
        t.sends("5", words, &[f.with(f.fields().raw(bytes))], Answer);
    }
    let fields = f.fields().bytes();
    let updated = Block::new().table_size(0).raw(&fields);
    t.sends("5", "a table size update", &[f.with(updated)], Answer);
    let updated = Block::new().table_size(0).table_size(4096).raw(&fields);
    t.sends(
        "5",
        "several table size updates",
        &[f.with(updated)],
        Answer,
    );
}

fn hpack(t: &mut Table, f: Frames<'_>) {
    let wrong = Connection(COMPRESSION);
    let fields = || f.fields();
    // Nothing is in the dynamic table.
    t.sends(
        "2.3.3",
        "an index beyond the tables",
        &[f.with(fields().indexed(70))],
        wrong,
    );
    let name = literal(0x40 | 0x3f, &[70 - 63], &string(b"no-cache", 0));
    t.sends(
        "2.3.3",
        "a name beyond the tables",
        &[f.with(fields().raw(name))],
        wrong,
    );
    t.sends(
        "4.2",
        "a table size update at the end",
        &[f.with(fields().table_size(1))],
        wrong,
    );
    let huffman = |bytes: &[u8]| {
        f.with(fields().raw(literal(0, &string(b"x-test", 0), &string(bytes, HUFFMAN))))
    };
    let long = [&NO_CACHE[..], &[0xff]].concat();
    t.sends(
        "5.2",
        "Huffman padding of more than 7 bits",
        &[huffman(&long)],
        wrong,
    );
    // `0` is 00000: three bits of padding, which must be ones.
    t.sends(
        "5.2",
        "Huffman padding of zeros",
        &[huffman(&[0x00])],
        wrong,
    );
    t.sends(
        "5.2",
        "the end of the string within",
        &[huffman(&[0xff; 4])],
        wrong,
    );
    t.sends("6.1", "index 0", &[f.with(fields().indexed(0))], wrong);
    let above = Block::new().table_size(4097).raw(fields().bytes());
    t.sends(
        "6.3",
        "a table larger than SETTINGS allow",
        &[f.with(above)],
        wrong,
    );
}
