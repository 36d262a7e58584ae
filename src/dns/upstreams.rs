//! Which resolvers are asked, and in which order: those of the settings or of
//! `/etc/resolv.conf`, first the ones that have not just been silent.

use std::{
    fs::{self, File},
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::PORT;

/// How often the file is looked at.
const CHECK: Duration = Duration::from_secs(5);
/// How long a resolver that gave no answer is asked last.
const SUSPECT: Duration = Duration::from_secs(10);
/// How long one query tries a resolver that was silent, while the others wait for its result.
const PROBE: Duration = Duration::from_secs(2);
/// Resolvers that are used; more are not.
const MAX_RESOLVERS: usize = 8;
const MAX_FILE: u64 = 64 * 1024;

/// Where the resolvers are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the settings.
    Fixed(Vec<SocketAddr>),
    /// In a file in the form of resolv.conf(5), which is read again when it changes.
    File(PathBuf),
}

impl Default for Source {
    fn default() -> Self {
        Self::File("/etc/resolv.conf".into())
    }
}

impl std::str::FromStr for Source {
    type Err = String;

    /// Reads a comma list of `ip[:port]`, IPv6 with a port as `[ip]:port`; the port is 53 if
    /// it is not given. An empty text is the default.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let one = |item: &str| {
            let ip = item.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
            let address = match ip.unwrap_or(item).parse::<IpAddr>() {
                Ok(ip) => SocketAddr::new(ip, PORT),
                Err(_) => item.parse().map_err(|_| {
                    format!("{item:?} is no resolver; write an address such as 10.96.0.10 or [fd00::a]:53")
                })?,
            };
            if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
                return Err(format!("{item:?} is no address of a resolver"));
            }
            Ok(address)
        };
        let resolvers: Vec<SocketAddr> = text
            .split(',')
            .map(|item| one(item.trim()))
            .collect::<Result<_, _>>()?;
        if resolvers.len() > MAX_RESOLVERS {
            return Err(format!("at most {MAX_RESOLVERS} resolvers can be used"));
        }
        Ok(Self::Fixed(resolvers))
    }
}

/// The nameservers of a resolv.conf, and a warning for each that cannot be used.
fn nameservers(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let mut found = Vec::new();
    let mut warnings = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let word = words.next().unwrap_or_default();
        // A link-local address with its interface is the only form that is no address.
        match word.parse::<IpAddr>() {
            Ok(ip) if found.len() < MAX_RESOLVERS => found.push(SocketAddr::new(ip, PORT)),
            Ok(_) => warnings.push(format!(
                "nameserver {word} is one too many: {MAX_RESOLVERS} are used"
            )),
            Err(_) => warnings.push(format!(
                "nameserver {word} is not supported: write an IP address without interface"
            )),
        }
    }
    (found, warnings)
}

/// The version of a file.
type Stamp = (SystemTime, u64, u64);

#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    /// Until when it is asked last.
    suspect: Option<Instant>,
}

/// The resolvers in use.
#[derive(Debug)]
pub struct Upstreams {
    source: Source,
    /// Our own listeners: to ask them would be a loop.
    own: Vec<SocketAddr>,
    list: Vec<Upstream>,
    checked: Instant,
    seen: Option<Stamp>,
    /// The file could not be read the last time, which has been said.
    unreadable: bool,
}

impl Upstreams {
    /// Reads the list. Addresses in `own` are left out with a warning.
    #[must_use]
    pub fn new(source: Source, own: Vec<SocketAddr>, now: Instant) -> Self {
        let mut upstreams = Self {
            source,
            own,
            list: Vec::new(),
            checked: now,
            seen: None,
            unreadable: false,
        };
        match &upstreams.source {
            Source::Fixed(addresses) => upstreams.replace(addresses.clone()),
            Source::File(_) => upstreams.reload(),
        }
        if upstreams.list.is_empty() {
            tracing::warn!("there is no DNS resolver: only names of the mesh will be answered");
        }
        upstreams
    }

    /// The resolvers in the order in which to ask them now: the silent ones last. When the
    /// time of a silent one is over, this caller alone tries it in its place.
    pub fn order(&mut self, now: Instant) -> Vec<SocketAddr> {
        if now.saturating_duration_since(self.checked) >= CHECK {
            self.checked = now;
            self.reload();
        }
        let mut order = Vec::with_capacity(self.list.len());
        let mut last = Vec::new();
        for upstream in &mut self.list {
            match &mut upstream.suspect {
                Some(until) if now < *until => last.push(upstream.address),
                Some(until) => {
                    *until = now + PROBE;
                    order.push(upstream.address);
                }
                None => order.push(upstream.address),
            }
        }
        order.append(&mut last);
        order
    }

    /// A resolver has answered.
    pub fn answered(&mut self, address: SocketAddr) {
        self.set(address, None);
    }

    /// A resolver has not answered in time.
    pub fn timed_out(&mut self, address: SocketAddr, now: Instant) {
        self.set(address, Some(now + SUSPECT));
    }

    fn set(&mut self, address: SocketAddr, suspect: Option<Instant>) {
        if let Some(upstream) = self.list.iter_mut().find(|u| u.address == address) {
            upstream.suspect = suspect;
        }
    }

    /// Reads the file if it has changed. A file that names no resolver may be half written:
    /// those that are known stay.
    fn reload(&mut self) {
        let Source::File(path) = &self.source else {
            return;
        };
        let path = path.clone();
        let (stamp, text) = match read_if_changed(&path, self.seen) {
            Ok(Some(changed)) => changed,
            Ok(None) => return,
            Err(error) => {
                self.seen = None;
                if !std::mem::replace(&mut self.unreadable, true) {
                    tracing::warn!(path = %path.display(), %error, "the list of resolvers cannot be read");
                }
                return;
            }
        };
        self.seen = Some(stamp);
        self.unreadable = false;
        let (addresses, warnings) = nameservers(&text);
        for warning in warnings {
            tracing::warn!(path = %path.display(), "{warning}");
        }
        if addresses.is_empty() {
            tracing::warn!(path = %path.display(), "names no resolver; those that are known stay in use");
            return;
        }
        self.replace(addresses);
    }

    fn replace(&mut self, addresses: Vec<SocketAddr>) {
        let mut list: Vec<Upstream> = Vec::new();
        for address in addresses {
            if self.own.contains(&address) {
                tracing::warn!(%address, "is this sidecar itself and is not asked: that would be a loop");
            } else if list.iter().all(|known| known.address != address) {
                let known = self.list.iter().find(|known| known.address == address);
                list.push(Upstream {
                    address,
                    suspect: known.and_then(|known| known.suspect),
                });
            }
        }
        self.list = list;
    }
}

fn read_if_changed(path: &Path, seen: Option<Stamp>) -> io::Result<Option<(Stamp, String)>> {
    let meta = fs::metadata(path)?;
    let stamp = (meta.modified()?, meta.len(), meta.ino());
    if seen == Some(stamp) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(Some((stamp, String::from_utf8_lossy(&bytes).into_owned())))
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use tokio::time::Instant;

    use super::{Source, Upstreams, nameservers};

    fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn settings_are_lists_of_addresses() {
        for (text, expected) in [
            ("10.0.0.1", &["10.0.0.1:53"][..]),
            ("10.0.0.1:5353, fd00::1", &["10.0.0.1:5353", "[fd00::1]:53"]),
            ("[fd00::1],[fd00::2]:54", &["[fd00::1]:53", "[fd00::2]:54"]),
        ] {
            assert_eq!(text.parse(), Ok(Source::Fixed(sockets(expected))), "{text}");
        }
        assert_eq!("".parse(), Ok(Source::default()));
        for text in [
            "dns.example",
            "10.0.0.1,",
            "10.0.0.1:0",
            "0.0.0.0",
            "1.2.3.4:x",
            &"1.1.1.1,".repeat(9),
        ] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(error.contains("resolver"), "{error}");
        }
    }

    #[test]
    fn resolv_conf_is_read() {
        let text = "# nameserver 9.9.9.9\nsearch blog.svc\nnameserver 10.0.0.1\n nameserver\tfd00::1 \n\
                    nameserver fe80::1%eth0\nnameservers 8.8.8.8\noptions ndots:5\nnameserver\n";
        let (found, warnings) = nameservers(text);
        assert_eq!(found, sockets(&["10.0.0.1:53", "[fd00::1]:53"]));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        let many = "nameserver 10.0.0.1\n".repeat(10_000);
        assert_eq!(nameservers(&many).0.len(), 8);
    }

    #[test]
    fn silent_resolvers_are_asked_last_and_tried_by_one_query_at_a_time() {
        let now = Instant::now();
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        let [a, b, c] = ["1.1.1.1:53", "2.2.2.2:53", "3.3.3.3:53"].map(|a| a.parse().unwrap());
        let mut upstreams = Upstreams::new(Source::Fixed(vec![a, b, c]), vec![], now);
        assert_eq!(upstreams.order(at(0)), [a, b, c]);
        upstreams.timed_out(a, at(0));
        assert_eq!(upstreams.order(at(9)), [b, c, a]);
        assert_eq!(upstreams.order(at(10)), [a, b, c], "the one that tries it");
        assert_eq!(upstreams.order(at(11)), [b, c, a]);
        upstreams.timed_out(a, at(12));
        assert_eq!(upstreams.order(at(13)), [b, c, a]);
        upstreams.answered(a);
        assert_eq!(upstreams.order(at(13)), [a, b, c]);
        for address in [a, b, c] {
            upstreams.timed_out(address, at(20));
        }
        assert_eq!(upstreams.order(at(21)), [a, b, c], "all of them silent");
    }

    #[test]
    fn our_own_listener_is_not_asked() {
        let (own, other) = (
            "127.0.0.1:14053".parse().unwrap(),
            "1.1.1.1:53".parse().unwrap(),
        );
        let source = Source::Fixed(vec![own, other, other]);
        let mut upstreams = Upstreams::new(source, vec![own], Instant::now());
        assert_eq!(upstreams.order(Instant::now()), [other]);
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let now = Instant::now();
        let at = |seconds: u64| now + Duration::from_secs(seconds);
        let source = Source::File(path.clone());
        let mut upstreams = Upstreams::new(source, vec![], now);
        assert!(upstreams.order(now).is_empty());
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("nameserver 10.0.0.1\n");
        assert!(upstreams.order(at(4)).is_empty(), "not before its time");
        assert_eq!(upstreams.order(at(5)), sockets(&["10.0.0.1:53"]));
        write("nameserver 10.0.0.2\nnameserver 10.0.0.1\n");
        assert_eq!(upstreams.order(at(9)), sockets(&["10.0.0.1:53"]));
        upstreams.timed_out(sockets(&["10.0.0.1:53"])[0], at(9));
        assert_eq!(
            upstreams.order(at(10)),
            sockets(&["10.0.0.2:53", "10.0.0.1:53"])
        );
        write("");
        assert_eq!(upstreams.order(at(15)).len(), 2, "what is known stays");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(upstreams.order(at(20)).len(), 2);
        write("nameserver 10.0.0.3\n");
        assert_eq!(upstreams.order(at(25)), sockets(&["10.0.0.3:53"]));
    }
}
