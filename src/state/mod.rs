//! What a sidecar keeps on disk (`WEFT_PROXY_STATE`), so that it can start again when there is
//! no control plane: files that are whole or are not there, and nobody else's.
//!
//! A file is a header (magic, format, length, SHA-256) and a payload. It is written beside its
//! place and renamed, so that a crash leaves the old one. A file that cannot be trusted is
//! moved aside as `<name>.rejected` and counts as absent.

mod process;
mod writer;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

pub use process::{Listening, listening, own_sockets};
pub use writer::Writer;

const MAGIC: [u8; 8] = *b"weft\x00st\n";
/// Raised when an older sidecar could not read the payload.
const FORMAT: u32 = 1;
const HEADER: usize = 8 + 4 + 8 + 32;
/// The largest file that is read or written, in bytes.
const LARGEST: u64 = 256 << 20;

/// The state directory of one workload, checked.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

/// Why a file was not used. The text says which file and what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}; it was moved to {} and is not used", path.display(), rejected.display())]
pub struct Refused {
    path: PathBuf,
    rejected: PathBuf,
    why: String,
}

impl Directory {
    /// Opens the directory, or makes it with mode 0700.
    ///
    /// # Errors
    /// When it cannot be made or belongs to somebody else; the text says what to do.
    pub fn open(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| {
                format!("{shown}: {error}; it must be a directory that this user may write to")
            })?;
        let found = fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
        let own = rustix::process::geteuid().as_raw();
        if found.uid() != own {
            return Err(format!(
                "{shown}: belongs to user {} and this process runs as {own}; chown it or choose another directory",
                found.uid()
            ));
        }
        if found.mode() & 0o077 != 0 {
            // Ours, but open to others: as it holds a private key, it is closed.
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|error| {
                format!("{shown}: is open to other users: {error}; chmod 0700 it")
            })?;
        }
        Ok(Self(path.to_owned()))
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The payload of a file, if there is one.
    ///
    /// # Errors
    /// When it is not to be trusted: truncated, changed, of a newer sidecar, readable or owned
    /// by somebody else. It has been moved aside.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Refused> {
        let path = self.path(name);
        match read(&path) {
            Ok(payload) => Ok(payload),
            Err(why) => Err(self.refuse(name, why)),
        }
    }

    /// Moves a file aside for a reason that its reader has found.
    pub fn refuse(&self, name: &str, why: impl Into<String>) -> Refused {
        let path = self.path(name);
        let rejected = self.path(&format!("{name}.rejected"));
        // What cannot be moved is refused again next time.
        let _ = fs::rename(&path, &rejected);
        Refused {
            path,
            rejected,
            why: why.into(),
        }
    }

    /// Writes a file: it is the new one or, after any failure, the old one.
    ///
    /// # Errors
    /// When the disk is full, read-only or gone.
    pub fn write(&self, name: &str, payload: &[u8]) -> io::Result<()> {
        if payload.len() as u64 > LARGEST {
            return Err(io::Error::other(format!("more than {LARGEST} bytes")));
        }
        let temporary = self.path(&format!(".{name}.new"));
        let written = (|| {
            // What a crash has left behind may have another owner or mode.
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&header(payload))?;
            file.write_all(payload)?;
            file.sync_all()?;
            fs::rename(&temporary, self.path(name))?;
            File::open(&self.0)?.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn header(payload: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER);
    header.extend(MAGIC);
    header.extend(FORMAT.to_be_bytes());
    header.extend((payload.len() as u64).to_be_bytes());
    header.extend(Sha256::digest(payload));
    header
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let found = file.metadata().map_err(|error| error.to_string())?;
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own {
        return Err(format!(
            "belongs to user {} and this process runs as {own}",
            found.uid()
        ));
    }
    if !found.is_file() || found.mode() & 0o077 != 0 {
        return Err(format!(
            "has mode {:o}; others could have read or changed it",
            found.mode() & 0o7777
        ));
    }
    if found.len() > LARGEST {
        return Err(format!(
            "has {} bytes; at most {LARGEST} are read",
            found.len()
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    decode(&bytes).map(|payload| Some(payload.to_vec()))
}

/// The payload of a file's bytes.
fn decode(bytes: &[u8]) -> Result<&[u8], String> {
    let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
        return Err(format!("has only {} bytes; it was cut off", bytes.len()));
    };
    let (magic, rest) = header.split_at(8);
    let (format, rest) = rest.split_at(4);
    let (length, digest) = rest.split_at(8);
    if magic != MAGIC {
        return Err("is no state of a sidecar".to_owned());
    }
    let format = format
        .iter()
        .fold(0_u32, |n, byte| n << 8 | u32::from(*byte));
    if format != FORMAT {
        return Err(format!(
            "has format {format} and this sidecar ({}) reads {FORMAT}; it is from another version",
            env!("CARGO_PKG_VERSION")
        ));
    }
    let length = length
        .iter()
        .fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    if length != payload.len() as u64 {
        return Err(format!(
            "should have {length} bytes after its header and has {}; it was cut off",
            payload.len()
        ));
    }
    if Sha256::digest(payload).as_slice() != digest {
        return Err(
            "does not match its checksum; it was changed or the disk is failing".to_owned(),
        );
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::{Directory, decode, header};

    fn directory() -> (tempfile::TempDir, Directory) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::open(&temporary.path().join("state")).unwrap();
        (temporary, directory)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_keep, directory) = directory();
        assert_eq!(directory.read("config"), Ok(None));
        for payload in [&b"first"[..], b"", &[7; 100_000]] {
            directory.write("config", payload).unwrap();
            assert_eq!(directory.read("config").unwrap().unwrap(), payload);
        }
        let mode = |name: &str| {
            let found = fs::metadata(directory.path(name)).unwrap();
            found.permissions().mode() & 0o777
        };
        assert_eq!((mode("config"), mode("")), (0o600, 0o700));
        let files = fs::read_dir(directory.path("")).unwrap().count();
        assert_eq!(files, 1, "nothing is left over");
    }

    #[test]
    fn bytes_that_are_not_as_written_are_refused() {
        let mut good = header(b"payload");
        good.extend(b"payload");
        assert_eq!(decode(&good).unwrap(), b"payload");
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            bad
        };
        for (bytes, expected) in [
            (Vec::new(), "only 0 bytes"),
            (good[..40].to_vec(), "only 40 bytes"),
            (good[..good.len() - 1].to_vec(), "has 6; it was cut off"),
            (with(0, b'x'), "no state of a sidecar"),
            (with(11, 2), "has format 2"),
            (with(25, 0), "does not match its checksum"),
            (with(good.len() - 1, b'x'), "does not match its checksum"),
        ] {
            let error = decode(&bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_moved_aside() {
        let (_keep, directory) = directory();
        directory.write("identity", b"secret").unwrap();
        let path = directory.path("identity");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = directory.read("identity").unwrap_err().to_string();
        assert!(error.contains("has mode 640"), "{error}");
        assert!(error.contains("identity.rejected"), "{error}");
        assert!(!path.exists() && directory.path("identity.rejected").exists());
        assert_eq!(directory.read("identity"), Ok(None));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let (_keep, directory) = directory();
        directory.write("config", b"old").unwrap();
        // A directory is in the way: as on a full disk, the new file cannot be made.
        fs::create_dir(directory.path(".config.new")).unwrap();
        assert!(directory.write("config", b"new").is_err());
        assert_eq!(directory.read("config").unwrap().unwrap(), b"old");
    }

    #[test]
    fn a_directory_that_is_open_to_others_is_closed() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Directory::open(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let file = temporary.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Directory::open(&file).unwrap_err();
        assert!(error.contains("must be a directory"), "{error}");
    }
}
