//! Accepting connections and handing each to the chain that serves it.

mod accept;
mod captured;
mod connection;
mod opaque;
mod socket;

pub use accept::accept;
pub use socket::{bind_for, is_without_family};
