//! A ring mapped twice in a row, so that every run of bytes up to its size is contiguous.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use crate::num::{to_u64, to_usize};

/// Shared memory of a power-of-two size, mapped twice back to back. Positions are 64-bit and
/// never wrap; they are reduced to an offset here.
#[derive(Debug)]
pub(crate) struct Mirror {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached only through raw pointers,
// whose users say why their accesses do not race.
unsafe impl Send for Mirror {}
// SAFETY: as above; `&Mirror` itself only hands out raw pointers and its size.
unsafe impl Sync for Mirror {}

impl Mirror {
    /// Fresh memory that no other process can reach.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        match memfd(bytes, c"farcall-ring") {
            Ok(fd) => Self::map(fd.as_fd(), 0, bytes, true),
            // Linux before 3.17.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Self::without_file(bytes),
            Err(error) => Err(error),
        }
    }

    /// [`Mirror::new`] for systems without memory files: `/proc` is not asked for, nor a file system.
    fn without_file(bytes: usize) -> io::Result<Self> {
        let mirror = Self::reserve(bytes)?;
        let base = mirror.base.as_ptr();
        // SAFETY: the first half of the reservation, which is ours.
        let first = unsafe {
            libc::mmap(
                base.cast(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if first == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // An old size of zero maps the same pages once more (mremap(2)).
        // SAFETY: the target is the second half of the reservation, which is ours.
        let second = unsafe {
            libc::mremap(
                first,
                0,
                bytes,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                base.wrapping_add(bytes),
            )
        };
        if second == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(mirror)
    }

    /// Maps `bytes` (a power of two, a multiple of the page size) of `fd`, from `offset` on
    /// (a multiple of the page size).
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        offset: usize,
        bytes: usize,
        writable: bool,
    ) -> io::Result<Self> {
        let file_offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let mirror = Self::reserve(bytes)?;
        let base = mirror.base;
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        for half in 0..2 {
            let at = base.as_ptr().wrapping_add(half * bytes);
            // SAFETY: `at .. at + bytes` lies inside the reservation made above, which is ours.
            let mapped = unsafe {
                libc::mmap(
                    at.cast(),
                    bytes,
                    protection,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    fd.as_raw_fd(),
                    file_offset,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(mirror)
    }

    /// Addresses for both mappings, without access.
    fn reserve(bytes: usize) -> io::Result<Self> {
        assert!(
            bytes.is_power_of_two() && bytes >= 4096,
            "ring of {bytes} bytes"
        );
        // SAFETY: a new anonymous reservation; no existing mapping is touched.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes * 2,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { base, bytes })
    }

    /// Size of one mapping.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where position `pos` lies. `bytes()` bytes from there on are mapped.
    pub(crate) fn at(&self, pos: u64) -> *mut u8 {
        let offset = to_usize(pos & (to_u64(self.bytes) - 1));
        self.base.as_ptr().wrapping_add(offset)
    }

    /// The bytes at `pos`.
    ///
    /// # Safety
    /// `len <= bytes()`, and nobody writes these bytes while the slice lives.
    pub(crate) unsafe fn slice(&self, pos: u64, len: usize) -> &[u8] {
        debug_assert!(len <= self.bytes);
        // SAFETY: mapped for `len` bytes (`at`); the caller excludes writers.
        unsafe { std::slice::from_raw_parts(self.at(pos), len) }
    }

    /// The bytes at `pos`, to be received into.
    ///
    /// # Safety
    /// As for [`Mirror::slice_mut`].
    #[expect(
        clippy::mut_from_ref,
        reason = "exclusive use of the range is the caller's proof"
    )]
    pub(crate) unsafe fn slice_uninit(&self, pos: u64, len: usize) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the caller's promise is the same.
        super::socket::as_uninit(unsafe { self.slice_mut(pos, len) })
    }

    /// The bytes at `pos`, to be filled.
    ///
    /// # Safety
    /// `len <= bytes()`, the mapping is writable, and nobody else touches these bytes while
    /// the slice lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "exclusive use of the range is the caller's proof"
    )]
    pub(crate) unsafe fn slice_mut(&self, pos: u64, len: usize) -> &mut [u8] {
        debug_assert!(len <= self.bytes);
        // SAFETY: mapped for `len` bytes (`at`); the caller has exclusive use of the range.
        unsafe { std::slice::from_raw_parts_mut(self.at(pos), len) }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // SAFETY: exactly the reservation made in `map`; no pointer outlives its users' Arc.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes * 2) };
    }
}

/// Anonymous shared memory of a fixed size, closed on exec.
pub(crate) fn memfd(bytes: usize, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // The call itself: glibc has a function for it since 2.27 only.
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: just created, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: a plain call on a descriptor we own.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_run_across_the_end_is_contiguous() {
        for ring in [Mirror::new(4096), Mirror::without_file(4096)] {
            wraps(&ring.unwrap());
        }
    }

    fn wraps(ring: &Mirror) {
        // SAFETY: this test alone uses the ring.
        let run = unsafe { ring.slice_mut(4090, 12) };
        run.copy_from_slice(b"hello, world");
        // SAFETY: nobody writes any more.
        let end = unsafe { ring.slice(4090, 6) };
        // SAFETY: nobody writes any more.
        let start = unsafe { ring.slice(4096 * 7, 6) };
        assert_eq!((end, start), (&b"hello,"[..], &b" world"[..]));
    }
}
