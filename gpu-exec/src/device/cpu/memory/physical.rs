//! Physical memory that the client maps where it likes (`cuMemCreate`, `cuMemMap`): memory files of this process.
//!
//! A piece is charged as long as the client holds its handle or it is mapped somewhere. Where the limit does not allow a piece
//! because a free is still on its way, it is charged when it is first mapped, which waits for frees.

use std::collections::BTreeMap;

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use super::{Block, BlockKind, Memory, Pages, Turn};
use crate::device::handles::HandleTable;
use crate::limits::{MAPPING_GRAIN, PHYSICALS_MAX};
use crate::sys::reserve::MemoryFile;

/// All pieces of a session.
#[derive(Debug)]
pub(super) struct Physicals(Mutex<HandleTable<Physical>>);

impl Default for Physicals {
    fn default() -> Self {
        Self(Mutex::new(HandleTable::new(PHYSICALS_MAX)))
    }
}

#[derive(Debug)]
struct Physical {
    bytes: u64,
    device: usize,
    /// Made when it is charged.
    file: Option<MemoryFile>,
    mapped: u32,
    is_released: bool,
}

impl Memory {
    /// Makes a piece; it reads as zeros.
    ///
    /// # Errors
    /// `INVALID_VALUE`: no multiple of the grain. `INVALID_HANDLE`: in use.
    pub(crate) fn create_physical(&self, handle: u64, bytes: u64, device: usize) -> CuResult {
        if bytes == 0 || !bytes.is_multiple_of(MAPPING_GRAIN) {
            return Err(CuStatus::INVALID_VALUE);
        }
        let mut piece = Physical {
            bytes,
            device,
            file: None,
            mapped: 0,
            is_released: false,
        };
        let mut physicals = self.physicals.0.lock();
        self.back(&mut piece);
        let charged = piece.file.is_some();
        physicals.insert(handle, piece).inspect_err(|_| {
            if charged {
                self.account.release(device, bytes);
            }
        })
    }

    /// The client's handle is gone; the memory goes with the last mapping.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub(crate) fn release_physical(&self, handle: u64) -> CuResult {
        let mut physicals = self.physicals.0.lock();
        let piece = physicals.get_mut(handle)?;
        piece.is_released = true;
        self.bury(&mut physicals, handle);
        Ok(())
    }

    /// Sets what may be done with the mappings that tile a range.
    ///
    /// # Errors
    /// `INVALID_VALUE`: they do not.
    pub(crate) fn set_access(&self, addr: u64, bytes: u64, access: u32) -> CuResult {
        let mut blocks = self.blocks.write();
        for at in tiles(&blocks, addr, bytes)? {
            if let Some(block) = blocks.get_mut(&at) {
                (block.readable, block.writable) = access_bits(access);
            }
        }
        Ok(())
    }

    /// Takes away the mappings that tile a range.
    ///
    /// # Errors
    /// `INVALID_VALUE`: they do not.
    pub(crate) fn unmap(&self, _turn: &mut Turn, addr: u64, bytes: u64) -> CuResult {
        let mut blocks = self.blocks.write();
        for at in tiles(&blocks, addr, bytes)? {
            self.remove_from(&mut blocks, at);
        }
        Ok(())
    }

    /// As [`Memory::check`], for what is about to be written.
    pub(super) fn check_writable(&self, addr: u64, bytes: u64) -> CuResult {
        self.check(addr, bytes)?;
        let blocks = self.blocks.read();
        let is_mapped = blocks
            .range(..=addr)
            .next_back()
            .is_some_and(|(_, block)| matches!(block.kind, BlockKind::Mapped { .. }));
        drop(blocks);
        if is_mapped && !self.spans(addr, bytes, true) {
            return Err(CuStatus::INVALID_VALUE);
        }
        Ok(())
    }

    /// Whether mapped blocks cover the range without a gap.
    pub(super) fn spans(&self, addr: u64, bytes: u64, must_write: bool) -> bool {
        let Some(end) = addr.checked_add(bytes) else {
            return false;
        };
        let blocks = self.blocks.read();
        let Some((first, _)) = blocks.range(..=addr).next_back() else {
            return false;
        };
        let mut reached = addr;
        for (start, block) in blocks.range(first..) {
            let fits = matches!(block.kind, BlockKind::Mapped { .. })
                && block.readable
                && (block.writable || !must_write);
            if reached >= end || *start > reached || !fits {
                break;
            }
            reached = start + block.bytes;
        }
        reached >= end
    }

    /// One mapping more. False: no such memory, or no room for it.
    pub(super) fn hold_physical(&self, handle: u64, offset: u64, bytes: u64) -> bool {
        let mut physicals = self.physicals.0.lock();
        let Ok(piece) = physicals.get_mut(handle) else {
            return false;
        };
        let fits = offset
            .checked_add(bytes)
            .is_some_and(|end| end <= piece.bytes);
        if piece.is_released || !fits || !offset.is_multiple_of(MAPPING_GRAIN) {
            return false;
        }
        if piece.file.is_none() {
            self.back(piece);
        }
        piece.mapped += u32::from(piece.file.is_some());
        piece.file.is_some()
    }

    /// One mapping less.
    pub(super) fn let_go_physical(&self, handle: u64) {
        let mut physicals = self.physicals.0.lock();
        if let Ok(piece) = physicals.get_mut(handle) {
            piece.mapped = piece.mapped.saturating_sub(1);
            self.bury(&mut physicals, handle);
        }
    }

    /// Lets memory that is held appear.
    pub(super) fn map(&self, pages: &Pages, physical: u64, offset: u64) -> CuResult {
        let physicals = self.physicals.0.lock();
        let file = physicals.get(physical)?.file.as_ref();
        let file = file.ok_or(CuStatus::OUT_OF_MEMORY)?;
        // SAFETY: the table of blocks is locked by the caller, and no block lies on these pages.
        let mapped = unsafe { self.range.map_file(pages.start, pages.end, file, offset) };
        mapped.map_err(|_| CuStatus::OUT_OF_MEMORY)
    }

    /// Charges a piece and gives it its memory, if there is room.
    fn back(&self, piece: &mut Physical) {
        if !self.account.charge(piece.device, piece.bytes) {
            return;
        }
        match MemoryFile::create(piece.bytes) {
            Ok(file) => piece.file = Some(file),
            Err(error) => {
                log::warn!("no {} bytes of memory to map: {error}", piece.bytes);
                self.account.release(piece.device, piece.bytes);
            }
        }
    }

    fn bury(&self, physicals: &mut HandleTable<Physical>, handle: u64) {
        let is_dead = physicals
            .get(handle)
            .is_ok_and(|piece| piece.is_released && piece.mapped == 0);
        if is_dead
            && let Ok(piece) = physicals.remove(handle)
            && piece.file.is_some()
        {
            self.account.release(piece.device, piece.bytes);
        }
    }
}

/// Readable and writable, of `CUmemAccess_flags`.
pub(crate) fn access_bits(access: u32) -> (bool, bool) {
    (access & 1 != 0, access & 2 != 0)
}

/// Starts of the mapped blocks that are exactly this range.
fn tiles(blocks: &BTreeMap<u64, Block>, addr: u64, bytes: u64) -> CuResult<Vec<u64>> {
    let end = addr.checked_add(bytes).ok_or(CuStatus::INVALID_VALUE)?;
    let (mut reached, mut starts) = (addr, Vec::new());
    for (start, block) in blocks.range(addr..end) {
        if *start != reached || !matches!(block.kind, BlockKind::Mapped { .. }) {
            return Err(CuStatus::INVALID_VALUE);
        }
        reached = start + block.bytes;
        starts.push(*start);
    }
    if reached == end && bytes > 0 {
        Ok(starts)
    } else {
        Err(CuStatus::INVALID_VALUE)
    }
}
