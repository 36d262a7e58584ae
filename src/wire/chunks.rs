//! HOT. A chunked body (RFC 9112 section 7.1), followed as it passes: sizes, extensions, the
//! CRLF after each chunk, trailers. Pure, like [`super::head`].

use super::{
    head::{HeadLimits, Lines, Rule, field},
    text::is_text,
};

/// Bytes of the extensions of one body. hyper counts the same.
const ALL_EXTENSIONS: usize = 16 * 1024;
/// Digits of a size: enough for all of 2^63.
const SIZE_DIGITS: usize = 16;

/// How far a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All of the input belongs to it, and more follows.
    More,
    /// What is left of the input begins a line that is not complete.
    Partial,
    /// It ends here.
    End,
}

/// Follows one chunked body.
#[derive(Debug)]
pub struct Chunks {
    state: State,
    lines: Lines,
    /// Bytes of extensions so far.
    extensions: usize,
    /// Bytes of trailers so far.
    trailers: usize,
    /// Fields of the message so far.
    fields: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

impl Chunks {
    /// The body of a message whose head has this many fields.
    #[must_use]
    pub fn new(fields: usize) -> Self {
        Self {
            state: State::Size,
            lines: Lines::default(),
            extensions: 0,
            trailers: 0,
            fields,
        }
    }

    /// Judges the next bytes: the first so many belong to the body and may pass. What did not
    /// pass is to be given again, in front of what follows.
    ///
    /// # Errors
    /// With what may pass still, and the rule that is broken behind it.
    pub fn read(
        &mut self,
        input: &[u8],
        limits: &HeadLimits,
    ) -> Result<(usize, Progress), (usize, Rule)> {
        let mut passed = 0;
        while passed < input.len() {
            let rest = &input[passed..];
            match self.step(rest, limits).map_err(|rule| (passed, rule))? {
                (_, Progress::Partial) => return Ok((passed, Progress::Partial)),
                (more, Progress::End) => return Ok((passed + more, Progress::End)),
                (more, Progress::More) => passed += more,
            }
        }
        Ok((passed, Progress::More))
    }

    /// One line, or the bytes of one chunk; `rest` is not empty.
    fn step(&mut self, rest: &[u8], limits: &HeadLimits) -> Result<(usize, Progress), Rule> {
        match self.state {
            State::Size => {
                let longest = SIZE_DIGITS + limits.extension + 2;
                let Some(line) = self.lines.next(rest, longest, Rule::ChunkExtension)? else {
                    return Ok((0, Progress::Partial));
                };
                let (size, extension) = size(line)?;
                self.extensions += extension;
                if extension > limits.extension || self.extensions > ALL_EXTENSIONS {
                    return Err(Rule::ChunkExtension);
                }
                self.state = match size {
                    0 => State::Trailers,
                    size => State::Data(size),
                };
                Ok((self.line_passed(), Progress::More))
            }
            State::Data(left) => {
                let here = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.state = match left - here as u64 {
                    0 => State::DataEnd,
                    left => State::Data(left),
                };
                Ok((here, Progress::More))
            }
            State::DataEnd => match rest {
                [b'\r'] => Ok((0, Progress::Partial)),
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok((2, Progress::More))
                }
                _ => Err(Rule::ChunkEnd),
            },
            State::Trailers => {
                let left = limits.trailer - self.trailers;
                let Some(line) = self.lines.next(rest, left, Rule::TrailersTooLarge)? else {
                    return Ok((0, Progress::Partial));
                };
                if line.is_empty() {
                    return Ok((self.line_passed(), Progress::End));
                }
                field(line)?;
                self.fields += 1;
                if self.fields > limits.fields {
                    return Err(Rule::TooManyFields);
                }
                let passed = self.line_passed();
                self.trailers += passed;
                Ok((passed, Progress::More))
            }
        }
    }

    /// The bytes of the line that was read; the next one begins a new input.
    fn line_passed(&mut self) -> usize {
        std::mem::take(&mut self.lines).passed()
    }
}

/// The size that a chunk's line says, and the bytes of its extension.
fn size(line: &[u8]) -> Result<(u64, usize), Rule> {
    let mut size = 0_u64;
    let mut digits = 0;
    for byte in line {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b';' => break,
            _ => return Err(Rule::ChunkSize),
        };
        if digits == SIZE_DIGITS {
            return Err(Rule::ChunkSize);
        }
        size = size << 4 | u64::from(digit);
        digits += 1;
    }
    if digits == 0 || size >> 63 != 0 {
        return Err(Rule::ChunkSize);
    }
    let extension = &line[digits..];
    if !is_text(extension) {
        return Err(Rule::ChunkExtension);
    }
    Ok((size, extension.len()))
}
