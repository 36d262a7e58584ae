//! String, header, query and path matchers (`envoy.type.matcher.v3`, `envoy.config.route.v3`).

use std::{borrow::Cow, str};

use http::{HeaderMap, HeaderName};
use regex::{Regex, RegexBuilder};
use weft_api::envoy::{
    config::route::v3 as pb,
    r#type::matcher::v3::{RegexMatcher, StringMatcher as StringMatcherPb, string_matcher},
};

use super::{problems::Problems, route::RequestKey};

/// `StringMatcher`. Regexes match the whole value, as Envoy's do.
#[derive(Clone, Debug)]
pub enum StringMatcher {
    /// `exact`.
    Exact(String),
    /// `exact` with `ignore_case`; the pattern is lower case.
    ExactIgnoreCase(String),
    /// `prefix`.
    Prefix(String),
    /// `suffix`.
    Suffix(String),
    /// `contains`.
    Contains(String),
    /// `safe_regex`, or any of the above with `ignore_case`, anchored at both ends.
    Regex(Regex),
}

impl PartialEq for StringMatcher {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::ExactIgnoreCase(a), Self::ExactIgnoreCase(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::Suffix(a), Self::Suffix(b))
            | (Self::Contains(a), Self::Contains(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// `route.v3.HeaderMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatcher {
    /// The header; `:method`, `:authority`, `:path` and `:scheme` are kept apart.
    pub name: HeaderSource,
    /// What its value must be. Repeated fields are joined with `,` first.
    pub test: HeaderTest,
    /// `invert_match`.
    pub invert: bool,
    /// `treat_missing_header_as_empty`. Otherwise a missing header matches only
    /// `present_match: false`, inverted or not.
    pub missing_as_empty: bool,
}

/// Where a header matcher looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderSource {
    /// A header field.
    Field(HeaderName),
    /// `:method`.
    Method,
    /// `:authority`.
    Authority,
    /// `:path`.
    Path,
    /// `:scheme`.
    Scheme,
}

/// The condition of a header matcher.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderTest {
    /// `present_match`.
    Present(bool),
    /// `range_match`: start inclusive, end exclusive.
    Range(i64, i64),
    /// `string_match` and its older spellings.
    Value(StringMatcher),
}

/// `route.v3.QueryParameterMatcher`. The first value of a repeated parameter counts.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatcher {
    /// The parameter's name, after percent-decoding.
    pub name: String,
    /// `None`: it only has to be there.
    pub value: Option<StringMatcher>,
    /// `present_match: false`: it must not be there.
    pub absent: bool,
}

/// The path specifier of a route.
#[derive(Clone, Debug)]
pub enum PathMatcher {
    /// `path`.
    Exact(String),
    /// `prefix`.
    Prefix(String),
    /// `path_separated_prefix`: the prefix, or the prefix followed by `/`.
    Segments(String),
    /// `safe_regex`, anchored at both ends; the query is not part of it.
    Regex(Regex),
    /// `connect_matcher`: CONNECT requests and nothing else.
    Connect,
}

impl PartialEq for PathMatcher {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::Segments(a), Self::Segments(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            (Self::Connect, Self::Connect) => true,
            _ => false,
        }
    }
}

/// The longest pattern, in bytes.
const MAX_PATTERN: usize = 4096;
/// The largest compiled pattern, in bytes. Matching takes linear time whatever the pattern.
const MAX_PROGRAM: usize = 4 << 20;

/// Compiles a pattern that must match the whole value.
pub(super) fn full_match(p: &mut Problems, field: &str, from: &RegexMatcher) -> Option<Regex> {
    // Compiled alone first: anchoring makes a pattern of `a)|(b`, which is none.
    search(p, field, from)?;
    compile(p, field, &format!(r"\A(?:{})\z", from.regex))
}

/// Compiles a pattern that may match anywhere.
pub(super) fn search(p: &mut Problems, field: &str, from: &RegexMatcher) -> Option<Regex> {
    if from.regex.is_empty() {
        p.reject(field, "must not be empty");
        return None;
    }
    if from.regex.len() > MAX_PATTERN {
        p.reject(field, format_args!("is longer than {MAX_PATTERN} bytes"));
        return None;
    }
    compile(p, field, &from.regex)
}

fn compile(p: &mut Problems, field: &str, pattern: &str) -> Option<Regex> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_PROGRAM)
        .build()
        .map_err(|error| {
            // The error draws the pattern over several lines; its last line is the reason.
            let text = error.to_string();
            let reason = text.lines().next_back().unwrap_or_default();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            p.reject(field, format_args!("is no valid regex: {reason}"));
        })
        .ok()
}

impl StringMatcher {
    /// Reads a matcher; problems are reported under the current path.
    pub(super) fn read(p: &mut Problems, from: &StringMatcherPb) -> Option<Self> {
        use string_matcher::MatchPattern as Pattern;
        let empty = |p: &mut Problems, field, text: &str| p.not_empty(field, text).map(|_| ());
        let ignoring_case = |p: &mut Problems, before: &str, text: &str, after: &str| {
            let pattern = format!(r"(?is)\A{before}{}{after}\z", regex::escape(text));
            compile(p, "", &pattern).map(Self::Regex)
        };
        match (from.match_pattern.as_ref(), from.ignore_case) {
            (Some(Pattern::Exact(text)), false) => Some(Self::Exact(text.clone())),
            (Some(Pattern::Exact(text)), true) => {
                Some(Self::ExactIgnoreCase(text.to_ascii_lowercase()))
            }
            (Some(Pattern::Prefix(text)), ignore_case) => {
                empty(p, "prefix", text)?;
                if ignore_case {
                    return ignoring_case(p, "", text, ".*");
                }
                Some(Self::Prefix(text.clone()))
            }
            (Some(Pattern::Suffix(text)), ignore_case) => {
                empty(p, "suffix", text)?;
                if ignore_case {
                    return ignoring_case(p, ".*", text, "");
                }
                Some(Self::Suffix(text.clone()))
            }
            (Some(Pattern::Contains(text)), ignore_case) => {
                empty(p, "contains", text)?;
                if ignore_case {
                    return ignoring_case(p, ".*", text, ".*");
                }
                Some(Self::Contains(text.clone()))
            }
            // As in Envoy, a regex says itself whether case counts.
            (Some(Pattern::SafeRegex(regex)), _) => {
                full_match(p, "safe_regex", regex).map(Self::Regex)
            }
            (Some(Pattern::Custom(_)), _) => {
                p.reject("custom", "is not supported; leave it out");
                None
            }
            (None, _) => {
                p.reject(
                    "",
                    "has no pattern; set exact, prefix, suffix, contains or safe_regex",
                );
                None
            }
        }
    }

    /// Whether the value matches.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => value == text,
            Self::ExactIgnoreCase(text) => value.eq_ignore_ascii_case(text),
            Self::Prefix(text) => value.starts_with(text.as_str()),
            Self::Suffix(text) => value.ends_with(text.as_str()),
            Self::Contains(text) => value.contains(text.as_str()),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

impl HeaderMatcher {
    /// Reads a matcher; problems are reported under the current path.
    #[allow(deprecated)] // The older spellings mean the same as string_match.
    pub(super) fn read(p: &mut Problems, from: &pb::HeaderMatcher) -> Option<Self> {
        use pb::header_matcher::HeaderMatchSpecifier as Specifier;
        let pattern = |pattern| StringMatcherPb {
            ignore_case: false,
            match_pattern: Some(pattern),
        };
        let string = |p: &mut Problems, field: &str, from: &StringMatcherPb| {
            p.at(field, |p| StringMatcher::read(p, from))
                .map(HeaderTest::Value)
        };
        let literal = |p: &mut Problems, kind: string_matcher::MatchPattern| {
            StringMatcher::read(p, &pattern(kind)).map(HeaderTest::Value)
        };
        let name = HeaderSource::read(p, &from.name);
        let test = match &from.header_match_specifier {
            None => Some(HeaderTest::Present(true)),
            Some(Specifier::PresentMatch(present)) => Some(HeaderTest::Present(*present)),
            Some(Specifier::RangeMatch(range)) => {
                if range.start >= range.end {
                    p.reject("range_match", "start must be below end");
                }
                Some(HeaderTest::Range(range.start, range.end))
            }
            Some(Specifier::StringMatch(matcher)) => string(p, "string_match", matcher),
            Some(Specifier::ExactMatch(text)) => {
                literal(p, string_matcher::MatchPattern::Exact(text.clone()))
            }
            Some(Specifier::PrefixMatch(text)) => {
                literal(p, string_matcher::MatchPattern::Prefix(text.clone()))
            }
            Some(Specifier::SuffixMatch(text)) => {
                literal(p, string_matcher::MatchPattern::Suffix(text.clone()))
            }
            Some(Specifier::ContainsMatch(text)) => {
                literal(p, string_matcher::MatchPattern::Contains(text.clone()))
            }
            Some(Specifier::SafeRegexMatch(regex)) => full_match(p, "safe_regex_match", regex)
                .map(|regex| HeaderTest::Value(StringMatcher::Regex(regex))),
        };
        Some(Self {
            name: name?,
            test: test?,
            invert: from.invert_match,
            missing_as_empty: from.treat_missing_header_as_empty,
        })
    }

    /// Whether it is about the path.
    #[must_use]
    pub fn looks_at_path(&self) -> bool {
        self.name == HeaderSource::Path
    }

    /// Whether the request has what the matcher asks for. Allocates only to join repeated
    /// fields, and for another reading of the path.
    #[must_use]
    pub fn matches(&self, key: &RequestKey<'_>) -> bool {
        let value = self.name.value(key);
        let value = match (&self.test, value) {
            (HeaderTest::Present(present), value) => {
                let found = value.is_some() || self.missing_as_empty;
                return (found == *present) != self.invert;
            }
            (_, Some(value)) => value,
            (_, None) if self.missing_as_empty => Cow::Borrowed(&b""[..]),
            (_, None) => return false,
        };
        // No pattern matches what is not UTF-8.
        let matched = str::from_utf8(&value).is_ok_and(|value| match &self.test {
            HeaderTest::Present(_) => true,
            HeaderTest::Range(start, end) => value
                .parse::<i64>()
                .is_ok_and(|number| (*start..*end).contains(&number)),
            HeaderTest::Value(matcher) => matcher.matches(value),
        });
        matched != self.invert
    }
}

impl HeaderSource {
    fn read(p: &mut Problems, name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            ":method" => Some(Self::Method),
            ":authority" | "host" => Some(Self::Authority),
            ":path" => Some(Self::Path),
            ":scheme" => Some(Self::Scheme),
            name => HeaderName::try_from(name)
                .map_err(|_| p.reject("name", format_args!("{name:?} is no header name")))
                .map(Self::Field)
                .ok(),
        }
    }

    fn value<'a>(&self, key: &RequestKey<'a>) -> Option<Cow<'a, [u8]>> {
        let borrowed = |text: &'a str| Some(Cow::Borrowed(text.as_bytes()));
        match self {
            Self::Field(name) => joined(key.headers, name),
            Self::Method => borrowed(key.method.as_str()),
            Self::Authority => borrowed(key.authority),
            Self::Path if key.path == key.uri.path() => {
                borrowed(key.uri.path_and_query()?.as_str())
            }
            Self::Path => Some(Cow::Owned(match key.uri.query() {
                Some(query) => format!("{}?{query}", key.path).into_bytes(),
                None => key.path.as_bytes().to_vec(),
            })),
            Self::Scheme => borrowed(key.uri.scheme_str().unwrap_or("http")),
        }
    }
}

fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let Some(second) = values.next() else {
        return Some(Cow::Borrowed(first));
    };
    let mut all = first.to_vec();
    for value in std::iter::once(second).chain(values) {
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    Some(Cow::Owned(all))
}

impl QueryMatcher {
    /// Reads a matcher; problems are reported under the current path.
    pub(super) fn read(p: &mut Problems, from: &pb::QueryParameterMatcher) -> Option<Self> {
        use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Specifier;
        let name = p.not_empty("name", &from.name);
        let (value, absent) = match &from.query_parameter_match_specifier {
            None => (None, false),
            Some(Specifier::PresentMatch(present)) => (None, !present),
            Some(Specifier::StringMatch(matcher)) => {
                let value = p.at("string_match", |p| StringMatcher::read(p, matcher))?;
                (Some(value), false)
            }
        };
        Some(Self {
            name: name?.to_string(),
            value,
            absent,
        })
    }

    /// Whether the query of a target matches. Allocates only to decode an escaped value.
    #[must_use]
    pub fn matches(&self, query: Option<&str>) -> bool {
        let value = query
            .unwrap_or_default()
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(name, _)| decoded(name).eq(self.name.bytes()))
            .map(|(_, value)| value);
        match (value, &self.value) {
            (None, _) => self.absent,
            (Some(_), None) => !self.absent,
            (Some(value), Some(matcher)) if !value.contains(['%', '+']) => matcher.matches(value),
            (Some(value), Some(matcher)) => {
                String::from_utf8(decoded(value).collect()).is_ok_and(|v| matcher.matches(&v))
            }
        }
    }
}

/// The bytes of a form-encoded text; an escape that is none stays as it is.
fn decoded(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&first, tail) = rest.split_first()?;
        if first == b'%'
            && let Some((&[high, low], tail)) = tail.split_first_chunk::<2>()
            && let (Some(high), Some(low)) = (hex(high), hex(low))
        {
            rest = tail;
            return Some(high << 4 | low);
        }
        rest = tail;
        Some(if first == b'+' { b' ' } else { first })
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

impl PathMatcher {
    /// Reads the path specifier; problems are reported under the current path.
    pub(super) fn read(
        p: &mut Problems,
        from: Option<&pb::route_match::PathSpecifier>,
    ) -> Option<Self> {
        use pb::route_match::PathSpecifier as Specifier;
        match from {
            Some(Specifier::Prefix(prefix)) => without_query(p, "prefix", prefix).map(Self::Prefix),
            Some(Specifier::Path(path)) => without_query(p, "path", path).map(Self::Exact),
            Some(Specifier::PathSeparatedPrefix(prefix)) => {
                if prefix.len() < 2 || prefix.ends_with('/') {
                    p.reject(
                        "path_separated_prefix",
                        "must be longer than \"/\" and must not end with it",
                    );
                }
                without_query(p, "path_separated_prefix", prefix).map(Self::Segments)
            }
            Some(Specifier::SafeRegex(regex)) => {
                full_match(p, "safe_regex", regex).map(Self::Regex)
            }
            Some(Specifier::ConnectMatcher(_)) => Some(Self::Connect),
            Some(Specifier::PathMatchPolicy(_)) => {
                p.reject("path_match_policy", "is not supported; leave it out");
                None
            }
            None => {
                p.reject(
                    "",
                    "has no path; set path, prefix, path_separated_prefix, safe_regex or \
                     connect_matcher",
                );
                None
            }
        }
    }

    /// Whether a path without query matches. `case_sensitive` does not concern regexes. The `*`
    /// of OPTIONS is no path; what is for all paths is for it too.
    #[must_use]
    pub fn matches(&self, path: &str, case_sensitive: bool) -> bool {
        let equal = |a: &[u8], b: &[u8]| {
            if case_sensitive {
                a == b
            } else {
                a.eq_ignore_ascii_case(b)
            }
        };
        let (path, text) = match self {
            Self::Regex(regex) => return regex.is_match(path),
            Self::Connect => return false,
            Self::Exact(text) => return equal(path.as_bytes(), text.as_bytes()),
            Self::Prefix(text) if path == "*" => return text.len() <= 1,
            Self::Prefix(text) | Self::Segments(text) => (path.as_bytes(), text.as_bytes()),
        };
        let Some((head, tail)) = path.split_at_checked(text.len()) else {
            return false;
        };
        let ends = matches!(self, Self::Prefix(_)) || matches!(tail.first(), None | Some(b'/'));
        ends && equal(head, text)
    }
}

fn without_query(p: &mut Problems, field: &str, text: &str) -> Option<String> {
    if text.contains(['?', '#']) {
        p.reject(
            field,
            "must not have '?' or '#'; the query is matched by query_parameters",
        );
        return None;
    }
    Some(text.to_owned())
}

#[cfg(test)]
mod tests;
