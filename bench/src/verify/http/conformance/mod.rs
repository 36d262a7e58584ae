//! HTTP/2 as the standard says (T11): the cases that h2spec has, as frames of our own, at both
//! kinds of listeners. Where h2spec takes several outcomes, so does this; an end of the
//! connection is always taken for an error of the connection or of a stream, as there.

mod cases;
mod frames;
mod http2;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use weft_kit::raw1::End;
use weft_kit::raw2::frame::{
    ACK, DATA, END_STREAM, GOAWAY, HEADERS, MAX_CONCURRENT_STREAMS, PING, RST_STREAM, SETTINGS,
};
use weft_kit::raw2::{Frame, Manners, POLITE};

use super::lanes::Stage;
use super::ways::{Raw, Way};
use crate::error::{Context as _, Error, Result};
use crate::verify::world::start_app;
use crate::verify::{Cases, Finding, Setting, seen};

/// What a peer may take for anything.
const PATIENCE: Duration = Duration::from_secs(5);
/// Windows are for the cases to open.
const MANNERS: Manners = Manners {
    windows: false,
    ..POLITE
};
/// Cases at one time.
const AT_ONCE: usize = 16;

/// The parts of the table, in the order of h2spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Suite {
    /// What a client ordinarily does.
    Generic,
    /// RFC 9113, with the section numbers of RFC 7540.
    Http2,
    /// RFC 7541.
    Hpack,
}

impl Suite {
    const ALL: [Self; 3] = [Self::Generic, Self::Http2, Self::Hpack];

    const fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Http2 => "http2",
            Self::Hpack => "hpack",
        }
    }
}

/// One case: after preface and SETTINGS have been exchanged, things are done, and something
/// comes of them.
#[derive(Debug, Clone)]
struct Case {
    suite: Suite,
    section: &'static str,
    words: &'static str,
    steps: Vec<Step>,
    expected: Expected,
}

#[derive(Debug, Clone)]
enum Step {
    /// Writes frames at once.
    Send(Vec<Frame>),
    /// Writes bytes.
    Raw(Vec<u8>),
    /// Reads until the answer on stream 1 has ended.
    Ended,
    /// Reads until SETTINGS are acknowledged.
    Settled,
    /// Reads until so many bytes have come as DATA of stream 1.
    Data(usize),
    /// Sends requests for one stream more than the other side allows.
    OneTooMany,
    /// Says nothing of what usually comes first. Only as the first step.
    Unprepared,
}

#[derive(Debug, Clone, Copy)]
enum Expected {
    /// The connection stands: nothing more is looked for than what the steps have.
    Stands,
    /// GOAWAY with one of these codes, or the end.
    Connection(&'static [u32]),
    /// RST_STREAM or GOAWAY with one of these codes, or the end.
    Stream(&'static [u32]),
    /// GOAWAY with one of these codes.
    Goodbye(&'static [u32]),
    /// The end of the connection.
    Closed,
    /// HEADERS on stream 1.
    Answer,
    /// DATA on stream 1, of so many bytes.
    Data(usize),
    /// A PING ACK with this.
    Pong(u64),
    /// The same, or the end.
    PongOrEnd(u64),
    /// SETTINGS ACK.
    Settled,
}

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let (app, _app) = start_app(setting.dir(), "app", None).await?;
    let mut stage = Stage::start(setting, &[app]).await?;
    let ways = [
        Way::outbound(&stage.lanes[0]),
        Way::inbound(&stage.lanes[0], setting.dir())?,
    ];
    for way in &ways {
        let table = cases::all(&way.authority);
        let number = table.len();
        let expected =
            format!("{number} of {number} cases (those of h2spec: generic, http2, hpack)");
        cases.check(way.name, expected, tried(way, table)).await;
    }
    stage.alive()
}

/// Tries a table.
async fn tried(way: &Way, table: Vec<Case>) -> Result<Finding> {
    // A way that is not there fails here and not in each case.
    way.open(&[]).await?.ping(0).await.context("a PING")?;
    let results = stream::iter(table)
        .map(|case| async move {
            let result = tokio::time::timeout(2 * PATIENCE, case.run(way)).await;
            let result = result.unwrap_or_else(|_| Err(Error::new("nothing")));
            (case, result)
        })
        .buffer_unordered(AT_ONCE);
    let results: Vec<_> = results.collect().await;
    let mut counts: BTreeMap<Suite, (usize, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (case, result) in &results {
        let (passed, all) = counts.entry(case.suite).or_default();
        *all += 1;
        match result {
            Ok(()) => *passed += 1,
            Err(error) => wrong.push(format!(
                "{} {}: {}: expected {:?}, seen {error}",
                case.suite.name(),
                case.section,
                case.words,
                case.expected
            )),
        }
    }
    let count = |suite: &Suite| {
        let (passed, all) = counts.get(suite).copied().unwrap_or_default();
        format!("{} {passed} of {all}", suite.name())
    };
    let counts: Vec<String> = Suite::ALL.iter().map(count).collect();
    let (passed, all) = (results.len() - wrong.len(), results.len());
    let mut text = format!("{passed} of {all} ({})", counts.join(", "));
    wrong.sort();
    for line in &wrong {
        text += "\n";
        text += line;
    }
    Ok(seen(wrong.is_empty() && all > 0, text))
}

impl Case {
    async fn run(&self, way: &Way) -> Result<()> {
        let mut steps = &self.steps[..];
        let mut peer = way.silent().await?.patience(PATIENCE).manners(MANNERS);
        let mut streams = 0;
        if let Some((Step::Unprepared, rest)) = steps.split_first() {
            steps = rest;
        } else {
            peer.begin(&[]).await.context("preface")?;
            let settings = peer.until(|frame| frame.kind == SETTINGS && !frame.has(ACK));
            let settings = settings.await.context("SETTINGS")?;
            streams = allowed_streams(&settings);
            let ack = peer.until(|frame| frame.kind == SETTINGS && frame.has(ACK));
            ack.await.context("SETTINGS ACK")?;
        }
        for step in steps {
            self.take(step, &mut peer, way, streams).await?;
        }
        self.judge(&mut peer).await
    }

    async fn take(&self, step: &Step, peer: &mut Raw, way: &Way, streams: u32) -> Result<()> {
        match step {
            // It may end at any frame of these: that it does is seen later.
            Step::Send(frames) => drop(peer.send_all(frames).await),
            Step::Raw(bytes) => drop(peer.write(bytes).await),
            Step::Ended => {
                let answer = peer.whole(1).await.context("an answer")?;
                if answer.status() != 200 || !answer.ended {
                    let what = format!("status {}, reset {:?}", answer.status(), answer.reset);
                    return Err(Error::new(what));
                }
            }
            Step::Settled => {
                let ack = peer.until(|frame| frame.kind == SETTINGS && frame.has(ACK));
                ack.await.context("SETTINGS ACK")?;
            }
            Step::Data(length) => {
                while peer.message(1).map_or(0, |message| message.body.len()) < *length {
                    peer.next().await.context("DATA")?;
                }
            }
            Step::OneTooMany => {
                let frames = frames::Frames::new(&way.authority);
                let most = streams.min(10_000);
                let all: Vec<_> = (0..=most).map(|n| frames.get(2 * n + 1)).collect();
                drop(peer.send_all(&all).await);
            }
            Step::Unprepared => return Err(Error::new("unprepared in the middle")),
        }
        Ok(())
    }

    /// Reads until it is clear.
    async fn judge(&self, peer: &mut Raw) -> Result<()> {
        let mut last = "nothing".to_owned();
        loop {
            if let Expected::Stands = self.expected {
                return Ok(());
            }
            match peer.next().await {
                Ok(frame) => {
                    if self.expected.is_met_by(&frame) {
                        return Ok(());
                    }
                    last = shown(&frame);
                }
                Err(error) if End::Open == end_of(&error) => return Err(Error::new(last)),
                Err(_) if self.expected.is_met_by_end() => return Ok(()),
                Err(error) => return Err(Error::new(format!("{last}, then {error}"))),
            }
        }
    }
}

impl Expected {
    fn is_met_by(self, frame: &Frame) -> bool {
        let code_of = |at| frame.number(at);
        match self {
            Self::Stands => true,
            Self::Connection(codes) | Self::Goodbye(codes) => {
                frame.kind == GOAWAY && codes.contains(&code_of(4))
            }
            Self::Stream(codes) => match frame.kind {
                GOAWAY => codes.contains(&code_of(4)),
                RST_STREAM => codes.contains(&code_of(0)),
                _ => false,
            },
            Self::Closed => false,
            Self::Answer => frame.kind == HEADERS && frame.stream == 1,
            Self::Data(length) => {
                frame.kind == DATA && frame.stream == 1 && frame.payload.len() == length
            }
            Self::Pong(number) | Self::PongOrEnd(number) => *frame == Frame::ping(number).ack(),
            Self::Settled => frame.kind == SETTINGS && frame.has(ACK),
        }
    }

    const fn is_met_by_end(self) -> bool {
        matches!(
            self,
            Self::Connection(_) | Self::Stream(_) | Self::Closed | Self::PongOrEnd(_)
        )
    }
}

fn end_of(error: &std::io::Error) -> End {
    match error.kind() {
        std::io::ErrorKind::TimedOut => End::Open,
        _ => End::Closed,
    }
}

/// How many streams SETTINGS allow at one time.
fn allowed_streams(settings: &Frame) -> u32 {
    let all = settings.payload.chunks_exact(6);
    let mut found = all.filter_map(|setting| {
        let (id, value) = setting.split_first_chunk::<2>()?;
        let value = value.first_chunk::<4>()?;
        (u16::from_be_bytes(*id) == MAX_CONCURRENT_STREAMS).then(|| u32::from_be_bytes(*value))
    });
    found.next_back().unwrap_or(u32::MAX)
}

fn shown(frame: &Frame) -> String {
    let stream = frame.stream;
    let ends = if frame.has(END_STREAM) {
        ", its end"
    } else {
        ""
    };
    match frame.kind {
        GOAWAY => format!("GOAWAY {}", frame.number(4)),
        RST_STREAM => format!("RST_STREAM {} on {stream}", frame.number(0)),
        HEADERS => format!("HEADERS on {stream}{ends}"),
        DATA => format!("{} bytes of DATA on {stream}{ends}", frame.payload.len()),
        PING => "PING".to_owned(),
        kind => format!("a frame of type {kind} on {stream}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_say_how_many_streams() {
        let settings = Frame::settings(&[(4, 7), (MAX_CONCURRENT_STREAMS, 250)]);
        assert_eq!(allowed_streams(&settings), 250);
        assert_eq!(allowed_streams(&Frame::settings(&[(4, 7)])), u32::MAX);
    }

    #[test]
    fn the_table_is_as_large_as_it_says_and_no_case_is_there_twice() {
        let table = cases::all("a");
        let count = |suite| table.iter().filter(|case| case.suite == suite).count();
        assert_eq!(Suite::ALL.map(count), [44, 95, 8]);
        let mut names: Vec<_> = table
            .iter()
            .map(|case| (case.suite, case.section, case.words))
            .collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), table.len());
    }

    #[test]
    fn what_is_expected_is_told_from_what_is_not() {
        let goaway = Frame::goaway(0, 1);
        let reset = Frame::reset(1, 1);
        for (expected, frame, is_met) in [
            (Expected::Connection(&[1]), &goaway, true),
            (Expected::Connection(&[2]), &goaway, false),
            (Expected::Connection(&[1]), &reset, false),
            (Expected::Stream(&[1]), &reset, true),
            (Expected::Stream(&[1]), &goaway, true),
            (Expected::Stream(&[5]), &reset, false),
            (Expected::Pong(3), &Frame::ping(3).ack(), true),
            (Expected::Pong(3), &Frame::ping(3), false),
            (Expected::Data(2), &Frame::data(1, 0, *b"ab"), true),
            (Expected::Data(1), &Frame::data(1, 0, *b"ab"), false),
            (Expected::Answer, &Frame::data(1, 0, *b"ab"), false),
        ] {
            assert_eq!(expected.is_met_by(frame), is_met, "{expected:?} {frame:?}");
        }
        assert!(Expected::Closed.is_met_by_end());
        assert!(!Expected::Goodbye(&[1]).is_met_by_end());
        assert!(!Expected::Answer.is_met_by_end());
    }
}
