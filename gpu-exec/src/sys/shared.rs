//! Words of memory that several processes share.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

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
        let file = memfd_create(c"farcall-ledger", MFdFlags::MFD_CLOEXEC)?;
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
}
