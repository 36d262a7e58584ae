//! What the next answer on an upstream connection is for: written by who sends the request,
//! read by who judges the answer.

use std::sync::atomic::{AtomicU8, Ordering};

/// What a request asks for, as far as the end of its answer depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Asked {
    /// An answer with a body.
    Plain = 1,
    /// An answer without one: HEAD.
    Head,
    /// A switch of protocols; an answer with a body is allowed.
    Upgrade,
    /// A tunnel; an answer with a body if it is not 2xx.
    Connect,
}

/// Shared by the two tasks of one connection; an atomic. One request at a time.
#[derive(Debug, Default)]
pub struct Expected(AtomicU8);

impl Expected {
    /// Says what the next answer is for; before the first byte of the request is sent.
    pub fn send(&self, what: Asked) {
        self.0.store(what as u8, Ordering::Release);
    }

    /// What the answer is for that begins now; `None` if nobody waits for one.
    #[must_use]
    pub fn asked(&self) -> Option<Asked> {
        match self.0.load(Ordering::Acquire) {
            1 => Some(Asked::Plain),
            2 => Some(Asked::Head),
            3 => Some(Asked::Upgrade),
            4 => Some(Asked::Connect),
            _ => None,
        }
    }

    /// The answer has come; the head that is not informational.
    pub(super) fn answered(&self) {
        self.0.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::{Asked, Expected};

    #[test]
    fn what_is_sent_is_asked_until_it_is_answered() {
        let expected = Expected::default();
        assert_eq!(expected.asked(), None);
        for what in [Asked::Plain, Asked::Head, Asked::Upgrade, Asked::Connect] {
            expected.send(what);
            assert_eq!(expected.asked(), Some(what));
            expected.answered();
            assert_eq!(expected.asked(), None);
        }
    }
}
