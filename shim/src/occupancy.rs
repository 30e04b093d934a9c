//! How many blocks of a kernel fit on a multiprocessor.
//!
//! Source of the rules and of the allocation units: NVIDIA's CUDA occupancy calculator (compute capability 7 to
//! 12): a block takes whole warps, registers in units of 256 per warp, shared memory in units of 128 bytes on top of
//! what the system reserves.
#![forbid(unsafe_code)]

use farcall_marshal::image::KernelInfo;
use farcall_marshal::status::{CuResult, CuStatus};

use crate::attributes::Attribute;
use crate::process::Device;

const REGISTER_UNIT: u32 = 256;
const SHARED_UNIT: u32 = 128;
/// No larger block is tried, whatever the server says (1024 on every GPU so far).
const BLOCK_MAX: i32 = 1 << 16;
/// What PTX is taken to need before it is compiled.
const REGISTERS_UNKNOWN: u32 = 32;

/// Registers of a thread, for all that the client knows.
pub(crate) fn registers(kernel: &KernelInfo) -> u32 {
    match kernel.resources.registers {
        0 => REGISTERS_UNKNOWN,
        known => known,
    }
}

/// Blocks of `block_size` threads with `dynamic_shared_bytes` that run on one multiprocessor at once.
pub(crate) fn blocks_per_multiprocessor(
    device: &Device,
    kernel: &KernelInfo,
    block_size: i32,
    dynamic_shared_bytes: usize,
) -> CuResult<i32> {
    let threads = u32::try_from(block_size)
        .ok()
        .filter(|threads| *threads > 0)
        .ok_or(CuStatus::INVALID_VALUE)?;
    let dynamic = u32::try_from(dynamic_shared_bytes).map_err(|_| CuStatus::INVALID_VALUE)?;
    if threads > device.count(Attribute::MaxThreadsPerBlock)
        || kernel.max_threads.is_some_and(|max| threads > max)
    {
        return Ok(0);
    }
    let warp = device.count(Attribute::WarpSize).max(1);
    let warps = threads.div_ceil(warp);
    // The attributes are the server's word: the largest numbers are not to overflow.
    let by_threads =
        device.count(Attribute::MaxThreadsPerMultiprocessor) / warps.saturating_mul(warp);
    let registers = registers(kernel);
    let registers_per_warp = registers
        .saturating_mul(warp)
        .checked_next_multiple_of(REGISTER_UNIT);
    let registers_per_block = registers_per_warp.unwrap_or(u32::MAX).saturating_mul(warps);
    let by_registers = if registers_per_block > device.count(Attribute::MaxRegistersPerBlock) {
        0
    } else {
        device.count(Attribute::MaxRegistersPerMultiprocessor) / registers_per_block.max(1)
    };
    let shared = shared_per_block(device, kernel, dynamic).ok_or(CuStatus::INVALID_VALUE)?;
    let by_shared = device.count(Attribute::MaxSharedMemoryPerMultiprocessor) / shared.max(1);
    let limit = device.count(Attribute::MaxBlocksPerMultiprocessor);
    let blocks = by_threads
        .min(by_registers)
        .min(by_shared)
        .min(if limit == 0 { u32::MAX } else { limit });
    Ok(i32::try_from(blocks).unwrap_or(0))
}

fn shared_per_block(device: &Device, kernel: &KernelInfo, dynamic: u32) -> Option<u32> {
    let reserved = device.count(Attribute::ReservedSharedMemoryPerBlock);
    kernel
        .resources
        .shared_static_bytes
        .checked_add(dynamic)?
        .checked_add(reserved)?
        .checked_next_multiple_of(SHARED_UNIT)
}

/// The most dynamic shared memory with which `blocks` blocks of `block_size` threads still fit.
pub(crate) fn dynamic_shared_available(
    device: &Device,
    kernel: &KernelInfo,
    blocks: i32,
    block_size: i32,
) -> CuResult<usize> {
    let blocks = u32::try_from(blocks)
        .ok()
        .filter(|blocks| *blocks > 0)
        .ok_or(CuStatus::INVALID_VALUE)?;
    let fits = blocks_per_multiprocessor(device, kernel, block_size, 0)?;
    if u32::try_from(fits).unwrap_or(0) < blocks {
        return Err(CuStatus::INVALID_VALUE);
    }
    let per_block =
        device.count(Attribute::MaxSharedMemoryPerMultiprocessor) / blocks / SHARED_UNIT
            * SHARED_UNIT;
    let taken = device
        .count(Attribute::ReservedSharedMemoryPerBlock)
        .saturating_add(kernel.resources.shared_static_bytes);
    let limit = device
        .count(Attribute::MaxSharedMemoryPerBlockOptin)
        .saturating_sub(kernel.resources.shared_static_bytes);
    Ok(per_block.saturating_sub(taken).min(limit) as usize)
}

/// Block size with the most threads on a multiprocessor, and the grid that fills the device with it.
pub(crate) fn best_block_size(
    device: &Device,
    kernel: &KernelInfo,
    shared_bytes: impl Fn(i32) -> usize,
    block_size_limit: i32,
) -> CuResult<(i32, i32)> {
    let warp = device.attribute(Attribute::WarpSize).max(1);
    let max = kernel
        .max_threads
        .and_then(|max| i32::try_from(max).ok())
        .unwrap_or(i32::MAX);
    let max = max.min(
        device
            .attribute(Attribute::MaxThreadsPerBlock)
            .min(BLOCK_MAX),
    );
    let max = if block_size_limit > 0 {
        max.min(block_size_limit)
    } else {
        max
    };
    let mut best = (0, 0, 0);
    let mut size = max / warp * warp;
    if size == 0 {
        size = max;
    }
    while size > 0 {
        let blocks = blocks_per_multiprocessor(device, kernel, size, shared_bytes(size))?;
        let threads = blocks.saturating_mul(size);
        if threads > best.0 {
            best = (threads, size, blocks);
        }
        size -= warp.min(size);
    }
    Ok((
        best.2
            .saturating_mul(device.attribute(Attribute::MultiprocessorCount)),
        best.1,
    ))
}
