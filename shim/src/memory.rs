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
use crate::device_range::GRANULE;
use crate::landing;
use crate::process::{Device, process};
use crate::ptr::HostPtr;
use crate::reserve;
use crate::session::Session;

pub(crate) const PAGE: u64 = 4096;

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
        self.of_context(context, |_| true)
            .into_iter()
            .try_for_each(|(start, bytes)| crossing::await_copies(start, bytes))
    }

    /// Waits for copies to host memory of a context that is about to end: its pages go back to the system then, or are the
    /// program's alone. Nothing comes any more where waiting fails.
    pub(crate) fn await_landings(&self, context: &'static Context) -> CuResult {
        let process = process()?;
        for (start, bytes) in self.of_context(context, |allocation| !allocation.is_on_device()) {
            let _ = process.await_writers(start, bytes);
        }
        Ok(())
    }

    /// Start and bytes of what a context has.
    fn of_context(
        &self,
        context: &'static Context,
        is_meant: impl Fn(&Allocation) -> bool,
    ) -> Vec<(u64, u64)> {
        let map = self.map.read();
        let own = map
            .values()
            .filter(|allocation| std::ptr::eq(allocation.context, context));
        own.filter(|allocation| is_meant(allocation))
            .map(|allocation| (allocation.start, allocation.bytes))
            .collect()
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
        let start = range.take(device.index, reserved_bytes, |stamp| {
            session.has_finished(stamp)
        });
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
    let reply = CuMemAllocV2Reply::decode_body(&reply).map_err(|_| CuStatus::UNKNOWN)?;
    placed(reply.addr, bytes)
}

/// Where a server says that it has put something, if anything can be there: not at null, nor beyond the last address.
pub(crate) fn placed(start: u64, bytes: u64) -> CuResult<u64> {
    match start.checked_add(bytes) {
        Some(_) if start != 0 => Ok(start),
        _ => Err(CuStatus::UNKNOWN),
    }
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
                allocation.context.device.index,
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
            let mut addresses = session.host_memory.lock();
            addresses.give(allocation.start, allocation.reserved_bytes, session.stamp());
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

/// Addresses at which the device can have memory that the program registers, as far behind the beginning of a page as
/// the program has it. To the program they stay closed.
pub(crate) fn take_alias(registered: &Allocation) -> CuResult<Allocation> {
    let session = registered.context.session();
    let behind = registered.start % PAGE;
    let bytes = registered.bytes.checked_add(behind);
    let taken = bytes.and_then(|bytes| take_addresses(session, bytes));
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

/// Gives back the addresses of an alias, of which the server may have heard.
pub(crate) fn give_alias(alias: &Allocation, was_shared: bool) {
    let session = alias.context.session();
    let (start, bytes) = (page_of(alias.start), alias.reserved_bytes);
    let mut addresses = session.host_memory.lock();
    if was_shared {
        addresses.give(start, bytes, session.stamp());
    } else {
        addresses.give_unused(start, bytes);
    }
}

/// Start and size of addresses that nobody uses.
fn take_addresses(session: &Session, bytes: u64) -> Option<(u64, u64)> {
    let range = session.host_range.range();
    let has_finished = |stamp| session.has_finished(stamp);
    session.host_memory.lock().take(range, bytes, has_finished)
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
    let taken = take_addresses(session, bytes);
    let (start, reserved_bytes) = taken.ok_or(CuStatus::OUT_OF_MEMORY)?;
    if !reserve::open(&session.host_range, start, reserved_bytes) {
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
