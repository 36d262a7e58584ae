//! An identity in a file: what it takes to be the same workload after a restart.

use std::{sync::Arc, time::SystemTime};

use prost::Message;
use rustls_pki_types::CertificateDer;
use weft_certs::{KeyPair, TrustBundle, WorkloadCert};

use super::{IdentityStore, Parts};

/// The payload of the file. Numbers of fields are never used again for something else.
#[derive(Clone, PartialEq, prost::Message)]
struct Saved {
    /// `namespace/name` of the workload.
    #[prost(string, tag = "1")]
    workload: String,
    /// DER, leaf first.
    #[prost(bytes = "vec", repeated, tag = "2")]
    chain: Vec<Vec<u8>>,
    /// PKCS #8.
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    /// The trust bundle in PEM.
    #[prost(string, tag = "4")]
    bundle: String,
}

/// An identity from a file, checked; [`IdentityStore::restore`] puts it into force.
#[derive(Debug)]
pub struct Restored {
    /// The certificate with its key.
    pub certificate: WorkloadCert,
    bundle: TrustBundle,
}

/// Why an identity from a file is of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// It is whole but over. Nothing is wrong with the file.
    #[error("the certificate has expired")]
    Expired(SystemTime),
    /// It is not this workload's, or no identity.
    #[error("{0}")]
    Foreign(String),
}

impl Restored {
    /// Reads an identity of `workload`, `namespace/name`.
    ///
    /// # Errors
    /// See [`SavedError`].
    pub fn read(payload: &[u8], workload: &str, now: SystemTime) -> Result<Self, SavedError> {
        let foreign = |why: String| SavedError::Foreign(why);
        let saved = Saved::decode(payload).map_err(|e| foreign(format!("is no identity: {e}")))?;
        if saved.workload != workload {
            return Err(foreign(format!(
                "is the identity of workload {} and this is {workload}; each workload needs a directory of its own",
                saved.workload
            )));
        }
        let key = KeyPair::from_private_key_der(&saved.key)
            .map_err(|e| foreign(format!("has no usable key: {e}")))?;
        let chain = saved.chain.into_iter().map(CertificateDer::from).collect();
        let certificate =
            WorkloadCert::from_der_chain(chain, &key).map_err(|e| foreign(e.to_string()))?;
        let namespace = workload.split_once('/').map(|(namespace, _)| namespace);
        if certificate.id.namespace() != namespace {
            return Err(foreign(format!(
                "has a certificate for {} and this workload is {workload}",
                certificate.id
            )));
        }
        let domain = certificate.id.trust_domain();
        let (bundle, _) = TrustBundle::from_pem(domain, &saved.bundle)
            .map_err(|e| foreign(format!("has no usable trust bundle: {e}")))?;
        if certificate.not_after <= now {
            return Err(SavedError::Expired(certificate.not_after));
        }
        Ok(Self {
            certificate,
            bundle,
        })
    }
}

impl IdentityStore {
    /// What goes into the file, for the workload `namespace/name`; `None` before the first
    /// certificate.
    #[must_use]
    pub fn save(&self, workload: &str) -> Option<Vec<u8>> {
        let parts = self.parts.lock().clone();
        let (certificate, bundle) = (parts.certificate?, parts.bundle?);
        let saved = Saved {
            workload: workload.to_owned(),
            chain: certificate.chain.iter().map(|der| der.to_vec()).collect(),
            key: certificate.key.secret_der().to_vec(),
            bundle: bundle.to_pem(certificate.id.trust_domain()),
        };
        Some(saved.encode_to_vec())
    }

    /// Takes an identity from a file into use.
    ///
    /// # Errors
    /// When rustls does not accept the key.
    pub fn restore(&self, restored: Restored) -> Result<(), String> {
        let mut parts = self.parts.lock();
        let certificate = Arc::new(restored.certificate);
        let bundle = Arc::new(restored.bundle);
        self.rebuild(&certificate, &bundle)?;
        *parts = Parts {
            certificate: Some(certificate),
            bundle: Some(bundle),
        };
        self.ready.send_replace(true);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use prost::Message;
    use weft_certs::{Ca, Csr, KeyPair, TrustBundle, TrustDomain, WorkloadCert, spiffe::SpiffeId};

    use super::{IdentityStore, Restored, Saved, SavedError};

    fn store() -> IdentityStore {
        let now = SystemTime::now();
        let domain: TrustDomain = "td.test".parse().unwrap();
        let ca = Ca::create(&domain, now);
        let key = KeyPair::generate().unwrap();
        let csr = Csr::from_pem(&key.csr_pem(None).unwrap()).unwrap();
        let id: SpiffeId = "spiffe://td.test/ns/blog/sa/web".parse().unwrap();
        let hour = Duration::from_secs(3600);
        let chain = ca.sign(&csr, &id, hour, now).unwrap().pem();
        let certificate = WorkloadCert::from_chain(&chain, &key).unwrap();
        let root = chain.last().unwrap();
        let (root, _) = TrustBundle::from_pem(&domain, root).unwrap();
        let store = IdentityStore::default();
        store.set_certificate(certificate, root).unwrap();
        store
    }

    #[test]
    fn an_identity_comes_back() {
        let before = store();
        let payload = before.save("blog/web").unwrap();
        let restored = Restored::read(&payload, "blog/web", SystemTime::now()).unwrap();
        let after = IdentityStore::default();
        assert_eq!(after.save("blog/web"), None);
        after.restore(restored).unwrap();
        assert_eq!(after.valid_id(), before.valid_id());
        assert!(after.state().is_some() && *after.ready().borrow());
        assert_eq!(after.save("blog/web").unwrap(), payload);
    }

    #[test]
    fn what_is_not_ours_is_told() {
        let good = Saved::decode(&*store().save("blog/web").unwrap()).unwrap();
        let other_key = KeyPair::generate().unwrap().private_key_der();
        let with = |change: &dyn Fn(&mut Saved)| {
            let mut saved = good.clone();
            change(&mut saved);
            saved
        };
        let now = SystemTime::now();
        for (saved, expected) in [
            (
                with(&|s| s.workload = "blog/post".into()),
                "of workload blog/post",
            ),
            (with(&|s| s.key.clear()), "no usable key"),
            (
                with(&|s| s.key = other_key.secret_der().to_vec()),
                "for another key",
            ),
            (with(&|s| s.chain.truncate(0)), "0 certificates"),
            (with(&|s| s.bundle.clear()), "no usable trust bundle"),
        ] {
            let error = Restored::read(&saved.encode_to_vec(), "blog/web", now).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(matches!(error, SavedError::Foreign(_)));
        }
        let elsewhere = with(&|s| s.workload = "shop/web".into()).encode_to_vec();
        let error = Restored::read(&elsewhere, "shop/web", now).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("certificate for spiffe://td.test/ns/blog")
        );
        let error = Restored::read(b"\xff\xff", "blog/web", now).unwrap_err();
        assert!(error.to_string().contains("is no identity"), "{error}");
        let later = now + Duration::from_secs(7200);
        let error = Restored::read(&good.encode_to_vec(), "blog/web", later).unwrap_err();
        assert!(matches!(error, SavedError::Expired(_)));
    }
}
