//! State on disk.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::{keeping, without_token};
use crate::support::app;
use crate::support::http1::{self, Http1};
use crate::support::mesh::{Mesh, Settings, Sidecar, Workload, service};
use crate::support::until;

const GET: &str = "GET / HTTP/1.1\r\nhost: echo\r\n\r\n";

/// Nobody listens there any more.
async fn until_closed(addresses: &[std::net::SocketAddr]) {
    for address in addresses {
        until("a port that is free", async || {
            match TcpStream::connect(address).await {
                Err(_) => Ok(()),
                Ok(_) => Err(format!("{address} is open")),
            }
        })
        .await;
    }
}

/// Waits until everything that the sidecar has is in its directory: the file does not change
/// any more and the destination that was asked for is in it.
async fn until_kept(state: &Path, what: &str) {
    until("a configuration on disk", async || {
        let text = fs::read(state.join("config")).map_err(|error| error.to_string())?;
        let there = text.windows(what.len()).any(|part| part == what.as_bytes());
        there.then_some(()).ok_or_else(|| format!("no {what}"))
    })
    .await;
}

/// Writes a file as a sidecar does: nobody else may read it.
fn place(path: &Path, bytes: &[u8]) {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(bytes).unwrap();
}

async fn start(settings: &Settings) -> (Sidecar, Duration) {
    let started = Instant::now();
    let sidecar = Sidecar::start(settings).await.unwrap();
    sidecar.ready().await;
    (sidecar, started.elapsed())
}

#[tokio::test]
async fn a_sidecar_starts_again_without_a_control_plane() {
    let app = app::echo("echo").await;
    let server = Workload::new("echo").serves(&app);
    let client = Workload::new("client").upstream("echo").upstream("gone");
    let echo = service("echo", "app: echo", Some("http"));
    let gone = service("gone", "app: gone", Some("http"));
    let documents = format!("{echo}{gone}{}{}", server.yaml(), client.yaml());
    let mut mesh = Mesh::strict(&documents).await;
    let directory = tempfile::tempdir().unwrap();
    let states = ["server", "client"].map(|name| directory.path().join(name));
    let settings = [
        keeping(&mesh, &server, &states[0]),
        keeping(&mesh, &client, &states[1]),
    ];
    let (mut serving, _) = start(&settings[0]).await;
    let (mut calling, _) = start(&settings[1]).await;
    assert_eq!(http1::send(client.outbound, GET).await.status, 200);
    until_kept(&states[0], "inbound|8080").await;
    until_kept(&states[1], "outbound/echo").await;
    until_kept(&states[1], "echo.test:80").await;
    calling
        .until_metric(
            "weft_state_writes_total{file=\"identity\",result=\"ok\"}",
            |n| n >= 1.0,
        )
        .await;

    // Both are killed and there is no control plane any more; their tokens are used up.
    mesh.stop_control().await;
    serving.crash();
    calling.crash();
    serving.ended().await;
    calling.ended().await;
    until_closed(&[client.outbound, client.local(), server.inbound()]).await;
    let settings = settings.map(|settings| without_token(&settings));
    let (serving, first) = start(&settings[0]).await;
    let (calling, second) = start(&settings[1]).await;
    let limit = Duration::from_secs(1);
    assert!(first < limit && second < limit, "{first:?}, {second:?}");
    let (_, text) = calling.readiness().await;
    let second_line = text.lines().nth(1).unwrap_or_default();
    assert!(
        second_line.starts_with("configuration from disk, saved "),
        "{text}"
    );
    assert!(
        second_line.ends_with(" ago; no control plane yet"),
        "{text}"
    );
    // By name, which was looked up before the crash, and by port.
    assert_eq!(http1::send(client.outbound, GET).await.status, 200);
    assert_eq!(http1::send(client.local(), GET).await.status, 200);
    let metrics = calling.metrics().await;
    assert_eq!(metrics.sum("weft_config_from_disk"), 1.0);
    assert!(metrics.sum("weft_config_last_applied_timestamp_seconds") > 0.0);

    // The control plane comes back, and has less than before.
    let only = client.yaml().replace(
        &format!(
            ", {{service: gone, localPort: {}}}",
            client.local_of(1).port()
        ),
        "",
    );
    assert_ne!(only, client.yaml());
    assert!(TcpStream::connect(client.local_of(1)).await.is_ok());
    let documents = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: mesh}}\n\
         spec: {{trustDomain: test.mesh, mtls: {{mode: strict}}}}\n{echo}{}{only}",
        server.yaml()
    );
    mesh.write("mesh.yaml", &documents);
    mesh.start_control().await;
    for sidecar in [&serving, &calling] {
        sidecar
            .until_metric("weft_control_connected", |n| n == 1.0)
            .await;
        sidecar
            .until_metric("weft_config_from_disk", |n| n == 0.0)
            .await;
    }
    until_closed(&[client.local_of(1)]).await;
    assert_eq!(calling.readiness().await, (200, "ready\n".to_owned()));
    let mut other = Http1::connect(client.outbound).await.unwrap();
    assert_eq!(other.exchange(GET).await.unwrap().status, 200);
    // What was removed is removed on disk too.
    until("a file without it", async || {
        let text = fs::read(states[1].join("config")).unwrap();
        let there = text.windows(12).any(|part| part == b"gone.test:80");
        if there {
            Err("it is there".to_owned())
        } else {
            Ok(())
        }
    })
    .await;
}

#[tokio::test]
async fn files_that_cannot_be_trusted_are_set_aside() {
    let app = app::echo("echo").await;
    let server = Workload::new("echo").serves(&app);
    let other = Workload::new("other");
    let documents = service("echo", "app: echo", Some("http")) + &server.yaml() + &other.yaml();
    let mesh = Mesh::strict(&documents).await;
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let (mut first, _) = start(&keeping(&mesh, &server, &state)).await;
    until_kept(&state, "inbound|8080").await;
    first.crash();
    first.ended().await;
    until_closed(&[server.inbound()]).await;
    let read = |name: &str| fs::read(state.join(name)).unwrap();
    let good = [("identity", read("identity")), ("config", read("config"))];
    type Damage = (&'static str, fn(&mut Vec<u8>));
    let damages: [Damage; 5] = [
        ("identity", |bytes| bytes.truncate(100)),
        ("identity", Vec::clear),
        ("config", |bytes| bytes.truncate(60)),
        ("config", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("config", |bytes| bytes[11] = 9),
    ];
    for (number, (name, damage)) in damages.into_iter().enumerate() {
        // A directory each: the writing thread of one that was killed may live on here.
        let state = directory.path().join(number.to_string());
        fs::create_dir(&state).unwrap();
        for (file, bytes) in &good {
            let mut bytes = bytes.clone();
            if *file == name {
                damage(&mut bytes);
            }
            place(&state.join(file), &bytes);
        }
        let damaged = fs::read(state.join(name)).unwrap();
        // As if there were none: a new token is needed only without an identity.
        let (mut sidecar, _) = start(&keeping(&mesh, &server, &state)).await;
        let rejected = fs::read(state.join(format!("{name}.rejected")));
        assert_eq!(rejected.unwrap(), damaged, "{name}");
        until_kept(&state, "inbound|8080").await;
        sidecar.crash();
        sidecar.ended().await;
        until_closed(&[server.inbound()]).await;
    }
    // Of another workload.
    let foreign = keeping(&mesh, &other, &state);
    let error = Sidecar::start(&without_token(&foreign))
        .await
        .err()
        .unwrap();
    assert!(
        error.contains("no valid identity and no join token"),
        "{error}"
    );
    assert!(error.contains("weft-control token create"), "{error}");
    assert!(state.join("identity.rejected").exists() && !state.join("identity").exists());
}

#[tokio::test]
async fn a_disk_that_takes_nothing_harms_nobody() {
    let app = app::echo("echo").await;
    let server = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &server.yaml();
    let mesh = Mesh::strict(&documents).await;
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    // In the way of every new file; root may write where others may not.
    fs::create_dir_all(state.join(".config.new")).unwrap();
    let (sidecar, _) = start(&keeping(&mesh, &server, &state)).await;
    let failed = "weft_state_writes_total{file=\"config\",result=\"failed\"}";
    sidecar.until_metric(failed, |n| n >= 1.0).await;
    assert_eq!(sidecar.readiness().await.0, 200);
    fs::remove_dir(state.join(".config.new")).unwrap();
    // Something changes, and is kept.
    mesh.write("again.yaml", &service("again", "app: echo", Some("http")));
    let upstream = server.clone().upstream("again");
    let mesh_config = "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: mesh}\n\
         spec: {trustDomain: test.mesh, mtls: {mode: strict}}\n";
    let text = format!(
        "{mesh_config}{}{}",
        service("echo", "app: echo", Some("http")),
        upstream.yaml()
    );
    mesh.write("mesh.yaml", &text);
    until_kept(&state, "again.test:80").await;
}
