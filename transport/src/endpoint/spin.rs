//! How long to poll before sleeping, learned from how polls and sleeps end.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How much longer than configured polling may become.
const GROWTH: u32 = 5;
/// Polls in vain before polling is given up for a while.
const MISSES_MAX: u32 = 5;
/// Polling while it is given up: what a message that is just arriving needs.
const LEAST: Duration = Duration::from_micros(2);
/// Sleeps before polling is tried again.
const REST_SLEEPS: u32 = 128;

/// Two cases look alike at first. Waking takes about as long as the configured polling, so two
/// sides that both sleep can keep each other asleep: then polling longer helps. And where
/// there are more busy threads than processors, the peer cannot answer while this side polls:
/// then only sleeping helps. So polling grows after a short sleep, and when that was in vain
/// several times, it is given up for a while.
///
/// Used by the leading thread only; atomics because different threads lead.
#[derive(Debug)]
pub(super) struct Spin {
    base: Duration,
    now_ns: AtomicU64,
    misses: AtomicU32,
    rest: AtomicU32,
}

impl Spin {
    pub(super) fn new(base: Duration) -> Self {
        Self {
            base,
            now_ns: AtomicU64::new(ns(base)),
            misses: AtomicU32::new(0),
            rest: AtomicU32::new(0),
        }
    }

    /// How long to poll.
    #[inline]
    pub(super) fn time(&self) -> Duration {
        Duration::from_nanos(self.now_ns.load(Relaxed))
    }

    /// Something came while polling.
    #[inline]
    pub(super) fn hit(&self) {
        if self.misses.load(Relaxed) != 0 {
            self.misses.store(0, Relaxed);
        }
    }

    /// Polling was in vain, and the sleep after it took so long.
    pub(super) fn slept(&self, slept: Duration) {
        let most = self.base * GROWTH;
        if slept >= most {
            return self.set(self.base, 0, 0);
        }
        let rest = self.rest.load(Relaxed);
        let misses = self.misses.load(Relaxed) + 1;
        match rest {
            0 if misses >= MISSES_MAX => self.set(LEAST.min(self.base), 0, REST_SLEEPS),
            0 => self.set((self.time() * 2).min(most), misses, 0),
            1 => self.set(self.base, 0, 0),
            _ => self.rest.store(rest - 1, Relaxed),
        }
    }

    fn set(&self, time: Duration, misses: u32, rest: u32) {
        self.now_ns.store(ns(time), Relaxed);
        self.misses.store(misses, Relaxed);
        self.rest.store(rest, Relaxed);
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_micros(60);
    const SHORT: Duration = Duration::from_micros(50);

    #[test]
    fn grows_while_sleeps_are_short_and_returns_after_a_long_one() {
        let spin = Spin::new(BASE);
        spin.slept(SHORT);
        assert_eq!(spin.time(), BASE * 2);
        spin.slept(SHORT);
        spin.slept(SHORT);
        assert_eq!(spin.time(), BASE * GROWTH);
        spin.slept(Duration::from_millis(5));
        assert_eq!(spin.time(), BASE);
    }

    #[test]
    fn gives_up_when_in_vain_and_tries_again() {
        let spin = Spin::new(BASE);
        (0..MISSES_MAX).for_each(|_| spin.slept(SHORT));
        assert_eq!(spin.time(), LEAST);
        (0..REST_SLEEPS).for_each(|_| spin.slept(SHORT));
        assert_eq!(spin.time(), BASE);
    }

    #[test]
    fn a_hit_keeps_polling() {
        let spin = Spin::new(BASE);
        for _ in 0..20 {
            spin.slept(SHORT);
            spin.hit();
        }
        assert_eq!(spin.time(), BASE * GROWTH);
    }
}
