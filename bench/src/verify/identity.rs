//! Identity: who is not the one that a client asks for gets no request, and who shows no
//! certificate gets no answer.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::relay::Relay;
use super::world::{client, service, start_app, until_answered};
use super::{Cases, Finding, Setting, seen};
use crate::error::{Context as _, Result};
use crate::process::free_address;
use crate::weft::{self, Control, Port, Sidecar, Workload, write_config};

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let dir = setting.dir();
    let (app, _app) = start_app(dir, "rogue", None).await?;
    // Peers of `echo` are led to the sidecar of `rogue`, and what reaches its application
    // is seen on the way.
    let (echo, rogue, before_app) = (free_address()?, free_address()?, free_address()?);
    let to_app = Relay::start(before_app, app).await?;
    let _to_rogue = Relay::start(echo, rogue).await?;
    let outbound = free_address()?;
    let port = |listen, app| {
        vec![Port {
            port: 8080,
            protocol: Some("http"),
            listen,
            app,
        }]
    };
    let workload = |name, ports| Workload {
        name,
        account: name,
        app: name,
        version: "",
        ports,
        outbound: None,
        upstreams: Vec::new(),
    };
    let text = weft::mesh_config()
        + &service("echo", "app: echo")
        + &service("rogue", "app: rogue")
        + &workload("echo", port(echo, app)).yaml()
        + &Workload {
            outbound: Some(free_address()?),
            ..workload("rogue", port(rogue, before_app))
        }
        .yaml()
        + &client(outbound, Vec::new()).yaml();
    write_config(dir, "mesh.yaml", &text)?;
    let control = Control::start(&setting.programs, dir).await?;
    let rogue_sidecar = control.sidecar("bench", "rogue", "rogue").await?;
    let mut client = control.sidecar("bench", "client", "client").await?;
    client.process.listens(outbound).await?;
    cases
        .check(
            "other-identity",
            "502 identity_mismatch, both identities in the client sidecar's log, no byte at the application",
            mismatch(outbound, &client, &to_app),
        )
        .await;
    cases
        .check(
            "plaintext",
            "a plaintext request to the inbound port: closed, or 403 identity_required; no byte at the application",
            plaintext(rogue, &to_app),
        )
        .await;
    cases
        .check(
            "own-identity",
            "200 for the same sidecar under its own name",
            async {
                let reply =
                    until_answered(outbound, "rogue.bench", |reply| reply.status == 200).await?;
                Ok(seen(
                    reply.version == "rogue",
                    format!("{} by {}", reply.status, reply.version),
                ))
            },
        )
        .await;
    drop(rogue_sidecar);
    Ok(())
}

async fn mismatch(outbound: SocketAddr, client: &Sidecar, to_app: &Relay) -> Result<Finding> {
    let reply = until_answered(outbound, "echo.bench", |reply| reply.status == 502).await?;
    // The access log is written in batches.
    let names = [
        "spiffe://bench.test/ns/bench/sa/echo",
        "spiffe://bench.test/ns/bench/sa/rogue",
    ];
    let mut logged = false;
    for _ in 0..40 {
        let log = client.process.output();
        logged = log
            .lines()
            .any(|line| names.iter().all(|name| line.contains(name)));
        if logged {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    let bytes: usize = to_app
        .recordings()
        .iter()
        .map(|recording| recording.sent.len())
        .sum();
    let text = format!(
        "{} {}; both named in one line of the log: {logged}; {bytes} bytes at the application",
        reply.status, reply.reason
    );
    let ok = reply.reason == "identity_mismatch" && logged && bytes == 0;
    Ok(seen(
        ok,
        if logged {
            text
        } else {
            format!("{text}\n{}", client.process.tail())
        },
    ))
}

const OPEN: &str = "still open after 20 s";

/// Nothing at all, or the mesh's own response.
fn is_refusal(answer: &str) -> bool {
    let own = answer.starts_with("HTTP/1.1 403 ")
        && answer.contains("\r\nweft-reason: identity_required\r\n");
    answer.is_empty() || (own && !answer.contains("x-version"))
}

async fn plaintext(inbound: SocketAddr, to_app: &Relay) -> Result<Finding> {
    let mut stream = TcpStream::connect(inbound)
        .await
        .context("connect to the inbound port")?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: rogue.bench\r\nconnection: close\r\n\r\n")
        .await
        .context("write")?;
    let mut answer = Vec::new();
    // A reset is as good a refusal as an end.
    let end = match timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await {
        Ok(Ok(_)) => "closed",
        Ok(Err(_)) => "reset",
        Err(_) => OPEN,
    };
    let bytes: usize = to_app
        .recordings()
        .iter()
        .map(|recording| recording.sent.len())
        .sum();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let ok = end != OPEN && bytes == 0 && is_refusal(&answer);
    let answer = answer.split("\r\n\r\n").next().unwrap_or_default();
    Ok(seen(
        ok,
        format!("{end}, answer {answer:?}, {bytes} bytes at the application"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_and_the_meshs_own_answer_are_refusals() {
        for (answer, expect) in [
            ("", true),
            (
                "HTTP/1.1 403 Forbidden\r\nweft-reason: identity_required\r\n\r\nno",
                true,
            ),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nx-version: rogue\r\n\r\n", false),
            (
                "HTTP/1.1 403 Forbidden\r\nx-version: a\r\nweft-reason: identity_required\r\n\r\n",
                false,
            ),
        ] {
            assert_eq!(is_refusal(answer), expect, "{answer:?}");
        }
    }
}
