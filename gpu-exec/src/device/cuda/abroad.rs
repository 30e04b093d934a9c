//! Work with memory of another GPU than its stream's.
//!
//! Memory that is mapped (`cuMemMap`) is mapped for its own GPU alone, so a stream of another one may not touch it: copies between two
//! are the driver's peer copies, which name both contexts, and what concerns the other GPU alone is done by a stream there, in the order of
//! the one that it was issued to.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::driver::{Context, Event, Extent, Stream};
use super::perform::on;
use super::state::{LaneKey, State};
use crate::device::box_copy::BoxCopy;

const STREAM_NON_BLOCKING: u32 = 1;
const EVENT_DISABLE_TIMING: u32 = 2;

/// Gives something to the driver, in the order of `lane`, on a stream that may work with memory at `addr`.
///
/// # Errors
/// `INVALID_CONTEXT`: the session has no context on the memory's GPU. Else as `give`, and as the driver.
pub(crate) fn near<T>(
    state: &mut State,
    lane: LaneKey,
    addr: u64,
    give: impl FnOnce(&Stream) -> CuResult<T>,
) -> CuResult<T> {
    match abroad(state, lane, addr)? {
        None => on(state, lane, give),
        Some(context) => elsewhere(state, lane, &context, give),
    }
}

/// Copies bytes, whichever GPUs they are on.
///
/// # Errors
/// As [`near`].
pub(crate) fn copy(state: &mut State, lane: LaneKey, to: Extent, from: Extent) -> CuResult {
    match between(state, lane, to.addr(), from.addr())? {
        Way::Here => on(state, lane, |stream| stream.copy(to, from)),
        Way::There(context) => elsewhere(state, lane, &context, |stream| stream.copy(to, from)),
        Way::Peers(ends) => on(state, lane, |stream| stream.copy_peer(to, from, &ends)),
    }
}

/// Copies a box, whichever GPUs it is on.
///
/// # Errors
/// As [`near`], and as `Stream::copy_box`.
pub(crate) fn copy_box(
    state: &mut State,
    lane: LaneKey,
    (to, from): (Extent, Extent),
    copy: &BoxCopy,
) -> CuResult {
    match between(state, lane, to.addr(), from.addr())? {
        Way::Here => on(state, lane, |stream| stream.copy_box(to, from, copy)),
        Way::There(context) => elsewhere(state, lane, &context, |stream| {
            stream.copy_box(to, from, copy)
        }),
        Way::Peers(ends) => on(state, lane, |stream| {
            stream.copy_box_peer((to, from), &ends, copy)
        }),
    }
}

/// Whether memory at an address is of another GPU than a context's.
pub(crate) fn is_abroad(state: &State, lane: LaneKey, addr: u64) -> bool {
    !matches!(abroad(state, lane, addr), Ok(None))
}

/// Who copies.
enum Way {
    /// The stream itself.
    Here,
    /// A stream of this context.
    There(Arc<Context>),
    /// The stream, from the second context's GPU to the first one's.
    Peers([Arc<Context>; 2]),
}

fn between(state: &State, lane: LaneKey, to: u64, from: u64) -> CuResult<Way> {
    Ok(
        match (abroad(state, lane, to)?, abroad(state, lane, from)?) {
            (None, None) => Way::Here,
            (Some(to), Some(from)) if to.is_on_device_of(&from) => Way::There(to),
            (Some(to), Some(from)) => Way::Peers([to, from]),
            // Host memory has no GPU.
            (Some(there), None) if state.memory.device_of(from).is_none() => Way::There(there),
            (None, Some(there)) if state.memory.device_of(to).is_none() => Way::There(there),
            (Some(to), None) => Way::Peers([to, own(state, lane)?]),
            (None, Some(from)) => Way::Peers([own(state, lane)?, from]),
        },
    )
}

fn own(state: &State, lane: LaneKey) -> CuResult<Arc<Context>> {
    let lane = state.lanes.get(&lane).ok_or(CuStatus::INVALID_HANDLE)?;
    Ok(lane.stream.context().clone())
}

/// A context on the GPU that memory at an address is of; `None` if the stream's own is.
fn abroad(state: &State, lane: LaneKey, addr: u64) -> CuResult<Option<Arc<Context>>> {
    if state.contexts.len() < 2 {
        return Ok(None);
    }
    let own = state.lanes.get(&lane).map(|lane| lane.key);
    let own = own.and_then(|key| state.contexts.get(&key));
    let own = own.ok_or(CuStatus::INVALID_CONTEXT)?.owner.device;
    match state.memory.device_of(addr) {
        None => Ok(None),
        Some(device) if device == own => Ok(None),
        Some(device) => {
            let mut contexts = state.contexts.values();
            let there = contexts.find(|it| it.owner.device == device && it.error.is_none());
            let there = there.ok_or(CuStatus::INVALID_CONTEXT)?;
            Ok(Some(there.owner.context.clone()))
        }
    }
}

/// Does something on a stream of another context, behind what `lane` has and before what it gets.
///
/// The stream is made for this alone: one that was shared would make streams of the client wait for each other.
fn elsewhere<T>(
    state: &mut State,
    lane: LaneKey,
    context: &Arc<Context>,
    give: impl FnOnce(&Stream) -> CuResult<T>,
) -> CuResult<T> {
    let before = Event::create(&own(state, lane)?, EVENT_DISABLE_TIMING)?;
    on(state, lane, |stream| stream.record(&before))?;
    let there = Stream::create(context, STREAM_NON_BLOCKING, 0)?;
    there.wait(&before)?;
    let given = give(&there)?;
    let after = Event::create(context, EVENT_DISABLE_TIMING)?;
    there.record(&after)?;
    on(state, lane, |stream| stream.wait(&after))?;
    Ok(given)
}
