//! Cases of the kit against a stage: each in every slicing that is wanted, through one door
//! or both, on all lanes at once; and the record of what came of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::try_join_all;
use weft_kit::cases::{Case, Then, judge};
use weft_kit::origin::capture::{Capture, Connection};
use weft_kit::raw1::{Attempt, Client, Slicing, attempt};

use super::lanes::{Dice, Door, Lane, PATIENCE, Stage, connect, shown};
use crate::error::{Context as _, Result};
use crate::verify::{Finding, seen};

/// When a connection on which nothing comes counts as left open.
pub(super) const BRIEF: Duration = Duration::from_secs(5);
/// How a request begins that only says that what came before it was read.
const FLUSH: &str = "GET /flush ";
/// Cases that fail are told, up to so many.
const TOLD: usize = 8;

/// How each case is cut into writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cuts {
    /// One write, byte by byte, and split at so many offsets.
    Some(usize),
    /// One write, byte by byte, and split at each offset.
    All,
}

impl Cuts {
    pub(super) const fn of(quick: bool) -> Self {
        if quick { Self::Some(5) } else { Self::All }
    }

    pub(super) fn slicings(self, length: usize, dice: &mut Dice) -> Vec<Slicing> {
        /// More writes, or more offsets, say nothing new and take minutes.
        const MANY: usize = 2_048;
        let mut slicings = vec![Slicing::Whole, Slicing::Pieces(length.div_ceil(MANY))];
        match self {
            Self::All if length <= MANY => slicings.extend((1..length).map(Slicing::At)),
            Self::All => slicings.extend((0..50).map(|_| Slicing::At(1 + dice.below(length - 1)))),
            Self::Some(_) if length < 2 => {}
            Self::Some(n) => {
                slicings.extend((0..n).map(|_| Slicing::At(1 + dice.below(length - 1))))
            }
        }
        slicings
    }
}

/// What came of all the attempts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    cases: usize,
    tried: usize,
    /// Attempts in which something passed that must not, or not so.
    wrongly_forwarded: usize,
    wrong: BTreeMap<String, (usize, String)>,
}

impl Tally {
    /// Of so many inputs.
    pub(super) fn of(cases: usize) -> Self {
        Self {
            cases,
            ..Self::default()
        }
    }

    pub(super) fn add(
        &mut self,
        name: &str,
        wrongly: bool,
        verdict: std::result::Result<(), String>,
    ) {
        self.tried += 1;
        self.wrongly_forwarded += usize::from(wrongly);
        let verdict = match verdict {
            Ok(()) if wrongly => Err("forwarded".to_owned()),
            verdict => verdict,
        };
        if let Err(why) = verdict {
            let entry = self.wrong.entry(name.to_owned());
            entry.or_insert((0, why)).0 += 1;
        }
    }

    /// Everything that was tried, what went wrong, and what it cost.
    pub(super) fn finding(&self, cost: &str) -> Finding {
        let wrong: usize = self.wrong.values().map(|(count, _)| count).sum();
        let (cases, tried, forwarded) = (self.cases, self.tried, self.wrongly_forwarded);
        let mut text = format!(
            "{cases} inputs, {tried} attempts, {forwarded} wrongly forwarded, {wrong} wrong; {cost}"
        );
        for (name, (count, why)) in self.wrong.iter().take(TOLD) {
            // Writing to a string does not fail.
            let _ = write!(text, "\n{count} x {name}: {why}");
        }
        if self.wrong.len() > TOLD {
            let _ = write!(text, "\nand {} more", self.wrong.len() - TOLD);
        }
        seen(wrong == 0 && tried > 0, text)
    }
}

/// Tries a table, which is made for a host, in these cuts through these doors.
pub(super) async fn try_table(
    stage: &Stage,
    origins: &[Capture],
    doors: &[Door],
    cuts: Cuts,
    table: impl Fn(&str) -> Vec<Case>,
) -> Result<Finding> {
    let cost = stage.cost()?;
    let mut dice = Dice::new(2_026);
    let tables: Vec<Vec<Case>> = stage.lanes.iter().map(|lane| table(&lane.host)).collect();
    let mut jobs = Vec::new();
    for (number, case) in tables.first().into_iter().flatten().enumerate() {
        for slicing in cuts.slicings(case.bytes.len(), &mut dice) {
            jobs.extend(doors.iter().map(|door| (number, slicing, *door)));
        }
    }
    let tally = RefCell::new(Tally::of(tables.first().map_or(0, Vec::len)));
    let next = Cell::new(0);
    let lanes = stage.lanes.iter().zip(origins).zip(&tables);
    let work = lanes.map(|((lane, origin), table)| {
        let (jobs, next, tally) = (&jobs, &next, &tally);
        async move {
            while let Some((number, slicing, door)) = jobs.get(next.get()).copied() {
                next.set(next.get() + 1);
                let case = &table[number];
                let (attempt, arrived) = try_once(case, slicing, door, lane, origin).await?;
                let verdict = judge(case, &attempt, &arrived).map_err(|why| {
                    let named = format!("{}: ", case.name);
                    let why = why.strip_prefix(&named).unwrap_or(&why);
                    let upstream = arrived.iter().map(|one| shown(&one.bytes));
                    let upstream = upstream.collect::<Vec<_>>().join(", ");
                    let (sent, got) = (shown(&case.bytes), shown(&attempt.received));
                    let door = door.name();
                    format!(
                        "{door}, {slicing:?}: {why}\n  sent {sent}\n  got {got}\n  upstream {upstream}"
                    )
                });
                let wrongly = is_wrong(case, &arrived);
                tally.borrow_mut().add(&case.name, wrongly, verdict);
            }
            Ok(())
        }
    });
    try_join_all(work).await?;
    let finding = tally.borrow().finding(&cost.text()?);
    Ok(finding)
}

/// One attempt, and what arrived at the origin.
pub(super) async fn try_once(
    case: &Case,
    slicing: Slicing,
    door: Door,
    lane: &Lane,
    origin: &Capture,
) -> Result<(Attempt, Vec<Connection>)> {
    let before = || format!("before {}", case.name);
    origin.forget(PATIENCE).await.context(before())?;
    let stream = connect(lane.door(door)).await?;
    let attempt = attempt(stream, &case.plan(slicing, BRIEF)).await;
    if matches!(case.expected.then, Then::Broken(_)) {
        flush(lane.door(door), &lane.host, origin).await?;
    }
    let mut arrived = origin.connections();
    arrived.iter_mut().for_each(cut_flush);
    Ok((attempt, arrived))
}

/// Of a request that broke off, a part may be on its way when its client knows of the end.
/// Returns when sidecar and origin have read what had arrived there before.
async fn flush(door: SocketAddr, host: &str, origin: &Capture) -> Result<()> {
    for address in [door, origin.address()] {
        let mut client = Client::new(connect(address).await?);
        let request = format!("{FLUSH}HTTP/1.1\r\nhost: {host}\r\n\r\n");
        client.exchange(request).await.context("a good request")?;
    }
    Ok(())
}

/// Without the requests of [`flush`].
fn cut_flush(connection: &mut Connection) {
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|w| w == what);
    while let Some(at) = find(&connection.bytes, FLUSH.as_bytes()) {
        let length = find(&connection.bytes[at..], b"\r\n\r\n").map_or(0, |end| end + 4);
        let end = if length == 0 {
            connection.bytes.len()
        } else {
            at + length
        };
        connection.bytes.drain(at..end);
    }
}

/// Whether something arrived that must not: bytes that are no strict request, a request that
/// nobody made, or more of them.
pub(super) fn is_wrong(case: &Case, arrived: &[Connection]) -> bool {
    let mut whole = 0;
    for connection in arrived {
        let Ok(reading) = connection.reading() else {
            return true;
        };
        let mut all = reading.messages.iter().chain(&reading.unfinished);
        if all.any(|message| message.target().contains("smug")) {
            return true;
        }
        whole += reading.messages.len();
    }
    whole > case.expected.requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_within_the_bytes() {
        let mut dice = Dice::new(1);
        assert_eq!(Cuts::All.slicings(4, &mut dice).len(), 5);
        assert_eq!(Cuts::Some(5).slicings(4, &mut dice).len(), 7);
        assert_eq!(Cuts::All.slicings(1, &mut dice).len(), 2);
        assert_eq!(Cuts::Some(5).slicings(1, &mut dice).len(), 2);
        let many = Cuts::All.slicings(5_000, &mut dice);
        assert_eq!((many.len(), many[1]), (52, Slicing::Pieces(3)));
        for slicing in many.into_iter().chain(Cuts::Some(5).slicings(2, &mut dice)) {
            assert!(slicing.of(&[0; 5_000]).concat().len() == 5_000);
        }
    }

    #[test]
    fn what_is_forwarded_wrongly_fails_whatever_the_verdict() {
        let mut tally = Tally::default();
        assert!(!tally.finding("").ok, "nothing was tried");
        tally.add("a", false, Ok(()));
        assert!(tally.finding("").ok);
        tally.add("b", true, Ok(()));
        let finding = tally.finding("cheap");
        let text = "0 inputs, 2 attempts, 1 wrongly forwarded, 1 wrong; cheap\n1 x b: forwarded";
        assert_eq!((finding.ok, &*finding.seen), (false, text));
    }

    #[test]
    fn a_request_too_many_is_wrong() {
        let case = weft_kit::cases::heads("a").remove(0);
        let arrived = |bytes: &str| {
            vec![Connection {
                bytes: bytes.as_bytes().to_vec(),
                ..Connection::default()
            }]
        };
        let good = "GET /case HTTP/1.1\r\nhost: a\r\n\r\n";
        assert!(!is_wrong(&case, &arrived(good)));
        assert!(is_wrong(&case, &arrived(&good.repeat(2))));
        assert!(is_wrong(&case, &arrived(&good.replace("case", "smug"))));
        assert!(is_wrong(&case, &arrived(&good.replace("\r\n", "\n"))));
    }

    #[test]
    fn only_flushes_are_cut() {
        let flush = "GET /flush HTTP/1.1\r\nhost: a\r\n\r\n";
        for (bytes, left) in [
            (flush.to_owned(), ""),
            (format!("ab{flush}cd{flush}"), "abcd"),
            ("GET /a\r\n\r\n".to_owned(), "GET /a\r\n\r\n"),
            ("aGET /flush HT".to_owned(), "a"),
        ] {
            let mut connection = Connection {
                bytes: bytes.into_bytes(),
                ..Connection::default()
            };
            cut_flush(&mut connection);
            assert_eq!(connection.bytes, left.as_bytes());
        }
    }
}
