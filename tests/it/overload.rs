//! A sidecar with too little of something refuses work, says so, and recovers.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weft_kit::raw1::End;
use weft_kit::raw2::Peer;

use crate::lifecycle::process::Process;
use crate::support::http1::{self, Http1};
use crate::support::mesh::{Mesh, Metrics, Sidecar, Workload, service, settings};
use crate::support::{app, http2, soon, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: echo\r\n\r\n";
/// What a connection is charged.
const CONNECTION: usize = 16 * 1024;

/// As many connections as are charged this share of a budget, per cent.
fn connections(budget: usize, per_cent: usize) -> usize {
    budget / 100 * per_cent / CONNECTION
}

async fn metrics(process: &Process) -> Metrics {
    let page = http1::get(process.public, "admin", "/metrics").await;
    Metrics(page.text())
}

async fn until_pressure(process: &Process, wanted: f64) {
    until("the pressure", async || {
        let metrics = metrics(process).await;
        if metrics.sum("weft_memory_pressure") == wanted {
            Ok(())
        } else {
            Err(metrics.lines("weft_memory"))
        }
    })
    .await;
}

#[tokio::test]
async fn memory_that_runs_out_is_noticed_refused_and_given_back() {
    const BUDGET: usize = 32 << 20;
    // This process holds the other ends.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();

    let app = app::echo("echo").await;
    let workload = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    let mut settings = settings(&workload, &mesh.token(&workload), mesh.control);
    settings.insert("MEMORY".to_owned(), BUDGET.to_string());
    let process = Process::start(&settings);
    process.ready().await;

    let mut kept = Http1::connect(workload.outbound).await.unwrap();
    let reply = kept.exchange(GET).await.unwrap();
    assert_eq!(
        (reply.outcome(), reply.header("connection")),
        ((200, ""), None)
    );
    let mut multiplexed = http2::connect(workload.outbound).await;
    let whole = http2::get(&mut multiplexed, "http://echo/").await;
    assert_eq!(whole.head.status(), 200);

    // High: everything is served, and nobody is kept.
    let mut idle = Vec::new();
    while idle.len() < connections(BUDGET, 88) {
        idle.push(TcpStream::connect(workload.outbound).await.unwrap());
    }
    until_pressure(&process, 1.0).await;
    let reply = kept.exchange(GET).await.unwrap();
    let close = reply.header("connection");
    assert_eq!((reply.outcome(), close), ((200, ""), Some("close")));
    let left = async {
        while !multiplexed.is_closed() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Each connection is looked at every 10 s.
    let left = tokio::time::timeout(Duration::from_secs(15), left).await;
    left.expect("GOAWAY for the HTTP/2 connection");

    // Critical: no new requests, and at the end no new connections.
    until("the end of the memory", async || {
        for _ in 0..100 {
            idle.extend(TcpStream::connect(workload.outbound).await);
        }
        let refused = metrics(&process)
            .await
            .sum("weft_overloaded_total{what=\"memory\"}");
        (refused > 0.0)
            .then_some(())
            .ok_or(format!("{refused} refused"))
    })
    .await;
    until_pressure(&process, 2.0).await;
    let reply = until("an answer", async || {
        // Room for one.
        idle.pop();
        http1::try_send(workload.outbound, GET).await
    })
    .await;
    let close = reply.header("connection");
    let refused = ((503, "proxy_overloaded"), Some("close"));
    assert_eq!((reply.outcome(), close), refused);
    let counted = metrics(&process).await;
    assert_eq!(counted.sum("weft_overloaded_total{what=\"request\"}"), 1.0);

    // And back.
    drop(idle);
    until_pressure(&process, 0.0).await;
    let mut client = Http1::connect(workload.outbound).await.unwrap();
    let reply = client.exchange(GET).await.unwrap();
    assert_eq!(
        (reply.outcome(), reply.header("connection")),
        ((200, ""), None)
    );
}

#[tokio::test]
async fn who_keeps_most_goes_first() {
    const BUDGET: usize = 32 << 20;
    let app = app::tcp(|mut stream| async move {
        while let Some(head) = app::head(&mut stream).await {
            if head.starts_with("GET /stall") {
                std::future::pending::<()>().await;
            }
            let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(ok.as_bytes()).await.unwrap();
        }
    })
    .await;
    let workload = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    let mut settings = settings(&workload, &mesh.token(&workload), mesh.control);
    settings.insert("MEMORY".to_owned(), BUDGET.to_string());
    let process = Process::start(&settings);
    process.ready().await;

    let mut modest = Http1::connect(workload.outbound).await.unwrap();
    assert_eq!(modest.exchange(GET).await.unwrap().outcome(), (200, ""));
    let mut greedy = Peer::connect(workload.outbound, &[]).await.unwrap();
    for n in 0..100 {
        greedy.get(2 * n + 1, "echo", "/stall").await.unwrap();
    }
    greedy.ping(1).await.unwrap();

    let mut idle = Vec::new();
    until("the end of the memory", async || {
        for _ in 0..50 {
            idle.extend(TcpStream::connect(workload.outbound).await);
        }
        let ended = metrics(&process)
            .await
            .sum("weft_overloaded_total{what=\"largest\"}");
        (ended > 0.0).then_some(()).ok_or(format!("{ended} ended"))
    })
    .await;
    assert_eq!(greedy.goodbye().await.end, End::Closed);
    drop(idle);
    until_pressure(&process, 0.0).await;
    assert_eq!(modest.exchange(GET).await.unwrap().outcome(), (200, ""));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_reset_and_the_others_live() {
    const LIMIT: usize = 16;
    let app = app::echo("echo").await;
    let server = Workload::new("echo").serves(&app);
    let client = Workload::new("client");
    let documents = service("echo", "app: echo", Some("http")) + &server.yaml() + &client.yaml();
    let mesh = Mesh::strict(&documents).await;
    let _server = mesh.sidecar(&server).await;
    let mut settings = settings(&client, &mesh.token(&client), mesh.control);
    settings.insert("MAX_CONNECTIONS".to_owned(), LIMIT.to_string());
    let sidecar = Sidecar::start(&settings).await.unwrap();
    sidecar.ready().await;

    let mut kept = Http1::connect(client.outbound).await.unwrap();
    assert_eq!(kept.exchange(GET).await.unwrap().outcome(), (200, ""));
    let mut idle = Vec::new();
    while idle.len() < LIMIT - 1 {
        idle.push(TcpStream::connect(client.outbound).await.unwrap());
    }
    // The reset may come before the end of `connect`.
    let beyond = async {
        TcpStream::connect(client.outbound)
            .await?
            .read(&mut [0])
            .await
    };
    let error = soon("the reset", beyond).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let refused = "weft_overloaded_total{what=\"connections\"}";
    sidecar.until_metric(refused, |n| n == 1.0).await;
    assert_eq!(kept.exchange(GET).await.unwrap().outcome(), (200, ""));

    drop(idle.pop());
    until("a place", async || {
        let reply = http1::try_send(client.outbound, GET).await?;
        (reply.status == 200).then_some(()).ok_or(reply.text())
    })
    .await;
}
