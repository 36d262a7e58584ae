//! Every protobuf type that the mesh speaks, and nothing else.
//!
//! * [`envoy`]: Envoy's xDS v3 messages and services (generated code from the
//!   `envoy-types` crate, so no build needs protoc).
//! * [`identity`]: certificate signing in the shape of Istio's certificate service.
//! * [`extensions`]: our own typed extension configurations, for what Envoy has no field.
//! * [`Kind`]: the resource types with their type URLs and push order.

pub mod any;
#[cfg(feature = "json")]
pub mod json;
mod kind;

pub use kind::Kind;

/// Envoy's messages, by proto package: `envoy::config::cluster::v3::Cluster` and so on.
pub mod envoy {
    pub use envoy_types::pb::envoy::{config, data, extensions, service, r#type};
}

/// `google.protobuf` and `google.rpc` types as Envoy's messages use them. They are other
/// Rust types than those of `prost-types`.
pub mod google {
    pub use envoy_types::pb::google::{protobuf, rpc};
}

/// `istio.v1.auth`: certificate signing.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod identity {
    include!("gen/istio.v1.auth.rs");
}

/// `weft.extensions.v1`: typed extension configurations of our own.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod extensions {
    include!("gen/weft.extensions.v1.rs");
}
