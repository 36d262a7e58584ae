//! What the proxy tells about its streams: metrics, the access log and its own log.

pub mod access_log;
mod family;
pub mod logging;
mod metrics;
mod stream_info;

pub use access_log::AccessLog;
pub use metrics::{ConnectionMetrics, Metrics, RouteMetrics, Tls};
#[cfg(test)]
pub use stream_info::Outcome;
pub use stream_info::{Side, StreamInfo};
