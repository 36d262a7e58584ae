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
mod text;

pub use http1::{Asked, Expected, Requests, Responses};
pub use http2::{Budget, Frames, Role};
pub use io::{Guarded, Signals};

/// What a deadline counts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Waiting {
    /// Nothing is overdue however long it takes.
    #[default]
    Nothing = 0,
    /// HTTP/1: the rest of a head. HTTP/2: the rest of a header block.
    Head = 1,
    /// HTTP/2: the client's preface and SETTINGS.
    Preface = 2,
}

#[cfg(test)]
mod tests;
