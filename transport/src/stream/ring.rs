//! How two processes share a ring: positions that only grow, each written by one side, and words
//! that say who sleeps. The bytes are somebody else's business.
//!
//! No process trusts the other: a word of the peer's is read once, and what it comes to is checked.
//! `tests/loom.rs` compiles this file with loom's atomics and tries every order of events.
#![forbid(unsafe_code)]

use super::sync::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    TOLD_PARTS, fence,
};

/// In [`Words::waits`]: sleeps until something is produced.
pub(crate) const WAITS_READ: u32 = 1;
/// In [`Words::waits`]: sleeps until something is consumed.
pub(crate) const WAITS_WRITE: u32 = 2;

/// What one side writes and the other only reads; on lines of their own.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Words {
    /// How far this side has produced in its own ring.
    produced: Line<AtomicU64>,
    /// How far this side has consumed of the opposite ring.
    consumed: Line<AtomicU64>,
    /// `WAITS_*`: this side sleeps.
    waits: Line<AtomicU32>,
    /// Nonzero: nothing more is produced.
    ended: Line<AtomicU32>,
}

#[derive(Debug, Default)]
#[repr(C, align(64))]
struct Line<T>(T);

/// The peer wrote a position that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Impossible;

/// What one side knows, in memory of its own.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// How far this side has consumed of the opposite ring, be it that the peer was not told yet.
    consumed: Line<AtomicU64>,
    /// How far the peer was last seen to have consumed of this side's ring.
    freed: Line<AtomicU64>,
}

/// Both sides' words, seen from one side. One thread at a time produces, one consumes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sides<'a> {
    pub(crate) near: &'a Words,
    pub(crate) far: &'a Words,
    pub(crate) known: &'a Known,
}

impl Sides<'_> {
    /// Where the next byte is produced, and how many fit from there in our ring of `ring_bytes`: as was last seen, where
    /// that is at least `wanted`.
    #[inline]
    pub(crate) fn room(self, ring_bytes: u64, wanted: u64) -> Result<(u64, u64), Impossible> {
        // Our own word; nobody else writes it.
        let produced = self.near.produced.0.load(Relaxed);
        // Ours, too, and checked when it was seen: no more than a ring behind.
        let room = ring_bytes - (produced - self.known.freed.0.load(Relaxed));
        if room >= wanted {
            return Ok((produced, room));
        }
        // SYNC: Acquire pairs with the Release in the peer's `consume`: it is done with the bytes.
        let consumed = self.far.consumed.0.load(Acquire);
        let used = between(consumed, produced, ring_bytes)?;
        self.known.freed.0.store(consumed, Relaxed);
        Ok((produced, ring_bytes - used))
    }

    /// Everything that was written so far.
    pub(crate) fn produced(self) -> u64 {
        self.near.produced.0.load(Relaxed)
    }

    /// Everything before `position` of our ring is there.
    #[inline]
    pub(crate) fn produce(self, position: u64) {
        // SYNC: Release pairs with the Acquire in the peer's `available`.
        self.near.produced.0.store(position, Release);
    }

    /// Where the next byte is consumed, and how many are there in the peer's ring of `ring_bytes`.
    #[inline]
    pub(crate) fn available(self, ring_bytes: u64) -> Result<(u64, u64), Impossible> {
        let consumed = self.known.consumed.0.load(Relaxed);
        // SYNC: Acquire pairs with the Release in the peer's `produce`: its bytes are there.
        let produced = self.far.produced.0.load(Acquire);
        let there = between(consumed, produced, ring_bytes)?;
        Ok((consumed, there))
    }

    /// Whether the peer has produced more than was consumed: a hint, [`Self::available`] says what there is.
    #[inline]
    pub(crate) fn has_news(self) -> bool {
        self.far.produced.0.load(Relaxed) != self.known.consumed.0.load(Relaxed)
    }

    /// We are done with everything before `position` of the peer's ring of `ring_bytes`. Whether the peer is told: then
    /// it may have to be woken.
    ///
    /// It is told of parts only: to tell it of every few bytes would move the word's line between the processors with
    /// every message, for room that it has anyway. Where it finds the ring full, more than the last part has yet to be
    /// consumed, so it is told before everything is.
    #[inline]
    pub(crate) fn consume(self, position: u64, ring_bytes: u64) -> bool {
        self.known.consumed.0.store(position, Relaxed);
        // Our own word; nobody else writes it.
        let told = self.near.consumed.0.load(Relaxed);
        let is_due = position.wrapping_sub(told) >= ring_bytes / TOLD_PARTS;
        if is_due {
            // SYNC: Release pairs with the Acquire in the peer's `room`: the copies are done.
            self.near.consumed.0.store(position, Release);
        }
        is_due
    }

    /// After `produce` or `consume`: whether the peer sleeps for it and must be woken.
    #[inline]
    pub(crate) fn peer_sleeps(self, what: u32) -> bool {
        // SYNC: Dekker with the fence in the peer's `announce`: it announces its sleep, then looks
        // again; we publish, then look whether it sleeps. One of the two sees the other.
        fence(SeqCst);
        self.far.waits.0.load(Relaxed) & what != 0
    }

    /// Before sleeping; the caller then looks again at what it waits for, and sleeps only if that
    /// is still not there.
    pub(crate) fn announce(self, what: u32) {
        self.near.waits.0.fetch_or(what, Relaxed);
        // SYNC: Dekker with the fence in the peer's `peer_sleeps`.
        fence(SeqCst);
    }

    /// Nobody here sleeps any more. Waking for nothing in between is harmless.
    pub(crate) fn retract(self) {
        self.near.waits.0.store(0, Relaxed);
    }

    /// Nothing more is produced; the peer is to be woken.
    pub(crate) fn end(self) {
        // SYNC: Release pairs with the Acquire in the peer's `peer_ended`: what was produced before
        // is seen by whoever sees the end.
        self.near.ended.0.store(1, Release);
    }

    /// Whether the peer produces nothing more. What it produced before counts: look at `available`
    /// after this.
    pub(crate) fn peer_ended(self) -> bool {
        // SYNC: Acquire pairs with the Release in the peer's `end`.
        self.far.ended.0.load(Acquire) != 0
    }
}

/// How far it is from what was consumed to what was produced; backwards, or more than a ring, is a lie.
#[inline]
fn between(consumed: u64, produced: u64, ring_bytes: u64) -> Result<u64, Impossible> {
    match produced.checked_sub(consumed) {
        Some(distance) if distance <= ring_bytes => Ok(distance),
        _ => Err(Impossible),
    }
}
