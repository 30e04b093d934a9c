//! Contexts and the calling thread's stack of them.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuCtxSetLimit, CuCtxSynchronize};

use crate::abi::{CUctxCreateParams, CUexecAffinityParam};
use crate::coherent::{self, Waited};
use crate::context::{self, Context};
use crate::ptr::Out;

/// Versions that `cuCtxGetApiVersion` tells of the three ways to make a context.
const API_V2: u32 = 3020;
const API_V3: u32 = 11040;
const API_V4: u32 = 12050;

pub(crate) fn cuCtxCreate_v2(place: Out<u64>, flags: u32, ordinal: i32) -> CuResult {
    place.set(context::create_pushed(ordinal, flags, API_V2)?.handle)
}

pub(crate) fn cuCtxCreate_v3(
    place: Out<u64>,
    affinity: Out<CUexecAffinityParam>,
    count: i32,
    flags: u32,
    ordinal: i32,
) -> CuResult {
    if !affinity.is_null() && count != 0 {
        return Err(CuStatus::UNSUPPORTED_EXEC_AFFINITY);
    }
    place.set(context::create_pushed(ordinal, flags, API_V3)?.handle)
}

pub(crate) fn cuCtxCreate_v4(
    place: Out<u64>,
    params: Out<CUctxCreateParams>,
    flags: u32,
    ordinal: i32,
) -> CuResult {
    if !params.is_null() {
        let params = params.get()?;
        if params.numExecAffinityParams != 0 || params.cigParams != 0 {
            return Err(CuStatus::UNSUPPORTED_EXEC_AFFINITY);
        }
    }
    place.set(context::create_pushed(ordinal, flags, API_V4)?.handle)
}

pub(crate) fn cuCtxDestroy_v2(handle: u64) -> CuResult {
    context::destroy(handle)
}

pub(crate) use cuCtxDestroy_v2 as cuCtxDestroy;

pub(crate) fn cuCtxAttach(_place: Out<u64>, _flags: u32) -> CuResult {
    // Gone from the driver since CUDA 4 (cuda.h: "deprecated and should not be used").
    Err(CuStatus::NOT_SUPPORTED)
}

pub(crate) fn cuCtxDetach(_handle: u64) -> CuResult {
    Err(CuStatus::NOT_SUPPORTED)
}

pub(crate) fn cuCtxGetCurrent(place: Out<u64>) -> CuResult {
    match context::current_any() {
        Ok(context) => place.set(context.handle),
        Err(CuStatus::INVALID_CONTEXT) => place.set(0),
        Err(status) => Err(status),
    }
}

pub(crate) fn cuCtxSetCurrent(handle: u64) -> CuResult {
    crate::process::process()?;
    context::set_current(handle)
}

pub(crate) fn cuCtxPushCurrent_v2(handle: u64) -> CuResult {
    if handle == 0 {
        return Err(CuStatus::INVALID_CONTEXT);
    }
    context::push(context::by_handle(handle)?);
    Ok(())
}

pub(crate) use cuCtxPushCurrent_v2 as cuCtxPushCurrent;

pub(crate) fn cuCtxPopCurrent_v2(place: Out<u64>) -> CuResult {
    place.set_if(context::pop()?.handle);
    Ok(())
}

pub(crate) use cuCtxPopCurrent_v2 as cuCtxPopCurrent;

#[inline]
pub(crate) fn cuCtxGetDevice(place: Out<i32>) -> CuResult {
    place.set(ordinal(context::current_any()?))
}

pub(crate) fn cuCtxGetDevice_v2(place: Out<i32>, handle: u64) -> CuResult {
    place.set(ordinal(context::by_handle(handle)?))
}

#[inline]
fn ordinal(context: &Context) -> i32 {
    // As few devices as no i32 is too small for.
    context.device.ordinal.cast_signed()
}

pub(crate) fn cuCtxGetFlags(flags: Out<u32>) -> CuResult {
    flags.set(context::current_any()?.flags.load(Ordering::Relaxed))
}

pub(crate) fn cuCtxSetFlags(flags: u32) -> CuResult {
    context::current_any()?
        .flags
        .store(flags, Ordering::Relaxed);
    Ok(())
}

pub(crate) fn cuCtxGetId(handle: u64, id: Out<u64>) -> CuResult {
    id.set(u64::from(context::by_handle(handle)?.id))
}

pub(crate) fn cuCtxGetApiVersion(handle: u64, version: Out<u32>) -> CuResult {
    version.set(context::by_handle(handle)?.api_version)
}

pub(crate) fn cuCtxGetLimit(value: Out<usize>, limit: u32) -> CuResult {
    let context = context::current()?;
    let known = context
        .settings
        .lock()
        .limits
        .get(&limit)
        .copied()
        .ok_or(CuStatus::UNSUPPORTED_LIMIT)?;
    value.set(usize::try_from(known).unwrap_or(usize::MAX))
}

pub(crate) fn cuCtxSetLimit(limit: u32, value: usize) -> CuResult {
    let context = context::current()?;
    let value = value as u64;
    match context.settings.lock().limits.get_mut(&limit) {
        Some(known) => *known = value,
        None => return Err(CuStatus::UNSUPPORTED_LIMIT),
    }
    context
        .session()
        .send(context.id, &CuCtxSetLimit { limit, value })
}

pub(crate) fn cuCtxGetCacheConfig(config: Out<u32>) -> CuResult {
    config.set(context::current()?.settings.lock().cache_config)
}

pub(crate) fn cuCtxSetCacheConfig(config: u32) -> CuResult {
    if config > 3 {
        return Err(CuStatus::INVALID_VALUE);
    }
    context::current()?.settings.lock().cache_config = config;
    Ok(())
}

pub(crate) fn cuCtxGetSharedMemConfig(config: Out<u32>) -> CuResult {
    config.set(context::current()?.settings.lock().shared_config)
}

pub(crate) fn cuCtxSetSharedMemConfig(config: u32) -> CuResult {
    if config > 2 {
        return Err(CuStatus::INVALID_VALUE);
    }
    context::current()?.settings.lock().shared_config = config;
    Ok(())
}

pub(crate) fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) -> CuResult {
    context::current()?;
    least.set_if(0);
    greatest.set_if(super::PRIORITY_GREATEST);
    Ok(())
}

pub(crate) fn cuCtxResetPersistingL2Cache() -> CuResult {
    context::current().map(|_| ())
}

pub(crate) fn cuCtxGetExecAffinity(_place: Out<CUexecAffinityParam>, _kind: u32) -> CuResult {
    Err(CuStatus::UNSUPPORTED_EXEC_AFFINITY)
}

pub(crate) fn cuCtxSynchronize() -> CuResult {
    synchronize(context::current_any()?)
}

pub(crate) fn cuCtxSynchronize_v2(handle: u64) -> CuResult {
    synchronize(context::by_handle(handle)?)
}

/// Waits for everything in the context. Answered here when everything is known to have run.
fn synchronize(context: &'static Context) -> CuResult {
    context.check()?;
    crate::capture::forbid_synchronize(context)?;
    let session = context.session();
    let stamp = session.last_stamp();
    if !session.has_finished(stamp) {
        session.ask(context.id, &CuCtxSynchronize {})?;
        // Other contexts of the session may still work; with one, everything is done.
        if session.inbox.has_one_context() {
            session.set_finished(stamp);
        }
    }
    session.await_landings(stamp)?;
    coherent::after_wait(session, Waited::Context(context.id), stamp)?;
    crate::pool::waited();
    context.check()?;
    session.take_deferred()
}
