//! Events.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuEventCreate, CuEventDestroyV2};

use super::stream;
use crate::context;
use crate::event::Event;
use crate::pool;
use crate::process::process;
use crate::ptr::Out;

/// `CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS`.
const FLAGS: u32 = 7;
const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;

pub(crate) fn cuEventCreate(place: Out<u64>, flags: u32) -> CuResult {
    if place.is_null()
        || flags & !FLAGS != 0
        || flags & (INTERPROCESS | DISABLE_TIMING) == INTERPROCESS
    {
        return Err(CuStatus::INVALID_VALUE);
    }
    let context = context::current()?;
    let id = context.session().new_id();
    context
        .session()
        .send(context.id, &CuEventCreate { event: id, flags })?;
    let events = &process()?.events;
    let handle = events.reserve();
    events.insert(handle, Arc::new(Event::new(context, id, flags)));
    place.set(handle)
}

pub(crate) fn cuEventDestroy_v2(handle: u64) -> CuResult {
    let event = process()?.events.remove(handle)?;
    event.context.session().timings.forget(event.id);
    if !event.context.is_alive() {
        return Ok(());
    }
    event
        .context
        .session()
        .send(event.context.id, &CuEventDestroyV2 { event: event.id })
}

pub(crate) use cuEventDestroy_v2 as cuEventDestroy;

pub(crate) fn cuEventRecord(mode: StreamMode, handle: u64, stream_handle: u64) -> CuResult {
    cuEventRecordWithFlags(mode, handle, stream_handle, 0)
}

pub(crate) fn cuEventRecordWithFlags(
    mode: StreamMode,
    handle: u64,
    stream_handle: u64,
    flags: u32,
) -> CuResult {
    let event = process()?.events.get(handle)?;
    let stream = stream(mode, stream_handle)?;
    if !std::ptr::eq(event.context, stream.context) {
        return Err(CuStatus::INVALID_HANDLE);
    }
    event.record(&stream, flags)
}

pub(crate) fn cuEventQuery(handle: u64) -> CuResult {
    process()?.events.get(handle)?.query()
}

pub(crate) fn cuEventSynchronize(handle: u64) -> CuResult {
    process()?.events.get(handle)?.synchronize()?;
    pool::waited();
    Ok(())
}

pub(crate) fn cuEventElapsedTime(place: Out<f32>, start: u64, end: u64) -> CuResult {
    let events = &process()?.events;
    place.set(events.get(start)?.elapsed_ms(&*events.get(end)?)?)
}

pub(crate) fn cuEventElapsedTime_v2(place: Out<f32>, start: u64, end: u64) -> CuResult {
    cuEventElapsedTime(place, start, end)
}
