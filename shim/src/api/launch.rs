//! Kernel launches: checked against the device's limits here, sent one way.
#![forbid(unsafe_code)]

use std::ffi::c_void;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::image::KernelInfo;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuLaunchKernel, CuLaunchKernelEx};

use super::launch_direct::launch_direct;
use super::stream;
use crate::abi::{CUlaunchAttribute, CUlaunchConfig};
use crate::attributes::Attribute as A;
use crate::coherent;
use crate::context::{self, Context};
use crate::graph::KernelParts;
use crate::module::Function;
use crate::process::{Device, process};
use crate::ptr::{HostPtr, In, Out};
use crate::recent;
use crate::stream::Stream;

/// Bit of `flags` in the launch record.
const COOPERATIVE: u32 = 1;
/// Parameter blocks up to this size, which is nearly all of them, are put together in a small place on the stack:
/// it is cleared for every launch.
const SMALL_PARAMS: usize = 128;
/// The same for larger ones (4 KiB was every GPU's limit up to CUDA 12).
const STACK_PARAMS: usize = 4096;
/// The most that any kernel takes (CUDA 12.1, sm_70 and later).
const PARAMS_MAX: usize = 32_764;
const ATTRIBUTES_MAX: u32 = 64;

/// Grid, block and shared memory of a launch.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) shared_bytes: u32,
    pub(super) flags: u32,
}

// Into the exported function, which would else pass its eleven arguments on, most of them over the stack.
#[allow(clippy::too_many_arguments, clippy::inline_always)]
#[inline(always)]
pub(crate) fn cuLaunchKernel(
    mode: StreamMode,
    handle: u64,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream_handle: u64,
    params: Out<*mut c_void>,
    extra: Out<*mut c_void>,
) -> CuResult {
    let shape = Shape {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        shared_bytes,
        flags: 0,
    };
    let context = context::current()?;
    let own;
    let stream = match context.lasting_stream(mode, stream_handle) {
        Some(stream) => stream,
        None => {
            own = context.stream(mode, stream_handle)?;
            &*own
        }
    };
    let functions = &process()?.functions;
    // No closure around the launch: what it uses would be passed over the stack.
    let function = recent::FUNCTIONS.with(|recent| recent.take(functions, handle))?;
    let direct = if extra.is_null() {
        launch_direct(&function, stream, &shape, params)
    } else {
        Ok(false)
    };
    let result = match direct {
        Ok(true) => Ok(()),
        Ok(false) => launch(&function, stream, &shape, &[], params, extra),
        Err(status) => Err(status),
    };
    recent::FUNCTIONS.with(|recent| recent.put(handle, function));
    result
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuLaunchCooperativeKernel(
    mode: StreamMode,
    handle: u64,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream_handle: u64,
    params: Out<*mut c_void>,
) -> CuResult {
    let shape = Shape {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        shared_bytes,
        flags: COOPERATIVE,
    };
    let stream = stream(mode, stream_handle)?;
    let function = super::function(handle)?;
    check_cooperative(&function, stream.context.device, &shape)?;
    launch(
        &function,
        &stream,
        &shape,
        &[],
        params,
        HostPtr::from_address(0).out(),
    )
}

pub(crate) fn cuLaunchKernelEx(
    mode: StreamMode,
    config: In<CUlaunchConfig>,
    handle: u64,
    params: Out<*mut c_void>,
    extra: Out<*mut c_void>,
) -> CuResult {
    /// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE`.
    const ATTRIBUTE_COOPERATIVE: u32 = 2;
    let config = config.get()?;
    let attributes = launch_attributes(&config)?;
    let stream = stream(mode, config.hStream)?;
    let function = super::function(handle)?;
    let is_cooperative = attributes
        .iter()
        .any(|a| a.id == ATTRIBUTE_COOPERATIVE && a.value.iter().take(4).any(|byte| *byte != 0));
    let shape = Shape {
        grid: config.gridDim,
        block: config.blockDim,
        shared_bytes: config.sharedMemBytes,
        flags: if is_cooperative { COOPERATIVE } else { 0 },
    };
    if is_cooperative {
        check_cooperative(&function, stream.context.device, &shape)?;
    }
    let mut wire = Vec::with_capacity(attributes.len() * 72);
    for attribute in &attributes {
        if attribute.id == ATTRIBUTE_IGNORE {
            continue;
        }
        check_attribute(attribute.id)?;
        wire.extend_from_slice(&attribute.id.to_le_bytes());
        wire.extend_from_slice(&[0; 4]);
        wire.extend_from_slice(&attribute.value);
    }
    launch(&function, &stream, &shape, &wire, params, extra)
}

/// `CU_LAUNCH_ATTRIBUTE_IGNORE`: an entry that says nothing.
const ATTRIBUTE_IGNORE: u32 = 0;

/// Whether a launch can have an attribute, which no server is asked for.
///
/// # Errors
/// `NOT_SUPPORTED`: its value is a handle or a pointer of the program. `INVALID_VALUE`: cuda.h has none with this number.
pub(super) fn check_attribute(id: u32) -> CuResult {
    match id {
        // Plain numbers.
        1..=6 | 8..=11 | 14 | 16 => Ok(()),
        // PROGRAMMATIC_EVENT, LAUNCH_COMPLETION_EVENT, DEVICE_UPDATABLE_KERNEL_NODE, PORTABLE_CLUSTER_SIZE_MODE,
        // SHARED_MEMORY_MODE.
        7 | 12 | 13 | 17 | 18 => Err(CuStatus::NOT_SUPPORTED),
        _ => Err(CuStatus::INVALID_VALUE),
    }
}

/// The attributes of a launch configuration.
pub(crate) fn launch_attributes(config: &CUlaunchConfig) -> CuResult<Vec<CUlaunchAttribute>> {
    if config.numAttrs > ATTRIBUTES_MAX {
        return Err(CuStatus::INVALID_VALUE);
    }
    let list: In<CUlaunchAttribute> = HostPtr::from_address(config.attrs).input();
    (0..config.numAttrs as usize)
        .map(|index| list.get_at(index))
        .collect()
}

/// A launch whose parameters are put together already.
pub(super) fn launch_block(
    mode: StreamMode,
    function: &Function,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream_handle: u64,
    params: &[u8],
) -> CuResult {
    let stream = stream(mode, stream_handle)?;
    let shape = Shape {
        grid,
        block,
        shared_bytes,
        flags: 0,
    };
    check_shape(function, stream.context.device, &shape)?;
    let id = function.id_in(stream.context)?;
    send(id, &stream, &shape, &[], params)
}

/// A launch as a node of a graph, checked as a launch is.
pub(crate) fn kernel_parts(
    context: &'static Context,
    handle: u64,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    params: Out<*mut c_void>,
    extra: Out<*mut c_void>,
) -> CuResult<KernelParts> {
    let shape = Shape {
        grid,
        block,
        shared_bytes,
        flags: 0,
    };
    let function = super::function(handle)?;
    let info = function.info()?;
    check_shape(&function, context.device, &shape)?;
    let bytes = info.param_bytes as usize;
    if bytes > PARAMS_MAX {
        return Err(CuStatus::INVALID_VALUE);
    }
    let mut values = vec![0; bytes];
    gather(info, &mut values, params, extra)?;
    coherent::share_pointers(context.session(), &values)?;
    Ok(KernelParts {
        context: context.id,
        function: function.id_in(context)?,
        grid,
        block,
        shared_bytes,
        flags: 0,
        params: values,
        attributes: Vec::new(),
    })
}

#[inline(never)]
fn launch(
    function: &Function,
    stream: &Stream,
    shape: &Shape,
    attributes: &[u8],
    params: Out<*mut c_void>,
    extra: Out<*mut c_void>,
) -> CuResult {
    let info = function.info()?;
    check_shape(function, stream.context.device, shape)?;
    let id = function.id_in(stream.context)?;
    let bytes = info.param_bytes as usize;
    if let Some(block) = [0; SMALL_PARAMS].get_mut(..bytes) {
        gather(info, block, params, extra)?;
        return send(id, stream, shape, attributes, block);
    }
    launch_large(info, id, stream, shape, attributes, params, extra)
}

#[cold]
fn launch_large(
    info: &KernelInfo,
    id: u64,
    stream: &Stream,
    shape: &Shape,
    attributes: &[u8],
    params: Out<*mut c_void>,
    extra: Out<*mut c_void>,
) -> CuResult {
    let bytes = info.param_bytes as usize;
    if let Some(block) = [0; STACK_PARAMS].get_mut(..bytes) {
        gather(info, block, params, extra)?;
        return send(id, stream, shape, attributes, block);
    }
    if bytes > PARAMS_MAX {
        return Err(CuStatus::INVALID_VALUE);
    }
    let mut block = vec![0; bytes];
    gather(info, &mut block, params, extra)?;
    send(id, stream, shape, attributes, &block)
}

#[inline]
fn send(
    function: u64,
    stream: &Stream,
    shape: &Shape,
    attributes: &[u8],
    params: &[u8],
) -> CuResult {
    let _sending = coherent::before_launch(stream, params)?;
    let [grid_x, grid_y, grid_z] = shape.grid;
    let [block_x, block_y, block_z] = shape.block;
    let (shared_bytes, flags) = (shape.shared_bytes, shape.flags);
    let stream_id = stream.id;
    if attributes.is_empty() {
        return stream.issue(&CuLaunchKernel {
            function,
            stream: stream_id,
            grid_x,
            grid_y,
            grid_z,
            block_x,
            block_y,
            block_z,
            shared_bytes,
            flags,
            params,
        });
    }
    stream.issue(&CuLaunchKernelEx {
        function,
        stream: stream_id,
        grid_x,
        grid_y,
        grid_z,
        block_x,
        block_y,
        block_z,
        shared_bytes,
        flags,
        params,
        attributes,
    })
}

/// Copies the program's parameters to where the kernel looks for them.
#[inline]
fn gather(
    info: &KernelInfo,
    block: &mut [u8],
    params: Out<*mut c_void>,
    extra: Out<*mut c_void>,
) -> CuResult {
    if !extra.is_null() {
        return if params.is_null() {
            unpack_extra(block, extra)
        } else {
            Err(CuStatus::INVALID_VALUE)
        };
    }
    if info.param_bytes == 0 {
        return Ok(());
    }
    if params.is_null() || !info.has_layout() {
        return Err(CuStatus::INVALID_VALUE);
    }
    for (index, spec) in info.params.iter().enumerate() {
        let to = block.get_mut(spec.offset_bytes as usize..);
        let to = to.ok_or(CuStatus::INVALID_VALUE)?;
        let from = params.pointer_at(index)?;
        // Nearly all are pointers, integers or floats, for which a call of `memcpy` costs more than the copy.
        match spec.size_bytes as usize {
            8 => put::<8>(to, from)?,
            4 => put::<4>(to, from)?,
            len => to
                .get_mut(..len)
                .ok_or(CuStatus::INVALID_VALUE)?
                .copy_from_slice(from.bytes(len)?),
        }
    }
    Ok(())
}

/// Copies a parameter of `N` bytes.
#[inline]
fn put<const N: usize>(to: &mut [u8], from: HostPtr) -> CuResult {
    let to = to.first_chunk_mut::<N>().ok_or(CuStatus::INVALID_VALUE)?;
    *to = from.input::<[u8; N]>().get()?;
    Ok(())
}

/// `CU_LAUNCH_PARAM_BUFFER_POINTER`, buffer, `CU_LAUNCH_PARAM_BUFFER_SIZE`, pointer to size, `CU_LAUNCH_PARAM_END`.
fn unpack_extra(block: &mut [u8], extra: Out<*mut c_void>) -> CuResult {
    let mut buffer = None;
    let mut size = None;
    let mut at = 0;
    loop {
        match extra.pointer_at(at)?.address() {
            0 => break,
            1 => buffer = Some(extra.pointer_at(at + 1)?),
            2 => size = Some(extra.pointer_at(at + 1)?.input::<usize>().get()?),
            _ => return Err(CuStatus::INVALID_VALUE),
        }
        at += 2;
    }
    let (Some(buffer), Some(size)) = (buffer, size) else {
        return Err(CuStatus::INVALID_VALUE);
    };
    // Some compilers pad the last parameter, some do not.
    let len = size.min(block.len());
    block
        .get_mut(..len)
        .ok_or(CuStatus::INVALID_VALUE)?
        .copy_from_slice(buffer.bytes(len)?);
    Ok(())
}

/// What a driver checks before it accepts a launch.
// Into the one call that every launch makes.
#[allow(clippy::inline_always)]
#[inline(always)]
pub(super) fn check_shape(function: &Function, device: &Device, shape: &Shape) -> CuResult {
    let limits = device.launch_limits();
    // An empty direction is then the longest of all.
    let fits = |n: u32, max: u32| n.wrapping_sub(1) < max;
    let [gx, gy, gz] = shape.grid;
    let [bx, by, bz] = shape.block;
    if !(fits(gx, limits.grid[0]) && fits(gy, limits.grid[1]) && fits(gz, limits.grid[2])) {
        return Err(CuStatus::INVALID_VALUE);
    }
    if !(fits(bx, limits.block[0]) && fits(by, limits.block[1]) && fits(bz, limits.block[2])) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let threads = u64::from(bx) * u64::from(by) * u64::from(bz);
    let threads_max = limits.threads.min(function.parameters.threads_max);
    let dynamic_max = function
        .dynamic_shared_max
        .load(std::sync::atomic::Ordering::Relaxed);
    if threads > u64::from(threads_max) || i64::from(shape.shared_bytes) > i64::from(dynamic_max) {
        return Err(CuStatus::INVALID_VALUE);
    }
    Ok(())
}

/// All blocks of a cooperative launch must be resident at once.
fn check_cooperative(function: &Function, device: &Device, shape: &Shape) -> CuResult {
    let [bx, by, bz] = shape.block;
    let threads = i32::try_from(bx.saturating_mul(by).saturating_mul(bz))
        .map_err(|_| CuStatus::INVALID_VALUE)?;
    let per = crate::occupancy::blocks_per_multiprocessor(
        device,
        function.info()?,
        threads,
        shape.shared_bytes as usize,
    )?;
    let resident = i64::from(per) * i64::from(device.attribute(A::MultiprocessorCount));
    let blocks = shape.grid.iter().map(|n| i64::from(*n)).product::<i64>();
    if blocks > resident {
        Err(CuStatus::COOPERATIVE_LAUNCH_TOO_LARGE)
    } else {
        Ok(())
    }
}
