//! `weft.dev/v1alpha1 Workload`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::field::{Field, Object};
use super::{Content, Meta, Reference, Role, check, label};
use crate::model::{
    Capture, CaptureMode, InboundPorts, Protocol, SIDECAR_PORTS, Upstream, Workload, WorkloadPort,
    is_virtual,
};

const DEFAULT_OUTBOUND_PORT: u16 = 14001;
const DEFAULT_LISTEN_PORT: u16 = 14006;
const MAX_ADDITIONAL_ADDRESSES: usize = 8;
const MAX_EXCLUDED_PORTS: usize = 64;
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
        additional_addresses: Vec::new(),
        capture: None,
        ports: Vec::new(),
        outbound_port: DEFAULT_OUTBOUND_PORT,
        upstreams: Vec::new(),
        weight: 1,
    };
    let capture = spec.optional("capture").and_then(|f| decode_capture(&f));
    let (capture, excluded) = capture.unzip();
    workload.capture = capture;
    if let Some(account) = spec.optional("serviceAccount").and_then(|f| account(&f)) {
        workload.service_account = account;
    }
    decode_addresses(&spec, &mut workload);
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
        let arrival = match (&workload.capture, items.len()) {
            (Some(_), _) => Arrival::Captured,
            (None, 1) => Arrival::OnlyPort,
            (None, _) => Arrival::OneOfSeveral,
        };
        workload.ports = items
            .iter()
            .filter_map(|item| decode_port(item, arrival))
            .collect();
    }
    for (port, field) in excluded.unwrap_or_default() {
        if workload.port(port).is_some() {
            field.error(
                format!("port {port} is also in `ports`"),
                "a port passes the sidecar or it does not: remove it from one of the two",
            );
        }
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

/// How peers get to a port, which decides what its document may say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// They connect to the application's port, and the kernel leads them to the sidecar.
    Captured,
    /// They connect to the sidecar's port, which has a default.
    OnlyPort,
    /// They connect to the sidecar's port, which must be said.
    OneOfSeveral,
}

/// The capture and the ports that it leaves out, with their places.
fn decode_capture<'a>(field: &Field<'a>) -> Option<(Capture, Vec<(u16, Field<'a>)>)> {
    let object = field.object()?;
    let modes = [
        ("redirect", CaptureMode::Redirect),
        ("tproxy", CaptureMode::Tproxy),
    ];
    let mode = object.optional("mode").and_then(|f| f.choice(&modes));
    let inbound = object.optional("inboundPorts").and_then(|f| {
        f.choice(&[
            ("all", InboundPorts::All),
            ("declared", InboundPorts::Declared),
        ])
    });
    let inbound_ports = inbound.unwrap_or(InboundPorts::All);
    let mut excluded: Vec<(u16, Field<'a>)> = Vec::new();
    let items = object.optional("excludeInboundPorts").map(|f| {
        if inbound_ports == InboundPorts::Declared {
            f.error(
                "no port passes the sidecar but those in `ports`",
                "remove it, or `inboundPorts: declared`",
            );
        }
        f.items(MAX_EXCLUDED_PORTS)
    });
    for item in items.unwrap_or_default() {
        let Some(port) = item.port() else { continue };
        if excluded.iter().any(|(other, _)| *other == port) {
            item.error(format!("port {port} is given twice"), "remove one of them");
        }
        if SIDECAR_PORTS.contains(&port) {
            item.warning(
                format!("{port} is a port of the sidecar, which is never captured"),
                "remove it",
            );
        }
        excluded.push((port, item));
    }
    object.finish();
    let mut exclude_inbound_ports: Vec<u16> = excluded.iter().map(|(port, _)| *port).collect();
    exclude_inbound_ports.sort_unstable();
    let capture = Capture {
        mode: mode.unwrap_or(CaptureMode::Redirect),
        inbound_ports,
        exclude_inbound_ports,
    };
    Some((capture, excluded))
}

fn decode_addresses(spec: &Object<'_>, workload: &mut Workload) {
    let captured = workload.capture.is_some();
    let own = |field: &Field<'_>| {
        let address = address(field)?;
        if captured && address.is_loopback() {
            field.error(
                format!("peers cannot reach a captured workload at {address}"),
                "capture needs an address of the workload's own: of its pod, container, machine or network namespace",
            );
        }
        Some(address)
    };
    if let Some(address) = spec.required("address").and_then(|f| own(&f)) {
        workload.address = address;
    }
    let Some(additional) = spec.optional("additionalAddresses") else {
        return;
    };
    if !captured {
        additional.error(
            "`additionalAddresses` needs `capture`: without it peers connect to the sidecar at `address` only",
            "add `capture: {}`, or remove the field",
        );
    }
    for item in additional.items(MAX_ADDITIONAL_ADDRESSES) {
        let Some(address) = own(&item) else { continue };
        if workload.addresses().any(|other| other == address) {
            item.error(
                format!("{address} is given twice"),
                "write each address once, `address` among them",
            );
            continue;
        }
        workload.additional_addresses.push(address);
    }
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
    // An IPv4 address in the clothes of IPv6 is the same address.
    let address = address.to_canonical();
    let local = match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_multicast() || local {
        field.error(
            format!("peers cannot connect to {address}"),
            "write the address that peers reach this workload at",
        );
    }
    if is_virtual(address) {
        field.error(
            format!("{address} is in 240.240.0.0/16, which the mesh gives to services"),
            "write the address that peers reach this workload at",
        );
    }
    Some(address)
}

fn decode_port(item: &Field<'_>, arrival: Arrival) -> Option<WorkloadPort> {
    let object = item.object()?;
    let name = object
        .optional("name")
        .and_then(|f| label(&f))
        .map(str::to_owned);
    let number = object.required("port").and_then(|f| {
        let number = f.port()?;
        if arrival == Arrival::Captured && SIDECAR_PORTS.contains(&number) {
            f.error(
                format!("{number} is a port of the sidecar"),
                "an application beside a sidecar that captures needs another port",
            );
        }
        Some(number)
    });
    let protocol = object.optional("protocol").and_then(|f| {
        f.choice(&[
            ("http", Protocol::Http),
            ("http2", Protocol::Http2),
            ("grpc", Protocol::Grpc),
            ("tcp", Protocol::Tcp),
        ])
    });
    let listen_field = object.optional("listen");
    match (arrival, &listen_field) {
        (Arrival::Captured, Some(field)) => field.error(
            "a captured workload has no `listen`: peers connect to the application's own port",
            "remove `listen`, or `capture`",
        ),
        (Arrival::OneOfSeveral, None) => item.error(
            "a port of several needs `listen`, the sidecar's port that peers connect to",
            format!("give each port its own, for example `listen: {DEFAULT_LISTEN_PORT}`"),
        ),
        _ => {}
    }
    let listen = listen_field.and_then(|f| f.port());
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
    let captured = arrival == Arrival::Captured;
    Some(WorkloadPort {
        name,
        port,
        protocol: protocol.unwrap_or(Protocol::Undeclared),
        listen: if captured {
            port
        } else {
            listen.unwrap_or(DEFAULT_LISTEN_PORT)
        },
        app: app.or_else(|| (!captured).then_some(SocketAddr::new(LOCALHOST, port))),
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
    if workload.capture.is_some() {
        for port in SIDECAR_PORTS {
            // This one has a setting.
            if port != DEFAULT_OUTBOUND_PORT {
                claim(LOCALHOST, port, format!("port {port}"));
            }
        }
    }
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
        match workload.capture {
            None => claim(workload.address, port.listen, format!("ports[{i}].listen")),
            // The application's, not the sidecar's: but both cannot have it.
            Some(_) if port.port == workload.outbound_port => spec.error(
                format!("ports[{i}].port and outbound.port are both {}", port.port),
                "the application and the sidecar need different ports",
            ),
            Some(_) => {}
        }
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
        let Some(app) = port.app else { continue };
        // A sidecar that captures listens on all addresses.
        let local = match workload.capture {
            Some(_) if workload.addresses().any(|own| own == app.ip()) => LOCALHOST,
            _ => app.ip(),
        };
        if let Some((_, _, what)) = taken
            .iter()
            .find(|(address, p, _)| (*address, *p) == (local, app.port()))
        {
            spec.error(
                format!("ports[{i}].app is {app}, which is {what} of the sidecar"),
                "the application and the sidecar need different ports",
            );
        }
    }
}
