//! Files that others read while they change.

use std::io::{self, Write};
use std::path::Path;

/// Replaces a file as a whole: readers see the old text or the new one. Its mode is 0600.
///
/// # Errors
///
/// The directory cannot be written.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    // Hidden, so that whoever watches the directory does not read it half written.
    let mut file = tempfile::Builder::new().prefix(".weft-").tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        replace(&path, "one").unwrap();
        replace(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("no/such/dir"), "x").is_err());
    }
}
