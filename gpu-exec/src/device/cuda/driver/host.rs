//! Host memory that devices use: pinned slabs for copies, and pinned blocks at addresses that the client chose.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use super::context::{Context, Fence, Stream};
use super::memory::Extent;
use super::table::check;
use crate::executor::outbox::Outbox;
use crate::sys::raw;
use crate::sys::reserve::Reservation;
use crate::sys::staging::Staging;

/// Regions are multiples of this, so that copies are aligned.
const REGION_GRAIN: usize = 256;
const HOST_ALLOC_PORTABLE: u32 = 1;
const HOST_REGISTER_PORTABLE_DEVICEMAP: u32 = 3;

/// What a region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Bytes for the device, which may wait for anything before it takes them. Such regions leave the last quarter of a slab free.
    Up,
    /// Bytes of the device, which go on as they come.
    Down,
}

/// Pinned memory, divided into regions.
#[derive(Debug)]
pub(crate) struct Slab {
    context: Arc<Context>,
    base: u64,
    bytes: usize,
    /// Free pieces: start and length.
    free: Mutex<BTreeMap<usize, usize>>,
}

impl Slab {
    /// Pins `bytes` bytes, a multiple of 256.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> CuResult<Arc<Self>> {
        context.make_current()?;
        let mut base: *mut c_void = std::ptr::null_mut();
        // SAFETY: a place for one pointer.
        check(unsafe {
            (context.driver.table.cuMemHostAlloc.call())(&raw mut base, bytes, HOST_ALLOC_PORTABLE)
        })?;
        let free = Mutex::new(BTreeMap::from([(0, bytes)]));
        Ok(Arc::new(Self {
            context: context.clone(),
            base: base.expose_provenance() as u64,
            bytes,
            free,
        }))
    }

    /// A free region of `bytes` bytes; `None` while there is none. First fit from the slab's start for what goes up, from its end for
    /// what comes down.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize, flow: Flow) -> Option<Region> {
        let wanted = bytes.max(1).checked_next_multiple_of(REGION_GRAIN)?;
        let mut free = self.free.lock();
        let start = place(&free, wanted, flow, self.bytes)?;
        let (piece, len) = free
            .range(..=start)
            .next_back()
            .map(|(at, len)| (*at, *len))?;
        free.remove(&piece);
        if start > piece {
            free.insert(piece, start - piece);
        }
        let (end, piece_end) = (start + wanted, piece + len);
        if piece_end > end {
            free.insert(end, piece_end - end);
        }
        Some(Region {
            slab: self.clone(),
            start,
            taken: wanted,
            bytes,
        })
    }

    fn give_back(&self, start: usize, len: usize) {
        let mut free = self.free.lock();
        let (mut start, mut len) = (start, len);
        if let Some((before, before_len)) =
            free.range(..start).next_back().map(|(at, len)| (*at, *len))
            && before + before_len == start
        {
            free.remove(&before);
            start = before;
            len += before_len;
        }
        if let Some(after_len) = free.remove(&(start + len)) {
            len += after_len;
        }
        free.insert(start, len);
    }
}

/// Where in the free pieces of a slab of `bytes` bytes a region begins.
fn place(free: &BTreeMap<usize, usize>, wanted: usize, flow: Flow, bytes: usize) -> Option<usize> {
    match flow {
        Flow::Up => {
            let end_max = bytes / 4 * 3;
            let mut fitting = free.iter().filter(|(_, len)| **len >= wanted);
            let (start, _) = fitting.find(|(start, _)| **start + wanted <= end_max)?;
            Some(*start)
        }
        Flow::Down => {
            let (start, len) = free.iter().rev().find(|(_, len)| **len >= wanted)?;
            Some(start + len - wanted)
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // Copies may still be under way; a lost context has none.
        let _ = self.context.synchronize();
        // SAFETY: allocated by `new`; every region held the slab and is gone, and so is every copy.
        unsafe { (self.context.driver.table.cuMemFreeHost.call())(raw::pointer(self.base).cast()) };
    }
}

/// A part of a slab that has one owner.
#[derive(Debug)]
pub(crate) struct Region {
    slab: Arc<Slab>,
    start: usize,
    taken: usize,
    bytes: usize,
}

impl Region {
    /// Size as asked for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes `data` at `at`. Nothing if it does not fit.
    pub(crate) fn write(&mut self, at: usize, data: &[u8]) {
        if at
            .checked_add(data.len())
            .is_some_and(|end| end <= self.bytes)
        {
            // SAFETY: inside our region of mapped pinned memory, into which no Rust reference points while self is
            // borrowed mutably.
            unsafe { raw::write(self.address() + at as u64, data) };
        }
    }

    /// Where the transport may write `bytes()` bytes while nobody reads.
    pub(crate) fn destination(&mut self) -> *mut u8 {
        raw::pointer(self.address())
    }

    fn address(&self) -> u64 {
        self.slab.base + self.start as u64
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.slab.give_back(self.start, self.taken);
    }
}

/// A region that a stream writes to; readable when its fence has passed.
#[derive(Debug)]
pub(crate) struct Landing {
    region: Region,
    fence: Arc<Fence>,
}

impl Landing {
    /// The fence behind the copy.
    pub(crate) fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    /// What the device wrote; `None` until the fence has passed well.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        if !self.fence.has_succeeded() {
            return None;
        }
        // SAFETY: the region is ours, and the one copy into it is done: its fence has passed.
        Some(unsafe { raw::bytes(self.region.address(), self.region.bytes) })
    }
}

impl Stream {
    /// Copies the first `dst.bytes()` bytes of a region to the device. The region must be kept until a later fence of the
    /// stream has passed: else the device copies whatever is written there next.
    ///
    /// # Errors
    /// `INVALID_VALUE`: the region is shorter; else as the driver.
    pub(crate) fn upload(&self, dst: Extent, region: &Region) -> CuResult {
        if dst.bytes > region.bytes {
            return Err(CuStatus::INVALID_VALUE);
        }
        self.context.make_current()?;
        let (table, src) = (&self.context.driver.table, region.address());
        if dst.is_host {
            // SAFETY: the extent was vouched for; the source is in a slab, which outlives the copy.
            return check(unsafe {
                (table.cuMemcpyAsync.call())(dst.addr, src, dst.bytes, self.raw)
            });
        }
        let src = raw::pointer(src).cast_const().cast();
        // SAFETY: as above.
        check(unsafe { (table.cuMemcpyHtoDAsync_v2.call())(dst.addr, src, dst.bytes, self.raw) })
    }

    /// Copies device memory to a region of at least its size.
    ///
    /// # Errors
    /// `INVALID_VALUE`: the region is shorter; else as the driver.
    pub(crate) fn download(&self, region: Region, src: Extent) -> CuResult<Landing> {
        if src.bytes > region.bytes {
            return Err(CuStatus::INVALID_VALUE);
        }
        self.context.make_current()?;
        let (table, dst) = (&self.context.driver.table, region.address());
        let status = if src.is_host {
            // SAFETY: the extent was vouched for; the destination is a region that nobody reads before the fence.
            unsafe { (table.cuMemcpyAsync.call())(dst, src.addr, src.bytes, self.raw) }
        } else {
            let dst = raw::pointer(dst).cast();
            // SAFETY: as above.
            unsafe { (table.cuMemcpyDtoHAsync_v2.call())(dst, src.addr, src.bytes, self.raw) }
        };
        check(status)?;
        Ok(Landing {
            fence: self.fence()?,
            region,
        })
    }
}

/// Pinned host memory at an address that the client chose; the device uses it at the same address.
#[derive(Debug)]
pub(crate) struct HostBlock {
    context: Arc<Context>,
    range: Arc<Reservation>,
    base: u64,
    bytes: u64,
}

impl HostBlock {
    /// Makes pages of `range` memory, zeroed, and pins them.
    ///
    /// # Errors
    /// `INVALID_VALUE`: not pages of the range. `NOT_SUPPORTED`: the device sees them at another address. Else as the driver.
    pub(crate) fn new(
        context: &Arc<Context>,
        range: &Arc<Reservation>,
        base: u64,
        bytes: u64,
    ) -> CuResult<Self> {
        context.make_current()?;
        range
            .commit(base, base.saturating_add(bytes))
            .map_err(|_| CuStatus::INVALID_VALUE)?;
        let table = &context.driver.table;
        let size = usize::try_from(bytes).map_err(|_| CuStatus::INVALID_VALUE)?;
        let at: *mut c_void = raw::pointer(base).cast();
        // SAFETY: committed pages of our reservation.
        let registered = check(unsafe {
            (table.cuMemHostRegister_v2.call())(at, size, HOST_REGISTER_PORTABLE_DEVICEMAP)
        });
        if let Err(status) = registered {
            decommit(range, base, bytes);
            return Err(status);
        }
        // From here on drop undoes it.
        let block = Self {
            context: context.clone(),
            range: range.clone(),
            base,
            bytes,
        };
        let mut seen = 0;
        // SAFETY: a place for one address; memory that was just registered.
        check(unsafe { (table.cuMemHostGetDevicePointer_v2.call())(&raw mut seen, at, 0) })?;
        if seen == base {
            Ok(block)
        } else {
            Err(CuStatus::NOT_SUPPORTED)
        }
    }

    /// A piece of it.
    pub(crate) fn extent(&self, addr: u64, bytes: u64) -> Option<Extent> {
        Extent::inside(self.base, self.bytes, addr, bytes, true)
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        let _ = self.context.make_current();
        // SAFETY: registered by `new`. From then on the device has no access: what still uses it gets a fault.
        unsafe {
            (self.context.driver.table.cuMemHostUnregister.call())(raw::pointer(self.base).cast())
        };
        decommit(&self.range, self.base, self.bytes);
    }
}

fn decommit(range: &Reservation, base: u64, bytes: u64) {
    // SAFETY: the pages are the block's alone, no Rust reference ever points there, and the device has no access.
    if let Err(error) = unsafe { range.decommit(base, base.saturating_add(bytes)) } {
        log::warn!("pinned memory at {base:#x} stays with this process: {error}");
    }
}

/// Receives the transfer `id` into a region, which comes back with its length (`None`: it will not come). Does not block.
pub(crate) fn receive(
    outbox: &dyn Outbox,
    id: u64,
    mut region: Region,
    done: impl FnOnce(Region, Option<usize>) + Send + 'static,
) {
    let (destination, len) = (region.destination(), region.bytes());
    let done = Box::new(move |came: Option<usize>| done(region, came));
    // SAFETY: the region is `done`'s, and nobody else's, until it is called or dropped; the slab outlives it.
    unsafe { outbox.bulk_post(id, destination, len, done) };
}

/// Receives the transfer `id` into plain memory of at least `len` bytes. Does not block.
pub(crate) fn receive_staged(
    outbox: &dyn Outbox,
    id: u64,
    staging: &Arc<Staging>,
    len: usize,
    done: impl FnOnce() + Send + 'static,
) {
    let held = staging.clone();
    let done = Box::new(move |came: Option<usize>| {
        held.filled(came.unwrap_or(0));
        done();
    });
    // SAFETY: `done` holds the buffer, which so outlives the transfer, and nobody reads it before `filled`.
    unsafe { outbox.bulk_post(id, staging.destination(), len, done) };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Flow, place};

    #[test]
    fn what_goes_up_leaves_the_last_quarter_to_what_comes_down() {
        let all = BTreeMap::from([(0, 4096)]);
        assert_eq!(place(&all, 3072, Flow::Up, 4096), Some(0));
        assert_eq!(place(&all, 3328, Flow::Up, 4096), None);
        assert_eq!(place(&all, 256, Flow::Down, 4096), Some(3840));
        let parts = BTreeMap::from([(256, 512), (2816, 1024)]);
        assert_eq!(place(&parts, 512, Flow::Up, 4096), Some(256));
        assert_eq!(place(&parts, 768, Flow::Up, 4096), None);
        assert_eq!(place(&parts, 768, Flow::Down, 4096), Some(3072));
        assert_eq!(place(&parts, 2048, Flow::Down, 4096), None);
    }
}
