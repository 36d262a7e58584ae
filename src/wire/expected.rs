//! What the next answer on an upstream connection is for: written by who sends the request,
//! read by who judges the answer.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
    time::Duration,
};

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
pub struct Expected {
    asked: AtomicU8,
    /// The connection was idle for long: whether it still lives is to be looked at before the
    /// first byte.
    look: AtomicBool,
    /// Bytes of the request were sent.
    touched: AtomicBool,
    /// Bytes of an answer have come, be it an informational one.
    begun: AtomicBool,
}

impl Expected {
    /// A connection that was idle for this long is looked at before it is used again: a system
    /// call, which those in constant use need not.
    pub const IDLE: Duration = Duration::from_millis(100);

    /// Says what the next answer is for, and how long the connection was idle; before the first
    /// byte of the request is sent.
    pub fn send(&self, what: Asked, idle: Duration) {
        self.look.store(idle >= Self::IDLE, Ordering::Relaxed);
        self.touched.store(false, Ordering::Relaxed);
        self.begun.store(false, Ordering::Relaxed);
        self.asked.store(what as u8, Ordering::Release);
    }

    /// Bytes of the request are sent now. True: the connection is to be looked at before.
    pub(super) fn touch(&self) -> bool {
        self.touched.store(true, Ordering::Relaxed);
        self.look.load(Ordering::Relaxed) && self.look.swap(false, Ordering::Relaxed)
    }

    /// The connection was dead before the first byte.
    pub(super) fn untouched(&self) {
        self.touched.store(false, Ordering::Relaxed);
    }

    /// Whether not one byte of the request was sent.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        !self.touched.load(Ordering::Relaxed)
    }

    /// Bytes of an answer have come.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Whether a byte of an answer has come: the server has taken the request up.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// What the answer is for that begins now; `None` if nobody waits for one.
    #[must_use]
    pub fn asked(&self) -> Option<Asked> {
        match self.asked.load(Ordering::Acquire) {
            1 => Some(Asked::Plain),
            2 => Some(Asked::Head),
            3 => Some(Asked::Upgrade),
            4 => Some(Asked::Connect),
            _ => None,
        }
    }

    /// The answer has come; the head that is not informational.
    pub(super) fn answered(&self) {
        self.asked.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Asked, Expected};

    #[test]
    fn what_is_sent_is_asked_until_it_is_answered() {
        let expected = Expected::default();
        assert_eq!(expected.asked(), None);
        for what in [Asked::Plain, Asked::Head, Asked::Upgrade, Asked::Connect] {
            expected.send(what, Duration::ZERO);
            assert!(expected.is_untouched() && !expected.touch() && !expected.is_untouched());
            assert_eq!(expected.asked(), Some(what));
            assert!(!expected.is_begun());
            expected.begin();
            assert!(expected.is_begun());
            expected.answered();
            assert_eq!(expected.asked(), None);
        }
    }

    #[test]
    fn long_idle_connections_are_looked_at_once() {
        let expected = Expected::default();
        expected.send(Asked::Plain, Expected::IDLE);
        assert!(expected.touch() && !expected.touch());
        expected.untouched();
        assert!(expected.is_untouched());
    }
}
