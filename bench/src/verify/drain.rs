//! Drain: one of two replicas leaves under load, and no request notices.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::sleep;

use super::world::{World, failures};
use super::{Cases, Finding, Setting, seen};
use crate::error::Result;
use crate::process::exit_text;

const IN_TIME: Duration = Duration::from_secs(30);

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let mut world = World::start(setting, &["r1", "r2"], "").await?;
    world
        .until_answered("echo.bench", |reply| reply.version == "r1")
        .await?;
    let lead = Duration::from_secs(if setting.quick { 1 } else { 3 });
    cases
        .check(
            "replica-leaves",
            "SIGTERM to one of 2 sidecars at 500 requests/s: 0 failed, it exits 0 in 30 s, the other takes all",
            leave(&mut world, lead),
        )
        .await;
    Ok(())
}

async fn leave(world: &mut World, lead: Duration) -> Result<Finding> {
    let load = world.load()?;
    sleep(lead).await;
    let asked = Instant::now();
    let leaving = &mut world.replicas[0].sidecar.process;
    leaving.signal(Signal::TERM)?;
    let ended = leaving.wait(IN_TIME).await;
    let took = asked.elapsed();
    sleep(Duration::from_secs(1)).await;
    let samples = load.finish().await?;
    let (failed, first) = failures(&samples);
    let answered = |from: Instant, to: Instant, by: &str| {
        let within = samples
            .iter()
            .filter(|sample| from <= sample.sent && sample.sent < to);
        within
            .filter(|sample| matches!(&sample.result, Ok(Some(version)) if version == by))
            .count()
    };
    let before = answered(samples[0].sent, asked, "r1");
    let after = answered(asked + took, Instant::now(), "r1");
    let ok = failed == 0
        && before > 0
        && after == 0
        && ended.as_ref().is_ok_and(|status| status.success());
    let ended = match ended {
        Ok(status) => format!("{} after {:.2} s", exit_text(status), took.as_secs_f64()),
        Err(error) => error.to_string(),
    };
    let count = samples.len();
    Ok(seen(
        ok,
        format!(
            "{failed} of {count} failed{first}; {ended}; it answered {before} before and {after} after"
        ),
    ))
}
