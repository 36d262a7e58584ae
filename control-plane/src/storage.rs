//! Files that must survive a crash whole: written beside, synced, then renamed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rand::TryRngCore as _;
use rand::rngs::OsRng;
use sha2::{Digest as _, Sha256};

use crate::hex;

/// Replaces a file by the given bytes, mode 0600. After a crash it is the old file or the
/// new one, never a part. Blocks on the disk.
///
/// # Errors
/// When the directory cannot be written.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, bytes)?;
    fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    sync_directory(path)
}

/// Creates a file with the given bytes, mode 0600, unless one is there already. Exactly one
/// of many concurrent callers creates it. Blocks on the disk.
///
/// # Errors
/// `AlreadyExists` when there is one; else when the directory cannot be written.
pub(crate) fn create_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, bytes)?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    linked?;
    sync_directory(path)
}

/// A text under a line that says what it is: `<magic> <version> <SHA-256 of the text, hex>`.
pub(crate) fn seal(magic: &str, version: u32, body: &str) -> String {
    format!("{magic} {version} {}\n{body}", digest(body))
}

/// The text that [`seal`] made.
///
/// # Errors
/// When it is something else, of another version, or was changed; the text says which.
pub(crate) fn unseal<'a>(magic: &str, version: u32, sealed: &'a str) -> Result<&'a str, String> {
    let damaged = || "the file is damaged".to_owned();
    let (head, body) = sealed.split_once('\n').ok_or_else(damaged)?;
    let mut words = head.split(' ');
    if words.next() != Some(magic) {
        return Err(damaged());
    }
    let found = words.next().unwrap_or_default();
    if found != version.to_string() {
        return Err(format!(
            "the file is of version {found:?}, this is \"{version}\""
        ));
    }
    if words.next() != Some(digest(body).as_str()) || words.next().is_some() {
        return Err(damaged());
    }
    Ok(body)
}

fn digest(body: &str) -> String {
    hex(&Sha256::digest(body))
}

fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unique = OsRng.try_next_u64().map_err(io::Error::other)?;
    let temporary = path.with_file_name(format!(".{name}.{unique:016x}.tmp"));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    Ok(temporary)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Makes a directory, mode 0700, and its parents; one that exists is left as it is.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn create_private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
