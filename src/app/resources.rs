//! What the machine gives the process: files and memory, measured and put into the settings that
//! leave them open.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::sleep;

use crate::{
    memory::{Gauge, Pressure, Shedder},
    telemetry::Metrics,
};

/// How often the memory is looked at, while there is enough of it and while half is used: a
/// machine can fill the rest in less than the first.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(20));

/// Lets the process open as many files as it may: the soft limit is for programs that cannot
/// handle high numbers.
pub(super) fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    match raised {
        Ok(()) => tracing::info!(was = ?current, now = ?maximum, "limit of open files"),
        Err(error) => {
            tracing::warn!(%error, is = ?current, hard = ?maximum, "the limit of open files stays");
        }
    }
}

/// How many connections of clients there may be.
pub(super) fn max_connections(setting: usize) -> usize {
    let files = getrlimit(Resource::Nofile).current;
    let most = connections_of(setting, files);
    if files.is_some_and(|files| most as u64 >= files) {
        tracing::warn!(
            setting,
            files,
            "WEFT_PROXY_MAX_CONNECTIONS is more than the files that may be open: none will be left \
             for connections to servers"
        );
    }
    most
}

/// Half of the files, since each connection that comes in may need one that goes out; without a
/// limit, as many as there are.
fn connections_of(setting: usize, files: Option<u64>) -> usize {
    match (setting, files) {
        (0, Some(files)) => usize::try_from(files / 2).unwrap_or(usize::MAX),
        (0, None) => usize::MAX,
        (set, _) => set,
    }
}

/// Looks at the memory as long as the process serves.
pub(super) async fn measure(gauge: Gauge, metrics: Arc<Metrics>) {
    let budget = gauge.memory().budget();
    metrics
        .memory_budget
        .set(i64::try_from(budget).unwrap_or(i64::MAX));
    tracing::info!(budget, cgroup = ?gauge.limit(), "memory");
    let mut before = Pressure::Normal;
    let mut shedder = Shedder::new(gauge.memory(), gauge.limit());
    loop {
        let look = gauge.look();
        metrics.memory_used("charged", Some(look.charged));
        metrics.memory_used("resident", look.resident);
        metrics.memory_used("cgroup", look.cgroup);
        metrics.memory_pressure.set(look.pressure as i64);
        if look.pressure > before {
            tracing::warn!(pressure = ?look.pressure, ?look, budget, "memory is short");
        } else if look.pressure < before {
            tracing::info!(pressure = ?look.pressure, "memory is less short");
        }
        before = look.pressure;
        let ended = shedder.act(&look, Instant::now());
        if ended.connections > 0 {
            metrics.ended(ended.connections as u64);
            tracing::warn!(
                ?ended,
                strain = look.strain,
                "connections that keep most are ended"
            );
        }
        sleep(if look.strain < 500 { LOOK.0 } else { LOOK.1 }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::connections_of;

    #[test]
    fn half_of_the_files_are_for_clients() {
        for (setting, files, expected) in [
            (0, Some(1024), 512),
            (0, Some(3), 1),
            (0, None, usize::MAX),
            (16, Some(1024), 16),
            (5000, Some(1024), 5000),
            (5000, None, 5000),
        ] {
            assert_eq!(connections_of(setting, files), expected);
        }
    }
}
