//! What `weft-control` prints.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn example(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let examples: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    std::fs::copy(examples.join(name), directory.path().join(name)).unwrap();
    directory
}

fn weft_control(arguments: &[&str], config: &Path, stdout: Stdio, stderr: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-control"));
    command.args(arguments).arg("--config").arg(config);
    let child = command.stdout(stdout).stderr(stderr).spawn();
    child.unwrap().wait_with_output().unwrap()
}

/// The writing end of a pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_may_go_before_the_end() {
    let config = example("captured.yaml");
    for arguments in [
        ["render", "--node=shop/web-1"].as_slice(),
        &["check"],
        // What is wrong goes to stdout, and there is something wrong.
        &["check"],
    ] {
        let output = weft_control(arguments, config.path(), closed(), Stdio::piped());
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code().is_some_and(|code| code < 2), "{words}");
        assert!(!words.contains("panicked"), "{words}");
        let output = weft_control(arguments, config.path(), closed(), closed());
        assert!(output.status.code().is_some_and(|code| code < 2));
        std::fs::write(config.path().join("bad.yaml"), "a: [").unwrap();
    }
}

#[test]
fn one_is_singular() {
    let config = tempfile::tempdir().unwrap();
    let workload = "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {name: a}\nspec: {address: 127.0.0.1, weigth: 1}\n";
    std::fs::write(config.path().join("a.yaml"), workload).unwrap();
    let said = || {
        let output = weft_control(&["check"], config.path(), Stdio::null(), Stdio::piped());
        String::from_utf8(output.stderr).unwrap()
    };
    let found = said();
    let expect = ": 0 services, 0 workloads, 0 routes: 1 error, 0 warnings\n";
    assert!(found.ends_with(expect), "{found}");
    let workload = workload.replace("weigth", "weight");
    std::fs::write(config.path().join("a.yaml"), workload).unwrap();
    let found = said();
    let expect = ": 0 services, 1 workload, 0 routes: 0 errors, 0 warnings\n";
    assert!(found.ends_with(expect), "{found}");
}

/// What is shown are the addresses that the running control plane gave.
#[test]
fn render_shows_the_addresses_of_the_data_directory() {
    let config = example("captured.yaml");
    let data = tempfile::tempdir().unwrap();
    let stored = r#"{"version": 1, "addresses": {"shop/orders": "240.240.0.7"}}"#;
    std::fs::write(data.path().join("vips.json"), stored).unwrap();
    let flag = format!("--data={}", data.path().display());
    let arguments = ["render", "--node=shop/web-1", &flag];
    let output = weft_control(&arguments, config.path(), Stdio::piped(), Stdio::piped());
    let rendered: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let hosts = rendered["virtual_hosts"].as_array().unwrap();
    let orders = hosts
        .iter()
        .find(|host| host["name"] == "dns/orders.shop.svc.cluster.local")
        .unwrap();
    let weft = &orders["resource"]["metadata"]["filter_metadata"]["weft.dev"];
    assert_eq!(weft["addresses"], serde_json::json!(["240.240.0.7"]));
}
