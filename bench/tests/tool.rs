//! The tool itself, as a process: what it prints, how it ends, and that nothing of it is
//! left behind, however it ends.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process};

/// The tool, with its temporary files in `dir`.
fn tool(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-bench"));
    command.args(args).env("TMPDIR", dir).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Processes whose arguments name `dir`.
fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("the path is text").as_bytes().to_vec();
    let all = fs::read_dir("/proc").expect("/proc is there").flatten();
    all.filter(|entry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|line| contains(&line, &dir))
    })
    .map(|entry| entry.file_name().to_string_lossy().into_owned())
    .collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "not in 20 s: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(dir)?.next().is_none())
}

#[test]
fn a_comparison_has_rows_with_costs_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "compare",
        "--rounds",
        "1",
        "--seconds",
        "0.3",
        "--only",
        "^(direct|floor)/",
        "-o",
        "json",
    ];
    let Output {
        status,
        stdout,
        stderr,
    } = tool(dir.path(), &args).output().unwrap();
    let (report, words) = (text(&stdout), text(&stderr));
    assert!(status.success(), "{report}\n{words}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 12, "6 workloads, 2 subjects");
    for row in rows {
        assert_eq!(row["valid"], true, "{row}");
        assert!(
            row["requests_per_second"]["median"].as_f64().unwrap() > 10.0,
            "{row}"
        );
        assert!(
            row["p50_us"]["median"].as_f64().unwrap() <= row["p99_us"]["median"].as_f64().unwrap(),
            "{row}"
        );
        if row["subject"] == "floor" {
            assert!(
                row["cpu_us_per_request"]["client"]["min"].as_f64().unwrap() > 1.0,
                "{row}"
            );
            assert!(
                row["added_p50_us"]["median"].as_f64().unwrap() > 0.0,
                "{row}"
            );
        }
    }
    assert_eq!(report["idle"][0]["subject"], "floor");
    assert!(is_empty(dir.path()).unwrap());
    assert_eq!(processes_of(dir.path()), Vec::<String>::new());
}

#[test]
fn children_and_files_go_with_the_tool() {
    for (signal, code) in [
        (Signal::TERM, Some(143)),
        (Signal::INT, Some(130)),
        (Signal::KILL, None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let args = [
            "compare",
            "--rounds",
            "1",
            "--seconds",
            "60",
            "--only",
            "^floor/http1-c1$",
        ];
        let mut tool = tool(dir.path(), &args)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Both proxies have the directory of the certificates among their arguments.
        wait_until("two proxies", || processes_of(dir.path()).len() == 2);
        let pid = Pid::from_raw(i32::try_from(tool.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        assert_eq!(tool.wait().unwrap().code(), code, "{signal:?}");
        wait_until("no proxies", || processes_of(dir.path()).is_empty());
        // Nobody can clean up after SIGKILL; the children are gone all the same.
        assert_eq!(
            is_empty(dir.path()).unwrap(),
            signal != Signal::KILL,
            "{signal:?}"
        );
    }
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    for (args, code, expect) in [
        (
            &["verify", "main", "--bin-dir", empty][..],
            1,
            "weft-control is not in",
        ),
        (
            &["verify", "main", "--bin-dir", "/no/such"],
            1,
            "--bin-dir /no/such",
        ),
        (
            &["verify", "everything"],
            2,
            "[possible values: main, capture, http]",
        ),
        (
            &["compare", "--only", "nothing/at-all"],
            1,
            "--only matches nothing",
        ),
        (&["compare", "--only", "("], 2, "--only"),
        (&["compare", "--rounds", "0"], 2, "--rounds"),
        (&["compare", "--seconds", "0"], 2, "0.1 to 600"),
    ] {
        let output = tool(dir.path(), args).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains(expect),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
}
