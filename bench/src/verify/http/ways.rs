//! The ways of a hostile HTTP/2 peer to a lane: it is the application of the client's sidecar,
//! or a workload of the mesh, with a certificate, that calls the server's sidecar itself.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use weft_kit::raw2::{Peer, RUDE};

use super::lanes::{Door, Lane, PATIENCE, connect};
use crate::error::{Context as _, Result};

/// Any stream of bytes.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

/// A raw peer on any way.
pub(super) type Raw = Peer<Box<dyn Wire>>;

/// A way to a lane.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) name: &'static str,
    /// What a request must have as `:authority`.
    pub(super) authority: String,
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
}

impl Way {
    /// Through the sidecar of the client.
    pub(super) fn outbound(lane: &Lane) -> Self {
        Self {
            name: "outbound",
            authority: lane.host.clone(),
            address: lane.door(Door::Outbound),
            tls: None,
        }
    }

    /// To the sidecar of the server, with a certificate of the authority whose state is in
    /// `dir/data`, as `weft-control` keeps it.
    pub(super) fn inbound(lane: &Lane, dir: &Path) -> Result<Self> {
        Ok(Self {
            name: "inbound",
            authority: lane.host.clone(),
            address: lane.door(Door::Inbound),
            tls: Some(Arc::new(insider(&dir.join("data/ca"))?)),
        })
    }

    /// A connection on which nothing was said.
    pub(super) async fn silent(&self) -> Result<Raw> {
        let stream = connect(self.address).await?;
        let wire: Box<dyn Wire> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from("server.bench").context("a name")?;
                let handshake = TlsConnector::from(config.clone()).connect(name, stream);
                let handshake = tokio::time::timeout(PATIENCE, handshake).await;
                Box::new(handshake.context("TLS")?.context("TLS")?)
            }
        };
        Ok(Peer::silent(wire))
    }

    /// A connection on which preface and SETTINGS were sent.
    pub(super) async fn open(&self, settings: &[(u16, u32)]) -> Result<Raw> {
        let mut peer = self.silent().await?;
        peer.begin(settings).await.context("preface")?;
        Ok(peer)
    }

    /// The same for a peer that answers nothing on its own.
    pub(super) async fn open_rudely(&self, settings: &[(u16, u32)]) -> Result<Raw> {
        Ok(self.open(settings).await?.manners(RUDE))
    }
}

/// What the account `evil` would have: a certificate that the mesh believes.
fn insider(ca: &Path) -> Result<ClientConfig> {
    let read = |name: &str| {
        let path = ca.join(name);
        fs::read_to_string(&path).context(path.display())
    };
    let authority = read("intermediate.pem")?;
    let key = KeyPair::from_pem(&read("intermediate.key")?).context("intermediate.key")?;
    let issuer = Issuer::from_ca_cert_pem(&authority, key).context("intermediate.pem")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let id = "spiffe://bench.test/ns/bench/sa/evil".try_into();
    params.subject_alt_names = vec![SanType::URI(id.context("the SPIFFE ID")?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::minutes(1);
    params.not_after = now + Duration::hours(12);
    let key = KeyPair::generate().context("make a key")?;
    let leaf = params.signed_by(&key, &issuer).context("sign")?;
    let mut chain = vec![leaf.der().clone()];
    for above in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        chain.push(above.context("intermediate.pem")?);
    }
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(crate::error::Error::new)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_client_auth_cert(chain, key)
        .context("the certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// An attacker does not mind whom it attacks.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
