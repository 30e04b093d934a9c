//! How often somebody may try to log in: by address and by name, so that neither one machine nor many can
//! guess. A few attempts are free; after those, the wait doubles with each failure.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

/// Failures without consequence.
const FREE: u32 = 5;
const WAIT: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_mins(15);
/// After so long without an attempt all is forgotten.
const MEMORY: Duration = Duration::from_mins(30);
/// Addresses and names that are remembered. When there are more, everyone waits as long as the newest.
const KEYS_MAX: usize = 100_000;

/// Failed attempts.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    failures: Mutex<FxHashMap<String, Failures>>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Limiter {
    /// An attempt begins: it counts as failed until [`Limiter::succeeded`], so that attempts at the same
    /// time count too.
    ///
    /// # Errors
    /// How long to wait before the next.
    pub(crate) fn attempt(&self, keys: &[String], now: Instant) -> Result<(), Duration> {
        let mut failures = self.failures.lock();
        if failures.len() >= KEYS_MAX {
            failures.retain(|_, it| now.duration_since(it.last) < MEMORY);
        }
        if failures.len() >= KEYS_MAX {
            return Err(WAIT);
        }
        for key in keys {
            if let Some(found) = failures.get(key) {
                let left = found.wait().saturating_sub(now.duration_since(found.last));
                if !left.is_zero() {
                    return Err(left);
                }
            }
        }
        for key in keys {
            let found = failures.entry(key.clone()).or_insert(Failures {
                count: 0,
                last: now,
            });
            if now.duration_since(found.last) > MEMORY {
                found.count = 0;
            }
            found.count += 1;
            found.last = now;
        }
        Ok(())
    }

    /// The attempt was a good one.
    pub(crate) fn succeeded(&self, keys: &[String]) {
        let mut failures = self.failures.lock();
        for key in keys {
            failures.remove(key);
        }
    }
}

impl Failures {
    fn wait(self) -> Duration {
        let Some(over) = self.count.checked_sub(FREE) else {
            return Duration::ZERO;
        };
        let wait = 2_u32.checked_pow(over).and_then(|it| WAIT.checked_mul(it));
        wait.unwrap_or(WAIT_MAX).min(WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{FREE, Limiter, MEMORY, WAIT, WAIT_MAX};
    use std::time::{Duration, Instant};

    #[test]
    fn failures_cost_time_and_success_forgives() {
        let (limiter, mut now) = (Limiter::default(), Instant::now());
        let keys = ["address 1".to_owned(), "name ann".to_owned()];
        for _ in 0..FREE {
            limiter.attempt(&keys, now).unwrap();
        }
        assert_eq!(limiter.attempt(&keys, now), Err(WAIT));
        // From elsewhere, the same name waits too; another name does not.
        let elsewhere = ["address 2".to_owned(), "name ann".to_owned()];
        assert!(limiter.attempt(&elsewhere, now).is_err());
        limiter
            .attempt(&["address 2".to_owned(), "name bob".to_owned()], now)
            .unwrap();
        now += WAIT;
        limiter.attempt(&keys, now).unwrap();
        assert_eq!(limiter.attempt(&keys, now), Err(2 * WAIT));
        for _ in 0..40 {
            let Err(wait) = limiter.attempt(&keys, now) else {
                continue;
            };
            assert!(wait <= WAIT_MAX);
            now += wait;
        }
        limiter.succeeded(&keys);
        limiter.attempt(&keys, now).unwrap();
        limiter
            .attempt(&elsewhere, now + MEMORY + Duration::from_secs(1))
            .unwrap();
    }
}
