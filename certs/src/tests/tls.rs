//! What our TLS configurations promise, whatever the peer does.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind, NamedGroup,
    PeerIncompatible, ProtocolVersion, ServerConfig, ServerConnection,
};

use super::{Ends, handshake, show};
use crate::cert::WorkloadCert;
use crate::testing::TestPki;
use crate::tls::{client_config, server_config};
use crate::verify::{SvidError, SvidVerifier, svid_error};

fn client(pki: &TestPki, cert: Option<&WorkloadCert>, alpn: &[&[u8]]) -> ClientConfig {
    let resolver = cert.map(|cert| cert.resolver().unwrap() as _);
    client_config(Arc::new(pki.verifier()), resolver, alpn)
}

fn server(pki: &TestPki, verifier: SvidVerifier, alpn: &[&[u8]]) -> ServerConfig {
    let resolver = pki.issue("server", "s").resolver().unwrap();
    server_config(Arc::new(verifier), resolver, alpn)
}

fn connect(client: &ClientConfig, server: &ServerConfig) -> Ends {
    handshake(&Arc::new(client.clone()), &Arc::new(server.clone()))
        .unwrap_or_else(|e| panic!("{e:?}"))
}

#[test]
fn tls_1_3_with_post_quantum_key_exchange() {
    let pki = TestPki::new("td");
    let cert = pki.issue("a", "b");
    let client = client(&pki, Some(&cert), &[b"h2", b"http/1.1"]);
    let server = server(&pki, pki.verifier(), &[b"http/1.1", b"h2"]);
    let ends = connect(&client, &server);
    assert_eq!(
        ends.client.protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
    let group = ends.server.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    // A retry would mean that the client had guessed another group first.
    assert_eq!(ends.client.handshake_kind(), Some(HandshakeKind::Full));
    assert!(ends.client.alpn_protocol().is_some());
    assert_eq!(ends.client.alpn_protocol(), ends.server.alpn_protocol());
}

#[test]
fn a_peer_without_our_protocol_is_refused() {
    let pki = TestPki::new("td");
    let cert = pki.issue("a", "b");
    let client = client(&pki, Some(&cert), &[b"weft-tcp"]);
    let server = server(&pki, pki.verifier(), &[b"h2"]);
    let failed = handshake(&Arc::new(client), &Arc::new(server))
        .err()
        .unwrap();
    assert_eq!(failed.server, Some(Error::NoApplicationProtocol));
}

#[test]
fn a_certificate_is_demanded_unless_told_otherwise() {
    let pki = TestPki::new("td");
    let anonymous = client(&pki, None, &[]);
    let strict = server(&pki, pki.verifier(), &[]);
    let failed = handshake(&Arc::new(anonymous.clone()), &Arc::new(strict))
        .err()
        .unwrap();
    assert_eq!(failed.server, Some(Error::NoCertificatesPresented));

    let lax = server(&pki, pki.verifier().mandatory(false), &[]);
    let ends = connect(&anonymous, &lax);
    assert_eq!(ends.server.peer_certificates(), None);

    // A bad certificate is no better than none there.
    let stranger = TestPki::new("td2").issue("a", "b");
    let client = client_config(Arc::new(pki.verifier()), Some(show(&stranger)), &[]);
    let failed = handshake(&Arc::new(client), &Arc::new(lax)).err().unwrap();
    let error = failed.server.unwrap();
    let expected = SvidError::UnknownTrustDomain("td2".parse().unwrap());
    assert_eq!(svid_error(&error), Some(&expected));
}

/// A record of TLS 1.2 as an old peer would write it.
fn record(content: u8, handshake_type: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len()).unwrap();
    let header = [content, 3, 3, 0, length + 4, handshake_type, 0, 0, length];
    [&header[..], body].concat()
}

#[test]
fn a_client_of_tls_1_2_is_refused() {
    let pki = TestPki::new("td");
    let mut connection =
        ServerConnection::new(Arc::new(server(&pki, pki.verifier(), &[]))).unwrap();
    // ClientHello: TLS 1.2, ECDHE-ECDSA with AES-128-GCM, P-256, ECDSA with SHA-256.
    let hello = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &[0, 2, 0xc0, 0x2b],
        &[1, 0],
        &[0, 16],
        &[0, 10, 0, 4, 0, 2, 0, 23],
        &[0, 13, 0, 4, 0, 2, 4, 3],
    ]
    .concat();
    connection
        .read_tls(&mut record(22, 1, &hello).as_slice())
        .unwrap();
    let error = connection.process_new_packets().unwrap_err();
    assert!(
        matches!(
            error,
            Error::PeerIncompatible(PeerIncompatible::SupportedVersionsExtensionRequired)
        ),
        "{error:?}"
    );
    let mut answer = Vec::new();
    connection.write_tls(&mut answer).unwrap();
    let alert = u8::from(AlertDescription::ProtocolVersion);
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, alert]);
}

#[test]
fn a_server_of_tls_1_2_is_refused() {
    let pki = TestPki::new("td");
    let name = ServerName::try_from("service.test").unwrap();
    let mut connection = ClientConnection::new(Arc::new(client(&pki, None, &[])), name).unwrap();
    connection.write_tls(&mut Vec::new()).unwrap();
    // ServerHello: TLS 1.2, ECDHE-ECDSA with AES-128-GCM.
    let hello = [&[3, 3][..], &[7; 32], &[0], &[0xc0, 0x2b], &[0]].concat();
    connection
        .read_tls(&mut record(22, 2, &hello).as_slice())
        .unwrap();
    let error = connection.process_new_packets().unwrap_err();
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error:?}");
}

/// A client that wants to resume gets nothing to resume with, so that each connection is
/// verified against the current bundle.
#[test]
fn our_server_never_resumes() {
    let pki = TestPki::new("td");
    let cert = pki.issue("a", "b");
    let mut eager = client(&pki, Some(&cert), &[]);
    eager.resumption = Resumption::in_memory_sessions(16);
    eager.enable_early_data = true;
    let eager = Arc::new(eager);
    let trusting = Arc::new(server(&pki, pki.verifier(), &[]));
    for _ in 0..3 {
        let mut ends = handshake(&eager, &trusting).unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(ends.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(ends.client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(ends.client.tls13_tickets_received(), 0);
        assert!(!ends.client.is_early_data_accepted());
        assert!(ends.server.early_data().is_none());
    }
    // Trust is withdrawn: the same server with another bundle.
    let other = TestPki::at("td", pki.clock.now());
    let resolver = Arc::clone(&trusting.cert_resolver);
    let mut withdrawn = server_config(Arc::new(other.verifier()), resolver, &[]);
    withdrawn.session_storage = Arc::clone(&trusting.session_storage);
    withdrawn.ticketer = Arc::clone(&trusting.ticketer);
    let failed = handshake(&eager, &Arc::new(withdrawn)).err().unwrap();
    let error = failed.server.unwrap();
    assert_eq!(svid_error(&error), Some(&SvidError::Untrusted));
}

/// A server that hands out tickets does not make our client resume.
#[test]
fn our_client_never_resumes() {
    let pki = TestPki::new("td");
    let cert = pki.issue("a", "b");
    let config = Arc::new(client(&pki, Some(&cert), &[]));
    let mut generous = server(&pki, pki.verifier(), &[]);
    generous.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
    generous.send_tls13_tickets = 2;
    generous.max_tls13_tickets = 4;
    generous.max_early_data_size = 1024;
    let generous = Arc::new(generous);
    // The set-up can resume: another client does.
    let mut eager = ClientConfig::clone(&config);
    eager.resumption = Resumption::in_memory_sessions(16);
    let eager = Arc::new(eager);
    let kinds = [&eager, &eager, &config, &config].map(|config| {
        let ends = handshake(config, &generous).unwrap_or_else(|e| panic!("{e:?}"));
        ends.client.handshake_kind().unwrap()
    });
    assert_eq!(kinds[0], HandshakeKind::Full);
    assert_eq!(kinds[1], HandshakeKind::Resumed);
    assert_eq!(kinds[2..], [HandshakeKind::Full, HandshakeKind::Full]);
}

#[test]
fn the_settings_that_switch_resumption_off() {
    let pki = TestPki::new("td");
    let config = server(&pki, pki.verifier(), &[]);
    assert_eq!(config.send_tls13_tickets, 0);
    assert_eq!(config.max_early_data_size, 0);
    assert!(!config.ticketer.enabled());
    assert!(!config.session_storage.can_cache());
    assert!(!client(&pki, None, &[]).enable_early_data);
}
