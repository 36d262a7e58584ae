//! Network namespaces: two hosts, `pod` and `peer`, on one wire.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    process::{Gid, Uid, geteuid},
    thread::{
        LinkNameSpaceType, move_into_link_name_space, set_thread_gid, set_thread_groups,
        set_thread_uid,
    },
};
use socket2::{Domain, SockRef, Socket, Type};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// For what must not happen: nothing waits longer than this for it.
pub(crate) const BRIEFLY: Duration = Duration::from_millis(300);
/// The sidecar's user and group.
pub(crate) const SIDECAR: (u32, u32) = (14_020, 14_020);
/// An application's.
pub(crate) const APP: (u32, u32) = (1000, 1000);

pub(crate) const POD_V4: &str = "10.111.0.1";
pub(crate) const PEER_V4: &str = "10.111.0.2";
pub(crate) const POD_V6: &str = "fd11::1";
pub(crate) const PEER_V6: &str = "fd11::2";

/// The wire's addresses, one pair for each family: pod and peer.
pub(crate) const FAMILIES: [(&str, &str); 2] = [(POD_V4, PEER_V4), (POD_V6, PEER_V6)];

/// Whether the test cannot be run here; says why. `WEFT_NETNS=1` makes it a failure.
pub(crate) fn skip(test: &str) -> bool {
    let Some(why) = missing() else { return false };
    assert!(
        std::env::var_os("WEFT_NETNS").is_none_or(|value| value != "1"),
        "{test}: {why}, and WEFT_NETNS=1 forbids to skip"
    );
    // Straight to standard error: what a test prints is shown only when it fails.
    let line = format!("netns::{test} SKIPPED: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    true
}

/// What these tests need and do not have.
fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    let works = |program: &str, arg: &str| {
        let output = Command::new(program).args(arg.split(' ')).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works("unshare", "--net true") {
        return Some("no permission to make network namespaces (CAP_SYS_ADMIN)".to_owned());
    }
    let absent = [
        ("ip", "-V"),
        ("nft", "--version"),
        ("iptables-nft", "--version"),
        ("ip6tables-legacy", "--version"),
        ("setpriv", "--version"),
    ]
    .into_iter()
    .find(|(program, arg)| !works(program, arg));
    absent.map(|(program, _)| format!("`{program}` is not installed"))
}

/// A network namespace; it is deleted at the end.
pub(crate) struct Space {
    name: String,
}

impl Space {
    /// A new one, with the loopback interface up.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let space = Self {
            name: format!("wfinit{}-{number}", std::process::id()),
        };
        sh(&format!("ip netns add {}", space.name));
        space.sh("ip link set lo up");
        space
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs something in it as root.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.run_as((0, 0), work)
    }

    /// Runs something in it as another user. Sockets stay in it, and stay that user's.
    pub(crate) fn run_as<T: Send>(
        &self,
        (uid, gid): (u32, u32),
        work: impl FnOnce() -> T + Send,
    ) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), network).unwrap();
                if gid != 0 {
                    set_thread_groups(&[]).unwrap();
                    set_thread_gid(Gid::from_raw(gid)).unwrap();
                }
                if uid != 0 {
                    set_thread_uid(Uid::from_raw(uid)).unwrap();
                }
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Runs a shell command in it, which must succeed; its standard output.
    pub(crate) fn sh(&self, command: &str) -> String {
        self.run(|| sh(command))
    }

    /// `weft-proxy init` in it.
    pub(crate) fn init(&self, args: &str) -> Output {
        self.run(|| {
            Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
                .arg("init")
                .args(args.split_whitespace())
                .output()
                .unwrap()
        })
    }

    /// `weft-proxy init`, which must succeed; what it printed.
    pub(crate) fn install(&self, args: &str) -> String {
        let output = self.init(args);
        let text = text(&output);
        assert!(output.status.success(), "init {args}: {text}");
        text
    }

    /// Listens in it as root.
    pub(crate) fn listen(&self, address: &str) -> Listener {
        let address: SocketAddr = address.parse().unwrap();
        self.run(|| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            socket.set_reuse_address(true).unwrap();
            // A program that another test is starting has all our sockets open for a moment.
            let deadline = Instant::now() + PATIENCE;
            while let Err(error) = socket.bind(&address.into()) {
                let taken = error.kind() == std::io::ErrorKind::AddrInUse;
                assert!(taken && Instant::now() < deadline, "{address}: {error}");
                std::thread::park_timeout(Duration::from_millis(5));
            }
            socket.listen(16).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            Listener(socket.into())
        })
    }

    /// Dials from it.
    pub(crate) fn dial(&self, owner: (u32, u32), to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        let stream = self.run_as(owner, || TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(stream)
    }

    /// Dials from it, from an address of its choice.
    pub(crate) fn dial_from(
        &self,
        owner: (u32, u32),
        source: &str,
        to: &str,
    ) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        let source: SocketAddr = at(source, 0).parse().unwrap();
        let stream: TcpStream = self.run_as(owner, || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&source.into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            std::io::Result::Ok(socket.into())
        })?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(stream)
    }

    /// A UDP socket in it.
    pub(crate) fn udp(&self, owner: (u32, u32), address: &str) -> UdpSocket {
        let socket = self.run_as(owner, || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Everything that rules are made of, as the kernel has it, without counters and without
    /// the link-local addresses, which come some time after the start.
    pub(crate) fn rules(&self) -> String {
        self.sh(
            "nft --stateless list ruleset; iptables-legacy-save | grep -v '^#' | sed 's/\\[.*//'; \
             ip6tables-legacy-save | grep -v '^#' | sed 's/\\[.*//'; \
             ip -4 rule; ip -6 rule; ip -4 route show table all | sort; \
             ip -6 route show table all | grep -v 'multicast\\|fe80:' | sort; ip -o address show dev lo",
        )
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .output();
    }
}

/// Pod and peer on one wire; the pod's default routes lead to the peer.
pub(crate) fn wire() -> (Space, Space) {
    let (pod, peer) = (Space::new(), Space::new());
    pod.sh(&format!(
        "ip link add eth0 type veth peer name eth0 netns {}",
        peer.name()
    ));
    for (space, v4, v6) in [(&pod, POD_V4, POD_V6), (&peer, PEER_V4, PEER_V6)] {
        space.sh(&format!(
            "ip link set eth0 up; ip address add {v4}/24 dev eth0; \
             ip -6 address add {v6}/64 dev eth0 nodad"
        ));
    }
    pod.sh(&format!(
        "ip route add default via {PEER_V4}; ip -6 route add default via {PEER_V6}"
    ));
    // Packets to documentation addresses end at the peer.
    peer.sh(
        "ip route add local 192.0.2.0/24 dev lo; ip -6 route add local 2001:db8::/32 dev lo; \
         sysctl -qw net.ipv6.ip_nonlocal_bind=1",
    );
    (pod, peer)
}

/// `address:port`, with brackets where they are needed.
pub(crate) fn at(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port).to_string()
}

/// The loopback address of the same family.
pub(crate) fn loopback(like: &str) -> &'static str {
    if like.contains(':') {
        "::1"
    } else {
        "127.0.0.1"
    }
}

/// Any address of the same family.
pub(crate) fn any(like: &str) -> &'static str {
    if like.contains(':') { "::" } else { "0.0.0.0" }
}

/// A listening socket.
pub(crate) struct Listener(pub(crate) TcpListener);

/// A connection as the one who accepted it sees it.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    /// SO_ORIGINAL_DST.
    pub(crate) original: String,
}

impl Listener {
    /// The next connection.
    pub(crate) fn accept(&self) -> Accepted {
        let (stream, peer) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = SockRef::from(&stream);
        let original = if peer.is_ipv4() {
            socket.original_dst_v4()
        } else {
            socket.original_dst_v6()
        };
        let original = original.ok().and_then(|address| address.as_socket());
        Accepted {
            original: original.map_or_else(|| "none".to_owned(), |address| address.to_string()),
            stream,
            peer,
        }
    }

    /// No connection has come: those that come are there as soon as they are dialed.
    pub(crate) fn is_idle(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let idle = self.0.accept().is_err();
        self.0.set_nonblocking(false).unwrap();
        idle
    }
}

/// Bytes go through in both directions.
pub(crate) fn talk(a: &mut TcpStream, b: &mut TcpStream) {
    let mut buffer = [0; 4];
    a.write_all(b"ping").unwrap();
    b.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    b.write_all(b"pong").unwrap();
    a.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

/// All that a program printed.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a shell command here, which must succeed; its standard output.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
