//! What the answers to records have in common: a context that is there and healthy, a ticket that is answered once.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use farcall_marshal::record::Head;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuGraphInstantiateWithFlags, CuMemAllocV2Reply};

use super::CudaDevice;
use super::driver::{Context, Fence, receive_staged};
use super::graphs::{self, GraphExec};
use super::issue::Later;
use super::memory::BlockKind;
use super::op::After;
use super::state::{ContextKey, Detached, State};
use crate::device::Violation;
use crate::executor::outbox::{Failure, Reply};
use crate::sys::staging::Staging;

type Answer = Result<(), Violation>;

impl CudaDevice {
    /// Does something at once in the head's context and answers; a lost context answers with its error.
    pub(crate) fn in_context(
        &self,
        head: &Head,
        act: impl FnOnce(&mut State, ContextKey) -> CuResult,
    ) -> Answer {
        let mut state = self.shared.state();
        let outcome = state
            .named(head.context)
            .and_then(|key| match state.health(key) {
                CuStatus::SUCCESS => Ok(act(&mut state, key).map_err(|status| (key, status))),
                error => Err(error),
            });
        let mut later = Later::default();
        let reply = Reply::to(head);
        match outcome {
            Ok(Ok(())) => later.outcomes.push((reply, Ok(()))),
            Ok(Err((key, status))) => {
                if status.is_sticky() {
                    self.shared
                        .lose(&mut state, &mut later, key, status.into(), head.number);
                }
                if !status.is_sticky() || head.ticket != 0 {
                    later.outcomes.push((reply, Err(status.into())));
                }
            }
            // It has told so before.
            Err(error) if error.is_sticky() && head.ticket == 0 => {}
            Err(error) => later.outcomes.push((reply, Err(error.into()))),
        }
        drop(state);
        self.shared.settle(later);
        Ok(())
    }

    /// Answers at once whether something is done.
    pub(crate) fn query(
        &self,
        head: &Head,
        ask: impl FnOnce(&State, ContextKey) -> CuResult,
    ) -> Answer {
        let state = self.shared.state();
        let key = state.named(head.context);
        let outcome = key.and_then(|key| match state.health(key) {
            CuStatus::SUCCESS => ask(&state, key),
            error => Err(error),
        });
        drop(state);
        let status = outcome.err().unwrap_or(CuStatus::SUCCESS);
        if let Ok(key) = key {
            self.shared.judge(key, status);
        }
        self.outbox.status(Reply::to(head), status);
        Ok(())
    }

    pub(crate) fn after_all(&self, head: &Head, after: After) -> Answer {
        let key = match self.context(head) {
            Ok(key) => key,
            Err(status) => return self.finish(head, Err(status.into())),
        };
        let mut later = Later::default();
        let mut state = self.shared.state();
        self.shared
            .after_all(&mut state, &mut later, Reply::to(head), key, after);
        drop(state);
        self.shared.settle(later);
        Ok(())
    }

    pub(crate) fn allocate(
        &self,
        head: &Head,
        stream: Option<u64>,
        addr: u64,
        bytes: u64,
        kind: BlockKind,
    ) -> Answer {
        let reply = Reply::to(head);
        let outcome = match self.context(head) {
            Ok(key) => self.shared.allocate(reply, key, stream, addr, bytes, kind),
            Err(status) => Err(status.into()),
        };
        match outcome {
            Ok(Some(placed)) if addr == 0 => self.outbox.record(
                reply,
                CuStatus::SUCCESS,
                &CuMemAllocV2Reply { addr: placed },
            ),
            Ok(Some(_)) => self.outbox.finish(reply, Ok(())),
            Ok(None) => {}
            Err(failure) => self.outbox.finish(reply, Err(failure)),
        }
        Ok(())
    }

    pub(crate) fn elapsed_ms(&self, head: &Head, start: u64, end: u64) -> CuResult<f32> {
        let state = self.shared.state();
        match state.health(state.named(head.context)?) {
            CuStatus::SUCCESS => {}
            error => return Err(error),
        }
        let (start, end) = (state.events.get(start)?, state.events.get(end)?);
        match (start.recorded, end.recorded) {
            (Some(from), Some(to)) if state.has_passed(from) && state.has_passed(to) => {
                start.event.elapsed_ms(&end.event)
            }
            (Some(_), Some(_)) => Err(CuStatus::NOT_READY),
            _ => Err(CuStatus::INVALID_HANDLE),
        }
    }

    /// Answers when the device has got to the event.
    pub(crate) fn wait_for_event(&self, head: &Head, handle: u64) -> Answer {
        let key = match self.context(head) {
            Ok(key) => key,
            Err(status) => return self.finish(head, Err(status.into())),
        };
        let state = self.shared.state();
        let found = state
            .events
            .get(handle)
            .map(|event| (event.event.clone(), event.recorded));
        let passed = found
            .as_ref()
            .is_ok_and(|(_, recorded)| recorded.is_none_or(|wait| state.has_passed(wait)));
        let mut state = state;
        let reply = Reply::to(head);
        match found {
            Err(status) => {
                drop(state);
                self.outbox.finish(reply, Err(status.into()));
            }
            Ok((event, _)) if passed => {
                drop(state);
                self.shared.answer_at(key, reply, vec![Fence::of(event)]);
            }
            Ok((event, recorded)) => {
                let waits = Vec::from_iter(recorded);
                state.detached.push(Detached {
                    key,
                    reply,
                    after: After::Event(event),
                    waits,
                });
            }
        }
        Ok(())
    }

    /// Reads the definition of a graph: from the record, or when the bulk plane has brought it.
    pub(crate) fn define_graph(
        &self,
        head: &Head,
        record: &CuGraphInstantiateWithFlags<'_>,
        exec: &Arc<GraphExec>,
        bytes: usize,
    ) {
        let (reply, exec) = (Reply::to(head), exec.clone());
        let node_bytes = usize::try_from(record.node_bytes).unwrap_or(usize::MAX);
        let (node_count, flags) = (record.node_count, record.flags);
        let (modules, outbox, shared) = (
            self.modules.clone(),
            self.outbox.clone(),
            self.shared.clone(),
        );
        let define = move |data: &[u8]| {
            let missing = || {
                Failure::new(
                    CuStatus::INVALID_VALUE,
                    format!("{} bytes of a graph, announced were {bytes}", data.len()),
                )
            };
            let whole = if data.len() == bytes {
                Ok(data)
            } else {
                Err(missing())
            };
            let definition = whole
                .and_then(|data| graphs::decode(&modules, data, node_bytes, node_count, flags));
            let outcome = definition.as_ref().map(|_| ()).map_err(Clone::clone);
            exec.define(definition);
            outbox.finish(reply, outcome);
        };
        if record.bulk == 0 {
            return define(record.data);
        }
        let staging = Arc::new(Staging::new(bytes));
        let filled = staging.clone();
        receive_staged(&*self.outbox, record.bulk, &staging, bytes, move || {
            define(filled.contents().unwrap_or_default());
            shared.pump();
        });
    }
}

pub(crate) fn driver_context(state: &State, key: ContextKey) -> CuResult<&Arc<Context>> {
    state
        .contexts
        .get(&key)
        .map(|context| &context.owner.context)
        .ok_or(CuStatus::INVALID_CONTEXT)
}

/// Whether answers to reads of a stream are still to be sent: it is not said to be done before them.
pub(crate) fn is_answering(state: &State, lane: super::state::LaneKey) -> bool {
    state
        .lanes
        .get(&lane)
        .is_some_and(|lane| lane.unanswered.load(Ordering::Acquire) > 0)
}
