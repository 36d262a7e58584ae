//! What can go wrong between two processes.

use std::io;

/// Why a handover did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The other process said something else than it should have.
    #[error("{0}")]
    Protocol(String),
    /// The other process belongs to somebody else.
    #[error(
        "the other process runs as user {peer}, this one as {own}; a handover is between processes of one user"
    )]
    Foreign {
        /// User ID of the other process.
        peer: u32,
        /// User ID of this process.
        own: u32,
    },
    /// The other process did not answer in time.
    #[error("the other process said nothing in time ({0})")]
    TimedOut(&'static str),
    /// The other process has ended, or has closed the connection.
    #[error("the other process has gone ({0})")]
    Gone(&'static str),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// An error of a system call while `doing`: silence and a closed connection are what they
    /// are.
    pub(crate) fn talk(doing: &'static str, source: io::Error) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionReset, NotConnected, TimedOut, UnexpectedEof, WouldBlock,
        };
        match source.kind() {
            WouldBlock | TimedOut => Self::TimedOut(doing),
            BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof => Self::Gone(doing),
            _ => Self::Io {
                what: doing.to_owned(),
                source,
            },
        }
    }
}
