//! What of the session's addresses is memory: blocks, and the 2 MiB granules that the driver maps.
//!
//! Where the driver has virtual memory management the client chooses addresses inside a reserved range, and every
//! granule that some block touches is mapped. A granule wholly inside one block belongs to that block's own
//! mapping; one at an edge is mapped alone and shared: the blocks on it hold it together, and it goes with the last.
//! Elsewhere the driver chooses addresses, one allocation per block.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use farcall_marshal::places::USUAL;
use farcall_marshal::status::{CuResult, CuStatus};

use super::driver::{Context, Driver, Extent, HostBlock, Mapping, PlainBlock, VirtualRange};
use super::mapped::Physicals;
use super::state::ContextKey;
use crate::ledger::Account;
use crate::limits::{ALLOCATION_GRAIN, BLOCKS_MAX, RANGE_BYTES_MAX, RANGE_BYTES_MIN};
use crate::sys::reserve::Reservation;

/// Size and alignment of what the driver maps.
pub(super) const GRANULE: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// Addresses that no driver with virtual memory management refuses.
const SIZE_ENOUGH: u64 = 64 << 30;
/// Tries to find addresses that are free on both sides.
const ATTEMPTS: u32 = 4;

/// Part of the session's address range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) base: u64,
    /// 0: there is none.
    pub(crate) bytes: u64,
}

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    Device,
    Host,
    Managed,
    Global,
    /// Physical memory of its own, mapped where the client said.
    Mapped {
        /// The client's handle of the physical memory.
        physical: u64,
        /// First byte of it that is mapped.
        offset: u64,
        /// `CUmemAccess_flags` of its device.
        access: u32,
    },
}

/// What a block is made of.
#[derive(Debug)]
pub(super) enum Backing {
    /// The mappings that it touches.
    Virtual {
        _mappings: Vec<Arc<Mapping>>,
    },
    /// Memory that the client mapped itself.
    Mapped(Mapping),
    Plain(PlainBlock),
    Host(HostBlock),
}

/// One allocation.
#[derive(Debug)]
pub(crate) struct Block {
    pub(super) bytes: u64,
    pub(super) kind: BlockKind,
    context: ContextKey,
    device: usize,
    /// Freed by the client; goes when the device has got there.
    pub(super) is_dying: bool,
    pub(super) backing: Backing,
}

/// Memory that is new to this session and may hold what others left there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fresh {
    pub(crate) addr: u64,
    pub(crate) bytes: u64,
    /// The client's ordinal of the device that it is of.
    pub(crate) device: usize,
    /// What that device may do with it once it is cleared, where that is not everything.
    pub(crate) access: Option<u32>,
}

/// Who allocates.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) key: ContextKey,
    /// The client's ordinal.
    pub(crate) device: usize,
    /// The server's.
    pub(crate) ordinal: u32,
    pub(crate) context: Arc<Context>,
}

/// The session's memory.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(super) range: Option<Arc<VirtualRange>>,
    device: Area,
    host_range: Option<Arc<Reservation>>,
    host: Area,
    pub(super) blocks: BTreeMap<u64, Block>,
    /// Granules at edges, by address: of which device, and while some block holds it.
    shared: BTreeMap<u64, (u32, Weak<Mapping>)>,
    pub(super) physicals: Physicals,
    pub(super) account: Account,
    /// Mapped and not cleared yet.
    pub(super) fresh: Vec<Fresh>,
}

impl Memory {
    /// Reserves the proposed range, or another one of its size (`wanted_bytes` where 0 was proposed).
    pub(crate) fn open(
        driver: &'static Driver,
        base: u64,
        bytes: u64,
        wanted_bytes: u64,
        account: Account,
    ) -> Self {
        let size = if bytes == 0 { wanted_bytes } else { bytes };
        let size = size.clamp(RANGE_BYTES_MIN, RANGE_BYTES_MAX) & !(8 * GRANULE - 1);
        let proposed =
            (base != 0 && base.is_multiple_of(PAGE)).then(|| base.next_multiple_of(GRANULE));
        let proposed = proposed.filter(|at| {
            at.checked_add(size)
                .zip(base.checked_add(bytes))
                .is_some_and(|(a, b)| a <= b)
        });
        // A driver that has no such many addresses may have some of them.
        let mut size = size;
        let mut found = reserve(driver, proposed, size);
        while found.0.is_none() && found.1.is_none() && size > SIZE_ENOUGH {
            size = (size / 4).max(RANGE_BYTES_MIN) & !(8 * GRANULE - 1);
            found = reserve(driver, proposed, size);
        }
        let mut memory = Self {
            range: None,
            device: Area::default(),
            host_range: None,
            host: Area::default(),
            blocks: BTreeMap::new(),
            shared: BTreeMap::new(),
            physicals: Physicals::default(),
            account,
            fresh: Vec::new(),
        };
        if let Some(range) = found.0 {
            memory.device = Area {
                base: range.base(),
                bytes: device_part(size),
            };
            memory.range = Some(Arc::new(range));
        }
        if let Some(range) = found.1 {
            memory.host = Area {
                base: range.base(),
                bytes: range.end() - range.base(),
            };
            memory.host_range = Some(Arc::new(range));
        }
        memory
    }

    /// Base and size of where the client places device memory (size 0: the server places it), and of where it places pinned and
    /// managed memory (size 0: kernels cannot use any).
    pub(crate) fn areas(&self) -> [(u64, u64); 2] {
        let device = if self.device.bytes == 0 {
            self.host.base
        } else {
            self.device.base
        };
        [
            (device, self.device.bytes),
            (self.host.base, self.host.bytes),
        ]
    }

    /// Makes a block; what of it has to be cleared is in [`Self::take_fresh`] then. Returns its address: `addr`, or where `addr` is 0 and the client does not
    /// choose, the driver's choice.
    ///
    /// # Errors
    /// `INVALID_VALUE`: outside of its area, not aligned, overlapping, or on a granule of another device.
    /// `OUT_OF_MEMORY`, and as the driver.
    pub(crate) fn insert(
        &mut self,
        owner: &Owner,
        addr: u64,
        bytes: u64,
        kind: BlockKind,
    ) -> CuResult<u64> {
        let on_host = matches!(kind, BlockKind::Host | BlockKind::Managed);
        let bytes = if on_host {
            bytes
                .checked_next_multiple_of(PAGE)
                .ok_or(CuStatus::INVALID_VALUE)?
        } else {
            bytes
        };
        let placed_here = !on_host && self.range.is_none();
        if bytes == 0 || !bytes.is_multiple_of(ALLOCATION_GRAIN) || placed_here != (addr == 0) {
            return Err(CuStatus::INVALID_VALUE);
        }
        if !placed_here {
            self.check_place(
                addr,
                bytes,
                if on_host { self.host } else { self.device },
                match kind {
                    BlockKind::Mapped { .. } => GRANULE,
                    _ if on_host => PAGE,
                    _ => ALLOCATION_GRAIN,
                },
            )?;
        }
        if self.blocks.len() >= BLOCKS_MAX || !self.charge(kind, owner.device, bytes) {
            return Err(CuStatus::OUT_OF_MEMORY);
        }
        self.fresh.clear();
        let made = match (&self.host_range, on_host) {
            _ if matches!(kind, BlockKind::Mapped { .. }) => self
                .map_physical(kind, addr, bytes)
                .map(|mapping| (addr, Backing::Mapped(mapping))),
            (Some(range), true) => HostBlock::new(&owner.context, range, addr, bytes)
                .map(|block| (addr, Backing::Host(block))),
            (None, true) => Err(CuStatus::NOT_SUPPORTED),
            (_, false) if placed_here => PlainBlock::new(&owner.context, bytes)
                .map(|block| (block.base(), Backing::Plain(block))),
            (_, false) => self.map(owner, addr, bytes).map(|mappings| {
                (
                    addr,
                    Backing::Virtual {
                        _mappings: mappings,
                    },
                )
            }),
        };
        match made {
            Ok((addr, backing)) => {
                let block = Block {
                    bytes,
                    kind,
                    context: owner.key,
                    device: owner.device,
                    is_dying: false,
                    backing,
                };
                self.blocks.insert(addr, block);
                if kind == BlockKind::Device {
                    self.fresh.push(Fresh {
                        addr,
                        bytes,
                        device: owner.device,
                        access: None,
                    });
                }
                Ok(addr)
            }
            Err(status) => {
                self.fresh.clear();
                self.release(kind, owner.device, bytes);
                Err(status)
            }
        }
    }

    /// Lets copies use a module's variable, until it is dropped with [`Self::take`].
    pub(crate) fn insert_global(&mut self, owner: &Owner, global: PlainBlock) {
        let (addr, bytes) = (global.base(), global.bytes());
        let (kind, backing) = (BlockKind::Global, Backing::Plain(global));
        self.blocks.entry(addr).or_insert(Block {
            bytes,
            kind,
            context: owner.key,
            device: owner.device,
            is_dying: false,
            backing,
        });
    }

    /// Marks a block as freed, so that nothing new uses it.
    ///
    /// # Errors
    /// `INVALID_VALUE`: none begins there, it is of another kind, or is freed already.
    pub(crate) fn condemn(&mut self, addr: u64, host: bool) -> CuResult {
        let block = self
            .blocks
            .get_mut(&addr)
            .filter(|block| !block.is_dying)
            .ok_or(CuStatus::INVALID_VALUE)?;
        let allowed = match block.kind {
            BlockKind::Device => !host,
            BlockKind::Host => host,
            // cuMemFree takes managed memory too.
            BlockKind::Managed => true,
            BlockKind::Global | BlockKind::Mapped { .. } => false,
        };
        block.is_dying = allowed;
        if allowed {
            Ok(())
        } else {
            Err(CuStatus::INVALID_VALUE)
        }
    }

    /// Takes a block out: dropping it gives the memory back. Drop it without locks: the driver may take its time.
    pub(crate) fn take(&mut self, addr: u64) -> Option<Block> {
        let block = self.blocks.remove(&addr)?;
        self.release(block.kind, block.device, block.bytes);
        Some(block)
    }

    /// Takes out all blocks of a context.
    pub(crate) fn take_all(&mut self, context: ContextKey) -> Vec<Block> {
        let gone: Vec<u64> = self
            .blocks
            .iter()
            .filter(|(_, block)| {
                block.context == context && !matches!(block.kind, BlockKind::Mapped { .. })
            })
            .map(|(addr, _)| *addr)
            .collect();
        gone.into_iter()
            .filter_map(|addr| self.take(addr))
            .collect()
    }

    /// `addr..addr + bytes`, if it lies in one living block.
    ///
    /// # Errors
    /// `INVALID_VALUE` if not.
    pub(crate) fn extent(&self, addr: u64, bytes: u64) -> CuResult<Extent> {
        let found = self
            .blocks
            .range(..=addr)
            .next_back()
            .filter(|(_, block)| !block.is_dying);
        let (start, block) = found.ok_or(CuStatus::INVALID_VALUE)?;
        if matches!(block.kind, BlockKind::Mapped { .. }) {
            return self.mapped_extent(addr, bytes);
        }
        if bytes > (start + block.bytes).saturating_sub(addr) {
            return Err(CuStatus::INVALID_VALUE);
        }
        let extent = match &block.backing {
            Backing::Virtual { .. } | Backing::Mapped(_) => self
                .range
                .as_ref()
                .and_then(|range| range.extent(addr, bytes)),
            Backing::Plain(plain) => plain.extent(addr, bytes),
            Backing::Host(host) => host.extent(addr, bytes),
        };
        extent.ok_or(CuStatus::INVALID_VALUE)
    }

    /// The client's ordinal of the device whose memory is at an address; `None`: the host's, or nothing.
    pub(crate) fn device_of(&self, addr: u64) -> Option<usize> {
        let (_, block) = self.blocks.range(..=addr).next_back()?;
        match block.kind {
            BlockKind::Device | BlockKind::Global => Some(block.device),
            BlockKind::Mapped { physical, .. } => self.device_of_physical(physical),
            BlockKind::Host | BlockKind::Managed => None,
        }
    }

    /// What is to be cleared before anybody uses it: pages of the host are zeros already, and of granules at an edge
    /// all is cleared, as kernels could read beyond the block.
    pub(crate) fn take_fresh(&mut self) -> Vec<Fresh> {
        std::mem::take(&mut self.fresh)
    }

    /// The addresses of fresh memory.
    ///
    /// # Errors
    /// `INVALID_VALUE`: nothing is there.
    pub(crate) fn fresh_extent(&self, fresh: &Fresh) -> CuResult<Extent> {
        match &self.range {
            Some(range) => range.extent(fresh.addr, fresh.bytes),
            None => Some(self.extent(fresh.addr, fresh.bytes)?),
        }
        .ok_or(CuStatus::INVALID_VALUE)
    }

    fn check_place(&self, addr: u64, bytes: u64, area: Area, align: u64) -> CuResult {
        let end = addr.checked_add(bytes).ok_or(CuStatus::INVALID_VALUE)?;
        if !addr.is_multiple_of(align) || addr < area.base || end > area.base + area.bytes {
            return Err(CuStatus::INVALID_VALUE);
        }
        let before = self.blocks.range(..end).next_back();
        if before.is_some_and(|(start, block)| start + block.bytes > addr) {
            Err(CuStatus::INVALID_VALUE)
        } else {
            Ok(())
        }
    }

    /// The mappings for `addr..addr + bytes`: shared granules at the edges, one piece between them.
    fn map(&mut self, owner: &Owner, addr: u64, bytes: u64) -> CuResult<Vec<Arc<Mapping>>> {
        let range = self.range.clone().ok_or(CuStatus::NOT_SUPPORTED)?;
        let mut mappings = Vec::with_capacity(3);
        for piece in pieces(addr, addr + bytes) {
            mappings.push(match piece {
                Piece::Whole { start, end } => {
                    Arc::new(Mapping::new(&range, owner.ordinal, start, end - start)?)
                }
                Piece::Edge { start } => self.edge(&range, owner, start)?,
            });
        }
        Ok(mappings)
    }

    fn edge(
        &mut self,
        range: &Arc<VirtualRange>,
        owner: &Owner,
        start: u64,
    ) -> CuResult<Arc<Mapping>> {
        if let Some((ordinal, mapping)) = self.shared.get(&start)
            && let Some(mapping) = mapping.upgrade()
        {
            return if *ordinal == owner.ordinal {
                Ok(mapping)
            } else {
                Err(CuStatus::INVALID_VALUE)
            };
        }
        self.shared
            .retain(|_, (_, mapping)| mapping.strong_count() > 0);
        let mapping = Arc::new(Mapping::new(range, owner.ordinal, start, GRANULE)?);
        self.fresh.push(Fresh {
            addr: start,
            bytes: GRANULE,
            device: owner.device,
            access: None,
        });
        self.shared
            .insert(start, (owner.ordinal, Arc::downgrade(&mapping)));
        Ok(mapping)
    }

    fn charge(&mut self, kind: BlockKind, device: usize, bytes: u64) -> bool {
        match kind {
            BlockKind::Global => true,
            BlockKind::Mapped { physical, .. } => self.hold_physical(physical),
            BlockKind::Host => self.account.charge_host(bytes),
            BlockKind::Device | BlockKind::Managed => self.account.charge(device, bytes),
        }
    }

    fn release(&mut self, kind: BlockKind, device: usize, bytes: u64) {
        match kind {
            BlockKind::Global => {}
            BlockKind::Mapped { physical, .. } => self.let_go_physical(physical),
            BlockKind::Host => self.account.release_host(bytes),
            BlockKind::Device | BlockKind::Managed => self.account.release(device, bytes),
        }
    }
}

/// A part of a block's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// Granules that are the block's alone.
    Whole { start: u64, end: u64 },
    /// A granule that other blocks may lie on.
    Edge { start: u64 },
}

fn pieces(addr: u64, end: u64) -> Vec<Piece> {
    let first_whole = addr.next_multiple_of(GRANULE);
    let last_whole = end & !(GRANULE - 1);
    let mut pieces = Vec::with_capacity(3);
    if addr < first_whole {
        pieces.push(Piece::Edge {
            start: first_whole - GRANULE,
        });
    }
    if first_whole < last_whole {
        pieces.push(Piece::Whole {
            start: first_whole,
            end: last_whole,
        });
    }
    if last_whole < end && last_whole >= first_whole {
        pieces.push(Piece::Edge { start: last_whole });
    }
    pieces
}

/// Bytes of the range that are for device memory; the last quarter is for pinned memory, as on the CPU devices.
fn device_part(size: u64) -> u64 {
    size / 8 * 5
}

/// Device addresses, then room, then host addresses, all in `size` bytes that are free in this process and on the devices.
fn reserve(
    driver: &'static Driver,
    proposed: Option<u64>,
    size: u64,
) -> (Option<VirtualRange>, Option<Reservation>) {
    let host_at = |base: u64| (base + size / 8 * 6, size / 8 * 2);
    let mut hint = proposed;
    for _ in 0..ATTEMPTS {
        // Where nothing was proposed, or that is taken: what is free in this process is a good guess.
        let base = hint.take().or_else(|| free_place(size));
        let Some(base) = base else { break };
        let range = match VirtualRange::reserve(driver, base, device_part(size)) {
            Ok(range) => Some(range),
            Err(CuStatus::NOT_SUPPORTED) => {
                log::warn!(
                    "the driver has no virtual memory management: allocations are round trips"
                );
                None
            }
            Err(status) => {
                log::warn!("no device addresses at {base:#x}: {status}");
                continue;
            }
        };
        let base = range.as_ref().map_or(base, VirtualRange::base);
        let (start, bytes) = host_at(base);
        if let Ok(host) = Reservation::at(start, bytes) {
            return (range, Some(host));
        }
    }
    log::warn!(
        "no room for pinned memory beside the driver's addresses: allocations are round trips"
    );
    // The client has to have them free as well, which it usually has there.
    let places = proposed.into_iter().chain(USUAL);
    let places = places.chain(std::iter::from_fn(|| free_place(size)).take(1));
    let host = places
        .map(host_at)
        .find_map(|(start, bytes)| Reservation::at(start, bytes).ok());
    (None, host)
}

/// An address where `size` bytes are free now.
fn free_place(size: u64) -> Option<u64> {
    let place = Reservation::anywhere(size + GRANULE).ok()?;
    Some(place.base().next_multiple_of(GRANULE))
}

#[cfg(test)]
mod tests {
    use super::{GRANULE, Piece, pieces};

    #[test]
    fn edges_are_shared_and_the_middle_is_not() {
        let (edge, g) = (
            |at: u64| Piece::Edge {
                start: at * GRANULE,
            },
            GRANULE,
        );
        let whole = |from: u64, to: u64| Piece::Whole {
            start: from * GRANULE,
            end: to * GRANULE,
        };
        assert_eq!(pieces(4 * g + 512, 4 * g + 1024), [edge(4)], "inside one");
        assert_eq!(pieces(4 * g, 4 * g + 512), [edge(4)], "at its start");
        assert_eq!(pieces(4 * g + 512, 5 * g), [edge(4)], "up to its end");
        assert_eq!(pieces(4 * g, 5 * g), [whole(4, 5)], "all of it");
        assert_eq!(
            pieces(4 * g + 512, 5 * g + 512),
            [edge(4), edge(5)],
            "across an edge"
        );
        assert_eq!(
            pieces(4 * g + 512, 7 * g + 512),
            [edge(4), whole(5, 7), edge(7)]
        );
        assert_eq!(pieces(4 * g, 6 * g + 512), [whole(4, 6), edge(6)]);
    }
}
