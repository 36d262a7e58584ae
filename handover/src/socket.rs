//! One listening socket, and the pool that a starting process takes its own from.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use parking_lot::Mutex;
use rustix::net::{SocketType, getsockname, sockopt};

use crate::Error;

/// What a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Connections: a listening TCP socket.
    Tcp,
    /// Datagrams: a bound UDP socket.
    Udp,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A bound socket that was opened by another process, or is about to be given to one. Kind and
/// address are read from the socket itself; the name is for people.
#[derive(Debug)]
pub struct Socket {
    name: String,
    kind: Kind,
    address: SocketAddr,
    fd: OwnedFd,
}

impl Socket {
    /// A socket under a name.
    ///
    /// # Errors
    /// When it is not a listening TCP socket and not a bound UDP socket; the text names it.
    pub fn new(name: impl Into<String>, fd: OwnedFd) -> Result<Self, Error> {
        let name = name.into();
        let no_socket = |error: rustix::io::Errno| Error::Io {
            what: format!("socket {name:?}"),
            source: error.into(),
        };
        let address = getsockname(&fd).map_err(no_socket)?;
        let address = SocketAddr::try_from(address).map_err(|_| {
            Error::Protocol(format!(
                "socket {name:?} is no TCP or UDP socket; only those are passed on"
            ))
        })?;
        let kind = sockopt::socket_type(&fd).map_err(no_socket)?;
        let kind = match kind {
            SocketType::STREAM if sockopt::socket_acceptconn(&fd).map_err(no_socket)? => Kind::Tcp,
            SocketType::DGRAM if address.port() != 0 => Kind::Udp,
            _ => {
                return Err(Error::Protocol(format!(
                    "socket {name:?} ({address}) does not listen; only listening sockets are passed on"
                )));
            }
        };
        Ok(Self {
            name,
            kind,
            address,
            fd,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it takes.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same socket once more, with the same queue.
    ///
    /// # Errors
    /// When this process may open no more files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            name: self.name.clone(),
            kind: self.kind,
            address: self.address,
            fd: self.fd.try_clone()?,
        })
    }

    /// As a TCP listener that does not block.
    ///
    /// # Errors
    /// When it is of the other kind.
    pub fn into_tcp(self) -> io::Result<TcpListener> {
        self.must_be(Kind::Tcp)?;
        let listener = TcpListener::from(self.fd);
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// As a UDP socket that does not block.
    ///
    /// # Errors
    /// When it is of the other kind.
    pub fn into_udp(self) -> io::Result<UdpSocket> {
        self.must_be(Kind::Udp)?;
        let socket = UdpSocket::from(self.fd);
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    fn must_be(&self, kind: Kind) -> io::Result<()> {
        if self.kind == kind {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "{} is a {} socket, not {kind}",
            self.name, self.kind
        )))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The sockets that a process was given. Shared: a short lock.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Vec<Socket>>);

impl Pool {
    /// A pool of these.
    #[must_use]
    pub fn new(sockets: Vec<Socket>) -> Self {
        Self(Mutex::new(sockets))
    }

    /// Takes every socket of this kind and address, in order. Several sockets can share one
    /// address (`SO_REUSEPORT`): each has a queue of its own, so all of them must be served.
    #[must_use]
    pub fn take(&self, kind: Kind, address: SocketAddr) -> Vec<Socket> {
        let mut sockets = self.0.lock();
        let all = std::mem::take(&mut *sockets);
        let (taken, rest) = all
            .into_iter()
            .partition(|socket| socket.kind == kind && socket.address == address);
        *sockets = rest;
        taken
    }

    /// Closes what nobody took; the names and addresses of it.
    pub fn clear(&self) -> Vec<String> {
        let mut sockets = self.0.lock();
        sockets
            .drain(..)
            .map(|socket| format!("{} ({} {})", socket.name, socket.kind, socket.address))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::unix::net::UnixStream,
    };

    use super::{Kind, Pool, Socket};

    #[test]
    fn what_listens_is_a_socket_and_the_rest_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connected = TcpStream::connect(address).unwrap();
        let socket = Socket::new("web", listener.into()).unwrap();
        assert_eq!((socket.kind(), socket.address()), (Kind::Tcp, address));
        assert_eq!(socket.name(), "web");
        let error = Socket::new("x", connected.into()).unwrap_err().to_string();
        assert!(error.contains("does not listen"), "{error}");
        let (unix, _) = UnixStream::pair().unwrap();
        let error = Socket::new("x", unix.into()).unwrap_err().to_string();
        assert!(error.contains("no TCP or UDP"), "{error}");
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let socket = Socket::new("dns", udp.into()).unwrap();
        assert_eq!(socket.kind(), Kind::Udp);
        assert!(socket.try_clone().unwrap().into_tcp().is_err());
        assert!(socket.into_udp().is_ok());
    }

    #[test]
    fn a_pool_gives_every_socket_of_an_address_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let again = listener.try_clone().unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = |name: &str, listener: TcpListener| Socket::new(name, listener.into());
        let pool = Pool::new(vec![
            socket("a", listener).unwrap(),
            socket("b", other).unwrap(),
            socket("a", again).unwrap(),
        ]);
        assert!(pool.take(Kind::Udp, address).is_empty());
        assert_eq!(pool.take(Kind::Tcp, address).len(), 2);
        assert!(pool.take(Kind::Tcp, address).is_empty());
        let left = pool.clear();
        assert!(
            left.len() == 1 && left[0].starts_with("b (tcp 127."),
            "{left:?}"
        );
        assert!(pool.clear().is_empty());
    }
}
