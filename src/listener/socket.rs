//! Listening sockets.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 1024;

/// Opens one listening socket, or one for each worker when there are several (the kernel
/// spreads connections over them).
///
/// # Errors
/// When the address cannot be bound; the text names it.
pub fn bind(address: SocketAddr, workers: usize) -> Result<Vec<std::net::TcpListener>, String> {
    (0..workers)
        .map(|_| one(address, workers > 1).map_err(|error| explain(address, &error)))
        .collect()
}

fn one(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for old connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
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
    use super::bind;

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
