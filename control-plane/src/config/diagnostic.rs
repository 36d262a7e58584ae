//! What is wrong with a document, where, and what to do about it.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The document is not in force as written.
    Error,
    /// The document is in force, but probably not what was meant.
    Warning,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One finding. Its text form is one line `level: file:line:column: object: field: message`
/// and, indented, how to fix it and what stays in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub level: Level,
    /// The file, relative to the configuration directory.
    pub file: String,
    /// The line, from 1; 0 when the finding is about the whole file.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// The kind of the document; empty if it could not be read.
    pub kind: String,
    /// `namespace/name` of the document; empty if it could not be read.
    pub name: String,
    /// The path of the field (`spec.rules[0].matches[0].path.value`); may be empty.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
    /// What is in force instead of the document as written, if anything.
    pub in_force: Option<&'static str>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.level)?;
        // What is found in no document has no place.
        if !self.file.is_empty() {
            write!(f, ": {}", self.file)?;
        }
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.kind.is_empty() {
            write!(f, ": {}", self.kind)?;
        }
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)?;
        if !self.help.is_empty() {
            write!(f, "\n  help: {}", self.help)?;
        }
        if let Some(in_force) = self.in_force {
            write!(f, "\n  in force: {in_force}")?;
        }
        Ok(())
    }
}
