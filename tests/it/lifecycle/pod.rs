//! What a pod asks of its sidecar: probes on every address, and a drain before the end.

use std::net::Ipv6Addr;
use std::process::{Command, Stdio};

use super::keeping;
use super::process::Process;
use crate::support::app;
use crate::support::http1;
use crate::support::mesh::{Mesh, Workload, service};
use crate::support::{free_port, loopback, until};

#[tokio::test]
async fn probes_come_to_any_address_and_a_hook_drains() {
    let app = app::echo("echo").await;
    let workload = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    let state = tempfile::tempdir().unwrap();
    let settings = keeping(&mesh, &workload, state.path());
    let (port, admin) = (free_port(), loopback(free_port()));
    let mut hook = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
    hook.arg("drain")
        .env_clear()
        .envs(settings.iter().map(|(k, v)| (format!("WEFT_PROXY_{k}"), v)))
        .env("WEFT_PROXY_ADMIN", admin.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert_eq!(hook.status().unwrap().code(), Some(1), "nobody is there");

    let mut process = Process::start_with(&settings, |command| {
        command
            .env("WEFT_PROXY_ADMIN", admin.to_string())
            .env("WEFT_PROXY_PUBLIC_ADMIN", format!("0.0.0.0:{port}"));
    });
    process.public = loopback(port);
    process.ready().await;
    let ipv6 = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if ipv6 {
        process.public = (Ipv6Addr::LOCALHOST, port).into();
        process.ready().await;
    }

    assert_eq!(hook.status().unwrap().code(), Some(0));
    until("the end of readiness", async || {
        let get = "GET /ready HTTP/1.1\r\nhost: a\r\n\r\n";
        match http1::try_send(process.public, get).await?.status {
            503 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}
