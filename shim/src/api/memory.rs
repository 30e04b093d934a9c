//! Device memory. Addresses come from the client's range, so an allocation is sent one way; the limit is checked
//! here, where it is known.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuMemAllocAsync, CuMemAllocManaged, CuMemAllocV2, CuMemFreeAsync, CuMemFreeHost, CuMemFreeV2,
};

use super::stream;
use crate::context;
use crate::crossing;
use crate::graph::{GraphMemory, Node, find_memory};
use crate::memory::{self, Allocation, AllocationKind};
use crate::pool::Pool;
use crate::process::process;
use crate::ptr::Out;

/// Rows of a pitched allocation start at multiples of this (texture alignment of current GPUs).
const PITCH_ALIGN: usize = 512;

pub(crate) fn cuMemAlloc_v2(place: Out<u64>, bytes: usize) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    place.set(allocate(bytes)?)
}

/// Device memory of the current context; its address.
pub(crate) fn allocate(bytes: usize) -> CuResult<u64> {
    let context = context::current()?;
    let allocation = memory::take(context, bytes as u64, 0)?;
    let record = CuMemAllocV2 {
        addr: allocation.start,
        bytes: allocation.reserved_bytes,
    };
    tell(&allocation, |context| {
        context.session().send(context.id, &record)
    })?;
    Ok(allocation.start)
}

/// Sends what makes an allocation real; if that fails nothing was taken.
fn tell(
    allocation: &Allocation,
    send: impl FnOnce(&'static crate::context::Context) -> CuResult,
) -> CuResult {
    // Where the server places memory, it is real by now.
    let is_there =
        allocation.kind == AllocationKind::Device && allocation.context.session().places_memory();
    let told = if is_there {
        Ok(())
    } else {
        send(allocation.context)
    };
    match told {
        Ok(()) => {
            process()?.memory.insert(*allocation);
            Ok(())
        }
        Err(status) => {
            memory::release(allocation);
            Err(status)
        }
    }
}

pub(crate) fn cuMemAllocPitch_v2(
    place: Out<u64>,
    pitch: Out<usize>,
    width: usize,
    height: usize,
    element: u32,
) -> CuResult {
    if pitch.is_null() || !matches!(element, 4 | 8 | 16) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let row = width
        .checked_next_multiple_of(PITCH_ALIGN)
        .ok_or(CuStatus::INVALID_VALUE)?;
    cuMemAlloc_v2(
        place,
        row.checked_mul(height).ok_or(CuStatus::INVALID_VALUE)?,
    )?;
    pitch.set(row)
}

pub(crate) fn cuMemFree_v2(address: u64) -> CuResult {
    if address == 0 {
        return Ok(());
    }
    context::current()?;
    if let Some(memory) = find_memory(address) {
        return memory.free(context::current()?.legacy());
    }
    let process = process()?;
    let allocation = process
        .memory
        .remove(address, &[AllocationKind::Device, AllocationKind::Managed])?;
    free(&allocation)
}

fn free(allocation: &Allocation) -> CuResult {
    crossing::await_copies(allocation.start, allocation.bytes)?;
    let context = allocation.context;
    let sent = if allocation.kind == AllocationKind::Managed {
        crate::coherent::unshare(allocation)?;
        context.session().send(
            context.id,
            &CuMemFreeHost {
                addr: allocation.start,
            },
        )
    } else {
        leave_pool(allocation);
        context.session().send(
            context.id,
            &CuMemFreeV2 {
                addr: allocation.start,
            },
        )
    };
    memory::release(allocation);
    sent
}

/// Memory that the program does not get after all. The server has it only where it chooses the addresses.
fn give_back(allocation: &Allocation) -> CuResult {
    memory::release(allocation);
    let context = allocation.context;
    if !context.session().places_memory() {
        return Ok(());
    }
    let addr = allocation.start;
    context.session().send(context.id, &CuMemFreeV2 { addr })
}

fn leave_pool(allocation: &Allocation) {
    if allocation.pool != 0
        && let Ok(pool) = process().and_then(|process| process.pools.get(allocation.pool))
    {
        pool.give(allocation.reserved_bytes);
    }
}

pub(crate) fn cuMemAllocAsync(
    mode: StreamMode,
    place: Out<u64>,
    bytes: usize,
    handle: u64,
) -> CuResult {
    let pool = context::current()?.device.current_pool();
    cuMemAllocFromPoolAsync(mode, place, bytes, pool, handle)
}

pub(crate) fn cuMemAllocFromPoolAsync(
    mode: StreamMode,
    place: Out<u64>,
    bytes: usize,
    pool: u64,
    handle: u64,
) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    let stream = stream(mode, handle)?;
    let owner: Arc<Pool> = process()?.pools.get(pool)?;
    if let Some(capture) = stream.capturing()? {
        let memory = GraphMemory::new(stream.context, bytes)?;
        place.set(memory.address())?;
        return capture.add(stream.id, Node::Alloc(memory));
    }
    let allocation = memory::take(stream.context, bytes as u64, pool)?;
    if let Err(status) = owner.take(allocation.reserved_bytes) {
        give_back(&allocation)?;
        return Err(status);
    }
    let record = CuMemAllocAsync {
        addr: allocation.start,
        bytes: allocation.reserved_bytes,
        stream: stream.id,
    };
    tell(&allocation, |_| stream.issue(&record))
        .inspect_err(|_| owner.give(allocation.reserved_bytes))?;
    place.set(allocation.start)
}

pub(crate) fn cuMemFreeAsync(mode: StreamMode, address: u64, handle: u64) -> CuResult {
    if address == 0 {
        return Ok(());
    }
    let stream = stream(mode, handle)?;
    let of_graph = find_memory(address);
    if let Some(capture) = stream.capturing()? {
        of_graph.ok_or(CuStatus::INVALID_VALUE)?;
        return capture.add(stream.id, Node::Free(address));
    }
    if let Some(memory) = of_graph {
        return memory.free(&stream);
    }
    let allocation = process()?
        .memory
        .remove(address, &[AllocationKind::Device])?;
    leave_pool(&allocation);
    let sent = stream.issue(&CuMemFreeAsync {
        addr: address,
        stream: stream.id,
    });
    memory::release(&allocation);
    sent
}

pub(crate) fn cuMemAllocManaged(place: Out<u64>, bytes: usize, flags: u32) -> CuResult {
    /// `CU_MEM_ATTACH_GLOBAL`, `CU_MEM_ATTACH_HOST`.
    const ATTACH: std::ops::RangeInclusive<u32> = 1..=2;
    if place.is_null() || !ATTACH.contains(&flags) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let context = context::current()?;
    let allocation = memory::take_host(context, bytes as u64, AllocationKind::Managed, flags)?;
    let record = CuMemAllocManaged {
        addr: allocation.start,
        bytes: allocation.reserved_bytes,
        flags,
    };
    tell(&allocation, |context| {
        context.session().send(context.id, &record)
    })?;
    crate::coherent::share_managed(&allocation)?;
    place.set(allocation.start)
}

/// What is left of the limit, and the limit.
pub(crate) fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> CuResult {
    let device = context::current()?.device;
    let left = device
        .limit_bytes
        .saturating_sub(device.used_bytes.load(Ordering::Relaxed));
    free.set(usize::try_from(left).unwrap_or(usize::MAX))?;
    total.set(usize::try_from(device.limit_bytes).unwrap_or(usize::MAX))
}

pub(crate) fn cuMemGetAddressRange_v2(base: Out<u64>, size: Out<usize>, address: u64) -> CuResult {
    context::current()?;
    let allocation = process()?.memory.find(address).ok_or(CuStatus::NOT_FOUND)?;
    base.set_if(allocation.start);
    size.set_if(usize::try_from(allocation.bytes).unwrap_or(usize::MAX));
    Ok(())
}
