//! An event count: threads that only wait for other threads of the process.
//! `tests/loom.rs` compiles this file with loom's atomics and tries every order of events.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::futex;
use super::sync::{
    AtomicU32,
    Ordering::{Relaxed, SeqCst},
    fence,
};

/// Lets threads wait until something that they check themselves may have changed.
///
/// A waiter reads [`EventCount::epoch`], checks its condition, then sleeps while the epoch
/// stands; whoever changes the condition calls [`EventCount::advance`] afterwards. No wake-up
/// is lost: either the waiter sees the change, or the epoch it read is old.
#[derive(Debug, Default)]
pub(crate) struct EventCount {
    epoch: AtomicU32,
    waiters: AtomicU32,
}

impl EventCount {
    /// Announces a waiter, so that `advance` takes the trouble.
    pub(crate) fn enter(&self) {
        self.waiters.fetch_add(1, Relaxed);
        // SYNC: Dekker with the fence in `advance`: either it sees this waiter, or this waiter's
        // following check sees what was done before `advance`.
        fence(SeqCst);
    }

    pub(crate) fn leave(&self) {
        self.waiters.fetch_sub(1, Relaxed);
    }

    pub(crate) fn epoch(&self) -> u32 {
        // SYNC: SeqCst pairs with `advance`: whoever reads the new epoch sees the change too.
        self.epoch.load(SeqCst)
    }

    /// Wakes every waiter. Costs a fence and a load when there is none.
    #[inline]
    pub(crate) fn advance(&self) {
        // SYNC: Dekker with the fence in `enter`.
        fence(SeqCst);
        if self.waiters.load(Relaxed) == 0 {
            return;
        }
        // SYNC: SeqCst pairs with the load in `epoch`; the kernel compares the word under its own
        // lock, so a sleep with an old epoch returns at once.
        self.epoch.fetch_add(1, SeqCst);
        futex::wake_all(&self.epoch);
    }

    /// Sleeps while the epoch is `seen`, at most `timeout`. May return early.
    pub(crate) fn sleep(&self, seen: u32, timeout: Option<Duration>) {
        futex::wait(&self.epoch, seen, timeout);
    }
}
