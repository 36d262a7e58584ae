//! The self test: a connection and a DNS query to an address that is not ours must arrive where
//! the sidecar will listen. Without capture no more than one SYN and one query leave.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use rustix::process::{getegid, geteuid};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{
    datagram::{self, Impersonator},
    options::{Cidr, Mode, Options, Settings},
    route::{Route, routes},
};

/// All probes together; with the removal of the rules a failure takes less than 2 s.
const DEADLINE: Duration = Duration::from_millis(1_500);
/// Connections of others that may arrive in between.
const MOST_STRANGERS: usize = 64;

/// What was proved, and what could not be tried; one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// What arrived as it should.
    pub proved: Vec<String>,
    /// What was not tried, and why.
    pub skipped: Vec<String>,
}

/// How one probe ended, if it did not fail.
enum Outcome {
    Proved(String),
    Skipped(String),
}

/// Runs the probes for each family.
///
/// # Errors
/// With what was seen at the first probe that did not arrive.
pub fn run(options: &Options, ipv6: bool) -> Result<Proof, String> {
    let mut proof = Proof::default();
    let settings = options.settings();
    if let Err(reason) = captured(geteuid().as_raw(), getegid().as_raw(), settings) {
        proof.skipped.push(reason);
        return Ok(proof);
    }
    let routes = routes().unwrap_or_default();
    let deadline = Instant::now() + DEADLINE;
    let mut families: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
    if ipv6 {
        families.push(Ipv6Addr::LOCALHOST.into());
    }
    for loopback in families {
        let excluded = &settings.exclude_outbound_cidrs;
        let Some(target) = target(&routes, excluded, loopback.is_ipv4(), is_ours) else {
            proof.skipped.push(format!(
                "self test, {}: no route leads to an address that is captured",
                if loopback.is_ipv4() { "IPv4" } else { "IPv6" }
            ));
            continue;
        };
        let outbound = SocketAddr::new(loopback, settings.outbound_port);
        let ordinary = SocketAddr::new(target, port(options));
        let mode = settings.mode;
        let mut outcomes = vec![tcp(ordinary, outbound, mode, deadline)?];
        if options.captures_dns() {
            let resolver = SocketAddr::new(target, 53);
            let dns = SocketAddr::new(loopback, settings.dns_port);
            outcomes.push(udp(resolver, dns, mode, deadline)?);
            outcomes.push(tcp(resolver, dns, mode, deadline)?);
        }
        for outcome in outcomes {
            match outcome {
                Outcome::Proved(line) => proof.proved.push(line),
                Outcome::Skipped(line) => proof.skipped.push(line),
            }
        }
    }
    Ok(proof)
}

/// Whether a process of this user and group is captured; if not, why the test cannot be run.
fn captured(uid: u32, gid: u32, settings: &Settings) -> Result<(), String> {
    let why = if uid == settings.proxy_uid {
        format!("this process runs as the sidecar's user {uid}")
    } else if gid == settings.proxy_gid {
        format!("this process runs as the sidecar's group {gid}")
    } else if settings.exclude_uids.contains(&uid) {
        format!("this process runs as user {uid}, who is excluded")
    } else if !settings.only_uids.is_empty() && !settings.only_uids.contains(&uid) {
        format!("this process runs as user {uid}, who is not in --only-uids")
    } else {
        return Ok(());
    };
    Err(format!(
        "self test: {why}, so its connections are not captured; run `weft-proxy init --check` with \
         the same options as a user who is"
    ))
}

/// A port that is captured as an ordinary one; the sidecar's own cannot be excluded.
fn port(options: &Options) -> u16 {
    (80..=u16::MAX)
        .find(|port| !options.excludes_outbound_port(*port))
        .unwrap_or(options.settings().outbound_port)
}

/// An address of this family that some route leads to, that is not excluded and not ours:
/// one that is reserved for documentation if there is a default route.
fn target(
    routes: &[Route],
    excluded: &[Cidr],
    is_ipv4: bool,
    is_ours: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let reserved: [IpAddr; 6] = [
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv4Addr::new(198, 51, 100, 1).into(),
        Ipv4Addr::new(203, 0, 113, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1).into(),
    ];
    let usable = |address: &IpAddr| {
        let takes = |route: &Route| route.is_main() && route.to.contains(*address);
        address.is_ipv4() == is_ipv4
            && !is_link_local(*address)
            && routes.iter().any(takes)
            && !excluded.iter().any(|cidr| cidr.contains(*address))
            && !is_ours(*address)
    };
    let neighbours = routes
        .iter()
        .filter(|route| route.is_main() && route.to.prefix() > 0)
        .flat_map(|route| first_addresses(route.to));
    reserved.into_iter().chain(neighbours).find(usable)
}

/// A few addresses of a network; the network's own comes last.
fn first_addresses(network: Cidr) -> impl Iterator<Item = IpAddr> {
    [1_u8, 2, 3, 0]
        .into_iter()
        .map(move |step| match network.address() {
            IpAddr::V4(first) => {
                Ipv4Addr::from_bits(first.to_bits().saturating_add(step.into())).into()
            }
            IpAddr::V6(first) => {
                Ipv6Addr::from_bits(first.to_bits().saturating_add(step.into())).into()
            }
        })
        .filter(move |address| network.contains(*address))
}

/// These need an interface, too.
const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
    }
}

fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Dials `target`; the connection must arrive at `sidecar` and know where it was going.
fn tcp(
    target: SocketAddr,
    sidecar: SocketAddr,
    mode: Mode,
    deadline: Instant,
) -> Result<Outcome, String> {
    let listener = match listen(sidecar, mode) {
        Ok(listener) => listener,
        Err(error) => return unavailable(sidecar, "tcp", &error),
    };
    let lost =
        |seen: String| format!("a connection to {target} did not arrive at {sidecar}: {seen}");
    let dialer = Socket::new(
        Domain::for_address(target),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .map_err(|error| lost(error.to_string()))?;
    dialer
        .connect_timeout(&target.into(), left(deadline))
        .map_err(|error| lost(format!("connecting gave `{error}`")))?;
    let dialer_at = dialer.local_addr().ok().and_then(|local| local.as_socket());
    for _ in 0..MOST_STRANGERS {
        let wait = SockRef::from(&listener).set_read_timeout(Some(left(deadline)));
        let (accepted, peer) = wait
            .and_then(|()| listener.accept())
            .map_err(|_| lost("somebody else answered".to_owned()))?;
        // A reset leaves no port in TIME_WAIT behind, which the sidecar will want.
        let _ = SockRef::from(&accepted).set_linger(Some(Duration::ZERO));
        if Some(peer) != dialer_at {
            continue;
        }
        let socket = SockRef::from(&accepted);
        let original = if mode == Mode::Route {
            socket.local_addr()
        } else if target.is_ipv4() {
            socket.original_dst_v4()
        } else {
            socket.original_dst_v6()
        };
        return match original.map(|address| address.as_socket()) {
            Ok(Some(original)) if original == target => Ok(Outcome::Proved(format!(
                "tcp {target} arrives at {sidecar}"
            ))),
            Ok(other) => Err(lost(format!("it arrived as one to {other:?}"))),
            Err(error) => Err(lost(format!(
                "it arrived, but its destination is not known: `{error}`"
            ))),
        };
    }
    Err(lost("too many connections of others arrived".to_owned()))
}

/// Sends a query to `target`; it must arrive at `sidecar`, and the answer must come back as
/// one of `target`.
fn udp(
    target: SocketAddr,
    sidecar: SocketAddr,
    mode: Mode,
    deadline: Instant,
) -> Result<Outcome, String> {
    let transparent = |receiver: UdpSocket| {
        if mode != Mode::Route {
            return Ok((receiver, None));
        }
        datagram::take_all(&receiver, sidecar)?;
        Ok((receiver, Some(Impersonator::new(sidecar)?)))
    };
    let (receiver, impersonator) = match UdpSocket::bind(sidecar).and_then(transparent) {
        Ok(receiver) => receiver,
        Err(error) => return unavailable(sidecar, "udp", &error),
    };
    let exchange = || -> io::Result<bool> {
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let sender = UdpSocket::bind((any, 0))?;
        sender.connect(target)?;
        sender.send(b"weft")?;
        let mut buffer = [0; 16];
        for _ in 0..MOST_STRANGERS {
            receiver.set_read_timeout(Some(left(deadline)))?;
            let (length, peer, asked) = datagram::receive(&receiver, &mut buffer)?;
            if peer == sender.local_addr()? {
                match &impersonator {
                    Some(_) if asked != Some(target) => return Ok(false),
                    Some(sidecar) => sidecar.send(&buffer[..length], target, peer)?,
                    None => drop(receiver.send_to(&buffer[..length], peer)?),
                }
                sender.set_read_timeout(Some(left(deadline)))?;
                return Ok(sender.recv(&mut buffer)? == length);
            }
        }
        Ok(false)
    };
    match exchange() {
        Ok(true) => Ok(Outcome::Proved(format!(
            "udp {target} arrives at {sidecar}"
        ))),
        Ok(false) => Err(format!("a query to {target} did not arrive at {sidecar}")),
        Err(error) if is_timeout(&error) => Err(format!(
            "a query to {target} did not arrive at {sidecar}: nothing came in time"
        )),
        Err(error) => Err(format!(
            "a query to {target} did not arrive at {sidecar}: `{error}`"
        )),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The time until the deadline; never zero, which would mean to wait for ever.
fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

fn listen(address: SocketAddr, mode: Mode) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if mode == Mode::Route {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
    socket.bind(&address.into())?;
    socket.listen(16)?;
    Ok(socket.into())
}

/// Nobody can listen where the sidecar does already.
fn unavailable(address: SocketAddr, what: &str, error: &io::Error) -> Result<Outcome, String> {
    if error.kind() == io::ErrorKind::AddrInUse {
        return Ok(Outcome::Skipped(format!(
            "self test: {what} {address} is in use, so the sidecar runs already; not tried"
        )));
    }
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Ok(Outcome::Skipped(format!(
            "self test: {what} {address}: mode route needs the capability NET_RAW for it; not tried"
        )));
    }
    Err(format!(
        "cannot listen on {what} {address}: `{error}`; is the loopback interface up (`ip link set lo up`)?"
    ))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{captured, port, target};
    use crate::capture::{
        options::{Options, Settings},
        route::Route,
    };

    fn route(table: u8, to: &str) -> Route {
        Route {
            table,
            leaves: true,
            is_ours: false,
            to: to.parse().unwrap(),
        }
    }

    #[test]
    fn who_can_be_tested() {
        let only = Settings {
            only_uids: vec![1000],
            ..Settings::default()
        };
        let excluded = Settings {
            exclude_uids: vec![0],
            ..Settings::default()
        };
        for (uid, gid, settings, part) in [
            (0, 0, &Settings::default(), None),
            (14_020, 0, &Settings::default(), Some("user 14020")),
            (0, 14_020, &Settings::default(), Some("group 14020")),
            (0, 0, &only, Some("--only-uids")),
            (1000, 0, &only, None),
            (0, 0, &excluded, Some("excluded")),
            (1000, 0, &excluded, None),
        ] {
            match (captured(uid, gid, settings), part) {
                (Ok(()), None) => {}
                (Err(text), Some(part)) => {
                    assert!(text.contains(part) && text.contains("--check"), "{text}");
                }
                (result, _) => panic!("{uid} {gid}: {result:?}"),
            }
        }
    }

    #[test]
    fn targets_are_reachable_and_captured() {
        let default = route(254, "0.0.0.0/0");
        let link = route(254, "10.9.0.0/24");
        let other_table = route(7, "0.0.0.0/0");
        let link_local = route(254, "fe80::/64");
        let six = route(254, "fd00:9::/64");
        for (routes, excluded, is_ipv4, expected) in [
            (&[default, link][..], "", true, Some("192.0.2.1")),
            (&[default, link], "192.0.2.0/24", true, Some("198.51.100.1")),
            (&[default, link], "0.0.0.0/0", true, None),
            (&[link], "", true, Some("10.9.0.2")),
            (&[link], "10.9.0.2", true, Some("10.9.0.3")),
            (&[route(254, "10.9.0.9")], "", true, Some("10.9.0.9")),
            (&[other_table], "", true, None),
            (&[], "", true, None),
            (&[default, link_local], "", false, None),
            (&[link_local, six], "", false, Some("fd00:9::1")),
            (&[route(254, "::/0")], "", false, Some("2001:db8::1")),
        ] {
            let excluded: Vec<_> = excluded.parse().into_iter().collect();
            let ours: IpAddr = "10.9.0.1".parse().unwrap();
            let found = target(routes, &excluded, is_ipv4, |address| address == ours);
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(found, expected, "{routes:?} {excluded:?}");
        }
    }

    #[test]
    fn a_port_that_is_captured() {
        for (excluded, expected) in [
            (&[][..], 80),
            (&["80-90"], 91),
            (&["80-14000", "14002-65535"], 14_001),
            (&["21-65535"], 20),
        ] {
            let settings = Settings {
                exclude_outbound_ports: excluded.iter().map(|port| port.parse().unwrap()).collect(),
                outbound_port: if expected == 20 { 20 } else { 14_001 },
                inbound_port: 19,
                ..Settings::default()
            };
            assert_eq!(port(&Options::new(settings).unwrap()), expected);
        }
    }
}
