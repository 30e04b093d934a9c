//! Programs that run ahead: they issue call after call, wait for none, and are slower at it than the peer acknowledges.
//!
//! Each record would find the connection idle and leave alone, which over TCP costs the program's thread a system call
//! that takes many times as long as the record itself. Nobody waits for what such a program issues, so its records gather
//! and the helper thread sends them, a few thousand times a second at most. The next call that waits sends what
//! there is and begins anew.
#![forbid(unsafe_code)]

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Shared;
use super::send::Tx;

/// So many frames in a row leave at once: a program that waits every few calls never comes so far.
const FRAMES: u32 = 8;
/// After such a pause the program is not one that issues call after call.
const PAUSE: Duration = Duration::from_micros(500);
/// How long a record gathers, in gathering times, at most.
pub(super) const GATHERS: u32 = 10;

/// What an endpoint remembers of it.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Frames that left because nothing was in flight, since the program last waited. Threads that count at once may
    /// count one too few, which is as good.
    frames: AtomicU32,
}

impl Ahead {
    /// The program waits, or looks whether something has come.
    #[inline]
    pub(super) fn ends(&self) {
        if self.frames.load(Relaxed) != 0 {
            self.frames.store(0, Relaxed);
        }
    }

    /// Whether the program runs ahead.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.frames.load(Relaxed) >= FRAMES
    }

    /// One frame more, so long after the one before. Whether the program ran ahead already.
    fn opens(&self, pause: Option<Duration>) -> bool {
        let goes_on = pause.is_some_and(|pause| pause < PAUSE);
        let frames = if goes_on {
            self.frames.load(Relaxed)
        } else {
            0
        };
        self.frames.store(frames.saturating_add(1), Relaxed);
        frames >= FRAMES
    }
}

impl Shared {
    /// A record opens a frame while nothing is in flight: whether it gathers all the same.
    pub(super) fn runs_ahead(&self, tx: &mut Tx) -> bool {
        // A server answers somebody, who waits.
        if self.prompt_ack || self.tuning.call_by_call || !self.costly.load(Relaxed) {
            return false;
        }
        let now = Instant::now();
        let before = tx.opened.replace(now);
        self.ahead.opens(before.map(|before| now - before))
    }
}

#[cfg(test)]
mod tests {
    use super::{Ahead, FRAMES, PAUSE};

    #[test]
    fn a_program_runs_ahead_until_it_waits_or_pauses() {
        let ahead = Ahead::default();
        let short = Some(PAUSE / 2);
        assert!(!ahead.opens(None));
        for _ in 1..FRAMES {
            assert!(!ahead.is_on());
            assert!(!ahead.opens(short));
        }
        assert!(ahead.is_on() && ahead.opens(short));
        assert!(!ahead.opens(Some(PAUSE)), "a pause");
        assert!(!ahead.is_on());
        (0..FRAMES).for_each(|_| {
            ahead.opens(short);
        });
        assert!(ahead.is_on());
        ahead.ends();
        assert!(!ahead.is_on() && !ahead.opens(short), "a wait");
    }
}
