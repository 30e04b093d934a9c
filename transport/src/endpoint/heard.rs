//! What the peer has said of our direction: left by the thread that receives, taken over by those that append, so
//! that neither takes the other's lock for it.
#![forbid(unsafe_code)]

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use parking_lot::MutexGuard;

use super::Shared;
use super::send::Tx;
use crate::error::Violation;

/// Positions of the sending direction, as [`crate::session::Sender`] has them, between threads.
#[derive(Debug)]
pub(super) struct Heard {
    /// Everything before this has arrived at the peer. The leader writes it.
    acked: AtomicU64,
    /// The peer allows as much. The leader writes it.
    credit: AtomicU64,
    /// End of the last sealed frame. Written under `tx`.
    sealed: AtomicU64,
    /// Where the frame ends whose round trip is timed; 0: none is. Set under `tx`, cleared by the leader.
    timed: AtomicU64,
}

impl Heard {
    /// At the start of a session in which the peer grants `credit`.
    pub(super) fn new(credit: u64) -> Self {
        Self {
            acked: AtomicU64::new(0),
            credit: AtomicU64::new(credit),
            sealed: AtomicU64::new(0),
            timed: AtomicU64::new(0),
        }
    }

    /// Everything before this has arrived at the peer.
    #[inline]
    pub(super) fn acked(&self) -> u64 {
        // SYNC: Acquire pairs with the Release in `on_ack`; the ring's bytes before it are ours again.
        self.acked.load(Acquire)
    }

    /// Whether something that was sealed has not been acknowledged.
    #[inline]
    pub(super) fn in_flight(&self) -> bool {
        self.acked() != self.sealed.load(Acquire)
    }

    /// A frame was sealed that ends here. Called under `tx`.
    #[inline]
    pub(super) fn sealed(&self, end: u64) {
        // SYNC: Release pairs with the Acquire in `on_ack`: who sees what the peer says of a frame, which left after
        // this, sees the frame's end.
        self.sealed.store(end, Release);
    }

    /// The round trip of the frame that ends here is timed. Called under `tx`.
    #[inline]
    pub(super) fn time(&self, end: u64) {
        self.timed.store(end, Relaxed);
    }

    /// The peer has everything before `acked`, as it says itself after a lost connection. Called under `tx`.
    pub(super) fn resume(&self, acked: u64) {
        self.acked.store(acked, Release);
        self.timed.store(0, Relaxed);
    }
}

impl Shared {
    /// Takes over what the peer acknowledged and granted; old news change nothing. Returns whether either moved. Called
    /// by the leader.
    ///
    /// # Errors
    /// [`Violation::AckAhead`].
    #[inline]
    pub(super) fn on_ack(&self, ack: u64, credit: u64) -> Result<bool, Violation> {
        let heard = &self.heard;
        let sealed = heard.sealed.load(Acquire);
        if ack > sealed {
            return Err(Violation::AckAhead {
                got: ack,
                sent: sealed,
            });
        }
        let (acked, granted) = (heard.acked.load(Relaxed), heard.credit.load(Relaxed));
        let moved = ack > acked || credit > granted;
        if moved {
            heard.acked.store(ack.max(acked), Release);
            heard.credit.store(credit.max(granted), Release);
        }
        let timed = heard.timed.load(Relaxed);
        if timed != 0 && ack >= timed {
            heard.timed.store(0, Relaxed);
            self.tx.lock().rtt.acknowledged(ack);
        }
        Ok(moved)
    }

    /// Brings the sending direction up to what was heard.
    #[inline]
    pub(super) fn catch_up(&self, tx: &mut Tx) {
        let (acked, credit) = (self.heard.acked(), self.heard.credit.load(Acquire));
        // `on_ack` has judged both.
        let _ = tx.sender.on_ack(acked, credit);
    }

    /// The sending direction, up to date.
    pub(super) fn tx(&self) -> MutexGuard<'_, Tx> {
        let mut tx = self.tx.lock();
        self.catch_up(&mut tx);
        tx
    }
}
