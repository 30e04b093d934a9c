//! Memory that belongs to a graph: its address is known when the node is made, its bytes are there from the launch of the
//! allocation to the launch of the free.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemAllocAsync, CuMemFreeAsync, CuMemFreeV2};

use crate::context::Context;
use crate::memory::{self, Allocation, AllocationKind};
use crate::process::process;
use crate::stream::Stream;

/// Whether there ever was any: the one thing that most frees look at.
static IS_USED: AtomicBool = AtomicBool::new(false);

/// One allocation node's memory.
pub(crate) struct GraphMemory {
    allocation: Allocation,
    /// As the program asked for it.
    pub(crate) bytes: usize,
    is_live: AtomicBool,
}

impl GraphMemory {
    /// Takes addresses, and counts the memory as used as long as a graph has the node.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`; `NOT_SUPPORTED` where the server places memory.
    pub(crate) fn new(context: &'static Context, bytes: usize) -> CuResult<Arc<Self>> {
        if context.session().places_memory() {
            return Err(CuStatus::NOT_SUPPORTED);
        }
        let mut allocation = memory::take(context, bytes as u64, 0)?;
        allocation.kind = AllocationKind::Graph;
        process()?.memory.insert(allocation);
        let memory = Arc::new(Self {
            allocation,
            bytes,
            is_live: AtomicBool::new(false),
        });
        memory.register();
        Ok(memory)
    }

    /// The program's number of its device.
    pub(crate) fn ordinal(&self) -> u32 {
        self.allocation.context.device.ordinal
    }

    pub(crate) fn address(&self) -> u64 {
        self.allocation.start
    }

    /// Whether a launch has allocated it and nothing has freed it.
    pub(crate) fn is_live(&self) -> bool {
        self.is_live.load(Ordering::Relaxed)
    }

    /// The allocation node runs.
    pub(crate) fn allocate(&self, stream: &Stream) -> CuResult {
        self.is_live.store(true, Ordering::Relaxed);
        stream.issue(&CuMemAllocAsync {
            addr: self.allocation.start,
            bytes: self.allocation.reserved_bytes,
            stream: stream.id,
        })
    }

    /// Its bytes go, in the order of a stream.
    pub(crate) fn free(&self, stream: &Stream) -> CuResult {
        if !self.is_live.swap(false, Ordering::Relaxed) {
            return Err(CuStatus::INVALID_VALUE);
        }
        stream.issue(&CuMemFreeAsync {
            addr: self.allocation.start,
            stream: stream.id,
        })
    }

    fn register(self: &Arc<Self>) {
        IS_USED.store(true, Ordering::Relaxed);
        if let Ok(process) = process() {
            let mut known = process.graph_memory.lock();
            known.retain(|_, memory| memory.strong_count() > 0);
            known.insert(self.address(), Arc::downgrade(self));
        }
    }
}

/// The graph memory that begins at an address.
pub(crate) fn find(address: u64) -> Option<Arc<GraphMemory>> {
    if !IS_USED.load(Ordering::Relaxed) {
        return None;
    }
    process().ok()?.graph_memory.lock().get(&address)?.upgrade()
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        let context = self.allocation.context;
        if let Ok(process) = process() {
            let _ = process
                .memory
                .remove(self.allocation.start, &[AllocationKind::Graph]);
        }
        if self.is_live() && context.is_alive() {
            let record = CuMemFreeV2 {
                addr: self.allocation.start,
            };
            let _ = context.session().send(context.id, &record);
        }
        memory::release(&self.allocation);
    }
}
