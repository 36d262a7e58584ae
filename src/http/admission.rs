//! HOT. What one message may say, after it was read and before anything is decided by it: the
//! same rules for HTTP/1 and HTTP/2, in one place. A message passes or is refused; what two
//! readers could read differently is never repaired. Words of a refusal begin with its rule.

use std::fmt::Display;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    uri::{PathAndQuery, Scheme},
};

use super::{
    authority::Authority,
    headers::{strip_hop_by_hop, wants_websocket},
    reply::WEFT_REASON,
    translate::join_cookies,
};
use crate::{
    error::Reason,
    fields::{self, Sender, Violation, is_hop_by_hop, is_protected, is_twin},
    limits::Limits,
};

fn refused(rule: &'static str, words: impl Display) -> Violation {
    Violation::new(Reason::ClientProtocolError, rule, words)
}

/// Judges a request and says its authority, the one that route, policy, log and upstream see.
/// Afterwards it has no field of the mesh's own, one Host at most, which is
/// the authority, one Cookie if it came by HTTP/2, and a scheme in lower case; all else is as it
/// came.
///
/// # Errors
/// With the reason (400, 413, 414, 431, 501) and words that begin with the rule.
pub(super) fn admit<B>(req: &mut Request<B>, limits: &Limits) -> Result<Authority, Violation> {
    judge_method(req.method())?;
    judge_target(req, limits)?;
    let seen = Seen::of(req.headers(), Sender::Client)?;
    seen.judge_size(req, limits)?;
    seen.judge_content(req, limits)?;
    let authority = authority_of(req, &seen)?;
    let version = req.version();
    if version == Version::HTTP_2 {
        seen.judge_http2(req.headers())?;
    }
    if seen.upgrades > 0 {
        judge_upgrade(req, &seen)?;
    }
    lower_case_scheme(req)?;
    complete_path(req)?;
    let fields = req.headers_mut();
    if seen.connection {
        judge_connection(fields, Sender::Client)?;
    }
    if seen.expects > 0 {
        judge_expect(fields, version, &seen)?;
    }
    if seen.own {
        remove_own(fields);
    }
    if version == Version::HTTP_2 && seen.cookies > 1 {
        join_cookies(fields)?;
    }
    // The two may differ in case, and the application must not see another one than we did.
    if seen.hosts == 1 && fields.get(HOST) != Some(authority.value()) {
        fields.insert(HOST, authority.value().clone());
    }
    Ok(authority)
}

/// What one look at all fields has found.
#[derive(Debug, Default)]
struct Seen {
    /// As RFC 9113, 6.5.2 counts.
    size: usize,
    hosts: usize,
    lengths: usize,
    codings: usize,
    upgrades: usize,
    cookies: usize,
    expects: usize,
    te: bool,
    connection: bool,
    /// Names of the mesh.
    own: bool,
    /// `keep-alive` and what else concerns one connection.
    hop_by_hop: bool,
}

impl Seen {
    /// Looks at each field once.
    fn of(fields: &HeaderMap, sender: Sender) -> Result<Self, Violation> {
        let mut seen = Self::default();
        for (name, value) in fields {
            seen.size += name.as_str().len() + value.len() + fields::OVERHEAD;
            match *name {
                HOST => seen.hosts += 1,
                CONTENT_LENGTH => seen.lengths += 1,
                TRANSFER_ENCODING => seen.codings += 1,
                UPGRADE => seen.upgrades += 1,
                COOKIE => seen.cookies += 1,
                EXPECT => seen.expects += 1,
                TE => seen.te = true,
                CONNECTION => seen.connection = true,
                _ => seen.other(name.as_str(), sender)?,
            }
        }
        Ok(seen)
    }

    fn other(&mut self, name: &str, sender: Sender) -> Result<(), Violation> {
        match name.as_bytes().first() {
            Some(b'w') => self.own |= name.starts_with(fields::OWN),
            Some(b'k' | b'p' | b'h') => {
                self.hop_by_hop |= is_hop_by_hop(name);
            }
            _ => {}
        }
        if name.contains('"') {
            // The one byte that is no token (RFC 9110, 5.6.2) and that a name has by HTTP/2.
            let words = format_args!("{name:?} is no name");
            return Err(Violation::new(sender.fault(), "field_name", words));
        }
        if sender == Sender::Client && is_twin(name) {
            let words = format!("`{name}` cannot be told from a field that matters");
            return Err(refused("underscore_twin", words));
        }
        Ok(())
    }

    fn judge_size<B>(&self, req: &Request<B>, limits: &Limits) -> Result<(), Violation> {
        let count = req.headers().len();
        // The bytes of an HTTP/1 head were counted as they came.
        let large = req.version() == Version::HTTP_2 && self.size > limits.max_head_bytes;
        if count > limits.max_fields || large {
            let words = format_args!("{count} fields of {} bytes", self.size);
            return Err(Violation::new(
                Reason::HeadersTooLarge,
                "headers_too_large",
                words,
            ));
        }
        Ok(())
    }

    /// Content-Length and Transfer-Encoding: one of them, once, and in the one form that all
    /// readers read the same.
    fn judge_content<B>(&self, req: &Request<B>, limits: &Limits) -> Result<(), Violation> {
        let fields = req.headers();
        if self.lengths > 0 {
            let length = (self.lengths == 1).then(|| length_of(fields)).flatten();
            let Some(length) = length else {
                return Err(refused("content_length", "is not one number"));
            };
            if self.codings > 0 {
                return Err(refused(
                    "two_lengths",
                    "Content-Length and Transfer-Encoding",
                ));
            }
            if limits.max_body_bytes > 0 && length > limits.max_body_bytes {
                let words = format_args!("{length} bytes");
                return Err(Violation::new(
                    Reason::BodyTooLarge,
                    "body_too_large",
                    words,
                ));
            }
        }
        if self.codings > 0 {
            if req.version() != Version::HTTP_11 {
                return Err(refused("transfer_encoding", "is for HTTP/1.1 only"));
            }
            if self.codings > 1 || !is_chunked(fields) {
                let words = "is not `chunked` alone";
                return Err(Violation::new(
                    Reason::NotImplemented,
                    "transfer_encoding",
                    words,
                ));
            }
        }
        Ok(())
    }

    /// h2 refuses the same; this is the second lock.
    fn judge_http2(&self, fields: &HeaderMap) -> Result<(), Violation> {
        if self.connection || self.hop_by_hop || self.upgrades > 0 {
            return Err(refused("connection_field", "HTTP/2 has none"));
        }
        if self.te && fields.get_all(TE).iter().any(|te| te != "trailers") {
            return Err(refused("te", "may say `trailers` only"));
        }
        Ok(())
    }
}

fn is_chunked(fields: &HeaderMap) -> bool {
    let coding = fields.get(TRANSFER_ENCODING);
    coding.is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// 1 to 19 digits that fit 63 bits.
fn length_of(fields: &HeaderMap) -> Option<u64> {
    let digits = fields.get(CONTENT_LENGTH)?.to_str().ok()?;
    let fits = (1..=19).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let length: u64 = digits.parse().ok().filter(|_| fits)?;
    i64::try_from(length).ok()?;
    Some(length)
}

/// A token passes, whatever it says, but for TRACE: it would return to the client what the
/// mesh adds about it (RFC 9110, 9.3.8), so it is 501. A registered method in another case is
/// refused: it is another method to us and may be the same one to the application.
fn judge_method(method: &Method) -> Result<(), Violation> {
    match *method {
        Method::GET
        | Method::POST
        | Method::HEAD
        | Method::PUT
        | Method::DELETE
        | Method::OPTIONS
        | Method::PATCH
        | Method::CONNECT => Ok(()),
        Method::TRACE => {
            let words = "TRACE would show what the mesh adds";
            Err(Violation::new(Reason::NotImplemented, "trace", words))
        }
        _ => {
            const KNOWN: [&str; 10] = [
                "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE",
                "PRI",
            ];
            let name = method.as_str();
            match KNOWN.iter().find(|known| known.eq_ignore_ascii_case(name)) {
                Some(known) => Err(refused("method", format_args!("`{method}` is not {known}"))),
                None => Ok(()),
            }
        }
    }
}

/// The forms of RFC 9112, 3.2: a path, with or without scheme and authority; `*` for OPTIONS;
/// an authority with a port for CONNECT. ASCII only. Fragments end before: HTTP/1 refuses
/// them, and h2 cuts them off before anybody has read them.
fn judge_target<B>(req: &Request<B>, limits: &Limits) -> Result<(), Violation> {
    let uri = req.uri();
    if req.method() == Method::CONNECT {
        return match uri.authority() {
            Some(_) if uri.scheme().is_none() && uri.path().is_empty() => Ok(()),
            _ => Err(refused("target", "CONNECT wants an authority")),
        };
    }
    let target = match uri.path_and_query() {
        Some(target) if !uri.path().is_empty() => target.as_str(),
        _ => return Err(refused("target", "has no path")),
    };
    // A fragment is all that there was, and h2 has cut it off.
    let is_nothing = || uri.path_and_query() != Some(&PathAndQuery::from_static("/"));
    if req.version() == Version::HTTP_2 && target == "/" && is_nothing() {
        return Err(refused("target", "has no path"));
    }
    if target.len() > limits.max_target_bytes {
        let words = format_args!("{} bytes", target.len());
        return Err(Violation::new(
            Reason::TargetTooLong,
            "target_too_long",
            words,
        ));
    }
    let absolute = uri.scheme().is_some() && req.version() < Version::HTTP_2;
    let form = target.starts_with('/')
        || (target == "*" && req.method() == Method::OPTIONS)
        || (target.starts_with('?') && absolute);
    if !form {
        return Err(refused("target", "the path must begin with `/`"));
    }
    if !target.is_ascii() {
        return Err(refused(
            "target",
            "a byte that is not ASCII must be escaped",
        ));
    }
    Ok(())
}

/// `http` and `https` are the schemes there are, in any case (RFC 3986, 3.1).
fn lower_case_scheme<B>(req: &mut Request<B>) -> Result<(), Violation> {
    let known = match req.uri().scheme_str() {
        None | Some("http" | "https") => return Ok(()),
        Some(scheme) if scheme.eq_ignore_ascii_case("http") => Scheme::HTTP,
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => Scheme::HTTPS,
        Some(_) => return Err(refused("scheme", "is neither http nor https")),
    };
    let mut parts = std::mem::take(req.uri_mut()).into_parts();
    parts.scheme = Some(known);
    let uri = Uri::from_parts(parts).map_err(|error| refused("scheme", error))?;
    *req.uri_mut() = uri;
    Ok(())
}

/// An absolute target with a query and no path has the path `/` (RFC 9110, 4.2.3).
fn complete_path<B>(req: &mut Request<B>) -> Result<(), Violation> {
    let target = match req.uri().path_and_query() {
        Some(target) if target.as_str().starts_with('?') => format!("/{}", target.as_str()),
        _ => return Ok(()),
    };
    let mut parts = std::mem::take(req.uri_mut()).into_parts();
    let target = target.parse().map_err(|error| refused("target", error))?;
    parts.path_and_query = Some(target);
    *req.uri_mut() = Uri::from_parts(parts).map_err(|error| refused("target", error))?;
    Ok(())
}

/// Host, `:authority` and the authority of an absolute target are the same up to case, or the
/// request is refused; the target's is the one that counts (RFC 9112, 3.2.2). A default port
/// is a difference. Only the Host of a CONNECT, which goes nowhere, may lack the port.
fn authority_of<B>(req: &Request<B>, seen: &Seen) -> Result<Authority, Violation> {
    let version = req.version();
    if seen.hosts > 1 {
        return Err(refused("two_hosts", "two Host fields"));
    }
    if seen.hosts == 0 && version == Version::HTTP_11 {
        return Err(refused("no_host", "HTTP/1.1 must have a Host"));
    }
    let read = |value| Authority::read(value).map_err(|words| refused("authority", words));
    let host = req.headers().get(HOST);
    let Some(target) = req.uri().authority() else {
        return match host {
            Some(host) => read(host.clone()),
            None if version < Version::HTTP_11 => Ok(Authority::none()),
            None => Err(refused("no_host", "neither Host nor :authority")),
        };
    };
    let target = target.as_str().as_bytes();
    let value = match host {
        // The same bytes are not copied.
        Some(host) if host.as_bytes() == target => host.clone(),
        _ => HeaderValue::from_bytes(target).map_err(|error| refused("authority", error))?,
    };
    let authority = read(value)?;
    let connect = req.method() == Method::CONNECT;
    if connect && !authority.has_port() {
        return Err(refused("authority", "CONNECT wants a port"));
    }
    let same = host.is_none_or(|host| {
        host.as_bytes().eq_ignore_ascii_case(target)
            || connect
                && host
                    .as_bytes()
                    .eq_ignore_ascii_case(authority.host().as_bytes())
    });
    if same {
        Ok(authority)
    } else {
        let words = "Host and the target name different authorities";
        Err(refused("two_authorities", words))
    }
}

/// RFC 6455, 4.1 asks for WebSocket in a GET without content. Whatever else asks for it is
/// refused, since bytes that follow could be content or frames. Other protocols are not
/// offered, HTTP/1.0 cannot ask, and `Upgrade` ends here then.
fn judge_upgrade<B>(req: &Request<B>, seen: &Seen) -> Result<(), Violation> {
    let fields = req.headers();
    if req.version() != Version::HTTP_11 || !wants_websocket(fields) {
        return Ok(());
    }
    let empty = seen.codings == 0 && (seen.lengths == 0 || length_of(fields) == Some(0));
    if seen.upgrades > 1 || req.method() != Method::GET || !empty {
        let words = "a switch to WebSocket is a GET without content and with one Upgrade";
        return Err(refused("websocket", words));
    }
    Ok(())
}

/// The options of `Connection` are tokens, and none of them is a field that the receiver
/// relies on (RFC 9110, 7.6.1). Servers do name Transfer-Encoding, which is read by then.
fn judge_connection(fields: &HeaderMap, sender: Sender) -> Result<(), Violation> {
    let bad = |words: String| Violation::new(sender.fault(), "connection", words);
    for value in fields.get_all(CONNECTION) {
        for option in value.as_bytes().split(|b| *b == b',') {
            let option = option.trim_ascii();
            if option.is_empty() {
                continue;
            }
            let Ok(name) = HeaderName::from_bytes(option) else {
                return Err(bad("an option that is no token".to_owned()));
            };
            let usual = sender == Sender::Server && name == TRANSFER_ENCODING;
            if is_protected(name.as_str()) && !usual {
                return Err(bad(format!("may not take `{name}` away")));
            }
        }
    }
    Ok(())
}

/// `100-continue` is the one expectation there is (RFC 9110, 10.1.1). Another one is refused:
/// we would wait with the content for a word that the application does not know it owes. In
/// HTTP/1.0 there is none, and the field ends here.
fn judge_expect(fields: &mut HeaderMap, version: Version, seen: &Seen) -> Result<(), Violation> {
    let known = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if version < Version::HTTP_11 {
        fields.remove(EXPECT);
    } else if seen.expects > 1 || !fields.get(EXPECT).is_some_and(known) {
        return Err(refused("expect", "is not `100-continue`"));
    }
    Ok(())
}

/// Removes what only the mesh says.
fn remove_own(fields: &mut HeaderMap) {
    let own = |name: &&HeaderName| name.as_str().starts_with(fields::OWN);
    let names: Vec<HeaderName> = fields.keys().filter(own).cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

/// What an answer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A request for an answer.
    Answer,
    /// One for a switch to WebSocket.
    Switch,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// An application, or whoever did not prove to be of the mesh.
    Application,
    /// A sidecar that proved who it is: it may speak for the mesh.
    Sidecar,
}

/// Judges the head of an answer and removes what was for its connection only. Says the reason
/// that the peer's sidecar gave.
///
/// # Errors
/// [`Reason::PeerProtocolError`] and words that begin with the rule. The connection must not be
/// used again.
pub(super) fn answer<B>(
    response: &mut Response<B>,
    asked: Asked,
    peer: Peer,
    limits: &Limits,
) -> Result<Option<Reason>, Violation> {
    let seen = Seen::of(response.headers(), Sender::Server)?;
    judge_answer(response, &seen, asked, limits)
        .map_err(|(rule, words)| Violation::new(Reason::PeerProtocolError, rule, words))?;
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let no_content = response.status() == StatusCode::NO_CONTENT;
    let fields = response.headers_mut();
    if seen.connection {
        judge_connection(fields, Sender::Server)?;
    }
    strip_hop_by_hop(fields, switched);
    if no_content && seen.lengths > 0 {
        // It says 0, and must not say anything (RFC 9110, 8.6).
        fields.remove(CONTENT_LENGTH);
    }
    if !seen.own {
        return Ok(None);
    }
    let reason = fields.get(WEFT_REASON).cloned();
    remove_own(fields);
    let Some(reason) = reason.filter(|_| peer == Peer::Sidecar) else {
        return Ok(None);
    };
    let known = reason.to_str().ok().and_then(Reason::from_slug);
    // Also a word that only a newer sidecar knows.
    fields.insert(WEFT_REASON, reason);
    Ok(known)
}

/// The rule that an answer breaks, and words.
type Broken = (&'static str, String);

fn judge_answer<B>(
    response: &Response<B>,
    seen: &Seen,
    asked: Asked,
    limits: &Limits,
) -> Result<(), Broken> {
    let (status, fields) = (response.status(), response.headers());
    let http2 = response.version() == Version::HTTP_2;
    if fields.len() > limits.max_fields || (http2 && seen.size > limits.max_head_bytes) {
        let (count, size) = (fields.len(), seen.size);
        return Err((
            "headers_too_large",
            format!("{count} fields of {size} bytes"),
        ));
    }
    if status.as_u16() > 599 {
        return Err(("status", format!("{status} is none")));
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        judge_switch(fields, seen, asked)?;
    } else if status.is_informational() {
        return Err(("informational", format!("{status} is no last answer")));
    }
    if seen.lengths > 0 {
        let length = (seen.lengths == 1).then(|| length_of(fields)).flatten();
        match length {
            None => return Err(("content_length", "is not one number".to_owned())),
            Some(_) if seen.codings > 0 => {
                return Err((
                    "two_lengths",
                    "Content-Length and Transfer-Encoding".to_owned(),
                ));
            }
            Some(1..) if status == StatusCode::NO_CONTENT => {
                return Err(("content_length", "204 has no content".to_owned()));
            }
            Some(_) => {}
        }
    }
    if seen.codings > 0 {
        if seen.codings > 1 || !is_chunked(fields) {
            return Err(("transfer_encoding", "is not `chunked` alone".to_owned()));
        }
        if status == StatusCode::NO_CONTENT {
            return Err(("transfer_encoding", "204 has no content".to_owned()));
        }
    }
    Ok(())
}

/// A switch was asked for, is to what was asked for, and has no content (RFC 9110, 15.2.2).
fn judge_switch(fields: &HeaderMap, seen: &Seen, asked: Asked) -> Result<(), Broken> {
    if asked != Asked::Switch {
        return Err((
            "switch",
            "the server switched protocols without being asked".to_owned(),
        ));
    }
    if seen.upgrades != 1 || !wants_websocket(fields) {
        return Err((
            "switch",
            "to another protocol than was asked for".to_owned(),
        ));
    }
    if seen.lengths > 0 || seen.codings > 0 {
        return Err(("switch", "101 has no content".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Request, Response, Uri, Version};

    use super::{Asked, Peer, admit, answer};
    use crate::{error::Reason, fields::Violation, limits::Limits};

    const H10: Version = Version::HTTP_10;
    const H11: Version = Version::HTTP_11;
    const H2: Version = Version::HTTP_2;

    type Fields<'a> = &'a [(&'a str, &'a str)];

    fn request(version: Version, method: &str, target: &str, fields: Fields<'_>) -> Request<()> {
        let mut request = Request::new(());
        *request.version_mut() = version;
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = target.parse::<Uri>().unwrap();
        for (name, value) in fields {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value);
        }
        request
    }

    /// The rule that is broken, or the authority.
    fn outcome(request: &mut Request<()>, limits: &Limits) -> Result<String, &'static str> {
        admit(request, limits)
            .map(|authority| (*authority).to_owned())
            .map_err(|violation| {
                let words = &violation.error.detail;
                assert!(words.starts_with(violation.rule), "{words}");
                violation.rule
            })
    }

    fn check(version: Version, line: &str, fields: Fields<'_>, expected: Result<&str, &str>) {
        let (method, target) = line.split_once(' ').unwrap();
        let mut request = request(version, method, target, fields);
        let found = outcome(&mut request, &Limits::default());
        let found = found.as_deref().map_err(|rule| *rule);
        assert_eq!(found, expected, "{version:?} {line} {fields:?}");
    }

    #[test]
    fn there_is_one_authority() {
        for (version, line, fields, expected) in [
            (H11, "GET /", &[("host", "a")][..], Ok("a")),
            (H11, "GET /", &[("host", "A:80")], Ok("A:80")),
            (H11, "GET /", &[("host", "[::1]:80")], Ok("[::1]:80")),
            (H10, "GET /", &[("host", "a")], Ok("a")),
            (H10, "GET /", &[], Ok("")),
            (H11, "GET /", &[], Err("no_host")),
            (H2, "GET /", &[], Err("no_host")),
            (H2, "GET /", &[("host", "a")], Ok("a")),
            (H2, "GET http://a/", &[], Ok("a")),
            (H11, "GET http://a/", &[], Err("no_host")),
            (H10, "GET http://a/", &[], Ok("a")),
            (H11, "GET http://a/", &[("host", "a")], Ok("a")),
            (H11, "GET http://A/", &[("host", "a")], Ok("A")),
            (H2, "GET http://a:80/", &[("host", "A:80")], Ok("a:80")),
            (
                H11,
                "GET http://a/",
                &[("host", "b")],
                Err("two_authorities"),
            ),
            (
                H2,
                "GET http://a/",
                &[("host", "b")],
                Err("two_authorities"),
            ),
            (H2, "GET http://a/", &[("host", "")], Err("two_authorities")),
            (
                H11,
                "GET http://a/",
                &[("host", "a:80")],
                Err("two_authorities"),
            ),
            (
                H11,
                "GET http://a:80/",
                &[("host", "a")],
                Err("two_authorities"),
            ),
            (
                H11,
                "GET http://a./",
                &[("host", "a")],
                Err("two_authorities"),
            ),
            (
                H11,
                "GET /",
                &[("host", "a"), ("host", "a")],
                Err("two_hosts"),
            ),
            (
                H2,
                "GET http://a/",
                &[("host", "a"), ("host", "a")],
                Err("two_hosts"),
            ),
            (H11, "GET /", &[("host", "")], Err("authority")),
            (H11, "GET /", &[("host", "a b")], Err("authority")),
            (H11, "GET /", &[("host", "a/b?c")], Err("authority")),
            (H11, "GET /", &[("host", "u@h")], Err("authority")),
            (H11, "GET /", &[("host", "a,b")], Err("authority")),
            (H11, "GET /", &[("host", "a:0")], Err("authority")),
            (H11, "GET http://u@a/", &[("host", "u@a")], Err("authority")),
            (H2, "GET http://u@a/", &[], Err("authority")),
            (H2, "GET http://a,b/", &[], Err("authority")),
            (H11, "CONNECT a:443", &[("host", "a:443")], Ok("a:443")),
            (H11, "CONNECT a:443", &[("host", "A")], Ok("a:443")),
            (
                H11,
                "CONNECT a:443",
                &[("host", "b:443")],
                Err("two_authorities"),
            ),
            (
                H11,
                "CONNECT a:443",
                &[("host", "a:80")],
                Err("two_authorities"),
            ),
            (H11, "CONNECT a", &[("host", "a")], Err("authority")),
            (H10, "CONNECT a:443", &[], Ok("a:443")),
        ] {
            check(version, line, fields, expected);
        }
    }

    #[test]
    fn methods_and_targets_are_in_form() {
        for (line, expected) in [
            ("GET /", Ok("a")),
            ("PROPFIND /", Ok("a")),
            ("M-SEARCH /", Ok("a")),
            ("lower /", Ok("a")),
            ("get /", Err("method")),
            ("Post /", Err("method")),
            ("pRI /", Err("method")),
            ("PRI /", Err("method")),
            ("trace /", Err("method")),
            ("TRACE /", Err("trace")),
            ("OPTIONS *", Ok("a")),
            ("OPTIONS /", Ok("a")),
            ("GET *", Err("target")),
            ("GET a", Err("target")),
            ("GET a:80", Err("target")),
            ("OPTIONS a:80", Err("target")),
            ("GET http://a", Ok("a")),
            ("GET http://a?x", Ok("a")),
            ("GET HTTP://a/", Ok("a")),
            ("GET hTTps://a/", Ok("a")),
            ("GET ftp://a/", Err("scheme")),
            ("GET ws://a/", Err("scheme")),
            ("GET //a/b", Ok("a")),
            ("GET /a%2fb/../c;d?e=%zz", Ok("a")),
            ("GET /\u{e4}", Err("target")),
            ("GET /?\u{e4}", Err("target")),
            ("CONNECT /", Err("target")),
            ("CONNECT http://a:80/", Err("target")),
        ] {
            check(H11, line, &[("host", "a")], expected);
        }
        for (found, scheme) in [("HTTP", "http"), ("httpS", "https"), ("http", "http")] {
            let mut request = request(H2, "GET", &format!("{found}://a/b?c"), &[]);
            admit(&mut request, &Limits::default()).unwrap();
            assert_eq!(request.uri().to_string(), format!("{scheme}://a/b?c"));
        }
        let mut quoted = request(H2, "GET", "http://a/", &[]);
        // As h2 reads names.
        let name = HeaderName::from_lowercase(b"a\"b").unwrap();
        let fields = quoted.headers_mut();
        fields.insert(name, HeaderValue::from_static("1"));
        let refused = admit(&mut quoted, &Limits::default()).unwrap_err();
        assert_eq!(refused.rule, "field_name");
        for (path, ok) in [("#x", false), ("/#x", true), ("?#x", false)] {
            let mut request = request(H2, "GET", "http://a/", &[]);
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(path.parse().unwrap());
            *request.uri_mut() = Uri::from_parts(parts).unwrap();
            assert_eq!(
                admit(&mut request, &Limits::default()).is_ok(),
                ok,
                "{path}"
            );
        }
        let mut request = request(H11, "GET", "http://a?x=/", &[("host", "a")]);
        admit(&mut request, &Limits::default()).unwrap();
        assert_eq!(request.uri().to_string(), "http://a/?x=/");
    }

    #[test]
    fn fields_are_in_form() {
        for (version, fields, expected) in [
            (H11, &[("content-length", "0")][..], Ok("a")),
            (H11, &[("content-length", "9223372036854775807")], Ok("a")),
            (
                H11,
                &[("content-length", "9223372036854775808")],
                Err("content_length"),
            ),
            (
                H11,
                &[("content-length", "00000000000000000001")],
                Err("content_length"),
            ),
            (H2, &[("content-length", "")], Err("content_length")),
            (H2, &[("content-length", "+5")], Err("content_length")),
            (H2, &[("content-length", "5, 5")], Err("content_length")),
            (H2, &[("content-length", "0x5")], Err("content_length")),
            (
                H2,
                &[("content-length", "5"), ("content-length", "5")],
                Err("content_length"),
            ),
            (H11, &[("transfer-encoding", "chunked")], Ok("a")),
            (H11, &[("transfer-encoding", "Chunked")], Ok("a")),
            (
                H11,
                &[("transfer-encoding", "gzip, chunked")],
                Err("transfer_encoding"),
            ),
            (
                H11,
                &[("transfer-encoding", "\"chunked\"")],
                Err("transfer_encoding"),
            ),
            (
                H11,
                &[
                    ("transfer-encoding", "chunked"),
                    ("transfer-encoding", "chunked"),
                ],
                Err("transfer_encoding"),
            ),
            (
                H11,
                &[("content-length", "5"), ("transfer-encoding", "chunked")],
                Err("two_lengths"),
            ),
            (
                H10,
                &[("transfer-encoding", "chunked")],
                Err("transfer_encoding"),
            ),
            (
                H2,
                &[("transfer-encoding", "chunked")],
                Err("transfer_encoding"),
            ),
            (H2, &[("connection", "close")], Err("connection_field")),
            (H2, &[("keep-alive", "5")], Err("connection_field")),
            (
                H2,
                &[("proxy-connection", "close")],
                Err("connection_field"),
            ),
            (H2, &[("http2-settings", "x")], Err("connection_field")),
            (H2, &[("upgrade", "h2c")], Err("connection_field")),
            (H2, &[("te", "trailers")], Ok("a")),
            (H2, &[("te", "gzip")], Err("te")),
            (H11, &[("te", "gzip")], Ok("a")),
            (H11, &[("expect", "100-Continue")], Ok("a")),
            (H11, &[("expect", "200-ok")], Err("expect")),
            (H11, &[("expect", "100-continue, x")], Err("expect")),
            (
                H11,
                &[("expect", "100-continue"), ("expect", "100-continue")],
                Err("expect"),
            ),
            (H11, &[("connection", "")], Ok("a")),
            (H11, &[("connection", "close, , X-Mine")], Ok("a")),
            (H11, &[("connection", "TE")], Ok("a")),
            (H11, &[("connection", "a b")], Err("connection")),
            (H11, &[("connection", "close;q=1")], Err("connection")),
            (
                H11,
                &[("connection", "close, Authorization")],
                Err("connection"),
            ),
            (
                H11,
                &[("connection", "close"), ("connection", "Host")],
                Err("connection"),
            ),
            (
                H11,
                &[("connection", "transfer-encoding")],
                Err("connection"),
            ),
            (H11, &[("connection", "X-Forwarded-For")], Err("connection")),
            (
                H11,
                &[("connection", "content-anything")],
                Err("connection"),
            ),
            (H11, &[("connection", "weft-reason")], Err("connection")),
            (H11, &[("content_length", "5")], Err("underscore_twin")),
            (
                H11,
                &[("Transfer_Encoding", "chunked")],
                Err("underscore_twin"),
            ),
            (
                H2,
                &[("x_forwarded_for", "1.2.3.4")],
                Err("underscore_twin"),
            ),
            (H2, &[("weft_reason", "x")], Err("underscore_twin")),
            (H11, &[("user_id", "5")], Ok("a")),
        ] {
            let target = if version == H2 {
                "GET http://a/"
            } else {
                "GET /"
            };
            let mut with: Vec<(&str, &str)> = fields.to_vec();
            if version != H2 {
                with.push(("host", "a"));
            }
            check(version, target, &with, expected);
        }
    }

    #[test]
    fn only_a_get_without_content_switches() {
        let upgrade = [
            ("host", "a"),
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
        ];
        for (version, method, more, expected) in [
            (H11, "GET", &[][..], Ok("a")),
            (H11, "GET", &[("content-length", "0")], Ok("a")),
            (H11, "GET", &[("content-length", "1")], Err("websocket")),
            (
                H11,
                "GET",
                &[("transfer-encoding", "chunked")],
                Err("websocket"),
            ),
            (H11, "GET", &[("upgrade", "h2c")], Err("websocket")),
            (H11, "POST", &[], Err("websocket")),
            (H10, "POST", &[], Ok("a")),
        ] {
            let fields = [&upgrade[..], more].concat();
            check(version, &format!("{method} /"), &fields, expected);
        }
        // Not offered: it ends here, whatever else the request is.
        for other in ["h2c", "foo", "websocket, h2c", "TLS/1.0"] {
            let fields = [("host", "a"), ("connection", "upgrade"), ("upgrade", other)];
            check(H11, "POST /", &fields, Ok("a"));
        }
    }

    #[test]
    fn limits_hold_to_the_last_field_and_byte() {
        let limits = Limits {
            max_fields: 16,
            max_head_bytes: 2_000,
            max_target_bytes: 300,
            max_body_bytes: 1_000,
            ..Limits::default()
        };
        let reason = |request: &mut Request<()>| {
            let judged = admit(request, &limits);
            judged.map_err(|violation: Violation| violation.error.reason)
        };
        for (count, fits) in [(16, true), (17, false)] {
            let crumbs = vec![("cookie", "a=b"); count];
            for version in [H11, H2] {
                let mut request = request(version, "GET", "http://a/", &crumbs);
                if version == H11 {
                    request.headers_mut().remove("cookie");
                    request.headers_mut().insert("host", "a".parse().unwrap());
                    for _ in 1..count {
                        request.headers_mut().append("x-a", "1".parse().unwrap());
                    }
                }
                let found = reason(&mut request).map(|_| ());
                let expected = if fits {
                    Ok(())
                } else {
                    Err(Reason::HeadersTooLarge)
                };
                assert_eq!(found, expected, "{version:?} {count}");
            }
        }
        for (length, expected) in [
            (2_000 - 32 - 3, Ok(())),
            (2_000 - 32 - 2, Err(Reason::HeadersTooLarge)),
        ] {
            let value = "v".repeat(length);
            let mut request = request(H2, "GET", "http://a/", &[("x-a", &value)]);
            assert_eq!(reason(&mut request).map(|_| ()), expected);
        }
        for (length, expected) in [(300, Ok(())), (301, Err(Reason::TargetTooLong))] {
            let target = format!("/{}", "t".repeat(length - 1));
            let mut request = request(H11, "GET", &target, &[("host", "a")]);
            assert_eq!(reason(&mut request).map(|_| ()), expected);
        }
        for (length, expected) in [("1000", Ok(())), ("1001", Err(Reason::BodyTooLarge))] {
            let fields = [("host", "a"), ("content-length", length)];
            let mut request = request(H11, "POST", "/", &fields);
            assert_eq!(reason(&mut request).map(|_| ()), expected);
        }
    }

    #[test]
    fn what_passes_is_as_it_came_but_for_what_is_ours() {
        let mut request = request(
            H2,
            "GET",
            "http://A:80/x//y?z",
            &[
                ("host", "a:80"),
                ("cookie", "a=1"),
                ("weft-reason", "forged"),
                ("weft-anything", "forged"),
                ("cookie", "b=2"),
                ("x-b", "1"),
                ("x-b", "2"),
                ("wefty", "mine"),
            ],
        );
        admit(&mut request, &Limits::default()).unwrap();
        let mut left: Vec<(&str, &str)> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        left.sort_unstable();
        let expected = [
            ("cookie", "a=1; b=2"),
            ("host", "A:80"),
            ("wefty", "mine"),
            ("x-b", "1"),
            ("x-b", "2"),
        ];
        assert_eq!(left, expected);
        assert_eq!(request.uri(), "http://A:80/x//y?z");
        let mut old = self::request(H10, "PUT", "/", &[("host", "a"), ("expect", "x")]);
        admit(&mut old, &Limits::default()).unwrap();
        assert!(!old.headers().contains_key("expect"), "HTTP/1.0 has none");
    }

    fn said(
        status: u16,
        version: Version,
        fields: Fields<'_>,
        asked: Asked,
    ) -> Result<Vec<String>, &'static str> {
        let mut response = Response::builder().status(status).version(version);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let mut response = response.body(()).unwrap();
        let limits = Limits {
            max_fields: 16,
            max_head_bytes: 1_000,
            ..Limits::default()
        };
        let judged = answer(&mut response, asked, Peer::Application, &limits);
        judged.map_err(|violation| {
            assert_eq!(violation.error.reason, Reason::PeerProtocolError);
            violation.rule
        })?;
        let mut names: Vec<String> = response.headers().keys().map(|n| n.to_string()).collect();
        names.sort();
        Ok(names)
    }

    #[test]
    fn answers_are_read_as_strictly() {
        use Asked::{Answer, Switch};
        let switch: Fields<'_> = &[("connection", "Upgrade"), ("upgrade", "websocket")];
        let long = "v".repeat(1_000);
        for (status, fields, asked, expected) in [
            (200, &[("x-a", "1")][..], Answer, Ok(&["x-a"][..])),
            (599, &[], Answer, Ok(&[])),
            (600, &[], Answer, Err("status")),
            (999, &[], Answer, Err("status")),
            (100, &[], Answer, Err("informational")),
            (103, &[], Switch, Err("informational")),
            (101, switch, Switch, Ok(&["connection", "upgrade"])),
            (101, switch, Answer, Err("switch")),
            (101, &[], Switch, Err("switch")),
            (
                101,
                &[("connection", "upgrade"), ("upgrade", "h2c")],
                Switch,
                Err("switch"),
            ),
            (
                101,
                &[
                    ("connection", "upgrade"),
                    ("upgrade", "websocket"),
                    ("content-length", "0"),
                ],
                Switch,
                Err("switch"),
            ),
            (200, switch, Switch, Ok(&[])),
            (204, &[("content-length", "0")], Answer, Ok(&[])),
            (
                204,
                &[("content-length", "1")],
                Answer,
                Err("content_length"),
            ),
            (
                204,
                &[("transfer-encoding", "chunked")],
                Answer,
                Err("transfer_encoding"),
            ),
            (
                304,
                &[("content-length", "7")],
                Answer,
                Ok(&["content-length"]),
            ),
            (
                200,
                &[("content-length", "7")],
                Answer,
                Ok(&["content-length"]),
            ),
            (
                200,
                &[("content-length", "7, 7")],
                Answer,
                Err("content_length"),
            ),
            (
                200,
                &[("content-length", "")],
                Answer,
                Err("content_length"),
            ),
            (
                200,
                &[("content-length", "7"), ("content-length", "7")],
                Answer,
                Err("content_length"),
            ),
            (
                200,
                &[("content-length", "7"), ("transfer-encoding", "chunked")],
                Answer,
                Err("two_lengths"),
            ),
            (200, &[("transfer-encoding", "chunked")], Answer, Ok(&[])),
            (
                200,
                &[("transfer-encoding", "gzip, chunked")],
                Answer,
                Err("transfer_encoding"),
            ),
            (
                200,
                &[
                    ("connection", "close, x-a"),
                    ("x-a", "1"),
                    ("keep-alive", "5"),
                    ("x-b", "1"),
                ],
                Answer,
                Ok(&["x-b"]),
            ),
            (
                200,
                &[("connection", "keep-alive, Transfer-Encoding")],
                Answer,
                Ok(&[]),
            ),
            (
                200,
                &[("connection", "set-cookie")],
                Answer,
                Err("connection"),
            ),
            (200, &[("weft-reason", "no_route")], Answer, Ok(&[])),
            (200, &[("x-a", "1"); 16], Answer, Ok(&["x-a"])),
            (200, &[("x-a", "1"); 17], Answer, Err("headers_too_large")),
        ] {
            let found = said(status, H11, fields, asked);
            let expected: Result<Vec<String>, _> =
                expected.map(|names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect());
            assert_eq!(found, expected, "{status} {fields:?} {asked:?}");
        }
        assert!(
            said(200, H11, &[("x-a", &long)], Answer).is_ok(),
            "counted as it came"
        );
        let found = said(200, H2, &[("x-a", &long)], Answer);
        assert_eq!(found, Err("headers_too_large"));
    }

    #[test]
    fn only_a_sidecar_speaks_for_the_mesh() {
        for (peer, word, reason, left) in [
            (
                Peer::Sidecar,
                "no_route",
                Some(Reason::NoRoute),
                Some("no_route"),
            ),
            (
                Peer::Sidecar,
                "of_a_later_version",
                None,
                Some("of_a_later_version"),
            ),
            (Peer::Application, "no_route", None, None),
        ] {
            let mut response = Response::builder()
                .header("weft-reason", word)
                .header("weft-other", "x")
                .body(())
                .unwrap();
            let found = answer(&mut response, Asked::Answer, peer, &Limits::default());
            assert_eq!(found.unwrap(), reason, "{peer:?} {word}");
            let kept = response.headers().get("weft-reason");
            assert_eq!(kept.map(|value| value.to_str().unwrap()), left);
            assert!(!response.headers().contains_key("weft-other"));
        }
    }
}
