//! Games of HTTP/2 servers (T19). An application answers the first connection by a script and
//! all later ones honestly, saying how often each request has come. Whatever it plays: the client
//! gets its answer or a reason, what the application may have executed is not asked for again,
//! what it says it has not looked at is, the next request is served, and nothing ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use weft_kit::origin::nonce::Nonces;
use weft_kit::origin::script::{NEWEST, Script, Step};
use weft_kit::raw1::Client;
use weft_kit::raw2::frame::{
    END_STREAM, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, PUSH_PROMISE,
};
use weft_kit::raw2::{Block, Frame};

use super::lanes::{Door, Lane, Speaks, Stage, connect};
use crate::accept;
use crate::error::{Context as _, Error, Result};
use crate::process::free_address;
use crate::verify::{Cases, Finding, Setting, seen};

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(8);
const MOST_WINDOW: u32 = (1 << 31) - 1;
const CANCEL: u32 = 8;
const REFUSED: u32 = 7;

/// What must come of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The honest connections answered it, having seen it once.
    Moved,
    /// The same, or 502: hyper does not say whether it still waited, for the beginning of HTTP/2
    /// or for a stream, when the connection ended.
    Unsent,
    /// The script's answer, 200.
    Scripted,
    /// 502 with one of these reasons; the honest connections have not seen it.
    Failed(&'static [&'static str]),
    /// The same, or an answer that breaks off.
    Broken,
}

struct Game {
    name: &'static str,
    /// Bytes of the request's body.
    body: usize,
    steps: Vec<Step>,
    outcome: Outcome,
}

const CLOSED: &[&str] = &["peer_closed", "peer_reset"];
const UNSENT: &[&str] = &["peer_closed", "peer_protocol_error"];
const RESET: &[&str] = &["peer_reset"];
const WRONG: &[&str] = &["peer_protocol_error", "peer_closed", "peer_reset"];

fn frame(frame: Frame) -> Step {
    Step::Frame(frame)
}

fn reset(code: u32) -> Step {
    frame(Frame::reset(NEWEST, code))
}

fn goaway(last: u32) -> Step {
    frame(Frame::goaway(last, 0))
}

/// The head of an answer.
fn head(fields: Block) -> Step {
    frame(Frame::headers(NEWEST, 0, fields.bytes()))
}

fn ok() -> Step {
    head(Block::answer(200))
}

fn end() -> Step {
    frame(Frame::data(NEWEST, END_STREAM, *b"ok"))
}

/// Each further request is answered.
fn honest() -> Step {
    Step::Repeat(1_000, vec![Step::Stream, ok(), end()])
}

fn flood(times: usize, flooded: Frame) -> Step {
    Step::Repeat(times, vec![frame(flooded)])
}

fn games() -> Vec<Game> {
    let game = |name, steps: Vec<Step>, outcome| {
        let begin = [Step::Accept(vec![]), Step::Stream];
        // Where only a stream has failed, the connection goes on.
        let all = begin.into_iter().chain(steps).chain([honest()]);
        Game {
            name,
            body: 0,
            steps: all.collect(),
            outcome,
        }
    };
    let with_body = |body, game: Game| Game { body, ..game };
    let no_streams = Frame::settings(&[(MAX_CONCURRENT_STREAMS, 0)]);
    let promise = [
        &2_u32.to_be_bytes()[..],
        &Block::request("GET", "a", "/pushed").bytes(),
    ]
    .concat();
    let crumbs = |count| (0..count).fold(Block::answer(200), |block, _| block.literal("x", "y"));
    let large_window = Frame::settings(&[(INITIAL_WINDOW_SIZE, MOST_WINDOW)]);
    use Outcome::{Broken, Failed, Moved, Scripted, Unsent};
    let mut games = vec![
        game("goaway-of-all", vec![goaway(0)], Moved),
        game(
            "goaway-then-no-streams",
            vec![goaway(0), frame(no_streams)],
            Moved,
        ),
        Game {
            name: "no-streams-then-goaway",
            body: 0,
            steps: vec![
                Step::Accept(vec![(MAX_CONCURRENT_STREAMS, 0)]),
                Step::Sleep(Duration::from_millis(300)),
                goaway(0),
                Step::Drain,
            ],
            outcome: Unsent,
        },
        game("refused", vec![reset(REFUSED)], Moved),
        with_body(
            10_000,
            game("refused-with-body", vec![reset(REFUSED)], Moved),
        ),
        with_body(
            1_000_000,
            game(
                "refused-with-long-body",
                vec![Step::Repeat(8, vec![Step::Await(0)]), reset(REFUSED)],
                Failed(RESET),
            ),
        ),
        game("cancelled", vec![reset(CANCEL)], Failed(RESET)),
        game("internal-error", vec![reset(2)], Failed(RESET)),
        game("reset-after-head", vec![ok(), reset(2)], Broken),
        game("goaway-and-answer", vec![goaway(1), ok(), end()], Scripted),
        game(
            "goaway-and-end",
            vec![goaway(1), Step::Close],
            Failed(CLOSED),
        ),
        game("end", vec![Step::Close], Failed(CLOSED)),
        game("reset-of-connection", vec![Step::Reset], Failed(CLOSED)),
        game(
            "push",
            vec![frame(Frame::new(PUSH_PROMISE, 4, NEWEST, promise))],
            Failed(WRONG),
        ),
        game(
            "bad-hpack",
            vec![head(Block::answer(200).indexed(100))],
            Failed(WRONG),
        ),
        game(
            "bad-huffman",
            vec![head(Block::answer(200).raw([0, 1, b'a', 0x81, 0]))],
            Failed(WRONG),
        ),
        game(
            "no-status",
            vec![head(Block::new().literal("a", "b")), end()],
            Failed(WRONG),
        ),
        game(
            "status-99",
            vec![head(Block::new().literal(":status", "99")), end()],
            Failed(WRONG),
        ),
        game(
            "connection-field",
            vec![
                head(Block::answer(200).literal("connection", "close")),
                end(),
            ],
            Failed(WRONG),
        ),
        game(
            "transfer-encoding",
            vec![
                head(Block::answer(200).literal("transfer-encoding", "chunked")),
                end(),
            ],
            Failed(WRONG),
        ),
        game("200-fields", vec![head(crumbs(200)), end()], Failed(WRONG)),
        game("head-of-100-kb", vec![large_head()], Failed(WRONG)),
        game(
            "short-body",
            vec![
                head(Block::answer(200).literal("content-length", "10")),
                end(),
            ],
            Broken,
        ),
        game(
            "long-body",
            vec![
                head(Block::answer(200).literal("content-length", "1")),
                end(),
            ],
            Broken,
        ),
        game(
            "two-lengths",
            vec![
                head(
                    Block::answer(200)
                        .literal("content-length", "2")
                        .literal("content-length", "3"),
                ),
                end(),
            ],
            Broken,
        ),
        game("data-before-head", vec![end()], Failed(WRONG)),
        game(
            "data-on-idle-stream",
            vec![frame(Frame::data(99, 0, *b"x"))],
            Failed(WRONG),
        ),
        game(
            "data-on-stream-0",
            vec![frame(Frame::data(0, 0, *b"x"))],
            Failed(WRONG),
        ),
        game(
            "head-on-even-stream",
            vec![frame(Frame::headers(2, 0, Block::answer(200).bytes()))],
            Failed(WRONG),
        ),
        game(
            "window-overflow",
            vec![flood(2, Frame::window(0, MOST_WINDOW))],
            Failed(WRONG),
        ),
        game(
            "window-0",
            vec![frame(Frame::window(NEWEST, 0))],
            Failed(WRONG),
        ),
        game(
            "frame-of-1-mb",
            vec![frame(Frame::new(0xbe, 0, 0, vec![0; 1 << 20]))],
            Failed(WRONG),
        ),
        game(
            "settings-flood",
            vec![flood(2_000, Frame::settings(&[]))],
            Failed(WRONG),
        ),
        game(
            "ping-flood",
            vec![flood(5_000, Frame::ping(1))],
            Failed(WRONG),
        ),
        game(
            "unknown-flood",
            vec![flood(5_000, Frame::new(0xbe, 0, 0, []))],
            Failed(WRONG),
        ),
        game(
            "goaway-flood",
            vec![flood(1_000, Frame::goaway(MOST_WINDOW, 0))],
            Failed(WRONG),
        ),
        game(
            "window-flood",
            vec![flood(10_000, Frame::window(0, 1))],
            Failed(WRONG),
        ),
        game(
            "informational-flood",
            vec![flood(
                1_000,
                Frame::headers(NEWEST, 0, Block::answer(103).bytes()),
            )],
            Failed(WRONG),
        ),
        game(
            "reset-storm",
            vec![flood(20_000, Frame::reset(NEWEST, CANCEL))],
            Failed(WRONG),
        ),
        game(
            "empty-data-flood",
            vec![ok(), flood(20_000, Frame::data(NEWEST, 0, []))],
            Broken,
        ),
        game(
            "continuation-flood",
            vec![
                frame(Frame::new(1, 0, NEWEST, [])),
                flood(1_000, Frame::new(9, 0, NEWEST, [])),
            ],
            Failed(WRONG),
        ),
        game("early-answer", vec![ok(), end(), reset(0)], Scripted),
        with_body(
            1_000_000,
            game(
                "early-answer-to-body",
                vec![ok(), end(), reset(0)],
                Scripted,
            ),
        ),
        Game {
            name: "window-of-2-gb",
            body: 4_000_000,
            steps: vec![
                Step::Accept(vec![(INITIAL_WINDOW_SIZE, MOST_WINDOW)]),
                frame(Frame::window(0, MOST_WINDOW - 65_535)),
                Step::Stream,
                Step::Await(0),
                ok(),
                end(),
                honest(),
            ],
            outcome: Scripted,
        },
        Game {
            name: "no-http2",
            body: 0,
            steps: vec![
                Step::Bytes(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n".to_vec()),
                Step::Drain,
            ],
            outcome: Unsent,
        },
        game(
            "window-changes",
            vec![frame(large_window), ok(), end()],
            Scripted,
        ),
    ];
    games.sort_by_key(|game| game.name);
    games
}

/// HEADERS and CONTINUATION with a field of 100 KB.
fn large_head() -> Step {
    let block = Block::answer(200)
        .literal("x-large", "a".repeat(100_000))
        .bytes();
    let last = block.chunks(16_000).count() - 1;
    let piece = |(n, piece): (usize, &[u8])| {
        let end = if n == last { 4 } else { 0 };
        let kind = if n == 0 { 1 } else { 9 };
        frame(Frame::new(kind, end, NEWEST, piece))
    };
    Step::Repeat(1, block.chunks(16_000).enumerate().map(piece).collect())
}

/// Leads the first connections to one origin and the others to another.
#[derive(Debug)]
struct Switch {
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Switch {
    async fn start(first: usize, script: SocketAddr, honest: SocketAddr) -> Result<Self> {
        let address = free_address()?;
        let listener = accept::bind(address).await?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let mut stream = accept::next(&listener).await;
                let to = if number < first { script } else { honest };
                connections.spawn(async move {
                    // How it ends is for both sides to see.
                    if let Ok(mut origin) = TcpStream::connect(to).await {
                        let _ = origin.set_nodelay(true);
                        let copy = tokio::io::copy_bidirectional(&mut stream, &mut origin);
                        if copy.await.is_err() {
                            let _ = stream.set_zero_linger();
                            let _ = origin.set_zero_linger();
                        }
                    }
                });
            }
        });
        Ok(Self {
            address,
            task: task.abort_handle(),
        })
    }
}

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let honest = Arc::new(Nonces::start().await.context("the honest origin")?);
    let games = games();
    let (mut scripts, mut switches) = (Vec::new(), Vec::new());
    for game in &games {
        let steps = game.steps.clone();
        let script = Script::start(move |_| steps.clone()).await;
        let script = script.context(game.name)?;
        switches.push(Switch::start(1, script.address(), honest.address()).await?);
        scripts.push(script);
    }
    let rotating = Script::start(|_| rotation())
        .await
        .context("the rotation")?;
    let narrow = Script::start(|_| narrow()).await.context("few streams")?;
    let mut apps: Vec<_> = switches
        .iter()
        .map(|one| (one.address, Speaks::Http2))
        .collect();
    apps.push((rotating.address(), Speaks::Http2));
    apps.push((narrow.address(), Speaks::Http2));
    let mut stage = Stage::start_as(setting, &apps, "", |spec| spec).await?;
    let played = async {
        let cost = stage.cost()?;
        let play = games.iter().zip(&stage.lanes).map(|(game, lane)| {
            let honest = honest.clone();
            async move { (game, game.play(lane, &honest).await) }
        });
        let mut wrong = Vec::new();
        for (game, result) in join_all(play).await {
            if let Err(error) = result {
                wrong.push(format!(
                    "{}: expected {:?}, {error}",
                    game.name, game.outcome
                ));
            }
        }
        let (right, all) = (games.len() - wrong.len(), games.len());
        wrong.insert(0, format!("{right} of {all} as expected; {}", cost.text()?));
        Ok(seen(right == all, wrong.join("\n")))
    };
    let expected = format!(
        "{} games: answer or reason; sent again only what was not looked at, once; the next request is served",
        games.len()
    );
    cases.check("games", expected, played).await;
    let (count, at_once) = if setting.quick {
        (400, 10)
    } else {
        (20_000, 20)
    };
    let lane = &stage.lanes[games.len()];
    let expected = format!(
        "{count} requests to a server that ends each connection after {ROTATION} streams: none lost"
    );
    cases
        .check("rotation", expected, many(lane, count, at_once))
        .await;
    let lane = &stage.lanes[games.len() + 1];
    let expected =
        "100 requests at one time to a server that takes 2 streams a connection: none lost";
    cases
        .check("few-streams", expected, many(lane, 100, 100))
        .await;
    stage.alive()
}

/// Streams of one connection before it says goodbye.
const ROTATION: usize = 50;

fn rotation() -> Vec<Step> {
    let answers = Step::Repeat(ROTATION, vec![Step::Stream, ok(), end()]);
    let last = u32::try_from(2 * ROTATION - 1).unwrap_or_default();
    vec![Step::Accept(vec![]), answers, goaway(last), Step::Drain]
}

/// Two streams at one time, each answered after a moment.
fn narrow() -> Vec<Step> {
    let wait = Step::Sleep(Duration::from_millis(2));
    let one = Step::Repeat(100_000, vec![Step::Stream, wait, ok(), end()]);
    vec![Step::Accept(vec![(MAX_CONCURRENT_STREAMS, 2)]), one]
}

/// Requests by clients with a connection each.
async fn many(lane: &Lane, count: usize, at_once: usize) -> Result<Finding> {
    let next = AtomicUsize::new(0);
    let clients = (0..at_once).map(|_| async {
        let mut client = Client::new(connect(lane.door(Door::Outbound)).await?);
        let (mut good, mut first_bad) = (0, None);
        while next.fetch_add(1, Ordering::Relaxed) < count {
            let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", lane.host);
            let answer = tokio::time::timeout(PATIENCE, client.exchange(&request)).await;
            match answer.context("no answer")?.context("no answer")? {
                answer if answer.status() == 200 && answer.text() == "ok" => good += 1,
                answer => {
                    let reason = answer.header("weft-reason").unwrap_or("-");
                    let line = format!("{} {reason} {}", answer.status(), answer.text());
                    first_bad.get_or_insert(line);
                }
            }
        }
        Ok::<_, Error>((good, first_bad))
    });
    let (mut good, mut bad) = (0, Vec::new());
    for result in join_all(clients).await {
        match result {
            Ok((count, first_bad)) => {
                good += count;
                bad.extend(first_bad);
            }
            Err(error) => bad.push(error.to_string()),
        }
    }
    let first = bad
        .first()
        .map_or(String::new(), |bad| format!("; first other: {bad}"));
    Ok(seen(
        good == count,
        format!("{good} of {count} answered{first}"),
    ))
}

impl Game {
    async fn play(&self, lane: &Lane, honest: &Nonces) -> Result<()> {
        let nonce = format!("first-{}", self.name);
        let outcome = tokio::time::timeout(PATIENCE, ask(lane, &nonce, self.body)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(Error::new("no answer")));
        let executed = honest.count(&nonce).started;
        let shown = match &outcome {
            Ok(answer) => format!("seen {answer:?}"),
            Err(error) => format!("seen {error}"),
        };
        let is_right = match (self.outcome, &outcome) {
            (Outcome::Unsent, Ok(answer)) if answer.status == 502 => {
                UNSENT.contains(&&*answer.reason) && executed == 0
            }
            (Outcome::Moved | Outcome::Unsent, Ok(answer)) => {
                answer.status == 200 && answer.nonce == nonce && executed == 1
            }
            (Outcome::Scripted, Ok(answer)) => {
                answer.status == 200 && answer.text == "ok" && executed == 0
            }
            (Outcome::Failed(reasons), Ok(answer)) => {
                answer.status == 502 && reasons.contains(&&*answer.reason) && executed == 0
            }
            (Outcome::Broken, Ok(answer)) => answer.status == 502 && executed == 0,
            (Outcome::Broken, Err(_)) => executed == 0,
            (_, Err(_)) => false,
        };
        if !is_right {
            return Err(Error::new(format!(
                "{shown}, {executed} times at the honest origin"
            )));
        }
        self.recovers(lane, honest).await
    }

    /// The next request is answered; one that meets the connection while it is cut fails with it.
    async fn recovers(&self, lane: &Lane, honest: &Nonces) -> Result<()> {
        const TRIES: usize = 3;
        let mut last = String::new();
        for number in 0..TRIES {
            let nonce = format!("next-{number}-{}", self.name);
            let next = tokio::time::timeout(PATIENCE, ask(lane, &nonce, 10)).await;
            let next = next.context("the next request: no answer")?;
            let next = next.context("the next request")?;
            let executed = honest.count(&nonce).started;
            let is_of_script = next.text == "ok" && executed == 0;
            let is_honest = next.nonce == nonce && executed == 1;
            if next.status == 200 && (is_of_script || is_honest) {
                return Ok(());
            }
            last = format!("the next request: {next:?}, {executed} times");
            if next.status != 502 || executed > 0 {
                break;
            }
        }
        Err(Error::new(last))
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    reason: String,
    nonce: String,
    text: String,
}

/// A POST on a connection of its own.
async fn ask(lane: &Lane, nonce: &str, body: usize) -> Result<Answer> {
    let mut client = Client::new(connect(lane.door(Door::Outbound)).await?).patience(PATIENCE);
    let request = format!(
        "POST /{nonce} HTTP/1.1\r\nhost: {}\r\nx-nonce: {nonce}\r\ncontent-length: {body}\r\n\r\n{}",
        lane.host,
        "b".repeat(body)
    );
    let answer = client.exchange(&request).await.context("the answer")?;
    let field = |name| answer.header(name).unwrap_or_default().to_owned();
    Ok(Answer {
        status: answer.status(),
        reason: field("weft-reason"),
        nonce: field("x-nonce"),
        text: answer.text(),
    })
}
