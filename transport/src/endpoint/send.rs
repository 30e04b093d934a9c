//! Appending records, and getting them onto the wire.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::rtt::Rtt;
use super::stats::Flush;
use super::wait::How;
use super::wire::{Wire, would_block};
use super::{Endpoint, Seq, Shared};
use crate::error::{CloseReason, SendError, Violation, WaitError};
use crate::num::{to_u64, to_usize};
use crate::session::{Claim, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Sender};
use crate::sys::sync::fence;

/// Send an acknowledgement alone.
pub(super) const CTL_ACK: u32 = 1;
/// Answer a ping.
pub(super) const CTL_PONG: u32 = 2;
/// Ask for a sign of life.
pub(super) const CTL_PING: u32 = 4;
/// Say that the stream ends. The last one: nothing is sent after it.
pub(super) const CTL_CLOSE: u32 = 8;
/// After sending failed: how long the receive side may take to show why, which it mostly does at once.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(200);

/// A client that waited for room goes on when this part of the ring is free.
const REFILL_PART: u64 = 4;

/// Where records gather.
pub(super) struct Tx {
    pub(super) sender: Sender,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) rtt: Rtt,
    /// When a frame was last opened while nothing was in flight.
    pub(super) opened: Option<Instant>,
}

impl Tx {
    pub(super) fn new(sender: Sender) -> Self {
        Self {
            sender,
            frames: 0,
            bytes: 0,
            rtt: Rtt::default(),
            opened: None,
        }
    }
}

/// What an append leaves to do.
enum Leave {
    Gather {
        first: bool,
    },
    /// With nothing in flight, as the program runs ahead.
    GatherAhead,
    Now(Flush),
}

impl Endpoint {
    /// Appends a record of `len` bytes to the stream: `fill` writes it where it will be sent
    /// from. It leaves at once when nothing is in flight, else together with others (see
    /// [`crate::Tuning`]); [`Endpoint::flush`] makes it leave now.
    ///
    /// Records keep the order of the calls, across threads. The record occupies a multiple of
    /// 8 bytes; the padding is zero. `fill` runs under a lock: it must not call the endpoint.
    ///
    /// Blocks only when the ring or the peer's credits are exhausted, and receives meanwhile.
    /// Allocates nothing. Costs a system call when nothing is in flight, or once per batch.
    ///
    /// # Errors
    /// [`SendError::TooLong`], or [`SendError::Closed`].
    #[inline]
    pub fn append(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Seq, SendError> {
        self.append_with(len, |bytes| {
            fill(bytes);
            len
        })
    }

    /// As [`Endpoint::append`] for a record whose length is known only after it is written:
    /// `fill` gets `len_max` bytes and returns how many it used. More counts as `len_max`.
    ///
    /// # Errors
    /// As [`Endpoint::append`].
    #[inline]
    pub fn append_with(
        &self,
        len_max: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<Seq, SendError> {
        self.append_or(len_max, |bytes| Ok::<_, SendError>(fill(bytes)))
    }

    /// As [`Endpoint::append`] for a record that may turn out not to be sent: where `fill` fails, nothing is appended.
    ///
    /// # Errors
    /// As [`Endpoint::append`], and what `fill` gives.
    // Its callers are few, and on the path of every launch.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub fn append_unless<E: From<SendError>>(
        &self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Seq, E> {
        self.append_or(len, |bytes| fill(bytes).map(|()| len))
    }

    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn append_or<E: From<SendError>>(
        &self,
        len_max: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Seq, E> {
        let (tx, end, leave) = self.commit(len_max, fill)?;
        match leave {
            Leave::Gather { first: false } => drop(tx),
            Leave::Gather { first: true } => {
                drop(tx);
                self.trailing_edge();
            }
            Leave::GatherAhead => {
                drop(tx);
                self.kick_trailing();
            }
            Leave::Now(why) => {
                self.transmit_from(tx, why);
                if self.shared.tuning.call_by_call {
                    self.await_taken();
                }
            }
        }
        Ok(Seq(end))
    }

    /// Waits until the peer has everything. Where the session ends meanwhile, the next call says so.
    #[cold]
    fn await_taken(&self) {
        if !self.shared.rx.is_mine() {
            let _ = self.wait_core(&mut || self.shared.is_drained(), false, None);
        }
    }

    /// As [`Endpoint::append`], and everything appended leaves now: for a record whose reply is waited
    /// for next. Cheaper than [`Endpoint::flush`] behind the append, which would first have made
    /// arrangements for a record that gathers.
    ///
    /// # Errors
    /// As [`Endpoint::append`].
    #[inline]
    pub fn append_now(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Seq, SendError> {
        let (tx, end, leave) = self.commit(len, |bytes| {
            fill(bytes);
            Ok::<_, SendError>(len)
        })?;
        let why = match leave {
            Leave::Now(why) => why,
            Leave::Gather { .. } | Leave::GatherAhead => Flush::Forced,
        };
        self.transmit_from(tx, why);
        Ok(Seq(end))
    }

    /// Writes a record behind the others; its end, and what is to be done about it. Where `fill` fails, the claim is
    /// dropped: nobody sends what lies beyond the tail.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn commit<E: From<SendError>>(
        &self,
        len_max: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(MutexGuard<'_, Tx>, u64, Leave), E> {
        let shared = &*self.shared;
        let limit = shared.frame_bytes_max as usize;
        if len_max > limit {
            return Err(E::from(SendError::TooLong {
                bytes: len_max,
                limit,
            }));
        }
        let (mut tx, at) = self.claim(len_max)?;
        let len = shared.fill_record(&mut tx, at, len_max, fill)?.min(len_max);
        if len < len_max {
            shared.pad_record(&mut tx, at, len);
        }
        let (end, opened) = tx.sender.commit(at, len);
        if opened {
            let released = shared.released(&tx);
            tx.sender.opened(released);
        }
        let leave = shared.leave(&mut tx, at, end, opened);
        Ok((tx, end, leave))
    }

    /// Makes everything appended leave now.
    ///
    /// Does not block: what the connection does not take at once follows as soon as it does.
    ///
    /// # Errors
    /// [`SendError::Closed`].
    pub fn flush(&self) -> Result<(), SendError> {
        self.check()?;
        self.shared.ahead.ends();
        self.flush_for(Flush::Forced);
        Ok(())
    }

    /// Flushes what is gathered, if anything is.
    #[inline]
    pub(super) fn flush_for(&self, why: Flush) {
        if self.shared.gathered.load(Acquire) || self.shared.want_write.load(Relaxed) {
            self.transmit(why);
        }
    }

    // Into every append: it is a fifth of what a record costs.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn claim(&self, len: usize) -> Result<(MutexGuard<'_, Tx>, u64), SendError> {
        let shared = &*self.shared;
        self.check()?;
        let mut tx = shared.tx.lock();
        if let Some(at) = tx.sender.claim_open(len) {
            return Ok((tx, at));
        }
        shared.catch_up(&mut tx);
        match tx.sender.claim(len, shared.released(&tx)) {
            Claim::At(at) => Ok((tx, at)),
            Claim::SealFirst | Claim::Blocked => self.claim_slow(tx, len),
        }
    }

    /// The same where the open frame, the ring or the credits are exhausted.
    #[cold]
    fn claim_slow<'a>(
        &'a self,
        mut tx: MutexGuard<'a, Tx>,
        len: usize,
    ) -> Result<(MutexGuard<'a, Tx>, u64), SendError> {
        let shared = &*self.shared;
        loop {
            if let Some(at) = shared.try_claim(&mut tx, len) {
                return Ok((tx, at));
            }
            drop(tx);
            self.wait_for_room(len)?;
            self.check()?;
            tx = shared.tx();
        }
    }

    /// Waits until the ring and the credits have room for a record.
    #[cold]
    fn wait_for_room(&self, len: usize) -> Result<(), SendError> {
        let shared = &*self.shared;
        shared.counters.add(&shared.counters.blocked, 1);
        self.transmit(Flush::Full);
        let mut has_room = || {
            let mut tx = shared.tx();
            shared.try_claim(&mut tx, len).is_some() && shared.is_worth_waking(&tx)
        };
        // SYNC: Dekker with `transmit`: either it sees a starved appender, or the first look at
        // `sent` that follows sees what it sent.
        shared.starved.fetch_add(1, SeqCst);
        let how = How {
            // Until the server has worked a part of the ring off.
            sleeps_at_once: !shared.prompt_ack,
            ..How::default()
        };
        let waited = self.wait_as(&mut has_room, how);
        shared.starved.fetch_sub(1, SeqCst);
        match waited {
            Ok(()) => Ok(()),
            Err(WaitError::Closed(why)) => Err(SendError::Closed(why)),
            // Neither happens: there is no deadline, and waiting for room delivers no frame.
            Err(WaitError::TimedOut | WaitError::InHandler) => Ok(()),
        }
    }

    /// The first record of a batch gathers: sees to it that it leaves even if the program
    /// makes no further call.
    #[cold]
    fn trailing_edge(&self) {
        if self.shared.ahead.is_on() {
            return self.kick_trailing();
        }
        // The acknowledgement may be here already: taken by a leader who did not see the record yet, or unread.
        if !self.shared.heard.in_flight() {
            return self.transmit(Flush::Ack);
        }
        if let Some(lead) = self.shared.rx.try_lead() {
            self.pump_acks(&lead);
            drop(lead);
            self.release_lead();
        }
        if self.shared.gathered.load(Acquire) {
            self.kick_trailing();
        }
    }

    /// Sends what is sealed, and what is gathered, and control frames that are due. One thread at a time does it for all.
    pub(super) fn transmit(&self, why: Flush) {
        let shared = &*self.shared;
        loop {
            let Some(wire) = shared.wire.try_lock() else {
                // SYNC: Dekker with the holder's unlock: either the fence there sees `again`,
                // or `is_locked` here sees the unlocked mutex.
                shared.again.store(true, SeqCst);
                fence(SeqCst);
                if shared.wire.is_locked() {
                    return;
                }
                continue;
            };
            if !self.transmit_round(wire, None, why) {
                return;
            }
        }
    }

    /// The same for who has just appended, and seals without taking the lock once more.
    fn transmit_from(&self, tx: MutexGuard<'_, Tx>, why: Flush) {
        // The other order than a round's: but this one does not wait.
        let Some(wire) = self.shared.wire.try_lock() else {
            drop(tx);
            return self.transmit(why);
        };
        if self.transmit_round(wire, Some(tx), why) {
            self.transmit(why);
        }
    }

    /// One round; true when somebody wants another.
    fn transmit_round<'a>(
        &'a self,
        mut wire: MutexGuard<'a, Wire>,
        tx: Option<MutexGuard<'a, Tx>>,
        why: Flush,
    ) -> bool {
        let shared = &*self.shared;
        // Mostly it is not set, and a look costs less than a store that nobody may pass.
        if shared.again.load(SeqCst) {
            shared.again.store(false, SeqCst);
        }
        let result = shared.push(&mut wire, tx, why);
        // Under the lock, so that a later round's outcome is not overwritten.
        let blocked = *result.as_ref().unwrap_or(&false);
        let newly = shared.want_write.load(Relaxed) != blocked;
        if newly {
            shared.want_write.store(blocked, SeqCst);
        }
        if let Err(error) = result {
            // Under the lock: what is found about this connection is not held against the next.
            wire.broken = true;
            shared.note_loss(wire.epoch, CloseReason::of_stream(error), GOODBYE_PATIENCE);
            drop(wire);
            shared.gathered.store(false, Release);
            // Whoever receives finds out whether the peer closed in good order before.
            self.wake_receiver();
            return false;
        }
        drop(wire);
        if newly && blocked {
            self.wake_writer();
        }
        fence(SeqCst);
        if shared.starved.load(SeqCst) > 0 {
            // `sent` may have been all that an appender waits for.
            self.notify();
        }
        shared.again.load(SeqCst)
    }

    /// Sends control frames of these kinds.
    pub(super) fn send_control(&self, bits: u32) {
        self.shared.control.fetch_or(bits, AcqRel);
        self.transmit(Flush::Forced);
    }

    /// Fails when the session is over or belongs to another process.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(super) fn check(&self) -> Result<(), CloseReason> {
        if !self.shared.mark.is_set() {
            return Err(CloseReason::Forked);
        }
        // SYNC: Acquire pairs with the Release in `fail`, which sets the reason first.
        if self.shared.closed.load(Acquire) {
            return Err(self.shared.reason());
        }
        Ok(())
    }
}

impl Shared {
    /// The flush policy: whether a record from `start` to `end` leaves now.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn leave(&self, tx: &mut MutexGuard<'_, Tx>, start: u64, end: u64, opened: bool) -> Leave {
        if opened && !self.heard.in_flight() {
            return self.leave_idle(tx);
        }
        let unsent = end - self.sent.load(Relaxed);
        let batch = u64::from(self.tuning.batch_bytes);
        // A connection that took less than there is, is tried again with every further batch: to be woken when it
        // takes more would cost more than that.
        if unsent >= batch && (!self.want_write.load(Relaxed) || (end - start) > end % batch) {
            return Leave::Now(Flush::Full);
        }
        // SYNC: Release pairs with the Acquire of whoever flushes for us.
        Leave::Gather {
            first: opened && !self.gathered.swap(true, Release),
        }
    }

    /// The same where nothing is in flight.
    fn leave_idle(&self, tx: &mut MutexGuard<'_, Tx>) -> Leave {
        if !self.runs_ahead(tx) {
            return Leave::Now(Flush::Idle);
        }
        // SYNC: as in `leave`.
        self.gathered.store(true, Release);
        Leave::GatherAhead
    }

    /// Up to where the ring's bytes are neither retained nor being sent.
    #[inline]
    fn released(&self, tx: &MutexGuard<'_, Tx>) -> u64 {
        // SYNC: Acquire pairs with the Release in `push`: the kernel has read these bytes.
        tx.sender.acked().min(self.sent.load(Acquire))
    }

    /// Room for a record, sealing the open frame if it has none.
    fn try_claim(&self, tx: &mut MutexGuard<'_, Tx>, len: usize) -> Option<u64> {
        self.catch_up(tx);
        loop {
            match tx.sender.claim(len, self.released(tx)) {
                Claim::At(at) => return Some(at),
                Claim::SealFirst => self.seal(tx),
                Claim::Blocked => return None,
            }
        }
    }

    /// Whether an appender that waited may go on. A client that fills the ring is ahead of its server and would
    /// sleep and wake for every few records: it waits for a part of the ring. A server acknowledges all that
    /// it received, so that part becomes free; a client acknowledges when it sends, so its server cannot wait for it.
    fn is_worth_waking(&self, tx: &MutexGuard<'_, Tx>) -> bool {
        let used = tx.sender.tail() - self.released(tx);
        let ring_bytes = to_u64(self.tx_ring.bytes());
        self.prompt_ack || !tx.sender.in_flight() || ring_bytes - used >= ring_bytes / REFILL_PART
    }

    /// Ends the open frame, if there is one.
    fn seal(&self, tx: &mut MutexGuard<'_, Tx>) {
        let (ack, credit) = self.tell();
        if let Some((at, header)) = tx.sender.seal(ack, credit) {
            self.write_header(tx, at, &header);
            self.heard.sealed(tx.sender.sealed());
            tx.frames += 1;
            tx.bytes += to_u64(FRAME_HEADER_BYTES) + u64::from(header.len());
        }
    }

    /// Makes sending go on at `at`, which the peer names after a lost connection. Allocates nothing.
    pub(super) fn rewind(&self, tx: &mut MutexGuard<'_, Tx>, at: u64) -> Result<(), Violation> {
        let mut sender = tx.sender.clone();
        sender.resume(at, |boundary| self.retained_len(tx, boundary))?;
        tx.sender = sender;
        tx.rtt.forget();
        self.heard.resume(at);
        Ok(())
    }

    /// Acknowledgement and credit for a header that leaves now.
    fn tell(&self) -> (u64, u64) {
        let ack = self.rx_ack.load(Acquire);
        let credit = self.rx_credit.load(Acquire);
        self.told_ack.store(ack, Relaxed);
        self.told_credit.store(credit, Relaxed);
        (ack, credit)
    }

    /// One round of sending, by who may have `tx` already; true when the connection took less than there is.
    fn push(
        &self,
        wire: &mut Wire,
        mut tx: Option<MutexGuard<'_, Tx>>,
        why: Flush,
    ) -> io::Result<bool> {
        if wire.broken {
            self.gathered.store(false, Release);
            return Ok(false);
        }
        if wire.has_control() {
            // Nobody holds `tx` through a system call.
            drop(tx.take());
            if !wire.finish_control()? {
                return Ok(true);
            }
        }
        let sealed = {
            let mut tx = tx.unwrap_or_else(|| self.tx.lock());
            if tx.sender.is_open() {
                self.counters.flushed(why);
                self.seal(&mut tx);
            }
            self.gathered.store(false, Release);
            let (frames, sealed) = (tx.frames, tx.sender.sealed());
            if wire.sent < sealed && tx.rtt.leaves(frames, sealed) {
                self.heard.time(sealed);
            }
            sealed
        };
        if wire.sent < sealed {
            let bytes = self.unsent(wire, sealed);
            let sent = would_block(wire.stream.send(&[IoSlice::new(bytes)]))?;
            wire.sent += to_u64(sent);
            // SYNC: Release pairs with the Acquire in `try_claim`.
            self.sent.store(wire.sent, Release);
        }
        if wire.sent < sealed {
            return Ok(true);
        }
        self.push_control(wire, sealed)
    }

    /// Sends due control frames; the stream stands at a frame boundary.
    fn push_control(&self, wire: &mut Wire, sealed: u64) -> io::Result<bool> {
        // Mostly nothing is, and a look costs less than an exchange. Who makes something due transmits next: that is seen
        // by this round or by the one behind it.
        if self.control.load(Relaxed) == 0 {
            return Ok(false);
        }
        let due = self.control.swap(0, AcqRel);
        for bit in [CTL_ACK, CTL_PONG, CTL_PING, CTL_CLOSE] {
            if due & bit == 0 {
                continue;
            }
            if !wire.finish_control()? {
                // Still due.
                self.control.fetch_or(due & !(bit - 1), AcqRel);
                return Ok(true);
            }
            let told = (self.told_ack.load(Relaxed), self.told_credit.load(Relaxed));
            let (ack, credit) = self.tell();
            let bulk = self.bulk_received.load(Acquire);
            let (kind, seq) = match bit {
                // A data frame carried it meanwhile.
                CTL_ACK if told == (ack, credit) && self.told_bulk.load(Relaxed) == bulk => {
                    continue;
                }
                CTL_ACK => {
                    self.told_bulk.store(bulk, Relaxed);
                    (FrameKind::Ack, bulk)
                }
                CTL_PING => {
                    self.tx.lock().rtt.pinged();
                    (FrameKind::Ping, 0)
                }
                CTL_PONG => (FrameKind::Pong, self.pong.load(Acquire)),
                _ => (FrameKind::Close, sealed),
            };
            wire.rest = FrameHeader::new(kind, 0, seq, ack, credit).bytes();
            wire.rest_at = 0;
            self.counters.add(&self.counters.controls_out, 1);
        }
        Ok(!wire.finish_control()?)
    }

    /// A ping was answered.
    pub(super) fn on_pong(&self) {
        self.tx.lock().rtt.ponged();
    }

    /// Everything sealed has left and is acknowledged, and nothing is gathered.
    pub(super) fn is_drained(&self) -> bool {
        let tx = self.tx();
        !tx.sender.is_open() && !tx.sender.in_flight()
    }

    /// End of everything that was appended.
    pub(super) fn tail(&self) -> u64 {
        self.tx.lock().sender.tail()
    }

    /// Bytes that were appended and not acknowledged.
    pub(super) fn unacked_bytes(&self) -> usize {
        let tx = self.tx();
        to_usize(tx.sender.tail() - tx.sender.acked())
    }
}
