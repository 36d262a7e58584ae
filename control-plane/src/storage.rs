//! Files that must survive a crash whole: written beside, synced, then renamed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rand::TryRngCore as _;
use rand::rngs::OsRng;

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
