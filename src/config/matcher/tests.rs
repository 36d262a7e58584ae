//! Tables of good and bad messages, and of what they match.

use http::{HeaderValue, Method, Uri};
use weft_api::envoy::r#type::v3::Int64Range;

use super::*;

type Pattern = string_matcher::MatchPattern;

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher {
        regex: text.into(),
        engine_type: None,
    }
}

fn problems(read: impl FnOnce(&mut Problems)) -> Vec<String> {
    let mut p = Problems::default();
    read(&mut p);
    p.into_rejected().unwrap_or_default()
}

fn string(pattern: Option<Pattern>, ignore_case: bool) -> StringMatcherPb {
    StringMatcherPb {
        ignore_case,
        match_pattern: pattern,
    }
}

#[test]
fn strings() {
    let check = |pattern: Pattern, ignore_case, yes: &[&str], no: &[&str]| {
        let from = string(Some(pattern), ignore_case);
        let matcher = StringMatcher::read(&mut Problems::default(), &from).expect("valid");
        for value in yes {
            assert!(matcher.matches(value), "{from:?} must match {value:?}");
        }
        for value in no {
            assert!(!matcher.matches(value), "{from:?} must not match {value:?}");
        }
    };
    check(Pattern::Exact("a".into()), false, &["a"], &["", "A", "aa"]);
    check(Pattern::Exact(String::new()), false, &[""], &["a"]);
    check(Pattern::Exact("aB".into()), true, &["ab", "AB"], &["a"]);
    check(
        Pattern::Prefix("ab".into()),
        false,
        &["ab", "abc"],
        &["a", "ABC"],
    );
    check(
        Pattern::Prefix("a.".into()),
        true,
        &["A.c", "a.\nx"],
        &["ab"],
    );
    check(
        Pattern::Suffix("ab".into()),
        false,
        &["ab", "cab"],
        &["abc", "AB"],
    );
    check(Pattern::Suffix("ab".into()), true, &["AB", "caB"], &["abc"]);
    check(Pattern::Contains("b".into()), false, &["abc"], &["aBc"]);
    check(Pattern::Contains("b".into()), true, &["aBc", "b"], &["ac"]);
    let alternatives = Pattern::SafeRegex(regex("a|ab"));
    check(alternatives, false, &["a", "ab"], &["abc", "xa", ""]);
    check(Pattern::SafeRegex(regex("a+")), true, &["aa"], &["AA"]);
}

#[test]
fn bad_strings() {
    let check = |pattern, ignore_case, expect: &str| {
        let found = problems(|p| {
            assert!(StringMatcher::read(p, &string(pattern, ignore_case)).is_none());
        });
        assert_eq!(found, [expect]);
    };
    check(
        None,
        false,
        "resource: has no pattern; set exact, prefix, suffix, contains or safe_regex",
    );
    check(
        Some(Pattern::Prefix(String::new())),
        false,
        "prefix: must not be empty",
    );
    check(
        Some(Pattern::Suffix(String::new())),
        true,
        "suffix: must not be empty",
    );
    check(
        Some(Pattern::Contains(String::new())),
        false,
        "contains: must not be empty",
    );
    check(
        Some(Pattern::Custom(Default::default())),
        false,
        "custom: is not supported; leave it out",
    );
    check(
        Some(Pattern::SafeRegex(regex(""))),
        false,
        "safe_regex: must not be empty",
    );
}

#[test]
fn bad_regexes() {
    let check = |pattern: &str, expect: &str| {
        let found = problems(|p| {
            assert!(full_match(p, "regex", &regex(pattern)).is_none());
        });
        assert_eq!(found, [expect]);
    };
    check("(", "regex: is no valid regex: unclosed group");
    check("a)|(b", "regex: is no valid regex: unopened group");
    check(
        "(?=a)",
        "regex: is no valid regex: look-around, including look-ahead and look-behind, is not \
         supported",
    );
    check(&"a".repeat(4097), "regex: is longer than 4096 bytes");
    let found = problems(|p| {
        assert!(full_match(p, "regex", &regex(r"(\w{100}){100}")).is_none());
    });
    assert!(found[0].contains("size limit"), "{found:?}");
}

struct Request {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

fn request(uri: &str, fields: &[(&str, &str)]) -> Request {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::try_from(*name).expect("name");
        headers.append(name, HeaderValue::from_str(value).expect("value"));
    }
    Request {
        method: Method::GET,
        uri: uri.parse().expect("uri"),
        headers,
    }
}

impl Request {
    fn key(&self) -> RequestKey<'_> {
        RequestKey {
            method: &self.method,
            uri: &self.uri,
            path: self.uri.path(),
            authority: "post.blog:80",
            headers: &self.headers,
        }
    }
}

fn header(name: &str, specifier: Option<Specifier>) -> pb::HeaderMatcher {
    pb::HeaderMatcher {
        name: name.into(),
        header_match_specifier: specifier,
        ..Default::default()
    }
}

type Specifier = pb::header_matcher::HeaderMatchSpecifier;

fn exact(text: &str) -> Option<Specifier> {
    Some(Specifier::StringMatch(string(
        Some(Pattern::Exact(text.into())),
        false,
    )))
}

#[test]
#[allow(deprecated)]
fn headers() {
    let request = request(
        "/a?b=c",
        &[
            ("x-one", "1"),
            ("x-two", "a"),
            ("x-two", "b"),
            ("X-Latin", "ok"),
        ],
    );
    // (matcher, plain, inverted, with missing as empty)
    let check = |from: pb::HeaderMatcher, plain, inverted, as_empty| {
        let mut variants = [from.clone(), from.clone(), from];
        variants[1].invert_match = true;
        variants[2].treat_missing_header_as_empty = true;
        for (variant, expect) in variants.iter().zip([plain, inverted, as_empty]) {
            let matcher = HeaderMatcher::read(&mut Problems::default(), variant);
            let found = matcher.expect("valid").matches(&request.key());
            assert_eq!(found, expect, "{variant:?}");
        }
    };
    check(header("X-One", exact("1")), true, false, true);
    check(header("x-one", exact("2")), false, true, false);
    check(header("x-two", exact("a,b")), true, false, true);
    check(header("x-two", exact("a")), false, true, false);
    check(header("x-none", exact("")), false, false, true);
    check(header("x-none", exact("1")), false, false, false);
    check(header("x-one", None), true, false, true);
    check(header("x-none", None), false, true, true);
    let present = |present| Some(Specifier::PresentMatch(present));
    check(header("x-one", present(true)), true, false, true);
    check(header("x-one", present(false)), false, true, false);
    check(header("x-none", present(false)), true, false, false);
    let range = |start, end| Some(Specifier::RangeMatch(Int64Range { start, end }));
    check(header("x-one", range(1, 2)), true, false, true);
    check(header("x-one", range(0, 1)), false, true, false);
    check(header("x-latin", range(0, 9)), false, true, false);
    check(header(":method", exact("GET")), true, false, true);
    check(header(":path", exact("/a?b=c")), true, false, true);
    check(header(":scheme", exact("http")), true, false, true);
    check(
        header(":authority", exact("post.blog:80")),
        true,
        false,
        true,
    );
    check(header("Host", exact("post.blog:80")), true, false, true);
    let old = |specifier| header("x-latin", Some(specifier));
    check(old(Specifier::ExactMatch("ok".into())), true, false, true);
    check(old(Specifier::PrefixMatch("o".into())), true, false, true);
    check(old(Specifier::SuffixMatch("k".into())), true, false, true);
    check(
        old(Specifier::ContainsMatch("x".into())),
        false,
        true,
        false,
    );
    check(
        old(Specifier::SafeRegexMatch(regex("o."))),
        true,
        false,
        true,
    );
    check(
        old(Specifier::SafeRegexMatch(regex("o"))),
        false,
        true,
        false,
    );
}

#[test]
fn a_header_that_is_not_utf8_matches_no_pattern() {
    let mut request = request("/", &[]);
    let value = HeaderValue::from_bytes(b"\xff").expect("opaque bytes are a value");
    request.headers.insert("x-raw", value);
    let any = Some(Specifier::StringMatch(string(
        Some(Pattern::SafeRegex(regex(".*"))),
        false,
    )));
    let matcher = HeaderMatcher::read(&mut Problems::default(), &header("x-raw", any));
    assert!(!matcher.expect("valid").matches(&request.key()));
}

#[test]
fn bad_headers() {
    let check = |from: pb::HeaderMatcher, expect: &[&str]| {
        assert_eq!(problems(|p| drop(HeaderMatcher::read(p, &from))), expect);
    };
    check(header("", None), &["name: \"\" is no header name"]);
    check(header("a b", None), &["name: \"a b\" is no header name"]);
    check(
        header(":status", None),
        &["name: \":status\" is no header name"],
    );
    check(
        header(
            "x",
            Some(Specifier::RangeMatch(Int64Range { start: 1, end: 1 })),
        ),
        &["range_match: start must be below end"],
    );
    check(
        header("", Some(Specifier::StringMatch(string(None, false)))),
        &[
            "name: \"\" is no header name",
            "string_match: has no pattern; set exact, prefix, suffix, contains or safe_regex",
        ],
    );
}

#[test]
fn queries() {
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Query;
    let check = |name: &str, specifier, query, expect| {
        let from = pb::QueryParameterMatcher {
            name: name.into(),
            query_parameter_match_specifier: specifier,
        };
        let matcher = QueryMatcher::read(&mut Problems::default(), &from).expect("valid");
        assert_eq!(matcher.matches(query), expect, "{from:?} on {query:?}");
    };
    let is = |text: &str| {
        Some(Query::StringMatch(string(
            Some(Pattern::Exact(text.into())),
            false,
        )))
    };
    check("a", is("1"), Some("a=1"), true);
    check("a", is("1"), Some("b=2&a=1&a=3"), true);
    check("a", is("3"), Some("a=1&a=3"), false);
    check("a", is("1"), Some("A=1"), false);
    check("a", is("1"), None, false);
    check("a b", is("c d"), Some("a%20b=c+d"), true);
    check("a", is("%zz"), Some("a=%zz"), true);
    check("a", is("%"), Some("a=%"), true);
    check("a", is("\u{e4}"), Some("a=%C3%a4"), true);
    check("a", is("x"), Some("a=%ff"), false);
    check("a", is(""), Some("a"), true);
    check("a", None, Some("a"), true);
    check("a", None, Some("b"), false);
    check("a", Some(Query::PresentMatch(true)), Some("a=1"), true);
    check("a", Some(Query::PresentMatch(false)), Some("a=1"), false);
    check("a", Some(Query::PresentMatch(false)), Some("b=1"), true);
    let from = pb::QueryParameterMatcher::default();
    assert_eq!(
        problems(|p| drop(QueryMatcher::read(p, &from))),
        ["name: must not be empty"]
    );
}

#[test]
fn paths() {
    use pb::route_match::PathSpecifier as Path;
    let check = |specifier: Path, path, sensitive, insensitive| {
        let matcher = PathMatcher::read(&mut Problems::default(), Some(&specifier));
        let matcher = matcher.expect("valid");
        assert_eq!(
            matcher.matches(path, true),
            sensitive,
            "{specifier:?} {path}"
        );
        assert_eq!(
            matcher.matches(path, false),
            insensitive,
            "{specifier:?} {path}"
        );
    };
    let exact = || Path::Path("/a".into());
    check(exact(), "/a", true, true);
    check(exact(), "/A", false, true);
    check(exact(), "/a/", false, false);
    check(exact(), "/", false, false);
    let prefix = || Path::Prefix("/a".into());
    check(prefix(), "/a", true, true);
    check(prefix(), "/ab", true, true);
    check(prefix(), "/AB", false, true);
    check(prefix(), "/", false, false);
    check(Path::Prefix("/".into()), "/x", true, true);
    check(Path::Prefix(String::new()), "*", true, true);
    check(Path::Prefix("/".into()), "*", true, true);
    check(prefix(), "*", false, false);
    let segments = || Path::PathSeparatedPrefix("/a/b".into());
    check(segments(), "/a/b", true, true);
    check(segments(), "/a/b/", true, true);
    check(segments(), "/a/b/c", true, true);
    check(segments(), "/A/b/c", false, true);
    check(segments(), "/a/bc", false, false);
    check(segments(), "/a", false, false);
    check(segments(), "/\u{e4}\u{e4}", false, false);
    let pattern = || Path::SafeRegex(regex("/[a-c]+"));
    check(pattern(), "/abc", true, true);
    check(pattern(), "/ABC", false, false);
    check(pattern(), "/abc/", false, false);
    check(Path::ConnectMatcher(Default::default()), "/", false, false);
}

#[test]
fn bad_paths() {
    use pb::route_match::PathSpecifier as Path;
    let check = |specifier: Option<Path>, expect: &[&str]| {
        let found = problems(|p| drop(PathMatcher::read(p, specifier.as_ref())));
        assert_eq!(found, expect, "{specifier:?}");
    };
    check(
        None,
        &[
            "resource: has no path; set path, prefix, path_separated_prefix, safe_regex or \
           connect_matcher",
        ],
    );
    let query = "must not have '?' or '#'; the query is matched by query_parameters";
    check(
        Some(Path::Path("/a?b".into())),
        &[&format!("path: {query}")],
    );
    check(
        Some(Path::Prefix("/a#".into())),
        &[&format!("prefix: {query}")],
    );
    let separated = "path_separated_prefix: must be longer than \"/\" and must not end with it";
    check(Some(Path::PathSeparatedPrefix("/".into())), &[separated]);
    check(Some(Path::PathSeparatedPrefix("/a/".into())), &[separated]);
    check(
        Some(Path::PathMatchPolicy(Default::default())),
        &["path_match_policy: is not supported; leave it out"],
    );
}
