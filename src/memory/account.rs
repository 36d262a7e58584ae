//! What single connections make the process keep, roughly: when memory is short, those that keep
//! most wait, and at the end they go, before anybody else is refused for them.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{task::AbortHandle, time::Sleep};

use super::{HIGH, Look, Memory, Pressure};

/// What share of the budget one connection may keep and still be served as if it were the only
/// one.
const PART: usize = 512;
/// How often somebody who waits looks whether there is memory again, and how many times until a
/// step is made all the same: nothing stands still for ever.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 10;
/// How long it takes until what was given back is seen in what is measured: the allocator keeps
/// it for a second.
const SEEN: Duration = Duration::from_secs(1);
/// The most that are ended at one look.
const MOST: usize = 64;

/// What one connection makes the process keep, as it is counted where it is kept. Nothing is
/// refused by it: that is what charges are for.
#[derive(Debug)]
pub struct Account {
    memory: Arc<Memory>,
    bytes: AtomicUsize,
}

impl Default for Account {
    /// Of a process without bounds.
    fn default() -> Self {
        Self::new(&Memory::new(u64::MAX))
    }
}

impl Account {
    /// Of a connection that keeps nothing.
    #[must_use]
    pub fn new(memory: &Arc<Memory>) -> Self {
        Self {
            memory: memory.clone(),
            bytes: AtomicUsize::new(0),
        }
    }

    /// So many bytes more.
    pub fn keep(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes less, of those that were kept.
    pub fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What is kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// HOT. Whether the connection must wait before it makes the process keep more: memory is
    /// short, and it has more than its part.
    #[must_use]
    pub fn must_wait(&self) -> bool {
        self.memory.pressure() >= Pressure::High && self.bytes() > self.memory.budget() / PART
    }
}

/// Waits as long as an account must, but not for ever.
#[derive(Debug, Default)]
pub struct Patience(Option<Box<Waiting>>);

#[derive(Debug)]
struct Waiting {
    sleep: Pin<Box<Sleep>>,
    looks: u32,
}

impl Patience {
    /// HOT. Ready when the connection may go on: at once while there is enough memory, and one
    /// step each second while there is not.
    pub fn poll(&mut self, account: &Account, cx: &mut Context<'_>) -> Poll<()> {
        if !account.must_wait() {
            self.0 = None;
            return Poll::Ready(());
        }
        let waiting = self.0.get_or_insert_with(|| {
            Box::new(Waiting {
                sleep: Box::pin(tokio::time::sleep(LOOK)),
                looks: LOOKS,
            })
        });
        loop {
            ready!(waiting.sleep.as_mut().poll(cx));
            waiting.looks -= 1;
            if waiting.looks == 0 || !account.must_wait() {
                self.0 = None;
                return Poll::Ready(());
            }
            let next = tokio::time::Instant::now() + LOOK;
            waiting.sleep.as_mut().reset(next);
        }
    }
}

/// The accounts of all connections, and the tasks that serve them. Locked when one begins or
/// ends, and when memory is short.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    open: Mutex<HashMap<u64, Entry>>,
    last: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    account: Arc<Account>,
    task: Option<AbortHandle>,
}

/// An account that is among all others until this is dropped.
#[derive(Debug)]
pub struct Opened {
    account: Arc<Account>,
    number: u64,
}

impl Opened {
    /// An account for a new connection.
    #[must_use]
    pub fn new(memory: &Arc<Memory>) -> Self {
        let account = Arc::new(Account::new(memory));
        let accounts = &memory.accounts;
        let number = accounts.last.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            account: account.clone(),
            task: None,
        };
        accounts.open.lock().insert(number, entry);
        Self { account, number }
    }

    /// The account.
    #[must_use]
    pub const fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Which one it is, for [`Memory::served_by`].
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.account
            .memory
            .accounts
            .open
            .lock()
            .remove(&self.number);
    }
}

impl Memory {
    /// The connection of this number is served by that task: to abort it ends the connection.
    pub fn served_by(&self, number: u64, task: AbortHandle) {
        if let Some(entry) = self.accounts.open.lock().get_mut(&number) {
            entry.task = Some(task);
        }
    }
}

/// Ends connections when requests are refused for want of memory: those that keep most, as many
/// as it takes.
#[derive(Debug)]
pub struct Shedder {
    memory: Arc<Memory>,
    /// What the shares that are measured are of, in bytes.
    whole: usize,
    /// What was ended and may not be seen yet.
    ended: VecDeque<(Instant, usize)>,
}

/// What was ended at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Connections.
    pub connections: usize,
    /// What they kept, roughly.
    pub bytes: usize,
}

impl Shedder {
    /// For a process whose memory, in bytes, is `limit`.
    #[must_use]
    pub fn new(memory: Arc<Memory>, limit: Option<u64>) -> Self {
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        Self {
            whole: limit.unwrap_or(memory.budget()),
            memory,
            ended: VecDeque::new(),
        }
    }

    /// Acts on what was measured.
    pub fn act(&mut self, look: &Look, now: Instant) -> Ended {
        self.ended.retain(|(at, _)| now.duration_since(*at) < SEEN);
        if look.pressure < Pressure::Critical {
            return Ended::default();
        }
        let ended = self.ended.iter().map(|(_, bytes)| bytes).sum();
        let over = over(look.strain, self.whole).saturating_sub(ended);
        let open = self.memory.accounts.open.lock();
        let kept = open.iter().map(|(n, one)| (one.account.bytes(), *n));
        let largest = largest(kept.collect(), self.memory.budget() / PART, over);
        let mut result = Ended::default();
        for (bytes, number) in largest {
            if let Some(task) = open.get(&number).and_then(|one| one.task.as_ref()) {
                task.abort();
                result.connections += 1;
                result.bytes += bytes;
            }
        }
        drop(open);
        if result.bytes > 0 {
            self.ended.push_back((now, result.bytes));
        }
        result
    }
}

/// How many bytes there are too many of at a share, per mille, of `whole`: until nobody waits.
fn over(strain: u64, whole: usize) -> usize {
    let above = strain.saturating_sub(HIGH.1).min(1000) as usize;
    whole / 1000 * above
}

/// Those that keep most, until they keep `over` together; none that keeps `part` or less.
fn largest(mut kept: Vec<(usize, u64)>, part: usize, over: usize) -> Vec<(usize, u64)> {
    kept.retain(|(bytes, _)| *bytes > part);
    kept.sort_unstable_by(|a, b| b.cmp(a));
    let mut sum = 0;
    kept.into_iter()
        .take_while(|(bytes, _)| {
            let enough = sum >= over;
            sum += bytes;
            !enough
        })
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        time::{Duration, Instant},
    };

    use tokio::time::timeout;

    use super::{Account, Ended, Opened, Patience, Shedder, largest, over};
    use crate::memory::{Look, Memory, Pressure};

    #[test]
    fn the_largest_go_first_and_no_more_than_it_takes() {
        let kept = || vec![(10, 1), (500, 2), (70, 3), (500, 4), (80, 5)];
        for (part, above, expected) in [
            (0, 0, &[][..]),
            (0, 1, &[4]),
            (0, 500, &[4]),
            (0, 501, &[4, 2]),
            (0, 1001, &[4, 2, 5]),
            (80, 5000, &[4, 2]),
            (500, 5000, &[]),
            (0, 5000, &[4, 2, 5, 3, 1]),
        ] {
            let numbers: Vec<u64> = largest(kept(), part, above)
                .iter()
                .map(|(_, number)| *number)
                .collect();
            assert_eq!(numbers, expected, "{part} {above}");
        }
        let many = (0..1000).map(|n| (100, n)).collect();
        assert_eq!(largest(many, 0, usize::MAX).len(), super::MOST);
    }

    #[test]
    fn what_is_over_ends_where_nobody_waits() {
        for (strain, expected) in [(0, 0), (800, 0), (920, 120_000), (1000, 200_000)] {
            assert_eq!(over(strain, 1_000_000), expected, "{strain}");
        }
        assert_eq!(over(u64::MAX, 1_000_000), 1_000_000);
    }

    fn look(strain: u64, pressure: Pressure) -> Look {
        Look {
            charged: 0,
            resident: None,
            cgroup: None,
            strain,
            pressure,
        }
    }

    #[tokio::test]
    async fn connections_are_ended_once_for_what_is_not_seen_yet() {
        let memory = Memory::new(1 << 20);
        let mut tasks = Vec::new();
        let mut opened = Vec::new();
        for n in 0..4 {
            let one = Opened::new(&memory);
            one.account().keep(40_000 + n);
            let task = tokio::spawn(pending::<()>());
            memory.served_by(one.number(), task.abort_handle());
            opened.push(one);
            tasks.push(task);
        }
        let mut shedder = Shedder::new(memory.clone(), None);
        let start = Instant::now();
        let mut act = |strain, pressure, millis| {
            let now = start + Duration::from_millis(millis);
            shedder.act(&look(strain, pressure), now)
        };
        assert_eq!(act(990, Pressure::High, 0), Ended::default());
        let one = Ended {
            connections: 1,
            bytes: 40_003,
        };
        assert_eq!(act(830, Pressure::Critical, 0), one);
        assert!(tasks.pop().unwrap().await.unwrap_err().is_cancelled());
        drop(opened.pop());
        assert_eq!(act(830, Pressure::Critical, 20), Ended::default());
        let next = Ended {
            bytes: 40_002,
            ..one
        };
        assert_eq!(act(830, Pressure::Critical, 1000), next);
        // What is gone is not looked for.
        drop(opened);
        assert_eq!(act(1000, Pressure::Critical, 2000), Ended::default());
        assert!(memory.accounts.open.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_more_than_its_part_waits_while_memory_is_short() {
        let memory = Memory::new(1 << 20);
        let account = Account::new(&memory);
        let mut patience = Patience::default();
        let mut waits = async |millis| {
            let waiting = poll_fn(|cx| patience.poll(&account, cx));
            let waiting = timeout(Duration::from_millis(millis), waiting);
            waiting.await.is_err()
        };
        account.keep(2049);
        assert!(!waits(0).await, "there is enough");
        let charge = memory.charge(1 << 20);
        assert!(waits(500).await);
        assert!(!waits(600).await, "a step each second");
        assert!(waits(900).await);
        account.give_back(1);
        assert!(!waits(0).await, "its part");
        account.keep(1);
        assert!(waits(0).await);
        drop(charge);
        assert!(!waits(0).await, "there is enough again");
    }
}
