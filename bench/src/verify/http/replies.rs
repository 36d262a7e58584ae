//! Replies that a sidecar makes itself (T6) while the body of the request is still on its way,
//! with a request in it: what is read next on the connection is the next request or nothing.

use std::time::Duration;

use futures_util::future::try_join_all;
use weft_kit::origin::capture::Capture;
use weft_kit::raw1::{Attempt, Plan, Slicing, attempt};
use weft_kit::strict::{self, Asked, Message};

use super::framing::LANES;
use super::lanes::{Dice, Door, Lane, PATIENCE, Speaks, Stage, connect};
use crate::error::{Context as _, Result};
use crate::verify::{Cases, Finding, Setting, seen};

const FULL: Duration = Duration::from_secs(10 * 60);
/// The longest body that a sidecar of this stage takes.
const MOST_BODY: usize = 1_000_000;

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let mut origins = Vec::new();
    for _ in 0..LANES {
        let origin = Capture::answering(nonce).await;
        origins.push(origin.context("start an origin")?);
    }
    let apps: Vec<_> = origins
        .iter()
        .map(|o| (o.address(), Speaks::Http1))
        .collect();
    let bounded =
        |spec: crate::process::Spec| spec.env("WEFT_PROXY_MAX_BODY_BYTES", MOST_BODY.to_string());
    let stage = Stage::start_as(setting, &apps, "", bounded).await?;
    let pairs = if setting.quick { 300 } else { 10_000 };
    let check = pipelined(&stage, &origins, pairs);
    let expected = format!(
        "T6: {pairs} pairs: the first is refused with its body unread, then comes the answer of the second with its own nonce, or the end"
    );
    cases
        .check_within(FULL, "early-replies", expected, check)
        .await;
    Ok(())
}

/// `200` with the target as the body.
fn nonce(request: &Message) -> Vec<u8> {
    let target = request.target();
    let length = target.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{target}").into_bytes()
}

/// Why the first request of a pair is refused at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Early {
    /// 404: nobody has that name.
    NoService,
    /// 413: its length is too large.
    TooLarge,
    /// 400: what it names in `Connection` may not be taken away.
    Connection,
    /// 431: too many fields.
    Fields,
}

const EARLY: [Early; 4] = [
    Early::NoService,
    Early::TooLarge,
    Early::Connection,
    Early::Fields,
];

impl Early {
    /// A request with a body that has a request in it, and the status that it must get.
    fn request(self, host: &str, dice: &mut Dice) -> (Vec<u8>, u16) {
        let smuggled = format!("GET /smug HTTP/1.1\r\nhost: {host}\r\n\r\n");
        let body = match dice.below(4) {
            0 => smuggled,
            1 => smuggled.repeat(40),
            // Larger than what is read away, and larger than what sockets hold.
            2 => smuggled.repeat(2_000),
            _ => smuggled.repeat(6_000),
        };
        let (host, fields, status) = match self {
            Self::NoService => ("nobody.bench", String::new(), 404),
            Self::TooLarge => (host, String::new(), 413),
            Self::Connection => (host, "connection: authorization\r\n".to_owned(), 400),
            Self::Fields => (host, "a: b\r\n".repeat(101), 431),
        };
        let head = format!("POST /early HTTP/1.1\r\nhost: {host}\r\n{fields}");
        let framed = match self {
            Self::TooLarge => {
                let rest = "x".repeat(MOST_BODY + 1 - body.len().min(MOST_BODY));
                let length = body.len() + rest.len();
                format!("{head}content-length: {length}\r\n\r\n{body}{rest}")
            }
            _ if dice.below(2) == 0 => {
                format!("{head}content-length: {}\r\n\r\n{body}", body.len())
            }
            _ => format!(
                "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            ),
        };
        (framed.into_bytes(), status)
    }
}

async fn pipelined(stage: &Stage, origins: &[Capture], pairs: usize) -> Result<Finding> {
    let cost = stage.cost()?;
    let each = pairs.div_ceil(stage.lanes.len());
    let lanes = stage.lanes.iter().zip(origins).enumerate();
    let work = lanes.map(|(number, (lane, origin))| one_lane(lane, origin, number, each));
    let counts = try_join_all(work).await?;
    let (mut followed, mut ended, mut wrong) = (0, 0, Vec::new());
    for count in counts {
        followed += count.followed;
        ended += count.ended;
        wrong.extend(count.wrong);
    }
    let tried = followed + ended + wrong.len();
    let text = format!(
        "{tried} pairs: {followed} times the second was answered, {ended} times the connection ended; {} wrong; {}",
        wrong.len(),
        cost.text()?
    );
    let ok = wrong.is_empty() && tried >= pairs && followed > 0;
    wrong.truncate(8);
    wrong.insert(0, text);
    Ok(seen(ok, wrong.join("\n")))
}

#[derive(Debug, Default)]
struct Count {
    followed: usize,
    ended: usize,
    wrong: Vec<String>,
}

async fn one_lane(lane: &Lane, origin: &Capture, number: usize, pairs: usize) -> Result<Count> {
    let mut dice = Dice::new(600 + number as u64);
    let mut count = Count::default();
    for pair in 0..pairs {
        let door = Door::BOTH[dice.below(2)];
        let early = match EARLY[dice.below(EARLY.len())] {
            // Behind this door there is one service, whatever its name.
            Early::NoService if door == Door::Inbound => Early::Connection,
            early => early,
        };
        let (mut bytes, status) = early.request(&lane.host, &mut dice);
        let nonce = format!("/nonce-{number}-{pair}");
        bytes.extend(format!("GET {nonce} HTTP/1.1\r\nhost: {}\r\n\r\n", lane.host).bytes());
        let slicing = match dice.below(3) {
            0 => Slicing::Whole,
            1 => Slicing::Pieces(4_000),
            _ => Slicing::At(1 + dice.below(bytes.len() - 1)),
        };
        origin.forget(PATIENCE).await.context("an origin")?;
        let asked = vec![Asked::Plain; 2];
        let plan = Plan {
            bytes,
            slicing,
            asked,
            then_half_close: false,
            patience: PATIENCE,
        };
        let attempt = attempt(connect(lane.door(door)).await?, &plan).await;
        let targets = targets(origin);
        match judge(&attempt, &plan.asked, status, &nonce, &targets) {
            Ok(true) => count.followed += 1,
            Ok(false) => count.ended += 1,
            Err(why) => {
                let door = door.name();
                count
                    .wrong
                    .push(format!("{early:?}, {door}, {slicing:?}: {why}"));
            }
        }
    }
    Ok(count)
}

fn targets(origin: &Capture) -> Vec<String> {
    let mut targets = Vec::new();
    for connection in origin.connections() {
        match connection.reading() {
            Ok(reading) => {
                let all = reading.messages.iter().chain(&reading.unfinished);
                targets.extend(all.map(|message| message.target().to_owned()));
            }
            Err(violation) => targets.push(violation.to_string()),
        }
    }
    targets
}

/// Whether the second was answered; what is wrong, in words.
fn judge(
    attempt: &Attempt,
    asked: &[Asked],
    status: u16,
    nonce: &str,
    upstream: &[String],
) -> std::result::Result<bool, String> {
    let foreign = upstream.iter().find(|target| *target != nonce);
    if let Some(foreign) = foreign {
        return Err(format!("{foreign} was forwarded"));
    }
    let reading = strict::answers(&attempt.received, asked)
        .map_err(|violation| format!("what came back is not strict: {violation}"))?;
    let got: Vec<(u16, String)> = reading
        .messages
        .iter()
        .map(|m| (m.status(), m.text()))
        .collect();
    match &got[..] {
        [(first, _), (200, body)] if *first == status && body == nonce => Ok(true),
        [(first, _)] if *first == status && upstream.is_empty() => Ok(false),
        // The end of a connection whose bytes were not read may overtake the answer.
        [] if upstream.is_empty() => Err(format!("no answer, {:?}", attempt.end)),
        _ => {
            let statuses: Vec<u16> = got.iter().map(|(status, _)| *status).collect();
            Err(format!(
                "{statuses:?} instead of {status}, 200; upstream {upstream:?}"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_kit::raw1::End;

    use super::*;

    #[test]
    fn early_requests_are_strict_but_for_their_reason() {
        let mut dice = Dice::new(3);
        for early in EARLY {
            for _ in 0..8 {
                let (bytes, _) = early.request("a", &mut dice);
                let reading = strict::requests(&bytes).unwrap();
                assert!(reading.whole && reading.messages.len() == 1, "{early:?}");
                assert!(reading.messages[0].text().contains("/smug"));
            }
        }
    }

    #[test]
    fn a_body_read_as_a_request_is_found() {
        let answer = |status, body: &str| {
            format!(
                "HTTP/1.1 {status} \r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let see = |received: String, upstream: &[&str]| {
            let attempt = Attempt {
                received: received.into_bytes(),
                end: End::Closed,
                wrote_all: true,
            };
            let upstream: Vec<String> = upstream.iter().map(|t| (*t).to_owned()).collect();
            judge(&attempt, &[Asked::Plain; 2], 404, "/n", &upstream)
        };
        let both = answer(404, "") + &answer(200, "/n");
        assert_eq!(see(both.clone(), &["/n"]), Ok(true));
        assert_eq!(see(answer(404, ""), &[]), Ok(false));
        assert!(see(both, &["/smug", "/n"]).is_err());
        assert!(see(answer(404, "") + &answer(200, "/smug"), &["/n"]).is_err());
        assert!(see(answer(404, "") + &answer(404, ""), &[]).is_err());
        assert!(see(String::new(), &[]).is_err());
    }
}
