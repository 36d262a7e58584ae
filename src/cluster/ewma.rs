//! Peak-sensitive moving average of latency, in one atomic: a peak counts at once, and is
//! forgotten with time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The average and when it was last fed: microseconds (`f32` bits) and milliseconds.
#[derive(Debug)]
pub struct Ewma(AtomicU64);

impl Ewma {
    /// Starts at an assumed latency.
    #[must_use]
    pub fn new(initial: Duration, now_ms: u32) -> Self {
        Self(AtomicU64::new(pack(initial.as_micros() as f32, now_ms)))
    }

    /// Feeds one latency. Two at once may lose one: the average stays an average.
    pub fn observe(&self, latency: Duration, decay: Duration, now_ms: u32) {
        let (average, at) = unpack(self.0.load(Ordering::Relaxed));
        let latency = latency.as_micros() as f32;
        let next = if latency > average {
            latency
        } else {
            let keep = weight(now_ms.wrapping_sub(at), decay);
            average * keep + latency * (1.0 - keep)
        };
        self.0.store(pack(next, now_ms), Ordering::Relaxed);
    }

    /// Starts anew at a latency.
    #[cfg(test)]
    pub fn reset(&self, latency: Duration, now_ms: u32) {
        let packed = pack(latency.as_micros() as f32, now_ms);
        self.0.store(packed, Ordering::Relaxed);
    }

    /// The average now, in microseconds: without traffic it sinks, so that an endpoint that
    /// was slow once is tried again.
    #[must_use]
    pub fn micros(&self, decay: Duration, now_ms: u32) -> f32 {
        let (average, at) = unpack(self.0.load(Ordering::Relaxed));
        average * weight(now_ms.wrapping_sub(at), decay)
    }
}

fn weight(elapsed_ms: u32, decay: Duration) -> f32 {
    (-(elapsed_ms as f32) / decay.as_millis().max(1) as f32).exp()
}

fn pack(micros: f32, ms: u32) -> u64 {
    u64::from(micros.to_bits()) << 32 | u64::from(ms)
}

fn unpack(packed: u64) -> (f32, u32) {
    (f32::from_bits((packed >> 32) as u32), packed as u32)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Ewma;

    const DECAY: Duration = Duration::from_secs(10);

    #[test]
    fn peaks_count_at_once_and_fade() {
        let ewma = Ewma::new(Duration::from_millis(1), 0);
        ewma.observe(Duration::from_millis(100), DECAY, 1_000);
        assert!((ewma.micros(DECAY, 1_000) - 100_000.0).abs() < 1.0);
        ewma.observe(Duration::from_millis(1), DECAY, 2_000);
        let soon = ewma.micros(DECAY, 2_000);
        assert!((80_000.0..95_000.0).contains(&soon), "{soon}");
        let later = ewma.micros(DECAY, 62_000);
        assert!(later < 1_000.0, "{later}");
    }

    #[test]
    fn the_clock_may_wrap() {
        let ewma = Ewma::new(Duration::from_millis(1), u32::MAX - 10);
        ewma.observe(Duration::from_micros(500), DECAY, 5);
        let now = ewma.micros(DECAY, 5);
        assert!((400.0..=1_000.0).contains(&now), "{now}");
    }
}
