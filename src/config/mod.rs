//! xDS resources as validated values: parsing, and nothing that lives or waits.
//!
//! No protobuf type leaves this module. What parses is right for as long as it lives:
//! regexes are compiled, weights sum, durations are positive. What does not parse is a
//! [`Rejected`] that names every bad field, and the caller keeps the last good value.
//!
//! A field that Weft does not know is rejected when ignoring it would change who may talk to
//! whom or where requests go; else it is a line in the value's `warnings`, or nothing at all
//! when it only tunes Envoy.

mod cluster;
mod endpoint;
#[cfg(test)]
mod examples;
mod listener;
mod matcher;
mod problems;
mod route;
mod secret;
mod tls;

use std::{fmt, sync::Arc};

use prost::Message;
use weft_api::{
    Kind,
    envoy::config::{endpoint::v3::ClusterLoadAssignment, route::v3::RouteConfiguration},
};

pub use cluster::{ClusterConfig, ClusterType, HttpProtocol, LoadBalancing};
pub use endpoint::{EndpointConfig, Endpoints, Health};
pub use listener::{
    AppProtocol, Arrival, Direction, DnsConfig, DownstreamTls, Filter, HttpConfig, Listener,
    RouteSource, TcpConfig, TransportProtocol,
};
pub use matcher::PathMatcher;
use problems::Problems;
pub use route::{
    Addresses, DirectResponse, Domain, Forward, HostRewrite, PathRewrite, PortProtocol, Redirect,
    RedirectPath, RequestKey, Route, RouteAction, RouteMatch, RouteTable, VirtualHost,
    WeightedClusters,
};
pub use secret::TrustBundlePem;

/// A resource that parsed. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// LDS.
    Listener(Arc<Listener>),
    /// RDS.
    Route(Arc<RouteTable>),
    /// VHDS.
    VirtualHost(Arc<VirtualHost>),
    /// CDS.
    Cluster(Arc<ClusterConfig>),
    /// EDS.
    Endpoints(Arc<Endpoints>),
    /// SDS.
    Secret(Arc<TrustBundlePem>),
}

impl Value {
    /// Which kind of resource it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Listener(_) => Kind::Listener,
            Self::Route(_) => Kind::Route,
            Self::VirtualHost(_) => Kind::VirtualHost,
            Self::Cluster(_) => Kind::Cluster,
            Self::Endpoints(_) => Kind::Endpoint,
            Self::Secret(_) => Kind::Secret,
        }
    }

    /// Fields that were set and have no effect.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        match self {
            Self::Listener(value) => &value.warnings,
            Self::Route(value) => &value.warnings,
            Self::VirtualHost(value) => &value.warnings,
            Self::Cluster(value) => &value.warnings,
            Self::Endpoints(value) => &value.warnings,
            Self::Secret(_) => &[],
        }
    }
}

/// A resource that cannot be used, with everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Which kind of resource.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// At least one, as `field: reason`.
    pub problems: Vec<String>,
}

impl fmt::Display for Rejected {
    /// One line per problem, as `name: field: reason`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}: {problem}", self.name)?;
        }
        Ok(())
    }
}

impl std::error::Error for Rejected {}

/// Reads the resource that was sent as `name`.
///
/// # Errors
/// When the bytes are no such message, or a field has a value that Weft cannot honour.
pub fn parse(kind: Kind, name: &str, bytes: &[u8]) -> Result<Value, Rejected> {
    let mut problems = Problems::default();
    let value = read(&mut problems, kind, name, bytes);
    let rejected = problems.into_rejected();
    match (value, rejected) {
        (Some(value), None) => Ok(value),
        (_, rejected) => Err(Rejected {
            kind,
            name: name.into(),
            problems: rejected.expect("a reader gives no value only after it reported a problem"),
        }),
    }
}

fn read(p: &mut Problems, kind: Kind, name: &str, bytes: &[u8]) -> Option<Value> {
    Some(match kind {
        Kind::Listener => {
            let message = decode(p, bytes)?;
            let mut value = listener::read(p, name, &message)?;
            value.warnings = p.take_warnings();
            Value::Listener(Arc::new(value))
        }
        Kind::Route => {
            let message: RouteConfiguration = decode(p, bytes)?;
            p.name("name", &message.name, name);
            let mut value = route::read_table(p, &message)?;
            value.warnings = p.take_warnings();
            Value::Route(Arc::new(value))
        }
        Kind::VirtualHost => {
            let message = decode(p, bytes)?;
            let mut value = route::read_host(p, &message)?;
            value.warnings = p.take_warnings();
            Value::VirtualHost(Arc::new(value))
        }
        Kind::Cluster => {
            let message = decode(p, bytes)?;
            let mut value = cluster::read(p, name, &message)?;
            value.warnings = p.take_warnings();
            Value::Cluster(Arc::new(value))
        }
        Kind::Endpoint => {
            let message: ClusterLoadAssignment = decode(p, bytes)?;
            p.name("cluster_name", &message.cluster_name, name);
            let mut value = endpoint::read(p, &message);
            value.warnings = p.take_warnings();
            Value::Endpoints(Arc::new(value))
        }
        Kind::Secret => {
            let message = decode(p, bytes)?;
            Value::Secret(Arc::new(secret::read(p, name, &message)?))
        }
    })
}

fn decode<M: Message + Default>(p: &mut Problems, bytes: &[u8]) -> Option<M> {
    M::decode(bytes)
        .map_err(|error| p.reject("", format_args!("the bytes are no such message: {error}")))
        .ok()
}

#[cfg(test)]
mod testing {
    //! Checks that every kind of resource shares.

    use super::{Kind, Message, Value, parse};

    /// Parses `message` and compares with `Ok(())` or with all the problems.
    pub(super) fn check<M: Message>(kind: Kind, name: &str, message: &M, expect: &[&str]) {
        let found = match parse(kind, name, &message.encode_to_vec()) {
            Ok(_) => Vec::new(),
            Err(rejected) => rejected.problems,
        };
        assert_eq!(found, expect, "problems of {name}");
    }

    /// The value of a message that must parse.
    pub(super) fn good<M: Message>(kind: Kind, name: &str, message: &M) -> Value {
        match parse(kind, name, &message.encode_to_vec()) {
            Ok(value) => {
                assert_eq!(value.kind(), kind);
                value
            }
            Err(rejected) => panic!("{kind} {rejected}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_message_are_rejected_in_every_kind() {
        for kind in Kind::ALL {
            let rejected = parse(kind, "x", &[0xff, 0xff, 0xff]).expect_err("garbage");
            assert_eq!((rejected.kind, &*rejected.name), (kind, "x"));
            assert_eq!(rejected.problems.len(), 1);
            assert!(
                rejected.problems[0].starts_with("resource: the bytes are no such message: "),
                "{rejected}"
            );
        }
    }

    #[test]
    fn an_empty_message_is_rejected_or_empty_and_never_panics() {
        for kind in Kind::ALL {
            let parsed = parse(kind, "", &[]);
            let usable = matches!(kind, Kind::Route | Kind::Endpoint);
            assert_eq!(parsed.is_ok(), usable, "{kind}: {parsed:?}");
        }
    }

    #[test]
    fn display_has_one_line_per_problem() {
        let rejected = Rejected {
            kind: Kind::Cluster,
            name: "a.b:80".into(),
            problems: vec!["type: x".into(), "lb_policy: y".into()],
        };
        assert_eq!(
            rejected.to_string(),
            "a.b:80: type: x\na.b:80: lb_policy: y"
        );
    }
}
