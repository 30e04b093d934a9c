//! Physical memory that the client maps where it likes (`cuMemCreate`, `cuMemMap`).
//!
//! A piece is charged as long as the client holds its handle or it is mapped somewhere. Where there is no room for a piece
//! because a free is still on its way, it is made when it is first mapped, which waits for frees.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::record::Head;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemCreate, CuMemMap, CuMemRelease, CuMemSetAccess, CuMemUnmap};

use super::CudaDevice;
use super::driver::{Extent, Mapping, Physical};
use super::memory::{Backing, Block, BlockKind, GRANULE, Memory};
use super::op::After;
use crate::device::Violation;
use crate::device::handles::HandleTable;
use crate::limits::PHYSICALS_MAX;

/// All pieces of a session.
#[derive(Debug)]
pub(crate) struct Physicals(HandleTable<Piece>);

impl Default for Physicals {
    fn default() -> Self {
        Self(HandleTable::new(PHYSICALS_MAX))
    }
}

#[derive(Debug)]
struct Piece {
    bytes: u64,
    /// The client's ordinal, which is charged.
    device: usize,
    /// The server's.
    ordinal: u32,
    memory: Option<Arc<Physical>>,
    mapped: u32,
    is_released: bool,
}

impl CudaDevice {
    /// `cuMemCreate`.
    pub(super) fn create_physical(
        &self,
        head: &Head,
        record: &CuMemCreate,
    ) -> Result<(), Violation> {
        let device = record.device as usize;
        let ordinal = self.ordinals.get(device).copied();
        self.in_context(head, |state, _| {
            let ordinal = ordinal.ok_or(CuStatus::INVALID_DEVICE)?;
            let memory = &mut state.memory;
            memory.create_physical(record.handle, record.bytes, device, ordinal)
        })
    }

    /// `cuMemRelease`.
    pub(super) fn release_physical(
        &self,
        head: &Head,
        record: &CuMemRelease,
    ) -> Result<(), Violation> {
        self.in_context(head, |state, _| {
            state.memory.release_physical(record.handle)
        })
    }

    /// `cuMemMap`, for everybody from now on.
    pub(super) fn map_physical(&self, head: &Head, record: &CuMemMap) -> Result<(), Violation> {
        let kind = BlockKind::Mapped {
            physical: record.handle,
            offset: record.offset,
            access: record.access,
        };
        self.allocate(head, None, record.addr, record.bytes, kind)
    }

    /// `cuMemUnmap`, after all that was issued before.
    pub(super) fn unmap_physical(&self, head: &Head, record: &CuMemUnmap) -> Result<(), Violation> {
        let after = After::Unmap {
            addr: record.addr,
            bytes: record.bytes,
            marked: Vec::new(),
        };
        self.after_all(head, after)
    }

    /// `cuMemSetAccess`.
    pub(super) fn set_access(&self, head: &Head, record: &CuMemSetAccess) -> Result<(), Violation> {
        let ordinal = self.ordinals.get(record.device as usize).copied();
        self.in_context(head, |state, _| {
            let ordinal = ordinal.ok_or(CuStatus::INVALID_DEVICE)?;
            let memory = &mut state.memory;
            memory.set_access(record.addr, record.bytes, ordinal, record.access)
        })
    }
}

impl Memory {
    /// Makes a piece. Its contents are what the driver gives.
    ///
    /// # Errors
    /// `NOT_SUPPORTED`: the driver cannot map memory where it is told to. `INVALID_VALUE`: no multiple of 2 MiB.
    /// `INVALID_HANDLE`: in use.
    pub(crate) fn create_physical(
        &mut self,
        handle: u64,
        bytes: u64,
        device: usize,
        ordinal: u32,
    ) -> CuResult {
        if self.range.is_none() {
            return Err(CuStatus::NOT_SUPPORTED);
        }
        if bytes == 0 || !bytes.is_multiple_of(GRANULE) {
            return Err(CuStatus::INVALID_VALUE);
        }
        let piece = Piece {
            bytes,
            device,
            ordinal,
            memory: None,
            mapped: 0,
            is_released: false,
        };
        self.physicals.0.insert(handle, piece)?;
        self.back(handle);
        Ok(())
    }

    /// The client's handle is gone; the memory goes with the last mapping.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub(crate) fn release_physical(&mut self, handle: u64) -> CuResult {
        self.physicals.0.get_mut(handle)?.is_released = true;
        self.bury(handle);
        Ok(())
    }

    /// Sets what a device may do with the mappings that tile a range.
    ///
    /// # Errors
    /// `INVALID_VALUE`: they do not; else as the driver.
    pub(crate) fn set_access(
        &mut self,
        addr: u64,
        bytes: u64,
        ordinal: u32,
        access: u32,
    ) -> CuResult {
        for at in self.tiles(addr, bytes)? {
            if let Some(Backing::Mapped(mapping)) = self.blocks.get(&at).map(|block| &block.backing)
            {
                mapping.allow(ordinal, access)?;
            }
        }
        Ok(())
    }

    /// Marks the mappings that tile a range as gone, so that nothing new uses them; their addresses.
    ///
    /// # Errors
    /// `INVALID_VALUE`: they do not.
    pub(crate) fn condemn_mapped(&mut self, addr: u64, bytes: u64) -> CuResult<Vec<u64>> {
        let tiles = self.tiles(addr, bytes)?;
        for at in &tiles {
            if let Some(block) = self.blocks.get_mut(at) {
                block.is_dying = true;
            }
        }
        Ok(tiles)
    }

    /// A range that mappings cover without a gap.
    pub(super) fn mapped_extent(&self, addr: u64, bytes: u64) -> CuResult<Extent> {
        let invalid = CuStatus::INVALID_VALUE;
        let end = addr.checked_add(bytes).ok_or(invalid)?;
        let (first, _) = self.blocks.range(..=addr).next_back().ok_or(invalid)?;
        let mut reached = addr;
        for (start, block) in self.blocks.range(first..) {
            if reached >= end || *start > reached || !is_living_mapping(block) {
                break;
            }
            reached = start + block.bytes;
        }
        let range = self.range.as_ref().filter(|_| reached >= end);
        range
            .and_then(|range| range.extent(addr, bytes))
            .ok_or(invalid)
    }

    /// One mapping more. False: no such memory, or no room for it.
    pub(super) fn hold_physical(&mut self, handle: u64) -> bool {
        self.back(handle);
        let piece = self.physicals.0.get_mut(handle);
        piece.is_ok_and(|piece| {
            let is_there = piece.memory.is_some() && !piece.is_released;
            piece.mapped += u32::from(is_there);
            is_there
        })
    }

    /// One mapping less.
    pub(super) fn let_go_physical(&mut self, handle: u64) {
        if let Ok(piece) = self.physicals.0.get_mut(handle) {
            piece.mapped = piece.mapped.saturating_sub(1);
            self.bury(handle);
        }
    }

    /// Lets memory that is held appear.
    pub(super) fn map_physical(
        &mut self,
        kind: BlockKind,
        addr: u64,
        bytes: u64,
    ) -> CuResult<Mapping> {
        let BlockKind::Mapped {
            physical,
            offset,
            access,
        } = kind
        else {
            return Err(CuStatus::INVALID_VALUE);
        };
        let range = self.range.clone().ok_or(CuStatus::NOT_SUPPORTED)?;
        let piece = self.physicals.0.get(physical)?;
        let memory = piece.memory.as_ref().ok_or(CuStatus::OUT_OF_MEMORY)?;
        let mapping = Mapping::of(&range, memory, addr, offset, bytes)?;
        mapping.allow(mapping.ordinal(), access)?;
        Ok(mapping)
    }

    /// Charges a piece and makes it, if that was not done and there is room.
    fn back(&mut self, handle: u64) {
        let Some(range) = self.range.clone() else {
            return;
        };
        let Ok(piece) = self.physicals.0.get_mut(handle) else {
            return;
        };
        if piece.memory.is_some() || !self.account.charge(piece.device, piece.bytes) {
            return;
        }
        match Physical::create(range.driver(), piece.ordinal, piece.bytes) {
            Ok(memory) => piece.memory = Some(Arc::new(memory)),
            Err(status) => {
                log::debug!("no {} bytes of memory to map yet: {status}", piece.bytes);
                self.account.release(piece.device, piece.bytes);
            }
        }
    }

    fn bury(&mut self, handle: u64) {
        let piece = self.physicals.0.get(handle);
        let is_dead = piece.is_ok_and(|piece| piece.is_released && piece.mapped == 0);
        if is_dead
            && let Ok(piece) = self.physicals.0.remove(handle)
            && piece.memory.is_some()
        {
            self.account.release(piece.device, piece.bytes);
        }
    }

    /// Starts of the living mappings that are exactly this range.
    fn tiles(&self, addr: u64, bytes: u64) -> CuResult<Vec<u64>> {
        let end = addr.checked_add(bytes).ok_or(CuStatus::INVALID_VALUE)?;
        let (mut reached, mut starts) = (addr, Vec::new());
        for (start, block) in self.blocks.range(addr..end) {
            if *start != reached || !is_living_mapping(block) {
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
}

fn is_living_mapping(block: &Block) -> bool {
    matches!(block.kind, BlockKind::Mapped { .. }) && !block.is_dying
}
