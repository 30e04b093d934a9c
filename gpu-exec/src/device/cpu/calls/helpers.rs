//! What several calls have in common, and the longer ones.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::record::Head;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuGraphInstantiateWithFlags, CuLaunchKernel};

use super::Answer;
use crate::device::cpu::graph::GraphExec;
use crate::device::cpu::memory::Block;
use crate::device::cpu::state::{ContextKey, State, Wait};
use crate::device::cpu::upload::receive_ahead;
use crate::device::cpu::{CpuDevice, nodes};
use crate::executor::outbox::{Failure, Reply};
use crate::sys::staging::Staging;

const NS_PER_MS: f64 = 1e6;

impl CpuDevice {
    /// Answers with a status that is known now; `None`: somebody else answers.
    pub(super) fn answer(&self, head: &Head, status: Option<CuStatus>) -> Answer {
        match status {
            Some(CuStatus::NOT_READY) => self.outbox.status(Reply::to(head), CuStatus::NOT_READY),
            Some(CuStatus::SUCCESS) => self.outbox.status(Reply::to(head), CuStatus::SUCCESS),
            Some(status) if head.ticket != 0 => self.outbox.status(Reply::to(head), status),
            Some(status) => self.outbox.finish(Reply::to(head), Err(status.into())),
            None => {}
        }
        Ok(())
    }

    /// Whether a launch does nothing and nothing was in its way: then it is done. All launches of `null` while the session
    /// does nothing else.
    pub(super) fn passes(&self, head: &Head, record: &CuLaunchKernel<'_>) -> bool {
        !self.runs_kernels
            && head.ticket == 0
            && self.modules.is_nothing(record)
            && self
                .context(head)
                .is_ok_and(|context| self.streams.pass(context.key, record.stream))
    }

    pub(super) fn with_stream(
        &self,
        head: &Head,
        handle: u64,
        ask: impl FnOnce(&mut State, ContextKey, Wait) -> Option<CuStatus>,
    ) -> Option<CuStatus> {
        let context = match self.context(head) {
            Ok(context) => context.key,
            Err(status) => return Some(status),
        };
        let mut state = self.streams.state();
        let position = state
            .resolve(context, handle)
            .map(|key| state.position(key));
        match position {
            Ok(Some(wait)) => {
                let owner = state.context_of(wait.stream).unwrap_or(context);
                ask(&mut state, owner, wait)
            }
            Ok(None) => Some(CuStatus::INVALID_HANDLE),
            Err(status) => Some(status),
        }
    }

    pub(super) fn elapsed_ms(&self, head: &Head, start: u64, end: u64) -> CuResult<f32> {
        let context = self.context(head)?.key;
        let state = self.streams.state();
        let (start, end) = (state.events.get(start)?, state.events.get(end)?);
        match state.health(context) {
            CuStatus::SUCCESS => {}
            error => return Err(error),
        }
        if !start.timed || !end.timed || start.recorded.is_none() || end.recorded.is_none() {
            return Err(CuStatus::INVALID_HANDLE);
        }
        let (Some(from), Some(to)) = (start.reached_ns, end.reached_ns) else {
            return Err(CuStatus::NOT_READY);
        };
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "CUDA gives a float"
        )]
        let ms = ((to as f64 - from as f64) / NS_PER_MS) as f32;
        Ok(ms)
    }

    /// Reads the definition of a graph: from the record, or when the bulk plane has brought it.
    pub(super) fn define_graph(
        &self,
        head: &Head,
        record: &CuGraphInstantiateWithFlags<'_>,
        exec: &Arc<GraphExec>,
        bytes: usize,
        owner: Block,
    ) {
        let reply = Reply::to(head);
        let node_bytes = usize::try_from(record.node_bytes).unwrap_or(usize::MAX);
        let (modules, outbox, streams) = (
            self.modules.clone(),
            self.outbox.clone(),
            self.streams.clone(),
        );
        let (exec, node_count) = (exec.clone(), record.node_count);
        let define = move |data: &[u8]| {
            let records = if data.len() == bytes {
                data.get(..node_bytes)
            } else {
                None
            };
            let missing = || {
                Failure::new(
                    CuStatus::INVALID_VALUE,
                    format!("{} bytes of a graph, announced were {bytes}", data.len()),
                )
            };
            let nodes = records
                .ok_or_else(missing)
                .and_then(|records| nodes::graph(&modules, records, node_count, owner));
            let outcome = nodes.as_ref().map(|_| ()).map_err(Clone::clone);
            exec.define(nodes);
            outbox.finish(reply, outcome);
        };
        if record.bulk == 0 {
            return define(record.data);
        }
        let staging = Arc::new(Staging::new(bytes));
        let filled = staging.clone();
        receive_ahead(&*self.outbox, record.bulk, &staging, bytes, move || {
            define(filled.contents().unwrap_or_default());
            streams.look_again();
        });
    }
}
