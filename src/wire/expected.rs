//! What the next answer on an upstream connection is for: written by who sends the request,
//! read by who judges the answer.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use memchr::memmem::Finder;
use parking_lot::Mutex;

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

/// A longer head does not stay in memory when its request is done.
const MAX_KEPT: usize = 4096;

/// What ends a head.
static END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\r\n\r\n"));

/// Shared by the two tasks of one connection, and never contended. One request at a time.
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
    /// The head is to be kept as it is written, for another try.
    keep: AtomicBool,
    /// The head; empty if it was not written yet, or not kept.
    head: Mutex<Vec<u8>>,
}

impl Expected {
    /// A connection that was idle for this long is looked at before it is used again: a system
    /// call, which those in constant use need not.
    pub const IDLE: Duration = Duration::from_millis(100);

    /// Says what the next answer is for, how long the connection was idle, and whether the head
    /// of the request is to be kept for [`Self::take_head`]; before its first byte is sent.
    pub fn send(&self, what: Asked, idle: Duration, keep: bool) {
        let mut head = self.head.lock();
        // That of the last request is never taken for this one's.
        head.clear();
        head.shrink_to(MAX_KEPT);
        self.keep.store(keep, Ordering::Relaxed);
        self.look.store(idle >= Self::IDLE, Ordering::Relaxed);
        self.touched.store(false, Ordering::Relaxed);
        self.begun.store(false, Ordering::Relaxed);
        self.asked.store(what as u8, Ordering::Release);
    }

    /// Looks at what hyper writes, which is a head as a whole and perhaps more: keeps the head if
    /// it is wanted. Nothing is taken apart or parsed unless there is another try.
    pub(super) fn writing(&self, bytes: &[u8]) {
        if !self.keep.load(Ordering::Relaxed) {
            return;
        }
        self.keep.store(false, Ordering::Relaxed);
        if let Some(end) = END.find(bytes) {
            self.head.lock().extend_from_slice(&bytes[..end + 4]);
        }
    }

    /// The head of the request as it was written, with the empty line; empty if it was not kept
    /// or never written.
    #[must_use]
    pub fn take_head(&self) -> Vec<u8> {
        std::mem::take(&mut *self.head.lock())
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
            expected.send(what, Duration::ZERO, false);
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
    fn a_head_is_kept_as_it_was_written_if_it_is_wanted() {
        let expected = Expected::default();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let with_body = [head.as_slice(), b"abc\r\n\r\n"].concat();
        for (keep, written, kept) in [
            (true, head.as_slice(), head.as_slice()),
            (true, &with_body, head),
            (true, b"GET / HTTP/1.1\r\n", b""),
            (false, head, b""),
        ] {
            expected.send(Asked::Plain, Duration::ZERO, keep);
            expected.writing(written);
            expected.writing(b"more\r\n\r\n");
            assert_eq!(expected.take_head(), kept);
        }
    }

    #[test]
    fn the_head_of_the_last_request_is_not_that_of_one_that_was_never_written() {
        let expected = Expected::default();
        expected.send(Asked::Plain, Duration::ZERO, true);
        expected.writing(b"GET / HTTP/1.1\r\n\r\n");
        expected.send(Asked::Plain, Duration::ZERO, true);
        assert_eq!(expected.take_head(), b"");
    }

    #[test]
    fn long_idle_connections_are_looked_at_once() {
        let expected = Expected::default();
        expected.send(Asked::Plain, Expected::IDLE, false);
        assert!(expected.touch() && !expected.touch());
        expected.untouched();
        assert!(expected.is_untouched());
    }
}
