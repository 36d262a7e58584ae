//! Getting a certificate and keeping it fresh. The key never leaves this machine.

use std::{
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tonic::{Request, metadata::MetadataValue};
use weft_api::identity::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use weft_certs::{KeyPair, TrustBundle, WorkloadCert};

use super::{ControlPlane, unix_seconds};
use crate::{error::chain_text, telemetry::Metrics, util::Rng};

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(15);
/// Wall time may jump and machines may sleep, so it is looked at this often.
const CHECK: Duration = Duration::from_secs(30);

/// A join token: `<SHA-256 of the root, hex>.<id>.<secret>`.
#[derive(Clone)]
pub struct JoinToken {
    text: Arc<str>,
    /// The root certificate that the control plane must present.
    pub root: [u8; 32],
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken")
    }
}

impl FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bad = || {
            "the join token is not of the form <root fingerprint>.<id>.<secret>; \
             make one with `weft-control token create`"
                .to_owned()
        };
        let mut parts = text.split('.');
        let (Some(pin), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        if pin.len() != 64 || !pin.is_ascii() || id.is_empty() || secret.is_empty() {
            return Err(bad());
        }
        let mut root = [0; 32];
        for (byte, at) in root.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&pin[at..at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self {
            text: text.into(),
            root,
        })
    }
}

/// Gets the first certificate and renews it at 70 % of its life, for ever. A failure is
/// tried again with exponential back-off and full jitter; the certificate in force stays.
/// Without a token there must be a certificate already.
pub async fn keep_renewed(
    control: ControlPlane,
    token: Option<JoinToken>,
    metrics: Arc<Metrics>,
    rng: Arc<Rng>,
) {
    // A token is bound to the first key that uses it, so the first key is kept: a lost answer
    // is asked for again with it, and so is a certificate after the last one has expired.
    let mut first_key = None;
    let mut delay = FIRST_RETRY;
    loop {
        if let Some(certificate) = control.identity.certificate() {
            let end = unix_seconds(certificate.not_after);
            metrics.identity_expiration.set(end);
            let jitter = (rng.next() >> 11) as f64 / (1_u64 << 53) as f64;
            wait_until(certificate.renew_at(jitter)).await;
        }
        let mut told = 0;
        loop {
            let result = renew(&control, token.as_ref(), &mut first_key).await;
            metrics.identity_renewal(result.is_ok());
            metrics
                .identity_renewal_failing
                .set(i64::from(result.is_err()));
            match result {
                Ok(()) => {
                    delay = FIRST_RETRY;
                    break;
                }
                Err(error) => {
                    tell(&control, &error, &mut told);
                    tokio::time::sleep(delay.mul_f64(0.5 + (rng.next() % 512) as f64 / 1024.0))
                        .await;
                    delay = (delay * 2).min(LAST_RETRY);
                }
            }
        }
    }
}

/// The parts of a certificate's life at which somebody must hear of a renewal that fails.
const WARNINGS: [f64; 4] = [0.5, 0.8, 0.95, 1.0];

/// How many of [`WARNINGS`] are due.
fn due(used: f64) -> usize {
    WARNINGS.iter().filter(|at| used >= **at).count()
}

/// Logs a failure: each one while there is no certificate, and with one as often as it has
/// lost a further part of its life. `told` counts those of this certificate.
fn tell(control: &ControlPlane, error: &str, told: &mut usize) {
    let address = &control.address;
    let Some(certificate) = control.identity.certificate() else {
        tracing::warn!(%error, control = %address, "no certificate yet; trying again");
        return;
    };
    let used = certificate.life_used(SystemTime::now());
    let due = due(used);
    if due <= *told {
        tracing::debug!(%error, control = %address, "the certificate could not be renewed");
        return;
    }
    *told = due;
    let percent = (used * 100.0) as u64;
    if used >= 1.0 {
        tracing::error!(%error, control = %address,
            "the certificate has expired and cannot be renewed: peers refuse this workload");
    } else {
        tracing::warn!(%error, control = %address, percent,
            "the certificate cannot be renewed; this part of its life is over");
    }
}

async fn wait_until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(CHECK)).await;
    }
}

async fn renew(
    control: &ControlPlane,
    token: Option<&JoinToken>,
    first_key: &mut Option<KeyPair>,
) -> Result<(), String> {
    let channel = control
        .connect()
        .await
        .map_err(|error| chain_text(&error))?;
    // Without a valid certificate the token speaks for us, with the key that it is bound to.
    let own = control.identity.valid_id();
    let fresh;
    let key = if own.is_some() {
        fresh = KeyPair::generate().map_err(|e| e.to_string())?;
        &fresh
    } else {
        if first_key.is_none() {
            *first_key = Some(KeyPair::generate().map_err(|e| e.to_string())?);
        }
        first_key.as_ref().expect("set above")
    };
    let csr = key.csr_pem(own.as_ref()).map_err(|e| e.to_string())?;
    let mut request = Request::new(IstioCertificateRequest {
        csr,
        validity_duration: 0,
        metadata: None,
    });
    if own.is_none() {
        let token = token.ok_or("the certificate has expired and there is no join token")?;
        let text = format!("Bearer {}", token.text);
        let value = MetadataValue::try_from(text).map_err(|e| e.to_string())?;
        request.metadata_mut().insert("authorization", value);
    }
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(request)
        .await;
    let chain = match answer {
        Ok(answer) => answer.into_inner().cert_chain,
        Err(status) => return Err(format!("{:?}: {}", status.code(), status.message())),
    };
    let certificate = WorkloadCert::from_chain(&chain, key).map_err(|e| e.to_string())?;
    let root = chain.last().map(String::as_str).unwrap_or_default();
    let (root, _) =
        TrustBundle::from_pem(certificate.id.trust_domain(), root).map_err(|e| e.to_string())?;
    if own.is_none() {
        tracing::info!(id = %certificate.id, "this workload has its certificate");
    }
    control.identity.set_certificate(certificate, root)
}

#[cfg(test)]
mod tests {
    use super::{JoinToken, due};

    #[test]
    fn a_failing_renewal_is_told_of_four_times() {
        for (used, expected) in [
            (0.0, 0),
            (0.49, 0),
            (0.5, 1),
            (0.79, 1),
            (0.8, 2),
            (0.95, 3),
            (0.999, 3),
            (1.0, 4),
            (7.0, 4),
        ] {
            assert_eq!(due(used), expected, "{used}");
        }
    }

    #[test]
    fn tokens_are_checked_in_form() {
        let pin = "ab".repeat(32);
        let good: JoinToken = format!(" {pin}.id.secret\n").parse().unwrap();
        assert_eq!(good.root, [0xab; 32]);
        for bad in [
            "",
            "x",
            "a.b.c",
            &format!("{pin}.id"),
            &format!("{pin}.id.s.x"),
            &format!("{}.id.s", "zz".repeat(32)),
            &format!("{pin}..s"),
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
        assert_eq!(format!("{good:?}"), "JoinToken");
    }
}
