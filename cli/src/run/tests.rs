//! The command line of `weft run`, and its documents.

use super::*;
use crate::registered::WithService;
use clap::Parser;
use std::fs;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(line: &str) -> Args {
    Line::try_parse_from(line.split(' ')).unwrap().args
}

#[test]
fn documents_describe_the_workload() {
    let args = args(
        "run --name web -n shop --port 8080 --protocol grpc --to pay.bank=9000 --to log --service-account w -- ./web -x",
    );
    assert_eq!(args.command, ["./web", "-x"]);
    let documents = args.documents(loopback(0).ip(), 1, 2);
    assert_eq!(documents.file(), "web.shop.yaml");
    let expect = "# Written by `weft run`, which removes it when it ends: process 7
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  selector: { app: web }
  ports:
  - { name: main, port: 8080, targetPort: main, appProtocol: \"grpc\" }
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata:
  name: web
  namespace: shop
  labels: { app: web }
spec:
  serviceAccount: w
  address: \"127.0.0.1\"
  outbound: { port: 1 }
  ports:
  - { name: main, port: 8080, listen: 2, app: \"127.0.0.1:8080\" }
  upstreams:
  - { service: pay.bank, localPort: 9000 }
";
    assert_eq!(documents.file_of(7, WithService::Yes), expect);
}

#[test]
fn the_control_plane_accepts_the_documents() {
    for options in [
        "",
        " --protocol http",
        " --protocol http2",
        " --protocol grpc",
        " --protocol tcp",
    ] {
        let args = args(&format!("run --name web --port 8080{options} -- ./web"));
        let config = tempfile::tempdir().unwrap();
        let documents = args.documents(loopback(0).ip(), 1, 2);
        let _registered = Registered::write(&documents, config.path()).unwrap();
        let load = weft_control::source::FileSource::new(config.path()).load();
        let complaints: Vec<_> = load.diagnostics.iter().map(ToString::to_string).collect();
        assert_eq!(complaints, Vec::<String>::new(), "{options}");
        assert_eq!(
            load.mesh
                .workload("default", "web")
                .unwrap()
                .service_account,
            "web"
        );
    }
}

#[test]
fn a_unit_needs_no_command() {
    let line = "run --name web --port 8080 --print-unit --address fd00::1 --to pay=9000";
    let args = args(line);
    assert_eq!(args.print_unit, Some(Part::All));
    let text = print_unit(&args, Part::Mesh).unwrap();
    let expect = "  address: \"fd00::1\"\n  outbound: { port: 14001 }\n  ports:\n  - { name: main, port: 8080, listen: 14006, app: \"127.0.0.1:8080\" }\n  upstreams:\n  - { service: pay, localPort: 9000 }\n";
    assert!(text.ends_with(expect), "{text}");
    let config = tempfile::tempdir().unwrap();
    fs::write(config.path().join("web.yaml"), text.replace("pay", "web")).unwrap();
    let load = weft_control::source::FileSource::new(config.path()).load();
    assert!(load.diagnostics.is_empty(), "{:?}", load.diagnostics);
}

#[test]
fn defaults() {
    let args = args("run --name web --port 8080 -- ./web");
    let documents = args.documents(loopback(0).ip(), 1, 2);
    assert_eq!(
        (documents.file().as_str(), args.account()),
        ("web.yaml", "web")
    );
    let text = documents.text();
    assert!(
        !text.contains("appProtocol") && !text.contains("upstreams"),
        "{text}"
    );
}

#[test]
fn arguments_are_checked() {
    for line in [
        "run --name Web --port 1 -- x",
        "run --name -web --port 1 -- x",
        "run --name web --port 0 -- x",
        "run --name web --port 1",
        "run --name web -- x",
        "run --name web --port 1 --to a=b -- x",
        "run --name web --port 1 --to a=0 -- x",
        "run --name web --port 1 --to a=65536 -- x",
        "run --name web --port 1 --to a.b.c -- x",
        "run --name web --port 1 --to = -- x",
        "run --name web --port 1 --print-unit -- x",
        "run --name web --port 1 --print-unit=timer",
        "run --name web --port 1 --control h:1 -- x",
        "run --name web --port 1 --print-unit --control h",
        "run --name web --port 1 --address 10.0.0.1 -- x",
        "run --name web --port 1 --print-unit --transparent",
        "run --name web --port 1 --print-unit --user web",
        "run --name web --port 1 --print-unit --control h:1 --token-file t",
        "run --name web --port 1 --transparent --user 7 --state s -- x",
        "run --name web --port 1 --transparent --user 7 --token-file t -- x",
    ] {
        assert!(Line::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}

#[test]
fn captured_workloads_have_documents_without_ports_of_the_sidecar() {
    let line = "run --name web --port 8080 --transparent --to pay=9000";
    for (options, address, capture) in [
        (
            "--user 7 --address 10.0.0.1 --address fd00::1",
            "  address: \"10.0.0.1\"\n  additionalAddresses: [\"fd00::1\"]\n",
            "{ inboundPorts: declared }",
        ),
        (
            "--all-traffic --address fd00::1",
            "  address: \"fd00::1\"\n",
            "{}",
        ),
        (
            "--all-traffic --exclude-inbound-ports 22,9100 --address 10.0.0.1",
            "  address: \"10.0.0.1\"\n",
            "{ excludeInboundPorts: [22, 9100] }",
        ),
    ] {
        let args = args(&format!("{line} {options} -- ./web"));
        let decided = args.transparent.decide(args.port, &[9000], &args.address);
        let documents = args.captured_documents(&decided.unwrap());
        let expect = format!(
            "{address}  capture: {capture}\n  ports:\n  - {{ name: main, port: 8080 }}\n  \
             upstreams:\n  - {{ service: pay, localPort: 9000 }}\n"
        );
        assert!(
            documents.workload.ends_with(&expect),
            "{}",
            documents.workload
        );
        let config = tempfile::tempdir().unwrap();
        let text = documents.text().replace("pay", "web");
        fs::write(config.path().join("web.yaml"), text).unwrap();
        let load = weft_control::source::FileSource::new(config.path()).load();
        assert!(load.diagnostics.is_empty(), "{:?}", load.diagnostics);
    }
}

#[test]
fn registration_has_no_place_for_some_options() {
    let line = "run --name web --port 80 --transparent --user 7 --control mesh:14012";
    for (option, part) in [("--to pay=9000", "--to"), ("--protocol tcp", "--protocol")] {
        let refused = args(&format!("{line} {option} -- x"))
            .check_control()
            .unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(refused.message.starts_with(part), "{refused}");
    }
    let args = args(&format!("{line} --to pay --token-file t --state /s -- x"));
    assert!(args.check_control().is_ok());
}

#[test]
fn other_ports_are_tried_unless_asked_for() {
    let args = args("run --name web --port 8080 --to a=7000 --to b -- ./web");
    for (message, expect) in [
        ("error=127.0.0.1:14001 is in use by another process", true),
        ("error=127.0.0.1:7000 is in use by another process", false),
        ("the sidecar has ended", false),
    ] {
        let failure = Failure::new(Exit::Problems, message);
        assert_eq!(args.may_choose_other_ports(&failure), expect, "{message}");
    }
}

#[test]
fn exit_codes_are_the_applications() {
    for (raw, expect) in [(0, 0), (7 << 8, 7), (255 << 8, 255), (15, 143), (9, 137)] {
        assert_eq!(exit_code(ExitStatus::from_raw(raw)), expect, "{raw}");
    }
}
