//! Packs registers into fewer rows, by a linear scan over live intervals.
//!
//! PTX is nearly in SSA form: a row for each name would take the working set of a warp out of the
//! cache. A lane follows one path of the control-flow graph, so intervals that do not overlap on any
//! path may share rows although other lanes are elsewhere. A write under a guard keeps the other
//! lanes' values and therefore ends no interval.
#![forbid(unsafe_code)]
// Places in code are u32 throughout; `imm` holds one where these instructions are concerned.
#![allow(clippy::cast_possible_truncation)]

use std::collections::BTreeSet;

use super::func::NONE;
use crate::exec::code::{Code, Inst, Op, Place};
use crate::exec::regs::{P_TRUE, R};

/// Packs the rows of `code`; returns an estimate of the registers a thread uses.
pub(super) fn allocate(code: &mut Code) -> u32 {
    // Calls make paths that the scan does not follow; such kernels keep a row per name.
    let calls = code
        .insts
        .iter()
        .any(|i| matches!(i.op, Op::Call | Op::CallIndirect | Op::Ret));
    if !calls {
        let widths = widths(code);
        let intervals = intervals(code, &widths);
        assign(code, &widths, &intervals);
    }
    code.rows.clamp(1, 255)
}

/// Rows of the register that starts at each row; 0 inside of a register.
///
/// Registers of different widths never share rows: lane 9 of a 64-bit register is where lanes 18 and
/// 19 of a 32-bit one are, and those may be elsewhere in the code.
fn widths(code: &mut Code) -> Vec<u32> {
    let mut widths = vec![0; code.rows as usize];
    for (row, rows) in std::mem::take(&mut code.registers) {
        widths[row as usize] = rows;
    }
    widths
}

/// Calls `f` with every register field; the flag tells a write.
fn visit(inst: &mut Inst, f: &mut impl FnMut(&mut R, bool)) {
    let mut reg = |r: &mut R, write: bool| {
        if *r != NONE {
            f(r, write);
        }
    };
    for r in [&mut inst.a, &mut inst.b, &mut inst.c] {
        reg(r, false);
    }
    match &mut inst.op {
        Op::Ld(mem) => mem.regs.iter_mut().flatten().for_each(|r| reg(r, true)),
        Op::St(mem) => mem.regs.iter_mut().flatten().for_each(|r| reg(r, false)),
        Op::CpAsync(copy) => copy.size.iter_mut().for_each(|r| reg(r, false)),
        Op::Shfl { sync: true, .. } => {
            let mut members = (inst.imm & u64::from(u32::MAX)) as R;
            reg(&mut members, false);
            inst.imm = u64::from(members);
        }
        Op::Mma(mma) => {
            mma.a
                .iter_mut()
                .chain(&mut mma.b)
                .chain(&mut mma.c)
                .for_each(|r| reg(r, false));
            mma.d.iter_mut().for_each(|r| reg(r, true));
        }
        Op::LdMatrix(ld) => ld.d.iter_mut().for_each(|r| reg(r, true)),
        Op::Tex(tex) => {
            place_registers(&mut tex.place).for_each(|r| reg(r, false));
            tex.d.iter_mut().for_each(|r| reg(r, true));
        }
        Op::Surf(surf) => {
            place_registers(&mut surf.place).for_each(|r| reg(r, false));
            surf.regs.iter_mut().for_each(|r| reg(r, !surf.stores));
        }
        _ => {}
    }
    // An assertion passes a source here.
    let write = !matches!(inst.op, Op::AssertFail);
    reg(&mut inst.d, write);
}

fn place_registers(place: &mut Place) -> impl Iterator<Item = &mut R> {
    place.layer.iter_mut().chain(&mut place.coordinates)
}

/// First and last instruction of each register's life, by its first row.
type Intervals = Vec<Option<(u32, u32)>>;

fn intervals(code: &mut Code, widths: &[u32]) -> Intervals {
    let blocks = Blocks::new(code);
    let live = liveness(code, &blocks, widths.len());
    let mut intervals: Intervals = vec![None; widths.len()];
    let mut touch = |r: usize, at: u32| {
        let (first, last) = intervals[r].unwrap_or((at, at));
        intervals[r] = Some((first.min(at), last.max(at)));
    };
    for (block, &(start, end)) in blocks.ranges.iter().enumerate() {
        for r in live.ins[block].iter() {
            touch(r, start);
        }
        for r in live.outs[block].iter() {
            touch(r, end - 1);
        }
    }
    for (at, inst) in (0..).zip(&mut code.insts) {
        visit(inst, &mut |r, _| touch(*r as usize, at));
    }
    intervals
}

/// Basic blocks: half-open ranges of instructions and their successors.
struct Blocks {
    ranges: Vec<(u32, u32)>,
    next: Vec<Vec<usize>>,
}

impl Blocks {
    fn new(code: &Code) -> Self {
        let count = code.insts.len() as u32;
        let mut starts = BTreeSet::from([0]);
        for (at, inst) in (1..).zip(&code.insts) {
            let targets = targets(inst);
            if !targets.is_empty() || matches!(inst.op, Op::Exit) {
                starts.insert(at);
            }
            starts.extend(targets);
        }
        starts.retain(|&s| s < count);
        let starts: Vec<u32> = starts.into_iter().collect();
        let ends = starts.iter().skip(1).copied().chain([count]);
        let ranges: Vec<_> = starts.iter().copied().zip(ends).collect();
        let block_at = |pc: u32| starts.binary_search(&pc).ok();
        let next = ranges.iter().map(|&(_, end)| {
            let last = &code.insts[end as usize - 1];
            let mut next: Vec<_> = targets(last).into_iter().filter_map(block_at).collect();
            let leaves = matches!(last.op, Op::Bra | Op::Brx(_) | Op::Exit) && last.guard == P_TRUE;
            if !leaves {
                next.extend(block_at(end));
            }
            next
        });
        let next = next.collect();
        Self { ranges, next }
    }
}

fn targets(inst: &Inst) -> Vec<u32> {
    match &inst.op {
        Op::Bra => vec![(inst.imm & u64::from(u32::MAX)) as u32],
        Op::Brx(targets) => targets.to_vec(),
        _ => Vec::new(),
    }
}

/// Sets of registers by first row.
#[derive(Clone)]
struct Set(Vec<u64>);

impl Set {
    fn new(size: usize) -> Self {
        Self(vec![0; size.div_ceil(64)])
    }

    fn insert(&mut self, r: usize) {
        self.0[r / 64] |= 1 << (r % 64);
    }

    fn contains(&self, r: usize) -> bool {
        self.0[r / 64] >> (r % 64) & 1 != 0
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        let words = self.0.iter().enumerate();
        words.flat_map(|(i, &word)| {
            (0..64)
                .filter(move |b| word >> b & 1 != 0)
                .map(move |b| i * 64 + b)
        })
    }
}

struct Live {
    ins: Vec<Set>,
    outs: Vec<Set>,
}

fn liveness(code: &mut Code, blocks: &Blocks, rows: usize) -> Live {
    let count = blocks.ranges.len();
    let (mut uses, mut kills) = (vec![Set::new(rows); count], vec![Set::new(rows); count]);
    for (block, &(start, end)) in blocks.ranges.iter().enumerate() {
        for inst in &mut code.insts[start as usize..end as usize] {
            let guarded = inst.guard != P_TRUE;
            let (used, killed) = (&mut uses[block], &mut kills[block]);
            let mut written = Vec::new();
            visit(inst, &mut |r, write| {
                let r = *r as usize;
                if write {
                    written.push(r);
                } else if !killed.contains(r) {
                    used.insert(r);
                }
            });
            for r in written {
                if !guarded {
                    killed.insert(r);
                } else if !killed.contains(r) {
                    used.insert(r);
                }
            }
        }
    }
    let mut live = Live {
        ins: uses.clone(),
        outs: vec![Set::new(rows); count],
    };
    loop {
        let mut changed = false;
        for block in (0..count).rev() {
            let mut out = std::mem::replace(&mut live.outs[block], Set(Vec::new()));
            for &next in &blocks.next[block] {
                for (o, i) in out.0.iter_mut().zip(&live.ins[next].0) {
                    *o |= i;
                }
            }
            let into = live.ins[block]
                .0
                .iter_mut()
                .zip(&out.0)
                .zip(&kills[block].0);
            for ((i, o), k) in into {
                let new = *i | o & !k;
                changed |= new != *i;
                *i = new;
            }
            live.outs[block] = out;
        }
        if !changed {
            return live;
        }
    }
}

/// Gives every register its final rows.
fn assign(code: &mut Code, widths: &[u32], intervals: &Intervals) {
    let mut place = vec![NONE; widths.len()];
    let mut rows = 0;
    // Constants are written once per launch, so they keep rows of their own.
    for c in &mut code.consts {
        place[c.row as usize] = rows;
        c.row = rows;
        rows += c.rows.max(1);
    }
    let mut order: Vec<_> = (0..widths.len()).filter(|&r| place[r] == NONE).collect();
    order.retain(|&r| intervals[r].is_some());
    order.sort_by_key(|&r| intervals[r]);
    let mut free: [Vec<R>; 2] = [Vec::new(), Vec::new()];
    let mut active: BTreeSet<(u32, usize)> = BTreeSet::new();
    for r in order {
        let Some((first, last)) = intervals[r] else {
            continue;
        };
        while let Some(&(end, done)) = active.first() {
            if end >= first {
                break;
            }
            active.pop_first();
            free[widths[done] as usize - 1].push(place[done]);
        }
        let width = widths[r].clamp(1, 2);
        place[r] = free[width as usize - 1].pop().unwrap_or_else(|| {
            rows += width;
            rows - width
        });
        active.insert((last, r));
    }
    for inst in &mut code.insts {
        visit(inst, &mut |r, _| *r = place[*r as usize]);
    }
    code.rows = rows;
}
