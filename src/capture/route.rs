//! Routing: what tproxy needs, the address `::6`, and a look at the routes that there are.
//!
//! Source: rtnetlink(7), `linux/rtnetlink.h`, `linux/fib_rules.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use super::{
    addresses,
    netlink::{CREATE, DUMP, EXCLUSIVE, Message, REPLACE, Socket, attributes, explain},
    options::{Cidr, Mode, Options},
    plan::{Family, MARK, SOURCE_V6},
    policy::{self, PolicyRule},
};

/// The routing table of ours: everything is local.
pub const ROUTING_TABLE: u8 = 133;
/// Where our routing rule stands; the main table is at 32766.
const RULE_PRIORITY: u32 = 133;
const MAIN_TABLE: u8 = 254;

const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DEL_RULE: u16 = 33;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const LOOPBACK_INDEX: u32 = 1;
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;

/// A route that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its routing table; 0 for those above 255.
    pub table: u8,
    /// Whether packets leave by it (and are not delivered here or thrown away).
    pub leaves: bool,
    /// Whether it is one of those that [`apply`] makes.
    pub is_ours: bool,
    /// Where it leads.
    pub to: Cidr,
}

impl Route {
    /// Whether a connection may take it unless a rule says otherwise.
    #[must_use]
    pub const fn is_main(&self) -> bool {
        self.table == MAIN_TABLE && self.leaves
    }
}

/// All routes of both families.
///
/// # Errors
/// When the kernel does not tell.
pub fn routes() -> Result<Vec<Route>, Errno> {
    let mut found = Vec::new();
    let request = Message::new(
        GET_ROUTE,
        DUMP,
        &[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    Socket::open(None)?.dump(request, |kind, body| {
        if kind == NEW_ROUTE {
            found.extend(route(body));
        }
    })?;
    Ok(found)
}

fn route(body: &[u8]) -> Option<Route> {
    let (head, rest) = body.split_at_checked(12)?;
    let (family, prefix, table, kind) = (head[0], head[1], head[4], head[7]);
    let find = |wanted| {
        let mut all = attributes(rest);
        all.find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let address = match (family, find(1)) {
        (AF_INET, None) => Ipv4Addr::UNSPECIFIED.into(),
        (AF_INET6, None) => Ipv6Addr::UNSPECIFIED.into(),
        (AF_INET, Some(value)) => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        (AF_INET6, Some(value)) => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
        _ => return None,
    };
    let to_loopback = find(4) == Some(&LOOPBACK_INDEX.to_ne_bytes()[..]);
    Some(Route {
        table,
        leaves: kind == UNICAST,
        is_ours: table == ROUTING_TABLE && kind == LOCAL && prefix == 0 && to_loopback,
        to: Cidr::new(address, prefix)?,
    })
}

/// Puts in force what the mode needs for a family, in place of what another one needed;
/// without options, takes everything away. What is not there is no error.
///
/// # Errors
/// When the kernel refuses, or somebody else has rules where ours are to be.
pub fn apply(options: Option<&Options>, family: Family) -> Result<(), String> {
    match options {
        Some(options) if options.settings().mode == Mode::Tproxy => {
            lead(family, &[])?;
            add_local(family, None)?;
            let result = open()?.request(rule(NEW_RULE, CREATE | EXCLUSIVE, family));
            named(result, "the routing rule of table 133", &[Errno::EXIST])
        }
        Some(options) if options.settings().mode == Mode::Route => {
            remove_marked(family)?;
            add_local(family, Some(source(family)))?;
            lead(family, &policy::rules(options, family))
        }
        _ => {
            lead(family, &[])?;
            remove_marked(family)?;
            let result = open()?.request(local_route(DEL_ROUTE, 0, family, None));
            named(result, "the route of table 133", &ABSENT)
        }
    }
}

const ABSENT: [Errno; 4] = [
    Errno::NOENT,
    Errno::SRCH,
    Errno::AFNOSUPPORT,
    Errno::OPNOTSUPP,
];

fn lead(family: Family, rules: &[PolicyRule]) -> Result<(), String> {
    let absent: &[Errno] = if rules.is_empty() { &ABSENT } else { &[] };
    match policy::apply(family, rules) {
        Err(Errno::EXIST) => Err(
            "routing rules of somebody else have the priorities 133 to 135: give them others, or \
             use --mode redirect"
                .to_owned(),
        ),
        result => named(result, "routing rules", absent),
    }
}

/// The address that connections get which are led to table 133 and did not choose one: that of
/// the way out, as an application expects. The kernel's own choice would be the destination
/// itself, or [`SOURCE_V6`]. Should the machine lose the address, connections fail.
fn source(family: Family) -> IpAddr {
    let (is_v6, loopback): (bool, IpAddr) = match family {
        Family::V6 => (true, Ipv6Addr::LOCALHOST.into()),
        Family::V4 | Family::Both => (false, Ipv4Addr::LOCALHOST.into()),
    };
    let own = addresses::addresses().unwrap_or_default();
    let mut own = own.into_iter().filter(|address| address.is_ipv6() == is_v6);
    own.next().unwrap_or(loopback)
}

/// What is led to table 133 is delivered here, whatever its destination.
fn add_local(family: Family, source: Option<IpAddr>) -> Result<(), String> {
    let result = open()?.request(local_route(NEW_ROUTE, CREATE | REPLACE, family, source));
    named(result, "the route of table 133", &[])
}

/// Takes away the rule of mode tproxy.
fn remove_marked(family: Family) -> Result<(), String> {
    let result = open()?.request(rule(DEL_RULE, 0, family));
    named(result, "the routing rule of table 133", &ABSENT)
}

/// Gives `::6` to the loopback interface, for those who ask for it; 127.0.0.6 is always there.
///
/// # Errors
/// When the kernel refuses.
pub fn add_source_v6() -> Result<(), String> {
    let result = open()?.request(source_v6(NEW_ADDRESS, CREATE | REPLACE));
    named(result, "the address ::6 of lo", &[Errno::EXIST])
}

/// Takes it away; without it, that is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_source_v6() -> Result<(), String> {
    let result = open()?.request(source_v6(DEL_ADDRESS, 0));
    let absent = [
        Errno::ADDRNOTAVAIL,
        Errno::AFNOSUPPORT,
        Errno::OPNOTSUPP,
        Errno::NODEV,
    ];
    named(result, "the address ::6 of lo", &absent)
}

fn open() -> Result<Socket, String> {
    Socket::open(None).map_err(|error| format!("routing netlink: {}", explain(error)))
}

fn named(result: Result<(), Errno>, what: &str, accepted: &[Errno]) -> Result<(), String> {
    match result {
        Err(error) if !accepted.contains(&error) => Err(format!("{what}: {}", explain(error))),
        _ => Ok(()),
    }
}

const fn number(family: Family) -> u8 {
    match family {
        Family::V6 => AF_INET6,
        Family::V4 | Family::Both => AF_INET,
    }
}

/// `local default dev lo table 133`, for connections with this address.
fn local_route(kind: u16, flags: u16, family: Family, source: Option<IpAddr>) -> Message {
    const STATIC: u8 = 4;
    const HOST_SCOPE: u8 = 254;
    let family = number(family);
    // IPv6 has no scopes.
    let scope = if family == AF_INET { HOST_SCOPE } else { 0 };
    let head = [
        family,
        0,
        0,
        0,
        ROUTING_TABLE,
        STATIC,
        scope,
        LOCAL,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(kind, flags, &head);
    message.attribute(4, &LOOPBACK_INDEX.to_ne_bytes());
    match source {
        Some(IpAddr::V4(source)) => message.attribute(7, &source.octets()),
        Some(IpAddr::V6(source)) => message.attribute(7, &source.octets()),
        None => {}
    }
    message
}

/// `priority 133 fwmark 0x36c4 lookup 133`.
fn rule(kind: u16, flags: u16, family: Family) -> Message {
    const TO_TABLE: u8 = 1;
    let head = [
        number(family),
        0,
        0,
        0,
        ROUTING_TABLE,
        0,
        0,
        TO_TABLE,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(kind, flags, &head);
    message.attribute(6, &RULE_PRIORITY.to_ne_bytes());
    message.attribute(10, &MARK.to_ne_bytes());
    message.attribute(16, &u32::MAX.to_ne_bytes());
    message
}

fn source_v6(kind: u16, flags: u16) -> Message {
    const NO_DUPLICATE_DETECTION: u8 = 0x02;
    const HOST_SCOPE: u8 = 254;
    let [a, b, c, d] = LOOPBACK_INDEX.to_ne_bytes();
    let head = [
        AF_INET6,
        128,
        NO_DUPLICATE_DETECTION,
        HOST_SCOPE,
        a,
        b,
        c,
        d,
    ];
    let mut message = Message::new(kind, flags, &head);
    message.attribute(2, &SOURCE_V6.octets());
    // Deprecated from the start: nobody's connections take it but those that ask for it.
    let lifetimes = [0, u32::MAX, 0, 0].map(u32::to_ne_bytes);
    message.attribute(6, lifetimes.as_flattened());
    message
}

/// What is done here, as commands of `ip`.
#[must_use]
pub fn commands(options: &Options, ipv6: bool) -> Vec<String> {
    let mode = options.settings().mode;
    let mut families = vec!["-4"];
    let mut lines = Vec::new();
    if ipv6 {
        families.push("-6");
        lines.push(format!(
            "ip -6 address add {SOURCE_V6}/128 dev lo nodad preferred_lft 0"
        ));
    }
    if mode == Mode::Route {
        for family in [Family::V4, Family::V6].into_iter().take(families.len()) {
            let ip = if family == Family::V6 {
                "ip -6"
            } else {
                "ip -4"
            };
            // Which one, is known only when it is done.
            lines.push(format!(
                "{ip} route add local default dev lo table {ROUTING_TABLE} src ADDRESS"
            ));
            let rules = policy::rules(options, family);
            lines.extend(rules.iter().map(|rule| format!("{ip} rule add {rule}")));
        }
    } else if mode == Mode::Tproxy {
        for family in families {
            lines.push(format!(
                "ip {family} route add local default dev lo table {ROUTING_TABLE}"
            ));
            lines.push(format!(
                "ip {family} rule add priority {RULE_PRIORITY} fwmark {MARK:#x} lookup {ROUTING_TABLE}"
            ));
        }
    }
    lines
}
