//! Static stability: what has worked goes on without a control plane, through restarts and
//! crashes; what has never worked says what it waits for; files that cannot be trusted are
//! put aside.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::resolver::Resolver;
use crate::error::{Context as _, Error, Result};
use crate::pods::{Cluster, Mode, Pod, get, kill, mesh_config, service, until_answered, workload};
use crate::process::Process;
use crate::verify::{Cases, Finding, Setting, seen};
use crate::weft::write_config;

/// From the start of a process to the first answer.
const FIRST: Duration = Duration::from_secs(1);

pub(super) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let dir = setting.dir();
    let mode = Mode::Redirect;
    let documents = [
        mesh_config("allow"),
        workload("client", "client", 1, mode, &[], &[]),
        workload("shop", "shop", 2, mode, &[], &[8080]),
        workload("late", "shop", 3, mode, &[], &[8080]),
        service(
            "echo",
            "shop",
            "10.96.0.10 fd00:96::a",
            &[("http", 80, 8080, Some("http"))],
        ),
    ];
    write_config(dir, "mesh.yaml", &documents.concat())?;
    let cluster = Cluster::start(&setting.programs, dir).await?;
    let _resolver = Resolver::start(&cluster.outside, &[])?;
    let shop = cluster.pod("shop", 2, mode, &[]).await?;
    let client = cluster.pod("client", 1, mode, &[]).await?;
    let late = cluster.pod("late", 3, mode, &[]).await?;
    let _apps = [
        shop.backend(8080, None).await?,
        late.backend(8080, None).await?,
    ];
    let sidecars = [shop.start_ready().await?, client.start_ready().await?];
    let mut world = World {
        cluster,
        client,
        shop,
        late,
        sidecars,
    };
    until_answered(&world.client.host, target(), |reply| reply.status == 200).await?;

    let count = if setting.quick { 5 } else { 50 };
    let expected = format!(
        "SIGKILL {count} times while the configuration changes: each restart serves within {FIRST:?} and finds its files whole"
    );
    cases.check("kill-9", expected, world.kills(count)).await;
    for (name, damage) in DAMAGES {
        let expected =
            "the file is put aside and named in the log; the sidecar starts as if there were none";
        cases.check(name, expected, world.damaged(damage)).await;
    }
    let expected = format!(
        "the control plane is gone, both sidecars are restarted: the first request is answered within {FIRST:?}; /ready tells where the configuration is from"
    );
    cases
        .check("no-control-plane", expected, world.alone())
        .await;
    let expected = "a new pod without control plane is not ready, says why, and becomes ready when there is one";
    cases.check("new-pod-waits", expected, world.waits()).await;
    Ok(())
}

struct World {
    sidecars: [Process; 2],
    client: Pod,
    shop: Pod,
    late: Pod,
    cluster: Cluster,
}

/// What befalls the files of the client's sidecar.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Empty,
    Truncated,
    Flipped,
    Foreign,
}

const DAMAGES: [(&str, Damage); 4] = [
    ("file-empty", Damage::Empty),
    ("file-truncated", Damage::Truncated),
    ("file-flipped-bit", Damage::Flipped),
    ("file-of-another", Damage::Foreign),
];

impl World {
    /// How long until a request of the client's application is answered.
    async fn first_answer(&self, from: Instant, limit: Duration) -> Result<Duration> {
        loop {
            let last = match get(&self.client.host, target(), "echo", "/").await {
                Ok(reply) if reply.status == 200 => return Ok(from.elapsed()),
                Ok(reply) => reply.line(),
                Err(error) => error.to_string(),
            };
            if from.elapsed() > limit {
                return Err(Error::new(format!(
                    "no answer in {limit:?}; the last: {last}\n{}",
                    self.sidecars[1].tail()
                )));
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn kills(&mut self, count: u32) -> Result<Finding> {
        let mut times = Vec::new();
        // Any order of moments will do, as long as it is the same every time.
        let mut random = 0x2545_f491_u32;
        for i in 0..count {
            for change in 0..=(random >> 8) % 8 {
                self.cluster
                    .write("policy.yaml", &policy(1000 + 10 * i + change))?;
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                sleep(Duration::from_millis(u64::from((random >> 8) % 150))).await;
            }
            kill(&mut self.sidecars[1]).await?;
            let from = Instant::now();
            self.sidecars[1] = self.client.start()?;
            times.push(self.first_answer(from, Duration::from_secs(10)).await?);
        }
        let held = files(&self.client.state, |name| !name.contains('.'))?;
        let rejected = files(&self.client.state, |name| name.ends_with(".rejected"))?;
        let slowest = times.iter().max().copied().unwrap_or_default();
        let text = format!(
            "{} restarts, slowest {:.0} ms; {} files held, {} put aside",
            times.len(),
            slowest.as_secs_f64() * 1000.0,
            held.len(),
            rejected.len()
        );
        let ok = slowest < FIRST && !held.is_empty() && rejected.is_empty();
        Ok(seen(ok, text))
    }

    /// The files of the client's sidecar, once it has written all of them: its identity and
    /// its configuration.
    async fn kept(&self) -> Result<Vec<String>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let names = files(&self.client.state, |name| !name.contains('.'))?;
            if names.len() == 2 {
                return Ok(names);
            }
            if Instant::now() > deadline {
                return Err(Error::new(format!(
                    "after 5 s there are the files {names:?}, not two"
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn damaged(&mut self, damage: Damage) -> Result<Finding> {
        let names = self.kept().await?;
        kill(&mut self.sidecars[1]).await?;
        let (mut text, mut ok) = (Vec::new(), true);
        for name in names {
            let path = self.client.state.join(&name);
            let good = fs::read(&path).context(path.display())?;
            // Written in place: owner and mode stay as they are.
            fs::write(&path, damage.of(&good, &self.shop.state.join(&name))?)
                .context(path.display())?;
            self.sidecars[1] = self.client.start()?;
            let took = self
                .first_answer(Instant::now(), Duration::from_secs(10))
                .await?;
            let aside = self.client.state.join(format!("{name}.rejected"));
            let log = self.sidecars[1].output();
            let named = log
                .lines()
                .rev()
                .any(|line| line.contains(&*path.to_string_lossy()));
            ok &= aside.exists() && named;
            text.push(format!(
                "{name}: put aside: {}, named: {named}, answers after {:.0} ms",
                aside.exists(),
                took.as_secs_f64() * 1000.0
            ));
            if aside.exists() {
                fs::remove_file(&aside).context(aside.display())?;
            }
            self.client.ready(&mut self.sidecars[1]).await?;
            // What was damaged is written again.
            self.kept().await?;
            kill(&mut self.sidecars[1]).await?;
        }
        self.sidecars[1] = self.client.start_ready().await?;
        Ok(seen(ok, text.join("; ")))
    }

    async fn alone(&mut self) -> Result<Finding> {
        // What was written at the start of this case is to be on disk.
        self.first_answer(Instant::now(), Duration::from_secs(10))
            .await?;
        sleep(Duration::from_secs(1)).await;
        kill(&mut self.cluster.control).await?;
        for sidecar in &mut self.sidecars {
            kill(sidecar).await?;
        }
        let from = Instant::now();
        self.sidecars = [self.shop.start()?, self.client.start()?];
        let took = self.first_answer(from, Duration::from_secs(10)).await?;
        let ready = self.client.admin("/ready").await?;
        let ok =
            took < FIRST && ready.status == 200 && ready.body.contains("configuration from disk");
        Ok(seen(
            ok,
            format!(
                "{:.0} ms; /ready: {}",
                took.as_secs_f64() * 1000.0,
                ready.line()
            ),
        ))
    }

    /// Follows `alone`: there is no control plane.
    async fn waits(&mut self) -> Result<Finding> {
        let mut sidecar = self.late.start()?;
        let late = &self.late;
        sidecar
            .until("answered /ready", Duration::from_secs(10), || async {
                late.admin("/ready").await.is_ok()
            })
            .await?;
        let waiting = self.late.admin("/ready").await?;
        let outbound = get(&self.late.host, target(), "echo", "/").await;
        let outbound = outbound.map_or_else(|error| error.to_string(), |reply| reply.line());
        self.cluster.start_control().await?;
        let start = Instant::now();
        self.late.ready(&mut sidecar).await?;
        let took = start.elapsed();
        let ok = waiting.status == 503
            && waiting.body.contains("control plane")
            && !outbound.starts_with("200");
        Ok(seen(
            ok,
            format!(
                "/ready: {}; its application gets: {outbound}; ready {:.1} s after the control plane",
                waiting.line(),
                took.as_secs_f64()
            ),
        ))
    }
}

/// Something about the service that its callers are told.
fn policy(timeout: u32) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: echo, namespace: bench}}\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: echo}}]\n  connectTimeout: {timeout}ms\n"
    )
}

/// The service `echo`.
fn target() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 10], 80))
}

impl Damage {
    fn of(self, good: &[u8], other: &Path) -> Result<Vec<u8>> {
        let mut bytes = good.to_vec();
        match self {
            Self::Empty => bytes.clear(),
            Self::Truncated => bytes.truncate(good.len() / 2),
            Self::Flipped => {
                let middle = good.len() * 3 / 4;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 1;
                }
            }
            Self::Foreign => bytes = fs::read(other).context(other.display())?,
        }
        Ok(bytes)
    }
}

/// The files of a directory that are wanted, sorted.
fn files(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).context(dir.display())?;
    let files = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut names: Vec<String> = files
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| wanted(name));
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_changes_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        fs::write(&other, b"other").unwrap();
        let good = b"0123456789";
        for (_, damage) in DAMAGES {
            assert_ne!(damage.of(good, &other).unwrap(), good, "{damage:?}");
        }
        assert_eq!(
            files(dir.path(), |name| name == "other").unwrap(),
            ["other"]
        );
        assert!(
            files(dir.path(), |name| name.ends_with(".rejected"))
                .unwrap()
                .is_empty()
        );
    }
}
