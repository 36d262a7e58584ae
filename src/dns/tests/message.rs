//! Messages for tests, written independently of the code under test.

use crate::dns::wire::{self, Query, Rcode};

/// A record with an uncompressed name.
pub type Record = Vec<u8>;

pub fn query(host: &str, kind: u16) -> Query {
    Query::new(host, kind).unwrap()
}

/// A query as a client sends it: ID, name, type, and an OPT record with this UDP size.
pub fn client_query(id: u16, host: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut packet = query(host, kind).packet().to_vec();
    packet[..2].copy_from_slice(&id.to_be_bytes());
    if let Some(size) = edns {
        packet[11] = 1;
        packet.extend(opt(size));
    }
    packet
}

pub fn parsed(packet: Vec<u8>) -> Query {
    match wire::read(packet) {
        wire::Incoming::Question(query) => query,
        other => panic!("{other:?}"),
    }
}

pub fn opt(size: u16) -> Record {
    let mut out = vec![0, 0, 41];
    out.extend(size.to_be_bytes());
    out.extend([0; 6]);
    out
}

pub fn name(host: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in host.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

pub fn record(host: &str, kind: u16, ttl: u32, data: &[u8]) -> Record {
    let mut out = name(host);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out.extend(ttl.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
    out
}

pub fn a(host: &str, address: [u8; 4], ttl: u32) -> Record {
    record(host, 1, ttl, &address)
}

pub fn aaaa(host: &str, ttl: u32) -> Record {
    record(host, 28, ttl, &[0xfd; 16])
}

pub fn cname(host: &str, target: &str, ttl: u32) -> Record {
    record(host, 5, ttl, &name(target))
}

pub fn soa(zone: &str, ttl: u32, minimum: u32) -> Record {
    let mut data = name("ns");
    data.extend(name("admin"));
    data.extend([0; 16]);
    data.extend(minimum.to_be_bytes());
    record(zone, 6, ttl, &data)
}

/// A response to a query.
pub fn message(query: &Query, rcode: Rcode, answers: &[Record], authority: &[Record]) -> Vec<u8> {
    response(query.packet(), rcode, answers, authority)
}

/// A response to a request with one question and perhaps an OPT record, which is echoed.
pub fn response(request: &[u8], rcode: Rcode, answers: &[Record], authority: &[Record]) -> Vec<u8> {
    let name_end = 12 + request[12..].iter().position(|b| *b == 0).unwrap() + 1;
    let mut out = request[..name_end + 4].to_vec();
    out[2] |= 0x80;
    out[3] = 0x80 | rcode_number(rcode);
    out[6..8].copy_from_slice(&(answers.len() as u16).to_be_bytes());
    out[8..10].copy_from_slice(&(authority.len() as u16).to_be_bytes());
    out.extend(answers.concat());
    out.extend(authority.concat());
    if request[11] == 1 {
        out.extend(opt(1232));
    }
    out
}

fn rcode_number(rcode: Rcode) -> u8 {
    (0..16)
        .find(|n| Rcode::of(&[0, 0, 0x80, *n]) == rcode)
        .unwrap()
}

/// The same with the TC flag.
pub fn truncated(mut packet: Vec<u8>) -> Vec<u8> {
    packet[2] |= 2;
    packet
}

/// The counts of question, answer, authority and additional records.
pub fn counts(packet: &[u8]) -> [u16; 4] {
    [4, 6, 8, 10].map(|at| u16::from_be_bytes([packet[at], packet[at + 1]]))
}

/// The TTLs of the records.
pub fn ttls(packet: &[u8]) -> Vec<u32> {
    let scan = wire::scan(packet, wire::ANY).unwrap();
    let ttl = |at: &u16| {
        let at = usize::from(*at);
        u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
    };
    scan.ttls.iter().map(ttl).collect()
}

pub fn id(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[0], packet[1]])
}
