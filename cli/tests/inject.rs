//! `weft inject` and `weft uninject` as scripts see them. `UPDATE_GOLDEN=1` rewrites the golden
//! files in `tests/inject`.

#![allow(clippy::unwrap_used)] // A helper of a test may panic as the test may.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use weft_proxy::bootstrap::Bootstrap;

fn weft(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject")
}

/// The names of the golden files, and their input.
fn inputs() -> Vec<(String, String)> {
    let mut inputs: Vec<(String, String)> = fs::read_dir(directory())
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name()?.to_str()?.strip_suffix(".in.yaml")?;
            Some((name.to_owned(), fs::read_to_string(&path).unwrap()))
        })
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 13, "{inputs:?}");
    inputs
}

fn manifests() -> impl Iterator<Item = (String, String)> {
    inputs().into_iter().filter(|(name, _)| name != "compose")
}

fn injected(name: &str, input: &str) -> String {
    let output = weft(&["inject"], input);
    assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
    stdout(&output).to_owned()
}

#[test]
fn golden_files() {
    for (name, input) in inputs() {
        let output = injected(&name, &input);
        let path = directory().join(format!("{name}.out.yaml"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &output).unwrap();
        }
        let expect = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            output,
            expect,
            "{}: UPDATE_GOLDEN=1 rewrites it",
            path.display()
        );
    }
}

#[test]
fn twice_is_once_and_back_is_what_was() {
    for (name, input) in manifests() {
        let once = injected(&name, &input);
        assert_eq!(injected(&name, &once), once, "{name}");
        let back = weft(&["uninject"], &once);
        assert_eq!(back.status.code(), Some(0), "{name}: {}", stderr(&back));
        let back = stdout(&back);
        assert!(
            !back.contains("weft-proxy") || input.contains("weft-proxy"),
            "{name}: {back}"
        );
        assert_eq!(values(back), values(&input), "{name}");
        assert_eq!(injected(&name, back), once, "{name}");
        let untouched = weft(&["uninject"], &input);
        assert_eq!(stdout(&untouched), input, "{name}");
    }
}

/// Every environment that an output gives a sidecar.
fn environments(value: &Value, found: &mut Vec<BTreeMap<String, String>>) {
    let is_sidecar = value["name"] == "weft-proxy" && value["command"][1] == "run";
    if is_sidecar {
        let env = value["env"].as_array().unwrap().iter();
        found.push(env.filter_map(variable).collect());
    }
    if value["command"][0] == "run" {
        let env = value["environment"].as_object().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        found.push(
            env.map(|(name, value)| (setting(name), text(value)))
                .collect(),
        );
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| environments(item, found)),
        Value::Object(entries) => entries
            .values()
            .for_each(|value| environments(value, found)),
        _ => {}
    }
}

/// A setting as Kubernetes would fill it in.
fn variable(entry: &Value) -> Option<(String, String)> {
    let name = entry["name"].as_str()?;
    if !name.starts_with("WEFT_PROXY_") {
        return None;
    }
    let value = match entry["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
        Some("status.podIPs") => "10.0.0.7,fd00::7".to_owned(),
        Some("status.podIP") => "10.0.0.7".to_owned(),
        Some(other) => panic!("{other}"),
        None => entry["value"]
            .as_str()?
            .replace("$(POD_NAMESPACE)/$(POD_NAME)", "shop/web-1"),
    };
    Some((setting(name), value))
}

fn setting(name: &str) -> String {
    name.strip_prefix("WEFT_PROXY_").unwrap().to_owned()
}

#[test]
fn the_sidecar_understands_what_it_is_told() {
    for (name, input) in inputs() {
        let mut found = Vec::new();
        for document in values(&injected(&name, &input)) {
            environments(&document, &mut found);
        }
        assert!(!found.is_empty(), "{name}");
        for settings in found {
            let bootstrap = Bootstrap::parse(&settings, None);
            let bootstrap = bootstrap.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(
                bootstrap.registration.is_some(),
                name != "compose",
                "{name}"
            );
        }
    }
}

/// What the documents of a text mean.
fn values(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

#[test]
fn another_version_is_replaced() {
    let (_, input) = manifests().find(|(name, _)| name == "probes").unwrap();
    let new = injected("probes", &input);
    let old = weft(&["inject", "--proxy-image", "weft-proxy:0.0.1"], &input);
    let version = env!("CARGO_PKG_VERSION");
    let old = stdout(&old).replace(&format!("version: \"{version}\""), "version: \"0.0.1\"");
    assert_ne!(old, new);
    assert_eq!(injected("probes", &old), new);
}

/// A Deployment whose pod has these lines in its spec, and these annotations.
fn deployment(annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  template:\n    metadata: {{labels: {{app: web}}, annotations: {{{annotations}}}}}\n    spec: {{{spec}}}\n"
    )
}

const CONTAINER: &str = "containers: [{name: web, image: web}]";

#[test]
fn what_cannot_be_injected_is_left_out_with_its_reason() {
    let pod = |spec: &str| deployment("", spec);
    let with = |rest: &str| pod(&format!("{CONTAINER}, {rest}"));
    let annotated = |annotations: &str| deployment(annotations, CONTAINER);
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: baseline}}\n---\n";
    let job = annotated("weft.dev/classic-sidecar: 'true'")
        .replace("apps/v1", "batch/v1")
        .replace("Deployment", "Job");
    for (document, expect) in [
        (
            "a: 1\n".to_owned(),
            "stdin:1: no Kubernetes object: `apiVersion` is missing",
        ),
        ("apiVersion: v1\nkind: [\n".to_owned(), "no YAML"),
        (
            "apiVersion: v1\napiVersion: v1\n".to_owned(),
            "stdin:2: no YAML: the key `apiVersion` is there twice",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n".to_owned(),
            "Deployment x: spec.template is missing",
        ),
        (
            pod("containers: []"),
            "Deployment web: spec.template.spec.containers is missing",
        ),
        (
            pod("containers: [{image: x}]"),
            "spec.template.spec.containers[0].name is missing",
        ),
        (
            with("shareProcessNamespace: true"),
            "spec.template.spec.shareProcessNamespace: the application could read",
        ),
        (
            with("securityContext: {runAsUser: 14020}"),
            "spec.template.spec.securityContext.runAsUser: 14020 is the sidecar's",
        ),
        (
            pod("containers: [{name: a, securityContext: {runAsGroup: 14020}}]"),
            "containers[0].securityContext.runAsGroup",
        ),
        (
            pod("containers: [{name: a, ports: [{containerPort: 14006}]}]"),
            "containers[0].ports: 14006 is a port of the sidecar",
        ),
        (
            pod("containers: [{name: weft-proxy}]"),
            "the name `weft-proxy` is taken",
        ),
        (
            pod("containers: [{name: a}, {name: istio-proxy}]"),
            "containers[1]: `istio-proxy` is the sidecar of Istio",
        ),
        (
            pod("containers: [{name: a}], initContainers: [{name: linkerd-proxy}]"),
            "initContainers[0]: `linkerd-proxy` is the sidecar of Linkerd",
        ),
        (
            with("volumes: [{name: weft-state}]"),
            "the name of volume `weft-state` is taken",
        ),
        (
            annotated("weft.dev/skip-inbound-port: '1'"),
            "spec.template.metadata.annotations[weft.dev/skip-inbound-port]: is no annotation of Weft\n  help: did you mean `weft.dev/skip-inbound-ports`?",
        ),
        (
            deployment(
                "weft.dev/capture: 'off'",
                "containers: [{name: a, ports: [{containerPort: 1}, {containerPort: 2}]}]",
            ),
            "without capture a pod can have one port, not 2",
        ),
        (
            annotated("weft.dev/injected: x"),
            "annotations[weft.dev/injected] is damaged",
        ),
        (
            annotated("weft.dev/shutdown-grace: '31'"),
            "31 is more than spec.terminationGracePeriodSeconds, 30",
        ),
        (job, "a Job with a classic sidecar never completes"),
        (
            format!(
                "{namespace}{}",
                annotated("").replace("{name: web}", "{name: web, namespace: shop}")
            ),
            "Deployment shop/web: its namespace enforces the pod security level `baseline`",
        ),
        (
            annotated("").replace(
                "{name: web}",
                "{name: web, annotations: {weft.dev/cpu: 10m}}",
            ),
            "metadata.annotations[weft.dev/cpu] has no effect here\n  help: move it to spec.template.metadata.annotations",
        ),
    ] {
        let good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\n";
        let output = weft(&["inject"], &format!("{document}---\n{good}"));
        let words = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{document}{words}");
        assert!(words.contains(expect), "{expect}\n{words}");
        assert!(words.contains("1 document is left out"), "{words}");
        let rest = stdout(&output);
        let rest = rest
            .strip_prefix(namespace.trim_end_matches("---\n"))
            .unwrap_or(rest);
        assert_eq!(rest, format!("---\n{good}"), "{document}");
    }
}

#[test]
fn pods_that_cannot_have_a_sidecar_pass_with_a_warning() {
    let host = deployment("", &format!("{CONTAINER}, hostNetwork: true"));
    let system =
        deployment("", CONTAINER).replace("{name: web}", "{name: x, namespace: kube-system}");
    for (document, expect) in [(host, "hostNetwork"), (system, "without the mesh")] {
        let output = weft(&["inject"], &document);
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(0), document.as_str())
        );
        assert!(stderr(&output).contains(expect), "{}", stderr(&output));
    }
}

#[test]
fn documents_that_make_no_pods_pass_byte_for_byte() {
    let text = "# nothing\n---\n---\napiVersion: v1\nkind:   Service # odd   spacing\nmetadata: { name:  x }\n...\n---\r\napiVersion: v1\r\nkind: Secret\r\ndata: {a: !!binary aGk=}\r\n--- # more\napiVersion: argoproj.io/v1\nkind: Deployment\nspec: {template: {}}\n";
    let output = weft(&["inject"], text);
    assert_eq!(
        (output.status.code(), stdout(&output)),
        (Some(0), text),
        "{}",
        stderr(&output)
    );
}

#[test]
fn files_are_joined() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let a = write("a.yaml", "apiVersion: v1\nkind: A");
    let b = write("b.yaml", "apiVersion: v1\nkind: B\n");
    let output = weft(&["inject", &a, "-", &b], "---\napiVersion: v1\nkind: I\n");
    let expect =
        "apiVersion: v1\nkind: A\n---\napiVersion: v1\nkind: I\n---\napiVersion: v1\nkind: B\n";
    assert_eq!(stdout(&output), expect);
    let missing = weft(&["inject", "/no/such/file"], "");
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        stderr(&missing).contains("/no/such/file"),
        "{}",
        stderr(&missing)
    );
}

#[test]
fn a_compose_file_is_told_from_a_manifest() {
    let compose = "services:\n  web: { image: nginx }\n";
    let both = format!("{compose}---\n{}", deployment("", ""));
    for (command, input, help) in [
        (
            "uninject",
            compose,
            "it has not been changed: leave the override out",
        ),
        (
            "inject",
            &both,
            "inject it alone: its output is an override",
        ),
    ] {
        let output = weft(&[command], input);
        assert_eq!(output.status.code(), Some(1), "{command}");
        let expect =
            format!("error: stdin:1: a file of docker compose, not a manifest\n  help: {help}\n");
        assert!(stderr(&output).contains(&expect), "{}", stderr(&output));
    }
}

#[test]
fn options_reach_the_pod() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {serviceAccountName: w, containers: [{name: x}]}\n";
    let args = [
        "inject",
        "--control=c:1",
        "--join-secret=join-{serviceAccount}/k",
        "--proxy-image=i:2",
    ];
    let output = weft(&args, pod);
    let text = stdout(&output);
    for expect in ["value: c:1", "secretName: join-w", "key: k", "image: i:2"] {
        assert!(text.contains(expect), "{expect}: {text}");
    }
    for wrong in [
        "--control=c",
        "--join-secret=a b",
        "--proxy-image=",
        "--subnet=10.0.0.1/24",
    ] {
        let output = weft(&["inject", wrong], pod);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
    let json = weft(&["inject", "-o", "json"], pod);
    assert_eq!(json.status.code(), Some(2));
}

/// Every output against the schemas of Kubernetes and of compose, where Python has them.
#[test]
fn outputs_follow_the_schemas() {
    let python = std::env::var("WEFT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(&python)
        .arg(directory().join("validate.py"))
        .output();
    let Ok(output) = output else {
        println!("SKIPPED: {python} cannot be started; set WEFT_PYTHON");
        return;
    };
    println!("{}", stdout(&output));
    let skipped = output.status.code() == Some(77);
    assert!(
        skipped || output.status.success(),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
}
