//! Segments that conntrack cannot assign must not end good connections, nor leave uncaptured.

use std::{
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::space::{APP, PATIENCE, PEER_V4, POD_V4, Space, at, skip, talk, wire};

/// A raw TCP socket, which gets a copy of each segment that arrives.
fn raw(space: &Space) -> Socket {
    let socket = space.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A segment of this connection that is far outside of its window; an answer to it would be
/// inside of ours.
fn far_off(raw: &Socket, stream: &TcpStream) -> Vec<u8> {
    const SYN_ACK: u8 = 0x12;
    const PUSH_ACK: u8 = 0x18;
    let ours = stream.local_addr().unwrap().port();
    let theirs = stream.peer_addr().unwrap().port();
    // The handshake's answer has the numbers of both sides.
    let mut buffer = [0; 128];
    let (their_number, our_number) = loop {
        let length = (&mut &*raw).read(&mut buffer).unwrap();
        let tcp = &buffer[usize::from(buffer[0] & 15) * 4..length];
        let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        if tcp[..4] == [theirs.to_be_bytes(), ours.to_be_bytes()].concat() && tcp[13] == SYN_ACK {
            break (word(4), word(8));
        }
    };
    let mut segment = Vec::new();
    segment.extend(ours.to_be_bytes());
    segment.extend(theirs.to_be_bytes());
    segment.extend(our_number.wrapping_add(1_000_000_000).to_be_bytes());
    segment.extend(their_number.wrapping_add(1).to_be_bytes());
    segment.extend([5 << 4, PUSH_ACK, 0x10, 0, 0, 0, 0, 0]);
    segment.extend(*b"leak");
    segment
}

/// Fills in the checksum and sends.
fn send(raw: &Socket, mut segment: Vec<u8>, from: &str, to: &str) -> std::io::Result<usize> {
    let (from, to): (Ipv4Addr, Ipv4Addr) = (from.parse().unwrap(), to.parse().unwrap());
    let length = u16::try_from(segment.len()).unwrap();
    let mut summed = [from.octets(), to.octets()].concat();
    summed.extend([0, 6]);
    summed.extend(length.to_be_bytes());
    summed.extend(&segment);
    let words = summed.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    raw.send_to(&segment, &SocketAddrV4::new(to, 0).into())
}

#[test]
fn from_a_peer_they_end_no_connection() {
    if skip("from_a_peer_they_end_no_connection") {
        return;
    }
    for backend in ["nft", "iptables", "iptables-legacy"] {
        let (pod, peer) = wire();
        pod.install(&format!("--backend {backend} --no-ipv6"));
        let sidecar = pod.listen("0.0.0.0:14006");
        let raw = raw(&peer);
        let mut caller = peer.dial(APP, &at(POD_V4, 8080)).unwrap();
        let mut accepted = sidecar.accept();
        send(&raw, far_off(&raw, &caller), PEER_V4, POD_V4).unwrap();
        talk(&mut caller, &mut accepted.stream);
        talk(&mut caller, &mut accepted.stream);
        // The segment is one that matters: without the rule the pod resets the connection.
        pod.sh(match backend {
            "nft" => "nft flush chain inet weft check_inbound",
            "iptables" => "iptables-nft -t mangle -F WEFT_CHECK_INBOUND",
            _ => "iptables-legacy -t mangle -F WEFT_CHECK_INBOUND",
        });
        let mut caller = peer.dial(APP, &at(POD_V4, 8080)).unwrap();
        let _accepted = sidecar.accept();
        send(&raw, far_off(&raw, &caller), PEER_V4, POD_V4).unwrap();
        let error = caller.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{backend}");
    }
}

#[test]
fn of_the_application_they_do_not_leave() {
    if skip("of_the_application_they_do_not_leave") {
        return;
    }
    for backend in ["nft", "iptables", "iptables-legacy"] {
        let (pod, _peer) = wire();
        pod.install(&format!("--backend {backend} --no-ipv6"));
        let sidecar = pod.listen("127.0.0.1:14001");
        let raw = raw(&pod);
        let mut app = pod.dial(APP, &at(PEER_V4, 80)).unwrap();
        let mut accepted = sidecar.accept();
        let segment = far_off(&raw, &app);
        let error = send(&raw, segment.clone(), POD_V4, PEER_V4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{backend}");
        talk(&mut app, &mut accepted.stream);
        pod.sh(match backend {
            "nft" => "nft flush chain inet weft check_outbound",
            "iptables" => "iptables-nft -t mangle -F WEFT_CHECK_OUTBOUND",
            _ => "iptables-legacy -t mangle -F WEFT_CHECK_OUTBOUND",
        });
        send(&raw, segment, POD_V4, PEER_V4).unwrap();
    }
}
