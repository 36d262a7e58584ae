//! X.509-SVID verification as rustls verifiers.
//!
//! rustls checks signatures, validity and path lengths, but neither key usage nor URI names,
//! and it would accept a chain of one trust domain for an identity of another. So the SVID
//! rules are checked here first, then the chain is built to the roots of the trust domain
//! that the leaf names, and to no other root.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    SignatureScheme,
};

use crate::bundle::{TrustBundle, check_root};
use crate::spiffe::{SpiffeError, SpiffeId, TrustDomain};
use crate::tls::provider;
use crate::x509::{self, Malformed};

/// Most certificates in a presented chain, the leaf included.
pub const MAX_CHAIN: usize = 8;
/// Most bytes of DER in a presented chain.
pub const MAX_CHAIN_BYTES: usize = 64 * 1024;
/// How far a peer's clock may be ahead of ours: a certificate may begin this much later.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// Why a peer's certificate chain was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// The peer sent no certificate.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// Longer than [`MAX_CHAIN`] or [`MAX_CHAIN_BYTES`].
    #[error(
        "the chain has {certificates} certificates and {bytes} bytes; at most {MAX_CHAIN} and {MAX_CHAIN_BYTES} are allowed"
    )]
    ChainTooLong {
        /// How many certificates.
        certificates: usize,
        /// How many bytes of DER.
        bytes: usize,
    },
    /// A certificate cannot be read.
    #[error("a certificate of the chain cannot be read: {0}")]
    Malformed(&'static str),
    /// The leaf or an intermediate has expired.
    #[error("the certificate has expired")]
    Expired,
    /// The leaf or an intermediate begins later than [`CLOCK_SKEW`] from now.
    #[error("the certificate is not valid yet; compare the clocks of both machines")]
    NotYetValid,
    /// There is no bundle for the leaf's trust domain.
    #[error("the trust domain {0} is not trusted: there is no bundle for it")]
    UnknownTrustDomain(TrustDomain),
    /// No root of the leaf's trust domain has signed the chain.
    #[error("no root of the trust domain has signed the certificate")]
    Untrusted,
    /// The leaf has no URI name.
    #[error("the certificate has no SPIFFE ID (no URI name)")]
    NoUriSan,
    /// The leaf has several URI names.
    #[error("the certificate has {0} URI names; an SVID has exactly one")]
    ManyUriSans(usize),
    /// The leaf's URI is no SPIFFE ID.
    #[error("the certificate's URI name is no SPIFFE ID: {0}")]
    BadId(#[source] SpiffeError),
    /// The leaf's SPIFFE ID is that of a trust domain.
    #[error("the certificate's SPIFFE ID has no path; only a CA may have it")]
    NoPath,
    /// The leaf is a CA certificate.
    #[error("the certificate is a CA certificate; a workload's must not be")]
    IsCa,
    /// The leaf's key usage breaks the SVID rules.
    #[error("the certificate's key usage {0}")]
    KeyUsage(&'static str),
    /// The leaf is not for this side of TLS.
    #[error("the certificate's extended key usage does not allow this use in TLS")]
    ExtendedKeyUsage,
    /// An intermediate breaks the rules for signing certificates.
    #[error("an intermediate certificate {0}")]
    Intermediate(&'static str),
    /// The chain does not end with the pinned root.
    #[error("the chain does not end with the root certificate that the join token names")]
    PinnedRoot,
    /// The clock cannot be read.
    #[error("the time is not known")]
    NoTime,
    /// Any other fault of the chain: path length, critical extensions, algorithms.
    #[error("the chain is not valid: {0}")]
    Chain(String),
}

impl SvidError {
    /// A short word for metric labels and logs.
    #[must_use]
    pub const fn slug(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::ChainTooLong { .. } => "chain_too_long",
            Self::Malformed(_) => "malformed",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownTrustDomain(_) => "unknown_trust_domain",
            Self::Untrusted => "untrusted",
            Self::NoUriSan => "no_uri_san",
            Self::ManyUriSans(_) => "many_uri_sans",
            Self::BadId(_) => "bad_id",
            Self::NoPath => "no_path",
            Self::IsCa => "is_ca",
            Self::KeyUsage(_) => "key_usage",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::Intermediate(_) => "intermediate",
            Self::PinnedRoot => "pinned_root",
            Self::NoTime => "no_time",
            Self::Chain(_) => "chain",
        }
    }
}

impl From<Malformed> for SvidError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.0)
    }
}

impl From<SvidError> for rustls::Error {
    fn from(error: SvidError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// The [`SvidError`] that a failed handshake carries, if our verifier refused the peer.
/// Show this one: rustls prints no more of it than its variant.
#[must_use]
pub fn svid_error(error: &rustls::Error) -> Option<&SvidError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref()
        }
        _ => None,
    }
}

/// [`svid_error`] of a TLS error that an I/O error wraps.
#[must_use]
pub fn svid_error_of_io(error: &std::io::Error) -> Option<&SvidError> {
    svid_error(error.get_ref()?.downcast_ref()?)
}

/// The SPIFFE ID of a verified peer: the leaf's, by the SVID rules for leaves but without
/// verifying the chain. Only for the certificates of a finished handshake.
///
/// # Errors
/// When there is no certificate or its leaf breaks the rules.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, SvidError> {
    let leaf = chain.first().ok_or(SvidError::NoCertificate)?;
    Ok(Leaf::check(leaf)?.id)
}

/// What a leaf says, when it obeys the SVID rules for leaves.
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// DER SubjectPublicKeyInfo.
    pub(crate) public_key: Vec<u8>,
}

impl Leaf {
    pub(crate) fn check(der: &CertificateDer<'_>) -> Result<Self, SvidError> {
        let certificate = x509::parse(der)?;
        let uris = x509::uri_names(&certificate)?;
        let id: SpiffeId = match uris.as_slice() {
            [] => return Err(SvidError::NoUriSan),
            [uri] => uri.parse().map_err(SvidError::BadId)?,
            many => return Err(SvidError::ManyUriSans(many.len())),
        };
        if id.path().is_empty() {
            return Err(SvidError::NoPath);
        }
        if x509::basic_constraints(&certificate)?.is_some_and(|constraints| constraints.ca) {
            return Err(SvidError::IsCa);
        }
        let Some((usage, critical)) = x509::key_usage(&certificate)? else {
            return Err(SvidError::KeyUsage("is missing"));
        };
        if !critical {
            return Err(SvidError::KeyUsage("is not critical"));
        }
        if !usage.digital_signature() {
            return Err(SvidError::KeyUsage("lacks digitalSignature"));
        }
        if usage.key_cert_sign() || usage.crl_sign() {
            return Err(SvidError::KeyUsage("has keyCertSign or cRLSign"));
        }
        let (not_before, not_after) = x509::validity(&certificate);
        Ok(Self {
            id,
            not_before,
            not_after,
            public_key: certificate.public_key().raw.to_vec(),
        })
    }
}

/// The rules for signing certificates, below the root.
fn check_intermediate(
    der: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
) -> Result<(), SvidError> {
    let certificate = x509::parse(der)?;
    if !x509::basic_constraints(&certificate)?.is_some_and(|constraints| constraints.ca) {
        return Err(SvidError::Intermediate("is not a CA certificate"));
    }
    if !x509::key_usage(&certificate)?.is_some_and(|(usage, _)| usage.key_cert_sign()) {
        return Err(SvidError::Intermediate("lacks keyCertSign"));
    }
    match x509::uri_names(&certificate)?.as_slice() {
        [] => Ok(()),
        [uri] if *uri == trust_domain.id().as_str() => Ok(()),
        _ => Err(SvidError::Intermediate(
            "names another trust domain than the leaf, or a workload",
        )),
    }
}

/// The side of TLS that the verified peer plays.
#[derive(Clone, Copy)]
enum Role {
    Client,
    Server,
}

/// The roots of one trust domain as rustls wants them.
struct Anchors {
    store: RootCertStore,
    client: Arc<dyn ClientCertVerifier>,
}

impl Anchors {
    /// `None` when not one root is a usable trust anchor.
    fn new(roots: &[CertificateDer<'_>]) -> Option<Self> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().map(|root| root.clone().into_owned()));
        let client =
            WebPkiClientVerifier::builder_with_provider(Arc::new(store.clone()), provider())
                .build()
                .ok()?;
        Some(Self { store, client })
    }

    /// Builds and checks the path to a root.
    fn check_path(
        &self,
        role: Role,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), SvidError> {
        let result = match role {
            Role::Client => {
                let result = self.client.verify_client_cert(leaf, intermediates, now);
                result.map(|_| ())
            }
            Role::Server => ParsedCertificate::try_from(leaf).and_then(|parsed| {
                let algorithms = provider().signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    &self.store,
                    intermediates,
                    now,
                    algorithms,
                )
            }),
        };
        result.map_err(path_error)
    }

    /// [`Self::check_path`]; a certificate that begins a little in the future passes, for
    /// the clock of its issuer may be ahead of ours.
    fn check_path_with_skew(
        &self,
        role: Role,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), SvidError> {
        match self.check_path(role, leaf, intermediates, now) {
            Err(SvidError::NotYetValid) => {
                let later = Duration::from_secs(now.as_secs()) + CLOCK_SKEW;
                let later = UnixTime::since_unix_epoch(later);
                self.check_path(role, leaf, intermediates, later)
            }
            result => result,
        }
    }
}

fn path_error(error: rustls::Error) -> SvidError {
    use CertificateError as C;
    let rustls::Error::InvalidCertificate(error) = error else {
        return SvidError::Chain(error.to_string());
    };
    match error {
        C::Expired | C::ExpiredContext { .. } => SvidError::Expired,
        C::NotValidYet | C::NotValidYetContext { .. } => SvidError::NotYetValid,
        C::UnknownIssuer | C::BadSignature => SvidError::Untrusted,
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => SvidError::ExtendedKeyUsage,
        C::BadEncoding => SvidError::Malformed("its DER is not valid"),
        other => SvidError::Chain(other.to_string()),
    }
}

fn check_size(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), SvidError> {
    let certificates = 1 + intermediates.len();
    let bytes = leaf.len() + intermediates.iter().map(|der| der.len()).sum::<usize>();
    if certificates > MAX_CHAIN || bytes > MAX_CHAIN_BYTES {
        return Err(SvidError::ChainTooLong {
            certificates,
            bytes,
        });
    }
    Ok(())
}

/// Verifies peers against a trust bundle, on either side of TLS. Cheap to clone. A new
/// bundle needs a new verifier.
///
/// As a rustls verifier it takes the time from its own clock, not from the TLS
/// configuration. A root's own validity is not checked (it is the trust anchor of RFC 5280);
/// our authority issues nothing that outlives its root.
#[derive(Clone)]
pub struct SvidVerifier {
    anchors: Arc<BTreeMap<TrustDomain, Anchors>>,
    bundle: Arc<TrustBundle>,
    time: Arc<dyn TimeProvider>,
    mandatory: bool,
}

impl SvidVerifier {
    /// A verifier for `bundle` that reads the time from `time`. Clients must have a
    /// certificate.
    #[must_use]
    pub fn new(bundle: Arc<TrustBundle>, time: Arc<dyn TimeProvider>) -> Self {
        let anchors = bundle
            .trust_domains()
            .filter_map(|domain| Some((domain.clone(), Anchors::new(bundle.roots(domain)?)?)))
            .collect();
        Self {
            anchors: Arc::new(anchors),
            bundle,
            time,
            mandatory: true,
        }
    }

    /// Whether a client without a certificate is refused (the default). One with a bad
    /// certificate is always refused.
    #[must_use]
    pub fn mandatory(mut self, mandatory: bool) -> Self {
        self.mandatory = mandatory;
        self
    }

    /// The bundle that it trusts.
    #[must_use]
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// Verifies a chain for both sides of TLS and returns the leaf's SPIFFE ID.
    /// `intermediates` may be in any order and may contain the root.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<SpiffeId, SvidError> {
        self.verify_as(Role::Client, end_entity, intermediates)?;
        self.verify_as(Role::Server, end_entity, intermediates)
    }

    fn verify_as(
        &self,
        role: Role,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<SpiffeId, SvidError> {
        check_size(end_entity, intermediates)?;
        let leaf = Leaf::check(end_entity)?;
        let trust_domain = leaf.id.trust_domain();
        let anchors = self
            .anchors
            .get(trust_domain)
            .ok_or_else(|| SvidError::UnknownTrustDomain(trust_domain.clone()))?;
        for der in intermediates {
            check_intermediate(der, trust_domain)?;
        }
        let now = self.time.current_time().ok_or(SvidError::NoTime)?;
        anchors.check_path_with_skew(role, end_entity, intermediates, now)?;
        Ok(leaf.id)
    }
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidVerifier")
            .field("trust_domains", &self.anchors.keys().collect::<Vec<_>>())
            .field("mandatory", &self.mandatory)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_as(Role::Server, end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for SvidVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: the names of our roots say nothing, and foreign clients pick by them.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify_as(Role::Client, end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// Verifies a server by the fingerprint of its root, before there is a trust bundle: the
/// first contact with a join token.
///
/// The presented chain must end with the root itself; it is the last of the handshake's
/// peer certificates afterwards. All SVID rules apply. The trust domain is the one that the
/// leaf names: compare the whole [`peer_id`] with the expected one.
#[derive(Clone, Debug)]
pub struct PinnedRoot {
    fingerprint: [u8; 32],
    time: Arc<dyn TimeProvider>,
}

impl PinnedRoot {
    /// `fingerprint` is the SHA-256 of the root certificate's DER.
    #[must_use]
    pub fn new(fingerprint: [u8; 32], time: Arc<dyn TimeProvider>) -> Self {
        Self { fingerprint, time }
    }

    /// Verifies a chain that ends with the pinned root, and returns the leaf's SPIFFE ID.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<SpiffeId, SvidError> {
        check_size(end_entity, intermediates)?;
        let (root, intermediates) = intermediates.split_last().ok_or(SvidError::PinnedRoot)?;
        if x509::sha256(root) != self.fingerprint {
            return Err(SvidError::PinnedRoot);
        }
        let leaf = Leaf::check(end_entity)?;
        check_root(leaf.id.trust_domain(), root).map_err(SvidError::Chain)?;
        let anchors = Anchors::new(std::slice::from_ref(root)).ok_or(SvidError::PinnedRoot)?;
        for der in intermediates {
            check_intermediate(der, leaf.id.trust_domain())?;
        }
        let now = self.time.current_time().ok_or(SvidError::NoTime)?;
        anchors.check_path_with_skew(Role::Server, end_entity, intermediates, now)?;
        Ok(leaf.id)
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
