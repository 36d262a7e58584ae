//! Calls of the application that the kernel led here: the address that they were made to tells
//! the destination, whatever is said on them.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;

use super::{
    connection::{Context, dispatch, pick_chain, refuse, unless_closing},
    opaque,
};
use crate::{
    cluster::Original,
    config::{AppProtocol, Filter, PortProtocol, RouteSource, TransportProtocol},
    error::{Error, Reason},
    snapshot::{LiveFilter, LiveHost, LiveListener},
    telemetry::Tls,
    worker::Found,
};

/// Serves a connection that was made to `destination`.
pub(super) async fn serve(
    mut context: Context,
    tcp: TcpStream,
    destination: SocketAddr,
) -> Result<(), Error> {
    context.original = Some(Original {
        destination,
        source: None,
    });
    let name = format!("{}/{destination}", table_of(&context.listener));
    match context.worker.shared.look_up(&name).await {
        Some(Found::Host(host)) => {
            context.authority = Some(destination.to_string().into());
            service(&context, tcp, &host).await
        }
        Some(Found::Absent) => elsewhere(&context, tcp, Reason::UnknownDestination).await,
        None if may_be_outside(destination, context.worker.shared.is_connected()) => {
            elsewhere(&context, tcp, Reason::NotReady).await
        }
        None => denied(&context, tcp, Reason::NotReady).await,
    }
}

/// Whether a destination that nobody could tell about may be called as one outside of the
/// mesh. Not while there is a control plane that may answer late: a service of the mesh would
/// be called in plaintext. Never a virtual address, which nothing outside has.
fn may_be_outside(destination: SocketAddr, connected: bool) -> bool {
    let is_virtual = match destination.ip() {
        IpAddr::V4(ip) => ip.octets()[..2] == VIRTUAL,
        IpAddr::V6(_) => false,
    };
    !connected && !is_virtual
}

/// 240.240.0.0/16, out of which the control plane gives services their addresses.
const VIRTUAL: [u8; 2] = [240, 240];

/// To a service or a workload of the mesh.
async fn service(context: &Context, tcp: TcpStream, host: &LiveHost) -> Result<(), Error> {
    let (io, protocol) = match host.config.protocol {
        PortProtocol::Tcp => return opaque::forward(context, tcp.into(), &host.tcp).await,
        PortProtocol::Http => unless_closing(&context.worker, context.http(tcp.into())).await?,
        PortProtocol::Detected => {
            let Some(http) = opaque::race(context, tcp.into(), &host.tcp).await? else {
                return Ok(());
            };
            http
        }
    };
    let Some(chain) = pick_chain(
        &context.listener,
        TransportProtocol::RawBuffer,
        AppProtocol::Http1,
    ) else {
        return Err(Error::new(
            Reason::Internal,
            "the listener of captured calls has no chain for HTTP",
        ));
    };
    dispatch(context, chain, io, protocol, (Tls::None, None)).await
}

/// To an address that is no service: as it is, if the mesh lets it.
async fn elsewhere(context: &Context, tcp: TcpStream, reason: Reason) -> Result<(), Error> {
    let listener = &context.listener;
    let chain = pick_chain(listener, TransportProtocol::RawBuffer, AppProtocol::Tcp);
    match chain.map(|chain| &listener.chains[chain]) {
        Some(LiveFilter::Tcp(backends)) => opaque::forward(context, tcp.into(), backends).await,
        _ => denied(context, tcp, reason).await,
    }
}

async fn denied(context: &Context, tcp: TcpStream, reason: Reason) -> Result<(), Error> {
    tracing::info!(
        reason = reason.slug(),
        destination = ?context.original.map(|original| original.destination),
        "call refused"
    );
    refuse(context, tcp, reason).await
}

/// The route table whose destinations are looked up by name.
fn table_of(listener: &LiveListener) -> &str {
    let mut filters = listener.config.chains.iter().map(|chain| &chain.filter);
    let table = filters.find_map(|filter| match filter {
        Filter::Http(http) => match &http.routes {
            RouteSource::Rds(name) => Some(&**name),
            RouteSource::Inline(table) => Some(&*table.name),
        },
        Filter::Tcp(_) => None,
    });
    table.unwrap_or("outbound")
}

#[cfg(test)]
mod tests {
    use super::may_be_outside;

    #[test]
    fn silence_is_no_permission_to_leave_the_mesh() {
        for (destination, connected, expected) in [
            ("93.184.216.34:443", false, true),
            ("[2001:db8::1]:443", false, true),
            ("93.184.216.34:443", true, false),
            ("240.240.1.1:80", false, false),
            ("240.240.1.1:80", true, false),
            ("240.241.1.1:80", false, true),
        ] {
            let found = may_be_outside(destination.parse().unwrap(), connected);
            assert_eq!(found, expected, "{destination} {connected}");
        }
    }
}
