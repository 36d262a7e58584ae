//! The upgrade in place: a new process of the program takes over the listening sockets and
//! the data directory, and no connection is refused meanwhile.
//!
//! 1. The old process, asked to, starts its program file again, and serves on.
//! 2. The new one reads its options and its configuration, connects to `handover.sock` in the
//!    data directory, and asks for the place. Whatever goes wrong up to here changes nothing.
//! 3. The old one makes sure that it could start again, ends its streams, writes its last and
//!    lets go of the data directory. Then it gives the sockets away; connections wait in them.
//! 4. The new one takes the data directory, loads, says that it serves; the old one ends.
//! 5. If that does not come in time, the old one ends the new one and takes its place again.
//!
//! So there is one writer of the data directory at any time, which its lock makes sure of.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use weft_handover::{Channel, Error as HandoverError};

use crate::sockets::Sockets;

/// Its name in the data directory.
const SOCKET: &str = "handover.sock";
/// The variable that tells a process whose place it is to take: the process ID of that one.
const SUCCEEDS: &str = "WEFT_CONTROL_SUCCEEDS";
/// How long each side waits for the other.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a new process that fails may take to end by itself.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often a child that was started is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What the two processes say.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// The new one could take the place.
    Ready {
        /// Its version.
        version: String,
    },
    /// The place is free; the sockets follow.
    Yours {
        /// Whether they are the service manager's.
        activated: bool,
    },
    /// The new one has taken the place.
    Serving,
}

/// Why an upgrade does not happen.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The program cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program file.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The new process has ended, and said why in its own log.
    #[error("the new process has ended: {0}")]
    Ended(std::process::ExitStatus),
    /// The new process says nothing.
    #[error("the new process has not asked for the place within {} s", PATIENCE.as_secs())]
    Silent,
    /// The process cannot be replaced.
    #[error(
        "process 1 cannot be replaced in place, its container ends with it: replace the container"
    )]
    FirstProcess,
    /// The two did not understand each other.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// Something else was said than agreed.
    #[error("the other process said {0} out of turn")]
    OutOfTurn(String),
    /// The system.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// The program of this process, to be started again.
#[derive(Debug)]
pub struct Program {
    file: PathBuf,
    arguments: Vec<OsString>,
    socket: PathBuf,
}

impl Program {
    /// That of this process; `data` is its data directory. To be called at the start: later
    /// the directory may be another, and the file replaced.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn of_this_process(data: &Path) -> io::Result<Self> {
        let mut arguments = env::args_os();
        let named = arguments.next().map(PathBuf::from);
        // As it was called: a link that leads to the new version by then is followed.
        let file = match named {
            Some(named) if named.components().count() > 1 => std::path::absolute(named)?,
            Some(named) => in_path(&named).map_or_else(env::current_exe, Ok)?,
            None => env::current_exe()?,
        };
        Ok(Self {
            file,
            arguments: arguments.collect(),
            socket: std::path::absolute(data)?.join(SOCKET),
        })
    }

    /// Starts the program and waits until it asks for the place. This process may serve on
    /// meanwhile.
    ///
    /// Cancel safe: dropping it ends the new process.
    ///
    /// # Errors
    /// When it does not come that far. Nothing has changed then.
    pub async fn start(&self) -> Result<Successor, UpgradeError> {
        let own = std::process::id();
        if own == 1 {
            return Err(UpgradeError::FirstProcess);
        }
        let listener = weft_handover::listen(&self.socket)?;
        let _gone = RemoveOnDrop(&self.socket);
        let listener = UnixListener::from_std(listener)?;
        let child = Command::new(&self.file)
            .args(&self.arguments)
            .env(SUCCEEDS, own.to_string())
            .spawn()
            .map_err(|source| UpgradeError::Start {
                program: self.file.clone(),
                source,
            })?;
        let mut child = EndOnDrop(Some(child));
        let deadline = tokio::time::sleep(PATIENCE);
        tokio::pin!(deadline);
        let mut look = tokio::time::interval(LOOK);
        let stream = loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let stream = accepted?.0;
                    let peer = stream.peer_cred()?.pid();
                    if peer.and_then(|pid| u32::try_from(pid).ok()) == Some(child.id()) {
                        break stream;
                    }
                }
                _ = look.tick() => child.check()?,
                () = &mut deadline => return Err(UpgradeError::Silent),
            }
        };
        let mut channel = Channel::new(stream.into_std()?)?;
        let channel = tokio::task::spawn_blocking(move || match channel.receive(PATIENCE)? {
            Message::Ready { version } => {
                tracing::info!(version, "a new process is ready to take over");
                Ok(channel)
            }
            other => Err(UpgradeError::OutOfTurn(format!("{other:?}"))),
        });
        match channel.await.map_err(io::Error::other)? {
            Ok(channel) => Ok(Successor { channel, child }),
            Err(error) => Err(child.end_or(error).await),
        }
    }
}

/// The file that a shell would start.
fn in_path(name: &Path) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// A process that asks for the place of this one. Dropped, it is ended.
#[derive(Debug)]
pub struct Successor {
    channel: Channel,
    child: EndOnDrop,
}

impl Successor {
    /// Gives the sockets away, and waits until the new process serves. This one must have
    /// written its last, and let go of the data directory.
    ///
    /// Cancel safe: dropping it ends the new process.
    ///
    /// # Errors
    /// When the new process does not serve in time. It has ended then, and the place is free.
    pub async fn hand_over(self, sockets: &Sockets) -> Result<u32, UpgradeError> {
        let Self {
            mut channel,
            mut child,
        } = self;
        let activated = sockets.is_activated();
        let given = sockets.as_slice().iter();
        let given = given.map(weft_handover::Socket::try_clone);
        let given: Vec<_> = given.collect::<io::Result<_>>()?;
        let talk = tokio::task::spawn_blocking(move || {
            channel.send(&Message::Yours { activated }, PATIENCE)?;
            channel.send_sockets(&given, PATIENCE)?;
            match channel.receive(PATIENCE)? {
                Message::Serving => Ok(()),
                other => Err(UpgradeError::OutOfTurn(format!("{other:?}"))),
            }
        });
        match talk.await.map_err(io::Error::other)? {
            Ok(()) => Ok(child.release()),
            Err(error) => Err(child.end_or(error).await),
        }
    }
}

/// The process whose place this one is to take.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
}

impl Predecessor {
    /// The process that started this one to take its place; `None` for a process that was
    /// started otherwise, or whose predecessor has ended meanwhile. Blocks shortly. To be
    /// called when nothing of this process itself is in the way of serving.
    ///
    /// # Errors
    /// When it belongs to another user.
    pub fn find(data: &Path) -> Result<Option<Self>, UpgradeError> {
        let expected = env::var(SUCCEEDS).ok();
        let Some(expected) = expected.and_then(|pid| pid.parse::<u32>().ok()) else {
            return Ok(None);
        };
        let found = weft_handover::connect(&data.join(SOCKET))?;
        let found = found.filter(|channel| channel.peer() == expected);
        if found.is_none() {
            tracing::warn!(
                process = expected,
                "the process to succeed is not there any more: starting as usual"
            );
        }
        Ok(found.map(|channel| Self { channel }))
    }

    /// Asks for the place and waits until it is free. Blocks.
    ///
    /// # Errors
    /// When the other process does not give it away.
    pub fn take_over(&mut self) -> Result<Sockets, UpgradeError> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.channel.send(&Message::Ready { version }, PATIENCE)?;
        let activated = match self.channel.receive(PATIENCE)? {
            Message::Yours { activated } => activated,
            other => return Err(UpgradeError::OutOfTurn(format!("{other:?}"))),
        };
        let sockets = self.channel.receive_sockets(PATIENCE)?;
        Ok(Sockets::handed_over(sockets, activated))
    }

    /// Says that this process has taken the place: the other one ends. Blocks shortly.
    ///
    /// # Errors
    /// When the other one is not there to hear it.
    pub fn serving(mut self) -> Result<(), UpgradeError> {
        Ok(self.channel.send(&Message::Serving, PATIENCE)?)
    }
}

/// A child process that is ended unless it is released.
#[derive(Debug)]
struct EndOnDrop(Option<Child>);

impl EndOnDrop {
    fn id(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// Fails if it has ended.
    fn check(&mut self) -> Result<(), UpgradeError> {
        let Some(child) = &mut self.0 else {
            return Ok(());
        };
        match child.try_wait()? {
            Some(status) => Err(UpgradeError::Ended(status)),
            None => Ok(()),
        }
    }

    /// How it has ended, which says more than that it does not talk any more. It gets a moment
    /// to say why in its log.
    async fn end_or(&mut self, error: UpgradeError) -> UpgradeError {
        let deadline = tokio::time::Instant::now() + LAST_WORDS;
        while tokio::time::Instant::now() < deadline {
            if let Err(ended) = self.check() {
                return ended;
            }
            tokio::time::sleep(LOOK).await;
        }
        error
    }

    /// Lets it live on its own. Returns its process ID.
    fn release(&mut self) -> u32 {
        self.0.take().map_or(0, |child| child.id())
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself: then there is nothing to kill, and the wait tells.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}
