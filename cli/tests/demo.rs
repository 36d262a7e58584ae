//! The demo as a user starts it: real sidecars, real traffic, and nothing left behind.
#![allow(clippy::unwrap_used)] // A helper of a test may panic as the test may.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A directory of the test's own for everything that the demo puts into temporary places.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn weft(scratch: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command
        .args(args)
        .env("TMPDIR", scratch)
        .env("XDG_RUNTIME_DIR", scratch);
    command
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// The processes started by a demo whose scratch directory is in their environment.
fn processes(scratch: &Path) -> Vec<PathBuf> {
    let mark = format!("TMPDIR={}", scratch.display()).into_bytes();
    let all = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let ours = all.filter(|path| {
        // A zombie's environment is empty.
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark)
    });
    ours.collect()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-s", signal, &pid])
            .status()
            .unwrap()
            .success()
    );
}

fn edge<'a>(document: &'a Value, from: &str, to: &str) -> &'a Value {
    let edges = document["edges"].as_array().unwrap();
    let found = edges
        .iter()
        .find(|edge| edge["from"] == from && edge["to"] == to);
    found.unwrap_or_else(|| panic!("no edge {from} -> {to} in {document:#}"))
}

#[test]
fn a_whole_mesh_in_one_json_document() {
    let scratch = scratch();
    let output = weft(scratch.path(), &["demo", "--for", "4s", "-o", "json"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{words}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["apiVersion"], "cli.weft.dev/v1");
    assert_eq!(document["control_plane"]["trust_domain"], "demo.mesh");
    let workloads = document["workloads"].as_array().unwrap();
    assert_eq!(workloads.len(), 7);
    for workload in workloads {
        assert_eq!(workload["ready"], true, "{workload}");
        let name = workload["name"].as_str().unwrap();
        assert_eq!(
            workload["spiffe_id"],
            format!("spiffe://demo.mesh/ns/blog/sa/{name}")
        );
    }
    for (from, to, protocol, at_least) in [
        ("bot", "web", "http", 40),
        ("web", "account", "http", 12),
        ("web", "post", "http", 12),
        ("web", "storage", "http", 5),
        ("post", "account", "http", 6),
        ("storage", "queue", "tcp", 5),
    ] {
        let edge = edge(&document, from, to);
        assert_eq!(edge["protocol"], protocol, "{edge}");
        assert_eq!(edge["mtls"], true, "{edge}");
        assert_eq!(edge["retries"], 0, "{edge}");
        assert!(edge["requests"].as_u64().unwrap() >= at_least, "{edge}");
        if to != "post" {
            assert_eq!(edge["success_rate"], 1.0, "{edge}");
        }
        assert_eq!(edge["p99_ms"].is_f64(), protocol == "http", "{edge}");
    }
    for problem in document["problems"].as_array().unwrap() {
        assert_eq!(problem["edge"], "web -> post");
        assert_eq!(problem["reason"], "app_error");
        assert_eq!(problem["backend"], "post-v2");
    }
    assert!(is_empty(scratch.path()), "files are left behind");
    assert_eq!(processes(scratch.path()), Vec::<PathBuf>::new());
}

/// Starts a demo that prints a line a second, and calls `until` with each until it is true.
fn follow(scratch: &Path, until: impl FnMut(&Value) -> bool) -> Child {
    let mut child = weft(scratch, &["demo", "-o", "jsonl", "-q"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    read_until(&mut child, until);
    child
}

fn read_until(child: &mut Child, mut until: impl FnMut(&Value) -> bool) {
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    for _ in 0..60 {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the demo has ended");
        if until(&serde_json::from_str(&line).unwrap()) {
            child.stdout = Some(lines.into_inner());
            return;
        }
    }
    panic!("one minute has passed; last: {line}");
}

#[test]
fn the_planted_fault_shows_and_the_fix_works() {
    let scratch = scratch();
    let mut demo = follow(scratch.path(), |line| {
        edge(line, "web", "post")["success_rate"]
            .as_f64()
            .is_some_and(|rate| rate < 1.0)
    });
    let fix = weft(scratch.path(), &["demo", "fix", "-o", "json"])
        .output()
        .unwrap();
    let fixed: Value = serde_json::from_slice(&fix.stdout).unwrap();
    assert_eq!(fixed["weights"]["post-v2"], 0);
    // The lines are about the last ten seconds: the fault leaves them.
    read_until(&mut demo, |line| {
        let edge = edge(line, "web", "post");
        edge["requests"].as_u64().unwrap() > 50 && edge["success_rate"] == 1.0
    });
    signal(&demo, "INT");
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    assert!(is_empty(scratch.path()), "files are left behind");
    assert_eq!(processes(scratch.path()), Vec::<PathBuf>::new());
    let none = weft(scratch.path(), &["demo", "fix"]).output().unwrap();
    assert_eq!(none.status.code(), Some(3));
}

#[test]
fn a_killed_demo_leaves_no_process_and_the_next_one_removes_its_files() {
    let scratch = scratch();
    let mut demo = follow(scratch.path(), |_| true);
    assert!(processes(scratch.path()).len() >= 15);
    demo.kill().unwrap();
    demo.wait().unwrap();
    wait_until("all processes have ended", || {
        processes(scratch.path()).is_empty()
    });
    assert!(!is_empty(scratch.path()), "nobody could remove the files");

    let mut next = follow(scratch.path(), |_| true);
    signal(&next, "TERM");
    assert_eq!(next.wait().unwrap().code(), Some(0));
    assert!(is_empty(scratch.path()), "files are left behind");
}

#[test]
fn a_sidecar_that_dies_ends_the_demo_with_its_name() {
    let scratch = scratch();
    let mut demo = weft(scratch.path(), &["demo"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = BufReader::new(demo.stderr.take().unwrap()).lines();
    let started = words
        .by_ref()
        .map(Result::unwrap)
        .any(|line| line.contains("traffic"));
    assert!(started, "the demo has not started");
    let sidecar = processes(scratch.path()).into_iter().find(|path| {
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains("internal-proxy")
    });
    let pid = sidecar.unwrap().file_name().unwrap().to_owned();
    assert!(
        Command::new("kill")
            .arg("-KILL")
            .arg(pid)
            .status()
            .unwrap()
            .success()
    );
    let rest: Vec<_> = words.map(Result::unwrap).collect();
    assert_eq!(demo.wait().unwrap().code(), Some(1), "{rest:?}");
    let error = rest
        .iter()
        .find(|line| line.starts_with("error: the sidecar of "));
    assert!(error.unwrap().contains("has ended (signal: 9"), "{rest:?}");
    assert!(is_empty(scratch.path()), "files are left behind");
}
