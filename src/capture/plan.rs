//! The rules, as values: what is captured and what is not, decided from the options alone.
//!
//! One plan is written in three forms: as netlink messages ([`super::nft`]), as text for
//! `iptables-restore` ([`super::iptables`]), and as nft syntax (its `Display`).
//! A packet leaves a chain at the first rule that says so.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::options::{Cidr, Mode, Options, PortRange};

/// The name of our table.
pub const TABLE: &str = "weft";
/// The mark of connections that the sidecar opens in the caller's name.
pub const MARK: u32 = 14_020;
/// From here the sidecar dials its own application, so that the call is no call to itself.
pub const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6.
pub const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Before the address translation of others (-100), so that ours decides; after conntrack.
const PRIORITY_NAT: i32 = -110;
/// As the mangle tables of others.
const PRIORITY_MANGLE: i32 = -150;

/// All rules.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whether there are rules for IPv6.
    pub ipv6: bool,
    /// The sets that the rules name.
    pub sets: Vec<Set>,
    /// The chains.
    pub chains: Vec<Chain>,
}

/// A named list, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// What is in it, sorted, without overlaps.
    pub elements: Elements,
}

/// What a set holds, and so what is compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    /// TCP destination ports.
    Ports(Vec<PortRange>),
    /// Users of the sending process.
    Users(Vec<u32>),
    /// IPv4 destinations.
    V4(Vec<Cidr>),
    /// IPv6 destinations.
    V6(Vec<Cidr>),
}

/// The two kinds of chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sees the first packet of a connection.
    Nat,
    /// Sees every packet.
    Mangle,
}

/// Where the kernel calls a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive.
    Prerouting,
    /// Packets of local processes.
    Output,
}

/// Rules in their order; what no rule decides is let through.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name in nft; in iptables it is upper case, after `WEFT_`.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// None: other chains lead here.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// All matches hold: the action is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, all of which must hold.
    pub matches: Vec<Match>,
    /// What is done then.
    pub action: Action,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The packet is IPv6.
    Ipv6,
    /// The packet is TCP.
    Tcp,
    /// The packet is no TCP.
    NotTcp,
    /// The destination port.
    ToPort(Protocol, u16),
    /// The TCP source port.
    FromPort(u16),
    /// The destination address.
    To(Cidr),
    /// The source address.
    From(IpAddr),
    /// Destination or user is in the set.
    In(Set),
    /// It leaves by the loopback interface.
    OutLoopback,
    /// It leaves by another one.
    NotOutLoopback,
    /// It came by the loopback interface.
    InLoopback,
    /// The destination is no address of ours.
    NotToLocal,
    /// The source is no address of ours.
    NotFromLocal,
    /// The user of the sending process.
    User(u32),
    /// Its group.
    Group(u32),
    /// It goes against the direction in which its connection was opened.
    Reply,
    /// It opens a connection.
    New,
    /// Conntrack can make sense of it.
    NotInvalid,
    /// Its connection carries [`MARK`].
    Marked,
    /// It resets its connection.
    Reset,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: the packet goes on as if this table were not there.
    Leave,
    /// The packet is dropped.
    Drop,
    /// Another chain decides; nothing comes back.
    Goto(&'static str),
    /// The connection goes to this local port.
    Redirect(u16),
    /// The packet goes to this local port, unchanged; if nothing listens there, the next rule decides.
    Tproxy(u16),
    /// The connection gets [`MARK`]; the next rule decides.
    MarkConnection,
    /// The packet gets [`MARK`]; the next rule decides.
    MarkPacket,
}

fn rule(matches: impl Into<Vec<Match>>, action: Action) -> Rule {
    Rule {
        matches: matches.into(),
        action,
    }
}

impl Plan {
    /// The rules for these options. `ipv6` says whether there is IPv6 here at all.
    #[must_use]
    pub fn new(options: &Options, ipv6: bool) -> Self {
        let ipv6 = ipv6 && options.settings().ipv6;
        let rules = Rules { options, ipv6 };
        let mut chains = vec![
            rules.chain("outbound", Kind::Nat, Some(Hook::Output), {
                rules.outbound()
            }),
            rules.chain("outbound_sidecar", Kind::Nat, None, rules.sidecar()),
            rules.chain("outbound_destination", Kind::Nat, None, {
                rules.destination()
            }),
            rules.chain("check_outbound", Kind::Mangle, Some(Hook::Output), {
                rules.check_outbound()
            }),
            rules.chain("check_destination", Kind::Mangle, None, {
                rules.check_destination()
            }),
        ];
        let hook = Some(Hook::Prerouting);
        if options.settings().mode == Mode::Redirect {
            chains.push(rules.chain("inbound", Kind::Nat, hook, rules.inbound()));
            chains.push(rules.chain("check_inbound", Kind::Mangle, hook, rules.check_inbound()));
        } else {
            chains.push(rules.chain("inbound", Kind::Mangle, hook, rules.inbound_tproxy()));
        }
        let mut sets: Vec<Set> = Vec::new();
        for found in chains.iter().flat_map(|chain| &chain.rules) {
            for one in &found.matches {
                if let Match::In(set) = one
                    && !sets.contains(set)
                {
                    sets.push(set.clone());
                }
            }
        }
        Self { ipv6, sets, chains }
    }
}

struct Rules<'a> {
    options: &'a Options,
    ipv6: bool,
}

impl Rules<'_> {
    /// A chain; the kernel's calls begin with what holds for all of them.
    fn chain(
        &self,
        name: &'static str,
        kind: Kind,
        hook: Option<Hook>,
        mut rules: Vec<Rule>,
    ) -> Chain {
        if hook.is_some() && !self.ipv6 {
            rules.insert(0, rule([Match::Ipv6], Action::Leave));
        }
        // Rules about addresses that are not captured anyway.
        if !self.ipv6 {
            rules.retain(|rule| rule.family() != Family::V6 || rule.matches == [Match::Ipv6]);
        }
        Chain {
            name,
            kind,
            hook,
            rules,
        }
    }

    /// Whose traffic is captured.
    fn outbound(&self) -> Vec<Rule> {
        let settings = self.options.settings();
        let to_sidecar = Action::Goto("outbound_sidecar");
        let mut rules = vec![
            rule([Match::User(settings.proxy_uid)], to_sidecar),
            rule([Match::Group(settings.proxy_gid)], to_sidecar),
        ];
        rules.extend(self.users("outbound_destination"));
        rules
    }

    /// The users that the options name, then `next`.
    fn users(&self, next: &'static str) -> Vec<Rule> {
        let settings = self.options.settings();
        let next = Action::Goto(next);
        if let Some(only) = users("only_uids", &settings.only_uids) {
            return vec![rule([only], next)];
        }
        let mut rules = Vec::new();
        if let Some(excluded) = users("exclude_uids", &settings.exclude_uids) {
            rules.push(rule([excluded], Action::Leave));
        }
        rules.push(rule([], next));
        rules
    }

    /// The sidecar's own traffic stays as it is, but for a call of this workload to one of its
    /// services that leads back here: it arrives as if from a peer.
    fn sidecar(&self) -> Vec<Rule> {
        let mut rules = vec![
            rule([Match::NotOutLoopback], Action::Leave),
            rule([Match::To(Cidr::LOOPBACK_V4)], Action::Leave),
            rule([Match::To(Cidr::LOOPBACK_V6)], Action::Leave),
            rule([Match::From(SOURCE_V4.into())], Action::Leave),
            rule([Match::From(SOURCE_V6.into())], Action::Leave),
            rule([Match::NotFromLocal], Action::Leave),
        ];
        rules.extend(self.inbound_exceptions());
        let port = self.options.settings().inbound_port;
        rules.push(rule([self.inbound_ports()], Action::Redirect(port)));
        rules
    }

    /// Which destinations are captured.
    fn destination(&self) -> Vec<Rule> {
        let settings = self.options.settings();
        let mut rules = self.outbound_exceptions();
        if self.options.captures_dns() {
            // Before the loopback rule: resolvers such as 127.0.0.11 are captured too.
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let dns = Match::ToPort(protocol, 53);
                rules.push(rule([dns], Action::Redirect(settings.dns_port)));
            }
        }
        rules.push(rule([Match::OutLoopback], Action::Leave));
        let redirect = Action::Redirect(settings.outbound_port);
        rules.push(rule([Match::Tcp], redirect));
        rules
    }

    fn outbound_exceptions(&self) -> Vec<Rule> {
        let settings = self.options.settings();
        let (v4, v6): (Vec<Cidr>, Vec<Cidr>) = settings
            .exclude_outbound_cidrs
            .iter()
            .partition(|cidr| cidr.address().is_ipv4());
        let sets = [
            set("exclude_outbound_v4", v4, Elements::V4),
            set("exclude_outbound_v6", v6, Elements::V6),
            set(
                "exclude_outbound_ports",
                settings.exclude_outbound_ports.clone(),
                Elements::Ports,
            ),
        ];
        let leave = |one| rule([one], Action::Leave);
        sets.into_iter().flatten().map(leave).collect()
    }

    /// Packets of captured connections that conntrack cannot assign (out of window) keep their
    /// addresses: they would leave in plaintext, and the resets that they cause would end good
    /// connections. TCP sends them again.
    fn check_outbound(&self) -> Vec<Rule> {
        let settings = self.options.settings();
        let mut rules = vec![rule([Match::NotTcp], Action::Leave)];
        if settings.mode == Mode::Tproxy {
            // The application answers to an address that is elsewhere; the answer is for us.
            rules.push(rule([Match::Marked, Match::Reply], Action::MarkPacket));
            for owner in self.owners() {
                rules.push(rule(
                    [owner, Match::OutLoopback, Match::New, Match::NotFromLocal],
                    Action::MarkConnection,
                ));
            }
        }
        rules.push(rule([Match::NotInvalid], Action::Leave));
        rules.push(rule([Match::Reset], Action::Leave));
        for port in [
            settings.outbound_port,
            settings.inbound_port,
            settings.dns_port,
        ] {
            rules.push(rule([Match::FromPort(port)], Action::Drop));
        }
        rules.extend(self.owners().map(|owner| rule([owner], Action::Leave)));
        rules.extend(self.users("check_destination"));
        rules
    }

    fn check_destination(&self) -> Vec<Rule> {
        let mut rules = self.outbound_exceptions();
        rules.push(rule([Match::OutLoopback], Action::Leave));
        rules.push(rule([], Action::Drop));
        rules
    }

    fn owners(&self) -> [Match; 2] {
        let settings = self.options.settings();
        [
            Match::User(settings.proxy_uid),
            Match::Group(settings.proxy_gid),
        ]
    }

    fn inbound(&self) -> Vec<Rule> {
        let mut rules = self.arrivals();
        let port = self.options.settings().inbound_port;
        rules.push(rule([self.inbound_ports()], Action::Redirect(port)));
        rules
    }

    fn check_inbound(&self) -> Vec<Rule> {
        let mut rules = vec![
            rule([Match::NotTcp], Action::Leave),
            rule([Match::NotInvalid], Action::Leave),
        ];
        rules.extend(self.arrivals());
        rules.push(rule([self.inbound_ports()], Action::Drop));
        rules
    }

    /// The socket lookup of tproxy finds a connection in progress, else the sidecar's listener.
    /// Without a listener nothing reaches the application: the caller tries again.
    fn inbound_tproxy(&self) -> Vec<Rule> {
        let mut rules = vec![
            rule([Match::NotTcp], Action::Leave),
            rule([Match::Reply], Action::Leave),
        ];
        rules.extend(self.arrivals());
        let port = self.options.settings().inbound_port;
        rules.push(rule([self.inbound_ports()], Action::Tproxy(port)));
        rules.push(rule([self.inbound_ports()], Action::Drop));
        rules
    }

    /// Connections from elsewhere to us; those that are only forwarded are not ours.
    fn arrivals(&self) -> Vec<Rule> {
        let mut rules = vec![
            rule([Match::InLoopback], Action::Leave),
            rule([Match::NotToLocal], Action::Leave),
        ];
        rules.extend(self.inbound_exceptions());
        rules
    }

    fn inbound_exceptions(&self) -> Vec<Rule> {
        let settings = self.options.settings();
        let mut own: Vec<PortRange> = self
            .options
            .sidecar_ports()
            .into_iter()
            .filter_map(PortRange::one)
            .collect();
        own.sort_unstable();
        let sets = [
            set("sidecar_ports", own, Elements::Ports),
            set(
                "exclude_inbound_ports",
                settings.exclude_inbound_ports.clone(),
                Elements::Ports,
            ),
        ];
        let leave = |one| rule([one], Action::Leave);
        sets.into_iter().flatten().map(leave).collect()
    }

    fn inbound_ports(&self) -> Match {
        let ports = self.options.settings().inbound_ports.clone();
        set("inbound_ports", ports.unwrap_or_default(), Elements::Ports).unwrap_or(Match::Tcp)
    }
}

/// A match against a set, if there is anything in it.
fn set<T>(name: &'static str, list: Vec<T>, elements: fn(Vec<T>) -> Elements) -> Option<Match> {
    let elements = (!list.is_empty()).then(|| elements(list))?;
    Some(Match::In(Set { name, elements }))
}

fn users(name: &'static str, list: &[u32]) -> Option<Match> {
    set(name, list.to_vec(), Elements::Users)
}

/// The family that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Both,
}

impl Rule {
    /// The family that it is about: that of the addresses that it names.
    #[must_use]
    pub fn family(&self) -> Family {
        let of = |address: IpAddr| match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        let named = self.matches.iter().find_map(|one| match one {
            Match::Ipv6 => Some(Family::V6),
            Match::To(cidr) => Some(of(cidr.address())),
            Match::From(address) => Some(of(*address)),
            Match::In(set) => match set.elements {
                Elements::V4(_) => Some(Family::V4),
                Elements::V6(_) => Some(Family::V6),
                Elements::Ports(_) | Elements::Users(_) => None,
            },
            _ => None,
        });
        named.unwrap_or(Family::Both)
    }
}

impl Chain {
    /// The type of the chain in nf_tables; none if other chains lead here.
    #[must_use]
    pub fn base(&self) -> Option<(&'static str, Hook, i32)> {
        let hook = self.hook?;
        Some(match (self.kind, hook) {
            (Kind::Nat, _) => ("nat", hook, PRIORITY_NAT),
            // A packet whose mark changes is routed again.
            (Kind::Mangle, Hook::Output) => ("route", hook, PRIORITY_MANGLE),
            (Kind::Mangle, Hook::Prerouting) => ("filter", hook, PRIORITY_MANGLE),
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        for set in &self.sets {
            writeln!(f, "{set}")?;
        }
        for (at, chain) in self.chains.iter().enumerate() {
            let end = if at + 1 < self.chains.len() { "\n" } else { "" };
            writeln!(f, "{chain}{end}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, interval, elements): (_, _, Vec<String>) = match &self.elements {
            Elements::Ports(ports) => (
                "inet_service",
                true,
                ports.iter().map(ToString::to_string).collect(),
            ),
            Elements::Users(users) => (
                "uid",
                false,
                users.iter().map(ToString::to_string).collect(),
            ),
            Elements::V4(cidrs) => (
                "ipv4_addr",
                true,
                cidrs.iter().map(ToString::to_string).collect(),
            ),
            Elements::V6(cidrs) => (
                "ipv6_addr",
                true,
                cidrs.iter().map(ToString::to_string).collect(),
            ),
        };
        writeln!(f, "\tset {} {{\n\t\ttype {kind}", self.name)?;
        if interval {
            writeln!(f, "\t\tflags interval")?;
        }
        writeln!(f, "\t\telements = {{ {} }}\n\t}}", elements.join(", "))
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some((kind, hook, priority)) = self.base() {
            let hook = match hook {
                Hook::Prerouting => "prerouting",
                Hook::Output => "output",
            };
            writeln!(
                f,
                "\t\ttype {kind} hook {hook} priority {priority}; policy accept;"
            )?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        f.write_str("\t}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.matches {
            write!(f, "{one} ")?;
        }
        write!(f, "{}", self.action)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |address: &IpAddr| if address.is_ipv4() { "ip" } else { "ip6" };
        match self {
            Self::Ipv6 => f.write_str("meta nfproto ipv6"),
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::NotTcp => f.write_str("meta l4proto != tcp"),
            Self::ToPort(Protocol::Tcp, port) => write!(f, "tcp dport {port}"),
            Self::ToPort(Protocol::Udp, port) => write!(f, "udp dport {port}"),
            Self::FromPort(port) => write!(f, "tcp sport {port}"),
            Self::To(cidr) => write!(f, "{} daddr {cidr}", family(&cidr.address())),
            Self::From(address) => write!(f, "{} saddr {address}", family(address)),
            Self::In(set) => {
                let what = match set.elements {
                    Elements::Ports(_) => "tcp dport",
                    Elements::Users(_) => "meta skuid",
                    Elements::V4(_) => "ip daddr",
                    Elements::V6(_) => "ip6 daddr",
                };
                write!(f, "{what} @{}", set.name)
            }
            Self::OutLoopback => f.write_str("oif \"lo\""),
            Self::NotOutLoopback => f.write_str("oif != \"lo\""),
            Self::InLoopback => f.write_str("iif \"lo\""),
            Self::NotToLocal => f.write_str("fib daddr type != local"),
            Self::NotFromLocal => f.write_str("fib saddr type != local"),
            Self::User(id) => write!(f, "meta skuid {id}"),
            Self::Group(id) => write!(f, "meta skgid {id}"),
            Self::Reply => f.write_str("ct direction reply"),
            Self::New => f.write_str("ct state new"),
            Self::NotInvalid => f.write_str("ct state != invalid"),
            Self::Marked => write!(f, "ct mark {MARK:#010x}"),
            Self::Reset => f.write_str("tcp flags rst"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leave => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Tproxy(port) => write!(f, "tproxy to :{port} accept"),
            Self::MarkConnection => write!(f, "ct mark set {MARK:#010x}"),
            Self::MarkPacket => write!(f, "meta mark set {MARK:#010x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Action, Elements, Hook, Kind, Match, Plan, Protocol, SOURCE_V4, SOURCE_V6};
    use crate::capture::options::parse;

    /// A packet and what the kernel knows about it.
    #[derive(Clone, Copy)]
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
    }

    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Reply,
        Invalid,
    }

    const OURS: [&str; 5] = ["127.0.0.6", "10.0.0.1", "fd00::1", "::6", "127.0.0.1"];

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
            Match::From(address) => p.from == *address,
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
            Match::Reset => p.reset,
        }
    }

    /// What happens to a packet, in the order in which the kernel calls the chains.
    fn fate(plan: &Plan, p: &Packet) -> String {
        let mut marks = String::new();
        for kind in [Kind::Mangle, Kind::Nat] {
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
                        Action::MarkPacket => marks = "packet marked".to_owned(),
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
            let peer: IpAddr = "10.0.0.9".parse().unwrap();
            check(
                &format!("--mode {mode} --exclude-inbound-ports 9999"),
                &[
                    (dialed(8080), "redirected 14006"),
                    (dialed_v6, "redirected 14006"),
                    (dialed(9999), "untouched"),
                    (dialed(14_020), "untouched"),
                    (from(SOURCE_V4, dialed(8080)), "untouched"),
                    (from(SOURCE_V6, dialed_v6), "untouched"),
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
}
