//! Socket activation as systemd does it (`sd_listen_fds(3)`): `LISTEN_FDS`, `LISTEN_PID`,
//! `LISTEN_FDNAMES`.

use std::env;

use listenfd::ListenFd;

use crate::{Error, MAX_SOCKETS, Socket};

/// The sockets that this process was started with, with their names (`FileDescriptorName=`;
/// `listen` without). None if it was not started with any. Once in a process, before there are
/// threads: the variables are removed, so that children do not take the sockets for theirs.
///
/// # Errors
/// When one of them is not a listening TCP socket or a UDP socket; the text names it.
pub fn activation() -> Result<Vec<Socket>, Error> {
    let count = env::var("LISTEN_FDS").ok();
    if let Some(count) = count.as_deref().and_then(|text| text.parse::<usize>().ok())
        && count > MAX_SOCKETS
    {
        let words = format!("LISTEN_FDS={count}: at most {MAX_SOCKETS} sockets can be taken");
        return Err(Error::Protocol(words));
    }
    let names = names(&env::var("LISTEN_FDNAMES").unwrap_or_default());
    let mut given = ListenFd::from_env();
    (0..given.len())
        .map(|index| {
            let name = names.get(index).cloned().unwrap_or_else(|| "listen".into());
            let fd = match given.take_tcp_listener(index) {
                Ok(listener) => listener.map(Into::into),
                Err(_) => given
                    .take_udp_socket(index)
                    .map_err(Error::io(format!("LISTEN_FDS: socket {name:?}")))?
                    .map(Into::into),
            };
            let words = || format!("LISTEN_FDS: socket {name:?} was taken already");
            Socket::new(name.clone(), fd.ok_or_else(|| Error::Protocol(words()))?)
        })
        .collect()
}

fn names(text: &str) -> Vec<String> {
    text.split(':').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_divided_by_colons() {
        assert_eq!(super::names("a:b|8080:"), ["a", "b|8080", ""]);
    }
}
