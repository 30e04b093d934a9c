//! Memory pools: attributes and accounting on the client; the device's own pools serve the allocations.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use farcall_marshal::status::{CuResult, CuStatus};

use crate::abi::{CUmemAccessDesc, CUmemLocation, CUmemPoolProps};
use crate::pool::Pool;
use crate::process::{Device, process};
use crate::ptr::{HostPtr, In, Out};

/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const LOCATION_DEVICE: u32 = 1;
/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
const PINNED: u32 = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: u32 = 3;

impl Device {
    /// Handle of the pool that `cuMemAllocAsync` takes from.
    pub(crate) fn current_pool(&self) -> u64 {
        match self.chosen_pool.load(Ordering::Relaxed) {
            0 => self.pool,
            chosen => chosen,
        }
    }
}

pub(crate) fn cuDeviceGetDefaultMemPool(place: Out<u64>, ordinal: i32) -> CuResult {
    place.set(process()?.device(ordinal)?.pool)
}

pub(crate) fn cuDeviceGetMemPool(place: Out<u64>, ordinal: i32) -> CuResult {
    place.set(process()?.device(ordinal)?.current_pool())
}

pub(crate) fn cuDeviceSetMemPool(ordinal: i32, pool: u64) -> CuResult {
    let process = process()?;
    let device = process.device(ordinal)?;
    if process.pools.get(pool)?.device != device.ordinal {
        return Err(CuStatus::INVALID_VALUE);
    }
    device.chosen_pool.store(pool, Ordering::Relaxed);
    Ok(())
}

/// The device of a location that pools are asked for.
fn device_at(location: Out<CUmemLocation>, kind: u32) -> CuResult<&'static Device> {
    /// `CU_MEM_ALLOCATION_TYPE_PINNED` and `_MANAGED`.
    const MANAGED: u32 = 2;
    let location = location.get()?;
    match (location.type_, kind) {
        (LOCATION_DEVICE, 1) => process()?.device(location.id),
        // Pools of the host or of managed memory there are none.
        (1..=4, 1 | MANAGED) => Err(CuStatus::NOT_SUPPORTED),
        _ => Err(CuStatus::INVALID_VALUE),
    }
}

pub(crate) fn cuMemGetDefaultMemPool(
    place: Out<u64>,
    location: Out<CUmemLocation>,
    kind: u32,
) -> CuResult {
    place.set(device_at(location, kind)?.pool)
}

pub(crate) fn cuMemGetMemPool(
    place: Out<u64>,
    location: Out<CUmemLocation>,
    kind: u32,
) -> CuResult {
    place.set(device_at(location, kind)?.current_pool())
}

pub(crate) fn cuMemSetMemPool(location: Out<CUmemLocation>, kind: u32, pool: u64) -> CuResult {
    let device = device_at(location, kind)?;
    cuDeviceSetMemPool(device.ordinal.cast_signed(), pool)
}

pub(crate) fn cuMemPoolCreate(place: Out<u64>, props: In<CUmemPoolProps>) -> CuResult {
    let process = process()?;
    let props = props.get()?;
    // The first of them is a hint about RDMA since CUDA 13; others that are reserved now mean something to a newer caller.
    let is_known =
        props.allocType == PINNED && props.reserved.iter().skip(1).all(|byte| *byte == 0);
    if props.location.type_ != LOCATION_DEVICE || !is_known {
        return Err(CuStatus::INVALID_VALUE);
    }
    if props.handleTypes != 0 {
        // Sharing between processes does not reach another host.
        return Err(CuStatus::NOT_SUPPORTED);
    }
    let device = process.device(props.location.id)?;
    let handle = process.pools.reserve();
    process.pools.insert(
        handle,
        Arc::new(Pool::new(device.ordinal, props.maxSize as u64)),
    );
    place.set(handle)
}

pub(crate) fn cuMemPoolDestroy(pool: u64) -> CuResult {
    let process = process()?;
    if process.devices.iter().any(|device| device.pool == pool) {
        return Err(CuStatus::INVALID_VALUE);
    }
    process.pools.remove(pool)?;
    for device in &process.devices {
        let _ = device
            .chosen_pool
            .compare_exchange(pool, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
    Ok(())
}

/// `CUmemPool_attribute`: 1..3 reuse policies (int), 4 release threshold, 5 and 6 reserved, 7 and 8 used (u64).
mod attribute {
    pub(super) const POLICIES: std::ops::RangeInclusive<u32> = 1..=3;
    pub(super) const RELEASE_THRESHOLD: u32 = 4;
    pub(super) const RESERVED_CURRENT: u32 = 5;
    pub(super) const RESERVED_HIGH: u32 = 6;
    pub(super) const USED_CURRENT: u32 = 7;
    pub(super) const USED_HIGH: u32 = 8;
}

pub(crate) fn cuMemPoolGetAttribute(pool: u64, attribute: u32, value: HostPtr) -> CuResult {
    let pool = process()?.pools.get(pool)?;
    let account = |number: u64| value.out::<u64>().set(number);
    match attribute {
        a if attribute::POLICIES.contains(&a) => {
            let policy = pool.attributes.lock().get(a as usize).copied().unwrap_or(0);
            value.out::<i32>().set(i32::from(policy != 0))
        }
        attribute::RELEASE_THRESHOLD => value.out::<u64>().set(pool.attributes.lock()[4]),
        attribute::RESERVED_CURRENT => account(pool.accounts().reserved),
        attribute::RESERVED_HIGH => account(pool.accounts().reserved_high),
        attribute::USED_CURRENT => account(pool.accounts().used),
        attribute::USED_HIGH => account(pool.accounts().used_high),
        _ => Err(CuStatus::INVALID_VALUE),
    }
}

pub(crate) fn cuMemPoolSetAttribute(pool: u64, attribute: u32, value: HostPtr) -> CuResult {
    let pool = process()?.pools.get(pool)?;
    match attribute {
        a if attribute::POLICIES.contains(&a) => {
            let policy = value.input::<i32>().get()?;
            if let Some(slot) = pool.attributes.lock().get_mut(a as usize) {
                *slot = u64::from(policy != 0);
            }
            Ok(())
        }
        attribute::RELEASE_THRESHOLD => {
            pool.attributes.lock()[4] = value.input::<u64>().get()?;
            Ok(())
        }
        attribute::RESERVED_HIGH | attribute::USED_HIGH if value.input::<u64>().get()? == 0 => {
            pool.forget_high(attribute == attribute::RESERVED_HIGH);
            Ok(())
        }
        _ => Err(CuStatus::INVALID_VALUE),
    }
}

/// Freed memory goes back at once: only the accounts say that it did not.
pub(crate) fn cuMemPoolTrimTo(pool: u64, keep_bytes: usize) -> CuResult {
    process()?.pools.get(pool)?.trim(keep_bytes as u64);
    Ok(())
}

pub(crate) fn cuMemPoolSetAccess(pool: u64, access: In<CUmemAccessDesc>, count: usize) -> CuResult {
    let process = process()?;
    let pool = process.pools.get(pool)?;
    for index in 0..count {
        let access = access.get_at(index)?;
        let device = process.device(access.location.id)?;
        if access.location.type_ != LOCATION_DEVICE
            || (device.ordinal == pool.device && access.flags != READ_WRITE)
        {
            return Err(CuStatus::INVALID_VALUE);
        }
    }
    Ok(())
}

pub(crate) fn cuMemPoolGetAccess(
    flags: Out<u32>,
    pool: u64,
    location: Out<CUmemLocation>,
) -> CuResult {
    let process = process()?;
    let pool = process.pools.get(pool)?;
    let device = process.device(location.get()?.id)?;
    flags.set(if device.ordinal == pool.device {
        READ_WRITE
    } else {
        0
    })
}
