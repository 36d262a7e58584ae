//! Just enough of HTTP/1.1 to read responses to one's own simple requests, cheaply: a status
//! line, headers, and a body with `content-length`. Pure: bytes in, facts out.

/// A response's head, with where its parts lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    pub(crate) status: u16,
    /// Bytes of the head, blank line included.
    pub(crate) length: usize,
    /// Bytes of the body that follow; `None` when the response is chunked or has no length.
    pub(crate) body: Option<usize>,
    fields: &'a [u8],
}

impl Head<'_> {
    /// The value of the header of that (lower-case) name, trimmed.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        field(self.fields, name.as_bytes())
    }

    /// Whether the connection ends after this response.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// The head at the front of `buffer`: `Ok(None)` while it is incomplete.
pub(crate) fn parse(buffer: &[u8]) -> Result<Option<Head<'_>>, &'static str> {
    let Some(end) = find(buffer, b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = &buffer[..end + 2];
    let line = find(head, b"\r\n").unwrap_or(end);
    let status = head[..line]
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok())
        .ok_or("the response has no HTTP/1.1 status line")?;
    let fields = &head[line + 2..];
    let body = match status {
        100..=199 | 204 | 304 => Some(0),
        _ => field(fields, b"content-length").and_then(|value| value.parse().ok()),
    };
    Ok(Some(Head {
        status,
        length: end + 4,
        body,
        fields,
    }))
}

fn field<'a>(fields: &'a [u8], name: &[u8]) -> Option<&'a str> {
    fields.split(|byte| *byte == b'\n').find_map(|line| {
        let (key, rest) = line.split_at_checked(name.len())?;
        let value = rest.strip_prefix(b":")?;
        key.eq_ignore_ascii_case(name)
            .then(|| std::str::from_utf8(value).ok().map(str::trim))?
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read() {
        let text = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 12\r\nX-Version:v1\r\n\
                     weft-reason: no_route \r\nConnection: close\r\n\r\nbody";
        let head = parse(text).unwrap().unwrap();
        assert_eq!(
            (head.status, head.length, head.body),
            (503, text.len() - 4, Some(12))
        );
        assert_eq!(head.header("x-version"), Some("v1"));
        assert_eq!(head.header("weft-reason"), Some("no_route"));
        assert_eq!(head.header("weft"), None);
        assert!(head.closes());
    }

    #[test]
    fn bodies_have_a_length_or_none() {
        for (text, expect) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], None),
            (b"HTTP/1.1 204 No Content\r\n\r\n", Some(0)),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                None,
            ),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Some(0)),
        ] {
            assert_eq!(parse(text).unwrap().unwrap().body, expect, "{text:?}");
        }
    }

    #[test]
    fn incomplete_and_foreign_bytes() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\ncontent-le"), Ok(None));
        assert!(parse(b"SSH-2.0\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 abc\r\n\r\n").is_err());
    }
}
