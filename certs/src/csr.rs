//! Key pairs and certificate signing requests (PKCS #10).
//!
//! A workload makes a key and a request; the authority takes from a request its public key
//! and nothing else. The requested name is readable only to compare it with the identity
//! that the caller has proved.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::spiffe::{SpiffeError, SpiffeId};
use crate::x509::sha256;

/// Longest signing request, in bytes of PEM.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
/// Shortest RSA key, in bits.
pub const MIN_RSA_BITS: usize = 2048;

/// Why a key, a request or a requested name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// The crypto library failed to make a key or a request.
    #[error("making the key or the signing request failed: {0}")]
    Crypto(String),
    /// Longer than [`MAX_CSR_BYTES`].
    #[error("the signing request has {0} bytes; at most {MAX_CSR_BYTES} are allowed")]
    TooLong(usize),
    /// Not exactly one PEM block `CERTIFICATE REQUEST`.
    #[error("the signing request must be one PEM block CERTIFICATE REQUEST: {0}")]
    Pem(String),
    /// The block is no PKCS #10 request.
    #[error("the signing request is not a DER-encoded PKCS #10 request")]
    Der,
    /// The kind of key is not accepted.
    #[error(
        "the key of the signing request is {0}; use ECDSA P-256 or P-384, Ed25519, or RSA of at least {MIN_RSA_BITS} bits"
    )]
    Key(String),
    /// The requester has not proved to hold the private key.
    #[error("the signature of the signing request does not match its public key")]
    Signature,
    /// It asks for several URIs.
    #[error("the signing request asks for {0} URIs; ask for the one SPIFFE ID, or for no name")]
    ManyUris(usize),
    /// It asks for a name that is no URI.
    #[error("the signing request asks for the name {0}; ask for the one SPIFFE ID, or for no name")]
    ForeignName(String),
    /// The URI that it asks for is no SPIFFE ID.
    #[error("the signing request asks for {uri:?}, which is no SPIFFE ID: {source}")]
    BadId {
        /// The URI.
        uri: String,
        /// What is wrong with it.
        source: SpiffeError,
    },
    /// A requested extension cannot be read.
    #[error("the names that the signing request asks for cannot be read")]
    Names,
}

/// A private key, ECDSA P-256. It never leaves the process that made it.
pub struct KeyPair(pub(crate) rcgen::KeyPair);

impl KeyPair {
    /// A new random key.
    ///
    /// # Errors
    /// [`CsrError::Crypto`] when the system gives no randomness.
    pub fn generate() -> Result<Self, CsrError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
        key.map(Self).map_err(|e| CsrError::Crypto(e.to_string()))
    }

    /// A signing request for this key in PEM, with an empty subject and, if given, `id` as
    /// its one name.
    ///
    /// # Errors
    /// [`CsrError::Crypto`] when signing fails.
    pub fn csr_pem(&self, id: Option<&SpiffeId>) -> Result<String, CsrError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let crypto = |e: rcgen::Error| CsrError::Crypto(e.to_string());
        if let Some(id) = id {
            let uri = id.as_str().try_into().map_err(crypto)?;
            params.subject_alt_names = vec![SanType::URI(uri)];
        }
        let request = params.serialize_request(&self.0).map_err(crypto)?;
        request.pem().map_err(crypto)
    }

    /// The private key in PKCS #8.
    #[must_use]
    pub fn private_key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    /// SHA-256 of the public key (DER SubjectPublicKeyInfo).
    #[must_use]
    pub fn public_key_fingerprint(&self) -> [u8; 32] {
        sha256(&self.0.subject_public_key_info())
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

/// A signing request whose sender has proved to hold the private key.
#[derive(Clone, Debug)]
pub struct Csr {
    public_key: rcgen::SubjectPublicKeyInfo,
    fingerprint: [u8; 32],
    requested_id: Result<Option<SpiffeId>, CsrError>,
}

impl Csr {
    /// Reads a request and checks its size, key and proof of possession.
    ///
    /// Whatever names and extensions it asks for do not matter here: see
    /// [`Csr::requested_id`].
    ///
    /// # Errors
    /// The first check that fails.
    pub fn from_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLong(pem.len()));
        }
        let mut blocks = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes());
        let der = match (blocks.next(), blocks.next()) {
            (Some(Ok(der)), None) => der,
            (Some(Err(e)), _) | (Some(Ok(_)), Some(Err(e))) => {
                return Err(CsrError::Pem(e.to_string()));
            }
            (Some(Ok(_)), Some(Ok(_))) => return Err(CsrError::Pem("there are several".into())),
            (None, _) => return Err(CsrError::Pem("there is none".into())),
        };
        let Ok(([], request)) = X509CertificationRequest::from_der(&der) else {
            return Err(CsrError::Der);
        };
        let spki = &request.certification_request_info.subject_pki;
        check_key(spki)?;
        let algorithm = &request.signature_algorithm.algorithm;
        if *algorithm == OID_PKCS1_SHA1WITHRSA || *algorithm == OID_SHA1_WITH_RSA {
            return Err(CsrError::Signature);
        }
        request
            .verify_signature()
            .map_err(|_| CsrError::Signature)?;
        let public_key = rcgen::SubjectPublicKeyInfo::from_der(spki.raw)
            .map_err(|e| CsrError::Key(e.to_string()))?;
        // What was verified must be byte for byte what gets signed.
        if public_key.subject_public_key_info() != spki.raw {
            return Err(CsrError::Key("encoded in an unusual way".into()));
        }
        Ok(Self {
            fingerprint: sha256(spki.raw),
            public_key,
            requested_id: requested_id(&request),
        })
    }

    /// The SPIFFE ID that the request asks for; `None` when it asks for no name.
    ///
    /// # Errors
    /// When it asks for more than one URI, a URI that is no SPIFFE ID, or any name of
    /// another kind (the error names it).
    pub fn requested_id(&self) -> Result<Option<SpiffeId>, CsrError> {
        self.requested_id.clone()
    }

    /// SHA-256 of the public key (DER SubjectPublicKeyInfo).
    #[must_use]
    pub fn public_key_fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    pub(crate) fn public_key(&self) -> &rcgen::SubjectPublicKeyInfo {
        &self.public_key
    }
}

fn check_key(spki: &SubjectPublicKeyInfo<'_>) -> Result<(), CsrError> {
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == OID_SIG_ED25519 {
        return Ok(());
    }
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = spki.algorithm.parameters.as_ref();
        return match curve.and_then(|curve| curve.as_oid().ok()) {
            Some(oid) if oid == OID_EC_P256 || oid == OID_NIST_EC_P384 => Ok(()),
            Some(oid) => Err(CsrError::Key(format!("ECDSA on the curve {oid}"))),
            None => Err(CsrError::Key("ECDSA without a named curve".into())),
        };
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let bits = match spki.parsed() {
            Ok(PublicKey::RSA(key)) => key.key_size(),
            _ => 0,
        };
        return match bits {
            MIN_RSA_BITS.. => Ok(()),
            _ => Err(CsrError::Key(format!("RSA of {bits} bits"))),
        };
    }
    Err(CsrError::Key(format!("of the kind {algorithm}")))
}

/// Looks at every extension request: a second one must not hide a name.
fn requested_id(request: &X509CertificationRequest<'_>) -> Result<Option<SpiffeId>, CsrError> {
    let mut uris = Vec::new();
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
            continue;
        };
        for extension in &requested.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => uris.push(*uri),
                            other => return Err(CsrError::ForeignName(other.to_string())),
                        }
                    }
                }
                ParsedExtension::ParseError { .. } => return Err(CsrError::Names),
                _ => {}
            }
        }
    }
    match uris.as_slice() {
        [] => Ok(None),
        [uri] => match uri.parse() {
            Ok(id) => Ok(Some(id)),
            Err(source) => Err(CsrError::BadId {
                uri: (*uri).to_owned(),
                source,
            }),
        },
        many => Err(CsrError::ManyUris(many.len())),
    }
}
