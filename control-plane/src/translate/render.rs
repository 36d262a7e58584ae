//! Every resource that a node would get if it called everything it can: for people,
//! golden files and clients that read from a file.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};
use weft_api::{Kind, json::to_json};

use super::{Context, Node, cluster, names, resource, wildcard};

/// The resources of a node as JSON, with the field names of Envoy's proto files.
///
/// Of what is looked up by name on first use there are, with the routes that this node gets:
/// the full names of all service ports (`outbound/post.blog:80`); and, if it is captured, all
/// addresses of services and captured workloads with their declared ports
/// (`outbound/10.96.4.7:80`) and the full DNS names (`dns/post.blog.svc.cluster.local`).
#[must_use]
pub fn render(cx: &Context<'_>, node: &Node<'_>) -> Value {
    let mut clusters = wildcard(cx, node, Kind::Cluster);
    let mut hosts: Vec<String> = services(cx)
        .map(|name| format!("{}/{name}", names::OUTBOUND))
        .collect();
    if cluster::workload(cx, node).is_some_and(|w| w.capture.is_some()) {
        let addresses = addresses(cx);
        hosts.extend(addresses.iter().map(|a| format!("{}/{a}", names::OUTBOUND)));
        hosts.extend(dns_names(cx, node).map(|name| format!("{}{name}", names::DNS_NAME)));
        clusters.extend(addresses.iter().filter_map(|address| {
            match names::resolve(cx.mesh, node.namespace, &address.to_string())? {
                names::Destination::Pod(pod) => Some(pod.cluster()),
                names::Destination::Service(..) => None,
            }
        }));
    }
    let one = |kind: Kind, name: &String| -> Option<Value> {
        let built = resource(cx, node, kind, name)?;
        Some(
            to_json(kind.type_url(), &built.body).unwrap_or_else(|error| json!({ "error": error })),
        )
    };
    let all = |kind: Kind, names: &[String]| -> Vec<Value> {
        names.iter().filter_map(|name| one(kind, name)).collect()
    };
    let virtual_hosts: Vec<Value> = hosts
        .iter()
        .filter_map(|name| Some(json!({ "name": name, "resource": one(Kind::VirtualHost, name)? })))
        .collect();
    json!({
        "listeners": all(Kind::Listener, &wildcard(cx, node, Kind::Listener)),
        "routes": all(Kind::Route, &[names::OUTBOUND.to_owned()]),
        "virtual_hosts": virtual_hosts,
        "clusters": all(Kind::Cluster, &clusters),
        // Those that have none find their endpoints without being told.
        "endpoints": all(Kind::Endpoint, &clusters),
        "secrets": all(Kind::Secret, &[names::TRUST_BUNDLE.to_owned()]),
    })
}

/// The full names of all service ports.
fn services<'a>(cx: &Context<'a>) -> impl Iterator<Item = String> + use<'a> {
    let services = cx.mesh.services();
    services.flat_map(|service| {
        let ports = service.ports.iter();
        ports.map(|port| names::cluster(service, port))
    })
}

/// Where captured connections can go: ports of services, declared ports of workloads.
fn addresses(cx: &Context<'_>) -> BTreeSet<SocketAddr> {
    let services = cx.mesh.services().flat_map(|service| {
        let pairs = service.addresses.iter();
        pairs.flat_map(|ip| {
            let ports = service.ports.iter();
            ports.map(|port| SocketAddr::new(*ip, port.port))
        })
    });
    let captured = cx.mesh.workloads().filter(|w| w.capture.is_some());
    let workloads = captured.flat_map(|workload| {
        workload.addresses().flat_map(|ip| {
            let ports = workload.ports.iter();
            ports.map(move |port| SocketAddr::new(ip, port.port))
        })
    });
    services.chain(workloads).collect()
}

/// The full names of services, of the workloads behind headless ones, and of hosts outside
/// of the mesh.
fn dns_names<'a>(cx: &Context<'a>, node: &Node<'a>) -> impl Iterator<Item = String> + use<'a> {
    let mesh = cx.mesh;
    let inside = mesh.services().flat_map(move |service| {
        let full = format!(
            "{}.{}.svc.{}",
            service.name, service.namespace, mesh.config.cluster_domain
        );
        let members = names::captured(mesh, service).filter(|_| service.headless);
        let members: Vec<String> = members.map(|w| format!("{}.{full}", w.name)).collect();
        [full].into_iter().chain(members)
    });
    inside.chain(mesh.external_names(node.namespace).map(str::to_owned))
}
