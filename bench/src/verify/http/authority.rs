//! Authority (T4): a request has one or is refused; the one that the access logs of both
//! sidecars name is the one that the application sees.

use std::time::Duration;

use weft_kit::cases;
use weft_kit::origin::capture::Capture;
use weft_kit::strict::Asked;

use super::framing::{LANES, send, statuses};
use super::lanes::{Door, Lane, PATIENCE, Speaks, Stage};
use super::trial::{Cuts, try_table};
use crate::error::{Context as _, Result};
use crate::verify::{Cases, Finding, Setting, seen};
use crate::weft::Sidecar;

const FULL: Duration = Duration::from_secs(20 * 60);

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let mut origins = Vec::new();
    for _ in 0..LANES {
        origins.push(Capture::start().await.context("start an origin")?);
    }
    let apps: Vec<_> = origins
        .iter()
        .map(|o| (o.address(), Speaks::Http1))
        .collect();
    let log_all = |spec: crate::process::Spec| spec.env("WEFT_PROXY_ACCESS_LOG", "all");
    let stage = Stage::start_as(setting, &apps, "", log_all).await?;
    let cuts = Cuts::of(setting.quick);
    let check = try_table(&stage, &origins, &Door::BOTH, cuts, cases::authorities);
    cases
        .check_within(
            FULL,
            "authorities",
            "T4: 400, or one authority and that one upstream",
            check,
        )
        .await;
    let expected = "T4: access log of both sidecars and the application name the same authority";
    let check = same_everywhere(&stage, &origins[0]);
    cases.check("one-authority", expected, check).await;
    Ok(())
}

/// Spellings of an authority: request line and fields, without the path.
fn spellings(host: &str) -> Vec<String> {
    let upper = host.to_ascii_uppercase();
    let mut all = vec![format!("GET {{}} HTTP/1.1\r\nHost: {host}\r\n\r\n")];
    for spelling in [
        upper.clone(),
        format!("{host}:80"),
        format!("{upper}:80"),
        format!("{host}.svc"),
        format!("{host}.svc.cluster.local"),
        format!("{host}."),
        format!("{host}:8080"),
        format!("{host}:080"),
        format!("{host}:"),
        "127.0.0.1".to_owned(),
        "[::1]:80".to_owned(),
        "xn--nxasmq6b".to_owned(),
    ] {
        all.push(format!("GET {{}} HTTP/1.1\r\nHost: {spelling}\r\n\r\n"));
    }
    for (target, field) in [
        (host, host),
        (&*upper, host),
        (host, &*upper),
        (&*format!("{host}:80"), host),
        (host, &*format!("{host}:80")),
        (&*format!("{host}."), host),
    ] {
        all.push(format!(
            "GET http://{target}{{}} HTTP/1.1\r\nHost: {field}\r\n\r\n"
        ));
    }
    all.push(format!("GET http://{host}{{}} HTTP/1.0\r\n\r\n"));
    all.push(format!("GET {{}} HTTP/1.0\r\nHost: {host}\r\n\r\n"));
    all
}

async fn same_everywhere(stage: &Stage, origin: &Capture) -> Result<Finding> {
    let lane: &Lane = &stage.lanes[0];
    let (mut passed, mut refused, mut wrong) = (0, 0, Vec::new());
    for door in Door::BOTH {
        for (number, spelling) in spellings(&lane.host).iter().enumerate() {
            origin.forget(PATIENCE).await.context("an origin")?;
            let path = format!("/{}-{number}", door.name());
            let bytes = spelling.replace("{}", &path);
            let attempt = send(lane, door, bytes, &[Asked::Plain]).await?;
            let statuses = statuses(&attempt, &[Asked::Plain])?;
            let arrived = origin.connections();
            let mut readings = arrived.iter().filter_map(|c| c.reading().ok());
            let upstream = readings.find_map(|reading| reading.messages.into_iter().next());
            let Some(request) = upstream else {
                refused += 1;
                let is_refused = matches!(statuses[..], [400 | 404 | 421 | 502 | 503]);
                if !is_refused {
                    wrong.push(format!("{}, {spelling:?}: {statuses:?}", door.name()));
                }
                continue;
            };
            passed += 1;
            let host = request.header("host").unwrap_or_default().to_owned();
            let mut sidecars = vec![&stage.server];
            if door == Door::Outbound {
                sidecars.push(&stage.client);
            }
            for sidecar in sidecars {
                let logged = logged(sidecar, &path).await?;
                if logged != host || request.values("host").len() != 1 || host.is_empty() {
                    let name = &sidecar.process.name;
                    wrong.push(format!(
                        "{spelling:?}: {name} logs {logged:?}, upstream has {host:?}"
                    ));
                }
            }
        }
    }
    let text = format!("{passed} passed, {refused} refused, {} differ", wrong.len());
    let ok = wrong.is_empty() && passed > 0 && refused > 0;
    wrong.insert(0, text);
    Ok(seen(ok, wrong.join("\n")))
}

/// The authority in the access log's line about a path; it is written behind the answer.
async fn logged(sidecar: &Sidecar, path: &str) -> Result<String> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let output = sidecar.process.output();
        let mut lines = output.lines().filter(|line| line.starts_with('{'));
        let line = lines.find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            (line["url.path"] == path).then_some(line)
        });
        if let Some(line) = line {
            return Ok(line["server.address"]
                .as_str()
                .unwrap_or_default()
                .to_owned());
        }
        let what = format!("{} logs nothing about {path}", sidecar.process.name);
        (tokio::time::Instant::now() < deadline)
            .then_some(())
            .context(what)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::spellings;

    #[test]
    fn each_spelling_has_a_place_for_the_path() {
        let all = spellings("a.b");
        assert!(all.iter().all(|one| one.matches("{}").count() == 1));
        assert!(all.contains(&"GET http://A.B{} HTTP/1.1\r\nHost: a.b\r\n\r\n".to_owned()));
    }
}
