//! Connections and queries of the application.

use std::net::UdpSocket;

use crate::space::{
    APP, BRIEFLY, FAMILIES, Listener, SIDECAR, Space, any, at, loopback, skip, talk, wire,
};

const BACKENDS: [&str; 3] = ["nft", "iptables", "iptables-legacy"];

/// The sidecar's outbound listeners: IPv4, IPv6.
fn sidecar(pod: &Space) -> [Listener; 2] {
    [pod.listen("127.0.0.1:14001"), pod.listen("[::1]:14001")]
}

#[test]
fn tcp_arrives_at_the_sidecar_with_its_original_destination() {
    if skip("tcp_arrives_at_the_sidecar_with_its_original_destination") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!("--backend {backend}"));
        let listeners = sidecar(&pod);
        for ((_, address), listener) in FAMILIES.iter().zip(&listeners) {
            let there = peer.listen(&at(address, 80));
            let to = at(address, 80);
            let mut app = pod.dial(APP, &to).unwrap();
            let mut accepted = listener.accept();
            assert_eq!(accepted.original, to, "{backend}");
            talk(&mut app, &mut accepted.stream);
            assert!(there.is_idle(), "{backend}");
            // The sidecar's own connections leave: by its user or by its group.
            for owner in [SIDECAR, (14_020, 0), (0, 14_020)] {
                let mut own = pod.dial(owner, &to).unwrap();
                talk(&mut own, &mut there.accept().stream);
                assert!(listener.is_idle(), "{backend} {owner:?}");
            }
        }
    }
}

#[test]
fn exclusions_leave_as_they_are() {
    if skip("exclusions_leave_as_they_are") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!(
            "--backend {backend} --exclude-outbound-ports 22,8000-8100 --exclude-uids 1007 \
             --exclude-outbound-cidrs 192.0.2.0/25,2001:db8:7::/48"
        ));
        let listeners = sidecar(&pod);
        for (address, port, owner, captured) in [
            ("10.111.0.2", 22, APP, false),
            ("10.111.0.2", 8050, APP, false),
            ("10.111.0.2", 8101, APP, true),
            ("10.111.0.2", 80, (1007, 1007), false),
            ("192.0.2.9", 80, APP, false),
            ("192.0.2.129", 80, APP, true),
            ("fd11::2", 22, APP, false),
            ("fd11::2", 8101, APP, true),
            ("fd11::2", 80, (1007, 1007), false),
            ("2001:db8:7::9", 80, APP, false),
            ("2001:db8:8::9", 80, APP, true),
        ] {
            let there = peer.listen(&at(any(address), port));
            let listener = &listeners[usize::from(address.contains(':'))];
            let to = at(address, port);
            let mut app = pod.dial(owner, &to).unwrap();
            let (taken, idle) = if captured {
                (listener, &there)
            } else {
                (&there, listener)
            };
            let mut accepted = taken.accept();
            talk(&mut app, &mut accepted.stream);
            assert!(idle.is_idle(), "{backend}: {to} by {owner:?}");
        }
    }
}

#[test]
fn only_the_users_that_are_named() {
    if skip("only_the_users_that_are_named") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        let said = pod.install(&format!("--backend {backend} --only-uids 1000,70000"));
        assert!(said.contains("user 0, who is not in --only-uids"), "{said}");
        let [listener, _] = sidecar(&pod);
        let there = peer.listen("10.111.0.2:80");
        for (uid, captured) in [(1000, true), (70_000, true), (1001, false), (0, false)] {
            let app = pod.dial((uid, 1000), "10.111.0.2:80").unwrap();
            let (taken, idle) = if captured {
                (&listener, &there)
            } else {
                (&there, &listener)
            };
            assert_eq!(taken.accept().peer, app.local_addr().unwrap());
            assert!(idle.is_idle(), "{backend}: {uid}");
        }
    }
}

#[test]
fn loopback_is_left_alone() {
    if skip("loopback_is_left_alone") {
        return;
    }
    let (pod, _peer) = wire();
    pod.install("");
    let listeners = sidecar(&pod);
    for ((own, _), listener) in FAMILIES.iter().zip(&listeners) {
        for address in [loopback(own), own] {
            let app = pod.listen(&at(address, 5432));
            let mut client = pod.dial(APP, &at(address, 5432)).unwrap();
            talk(&mut client, &mut app.accept().stream);
            assert!(listener.is_idle(), "{address}");
        }
    }
}

/// Sends a query and answers it where it arrives, as long as it arrives in time.
fn query(client: &UdpSocket, to: &str, resolver: &UdpSocket) -> bool {
    client.connect(to).unwrap();
    client.send(b"query").unwrap();
    let mut buffer = [0; 16];
    let Ok((length, from)) = resolver.recv_from(&mut buffer) else {
        return false;
    };
    assert_eq!(&buffer[..length], b"query");
    resolver.send_to(b"answer", from).unwrap();
    // A connected socket takes answers of its destination only.
    let length = client.recv(&mut buffer).unwrap();
    &buffer[..length] == b"answer"
}

#[test]
fn dns_arrives_at_the_sidecar() {
    if skip("dns_arrives_at_the_sidecar") {
        return;
    }
    for backend in BACKENDS {
        let (pod, _peer) = wire();
        pod.install(&format!("--backend {backend}"));
        for resolver in ["10.111.0.2", "127.0.0.11", "127.0.0.53", "fd11::2", "::1"] {
            let sidecar = at(loopback(resolver), 14_053);
            let (udp, tcp) = (pod.udp(SIDECAR, &sidecar), pod.listen(&sidecar));
            let client = pod.udp(APP, &at(any(resolver), 0));
            let to = at(resolver, 53);
            assert!(query(&client, &to, &udp), "{backend}: {to}");
            let mut stream = pod.dial(APP, &to).unwrap();
            let mut accepted = tcp.accept();
            assert_eq!(accepted.original, to, "{backend}");
            talk(&mut stream, &mut accepted.stream);
        }
        // The sidecar itself asks the resolver.
        let local = pod.udp((0, 0), "127.0.0.11:53");
        let own = pod.udp(SIDECAR, "0.0.0.0:0");
        assert!(query(&own, "127.0.0.11:53", &local), "{backend}");
    }
}

#[test]
fn dns_and_other_datagrams_that_are_not_captured() {
    if skip("dns_and_other_datagrams_that_are_not_captured") {
        return;
    }
    for (options, port) in [
        ("--no-dns", 53),
        ("--exclude-outbound-ports 53", 53),
        ("--exclude-outbound-cidrs 10.111.0.0/24", 53),
        ("--exclude-uids 1000", 53),
        ("", 443),
    ] {
        let (pod, peer) = wire();
        pod.install(options);
        let sidecar = pod.udp(SIDECAR, "127.0.0.1:14053");
        sidecar.set_read_timeout(Some(BRIEFLY)).unwrap();
        let there = peer.udp((0, 0), &at("10.111.0.2", port));
        let client = pod.udp(APP, "0.0.0.0:0");
        let to = at("10.111.0.2", port);
        assert!(query(&client, &to, &there), "{options}");
        assert!(sidecar.recv(&mut [0; 16]).is_err(), "{options}");
    }
}

#[test]
fn without_ipv6_only_ipv4_is_captured() {
    if skip("without_ipv6_only_ipv4_is_captured") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!("--backend {backend}"));
        pod.install(&format!("--backend {backend} --no-ipv6"));
        let [v4, v6] = sidecar(&pod);
        let there = peer.listen("[fd11::2]:80");
        let mut app = pod.dial(APP, "[fd11::2]:80").unwrap();
        talk(&mut app, &mut there.accept().stream);
        assert!(v6.is_idle(), "{backend}");
        let mut app = pod.dial(APP, "10.111.0.2:80").unwrap();
        talk(&mut app, &mut v4.accept().stream);
        assert!(!pod.sh("ip -6 address show dev lo").contains("::6/128"));
    }
}
