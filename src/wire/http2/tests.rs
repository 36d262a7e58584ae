use std::time::{Duration, Instant};

use super::{
    ACK, Allowance, Budget, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR, FROM_CLIENTS, FROM_SERVERS, Frames, GOAWAY, Glitch, HEADERS,
    MAX_CONTINUATIONS, PADDED, PING, PREFACE, PRIORITY, PRIORITY_UPDATE, PROTOCOL_ERROR,
    PUSH_PROMISE, RST_STREAM, Role, SETTINGS, WINDOW_UPDATE, Waiting, goaway,
};

/// A frame whose payload is zeros.
fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
    with(kind, flags, stream, &vec![0; length])
}

fn with(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn reset(code: u32) -> Vec<u8> {
    with(RST_STREAM, 0, 1, &code.to_be_bytes())
}

fn request(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, 40)
}

/// What both sides say first.
fn opening(role: Role) -> Vec<u8> {
    let preface = if role == Role::Server { PREFACE } else { b"" };
    [preface, &frame(SETTINGS, 0, 0, 18)].concat()
}

/// A connection on which both sides have said hello. That costs one SETTINGS.
fn begun(role: Role) -> Conversation {
    let mut frames = Frames::new(role, Budget::default());
    let now = Instant::now();
    frames.received(&opening(role), now).unwrap();
    let ours = match role {
        Role::Server => Role::Client,
        Role::Client => Role::Server,
    };
    frames.sent(&opening(ours));
    assert_eq!(frames.waiting(), Waiting::Nothing);
    assert!(frames.may_say_goodbye());
    Conversation {
        frames,
        now,
        received: 0,
    }
}

struct Conversation {
    frames: Frames,
    now: Instant,
    received: u64,
}

impl Conversation {
    /// Frames that come together, `count` of them.
    #[track_caller]
    fn reads(&mut self, bytes: &[u8], count: u64) -> &mut Self {
        self.received += count;
        let judged = self.frames.received(bytes, self.now);
        assert_eq!(judged, Ok(()), "after {} frames", self.received);
        self
    }

    fn writes(&mut self, bytes: &[u8]) -> &mut Self {
        self.frames.sent(bytes);
        self
    }

    fn waits(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    /// The number of the first of these frames that is not taken, from 1, and why.
    fn flood(&mut self, bytes: &[u8]) -> (u32, Glitch) {
        for n in 1..200_000 {
            if let Err(glitch) = self.frames.received(bytes, self.now) {
                return (n, glitch);
            }
        }
        panic!("endless");
    }
}

const fn calm(rule: &'static str) -> Glitch {
    Glitch {
        error: ENHANCE_YOUR_CALM,
        rule,
    }
}

const fn wrong(rule: &'static str) -> Glitch {
    Glitch {
        error: PROTOCOL_ERROR,
        rule,
    }
}

fn of(role: Role, rule: &str) -> &'static Allowance {
    let table = match role {
        Role::Server => &FROM_CLIENTS,
        Role::Client => &FROM_SERVERS,
    };
    table.iter().find(|row| row.rule == rule).unwrap()
}

/// Every flood of frames that are received: kind, flags, payload, rule, cut at from clients and
/// from servers on a new connection.
#[test]
fn floods_are_cut() {
    use Role::{Client, Server};
    let padded = with(DATA, PADDED, 1, &[[255].as_slice(), &[0; 255]].concat());
    let padded_one = with(DATA, PADDED, 1, &[[9].as_slice(), &[0; 10]].concat());
    for (name, bytes, rule, clients, servers) in [
        // The one at the beginning is paid for as well.
        (
            "SETTINGS",
            frame(SETTINGS, 0, 0, 6),
            "settings_flood",
            100,
            100,
        ),
        (
            "SETTINGS ACK",
            frame(SETTINGS, ACK, 0, 0),
            "settings_flood",
            100,
            100,
        ),
        (
            "large SETTINGS",
            frame(SETTINGS, 0, 0, 2700 * 6),
            "settings_flood",
            1,
            1,
        ),
        ("PING", frame(PING, 0, 0, 8), "ping_flood", 201, 201),
        ("PING ACK", frame(PING, ACK, 0, 8), "ping_flood", 201, 201),
        (
            "PRIORITY",
            frame(PRIORITY, 0, 3, 5),
            "priority_flood",
            1001,
            101,
        ),
        (
            "PRIORITY_UPDATE",
            frame(PRIORITY_UPDATE, 0, 0, 9),
            "priority_flood",
            1001,
            101,
        ),
        (
            "WINDOW_UPDATE",
            frame(WINDOW_UPDATE, 0, 0, 4),
            "window_update_flood",
            1001,
            1001,
        ),
        (
            "WINDOW_UPDATE of a stream",
            frame(WINDOW_UPDATE, 0, 1, 4),
            "window_update_flood",
            1001,
            1001,
        ),
        (
            "RST_STREAM",
            frame(RST_STREAM, 0, 1, 4),
            "reset_flood",
            501,
            501,
        ),
        (
            "empty DATA",
            frame(DATA, 0, 1, 0),
            "small_data_flood",
            2001,
            5001,
        ),
        (
            "1-byte DATA",
            frame(DATA, 0, 1, 1),
            "small_data_flood",
            2001,
            5001,
        ),
        (
            "4-byte DATA",
            frame(DATA, 0, 1, 4),
            "small_data_flood",
            2001,
            5001,
        ),
        ("only padding", padded, "small_data_flood", 2001, 5001),
        (
            "one byte, padded",
            padded_one,
            "small_data_flood",
            2001,
            5001,
        ),
        ("unknown", frame(0x2a, 0, 1, 8), "unknown_flood", 201, 201),
        (
            "large unknown",
            frame(0xff, 0xff, 0, 16_384),
            "unknown_flood",
            201,
            201,
        ),
        ("GOAWAY", goaway(0, 0, "x"), "goaway_flood", 17, 17),
    ] {
        for (role, at) in [(Server, clients), (Client, servers)] {
            let cut = begun(role).flood(&bytes);
            assert_eq!(cut, (at, calm(rule)), "{name}, we are the {role:?}");
        }
    }
    let informational = frame(HEADERS, END_HEADERS, 1, 10);
    let cut = begun(Client).flood(&informational);
    assert_eq!(cut, (501, calm("headers_flood")));
    let cut = begun(Server).flood(&[request(1), reset(8)].concat());
    assert_eq!(cut, (501, calm("reset_flood")), "rapid reset");
}

/// However much was earned, a flood ends.
#[test]
fn floods_are_cut_on_a_connection_that_has_worked() {
    for role in [Role::Server, Role::Client] {
        for (bytes, rule) in [
            (frame(SETTINGS, 0, 0, 6), "settings_flood"),
            (frame(PING, 0, 0, 8), "ping_flood"),
            (frame(PRIORITY, 0, 3, 5), "priority_flood"),
            (frame(WINDOW_UPDATE, 0, 1, 4), "window_update_flood"),
            (frame(RST_STREAM, 0, 1, 4), "reset_flood"),
            (frame(DATA, 0, 1, 1), "small_data_flood"),
            (frame(0x2a, 0, 1, 8), "unknown_flood"),
            (frame(GOAWAY, 0, 0, 8), "goaway_flood"),
        ] {
            let mut talk = begun(role);
            for _ in 0..20_000 {
                talk.writes(&frame(HEADERS, END_HEADERS, 1, 10))
                    .writes(&frame(DATA, 0, 1, 16_384))
                    .reads(&frame(DATA, 0, 1, 16_384), 1)
                    .waits(Duration::from_millis(1));
            }
            let (at, glitch) = talk.flood(&bytes);
            assert_eq!((at, glitch), (of(role, rule).kept + 1, calm(rule)));
        }
    }
}

/// MadeYouReset: what we send tells what came. The peer is cut with the next bytes from it.
#[test]
fn floods_of_resets_that_we_are_made_to_send_are_cut() {
    use Role::{Client, Server};
    for (code, cuts) in [
        (0, None),
        (1, Some(("made_resets", [200, 200]))),
        (2, None),
        (3, Some(("made_resets", [200, 200]))),
        (5, Some(("made_closed", [2000, 5000]))),
        (6, Some(("made_resets", [200, 200]))),
        (7, Some(("refused_streams", [1000, u32::MAX]))),
        (8, None),
        (9, Some(("made_resets", [200, 200]))),
        (11, None),
    ] {
        for (role, n) in [(Server, 0), (Client, 1)] {
            let mut talk = begun(role);
            let (rule, fine) = cuts.map_or(("", u32::MAX), |(rule, at)| (rule, at[n]));
            for _ in 0..fine.min(100_000) {
                talk.writes(&reset(code));
            }
            talk.reads(&frame(PING, 0, 0, 8), 1);
            if fine < u32::MAX {
                talk.writes(&reset(code));
                assert!(talk.frames.may_say_goodbye());
                let cut = talk.flood(&frame(PING, 0, 0, 8));
                assert_eq!(cut, (1, calm(rule)), "{code} as {role:?}");
            }
        }
    }
}

/// Time gives back what a burst took.
#[test]
fn who_pauses_may_come_again() {
    let ping = frame(PING, 0, 0, 8);
    let mut talk = begun(Role::Server);
    for _ in 0..200 {
        talk.reads(&ping, 1);
    }
    talk.waits(Duration::from_secs(1));
    for _ in 0..20 {
        talk.reads(&ping, 1);
    }
    assert_eq!(talk.flood(&ping).0, 1);
    // Never again, however long it waits.
    talk.waits(Duration::from_secs(3600));
    assert_eq!(talk.flood(&ping), (1, calm("ping_flood")));
}

/// Frames each pattern of the next two tests goes on for.
const MANY: u64 = if cfg!(debug_assertions) {
    200_000
} else {
    10_000_000
};

fn goes_on(role: Role, mut cycle: impl FnMut(&mut Conversation)) {
    let mut talk = begun(role);
    while talk.received < MANY {
        cycle(&mut talk);
    }
}

#[test]
fn what_clients_do_is_never_cut() {
    let micros = Duration::from_micros;
    let millis = Duration::from_millis;
    let head = frame(HEADERS, END_HEADERS, 1, 20);
    let request = request(1);
    let reset = reset(8);
    let ping = frame(PING, 0, 0, 8);
    let updates = [frame(WINDOW_UPDATE, 0, 0, 4), frame(WINDOW_UPDATE, 0, 1, 4)].concat();
    let small = frame(DATA, 0, 1, 25);
    let full = frame(DATA, 0, 1, 16_384);
    let last = frame(DATA, END_STREAM, 1, 100);

    // gRPC streams: 10,000 small messages a second, windows updated after each.
    goes_on(Role::Server, |talk| {
        talk.writes(&small).waits(micros(100)).reads(&updates, 2);
    });
    // The same the other way, empty messages, 50,000 a second, never answered.
    let empty_message = frame(DATA, 0, 1, 5);
    goes_on(Role::Server, |talk| {
        talk.reads(&empty_message, 1).waits(micros(20));
    });
    // 20,000 requests a second, each with its priority and its windows.
    let exotic = [
        request.clone(),
        frame(PRIORITY, 0, 3, 5),
        frame(PRIORITY_UPDATE, 0, 0, 9),
        frame(0x2a, 0, 0, 8),
    ]
    .concat();
    goes_on(Role::Server, |talk| {
        talk.reads(&exotic, 4)
            .waits(micros(50))
            .writes(&[&head[..], &last[..]].concat())
            .reads(&updates, 2);
    });
    // A tenth of them is cancelled before it is answered.
    goes_on(Role::Server, |talk| {
        for _ in 0..9 {
            talk.reads(&request, 1).writes(&head).writes(&last);
        }
        talk.reads(&request, 1).reads(&reset, 1).waits(micros(500));
    });
    // Each is cancelled when its head is there, with a PING as Go's client sends it.
    goes_on(Role::Server, |talk| {
        talk.reads(&request, 1)
            .writes(&head)
            .writes(&full)
            .reads(&reset, 1)
            .reads(&ping, 1)
            .waits(micros(50));
    });
    // An upstream hangs: 250 streams run into deadlines of 100 ms again and again.
    goes_on(Role::Server, |talk| {
        for _ in 0..250 {
            talk.reads(&request, 1);
        }
        talk.waits(millis(100));
        for _ in 0..250 {
            talk.reads(&reset, 1);
        }
    });
    // Requests with heads that are too large, 400 a second: each gets 431 and a reset.
    let bad = with(RST_STREAM, 0, 1, &1_u32.to_be_bytes());
    goes_on(Role::Server, |talk| {
        talk.reads(&request, 1).writes(&head).writes(&bad);
        talk.waits(micros(2_500));
    });
    // Nothing but a PING a second, for months; a change of settings every few.
    let settings = frame(SETTINGS, 0, 0, 18);
    goes_on(Role::Server, |talk| {
        talk.reads(&ping, 1).waits(millis(1000)).reads(&ping, 1);
        talk.reads(&settings, 1).waits(millis(1000));
    });
    // A download by a gRPC client that probes the bandwidth after each batch, and whose
    // settings follow ten times a second.
    goes_on(Role::Server, |talk| {
        for _ in 0..10 {
            talk.writes(&full).writes(&full).reads(&ping, 1);
            talk.reads(&updates, 2).waits(millis(10));
        }
        talk.reads(&settings, 1);
    });
    // A download by Go's client, which returns its window in steps of 4 KiB, in lumps.
    goes_on(Role::Server, |talk| {
        for _ in 0..256 {
            talk.writes(&full);
        }
        for _ in 0..1024 {
            talk.reads(&updates, 2);
        }
    });
    // An upload that is flushed with an empty frame now and then, unanswered.
    let empty = frame(DATA, 0, 1, 0);
    goes_on(Role::Server, |talk| {
        for _ in 0..8 {
            talk.reads(&full, 1);
        }
        talk.reads(&empty, 1);
    });
    // A shell: single bytes both ways.
    let key = frame(DATA, 0, 1, 1);
    goes_on(Role::Server, |talk| {
        talk.reads(&key, 1).waits(millis(5)).writes(&key);
        talk.reads(&updates, 2).waits(millis(5));
    });
    // Uploads that are refused early, while 16 frames of each are on their way.
    let closed = with(RST_STREAM, 0, 1, &5_u32.to_be_bytes());
    goes_on(Role::Server, |talk| {
        talk.reads(&request, 1).writes(&head);
        for _ in 0..16 {
            talk.reads(&full, 1).writes(&closed);
        }
    });
}

#[test]
fn what_servers_do_is_never_cut() {
    let micros = Duration::from_micros;
    let request = request(1);
    let head = frame(HEADERS, END_HEADERS, 1, 20);
    let ping = frame(PING, 0, 0, 8);
    let updates = [frame(WINDOW_UPDATE, 0, 0, 4), frame(WINDOW_UPDATE, 0, 1, 4)].concat();
    let full = frame(DATA, 0, 1, 16_384);
    let small = frame(DATA, 0, 1, 25);

    // Everything is refused, at 20,000 a second.
    let refused = reset(7);
    goes_on(Role::Client, |talk| {
        talk.writes(&request).reads(&refused, 1).waits(micros(50));
    });
    // Eight informational heads, an answer, trailers.
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, 20);
    goes_on(Role::Client, |talk| {
        talk.writes(&request);
        for _ in 0..9 {
            talk.reads(&head, 1);
        }
        talk.reads(&small, 1).reads(&trailers, 1);
    });
    // Answers that trickle, a few bytes a frame: 100 streams of 100 a second.
    let token = frame(DATA, 0, 1, 3);
    goes_on(Role::Client, |talk| {
        for _ in 0..100 {
            talk.reads(&token, 1);
        }
        talk.waits(Duration::from_millis(10));
    });
    // An upload to a gRPC server that probes the bandwidth.
    goes_on(Role::Client, |talk| {
        talk.writes(&full).reads(&ping, 1).reads(&updates, 2);
    });
    // Small messages to it.
    goes_on(Role::Client, |talk| {
        talk.writes(&small).reads(&ping, 1).reads(&updates, 2);
    });
    // Nothing but PINGs.
    goes_on(Role::Client, |talk| {
        talk.reads(&ping, 1).waits(Duration::from_secs(1));
    });
    // Each answer breaks a rule, and frames of streams that we gave up come late.
    let bad = reset(1);
    let closed = reset(5);
    goes_on(Role::Client, |talk| {
        talk.writes(&request).reads(&head, 1).writes(&bad);
        for _ in 0..100 {
            talk.reads(&small, 1).writes(&closed);
        }
    });
}

/// Bytes that show every state, what they come to, and whether they may end there.
fn sequences() -> Vec<(Role, Vec<u8>, Result<(), Glitch>)> {
    use Role::{Client, Server};
    let full = frame(DATA, 0, 1, 300);
    let padded = with(DATA, PADDED, 1, &[3, 1, 0, 0, 0]);
    let block = [
        frame(HEADERS, 0, 3, 30),
        frame(CONTINUATION, 0, 3, 0),
        frame(CONTINUATION, END_HEADERS, 3, 7),
    ]
    .concat();
    let all = [
        request(1),
        full,
        padded,
        block,
        frame(PING, 0, 0, 8),
        frame(WINDOW_UPDATE, 0, 0, 4),
        frame(0x99, 0xff, 0xffff_ffff, 20),
        reset(8),
        frame(SETTINGS, ACK, 0, 0),
        goaway(0, 0, ""),
    ]
    .concat();
    let server = |tail: &[u8]| [&opening(Server)[..], &all, tail].concat();
    let client = |tail: &[u8]| [&opening(Client)[..], &all, tail].concat();
    let late = |tail: Vec<u8>| [frame(HEADERS, 0, 5, 9), tail].concat();
    let header_block = Err(wrong("header_block"));
    let mut many = frame(HEADERS, 0, 5, 9);
    for _ in 0..=MAX_CONTINUATIONS {
        many.extend(frame(CONTINUATION, 0, 5, 1));
    }
    vec![
        (Server, server(b""), Ok(())),
        (Client, client(b""), Ok(())),
        (
            Server,
            server(&frame(PUSH_PROMISE, 4, 1, 9)),
            Err(wrong("push")),
        ),
        (
            Client,
            client(&frame(PUSH_PROMISE, 4, 1, 9)),
            Err(wrong("push")),
        ),
        (Server, server(&frame(CONTINUATION, 4, 3, 1)), header_block),
        (
            Server,
            server(&late(frame(CONTINUATION, 4, 7, 1))),
            header_block,
        ),
        (Server, server(&late(frame(HEADERS, 4, 5, 1))), header_block),
        (Client, client(&late(frame(DATA, 0, 5, 1))), header_block),
        (Client, client(&late(frame(0x99, 0, 5, 1))), header_block),
        (Server, server(&many), Err(calm("continuation_flood"))),
        (
            Client,
            frame(SETTINGS, ACK, 0, 0),
            Err(wrong("first_frame")),
        ),
        (Client, frame(PING, 0, 0, 8), Err(wrong("first_frame"))),
        (
            Client,
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            Err(Glitch {
                error: FRAME_SIZE_ERROR,
                rule: "frame_size",
            }),
        ),
        (
            Server,
            [PREFACE, &request(1)].concat(),
            Err(wrong("first_frame")),
        ),
        (
            Server,
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            Err(wrong("preface")),
        ),
        (
            Server,
            server(&vec![0; 9 * 2001]),
            Err(calm("small_data_flood")),
        ),
    ]
}

/// How the bytes are cut makes no difference.
#[test]
fn slicing_changes_nothing() {
    let now = Instant::now();
    for (role, bytes, expected) in sequences() {
        let whole = |slices: &[&[u8]]| {
            let mut frames = Frames::new(role, Budget::default());
            let mut result = Ok(());
            for slice in slices {
                result = frames.received(slice, now);
                if result.is_err() {
                    break;
                }
            }
            (result, frames.waiting())
        };
        let at_once = whole(&[&bytes]);
        assert_eq!(at_once.0, expected);
        let singly: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(whole(&singly), at_once);
        // The long one is long because of many times the same.
        for cut in 0..bytes.len().min(2_000) {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(whole(&[a, b]), at_once, "{role:?}, cut at {cut}");
        }
    }
}

#[test]
fn every_byte_of_the_preface_counts() {
    for n in 0..PREFACE.len() {
        let mut bad = PREFACE.to_vec();
        bad[n] ^= 0x20;
        let mut frames = Frames::new(Role::Server, Budget::default());
        let now = Instant::now();
        assert_eq!(frames.received(&PREFACE[..n], now), Ok(()));
        assert_eq!(frames.waiting(), Waiting::Preface);
        assert_eq!(frames.received(&bad[n..], now), Err(wrong("preface")));
        assert_eq!(frames.last_stream(), 0);
    }
}

#[test]
fn frames_are_as_long_as_announced() {
    let now = Instant::now();
    for announced in [16_384, 1 << 20] {
        for (length, fine) in [(announced, true), (announced + 1, false)] {
            for kind in [DATA, HEADERS, 0x99] {
                let budget = Budget {
                    frame: announced,
                    head: 1 << 21,
                    ..Budget::default()
                };
                let mut frames = Frames::new(Role::Server, budget);
                frames.received(&opening(Role::Server), now).unwrap();
                // The head tells; the payload never comes.
                let head = &frame(kind, 0, 1, length as usize)[..9];
                let expected = Glitch {
                    error: FRAME_SIZE_ERROR,
                    rule: "frame_size",
                };
                let judged = frames.received(head, now);
                assert_eq!(judged, if fine { Ok(()) } else { Err(expected) });
            }
        }
    }
}

/// 64 KiB and two frames; the count of frames is bounded on its own.
#[test]
fn header_blocks_are_bounded() {
    let now = Instant::now();
    let full = |kind| frame(kind, 0, 1, 16_384);
    for (last, expected) in [
        (0, Ok(())),
        (1, Err(calm("header_block_size"))),
        (16_384, Err(calm("header_block_size"))),
    ] {
        let mut talk = begun(Role::Server);
        talk.reads(&full(HEADERS), 1);
        for _ in 0..5 {
            talk.reads(&full(CONTINUATION), 1);
        }
        assert_eq!(talk.frames.waiting(), Waiting::Head);
        let last = frame(CONTINUATION, END_HEADERS, 1, last);
        assert_eq!(talk.frames.received(&last, now), expected);
    }
    for (continuations, expected) in [
        (MAX_CONTINUATIONS, Ok(())),
        (MAX_CONTINUATIONS + 1, Err(calm("continuation_flood"))),
    ] {
        let mut talk = begun(Role::Client);
        talk.reads(&frame(HEADERS, 0, 1, 1), 1);
        for _ in 1..continuations {
            talk.reads(&frame(CONTINUATION, 0, 1, 0), 1);
        }
        let last = frame(CONTINUATION, END_HEADERS, 1, 1);
        assert_eq!(talk.frames.received(&last, now), expected);
    }
    // The next block begins at nothing.
    let mut talk = begun(Role::Server);
    for stream in 0..100 {
        talk.reads(&frame(HEADERS, 0, 2 * stream + 1, 16_384), 1);
        for _ in 0..4 {
            talk.reads(&frame(CONTINUATION, 0, 2 * stream + 1, 16_384), 1);
        }
        let last = frame(CONTINUATION, END_HEADERS, 2 * stream + 1, 16_384);
        talk.reads(&last, 1);
    }
}

/// What is waited for after each byte.
#[test]
fn deadlines_know_what_they_count_for() {
    let now = Instant::now();
    let block = [
        frame(HEADERS, 0, 1, 5),
        frame(CONTINUATION, END_HEADERS, 1, 3),
    ]
    .concat();
    for (role, bytes, from, until) in [
        // A head of a frame says nothing before it is complete.
        (Role::Server, request(1), 9, 49),
        (Role::Client, block, 9, 26),
        (Role::Server, frame(DATA, 0, 1, 10), 0, 0),
        (Role::Server, frame(PING, 0, 0, 8), 0, 0),
    ] {
        let mut talk = begun(role);
        let is_head = role == Role::Server && bytes[3] == HEADERS;
        let bytes = [bytes, frame(PING, 0, 0, 8)].concat();
        for n in 1..=bytes.len() {
            talk.frames.received(&bytes[n - 1..n], now).unwrap();
            let expected = if (from..until).contains(&n) {
                Waiting::Head
            } else {
                Waiting::Nothing
            };
            assert_eq!(talk.frames.waiting(), expected, "{role:?}, {n}");
        }
        assert_eq!(talk.frames.heads(), u32::from(is_head));
    }
    for role in [Role::Server, Role::Client] {
        let bytes = opening(role);
        let mut frames = Frames::new(role, Budget::default());
        assert_eq!(frames.waiting(), Waiting::Preface);
        assert_eq!(frames.heads(), 0);
        for n in 1..=bytes.len() {
            frames.received(&bytes[n - 1..n], now).unwrap();
            let waits = frames.waiting() == Waiting::Preface;
            assert_eq!(waits, n < bytes.len(), "{role:?}, {n}");
        }
    }
}

#[test]
fn a_goodbye_comes_between_frames_and_outside_of_header_blocks() {
    for role in [Role::Server, Role::Client] {
        let preface = if role == Role::Client { PREFACE } else { b"" };
        let parts: [(&[u8], bool); 9] = [
            (preface, false),
            (&frame(SETTINGS, 0, 0, 6), true),
            (&frame(SETTINGS, ACK, 0, 0), true),
            (&frame(HEADERS, END_HEADERS, 1, 3), true),
            (&frame(HEADERS, 0, 3, 3), false),
            (&frame(CONTINUATION, 0, 3, 0), false),
            (&frame(CONTINUATION, END_HEADERS, 3, 2), true),
            (&frame(DATA, 0, 1, 7), true),
            (&reset(5), true),
        ];
        let mut frames = Frames::new(role, Budget::default());
        assert!(!frames.may_say_goodbye());
        for (part, at_its_end) in parts {
            for n in 1..=part.len() {
                frames.sent(&part[n - 1..n]);
                let expected = at_its_end && n == part.len();
                assert_eq!(
                    frames.may_say_goodbye(),
                    expected,
                    "{role:?}, {part:?}, {n}"
                );
            }
        }
    }
}

/// The highest stream that passed: not those of bytes that were refused.
#[test]
fn the_last_stream_is_the_last_that_passed() {
    let mut talk = begun(Role::Server);
    assert_eq!(talk.frames.last_stream(), 0);
    talk.reads(&[request(1), request(7), request(5)].concat(), 3);
    assert_eq!(talk.frames.last_stream(), 7);
    talk.reads(&request(0x8000_0009)[..9], 1);
    assert_eq!(talk.frames.last_stream(), 9, "without the reserved bit");
    talk.reads(&[0; 40], 0);
    // The head of 13 is not complete before it is refused.
    let bytes = [request(11), request(13), frame(PUSH_PROMISE, 0, 1, 4)].concat();
    talk.reads(&bytes[..49 + 8], 1);
    assert_eq!(talk.frames.last_stream(), 11);
    assert_eq!(talk.flood(&bytes[49 + 8..]).0, 1);
    assert_eq!(talk.frames.last_stream(), 11);

    let mut talk = begun(Role::Client);
    talk.reads(&frame(HEADERS, END_HEADERS, 5, 9), 1);
    assert_eq!(talk.frames.last_stream(), 0, "servers open none");
}

#[test]
fn goodbyes_are_frames() {
    let bytes = goaway(0xffff_ffff, 11, "ping_flood");
    assert_eq!(bytes[..9], [0, 0, 18, 7, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[9..17], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 11]);
    assert_eq!(&bytes[17..], b"ping_flood");
    let long = goaway(1, 1, &"x".repeat(70_000));
    assert_eq!(long.len(), 9 + 8 + 1024);
    let mut talk = begun(Role::Client);
    talk.reads(&long, 1).reads(&bytes, 1);
}
