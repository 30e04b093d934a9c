//! Work of one program on devices of several servers: streams that wait for each other, and copies.
//!
//! Servers know nothing of each other's streams. Where one stream has to wait for a point in another server's, both get a
//! host function ([`Gate`]): the one is not held by it, the other goes on when both are due. A thread of its own sends the
//! answers ([`Crossings`]), because whoever receives from one server must not wait for room in the ring to another.
//!
//! Nothing of this is touched by a program whose devices are one server's.
#![forbid(unsafe_code)]

mod boxes;
mod direct;
mod ferry;
mod gate;

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuEventCreate, CuEventDestroyV2, CuEventRecordWithFlags, CuStreamCreateWithPriority,
    CuStreamDestroyV2, CuStreamWaitEvent,
};
use parking_lot::Mutex;

use crate::capture::Capture;
use crate::context::Context;
use crate::process::process;
use crate::session::EVENT_DISABLE_TIMING;
use crate::stream::{STREAM_NON_BLOCKING, Stream};

pub(crate) use boxes::{copy_box, is_abroad};
pub(crate) use direct::Ways;
pub(crate) use ferry::{Ferry, await_copies, copy};
pub(crate) use gate::{Crossings, Gate};

use gate::Meeting;

/// What a stream has of this module, for others that wait for it.
#[derive(Default)]
pub(crate) struct Crossed {
    event: Mutex<Option<u64>>,
    /// Waits for points of the stream, and tells when they are behind, so that the stream itself is not held up.
    shadow: Mutex<Option<Arc<Stream>>>,
}

/// What a context has of this module.
#[derive(Default)]
pub(crate) struct Lanes {
    /// For work in this context that streams of other servers do.
    lane: Mutex<Option<Arc<Stream>>>,
    /// For copies on their way. Nothing on it waits for a program's stream, so that copies can always go on.
    ferry: Mutex<Option<Arc<Stream>>>,
}

/// The context that memory at an address lives in.
///
/// # Errors
/// `INVALID_VALUE`: there is none.
pub(crate) fn owner(address: u64) -> CuResult<&'static Context> {
    let found = process()?.memory.find(address);
    found
        .map(|allocation| allocation.context)
        .ok_or(CuStatus::INVALID_VALUE)
}

/// The context that memory at an address lives in, if that is another server's than the stream's.
#[inline]
pub(crate) fn abroad(stream: &Stream, address: u64) -> CuResult<Option<&'static Context>> {
    let process = process()?;
    if !process.has_several_servers() {
        return Ok(None);
    }
    let owner = process.memory.find(address).map(|found| found.context);
    Ok(owner.filter(|owner| !std::ptr::eq(owner.session(), stream.session())))
}

/// Has `work` done in the order of `stream`, by a stream of the server that `owner` is on.
///
/// # Errors
/// Those of `work`; `NOT_SUPPORTED` in a capture.
pub(crate) fn run_at(
    owner: &'static Context,
    stream: &Stream,
    work: impl FnOnce(&Stream) -> CuResult,
) -> CuResult {
    refuse_capture(stream)?;
    let lane = lane_of(owner)?;
    // Stream 0 stands for all of a device, wherever the device is.
    let legacy = (stream.id == 0).then(|| owner.legacy());
    wait(&lane, stream)?;
    if let Some(legacy) = legacy {
        wait(&lane, legacy)?;
    }
    work(&lane)?;
    if let Some(legacy) = legacy {
        wait(legacy, &lane)?;
    }
    wait(stream, &lane)
}

/// Has `work` done on a stream of the server that device memory at both addresses is on. Stream 0 stands for all of the
/// contexts that take part (`cuMemcpyPeer`), not for the current one alone.
///
/// # Errors
/// Those of `work`.
pub(crate) fn run_between(
    ends: [u64; 2],
    stream: &Stream,
    work: impl FnOnce() -> CuResult,
) -> CuResult {
    if stream.id != 0 || stream.session().inbox.has_one_context() {
        return work();
    }
    let [first, second] = [owner(ends[0])?, owner(ends[1])?];
    let is_same = std::ptr::eq(first, second);
    let others = [Some(first), Some(second).filter(|_| !is_same)];
    let is_other = |other: &&Context| !std::ptr::eq(*other, stream.context);
    let others = others.map(|other| other.filter(is_other).map(Context::legacy));
    others
        .iter()
        .flatten()
        .try_for_each(|it| wait(stream, it))?;
    work()?;
    others.iter().flatten().try_for_each(|it| wait(it, stream))
}

/// Waits until work of [`run_at`] is done.
pub(crate) fn finish_at(owner: &'static Context) -> CuResult {
    lane_of(owner)?.synchronize()
}

/// Makes later work of `waiter` wait for all that was sent on `on`.
fn wait(waiter: &Stream, on: &Stream) -> CuResult {
    let event = on.crossed.event(on)?;
    on.issue(&CuEventRecordWithFlags {
        event,
        stream: on.id,
        flags: 0,
    })?;
    wait_event(waiter, on, event)
}

/// Makes later work of `waiter` wait for an event that was recorded on `on`, a stream of any server.
pub(crate) fn wait_event(waiter: &Stream, on: &Stream, event: u64) -> CuResult {
    if std::ptr::eq(waiter.session(), on.session()) {
        return waiter.issue(&CuStreamWaitEvent {
            stream: waiter.id,
            event,
            flags: 0,
        });
    }
    refuse_capture(waiter)?;
    let shadow = &on.crossed.shadow(on)?;
    // In one order for all threads: so no point can wait for one that was sent later.
    let crossings = &process()?.crossings;
    let _order = crossings.order();
    shadow.issue(&CuStreamWaitEvent {
        stream: shadow.id,
        event,
        flags: 0,
    })?;
    let meeting = Meeting::of(2, None);
    gate::put(shadow, Gate::passing(&meeting))?;
    gate::put(waiter, Gate::holding(&meeting))
}

/// A stream is destroyed.
pub(crate) fn end_stream(stream: &Stream) -> CuResult {
    let (session, context) = (stream.session(), stream.context.id);
    if let Some(event) = stream.crossed.event.lock().take() {
        session.send(context, &CuEventDestroyV2 { event })?;
    }
    match stream.crossed.shadow.lock().take() {
        Some(shadow) => session.send(context, &CuStreamDestroyV2 { stream: shadow.id }),
        None => Ok(()),
    }
}

/// A graph belongs to one server.
pub(crate) fn refuse_capture(stream: &Stream) -> CuResult {
    match stream.capturing()? {
        None => Ok(()),
        Some(capture) => Err(spoil(&capture)),
    }
}

/// Ends a capture that gets work of another server; what the call returns.
pub(crate) fn spoil(capture: &Capture) -> CuStatus {
    capture.invalidate();
    log::error!("a graph cannot have work of several servers");
    CuStatus::NOT_SUPPORTED
}

impl Crossed {
    /// An event of the stream, made on the first use.
    pub(crate) fn event(&self, of: &Stream) -> CuResult<u64> {
        let mut event = self.event.lock();
        if let Some(event) = *event {
            return Ok(event);
        }
        let session = of.session();
        let new = session.new_id();
        let flags = EVENT_DISABLE_TIMING;
        session.send(of.context.id, &CuEventCreate { event: new, flags })?;
        Ok(*event.insert(new))
    }

    fn shadow(&self, of: &Stream) -> CuResult<Arc<Stream>> {
        made_once(&self.shadow, of.context)
    }
}

fn lane_of(context: &'static Context) -> CuResult<Arc<Stream>> {
    made_once(&context.lanes.lane, context)
}

fn ferry_of(context: &'static Context) -> CuResult<Arc<Stream>> {
    made_once(&context.lanes.ferry, context)
}

fn made_once(
    place: &Mutex<Option<Arc<Stream>>>,
    context: &'static Context,
) -> CuResult<Arc<Stream>> {
    context.check()?;
    let mut place = place.lock();
    if let Some(stream) = &*place {
        return Ok(Arc::clone(stream));
    }
    Ok(Arc::clone(place.insert(new_stream(context)?)))
}

/// A stream of our own, which waits for no other.
pub(crate) fn new_stream(context: &'static Context) -> CuResult<Arc<Stream>> {
    let session = context.session();
    let (id, flags) = (session.new_id(), STREAM_NON_BLOCKING);
    let record = CuStreamCreateWithPriority {
        stream: id,
        flags,
        priority: 0,
    };
    session.send(context.id, &record)?;
    session.allow_non_blocking();
    Ok(Arc::new(Stream::new(context, id, flags, 0)))
}
