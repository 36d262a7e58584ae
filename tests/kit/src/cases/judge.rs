//! Whether what came of a case is what had to.

use super::{Case, Then};
use crate::origin::capture::Connection;
use crate::raw1::{Attempt, End};
use crate::strict::{self, Message};

/// Fields that end at the next peer, or that say how a body is framed.
const NOT_PASSED: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "transfer-encoding",
    "content-length",
    "host",
    "expect",
];

/// Judges what the client saw and what arrived at the origin; what is wrong, in words.
pub fn judge(case: &Case, attempt: &Attempt, upstream: &[Connection]) -> Result<(), String> {
    let result = passed(case, upstream).and_then(|()| answered(case, attempt));
    result.map_err(|wrong| format!("{}: {wrong}", case.name))
}

/// What arrived.
fn passed(case: &Case, upstream: &[Connection]) -> Result<(), String> {
    let mut arrived = Vec::new();
    let mut unfinished = 0;
    for connection in upstream {
        let reading = connection
            .reading()
            .map_err(|violation| format!("what arrived is not strict: {violation}"))?;
        unfinished += usize::from(!reading.whole);
        arrived.extend(reading.messages);
    }
    for wanted in case.requests() {
        let found = arrived
            .iter()
            .position(|request| same(&wanted, request).is_ok());
        let Some(found) = found else {
            let why = match arrived.first() {
                Some(first) => same(&wanted, first).err().unwrap_or_default(),
                None => "nothing arrived".to_owned(),
            };
            return Err(format!("{} did not arrive as it is: {why}", wanted.line));
        };
        arrived.remove(found);
    }
    if let Some(extra) = arrived.first() {
        return Err(format!("a request too many arrived: {}", extra.line));
    }
    if unfinished > 0 && !matches!(case.expected.then, Then::Broken(_)) {
        return Err("a part of a request arrived".to_owned());
    }
    Ok(())
}

/// Whether a request says what another does, but for what ends at each peer.
fn same(wanted: &Message, found: &Message) -> Result<(), String> {
    let differ = |what: &str, wanted: &str, found: &str| {
        Err(format!("{what} {found:?} instead of {wanted:?}"))
    };
    if wanted.method() != found.method() {
        return differ("method", wanted.method(), found.method());
    }
    if wanted.target() != found.target() {
        return differ("target", wanted.target(), found.target());
    }
    let hosts = (wanted.header("host"), found.header("host"));
    if let (Some(wanted), found) = hosts
        && !found.is_some_and(|found| found.eq_ignore_ascii_case(wanted))
    {
        return differ("host", wanted, found.unwrap_or_default());
    }
    if wanted.body != found.body {
        return differ("body", &wanted.text(), &found.text());
    }
    for field in &wanted.fields {
        let name = field.name.to_ascii_lowercase();
        if !NOT_PASSED.contains(&&*name) && !found.values(&name).contains(&&*field.value) {
            return differ("field", &name, "none");
        }
    }
    for field in &wanted.trailers {
        let value = String::from_utf8_lossy(&field.value);
        if found.header(&field.name).is_some() {
            return differ("trailer", &field.name, "a field of the head");
        }
        if !found.trailers.is_empty() && found.trailer(&field.name) != Some(&*value) {
            return differ(
                "trailer",
                &value,
                found.trailer(&field.name).unwrap_or_default(),
            );
        }
    }
    for field in &found.trailers {
        let name = field.name.to_ascii_lowercase();
        if !wanted
            .trailers
            .iter()
            .any(|w| w.name.eq_ignore_ascii_case(&name))
        {
            return Err(format!("a trailer too many: {name}"));
        }
    }
    let smuggled = found.values("x-hop").len() + found.values("keep-alive").len();
    match smuggled {
        0 => Ok(()),
        _ => Err("a field that ends at each peer has passed".to_owned()),
    }
}

/// What the client got.
fn answered(case: &Case, attempt: &Attempt) -> Result<(), String> {
    let plan = case.plan(crate::raw1::Slicing::Whole, crate::PATIENCE);
    // A refusal may be cut off by the end of the connection; not here.
    let answers = strict::answers(&attempt.received, &plan.asked)
        .map_err(|violation| format!("what was answered is not strict: {violation}"))?;
    let statuses: Vec<u16> = answers.messages.iter().map(Message::status).collect();
    let finals: Vec<u16> = statuses
        .into_iter()
        .filter(|status| *status >= 200)
        .collect();
    let (of_requests, rest) = finals.split_at(case.expected.requests.min(finals.len()));
    if of_requests.len() < case.expected.requests {
        return Err(format!(
            "{} of {} requests answered, then {:?}",
            of_requests.len(),
            case.expected.requests,
            attempt.end
        ));
    }
    if let Some(status) = of_requests.iter().find(|status| **status >= 300) {
        return Err(format!("answered with {status}"));
    }
    let is_right = match case.expected.then {
        Then::Nothing => rest.is_empty(),
        Then::Refused(statuses) => matches!(rest, [status] if statuses.contains(status)),
        Then::Broken(statuses) => match rest {
            [] => true,
            [status] => statuses.contains(status),
            _ => false,
        },
        Then::Incomplete => matches!(rest, [] | [400 | 408]),
    };
    if !is_right {
        let expected = case.expected.then;
        return Err(format!(
            "{rest:?}, {:?} instead of {expected:?}",
            attempt.end
        ));
    }
    match attempt.end {
        End::Open => Err("the connection was left open".to_owned()),
        End::Closed | End::Reset => Ok(()),
    }
}
