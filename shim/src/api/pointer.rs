//! What a pointer is: answered from the table of allocations.
#![forbid(unsafe_code)]

use std::ffi::c_void;

use farcall_marshal::status::{CuResult, CuStatus};

use crate::memory::{Allocation, AllocationKind};
use crate::process::process;
use crate::ptr::{HostPtr, Out};

/// `CUmemorytype`.
const MEMORY_HOST: u32 = 1;
const MEMORY_DEVICE: u32 = 2;
/// `cuPointerGetAttributes` for a pointer that is nobody's (cuda.h).
const NO_DEVICE: i32 = -2;

/// Value of an attribute, with its size in memory. Truth values take four bytes: programs, cudart and cuda-python
/// among them, pass an `int` that they did not clear.
enum Value {
    Word(u64),
    Half(u32),
}

impl Value {
    fn store(self, at: HostPtr) -> CuResult {
        match self {
            Self::Word(value) => at.out().set(value),
            Self::Half(value) => at.out().set(value),
        }
    }
}

fn value(attribute: u32, address: u64, allocation: &Allocation) -> CuResult<Value> {
    let is_device_memory = allocation.is_on_device() || allocation.kind == AllocationKind::Managed;
    Ok(match attribute {
        1 => Value::Word(allocation.context.handle),
        2 => Value::Half(if is_device_memory {
            MEMORY_DEVICE
        } else {
            MEMORY_HOST
        }),
        3 => Value::Word(allocation.device_address(address)),
        4 if !allocation.is_on_device() => Value::Word(allocation.host_address(address)),
        6 => Value::Half(1),
        7 => Value::Word(allocation.serial),
        8 => Value::Half(u32::from(allocation.kind == AllocationKind::Managed)),
        9 => Value::Half(allocation.context.device.ordinal),
        // As a driver says of memory of cuMemAlloc. NCCL takes any other for memory that it can ask a handle of.
        10 => Value::Half(u32::from(
            allocation.kind == AllocationKind::Device && allocation.pool == 0,
        )),
        11 => Value::Word(allocation.start),
        12 => Value::Word(allocation.bytes),
        13 => Value::Half(1),
        14 => Value::Word(0),
        // CU_POINTER_ATTRIBUTE_ACCESS_FLAG_PROT_READWRITE
        15 => Value::Half(3),
        16 if allocation.pool != 0 => Value::Word(allocation.pool),
        17 => Value::Word(allocation.start),
        18 => Value::Word(allocation.bytes),
        19 => Value::Word(allocation.serial),
        20 | 21 => Value::Half(0),
        _ => return Err(CuStatus::INVALID_VALUE),
    })
}

pub(crate) fn cuPointerGetAttribute(place: HostPtr, attribute: u32, address: u64) -> CuResult {
    let process = process()?;
    match process.memory.find(address) {
        Some(allocation) => value(attribute, address, &allocation)?.store(place),
        // Asking whether it can be shared or is mapped is allowed of any pointer.
        None if matches!(attribute, 10 | 13) => Value::Half(0).store(place),
        None => Err(CuStatus::INVALID_VALUE),
    }
}

/// Unlike the single question, attributes that do not apply come as zero.
pub(crate) fn cuPointerGetAttributes(
    count: u32,
    attributes: Out<u32>,
    places: Out<*mut c_void>,
    address: u64,
) -> CuResult {
    let allocation = process()?.memory.find(address);
    for index in 0..count as usize {
        let attribute = attributes.get_at(index)?;
        let place = places.pointer_at(index)?;
        let known = allocation
            .as_ref()
            .and_then(|allocation| value(attribute, address, allocation).ok());
        known.unwrap_or_else(|| absent(attribute)).store(place)?;
    }
    Ok(())
}

fn absent(attribute: u32) -> Value {
    match attribute {
        9 => Value::Half(NO_DEVICE.cast_unsigned()),
        2 | 6 | 8 | 10 | 13 | 15 | 20 | 21 => Value::Half(0),
        _ => Value::Word(0),
    }
}

pub(crate) fn cuPointerSetAttribute(_value: HostPtr, attribute: u32, address: u64) -> CuResult {
    const SYNC_MEMOPS: u32 = 6;
    if attribute != SYNC_MEMOPS || process()?.memory.find(address).is_none() {
        return Err(CuStatus::INVALID_VALUE);
    }
    // Synchronous copies are synchronous here anyway.
    Ok(())
}
