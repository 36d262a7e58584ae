//! Opening connections: TCP, then mTLS with the identities that may answer.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpStream;
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
    /// The address.
    pub address: SocketAddr,
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
        let tcp = tokio::time::timeout(dest.timeout, TcpStream::connect(address))
            .await
            .map_err(|_| {
                let ms = dest.timeout.as_millis();
                Error::new(
                    Reason::ConnectTimeout,
                    format!("{address}: no answer in {ms} ms"),
                )
            })?
            .map_err(|error| connect_error(address, &error))?;
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

fn connect_error(address: SocketAddr, error: &io::Error) -> Error {
    let reason = match error.kind() {
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        // Unreachable hosts and refused ports alike: nobody is there.
        _ => Reason::ConnectRefused,
    };
    Error::new(reason, format!("{address}: {error}"))
}
