//! All plausible readings of a path. Servers decode escapes once, twice or not, take `\` for
//! `/`, merge slashes, resolve dots, cut parameters: what the application will do with a path
//! is not known here. So a path that can be read in several ways must be routed the same in
//! all of them, or the request is refused. The bytes that go on are those that came.

use crate::{
    config::{PathMatcher, RequestKey, RouteMatch, VirtualHost},
    error::Reason,
    fields::Violation,
};

/// The most readings of one path; benign ones have up to 8.
const MOST: usize = 16;
/// The longest path that is read in several ways, in bytes.
const LONGEST: usize = 8 * 1024;

/// What a server may do to a path; nothing if it makes no difference.
type Step = fn(&[u8]) -> Option<Vec<u8>>;

/// What a path may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readings {
    /// What it says, and nothing else.
    Plain,
    /// These, of which the first is the path as it came. Bytes that are no UTF-8 are replaced.
    Several(Vec<String>),
    /// More than are judged.
    TooMany,
}

/// Whether a path has nothing that could be read in another way. One look at each byte.
#[must_use]
pub fn is_plain(path: &str) -> bool {
    let mut slash = false;
    path.bytes().all(|byte| {
        let plain = match byte {
            b'%' | b'\\' | b';' => false,
            b'/' | b'.' => !slash,
            _ => true,
        };
        slash = byte == b'/';
        plain
    })
}

/// The readings of a path without its query. The work is bounded by [`MOST`] and [`LONGEST`].
#[must_use]
pub fn readings(path: &str) -> Readings {
    if is_plain(path) {
        return Readings::Plain;
    }
    if path.len() > LONGEST {
        return Readings::TooMany;
    }
    let mut set = Set(vec![path.as_bytes().to_vec()]);
    // In the order in which a server could do it; each step is also left out.
    let steps: [Step; 12] = [
        cut_parameters,
        |path| decoded(path, Slashes::Kept),
        |path| decoded(path, Slashes::Decoded),
        |path| decoded(path, Slashes::Decoded),
        folded,
        |path| cut_at(path, b"\0"),
        |path| cut_at(path, b"?#"),
        cut_parameters,
        straightened,
        merged,
        resolved,
        merged,
    ];
    for step in steps {
        if !set.widen(step) {
            return Readings::TooMany;
        }
    }
    if set.0.len() == 1 {
        return Readings::Plain;
    }
    let mut texts: Vec<String> = Vec::with_capacity(set.0.len());
    for reading in set.0 {
        let text = String::from_utf8_lossy(&reading).into_owned();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    Readings::Several(texts)
}

/// The route of a request: the same for all readings of its path.
///
/// # Errors
/// [`Reason::ClientProtocolError`] if they differ. A host whose routes do not look at the path
/// refuses none.
pub(super) fn route(host: &VirtualHost, key: &RequestKey<'_>) -> Result<Option<usize>, Violation> {
    let found = host.find(key);
    if is_plain(key.path) || !host.routes.iter().any(|r| r.matches.looks_at_path()) {
        return Ok(found);
    }
    let ambiguous = |words: String| {
        let reason = Reason::ClientProtocolError;
        Err(Violation::new(reason, "ambiguous_path", words))
    };
    let texts = match readings(key.path) {
        Readings::Plain => return Ok(found),
        Readings::Several(texts) => texts,
        Readings::TooMany => return ambiguous("it can be read in too many ways".to_owned()),
    };
    let spelled: Vec<Vec<RouteMatch>> = host.routes.iter().map(|r| spellings(&r.matches)).collect();
    for path in texts.iter().skip(1) {
        let key = RequestKey { path, ..*key };
        let read = host.routes.iter().zip(&spelled).position(|(route, more)| {
            route.matches.matches(&key) || more.iter().any(|matches| matches.matches(&key))
        });
        if read != found {
            let name = |index: Option<usize>| {
                index
                    .map_or("no route", |index| &*host.routes[index].name)
                    .to_owned()
            };
            let (one, other) = (name(found), name(read));
            return ambiguous(format!("as it is: `{one}`, read as {path:?}: `{other}`"));
        }
    }
    Ok(found)
}

/// A route may be for a path that is itself read in several ways, `/a%20b`: it is for all of
/// them.
fn spellings(matches: &RouteMatch) -> Vec<RouteMatch> {
    let again: fn(String) -> PathMatcher = match &matches.path {
        PathMatcher::Exact(_) => PathMatcher::Exact,
        PathMatcher::Prefix(_) => PathMatcher::Prefix,
        PathMatcher::Segments(_) => PathMatcher::Segments,
        PathMatcher::Regex(_) | PathMatcher::Connect => return Vec::new(),
    };
    let (PathMatcher::Exact(text) | PathMatcher::Prefix(text) | PathMatcher::Segments(text)) =
        &matches.path
    else {
        return Vec::new();
    };
    let Readings::Several(texts) = readings(text) else {
        return Vec::new();
    };
    let spelling = |text| RouteMatch {
        path: again(text),
        ..matches.clone()
    };
    texts.into_iter().skip(1).map(spelling).collect()
}

/// Readings, each once.
struct Set(Vec<Vec<u8>>);

impl Set {
    /// Adds what a step makes of each; `false` when they are too many.
    fn widen(&mut self, step: Step) -> bool {
        for index in 0..self.0.len() {
            if let Some(reading) = step(&self.0[index])
                && !self.0.contains(&reading)
            {
                if self.0.len() == MOST {
                    return false;
                }
                self.0.push(reading);
            }
        }
        true
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slashes {
    /// `%2F` and `%5C` stay: they are no separators then.
    Kept,
    Decoded,
}

/// Without escapes; one that is none stays.
fn decoded(path: &[u8], slashes: Slashes) -> Option<Vec<u8>> {
    if !path.contains(&b'%') {
        return None;
    }
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'%'
            && let Some((&[high, low], tail)) = tail.split_first_chunk::<2>()
            && let (Some(high), Some(low)) = (hex(high), hex(low))
        {
            let byte = high << 4 | low;
            if slashes == Slashes::Decoded || !matches!(byte, b'/' | b'\\') {
                out.push(byte);
                rest = tail;
                continue;
            }
        }
        out.push(first);
    }
    Some(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16)?.try_into().ok()
}

/// With the ASCII characters that are written in more bytes than they need (RFC 3629, 10).
fn folded(path: &[u8]) -> Option<Vec<u8>> {
    if path.is_ascii() {
        return None;
    }
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        let low = |byte: u8| byte & 0x3f;
        let continues = |bytes: &[u8]| bytes.iter().all(|b| b & 0xc0 == 0x80);
        let (byte, length) = match *rest {
            [0xc0 | 0xc1, last, ..] if continues(&[last]) => ((first & 1) << 6 | low(last), 2),
            [0xe0, b @ (0x80 | 0x81), last, ..] if continues(&[last]) => {
                ((b & 1) << 6 | low(last), 3)
            }
            [0xf0, 0x80, b @ (0x80 | 0x81), last, ..] if continues(&[last]) => {
                ((b & 1) << 6 | low(last), 4)
            }
            _ => (first, 1),
        };
        out.push(byte);
        rest = if length == 1 { tail } else { &rest[length..] };
    }
    Some(out)
}

/// Up to the first of some bytes, which may end a path where it is read: NUL in C, the others
/// when it is taken apart again after it was decoded.
fn cut_at(path: &[u8], ends: &[u8]) -> Option<Vec<u8>> {
    let end = path.iter().position(|b| ends.contains(b))?;
    Some(path[..end].to_vec())
}

/// Segments without what follows their `;` (RFC 3986, 3.3).
fn cut_parameters(path: &[u8]) -> Option<Vec<u8>> {
    if !path.contains(&b';') {
        return None;
    }
    let mut out = Vec::with_capacity(path.len());
    let mut inside = false;
    for &byte in path {
        inside = byte != b'/' && (inside || byte == b';');
        if !inside {
            out.push(byte);
        }
    }
    Some(out)
}

/// With `/` for `\`.
fn straightened(path: &[u8]) -> Option<Vec<u8>> {
    let straight = |b: &u8| if *b == b'\\' { b'/' } else { *b };
    path.contains(&b'\\')
        .then(|| path.iter().map(straight).collect())
}

/// With one slash for several.
fn merged(path: &[u8]) -> Option<Vec<u8>> {
    if !path.windows(2).any(|pair| pair == b"//") {
        return None;
    }
    let mut out = path.to_vec();
    out.dedup_by(|b, a| (*a, *b) == (b'/', b'/'));
    Some(out)
}

/// Without `.` and `..` segments (RFC 3986, 5.2.4).
fn resolved(path: &[u8]) -> Option<Vec<u8>> {
    let is_dots = |segment: &[u8]| matches!(segment, b"." | b"..");
    if !path.split(|b| *b == b'/').any(is_dots) {
        return None;
    }
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_in_dots = false;
    for segment in path
        .strip_prefix(b"/")
        .unwrap_or(path)
        .split(|b| *b == b'/')
    {
        ends_in_dots = is_dots(segment);
        match segment {
            b"." => {}
            b".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in &segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if ends_in_dots || out.is_empty() {
        out.push(b'/');
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, Uri};

    use super::{LONGEST, MOST, Readings, is_plain, readings, route};
    use crate::config::{
        DirectResponse, PathMatcher, PortProtocol, RequestKey, Route, RouteAction, RouteMatch,
        VirtualHost,
    };

    fn several(path: &str) -> Vec<String> {
        match readings(path) {
            Readings::Several(texts) => {
                assert_eq!(texts[0], path, "the first is the path as it came");
                texts
            }
            Readings::Plain => vec![path.to_owned()],
            Readings::TooMany => panic!("{path}: too many"),
        }
    }

    #[test]
    fn ordinary_paths_have_one_reading() {
        for path in [
            "",
            "/",
            "*",
            "/a",
            "/a/",
            "/a/b.c",
            "/a/b..c",
            "/a/b.",
            "/a/b...",
            "/a-b_c~d!$&'()*+,=:@",
            "/pkg.Service/Method",
            "/a.b/c.d",
            "/{a}|\"<>^`",
            "/%",
        ] {
            assert_eq!(readings(path), Readings::Plain, "{path}");
        }
        for path in ["/.well-known/x", "/...", "/a/.b", "/a/..b"] {
            assert!(!is_plain(path), "{path}");
            assert_eq!(readings(path), Readings::Plain, "{path}");
        }
    }

    #[test]
    fn every_way_to_write_a_secret_is_read() {
        for path in [
            "/private/secret",
            "/%70rivate/secret",
            "/private%2Fsecret",
            "/private%2fsecret",
            "/private%5csecret",
            "/private\\secret",
            "//private/secret",
            "/private//secret",
            "///private///secret",
            "/./private/secret",
            "/private/./secret",
            "/x/../private/secret",
            "/x//../private/secret",
            "/x/..//private/secret",
            "/../private/secret",
            "/%2e%2e/private/secret",
            "/x/%2e%2e/private/secret",
            "/x/.%2e/private/secret",
            "/x/%2E./private/secret",
            "/x%2f..%2fprivate%2fsecret",
            "/x/..%2fprivate/secret",
            "/x/..%5cprivate/secret",
            "/x/..\\private\\secret",
            "/private;x/secret",
            "/private;x=1;y=2/secret;z",
            "/private/secret;jsessionid=1",
            "/private/secret%3bx",
            "/x/..;/private/secret",
            "/x/..;a=b/private/secret",
            "/x/%2e%2e;/private/secret",
            "/x/..%3b/private/secret",
            "/;/private/secret",
            "/private;/secret",
            "/%2570rivate/secret",
            "/private%252fsecret",
            "/x/%252e%252e/private/secret",
            "/x/..%252fprivate/secret",
            "/private%25252fsecret",
            "/private%c0%afsecret",
            "/private%e0%80%afsecret",
            "/private%f0%80%80%afsecret",
            "/x/%c0%ae%c0%ae/private/secret",
            "/private%c1%9csecret",
            "/private/secret%00",
            "/private/secret%00.png",
            "/private/secret%3f",
            "/private/secret%3Fx=1",
            "/private/secret%23x",
        ] {
            let texts = several(path);
            let found = texts.iter().any(|text| text == "/private/secret");
            assert!(found, "{path}: {texts:?}");
        }
    }

    #[test]
    fn each_byte_is_read_escaped_and_escaped_twice() {
        for byte in 1..=255_u8 {
            for path in [
                format!("/a%{byte:02x}b"),
                format!("/a%{byte:02X}b"),
                format!("/a%25{byte:02x}b"),
            ] {
                let plain = [&b"/a"[..], &[byte], b"b"].concat();
                let plain = String::from_utf8_lossy(&plain).into_owned();
                assert!(several(&path).contains(&plain), "{path}");
            }
        }
        // What is no escape stays.
        for path in ["/%", "/%4", "/%zz", "/%%", "/a%2", "/%+1", "/%-1"] {
            assert_eq!(readings(path), Readings::Plain, "{path}");
        }
    }

    #[test]
    fn dots_are_resolved_as_the_standard_says() {
        for (path, expected) in [
            ("/a/b/c/./../../g", "/a/g"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/..", "/"),
            ("/../..", "/"),
            ("/a/b/..", "/a/"),
            ("/a//../b", "/a/b"),
            ("/.", "/"),
        ] {
            assert!(several(path).iter().any(|text| text == expected), "{path}");
        }
    }

    #[test]
    fn readings_are_bounded() {
        let all = "/a;b%2f..;/%252e%252e//%5c..\\%c0%af%00%3f%23x".repeat(3);
        assert_eq!(readings(&all), Readings::TooMany);
        let long = |length: usize| format!("/%41{}", "a".repeat(length - 4));
        assert!(matches!(readings(&long(LONGEST)), Readings::Several(_)));
        assert_eq!(readings(&long(LONGEST + 1)), Readings::TooMany);
        assert_eq!(readings(&"/a".repeat(LONGEST)), Readings::Plain);
        let Readings::Several(texts) = readings("/a%20b;c//d/../e") else {
            panic!("an odd path, but none that is refused for its readings alone");
        };
        assert!(texts.len() <= MOST, "{texts:?}");
    }

    fn host(paths: Vec<PathMatcher>) -> VirtualHost {
        let routes = paths.into_iter().map(|path| Route {
            name: format!("{path:?}").into(),
            matches: RouteMatch {
                path,
                case_sensitive: true,
                headers: Vec::new(),
                query: Vec::new(),
                grpc: false,
            },
            action: RouteAction::Direct(DirectResponse {
                status: http::StatusCode::OK,
                body: bytes::Bytes::new(),
            }),
            request_headers: Default::default(),
            response_headers: Default::default(),
        });
        VirtualHost {
            name: "post".into(),
            domains: Vec::new(),
            routes: routes.collect(),
            protocol: PortProtocol::Http,
            addresses: None,
            warnings: Vec::new(),
        }
    }

    fn routed(host: &VirtualHost, target: &str) -> Result<Option<usize>, &'static str> {
        let key = RequestKey {
            method: &Method::GET,
            uri: &Uri::default(),
            path: target,
            authority: "post",
            headers: &HeaderMap::new(),
        };
        route(host, &key).map_err(|violation| violation.rule)
    }

    #[test]
    fn a_path_has_one_route_in_all_its_readings() {
        const AMBIGUOUS: Result<Option<usize>, &str> = Err("ambiguous_path");
        let segments = |path: &str| PathMatcher::Segments(path.to_owned());
        let exact = |path: &str| PathMatcher::Exact(path.to_owned());
        let all = || PathMatcher::Prefix("/".to_owned());
        let guarded = host(vec![segments("/private"), exact("/a%20b"), all()]);
        let listed = host(vec![segments("/public"), exact("/health")]);
        let open = host(vec![all(), PathMatcher::Connect]);
        for (host, target, expected) in [
            (&guarded, "/private", Ok(Some(0))),
            (&guarded, "/private/x", Ok(Some(0))),
            (&guarded, "/private/x%20y", Ok(Some(0))),
            (&guarded, "/private/x%2Fy", Ok(Some(0))),
            (&guarded, "/private/a;b//c", Ok(Some(0))),
            (&guarded, "/private/../private/x", Ok(Some(0))),
            (&guarded, "/privat%65", AMBIGUOUS),
            (&guarded, "//private", AMBIGUOUS),
            (&guarded, "/x/..;/private", AMBIGUOUS),
            (&guarded, "/private/..", AMBIGUOUS),
            (&guarded, "/private%00.png", AMBIGUOUS),
            (&guarded, "/private;x", AMBIGUOUS),
            (&guarded, "/x\\..\\private", AMBIGUOUS),
            // One reader cuts parameters, another one takes `\\` for a slash; nobody does both.
            (&guarded, "/private;/..\\x", AMBIGUOUS),
            // Resolved by who does not take an escaped slash for one.
            (&guarded, "/x/%2e%2e/private/%2f..%2f..%2f..%2fx", AMBIGUOUS),
            (&guarded, "/files/a%20b%2Fc;v=1//d", Ok(Some(2))),
            (&guarded, "/a%20b", Ok(Some(1))),
            (&guarded, "/%61%20b", AMBIGUOUS),
            (&listed, "/public/a%2Fb", Ok(Some(0))),
            (&listed, "/public/..%2fadmin", AMBIGUOUS),
            (&listed, "/other", Ok(None)),
            (&listed, "/other%20", Ok(None)),
            (&listed, "/%70ublic", AMBIGUOUS),
            (&listed, "/health;x", AMBIGUOUS),
            (&open, "/x/..;/%2e%2e//private%00\\", Ok(Some(0))),
        ] {
            assert_eq!(routed(host, target), expected, "{target}");
        }
        // A catch-all refuses nothing; what cannot be judged is refused elsewhere.
        let odd = "/a;b%2f..;/%252e%252e//%5c..\\%c0%af%00%3f%23x".repeat(3);
        assert_eq!(routed(&open, &odd), Ok(Some(0)));
        assert_eq!(routed(&guarded, &odd), AMBIGUOUS);
    }
}
