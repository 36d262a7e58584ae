//! The Weft control plane: Gateway API documents in, Envoy xDS v3 and SPIFFE certificates out.
//!
//! * [`source`] reads documents; [`config`] is their form, [`model`] what they mean.
//! * [`translate`] turns a mesh into xDS resources; [`cache`] keeps them encoded.
//! * [`ads`] tells sidecars; [`identity`] signs their certificates, [`token`] lets them join.
//! * [`connection`] is TLS and who is at the other end; [`clients`] who is connected.
//! * [`drain`] waits until nobody calls a workload that shuts down.
//! * [`registration`]: workloads that say themselves what they are.
//! * [`sockets`] and [`upgrade`]: a new process takes the place of the old one.
//! * [`app`] puts it all together; [`metrics`] and the admin pages show what it does.

mod admin;
pub mod ads;
pub mod app;
pub mod cache;
mod certificate;
pub mod clients;
pub mod config;
pub mod connection;
pub mod drain;
pub mod identity;
pub mod metrics;
pub mod model;
mod presence;
pub mod registration;
pub mod sockets;
pub mod source;
mod storage;
pub mod token;
pub mod token_file;
pub mod translate;
pub mod upgrade;

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The namespace of the control plane's own identity.
pub const CONTROL_NAMESPACE: &str = "weft-system";
/// The service account of the control plane's own identity.
pub const CONTROL_SERVICE_ACCOUNT: &str = "weft-control";

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
            text
        })
}

/// A moment as in RFC 3339, in UTC.
pub(crate) fn stamp(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_else(|_| "unknown".to_owned())
}
