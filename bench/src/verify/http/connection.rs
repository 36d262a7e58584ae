//! What is for one connection ends there (T7), in both directions; what is not cannot be taken
//! away by naming it, and nobody but the mesh speaks in the mesh's own fields.

use std::time::Duration;

use weft_kit::cases;
use weft_kit::origin::capture::Capture;
use weft_kit::raw1::Client;
use weft_kit::strict::Message;

use super::framing::LANES;
use super::lanes::{Door, PATIENCE, Stage, connect};
use super::trial::{Cuts, try_table};
use crate::error::{Context as _, Result};
use crate::verify::{Cases, Finding, Setting, seen};

const FULL: Duration = Duration::from_secs(20 * 60);

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let mut origins = Vec::new();
    for _ in 0..LANES {
        origins.push(Capture::answering(answer).await.context("an origin")?);
    }
    let apps: Vec<_> = origins.iter().map(Capture::address).collect();
    let stage = Stage::start(setting, &apps).await?;
    let cuts = Cuts::of(setting.quick);
    let check = try_table(&stage, &origins, &Door::BOTH, cuts, cases::connection);
    cases
        .check_within(
            FULL,
            "requests",
            "T7: hop-by-hop fields end, a protected one that is named there is 400",
            check,
        )
        .await;
    let expected = "T7: no field of the mesh's own passes from a client";
    cases
        .check("own-fields", expected, own_fields(&stage, &origins[0]))
        .await;
    cases
        .check(
            "answers",
            "T7: hop-by-hop fields of an answer end, all others pass; one that is not a token or protected is 502",
            answers(&stage),
        )
        .await;
    Ok(())
}

/// Fields that only the mesh may set, as a client would send them.
const OWN: [&str; 4] = [
    "weft-reason: forged",
    "Weft-Peer: spiffe://bench.test/ns/bench/sa/admin",
    "weft-anything: 1",
    "WEFT-REASON: forged",
];

async fn own_fields(stage: &Stage, origin: &Capture) -> Result<Finding> {
    let mut tried = 0;
    for door in Door::BOTH {
        for field in OWN {
            origin.forget(PATIENCE).await.context("an origin")?;
            let lane = &stage.lanes[0];
            let mut client = Client::new(connect(lane.door(door)).await?);
            let host = &lane.host;
            let request =
                format!("GET /own HTTP/1.1\r\nhost: {host}\r\n{field}\r\nx-end: 2\r\n\r\n");
            let answer = client.exchange(request).await.context(field)?;
            let arrived = origin.connections();
            let forged = arrived.iter().any(|c| {
                let bytes = c.bytes.to_ascii_lowercase();
                bytes.windows(7).any(|w| w == b"\r\nweft-")
            });
            let whole = arrived.iter().any(|c| c.contains("x-end: 2"));
            if answer.status() != 200 || forged || !whole {
                let (status, door) = (answer.status(), door.name());
                let what =
                    format!("{field}, {door}: {status}, passed: {forged}, the rest: {whole}");
                return Ok(seen(false, what));
            }
            tried += 1;
        }
    }
    Ok(seen(true, format!("{tried} attempts, 0 wrongly forwarded")))
}

/// Fields of an answer, and whether it must be refused for them.
const ANSWERS: [(&str, &str, bool); 9] = [
    (
        "/listed",
        "Connection: x-hop, keep-alive\r\nx-hop: 1\r\nKeep-Alive: timeout=5\r\nx-end: 2\r\n",
        false,
    ),
    (
        "/twice",
        "Connection: x-hop\r\nConnection: x-leap\r\nx-hop: 1\r\nx-leap: 1\r\nx-end: 2\r\n",
        false,
    ),
    (
        "/proxy",
        "Proxy-Connection: keep-alive\r\nx-end: 2\r\n",
        false,
    ),
    (
        "/upgrade",
        "Upgrade: h2c\r\nConnection: upgrade\r\nx-end: 2\r\n",
        false,
    ),
    (
        "/mesh",
        "weft-reason: forged\r\nWeft-Peer: forged\r\nx-end: 2\r\n",
        false,
    ),
    (
        "/empty",
        "Connection: ,, ,x-hop,\r\nx-hop: 1\r\nx-end: 2\r\n",
        false,
    ),
    (
        "/cookie",
        "Connection: set-cookie\r\nSet-Cookie: a=b\r\nx-end: 2\r\n",
        true,
    ),
    (
        "/length",
        "Connection: content-length\r\nx-end: 2\r\n",
        true,
    ),
    ("/no-token", "Connection: a b\r\nx-end: 2\r\n", true),
];

fn answer(request: &Message) -> Vec<u8> {
    let row = ANSWERS
        .iter()
        .find(|(target, ..)| *target == request.target());
    let fields = row.map_or("", |(_, fields, _)| fields);
    format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{fields}\r\nok").into_bytes()
}

async fn answers(stage: &Stage) -> Result<Finding> {
    /// What must not be seen beyond the connection that it was for.
    const ENDS: [&str; 6] = [
        "x-hop",
        "x-leap",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "weft-peer",
    ];
    let mut wrong = Vec::new();
    let mut tried = 0;
    for door in Door::BOTH {
        for (target, _, refused) in ANSWERS {
            let lane = &stage.lanes[tried % stage.lanes.len()];
            let mut client = Client::new(connect(lane.door(door)).await?);
            let request = format!("GET {target} HTTP/1.1\r\nhost: {}\r\n\r\n", lane.host);
            let answer = client.exchange(request).await.context(target)?;
            let mut passed: Vec<&str> = ENDS
                .into_iter()
                .filter(|name| answer.header(name).is_some())
                .collect();
            if answer.header("weft-reason") == Some("forged") {
                passed.push("weft-reason");
            }
            let (status, end) = (answer.status(), answer.header("x-end"));
            let right = match refused {
                true => status == 502 && end.is_none(),
                false => status == 200 && end == Some("2") && passed.is_empty(),
            };
            if !right {
                wrong.push(format!(
                    "{target}, {}: {status}, passed {passed:?}, x-end {end:?}",
                    door.name()
                ));
            }
            tried += 1;
        }
    }
    let text = format!("{tried} answers, {} wrong", wrong.len());
    let ok = wrong.is_empty();
    wrong.insert(0, text);
    Ok(seen(ok, wrong.join("\n")))
}
