//! Shared memory: a ring per direction, polled, then slept for on an eventfd; a Unix socket
//! tells of the peer's death.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use parking_lot::Mutex;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Stream;
use super::ring::{Impossible, Known, Sides, WAITS_READ, WAITS_WRITE};
use crate::error::Violation;
use crate::num::{to_u64, to_usize};
use crate::sys::event::EventFd;
use crate::sys::poll::{IN, PollSet, is_hung_up};
use crate::sys::sharedring::{self, SharedRing, WORDS_BYTES};
use crate::sys::{fdpass, socket, unix};

/// Ring of the call plane: as large as the default send ring, so that it is hardly ever full and the
/// program's thread sends each batch itself.
const CALL_BYTES: usize = 1 << 20;
/// Ring of the bulk plane: large enough to overlap the two copies.
const BULK_BYTES: usize = 1 << 20;
/// Published at once, so that the peer copies out while we copy in.
const CHUNK_BYTES: usize = 64 << 10;
/// Largest ring that a peer may ask us to map.
const RING_BYTES_MAX: u32 = 64 << 20;

/// What the sides tell each other; the descriptors of memory and doorbells come with it.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Offer {
    magic: [u8; 8],
    call_bytes: U32,
    bulk_bytes: U32,
}

const MAGIC: [u8; 8] = *b"FCSHM01\0";
/// Bytes of [`Offer`].
pub(crate) const OFFER_BYTES: usize = 16;
const _: () = assert!(size_of::<Offer>() == OFFER_BYTES);

/// Our half of the memory, before the peer's is known.
pub(crate) struct Near {
    memory: OwnedFd,
    call: SharedRing,
    bulk: SharedRing,
    call_bell: EventFd,
    bulk_bell: EventFd,
}

impl Near {
    pub(crate) fn new() -> io::Result<Self> {
        let memory = sharedring::create(&[CALL_BYTES, BULK_BYTES])?;
        let call = SharedRing::map(&memory, 0, CALL_BYTES, true)?;
        let bulk = SharedRing::map(&memory, WORDS_BYTES + CALL_BYTES, BULK_BYTES, true)?;
        sharedring::seal(&memory)?;
        let (call_bell, bulk_bell) = (EventFd::new()?, EventFd::new()?);
        Ok(Self {
            memory,
            call,
            bulk,
            call_bell,
            bulk_bell,
        })
    }

    /// Sends our half. It fits the socket's buffer.
    pub(crate) fn send(&self, socket: &OwnedFd) -> io::Result<()> {
        let offer = Offer {
            magic: MAGIC,
            call_bytes: U32::new(u32::try_from(CALL_BYTES).map_err(io::Error::other)?),
            bulk_bytes: U32::new(u32::try_from(BULK_BYTES).map_err(io::Error::other)?),
        };
        let fds = [
            self.memory.as_fd(),
            self.call_bell.borrow(),
            self.bulk_bell.borrow(),
        ];
        let sent = fdpass::send(socket.as_raw_fd(), offer.as_bytes(), fds)?;
        if sent == OFFER_BYTES {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Joins our half with the peer's: call plane and bulk plane.
    pub(crate) fn join(
        self,
        socket: OwnedFd,
        offer: &[u8; OFFER_BYTES],
        fds: [OwnedFd; fdpass::FDS],
    ) -> io::Result<(Arc<dyn Stream>, Arc<dyn Stream>)> {
        let (call, bulk) = self.join_planes(socket, offer, fds)?;
        Ok((Arc::new(call), Arc::new(bulk)))
    }

    fn join_planes(
        self,
        socket: OwnedFd,
        offer: &[u8; OFFER_BYTES],
        fds: [OwnedFd; fdpass::FDS],
    ) -> io::Result<(Shm, Shm)> {
        let offer: Offer = zerocopy::transmute!(*offer);
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "malformed shared memory offer");
        let size = |bytes: U32| {
            let bytes = bytes.get();
            let fine = bytes.is_power_of_two() && (4096..=RING_BYTES_MAX).contains(&bytes);
            fine.then_some(bytes as usize).ok_or_else(bad)
        };
        if offer.magic != MAGIC {
            return Err(bad());
        }
        let (call_bytes, bulk_bytes) = (size(offer.call_bytes)?, size(offer.bulk_bytes)?);
        let [memory, call_bell, bulk_bell] = fds;
        sharedring::check(memory.as_fd(), 2 * WORDS_BYTES + call_bytes + bulk_bytes)?;
        let call = SharedRing::map(&memory, 0, call_bytes, false)?;
        let bulk = SharedRing::map(&memory, WORDS_BYTES + call_bytes, bulk_bytes, false)?;
        let socket = Arc::new(socket);
        let bells = |own, peer| Bells {
            own,
            peer: EventFd::from_fd(peer),
        };
        let mut call = Shm::new(self.call, call, bells(self.call_bell, call_bell), &socket);
        call.process = unix::peer_process(&socket);
        let bulk = Shm::new(self.bulk, bulk, bells(self.bulk_bell, bulk_bell), &socket);
        Ok((call, bulk))
    }
}

struct Bells {
    /// Rung by the peer.
    own: EventFd,
    /// Rung by us.
    peer: EventFd,
}

/// One plane of a session over shared memory.
pub(crate) struct Shm {
    near: SharedRing,
    far: SharedRing,
    known: Known,
    bells: Bells,
    socket: Arc<OwnedFd>,
    /// Readable once the peer's process has ended, where the system can tell.
    process: Option<OwnedFd>,
    /// Threads that sleep, or are about to.
    sleepers: Mutex<u32>,
    /// Someone slept: the peer may have died meanwhile.
    suspicious: AtomicBool,
    dead: AtomicBool,
}

impl Shm {
    fn new(near: SharedRing, far: SharedRing, bells: Bells, socket: &Arc<OwnedFd>) -> Self {
        Self {
            near,
            far,
            known: Known::default(),
            bells,
            socket: Arc::clone(socket),
            process: None,
            sleepers: Mutex::new(0),
            suspicious: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        }
    }

    #[inline]
    fn sides(&self) -> Sides<'_> {
        Sides {
            near: self.near.words(),
            far: self.far.words(),
            known: &self.known,
        }
    }

    /// Where to read, and how many bytes: from a position that the peer wrote and that is checked.
    #[inline]
    fn available(&self) -> io::Result<(u64, usize)> {
        let (at, there) = self
            .sides()
            .available(to_u64(self.far.bytes()))
            .map_err(lie)?;
        Ok((at, to_usize(there)))
    }

    /// Where to write, and how many bytes fit: from a position that the peer wrote and that is
    /// checked. With room for `wanted` bytes as last seen it is not looked at again.
    #[inline]
    fn room(&self, wanted: usize) -> io::Result<(u64, usize)> {
        let (at, room) = self
            .sides()
            .room(to_u64(self.near.bytes()), to_u64(wanted))
            .map_err(lie)?;
        Ok((at, to_usize(room)))
    }

    /// Writes where there is room, and tells the peer; returns how much.
    #[inline]
    fn put(&self, at: u64, bytes: &[u8]) -> usize {
        self.near.write(at, bytes);
        let end = at + to_u64(bytes.len());
        self.sides().produce(end);
        self.ring_bell(WAITS_READ);
        self.near.prefetch(end);
        bytes.len()
    }

    /// Wakes the peer if it waits for this.
    #[inline]
    fn ring_bell(&self, what: u32) {
        if self.sides().peer_sleeps(what) {
            self.bells.peer.set();
        }
    }

    /// Nothing is there: is anything to come?
    #[cold]
    fn nothing(&self) -> io::Result<usize> {
        // The load spares every look that finds nothing an exclusive access.
        if self.suspicious.load(Relaxed) && self.suspicious.swap(false, Relaxed) {
            match socket::recv_into(self.socket.as_raw_fd(), &mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // SYNC: Release pairs with the Acquire below; nothing but the flag is published.
                _ => self.dead.store(true, Release),
            }
        }
        // SYNC: Acquire pairs with the Release above.
        let over = self.sides().peer_ended() || self.dead.load(Acquire);
        // What was produced before the end counts.
        if over && self.available()?.1 == 0 {
            Ok(0)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

/// A position that cannot be: the peer breaks the protocol.
#[cold]
fn lie(_: Impossible) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Violation::SharedPosition)
}

impl Stream for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.dead.load(Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // A small message, mostly: one copy.
        if let [part] = parts
            && part.len() <= CHUNK_BYTES
        {
            let (at, room) = self.room(part.len())?;
            return match part.len().min(room) {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                take => Ok(self.put(at, &part[..take])),
            };
        }
        let (start, mut room) = self.room(self.near.bytes())?;
        let mut at = start;
        for chunk in parts.iter().flat_map(|part| part.chunks(CHUNK_BYTES)) {
            let take = chunk.len().min(room);
            if take == 0 {
                break;
            }
            at += to_u64(self.put(at, &chunk[..take]));
            room -= take;
        }
        if at == start {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(to_usize(at - start))
        }
    }

    fn recv(&self, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let (at, there) = self.available()?;
        let got = there.min(buffer.len()).min(2 * CHUNK_BYTES);
        if got == 0 {
            return self.nothing();
        }
        self.far.read(at, &mut buffer[..got]);
        let consumed = at + to_u64(got);
        if self.sides().consume(consumed, to_u64(self.far.bytes())) {
            self.ring_bell(WAITS_WRITE);
        }
        Ok(got)
    }

    #[inline]
    fn has_news(&self) -> Option<bool> {
        Some(self.sides().has_news())
    }

    fn shutdown(&self) {
        self.sides().end();
        self.bells.peer.set();
    }

    fn arm(&self, set: &mut PollSet, read: bool, write: bool) -> bool {
        let what = if read { WAITS_READ } else { 0 } | if write { WAITS_WRITE } else { 0 };
        {
            // Under the lock, so that nobody's waking takes this announcement back.
            let mut sleepers = self.sleepers.lock();
            *sleepers += 1;
            self.sides().announce(what);
        }
        self.suspicious.store(true, Relaxed);
        set.add(self.bells.own.raw(), IN);
        set.add(self.socket.as_raw_fd(), if read { IN } else { 0 });
        let idle = |result: io::Result<(u64, usize)>| matches!(result, Ok((_, 0)));
        let over = self.sides().peer_ended();
        !(read && (over || !idle(self.available())) || write && !idle(self.room(1)))
    }

    fn disarm(&self) {
        let mut sleepers = self.sleepers.lock();
        *sleepers -= 1;
        if *sleepers == 0 {
            self.sides().retract();
            self.bells.own.clear();
        }
    }

    fn unread(&self, bytes: usize) -> Option<Vec<u8>> {
        let start = self.sides().produced().checked_sub(to_u64(bytes))?;
        if bytes > self.near.bytes() {
            return None;
        }
        let mut unread = vec![0; bytes];
        self.near.read(start, socket::as_uninit(&mut unread));
        Some(unread)
    }

    fn keeps_unread(&self) -> bool {
        true
    }

    fn has_hung_up(&self) -> bool {
        is_hung_up(self.socket.as_raw_fd())
    }

    fn peer_process(&self) -> Option<&OwnedFd> {
        self.process.as_ref()
    }

    fn abandon(&self) {
        socket::abandon(self.socket.as_raw_fd());
    }
}

#[cfg(test)]
#[path = "shm_tests.rs"]
pub(crate) mod tests;
