//! Slow peers (T41): thousands that send or read next to nothing, beside 500 good requests a
//! second. Each that holds something up is cut when its deadline has passed; nobody else
//! notices.
//!
//! What "notices" means on a machine with noise of its own: the 99th percentile of the good
//! requests stays under twice the highest of three figures, that of the undisturbed load before
//! and after, and [`NOISE`].

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use weft_kit::raw2::frame::{INITIAL_WINDOW_SIZE, RST_STREAM};
use weft_kit::raw2::{Peer, RUDE};

use super::pair::{PLAIN, Pair, Peak, Quality, Start, files, files_fall, mebibytes, milliseconds};
use crate::error::{Context as _, Error, Result};
use crate::procfs;
use crate::verify::{Cases, Finding, Setting, seen};

/// Percentiles below it are those of the machine.
const NOISE: Duration = Duration::from_millis(10);
/// Of a deadline that is looked at in intervals, and on a machine that is busy.
const SLACK: Duration = Duration::from_millis(1500);
/// New attackers a second: many at one time is what this is about, many new connections a second
/// is another matter.
const RAMP: u32 = 400;
/// An answer that fits into no buffer on its way.
const LONG: usize = 32 << 20;

/// What an attacker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A head, byte by byte.
    HeadDrip,
    /// Half of the preface of HTTP/2.
    HalfPreface,
    /// A body that stops after its first byte, to an application that answers when it has read
    /// all: while an answer is on its way a client may say nothing for as long as it likes.
    BodyStop,
    /// The same body, byte by byte: slow, but something arrives. It is not cut.
    BodyDrip,
    /// Asks for a long answer and reads nothing of it.
    NoReading,
    /// The same as a stream of HTTP/2 that opens no window.
    NoWindow,
    /// Requests that are refused, one after the other, whose answers nobody reads.
    PipelinedBad,
    /// Good requests for much, one after the other, whose answers nobody reads.
    PipelinedUnread,
    /// Nothing at all, to the port for mTLS.
    Silent,
    /// The first bytes of a TLS handshake.
    HalfHandshake,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::HeadDrip,
        Self::HalfPreface,
        Self::BodyStop,
        Self::BodyDrip,
        Self::NoReading,
        Self::NoWindow,
        Self::PipelinedBad,
        Self::PipelinedUnread,
        Self::Silent,
        Self::HalfHandshake,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::HeadDrip => "head-drip",
            Self::HalfPreface => "half-preface",
            Self::BodyStop => "body-stop",
            Self::BodyDrip => "body-drip",
            Self::NoReading => "no-reading",
            Self::NoWindow => "no-window",
            Self::PipelinedBad => "pipelined-bad",
            Self::PipelinedUnread => "pipelined-unread",
            Self::Silent => "silent",
            Self::HalfHandshake => "half-handshake",
        }
    }

    /// When the sidecar is to have ended it, from its last progress; `None`: not at all.
    fn deadline(self, times: &Times) -> Option<Duration> {
        match self {
            Self::HeadDrip | Self::HalfPreface => Some(times.head),
            Self::BodyStop => Some(times.body),
            Self::BodyDrip => None,
            Self::NoReading | Self::NoWindow | Self::PipelinedUnread => Some(times.write),
            Self::PipelinedBad => Some(Duration::ZERO),
            Self::Silent | Self::HalfHandshake => Some(times.first),
        }
    }

    fn latest(self, times: &Times) -> Option<Duration> {
        self.deadline(times)
            .map(|deadline| deadline * 3 / 2 + SLACK)
    }

    const fn is_inbound(self) -> bool {
        matches!(self, Self::Silent | Self::HalfHandshake)
    }
}

/// The deadlines in force.
#[derive(Debug, Clone, Copy)]
struct Times {
    head: Duration,
    body: Duration,
    write: Duration,
    /// Of the first byte, and of a handshake.
    first: Duration,
}

impl Times {
    fn start(&self) -> Start {
        Start::with(&[
            ("HEAD_TIMEOUT", self.head.as_secs()),
            ("BODY_TIMEOUT", self.body.as_secs()),
            ("WRITE_TIMEOUT", self.write.as_secs()),
            ("FIRST_BYTE_TIMEOUT", self.first.as_secs()),
            ("HANDSHAKE_TIMEOUT", self.first.as_secs()),
            // For 5,000 at one time. Who goes when there is less is the question of another group.
            ("MEMORY", 2 << 30),
        ])
    }
}

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let seconds = Duration::from_secs;
    let (times, each, undisturbed) = if setting.quick {
        let short = seconds(1);
        let times = Times {
            head: short,
            body: short,
            write: short,
            first: short,
        };
        (times, 200, seconds(2))
    } else {
        // The defaults, but for the body and what is not taken, whose 5 minutes say nothing more.
        let times = Times {
            head: seconds(10),
            body: seconds(30),
            write: seconds(30),
            first: seconds(10),
        };
        (times, 5000, seconds(10))
    };
    let start = times.start();
    let pair = Pair::start(setting, "slow", &start, &start).await?;
    let waves: Vec<(&str, Vec<Kind>)> = if setting.quick {
        vec![("together", Kind::ALL.to_vec())]
    } else {
        Kind::ALL
            .iter()
            .map(|kind| (kind.name(), vec![*kind]))
            .collect()
    };
    for (name, kinds) in waves {
        let expected = format!(
            "{each} attackers of each kind at 500 good requests/s: cut within 1.5 x their deadline (body-drip: not cut), \
             files as before, good >= 99.9 %, p99 < 2 x max(undisturbed, {})",
            milliseconds(NOISE)
        );
        let wave = wave(&pair, &times, &kinds, each, undisturbed);
        cases.check_within(seconds(600), name, expected, wave).await;
    }
    Ok(())
}

/// All attackers at one time.
async fn wave(
    pair: &Pair,
    times: &Times,
    kinds: &[Kind],
    each: u32,
    undisturbed: Duration,
) -> Result<Finding> {
    let before = undisturbed_quality(pair, undisturbed).await?;
    let pids = [pair.client.process.pid, pair.server.process.pid];
    let load = pair.load(500)?;
    sleep(Duration::from_millis(200)).await;
    let base = [files(pids[0])?, files(pids[1])?];
    let (memory, cpu) = (procfs::memory(pids[0])?.rss, procfs::cpu(pids[0])?);
    let peak = Peak::watch(pids[0]);
    let started = Instant::now();
    let (over, is_over) = watch::channel(false);
    let mut attackers = JoinSet::new();
    let all = (0..each).flat_map(|_| kinds.iter().copied());
    for (i, kind) in (0..).zip(all) {
        let at = if kind.is_inbound() {
            pair.inbound
        } else {
            pair.outbound
        };
        let (times, is_over) = (*times, is_over.clone());
        attackers.spawn(async move {
            sleep(Duration::from_secs(1) * i / RAMP).await;
            (kind, attack(kind, at, &times, is_over).await)
        });
    }
    let mut tallies: Vec<Tally> = kinds.iter().map(|kind| Tally::new(*kind)).collect();
    let drips = if kinds.contains(&Kind::BodyDrip) {
        each as usize
    } else {
        0
    };
    let ramp = Duration::from_secs(1) * attackers.len() as u32 / RAMP;
    let longest = Kind::BodyStop.latest(times).unwrap_or_default();
    let shortest = started + ramp + longest;
    let mut told = false;
    loop {
        // Those that are not cut stay for as long as the others, and longer than a body may stop.
        if !told && attackers.len() <= drips && Instant::now() >= shortest {
            let _ = over.send(true);
            told = true;
        }
        let Ok(next) = timeout(Duration::from_millis(100), attackers.join_next()).await else {
            continue;
        };
        let Some(next) = next else { break };
        let (kind, outcome) = next.context("an attacker")?;
        let tally = tallies.iter_mut().find(|tally| tally.kind == kind);
        tally
            .context("an attacker of another kind")?
            .add(outcome, times);
    }
    let took = started.elapsed();
    // Connections to the server's sidecar are pooled: some more than before are no leak.
    let mut fallen = Vec::new();
    for (pid, base) in pids.iter().zip(base) {
        let most = base + (each as usize / 50).max(40);
        fallen.push(files_fall(*pid, most, Duration::from_secs(3)).await);
    }
    let during = Quality::of(&load.finish().await?);
    let used = procfs::cpu(pids[0])?.saturating_sub(cpu).as_secs_f64() / took.as_secs_f64();
    let most = peak.bytes().saturating_sub(memory);
    let after = undisturbed_quality(pair, undisturbed).await?;
    let bound = before.p99.max(after.p99).max(NOISE) * 2;
    let files_ok = fallen.iter().all(Result::is_ok);
    let ok = tallies.iter().all(|tally| tally.right == each)
        && files_ok
        && during.answered() >= 0.999
        && during.p99 < bound;
    let attackers = u64::from(each) * kinds.len() as u64;
    let mut lines: Vec<String> = tallies.iter().map(|tally| tally.line(each)).collect();
    lines.push(format!(
        "good: {}; undisturbed p99 {} and {}",
        during.line(),
        milliseconds(before.p99),
        milliseconds(after.p99)
    ));
    lines.push(format!(
        "sidecar of the client: {} more memory, {} bytes an attacker, {:.0} % of a core",
        mebibytes(most),
        most / attackers.max(1),
        used * 100.0
    ));
    lines.extend(
        fallen
            .iter()
            .filter_map(|fallen| Some(fallen.as_ref().err()?.to_string())),
    );
    Ok(seen(ok, lines.join("\n")))
}

async fn undisturbed_quality(pair: &Pair, window: Duration) -> Result<Quality> {
    let load = pair.load(500)?;
    sleep(window).await;
    Ok(Quality::of(&load.finish().await?))
}

/// What became of the attackers of one kind.
#[derive(Debug)]
struct Tally {
    kind: Kind,
    /// Ended as they should.
    right: u32,
    first_wrong: Option<String>,
    slowest: Duration,
}

impl Tally {
    const fn new(kind: Kind) -> Self {
        Self {
            kind,
            right: 0,
            first_wrong: None,
            slowest: Duration::ZERO,
        }
    }

    fn add(&mut self, outcome: Result<Duration>, times: &Times) {
        match outcome {
            Ok(took) => {
                self.slowest = self.slowest.max(took);
                match self.kind.latest(times) {
                    Some(latest) if took > latest => {
                        let text = format!("{:.1} s", took.as_secs_f64());
                        self.first_wrong.get_or_insert(text);
                    }
                    Some(_) | None => self.right += 1,
                }
            }
            Err(error) => {
                self.first_wrong.get_or_insert(error.to_string());
            }
        }
    }

    fn line(&self, each: u32) -> String {
        let wrong = self.first_wrong.as_ref();
        let wrong = wrong.map(|wrong| format!(" (first other: {wrong})"));
        format!(
            "{}: {} of {each} as expected, the last after {:.1} s{}",
            self.kind.name(),
            self.right,
            self.slowest.as_secs_f64(),
            wrong.unwrap_or_default()
        )
    }
}

/// One attacker: how long after its last progress it was cut. Who is not to be cut stays until
/// `is_over`.
async fn attack(
    kind: Kind,
    at: SocketAddr,
    times: &Times,
    mut is_over: watch::Receiver<bool>,
) -> Result<Duration> {
    if kind == Kind::NoWindow {
        return no_window(at, times).await;
    }
    let socket = TcpSocket::new_v4().context("a socket")?;
    if matches!(kind, Kind::NoReading | Kind::PipelinedUnread) {
        // What the kernel would take for them is nobody's to bound: on one machine, thousands of
        // its buffers bring all of TCP to a halt.
        socket.set_recv_buffer_size(16 << 10).context("SO_RCVBUF")?;
    }
    let mut stream = timeout(Duration::from_secs(5), socket.connect(at))
        .await
        .context("connect: no answer in 5 s")?
        .context("connect")?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    let start = Instant::now();
    let begin = match kind {
        Kind::HeadDrip => format!("GET / HTTP/1.1\r\nhost: {PLAIN}\r\nx-drip: "),
        Kind::HalfPreface => "PRI * HTTP/2.0\r\n\r\n".to_owned(),
        Kind::BodyStop | Kind::BodyDrip => {
            format!(
                "PUT /accounts/slow HTTP/1.1\r\nhost: {PLAIN}\r\ncontent-length: 1000000\r\n\r\nx"
            )
        }
        Kind::NoReading => format!("GET /size/{LONG} HTTP/1.1\r\nhost: {PLAIN}\r\n\r\n"),
        Kind::PipelinedBad => "GET / HTTP/1.1\nhost: a\n\n".repeat(1000),
        Kind::PipelinedUnread => {
            format!("GET /size/{LONG} HTTP/1.1\r\nhost: {PLAIN}\r\n\r\n").repeat(20)
        }
        Kind::Silent | Kind::NoWindow => String::new(),
        // A record of 512 bytes with a ClientHello that does not come.
        Kind::HalfHandshake => "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}".to_owned(),
    };
    stream
        .write_all(begin.as_bytes())
        .await
        .context("the first bytes")?;
    match kind {
        Kind::HeadDrip => {
            let limit = kind.latest(times).unwrap_or_default() + SLACK;
            drip(&mut stream, times.head / 5, limit).await?;
            Ok(start.elapsed())
        }
        Kind::BodyDrip => {
            let every = times.body / 3;
            let hour = Duration::from_secs(3600);
            tokio::select! {
                cut = drip(&mut stream, every, hour) => {
                    cut?;
                    Err(Error::new(format!("cut after {:.1} s", start.elapsed().as_secs_f64())))
                }
                _ = is_over.wait_for(|over| *over) => Ok(start.elapsed()),
            }
        }
        Kind::NoReading | Kind::PipelinedUnread => {
            // What was sent before it was cut can still be read, and is not the whole.
            let latest = kind.latest(times).unwrap_or_default();
            sleep(latest + SLACK).await;
            let read = drain(&mut stream, LONG, Duration::from_secs(10)).await?;
            if read >= LONG {
                return Err(Error::new(format!("not cut: {read} bytes came after that")));
            }
            Ok(latest)
        }
        Kind::BodyStop => {
            let limit = kind.latest(times).unwrap_or_default() + SLACK;
            let mut answer = String::new();
            let mut stream = stream.take(1 << 16);
            let whole = stream.read_to_string(&mut answer);
            // How it ends behind the answer is not the question.
            let _ = timeout(limit, whole)
                .await
                .context(format!("not cut in {limit:?}"))?;
            let took = start.elapsed();
            let refused = answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_timeout");
            let first = answer.lines().next().unwrap_or("no answer");
            refused
                .then_some(took)
                .ok_or_else(|| Error::new(format!("not 408 `body_timeout`: {first}")))
        }
        _ => {
            let limit = kind.latest(times).unwrap_or_default() + SLACK;
            drain(&mut stream, usize::MAX, limit).await?;
            Ok(start.elapsed())
        }
    }
}

/// Writes a byte now and then until the other side ends the connection.
async fn drip(stream: &mut TcpStream, every: Duration, limit: Duration) -> Result<()> {
    let (mut reading, mut writing) = stream.split();
    let read = async {
        let mut buffer = [0; 1024];
        // What is answered is the business of other cases; an end is an end, also with RST.
        while let Ok(1..) = reading.read(&mut buffer).await {}
    };
    let write = async {
        while writing.write_all(b"x").await.is_ok() {
            sleep(every).await;
        }
    };
    let ended = async {
        tokio::select! {
            () = read => {}
            () = write => {}
        }
    };
    timeout(limit, ended)
        .await
        .context(format!("not cut in {limit:?}"))
}

/// Reads to the end of the connection, or so much; how much that was.
async fn drain(stream: &mut TcpStream, most: usize, limit: Duration) -> Result<usize> {
    let mut buffer = vec![0; 64 << 10];
    let mut read = 0;
    let reading = async {
        while read < most {
            match stream.read(&mut buffer).await {
                Ok(n @ 1..) => read += n,
                Ok(_) | Err(_) => break,
            }
        }
    };
    timeout(limit, reading)
        .await
        .context(format!("not cut in {limit:?}"))?;
    Ok(read)
}

async fn no_window(at: SocketAddr, times: &Times) -> Result<Duration> {
    let latest = Kind::NoWindow.latest(times).unwrap_or_default();
    let mut peer = Peer::connect(at, &[(INITIAL_WINDOW_SIZE, 0)])
        .await
        .context("connect")?
        .manners(RUDE)
        .patience(latest + SLACK);
    let start = Instant::now();
    peer.get(1, PLAIN, &format!("/size/{LONG}"))
        .await
        .context("a request")?;
    let is_cut = |frame: &weft_kit::raw2::Frame| frame.kind == RST_STREAM && frame.stream == 1;
    match peer.until(is_cut).await {
        Ok(_) => Ok(start.elapsed()),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            Err(Error::new(format!("the stream was not reset: {error}")))
        }
        // The connection has ended, and the stream with it.
        Err(_) => Ok(start.elapsed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        head: Duration::from_secs(1),
        body: Duration::from_secs(2),
        write: Duration::from_secs(3),
        first: Duration::from_secs(4),
    };

    #[test]
    fn every_kind_has_its_deadline() {
        let deadlines: Vec<_> = Kind::ALL
            .iter()
            .map(|kind| kind.deadline(&TIMES).map(|deadline| deadline.as_secs()))
            .collect();
        let (none, now) = (None, Some(0));
        let expect = [
            Some(1),
            Some(1),
            Some(2),
            none,
            Some(3),
            Some(3),
            now,
            Some(3),
            Some(4),
            Some(4),
        ];
        assert_eq!(deadlines, expect);
    }

    #[test]
    fn late_and_failed_attackers_are_not_as_expected() {
        let mut tally = Tally::new(Kind::HeadDrip);
        tally.add(Ok(Duration::from_secs(1)), &TIMES);
        tally.add(Ok(Duration::from_secs(4)), &TIMES);
        tally.add(Err(Error::new("x")), &TIMES);
        assert_eq!(
            tally.line(3),
            "head-drip: 1 of 3 as expected, the last after 4.0 s (first other: 4.0 s)"
        );
    }

    #[tokio::test]
    async fn what_is_not_cut_is_found() {
        let origin = weft_kit::origin::capture::Capture::start().await.unwrap();
        let short = Duration::from_millis(1);
        let times = Times {
            head: short,
            body: short,
            write: short,
            first: short,
        };
        let (over, is_over) = watch::channel(false);
        let silent = attack(Kind::Silent, origin.address(), &times, is_over.clone());
        assert!(
            silent
                .await
                .unwrap_err()
                .to_string()
                .contains("not cut in 3")
        );
        over.send(true).unwrap();
        attack(Kind::BodyDrip, origin.address(), &times, is_over)
            .await
            .unwrap();
    }
}
