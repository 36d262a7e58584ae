//! Hosts made of network namespaces: a router, and hosts with an IPv4 and an IPv6 address
//! each, whose default routes lead to it. What enters a namespace is either a process
//! (`Host::spec`) or a socket of this one (`Host::within`). Everything goes away on drop;
//! what a killed run has left behind goes away at the start of the next.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::error::{Context as _, Error, Result};
use crate::process::{Spec, which};

/// Names are `wfb<process>x<network>-<host>`, so that runs do not meet and dead ones are known.
const PREFIX: &str = "wfb";
/// Networks that this process has made.
static NETWORKS: AtomicU32 = AtomicU32::new(0);
/// UID and GID of a sidecar.
pub(crate) const PROXY: u32 = 14020;

/// As whom a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    /// UID and GID of the sidecar.
    Proxy,
    /// Root with the GID of the sidecar: what transparent sockets need.
    TransparentProxy,
    /// UID and GID of the sidecar, with the capability NET_RAW.
    RawProxy,
    /// An application without rights.
    Nobody,
}

impl User {
    const fn ids(self) -> (u32, u32) {
        match self {
            Self::Root => (0, 0),
            Self::Proxy | Self::RawProxy => (PROXY, PROXY),
            Self::TransparentProxy => (0, PROXY),
            Self::Nobody => (65534, 65534),
        }
    }

    pub(crate) const fn uid(self) -> u32 {
        self.ids().0
    }
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }
}

/// Why namespaces cannot be had here; `None` if they can.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root: run it with sudo".to_owned());
    }
    ["ip", "nft", "setpriv"]
        .into_iter()
        .find(|program| which(program).is_none())
        .map(|program| format!("no {program}: apt-get install iproute2 nftables util-linux"))
}

/// A router and the hosts around it.
#[derive(Debug)]
pub(crate) struct Network {
    /// Every packet between two hosts passes here.
    pub(crate) router: Host,
    number: u32,
}

impl Network {
    /// Makes the router. Also removes what runs that are dead have left.
    pub(crate) fn new() -> Result<Self> {
        if let Some(missing) = missing() {
            return Err(Error::new(missing));
        }
        remove_stale();
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let router = Host::create(number, "router", 0)?;
        router.within(|| {
            write_sysctl("ipv4/ip_forward", "1")?;
            write_sysctl("ipv6/conf/all/forwarding", "1")
        })??;
        Ok(Self { router, number })
    }

    /// Adds the host with the addresses 10.9.`number`.2 and fd00:9:`number`::2 (in hexadecimal).
    /// `nameserver` goes into its resolv.conf, which has the search list of a pod of the
    /// namespace `bench`.
    pub(crate) fn host(&self, label: &str, number: u8, nameserver: IpAddr) -> Result<Host> {
        let host = Host::create(self.number, label, number)?;
        let (inner, outer, n) = (&host.name, &self.router.name, number);
        let v6 = |last: u16| Ipv6Addr::new(0xfd00, 9, u16::from(n), 0, 0, 0, 0, last);
        ip(
            &format!("link add v{n} netns {outer} type veth peer name eth0 netns {inner}\n"),
            None,
        )?;
        ip(
            &format!(
                "addr add 10.9.{n}.1/24 dev v{n}\naddr add {}/64 dev v{n} nodad\nlink set v{n} up\n",
                v6(1)
            ),
            Some(outer),
        )?;
        ip(
            &format!(
                "addr add 10.9.{n}.2/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 10.9.{n}.1\nroute add default via {}\n",
                v6(2),
                v6(1)
            ),
            Some(inner),
        )?;
        let etc = host.etc();
        fs::create_dir_all(&etc).context(etc.display())?;
        let text = format!(
            "nameserver {nameserver}\nsearch bench.svc.cluster.local svc.cluster.local cluster.local\n\
             options ndots:5 timeout:2 attempts:2\n"
        );
        fs::write(etc.join("resolv.conf"), text).context(etc.display())?;
        Ok(host)
    }
}

/// One namespace.
#[derive(Debug)]
pub(crate) struct Host {
    name: String,
    handle: File,
    number: u8,
}

impl Host {
    fn create(network: u32, label: &str, number: u8) -> Result<Self> {
        let name = format!("{PREFIX}{}x{network}-{label}", std::process::id());
        ip(&format!("netns add {name}\n"), None)?;
        let path = Path::new("/run/netns").join(&name);
        let handle = File::open(&path).context(path.display())?;
        let host = Self {
            name,
            handle,
            number,
        };
        // Addresses of interfaces are usable at once, not after a second of looking for another
        // owner.
        host.within(|| write_sysctl("ipv6/conf/default/accept_dad", "0"))??;
        ip("link set lo up\n", Some(&host.name))?;
        Ok(host)
    }

    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        address(self.number, family)
    }

    pub(crate) fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// Runs `f` with this thread in the namespace: sockets made and threads started by it
    /// belong there for good. It is not to await.
    pub(crate) fn within<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        let _back = self.enter()?;
        Ok(f())
    }

    /// This thread stays in the namespace until that is dropped. To await meanwhile is right
    /// only where everything that runs on this thread belongs there.
    pub(crate) fn enter(&self) -> Result<Back> {
        let home = File::open("/proc/thread-self/ns/net")
            .context("the network namespace of this thread")?;
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&self.handle), network)
            .context(format!("enter {}", self.name))?;
        Ok(Back(home))
    }

    /// A connection from here; an error after 5 s.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        let socket = self
            .within(|| {
                if address.is_ipv4() {
                    TcpSocket::new_v4()
                } else {
                    TcpSocket::new_v6()
                }
            })?
            .context("a socket")?;
        let stream = timeout(Duration::from_secs(5), socket.connect(address))
            .await
            .context(format!("connect to {address}: no answer in 5 s"))?
            .context(format!("connect to {address}"))?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        Ok(stream)
    }

    /// A program that will run here as `user`.
    pub(crate) fn spec(
        &self,
        name: impl Into<String>,
        program: impl Into<PathBuf>,
        user: User,
    ) -> Spec {
        let (uid, gid) = user.ids();
        let spec = Spec::new(name, which("ip").unwrap_or_else(|| "ip".into()))
            .arg("netns")
            .pair("exec", &self.name)
            .arg("setpriv")
            .pair("--reuid", uid.to_string())
            .pair("--regid", gid.to_string())
            .arg("--clear-groups")
            // A change of user has reset it.
            .pair("--pdeathsig", "KILL");
        let spec = match user {
            User::RawProxy => spec
                .pair("--inh-caps", "+net_raw")
                .pair("--ambient-caps", "+net_raw"),
            _ => spec,
        };
        spec.arg("--").arg(program.into())
    }

    /// The processes that live here.
    pub(crate) fn processes(&self) -> Vec<u32> {
        processes(&self.name)
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Brings the thread back to where it was.
#[derive(Debug)]
pub(crate) struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        let network = Some(LinkNameSpaceType::Network);
        // It was there a moment ago; to go on elsewhere would disturb strangers.
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&self.0), network)
            .expect("a thread can return to its network namespace");
    }
}

/// The address of the host with that number.
pub(crate) fn address(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, number, 2).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 9, u16::from(number), 0, 0, 0, 0, 2).into(),
    }
}

/// Writes below /proc/sys/net of the namespace that the thread is in.
pub(crate) fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(name);
    fs::write(&path, value).context(path.display())
}

/// Runs commands of `ip`, one a line, in a namespace or here.
fn ip(commands: &str, namespace: Option<&str>) -> Result<()> {
    let program = which("ip").context("no ip: apt-get install iproute2")?;
    let mut child = Command::new(program)
        .args(namespace.iter().flat_map(|name| ["-n", name]))
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip")?;
    let mut input = child.stdin.take().context("ip has no input")?;
    input.write_all(commands.as_bytes()).context("ip")?;
    drop(input);
    let output = child.wait_with_output().context("ip")?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(format!(
        "ip: {commands}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

fn processes(namespace: &str) -> Vec<u32> {
    let output = Command::new("ip")
        .args(["netns", "pids", namespace])
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Kills what lives in the namespace and removes it. There is nobody to tell about failures:
/// the next run tries again.
fn remove(namespace: &str) {
    for pid in processes(namespace) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
            && pid != rustix::process::getpid()
        {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    let _ = ip(&format!("netns del {namespace}\n"), None);
    let _ = fs::remove_dir_all(Path::new("/etc/netns").join(namespace));
}

fn remove_stale() {
    let names = |dir: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let alive = |pid: u32| Path::new("/proc").join(pid.to_string()).exists();
    for name in names("/run/netns").into_iter().chain(names("/etc/netns")) {
        if owner(&name).is_some_and(|pid| !alive(pid)) {
            remove(&name);
        }
    }
}

/// The process that made a namespace of this name, if it is one of ours.
fn owner(namespace: &str) -> Option<u32> {
    let (owner, _) = namespace.strip_prefix(PREFIX)?.split_once('-')?;
    owner.split_once('x')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_ours_are_known_by_name() {
        for (name, expect) in [
            ("wfb123x0-client", Some(123)),
            ("wfb-client", None),
            ("wfbx12-client", None),
            ("wfx123x0-client", None),
            ("wfb123x0", None),
            ("wfb123-client", None),
        ] {
            assert_eq!(owner(name), expect, "{name}");
        }
    }

    #[test]
    fn addresses_follow_the_number() {
        assert_eq!(address(7, Family::V4).to_string(), "10.9.7.2");
        assert_eq!(address(250, Family::V6).to_string(), "fd00:9:fa::2");
    }

    #[tokio::test]
    async fn hosts_reach_each_other_and_go_away() {
        if let Some(missing) = missing() {
            eprintln!("skipped: {missing}");
            return;
        }
        let network = Network::new().unwrap();
        let nameserver = address(3, Family::V4);
        let (one, two) = (
            network.host("one", 1, nameserver).unwrap(),
            network.host("two", 2, nameserver).unwrap(),
        );
        for family in Family::BOTH {
            let address = two.at(family, 7000);
            let listener = two
                .within(|| std::net::TcpListener::bind(address))
                .unwrap()
                .unwrap();
            let stream = one.connect(address).await.unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer, stream.local_addr().unwrap());
            assert_eq!(peer.ip(), one.ip(family));
        }
        let name = one.name.clone();
        drop(one);
        assert!(!Path::new("/run/netns").join(name).exists());
    }
}
