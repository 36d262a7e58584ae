//! Installing, replacing, removing; and what must not be touched.

use std::{collections::BTreeMap, process::Command};

use crate::space::{APP, PEER_V4, Space, at, skip, talk, text, wire};

const BACKENDS: [&str; 3] = ["nft", "iptables", "iptables-legacy"];

/// Rules of somebody else, by every means.
fn foreign_rules(pod: &Space) {
    pod.sh(
        "nft 'add table inet mine; add set inet mine hosts { type ipv4_addr; }; \
         add element inet mine hosts { 10.9.9.9 }; \
         add chain inet mine out { type nat hook output priority -90; }; \
         add rule inet mine out ip daddr @hosts counter dnat ip to 127.0.0.1'; \
         for i in iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy; do \
         $i -t nat -N USERS; $i -t nat -A OUTPUT -p tcp --dport 4444 -j USERS; \
         $i -t nat -A USERS -p tcp -j REDIRECT --to-ports 4445; \
         $i -t nat -A PREROUTING -p tcp --dport 4446 -j RETURN; \
         $i -t mangle -A OUTPUT -p udp --dport 4447 -j MARK --set-mark 9; \
         $i -t mangle -A PREROUTING -p udp --dport 4448 -j DROP; \
         $i -t raw -A OUTPUT -p udp --dport 4449 -j CT --notrack; done; \
         nft 'add chain inet mine raw { type filter hook output priority -300; }; \
         add rule inet mine raw udp dport 4450 notrack'; \
         ip rule add fwmark 9 lookup 99; ip route add default via 10.111.0.2 table 99",
    );
}

#[test]
fn rules_of_others_stay_byte_for_byte() {
    if skip("rules_of_others_stay_byte_for_byte") {
        return;
    }
    for backend in BACKENDS {
        for mode in ["redirect", "tproxy"] {
            let (pod, _peer) = wire();
            foreign_rules(&pod);
            let before = pod.rules();
            pod.install(&format!("--backend {backend} --mode {mode}"));
            let during = pod.rules();
            assert_ne!(during, before, "{backend} {mode}");
            for line in before.lines() {
                assert!(during.contains(line), "{backend} {mode}: {line}");
            }
            pod.install("--remove");
            assert_eq!(pod.rules(), before, "{backend} {mode}");
            // Once more: nothing is there, and that is fine.
            pod.install("--remove");
            assert_eq!(pod.rules(), before, "{backend} {mode}");
        }
    }
}

#[test]
fn twice_is_the_same_as_once_and_connections_survive() {
    if skip("twice_is_the_same_as_once_and_connections_survive") {
        return;
    }
    for backend in BACKENDS {
        for mode in ["redirect", "tproxy"] {
            let (pod, _peer) = wire();
            let args = format!("--backend {backend} --mode {mode} --exclude-outbound-ports 22,23");
            pod.install(&args);
            let once = pod.rules();
            let sidecar = pod.listen("127.0.0.1:14001");
            let mut app = pod.dial(APP, &at(PEER_V4, 80)).unwrap();
            let mut accepted = sidecar.accept();
            pod.install(&args);
            assert_eq!(pod.rules(), once, "{backend} {mode}");
            talk(&mut app, &mut accepted.stream);
        }
    }
}

/// The lines of each chain: the programs of iptables list their chains in the order in which
/// they were made.
pub(crate) fn by_chain(rules: &str) -> BTreeMap<String, Vec<String>> {
    let (mut table, mut chain) = ("", "");
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in rules.lines().filter(|line| !line.is_empty()) {
        if line.starts_with("table ") {
            (table, chain) = (line, "");
        } else if line.starts_with("\tchain ") {
            chain = line;
        } else if line == "}" {
            (table, chain) = ("", "");
            continue;
        }
        found
            .entry(format!("{table}{chain}"))
            .or_default()
            .push(line.to_owned());
    }
    found
}

#[test]
fn an_earlier_installation_is_replaced_whatever_made_it() {
    if skip("an_earlier_installation_is_replaced_whatever_made_it") {
        return;
    }
    for (wanted, mode) in BACKENDS.into_iter().zip(["tproxy", "redirect", "tproxy"]) {
        let (pod, _peer) = wire();
        let args = format!("--backend {wanted} --mode {mode}");
        // The tables of the programs of iptables stay when they are empty.
        for backend in BACKENDS {
            pod.install(&format!("--backend {backend} --mode tproxy"));
            pod.install(&format!("--backend {backend}"));
        }
        pod.install("--remove");
        pod.install(&args);
        let clean = by_chain(&pod.rules());
        for earlier in BACKENDS {
            pod.install("--remove");
            for other in ["tproxy --exclude-inbound-ports 7", "redirect --only-uids 7"] {
                pod.install(&format!("--backend {earlier} --mode {other}"));
                pod.install(&args);
                let found = by_chain(&pod.rules());
                assert_eq!(found, clean, "{earlier} {other}, then {args}");
            }
        }
    }
    let (pod, _peer) = wire();
    pod.install("");
    let clean = pod.rules();
    pod.install("--remove");
    // What some other version might have left.
    pod.sh(
        "nft 'add table inet weft; add set inet weft sidecar_ports { type ipv4_addr; }; \
         add chain inet weft inbound; add chain inet weft strange { type nat hook output priority -190; }; \
         add rule inet weft strange goto inbound'",
    );
    pod.install("");
    assert_eq!(pod.rules(), clean);
}

#[test]
fn what_is_printed_is_what_is_installed() {
    if skip("what_is_printed_is_what_is_installed") {
        return;
    }
    for args in [
        "",
        "--mode tproxy --no-dns",
        "--no-ipv6 --inbound-ports 80,8000-8100,65535",
        "--exclude-uids 7,70000 --exclude-inbound-ports 22,30-40 --exclude-outbound-ports 1-9,65000-65535 \
         --exclude-outbound-cidrs 0.0.0.0/1,128.0.0.0/1,10.0.0.0/8,fd00::/8,ff00::/8,2001:db8::7",
        "--only-uids 5 --proxy-uid 6 --proxy-gid 7 --inbound-port 1 --outbound-port 2 --dns-port 3",
    ] {
        let (pod, _peer) = wire();
        let printed = pod.install(&format!("{args} --print"));
        assert!(
            !pod.sh("nft list ruleset").contains("weft"),
            "printing changes nothing"
        );
        pod.install(&format!("{args} --backend nft"));
        let installed = pod.sh("nft list ruleset");
        assert!(
            pod.sh("ip -6 address show dev lo").contains("::6/128") != args.contains("no-ipv6")
        );
        let file = std::env::temp_dir().join(format!("{}.nft", pod.name()));
        std::fs::write(&file, &printed).unwrap();
        pod.sh(&format!(
            "nft delete table inet weft; nft -f {}",
            file.display()
        ));
        assert_eq!(pod.sh("nft list ruleset"), installed, "{args}");
        std::fs::remove_file(&file).unwrap();
    }
    let (pod, _peer) = wire();
    let printed = pod.install("--print --backend iptables");
    assert!(printed.contains("-A WEFT_OUTBOUND "), "{printed}");
}

#[test]
fn another_mesh_is_named_and_left_alone() {
    if skip("another_mesh_is_named_and_left_alone") {
        return;
    }
    for (rules, parts) in [
        (
            "iptables-nft -t nat -N ISTIO_OUTPUT",
            ["Istio", "ip nat ISTIO_OUTPUT"],
        ),
        (
            "iptables-legacy -t nat -N PROXY_INIT_REDIRECT",
            ["Linkerd", "iptables-legacy nat PROXY_INIT_REDIRECT"],
        ),
        (
            "ip6tables-nft -t nat -N CONSUL_PROXY_OUTPUT",
            ["Consul", "ip6 nat CONSUL_PROXY_OUTPUT"],
        ),
        (
            "nft 'add table inet kuma-mesh; add chain inet kuma-mesh outbound'",
            ["Kuma", "inet kuma-mesh outbound"],
        ),
    ] {
        let (pod, _peer) = wire();
        pod.sh(rules);
        let before = pod.rules();
        let output = pod.init("");
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in parts {
            assert!(said.contains(part), "{said}");
        }
        assert!(said.contains("start the pod anew"), "{said}");
        assert_eq!(pod.rules(), before);
    }
}

#[test]
fn a_routing_table_of_somebody_else_is_refused() {
    if skip("a_routing_table_of_somebody_else_is_refused") {
        return;
    }
    let (pod, _peer) = wire();
    pod.sh("ip route add 10.5.0.0/16 via 10.111.0.2 table 133");
    let before = pod.rules();
    let output = pod.init("--mode tproxy");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("133") && said.contains("10.5.0.0/16"),
        "{said}"
    );
    assert_eq!(pod.rules(), before);
    pod.install("--mode redirect");
    pod.install("--remove");
    assert_eq!(pod.rules(), before);
}

#[test]
fn without_net_admin_the_capability_is_named() {
    if skip("without_net_admin_the_capability_is_named") {
        return;
    }
    let (pod, _peer) = wire();
    for (args, code) in [
        ("", 1),
        ("--remove", 1),
        ("--backend iptables", 1),
        ("--print", 0),
    ] {
        let output = pod.run(|| {
            Command::new("setpriv")
                .args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"])
                .arg(env!("CARGO_BIN_EXE_weft-proxy"))
                .arg("init")
                .args(args.split_whitespace())
                .output()
                .unwrap()
        });
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{args}: {said}");
        assert_eq!(said.contains("NET_ADMIN"), code == 1, "{args}: {said}");
    }
}

#[test]
fn without_any_program_iptables_says_what_to_install() {
    if skip("without_any_program_iptables_says_what_to_install") {
        return;
    }
    let (pod, _peer) = wire();
    for (args, works) in [
        ("--backend nft", true),
        ("", true),
        ("--backend iptables", false),
        ("--backend iptables-legacy", false),
    ] {
        let output = pod.run(|| {
            Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
                .arg("init")
                .args(args.split_whitespace())
                .env("PATH", "/nowhere")
                .output()
                .unwrap()
        });
        let said = text(&output);
        assert_eq!(output.status.success(), works, "{args}: {said}");
        assert_eq!(
            said.contains("install the package iptables"),
            !works,
            "{said}"
        );
    }
}

#[test]
fn ipv6_that_is_switched_off_is_left_out() {
    if skip("ipv6_that_is_switched_off_is_left_out") {
        return;
    }
    for backend in BACKENDS {
        let (pod, _peer) = wire();
        pod.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        let said = pod.install(&format!("--backend {backend}"));
        assert!(said.contains("info: IPv6 is switched off here"), "{said}");
        assert!(said.contains("in force: IPv4,"), "{said}");
        let sidecar = pod.listen("127.0.0.1:14001");
        let app = pod.dial(APP, &at(PEER_V4, 80)).unwrap();
        assert_eq!(sidecar.accept().peer, app.local_addr().unwrap());
        pod.install("--remove");
    }
    let (pod, _peer) = wire();
    pod.sh("sysctl -qw net.ipv6.conf.lo.disable_ipv6=1");
    let output = pod.init("");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("net.ipv6.conf.lo.disable_ipv6=0"), "{said}");
    pod.install("--no-ipv6");
}

#[test]
fn the_longest_lists_fit() {
    if skip("the_longest_lists_fit") {
        return;
    }
    let list = |form: &dyn Fn(u32) -> String| (0..256).map(form).collect::<Vec<_>>().join(",");
    let ports = list(&|n| (20_000 + 2 * n).to_string());
    let cidrs = list(&|n| format!("fd00:{n:x}::/64"));
    let users = list(&|n| (2_000 + n).to_string());
    for backend in BACKENDS {
        let (pod, _peer) = wire();
        pod.install(&format!(
            "--backend {backend} --inbound-ports {ports} --exclude-inbound-ports {ports} \
             --exclude-outbound-ports {ports} --exclude-outbound-cidrs {cidrs} --exclude-uids {users}"
        ));
    }
}

#[test]
fn mistakes_on_the_command_line_are_exit_code_2() {
    if skip("mistakes_on_the_command_line_are_exit_code_2") {
        return;
    }
    let pod = Space::new();
    for args in [
        "--frob",
        "--inbound-ports x",
        "--only-uids 14020",
        "--dns-port 14001",
    ] {
        let output = pod.init(args);
        assert_eq!(output.status.code(), Some(2), "{args}: {}", text(&output));
    }
    assert!(!pod.rules().contains("weft"));
    assert!(pod.install("--help").contains("--exclude-outbound-cidrs"));
}
