//! The CPU devices, `soft` and `null`: they differ in what a kernel does and in nothing else.

use std::sync::Arc;

use farcall_marshal::record::Head;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::HostFuncDone;
use rustc_hash::FxHashMap;

use self::graph::GraphExec;
use self::kernels::Kernels;
use self::memory::{Area, Block, BlockKind, Memory, Turn};
use self::modules::{Compile, Modules};
use self::state::ContextKey;
use self::streams::Streams;
use self::work::Work;
use super::handles::HandleTable;
use super::{Device, Violation};
use crate::cache::Cache;
use crate::executor::outbox::{Failure, Outbox, Reply};
use crate::limits::GRAPHS_MAX;
use crate::share::gate::Gate;

mod calls;
mod function;
pub(crate) mod graph;
mod kernels;
pub(crate) mod memory;
mod modules;
mod nodes;
pub(crate) mod state;
mod streams;
mod upload;
pub(crate) mod work;

#[cfg(test)]
mod tests;

/// What a CPU device is made with.
#[derive(Debug)]
pub(crate) struct CpuParts {
    pub(crate) memory: Arc<Memory>,
    pub(crate) turn: Turn,
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) cache: Cache,
    /// Whether kernels run.
    pub(crate) runs_kernels: bool,
    /// Threads that kernels may use.
    pub(crate) workers: usize,
    /// How many devices the client sees.
    pub(crate) device_count: usize,
    /// Where their kernels wait for other sessions.
    pub(crate) gate: Arc<Gate>,
}

/// A session's CPU devices.
#[derive(Debug)]
pub(crate) struct CpuDevice {
    streams: Arc<Streams>,
    modules: Arc<Modules>,
    outbox: Arc<dyn Outbox>,
    contexts: FxHashMap<u32, ContextEntry>,
    graphs: HandleTable<Arc<GraphExec>>,
    device_count: usize,
    runs_kernels: bool,
}

#[derive(Clone, Copy, Debug)]
struct ContextEntry {
    key: ContextKey,
    device: usize,
    primary: bool,
}

impl CpuDevice {
    /// A device without contexts. Starts no thread.
    pub(crate) fn new(parts: CpuParts) -> Self {
        let CpuParts {
            memory,
            turn,
            outbox,
            cache,
            runs_kernels,
            workers,
            device_count,
            gate,
        } = parts;
        let compile = if runs_kernels {
            Compile::Ptx
        } else {
            Compile::Nothing
        };
        let streams = Streams::new(memory, turn, outbox.clone(), Kernels::new(workers), gate);
        let modules = Modules::new(streams.clone(), cache, compile);
        Self {
            streams,
            modules,
            outbox,
            contexts: FxHashMap::default(),
            graphs: HandleTable::new(GRAPHS_MAX),
            device_count,
            runs_kernels,
        }
    }

    /// The context that a record is made in.
    fn context(&self, head: &Head) -> CuResult<ContextEntry> {
        self.contexts
            .get(&head.context)
            .copied()
            .ok_or(CuStatus::INVALID_CONTEXT)
    }

    fn finish(&self, head: &Head, outcome: Result<(), Failure>) -> Result<(), Violation> {
        self.outbox.finish(Reply::to(head), outcome);
        Ok(())
    }

    /// Ends a record at once, but for a lost context, whose every ticket is answered with its error.
    fn finish_healthy(&self, head: &Head, outcome: CuResult) -> Result<(), Violation> {
        let health = self.context(head).map_or(CuStatus::SUCCESS, |context| {
            self.streams.state().health(context.key)
        });
        if health != CuStatus::SUCCESS {
            self.outbox.status(Reply::to(head), health);
            return Ok(());
        }
        self.finish(head, outcome.map_err(Failure::from))
    }

    /// Issues an operation to a stream.
    fn submit(
        &self,
        head: &Head,
        stream: u64,
        work: Result<Work<'_>, Failure>,
    ) -> Result<(), Violation> {
        let reply = Reply::to(head);
        match (self.context(head), work) {
            (Ok(context), Ok(work)) => self.streams.submit(reply, context.key, stream, work),
            (Err(status), _) => self.outbox.finish(reply, Err(status.into())),
            (Ok(context), Err(failure)) => {
                let health = self.streams.state().health(context.key);
                if health == CuStatus::SUCCESS {
                    self.outbox.finish(reply, Err(failure));
                } else {
                    self.outbox.status(reply, health);
                }
            }
        }
        Ok(())
    }

    fn create_context(&mut self, head: &Head, device: u32, primary: bool) -> CuResult {
        let device = device as usize;
        if device >= self.device_count {
            return Err(CuStatus::INVALID_DEVICE);
        }
        match self.contexts.get(&head.context) {
            Some(entry) if primary && entry.primary && entry.device == device => return Ok(()),
            Some(_) => return Err(CuStatus::INVALID_CONTEXT),
            None if head.context == 0 => return Err(CuStatus::INVALID_CONTEXT),
            None => {}
        }
        let key = self.streams.state().add_context(device)?;
        self.contexts.insert(
            head.context,
            ContextEntry {
                key,
                device,
                primary,
            },
        );
        Ok(())
    }

    /// Frees all that a context has; its name is the caller's business.
    fn end_context(&self, reply: Reply, entry: ContextEntry) {
        self.modules.end_context(entry.key);
        self.streams.submit_after_all(
            reply,
            entry.key,
            Work::EndContext {
                context: entry.key.0,
            },
        );
        self.streams.state().retire_context(entry.key);
    }

    fn allocate(
        &self,
        head: &Head,
        stream: Option<u64>,
        addr: u64,
        bytes: u64,
        kind: BlockKind,
    ) -> Result<(), Violation> {
        let reply = Reply::to(head);
        match self.context(head) {
            Ok(context) => {
                let block = Block {
                    bytes,
                    kind,
                    context: context.key.0,
                    device: context.device,
                    readable: true,
                    writable: true,
                };
                self.streams
                    .allocate(reply, context.key, stream, addr, block);
            }
            Err(status) => self.outbox.finish(reply, Err(status.into())),
        }
        Ok(())
    }

    fn free(&self, head: &Head, addr: u64, host: bool) -> Result<(), Violation> {
        let reply = Reply::to(head);
        match self.context(head) {
            Ok(context) => {
                self.streams
                    .submit_after_all(reply, context.key, Work::Remove { addr, host })
            }
            Err(status) => self.outbox.finish(reply, Err(status.into())),
        }
        Ok(())
    }
}

impl Device for CpuDevice {
    fn host_func_done(&mut self, record: HostFuncDone) -> Result<(), Violation> {
        if self.streams.host_func_done(record.stream, record.callback) {
            Ok(())
        } else {
            Err(Violation::HostFunc(record.callback))
        }
    }

    fn close(&mut self) {
        self.streams.stop();
    }
}

/// The parts of the range that the client places memory in.
pub(crate) fn areas(memory: &Memory) -> (Area, Area) {
    (memory.device_area(), memory.host_area())
}
