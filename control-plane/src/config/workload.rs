//! `weft.dev/v1alpha1 Workload`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::field::{Field, Object};
use super::{Content, Meta, Reference, Role, check, label};
use crate::model::{Protocol, Upstream, Workload, WorkloadPort};

const DEFAULT_OUTBOUND_PORT: u16 = 14001;
const DEFAULT_LISTEN_PORT: u16 = 14006;
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(super) fn decode(object: &Object<'_>, meta: &Meta) -> (Option<Content>, Vec<Reference>) {
    let mut references = Vec::new();
    let Some(field) = object.required("spec") else {
        return (None, references);
    };
    let Some(spec) = field.object() else {
        return (None, references);
    };
    let mut workload = Workload {
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        labels: meta.labels.clone(),
        service_account: "default".to_owned(),
        address: LOCALHOST,
        ports: Vec::new(),
        outbound_port: DEFAULT_OUTBOUND_PORT,
        upstreams: Vec::new(),
        weight: 1,
    };
    if let Some(account) = spec.optional("serviceAccount").and_then(|f| account(&f)) {
        workload.service_account = account;
    }
    if let Some(address) = spec.required("address").and_then(|f| address(&f)) {
        workload.address = address;
    }
    if let Some(weight) = spec.optional("weight").and_then(|f| f.integer(0..=1000)) {
        workload.weight = u32::try_from(weight).unwrap_or(1);
    }
    if let Some(outbound) = spec.optional("outbound").and_then(|f| f.object()) {
        if let Some(port) = outbound.optional("port").and_then(|f| f.port()) {
            workload.outbound_port = port;
        }
        outbound.finish();
    }
    if let Some(ports) = spec.optional("ports") {
        let items = ports.items(64);
        let only = items.len() == 1;
        workload.ports = items
            .iter()
            .filter_map(|item| decode_port(item, only))
            .collect();
    }
    if let Some(upstreams) = spec.optional("upstreams") {
        for item in upstreams.items(1024) {
            if let Some(upstream) = decode_upstream(&item, meta, &mut references) {
                workload.upstreams.push(upstream);
            }
        }
    }
    spec.finish();
    check_ports(&field, &workload);
    (Some(Content::Workload(workload)), references)
}

fn account(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if !check::is_object_name(text) {
        field.error(
            format!("`{text}` is not a valid name of a service account"),
            "use lower-case letters, digits, `-` and `.`",
        );
        return None;
    }
    Some(text.to_owned())
}

fn address(field: &Field<'_>) -> Option<IpAddr> {
    let text = field.text()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        field.error(
            format!("`{text}` is not an IP address"),
            "write the address that peers reach this workload at, for example 10.0.0.7",
        );
        return None;
    };
    if address.is_unspecified() || address.is_multicast() {
        field.error(
            format!("peers cannot connect to {address}"),
            "write the address that peers reach this workload at",
        );
    }
    Some(address)
}

fn decode_port(item: &Field<'_>, only: bool) -> Option<WorkloadPort> {
    let object = item.object()?;
    let name = object
        .optional("name")
        .and_then(|f| label(&f))
        .map(str::to_owned);
    let number = object.required("port").and_then(|f| f.port());
    let protocol = object.optional("protocol").and_then(|f| {
        f.choice(&[
            ("http", Protocol::Http),
            ("http2", Protocol::Http2),
            ("grpc", Protocol::Grpc),
            ("tcp", Protocol::Tcp),
        ])
    });
    let listen = object.optional("listen").and_then(|f| f.port());
    if !only && object.optional("listen").is_none() {
        item.error(
            "a port of several needs `listen`, the sidecar's port that peers connect to",
            format!("give each port its own, for example `listen: {DEFAULT_LISTEN_PORT}`"),
        );
    }
    let app = object.optional("app").and_then(|f| {
        let text = f.text()?;
        let parsed = text.parse::<SocketAddr>().ok().filter(|a| a.port() != 0);
        if parsed.is_none() {
            f.error(
                format!("`{text}` is not an address with a port"),
                "write where the application listens, for example 127.0.0.1:8080",
            );
        }
        parsed
    });
    object.finish();
    let port = number?;
    Some(WorkloadPort {
        name,
        port,
        protocol: protocol.unwrap_or(Protocol::Undeclared),
        listen: listen.unwrap_or(DEFAULT_LISTEN_PORT),
        app: app.unwrap_or(SocketAddr::new(LOCALHOST, port)),
    })
}

fn decode_upstream(
    item: &Field<'_>,
    meta: &Meta,
    references: &mut Vec<Reference>,
) -> Option<Upstream> {
    let object = item.object()?;
    let service = object
        .required("service")
        .and_then(|f| Some((f.text()?, f)));
    let port = object.optional("port").and_then(|f| f.port());
    let local_port = object.required("localPort").and_then(|f| f.port());
    object.finish();
    let (text, field) = service?;
    let (name, namespace) = text.split_once('.').unwrap_or((text, &meta.namespace));
    if !check::is_label(name) || !check::is_label(namespace) {
        field.error(
            format!("`{text}` is not a service"),
            "write `name` or `name.namespace`",
        );
        return None;
    }
    references.push(Reference::new(
        &field,
        Role::Upstream,
        namespace,
        name,
        port,
    ));
    Some(Upstream {
        namespace: namespace.to_owned(),
        service: name.to_owned(),
        port,
        local_port: local_port?,
    })
}

/// Two listeners of one sidecar must not want the same address, and the sidecar must
/// not forward to itself.
fn check_ports(spec: &Field<'_>, workload: &Workload) {
    let mut taken: Vec<(IpAddr, u16, String)> = Vec::new();
    let mut claim = |address: IpAddr, port: u16, what: String| {
        let clash = taken.iter().find(|(a, p, _)| (*a, *p) == (address, port));
        if let Some((_, _, other)) = clash {
            spec.error(
                format!(
                    "{what} and {other} both want {}",
                    SocketAddr::new(address, port)
                ),
                "give each its own port",
            );
        }
        taken.push((address, port, what));
    };
    claim(
        LOCALHOST,
        workload.outbound_port,
        "outbound.port".to_owned(),
    );
    for (i, upstream) in workload.upstreams.iter().enumerate() {
        claim(
            LOCALHOST,
            upstream.local_port,
            format!("upstreams[{i}].localPort"),
        );
    }
    for (i, port) in workload.ports.iter().enumerate() {
        claim(workload.address, port.listen, format!("ports[{i}].listen"));
    }
    for (i, port) in workload.ports.iter().enumerate() {
        let twin =
            |p: &WorkloadPort| p.port == port.port || (p.name.is_some() && p.name == port.name);
        if workload.ports[..i].iter().any(twin) {
            spec.error(
                format!("ports[{i}] has the number or name of another port"),
                "make them differ",
            );
        }
        if let Some((_, _, what)) = taken
            .iter()
            .find(|(address, p, _)| SocketAddr::new(*address, *p) == port.app)
        {
            spec.error(
                format!(
                    "ports[{i}].app is {}, which is {what} of the sidecar",
                    port.app
                ),
                "the application and the sidecar need different ports",
            );
        }
    }
}
