//! Sending on the bulk plane, from the caller's memory; and what a lost connection takes back.
//!
//! A transfer is over for its sender when the system has taken the bytes: the memory may be reused. What
//! the peer has not received by then is kept here, up to `RETAINED_BYTES_MAX`, until the peer says that it
//! has; so it can be sent again on another connection.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::time::Instant;

use parking_lot::MutexGuard;

use super::bulk_in::BULK_PATIENCE;
use super::bulk_wire::{BULK_HEADER_BYTES, BulkHeader, Cursor};
use super::stats::Flush;
use super::{Endpoint, Shared};
use crate::error::{CloseReason, SendError, Violation, WaitError};
use crate::num::{to_u64, to_usize};
use crate::stream::Stream;

/// Most bytes that are kept of transfers that are over; one that leaves more waits for its peer. About
/// what the buffers of a connection hold, so that waiting is the exception.
const RETAINED_BYTES_MAX: u64 = 4 << 20;

/// Sends what is not kept, from a position on: how far it came, and whether the connection broke there.
type Body<'a> = dyn FnMut(&dyn Stream, u64) -> (u64, io::Result<()>) + 'a;

/// The sending half. Positions count the bytes of all transfers, headers included.
#[derive(Default)]
pub(super) struct BulkOut {
    stream: Option<Arc<dyn Stream>>,
    /// Whether `stream` is the present one, and still works.
    live: bool,
    /// Number of the last change of connection that was taken over.
    version: u64,
    /// For reports of a loss.
    epoch: u64,
    /// Handshake bytes that go first.
    prelude: Vec<u8>,
    /// Sent up to here.
    sent: u64,
    /// End of the last transfer that is over.
    end: u64,
    /// The last bytes before `end`.
    retained: VecDeque<u8>,
}

impl Endpoint {
    /// Sends `parts` as transfer `id`, straight from the caller's memory, after flushing what
    /// was appended. The peer receives it where it posted `id`. Returns when the system has
    /// taken the bytes: the memory may be reused.
    ///
    /// Blocks for as long as the peer does not receive, and receives meanwhile. Transfers of
    /// several threads go one after the other. Where the session can be resumed
    /// ([`crate::Tuning::grace`]), up to 4 MiB of what is under way at the end are copied.
    ///
    /// # Errors
    /// [`SendError::Closed`].
    pub fn bulk_send(&self, id: u64, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        self.check()?;
        self.flush_for(Flush::Forced);
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut out = self.lock_bulk_out()?;
        let (header, parts) = if self.send_beside(&mut out, id, parts, total)? {
            (BulkHeader::placed(id, to_u64(total)).bytes(), &[][..])
        } else {
            (BulkHeader::new(id, to_u64(total)).bytes(), parts)
        };
        let through: usize = parts.iter().map(|part| part.len()).sum();
        let start = out.end;
        let goal = start + to_u64(BULK_HEADER_BYTES + through);
        let mut cursor = Cursor::new(&header, parts);
        loop {
            self.send_up_to(&mut out, goal, &mut |stream, at| {
                cursor.seek(to_usize(at - start));
                let outcome = cursor.send(stream);
                (start + to_u64(cursor.position()), outcome)
            })?;
            if self.settle_bulk(&out, goal)? {
                break;
            }
        }
        out.retain(&self.shared, start, goal, &header, parts);
        drop(out);
        self.notify();
        let counters = &self.shared.counters;
        counters.add(&counters.bulk_out, 1);
        counters.add(&counters.bulk_bytes_out, to_u64(total));
        Ok(())
    }

    /// Sends until `goal`: first what is kept, then what `body` sends from a position on.
    fn send_up_to(
        &self,
        out: &mut BulkOut,
        goal: u64,
        body: &mut Body<'_>,
    ) -> Result<(), CloseReason> {
        let mut broken = None;
        let mut step = || match self.bulk_out_step(out, goal, body) {
            Ok(done) => done,
            Err(violation) => {
                broken = Some(violation);
                true
            }
        };
        if !step() {
            self.wait_core(&mut step, true, None).map_err(only_closed)?;
        }
        match broken {
            Some(violation) => {
                self.fail(violation.into());
                Err(self.shared.reason())
            }
            None => Ok(()),
        }
    }

    /// Sends what the connection takes now; true when everything up to `goal` is sent.
    fn bulk_out_step(
        &self,
        out: &mut BulkOut,
        goal: u64,
        body: &mut Body<'_>,
    ) -> Result<bool, Violation> {
        self.refresh_bulk_out(out)?;
        let Some(stream) = out.stream.clone().filter(|_| out.live) else {
            return Ok(false);
        };
        match out.send(&*stream, body) {
            Ok(()) => {
                out.settle_fresh(&self.shared);
                Ok(out.sent == goal)
            }
            Err(error) => {
                out.live = false;
                self.report_loss(out.epoch, CloseReason::of_stream(error), BULK_PATIENCE);
                Ok(false)
            }
        }
    }

    /// Takes over a change of the connection, and opens it on a client.
    fn refresh_bulk_out(&self, out: &mut BulkOut) -> Result<(), Violation> {
        if !out.live && self.open_bulk().is_err() {
            // Shows as the loss of the session's connection, or will be tried again.
            return Ok(());
        }
        out.refresh(&self.shared)
    }

    /// The connection, if it is there and has nothing left to send of earlier transfers.
    pub(super) fn stream_at_rest(
        &self,
        out: &mut BulkOut,
    ) -> Result<Option<Arc<dyn Stream>>, CloseReason> {
        if let Err(violation) = self.refresh_bulk_out(out) {
            self.fail(violation.into());
            return Err(self.shared.reason());
        }
        let at_rest = out.live && out.sent == out.end && out.prelude.is_empty();
        if at_rest {
            out.settle_fresh(&self.shared);
        }
        Ok(out.stream.clone().filter(|_| at_rest))
    }

    /// Waits until no more than may be kept is under way. False: the connection changed, and there may be
    /// more to send again.
    fn settle_bulk(&self, out: &BulkOut, goal: u64) -> Result<bool, CloseReason> {
        let shared = &*self.shared;
        let keeps = out
            .stream
            .as_ref()
            .is_none_or(|stream| stream.keeps_unread());
        if keeps || !shared.can_resume() {
            return Ok(true);
        }
        let changed = || shared.bulk_version.load(SeqCst) != out.version;
        let few = || goal.saturating_sub(shared.bulk_acked.load(Acquire)) <= RETAINED_BYTES_MAX;
        if !few() {
            self.wait_core(&mut || changed() || few(), false, None)
                .map_err(only_closed)?;
        }
        Ok(!changed())
    }

    /// Sends what must go first on a new bulk connection, as much as it takes now: the handshake, and what
    /// the peer lacks of earlier transfers. Whoever sends a transfer at the moment does it as well. Called by
    /// the leader.
    pub(super) fn freshen_bulk(&self) {
        let shared = &*self.shared;
        if !shared.bulk_fresh.load(SeqCst) {
            return;
        }
        let Some(mut out) = shared.bulk_out.try_lock() else {
            return;
        };
        let goal = out.end;
        let outcome = self.bulk_out_step(&mut out, goal, &mut |_, at| (at, Ok(())));
        drop(out);
        if let Err(violation) = outcome {
            self.fail(violation.into());
        }
        // Someone may have found the lock taken.
        shared.events.advance();
    }

    /// Waits until a new bulk connection has taken what must go first on it, or is gone again.
    pub(super) fn flush_bulk(&self, deadline: Option<Instant>) -> Result<(), WaitError> {
        let shared = &*self.shared;
        let version = shared.bulk_version.load(SeqCst);
        let mut flushed =
            || !shared.bulk_fresh.load(SeqCst) || shared.bulk_version.load(SeqCst) != version;
        if flushed() {
            return Ok(());
        }
        self.wait_core(&mut flushed, true, deadline)
    }

    /// The right to send on the bulk plane.
    fn lock_bulk_out(&self) -> Result<MutexGuard<'_, BulkOut>, CloseReason> {
        let shared = &*self.shared;
        let mut guard = None;
        let mut lock = || {
            guard = shared.bulk_out.try_lock();
            guard.is_some()
        };
        if !lock() {
            self.wait_core(&mut lock, false, None)
                .map_err(only_closed)?;
        }
        // `wait_core` returns Ok only after `lock` said true.
        Ok(guard.unwrap_or_else(|| shared.bulk_out.lock()))
    }
}

impl BulkOut {
    /// End of the last transfer that is over.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Number of the last change of connection that was taken over.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The connection is found broken; for the report.
    pub(super) fn break_off(&mut self) -> u64 {
        self.live = false;
        self.epoch
    }

    /// Takes over a change of the connection, if there was one.
    fn refresh(&mut self, shared: &Shared) -> Result<(), Violation> {
        if self.version == shared.bulk_version.load(SeqCst) {
            return Ok(());
        }
        let mut bulk = shared.bulk_in.lock();
        self.version = shared.bulk_version.load(SeqCst);
        let Some((stream, prelude, start)) = bulk.take_out() else {
            self.live = false;
            return Ok(());
        };
        drop(bulk);
        self.prelude = prelude;
        self.rewind(start)?;
        self.stream = Some(stream);
        self.live = true;
        self.epoch = shared.link.epoch();
        Ok(())
    }

    /// Goes back to what the peer says it has.
    fn rewind(&mut self, to: u64) -> Result<(), Violation> {
        let kept_from = self.end - to_u64(self.retained.len());
        if to > self.sent {
            return Err(Violation::ResumePosition(to));
        }
        if to < self.end.min(kept_from) {
            let back = to_usize(self.sent - to);
            let old = self.stream.as_ref().and_then(|stream| stream.unread(back));
            let mut bytes = old.ok_or(Violation::ResumePosition(to))?;
            // What belongs to a transfer that is not over is sent from its sender's memory.
            bytes.truncate(to_usize(self.end - to));
            self.retained = bytes.into();
        }
        self.sent = to;
        Ok(())
    }

    /// Says so when everything that must go first on the present connection has left.
    fn settle_fresh(&self, shared: &Shared) {
        if shared.bulk_fresh.load(SeqCst) && self.prelude.is_empty() && self.sent >= self.end {
            // Under the lock, so that it is not said of a connection that comes just now.
            let bulk = shared.bulk_in.lock();
            if self.version == shared.bulk_version.load(SeqCst) {
                shared.bulk_fresh.store(false, SeqCst);
            }
            drop(bulk);
        }
    }

    /// Sends what is left of the handshake; true when nothing is.
    fn finish_prelude(&mut self) -> io::Result<bool> {
        while let (Some(stream), false) = (&self.stream, self.prelude.is_empty()) {
            match stream.send(&[IoSlice::new(&self.prelude)]) {
                Ok(sent) => drop(self.prelude.drain(..sent)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn send(&mut self, stream: &dyn Stream, body: &mut Body<'_>) -> io::Result<()> {
        if !self.finish_prelude()? {
            return Ok(());
        }
        while self.sent < self.end {
            let at = self.retained.len() - to_usize(self.end - self.sent);
            let (first, second) = self.retained.as_slices();
            let parts = match at.checked_sub(first.len()) {
                Some(in_second) => [IoSlice::new(&second[in_second..]), IoSlice::new(&[])],
                None => [IoSlice::new(&first[at..]), IoSlice::new(second)],
            };
            match stream.send(&parts) {
                Ok(sent) => self.sent += to_u64(sent),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        let (sent, outcome) = body(stream, self.sent);
        self.sent = sent;
        outcome
    }

    /// The transfer from `start` to `goal` is over: keeps what the peer may not have of it.
    fn retain(
        &mut self,
        shared: &Shared,
        start: u64,
        goal: u64,
        header: &[u8],
        parts: &[IoSlice<'_>],
    ) {
        self.end = goal;
        let keeps = self
            .stream
            .as_ref()
            .is_none_or(|stream| stream.keeps_unread());
        if keeps || !shared.can_resume() {
            return self.retained.clear();
        }
        let acked = shared.bulk_acked.load(Acquire).min(goal);
        let kept_from = start - to_u64(self.retained.len());
        let known = to_usize(acked.saturating_sub(kept_from)).min(self.retained.len());
        self.retained.drain(..known);
        let mut skip = to_usize(acked.saturating_sub(start));
        for part in std::iter::once(header).chain(parts.iter().map(|part| &**part)) {
            let skipped = skip.min(part.len());
            self.retained.extend(&part[skipped..]);
            skip -= skipped;
        }
    }
}

/// Waits without a deadline that deliver nothing end early only with the session.
pub(super) fn only_closed(error: WaitError) -> CloseReason {
    match error {
        WaitError::Closed(why) => why,
        WaitError::TimedOut | WaitError::InHandler => CloseReason::Local,
    }
}
