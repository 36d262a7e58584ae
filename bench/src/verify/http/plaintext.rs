//! Plaintext where there must be none (T30): a strict port says nothing of the application to
//! whoever has not proved who he is, whatever he begins with; and what a server says before
//! the handshake is nobody's answer.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;
use weft_kit::origin::capture::Capture;
use weft_kit::raw1::Client;

use super::lanes::{Door, Lane, Mtls, PATIENCE, Speaks, Stage, connect};
use crate::error::{Context as _, Result};
use crate::process::{Spec, free_address, which};
use crate::verify::{Cases, Finding, Setting, seen};
use crate::weft::{self, Port, Workload};

/// The answer of the application, which nobody here may see.
const APP: &str = "swordfish-30";

pub(crate) async fn run(setting: &Setting, cases: &mut Cases) -> Result<()> {
    let origin = Capture::answering(|_| {
        let length = APP.len();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{APP}").into_bytes()
    });
    let origin = origin.await.context("start an origin")?;
    let early = Early::start().await?;
    let documents = early_documents(early.addresses())?;
    let apps = [(origin.address(), Speaks::Http1)];
    let stage = Stage::start_with(setting, Mtls::Strict, &apps, &documents, |spec| spec).await?;
    let lane = &stage.lanes[0];
    cases
        .check(
            "strict-port",
            "T30: nothing of the application for plaintext, garbage and half handshakes; it gets 0 bytes",
            strict_port(lane, &origin),
        )
        .await;
    let expected =
        "T30: no handshake without a certificate of the mesh, in no version, for no ALPN";
    match which("openssl") {
        Some(openssl) => {
            let check = handshakes(setting, lane, &origin, &openssl);
            cases.check("no-certificate", expected, check).await;
        }
        None => cases.skip("no-certificate", expected, "no openssl"),
    }
    cases
        .check(
            "before-the-handshake",
            "T30: what a server says before or in place of a handshake is dropped with the connection: 502 or 503",
            before_handshake(&stage, early.count()),
        )
        .await;
    let mut client = Client::new(connect(lane.door(Door::Outbound)).await?);
    let request = format!("GET /good HTTP/1.1\r\nhost: {}\r\n\r\n", lane.host);
    cases
        .check("good", "a client with a sidecar is served", async {
            let answer = client.exchange(request).await.context("the client")?;
            Ok(seen(answer.text() == APP, answer.line))
        })
        .await;
    Ok(())
}

/// What strangers begin with.
fn beginnings(host: &str) -> Vec<(&'static str, Vec<u8>)> {
    let get = format!("GET /stranger HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let http2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // A ClientHello of TLS 1.3 without extensions, and its first half.
    let mut hello = vec![22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0x13, 1, 1, 0]);
    let half = hello[..20].to_vec();
    vec![
        ("HTTP/1", get.clone().into_bytes()),
        ("HTTP/1, twice", get.repeat(2).into_bytes()),
        ("HTTP/2", http2.as_bytes().to_vec()),
        (
            "CONNECT",
            format!("CONNECT {host}:80 HTTP/1.1\r\nhost: {host}:80\r\n\r\n{get}").into_bytes(),
        ),
        ("garbage", vec![0xff; 500]),
        ("zeros", vec![0; 500]),
        ("an empty line", format!("\r\n{get}").into_bytes()),
        (
            "half a ClientHello and a request",
            [half, get.clone().into_bytes()].concat(),
        ),
        (
            "a ClientHello and a request",
            [hello.clone(), get.clone().into_bytes()].concat(),
        ),
        (
            "a request and a ClientHello",
            [get.clone().into_bytes(), hello].concat(),
        ),
        (
            "an alert and a request",
            [&[21, 3, 3, 0, 2, 1, 0][..], get.as_bytes()].concat(),
        ),
        (
            "application data",
            [&[23, 3, 3, 0, 60][..], get.as_bytes()].concat(),
        ),
        (
            "SSL 2",
            [&[0x80, 0x2e, 1, 0, 2][..], get.as_bytes()].concat(),
        ),
        (
            "PROXY protocol",
            format!("PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n{get}").into_bytes(),
        ),
        ("one byte of TLS", vec![22]),
    ]
}

async fn strict_port(lane: &Lane, origin: &Capture) -> Result<Finding> {
    let all = beginnings(&lane.host);
    let mut answers = Vec::new();
    for (name, bytes) in &all {
        let got = exchange(lane.door(Door::Inbound), bytes).await?;
        let text = String::from_utf8_lossy(&got).into_owned();
        let upstream: usize = origin.connections().iter().map(|c| c.bytes.len()).sum();
        if text.contains(APP) || upstream > 0 || text.starts_with("HTTP/1.1 2") {
            return Ok(seen(
                false,
                format!("{name}: {upstream} bytes upstream, {text:?}"),
            ));
        }
        answers.push(got.len());
    }
    Ok(seen(
        true,
        format!(
            "{} beginnings, 0 bytes upstream, at most {} bytes back",
            all.len(),
            answers.iter().max().unwrap_or(&0)
        ),
    ))
}

/// Writes, half-closes, and reads to the end.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = connect(address).await?;
    let mut got = Vec::new();
    let talk = async {
        // It may be closed already: then that is the answer.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut got).await;
    };
    timeout(PATIENCE, talk)
        .await
        .context("the port does not close")?;
    Ok(got)
}

async fn handshakes(
    setting: &Setting,
    lane: &Lane,
    origin: &Capture,
    openssl: &std::path::Path,
) -> Result<Finding> {
    let address = lane.door(Door::Inbound).to_string();
    let script = setting.dir().join("handshake.sh");
    let text = "#!/bin/sh\n# Arguments: openssl, address, options\nprogram=$1; address=$2; shift 2\n\
                printf 'GET /stranger HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n' | timeout 5 \"$program\" s_client -connect \"$address\" -quiet \"$@\" 2>&1\ntrue\n";
    std::fs::write(&script, text).context(script.display())?;
    let mut tried = 0;
    for options in [
        &["-alpn", "http/1.1"][..],
        &["-alpn", "h2"],
        &["-alpn", "weft-tcp"],
        &["-alpn", "no-such-protocol"],
        &[],
        &["-tls1_3", "-servername", "other.bench.svc.cluster.local"],
        &["-tls1_2"],
        &["-tls1_2", "-alpn", "http/1.1"],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    ] {
        let mut spec = Spec::new("openssl", "/bin/sh")
            .arg(&script)
            .arg(openssl)
            .arg(&address);
        for option in options {
            spec = spec.arg(option);
        }
        let output = spec.run(setting.dir(), Duration::from_secs(10)).await?;
        let upstream: usize = origin.connections().iter().map(|c| c.bytes.len()).sum();
        if output.stdout.contains(APP) || upstream > 0 {
            let what = format!(
                "{options:?}: {upstream} bytes upstream, {:?}",
                output.stdout
            );
            return Ok(seen(false, what));
        }
        tried += 1;
    }
    Ok(seen(true, format!("{tried} handshakes, 0 bytes upstream")))
}

/// Servers that do not wait for a handshake.
struct Early {
    all: Vec<(SocketAddr, tokio::task::AbortHandle)>,
}

const EARLY: [(&str, &[u8]); 5] = [
    (
        "an answer",
        b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nSMUGGLED",
    ),
    (
        "an answer in an alert",
        b"\x15\x03\x03\x00\x02\x01\x00HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nSMUGGLED",
    ),
    (
        "application data",
        b"\x17\x03\x03\x00\x2eHTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nSMUGGLED",
    ),
    (
        "HTTP/2",
        b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x04\0\0\0\x01\x88\0\0\x08\0\x01\0\0\0\x01SMUGGLED",
    ),
    ("nothing", b""),
];

impl Early {
    async fn start() -> Result<Self> {
        let mut all = Vec::new();
        for (_, bytes) in EARLY {
            let listener = TcpListener::bind(("127.0.0.1", 0))
                .await
                .context("listen")?;
            let address = listener.local_addr().context("listen")?;
            let task = tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    // Who is there to hear it is the question.
                    let _ = stream.write_all(bytes).await;
                    if bytes.is_empty() {
                        continue;
                    }
                    tokio::spawn(async move {
                        let mut waste = [0; 4096];
                        while matches!(stream.read(&mut waste).await, Ok(1..)) {
                            let _ = stream.write_all(bytes).await;
                        }
                    });
                }
            });
            all.push((address, task.abort_handle()));
        }
        Ok(Self { all })
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.all.iter().map(|(address, _)| *address)
    }

    fn count(&self) -> usize {
        self.all.len()
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        for (_, task) in &self.all {
            task.abort();
        }
    }
}

/// A service and a workload for each, which nobody stands for but those servers.
fn early_documents(addresses: impl Iterator<Item = SocketAddr>) -> Result<String> {
    let mut text = String::new();
    for (number, listen) in addresses.enumerate() {
        let name = format!("early-{number}");
        let workload = Workload {
            name: &name,
            account: "early",
            app: &name,
            version: "",
            ports: vec![Port {
                port: 8080,
                protocol: Some("http"),
                listen,
                app: free_address()?,
            }],
            outbound: None,
            upstreams: Vec::new(),
        };
        text += &weft::service(&name, &format!("app: {name}"), 8080, Some("http"));
        text += &workload.yaml();
    }
    Ok(text)
}

async fn before_handshake(stage: &Stage, count: usize) -> Result<Finding> {
    let mut text = Vec::new();
    for (number, (name, _)) in EARLY.iter().enumerate().take(count) {
        let mut client = Client::new(connect(stage.outbound).await?);
        let request = format!("GET / HTTP/1.1\r\nhost: early-{number}.bench\r\n\r\n");
        let answer = client.exchange(request).await.context(name)?;
        let reason = answer.header("weft-reason").unwrap_or_default().to_owned();
        let smuggled = String::from_utf8_lossy(client.received()).contains("SMUGGLED");
        let status = answer.status();
        text.push(format!("{name}: {status} {reason}"));
        if smuggled || !matches!(status, 502 | 503) {
            return Ok(seen(false, text.join("; ")));
        }
    }
    Ok(seen(true, text.join("; ")))
}
