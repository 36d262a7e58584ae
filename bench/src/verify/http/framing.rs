//! Framing (T1, T2, T3, T8, T10): every payload of the kit in many slicings through both doors,
//! judged by its strict reader at an origin that keeps every byte; both sides of every number;
//! heads that drip and bodies in the smallest pieces.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::io::AsyncWriteExt as _;
use weft_kit::cases::{self, Case, FEW, Numbers};
use weft_kit::origin::capture::{Capture, Connection};
use weft_kit::raw1::{Attempt, Client, Plan, Slicing, attempt};
use weft_kit::strict::{self, Asked};

use super::lanes::{Door, Lane, PATIENCE, Stage, connect, shown};
use super::trial::{Cuts, try_table};
use crate::error::{Context as _, Result};
use crate::verify::{Cases, Finding, Setting, seen};

/// Origins, and attempts at one time.
pub(super) const LANES: usize = 8;
const FULL: Duration = Duration::from_secs(40 * 60);
/// The defaults of docs/limits.md, and what sidecars add to a request on its way.
const NUMBERS: Numbers = Numbers {
    head: 65_536,
    target: 32_768,
    fields: 100,
    trailer: 16_384,
    extension: 256,
    added: (0, 0),
};
/// The bytes of all chunk extensions of one body.
const EXTENSIONS: usize = 16_384;

type Table = fn(&str) -> Vec<Case>;

/// Each byte in each place of a coding.
fn every_coding(host: &str) -> Vec<Case> {
    let bytes: Vec<u8> = (0..=255).collect();
    cases::codings(host, &bytes)
}

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let (origins, mut stage) = captured(setting).await?;
    let cuts = Cuts::of(setting.quick);
    let codings: Table = match setting.quick {
        true => |host| cases::codings(host, FEW),
        false => every_coding,
    };
    let tables: [(&str, &str, Table); 4] = [
        (
            "heads",
            "T1, T2: refused, or one reading upstream",
            cases::heads,
        ),
        (
            "codings",
            "T2, T3: exactly `chunked`, once, without a length; else 400 or 501 and nothing upstream",
            codings,
        ),
        (
            "chunks",
            "T10: a body that is not strictly chunked never ends well upstream; trailers stay trailers",
            cases::chunks,
        ),
        (
            "limits",
            "T8: just within the numbers passes, just above is 431, 414 or the end",
            |host| cases::limits(host, &NUMBERS),
        ),
    ];
    for (name, expected, table) in tables {
        let check = try_table(&stage, &origins, &Door::BOTH, cuts, table);
        cases.check_within(FULL, name, expected, check).await;
    }
    let (lane, origin) = (stage.lanes[0].clone(), &origins[0]);
    cases
        .check(
            "lengths",
            "T2: 400, the connection ends, 0 bytes upstream",
            lengths(&lane, origin),
        )
        .await;
    let held = if setting.quick { 100 } else { 1_000 };
    cases
        .check(
            "heads-held",
            format!(
                "T8: {held} heads of 64,000 bytes without their end: at most twice that in memory"
            ),
            heads_held(&stage, held),
        )
        .await;
    cases
        .check(
            "head-dripped",
            "T8: 1,000,000 bytes of a head in pieces of 100: 431 as soon as they are too many",
            head_dripped(&stage),
        )
        .await;
    let chunks = if setting.quick { 50_000 } else { 1_000_000 };
    cases
        .check_within(
            FULL,
            "chunks-of-a-byte",
            format!("T10: {chunks} chunks of one byte arrive; less than 4 MiB of memory more"),
            chunks_of_a_byte(&stage, origin, chunks),
        )
        .await;
    cases
        .check(
            "extensions",
            format!(
                "T10: extensions of a body up to {EXTENSIONS} bytes in sum; above them it is broken"
            ),
            extensions(&lane, origin),
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

/// A stage whose origins keep every byte.
pub(super) async fn captured(setting: &Setting) -> Result<(Vec<Capture>, Stage)> {
    let mut origins = Vec::new();
    for _ in 0..LANES {
        origins.push(Capture::start().await.context("start an origin")?);
    }
    let apps: Vec<_> = origins.iter().map(Capture::address).collect();
    let stage = Stage::start(setting, &apps).await?;
    Ok((origins, stage))
}

/// Writes bytes through a door, and says what came back.
pub(super) async fn send(
    lane: &Lane,
    door: Door,
    bytes: impl Into<Vec<u8>>,
    asked: &[Asked],
) -> Result<Attempt> {
    let plan = Plan {
        bytes: bytes.into(),
        slicing: Slicing::Whole,
        asked: asked.to_vec(),
        then_half_close: false,
        patience: PATIENCE,
    };
    Ok(attempt(connect(lane.door(door)).await?, &plan).await)
}

/// The statuses of what came back; an error if it is not strictly answers.
pub(super) fn statuses(attempt: &Attempt, asked: &[Asked]) -> Result<Vec<u16>> {
    let reading = strict::answers(&attempt.received, asked).context(shown(&attempt.received))?;
    let all = reading.messages.iter().map(strict::Message::status);
    Ok(all.filter(|status| *status >= 200).collect())
}

async fn lengths(lane: &Lane, origin: &Capture) -> Result<Finding> {
    let host = &lane.host;
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    let bodies = [
        (
            "length and coding",
            format!(
                "POST /smug HTTP/1.1\r\nhost: {host}\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"
            ),
        ),
        (
            "coding and length",
            format!(
                "POST /smug HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\ncontent-length: 15\r\n\r\n{chunked}"
            ),
        ),
        (
            "coding in HTTP/1.0",
            format!(
                "POST /smug HTTP/1.0\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"
            ),
        ),
        (
            "coding and length in HTTP/1.0",
            format!(
                "POST /smug HTTP/1.0\r\nhost: {host}\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\ncontent-length: 15\r\n\r\n{chunked}"
            ),
        ),
    ];
    let mut tried = 0;
    for (name, bytes) in &bodies {
        for door in Door::BOTH {
            origin.forget(PATIENCE).await.context(name)?;
            let attempt = send(lane, door, bytes.as_bytes(), &[Asked::Plain; 2]).await?;
            let statuses = statuses(&attempt, &[Asked::Plain; 2])?;
            let upstream: usize = origin.connections().iter().map(|c| c.bytes.len()).sum();
            let door = door.name();
            if statuses != [400] || upstream > 0 || attempt.end == weft_kit::raw1::End::Open {
                let end = attempt.end;
                let what =
                    format!("{name}, {door}: {statuses:?}, {end:?}, {upstream} bytes upstream");
                return Ok(seen(false, what));
            }
            tried += 1;
        }
    }
    // Without a length there is no body (RFC 9112, 6.3): what follows must never become one.
    for door in Door::BOTH {
        origin.forget(PATIENCE).await.context("HTTP/1.0")?;
        let bytes =
            format!("POST /case HTTP/1.0\r\nhost: {host}\r\n\r\nGET /smug HTTP/1.0\r\n\r\n");
        send(lane, door, bytes, &[Asked::Plain; 2]).await?;
        let arrived = origin.connections();
        let smuggled = arrived
            .iter()
            .any(|c| c.contains("/smug") || c.reading().is_err());
        if smuggled {
            let bytes: Vec<_> = arrived.iter().map(|c| shown(&c.bytes)).collect();
            return Ok(seen(
                false,
                format!("HTTP/1.0 without a length: {bytes:?} upstream"),
            ));
        }
        tried += 1;
    }
    Ok(seen(true, format!("{tried} attempts, 0 wrongly forwarded")))
}

/// Memory that heads cost which are not complete.
async fn heads_held(stage: &Stage, connections: usize) -> Result<Finding> {
    const HEAD: usize = 64_000;
    let lane = &stage.lanes[0];
    let start = format!("GET /held HTTP/1.1\r\nhost: {}\r\n", lane.host);
    let idle = try_join_all((0..connections).map(|_| connect(lane.door(Door::Inbound)))).await?;
    drop(idle);
    let cost = stage.cost()?;
    let hold = || async {
        let mut stream = connect(lane.door(Door::Inbound)).await?;
        let line = format!("a: {}\r\n", "x".repeat(995));
        let lines = line.repeat(HEAD / 1_000 - 1);
        stream.write_all(start.as_bytes()).await.context("write")?;
        stream.write_all(lines.as_bytes()).await.context("write")?;
        Ok(stream)
    };
    let held: Vec<_> = try_join_all((0..connections).map(|_| hold())).await?;
    let took = bytes_taken(stage, lane).await?;
    let growth = usize::try_from(cost.growth()?).unwrap_or(usize::MAX);
    drop(held);
    let each = growth / connections;
    Ok(seen(
        took && each <= 2 * 65_536,
        format!(
            "{each} bytes a connection of {connections}; {}",
            cost.text()?
        ),
    ))
}

/// Whether a request of another client still goes through; what was sent before it has been
/// read by then.
async fn bytes_taken(stage: &Stage, lane: &Lane) -> Result<bool> {
    let mut client = Client::new(connect(lane.door(Door::Inbound)).await?);
    let request = format!(
        "GET /other HTTP/1.1\r\nhost: {}\r\n\r\n",
        stage.lanes[0].host
    );
    let answer = client.exchange(request).await.context("another client")?;
    Ok(answer.status() == 200)
}

async fn head_dripped(stage: &Stage) -> Result<Finding> {
    const ALL: usize = 1_000_000;
    let mut text = Vec::new();
    let mut ok = true;
    for door in Door::BOTH {
        let lane = &stage.lanes[0];
        let cost = stage.cost()?;
        let head = format!("GET /case HTTP/1.1\r\nhost: {}\r\na: ", lane.host);
        let bytes = [head.into_bytes(), vec![b'x'; ALL]].concat();
        let plan = Plan {
            bytes,
            slicing: Slicing::Pieces(100),
            asked: vec![Asked::Plain; 2],
            then_half_close: false,
            patience: PATIENCE,
        };
        let attempt = attempt(connect(lane.door(door)).await?, &plan).await;
        let statuses = statuses(&attempt, &[Asked::Plain])?;
        let growth = cost.growth()?;
        ok &= statuses == [431] && growth < 2 << 20;
        let end = attempt.end;
        let door = door.name();
        text.push(format!(
            "{door}: {statuses:?}, {end:?}, {} KiB more; {}",
            growth >> 10,
            cost.text()?
        ));
    }
    Ok(seen(ok, text.join("; ")))
}

async fn chunks_of_a_byte(stage: &Stage, origin: &Capture, chunks: usize) -> Result<Finding> {
    let mut text = Vec::new();
    let mut ok = true;
    for door in Door::BOTH {
        origin.forget(PATIENCE).await.context("an origin")?;
        let cost = stage.cost()?;
        let lane = &stage.lanes[0];
        let host = &lane.host;
        let head =
            format!("POST /case HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut bytes = head.into_bytes();
        for n in 0..chunks {
            bytes.extend([
                b'1',
                b'\r',
                b'\n',
                b'a' + u8::try_from(n % 26).unwrap_or(0),
                b'\r',
                b'\n',
            ]);
        }
        bytes.extend(b"0\r\n\r\n");
        let plan = Plan {
            bytes,
            slicing: Slicing::Whole,
            asked: vec![Asked::Plain],
            then_half_close: false,
            patience: FULL,
        };
        let attempt = attempt(connect(lane.door(door)).await?, &plan).await;
        let statuses = statuses(&attempt, &[Asked::Plain])?;
        let arrived = bodies(&origin.connections());
        let growth = cost.growth()?;
        let right = |body: &Vec<u8>| {
            let letters = (0..chunks).map(|n| b'a' + u8::try_from(n % 26).unwrap_or(0));
            body.iter().copied().eq(letters)
        };
        ok &=
            statuses == [200] && matches!(&arrived[..], [body] if right(body)) && growth < 4 << 20;
        let lengths: Vec<usize> = arrived.iter().map(Vec::len).collect();
        let door = door.name();
        text.push(format!(
            "{door}: {statuses:?}, bodies of {lengths:?} bytes, {} KiB more; {}",
            growth >> 10,
            cost.text()?
        ));
    }
    Ok(seen(ok, text.join("; ")))
}

fn bodies(connections: &[Connection]) -> Vec<Vec<u8>> {
    let readings = connections.iter().filter_map(|c| c.reading().ok());
    let messages = readings.flat_map(|reading| reading.messages);
    messages.map(|message| message.body).collect()
}

async fn extensions(lane: &Lane, origin: &Capture) -> Result<Finding> {
    let host = &lane.host;
    let with = |chunks: usize| {
        let chunk = format!("1;{}\r\nx\r\n", "e".repeat(199));
        let body = chunk.repeat(chunks);
        format!(
            "POST /case HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n{body}0\r\n\r\n"
        )
    };
    let (within, above) = (EXTENSIONS / 200 - 1, EXTENSIONS / 200 + 20);
    let (mut text, mut ok) = (Vec::new(), true);
    for (chunks, fits) in [(within, true), (above, false)] {
        for door in Door::BOTH {
            origin.forget(PATIENCE).await.context("an origin")?;
            let asked = if fits {
                &[Asked::Plain][..]
            } else {
                &[Asked::Plain; 2]
            };
            let attempt = send(lane, door, with(chunks), asked).await?;
            let statuses = statuses(&attempt, asked)?;
            let arrived = bodies(&origin.connections());
            ok &= match fits {
                true => statuses == [200] && matches!(&arrived[..], [body] if body.len() == chunks),
                false => arrived.is_empty() && matches!(statuses[..], [] | [400]),
            };
            let door = door.name();
            let whole = arrived.len();
            text.push(format!(
                "{door}, {chunks} of 200 bytes: {statuses:?}, {whole} whole"
            ));
        }
    }
    Ok(seen(ok, text.join("; ")))
}
