//! Two processes of one user talk over a Unix socket: messages, and sockets that go along.
//!
//! A message is a version byte, its length (four bytes, big endian) and JSON. Sockets follow a
//! message that names them, in groups, each with one byte of its own: no byte that carries
//! sockets is ever read together with another.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt::socket_peercred,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Socket};

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;
/// How many sockets can be passed on.
pub const MAX_SOCKETS: usize = 1024;
/// Sockets in one group; the kernel takes up to 253.
const GROUP: usize = 64;
const VERSION: u8 = 1;
const MARK: u8 = b'F';

/// Listens for a successor at `path`, with mode 0600. What was at the path is replaced in one
/// step: whoever connects meets the old listener or this one. The listener does not block.
///
/// # Errors
/// When the path is too long or not writable.
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    let what = || format!("{}", path.display());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let bind = || {
        let _ = fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        fs::rename(&temporary, path)?;
        Ok(listener)
    };
    bind().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Error::io(what())(error)
    })
}

/// Connects to the process that listens at `path`; `None` if there is none.
///
/// # Errors
/// When there is one that belongs to another user.
pub fn connect(path: &Path) -> Result<Option<Channel>, Error> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    match UnixStream::connect(path) {
        Ok(stream) => Channel::new(stream).map(Some),
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => Ok(None),
        Err(error) => Err(Error::io(format!("{}", path.display()))(error)),
    }
}

/// The process that listens at `path` now; `None` if there is none.
///
/// # Errors
/// As [`connect`].
pub fn holder(path: &Path) -> Result<Option<u32>, Error> {
    Ok(connect(path)?.map(|channel| channel.peer()))
}

/// A conversation with another process of the same user.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    peer: u32,
}

impl Channel {
    /// A conversation over a connected socket.
    ///
    /// # Errors
    /// When the other process belongs to another user.
    pub fn new(stream: UnixStream) -> Result<Self, Error> {
        let failed = |error: rustix::io::Errno| Error::io("SO_PEERCRED")(error.into());
        let credentials = socket_peercred(&stream).map_err(failed)?;
        let own = rustix::process::geteuid().as_raw();
        let peer = credentials.uid.as_raw();
        if peer != own {
            return Err(Error::Foreign { peer, own });
        }
        stream
            .set_nonblocking(false)
            .map_err(Error::io("a handover socket"))?;
        Ok(Self {
            stream,
            peer: credentials.pid.as_raw_nonzero().get().unsigned_abs(),
        })
    }

    /// The other process: who connected, or who began to listen.
    #[must_use]
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When it is too long, or when the other process does not take it within `time`.
    pub fn send<T: Serialize>(&mut self, message: &T, time: Duration) -> Result<(), Error> {
        let doing = "sending a message";
        let body = serde_json::to_vec(message)
            .map_err(|error| Error::Protocol(format!("a message cannot be written: {error}")))?;
        let length = u32::try_from(body.len()).ok();
        let Some(length) = length.filter(|_| body.len() <= MAX_MESSAGE) else {
            return Err(Error::Protocol(format!(
                "a message of {} bytes is too long; at most {MAX_MESSAGE}",
                body.len()
            )));
        };
        let mut frame = vec![VERSION];
        frame.extend(length.to_be_bytes());
        frame.extend(body);
        let end = Instant::now() + time;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            self.arm(end, doing)?;
            match (&self.stream).write(rest) {
                Ok(0) => return Err(Error::Gone(doing)),
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::talk(doing, error)),
            }
        }
        Ok(())
    }

    /// Waits for a message, at most for `time`.
    ///
    /// # Errors
    /// When none comes, or one that is not understood.
    pub fn receive<T: DeserializeOwned>(&mut self, time: Duration) -> Result<T, Error> {
        let doing = "waiting for a message";
        let end = Instant::now() + time;
        let mut head = [0; 5];
        self.read(&mut head, end, doing)?;
        let [version, length @ ..] = head;
        if version != VERSION {
            return Err(Error::Protocol(format!(
                "the other process speaks version {version} of the handover, this one {VERSION}; restart instead"
            )));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_MESSAGE {
            return Err(Error::Protocol(format!(
                "a message of {length} bytes is announced; at most {MAX_MESSAGE} are taken"
            )));
        }
        let mut body = vec![0; length];
        self.read(&mut body, end, doing)?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::Protocol(format!("a message is not understood: {error}")))
    }

    /// Passes sockets on; this process keeps its own. The other side calls
    /// [`Self::receive_sockets`].
    ///
    /// # Errors
    /// When there are too many, or when the other process does not take them within `time`.
    pub fn send_sockets(&mut self, sockets: &[Socket], time: Duration) -> Result<(), Error> {
        let doing = "passing sockets on";
        if sockets.len() > MAX_SOCKETS {
            return Err(Error::Protocol(format!(
                "{} sockets cannot be passed on; at most {MAX_SOCKETS}",
                sockets.len()
            )));
        }
        let end = Instant::now() + time;
        let names: Vec<&str> = sockets.iter().map(Socket::name).collect();
        self.send(&names, time)?;
        for group in sockets.chunks(GROUP) {
            self.arm(end, doing)?;
            let fds: Vec<BorrowedFd<'_>> = group.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GROUP))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&fds));
            let mark = [IoSlice::new(&[MARK])];
            loop {
                match sendmsg(&self.stream, &mark, &mut control, SendFlags::NOSIGNAL) {
                    Ok(_) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(Error::talk(doing, error.into())),
                }
            }
        }
        Ok(())
    }

    /// Takes the sockets that the other side passes on with [`Self::send_sockets`].
    ///
    /// # Errors
    /// When they do not come, or when one does not listen. What has come is closed again,
    /// which does not disturb the other process.
    pub fn receive_sockets(&mut self, time: Duration) -> Result<Vec<Socket>, Error> {
        let doing = "taking sockets over";
        let end = Instant::now() + time;
        let names: Vec<String> = self.receive(time)?;
        if names.len() > MAX_SOCKETS {
            return Err(Error::Protocol(format!(
                "{} sockets are announced; at most {MAX_SOCKETS} are taken",
                names.len()
            )));
        }
        let mut sockets = Vec::with_capacity(names.len());
        for group in names.chunks(GROUP) {
            self.arm(end, doing)?;
            let fds = self.receive_group(doing)?;
            if fds.len() != group.len() {
                return Err(Error::Protocol(format!(
                    "{} sockets are announced and {} have come; is the limit of open files too low?",
                    group.len(),
                    fds.len()
                )));
            }
            for (name, fd) in group.iter().zip(fds) {
                sockets.push(Socket::new(name.clone(), fd)?);
            }
        }
        Ok(sockets)
    }

    fn receive_group(&self, doing: &'static str) -> Result<Vec<OwnedFd>, Error> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GROUP))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut mark = [0];
        let received = loop {
            let mut into = [IoSliceMut::new(&mut mark)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.stream, &mut into, &mut control, flags) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::talk(doing, error.into())),
            }
        };
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Err(Error::Gone(doing));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::Protocol(
                "not all sockets could be taken; is the limit of open files too low?".to_owned(),
            ));
        }
        if mark != [MARK] {
            return Err(Error::Protocol(
                "something else than sockets has come".to_owned(),
            ));
        }
        Ok(fds)
    }

    fn read(&self, into: &mut [u8], end: Instant, doing: &'static str) -> Result<(), Error> {
        let mut at = 0;
        while at < into.len() {
            self.arm(end, doing)?;
            match (&self.stream).read(&mut into[at..]) {
                Ok(0) => return Err(Error::Gone(doing)),
                Ok(n) => at += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::talk(doing, error)),
            }
        }
        Ok(())
    }

    /// The next call may take until `end`.
    fn arm(&self, end: Instant, doing: &'static str) -> Result<(), Error> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::TimedOut(doing));
        }
        let set = self
            .stream
            .set_read_timeout(Some(left))
            .and_then(|()| self.stream.set_write_timeout(Some(left)));
        set.map_err(Error::io(doing))
    }
}
