//! HTTP: what hostile clients and servers send reaches nobody in a form that two readers
//! could take differently, and what well-behaved ones send arrives as it was. Peers are
//! those of `weft-kit`, sidecars are real processes.

mod authority;
mod bytes;
mod cost;
mod descriptors;
mod echo;
mod framing;
mod lanes;
mod memory;
mod pair;
mod puppet;
mod replies;
mod slow;
mod trial;

use super::{Cases, Group as AnyGroup, Setting};
use crate::error::Result;

/// The groups: one line each, with the module whose `run` makes its cases.
macro_rules! groups {
    ($($variant:ident: $module:ident, $name:literal;)*) => {
        #[derive(Debug, Clone, Copy)]
        pub(crate) enum Group { $($variant,)* }

        /// In the order in which they run.
        pub(super) const GROUPS: &[AnyGroup] = &[$(AnyGroup::Http(Group::$variant),)*];

        impl Group {
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            pub(crate) async fn run(self, setting: &Setting, cases: &mut Cases) -> Result<()> {
                match self { $(Self::$variant => Box::pin($module::run(setting, cases)).await,)* }
            }
        }
    };
}

groups! {
    Framing: framing, "framing";
    Authority: authority, "authority";
    Replies: replies, "replies";
    Slow: slow, "slow";
    Descriptors: descriptors, "descriptors";
    Memory: memory, "memory";
    Bytes: bytes, "bytes";
}
