//! The last good documents on disk, for the time after a restart: a document that is bad by
//! then has its last good version in no other place.
//!
//! The file is sealed by [`storage::seal`]. It is a convenience: whatever is wrong with it is logged, and it then
//! counts as empty.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::storage;

/// Its name in the data directory.
pub(super) const FILE: &str = "last-good";
const MAGIC: &str = "weft-last-good";
const VERSION: u32 = 1;

/// One document as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    /// The file, relative to the configuration directory.
    pub(super) file: String,
    /// The number of lines before it in the file.
    pub(super) lines_before: u32,
    /// The document.
    pub(super) text: String,
}

/// Reads what was stored; none if there is no file or it cannot be used. Blocks on the disk.
pub(super) fn load(data: &Path) -> Vec<Kept> {
    let path = data.join(FILE);
    let read = match std::fs::read_to_string(&path) {
        Ok(text) => decode(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => Err(error.to_string()),
    };
    read.unwrap_or_else(|reason| {
        tracing::warn!(file = %path.display(), reason, "cannot use the last good documents: what is bad in the configuration now has no version in force");
        Vec::new()
    })
}

/// Stores documents in place of those before. Blocks on the disk.
///
/// # Errors
/// When the data directory cannot be written.
pub(super) fn store(data: &Path, documents: &[Kept]) -> io::Result<()> {
    storage::create_private_directory(data)?;
    let text = encode(documents).map_err(io::Error::other)?;
    storage::write_atomically(&data.join(FILE), text.as_bytes())
}

fn encode(documents: &[Kept]) -> serde_json::Result<String> {
    let body = serde_json::to_string(documents)?;
    Ok(storage::seal(MAGIC, VERSION, &body))
}

fn decode(text: &str) -> Result<Vec<Kept>, String> {
    let body = storage::unseal(MAGIC, VERSION, text)?;
    serde_json::from_str(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_and_what_is_damaged_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        assert_eq!(load(&data), []);
        let documents = [Kept {
            file: "a.yaml".to_owned(),
            lines_before: 7,
            text: "---\na: \"ü\"\n".to_owned(),
        }];
        store(&data, &documents).unwrap();
        assert_eq!(load(&data), documents);

        let good = encode(&documents).unwrap();
        let sealed = |body| storage::seal(MAGIC, VERSION, body);
        let cases = [
            (String::new(), "damaged"),
            ("x".to_owned(), "damaged"),
            (good[..good.len() - 1].to_owned(), "damaged"),
            (good.replace("a.yaml", "b.yaml"), "damaged"),
            (good.replacen(" 1 ", " 2 ", 1), "version \"2\""),
            (sealed("[]") + "x", "damaged"),
            (sealed("[]").replacen('\n', " x\n", 1), "damaged"),
            (sealed("{}"), "invalid type"),
        ];
        for (text, reason) in cases {
            let error = decode(&text).unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
            std::fs::write(data.join(FILE), text).unwrap();
            assert_eq!(load(&data), []);
        }
        std::fs::write(data.join(FILE), [0xff]).unwrap();
        assert_eq!(load(&data), []);
    }
}
