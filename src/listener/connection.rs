//! From a new connection to the chain that serves it: captured or not, TLS or not, which
//! protocol, who is it.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::TcpStream};
use weft_certs::spiffe::SpiffeId;

use super::{
    captured,
    opaque::{self, First},
    socket::{self, Arrived},
};
use crate::{
    cluster::Original,
    config::{AppProtocol, DownstreamTls, Filter, TransportProtocol},
    detect::{self, Detected},
    drain::{ConnectionGuard, Use},
    error::{Error, Reason},
    http::{self, Connection, HttpVersion},
    identity,
    io::{Io, prepare},
    memory::Account,
    snapshot::{LiveFilter, LiveListener},
    tcp,
    telemetry::{Side, Tls},
    upstream::own_source,
    worker::Worker,
};

/// How long a client that is refused may take to show that it would understand why.
const REFUSED: Duration = Duration::from_secs(1);

/// A connection's surroundings: what decides how it is served.
pub(super) struct Context {
    /// Who serves it.
    pub(super) worker: Arc<Worker>,
    /// Whose chains serve it.
    pub(super) listener: Arc<LiveListener>,
    /// Where it was meant to go, if the kernel led it here.
    pub(super) original: Option<Original>,
    /// The one destination of everything on it.
    pub(super) authority: Option<Box<str>>,
    /// Plaintext that may ask for the health of the application and nothing else.
    pub(super) probes_only: bool,
    /// A shutdown waits for it.
    pub(super) open: Arc<ConnectionGuard>,
    /// What it makes the process keep.
    pub(super) account: Arc<Account>,
}

impl Context {
    /// The application's port, or the listener's.
    fn port(&self) -> u16 {
        let config = &self.listener.config;
        config.port.unwrap_or_else(|| config.address.port())
    }

    /// Takes a captured connection: its port's listener serves it if there is one.
    fn meant_for(&mut self, destination: SocketAddr, source: Option<IpAddr>) {
        let snapshot = self.worker.shared.snapshots.load();
        if let Some(own) = snapshot.handed_over(destination.port()) {
            self.listener = own.clone();
        }
        self.original = Some(Original {
            destination,
            source,
        });
    }

    /// How long a client of an mTLS port may say nothing.
    fn first_byte(&self) -> Duration {
        self.worker.shared.limits.first_byte_timeout
    }

    /// Which HTTP a client speaks that is known to speak HTTP.
    pub(super) async fn http(&self, io: Io) -> std::io::Result<(Io, AppProtocol)> {
        let head = self.worker.shared.limits.head_timeout;
        detect::http(io, tcp::IDLE, head).await
    }

    pub(super) fn count_detection(&self, protocol: AppProtocol) {
        let name = match protocol {
            AppProtocol::Http1 => "http1",
            AppProtocol::Http2 => "http2",
            AppProtocol::Tcp => "opaque",
        };
        self.count_detected(name);
    }

    fn count_detected(&self, what: &'static str) {
        let metrics = &self.worker.shared.metrics;
        metrics.detection(&self.port().to_string(), what);
    }
}

/// Serves one accepted connection to its end.
pub(super) async fn serve(
    worker: Arc<Worker>,
    listener: Arc<LiveListener>,
    tcp: TcpStream,
    client: SocketAddr,
    account: Arc<Account>,
) {
    let open = Arc::new(worker.shared.drain.connection(&listener.config.name));
    prepare(&tcp);
    let mut context = Context {
        worker,
        listener,
        original: None,
        authority: None,
        probes_only: false,
        open,
        account,
    };
    let config = &context.listener.config;
    let arrived = socket::arrived(&tcp, config);
    let result = match (arrived, context.listener.side()) {
        (Arrived::Here, side) if config.arrival.is_captured() => match side {
            Side::Client => explicit(&context, tcp).await,
            Side::Server => refuse(&context, tcp, Reason::LoopDetected).await,
        },
        (Arrived::Here, _) => by_chains(&context, tcp).await,
        (Arrived::Redirected(to) | Arrived::Transparently(to), Side::Client) => {
            captured::serve(context, tcp, to).await
        }
        (Arrived::Redirected(to) | Arrived::Transparently(to), Side::Server)
            if socket::is_private(to) =>
        {
            refuse(&context, tcp, Reason::LoopDetected).await
        }
        (Arrived::Redirected(to), Side::Server) => {
            context.meant_for(to, own_source(to.ip()));
            by_chains(&context, tcp).await
        }
        (Arrived::Transparently(to), Side::Server) => {
            context.meant_for(to, Some(client.ip()));
            by_chains(&context, tcp).await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, %client, "connection ended");
    }
}

/// By the chains of its listener.
async fn by_chains(context: &Context, tcp: TcpStream) -> Result<(), Error> {
    let chains = &context.listener.config.chains;
    if chains.iter().any(|chain| chain.tls.is_some()) {
        secured(context, tcp).await
    } else {
        plain(context, tcp.into()).await
    }
}

/// An application that calls the capture port itself uses it as its HTTP proxy.
async fn explicit(context: &Context, tcp: TcpStream) -> Result<(), Error> {
    let chain = pick_chain(
        &context.listener,
        TransportProtocol::RawBuffer,
        AppProtocol::Http1,
    );
    let Some(http) = chain else {
        return refuse(context, tcp, Reason::LoopDetected).await;
    };
    let (io, protocol) = unless_closing(&context.worker, context.http(tcp.into())).await?;
    dispatch(context, http, io, protocol, (Tls::None, None)).await
}

/// A listener with mTLS chains: the first byte tells whether this client uses it.
async fn secured(context: &Context, tcp: TcpStream) -> Result<(), Error> {
    let chains = context.listener.config.chains.iter();
    let permissive = chains.clone().any(|chain| chain.tls.is_none());
    let opaque = pick_chain(
        &context.listener,
        TransportProtocol::RawBuffer,
        AppProtocol::Tcp,
    );
    if let Some(LiveFilter::Tcp(backends)) = opaque.map(|chain| &context.listener.chains[chain]) {
        // In what may be a protocol where the server begins, silence tells nothing.
        match opaque::race_peeking(context, &tcp, backends).await? {
            First::Client | First::Closed => {}
            First::Server(opened) => {
                context.count_detection(AppProtocol::Tcp);
                let opened = opened?;
                context.open.becomes(Use::Tcp);
                opaque::relay(tcp.into(), opened, backends).await;
                return Ok(());
            }
        }
    }
    let mut first = [0];
    let peek = unless_closing(&context.worker, tcp.peek(&mut first));
    let patience = context.first_byte();
    let n = match tokio::time::timeout(patience, peek).await {
        // A check that the port is open.
        Ok(Ok(0)) if !permissive => {
            return Err(Error::new(Reason::ClientClosed, "closed before a byte"));
        }
        Ok(Ok(n)) => n,
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            context.count_detected("timeout");
            let words = format!("no byte in {patience:?}");
            return Err(Error::new(Reason::ClientClosed, words));
        }
    };
    let is_tls = n == 1 && first[0] == 0x16;
    match (is_tls, permissive) {
        (true, _) => terminate(context, tcp).await,
        (false, true) => plain(context, tcp.into()).await,
        (false, false) => plaintext_on_strict(context, tcp).await,
    }
}

/// Waits for what a client says first. At the end of a shutdown nobody waits for a client
/// that says nothing: it would use up the grace period.
pub(super) async fn unless_closing<T>(
    worker: &Worker,
    first: impl Future<Output = std::io::Result<T>>,
) -> Result<T, Error> {
    tokio::select! {
        first = first => first.map_err(|error| Error::new(Reason::ClientClosed, error.to_string())),
        error = closing(worker) => Err(error),
    }
}

/// Ends shortly after idle connections are to be closed.
pub(super) async fn closing(worker: &Worker) -> Error {
    worker.shared.drain.last_chance().await;
    Error::new(Reason::ClientClosed, "no byte until the shutdown")
}

/// Plaintext on a strict port: not a byte reaches the application, but for a probe of its
/// health that was configured.
async fn plaintext_on_strict(context: &Context, tcp: TcpStream) -> Result<(), Error> {
    let chains = context.listener.config.chains.iter();
    let http = chains
        .clone()
        .position(|chain| matches!(chain.filter, Filter::Http(_)));
    let port = context.port();
    let mut probes = context.worker.shared.probes.iter();
    if let Some(http) = http.filter(|_| probes.any(|(of, _)| *of == port)) {
        let detecting = tokio::time::timeout(context.first_byte(), detect::read(tcp.into()));
        return match unless_closing(&context.worker, async { Ok(detecting.await) }).await? {
            Ok(Ok((io, Detected::Http1))) => {
                let probing = Context {
                    worker: context.worker.clone(),
                    listener: context.listener.clone(),
                    original: context.original,
                    authority: None,
                    probes_only: true,
                    open: context.open.clone(),
                    account: context.account.clone(),
                };
                let identity = (Tls::None, None);
                dispatch(&probing, http, io, AppProtocol::Http1, identity).await
            }
            _ => Err(Error::new(
                Reason::IdentityRequired,
                "plaintext on a port that takes mTLS and HTTP probes only",
            )),
        };
    }
    let metrics = &context.worker.shared.metrics;
    metrics.tls_handshake(context.listener.side(), Err(Reason::IdentityRequired));
    let patience = context.first_byte();
    refuse_within(context, tcp, Reason::IdentityRequired, patience).await
}

/// Ends a connection; a client that speaks HTTP/1 is told why.
pub(super) async fn refuse(context: &Context, tcp: TcpStream, reason: Reason) -> Result<(), Error> {
    refuse_within(context, tcp, reason, REFUSED).await
}

async fn refuse_within(
    context: &Context,
    tcp: TcpStream,
    reason: Reason,
    patience: Duration,
) -> Result<(), Error> {
    let row = reason.row();
    let detecting = tokio::time::timeout(patience, detect::read(tcp.into()));
    let detecting = unless_closing(&context.worker, async { Ok(detecting.await) });
    if let Ok(Ok((mut io, Detected::Http1))) = detecting.await? {
        let body = format!("weft: {} ({})\n", row.sentence, row.slug);
        let status = http_status(row.status);
        let head = format!(
            "HTTP/1.1 {status}\r\nweft-reason: {}\r\ncontent-type: text/plain; charset=utf-8\r\n\
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
    Err(Error::new(reason, row.sentence))
}

/// As in a status line: `403 Forbidden`.
fn http_status(code: u16) -> String {
    ::http::StatusCode::from_u16(code).map_or_else(|_| code.to_string(), |s| s.to_string())
}

/// The mTLS handshake, then the chain that the agreed protocol selects.
async fn terminate(context: &Context, tcp: TcpStream) -> Result<(), Error> {
    let listener = &context.listener;
    let metrics = &context.worker.shared.metrics;
    let Some(state) = context.worker.shared.identity.state() else {
        metrics.tls_handshake(listener.side(), Err(Reason::NotReady));
        return Err(Error::new(
            Reason::NotReady,
            "this workload has no certificate yet",
        ));
    };
    let accepted = identity::accept(&state, tcp, &offered(listener)).await;
    metrics.tls_handshake(
        listener.side(),
        accepted.as_ref().map(|_| ()).map_err(|error| error.reason),
    );
    let (stream, peer, protocol) = accepted.inspect_err(|error| {
        tracing::info!(%error, listener = %listener.config.name, "client refused");
    })?;
    let io = Io::from(stream);
    let (io, protocol) = match protocol {
        Some(protocol) => (io, protocol),
        None => {
            let (io, detected) = unless_closing(&context.worker, detect::read(io)).await?;
            (io, protocol_of(detected))
        }
    };
    context.count_detection(protocol);
    let chain = pick_chain(listener, TransportProtocol::Tls, protocol).ok_or_else(|| {
        Error::new(
            Reason::ClientProtocolError,
            "no filter chain takes this protocol",
        )
    })?;
    dispatch(context, chain, io, protocol, (Tls::Mtls, peer)).await
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
async fn plain(context: &Context, io: Io) -> Result<(), Error> {
    let listener = &context.listener;
    let of = |protocol| pick_chain(listener, TransportProtocol::RawBuffer, protocol);
    let identity = (Tls::None, None);
    let http = match (of(AppProtocol::Http1), of(AppProtocol::Tcp)) {
        (Some(http), Some(tcp)) => match &listener.chains[tcp] {
            LiveFilter::Tcp(_) if http == tcp => {
                return dispatch(context, tcp, io, AppProtocol::Tcp, identity).await;
            }
            LiveFilter::Tcp(backends) => {
                let Some((io, protocol)) = opaque::race(context, io, backends).await? else {
                    return Ok(());
                };
                return dispatch(context, http, io, protocol, identity).await;
            }
            LiveFilter::Http(_) | LiveFilter::Rds(_) => http,
        },
        (Some(http), None) => http,
        (None, Some(tcp)) => {
            return dispatch(context, tcp, io, AppProtocol::Tcp, identity).await;
        }
        (None, None) => {
            return Err(Error::new(
                Reason::ClientProtocolError,
                "no filter chain takes plaintext",
            ));
        }
    };
    let (io, protocol) = unless_closing(&context.worker, context.http(io)).await?;
    dispatch(context, http, io, protocol, identity).await
}

/// Hands a connection to its chain.
pub(super) async fn dispatch(
    context: &Context,
    chain: usize,
    io: Io,
    protocol: AppProtocol,
    (tls, peer): (Tls, Option<SpiffeId>),
) -> Result<(), Error> {
    if let LiveFilter::Tcp(backends) = &context.listener.chains[chain] {
        return opaque::forward(context, io, backends).await;
    }
    let version = match protocol {
        AppProtocol::Http2 => HttpVersion::Http2,
        AppProtocol::Http1 | AppProtocol::Tcp => HttpVersion::Http1,
    };
    let (worker, listener) = (context.worker.clone(), context.listener.clone());
    let account = context.account.clone();
    let mut connection = Connection::new(worker, listener, chain, tls, peer, account);
    connection.original = context.original;
    connection.only_authority.clone_from(&context.authority);
    connection.probes_only = context.probes_only;
    http::serve(Arc::new(connection), io, version).await;
    Ok(())
}

/// The most specific chain for a connection; Envoy's order: transport, then application.
pub(super) fn pick_chain(
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

pub(super) fn protocol_of(detected: Detected) -> AppProtocol {
    match detected {
        Detected::Http1 => AppProtocol::Http1,
        Detected::Http2 => AppProtocol::Http2,
        Detected::Tls | Detected::Opaque | Detected::NeedMore => AppProtocol::Tcp,
    }
}
