//! The `cuda` device: real GPUs, driven through their driver. `docs/cuda-device.md` says which driver calls each record
//! becomes and who waits for what.
//!
//! ```text
//! loop thread ──calls──> issue ──> driver        (nothing in the way: nearly always)
//!                          │
//!                          └──> queue of the stream ──pump──> driver   (bytes, module or client's function to come)
//! completion thread: fences ──> replies, frees, pump
//! sender thread: long answers       loader thread: modules
//! ```
//! Every module but [`driver`] forbids unsafe code.

use std::sync::Arc;

use farcall_marshal::record::Head;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::HostFuncDone;

use self::driver::{Context, Driver};
use self::graphs::GraphExec;
use self::issue::{Later, Shared};
use self::memory::Memory;
use self::modules::Modules;
use self::op::{After, Op};
use self::state::ContextKey;
use super::handles::HandleTable;
use super::{Device, Violation};
use crate::cache::Cache;
use crate::executor::outbox::{Failure, Outbox, Reply};
use crate::limits::GRAPHS_MAX;
use crate::share::gate::Gate;

mod abroad;
mod after;
mod alloc;
mod answer;
mod calls;
mod completion;
mod copies;
mod graphs;
mod hosted;
mod issue;
mod lane;
mod mapped;
mod modules;
mod op;
mod perform;
mod sender;
mod state;
mod tensor_map;
mod texture;
mod turns;

pub(crate) mod driver;
pub(crate) mod health;
pub(crate) mod inventory;
pub(crate) mod memory;
pub(crate) mod mps;

/// What a `cuda` device is made with.
#[derive(Debug)]
pub(crate) struct CudaParts {
    pub(crate) driver: &'static Driver,
    pub(crate) memory: Memory,
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) cache: Cache,
    /// The server's numbers of the client's devices.
    pub(crate) ordinals: Vec<u32>,
    /// Where their kernels wait for other sessions.
    pub(crate) gate: Arc<Gate>,
}

/// A session's GPUs.
#[derive(Debug)]
pub(crate) struct CudaDevice {
    driver: &'static Driver,
    shared: Arc<Shared>,
    modules: Arc<Modules>,
    outbox: Arc<dyn Outbox>,
    graphs: HandleTable<Arc<GraphExec>>,
    ordinals: Vec<u32>,
}

impl CudaDevice {
    /// A device without contexts. Starts no thread.
    pub(crate) fn new(parts: CudaParts) -> Self {
        let CudaParts {
            driver,
            memory,
            outbox,
            cache,
            ordinals,
            gate,
        } = parts;
        let shared = Shared::new(memory, outbox.clone(), gate);
        let modules = Modules::new(shared.clone(), cache);
        Self {
            driver,
            shared,
            modules,
            outbox,
            graphs: HandleTable::new(GRAPHS_MAX),
            ordinals,
        }
    }

    /// The context that a record is made in.
    fn context(&self, head: &Head) -> CuResult<ContextKey> {
        self.shared.state().named(head.context)
    }

    fn finish(&self, head: &Head, outcome: Result<(), Failure>) -> Result<(), Violation> {
        self.outbox.finish(Reply::to(head), outcome);
        Ok(())
    }

    /// Issues an operation to a stream.
    fn submit(
        &self,
        head: &Head,
        stream: u64,
        op: Result<Op<'_>, Failure>,
    ) -> Result<(), Violation> {
        let reply = Reply::to(head);
        match (self.context(head), op) {
            (Ok(key), Ok(op)) => self.shared.submit(reply, key, stream, op),
            (Err(status), _) => self.outbox.finish(reply, Err(status.into())),
            (Ok(key), Err(failure)) => match self.shared.state().health(key) {
                CuStatus::SUCCESS => self.outbox.finish(reply, Err(failure)),
                health => self.outbox.status(reply, health),
            },
        }
        Ok(())
    }

    fn create_context(
        &self,
        head: &Head,
        device: u32,
        make: impl FnOnce(&'static Driver, u32) -> CuResult<Arc<Context>>,
        is_primary: bool,
    ) -> CuResult {
        let device = device as usize;
        let ordinal = self
            .ordinals
            .get(device)
            .copied()
            .ok_or(CuStatus::INVALID_DEVICE)?;
        let mut state = self.shared.state();
        let existing = state
            .named(head.context)
            .ok()
            .and_then(|key| state.contexts.get(&key));
        match existing {
            Some(context) if is_primary && context.is_primary && context.owner.device == device => {
                return Ok(());
            }
            Some(_) => return Err(CuStatus::INVALID_CONTEXT),
            None if head.context == 0 => return Err(CuStatus::INVALID_CONTEXT),
            None => {}
        }
        state.add_context(
            head.context,
            device,
            ordinal,
            make(self.driver, ordinal)?,
            is_primary,
        )
    }

    /// Ends a context when its work is done, which answers.
    fn end_context(&self, reply: Reply, key: ContextKey) {
        let modules = self.modules.end_context(key);
        let mut later = Later::default();
        let mut state = self.shared.state();
        let nobody = Reply { ticket: 0, ..reply };
        self.shared
            .after_all(&mut state, &mut later, nobody, key, After::Drop(modules));
        self.shared
            .after_all(&mut state, &mut later, reply, key, After::EndContext);
        state.retire_context(key);
        drop(state);
        self.shared.settle(later);
    }
}

impl Device for CudaDevice {
    fn host_func_done(&mut self, record: HostFuncDone) -> Result<(), Violation> {
        if self.shared.host_func_done(record.callback) {
            Ok(())
        } else {
            Err(Violation::HostFunc(record.callback))
        }
    }

    fn close(&mut self) {
        self.shared.close();
    }
}
