//! Bad input: mistakes in the configuration keep what is in force, and say what they are.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::world::{World, route};
use super::{Cases, Finding, Setting, seen};
use crate::error::{Context as _, Result};
use crate::process::{Output, Spec, exit_text, free_address};

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let good = route(&[("echo-v2", 1)]);
    let world = World::start(setting, &["v1", "v2"], &good).await?;
    world
        .until_answered("echo.bench", |reply| reply.version == "v2")
        .await?;
    cases
        .check(
            "malformed-file-added",
            "all requests as before, and a log line that names the file",
            async {
                world
                    .control
                    .write("broken.yaml", "kind: [Service\n  metadata: {\n")?;
                still_v2(&world, Some("broken.yaml")).await
            },
        )
        .await;
    cases
        .check(
            "malformed-file-in-place",
            "the route's last good version stays in force, and a log line names the file",
            async {
                world.control.write(
                    "route.yaml",
                    &good.replace("backendRefs:", "backendRefs: ]"),
                )?;
                still_v2(&world, Some("route.yaml")).await
            },
        )
        .await;
    cases
        .check(
            "unknown-field",
            "the last good version stays in force, and a log line names the field",
            async {
                world
                    .control
                    .write("route.yaml", &good.replace("backendRefs:", "backendRfs:"))?;
                still_v2(&world, Some("backendRfs")).await
            },
        )
        .await;
    cases
        .check("unknown-backend", "500 backend_missing", async {
            world
                .control
                .write("route.yaml", &route(&[("nosuch", 1)]))?;
            let reply = world
                .until_answered("echo.bench", |reply| reply.status == 500)
                .await?;
            Ok(seen(
                reply.reason == "backend_missing",
                format!("{} {}", reply.status, reply.reason),
            ))
        })
        .await;
    cases
        .check(
            "control-port-in-use",
            "weft-control exits with an error that names the address",
            control_port(setting),
        )
        .await;
    cases
        .check(
            "proxy-port-in-use",
            "weft-proxy exits with an error that names the address",
            proxy_port(setting, &world),
        )
        .await;
    cases
        .check(
            "directory-removed",
            "all requests as before; a service never asked for before is found too",
            removed(&world, &good),
        )
        .await;
    Ok(())
}

/// Requests for a second are all answered by v2, which only the route says; the log of the
/// control plane then contains `logged`.
async fn still_v2(world: &World, logged: Option<&str>) -> Result<Finding> {
    let until = Instant::now() + Duration::from_secs(1);
    let (mut by_v2, mut others, mut other) = (0, 0, String::new());
    while Instant::now() < until {
        match world.get("echo.bench").await {
            Ok(reply) if reply.status == 200 && reply.version == "v2" => by_v2 += 1,
            Ok(reply) => {
                others += 1;
                other = format!(
                    " (last: {} {} {})",
                    reply.status, reply.reason, reply.version
                );
            }
            Err(error) => {
                others += 1;
                other = format!(" (last: {error})");
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
    let log = world.control.process.output();
    let line = logged.map(|logged| log.lines().rfind(|line| line.contains(logged)));
    let said = match line {
        None => String::new(),
        Some(None) => format!(
            "; the log does not say it:\n{}",
            world.control.process.tail()
        ),
        Some(Some(line)) => format!("; logged: {}", line.trim()),
    };
    Ok(seen(
        others == 0 && by_v2 > 0 && line != Some(None),
        format!("{by_v2} as before, {others} not{other}{said}"),
    ))
}

async fn control_port(setting: &Setting) -> Result<Finding> {
    let busy = TcpListener::bind("127.0.0.1:0").context("take a port")?;
    let address = busy.local_addr().context("take a port")?.to_string();
    let output = Spec::new("weft-control", &setting.programs.control)
        .arg("serve")
        .pair("--config", setting.dir().join("config"))
        .pair("--data", setting.dir().join("data-2"))
        .pair("--listen", &address)
        .pair("--admin", free_address()?.to_string())
        .run(setting.dir(), Duration::from_secs(20))
        .await?;
    Ok(refused(&output, &address))
}

async fn proxy_port(setting: &Setting, world: &World) -> Result<Finding> {
    let busy = TcpListener::bind("127.0.0.1:0").context("take a port")?;
    let address = busy.local_addr().context("take a port")?.to_string();
    let output = Spec::new("weft-proxy", &setting.programs.proxy)
        .arg("run")
        .env("WEFT_PROXY_CONTROL", world.control.address.to_string())
        .env("WEFT_PROXY_WORKLOAD", "bench/client")
        .env(
            "WEFT_PROXY_TOKEN",
            world.control.token("bench", "client").await?,
        )
        .env("WEFT_PROXY_ADMIN", address.as_str())
        .env("WEFT_PROXY_PUBLIC_ADMIN", free_address()?.to_string())
        .run(setting.dir(), Duration::from_secs(20))
        .await?;
    Ok(refused(&output, &address))
}

fn refused(output: &Output, address: &str) -> Finding {
    let line = output.stderr.lines().rfind(|line| line.contains(address));
    let failed = output.status.code().is_some_and(|code| code != 0);
    let said = line.map_or_else(
        || format!("does not name {address}: {}", output.stderr.trim()),
        str::to_owned,
    );
    seen(
        failed && line.is_some(),
        format!("{}: {said}", exit_text(output.status)),
    )
}

async fn removed(world: &World, good: &str) -> Result<Finding> {
    world.control.write("route.yaml", good)?;
    world
        .until_answered("echo.bench", |reply| {
            reply.status == 200 && reply.version == "v2"
        })
        .await?;
    fs::remove_dir_all(world.control.config()).context("remove the configuration")?;
    // Long enough for every way of noticing.
    sleep(Duration::from_millis(2500)).await;
    let finding = still_v2(world, None).await?;
    let fresh = world.get("echo-v1.bench").await?;
    let ok = finding.ok && fresh.status == 200 && fresh.version == "v1";
    Ok(seen(
        ok,
        format!(
            "{}; never asked for before: {} {}",
            finding.seen, fresh.status, fresh.reason
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn a_refusal_fails_and_names_the_address() {
        for (code, stderr, ok) in [
            (1, "error: cannot listen on 127.0.0.1:9: in use", true),
            (0, "cannot listen on 127.0.0.1:9", false),
            (1, "error: address in use", false),
        ] {
            let status = ExitStatus::from_raw(code << 8);
            let output = Output {
                status,
                stdout: String::new(),
                stderr: stderr.to_owned(),
            };
            assert_eq!(refused(&output, "127.0.0.1:9").ok, ok, "{stderr}");
        }
    }
}
