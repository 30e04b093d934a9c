//! Words of memory that several processes share.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::memfd;

/// A fixed number of atomic words in a memory file.
#[derive(Debug)]
pub(crate) struct SharedWords {
    file: OwnedFd,
    base: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the words are atomics in memory that lives as long as this value.
unsafe impl Send for SharedWords {}
// SAFETY: as for Send.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// New words, all 0.
    ///
    /// # Errors
    /// No memory or descriptors.
    pub(crate) fn create(count: usize) -> io::Result<Self> {
        let file = memfd::create(c"farcall-ledger")?;
        let bytes = i64::try_from(count * size_of::<AtomicU64>()).map_err(io::Error::other)?;
        ftruncate(&file, bytes)?;
        Self::open(file, count)
    }

    /// The words of a file that [`Self::create`] made, maybe in another process.
    ///
    /// # Errors
    /// The file is too short, or cannot be mapped.
    pub(crate) fn open(file: OwnedFd, count: usize) -> io::Result<Self> {
        let bytes =
            NonZeroUsize::new(count * size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput)?;
        let have = usize::try_from(fstat(&file)?.st_size).unwrap_or(0);
        if have < bytes.get() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that is long enough and that
        // only this server's processes hold, none of which shortens it.
        let base = unsafe { mmap(None, bytes, prot, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Self {
            file,
            base: base.cast(),
            count,
        })
    }

    /// One word.
    pub(crate) fn get(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.count {
            return None;
        }
        let at = self.base.as_ptr().wrapping_add(index);
        // SAFETY: in bounds of the mapping, page-aligned base, valid for any bits, lives as long as self.
        Some(unsafe { &*at })
    }

    /// Sleeps while the low half of a word is `seen`, `timeout` at most; `None`: however long. May return early.
    pub(crate) fn wait(&self, index: usize, seen: u32, timeout: Option<Duration>) {
        let Some(word) = self.get(index) else {
            return;
        };
        let spec = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let spec = spec.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: four bytes of a live word, and null or a valid timespec; both outlive the call. Not private: the
        // words are shared by processes.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                low_half(word),
                libc::FUTEX_WAIT,
                seen,
                spec,
            )
        };
    }

    /// Wakes everyone who sleeps on a word, in all processes.
    pub(crate) fn wake(&self, index: usize) {
        let Some(word) = self.get(index) else {
            return;
        };
        // SAFETY: four bytes of a live word; FUTEX_WAKE takes no further pointer.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                low_half(word),
                libc::FUTEX_WAKE,
                libc::c_int::MAX,
            )
        };
    }

    /// To be sent to another process.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let base: NonNull<c_void> = self.base.cast();
        // SAFETY: mapped by `open` with this length; no reference outlives self.
        let _ = unsafe { munmap(base, self.count * size_of::<AtomicU64>()) };
    }
}

/// Where the kernel finds the half of a word that changes with every count.
fn low_half(word: &AtomicU64) -> *mut u32 {
    let first = word.as_ptr().cast::<u32>();
    if cfg!(target_endian = "big") {
        first.wrapping_add(1)
    } else {
        first
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::Ordering;

    use super::SharedWords;

    #[test]
    fn two_mappings_are_one_memory() {
        let first = SharedWords::create(100).unwrap();
        let second = SharedWords::open(first.file().try_clone_to_owned().unwrap(), 100).unwrap();
        first.get(99).unwrap().store(7, Ordering::SeqCst);
        assert_eq!(second.get(99).unwrap().load(Ordering::SeqCst), 7);
        assert!(first.get(100).is_none());
        assert!(SharedWords::open(first.file().try_clone_to_owned().unwrap(), 10_000).is_err());
    }

    #[test]
    fn a_sleeper_is_woken_through_another_mapping() {
        let first = SharedWords::create(4).unwrap();
        let second = SharedWords::open(first.file().try_clone_to_owned().unwrap(), 4).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while second.get(3).unwrap().load(Ordering::SeqCst) == 0 {
                    second.wait(3, 0, None);
                }
            });
            first.get(3).unwrap().store(1, Ordering::SeqCst);
            first.wake(3);
        });
        first.wait(3, 0, None);
    }
}
