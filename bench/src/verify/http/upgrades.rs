//! Switches of protocols (T5) by clients that do not wait: what follows the head is held until
//! the server has agreed, and is nobody's request if it has not.

use std::time::Duration;

use tokio::time::timeout;
use weft_kit::raw1::{Client, End};
use weft_kit::strict::{Asked, Message};

use super::framing::{send, statuses};
use super::lanes::{Door, Lane, PATIENCE, Stage, connect};
use super::puppet::{Act, Puppet};
use crate::error::{Context as _, Error, Result};
use crate::verify::{Cases, Finding, Setting, seen};

/// What a client sends too early: a request for who takes it for HTTP.
const EARLY: &str = "GET /smug HTTP/1.1\r\nhost: smug\r\n\r\n";
const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let puppet = Puppet::start(play).await?;
    let mut stage = Stage::start(setting, &[puppet.address()]).await?;
    let lane = stage.lanes[0].clone();
    cases
        .check(
            "agreed",
            "T5: after 101 the early bytes arrive once, as they are, and come back",
            agreed(&lane, &puppet),
        )
        .await;
    for (name, target, expected) in [
        (
            "other-answer",
            "/200",
            "T5: 200 for an upgrade: it is passed, the early bytes are dropped, the connection ends",
        ),
        ("refused", "/403", "T5: 403 for an upgrade: the same"),
        ("interim", "/interim", "T5: 100 and 103, then 403: the same"),
        (
            "other-protocol",
            "/other",
            "T5: 101 to another protocol: 502, the same",
        ),
        (
            "closed",
            "/close",
            "T5: no answer and the end: 502, the same",
        ),
    ] {
        cases
            .check(name, expected, not_agreed(&lane, &puppet, target))
            .await;
    }
    cases
        .check(
            "no-answer",
            "T5: as long as there is no answer the server gets no early byte, nor when the client leaves",
            no_answer(&lane, &puppet),
        )
        .await;
    cases
        .check(
            "not-http-upgrades",
            "T5: h2c and others are stripped with their fields; a switch with a body is 400",
            stripped(&lane, &puppet),
        )
        .await;
    cases
        .check(
            "connect",
            "T5: CONNECT: early bytes go through the tunnel after 200; to nobody: 4xx or 5xx, they are dropped, the end",
            tunnels(&lane, &puppet),
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

fn play(request: &Message) -> Act {
    let empty = |line: &str| format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n").into_bytes();
    let target = request.target();
    let target = target.rsplit_once('-').map_or(target, |(target, _)| target);
    match target {
        "/101" => Act::Switch(AGREED.as_bytes().to_vec()),
        "/403" => Act::Answer(empty("403 Forbidden")),
        "/interim" => {
            let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n";
            Act::Answer([interim.as_bytes(), &empty("403 Forbidden")].concat())
        }
        "/other" => Act::Switch(
            AGREED
                .replace("upgrade: websocket", "upgrade: other")
                .into_bytes(),
        ),
        "/close" => Act::Last(Vec::new()),
        "/nothing" => Act::Stay(Vec::new()),
        _ => Act::Answer(empty("200 OK")),
    }
}

fn upgrade(lane: &Lane, target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        lane.host
    )
}

/// What must never happen: an early byte that was taken for a request, or that has arrived
/// though it must not.
fn smuggled(puppet: &Puppet, target: &str) -> Option<String> {
    for heard in puppet.heard() {
        let targets = heard.targets();
        if targets.contains(&"/smug") {
            return Some("the early bytes became a request".to_owned());
        }
        if let Some(violation) = &heard.violation {
            return Some(violation.clone());
        }
        if targets.contains(&target) && !heard.after.is_empty() {
            return Some(format!("{} early bytes arrived", heard.after.len()));
        }
    }
    None
}

async fn agreed(lane: &Lane, puppet: &Puppet) -> Result<Finding> {
    for door in Door::BOTH {
        let target = format!("/101-{}", door.name());
        let mut client = Client::new(connect(lane.door(door)).await?);
        client
            .send(upgrade(lane, &target) + EARLY)
            .await
            .context("write")?;
        let status = client.answer().await.context("the answer")?.status();
        let mut back = Vec::new();
        while status == 101 && back.len() < EARLY.len() {
            let bytes = client.opaque().await.context("the echo")?;
            if bytes.is_empty() {
                break;
            }
            back.extend(bytes);
        }
        let heard = puppet
            .heard_of(&target)
            .context("the request did not arrive")?;
        let right = status == 101 && back == EARLY.as_bytes() && heard.after == EARLY.as_bytes();
        if !right || puppet.heard_of("/smug").is_some() {
            let (arrived, door) = (heard.after.len(), door.name());
            let back = back.len();
            let what = format!("{door}: {status}, {arrived} bytes arrived, {back} came back");
            return Ok(seen(false, what));
        }
    }
    Ok(seen(
        true,
        format!("{} bytes each way, both doors", EARLY.len()),
    ))
}

async fn not_agreed(lane: &Lane, puppet: &Puppet, target: &str) -> Result<Finding> {
    let wanted = match target {
        "/200" => 200,
        "/403" | "/interim" => 403,
        _ => 502,
    };
    let mut text = Vec::new();
    let mut ok = true;
    for door in Door::BOTH {
        let target = format!("{target}-{}", door.name());
        let bytes = upgrade(lane, &target) + EARLY;
        let asked = [Asked::Upgrade, Asked::Plain, Asked::Plain];
        let attempt = send(lane, door, bytes, &asked).await?;
        let statuses = statuses(&attempt, &asked)?;
        let smuggled = smuggled(puppet, &target);
        ok &= statuses == [wanted] && attempt.end != End::Open && smuggled.is_none();
        let (door, end) = (door.name(), attempt.end);
        text.push(format!(
            "{door}: {statuses:?}, {end:?}, {}",
            smuggled.as_deref().unwrap_or("nothing passed")
        ));
    }
    Ok(seen(ok, text.join("; ")))
}

async fn no_answer(lane: &Lane, puppet: &Puppet) -> Result<Finding> {
    for door in Door::BOTH {
        let target = format!("/nothing-{}", door.name());
        let mut client = Client::new(connect(lane.door(door)).await?);
        client
            .write(upgrade(lane, &target))
            .await
            .context("write")?;
        until(|| puppet.heard_of(&target).is_some(), "the request").await?;
        client.write(EARLY.repeat(100)).await.context("write")?;
        // What another client asks after that is answered: the sidecar has been through.
        let mut other = Client::new(connect(lane.door(door)).await?);
        let request = format!("GET /200-other HTTP/1.1\r\nhost: {}\r\n\r\n", lane.host);
        other.exchange(request).await.context("another client")?;
        if let Some(what) = smuggled(puppet, &target) {
            return Ok(seen(false, format!("{}: {what}", door.name())));
        }
        drop(client);
        let ended = || puppet.heard_of(&target).is_some_and(|heard| heard.ended);
        until(ended, "the end of the connection to the server").await?;
        if let Some(what) = smuggled(puppet, &target) {
            return Ok(seen(
                false,
                format!("{}, after the end: {what}", door.name()),
            ));
        }
    }
    Ok(seen(true, "0 bytes arrived, both doors"))
}

async fn until(is_so: impl Fn() -> bool, what: &str) -> Result<()> {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting)
        .await
        .context(format!("no sign of {what}"))
}

async fn stripped(lane: &Lane, puppet: &Puppet) -> Result<Finding> {
    let host = &lane.host;
    let body = "content-length: 5\r\n\r\nhello";
    let h2c =
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__";
    let socket = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: a";
    let rows = [
        (
            "h2c",
            format!("GET /s-0 HTTP/1.1\r\nhost: {host}\r\n{h2c}\r\n\r\n"),
            200,
        ),
        (
            "h2c of POST",
            format!("POST /s-1 HTTP/1.1\r\nhost: {host}\r\n{h2c}\r\n{body}"),
            200,
        ),
        (
            "TLS",
            format!(
                "GET /s-2 HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: TLS/1.3\r\n\r\n"
            ),
            200,
        ),
        (
            "unknown",
            format!(
                "GET /s-3 HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: a, b\r\n\r\n"
            ),
            200,
        ),
        (
            "not in Connection",
            format!("GET /s-4 HTTP/1.1\r\nhost: {host}\r\nupgrade: websocket\r\n\r\n"),
            200,
        ),
        (
            "HTTP/1.0",
            format!("GET /s-5 HTTP/1.0\r\nhost: {host}\r\n{socket}\r\n\r\n"),
            200,
        ),
        (
            "WebSocket of POST",
            format!("POST /s-6 HTTP/1.1\r\nhost: {host}\r\n{socket}\r\n{body}"),
            400,
        ),
        (
            "WebSocket with a body",
            format!("GET /s-7 HTTP/1.1\r\nhost: {host}\r\n{socket}\r\n{body}"),
            400,
        ),
    ];
    let mut tried = 0;
    for (name, request, wanted) in rows {
        for door in Door::BOTH {
            let request = request.replace("/s-", &format!("/s{}-", door.name()));
            let asked = [Asked::Plain];
            let attempt = send(lane, door, request.as_bytes(), &asked).await?;
            let statuses = statuses(&attempt, &asked)?;
            let target = request.split(' ').nth(1).unwrap_or_default();
            let heard = puppet.heard_of(target);
            let request = heard
                .iter()
                .flat_map(|h| &h.requests)
                .find(|r| r.target() == target);
            let fields: Vec<String> = request
                .into_iter()
                .flat_map(|r| &r.fields)
                .map(|f| f.name.to_ascii_lowercase())
                .collect();
            let passed = ["upgrade", "http2-settings", "connection"];
            let passed: Vec<_> = passed
                .into_iter()
                .filter(|name| fields.iter().any(|f| f == name))
                .collect();
            let right =
                statuses == [wanted] && passed.is_empty() && request.is_some() == (wanted == 200);
            if !right {
                let door = door.name();
                let what = format!(
                    "{name}, {door}: {statuses:?} instead of {wanted}, upstream {fields:?}"
                );
                return Ok(seen(false, what));
            }
            tried += 1;
        }
    }
    Ok(seen(true, format!("{tried} attempts, 0 wrongly forwarded")))
}

async fn tunnels(lane: &Lane, puppet: &Puppet) -> Result<Finding> {
    let host = &lane.host;
    // The early bytes are a request to the service in the tunnel.
    let inner = format!("GET /200-tunnel HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let mut client = Client::new(connect(lane.door(Door::Outbound)).await?);
    let head = format!("CONNECT {host}:80 HTTP/1.1\r\nhost: {host}:80\r\n\r\n");
    client.send(head + &inner).await.context("write")?;
    let status = client.answer().await.context("the answer")?.status();
    let mut back = Vec::new();
    while status == 200 && !back.ends_with(b"\r\n\r\n") {
        let bytes = client.opaque().await.context("the tunnel")?;
        if bytes.is_empty() {
            break;
        }
        back.extend(bytes);
    }
    let through = puppet.heard_of("/200-tunnel").is_some();
    if status != 200 || !through || !back.starts_with(b"HTTP/1.1 200") {
        let back = super::lanes::shown(&back);
        return Ok(seen(false, format!("{status}, arrived: {through}, {back}")));
    }
    let mut text = vec!["through the tunnel".to_owned()];
    for (door, to) in [
        (Door::Outbound, "nobody.bench:80"),
        (Door::Outbound, "127.0.0.1:1"),
        (Door::Inbound, &*format!("{host}:80")),
    ] {
        let bytes = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n{EARLY}");
        let asked = [Asked::Connect, Asked::Plain, Asked::Plain];
        let attempt = send(lane, door, bytes, &asked).await?;
        let statuses = statuses(&attempt, &asked)?;
        let refused = matches!(statuses[..], [400..=599]) && attempt.end != End::Open;
        let what = format!("{to}, {}: {statuses:?}, {:?}", door.name(), attempt.end);
        if !refused || puppet.heard_of("/smug").is_some() {
            return Ok(seen(false, what));
        }
        text.push(what);
    }
    if text.len() < 4 {
        return Err(Error::new("not all were tried"));
    }
    Ok(seen(true, text.join("; ")))
}
