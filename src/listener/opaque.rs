//! Connections that carry bytes: the endpoint, and the race of both sides for the first byte.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::{net::TcpStream, time::Instant};

use super::connection::{Context, closing, protocol_of};
use crate::{
    cluster::Pick,
    config::AppProtocol,
    detect::{self, Detected},
    drain::Use,
    error::{Error, Reason},
    io::Io,
    snapshot::TcpBackend,
    tcp,
};

/// How long a client may begin after its server turned out to be unreachable.
const UNREACHABLE: Duration = Duration::from_secs(1);
/// A client of TLS or HTTP sends its first bytes right after the connection. One that has not
/// by now may wait for its server to begin, so the server is connected.
const CLIENT_FIRST: Duration = Duration::from_millis(2);
/// Endpoints that are tried for one TCP connection.
const MAX_ATTEMPTS: usize = 4;

/// A connection to a backend, and which one it is.
pub(super) struct Opened {
    server: Io,
    pick: Pick,
    backend: usize,
}

/// Who sent the first bytes, when the kind of a client's connection is not known.
pub(super) enum First {
    /// The client; the bytes are still in its socket.
    Client,
    /// The client closed without a byte.
    Closed,
    /// The server, or it closed, or cannot be reached.
    Server(Result<Opened, Error>),
}

/// Opens a TCP connection to one of the backends by weight, on another endpoint if one
/// cannot be reached.
pub(super) async fn open(context: &Context, backends: &[TcpBackend]) -> Result<Opened, Error> {
    let worker = &context.worker;
    let index = choose(worker.rng.next(), backends);
    let Some(backend) = backends.get(index) else {
        return Err(Error::new(
            Reason::Internal,
            "a TCP destination without backends",
        ));
    };
    let Some(cluster) = &backend.cluster else {
        count_refused(backend, Reason::BackendMissing);
        return Err(Error::new(
            Reason::BackendMissing,
            "the backend does not exist",
        ));
    };
    let mut tried = Vec::new();
    let mut last = None;
    while tried.len() < MAX_ATTEMPTS {
        let pick = match worker
            .pick(cluster, &tried, context.original.as_ref())
            .await
        {
            Ok(Some(pick)) => pick,
            Ok(None) => break,
            Err(error) => {
                last = Some(error);
                break;
            }
        };
        let started = Instant::now();
        match worker
            .connector
            .connect(&pick.endpoint.dest, AppProtocol::Tcp)
            .await
        {
            Ok(server) => {
                pick.answered(started.elapsed());
                return Ok(Opened {
                    server,
                    pick,
                    backend: index,
                });
            }
            Err(error) => {
                if error.reason.blames_endpoint() {
                    pick.failed();
                }
                tried.push(pick.endpoint.dest.address);
                last = Some(error);
            }
        }
    }
    let error = last.unwrap_or_else(|| {
        Error::new(
            Reason::NoEndpoints,
            format!("{} has no endpoint", cluster.config.name),
        )
    });
    count_refused(backend, error.reason);
    tracing::info!(%error, cluster = %cluster.config.name, "TCP connection refused");
    Err(error)
}

/// Opens a connection to a backend and carries the client's bytes.
pub(super) async fn forward(
    context: &Context,
    client: Io,
    backends: &[TcpBackend],
) -> Result<(), Error> {
    let opened = open(context, backends).await?;
    context.open.becomes(Use::Tcp);
    relay(client, opened, backends).await;
    Ok(())
}

/// Carries bytes both ways to the end.
pub(super) async fn relay(mut client: Io, opened: Opened, backends: &[TcpBackend]) {
    let Opened {
        mut server,
        pick,
        backend,
    } = opened;
    let backend = &backends[backend];
    let metrics = &backend.metrics;
    metrics.opened();
    let end = tcp::copy(
        &mut client,
        &mut server,
        backend.idle_timeout,
        Some(metrics),
    )
    .await;
    metrics.closed(end.reason.unwrap_or(Reason::None));
    drop(pick);
}

/// Neither side has to begin: the client's bytes and the server's race. If the server is
/// first, it is a server-first protocol and goes through as it is; if the client is, its
/// bytes tell. Nobody waits for a timer. `None`: it was TCP, and has ended.
pub(super) async fn race(
    context: &Context,
    mut io: Io,
    backends: &[TcpBackend],
) -> Result<Option<(Io, AppProtocol)>, Error> {
    let mut seen = Vec::new();
    let mut greeting = Vec::new();
    let mut upstream: Option<Result<Opened, Error>> = None;
    let mut opening: Pin<Box<dyn Future<Output = _> + Send + '_>> =
        Box::pin(open(context, backends));
    let mut closing = std::pin::pin!(closing(&context.worker));
    let detected = loop {
        match detect::classify(&seen) {
            Detected::NeedMore => {}
            detected => break detected,
        }
        tokio::select! {
            read = io.read_more(&mut seen) => {
                if read.map_or(true, |n| n == 0) {
                    break Detected::Opaque;
                }
            }
            opened = &mut opening, if upstream.is_none() => upstream = Some(opened),
            () = first_of(&mut upstream, &mut greeting) => break Detected::Opaque,
            error = &mut closing => return Err(error),
        }
    };
    let protocol = protocol_of(detected);
    context.count_detection(protocol);
    let io = io.rewind(seen.into());
    if protocol != AppProtocol::Tcp {
        return Ok(Some((io, protocol)));
    }
    let opened = match upstream {
        Some(opened) => opened,
        None => opening.await,
    };
    let mut opened = opened?;
    opened.server = opened.server.rewind(greeting.into());
    context.open.becomes(Use::Tcp);
    relay(io, opened, backends).await;
    Ok(None)
}

/// The same while the client may also speak TLS, which must not go to the server: its bytes
/// stay in the socket.
pub(super) async fn race_peeking(
    context: &Context,
    tcp: &TcpStream,
    backends: &[TcpBackend],
) -> Result<First, Error> {
    let mut first = [0];
    let mut peek = std::pin::pin!(tcp.peek(&mut first));
    let mut closing = std::pin::pin!(closing(&context.worker));
    let of_client = |peeked: std::io::Result<usize>| match peeked {
        Ok(0) => Ok(First::Closed),
        Ok(_) => Ok(First::Client),
        Err(error) => Err(Error::new(Reason::ClientClosed, error.to_string())),
    };
    tokio::select! {
        peeked = &mut peek => return of_client(peeked),
        () = tokio::time::sleep(CLIENT_FIRST) => {}
        error = &mut closing => return Err(error),
    }
    let mut greeting = Vec::new();
    let mut upstream: Option<Result<Opened, Error>> = None;
    let mut opening: Pin<Box<dyn Future<Output = _> + Send + '_>> =
        Box::pin(open(context, backends));
    loop {
        tokio::select! {
            peeked = &mut peek => return of_client(peeked),
            opened = &mut opening, if upstream.is_none() => upstream = Some(opened),
            () = first_of(&mut upstream, &mut greeting) => break,
            error = &mut closing => return Err(error),
        }
    }
    let never = || Err(Error::new(Reason::Internal, "a server that was not opened"));
    let opened = upstream.unwrap_or_else(never).map(|mut opened| {
        opened.server = opened.server.rewind(greeting.into());
        opened
    });
    Ok(First::Server(opened))
}

/// Waits for the server's first bytes; pending while it is not known whether there is one.
async fn first_of(upstream: &mut Option<Result<Opened, Error>>, greeting: &mut Vec<u8>) {
    match upstream {
        // A server that closes or breaks off at once has spoken too: the client shall see it.
        Some(Ok(opened)) => drop(opened.server.read_more(greeting).await),
        // A client of HTTP is told by an answer; one that waits for the server to begin
        // shall not wait for ever.
        Some(Err(_)) => tokio::time::sleep(UNREACHABLE).await,
        None => std::future::pending().await,
    }
}

/// Index of a backend by the weights of the configuration.
fn choose(random: u64, backends: &[TcpBackend]) -> usize {
    let total: u64 = backends
        .iter()
        .map(|backend| u64::from(backend.weight))
        .sum();
    let mut at = random % total.max(1);
    for (index, backend) in backends.iter().enumerate() {
        let weight = u64::from(backend.weight);
        if at < weight {
            return index;
        }
        at -= weight;
    }
    0
}

fn count_refused(backend: &TcpBackend, reason: Reason) {
    backend.metrics.opened();
    backend.metrics.closed(reason);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::{UNREACHABLE, first_of};
    use crate::error::{Error, Reason};

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_for_a_server_that_is_not_there() {
        let mut greeting = Vec::new();
        let mut unknown = None;
        let unknown = first_of(&mut unknown, &mut greeting);
        assert!(timeout(Duration::from_secs(60), unknown).await.is_err());
        let mut refused = Some(Err(Error::new(Reason::ConnectRefused, "")));
        let refused = first_of(&mut refused, &mut greeting);
        assert!(timeout(2 * UNREACHABLE, refused).await.is_ok());
    }
}
