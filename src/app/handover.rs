//! One process of a workload takes over from another: what the two say to each other. Nothing
//! of the old one is given up before the new one has everything in force.
//!
//! ```text
//! new: Request               who it is
//! old: Answer + sockets      or why not
//! new: Verdict               after it has identity, configuration and listeners
//! old: Last                  after it has stopped accepting
//! ```

use std::{os::unix::net::UnixStream, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{net::UnixListener, sync::oneshot};
use weft_handover::{Channel, Error, Socket};

/// Name of the socket in the state directory.
pub(super) const DOOR: &str = "handover.sock";
/// For what the other process has at hand.
const ANSWER: Duration = Duration::from_secs(5);
/// For a new process to have everything in force.
pub(super) const TAKEOVER: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    version: String,
    workload: String,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The sockets follow.
    Take {
        generation: u32,
        version: String,
    },
    Refused(String),
}

#[derive(Debug, Serialize, Deserialize)]
enum Verdict {
    Ready,
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
enum Last {
    /// The new process is the one.
    Done,
    Refused(String),
}

/// The process that serves the workload until now, from the new one's view. Everything blocks.
#[derive(Debug)]
pub(super) struct Predecessor {
    channel: Channel,
    /// How many processes there were up to it.
    pub(super) generation: u32,
}

impl Predecessor {
    /// Asks the process that serves `workload` from this directory for its sockets; `None` if
    /// there is no such process.
    ///
    /// # Errors
    /// When there is one that cannot be taken over from.
    pub(super) fn ask(door: &Path, workload: &str) -> Result<Option<(Self, Vec<Socket>)>, String> {
        let asked = || -> Result<_, Error> {
            let Some(mut channel) = weft_handover::connect(door)? else {
                return Ok(None);
            };
            let request = Request {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                workload: workload.to_owned(),
            };
            channel.send(&request, ANSWER)?;
            match channel.receive(ANSWER)? {
                Answer::Take {
                    generation,
                    version,
                } => {
                    let sockets = channel.receive_sockets(ANSWER)?;
                    tracing::info!(
                        pid = channel.peer(),
                        generation,
                        version,
                        sockets = sockets.len(),
                        "taking over from the process that serves this workload"
                    );
                    let predecessor = Self {
                        channel,
                        generation,
                    };
                    Ok(Some((predecessor, sockets)))
                }
                Answer::Refused(why) => Err(Error::Protocol(why)),
            }
        };
        asked().map_err(|error| {
            format!(
                "{}: a process serves this workload and does not hand over: {error}",
                door.display()
            )
        })
    }

    /// Everything is in force here: waits until the old process has stopped accepting. If it
    /// is gone by now, its sockets are ours all the same.
    ///
    /// # Errors
    /// When it has given up waiting, and serves on.
    pub(super) fn relieve(mut self) -> Result<(), String> {
        let last = self
            .channel
            .send(&Verdict::Ready, ANSWER)
            .and_then(|()| self.channel.receive(ANSWER));
        match last {
            Ok(Last::Done) => Ok(()),
            Ok(Last::Refused(why)) => Err(format!("the old process serves on: {why}")),
            Err(Error::Gone(_)) => {
                tracing::warn!("the old process has ended in between; its sockets are taken over");
                Ok(())
            }
            Err(error) => Err(format!("the old process serves on: {error}")),
        }
    }

    /// Tells the old process to serve on.
    pub(super) fn give_up(mut self, why: &str) {
        // It finds out anyway when the connection ends.
        let _ = self.channel.send(&Verdict::Failed(why.to_owned()), ANSWER);
    }
}

/// A process that wants to take over, from the old one's view.
#[derive(Debug)]
pub(super) struct Successor(Channel);

/// Where successors knock.
#[derive(Debug)]
pub(super) struct Door(UnixListener);

impl Door {
    /// Opens it at `path`, in place of whoever had it before.
    ///
    /// # Errors
    /// When the path is not writable or too long.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let listener = weft_handover::listen(path).map_err(|error| error.to_string())?;
        UnixListener::from_std(listener)
            .map(Self)
            .map_err(|error| error.to_string())
    }

    /// Waits for a process of this workload that wants to take over. Cancel safe.
    pub(super) async fn knock(&self, workload: &str) -> Successor {
        loop {
            let accepted = self.0.accept().await;
            let Ok(stream) = accepted.and_then(|(stream, _)| stream.into_std()) else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let workload = workload.to_owned();
            match blocking(move || listen_to(stream, &workload)).await {
                Ok(successor) => return successor,
                // Somebody wanted to know whether we are here.
                Err(Error::Gone(_)) => {}
                Err(error) => tracing::warn!(%error, "somebody knocked and was turned away"),
            }
        }
    }
}

fn listen_to(stream: UnixStream, workload: &str) -> Result<Successor, Error> {
    let mut channel = Channel::new(stream)?;
    let request: Request = channel.receive(ANSWER)?;
    if request.workload != workload {
        let why = format!(
            "the directory is of workload {workload}, which is running, and not of {}; give each its own",
            request.workload
        );
        channel.send(&Answer::Refused(why.clone()), ANSWER)?;
        return Err(Error::Protocol(why));
    }
    tracing::info!(
        pid = channel.peer(),
        version = request.version,
        "a new process takes over"
    );
    Ok(Successor(channel))
}

impl Successor {
    /// Its process ID.
    pub(super) fn pid(&self) -> u32 {
        self.0.peer()
    }

    /// Gives it the sockets and waits until it has everything in force.
    ///
    /// # Errors
    /// When it fails or says nothing for too long: then it has been told that this process
    /// serves on.
    pub(super) async fn offer(
        mut self,
        generation: u32,
        sockets: Vec<Socket>,
    ) -> Result<Self, String> {
        blocking(move || {
            let answer = Answer::Take {
                generation,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            let given = self
                .0
                .send(&answer, ANSWER)
                .and_then(|()| self.0.send_sockets(&sockets, ANSWER))
                .and_then(|()| self.0.receive(TAKEOVER));
            match given {
                Ok(Verdict::Ready) => Ok(self),
                Ok(Verdict::Failed(why)) => Err(why),
                Err(error) => {
                    let why = error.to_string();
                    let _ = self.0.send(&Last::Refused(why.clone()), ANSWER);
                    Err(why)
                }
            }
        })
        .await
    }

    /// This process accepts nothing any more.
    pub(super) fn done(mut self) {
        // One that is gone by now leaves sockets that nobody serves; it was ready a moment ago.
        if let Err(error) = self.0.send(&Last::Done, ANSWER) {
            tracing::error!(%error, "the new process is gone");
        }
    }

    /// Turns it away.
    pub(super) fn refuse(mut self, why: &str) {
        let _ = self.0.send(&Answer::Refused(why.to_owned()), ANSWER);
    }
}

/// Runs what blocks for a bounded time on a thread of its own. Not tokio's: a runtime that
/// ends does not wait for it.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, result) = oneshot::channel();
    let started = std::thread::Builder::new()
        .name("handover".to_owned())
        .spawn(move || drop(sender.send(work())));
    if let Err(error) = started {
        tracing::error!(%error, "no thread can be started");
    }
    match result.await {
        Ok(result) => result,
        // The thread could not start or has panicked, which is logged: nothing to go on with.
        Err(_) => std::future::pending().await,
    }
}
