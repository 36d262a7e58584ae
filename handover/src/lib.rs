//! Listening sockets that outlive a process: passing them on, taking them from systemd, and
//! telling a supervisor how far a start has come.
//!
//! Everything here blocks, for a short and bounded time, and needs no runtime. What is said in
//! which order is the caller's: a sidecar and a control plane hand over differently.

mod activation;
mod channel;
mod error;
mod notify;
mod socket;

pub use activation::activation;
pub use channel::{Channel, MAX_MESSAGE, MAX_SOCKETS, connect, holder, listen};
pub use error::Error;
pub use notify::{State, has_manager, notify};
pub use socket::{Kind, Pool, Socket};
