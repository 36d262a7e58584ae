//! The proxy's own log, on standard error.

use tracing_subscriber::EnvFilter;

/// Starts logging with a filter in `env_logger` syntax, such as `warn,weft_proxy=debug`.
///
/// # Errors
/// When the filter is not understood.
pub fn start(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|e| format!("log filter `{filter}`: {e}"))?;
    // Set twice only by tests in one process; the first one counts.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .try_init();
    Ok(())
}
