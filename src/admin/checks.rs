//! Checks of the application for whoever may not reach it: a kubelet whose own checks would
//! meet the mTLS of the sidecar. Only what was configured can be checked.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use http::{StatusCode, uri::PathAndQuery};
use tokio::{net::TcpStream, time::timeout};
use tonic::{Request, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

/// The paths of all checks.
pub(super) const PREFIX: &str = "/probe/";
/// For a whole check, as long as a kubelet waits by default.
const DEADLINE: Duration = Duration::from_secs(1);
const SERVING: i32 = 1;

/// What of the application may be checked, and where it listens.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// Ports that take connections.
    pub tcp: Vec<u16>,
    /// Ports and services that answer for their health (grpc.health.v1).
    pub grpc: Vec<(u16, Option<String>)>,
    /// Addresses of this workload; tried after those of loopback.
    pub addresses: Vec<IpAddr>,
}

/// A check that has not succeeded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// Nobody may ask for this.
    Unknown(String),
    /// The application is not well.
    Unwell(String),
}

impl Failed {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::Unwell(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(words) | Self::Unwell(words) => f.write_str(words),
        }
    }
}

/// grpc.health.v1.HealthCheckRequest
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// grpc.health.v1.HealthCheckResponse
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Debug, PartialEq, Eq)]
enum Check {
    Tcp(u16),
    Grpc(u16, Option<String>),
}

impl Checks {
    /// Runs the check of a path after [`PREFIX`].
    pub(super) async fn run(&self, path: &str) -> Result<(), Failed> {
        let check = self.find(path)?;
        let (checking, port) = match &check {
            Check::Tcp(port) | Check::Grpc(port, _) => (self.check(&check), *port),
        };
        match timeout(DEADLINE, checking).await {
            Ok(result) => result.map_err(Failed::Unwell),
            Err(_) => Err(Failed::Unwell(format!(
                "port {port} has not answered in {} s",
                DEADLINE.as_secs()
            ))),
        }
    }

    fn find(&self, path: &str) -> Result<Check, Failed> {
        let unknown =
            |setting: &str| Failed::Unknown(format!("{path} is not in WEFT_PROXY_{setting}"));
        if let Some(port) = path.strip_prefix("tcp/") {
            let port = port.parse().ok().filter(|port| self.tcp.contains(port));
            return port.map(Check::Tcp).ok_or_else(|| unknown("TCP_PROBES"));
        }
        let Some(rest) = path.strip_prefix("grpc/") else {
            let words = format!("{path}: there are tcp/<port> and grpc/<port>[/<service>]");
            return Err(Failed::Unknown(words));
        };
        let (port, service) = match rest.split_once('/') {
            Some((port, service)) => (port, Some(service.to_owned())),
            None => (rest, None),
        };
        let asked = port.parse().ok().map(|port| (port, service));
        let asked = asked.filter(|asked| self.grpc.contains(asked));
        let (port, service) = asked.ok_or_else(|| unknown("GRPC_PROBES"))?;
        Ok(Check::Grpc(port, service))
    }

    async fn check(&self, check: &Check) -> Result<(), String> {
        match check {
            Check::Tcp(port) => self.reach(*port).await.map(drop),
            Check::Grpc(port, service) => {
                let address = self.reach(*port).await?;
                serves(address, service.as_deref().unwrap_or_default()).await
            }
        }
    }

    /// Where the application listens on a port: on loopback, or on an address of the workload.
    async fn reach(&self, port: u16) -> Result<SocketAddr, String> {
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let mut refused = String::new();
        for ip in loopback.iter().chain(&self.addresses) {
            let address = SocketAddr::new(*ip, port);
            match TcpStream::connect(address).await {
                Ok(_) => return Ok(address),
                Err(error) if refused.is_empty() => refused = format!("{address}: {error}"),
                Err(_) => {}
            }
        }
        Err(refused)
    }
}

/// Asks for the health of a service over HTTP/2 without TLS.
async fn serves(address: SocketAddr, service: &str) -> Result<(), String> {
    let words = |what: &dyn fmt::Display| format!("{address}: {what}");
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| words(&e))?;
    let channel = endpoint.connect().await.map_err(|e| words(&e))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|e| words(&e))?;
    let request = Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    match client.unary(request, path, codec).await {
        Ok(answer) if answer.get_ref().status == SERVING => Ok(()),
        Ok(answer) => Err(words(&match answer.get_ref().status {
            2 => "NOT_SERVING",
            3 => "SERVICE_UNKNOWN",
            _ => "UNKNOWN",
        })),
        Err(status) => Err(words(&format!("{}: {}", status.code(), status.message()))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::{Check, Checks, Failed};

    #[test]
    fn only_what_is_configured_may_be_asked_for() {
        let checks = Checks {
            tcp: vec![9000],
            grpc: vec![(50_051, None), (50_052, Some("shop.Cart".into()))],
            addresses: Vec::new(),
        };
        for (path, expected) in [
            ("tcp/9000", Some(Check::Tcp(9000))),
            ("grpc/50051", Some(Check::Grpc(50_051, None))),
            (
                "grpc/50052/shop.Cart",
                Some(Check::Grpc(50_052, Some("shop.Cart".into()))),
            ),
            ("tcp/9001", None),
            ("tcp/x", None),
            ("grpc/50051/shop.Cart", None),
            ("grpc/50052", None),
            ("udp/53", None),
        ] {
            let found = checks.find(path);
            let unknown = matches!(found, Err(Failed::Unknown(_)));
            assert_eq!(unknown, expected.is_none(), "{path}: {found:?}");
            assert_eq!(found.ok(), expected, "{path}");
        }
    }

    #[tokio::test]
    async fn a_port_is_open_or_the_answer_says_what_is_wrong() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let checks = Checks {
            tcp: vec![port],
            ..Checks::default()
        };
        let path = format!("tcp/{port}");
        assert_eq!(checks.run(&path).await, Ok(()));
        drop(listener);
        let failed = checks.run(&path).await.unwrap_err();
        assert_eq!(failed.status(), 503);
        assert!(
            failed
                .to_string()
                .starts_with(&format!("127.0.0.1:{port}: ")),
            "{failed}"
        );
    }
}
