//! What one line may be, and what the fields of a head say about the body.

use super::{Asked, Field, Framing, Message};

type Result<T> = std::result::Result<T, &'static str>;

/// Fields that decide where a message ends or where it goes: never in trailers.
const NEVER_TRAILERS: [&str; 3] = ["content-length", "transfer-encoding", "host"];

fn is_token(text: &[u8]) -> bool {
    let is_one = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_one)
}

/// `*( HTAB / SP / VCHAR / obs-text )`
fn is_text(text: &[u8]) -> bool {
    text.iter()
        .all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..))
}

pub(super) fn start_line(line: &[u8], is_request: bool) -> Result<String> {
    if is_request {
        request_line(line)?;
    } else {
        status_line(line)?;
    }
    Ok(String::from_utf8_lossy(line).into_owned())
}

fn request_line(line: &[u8]) -> Result<()> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else {
        return Err("a request line is not three words with one space between them");
    };
    if !is_token(method) {
        return Err("a method is not a token");
    }
    if version != b"HTTP/1.1" && version != b"HTTP/1.0" {
        return Err("a version is neither HTTP/1.1 nor HTTP/1.0");
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) || target.contains(&b'#') {
        return Err("a target has bytes that no target has");
    }
    match (method, target) {
        (b"CONNECT", target) if is_authority(target) && has_port(target) => Ok(()),
        (b"CONNECT", _) => Err("the target of CONNECT is not host:port"),
        (b"OPTIONS", b"*") => Ok(()),
        (_, [b'/', ..]) => Ok(()),
        (_, target) => absolute(target),
    }
}

fn absolute(target: &[u8]) -> Result<()> {
    const WRONG: &str = "a target is of no form that its method may have";
    let lower = target.to_ascii_lowercase();
    let rest = lower
        .strip_prefix(b"http://")
        .or_else(|| lower.strip_prefix(b"https://"))
        .ok_or(WRONG)?;
    let end = rest.iter().position(|byte| b"/?".contains(byte));
    match is_authority(&rest[..end.unwrap_or(rest.len())]) {
        true => Ok(()),
        false => Err(WRONG),
    }
}

/// `host [ ":" port ]` with a host that is not empty, and without user information.
fn is_authority(text: &[u8]) -> bool {
    let (host, rest) = match text.iter().position(|byte| *byte == b']') {
        Some(end) if text[0] == b'[' => {
            let inside = &text[1..end];
            let is_address = !inside.is_empty()
                && inside
                    .iter()
                    .all(|byte| byte.is_ascii_hexdigit() || b":.".contains(byte));
            if !is_address {
                return false;
            }
            text.split_at(end + 1)
        }
        _ => text.split_at(text.iter().position(|b| *b == b':').unwrap_or(text.len())),
    };
    let is_name = host.first() == Some(&b'[')
        || host
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte));
    let is_port = match rest {
        [] => true,
        [b':', port @ ..] => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    !host.is_empty() && is_name && is_port
}

fn has_port(authority: &[u8]) -> bool {
    let mut parts = authority.rsplit(|byte| *byte == b':');
    let port = parts.next().unwrap_or_default();
    !port.is_empty() && port.iter().all(u8::is_ascii_digit)
}

fn status_line(line: &[u8]) -> Result<()> {
    let rest = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))
        .ok_or("a status line does not begin with its version and a space")?;
    let [b'1'..=b'5', b, c, reason @ ..] = rest else {
        return Err("a status is not from 100 to 599");
    };
    if !b.is_ascii_digit() || !c.is_ascii_digit() {
        return Err("a status is not three digits");
    }
    match reason {
        [] => Ok(()),
        [b' ', reason @ ..] if is_text(reason) => Ok(()),
        _ => Err("what follows a status is not a space and a reason"),
    }
}

pub(super) fn field(line: &[u8]) -> Result<Field> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err("a line begins with a blank: folded, or before the first field");
    }
    let colon = line.iter().position(|byte| *byte == b':');
    let colon = colon.ok_or("a field line has no colon")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_token(name) {
        return Err("a field name is not a token");
    }
    if !is_text(value) {
        return Err("a field value has bytes that no value has");
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let first = value.iter().position(|byte| !is_blank(byte));
    let last = value.iter().rposition(|byte| !is_blank(byte));
    let value = match (first, last) {
        (Some(first), Some(last)) => &value[first..=last],
        _ => &[],
    };
    Ok(Field {
        name: String::from_utf8_lossy(name).into_owned(),
        value: value.to_vec(),
    })
}

pub(super) fn trailer(line: &[u8]) -> Result<Field> {
    let field = field(line)?;
    let mut never = NEVER_TRAILERS.iter();
    match never.any(|name| field.name.eq_ignore_ascii_case(name)) {
        true => Err("a trailer that may not be one"),
        false => Ok(field),
    }
}

/// The size that a chunk line gives, and how long its extensions are.
pub(super) fn chunk_line(line: &[u8]) -> Result<(u64, usize)> {
    let end = line.iter().position(|byte| *byte == b';');
    let (digits, extensions) = line.split_at(end.unwrap_or(line.len()));
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err("a chunk size is not 1 to 16 hexadecimal digits");
    }
    let digits = String::from_utf8_lossy(digits);
    let size = u64::from_str_radix(&digits, 16).map_err(|_| "a chunk size is too large")?;
    if size > i64::MAX as u64 {
        return Err("a chunk size is too large");
    }
    are_extensions(extensions)?;
    Ok((size, extensions.len()))
}

/// `*( ";" name [ "=" ( token / quoted-string ) ] )`
fn are_extensions(mut rest: &[u8]) -> Result<()> {
    const WRONG: &str = "chunk extensions are malformed";
    let token = |text: &[u8]| {
        let end = text.iter().position(|byte| !is_token(&[*byte]));
        end.unwrap_or(text.len())
    };
    while let [b';', after @ ..] = rest {
        let name = token(after);
        if name == 0 {
            return Err(WRONG);
        }
        rest = &after[name..];
        if let [b'=', value @ ..] = rest {
            let length = match value {
                [b'"', inside @ ..] => 2 + quoted(inside).ok_or(WRONG)?,
                value => token(value),
            };
            if length == 0 {
                return Err(WRONG);
            }
            rest = &value[length..];
        }
    }
    match rest {
        [] => Ok(()),
        _ => Err(WRONG),
    }
}

/// The length of a quoted string up to its closing quote.
fn quoted(inside: &[u8]) -> Option<usize> {
    let mut i = 0;
    while i < inside.len() {
        match inside[i] {
            b'"' => return is_text(&inside[..i]).then_some(i),
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
    None
}

/// `Content-Length` and `Transfer-Encoding`, of which there is one or none.
fn framing(message: &Message) -> Result<Framing> {
    let lengths = message.values("content-length");
    let codings = message.values("transfer-encoding");
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Framing::None),
        ([length], []) => {
            let is_number =
                (1..=19).contains(&length.len()) && length.iter().all(u8::is_ascii_digit);
            let number = String::from_utf8_lossy(length).parse();
            match number {
                Ok(number) if is_number && number <= i64::MAX as u64 => Ok(Framing::Length(number)),
                _ => Err("a Content-Length is not a number"),
            }
        }
        ([], [coding]) if message.is_http10() && !coding.is_empty() => {
            Err("a Transfer-Encoding in HTTP/1.0")
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        ([], [_]) => Err("a Transfer-Encoding is not `chunked`"),
        ([_, _, ..], _) => Err("more than one Content-Length"),
        (_, [_, _, ..]) => Err("more than one Transfer-Encoding"),
        ([_], [_]) => Err("both Content-Length and Transfer-Encoding"),
    }
}

pub(super) fn request_framing(message: &Message) -> Result<Framing> {
    let hosts = message.values("host");
    match hosts[..] {
        [] if message.is_http10() => {}
        [] => return Err("no Host"),
        [host] if is_authority(host) => {}
        [_] => return Err("a Host that is no authority"),
        [_, _, ..] => return Err("more than one Host"),
    }
    framing(message)
}

pub(super) fn answer_framing(message: &Message, asked: Asked) -> Result<Framing> {
    let status = message.status();
    let written = framing(message)?;
    if status == 101 && asked != Asked::Upgrade {
        return Err("a switch of protocols that nobody asked for");
    }
    let is_tunnel = asked == Asked::Connect && (200..300).contains(&status);
    match (status, written) {
        (100..=199 | 204, Framing::Length(_) | Framing::Chunked) => {
            Err("the framing of a body in an answer that has none")
        }
        (100..=199 | 204 | 304, _) => Ok(Framing::None),
        _ if asked == Asked::Head || is_tunnel => Ok(Framing::None),
        (_, Framing::None) => Ok(Framing::UntilClose),
        (_, framing) => Ok(framing),
    }
}
