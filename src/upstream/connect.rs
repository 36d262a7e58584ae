//! Opening connections: TCP, then mTLS with the identities that may answer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use weft_certs::spiffe::SpiffeId;

use crate::{
    config::AppProtocol,
    error::{Error, Reason},
    identity::{self, IdentityStore},
    io::{Io, prepare},
    limits::Limits,
    telemetry::{Metrics, Side},
};

/// Where to connect to and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dest {
    pub address: SocketAddr,
    /// The address to call from; `None`: the kernel chooses one of ours. One that is not ours
    /// needs CAP_NET_RAW.
    pub source: Option<IpAddr>,
    /// mTLS, or plaintext.
    pub tls: Option<TlsTarget>,
    /// Bound of the TCP connection.
    pub timeout: Duration,
}

/// Who must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsTarget {
    /// Server name indication.
    pub sni: Arc<str>,
    /// The SPIFFE IDs that may answer.
    pub identities: Arc<[SpiffeId]>,
}

/// Opens connections with our identity. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connector {
    /// Our identity.
    pub identity: Arc<IdentityStore>,
    /// Where handshakes are counted.
    pub metrics: Arc<Metrics>,
    /// The bounds of what is read from servers.
    pub limits: Arc<Limits>,
}

impl Connector {
    /// Opens a connection that is about to speak `protocol`.
    ///
    /// # Errors
    /// With the reason of the failed step. Cancel safe: nothing is left behind.
    pub async fn connect(&self, dest: &Dest, protocol: AppProtocol) -> Result<Io, Error> {
        let address = dest.address;
        let opened = tokio::time::timeout(dest.timeout, open(address, dest.source)).await;
        let tcp = match opened {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(failed)) => return Err(self.failed(dest, &failed).await),
            Err(_) => {
                let ms = dest.timeout.as_millis();
                let words = format!("{address}: no answer in {ms} ms");
                return Err(Error::new(Reason::ConnectTimeout, words));
            }
        };
        prepare(&tcp);
        let Some(tls) = &dest.tls else {
            return Ok(tcp.into());
        };
        let Some(state) = self.identity.state() else {
            return Err(Error::new(
                Reason::NotReady,
                "this workload has no certificate yet",
            ));
        };
        let result = identity::connect(&state, tcp, &tls.sni, protocol, &tls.identities).await;
        self.metrics.tls_handshake(
            Side::Client,
            result.as_ref().map(|_| ()).map_err(|e| e.reason),
        );
        result.map(Io::from).map_err(|mut error| {
            error.detail = format!("{address}: {}", error.detail);
            error
        })
    }
}

impl Connector {
    /// What a failure means, and whose it is.
    async fn failed(&self, dest: &Dest, failed: &Failed) -> Error {
        let Some(missing) = missing(failed).filter(|_| !has_no_address(failed, dest.address))
        else {
            return connect_error(dest, failed).await;
        };
        self.metrics.overloaded("upstream");
        let (address, error) = (dest.address, failed.error());
        Error::new(
            Reason::ProxyOverloaded,
            format!("{address}: {error}: {missing}"),
        )
    }
}

/// The step at which a connection could not be opened.
#[derive(Debug)]
enum Failed {
    /// The source address or port cannot be taken.
    Bind(io::Error),
    /// Anything else.
    Connect(io::Error),
}

impl Failed {
    const fn error(&self) -> &io::Error {
        match self {
            Self::Bind(error) | Self::Connect(error) => error,
        }
    }
}

/// What of our own a connection could not be opened for want of; `None`: it failed elsewhere.
fn missing(failed: &Failed) -> Option<&'static str> {
    let words = match (failed, Errno::from_io_error(failed.error())?) {
        (_, Errno::MFILE) => "this process has as many files open as it may (ulimit -n)",
        (_, Errno::NFILE) => "this machine has as many files open as it may (fs.file-max)",
        (_, Errno::NOBUFS | Errno::NOMEM) => "the kernel has no memory for a connection",
        (Failed::Bind(_), Errno::ADDRINUSE)
        | (Failed::Connect(_), Errno::ADDRINUSE | Errno::ADDRNOTAVAIL | Errno::AGAIN) => {
            "no local port is free towards it (net.ipv4.ip_local_port_range)"
        }
        _ => return None,
    };
    Some(words)
}

/// Whether there is no local address to call from: the kernel says the same of a machine
/// without such addresses as of one without free ports. Nothing is sent.
fn has_no_address(failed: &Failed, to: SocketAddr) -> bool {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let unclear = failed.error().kind() == io::ErrorKind::AddrNotAvailable;
    unclear && UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect(to).is_err())
}

/// What the sidecar of a captured workload calls its own application from, so that the rules
/// of capture do not take the call for one of the application (see docs/capture.md).
#[must_use]
pub fn own_source(destination: IpAddr) -> Option<IpAddr> {
    match destination {
        ip if ip.is_loopback() => None,
        IpAddr::V4(_) => Some(OWN_SOURCE_V4.into()),
        IpAddr::V6(_) => Some(OWN_SOURCE_V6.into()),
    }
}

const OWN_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const OWN_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Below the ports that kernels choose by themselves: with a client's address as its source, a
/// connection must not have the client's port too.
const FOREIGN_PORTS: std::ops::Range<u16> = 10_000..32_000;
const FOREIGN_TRIES: usize = 16;

async fn open(address: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, Failed> {
    let Some(source) = source else {
        let connecting = TcpStream::connect(address);
        return connecting.await.map_err(Failed::Connect);
    };
    if own_source(address.ip()) == Some(source) {
        let socket = socket(address).map_err(Failed::Connect)?;
        // The port is chosen when the destination is known: it may be one that is in use
        // towards another. Kernels before 4.2 do not know that, and choose at once.
        let _ = setsockopt(&socket, IpBindAddressNoPort, &true);
        let bound = socket.bind(&SocketAddr::new(source, 0).into());
        bound.map_err(Failed::Bind)?;
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(address);
        return connecting.await.map_err(Failed::Connect);
    }
    let mut last = Failed::Bind(Errno::ADDRINUSE.into());
    for _ in 0..FOREIGN_TRIES {
        let socket = foreign_socket(address, source).map_err(Failed::Connect)?;
        let span = usize::from(FOREIGN_PORTS.end - FOREIGN_PORTS.start);
        let port = FOREIGN_PORTS.start + (random() as usize % span) as u16;
        match socket.bind(&SocketAddr::new(source, port).into()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                last = Failed::Bind(error);
                continue;
            }
            Err(error) => return Err(Failed::Bind(error)),
        }
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(address);
        match connecting.await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                last = Failed::Connect(error);
            }
            done => return done.map_err(Failed::Connect),
        }
    }
    Err(last)
}

fn socket(towards: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(towards);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// One that may call from an address that is not ours.
fn foreign_socket(towards: SocketAddr, source: IpAddr) -> io::Result<Socket> {
    let socket = socket(towards)?;
    match source {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    Ok(socket)
}

/// A number that need not be the same in another run: a port.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

async fn connect_error(dest: &Dest, failed: &Failed) -> Error {
    let (address, error) = (dest.address, failed.error());
    match error.kind() {
        io::ErrorKind::TimedOut => {
            Error::new(Reason::ConnectTimeout, format!("{address}: {error}"))
        }
        io::ErrorKind::AddrNotAvailable if dest.source.is_some() => {
            let words = format!(
                "{address}: {error}: the source address is not on `lo`; run `weft-proxy init` again"
            );
            Error::new(Reason::ConnectRefused, words)
        }
        io::ErrorKind::PermissionDenied if dest.source.is_some() => {
            let words = format!(
                "{address}: {error}: calling the application from the client's address needs CAP_NET_RAW"
            );
            Error::new(Reason::ConnectRefused, words)
        }
        io::ErrorKind::ConnectionRefused if dest.source.is_some() => {
            let mut words = format!("{address}: {error}");
            if listens_on_loopback(address).await {
                words.push_str(
                    "; the application listens on localhost only: let it listen on all addresses, \
                     or set `app` of the Workload's port to 127.0.0.1:<port>",
                );
            }
            Error::new(Reason::ConnectRefused, words)
        }
        _ => Error::new(Reason::ConnectRefused, format!("{address}: {error}")),
    }
}

/// Whether the same port is open on localhost.
async fn listens_on_loopback(address: SocketAddr) -> bool {
    let loopback: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let dialing = TcpStream::connect((loopback, address.port()));
    matches!(
        tokio::time::timeout(Duration::from_millis(100), dialing).await,
        Ok(Ok(_))
    )
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::{Failed, has_no_address, missing};

    #[test]
    fn what_is_missing_here_is_told_from_what_fails_there() {
        let (bind, connect): (fn(_) -> _, fn(_) -> _) = (Failed::Bind, Failed::Connect);
        for (step, errno, expected) in [
            (
                connect,
                Errno::MFILE,
                Some("this process has as many files"),
            ),
            (
                connect,
                Errno::NFILE,
                Some("this machine has as many files"),
            ),
            (connect, Errno::NOBUFS, Some("the kernel has no memory")),
            (connect, Errno::NOMEM, Some("the kernel has no memory")),
            (connect, Errno::ADDRNOTAVAIL, Some("no local port is free")),
            (connect, Errno::ADDRINUSE, Some("no local port is free")),
            (bind, Errno::ADDRINUSE, Some("no local port is free")),
            // The source address is not on this machine.
            (bind, Errno::ADDRNOTAVAIL, None),
            (bind, Errno::PERM, None),
            (connect, Errno::CONNREFUSED, None),
            (connect, Errno::HOSTUNREACH, None),
            (connect, Errno::NETUNREACH, None),
        ] {
            let failed = step(errno.into());
            let found = missing(&failed);
            assert_eq!(found.is_some(), expected.is_some(), "{failed:?}");
            let (found, expected) = (found.unwrap_or(""), expected.unwrap_or(""));
            assert!(found.starts_with(expected), "{failed:?}: {found}");
        }
        let unnumbered = Failed::Connect(std::io::Error::other("no number"));
        assert_eq!(missing(&unnumbered), None);
    }

    #[test]
    fn a_machine_without_an_address_is_not_short_of_ports() {
        let here = "127.0.0.1:9".parse().unwrap();
        let ports = Failed::Connect(Errno::ADDRNOTAVAIL.into());
        assert!(!has_no_address(&ports, here));
        // Not unclear: this one is not looked into.
        let refused = Failed::Connect(Errno::CONNREFUSED.into());
        assert!(!has_no_address(&refused, "[::]:9".parse().unwrap()));
    }
}
