//! The bulk plane: large transfers on a connection of their own, from the sender's memory and
//! into the receiver's, without a copy in between.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use parking_lot::{Mutex, MutexGuard};

use super::bulk_wire::{BULK_HEADER_BYTES, BulkHeader, Cursor};
use super::stats::Flush;
use super::{Agreed, Endpoint};
use crate::connect::exchange;
use crate::error::{AdoptError, BulkError, CloseReason, SendError, Violation, WaitError};
use crate::handshake::{
    ClientHead, Handover, HandoverKind, HelloKind, SERVER_HEAD_BYTES, ServerHead,
};
use crate::num::{to_u64, to_usize};
use crate::options::SocketOptions;
use crate::stream::tcp::TcpStream;
use crate::stream::{Stream, recv_into};
use crate::sys::poll::PollSet;

/// Most bytes that one look at the bulk plane receives, so that the call plane gets its turn.
const TURN_BYTES: usize = 4 << 20;
/// Where bytes of cancelled transfers go.
const SCRATCH_BYTES: usize = 64 << 10;

/// How a client opens its bulk connection.
pub(crate) struct BulkConnector {
    pub(crate) address: SocketAddr,
    pub(crate) agreed: Agreed,
    pub(crate) socket: SocketOptions,
}

/// The sending half.
pub(super) struct BulkOut {
    connector: Option<BulkConnector>,
    stream: Option<Arc<dyn Stream>>,
    /// Handshake bytes that go first.
    prelude: Vec<u8>,
}

type OutGuard<'a> = MutexGuard<'a, BulkOut>;
impl BulkOut {
    pub(super) fn new(connector: Option<BulkConnector>) -> Self {
        Self {
            connector,
            stream: None,
            prelude: Vec::new(),
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
}

/// Called once with the length of the transfer, or with why it did not come.
pub type BulkDone = Box<dyn FnOnce(Result<usize, BulkError>) + Send>;

/// Memory that a transfer is received into; lent by the caller of `bulk_post`.
pub(super) struct Dest {
    pub(super) at: *mut u8,
    pub(super) len: usize,
    done: BulkDone,
}

// SAFETY: the pointer is used under the `bulk_in` lock only, and `bulk_post`'s contract says
// that the memory may be written from any thread until `done` is called or it is cancelled.
unsafe impl Send for Dest {}

/// A transfer whose header was read.
struct Current {
    id: u64,
    len: usize,
    received: usize,
    /// None once cancelled: the bytes are thrown away.
    dest: Option<Dest>,
}

/// The receiving half.
#[derive(Default)]
pub(super) struct BulkIn {
    stream: Option<Arc<dyn Stream>>,
    /// Bytes of the server's answer that are still to come (client only).
    welcome: Vec<u8>,
    welcome_left: usize,
    header: [u8; BULK_HEADER_BYTES],
    header_len: usize,
    current: Option<Current>,
    posted: HashMap<u64, Dest>,
    scratch: Vec<u8>,
}

/// What one step of receiving did.
enum Step {
    Idle,
    Moved(usize),
    Done(BulkDone, usize),
}

impl Endpoint {
    /// Sends `parts` as transfer `id`, straight from the caller's memory, after flushing what
    /// was appended. The peer receives it where it posted `id`. Returns when the system has
    /// taken the bytes: the memory may be reused.
    ///
    /// Blocks for as long as the peer does not receive, and receives meanwhile. Transfers of
    /// several threads go one after the other.
    ///
    /// # Errors
    /// [`SendError::Closed`].
    pub fn bulk_send(&self, id: u64, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        self.check()?;
        self.flush_for(Flush::Forced);
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let header = BulkHeader::new(id, to_u64(total)).bytes();
        let mut cursor = Cursor::new(&header, parts);
        // A server's connection comes from the client, through `attach_bulk`, which needs the lock.
        let mut out = self.lock_bulk_out(|out| out.stream.is_some() || out.connector.is_some())?;
        let mut error = None;
        let mut step = || {
            let result = send_step(&mut out, &mut cursor);
            error = result.err();
            error.is_some() || cursor.is_done()
        };
        if !step() {
            self.wait_core(&mut step, true, None).map_err(only_closed)?;
        }
        drop(out);
        self.notify();
        if let Some(error) = error {
            self.fail(CloseReason::of_stream(error));
            return Err(SendError::Closed(self.shared.reason()));
        }
        let counters = &self.shared.counters;
        counters.add(&counters.bulk_out, 1);
        counters.add(&counters.bulk_bytes_out, to_u64(total));
        Ok(())
    }

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
        bulk.posted.insert(
            id,
            Dest {
                at: dest,
                len,
                done,
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

    /// Server side: gives the session its bulk connection. `fd` and `state` come from
    /// [`crate::Incoming::into_parts`] of a connection of kind `Bulk` for this session.
    ///
    /// # Errors
    /// [`AdoptError::WrongSession`] when the client cannot prove that it owns the session, or
    /// the session has a bulk connection already.
    pub fn attach_bulk(&self, fd: OwnedFd, state: &[u8]) -> Result<(), AdoptError> {
        self.check()?;
        let handover = Handover::decode(state)?;
        let mine = handover.kind == HandoverKind::Bulk
            && handover.agreed.session == self.shared.session
            && handover.agreed.key.matches(&self.shared.key);
        if !mine {
            exchange::refuse_quietly(fd);
            return Err(AdoptError::WrongSession);
        }
        let stream: Arc<dyn Stream> = Arc::new(TcpStream::new(fd, self.peer())?);
        let head = ServerHead::welcome(
            self.shared.session,
            self.shared.key,
            &handover.agreed.local,
            0,
        );
        let mut out = self.lock_bulk_out(|_| true)?;
        if out.stream.is_some() {
            return Err(AdoptError::WrongSession);
        }
        out.stream = Some(Arc::clone(&stream));
        out.prelude = head.bytes().to_vec();
        let sent = out.finish_prelude();
        drop(out);
        self.shared.bulk_in.lock().stream = Some(stream);
        sent?;
        self.notify();
        Ok(())
    }

    /// Gives the session a bulk connection that needs no handshake.
    pub(crate) fn attach_bulk_stream(&self, stream: Arc<dyn Stream>) {
        self.shared.bulk_out.lock().stream = Some(Arc::clone(&stream));
        self.shared.bulk_in.lock().stream = Some(stream);
    }

    /// Client: opens the bulk connection, without waiting for it.
    fn open_bulk(&self) -> Result<(), CloseReason> {
        let shared = &*self.shared;
        if shared.trailing.is_none() || shared.bulk_in.lock().stream.is_some() {
            return Ok(());
        }
        let mut out = self.lock_bulk_out(|_| true)?;
        self.open_bulk_locked(&mut out).map_err(CloseReason::lost)
    }

    fn open_bulk_locked(&self, out: &mut BulkOut) -> io::Result<()> {
        let (None, Some(connector)) = (&out.stream, &out.connector) else {
            return Ok(());
        };
        let Agreed {
            session,
            key,
            local,
            ..
        } = connector.agreed;
        let head = ClientHead::new(HelloKind::Bulk, &local, 0, 0).with_session(session, key);
        let fd = crate::sys::socket::connect_start(&connector.address, &connector.socket)?;
        let stream: Arc<dyn Stream> = Arc::new(TcpStream::new(fd, Some(connector.address))?);
        out.stream = Some(Arc::clone(&stream));
        out.prelude = head.bytes().to_vec();
        let mut bulk = self.shared.bulk_in.lock();
        bulk.stream = Some(stream);
        bulk.welcome_left = SERVER_HEAD_BYTES;
        Ok(())
    }

    /// The right to send on the bulk plane once it is `usable`; a client's connection is open then.
    fn lock_bulk_out(&self, usable: fn(&BulkOut) -> bool) -> Result<OutGuard<'_>, CloseReason> {
        let shared = &*self.shared;
        let mut guard = None;
        let mut lock = || {
            guard = shared.bulk_out.try_lock().filter(|out| usable(out));
            guard.is_some()
        };
        if !lock() {
            self.wait_core(&mut lock, false, None)
                .map_err(only_closed)?;
        }
        // `wait_core` returns Ok only after `lock` said true.
        let mut out = guard.unwrap_or_else(|| shared.bulk_out.lock());
        if let Err(error) = self.open_bulk_locked(&mut out) {
            drop(out);
            self.fail(CloseReason::lost(error));
            return Err(shared.reason());
        }
        Ok(out)
    }

    /// Receives bulk data that has a destination. Returns whether any came.
    pub(super) fn pump_bulk(&self) -> bool {
        let shared = &*self.shared;
        if shared.bulk_posted.load(Acquire) == 0 || shared.bulk_stalled.load(Relaxed) {
            return false;
        }
        if let Some(mut out) = shared.bulk_out.try_lock() {
            // An error shows on the receiving half, too.
            let _ = out.finish_prelude();
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
                Err(why) => {
                    self.fail(why);
                    return true;
                }
            }
        }
        moved > 0
    }

    fn bulk_step(&self, bulk: &mut BulkIn) -> Result<Step, CloseReason> {
        let shared = &*self.shared;
        let Some(stream) = bulk.stream.clone() else {
            return Ok(Step::Idle);
        };
        if bulk.welcome_left > 0 {
            return bulk.read_welcome(&*stream);
        }
        if bulk.current.is_none() {
            if bulk.header_len < BULK_HEADER_BYTES {
                let got = read_some(&*stream, &mut bulk.header[bulk.header_len..])?;
                bulk.header_len += got;
                return Ok(if got == 0 {
                    Step::Idle
                } else {
                    Step::Moved(got)
                });
            }
            let header = BulkHeader::decode(&bulk.header)?;
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

    /// Tells every waiting destination that nothing will come.
    pub(super) fn fail_bulk(&self, why: &CloseReason) {
        let shared = &*self.shared;
        let mut bulk = shared.bulk_in.lock();
        let mut dests: Vec<Dest> = bulk.posted.drain().map(|(_, dest)| dest).collect();
        dests.extend(
            bulk.current
                .as_mut()
                .and_then(|current| current.dest.take()),
        );
        shared.bulk_posted.store(0, SeqCst);
        if let Some(stream) = &bulk.stream {
            stream.shutdown();
        }
        drop(bulk);
        for dest in dests {
            (dest.done)(Err(BulkError::Closed(why.clone())));
        }
    }

    /// Adds what the leader waits for on the bulk plane, and says whether it may sleep.
    pub(super) fn arm_bulk(&self, set: &mut PollSet, write: bool) -> (bool, Armed) {
        let shared = &*self.shared;
        let read = shared.bulk_posted.load(SeqCst) > 0 && !shared.bulk_stalled.load(SeqCst);
        let prelude = shared
            .bulk_out
            .try_lock()
            .is_some_and(|out| !out.prelude.is_empty());
        let write = write || (read && prelude);
        if !(read || write) {
            return (true, Armed(None));
        }
        Armed::new(shared.bulk_in.lock().stream.clone(), set, read, write)
    }

    /// Adds the bulk plane's taking more, for a thread that does not lead.
    pub(super) fn arm_bulk_write(&self, set: &mut PollSet) -> (bool, Armed) {
        Armed::new(self.shared.bulk_in.lock().stream.clone(), set, false, true)
    }
}

impl BulkIn {
    /// Reads the server's answer to the bulk hello.
    fn read_welcome(&mut self, stream: &dyn Stream) -> Result<Step, CloseReason> {
        let mut bytes = [0; SERVER_HEAD_BYTES];
        let got = read_some(stream, &mut bytes[..self.welcome_left])?;
        self.welcome.extend_from_slice(&bytes[..got]);
        self.welcome_left -= got;
        if self.welcome_left > 0 {
            return Ok(if got == 0 {
                Step::Idle
            } else {
                Step::Moved(got)
            });
        }
        let welcome = std::mem::take(&mut self.welcome);
        bytes.copy_from_slice(&welcome);
        match ServerHead::decode(&bytes) {
            Ok(head) if head.refused().is_none() && head.payload_len() == 0 => Ok(Step::Moved(got)),
            _ => Err(CloseReason::lost(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "the server refused the bulk connection",
            ))),
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

/// A stream that someone sleeps for; dropping it ends that.
pub(super) struct Armed(Option<Arc<dyn Stream>>);

impl Armed {
    fn new(
        stream: Option<Arc<dyn Stream>>,
        set: &mut PollSet,
        read: bool,
        write: bool,
    ) -> (bool, Self) {
        let idle = stream
            .as_ref()
            .is_none_or(|stream| stream.arm(set, read, write));
        (idle, Self(stream))
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            stream.disarm();
        }
    }
}

fn send_step(out: &mut BulkOut, cursor: &mut Cursor<'_, '_>) -> io::Result<()> {
    if !out.finish_prelude()? {
        return Ok(());
    }
    // A server waits until the client has opened the connection.
    let Some(stream) = out.stream.clone() else {
        return Ok(());
    };
    cursor.send(&*stream)
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

/// Waits without a deadline that deliver nothing end early only with the session.
fn only_closed(error: WaitError) -> CloseReason {
    match error {
        WaitError::Closed(why) => why,
        WaitError::TimedOut | WaitError::InHandler => CloseReason::Local,
    }
}
