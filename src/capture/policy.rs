//! Mode route: which routing rules lead what applications send to the loopback interface.
//!
//! Every local packet is routed by its socket's user, and an established connection keeps the
//! route that it has found: so neither the kernel nor a table looks at its packets one by one.
//! Source: `linux/fib_rules.h`; ip-rule(8).

use std::fmt;

use rustix::io::Errno;

use super::{
    netlink::{CREATE, DUMP, EXCLUSIVE, Message, Socket, attributes},
    options::{Cidr, Options, PortRange},
    plan::{Family, Protocol},
    route::ROUTING_TABLE,
};

/// What is not captured goes on at [`END`].
const SKIP: u32 = 133;
const CAPTURE: u32 = 134;
const END: u32 = 135;
/// Who made a rule, as the kernel keeps it; those of others have other numbers.
const OURS: u8 = 133;
/// The highest user that there is; the next number is none.
const LAST_USER: u32 = u32::MAX - 1;
/// The kernel's ranges of ports end here.
const LAST_PORT: u16 = u16::MAX - 1;

const NEW_RULE: u16 = 32;
const DEL_RULE: u16 = 33;
const GET_RULE: u16 = 34;
const TO_TABLE: u8 = 1;
const GOTO: u8 = 2;
const NOTHING: u8 = 3;

const DESTINATION: u16 = 1;
const ARRIVED_BY: u16 = 3;
const GOTO_TARGET: u16 = 4;
const PRIORITY: u16 = 6;
const TABLE: u16 = 15;
const USERS: u16 = 20;
const MADE_BY: u16 = 21;
const PROTOCOL: u16 = 22;
const FROM_PORTS: u16 = 23;
const TO_PORTS: u16 = 24;

/// What a rule does with what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is routed as without us.
    Skip,
    /// It goes to the loopback interface.
    Capture,
    /// Where skipped packets go on.
    End,
}

/// A routing rule: what all its conditions hold for, of what this host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    verdict: Verdict,
    users: Option<(u32, u32)>,
    protocol: Option<Protocol>,
    from_ports: Option<PortRange>,
    to_ports: Option<PortRange>,
    to: Option<Cidr>,
}

impl PolicyRule {
    const fn all(verdict: Verdict) -> Self {
        Self {
            verdict,
            users: None,
            protocol: None,
            from_ports: None,
            to_ports: None,
            to: None,
        }
    }
}

/// The rules of one family, in any order: priorities say which come first.
///
/// Whoever asks for the route to an address without naming a port, as rules of nft and iptables
/// do in the name of root, is not to hear that it is here: so root's have ports.
#[must_use]
pub fn rules(options: &Options, family: Family) -> Vec<PolicyRule> {
    let settings = options.settings();
    let skip = PolicyRule::all(Verdict::Skip);
    let tcp = Some(Protocol::Tcp);
    let mut rules = Vec::new();
    for user in [settings.proxy_uid].iter().chain(&settings.exclude_uids) {
        rules.push(PolicyRule {
            users: Some((*user, *user)),
            ..skip
        });
    }
    let of_family = |cidr: &&Cidr| cidr.address().is_ipv4() == (family != Family::V6);
    for cidr in settings.exclude_outbound_cidrs.iter().filter(of_family) {
        rules.push(PolicyRule {
            to: Some(*cidr),
            ..skip
        });
    }
    for ports in &settings.exclude_outbound_ports {
        rules.push(PolicyRule {
            protocol: tcp,
            to_ports: Some(*ports),
            ..skip
        });
    }
    // The answers of applications that are called past the sidecar.
    for ports in &settings.exclude_inbound_ports {
        rules.push(PolicyRule {
            protocol: tcp,
            from_ports: Some(*ports),
            ..skip
        });
    }
    let users: Vec<(u32, u32)> = match settings.only_uids.as_slice() {
        [] => vec![(0, 0), (1, LAST_USER)],
        only => only.iter().map(|user| (*user, *user)).collect(),
    };
    for users in users {
        let capture = PolicyRule {
            users: Some(users),
            protocol: tcp,
            ..PolicyRule::all(Verdict::Capture)
        };
        rules.push(PolicyRule {
            to_ports: (users.0 == 0)
                .then(|| PortRange::new(1, LAST_PORT))
                .flatten(),
            ..capture
        });
        if options.captures_dns() {
            rules.push(PolicyRule {
                protocol: Some(Protocol::Udp),
                to_ports: PortRange::one(53),
                ..capture
            });
        }
    }
    rules.push(PolicyRule::all(Verdict::End));
    rules
}

/// Puts these rules in force, in place of those of an earlier call, which stay if they are the
/// same: established connections keep their way.
///
/// # Errors
/// The kernel's, and with [`Errno::EXIST`] where somebody else has rules at our priorities.
pub fn apply(family: Family, wanted: &[PolicyRule]) -> Result<(), Errno> {
    let mut socket = Socket::open(None)?;
    let there = existing(family)?;
    if there.iter().any(|one| one.is_in_the_way) && !wanted.is_empty() {
        return Err(Errno::EXIST);
    }
    for rule in wanted {
        if !there.iter().any(|one| one.rule == Some(*rule)) {
            socket.request(message(family, rule))?;
        }
    }
    for one in there.into_iter().filter(|one| one.is_ours) {
        if one.rule.is_none_or(|rule| !wanted.contains(&rule)) {
            socket.request(one.removal)?;
        }
    }
    Ok(())
}

/// A rule that the kernel has.
struct Existing {
    is_ours: bool,
    /// Somebody else's, where ours are to stand.
    is_in_the_way: bool,
    /// What it says; none if it is of another version of ours, or not ours.
    rule: Option<PolicyRule>,
    removal: Message,
}

fn existing(family: Family) -> Result<Vec<Existing>, Errno> {
    let mut found = Vec::new();
    let head = [number(family), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let request = Message::new(GET_RULE, DUMP, &head);
    Socket::open(None)?.dump(request, |kind, body| {
        if kind == NEW_RULE {
            found.extend(read(body));
        }
    })?;
    Ok(found)
}

fn read(body: &[u8]) -> Option<Existing> {
    let (head, rest) = body.split_at_checked(12)?;
    let find = |wanted| {
        let mut all = attributes(rest);
        all.find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let is_ours = find(MADE_BY) == Some(&[OURS]);
    let priority = find(PRIORITY)
        .and_then(|value| value.try_into().ok())
        .map_or(0, u32::from_ne_bytes);
    Some(Existing {
        is_ours,
        is_in_the_way: !is_ours && (SKIP..=END).contains(&priority),
        rule: is_ours.then(|| parse(head, priority, find)).flatten(),
        removal: Message::new(DEL_RULE, 0, body),
    })
}

/// Reads back what [`message`] wrote.
fn parse<'a>(
    head: &[u8],
    priority: u32,
    find: impl Fn(u16) -> Option<&'a [u8]>,
) -> Option<PolicyRule> {
    let ports = |kind| {
        let value: [u8; 4] = find(kind)?.try_into().ok()?;
        let [a, b, c, d] = value;
        PortRange::new(u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
    };
    let users = find(USERS)
        .and_then(|value| value.split_at_checked(4))
        .and_then(|(first, last)| Some((first.try_into().ok()?, last.try_into().ok()?)))
        .map(|(first, last)| (u32::from_ne_bytes(first), u32::from_ne_bytes(last)));
    let to = match find(DESTINATION) {
        None => None,
        Some(value) => {
            let v4 = <[u8; 4]>::try_from(value).map(Into::into);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(value).map(Into::into));
            Some(Cidr::new(address.ok()?, head[1])?)
        }
    };
    Some(PolicyRule {
        verdict: match priority {
            SKIP => Verdict::Skip,
            CAPTURE => Verdict::Capture,
            END => Verdict::End,
            _ => return None,
        },
        users,
        protocol: match find(PROTOCOL) {
            None => None,
            Some([6]) => Some(Protocol::Tcp),
            Some([17]) => Some(Protocol::Udp),
            Some(_) => return None,
        },
        from_ports: ports(FROM_PORTS),
        to_ports: ports(TO_PORTS),
        to,
    })
}

const fn number(family: Family) -> u8 {
    match family {
        Family::V6 => 10,
        Family::V4 | Family::Both => 2,
    }
}

fn message(family: Family, rule: &PolicyRule) -> Message {
    let (priority, action) = match rule.verdict {
        Verdict::Skip => (SKIP, GOTO),
        Verdict::Capture => (CAPTURE, TO_TABLE),
        Verdict::End => (END, NOTHING),
    };
    let prefix = rule.to.map_or(0, Cidr::prefix);
    let head = [number(family), prefix, 0, 0, 0, 0, 0, action, 0, 0, 0, 0];
    let mut message = Message::new(NEW_RULE, CREATE | EXCLUSIVE, &head);
    message.attribute(PRIORITY, &priority.to_ne_bytes());
    message.attribute(MADE_BY, &[OURS]);
    match rule.verdict {
        Verdict::Skip => message.attribute(GOTO_TARGET, &END.to_ne_bytes()),
        Verdict::Capture => message.attribute(TABLE, &u32::from(ROUTING_TABLE).to_ne_bytes()),
        Verdict::End => return message,
    }
    // Packets of this host: nothing that arrives or is only forwarded.
    message.text(ARRIVED_BY, "lo");
    if let Some((first, last)) = rule.users {
        message.attribute(USERS, [first, last].map(u32::to_ne_bytes).as_flattened());
    }
    if let Some(protocol) = rule.protocol {
        message.attribute(PROTOCOL, &[protocol.number()]);
    }
    for (kind, ports) in [(FROM_PORTS, rule.from_ports), (TO_PORTS, rule.to_ports)] {
        if let Some(ports) = ports {
            let ends = [ports.first(), ports.last()].map(u16::to_ne_bytes);
            message.attribute(kind, ends.as_flattened());
        }
    }
    match rule.to.map(Cidr::address) {
        Some(std::net::IpAddr::V4(to)) => message.attribute(DESTINATION, &to.octets()),
        Some(std::net::IpAddr::V6(to)) => message.attribute(DESTINATION, &to.octets()),
        None => {}
    }
    message
}

/// As the arguments of `ip rule add`.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (priority, verdict) = match self.verdict {
            Verdict::Skip => (SKIP, format!("goto {END}")),
            Verdict::Capture => (CAPTURE, format!("lookup {ROUTING_TABLE}")),
            Verdict::End => return write!(f, "priority {END} protocol {OURS} nop"),
        };
        write!(f, "priority {priority} protocol {OURS}")?;
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        f.write_str(" iif lo")?;
        if let Some((first, last)) = self.users {
            write!(f, " uidrange {first}-{last}")?;
        }
        match self.protocol {
            Some(Protocol::Tcp) => f.write_str(" ipproto tcp")?,
            Some(Protocol::Udp) => f.write_str(" ipproto udp")?,
            None => {}
        }
        if let Some(ports) = self.from_ports {
            write!(f, " sport {ports}")?;
        }
        if let Some(ports) = self.to_ports {
            write!(f, " dport {ports}")?;
        }
        write!(f, " {verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, message, read, rules};
    use crate::capture::options::parse;

    fn lines(line: &str, family: Family) -> Vec<String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (_, options) = parse(&args).unwrap();
        let rules = rules(&options, family);
        rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_excluded_is_skipped_and_everything_else_captured() {
        for (line, family, expected) in [
            (
                "--mode route",
                Family::V4,
                &[
                    "priority 133 protocol 133 iif lo uidrange 14020-14020 goto 135",
                    "priority 134 protocol 133 iif lo uidrange 0-0 ipproto tcp dport 1-65534 lookup 133",
                    "priority 134 protocol 133 iif lo uidrange 0-0 ipproto udp dport 53 lookup 133",
                    "priority 134 protocol 133 iif lo uidrange 1-4294967294 ipproto tcp lookup 133",
                    "priority 134 protocol 133 iif lo uidrange 1-4294967294 ipproto udp dport 53 lookup 133",
                    "priority 135 protocol 133 nop",
                ][..],
            ),
            (
                "--mode route --exclude-uids 7 --exclude-outbound-cidrs 10.0.0.0/8,fd00::/8 \
                 --exclude-outbound-ports 25 --exclude-inbound-ports 22,80-90 --no-dns",
                Family::V6,
                &[
                    "priority 133 protocol 133 iif lo uidrange 14020-14020 goto 135",
                    "priority 133 protocol 133 iif lo uidrange 7-7 goto 135",
                    "priority 133 protocol 133 to fd00::/8 iif lo goto 135",
                    "priority 133 protocol 133 iif lo ipproto tcp dport 25 goto 135",
                    "priority 133 protocol 133 iif lo ipproto tcp sport 22 goto 135",
                    "priority 133 protocol 133 iif lo ipproto tcp sport 80-90 goto 135",
                    "priority 134 protocol 133 iif lo uidrange 0-0 ipproto tcp dport 1-65534 lookup 133",
                    "priority 134 protocol 133 iif lo uidrange 1-4294967294 ipproto tcp lookup 133",
                    "priority 135 protocol 133 nop",
                ],
            ),
            (
                "--mode route --only-uids 0,1000 --no-dns",
                Family::V4,
                &[
                    "priority 133 protocol 133 iif lo uidrange 14020-14020 goto 135",
                    "priority 134 protocol 133 iif lo uidrange 0-0 ipproto tcp dport 1-65534 lookup 133",
                    "priority 134 protocol 133 iif lo uidrange 1000-1000 ipproto tcp lookup 133",
                    "priority 135 protocol 133 nop",
                ],
            ),
        ] {
            assert_eq!(lines(line, family), expected, "{line}");
        }
    }

    #[test]
    fn what_was_written_is_read_back_as_the_same() {
        let line = "--mode route --exclude-outbound-cidrs 10.0.0.0/8,fd00::/8 \
                    --exclude-outbound-ports 25 --exclude-inbound-ports 80-90";
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (_, options) = parse(&args).unwrap();
        for family in [Family::V4, Family::V6] {
            for rule in rules(&options, family) {
                let written = message(family, &rule);
                let there = read(written.body()).unwrap();
                assert!(there.is_ours && !there.is_in_the_way);
                assert_eq!(there.rule, Some(rule));
            }
        }
    }
}
