//! Device memory of the CPU devices: host memory of this process at the addresses that the client chose.
//!
//! The table of blocks says what is allocated. It changes on the loop thread (fresh blocks) and on
//! whoever runs operations (frees). A block's pages are taken away only by the holder of the
//! [`Turn`], of which there is one: so while an operation runs, nothing it found can vanish.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_ptx::{MemoryMap, Region};
use parking_lot::RwLock;

use self::heap::Heap;
use self::physical::Physicals;
pub(crate) use self::physical::access_bits;

use crate::device::box_copy::BoxCopy;
use crate::ledger::Account;
use crate::limits::{
    ALLOCATION_GRAIN, BLOCKS_MAX, MAPPING_GRAIN, RANGE_BYTES_MAX, RANGE_BYTES_MIN,
};
use crate::sys::raw;
use crate::sys::reserve::Reservation;

/// The right to run operations: copies, kernels, frees.
#[derive(Debug)]
pub(crate) struct Turn {
    _one_per_memory: (),
}

/// Part of the session's address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    /// First address.
    pub(crate) base: u64,
    /// Size.
    pub(crate) bytes: u64,
}

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    /// `cuMemAlloc` and kin, placed by the client.
    Device,
    /// Pinned memory, placed by the client.
    Host,
    /// Managed memory, placed by the client.
    Managed,
    /// A module's variable, placed by [`Memory::place`].
    Global,
    /// What the handle of a texture or surface leads to, placed by [`Memory::place`].
    Texture,
    /// Physical memory of its own, mapped where the client said.
    Mapped {
        /// The client's handle of the physical memory.
        physical: u64,
        /// First byte of it that is mapped.
        offset: u64,
    },
}

/// One allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// What it is for.
    pub(crate) kind: BlockKind,
    /// Internal number of the context that it belongs to.
    pub(crate) context: u64,
    /// The client's ordinal of the device that is charged.
    pub(crate) device: usize,
    /// Whether anything may read.
    pub(crate) readable: bool,
    /// Whether anything may write.
    pub(crate) writable: bool,
}

/// The session's memory.
#[derive(Debug)]
pub(crate) struct Memory {
    range: Reservation,
    device: Area,
    globals: Area,
    host: Area,
    blocks: RwLock<BTreeMap<u64, Block>>,
    physicals: Physicals,
    heap: Heap,
    account: Account,
}

impl Memory {
    /// Reserves the proposed range, or another one of its size (`wanted_bytes` where 0 was proposed).
    ///
    /// # Errors
    /// No such range is free.
    pub(crate) fn open(
        base: u64,
        bytes: u64,
        wanted_bytes: u64,
        account: Account,
    ) -> io::Result<(Arc<Self>, Turn)> {
        // The grains that lie in the proposal as a whole.
        let start = base.checked_next_multiple_of(MAPPING_GRAIN).unwrap_or(0);
        let bytes = bytes.saturating_sub(start.saturating_sub(base));
        let size = if bytes == 0 { wanted_bytes } else { bytes };
        let size = size.clamp(RANGE_BYTES_MIN, RANGE_BYTES_MAX) & !(MAPPING_GRAIN - 1);
        let proposed = start != 0 && size <= bytes;
        let range = match proposed.then(|| Reservation::at(start, size)) {
            Some(Ok(range)) => range,
            _ => Reservation::anywhere(size)?,
        };
        let cut = |at: u64| (range.base() + at).next_multiple_of(MAPPING_GRAIN);
        let (first, second, end) = (cut(size / 8 * 5), cut(size / 8 * 6), range.end());
        let start = cut(0);
        let memory = Self {
            device: Area {
                base: start,
                bytes: first - start,
            },
            globals: Area {
                base: first,
                bytes: second - first,
            },
            host: Area {
                base: second,
                bytes: (end - second) & !(MAPPING_GRAIN - 1),
            },
            range,
            blocks: RwLock::new(BTreeMap::new()),
            physicals: Physicals::default(),
            heap: Heap::default(),
            account,
        };
        Ok((
            Arc::new(memory),
            Turn {
                _one_per_memory: (),
            },
        ))
    }

    /// Where the client places device memory.
    pub(crate) fn device_area(&self) -> Area {
        self.device
    }

    /// Where the client places pinned and managed memory.
    pub(crate) fn host_area(&self) -> Area {
        self.host
    }

    /// Makes a block at the address that the client chose; it reads as zeros.
    ///
    /// # Errors
    /// `INVALID_VALUE`: outside of its area, not aligned, or overlapping. `OUT_OF_MEMORY`.
    pub(crate) fn insert(&self, addr: u64, block: Block) -> CuResult {
        let area = match block.kind {
            BlockKind::Device | BlockKind::Mapped { .. } => self.device,
            BlockKind::Host | BlockKind::Managed => self.host,
            BlockKind::Global | BlockKind::Texture => self.globals,
        };
        let end = addr
            .checked_add(block.bytes)
            .ok_or(CuStatus::INVALID_VALUE)?;
        let grain = match block.kind {
            BlockKind::Mapped { .. } => MAPPING_GRAIN,
            _ => ALLOCATION_GRAIN,
        };
        let aligned = addr.is_multiple_of(grain) && block.bytes.is_multiple_of(grain);
        if block.bytes == 0 || !aligned || addr < area.base || end > area.base + area.bytes {
            return Err(CuStatus::INVALID_VALUE);
        }
        let mut blocks = self.blocks.write();
        self.insert_into(&mut blocks, addr, end, block)
    }

    /// Makes a block for a module's variable at an address of its own.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`: the limit, or no room.
    pub(crate) fn place(&self, block: Block, align_bytes: u64) -> CuResult<u64> {
        let align = align_bytes.max(ALLOCATION_GRAIN);
        if !align.is_power_of_two() || align > MAPPING_GRAIN {
            return Err(CuStatus::INVALID_VALUE);
        }
        let bytes = block
            .bytes
            .max(1)
            .checked_next_multiple_of(ALLOCATION_GRAIN)
            .ok_or(CuStatus::OUT_OF_MEMORY)?;
        let mut blocks = self.blocks.write();
        let mut at = self.globals.base;
        for (start, other) in
            blocks.range(self.globals.base..self.globals.base + self.globals.bytes)
        {
            if start.saturating_sub(at) >= bytes {
                break;
            }
            at = (start + other.bytes).next_multiple_of(align);
        }
        let end = at
            .checked_add(bytes)
            .filter(|end| *end <= self.globals.base + self.globals.bytes);
        let end = end.ok_or(CuStatus::OUT_OF_MEMORY)?;
        self.insert_into(&mut blocks, at, end, Block { bytes, ..block })?;
        Ok(at)
    }

    /// Gives a module's variable its first contents, before anybody knows its address.
    ///
    /// # Errors
    /// `INVALID_VALUE`: not inside one block of a variable.
    pub(crate) fn initialize(&self, addr: u64, data: &[u8]) -> CuResult {
        let blocks = self.blocks.read();
        let (start, block) = blocks
            .range(..=addr)
            .next_back()
            .ok_or(CuStatus::INVALID_VALUE)?;
        let room = (start + block.bytes).saturating_sub(addr);
        let is_ours = matches!(block.kind, BlockKind::Global | BlockKind::Texture);
        if !is_ours || data.len() as u64 > room {
            return Err(CuStatus::INVALID_VALUE);
        }
        // SAFETY: inside one block, which cannot be removed while we hold the table.
        unsafe { raw::write(addr, data) };
        Ok(())
    }

    /// Frees the block that begins at `addr`.
    ///
    /// # Errors
    /// `INVALID_VALUE`: none begins there, or it is of another kind.
    pub(crate) fn remove(
        &self,
        _turn: &mut Turn,
        addr: u64,
        allowed: impl Fn(&Block) -> bool,
    ) -> CuResult {
        let mut blocks = self.blocks.write();
        if !blocks.get(&addr).is_some_and(allowed) {
            return Err(CuStatus::INVALID_VALUE);
        }
        self.remove_from(&mut blocks, addr);
        Ok(())
    }

    /// Frees every block that `which` picks.
    pub(crate) fn remove_all(&self, _turn: &mut Turn, which: impl Fn(&Block) -> bool) {
        let mut blocks = self.blocks.write();
        let gone: Vec<u64> = blocks
            .iter()
            .filter(|(_, block)| which(block))
            .map(|(addr, _)| *addr)
            .collect();
        for addr in gone {
            self.remove_from(&mut blocks, addr);
        }
    }

    /// Whether `addr..addr + bytes` lies in one block, or in mapped ones without a gap.
    ///
    /// # Errors
    /// `INVALID_VALUE` if not.
    pub(crate) fn check(&self, addr: u64, bytes: u64) -> CuResult {
        let region = self.find(addr).ok_or(CuStatus::INVALID_VALUE)?;
        if bytes <= region.end - addr || self.spans(addr, bytes, false) {
            Ok(())
        } else {
            Err(CuStatus::INVALID_VALUE)
        }
    }

    /// Copies `data` to `dst`.
    ///
    /// # Errors
    /// `INVALID_VALUE`: not inside one block.
    pub(crate) fn write(&self, _turn: &mut Turn, dst: u64, data: &[u8]) -> CuResult {
        self.check_writable(dst, data.len() as u64)?;
        // SAFETY: checked to be in one block, whose pages are committed; blocks go only with the turn, which we
        // hold; references into device memory live only in `with_bytes`, which holds the turn too.
        unsafe { raw::write(dst, data) };
        Ok(())
    }

    /// Copies inside device memory.
    ///
    /// # Errors
    /// `INVALID_VALUE`: source or destination is not inside one block.
    pub(crate) fn copy(&self, _turn: &mut Turn, dst: u64, src: u64, bytes: u64) -> CuResult {
        self.check_writable(dst, bytes)?;
        self.check(src, bytes)?;
        let bytes = usize::try_from(bytes).map_err(|_| CuStatus::INVALID_VALUE)?;
        // SAFETY: as in `write`, for both ranges.
        unsafe { raw::copy(dst, src, bytes) };
        Ok(())
    }

    /// Copies rows and slices inside device memory.
    ///
    /// # Errors
    /// `INVALID_VALUE`: rows that overlap where they are written, or memory that is not there.
    pub(crate) fn copy_box(&self, turn: &mut Turn, copy: &BoxCopy) -> CuResult {
        if copy.is_empty() {
            return Ok(());
        }
        copy.check()?;
        self.check_writable(copy.dst.addr, copy.span(&copy.dst)?)?;
        self.check(copy.src.addr, copy.span(&copy.src)?)?;
        for (to, from) in copy.rows() {
            self.copy(turn, to, from, copy.width)?;
        }
        Ok(())
    }

    /// Writes `count` elements of `width` bytes.
    ///
    /// # Errors
    /// `INVALID_VALUE`: not inside one block, not aligned to `width`, or a width other than 1, 2, 4.
    pub(crate) fn fill(
        &self,
        _turn: &mut Turn,
        dst: u64,
        count: u64,
        value: u32,
        width: u32,
    ) -> CuResult {
        if !matches!(width, 1 | 2 | 4) || !dst.is_multiple_of(u64::from(width)) {
            return Err(CuStatus::INVALID_VALUE);
        }
        let bytes = count
            .checked_mul(u64::from(width))
            .ok_or(CuStatus::INVALID_VALUE)?;
        self.check_writable(dst, bytes)?;
        let count = usize::try_from(count).map_err(|_| CuStatus::INVALID_VALUE)?;
        // SAFETY: as in `write`.
        unsafe { raw::fill(dst, count, value, width) };
        Ok(())
    }

    /// Shows `bytes` bytes at `src` to `read`.
    ///
    /// # Errors
    /// `INVALID_VALUE`: not inside one block.
    pub(crate) fn with_bytes<R>(
        &self,
        _turn: &mut Turn,
        src: u64,
        bytes: u64,
        read: impl FnOnce(&[u8]) -> R,
    ) -> CuResult<R> {
        self.check(src, bytes)?;
        let len = usize::try_from(bytes).map_err(|_| CuStatus::INVALID_VALUE)?;
        // SAFETY: in one block, whose pages stay while we hold the turn; kernels, copies and fills need the turn,
        // and an upload that overlaps is not in progress (the streams hold this operation back until then).
        Ok(read(unsafe { raw::bytes(src, len) }))
    }

    #[cfg(test)]
    /// What is charged for it.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    fn insert_into(
        &self,
        blocks: &mut BTreeMap<u64, Block>,
        addr: u64,
        end: u64,
        block: Block,
    ) -> CuResult {
        let before = blocks
            .range(..addr)
            .next_back()
            .map(|(start, other)| start + other.bytes);
        let after = blocks.range(addr..).next().map(|(start, _)| *start);
        if before.is_some_and(|edge| edge > addr) || after.is_some_and(|edge| edge < end) {
            return Err(CuStatus::INVALID_VALUE);
        }
        if blocks.len() >= BLOCKS_MAX || !self.charge(&block) {
            return Err(CuStatus::OUT_OF_MEMORY);
        }
        let pages = Pages::of(addr, end, before, after);
        let made = match block.kind {
            BlockKind::Mapped { physical, offset } => self.map(&pages, physical, offset),
            _ if pages.start < pages.end => self.commit(&pages),
            _ => Ok(()),
        };
        if let Err(status) = made {
            self.release(&block);
            return Err(status);
        }
        // What lies on pages shared with a neighbour may hold bytes of a block that was there before.
        for (start, stop) in [(addr, end.min(pages.start)), (addr.max(pages.end), end)] {
            if let Ok(count @ 1..) = usize::try_from(stop.saturating_sub(start)) {
                // SAFETY: these pages are committed, for the neighbours use them; the bytes belong to no block yet,
                // so nobody else accesses them, and the table is locked.
                unsafe { raw::fill(start, count, 0, 1) };
            }
        }
        blocks.insert(addr, block);
        Ok(())
    }

    /// Takes a block out of the table and its pages away; the callers hold the turn.
    fn remove_from(&self, blocks: &mut BTreeMap<u64, Block>, addr: u64) {
        let Some(block) = blocks.remove(&addr) else {
            return;
        };
        let end = addr + block.bytes;
        let before = blocks
            .range(..addr)
            .next_back()
            .map(|(start, other)| start + other.bytes);
        let after = blocks.range(addr..).next().map(|(start, _)| *start);
        let pages = Pages::of(addr, end, before, after);
        if pages.start < pages.end {
            // SAFETY: no block lies on these pages any more and the table is locked, so nobody can come to use
            // them; who found the block before held the turn, which the caller of the public method holds now.
            // Uploads into a block end before the streams let it be freed.
            if let Err(error) = unsafe { self.range.decommit(pages.start, pages.end) } {
                // SAFETY: as above: nobody uses these bytes.
                unsafe {
                    raw::fill(
                        pages.start,
                        usize::try_from(pages.end - pages.start).unwrap_or(0),
                        0,
                        1,
                    )
                };
                log::warn!("memory at {addr:#x} is freed but stays with this process: {error}");
            }
        }
        self.release(&block);
    }

    fn commit(&self, pages: &Pages) -> CuResult {
        let committed = self.range.commit(pages.start, pages.end);
        committed.map_err(|_| CuStatus::OUT_OF_MEMORY)
    }

    fn charge(&self, block: &Block) -> bool {
        if let BlockKind::Mapped { physical, offset } = block.kind {
            return self.hold_physical(physical, offset, block.bytes);
        }
        if block.kind == BlockKind::Host {
            self.account.charge_host(block.bytes)
        } else {
            self.account.charge(block.device, block.bytes)
        }
    }

    fn release(&self, block: &Block) {
        if let BlockKind::Mapped { physical, .. } = block.kind {
            return self.let_go_physical(physical);
        }
        if block.kind == BlockKind::Host {
            self.account.release_host(block.bytes);
        } else {
            self.account.release(block.device, block.bytes);
        }
    }
}

// SAFETY: a block's pages stay mapped until it is removed, which takes the turn; a launch is made by the holder
// of the turn and returns before it gives the turn on. `with_bytes` alone makes references into device
// memory, with the turn held.
unsafe impl MemoryMap for Memory {
    fn find(&self, addr: u64) -> Option<Region> {
        let blocks = self.blocks.read();
        let (start, block) = blocks.range(..=addr).next_back()?;
        let end = start + block.bytes;
        (addr < end && block.readable).then_some(Region {
            start: *start,
            end,
            writable: block.writable,
        })
    }

    // What the heap takes stays a block until the session ends.
    fn allocate(&self, bytes: u64) -> Option<u64> {
        self.allocate_on_heap(bytes)
    }

    fn release(&self, addr: u64) -> bool {
        self.release_on_heap(addr)
    }
}

/// The mapping grains that a block has for itself.
struct Pages {
    start: u64,
    end: u64,
}

impl Pages {
    /// Of the block `addr..end` between the end of the block before it and the start of the one after it.
    fn of(addr: u64, end: u64, before: Option<u64>, after: Option<u64>) -> Self {
        let mut start = addr & !(MAPPING_GRAIN - 1);
        let mut stop = end.next_multiple_of(MAPPING_GRAIN);
        if before.is_some_and(|edge| edge > start) {
            start += MAPPING_GRAIN;
        }
        if after.is_some_and(|edge| edge < stop) {
            stop -= MAPPING_GRAIN;
        }
        Self {
            start,
            end: stop.max(start),
        }
    }
}

mod heap;
mod physical;

#[cfg(test)]
pub(crate) mod tests;
