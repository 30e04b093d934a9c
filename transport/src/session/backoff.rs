//! How long to wait between attempts to reconnect.

use std::time::Duration;

/// Waits double from [`Backoff::FIRST`] to [`Backoff::MOST`]; each is drawn from its upper half, so that
/// the many clients of a server that comes back do not all knock at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    state: u64,
}

impl Backoff {
    /// The first wait, at most.
    pub const FIRST: Duration = Duration::from_millis(20);
    /// The longest wait.
    pub const MOST: Duration = Duration::from_secs(2);

    /// `seed` tells clients apart.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            next: Self::FIRST,
            state: seed,
        }
    }

    /// How long to wait now.
    pub fn wait(&mut self) -> Duration {
        let most = self.next;
        self.next = (self.next * 2).min(Self::MOST);
        // A step of a linear congruential generator (Knuth's MMIX); its high bits are the good ones.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let share = u32::try_from(self.state >> 48).unwrap_or(0);
        most / 2 + (most / 2) * share / 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_differ_between_clients() {
        let (mut one, mut other) = (Backoff::new(1), Backoff::new(2));
        let mut most = Backoff::FIRST;
        let mut differ = 0;
        for _ in 0..20 {
            let (a, b) = (one.wait(), other.wait());
            for wait in [a, b] {
                assert!((most / 2..=most).contains(&wait), "{wait:?} of {most:?}");
            }
            differ += u32::from(a != b);
            most = (most * 2).min(Backoff::MOST);
        }
        assert!(differ > 15);
    }
}
