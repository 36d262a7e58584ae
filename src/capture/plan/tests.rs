//! What happens to packets, by table, in the order in which the kernel calls the chains.

use std::net::IpAddr;

use super::{Action, Elements, Hook, Kind, MARK, Match, Plan, Protocol, SOURCE_V4, SOURCE_V6};
use crate::capture::options::parse;

/// A packet and what the kernel knows about it.
#[derive(Clone, Copy, Debug)]
struct Packet {
    hook: Hook,
    protocol: Protocol,
    from: IpAddr,
    to: IpAddr,
    from_port: u16,
    to_port: u16,
    /// It goes by the loopback interface.
    loopback: bool,
    owner: Option<(u32, u32)>,
    state: State,
    reset: bool,
    marked: bool,
    /// The mark of the packet itself.
    mark: u32,
    /// It is no first packet of a TCP connection.
    later: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    New,
    Reply,
    Invalid,
    Untracked,
}

const OURS: [&str; 6] = [
    "127.0.0.6",
    "10.0.0.1",
    "fd00::1",
    "::6",
    "127.0.0.1",
    "::1",
];

fn is_ours(address: IpAddr) -> bool {
    OURS.iter()
        .any(|ours| address == ours.parse::<IpAddr>().unwrap())
}

fn packet(hook: Hook, from: &str, to: &str, to_port: u16) -> Packet {
    let to: IpAddr = to.parse().unwrap();
    Packet {
        hook,
        protocol: Protocol::Tcp,
        from: from.parse().unwrap(),
        to,
        from_port: 40_000,
        to_port,
        loopback: hook == Hook::Output && (to.is_loopback() || is_ours(to)),
        owner: (hook == Hook::Output).then_some((1000, 1000)),
        state: State::New,
        reset: false,
        marked: false,
        mark: 0,
        later: false,
    }
}

fn out(to: &str, port: u16) -> Packet {
    let from = if to.contains(':') {
        "fd00::1"
    } else {
        "10.0.0.1"
    };
    packet(Hook::Output, from, to, port)
}

fn arriving(to: &str, port: u16) -> Packet {
    let from = if to.contains(':') {
        "fd00::9"
    } else {
        "10.0.0.9"
    };
    packet(Hook::Prerouting, from, to, port)
}

fn by(owner: (u32, u32), packet: Packet) -> Packet {
    Packet {
        owner: Some(owner),
        ..packet
    }
}

fn from(source: impl Into<IpAddr>, packet: Packet) -> Packet {
    Packet {
        from: source.into(),
        ..packet
    }
}

fn in_state(state: State, packet: Packet) -> Packet {
    Packet { state, ..packet }
}

fn udp(packet: Packet) -> Packet {
    Packet {
        protocol: Protocol::Udp,
        ..packet
    }
}

fn holds(one: &Match, p: &Packet) -> bool {
    let is_tcp = p.protocol == Protocol::Tcp;
    match one {
        Match::Ipv6 => p.to.is_ipv6(),
        Match::Tcp => is_tcp,
        Match::NotTcp => !is_tcp,
        Match::ToPort(protocol, port) => p.protocol == *protocol && p.to_port == *port,
        Match::FromPort(port) => is_tcp && p.from_port == *port,
        Match::To(cidr) => cidr.contains(p.to),
        Match::ToAddress(address) => p.to == *address,
        Match::FromAddress(address) => p.from == *address,
        Match::FromIn(set) => match &set.elements {
            Elements::Ports(ports) => is_tcp && ports.iter().any(|r| r.contains(p.from_port)),
            other => panic!("{other:?} has no source"),
        },
        Match::In(set) => match &set.elements {
            Elements::Ports(ports) => is_tcp && ports.iter().any(|r| r.contains(p.to_port)),
            Elements::Users(users) => p.owner.is_some_and(|(uid, _)| users.contains(&uid)),
            Elements::V4(cidrs) | Elements::V6(cidrs) => cidrs.iter().any(|c| c.contains(p.to)),
        },
        Match::OutLoopback | Match::InLoopback => p.loopback,
        Match::NotOutLoopback => !p.loopback,
        Match::NotToLocal => !is_ours(p.to),
        Match::NotFromLocal => !is_ours(p.from),
        Match::User(id) => p.owner.is_some_and(|(uid, _)| uid == *id),
        Match::Group(id) => p.owner.is_some_and(|(_, gid)| gid == *id),
        Match::Reply => p.state == State::Reply,
        Match::New => p.state == State::New,
        Match::NotInvalid => p.state != State::Invalid,
        Match::Marked => p.marked,
        Match::ToLocal => is_ours(p.to),
        Match::PacketMarked(mark) => p.mark == *mark,
        Match::NotOpening => is_tcp && p.later,
        Match::Reset => p.reset,
    }
}

/// What happens to a packet, in the order in which the kernel calls the chains.
fn fate(plan: &Plan, p: &Packet) -> String {
    let mut p = *p;
    let p = &mut p;
    let mut marks = String::new();
    for kind in [Kind::Raw, Kind::Mangle, Kind::Nat] {
        // Address translation sees the first packet of what conntrack understands.
        if kind == Kind::Nat && p.state != State::New {
            continue;
        }
        let called = |chain: &&super::Chain| chain.kind == kind && chain.hook == Some(p.hook);
        let mut next = plan.chains.iter().find(called);
        'chain: while let Some(chain) = next.take() {
            for rule in &chain.rules {
                if !rule.matches.iter().all(|one| holds(one, p)) {
                    continue;
                }
                match rule.action {
                    Action::Leave => break 'chain,
                    Action::Drop => return "dropped".to_owned(),
                    Action::Goto(name) => {
                        next = plan.chains.iter().find(|chain| chain.name == name);
                        assert!(next.is_some(), "{name}");
                        continue 'chain;
                    }
                    Action::Redirect(port) => return format!("redirected {port}"),
                    Action::Tproxy(port) => return format!("tproxied {port}"),
                    Action::MarkConnection => marks = "connection marked".to_owned(),
                    Action::MarkPacket(MARK) => marks = "packet marked".to_owned(),
                    Action::MarkPacket(mark) => marks = format!("packet marked {mark}"),
                    Action::Untrack => {
                        p.state = State::Untracked;
                        marks = "untracked".to_owned();
                    }
                }
            }
        }
    }
    if marks.is_empty() {
        "untouched".to_owned()
    } else {
        marks
    }
}

fn check(line: &str, table: &[(Packet, &str)]) {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let (_, options) = parse(&args).unwrap();
    let plan = Plan::new(&options, true);
    for (at, (packet, expected)) in table.iter().enumerate() {
        assert_eq!(fate(&plan, packet), *expected, "{line}: case {at}\n{plan}");
    }
}

const SIDECAR: (u32, u32) = (14_020, 14_020);

#[test]
fn outbound() {
    check(
        "",
        &[
            (out("192.0.2.1", 80), "redirected 14001"),
            (out("2001:db8::1", 443), "redirected 14001"),
            (out("127.0.0.1", 5432), "untouched"),
            (out("::1", 5432), "untouched"),
            (out("10.0.0.1", 8080), "untouched"),
            (udp(out("192.0.2.1", 443)), "untouched"),
            (udp(out("192.0.2.1", 53)), "redirected 14053"),
            (out("192.0.2.1", 53), "redirected 14053"),
            (udp(out("127.0.0.11", 53)), "redirected 14053"),
            (udp(out("2001:db8::1", 53)), "redirected 14053"),
            (by(SIDECAR, out("192.0.2.1", 80)), "untouched"),
            (by((14_020, 0), out("192.0.2.1", 80)), "untouched"),
            (by((0, 14_020), out("192.0.2.1", 80)), "untouched"),
            (by(SIDECAR, udp(out("127.0.0.11", 53))), "untouched"),
        ],
    );
    check(
        "--exclude-outbound-ports 22,8000-8100 --exclude-outbound-cidrs 10.0.0.0/8,2001:db8::/32 \
         --exclude-uids 7 --outbound-port 1 --dns-port 2",
        &[
            (out("192.0.2.1", 80), "redirected 1"),
            (out("192.0.2.1", 22), "untouched"),
            (out("192.0.2.1", 8050), "untouched"),
            (out("192.0.2.1", 8101), "redirected 1"),
            (out("10.9.9.9", 80), "untouched"),
            (udp(out("10.9.9.9", 53)), "untouched"),
            (udp(out("192.0.2.1", 53)), "redirected 2"),
            (out("2001:db8::1", 80), "untouched"),
            (out("2001:db9::1", 80), "redirected 1"),
            (by((7, 7), out("192.0.2.1", 80)), "untouched"),
            (by((7, 7), udp(out("192.0.2.1", 53))), "untouched"),
        ],
    );
    check(
        "--only-uids 7 --exclude-outbound-ports 53",
        &[
            (by((7, 7), out("192.0.2.1", 80)), "redirected 14001"),
            (by((8, 7), out("192.0.2.1", 80)), "untouched"),
            (by((7, 7), out("192.0.2.1", 53)), "untouched"),
            (by((7, 7), udp(out("192.0.2.1", 53))), "untouched"),
        ],
    );
    check(
        "--no-dns --no-ipv6",
        &[
            (udp(out("192.0.2.1", 53)), "untouched"),
            (out("192.0.2.1", 53), "redirected 14001"),
            (out("2001:db8::1", 80), "untouched"),
            (arriving("fd00::1", 80), "untouched"),
            (arriving("10.0.0.1", 80), "redirected 14006"),
        ],
    );
}

#[test]
fn inbound() {
    check(
        "",
        &[
            (arriving("10.0.0.1", 8080), "redirected 14006"),
            (arriving("fd00::1", 8080), "redirected 14006"),
            (arriving("192.0.2.7", 8080), "untouched"),
            (arriving("10.0.0.1", 14_020), "untouched"),
            (arriving("10.0.0.1", 14_006), "untouched"),
            (udp(arriving("10.0.0.1", 8080)), "untouched"),
            (
                Packet {
                    loopback: true,
                    ..arriving("10.0.0.1", 8080)
                },
                "untouched",
            ),
        ],
    );
    for mode in ["redirect", "tproxy"] {
        let done = if mode == "redirect" {
            "redirected"
        } else {
            "tproxied"
        };
        check(
            &format!("--mode {mode} --inbound-ports 80,8000-8100 --exclude-inbound-ports 8050"),
            &[
                (arriving("10.0.0.1", 80), &format!("{done} 14006")),
                (arriving("10.0.0.1", 8100), &format!("{done} 14006")),
                (arriving("10.0.0.1", 8050), "untouched"),
                (arriving("10.0.0.1", 81), "untouched"),
                (
                    in_state(State::Invalid, arriving("10.0.0.1", 81)),
                    "untouched",
                ),
            ],
        );
    }
}

#[test]
fn a_call_to_itself_arrives_as_if_from_a_peer() {
    for mode in ["redirect", "tproxy"] {
        let dialed = |port| by(SIDECAR, out("10.0.0.1", port));
        let dialed_v6 = by(SIDECAR, out("fd00::1", 8080));
        let kept = if mode == "tproxy" {
            "connection marked"
        } else {
            "untouched"
        };
        let application = if mode == "tproxy" {
            "untouched"
        } else {
            "untracked"
        };
        let peer: IpAddr = "10.0.0.9".parse().unwrap();
        check(
            &format!("--mode {mode} --exclude-inbound-ports 9999"),
            &[
                (dialed(8080), "redirected 14006"),
                (dialed_v6, "redirected 14006"),
                (dialed(9999), "untouched"),
                (dialed(14_020), "untouched"),
                (from(SOURCE_V4, dialed(8080)), application),
                (from(SOURCE_V6, dialed_v6), application),
                (by(SIDECAR, out("127.0.0.1", 8080)), "untouched"),
                // In the caller's name.
                (from(peer, dialed(8080)), kept),
            ],
        );
    }
}

#[test]
fn answers_to_foreign_addresses_come_back() {
    let answer = Packet {
        marked: true,
        ..in_state(State::Reply, out("10.0.0.9", 40_000))
    };
    let others = Packet {
        marked: false,
        mark: 0,
        later: false,
        ..answer
    };
    check(
        "--mode tproxy",
        &[(answer, "packet marked"), (others, "untouched")],
    );
    check("", &[(answer, "untouched")]);
    // Answers to connections that left are no new ones.
    let back = in_state(State::Reply, arriving("10.0.0.1", 40_000));
    check("--mode tproxy", &[(back, "untouched")]);
}

#[test]
fn what_conntrack_cannot_assign_is_dropped() {
    let invalid = |packet| in_state(State::Invalid, packet);
    let answer = |port| Packet {
        from_port: port,
        ..invalid(by(SIDECAR, out("10.0.0.9", 40_000)))
    };
    let reset = Packet {
        reset: true,
        ..invalid(out("192.0.2.1", 80))
    };
    check(
        "--exclude-outbound-ports 22 --exclude-uids 7",
        &[
            (invalid(arriving("10.0.0.1", 8080)), "dropped"),
            (invalid(arriving("10.0.0.1", 14_020)), "untouched"),
            (invalid(udp(arriving("10.0.0.1", 8080))), "untouched"),
            (invalid(out("192.0.2.1", 80)), "dropped"),
            (invalid(out("192.0.2.1", 22)), "untouched"),
            (invalid(out("10.0.0.1", 80)), "untouched"),
            (invalid(by((7, 7), out("192.0.2.1", 80))), "untouched"),
            (invalid(by(SIDECAR, out("192.0.2.1", 80))), "untouched"),
            (answer(14_001), "dropped"),
            (answer(14_006), "dropped"),
            (reset, "untouched"),
        ],
    );
    check(
        "--mode tproxy",
        &[(invalid(arriving("10.0.0.1", 8080)), "tproxied 14006")],
    );
    check(
        "--only-uids 7",
        &[
            (invalid(by((7, 7), out("192.0.2.1", 80))), "dropped"),
            (invalid(out("192.0.2.1", 80)), "untouched"),
        ],
    );
}

/// The same connection's packets in the other direction.
fn answer(p: &Packet, owner: Option<(u32, u32)>) -> Packet {
    Packet {
        from: p.to,
        to: p.from,
        from_port: p.to_port,
        to_port: p.from_port,
        owner,
        ..*p
    }
}

#[test]
fn calls_of_the_application_by_its_sidecar_are_left_alone_by_conntrack() {
    for (source, own) in [
        (IpAddr::from(SOURCE_V4), "10.0.0.1"),
        (IpAddr::from(SOURCE_V6), "fd00::1"),
    ] {
        let call = from(source, by(SIDECAR, out(own, 8080)));
        // What closes a connection, and resets, have no owner.
        let orphan = Packet {
            owner: None,
            ..call
        };
        let dns = from(source, by(SIDECAR, out(own, 53)));
        let app = Some((1000, 1000));
        let elsewhere = from(
            source,
            out(
                if source.is_ipv4() {
                    "192.0.2.1"
                } else {
                    "2001:db8::1"
                },
                80,
            ),
        );
        let table = [
            (call, "untracked"),
            (orphan, "untracked"),
            (answer(&call, app), "untracked"),
            (answer(&call, None), "untracked"),
            (udp(call), "untouched"),
            (udp(answer(&call, app)), "untouched"),
            // Only on the loopback interface: the application's own calls from there are captured,
            // and answered by the sidecar.
            (elsewhere, "redirected 14001"),
            (
                Packet {
                    from_port: 14_001,
                    ..in_state(State::Reply, by(SIDECAR, out(&source.to_string(), 40_000)))
                },
                "untouched",
            ),
            (dns, "untouched"),
            (in_state(State::Reply, answer(&dns, app)), "untouched"),
            (out(&source.to_string(), 53), "redirected 14053"),
            (out(&source.to_string(), 80), "untracked"),
        ];
        check("", &table);
        check(
            "--no-dns",
            &[(dns, "untracked"), (answer(&dns, app), "untracked")],
        );
        check(
            "--mode tproxy",
            &[(call, "untouched"), (answer(&call, app), "untouched")],
        );
    }
}

#[test]
fn nothing_that_is_captured_is_left_alone_by_conntrack_nor_one_direction_only() {
    const PORTS: [u16; 7] = [53, 80, 14_000, 14_001, 14_006, 14_053, 40_000];
    let owners = [Some(SIDECAR), Some((1000, 1000)), None];
    for line in [
        "",
        "--no-dns",
        "--exclude-outbound-ports 53 --exclude-inbound-ports 80",
        "--only-uids 1000 --outbound-port 40000 --dns-port 80",
        "--mode tproxy",
    ] {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let plan = Plan::new(&parse(&args).unwrap().1, true);
        let mut tracked = plan.clone();
        tracked.chains.retain(|chain| chain.kind != Kind::Raw);
        let mut untracked = 0;
        for (from, to) in OURS.into_iter().flat_map(|a| OURS.map(|b| (a, b))) {
            if from.contains(':') != to.contains(':') {
                continue;
            }
            for (from_port, to_port) in PORTS.into_iter().flat_map(|a| PORTS.map(|b| (a, b))) {
                for (owner, other) in owners.into_iter().flat_map(|a| owners.map(|b| (a, b))) {
                    let there = Packet {
                        from_port,
                        owner,
                        ..packet(Hook::Output, from, to, to_port)
                    };
                    if fate(&plan, &there) != "untracked" {
                        continue;
                    }
                    untracked += 1;
                    let back = answer(&there, other);
                    assert_eq!(fate(&plan, &back), "untracked", "{line}: {there:?}");
                    for one in [there, in_state(State::Invalid, there)] {
                        let before = fate(&tracked, &one);
                        // The sidecar does not call the address that it calls from; with IPv4
                        // that is loopback, and never was captured.
                        let own = one.to == IpAddr::from(SOURCE_V6) && owner == Some(SIDECAR);
                        assert!(before == "untouched" || own, "{line}: {before} {one:?}");
                    }
                }
            }
        }
        assert_eq!(untracked > 0, !line.contains("tproxy"), "{line}");
    }
}

fn later(packet: Packet) -> Packet {
    Packet {
        later: true,
        ..packet
    }
}

/// As routing of mode route leads it.
fn led(packet: Packet) -> Packet {
    Packet {
        loopback: true,
        ..packet
    }
}

/// What is sent here, when it arrives.
fn looped(mark: u32, packet: Packet) -> Packet {
    Packet {
        hook: Hook::Prerouting,
        loopback: true,
        owner: None,
        mark,
        ..packet
    }
}

#[test]
fn in_mode_route_what_routing_led_to_loopback_reaches_the_sidecar() {
    let source = |to: &str| if to.contains(':') { "::6" } else { "127.0.0.6" };
    for (own, other, local) in [
        ("10.0.0.1", "192.0.2.1", "127.0.0.1"),
        ("fd00::1", "2001:db8::1", "::1"),
    ] {
        let from_application = from(source(own).parse::<IpAddr>().unwrap(), out(own, 80));
        check(
            "--mode route --exclude-inbound-ports 22 --exclude-outbound-ports 25",
            &[
                (led(out(other, 80)), "untouched"),
                (led(udp(out(other, 53))), "untouched"),
                (led(out(other, 53)), "untouched"),
                (udp(out(other, 5353)), "untouched"),
                (out(other, 25), "untouched"),
                // Routing did not lead it.
                (out(other, 80), "dropped"),
                (udp(out(other, 53)), "dropped"),
                (later(out(other, 80)), "untouched"),
                (led(udp(out(own, 53))), "packet marked 14053"),
                (led(out(own, 53)), "packet marked 14053"),
                (led(out(own, 80)), "untouched"),
                (by(SIDECAR, out(other, 80)), "untouched"),
                (by(SIDECAR, udp(out(other, 53))), "untouched"),
                (by(SIDECAR, udp(out(own, 53))), "untouched"),
                (by(SIDECAR, out(own, 80)), "packet marked"),
                (by(SIDECAR, out(own, 22)), "untouched"),
                (by(SIDECAR, out(own, 14_000)), "untouched"),
                (by(SIDECAR, from_application), "untouched"),
                // The group is nobody: routing knows users.
                (by((1000, 14_020), out(other, 80)), "dropped"),
            ],
        );
        check(
            "--mode route --exclude-inbound-ports 22",
            &[
                (looped(0, out(other, 80)), "tproxied 14001"),
                (looped(0, later(out(other, 80))), "untouched"),
                (looped(0, out(other, 53)), "tproxied 14053"),
                (looped(0, udp(out(other, 53))), "tproxied 14053"),
                (looped(14_053, udp(out(local, 53))), "tproxied 14053"),
                (looped(0, udp(out(local, 53))), "untouched"),
                (looped(MARK, out(own, 80)), "tproxied 14006"),
                (looped(0, out(own, 80)), "untouched"),
                (arriving(own, 80), "tproxied 14006"),
                (later(arriving(own, 80)), "untouched"),
                (arriving(own, 22), "untouched"),
                (arriving(own, 14_020), "untouched"),
                (udp(arriving(own, 53)), "untouched"),
                // Only forwarded.
                (arriving(other, 80), "untouched"),
            ],
        );
        check(
            "--mode route --no-dns --only-uids 7",
            &[
                (led(out(own, 53)), "untouched"),
                (out(other, 80), "untouched"),
                (by((7, 7), out(other, 80)), "dropped"),
                (looped(0, udp(out(other, 53))), "untouched"),
                (looped(0, out(other, 53)), "tproxied 14001"),
            ],
        );
        if own.contains(':') {
            check(
                "--mode route --no-ipv6",
                &[
                    (out(other, 80), "untouched"),
                    (arriving(own, 80), "untouched"),
                ],
            );
        }
    }
}

#[test]
fn in_mode_route_nothing_asks_conntrack_in_any_form() {
    use crate::capture::{iptables::restore_text, plan::Family};
    let args = ["--mode", "route"].map(str::to_owned);
    let plan = Plan::new(&parse(&args).unwrap().1, true);
    assert!(plan.chains.iter().all(|chain| chain.kind == Kind::Mangle));
    for text in [
        plan.to_string(),
        restore_text(Some(&plan), "", Family::V4),
        restore_text(Some(&plan), "", Family::V6),
    ] {
        for word in [
            "ct ",
            "conntrack",
            "connmark",
            "CONNMARK",
            "nat",
            "REDIRECT",
            "redirect to",
        ] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
}
