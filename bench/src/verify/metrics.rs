//! Metrics: pages that Prometheus takes without complaint, from both programs.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::exposition::problems;
use super::world::World;
use super::{Cases, Finding, Setting, seen};
use crate::error::{Context as _, Result};
use crate::process::{Spec, which};
use crate::weft::get;

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let world = World::start(setting, &["v1"], "").await?;
    for _ in 0..10 {
        world.get("echo.bench").await?;
    }
    // A reason or two, so that these families have series.
    world.get("no-such-service.bench").await?;
    let pages = [
        (
            "weft-proxy-client",
            world.client.public_admin,
            "weft_client_requests_total",
        ),
        (
            "weft-proxy-server",
            world.replicas[0].sidecar.public_admin,
            "weft_",
        ),
        ("weft-control", world.control.admin, "weft_control_"),
    ];
    for (name, address, marker) in pages {
        cases
            .check(
                name,
                format!("well-formed, with {marker}"),
                own(address, marker),
            )
            .await;
        let (case, expected) = (format!("{name}-promtool"), "promtool check metrics: exit 0");
        match which("promtool") {
            Some(promtool) => {
                cases
                    .check(&case, expected, lint(&promtool, setting.dir(), address))
                    .await
            }
            None => cases.skip(&case, expected, "no promtool: apt-get install prometheus"),
        }
    }
    cases
        .check(
            "requests-are-counted",
            "weft_client_requests_total of service=\"echo\", service_namespace=\"bench\", code=\"200\" is 11 or more",
            counted(world.client.public_admin),
        )
        .await;
    Ok(())
}

async fn own(address: SocketAddr, marker: &str) -> Result<Finding> {
    let (status, text) = get(address, "localhost", "/metrics").await?;
    let problems = problems(&text);
    let found = text.lines().any(|line| line.starts_with(marker));
    let ok = status == 200 && problems.is_empty() && found;
    let mut words = format!(
        "{status}, {} lines, {} problems, {marker} found: {found}",
        text.lines().count(),
        problems.len()
    );
    for problem in problems.iter().take(10) {
        words += &format!("\n{problem}");
    }
    Ok(seen(ok, words))
}

async fn lint(promtool: &Path, dir: &Path, address: SocketAddr) -> Result<Finding> {
    let (_, text) = get(address, "localhost", "/metrics").await?;
    let page = dir.join("metrics.txt");
    fs::write(&page, text).context(page.display())?;
    let output = Spec::new("promtool", "/bin/sh")
        .pair("-c", r#""$0" check metrics < "$1""#)
        .arg(promtool)
        .arg(&page)
        .run(dir, Duration::from_secs(20))
        .await?;
    let words = format!("{} {}", output.stdout.trim(), output.stderr.trim());
    let end = crate::process::exit_text(output.status);
    Ok(seen(
        output.status.success(),
        format!("{end} {}", words.trim()),
    ))
}

async fn counted(address: SocketAddr) -> Result<Finding> {
    let (_, text) = get(address, "localhost", "/metrics").await?;
    let series: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("weft_client_requests_total{"))
        .collect();
    let count = requests(
        &series,
        &[
            "service=\"echo\"",
            "service_namespace=\"bench\"",
            "code=\"200\"",
        ],
    );
    // The warm-up and the requests; how often the warm-up had to try is not known.
    let ok = (11.0..200.0).contains(&count);
    let seen_series = if ok {
        String::new()
    } else {
        format!("\n{}", series.join("\n"))
    };
    Ok(seen(ok, format!("{count} requests{seen_series}")))
}

/// Sum of the series that have all of these labels.
fn requests(series: &[&str], labels: &[&str]) -> f64 {
    let chosen = series
        .iter()
        .filter(|line| labels.iter().all(|label| line.contains(label)));
    let values = chosen.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.fold(0.0, |sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_chosen_by_all_labels() {
        let series = [
            "m{a=\"1\",b=\"2\"} 3",
            "m{a=\"1\",b=\"3\"} 4",
            "m{a=\"2\",b=\"2\"} 5",
        ];
        for (labels, expect) in [
            (&["a=\"1\""][..], 7.0),
            (&["a=\"1\"", "b=\"2\""], 3.0),
            (&["c="], 0.0),
        ] {
            assert_eq!(requests(&series, labels), expect, "{labels:?}");
        }
    }
}
