//! The whole mesh in one process: control plane, sidecars and applications on loopback, on
//! free ports and with the real clock. Each test looks at what users see: answers, the
//! header `weft-reason`, and the metrics of the sidecars.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod attack;
mod balance;
mod config;
mod drain;
mod grpc;
mod hostile;
mod http;
mod lifecycle;
mod mtls;
mod overload;
mod routing;
mod support;
mod tcp;
mod tidy;
mod translation;
mod upgrade;
