//! Launches as CUDA 3 had them: shape and parameters are set on the function first.
#![forbid(unsafe_code)]

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};

use super::{function, launch_block};
use crate::ptr::HostPtr;

/// What was set on a function.
#[derive(Default)]
pub(crate) struct Prepared {
    block: [u32; 3],
    shared_bytes: u32,
    params: Vec<u8>,
}

fn prepare(handle: u64, change: impl FnOnce(&mut Prepared)) -> CuResult {
    change(&mut function(handle)?.prepared.lock());
    Ok(())
}

pub(crate) fn cuFuncSetBlockShape(handle: u64, x: i32, y: i32, z: i32) -> CuResult {
    let edge = |edge: i32| u32::try_from(edge).map_err(|_| CuStatus::INVALID_VALUE);
    let block = [edge(x)?, edge(y)?, edge(z)?];
    prepare(handle, |prepared| prepared.block = block)
}

pub(crate) fn cuFuncSetSharedSize(handle: u64, bytes: u32) -> CuResult {
    prepare(handle, |prepared| prepared.shared_bytes = bytes)
}

pub(crate) fn cuParamSetSize(handle: u64, bytes: u32) -> CuResult {
    let wanted = function(handle)?.info()?.param_bytes;
    if bytes > wanted.next_multiple_of(16) {
        return Err(CuStatus::INVALID_VALUE);
    }
    prepare(handle, |prepared| prepared.params.resize(bytes as usize, 0))
}

fn set(handle: u64, offset: i32, bytes: &[u8]) -> CuResult {
    let offset = usize::try_from(offset).map_err(|_| CuStatus::INVALID_VALUE)?;
    let end = offset.checked_add(bytes.len());
    let room = function(handle)?.info()?.param_bytes.next_multiple_of(16) as usize;
    let end = end
        .filter(|end| *end <= room)
        .ok_or(CuStatus::INVALID_VALUE)?;
    prepare(handle, |prepared| {
        if prepared.params.len() < end {
            prepared.params.resize(end, 0);
        }
        if let Some(place) = prepared.params.get_mut(offset..end) {
            place.copy_from_slice(bytes);
        }
    })
}

pub(crate) fn cuParamSeti(handle: u64, offset: i32, value: u32) -> CuResult {
    set(handle, offset, &value.to_le_bytes())
}

pub(crate) fn cuParamSetf(handle: u64, offset: i32, value: f32) -> CuResult {
    set(handle, offset, &value.to_le_bytes())
}

pub(crate) fn cuParamSetv(handle: u64, offset: i32, from: HostPtr, bytes: u32) -> CuResult {
    set(handle, offset, from.bytes(bytes as usize)?)
}

pub(crate) fn cuLaunch(handle: u64) -> CuResult {
    cuLaunchGridAsync(handle, 1, 1, 0)
}

pub(crate) fn cuLaunchGrid(handle: u64, width: i32, height: i32) -> CuResult {
    cuLaunchGridAsync(handle, width, height, 0)
}

pub(crate) fn cuLaunchGridAsync(
    handle: u64,
    width: i32,
    height: i32,
    stream_handle: u64,
) -> CuResult {
    let edge = |edge: i32| u32::try_from(edge).map_err(|_| CuStatus::INVALID_VALUE);
    let grid = [edge(width)?, edge(height)?, 1];
    let function = function(handle)?;
    let prepared = function.prepared.lock();
    let mut block = prepared.params.clone();
    block.resize(function.info()?.param_bytes as usize, 0);
    launch_block(
        StreamMode::Legacy,
        &function,
        grid,
        prepared.block,
        prepared.shared_bytes,
        stream_handle,
        &block,
    )
}
