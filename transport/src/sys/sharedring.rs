//! One direction of bytes in memory that two processes share: the writer can write all of it,
//! the reader can only read it.
//!
//! The memory begins with a page of words that the writer alone writes: how far it has
//! produced here, and how far it has consumed of the opposite ring. A ring follows. The peer
//! is not trusted: its words are read once, checked, and its bytes are copied out before
//! anyone looks at them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::mirror::{Mirror, memfd};
use crate::stream::ring::Words;

/// Of a cache.
const LINE_BYTES: u64 = 64;
/// What most messages take.
const PREFETCHED_LINES: u64 = 3;
/// The page before a ring.
pub(crate) const WORDS_BYTES: usize = 4096;
/// What keeps a file from shrinking under a mapping, which would kill the process that reads.
const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

const _: () = assert!(size_of::<Words>() <= WORDS_BYTES);

/// A mapped page of words and the ring behind it.
pub(crate) struct SharedRing {
    words: ptr::NonNull<Words>,
    ring: Mirror,
}

// SAFETY: the words are atomics, the ring is reached through methods that say who may; both
// stay mapped as long as this value lives.
unsafe impl Send for SharedRing {}
// SAFETY: as above.
unsafe impl Sync for SharedRing {}

/// Memory of one side: one file with a ring per plane.
pub(crate) fn create(ring_bytes: &[usize]) -> io::Result<OwnedFd> {
    let total = ring_bytes.iter().map(|bytes| WORDS_BYTES + bytes).sum();
    memfd(total, c"farcall-shm")
}

/// After mapping it: neither side can change its size, and the peer cannot map it writable.
pub(crate) fn seal(fd: &OwnedFd) -> io::Result<()> {
    let seals = SEALS | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: no pointers.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether a peer's file keeps its size and has at least `bytes`: else reading it could kill us.
pub(crate) fn check(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    // SAFETY: no pointers.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    // SAFETY: an all-zero stat is valid.
    let mut stat: libc::stat = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: `stat` is writable.
    let result = unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) };
    let large = usize::try_from(stat.st_size).is_ok_and(|size| size >= bytes);
    if result == 0 && seals >= 0 && seals & SEALS == SEALS && large {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the peer's shared memory is not sealed",
        ))
    }
}

impl SharedRing {
    /// Maps words and ring at `offset` of `fd`.
    pub(crate) fn map(fd: &OwnedFd, offset: usize, bytes: usize, own: bool) -> io::Result<Self> {
        let ring = Mirror::map(fd.as_fd(), offset + WORDS_BYTES, bytes, own)?;
        let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | if own { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping; nothing existing is touched.
        let words = unsafe {
            libc::mmap(
                ptr::null_mut(),
                WORDS_BYTES,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                at,
            )
        };
        if words == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = ptr::NonNull::new(words.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { words, ring })
    }

    /// The words. Of the peer's ring they can only be loaded: the mapping is read-only.
    #[inline]
    pub(crate) fn words(&self) -> &Words {
        // SAFETY: a mapped, aligned page that the file's seals keep; atomics may change under
        // a shared reference.
        unsafe { self.words.as_ref() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.ring.bytes()
    }

    /// Writes into our own ring.
    #[inline]
    pub(crate) fn write(&self, pos: u64, bytes: &[u8]) {
        assert!(bytes.len() <= self.ring.bytes());
        // SAFETY: mapped for a whole ring from `pos` on, and writable; one thread at a time
        // sends, so no other writer here. The peer's mapping is read-only (sealed).
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.ring.at(pos), bytes.len()) };
    }

    /// Fetches the lines at `pos` of our own ring, to be written: they were the reader's, a lap ago, and to have them
    /// back takes as long as to hand them over.
    #[inline]
    pub(crate) fn prefetch(&self, pos: u64) {
        #[cfg(target_arch = "x86_64")]
        for line in 0..PREFETCHED_LINES {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            let at = self.ring.at(pos + line * LINE_BYTES).cast_const();
            // SAFETY: a hint, which cannot fault; the address is mapped anyway (`Mirror::at`).
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = pos;
    }

    /// Copies out of the peer's ring, once. The peer may write there meanwhile: then the copy
    /// is garbage, which its receiver finds out like any other garbage from the wire.
    #[inline]
    pub(crate) fn read(&self, pos: u64, to: &mut [MaybeUninit<u8>]) {
        assert!(to.len() <= self.ring.bytes());
        let from = self.ring.at(pos).cast_const().cast();
        // SAFETY: mapped for a whole ring from `pos` on; `to` is ours. No reference into the
        // shared bytes is formed; every bit pattern is a valid byte.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    }
}

impl Drop for SharedRing {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; `words()` borrows from self.
        unsafe { libc::munmap(self.words.as_ptr().cast(), WORDS_BYTES) };
    }
}
