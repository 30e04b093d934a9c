//! A warp: 32 lanes that execute together for as long as they agree on the way.
//!
//! Lanes that diverge form *splits*, each with its own place in the code. The split with the
//! lowest place runs first and stops where another one waits: there they merge. Since compilers
//! lay out code in the order of control flow, that is the reconvergence point; where it is not,
//! only speed suffers. A split that spins (backward jumps around atomics or volatile loads) hands over
//! to the others now and then, so a lock held by a sibling lane is released some day.
#![forbid(unsafe_code)]

use super::block::{Cx, Shared};
use super::code::{FUNC_BASE, Inst, Op};
use super::regs::{LANES, P, Regs};
use crate::error::FaultKind;

/// Why a warp stopped running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All lanes have exited.
    Done,
    /// All live lanes wait at block barriers.
    Blocked,
    /// Its turn is over.
    Yield,
}

/// A fault of one lane.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) lane: usize,
    pub(crate) kind: FaultKind,
}

/// What a split waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Nothing,
    /// A block barrier.
    Barrier(u8),
    /// Other lanes of the warp, at a `.sync` instruction.
    Lanes,
}

/// Lanes at one place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) wait: Wait,
}

/// Backward jumps in one turn.
const TURN_JUMPS: u32 = 4096;
/// Spin hints (atomics, volatile loads) between which a turn ends early.
const TURN_SPINS: u32 = 256;
/// Spin hints after which a diverged warp lets another split run.
const SPLIT_SPINS: u32 = 24;
/// Jumps after which a diverged warp lets another split run, spinning or not.
const SPLIT_JUMPS: u32 = 1 << 16;
/// Jumps for which a split that was let run is not interrupted.
const PATIENCE: u32 = 256;

#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) regs: Regs,
    /// 32 x the bytes of a thread.
    pub(crate) local: Vec<u8>,
    /// Index in the block.
    pub(crate) index: u32,
    /// Threads that exist.
    pub(crate) all: u32,
    /// Threads that have not exited.
    pub(crate) live: u32,
    /// All splits; the first is the one that runs.
    pub(crate) splits: Vec<Split>,
    limit: u32,
    spins: u32,
    jumps: u32,
    patience: u32,
    /// The running split may pass a `.sync` instruction without the lanes it names.
    pub(crate) forced: bool,
}

/// What happened to control flow.
pub(crate) enum Flow {
    Next,
    /// The running split has changed.
    Switched,
    Stop(Stop),
}

impl Warp {
    pub(crate) fn new(regs: Regs, local_bytes: usize, index: u32) -> Self {
        Self {
            regs,
            local: vec![0; local_bytes * LANES],
            index,
            all: 0,
            live: 0,
            splits: Vec::new(),
            limit: u32::MAX,
            spins: 0,
            jumps: 0,
            patience: 0,
            forced: false,
        }
    }

    /// Ready for a new block.
    pub(crate) fn start(&mut self, entry: u32, threads: u32) {
        self.all = threads;
        self.live = threads;
        self.splits.clear();
        if threads != 0 {
            self.splits.push(Split {
                pc: entry,
                mask: threads,
                wait: Wait::Nothing,
            });
        }
        (self.limit, self.spins, self.jumps, self.patience) = (u32::MAX, 0, 0, 0);
        self.forced = false;
    }

    pub(crate) fn runnable(&self) -> bool {
        self.splits
            .iter()
            .any(|s| !matches!(s.wait, Wait::Barrier(_)))
    }

    /// Runs until the turn is over or nothing can run.
    ///
    /// # Errors
    /// The first fault; the running split's place is then the faulting instruction's.
    pub(crate) fn run(&mut self, cx: &mut Cx<'_>, shared: &mut Shared) -> Result<Stop, Trouble> {
        if self.splits.is_empty() {
            return Ok(Stop::Done);
        }
        if !self.schedule() {
            return Ok(Stop::Blocked);
        }
        let code = cx.code;
        let mut turn = TURN_JUMPS;
        let mut spins_left = TURN_SPINS;
        loop {
            let Split { pc, mask, .. } = self.splits[0];
            if pc == self.limit {
                self.merge();
                continue;
            }
            let inst = &code.insts[pc as usize];
            let active = mask & self.regs.pred(inst.guard);
            cx.executed += u64::from(mask.count_ones());
            if let Op::Alu(f) = &inst.op {
                if active != 0 {
                    f.call(&mut self.regs, inst, active);
                }
                self.splits[0].pc = pc + 1;
                continue;
            }
            let flow = self.step(inst, active, cx, shared, &mut spins_left)?;
            match flow {
                Flow::Next => self.splits[0].pc = pc + 1,
                Flow::Stop(stop) => return Ok(stop),
                Flow::Switched => {
                    if self.splits[0].pc <= pc {
                        turn -= 1;
                        if turn == 0 || spins_left == 0 {
                            return Ok(Stop::Yield);
                        }
                    }
                }
            }
        }
    }

    fn step(
        &mut self,
        inst: &Inst,
        active: u32,
        cx: &mut Cx<'_>,
        shared: &mut Shared,
        spins: &mut u32,
    ) -> Result<Flow, Trouble> {
        match &inst.op {
            Op::Bra => return Ok(self.branch(inst.imm as u32, active)),
            Op::Exit => return Ok(self.exit(active, shared)),
            Op::Bar(bar) => return self.bar(inst, *bar, active, cx, shared),
            Op::WarpSync
            | Op::Shfl { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Redux(_)
            | Op::Elect => {
                return Ok(self.together(inst, active));
            }
            _ if active == 0 => return Ok(Flow::Next),
            Op::Ld(mem) => {
                if mem.volatile {
                    self.spin(spins);
                }
                self.load(inst, mem, active, cx, shared)?;
            }
            Op::St(mem) => self.store(inst, mem, active, cx, shared)?,
            Op::Special(special) => self.special(inst, *special, active, cx, shared),
            Op::Atom(atom) => {
                self.spin(spins);
                self.atom(inst, atom, active, cx, shared)?;
            }
            Op::Brx(targets) => return self.brx(inst, targets, active),
            Op::Call => {
                let back = self.splits[0].pc + 1;
                set(&mut self.regs, inst.d, active, back);
                return Ok(self.branch(inst.imm as u32, active));
            }
            Op::CallIndirect => return self.call_indirect(inst, active, cx),
            Op::Ret => {
                let targets = *self.regs.r32(inst.a);
                return Ok(self.scatter_to(active, |lane| targets[lane]));
            }
            Op::CopyLocal { to, from } => self.copy_local(*to, *from, inst.imm as usize, active),
            Op::CpAsync(copy) => self.cp_async(inst, copy, active, cx, shared)?,
            Op::ActiveMask => set(&mut self.regs, inst.d, active, active),
            Op::Fence => std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst),
            Op::Nanosleep => {
                self.spin(spins);
                *spins = (*spins).min(1);
            }
            Op::Trap => {
                return Err(Trouble {
                    lane: first(active),
                    kind: FaultKind::Trap,
                });
            }
            Op::Vprintf => self.vprintf(inst, active, cx, shared)?,
            Op::Malloc => self.malloc(inst, active, cx),
            Op::Free => self.free(inst, active, cx)?,
            Op::AssertFail => return Err(self.assert_fail(inst, active, cx, shared)),
            Op::Mma(mma) => self.mma(mma, active),
            Op::LdMatrix(ld) => self.ldmatrix(inst, ld, active, shared)?,
            Op::Tex(tex) => self.texture(inst, tex, active, cx)?,
            Op::Surf(surf) => self.surface(inst, surf, active, cx)?,
            Op::TexQuery(query) => self.texture_query(inst, *query, active, cx)?,
            Op::Alu(f) => f.call(&mut self.regs, inst, active),
        }
        Ok(Flow::Next)
    }

    fn spin(&mut self, spins: &mut u32) {
        *spins = spins.saturating_sub(1);
        if self.splits.len() > 1 {
            self.spins += 1;
        }
    }

    /// Sends the lanes of `taken` to `target`, the others on to the next instruction.
    pub(crate) fn branch(&mut self, target: u32, taken: u32) -> Flow {
        let running = self.splits[0];
        if taken == 0 {
            return Flow::Next;
        }
        if taken == running.mask && self.splits.len() == 1 {
            self.splits[0].pc = target;
            return Flow::Switched;
        }
        if taken == running.mask {
            self.splits[0].pc = target;
        } else {
            self.splits[0] = Split {
                pc: running.pc + 1,
                mask: running.mask & !taken,
                wait: Wait::Nothing,
            };
            self.splits.push(Split {
                pc: target,
                mask: taken,
                wait: Wait::Nothing,
            });
        }
        self.jumps += 1;
        self.reschedule()
    }

    /// Sends each active lane to a place of its own.
    fn scatter_to(&mut self, active: u32, target: impl Fn(usize) -> u32) -> Flow {
        let running = self.splits[0];
        let rest = running.mask & !active;
        let mut left = active;
        self.splits.swap_remove(0);
        if rest != 0 {
            self.splits.push(Split {
                pc: running.pc + 1,
                mask: rest,
                wait: Wait::Nothing,
            });
        }
        while left != 0 {
            let pc = target(first(left));
            let group = super::mem::lanes(left)
                .filter(|&l| target(l) == pc)
                .fold(0, |m, l| m | 1 << l);
            left &= !group;
            self.splits.push(Split {
                pc,
                mask: group,
                wait: Wait::Nothing,
            });
        }
        self.jumps += 1;
        self.reschedule()
    }

    fn brx(&mut self, inst: &Inst, targets: &[u32], active: u32) -> Result<Flow, Trouble> {
        let index = *self.regs.r32(inst.a);
        if let Some(lane) = super::mem::lanes(active).find(|&l| index[l] as usize >= targets.len())
        {
            let kind = FaultKind::IllegalInstruction(format!(
                "branch to entry {} of {}",
                index[lane],
                targets.len()
            ));
            return Err(Trouble { lane, kind });
        }
        Ok(self.scatter_to(active, |lane| targets[index[lane] as usize]))
    }

    fn call_indirect(&mut self, inst: &Inst, active: u32, cx: &Cx<'_>) -> Result<Flow, Trouble> {
        let addrs = *self.regs.r64(inst.a);
        let back = self.splits[0].pc + 1;
        let mut targets = [0; LANES];
        for lane in super::mem::lanes(active) {
            let number = addrs[lane].checked_sub(FUNC_BASE).map(|n| n / 16);
            let function = cx
                .code
                .functions
                .iter()
                .find(|f| Some(u64::from(f.0)) == number);
            let Some(&(_, pc, row)) = function else {
                let kind = FaultKind::IllegalInstruction(format!(
                    "call of no function at {:#x}",
                    addrs[lane]
                ));
                return Err(Trouble { lane, kind });
            };
            targets[lane] = pc;
            self.regs.r32_mut(row)[lane] = back;
        }
        Ok(self.scatter_to(active, |lane| targets[lane]))
    }

    fn exit(&mut self, active: u32, shared: &mut Shared) -> Flow {
        if active == 0 {
            return Flow::Next;
        }
        self.live &= !active;
        shared.live_threads -= active.count_ones();
        self.splits[0].mask &= !active;
        if self.splits[0].mask != 0 {
            return Flow::Next;
        }
        self.splits.swap_remove(0);
        self.jumps = 0;
        if self.splits.is_empty() {
            return Flow::Stop(Stop::Done);
        }
        self.reschedule()
    }

    /// Parks the running split; it runs this instruction again (lanes) or the next one (barrier).
    pub(crate) fn park(&mut self, wait: Wait) -> Flow {
        self.splits[0].wait = wait;
        self.reschedule()
    }

    fn reschedule(&mut self) -> Flow {
        if self.schedule() {
            Flow::Switched
        } else {
            Flow::Stop(Stop::Blocked)
        }
    }

    /// Puts the split that runs next first and sets where it must stop.
    fn schedule(&mut self) -> bool {
        if self.splits.len() == 1 && self.splits[0].wait == Wait::Nothing {
            self.limit = u32::MAX;
            (self.spins, self.jumps, self.patience) = (0, 0, 0);
            return true;
        }
        let starving = self.spins >= SPLIT_SPINS || self.jumps >= SPLIT_JUMPS;
        if starving && self.patience == 0 && self.rotate() {
            (self.spins, self.jumps, self.patience) = (0, 0, PATIENCE);
        } else if self.patience > 0 && self.splits[0].wait == Wait::Nothing {
            self.patience -= 1;
        } else {
            self.patience = 0;
            let ready = |s: &Split| s.wait == Wait::Nothing;
            let next = self
                .lowest(ready)
                .or_else(|| self.lowest(|s| s.wait == Wait::Lanes));
            let Some(next) = next else { return false };
            if self.splits[next].wait == Wait::Lanes {
                return self.release_lanes(next);
            }
            self.splits.swap(0, next);
        }
        self.set_limit();
        true
    }

    /// Everyone who can move waits for lanes that will not come: those who are here go on.
    fn release_lanes(&mut self, next: usize) -> bool {
        self.splits.swap(0, next);
        self.splits[0].wait = Wait::Nothing;
        self.patience = 0;
        self.forced = true;
        self.set_limit();
        true
    }

    /// Moves another ready split to the front.
    fn rotate(&mut self) -> bool {
        let other = (1..self.splits.len()).find(|&i| self.splits[i].wait == Wait::Nothing);
        if let Some(other) = other {
            // The one that ran goes to the end, so that all get their turn.
            let running = self.splits.remove(0);
            self.splits.push(running);
            self.splits.swap(0, other - 1);
        }
        other.is_some()
    }

    fn lowest(&self, which: impl Fn(&Split) -> bool) -> Option<usize> {
        let candidates = self.splits.iter().enumerate().filter(|(_, s)| which(s));
        candidates.min_by_key(|(_, s)| s.pc).map(|(i, _)| i)
    }

    fn set_limit(&mut self) {
        let pc = self.splits[0].pc;
        let others = self.splits[1..]
            .iter()
            .filter(|s| !matches!(s.wait, Wait::Barrier(_)) && s.pc >= pc);
        self.limit = others.map(|s| s.pc).min().unwrap_or(u32::MAX);
    }

    /// Joins all splits that are where the running one has arrived.
    fn merge(&mut self) {
        let pc = self.splits[0].pc;
        let mut i = 1;
        while i < self.splits.len() {
            let other = self.splits[i];
            if other.pc == pc && !matches!(other.wait, Wait::Barrier(_)) {
                self.splits[0].mask |= other.mask;
                self.splits.swap_remove(i);
            } else {
                i += 1;
            }
        }
        if self.splits.len() == 1 {
            (self.spins, self.jumps, self.patience) = (0, 0, 0);
            self.limit = u32::MAX;
        } else {
            self.set_limit();
        }
    }

    /// Lanes for which a predicate holds.
    pub(crate) fn pred(&self, p: P) -> u32 {
        self.regs.pred(p)
    }
}

/// Lowest lane of a mask.
pub(crate) fn first(mask: u32) -> usize {
    mask.trailing_zeros() as usize & (LANES - 1)
}

/// Writes one value to the lanes of `mask`.
pub(crate) fn set(regs: &mut Regs, r: u32, mask: u32, value: u32) {
    use super::regs::Lane;
    u32::put(regs, r, &[value; LANES], mask);
}
