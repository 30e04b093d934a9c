//! Fresh memory, and memory freed in the order of a stream.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::driver::{Event, Extent, Stream};
use super::issue::{Progress, Shared};
use super::memory::BlockKind;
use super::op::{After, Op};
use super::state::{ContextKey, ContextState, LaneKey, State};
use crate::executor::outbox::{Failure, Reply};

const STREAM_NON_BLOCKING: u32 = 1;
const EVENT_DISABLE_TIMING: u32 = 2;

impl Shared {
    /// Makes fresh memory: now, or, if it does not fit beside memory that is about to be freed, after that. `stream`: in whose
    /// order the memory will be used; `None`: anybody's from now on. Returns the address, if it is there now.
    ///
    /// # Errors
    /// As `Memory::insert`.
    pub(crate) fn allocate(
        &self,
        reply: Reply,
        key: ContextKey,
        stream: Option<u64>,
        addr: u64,
        bytes: u64,
        kind: BlockKind,
    ) -> Result<Option<u64>, Failure> {
        let mut state = self.state();
        let outcome = match state.health(key) {
            CuStatus::SUCCESS => insert(&mut state, key, addr, bytes, kind),
            error => return Err(error.into()),
        };
        let may_come = outcome.is_err() && addr != 0 && state.may_free();
        if !may_come {
            return outcome
                .map(Some)
                .map_err(|status| refused_block(status, addr, bytes));
        }
        let lane = state.resolve(key, stream.unwrap_or(0))?;
        let mut waits = Vec::new();
        state.implicit_waits(lane, &mut waits);
        state.issue(lane);
        state.enqueue(lane, Op::Alloc { addr, bytes, kind }, reply, waits);
        if stream.is_none() {
            state.set_barrier(lane);
        }
        Ok(None)
    }

    /// `cuMemFreeAsync`: condemned now, gone when the stream gets there.
    pub(crate) fn free_in_order(
        &self,
        state: &mut State,
        lane: LaneKey,
        addr: u64,
    ) -> Result<(), Failure> {
        state
            .memory
            .condemn(addr, false)
            .map_err(|status| Failure::new(status, format!("nothing to free at {addr:#x}")))?;
        let Some(key) = state.lanes.get(&lane).map(|lane| lane.key) else {
            return Ok(());
        };
        let fence = self.fence(state, lane)?;
        state.frees += 1;
        let this = self.weak();
        let done = move |status: CuStatus| {
            if let Some(this) = this.upgrade() {
                this.judge(key, status);
                this.finish_after(key, After::Free { addr, host: false });
                this.pump();
            }
        };
        self.completion.when(Vec::from_iter(fence), Box::new(done));
        Ok(())
    }

    pub(crate) fn retry_alloc<'a>(
        &self,
        state: &mut State,
        lane: LaneKey,
        addr: u64,
        bytes: u64,
        kind: BlockKind,
    ) -> Progress<'a> {
        let Some(key) = state.lanes.get(&lane).map(|lane| lane.key) else {
            return Progress::Given(Ok(()));
        };
        match insert(state, key, addr, bytes, kind) {
            Err(_) if state.may_free() => Progress::Blocked(Op::Alloc { addr, bytes, kind }),
            outcome => Progress::Given(
                outcome
                    .map(|_| ())
                    .map_err(|status| refused_block(status, addr, bytes)),
            ),
        }
    }
}

fn insert(
    state: &mut State,
    key: ContextKey,
    addr: u64,
    bytes: u64,
    kind: BlockKind,
) -> CuResult<u64> {
    let State {
        memory, contexts, ..
    } = &mut *state;
    let context = contexts.get_mut(&key).ok_or(CuStatus::INVALID_CONTEXT)?;
    let addr = memory.insert(&context.owner, addr, bytes, kind)?;
    let cleared = clear(state, key);
    if cleared.is_err() {
        drop(state.memory.take(addr));
    }
    cleared.map(|()| addr)
}

/// Has memory cleared that was mapped, before later work of the session, in whichever context.
///
/// # Errors
/// `INVALID_CONTEXT`: there is no context of its device. Else as the driver.
pub(super) fn clear(state: &mut State, key: ContextKey) -> CuResult {
    for fresh in state.memory.take_fresh() {
        let extent = state.memory.fresh_extent(&fresh)?;
        let is_its = |context: &ContextState| context.owner.device == fresh.device;
        let contexts = &mut state.contexts;
        let key = match contexts.get(&key) {
            Some(context) if is_its(context) => key,
            _ => {
                let other = contexts.iter().find(|(_, context)| is_its(context));
                *other.ok_or(CuStatus::INVALID_CONTEXT)?.0
            }
        };
        let context = contexts.get_mut(&key).ok_or(CuStatus::INVALID_CONTEXT)?;
        state.zeroings += 1;
        context.zeroing = state.zeroings;
        let event = zero(context, extent)?;
        if let Some(access) = fresh.access {
            // Rare: memory that its own device may not write to from its first mapping on.
            while event.query() == Err(CuStatus::NOT_READY) {
                std::thread::yield_now();
            }
            state.memory.restrict(fresh.addr, access)?;
        }
    }
    Ok(())
}

fn zero(context: &mut ContextState, extent: Extent) -> CuResult<Arc<Event>> {
    let driver_context = &context.owner.context;
    let zeroer = match context.zeroer.take() {
        Some(stream) => stream,
        None => Stream::create(driver_context, STREAM_NON_BLOCKING, 0)?,
    };
    let zeroer = context.zeroer.insert(zeroer);
    zeroer.fill(extent, 0, 1)?;
    let event = match context.zeroed.take() {
        Some(event) => event,
        None => Arc::new(Event::create(driver_context, EVENT_DISABLE_TIMING)?),
    };
    let event = context.zeroed.insert(event);
    zeroer.record(event)?;
    Ok(event.clone())
}

fn refused_block(status: CuStatus, addr: u64, bytes: u64) -> Failure {
    let why = match status {
        CuStatus::OUT_OF_MEMORY => "over the limit of the session or the device",
        CuStatus::NOT_SUPPORTED => "the device cannot use host memory at the program's address",
        _ => "not free or not in the range",
    };
    Failure::new(status, format!("{bytes} bytes at {addr:#x}: {why}"))
}
