//! How `weft demo fix` finds the demo that runs in another shell: a small file of this user's
//! in `$XDG_RUNTIME_DIR` or the directory for temporary files.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, getuid, test_kill_process};
use serde::{Deserialize, Serialize};

use crate::files::replace;
use crate::output::{Exit, Failure};

/// The demo that runs.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The process.
    pub pid: u32,
    /// Its configuration directory.
    pub config: PathBuf,
}

/// The file of a running demo; dropping it removes it, unless another demo has replaced it.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    state: State,
}

impl StateFile {
    /// Announces the demo of this process.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub(crate) fn announce(config: &Path) -> io::Result<Self> {
        remove_leftovers(&path());
        Self::write(
            path(),
            State {
                pid: std::process::id(),
                config: config.to_owned(),
            },
        )
    }

    fn write(path: PathBuf, state: State) -> io::Result<Self> {
        let text = serde_json::to_string(&state)?;
        replace(&path, &text)?;
        Ok(Self { path, state })
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if read(&self.path).is_ok_and(|state| state == self.state) {
            // The next demo replaces it, and a stale one is noticed by its pid.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the directory of a demo that was killed and could not do so itself.
fn remove_leftovers(path: &Path) {
    let Ok(State { pid, config }) = read(path) else {
        return;
    };
    let Some(dir) = config.parent() else { return };
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    if !is_alive(pid) && name.starts_with(DIR_PREFIX) {
        // What cannot be removed harms nobody.
        let _ = fs::remove_dir_all(dir);
    }
}

/// How the name of a demo's directory begins.
pub(crate) const DIR_PREFIX: &str = "weft-demo-";

/// Finds the demo that runs.
///
/// # Errors
///
/// None runs.
pub(crate) fn find() -> Result<State, Failure> {
    find_at(&path())
}

fn find_at(path: &Path) -> Result<State, Failure> {
    let state = read(path)
        .ok()
        .filter(|state| is_alive(state.pid) && state.config.is_dir());
    state.ok_or_else(|| {
        Failure::new(Exit::Unreachable, "no demo is running")
            .help("start one in another shell: weft demo")
    })
}

fn path() -> PathBuf {
    let dir = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_dir());
    let dir = dir.unwrap_or_else(std::env::temp_dir);
    dir.join(format!("weft-demo-{}.json", getuid().as_raw()))
}

/// Reads the file if it is ours: in a shared directory anybody can put one there.
fn read(path: &Path) -> io::Result<State> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() || metadata.uid() != getuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}

/// Whether there is a process with this id that has not ended. Init may let some time pass
/// before it takes away one that has.
pub(crate) fn is_alive(pid: u32) -> bool {
    let known = i32::try_from(pid).ok().and_then(Pid::from_raw);
    known.is_some_and(|pid| test_kill_process(pid).is_ok())
        && !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| has_ended(&stat))
}

/// Whether `/proc/<pid>/stat` is of a zombie: the state follows the name, which may hold anything.
fn has_ended(stat: &str) -> bool {
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| state.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_is_not_alive() {
        for (stat, expect) in [
            ("7 (weft) S 1 7 7", false),
            ("7 (weft) Z 1 7 7", true),
            ("7 (x) Z 1) S 1 7 7", false),
            ("7 (x) S 1) X 1 7 7", true),
            ("", false),
        ] {
            assert_eq!(has_ended(stat), expect, "{stat}");
        }
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(u32::MAX));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        // Not waited for: it stays a zombie.
        while is_alive(child.id()) {
            assert!(std::time::Instant::now() < until, "a zombie is alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_demo_is_found_while_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let none = find_at(&path).unwrap_err();
        assert_eq!(none.exit, Exit::Unreachable);

        let state = State {
            pid: std::process::id(),
            config: dir.path().to_owned(),
        };
        let file = StateFile::write(path.clone(), state).unwrap();
        assert_eq!(find_at(&path).unwrap().config, dir.path());

        // Another demo has been started since: its file is not ours to remove.
        let other = State {
            pid: std::process::id(),
            config: dir.path().join("other"),
        };
        let other = StateFile::write(path.clone(), other).unwrap();
        drop(file);
        assert!(path.exists());
        assert!(find_at(&path).is_err(), "its directory does not exist");
        drop(other);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_killed_demo_is_cleaned_up_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let dead = 1 << 23;
        for (pid, name, remains) in [
            (dead, "weft-demo-a", false),
            (std::process::id(), "weft-demo-b", true),
            (dead, "precious", true),
        ] {
            let config = dir.path().join(name).join("config");
            fs::create_dir_all(&config).unwrap();
            replace(
                &path,
                &serde_json::to_string(&State {
                    pid,
                    config: config.clone(),
                })
                .unwrap(),
            )
            .unwrap();
            remove_leftovers(&path);
            assert_eq!(config.exists(), remains, "{name}");
        }
    }

    #[test]
    fn leftovers_and_links_are_no_demo() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real.json");
        // No process has a pid beyond the kernel's limit of 2^22.
        replace(&real, &format!("{{\"pid\":{},\"config\":\"/\"}}", 1 << 23)).unwrap();
        assert!(find_at(&real).is_err());
        replace(
            &real,
            &format!("{{\"pid\":{},\"config\":\"/\"}}", std::process::id()),
        )
        .unwrap();
        assert!(find_at(&real).is_ok());
        let link = dir.path().join("link.json");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(find_at(&link).is_err());
    }
}
