//! What `init` and `init --check` prove, and what they say when they cannot.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Output},
    time::{Duration, Instant},
};

use crate::space::{Space, skip, text, wire};

#[test]
fn a_good_installation_is_proved_for_both_families() {
    if skip("a_good_installation_is_proved_for_both_families") {
        return;
    }
    for backend in ["nft", "iptables", "iptables-legacy"] {
        let (pod, _peer) = wire();
        let said = pod.install(&format!("--backend {backend}"));
        for part in [
            "proved: tcp 192.0.2.1:80 arrives at 127.0.0.1:14001",
            "proved: udp 192.0.2.1:53 arrives at 127.0.0.1:14053",
            "proved: tcp 192.0.2.1:53 arrives at 127.0.0.1:14053",
            "proved: tcp [2001:db8::1]:80 arrives at [::1]:14001",
            "proved: udp [2001:db8::1]:53 arrives at [::1]:14053",
        ] {
            assert!(said.contains(part), "{backend}: {said}");
        }
        assert!(said.contains(&format!("by {backend}\n")), "{said}");
        assert!(!said.contains("warning"), "{said}");
    }
}

/// Somebody's rules that switch off what capture needs.
fn spoil(pod: &Space) {
    pod.sh(
        "nft 'add table inet raw; add chain inet raw out { type filter hook output priority -300; }; \
         add rule inet raw out notrack'",
    );
}

#[test]
fn a_failure_is_quick_says_what_was_seen_and_leaves_nothing() {
    if skip("a_failure_is_quick_says_what_was_seen_and_leaves_nothing") {
        return;
    }
    let (pod, peer) = wire();
    spoil(&pod);
    // The worst case: nobody answers at all.
    peer.sh("nft 'add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in meta l4proto tcp drop'");
    for args in ["", "--mode tproxy", "--backend iptables"] {
        // The program may leave its empty base chains.
        pod.init(args);
        let before = pod.rules();
        let started = Instant::now();
        let output = pod.init(args);
        assert!(started.elapsed() < Duration::from_secs(2), "{args}");
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in [
            "192.0.2.1:80",
            "127.0.0.1:14001",
            "removed again",
            "conntrack",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(pod.rules(), before, "{args}");
    }
}

fn check_as(space: &Space, uid: u32, gid: u32, args: &str) -> Output {
    space.run(|| {
        Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
            .args(["init", "--check"])
            .args(args.split_whitespace())
            .uid(uid)
            .gid(gid)
            .output()
            .unwrap()
    })
}

#[test]
fn a_check_needs_no_privilege() {
    if skip("a_check_needs_no_privilege") {
        return;
    }
    let (pod, peer) = wire();
    let _there = peer.listen("0.0.0.0:80");
    let output = check_as(&pod, 1000, 1000, "");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("somebody else answered"), "{said}");
    assert!(said.contains("was `weft-proxy init` run"), "{said}");
    pod.install("");
    let before = pod.rules();
    let output = check_as(&pod, 1000, 1000, "");
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("proved: tcp"), "{said}");
    assert_eq!(pod.rules(), before);
}

#[test]
fn what_cannot_be_tried_is_said() {
    if skip("what_cannot_be_tried_is_said") {
        return;
    }
    let (pod, _peer) = wire();
    pod.install("");
    for (uid, gid, args, part) in [
        (14_020, 0, "", "sidecar's user 14020"),
        (0, 14_020, "", "sidecar's group 14020"),
        (7, 7, "--exclude-uids 7", "user 7, who is excluded"),
        (7, 7, "--only-uids 8", "user 7, who is not in --only-uids"),
        (
            7,
            7,
            "--exclude-outbound-cidrs 0.0.0.0/0,::/0",
            "no route leads to an address that is captured",
        ),
    ] {
        let output = check_as(&pod, uid, gid, args);
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        assert!(said.contains(part), "{args}: {said}");
        assert!(!said.contains("proved"), "{said}");
    }
    let lonely = Space::new();
    let said = lonely.install("");
    assert!(
        said.contains("IPv4: no route") && said.contains("IPv6: no route"),
        "{said}"
    );
}

#[test]
fn a_sidecar_that_runs_already_is_no_failure() {
    if skip("a_sidecar_that_runs_already_is_no_failure") {
        return;
    }
    let (pod, _peer) = wire();
    let listener = pod.listen("127.0.0.1:14001");
    let _dns = pod.udp((0, 0), "127.0.0.1:14053");
    let said = pod.install("");
    for part in [
        "tcp 127.0.0.1:14001 is in use",
        "udp 127.0.0.1:14053 is in use",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert!(said.contains("proved: tcp [2001:db8::1]:80"), "{said}");
    assert!(listener.is_idle());
}

#[test]
fn without_a_default_route_a_neighbour_will_do() {
    if skip("without_a_default_route_a_neighbour_will_do") {
        return;
    }
    let (pod, _peer) = wire();
    pod.sh("ip route del default; ip -6 route del default");
    let said = pod.install("");
    assert!(said.contains("proved: tcp 10.111.0.2:80"), "{said}");
    assert!(said.contains("proved: tcp [fd11::2]:80"), "{said}");
}

#[test]
fn a_loopback_interface_that_is_down_is_named() {
    if skip("a_loopback_interface_that_is_down_is_named") {
        return;
    }
    let (pod, _peer) = wire();
    pod.sh("ip link set lo down");
    let output = pod.init("");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ip link set lo up"), "{said}");
}
