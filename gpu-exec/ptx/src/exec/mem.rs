//! Global memory: ranges are checked against the caller's map, then touched. Fenced unsafe module.
//!
//! Blocks on several threads may race on global memory, as on a GPU: every access is a relaxed
//! atomic of the element's size, so that a race is a stale value and nothing worse.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::regs::LANES;
use crate::api::{MemoryMap, Region};

/// An element that memory is accessed in.
pub(crate) trait Cell: Copy + Default {
    const BYTES: usize;
    /// From little-endian bytes; the slice has `BYTES` of them.
    fn from_le(bytes: &[u8]) -> Self;
    fn put_le(self, bytes: &mut [u8]);
    /// # Safety
    /// `addr` is aligned to `BYTES` and readable for `BYTES` bytes, and no Rust reference covers them.
    unsafe fn read(addr: u64) -> Self;
    /// # Safety
    /// As for [`read`](Self::read), and writable.
    unsafe fn write(self, addr: u64);
}

macro_rules! cell {
    ($($t:ident $atomic:ident;)*) => {$(
        impl Cell for $t {
            const BYTES: usize = size_of::<$t>();
            #[inline(always)]
            fn from_le(bytes: &[u8]) -> Self {
                bytes.first_chunk().map_or(0, |b| <$t>::from_le_bytes(*b))
            }
            #[inline(always)]
            fn put_le(self, bytes: &mut [u8]) {
                if let Some(to) = bytes.first_chunk_mut() {
                    *to = self.to_le_bytes();
                }
            }
            #[inline(always)]
            unsafe fn read(addr: u64) -> Self {
                // SAFETY: the caller's promise is what `from_ptr` asks for; the reference ends with the statement.
                unsafe { $atomic::from_ptr(pointer(addr)) }.load(Relaxed)
            }
            #[inline(always)]
            unsafe fn write(self, addr: u64) {
                // SAFETY: the caller's promise is what `from_ptr` asks for; the reference ends with the statement.
                unsafe { $atomic::from_ptr(pointer(addr)) }.store(self, Relaxed);
            }
        }
    )*};
}

cell! {
    u8 AtomicU8;
    u16 AtomicU16;
    u32 AtomicU32;
    u64 AtomicU64;
}

#[inline(always)]
fn pointer<T>(addr: u64) -> *mut T {
    // 64-bit hosts only: the crate's addresses are host addresses.
    std::ptr::with_exposed_provenance_mut(addr as usize)
}

const _: () = assert!(
    size_of::<usize>() == 8,
    "device addresses are host addresses of 64 bits"
);

/// Why an access was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) lane: usize,
    pub(crate) addr: u64,
    pub(crate) misaligned: bool,
}

/// A region that nothing is in.
pub(crate) const NOWHERE: Region = Region {
    start: 1,
    end: 1,
    writable: false,
};

/// What a launch may touch.
pub(crate) struct GlobalMem {
    map: Arc<dyn MemoryMap>,
    /// The grid barrier's workspace, which the engine owns.
    workspace: Box<[AtomicU64; 8]>,
}

impl GlobalMem {
    pub(crate) fn new(map: Arc<dyn MemoryMap>) -> Self {
        let workspace: Box<[AtomicU64; 8]> = Box::default();
        let mem = Self { map, workspace };
        // The size of the workspace is its first word, as cooperative groups expect.
        mem.workspace[0].store(64, Relaxed);
        mem
    }

    /// Address of the grid barrier's workspace.
    pub(crate) fn workspace(&self) -> u64 {
        self.workspace.as_ptr().expose_provenance() as u64
    }

    /// Memory that a kernel asks for.
    pub(crate) fn allocate(&self, bytes: u64) -> Option<u64> {
        self.map.allocate(bytes)
    }

    /// Takes such memory back; false where there is none.
    pub(crate) fn release(&self, addr: u64) -> bool {
        self.map.release(addr)
    }

    fn find(&self, addr: u64) -> Option<Region> {
        let start = self.workspace();
        if (start..start + 64).contains(&addr) {
            return Some(Region {
                start,
                end: start + 64,
                writable: true,
            });
        }
        self.map.find(addr)
    }

    /// Checks `bytes` at the address of every lane of `mask`; `bytes` is a power of two
    /// and the alignment. `cache` remembers the region of the last hit.
    #[inline(always)]
    pub(crate) fn check<'a>(
        &'a self,
        cache: &mut Region,
        addrs: &'a [u64; LANES],
        mask: u32,
        bytes: u32,
        write: bool,
    ) -> Result<Checked<'a>, Refused> {
        let size = u64::from(bytes);
        let room = cache.end - cache.start;
        if room >= size && (cache.writable || !write) {
            let (start, span, align) = (cache.start, room - size, size - 1);
            let mut bad = 0u64;
            for (l, addr) in addrs.iter().enumerate() {
                let outside = u64::from(addr.wrapping_sub(start) > span);
                bad |= (outside | addr & align) & 0u64.wrapping_sub(u64::from(mask >> l & 1));
            }
            if bad == 0 {
                return Ok(Checked {
                    addrs,
                    mask,
                    bytes,
                    _mem: self,
                });
            }
        }
        self.check_slow(cache, addrs, mask, bytes, write)?;
        Ok(Checked {
            addrs,
            mask,
            bytes,
            _mem: self,
        })
    }

    #[cold]
    fn check_slow(
        &self,
        cache: &mut Region,
        addrs: &[u64; LANES],
        mask: u32,
        bytes: u32,
        write: bool,
    ) -> Result<(), Refused> {
        let size = u64::from(bytes);
        for lane in lanes(mask) {
            let addr = addrs[lane];
            if addr & (size - 1) != 0 {
                return Err(Refused {
                    lane,
                    addr,
                    misaligned: true,
                });
            }
            let inside = |r: &Region| {
                r.start <= addr && addr.checked_add(size).is_some_and(|end| end <= r.end)
            };
            let usable = |r: &Region| inside(r) && (r.writable || !write);
            if usable(cache) {
                continue;
            }
            match self.find(addr) {
                Some(region) if region.start < region.end && usable(&region) => *cache = region,
                _ => {
                    return Err(Refused {
                        lane,
                        addr,
                        misaligned: false,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Lanes of a mask, lowest first.
#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let lane = left.trailing_zeros();
        left &= left - 1;
        Some(lane as usize)
    })
}

/// Addresses that were found inside allocations, for as long as the map is borrowed.
pub(crate) struct Checked<'a> {
    addrs: &'a [u64; LANES],
    mask: u32,
    bytes: u32,
    _mem: &'a GlobalMem,
}

impl Checked<'_> {
    fn fits<T: Cell>(&self, offset: usize) -> bool {
        offset.is_multiple_of(T::BYTES) && offset + T::BYTES <= self.bytes as usize
    }

    /// Reads the element at `offset` of every lane's range.
    #[inline(always)]
    pub(crate) fn gather<T: Cell>(&self, offset: usize, out: &mut [T; LANES]) {
        assert!(self.fits::<T>(offset), "the range was checked for less");
        if self.mask == u32::MAX {
            for (out, addr) in out.iter_mut().zip(self.addrs) {
                // SAFETY: `GlobalMem::check` saw `bytes` bytes at this address, aligned to `bytes`, inside a region that
                // the map's contract keeps mapped and free of references during the launch; `fits` keeps the
                // element inside of them and aligned.
                *out = unsafe { T::read(addr + offset as u64) };
            }
            return;
        }
        for lane in lanes(self.mask) {
            // SAFETY: as above; lanes outside of the mask were not checked and are not touched.
            out[lane] = unsafe { T::read(self.addrs[lane] + offset as u64) };
        }
    }

    /// Writes the element at `offset` of every lane's range. The check was made for writing.
    #[inline(always)]
    pub(crate) fn scatter<T: Cell>(&self, offset: usize, values: &[T; LANES]) {
        assert!(self.fits::<T>(offset), "the range was checked for less");
        for lane in lanes(self.mask) {
            // SAFETY: as in `gather`; callers check with `write`, and a region that is only readable is refused then.
            unsafe { values[lane].write(self.addrs[lane] + offset as u64) };
        }
    }

    /// One lane's range as an atomic word of 4 bytes.
    #[inline(always)]
    pub(crate) fn atomic32(&self, lane: usize) -> &AtomicU32 {
        assert!(
            self.mask >> lane & 1 != 0 && self.fits::<u32>(0),
            "the lane was not checked"
        );
        // SAFETY: checked for 4 aligned bytes as in `gather`; the reference lives no longer than the check.
        unsafe { AtomicU32::from_ptr(pointer(self.addrs[lane])) }
    }

    /// One lane's range as an atomic word of 8 bytes.
    #[inline(always)]
    pub(crate) fn atomic64(&self, lane: usize) -> &AtomicU64 {
        assert!(
            self.mask >> lane & 1 != 0 && self.fits::<u64>(0),
            "the lane was not checked"
        );
        // SAFETY: checked for 8 aligned bytes as in `gather`; the reference lives no longer than the check.
        unsafe { AtomicU64::from_ptr(pointer(self.addrs[lane])) }
    }

    /// One lane's range as an atomic word of 2 bytes.
    #[inline(always)]
    pub(crate) fn atomic16(&self, lane: usize) -> &AtomicU16 {
        assert!(
            self.mask >> lane & 1 != 0 && self.fits::<u16>(0),
            "the lane was not checked"
        );
        // SAFETY: checked for 2 aligned bytes as in `gather`; the reference lives no longer than the check.
        unsafe { AtomicU16::from_ptr(pointer(self.addrs[lane])) }
    }
}
