//! The mesh as xDS resources: pure and deterministic, one resource at a time by name.
//! Names and shapes are those of `docs/xds.md`.

mod cluster;
mod endpoint;
mod listener;
mod names;
mod proto;
mod render;
mod route;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use prost::Message;
use weft_api::Kind;

use crate::model::Mesh;
pub use render::render;

/// Who asks: one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub workload: &'a str,
}

/// Who gets the same bytes for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everyone.
    Mesh,
    /// The workloads of one namespace.
    Namespace,
    /// One workload.
    Node,
}

/// What resources are made of. Equal contexts give equal bytes.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The configuration.
    pub mesh: &'a Mesh,
    /// The trust bundle in PEM.
    pub roots_pem: &'a str,
    /// Workloads by namespace and name that take no new requests.
    pub draining: &'a BTreeSet<(String, String)>,
}

/// An encoded resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The resource message itself, not wrapped in an `Any`.
    pub body: Vec<u8>,
    /// Who may share it.
    pub scope: Scope,
}

/// Builds the resource of that kind and name for a node; `None` if there is none.
#[must_use]
pub fn resource(cx: &Context<'_>, node: &Node<'_>, kind: Kind, name: &str) -> Option<Built> {
    let body = match kind {
        Kind::Listener => listener::listener(cx, node, name)?.encode_to_vec(),
        Kind::Route => route::configuration(name)?.encode_to_vec(),
        Kind::VirtualHost => route::virtual_host(cx, node, name)?.encode_to_vec(),
        Kind::Cluster => cluster::cluster(cx, node, name)?.encode_to_vec(),
        Kind::Endpoint => endpoint::assignment(cx, name)?.encode_to_vec(),
        Kind::Secret => proto::trust_bundle(cx, name)?.encode_to_vec(),
    };
    Some(Built {
        body,
        scope: scope(kind, name),
    })
}

/// Whether a workload is one of the endpoints of a cluster.
#[must_use]
pub fn has_endpoint(mesh: &Mesh, cluster: &str, namespace: &str, workload: &str) -> bool {
    endpoint::contains(mesh, cluster, namespace, workload)
}

/// Who may share the resource of that kind and name, whether it exists or not.
#[must_use]
pub fn scope(kind: Kind, name: &str) -> Scope {
    match kind {
        Kind::Listener => Scope::Node,
        Kind::Cluster if name.starts_with(names::INBOUND) => Scope::Node,
        Kind::Route | Kind::VirtualHost => Scope::Namespace,
        Kind::Cluster | Kind::Endpoint | Kind::Secret => Scope::Mesh,
    }
}

/// The names that a wildcard subscription of this node stands for, in order: its own
/// listeners; the clusters of all services and those of its own. Other kinds have none.
#[must_use]
pub fn wildcard(cx: &Context<'_>, node: &Node<'_>, kind: Kind) -> Vec<String> {
    match kind {
        Kind::Listener => listener::names(cx, node),
        Kind::Cluster => cluster::names(cx, node),
        _ => Vec::new(),
    }
}
