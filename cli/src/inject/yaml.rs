//! YAML as a tree that keeps what a person wrote: the notation of each scalar, the style of
//! each collection, and comments. So `0644` and `"8080"` come out as they went in, whatever
//! version of YAML the next reader follows.

use std::collections::{HashMap, HashSet, VecDeque};

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};

/// How deep a document may nest.
const MAX_DEPTH: usize = 64;
/// How many nodes a document may have, with its aliases replaced by what they stand for.
const MAX_NODES: usize = 200_000;

/// One value with the comments around it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    /// What it holds.
    pub value: Value,
    /// Its tag as written, e.g. `!!binary`.
    pub tag: Option<String>,
    /// The line of its key or dash, counted from 1; 0 for nodes that were not read.
    pub line: usize,
    /// Comments on the lines above, with their `#`.
    pub above: Vec<String>,
    /// The comment on its own line, with its `#`.
    pub right: Option<String>,
    /// The line on which it ends.
    pub end: usize,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Without quotes: text, a number, `true`, nothing.
    Plain(String),
    /// Text, whatever it looks like.
    Text(String, Quotes),
    /// A sequence.
    List(Vec<Node>, Style),
    /// A mapping, in its order.
    Map(Vec<Entry>, Style),
}

/// How text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quotes {
    /// As is best.
    Auto,
    Single,
    Double,
    /// A literal block, if it has several lines.
    Block,
}

/// How a collection is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// One line for each element.
    Block,
    /// `[a, b]`, `{a: b}`.
    Flow,
}

/// One key of a mapping with its value. Comments are those of the value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The key.
    pub key: String,
    /// Whether the key was written in quotes.
    pub quoted: bool,
    /// The value.
    pub value: Node,
}

/// One document.
#[derive(Debug)]
pub(crate) struct Document {
    /// Its value.
    pub root: Node,
    /// Comments after the last value.
    pub tail: Vec<String>,
}

/// Why text is no document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl Default for Value {
    fn default() -> Self {
        Self::Plain(String::new())
    }
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }
}

/// Text.
pub(crate) fn text(text: impl Into<String>) -> Node {
    Value::Text(text.into(), Quotes::Auto).into()
}

/// A number, as its digits.
pub(crate) fn number(number: impl Into<u64>) -> Node {
    Value::Plain(number.into().to_string()).into()
}

/// `true` or `false`.
pub(crate) fn truth(truth: bool) -> Node {
    Value::Plain(truth.to_string()).into()
}

/// A sequence.
pub(crate) fn list(items: impl IntoIterator<Item = Node>) -> Node {
    Value::List(items.into_iter().collect(), Style::Block).into()
}

/// A mapping.
pub(crate) fn map<K: Into<String>>(entries: impl IntoIterator<Item = (K, Node)>) -> Node {
    let entries = entries.into_iter().map(|(key, value)| Entry {
        key: key.into(),
        quoted: false,
        value,
    });
    Value::Map(entries.collect(), Style::Block).into()
}

impl Node {
    /// The value of a key; `None` if there is none, or it is null, or this is no mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let entry = self.entries().iter().find(|entry| entry.key == key)?;
        Some(&entry.value).filter(|value| !value.is_null())
    }

    /// The value at the end of a path of keys.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// The text at the end of a path of keys.
    pub(crate) fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_text()
    }

    /// The entries of a mapping; none if it is something else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries, _) => entries,
            _ => &[],
        }
    }

    /// The items of a sequence; none if it is something else.
    pub(crate) fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items, _) => items,
            _ => &[],
        }
    }

    /// Text, as the API server of Kubernetes would read it.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text, _) => Some(text),
            Value::Plain(plain) if !self.is_null() && self.as_bool().is_none() => {
                let numeric = plain.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
                    && plain.replace('_', "").parse::<f64>().is_ok();
                (!numeric).then_some(plain)
            }
            _ => None,
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn as_number(&self) -> Option<u64> {
        match &self.value {
            Value::Plain(plain) => plain.parse().ok(),
            _ => None,
        }
    }

    /// A truth value, as YAML 1.1 has it, which Kubernetes follows.
    pub(crate) fn as_bool(&self) -> Option<bool> {
        let Value::Plain(plain) = &self.value else {
            return None;
        };
        match plain.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some(true),
            "false" | "no" | "off" | "n" => Some(false),
            _ => None,
        }
    }

    /// Whether it is null.
    pub(crate) fn is_null(&self) -> bool {
        let null = |plain: &str| matches!(plain, "" | "~" | "null" | "Null" | "NULL");
        matches!(&self.value, Value::Plain(plain) if null(plain))
    }

    /// Whether it is a mapping.
    pub(crate) fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(..))
    }

    /// The value of a key, to be changed: what is changed is written in block style. A missing
    /// or null value becomes an empty mapping.
    pub(crate) fn map_at(&mut self, key: &str) -> &mut Self {
        self.child(key, || Value::Map(Vec::new(), Style::Block))
    }

    /// The items of the sequence under a key, to be changed.
    pub(crate) fn list_at(&mut self, key: &str) -> &mut Vec<Self> {
        let child = self.child(key, || Value::List(Vec::new(), Style::Block));
        child.items_mut()
    }

    /// The items of a sequence, to be changed; anything else becomes an empty sequence.
    pub(crate) fn items_mut(&mut self) -> &mut Vec<Self> {
        if !matches!(self.value, Value::List(..)) {
            self.value = Value::List(Vec::new(), Style::Block);
        }
        let Value::List(items, style) = &mut self.value else {
            unreachable!("it has just been made a sequence")
        };
        *style = Style::Block;
        items
    }

    /// The entries of a mapping, to be changed; anything else becomes an empty mapping.
    pub(crate) fn entries_mut(&mut self) -> &mut Vec<Entry> {
        if !matches!(self.value, Value::Map(..)) {
            self.value = Value::Map(Vec::new(), Style::Block);
        }
        let Value::Map(entries, style) = &mut self.value else {
            unreachable!("it has just been made a mapping")
        };
        *style = Style::Block;
        entries
    }

    fn child(&mut self, key: &str, empty: impl Fn() -> Value) -> &mut Self {
        let entries = self.entries_mut();
        let at = entries.iter().position(|entry| entry.key == key);
        let at = at.unwrap_or_else(|| {
            entries.push(Entry {
                key: key.to_owned(),
                quoted: false,
                value: empty().into(),
            });
            entries.len() - 1
        });
        let value = &mut entries[at].value;
        if value.is_null() {
            value.value = empty();
        }
        value
    }

    /// Sets a key; a new one comes last.
    pub(crate) fn set(&mut self, key: &str, value: Self) {
        *self.child(key, || Value::Plain(String::new())) = value;
    }

    /// Removes a key; returns its value.
    pub(crate) fn remove(&mut self, key: &str) -> Option<Self> {
        self.get(key)?;
        let entries = self.entries_mut();
        let at = entries.iter().position(|entry| entry.key == key)?;
        Some(entries.remove(at).value)
    }

    /// Removes a key whose value is null.
    pub(crate) fn remove_null(&mut self, key: &str) {
        if self.entries().iter().any(|entry| entry.key == key) && self.get(key).is_none() {
            self.entries_mut().retain(|entry| entry.key != key);
        }
    }

    /// Removes a key whose value is an empty collection.
    pub(crate) fn remove_if_empty(&mut self, key: &str) {
        let empty = match self.get(key).map(|node| &node.value) {
            Some(Value::List(items, _)) => items.is_empty(),
            Some(Value::Map(entries, _)) => entries.is_empty(),
            _ => false,
        };
        if empty {
            self.remove(key);
        }
    }
}

/// Reads one document. Text that holds none but comments is `None`.
///
/// # Errors
///
/// It is no YAML; it has a key twice, a key that is no scalar, more than one document, or is
/// larger than what a manifest can be.
pub(crate) fn parse(source: &str) -> Result<Option<Document>, SyntaxError> {
    let options = granit_parser::options! {
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
        max_buffered_comment_events: 10_000,
    };
    let mut reader = Reader {
        source,
        events: VecDeque::new(),
        anchors: HashMap::new(),
        nodes: 0,
    };
    let mut comments = VecDeque::new();
    let mut documents = 0;
    for event in Parser::new_from_str_with_options(source, options) {
        let (event, span) = event.map_err(|error| SyntaxError {
            line: error.marker().line(),
            message: error.info(),
        })?;
        match event {
            Event::Comment(text, _) => {
                comments.push_back((span.start.line(), format!("#{text}")));
            }
            Event::DocumentStart(..) => {
                documents += 1;
                if documents > 1 {
                    return Err(SyntaxError {
                        line: span.start.line(),
                        message: "a second document begins here without `---`".to_owned(),
                    });
                }
            }
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Anchor(..) => {}
            event => reader.events.push_back((event, span)),
        }
    }
    if reader.events.is_empty() {
        return Ok(None);
    }
    let mut root = reader.node(0)?;
    distribute(&mut root, &mut comments);
    Ok(Some(Document {
        root,
        tail: comments.into_iter().map(|(_, comment)| comment).collect(),
    }))
}

struct Reader<'a> {
    source: &'a str,
    events: VecDeque<(Event<'a>, Span)>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn node(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        let (event, span) = self.next()?;
        let line = span.start.line();
        self.count(1, line)?;
        if depth > MAX_DEPTH {
            return Err(error(line, "nested too deep for a manifest"));
        }
        let (value, anchor) = match event {
            Event::Alias(id) => {
                let known = self.anchors.get(&id).cloned();
                let node = known.ok_or_else(|| error(line, "an alias within its own anchor"))?;
                self.count(size(&node), line)?;
                return Ok(node);
            }
            // The parser says `~` for a value that is not there.
            Event::Scalar(_, ScalarStyle::Plain, anchor, _) if span.start == span.end => {
                (Value::default(), anchor)
            }
            Event::Scalar(text, style, anchor, _) => (scalar(text.into_owned(), style), anchor),
            Event::SequenceStart(style, anchor, _) => {
                let mut items = Vec::new();
                while !matches!(self.events.front(), Some((Event::SequenceEnd, _))) {
                    items.push(self.node(depth + 1)?);
                }
                (Value::List(items, style_of(style)), anchor)
            }
            Event::MappingStart(style, anchor, _) => {
                (Value::Map(self.entries(depth)?, style_of(style)), anchor)
            }
            _ => return Err(error(line, "not understood")),
        };
        let closed = match value {
            Value::List(..) | Value::Map(..) => self.next()?.1,
            Value::Plain(_) | Value::Text(..) => span,
        };
        let node = Node {
            value,
            tag: span
                .tag_span()
                .and_then(|tag| tag.slice(self.source))
                .map(str::to_owned),
            line,
            end: closed.end.line(),
            ..Node::default()
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// The entries up to the end of the mapping; what is merged (`<<`) comes last.
    fn entries(&mut self, depth: usize) -> Result<Vec<Entry>, SyntaxError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut keys = HashSet::new();
        let mut merged = Vec::new();
        while !matches!(self.events.front(), Some((Event::MappingEnd, _))) {
            let key = self.node(depth + 1)?;
            let (name, quoted) = match key.value {
                Value::Plain(name) => (name, false),
                Value::Text(name, _) => (name, true),
                Value::List(..) | Value::Map(..) => {
                    return Err(error(key.line, "a key must be text"));
                }
            };
            let mut value = self.node(depth + 1)?;
            if name == "<<" && !quoted {
                merged.extend(match value.value {
                    Value::List(items, _) => items,
                    _ => vec![value],
                });
                continue;
            }
            value.line = key.line;
            if !keys.insert(name.clone()) {
                return Err(error(key.line, format!("the key `{name}` is there twice")));
            }
            entries.push(Entry {
                key: name,
                quoted,
                value,
            });
        }
        for node in merged {
            let Value::Map(more, _) = node.value else {
                return Err(error(node.line, "`<<` takes mappings"));
            };
            let new = more.into_iter().filter(|e| keys.insert(e.key.clone()));
            entries.extend(new);
        }
        Ok(entries)
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), SyntaxError> {
        let next = self.events.pop_front();
        // Counted only then: it takes a walk through the whole text.
        next.ok_or_else(|| {
            let last = self.source.lines().count();
            error(last, "the document ends too early")
        })
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(error(line, format!("more than {MAX_NODES} values")));
        }
        Ok(())
    }
}

fn error(line: usize, message: impl Into<String>) -> SyntaxError {
    SyntaxError {
        line,
        message: message.into(),
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items, _) => items.iter().map(size).sum(),
        Value::Map(entries, _) => entries.iter().map(|e| 1 + size(&e.value)).sum(),
        Value::Plain(_) | Value::Text(..) => 0,
    }
}

fn scalar(text: String, style: ScalarStyle) -> Value {
    match style {
        ScalarStyle::Plain => Value::Plain(text),
        ScalarStyle::SingleQuoted => Value::Text(text, Quotes::Single),
        ScalarStyle::DoubleQuoted => Value::Text(text, Quotes::Double),
        ScalarStyle::Literal | ScalarStyle::Folded => Value::Text(text, Quotes::Block),
    }
}

fn style_of(style: StructureStyle) -> Style {
    match style {
        StructureStyle::Block => Style::Block,
        StructureStyle::Flow => Style::Flow,
    }
}

/// The line of each comment, in their order, with its text.
type Comments = VecDeque<(usize, String)>;

/// Gives each comment to the element whose line it is on, or that follows it.
fn distribute(node: &mut Node, comments: &mut Comments) {
    let is_block = |style: &Style| *style == Style::Block;
    match &mut node.value {
        Value::List(items, style) if is_block(style) => {
            for item in items {
                take(item, comments);
            }
        }
        Value::Map(entries, style) if is_block(style) => {
            for entry in entries {
                take(&mut entry.value, comments);
            }
        }
        _ => {}
    }
}

fn take(node: &mut Node, comments: &mut Comments) {
    while comments.front().is_some_and(|(line, _)| *line < node.line) {
        node.above
            .extend(comments.pop_front().map(|(_, comment)| comment));
    }
    let is_block = matches!(
        &node.value,
        Value::List(_, Style::Block) | Value::Map(_, Style::Block)
    );
    if is_block {
        let first = match &node.value {
            Value::List(items, _) => items.first().map(|item| item.line),
            Value::Map(entries, _) => entries.first().map(|entry| entry.value.line),
            _ => None,
        };
        // `- a: 1 # this` is the comment of `a`.
        let own_line = first.is_none_or(|first| first > node.line);
        if own_line && comments.front().is_some_and(|(line, _)| *line == node.line) {
            node.right = comments.pop_front().map(|(_, comment)| comment);
        }
        return distribute(node, comments);
    }
    // The end of a block scalar is the line after it.
    let is_block_scalar = matches!(&node.value, Value::Text(_, Quotes::Block));
    let end = if is_block_scalar { node.line } else { node.end };
    while comments.front().is_some_and(|(line, _)| *line <= end) {
        let Some((line, comment)) = comments.pop_front() else {
            return;
        };
        if line == end || is_block_scalar {
            node.right = Some(comment);
        } else {
            node.above.push(comment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::emit::emit;
    use super::*;

    #[test]
    fn reads_as_kubernetes_does() {
        let read = |text: &str| parse(&format!("a: {text}\n")).unwrap().unwrap().root;
        for (source, text, number, truth) in [
            ("web", Some("web"), None, None),
            ("\"8080\"", Some("8080"), None, None),
            ("8080", None, Some(8080), None),
            ("-1", None, None, None),
            ("1.5", None, None, None),
            ("1.2.3", Some("1.2.3"), None, None),
            ("yes", None, None, Some(true)),
            ("'yes'", Some("yes"), None, None),
            ("Off", None, None, Some(false)),
            ("infra", Some("infra"), None, None),
            ("nano", Some("nano"), None, None),
        ] {
            let node = read(source);
            let node = node.get("a").unwrap();
            let got = (node.as_text(), node.as_number(), node.as_bool());
            assert_eq!(got, (text, number, truth), "{source}");
        }
        for null in ["", "~", "null"] {
            assert!(read(null).get("a").is_none(), "{null}");
        }
    }

    #[test]
    fn aliases_and_merges_stand_for_what_they_name() {
        let source = "base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\nlist: [*b]\n";
        let root = parse(source).unwrap().unwrap().root;
        assert_eq!(root.at(&["other", "x"]).and_then(Node::as_number), Some(1));
        assert_eq!(root.at(&["other", "y"]).and_then(Node::as_number), Some(3));
        assert_eq!(root.get("list").unwrap().items()[0].entries().len(), 2);
    }

    #[test]
    fn mistakes_have_a_line() {
        for (source, line, message) in [
            ("a: 1\na: 2\n", 2, "twice"),
            ("a:\n  ? [x]\n  : 1\n", 2, "must be text"),
            ("a: 1\n...\nb: 2\n", 3, "without `---`"),
            ("a: [1\nb: }\n", 2, ""),
            ("a: *nobody\n", 1, ""),
            ("a: &x [*x]\n", 1, "own anchor"),
        ] {
            let error = parse(source).unwrap_err();
            assert_eq!(error.line, line, "{source}: {}", error.message);
            assert!(error.message.contains(message), "{}", error.message);
        }
        assert!(parse("# nothing\n\n").unwrap().is_none());
    }

    #[test]
    fn documents_cannot_exhaust_the_reader() {
        let deep = format!("a: {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
        assert!(parse(&deep).is_err());
        let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, of) in "bcdefgh".chars().zip("abcdefg".chars()) {
            let list = vec![format!("*{of}"); 10].join(", ");
            laughs += &format!("{name}: &{name} [{list}]\n");
        }
        assert!(parse(&laughs).is_err());
    }

    #[test]
    fn what_is_changed_becomes_block_and_the_rest_stays() {
        let source = "a: {b: {c: 1}, d: [x, y]}\n";
        let mut root = parse(source).unwrap().unwrap().root;
        root.map_at("a").map_at("b").set("e", text("true"));
        root.map_at("a").list_at("f").push(number(5u8));
        let expect = "a:\n  b:\n    c: 1\n    e: \"true\"\n  d: [x, y]\n  f:\n  - 5\n";
        assert_eq!(emit(&root), expect);
        root.map_at("a").remove("f");
        root.map_at("a").remove("d");
        assert_eq!(emit(&root), "a:\n  b:\n    c: 1\n    e: \"true\"\n");
    }
}
