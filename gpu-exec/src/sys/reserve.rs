//! A range of addresses of this process, of which parts are made memory and taken back.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use nix::unistd::ftruncate;

use super::memfd;

/// Addresses that nothing else in this process will be given. Inaccessible but where committed.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: the pointer is only ever used as an address for system calls, which may come from any thread.
unsafe impl Send for Reservation {}
// SAFETY: as for Send; the calls on `&self` are atomic in the kernel.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves exactly `base..base + bytes`, both multiples of the page size.
    ///
    /// # Errors
    /// Something is mapped there, or the address cannot be used.
    pub(crate) fn at(base: u64, bytes: u64) -> io::Result<Self> {
        let reservation = Self::map(NonZeroUsize::new(to_usize(base)?), to_usize(bytes)?)?;
        if reservation.base() == base {
            Ok(reservation)
        } else {
            Err(io::ErrorKind::AddrInUse.into())
        }
    }

    /// Reserves `bytes` wherever there is room.
    ///
    /// # Errors
    /// No room.
    pub(crate) fn anywhere(bytes: u64) -> io::Result<Self> {
        Self::map(None, to_usize(bytes)?)
    }

    /// First address.
    pub(crate) fn base(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    /// One past the last address.
    pub(crate) fn end(&self) -> u64 {
        self.base() + self.bytes as u64
    }

    /// Makes pages readable and writable; those that were not committed read as zeros.
    ///
    /// # Errors
    /// Outside of the reservation, not page-aligned, or the system has no memory.
    pub(crate) fn commit(&self, start: u64, end: u64) -> io::Result<()> {
        let (at, bytes) = self.part(start, end)?;
        // SAFETY: `part` proved that the pages belong to this reservation; nothing but this type
        // decides about their protection, and giving access breaks nobody's reference.
        unsafe { mprotect(at, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE) }?;
        Ok(())
    }

    /// Lets pages of a memory file appear, readable and writable.
    ///
    /// # Errors
    /// Outside of the reservation or the file, not page-aligned, or too many mappings.
    ///
    /// # Safety
    /// Nobody uses these pages: they are not committed.
    pub(crate) unsafe fn map_file(
        &self,
        start: u64,
        end: u64,
        file: &MemoryFile,
        offset: u64,
    ) -> io::Result<()> {
        let (at, bytes) = self.part(start, end)?;
        let fits = offset
            .checked_add(end - start)
            .is_some_and(|end| end <= file.bytes);
        let (Some(address), Some(length), true) = (
            NonZeroUsize::new(at.as_ptr().addr()),
            NonZeroUsize::new(bytes),
            fits,
        ) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the pages belong to this reservation and the caller promises that nobody uses them; the file is
        // as long as the mapping and nobody else has it, so it is never shortened.
        unsafe { mmap(Some(address), length, prot, flags, &file.file, offset) }?;
        Ok(())
    }

    /// Gives the pages back to the system; they stay reserved.
    ///
    /// # Errors
    /// Outside of the reservation, not page-aligned, or too many mappings.
    ///
    /// # Safety
    /// Nobody accesses these pages any more, until they are committed again.
    pub(crate) unsafe fn decommit(&self, start: u64, end: u64) -> io::Result<()> {
        let (at, bytes) = self.part(start, end)?;
        let (Some(address), Some(length)) = (
            NonZeroUsize::new(at.as_ptr().addr()),
            NonZeroUsize::new(bytes),
        ) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
        // SAFETY: the pages belong to this reservation, and the caller promises that nobody uses them.
        unsafe { mmap_anonymous(Some(address), length, ProtFlags::PROT_NONE, flags) }?;
        Ok(())
    }

    fn map(address: Option<NonZeroUsize>, bytes: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let mut flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        if address.is_some() {
            flags |= MapFlags::MAP_FIXED_NOREPLACE;
        }
        // SAFETY: without MAP_FIXED the kernel takes only addresses that nothing uses.
        let base = unsafe { mmap_anonymous(address, length, ProtFlags::PROT_NONE, flags) }?;
        Ok(Self { base, bytes })
    }

    /// The pages `start..end`, if they are pages of this reservation.
    fn part(&self, start: u64, end: u64) -> io::Result<(NonNull<c_void>, usize)> {
        let inside = self.base() <= start && start < end && end <= self.end();
        if !inside || !start.is_multiple_of(4096) || !end.is_multiple_of(4096) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let offset = to_usize(start - self.base())?;
        let at = NonNull::new(self.base.as_ptr().wrapping_byte_add(offset))
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok((at, to_usize(end - start)?))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the owner of the memory is going away, so nobody uses it any more.
        let _ = unsafe { munmap(self.base, self.bytes) };
    }
}

/// Memory that can appear at several addresses. Pages take memory when they are first written.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: OwnedFd,
    bytes: u64,
}

impl MemoryFile {
    /// Zeros.
    ///
    /// # Errors
    /// No descriptors, or the system refuses the size.
    pub(crate) fn create(bytes: u64) -> io::Result<Self> {
        let file = memfd::create(c"farcall-memory")?;
        ftruncate(&file, i64::try_from(bytes).map_err(io::Error::other)?)?;
        Ok(Self { file, bytes })
    }
}

fn to_usize(value: u64) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{MemoryFile, Reservation};
    use crate::sys::raw;

    #[test]
    fn a_taken_range_is_refused() {
        let first = Reservation::anywhere(1 << 20).unwrap();
        assert!(Reservation::at(first.base(), 1 << 20).is_err());
    }

    #[test]
    fn decommitted_pages_come_back_as_zeros() {
        let range = Reservation::anywhere(1 << 20).unwrap();
        let (start, end) = (range.base() + 8192, range.base() + 16384);
        range.commit(start, end).unwrap();
        // SAFETY: the pages were committed and are this test's alone.
        unsafe { raw::fill(start, 8192, 0xab, 1) };
        // SAFETY: nobody else knows the pages.
        unsafe { range.decommit(start, end) }.unwrap();
        range.commit(start, end).unwrap();
        // SAFETY: the pages were committed and are this test's alone.
        let bytes = unsafe { raw::bytes(start, 8192) };
        assert!(bytes.iter().all(|b| *b == 0));
    }

    #[test]
    fn a_file_appears_at_two_addresses_and_is_the_same_bytes() {
        let range = Reservation::anywhere(1 << 20).unwrap();
        let file = MemoryFile::create(8192).unwrap();
        let (first, second) = (range.base(), range.base() + 65536);
        for at in [first, second] {
            // SAFETY: nobody uses the pages of a fresh reservation.
            unsafe { range.map_file(at, at + 8192, &file, 0) }.unwrap();
        }
        // SAFETY: mapped just now, this test's alone.
        unsafe { raw::fill(first, 8192, 0x5a, 1) };
        // SAFETY: as above.
        let bytes = unsafe { raw::bytes(second, 8192) };
        assert!(bytes.iter().all(|b| *b == 0x5a));
        // SAFETY: as above; the bytes are not looked at any more.
        let beyond = unsafe { range.map_file(first, first + 8192, &file, 4096) };
        assert!(beyond.is_err(), "past the end of the file");
    }

    #[test]
    fn foreign_pages_are_refused() {
        let range = Reservation::anywhere(1 << 20).unwrap();
        assert!(range.commit(range.base() - 4096, range.base()).is_err());
        assert!(range.commit(range.base(), range.end() + 4096).is_err());
        assert!(range.commit(range.base() + 1, range.base() + 4096).is_err());
    }
}
