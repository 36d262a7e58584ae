//! From a new connection to the chain that serves it: TLS or not, which protocol, who is it.

use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    cluster::Pick,
    config::{AppProtocol, DownstreamTls, Filter, TransportProtocol},
    detect::{self, Detected},
    drain::Phase,
    error::{Error, Reason},
    http::{self, Connection, HttpVersion},
    identity,
    io::Io,
    snapshot::{LiveFilter, LiveListener, TcpBackend},
    tcp,
    telemetry::Tls,
    worker::Worker,
};

/// A client of an mTLS port that says nothing for this long is cut.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// On a permissive port that may be TCP, a client that says nothing for this long speaks a
/// protocol in which the server begins; a TLS client begins at once.
const SERVER_FIRST: Duration = Duration::from_millis(50);
/// What a client that has just connected has for its first byte when the sockets close.
const LAST_CHANCE: Duration = Duration::from_millis(500);
/// How long a client may begin after its server turned out to be unreachable.
const UNREACHABLE: Duration = Duration::from_secs(1);
/// Endpoints that are tried for one TCP connection.
const MAX_ATTEMPTS: usize = 4;

/// Serves one accepted connection to its end.
pub(super) async fn serve(
    worker: Arc<Worker>,
    listener: Arc<LiveListener>,
    tcp: TcpStream,
    client: SocketAddr,
) {
    let _open = worker.shared.drain.connection();
    // Nagle's algorithm and delayed acknowledgements would add 40 ms to small messages.
    let _ = tcp.set_nodelay(true);
    let has_tls = listener
        .config
        .chains
        .iter()
        .any(|chain| chain.tls.is_some());
    let result = if has_tls {
        secured(&worker, listener, tcp).await
    } else {
        plain(&worker, listener, tcp.into()).await
    };
    if let Err(error) = result {
        tracing::debug!(%error, %client, "connection ended");
    }
}

/// A listener with mTLS chains: the first byte tells whether this client uses it.
async fn secured(
    worker: &Arc<Worker>,
    listener: Arc<LiveListener>,
    tcp: TcpStream,
) -> Result<(), Error> {
    let plaintext = || {
        let chains = listener.config.chains.iter();
        chains.filter(|chain| chain.tls.is_none())
    };
    let permissive = plaintext().next().is_some();
    // Clients of HTTP begin, so there is time: a handshake that is late is no plaintext.
    let patience = if plaintext().any(|chain| matches!(chain.filter, Filter::Tcp(_))) {
        SERVER_FIRST
    } else {
        FIRST_BYTE
    };
    let mut first = [0];
    let peek = unless_closing(worker, tcp.peek(&mut first));
    let n = match tokio::time::timeout(patience, peek).await {
        // A check that the port is open.
        Ok(Ok(0)) if !permissive => {
            return Err(Error::new(Reason::ClientClosed, "closed before a byte"));
        }
        Ok(Ok(n)) => n,
        Ok(Err(error)) => return Err(error),
        Err(_) if permissive => return plain(worker, listener, tcp.into()).await,
        Err(_) => {
            worker
                .shared
                .metrics
                .detection(&port_of(&listener), "timeout");
            return Err(Error::new(Reason::ClientClosed, "no byte in 10 s"));
        }
    };
    let is_tls = n == 1 && first[0] == 0x16;
    match (is_tls, permissive) {
        (true, _) => terminate(worker, listener, tcp).await,
        (false, true) => plain(worker, listener, tcp.into()).await,
        (false, false) => refuse_plaintext(worker, &listener, tcp).await,
    }
}

/// Waits for what a client says first. At the end of a shutdown nobody waits for a client
/// that says nothing: it would use up the grace period.
async fn unless_closing<T>(
    worker: &Worker,
    first: impl Future<Output = std::io::Result<T>>,
) -> Result<T, Error> {
    tokio::select! {
        first = first => first.map_err(|error| Error::new(Reason::ClientClosed, error.to_string())),
        error = closing(worker) => Err(error),
    }
}

/// Ends shortly after idle connections are to be closed.
async fn closing(worker: &Worker) -> Error {
    let mut phases = worker.shared.drain.watch();
    // The sender lives as long as the process.
    let _ = phases.wait_for(|now| *now >= Phase::Closing).await;
    tokio::time::sleep(LAST_CHANCE).await;
    Error::new(Reason::ClientClosed, "no byte until the shutdown")
}

/// Plaintext on a strict port: not a byte reaches the application. A client that speaks
/// HTTP/1 is told why.
async fn refuse_plaintext(
    worker: &Worker,
    listener: &LiveListener,
    tcp: TcpStream,
) -> Result<(), Error> {
    let side = listener.side();
    worker
        .shared
        .metrics
        .tls_handshake(side, Err(Reason::IdentityRequired));
    let detecting = detect::read(tcp.into());
    if let Ok(Ok((mut io, Detected::Http1))) = tokio::time::timeout(FIRST_BYTE, detecting).await {
        let row = Reason::IdentityRequired.row();
        let body = format!("weft: {} ({})\n", row.sentence, row.slug);
        let head = format!(
            "HTTP/1.1 403 Forbidden\r\nweft-reason: {}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            row.slug,
            body.len(),
        );
        let _ = io.write_all(format!("{head}{body}").as_bytes()).await;
        let _ = io.shutdown().await;
        // What the client still sends would make the kernel answer with a reset, which can
        // overtake the answer: read it away for a moment.
        let mut rest = Vec::new();
        let drained = async {
            while io.read_more(&mut rest).await.is_ok_and(|n| n > 0) {
                rest.clear();
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), drained).await;
    }
    Err(Error::new(
        Reason::IdentityRequired,
        "plaintext on a port that takes mTLS only",
    ))
}

/// The mTLS handshake, then the chain that the agreed protocol selects.
async fn terminate(
    worker: &Arc<Worker>,
    listener: Arc<LiveListener>,
    tcp: TcpStream,
) -> Result<(), Error> {
    let metrics = &worker.shared.metrics;
    let Some(state) = worker.shared.identity.state() else {
        metrics.tls_handshake(listener.side(), Err(Reason::NotReady));
        return Err(Error::new(
            Reason::NotReady,
            "this workload has no certificate yet",
        ));
    };
    let accepted = identity::accept(&state, tcp, &offered(&listener)).await;
    metrics.tls_handshake(
        listener.side(),
        accepted.as_ref().map(|_| ()).map_err(|error| error.reason),
    );
    let (stream, peer, protocol) = accepted.inspect_err(|error| {
        tracing::info!(%error, listener = %listener.config.name, "client refused");
    })?;
    let io = Io::from(stream);
    let port = port_of(&listener);
    let (io, protocol) = match protocol {
        Some(protocol) => (io, protocol),
        None => {
            let (io, detected) = unless_closing(worker, detect::read(io)).await?;
            (io, protocol_of(detected))
        }
    };
    metrics.detection(&port, detection_name(protocol));
    let chain = pick_chain(&listener, TransportProtocol::Tls, protocol).ok_or_else(|| {
        Error::new(
            Reason::ClientProtocolError,
            "no filter chain takes this protocol",
        )
    })?;
    dispatch(worker, listener, chain, io, protocol, (Tls::Mtls, peer)).await
}

/// The TLS settings that all mTLS chains of the listener share, with all their protocols.
fn offered(listener: &LiveListener) -> DownstreamTls {
    let mut chains = listener
        .config
        .chains
        .iter()
        .filter_map(|chain| chain.tls.as_ref());
    let first = chains.next().cloned();
    let mut tls = first.unwrap_or(DownstreamTls {
        require_client_certificate: true,
        alpn: Vec::new(),
        bundle: "".into(),
    });
    for chain in chains {
        tls.require_client_certificate |= chain.require_client_certificate;
        for protocol in &chain.alpn {
            if !tls.alpn.contains(protocol) {
                tls.alpn.push(*protocol);
            }
        }
    }
    tls
}

/// A connection without TLS: by the only chain there is, or by what is spoken.
async fn plain(worker: &Arc<Worker>, listener: Arc<LiveListener>, io: Io) -> Result<(), Error> {
    let of = |protocol| pick_chain(&listener, TransportProtocol::RawBuffer, protocol);
    let identity = (Tls::None, None);
    match (of(AppProtocol::Http1), of(AppProtocol::Tcp)) {
        (Some(http), Some(tcp)) if http == tcp => match &listener.chains[tcp] {
            LiveFilter::Tcp(_) => {
                dispatch(worker, listener, tcp, io, AppProtocol::Tcp, identity).await
            }
            LiveFilter::Http(_) | LiveFilter::Rds(_) => {
                let (io, protocol) = unless_closing(worker, detect::http(io, tcp::IDLE)).await?;
                dispatch(worker, listener, http, io, protocol, identity).await
            }
        },
        (Some(http), Some(tcp)) => race(worker, listener, io, http, tcp).await,
        (Some(http), None) => {
            let (io, protocol) = unless_closing(worker, detect::http(io, tcp::IDLE)).await?;
            dispatch(worker, listener, http, io, protocol, identity).await
        }
        (None, Some(tcp)) => dispatch(worker, listener, tcp, io, AppProtocol::Tcp, identity).await,
        (None, None) => Err(Error::new(
            Reason::ClientProtocolError,
            "no filter chain takes plaintext",
        )),
    }
}

/// Neither side has to begin: the client's bytes and the server's race. If the server is
/// first, it is a server-first protocol and goes through as it is; if the client is, its
/// bytes tell. Nobody waits for a timer.
async fn race(
    worker: &Arc<Worker>,
    listener: Arc<LiveListener>,
    mut io: Io,
    http: usize,
    tcp: usize,
) -> Result<(), Error> {
    let metrics = worker.shared.metrics.clone();
    let port = port_of(&listener);
    let mut seen = Vec::new();
    let mut greeting = Vec::new();
    let mut upstream: Option<Result<(Io, Pick, usize), Error>> = None;
    let LiveFilter::Tcp(backends) = &listener.chains[tcp] else {
        return Err(Error::new(Reason::Internal, "a TCP chain without backends"));
    };
    let mut opening: Pin<Box<dyn Future<Output = _> + Send + '_>> =
        Box::pin(open(worker, backends));
    let mut closing = std::pin::pin!(closing(worker));
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
    metrics.detection(&port, detection_name(protocol));
    let io = io.rewind(seen.into());
    if protocol != AppProtocol::Tcp {
        drop(opening);
        drop(upstream);
        return dispatch(worker, listener, http, io, protocol, (Tls::None, None)).await;
    }
    let opened = match upstream {
        Some(opened) => opened,
        None => opening.await,
    };
    let (server, pick, index) = opened?;
    relay(io, server.rewind(greeting.into()), pick, &backends[index]).await
}

/// Waits for the server's first bytes; pending while it is not known whether there is one.
async fn first_of(upstream: &mut Option<Result<(Io, Pick, usize), Error>>, greeting: &mut Vec<u8>) {
    match upstream {
        // A server that closes or breaks off at once has spoken too: the client shall see it.
        Some(Ok((server, ..))) => drop(server.read_more(greeting).await),
        // A client of HTTP is told by an answer; one that waits for the server to begin
        // shall not wait for ever.
        Some(Err(_)) => tokio::time::sleep(UNREACHABLE).await,
        None => std::future::pending().await,
    }
}

/// Hands a connection to its chain.
async fn dispatch(
    worker: &Arc<Worker>,
    listener: Arc<LiveListener>,
    chain: usize,
    io: Io,
    protocol: AppProtocol,
    (tls, peer): (Tls, Option<weft_certs::spiffe::SpiffeId>),
) -> Result<(), Error> {
    if let LiveFilter::Tcp(backends) = &listener.chains[chain] {
        let (server, pick, index) = open(worker, backends).await?;
        return relay(io, server, pick, &backends[index]).await;
    }
    let version = match protocol {
        AppProtocol::Http2 => HttpVersion::Http2,
        AppProtocol::Http1 | AppProtocol::Tcp => HttpVersion::Http1,
    };
    let connection = Connection::new(worker.clone(), listener, chain, tls, peer);
    http::serve(Arc::new(connection), io, version).await;
    Ok(())
}

/// Opens a TCP connection to one of the backends by weight, on another endpoint if one
/// cannot be reached.
async fn open(worker: &Worker, backends: &[TcpBackend]) -> Result<(Io, Pick, usize), Error> {
    let index = choose(worker, backends);
    let backend = &backends[index];
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
        let Some(pick) = cluster.pick(&tried, &worker.rng) else {
            break;
        };
        let started = tokio::time::Instant::now();
        match worker
            .connector
            .connect(&pick.endpoint.dest, AppProtocol::Tcp)
            .await
        {
            Ok(io) => {
                pick.answered(started.elapsed());
                return Ok((io, pick, index));
            }
            Err(error) => {
                pick.failed();
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

/// Index of a backend by the weights of the configuration.
fn choose(worker: &Worker, backends: &[TcpBackend]) -> usize {
    let total: u64 = backends
        .iter()
        .map(|backend| u64::from(backend.weight))
        .sum();
    let mut at = worker.rng.next() % total.max(1);
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

async fn relay(
    mut client: Io,
    mut server: Io,
    pick: Pick,
    backend: &TcpBackend,
) -> Result<(), Error> {
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
    Ok(())
}

/// The most specific chain for a connection; Envoy's order: transport, then application.
fn pick_chain(
    listener: &LiveListener,
    transport: TransportProtocol,
    protocol: AppProtocol,
) -> Option<usize> {
    let chains = || listener.config.chains.iter().enumerate();
    let fits = |wanted: Option<TransportProtocol>| wanted.is_none_or(|t| t == transport);
    let names = |apps: &[AppProtocol]| apps.contains(&protocol);
    chains()
        .filter(|(_, chain)| fits(chain.matches.transport))
        .filter(|(_, chain)| chain.tls.is_some() == (transport == TransportProtocol::Tls))
        .filter(|(_, chain)| {
            let apps = &chain.matches.applications;
            if apps.is_empty() {
                serves(&chain.filter, protocol)
            } else {
                names(apps)
            }
        })
        .max_by_key(|(index, chain)| {
            let named = !chain.matches.applications.is_empty();
            (
                chain.matches.transport.is_some(),
                named,
                std::cmp::Reverse(*index),
            )
        })
        .map(|(index, _)| index)
}

/// Whether a chain without `application_protocols` can take a protocol: TCP takes all.
fn serves(filter: &Filter, protocol: AppProtocol) -> bool {
    match filter {
        Filter::Tcp(_) => true,
        Filter::Http(_) => protocol != AppProtocol::Tcp,
    }
}

fn protocol_of(detected: Detected) -> AppProtocol {
    match detected {
        Detected::Http1 => AppProtocol::Http1,
        Detected::Http2 => AppProtocol::Http2,
        Detected::Tls | Detected::Opaque | Detected::NeedMore => AppProtocol::Tcp,
    }
}

fn detection_name(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Http1 => "http1",
        AppProtocol::Http2 => "http2",
        AppProtocol::Tcp => "opaque",
    }
}

fn port_of(listener: &LiveListener) -> String {
    listener
        .config
        .port
        .unwrap_or_else(|| listener.config.address.port())
        .to_string()
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
