//! Ending without a lost request: after SIGTERM, and after another process has taken over.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{configure::Stops, life::Signal};
use crate::{
    admin::Status,
    bootstrap::ExitAfter,
    config::Direction,
    drain::{Drain, Phase},
    state::{Listening, listening, own_sockets},
    worker::Shared,
    xds::{Command, Farewell},
};

/// Without an answer of the control plane, peers may learn within this time that they must not
/// open new connections here.
const MIN_DRAIN: Duration = Duration::from_secs(1);
/// Then what is idle is closed.
const IDLE_DRAIN: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);
/// How often it is looked whether the application listens.
const LOOK: Duration = Duration::from_millis(200);
/// How often a process that was relieved closes its idle connections to peers.
const SWEEP: Duration = Duration::from_secs(1);
/// How often the log says what is waited for.
const REPORT: Duration = Duration::from_secs(5);

/// Says every 5 s what still holds up the end.
struct Report {
    next: Instant,
}

impl Report {
    fn new() -> Self {
        Self {
            next: Instant::now() + REPORT,
        }
    }

    fn tell(&mut self, drain: &Drain, waiting_for: &str) {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + REPORT;
            tracing::info!(
                waiting_for,
                connections = drain.summary(),
                "shutting down still"
            );
        }
    }
}

/// After SIGTERM. Everything is served until nobody will call any more and the application, if
/// it is waited for, has ended; then connections are asked to end, and the sockets close.
pub(super) async fn shut_down(
    shared: &Shared,
    status: &Status,
    commands: &mpsc::UnboundedSender<Command>,
    stops: &Stops,
    (grace, exit_after): (Duration, ExitAfter),
) {
    let started = Instant::now();
    let drain = &shared.drain;
    let mut report = Report::new();
    tracing::info!(connections = drain.summary(), "shutting down");
    // The receiver is gone only if configuration has ended, which is as good as left.
    let _ = commands.send(Command::Leave);
    drain.advance(Phase::Leaving);
    let mut left = status.left.subscribe();
    let mut polls = interval_at(started + POLL, POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Without a certificate there has never been a stream, and nobody could call.
    let joined = *shared.identity.ready().borrow();
    // The client itself stops waiting after 10 s.
    while joined && left.borrow_and_update().is_none() && started.elapsed() < grace {
        report.tell(drain, "the control plane to tell the peers");
        tokio::select! {
            _ = left.changed() => {}
            _ = polls.tick() => {}
        }
    }
    let farewell = *left.borrow();
    tracing::info!(?farewell, after = ?started.elapsed(), "left the control plane");
    if exit_after == ExitAfter::Application {
        while started.elapsed() < grace && application_listens(shared) {
            report.tell(drain, "the application to close its ports");
            tokio::time::sleep(LOOK).await;
        }
    }
    drain.advance(Phase::Draining);
    let draining = Instant::now();
    let told = farewell == Some(Farewell::Acknowledged);
    while started.elapsed() < grace {
        if (told || started.elapsed() >= MIN_DRAIN) && drain.connections() == 0 {
            break;
        }
        if draining.elapsed() >= IDLE_DRAIN {
            drain.advance(Phase::Closing);
        }
        report.tell(drain, "connections to end");
        tokio::time::sleep(POLL).await;
    }
    stops.stop_all();
    drain.advance(Phase::Closing);
    // What was in the kernel's queue when the sockets closed is served too.
    tokio::time::sleep(POLL).await;
    while started.elapsed() < grace && drain.connections() > 0 {
        report.tell(drain, "connections to end");
        tokio::time::sleep(POLL).await;
    }
    conclude(drain, "the grace period is over; connections are cut");
}

/// After a handover: nothing new comes, what is open has its time. `relay` gets the signals
/// meanwhile; a request to end shortens the time to `grace`.
pub(super) async fn fade(
    shared: &Shared,
    signals: &mut mpsc::UnboundedReceiver<Signal>,
    (upgrade_grace, grace): (Duration, Duration),
    relay: impl Fn(Signal),
) {
    let drain = &shared.drain;
    let mut report = Report::new();
    let mut end = Instant::now() + upgrade_grace;
    // Idle connections are not closed: no peer knows that this process ends, and its next
    // request would meet the close. It is answered with `Connection: close`.
    drain.advance(Phase::Draining);
    // What was in the kernel's queue is being accepted.
    tokio::time::sleep(POLL).await;
    let mut next_sweep = Instant::now();
    while Instant::now() < end && drain.connections() > 0 {
        // Our own idle connections are of no more use to us, and they hold up our peers.
        if Instant::now() >= next_sweep {
            next_sweep = Instant::now() + SWEEP;
            for cluster in shared.snapshots.load_full().clusters.values() {
                cluster.close();
            }
        }
        report.tell(
            drain,
            "connections to end; another process serves the workload",
        );
        tokio::select! {
            Some(signal) = signals.recv() => {
                relay(signal);
                if signal == Signal::Terminate {
                    end = end.min(Instant::now() + grace);
                    drain.advance(Phase::Closing);
                }
            }
            () = tokio::time::sleep(POLL) => {}
        }
    }
    conclude(
        drain,
        "the time after the upgrade is over; connections are cut",
    );
}

fn conclude(drain: &Drain, cut: &str) {
    match drain.connections() {
        0 => tracing::info!("all connections have ended"),
        left => tracing::warn!(left, connections = drain.summary(), "{cut}"),
    }
}

/// Whether the application still takes connections. Where that cannot be seen, it does not:
/// nobody must wait for what cannot be known.
fn application_listens(shared: &Shared) -> bool {
    let snapshot = shared.snapshots.load_full();
    let inbound = snapshot.listeners.values();
    let ports: Vec<Option<u16>> = inbound
        .filter(|listener| listener.config.direction == Direction::Inbound)
        .filter(|listener| listener.config.dns.is_none())
        .map(|listener| listener.config.port)
        .collect();
    match (listening(), own_sockets()) {
        (Ok(all), Ok(own)) => {
            let others = all
                .into_iter()
                .filter(|socket| !own.contains(&socket.inode));
            let uid = rustix::process::geteuid().as_raw();
            waits(&ports, uid, others)
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "cannot see whether the application listens; not waiting for it");
            false
        }
    }
}

/// Whether one of the sockets is the application's: it has one of the ports or, where all
/// ports are captured (`None`), belongs to somebody else than the sidecar.
fn waits(ports: &[Option<u16>], own: u32, others: impl Iterator<Item = Listening>) -> bool {
    let mut others = others;
    others.any(|socket| {
        ports.iter().any(|port| match port {
            Some(port) => socket.port == *port,
            None => socket.uid != own,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::waits;
    use crate::state::Listening;

    #[test]
    fn the_application_is_told_from_others() {
        let at = |port, uid| Listening {
            port,
            uid,
            inode: 1,
        };
        // (ports of inbound listeners, (port, user) of others that listen, waits)
        for (ports, others, expected) in [
            (vec![Some(8080)], vec![at(8080, 1000)], true),
            (vec![Some(8080)], vec![at(8080, 14_020)], true),
            (vec![Some(8080)], vec![at(9090, 1000)], false),
            (vec![Some(8080), Some(9090)], vec![at(9090, 1000)], true),
            (vec![None], vec![at(9090, 1000)], true),
            (vec![None], vec![at(9090, 14_020)], false),
            (vec![None], vec![], false),
            (vec![], vec![at(8080, 1000)], false),
        ] {
            let found = waits(&ports, 14_020, others.iter().copied());
            assert_eq!(found, expected, "{ports:?} {others:?}");
        }
    }
}
