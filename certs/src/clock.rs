//! The time source of the verifiers: injected, so that tests own the time.

use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// The wall clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl TimeProvider for SystemClock {
    fn current_time(&self) -> Option<UnixTime> {
        unix_time(SystemTime::now())
    }
}

/// Whole seconds since 1970; `None` for an earlier time.
pub(crate) fn unix_time(time: SystemTime) -> Option<UnixTime> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(
        since.as_secs(),
    )))
}
