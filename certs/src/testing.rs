//! An in-memory PKI for tests: good certificates, and certificates with one thing wrong.
//! Nothing is ever written to disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

pub use rcgen;
use rcgen::CertificateParams;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::time_provider::TimeProvider;

use crate::bundle::TrustBundle;
use crate::ca::{Ca, DEFAULT_LEAF_TTL, intermediate_params, leaf_params, root_params};
use crate::cert::WorkloadCert;
use crate::clock::unix_time;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::verify::SvidVerifier;

/// A clock that stands still until it is set. Whole seconds.
#[derive(Debug)]
pub struct FixedClock(AtomicU64);

impl FixedClock {
    /// A clock at `now`.
    ///
    /// # Panics
    /// When `now` is before 1970.
    #[must_use]
    pub fn new(now: SystemTime) -> Self {
        Self(AtomicU64::new(seconds(now)))
    }

    /// Sets the time.
    ///
    /// # Panics
    /// When `now` is before 1970.
    pub fn set(&self, now: SystemTime) {
        self.0.store(seconds(now), Ordering::Relaxed);
    }

    /// Moves the time forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::Relaxed);
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

impl TimeProvider for FixedClock {
    fn current_time(&self) -> Option<UnixTime> {
        unix_time(self.now())
    }
}

fn seconds(time: SystemTime) -> u64 {
    unix_time(time)
        .expect("test times are after 1970")
        .as_secs()
}

/// A certificate authority with a clock.
#[derive(Debug)]
pub struct TestPki {
    /// The authority.
    pub ca: Ca,
    /// The clock of everything made here. It starts at the time given.
    pub clock: Arc<FixedClock>,
}

impl TestPki {
    /// An authority for `trust_domain`, made at the machine's time.
    ///
    /// # Panics
    /// When `trust_domain` is none.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        Self::at(trust_domain, SystemTime::now())
    }

    /// An authority for `trust_domain`, made at `now`.
    ///
    /// # Panics
    /// When `trust_domain` is none.
    #[must_use]
    pub fn at(trust_domain: &str, now: SystemTime) -> Self {
        let trust_domain = trust_domain.parse().expect("a valid trust domain");
        Self {
            ca: Ca::create(&trust_domain, now),
            clock: Arc::new(FixedClock::new(now)),
        }
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        self.ca.trust_domain()
    }

    /// The SPIFFE ID of a workload.
    ///
    /// # Panics
    /// When a name is not valid.
    #[must_use]
    pub fn id(&self, namespace: &str, service_account: &str) -> SpiffeId {
        SpiffeId::workload(self.trust_domain(), namespace, service_account)
            .expect("valid namespace and service account")
    }

    /// The trust bundle with the one root.
    #[must_use]
    pub fn bundle(&self) -> Arc<TrustBundle> {
        Arc::new(self.ca.bundle())
    }

    /// A verifier of the bundle on this PKI's clock.
    #[must_use]
    pub fn verifier(&self) -> SvidVerifier {
        SvidVerifier::new(
            self.bundle(),
            Arc::clone(&self.clock) as Arc<dyn TimeProvider>,
        )
    }

    /// A good certificate for 24 h.
    ///
    /// # Panics
    /// When a name is not valid or issuing fails.
    #[must_use]
    pub fn issue(&self, namespace: &str, service_account: &str) -> WorkloadCert {
        self.issue_for(&self.id(namespace, service_account), DEFAULT_LEAF_TTL)
    }

    /// A good certificate for `id` and `ttl`.
    ///
    /// # Panics
    /// When issuing fails.
    #[must_use]
    pub fn issue_for(&self, id: &SpiffeId, ttl: Duration) -> WorkloadCert {
        self.ca
            .issue(id, ttl, self.clock.now())
            .expect("the authority issues")
    }

    /// A certificate as [`Self::issue`] makes it, but for what `change` does to it. It is
    /// signed by the authority's intermediate.
    ///
    /// # Panics
    /// When a name is not valid or the parameters cannot be encoded.
    #[must_use]
    pub fn mutated(
        &self,
        namespace: &str,
        service_account: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> WorkloadCert {
        let id = self.id(namespace, service_account);
        let now = self.clock.now();
        let mut params = leaf_params(&id, now, now + DEFAULT_LEAF_TTL).expect("valid parameters");
        change(&mut params);
        let key = rcgen::KeyPair::generate().expect("a key");
        let (leaf, mut chain) = self.ca.sign_params(&params, &key);
        chain.insert(0, leaf);
        workload_cert(id, chain, &key, &params)
    }

    /// A chain with an intermediate and a leaf that are as the authority makes them but for
    /// what `change` does (first the intermediate, then the leaf), signed by the
    /// authority's root.
    ///
    /// # Panics
    /// When a name is not valid or the parameters cannot be encoded.
    #[must_use]
    pub fn mutated_chain(
        &self,
        namespace: &str,
        service_account: &str,
        change: impl FnOnce(&mut CertificateParams, &mut CertificateParams),
    ) -> WorkloadCert {
        let id = self.id(namespace, service_account);
        let now = self.clock.now();
        let day = DEFAULT_LEAF_TTL;
        let mut upper = intermediate_params(self.trust_domain(), now, now + day * 30)
            .expect("valid parameters");
        let mut lower = leaf_params(&id, now, now + day).expect("valid parameters");
        change(&mut upper, &mut lower);
        let upper_key = rcgen::KeyPair::generate().expect("a key");
        let (intermediate, root) = self.ca.sign_params_by_root(&upper, &upper_key);
        let issuer = rcgen::Issuer::from_params(&upper, &upper_key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let leaf = lower.signed_by(&key, &issuer).expect("a leaf");
        let chain = vec![leaf.der().clone(), intermediate, root];
        workload_cert(id, chain, &key, &lower)
    }

    /// A root certificate that is as the authority makes it but for what `change` does.
    ///
    /// # Panics
    /// When the parameters cannot be encoded.
    #[must_use]
    pub fn mutated_root(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let now = self.clock.now();
        let mut params = root_params(self.trust_domain(), now).expect("valid parameters");
        change(&mut params);
        let key = rcgen::KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a root").der().clone()
    }
}

/// `id` stays the intended one, whatever the certificate says.
fn workload_cert(
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: &rcgen::KeyPair,
    params: &CertificateParams,
) -> WorkloadCert {
    WorkloadCert {
        id,
        chain,
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        not_before: params.not_before.into(),
        not_after: params.not_after.into(),
    }
}
