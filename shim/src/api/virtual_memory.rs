//! Virtual memory management: answered here, told to the server one way.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};

use crate::abi::{CUmemAccessDesc, CUmemAllocationProp, CUmemLocation};
use crate::process::{Device, process};
use crate::ptr::{HostPtr, In, Out};
use crate::virtual_memory::GRANULARITY;

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
const PINNED: u32 = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const LOCATION_DEVICE: u32 = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`: may be asked for, as PyTorch always does; it is the export that fails.
const POSIX_FD: u32 = 1;
/// `CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED`.
const SUPPORTED: usize = 102;

pub(crate) fn cuMemAddressReserve(
    place: Out<u64>,
    bytes: usize,
    align: usize,
    _hint: u64,
    flags: u64,
) -> CuResult {
    let is_power = align == 0 || align.is_power_of_two();
    let bytes = bytes as u64;
    if place.is_null()
        || flags != 0
        || bytes == 0
        || !bytes.is_multiple_of(GRANULARITY)
        || !is_power
    {
        return Err(CuStatus::INVALID_VALUE);
    }
    place.set(process()?.space.reserve(bytes, align as u64)?)
}

pub(crate) fn cuMemAddressFree(start: u64, bytes: usize) -> CuResult {
    process()?.space.unreserve(start, bytes as u64)
}

/// The device that memory with these properties is on.
fn device_of(properties: &CUmemAllocationProp) -> CuResult<&'static Device> {
    // Compression, RDMA and usage are hints; words that are reserved now mean something to a newer caller.
    let [.., a, b, c, d] = properties.allocFlags;
    let is_known = properties.type_ == PINNED
        && properties.location.type_ == LOCATION_DEVICE
        && [a, b, c, d] == [0; 4];
    if !is_known {
        return Err(CuStatus::INVALID_VALUE);
    }
    if properties.requestedHandleTypes & !POSIX_FD != 0 {
        return Err(CuStatus::NOT_SUPPORTED);
    }
    let device = process()?.device(properties.location.id)?;
    match device.attribute_number(SUPPORTED) {
        Ok(1..) if !device.session.places_memory() => Ok(device),
        _ => Err(CuStatus::NOT_SUPPORTED),
    }
}

pub(crate) fn cuMemCreate(
    place: Out<u64>,
    bytes: usize,
    properties: In<CUmemAllocationProp>,
    flags: u64,
) -> CuResult {
    let properties = properties.get()?;
    let device = device_of(&properties)?;
    let bytes = bytes as u64;
    if place.is_null() || flags != 0 || bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
        return Err(CuStatus::INVALID_VALUE);
    }
    place.set(process()?.space.create(device, bytes, properties)?)
}

pub(crate) fn cuMemRelease(handle: u64) -> CuResult {
    process()?.space.release(handle)
}

pub(crate) fn cuMemMap(
    start: u64,
    bytes: usize,
    offset: usize,
    handle: u64,
    flags: u64,
) -> CuResult {
    if flags != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    process()?
        .space
        .map(start, bytes as u64, offset as u64, handle)
}

pub(crate) fn cuMemUnmap(start: u64, bytes: usize) -> CuResult {
    process()?.space.unmap(start, bytes as u64)
}

pub(crate) fn cuMemSetAccess(
    start: u64,
    bytes: usize,
    list: In<CUmemAccessDesc>,
    count: usize,
) -> CuResult {
    let process = process()?;
    if count == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    for index in 0..count {
        let entry = list.get_at(index)?;
        if entry.location.type_ != LOCATION_DEVICE || !matches!(entry.flags, 0 | 1 | 3) {
            return Err(CuStatus::INVALID_VALUE);
        }
        let device = process.device(entry.location.id)?;
        process
            .space
            .set_access(start, bytes as u64, device, entry.flags)?;
    }
    Ok(())
}

pub(crate) fn cuMemGetAccess(flags: Out<u64>, location: In<CUmemLocation>, at: u64) -> CuResult {
    let process = process()?;
    let location = location.get()?;
    if location.type_ != LOCATION_DEVICE {
        return Err(CuStatus::INVALID_VALUE);
    }
    let device = process.device(location.id)?;
    flags.set(u64::from(process.space.access(at, device.ordinal)?))
}

pub(crate) fn cuMemGetAllocationGranularity(
    place: Out<usize>,
    properties: In<CUmemAllocationProp>,
    option: u32,
) -> CuResult {
    // CU_MEM_ALLOC_GRANULARITY_MINIMUM and _RECOMMENDED.
    if option > 1 {
        return Err(CuStatus::INVALID_VALUE);
    }
    device_of(&properties.get()?)?;
    place.set(usize::try_from(GRANULARITY).unwrap_or(0))
}

pub(crate) fn cuMemGetAllocationPropertiesFromHandle(
    place: Out<CUmemAllocationProp>,
    handle: u64,
) -> CuResult {
    place.set(process()?.space.physical(handle)?.properties)
}

pub(crate) fn cuMemRetainAllocationHandle(place: Out<u64>, address: HostPtr) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    place.set(process()?.space.retain_at(address.address())?)
}
