//! The bulk plane: large transfers on a connection of their own, from the sender's memory and
//! into the receiver's, without a copy in between. Here: receiving.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::time::Duration;

use parking_lot::Mutex;

use super::bulk_beside::Beside;
use super::bulk_link::{BulkLink, refused};
use super::bulk_wire::{BULK_HEADER_BYTES, BulkHeader};
use super::send::CTL_ACK;
use super::{Endpoint, Shared};
use crate::error::{BulkError, CloseReason, Violation, WaitError};
use crate::handshake::{SERVER_HEAD_BYTES, ServerHead};
use crate::num::{to_u64, to_usize};
use crate::stream::direct::Slot;
use crate::stream::{Stream, recv_into};

/// Most bytes that one look at the bulk plane receives, so that the call plane gets its turn.
const TURN_BYTES: usize = 4 << 20;
/// Where bytes of cancelled transfers go.
const SCRATCH_BYTES: usize = 64 << 10;
/// After the bulk plane has ended: how long the call plane may take to show a goodbye.
pub(super) const BULK_PATIENCE: Duration = Duration::from_millis(20);
/// The peer is told at once when so much has arrived since it was last told: it keeps what it does not know to
/// have arrived.
const ACK_BYTES: u64 = 1 << 20;

/// Called once with the length of the transfer, or with why it did not come.
pub type BulkDone = Box<dyn FnOnce(Result<usize, BulkError>) + Send>;

/// Memory that a transfer is received into; lent by the caller of `bulk_post`.
pub(super) struct Dest {
    pub(super) at: *mut u8,
    pub(super) len: usize,
    done: BulkDone,
    /// The peer may write there now; and it was allowed to, on this connection or an earlier one.
    pub(super) slot: Option<Slot>,
    pub(super) granted: bool,
}

// SAFETY: the pointer is used under the `bulk_in` lock only, and `bulk_post`'s contract says
// that the memory may be written from any thread until `done` is called or it is cancelled.
unsafe impl Send for Dest {}

/// A transfer whose header was read.
pub(super) struct Current {
    id: u64,
    len: usize,
    received: usize,
    /// None once cancelled: the bytes are thrown away.
    dest: Option<Dest>,
}

impl Current {
    /// Its bytes are thrown away.
    pub(super) fn unwanted(id: u64, len: usize) -> Self {
        Self {
            id,
            len,
            received: 0,
            dest: None,
        }
    }
}

impl Dest {
    /// Everything is there.
    pub(super) fn finish(self, len: usize) -> Step {
        Step::Done(self.done, len)
    }

    /// Nothing will come.
    pub(super) fn closed(self, why: &CloseReason) {
        (self.done)(Err(BulkError::Closed(why.clone())));
    }
}

/// The receiving half.
#[derive(Default)]
pub(super) struct BulkIn {
    pub(super) stream: Option<Arc<dyn Stream>>,
    pub(super) link: BulkLink,
    /// Bytes of all transfers so far.
    received: u64,
    /// Bytes of the server's answer that are still to come (client only).
    welcome: Vec<u8>,
    welcome_left: usize,
    header: [u8; BULK_HEADER_BYTES],
    header_len: usize,
    current: Option<Current>,
    posted: HashMap<u64, Dest>,
    pub(super) beside: Beside,
    scratch: Vec<u8>,
}

/// What one step of receiving did.
pub(super) enum Step {
    Idle,
    Moved(usize),
    Done(BulkDone, usize),
}

impl Endpoint {
    /// Says where transfer `id` goes: its bytes are received straight into `dest`, and `done`
    /// is called with its length by the thread that receives. Transfers may be posted in any
    /// order, but the peer's next one holds up those after it until it is posted.
    ///
    /// Does not block. On a client the first call opens the bulk connection.
    ///
    /// # Errors
    /// [`BulkError::Posted`], [`BulkError::Closed`]; `done` is not called then.
    ///
    /// # Safety
    /// `dest .. dest + len` may be written, from any thread, and is not used otherwise, until
    /// `done` is called or [`Endpoint::bulk_cancel`] returns true for this id.
    pub unsafe fn bulk_post(
        &self,
        id: u64,
        dest: *mut u8,
        len: usize,
        done: BulkDone,
    ) -> Result<(), BulkError> {
        self.check()?;
        self.open_bulk()?;
        let shared = &*self.shared;
        let mut bulk = shared.bulk_in.lock();
        if shared.closed.load(SeqCst) {
            return Err(BulkError::Closed(shared.reason()));
        }
        let current = bulk
            .current
            .as_ref()
            .is_some_and(|c| c.id == id && c.dest.is_some());
        if current || bulk.posted.contains_key(&id) {
            return Err(BulkError::Posted(id));
        }
        let slot = self.grant(&bulk, id, dest, len);
        bulk.posted.insert(
            id,
            Dest {
                at: dest,
                len,
                done,
                slot,
                granted: slot.is_some(),
            },
        );
        shared.bulk_posted.fetch_add(1, SeqCst);
        shared.bulk_stalled.store(false, SeqCst);
        drop(bulk);
        self.wake_leader();
        if !shared.rx.is_held() {
            self.kick_trailing();
        }
        Ok(())
    }

    /// Takes a destination back: after true it is not written any more, and its `done` is
    /// not called. False: it is complete, or was never posted.
    ///
    /// May block for the time that one read from the connection takes.
    pub fn bulk_cancel(&self, id: u64) -> bool {
        if !self.shared.mark.is_set() {
            return false;
        }
        let mut bulk = self.shared.bulk_in.lock();
        if bulk.is_exposed(id) {
            // Only the end of the connection keeps the peer, or our device, from writing on.
            bulk.halt();
            let why = io::Error::other("a transfer was cancelled while its bytes came");
            self.report_loss(
                self.shared.link.epoch(),
                CloseReason::lost(why),
                Duration::ZERO,
            );
        }
        let posted = bulk.posted.remove(&id);
        let taken = posted.or_else(|| {
            bulk.current
                .as_mut()
                .filter(|c| c.id == id)
                .and_then(|c| c.dest.take())
        });
        if taken.is_some() {
            self.shared.bulk_posted.fetch_sub(1, SeqCst);
        }
        drop(bulk);
        taken.is_some()
    }

    /// Receives transfer `id` into `dest` and waits for it. Returns its length.
    ///
    /// Blocks as [`Endpoint::wait_until`] does.
    ///
    /// # Errors
    /// [`BulkError`].
    pub fn bulk_recv(&self, id: u64, dest: &mut [MaybeUninit<u8>]) -> Result<usize, BulkError> {
        struct Cancel<'a>(&'a Endpoint, u64);
        impl Drop for Cancel<'_> {
            fn drop(&mut self) {
                self.0.bulk_cancel(self.1);
            }
        }
        if self.shared.rx.is_mine() {
            return Err(BulkError::InHandler);
        }
        let outcome = Arc::new(Mutex::new(None));
        let done: BulkDone = {
            let outcome = Arc::clone(&outcome);
            Box::new(move |result| *outcome.lock() = Some(result))
        };
        // SAFETY: `dest` is borrowed mutably until this function returns, and `Cancel` makes
        // sure, also when unwinding, that nothing writes to it after that.
        unsafe { self.bulk_post(id, dest.as_mut_ptr().cast(), dest.len(), done) }?;
        let cancel = Cancel(self, id);
        let waited = self.wait_until(&|| outcome.lock().is_some(), None);
        drop(cancel);
        match (outcome.lock().take(), waited) {
            (Some(result), _) => result,
            (None, Err(WaitError::Closed(why))) => Err(BulkError::Closed(why)),
            (None, _) => Err(BulkError::Cancelled),
        }
    }

    /// Receives bulk data that has a destination, after sending what goes first on a new connection.
    /// Returns whether any came.
    pub(super) fn pump_bulk(&self) -> bool {
        let shared = &*self.shared;
        self.freshen_bulk();
        if !shared.expects_bulk() {
            return false;
        }
        let mut moved = 0;
        while moved < TURN_BYTES {
            let step = self.bulk_step(&mut shared.bulk_in.lock());
            match step {
                Ok(Step::Idle) => break,
                Ok(Step::Moved(bytes)) => moved += bytes.max(1),
                Ok(Step::Done(done, len)) => {
                    moved += 1;
                    shared.bulk_posted.fetch_sub(1, SeqCst);
                    shared.counters.bump(&shared.counters.bulk_in, 1);
                    done(Ok(len));
                    shared.events.advance();
                    if shared.bulk_posted.load(Acquire) == 0 {
                        break;
                    }
                }
                Err(why @ CloseReason::Lost(_)) => {
                    // Nothing more to read there; the call plane may yet show a goodbye.
                    shared.bulk_stalled.store(true, SeqCst);
                    self.report_loss(shared.link.epoch(), why, BULK_PATIENCE);
                    break;
                }
                Err(why) => {
                    self.fail(why);
                    return true;
                }
            }
        }
        let arrived = shared.bulk_received.load(Relaxed);
        if arrived - shared.told_bulk.load(Relaxed).min(arrived) >= ACK_BYTES {
            self.send_control(CTL_ACK);
        }
        moved > 0
    }

    fn bulk_step(&self, bulk: &mut BulkIn) -> Result<Step, CloseReason> {
        let shared = &*self.shared;
        let Some(stream) = bulk.stream.clone() else {
            return Ok(Step::Idle);
        };
        if bulk.welcome_left > 0 {
            let step = bulk.read_welcome(&*stream, shared.version)?;
            shared.bulk_unanswered.store(bulk.welcome_left > 0, SeqCst);
            return Ok(step);
        }
        if shared.bulk_posted.load(Acquire) == 0 {
            return Ok(Step::Idle);
        }
        if bulk.current.is_none() {
            if bulk.header_len == 0
                && let Some(step) = self.pull_step(bulk, &*stream)?
            {
                return Ok(step);
            }
            if bulk.header_len < BULK_HEADER_BYTES {
                let got = read_some(&*stream, &mut bulk.header[bulk.header_len..])?;
                bulk.header_len += got;
                shared.bulk_received.store(bulk.count(got), Release);
                return Ok(if got == 0 {
                    Step::Idle
                } else {
                    Step::Moved(got)
                });
            }
            let header = BulkHeader::decode(&bulk.header)?;
            if let Some(step) = self.header_beside(bulk, &*stream, &header)? {
                return Ok(step);
            }
            let Some(dest) = bulk.posted.remove(&header.id()) else {
                // SYNC: SeqCst; `bulk_post` inserts under this lock, then clears it.
                shared.bulk_stalled.store(true, SeqCst);
                return Ok(Step::Idle);
            };
            let (id, bytes, room) = (header.id(), header.len(), to_u64(dest.len));
            if bytes > room {
                bulk.posted.insert(id, dest);
                return Err(Violation::BulkTooLong { id, bytes, room }.into());
            }
            bulk.header_len = 0;
            bulk.current = Some(Current {
                id,
                len: to_usize(bytes),
                received: 0,
                dest: Some(dest),
            });
        }
        let got = bulk.read_body(&*stream)?;
        shared.bulk_received.store(bulk.count(got), Release);
        shared
            .counters
            .bump(&shared.counters.bulk_bytes_in, to_u64(got));
        let complete = bulk.current.take_if(|c| c.received == c.len);
        Ok(match complete {
            Some(Current {
                dest: Some(dest),
                len,
                ..
            }) => Step::Done(dest.done, len),
            Some(_) => Step::Moved(1),
            None if got == 0 => Step::Idle,
            None => Step::Moved(got),
        })
    }
}

impl Shared {
    /// Whether there is something to read: for a destination, or the answer to a new connection, whose end before the server has
    /// it nobody else would notice.
    pub(super) fn expects_bulk(&self) -> bool {
        let is_wanted = self.bulk_posted.load(SeqCst) > 0 || self.bulk_unanswered.load(SeqCst);
        is_wanted && !self.bulk_stalled.load(SeqCst)
    }
}

impl BulkIn {
    /// Closes the session, with all destinations taken out that nothing will come for any more. The caller holds the lock
    /// that every write to a destination needs, so that none follows.
    pub(super) fn end(&mut self, shared: &Shared) -> Vec<Dest> {
        self.halt();
        let mut dests: Vec<Dest> = self.posted.drain().map(|(_, dest)| dest).collect();
        let current = self.current.as_mut();
        dests.extend(current.and_then(|current| current.dest.take()));
        shared.bulk_posted.store(0, SeqCst);
        if let Some(stream) = &self.stream {
            stream.shutdown();
        }
        // SYNC: Release pairs with the Acquire in `check`.
        shared.closed.store(true, Release);
        dests
    }

    /// Where the stream stands, in bytes of all transfers.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// A header was read: its bytes follow, if there are any.
    pub(super) fn begin(&mut self, current: Option<Current>) {
        self.header_len = 0;
        self.current = current;
    }

    pub(super) fn posted(&self, id: u64) -> Option<&Dest> {
        self.posted.get(&id)
    }

    pub(super) fn take_posted(&mut self, id: u64) -> Option<Dest> {
        self.posted.remove(&id)
    }

    pub(super) fn put_back(&mut self, id: u64, dest: Dest) {
        self.posted.insert(id, dest);
    }

    /// Where the grant of a transfer that is posted was written down.
    pub(super) fn take_slot(&mut self, id: u64) -> Option<Slot> {
        self.posted.get_mut(&id)?.slot.take()
    }

    /// No grant stands any more; whether one did.
    pub(super) fn forget_slots(&mut self) -> bool {
        let taken = self.posted.values_mut().map(|dest| dest.slot.take());
        taken.fold(false, |any, slot| any | slot.is_some())
    }

    /// Counts bytes of transfers; how many there were so far.
    fn count(&mut self, got: usize) -> u64 {
        self.received += to_u64(got);
        self.received
    }

    /// So many bytes of the server's answer come first.
    pub(super) fn expect_welcome(&mut self, bytes: usize) {
        self.welcome.clear();
        self.welcome_left = bytes;
    }

    /// Reads the server's answer to the bulk hello.
    fn read_welcome(&mut self, stream: &dyn Stream, version: u16) -> Result<Step, CloseReason> {
        let mut bytes = [0; SERVER_HEAD_BYTES];
        let missing = SERVER_HEAD_BYTES - self.welcome.len();
        let got = read_some(stream, &mut bytes[..missing])?;
        self.welcome.extend_from_slice(&bytes[..got]);
        self.welcome_left -= got;
        if got < missing {
            return Ok(if got == 0 {
                Step::Idle
            } else {
                Step::Moved(got)
            });
        }
        bytes.copy_from_slice(&self.welcome);
        self.welcome.clear();
        match ServerHead::decode(&bytes, version..=version) {
            Ok(head) if head.refused().is_none() && head.payload_len() == 0 => Ok(Step::Moved(got)),
            _ => Err(refused()),
        }
    }

    /// Reads bytes of the current transfer to where they belong.
    fn read_body(&mut self, stream: &dyn Stream) -> Result<usize, CloseReason> {
        let Some(current) = &mut self.current else {
            return Ok(0);
        };
        let left = current.len - current.received;
        if left == 0 {
            return Ok(0);
        }
        let got = match &current.dest {
            Some(dest) => {
                let at = dest
                    .at
                    .wrapping_add(current.received)
                    .cast::<MaybeUninit<u8>>();
                // SAFETY: `received + left == len <= dest.len`, which the header was checked
                // for; the memory is lent to us (`bulk_post`) until the destination is taken
                // out of this struct, which needs the lock that the caller holds.
                let rest = unsafe { std::slice::from_raw_parts_mut(at, left) };
                read_result(stream.recv(rest))?
            }
            None => {
                self.scratch.resize(SCRATCH_BYTES, 0);
                read_some(stream, &mut self.scratch[..left.min(SCRATCH_BYTES)])?
            }
        };
        current.received += got;
        Ok(got)
    }
}

/// Reads into a buffer of ours; nothing there counts as 0 bytes.
fn read_some(stream: &dyn Stream, buffer: &mut [u8]) -> Result<usize, CloseReason> {
    read_result(recv_into(stream, buffer))
}

fn read_result(result: io::Result<usize>) -> Result<usize, CloseReason> {
    match result {
        Ok(0) => Err(CloseReason::lost(io::ErrorKind::UnexpectedEof.into())),
        Ok(got) => Ok(got),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(CloseReason::of_stream(error)),
    }
}
