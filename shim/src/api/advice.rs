//! Hints about managed memory: kept for the program to read back. Pages move when they are used, whatever was advised.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use super::stream;
use crate::abi::CUmemLocation;
use crate::memory::{Allocation, AllocationKind};
use crate::process::process;
use crate::ptr::{HostPtr, Out};

/// `CU_DEVICE_CPU` and `CU_DEVICE_INVALID`.
const CPU: i32 = -1;
const NOWHERE: i32 = -2;
/// `CUmemLocationType`.
const LOCATION_INVALID: u32 = 0;
const LOCATION_DEVICE: u32 = 1;
const LOCATION_HOST: u32 = 2;

/// What was advised about an allocation.
#[derive(Clone)]
struct Advice {
    is_read_mostly: bool,
    preferred: i32,
    accessed_by: Vec<i32>,
    last_prefetch: i32,
}

impl Default for Advice {
    fn default() -> Self {
        Self {
            is_read_mostly: false,
            preferred: NOWHERE,
            accessed_by: Vec::new(),
            last_prefetch: NOWHERE,
        }
    }
}

/// By the number of the allocation, which none has twice.
static KNOWN: Mutex<Option<HashMap<u64, Advice>>> = Mutex::new(None);

fn change(allocation: &Allocation, change: impl FnOnce(&mut Advice)) {
    let mut known = KNOWN.lock();
    change(
        known
            .get_or_insert_default()
            .entry(allocation.serial)
            .or_default(),
    );
}

/// Managed memory that has these addresses.
fn managed(address: u64, bytes: usize) -> CuResult<Allocation> {
    let allocation = process()?
        .memory
        .covering(address, bytes as u64)
        .filter(|allocation| allocation.kind == AllocationKind::Managed && bytes > 0);
    allocation.ok_or(CuStatus::INVALID_VALUE)
}

/// A place as cuda.h numbered it before it had types.
fn number(location: CUmemLocation) -> CuResult<i32> {
    match location.type_ {
        LOCATION_DEVICE => process()?.device(location.id).map(|_| location.id),
        LOCATION_HOST => Ok(CPU),
        // Nodes of the host are not told apart.
        3 | 4 => Ok(CPU),
        _ => Err(CuStatus::INVALID_VALUE),
    }
}

fn check_number(place: i32) -> CuResult {
    if place == CPU {
        return Ok(());
    }
    process()?.device(place).map(|_| ())
}

fn advise(address: u64, bytes: usize, advice: u32, place: i32) -> CuResult {
    let allocation = managed(address, bytes)?;
    // Whether pages are mostly read, and where they are no longer preferred, is independent of the place.
    if matches!(advice, 3 | 5 | 6) {
        check_number(place)?;
    }
    match advice {
        1 => change(&allocation, |known| known.is_read_mostly = true),
        2 => change(&allocation, |known| known.is_read_mostly = false),
        3 => change(&allocation, |known| known.preferred = place),
        4 => change(&allocation, |known| known.preferred = NOWHERE),
        5 => change(&allocation, |known| {
            known.accessed_by.retain(|other| *other != place);
            known.accessed_by.push(place);
        }),
        6 => change(&allocation, |known| {
            known.accessed_by.retain(|other| *other != place);
        }),
        _ => return Err(CuStatus::INVALID_VALUE),
    }
    Ok(())
}

pub(crate) fn cuMemAdvise(address: u64, bytes: usize, advice: u32, place: i32) -> CuResult {
    advise(address, bytes, advice, place)
}

pub(crate) fn cuMemAdvise_v2(
    address: u64,
    bytes: usize,
    advice: u32,
    location: CUmemLocation,
) -> CuResult {
    let place = if matches!(advice, 3 | 5 | 6) {
        number(location)?
    } else {
        CPU
    };
    advise(address, bytes, advice, place)
}

pub(crate) fn cuMemPrefetchAsync(
    mode: StreamMode,
    address: u64,
    bytes: usize,
    place: i32,
    handle: u64,
) -> CuResult {
    stream(mode, handle)?;
    let allocation = managed(address, bytes)?;
    check_number(place)?;
    change(&allocation, |known| known.last_prefetch = place);
    Ok(())
}

pub(crate) fn cuMemPrefetchAsync_v2(
    mode: StreamMode,
    address: u64,
    bytes: usize,
    location: CUmemLocation,
    flags: u32,
    handle: u64,
) -> CuResult {
    if flags != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    cuMemPrefetchAsync(mode, address, bytes, number(location)?, handle)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuMemPrefetchBatchAsync(
    mode: StreamMode,
    addresses: Out<u64>,
    sizes: Out<usize>,
    count: usize,
    locations: Out<CUmemLocation>,
    indices: Out<usize>,
    location_count: usize,
    flags: u64,
    handle: u64,
) -> CuResult {
    if flags != 0 || count == 0 || location_count == 0 || location_count > count {
        return Err(CuStatus::INVALID_VALUE);
    }
    let mut at = 0;
    for index in 0..count {
        if at + 1 < location_count && indices.get_at(at + 1)? <= index {
            at += 1;
        }
        let place = number(locations.get_at(at)?)?;
        cuMemPrefetchAsync(
            mode,
            addresses.get_at(index)?,
            sizes.get_at(index)?,
            place,
            handle,
        )?;
    }
    Ok(())
}

/// Discarded bytes may be anything, what they were included.
pub(crate) fn cuMemDiscardBatchAsync(
    mode: StreamMode,
    addresses: Out<u64>,
    sizes: Out<usize>,
    count: usize,
    flags: u64,
    handle: u64,
) -> CuResult {
    if flags != 0 || count == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    stream(mode, handle)?;
    for index in 0..count {
        managed(addresses.get_at(index)?, sizes.get_at(index)?)?;
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuMemDiscardAndPrefetchBatchAsync(
    mode: StreamMode,
    addresses: Out<u64>,
    sizes: Out<usize>,
    count: usize,
    locations: Out<CUmemLocation>,
    indices: Out<usize>,
    location_count: usize,
    flags: u64,
    handle: u64,
) -> CuResult {
    cuMemPrefetchBatchAsync(
        mode,
        addresses,
        sizes,
        count,
        locations,
        indices,
        location_count,
        flags,
        handle,
    )
}

pub(crate) fn cuMemRangeGetAttribute(
    place: HostPtr,
    place_bytes: usize,
    attribute: u32,
    address: u64,
    bytes: usize,
) -> CuResult {
    let allocation = managed(address, bytes)?;
    let known = KNOWN.lock();
    let known = known
        .as_ref()
        .and_then(|known| known.get(&allocation.serial));
    let known = known.cloned().unwrap_or_default();
    let kind = |place: i32| match place {
        NOWHERE => LOCATION_INVALID,
        CPU => LOCATION_HOST,
        _ => LOCATION_DEVICE,
    };
    let id = |place: i32| if place < 0 { 0 } else { place };
    let value = match attribute {
        1 => i32::from(known.is_read_mostly),
        2 => known.preferred,
        3 => return list(place, place_bytes, &known.accessed_by),
        4 => known.last_prefetch,
        5 => kind(known.preferred).cast_signed(),
        6 => id(known.preferred),
        7 => kind(known.last_prefetch).cast_signed(),
        8 => id(known.last_prefetch),
        _ => return Err(CuStatus::INVALID_VALUE),
    };
    if place_bytes != 4 {
        return Err(CuStatus::INVALID_VALUE);
    }
    place.out::<i32>().set(value)
}

/// Devices, and `CU_DEVICE_INVALID` up to the end.
fn list(place: HostPtr, place_bytes: usize, devices: &[i32]) -> CuResult {
    if place_bytes == 0 || !place_bytes.is_multiple_of(4) || place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    for slot in 0..place_bytes / 4 {
        let device = devices.get(slot).copied().unwrap_or(NOWHERE);
        place.out::<i32>().set_at(slot, device);
    }
    Ok(())
}

pub(crate) fn cuMemRangeGetAttributes(
    places: Out<*mut c_void>,
    sizes: Out<usize>,
    attributes: Out<u32>,
    attribute_count: usize,
    address: u64,
    bytes: usize,
) -> CuResult {
    if attribute_count == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    for index in 0..attribute_count {
        cuMemRangeGetAttribute(
            places.pointer_at(index)?,
            sizes.get_at(index)?,
            attributes.get_at(index)?,
            address,
            bytes,
        )?;
    }
    Ok(())
}

/// Which stream uses managed memory: kernels of all streams see the same bytes here.
pub(crate) fn cuStreamAttachMemAsync(
    mode: StreamMode,
    handle: u64,
    address: u64,
    bytes: usize,
    flags: u32,
) -> CuResult {
    stream(mode, handle)?;
    let allocation = process()?
        .memory
        .find(address)
        .filter(|allocation| allocation.kind == AllocationKind::Managed)
        .ok_or(CuStatus::INVALID_VALUE)?;
    let is_whole = bytes == 0 || bytes as u64 == allocation.bytes;
    // CU_MEM_ATTACH_GLOBAL, _HOST, _SINGLE.
    if !matches!(flags, 1 | 2 | 4) || !is_whole || address != allocation.start {
        return Err(CuStatus::INVALID_VALUE);
    }
    Ok(())
}
