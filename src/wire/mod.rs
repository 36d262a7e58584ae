//! What may pass between a socket and hyper. hyper reads correctly, but more than there should
//! be to read; here messages are held to the letter, and floods to a budget. Pure machines over
//! bytes; what comes out of them is the same however the bytes arrive.

pub mod chunks;
pub mod expected;
pub mod head;
pub mod http1;
pub mod http2;
pub mod io;
pub mod rules;

pub use http1::{Asked, Expected, Requests, Responses};
pub use http2::{Budget, Frames, Role};
pub use io::{Guarded, Signals, Waiting};

#[cfg(test)]
mod tests;
