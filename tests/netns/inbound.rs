//! Connections from peers, and of the workload to itself.

use std::io::ErrorKind;

use crate::space::{
    APP, FAMILIES, PEER_V4, POD_V4, SIDECAR, Space, any, at, loopback, skip, talk, wire,
};

const BACKENDS: [&str; 3] = ["nft", "iptables", "iptables-legacy"];

#[test]
fn peers_arrive_at_the_sidecar() {
    if skip("peers_arrive_at_the_sidecar") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!(
            "--backend {backend} --exclude-inbound-ports 9990-9999"
        ));
        for (own, _) in FAMILIES {
            let sidecar = pod.listen(&at(any(own), 14_006));
            let app = pod.listen(&at(any(own), 8080));
            let to = at(own, 8080);
            let mut caller = peer.dial(APP, &to).unwrap();
            let mut accepted = sidecar.accept();
            assert_eq!(accepted.original, to, "{backend}");
            assert_eq!(accepted.peer, caller.local_addr().unwrap());
            talk(&mut caller, &mut accepted.stream);
            assert!(app.is_idle(), "{backend}");
            for port in [9999, 14_000, 14_020] {
                let direct = pod.listen(&at(any(own), port));
                let mut caller = peer.dial(APP, &at(own, port)).unwrap();
                talk(&mut caller, &mut direct.accept().stream);
                assert!(sidecar.is_idle(), "{backend}: {port}");
            }
        }
    }
}

#[test]
fn without_a_sidecar_nothing_reaches_the_application() {
    if skip("without_a_sidecar_nothing_reaches_the_application") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!("--backend {backend}"));
        for (own, _) in FAMILIES {
            let app = pod.listen(&at(any(own), 8080));
            let error = peer.dial(APP, &at(own, 8080)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{backend}");
            assert!(app.is_idle(), "{backend}");
        }
    }
}

#[test]
fn only_the_ports_that_are_named() {
    if skip("only_the_ports_that_are_named") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!("--backend {backend} --inbound-ports 80,8000-8100"));
        let sidecar = pod.listen("0.0.0.0:14006");
        for (port, captured) in [(80, true), (8050, true), (81, false), (8101, false)] {
            let app = pod.listen(&at("0.0.0.0", port));
            let mut caller = peer.dial(APP, &at(POD_V4, port)).unwrap();
            let (taken, idle) = if captured {
                (&sidecar, &app)
            } else {
                (&app, &sidecar)
            };
            talk(&mut caller, &mut taken.accept().stream);
            assert!(idle.is_idle(), "{backend}: {port}");
        }
    }
}

#[test]
fn forwarded_connections_are_not_ours() {
    if skip("forwarded_connections_are_not_ours") {
        return;
    }
    for mode in ["redirect", "tproxy"] {
        let (pod, peer) = wire();
        // A container inside the pod.
        let inner = Space::new();
        pod.sh(&format!(
            "ip link add inner type veth peer name eth0 netns {}; ip link set inner up; \
             ip address add 10.112.0.1/24 dev inner; sysctl -qw net.ipv4.ip_forward=1",
            inner.name()
        ));
        inner.sh(
            "ip link set eth0 up; ip address add 10.112.0.2/24 dev eth0; \
             ip route add default via 10.112.0.1",
        );
        peer.sh(&format!("ip route add 10.112.0.0/24 via {POD_V4}"));
        pod.install(&format!("--mode {mode}"));
        let listener = inner.listen("10.112.0.2:80");
        let mut caller = peer.dial(APP, "10.112.0.2:80").unwrap();
        talk(&mut caller, &mut listener.accept().stream);
        let listener = peer.listen(&at(PEER_V4, 80));
        let mut caller = inner.dial(APP, &at(PEER_V4, 80)).unwrap();
        talk(&mut caller, &mut listener.accept().stream);
    }
}

#[test]
fn a_call_to_itself_passes_the_sidecar_once() {
    if skip("a_call_to_itself_passes_the_sidecar_once") {
        return;
    }
    for backend in BACKENDS {
        for mode in ["redirect", "tproxy"] {
            let (pod, _peer) = wire();
            pod.install(&format!(
                "--backend {backend} --mode {mode} --exclude-inbound-ports 9999"
            ));
            for (own, _) in FAMILIES {
                let sidecar = pod.listen(&at(any(own), 14_006));
                let app = pod.listen(&at(any(own), 8080));
                // It chose an endpoint that is this workload.
                let to = at(own, 8080);
                let mut outbound = pod.dial(SIDECAR, &to).unwrap();
                let mut inbound = sidecar.accept();
                assert_eq!(inbound.original, to, "{backend} {mode}");
                talk(&mut outbound, &mut inbound.stream);
                assert!(app.is_idle(), "{backend} {mode}");
                // It passes the call on to the application.
                let source = if own.contains(':') {
                    "::6"
                } else {
                    "127.0.0.6"
                };
                let mut outbound = pod.dial_from(SIDECAR, source, &to).unwrap();
                let mut accepted = app.accept();
                assert_eq!(accepted.peer.ip().to_string(), source);
                talk(&mut outbound, &mut accepted.stream);
                assert!(sidecar.is_idle(), "{backend} {mode}");
                // Loopback and excluded ports are the application's.
                let mut outbound = pod.dial(SIDECAR, &at(loopback(own), 8080)).unwrap();
                talk(&mut outbound, &mut app.accept().stream);
                let direct = pod.listen(&at(any(own), 9999));
                let mut outbound = pod.dial(SIDECAR, &at(own, 9999)).unwrap();
                talk(&mut outbound, &mut direct.accept().stream);
                assert!(sidecar.is_idle(), "{backend} {mode}");
            }
        }
    }
}
