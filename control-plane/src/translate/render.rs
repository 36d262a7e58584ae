//! Every resource that a node would get if it called everything it can: for people,
//! golden files and clients that read from a file.

use serde_json::{Value, json};
use weft_api::{Kind, json::to_json};

use super::{Context, Node, names, resource, wildcard};

/// The resources of a node as JSON, with the field names of Envoy's proto files. Virtual
/// hosts are those of the full names of all service ports (`post.blog:80`), with the
/// routes that this node gets.
#[must_use]
pub fn render(cx: &Context<'_>, node: &Node<'_>) -> Value {
    let clusters = wildcard(cx, node, Kind::Cluster);
    let services: Vec<String> = clusters
        .iter()
        .filter(|name| !name.starts_with(names::INBOUND))
        .cloned()
        .collect();
    let hosts: Vec<String> = services
        .iter()
        .map(|name| format!("{}/{name}", names::OUTBOUND))
        .collect();
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
        "endpoints": all(Kind::Endpoint, &services),
        "secrets": all(Kind::Secret, &[names::TRUST_BUNDLE.to_owned()]),
    })
}
