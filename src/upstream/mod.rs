//! From a destination to a live connection, and one request on it.

mod connect;
mod pool;
mod send;

pub use connect::{Connector, Dest, TlsTarget, own_source};
pub use pool::{Lease, Pool};
pub use send::{Protocol, reason_of, send, target};
