//! Transfers beside the bulk stream: straight between registered memory of both ends, where the connection
//! can do that (RDMA) and the client's memory was lent.
//!
//! The server does it all: it reads what the client offers, and writes where the client lets it. The stream then
//! carries only a header that says that the bytes are in place. Until that header has left its sender, nothing
//! of the transfer counts as sent, so whatever goes wrong before, the transfer goes through the stream, on this
//! connection or on the next; a receiver that has everything already throws such bytes away.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::Endpoint;
use super::bulk_in::{BulkIn, Current, Dest, Step};
use super::bulk_out::{BulkOut, only_closed};
use super::bulk_wire::BulkHeader;
use super::wait::{BulkWait, How};
use crate::error::{CloseReason, Violation};
use crate::num::{to_u64, to_usize};
use crate::stream::Stream;
use crate::stream::direct::{Answer, Direct, Job, Piece, Slot};

/// From here on asking for a transfer beside the stream costs less than the copies that it saves.
const BESIDE_BYTES_MIN: usize = 128 << 10;

/// Receiving: a transfer that this side reads from the peer's memory.
pub(super) struct Pull {
    id: u64,
    total: usize,
    /// Pieces of so many bytes are here.
    done: usize,
    dest: Dest,
    job: Option<Job>,
}

/// Receiving: what there is besides the stream's own transfers.
#[derive(Default)]
pub(super) struct Beside {
    pull: Option<Pull>,
    /// Is here already, though its header has yet to come: number and length.
    pulled: Option<(u64, usize)>,
}

impl Endpoint {
    /// Lends memory to bulk transfers: those of 128 KiB and more from or to it need no copy where the
    /// connection can do without (RDMA). It is registered with the device when first used, and then
    /// pinned. On a client the server may read and write it; on a server nobody else may.
    ///
    /// Does not block. Lent memory is lent to every later connection of the session, too.
    ///
    /// # Safety
    /// Until [`Endpoint::bulk_reclaim`] has been called for `at`, the memory stays mapped and initialised, and
    /// may be written from outside this process at any time: no Rust reference to it is used as if it were not.
    pub unsafe fn bulk_lend(&self, at: *mut u8, bytes: usize) {
        if self.shared.mark.is_set() && bytes > 0 {
            let start = at.expose_provenance();
            let range = start..start.saturating_add(bytes);
            self.forget(&range);
            self.shared.lent.lock().add(&range);
        }
    }

    /// Takes back what was lent from `at` on. False: there was none. No transfer from or to it may be under way.
    ///
    /// May block for the time that one read from the connection takes.
    pub fn bulk_reclaim(&self, at: *const u8) -> bool {
        if !self.shared.mark.is_set() {
            return false;
        }
        let range = self.shared.lent.lock().remove(at.addr());
        if let Some(range) = &range {
            self.forget(range);
        }
        range.is_some()
    }

    fn forget(&self, range: &Range<usize>) {
        let stream = self.shared.bulk_in.lock().stream.clone();
        if let Some(direct) = stream.as_ref().and_then(|stream| stream.direct()) {
            direct.forget(range);
        }
    }

    /// Sending: brings the bytes of transfer `id` to the peer's memory, beside the stream. False: they have to
    /// go through it.
    pub(super) fn send_beside(
        &self,
        out: &mut BulkOut,
        id: u64,
        parts: &[IoSlice<'_>],
        total: usize,
    ) -> Result<bool, CloseReason> {
        if total < BESIDE_BYTES_MIN {
            return Ok(false);
        }
        let Some(stream) = self.stream_at_rest(out)? else {
            return Ok(false);
        };
        let Some(direct) = stream.direct() else {
            return Ok(false);
        };
        let sent = if self.is_client() {
            self.offer_parts(out, direct, id, parts, total)?
        } else {
            self.write_parts(out, direct, id, parts, total)?
        };
        if sent {
            let counters = &self.shared.counters;
            counters.add(&counters.bulk_direct, to_u64(total));
        }
        Ok(sent)
    }

    fn is_client(&self) -> bool {
        self.shared.redial.is_some()
    }

    /// Client: offers the parts, piece by piece.
    fn offer_parts(
        &self,
        out: &mut BulkOut,
        direct: &dyn Direct,
        id: u64,
        parts: &[IoSlice<'_>],
        total: usize,
    ) -> Result<bool, CloseReason> {
        let lent = |part: &IoSlice<'_>| {
            let lent = self.shared.lent.lock();
            lent.covers(part.as_ptr().addr(), part.len())
        };
        if !parts.iter().all(lent) {
            return Ok(false);
        }
        let mut offset = 0;
        for part in parts {
            let (mut at, mut left) = (part.as_ptr().expose_provenance(), part.len());
            while left > 0 {
                let Some(slice) = self.shared.lent.lock().slice(at) else {
                    return Ok(false);
                };
                let bytes = left.min(slice.end - at);
                let piece = Piece {
                    start: out.end(),
                    id,
                    at: to_u64(at),
                    bytes: to_u64(bytes),
                    offset: to_u64(offset),
                    total: to_u64(total),
                    key: 0,
                };
                if !self.offer(out, direct, &piece, &slice)? {
                    return Ok(false);
                }
                (at, left, offset) = (at + bytes, left - bytes, offset + bytes);
            }
        }
        Ok(true)
    }

    /// Offers one piece and waits for the answer.
    fn offer(
        &self,
        out: &mut BulkOut,
        direct: &dyn Direct,
        piece: &Piece,
        lent: &Range<usize>,
    ) -> Result<bool, CloseReason> {
        match direct.offer(piece, lent) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => return Ok(self.give_up(out, error)),
        }
        let mut outcome = Ok(Answer::Pending);
        self.wait_beside(out, &mut || {
            outcome = direct.answer();
            !matches!(outcome, Ok(Answer::Pending))
        })?;
        match outcome {
            Ok(answer) => Ok(answer == Answer::Taken),
            Err(error) => Ok(self.give_up(out, error)),
        }
    }

    /// Server: writes the parts to where the client lets it.
    fn write_parts(
        &self,
        out: &mut BulkOut,
        direct: &dyn Direct,
        id: u64,
        parts: &[IoSlice<'_>],
        total: usize,
    ) -> Result<bool, CloseReason> {
        let granted = match direct.granted(id) {
            Ok(granted) => granted.filter(|piece| piece.bytes >= to_u64(total)),
            Err(error) => return Ok(self.give_up(out, error)),
        };
        let Some(grant) = granted else {
            return Ok(false);
        };
        let mut at = grant.at;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let bytes = to_u64(part.len());
            let mut job = Job::new(Piece { at, bytes, ..grant });
            let lent = self.holding(part.as_ptr().addr(), part.len());
            let mut outcome = Ok(false);
            self.wait_beside(out, &mut || {
                outcome = direct.write(&mut job, part, lent.as_ref());
                !matches!(outcome, Ok(false))
            })?;
            match outcome {
                Ok(true) => at = at.wrapping_add(bytes),
                Ok(false) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Ok(false),
                Err(error) => return Ok(self.give_up(out, error)),
            }
        }
        Ok(true)
    }

    /// The slice of lent memory that holds all of a range.
    fn holding(&self, at: usize, bytes: usize) -> Option<Range<usize>> {
        self.shared.lent.lock().holding(at, bytes)
    }

    /// Waits for something beside the stream, or for the connection to change.
    fn wait_beside(
        &self,
        out: &BulkOut,
        done: &mut dyn FnMut() -> bool,
    ) -> Result<(), CloseReason> {
        let version = out.version();
        let mut done = || done() || self.shared.bulk_version.load(SeqCst) != version;
        if done() {
            return Ok(());
        }
        let how = How {
            bulk: BulkWait::Beside,
            ..How::default()
        };
        self.wait_as(&mut done, how).map_err(only_closed)
    }

    /// The connection is broken: reports that. The transfer goes through the next one's stream.
    fn give_up(&self, out: &mut BulkOut, error: io::Error) -> bool {
        let epoch = out.break_off();
        self.report_loss(epoch, CloseReason::of_stream(error), Duration::ZERO);
        false
    }

    /// Client: lets the peer write a transfer where it was posted, if it may.
    pub(super) fn grant(&self, bulk: &BulkIn, id: u64, dest: *mut u8, len: usize) -> Option<Slot> {
        if len < BESIDE_BYTES_MIN || !self.is_client() {
            return None;
        }
        let direct = bulk.stream.as_ref()?.direct()?;
        let at = dest.expose_provenance();
        let lent = self.holding(at, len)?;
        let piece = Piece {
            id,
            at: to_u64(at),
            bytes: to_u64(len),
            total: to_u64(len),
            ..Piece::default()
        };
        // What is broken shows on the stream, too.
        direct.grant(&piece, &lent).ok().flatten()
    }

    /// Server: goes on with what the client offers. None: there is nothing, look at the stream.
    pub(super) fn pull_step(
        &self,
        bulk: &mut BulkIn,
        stream: &dyn Stream,
    ) -> Result<Option<Step>, CloseReason> {
        let Some(direct) = stream.direct().filter(|_| !self.is_client()) else {
            return Ok(None);
        };
        if !bulk.beside.is_pulling() {
            let offered = direct.offered().map_err(CloseReason::of_stream)?;
            let Some(piece) = offered.filter(|piece| piece.start == bulk.received()) else {
                return Ok(None);
            };
            if !bulk.begin_pull(piece)? {
                // SYNC: as where a header's transfer is not posted.
                self.shared.bulk_stalled.store(true, SeqCst);
                return Ok(Some(Step::Idle));
            }
        }
        let Some(pull) = &mut bulk.beside.pull else {
            return Ok(None);
        };
        let Some(job) = &mut pull.job else {
            return Ok(None);
        };
        let (offset, bytes) = (to_usize(job.piece.offset), to_usize(job.piece.bytes));
        let at = pull.dest.at.wrapping_add(offset);
        let lent = self.holding(at.addr(), bytes);
        // SAFETY: `offset + bytes <= total <= dest.len` (`begin_pull`), and the memory is lent to us until the
        // destination is taken out of this struct, which needs the lock that the caller holds.
        let memory = unsafe { std::slice::from_raw_parts_mut(at.cast::<MaybeUninit<u8>>(), bytes) };
        let before = job.done;
        match direct.read(job, memory, lent.as_ref()) {
            Ok(false) if job.done == before => Ok(Some(Step::Idle)),
            Ok(false) => Ok(Some(Step::Moved(job.done - before))),
            Ok(true) => {
                direct.reply(true).map_err(CloseReason::of_stream)?;
                pull.done += bytes;
                pull.job = None;
                Ok(Some(self.finish_pull(bulk).unwrap_or(Step::Moved(bytes))))
            }
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                bulk.end_pull();
                direct.reply(false).map_err(CloseReason::of_stream)?;
                Ok(Some(Step::Moved(0)))
            }
            Err(error) => Err(CloseReason::of_stream(error)),
        }
    }

    fn finish_pull(&self, bulk: &mut BulkIn) -> Option<Step> {
        let Pull {
            id, total, dest, ..
        } = bulk.beside.pull.take_if(|pull| pull.done == pull.total)?;
        bulk.beside.pulled = Some((id, total));
        let counters = &self.shared.counters;
        counters.bump(&counters.bulk_bytes_in, to_u64(total));
        counters.add(&counters.bulk_direct, to_u64(total));
        Some(dest.finish(total))
    }

    /// Receiving: a header that has to do with transfers beside the stream. None: it has not.
    pub(super) fn header_beside(
        &self,
        bulk: &mut BulkIn,
        stream: &dyn Stream,
        header: &BulkHeader,
    ) -> Result<Option<Step>, CloseReason> {
        let (id, len) = (header.id(), to_usize(header.len()));
        if let Some((_, pulled)) = bulk.beside.pulled.take_if(|(pulled, _)| *pulled == id) {
            if pulled != len {
                return Err(Violation::BulkHeader.into());
            }
            // Everything is here. If it comes once more, it is thrown away.
            bulk.begin((!header.is_placed()).then(|| Current::unwanted(id, len)));
            return Ok(Some(Step::Moved(1)));
        }
        if bulk.beside.pull.as_ref().is_some_and(|pull| pull.id == id) {
            bulk.end_pull();
        }
        if let (Some(slot), Some(direct)) = (bulk.take_slot(id), stream.direct()) {
            direct.take_back(slot);
        }
        if !header.is_placed() {
            return Ok(None);
        }
        if !self.is_client() {
            return Err(Violation::BulkHeader.into());
        }
        let Some(dest) = bulk.take_posted(id) else {
            // Cancelled meanwhile.
            bulk.begin(None);
            return Ok(Some(Step::Moved(1)));
        };
        if !dest.granted || len > dest.len {
            bulk.put_back(id, dest);
            return Err(Violation::BulkHeader.into());
        }
        bulk.begin(None);
        let counters = &self.shared.counters;
        counters.bump(&counters.bulk_bytes_in, to_u64(len));
        counters.add(&counters.bulk_direct, to_u64(len));
        Ok(Some(dest.finish(len)))
    }
}

impl Beside {
    /// Whether a piece is being read.
    fn is_pulling(&self) -> bool {
        self.pull.as_ref().is_some_and(|pull| pull.job.is_some())
    }
}

impl BulkIn {
    /// Takes up an offer; false: its transfer is not posted.
    fn begin_pull(&mut self, piece: Piece) -> Result<bool, Violation> {
        if piece.offset == 0 && self.beside.pull.is_none() {
            let Some(dest) = self.take_posted(piece.id) else {
                return Ok(false);
            };
            let (id, bytes, room) = (piece.id, piece.total, to_u64(dest.len));
            if bytes > room {
                self.put_back(id, dest);
                return Err(Violation::BulkTooLong { id, bytes, room });
            }
            self.beside.pull = Some(Pull {
                id,
                total: to_usize(bytes),
                done: 0,
                dest,
                job: None,
            });
        }
        // A broken rule ends the session, and with it whatever waits.
        let pull = self.beside.pull.as_mut().ok_or(Violation::BulkHeader)?;
        let fits = pull.id == piece.id
            && to_u64(pull.done) == piece.offset
            && piece.bytes > 0
            && piece.bytes <= to_u64(pull.total - pull.done);
        if !fits {
            return Err(Violation::BulkHeader);
        }
        pull.job = Some(Job::new(piece));
        Ok(true)
    }

    /// A transfer will not be read: it comes through the stream.
    fn end_pull(&mut self) {
        if let Some(pull) = self.beside.pull.take() {
            self.put_back(pull.id, pull.dest);
        }
    }

    /// Whether somebody may be writing to the destination of `id` at this moment.
    pub(super) fn is_exposed(&self, id: u64) -> bool {
        self.posted(id).is_some_and(|dest| dest.slot.is_some())
            || self.beside.pull.as_ref().is_some_and(|pull| pull.id == id)
    }

    /// The connection is lost or given up: nobody writes to any destination any more.
    pub(super) fn halt(&mut self) {
        let exposed = self.forget_slots() || self.beside.is_pulling();
        let stream: Option<Arc<dyn Stream>> = self.stream.clone();
        if let Some(direct) = stream.as_ref().and_then(|stream| stream.direct())
            && exposed
        {
            direct.halt();
        }
        self.end_pull();
    }
}
