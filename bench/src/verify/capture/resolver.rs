//! A nameserver as small as can be: it knows the IPv4 addresses of a few names and denies all
//! others, in words that may be kept. Queries come from resolvers of this machine.

use std::net::Ipv4Addr;

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::error::{Context as _, Result};
use crate::netns::{Family, Host};

/// Seconds for which an answer may be kept.
const TTL: u32 = 1;

/// A running nameserver on port 53; dead when dropped.
#[derive(Debug)]
pub(crate) struct Resolver {
    task: JoinHandle<()>,
}

impl Resolver {
    pub(crate) fn start(host: &Host, names: &[(&str, Ipv4Addr)]) -> Result<Self> {
        let address = host.at(Family::V4, 53);
        let socket = host
            .within(|| std::net::UdpSocket::bind(address))?
            .context(format!("bind {address}"))?;
        socket
            .set_nonblocking(true)
            .context("the nameserver's socket")?;
        let socket = UdpSocket::from_std(socket).context("the nameserver's socket")?;
        let names: Vec<(String, Ipv4Addr)> = names
            .iter()
            .map(|(name, address)| ((*name).to_owned(), *address))
            .collect();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                // A refused answer of the past is reported here; the socket lives on.
                let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                if let Some(answer) = answer(&buffer[..length], &names) {
                    // Who asked may be gone.
                    let _ = socket.send_to(&answer, peer).await;
                }
            }
        });
        Ok(Self { task })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answer to a query of one question, without EDNS; `None` to what is no query.
fn answer(query: &[u8], names: &[(String, Ipv4Addr)]) -> Option<Vec<u8>> {
    if query.len() < 12 || query[2] & 0x80 != 0 || query[4..6] != [0, 1] {
        return None;
    }
    let (name, end) = name(query)?;
    let kind = query.get(end..end + 4)?;
    let known = names.iter().find(|(known, _)| *known == name);
    let address = known
        .filter(|_| kind == [0, 1, 0, 1])
        .map(|(_, address)| address);
    let code = if known.is_some() { 0 } else { 3 };
    let mut text = query[..2].to_vec();
    // An answer, as recursive as was asked for.
    text.extend([0x80 | (query[2] & 1), 0x80 | code]);
    text.extend([
        0,
        1,
        0,
        u8::from(address.is_some()),
        0,
        u8::from(address.is_none()),
        0,
        0,
    ]);
    text.extend(&query[12..end + 4]);
    if let Some(address) = address {
        text.extend([0xc0, 12, 0, 1, 0, 1]);
        text.extend(TTL.to_be_bytes());
        text.extend([0, 4]);
        text.extend(address.octets());
    } else {
        // SOA of the root: two names, serial, refresh, retry, expire, and how long the absence
        // may be kept (RFC 2308).
        text.extend([0, 0, 6, 0, 1]);
        text.extend(TTL.to_be_bytes());
        text.extend([0, 22, 0, 0]);
        for number in [1, 1, 1, 1, TTL] {
            text.extend(number.to_be_bytes());
        }
    }
    Some(text)
}

/// The name of the question in lower case, and where its type begins.
fn name(query: &[u8]) -> Option<(String, usize)> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        let label = query.get(at..at + length).filter(|_| length < 64)?;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    #[test]
    fn known_names_have_an_address() {
        let names = [("web.example".to_owned(), Ipv4Addr::new(10, 9, 9, 2))];
        let asked = answer(&query("Web.Example", 1), &names).unwrap();
        assert_eq!(asked[..12], [7, 9, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert!(asked.ends_with(&[0, 0, 0, 1, 0, 4, 10, 9, 9, 2]));
        let no_v6 = answer(&query("web.example", 28), &names).unwrap();
        assert_eq!((no_v6[3], no_v6[7], no_v6[9]), (0x80, 0, 1));
        let unknown = answer(&query("other.example", 1), &names).unwrap();
        assert_eq!((unknown[3], unknown[7], unknown[9]), (0x83, 0, 1));
        let soa = &unknown[query("other.example", 1).len()..];
        assert_eq!(usize::from(soa[10]), soa.len() - 11, "its length is right");
    }

    #[test]
    fn garbage_is_not_answered() {
        let whole = query("a.b", 1);
        for end in 0..whole.len() {
            assert_eq!(answer(&whole[..end], &[]), None, "cut at {end}");
        }
        assert_eq!(answer(&[0xff; 40], &[]), None);
    }
}
