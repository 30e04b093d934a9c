//! Address ranges of this process: reserved without access, opened for pinned memory.
//!
//! Fenced `unsafe`: `mmap` at addresses that this module itself reserved. A server names addresses; only what was
//! free here, and is reserved since, is ever mapped: [`Reserved`] is the witness.

use std::ptr;

use farcall_marshal::places::USUAL;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// Whether all of `other` lies inside; not if it runs over the end of the address space.
    pub(crate) fn holds(&self, other: &Self) -> bool {
        self.contains(other.start) && other.bytes <= self.bytes - (other.start - self.start)
    }
}

/// Addresses that this module has mapped, without access, where nothing was before. Made nowhere else.
#[derive(Debug)]
pub(crate) struct Reserved(Range);

impl Reserved {
    /// No addresses.
    pub(crate) const NONE: Self = Self(Range { start: 0, bytes: 0 });

    pub(crate) fn range(&self) -> Range {
        self.0
    }

    pub(crate) fn contains(&self, address: u64) -> bool {
        self.0.contains(address)
    }

    /// These addresses of it, if it has them all. The rest stays reserved for as long as the process runs.
    pub(crate) fn part(self, part: Range) -> Result<Self, Self> {
        if self.0.holds(&part) {
            Ok(Self(part))
        } else {
            Err(self)
        }
    }
}

/// Where ranges of further servers are tried: first address, first that is none, and how far they are apart.
const FURTHER: (u64, u64, u64) = (0x0400_0000_0000, 0x5000_0000_0000, 0x0400_0000_0000);

/// Reserves `bytes` addresses without access, at one of the usual places.
pub(crate) fn anywhere(bytes: u64) -> Option<Reserved> {
    let (first, end, step) = FURTHER;
    let further = (0..(end - first) / step).map(|at| first + at * step);
    USUAL
        .into_iter()
        .chain(further)
        .find_map(|start| at(start, bytes))
}

/// Nothing is reserved below: null and what is near it must stay no memory, also where the system would give it (to root).
const LOWEST: u64 = 1 << 16;

/// Reserves exactly this range without access, if all of it is free.
pub(crate) fn at(start: u64, bytes: u64) -> Option<Reserved> {
    if start < LOWEST {
        return None;
    }
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
    Some(Reserved(Range { start, bytes }))
}

/// Gives back a range in which nothing was opened.
pub(crate) fn release(reserved: Reserved) {
    let Reserved(range) = reserved;
    let Ok(len) = usize::try_from(range.bytes) else {
        return;
    };
    // SAFETY: `reserved` came from `at`, so the mapping is ours, and nobody else has it: it was moved here.
    unsafe { libc::munmap(range.start as *mut libc::c_void, len) };
}

/// Opens `bytes` at `start`, inside `range`, for reading and writing; fresh pages read as zeros.
pub(crate) fn open(range: &Reserved, start: u64, bytes: u64) -> bool {
    map_inside(range, start, bytes, libc::PROT_READ | libc::PROT_WRITE)
}

/// Closes what [`open`] opened; the pages go back to the system.
pub(crate) fn close(range: &Reserved, start: u64, bytes: u64) -> bool {
    map_inside(range, start, bytes, libc::PROT_NONE)
}

fn map_inside(reserved: &Reserved, start: u64, bytes: u64, access: libc::c_int) -> bool {
    let inside = reserved.0.holds(&Range { start, bytes });
    let Ok(len) = usize::try_from(bytes) else {
        return false;
    };
    if !inside || len == 0 {
        return false;
    }
    // SAFETY: only this module makes a `Reserved`, and `start..start+bytes` lies inside it, so MAP_FIXED
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
    use super::{Range, anywhere, at, close, open, release};

    #[test]
    fn a_part_lies_inside() {
        let whole = anywhere(1 << 30).unwrap();
        let start = whole.range().start;
        let behind = Range {
            start: start + (1 << 29),
            bytes: (1 << 29) + 1,
        };
        let before = Range {
            start: start - 4096,
            bytes: 8192,
        };
        let endless = Range {
            start: start + 4096,
            bytes: u64::MAX,
        };
        let whole = whole.part(behind).unwrap_err().part(before).unwrap_err();
        let whole = whole.part(endless).unwrap_err();
        let half = Range {
            bytes: 1 << 29,
            ..behind
        };
        let part = whole.part(half).unwrap();
        assert_eq!(part.range(), half);
        assert!(!open(&part, start, 4096));
        assert!(open(&part, half.start, half.bytes));
        assert!(close(&part, half.start, half.bytes));
    }

    #[test]
    fn null_stays_no_memory() {
        assert!(at(0, 1 << 30).is_none());
        assert!(at(4096, 4096).is_none());
    }

    #[test]
    fn a_taken_range_is_not_taken_again() {
        let reserved = anywhere(1 << 30).unwrap();
        let range = reserved.range();
        assert!(at(range.start, 4096).is_none());
        assert!(open(&reserved, range.start + 4096, 8192));
        assert!(close(&reserved, range.start + 4096, 8192));
        assert!(!open(&reserved, range.start + range.bytes, 4096));
        release(reserved);
        release(at(range.start, 4096).unwrap());
    }
}
