//! Mode route: what is captured without address translation, and so without conntrack.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::fchown,
};

use socket2::{Domain, Socket, Type};

use crate::{
    install::by_chain,
    space::{
        APP, BRIEFLY, FAMILIES, Listener, PATIENCE, SIDECAR, Space, any, at, loopback, skip, talk,
        text, wire,
    },
};

const BACKENDS: [&str; 3] = ["nft", "iptables", "iptables-legacy"];
const ROOT: (u32, u32) = (0, 0);

/// A socket of the sidecar that takes connections to any address.
fn transparent(address: SocketAddr, kind: Type) -> Socket {
    let socket = Socket::new(Domain::for_address(address), kind, None).unwrap();
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    } else {
        socket.set_only_v6(true).unwrap();
        socket.set_ip_transparent_v6(true).unwrap();
    }
    fchown(&socket, Some(SIDECAR.0), Some(SIDECAR.1)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn listen(pod: &Space, address: &str) -> Listener {
    let listener: TcpListener = pod.run(|| {
        let socket = transparent(address.parse().unwrap(), Type::STREAM);
        socket.listen(16).unwrap();
        socket.into()
    });
    Listener(listener)
}

/// The next connection must have been made to `to`, and goes both ways.
fn arrives(at_sidecar: &Listener, caller: &mut TcpStream, to: &str, case: &str) {
    let mut accepted = at_sidecar.accept();
    let local = accepted.stream.local_addr().unwrap();
    assert_eq!(local.to_string(), to, "{case}");
    assert_eq!(accepted.peer, caller.local_addr().unwrap(), "{case}");
    talk(caller, &mut accepted.stream);
    // Either side may close first.
    drop(accepted);
    assert_eq!(caller.read(&mut [0; 4]).unwrap(), 0, "{case}");
}

/// Nobody gets an answer.
fn is_lost(pod: &Space, owner: (u32, u32), to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    pod.run_as(owner, || TcpStream::connect_timeout(&to, BRIEFLY))
        .is_err()
}

/// Connections that conntrack has ever known here: those that it found, made or has.
fn tracked(pod: &Space) -> u64 {
    let table = pod.sh("cat /proc/net/stat/nf_conntrack");
    let mut lines = table.lines();
    let names: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    let mut sum = 0;
    for line in lines {
        for (name, value) in names.iter().zip(line.split_whitespace()) {
            if ["entries", "invalid", "insert", "insert_failed"].contains(name) {
                sum += u64::from_str_radix(value, 16).unwrap();
            }
        }
    }
    sum
}

#[test]
fn everything_is_captured_and_nothing_is_tracked() {
    if skip("everything_is_captured_and_nothing_is_tracked") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        // Hosts that are strict about sources.
        pod.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1");
        let said = pod.install(&format!("--backend {backend} --mode route"));
        for proved in [
            "tcp 192.0.2.1:80",
            "udp 192.0.2.1:53",
            "udp [2001:db8::1]:53",
        ] {
            assert!(
                said.contains(&format!("proved: {proved} arrives")),
                "{said}"
            );
        }
        for (own, other) in FAMILIES {
            let sidecar = listen(&pod, &at(loopback(own), 14_001));
            let dns = listen(&pod, &at(loopback(own), 14_053));
            let inbound = listen(&pod, &at(any(own), 14_006));
            let app = pod.listen(&at(any(own), 8080));
            for owner in [APP, ROOT] {
                // Also where the application listens at the same port.
                for port in [80, 8080, 14_001] {
                    let to = at(other, port);
                    let mut call = pod.dial(owner, &to).unwrap();
                    assert_eq!(call.local_addr().unwrap().ip().to_string(), own);
                    arrives(&sidecar, &mut call, &to, backend);
                }
                for resolver in [other, loopback(own)] {
                    let to = at(resolver, 53);
                    let mut call = pod.dial(owner, &to).unwrap();
                    arrives(&dns, &mut call, &to, backend);
                }
                // Its own host is not captured.
                for to in [own, loopback(own)] {
                    let mut call = pod.dial(owner, &at(to, 8080)).unwrap();
                    talk(&mut call, &mut app.accept().stream);
                }
            }
            let to = at(own, 8080);
            let mut caller = peer.dial(APP, &to).unwrap();
            arrives(&inbound, &mut caller, &to, backend);
            // The sidecar calls its application, itself as a peer would, and the network.
            let source = if own.contains(':') {
                "::6"
            } else {
                "127.0.0.6"
            };
            let mut call = pod.dial_from(SIDECAR, source, &to).unwrap();
            talk(&mut call, &mut app.accept().stream);
            let mut call = pod.dial(SIDECAR, &to).unwrap();
            arrives(&inbound, &mut call, &to, backend);
            let there = peer.listen(&at(any(own), 80));
            let mut call = pod.dial(SIDECAR, &at(other, 80)).unwrap();
            talk(&mut call, &mut there.accept().stream);
            assert!(sidecar.is_idle() && dns.is_idle() && inbound.is_idle());
        }
        assert_eq!(tracked(&pod), 0, "{backend}");
        let rules = pod.rules();
        for word in [
            "ct ",
            "notrack",
            "redirect",
            "hook nat",
            "-m conntrack",
            "-j REDIRECT",
        ] {
            assert!(!rules.contains(word), "{backend}: {word}: {rules}");
        }
        // And that is what would have been seen.
        pod.install(&format!("--backend {backend}"));
        let _redirected = pod.dial(APP, "192.0.2.1:80");
        assert!(tracked(&pod) > 0, "{backend}");
    }
}

#[test]
fn queries_reach_the_sidecar_whomever_they_ask() {
    if skip("queries_reach_the_sidecar_whomever_they_ask") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!("--backend {backend} --mode route"));
        for (own, other) in FAMILIES {
            let address = at(loopback(own), 14_053).parse().unwrap();
            let dns: UdpSocket = pod.run(|| transparent(address, Type::DGRAM).into());
            let mut buffer = [0; 8];
            for resolver in [other, own, loopback(own)] {
                let asking = pod.udp(APP, &at(any(own), 0));
                asking.send_to(b"query", at(resolver, 53)).unwrap();
                let (length, client) = dns.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], b"query");
                assert_eq!(client.port(), asking.local_addr().unwrap().port());
            }
            // What the sidecar asks itself leaves, and so does what is no DNS.
            for (owner, port) in [(SIDECAR, 53), (APP, 5353)] {
                let there = peer.udp(ROOT, &at(other, port));
                let asking = pod.udp(owner, &at(any(own), 0));
                asking.send_to(b"own", at(other, port)).unwrap();
                assert_eq!(there.recv_from(&mut buffer).unwrap().0, 3);
            }
        }
    }
}

#[test]
fn what_is_excluded_goes_its_own_way() {
    if skip("what_is_excluded_goes_its_own_way") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!(
            "--backend {backend} --mode route --exclude-outbound-ports 22 --exclude-uids 7 \
             --exclude-inbound-ports 9999 --exclude-outbound-cidrs 192.0.2.128/25,2001:db8:1::/48"
        ));
        for (own, other) in FAMILIES {
            let sidecar = listen(&pod, &at(loopback(own), 14_001));
            let inbound = listen(&pod, &at(any(own), 14_006));
            let far = if own.contains(':') {
                "2001:db8:1::1"
            } else {
                "192.0.2.129"
            };
            for (owner, to, port) in [(APP, other, 22), ((7, 7), other, 80), (APP, far, 80)] {
                let there = peer.listen(&at(any(own), port));
                let mut call = pod.dial(owner, &at(to, port)).unwrap();
                talk(&mut call, &mut there.accept().stream);
            }
            let app = pod.run_as(APP, || TcpListener::bind(at(any(own), 9999)).unwrap());
            let mut caller = peer.dial(APP, &at(own, 9999)).unwrap();
            let mut accepted = app.accept().unwrap().0;
            talk(&mut caller, &mut accepted);
            assert!(sidecar.is_idle() && inbound.is_idle(), "{backend}");
        }
    }
}

/// Routing knows neither a port that is excluded on arrival from one that a caller has chosen,
/// nor can it lead anything elsewhere that is bound to an interface.
#[test]
fn what_routing_cannot_lead_to_the_sidecar_does_not_leave() {
    if skip("what_routing_cannot_lead_to_the_sidecar_does_not_leave") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!(
            "--backend {backend} --mode route --exclude-inbound-ports 9999"
        ));
        for (own, other) in FAMILIES {
            let _sidecar = listen(&pod, &at(loopback(own), 14_001));
            let there = peer.listen(&at(any(own), 80));
            let to: SocketAddr = at(other, 80).parse().unwrap();
            let leaves = |prepare: &(dyn Fn(&Socket) + Sync)| {
                let result = pod.run(|| {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                    prepare(&socket);
                    socket.connect_timeout(&to.into(), BRIEFLY)
                });
                result.is_ok() || !there.is_idle()
            };
            let source: SocketAddr = at(own, 9999).parse().unwrap();
            assert!(!leaves(&|socket| socket.bind(&source.into()).unwrap()));
            assert!(!leaves(&|socket| {
                socket.bind_device(Some(b"eth0")).unwrap();
            }));
            assert!(is_lost(&pod, ROOT, &at(other, 65_535)), "{backend}");
        }
    }
}

#[test]
fn without_a_sidecar_nothing_reaches_anybody() {
    if skip("without_a_sidecar_nothing_reaches_anybody") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!("--backend {backend} --mode route"));
        for (own, other) in FAMILIES {
            let app = pod.listen(&at(any(own), 80));
            let there = peer.listen(&at(any(own), 80));
            assert!(is_lost(&pod, APP, &at(other, 80)), "{backend}");
            assert!(is_lost(&peer, APP, &at(own, 80)), "{backend}");
            assert!(app.is_idle() && there.is_idle(), "{backend}");
        }
    }
}

#[test]
fn another_mode_takes_over_and_nothing_is_left() {
    if skip("another_mode_takes_over_and_nothing_is_left") {
        return;
    }
    for backend in BACKENDS {
        let (pod, _peer) = wire();
        let args = format!("--backend {backend}");
        pod.install(&args);
        pod.install("--remove");
        let clean = by_chain(&pod.rules());
        pod.install(&args);
        let redirect = by_chain(&pod.rules());
        pod.install(&format!("{args} --mode route"));
        let route = by_chain(&pod.rules());
        let sidecar = listen(&pod, "127.0.0.1:14001");
        let mut call = pod.dial(APP, "192.0.2.1:80").unwrap();
        let mut accepted = sidecar.accept().stream;
        // Again, and with other options: what is there stays in use.
        for more in ["", " --exclude-uids 7", ""] {
            pod.install(&format!("{args} --mode route{more}"));
            talk(&mut call, &mut accepted);
        }
        assert_eq!(by_chain(&pod.rules()), route, "{backend}");
        pod.install(&format!("{args} --mode tproxy"));
        pod.install(&format!("{args} --mode route"));
        assert_eq!(by_chain(&pod.rules()), route, "{backend}");
        pod.install(&args);
        assert_eq!(by_chain(&pod.rules()), redirect, "{backend}");
        pod.install(&format!("{args} --mode route"));
        pod.install("--remove");
        assert_eq!(by_chain(&pod.rules()), clean, "{backend}");
        pod.sh("ip rule add priority 134 lookup main");
        let refused = pod.init(&format!("{args} --mode route"));
        let said = text(&refused);
        assert!(
            !refused.status.success() && said.contains("133 to 135"),
            "{said}"
        );
    }
}

#[test]
fn a_lost_address_is_no_way_out() {
    if skip("a_lost_address_is_no_way_out") {
        return;
    }
    let (pod, peer) = wire();
    pod.install("--mode route");
    let sidecar = listen(&pod, "127.0.0.1:14001");
    let there = peer.listen("0.0.0.0:80");
    pod.sh(
        "ip address flush dev eth0 scope global; ip address add 10.111.0.9/24 dev eth0; \
         ip -6 address add fd11::9/64 dev eth0 nodad; \
         ip route replace default via 10.111.0.2; ip -6 route replace default via fd11::2",
    );
    let to = "10.111.0.2:80";
    assert!(is_lost(&pod, APP, to) && there.is_idle());
    pod.install("--mode route --no-dns");
    let mut call = pod.dial(APP, to).unwrap();
    assert_eq!(call.local_addr().unwrap().ip().to_string(), "10.111.0.9");
    arrives(&sidecar, &mut call, to, "another address");
}
