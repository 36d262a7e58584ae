//! A workload's certificate with its key, and when to renew it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::ca::BACKDATE;
use crate::csr::KeyPair;
use crate::spiffe::SpiffeId;
use crate::tls::provider;
use crate::verify::{Leaf, MAX_CHAIN, SvidError};
use crate::x509;

/// Why a chain and a key make no workload certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertError {
    /// The text is not PEM.
    #[error("the certificate chain is not PEM: {0}")]
    Pem(String),
    /// No certificate, or more than [`MAX_CHAIN`].
    #[error("the certificate chain has {0} certificates; it must have 1 to {MAX_CHAIN}")]
    Length(usize),
    /// The leaf breaks the SVID rules.
    #[error("the certificate is no X.509-SVID: {0}")]
    Svid(#[from] SvidError),
    /// The leaf is for another key.
    #[error("the certificate was issued for another key")]
    OtherKey,
    /// A certificate is not signed by the next.
    #[error("certificate {0} of the chain is not signed by the next one")]
    Broken(usize),
    /// rustls cannot use the key.
    #[error("the private key cannot be used: {0}")]
    Key(String),
}

/// An X.509-SVID: a chain, leaf first, and its private key.
pub struct WorkloadCert {
    /// The leaf's SPIFFE ID.
    pub id: SpiffeId,
    /// Leaf, intermediates and, when the issuer sent it, the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// Start of the leaf's validity (backdated by the issuer).
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

impl WorkloadCert {
    /// Joins an issued chain, leaf first, with the key that it was requested for. Each text
    /// may hold several certificates.
    ///
    /// # Errors
    /// When the texts are not PEM, the leaf breaks the SVID rules or is for another key, or
    /// a certificate is not signed by the next.
    pub fn from_chain(chain_pem: &[String], key: &KeyPair) -> Result<Self, CertError> {
        let mut chain = Vec::new();
        for text in chain_pem {
            for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
                chain.push(der.map_err(|e| CertError::Pem(e.to_string()))?);
            }
        }
        Self::from_der_chain(chain, key)
    }

    /// [`Self::from_chain`] of DER.
    ///
    /// # Errors
    /// As there.
    pub fn from_der_chain(
        chain: Vec<CertificateDer<'static>>,
        key: &KeyPair,
    ) -> Result<Self, CertError> {
        let leaf = match chain.as_slice() {
            [leaf, ..] if chain.len() <= MAX_CHAIN => Leaf::check(leaf)?,
            _ => return Err(CertError::Length(chain.len())),
        };
        if x509::sha256(&leaf.public_key) != key.public_key_fingerprint() {
            return Err(CertError::OtherKey);
        }
        for (index, pair) in chain.windows(2).enumerate() {
            if !is_signed_by(&pair[0], &pair[1]) {
                return Err(CertError::Broken(index + 1));
            }
        }
        Ok(Self {
            id: leaf.id,
            key: key.private_key_der(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            chain,
        })
    }

    /// When to renew: at 70 % of the lifetime, 5 % earlier to 5 % later as `jitter` goes
    /// from 0 to 1 (clamped), so that workloads that started together renew apart.
    ///
    /// The lifetime counts from the issuance, without the issuer's [`BACKDATE`]; else a
    /// short certificate would be due before it came.
    #[must_use]
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        let jitter = if jitter.is_nan() {
            0.5
        } else {
            jitter.clamp(0.0, 1.0)
        };
        let (issued, lifetime) = self.life();
        issued + lifetime.mul_f64(0.65 + 0.1 * jitter)
    }

    /// How much of its life is over: 0 when it was issued, 1 when it ends, more afterwards.
    #[must_use]
    pub fn life_used(&self, now: SystemTime) -> f64 {
        let (issued, lifetime) = self.life();
        let used = now.duration_since(issued).unwrap_or_default();
        // A life of nothing is over.
        used.as_secs_f64() / lifetime.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// When it was issued and for how long it is valid from then on.
    fn life(&self) -> (SystemTime, Duration) {
        let validity = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or_default();
        // The shortest lifetime that our authority issues is a sixth of its validity. A
        // foreign issuer may not backdate; then this is late but never too late.
        let issued = self.not_before + BACKDATE.min(validity * 5 / 6);
        let lifetime = self.not_after.duration_since(issued).unwrap_or_default();
        (issued, lifetime)
    }

    /// For rustls: the chain without the root, as peers with a trust bundle want it.
    ///
    /// # Errors
    /// [`CertError::Key`] when rustls cannot use the key.
    pub fn certified_key(&self) -> Result<CertifiedKey, CertError> {
        let mut chain = self.chain.clone();
        if chain.len() > 1 && chain.last().is_some_and(x509::is_self_issued) {
            chain.pop();
        }
        self.certified(chain)
    }

    /// For rustls: the whole chain with the root, as a client needs it that knows no more
    /// than the root's fingerprint ([`PinnedRoot`](crate::PinnedRoot)).
    ///
    /// # Errors
    /// [`CertError::Key`] when rustls cannot use the key.
    pub fn certified_key_with_root(&self) -> Result<CertifiedKey, CertError> {
        self.certified(self.chain.clone())
    }

    fn certified(&self, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, CertError> {
        CertifiedKey::from_der(chain, self.key.clone_key(), &provider())
            .map_err(|e| CertError::Key(e.to_string()))
    }

    /// A rustls resolver, for clients and servers, that always answers this certificate
    /// (chain without the root).
    ///
    /// # Errors
    /// [`CertError::Key`] when rustls cannot use the key.
    pub fn resolver(&self) -> Result<Arc<SingleCertAndKey>, CertError> {
        Ok(Arc::new(SingleCertAndKey::from(self.certified_key()?)))
    }
}

impl Clone for WorkloadCert {
    fn clone(&self) -> Self {
        Self {
            id: self.id.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }
}

impl fmt::Debug for WorkloadCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCert")
            .field("id", &self.id)
            .field("chain", &self.chain.len())
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn is_signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    match (x509::parse(certificate), x509::parse(issuer)) {
        (Ok(certificate), Ok(issuer)) => certificate
            .verify_signature(Some(issuer.public_key()))
            .is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestPki;

    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;

    #[test]
    fn renewal_is_at_70_percent() {
        let pki = TestPki::at(
            "td",
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        );
        let now = pki.clock.now();
        // (ttl, jitter, seconds after issuance), by our authority
        for (ttl, jitter, after) in [
            (24 * HOUR, 0.5, 24 * HOUR * 70 / 100),
            (24 * HOUR, 0.0, 24 * HOUR * 65 / 100),
            (24 * HOUR, 1.0, 24 * HOUR * 75 / 100),
            (HOUR, 0.5, 42 * MINUTE),
            (MINUTE, 0.0, 39),
            (MINUTE, 0.5, 42),
            (MINUTE, 1.0, 45),
            (HOUR, f64::NAN, 42 * MINUTE),
            (HOUR, -7.0, 39 * MINUTE),
            (HOUR, 7.0, 45 * MINUTE),
        ] {
            let cert = pki.issue_for(&pki.id("a", "b"), Duration::from_secs(ttl));
            let found = cert.renew_at(jitter).duration_since(now).unwrap();
            let error = found.as_secs_f64() - after as f64;
            assert!(error.abs() < 0.001, "{ttl} {jitter}: {found:?}");
        }
    }

    #[test]
    fn renewal_is_before_the_end_whatever_the_validity() {
        let pki = TestPki::new("td");
        let mut cert = pki.issue("a", "b");
        for seconds in [0, 1, 30, 299, 300, 301, 360, 900, 86_400] {
            cert.not_after = cert.not_before + Duration::from_secs(seconds);
            for jitter in [0.0, 1.0] {
                let at = cert.renew_at(jitter);
                assert!(at >= cert.not_before, "{seconds}");
                assert!(at < cert.not_after || seconds == 0, "{seconds}");
            }
        }
        cert.not_after = cert.not_before - Duration::from_secs(1);
        assert_eq!(cert.renew_at(1.0), cert.not_before);
    }

    #[test]
    fn the_life_is_counted_from_the_issue() {
        let pki = TestPki::new("td");
        let now = pki.clock.now();
        let mut cert = pki.issue("a", "b");
        cert.not_before = now - BACKDATE;
        cert.not_after = now + Duration::from_secs(1000);
        for (after, used) in [(0, 0.0), (500, 0.5), (1000, 1.0), (2000, 2.0)] {
            let found = cert.life_used(now + Duration::from_secs(after));
            assert!((found - used).abs() < 0.001, "{after}: {found}");
        }
        assert!(cert.life_used(now - Duration::from_secs(9)).abs() < 0.001);
    }

    #[test]
    fn a_chain_is_joined_with_its_key_only() {
        let pki = TestPki::new("td");
        let now = pki.clock.now();
        let id = pki.id("a", "b");
        let key = KeyPair::generate().unwrap();
        let csr = crate::Csr::from_pem(&key.csr_pem(None).unwrap()).unwrap();
        let chain = pki
            .ca
            .sign(&csr, &id, Duration::from_secs(HOUR), now)
            .unwrap();
        let pem = chain.pem();

        let cert = WorkloadCert::from_chain(&pem, &key).unwrap();
        assert_eq!((&cert.id, &cert.chain), (&id, &chain.der));
        assert_eq!(cert.not_after, chain.not_after);
        assert_eq!(cert.chain.len(), 3);
        let together = [pem.concat()];
        assert_eq!(
            WorkloadCert::from_chain(&together, &key).unwrap().chain,
            chain.der
        );

        let other = KeyPair::generate().unwrap();
        let swapped = [pem[0].clone(), pem[2].clone(), pem[1].clone()];
        for (chain, key, error) in [
            (&pem[..], &other, CertError::OtherKey),
            (&[][..], &key, CertError::Length(0)),
            (&["text".to_owned()][..], &key, CertError::Length(0)),
            (&vec![pem[0].clone(); 9][..], &key, CertError::Length(9)),
            (&swapped[..], &key, CertError::Broken(1)),
            (&pem[1..], &key, CertError::Svid(SvidError::NoPath)),
        ] {
            let result = WorkloadCert::from_chain(chain, key);
            assert_eq!(result.unwrap_err(), error);
        }
        let cut = [pem[0].replace("-----END", "---END")];
        let result = WorkloadCert::from_chain(&cut, &key);
        assert!(matches!(result, Err(CertError::Pem(_))), "{result:?}");
    }

    #[test]
    fn peers_get_the_chain_without_the_root() {
        let cert = TestPki::new("td").issue("a", "b");
        assert_eq!(cert.certified_key().unwrap().cert, cert.chain[..2]);
        assert_eq!(cert.certified_key_with_root().unwrap().cert, cert.chain);
    }

    #[test]
    fn the_key_is_not_printed() {
        let cert = TestPki::new("td").issue("a", "b");
        let text = format!("{cert:?}");
        assert!(text.contains("spiffe://td/ns/a/sa/b"), "{text}");
        assert!(!text.contains("key"), "{text}");
        let copy = cert.clone();
        assert_eq!(copy.key.secret_der(), cert.key.secret_der());
    }
}
