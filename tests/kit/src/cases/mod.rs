//! What clients and servers try: tables of bytes with what must come of them, and the judge
//! that says whether it did. After the public corpora of such inputs (smuggler's mutations,
//! http-garden's findings, the tests of llhttp and picohttpparser) and RFC 9110 and 9112.
//!
//! A runner does for each [`Case`]: [`Capture::forget`]; [`raw1::attempt`] with [`Case::plan`];
//! [`judge`] with what [`Capture::connections`] says. Whatever arrives after that is found in the
//! next case. Targets say what they are: `/case` and `/second` are requests, `/smug` is what must
//! never become one.
//!
//! [`raw1::attempt`]: crate::raw1::attempt
//! [`Capture::forget`]: crate::origin::capture::Capture::forget
//! [`Capture::connections`]: crate::origin::capture::Capture::connections

mod answers;
mod chunks;
mod codings;
mod heads;
mod judge;
mod limits;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use answers::{Answer, AnswerCase, answers, judge_answer};
pub use chunks::chunks;
pub use codings::{FEW, codings};
pub use heads::{authorities, connection, heads};
pub use judge::judge;
pub use limits::{Numbers, limits};

use crate::raw1::{Plan, Slicing};
use crate::strict::{self, Asked, Message};

/// Statuses of which any is right.
pub type Statuses = &'static [u16];

/// What a bad message is answered with.
pub const BAD: Statuses = &[400];
/// What an unknown or malformed transfer coding is answered with.
pub const BAD_CODING: Statuses = &[400, 501];
/// What a version that is none is answered with.
pub const BAD_VERSION: Statuses = &[400, 505];

/// What comes after the requests that are passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing; the connection stays.
    Nothing,
    /// A refusal with one of these statuses and the end of the connection. No byte of what was
    /// refused is passed.
    Refused(Statuses),
    /// A request whose body turns out to be wrong: its head and some of its body may have
    /// passed, its end has not. One of these statuses or none, and the end of the connection.
    Broken(Statuses),
    /// A head that never ends: nothing of it passes. 400, 408 or no answer.
    Incomplete,
}

/// What must come of a case: so many requests are passed and answered, then this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// How many requests arrive, each as one strict request that says the same.
    pub requests: usize,
    /// What follows.
    pub then: Then,
}

/// One request arrives.
pub const ONE: Expected = passed(1, Then::Nothing);
/// Two requests arrive.
pub const TWO: Expected = passed(2, Then::Nothing);
/// Nothing arrives; 400 and the end.
pub const REFUSED: Expected = refused(BAD);
/// The body is wrong: 400 and the end.
pub const BROKEN: Expected = passed(0, Then::Broken(BAD));
/// The head never ends.
pub const INCOMPLETE: Expected = passed(0, Then::Incomplete);

/// Nothing arrives; one of these statuses and the end.
pub const fn refused(statuses: Statuses) -> Expected {
    passed(0, Then::Refused(statuses))
}

/// So many requests arrive, then this.
pub const fn passed(requests: usize, then: Then) -> Expected {
    Expected { requests, then }
}

/// What a client writes, and what must come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Unique within its table.
    pub name: String,
    /// The bytes on the wire.
    pub bytes: Vec<u8>,
    /// The requests that it means, if they are not simply its bytes.
    pub means: Option<Vec<u8>>,
    /// What must come of it.
    pub expected: Expected,
}

impl Case {
    fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>, expected: Expected) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
            means: None,
            expected,
        }
    }

    fn meaning(mut self, means: impl Into<Vec<u8>>) -> Self {
        self.means = Some(means.into());
        self
    }

    /// The requests that must arrive.
    pub fn requests(&self) -> Vec<Message> {
        let mut reader = strict::Reader::requests();
        // What is wrong after them is not among them.
        let _ = reader.push(self.means.as_ref().unwrap_or(&self.bytes));
        let all = std::iter::from_fn(|| reader.take());
        all.take(self.expected.requests).collect()
    }

    /// Whether nothing is wrong with it but that there is no end.
    fn is_cut(&self) -> bool {
        match self.expected.then {
            Then::Nothing | Then::Refused(_) => false,
            Then::Broken(_) => strict::requests(&self.bytes).is_ok(),
            Then::Incomplete => true,
        }
    }

    /// How to try it.
    pub fn plan(&self, slicing: Slicing, patience: Duration) -> Plan {
        let mut asked: Vec<Asked> = self.requests().iter().map(asked).collect();
        match self.expected.then {
            Then::Nothing => {}
            // One more than comes: the other side closes, or it is found out.
            Then::Refused(_) | Then::Broken(_) => asked.extend([Asked::Plain; 2]),
            Then::Incomplete => asked.push(Asked::Plain),
        }
        Plan {
            bytes: self.bytes.clone(),
            slicing,
            asked,
            then_half_close: self.is_cut(),
            patience,
        }
    }
}

fn asked(request: &Message) -> Asked {
    match request.method() {
        "HEAD" => Asked::Head,
        "CONNECT" => Asked::Connect,
        _ if request.header("upgrade").is_some() => Asked::Upgrade,
        _ => Asked::Plain,
    }
}

/// Every table of requests that needs no numbers: T1 to T4, T7, T10.
pub fn all(host: &str) -> Vec<Case> {
    let tables = [
        heads(host),
        authorities(host),
        connection(host),
        codings(host, FEW),
        chunks(host),
    ];
    tables.concat()
}

/// Puts the host where a table says `{host}`.
fn with_host(bytes: &[u8], host: &str) -> Vec<u8> {
    const MARK: &[u8] = b"{host}";
    let mut out = Vec::with_capacity(bytes.len() + host.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(MARK.len()).position(|window| window == MARK) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(host.as_bytes());
        rest = &rest[at + MARK.len()..];
    }
    out.extend_from_slice(rest);
    out
}
