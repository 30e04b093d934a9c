//! Occupancy questions.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};

use super::function;
use crate::abi::CUlaunchConfig;
use crate::attributes::Attribute;
use crate::context;
use crate::occupancy;
use crate::ptr::{In, Out, call_block_size_function};

pub(crate) fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    count: Out<i32>,
    handle: u64,
    block_size: i32,
    dynamic_bytes: usize,
) -> CuResult {
    let function = function(handle)?;
    let device = context::current()?.device;
    count.set(occupancy::blocks_per_multiprocessor(
        device,
        function.info()?,
        block_size,
        dynamic_bytes,
    )?)
}

pub(crate) fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    count: Out<i32>,
    handle: u64,
    block_size: i32,
    dynamic_bytes: usize,
    flags: u32,
) -> CuResult {
    // CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE concerns Maxwell's cache only.
    if flags > 1 {
        return Err(CuStatus::INVALID_VALUE);
    }
    cuOccupancyMaxActiveBlocksPerMultiprocessor(count, handle, block_size, dynamic_bytes)
}

pub(crate) fn cuOccupancyMaxPotentialBlockSize(
    grid: Out<i32>,
    block: Out<i32>,
    handle: u64,
    shared_of_block: usize,
    dynamic_bytes: usize,
    limit: i32,
) -> CuResult {
    let function = function(handle)?;
    let device = context::current()?.device;
    let shared = |size: i32| {
        if shared_of_block == 0 {
            dynamic_bytes
        } else {
            call_block_size_function(shared_of_block, size)
        }
    };
    let (best_grid, best_block) =
        occupancy::best_block_size(device, function.info()?, shared, limit)?;
    grid.set(best_grid)?;
    block.set(best_block)
}

pub(crate) fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: Out<i32>,
    block: Out<i32>,
    handle: u64,
    shared_of_block: usize,
    dynamic_bytes: usize,
    limit: i32,
    flags: u32,
) -> CuResult {
    if flags > 1 {
        return Err(CuStatus::INVALID_VALUE);
    }
    cuOccupancyMaxPotentialBlockSize(grid, block, handle, shared_of_block, dynamic_bytes, limit)
}

pub(crate) fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: Out<usize>,
    handle: u64,
    blocks: i32,
    block_size: i32,
) -> CuResult {
    let function = function(handle)?;
    let device = context::current()?.device;
    bytes.set(occupancy::dynamic_shared_available(
        device,
        function.info()?,
        blocks,
        block_size,
    )?)
}

/// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`.
const CLUSTER_DIMENSION: u32 = 4;
/// Blocks of a cluster that every device with clusters can hold (CUDA programming guide).
const PORTABLE_CLUSTER: i32 = 8;

fn cluster_blocks(config: &CUlaunchConfig) -> CuResult<i32> {
    for attribute in super::launch_attributes(config)? {
        if attribute.id == CLUSTER_DIMENSION {
            let axis = |at: usize| {
                let bytes = attribute
                    .value
                    .get(at * 4..at * 4 + 4)
                    .and_then(|bytes| bytes.try_into().ok());
                bytes.map_or(1, u32::from_le_bytes).max(1)
            };
            let blocks = axis(0).checked_mul(axis(1));
            let blocks = blocks.and_then(|blocks| blocks.checked_mul(axis(2)));
            let blocks = blocks.and_then(|blocks| i32::try_from(blocks).ok());
            return blocks.ok_or(CuStatus::INVALID_VALUE);
        }
    }
    Ok(1)
}

pub(crate) fn cuOccupancyMaxActiveClusters(
    count: Out<i32>,
    handle: u64,
    config: In<CUlaunchConfig>,
) -> CuResult {
    let config = config.get()?;
    let device = context::current()?.device;
    let [x, y, z] = config.blockDim;
    let threads = i32::try_from(x.saturating_mul(y).saturating_mul(z))
        .map_err(|_| CuStatus::INVALID_VALUE)?;
    let function = function(handle)?;
    let blocks = occupancy::blocks_per_multiprocessor(
        device,
        function.info()?,
        threads,
        config.sharedMemBytes as usize,
    )?;
    let on_device = blocks.saturating_mul(device.attribute(Attribute::MultiprocessorCount));
    count.set(on_device / cluster_blocks(&config)?.max(1))
}

pub(crate) fn cuOccupancyMaxPotentialClusterSize(
    size: Out<i32>,
    handle: u64,
    _config: In<CUlaunchConfig>,
) -> CuResult {
    function(handle)?;
    size.set(PORTABLE_CLUSTER)
}
