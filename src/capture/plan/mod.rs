//! The rules, as values: what is captured and what is not, decided from the options alone.
//!
//! One plan is written in three forms: as netlink messages ([`super::nft`]), as text for
//! `iptables-restore` ([`super::iptables`]), and as nft syntax (its `Display`).
//! A packet leaves a chain at the first rule that says so.

mod routed;

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

/// Before conntrack (-200).
const PRIORITY_RAW: i32 = -300;
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

/// The kinds of chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sees every packet before conntrack does.
    Raw,
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

impl Protocol {
    /// Its number in the header of IP.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
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
    /// The destination is in this network.
    To(Cidr),
    /// The destination is this address.
    ToAddress(IpAddr),
    /// The source is this address.
    FromAddress(IpAddr),
    /// Destination or user is in the set.
    In(Set),
    /// The TCP source port is in the set.
    FromIn(Set),
    /// It leaves by the loopback interface.
    OutLoopback,
    /// It leaves by another one.
    NotOutLoopback,
    /// It came by the loopback interface.
    InLoopback,
    /// The destination is no address of ours.
    NotToLocal,
    /// The destination is an address of ours.
    ToLocal,
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
    /// Conntrack can make sense of it, or was told to leave it alone.
    NotInvalid,
    /// Its connection carries [`MARK`].
    Marked,
    /// The packet carries this mark.
    PacketMarked(u32),
    /// It is TCP, and not the first packet of a connection.
    NotOpening,
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
    /// The packet gets this mark; the next rule decides.
    MarkPacket(u32),
    /// Conntrack leaves the packet alone, here and where the loopback interface delivers it; so
    /// does all address translation.
    Untrack,
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
        let chains = match options.settings().mode {
            Mode::Redirect | Mode::Tproxy => rules.translated(),
            Mode::Route => rules.routed(),
        };
        let mut sets: Vec<Set> = Vec::new();
        for found in chains.iter().flat_map(|chain| &chain.rules) {
            for one in &found.matches {
                if let Match::In(set) | Match::FromIn(set) = one
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
    /// The chains of the modes that translate addresses.
    fn translated(&self) -> Vec<Chain> {
        let mut chains = vec![
            self.chain("outbound", Kind::Nat, Some(Hook::Output), {
                self.outbound()
            }),
            self.chain("outbound_sidecar", Kind::Nat, None, self.sidecar()),
            self.chain("outbound_destination", Kind::Nat, None, {
                self.destination()
            }),
            self.chain("check_outbound", Kind::Mangle, Some(Hook::Output), {
                self.check_outbound()
            }),
            self.chain("check_destination", Kind::Mangle, None, {
                self.check_destination()
            }),
        ];
        let hook = Some(Hook::Prerouting);
        if self.options.settings().mode == Mode::Redirect {
            chains.push(self.chain("application", Kind::Raw, Some(Hook::Output), {
                self.application()
            }));
            chains.push(self.chain("untracked", Kind::Raw, None, self.untracked()));
            chains.push(self.chain("inbound", Kind::Nat, hook, self.inbound()));
            chains.push(self.chain("check_inbound", Kind::Mangle, hook, self.check_inbound()));
        } else {
            chains.push(self.chain("inbound", Kind::Mangle, hook, self.inbound_tproxy()));
        }
        chains
    }

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
            rule([Match::FromAddress(SOURCE_V4.into())], Action::Leave),
            rule([Match::FromAddress(SOURCE_V6.into())], Action::Leave),
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
        let mut rules = Vec::new();
        if settings.mode == Mode::Tproxy {
            // The application answers to an address that is elsewhere; the answer is for us.
            rules.push(rule(
                [Match::Marked, Match::Tcp, Match::Reply],
                Action::MarkPacket(MARK),
            ));
            for owner in self.owners() {
                rules.push(rule(
                    [
                        Match::New,
                        Match::OutLoopback,
                        Match::Tcp,
                        owner,
                        Match::NotFromLocal,
                    ],
                    Action::MarkConnection,
                ));
            }
        }
        // Nearly every packet ends here.
        rules.push(rule([Match::NotInvalid], Action::Leave));
        rules.push(rule([Match::NotTcp], Action::Leave));
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

    /// The sidecar's calls of its application, and the answers, which nobody has to translate.
    ///
    /// Known by the address that is theirs alone, not by who sends: what closes a connection has
    /// no owner any more, and conntrack would take it for a new connection.
    fn application(&self) -> Vec<Rule> {
        let mut rules = vec![rule([Match::NotOutLoopback], Action::Leave)];
        for source in [SOURCE_V4.into(), SOURCE_V6.into()] {
            for end in [Match::FromAddress(source), Match::ToAddress(source)] {
                rules.push(rule([end], Action::Goto("untracked")));
            }
        }
        rules
    }

    /// An application may use that address, too: its queries to a resolver there, and its calls
    /// from there, are redirected, and answered from a port of the sidecar. Both ports are looked
    /// at, so that no connection is tracked in one direction only.
    fn untracked(&self) -> Vec<Rule> {
        let settings = self.options.settings();
        let mut ports = vec![
            settings.outbound_port,
            settings.inbound_port,
            settings.dns_port,
        ];
        if self.options.captures_dns() {
            ports.push(53);
        }
        ports.sort_unstable();
        let ports = ports.into_iter().filter_map(PortRange::one).collect();
        let mut rules = Vec::new();
        if let Some(Match::In(ports)) = set("tracked_ports", ports, Elements::Ports) {
            rules.push(rule([Match::FromIn(ports.clone())], Action::Leave));
            rules.push(rule([Match::In(ports)], Action::Leave));
        }
        rules.push(rule([Match::Tcp], Action::Untrack));
        rules
    }

    fn inbound(&self) -> Vec<Rule> {
        let mut rules = self.arrivals();
        let port = self.options.settings().inbound_port;
        rules.push(rule([self.inbound_ports()], Action::Redirect(port)));
        rules
    }

    fn check_inbound(&self) -> Vec<Rule> {
        let mut rules = vec![
            rule([Match::NotInvalid], Action::Leave),
            rule([Match::NotTcp], Action::Leave),
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
            Match::ToAddress(address) | Match::FromAddress(address) => Some(of(*address)),
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
            (Kind::Raw, _) => ("filter", hook, PRIORITY_RAW),
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
            Self::ToAddress(address) => write!(f, "{} daddr {address}", family(address)),
            Self::FromAddress(address) => write!(f, "{} saddr {address}", family(address)),
            Self::In(set) => {
                let what = match set.elements {
                    Elements::Ports(_) => "tcp dport",
                    Elements::Users(_) => "meta skuid",
                    Elements::V4(_) => "ip daddr",
                    Elements::V6(_) => "ip6 daddr",
                };
                write!(f, "{what} @{}", set.name)
            }
            Self::FromIn(set) => write!(f, "tcp sport @{}", set.name),
            Self::OutLoopback => f.write_str("oif \"lo\""),
            Self::NotOutLoopback => f.write_str("oif != \"lo\""),
            Self::InLoopback => f.write_str("iif \"lo\""),
            Self::NotToLocal => f.write_str("fib daddr type != local"),
            Self::ToLocal => f.write_str("fib daddr type local"),
            Self::NotFromLocal => f.write_str("fib saddr type != local"),
            Self::User(id) => write!(f, "meta skuid {id}"),
            Self::Group(id) => write!(f, "meta skgid {id}"),
            Self::Reply => f.write_str("ct direction reply"),
            Self::New => f.write_str("ct state new"),
            Self::NotInvalid => f.write_str("ct state != invalid"),
            Self::Marked => write!(f, "ct mark {MARK:#010x}"),
            Self::PacketMarked(mark) => write!(f, "meta mark {mark:#010x}"),
            Self::NotOpening => f.write_str("tcp flags & (fin | syn | rst | ack) != syn"),
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
            Self::MarkPacket(mark) => write!(f, "meta mark set {mark:#010x}"),
            Self::Untrack => f.write_str("notrack"),
        }
    }
}

#[cfg(test)]
mod tests;
