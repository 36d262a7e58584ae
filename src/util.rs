//! Small things that everything may use: a counting random generator, a one-way gate, and
//! places of which there are only so many.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::Sleep;

/// A SplitMix64 generator over an atomic counter: shared without a lock, and the same seed
/// gives the same sequence. Not for secrets.
#[derive(Debug)]
pub struct Rng(AtomicU64);

impl Rng {
    /// A generator with this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number, uniform over all of `u64`.
    pub fn next(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        // Relaxed: only uniqueness of the counter value matters.
        let mut z = self
            .0
            .fetch_add(GAMMA, Ordering::Relaxed)
            .wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[derive(Debug, Default)]
struct GateState {
    open: AtomicBool,
    waker: AtomicWaker,
}

/// Opens a [`Gate`] from elsewhere.
#[derive(Clone, Debug)]
pub struct Opener(Arc<GateState>);

impl Opener {
    /// Opens the gate for good.
    pub fn open(&self) {
        self.0.open.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

/// Closed until opened, or until its time is up.
#[derive(Debug)]
pub struct Gate {
    state: Arc<GateState>,
    fallback: Pin<Box<Sleep>>,
}

impl Gate {
    /// A closed gate that opens by itself after `fallback`.
    #[must_use]
    pub fn new(fallback: Duration) -> (Self, Opener) {
        let state = Arc::new(GateState::default());
        let gate = Self {
            state: state.clone(),
            fallback: Box::pin(tokio::time::sleep(fallback)),
        };
        (gate, Opener(state))
    }

    /// Ready once the gate is open.
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.state.waker.register(cx.waker());
        if self.state.open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if self.fallback.as_mut().poll(cx).is_ready() {
            self.state.open.store(true, Ordering::Release);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// Places of which only so many may be taken at one time. Shared, atomic.
#[derive(Debug)]
pub struct Places {
    taken: AtomicUsize,
    max: usize,
}

impl Places {
    /// `max` free places.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            taken: AtomicUsize::new(0),
            max,
        })
    }

    /// Takes a place until it is dropped; `None` if there is none.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let place = self.overfill();
        (self.taken() <= self.max).then_some(place)
    }

    /// Takes a place even if there is none: for what goes on from something that has one.
    #[must_use]
    pub fn overfill(self: &Arc<Self>) -> Place {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Place(self.clone())
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

/// A place that is taken.
#[derive(Debug)]
pub struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::{Gate, Places, Rng};

    #[test]
    fn there_are_only_so_many_places() {
        let places = Places::new(2);
        let (one, two) = (places.take().unwrap(), places.take().unwrap());
        assert!(places.take().is_none());
        let more = places.overfill();
        assert_eq!(places.taken(), 3);
        drop(one);
        assert!(places.take().is_none());
        drop(more);
        let three = places.take().unwrap();
        drop((two, three));
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn the_same_seed_gives_the_same_sequence() {
        let (a, b) = (Rng::new(7), Rng::new(7));
        let from_a: Vec<u64> = (0..8).map(|_| a.next()).collect();
        let from_b: Vec<u64> = (0..8).map(|_| b.next()).collect();
        assert_eq!(from_a, from_b);
        assert_ne!(from_a[0], from_a[1]);
    }

    #[test]
    fn numbers_spread_evenly() {
        let rng = Rng::new(1);
        let mut counts = [0_u32; 8];
        for _ in 0..8_000 {
            counts[(rng.next() % 8) as usize] += 1;
        }
        assert!(
            counts.iter().all(|n| (850..1_150).contains(n)),
            "{counts:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_opens_by_hand_or_by_time() {
        let (mut gate, opener) = Gate::new(Duration::from_secs(1));
        opener.open();
        poll_fn(|cx| gate.poll_open(cx)).await;
        let started = tokio::time::Instant::now();
        let (mut gate, _opener) = Gate::new(Duration::from_secs(1));
        poll_fn(|cx| gate.poll_open(cx)).await;
        assert_eq!(started.elapsed().as_secs(), 1);
    }
}
