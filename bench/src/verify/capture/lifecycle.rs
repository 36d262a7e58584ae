//! Everything that is done to sidecars and the control plane in a year, in rounds and under
//! load: rolling restart, upgrade in place, a new control plane, SIGKILL. Nothing is lost but
//! what was in flight at the SIGKILL.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::sleep;

use super::resolver::Resolver;
use super::traffic::{Kind, Sample, Traffic};
use crate::error::{Context as _, Error, Result};
use crate::pods::{Cluster, Mode, Pod, kill, mesh_config, service, until_answered, workload};
use crate::process::{Process, exit_text};
use crate::verify::{Cases, Finding, Setting, seen};
use crate::weft::write_config;

/// How long a sidecar may take to leave or to be replaced.
const LEAVE: Duration = Duration::from_secs(40);
/// Between two events, so that losses can be told apart.
const PAUSE: Duration = Duration::from_millis(500);
/// At most between two messages of a stream.
const BEAT: Duration = Duration::from_millis(100);

pub(super) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let dir = setting.dir();
    let mode = Mode::Redirect;
    let documents = [
        mesh_config("allow"),
        workload("client", "client", 1, mode, &[], &[]),
        workload("shop-1", "shop", 2, mode, &[], &[8080]),
        workload("shop-2", "shop", 3, mode, &[], &[8080]),
        service(
            "echo",
            "shop",
            "10.96.0.10 fd00:96::a",
            &[("any", 80, 8080, None)],
        ),
    ];
    write_config(dir, "mesh.yaml", &documents.concat())?;
    let cluster = Cluster::start(&setting.programs, dir).await?;
    let _resolver = Resolver::start(&cluster.outside, &[])?;
    let mut servers = Vec::new();
    for (name, number) in [("shop-1", 2), ("shop-2", 3)] {
        let pod = cluster.pod(name, number, mode, &[]).await?;
        let app = pod.backend(8080, None).await?;
        let sidecar = pod.start_ready().await?;
        servers.push(Running {
            pod,
            app: Some(app),
            sidecar,
        });
    }
    let pod = cluster.pod("client", 1, mode, &[]).await?;
    let sidecar = pod.start_ready().await?;
    let client = Running {
        pod,
        app: None,
        sidecar,
    };
    let target = SocketAddr::from(([10, 96, 0, 10], 80));
    until_answered(&client.pod.host, target, |reply| reply.status == 200).await?;
    let mut world = World {
        cluster,
        servers,
        client,
    };

    let traffic = Traffic::start(&world.client.pod.host, target)?;
    let expected =
        "2,000 requests/s: 0 lost but those in flight at the SIGKILL; every process ends with 0";
    let mut total = 0;
    // The full run sends more than a million requests.
    for round in 1..=if setting.quick { 2 } else { 85 } {
        let check = async {
            let start = Instant::now();
            let events = world.round(round).await;
            sleep(PAUSE).await;
            let samples = traffic.take();
            total += samples.len();
            let mut finding = judge(
                &samples,
                events.as_deref().unwrap_or_default(),
                start.elapsed(),
            );
            if let Err(error) = events {
                finding = seen(false, format!("{error}\n{}", finding.seen));
            }
            Ok(finding)
        };
        cases
            .check(&format!("round-{round}"), expected, check)
            .await;
    }
    let check = async {
        let start = Instant::now();
        let replaced = world.client.replace_itself().await;
        sleep(PAUSE).await;
        let finding = judge(&traffic.take(), &[], start.elapsed());
        Ok(match replaced {
            Ok(()) => finding,
            Err(error) => seen(false, format!("{error}\n{}", finding.seen)),
        })
    };
    let expected =
        "on SIGUSR2 the client's sidecar starts its program again, which takes over; 0 lost";
    cases.check("sigusr2", expected, check).await;
    let check = async {
        let rest = traffic.finish().await?;
        Ok(judge(&rest, &[], Duration::ZERO))
    };
    cases
        .check("end", "what was in flight at the end is answered", check)
        .await;
    let check = async {
        world.client.leave().await?;
        Ok(seen(
            total > 0,
            format!("{total} requests and messages in all"),
        ))
    };
    let expected = "after SIGTERM to the process that stands in, both end, it with 0";
    cases.check("stand-in", expected, check).await;
    Ok(())
}

struct World {
    client: Running,
    servers: Vec<Running>,
    cluster: Cluster,
}

struct Running {
    sidecar: Process,
    app: Option<Process>,
    pod: Pod,
}

/// Something that was done, and when. Only a SIGKILL excuses losses: of what was in flight
/// between its two instants.
#[derive(Debug)]
struct Event {
    name: String,
    from: Instant,
    to: Instant,
    killed: Option<(Instant, Instant)>,
}

impl World {
    async fn round(&mut self, round: usize) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for i in 0..self.servers.len() {
            let from = Instant::now();
            let server = &mut self.servers[i];
            server.restart().await?;
            events.push(Event {
                name: format!("restart of {}", server.pod.name),
                from,
                to: Instant::now(),
                killed: None,
            });
            sleep(PAUSE).await;
        }
        let from = Instant::now();
        let [one, two] = &mut self.servers[..] else {
            return Err(Error::new("there are two servers"));
        };
        tokio::try_join!(one.upgrade(), two.upgrade(), self.client.upgrade())?;
        events.push(Event {
            name: "upgrade of all".to_owned(),
            from,
            to: Instant::now(),
            killed: None,
        });
        sleep(PAUSE).await;

        let from = Instant::now();
        let status = self.cluster.control.terminate(LEAVE).await?;
        if !status.success() {
            return Err(Error::new(format!(
                "the control plane: {}",
                exit_text(status)
            )));
        }
        self.cluster.start_control().await?;
        events.push(Event {
            name: "restart of the control plane".to_owned(),
            from,
            to: Instant::now(),
            killed: None,
        });
        sleep(PAUSE).await;

        let from = Instant::now();
        let index = round % self.servers.len();
        let server = &mut self.servers[index];
        let killed = Some(kill(&mut server.sidecar).await?);
        server.sidecar = server.pod.start_ready().await?;
        events.push(Event {
            name: format!("SIGKILL of {}", server.pod.name),
            from,
            to: Instant::now(),
            killed,
        });
        Ok(events)
    }
}

impl Running {
    /// As an orchestrator does it: the sidecar drains, the application ends, both start.
    async fn restart(&mut self) -> Result<()> {
        let status = self.sidecar.terminate(LEAVE).await?;
        if !status.success() {
            let (name, end, tail) = (&self.pod.name, exit_text(status), self.sidecar.tail());
            return Err(Error::new(format!("the sidecar of {name}: {end}\n{tail}")));
        }
        if let Some(mut app) = self.app.take() {
            if let Some(status) = app.ended() {
                let (name, end, tail) = (&app.name, exit_text(status), app.tail());
                return Err(Error::new(format!("{name} ended by itself: {end}\n{tail}")));
            }
            // The next one needs its port.
            kill(&mut app).await?;
        }
        self.app = Some(self.pod.backend(8080, None).await?);
        self.sidecar = self.pod.start_ready().await?;
        Ok(())
    }

    /// Its successor is the old process's child: that one stands in for it, passes SIGTERM on
    /// to it and ends with its code.
    async fn replace_itself(&mut self) -> Result<()> {
        let before = self.generation().await?;
        self.sidecar.signal(Signal::USR2)?;
        let deadline = Instant::now() + LEAVE;
        while self.generation().await? != before + 1 {
            if Instant::now() > deadline {
                let tail = self.sidecar.tail();
                return Err(Error::new(format!("no other process took over:\n{tail}")));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// How often the sidecar has been replaced in place.
    async fn generation(&self) -> Result<u64> {
        let version = self.pod.admin("/version").await?;
        let json: serde_json::Value = serde_json::from_str(&version.body).context("/version")?;
        json["generation"]
            .as_u64()
            .context(format!("/version has no generation: {}", version.line()))
    }

    /// Ends the sidecar, through the process that stands in for it.
    async fn leave(&mut self) -> Result<()> {
        let status = self.sidecar.terminate(LEAVE).await?;
        let left = self.pod.host.processes().len();
        if status.success() && left == 0 {
            return Ok(());
        }
        let (end, tail) = (exit_text(status), self.sidecar.tail());
        Err(Error::new(format!(
            "{end}, {left} processes after it\n{tail}"
        )))
    }

    async fn upgrade(&mut self) -> Result<()> {
        self.sidecar = self.pod.upgrade(&mut self.sidecar, LEAVE).await?;
        Ok(())
    }
}

fn judge(samples: &[Sample], events: &[Event], took: Duration) -> Finding {
    let mut text = Vec::new();
    for kind in Kind::ALL {
        let all = samples.iter().filter(|sample| sample.kind == kind);
        let (sent, lost) = all.fold((0, 0), |(sent, lost), sample| {
            (sent + 1, lost + usize::from(sample.result.is_err()))
        });
        text.push(format!("{} {sent} sent, {lost} lost", kind.name()));
    }
    let slowest = samples
        .iter()
        .map(|sample| sample.done - sample.due)
        .max()
        .unwrap_or_default();
    let mut lines = vec![format!(
        "{}; slowest {:.2} s; {:.1} s",
        text.join(", "),
        slowest.as_secs_f64(),
        took.as_secs_f64()
    )];
    let (mut excused, mut unexcused) = (0, Vec::new());
    for sample in samples {
        let Err(error) = &sample.result else {
            continue;
        };
        let overlaps = |from: Instant, to: Instant| sample.due <= to && sample.done >= from;
        // The end of a stream is seen by its next message.
        let cut = |from: Instant, to: Instant| {
            sample.began.is_some_and(|began| began <= to)
                && sample.due <= to + BEAT
                && sample.done >= from
        };
        if events
            .iter()
            .filter_map(|event| event.killed)
            .any(|(from, to)| overlaps(from, to) || cut(from, to))
        {
            excused += 1;
            continue;
        }
        let event = events
            .iter()
            .find(|event| overlaps(event.from, event.to + PAUSE));
        let name = event.map_or("no event", |event| &event.name);
        let at = event.map(|event| {
            format!(
                " {:.3} s in",
                (sample.done.saturating_duration_since(event.from)).as_secs_f64()
            )
        });
        unexcused.push(format!(
            "{} during {name}{}: {error}",
            sample.kind.name(),
            at.unwrap_or_default()
        ));
    }
    if excused > 0 {
        lines.push(format!("{excused} in flight at the SIGKILL"));
    }
    let ok = unexcused.is_empty() && !samples.is_empty();
    lines.extend(unexcused.iter().take(8).cloned());
    seen(ok, lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_in_flight_is_excused() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let sample = |due, done, result: std::result::Result<(), &str>| Sample {
            kind: Kind::Http2,
            began: None,
            due: at(due),
            done: at(done),
            result: result.map_err(str::to_owned),
        };
        let stream = |began, due, result| Sample {
            began: Some(at(began)),
            ..sample(due, due + 1, result)
        };
        let event = |killed| Event {
            name: "it".to_owned(),
            from: at(100),
            to: at(500),
            killed,
        };
        let killed = Some((at(100), at(110)));
        for (samples, killed, ok) in [
            (vec![sample(0, 1, Ok(()))], None, true),
            (vec![], None, false),
            (vec![sample(90, 120, Err("reset"))], killed, true),
            (vec![sample(105, 106, Err("reset"))], killed, true),
            (vec![sample(111, 120, Err("refused"))], killed, false),
            (vec![sample(80, 99, Err("early"))], killed, false),
            (vec![sample(105, 106, Err("reset"))], None, false),
            (vec![stream(50, 180, Err("reset"))], killed, true),
            (vec![stream(50, 220, Err("reset"))], killed, false),
            (vec![stream(111, 180, Err("reset"))], killed, false),
        ] {
            let finding = judge(&samples, &[event(killed)], Duration::ZERO);
            assert_eq!(finding.ok, ok, "{samples:?}: {}", finding.seen);
        }
        let finding = judge(
            &[sample(150, 160, Err("gone"))],
            &[event(None)],
            Duration::ZERO,
        );
        assert!(
            finding.seen.contains("http/2 during it 0.060 s in: gone"),
            "{}",
            finding.seen
        );
    }
}
