//! One launch as the workers see it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::block::{Block, Cx, Progress};
use super::code::Code;
use super::mem::GlobalMem;
use super::regs::R;
use crate::error::{Fault, FaultKind};

/// Everything a worker needs; shared by all of them.
pub(crate) struct Job {
    pub(crate) kernel: String,
    pub(crate) code: Arc<Code>,
    pub(crate) consts: Arc<[(R, u32, u64)]>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared_bytes: u32,
    pub(crate) params: Vec<u8>,
    pub(crate) mem: GlobalMem,
    pub(crate) cancel: Arc<AtomicBool>,
    pub(crate) cooperative: bool,
    pub(crate) workers: u32,
    pub(crate) start: Instant,
    pub(crate) number: u64,
    pub(crate) next_block: AtomicU64,
    /// A fault has ended the launch.
    pub(crate) failed: AtomicBool,
    pub(crate) outcome: Mutex<Outcome>,
    /// Signalled when a helper has left.
    pub(crate) left: Condvar,
}

#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) fault: Option<Box<Fault>>,
    pub(crate) executed: u64,
    pub(crate) printf: Vec<u8>,
    /// Processor time of the worker that took most.
    pub(crate) busy: Duration,
    /// Helpers that have not left yet.
    pub(crate) helpers: u32,
}

impl Job {
    pub(crate) fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }

    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub(crate) fn shared_bytes(&self) -> usize {
        self.code
            .dynamic_shared_offset
            .max(self.code.shared_static_bytes) as usize
            + self.dynamic_shared_bytes as usize
    }

    /// Coordinates of a thread from its warp and lane.
    pub(crate) fn thread(&self, warp: u32, lane: usize) -> [u32; 3] {
        let n = warp * 32 + lane as u32;
        let [x, y, _] = self.block;
        [n % x, n / x % y, n / x / y]
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn fault(
        &self,
        kind: FaultKind,
        line: u32,
        block: [u32; 3],
        thread: [u32; 3],
    ) -> Fault {
        Fault {
            kind,
            kernel: self.kernel.clone(),
            line,
            block,
            thread,
        }
    }

    /// Runs blocks until none are left or one has failed.
    pub(crate) fn work(&self, worker: u32) {
        let began = thread_time();
        let mut cx = Cx::new(self, worker);
        let result = if self.cooperative {
            self.work_together(&mut cx)
        } else {
            self.work_alone(&mut cx)
        };
        let busy = thread_time().saturating_sub(began);
        let mut outcome = self.outcome.lock();
        outcome.busy = outcome.busy.max(busy);
        outcome.executed += cx.executed;
        outcome.printf.append(&mut cx.printf);
        if let Err(fault) = result {
            // Blocks that were stopped because another failed are not the cause.
            let echo = fault.kind == FaultKind::Cancelled && self.failed.load(Ordering::Relaxed);
            if outcome.fault.is_none() && !echo {
                outcome.fault = Some(fault);
            }
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    fn work_alone(&self, cx: &mut Cx<'_>) -> Result<(), Box<Fault>> {
        let mut block = None;
        loop {
            let number = self.next_block.fetch_add(1, Ordering::Relaxed);
            if number >= self.blocks() {
                return Ok(());
            }
            if self.cancelled() {
                return Err(Box::new(self.fault(
                    FaultKind::Cancelled,
                    0,
                    [0; 3],
                    [0; 3],
                )));
            }
            let block = block.get_or_insert_with(|| Block::new(self));
            block.start(self, number);
            while block.run(cx, false)? == Progress::More {}
            self.flush(cx);
        }
    }

    /// All blocks are there from the start and take turns.
    fn work_together(&self, cx: &mut Cx<'_>) -> Result<(), Box<Fault>> {
        let mut blocks = Vec::new();
        for number in (u64::from(cx.worker)..self.blocks()).step_by(self.workers as usize) {
            let mut block = Block::new(self);
            block.start(self, number);
            blocks.push(block);
        }
        while !blocks.is_empty() {
            let mut failed = None;
            blocks.retain_mut(|block| match block.run(cx, true) {
                Ok(progress) => progress == Progress::More,
                Err(fault) => {
                    failed.get_or_insert(fault);
                    false
                }
            });
            if let Some(fault) = failed {
                return Err(fault);
            }
        }
        Ok(())
    }

    fn flush(&self, cx: &mut Cx<'_>) {
        if !cx.printf.is_empty() {
            self.outcome.lock().printf.append(&mut cx.printf);
        }
    }
}

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    clock.now().map_or(Duration::ZERO, Duration::from)
}
