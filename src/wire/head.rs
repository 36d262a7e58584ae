//! HOT. One head of HTTP/1, judged line by line: what RFC 9112 allows and nothing else, so that
//! nobody behind us can read it differently. Pure; the only memory is where the last look ended.
//!
//! A line is judged when its LF is there, so the outcome depends on the bytes alone and not on
//! how they arrived, and each byte is looked at a fixed number of times however slowly they drip.

use std::net::Ipv6Addr;

use http::Version;
use memchr::{memchr, memchr2};

pub use super::rules::{Refusal, Rule};
use super::{
    expected::Asked,
    text::{first_control, is_text},
};
use crate::limits::Limits;

/// The limits of reading HTTP/1: those of [`Limits`] that matter here.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of a head, with the empty line at its end.
    pub head: usize,
    /// Bytes of a request target.
    pub target: usize,
    /// Fields of a message, trailers included.
    pub fields: usize,
    /// Bytes of a trailer section, with the empty line at its end.
    pub trailer: usize,
    /// Bytes of the extensions of one chunk, with the semicolon.
    pub extension: usize,
    /// Answers of 1xx before the one that counts.
    pub informational: u32,
}

impl From<&Limits> for HeadLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            head: limits.max_head_bytes,
            target: limits.max_target_bytes,
            fields: limits.max_fields,
            trailer: limits.max_trailer_bytes,
            extension: limits.max_chunk_extension_bytes,
            informational: limits.max_informational,
        }
    }
}

/// Where a message's body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and the trailers; the head had so many fields.
    Chunked(usize),
    /// With the connection.
    UntilClose,
}

/// A request's head that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its bytes, with the empty line at its end.
    pub len: usize,
    /// Where its body ends.
    pub body: Framing,
    /// Whether it asks to switch protocols: CONNECT or Upgrade.
    pub switch: bool,
}

/// A response's head that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its bytes, with the empty line at its end.
    pub len: usize,
    /// From 100 to 599.
    pub status: u16,
    /// What follows.
    pub then: Then,
}

/// What follows a response's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Another head: this one was informational.
    Head,
    /// A body, and then the answer is whole.
    Body(Framing),
    /// Another protocol.
    Switched,
}

/// A request line that is well-formed, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The method; a token.
    pub method: Box<str>,
    /// The target as it came; visible ASCII.
    pub target: Box<str>,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
}

const TOKEN: u8 = 1;
const PATH: u8 = 2;
const QUERY: u8 = 4;
/// What both paths and queries may have, and the mark between them.
const TARGET: u8 = 8;
const REG_NAME: u8 = 16;

/// What each byte may be part of.
#[rustfmt::skip]
const CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        let mut class = 0;
        if b.is_ascii_alphanumeric() {
            class = TOKEN | REG_NAME;
        } else if matches!(b, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~') {
            class = TOKEN;
        }
        // RFC 3986, without `%`, which no name of a host needs, and `,`, at which lists split.
        if matches!(b, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=') {
            class |= REG_NAME;
        }
        // Beyond RFC 3986 what clients in use send: `|`, `[`, `\`, `^`, braces and quotes.
        if b.is_ascii_graphic() && !matches!(b, b'#' | b'<' | b'>') {
            class |= match b {
                b'`' => QUERY,
                b'"' => PATH,
                _ => PATH | QUERY | TARGET,
            };
        }
        table[byte] = class;
        byte += 1;
    }
    table
};

const fn is(byte: u8, class: u8) -> bool {
    CLASS[byte as usize] & class != 0
}

/// Without an early end, which would cost more than it spares.
fn all(bytes: &[u8], class: u8) -> bool {
    let common = bytes.iter().fold(class, |all, b| all & CLASS[*b as usize]);
    common & class != 0
}

/// The rule that bytes break which are no text.
#[cold]
fn not_text(bytes: &[u8]) -> Rule {
    match memchr(b'\r', bytes) {
        Some(_) => Rule::BareCr,
        None => Rule::Control,
    }
}

/// Finds lines, and remembers where it looked last. Its input is the same bytes each time, with
/// more at the end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lines {
    /// Where the next line begins.
    start: usize,
    /// Up to where there is no further LF.
    searched: usize,
}

impl Lines {
    /// The next line without its CRLF; `None` if it is not complete. `over` if the lines are
    /// longer than `limit` together.
    pub(super) fn next<'a>(
        &mut self,
        input: &'a [u8],
        limit: usize,
        over: Rule,
    ) -> Result<Option<&'a [u8]>, Rule> {
        let input = &input[..input.len().min(limit)];
        let Some(at) = memchr(b'\n', &input[self.searched..]) else {
            self.searched = input.len();
            return if input.len() == limit {
                Err(over)
            } else {
                Ok(None)
            };
        };
        let line = &input[self.start..self.searched + at];
        self.searched += at + 1;
        self.start = self.searched;
        match line.split_last() {
            Some((b'\r', line)) => Ok(Some(line)),
            _ => Err(Rule::BareLf),
        }
    }

    /// The next line if it is a field that nothing is to be said about: name, colon, a value
    /// without control characters, CRLF. Looked at once; `None` says nothing, [`Self::next`] is
    /// who judges.
    fn plain_field<'a>(&mut self, input: &'a [u8], limit: usize) -> Option<Field<'a>> {
        if self.searched != self.start {
            return None;
        }
        let rest = &input[self.start..input.len().min(limit)];
        let colon = rest.iter().position(|byte| !is(*byte, TOKEN))?;
        let (name, [b':', after @ ..]) = rest.split_at(colon) else {
            return None;
        };
        let end = first_control(after)?;
        let (value, [b'\r', b'\n', ..]) = after.split_at(end) else {
            return None;
        };
        if name.is_empty() {
            return None;
        }
        self.start += colon + 1 + end + 2;
        self.searched = self.start;
        Some(Field::of(name, value))
    }

    /// Where the next line begins.
    pub(super) const fn passed(&self) -> usize {
        self.start
    }

    const fn begun(&self) -> bool {
        self.searched > 0
    }
}

/// One field, as far as framing is concerned.
pub(super) enum Field<'a> {
    ContentLength(&'a [u8]),
    TransferEncoding(&'a [u8]),
    Host(&'a [u8]),
    Upgrade,
    Other,
}

impl<'a> Field<'a> {
    fn of(name: &[u8], value: &'a [u8]) -> Self {
        let called = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if called(b"host") => Self::Host(trim(value)),
            7 if called(b"upgrade") => Self::Upgrade,
            14 if called(b"content-length") => Self::ContentLength(trim(value)),
            17 if called(b"transfer-encoding") => Self::TransferEncoding(trim(value)),
            _ => Self::Other,
        }
    }
}

/// Judges a field line.
pub(super) fn field(line: &[u8]) -> Result<Field<'_>, Rule> {
    let end = line.iter().position(|byte| !is(*byte, TOKEN));
    let Some((name, [b':', value @ ..])) = line.split_at_checked(end.unwrap_or(line.len())) else {
        return Err(no_name(line));
    };
    if name.is_empty() {
        return Err(Rule::FieldName);
    }
    if !is_text(value) {
        return Err(not_text(value));
    }
    Ok(Field::of(name, value))
}

/// The rule that a field line breaks which does not begin with a name and a colon.
#[cold]
fn no_name(line: &[u8]) -> Rule {
    let name = line.iter().take_while(|byte| is(**byte, TOKEN)).count();
    let rest = &line[name..];
    match rest.first() {
        Some(b' ' | b'\t') if name == 0 => Rule::ObsFold,
        Some(b' ' | b'\t') if trim(rest).starts_with(b":") => Rule::SpaceBeforeColon,
        _ => Rule::FieldName,
    }
}

/// Without the optional white space around (RFC 9110 section 5.6.3).
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// What the fields of a head say of its body.
#[derive(Clone, Copy, Debug, Default)]
struct Fields {
    count: usize,
    length: Option<u64>,
    chunked: bool,
    host: bool,
    upgrade: bool,
}

impl Fields {
    /// Takes a field; gives back what only a request has to judge: its Host.
    fn take<'a>(&mut self, field: &Field<'a>, limit: usize) -> Result<Option<&'a [u8]>, Rule> {
        self.count += 1;
        if self.count > limit {
            return Err(Rule::TooManyFields);
        }
        match *field {
            Field::Other => {}
            Field::Upgrade => self.upgrade = true,
            Field::Host(value) => return Ok(Some(value)),
            Field::ContentLength(value) => {
                if self.length.is_some() {
                    return Err(Rule::TwoLengths);
                }
                self.length = Some(content_length(value).ok_or(Rule::Length)?);
            }
            Field::TransferEncoding(value) => {
                if self.chunked {
                    return Err(Rule::TwoCodings);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(not_chunked(value));
                }
                self.chunked = true;
            }
        }
        Ok(None)
    }

    /// What holds for both: one way to delimit, and codings in HTTP/1.1 only.
    fn check(&self, version: Version) -> Result<(), Rule> {
        if !self.chunked {
            Ok(())
        } else if self.length.is_some() {
            Err(Rule::LengthAndCoding)
        } else if version == Version::HTTP_10 {
            Err(Rule::CodingInHttp10)
        } else {
            Ok(())
        }
    }

    fn framing(&self) -> Option<Framing> {
        if self.chunked {
            Some(Framing::Chunked(self.count))
        } else {
            self.length.map(Framing::Length)
        }
    }

    /// Whether they announce a body that has bytes.
    fn announce_body(&self) -> bool {
        self.chunked || self.length.is_some_and(|length| length > 0)
    }
}

/// 1 to 19 digits, below 2^63: 19 digits fit an `u64`.
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    let mut length = 0;
    for digit in value {
        if !digit.is_ascii_digit() {
            return None;
        }
        length = length * 10 + u64::from(digit - b'0');
    }
    (length >> 63 == 0).then_some(length)
}

/// Why a Transfer-Encoding is refused that is not `chunked`.
#[cold]
fn not_chunked(value: &[u8]) -> Rule {
    let mut chunked = false;
    for coding in value.split(|byte| *byte == b',').map(trim) {
        // Nothing may follow chunked; no parameter, quote or empty element anywhere.
        if chunked || coding.is_empty() || !all(coding, TOKEN) {
            return Rule::Coding;
        }
        chunked = coding.eq_ignore_ascii_case(b"chunked");
    }
    Rule::UnknownCoding
}

/// Whether it is a host with an optional port, as in Host (RFC 9110 section 7.2) and in the
/// authority of a target: a name of RFC 3986 without `%` and `,`, an IPv4 address or an IPv6
/// address in brackets; no userinfo, no empty port, no port above 65535.
#[must_use]
pub fn is_authority(bytes: &[u8]) -> bool {
    let (host, port) = split_port(bytes);
    is_host(host) && port.is_none_or(is_port)
}

/// Host and what follows the colon of the port.
fn split_port(bytes: &[u8]) -> (&[u8], Option<&[u8]>) {
    let after_host = match memchr(b']', bytes) {
        Some(end) => end + 1,
        None => 0,
    };
    match memchr(b':', &bytes[after_host..]) {
        Some(at) => {
            let colon = after_host + at;
            (&bytes[..colon], Some(&bytes[colon + 1..]))
        }
        None => (bytes, None),
    }
}

fn is_host(host: &[u8]) -> bool {
    match host {
        [] => false,
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
        }
        name => all(name, REG_NAME),
    }
}

fn is_port(port: &[u8]) -> bool {
    if port.is_empty() || port.len() > 5 {
        return false;
    }
    let value = port.iter().try_fold(0_u32, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'));
        Some(value * 10 + digit?)
    });
    value.is_some_and(|value| value <= 65_535)
}

/// Judges a request target in the form that its method may have (RFC 9112 section 3.2).
fn target(method: &[u8], target: &[u8]) -> Result<(), Rule> {
    if method == b"CONNECT" {
        return match split_port(target) {
            (host, Some(port)) if is_host(host) && is_port(port) => Ok(()),
            _ => Err(Rule::TargetForm),
        };
    }
    match target {
        [b'/', ..] => path(target),
        b"*" if method == b"OPTIONS" => Ok(()),
        _ => absolute(target),
    }
}

/// A path with an optional query.
fn path(bytes: &[u8]) -> Result<(), Rule> {
    if all(bytes, TARGET) {
        return Ok(());
    }
    let end = memchr(b'?', bytes).unwrap_or(bytes.len());
    let (path, query) = bytes.split_at(end);
    if all(path, PATH) && all(query, QUERY) {
        Ok(())
    } else {
        Err(Rule::Target)
    }
}

fn absolute(target: &[u8]) -> Result<(), Rule> {
    let begins = |scheme: &[u8]| {
        let (begin, rest) = target.split_at_checked(scheme.len())?;
        begin.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let rest = begins(b"http://").or_else(|| begins(b"https://"));
    let rest = rest.ok_or(Rule::TargetForm)?;
    let end = memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    if !is_authority(&rest[..end]) {
        return Err(Rule::Target);
    }
    path(&rest[end..])
}

/// What is kept of a request line until the head is complete. Offsets are those of the input.
#[derive(Clone, Copy, Debug)]
struct Start {
    /// Where the line begins: after the empty line that may come first.
    at: usize,
    method: usize,
    target: usize,
    version: Version,
    connect: bool,
    /// Whether the method makes no sense without a body.
    needs_body: bool,
}

fn request_line(line: &[u8], at: usize, limit: usize) -> Result<Start, Rule> {
    let (version, rest) = match line {
        [
            rest @ ..,
            b' ',
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            b'1',
        ] => (Version::HTTP_11, rest),
        [
            rest @ ..,
            b' ',
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            b'0',
        ] => (Version::HTTP_10, rest),
        _ => return Err(no_version(line)),
    };
    let end = rest.iter().position(|byte| !is(*byte, TOKEN));
    let (method, uri) = match rest.split_at_checked(end.unwrap_or(0)) {
        Some((method, [b' ', uri @ ..])) if !method.is_empty() => (method, uri),
        _ => return Err(Rule::RequestLine),
    };
    if uri.len() > limit {
        return Err(Rule::TargetTooLong);
    }
    if let Err(rule) = target(method, uri) {
        return Err(match memchr(b' ', uri) {
            Some(_) => Rule::RequestLine,
            None => rule,
        });
    }
    Ok(Start {
        at,
        method: method.len(),
        target: uri.len(),
        version,
        connect: method == b"CONNECT",
        needs_body: matches!(method, b"POST" | b"PUT" | b"PATCH"),
    })
}

/// The rule that a request line breaks which does not end in a version.
#[cold]
fn no_version(line: &[u8]) -> Rule {
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(b"PRI"), Some(b"*"), Some(b"HTTP/2.0"), None) => Rule::Http2Preface,
        (_, _, Some(version), None) if version.starts_with(b"HTTP/") => Rule::Version,
        _ => Rule::RequestLine,
    }
}

/// Reads one request's head.
#[derive(Debug, Default)]
pub struct RequestHead {
    lines: Lines,
    start: Option<Start>,
    fields: Fields,
}

impl RequestHead {
    /// Judges the head that `input` begins with: what the last call was given, and more. `None`
    /// if it is not complete.
    ///
    /// # Errors
    /// With the rule that it breaks.
    pub fn read(&mut self, input: &[u8], limits: &HeadLimits) -> Result<Option<Request>, Rule> {
        loop {
            let over = match self.start {
                Some(_) => {
                    while let Some(field) = self.lines.plain_field(input, limits.head) {
                        self.take(&field, limits)?;
                    }
                    Rule::HeadTooLarge
                }
                None => Rule::TargetTooLong,
            };
            let at = self.lines.passed();
            let Some(line) = self.lines.next(input, limits.head, over)? else {
                return Ok(None);
            };
            match &self.start {
                // One empty line may come before (RFC 9112 section 2.2).
                None if line.is_empty() && at == 0 => {}
                None if line.is_empty() => return Err(Rule::EmptyLines),
                None => self.start = Some(request_line(line, at, limits.target)?),
                Some(start) if line.is_empty() => return self.finish(start).map(Some),
                Some(_) => self.take(&field(line)?, limits)?,
            }
        }
    }

    fn take(&mut self, field: &Field<'_>, limits: &HeadLimits) -> Result<(), Rule> {
        if let Some(host) = self.fields.take(field, limits.fields)? {
            if self.fields.host {
                return Err(Rule::TwoHosts);
            }
            if !is_authority(host) {
                return Err(Rule::Host);
            }
            self.fields.host = true;
        }
        Ok(())
    }

    fn finish(&self, start: &Start) -> Result<Request, Rule> {
        let fields = &self.fields;
        fields.check(start.version)?;
        if start.version == Version::HTTP_11 && !fields.host {
            return Err(Rule::NoHost);
        }
        if start.version == Version::HTTP_10 && start.needs_body && fields.length.is_none() {
            return Err(Rule::NoLength);
        }
        if start.connect && fields.announce_body() {
            return Err(Rule::ConnectWithBody);
        }
        Ok(Request {
            len: self.lines.passed(),
            body: fields.framing().unwrap_or(Framing::Length(0)),
            switch: start.connect || fields.upgrade,
        })
    }

    /// Whether it has begun: an empty line before it does not count.
    #[must_use]
    pub fn begun(&self) -> bool {
        self.lines.searched > self.lines.start || self.start.is_some()
    }

    /// The request line, if it is complete and well-formed. `input` as in [`Self::read`].
    #[must_use]
    pub fn line(&self, input: &[u8]) -> Option<Line> {
        let start = self.start?;
        let line = input.get(start.at..)?;
        let method = line.get(..start.method)?;
        let target = line.get(start.method + 1..start.method + 1 + start.target)?;
        Some(Line {
            method: std::str::from_utf8(method).ok()?.into(),
            target: std::str::from_utf8(target).ok()?.into(),
            version: start.version,
        })
    }
}

/// Version and status.
fn status_line(line: &[u8]) -> Result<(Version, u16), Rule> {
    let (version, rest) = match line {
        [
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            b'1',
            b' ',
            rest @ ..,
        ] => (Version::HTTP_11, rest),
        [
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            b'0',
            b' ',
            rest @ ..,
        ] => (Version::HTTP_10, rest),
        _ => return Err(Rule::StatusLine),
    };
    let (digits, reason) = rest.split_at_checked(3).ok_or(Rule::StatusLine)?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(digits[0], b'1'..=b'5') {
        return Err(Rule::StatusLine);
    }
    // The space may be missing where there is no reason.
    if !matches!(reason, [] | [b' ', ..]) {
        return Err(Rule::StatusLine);
    }
    if !is_text(reason) {
        return Err(not_text(reason));
    }
    let status = digits
        .iter()
        .fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    Ok((version, status))
}

/// Reads one response's head.
#[derive(Debug, Default)]
pub struct ResponseHead {
    lines: Lines,
    start: Option<(Version, u16)>,
    fields: Fields,
}

impl ResponseHead {
    /// Judges the head that `input` begins with, as [`RequestHead::read`] does; it answers what
    /// was `asked`.
    ///
    /// # Errors
    /// With the rule that it breaks.
    pub fn read(
        &mut self,
        input: &[u8],
        asked: Asked,
        limits: &HeadLimits,
    ) -> Result<Option<Response>, Rule> {
        loop {
            if self.start.is_some() {
                while let Some(field) = self.lines.plain_field(input, limits.head) {
                    self.fields.take(&field, limits.fields)?;
                }
            }
            let line = self.lines.next(input, limits.head, Rule::HeadTooLarge)?;
            let Some(line) = line else {
                return Ok(None);
            };
            match self.start {
                None => self.start = Some(status_line(line)?),
                Some(start) if line.is_empty() => return self.finish(start, asked).map(Some),
                Some(_) => {
                    self.fields.take(&field(line)?, limits.fields)?;
                }
            }
        }
    }

    /// RFC 9112 section 6.3, and no body where there can be none.
    fn finish(&self, (version, status): (Version, u16), asked: Asked) -> Result<Response, Rule> {
        let fields = &self.fields;
        fields.check(version)?;
        let switched = status == 101 || (asked == Asked::Connect && status / 100 == 2);
        let bare = status / 100 == 1 || status == 204 || switched;
        if bare && fields.announce_body() {
            return Err(Rule::StatusWithBody);
        }
        if status == 101 && asked != Asked::Upgrade {
            return Err(Rule::UnaskedSwitch);
        }
        let then = if switched {
            Then::Switched
        } else if status / 100 == 1 {
            Then::Head
        } else if bare || status == 304 || asked == Asked::Head {
            Then::Body(Framing::Length(0))
        } else {
            Then::Body(fields.framing().unwrap_or(Framing::UntilClose))
        };
        Ok(Response {
            len: self.lines.passed(),
            status,
            then,
        })
    }

    /// Whether a byte of it has come.
    #[must_use]
    pub const fn begun(&self) -> bool {
        self.lines.begun()
    }
}
