//! YAML as a tree in which every node knows its line and column.
//!
//! Decoding goes over this tree and not straight into structs, so that one pass finds
//! every problem of a document and names its place. Documents of a file are parsed one
//! by one: a syntax error spoils its own document only.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// How deep a document may nest: the deepest of ours is at 12, and reading
/// recurses with some 30 KiB of stack for each.
const MAX_DEPTH: usize = 24;
/// How many values a document may have: some 10 MiB of them.
const MAX_NODES: usize = 1_000_000;

/// A place in a file, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The line.
    pub line: u32,
    /// The column in characters.
    pub column: u32,
}

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) at: At,
    pub(crate) key: String,
    pub(crate) value: Node,
}

/// A document that is no YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) at: At,
    pub(crate) message: String,
}

/// Splits a file at its document markers: the text of each document and the number of
/// lines before it. A line that starts with `---` is always a marker in YAML, also
/// inside block scalars.
pub(crate) fn documents(text: &str) -> Vec<(u32, &str)> {
    let mut out = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let mut offset = 0;
    for (line, content) in (0u32..).zip(text.split_inclusive('\n')) {
        let marker = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > start {
            out.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, line);
        }
        offset += content.len();
    }
    out.push((start_line, &text[start..]));
    out.retain(|(_, document)| !is_blank(document));
    out
}

fn is_blank(document: &str) -> bool {
    document.lines().all(|line| {
        let line = line.trim_start_matches('\u{feff}');
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#') || line == "..."
    })
}

/// Parses one document that starts after `lines_before` lines of its file.
pub(crate) fn parse(document: &str, lines_before: u32) -> Result<Node, SyntaxError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES / 10,
        },
        strict_booleans: true,
        with_snippet: false,
        underscored_numbers_as_strings: true,
        leading_zero_numbers_as_strings: true,
    };
    match serde_saphyr::from_str_with_options::<Node>(document, options) {
        Ok(mut node) => {
            shift(&mut node, lines_before);
            Ok(node)
        }
        Err(error) => {
            let place = error.location();
            let text = error.without_snippet().to_string();
            // The library repeats the place at the end of the text.
            let message = text
                .replace("budget breached", "too large or nested too deep")
                .split(" at line ")
                .next()
                .unwrap_or(&text)
                .trim_end_matches(':')
                .to_owned();
            Err(SyntaxError {
                at: At {
                    line: narrow(place.map_or(1, |p| p.line())).saturating_add(lines_before),
                    column: narrow(place.map_or(1, |p| p.column())),
                },
                message,
            })
        }
    }
}

fn shift(node: &mut Node, lines: u32) {
    node.at.line = node.at.line.saturating_add(lines);
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| shift(item, lines)),
        Value::Map(entries) => {
            for entry in entries {
                entry.at.line = entry.at.line.saturating_add(lines);
                shift(&mut entry.value, lines);
            }
        }
        _ => {}
    }
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX).max(1)
}

fn at<T>(spanned: &Spanned<T>) -> At {
    At {
        line: narrow(spanned.referenced.line()),
        column: narrow(spanned.referenced.column()),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            at: at(&spanned),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        #[allow(clippy::cast_precision_loss, reason = "only shown in an error")]
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::List(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            out.push(Entry {
                at: at(&key),
                key: key.value,
                value: map.next_value()?,
            });
        }
        Ok(Value::Map(out))
    }
}

#[cfg(test)]
mod tests {
    use super::{At, Value, documents, parse};

    #[test]
    fn nodes_know_their_place() {
        let node = parse("a:\n  b: [1, 'x']\n  c: on\n", 10).unwrap();
        let Value::Map(entries) = &node.value else {
            panic!("{node:?}")
        };
        let Value::Map(inner) = &entries[0].value.value else {
            panic!("{node:?}")
        };
        assert_eq!(
            inner[0].at,
            At {
                line: 12,
                column: 3
            }
        );
        let Value::List(items) = &inner[0].value.value else {
            panic!("{node:?}")
        };
        assert_eq!(
            items[1].at,
            At {
                line: 12,
                column: 10
            }
        );
        assert!(matches!(&inner[1].value.value, Value::Text(t) if t == "on"));
    }

    #[test]
    fn files_split_into_documents() {
        let text = "# head\n---\na: 1\n--- # next\nb: |\n  --- no\n---x: 1\n---\n# nothing\n";
        let found = documents(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], (1, "---\na: 1\n"));
        assert_eq!(found[1].0, 3);
        assert!(documents("").is_empty());
    }

    #[test]
    fn syntax_errors_have_a_place_and_duplicates_are_errors() {
        let error = parse("a: 1\na: 2\n", 4).unwrap_err();
        assert_eq!(error.at.line, 6);
        assert!(error.message.contains("duplicate"), "{}", error.message);
        let error = parse("a: [1\nb: }\n", 0).unwrap_err();
        assert!(error.at.line >= 1 && !error.message.is_empty());
    }

    #[test]
    fn documents_cannot_exhaust_the_reader() {
        let deep = |depth: usize| format!("a: {}{}\n", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&deep(20), 0).is_ok());
        assert!(parse(&deep(100_000), 0).is_err());
        let blocks: String = (0..2000)
            .map(|i| format!("{}a:\n", " ".repeat(i)))
            .collect();
        let error = parse(&blocks, 0).unwrap_err();
        assert!(error.message.starts_with("too large"), "{}", error.message);
        let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, of) in "bcdefgh".chars().zip("abcdefg".chars()) {
            let list = vec![format!("*{of}"); 10].join(", ");
            laughs += &format!("{name}: &{name} [{list}]\n");
        }
        assert!(parse(&laughs, 0).is_err());
    }
}
