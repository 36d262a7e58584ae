//! A plan into the kernel by nf_tables' netlink interface: one batch, all or nothing.
//!
//! Source: `linux/netfilter/nf_tables.h`. Names in upper case are the kernel's without their
//! prefixes; integers are in network order.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use rustix::{io::Errno, net::netlink::NETFILTER};

use super::{
    netlink::{ACK, APPEND, CREATE, DUMP, Message, Socket, attributes, explain, text},
    options::Cidr,
    plan::{Action, Chain, Elements, Hook, MARK, Match, Plan, Protocol, Rule, Set, TABLE},
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_SET_ELEMENTS: u16 = 12;

/// The family of our table: IPv4 and IPv6.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// The verdict's register, and the only other one that is used.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;
/// `lo` has this index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// A chain that exists, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// As in `ip`, `ip6`, `inet`.
    pub family: &'static str,
    /// The table's name.
    pub table: String,
    /// The chain's name.
    pub chain: String,
}

/// What the kernel refused.
#[derive(Debug)]
pub struct NftError {
    /// The kernel's reason.
    pub errno: Errno,
    what: String,
}

impl fmt::Display for NftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, explain(self.errno))?;
        if matches!(self.errno, Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL) {
            f.write_str(" (the kernel lacks a module: nf_tables, nft_nat, nft_redir, nft_ct, nft_fib_inet or nft_tproxy)")?;
        }
        Ok(())
    }
}

/// Puts the plan in force, in place of an earlier one.
///
/// # Errors
/// With the first thing that the kernel refused; then nothing has changed.
pub fn install(plan: &Plan) -> Result<(), NftError> {
    let mut batch = Batch::default();
    batch.replace_table();
    for set in &plan.sets {
        batch.set(set);
    }
    for chain in &plan.chains {
        batch.chain(chain);
    }
    for chain in &plan.chains {
        for rule in &chain.rules {
            batch.rule(chain, rule);
        }
    }
    batch.commit()
}

/// Removes our table, if there is one.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> Result<(), NftError> {
    let mut batch = Batch::default();
    batch.table(NEW_TABLE);
    batch.table(DEL_TABLE);
    batch.commit()
}

/// All chains of all families and tables; those of `iptables-nft` are among them.
///
/// # Errors
/// When the kernel has no nf_tables, or does not let us look (`NET_ADMIN`).
pub fn chains() -> Result<Vec<Existing>, Errno> {
    let mut found = Vec::new();
    let request = message(GET_CHAIN, DUMP, 0);
    Socket::open(Some(NETFILTER))?.dump(request, |_, body| found.extend(existing(body)))?;
    Ok(found)
}

/// Reads a chain from the body of a message.
fn existing(body: &[u8]) -> Option<Existing> {
    let family = match *body.first()? {
        INET => "inet",
        IPV4 => "ip",
        IPV6 => "ip6",
        _ => "other",
    };
    let named = |wanted| {
        let mut all = attributes(body.get(4..)?);
        all.find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| text(value))
    };
    Some(Existing {
        family,
        table: named(1)?,
        chain: named(3)?,
    })
}

fn message(kind: u16, flags: u16, family: u8) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &[family, 0, 0, 0])
}

fn border(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

/// Messages that take effect together, and what each is about.
#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    about: Vec<String>,
}

impl Batch {
    fn push(&mut self, message: Message, about: String) {
        self.messages.push(message);
        self.about.push(about);
    }

    fn table(&mut self, kind: u16) {
        let mut message = message(kind, CREATE | ACK, INET);
        message.text(1, TABLE);
        self.push(message, format!("table inet {TABLE}"));
    }

    /// An empty table: made first, so that there is one to delete.
    fn replace_table(&mut self) {
        self.table(NEW_TABLE);
        self.table(DEL_TABLE);
        self.table(NEW_TABLE);
    }

    fn set(&mut self, set: &Set) {
        const INTERVAL: u32 = 0x4;
        // Type and length of a key; the type is only for those who list the set.
        let (kind, length, flags): (u32, u32, u32) = match set.elements {
            Elements::Ports(_) => (13, 2, INTERVAL),
            Elements::Users(_) => (24, 4, 0),
            Elements::V4(_) => (7, 4, INTERVAL),
            Elements::V6(_) => (8, 16, INTERVAL),
        };
        let about = format!("set {}", set.name);
        let mut message = message(NEW_SET, CREATE | ACK, INET);
        message.text(1, TABLE);
        message.text(2, set.name);
        message.number(3, flags);
        message.number(4, kind);
        message.number(5, length);
        message.number(10, 1);
        if matches!(set.elements, Elements::Users(_)) {
            // For those who list the set: its keys are in the order of this machine.
            const KEY_BYTE_ORDER: u8 = 0;
            let [a, b, c, d] = 1_u32.to_ne_bytes();
            message.attribute(13, &[KEY_BYTE_ORDER, 4, a, b, c, d]);
        }
        self.push(message, about.clone());
        let mut message = self::message(NEW_SET_ELEMENTS, CREATE | ACK, INET);
        message.text(1, TABLE);
        message.text(2, set.name);
        message.nested(3, |list| {
            for (key, end) in keys(&set.elements) {
                list.nested(1, |element| {
                    element.nested(1, |data| data.attribute(1, &key));
                    if end == Edge::End {
                        element.number(3, 1);
                    }
                });
            }
        });
        self.push(message, about);
    }

    fn chain(&mut self, chain: &Chain) {
        let mut message = message(NEW_CHAIN, CREATE | ACK, INET);
        message.text(1, TABLE);
        message.text(3, chain.name);
        if let Some((kind, hook, priority)) = chain.base() {
            let number = match hook {
                Hook::Prerouting => 0,
                Hook::Output => 3,
            };
            message.nested(4, |hook| {
                hook.number(1, number);
                hook.number(2, priority.cast_unsigned());
            });
            message.text(7, kind);
        }
        self.push(message, format!("chain {}", chain.name));
    }

    fn rule(&mut self, chain: &Chain, rule: &Rule) {
        let mut message = message(NEW_RULE, CREATE | APPEND | ACK, INET);
        message.text(1, TABLE);
        message.text(2, chain.name);
        message.nested(4, |list| {
            let mut expressions = Expressions(list);
            for one in &rule.matches {
                expressions.matching(one);
            }
            expressions.action(rule.action);
        });
        self.push(message, format!("rule `{rule}` of chain {}", chain.name));
    }

    fn commit(self) -> Result<(), NftError> {
        let mut messages = vec![border(BATCH_BEGIN)];
        messages.extend(self.messages);
        messages.push(border(BATCH_END));
        let failed = |at: usize, errno| NftError {
            errno,
            what: match at.checked_sub(1).and_then(|at| self.about.get(at)) {
                Some(about) => format!("nf_tables, {about}"),
                None => "nf_tables".to_owned(),
            },
        };
        Socket::open(Some(NETFILTER))
            .map_err(|errno| failed(0, errno))?
            .batch(messages)
            .map_err(|(at, errno)| failed(at, errno))
    }
}

/// Which end of an interval a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    /// The first key in it, or a key by itself.
    Start,
    /// The first key after it.
    End,
}

/// The keys of a set's elements; an interval that reaches to the last key has no end.
fn keys(elements: &Elements) -> Vec<(Vec<u8>, Edge)> {
    let mut keys = Vec::new();
    let mut interval = |first: Vec<u8>, after: Option<Vec<u8>>| {
        keys.push((first, Edge::Start));
        keys.extend(after.map(|after| (after, Edge::End)));
    };
    match elements {
        Elements::Ports(ports) => {
            for range in ports {
                let after = range.last().checked_add(1);
                interval(bytes(range.first()), after.map(bytes));
            }
        }
        // Compared as they are in memory.
        Elements::Users(users) => {
            for user in users {
                interval(user.to_ne_bytes().to_vec(), None);
            }
        }
        Elements::V4(cidrs) | Elements::V6(cidrs) => {
            for cidr in cidrs {
                interval(octets(cidr.address()), after(*cidr).map(octets));
            }
        }
    }
    keys
}

fn bytes(port: u16) -> Vec<u8> {
    port.to_be_bytes().to_vec()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The first address after a network, if there is one.
fn after(cidr: Cidr) -> Option<IpAddr> {
    match cidr.address() {
        IpAddr::V4(first) => {
            let size = 1_u32.checked_shl(32 - u32::from(cidr.prefix()))?;
            let next = first.to_bits().checked_add(size)?;
            Some(Ipv4Addr::from_bits(next).into())
        }
        IpAddr::V6(first) => {
            let size = 1_u128.checked_shl(128 - u32::from(cidr.prefix()))?;
            let next = first.to_bits().checked_add(size)?;
            Some(Ipv6Addr::from_bits(next).into())
        }
    }
}

/// The expressions of a rule: each loads something into the register or looks at it.
struct Expressions<'a>(&'a mut Message);

impl Expressions<'_> {
    fn add(&mut self, name: &str, write: impl FnOnce(&mut Message)) {
        self.0.nested(1, |element| {
            element.text(1, name);
            element.nested(2, write);
        });
    }

    fn matching(&mut self, one: &Match) {
        match one {
            Match::Ipv6 => self.family(IPV6),
            Match::Tcp => self.protocol(Protocol::Tcp, EQUAL),
            Match::NotTcp => self.protocol(Protocol::Tcp, NOT_EQUAL),
            Match::ToPort(protocol, port) => {
                self.protocol(*protocol, EQUAL);
                self.transport(2, 2);
                self.compare(EQUAL, &port.to_be_bytes());
            }
            Match::FromPort(port) => {
                self.protocol(Protocol::Tcp, EQUAL);
                self.transport(0, 2);
                self.compare(EQUAL, &port.to_be_bytes());
            }
            Match::To(cidr) => self.destination(*cidr),
            Match::ToAddress(address) => {
                let (family, offset) = destination_at(address.is_ipv4());
                self.address(family, offset, *address);
            }
            Match::FromAddress(address) => {
                let (family, offset) = source_at(address.is_ipv4());
                self.address(family, offset, *address);
            }
            Match::In(set) => self.member(set),
            Match::FromIn(set) => {
                self.protocol(Protocol::Tcp, EQUAL);
                self.transport(0, 2);
                self.lookup(set);
            }
            Match::OutLoopback => self.meta(5, EQUAL, &LOOPBACK_INDEX.to_ne_bytes()),
            Match::NotOutLoopback => self.meta(5, NOT_EQUAL, &LOOPBACK_INDEX.to_ne_bytes()),
            Match::InLoopback => self.meta(4, EQUAL, &LOOPBACK_INDEX.to_ne_bytes()),
            Match::NotToLocal => self.local(2, NOT_EQUAL),
            Match::ToLocal => self.local(2, EQUAL),
            Match::NotFromLocal => self.local(1, NOT_EQUAL),
            Match::User(id) => self.meta(10, EQUAL, &id.to_ne_bytes()),
            Match::Group(id) => self.meta(11, EQUAL, &id.to_ne_bytes()),
            Match::Reply => {
                self.conntrack(1);
                self.compare(EQUAL, &[1]);
            }
            Match::New => {
                self.conntrack(0);
                self.bits(&8_u32.to_ne_bytes());
                self.compare(NOT_EQUAL, &[0; 4]);
            }
            Match::NotInvalid => {
                self.conntrack(0);
                self.compare(NOT_EQUAL, &1_u32.to_ne_bytes());
            }
            Match::Marked => {
                self.conntrack(3);
                self.compare(EQUAL, &MARK.to_ne_bytes());
            }
            Match::PacketMarked(mark) => self.meta(3, EQUAL, &mark.to_ne_bytes()),
            Match::NotOpening => {
                const FIN_SYN_RST_ACK: u8 = 0x17;
                const SYN: u8 = 0x02;
                self.protocol(Protocol::Tcp, EQUAL);
                self.transport(13, 1);
                self.bits(&[FIN_SYN_RST_ACK]);
                self.compare(NOT_EQUAL, &[SYN]);
            }
            Match::Reset => {
                self.protocol(Protocol::Tcp, EQUAL);
                self.transport(13, 1);
                self.bits(&[4]);
                self.compare(NOT_EQUAL, &[0]);
            }
        }
    }

    fn action(&mut self, action: Action) {
        const DROP: i32 = 0;
        const ACCEPT: i32 = 1;
        const GOTO: i32 = -4;
        match action {
            Action::Leave => self.verdict(ACCEPT, None),
            Action::Drop => self.verdict(DROP, None),
            Action::Goto(chain) => self.verdict(GOTO, Some(chain)),
            Action::Redirect(port) => {
                const SPECIFIED: u32 = 0x2;
                self.load(&port.to_be_bytes());
                self.add("redir", |redirect| {
                    redirect.number(1, REGISTER);
                    redirect.number(3, SPECIFIED);
                });
            }
            Action::Tproxy(port) => {
                self.load(&port.to_be_bytes());
                self.add("tproxy", |tproxy| {
                    tproxy.number(1, 0); // either family
                    tproxy.number(3, REGISTER);
                });
                self.verdict(ACCEPT, None);
            }
            Action::MarkConnection => {
                self.load(&MARK.to_ne_bytes());
                self.add("ct", |ct| {
                    ct.number(2, 3);
                    ct.number(4, REGISTER);
                });
            }
            Action::MarkPacket(mark) => {
                self.load(&mark.to_ne_bytes());
                self.add("meta", |meta| {
                    meta.number(2, 3);
                    meta.number(3, REGISTER);
                });
            }
            Action::Untrack => self.add("notrack", |_| {}),
        }
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        self.add("cmp", |compare| {
            compare.number(1, REGISTER);
            compare.number(2, operator);
            compare.nested(3, |data| data.attribute(1, value));
        });
    }

    /// Keeps only the bits of the mask.
    fn bits(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        self.add("bitwise", |bitwise| {
            bitwise.number(1, REGISTER);
            bitwise.number(2, REGISTER);
            bitwise.number(3, length);
            bitwise.nested(4, |data| data.attribute(1, mask));
            bitwise.nested(5, |data| data.attribute(1, &vec![0; mask.len()]));
        });
    }

    fn meta(&mut self, key: u32, operator: u32, value: &[u8]) {
        self.load_meta(key);
        self.compare(operator, value);
    }

    fn load_meta(&mut self, key: u32) {
        self.add("meta", |meta| {
            meta.number(1, REGISTER);
            meta.number(2, key);
        });
    }

    fn family(&mut self, family: u8) {
        self.meta(15, EQUAL, &[family]);
    }

    fn protocol(&mut self, protocol: Protocol, operator: u32) {
        self.meta(16, operator, &[protocol.number()]);
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.add("payload", |payload| {
            payload.number(1, REGISTER);
            payload.number(2, base);
            payload.number(3, offset);
            payload.number(4, length);
        });
    }

    fn network(&mut self, offset: u32, length: u32) {
        self.payload(1, offset, length);
    }

    fn transport(&mut self, offset: u32, length: u32) {
        self.payload(2, offset, length);
    }

    /// Only as many octets as the prefix has are loaded; ours end at an octet.
    fn destination(&mut self, cidr: Cidr) {
        let octets = octets(cidr.address());
        let length = cidr.prefix().div_ceil(8);
        let (family, offset) = destination_at(cidr.address().is_ipv4());
        self.family(family);
        self.network(offset, u32::from(length));
        self.compare(EQUAL, &octets[..usize::from(length)]);
    }

    fn address(&mut self, family: u8, offset: u32, address: IpAddr) {
        let octets = octets(address);
        self.family(family);
        self.network(offset, u32::try_from(octets.len()).unwrap_or(0));
        self.compare(EQUAL, &octets);
    }

    fn member(&mut self, set: &Set) {
        match set.elements {
            Elements::Ports(_) => {
                self.protocol(Protocol::Tcp, EQUAL);
                self.transport(2, 2);
            }
            Elements::Users(_) => self.load_meta(10),
            Elements::V4(_) => {
                let (family, offset) = destination_at(true);
                self.family(family);
                self.network(offset, 4);
            }
            Elements::V6(_) => {
                let (family, offset) = destination_at(false);
                self.family(family);
                self.network(offset, 16);
            }
        }
        self.lookup(set);
    }

    fn lookup(&mut self, set: &Set) {
        self.add("lookup", |lookup| {
            lookup.text(1, set.name);
            lookup.number(2, REGISTER);
        });
    }

    fn local(&mut self, which: u32, operator: u32) {
        const ADDRESS_TYPE: u32 = 3;
        const LOCAL: u32 = 2;
        self.add("fib", |fib| {
            fib.number(1, REGISTER);
            fib.number(2, ADDRESS_TYPE);
            fib.number(3, which);
        });
        self.compare(operator, &LOCAL.to_ne_bytes());
    }

    fn conntrack(&mut self, key: u32) {
        self.add("ct", |ct| {
            ct.number(1, REGISTER);
            ct.number(2, key);
        });
    }

    fn load(&mut self, value: &[u8]) {
        self.add("immediate", |immediate| {
            immediate.number(1, REGISTER);
            immediate.nested(2, |data| data.attribute(1, value));
        });
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.add("immediate", |immediate| {
            immediate.number(1, VERDICT);
            immediate.nested(2, |data| {
                data.nested(2, |verdict| {
                    verdict.number(1, code.cast_unsigned());
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        });
    }
}

/// Family and offset of the source in the network header.
const fn source_at(is_ipv4: bool) -> (u8, u32) {
    if is_ipv4 { (IPV4, 12) } else { (IPV6, 8) }
}

/// Family and offset of the destination in the network header.
const fn destination_at(is_ipv4: bool) -> (u8, u32) {
    if is_ipv4 { (IPV4, 16) } else { (IPV6, 24) }
}
