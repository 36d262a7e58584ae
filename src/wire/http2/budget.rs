//! How many frames of each kind a peer may send, as one table for each role.
//!
//! A frame that does no work itself is paid for from an allowance of its kind. It is full at
//! the start, refilled by time, and raised by work that justifies such frames: requests and
//! answers that we send, DATA in either direction. Time alone is not enough, since 20,000
//! requests a second may come with as many cancellations, and work alone is not enough, since
//! a connection that carries nothing but a PING a second may live for a month. One allowance
//! for each kind, not one for all, so that the numbers can be compared with what causes them.

use std::time::{Duration, Instant};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Kind {
    Settings,
    Ping,
    Priority,
    WindowUpdate,
    Reset,
    ResetMade,
    ClosedMade,
    Refused,
    SmallData,
    Unknown,
    GoAway,
    Headers,
}

/// Work that raises allowances.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub(super) enum Work {
    /// A HEADERS frame sent: to a client an answer, to a server a request.
    Head,
    /// A DATA frame sent.
    DataSent,
    /// A KiB of DATA sent.
    KibSent,
    /// A KiB of DATA received.
    KibReceived,
}

impl Work {
    /// What it raises in any of the tables; nothing else is looked at.
    const fn raises(self) -> &'static [Kind] {
        match self {
            Self::Head => &[
                Kind::Ping,
                Kind::Priority,
                Kind::WindowUpdate,
                Kind::Reset,
                Kind::ResetMade,
                Kind::ClosedMade,
                Kind::Refused,
                Kind::SmallData,
                Kind::Unknown,
                Kind::Headers,
            ],
            Self::DataSent => &[Kind::Ping, Kind::WindowUpdate],
            Self::KibSent => &[Kind::WindowUpdate],
            Self::KibReceived => &[Kind::SmallData],
        }
    }
}

const KINDS: usize = Kind::Headers as usize + 1;
const WORKS: usize = Work::KibReceived as usize + 1;

/// The allowance of one kind of frame on one connection.
#[derive(Debug)]
pub struct Allowance {
    /// The rule that is broken by more: label of a metric, word in the log and in the GOAWAY.
    pub rule: &'static str,
    /// What is counted.
    pub what: &'static str,
    /// At the start, and as far as time refills it.
    pub at_once: u32,
    /// Regained each second; a multiple of ten.
    pub a_second: u32,
    /// Earned by each HEADERS frame that we send.
    pub head: u32,
    /// Earned by each DATA frame that we send.
    pub data_sent: u32,
    /// Earned by each KiB of DATA that we send.
    pub kib_sent: u32,
    /// Earned by each KiB of DATA that we receive.
    pub kib_received: u32,
    /// The most that is kept of what was earned: also the longest flood on any connection.
    pub kept: u32,
}

impl Allowance {
    const fn new(rule: &'static str, what: &'static str, at_once: u32, a_second: u32) -> Self {
        Self {
            rule,
            what,
            at_once,
            a_second,
            head: 0,
            data_sent: 0,
            kib_sent: 0,
            kib_received: 0,
            kept: at_once,
        }
    }

    /// What the role cannot send, or what other rows bound already.
    const fn unlimited(rule: &'static str) -> Self {
        Self::new(
            rule,
            "",
            u32::MAX,
            u32::MAX / TICKS_A_SECOND * TICKS_A_SECOND,
        )
    }

    /// Whether it bounds anything.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.at_once < u32::MAX
    }

    const fn head(self, head: u32) -> Self {
        Self { head, ..self }
    }

    const fn data_sent(self, data_sent: u32) -> Self {
        Self { data_sent, ..self }
    }

    const fn kib_sent(self, kib_sent: u32) -> Self {
        Self { kib_sent, ..self }
    }

    const fn kib_received(self, kib_received: u32) -> Self {
        Self {
            kib_received,
            ..self
        }
    }

    const fn kept(self, kept: u32) -> Self {
        Self { kept, ..self }
    }

    const fn earned(&self) -> [u32; WORKS] {
        [self.head, self.data_sent, self.kib_sent, self.kib_received]
    }
}

const SETTINGS: &str = "SETTINGS, and one more for each 64 bytes in it";
const PING: &str = "PING and PING ACK";
const PRIORITY: &str = "PRIORITY and PRIORITY_UPDATE";
const WINDOW_UPDATE: &str = "WINDOW_UPDATE";
const RESET_MADE: &str = "RST_STREAM that its mistakes make us send (PROTOCOL_ERROR, \
    FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR)";
const CLOSED_MADE: &str = "RST_STREAM that frames on streams of the past make us send \
    (STREAM_CLOSED)";
const SMALL_DATA: &str = "DATA of less than 5 bytes without END_STREAM";
const UNKNOWN: &str = "frames of unknown types";
const GOAWAY: &str = "GOAWAY";

/// What a client may send, in the order of [`Kind`].
///
/// Streams: 250 at once that all run into a deadline of 100 ms make 2,500 resets a second, a
/// client that reads only heads resets each stream. WINDOW_UPDATE: one for the stream and one
/// for the connection after each DATA frame, or after each KiB. PING: gRPC clients probe the
/// bandwidth after DATA, Go's after a reset; keep-alive is at most one a second.
pub const FROM_CLIENTS: [Allowance; KINDS] = [
    Allowance::new("settings_flood", SETTINGS, 100, 10),
    Allowance::new("ping_flood", PING, 200, 20)
        .head(1)
        .data_sent(1)
        .kept(1_000),
    Allowance::new("priority_flood", PRIORITY, 1_000, 50)
        .head(10)
        .kept(5_000),
    Allowance::new("window_update_flood", WINDOW_UPDATE, 1_000, 100)
        .head(4)
        .data_sent(4)
        .kib_sent(4)
        .kept(65_536),
    Allowance::new("reset_flood", "RST_STREAM", 500, 2_500)
        .head(1)
        .kept(1_000),
    // h2 sends one after each 431 that it gives itself to a request with a body.
    Allowance::new("made_resets", RESET_MADE, 200, 500),
    Allowance::new("made_closed", CLOSED_MADE, 2_000, 1_000)
        .head(16)
        .kept(5_000),
    Allowance::new(
        "refused_streams",
        "RST_STREAM for streams above the limit (REFUSED_STREAM)",
        1_000,
        250,
    )
    .head(1)
    .kept(2_000),
    Allowance::new("small_data_flood", SMALL_DATA, 2_000, 2_000)
        .head(4)
        .kib_received(1)
        .kept(4_000),
    Allowance::new("unknown_flood", UNKNOWN, 200, 20)
        .head(4)
        .kept(2_000),
    Allowance::new("goaway_flood", GOAWAY, 16, 0),
    // Each opens a stream, which is answered, reset or refused: counted there.
    Allowance::unlimited("headers_flood"),
];

/// What a server may send, in the order of [`Kind`]. More generous than for clients: it answers
/// what we ask, may refuse all of it, and may say it in drops.
pub const FROM_SERVERS: [Allowance; KINDS] = [
    Allowance::new("settings_flood", SETTINGS, 100, 10),
    Allowance::new("ping_flood", PING, 200, 20)
        .head(1)
        .data_sent(1)
        .kept(1_000),
    Allowance::new("priority_flood", PRIORITY, 100, 10),
    Allowance::new("window_update_flood", WINDOW_UPDATE, 1_000, 100)
        .head(4)
        .data_sent(4)
        .kib_sent(4)
        .kept(65_536),
    Allowance::new("reset_flood", "RST_STREAM", 500, 10)
        .head(1)
        .kept(10_000),
    Allowance::new("made_resets", RESET_MADE, 200, 50)
        .head(1)
        .kept(1_000),
    Allowance::new("made_closed", CLOSED_MADE, 5_000, 1_000)
        .head(100)
        .kept(10_000),
    // A server opens no streams.
    Allowance::unlimited("refused_streams"),
    Allowance::new("small_data_flood", SMALL_DATA, 5_000, 10_000)
        .head(100)
        .kib_received(1)
        .kept(10_000),
    Allowance::new("unknown_flood", UNKNOWN, 200, 20)
        .head(4)
        .kept(2_000),
    Allowance::new("goaway_flood", GOAWAY, 16, 0),
    Allowance::new("headers_flood", "HEADERS: heads, 1xx and trailers", 500, 10)
        .head(12)
        .kept(5_000),
];

/// All of them, for the documentation, by who sends.
pub const BUDGETS: [(&str, &[Allowance]); 2] =
    [("clients", &FROM_CLIENTS), ("servers", &FROM_SERVERS)];

/// What is left of each allowance on one connection.
#[derive(Debug)]
pub(super) struct Account {
    table: &'static [Allowance; KINDS],
    left: [u32; KINDS],
    /// Up to when time has been paid out.
    paid: Option<Instant>,
}

/// How often time is paid out: a tenth of what a second brings.
const TICK: Duration = Duration::from_millis(100);
const TICKS_A_SECOND: u32 = 10;

impl Account {
    pub(super) fn new(table: &'static [Allowance; KINDS]) -> Self {
        let mut left = [0; KINDS];
        for (left, allowance) in left.iter_mut().zip(table) {
            *left = allowance.at_once;
        }
        Self {
            table,
            left,
            paid: None,
        }
    }

    /// Time has come to `now`.
    pub(super) fn tick(&mut self, now: Instant) {
        let paid = *self.paid.get_or_insert(now);
        let passed = now.saturating_duration_since(paid);
        if passed < TICK {
            return;
        }
        let ticks = passed.as_millis() / TICK.as_millis();
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        self.paid = Some(TICK.checked_mul(ticks).map_or(now, |time| paid + time));
        for (left, allowance) in self.left.iter_mut().zip(self.table) {
            if *left < allowance.at_once {
                let gained = (allowance.a_second / TICKS_A_SECOND).saturating_mul(ticks);
                *left = left.saturating_add(gained).min(allowance.at_once);
            }
        }
    }

    /// Work was done `times`.
    pub(super) fn earn(&mut self, work: Work, times: u32) {
        for kind in work.raises() {
            let allowance = &self.table[*kind as usize];
            let left = &mut self.left[*kind as usize];
            let gained = allowance.earned()[work as usize].saturating_mul(times);
            *left = left.saturating_add(gained).min(allowance.kept);
        }
    }

    /// Pays for a frame.
    ///
    /// # Errors
    /// With the rule that it breaks when there is not enough left.
    pub(super) fn spend(&mut self, kind: Kind, cost: u32) -> Result<(), &'static str> {
        let left = &mut self.left[kind as usize];
        match left.checked_sub(cost) {
            Some(rest) => {
                *left = rest;
                Ok(())
            }
            None => Err(self.table[kind as usize].rule),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{
        Account, Allowance, FROM_CLIENTS, FROM_SERVERS, KINDS, Kind, TICKS_A_SECOND, Work,
    };

    #[test]
    fn tables_are_in_the_order_of_kinds_and_hold_together() {
        for table in [&FROM_CLIENTS, &FROM_SERVERS] {
            let kinds = [
                (Kind::Settings, "settings_flood"),
                (Kind::Ping, "ping_flood"),
                (Kind::Priority, "priority_flood"),
                (Kind::WindowUpdate, "window_update_flood"),
                (Kind::Reset, "reset_flood"),
                (Kind::ResetMade, "made_resets"),
                (Kind::ClosedMade, "made_closed"),
                (Kind::Refused, "refused_streams"),
                (Kind::SmallData, "small_data_flood"),
                (Kind::Unknown, "unknown_flood"),
                (Kind::GoAway, "goaway_flood"),
                (Kind::Headers, "headers_flood"),
            ];
            assert_eq!(kinds.len(), KINDS);
            for (kind, rule) in kinds {
                let row = &table[kind as usize];
                assert_eq!(row.rule, rule);
                for work in [Work::Head, Work::DataSent, Work::KibSent, Work::KibReceived] {
                    let earns = row.earned()[work as usize] > 0;
                    assert!(!earns || work.raises().contains(&kind), "{rule}, {work:?}");
                }
            }
            for row in table {
                assert_eq!(row.a_second % TICKS_A_SECOND, 0, "{}", row.rule);
                assert!(row.kept >= row.at_once, "{}", row.rule);
                let earns = row.earned().iter().any(|n| *n > 0);
                assert_eq!(earns, row.kept > row.at_once, "{}", row.rule);
            }
        }
    }

    #[test]
    fn time_refills_to_the_brim_and_work_above_it() {
        let allowance = &FROM_CLIENTS[Kind::Ping as usize];
        let Allowance {
            at_once,
            a_second,
            kept,
            ..
        } = *allowance;
        let start = Instant::now();
        let mut account = Account::new(&FROM_CLIENTS);
        account.tick(start);
        let left = |account: &Account| account.left[Kind::Ping as usize];

        account.spend(Kind::Ping, at_once).unwrap();
        assert_eq!(account.spend(Kind::Ping, 1), Err("ping_flood"));
        account.tick(start + Duration::from_millis(99));
        assert_eq!(left(&account), 0);
        account.tick(start + Duration::from_millis(100));
        assert_eq!(left(&account), a_second / 10);
        // The rest of a tick is not lost.
        account.tick(start + Duration::from_millis(399));
        account.tick(start + Duration::from_millis(400));
        assert_eq!(left(&account), a_second / 10 * 4);
        // A clock that goes back changes nothing.
        account.tick(start);
        assert_eq!(left(&account), a_second / 10 * 4);
        for month in 1..3 {
            account.tick(start + month * Duration::from_secs(30 * 24 * 3600));
            assert_eq!(left(&account), at_once);
        }
        // What was earned stays when time passes, up to a bound.
        account.earn(Work::DataSent, 1);
        account.tick(start + Duration::from_secs(90 * 24 * 3600));
        assert_eq!(left(&account), at_once + 1);
        account.earn(Work::DataSent, u32::MAX);
        assert_eq!(left(&account), kept);
    }
}
