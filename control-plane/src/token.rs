//! Join tokens: how a workload proves who it is before it has a certificate.
//!
//! A token is `<SHA-256 of the root's DER, hex>.<id>.<secret>`. Only the SHA-256 of the
//! secret is stored, in `<data>/tokens/<id>.json`; the file is read at each use, so tokens
//! that another process makes count at once. A token that is not reusable belongs to the
//! first public key that used it: a lost answer may be asked for again with the same key.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weft_certs::spiffe::{SpiffeId, TrustDomain};

use crate::{CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT, hex, storage};

/// The shortest lifetime of a token.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// The longest lifetime of a token: 30 days.
pub const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long after its end a token is deleted: a clock that is wrong for a while must not
/// delete what is still good, nor a token go while a request that it admitted is under way.
const SWEEP_AFTER: Duration = Duration::from_secs(24 * 3600);
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
/// No record that Weft writes is longer.
const MAX_RECORD_BYTES: u64 = 16 * 1024;

/// The tokens of one trust domain. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Tokens {
    trust_domain: TrustDomain,
    root: [u8; 32],
    store: Store,
}

/// For whom a token is, and how long.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The namespace of the workload.
    pub namespace: &'a str,
    /// The service account of the workload.
    pub service_account: &'a str,
    /// How long it may be used; clamped to [`MIN_TTL`] ..= [`MAX_TTL`].
    pub ttl: Duration,
    /// Whether more than one key may use it (a group of replicas).
    pub reusable: bool,
}

/// A token that was presented and is good. Using it is [`Tokens::bind`].
#[derive(Debug, Clone)]
pub struct Grant {
    /// The identity that it stands for.
    pub identity: SpiffeId,
    id: String,
    reusable: bool,
}

/// Why a token is not accepted or not made. The texts contain no secret.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not of the form of a token.
    #[error(
        "the join token is malformed: it is `<root fingerprint>.<id>.<secret>`, as `weft-control token create` prints it"
    )]
    Malformed,
    /// Made by another authority.
    #[error("the join token is for another root certificate; create one at this control plane")]
    OtherRoot,
    /// No such id, or another secret: not told apart.
    #[error(
        "the join token is unknown or has been deleted; create a new one with `weft-control token create`"
    )]
    Unknown,
    /// Past its time.
    #[error("the join token has expired; create a new one with `weft-control token create`")]
    Expired,
    /// Another key used it.
    #[error(
        "the join token has been used with another key; create one token for each workload, or a reusable one (--reusable)"
    )]
    Used,
    /// The identity cannot be had by a token.
    #[error("{0}")]
    Identity(String),
    /// The disk.
    #[error("cannot use the token store {path}: {source}")]
    Store {
        /// Where.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

#[derive(Clone)]
enum Store {
    Directory(PathBuf),
    Memory(Arc<Mutex<HashMap<String, Held>>>),
}

/// A token in memory: its record, and the key that it is bound to.
type Held = (Record, Option<String>);

/// A token as stored.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    namespace: String,
    service_account: String,
    secret_sha256: String,
    /// Seconds since 1970.
    expires_unix: u64,
    reusable: bool,
}

impl Tokens {
    /// The tokens kept in `<data>/tokens`, which is made if missing.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(
        data: &Path,
        trust_domain: TrustDomain,
        root: [u8; 32],
    ) -> Result<Self, TokenError> {
        let path = data.join("tokens");
        storage::create_private_directory(&path).map_err(|source| TokenError::Store {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            trust_domain,
            root,
            store: Store::Directory(path),
        })
    }

    /// Tokens that end with the process.
    #[must_use]
    pub fn in_memory(trust_domain: TrustDomain, root: [u8; 32]) -> Self {
        Self {
            trust_domain,
            root,
            store: Store::Memory(Arc::default()),
        }
    }

    /// Makes a token and stores its record. Blocks on the disk.
    ///
    /// # Errors
    /// When no workload can have that identity, or the record cannot be written.
    pub fn create(&self, request: &Request<'_>, now: SystemTime) -> Result<String, TokenError> {
        self.identity(request.namespace, request.service_account)?;
        let id = random_hex::<ID_BYTES>().map_err(|e| self.store_error(e))?;
        let secret = random_hex::<SECRET_BYTES>().map_err(|e| self.store_error(e))?;
        let expires = now + request.ttl.clamp(MIN_TTL, MAX_TTL);
        let record = Record {
            namespace: request.namespace.to_owned(),
            service_account: request.service_account.to_owned(),
            secret_sha256: hex(&Sha256::digest(&secret)),
            expires_unix: unix(expires),
            reusable: request.reusable,
        };
        self.store
            .insert(&id, record)
            .map_err(|e| self.store_error(e))?;
        Ok(format!("{}.{id}.{secret}", hex(&self.root)))
    }

    /// Checks a presented token, without using it. Blocks on the disk.
    ///
    /// # Errors
    /// When it is not good now.
    pub fn check(&self, token: &str, now: SystemTime) -> Result<Grant, TokenError> {
        let (root, id, secret) = split(token).ok_or(TokenError::Malformed)?;
        if !same(root.as_bytes(), hex(&self.root).as_bytes()) {
            return Err(TokenError::OtherRoot);
        }
        let record = self.store.record(id).map_err(|e| self.store_error(e))?;
        let record = record.ok_or(TokenError::Unknown)?;
        let presented = hex(&Sha256::digest(secret));
        if !same(presented.as_bytes(), record.secret_sha256.as_bytes()) {
            return Err(TokenError::Unknown);
        }
        if unix(now) >= record.expires_unix {
            return Err(TokenError::Expired);
        }
        Ok(Grant {
            identity: self.identity(&record.namespace, &record.service_account)?,
            id: id.to_owned(),
            reusable: record.reusable,
        })
    }

    /// Uses a token for a public key, given by its SHA-256. Of many concurrent uses with
    /// different keys exactly one succeeds, unless the token is reusable. Blocks on the disk.
    ///
    /// # Errors
    /// [`TokenError::Used`] when another key had it first.
    pub fn bind(&self, grant: &Grant, key: [u8; 32]) -> Result<(), TokenError> {
        if grant.reusable {
            return Ok(());
        }
        let key = hex(&key);
        let owner = self
            .store
            .bind(&grant.id, &key)
            .map_err(|e| self.store_error(e))?;
        if same(owner.as_bytes(), key.as_bytes()) {
            Ok(())
        } else {
            Err(TokenError::Used)
        }
    }

    /// Deletes what expired a day ago; returns how many tokens. Blocks on the disk.
    ///
    /// # Errors
    /// When the directory cannot be read. A single file that cannot be deleted is logged.
    pub fn sweep(&self, now: SystemTime) -> Result<usize, TokenError> {
        let until = unix(now).saturating_sub(SWEEP_AFTER.as_secs());
        self.store.sweep(until).map_err(|e| self.store_error(e))
    }

    fn identity(&self, namespace: &str, service_account: &str) -> Result<SpiffeId, TokenError> {
        // Whoever holds the control plane's identity is believed by every sidecar.
        if namespace == CONTROL_NAMESPACE && service_account == CONTROL_SERVICE_ACCOUNT {
            return Err(TokenError::Identity(format!(
                "{namespace}/{service_account} is the control plane's own identity: no workload can have it"
            )));
        }
        SpiffeId::workload(&self.trust_domain, namespace, service_account).map_err(|error| {
            TokenError::Identity(format!(
                "no identity for namespace `{namespace}` and service account `{service_account}`: {error}"
            ))
        })
    }

    fn store_error(&self, source: io::Error) -> TokenError {
        let path = match &self.store {
            Store::Directory(path) => path.clone(),
            Store::Memory(_) => PathBuf::from("(memory)"),
        };
        TokenError::Store { path, source }
    }
}

impl Store {
    fn insert(&self, id: &str, record: Record) -> io::Result<()> {
        match self {
            Self::Directory(path) => {
                let bytes = serde_json::to_vec_pretty(&record)?;
                storage::create_atomically(&path.join(format!("{id}.json")), &bytes)
            }
            Self::Memory(records) => {
                records.lock().insert(id.to_owned(), (record, None));
                Ok(())
            }
        }
    }

    fn record(&self, id: &str) -> io::Result<Option<Record>> {
        match self {
            Self::Directory(path) => read_record(&path.join(format!("{id}.json"))),
            Self::Memory(records) => Ok(records.lock().get(id).map(|(record, _)| record.clone())),
        }
    }

    /// Binds a token to a key unless it is bound; returns the key that it is bound to.
    fn bind(&self, id: &str, key: &str) -> io::Result<String> {
        match self {
            Self::Directory(path) => {
                let path = path.join(format!("{id}.key"));
                match storage::create_atomically(&path, key.as_bytes()) {
                    Ok(()) => Ok(key.to_owned()),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        std::fs::read_to_string(&path)
                    }
                    Err(error) => Err(error),
                }
            }
            Self::Memory(records) => {
                let mut records = records.lock();
                let (_, bound) = records.get_mut(id).ok_or(io::ErrorKind::NotFound)?;
                Ok(bound.get_or_insert_with(|| key.to_owned()).clone())
            }
        }
    }

    fn sweep(&self, until: u64) -> io::Result<usize> {
        let path = match self {
            Self::Directory(path) => path,
            Self::Memory(records) => {
                let mut records = records.lock();
                let before = records.len();
                records.retain(|_, (record, _)| record.expires_unix > until);
                return Ok(before - records.len());
            }
        };
        let mut deleted = 0;
        for entry in std::fs::read_dir(path)? {
            let file = entry?.path();
            let is_record = file
                .extension()
                .is_some_and(|extension| extension == "json");
            if !is_record {
                continue;
            }
            match read_record(&file) {
                Ok(Some(record)) if record.expires_unix <= until => {
                    // The record first: without it the key file grants nothing.
                    delete(&file);
                    delete(&file.with_extension("key"));
                    deleted += 1;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(file = %file.display(), %error, "skipping an unreadable join token");
                }
            }
        }
        Ok(deleted)
    }
}

fn delete(file: &Path) {
    match std::fs::remove_file(file) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "cannot delete an expired join token");
        }
    }
}

fn read_record(path: &Path) -> io::Result<Option<Record>> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if size > MAX_RECORD_BYTES {
        return Err(io::Error::other("too long for a join token's record"));
    }
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The three parts of a token; `None` if one has another shape. The id is only then safe as
/// a part of a file name.
fn split(token: &str) -> Option<(&str, &str, &str)> {
    let (root, rest) = token.trim().split_once('.')?;
    let (id, secret) = rest.split_once('.')?;
    let lower_hex = |text: &str, bytes: usize| {
        text.len() == 2 * bytes && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    (lower_hex(root, 32) && lower_hex(id, ID_BYTES) && lower_hex(secret, SECRET_BYTES))
        .then_some((root, id, secret))
}

/// Compares in a time that does not depend on where the texts differ.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .fold(0, |differing, (l, r)| differing | (l ^ r))
            == 0
}

fn random_hex<const BYTES: usize>() -> io::Result<String> {
    let mut bytes = [0; BYTES];
    OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    Ok(hex(&bytes))
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::{Duration, SystemTime};

    use super::{Request, SWEEP_AFTER, TokenError, Tokens};

    const ROOT: [u8; 32] = [7; 32];

    fn stores() -> (tempfile::TempDir, [Tokens; 2]) {
        let directory = tempfile::tempdir().unwrap();
        let domain: weft_certs::spiffe::TrustDomain = "demo.mesh".parse().unwrap();
        let on_disk = Tokens::open(directory.path(), domain.clone(), ROOT).unwrap();
        (directory, [on_disk, Tokens::in_memory(domain, ROOT)])
    }

    fn request(reusable: bool) -> Request<'static> {
        Request {
            namespace: "blog",
            service_account: "post",
            ttl: Duration::from_secs(60),
            reusable,
        }
    }

    #[test]
    fn a_token_stands_for_its_identity_and_one_key() {
        let (_directory, stores) = stores();
        for tokens in stores {
            let now = SystemTime::now();
            let token = tokens.create(&request(false), now).unwrap();
            let grant = tokens.check(&token, now).unwrap();
            assert_eq!(
                grant.identity.as_str(),
                "spiffe://demo.mesh/ns/blog/sa/post"
            );
            tokens.bind(&grant, [1; 32]).unwrap();
            tokens
                .bind(&grant, [1; 32])
                .expect("the same key may retry");
            assert!(matches!(
                tokens.bind(&grant, [2; 32]),
                Err(TokenError::Used)
            ));
        }
    }

    #[test]
    fn a_reusable_token_takes_any_key() {
        let (_directory, stores) = stores();
        for tokens in stores {
            let now = SystemTime::now();
            let token = tokens.create(&request(true), now).unwrap();
            let grant = tokens.check(&token, now).unwrap();
            tokens.bind(&grant, [1; 32]).unwrap();
            tokens.bind(&grant, [2; 32]).unwrap();
        }
    }

    #[test]
    fn what_is_not_exactly_the_token_is_refused() {
        let (_directory, stores) = stores();
        for tokens in stores {
            let now = SystemTime::now();
            let token = tokens.create(&request(false), now).unwrap();
            let parts: Vec<&str> = token.split('.').collect();
            let (root, id, secret) = (parts[0], parts[1], parts[2]);
            let zeros = "0".repeat(64);
            let cases = [
                (String::new(), "malformed"),
                (format!("{root}.{id}"), "malformed"),
                (format!("{root}.{id}.{secret}.x"), "malformed"),
                (format!("{root}.../../{id}.{secret}"), "malformed"),
                (
                    format!(
                        "{root}.{}.{secret}",
                        id.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A")
                    ),
                    "malformed",
                ),
                (format!("{root}.{id}.{}", &secret[1..]), "malformed"),
                (format!("{zeros}.{id}.{secret}"), "another root"),
                (format!("{root}.0000000000000000.{secret}"), "unknown"),
                (format!("{root}.{id}.{zeros}"), "unknown"),
            ];
            for (text, expected) in cases {
                let error = tokens.check(&text, now).unwrap_err().to_string();
                assert!(error.contains(expected), "{text}: {error}");
                assert!(!error.contains(secret), "the error tells the secret");
            }
        }
    }

    #[test]
    fn expired_tokens_are_refused_and_swept() {
        let (directory, stores) = stores();
        for tokens in &stores {
            let now = SystemTime::now();
            let token = tokens.create(&request(false), now).unwrap();
            let kept = tokens
                .create(
                    &Request {
                        ttl: Duration::from_secs(600),
                        ..request(false)
                    },
                    now,
                )
                .unwrap();
            let grant = tokens.check(&token, now).unwrap();
            tokens.bind(&grant, [1; 32]).unwrap();
            let later = now + Duration::from_secs(61);
            assert!(matches!(
                tokens.check(&token, later),
                Err(TokenError::Expired)
            ));
            assert_eq!(tokens.sweep(later).unwrap(), 0, "it may be the clock");
            tokens.check(&token, now).unwrap();
            assert_eq!(tokens.sweep(later + SWEEP_AFTER).unwrap(), 1);
            assert!(matches!(
                tokens.check(&token, now),
                Err(TokenError::Unknown)
            ));
            tokens.check(&kept, later).unwrap();
        }
        let left = std::fs::read_dir(directory.path().join("tokens"))
            .unwrap()
            .count();
        assert_eq!(left, 1);
    }

    #[test]
    fn of_a_hundred_concurrent_uses_one_wins() {
        let (_directory, stores) = stores();
        for tokens in stores {
            let now = SystemTime::now();
            let token = tokens.create(&request(false), now).unwrap();
            let threads: Vec<_> = (0..100_u8)
                .map(|n| {
                    let (tokens, token) = (tokens.clone(), token.clone());
                    std::thread::spawn(move || {
                        let grant = tokens.check(&token, now).unwrap();
                        tokens.bind(&grant, [n; 32]).is_ok()
                    })
                })
                .collect();
            let wins = threads.into_iter().map(|t| t.join().unwrap());
            assert_eq!(wins.filter(|won| *won).count(), 1);
        }
    }

    #[test]
    fn the_control_planes_identity_cannot_be_had() {
        let (_directory, stores) = stores();
        for tokens in stores {
            let own = Request {
                namespace: "weft-system",
                service_account: "weft-control",
                ..request(false)
            };
            let error = tokens.create(&own, SystemTime::now()).unwrap_err();
            assert!(error.to_string().contains("own identity"), "{error}");
            let bad = Request {
                namespace: "a/b",
                ..request(false)
            };
            let error = tokens.create(&bad, SystemTime::now()).unwrap_err();
            assert!(error.to_string().contains("`a/b`"), "{error}");
        }
    }

    #[test]
    fn the_files_are_private_and_without_the_secret() {
        let (directory, [tokens, _]) = stores();
        let token = tokens.create(&request(false), SystemTime::now()).unwrap();
        let secret = token.rsplit('.').next().unwrap();
        let path = directory.path().join("tokens");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        for entry in path.read_dir().unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            assert!(!std::fs::read_to_string(path).unwrap().contains(secret));
        }
    }
}
