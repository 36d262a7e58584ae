//! What one HTTP/2 connection may hold, and for how long: bombs of header fields (T14), streams
//! whose window stays shut (T16), beginnings without end (T17), and the life of a connection:
//! the last stream ids, cancelled requests, many requests, a polite end (T20).

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};
use weft_kit::raw1::End;
use weft_kit::raw2::frame::{
    CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE, PREFACE,
};
use weft_kit::raw2::{Block, Frame, RUDE};

use super::counter::Counter;
use super::lanes::{Dice, Speaks, Stage};
use super::pair::{Peak, mebibytes, metric};
use super::ways::{Raw, Way};
use crate::error::{Context as _, Error, Result};
use crate::process::{Spec, which};
use crate::procfs;
use crate::verify::{Cases, Finding, Setting, seen};

/// What bombs that are refused may make the sidecar keep.
const MORE_MEMORY: u64 = 64 << 20;
/// WEFT_PROXY_MEMORY where nothing says another: what all that is kept comes to.
const BUDGET: u64 = 256 << 20;
/// Of a deadline that is looked at in intervals, on a busy machine.
const SLACK: Duration = Duration::from_millis(1500);
const LAST_STREAM: u32 = (1 << 31) - 1;

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let origin = Counter::start().await?;
    let apps = [
        (origin.address(), Speaks::Http1),
        (origin.address(), Speaks::Http2),
    ];
    let times = Times::of(setting.quick);
    let mut stage = Stage::start_as(setting, &apps, "", |spec| times.apply(spec)).await?;
    let pids = [stage.client.process.pid, stage.server.process.pid];
    let ways = [
        (Way::outbound(&stage.lanes[1]), pids[0]),
        (Way::inbound(&stage.lanes[0], setting.dir())?, pids[1]),
    ];
    for (way, _) in &ways {
        // Connections to the application are there, and the allocator has what it needs.
        served(way).await.context(way.name)?;
    }
    for bomb in Bomb::ALL {
        let is_short = setting.quick && bomb != Bomb::Crumbs;
        let connections = if is_short { 30 } else { 100 };
        for (way, pid) in &ways {
            let expected = format!(
                "{connections} connections, {}: at most {} more memory, others are served",
                bomb.words(),
                mebibytes(bomb.most())
            );
            let name = format!("bomb-{}-{}", bomb.name(), way.name);
            let check = bomb.explode(way, *pid, connections);
            cases.check(&name, expected, check).await;
            rests(&origin, &stage).await?;
        }
    }
    let connections = if setting.quick { 5 } else { 50 };
    for (way, pid) in &ways {
        let expected = format!(
            "{connections} connections x 200 answers of 16 MiB, no window: all ended {:?} x 1.5 after that, \
             at most {} more memory, less than half of them taken from the application, others are served",
            times.write,
            mebibytes(BUDGET)
        );
        let name = format!("no-window-{}", way.name);
        let check = no_window(&origin, way, *pid, connections, &times);
        cases.check(&name, expected, check).await;
        rests(&origin, &stage).await?;
    }
    let expected =
        "each beginning without end is cut at its deadline; silence between requests is not";
    let both = async {
        let both = try_join_all(ways.iter().map(|(way, _)| deadlines(way, &times))).await?;
        let (oks, lines): (Vec<bool>, Vec<String>) = both.into_iter().unzip();
        Ok(seen(oks.iter().all(|ok| *ok), lines.join("\n")))
    };
    cases.check("deadlines", expected, both).await;
    for (way, _) in &ways {
        let expected = "200 on streams 2^31 - 3 and 2^31 - 1; a lower one ends the connection, the next connection serves";
        let name = format!("last-streams-{}", way.name);
        cases.check(&name, expected, last_streams(way)).await;
        let requests = if setting.quick { 2_000 } else { 100_000 };
        let expected = format!(
            "{requests} requests on one connection, a half cancelled at any point: the others whole, nothing left behind"
        );
        let name = format!("cancels-{}", way.name);
        let check = cancels(&origin, way, requests);
        cases
            .check_within(Duration::from_secs(600), &name, expected, check)
            .await;
    }
    let requests = if setting.quick { 5_000 } else { 1_000_000 };
    let expected = format!("{requests} requests of h2load on one connection, none fails");
    match which("h2load") {
        None => cases.skip("many-requests", expected, "h2load is not installed"),
        Some(_) => {
            let check = many_requests(setting, &stage, requests);
            cases
                .check_within(Duration::from_secs(900), "many-requests", expected, check)
                .await;
        }
    }
    stage.alive()?;
    let expected = "20 requests under way when the sidecar is told to end: GOAWAY 0, all answered, then the end";
    cases
        .check("polite-end", expected, polite_end(&stage, &ways[0].0))
        .await;
    Ok(())
}

/// Settings of the sidecars.
#[derive(Debug, Clone, Copy)]
struct Times {
    head: Duration,
    first: Duration,
    write: Duration,
}

impl Times {
    const fn of(quick: bool) -> Self {
        let seconds = if quick { [1, 1, 2] } else { [10, 10, 30] };
        Self {
            head: Duration::from_secs(seconds[0]),
            first: Duration::from_secs(seconds[1]),
            write: Duration::from_secs(seconds[2]),
        }
    }

    fn apply(&self, spec: Spec) -> Spec {
        let seconds = |time: Duration| time.as_secs().to_string();
        spec.env("WEFT_PROXY_HEAD_TIMEOUT", seconds(self.head))
            .env("WEFT_PROXY_FIRST_BYTE_TIMEOUT", seconds(self.first))
            .env("WEFT_PROXY_HANDSHAKE_TIMEOUT", seconds(self.first))
            .env("WEFT_PROXY_WRITE_TIMEOUT", seconds(self.write))
    }
}

/// Waits until nothing is left of a case: requests at the application, memory in the sidecars.
async fn rests(origin: &Counter, stage: &Stage) -> Result<()> {
    origin.rests().await?;
    let calm = async {
        for sidecar in [&stage.client, &stage.server] {
            while metric(sidecar, "weft_memory_pressure", &[]).await? > 0.0 {
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    };
    let calm = tokio::time::timeout(Duration::from_secs(20), calm).await;
    calm.context("there is pressure on memory 20 s later")?
}

/// A request on a connection of its own is answered.
async fn served(way: &Way) -> Result<()> {
    let mut peer = way.open(&[]).await?;
    peer.get(1, &way.authority, "/fast")
        .await
        .context("a GET")?;
    let answer = peer.whole(1).await.context("an answer")?;
    match answer.status() {
        200 if answer.ended => Ok(()),
        status => Err(Error::new(format!("status {status} for others"))),
    }
}

/// Header fields that are more than their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bomb {
    /// Cookie crumbs by index, more than a message may have.
    Crumbs,
    /// The same, as many as a message may have.
    AllowedCrumbs,
    /// Thousands of tiny fields.
    Fields,
    /// One long field of the dynamic table, by index.
    Indexed,
}

impl Bomb {
    const ALL: [Self; 4] = [
        Self::Crumbs,
        Self::AllowedCrumbs,
        Self::Fields,
        Self::Indexed,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Crumbs => "crumbs",
            Self::AllowedCrumbs => "allowed-crumbs",
            Self::Fields => "fields",
            Self::Indexed => "indexed",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Crumbs => "200 streams of 400 indexed cookie crumbs",
            Self::AllowedCrumbs => "200 streams of 90 indexed cookie crumbs that are not answered",
            Self::Fields => "20 streams of 4,000 fields",
            Self::Indexed => "4 streams of 16,000 times a field of 4,000 bytes",
        }
    }

    /// What is allowed is kept until the whole process has had enough.
    const fn most(self) -> u64 {
        match self {
            Self::AllowedCrumbs => BUDGET,
            Self::Crumbs | Self::Fields | Self::Indexed => MORE_MEMORY,
        }
    }

    const fn streams(self) -> u32 {
        match self {
            Self::Crumbs | Self::AllowedCrumbs => 200,
            Self::Fields => 20,
            Self::Indexed => 4,
        }
    }

    fn block(self, way: &Way, stream: u32) -> Vec<u8> {
        /// The newest entry of the dynamic table.
        const NEWEST: usize = 62;
        let block = Block::request("GET", &way.authority, "/stall");
        let (name, value, times) = match self {
            Self::Crumbs => ("cookie", "a=b".to_owned(), 400),
            Self::AllowedCrumbs => ("cookie", "a=b".to_owned(), 90),
            Self::Indexed => ("x-bomb", "b".repeat(4_000), 16_000),
            Self::Fields => {
                let field = |block: Block, n: u32| block.literal([b'a', (n % 26) as u8 + b'a'], "");
                return (0..4_000).fold(block, field).bytes();
            }
        };
        let block = match stream {
            1 => block.incremental(name, value),
            _ => block.indexed(NEWEST),
        };
        (1..times)
            .fold(block, |block, _| block.indexed(NEWEST))
            .bytes()
    }

    /// On many connections at one time, whose windows are shut.
    async fn explode(self, way: &Way, pid: u32, connections: usize) -> Result<Finding> {
        let before = procfs::memory(pid)?.rss;
        let cpu = procfs::cpu(pid)?;
        let peak = Peak::watch(pid);
        let bombs = (0..connections).map(|_| self.throw(way));
        let thrown = try_join_all(bombs).await?;
        // What is held is held now.
        sleep(Duration::from_millis(300)).await;
        let others = served(way).await;
        let more = peak.bytes().saturating_sub(before);
        let cpu = procfs::cpu(pid)?.saturating_sub(cpu).as_secs_f64();
        let sum = |of: fn(&Thrown) -> u64| thrown.iter().map(of).sum::<u64>();
        let (bytes, refused) = (sum(|one| one.bytes), sum(|one| one.refused));
        let (held, goaways) = (sum(|one| one.held), sum(|one| one.goaway));
        let mut text = format!(
            "{} sent, {} more memory, {:.2} held for each byte sent; {refused} streams refused, {held} held, \
             {goaways} connections cut; {cpu:.2} s CPU",
            mebibytes(bytes),
            mebibytes(more),
            more as f64 / bytes.max(1) as f64
        );
        if let Err(error) = &others {
            text += &format!("\n{error}");
        }
        let is_bounded = more <= self.most();
        let is_refused = self == Self::AllowedCrumbs || held == 0;
        Ok(seen(is_bounded && is_refused && others.is_ok(), text))
    }

    async fn throw(self, way: &Way) -> Result<Thrown> {
        let mut bytes = 0;
        let Ok(mut peer) = way.open(&[(INITIAL_WINDOW_SIZE, 0)]).await else {
            // There is no room for it: then it holds nothing.
            let refused = u64::from(self.streams());
            return Ok(Thrown {
                bytes,
                refused,
                held: 0,
                goaway: 1,
            });
        };
        let streams = (0..self.streams()).map(|n| 2 * n + 1);
        for stream in streams.clone() {
            let block = self.block(way, stream);
            let mut frames: Vec<Frame> = Vec::new();
            for (n, piece) in block.chunks(16 << 10).enumerate() {
                let is_last = (n + 1) * (16 << 10) >= block.len();
                let end = if is_last { END_HEADERS } else { 0 };
                frames.push(match n {
                    0 => Frame::new(HEADERS, END_STREAM | end, stream, piece),
                    _ => Frame::new(CONTINUATION, end, stream, piece),
                });
            }
            bytes += frames
                .iter()
                .map(|frame| frame.payload.len() as u64 + 9)
                .sum::<u64>();
            if peer.send_all(&frames).await.is_err() {
                break;
            }
        }
        // One round trip and a moment: what is refused has been by then.
        let mut is_cut = false;
        for round in 0..3 {
            is_cut |= peer.ping(round).await.is_err();
            sleep(Duration::from_millis(100)).await;
        }
        let mut thrown = Thrown {
            bytes,
            refused: 0,
            held: 0,
            goaway: u64::from(is_cut),
        };
        for stream in streams {
            let message = peer.message(stream);
            let is_refused = message.is_some_and(|one| one.status() >= 400 || one.reset.is_some());
            if is_refused || is_cut {
                thrown.refused += 1;
            } else {
                thrown.held += 1;
            }
        }
        Ok(thrown)
    }
}

/// What one connection has sent, and what became of it.
struct Thrown {
    bytes: u64,
    refused: u64,
    held: u64,
    goaway: u64,
}

async fn no_window(
    origin: &Counter,
    way: &Way,
    pid: u32,
    connections: usize,
    times: &Times,
) -> Result<Finding> {
    const STREAMS: u32 = 200;
    const LENGTH: u64 = 16 << 20;
    let before = procfs::memory(pid)?.rss;
    let given = origin.given();
    let peak = Peak::watch(pid);
    let latest = times.write * 3 / 2 + SLACK;
    let stalled = (0..connections).map(|_| async {
        let mut peer = way
            .open(&[(INITIAL_WINDOW_SIZE, 0)])
            .await?
            .patience(latest * 2);
        let path = format!("/size/{LENGTH}");
        let block = Block::request("GET", &way.authority, &path).bytes();
        let streams = (0..STREAMS).map(|n| 2 * n + 1);
        let heads: Vec<_> = streams
            .clone()
            .map(|stream| Frame::headers(stream, END_STREAM, block.clone()))
            .collect();
        peer.send_all(&heads).await.context("requests")?;
        let start = Instant::now();
        let (mut reset, mut refused) = (0_u64, 0_u64);
        let mut cut = u64::from(STREAMS);
        for stream in streams {
            let Ok(answer) = peer.whole(stream).await else {
                // When memory is short, connections that keep most go as a whole.
                break;
            };
            cut -= 1;
            match answer.reset {
                Some(_) if answer.status() < 400 => reset += 1,
                _ => refused += 1,
            }
        }
        Ok::<_, Error>((reset, refused, cut, start.elapsed()))
    });
    let others = async {
        sleep(times.write / 2).await;
        served(way).await
    };
    let (stalled, others) = tokio::join!(try_join_all(stalled), others);
    let stalled = stalled?;
    let reset: u64 = stalled.iter().map(|(reset, ..)| reset).sum();
    let refused: u64 = stalled.iter().map(|(_, refused, ..)| refused).sum();
    let cut: u64 = stalled.iter().map(|(_, _, cut, _)| cut).sum();
    let slowest = stalled
        .iter()
        .map(|(.., took)| *took)
        .max()
        .unwrap_or_default();
    let all = connections as u64 * u64::from(STREAMS);
    let more = peak.bytes().saturating_sub(before);
    let given = origin.given() - given;
    let mut text = format!(
        "{reset} of {all} reset, {refused} refused, {cut} cut with their connection, the last after {:.1} s; {} more memory, {} a stream; \
         {} taken from the application, {} a stream",
        slowest.as_secs_f64(),
        mebibytes(more),
        mebibytes(more / all.max(1)),
        mebibytes(given),
        mebibytes(given / all.max(1))
    );
    if let Err(error) = &others {
        text += &format!("\n{error}");
    }
    let ok = reset + refused + cut == all
        && reset > 0
        && slowest <= latest
        && more <= BUDGET
        && given < all * LENGTH / 2
        && others.is_ok();
    Ok(seen(ok, text))
}

/// Something that was begun.
struct Beginning {
    name: &'static str,
    bytes: Vec<u8>,
    /// Sent again and again.
    drip: Vec<u8>,
    /// When it is cut; none: not at all.
    deadline: Option<Duration>,
}

/// Whether all is as it should be, and what was seen.
async fn deadlines(way: &Way, times: &Times) -> Result<(bool, String)> {
    let preface = PREFACE.to_vec();
    let settings = Frame::settings(&[]).bytes();
    let hello = [&preface[..], &settings].concat();
    let head = Block::request("GET", &way.authority, "/").bytes();
    let open = Frame::new(HEADERS, END_STREAM, 1, head.clone()).bytes();
    let whole = Frame::headers(1, END_STREAM, head).bytes();
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let after = |bytes: &[u8]| [&hello[..], bytes].concat();
    let head = Some(times.head);
    let beginning = |name, bytes, deadline| Beginning {
        name,
        bytes,
        drip: Vec::new(),
        deadline,
    };
    let table = [
        beginning("half a preface", half(&preface), head),
        beginning("no SETTINGS", preface.clone(), head),
        beginning(
            "half of SETTINGS",
            [&preface[..], &Frame::settings(&[(4, 1)]).bytes()[..12]].concat(),
            head,
        ),
        beginning("HEADERS without end", after(&open), head),
        beginning("half of HEADERS", after(&half(&whole)), head),
        Beginning {
            name: "CONTINUATION now and then",
            bytes: after(&open),
            drip: Frame::new(CONTINUATION, 0, 1, []).bytes(),
            deadline: head,
        },
        beginning("nothing after SETTINGS", hello.clone(), None),
        beginning("nothing after a request", after(&whole), None),
    ];
    let tried = table.iter().map(|beginning| async move {
        let took = beginning.took(way, times).await;
        let (line, ok) = match (&took, beginning.deadline) {
            (Ok(Some(took)), Some(deadline)) => {
                let seconds = took.as_secs_f64();
                let ok = *took >= deadline / 2 && *took <= deadline * 3 / 2 + SLACK;
                (format!("cut after {seconds:.1} s"), ok)
            }
            (Ok(Some(took)), None) => (format!("cut after {:.1} s", took.as_secs_f64()), false),
            (Ok(None), deadline) => ("stays".to_owned(), deadline.is_none()),
            (Err(error), _) => (error.to_string(), false),
        };
        (format!("{}, {}: {line}", way.name, beginning.name), ok)
    });
    let tried = join_all(tried).await;
    let ok = tried.iter().all(|(_, ok)| *ok);
    let lines: Vec<_> = tried.into_iter().map(|(line, _)| line).collect();
    Ok((ok, lines.join("\n")))
}

impl Beginning {
    /// When the connection was ended; none: not in twice the time.
    async fn took(&self, way: &Way, times: &Times) -> Result<Option<Duration>> {
        let limit = times.head * 2 + SLACK;
        // What it answered would be more of a beginning.
        let mut peer = way.silent().await?.patience(limit).manners(RUDE);
        let start = Instant::now();
        peer.write(&self.bytes).await.context("the beginning")?;
        if self.drip.is_empty() {
            let end = peer.goodbye().await.end;
            return Ok((end != End::Open).then(|| start.elapsed()));
        }
        // Too few of them for the bound on their number.
        let every = times.head / 5;
        while start.elapsed() < limit {
            sleep(every).await;
            if peer.write(&self.drip).await.is_err() {
                return Ok(Some(start.elapsed()));
            }
        }
        Ok(None)
    }
}

async fn last_streams(way: &Way) -> Result<Finding> {
    let mut peer = way.open(&[]).await?;
    let mut seen_so_far = Vec::new();
    for stream in [LAST_STREAM - 2, LAST_STREAM] {
        peer.get(stream, &way.authority, "/fast")
            .await
            .context("a GET")?;
        let answer = peer
            .whole(stream)
            .await
            .context(format!("stream {stream}"))?;
        seen_so_far.push(answer.status());
    }
    peer.get(1, &way.authority, "/fast")
        .await
        .context("a GET")?;
    let goodbye = peer.goodbye().await;
    served(way).await?;
    let ok = seen_so_far == [200, 200] && goodbye.end != End::Open;
    let code = goodbye.code();
    Ok(seen(
        ok,
        format!(
            "{seen_so_far:?}, then GOAWAY {code:?} and {:?}",
            goodbye.end
        ),
    ))
}

/// Requests on one connection, a half of them cancelled: at once, when the head has come, or
/// in the middle.
async fn cancels(origin: &Counter, way: &Way, requests: u32) -> Result<Finding> {
    const LENGTH: usize = 40_000;
    /// Requests at one time.
    const BATCH: u32 = 20;
    let begun = origin.begun();
    let mut dice = Dice::new(20);
    let mut peer = way.open(&[]).await?;
    let (mut whole, mut cancelled) = (0_u32, 0_u32);
    let block = Block::request("GET", &way.authority, &format!("/size/{LENGTH}")).bytes();
    let mut next = 1;
    while whole + cancelled < requests {
        let streams: Vec<u32> = (0..BATCH).map(|n| next + 2 * n).collect();
        next += 2 * BATCH;
        let heads: Vec<_> = streams
            .iter()
            .map(|stream| Frame::headers(*stream, END_STREAM, block.clone()))
            .collect();
        peer.send_all(&heads).await.context("requests")?;
        let (mut wanted, mut gone) = (Vec::new(), Vec::new());
        for stream in streams {
            match dice.below(6) {
                0 => {}
                1 => has(&mut peer, stream, 0).await?,
                2 => has(&mut peer, stream, LENGTH / 4).await?,
                _ => {
                    wanted.push(stream);
                    continue;
                }
            }
            peer.send(&Frame::reset(stream, 8))
                .await
                .context("RST_STREAM")?;
            cancelled += 1;
            gone.push(stream);
        }
        for stream in wanted {
            let answer = peer.whole(stream).await.context("an answer")?;
            let ok = answer.status() == 200 && answer.ended && answer.body.len() == LENGTH;
            if !ok {
                let (status, reset) = (answer.status(), answer.reset);
                let what = format!(
                    "status {status}, reset {reset:?}, {} bytes",
                    answer.body.len()
                );
                return Err(Error::new(format!("after {whole} whole ones: {what}")));
            }
            whole += 1;
        }
        for stream in gone {
            peer.forget(stream);
        }
    }
    peer.ping(1).await.context("the connection")?;
    origin.rests().await?;
    let begun = origin.begun() - begun;
    Ok(seen(
        whole > 0 && cancelled > 0,
        format!(
            "{whole} whole, {cancelled} cancelled; {begun} begun at the application, none left there"
        ),
    ))
}

/// Reads until a stream has its head and so many bytes, or has ended.
async fn has(peer: &mut Raw, stream: u32, bytes: usize) -> Result<()> {
    loop {
        let is_there = peer.message(stream).is_some_and(|message| {
            let has_some = !message.heads.is_empty() && message.body.len() >= bytes;
            has_some || message.ended || message.reset.is_some()
        });
        if is_there {
            return Ok(());
        }
        peer.next().await.context("an answer")?;
    }
}

async fn many_requests(setting: &Setting, stage: &Stage, requests: u32) -> Result<Finding> {
    let program = which("h2load").context("h2load is gone")?;
    let url = format!("http://{}/fast", stage.outbound);
    let cost = stage.cost()?;
    let output = Spec::new("h2load", program)
        .pair("-n", requests.to_string())
        .pair("-c", "1")
        .pair("-m", "100")
        .pair("-H", format!(":authority: {}", stage.lanes[1].host))
        .arg(url)
        .run(setting.dir(), Duration::from_secs(900))
        .await?
        .ok("h2load")?;
    let line = |word: &str| output.lines().find(|line| line.starts_with(word));
    let all = line("requests:").context("h2load said nothing of requests")?;
    let codes = line("status codes:").context("h2load said nothing of status codes")?;
    let ok = all.contains(&format!(" {requests} succeeded, 0 failed"))
        && codes.contains(&format!(" {requests} 2xx"));
    let rate = line("finished in").unwrap_or_default();
    Ok(seen(
        ok,
        format!("{all}\n{codes}\n{rate}\n{}", cost.text()?),
    ))
}

async fn polite_end(stage: &Stage, way: &Way) -> Result<Finding> {
    const REQUESTS: u32 = 20;
    let mut peer = way.open(&[]).await?;
    let streams: Vec<u32> = (0..REQUESTS).map(|n| 2 * n + 1).collect();
    for stream in &streams {
        peer.get(*stream, &way.authority, "/slow")
            .await
            .context("a GET")?;
    }
    peer.ping(1).await.context("the connection")?;
    stage.client.process.signal(Signal::TERM)?;
    let goaway = peer.until(|frame| frame.kind == GOAWAY).await;
    let goaway = goaway.context("GOAWAY")?;
    // The one with the last stream comes after a round trip; until then all are taken.
    let late = 2 * REQUESTS + 1;
    let is_open = goaway.number(0) == LAST_STREAM;
    if is_open {
        peer.get(late, &way.authority, "/fast")
            .await
            .context("a GET")?;
    }
    let mut whole = 0;
    for stream in streams {
        let answer = peer.whole(stream).await.context("an answer")?;
        whole += u32::from(answer.status() == 200 && answer.ended);
    }
    let goodbye = peer.goodbye().await;
    let (code, last) = goodbye
        .goaway
        .as_ref()
        .map_or((None, 0), |(code, last, _)| (Some(*code), *last));
    let late_answer = peer
        .message(late)
        .map_or(0, weft_kit::raw2::Message::status);
    // It was taken, and then answered; or it was not, and the last GOAWAY says so.
    let late_ok = !is_open || (late_answer == 200) == (last >= late);
    let ok = whole == REQUESTS && code == Some(0) && late_ok && goodbye.end == End::Closed;
    let text = format!(
        "{whole} of {REQUESTS} answered, GOAWAY {code:?}, last stream {last}, one asked after the first GOAWAY: {late_answer}, {:?}",
        goodbye.end
    );
    Ok(seen(ok, text))
}
