//! Listening sockets, and where a connection was meant to go.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpStream;

use crate::config::{Arrival, Listener};

const BACKLOG: i32 = 1024;

/// How one connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// The client connected to this socket's address.
    Here,
    /// The kernel led it here; it was made to this. The application will see us as its caller.
    Redirected(SocketAddr),
    /// The same, and the application is to see the caller.
    Transparently(SocketAddr),
}

/// Tells how a connection came to a listener: the kernel has changed its destination (REDIRECT),
/// or has not, and then our address on it is what it was made to (TPROXY). An IPv4 address in
/// IPv6 clothes counts as IPv4.
pub(super) fn arrived(tcp: &TcpStream, listener: &Listener) -> Arrived {
    let arrival = listener.arrival;
    if !arrival.is_captured() {
        return Arrived::Here;
    }
    let Ok(local) = tcp.local_addr().map(plain) else {
        return Arrived::Here;
    };
    let socket = SockRef::from(tcp);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    match original.ok().and_then(|a| a.as_socket()).map(plain) {
        Some(original) if original != local => Arrived::Redirected(original),
        _ if is_here(local, listener.address, &listener.additional) => Arrived::Here,
        _ if arrival == Arrival::Transparent => Arrived::Transparently(local),
        _ => Arrived::Redirected(local),
    }
}

/// Whether a connection with this address of ours was made to a listening socket itself.
fn is_here(local: SocketAddr, address: SocketAddr, additional: &[SocketAddr]) -> bool {
    let mut listening = additional.iter().chain([&address]).copied().map(plain);
    listening.any(|listening| {
        let any = listening.ip().is_unspecified();
        local.port() == listening.port() && (any || local.ip() == listening.ip())
    })
}

/// Whether no call from elsewhere can be for this destination: what listens on loopback only,
/// as the admin pages do, stays private, whatever the kernel lets in (`route_localnet`).
pub(super) fn is_private(destination: SocketAddr) -> bool {
    plain(destination).ip().is_loopback()
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Opens one listening socket, or one for each worker when there are several (the kernel
/// spreads connections over them), with what its kind of arrival needs.
///
/// # Errors
/// When the address cannot be bound; the text names it. A transparent socket needs CAP_NET_RAW or
/// CAP_NET_ADMIN; one for redirected connections is transparent, too, if that is allowed, since
/// mode route of capture redirects without changing the destination.
pub fn bind_for(
    address: SocketAddr,
    arrival: Arrival,
    workers: usize,
) -> Result<Vec<std::net::TcpListener>, String> {
    (0..workers)
        .map(|_| one(address, arrival, workers > 1).map_err(|error| explain(address, &error)))
        .collect()
}

/// Whether an address cannot be listened on because the machine has no such address family:
/// IPv6 that is switched off.
#[must_use]
pub fn is_without_family(address: SocketAddr) -> bool {
    address.is_ipv6() && std::net::UdpSocket::bind((std::net::Ipv6Addr::LOCALHOST, 0)).is_err()
}

fn one(address: SocketAddr, arrival: Arrival, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for old connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own.
        socket.set_only_v6(true)?;
    }
    let transparent = || match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    };
    match arrival {
        Arrival::Transparent => transparent()?,
        Arrival::Redirected => drop(transparent()),
        _ => {}
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{address} is in use by another process; free the port (`ss -ltnp`) or configure another one"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("{address}: no permission to listen there; use a port above 1023")
        }
        _ => format!("{address}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::{bind_for, is_here, is_private};
    use crate::config::Arrival;

    fn bind(address: SocketAddr, workers: usize) -> Result<Vec<TcpListener>, String> {
        bind_for(address, Arrival::Direct, workers)
    }

    #[test]
    fn loopback_is_private() {
        for (destination, private) in [
            ("127.0.0.1:14000", true),
            ("127.9.9.9:80", true),
            ("[::1]:80", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("10.9.0.2:80", false),
            ("[fd00::2]:80", false),
        ] {
            assert_eq!(
                is_private(destination.parse().unwrap()),
                private,
                "{destination}"
            );
        }
    }

    #[test]
    fn whoever_calls_the_socket_itself_was_not_led_here() {
        for (local, listening, here) in [
            (
                "127.0.0.1:14001",
                &["127.0.0.1:14001", "[::1]:14001"][..],
                true,
            ),
            ("[::1]:14001", &["127.0.0.1:14001", "[::1]:14001"], true),
            ("10.9.0.2:80", &["127.0.0.1:14001"], false),
            // Another host's sidecar.
            ("10.9.0.2:14001", &["127.0.0.1:14001", "[::1]:14001"], false),
            ("10.9.0.2:14006", &["0.0.0.0:14006"], true),
            ("10.9.0.2:80", &["0.0.0.0:14006", "[::]:14006"], false),
            (
                "[fd00::2]:14001",
                &["127.0.0.1:14001", "[::1]:14001"],
                false,
            ),
            ("[fd00::2]:14006", &["0.0.0.0:14006", "[::]:14006"], true),
        ] {
            let listening: Vec<_> = listening.iter().map(|one| one.parse().unwrap()).collect();
            let found = is_here(local.parse().unwrap(), listening[0], &listening[1..]);
            assert_eq!(found, here, "{local} {listening:?}");
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = bind(address, 1).unwrap_err();
        assert!(error.contains(&address.to_string()), "{error}");
        assert!(error.contains("in use"), "{error}");
    }

    #[tokio::test]
    async fn several_workers_share_a_port() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let free = first[0].local_addr().unwrap();
        drop(first);
        assert_eq!(bind(free, 2).unwrap().len(), 2);
    }
}
