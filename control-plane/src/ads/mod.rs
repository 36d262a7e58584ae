//! Aggregated discovery: how sidecars are told their configuration.
//!
//! [`state`] is the protocol of one delta xDS stream as a pure state machine; [`server`]
//! drives it over tonic. What is told comes from a [`View`], one node's look at one
//! snapshot of the mesh.

pub mod server;
pub mod state;

use std::sync::Arc;

use weft_api::Kind;

use crate::cache::Encoded;

/// What one node sees of one snapshot. The same view always gives the same answers.
pub trait View {
    /// The number of the snapshot; grows with each one.
    fn generation(&self) -> u64;

    /// The names of the resources of a kind that the node gets without naming them.
    fn wildcard(&self, kind: Kind) -> Vec<String>;

    /// A resource by name; `None` when there is none for this node.
    fn resource(&self, kind: Kind, name: &str) -> Option<Arc<Encoded>>;
}
