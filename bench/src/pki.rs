//! Certificates for the peers: one root, and a leaf for each side with a SPIFFE ID and,
//! because stock verifiers want one, a DNS name.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::error::{Context as _, Result};

/// The DNS name in the server's certificate.
pub(crate) const SERVER_NAME: &str = "server.bench.test";

/// Where the files of a side are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) root: PathBuf,
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    /// Chain and key in one file, as HAProxy wants it.
    pub(crate) both: PathBuf,
}

impl Files {
    /// The files of `side` (`client` or `server`) in `dir`.
    pub(crate) fn of(dir: &Path, side: &str) -> Self {
        Self {
            root: dir.join("root.pem"),
            chain: dir.join(format!("{side}.pem")),
            key: dir.join(format!("{side}.key")),
            both: dir.join(format!("{side}.both.pem")),
        }
    }
}

/// Writes a new root and the leaves `client` and `server` into `dir`; valid for two days.
pub(crate) fn write(dir: &Path) -> Result<()> {
    let key = KeyPair::generate().context("make the root key")?;
    let mut params = params(Vec::new()).context("describe the root")?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params
        .distinguished_name
        .push(DnType::CommonName, "bench root");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key).context("sign the root")?;
    fs::write(dir.join("root.pem"), root.pem()).context("write root.pem")?;
    let issuer = Issuer::new(params, key);
    for side in ["client", "server"] {
        write_leaf(dir, side, &issuer).context(format!("make the certificate of the {side}"))?;
    }
    Ok(())
}

fn write_leaf(dir: &Path, side: &str, issuer: &Issuer<'_, KeyPair>) -> Result<()> {
    let key = KeyPair::generate().context("make the key")?;
    let mut params = params(vec![format!("{side}.bench.test")]).context("describe the leaf")?;
    let id = format!("spiffe://bench.test/ns/bench/sa/{side}");
    params
        .subject_alt_names
        .push(SanType::URI(id.try_into().context("the SPIFFE ID")?));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, issuer).context("sign")?;
    let files = Files::of(dir, side);
    fs::write(&files.chain, leaf.pem()).context(files.chain.display())?;
    fs::write(&files.key, key.serialize_pem()).context(files.key.display())?;
    fs::write(&files.both, leaf.pem() + &key.serialize_pem()).context(files.both.display())
}

fn params(names: Vec<String>) -> std::result::Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(1);
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_get_a_key_and_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        for side in ["client", "server"] {
            let files = Files::of(dir.path(), side);
            let both = fs::read_to_string(&files.both).unwrap();
            assert!(
                both.contains("BEGIN CERTIFICATE") && both.contains("BEGIN PRIVATE KEY"),
                "{side}"
            );
            crate::floor::client_config(&files).unwrap();
            crate::floor::server_config(&files).unwrap();
        }
    }
}
