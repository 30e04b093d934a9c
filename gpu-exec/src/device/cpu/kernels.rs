//! How a kernel runs: `soft` interprets PTX, `null` does nothing.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use farcall_marshal::status::CuStatus;
use farcall_ptx::{Engine, Fault, FaultKind, Launch as KernelLaunch, MemoryMap};

use super::function::Code;
use super::memory::{Memory, Turn};
use super::work::Launch;
use crate::executor::outbox::{Failure, clipped};

/// Runs kernels one after the other.
#[derive(Debug)]
pub(crate) struct Kernels {
    engine: Engine,
    cancel: Arc<AtomicBool>,
}

impl Kernels {
    /// Uses up to `workers` threads, which start with the first kernel.
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            engine: Engine::new(workers),
            cancel: Arc::default(),
        }
    }

    /// Runs one kernel; what it printed goes to `print`. Blocks. Returns how long it had the device.
    ///
    /// # Errors
    /// The fault of the kernel.
    pub(crate) fn run(
        &self,
        _turn: &mut Turn,
        memory: &Arc<Memory>,
        launch: &Launch<'_>,
        print: &dyn Fn(&[u8]),
    ) -> Result<Duration, Failure> {
        let Code::Kernel(kernel) = launch.function.code() else {
            return Ok(Duration::ZERO);
        };
        let memory: Arc<dyn MemoryMap> = memory.clone();
        let run = KernelLaunch {
            kernel,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared_bytes: launch.shared_bytes,
            params: &launch.params,
            memory,
            cancel: self.cancel.clone(),
            cooperative: launch.cooperative,
        };
        match self.engine.launch(&run) {
            Ok(report) => {
                if !report.printf.is_empty() {
                    print(&report.printf);
                }
                Ok(report.busy)
            }
            Err(fault) => Err(failure(&fault)),
        }
    }

    /// Ends the kernel that runs and all after it.
    pub(crate) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

fn failure(fault: &Fault) -> Failure {
    let status = match &fault.kind {
        FaultKind::IllegalAddress { .. } => CuStatus::ILLEGAL_ADDRESS,
        FaultKind::MisalignedAddress { .. } => CuStatus::MISALIGNED_ADDRESS,
        FaultKind::IllegalInstruction(_) => CuStatus::ILLEGAL_INSTRUCTION,
        FaultKind::Assert { .. } => CuStatus::ASSERT,
        FaultKind::BarrierDeadlock | FaultKind::Cancelled => CuStatus::LAUNCH_TIMEOUT,
        FaultKind::InvalidLaunch(_) => CuStatus::INVALID_VALUE,
        FaultKind::Trap => CuStatus::LAUNCH_FAILED,
    };
    Failure::new(status, clipped(&fault.to_string()))
}
