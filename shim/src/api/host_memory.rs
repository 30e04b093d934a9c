//! Pinned host memory: pages of this process, at addresses that the server can use too.
#![forbid(unsafe_code)]

use std::ffi::c_void;

use farcall_marshal::status::{CuResult, CuStatus};

use crate::coherent;
use crate::context;
use crate::landing;
use crate::memory::{self, Allocation, AllocationKind};
use crate::process::process;
use crate::ptr::{HostPtr, Out};

/// `CU_MEMHOSTALLOC_PORTABLE | _DEVICEMAP | _WRITECOMBINED`.
const ALLOC_FLAGS: u32 = 7;
/// `CU_MEMHOSTREGISTER_PORTABLE | _DEVICEMAP | _IOMEMORY | _READ_ONLY`.
const REGISTER_FLAGS: u32 = 15;
const PORTABLE: u32 = 1;

pub(crate) fn cuMemHostAlloc(place: Out<*mut c_void>, bytes: usize, flags: u32) -> CuResult {
    if place.is_null() || flags & !ALLOC_FLAGS != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let context = context::current()?;
    let allocation = memory::take_host(context, bytes as u64, AllocationKind::Host, flags)?;
    process()?.memory.insert(allocation);
    place.set(HostPtr::from_address(allocation.start).raw().cast())
}

pub(crate) fn cuMemAllocHost_v2(place: Out<*mut c_void>, bytes: usize) -> CuResult {
    cuMemHostAlloc(place, bytes, PORTABLE)
}

pub(crate) fn cuMemFreeHost(at: HostPtr) -> CuResult {
    if at.is_null() {
        return Ok(());
    }
    let allocation = process()?
        .memory
        .remove(at.address(), &[AllocationKind::Host])?;
    // Copies into it may still be on their way.
    let landed = process()?.await_writers(allocation.start, allocation.reserved_bytes);
    coherent::unshare(&allocation)?;
    memory::release(&allocation);
    landed
}

pub(crate) fn cuMemHostRegister_v2(at: HostPtr, bytes: usize, flags: u32) -> CuResult {
    if at.is_null() || bytes == 0 || flags & !REGISTER_FLAGS != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let context = context::current()?;
    let known = &process()?.memory;
    let end = at.address().checked_add(bytes as u64);
    if known.overlaps(at.address(), end.ok_or(CuStatus::INVALID_VALUE)?) {
        return Err(CuStatus::HOST_MEMORY_ALREADY_REGISTERED);
    }
    let mut registered = Allocation {
        start: at.address(),
        bytes: bytes as u64,
        reserved_bytes: bytes as u64,
        kind: AllocationKind::Registered,
        context,
        flags,
        serial: 0,
        pool: 0,
        twin: 0,
    };
    // Without addresses for it copies work all the same.
    if let Ok(alias) = memory::take_alias(&registered) {
        registered.twin = alias.start;
        known.insert(alias);
    }
    known.insert(registered);
    landing::lend(&context.session().endpoint, at, bytes as u64);
    Ok(())
}

pub(crate) use cuMemHostRegister_v2 as cuMemHostRegister;

pub(crate) fn cuMemHostUnregister(at: HostPtr) -> CuResult {
    let removed = process()?
        .memory
        .remove(at.address(), &[AllocationKind::Registered]);
    let allocation = removed.map_err(|_| CuStatus::HOST_MEMORY_NOT_REGISTERED)?;
    let session = allocation.context.session();
    let landed = process()?.await_writers(allocation.start, allocation.bytes);
    landing::take_back(&session.endpoint, at);
    if let Ok(alias) = process()?
        .memory
        .remove(allocation.twin, &[AllocationKind::Alias])
        && !coherent::unshare(&alias)?
    {
        memory::give_alias(&alias);
    }
    landed
}

/// Memory that this library allocated has one address on both sides, registered memory one on each
/// (`CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM` says so).
pub(crate) fn cuMemHostGetDevicePointer_v2(place: Out<u64>, at: HostPtr, flags: u32) -> CuResult {
    if flags != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let allocation = process()?
        .memory
        .find(at.address())
        .filter(|allocation| !allocation.is_on_device());
    let allocation = allocation.ok_or(CuStatus::INVALID_VALUE)?;
    coherent::share(&allocation)?;
    place.set(allocation.device_address(at.address()))
}

pub(crate) fn cuMemHostGetFlags(flags: Out<u32>, at: HostPtr) -> CuResult {
    let allocation = process()?
        .memory
        .find(at.address())
        .filter(|allocation| allocation.kind == AllocationKind::Host);
    // Unified addressing maps every pinned allocation (cuda.h).
    const DEVICEMAP: u32 = 2;
    flags.set(allocation.ok_or(CuStatus::INVALID_VALUE)?.flags | DEVICEMAP)
}
