//! `v1 Service`.

use std::net::IpAddr;

use super::field::{Field, Object};
use super::{Content, Meta, Reference, check, label};
use crate::model::{Policy, Protocol, Service, ServicePort, Target, is_virtual};

pub(super) fn decode(object: &Object<'_>, meta: &Meta) -> (Option<Content>, Vec<Reference>) {
    let mut service = Service {
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        ports: Vec::new(),
        headless: false,
        addresses: Vec::new(),
        external_name: None,
        selector: std::collections::BTreeMap::new(),
        workloads: Vec::new(),
        routes: Vec::new(),
        policy: Policy::default(),
    };
    if !check::is_label(&meta.name) && !meta.name.is_empty() {
        object.error(
            format!("`{}` is not a valid name of a Service", meta.name),
            "a service is a DNS label: it has no dots and at most 63 characters",
        );
    }
    let Some(field) = object.required("spec") else {
        return (None, Vec::new());
    };
    let Some(spec) = field.object() else {
        return (None, Vec::new());
    };
    let kind = decode_type(&spec);
    let ports = spec.required("ports");
    if let Some(ports) = &ports {
        decode_ports(ports, &mut service.ports);
    }
    let selector = spec.optional("selector");
    if let Some(selector) = &selector {
        service.selector = selector.labels();
    }
    decode_cluster_ips(&spec, &mut service);
    match kind {
        Kind::Inside => {
            if service.selector.is_empty() {
                field.warning(
                    "no `selector`: no workload is behind this service",
                    "select workloads by their labels",
                );
            }
            if let Some(name) = spec.optional("externalName") {
                name.error(
                    "`externalName` is for services of `type: ExternalName`",
                    "add that type, or remove the field",
                );
            }
        }
        Kind::External => decode_external(&spec, &mut service, selector.as_ref(), ports.as_ref()),
    }
    check_sharing(&spec);
    spec.harmless(&[
        "allocateLoadBalancerNodePorts",
        "externalTrafficPolicy",
        "healthCheckNodePort",
        "ipFamilies",
        "ipFamilyPolicy",
        "loadBalancerClass",
        "loadBalancerIP",
        "loadBalancerSourceRanges",
        "publishNotReadyAddresses",
        "sessionAffinityConfig",
    ]);
    spec.unsupported(&["externalIPs", "trafficDistribution"]);
    spec.finish();
    (Some(Content::Service(service)), Vec::new())
}

/// Where what is behind a service is.
#[derive(Clone, Copy)]
enum Kind {
    /// Workloads of the mesh.
    Inside,
    /// A host outside of the mesh.
    External,
}

fn decode_type(spec: &Object<'_>) -> Kind {
    let kinds = [
        ("ClusterIP", Kind::Inside),
        ("NodePort", Kind::Inside),
        ("LoadBalancer", Kind::Inside),
        ("ExternalName", Kind::External),
    ];
    spec.optional("type")
        .and_then(|field| field.choice(&kinds))
        .unwrap_or(Kind::Inside)
}

/// A service outside of the mesh: its name, and nothing that is about workloads.
fn decode_external(
    spec: &Object<'_>,
    service: &mut Service,
    selector: Option<&Field<'_>>,
    ports: Option<&Field<'_>>,
) {
    service.external_name = spec.required("externalName").and_then(|f| host_name(&f));
    if let Some(selector) = selector.filter(|_| !service.selector.is_empty()) {
        selector.error(
            "no workload is behind an ExternalName service",
            "remove `selector`, or `type: ExternalName`",
        );
    }
    if (service.headless || !service.addresses.is_empty())
        && let Some(field) = spec.optional("clusterIP").or(spec.optional("clusterIPs"))
    {
        field.error(
            "an ExternalName service has no cluster IP",
            "remove the field: the mesh gives it a virtual address",
        );
    }
    for port in &service.ports {
        if port.target != Target::Number(port.port)
            && let Some(ports) = ports
        {
            ports.error(
                format!("port {} has another `targetPort`", port.port),
                "connections to an ExternalName service go to `port`: write the port of the host there",
            );
        }
    }
}

fn host_name(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let name = text.to_ascii_lowercase();
    if check::is_host_name(&name) {
        return Some(name);
    }
    let help = if text.parse::<IpAddr>().is_ok() {
        "an address is not a name: write the name of the host; addresses outside of the mesh need no Service"
    } else {
        "write the full name of a host, without a dot at its end, for example api.example.com"
    };
    field.error(format!("`{text}` is not a DNS name"), help);
    None
}

/// `clusterIP` and `clusterIPs`, which say the same twice.
fn decode_cluster_ips(spec: &Object<'_>, service: &mut Service) {
    // Kubernetes writes an empty text for "not yet".
    let given = |field: &Field<'_>| field.text().is_some_and(|text| !text.is_empty());
    let one = spec.optional("clusterIP").filter(given);
    let many = spec.optional("clusterIPs").map(|f| f.items(2));
    let many: Vec<Field<'_>> = many.unwrap_or_default().into_iter().filter(given).collect();
    if let (Some(one), Some(first)) = (&one, many.first())
        && one.text() != first.text()
    {
        first.error(
            format!(
                "`clusterIPs` begins with {}, but `clusterIP` is {}",
                first.text().unwrap_or_default(),
                one.text().unwrap_or_default()
            ),
            "the first of `clusterIPs` is `clusterIP`: make them the same, or remove one of the fields",
        );
        return;
    }
    let fields = if many.is_empty() {
        one.into_iter().collect()
    } else {
        many
    };
    for field in &fields {
        if field.text() == Some("None") {
            service.headless = true;
            if fields.len() > 1 {
                field.error("`None` stands alone", "remove the other entries");
            }
            continue;
        }
        let Some(address) = cluster_ip(field) else {
            continue;
        };
        let same_family = |other: &IpAddr| other.is_ipv4() == address.is_ipv4();
        if service.addresses.contains(&address) {
            field.error(format!("{address} is given twice"), "remove one of them");
        } else if service.addresses.iter().any(same_family) {
            field.error(
                format!("{address} is a second address of its family"),
                "a service has at most one IPv4 and one IPv6 address",
            );
        }
        service.addresses.push(address);
    }
}

fn cluster_ip(field: &Field<'_>) -> Option<IpAddr> {
    let text = field.text()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        field.error(
            format!("`{text}` is not an IP address"),
            "write an IP address, or None; without the field the mesh gives the service an address",
        );
        return None;
    };
    let address = address.to_canonical();
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        field.error(
            format!("{address} cannot be the address of a service"),
            "write an address of a network that nobody else uses, or remove the field",
        );
    }
    if is_virtual(address) {
        field.error(
            format!("{address} is in 240.240.0.0/16, which the mesh gives away itself"),
            "remove the field",
        );
    }
    Some(address)
}

/// What would spread requests otherwise than the mesh does.
fn check_sharing(spec: &Object<'_>) {
    for (name, only) in [
        ("sessionAffinity", "None"),
        ("internalTrafficPolicy", "Cluster"),
    ] {
        if let Some(field) = spec.optional(name)
            && let Some(value) = field.text()
            && value != only
        {
            field.error(
                format!("`{value}` is not supported yet"),
                format!("remove the field or write `{only}`"),
            );
        }
    }
}

fn decode_ports(field: &Field<'_>, out: &mut Vec<ServicePort>) {
    let items = field.items(64);
    let several = items.len() > 1;
    if items.is_empty() {
        field.error("a service needs a port", "add an item with `port: 80`");
    }
    for item in &items {
        let Some(object) = item.object() else {
            continue;
        };
        let number = object.required("port").and_then(|f| f.port());
        let name = object.optional("name").and_then(|f| label(&f));
        if several && object.optional("name").is_none() {
            item.error("a port of several needs a `name`", "");
        }
        let target = object
            .optional("targetPort")
            .and_then(|f| decode_target(&f));
        let app_protocol = object
            .optional("appProtocol")
            .and_then(|f| Some((f.text()?, f)));
        let transport = object
            .optional("protocol")
            .and_then(|f| f.choice(&[("TCP", true), ("UDP", false), ("SCTP", false)]));
        object.harmless(&["nodePort"]);
        object.finish();
        let Some(number) = number else { continue };
        if transport == Some(false) {
            item.warning("the mesh carries TCP only", "this port is left out");
            continue;
        }
        if out
            .iter()
            .any(|p| p.port == number || (name.is_some() && p.name.as_deref() == name))
        {
            item.error("another port has this number or name", "make them differ");
        }
        if let Some((text, field)) = &app_protocol
            && app_protocol_of(text).is_none()
        {
            field.warning(
                format!("`{text}` is not a known protocol: it will be detected per connection"),
                "use http, kubernetes.io/h2c, grpc, kubernetes.io/ws or tcp",
            );
        }
        out.push(ServicePort {
            name: name.map(str::to_owned),
            port: number,
            target: target.unwrap_or(Target::Number(number)),
            protocol: protocol(app_protocol.as_ref().map(|(text, _)| *text), name, number),
        });
    }
}

fn decode_target(field: &Field<'_>) -> Option<Target> {
    if field.is_integer() {
        return field.port().map(Target::Number);
    }
    label(field).map(|name| Target::Name(name.to_owned()))
}

/// The protocol of a service port: its `appProtocol`, else the prefix of its name, else
/// its number if that belongs to a protocol whose server speaks first.
pub(crate) fn protocol(app_protocol: Option<&str>, name: Option<&str>, port: u16) -> Protocol {
    if let Some(text) = app_protocol {
        return app_protocol_of(text).unwrap_or(Protocol::Undeclared);
    }
    let by_name = name.and_then(|name| match name.split('-').next().unwrap_or(name) {
        "grpc" if name.starts_with("grpc-web") => Some(Protocol::Http),
        "http" | "ws" => Some(Protocol::Http),
        "http2" => Some(Protocol::Http2),
        "grpc" => Some(Protocol::Grpc),
        "tcp" | "tls" | "https" => Some(Protocol::Tcp),
        _ => None,
    });
    by_name.unwrap_or(match port {
        25 | 587 | 3306 | 4444 | 5432 | 6379 | 9300 | 11211 => Protocol::Tcp,
        _ => Protocol::Undeclared,
    })
}

/// TLS of the application's own is bytes to the mesh.
fn app_protocol_of(text: &str) -> Option<Protocol> {
    match text {
        "http" | "kubernetes.io/ws" | "grpc-web" => Some(Protocol::Http),
        "kubernetes.io/h2c" | "http2" => Some(Protocol::Http2),
        "grpc" => Some(Protocol::Grpc),
        "tcp" | "weft.dev/opaque" | "https" | "tls" | "kubernetes.io/wss" => Some(Protocol::Tcp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::protocol;
    use crate::model::Protocol::{self, Grpc, Http, Http2, Tcp, Undeclared};

    #[test]
    fn protocols() {
        let table: &[(Option<&str>, Option<&str>, u16, Protocol)] = &[
            (Some("http"), None, 80, Http),
            (Some("kubernetes.io/h2c"), None, 80, Http2),
            (Some("http2"), None, 80, Http2),
            (Some("grpc"), Some("http"), 80, Grpc),
            (Some("kubernetes.io/ws"), None, 80, Http),
            (Some("tcp"), None, 80, Tcp),
            (Some("weft.dev/opaque"), Some("http"), 80, Tcp),
            (Some("example.com/own"), Some("http"), 80, Undeclared),
            (None, Some("http"), 9000, Http),
            (None, Some("http-web"), 9000, Http),
            (None, Some("http2-web"), 9000, Http2),
            (None, Some("httpweb"), 9000, Undeclared),
            (None, Some("grpc-api"), 9000, Grpc),
            (None, Some("grpc-web"), 9000, Http),
            (None, Some("tcp-db"), 9000, Tcp),
            (None, Some("ws"), 9000, Http),
            (None, Some("web"), 80, Undeclared),
            (None, Some("http"), 5432, Http),
            (None, None, 5432, Tcp),
            (None, Some("cache"), 6379, Tcp),
            (None, None, 80, Undeclared),
        ];
        for (app, name, port, expect) in table {
            assert_eq!(
                protocol(*app, *name, *port),
                *expect,
                "{app:?} {name:?} {port}"
            );
        }
    }
}
