//! The lexical rules of names, headers, paths, regular expressions and durations.

use std::time::Duration;

/// A Kubernetes name of one DNS label: services, namespaces, ports.
pub(crate) fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A Kubernetes object name: DNS labels joined by dots, 253 characters in all.
pub(crate) fn is_object_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// The full name of a host outside of the mesh, in lower case. The last label of a name is
/// never a number: what ends with one is an address, or looks like one.
pub(crate) fn is_host_name(name: &str) -> bool {
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    let last = name.rsplit_once('.').map(|(_, last)| last);
    is_object_name(name) && last.is_some_and(|last| !numeric(last))
}

/// A Gateway API duration (GEP-2257): one to four numbers of up to five digits, each
/// with a unit of `h`, `m`, `s` or `ms`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok().filter(|_| digits <= 5)?;
        rest = &rest[digits..];
        let (unit, length) = if rest.starts_with("ms") {
            (Duration::from_millis(1), 2)
        } else {
            let seconds = match rest.as_bytes().first()? {
                b'h' => 3600,
                b'm' => 60,
                b's' => 1,
                _ => return None,
            };
            (Duration::from_secs(seconds), 1)
        };
        total += unit * u32::try_from(number).ok()?;
        rest = &rest[length..];
        parts += 1;
    }
    (1..=4).contains(&parts).then_some(total)
}

/// What is wrong with a header name, if anything.
pub(crate) fn header_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > 256 {
        return Err("a header name has 1 to 256 characters");
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.bytes().all(token) {
        Ok(())
    } else {
        Err("a header name has letters, digits and !#$%&'*+-.^_`|~ only")
    }
}

/// What is wrong with changing this header, if anything.
pub(crate) fn mutable_header(name: &str) -> Result<(), &'static str> {
    header_name(name)?;
    match name.to_ascii_lowercase().as_str() {
        "host" => Err("use a URLRewrite filter with `hostname` to change the host"),
        "connection" | "content-length" | "keep-alive" | "proxy-connection" | "te" | "trailer"
        | "transfer-encoding" | "upgrade" => {
            Err("this header belongs to one connection; the proxy sets it")
        }
        _ => Ok(()),
    }
}

/// What is wrong with a header value, if anything.
pub(crate) fn header_value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || value.len() > 4096 {
        return Err("a header value has 1 to 4096 characters");
    }
    if value
        .bytes()
        .all(|b| b == b'\t' || (b >= b' ' && b != 0x7f))
    {
        Ok(())
    } else {
        Err("a header value must not hold control characters")
    }
}

/// What is wrong with a path of an Exact or PathPrefix match, if anything.
pub(crate) fn match_path(path: &str) -> Result<(), &'static str> {
    plain_path(path)?;
    if ["//", "/./", "/../", "%2f", "%2F"]
        .iter()
        .any(|bad| path.contains(bad))
        || path.ends_with("/..")
        || path.ends_with("/.")
    {
        return Err("requests are matched after normalization: no `//`, `/./`, `/../`, `%2f`");
    }
    Ok(())
}

/// What is wrong with a replacement path, if anything.
pub(crate) fn plain_path(path: &str) -> Result<(), &'static str> {
    if path.len() > 1024 {
        return Err("a path has at most 1024 characters");
    }
    if !path.starts_with('/') {
        return Err("a path starts with `/`");
    }
    if path
        .bytes()
        .any(|b| b <= b' ' || b == 0x7f || b == b'#' || b == b'?')
    {
        return Err("a path holds no spaces, control characters, `?` or `#`");
    }
    Ok(())
}

/// What is wrong with a regular expression, if anything.
pub(crate) fn regex(pattern: &str) -> Result<(), String> {
    if pattern.is_empty() || pattern.len() > 1024 {
        return Err("a regular expression has 1 to 1024 characters".to_owned());
    }
    regex::RegexBuilder::new(pattern)
        .size_limit(REGEX_SIZE_BYTES)
        .build()
        .map(drop)
        .map_err(|error| {
            let text = error.to_string();
            text.lines().last().unwrap_or(&text).trim().to_owned()
        })
}

/// The most memory that one compiled expression may take.
const REGEX_SIZE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{duration, header_name, is_host_name, is_label, match_path, mutable_header, regex};

    #[test]
    fn durations() {
        let ms = Duration::from_millis;
        for (text, expect) in [
            ("0s", Some(ms(0))),
            ("10s", Some(ms(10_000))),
            ("1m30s", Some(ms(90_000))),
            ("1h1m1s1ms", Some(ms(3_661_001))),
            ("500ms", Some(ms(500))),
            ("99999h", Some(Duration::from_secs(99_999 * 3600))),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("100000s", None),
            ("-1s", None),
            ("1s1s1s1s1s", None),
            ("1d", None),
            ("1 s", None),
        ] {
            assert_eq!(duration(text), expect, "{text}");
        }
    }

    #[test]
    fn labels() {
        for (name, expect) in [
            ("post", true),
            ("post-v2", true),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a.b", false),
            ("", false),
        ] {
            assert_eq!(is_label(name), expect, "{name}");
        }
    }

    #[test]
    fn host_names() {
        for (name, expect) in [
            ("api.example.com", true),
            ("a.b-c.d1", true),
            ("api", false),
            ("10.0.0.1", false),
            ("example.1", false),
            ("api.example.com.", false),
            ("API.example.com", false),
            ("a_b.example.com", false),
            ("*.example.com", false),
            ("::1", false),
            ("", false),
        ] {
            assert_eq!(is_host_name(name), expect, "{name}");
        }
    }

    #[test]
    fn paths_headers_and_expressions() {
        assert!(match_path("/a/b").is_ok());
        for bad in ["a", "/a//b", "/a/../b", "/a b", "/a?b", "/%2F", "/..", ""] {
            assert!(match_path(bad).is_err(), "{bad}");
        }
        assert!(header_name("x-a").is_ok());
        assert!(header_name("x a").is_err());
        assert!(header_name(":path").is_err());
        assert!(mutable_header("Host").is_err());
        assert!(mutable_header("x-host").is_ok());
        assert!(regex("/a/[0-9]+").is_ok());
        assert!(regex("(").unwrap_err().contains("unclosed"));
        assert!(regex("(a{1000}){1000}").is_err());
    }
}
