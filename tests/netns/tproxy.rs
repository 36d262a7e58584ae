//! Mode tproxy: the application sees its caller's address.

use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, SockRef, Socket, Type};

use crate::space::{APP, FAMILIES, Listener, PATIENCE, Space, any, at, skip, talk, wire};

const BACKENDS: [&str; 3] = ["nft", "iptables", "iptables-legacy"];
/// In this mode the sidecar needs NET_ADMIN, and is known by its group.
const SIDECAR: (u32, u32) = (0, 14_020);

fn transparent(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    } else {
        socket.set_only_v6(true).unwrap();
        socket.set_ip_transparent_v6(true).unwrap();
    }
    socket
}

fn listen(pod: &Space, address: &str) -> Listener {
    let listener: TcpListener = pod.run_as(SIDECAR, || {
        let address: SocketAddr = address.parse().unwrap();
        let socket = transparent(address);
        socket.bind(&address.into()).unwrap();
        socket.listen(16).unwrap();
        socket.into()
    });
    SockRef::from(&listener)
        .set_read_timeout(Some(PATIENCE))
        .unwrap();
    Listener(listener)
}

/// Dials the application in the caller's name.
fn dial_as(pod: &Space, caller: SocketAddr, to: SocketAddr) -> TcpStream {
    pod.run_as(SIDECAR, || {
        let socket = transparent(to);
        socket
            .bind(&SocketAddr::new(caller.ip(), 0).into())
            .unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    })
}

#[test]
fn the_application_sees_its_callers() {
    if skip("the_application_sees_its_callers") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        // Hosts that are strict about sources.
        pod.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1");
        pod.install(&format!(
            "--backend {backend} --mode tproxy --exclude-inbound-ports 9999"
        ));
        for (own, _) in FAMILIES {
            let sidecar = listen(&pod, &at(any(own), 14_006));
            let app = pod.listen(&at(any(own), 8080));
            let to = at(own, 8080);
            let mut caller = peer.dial(APP, &to).unwrap();
            let caller_at = caller.local_addr().unwrap();
            let mut inbound = sidecar.accept();
            assert_eq!(inbound.peer, caller_at, "{backend}");
            assert_eq!(inbound.original, to, "{backend}");
            assert_eq!(inbound.stream.local_addr().unwrap().to_string(), to);
            talk(&mut caller, &mut inbound.stream);
            let mut outbound = dial_as(&pod, caller_at, to.parse().unwrap());
            let mut accepted = app.accept();
            assert_eq!(accepted.peer.ip(), caller_at.ip(), "{backend}");
            talk(&mut outbound, &mut accepted.stream);
            // The other direction opens and closes, too.
            drop(accepted);
            assert_eq!(std::io::Read::read(&mut outbound, &mut [0; 4]).unwrap(), 0);
            assert!(sidecar.is_idle(), "{backend}");
            let direct = pod.listen(&at(any(own), 9999));
            let mut caller = peer.dial(APP, &at(own, 9999)).unwrap();
            talk(&mut caller, &mut direct.accept().stream);
        }
    }
}

#[test]
fn the_applications_own_connections_are_captured_as_ever() {
    if skip("the_applications_own_connections_are_captured_as_ever") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!(
            "--backend {backend} --mode tproxy --exclude-outbound-ports 22"
        ));
        let sidecar = pod.listen("127.0.0.1:14001");
        let mut app = pod.dial(APP, "10.111.0.2:80").unwrap();
        let mut accepted = sidecar.accept();
        assert_eq!(accepted.original, "10.111.0.2:80", "{backend}");
        talk(&mut app, &mut accepted.stream);
        // Answers to connections that left are not taken for new ones.
        for (owner, port) in [(SIDECAR, 80), (APP, 22)] {
            let there = peer.listen(&at("10.111.0.2", port));
            let mut own = pod.dial(owner, &at("10.111.0.2", port)).unwrap();
            talk(&mut own, &mut there.accept().stream);
        }
    }
}

#[test]
fn while_no_sidecar_listens_nothing_reaches_the_application() {
    if skip("while_no_sidecar_listens_nothing_reaches_the_application") {
        return;
    }
    for backend in BACKENDS {
        let (pod, peer) = wire();
        pod.install(&format!("--backend {backend} --mode tproxy"));
        for (own, _) in FAMILIES {
            let app = pod.listen(&at(any(own), 8080));
            let to: SocketAddr = at(own, 8080).parse().unwrap();
            let briefly = crate::space::BRIEFLY;
            let result = peer.run(|| TcpStream::connect_timeout(&to, briefly));
            assert!(result.is_err(), "{backend}");
            assert!(app.is_idle(), "{backend}");
        }
    }
}
