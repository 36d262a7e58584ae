//! The DNS listener: what the snapshot says of names, and the sockets that it is asked on.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use weft_handover::Socket;

use super::sockets::Inherited;
use crate::{
    config::{Addresses, DnsConfig},
    dns::{self, Answer, Names},
    worker::{Found, Shared},
};

/// Names as the listener's configuration has them, looked up in the mesh.
pub(super) fn names(shared: &Arc<Shared>, config: &DnsConfig) -> Names {
    let shared = shared.clone();
    Names {
        cluster_domain: config.cluster_domain.clone(),
        external: config.external.as_slice().into(),
        lookup: Arc::new(move |host| {
            let shared = shared.clone();
            let name = format!("dns/{host}");
            Box::pin(async move { answer(shared.look_up(&name).await) })
        }),
    }
}

fn answer(found: Option<Found>) -> Answer {
    match found {
        Some(Found::Host(host)) => match &host.config.addresses {
            Some(Addresses { addresses, ttl }) => Answer::Addresses {
                addresses: addresses.clone(),
                ttl: *ttl,
            },
            None => Answer::NotOurs,
        },
        Some(Found::Absent) => Answer::NotOurs,
        None => Answer::Unknown,
    }
}

/// Serves DNS at one address from `go` until `stop` is set. Returns its sockets, to be passed on.
///
/// # Errors
/// When the address cannot be bound; the text names it.
pub(super) fn serve(
    shared: &Arc<Shared>,
    inherited: &Inherited,
    (name, address): (&str, std::net::SocketAddr),
    names: &Arc<ArcSwap<Names>>,
    stop: &watch::Receiver<bool>,
    go: &watch::Receiver<bool>,
) -> Result<Vec<Socket>, String> {
    let words = |error: std::io::Error| format!("{address}: {error}");
    let arrival = crate::config::Arrival::Redirected;
    let mut sockets = inherited.tcp(name, address, arrival, 1)?;
    let udp = inherited.udp(name, address)?;
    for tcp in &sockets {
        let tcp = tcp.try_clone().and_then(Socket::into_tcp).map_err(words)?;
        let udp = udp.try_clone().and_then(Socket::into_udp).map_err(words)?;
        let serving = dns::serve(
            tokio::net::UdpSocket::from_std(udp).map_err(words)?,
            tokio::net::TcpListener::from_std(tcp).map_err(words)?,
            names.clone(),
            shared.resolver.clone(),
            shared.metrics.clone(),
        );
        let (mut stop, mut go) = (stop.clone(), go.clone());
        tokio::spawn(async move {
            // A sender that is gone means that it never comes to that.
            if go.wait_for(|go| *go).await.is_err() {
                return;
            }
            tokio::select! {
                () = serving => {}
                // The sender is dropped with the listener.
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
    }
    sockets.push(udp);
    Ok(sockets)
}
