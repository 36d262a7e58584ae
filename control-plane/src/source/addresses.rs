//! The virtual addresses of services on disk: applications remember them for longer than the
//! control plane runs.
//!
//! The file is JSON, `{"version": 1, "addresses": {"blog/post": "240.240.1.2"}}`. Without it,
//! or if it cannot be used, services have the addresses that their names alone give.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::{ServiceKey, VirtualIps};
use crate::storage;

/// Its name in the data directory.
const FILE: &str = "vips.json";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// By `namespace/name`.
    addresses: BTreeMap<String, Ipv4Addr>,
}

/// Which version wrote a file; whatever else there is in it.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// Reads what was stored, nothing if there is no file; `None` if it cannot be used, which is
/// logged. Blocks on the disk.
pub(super) fn load(data: &Path) -> Option<VirtualIps> {
    let path = data.join(FILE);
    let read = match std::fs::read(&path) {
        Ok(bytes) => decode(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(VirtualIps::default()),
        Err(error) => Err(error.to_string()),
    };
    read.inspect_err(|reason| {
        tracing::warn!(file = %path.display(), reason, "cannot use the virtual addresses of services: they are given anew, and some services may have others than before");
    })
    .ok()
}

/// Stores an allocation in place of the one before. Blocks on the disk.
///
/// # Errors
/// When the data directory cannot be written.
pub(super) fn store(data: &Path, ips: &VirtualIps) -> io::Result<()> {
    storage::create_private_directory(data)?;
    let key = |(namespace, name): &ServiceKey| format!("{namespace}/{name}");
    let stored = Stored {
        version: VERSION,
        addresses: ips.iter().map(|(k, address)| (key(k), address)).collect(),
    };
    let bytes = serde_json::to_vec_pretty(&stored).map_err(io::Error::other)?;
    storage::write_atomically(&data.join(FILE), &bytes)
}

fn decode(bytes: &[u8]) -> Result<VirtualIps, String> {
    let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if head.version != VERSION {
        return Err(format!(
            "the file is of version {}, this is {VERSION}",
            head.version
        ));
    }
    let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let entries = stored.addresses.into_iter().map(|(text, address)| {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| format!("`{text}` is not a service"))?;
        Ok(((namespace.to_owned(), name.to_owned()), address))
    });
    let entries: Result<BTreeMap<ServiceKey, Ipv4Addr>, String> = entries.collect();
    VirtualIps::restore(entries?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_stored_is_read_and_what_is_broken_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        assert_eq!(load(&data), Some(VirtualIps::default()));
        let services = ["post", "web"].map(|name| ("blog".to_owned(), name.to_owned()));
        let ips = VirtualIps::default().assign(&BTreeSet::from(services));
        store(&data, &ips).unwrap();
        assert_eq!(load(&data), Some(ips));
        for (text, reason) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#"{"version": 2, "more": 1}"#, "version 2, this is 1"),
            (r#"{"version": 1}"#, "missing field `addresses`"),
            (
                r#"{"version": 1, "addresses": {}, "more": 1}"#,
                "unknown field `more`",
            ),
            (
                r#"{"version": 1, "addresses": {"post": "240.240.0.1"}}"#,
                "`post` is not a service",
            ),
            (
                r#"{"version": 1, "addresses": {"blog/post": "10.0.0.1"}}"#,
                "not a virtual address",
            ),
            (
                r#"{"version": 1, "addresses": {"a/a": "240.240.0.1", "a/b": "240.240.0.1"}}"#,
                "240.240.0.1 is that of a/a and of a/b",
            ),
        ] {
            let error = decode(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
            std::fs::write(data.join(FILE), text).unwrap();
            assert_eq!(load(&data), None);
        }
    }
}
