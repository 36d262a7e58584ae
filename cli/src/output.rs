//! What the command says: data goes to stdout, words go to stderr, and every failure carries
//! the exit code that scripts rely on.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

/// The version of every JSON document that this command prints.
pub(crate) const API_VERSION: &str = "cli.weft.dev/v1";

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One indented JSON document.
    Json,
    /// One JSON document per line.
    Jsonl,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Why the command did not end well; the number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something is wrong with what was asked for or looked at.
    Problems = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The control plane cannot be reached.
    Unreachable = 3,
    /// The operating system or the control plane refused.
    NotPermitted = 4,
    /// What was waited for did not happen in time.
    TimedOut = 5,
}

/// A failure as its reader needs it: what happened and why, and what to do.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened and why, without a leading "error:".
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Failure {
    /// A failure without advice.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            help: None,
        }
    }

    /// A failed file or socket operation: "not permitted" when the system says so, a problem
    /// otherwise.
    pub(crate) fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::NotPermitted,
            io::ErrorKind::TimedOut => Exit::TimedOut,
            _ => Exit::Problems,
        };
        Self::new(exit, format!("{what}: {error}"))
    }

    /// The same failure with advice.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

/// Where a command prints to, decided once from the flags and the terminal.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    /// How data is printed.
    pub format: Format,
    /// Whether stdout may be redrawn: it is a terminal and the format is for people.
    pub live: bool,
    /// How data is coloured.
    pub paint: Paint,
    /// How words are coloured.
    pub words_paint: Paint,
    words: Words,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// `-q`: errors only.
    Quiet,
    /// Progress, but no advice: nobody may be there to take it.
    Plain,
    /// Progress and "next" lines.
    Full,
}

impl Output {
    /// Decides from the flags, the environment (`NO_COLOR`) and what stdout and stderr are.
    pub(crate) fn new(format: Format, color: Color, quiet: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let words = match (quiet, err) {
            (true, _) => Words::Quiet,
            (false, false) => Words::Plain,
            (false, true) => Words::Full,
        };
        Self {
            format,
            live: out && format == Format::Table,
            paint: Paint::new(color, no_color, out),
            words,
            words_paint: Paint::new(color, no_color, err),
        }
    }

    /// Prints one line of words.
    pub(crate) fn say(&self, line: impl fmt::Display) {
        if self.words != Words::Quiet {
            // Nobody can be told that stderr is gone.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// Prints one line about something that is done.
    pub(crate) fn done(&self, what: &str, detail: impl fmt::Display) {
        let tick = self.words_paint.good("✓");
        self.say(format_args!(" {tick} {what:<15} {detail}"));
    }

    /// Prints what may be done next, for a person at a terminal.
    pub(crate) fn next(&self, lines: &[String]) {
        if self.words == Words::Full {
            for line in lines {
                self.say(format_args!("next: {line}"));
            }
        }
    }

    /// Prints data as it is. Fails when stdout is closed.
    pub(crate) fn data(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Prints one JSON document: on one line for `jsonl`, indented otherwise. Fails when stdout
    /// is closed.
    pub(crate) fn json(&self, document: &impl Serialize) -> io::Result<()> {
        let text = match self.format {
            Format::Jsonl => serde_json::to_string(document),
            Format::Json | Format::Table => serde_json::to_string_pretty(document),
        };
        self.data(&format!("{}\n", text.map_err(io::Error::other)?))
    }
}

/// Colours, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    /// ANSI colours.
    Ansi,
    /// Plain text.
    Plain,
}

impl Paint {
    const fn new(color: Color, no_color: bool, terminal: bool) -> Self {
        match color {
            Color::Always => Self::Ansi,
            Color::Auto if terminal && !no_color => Self::Ansi,
            Color::Auto | Color::Never => Self::Plain,
        }
    }

    /// Text about something that is as it should be.
    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Text about something that fails.
    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// Headings.
    pub(crate) fn heading(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Ansi => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Plain => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_follow_flag_then_environment_then_terminal() {
        for (color, no_color, terminal, expect) in [
            (Color::Auto, false, true, Paint::Ansi),
            (Color::Auto, true, true, Paint::Plain),
            (Color::Auto, false, false, Paint::Plain),
            (Color::Always, true, false, Paint::Ansi),
            (Color::Never, false, true, Paint::Plain),
        ] {
            assert_eq!(
                Paint::new(color, no_color, terminal),
                expect,
                "{color:?} {no_color} {terminal}"
            );
        }
    }

    #[test]
    fn failures_name_the_help_and_map_io_errors() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let failure = Failure::io("/x", &denied).help("become root");
        assert_eq!(failure.exit, Exit::NotPermitted);
        assert_eq!(
            failure.to_string(),
            "error: /x: permission denied\n  help: become root"
        );
        assert_eq!(
            Failure::io("/x", &io::Error::from(io::ErrorKind::NotFound)).exit,
            Exit::Problems
        );
    }
}
