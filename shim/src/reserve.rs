//! Address ranges of this process: reserved without access, opened for pinned memory.
//!
//! Fenced `unsafe`: `mmap` at addresses that this module itself reserved.

use std::ptr;

/// A reserved range of addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

impl Range {
    pub(crate) fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.bytes
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.bytes > 0
            && other.bytes > 0
            && (self.contains(other.start) || other.contains(self.start))
    }
}

/// Where ranges are tried first, in order: far from heap, stack, libraries and the usual sanitizer shadows.
const CANDIDATES: [u64; 6] = [
    0x2000_0000_0000,
    0x3000_0000_0000,
    0x1800_0000_0000,
    0x3800_0000_0000,
    0x2800_0000_0000,
    0x0800_0000_0000,
];

/// Where ranges of further servers are tried: first address, first that is none, and how far they are apart.
const FURTHER: (u64, u64, u64) = (0x0400_0000_0000, 0x5000_0000_0000, 0x0400_0000_0000);

/// Reserves `bytes` addresses without access, at one of the usual places.
pub(crate) fn anywhere(bytes: u64) -> Option<Range> {
    let (first, end, step) = FURTHER;
    let further = (0..(end - first) / step).map(|at| first + at * step);
    CANDIDATES
        .into_iter()
        .chain(further)
        .find_map(|start| at(start, bytes))
}

/// Reserves exactly this range without access, if all of it is free.
pub(crate) fn at(start: u64, bytes: u64) -> Option<Range> {
    let len = usize::try_from(bytes).ok()?;
    // SAFETY: MAP_FIXED_NOREPLACE maps only where nothing is mapped; no memory is taken or changed.
    let got = unsafe {
        libc::mmap(
            start as *mut libc::c_void,
            len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if got == libc::MAP_FAILED {
        return None;
    }
    if got as u64 != start {
        // Kernels before 4.17 take the flag for a hint.
        // SAFETY: this mapping was made just above and nobody knows of it.
        unsafe { libc::munmap(got, len) };
        return None;
    }
    Some(Range { start, bytes })
}

/// Gives a reserved range back.
pub(crate) fn release(range: Range) {
    let Ok(len) = usize::try_from(range.bytes) else {
        return;
    };
    // SAFETY: `range` came from `at`, so the mapping is ours; nothing was opened in it yet.
    unsafe { libc::munmap(range.start as *mut libc::c_void, len) };
}

/// Opens `bytes` at `start`, inside `range`, for reading and writing; fresh pages read as zeros.
pub(crate) fn open(range: &Range, start: u64, bytes: u64) -> bool {
    map_inside(range, start, bytes, libc::PROT_READ | libc::PROT_WRITE)
}

/// Closes what [`open`] opened; the pages go back to the system.
pub(crate) fn close(range: &Range, start: u64, bytes: u64) -> bool {
    map_inside(range, start, bytes, libc::PROT_NONE)
}

fn map_inside(range: &Range, start: u64, bytes: u64, access: libc::c_int) -> bool {
    let inside = range.contains(start) && bytes <= range.bytes - (start - range.start);
    let Ok(len) = usize::try_from(bytes) else {
        return false;
    };
    if !inside || len == 0 {
        return false;
    }
    // SAFETY: the range is reserved by this module and `start..start+bytes` lies inside it, so MAP_FIXED
    // replaces only our own pages; the caller frees them only after the program gave them back.
    let got = unsafe {
        libc::mmap(
            start as *mut libc::c_void,
            len,
            access,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    !ptr::eq(got, libc::MAP_FAILED)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{anywhere, at, close, open, release};

    #[test]
    fn a_taken_range_is_not_taken_again() {
        let range = anywhere(1 << 30).unwrap();
        assert!(at(range.start, 4096).is_none());
        assert!(open(&range, range.start + 4096, 8192));
        assert!(close(&range, range.start + 4096, 8192));
        assert!(!open(&range, range.start + range.bytes, 4096));
        release(range);
        release(at(range.start, 4096).unwrap());
    }
}
