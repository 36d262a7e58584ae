//! The sidecar's own identity and whom it trusts, swapped as one.

mod control;
mod renew;
mod saved;
mod tls;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::watch;
use weft_certs::{SystemClock, TrustBundle, WorkloadCert, spiffe::SpiffeId};

use crate::limits::Limits;

pub use control::{ControlPlane, FirstContact};
pub use renew::{JoinToken, keep_renewed};
pub use saved::{Restored, SavedError};
use tls::Turns;
pub use tls::{TlsState, accept, connect};

/// Certificate, key and trust bundle in force. Shared: swapped atomically, never mutated.
#[derive(Debug)]
pub struct IdentityStore {
    state: ArcSwapOption<TlsState>,
    /// The parts that the state was built from; writers only.
    parts: Mutex<Parts>,
    /// What all states share: an identity comes and goes, the turns of handshakes do not.
    turns: Arc<Turns>,
    ready: watch::Sender<bool>,
    changes: watch::Sender<u64>,
}

#[derive(Clone, Debug, Default)]
struct Parts {
    certificate: Option<Arc<WorkloadCert>>,
    bundle: Option<Arc<TrustBundle>>,
}

impl Default for IdentityStore {
    fn default() -> Self {
        Self::new(&Limits::default())
    }
}

impl IdentityStore {
    /// A store without a certificate, for handshakes within these limits.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            state: ArcSwapOption::default(),
            parts: Mutex::default(),
            turns: Arc::new(Turns::new(limits)),
            ready: watch::Sender::default(),
            changes: watch::Sender::default(),
        }
    }

    /// The TLS configurations; `None` before the first certificate.
    #[must_use]
    pub fn state(&self) -> Option<Arc<TlsState>> {
        self.state.load_full()
    }

    /// Becomes true with the first certificate.
    #[must_use]
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Changes with each certificate and bundle.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Our SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> Option<SpiffeId> {
        self.state.load().as_ref().map(|state| state.id().clone())
    }

    /// Our SPIFFE ID, as long as its certificate is valid.
    #[must_use]
    pub fn valid_id(&self) -> Option<SpiffeId> {
        let certificate = self.certificate()?;
        (certificate.not_after > SystemTime::now()).then(|| certificate.id.clone())
    }

    /// The certificate in force.
    #[must_use]
    pub fn certificate(&self) -> Option<Arc<WorkloadCert>> {
        self.parts.lock().certificate.clone()
    }

    /// Takes a new certificate into use. `root` is what its chain ends in; it is the trust
    /// bundle until the control plane sends one.
    ///
    /// # Errors
    /// When rustls does not accept the key; the old state stays.
    pub fn set_certificate(
        &self,
        certificate: WorkloadCert,
        root: TrustBundle,
    ) -> Result<(), String> {
        let mut parts = self.parts.lock();
        let certificate = Arc::new(certificate);
        let bundle = parts.bundle.clone().unwrap_or_else(|| Arc::new(root));
        self.rebuild(&certificate, &bundle)?;
        *parts = Parts {
            certificate: Some(certificate),
            bundle: Some(bundle),
        };
        self.ready.send_replace(true);
        Ok(())
    }

    /// Takes a new trust bundle into use.
    ///
    /// # Errors
    /// When it has no usable root; the old one stays.
    pub fn set_bundle(&self, pem: &str) -> Result<(), String> {
        let mut parts = self.parts.lock();
        let Some(certificate) = parts.certificate.clone() else {
            return Err("a trust bundle came before the first certificate".to_owned());
        };
        let (bundle, warnings) =
            TrustBundle::from_pem(certificate.id.trust_domain(), pem).map_err(|e| e.to_string())?;
        for warning in warnings {
            tracing::warn!(%warning, "trust bundle");
        }
        if parts.bundle.as_deref() == Some(&bundle) {
            return Ok(());
        }
        let bundle = Arc::new(bundle);
        self.rebuild(&certificate, &bundle)?;
        parts.bundle = Some(bundle);
        Ok(())
    }

    fn rebuild(&self, certificate: &WorkloadCert, bundle: &Arc<TrustBundle>) -> Result<(), String> {
        let state = TlsState::new(
            certificate,
            bundle,
            Arc::new(SystemClock),
            self.turns.clone(),
        )?;
        self.state.store(Some(Arc::new(state)));
        self.changes.send_modify(|generation| *generation += 1);
        Ok(())
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
