//! Telling a service manager how far this process has come (`sd_notify(3)`).

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use crate::Error;

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Start or reload has been finished.
    Ready,
    /// A reload has begun; [`State::Ready`] ends it.
    Reloading,
    /// The shutdown has begun.
    Stopping,
    /// The service's main process is this one now. Only the present main process is believed
    /// (`NotifyAccess=main`).
    MainPid(u32),
    /// One line for people.
    Status(String),
}

/// Tells the service manager, if there is one (`NOTIFY_SOCKET`). Does not block.
///
/// # Errors
/// When it cannot be told; the service is none the worse.
pub fn notify(states: &[State]) -> Result<(), Error> {
    match manager() {
        Some(socket) => notify_at(&socket, states),
        None => Ok(()),
    }
}

/// Whether there is a service manager to tell.
#[must_use]
pub fn has_manager() -> bool {
    manager().is_some()
}

fn manager() -> Option<OsString> {
    env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())
}

fn notify_at(socket: &OsStr, states: &[State]) -> Result<(), Error> {
    let send = || -> io::Result<()> {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(socket)?,
            _ => return Err(io::Error::other("neither a path nor @ and a name")),
        };
        let sender = UnixDatagram::unbound()?;
        sender.set_nonblocking(true)?;
        sender.send_to_addr(text(states).as_bytes(), &address)?;
        Ok(())
    };
    send().map_err(Error::io(format!("NOTIFY_SOCKET={}", socket.display())))
}

fn text(states: &[State]) -> String {
    let line = |state: &State| match state {
        State::Ready => "READY=1\n".to_owned(),
        State::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}\n", monotonic_micros()),
        State::Stopping => "STOPPING=1\n".to_owned(),
        State::MainPid(pid) => format!("MAINPID={pid}\n"),
        State::Status(words) => format!("STATUS={}\n", words.replace('\n', " ")),
    };
    states.iter().map(line).collect()
}

fn monotonic_micros() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsString,
        os::{
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixDatagram},
        },
    };

    use super::{State, notify_at, text};

    #[test]
    fn states_are_lines() {
        let states = [
            State::MainPid(7),
            State::Ready,
            State::Stopping,
            State::Status("a\nb".into()),
        ];
        assert_eq!(
            text(&states),
            "MAINPID=7\nREADY=1\nSTOPPING=1\nSTATUS=a b\n"
        );
        let reload = text(&[State::Reloading]);
        assert!(
            reload.starts_with("RELOADING=1\nMONOTONIC_USEC="),
            "{reload}"
        );
    }

    #[test]
    fn paths_and_abstract_names_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("weft-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (socket, given) in [
            (&by_path, path.into_os_string()),
            (&by_name, OsString::from(format!("@{name}"))),
        ] {
            notify_at(&given, &[State::Ready]).unwrap();
            let mut got = [0; 64];
            let n = socket.recv(&mut got).unwrap();
            assert_eq!(&got[..n], b"READY=1\n");
        }
        let error = notify_at("relative".as_ref(), &[State::Ready]).unwrap_err();
        assert!(error.to_string().contains("NOTIFY_SOCKET=relative"));
    }
}
