//! Floods of HTTP/2 (T12, T13, T15): frames that cost their sender nothing. Each is sent three
//! times: by a peer that waits now and then until all was read, so that the frames are counted,
//! by one that reads as it writes, and by one that does not read. The connection is cut within
//! the budget of docs/limits.md; then the attacker comes back again and again, while good
//! clients are at work on other connections.

use std::time::Duration;

use tokio::time::{Instant, interval};
use weft_kit::raw1::End;
use weft_kit::raw2::frame::{
    ACK, CONTINUATION, DATA, END_STREAM, HEADERS, PADDED, PRIORITY, SETTINGS, WITH_PRIORITY,
};
use weft_kit::raw2::{Block, Flood, Frame, Goodbye, Reading};

use super::counter::Counter;
use super::lanes::{Speaks, Stage};
use super::pair::{Peak, mebibytes};
use super::victims::{Fared, Victims, promise};
use super::ways::{Raw, Way};
use crate::error::{Context as _, Result};
use crate::procfs;
use crate::verify::{Cases, Finding, Setting, seen};

/// Frames between two waits of the peer that counts.
const STEP: u64 = 50;
/// How long a frame has to be answered.
const GAP: Duration = Duration::from_millis(20);
/// A flood that was not cut by then was not cut.
const MOST: u64 = 20_000;
/// What a flood may make the sidecar keep, and the allocator with it.
const MORE_MEMORY: u64 = 16 << 20;
/// Of one core, what one attacker that always comes back may take.
const MOST_CPU: f64 = 0.10;
/// How often it comes back.
const A_SECOND: u32 = 5;
const MOST_WINDOW: u32 = (1 << 31) - 1;
/// As docs/limits.md says.
const STREAMS: u64 = 250;
const CONTINUATIONS: u64 = 16;
const LONGEST_BLOCK: u64 = 96 << 10;

const PROTOCOL: u32 = 1;
const FRAME_SIZE: u32 = 6;
const CALM: u32 = 11;

const ABOVE_THE_LIMIT: &str = "streams-above-the-limit";

/// What an attacker sends.
#[derive(Clone, Copy)]
struct Attack {
    name: &'static str,
    /// Frames before it is cut: at once, and for each second that it takes.
    budget: (u64, u64),
    /// Bytes before it is cut, where they are bounded too.
    bytes: Option<u64>,
    /// Codes of the GOAWAY.
    codes: &'static [u32],
    /// In its debug data, if it is ours.
    rule: &'static str,
    frames: fn(&Way, u64) -> Vec<Frame>,
}

/// What most attacks have in common.
const ATTACK: Attack = Attack {
    name: "",
    budget: (0, 0),
    bytes: None,
    codes: &[CALM],
    // That of h2 or ours, whichever is reached first.
    rule: "",
    frames: |_, _| Vec::new(),
};

/// Stream of a step.
fn stream(step: u64) -> u32 {
    u32::try_from(step * 2 + 1).unwrap_or(MOST_WINDOW)
}

fn get(way: &Way, stream: u32, path: &str) -> Frame {
    let block = Block::request("GET", &way.authority, path).bytes();
    Frame::headers(stream, END_STREAM, block)
}

fn post(way: &Way, stream: u32, path: &str) -> Frame {
    let block = Block::request("POST", &way.authority, path).bytes();
    Frame::headers(stream, 0, block)
}

/// A request at each step, and a frame on its stream.
fn opened(way: &Way, step: u64, path: &str, then: impl Fn(u32) -> Frame) -> Vec<Frame> {
    let stream = stream(step);
    vec![get(way, stream, path), then(stream)]
}

/// The same frame at each step, after a request with a body that is open.
fn beside(way: &Way, step: u64, frame: Frame) -> Vec<Frame> {
    match step {
        0 => vec![post(way, 1, "/stall")],
        _ => vec![frame],
    }
}

/// T12.
const RESETS: &[Attack] = &[
    Attack {
        name: "rapid-reset",
        budget: (2 * 500, 2 * 2500),
        frames: |way, step| opened(way, step, "/fast", |stream| Frame::reset(stream, 8)),
        ..ATTACK
    },
    Attack {
        name: "rapid-reset-slow",
        budget: (2 * 500, 2 * 2500),
        frames: |way, step| opened(way, step, "/slow", |stream| Frame::reset(stream, 8)),
        ..ATTACK
    },
    Attack {
        name: "made-by-window-0",
        budget: (2 * 200, 2 * 500),
        codes: &[CALM, PROTOCOL],
        frames: |way, step| opened(way, step, "/slow", |stream| Frame::window(stream, 0)),
        ..ATTACK
    },
    Attack {
        name: "made-by-window-overflow",
        budget: (2 * 200, 2 * 500),
        codes: &[CALM, PROTOCOL],
        frames: |way, step| {
            opened(way, step, "/slow", |stream| {
                Frame::window(stream, MOST_WINDOW)
            })
        },
        ..ATTACK
    },
    Attack {
        name: "made-by-data-after-end",
        budget: (2 * 2000, 2 * 1000),
        codes: &[CALM, PROTOCOL],
        frames: |way, step| {
            opened(way, step, "/slow", |stream| {
                Frame::data(stream, 0, *b"more!")
            })
        },
        ..ATTACK
    },
    Attack {
        name: "made-by-headers-after-end",
        budget: (2 * 2000, 2 * 1000),
        codes: &[CALM, PROTOCOL],
        frames: |way, step| opened(way, step, "/slow", |stream| get(way, stream, "/slow")),
        ..ATTACK
    },
    Attack {
        name: "made-by-priority-length",
        budget: (2 * 200, 2 * 500),
        codes: &[CALM, PROTOCOL, FRAME_SIZE],
        frames: |way, step| {
            opened(way, step, "/slow", |stream| {
                Frame::new(PRIORITY, 0, stream, [0; 4])
            })
        },
        ..ATTACK
    },
    Attack {
        name: "made-by-priority-on-itself",
        budget: (200, 500),
        codes: &[CALM, PROTOCOL],
        frames: |way, step| {
            let stream = stream(step);
            let block = Block::request("GET", &way.authority, "/slow").bytes();
            let payload = [&stream.to_be_bytes()[..], &[16], &block].concat();
            vec![Frame::headers(stream, END_STREAM | WITH_PRIORITY, payload)]
        },
        ..ATTACK
    },
    Attack {
        name: "made-by-fields",
        budget: (200, 500),
        codes: &[CALM, PROTOCOL],
        frames: |way, step| {
            let block = Block::request("GET", &way.authority, "/slow").literal("A", "upper case");
            vec![Frame::headers(stream(step), END_STREAM, block.bytes())]
        },
        ..ATTACK
    },
    Attack {
        name: ABOVE_THE_LIMIT,
        budget: (STREAMS + 1000, 250),
        frames: |way, step| vec![get(way, stream(step), "/stall")],
        ..ATTACK
    },
];

/// T13.
const BLOCKS: &[Attack] = &[
    Attack {
        name: "continuation-small",
        budget: (1 + CONTINUATIONS, 0),
        frames: |way, step| block(way, step, Block::new().literal("a", "b").bytes()),
        ..ATTACK
    },
    Attack {
        name: "continuation-empty",
        budget: (1 + CONTINUATIONS, 0),
        frames: |way, step| block(way, step, Vec::new()),
        ..ATTACK
    },
    Attack {
        name: "continuation-16k",
        budget: (1 + CONTINUATIONS, 0),
        bytes: Some(LONGEST_BLOCK),
        frames: |way, step| {
            let long = Block::new().literal("a", "b".repeat((16 << 10) - 10));
            block(way, step, long.bytes())
        },
        ..ATTACK
    },
];

/// A header block without end.
fn block(way: &Way, step: u64, more: Vec<u8>) -> Vec<Frame> {
    let fields = Block::request("GET", &way.authority, "/").bytes();
    match step {
        0 => vec![Frame::new(HEADERS, END_STREAM, 1, fields)],
        _ => vec![Frame::new(CONTINUATION, 0, 1, more)],
    }
}

/// T15.
const CONTROL: &[Attack] = &[
    Attack {
        name: "settings",
        budget: (100, 10),
        rule: "settings_flood",
        frames: |_, _| vec![Frame::settings(&[])],
        ..ATTACK
    },
    Attack {
        name: "settings-of-2700",
        budget: (1, 0),
        rule: "settings_flood",
        frames: |_, _| vec![Frame::settings(&[(0xf0, 1); 2700])],
        ..ATTACK
    },
    Attack {
        name: "settings-ack",
        budget: (100, 10),
        codes: &[CALM, PROTOCOL],
        frames: |_, _| vec![Frame::new(SETTINGS, ACK, 0, [])],
        ..ATTACK
    },
    Attack {
        name: "ping",
        budget: (200, 20),
        rule: "ping_flood",
        frames: |_, step| vec![Frame::ping(step)],
        ..ATTACK
    },
    Attack {
        name: "ping-ack",
        budget: (200, 20),
        rule: "ping_flood",
        frames: |_, step| vec![Frame::ping(step).ack()],
        ..ATTACK
    },
    Attack {
        name: "priority",
        budget: (1000, 50),
        rule: "priority_flood",
        frames: |_, step| vec![Frame::priority(stream(step), 0)],
        ..ATTACK
    },
    Attack {
        name: "priority-update",
        budget: (1000, 50),
        rule: "priority_flood",
        frames: |_, step| {
            let payload = [&stream(step).to_be_bytes()[..], b"u=1"].concat();
            vec![Frame::new(16, 0, 0, payload)]
        },
        ..ATTACK
    },
    Attack {
        name: "unknown",
        budget: (200, 20),
        rule: "unknown_flood",
        frames: |_, _| vec![Frame::new(0xbe, 0xff, 0, [0; 8])],
        ..ATTACK
    },
    Attack {
        name: "unknown-16k",
        budget: (200, 20),
        rule: "unknown_flood",
        frames: |_, _| vec![Frame::new(0xbe, 0xff, 0, vec![0; 16 << 10])],
        ..ATTACK
    },
    Attack {
        name: "window-update",
        budget: (1000, 100),
        rule: "window_update_flood",
        frames: |_, _| vec![Frame::window(0, 1)],
        ..ATTACK
    },
    Attack {
        name: "window-update-of-a-stream",
        budget: (1000, 100),
        rule: "window_update_flood",
        frames: |way, step| beside(way, step, Frame::window(1, 1)),
        ..ATTACK
    },
    Attack {
        name: "goaway",
        budget: (16, 0),
        codes: &[CALM, 0],
        frames: |_, _| vec![Frame::goaway(0, 0)],
        ..ATTACK
    },
    Attack {
        name: "data-empty",
        budget: (2000, 2000),
        frames: |way, step| beside(way, step, Frame::data(1, 0, [])),
        ..ATTACK
    },
    Attack {
        name: "data-padding-only",
        budget: (2000, 2000),
        frames: |way, step| beside(way, step, Frame::new(DATA, PADDED, 1, [3, 0, 0, 0])),
        ..ATTACK
    },
    Attack {
        name: "data-of-1-byte",
        budget: (2000, 2000),
        frames: |way, step| beside(way, step, Frame::data(1, 0, *b"x")),
        ..ATTACK
    },
    Attack {
        name: "reset-of-closed-streams",
        budget: (500, 2500),
        frames: |way, step| match step {
            0 => vec![get(way, 1, "/fast")],
            _ => vec![Frame::reset(1, 8)],
        },
        ..ATTACK
    },
    Attack {
        name: "data-on-closed-streams",
        budget: (2000, 1000),
        frames: |way, step| match step {
            0 => vec![get(way, 1, "/fast"), Frame::reset(1, 8)],
            _ => vec![Frame::data(1, 0, *b"x")],
        },
        ..ATTACK
    },
];

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let origin = Counter::start().await?;
    let apps = [
        (origin.address(), Speaks::Http1),
        (origin.address(), Speaks::Http1),
    ];
    // What does not read is cut when it has taken nothing for so long.
    let how = |spec: crate::process::Spec| spec.env("WEFT_PROXY_WRITE_TIMEOUT", "2");
    let mut stage = Stage::start_as(setting, &apps, "", how).await?;
    let ways = [
        (Way::outbound(&stage.lanes[0]), stage.client.process.pid),
        (
            Way::inbound(&stage.lanes[0], setting.dir())?,
            stage.server.process.pid,
        ),
    ];
    for (kind, attacks) in [
        ("resets", RESETS),
        ("continuation", BLOCKS),
        ("control", CONTROL),
    ] {
        for (way, pid) in &ways {
            let expected = format!(
                "each of {} attacks: cut within its budget, GOAWAY with its code, application: at most {} requests at one time",
                attacks.len(),
                STREAMS + 20
            );
            let name = format!("{kind}-{}", way.name);
            let check = budgets(&origin, way, *pid, attacks);
            cases.check(&name, expected, check).await;
        }
    }
    let window = Duration::from_millis(if setting.quick { 1 } else { 5_000 });
    let undisturbed = Duration::from_millis(if setting.quick { 1_500 } else { 10_000 });
    let victim = &stage.lanes[1].host;
    // Requests up to the limit are no attack.
    let attacks = [RESETS, BLOCKS, CONTROL].concat();
    let attacks = attacks
        .iter()
        .filter(|attack| attack.name != ABOVE_THE_LIMIT);
    let beside = async {
        let fare = || Victims::undisturbed(stage.outbound, victim, undisturbed);
        let (way, pid) = &ways[0];
        let (cpu, started) = (procfs::cpu(*pid)?, Instant::now());
        let before = fare().await?;
        let good = share(*pid, cpu, started)?;
        let victims = Victims::start(stage.outbound, victim)?;
        let mut pressed = Vec::new();
        for attack in attacks {
            pressed.push(press(way, *pid, attack, window, good).await?);
        }
        let during = victims.finish().await?;
        Ok(judged(&pressed, &[before, during, fare().await?]))
    };
    let expected = format!(
        "each attacker comes back {A_SECOND} times a second: {}; at most {} % of a core each",
        promise(),
        MOST_CPU * 100.0
    );
    cases
        .check_within(Duration::from_secs(600), "beside", expected, beside)
        .await;
    stage.alive()
}

/// Each attack, by peers that read in each way.
async fn budgets(origin: &Counter, way: &Way, pid: u32, attacks: &[Attack]) -> Result<Finding> {
    let before = procfs::memory(pid)?.rss;
    let cpu = procfs::cpu(pid)?;
    let peak = Peak::watch(pid);
    let (mut lines, mut ok) = (Vec::new(), true);
    for attack in attacks {
        for reading in [Reading::Every(STEP), Reading::All, Reading::Nothing] {
            origin.rests().await.context(attack.name)?;
            let (begun, _) = (origin.begun(), origin.most());
            let flood = attack.once(way, reading).await?;
            let (begun, most) = (origin.begun() - begun, origin.most());
            let wrong = attack.wrong(reading, &flood);
            let wrong = wrong.or((most > STREAMS + 20).then_some("requests at one time"));
            ok &= wrong.is_none();
            let is_counted = reading == Reading::Every(STEP);
            if is_counted || wrong.is_some() {
                let goaway = flood.goodbye.goaway.as_ref();
                let goaway = goaway.map_or("no GOAWAY".to_owned(), |(code, _, rule)| {
                    format!("GOAWAY {code} {rule}")
                });
                lines.push(format!(
                    "{}{}: {} frames, {} bytes in {} ms, {goaway}, {begun} requests begun, {most} at one time",
                    wrong.map_or(String::new(), |wrong| format!("WRONG ({wrong}; {reading:?}) ")),
                    attack.name,
                    flood.frames,
                    flood.bytes,
                    flood.took.as_millis(),
                ));
            }
        }
    }
    let more = peak.bytes().saturating_sub(before);
    ok &= more <= MORE_MEMORY;
    let cpu = procfs::cpu(pid)?.saturating_sub(cpu).as_secs_f64();
    lines.insert(
        0,
        format!(
            "{} attacks x 3, {} more memory, {cpu:.2} s CPU",
            attacks.len(),
            mebibytes(more)
        ),
    );
    Ok(seen(ok, lines.join("\n")))
}

impl Attack {
    async fn once(&self, way: &Way, reading: Reading) -> Result<Flood> {
        let peer = match reading {
            Reading::Every(_) if self.is_block() => {
                let peer = way.open_rudely(&[]).await?.patience(GAP);
                return self.by_frame(way, peer).await;
            }
            Reading::Every(_) => way.open(&[]).await?,
            Reading::All | Reading::Nothing => way.open_rudely(&[]).await?,
        };
        let mut peer = peer.patience(Duration::from_secs(5));
        let next = |step| (step < MOST).then(|| (self.frames)(way, step));
        Ok(peer.flood(reading, next).await)
    }

    /// Nothing may come between the frames of a block, so no PING either.
    const fn is_block(&self) -> bool {
        self.budget.0 == 1 + CONTINUATIONS
    }

    /// Frame by frame, with a look after each.
    async fn by_frame(&self, way: &Way, mut peer: Raw) -> Result<Flood> {
        let started = Instant::now();
        let (mut frames, mut bytes) = (0, 0);
        let is_over = |goodbye: &Goodbye| goodbye.goaway.is_some() || goodbye.end != End::Open;
        loop {
            for frame in (self.frames)(way, frames) {
                frames += 1;
                bytes += frame.payload.len() as u64 + 9;
                // An error is an end, which is seen below.
                let _ = peer.send(&frame).await;
            }
            let goodbye = peer.goodbye().await;
            if is_over(&goodbye) || frames > MOST {
                let took = started.elapsed();
                return Ok(Flood {
                    frames,
                    bytes,
                    goodbye,
                    took,
                });
            }
        }
    }

    /// What is not as it should be.
    fn wrong(&self, reading: Reading, flood: &Flood) -> Option<&'static str> {
        if flood.goodbye.end == End::Open {
            return Some("not cut");
        }
        // Frames on their way when it is cut end the connection with RST, and what was said
        // before may be lost; those who wait hear it.
        let Reading::Every(step) = reading else {
            return None;
        };
        let (at_once, a_second) = self.budget;
        let time = a_second as f64 * (flood.took.as_secs_f64() + 0.1);
        // The ACK of SETTINGS and what a PING of the count costs.
        let slack = if self.is_block() { 2 } else { 2 * step + 2 };
        if flood.frames > at_once + slack + time.ceil() as u64 {
            return Some("too many frames");
        }
        if let Some(most) = self.bytes
            && flood.bytes > most + 2 * (16 << 10)
        {
            return Some("too many bytes");
        }
        match &flood.goodbye.goaway {
            Some((code, _, rule)) if !self.codes.contains(code) || !rule.contains(self.rule) => {
                Some("another GOAWAY")
            }
            None if !self.rule.is_empty() => Some("no GOAWAY"),
            _ => None,
        }
    }
}

/// What one attacker that comes back has cost.
struct Pressed {
    name: &'static str,
    connections: u64,
    frames: u64,
    cpu: f64,
}

/// The share of a core that a process has taken since it had taken `before`.
fn share(pid: u32, before: Duration, since: Instant) -> Result<f64> {
    let cpu = procfs::cpu(pid)?.saturating_sub(before).as_secs_f64();
    Ok(cpu / since.elapsed().as_secs_f64())
}

/// Comes back [`A_SECOND`] times a second, beside clients who take `good` of a core.
async fn press(
    way: &Way,
    pid: u32,
    attack: &Attack,
    window: Duration,
    good: f64,
) -> Result<Pressed> {
    let (cpu, started) = (procfs::cpu(pid)?, Instant::now());
    let mut ticks = interval(Duration::from_secs(1) / A_SECOND);
    let (mut connections, mut frames) = (0, 0);
    while started.elapsed() < window {
        ticks.tick().await;
        let flood = attack.once(way, Reading::All).await?;
        connections += 1;
        frames += flood.frames;
    }
    // The last one has its part of time as well.
    ticks.tick().await;
    Ok(Pressed {
        name: attack.name,
        connections,
        frames,
        cpu: share(pid, cpu, started)? - good,
    })
}

fn judged(pressed: &[Pressed], [before, during, after]: &[Fared; 3]) -> Finding {
    let most = pressed.iter().max_by(|a, b| a.cpu.total_cmp(&b.cpu));
    let most_cpu = most.map_or(0.0, |pressed| pressed.cpu);
    let (connections, frames) = pressed.iter().fold((0, 0), |(connections, frames), one| {
        (connections + one.connections, frames + one.frames)
    });
    let text = format!(
        "{}\n{connections} connections, {frames} frames; the dearest: {}, {:.1} % of a core",
        during.line(before, after),
        most.map_or("none", |pressed| pressed.name),
        most_cpu * 100.0
    );
    let ok = during.is_well(before, after) && most_cpu <= MOST_CPU && connections > 0;
    seen(ok, text)
}
