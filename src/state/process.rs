//! Who listens on this machine: `/proc/net/tcp` and `/proc/net/tcp6` of this network namespace
//! (proc(5)).

use std::{collections::BTreeSet, fs, io};

/// The largest table that is read, in bytes: some 400,000 sockets.
const LARGEST: u64 = 64 << 20;
const LISTEN: &str = "0A";

/// One listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    /// Its port; the address does not matter here.
    pub port: u16,
    /// Who opened it.
    pub uid: u32,
    /// Its number in the kernel.
    pub inode: u64,
}

/// Every listening TCP socket of the network namespace, IPv4 and IPv6.
///
/// # Errors
/// When `/proc` is not there or a table is too large.
pub fn listening() -> io::Result<Vec<Listening>> {
    let mut all = parse(&table("/proc/net/tcp")?);
    match table("/proc/net/tcp6") {
        Ok(text) => all.extend(parse(&text)),
        // The kernel may have no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(all)
}

/// The kernel's numbers of the sockets that this process has open.
///
/// # Errors
/// When `/proc` is not there.
pub fn own_sockets() -> io::Result<BTreeSet<u64>> {
    let entries = fs::read_dir("/proc/self/fd")?.filter_map(Result::ok);
    Ok(entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|target| inode_of(target.to_str()?))
        .collect())
}

/// The number in `socket:[123]`.
fn inode_of(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

fn table(path: &str) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let read = fs::File::open(path)?
        .take(LARGEST)
        .read_to_string(&mut text)?;
    if read as u64 == LARGEST {
        return Err(io::Error::other(format!("{path} has too many sockets")));
    }
    Ok(text)
}

/// The listening sockets of a table. Lines that are not understood are passed over.
fn parse(table: &str) -> Vec<Listening> {
    table.lines().skip(1).filter_map(line).collect()
}

/// `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode ...`
fn line(line: &str) -> Option<Listening> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let local = words.next()?;
    let state = words.nth(1)?;
    if state != LISTEN {
        return None;
    }
    let uid = words.nth(3)?.parse().ok()?;
    let inode = words.nth(1)?.parse().ok()?;
    let port = local.rsplit_once(':')?.1;
    Some(Listening {
        port: u16::from_str_radix(port, 16).ok()?,
        uid,
        inode,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::{Listening, inode_of, listening, own_sockets, parse};

    #[test]
    fn listening_sockets_are_found_in_a_table() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:36B0 00000000:0000 0A 00000000:00000000 00:00000000 00000000 14020        0 51234 1 0000000000000000 100 0 0 10 0\n   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 51999 1 0000000000000000 100 0 0 10 0\n   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 52000 1 0000000000000000 20 4 30 10 -1\n   3: broken\n   4: 0100007F:XXXX 00000000:0000 0A 0:0 0:0 0 1 0 1\n";
        let at = |port, uid, inode| Listening { port, uid, inode };
        assert_eq!(
            parse(tcp),
            [at(14_000, 14_020, 51_234), at(8080, 1000, 51_999)]
        );
        let tcp6 = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 00000000000000000000000000000000:C383 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0000000000000000 100 0 0 10 0\n";
        assert_eq!(parse(tcp6), [at(50_051, 0, 77)]);
        assert_eq!(parse(""), []);
    }

    #[test]
    fn own_sockets_are_told_from_others() {
        assert_eq!(inode_of("socket:[123]"), Some(123));
        assert_eq!(inode_of("/dev/null"), None);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let all = listening().unwrap();
        let found = all.iter().find(|socket| socket.port == port).unwrap();
        assert!(own_sockets().unwrap().contains(&found.inode));
    }
}
