//! DNS messages as bytes (RFC 1035; EDNS0: RFC 6891). Everything here comes from applications
//! and resolvers that may be hostile: nothing panics, and every walk is linear in the message.
//!
//! Only what must be understood is: one question, whether there is an OPT record, and where
//! the records of an answer and their TTLs are. The rest passes byte for byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cache::Key;

/// The fixed part of a message.
const HEADER: usize = 12;
/// The longest message, and the longest one over TCP (RFC 1035, 4.2.2).
pub const MAX_MESSAGE: usize = 65_535;
/// What a UDP client without EDNS takes (RFC 1035, 4.2.1).
const MIN_UDP: usize = 512;
/// The UDP size that our own answers offer: fits every path.
const OUR_UDP: u16 = 1232;
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;

/// An IPv4 address. The numbers of the record types are IANA's.
pub const A: u16 = 1;
/// The head of a zone; says how long a name may be remembered as absent.
pub const SOA: u16 = 6;
/// An IPv6 address.
pub const AAAA: u16 = 28;
/// The EDNS pseudo-record.
const OPT: u16 = 41;
/// Service binding.
pub const SVCB: u16 = 64;
/// Service binding of HTTPS.
pub const HTTPS: u16 = 65;
/// Incremental zone transfer.
pub const IXFR: u16 = 251;
/// Zone transfer: an answer of many messages.
pub const AXFR: u16 = 252;
/// All types at once.
pub const ANY: u16 = 255;
/// The class of the internet.
pub const IN: u16 = 1;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const CD: u16 = 0x0010;
const RCODE: u16 = 0x000f;
const DNSSEC_OK: u32 = 0x8000;

/// How a question was answered (RFC 1035, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rcode(u16);

impl Rcode {
    /// No error; there may still be no record.
    pub const OK: Self = Self(0);
    /// The query was not understood.
    pub const FORMAT: Self = Self(1);
    /// No answer could be found.
    pub const FAILED: Self = Self(2);
    /// The name does not exist.
    pub const NO_NAME: Self = Self(3);
    /// This kind of query is not supported.
    pub const NOT_SUPPORTED: Self = Self(4);
    /// Refused by policy.
    pub const REFUSED: Self = Self(5);

    /// Of a message; of one without a header, [`Self::FORMAT`].
    #[must_use]
    pub fn of(packet: &[u8]) -> Self {
        u16_at(packet, 2).map_or(Self::FORMAT, |flags| Self(flags & RCODE))
    }

    /// Whether another resolver might do better.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::FAILED | Self::NOT_SUPPORTED | Self::REFUSED)
    }
}

/// What has arrived from a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A query with one question.
    Question(Query),
    /// Another request: several questions, none, or another opcode.
    Other(Vec<u8>),
    /// A request that cannot be understood: to be answered with [`refusal`].
    Malformed(Vec<u8>),
    /// A response, or too short to be answered.
    Noise,
}

/// A query with one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    packet: Vec<u8>,
    /// The question is the bytes from the header to here.
    question_end: usize,
    edns: Option<Edns>,
    /// Whether there is nothing else but an OPT record without options.
    plain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edns {
    size: u16,
    /// Extended rcode, version and flags.
    flags: u32,
}

impl Edns {
    const fn version(self) -> u32 {
        self.flags >> 16 & 0xff
    }
}

/// Reads what a client has sent.
#[must_use]
pub fn read(packet: Vec<u8>) -> Incoming {
    let Some(flags) = u16_at(&packet, 2) else {
        return Incoming::Noise;
    };
    if flags & QR != 0 {
        return Incoming::Noise;
    }
    let Some(questions) = u16_at(&packet, 4).filter(|_| packet.len() >= HEADER) else {
        return Incoming::Malformed(packet);
    };
    if flags & OPCODE != 0 || questions != 1 {
        return Incoming::Other(packet);
    }
    let Some(question_end) = question_end(&packet) else {
        return Incoming::Malformed(packet);
    };
    let Some(records) = records(&packet) else {
        return Incoming::Malformed(packet);
    };
    let edns = edns(&records);
    let end = records.last().map_or(question_end, |last| last.end);
    let only_opt = match &records[..] {
        [] => true,
        [opt] => {
            let bare = opt.kind == OPT && opt.data == opt.end;
            bare && opt.section == Section::Additional
        }
        _ => false,
    };
    Incoming::Question(Query {
        plain: only_opt && end == packet.len() && edns.is_none_or(|edns| edns.version() == 0),
        packet,
        question_end,
        edns,
    })
}

impl Query {
    /// A recursive query of class IN.
    ///
    /// # Errors
    /// When the host cannot be a DNS name.
    pub fn new(host: &str, kind: u16) -> Result<Self, String> {
        let mut packet = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        packet[2..4].copy_from_slice(&RD.to_be_bytes());
        for label in host.strip_suffix('.').unwrap_or(host).split('.') {
            match u8::try_from(label.len()) {
                Ok(length) if (1..=MAX_LABEL).contains(&label.len()) => packet.push(length),
                _ => return Err(format!("{host:?}: labels have 1 to 63 characters")),
            }
            packet.extend_from_slice(label.as_bytes());
        }
        packet.push(0);
        if packet.len() - HEADER > MAX_NAME {
            return Err(format!("{host:?}: names have at most 253 characters"));
        }
        packet.extend_from_slice(&kind.to_be_bytes());
        packet.extend_from_slice(&IN.to_be_bytes());
        Ok(Self {
            question_end: packet.len(),
            packet,
            edns: None,
            plain: true,
        })
    }

    /// As it came.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// The record type that is asked for.
    #[must_use]
    pub fn kind(&self) -> u16 {
        u16_at(&self.packet, self.question_end - 4).unwrap_or_default()
    }

    /// The name in lower case, without the dot of the root, if it can be a host of the mesh
    /// at all: class IN, an EDNS version that we speak, letters, digits, `-` and `_`.
    #[must_use]
    pub fn host(&self) -> Option<String> {
        let class = u16_at(&self.packet, self.question_end - 2);
        if class != Some(IN) || self.edns.is_some_and(|edns| edns.version() != 0) {
            return None;
        }
        let mut host = String::new();
        let mut rest = self.name();
        while let Some((&length, labels)) = rest.split_first()
            && length != 0
        {
            let (label, next) = labels.split_at_checked(usize::from(length))?;
            if !host.is_empty() {
                host.push('.');
            }
            for &byte in label {
                if !(byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
                    return None;
                }
                host.push(char::from(byte.to_ascii_lowercase()));
            }
            rest = next;
        }
        (!host.is_empty()).then_some(host)
    }

    /// Queries with the same key have the same answer: name without regard to case, type,
    /// class, all flags, and the flags of EDNS. `None` for queries that carry more (options,
    /// signatures): their answers are for one client.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        if !self.plain {
            return None;
        }
        let mut key = self.packet[HEADER..self.question_end].to_vec();
        let name = key.len() - 4;
        key[..name].make_ascii_lowercase();
        key.extend_from_slice(&self.packet[2..4]);
        if let Some(edns) = self.edns {
            key.extend_from_slice(&edns.flags.to_be_bytes());
        }
        Some(key.into())
    }

    /// The longest answer that the client takes over UDP.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        limit(self.edns)
    }

    fn name(&self) -> &[u8] {
        &self.packet[HEADER..self.question_end - 4]
    }

    /// An answer without records. Says that the name exists, or that the query failed; never
    /// that a name does not exist.
    #[must_use]
    pub fn reply(&self, rcode: Rcode) -> Vec<u8> {
        let mut out = self.head(rcode, 0);
        self.echo_opt(&mut out);
        out
    }

    /// An answer with those of the addresses that the question asks for, at most as many as
    /// a message can hold. Which one is first depends on the query's ID.
    #[must_use]
    pub fn answer(&self, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
        let kind = self.kind();
        let mut wanted: Vec<IpAddr> = addresses
            .iter()
            .filter(|address| match address {
                IpAddr::V4(_) => kind == A,
                IpAddr::V6(_) => kind == AAAA,
            })
            .copied()
            .collect();
        // 28 bytes the longest record; 11 bytes OPT.
        wanted.truncate((MAX_MESSAGE - self.question_end - 11) / 28);
        if !wanted.is_empty() {
            let first = usize::from(u16_at(&self.packet, 0).unwrap_or_default()) % wanted.len();
            wanted.rotate_left(first);
        }
        let count = u16::try_from(wanted.len()).unwrap_or(u16::MAX);
        let mut out = self.head(Rcode::OK, count);
        for address in wanted {
            // The name is that of the question, which begins after the header.
            out.extend_from_slice(&[0xc0, HEADER as u8]);
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&IN.to_be_bytes());
            out.extend_from_slice(&ttl.to_be_bytes());
            match address {
                IpAddr::V4(v4) => {
                    out.extend_from_slice(&[0, 4]);
                    out.extend_from_slice(&v4.octets());
                }
                IpAddr::V6(v6) => {
                    out.extend_from_slice(&[0, 16]);
                    out.extend_from_slice(&v6.octets());
                }
            }
        }
        self.echo_opt(&mut out);
        out
    }

    /// Header and question of an answer of ours.
    fn head(&self, rcode: Rcode, answers: u16) -> Vec<u8> {
        let asked = u16_at(&self.packet, 2).unwrap_or_default();
        let ours = if rcode == Rcode::OK { AA } else { 0 };
        let flags = QR | RA | ours | asked & (RD | CD) | rcode.0;
        let mut out = Vec::with_capacity(self.question_end + 28 * usize::from(answers) + 11);
        out.extend_from_slice(&self.packet[..2]);
        for word in [flags, 1, answers, 0, u16::from(self.edns.is_some())] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&self.packet[HEADER..self.question_end]);
        out
    }

    /// A query with OPT gets an answer with OPT (RFC 6891, 6.1.1).
    fn echo_opt(&self, out: &mut Vec<u8>) {
        let Some(edns) = self.edns else { return };
        out.push(0);
        out.extend_from_slice(&OPT.to_be_bytes());
        out.extend_from_slice(&OUR_UDP.to_be_bytes());
        out.extend_from_slice(&(edns.flags & DNSSEC_OK).to_be_bytes());
        out.extend_from_slice(&[0, 0]);
    }

    /// Makes an answer to another query with the same [`Self::key`] one to this query: its
    /// ID, and the name in the case in which it was asked.
    pub fn adopt(&self, answer: &mut [u8]) {
        if let (Some(to), Some(from)) = (answer.get_mut(..2), self.packet.get(..2)) {
            to.copy_from_slice(from);
        }
        if is_question_of(answer, &self.packet, self.question_end) {
            let end = self.question_end - 4;
            answer[HEADER..end].copy_from_slice(&self.packet[HEADER..end]);
        }
    }
}

/// The longest answer over UDP that a request of any kind allows.
#[must_use]
pub fn udp_limit(packet: &[u8]) -> usize {
    limit(records(packet).and_then(|records| edns(&records)))
}

fn edns(records: &[Record]) -> Option<Edns> {
    let opt = records.iter().find(|record| record.kind == OPT)?;
    Some(Edns {
        size: opt.class,
        flags: opt.ttl,
    })
}

fn limit(edns: Option<Edns>) -> usize {
    edns.map_or(MIN_UDP, |edns| usize::from(edns.size).max(MIN_UDP))
}

/// An answer to a request that is not understood: its header with this rcode.
#[must_use]
pub fn refusal(request: &[u8], rcode: Rcode) -> Vec<u8> {
    let flags = u16_at(request, 2).unwrap_or_default();
    let mut out = vec![0; HEADER];
    if let Some(id) = request.get(..2) {
        out[..2].copy_from_slice(id);
    }
    let flags = QR | flags & (OPCODE | RD) | rcode.0;
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    out
}

/// Replaces the ID.
pub fn set_id(packet: &mut [u8], id: u16) {
    if let Some(to) = packet.get_mut(..2) {
        to.copy_from_slice(&id.to_be_bytes());
    }
}

/// Whether a packet can be the answer to a request: a response with the same ID, opcode and
/// question. A failure may leave the question out; opcodes but QUERY have none.
#[must_use]
pub fn is_answer(packet: &[u8], request: &[u8]) -> bool {
    let (Some(flags), Some(asked)) = (u16_at(packet, 2), u16_at(request, 2)) else {
        return false;
    };
    if packet.len() < HEADER
        || packet[..2] != request[..2]
        || flags & QR == 0
        || (flags ^ asked) & OPCODE != 0
    {
        return false;
    }
    if asked & OPCODE != 0 || u16_at(request, 4) != Some(1) {
        return true;
    }
    let Some(end) = question_end(request) else {
        return true;
    };
    let rcode = Rcode(flags & RCODE);
    let may_be_bare = rcode == Rcode::FORMAT || rcode.is_failure();
    if u16_at(packet, 4) == Some(0) {
        return may_be_bare;
    }
    is_question_of(packet, request, end)
}

/// Whether the one question of a packet is that of a request, in whatever case.
fn is_question_of(packet: &[u8], request: &[u8], question_end: usize) -> bool {
    if u16_at(packet, 4) != Some(1) {
        return false;
    }
    let name_end = question_end - 4;
    let (Some(name), Some(rest)) = (
        packet.get(HEADER..name_end),
        packet.get(name_end..question_end),
    ) else {
        return false;
    };
    name.eq_ignore_ascii_case(&request[HEADER..name_end])
        && *rest == request[name_end..question_end]
}

/// Whether an answer was cut to fit.
#[must_use]
pub fn is_truncated(packet: &[u8]) -> bool {
    u16_at(packet, 2).is_some_and(|flags| flags & TC != 0)
}

/// Says that an answer was cut.
pub fn set_truncated(packet: &mut [u8]) {
    if let Some(flags) = packet.get_mut(2) {
        *flags |= (TC >> 8) as u8;
    }
}

/// How long an answer may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// There are records: the lowest TTL of the chain, seconds.
    Found(u32),
    /// There are none: what the zone's SOA says (RFC 2308, 5), seconds.
    Absent(u32),
    /// Not at all.
    None,
}

/// What the cache needs to know of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// How long it may be kept.
    pub lifetime: Lifetime,
    /// Where the TTLs of its records are.
    pub ttls: Vec<u16>,
}

/// Reads the records of an answer to a question of this type.
///
/// `None` when they are not well-formed.
#[must_use]
pub fn scan(packet: &[u8], kind: u16) -> Option<Scan> {
    let records = records(packet)?;
    let real = || records.iter().filter(|record| record.kind != OPT);
    let ttls = real().filter_map(|record| u16::try_from(record.ttl_at).ok());
    let answers = || real().filter(|record| record.section == Section::Answer);
    let chain = answers().map(|record| record.ttl).min();
    let found = answers().any(|record| kind == ANY || record.kind == kind);
    let rcode = Rcode::of(packet);
    let absent = || {
        let soa = real().find(|r| r.section == Section::Authority && r.kind == SOA)?;
        // The minimum is the last of the numbers at the end (RFC 1035, 3.3.13).
        let minimum = u32_at(packet, soa.end - 4).filter(|_| soa.end - soa.data >= 22)?;
        Some(minimum.min(soa.ttl).min(chain.unwrap_or(u32::MAX)))
    };
    let lifetime = match rcode {
        _ if is_truncated(packet) => Lifetime::None,
        Rcode::OK if found => chain.map_or(Lifetime::None, Lifetime::Found),
        Rcode::OK | Rcode::NO_NAME => absent().map_or(Lifetime::None, Lifetime::Absent),
        _ => Lifetime::None,
    };
    Some(Scan {
        lifetime,
        ttls: ttls.collect(),
    })
}

/// Changes TTLs in place.
pub fn change_ttls(packet: &mut [u8], ttls: &[u16], change: impl Fn(u32) -> u32) {
    for &at in ttls {
        let at = usize::from(at);
        if let Some(bytes) = packet.get_mut(at..at + 4)
            && let Ok(old) = <[u8; 4]>::try_from(&*bytes)
        {
            bytes.copy_from_slice(&change(valid_ttl(u32::from_be_bytes(old))).to_be_bytes());
        }
    }
}

/// Lowers all TTLs to at most `cap` seconds.
pub fn cap_ttls(packet: &mut [u8], cap: u32) {
    // Any type: only the places are of interest.
    if let Some(scan) = scan(packet, ANY) {
        change_ttls(packet, &scan.ttls, |ttl| ttl.min(cap));
    }
}

/// The addresses that an answer to a question for A or AAAA holds. The resolver is trusted
/// to have followed the aliases.
#[must_use]
pub fn addresses(packet: &[u8], kind: u16) -> Vec<IpAddr> {
    let records = records(packet).unwrap_or_default();
    let answers = records.iter().filter(|record| {
        record.section == Section::Answer && record.kind == kind && record.class == IN
    });
    answers
        .filter_map(|record| {
            let data = packet.get(record.data..record.end)?;
            match kind {
                A => Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
                AAAA => Some(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into()),
                _ => None,
            }
        })
        .collect()
}

/// Cuts an answer down to `limit` bytes (at least 512): TC, as many whole records of the
/// answer as fit, and the OPT record if there is one (RFC 2181, 9; RFC 6891, 7).
#[must_use]
pub fn fit(packet: Vec<u8>, limit: usize) -> Vec<u8> {
    let limit = limit.max(MIN_UDP);
    if packet.len() <= limit {
        return packet;
    }
    let Some(flags) = u16_at(&packet, 2) else {
        return packet;
    };
    let records = records(&packet).unwrap_or_default();
    let questions_end = questions_end(&packet).filter(|end| *end <= limit);
    let mut end = questions_end.unwrap_or(HEADER);
    let opt = records.iter().find(|record| record.kind == OPT);
    let opt = opt.and_then(|opt| packet.get(opt.start..opt.end));
    let opt = opt.filter(|opt| end + opt.len() <= limit).unwrap_or(&[]);
    let mut answers: u16 = 0;
    for record in &records {
        if questions_end.is_none()
            || record.section != Section::Answer
            || record.end + opt.len() > limit
        {
            break;
        }
        end = record.end;
        answers += 1;
    }
    let mut out = packet[..end].to_vec();
    out.extend_from_slice(opt);
    let questions = match questions_end {
        Some(_) => u16_at(&packet, 4).unwrap_or_default(),
        None => 0,
    };
    let counts = [
        flags | TC,
        questions,
        answers,
        0,
        u16::from(!opt.is_empty()),
    ];
    for (bytes, word) in out[2..HEADER].chunks_exact_mut(2).zip(counts) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Answer,
    Authority,
    Additional,
}

/// Where a record is.
#[derive(Clone, Copy, Debug)]
struct Record {
    section: Section,
    kind: u16,
    class: u16,
    ttl: u32,
    ttl_at: usize,
    start: usize,
    data: usize,
    end: usize,
}

/// All records, in order; `None` when one is not well-formed or cut off.
fn records(packet: &[u8]) -> Option<Vec<Record>> {
    let mut at = questions_end(packet)?;
    let mut out = Vec::new();
    let sections = [Section::Answer, Section::Authority, Section::Additional];
    for (index, section) in sections.into_iter().enumerate() {
        // A record takes 11 bytes, so a count that is a lie ends the loop early.
        for _ in 0..u16_at(packet, 6 + 2 * index)? {
            let fixed = skip_name(packet, at)?;
            let kind = u16_at(packet, fixed)?;
            let ttl = u32_at(packet, fixed + 4)?;
            let data = fixed + 10;
            let end = data + usize::from(u16_at(packet, fixed + 8)?);
            if end > packet.len() {
                return None;
            }
            out.push(Record {
                section,
                kind,
                class: u16_at(packet, fixed + 2)?,
                // OPT keeps flags there.
                ttl: if kind == OPT { ttl } else { valid_ttl(ttl) },
                ttl_at: fixed + 4,
                start: at,
                data,
                end,
            });
            at = end;
        }
    }
    Some(out)
}

/// The end of the question section.
fn questions_end(packet: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    for _ in 0..u16_at(packet, 4)? {
        at = skip_name(packet, at)? + 4;
    }
    (at <= packet.len()).then_some(at)
}

/// The end of the first question, whose name cannot be compressed: nothing is before it.
fn question_end(packet: &[u8]) -> Option<usize> {
    let end = skip_name(packet, HEADER)? + 4;
    // A pointer would have to point into the header.
    (end <= packet.len()).then_some(end)
}

/// The end of the name at `at`. A pointer must point to before the name, so that whoever
/// follows pointers gets to an end, and to after the header.
fn skip_name(packet: &[u8], at: usize) -> Option<usize> {
    let mut here = at;
    loop {
        let length = *packet.get(here)?;
        match length & 0xc0 {
            0 if length == 0 => return Some(here + 1),
            0 => here += 1 + usize::from(length),
            0xc0 => {
                let target = usize::from(u16_at(packet, here)? & 0x3fff);
                return (HEADER..at).contains(&target).then_some(here + 2);
            }
            _ => return None,
        }
        if here - at >= MAX_NAME {
            return None;
        }
    }
}

/// A TTL with the highest bit set means 0 (RFC 2181, 8).
const fn valid_ttl(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    let bytes = packet.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn u32_at(packet: &[u8], at: usize) -> Option<u32> {
    let bytes = packet.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}
