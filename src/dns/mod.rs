//! DNS for the application: names of the mesh are answered, the rest is forwarded and cached.
//!
//! What belongs to others passes byte for byte; an answer of theirs outlives the failure of
//! the resolvers; and no name is ever said not to exist on our own authority.

mod cache;
mod exchange;
mod forward;
mod names;
mod server;
mod upstreams;
mod wire;

pub use forward::Resolver;
pub use names::{Answer, Names};
pub use server::serve;
pub use upstreams::Source;

/// The port of a resolver.
const PORT: u16 = 53;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Transport {
    Udp,
    Tcp,
}

/// Who knew the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnsweredBy {
    /// The control plane.
    Mesh,
    /// A kept answer of a resolver.
    Cache,
    /// The same after its time, because the resolvers failed.
    Stale,
    /// A resolver.
    Resolver,
    /// Nobody: FORMERR, SERVFAIL or NOTIMP of our own.
    Error,
}

impl AnsweredBy {
    /// The metric label.
    const fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Cache => "cache",
            Self::Stale => "stale",
            Self::Resolver => "resolver",
            Self::Error => "error",
        }
    }
}

#[cfg(test)]
mod tests;
