//! Functions and kernels: attributes and parameter layouts, from the image.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::CuFuncSetCacheConfig;
use parking_lot::Mutex;

use crate::attributes::Attribute;
use crate::context;
use crate::module::{Function, Home, tell_setting};
use crate::occupancy;
use crate::process::{Device, process};
use crate::ptr::Out;
use crate::recent;

/// `CUfunction_attribute` numbers.
mod attribute {
    pub(super) const MAX_THREADS: u32 = 0;
    pub(super) const SHARED_BYTES: u32 = 1;
    pub(super) const CONST_BYTES: u32 = 2;
    pub(super) const LOCAL_BYTES: u32 = 3;
    pub(super) const REGISTERS: u32 = 4;
    pub(super) const PTX_VERSION: u32 = 5;
    pub(super) const BINARY_VERSION: u32 = 6;
    pub(super) const CACHE_MODE: u32 = 7;
    pub(super) const DYNAMIC_SHARED_MAX: u32 = 8;
    pub(super) const CARVEOUT: u32 = 9;
    pub(super) const CLUSTER_SIZE_REQUIRED: u32 = 10;
    pub(super) const CLUSTER_WIDTH: u32 = 11;
    pub(super) const CLUSTER_HEIGHT: u32 = 12;
    pub(super) const CLUSTER_DEPTH: u32 = 13;
    pub(super) const NON_PORTABLE_CLUSTER: u32 = 14;
    pub(super) const CLUSTER_POLICY: u32 = 15;
}

fn get(function: &Function, attribute: u32, device: &Device) -> CuResult<i32> {
    let info = function.info()?;
    let cluster = |axis: usize| {
        info.cluster
            .required
            .and_then(|size| size.get(axis).copied())
            .unwrap_or(0)
    };
    let number = match attribute {
        attribute::MAX_THREADS => info
            .max_threads
            .unwrap_or(device.count(Attribute::MaxThreadsPerBlock)),
        attribute::SHARED_BYTES => info.resources.shared_static_bytes,
        attribute::CONST_BYTES => function.code.info.const_bytes,
        attribute::LOCAL_BYTES => info.resources.local_bytes,
        attribute::REGISTERS => occupancy::registers(info),
        attribute::PTX_VERSION => info.ptx_version,
        attribute::BINARY_VERSION => {
            if info.binary_version == 0 {
                device.sm
            } else {
                info.binary_version
            }
        }
        attribute::CACHE_MODE | attribute::NON_PORTABLE_CLUSTER | attribute::CLUSTER_POLICY => 0,
        attribute::DYNAMIC_SHARED_MAX => {
            return Ok(function.dynamic_shared_max.load(Ordering::Relaxed));
        }
        attribute::CARVEOUT => return Ok(function.carveout.load(Ordering::Relaxed)),
        attribute::CLUSTER_SIZE_REQUIRED => {
            u32::from(info.cluster.explicit || info.cluster.required.is_some())
        }
        attribute::CLUSTER_WIDTH => cluster(0),
        attribute::CLUSTER_HEIGHT => cluster(1),
        attribute::CLUSTER_DEPTH => cluster(2),
        _ => return Err(CuStatus::INVALID_VALUE),
    };
    Ok(i32::try_from(number).unwrap_or(i32::MAX))
}

fn set(function: &Function, attribute: u32, value: i32, device: &Device) -> CuResult {
    match attribute {
        attribute::DYNAMIC_SHARED_MAX => {
            let taken =
                i32::try_from(function.info()?.resources.shared_static_bytes).unwrap_or(i32::MAX);
            let most = device
                .attribute(Attribute::MaxSharedMemoryPerBlockOptin)
                .saturating_sub(taken);
            if value < 0 || value > most {
                return Err(CuStatus::INVALID_VALUE);
            }
            function.dynamic_shared_max.store(value, Ordering::Relaxed);
        }
        attribute::CARVEOUT if (-1..=100).contains(&value) => {
            function.carveout.store(value, Ordering::Relaxed)
        }
        attribute::CLUSTER_WIDTH..=attribute::CLUSTER_POLICY => {}
        _ => return Err(CuStatus::INVALID_VALUE),
    }
    Ok(())
}

pub(crate) fn function(handle: u64) -> CuResult<Arc<Function>> {
    let functions = &process()?.functions;
    recent::FUNCTIONS.with(|recent| recent.get(functions, handle))
}

pub(crate) fn cuFuncGetAttribute(place: Out<i32>, attribute: u32, handle: u64) -> CuResult {
    place.set(get(
        &*function(handle)?,
        attribute,
        context::current()?.device,
    )?)
}

pub(crate) fn cuFuncSetAttribute(handle: u64, attribute: u32, value: i32) -> CuResult {
    let function = function(handle)?;
    let context = context::current()?;
    set(&function, attribute, value, context.device)?;
    tell_setting(context, function.id_in(context)?, attribute, value)
}

pub(crate) fn cuFuncSetCacheConfig(handle: u64, config: u32) -> CuResult {
    if config > 3 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let function = function(handle)?;
    let context = context::current()?;
    let id = function.id_in(context)?;
    context.session().send(
        context.id,
        &CuFuncSetCacheConfig {
            function: id,
            config,
        },
    )
}

/// Banks of shared memory cannot be configured since Kepler: accepted, without effect (cuda.h).
pub(crate) fn cuFuncSetSharedMemConfig(handle: u64, config: u32) -> CuResult {
    if config > 2 {
        return Err(CuStatus::INVALID_VALUE);
    }
    function(handle).map(|_| ())
}

pub(crate) fn cuKernelGetAttribute(
    place: Out<i32>,
    attribute: u32,
    handle: u64,
    ordinal: i32,
) -> CuResult {
    place.set(get(
        &*function(handle)?,
        attribute,
        process()?.device(ordinal)?,
    )?)
}

pub(crate) fn cuKernelSetAttribute(
    attribute: u32,
    value: i32,
    handle: u64,
    ordinal: i32,
) -> CuResult {
    let function = function(handle)?;
    let device = process()?.device(ordinal)?;
    set(&function, attribute, value, device)?;
    function.set_on(device.ordinal, attribute, value)
}

pub(crate) fn cuKernelSetCacheConfig(handle: u64, config: u32, ordinal: i32) -> CuResult {
    if config > 3 {
        return Err(CuStatus::INVALID_VALUE);
    }
    process()?.device(ordinal)?;
    function(handle).map(|_| ())
}

fn param(handle: u64, index: usize, offset: Out<usize>, size: Out<usize>) -> CuResult {
    let function = function(handle)?;
    let spec = function
        .info()?
        .params
        .get(index)
        .copied()
        .ok_or(CuStatus::INVALID_VALUE)?;
    offset.set(spec.offset_bytes as usize)?;
    size.set_if(spec.size_bytes as usize);
    Ok(())
}

pub(crate) fn cuFuncGetParamCount(handle: u64, place: Out<usize>) -> CuResult {
    place.set(function(handle)?.info()?.params.len())
}

pub(crate) fn cuKernelGetParamCount(handle: u64, place: Out<usize>) -> CuResult {
    cuFuncGetParamCount(handle, place)
}

pub(crate) fn cuFuncGetParamInfo(
    handle: u64,
    index: usize,
    offset: Out<usize>,
    size: Out<usize>,
) -> CuResult {
    param(handle, index, offset, size)
}

pub(crate) fn cuKernelGetParamInfo(
    handle: u64,
    index: usize,
    offset: Out<usize>,
    size: Out<usize>,
) -> CuResult {
    param(handle, index, offset, size)
}

/// Names live as long as the process: a program may keep what it got.
fn name_of(handle: u64) -> CuResult<*const c_char> {
    static NAMES: Mutex<Option<HashMap<u64, &'static CString>>> = Mutex::new(None);
    let mut names = NAMES.lock();
    let names = names.get_or_insert_default();
    if let Some(name) = names.get(&handle) {
        return Ok(name.as_ptr());
    }
    let name = CString::new(function(handle)?.info()?.name.clone())
        .map_err(|_| CuStatus::INVALID_HANDLE)?;
    let leaked: &'static CString = Box::leak(Box::new(name));
    names.insert(handle, leaked);
    Ok(leaked.as_ptr())
}

pub(crate) fn cuFuncGetName(place: Out<*const c_char>, handle: u64) -> CuResult {
    place.set(name_of(handle)?)
}

pub(crate) fn cuKernelGetName(place: Out<*const c_char>, handle: u64) -> CuResult {
    place.set(name_of(handle)?)
}

pub(crate) fn cuFuncGetModule(place: Out<u64>, handle: u64) -> CuResult {
    match &function(handle)?.home {
        Home::Module(module) => place.set(module.handle),
        Home::Library(library) => place.set(library.module(context::current()?)?.handle),
    }
}

pub(crate) fn cuKernelGetLibrary(place: Out<u64>, handle: u64) -> CuResult {
    match &function(handle)?.home {
        Home::Module(_) => Err(CuStatus::INVALID_HANDLE),
        Home::Library(library) => place.set(library.handle),
    }
}

/// A kernel can be launched as it is; its function in the current context is the same handle.
pub(crate) fn cuKernelGetFunction(place: Out<u64>, handle: u64) -> CuResult {
    let function = function(handle)?;
    function.id_in(context::current()?)?;
    place.set(function.handle)
}

pub(crate) fn cuFuncIsLoaded(place: Out<u32>, handle: u64) -> CuResult {
    const LOADED: u32 = 1;
    function(handle)?;
    place.set(LOADED)
}

pub(crate) fn cuFuncLoad(handle: u64) -> CuResult {
    function(handle)?.id_in(context::current()?).map(|_| ())
}
