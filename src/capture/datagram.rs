//! UDP queries that were led here with their destination unchanged (capture, mode route): the
//! answer must come from the address that was asked, which is not ours or somebody else's.
//!
//! So it is written with its headers (raw(7)); a socket bound to the asked address would be in
//! the way of a resolver of this host, and need the right to port 53.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg,
        setsockopt, sockopt,
    },
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const HOPS: u8 = 64;

/// Takes queries to any address, as the kernel leads them here.
///
/// # Errors
/// Without CAP_NET_RAW or CAP_NET_ADMIN. Then queries to other addresses are not led to this socket.
pub fn take_all(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    let transparent = SockRef::from(socket);
    match address {
        SocketAddr::V4(_) => {
            transparent.set_ip_transparent_v4(true)?;
            setsockopt(socket, sockopt::Ipv4OrigDstAddr, &true)?;
        }
        SocketAddr::V6(_) => {
            transparent.set_ip_transparent_v6(true)?;
            setsockopt(socket, sockopt::Ipv6OrigDstAddr, &true)?;
        }
    }
    Ok(())
}

/// A query's length, its sender, and the address that it was sent to, if [`take_all`] is in force.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::WouldBlock`] if there is none and the socket does not wait.
pub fn receive(
    socket: &impl AsRawFd,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<SocketAddr>)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut space = cmsg_space!(SockaddrIn6);
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let sender = received.address.and_then(|address| {
        let v4 = address.as_sockaddr_in().copied();
        let v6 = address.as_sockaddr_in6().copied();
        let v4 = v4.map(|v4| SocketAddr::V4(SocketAddrV4::from(v4)));
        v4.or_else(|| v6.map(|v6| SocketAddr::V6(SocketAddrV6::from(v6))))
    });
    let asked = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4OrigDstAddr(to) => {
            Some(SocketAddr::V4(SocketAddrV4::from(SockaddrIn::from(to))))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(to) => {
            Some(SocketAddr::V6(SocketAddrV6::from(SockaddrIn6::from(to))))
        }
        _ => None,
    });
    let sender = sender.ok_or(io::ErrorKind::InvalidData)?;
    Ok((received.bytes, sender, asked))
}

/// Sends answers in the name of those who were asked.
#[derive(Debug)]
pub struct Impersonator(Socket);

impl Impersonator {
    /// One for the family of `address`.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn new(address: SocketAddr) -> io::Result<Self> {
        const RAW: i32 = 255;
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
        match address {
            SocketAddr::V4(_) => socket.set_header_included_v4(true)?,
            SocketAddr::V6(_) => socket.set_header_included_v6(true)?,
        }
        // It only sends.
        let _ = socket.set_recv_buffer_size(0);
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Sends one datagram; both addresses are of the socket's family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, payload: &[u8], from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        let packet = packet(payload, from, to).ok_or(io::ErrorKind::InvalidInput)?;
        let mut there = to;
        there.set_port(0);
        self.0.send_to(&packet, &there.into()).map(drop)
    }
}

/// A datagram with its headers (RFC 768, 791, 8200); none if it is too long or the families differ.
fn packet(payload: &[u8], from: SocketAddr, to: SocketAddr) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut udp = Vec::with_capacity(usize::from(length));
    udp.extend(from.port().to_be_bytes());
    udp.extend(to.port().to_be_bytes());
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut packet = Vec::with_capacity(40 + udp.len());
    let addresses: Vec<u8> = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend(length.checked_add(20)?.to_be_bytes());
            // The kernel adds the number and the checksum.
            packet.extend([0, 0, 0, 0, HOPS, UDP, 0, 0]);
            [from.octets(), to.octets()].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([UDP, HOPS]);
            [from.octets(), to.octets()].concat()
        }
        _ => return None,
    };
    let sum = checksum(&[&addresses, &[0, UDP], &length.to_be_bytes(), &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    packet.extend(addresses);
    packet.extend(udp);
    Some(packet)
}

/// RFC 1071. All parts but the last have an even length. Never zero, which would mean none.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).unwrap_or(u16::MAX);
    if folded == u16::MAX { folded } else { !folded }
}

#[cfg(test)]
mod tests {
    use super::{checksum, packet};

    /// A receiver adds everything up and gets all ones.
    fn is_intact(packet: &[u8], header: usize) -> bool {
        let addresses = if header == 20 {
            &packet[12..20]
        } else {
            &packet[8..40]
        };
        let udp = &packet[header..];
        let length = [udp[4], udp[5]];
        checksum(&[addresses, &[0, super::UDP], &length, udp]) == u16::MAX
    }

    #[test]
    fn datagrams_have_the_headers_of_who_was_asked() {
        for (from, to, payload) in [
            ("192.0.2.1:53", "10.0.0.1:40000", &b"even"[..]),
            ("127.0.0.53:53", "127.0.0.1:40000", b"odd"),
            ("[2001:db8::1]:53", "[fd00::1]:40000", b"even"),
            ("[::1]:53", "[::1]:40000", b"odd"),
            ("192.0.2.1:53", "10.0.0.1:40000", &[0xff; 1232]),
        ] {
            let packet = packet(payload, from.parse().unwrap(), to.parse().unwrap()).unwrap();
            let header = if from.starts_with('[') { 40 } else { 20 };
            assert_eq!(packet.len(), header + 8 + payload.len());
            assert_eq!(packet[header..header + 4], [0, 53, 0x9c, 0x40]);
            assert!(packet.ends_with(payload));
            assert!(is_intact(&packet, header), "{from}");
            let mut broken = packet;
            broken[header + 8] ^= 1;
            assert!(!is_intact(&broken, header), "{from}");
        }
    }

    #[test]
    fn what_fits_no_datagram_is_not_sent() {
        let (v4, v6) = ("192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap());
        assert!(packet(b"", v4, v6).is_none());
        assert!(packet(&[0; 65_536], v4, v4).is_none());
        assert!(packet(&[0; 65_510], v4, v4).is_none());
    }
}
