//! What the mesh adds before a server that speaks first is heard.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::resolver::Resolver;
use crate::backend::GREETING;
use crate::error::{Context as _, Error, Result};
use crate::netns::{Family, Host};
use crate::pods::{self, Cluster, Mode, mesh_config, service, workload};
use crate::verify::{Cases, Finding, Setting, seen};
use crate::weft::write_config;

const ROUNDS: usize = 100;
const ADDED: Duration = Duration::from_millis(5);

pub(super) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let dir = setting.dir();
    let mode = Mode::Redirect;
    let ports = [
        ("declared", 9000, 9000, Some("tcp")),
        ("undeclared", 9001, 9001, None),
    ];
    let documents = [
        mesh_config("allow"),
        workload("client", "client", 1, mode, &[], &[]),
        workload("data", "data", 3, mode, &[], &[9000, 9001]),
        service("queue", "data", "10.96.0.20", &ports),
    ];
    write_config(dir, "mesh.yaml", &documents.concat())?;
    let cluster = Cluster::start(&setting.programs, dir).await?;
    let _resolver = Resolver::start(&cluster.outside, &[])?;
    let data = cluster.pod("data", 3, mode, &[]).await?;
    let client = cluster.pod("client", 1, mode, &[]).await?;
    let _apps = [
        data.backend(8080, Some(9000)).await?,
        data.backend(8081, Some(9001)).await?,
        pods::backend(&cluster.outside, "outside", 8080, Some(9000), dir).await?,
    ];
    let _sidecars = [data.start_ready().await?, client.start_ready().await?];
    let direct = (&cluster.control_host, cluster.outside.at(Family::V4, 9000));
    for (name, port) in [("declared", 9000), ("undeclared", 9001)] {
        let meshed = (&*client.host, SocketAddr::from(([10, 96, 0, 20], port)));
        let expected = format!(
            "connect to greeting takes less than {ADDED:?} longer than between hosts without the mesh, in the median of {ROUNDS}"
        );
        cases.check(name, expected, added(direct, meshed)).await;
    }
    Ok(())
}

async fn added(direct: (&Host, SocketAddr), meshed: (&Host, SocketAddr)) -> Result<Finding> {
    // The first one waits for the control plane to say what the address is.
    greeted(meshed).await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // By turns, so that what disturbs the machine disturbs both.
    for _ in 0..ROUNDS {
        without.push(greeted(direct).await?);
        with.push(greeted(meshed).await?);
    }
    let (without, with) = (median(without), median(with));
    let added = with.saturating_sub(without);
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    Ok(seen(
        added < ADDED,
        format!(
            "{:.2} ms added: {:.2} ms with, {:.2} ms without",
            ms(added),
            ms(with),
            ms(without)
        ),
    ))
}

async fn greeted((host, address): (&Host, SocketAddr)) -> Result<Duration> {
    let start = Instant::now();
    let mut stream = host.connect(address).await?;
    let mut buffer = [0; GREETING.len()];
    timeout(Duration::from_secs(5), stream.read_exact(&mut buffer))
        .await
        .context("no greeting in 5 s")?
        .context("read the greeting")?;
    if buffer == GREETING.as_bytes() {
        return Ok(start.elapsed());
    }
    Err(Error::new(format!(
        "greeted with {:?}",
        String::from_utf8_lossy(&buffer)
    )))
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_lie_in_the_middle() {
        let ms = |all: &[u64]| all.iter().map(|ms| Duration::from_millis(*ms)).collect();
        assert_eq!(median(ms(&[9, 1, 5])), Duration::from_millis(5));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }
}
