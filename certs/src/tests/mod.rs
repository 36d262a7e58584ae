//! Tests through real TLS handshakes in memory: the SVID rules on both sides, and the
//! properties of our TLS configurations.

mod svid;
mod tls;

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::cert::WorkloadCert;
use crate::tls::provider;

/// A resolver that shows exactly the chain of `cert`, however bad.
fn show(cert: &WorkloadCert) -> Arc<SingleCertAndKey> {
    let key = provider()
        .key_provider
        .load_private_key(cert.key.clone_key())
        .unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(
        cert.chain.clone(),
        key,
    )))
}

/// Both ends after a handshake.
struct Ends {
    client: ClientConnection,
    server: ServerConnection,
}

/// Why a handshake failed at each end; the end that found the fault has the cause, the
/// other one the alert.
#[derive(Debug)]
struct Failed {
    client: Option<rustls::Error>,
    server: Option<rustls::Error>,
}

/// Carries bytes until both ends are silent.
fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Ends, Box<Failed>> {
    let name = ServerName::try_from("service.test").unwrap();
    let mut client = Connection::from(ClientConnection::new(Arc::clone(client), name).unwrap());
    let mut server = Connection::from(ServerConnection::new(Arc::clone(server)).unwrap());
    let mut failed = Failed {
        client: None,
        server: None,
    };
    while client.wants_write() || server.wants_write() {
        let error = carry(&mut client, &mut server);
        failed.server = failed.server.or(error);
        let error = carry(&mut server, &mut client);
        failed.client = failed.client.or(error);
    }
    match (client, server, &failed) {
        (
            Connection::Client(client),
            Connection::Server(server),
            Failed {
                client: None,
                server: None,
            },
        ) => {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            Ok(Ends { client, server })
        }
        _ => Err(Box::new(failed)),
    }
}

/// Moves what `from` has to say to `to`, and returns what `to` finds wrong with it.
fn carry(from: &mut Connection, to: &mut Connection) -> Option<rustls::Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    let mut error = None;
    while !rest.is_empty() {
        match to.read_tls(&mut rest) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Other => return error,
            Err(e) => panic!("{e}"),
        }
        if let Err(e) = to.process_new_packets() {
            error = error.or(Some(e));
            return error;
        }
    }
    error
}
