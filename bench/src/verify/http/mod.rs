//! HTTP: what hostile clients and servers send reaches nobody in a form that two readers
//! could take differently, and what well-behaved ones send arrives as it was. Peers are
//! those of `weft-kit`, sidecars are real processes.

mod answers;
mod authority;
mod beside;
mod bytes;
mod cancel;
mod conformance;
mod connection;
mod cost;
mod counter;
mod descriptors;
mod echo;
mod floods;
mod framing;
mod lanes;
mod memory;
mod mirror;
mod pair;
mod paths;
mod plaintext;
mod puppet;
mod replies;
mod serving;
mod slow;
mod streams;
mod tools;
mod translation;
mod trial;
mod upgrades;
mod upstreams;
mod victims;
mod ways;

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
    Upgrades: upgrades, "upgrades";
    Replies: replies, "replies";
    Connection: connection, "connection";
    Answers: answers, "answers";
    Plaintext: plaintext, "plaintext";
    Translation: translation, "translation";
    Paths: paths, "paths";
    Beside: beside, "beside";
    Slow: slow, "slow";
    Descriptors: descriptors, "descriptors";
    Memory: memory, "memory";
    Bytes: bytes, "bytes";
    Cancel: cancel, "cancel";
    Tools: tools, "tools";
    Conformance: conformance, "conformance";
    Upstreams: upstreams, "upstreams";
    Floods: floods, "floods";
    Streams: streams, "streams";
}
