//! One message, as it was written.

/// A field line, with its name as it was written and its value without the blanks around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The name.
    pub name: String,
    /// The value; any bytes that a value may have.
    pub value: Vec<u8>,
}

/// What says where a message ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// An answer that ends with its connection.
    UntilClose,
}

/// A request or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it begins and ends in what was read; `end` is 0 while it is not complete.
    pub at: usize,
    /// See `at`.
    pub end: usize,
    /// The start line.
    pub line: String,
    /// The fields of the head.
    pub fields: Vec<Field>,
    /// What says where it ends.
    pub framing: Framing,
    /// The body, of chunks their data.
    pub body: Vec<u8>,
    /// How many chunks there were, the last one included.
    pub chunks: usize,
    /// Bytes of chunk extensions.
    pub extensions: usize,
    /// The fields after the last chunk.
    pub trailers: Vec<Field>,
}

impl Message {
    pub(super) fn new(at: usize, line: String) -> Self {
        Self {
            at,
            end: 0,
            line,
            fields: Vec::new(),
            framing: Framing::None,
            body: Vec::new(),
            chunks: 0,
            extensions: 0,
            trailers: Vec::new(),
        }
    }

    fn word(&self, n: usize) -> &str {
        self.line.splitn(3, ' ').nth(n).unwrap_or_default()
    }

    /// Of a request: its method.
    pub fn method(&self) -> &str {
        self.word(0)
    }

    /// Of a request: its target.
    pub fn target(&self) -> &str {
        self.word(1)
    }

    /// Of an answer: its status; 0 of a request.
    pub fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or_default()
    }

    /// Whether it says HTTP/1.0.
    pub fn is_http10(&self) -> bool {
        self.line.starts_with("HTTP/1.0") || self.line.ends_with("HTTP/1.0")
    }

    /// The values of the fields of this name, in whatever case.
    pub fn values(&self, name: &str) -> Vec<&[u8]> {
        let named = |field: &&Field| field.name.eq_ignore_ascii_case(name);
        let named = self.fields.iter().filter(named);
        named.map(|field| &*field.value).collect()
    }

    /// The value of the first field of this name, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.values(name).first()?).ok()
    }

    /// The value of the first trailer of this name, if it is UTF-8.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        let mut trailers = self.trailers.iter();
        let found = trailers.find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(&found.value).ok()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
