//! Memory as the client knows it: which addresses are whose, and how much of its limit a device has given.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};

use farcall_marshal::record::Record as _;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemAllocV2, CuMemAllocV2Reply};
use parking_lot::RwLock;

use crate::context::Context;
use crate::crossing;
use crate::landing;
use crate::process::{Device, process};
use crate::ptr::HostPtr;
use crate::reserve::{self, Range};
use crate::session::Session;

/// Device memory is given in pieces of this size, at addresses that are multiples of it.
pub(crate) const GRANULE: u64 = 512;
/// Pieces of at least this size start at multiples of it, as a driver's do.
const LARGE: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// What an address range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AllocationKind {
    /// On the device.
    Device,
    /// Pinned host memory that we allocated.
    Host,
    /// The program's own memory, registered.
    Registered,
    /// The addresses at which the device has registered memory.
    Alias,
    /// Both sides see it.
    Managed,
    /// A variable of a module, on the device.
    Global,
    /// On the device, mapped by the program.
    Mapped,
    /// On the device, of an allocation node.
    Graph,
}

/// One allocation.
#[derive(Clone, Copy)]
pub(crate) struct Allocation {
    pub(crate) start: u64,
    /// As asked for.
    pub(crate) bytes: u64,
    /// As taken.
    pub(crate) reserved_bytes: u64,
    pub(crate) kind: AllocationKind,
    pub(crate) context: &'static Context,
    pub(crate) flags: u32,
    /// `CU_POINTER_ATTRIBUTE_BUFFER_ID`.
    pub(crate) serial: u64,
    /// Pool that it came from, 0 = none.
    pub(crate) pool: u64,
    /// Of registered memory: where the device has it. Of such an alias: where the program has it. Else 0.
    pub(crate) twin: u64,
}

impl Allocation {
    pub(crate) fn is_on_device(&self) -> bool {
        matches!(
            self.kind,
            AllocationKind::Device
                | AllocationKind::Global
                | AllocationKind::Mapped
                | AllocationKind::Graph
        )
    }

    /// Only copies of devices are to work with it: a host has it too, or at another address.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.kind, AllocationKind::Managed | AllocationKind::Alias)
    }

    /// Where the device finds what the program knows by this address.
    pub(crate) fn device_address(&self, address: u64) -> u64 {
        match self.kind {
            AllocationKind::Registered if self.twin != 0 => self.twin + (address - self.start),
            _ => address,
        }
    }

    /// Where the program finds it.
    pub(crate) fn host_address(&self, address: u64) -> u64 {
        match self.kind {
            AllocationKind::Alias => self.twin + (address - self.start),
            _ => address,
        }
    }
}

/// Every allocation of the process, by address.
#[derive(Default)]
pub(crate) struct Allocations {
    map: RwLock<BTreeMap<u64, Allocation>>,
    serial: AtomicU64,
}

impl Allocations {
    pub(crate) fn insert(&self, mut allocation: Allocation) {
        allocation.serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        self.map.write().insert(allocation.start, allocation);
    }

    /// The allocation that contains an address.
    pub(crate) fn find(&self, address: u64) -> Option<Allocation> {
        let map = self.map.read();
        let (_, allocation) = map.range(..=address).next_back()?;
        (address - allocation.start < allocation.bytes.max(1)).then_some(*allocation)
    }

    /// Whether any allocation has bytes from `start` to before `end`.
    pub(crate) fn overlaps(&self, start: u64, end: u64) -> bool {
        let map = self.map.read();
        let last = map.range(..end).next_back();
        last.is_some_and(|(at, allocation)| at.saturating_add(allocation.bytes.max(1)) > start)
    }

    /// The allocation that contains a range: one, or mapped ones without a gap, of which it is the first.
    pub(crate) fn covering(&self, start: u64, bytes: u64) -> Option<Allocation> {
        let end = start.checked_add(bytes)?;
        let first = self.find(start)?;
        if end <= first.start + first.bytes {
            return Some(first);
        }
        let map = self.map.read();
        let mut reached = start;
        for (at, allocation) in map.range(first.start..) {
            if reached >= end || *at > reached || allocation.kind != AllocationKind::Mapped {
                break;
            }
            reached = at + allocation.bytes;
        }
        (reached >= end).then_some(first)
    }

    /// Forgets the allocation that starts exactly here, if it is of one of these kinds.
    pub(crate) fn remove(&self, start: u64, kinds: &[AllocationKind]) -> CuResult<Allocation> {
        let mut map = self.map.write();
        match map.get(&start) {
            Some(allocation) if kinds.contains(&allocation.kind) => {}
            _ => return Err(CuStatus::INVALID_VALUE),
        }
        map.remove(&start).ok_or(CuStatus::INVALID_VALUE)
    }

    /// Waits for copies between servers from and to memory of a context.
    pub(crate) fn await_copies(&self, context: &'static Context) -> CuResult {
        let map = self.map.read();
        let own: Vec<(u64, u64)> = map
            .values()
            .filter(|allocation| std::ptr::eq(allocation.context, context))
            .map(|allocation| (allocation.start, allocation.bytes))
            .collect();
        drop(map);
        own.into_iter()
            .try_for_each(|(start, bytes)| crossing::await_copies(start, bytes))
    }

    /// A context has gone with all its memory.
    pub(crate) fn forget_context(&self, context: &'static Context) {
        let mut gone = Vec::new();
        self.map.write().retain(|_, allocation| {
            let stays = !std::ptr::eq(allocation.context, context)
                || matches!(
                    allocation.kind,
                    AllocationKind::Mapped | AllocationKind::Graph
                );
            if !stays {
                gone.push(*allocation);
            }
            stays
        });
        for allocation in gone {
            release(&allocation);
        }
    }
}

/// Takes device memory: addresses and accounting. The caller tells the server.
pub(crate) fn take(context: &'static Context, bytes: u64, pool: u64) -> CuResult<Allocation> {
    if bytes == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let device = context.device;
    let reserved_bytes = bytes
        .checked_next_multiple_of(GRANULE)
        .ok_or(CuStatus::OUT_OF_MEMORY)?;
    charge(device, reserved_bytes)?;
    let session = context.session();
    let start = if session.places_memory() {
        place_there(context, reserved_bytes)
    } else {
        let mut range = session.device_memory.lock();
        let start = range.take(reserved_bytes, |stamp| session.has_finished(stamp));
        start.ok_or(CuStatus::OUT_OF_MEMORY)
    };
    let start = start.inspect_err(|_| {
        device
            .used_bytes
            .fetch_sub(reserved_bytes, Ordering::Relaxed);
    })?;
    Ok(Allocation {
        start,
        bytes,
        reserved_bytes,
        kind: AllocationKind::Device,
        context,
        flags: 0,
        serial: 0,
        pool,
        twin: 0,
    })
}

/// Asks a server that chooses addresses itself; the memory is there when it answers.
fn place_there(context: &'static Context, bytes: u64) -> CuResult<u64> {
    let session = context.session();
    let reply = session.ask(context.id, &CuMemAllocV2 { addr: 0, bytes })?;
    CuMemAllocV2Reply::decode_body(&reply)
        .map(|reply| reply.addr)
        .map_err(|_| CuStatus::UNKNOWN)
}

/// Gives back what an allocation took on the client.
pub(crate) fn release(allocation: &Allocation) {
    let session = allocation.context.session();
    match allocation.kind {
        AllocationKind::Device | AllocationKind::Graph => {
            allocation
                .context
                .device
                .used_bytes
                .fetch_sub(allocation.reserved_bytes, Ordering::Relaxed);
            if session.places_memory() {
                return;
            }
            session.device_memory.lock().give(
                allocation.start,
                allocation.reserved_bytes,
                session.stamp(),
            );
        }
        AllocationKind::Host | AllocationKind::Managed => {
            landing::take_back(&session.endpoint, HostPtr::from_address(allocation.start));
            reserve::close(
                &session.host_range,
                allocation.start,
                allocation.reserved_bytes,
            );
        }
        AllocationKind::Registered
        | AllocationKind::Alias
        | AllocationKind::Global
        | AllocationKind::Mapped => {}
    }
}

/// Counts memory as used; `OUT_OF_MEMORY` over the device's limit.
pub(crate) fn charge(device: &Device, bytes: u64) -> CuResult {
    let charged = device
        .used_bytes
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes)
                .filter(|total| *total <= device.limit_bytes)
        });
    charged.map(|_| ()).map_err(|_| CuStatus::OUT_OF_MEMORY)
}

/// Counts memory as free again.
pub(crate) fn uncharge(device: &Device, bytes: u64) {
    device.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
}

/// Addresses of a session's host range, of which each piece is given once.
#[derive(Default)]
pub(crate) struct HostRange {
    /// Behind all that was given.
    next: u64,
    /// Pieces that were given back before the server had heard of them, by size.
    unused: BTreeMap<u64, Vec<u64>>,
}

impl HostRange {
    fn take(&mut self, range: Range, bytes: u64) -> Option<(u64, u64)> {
        let reserved_bytes = bytes.checked_next_multiple_of(PAGE)?;
        if let Some(start) = self.unused.get_mut(&reserved_bytes).and_then(Vec::pop) {
            return Some((start, reserved_bytes));
        }
        // A guard page behind each piece catches programs that run over its end.
        let end = self.next.checked_add(reserved_bytes)?.checked_add(PAGE)?;
        let start = range.start + self.next;
        if end > range.bytes {
            return None;
        }
        self.next = end;
        Some((start, reserved_bytes))
    }
}

/// Addresses at which the device can have memory that the program registers, as far behind the beginning of a page as
/// the program has it. To the program they stay closed.
pub(crate) fn take_alias(registered: &Allocation) -> CuResult<Allocation> {
    let session = registered.context.session();
    let behind = registered.start % PAGE;
    let taken = registered.bytes.checked_add(behind).and_then(|bytes| {
        session
            .host_memory
            .lock()
            .take(session.host_range.range(), bytes)
    });
    let (start, reserved_bytes) = taken.ok_or(CuStatus::OUT_OF_MEMORY)?;
    Ok(Allocation {
        start: start + behind,
        reserved_bytes,
        kind: AllocationKind::Alias,
        twin: registered.start,
        ..*registered
    })
}

/// The alias of registered memory.
pub(crate) fn twin(registered: &Allocation) -> CuResult<Allocation> {
    let twin = process()?.memory.find(registered.twin);
    twin.filter(|twin| twin.kind == AllocationKind::Alias)
        .ok_or(CuStatus::OUT_OF_MEMORY)
}

/// Gives back addresses that the server has never heard of.
pub(crate) fn give_alias(alias: &Allocation) {
    let mut memory = alias.context.session().host_memory.lock();
    let same_size = memory.unused.entry(alias.reserved_bytes).or_default();
    same_size.push(page_of(alias.start));
}

/// First address of the page that an address lies in.
pub(crate) fn page_of(address: u64) -> u64 {
    address - address % PAGE
}

/// Opens pinned memory in the host range: zeroed pages at an address that the server can use too.
pub(crate) fn take_host(
    context: &'static Context,
    bytes: u64,
    kind: AllocationKind,
    flags: u32,
) -> CuResult<Allocation> {
    if bytes == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let session = context.session();
    let range = &session.host_range;
    let taken = session.host_memory.lock().take(range.range(), bytes);
    let (start, reserved_bytes) = taken.ok_or(CuStatus::OUT_OF_MEMORY)?;
    if !reserve::open(range, start, reserved_bytes) {
        return Err(CuStatus::OUT_OF_MEMORY);
    }
    if kind == AllocationKind::Host {
        landing::lend(
            &session.endpoint,
            HostPtr::from_address(start),
            reserved_bytes,
        );
    }
    Ok(Allocation {
        start,
        bytes,
        reserved_bytes,
        kind,
        context,
        flags,
        serial: 0,
        pool: 0,
        twin: 0,
    })
}

/// Sends the bytes of a bulk transfer.
pub(crate) fn send_bulk(session: &Session, id: u64, bytes: &[u8]) -> CuResult {
    session
        .endpoint
        .bulk_send(id, &[IoSlice::new(bytes)])
        .map_err(|_| CuStatus::DEVICE_UNAVAILABLE)
}

/// Addresses of one session's device memory.
///
/// First fit by size, best first; freed pieces are used again only when the work before the free is known to
/// have run, because the server frees in the order of the device.
pub(crate) struct DeviceRange {
    range: Range,
    /// First address never given.
    fresh: u64,
    /// Freed pieces by start: length and the stamp of the free.
    free: BTreeMap<u64, (u64, u64)>,
}

impl DeviceRange {
    pub(crate) fn new(range: Range) -> Self {
        Self {
            range,
            fresh: range.start,
            free: BTreeMap::new(),
        }
    }

    fn take(&mut self, bytes: u64, has_finished: impl Fn(u64) -> bool) -> Option<u64> {
        let align = if bytes >= LARGE { LARGE } else { GRANULE };
        self.take_aligned(bytes, align, has_finished)
    }

    /// Addresses that are a multiple of `align`.
    pub(crate) fn take_aligned(
        &mut self,
        bytes: u64,
        align: u64,
        has_finished: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let best = self
            .free
            .iter()
            .filter(|(start, (len, stamp))| {
                *len == bytes && start.is_multiple_of(align) && has_finished(*stamp)
            })
            .map(|(start, _)| *start)
            .next();
        if let Some(start) = best {
            self.free.remove(&start);
            return Some(start);
        }
        let start = self.fresh.checked_next_multiple_of(align)?;
        let end = start.checked_add(bytes)?;
        if end <= self.range.start.checked_add(self.range.bytes)? {
            self.fresh = end;
            return Some(start);
        }
        self.take_from_free(bytes, align, &has_finished)
    }

    /// The range has been given out once: cut a piece out of finished free space, neighbours joined. What is not
    /// finished stays by itself, or it would hold up its neighbours.
    fn take_from_free(
        &mut self,
        bytes: u64,
        align: u64,
        has_finished: &impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let mut joined: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (start, (len, stamp)) in std::mem::take(&mut self.free) {
            match joined.last_entry() {
                Some(mut last)
                    if *last.key() + last.get().0 == start
                        && has_finished(stamp)
                        && has_finished(last.get().1) =>
                {
                    let (old_len, old_stamp) = *last.get();
                    last.insert((old_len + len, old_stamp.max(stamp)));
                }
                _ => {
                    joined.insert(start, (len, stamp));
                }
            }
        }
        self.free = joined;
        let (piece, at) = self.free.iter().find_map(|(start, (len, stamp))| {
            let at = start.checked_next_multiple_of(align)?;
            (has_finished(*stamp) && at + bytes <= start + len).then_some((*start, at))
        })?;
        let (len, stamp) = self.free.remove(&piece)?;
        if at > piece {
            self.free.insert(piece, (at - piece, stamp));
        }
        let end = piece + len;
        if end > at + bytes {
            self.free.insert(at + bytes, (end - at - bytes, stamp));
        }
        Some(at)
    }

    /// Gives addresses back; `stamp`: of the last work that may use them.
    pub(crate) fn give(&mut self, start: u64, bytes: u64, stamp: u64) {
        self.free.insert(start, (bytes, stamp));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{DeviceRange, GRANULE};
    use crate::reserve::Range;

    fn range(bytes: u64) -> DeviceRange {
        DeviceRange::new(Range {
            start: 0x10_0000,
            bytes,
        })
    }

    #[test]
    fn a_freed_piece_waits_for_the_work_before_it() {
        let mut range = range(1 << 20);
        let first = range.take(512, |_| true);
        range.give(first.unwrap_or(0), 512, 5);
        assert_ne!(range.take(512, |stamp| stamp < 5), first);
        assert_eq!(range.take(512, |stamp| stamp <= 5), first);
    }

    #[test]
    fn a_piece_that_is_not_finished_holds_up_no_neighbour() {
        let mut range = range(8 * GRANULE);
        let start = range.take_aligned(8 * GRANULE, GRANULE, |_| true).unwrap();
        range.give(start, 7 * GRANULE, 0);
        range.give(start + 7 * GRANULE, GRANULE, 9);
        let finished = |stamp| stamp < 9;
        assert_eq!(range.take(2 * GRANULE, finished), Some(start));
        assert_eq!(range.take(6 * GRANULE, finished), None);
        assert_eq!(range.take(6 * GRANULE, |_| true), Some(start + 2 * GRANULE));
    }

    #[test]
    fn freed_neighbours_are_joined_when_the_range_is_used_up() {
        let mut range = range(2048);
        let pieces: Vec<u64> = (0..4).filter_map(|_| range.take(512, |_| true)).collect();
        assert_eq!((pieces.len(), range.take(512, |_| true)), (4, None));
        range.give(pieces[1], 512, 1);
        range.give(pieces[2], 512, 1);
        assert_eq!(range.take(1024, |_| true), Some(pieces[1]));
        assert_eq!(range.take(512, |_| true), None);
    }
}
