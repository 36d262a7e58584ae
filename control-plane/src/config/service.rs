//! `v1 Service`.

use super::field::{Field, Object};
use super::{Content, Meta, Reference, check, label};
use crate::model::{Policy, Protocol, Service, ServicePort, Target};

pub(super) fn decode(object: &Object<'_>, meta: &Meta) -> (Option<Content>, Vec<Reference>) {
    let mut service = Service {
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        ports: Vec::new(),
        headless: false,
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
    if let Some(selector) = spec.optional("selector") {
        service.selector = selector.labels();
    }
    if service.selector.is_empty() {
        field.warning(
            "no `selector`: no workload is behind this service",
            "select workloads by their labels",
        );
    }
    if let Some(ports) = spec.required("ports") {
        decode_ports(&ports, &mut service.ports);
    }
    decode_type(&spec, &mut service);
    spec.harmless(&[
        "allocateLoadBalancerNodePorts",
        "clusterIPs",
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
    spec.unsupported(&["externalIPs", "externalName", "trafficDistribution"]);
    spec.finish();
    (Some(Content::Service(service)), Vec::new())
}

fn decode_type(spec: &Object<'_>, service: &mut Service) {
    if let Some(kind) = spec.optional("type") {
        let found = kind.choice(&[
            ("ClusterIP", true),
            ("NodePort", true),
            ("LoadBalancer", true),
            ("ExternalName", false),
        ]);
        if found == Some(false) {
            kind.error(
                "ExternalName services are not supported yet",
                "select workloads of the mesh",
            );
        }
    }
    service.headless = spec.optional("clusterIP").and_then(|f| f.text()) == Some("None");
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
