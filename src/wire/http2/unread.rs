//! What of DATA nobody has read yet, told from what both sides say. h2 tells the peer that it may
//! send more when half of a window was read, so that much is uncertain.

/// Bytes of DATA on one connection, all streams together.
#[derive(Debug)]
pub(super) struct Unread {
    window: u32,
    /// Received, less those that the peer was told may follow.
    bytes: u32,
}

impl Unread {
    /// With a window of so many bytes, which the peer is told of before it sends.
    pub(super) const fn new(window: u32) -> Self {
        Self { window, bytes: 0 }
    }

    /// A DATA frame came; its padding counts (RFC 9113, 6.9.1).
    pub(super) const fn received(&mut self, length: u32) {
        self.bytes = self.bytes.saturating_add(length);
    }

    /// The peer is told that so many bytes more may come on the connection.
    pub(super) const fn told(&mut self, more: u32) {
        self.bytes = self.bytes.saturating_sub(more);
    }

    /// Bytes that are certainly kept.
    pub(super) const fn certain(&self) -> u32 {
        self.bytes.saturating_sub(self.window / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::Unread;

    #[test]
    fn what_nobody_has_read_is_known_to_half_a_window() {
        let mut unread = Unread::new(100_000);
        // The window is opened to its size before anything comes.
        unread.told(34_465);
        for (received, told, expected) in [
            (50_000, 0, 0),
            (1, 0, 1),
            (13_999, 0, 14_000),
            (16_000, 50_000, 0),
            (30_000, 0, 10_000),
            (0, u32::MAX, 0),
            (u32::MAX, 0, u32::MAX - 50_000),
            (1, 0, u32::MAX - 50_000),
        ] {
            unread.received(received);
            unread.told(told);
            assert_eq!(unread.certain(), expected, "{received} {told}");
        }
    }
}
