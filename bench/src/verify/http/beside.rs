//! The same payloads (T1) through other proxies, one hop each and as they come from their
//! packages: how many each refuses, passes as one strict request, or passes as something else.
//! A table to look at; what others do is no failure of ours.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use futures_util::future::try_join_all;
use weft_kit::cases::{self, Case};
use weft_kit::origin::capture::Capture;
use weft_kit::raw1::Slicing;

use super::framing::{LANES, captured};
use super::lanes::{Door, Lane};
use super::trial::{is_wrong, try_once};
use crate::error::{Context as _, Result};
use crate::process::{Process, Spec, free_address, which};
use crate::verify::{Cases, Finding, Setting, seen};

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let expected = "a table of what other proxies do with the same payloads";
    if setting.quick {
        cases.skip("others", expected, "only without --quick");
        return Ok(());
    }
    cases
        .check_within(
            std::time::Duration::from_secs(20 * 60),
            "others",
            expected,
            table(setting),
        )
        .await;
    Ok(())
}

/// What one proxy did with a table.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Row {
    /// Nothing arrived that was to be refused, and all that was to pass did.
    right: usize,
    /// Arrived, as strict requests, though it was to be refused.
    passed: usize,
    /// Arrived as bytes that are no strict requests, or as a request that nobody made.
    wrong: usize,
    /// Did not arrive, though it was to.
    lost: usize,
}

async fn table(setting: &Setting) -> Result<Finding> {
    let mut text = format!(
        "\n{:<22}{:>8}{:>9}{:>13}{:>18}{:>13}",
        "proxy", "inputs", "right", "not refused", "forwarded wrongly", "not passed"
    );
    let (origins, stage) = captured(setting).await?;
    let ours = through(&stage.lanes, &origins, Door::Outbound).await?;
    line(&mut text, "weft, two sidecars", ours);
    let dir = setting.dir();
    for kind in [Kind::Envoy, Kind::Haproxy, Kind::Nginx] {
        let Some(program) = which(kind.program()) else {
            // Writing to a string does not fail.
            let _ = write!(text, "\n{:<22}{:>8}", kind.program(), "absent");
            continue;
        };
        let (_process, lanes) = start(kind, &program, dir, &origins).await?;
        line(
            &mut text,
            kind.program(),
            through(&lanes, &origins, Door::Outbound).await?,
        );
    }
    Ok(seen(ours.wrong == 0 && ours.passed == 0, text))
}

fn line(text: &mut String, name: &str, row: Row) {
    let Row {
        right,
        passed,
        wrong,
        lost,
    } = row;
    let inputs = right + passed + wrong + lost;
    let _ = write!(
        text,
        "\n{name:<22}{inputs:>8}{right:>9}{passed:>13}{wrong:>18}{lost:>13}"
    );
}

/// All tables, each payload in one write.
async fn through(lanes: &[Lane], origins: &[Capture], door: Door) -> Result<Row> {
    let work = lanes
        .iter()
        .zip(origins)
        .enumerate()
        .map(|(number, (lane, origin))| async move {
            let mut row = Row::default();
            for case in cases::all(&lane.host)
                .iter()
                .skip(number)
                .step_by(lanes.len())
            {
                match outcome(case, lane, door, origin).await? {
                    Outcome::Right => row.right += 1,
                    Outcome::Passed => row.passed += 1,
                    Outcome::Wrong => row.wrong += 1,
                    Outcome::Lost => row.lost += 1,
                }
            }
            Ok::<_, crate::error::Error>(row)
        });
    let rows = try_join_all(work).await?;
    Ok(rows.into_iter().fold(Row::default(), |sum, row| Row {
        right: sum.right + row.right,
        passed: sum.passed + row.passed,
        wrong: sum.wrong + row.wrong,
        lost: sum.lost + row.lost,
    }))
}

enum Outcome {
    Right,
    Passed,
    Wrong,
    Lost,
}

async fn outcome(case: &Case, lane: &Lane, door: Door, origin: &Capture) -> Result<Outcome> {
    let (_, arrived) = try_once(case, Slicing::Whole, door, lane, origin).await?;
    let mut whole = 0;
    let mut smuggled = false;
    for connection in &arrived {
        let Ok(reading) = connection.reading() else {
            return Ok(Outcome::Wrong);
        };
        smuggled |= reading.messages.iter().any(|m| m.target().contains("smug"));
        whole += reading.messages.len();
    }
    Ok(match whole.cmp(&case.expected.requests) {
        _ if smuggled => Outcome::Wrong,
        std::cmp::Ordering::Greater => Outcome::Passed,
        std::cmp::Ordering::Less => Outcome::Lost,
        std::cmp::Ordering::Equal if is_wrong(case, &arrived) => Outcome::Wrong,
        std::cmp::Ordering::Equal => Outcome::Right,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Envoy,
    Haproxy,
    Nginx,
}

impl Kind {
    const fn program(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    fn configuration(self, dir: &Path, hops: &[(SocketAddr, SocketAddr)]) -> String {
        match self {
            Self::Envoy => envoy(hops),
            Self::Haproxy => haproxy(hops),
            Self::Nginx => nginx(dir, hops),
        }
    }
}

async fn start(
    kind: Kind,
    program: &PathBuf,
    dir: &Path,
    origins: &[Capture],
) -> Result<(Process, Vec<Lane>)> {
    let home = dir.join(format!("{}-beside", kind.program()));
    fs::create_dir_all(&home).context(home.display())?;
    let mut hops = Vec::new();
    for origin in origins.iter().take(LANES) {
        hops.push((free_address()?, origin.address()));
    }
    let file = home.join("configuration");
    let named = match kind {
        Kind::Envoy => file.with_extension("yaml"),
        Kind::Haproxy | Kind::Nginx => file,
    };
    fs::write(&named, kind.configuration(&home, &hops)).context(named.display())?;
    let spec = Spec::new(format!("{}-beside", kind.program()), program);
    let spec = match kind {
        Kind::Envoy => spec
            .pair("--config-path", &named)
            .pair("--concurrency", "1")
            .pair("--log-level", "off"),
        Kind::Haproxy => spec.pair("-f", &named).arg("-db"),
        Kind::Nginx => spec.pair("-p", &home).pair("-c", &named),
    };
    let mut process = spec.start(dir)?;
    let mut lanes = Vec::new();
    for (number, (listen, _)) in hops.iter().enumerate() {
        process.listens(*listen).await?;
        lanes.push(Lane::at(format!("lane-{number}.bench"), *listen));
    }
    Ok((process, lanes))
}

fn envoy(hops: &[(SocketAddr, SocketAddr)]) -> String {
    let mut text = "static_resources:\n  listeners:\n".to_owned();
    for (number, (listen, _)) in hops.iter().enumerate() {
        let _ = write!(
            text,
            "  - name: l{number}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: l{number}
          route_config:
            virtual_hosts:
            - {{name: all, domains: [\"*\"], routes: [{{match: {{prefix: \"/\"}}, route: {{cluster: c{number}}}}}]}}
          http_filters:
          - name: router
            typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
",
            listen.port()
        );
    }
    text += "  clusters:\n";
    for (number, (_, upstream)) in hops.iter().enumerate() {
        let _ = write!(
            text,
            "  - name: c{number}
    type: STATIC
    load_assignment:
      cluster_name: c{number}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
",
            upstream.port()
        );
    }
    text
}

fn haproxy(hops: &[(SocketAddr, SocketAddr)]) -> String {
    let mut text = "global\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n".to_owned();
    for (number, (listen, upstream)) in hops.iter().enumerate() {
        let _ = write!(
            text,
            "frontend f{number}\n  bind {listen}\n  default_backend b{number}\nbackend b{number}\n  server s {upstream}\n"
        );
    }
    text
}

fn nginx(dir: &Path, hops: &[(SocketAddr, SocketAddr)]) -> String {
    let at = dir.display();
    let mut text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log crit;\nevents {{}}\nhttp {{\n  access_log off;\n  \
         client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n  \
         uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n"
    );
    for (listen, upstream) in hops {
        let _ = writeln!(
            text,
            "  server {{ listen {listen}; location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; \
             proxy_set_header Host $http_host; proxy_set_header Connection \"\"; }} }}"
        );
    }
    text + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hop_is_in_every_configuration() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let hops = [(at(1001), at(2001)), (at(1002), at(2002))];
        for kind in [Kind::Envoy, Kind::Haproxy, Kind::Nginx] {
            let text = kind.configuration(Path::new("/x"), &hops);
            for port in ["1001", "2001", "1002", "2002"] {
                assert!(text.contains(port), "{kind:?}: {text}");
            }
        }
    }

    #[test]
    fn a_line_adds_up() {
        let mut text = String::new();
        let row = Row {
            right: 1,
            passed: 2,
            wrong: 3,
            lost: 4,
        };
        line(&mut text, "x", row);
        let numbers: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(numbers, ["x", "10", "1", "2", "3", "4"]);
    }
}
