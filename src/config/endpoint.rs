//! `envoy.config.endpoint.v3.ClusterLoadAssignment`.

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use weft_api::envoy::config::{
    core::v3::{HealthStatus, address, socket_address},
    endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint},
};
use weft_certs::spiffe::SpiffeId;

use super::problems::Problems;

/// The endpoints of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// `cluster_name`.
    pub cluster: Arc<str>,
    /// In the order of the resource, each address once.
    pub endpoints: Vec<EndpointConfig>,
    /// Fields that were set and have no effect.
    pub warnings: Vec<String>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// Metadata `identity`: the SPIFFE ID that it must prove.
    pub identity: Option<SpiffeId>,
    /// Metadata `workload`; empty if absent.
    pub workload: Arc<str>,
    /// `load_balancing_weight`, at least 1.
    pub weight: u32,
    /// `health_status`.
    pub health: Health,
}

/// Whether an endpoint takes new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// `UNKNOWN`, `HEALTHY`, `DEGRADED`.
    Healthy,
    /// `DRAINING`: finishes what it has.
    Draining,
    /// `UNHEALTHY`, `TIMEOUT`, and what a newer sender may add.
    Unhealthy,
}

/// Reads an assignment; its name is checked by the caller, which knows where it came from.
pub(super) fn read(p: &mut Problems, from: &ClusterLoadAssignment) -> Endpoints {
    if let Some(policy) = &from.policy {
        p.ignored(!policy.drop_overloads.is_empty(), "policy.drop_overloads");
        p.ignored(
            policy.endpoint_stale_after.is_some(),
            "policy.endpoint_stale_after",
        );
    }
    let mut endpoints = Vec::new();
    let mut seen = HashSet::new();
    for (index, locality) in from.endpoints.iter().enumerate() {
        p.at(format_args!("endpoints[{index}]"), |p| {
            if !usable(p, locality) {
                return;
            }
            for (index, endpoint) in locality.lb_endpoints.iter().enumerate() {
                p.at(format_args!("lb_endpoints[{index}]"), |p| {
                    let Some(endpoint) = read_endpoint(p, endpoint) else {
                        return;
                    };
                    if seen.insert(endpoint.address) {
                        endpoints.push(endpoint);
                    } else {
                        p.warn("", format_args!("{} is there twice", endpoint.address));
                    }
                });
            }
        });
    }
    Endpoints {
        cluster: from.cluster_name.as_str().into(),
        endpoints,
        warnings: Vec::new(),
    }
}

/// Reads the one endpoint of a LOGICAL_DNS cluster: a name and a port.
pub(super) fn read_name(
    p: &mut Problems,
    from: Option<&ClusterLoadAssignment>,
) -> Option<(Arc<str>, u16)> {
    use socket_address::PortSpecifier::PortValue;
    let endpoints = from.map(|assignment| assignment.endpoints.as_slice());
    let endpoint = match endpoints {
        Some([locality]) => match locality.lb_endpoints.as_slice() {
            [endpoint] => endpoint.host_identifier.as_ref(),
            _ => None,
        },
        _ => None,
    };
    if let Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) = endpoint
        && let Some(address::Address::SocketAddress(socket)) =
            endpoint.address.as_ref().and_then(|a| a.address.as_ref())
        && let Some(PortValue(port @ 1..=65535)) = socket.port_specifier
        && !socket.address.is_empty()
    {
        return Some((socket.address.as_str().into(), port as u16));
    }
    p.reject("", "must have exactly one endpoint with a name and a port");
    None
}

fn usable(p: &mut Problems, from: &LocalityLbEndpoints) -> bool {
    if from.lb_config.is_some() {
        p.reject("lb_config", "is not supported; use lb_endpoints");
    }
    if from.priority > 0 {
        p.warn(
            "priority",
            format_args!("{} is above 0: these endpoints are not used", from.priority),
        );
    }
    from.priority == 0
}

fn read_endpoint(p: &mut Problems, from: &LbEndpoint) -> Option<EndpointConfig> {
    let address = match &from.host_identifier {
        Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) => p.at("endpoint", |p| {
            p.ignored(
                !endpoint.additional_addresses.is_empty(),
                "additional_addresses",
            );
            p.ignored(
                endpoint.health_check_config.is_some(),
                "health_check_config",
            );
            let address = p.address("address", endpoint.address.as_ref());
            if address.is_some_and(|a| a.port() == 0 || a.ip().is_unspecified()) {
                p.reject("address", "must be an address to connect to");
            }
            address
        }),
        Some(lb_endpoint::HostIdentifier::EndpointName(_)) => {
            p.reject("endpoint_name", "is not supported; use endpoint");
            None
        }
        None => {
            p.reject("endpoint", "is missing");
            None
        }
    };
    let metadata = from.metadata.as_ref();
    let identity = p.metadata_string(metadata, "identity").and_then(|text| {
        text.parse()
            .map_err(|error| {
                p.reject(
                    "metadata[weft.dev].identity",
                    format_args!("{text:?}: {error}"),
                );
            })
            .ok()
    });
    let workload = p.metadata_string(metadata, "workload").unwrap_or_default();
    let weight = from.load_balancing_weight.map_or(1, |w| w.value);
    if weight == 0 {
        p.reject("load_balancing_weight", "must be 1 or more");
    }
    Some(EndpointConfig {
        address: address?,
        identity,
        workload: workload.into(),
        weight,
        health: health(p, from.health_status),
    })
}

fn health(p: &mut Problems, from: i32) -> Health {
    match HealthStatus::try_from(from) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => {
            Health::Healthy
        }
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Health::Unhealthy,
        Err(_) => {
            p.warn(
                "health_status",
                format_args!("{from} is not known: taken as UNHEALTHY"),
            );
            Health::Unhealthy
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_api::{
        Kind,
        envoy::config::{
            core::v3::{Address, Metadata, Pipe, SocketAddress, address, socket_address},
            endpoint::v3::{
                Endpoint, cluster_load_assignment, endpoint, locality_lb_endpoints::LbConfig,
            },
        },
        google::protobuf::{Struct, UInt32Value, Value as Json, value::Kind as JsonKind},
    };

    use super::*;
    use crate::config::{
        Value,
        testing::{check, good},
    };

    fn socket(ip: &str, port: u32) -> Option<Address> {
        let address = SocketAddress {
            address: ip.into(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        };
        Some(Address {
            address: Some(address::Address::SocketAddress(address)),
        })
    }

    fn at(address: Option<Address>) -> LbEndpoint {
        LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
                address,
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn metadata(fields: &[(&str, JsonKind)]) -> Option<Metadata> {
        let fields = fields.iter().map(|(key, kind)| {
            let value = Json {
                kind: Some(kind.clone()),
            };
            ((*key).to_owned(), value)
        });
        let weft = Struct {
            fields: fields.collect(),
        };
        Some(Metadata {
            filter_metadata: [("weft.dev".to_owned(), weft)].into(),
            ..Default::default()
        })
    }

    fn text(value: &str) -> JsonKind {
        JsonKind::StringValue(value.into())
    }

    fn assignment(lb_endpoints: Vec<LbEndpoint>) -> ClusterLoadAssignment {
        ClusterLoadAssignment {
            cluster_name: "a.b:80".into(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn parsed(message: &ClusterLoadAssignment) -> Endpoints {
        match good(Kind::Endpoint, "a.b:80", message) {
            Value::Endpoints(value) => (*value).clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn endpoints() {
        let mut first = at(socket("10.0.0.1", 8080));
        first.health_status = HealthStatus::Draining as i32;
        first.load_balancing_weight = Some(UInt32Value { value: 3 });
        first.metadata = metadata(&[
            ("identity", text("spiffe://mesh.test/ns/b/sa/a")),
            ("workload", text("a-1")),
        ]);
        let second = at(socket("fd00::1", 80));
        let found = parsed(&assignment(vec![first, second.clone(), second]));
        let expect = Endpoints {
            cluster: "a.b:80".into(),
            endpoints: vec![
                EndpointConfig {
                    address: "10.0.0.1:8080".parse().expect("address"),
                    identity: "spiffe://mesh.test/ns/b/sa/a".parse().ok(),
                    workload: "a-1".into(),
                    weight: 3,
                    health: Health::Draining,
                },
                EndpointConfig {
                    address: "[fd00::1]:80".parse().expect("address"),
                    identity: None,
                    workload: "".into(),
                    weight: 1,
                    health: Health::Healthy,
                },
            ],
            warnings: vec!["endpoints[0].lb_endpoints[2]: [fd00::1]:80 is there twice".into()],
        };
        assert_eq!(found, expect);
        assert!(parsed(&assignment(Vec::new())).endpoints.is_empty());
    }

    #[test]
    fn health_statuses() {
        let check = |status: i32, expect| {
            let mut endpoint = at(socket("10.0.0.1", 80));
            endpoint.health_status = status;
            assert_eq!(
                parsed(&assignment(vec![endpoint])).endpoints[0].health,
                expect
            );
        };
        check(HealthStatus::Unknown as i32, Health::Healthy);
        check(HealthStatus::Healthy as i32, Health::Healthy);
        check(HealthStatus::Degraded as i32, Health::Healthy);
        check(HealthStatus::Draining as i32, Health::Draining);
        check(HealthStatus::Unhealthy as i32, Health::Unhealthy);
        check(HealthStatus::Timeout as i32, Health::Unhealthy);
        check(99, Health::Unhealthy);
    }

    #[test]
    fn warnings() {
        let mut message = assignment(vec![at(socket("10.0.0.1", 80))]);
        message.policy = Some(cluster_load_assignment::Policy {
            drop_overloads: vec![Default::default()],
            ..Default::default()
        });
        message.endpoints.push(LocalityLbEndpoints {
            priority: 1,
            lb_endpoints: vec![at(socket("10.0.0.2", 80))],
            ..Default::default()
        });
        let mut odd = at(socket("10.0.0.3", 80));
        odd.health_status = 99;
        if let Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &mut odd.host_identifier {
            endpoint.additional_addresses = vec![endpoint::AdditionalAddress::default()];
        }
        message.endpoints[0].lb_endpoints.push(odd);
        let found = parsed(&message);
        assert_eq!(found.endpoints.len(), 2);
        assert_eq!(
            found.warnings,
            [
                "policy.drop_overloads: has no effect",
                "endpoints[0].lb_endpoints[1].endpoint.additional_addresses: has no effect",
                "endpoints[0].lb_endpoints[1].health_status: 99 is not known: taken as UNHEALTHY",
                "endpoints[1].priority: 1 is above 0: these endpoints are not used",
            ]
        );
    }

    #[test]
    fn bad_endpoints() {
        let check = |endpoint: LbEndpoint, expect: &[&str]| {
            let expect: Vec<String> = expect
                .iter()
                .map(|line| format!("endpoints[0].lb_endpoints[0].{line}"))
                .collect();
            let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
            check(
                Kind::Endpoint,
                "a.b:80",
                &assignment(vec![endpoint]),
                &expect,
            );
        };
        check(LbEndpoint::default(), &["endpoint: is missing"]);
        check(
            at(None),
            &["endpoint.address: is missing; set socket_address"],
        );
        check(
            at(socket("post", 80)),
            &[
                "endpoint.address.socket_address.address: \"post\" is no IP address; names are not \
               resolved",
            ],
        );
        check(
            at(socket("10.0.0.1", 65536)),
            &["endpoint.address.socket_address.port_value: must be a number from 0 to 65535"],
        );
        check(
            at(socket("10.0.0.1", 0)),
            &["endpoint.address: must be an address to connect to"],
        );
        check(
            at(socket("0.0.0.0", 80)),
            &["endpoint.address: must be an address to connect to"],
        );
        check(
            at(Some(Address {
                address: Some(address::Address::Pipe(Pipe::default())),
            })),
            &["endpoint.address: only socket_address is supported"],
        );
        let mut udp = at(socket("10.0.0.1", 80));
        if let Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &mut udp.host_identifier
            && let Some(address) = &mut endpoint.address
            && let Some(address::Address::SocketAddress(socket)) = &mut address.address
        {
            socket.protocol = 1;
        }
        check(
            udp,
            &["endpoint.address.socket_address.protocol: only TCP is supported here"],
        );
        let named = LbEndpoint {
            host_identifier: Some(lb_endpoint::HostIdentifier::EndpointName("x".into())),
            ..Default::default()
        };
        check(named, &["endpoint_name: is not supported; use endpoint"]);
        let mut several = at(socket("10.0.0.1", 80));
        several.load_balancing_weight = Some(UInt32Value { value: 0 });
        several.metadata = metadata(&[
            ("identity", text("https://a")),
            ("workload", JsonKind::NumberValue(1.0)),
        ]);
        let Err(error) = "https://a".parse::<SpiffeId>() else {
            panic!("no SPIFFE ID");
        };
        check(
            several,
            &[
                &format!("metadata[weft.dev].identity: \"https://a\": {error}"),
                "metadata[weft.dev].workload: must be a string",
                "load_balancing_weight: must be 1 or more",
            ],
        );
    }

    #[test]
    fn bad_assignments() {
        let mut message = assignment(Vec::new());
        message.endpoints[0].lb_config =
            Some(LbConfig::LedsClusterLocalityConfig(Default::default()));
        check(
            Kind::Endpoint,
            "c.d:80",
            &message,
            &[
                "cluster_name: is \"a.b:80\", but the resource was sent as \"c.d:80\"",
                "endpoints[0].lb_config: is not supported; use lb_endpoints",
            ],
        );
    }
}
