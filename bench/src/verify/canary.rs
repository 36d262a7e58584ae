//! Canary: a route is edited and the control plane restarted while requests flow.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::world::{World, failures, route};
use super::{Cases, Finding, Setting, seen};
use crate::error::Result;
use crate::load::rate::Sample;
use crate::process::exit_text;

/// From the rename of the file to the first request under the new weights.
const IN_FORCE: Duration = Duration::from_millis(200);

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let mut world = World::start(
        setting,
        &["v1", "v2"],
        &route(&[("echo-v1", 90), ("echo-v2", 10)]),
    )
    .await?;
    world
        .until_answered("echo.bench", |reply| reply.version == "v2")
        .await?;
    let half = Duration::from_secs_f64(if setting.quick { 1.5 } else { 5.0 });
    cases
        .check(
            "edit-under-load",
            "90/10 to 0/100 at 500 requests/s: in force in < 200 ms, 0 failed",
            edit(&world, half),
        )
        .await;
    cases
        .check(
            "restart-of-control",
            "weft-control restarted at 500 requests/s: exits 0, 0 failed, and a later edit is in force",
            restart(&mut world),
        )
        .await;
    let rest = if setting.quick {
        Duration::from_secs(2)
    } else {
        Duration::from_secs(5)
    };
    cases
        .check(
            "without-control",
            "weft-control stopped: 0 failed",
            without_control(&mut world, rest),
        )
        .await;
    Ok(())
}

async fn edit(world: &World, half: Duration) -> Result<Finding> {
    let load = world.load()?;
    sleep(half).await;
    let renamed = world
        .control
        .write("route.yaml", &route(&[("echo-v1", 0), ("echo-v2", 100)]))?;
    sleep(half).await;
    let samples = load.finish().await?;
    let (failed, first) = failures(&samples);
    let share = share_before(&samples, renamed, "v2");
    let text = |took: &str| {
        format!(
            "{took}; {failed} of {} failed{first}; {:.0} % to v2 before the edit",
            samples.len(),
            share * 100.0
        )
    };
    Ok(match in_force(&samples, renamed, "v1") {
        // The share proves that 90/10 was in force at all.
        Some(took) => seen(
            took < IN_FORCE && failed == 0 && (0.03..0.25).contains(&share),
            text(&format!(
                "in force after {:.1} ms",
                took.as_secs_f64() * 1000.0
            )),
        ),
        None => seen(false, text("v1 still answers")),
    })
}

async fn restart(world: &mut World) -> Result<Finding> {
    let load = world.load()?;
    sleep(Duration::from_millis(500)).await;
    let status = world
        .control
        .process
        .terminate(Duration::from_secs(15))
        .await?;
    world.control.start_again().await?;
    // The sidecars come back with a backoff.
    sleep(Duration::from_secs(1)).await;
    world
        .control
        .write("route.yaml", &route(&[("echo-v1", 100), ("echo-v2", 0)]))?;
    let edited = world
        .until_answered("echo.bench", |reply| reply.version == "v1")
        .await;
    let samples = load.finish().await?;
    let (failed, first) = failures(&samples);
    let ok = status.success() && failed == 0 && edited.is_ok();
    let edited = match edited {
        Ok(_) => "the edit is in force".to_owned(),
        Err(error) => error.to_string(),
    };
    Ok(seen(
        ok,
        format!(
            "{}; {failed} of {} failed{first}; {edited}",
            exit_text(status),
            samples.len()
        ),
    ))
}

async fn without_control(world: &mut World, length: Duration) -> Result<Finding> {
    let load = world.load()?;
    let status = world
        .control
        .process
        .terminate(Duration::from_secs(15))
        .await?;
    sleep(length).await;
    let samples = load.finish().await?;
    let (failed, first) = failures(&samples);
    Ok(seen(
        failed == 0 && status.success(),
        format!("{failed} of {} failed{first}", samples.len()),
    ))
}

/// From `edited` to the first request sent after which the version `old` answers no more;
/// `None` if it answers to the end. The samples are in the order of sending.
fn in_force(samples: &[Sample], edited: Instant, old: &str) -> Option<Duration> {
    let by_old = |sample: &Sample| matches!(&sample.result, Ok(Some(version)) if version == old);
    let after_last = samples.iter().rposition(by_old).map_or(0, |last| last + 1);
    let first = samples[after_last..]
        .iter()
        .find(|sample| sample.sent >= edited)?;
    Some(first.sent - edited)
}

/// Share of the requests sent before `edited` that `version` answered.
fn share_before(samples: &[Sample], edited: Instant, version: &str) -> f64 {
    let before: Vec<&Sample> = samples
        .iter()
        .filter(|sample| sample.sent < edited)
        .collect();
    let by = before
        .iter()
        .filter(|sample| matches!(&sample.result, Ok(Some(by)) if by == version))
        .count();
    by as f64 / before.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_force_is_after_the_last_old_answer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let samples = |versions: &[&str]| -> Vec<Sample> {
            (0..)
                .zip(versions)
                .map(|(i, version)| {
                    let sent = at(i * 10);
                    Sample {
                        due: sent,
                        sent,
                        done: sent,
                        result: Ok(Some((*version).to_owned())),
                    }
                })
                .collect()
        };
        for (versions, edited, expect) in [
            (&["v1", "v2", "v1", "v2", "v2"][..], 15, Some(15)),
            (&["v1", "v1", "v2", "v2"], 15, Some(5)),
            (&["v1", "v1", "v1"], 15, None),
            (&["v2", "v2", "v2"], 5, Some(5)),
            (&["v1", "v2", "v2", "v2"], 25, Some(5)),
        ] {
            let took = in_force(&samples(versions), at(edited), "v1");
            assert_eq!(took, expect.map(Duration::from_millis), "{versions:?}");
        }
        assert!(
            (share_before(&samples(&["v1", "v2", "v1", "v1", "v2"]), at(35), "v2") - 0.25).abs()
                < 1e-9
        );
    }
}
