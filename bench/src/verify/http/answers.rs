//! Answers of bad servers (T9): 502, or exactly what a strict reader reads; the connection is
//! not used again; and nothing of one client's answer ever reaches another one that shares
//! the pool.

use std::sync::Arc;
use std::time::Duration;

use weft_kit::cases::{self, AnswerCase, judge_answer};
use weft_kit::raw1::{Client, attempt};
use weft_kit::strict::Message;

use super::lanes::{Door, Lane, PATIENCE, Stage, connect, shown};
use super::puppet::{Act, Puppet};
use crate::error::{Context as _, Result};
use crate::verify::{Cases, Finding, Setting, seen};

/// The default of docs/limits.md.
const INFORMATIONAL: usize = 8;
/// Requests of the other client around each bad answer.
const OTHERS: usize = 3;
const FULL: Duration = Duration::from_secs(10 * 60);

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let table = Arc::new(cases::answers(INFORMATIONAL));
    let shared = table.clone();
    let puppet = Puppet::start(move |request| play(&shared, request)).await?;
    let mut stage = Stage::start(setting, &[puppet.address()]).await?;
    let rounds = if setting.quick { 1 } else { 20 };
    cases
        .check_within(
            FULL,
            "bad-answers",
            "T9: 502 or the exact answer; no connection is used again after one that is not whole; the other client's nonces are its own",
            bad_answers(&stage, &puppet, &table, rounds),
        )
        .await;
    cases
        .check("alive", "no sidecar has ended or panicked", async {
            stage.alive()?;
            Ok(seen(true, "both run"))
        })
        .await;
    Ok(())
}

/// `/answer-<case>-<n>` gets the bytes of that case, all others their own target.
fn play(table: &[AnswerCase], request: &Message) -> Act {
    let target = request.target();
    let number = target
        .strip_prefix("/answer-")
        .and_then(|rest| rest.split('-').next());
    let case = number
        .and_then(|n| n.parse::<usize>().ok())
        .and_then(|n| table.get(n));
    match case {
        Some(case) if case.closes => Act::Last(case.bytes.clone()),
        Some(case) => Act::Answer(case.bytes.clone()),
        None => {
            let length = target.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{target}");
            Act::Answer(answer.into_bytes())
        }
    }
}

async fn bad_answers(
    stage: &Stage,
    puppet: &Puppet,
    table: &[AnswerCase],
    rounds: usize,
) -> Result<Finding> {
    let cost = stage.cost()?;
    let lane = &stage.lanes[0];
    let (mut tried, mut others, mut reused, mut wrong) = (0, 0, 0, Vec::new());
    for round in 0..rounds {
        for door in Door::BOTH {
            let mut other = Other::new(lane, door).await?;
            for (number, case) in table.iter().enumerate() {
                puppet.forget();
                let target = format!("/answer-{number}-{round}-{}", door.name());
                let plan = case.plan(&lane.host, &target, PATIENCE);
                let bad = async {
                    let stream = connect(lane.door(door)).await?;
                    Ok(attempt(stream, &plan).await)
                };
                // At the same time, so that the pool is shared in every order.
                let (attempt, before) = tokio::join!(bad, other.ask(OTHERS));
                let attempt = attempt?;
                before?;
                // On what is in the pool now.
                other.ask(OTHERS).await?;
                tried += 1;
                others += 2 * OTHERS;
                let verdict =
                    judge_answer(case, &attempt).and_then(|()| alone(puppet, case, &target));
                match verdict {
                    Ok(used) => reused += usize::from(used),
                    Err(why) => {
                        let (got, bytes) = (shown(&attempt.received), shown(&case.bytes));
                        wrong.push(format!(
                            "{}: {why}\n  sent {bytes}\n  got {got}",
                            door.name()
                        ));
                    }
                }
            }
        }
    }
    let text = format!(
        "{tried} answers and {others} nonces of another client, 0 mixed up, {} wrong, {reused} connections used again; {}",
        wrong.len(),
        cost.text()?
    );
    // Were none used again, it would not say much that bad ones are not.
    let ok = wrong.is_empty() && reused > 0;
    wrong.truncate(8);
    wrong.insert(0, text);
    Ok(seen(ok, wrong.join("\n")))
}

/// Whether the connection of a case was used again; an error if it must not have been.
fn alone(puppet: &Puppet, case: &AnswerCase, target: &str) -> std::result::Result<bool, String> {
    let mut used = false;
    for heard in puppet.heard() {
        let targets = heard.targets();
        if let Some(violation) = &heard.violation {
            return Err(format!("what the server got is not strict: {violation}"));
        }
        let Some(at) = targets.iter().position(|one| *one == target) else {
            continue;
        };
        let after = &targets[at + 1..];
        // An empty 204 that says so (RFC 9110, 8.6 has it that it must not) leaves nothing behind.
        let nothing_left = case.name == "204 with a length";
        if !case.reusable && !nothing_left && !after.is_empty() {
            return Err(format!("{after:?} came on the same connection"));
        }
        used |= !after.is_empty();
    }
    Ok(used)
}

/// Another client, on a connection of its own as long as that lasts.
struct Other {
    client: Client,
    address: std::net::SocketAddr,
    host: String,
    next: usize,
}

impl Other {
    async fn new(lane: &Lane, door: Door) -> Result<Self> {
        let address = lane.door(door);
        Ok(Self {
            client: Client::new(connect(address).await?),
            address,
            host: lane.host.clone(),
            next: 0,
        })
    }

    /// Requests with a nonce each; an error if an answer is not the one to it.
    async fn ask(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            self.next += 1;
            let nonce = format!("/nonce-{}", self.next);
            let request = format!("GET {nonce} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
            let answer = self
                .client
                .exchange(request)
                .await
                .context("the other client")?;
            let (status, text) = (answer.status(), answer.text());
            if status != 200 || text != nonce {
                let what = format!("the other client asked for {nonce} and got {status} {text:?}");
                return Err(crate::error::Error::new(what));
            }
            if answer.header("connection").is_some() {
                self.client = Client::new(connect(self.address).await?);
            }
        }
        Ok(())
    }
}
