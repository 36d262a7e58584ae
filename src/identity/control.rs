//! The connection to the control plane: gRPC over TLS, with our SVID once we have one.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use weft_certs::{
    PinnedRoot, SystemClock,
    tls::client_config,
    verify::{peer_id, svid_error_of_io},
};

use super::IdentityStore;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Path of the control plane's SPIFFE ID.
const CONTROL_PATH: &str = "/ns/weft-system/sa/weft-control";

/// How to know the control plane before there is a trust bundle.
#[derive(Clone, Copy, Debug)]
pub struct FirstContact {
    /// SHA-256 of the root certificate, from the join token.
    pub root: [u8; 32],
}

/// Where the control plane is and how to know it.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// `host:port`.
    pub address: Arc<str>,
    /// From the join token; without one an identity is needed from the start.
    pub first_contact: Option<FirstContact>,
    /// Our identity, as soon as there is one.
    pub identity: Arc<IdentityStore>,
}

impl ControlPlane {
    /// Opens a connection.
    ///
    /// # Errors
    /// When nothing answers, or what answers is not our control plane.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let this = self.clone();
        // The scheme is only a name: the connector below does the TLS.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(CONNECT_TIMEOUT)
            .keep_alive_while_idle(true);
        endpoint
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let this = this.clone();
                async move { this.dial().await.map(TokioIo::new) }
            }))
            .await
    }

    async fn dial(&self) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(&*self.address).await?;
        tcp.set_nodelay(true)?;
        let config = match (self.identity.valid_id(), self.identity.state()) {
            (Some(_), Some(state)) => state.control_client(),
            _ => {
                let first = self.first_contact.ok_or_else(|| {
                    io::Error::other("no valid certificate and no join token to get one with")
                })?;
                let time = Arc::new(SystemClock);
                let pinned = PinnedRoot::new(first.root, time);
                Arc::new(client_config(Arc::new(pinned), None, &[b"h2"]))
            }
        };
        let name = ServerName::try_from("weft-control").expect("a constant valid name");
        let handshake = TlsConnector::from(config).connect(name, tcp).await;
        let stream = handshake.map_err(|error| {
            // rustls prints its enum; what is wrong with the peer is inside.
            let words = svid_error_of_io(&error).map(ToString::to_string);
            words.map_or(error, io::Error::other)
        })?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = peer_id(chain).map_err(|e| io::Error::other(e.to_string()))?;
        if peer.path() != CONTROL_PATH {
            let text = format!(
                "{} answers as {peer}, which is no control plane",
                self.address
            );
            return Err(io::Error::other(text));
        }
        if let Some(own) = self.identity.id()
            && own.trust_domain() != peer.trust_domain()
        {
            return Err(io::Error::other(format!(
                "{peer} is not of our trust domain"
            )));
        }
        Ok(stream)
    }
}
