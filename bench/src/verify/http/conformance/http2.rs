//! The table, RFC 9113: what has section numbers of RFC 7540.

use weft_kit::raw2::frame::{
    ACK, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE, PADDED, PING, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    WITH_PRIORITY,
};
use weft_kit::raw2::{Block, Frame};

use super::Expected::{
    Answer, Closed, Connection, Data, Goodbye, Pong, PongOrEnd, Settled, Stream,
};
use super::Step;
use super::cases::{COMPRESSION, Table, end_of, priority, reset, send, window_of};
use super::frames::{Frames, Last};

const PROTOCOL: &[u32] = &[1];
const FLOW_CONTROL: &[u32] = &[3];
const STREAM_CLOSED: &[u32] = &[5];
const FRAME_SIZE: &[u32] = &[6];
const CLOSED_OR_PROTOCOL: &[u32] = &[5, 1];
const REFUSED_OR_PROTOCOL: &[u32] = &[7, 1];
/// The largest window.
const MOST_WINDOW: u32 = (1 << 31) - 1;
/// The largest frame unless SETTINGS allow more.
const MOST_FRAME: usize = 1 << 14;

/// Adds them.
pub(super) fn add(t: &mut Table, f: Frames<'_>) {
    connections(t, f);
    stream_states(t, f);
    streams(t, f);
    definitions(t, f);
    settings(t, f);
    windows(t, f);
    continuation(t, f);
    messages(t, f);
}

fn connections(t: &mut Table, f: Frames<'_>) {
    let ping = Frame::ping(7);
    t.does(
        "3.5",
        "the preface of a client",
        vec![send(ping.clone())],
        Pong(7),
    );
    let nonsense = b"INVALID CONNECTION PREFACE\r\n\r\n".to_vec();
    t.does(
        "3.5",
        "another preface",
        vec![Step::Unprepared, Step::Raw(nonsense)],
        Closed,
    );
    let unknown = Frame::new(0x16, 0, 0, [0; 8]);
    t.sends(
        "4.1",
        "a frame of an unknown type",
        &[unknown.clone(), ping.clone()],
        Pong(7),
    );
    let flags = Frame::new(PING, 0x16, 0, 7_u64.to_be_bytes());
    t.sends("4.1", "flags that are not defined", &[flags], Pong(7));
    let reserved = Frame::new(PING, 0, 1 << 31, 7_u64.to_be_bytes());
    t.sends("4.1", "the reserved bit", &[reserved], Pong(7));
    let full = Frame::data(1, END_STREAM, vec![0; MOST_FRAME]);
    t.sends("4.2", "DATA of 2^14 bytes", &[f.post(1), full], Answer);
    let too_long = Frame::data(1, END_STREAM, vec![0; MOST_FRAME + 1]);
    t.sends(
        "4.2",
        "DATA above SETTINGS_MAX_FRAME_SIZE",
        &[f.post(1), too_long],
        Stream(FRAME_SIZE),
    );
    let long = f.fields().literal("x-long", "a".repeat(MOST_FRAME)).bytes();
    t.sends(
        "4.2",
        "HEADERS above SETTINGS_MAX_FRAME_SIZE",
        &[Frame::headers(1, END_STREAM, long)],
        Connection(FRAME_SIZE),
    );
    t.sends(
        "4.3",
        "a block that is cut off",
        &[Frame::headers(1, END_STREAM, [0x40])],
        Connection(COMPRESSION),
    );
    let begun = f.begun(1, 0);
    t.sends(
        "4.3",
        "PRIORITY within a block",
        &[begun.clone(), priority(1, 0, 255), f.more(1, Last::Yes)],
        Connection(PROTOCOL),
    );
    t.sends(
        "4.3",
        "HEADERS of another stream within a block",
        &[begun, f.post(3), f.more(1, Last::Yes)],
        Connection(PROTOCOL),
    );
    let wrong = Frame::new(PING, 0, 3, [0; 8]);
    t.sends(
        "5.4.1",
        "a wrong PING: the connection ends",
        std::slice::from_ref(&wrong),
        Closed,
    );
    t.sends("5.4.1", "a wrong PING: GOAWAY", &[wrong], Goodbye(PROTOCOL));
    t.sends(
        "5.5",
        "an unknown extension",
        &[Frame::new(0xff, 0, 0, [0; 8]), ping],
        Pong(7),
    );
    t.sends(
        "5.5",
        "an unknown extension within a block",
        &[f.begun(1, END_STREAM), unknown, f.more(1, Last::Yes)],
        Connection(PROTOCOL),
    );
}

fn stream_states(t: &mut Table, f: Frames<'_>) {
    let (get, post) = (f.get(1), f.post(1));
    let fields = f.fields().bytes();
    let whole = Frame::new(CONTINUATION, END_HEADERS, 1, fields);
    for (words, frame) in [
        ("idle: DATA", end_of(1)),
        ("idle: RST_STREAM", reset(1)),
        ("idle: WINDOW_UPDATE", Frame::window(1, 100)),
        ("idle: CONTINUATION", whole.clone()),
    ] {
        t.sends("5.1", words, &[frame], Connection(PROTOCOL));
    }
    for (words, frame, codes) in [
        ("half-closed: DATA", end_of(1), STREAM_CLOSED),
        ("half-closed: HEADERS", get.clone(), STREAM_CLOSED),
        ("half-closed: CONTINUATION", whole, CLOSED_OR_PROTOCOL),
    ] {
        t.sends("5.1", words, &[get.clone(), frame], Stream(codes));
    }
    for (words, frame, codes) in [
        ("closed by RST_STREAM: DATA", end_of(1), STREAM_CLOSED),
        ("closed by RST_STREAM: HEADERS", get.clone(), STREAM_CLOSED),
        (
            "closed by RST_STREAM: CONTINUATION",
            f.more(1, Last::Yes),
            CLOSED_OR_PROTOCOL,
        ),
    ] {
        t.sends(
            "5.1",
            words,
            &[post.clone(), reset(1), frame],
            Stream(codes),
        );
    }
    for (words, frame, expected) in [
        ("closed: DATA", end_of(1), Stream(STREAM_CLOSED)),
        ("closed: HEADERS", get.clone(), Connection(STREAM_CLOSED)),
        (
            "closed: CONTINUATION",
            f.more(1, Last::Yes),
            Connection(CLOSED_OR_PROTOCOL),
        ),
    ] {
        let steps = vec![send(get.clone()), Step::Ended, send(frame)];
        t.does("5.1", words, steps, expected);
    }
}

fn streams(t: &mut Table, f: Frames<'_>) {
    t.sends("5.1.1", "an even stream", &[f.get(2)], Connection(PROTOCOL));
    t.sends(
        "5.1.1",
        "a stream below the last",
        &[f.get(5), f.get(3)],
        Connection(PROTOCOL),
    );
    t.does(
        "5.1.2",
        "one stream more than allowed",
        vec![send(window_of(0)), Step::Settled, Step::OneTooMany],
        Stream(REFUSED_OR_PROTOCOL),
    );
    let block = f.fields().bytes();
    let on_itself = [&1_u32.to_be_bytes()[..], &[255], &block].concat();
    let on_itself = Frame::headers(1, END_STREAM | WITH_PRIORITY, on_itself);
    t.sends(
        "5.3.1",
        "HEADERS that depend on themselves",
        &[on_itself],
        Stream(PROTOCOL),
    );
    t.sends(
        "5.3.1",
        "PRIORITY that depends on itself",
        &[priority(1, 1, 255)],
        Stream(PROTOCOL),
    );
}

fn definitions(t: &mut Table, f: Frames<'_>) {
    let (get, post, ping) = (f.get(1), f.post(1), Frame::ping(7));
    t.sends(
        "6.1",
        "DATA on stream 0",
        &[Frame::data(0, 0, *b"test")],
        Connection(PROTOCOL),
    );
    t.sends(
        "6.1",
        "DATA on a half-closed stream",
        &[get.clone(), end_of(1)],
        Stream(STREAM_CLOSED),
    );
    let padding = Frame::new(DATA, END_STREAM | PADDED, 1, *b"\x06test");
    t.sends(
        "6.1",
        "DATA with too much padding",
        &[post.clone(), padding],
        Connection(PROTOCOL),
    );
    let begun = f.begun(1, END_STREAM);
    t.sends(
        "6.2",
        "PRIORITY instead of CONTINUATION",
        &[begun.clone(), priority(1, 0, 255)],
        Connection(PROTOCOL),
    );
    t.sends(
        "6.2",
        "HEADERS instead of CONTINUATION",
        &[begun, f.get(3)],
        Connection(PROTOCOL),
    );
    t.sends(
        "6.2",
        "HEADERS on stream 0",
        &[f.get(0)],
        Connection(PROTOCOL),
    );
    let block = f.fields().bytes();
    let too_much = [&[u8::MAX][..], &block].concat();
    let padding = Frame::headers(1, END_STREAM | PADDED, too_much);
    t.sends(
        "6.2",
        "HEADERS with too much padding",
        &[padding],
        Connection(PROTOCOL),
    );
    t.sends(
        "6.3",
        "PRIORITY on stream 0",
        &[priority(0, 0, 255)],
        Connection(PROTOCOL),
    );
    let short = Frame::new(PRIORITY, 0, 1, [0; 4]);
    t.sends(
        "6.3",
        "PRIORITY of 4 bytes",
        &[get.clone(), short],
        Stream(FRAME_SIZE),
    );
    t.sends(
        "6.4",
        "RST_STREAM on stream 0",
        &[reset(0)],
        Connection(PROTOCOL),
    );
    t.sends(
        "6.4",
        "RST_STREAM on an idle stream",
        &[reset(1)],
        Connection(PROTOCOL),
    );
    let short = Frame::new(RST_STREAM, 0, 1, [0; 3]);
    t.sends(
        "6.4",
        "RST_STREAM of 3 bytes",
        &[post.clone(), short],
        Connection(FRAME_SIZE),
    );
    t.sends(
        "6.7",
        "PING",
        &[Frame::ping(0x6832_7370)],
        Pong(0x6832_7370),
    );
    t.sends(
        "6.7",
        "PING ACK is not answered",
        &[Frame::ping(3).ack(), ping.clone()],
        Pong(7),
    );
    let on_stream = Frame::new(PING, 0, 1, [0; 8]);
    t.sends(
        "6.7",
        "PING on a stream",
        &[on_stream],
        Connection(PROTOCOL),
    );
    t.sends(
        "6.7",
        "PING of 6 bytes",
        &[Frame::new(PING, 0, 0, [0; 6])],
        Connection(FRAME_SIZE),
    );
    let on_stream = Frame {
        stream: 1,
        ..Frame::goaway(0, 0)
    };
    t.sends(
        "6.8",
        "GOAWAY on a stream",
        &[on_stream],
        Connection(PROTOCOL),
    );
    t.sends(
        "7",
        "GOAWAY with an unknown code",
        &[Frame::goaway(0, 0xff), ping.clone()],
        PongOrEnd(7),
    );
    t.sends(
        "7",
        "RST_STREAM with an unknown code",
        &[post, Frame::reset(1, 0xff), ping],
        PongOrEnd(7),
    );
    let promise = [&2_u32.to_be_bytes()[..], &block].concat();
    let promise = Frame::new(PUSH_PROMISE, END_HEADERS, 1, promise);
    t.sends(
        "8.2",
        "PUSH_PROMISE of a client",
        &[get, promise],
        Connection(PROTOCOL),
    );
}

fn settings(t: &mut Table, f: Frames<'_>) {
    let ack = Frame::new(SETTINGS, ACK, 0, [0]);
    t.sends(
        "6.5",
        "SETTINGS ACK with a payload",
        &[ack],
        Connection(FRAME_SIZE),
    );
    let on_stream = Frame::new(SETTINGS, 0, 1, [0, 3, 0, 0, 0, 100]);
    t.sends(
        "6.5",
        "SETTINGS on a stream",
        &[on_stream],
        Connection(PROTOCOL),
    );
    let short = Frame::new(SETTINGS, 0, 0, [0, 3, 0]);
    t.sends(
        "6.5",
        "SETTINGS of 3 bytes",
        &[short],
        Connection(FRAME_SIZE),
    );
    for (words, id, value, codes) in [
        ("ENABLE_PUSH 2", ENABLE_PUSH, 2, PROTOCOL),
        (
            "INITIAL_WINDOW_SIZE 2^31",
            INITIAL_WINDOW_SIZE,
            1 << 31,
            FLOW_CONTROL,
        ),
        (
            "MAX_FRAME_SIZE 2^14 - 1",
            MAX_FRAME_SIZE,
            (1 << 14) - 1,
            PROTOCOL,
        ),
        ("MAX_FRAME_SIZE 2^24", MAX_FRAME_SIZE, 1 << 24, PROTOCOL),
    ] {
        t.sends(
            "6.5.2",
            words,
            &[Frame::settings(&[(id, value)])],
            Connection(codes),
        );
    }
    let unknown = Frame::settings(&[(0xff, 1)]);
    t.sends(
        "6.5.2",
        "an unknown setting",
        &[unknown, Frame::ping(7)],
        Pong(7),
    );
    let twice = Frame::settings(&[(INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1)]);
    t.does(
        "6.5.3",
        "the last of several values counts",
        vec![send(twice), Step::Settled, send(f.get(1))],
        Data(1),
    );
    let settings = Frame::settings(&[(ENABLE_PUSH, 0)]);
    t.sends("6.5.3", "SETTINGS are acknowledged", &[settings], Settled);
}

fn windows(t: &mut Table, f: Frames<'_>) {
    let get = f.get(1);
    let held = [window_of(0), get.clone()];
    t.sends(
        "6.9",
        "an increment of 0",
        &[Frame::window(0, 0)],
        Connection(PROTOCOL),
    );
    let zero = [&held[..], &[Frame::window(1, 0)]].concat();
    t.sends(
        "6.9",
        "an increment of 0 on a stream",
        &zero,
        Stream(PROTOCOL),
    );
    let short = Frame::new(WINDOW_UPDATE, 0, 0, [0; 3]);
    t.sends(
        "6.9",
        "WINDOW_UPDATE of 3 bytes",
        &[short],
        Connection(FRAME_SIZE),
    );
    t.does(
        "6.9.1",
        "a window of 1",
        vec![send(window_of(1)), Step::Settled, send(get.clone())],
        Data(1),
    );
    let twice = |stream| vec![Frame::window(stream, MOST_WINDOW); 2];
    t.sends(
        "6.9.1",
        "a window above 2^31 - 1",
        &twice(0),
        Connection(FLOW_CONTROL),
    );
    let above = [&held[..], &twice(1)].concat();
    t.sends(
        "6.9.1",
        "a window of a stream above 2^31 - 1",
        &above,
        Stream(FLOW_CONTROL),
    );
    t.does(
        "6.9.2",
        "the initial window grows after HEADERS",
        vec![
            send(window_of(0)),
            Step::Settled,
            Step::Send(vec![get.clone(), window_of(1)]),
        ],
        Data(1),
    );
    t.does(
        "6.9.2",
        "a window becomes negative",
        vec![
            send(window_of(3)),
            Step::Settled,
            send(get),
            Step::Data(3),
            send(window_of(2)),
            Step::Settled,
            send(Frame::window(1, 2)),
        ],
        Data(1),
    );
    t.sends(
        "6.9.2",
        "INITIAL_WINDOW_SIZE 2^31",
        &[window_of(1 << 31)],
        Connection(FLOW_CONTROL),
    );
}

fn continuation(t: &mut Table, f: Frames<'_>) {
    let begun = f.begun(1, END_STREAM);
    let (more, last) = (f.more(1, Last::No), f.more(1, Last::Yes));
    t.sends(
        "6.10",
        "several",
        &[begun.clone(), more.clone(), last.clone()],
        Answer,
    );
    let post = Frame::new(HEADERS, 0, 1, f.post_fields().bytes());
    for (words, frames) in [
        (
            "DATA after one that is not the last",
            vec![post, more.clone(), end_of(1)],
        ),
        ("on stream 0", vec![begun.clone(), f.more(0, Last::Yes)]),
        (
            "after HEADERS with END_HEADERS",
            vec![f.get(1), last.clone()],
        ),
        (
            "after one with END_HEADERS",
            vec![begun, last.clone(), last],
        ),
        (
            "after DATA",
            vec![f.post(1), end_of(1), more, f.more(0, Last::Yes)],
        ),
    ] {
        t.sends("6.10", words, &frames, Connection(PROTOCOL));
    }
}

fn messages(t: &mut Table, f: Frames<'_>) {
    let again = Frame::headers(1, 0, Block::new().literal("x-end", "1").bytes());
    t.sends(
        "8.1",
        "HEADERS again, without END_STREAM",
        &[f.post(1), again],
        Stream(PROTOCOL),
    );
    let wrong = Stream(PROTOCOL);
    let fields = || f.fields();
    let upper = fields().literal("X-TEST", "1");
    t.sends("8.1.2", "a name in upper case", &[f.with(upper)], wrong);
    t.sends(
        "8.1.2.1",
        "an unknown pseudo-header",
        &[f.with(fields().literal(":test", "1"))],
        wrong,
    );
    t.sends(
        "8.1.2.1",
        "one of answers",
        &[f.with(fields().literal(":status", "200"))],
        wrong,
    );
    let pseudo = Frame::headers(1, 0, Block::new().literal(":method", "POST").bytes());
    t.sends(
        "8.1.2.1",
        "one in trailers",
        &[
            Frame::headers(1, 0, f.post_fields().literal("trailer", "x-test").bytes()),
            Frame::data(1, 0, *b"test"),
            pseudo,
        ],
        wrong,
    );
    let bytes = fields().bytes();
    let late = Block::new().literal("x-test", "1").raw(&bytes);
    t.sends("8.1.2.1", "one after a field", &[f.with(late)], wrong);
    let connection = fields().literal("connection", "keep-alive");
    t.sends("8.1.2.2", "connection", &[f.with(connection)], wrong);
    let te = fields()
        .literal("trailers", "test")
        .literal("te", "trailers, deflate");
    t.sends("8.1.2.2", "te other than trailers", &[f.with(te)], wrong);
    let pseudo = |names: &[(&str, &str)]| {
        let block = |block: Block, (name, value): &(&str, &str)| block.literal(name, value);
        let block = names.iter().fold(Block::new(), block);
        f.with(block.literal(":authority", f.authority()))
    };
    let (method, scheme, path) = ((":method", "GET"), (":scheme", "http"), (":path", "/"));
    for (words, names) in [
        ("an empty :path", &[method, scheme, (":path", "")][..]),
        ("no :method", &[scheme, path]),
        ("no :scheme", &[method, path]),
        ("no :path", &[method, scheme]),
        ("two :method", &[method, method, scheme, path]),
        ("two :scheme", &[method, scheme, scheme, path]),
        ("two :path", &[method, scheme, path, path]),
    ] {
        t.sends("8.1.2.3", words, &[pseudo(names)], wrong);
    }
    let with_length = Frame::headers(1, 0, f.post_fields().literal("content-length", "1").bytes());
    t.sends(
        "8.1.2.6",
        "a length other than DATA",
        &[with_length.clone(), end_of(1)],
        wrong,
    );
    t.sends(
        "8.1.2.6",
        "a length other than several DATA",
        &[with_length, Frame::data(1, 0, *b"test"), end_of(1)],
        wrong,
    );
}
