//! HOT. The two directions of an HTTP/1 connection as pure machines over bytes: what may pass
//! now, what waits for its line to be complete, what is refused. No clock, no I/O; memory is
//! taken for a refused request line only.

use std::sync::Arc;

use super::{
    chunks::{Chunks, Progress},
    head::{Framing, RequestHead, ResponseHead, Rule, Then},
};
pub use super::{
    expected::{Asked, Expected},
    head::{HeadLimits, Line, Refusal},
};

/// What becomes of the bytes that were not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There are none.
    More,
    /// They begin a head or a line that is not complete; to be given again with what follows.
    Partial,
    /// They wait for [`Requests::resume`], if there are any: the request asked for a switch of
    /// protocols.
    Held,
    /// They begin a head that never passes, and nothing after it.
    Refused(Refusal),
    /// The body or the answer that was passing breaks off here.
    Broken(Refusal),
}

/// How a connection goes on that asked for a switch of protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// With another protocol: bytes pass as they are.
    Switched,
    /// With the next request.
    Http,
}

/// A body on its way.
#[derive(Debug)]
enum Body {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Body {
    fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked(fields) => Self::Chunked(Chunks::new(fields)),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// As [`Chunks::read`].
    fn read(
        &mut self,
        input: &[u8],
        limits: &HeadLimits,
    ) -> Result<(usize, Progress), (usize, Rule)> {
        match self {
            Self::Chunked(chunks) => chunks.read(input, limits),
            Self::UntilClose => Ok((input.len(), Progress::More)),
            Self::Length(left) => {
                let here = input
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= here as u64;
                match *left {
                    0 => Ok((here, Progress::End)),
                    _ => Ok((here, Progress::More)),
                }
            }
        }
    }
}

#[derive(Debug)]
enum State {
    Head,
    Body(Body),
    Held,
    Opaque,
    Refused(Refusal),
    Broken(Refusal),
}

/// The requests of one HTTP/1 connection.
#[derive(Debug)]
pub struct Requests {
    limits: HeadLimits,
    state: State,
    head: RequestHead,
    /// Whether the request whose body passes asked for a switch of protocols.
    switch: bool,
    heads: u64,
    refused: Option<Line>,
}

impl Requests {
    /// At the start of a connection.
    #[must_use]
    pub fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            state: State::Head,
            head: RequestHead::default(),
            switch: false,
            heads: 0,
            refused: None,
        }
    }

    /// Judges `input`, the next bytes of the stream. The first so many of them may be passed on
    /// now. Those that were not passed must be given again, in front of what follows.
    pub fn read(&mut self, input: &[u8]) -> (usize, Step) {
        let mut passed = 0;
        loop {
            let rest = &input[passed..];
            match &mut self.state {
                State::Head if rest.is_empty() => return (passed, Step::More),
                State::Head => match self.head.read(rest, &self.limits) {
                    Ok(None) => return (passed, Step::Partial),
                    Ok(Some(request)) => {
                        self.head = RequestHead::default();
                        self.heads += 1;
                        passed += request.len;
                        self.switch = request.switch;
                        self.state = State::Body(Body::new(request.body));
                    }
                    Err(rule) => {
                        self.heads += 1;
                        self.refused = self.head.line(rest);
                        self.state = State::Refused(rule.of_the_client());
                    }
                },
                State::Body(body) => match body.read(rest, &self.limits) {
                    Ok((more, Progress::More)) => return (passed + more, Step::More),
                    Ok((more, Progress::Partial)) => return (passed + more, Step::Partial),
                    Ok((more, Progress::End)) => {
                        passed += more;
                        self.state = if self.switch {
                            State::Held
                        } else {
                            State::Head
                        };
                    }
                    Err((more, rule)) => {
                        passed += more;
                        self.state = State::Broken(rule.of_the_client());
                    }
                },
                State::Held => return (passed, Step::Held),
                State::Opaque => return (input.len(), Step::More),
                State::Refused(refusal) => return (passed, Step::Refused(*refusal)),
                State::Broken(refusal) => return (passed, Step::Broken(*refusal)),
            }
        }
    }

    /// Complete heads so far; one that was refused counts.
    #[must_use]
    pub const fn heads(&self) -> u64 {
        self.heads
    }

    /// Ends [`Step::Held`]; without effect at any other time.
    pub fn resume(&mut self, how: Resume) {
        if matches!(self.state, State::Held) {
            self.state = match how {
                Resume::Switched => State::Opaque,
                Resume::Http => State::Head,
            };
        }
    }

    /// The request line of a refused head, if that was well-formed.
    #[must_use]
    pub const fn line(&self) -> Option<&Line> {
        self.refused.as_ref()
    }

    /// What is passed on in place of a refused head: its request line, as far as there is one,
    /// for the log, and nothing that could be acted upon.
    #[must_use]
    pub fn marker(&self) -> Vec<u8> {
        let line = self.refused.as_ref();
        // CONNECT would be a request for a tunnel, and others have no path.
        let line = line.filter(|line| line.target.starts_with('/') && &*line.method != "CONNECT");
        let (method, target) = line.map_or(("-", "/"), |line| (&line.method, &line.target));
        format!("{method} {target} HTTP/1.1\r\nconnection: close\r\n\r\n").into_bytes()
    }

    /// Whether what comes next belongs to a request that was passed on already.
    #[must_use]
    pub const fn is_within(&self) -> bool {
        matches!(self.state, State::Body(_) | State::Held | State::Broken(_))
    }

    /// Whether a head has begun and is not complete.
    #[must_use]
    pub fn waiting(&self) -> bool {
        matches!(self.state, State::Head) && self.head.begun()
    }
}

/// The answers of one HTTP/1 connection to an upstream; one request at a time.
#[derive(Debug)]
pub struct Responses {
    limits: HeadLimits,
    expected: Arc<Expected>,
    state: State,
    head: ResponseHead,
    /// Informational answers to this request so far.
    informational: u32,
}

impl Responses {
    /// At the start of a connection.
    #[must_use]
    pub fn new(limits: HeadLimits, expected: Arc<Expected>) -> Self {
        Self {
            limits,
            expected,
            state: State::Head,
            head: ResponseHead::default(),
            informational: 0,
        }
    }

    /// What the next answer is for.
    pub(super) fn expected(&self) -> &Expected {
        &self.expected
    }

    /// As [`Requests::read`]; never [`Step::Held`] or [`Step::Refused`].
    pub fn read(&mut self, input: &[u8]) -> (usize, Step) {
        let mut passed = 0;
        loop {
            let rest = &input[passed..];
            match &mut self.state {
                State::Head if rest.is_empty() => return (passed, Step::More),
                State::Head => match self.head(rest) {
                    Ok(None) => return (passed, Step::Partial),
                    Ok(Some(len)) => passed += len,
                    Err(rule) => self.state = State::Broken(rule.of_the_server()),
                },
                State::Body(body) => match body.read(rest, &self.limits) {
                    Ok((more, Progress::More)) => return (passed + more, Step::More),
                    Ok((more, Progress::Partial)) => return (passed + more, Step::Partial),
                    Ok((more, Progress::End)) => {
                        passed += more;
                        self.state = State::Head;
                    }
                    Err((more, rule)) => {
                        passed += more;
                        self.state = State::Broken(rule.of_the_server());
                    }
                },
                State::Held | State::Opaque => return (input.len(), Step::More),
                State::Refused(refusal) | State::Broken(refusal) => {
                    return (passed, Step::Broken(*refusal));
                }
            }
        }
    }

    /// Reads a head; its bytes when it is complete.
    fn head(&mut self, rest: &[u8]) -> Result<Option<usize>, Rule> {
        let asked = self.expected.asked().ok_or(Rule::UnaskedAnswer)?;
        self.expected.begin();
        let Some(response) = self.head.read(rest, asked, &self.limits)? else {
            return Ok(None);
        };
        self.head = ResponseHead::default();
        match response.then {
            Then::Head => {
                self.informational += 1;
                if self.informational > self.limits.informational {
                    return Err(Rule::TooManyInformational);
                }
                return Ok(Some(response.len));
            }
            Then::Body(framing) => self.state = State::Body(Body::new(framing)),
            Then::Switched => self.state = State::Opaque,
        }
        self.informational = 0;
        self.expected.answered();
        Ok(Some(response.len))
    }

    /// What the end of the stream means: nothing was cut off, or it was.
    ///
    /// # Errors
    /// If an answer has begun and is not whole.
    pub const fn end(&self) -> Result<(), Refusal> {
        match &self.state {
            State::Head if self.head.begun() => Err(Rule::CutShort.of_the_server()),
            State::Body(Body::Length(_) | Body::Chunked(_)) => Err(Rule::CutShort.of_the_server()),
            State::Refused(refusal) | State::Broken(refusal) => Err(*refusal),
            State::Head | State::Body(Body::UntilClose) | State::Held | State::Opaque => Ok(()),
        }
    }
}
