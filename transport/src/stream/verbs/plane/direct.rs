//! Transfers beside the ring: RDMA reads from and writes to memory that the client has registered.
//!
//! What the two sides tell each other stands in lines of the status page ([`line`]): each shows by itself
//! whether it is whole, in both modes. With each goes an immediate value that wakes a peer that sleeps.
//! The client's memory is exposed by its own keys, to this session's connections alone; the server's is not
//! exposed at all.
#![forbid(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{DRAIN_TIME, OWN_AT, Plane, SENDS_MAX};
use crate::num::{to_u64, to_usize};
use crate::stream::direct::{Answer, Direct, Job, Piece, Slot};
use crate::stream::verbs::cache::{Cache, CacheError, Lease};
use crate::stream::verbs::error::VerbsError;
use crate::stream::verbs::flow::{WORDS_CHANGED, checked_word};
use crate::stream::verbs::line::{self, LINE_BYTES, PAYLOAD_BYTES};
use crate::sys::socket;
use crate::sys::verbs::{Domain, Region, Registration, Verb, Work};

/// Where the client's offer, the server's answers and the client's grants are, in the page that the peer writes.
const OFFER_AT: u64 = 256;
const ANSWER_AT: u64 = 320;
const GRANTS_AT: u64 = 512;
/// Grants that may stand at once; with the offer, well within [`super::super::flow::CREDIT_RESERVE`].
const GRANTS: u8 = 16;
const _: () = assert!(GRANTS_AT + GRANTS as u64 * LINE_BYTES as u64 <= OWN_AT);

/// Bytes of one work request in registered memory: so many reach what the wire gives, and no more is lost when
/// the connection breaks.
const CHUNK_BYTES: usize = 1 << 20;
/// Work under way per transfer, in one chain where it starts at once.
const CHUNKS_MAX: usize = 8;
/// Staging for memory that is not registered, each way; allocated when first needed. The rest of what a session that did
/// something may keep registered at rest.
pub(in crate::stream::verbs) const STAGING_BYTES: usize = 256 << 10;
const STAGED_CHUNK_BYTES: usize = STAGING_BYTES / 4;
/// Most memory that is kept registered for a session: bounds what a device must keep tables for.
const REGISTERED_BYTES_MAX: usize = 64 << 30;
/// How long a halt looks for work to be flushed, between polls.
const FLUSH_NAP: Duration = Duration::from_micros(50);

/// What a plane has for it.
pub(super) struct State {
    domain: Arc<Domain>,
    /// Whether both ends take part.
    pub(super) on: bool,
    cache: Mutex<Cache<Registration>>,
    /// Client: the offer that stands, and how many there were.
    offer: Mutex<Offered>,
    offers: AtomicU64,
    grants: Mutex<[Option<Lease<Registration>>; GRANTS as usize]>,
    /// Server: offers that were answered.
    answered: AtomicU64,
    /// Reads, writes.
    staging: [Mutex<Option<Region>>; 2],
    /// The last send that a sleeper waits for; 0: none.
    pub(super) awaited: AtomicU64,
    /// Highest number of a send that ended, well or not.
    pub(super) sends_over: AtomicU64,
    /// Highest number of a read or write of this module.
    last: AtomicU64,
    pub(super) halted: AtomicBool,
}

#[derive(Default)]
struct Offered {
    lease: Option<Lease<Registration>>,
}

/// A piece on the wire, in one line.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WirePiece {
    start: U64,
    id: U64,
    at: U64,
    bytes: U64,
    offset: U64,
    total: U64,
    key: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<WirePiece>() == PAYLOAD_BYTES);

impl State {
    pub(super) fn new(domain: Arc<Domain>, on: bool) -> Self {
        Self {
            domain,
            on,
            cache: Mutex::new(Cache::new(REGISTERED_BYTES_MAX)),
            offer: Mutex::new(Offered::default()),
            offers: AtomicU64::new(0),
            grants: Mutex::new([const { None }; GRANTS as usize]),
            answered: AtomicU64::new(0),
            staging: [Mutex::new(None), Mutex::new(None)],
            awaited: AtomicU64::new(0),
            sends_over: AtomicU64::new(0),
            last: AtomicU64::new(0),
            halted: AtomicBool::new(false),
        }
    }

    /// Of the whole session.
    pub(super) fn registered_bytes(&self) -> usize {
        self.domain.registered_bytes()
    }

    /// None: it cannot be registered, or not now.
    fn lease(&self, range: &Range<usize>, remote: bool) -> Option<Lease<Registration>> {
        let make = |range: &Range<usize>| Registration::new(&self.domain, range, remote);
        match self.cache.lock().acquire(range, make) {
            Ok(lease) => Some(lease),
            Err(CacheError::Full) => None,
            Err(CacheError::Register(error)) => {
                log::debug!(
                    "memory of {} bytes stays unregistered: {error}",
                    range.len()
                );
                None
            }
        }
    }
}

impl Direct for Plane {
    fn offer(&self, offer: &Piece, lent: &Range<usize>) -> io::Result<bool> {
        let state = &self.direct;
        let Some(lease) = state.lease(lent, true) else {
            return Ok(false);
        };
        let piece = Piece {
            key: lease.rkey(),
            ..*offer
        };
        state.offer.lock().lease = Some(lease);
        let number = state.offers.load(Acquire) + 1;
        state.offers.store(number, Release);
        self.tell(OFFER_AT, &encode(number, &piece))?;
        Ok(true)
    }

    fn answer(&self) -> io::Result<Answer> {
        self.look()?;
        let word = self.status_word(ANSWER_AT).unwrap_or(0);
        let answer = match word >> 1 == self.direct.offers.load(Acquire) {
            false => return Ok(Answer::Pending),
            true if word & 1 == 0 => Answer::Taken,
            true => Answer::Declined,
        };
        self.direct.offer.lock().lease = None;
        Ok(answer)
    }

    fn offered(&self) -> io::Result<Option<Piece>> {
        Ok(self.pending_offer())
    }

    fn reply(&self, taken: bool) -> io::Result<()> {
        let number = self.direct.answered.load(Acquire) + 1;
        self.direct.answered.store(number, Release);
        self.tell(ANSWER_AT, &checked_word(number << 1 | u64::from(!taken)))
    }

    fn grant(&self, piece: &Piece, lent: &Range<usize>) -> io::Result<Option<Slot>> {
        let mut grants = self.direct.grants.lock();
        let free = grants.iter().position(Option::is_none);
        let Some(at) = free.and_then(|at| u8::try_from(at).ok()) else {
            return Ok(None);
        };
        let Some(lease) = self.direct.lease(lent, true) else {
            return Ok(None);
        };
        let piece = Piece {
            key: lease.rkey(),
            ..*piece
        };
        grants[usize::from(at)] = Some(lease);
        drop(grants);
        self.tell(grant_at(at), &encode(at.into(), &piece))?;
        Ok(Some(Slot(at)))
    }

    fn take_back(&self, slot: Slot) {
        self.direct.grants.lock()[usize::from(slot.0)] = None;
    }

    fn granted(&self, id: u64) -> io::Result<Option<Piece>> {
        self.look()?;
        let found = (0..GRANTS).find_map(|at| {
            self.piece_at(grant_at(at), at.into())
                .filter(|piece| piece.id == id)
        });
        Ok(found)
    }

    fn read(
        &self,
        job: &mut Job,
        memory: &mut [MaybeUninit<u8>],
        lent: Option<&Range<usize>>,
    ) -> io::Result<bool> {
        let at = memory.as_mut_ptr().expose_provenance();
        let staging = self.begin(job, Way::In, lent)?;
        self.look()?;
        self.advance(job, |from, bytes| {
            if let Some(staging) = &staging {
                staging.read(to_u64(from), &mut memory[from..from + bytes]);
            }
        });
        self.post_chunks(job, Verb::Read, |from, _| match &staging {
            Some(staging) => staging.address(to_u64(from)),
            None => to_u64(at + from),
        })?;
        Ok(is_over(job))
    }

    fn write(&self, job: &mut Job, memory: &[u8], lent: Option<&Range<usize>>) -> io::Result<bool> {
        let at = memory.as_ptr().expose_provenance();
        let staging = self.begin(job, Way::Out, lent)?;
        self.look()?;
        self.advance(job, |_, _| ());
        self.post_chunks(job, Verb::Write, |from, bytes| match &staging {
            Some(staging) => {
                staging.write(to_u64(from), &memory[from..from + bytes]);
                staging.address(to_u64(from))
            }
            None => to_u64(at + from),
        })?;
        Ok(is_over(job))
    }

    fn halt(&self) {
        if self.direct.halted.swap(true, Acquire) {
            return;
        }
        if let Err(error) = self.qp.halt() {
            self.fail(error);
        }
        let last = self.direct.last.load(Acquire);
        let deadline = Instant::now() + DRAIN_TIME;
        while self.direct.sends_over.load(Acquire) < last && Instant::now() < deadline {
            if let Err(error) = self.collect(&mut self.rx.lock()) {
                self.fail(error);
            }
            std::thread::sleep(FLUSH_NAP);
        }
        // Nothing more is sent, so nobody has to wait for that.
        self.fail(VerbsError::Flushed);
        // Whatever a device still wanted to do needs a registration.
        *self.direct.cache.lock() = Cache::new(REGISTERED_BYTES_MAX);
        self.direct.grants.lock().fill_with(|| None);
        self.direct.offer.lock().lease = None;
    }

    fn forget(&self, range: &Range<usize>) {
        self.direct.cache.lock().forget(range);
    }
}

impl Plane {
    /// The client's offer that was not answered.
    fn pending_offer(&self) -> Option<Piece> {
        self.piece_at(OFFER_AT, self.direct.answered.load(Acquire) + 1)
    }

    /// Whether what is being read has come on, or there is something to be read.
    pub(super) fn has_direct_news(&self) -> bool {
        match self.direct.awaited.load(Acquire) {
            0 => self.pending_offer().is_some(),
            awaited => self.sends_done.load(Acquire) >= awaited,
        }
    }

    fn piece_at(&self, at: u64, number: u64) -> Option<Piece> {
        let mut copy = [0; LINE_BYTES];
        self.status.read(at, socket::as_uninit(&mut copy));
        decode(number, &copy)
    }

    /// Takes completions, and says whether the connection works.
    fn look(&self) -> io::Result<()> {
        if self.failure.get().is_some() || self.direct.halted.load(Acquire) {
            return Err(self.error());
        }
        self.collect(&mut self.rx.lock())
            .map_err(|error| self.fail(error))
    }

    /// Writes something to the same place of the peer's status page.
    fn tell(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut tx = self.tx.lock();
        if tx.ended || self.failure.get().is_some() {
            return Err(self.error());
        }
        self.status.write(OWN_AT + at, bytes);
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        let value = if self.memory { 1 } else { WORDS_CHANGED };
        self.post_word(&mut tx, Some((at, len)), value, false)
            .map(drop)
            .map_err(|error| self.fail(error))
    }

    /// Finds memory for a job that has not begun. Returns the staging, where that is it.
    fn begin(
        &self,
        job: &mut Job,
        way: Way,
        lent: Option<&Range<usize>>,
    ) -> io::Result<Option<MappedMutexGuard<'_, Region>>> {
        if !job.begun
            && let Some(lease) = lent.and_then(|lent| self.direct.lease(lent, false))
        {
            job.key = lease.lkey();
            job.lease = Some(Box::new(lease));
        }
        if job.lease.is_some() {
            job.begun = true;
            return Ok(None);
        }
        let mut staging = self.direct.staging[way as usize].lock();
        if staging.is_none() {
            let made = Region::staging(&self.direct.domain, STAGING_BYTES);
            let none = |error| io::Error::new(io::ErrorKind::OutOfMemory, error);
            *staging = Some(made.map_err(none)?);
        }
        job.key = staging.as_ref().map_or(0, Region::lkey);
        job.begun = true;
        Ok(MutexGuard::try_map(staging, Option::as_mut).ok())
    }

    /// Hands what is done to `each`, in order: where it begins, and its length.
    fn advance(&self, job: &mut Job, mut each: impl FnMut(usize, usize)) {
        // SYNC: Acquire pairs with the Release in `on_completion`: the device has written the bytes.
        let done = self.sends_done.load(Acquire);
        while let Some((_, bytes)) = job.under_way.pop_front_if(|(number, _)| *number <= done) {
            each(job.done, bytes);
            job.done += bytes;
        }
    }

    /// Posts as many chunks as may be under way, in one chain. `place` says where a chunk is in our memory.
    fn post_chunks(
        &self,
        job: &mut Job,
        verb: Verb,
        mut place: impl FnMut(usize, usize) -> u64,
    ) -> io::Result<()> {
        let (chunk_bytes, most) = match job.lease {
            Some(_) => (CHUNK_BYTES, CHUNKS_MAX),
            None => (STAGED_CHUNK_BYTES, STAGING_BYTES / STAGED_CHUNK_BYTES),
        };
        let total = to_usize(job.piece.bytes);
        let mut chain = [Work::default(); CHUNKS_MAX];
        let mut count = 0;
        let mut tx = self.tx.lock();
        let room = SENDS_MAX.saturating_sub(tx.posted - self.sends_done.load(Acquire));
        let most = most.min(to_usize(room));
        while job.posted < total && job.under_way.len() < most {
            let bytes = chunk_bytes.min(total - job.posted);
            let number = tx.posted + to_u64(count) + 1;
            chain[count] = Work {
                verb,
                local: place(job.posted, bytes),
                lkey: job.key,
                bytes: u32::try_from(bytes).unwrap_or(0),
                remote: job.piece.at.wrapping_add(to_u64(job.posted)),
                rkey: job.piece.key,
                signal: Some(number),
                inline: false,
            };
            job.under_way.push_back((number, bytes));
            job.posted += bytes;
            count += 1;
        }
        if count > 0 {
            tx.posted += to_u64(count);
            self.direct.last.store(tx.posted, Release);
            let posted = self.qp.post(&chain[..count]);
            posted.map_err(|error| self.fail(error))?;
        }
        if verb == Verb::Read {
            let next = job.under_way.front().map_or(0, |(number, _)| *number);
            self.direct.awaited.store(next, Release);
        }
        Ok(())
    }
}

/// Which staging.
#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

fn is_over(job: &Job) -> bool {
    to_u64(job.done) == job.piece.bytes
}

/// Where a grant's line is.
fn grant_at(slot: u8) -> u64 {
    GRANTS_AT + u64::from(slot) * to_u64(LINE_BYTES)
}

fn encode(number: u64, piece: &Piece) -> [u8; LINE_BYTES] {
    let wire = WirePiece {
        start: piece.start.into(),
        id: piece.id.into(),
        at: piece.at.into(),
        bytes: piece.bytes.into(),
        offset: piece.offset.into(),
        total: piece.total.into(),
        key: piece.key.into(),
        reserved: U32::ZERO,
    };
    line::encode(number, wire.as_bytes(), true)
}

/// None: not there, or not whole. What is in it is not to be trusted: its addresses are the client's own
/// business and its device's, lengths are checked by whoever uses them.
fn decode(number: u64, bytes: &[u8; LINE_BYTES]) -> Option<Piece> {
    let line = line::decode(number, bytes)?;
    let wire: WirePiece = zerocopy::transmute!(line.payload);
    Some(Piece {
        start: wire.start.get(),
        id: wire.id.get(),
        at: wire.at.get(),
        bytes: wire.bytes.get(),
        offset: wire.offset.get(),
        total: wire.total.get(),
        key: wire.key.get(),
    })
}
