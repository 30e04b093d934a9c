//! A block: its warps take turns on one thread, barriers are where turns end.
#![forbid(unsafe_code)]

use super::code::{BarKind, Code, Op};
use super::job::Job;
use super::mem::{NOWHERE, lanes};
use super::regs::{LANES, Lane, Regs};
use super::warp::{Split, Stop, Trouble, Wait, Warp, set};
use crate::api::Region;
use crate::error::{Fault, FaultKind};

/// What one worker thread carries through a launch.
pub(crate) struct Cx<'j> {
    pub(crate) job: &'j Job,
    pub(crate) code: &'j Code,
    /// Last region of each global access.
    pub(crate) caches: Vec<Region>,
    /// Thread-instructions so far.
    pub(crate) executed: u64,
    pub(crate) printf: Vec<u8>,
    pub(crate) worker: u32,
}

impl<'j> Cx<'j> {
    pub(crate) fn new(job: &'j Job, worker: u32) -> Self {
        let caches = vec![NOWHERE; job.code.caches as usize];
        Self {
            job,
            code: &job.code,
            caches,
            executed: 0,
            printf: Vec::new(),
            worker,
        }
    }
}

/// State that the warps of a block share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) bytes: Vec<u8>,
    pub(crate) bars: [Bar; 16],
    /// Barriers with arrivals.
    pub(crate) pending: u16,
    pub(crate) ctaid: [u32; 3],
    pub(crate) live_threads: u32,
}

/// A block barrier.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bar {
    pub(crate) arrived: u32,
    /// Thread count if the barrier was given one.
    pub(crate) expected: Option<u32>,
    pub(crate) popc: u32,
    /// Some thread came with a false predicate.
    pub(crate) not_all: bool,
}

/// Whether a block has more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Done,
    More,
}

#[derive(Debug)]
pub(crate) struct Block {
    warps: Vec<Warp>,
    shared: Shared,
}

impl Block {
    /// Allocates for any block of the launch; [`start`](Self::start) makes it a certain one.
    pub(crate) fn new(job: &Job) -> Self {
        let count = job.threads().div_ceil(LANES as u32);
        let warps = (0..count).map(|index| {
            let mut regs = Regs::new(job.code.rows, job.code.preds);
            for &(row, rows, value) in job.consts.iter() {
                if rows == 2 {
                    u64::put(&mut regs, row, &[value; LANES], u32::MAX);
                } else {
                    // Only the lower half of the value belongs to a 32-bit constant.
                    u32::put(
                        &mut regs,
                        row,
                        &[(value & 0xffff_ffff) as u32; LANES],
                        u32::MAX,
                    );
                }
            }
            Warp::new(regs, job.code.local_bytes as usize, index)
        });
        let shared = Shared {
            bytes: vec![0; job.shared_bytes()],
            bars: [Bar::default(); 16],
            pending: 0,
            ctaid: [0; 3],
            live_threads: 0,
        };
        Self {
            warps: warps.collect(),
            shared,
        }
    }

    /// Becomes block number `number` of the grid.
    pub(crate) fn start(&mut self, job: &Job, number: u64) {
        let [x, y, _] = job.grid.map(u64::from);
        // Each coordinate is below a 32-bit grid size.
        self.shared.ctaid = [number % x, number / x % y, number / x / y].map(|c| c as u32);
        self.shared.bars = [Bar::default(); 16];
        self.shared.pending = 0;
        let threads = job.threads();
        self.shared.live_threads = threads;
        for warp in &mut self.warps {
            let before = warp.index * LANES as u32;
            let count = (threads - before).min(LANES as u32);
            warp.start(job.code.entry, u32::MAX >> (LANES as u32 - count));
        }
    }

    /// Gives every warp a turn, once if `once`, else until the block is done.
    pub(crate) fn run(&mut self, cx: &mut Cx<'_>, once: bool) -> Result<Progress, Box<Fault>> {
        loop {
            let mut ran = false;
            for at in 0..self.warps.len() {
                while self.warps[at].runnable() {
                    ran = true;
                    let stop = self.warps[at].run(cx, &mut self.shared);
                    let stop = stop.map_err(|trouble| self.fault(cx, at, trouble))?;
                    let released = self.release(cx.code);
                    if stop == Stop::Yield || !released {
                        break;
                    }
                }
            }
            if self.shared.live_threads == 0 {
                return Ok(Progress::Done);
            }
            if cx.job.cancelled() {
                return Err(Box::new(cx.job.fault(
                    FaultKind::Cancelled,
                    0,
                    self.shared.ctaid,
                    [0; 3],
                )));
            }
            if !ran {
                return Err(self.deadlock(cx));
            }
            if once {
                return Ok(Progress::More);
            }
        }
    }

    /// Completes barriers that have all their threads.
    fn release(&mut self, code: &Code) -> bool {
        let mut any = false;
        for id in lanes(u32::from(self.shared.pending)) {
            let bar = self.shared.bars[id];
            let complete = match bar.expected {
                Some(count) => bar.arrived >= count,
                None => bar.arrived >= self.shared.live_threads,
            };
            if !complete {
                continue;
            }
            any = true;
            self.shared.pending &= !(1 << id);
            self.shared.bars[id] = Bar::default();
            for warp in &mut self.warps {
                for at in 0..warp.splits.len() {
                    if usize::from(barrier_of(&warp.splits[at])) == id {
                        resume(warp, at, bar, code);
                    }
                }
            }
        }
        any
    }

    fn deadlock(&self, cx: &Cx<'_>) -> Box<Fault> {
        let waiting = self.warps.iter().find_map(|w| Some((w, w.splits.first()?)));
        let (line, thread) = match waiting {
            Some((warp, split)) => (
                line(cx.code, split.pc),
                cx.job.thread(warp.index, super::warp::first(split.mask)),
            ),
            None => (0, [0; 3]),
        };
        Box::new(
            cx.job
                .fault(FaultKind::BarrierDeadlock, line, self.shared.ctaid, thread),
        )
    }

    fn fault(&self, cx: &Cx<'_>, warp: usize, trouble: Trouble) -> Box<Fault> {
        let warp = &self.warps[warp];
        let line = warp
            .splits
            .first()
            .map_or(0, |split| line(cx.code, split.pc));
        let thread = cx.job.thread(warp.index, trouble.lane);
        Box::new(cx.job.fault(trouble.kind, line, self.shared.ctaid, thread))
    }
}

fn line(code: &Code, pc: u32) -> u32 {
    code.lines.get(pc as usize).copied().unwrap_or(0)
}

fn barrier_of(split: &Split) -> u8 {
    match split.wait {
        Wait::Barrier(id) => id,
        _ => u8::MAX,
    }
}

/// Lets a split go on behind its barrier, with the barrier's result.
fn resume(warp: &mut Warp, at: usize, bar: Bar, code: &Code) {
    let split = warp.splits[at];
    let inst = &code.insts[split.pc as usize];
    if let Op::Bar(op) = &inst.op {
        let all = |holds: bool| if holds { u32::MAX } else { 0 };
        match op.kind {
            BarKind::Popc => set(&mut warp.regs, inst.d, split.mask, bar.popc),
            BarKind::And => warp.regs.set_pred(inst.p, all(!bar.not_all), split.mask),
            BarKind::Or => warp.regs.set_pred(inst.p, all(bar.popc > 0), split.mask),
            BarKind::Sync | BarKind::Arrive => {}
        }
    }
    warp.splits[at].pc += 1;
    warp.splits[at].wait = Wait::Nothing;
}
