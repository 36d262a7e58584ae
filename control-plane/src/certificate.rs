//! The control plane's own certificate, and what is due by the wall clock.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use weft_certs::ca::DEFAULT_LEAF_TTL;
use weft_certs::{Ca, SpiffeId, WorkloadCert};

use crate::app::AppError;
use crate::storage::DataLock;
use crate::token::Tokens;

/// How often is looked at what is due by the wall clock.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(60);
/// How often expired tokens are deleted and the intermediate is looked at, in intervals.
const SWEEP_EVERY: u32 = 60;

/// The control plane's own certificate, replaced when it is renewed.
pub(crate) struct OwnCertificate {
    key: ArcSwap<CertifiedKey>,
    /// When it was made, and when it is to be renewed.
    times: Mutex<(SystemTime, SystemTime)>,
}

impl OwnCertificate {
    pub(crate) fn issue(ca: &Ca, id: &SpiffeId) -> Result<Arc<Self>, AppError> {
        let now = SystemTime::now();
        let certificate = ca.issue(id, DEFAULT_LEAF_TTL, now)?;
        Ok(Arc::new(Self {
            key: ArcSwap::from_pointee(certificate.certified_key_with_root()?),
            times: Mutex::new((now, renew_at(&certificate))),
        }))
    }

    fn renew_if_due(&self, ca: &Ca, id: &SpiffeId, now: SystemTime) -> Result<bool, AppError> {
        let (made, due) = *self.times.lock();
        // A clock that was set back leaves a certificate from the future, which no sidecar
        // whose clock is right accepts.
        if (made..due).contains(&now) {
            return Ok(false);
        }
        let certificate = ca.issue(id, DEFAULT_LEAF_TTL, now)?;
        self.key
            .store(Arc::new(certificate.certified_key_with_root()?));
        *self.times.lock() = (now, renew_at(&certificate));
        Ok(true)
    }
}

fn renew_at(certificate: &WorkloadCert) -> SystemTime {
    // Without randomness the renewal is only less spread out.
    let jitter = OsRng
        .try_next_u32()
        .map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX));
    certificate.renew_at(jitter)
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnCertificate").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

/// Renews and sweeps what is due, forever. What fails is tried again a minute later.
pub(crate) async fn maintain(
    ca: Arc<Ca>,
    own: SpiffeId,
    certificate: Arc<OwnCertificate>,
    tokens: Tokens,
    lock: Option<DataLock>,
) {
    let mut interval = tokio::time::interval(MAINTENANCE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticks: u32 = 0;
    loop {
        interval.tick().await;
        let now = SystemTime::now();
        match certificate.renew_if_due(&ca, &own, now) {
            Ok(true) => tracing::info!("renewed the control plane's certificate"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "cannot renew the control plane's certificate"),
        }
        if ticks.is_multiple_of(SWEEP_EVERY) {
            let (ca, tokens, lock) = (ca.clone(), tokens.clone(), lock.clone());
            let sweeping = move || {
                sweep(&ca, &tokens, now);
                drop(lock);
            };
            // A panic inside is logged by its hook; the next sweep is in an hour.
            let _ = tokio::task::spawn_blocking(sweeping).await;
        }
        ticks = ticks.wrapping_add(1);
    }
}

fn sweep(ca: &Ca, tokens: &Tokens, now: SystemTime) {
    match ca.ensure_intermediate(now) {
        Ok(true) => tracing::info!("renewed the intermediate certificate"),
        Ok(false) => {}
        Err(error) => tracing::error!(%error, "cannot renew the intermediate certificate"),
    }
    match tokens.sweep(now) {
        Ok(0) => {}
        Ok(deleted) => tracing::info!(deleted, "deleted expired join tokens"),
        Err(error) => tracing::warn!(%error, "cannot delete expired join tokens"),
    }
}

#[cfg(test)]
mod tests {
    use weft_certs::TrustDomain;

    use super::*;
    use crate::{CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT};

    #[test]
    fn the_own_certificate_is_renewed_in_time_and_after_the_clock_was_set_back() {
        let domain: TrustDomain = "demo.mesh".parse().unwrap();
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let ca = Ca::create(&domain, now - 48 * hour);
        let id = SpiffeId::workload(&domain, CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT).unwrap();
        let own = OwnCertificate::issue(&ca, &id).unwrap();
        let soon = now + Duration::from_secs(1);
        assert!(!own.renew_if_due(&ca, &id, soon).unwrap());
        assert!(own.renew_if_due(&ca, &id, now - 2 * hour).unwrap());
        assert!(!own.renew_if_due(&ca, &id, now - 2 * hour).unwrap());
        assert!(own.renew_if_due(&ca, &id, now + DEFAULT_LEAF_TTL).unwrap());
    }
}
