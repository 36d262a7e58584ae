//! The xDS client: one delta ADS stream to the control plane, kept alive.
//!
//! [`state`] decides what to ask and what an answer means, without I/O; [`client`] drives it
//! over a connection. Values go to the caller as [`Event`]s and are not kept here.

mod client;
mod state;

pub use client::{Client, Command};
pub use state::{Event, Farewell, Raw};
