//! Configuration that is wrong or gone: what was good stays in force, and `/ready` says
//! what is missing.

use std::net::TcpListener;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::app;
use crate::support::http1::{get, try_send};
use crate::support::mesh::{Mesh, Sidecar, Workload, pair, route, service};
use crate::support::until;

const GET: &str = "GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n";

fn to(backend: &str) -> String {
    let rule = format!("  - backendRefs: [{{name: {backend}, port: 80}}]");
    route("HTTPRoute", "echo", &rule)
}

#[tokio::test]
async fn a_bad_document_leaves_the_last_good_one_in_force() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let marked = |mark: &str| {
        to("echo")
            + &format!(
                "    filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-mark, value: {mark}}}]}}}}]\n"
            )
    };
    let sees = async |mark: &str| {
        until(mark, async || {
            let reply = get(pair.outbound, "echo", "/").await;
            assert_eq!(reply.status, 200);
            match reply.header("x-mark") {
                Some(seen) if seen == mark => Ok(()),
                seen => Err(format!("{seen:?}")),
            }
        })
        .await;
    };
    pair.mesh.write("route.yaml", &marked("one"));
    sees("one").await;
    let bad = [
        &marked("two").replace("HTTPRoute", "HttpRoute"),
        &marked("two").replace("rules:", "rulez:"),
        &marked("two").replace("port: 80", "port: eighty"),
        "---\n{ [",
        "",
    ];
    for (number, bad) in bad.into_iter().enumerate() {
        pair.mesh.write("route.yaml", bad);
        // Another file, read at the same time or later: what it says is in force, so the
        // bad one has been read.
        let name = format!("marker-{number}");
        pair.mesh
            .write("marker.yaml", &service(&name, "app: echo", Some("http")));
        until(&name, async || {
            match get(pair.outbound, &name, "/").await.status {
                200 => Ok(()),
                status => Err(status.to_string()),
            }
        })
        .await;
        let reply = get(pair.outbound, "echo", "/").await;
        assert_eq!(reply.header("x-mark"), Some("one"), "{bad}");
    }
    pair.mesh.write("route.yaml", &marked("three"));
    sees("three").await;
}

#[tokio::test]
async fn traffic_goes_on_without_a_control_plane() {
    let app = app::echo("echo").await;
    let mut pair = pair(Some("http"), &app).await;
    assert_eq!(try_send(pair.outbound, GET).await.unwrap().status, 200);
    let connected = "weft_control_connected";
    pair.client.until_metric(connected, |n| n == 1.0).await;
    pair.mesh.stop_control().await;
    pair.client.until_metric(connected, |n| n == 0.0).await;
    pair.server.until_metric(connected, |n| n == 0.0).await;
    for _ in 0..20 {
        assert_eq!(
            try_send(pair.outbound, GET).await.unwrap().outcome(),
            (200, "")
        );
    }
    pair.client.ready().await;

    // It comes back with the same authority, and what has changed is in force.
    pair.mesh
        .write("new.yaml", &service("new", "app: echo", Some("http")));
    pair.mesh.start_control().await;
    pair.client.until_metric(connected, |n| n == 1.0).await;
    until("the new service", async || {
        match get(pair.outbound, "new", "/").await.outcome() {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(
        try_send(pair.outbound, GET).await.unwrap().outcome(),
        (200, "")
    );
}

#[tokio::test]
async fn a_control_plane_that_sends_junk_does_no_harm() {
    let app = app::echo("echo").await;
    let mut pair = pair(Some("http"), &app).await;
    assert_eq!(try_send(pair.outbound, GET).await.unwrap().status, 200);
    pair.mesh.stop_control().await;
    let listener = until("the port is free", async || {
        tokio::net::TcpListener::bind(pair.mesh.control)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    // Once a new connection from each sidecar has had its junk, they have seen it.
    for junk in [
        &b"\x00\xff\x16\x03\x03garbage"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ] {
        for _ in 0..2 {
            let (mut stream, _): (TcpStream, _) =
                crate::support::soon("a sidecar", listener.accept())
                    .await
                    .unwrap();
            let _ = stream.write_all(junk).await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
        assert_eq!(
            try_send(pair.outbound, GET).await.unwrap().outcome(),
            (200, "")
        );
    }
    drop(listener);
    pair.mesh.start_control().await;
    pair.client
        .until_metric("weft_control_connected", |n| n == 1.0)
        .await;
    for sidecar in [&pair.client, &pair.server] {
        assert_eq!(
            sidecar.metrics().await.sum("weft_runtime_panics_total"),
            0.0
        );
    }
}

#[tokio::test]
async fn a_port_in_use_is_named_and_taken_when_it_is_free() {
    let app = app::echo("echo").await;
    let workload = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    let taken = TcpListener::bind(workload.inbound()).unwrap();
    let sidecar = mesh.launch(&workload).await;
    let address = workload.inbound().to_string();
    let why = sidecar.not_ready(&address).await;
    assert!(why.contains("in use"), "{why}");
    sidecar
        .until_metric("weft_config_in_sync", |n| n == 0.0)
        .await;
    // The others are open.
    let reply = get(workload.outbound, "nobody", "/").await;
    assert_eq!(reply.outcome(), (404, "no_route"));
    drop(taken);
    sidecar.ready().await;
    sidecar
        .until_metric("weft_config_in_sync", |n| n == 1.0)
        .await;
    assert!(TcpStream::connect(workload.inbound()).await.is_ok());
}

#[tokio::test]
async fn a_workload_without_a_document_waits_for_it() {
    let workload = Workload::new("late");
    let mesh = Mesh::strict("").await;
    let sidecar = mesh.launch(&workload).await;
    sidecar.not_ready("Workload document").await;
    assert!(TcpStream::connect(workload.outbound).await.is_err());
    mesh.write("late.yaml", &workload.yaml());
    sidecar.ready().await;
    let reply = get(workload.outbound, "nobody", "/").await;
    assert_eq!(reply.outcome(), (404, "no_route"));
}

#[tokio::test]
async fn a_control_plane_that_is_not_there_is_named() {
    let app = app::echo("echo").await;
    let workload = Workload::new("echo").serves(&app);
    let mut mesh = Mesh::strict(&workload.yaml()).await;
    let token = mesh.token(&workload);
    mesh.stop_control().await;
    let sidecar = Sidecar::launch(&workload, &token, mesh.control).await;
    sidecar.not_ready("no certificate yet").await;
    // Its token is good for whoever starts later.
    mesh.start_control().await;
    sidecar.ready().await;
}

#[tokio::test]
async fn listeners_follow_their_document() {
    let app = app::echo("echo").await;
    let workload = Workload::new("client");
    let moved = Workload::new("client").upstream("echo");
    let server = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &server.yaml();
    let mesh = Mesh::strict(&documents).await;
    mesh.write("client.yaml", &workload.yaml());
    let _server = mesh.sidecar(&server).await;
    let _sidecar = mesh.sidecar(&workload).await;
    assert_eq!(get(workload.outbound, "echo", "/").await.status, 200);
    mesh.write("client.yaml", &moved.yaml());
    for address in [moved.outbound, moved.local()] {
        until("the new ports", async || {
            match try_send(address, GET).await {
                Ok(reply) if reply.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    until(
        "the old port is closed",
        async || match TcpStream::connect(workload.outbound).await {
            Ok(_) => Err("still open".to_owned()),
            Err(_) => Ok(()),
        },
    )
    .await;
}

#[tokio::test]
async fn documents_that_have_disappeared_stay_in_force() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let documents = std::fs::read_to_string(pair.mesh.config().join("mesh.yaml")).unwrap();
    std::fs::remove_dir_all(pair.mesh.config()).unwrap();
    for _ in 0..20 {
        assert_eq!(
            try_send(pair.outbound, GET).await.unwrap().outcome(),
            (200, "")
        );
    }
    // A name that was not looked up before is still known.
    assert_eq!(get(pair.outbound, "echo.test", "/").await.status, 200);
    // The directory is back: changes count again.
    std::fs::create_dir(pair.mesh.config()).unwrap();
    pair.mesh.write("mesh.yaml", &documents);
    pair.mesh
        .write("new.yaml", &service("new", "app: echo", Some("http")));
    until("the new service", async || {
        match get(pair.outbound, "new", "/").await.outcome() {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
