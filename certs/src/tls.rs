//! rustls configurations of the mesh: TLS 1.3 only, one crypto library given explicitly,
//! post-quantum key exchange first, no resumption and no early data on either side.
//!
//! Resumption would let a peer in without a look at the current trust bundle, because
//! rustls restores the peer's certificates from the ticket and does not call the verifier.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The crypto library of the mesh: aws-lc-rs, X25519MLKEM768 first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// A client configuration.
///
/// `verifier` is an [`SvidVerifier`](crate::SvidVerifier) or a
/// [`PinnedRoot`](crate::PinnedRoot); neither compares the server's SPIFFE ID with the one
/// expected: do that after the handshake with [`peer_id`](crate::verify::peer_id).
/// `certificate` `None` offers none. `alpn` is in order of preference.
#[must_use]
pub fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    certificate: Option<Arc<dyn ResolvesClientCert>>,
    alpn: &[&[u8]],
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 cipher suites and key exchange groups")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        Some(resolver) => builder.with_client_cert_resolver(resolver),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

/// A server configuration. `verifier` decides whether a client must have a certificate
/// ([`SvidVerifier::mandatory`](crate::SvidVerifier::mandatory)). `alpn` is in order of
/// preference; a client that offers only others is refused.
#[must_use]
pub fn server_config(
    verifier: Arc<dyn ClientCertVerifier>,
    certificate: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 cipher suites and key exchange groups")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}
