//! The Weft sidecar: every call of one workload, in and out, over mTLS, balanced and measured.
//!
//! Modules in reading order; each may use only those above it (`tests/it/tidy.rs` checks).
#![allow(unreachable_pub)] // the modules are private: their `pub` is the crate's

mod admin;
pub mod app;
mod body;
pub mod bootstrap;
pub mod capture;
mod cluster;
mod config;
mod detect;
mod dns;
mod drain;
pub mod error;
mod fields;
#[doc(hidden)]
pub mod fuzz;
mod http;
mod identity;
mod io;
pub mod limits;
mod listener;
mod memory;
mod snapshot;
mod state;
mod tcp;
mod telemetry;
mod upstream;
mod util;
pub mod wire;
mod worker;
mod xds;

#[cfg(test)]
mod docs;
