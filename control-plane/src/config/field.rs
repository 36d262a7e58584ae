//! Reading a located YAML tree field by field: every access records its problems with
//! place and path and goes on, so that one pass reports all of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::diagnostic::Level;
use super::yaml::{At, Entry, Node, Value};

/// A finding in one document, before it knows its file.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) level: Level,
    pub(crate) at: At,
    pub(crate) field: String,
    pub(crate) message: String,
    pub(crate) help: String,
}

/// The findings of one document: at most [`MAX_PROBLEMS`] and one that says that there are more.
#[derive(Debug, Default)]
pub(crate) struct Problems(RefCell<Vec<Problem>>);

/// What one document may report: nobody reads more, and each costs memory.
const MAX_PROBLEMS: usize = 100;
/// The longest text of a finding, in bytes: it may quote a value.
const MAX_TEXT: usize = 500;

impl Problems {
    fn push(&self, mut problem: Problem) {
        let mut problems = self.0.borrow_mut();
        if problems.len() > MAX_PROBLEMS {
            return;
        }
        if problems.len() == MAX_PROBLEMS {
            // Whatever the others are: an error must not be lost.
            problem.level = Level::Error;
            problem.message = "there are more problems than are shown".to_owned();
            problem.help = "mend those before it first".to_owned();
        }
        for text in [&mut problem.field, &mut problem.message, &mut problem.help] {
            clip(text);
        }
        problems.push(problem);
    }

    pub(crate) fn into_inner(self) -> Vec<Problem> {
        let mut problems = self.0.into_inner();
        problems.sort_by_key(|problem| problem.at);
        problems
    }
}

/// Shortens a text that quotes what is in the configuration.
pub(super) fn clip(text: &mut String) {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
}

/// One value in the tree, with the path that leads to it.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    node: &'a Node,
    path: String,
    problems: &'a Problems,
}

impl<'a> Field<'a> {
    pub(crate) fn root(node: &'a Node, problems: &'a Problems) -> Self {
        Self {
            node,
            path: String::new(),
            problems,
        }
    }

    pub(crate) fn at(&self) -> At {
        self.node.at
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Records an error: the document is not used.
    pub(crate) fn error(&self, message: impl Into<String>, help: impl Into<String>) {
        self.report(Level::Error, message.into(), help.into());
    }

    /// Records a warning: the document is used.
    pub(crate) fn warning(&self, message: impl Into<String>, help: impl Into<String>) {
        self.report(Level::Warning, message.into(), help.into());
    }

    fn report(&self, level: Level, message: String, help: String) {
        self.problems.push(Problem {
            level,
            at: self.node.at,
            field: self.path.clone(),
            message,
            help,
        });
    }

    pub(crate) fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                self.wrong_type("a string", "write the value in quotes");
                None
            }
            _ => {
                self.wrong_type("a string", "");
                None
            }
        }
    }

    pub(crate) fn integer(&self, range: RangeInclusive<i64>) -> Option<i64> {
        match &self.node.value {
            Value::Int(number) if range.contains(number) => Some(*number),
            Value::Int(number) => {
                let (low, high) = (range.start(), range.end());
                self.error(
                    format!("{number} is out of range"),
                    format!("the value must be from {low} to {high}"),
                );
                None
            }
            Value::Text(text) if text.parse::<i64>().is_ok() => {
                self.wrong_type("a whole number", "remove the quotes");
                None
            }
            _ => {
                self.wrong_type("a whole number", "");
                None
            }
        }
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.integer(1..=65535).and_then(|n| u16::try_from(n).ok())
    }

    /// The number if the value is one at all: for fields that take a number or a name.
    pub(crate) fn is_integer(&self) -> bool {
        matches!(self.node.value, Value::Int(_))
    }

    /// One of a closed set of words.
    pub(crate) fn choice<T: Clone>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(value.clone());
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let help = match closest(text, &words) {
            Some(word) => format!("did you mean `{word}`? {}", one_of(&words)),
            None => one_of(&words),
        };
        self.error(format!("`{text}` is not a known value"), help);
        None
    }

    pub(crate) fn object(&self) -> Option<Object<'a>> {
        match &self.node.value {
            Value::Map(entries) => Some(Object {
                field: self.clone(),
                entries,
                known: RefCell::default(),
            }),
            _ => {
                self.wrong_type("a mapping", "");
                None
            }
        }
    }

    /// The items of a list of at most `max`.
    pub(crate) fn items(&self, max: usize) -> Vec<Self> {
        let Value::List(items) = &self.node.value else {
            self.wrong_type("a list", "start each item with `- `");
            return Vec::new();
        };
        if items.len() > max {
            let message = format!("{} items, at most {max} are allowed", items.len());
            self.error(message, "split the document");
            return Vec::new();
        }
        items
            .iter()
            .enumerate()
            .map(|(i, node)| Self {
                node,
                path: format!("{}[{i}]", self.path),
                problems: self.problems,
            })
            .collect()
    }

    /// A mapping of strings to strings: labels, selectors.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let Value::Map(entries) = &self.node.value else {
            self.wrong_type("a mapping of strings", "");
            return BTreeMap::new();
        };
        entries
            .iter()
            .filter_map(|entry| {
                let value = self.child(&entry.key, &entry.value).text()?;
                Some((entry.key.clone(), value.to_owned()))
            })
            .collect()
    }

    fn child(&self, key: &str, node: &'a Node) -> Self {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Self {
            node,
            path,
            problems: self.problems,
        }
    }

    fn wrong_type(&self, expected: &str, help: &str) {
        let found = match &self.node.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::Int(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(value) => format!("the text {value:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        };
        self.error(format!("expected {expected}, found {found}"), help);
    }
}

/// A mapping that is being read. Ask for the fields that exist, then [`Object::finish`].
pub(crate) struct Object<'a> {
    field: Field<'a>,
    entries: &'a [Entry],
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Object<'a> {
    /// The field, if it is there; `null` is absent, as in Kubernetes.
    pub(crate) fn optional(&self, name: &'static str) -> Option<Field<'a>> {
        self.known.borrow_mut().push(name);
        self.entries
            .iter()
            .find(|entry| entry.key == name && !matches!(entry.value.value, Value::Null))
            .map(|entry| self.field.child(name, &entry.value))
    }

    /// The field; its absence is an error.
    pub(crate) fn required(&self, name: &'static str) -> Option<Field<'a>> {
        let field = self.optional(name);
        if field.is_none() {
            self.field
                .error(format!("required field `{name}` is missing"), "");
        }
        field
    }

    /// Fields that exist elsewhere and mean nothing to a mesh.
    pub(crate) fn harmless(&self, names: &[&'static str]) {
        self.known.borrow_mut().extend(names);
    }

    /// Fields that are valid but that Weft cannot do yet: present means an error.
    pub(crate) fn unsupported(&self, names: &[&'static str]) {
        for name in names {
            if let Some(field) = self.optional(name) {
                field.error(
                    format!("`{name}` is not supported yet"),
                    "remove the field; nothing is silently ignored",
                );
            }
        }
    }

    /// Reports every field that nobody asked for.
    pub(crate) fn finish(self) {
        let known = self.known.into_inner();
        for entry in self.entries {
            if known.contains(&entry.key.as_str()) {
                continue;
            }
            let help = match closest(&entry.key, &known) {
                Some(name) => format!("did you mean `{name}`?"),
                None => one_of(&known),
            };
            self.field.problems.push(Problem {
                level: Level::Error,
                at: entry.at,
                field: self.field.child(&entry.key, &entry.value).path,
                message: format!("unknown field `{}`", entry.key),
                help,
            });
        }
    }

    pub(crate) fn error(&self, message: impl Into<String>, help: impl Into<String>) {
        self.field.error(message, help);
    }
}

fn one_of(names: &[&str]) -> String {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.dedup();
    format!("one of: {}", names.join(", "))
}

/// The candidate that is a plausible misspelling of `word`.
pub(crate) fn closest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let allowed = |candidate: &str| candidate.len().div_ceil(3);
    let lower = word.to_lowercase();
    let length = lower.chars().count();
    candidates
        .iter()
        // A difference in length is a distance already, and words may be of any length.
        .filter(|candidate| length.abs_diff(candidate.chars().count()) <= allowed(candidate))
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), *candidate))
        .filter(|(distance, candidate)| *distance <= allowed(candidate))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance (Levenshtein) in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::{closest, distance};

    #[test]
    fn edit_distance() {
        for (a, b, expect) in [
            ("", "", 0),
            ("matchs", "matches", 1),
            ("kitten", "sitting", 3),
            ("a", "", 1),
        ] {
            assert_eq!(distance(a, b), expect, "{a} {b}");
        }
    }

    #[test]
    fn suggestions_are_plausible() {
        let names = ["matches", "filters", "backendRefs", "timeouts", "name"];
        for (word, expect) in [
            ("matchs", Some("matches")),
            ("backendrefs", Some("backendRefs")),
            ("timeout", Some("timeouts")),
            ("retryPolicy", None),
        ] {
            assert_eq!(closest(word, &names), expect, "{word}");
        }
    }
}
