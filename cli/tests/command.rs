//! The command line as scripts see it: output, exit codes, and what stays hidden.

#![allow(clippy::unwrap_used)] // A helper of a test may panic as the test may.

use std::process::{Command, Output};

fn weft(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(args)
        .env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn version() {
    let version = env!("CARGO_PKG_VERSION");
    let text = weft(&["version"]);
    assert_eq!(
        (text.status.code(), stdout(&text)),
        (Some(0), format!("weft {version}\n"))
    );

    let json = weft(&["version", "-o", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(document["apiVersion"], "cli.weft.dev/v1");
    assert_eq!(document["client"]["version"], version);

    let line = weft(&["-o", "jsonl", "version"]);
    assert_eq!(stdout(&line).lines().count(), 1);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&line.stdout).unwrap(),
        document
    );
}

#[test]
fn usage_errors_exit_with_2_and_say_what_is_wrong() {
    for (args, part) in [
        (&["fly"][..], "unrecognized subcommand"),
        (&[], "Usage: weft"),
        (&["demo", "--for", "soon"], "write it like 20s"),
        (&["demo", "--for", "0s"], "write it like 20s"),
        (
            &["demo", "-o", "yaml"],
            "possible values: table, json, jsonl",
        ),
        (&["demo", "fix", "--for", "1s"], "unexpected argument"),
        (&["run", "--name", "web", "--port", "8080"], "COMMAND"),
        (
            &["run", "--name", "Web", "--port", "8080", "--", "x"],
            "lower-case",
        ),
        (
            &[
                "run", "--name", "web", "--port", "8080", "-o", "json", "--", "x",
            ],
            "-o does not apply",
        ),
        (&["completion", "bash", "-o", "json"], "-o does not apply"),
    ] {
        let output = weft(args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(part),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn what_is_not_there_is_unreachable() {
    let fix = weft(&["demo", "fix"]);
    assert_eq!(fix.status.code(), Some(3));
    assert!(
        stderr(&fix).contains("no demo is running\n  help: start one"),
        "{}",
        stderr(&fix)
    );

    let run = weft(&[
        "run",
        "--name",
        "a",
        "--port",
        "1",
        "--server-data",
        "/nowhere",
        "--",
        "true",
    ]);
    assert_eq!(run.status.code(), Some(3));
    assert!(
        stderr(&run).contains("weft server --data /nowhere"),
        "{}",
        stderr(&run)
    );
}

#[test]
fn help_says_where_the_control_plane_may_be() {
    let help = stdout(&weft(&["run", "--help"]));
    let words: Vec<_> = help.split_whitespace().collect();
    let words = words.join(" ");
    for part in [
        "configuration directory of a `weft server` on this machine",
        "With `--transparent` the control plane may be on another one",
        "`--print-unit` prints a systemd service",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
}

#[test]
fn internals_stay_hidden() {
    for args in [
        &["--help"][..],
        &["completion", "bash"],
        &["completion", "zsh"],
        &["completion", "fish"],
    ] {
        let output = weft(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(stdout(&output).contains("demo"), "{args:?}");
        assert!(!stdout(&output).contains("internal"), "{args:?}");
    }
}

#[test]
fn an_application_that_cannot_listen_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let listen = format!("--listen={address}");
    // Stdin is kept open by the pipe: its end would end the application.
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args([
            "internal-app",
            "account",
            &listen,
            "--outbound=127.0.0.1:1",
            "--queue=127.0.0.1:1",
        ])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lifeline = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(lifeline);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("account on {address}: Address already in use")));
}

#[test]
fn an_application_ends_with_its_parent() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args([
            "internal-app",
            "account",
            "--listen=127.0.0.1:0",
            "--outbound=127.0.0.1:1",
            "--queue=127.0.0.1:1",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    assert!(
        child.try_wait().unwrap().is_none(),
        "it runs as long as its stdin is open"
    );
    drop(child.stdin.take());
    assert!(!child.wait().unwrap().success());
}
