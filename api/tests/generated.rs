//! Regenerates `src/gen` from `proto/` without protoc and fails on a difference.
//!
//! `UPDATE_GENERATED=1 cargo test -p weft-api --test generated` writes the files.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost_reflect::prost::Message;
use prost_reflect::prost_types::{FileDescriptorProto, FileDescriptorSet};

/// The files whose messages `weft_api::json` can print, with all that they import.
const JSON_ROOTS: &[&str] = &[
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/transport_sockets/tls/v3/secret.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/udp/dns_filter/v3/dns_filter.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "weft/extensions/v1/load_balancing.proto",
];

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo unpacked `envoy-types`, which ships the proto files it was made from.
fn envoy_protos() -> PathBuf {
    let cargo = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        let out = command.args(args).current_dir(crate_dir()).output();
        String::from_utf8(out.unwrap().stdout).unwrap()
    };
    // Dependencies of other platforms are not downloaded.
    let version = cargo(&["-vV"]);
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("cargo says for which host it is");
    let text = cargo(&[
        "metadata",
        "--format-version=1",
        "--offline",
        "--filter-platform",
        host,
    ]);
    let start = text
        .match_indices("envoy-types-0.7")
        .find_map(|(at, _)| {
            let rest = &text[at..];
            let end = rest.find("/Cargo.toml\"")?;
            (end < 40).then(|| {
                let from = text[..at].rfind('"').unwrap() + 1;
                text[from..at + end].to_owned()
            })
        })
        .expect("envoy-types is a dependency of weft-api");
    Path::new(&start).join("proto")
}

/// Envoy's protos are spread over several include roots; protox gets one tree.
fn include_tree(into: &Path) {
    let protos = envoy_protos();
    for root in [
        "data-plane-api",
        "xds",
        "googleapis",
        "protoc-gen-validate",
        "opentelemetry-proto",
        "cel-spec/proto",
        "client_model",
    ] {
        let from = protos.join(root);
        if from.is_dir() {
            copy_protos(&from, &from, into);
        }
    }
    copy_protos(&crate_dir().join("proto"), &crate_dir().join("proto"), into);
}

fn copy_protos(base: &Path, dir: &Path, into: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            copy_protos(base, &path, into);
        } else if path.extension().is_some_and(|e| e == "proto") {
            let target = into.join(path.strip_prefix(base).unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(&path, target).unwrap();
        }
    }
}

/// One pool a root: in a shared pool protox resolves some relative names to siblings
/// that the file does not import.
fn descriptor_set(include: &Path, roots: &[&str]) -> FileDescriptorSet {
    let mut files: Vec<FileDescriptorProto> = Vec::new();
    for root in roots {
        for mut file in protox::compile([root], [include]).unwrap().file {
            file.source_code_info = None;
            if !files.iter().any(|have| have.name == file.name) {
                files.push(file);
            }
        }
    }
    FileDescriptorSet { file: files }
}

fn check_or_update(path: &Path, fresh: &[u8]) {
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(path, fresh).unwrap();
        return;
    }
    let have = fs::read(path).unwrap_or_default();
    assert!(
        have == fresh,
        "{} is not what proto/ generates; run UPDATE_GENERATED=1 cargo test -p weft-api --test generated",
        path.display()
    );
}

#[test]
fn checked_in_code_is_what_the_protos_generate() {
    let include = tempfile::tempdir().unwrap();
    include_tree(include.path());
    let ours = [
        "istio/v1/auth/ca.proto",
        "weft/extensions/v1/load_balancing.proto",
    ];
    let out = tempfile::tempdir().unwrap();
    let fds = protox::compile(ours, [include.path()]).unwrap();
    let mut prost = tonic_prost_build::Config::new();
    prost.enable_type_names();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .compile_fds_with_config(fds, prost)
        .unwrap();
    for name in ["istio.v1.auth.rs", "weft.extensions.v1.rs"] {
        let fresh = fs::read(out.path().join(name)).unwrap();
        check_or_update(&crate_dir().join("src/gen").join(name), &fresh);
    }
    let set = descriptor_set(include.path(), JSON_ROOTS).encode_to_vec();
    check_or_update(&crate_dir().join("src/gen/xds.fds"), &set);
}
