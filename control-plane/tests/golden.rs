//! The examples as xDS: what every sidecar would get, compared with checked-in files.
//! `UPDATE_GOLDEN=1 cargo test -p weft-control --test golden` writes them anew.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use weft_control::source::{FileSource, Load};
use weft_control::translate::{Context, Node, render};

const ROOTS: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn load(example: &str) -> Load {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("{example}.yaml");
    fs::copy(
        repository().join("examples").join(&name),
        directory.path().join(&name),
    )
    .unwrap();
    FileSource::new(directory.path()).load()
}

/// What is the same for all is written once, then what a namespace sees, then what is a
/// workload's own.
fn rendered(load: &Load) -> Value {
    let draining = BTreeSet::new();
    let cx = Context {
        mesh: &load.mesh,
        roots_pem: ROOTS,
        draining: &draining,
    };
    let (mut mesh, mut namespaces, mut nodes) = (Map::new(), Map::new(), Map::new());
    for workload in load.mesh.workloads() {
        let node = Node {
            namespace: &workload.namespace,
            workload: &workload.name,
        };
        let mut all = render(&cx, &node);
        let clusters = all["clusters"].take();
        let (own, shared): (Vec<Value>, Vec<Value>) = clusters
            .as_array()
            .unwrap()
            .iter()
            .cloned()
            .partition(|cluster| cluster["name"].as_str().unwrap().starts_with("inbound|"));
        let shared = json!({
            "clusters": shared,
            "endpoints": all["endpoints"],
            "secrets": all["secrets"],
        });
        if let Some(first) = mesh.insert("mesh".to_owned(), shared.clone()) {
            assert_eq!(first, shared, "shared resources differ between workloads");
        }
        let seen = json!({ "routes": all["routes"], "virtual_hosts": all["virtual_hosts"] });
        if let Some(first) = namespaces.insert(workload.namespace.clone(), seen.clone()) {
            assert_eq!(first, seen, "resources of one namespace differ");
        }
        nodes.insert(
            format!("{}/{}", workload.namespace, workload.name),
            json!({ "listeners": all["listeners"], "clusters": own }),
        );
    }
    json!({ "mesh": mesh["mesh"], "namespaces": namespaces, "workloads": nodes })
}

fn golden(example: &str) {
    let load = load(example);
    let shown: Vec<String> = load.diagnostics.iter().map(ToString::to_string).collect();
    assert!(shown.is_empty(), "{}", shown.join("\n"));
    let found = rendered(&load);
    assert!(!found.to_string().contains("\"error\""), "{found:#}");
    let path = repository()
        .join("control-plane/testdata")
        .join(format!("{example}.golden.json"));
    let text = format!("{found:#}\n");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if text != expected {
        let line = text.lines().zip(expected.lines()).position(|(a, b)| a != b);
        panic!(
            "{} differs from line {} on; if that is meant, run again with UPDATE_GOLDEN=1",
            path.display(),
            line.unwrap_or_else(|| expected.lines().count().min(text.lines().count())) + 1
        );
    }
}

#[test]
fn canary() {
    golden("canary");
}

#[test]
fn routing() {
    golden("routing");
}

#[test]
fn grpc() {
    golden("grpc");
}

#[test]
fn captured() {
    golden("captured");
}
