//! Who may talk to whom: plaintext, certificates that are not of the mesh, and servers that
//! are not who they should be.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use weft_certs::ca::Ca;
use weft_certs::{SpiffeId, SvidVerifier, SystemClock, WorkloadCert, tls};

use crate::support::app;
use crate::support::http1::get;
use crate::support::http2;
use crate::support::mesh::{Mesh, Pair, Sidecar, Workload, pair, service, settings};
use crate::support::soon;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn plaintext_is_refused_and_reaches_nobody() {
    let app = app::echo("echo").await;
    let pair = pair(None, &app).await;
    let reply = get(pair.inbound, "echo", "/").await;
    assert_eq!(reply.outcome(), (403, "identity_required"));
    assert!(reply.text().contains("mTLS"), "{}", reply.text());
    // What is no HTTP/1 gets no words, and no bytes either.
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"[..],
        b"\x00\x01\x02\x03",
        b"EHLO me\r\n",
    ] {
        let mut stream = TcpStream::connect(pair.inbound).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut seen = Vec::new();
        // An end or a reset.
        let _ = soon("the end", stream.read_to_end(&mut seen)).await;
        assert_eq!(seen, b"");
    }
    assert_eq!(app.accepted(), 0);
    let refused = "weft_tls_handshakes_total{side=\"server\",result=\"identity_required\"}";
    pair.server.until_metric(refused, |n| n == 4.0).await;
}

#[tokio::test]
async fn permissive_ports_take_plaintext_and_mtls() {
    let app = app::echo("echo").await;
    let server = Workload::new("echo").serves(&app);
    let client = Workload::new("client");
    for protocol in [Some("http"), None] {
        let documents = service("echo", "app: echo", protocol) + &server.yaml() + &client.yaml();
        let mesh = Mesh::permissive(&documents).await;
        let mut server_sidecar = mesh.sidecar(&server).await;
        let mut client_sidecar = mesh.sidecar(&client).await;
        assert_eq!(get(server.inbound(), "any", "/").await.outcome(), (200, ""));
        let mut h2 = http2::connect(server.inbound()).await;
        let reply = http2::get(&mut h2, "http://any/").await;
        assert_eq!(reply.head.status(), 200);
        assert_eq!(get(client.outbound, "echo", "/").await.outcome(), (200, ""));
        for (labels, count) in [
            ("tls=\"none\",client=\"unknown\",client_namespace=\"\"", 2.0),
            (
                "tls=\"mtls\",client=\"client\",client_namespace=\"test\"",
                1.0,
            ),
        ] {
            let series = format!("weft_server_requests_total{{{labels}}}");
            server_sidecar.until_metric(&series, |n| n == count).await;
        }
        for sidecar in [&mut server_sidecar, &mut client_sidecar] {
            sidecar.shut_down();
            sidecar.ended().await;
        }
    }
}

#[tokio::test]
async fn a_handshake_may_be_late() {
    let app = app::echo("echo").await;
    let server = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &server.yaml();
    let mesh = Mesh::permissive(&documents).await;
    let sidecar = mesh.sidecar(&server).await;
    let mut stream = TcpStream::connect(server.inbound()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // A record of a handshake that says nothing: it fails as one, and not as HTTP.
    stream.write_all(b"\x16\x03\x01\x00\x04nope").await.unwrap();
    let mut seen = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut seen)).await;
    assert!(!seen.starts_with(b"HTTP"), "{seen:?}");
    let failed = "weft_tls_handshakes_total{side=\"server\",result=\"tls_failed\"}";
    sidecar.until_metric(failed, |n| n == 1.0).await;
}

#[tokio::test]
async fn another_workload_behind_an_address_gets_nothing() {
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let app = app::tcp(move |mut stream| {
        let heard = heard.clone();
        async move {
            // The intruder's own sidecar may connect; what counts is what it is told.
            if stream.read_u8().await.is_ok() {
                heard.send(()).unwrap();
            }
        }
    })
    .await;
    let absent = Workload::new("echo").serves(&app);
    let intruder = Workload::new("intruder").serves(&app).listen_as(&absent);
    let client = Workload::new("client").upstream("db");
    for protocol in ["http", "grpc"] {
        let documents = service("echo", "app: echo", Some(protocol))
            + &service("db", "app: echo", Some("tcp"))
            + &absent.yaml()
            + &intruder.yaml()
            + &client.yaml();
        let mesh = Mesh::strict(&documents).await;
        let mut intruding = mesh.sidecar(&intruder).await;
        let mut sidecar = mesh.sidecar(&client).await;
        let reply = get(client.outbound, "echo", "/").await;
        assert_eq!(reply.outcome(), (502, "identity_mismatch"));
        // The caller learns what happened, but no names; those are for the log.
        assert!(!reply.text().contains("spiffe"), "{}", reply.text());
        let mut stream = TcpStream::connect(client.local()).await.unwrap();
        let mut seen = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut seen)).await;
        assert_eq!(seen, b"");
        for series in [
            "weft_client_requests_total{service=\"echo\",reason=\"identity_mismatch\",code=\"502\"}",
            "weft_client_attempts_total{service=\"echo\",reason=\"identity_mismatch\"}",
            "weft_tcp_connections_closed_total{target=\"db.test\",reason=\"identity_mismatch\"}",
        ] {
            sidecar.until_metric(series, |n| n == 1.0).await;
        }
        let handshakes = "weft_tls_handshakes_total{side=\"client\",result=\"identity_mismatch\"}";
        sidecar.until_metric(handshakes, |n| n == 2.0).await;
        for sidecar in [&mut intruding, &mut sidecar] {
            sidecar.shut_down();
            sidecar.ended().await;
        }
    }
    assert!(
        hearing.try_recv().is_err(),
        "not a byte reached the intruder"
    );
}

/// The mesh's own authority: what it signs is trusted.
fn authority(pair: &Pair) -> Ca {
    Ca::open(&pair.mesh.authority()).unwrap()
}

fn id(ca: &Ca, account: &str) -> SpiffeId {
    SpiffeId::workload(ca.trust_domain(), "test", account).unwrap()
}

fn offering(ca: &Ca, certificate: Option<&WorkloadCert>) -> ClientConfig {
    let verifier = SvidVerifier::new(Arc::new(ca.bundle()), Arc::new(SystemClock));
    let resolver = certificate.map(|certificate| certificate.resolver().unwrap());
    tls::client_config(
        Arc::new(verifier),
        resolver.map(|resolver| resolver as Arc<dyn rustls::client::ResolvesClientCert>),
        &[b"http/1.1"],
    )
}

/// A GET over TLS to the server's sidecar: the answer, or how it failed.
async fn https(pair: &Pair, config: ClientConfig) -> Result<String, String> {
    let stream = TcpStream::connect(pair.inbound).await.unwrap();
    let name = ServerName::try_from("echo.test.svc.cluster.local").unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = soon("the handshake", connecting)
        .await
        .map_err(|error| format!("handshake: {error}"))?;
    let request = b"GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n";
    stream
        .write_all(request)
        .await
        .map_err(|error| format!("write: {error}"))?;
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer))
        .await
        .map_err(|error| format!("read: {error}"))?;
    if answer.is_empty() {
        return Err("closed without an answer".to_owned());
    }
    Ok(answer)
}

#[tokio::test]
async fn only_certificates_of_the_mesh_are_accepted() {
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let ca = authority(&pair);
    let now = SystemTime::now();

    let good = ca.issue(&id(&ca, "other"), HOUR, now).unwrap();
    let answer = https(&pair, offering(&ca, Some(&good))).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let counted = "weft_server_requests_total{client=\"other\",client_namespace=\"test\"}";
    pair.server.until_metric(counted, |n| n == 1.0).await;

    let foreign = Ca::create(ca.trust_domain(), now);
    let elsewhere = Ca::create(&"else.where".parse().unwrap(), now);
    let expired = ca.issue(&id(&ca, "other"), HOUR, now - 3 * HOUR).unwrap();
    let strangers = [
        ("expired", Some(expired)),
        (
            "of another root",
            Some(foreign.issue(&id(&foreign, "other"), HOUR, now).unwrap()),
        ),
        (
            "of another trust domain",
            Some(
                elsewhere
                    .issue(&id(&elsewhere, "other"), HOUR, now)
                    .unwrap(),
            ),
        ),
        ("none", None),
    ];
    let before = app.accepted();
    for (what, certificate) in &strangers {
        let answer = https(&pair, offering(&ca, certificate.as_ref())).await;
        let error = answer.expect_err(what);
        assert!(!error.contains("spiffe"), "{what}: {error}");
    }
    assert_eq!(app.accepted(), before);
    let refused = "weft_tls_handshakes_total{side=\"server\",result=\"tls_failed\"}";
    pair.server.until_metric(refused, |n| n == 4.0).await;
}

/// A ClientHello of TLS 1.2 with strong cipher suites.
fn tls12_hello() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.push(0);
    // ECDHE-ECDSA and ECDHE-RSA with AES-128-GCM.
    hello.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f]);
    hello.extend([1, 0]);
    // supported_groups: X25519; ec_point_formats; signature_algorithms: ECDSA P-256, RSA-PSS.
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 29][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 4],
    ]
    .concat();
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let length = u32::try_from(hello.len()).unwrap().to_be_bytes();
    let message = [&[1, length[1], length[2], length[3]][..], &hello].concat();
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&[0x16, 3, 1, length[0], length[1]][..], &message].concat()
}

#[tokio::test]
async fn older_versions_of_tls_are_refused() {
    const ALERT: u8 = 21;
    const PROTOCOL_VERSION: u8 = 70;
    let app = app::echo("echo").await;
    let pair = pair(Some("http"), &app).await;
    let mut stream = TcpStream::connect(pair.inbound).await.unwrap();
    stream.write_all(&tls12_hello()).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the refusal", stream.read_to_end(&mut answer)).await;
    assert_eq!(answer.first(), Some(&ALERT), "{answer:?}");
    assert_eq!(answer.last(), Some(&PROTOCOL_VERSION), "{answer:?}");
    let refused = "weft_tls_handshakes_total{side=\"server\",result=\"tls_failed\"}";
    pair.server.until_metric(refused, |n| n == 1.0).await;
}

#[tokio::test]
async fn a_join_token_is_for_one_key() {
    let app = app::echo("echo").await;
    let workload = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    let token = mesh.token(&workload);
    let mut first = Sidecar::launch(&workload, &token, mesh.control).await;
    first.ready().await;
    let renewed = "weft_identity_renewals_total{result=\"ok\"}";
    first.until_metric(renewed, |n| n == 1.0).await;
    first.shut_down();
    first.ended().await;

    let second = Sidecar::launch(&workload, &token, mesh.control).await;
    let failed = "weft_identity_renewals_total{result=\"failed\"}";
    second.until_metric(failed, |n| n >= 2.0).await;
    let why = second.not_ready("no certificate yet").await;
    assert!(why.contains("join token"), "{why}");
    let metrics = second.metrics().await;
    assert_eq!(metrics.sum(renewed), 0.0);
    assert_eq!(
        metrics.sum("weft_identity_expiration_timestamp_seconds"),
        0.0
    );
}

#[tokio::test]
async fn a_token_of_another_mesh_is_not_accepted() {
    let workload = Workload::new("client");
    let mesh = Mesh::strict(&workload.yaml()).await;
    let other = Mesh::strict(&workload.yaml()).await;
    // The sidecar knows by the token that this is not its control plane.
    let sidecar = Sidecar::launch(&workload, &other.token(&workload), mesh.control).await;
    let failed = "weft_identity_renewals_total{result=\"failed\"}";
    sidecar.until_metric(failed, |n| n >= 2.0).await;
    sidecar.not_ready("no certificate yet").await;
}

#[tokio::test]
async fn a_service_account_that_the_document_does_not_name_gets_no_configuration() {
    let app = app::echo("echo").await;
    let workload = Workload::new("echo").serves(&app);
    let mesh = Mesh::strict(&workload.yaml()).await;
    let claiming = workload.clone().account("mallory");
    let sidecar = mesh.launch(&claiming).await;
    let why = sidecar
        .not_ready("must be spiffe://test.mesh/ns/test/sa/echo")
        .await;
    assert!(
        why.contains("is of spiffe://test.mesh/ns/test/sa/mallory"),
        "{why}"
    );
}

#[tokio::test]
async fn a_client_that_does_not_get_to_the_point_is_cut() {
    let app = app::echo("echo").await;
    let workload = Workload::new("echo").serves(&app);
    let documents = service("echo", "app: echo", Some("http")) + &workload.yaml();
    let mesh = Mesh::strict(&documents).await;
    let mut settings = settings(&workload, &mesh.token(&workload), mesh.control);
    settings.insert("FIRST_BYTE_TIMEOUT".to_owned(), "1".to_owned());
    settings.insert("HANDSHAKE_TIMEOUT".to_owned(), "2".to_owned());
    let sidecar = Sidecar::start(&settings).await.unwrap();
    sidecar.ready().await;
    // Nothing at all, and a TLS record that does not go on.
    for (said, seconds, counted) in [
        (
            &b""[..],
            1,
            "weft_protocol_detections_total{protocol=\"timeout\"}",
        ),
        (
            b"\x16\x03\x01\x02\x00\x01",
            2,
            "weft_tls_handshakes_total{side=\"server\",result=\"tls_failed\"}",
        ),
    ] {
        let mut tcp = TcpStream::connect(workload.inbound()).await.unwrap();
        tcp.write_all(said).await.unwrap();
        let started = Instant::now();
        // A reset is an end as well.
        let _ = soon("the cut", tcp.read_to_end(&mut Vec::new())).await;
        let waited = started.elapsed();
        let wanted = Duration::from_millis(seconds * 1000 - 100)..Duration::from_secs(seconds + 3);
        assert!(wanted.contains(&waited), "{waited:?} after {said:?}");
        sidecar.until_metric(counted, |n| n == 1.0).await;
    }
}
