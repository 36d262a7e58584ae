//! TLS between sidecars: rustls configurations for one certificate and bundle, and the two
//! handshakes. The peer's identity is checked before a byte of the application moves.

use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};

use parking_lot::RwLock;
use rustls::{ClientConfig, ServerConfig, time_provider::TimeProvider};
use rustls_pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use weft_certs::{
    SvidVerifier, TrustBundle, WorkloadCert,
    spiffe::SpiffeId,
    tls::{client_config, server_config},
    verify::{peer_id, svid_error_of_io},
};

use crate::{
    config::{AppProtocol, DownstreamTls},
    error::{Error, Reason},
    limits::Limits,
};

/// What a client's handshake may take when there are as many as there may be: those who finish
/// none must not keep others out.
const PATIENCE: Duration = Duration::from_secs(1);

/// Everything that TLS needs of one certificate and bundle.
#[derive(Debug)]
pub struct TlsState {
    id: SpiffeId,
    clients: [Arc<ClientConfig>; 3],
    certificate: Arc<rustls::sign::SingleCertAndKey>,
    verifier: SvidVerifier,
    /// One configuration for each kind of listener; a handful.
    servers: RwLock<Vec<(DownstreamTls, Arc<ServerConfig>)>>,
    turns: Arc<Turns>,
}

impl TlsState {
    /// Builds the client side; server configurations follow at first use.
    ///
    /// # Errors
    /// When the key is not usable.
    pub fn new(
        certificate: &WorkloadCert,
        bundle: &Arc<TrustBundle>,
        time: Arc<dyn TimeProvider>,
        turns: Arc<Turns>,
    ) -> Result<Self, String> {
        let verifier = SvidVerifier::new(bundle.clone(), time);
        let resolver = certificate.resolver().map_err(|e| e.to_string())?;
        let client = |protocol: AppProtocol| {
            let verifier = Arc::new(verifier.clone());
            Arc::new(client_config(
                verifier,
                Some(resolver.clone()),
                &[protocol.alpn()],
            ))
        };
        Ok(Self {
            id: certificate.id.clone(),
            clients: [
                client(AppProtocol::Http1),
                client(AppProtocol::Http2),
                client(AppProtocol::Tcp),
            ],
            certificate: resolver.clone(),
            verifier,
            servers: RwLock::default(),
            turns,
        })
    }

    /// Our SPIFFE ID.
    #[must_use]
    pub const fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The configuration for the control plane: gRPC is HTTP/2.
    pub(super) fn control_client(&self) -> Arc<ClientConfig> {
        self.client(AppProtocol::Http2)
    }

    fn client(&self, protocol: AppProtocol) -> Arc<ClientConfig> {
        let index = match protocol {
            AppProtocol::Http1 => 0,
            AppProtocol::Http2 => 1,
            AppProtocol::Tcp => 2,
        };
        self.clients[index].clone()
    }

    fn server(&self, wanted: &DownstreamTls) -> Arc<ServerConfig> {
        let known = self
            .servers
            .read()
            .iter()
            .find(|(tls, _)| tls == wanted)
            .map(|(_, c)| c.clone());
        known.unwrap_or_else(|| {
            let alpn: Vec<&[u8]> = wanted.alpn.iter().map(|protocol| protocol.alpn()).collect();
            let verifier = self
                .verifier
                .clone()
                .mandatory(wanted.require_client_certificate);
            let config = Arc::new(server_config(
                Arc::new(verifier),
                self.certificate.clone(),
                &alpn,
            ));
            self.servers.write().push((wanted.clone(), config.clone()));
            config
        })
    }
}

/// The client's handshake. The stream is only given out when the server proved one of the
/// `expected` identities and took the protocol.
///
/// # Errors
/// [`Reason::TlsFailed`], or [`Reason::IdentityMismatch`] with both identities in the words.
pub async fn connect(
    state: &TlsState,
    tcp: TcpStream,
    sni: &str,
    protocol: AppProtocol,
    expected: &[SpiffeId],
) -> Result<TlsStream<TcpStream>, Error> {
    let failed = |detail: String| Error::new(Reason::TlsFailed, detail);
    let name = ServerName::try_from(sni.to_owned())
        .map_err(|_| failed(format!("`{sni}` is no server name")))?;
    let handshake = TlsConnector::from(state.client(protocol)).connect(name, tcp);
    let deadline = state.turns.deadline;
    let stream = tokio::time::timeout(deadline, handshake)
        .await
        .map_err(|_| failed(format!("no answer to the handshake in {deadline:?}")))?
        .map_err(|error| failed(handshake_error(&error)))?;
    let session = stream.get_ref().1;
    let chain = session.peer_certificates().unwrap_or_default();
    let peer = peer_id(chain).map_err(|error| failed(error.to_string()))?;
    if !expected.contains(&peer) {
        let expected: Vec<&str> = expected.iter().map(SpiffeId::as_str).collect();
        let detail = format!("the peer is {peer}, expected {}", expected.join(" or "));
        return Err(Error::new(Reason::IdentityMismatch, detail));
    }
    if session.alpn_protocol() != Some(protocol.alpn()) {
        let name = String::from_utf8_lossy(protocol.alpn()).into_owned();
        return Err(failed(format!("the peer does not speak {name}")));
    }
    Ok(stream.into())
}

/// The server's handshake: the stream, who the client is, and the protocol that was agreed.
///
/// # Errors
/// [`Reason::TlsFailed`].
pub async fn accept(
    state: &TlsState,
    tcp: TcpStream,
    tls: &DownstreamTls,
) -> Result<(TlsStream<TcpStream>, Option<SpiffeId>, Option<AppProtocol>), Error> {
    let failed = |detail: String| Error::new(Reason::TlsFailed, detail);
    let handshake = TlsAcceptor::from(state.server(tls)).accept(tcp);
    let stream = state.turns.run(handshake).await.map_err(failed)?;
    let session = stream.get_ref().1;
    let peer = match session.peer_certificates() {
        Some(chain) => Some(peer_id(chain).map_err(|error| failed(error.to_string()))?),
        None => None,
    };
    let protocol = session.alpn_protocol().and_then(AppProtocol::from_alpn);
    Ok((stream.into(), peer, protocol))
}

/// The turns of clients' handshakes: so many at one time, and the deadline of all.
#[derive(Debug)]
pub struct Turns {
    places: Semaphore,
    deadline: Duration,
}

impl Turns {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            places: Semaphore::new(limits.max_handshakes),
            deadline: limits.handshake_timeout,
        }
    }

    /// Runs a handshake when it is its turn. The wait counts; while all places are taken, one
    /// that takes long gives way.
    async fn run<T>(&self, handshake: impl Future<Output = io::Result<T>>) -> Result<T, String> {
        let due = Instant::now() + self.deadline;
        let Ok(turn) = timeout_at(due, self.places.acquire()).await else {
            return Err(format!("no turn for the handshake in {:?}", self.deadline));
        };
        let _turn = turn.map_err(|error| error.to_string())?;
        let mut handshake = pin!(handshake);
        loop {
            let look = due.min(Instant::now() + PATIENCE);
            match timeout_at(look, handshake.as_mut()).await {
                Ok(done) => return done.map_err(|error| handshake_error(&error)),
                Err(_) if look == due => {
                    let deadline = self.deadline;
                    return Err(format!(
                        "the client did not finish the handshake in {deadline:?}"
                    ));
                }
                Err(_) if self.places.available_permits() == 0 => {
                    return Err("a handshake that took long gave way to others".to_owned());
                }
                Err(_) => {}
            }
        }
    }
}

fn handshake_error(error: &io::Error) -> String {
    svid_error_of_io(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        io,
        time::Duration,
    };

    use tokio::time::Instant;

    use super::Turns;
    use crate::limits::Limits;

    fn turns(max_handshakes: usize) -> Turns {
        Turns::new(&Limits {
            max_handshakes,
            ..Limits::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_has_its_deadline() {
        let (turns, started) = (turns(2), Instant::now());
        let error = turns.run(pending::<io::Result<()>>()).await.unwrap_err();
        assert_eq!(error, "the client did not finish the handshake in 10s");
        assert_eq!(started.elapsed(), Duration::from_secs(10));
        assert_eq!(turns.run(ready(Ok(7))).await, Ok(7));
        let failed = ready(Err::<(), _>(io::Error::other("no")));
        assert_eq!(turns.run(failed).await, Err("no".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_finishes_none_keeps_nobody_out() {
        let (turns, started) = (turns(1), Instant::now());
        let slow = turns.run(pending::<io::Result<()>>());
        let honest = async {
            let done = turns.run(ready(Ok(()))).await;
            (done, started.elapsed())
        };
        let (slow, honest) = tokio::join!(slow, honest);
        let gave_way = "a handshake that took long gave way to others";
        assert_eq!(slow.unwrap_err(), gave_way);
        assert_eq!(honest, (Ok(()), Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_turn_ends_at_the_deadline() {
        let turns = turns(0);
        let started = Instant::now();
        let error = turns.run(ready(Ok(()))).await.unwrap_err();
        assert_eq!(error, "no turn for the handshake in 10s");
        assert_eq!(started.elapsed(), Duration::from_secs(10));
    }
}
