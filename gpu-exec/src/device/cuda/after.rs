//! What waits for fences: everything of a context, or of a stream.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::driver::Fence;
use super::issue::{Later, Shared};
use super::op::After;
use super::state::{ContextKey, Detached, LaneKey, State};
use crate::executor::outbox::{Failure, Reply};

impl Shared {
    /// Does `after` when everything issued to the context so far is done.
    pub(crate) fn after_all(
        &self,
        state: &mut State,
        later: &mut Later,
        reply: Reply,
        key: ContextKey,
        after: After,
    ) {
        let waits = if state.is_behind() {
            state.unpassed_of(key)
        } else {
            Vec::new()
        };
        let detached = Detached {
            key,
            reply,
            after,
            waits,
        };
        if detached.waits.is_empty() {
            self.detach(state, later, detached)
        } else {
            state.detached.push(detached)
        }
    }

    /// The fence behind everything that the driver has of a stream; `None` if that is nothing.
    pub(crate) fn fence(&self, state: &mut State, lane: LaneKey) -> CuResult<Option<Arc<Fence>>> {
        let Some(lane) = state.lanes.get_mut(&lane).filter(|lane| lane.is_used) else {
            return Ok(None);
        };
        if lane.fence.is_none() {
            let fence = lane.stream.fence()?;
            self.attach(lane, &fence);
        }
        Ok(lane.fence.clone())
    }

    /// Fences behind everything that the driver has of a context.
    pub(crate) fn fences_of(
        &self,
        state: &mut State,
        key: ContextKey,
    ) -> CuResult<Vec<Arc<Fence>>> {
        let lanes = state
            .contexts
            .get(&key)
            .map(|context| context.lanes.clone())
            .unwrap_or_default();
        let mut fences = Vec::with_capacity(lanes.len() + 1);
        for lane in lanes {
            fences.extend(self.fence(state, lane)?);
        }
        if let Some(context) = state.contexts.get(&key) {
            fences.extend(context.zeroed.clone().map(Fence::of));
            fences.extend_from_slice(&context.orphans);
        }
        Ok(fences)
    }

    pub(crate) fn detach(&self, state: &mut State, later: &mut Later, detached: Detached) {
        let Detached {
            key,
            reply,
            mut after,
            ..
        } = detached;
        if let After::Event(event) = after {
            return self.answer_at(key, reply, vec![Fence::of(event)]);
        }
        let fences = if state.health(key) == CuStatus::SUCCESS {
            self.fences_of(state, key)
        } else {
            Ok(Vec::new())
        };
        let fences = fences.unwrap_or_else(|status| {
            self.lose(state, later, key, Failure::from(status), reply.call);
            Vec::new()
        });
        if let After::Free { addr, host } = after {
            if let Err(status) = state.memory.condemn(addr, host) {
                let failure = Failure::new(status, format!("nothing to free at {addr:#x}"));
                return later.outcomes.push((reply, Err(failure)));
            }
            state.frees += 1;
        }
        if let After::Unmap {
            addr,
            bytes,
            marked,
        } = &mut after
        {
            match state.memory.condemn_mapped(*addr, *bytes) {
                Ok(tiles) => *marked = tiles,
                Err(status) => {
                    let failure = Failure::new(status, format!("nothing to unmap at {addr:#x}"));
                    return later.outcomes.push((reply, Err(failure)));
                }
            }
            state.frees += 1;
        }
        let this = self.weak();
        let done = move |status: CuStatus| {
            if let Some(this) = this.upgrade() {
                let status = this.judge(key, status);
                this.finish_after(key, after);
                this.outbox.status(reply, status);
                this.pump();
            }
        };
        self.completion.when(fences, Box::new(done));
    }

    pub(crate) fn finish_after(&self, key: ContextKey, after: After) {
        match after {
            After::Answer | After::Event(_) => {}
            After::Free { addr, .. } => {
                let mut state = self.state();
                state.frees -= 1;
                let block = state.memory.take(addr);
                drop(state);
                drop(block);
            }
            After::Unmap { marked, .. } => {
                let mut state = self.state();
                state.frees -= 1;
                let blocks: Vec<_> = marked
                    .into_iter()
                    .filter_map(|addr| state.memory.take(addr))
                    .collect();
                drop(state);
                drop(blocks);
            }
            After::Drop(value) => drop(value),
            After::EndContext => {
                let mut state = self.state();
                let blocks = state.memory.take_all(key);
                let rest = state.remove_context(key);
                drop(state);
                drop(blocks);
                drop(rest);
            }
        }
    }
}
