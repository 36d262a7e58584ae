//! Where listening sockets come from: taken over from a predecessor or from systemd, else
//! opened. All of them can be passed on to a successor.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use weft_handover::{Kind, Pool, Socket};

use crate::{config::Arrival, listener};

/// The sockets that this process was given and has not used yet. Shared: a short lock.
#[derive(Debug, Default)]
pub(super) struct Inherited(Pool);

impl Inherited {
    pub(super) fn new(sockets: Vec<Socket>) -> Self {
        Self(Pool::new(sockets))
    }

    /// The listening sockets of an address: all that were taken over, else new ones, one for
    /// each worker.
    ///
    /// # Errors
    /// When the address cannot be bound; the text names it.
    pub(super) fn tcp(
        &self,
        name: &str,
        address: SocketAddr,
        arrival: Arrival,
        workers: usize,
    ) -> Result<Vec<Socket>, String> {
        let taken = self.0.take(Kind::Tcp, address);
        if !taken.is_empty() {
            return Ok(taken);
        }
        let opened = listener::bind_for(address, arrival, workers)?;
        opened
            .into_iter()
            .map(|socket| Socket::new(name, socket.into()).map_err(|error| error.to_string()))
            .collect()
    }

    /// The UDP socket of an address: taken over, else a new one.
    ///
    /// # Errors
    /// When the address cannot be bound; the text names it.
    pub(super) fn udp(&self, name: &str, address: SocketAddr) -> Result<Socket, String> {
        if let Some(taken) = self.0.take(Kind::Udp, address).into_iter().next() {
            return Ok(taken);
        }
        let opened = UdpSocket::bind(address).map_err(|error| format!("udp {address}: {error}"))?;
        Socket::new(name, opened.into()).map_err(|error| error.to_string())
    }

    /// Closes what the configuration in force has no use for.
    pub(super) fn close_rest(&self) {
        for socket in self.0.clear() {
            tracing::info!(%socket, "nothing listens there any more; the socket is closed");
        }
    }
}

/// Divides sockets among workers: each socket is served and each worker has one. With more
/// workers than sockets some share a queue; with fewer, some serve several.
///
/// # Errors
/// When this process may open no more files.
pub(super) fn divide(
    sockets: &[Socket],
    workers: usize,
) -> Result<Vec<(usize, TcpListener)>, String> {
    let pairs = sockets.len().max(workers);
    (0..pairs)
        .zip(sockets.iter().cycle())
        .map(|(n, socket)| {
            let listener = socket.try_clone().and_then(Socket::into_tcp);
            let listener = listener.map_err(|error| format!("{}: {error}", socket.address()))?;
            Ok((n % workers, listener))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use weft_handover::Socket;

    use super::{Inherited, divide};
    use crate::config::Arrival::Direct;

    #[test]
    fn what_was_taken_over_comes_first() {
        let first = Inherited::default();
        let address = "127.0.0.1:0".parse().unwrap();
        let own = first.tcp("web", address, Direct, 1).unwrap().remove(0);
        let address = own.address();
        assert!(first.tcp("web", address, Direct, 1).is_err(), "it is taken");
        let given = vec![own.try_clone().unwrap(), own];
        let second = Inherited::new(given);
        assert_eq!(second.tcp("web", address, Direct, 1).unwrap().len(), 2);
        assert!(
            first.tcp("web", address, Direct, 1).is_ok(),
            "all are closed"
        );
    }

    #[test]
    fn each_socket_is_served_and_each_worker_has_one() {
        let inherited = Inherited::default();
        let sockets: Vec<Socket> = (0..3)
            .flat_map(|_| {
                inherited
                    .tcp("x", "127.0.0.1:0".parse().unwrap(), Direct, 1)
                    .unwrap()
            })
            .collect();
        for (sockets, workers, expected) in [
            (&sockets[..1], 1, vec![(0, 0)]),
            (&sockets[..1], 2, vec![(0, 0), (1, 0)]),
            (&sockets[..], 2, vec![(0, 0), (1, 1), (0, 2)]),
            (&sockets[..], 3, vec![(0, 0), (1, 1), (2, 2)]),
        ] {
            let divided = divide(sockets, workers).unwrap();
            let found: Vec<(usize, usize)> = divided
                .iter()
                .map(|(worker, listener)| {
                    let address = listener.local_addr().unwrap();
                    let index = sockets.iter().position(|s| s.address() == address);
                    (*worker, index.unwrap())
                })
                .collect();
            assert_eq!(found, expected);
        }
    }
}
