//! Tells a client's connection that is idle, which is fine, from one that holds something up:
//! drips a head, never says its preface, or does not take its answers. One timer for each
//! connection, none for each request.
//!
//! What HTTP/2 clients do not take is kept by h2, also when the stream's task has ended because
//! it gave the last frame. Nobody could reset such a stream; but its frames know how old they
//! are, by turns of the watch, and a connection that keeps old ones is cut.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    limits::Limits,
    memory::{Account, Charge, Patience},
    wire::{Signals, Waiting},
};

/// The longest time between two looks at a connection.
const TICK: Duration = Duration::from_secs(5);
/// Turns in which frames are counted: the one that goes on, and two before.
const TURNS: usize = 3;
/// Frames that somebody who reads may not have taken.
const BEHIND: usize = 16;
/// What a request is taken to keep, in bytes: so much, and for each byte of a head that waits.
const REQUEST: usize = 16 * 1024;
const HEAD: usize = 6;

/// Counters of one connection.
#[derive(Debug, Default)]
pub struct Pulse {
    /// What its byte stream says.
    pub(super) signals: Arc<Signals>,
    /// Requests that have begun.
    served: AtomicU64,
    /// Requests that have not ended.
    active: AtomicUsize,
    /// Bytes of the heads of requests that wait for their answer.
    heads: AtomicUsize,
    /// The turn that goes on.
    turn: AtomicUsize,
    /// Frames that their client has not taken, by the turn in which they were given, modulo.
    unsent: [AtomicUsize; TURNS],
    /// What all of it makes the process keep.
    pub(super) account: Arc<Account>,
}

impl Pulse {
    /// Of a new connection.
    pub(super) fn new(account: Arc<Account>) -> Self {
        Self {
            account,
            ..Self::default()
        }
    }

    /// A request begins; it ends when the guard is dropped.
    pub(super) fn request(self: &Arc<Self>) -> ActiveGuard {
        let number = self.served.fetch_add(1, Ordering::Relaxed) + 1;
        self.begin(number)
    }

    /// Keeps the connection active without a request.
    pub(super) fn hold(self: &Arc<Self>) -> ActiveGuard {
        self.begin(0)
    }

    fn begin(self: &Arc<Self>, number: u64) -> ActiveGuard {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.account.keep(REQUEST);
        ActiveGuard {
            pulse: self.clone(),
            number,
            head: 0,
            patience: Patience::default(),
        }
    }

    fn read(&self) -> Reading {
        Reading {
            served: self.served.load(Ordering::Relaxed),
            active: self.active.load(Ordering::Relaxed) > 0,
            waiting: self.signals.waiting(),
            stuck: self.signals.is_blocked().then(|| self.signals.written()),
        }
    }

    /// Begins the next turn; how many frames are left of the one whose place it takes, which
    /// ended two turns ago.
    fn next_turn(&self) -> usize {
        let next = (self.turn.load(Ordering::Relaxed) + 1) % TURNS;
        self.turn.store(next, Ordering::Relaxed);
        self.unsent[next].load(Ordering::Relaxed)
    }
}

/// One request in flight.
#[derive(Debug)]
pub(super) struct ActiveGuard {
    pulse: Arc<Pulse>,
    /// Counted from 1; 0 for what is no request.
    pub(super) number: u64,
    head: usize,
    patience: Patience,
}

impl ActiveGuard {
    /// Ready when the process may keep more of the answer. Whoever takes what there is need not
    /// wait; whoever does not is stalled meanwhile.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.pulse.account.must_wait() && self.is_behind() {
            return self.patience.poll(&self.pulse.account, cx);
        }
        Poll::Ready(())
    }

    /// Keeps the request's head, of so many bytes, until the answer begins; false if those of
    /// the connection would be more than `most`, or if it must wait for memory.
    pub(super) fn keep_head(&mut self, bytes: usize, most: usize) -> bool {
        let before = self.pulse.heads.fetch_add(bytes, Ordering::Relaxed);
        self.head += bytes;
        self.pulse.account.keep(HEAD * bytes);
        before + bytes <= most && !self.pulse.account.must_wait()
    }

    /// Follows a frame of the answer until the client has taken it.
    pub(super) fn unsent(&self, data: Bytes, charge: Option<Charge>) -> Bytes {
        let turn = self.pulse.turn.load(Ordering::Relaxed);
        self.pulse.unsent[turn].fetch_add(1, Ordering::Relaxed);
        self.pulse.account.keep(data.len());
        Bytes::from_owner(Unsent {
            data,
            turn,
            pulse: self.pulse.clone(),
            _charge: charge,
        })
    }

    /// Whether the client has left more frames untaken than one who reads leaves.
    pub(super) fn is_behind(&self) -> bool {
        let unsent = self.pulse.unsent.iter();
        let unsent = unsent.map(|turn| turn.load(Ordering::Relaxed));
        unsent.sum::<usize>() >= BEHIND
    }

    /// Bytes of the head that is kept.
    pub(super) fn head(&self) -> usize {
        self.head
    }

    /// The answer begins.
    pub(super) fn drop_head(&mut self) {
        let bytes = std::mem::take(&mut self.head);
        self.pulse.heads.fetch_sub(bytes, Ordering::Relaxed);
        self.pulse.account.give_back(HEAD * bytes);
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.drop_head();
        self.pulse.active.fetch_sub(1, Ordering::Relaxed);
        self.pulse.account.give_back(REQUEST);
    }
}

/// A frame that its client has not taken.
struct Unsent {
    data: Bytes,
    turn: usize,
    pulse: Arc<Pulse>,
    _charge: Option<Charge>,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.pulse.unsent[self.turn].fetch_sub(1, Ordering::Relaxed);
        self.pulse.account.give_back(self.data.len());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    served: u64,
    active: bool,
    waiting: Waiting,
    /// The client takes nothing, and what it had taken by then.
    stuck: Option<u64>,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Leave it.
    Fine,
    /// Nothing for too long: end it politely.
    Idle,
    /// Cut it, for this.
    Cut(&'static str),
}

/// Judges a connection by what has changed since the last look.
#[derive(Debug)]
pub(super) struct Watch {
    idle: Option<Duration>,
    head: Duration,
    write: Duration,
    /// The heads of streams arrive beside other streams.
    multiplexed: bool,
    last: Reading,
    quiet_since: Instant,
    waiting_since: Instant,
    stuck_since: Instant,
    turned: Instant,
}

impl Watch {
    /// A watch over a new connection.
    pub(super) fn new(
        idle: Option<Duration>,
        limits: &Limits,
        multiplexed: bool,
        now: Instant,
    ) -> Self {
        Self {
            idle,
            head: limits.head_timeout,
            write: limits.write_timeout,
            multiplexed,
            last: Reading {
                served: 0,
                active: false,
                waiting: Waiting::Nothing,
                stuck: None,
            },
            quiet_since: now,
            waiting_since: now,
            stuck_since: now,
            turned: now,
        }
    }

    /// How often to look: a timeout is exceeded by half at most.
    pub(super) fn tick(&self) -> Duration {
        TICK.min(self.head / 2).min(self.write / 2)
    }

    /// Looks at the connection. Pure but for the counters. `pressed`: there is little memory left
    /// for what waits.
    pub(super) fn look(&mut self, pulse: &Pulse, now: Instant, pressed: bool) -> Verdict {
        // A stream that goes on is reset by itself before its frames are that old.
        let write = if pressed { self.tick() } else { self.write };
        if now.duration_since(self.turned) >= write {
            self.turned = now;
            if pulse.next_turn() > 0 {
                return Verdict::Cut("write_timeout");
            }
        }
        self.judge(pulse.read(), now, write)
    }

    /// `write`: how long the client may take nothing.
    fn judge(&mut self, mut reading: Reading, now: Instant, write: Duration) -> Verdict {
        if reading.active && !self.multiplexed {
            // The next head has time until the request before it is answered.
            reading.waiting = Waiting::Nothing;
        }
        let begun = reading.served != self.last.served;
        if begun || reading.active != self.last.active || reading.active {
            self.quiet_since = now;
        }
        if begun || reading.waiting != self.last.waiting {
            self.waiting_since = now;
            self.quiet_since = now;
        }
        if reading.stuck != self.last.stuck {
            self.stuck_since = now;
        }
        self.last = reading;
        let over = |since: Instant, limit: Duration| now.duration_since(since) >= limit;
        if reading.stuck.is_some() && over(self.stuck_since, write) {
            return Verdict::Cut("write_timeout");
        }
        match reading.waiting {
            Waiting::Head if over(self.waiting_since, self.head) => Verdict::Cut("head_timeout"),
            Waiting::Preface if over(self.waiting_since, self.head) => {
                Verdict::Cut("preface_timeout")
            }
            Waiting::Head | Waiting::Preface => Verdict::Fine,
            Waiting::Nothing => match self.idle {
                Some(idle) if !reading.active && over(self.quiet_since, idle) => Verdict::Idle,
                _ => Verdict::Fine,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use bytes::Bytes;
    use tokio::time::Instant;

    use super::{Pulse, Reading, Verdict, Watch};
    use crate::{limits::Limits, wire::Waiting};

    const IDLE: Reading = Reading {
        served: 1,
        active: false,
        waiting: Waiting::Nothing,
        stuck: None,
    };
    const BUSY: Reading = Reading {
        served: 2,
        active: true,
        ..IDLE
    };
    const DRIP: Reading = Reading {
        waiting: Waiting::Head,
        ..IDLE
    };
    const STUCK: Reading = Reading {
        stuck: Some(5),
        ..BUSY
    };

    /// Head 10 s, write 30 s.
    fn limits() -> Limits {
        Limits {
            head_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            ..Limits::default()
        }
    }

    /// Idle 60 s.
    fn check(multiplexed: bool, looks: &[(u64, Reading, Verdict)]) {
        let start = Instant::now();
        let limits = limits();
        let idle = Some(Duration::from_secs(60));
        let mut watch = Watch::new(idle, &limits, multiplexed, start);
        for &(seconds, reading, expected) in looks {
            let now = start + Duration::from_secs(seconds);
            let verdict = watch.judge(reading, now, limits.write_timeout);
            assert_eq!(verdict, expected, "{seconds} {reading:?}");
        }
    }

    #[test]
    fn idle_connections_live_until_their_timeout() {
        check(
            false,
            &[
                (10, IDLE, Verdict::Fine),
                (69, IDLE, Verdict::Fine),
                (70, IDLE, Verdict::Idle),
            ],
        );
    }

    #[test]
    fn heads_must_end() {
        let slow = Verdict::Cut("head_timeout");
        check(
            false,
            &[
                (10, IDLE, Verdict::Fine),
                (20, DRIP, Verdict::Fine),
                (29, DRIP, Verdict::Fine),
                (30, DRIP, slow),
            ],
        );
        // One head after the other is no drip.
        let next = Reading { served: 2, ..DRIP };
        check(
            false,
            &[
                (20, DRIP, Verdict::Fine),
                (29, next, Verdict::Fine),
                (38, next, Verdict::Fine),
                (39, next, slow),
            ],
        );
        // A pipelined head waits for its turn; a header block among streams does not.
        let beside = Reading {
            active: true,
            ..DRIP
        };
        check(
            false,
            &[(20, beside, Verdict::Fine), (90, beside, Verdict::Fine)],
        );
        check(true, &[(20, beside, Verdict::Fine), (30, beside, slow)]);
    }

    #[test]
    fn a_preface_must_come() {
        let silent = Reading {
            served: 0,
            waiting: Waiting::Preface,
            ..IDLE
        };
        check(
            true,
            &[
                (5, silent, Verdict::Fine),
                (14, silent, Verdict::Fine),
                (15, silent, Verdict::Cut("preface_timeout")),
            ],
        );
    }

    #[test]
    fn requests_take_as_long_as_they_take() {
        check(
            false,
            &[
                (10, BUSY, Verdict::Fine),
                (1000, BUSY, Verdict::Fine),
                (1010, IDLE, Verdict::Fine),
                (1069, IDLE, Verdict::Fine),
                (1070, IDLE, Verdict::Idle),
            ],
        );
    }

    #[test]
    fn answers_must_be_taken() {
        let some = Reading {
            stuck: Some(6),
            ..STUCK
        };
        check(
            false,
            &[
                (10, STUCK, Verdict::Fine),
                (39, some, Verdict::Fine),
                (68, some, Verdict::Fine),
                (69, some, Verdict::Cut("write_timeout")),
            ],
        );
        check(
            false,
            &[
                (10, STUCK, Verdict::Fine),
                (39, BUSY, Verdict::Fine),
                (99, BUSY, Verdict::Fine),
            ],
        );
    }

    /// Looks every 5 s, as [`Watch::tick`] says.
    #[test]
    fn answers_must_be_taken_sooner_when_there_is_little_memory() {
        let start = Instant::now();
        let mut watch = Watch::new(None, &limits(), false, start);
        let mut look = |seconds, pressed| {
            let write = if pressed { watch.tick() } else { watch.write };
            watch.judge(STUCK, start + Duration::from_secs(seconds), write)
        };
        assert_eq!(look(5, true), Verdict::Fine);
        assert_eq!(look(10, false), Verdict::Fine);
        assert_eq!(look(15, true), Verdict::Cut("write_timeout"));
    }

    #[test]
    fn frames_must_be_taken_also_when_their_stream_has_ended() {
        let cut = Verdict::Cut("write_timeout");
        // When a frame is given, whether it is taken, and what is seen when, under pressure or not.
        for (given, taken, looks) in [
            (
                0,
                false,
                &[
                    (29, false, Verdict::Fine),
                    (30, false, Verdict::Fine),
                    (60, false, Verdict::Fine),
                    (90, false, cut),
                ][..],
            ),
            (
                0,
                true,
                &[
                    (30, false, Verdict::Fine),
                    (60, false, Verdict::Fine),
                    (90, false, Verdict::Fine),
                ],
            ),
            (
                31,
                false,
                &[
                    (30, false, Verdict::Fine),
                    (60, false, Verdict::Fine),
                    (90, false, Verdict::Fine),
                    (120, false, cut),
                ],
            ),
            (
                0,
                false,
                &[
                    (5, true, Verdict::Fine),
                    (10, true, Verdict::Fine),
                    (15, true, cut),
                ],
            ),
        ] {
            let start = Instant::now();
            let mut watch = Watch::new(None, &limits(), true, start);
            let pulse = Arc::new(Pulse::default());
            let mut frame = None;
            for &(seconds, pressed, expected) in looks {
                if seconds >= given && frame.is_none() {
                    frame = Some(pulse.request().unsent(Bytes::from_static(b"x"), None));
                    assert_eq!(frame.as_deref(), Some(&b"x"[..]));
                }
                if taken {
                    frame = Some(Bytes::new());
                }
                let now = start + Duration::from_secs(seconds);
                assert_eq!(
                    watch.look(&pulse, now, pressed),
                    expected,
                    "{given} {seconds}"
                );
            }
        }
    }
}
