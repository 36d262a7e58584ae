//! Getting a certificate and keeping it fresh. The key never leaves this process.

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

/// What a workload has to show for its first certificate.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The join token.
    pub token: JoinToken,
}

/// Gets the first certificate and renews it at 70 % of its life, for ever. A failure is
/// tried again with exponential back-off and full jitter; the certificate in force stays.
pub async fn keep_renewed(
    control: ControlPlane,
    credentials: Credentials,
    metrics: Arc<Metrics>,
    rng: Arc<Rng>,
) {
    // A token is bound to the first key that uses it, so the first key is kept: a lost answer
    // is asked for again with it, and so is a certificate after the last one has expired.
    let mut first_key = None;
    let mut delay = FIRST_RETRY;
    loop {
        if let Some(certificate) = control.identity.certificate() {
            let jitter = (rng.next() >> 11) as f64 / (1_u64 << 53) as f64;
            wait_until(certificate.renew_at(jitter)).await;
        }
        loop {
            let result = renew(&control, &credentials, &mut first_key).await;
            metrics.identity_renewal(result.is_ok());
            match result {
                Ok(not_after) => {
                    metrics.identity_expiration.set(unix_seconds(not_after));
                    delay = FIRST_RETRY;
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, control = %control.address, "no certificate yet; trying again");
                    tokio::time::sleep(delay.mul_f64(0.5 + (rng.next() % 512) as f64 / 1024.0))
                        .await;
                    delay = (delay * 2).min(LAST_RETRY);
                }
            }
        }
    }
}

async fn wait_until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(CHECK)).await;
    }
}

async fn renew(
    control: &ControlPlane,
    credentials: &Credentials,
    first_key: &mut Option<KeyPair>,
) -> Result<SystemTime, String> {
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
        let text = format!("Bearer {}", credentials.token.text);
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
    let not_after = certificate.not_after;
    if own.is_none() {
        tracing::info!(id = %certificate.id, "this workload has its certificate");
    }
    control.identity.set_certificate(certificate, root)?;
    Ok(not_after)
}

#[cfg(test)]
mod tests {
    use super::JoinToken;

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
