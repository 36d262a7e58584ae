//! Files that must survive a crash whole: written beside, synced, then renamed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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

/// The right to write a data directory, which one process at a time has. Every task that
/// writes keeps a clone; with the last, another process may have it.
#[derive(Clone, Debug)]
pub(crate) struct DataLock {
    _file: Arc<File>,
}

/// The lock's name in the data directory.
const LOCK_FILE: &str = "lock";
/// How long a process that is ending may take to let go.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);
/// How often is looked whether it has.
const LOCK_LOOK: Duration = Duration::from_millis(10);

impl DataLock {
    /// Takes the directory, and makes it if there is none; waits up to 5 s for another process.
    ///
    /// # Errors
    /// `WouldBlock` when another process keeps it; its text names that one. Else when the
    /// directory cannot be written.
    pub(crate) async fn take(data: &Path) -> io::Result<Self> {
        create_private_directory(data)?;
        let path = data.join(LOCK_FILE);
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).mode(0o600);
        let mut file = open.truncate(false).open(&path)?;
        let deadline = tokio::time::Instant::now() + LOCK_DEADLINE;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {}
            }
            if tokio::time::Instant::now() >= deadline {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                return Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    format!("process {} uses it", holder.trim()),
                ));
            }
            tokio::time::sleep(LOCK_LOOK).await;
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self {
            _file: Arc::new(file),
        })
    }
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
