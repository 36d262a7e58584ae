//! The one authority of a request. What is read here is what route, policy, log and upstream
//! see: nothing is folded, decoded or stripped, also not a default port.

use std::{net::Ipv6Addr, ops::Deref};

use http::HeaderValue;

/// `host` or `host:port` (RFC 3986, 3.2), without user information. Empty only for HTTP/1.0
/// without Host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authority(HeaderValue);

impl Authority {
    /// The authority of a request that has none.
    pub(super) const fn none() -> Self {
        Self(HeaderValue::from_static(""))
    }

    /// Reads a Host or an `:authority`: a name of letters, digits, `-`, `.`, `_` and `~`, an
    /// IPv4 address or an IPv6 address in brackets; and perhaps a port from 1 to 65535 in its
    /// shortest form. RFC 3986 allows more in a name, but no name of a host has it, and
    /// parsers disagree about it.
    ///
    /// # Errors
    /// With what is wrong.
    pub(super) fn read(value: HeaderValue) -> Result<Self, &'static str> {
        judge(value.as_bytes())?;
        Ok(Self(value))
    }

    /// As a field's value.
    pub(super) const fn value(&self) -> &HeaderValue {
        &self.0
    }

    /// Without its port.
    pub(super) fn host(&self) -> &str {
        self.split().0
    }

    /// Whether it names a port.
    pub(super) fn has_port(&self) -> bool {
        self.split().1.is_some()
    }

    fn split(&self) -> (&str, Option<&str>) {
        match self.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (self, None),
        }
    }
}

impl Deref for Authority {
    type Target = str;

    fn deref(&self) -> &str {
        // Always text: that was judged.
        self.0.to_str().unwrap_or_default()
    }
}

fn judge(bytes: &[u8]) -> Result<(), &'static str> {
    let (host, port) = if bytes.first() == Some(&b'[') {
        let end = bytes.iter().position(|b| *b == b']');
        let (address, rest) = bytes.split_at(end.ok_or("an IPv6 address without its end")? + 1);
        let text = str::from_utf8(&address[1..address.len() - 1]).unwrap_or_default();
        if text.parse::<Ipv6Addr>().is_err() {
            return Err("no IPv6 address in its brackets");
        }
        match rest.split_first() {
            None => (address, None),
            Some((b':', port)) => (address, Some(port)),
            Some(_) => return Err("bytes after an IPv6 address"),
        }
    } else {
        let port = bytes.iter().position(|b| *b == b':');
        let (host, port) = match port {
            Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
            None => (bytes, None),
        };
        let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
        if !host.iter().all(fits) {
            return Err("a byte that no host has");
        }
        (host, port)
    };
    if host.is_empty() {
        return Err("no host");
    }
    match port {
        None => Ok(()),
        Some(port) if is_port(port) => Ok(()),
        Some(_) => Err("no port from 1 to 65535 after the colon"),
    }
}

fn is_port(bytes: &[u8]) -> bool {
    let shortest = matches!(bytes.first(), Some(b'1'..=b'9'));
    let number = str::from_utf8(bytes).ok().map(str::parse::<u16>);
    shortest && bytes.iter().all(u8::is_ascii_digit) && matches!(number, Some(Ok(_)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::Authority;

    fn read(bytes: &[u8]) -> Option<Authority> {
        Authority::read(HeaderValue::from_bytes(bytes).ok()?).ok()
    }

    #[test]
    fn hosts_and_ports_are_read() {
        for (text, host, has_port) in [
            ("post", "post", false),
            (
                "post.blog.svc.cluster.local:80",
                "post.blog.svc.cluster.local",
                true,
            ),
            ("POST.blog.", "POST.blog.", false),
            ("my_service", "my_service", false),
            ("a~b-c.d", "a~b-c.d", false),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", false),
            ("10.0.0.1", "10.0.0.1", false),
            ("10.0.0.1:65535", "10.0.0.1", true),
            ("[::1]", "[::1]", false),
            ("[fd00::7]:1", "[fd00::7]", true),
            ("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.1]", true),
        ] {
            let authority = read(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(&*authority, text, "nothing is changed");
            assert_eq!((authority.host(), authority.has_port()), (host, has_port));
        }
    }

    #[test]
    fn what_parsers_disagree_about_is_refused() {
        for text in [
            "",
            " ",
            "a b",
            "a\tb",
            "u@h",
            "u:p@h",
            "@h",
            "a,b",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "a%62",
            "%61",
            "a;b",
            "a=b",
            "a&b",
            "a*",
            "*",
            "a!",
            "a$",
            "a'b",
            "a(b)",
            "a+b",
            "a|b",
            "a\"",
            "<a>",
            "{a}",
            "a^b",
            "a`b",
            ":",
            ":80",
            "a:",
            "a:0",
            "a:00",
            "a:080",
            "a:65536",
            "a:99999999999",
            "a:+80",
            "a:-1",
            "a:8 0",
            "a:http",
            "a:80:80",
            "a:80a",
            "::1",
            "fd00::7",
            "[",
            "[]",
            "[::1",
            "]",
            "[::1]x",
            "[::1]:",
            "[::1]:0",
            "[::1]80",
            "[g::1]",
            "[::1%eth0]",
            "[::1%25eth0]",
            "[v1.x]",
            "[1.2.3.4]",
            "[[::1]]",
            "a[::1]",
            "[:::1]",
            "[::1]:80:80",
            "http://a",
            "a\u{e4}",
            "\u{ff0f}",
            "b\u{fc}cher",
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text:?}");
        }
        for byte in 0..=255u8 {
            let fits = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            assert_eq!(read(&[b'a', byte, b'a']).is_some(), fits, "{byte:#x}");
        }
    }
}
