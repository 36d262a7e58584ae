//! Join tokens that the control plane hands out itself: each in a file, for a sidecar that
//! shares a volume with it. Whoever can read the file can become the workload.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::storage;
use crate::token::{MAX_TTL, Request, TokenError, Tokens};

/// A token is replaced when half of its life is over: each file holds one that is good for at
/// least the other half.
const RENEW_AFTER: Duration = Duration::from_secs(MAX_TTL.as_secs() / 2);
/// How long after a failure it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Where the token of a service account is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile {
    namespace: String,
    service_account: String,
    path: PathBuf,
}

impl FromStr for TokenFile {
    type Err = String;

    /// Reads `NAMESPACE/ACCOUNT=FILE`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(who, path)| {
            let (namespace, account) = who.split_once('/')?;
            Some((namespace, account, path))
        });
        match parts {
            Some((namespace, account, path))
                if !namespace.is_empty() && !account.is_empty() && !path.is_empty() =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    service_account: account.to_owned(),
                    path: PathBuf::from(path),
                })
            }
            _ => Err("must be NAMESPACE/ACCOUNT=FILE, as in default/web=/tokens/web".to_owned()),
        }
    }
}

impl TokenFile {
    /// Puts a new token into the file, mode 0600: reusable, so that a sidecar may start again.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// When no workload can have that identity, or the file cannot be written.
    pub fn write(&self, tokens: &Tokens, now: SystemTime) -> Result<(), TokenError> {
        let token = tokens.create(
            &Request {
                namespace: &self.namespace,
                service_account: &self.service_account,
                ttl: MAX_TTL,
                reusable: true,
            },
            now,
        )?;
        storage::write_atomically(&self.path, format!("{token}\n").as_bytes()).map_err(|source| {
            TokenError::Store {
                path: self.path.clone(),
                source,
            }
        })
    }
}

/// Replaces the tokens for as long as it is polled; what fails is logged and tried again.
/// The files are to be written once before.
pub async fn renew(files: Vec<TokenFile>, tokens: Tokens) -> Infallible {
    let mut wait = RENEW_AFTER;
    loop {
        tokio::time::sleep(wait).await;
        let (files, tokens) = (files.clone(), tokens.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut failed = files
                .iter()
                .filter_map(|file| file.write(&tokens, SystemTime::now()).err());
            failed.next().map_or(Ok(()), Err)
        });
        wait = match written.await {
            Ok(Ok(())) => RENEW_AFTER,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot renew a join token; trying again");
                RETRY_AFTER
            }
            Err(error) => {
                tracing::warn!(%error, "cannot renew the join tokens; trying again");
                RETRY_AFTER
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn tokens() -> Tokens {
        Tokens::in_memory("cluster.local".parse().unwrap(), [7; 32])
    }

    fn read(file: &TokenFile) -> String {
        std::fs::read_to_string(&file.path)
            .unwrap()
            .trim_end()
            .to_owned()
    }

    #[test]
    fn arguments() {
        let file: TokenFile = "a/b=/c=d".parse().unwrap();
        assert_eq!(
            (file.namespace.as_str(), file.service_account.as_str()),
            ("a", "b")
        );
        assert_eq!(file.path, PathBuf::from("/c=d"));
        for wrong in ["", "a=/c", "/b=/c", "a/=/c", "a/b=", "a/b"] {
            assert!(wrong.parse::<TokenFile>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_token_in_the_file_is_good_for_many_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let file: TokenFile = format!("shop/web={}", path.display()).parse().unwrap();
        let tokens = tokens();
        let now = SystemTime::now();
        file.write(&tokens, now).unwrap();
        let grant = tokens.check(&read(&file), now + RENEW_AFTER).unwrap();
        assert!(grant.identity.to_string().ends_with("/ns/shop/sa/web"));
        tokens.bind(&grant, [1; 32]).unwrap();
        tokens.bind(&grant, [2; 32]).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn failures_name_the_file_or_the_identity() {
        let file: TokenFile = "shop/web=/no/such/directory/token".parse().unwrap();
        let error = file.write(&tokens(), SystemTime::now()).unwrap_err();
        assert!(
            error.to_string().contains("/no/such/directory/token"),
            "{error}"
        );
        let own: TokenFile = "weft-system/weft-control=/tmp/x".parse().unwrap();
        assert!(own.write(&tokens(), SystemTime::now()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_replaced_at_half_of_its_life_and_after_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/token");
        let file: TokenFile = format!("shop/web={}", path.display()).parse().unwrap();
        let task = tokio::spawn(renew(vec![file.clone()], tokens()));
        // The first renewal fails: the directory is missing.
        tokio::time::sleep(RENEW_AFTER + Duration::from_secs(1)).await;
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !path.exists() {
            assert!(std::time::Instant::now() < deadline, "no token was written");
            tokio::time::sleep(RETRY_AFTER).await;
        }
        task.abort();
    }
}
