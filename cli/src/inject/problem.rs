//! What is wrong with a document, as its author needs to hear it.

use std::fmt;

/// What is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// What, with the path of the field.
    pub message: String,
    /// The fix.
    pub help: Option<String>,
}

impl Problem {
    /// A problem without advice.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
        }
    }

    /// The same with advice.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with a field before the message.
    #[must_use]
    pub(crate) fn at(mut self, field: impl fmt::Display) -> Self {
        self.message = format!("{field}: {}", self.message);
        self
    }
}

/// What was found in one document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Why it cannot be used.
    pub errors: Vec<Problem>,
    /// What its author should know.
    pub warnings: Vec<Problem>,
}

impl Report {
    /// Adds what makes the document unusable.
    pub(crate) fn error(&mut self, problem: Problem) {
        self.errors.push(problem);
    }

    /// Adds what the author should know.
    pub(crate) fn warn(&mut self, message: impl Into<String>) {
        self.warnings.push(Problem::new(message));
    }

    /// The same for a pod at a path within an object: fields are named from the object.
    #[must_use]
    pub(crate) fn under(mut self, path: &[&str]) -> Self {
        let prefix: String = path.iter().map(|key| format!("{key}.")).collect();
        for problem in self.errors.iter_mut().chain(&mut self.warnings) {
            if problem.message.starts_with("spec") || problem.message.starts_with("metadata") {
                problem.message.insert_str(0, &prefix);
            }
        }
        self
    }

    /// Each finding on a line of its own, for tests.
    #[cfg(test)]
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |level: &str, problem: &Problem| match &problem.help {
            Some(help) => format!("{level}: {} | {help}", problem.message),
            None => format!("{level}: {}", problem.message),
        };
        let errors = self.errors.iter().map(|problem| line("error", problem));
        let warnings = self.warnings.iter().map(|p| line("warning", p));
        errors.chain(warnings).collect()
    }
}
