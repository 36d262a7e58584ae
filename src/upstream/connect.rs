//! Opening connections: TCP, then mTLS with the identities that may answer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use weft_certs::spiffe::SpiffeId;

use crate::{
    config::AppProtocol,
    error::{Error, Reason},
    identity::{self, IdentityStore},
    io::Io,
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
            Ok(Err(error)) => return Err(connect_error(dest, &error).await),
            Err(_) => {
                let ms = dest.timeout.as_millis();
                let words = format!("{address}: no answer in {ms} ms");
                return Err(Error::new(Reason::ConnectTimeout, words));
            }
        };
        // Nagle's algorithm and delayed acknowledgements would add 40 ms to small messages.
        let _ = tcp.set_nodelay(true);
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

async fn open(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(source) = source else {
        return TcpStream::connect(address).await;
    };
    let own = own_source(address.ip()) == Some(source);
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..FOREIGN_TRIES {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_nonblocking(true)?;
        let port = if own {
            0
        } else {
            match source {
                IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
            }
            let span = usize::from(FOREIGN_PORTS.end - FOREIGN_PORTS.start);
            FOREIGN_PORTS.start + (random() as usize % span) as u16
        };
        match socket.bind(&SocketAddr::new(source, port).into()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                last = error;
                continue;
            }
            Err(error) => return Err(error),
        }
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(address);
        match connecting.await {
            Err(error) if !own && error.kind() == io::ErrorKind::AddrNotAvailable => last = error,
            done => return done,
        }
    }
    Err(last)
}

/// A number that need not be the same in another run: a port.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

async fn connect_error(dest: &Dest, error: &io::Error) -> Error {
    let address = dest.address;
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
