//! Operations as driver calls.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::abroad::{self, near};
use super::driver::{Event, Stream};
use super::issue::{Later, Progress, Shared};
use super::op::{Fill, Launch, Op};
use super::state::{LaneKey, State};
use super::turns::Turn;
use crate::device::box_copy::BoxCopy;
use crate::executor::outbox::{Failure, Reply};

impl Shared {
    pub(crate) fn perform<'a>(
        &self,
        state: &mut State,
        later: &mut Later,
        lane: LaneKey,
        reply: Reply,
        op: Op<'a>,
    ) -> Progress<'a> {
        match op {
            Op::Nothing => Progress::Given(Ok(())),
            Op::Record { handle, event } => {
                Progress::Given(record(state, lane, handle, &event).map_err(Failure::from))
            }
            Op::Wait { event } => Progress::Given(
                on(state, lane, |stream| stream.wait(&event)).map_err(Failure::from),
            ),
            Op::Write { dst, data } => self.write(state, lane, dst, data),
            Op::Upload { dst, transfer, at } => self.upload(state, lane, dst, transfer, at),
            Op::Read {
                src,
                count,
                bulk,
                at,
                gathering,
            } => self.read(state, lane, reply, src, count, (bulk, at, gathering)),
            Op::Copy { dst, src, count } => Progress::Given(copy(state, lane, dst, src, count)),
            Op::CopyBox(copy) => Progress::Given(copy_box(state, lane, &copy)),
            Op::Fill(request) => {
                Progress::Given(fill(state, lane, &request).map_err(Failure::from))
            }
            Op::Launch(launch) => self.launch(state, lane, launch),
            Op::Graph { exec, from } if !exec.is_ready() => {
                Progress::Blocked(Op::Graph { exec, from })
            }
            Op::Graph { exec, from } => match self.turn(state, lane) {
                Turn::NotYet => Progress::Blocked(Op::Graph { exec, from }),
                turn => {
                    let progress = self.run_graph(state, later, lane, reply, (exec, from), turn);
                    self.rest_if_idle(state, turn);
                    progress
                }
            },
            Op::HostFunc { callback } => self.host(state, later, lane, reply, callback, None),
            Op::Alloc { addr, bytes, kind } => self.retry_alloc(state, lane, addr, bytes, kind),
            Op::Free { addr } => Progress::Given(self.free_in_order(state, lane, addr)),
        }
    }

    pub(crate) fn launch<'a>(
        &self,
        state: &mut State,
        lane: LaneKey,
        launch: Launch<'a>,
    ) -> Progress<'a> {
        match launch.function.resolved() {
            None => Progress::Blocked(Op::Launch(launch)),
            Some(Err(failure)) => Progress::Given(Err(failure.clone())),
            Some(Ok(function)) => {
                let turn = self.turn(state, lane);
                if turn == Turn::NotYet {
                    return Progress::Blocked(Op::Launch(launch));
                }
                let outcome = on(state, lane, |stream| {
                    stream.launch(function, &launch.as_driver())
                });
                self.launched(state, lane, turn);
                Progress::Given(outcome.map_err(|status| {
                    Failure::new(status, format!("launch of {}", launch.function.name()))
                }))
            }
        }
    }
}

/// Gives something to the driver on a stream.
pub(crate) fn on<T>(
    state: &mut State,
    lane: LaneKey,
    give: impl FnOnce(&Stream) -> CuResult<T>,
) -> CuResult<T> {
    state.use_lane(lane)?;
    let lane = state.lanes.get(&lane).ok_or(CuStatus::INVALID_HANDLE)?;
    give(&lane.stream)
}

/// Lets a stream wait for the zeroing of memory that it may be about to use: that of every context, since copies reach the
/// memory of others.
pub(crate) fn prepare(state: &mut State, at: LaneKey) -> CuResult {
    let zeroings = state.zeroings;
    let Some(lane) = state.lanes.get_mut(&at) else {
        return Ok(());
    };
    if lane.zeroed == zeroings {
        return Ok(());
    }
    let known = std::mem::replace(&mut lane.zeroed, zeroings);
    // A lost context's event would make this one fail, and what was lost with it is not used any more.
    let newer = state.contexts.values();
    let newer = newer.filter(|context| context.zeroing > known && context.error.is_none());
    let events: Vec<Arc<Event>> = newer.filter_map(|context| context.zeroed.clone()).collect();
    events
        .iter()
        .try_for_each(|event| on(state, at, |stream| stream.wait(event)))
}

fn record(state: &mut State, lane: LaneKey, handle: u64, event: &Arc<Event>) -> CuResult {
    // Recorded again on another stream meanwhile, or destroyed: nobody asks for this record.
    let is_last = state
        .events
        .get(handle)
        .is_ok_and(|event| event.recorded.is_some_and(|wait| wait.lane == lane));
    if is_last {
        on(state, lane, |stream| stream.record(event))
    } else {
        Ok(())
    }
}

fn copy(state: &mut State, lane: LaneKey, dst: u64, src: u64, count: u64) -> Result<(), Failure> {
    let extents = state
        .memory
        .extent(dst, count)
        .and_then(|dst| Ok((dst, state.memory.extent(src, count)?)));
    let (to, from) = extents.map_err(|status| {
        Failure::new(status, format!("no {count} bytes at {dst:#x} or {src:#x}"))
    })?;
    Ok(abroad::copy(state, lane, to, from)?)
}

fn copy_box(state: &mut State, lane: LaneKey, copy: &BoxCopy) -> Result<(), Failure> {
    if copy.is_empty() {
        return Ok(());
    }
    copy.check()?;
    let memory = &state.memory;
    let ends = memory
        .extent(copy.dst.addr, copy.span(&copy.dst)?)
        .and_then(|dst| Ok((dst, memory.extent(copy.src.addr, copy.span(&copy.src)?)?)));
    let (to, from) = ends.map_err(|status| {
        let (dst, src) = (copy.dst.addr, copy.src.addr);
        Failure::new(status, format!("no box at {dst:#x} or {src:#x}"))
    })?;
    Ok(abroad::copy_box(state, lane, (to, from), copy)?)
}

fn fill(state: &mut State, lane: LaneKey, fill: &Fill) -> CuResult {
    let Some((extent, rows)) = fill.resolve(&state.memory)? else {
        return Ok(());
    };
    if rows.count == 1 {
        return near(state, lane, fill.dst, |stream| {
            stream.fill(extent, fill.value, fill.width)
        });
    }
    near(state, lane, fill.dst, |stream| {
        stream.fill_rows(
            extent,
            rows.pitch,
            rows.count,
            rows.elements,
            fill.value,
            fill.width,
        )
    })
}
