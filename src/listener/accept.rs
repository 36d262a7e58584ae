//! The accept loop: it never ends for an error, never spins, and lets in no more than there is
//! room for.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::io::Errno;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::connection;
use crate::worker::Worker;

/// Pauses after an error that is ours: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How often an error that goes on is written to the log.
const LOG: Duration = Duration::from_secs(1);

/// Accepts connections on one socket until `stop` is set. Which configuration serves a
/// connection is decided when it arrives, so a new configuration needs no new socket.
pub async fn accept(
    worker: Arc<Worker>,
    name: Arc<str>,
    socket: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let error = match accepted {
            Ok((tcp, client)) => {
                trouble.pause = None;
                serve(&worker, &name, tcp, client);
                continue;
            }
            Err(error) => error,
        };
        let kind = kind(&error);
        worker.shared.metrics.accept_error(kind);
        if kind == OF_THE_CONNECTION {
            continue;
        }
        if let Some(times) = trouble.worth_saying(Instant::now()) {
            tracing::warn!(%error, listener = %name, times,
                "cannot accept; is the limit of open files too low?");
        }
        tokio::select! {
            () = tokio::time::sleep(trouble.next_pause()) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    // What the kernel has queued by now has a client that thinks it is connected.
    while let Ok(accepted) = tokio::time::timeout(Duration::ZERO, socket.accept()).await {
        match accepted {
            Ok((tcp, client)) => serve(&worker, &name, tcp, client),
            Err(error) if kind(&error) == OF_THE_CONNECTION => {}
            Err(_) => break,
        }
    }
}

fn serve(worker: &Arc<Worker>, name: &Arc<str>, tcp: TcpStream, client: SocketAddr) {
    let Some(listener) = worker.shared.snapshots.load().listeners.get(name).cloned() else {
        return;
    };
    let admitted = match worker.shared.admit() {
        Ok(admitted) => admitted,
        Err(what) => {
            worker.shared.metrics.overloaded(what);
            // A reset: a polite end would keep the connection in the kernel for a minute.
            let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
            return;
        }
    };
    let (account, number) = (admitted.account(), admitted.number());
    let serving = connection::serve(worker.clone(), listener, tcp, client, account);
    let task = tokio::spawn(async move {
        serving.await;
        drop(admitted);
    });
    let memory = &worker.shared.memory;
    memory.served_by(number, task.abort_handle());
}

/// Errors that go on and on.
#[derive(Debug, Default)]
struct Trouble {
    pause: Option<Duration>,
    said: Option<Instant>,
    /// Since it was said.
    times: u64,
}

impl Trouble {
    /// Counts an error; how many there were, if it is time to say so.
    fn worth_saying(&mut self, now: Instant) -> Option<u64> {
        self.times += 1;
        if self.said.is_some_and(|said| now - said < LOG) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.times))
    }

    /// How long to wait now.
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause.map_or(FIRST_PAUSE, |pause| pause * 2);
        let pause = pause.min(LONGEST_PAUSE);
        self.pause = Some(pause);
        pause
    }
}

/// The errors of a connection that died in the queue: the socket is fine (accept(2)).
const OF_THE_CONNECTION: &str = "connection";

/// What an error is, as the metric calls it.
fn kind(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(
            Errno::CONNABORTED
            | Errno::CONNRESET
            | Errno::CONNREFUSED
            | Errno::INTR
            | Errno::PROTO
            | Errno::PERM
            | Errno::TIMEDOUT
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET
            | Errno::NOPROTOOPT,
        ) => OF_THE_CONNECTION,
        Some(Errno::MFILE) => "files",
        Some(Errno::NFILE) => "system_files",
        Some(Errno::NOBUFS | Errno::NOMEM) => "memory",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        time::{Duration, Instant},
    };

    use rustix::io::Errno;

    use super::{OF_THE_CONNECTION, Trouble, kind};

    #[test]
    fn errors_are_told_apart() {
        for (errno, expected) in [
            (Errno::MFILE, "files"),
            (Errno::NFILE, "system_files"),
            (Errno::NOBUFS, "memory"),
            (Errno::NOMEM, "memory"),
            (Errno::CONNABORTED, OF_THE_CONNECTION),
            (Errno::PROTO, OF_THE_CONNECTION),
            (Errno::PERM, OF_THE_CONNECTION),
            (Errno::INVAL, "other"),
            (Errno::BADF, "other"),
        ] {
            assert_eq!(kind(&errno.into()), expected, "{errno}");
        }
        assert_eq!(kind(&io::Error::other("no number")), "other");
    }

    #[test]
    fn pauses_grow_and_have_an_end() {
        let mut trouble = Trouble::default();
        let pauses: Vec<u128> = (0..6).map(|_| trouble.next_pause().as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 100, 100]);
        trouble.pause = None;
        assert_eq!(trouble.next_pause().as_millis(), 10);
    }

    #[test]
    fn what_goes_on_is_said_once_a_second() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        for (millis, expected) in [
            (0, Some(1)),
            (10, None),
            (999, None),
            (1000, Some(3)),
            (1001, None),
            (5000, Some(2)),
        ] {
            let now = start + Duration::from_millis(millis);
            assert_eq!(trouble.worth_saying(now), expected, "{millis}");
        }
    }
}
