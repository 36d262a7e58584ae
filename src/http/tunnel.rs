//! What follows a switch of protocols: WebSocket after 101, and CONNECT tunnels.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;

use super::{Connection, HandedOver, HttpVersion, serve};
use crate::{
    cluster::Pick,
    config::AppProtocol,
    io::Io,
    tcp,
    telemetry::{ConnectionMetrics, StreamInfo},
    upstream::Lease,
};

/// Copies between the two sides of a switched connection until both have closed. The record
/// of the stream ends with it.
pub(super) fn splice(
    downstream: OnUpgrade,
    upstream: OnUpgrade,
    info: Box<StreamInfo>,
    held: (Pick, Lease, HandedOver),
) {
    tokio::spawn(async move {
        let (mut info, _held) = (info, held);
        let (downstream, upstream) = match tokio::join!(downstream, upstream) {
            (Ok(downstream), Ok(upstream)) => (downstream, upstream),
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!(%error, "the protocol switch did not happen");
                return;
            }
        };
        let end = tcp::copy(
            &mut Io::from(downstream),
            &mut Io::from(upstream),
            tcp::IDLE,
            None,
        )
        .await;
        info.bytes_out = end.to_client;
        if let Some(reason) = end.reason {
            info.reason = reason;
        }
    });
}

/// Ends a CONNECT here: the client's bytes go to the cluster as they are.
pub(super) fn connect_tcp(
    downstream: OnUpgrade,
    mut upstream: Io,
    info: Box<StreamInfo>,
    held: (Pick, HandedOver),
    metrics: ConnectionMetrics,
) {
    tokio::spawn(async move {
        let (mut info, _held) = (info, held);
        let Ok(downstream) = downstream.await else {
            return;
        };
        metrics.opened();
        let mut downstream = Io::from(downstream);
        let end = tcp::copy(&mut downstream, &mut upstream, tcp::IDLE, Some(&metrics)).await;
        info.bytes_out = end.to_client;
        if let Some(reason) = end.reason {
            info.reason = reason;
        }
        metrics.closed(end.reason.unwrap_or(crate::error::Reason::None));
    });
}

/// Ends a CONNECT here and serves the HTTP inside it, for this one authority. Its host is
/// looked up for each request: a tunnel follows the configuration.
pub(super) fn connect_http(
    downstream: OnUpgrade,
    outer: &Arc<Connection>,
    authority: Box<str>,
    held: HandedOver,
) {
    let mut inner = Connection::new(
        outer.worker.clone(),
        outer.listener.clone(),
        outer.chain,
        outer.tls,
        outer.peer.clone(),
        outer.pulse.account.clone(),
    );
    inner.only_authority = Some(authority);
    // Boxed: a connection that serves a tunnel that serves a connection would be a type
    // that contains itself.
    let task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
        let _held = held;
        let Ok(downstream) = downstream.await else {
            return;
        };
        let head = inner.worker.shared.limits.head_timeout;
        let detecting = crate::detect::http(Io::from(downstream), tcp::IDLE, head);
        let drain = &inner.worker.shared.drain;
        let detected = tokio::select! {
            detected = detecting => detected,
            () = drain.last_chance() => return,
        };
        let Ok((io, protocol)) = detected else {
            return;
        };
        let version = match protocol {
            AppProtocol::Http2 => HttpVersion::Http2,
            AppProtocol::Http1 | AppProtocol::Tcp => HttpVersion::Http1,
        };
        serve(Arc::new(inner), io, version).await;
    });
    tokio::spawn(task);
}
