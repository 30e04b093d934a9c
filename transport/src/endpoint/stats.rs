//! What an endpoint counts.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Endpoint;
use crate::num::to_u64;
use crate::session::FRAME_HEADER_BYTES;

/// Counts since the session began, and the present round-trip estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Frames with records that left, or are about to.
    pub frames_out: u64,
    /// Frames with records that arrived.
    pub frames_in: u64,
    /// Bytes of those frames, headers included.
    pub bytes_out: u64,
    /// Bytes of the records that were written for the peer, without frames' headers and with what is still gathered: what
    /// the caller asked for, however it was batched.
    pub record_bytes_out: u64,
    /// Bytes received on the call plane, control frames included.
    pub bytes_in: u64,
    /// Acknowledgements and other control frames that left.
    pub controls_out: u64,
    /// Bulk transfers sent.
    pub bulk_out: u64,
    /// Bulk transfers received.
    pub bulk_in: u64,
    /// Bytes of bulk transfers sent.
    pub bulk_bytes_out: u64,
    /// Bytes of bulk transfers received.
    pub bulk_bytes_in: u64,
    /// Bytes of those that went straight between registered memory of both ends, either way.
    pub bulk_bytes_direct: u64,
    /// Batches that left because nothing was in flight.
    pub flush_idle: u64,
    /// Batches that left because an acknowledgement came.
    pub flush_ack: u64,
    /// Batches that left because they were full.
    pub flush_full: u64,
    /// Batches that left because a call waited, or asked for it.
    pub flush_forced: u64,
    /// Batches that left because the gathering time was over.
    pub flush_timer: u64,
    /// Appends that had to wait for room.
    pub blocked: u64,
    /// Times that a waiting thread slept instead of polling.
    pub sleeps: u64,
    /// Times that the connection was lost and the session went on waiting.
    pub losses: u64,
    /// Times that it went on over another connection.
    pub resumes: u64,
    /// Bytes that are registered with an RDMA device: the rings, and what transfers have needed. Memory that is mapped twice
    /// counts twice.
    pub registered_bytes: u64,
    /// Estimated round trip, biased to the fastest; 0 before the first acknowledgement.
    pub rtt_ns: u64,
}

/// Why a batch left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    Idle,
    Ack,
    Full,
    Forced,
    Timer,
}

/// The counters that no lock protects anyway.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) frames_in: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) controls_out: AtomicU64,
    pub(super) bulk_out: AtomicU64,
    pub(super) bulk_in: AtomicU64,
    pub(super) bulk_bytes_out: AtomicU64,
    pub(super) bulk_bytes_in: AtomicU64,
    pub(super) bulk_direct: AtomicU64,
    flushes: [AtomicU64; 5],
    pub(super) blocked: AtomicU64,
    pub(super) sleeps: AtomicU64,
    pub(super) losses: AtomicU64,
    pub(super) resumes: AtomicU64,
}

impl Counters {
    /// Counts where several threads may count.
    pub(super) fn add(&self, counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// Counts where one thread at a time counts (the leader, the holder of `wire`).
    #[inline]
    pub(super) fn bump(&self, counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Relaxed) + n, Relaxed);
    }

    /// Bytes of the peer so far, on all its connections.
    pub(super) fn heard(&self) -> u64 {
        self.bytes_in.load(Relaxed) + self.bulk_bytes_in.load(Relaxed)
    }

    pub(super) fn flushed(&self, why: Flush) {
        self.bump(&self.flushes[why as usize], 1);
    }
}

impl Endpoint {
    /// A snapshot of the counts. Takes the sending lock for a moment.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if !self.shared.mark.is_set() {
            return Stats::default();
        }
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let flushed = |why: Flush| counters.flushes[why as usize].load(Relaxed);
        let (frames_out, bytes_out, gathered, rtt_ns) = {
            let tx = self.shared.tx.lock();
            (tx.frames, tx.bytes, tx.sender.gathered(), tx.rtt.ns())
        };
        let headers = frames_out * to_u64(FRAME_HEADER_BYTES);
        Stats {
            frames_out,
            frames_in: get(&counters.frames_in),
            bytes_out,
            record_bytes_out: bytes_out - headers + to_u64(gathered),
            bytes_in: get(&counters.bytes_in),
            controls_out: get(&counters.controls_out),
            bulk_out: get(&counters.bulk_out),
            bulk_in: get(&counters.bulk_in),
            bulk_bytes_out: get(&counters.bulk_bytes_out),
            bulk_bytes_in: get(&counters.bulk_bytes_in),
            bulk_bytes_direct: get(&counters.bulk_direct),
            flush_idle: flushed(Flush::Idle),
            flush_ack: flushed(Flush::Ack),
            flush_full: flushed(Flush::Full),
            flush_forced: flushed(Flush::Forced),
            flush_timer: flushed(Flush::Timer),
            blocked: get(&counters.blocked),
            sleeps: get(&counters.sleeps),
            losses: get(&counters.losses),
            resumes: get(&counters.resumes),
            registered_bytes: to_u64(self.shared.link.stream().registered_bytes()),
            rtt_ns,
        }
    }
}
