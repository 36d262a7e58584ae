//! The sockets that a control plane listens on without opening them: given by the service
//! manager, or by the process before it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use tokio::net::TcpListener;
use weft_handover::{Kind, Socket};

/// The name of the socket for sidecars.
pub const GRPC: &str = "grpc";
/// The name of the socket of the admin pages.
pub const ADMIN: &str = "admin";

/// Listening sockets by name. Empty: every address is bound.
#[derive(Debug, Default)]
pub struct Sockets {
    given: Vec<Socket>,
    /// They are the service manager's, who decides where they listen.
    activated: bool,
}

impl Sockets {
    /// The sockets of a service manager: `grpc` and `admin` wherever they listen, others where
    /// an address is asked for that is theirs.
    #[must_use]
    pub fn activated(given: Vec<Socket>) -> Self {
        Self {
            activated: !given.is_empty(),
            given,
        }
    }

    /// The sockets of another process of this control plane.
    #[must_use]
    pub fn handed_over(given: Vec<Socket>, activated: bool) -> Self {
        Self { given, activated }
    }

    /// Whether they are the service manager's.
    #[must_use]
    pub fn is_activated(&self) -> bool {
        self.activated
    }

    /// The sockets, to be passed on.
    #[must_use]
    pub fn as_slice(&self) -> &[Socket] {
        &self.given
    }

    /// Those that a control plane listens on, once more.
    ///
    /// # Errors
    /// When this process may open no more files.
    pub(crate) fn shared(
        listeners: [(&str, &TcpListener); 2],
        activated: bool,
    ) -> io::Result<Self> {
        let again = listeners.map(|(name, listener)| {
            let fd = listener.as_fd().try_clone_to_owned()?;
            Socket::new(name, fd).map_err(io::Error::other)
        });
        Ok(Self {
            given: again.into_iter().collect::<io::Result<_>>()?,
            activated,
        })
    }

    /// Takes the listener of that name, if there is one for the address.
    ///
    /// # Errors
    /// When it cannot be used.
    pub(crate) fn take(
        &mut self,
        name: &str,
        asked: SocketAddr,
    ) -> io::Result<Option<TcpListener>> {
        let there = |socket: &Socket| {
            let at = socket.address();
            at == asked || (asked.port() == 0 && at.ip() == asked.ip())
        };
        let by_name = |socket: &Socket| {
            socket.kind() == Kind::Tcp && socket.name() == name && (self.activated || there(socket))
        };
        let by_address = |socket: &Socket| {
            self.activated && socket.kind() == Kind::Tcp && socket.address() == asked
        };
        let found = self.given.iter().position(by_name);
        let Some(found) = found.or_else(|| self.given.iter().position(by_address)) else {
            return Ok(None);
        };
        let listener = self.given.remove(found).into_tcp()?;
        TcpListener::from_std(listener).map(Some)
    }

    /// What nobody took: an error if it is the service manager's, which waits for connections
    /// there.
    pub(crate) fn unused(&mut self) -> Option<String> {
        let unused = std::mem::take(&mut self.given);
        let names = unused
            .iter()
            .map(|socket| format!("{} at {}", socket.name(), socket.address()));
        let names: Vec<String> = names.collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(name: &str) -> (Socket, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (Socket::new(name, listener.into()).unwrap(), address)
    }

    #[tokio::test]
    async fn the_service_manager_decides_where_and_a_predecessor_does_not() {
        let asked: SocketAddr = "127.0.0.1:1".parse().unwrap();
        for (activated, name, taken) in [
            (true, GRPC, true),
            (true, ADMIN, false),
            (true, "listen", false),
            (false, GRPC, false),
        ] {
            let (socket, _) = socket(name);
            let mut sockets = Sockets::handed_over(vec![socket], activated);
            let found = sockets.take(GRPC, asked).unwrap();
            assert_eq!(found.is_some(), taken, "{activated} {name}");
            assert_eq!(sockets.unused().is_none(), taken);
        }
        // By address: any name will do, if it is the service manager's.
        for (activated, name, taken) in [
            (true, "listen", true),
            (false, "listen", false),
            (false, GRPC, true),
        ] {
            let (socket, address) = socket(name);
            let mut sockets = Sockets::handed_over(vec![socket], activated);
            let found = sockets.take(GRPC, address).unwrap();
            assert_eq!(found.is_some(), taken, "{activated} {name}");
        }
        // Any port is as good as the one that there is.
        let (socket, address) = socket(GRPC);
        let mut sockets = Sockets::handed_over(vec![socket], false);
        let any = SocketAddr::new(address.ip(), 0);
        let found = sockets.take(GRPC, any).unwrap().unwrap();
        assert_eq!(found.local_addr().unwrap(), address);
    }
}
