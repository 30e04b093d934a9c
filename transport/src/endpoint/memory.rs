//! The only places where an endpoint touches ring memory, with the proofs that no two
//! threads touch the same bytes.

use parking_lot::MutexGuard;

use super::receive::Rx;
use super::send::Tx;
use super::wire::Wire;
use super::{Endpoint, Shared};
use crate::num::{align8, to_usize};
use crate::session::{FRAME_HEADER_BYTES, FrameHeader};

impl Shared {
    /// Lets `fill` write a claimed record. `at` comes from a claim under this same guard.
    // As `append_unless`, of which it is most.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(super) fn fill_record<R>(
        &self,
        _tx: &mut MutexGuard<'_, Tx>,
        at: u64,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        // SAFETY: `claim` gave out `at .. at + align8(len)`: beyond `sealed`, so no writer sends it,
        // and less than a ring beyond what is acknowledged and sent, so it aliases no retained
        // byte. The guard keeps every other appender out. The peer cannot reach this memory.
        let bytes = unsafe { self.tx_ring.slice_mut(at, align8(len)) };
        // Before, and the whole last word: one store. Most records have no padding.
        if !len.is_multiple_of(8)
            && let Some(last) = bytes.last_chunk_mut::<8>()
        {
            *last = [0; 8];
        }
        fill(&mut bytes[..len])
    }

    /// Clears what a record shorter than its claim leaves in its last 8 bytes.
    #[inline]
    pub(super) fn pad_record(&self, _tx: &mut MutexGuard<'_, Tx>, at: u64, len: usize) {
        // SAFETY: inside the claim that `fill_record` wrote, under the same guard.
        let bytes = unsafe { self.tx_ring.slice_mut(at, align8(len)) };
        bytes[len..].fill(0);
    }

    /// Writes the header of a frame that was just sealed under this guard.
    pub(super) fn write_header(&self, _tx: &mut MutexGuard<'_, Tx>, at: u64, header: &FrameHeader) {
        // SAFETY: the header's room is part of the frame, which no writer sends before this
        // guard is released, and the guard keeps every appender out.
        let room = unsafe { self.tx_ring.slice_mut(at, FRAME_HEADER_BYTES) };
        room.copy_from_slice(&header.bytes());
    }

    /// Payload length of the sealed frame at `at`, which is retained.
    pub(super) fn retained_len(&self, tx: &MutexGuard<'_, Tx>, at: u64) -> u32 {
        assert!((tx.sender.acked()..tx.sender.sealed()).contains(&at));
        // SAFETY: `at .. at + header` is retained: sealed, and not acknowledged as far as `tx` knows, whose guard keeps
        // every appender out: so nobody writes there.
        let bytes = unsafe { self.tx_ring.slice(at, FRAME_HEADER_BYTES) };
        let mut header = [0; FRAME_HEADER_BYTES];
        header.copy_from_slice(bytes);
        // Our own header: it decodes.
        FrameHeader::decode(&header, u32::MAX).map_or(0, |header| header.len())
    }

    /// The sealed bytes from what was sent up to `sealed`.
    pub(super) fn unsent<'a>(&'a self, wire: &'a Wire, sealed: u64) -> &'a [u8] {
        // SAFETY: sealed bytes are not written again until they are acknowledged and sent
        // (`released`), and `wire` says that these are not sent; the borrow of `wire` keeps it
        // so. `sealed - sent` is at most a ring.
        unsafe { self.tx_ring.slice(wire.sent, to_usize(sealed - wire.sent)) }
    }

    /// A header that was received completely.
    #[inline]
    pub(super) fn received_header(&self, rx: &Rx, at: u64) -> [u8; FRAME_HEADER_BYTES] {
        assert!(at + FRAME_HEADER_BYTES as u64 <= rx.filled);
        // SAFETY: below `filled`: received, and not overwritten before it is consumed. `rx`
        // comes from the leader, who alone receives.
        let bytes = unsafe { self.rx_ring.slice(at, FRAME_HEADER_BYTES) };
        let mut header = [0; FRAME_HEADER_BYTES];
        header.copy_from_slice(bytes);
        header
    }

    /// Receives what the stream has into the free part of the ring.
    #[inline]
    pub(super) fn fill_ring(&self, rx: &Rx, room: usize) -> std::io::Result<usize> {
        // SAFETY: `filled .. filled + room` is less than a ring beyond `consumed`: free, and
        // no slice into it lives. Only the leader, who has `rx`, receives.
        let free = unsafe { self.rx_ring.slice_uninit(rx.filled, room) };
        rx.stream.recv(free)
    }
}

impl Endpoint {
    /// Hands the frame at `at`, the next to be consumed, to the handler. Only for `deliver`,
    /// which leads, and advances `consumed` after this returns.
    #[inline]
    pub(super) fn hand_over(&self, at: u64, len: u32) {
        let shared = &*self.shared;
        // SAFETY: the frame is parsed, so received whole, and not consumed before the handler
        // returns; receiving writes only beyond `filled` and less than a ring beyond
        // `consumed`. Nested receiving (a handler that waits for room) does not consume.
        let frame = unsafe {
            shared
                .rx_ring
                .slice(at + FRAME_HEADER_BYTES as u64, len as usize)
        };
        shared.handler.on_frame(self, frame);
    }
}
