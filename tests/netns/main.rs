//! `weft-proxy init` in network namespaces of its own: what is captured, and what is not.
//!
//! Needs root, and `ip`, `nft` and `iptables` to look at the result. Without them each test says
//! that it was skipped; with `WEFT_NETNS=1` it fails instead.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod inbound;
mod install;
mod invalid;
mod outbound;
mod route;
mod selftest;
mod space;
mod tproxy;
mod untracked;
