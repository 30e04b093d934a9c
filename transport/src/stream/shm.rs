//! Shared memory: a ring per direction, polled, then slept for on an eventfd; a Unix socket
//! tells of the peer's death.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, fence};

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Stream;
use crate::num::{to_u64, to_usize};
use crate::sys::event::EventFd;
use crate::sys::poll::{IN, PollSet};
use crate::sys::sharedring::{self, SharedRing, WORDS_BYTES};
use crate::sys::{fdpass, socket};

/// Ring of the call plane: small, so that it stays in the cache.
const CALL_BYTES: usize = 256 << 10;
/// Ring of the bulk plane: large enough to overlap the two copies.
const BULK_BYTES: usize = 1 << 20;
/// Published at once, so that the peer copies out while we copy in.
const CHUNK_BYTES: usize = 64 << 10;
/// Largest ring that a peer may ask us to map.
const RING_BYTES_MAX: u32 = 64 << 20;

/// In `Words::waits`: sleeps until something is produced.
const WAITS_READ: u32 = 1;
/// In `Words::waits`: sleeps until something is consumed.
const WAITS_WRITE: u32 = 2;

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
        let call = Shm::new(self.call, call, bells(self.call_bell, call_bell), &socket);
        let bulk = Shm::new(self.bulk, bulk, bells(self.bulk_bell, bulk_bell), &socket);
        Ok((Arc::new(call), Arc::new(bulk)))
    }
}

struct Bells {
    /// Rung by the peer.
    own: EventFd,
    /// Rung by us.
    peer: EventFd,
}

/// One plane of a session over shared memory.
struct Shm {
    near: SharedRing,
    far: SharedRing,
    bells: Bells,
    socket: Arc<OwnedFd>,
    /// Threads that sleep, or are about to.
    sleepers: AtomicU32,
    /// Someone slept: the peer may have died meanwhile.
    suspicious: AtomicBool,
    dead: AtomicBool,
}

impl Shm {
    fn new(near: SharedRing, far: SharedRing, bells: Bells, socket: &Arc<OwnedFd>) -> Self {
        Self {
            near,
            far,
            bells,
            socket: Arc::clone(socket),
            sleepers: AtomicU32::new(0),
            suspicious: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        }
    }

    /// Bytes to read, from a position that the peer wrote and that is checked here.
    #[inline]
    fn available(&self) -> io::Result<usize> {
        // SYNC: Acquire pairs with the Release in the peer's `send`: its bytes are there.
        let produced = self.far.words().produced.0.load(Acquire);
        let consumed = self.near.words().consumed.0.load(Relaxed);
        within(produced.wrapping_sub(consumed), self.far.bytes())
    }

    /// Bytes that fit, from a position that the peer wrote and that is checked here.
    #[inline]
    fn room(&self) -> io::Result<usize> {
        let produced = self.near.words().produced.0.load(Relaxed);
        // SYNC: Acquire pairs with the Release in the peer's `recv`: it is done with the bytes.
        let consumed = self.far.words().consumed.0.load(Acquire);
        let used = within(produced.wrapping_sub(consumed), self.near.bytes())?;
        Ok(self.near.bytes() - used)
    }

    /// Wakes the peer if it waits for this.
    #[inline]
    fn ring_bell(&self, what: u32) {
        // SYNC: Dekker with the peer's `arm`: it announces its sleep, then looks again.
        fence(SeqCst);
        if self.far.words().waits.0.load(Relaxed) & what != 0 {
            self.bells.peer.set();
        }
    }

    /// Nothing is there: is anything to come?
    #[cold]
    fn nothing(&self) -> io::Result<usize> {
        if self.suspicious.swap(false, Relaxed) {
            match socket::recv_into(self.socket.as_raw_fd(), &mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => self.dead.store(true, Release),
            }
        }
        let over = self.far.words().ended.0.load(Acquire) != 0 || self.dead.load(Acquire);
        // What was produced before the end counts.
        if over && self.available()? == 0 {
            Ok(0)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

/// A distance between positions; more than a ring is a lie.
fn within(distance: u64, bytes: usize) -> io::Result<usize> {
    if distance <= to_u64(bytes) {
        Ok(to_usize(distance))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "impossible position in shared memory",
        ))
    }
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
        let mut room = self.room()?;
        let words = self.near.words();
        let start = words.produced.0.load(Relaxed);
        let mut at = start;
        for chunk in parts.iter().flat_map(|part| part.chunks(CHUNK_BYTES)) {
            let take = chunk.len().min(room);
            if take == 0 {
                break;
            }
            self.near.write(at, &chunk[..take]);
            at += to_u64(take);
            room -= take;
            // SYNC: Release pairs with the Acquire in the peer's `available`.
            words.produced.0.store(at, Release);
            self.ring_bell(WAITS_READ);
        }
        if at == start {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(to_usize(at - start))
        }
    }

    fn recv(&self, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let got = self.available()?.min(buffer.len()).min(2 * CHUNK_BYTES);
        if got == 0 {
            return self.nothing();
        }
        let words = self.near.words();
        let at = words.consumed.0.load(Relaxed);
        self.far.read(at, &mut buffer[..got]);
        // SYNC: Release pairs with the Acquire in the peer's `room`: the copy is done.
        words.consumed.0.store(at + to_u64(got), Release);
        self.ring_bell(WAITS_WRITE);
        Ok(got)
    }

    fn shutdown(&self) {
        self.near.words().ended.0.store(1, Release);
        self.bells.peer.set();
    }

    fn arm(&self, set: &mut PollSet, read: bool, write: bool) -> bool {
        let what = if read { WAITS_READ } else { 0 } | if write { WAITS_WRITE } else { 0 };
        self.sleepers.fetch_add(1, SeqCst);
        self.near.words().waits.0.fetch_or(what, SeqCst);
        // SYNC: Dekker with the peer's `ring_bell`: either it sees that we sleep, or we see
        // what it did.
        fence(SeqCst);
        self.suspicious.store(true, Relaxed);
        set.add(self.bells.own.raw(), IN);
        set.add(self.socket.as_raw_fd(), if read { IN } else { 0 });
        let idle = |result: io::Result<usize>| matches!(result, Ok(0));
        let over = self.far.words().ended.0.load(SeqCst) != 0;
        !(read && (over || !idle(self.available())) || write && !idle(self.room()))
    }

    fn disarm(&self) {
        if self.sleepers.fetch_sub(1, SeqCst) == 1 {
            self.near.words().waits.0.store(0, SeqCst);
            self.bells.own.clear();
        }
    }

    fn abandon(&self) {
        socket::abandon(self.socket.as_raw_fd());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixStream;

    use super::*;

    type Planes = (Arc<dyn Stream>, Arc<dyn Stream>);

    /// Two ends in one process.
    fn pair() -> (Planes, Planes) {
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b): (OwnedFd, OwnedFd) = (a.into(), b.into());
        let (near, far) = (Near::new().unwrap(), Near::new().unwrap());
        near.send(&a).unwrap();
        far.send(&b).unwrap();
        let (near_offer, near_fds) = receive(&b);
        let (far_offer, far_fds) = receive(&a);
        let near = near.join(a, &far_offer, far_fds).unwrap();
        (near, far.join(b, &near_offer, near_fds).unwrap())
    }

    fn receive(socket: &OwnedFd) -> ([u8; OFFER_BYTES], [OwnedFd; fdpass::FDS]) {
        let mut offer = [0; OFFER_BYTES];
        let (got, fds) = fdpass::recv(socket.as_raw_fd(), &mut offer).unwrap();
        assert_eq!(got, OFFER_BYTES);
        (offer, fds.unwrap())
    }

    fn recv(stream: &dyn Stream) -> io::Result<Vec<u8>> {
        let mut buffer = [0; 100];
        let got = super::super::recv_into(stream, &mut buffer)?;
        Ok(buffer[..got].to_vec())
    }

    #[test]
    fn bytes_pass_wrap_and_end() {
        let (near, far) = pair();
        for n in 0..CALL_BYTES / 50 {
            let record = [n.to_le_bytes()[0]; 100];
            assert_eq!(near.0.send(&[IoSlice::new(&record)]).unwrap(), 100);
            assert_eq!(recv(&*far.0).unwrap(), record);
        }
        assert_eq!(recv(&*far.0).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        near.0.send(&[IoSlice::new(b"last")]).unwrap();
        near.0.shutdown();
        assert_eq!(recv(&*far.0).unwrap(), b"last");
        assert_eq!(recv(&*far.0).unwrap(), b"");
    }

    #[test]
    fn a_full_ring_takes_no_more() {
        let (near, far) = pair();
        let bytes = vec![7; CALL_BYTES + 1];
        assert_eq!(near.0.send(&[IoSlice::new(&bytes)]).unwrap(), CALL_BYTES);
        let full = near.0.send(&[IoSlice::new(&bytes)]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(recv(&*far.0).unwrap().len(), 100);
        assert_eq!(near.0.send(&[IoSlice::new(&bytes)]).unwrap(), 100);
    }

    #[test]
    fn the_death_of_the_peer_shows_after_a_sleep() {
        let (near, far) = pair();
        near.0.send(&[IoSlice::new(b"last words")]).unwrap();
        drop(near);
        let mut set = PollSet::new();
        assert!(
            !far.0.arm(&mut set, true, false),
            "there is something to read"
        );
        far.0.disarm();
        assert_eq!(recv(&*far.0).unwrap(), b"last words");
        let mut set = PollSet::new();
        assert!(far.0.arm(&mut set, true, false));
        assert!(set.wait(None).unwrap(), "the socket tells");
        far.0.disarm();
        assert_eq!(recv(&*far.0).unwrap(), b"");
    }

    #[test]
    fn the_peer_can_only_read_our_memory() {
        let (a, _b) = UnixStream::pair().unwrap();
        let near = Near::new().unwrap();
        near.send(&a.into()).unwrap();
        assert!(SharedRing::map(&near.memory, 0, CALL_BYTES, true).is_err());
    }

    #[test]
    fn memory_that_could_shrink_is_not_taken() {
        let unsealed = sharedring::create(&[CALL_BYTES, BULK_BYTES]).unwrap();
        assert!(sharedring::check(unsealed.as_fd(), 4096).is_err());
        sharedring::seal(&unsealed).unwrap();
        assert!(sharedring::check(unsealed.as_fd(), 4096).is_ok());
        assert!(sharedring::check(unsealed.as_fd(), 64 << 20).is_err());
    }

    #[test]
    fn impossible_positions_are_errors() {
        assert_eq!(within(5, 8).unwrap(), 5);
        assert_eq!(within(8, 8).unwrap(), 8);
        for lie in [9, u64::MAX, u64::MAX / 2] {
            assert_eq!(
                within(lie, 8).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
    }

    #[test]
    fn impossible_offers_are_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let near = Near::new().unwrap();
        near.send(&a.into()).unwrap();
        let b: OwnedFd = b.into();
        let (good, fds) = receive(&b);
        for (at, value) in [(0, 0), (8, 1), (11, 0x7f), (12, 1), (15, 4)] {
            let mut offer = good;
            offer[at] = value;
            let fds = [&fds[0], &fds[1], &fds[2]].map(|fd| fd.try_clone().unwrap());
            let joined = Near::new()
                .unwrap()
                .join(b.try_clone().unwrap(), &offer, fds);
            assert!(joined.is_err(), "byte {at}");
        }
    }
}
