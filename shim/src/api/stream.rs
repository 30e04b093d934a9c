//! Streams.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuLaunchHostFunc, CuStreamCreateWithPriority, CuStreamDestroyV2};

use crate::context;
use crate::crossing;
use crate::graph::Node;
use crate::hooks::Callback;
use crate::pool;
use crate::process::process;
use crate::ptr::{HostPtr, Out};
use crate::stream::{STREAM_NON_BLOCKING, Stream};

/// Greatest priority of a stream (numerically least), as current GPUs have it.
pub(crate) const PRIORITY_GREATEST: i32 = -5;

/// The stream that a handle means in the current context.
#[inline]
pub(crate) fn stream(mode: StreamMode, handle: u64) -> CuResult<Arc<Stream>> {
    context::current()?.stream(mode, handle)
}

pub(crate) fn cuStreamCreate(place: Out<u64>, flags: u32) -> CuResult {
    create(place, flags, 0)
}

pub(crate) fn cuStreamCreateWithPriority(place: Out<u64>, flags: u32, priority: i32) -> CuResult {
    // Outside the range it is clamped (cuda.h).
    create(place, flags, priority.clamp(PRIORITY_GREATEST, 0))
}

fn create(place: Out<u64>, flags: u32, priority: i32) -> CuResult {
    if place.is_null() || flags & !STREAM_NON_BLOCKING != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let context = context::current()?;
    let id = context.session().new_id();
    context.session().send(
        context.id,
        &CuStreamCreateWithPriority {
            stream: id,
            flags,
            priority,
        },
    )?;
    if flags & STREAM_NON_BLOCKING != 0 {
        context.session().allow_non_blocking();
    }
    let streams = &process()?.streams;
    let handle = streams.reserve();
    streams.insert(handle, Arc::new(Stream::new(context, id, flags, priority)));
    place.set(handle)
}

pub(crate) fn cuStreamDestroy_v2(handle: u64) -> CuResult {
    // The default streams (0, 1, 2) are nobody's to destroy.
    let stream = process()?.streams.remove(handle)?;
    if !stream.context.is_alive() {
        return Ok(());
    }
    crossing::end_stream(&stream)?;
    stream
        .session()
        .send(stream.context.id, &CuStreamDestroyV2 { stream: stream.id })
}

pub(crate) use cuStreamDestroy_v2 as cuStreamDestroy;

pub(crate) fn cuStreamSynchronize(mode: StreamMode, handle: u64) -> CuResult {
    stream(mode, handle)?.synchronize()?;
    pool::waited();
    Ok(())
}

pub(crate) fn cuStreamQuery(mode: StreamMode, handle: u64) -> CuResult {
    stream(mode, handle)?.query()
}

pub(crate) fn cuStreamWaitEvent(mode: StreamMode, handle: u64, event: u64, flags: u32) -> CuResult {
    let stream = stream(mode, handle)?;
    process()?.events.get(event)?.make_wait(&stream, flags)
}

pub(crate) fn cuStreamGetCtx(mode: StreamMode, handle: u64, place: Out<u64>) -> CuResult {
    place.set(stream(mode, handle)?.context.handle)
}

/// Green contexts there are none.
pub(crate) fn cuStreamGetCtx_v2(
    mode: StreamMode,
    handle: u64,
    place: Out<u64>,
    green: Out<u64>,
) -> CuResult {
    green.set_if(0);
    cuStreamGetCtx(mode, handle, place)
}

pub(crate) fn cuStreamGetDevice(mode: StreamMode, handle: u64, place: Out<i32>) -> CuResult {
    place.set(i32::try_from(stream(mode, handle)?.context.device.ordinal).unwrap_or(0))
}

pub(crate) fn cuStreamGetFlags(mode: StreamMode, handle: u64, flags: Out<u32>) -> CuResult {
    flags.set(stream(mode, handle)?.flags)
}

pub(crate) fn cuStreamGetPriority(mode: StreamMode, handle: u64, priority: Out<i32>) -> CuResult {
    priority.set(stream(mode, handle)?.priority)
}

pub(crate) fn cuStreamGetId(mode: StreamMode, handle: u64, id: Out<u64>) -> CuResult {
    let stream = stream(mode, handle)?;
    // Unique in the process: the context tells the default streams apart.
    id.set(u64::from(stream.context.id) << 40 | stream.id)
}

pub(crate) fn cuStreamGetGreenCtx(handle: u64, place: Out<u64>) -> CuResult {
    stream(StreamMode::Legacy, handle)?;
    place.set(0)
}

pub(crate) fn cuLaunchHostFunc(
    mode: StreamMode,
    handle: u64,
    function: usize,
    user_data: HostPtr,
) -> CuResult {
    if function == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let stream = stream(mode, handle)?;
    let user_data = user_data.address();
    if let Some(capture) = stream.capturing()? {
        return capture.add(
            stream.id,
            Node::HostFunction {
                function,
                user_data,
            },
        );
    }
    call_back(
        &stream,
        Callback::HostFunction {
            function,
            user_data,
        },
    )
}

/// How the stream waits for the function is the driver's affair.
pub(crate) fn cuLaunchHostFunc_v2(
    mode: StreamMode,
    handle: u64,
    function: usize,
    user_data: HostPtr,
    sync_mode: u32,
) -> CuResult {
    if sync_mode > 1 {
        return Err(CuStatus::INVALID_VALUE);
    }
    cuLaunchHostFunc(mode, handle, function, user_data)
}

pub(crate) fn cuStreamAddCallback(
    mode: StreamMode,
    handle: u64,
    function: usize,
    user_data: HostPtr,
    flags: u32,
) -> CuResult {
    if function == 0 || flags != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let stream = stream(mode, handle)?;
    stream.forbid_capture()?;
    call_back(
        &stream,
        Callback::StreamCallback {
            function,
            stream: handle,
            user_data: user_data.address(),
        },
    )
}

/// Has the program called when the stream gets there.
pub(crate) fn call_back(stream: &Stream, callback: Callback) -> CuResult {
    let session = stream.session();
    let id = session.new_id();
    session.inbox.add_callback(id, callback);
    stream.issue(&CuLaunchHostFunc {
        stream: stream.id,
        callback: id,
    })
}
