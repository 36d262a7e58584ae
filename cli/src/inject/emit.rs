//! The tree back into text: the notation that was read, two spaces for each level, sequences
//! at the level of their key, as `kubectl` writes them.

use super::yaml::{Document, Entry, Node, Quotes, Style, Value};

/// Writes a document, with its comments.
pub(crate) fn document(document: &Document) -> String {
    let mut out = emit(&document.root);
    for comment in &document.tail {
        out.push_str(comment);
        out.push('\n');
    }
    out
}

/// Writes a value, with its comments.
pub(crate) fn emit(node: &Node) -> String {
    let mut out = String::new();
    match &node.value {
        Value::Map(entries, Style::Block) if !entries.is_empty() => {
            map(&mut out, entries, 0);
        }
        Value::List(items, Style::Block) if !items.is_empty() => list(&mut out, items, 0),
        _ => {
            out.push_str(&inline(node));
            out.push('\n');
        }
    }
    out
}

/// Writes a value on one line, without comments.
pub(crate) fn inline(node: &Node) -> String {
    let tag = node
        .tag
        .as_ref()
        .map_or_else(String::new, |t| format!("{t} "));
    let value = match &node.value {
        // In a flow collection these mean something else, to some readers; with them it is text.
        Value::Plain(plain) if plain.contains([',', '[', ']', '{', '}', '?', '\n']) => {
            double(plain)
        }
        Value::Plain(plain) => plain.clone(),
        Value::Text(text, quotes) => quoted(text, *quotes),
        Value::List(items, _) => {
            let items: Vec<String> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(entries, _) => {
            let entries = entries.iter().map(|entry| {
                let (key, value) = (key(entry), inline(&entry.value));
                format!("{key}:{}{value}", if value.is_empty() { "" } else { " " })
            });
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
    };
    tag + &value
}

fn map(out: &mut String, entries: &[Entry], level: usize) {
    for (at, entry) in entries.iter().enumerate() {
        // The first entry of an item stands behind the dash.
        let behind_dash = at == 0 && out.ends_with("- ");
        if !behind_dash {
            comments(out, &entry.value, level);
            indent(out, level);
        }
        out.push_str(&key(entry));
        out.push(':');
        value(out, &entry.value, level, Place::Entry);
    }
}

fn list(out: &mut String, items: &[Node], level: usize) {
    for (at, item) in items.iter().enumerate() {
        if !(at == 0 && out.ends_with("- ")) {
            comments(out, item, level);
            indent(out, level);
        }
        out.push('-');
        value(out, item, level, Place::Item);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Entry,
    Item,
}

/// What follows `key:` or `-`, to the end of its last line.
fn value(out: &mut String, node: &Node, level: usize, place: Place) {
    if let Some(tag) = &node.tag {
        out.push(' ');
        out.push_str(tag);
    }
    match &node.value {
        Value::Map(entries, Style::Block) if !entries.is_empty() => {
            if place == Place::Item && node.right.is_none() && node.tag.is_none() {
                out.push(' ');
            } else {
                end(out, node);
            }
            map(out, entries, level + 1);
        }
        Value::List(items, Style::Block) if !items.is_empty() => match place {
            Place::Item if node.right.is_none() && node.tag.is_none() => {
                out.push(' ');
                list(out, items, level + 1);
            }
            Place::Item => {
                end(out, node);
                list(out, items, level + 1);
            }
            Place::Entry => {
                end(out, node);
                list(out, items, level);
            }
        },
        Value::Text(text, Quotes::Block | Quotes::Auto) if is_literal(text) => {
            literal(out, node, text, level + 1);
        }
        Value::Plain(plain) if !plain.contains('\n') => {
            if !plain.is_empty() {
                out.push(' ');
                out.push_str(plain);
            }
            end(out, node);
        }
        Value::Plain(_) | Value::Text(..) | Value::List(..) | Value::Map(..) => {
            out.push(' ');
            let untagged = Node {
                value: node.value.clone(),
                ..Node::default()
            };
            out.push_str(&inline(&untagged));
            end(out, node);
        }
    }
}

fn end(out: &mut String, node: &Node) {
    if let Some(comment) = &node.right {
        out.push(' ');
        out.push_str(comment);
    }
    out.push('\n');
}

fn comments(out: &mut String, node: &Node, level: usize) {
    for comment in &node.above {
        indent(out, level);
        out.push_str(comment);
        out.push('\n');
    }
}

fn indent(out: &mut String, level: usize) {
    out.extend(std::iter::repeat_n("  ", level));
}

/// Whether text can be a literal block and is better off as one.
fn is_literal(text: &str) -> bool {
    let mut lines = text.trim_end_matches('\n').split('\n');
    text.trim_end_matches('\n').contains('\n')
        && lines.next().is_some_and(|line| !line.trim().is_empty())
        && text
            .chars()
            .all(|c| c == '\n' || c == '\t' || !c.is_control())
        && !text.contains(['\u{85}', '\u{2028}', '\u{2029}', '\u{feff}'])
}

fn literal(out: &mut String, node: &Node, text: &str, level: usize) {
    out.push_str(" |");
    if text.starts_with([' ', '\t']) {
        out.push('2');
    }
    let body = text.trim_end_matches('\n');
    let ends = text.len() - body.len();
    match ends {
        0 => out.push('-'),
        1 => {}
        _ => out.push('+'),
    }
    end(out, node);
    for line in body.split('\n') {
        if !line.is_empty() {
            indent(out, level);
            out.push_str(line);
        }
        out.push('\n');
    }
    out.extend(std::iter::repeat_n('\n', ends.saturating_sub(1)));
}

fn key(entry: &Entry) -> String {
    if entry.quoted {
        quoted(&entry.key, Quotes::Double)
    } else {
        entry.key.clone()
    }
}

fn quoted(text: &str, quotes: Quotes) -> String {
    let simple = !text.chars().any(char::is_control) && !text.contains(['\u{85}', '\u{feff}']);
    match quotes {
        Quotes::Auto if is_plain(text) => text.to_owned(),
        // JSON and the like: readable without escapes.
        Quotes::Auto if simple && text.contains('"') => single(text),
        Quotes::Single if simple => single(text),
        _ => double(text),
    }
}

fn single(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Whether every version of YAML reads it as text when it stands without quotes, also in a
/// flow collection.
fn is_plain(text: &str) -> bool {
    let word = text.to_ascii_lowercase();
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_./:@=$()".contains(c))
        && !text.ends_with(':')
        && !matches!(
            word.as_str(),
            "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" | "null"
        )
}

fn double(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::super::yaml::{list, map, parse, text};
    use super::*;

    fn again(source: &str) -> String {
        document(&parse(source).unwrap().unwrap())
    }

    #[test]
    fn comes_out_as_it_went_in() {
        for source in [
            "a: 1\nb: 0644\nc: yes\nd: \"8080\"\ne: 'it''s'\nf:\ng: ~\n",
            "a:\n  b:\n  - x\n  - y: 1\n    z:\n    - 2\n  - - 3\n    - 4\n",
            "a: {b: 1, c: [x, \"y\"]}\nd: []\ne: {}\n",
            "a: |\n  one\n\n    two\nb: |-\n  x\n  y\nc: |+\n  x\n  y\n\nd: |2\n   x\n  y\n",
            "a: !!binary aGk=\nb: !local\n  c: 1\n",
            "# top\na: 1 # right\n# above b\nb: # of b\n  # above c\n  c: [1, 2] # of c\n  # above d\n  d: |\n    # text\n    x\n# tail\n",
            "a:\n# first\n- x: 1 # of x\n  # above y\n  y: 2\n# second\n- z\n",
            "\"quoted key\": 1\n",
            "a: http://x:80/?q=1#f\nb: a,b\nc: x {y}\n",
            "- 1\n- a: 2\n",
        ] {
            assert_eq!(again(source), source);
        }
    }

    #[test]
    fn other_notations_settle_at_once() {
        for (source, expect) in [
            ("a:\n    - x\n", "a:\n- x\n"),
            ("a: >\n  x\n  y\n", "a: \"x y\\n\"\n"),
            ("a: x\n  y\n", "a: x y\n"),
            ("a: [x, # of x\n  y]\n", "# of x\na: [x, y]\n"),
            (
                "{\"a\": \"b\", \"c\": null}\n",
                "{\"a\": \"b\", \"c\": null}\n",
            ),
            ("a: \"x\\u0007\"\n", "a: \"x\\u0007\"\n"),
            ("a: 'x\n\n  y'\n", "a: \"x\\ny\"\n"),
        ] {
            let once = again(source);
            assert_eq!(once, expect);
            assert_eq!(again(&once), once);
        }
    }

    #[test]
    fn own_text_is_quoted_where_it_must_be() {
        for (value, expect) in [
            ("web", "web"),
            ("8080", "\"8080\""),
            ("true", "\"true\""),
            ("No", "\"No\""),
            ("", "\"\""),
            ("a: b", "\"a: b\""),
            ("a,b", "\"a,b\""),
            ("$(A)/$(B)", "\"$(A)/$(B)\""),
            ("{\"a\": 1}", "'{\"a\": 1}'"),
            ("http:8080", "http:8080"),
            ("x:", "\"x:\""),
            ("1e3", "\"1e3\""),
            ("~", "\"~\""),
        ] {
            assert_eq!(quoted(value, Quotes::Auto), expect);
        }
        let node = map([("a", list([text("x\ny\n"), text("z")]))]);
        assert_eq!(emit(&node), "a:\n- |\n  x\n  y\n- z\n");
    }
}
