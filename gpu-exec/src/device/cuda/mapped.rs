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
use super::alloc::clear;
use super::driver::{Extent, Mapping, Physical};
use super::memory::{Backing, Block, BlockKind, Fresh, GRANULE, Memory};
use super::op::After;
use crate::device::Violation;
use crate::device::handles::HandleTable;
use crate::limits::PHYSICALS_MAX;

/// [`GRANULE`] as a step.
const STEP: usize = 2 << 20;
const _: () = assert!(STEP as u64 == GRANULE);
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: u32 = 3;

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
    /// Which granules this session has had cleared, once any was.
    clean: Vec<bool>,
}

impl Piece {
    /// The granules of a part that were not cleared yet, as offsets in the piece; they count as cleared from now on.
    fn clean_up(&mut self, offset: u64, bytes: u64) -> Vec<u64> {
        let count = usize::try_from(self.bytes / GRANULE).unwrap_or(0);
        self.clean.resize(count, false);
        let mut found = Vec::new();
        for at in (offset..offset.saturating_add(bytes)).step_by(STEP) {
            let granule = usize::try_from(at / GRANULE).unwrap_or(usize::MAX);
            if let Some(clean) = self.clean.get_mut(granule)
                && !std::mem::replace(clean, true)
            {
                found.push(at);
            }
        }
        found
    }
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
        self.in_context(head, |state, key| {
            let ordinal = ordinal.ok_or(CuStatus::INVALID_DEVICE)?;
            let memory = &mut state.memory;
            memory.set_access(record.addr, record.bytes, ordinal, record.access)?;
            clear(state, key)
        })
    }
}

impl Memory {
    /// Makes a piece. Its contents are what the driver gives, until it is mapped.
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
            clean: Vec::new(),
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

    /// Sets what a device may do with the mappings that tile a range. What was not accessible before is to be cleared then.
    ///
    /// # Errors
    /// `INVALID_VALUE`: they do not. `NOT_SUPPORTED`: memory that its own device has not had access to. Else as the driver.
    pub(crate) fn set_access(
        &mut self,
        addr: u64,
        bytes: u64,
        ordinal: u32,
        access: u32,
    ) -> CuResult {
        self.fresh.clear();
        for at in self.tiles(addr, bytes)? {
            let Some(block) = self.blocks.get(&at) else {
                continue;
            };
            let (
                Backing::Mapped(mapping),
                BlockKind::Mapped {
                    physical, offset, ..
                },
            ) = (&block.backing, block.kind)
            else {
                continue;
            };
            let piece = self.physicals.0.get_mut(physical)?;
            let fresh = &mut self.fresh;
            grant(
                piece,
                mapping,
                (at, offset, block.bytes),
                ordinal,
                access,
                fresh,
            )?;
        }
        Ok(())
    }

    /// Sets what a mapping's own device may do with it, once it is cleared.
    pub(super) fn restrict(&self, addr: u64, access: u32) -> CuResult {
        let before = self.blocks.range(..=addr).next_back();
        match before.map(|(_, block)| &block.backing) {
            Some(Backing::Mapped(mapping)) => mapping.allow(mapping.ordinal(), access),
            _ => Ok(()),
        }
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

    /// The device that physical memory is of, by the client's ordinal.
    pub(super) fn device_of_physical(&self, handle: u64) -> Option<usize> {
        self.physicals.0.get(handle).ok().map(|piece| piece.device)
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
        let piece = self.physicals.0.get_mut(physical)?;
        let memory = piece.memory.as_ref().ok_or(CuStatus::OUT_OF_MEMORY)?;
        let mapping = Mapping::of(&range, memory, addr, offset, bytes)?;
        let place = (addr, offset, bytes);
        let fresh = &mut self.fresh;
        grant(piece, &mapping, place, mapping.ordinal(), access, fresh)?;
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

/// Lets a device do something with a mapping, and notes what of it has to be cleared first. `place`: address, offset in the piece, size.
fn grant(
    piece: &mut Piece,
    mapping: &Mapping,
    (addr, offset, bytes): (u64, u64, u64),
    ordinal: u32,
    access: u32,
    fresh: &mut Vec<Fresh>,
) -> CuResult {
    let dirty = match access {
        0 => Vec::new(),
        _ => piece.clean_up(offset, bytes),
    };
    if dirty.is_empty() {
        return mapping.allow(ordinal, access);
    }
    if ordinal != mapping.ordinal() {
        return Err(CuStatus::NOT_SUPPORTED);
    }
    mapping.allow(ordinal, READ_WRITE)?;
    let last = dirty.len() - 1;
    fresh.extend(dirty.iter().enumerate().map(|(n, at)| Fresh {
        addr: addr + (at - offset),
        bytes: GRANULE,
        device: piece.device,
        // With the last one all of it is cleared.
        access: Some(access).filter(|access| *access != READ_WRITE && n == last),
    }));
    Ok(())
}

fn is_living_mapping(block: &Block) -> bool {
    matches!(block.kind, BlockKind::Mapped { .. }) && !block.is_dying
}
