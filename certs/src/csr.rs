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
    /// Signed with SHA-1.
    #[error("the signing request is signed with SHA-1; sign it with SHA-256")]
    Sha1,
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

/// A private key, ECDSA P-256. It never leaves the machine that made it.
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

    /// A key that was kept, from its [`Self::private_key_der`].
    ///
    /// # Errors
    /// [`CsrError::Crypto`] when it is no such key.
    pub fn from_private_key_der(pkcs8: &[u8]) -> Result<Self, CsrError> {
        let der = PrivatePkcs8KeyDer::from(pkcs8);
        let algorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, algorithm);
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
            return Err(CsrError::Sha1);
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

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};

    use super::*;

    #[test]
    fn a_kept_key_is_the_same_key() {
        let key = KeyPair::generate().unwrap();
        let der = key.private_key_der();
        let kept = KeyPair::from_private_key_der(der.secret_der()).unwrap();
        assert_eq!(kept.public_key_fingerprint(), key.public_key_fingerprint());
        assert!(KeyPair::from_private_key_der(b"no key").is_err());
    }

    fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        change(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn a_request_of_ours_reads_back() {
        let key = KeyPair::generate().unwrap();
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        for asked in [None, Some(&id)] {
            let csr = Csr::from_pem(&key.csr_pem(asked).unwrap()).unwrap();
            assert_eq!(csr.requested_id().unwrap().as_ref(), asked);
            assert_eq!(csr.public_key_fingerprint(), key.public_key_fingerprint());
        }
        assert_eq!(format!("{key:?}"), "KeyPair(..)");
    }

    #[test]
    fn requests_of_other_tools() {
        let id = "spiffe://mesh.test/ns/a/sa/b".parse().unwrap();
        // (request, accepted with this id, or the word of the refusal)
        for (pem, expected) in [
            (include_str!("../testdata/rsa-2048.csr"), Ok(Some(id))),
            (include_str!("../testdata/p384-sha256.csr"), Ok(None)),
            (
                include_str!("../testdata/rsa-1024.csr"),
                Err("RSA of 1024 bits"),
            ),
            (include_str!("../testdata/rsa-sha1.csr"), Err("SHA-1")),
            (
                include_str!("../testdata/secp256k1.csr"),
                Err("curve 1.3.132.0.10"),
            ),
        ] {
            match (Csr::from_pem(pem), expected) {
                (Ok(csr), Ok(id)) => assert_eq!(csr.requested_id(), Ok(id)),
                (Err(error), Err(word)) => {
                    assert!(error.to_string().contains(word), "{error}");
                }
                (result, expected) => panic!("{result:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn kinds_of_keys() {
        for (algorithm, accepted) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, true),
            (&rcgen::PKCS_ECDSA_P384_SHA384, true),
            (&rcgen::PKCS_ED25519, true),
            (&rcgen::PKCS_ECDSA_P521_SHA512, false),
            (&rcgen::PKCS_ML_DSA_44, false),
        ] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateParams::default()
                .serialize_request(&key)
                .unwrap();
            let result = Csr::from_pem(&request.pem().unwrap());
            assert_eq!(result.is_ok(), accepted, "{algorithm:?} {result:?}");
        }
    }

    #[test]
    fn possession_must_be_proved() {
        // No byte of the signed part or of the signature may change. Between them are the name
        // of the algorithm and the header of the signature: not signed, and nothing is taken
        // from them.
        let key = KeyPair::generate().unwrap();
        let pem = key.csr_pem(None).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        // ecdsa-with-SHA256
        let name = [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
        let algorithm = der.windows(12).position(|w| w == name).unwrap();
        let unsigned = algorithm..algorithm + name.len() + 3;
        let mut refused = 0;
        for at in (0..der.len()).filter(|at| !unsigned.contains(at)) {
            let mut changed = der.to_vec();
            changed[at] ^= 1;
            let changed = crate::x509::pem("CERTIFICATE REQUEST", &changed);
            match Csr::from_pem(&changed) {
                Err(CsrError::Signature) => refused += 1,
                Err(_) => {}
                Ok(_) => panic!("accepted with byte {at} changed"),
            }
        }
        assert!(refused > 100, "{refused}");
    }

    #[test]
    fn a_request_with_the_key_of_another_is_refused() {
        let (mine, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let pem = mine.csr_pem(None).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (from, to) = (mine.0.public_key_raw(), other.0.public_key_raw());
        let at = der.windows(from.len()).position(|w| w == from).unwrap();
        let mut stolen = der.to_vec();
        stolen[at..at + to.len()].copy_from_slice(to);
        let stolen = crate::x509::pem("CERTIFICATE REQUEST", &stolen);
        assert_eq!(Csr::from_pem(&stolen).unwrap_err(), CsrError::Signature);
    }

    #[test]
    fn texts_that_are_no_request() {
        let good = KeyPair::generate().unwrap().csr_pem(None).unwrap();
        let trailing = {
            let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
            crate::x509::pem("CERTIFICATE REQUEST", &[der.as_ref(), &[0]].concat())
        };
        for (pem, word) in [
            (String::new(), "none"),
            ("hello".into(), "none"),
            (good.replace("CERTIFICATE REQUEST", "CERTIFICATE"), "none"),
            (format!("{good}{good}"), "several"),
            (crate::x509::pem("CERTIFICATE REQUEST", b"junk"), "PKCS #10"),
            (trailing, "PKCS #10"),
            (good.replace("-----END", "---END"), "CERTIFICATE REQUEST"),
            (" ".repeat(MAX_CSR_BYTES + 1), "16385 bytes"),
        ] {
            let error = Csr::from_pem(&pem).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn requested_names() {
        let id = "spiffe://td/ns/a/sa/b";
        let other = "spiffe://td/ns/a/sa/c";
        type Case<'a> = (Vec<SanType>, Result<Option<&'a str>, &'a str>);
        let cases: [Case<'_>; 8] = [
            (vec![], Ok(None)),
            (vec![uri(id)], Ok(Some(id))),
            (vec![uri(id), uri(other)], Err("2 URIs")),
            (vec![uri(id), uri(id)], Err("2 URIs")),
            (
                vec![uri(id), SanType::DnsName("a.test".try_into().unwrap())],
                Err("DNSName(a.test)"),
            ),
            (
                vec![SanType::IpAddress([127, 0, 0, 1].into())],
                Err("IPAddress"),
            ),
            (
                vec![SanType::Rfc822Name("a@b.test".try_into().unwrap())],
                Err("a@b.test"),
            ),
            (vec![uri("https://td/x")], Err("https://td/x")),
        ];
        for (names, expected) in cases {
            let pem = request(|params| params.subject_alt_names = names);
            match (Csr::from_pem(&pem).unwrap().requested_id(), expected) {
                (Ok(found), Ok(id)) => assert_eq!(found, id.map(|id| id.parse().unwrap())),
                (Err(error), Err(word)) => {
                    assert!(error.to_string().contains(word), "{error}");
                }
                (result, expected) => panic!("{result:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn wishes_beyond_a_name_are_no_error() {
        let pem = request(|params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        });
        assert_eq!(Csr::from_pem(&pem).unwrap().requested_id(), Ok(None));
    }
}
