//! What nobody translates is left alone by conntrack: the sidecar's calls to its application.

use std::{fs, io::Read as _, net::TcpStream, os::unix::fs::PermissionsExt as _, process::Command};

use crate::{
    install::by_chain,
    space::{
        APP, BRIEFLY, FAMILIES, Listener, SIDECAR, Space, any, at, loopback, sh, skip, talk, text,
        wire,
    },
};

const BACKENDS: [&str; 3] = ["nft", "iptables", "iptables-legacy"];

/// Where the sidecar calls its application from.
fn source(like: &str) -> &'static str {
    if like.contains(':') {
        "::6"
    } else {
        "127.0.0.6"
    }
}

/// A firewall that drops and counts the packets of these calls that conntrack knows, wherever
/// they pass; and, as many do, those of which it can make no sense.
fn drop_tracked(pod: &Space) {
    let mut rules = String::from("add table inet strict; add counter inet strict tracked; ");
    for hook in ["output", "postrouting", "prerouting", "input"] {
        rules += &format!(
            "add chain inet strict {hook} {{ type filter hook {hook} priority 0; }}; \
             add rule inet strict {hook} ct state invalid drop; "
        );
        for end in [
            "ip saddr 127.0.0.6",
            "ip daddr 127.0.0.6",
            "ip6 saddr ::6",
            "ip6 daddr ::6",
        ] {
            rules += &format!(
                "add rule inet strict {hook} {end} ct state != untracked counter name tracked drop; "
            );
        }
    }
    pod.sh(&format!("nft '{rules}'"));
}

/// How many packets that firewall has dropped.
fn tracked(pod: &Space) -> u64 {
    let listed = pod.sh("nft list counter inet strict tracked");
    let words: Vec<&str> = listed.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").unwrap();
    words[at + 1].parse().unwrap()
}

/// Takes away what a version without these rules does not have.
fn as_an_older_version(pod: &Space, backend: &str) {
    let programs = match backend {
        "nft" => {
            pod.sh(
                "nft 'flush chain inet weft application; flush chain inet weft untracked; \
                    delete chain inet weft application; delete chain inet weft untracked; \
                    delete set inet weft tracked_ports'",
            );
            return;
        }
        "iptables" => ["iptables-nft", "ip6tables-nft"],
        _ => ["iptables-legacy", "ip6tables-legacy"],
    };
    for program in programs {
        pod.sh(&format!(
            "{program} -t raw -D OUTPUT -j WEFT_APPLICATION; {program} -t raw -F WEFT_APPLICATION; \
             {program} -t raw -X WEFT_APPLICATION; {program} -t raw -F WEFT_UNTRACKED; \
             {program} -t raw -X WEFT_UNTRACKED"
        ));
    }
}

fn call(pod: &Space, own: &str, app: &Listener) -> (TcpStream, TcpStream) {
    let port = app.0.local_addr().unwrap().port();
    let call = pod.dial_from(SIDECAR, source(own), &at(own, port)).unwrap();
    let accepted = app.accept();
    assert_eq!(accepted.peer.ip().to_string(), source(own));
    (call, accepted.stream)
}

#[test]
fn calls_of_the_application_are_unknown_to_conntrack() {
    if skip("calls_of_the_application_are_unknown_to_conntrack") {
        return;
    }
    for backend in BACKENDS {
        let (pod, _peer) = wire();
        pod.install(&format!("--backend {backend}"));
        pod.sh("sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0");
        drop_tracked(&pod);
        for (own, _) in FAMILIES {
            let app = pod.listen(&at(any(own), 8080));
            // Either side closes first.
            for closes in ["sidecar", "application"] {
                let (mut call, mut accepted) = call(&pod, own, &app);
                talk(&mut call, &mut accepted);
                let (first, mut second) = if closes == "sidecar" {
                    (call, accepted)
                } else {
                    (accepted, call)
                };
                drop(first);
                assert_eq!(second.read(&mut [0; 4]).unwrap(), 0, "{backend}: {closes}");
            }
            drop(app);
            // The kernel itself answers that nobody listens.
            let refused = pod.dial_from(SIDECAR, source(own), &at(own, 8081));
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        assert_eq!(tracked(&pod), 0, "{backend}");
        // That firewall would have seen it.
        as_an_older_version(&pod, backend);
        let to = at("127.0.0.6", 8080).parse().unwrap();
        let call = pod.run_as(SIDECAR, || TcpStream::connect_timeout(&to, BRIEFLY));
        assert!(call.is_err() && tracked(&pod) > 0, "{backend}");
    }
}

#[test]
fn in_mode_tproxy_nothing_is_left_alone() {
    if skip("in_mode_tproxy_nothing_is_left_alone") {
        return;
    }
    for backend in BACKENDS {
        let (pod, _peer) = wire();
        // What mode redirect had is gone.
        pod.install(&format!("--backend {backend}"));
        assert!(pod.rules().to_lowercase().contains("notrack"), "{backend}");
        pod.install(&format!("--backend {backend} --mode tproxy"));
        assert!(!pod.rules().to_lowercase().contains("notrack"), "{backend}");
    }
}

/// An application may use the sidecar's address as any other one.
#[test]
fn the_applications_own_connections_from_and_to_that_address_are_captured() {
    if skip("the_applications_own_connections_from_and_to_that_address_are_captured") {
        return;
    }
    for backend in BACKENDS {
        let (pod, _peer) = wire();
        pod.install(&format!("--backend {backend}"));
        for (own, other) in FAMILIES {
            let sidecar = pod.listen(&at(loopback(own), 14_001));
            let dns = pod.listen(&at(loopback(own), 14_053));
            // The kernel sends nothing else than ::6 from a loopback address to another host.
            let mut calls = vec![
                (source(own), source(own), 53),
                (loopback(own), source(own), 53),
            ];
            if own.contains(':') {
                calls.extend([("::6", other, 80), ("::6", other, 53)]);
            }
            for (from, to, port) in calls {
                let to = at(to, port);
                let mut app = pod.dial_from(APP, from, &to).unwrap();
                let mut accepted = if port == 53 { &dns } else { &sidecar }.accept();
                assert_eq!(accepted.original, to, "{backend}: {from}");
                talk(&mut app, &mut accepted.stream);
            }
            // And it may be a name server itself.
            let server = pod.listen(&at(any(own), 53));
            let (mut call, mut accepted) = call(&pod, own, &server);
            talk(&mut call, &mut accepted);
            assert!(dns.is_idle(), "{backend}");
        }
    }
}

#[test]
fn connections_of_an_older_version_survive_and_so_do_ours_without_rules() {
    if skip("connections_of_an_older_version_survive_and_so_do_ours_without_rules") {
        return;
    }
    for backend in BACKENDS {
        let (pod, _peer) = wire();
        let args = format!("--backend {backend}");
        pod.install(&args);
        let clean = by_chain(&pod.rules());
        pod.sh("sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0");
        for (own, _) in FAMILIES {
            as_an_older_version(&pod, backend);
            let app = pod.listen(&at(any(own), 8080));
            let (mut older, mut older_accepted) = call(&pod, own, &app);
            talk(&mut older, &mut older_accepted);
            pod.install(&args);
            assert_eq!(by_chain(&pod.rules()), clean, "{backend}");
            talk(&mut older, &mut older_accepted);
            let (mut ours, mut ours_accepted) = call(&pod, own, &app);
            let mut others = vec![format!("--mode tproxy {args}")];
            if !own.contains(':') {
                // ::6 itself goes with the rules.
                others.push("--remove".to_owned());
            }
            others.push(args.clone());
            for other in others {
                pod.install(&other);
                talk(&mut older, &mut older_accepted);
                talk(&mut ours, &mut ours_accepted);
            }
        }
    }
}

/// Programs of iptables in whose kernel or container a part is missing.
#[test]
fn without_the_raw_table_everything_is_captured_as_ever() {
    if skip("without_the_raw_table_everything_is_captured_as_ever") {
        return;
    }
    let programs = tempfile::tempdir().unwrap();
    for name in [
        "iptables-nft-restore",
        "ip6tables-nft-restore",
        "iptables-legacy-restore",
        "ip6tables-legacy-restore",
    ] {
        let there = sh(&format!("command -v {name}"));
        let there = there.trim();
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && exec {there} --version\ntext=$(cat)\n\
             case $text in *'-j CT'*) echo no such target >&2; exit 1;; esac\n\
             printf '%s\\n' \"$text\" | {there} \"$@\"\n"
        );
        let file = programs.path().join(name);
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", programs.path().display());
    for backend in ["iptables", "iptables-legacy"] {
        let (pod, peer) = wire();
        let init = |args: &str| {
            let output = pod.run(|| {
                Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
                    .args(["init", "--backend", backend])
                    .args(args.split_whitespace())
                    .env("PATH", &path)
                    .output()
                    .unwrap()
            });
            assert!(output.status.success(), "{backend}: {}", text(&output));
            text(&output)
        };
        let said = init("");
        assert!(
            said.contains("info: calls of the sidecar to its application stay in conntrack")
                && said.contains("no such target"),
            "{said}"
        );
        for (own, _) in FAMILIES {
            let sidecar = pod.listen(&at(any(own), 14_006));
            let app = pod.listen(&at(any(own), 8080));
            let to = at(own, 8080);
            let mut caller = peer.dial(APP, &to).unwrap();
            let mut accepted = sidecar.accept();
            assert_eq!(accepted.original, to, "{backend}");
            talk(&mut caller, &mut accepted.stream);
            let (mut call, mut accepted) = call(&pod, own, &app);
            talk(&mut call, &mut accepted);
        }
        // What is no longer possible does not stay as it was, with other ports.
        pod.install(&format!("--backend {backend}"));
        assert!(pod.rules().contains("WEFT_UNTRACKED"), "{backend}");
        init("--outbound-port 15001");
        assert!(!pod.rules().contains("WEFT_UNTRACKED"), "{backend}");
        pod.install("--remove");
        assert!(!pod.rules().contains("WEFT_"), "{backend}");
    }
}
