//! The certificate authority: a self-signed root (10 years), an intermediate (1 year) that
//! signs leaves, and their files.
//!
//! A leaf says what the authority says: from a signing request comes the public key alone.
//! Leaves never outlive the intermediate or the root, and are backdated for peers whose
//! clock is behind.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;

use crate::bundle::{TrustBundle, check_root};
use crate::cert::{CertError, WorkloadCert};
use crate::csr::{Csr, CsrError, KeyPair};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::tls::provider;
use crate::x509;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Lifetime of a leaf when nobody asks for another.
pub const DEFAULT_LEAF_TTL: Duration = DAY;
/// Longest lifetime of a leaf.
pub const MAX_LEAF_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Shortest lifetime of a leaf.
pub const MIN_LEAF_TTL: Duration = Duration::from_secs(60);
/// Lifetime of a root.
pub const ROOT_TTL: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Lifetime of an intermediate.
pub const INTERMEDIATE_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long before its issuance a certificate begins, for peers whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);

const ROOT_CERT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const INTERMEDIATE_CERT: &str = "intermediate.pem";
const INTERMEDIATE_KEY: &str = "intermediate.key";

const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why the authority could not be opened or did not sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// One file of a pair is there, the other is not.
    #[error("{} is missing; {fix}", .path.display())]
    Missing {
        /// The file that is missing.
        path: PathBuf,
        /// What to do.
        fix: &'static str,
    },
    /// Others than the owner may read or write a key.
    #[error("{} is open to others (mode {mode:04o}); run: chmod 600 {}", .path.display(), .path.display())]
    Permissions {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}; {fix}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        fix: &'static str,
    },
    /// A key belongs to another certificate.
    #[error("{} is not the key of {}; {fix}", .key.display(), .certificate.display())]
    Mismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
        /// What to do.
        fix: &'static str,
    },
    /// The root has expired.
    #[error("{} expired at {}; move the directory away to start with a new root, and let every workload join again", .path.display(), OffsetDateTime::from(*.not_after))]
    RootExpired {
        /// The root certificate.
        path: PathBuf,
        /// Its end.
        not_after: SystemTime,
    },
    /// The directory belongs to another trust domain.
    #[error("{} is the root of the trust domain {found}, not of {asked}; set the trust domain to {found}, or use another directory", .path.display())]
    OtherTrustDomain {
        /// The root certificate.
        path: PathBuf,
        /// Whose root it is.
        found: TrustDomain,
        /// Which one was asked for.
        asked: TrustDomain,
    },
    /// A leaf was asked for an identity of another trust domain, or without a path.
    #[error(
        "{id} is not a workload of the trust domain {trust_domain}; this authority signs only those"
    )]
    ForeignId {
        /// The identity.
        id: SpiffeId,
        /// Ours.
        trust_domain: TrustDomain,
    },
    /// The intermediate has run out.
    #[error(
        "the intermediate certificate has expired and was not renewed; check that the directory of the authority can be written"
    )]
    IntermediateExpired,
    /// The crypto library failed.
    #[error("the crypto library failed: {0}")]
    Crypto(String),
}

impl From<rcgen::Error> for CaError {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}

impl From<CsrError> for CaError {
    fn from(error: CsrError) -> Self {
        Self::Crypto(error.to_string())
    }
}

impl From<CertError> for CaError {
    fn from(error: CertError) -> Self {
        Self::Crypto(error.to_string())
    }
}

/// An issued chain.
#[derive(Clone, Debug)]
pub struct CertChain {
    /// Leaf, intermediate, root.
    pub der: Vec<CertificateDer<'static>>,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

impl CertChain {
    /// The same in PEM, one text per certificate.
    #[must_use]
    pub fn pem(&self) -> Vec<String> {
        let certificates = self.der.iter();
        certificates
            .map(|der| x509::pem("CERTIFICATE", der))
            .collect()
    }
}

/// A signing certificate with its key.
struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, rcgen::KeyPair>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Authority {
    fn new(der: CertificateDer<'static>, key: rcgen::KeyPair) -> Result<Self, CaError> {
        let certificate = x509::parse(&der).map_err(|e| CaError::Crypto(e.0.into()))?;
        let (not_before, not_after) = x509::validity(&certificate);
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&der, key)?,
            der,
            not_before,
            not_after,
        })
    }

    fn root(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let params = root_params(trust_domain, now)?;
        let key = KeyPair::generate()?.0;
        let der = params.self_signed(&key)?.der().clone();
        Self::new(der, key)
    }

    fn intermediate(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let not_after = (now + INTERMEDIATE_TTL).min(self.not_after);
        let params = intermediate_params(trust_domain, now, not_after)?;
        let key = KeyPair::generate()?.0;
        let der = params.signed_by(&key, &self.issuer)?.der().clone();
        Self::new(der, key)
    }

    /// Whether less than a third of its life is left.
    fn is_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before);
        let left = self.not_after.duration_since(now);
        left.unwrap_or_default() < life.unwrap_or_default() / 3
    }
}

/// The certificate authority of one trust domain. All methods may be called at once from
/// several threads.
pub struct Ca {
    trust_domain: TrustDomain,
    root: Authority,
    intermediate: RwLock<Arc<Authority>>,
    dir: Option<PathBuf>,
}

impl Ca {
    /// A new authority in memory only.
    #[must_use]
    pub fn create(trust_domain: &TrustDomain, now: SystemTime) -> Self {
        Self::try_create(trust_domain, now)
            .expect("the system has randomness, and P-256 signs any certificate of ours")
    }

    fn try_create(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let root = Authority::root(trust_domain, now)?;
        let intermediate = root.intermediate(trust_domain, now)?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            root,
            intermediate: RwLock::new(Arc::new(intermediate)),
            dir: None,
        })
    }

    /// Opens the authority in `dir` at the machine's time: see [`Ca::open_at`].
    ///
    /// # Errors
    /// As there.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        Self::open_at(dir, SystemTime::now())
    }

    /// Opens the authority in `dir`: `root.pem`, `root.key`, `intermediate.pem`,
    /// `intermediate.key`. An intermediate that is absent, or due for renewal, is made anew.
    ///
    /// # Errors
    /// When a file is absent, unreadable or malformed, a key is open to others or belongs to
    /// another certificate, or the root has expired.
    pub fn open_at(dir: &Path, now: SystemTime) -> Result<Self, CaError> {
        let root_path = dir.join(ROOT_CERT);
        let root = load(dir, &ROOT)?.ok_or(CaError::Missing {
            path: root_path.clone(),
            fix: "create the authority first, or name the directory that holds it",
        })?;
        let trust_domain = trust_domain_of_root(&root_path, &root.der)?;
        if root.not_after <= now {
            return Err(CaError::RootExpired {
                path: root_path,
                not_after: root.not_after,
            });
        }
        let loaded = load(dir, &INTERMEDIATE)?;
        if let Some(intermediate) = &loaded {
            check_signed_by(dir, intermediate, &root)?;
        }
        let is_new = loaded.is_none();
        let intermediate = match loaded {
            Some(intermediate) => intermediate,
            None => root.intermediate(&trust_domain, now)?,
        };
        if is_new {
            store(dir, &INTERMEDIATE, &intermediate)?;
        }
        let ca = Self {
            trust_domain,
            root,
            intermediate: RwLock::new(Arc::new(intermediate)),
            dir: Some(dir.to_owned()),
        };
        ca.ensure_intermediate(now)?;
        Ok(ca)
    }

    /// Opens the authority in `dir`, or makes one there if there is none. Says whether it
    /// was made. The directory gets mode 0700, the keys get 0600.
    ///
    /// # Errors
    /// As for [`Ca::open_at`]; also when the authority there is of another trust domain, or
    /// the files cannot be written.
    pub fn open_or_create(
        dir: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<(Self, bool), CaError> {
        if dir.join(ROOT_CERT).exists() || dir.join(ROOT_KEY).exists() {
            let ca = Self::open_at(dir, now)?;
            if ca.trust_domain != *trust_domain {
                return Err(CaError::OtherTrustDomain {
                    path: dir.join(ROOT_CERT),
                    found: ca.trust_domain,
                    asked: trust_domain.clone(),
                });
            }
            return Ok((ca, false));
        }
        let io = |source| CaError::Io {
            path: dir.to_owned(),
            source,
        };
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io)?;
        let mut ca = Self::try_create(trust_domain, now)?;
        // The root last: it makes the directory an authority.
        store(dir, &INTERMEDIATE, &ca.intermediate.read())?;
        store(dir, &ROOT, &ca.root)?;
        ca.dir = Some(dir.to_owned());
        Ok((ca, true))
    }

    /// Renews the intermediate when less than a third of its life is left, and stores it
    /// when the authority has a directory. Says whether it did. Call it daily or more often.
    ///
    /// # Errors
    /// When the new one cannot be made or stored; the old one then stays in use.
    pub fn ensure_intermediate(&self, now: SystemTime) -> Result<bool, CaError> {
        let mut current = self.intermediate.write();
        // One that ends with the root cannot be prolonged.
        if !current.is_due(now) || current.not_after >= self.root.not_after {
            return Ok(false);
        }
        let renewed = self.root.intermediate(&self.trust_domain, now)?;
        if let Some(dir) = &self.dir {
            store(dir, &INTERMEDIATE, &renewed)?;
        }
        *current = Arc::new(renewed);
        Ok(true)
    }

    /// Signs a leaf for `id` with the public key of `csr` and nothing else from it.
    ///
    /// `ttl` is clamped to [`MIN_LEAF_TTL`]..=[`MAX_LEAF_TTL`], then to the ends of the
    /// intermediate and the root. The caller must have established that the requester is
    /// `id`.
    ///
    /// # Errors
    /// When `id` is not a workload of this trust domain, or the intermediate has expired.
    pub fn sign(
        &self,
        csr: &Csr,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<CertChain, CaError> {
        self.sign_key(csr.public_key(), id, ttl, now)
    }

    /// Makes a key and a certificate for it: for the control plane itself.
    ///
    /// # Errors
    /// As for [`Ca::sign`].
    pub fn issue(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<WorkloadCert, CaError> {
        let key = KeyPair::generate()?;
        let chain = self.sign_key(&key.0, id, ttl, now)?;
        Ok(WorkloadCert::from_der_chain(chain.der, &key)?)
    }

    fn sign_key(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<CertChain, CaError> {
        if *id.trust_domain() != self.trust_domain || id.path().is_empty() {
            return Err(CaError::ForeignId {
                id: id.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        let intermediate = Arc::clone(&self.intermediate.read());
        let not_after = (now + ttl.clamp(MIN_LEAF_TTL, MAX_LEAF_TTL))
            .min(intermediate.not_after)
            .min(self.root.not_after);
        if not_after <= now {
            return Err(CaError::IntermediateExpired);
        }
        let params = leaf_params(id, now, not_after)?;
        let leaf = params.signed_by(key, &intermediate.issuer)?;
        Ok(CertChain {
            der: vec![
                leaf.der().clone(),
                intermediate.der.clone(),
                self.root.der.clone(),
            ],
            not_after: params.not_after.into(),
        })
    }

    /// The trust bundle with the root.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::of(self.trust_domain.clone(), vec![self.root.der.clone()])
    }

    /// SHA-256 of the root certificate's DER: what join tokens carry.
    #[must_use]
    pub fn root_fingerprint(&self) -> [u8; 32] {
        x509::sha256(&self.root.der)
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// When the root expires.
    #[must_use]
    pub fn root_not_after(&self) -> SystemTime {
        self.root.not_after
    }

    /// When the current intermediate expires.
    #[must_use]
    pub fn intermediate_not_after(&self) -> SystemTime {
        self.intermediate.read().not_after
    }

    /// Signs any parameters with the intermediate: leaf, and the rest of the chain.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn sign_params(
        &self,
        params: &CertificateParams,
        key: &rcgen::KeyPair,
    ) -> (CertificateDer<'static>, Vec<CertificateDer<'static>>) {
        let intermediate = Arc::clone(&self.intermediate.read());
        let leaf = params
            .signed_by(key, &intermediate.issuer)
            .expect("test parameters can be encoded");
        let rest = vec![intermediate.der.clone(), self.root.der.clone()];
        (leaf.der().clone(), rest)
    }

    /// Signs any parameters with the root: certificate, and the root.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn sign_params_by_root(
        &self,
        params: &CertificateParams,
        key: &rcgen::KeyPair,
    ) -> (CertificateDer<'static>, CertificateDer<'static>) {
        let certificate = params
            .signed_by(key, &self.root.issuer)
            .expect("test parameters can be encoded");
        (certificate.der().clone(), self.root.der.clone())
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca")
            .field("trust_domain", &self.trust_domain)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

pub(crate) fn root_params(
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut params = ca_params("Weft root", trust_domain, now, now + ROOT_TTL)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    Ok(params)
}

pub(crate) fn intermediate_params(
    trust_domain: &TrustDomain,
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut params = ca_params("Weft intermediate", trust_domain, now, not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// No URI name constraints: rustls refuses every chain that has them.
fn ca_params(
    name: &str,
    trust_domain: &TrustDomain,
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut params = params(&trust_domain.id(), now, not_after)?;
    // A part of the serial number in the name tells successive certificates apart.
    let serial = params.serial_number.iter().flat_map(SerialNumber::to_bytes);
    let tag: String = serial.take(4).map(|byte| format!("{byte:02x}")).collect();
    let common_name = format!("{name} {tag}");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

pub(crate) fn leaf_params(
    id: &SpiffeId,
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut params = params(id, now, not_after)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// What all certificates have in common: serial number, validity, the SPIFFE ID.
fn params(
    id: &SpiffeId,
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut serial = [0; 16];
    let random = provider().secure_random;
    random
        .fill(&mut serial)
        .map_err(|_| CaError::Crypto("the system gives no randomness".into()))?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = whole_seconds(now - BACKDATE);
    params.not_after = whole_seconds(not_after);
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    Ok(params)
}

/// X.509 has no fractions of a second.
fn whole_seconds(time: SystemTime) -> OffsetDateTime {
    let time = OffsetDateTime::from(time);
    time - Duration::from_nanos(u64::from(time.nanosecond()))
}

/// The files of a certificate and its key.
struct Pair {
    certificate: &'static str,
    key: &'static str,
    fix: &'static str,
}

const ROOT: Pair = Pair {
    certificate: ROOT_CERT,
    key: ROOT_KEY,
    fix: "restore root.pem and root.key from one backup, or move the directory away to start with a new root",
};

const INTERMEDIATE: Pair = Pair {
    certificate: INTERMEDIATE_CERT,
    key: INTERMEDIATE_KEY,
    fix: "delete intermediate.pem and intermediate.key: the root signs a new one at the next start",
};

/// Reads a pair; `None` when neither file exists.
fn load(dir: &Path, pair: &Pair) -> Result<Option<Authority>, CaError> {
    let (certificate_path, key_path) = (dir.join(pair.certificate), dir.join(pair.key));
    let missing = |path: &Path| CaError::Missing {
        path: path.to_owned(),
        fix: pair.fix,
    };
    let bad = |path: &Path, problem: String| CaError::File {
        path: path.to_owned(),
        problem,
        fix: pair.fix,
    };
    let (certificate, key) = match (read(&certificate_path, false)?, read(&key_path, true)?) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(missing(&certificate_path)),
        (Some(_), None) => return Err(missing(&key_path)),
    };
    let der = CertificateDer::from_pem_slice(certificate.as_bytes())
        .map_err(|e| bad(&certificate_path, format!("it is no PEM certificate: {e}")))?;
    let key = rcgen::KeyPair::from_pem(&key)
        .map_err(|e| bad(&key_path, format!("it is no PEM private key: {e}")))?;
    let parsed = x509::parse(&der).map_err(|e| bad(&certificate_path, e.0.into()))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(CaError::Mismatch {
            key: key_path,
            certificate: certificate_path,
            fix: pair.fix,
        });
    }
    let authority = Authority::new(der, key)?;
    Ok(Some(authority))
}

/// Reads a file; `None` when it does not exist. The mode is that of the open file.
fn read(path: &Path, is_key: bool) -> Result<Option<String>, CaError> {
    let io = |source| CaError::Io {
        path: path.to_owned(),
        source,
    };
    let file = match fs::File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(io)?,
    };
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o7777;
    if is_key && mode & 0o077 != 0 {
        return Err(CaError::Permissions {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    let mut limited = file.take(MAX_FILE_BYTES);
    limited.read_to_string(&mut text).map_err(io)?;
    Ok(Some(text))
}

/// The trust domain that a root names.
fn trust_domain_of_root(path: &Path, der: &CertificateDer<'_>) -> Result<TrustDomain, CaError> {
    let bad = |problem: String| CaError::File {
        path: path.to_owned(),
        problem,
        fix: ROOT.fix,
    };
    let certificate = x509::parse(der).map_err(|e| bad(e.0.into()))?;
    let uris = x509::uri_names(&certificate).map_err(|e| bad(e.0.into()))?;
    let [uri] = uris.as_slice() else {
        return Err(bad("it does not name one trust domain".into()));
    };
    let id: SpiffeId = uri
        .parse()
        .map_err(|e| bad(format!("{uri:?} is no SPIFFE ID: {e}")))?;
    check_root(id.trust_domain(), der).map_err(bad)?;
    Ok(id.trust_domain().clone())
}

fn check_signed_by(dir: &Path, lower: &Authority, root: &Authority) -> Result<(), CaError> {
    let is_signed = match (x509::parse(&lower.der), x509::parse(&root.der)) {
        (Ok(lower), Ok(root)) => lower.verify_signature(Some(root.public_key())).is_ok(),
        _ => false,
    };
    if is_signed {
        return Ok(());
    }
    Err(CaError::File {
        path: dir.join(INTERMEDIATE.certificate),
        problem: "it is not signed by root.pem".into(),
        fix: INTERMEDIATE.fix,
    })
}

/// Writes a pair: both files are complete on disk before either gets its name, so that a
/// crash leaves the old pair or the new one, but for the moment between two renames.
fn store(dir: &Path, pair: &Pair, authority: &Authority) -> Result<(), CaError> {
    let key = stage(
        dir,
        pair.key,
        0o600,
        &authority.issuer.key().serialize_pem(),
    )?;
    let text = x509::pem("CERTIFICATE", &authority.der);
    let certificate = stage(dir, pair.certificate, 0o644, &text)?;
    for (staged, name) in [(key, pair.key), (certificate, pair.certificate)] {
        let path = dir.join(name);
        fs::rename(&staged, &path).map_err(|source| CaError::Io { path, source })?;
    }
    let sync = fs::File::open(dir).and_then(|dir| dir.sync_all());
    sync.map_err(|source| CaError::Io {
        path: dir.to_owned(),
        source,
    })
}

fn stage(dir: &Path, name: &str, mode: u32, text: &str) -> Result<PathBuf, CaError> {
    let path = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let write = || {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    match write() {
        Ok(()) => Ok(path),
        Err(source) => Err(CaError::Io { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::ParsedExtension;
    use x509_parser::oid_registry::{
        OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME,
    };

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn domain(name: &str) -> TrustDomain {
        name.parse().unwrap()
    }

    fn csr(change: impl FnOnce(&mut CertificateParams)) -> Csr {
        let mut params = CertificateParams::default();
        change(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        let request = params.serialize_request(&key).unwrap();
        Csr::from_pem(&request.pem().unwrap()).unwrap()
    }

    fn assert_is_our_leaf(der: &CertificateDer<'_>, id: &SpiffeId) {
        let leaf = x509::parse(der).unwrap();
        assert_eq!(x509::uri_names(&leaf).unwrap(), [id.as_str()]);
        assert_eq!(leaf.subject().iter().count(), 0);
        assert!(!x509::basic_constraints(&leaf).unwrap().unwrap().ca);
        let (usage, critical) = x509::key_usage(&leaf).unwrap().unwrap();
        assert_eq!((usage.flags, critical), (1, true), "digitalSignature alone");
        let san = leaf
            .get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME)
            .unwrap()
            .unwrap();
        assert!(san.critical, "the subject is empty");
        let ParsedExtension::SubjectAlternativeName(names) = san.parsed_extension() else {
            panic!("no names");
        };
        assert_eq!(names.general_names.len(), 1);
        let eku = leaf
            .get_extension_unique(&OID_X509_EXT_EXTENDED_KEY_USAGE)
            .unwrap()
            .unwrap();
        let ParsedExtension::ExtendedKeyUsage(eku) = eku.parsed_extension() else {
            panic!("no extended key usage");
        };
        assert!(eku.server_auth && eku.client_auth);
        assert!(!eku.any && !eku.code_signing && eku.other.is_empty());
    }

    #[test]
    fn only_the_public_key_comes_from_the_request() {
        let ca = Ca::create(&domain("td"), start());
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let greedy = csr(|params| {
            params
                .distinguished_name
                .push(DnType::CommonName, "root of all");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            params.subject_alt_names = vec![
                SanType::URI(
                    "spiffe://td/ns/weft-system/sa/weft-control"
                        .try_into()
                        .unwrap(),
                ),
                SanType::DnsName("bank.test".try_into().unwrap()),
            ];
        });
        for request in [greedy, csr(|_| {})] {
            let chain = ca.sign(&request, &id, HOUR, start()).unwrap();
            assert_is_our_leaf(&chain.der[0], &id);
            let leaf = x509::parse(&chain.der[0]).unwrap();
            assert_eq!(
                x509::sha256(leaf.public_key().raw),
                request.public_key_fingerprint()
            );
        }
    }

    #[test]
    fn requests_of_every_kind_of_key_are_signed_unchanged() {
        let ca = Ca::create(&domain("td"), start());
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        for pem in [
            include_str!("../testdata/rsa-2048.csr"),
            include_str!("../testdata/p384-sha256.csr"),
        ] {
            let request = Csr::from_pem(pem).unwrap();
            let chain = ca.sign(&request, &id, HOUR, start()).unwrap();
            let leaf = x509::parse(&chain.der[0]).unwrap();
            assert_eq!(
                x509::sha256(leaf.public_key().raw),
                request.public_key_fingerprint()
            );
        }
    }

    #[test]
    fn foreign_identities_are_not_signed() {
        let ca = Ca::create(&domain("td"), start());
        for id in [
            "spiffe://other/ns/a/sa/b",
            "spiffe://td.other/ns/a/sa/b",
            "spiffe://td",
        ] {
            let result = ca.sign(&csr(|_| {}), &id.parse().unwrap(), HOUR, start());
            assert!(
                matches!(result, Err(CaError::ForeignId { .. })),
                "{result:?}"
            );
        }
    }

    #[test]
    fn lifetimes_are_clamped() {
        let now = start();
        let ca = Ca::create(&domain("td"), now);
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let end = |ttl, now| {
            let chain = ca.sign(&csr(|_| {}), &id, ttl, now).unwrap();
            let leaf = x509::parse(&chain.der[0]).unwrap();
            let (not_before, not_after) = x509::validity(&leaf);
            assert_eq!(not_before, now - BACKDATE);
            assert_eq!(not_after, chain.not_after);
            not_after
        };
        assert_eq!(end(HOUR, now), now + HOUR);
        assert_eq!(end(DEFAULT_LEAF_TTL, now), now + 24 * HOUR);
        assert_eq!(end(Duration::ZERO, now), now + MIN_LEAF_TTL);
        assert_eq!(end(Duration::MAX, now), now + MAX_LEAF_TTL);
        let late = ca.intermediate_not_after() - HOUR;
        assert_eq!(end(DEFAULT_LEAF_TTL, late), late + HOUR);

        let after = ca.intermediate_not_after();
        let result = ca.sign(&csr(|_| {}), &id, HOUR, after);
        assert!(matches!(result, Err(CaError::IntermediateExpired)));
    }

    #[test]
    fn fractions_of_a_second_are_cut() {
        let now = start() + Duration::from_nanos(999_999_999);
        let ca = Ca::create(&domain("td"), now);
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let cert = ca.issue(&id, HOUR, now).unwrap();
        assert_eq!(cert.not_after, start() + HOUR);
    }

    #[test]
    fn serial_numbers_are_random_and_long() {
        let ca = Ca::create(&domain("td"), start());
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let request = csr(|_| {});
        let mut serials = std::collections::HashSet::new();
        let mut longest = 0;
        for _ in 0..50 {
            let chain = ca.sign(&request, &id, HOUR, start()).unwrap();
            let leaf = x509::parse(&chain.der[0]).unwrap();
            longest = longest.max(leaf.tbs_certificate.serial.bits());
            assert!(serials.insert(leaf.tbs_certificate.serial.clone()));
        }
        assert!((121..=128).contains(&longest), "{longest}");
    }

    #[test]
    fn the_intermediate_is_renewed_in_its_last_third() {
        let now = start();
        let ca = Ca::create(&domain("td"), now);
        let first = ca.intermediate_not_after();
        assert!(!ca.ensure_intermediate(now + INTERMEDIATE_TTL / 2).unwrap());
        let due = now + INTERMEDIATE_TTL * 3 / 4;
        assert!(ca.ensure_intermediate(due).unwrap());
        assert!(!ca.ensure_intermediate(due).unwrap());
        assert_eq!(ca.intermediate_not_after(), due + INTERMEDIATE_TTL);
        assert!(ca.intermediate_not_after() > first);

        // Near the root's end it ends with the root, and is not made over and over.
        let last = ca.root_not_after() - 100 * DAY;
        assert!(ca.ensure_intermediate(last).unwrap());
        assert_eq!(ca.intermediate_not_after(), ca.root_not_after());
        assert!(!ca.ensure_intermediate(last + 99 * DAY).unwrap());
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// An authority in a directory that did not exist.
    fn on_disk() -> (tempfile::TempDir, PathBuf, Ca) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("deep/ca");
        let (ca, created) = Ca::open_or_create(&dir, &domain("td"), start()).unwrap();
        assert!(created);
        (temp, dir, ca)
    }

    #[test]
    fn an_authority_is_created_once_and_opened_again() {
        let (_temp, dir, ca) = on_disk();
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join(ROOT_KEY)), 0o600);
        assert_eq!(mode(&dir.join(INTERMEDIATE_KEY)), 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 4, "no temporary files");

        let (again, created) = Ca::open_or_create(&dir, &domain("td"), start()).unwrap();
        assert!(!created);
        let opened = Ca::open_at(&dir, start()).unwrap();
        for other in [&again, &opened] {
            assert_eq!(other.root_fingerprint(), ca.root_fingerprint());
            assert_eq!(other.bundle(), ca.bundle());
            assert_eq!(other.trust_domain(), &domain("td"));
            assert_eq!(other.intermediate.read().der, ca.intermediate.read().der);
        }
        // What the opened one signs, the first one's bundle trusts.
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let cert = opened.issue(&id, HOUR, start()).unwrap();
        let clock = Arc::new(crate::testing::FixedClock::new(start()));
        let verifier = crate::SvidVerifier::new(Arc::new(ca.bundle()), clock);
        assert_eq!(verifier.verify(&cert.chain[0], &cert.chain[1..]), Ok(id));
    }

    #[test]
    fn open_uses_the_time_of_the_machine() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("ca");
        let (ca, _) = Ca::open_or_create(&dir, &domain("td"), SystemTime::now()).unwrap();
        let opened = Ca::open(&dir).unwrap();
        assert_eq!(opened.root_fingerprint(), ca.root_fingerprint());
    }

    #[test]
    fn a_renewed_intermediate_is_stored() {
        let (_temp, dir, ca) = on_disk();
        let due = start() + INTERMEDIATE_TTL * 3 / 4;
        assert!(ca.ensure_intermediate(due).unwrap());
        let opened = Ca::open_at(&dir, due).unwrap();
        assert_eq!(opened.intermediate.read().der, ca.intermediate.read().der);

        // Opening late renews by itself, even when it has expired.
        let late = due + INTERMEDIATE_TTL + DAY;
        let opened = Ca::open_at(&dir, late).unwrap();
        assert_eq!(opened.intermediate_not_after(), late + INTERMEDIATE_TTL);

        // So does opening without one.
        for name in [INTERMEDIATE_CERT, INTERMEDIATE_KEY] {
            fs::remove_file(dir.join(name)).unwrap();
        }
        Ca::open_at(&dir, late).unwrap();
        assert_eq!(mode(&dir.join(INTERMEDIATE_KEY)), 0o600);
    }

    /// Breaks an authority on disk, and returns what opening it says.
    fn refusal(asked: &str, now: SystemTime, break_it: impl FnOnce(&Path)) -> String {
        let (_temp, dir, _) = on_disk();
        break_it(&dir);
        let result = Ca::open_or_create(&dir, &domain(asked), now);
        result.unwrap_err().to_string()
    }

    #[test]
    fn keys_open_to_others_are_refused() {
        for (name, bits) in [
            (ROOT_KEY, 0o640),
            (ROOT_KEY, 0o604),
            (INTERMEDIATE_KEY, 0o660),
        ] {
            let text = refusal("td", start(), |dir| chmod(&dir.join(name), bits));
            assert!(text.contains(name) && text.contains("chmod 600"), "{text}");
        }
    }

    #[test]
    fn broken_files_are_refused_by_name() {
        let swap = |dir: &Path, name: &str| {
            let other = on_disk();
            fs::copy(other.1.join(name), dir.join(name)).unwrap();
        };
        type Break<'a> = Box<dyn Fn(&Path) + 'a>;
        let cases: Vec<(Break<'_>, [&str; 2])> = vec![
            (
                Box::new(|d| swap(d, ROOT_KEY)),
                [ROOT_KEY, "is not the key of"],
            ),
            (
                Box::new(|d| swap(d, ROOT_CERT)),
                [ROOT_KEY, "is not the key of"],
            ),
            (
                Box::new(|d| swap(d, INTERMEDIATE_KEY)),
                [INTERMEDIATE_KEY, "delete intermediate.pem"],
            ),
            (
                Box::new(|d| {
                    let other = on_disk();
                    for name in [INTERMEDIATE_KEY, INTERMEDIATE_CERT] {
                        fs::copy(other.1.join(name), d.join(name)).unwrap();
                    }
                }),
                [INTERMEDIATE_CERT, "not signed by root.pem"],
            ),
            (
                Box::new(|d| fs::remove_file(d.join(ROOT_KEY)).unwrap()),
                [ROOT_KEY, "is missing"],
            ),
            (
                Box::new(|d| fs::remove_file(d.join(ROOT_CERT)).unwrap()),
                [ROOT_CERT, "is missing"],
            ),
            (
                Box::new(|d| fs::remove_file(d.join(INTERMEDIATE_KEY)).unwrap()),
                [INTERMEDIATE_KEY, "is missing"],
            ),
            (
                Box::new(|d| fs::write(d.join(ROOT_CERT), "junk").unwrap()),
                [ROOT_CERT, "no PEM certificate"],
            ),
            (
                Box::new(|d| fs::write(d.join(ROOT_KEY), "junk").unwrap()),
                [ROOT_KEY, "no PEM private key"],
            ),
        ];
        for (break_it, words) in cases {
            let text = refusal("td", start(), break_it);
            for word in words {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
    }

    #[test]
    fn an_expired_root_and_a_foreign_trust_domain_are_refused() {
        let text = refusal("td", start() + ROOT_TTL, |_| {});
        assert!(
            text.contains("expired") && text.contains(ROOT_CERT),
            "{text}"
        );
        let text = refusal("other", start(), |_| {});
        assert!(text.contains("td, not of other"), "{text}");
    }

    #[test]
    fn a_root_that_is_no_root_is_refused() {
        let (_temp, dir, ca) = on_disk();
        // The leaf's certificate and key in the root's place.
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let cert = ca.issue(&id, HOUR, start()).unwrap();
        fs::write(
            dir.join(ROOT_CERT),
            x509::pem("CERTIFICATE", &cert.chain[0]),
        )
        .unwrap();
        fs::write(
            dir.join(ROOT_KEY),
            x509::pem("PRIVATE KEY", cert.key.secret_der()),
        )
        .unwrap();
        let error = Ca::open_at(&dir, start()).unwrap_err().to_string();
        assert!(error.contains("not a CA certificate"), "{error}");
    }

    #[test]
    fn opening_nothing_is_an_error_and_creates_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("ca");
        let error = Ca::open(&dir).unwrap_err().to_string();
        assert!(error.contains("root.pem is missing"), "{error}");
        assert!(!dir.exists());
    }

    #[test]
    fn leftovers_of_a_crash_do_not_matter() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let leftover = dir.join(format!(".root.key.{}.tmp", std::process::id()));
        fs::write(&leftover, "half a k").unwrap();
        chmod(&leftover, 0o644);
        Ca::open_or_create(dir, &domain("td"), start()).unwrap();
        assert!(!leftover.exists());
        assert_eq!(mode(&dir.join(ROOT_KEY)), 0o600);
    }
}
