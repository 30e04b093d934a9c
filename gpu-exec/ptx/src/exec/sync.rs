//! Barriers and the instructions in which lanes of a warp exchange values.
#![forbid(unsafe_code)]

use super::block::{Cx, Shared};
use super::code::{BarKind, BarOp, Inst, Op, Redux, ShflMode, VoteMode};
use super::mem::lanes;
use super::num::{NAN_F32, canon};
use super::regs::{LANES, Lane};
use super::warp::{Flow, Split, Trouble, Wait, Warp, first, set};
use crate::error::FaultKind;

impl Warp {
    pub(super) fn bar(
        &mut self,
        inst: &Inst,
        bar: BarOp,
        active: u32,
        _cx: &mut Cx<'_>,
        shared: &mut Shared,
    ) -> Result<Flow, Trouble> {
        if active == 0 {
            return Ok(Flow::Next);
        }
        let lane = first(active);
        let id = self.regs.r32(inst.a)[lane];
        let bad = |what: String| Trouble {
            lane,
            kind: FaultKind::IllegalInstruction(what),
        };
        let Some(state) = shared.bars.get_mut(id as usize) else {
            return Err(bad(format!("barrier {id} of 16")));
        };
        if bar.counted {
            let count = self.regs.r32(inst.b)[lane];
            if count == 0 || !count.is_multiple_of(LANES as u32) {
                return Err(bad(format!(
                    "barrier for {count} threads, not a multiple of a warp"
                )));
            }
            state.expected = Some(count);
            // Counts are in whole warps, lanes that do not exist included.
            state.arrived += if active == self.live {
                LANES as u32
            } else {
                active.count_ones()
            };
        } else {
            state.arrived += active.count_ones();
        }
        shared.pending |= 1 << id;
        let holds = self.pred(inst.s) & active;
        state.popc += holds.count_ones();
        state.not_all |= holds != active;
        if bar.kind == BarKind::Arrive {
            return Ok(Flow::Next);
        }
        let running = self.splits[0];
        if active != running.mask {
            let rest = running.mask & !active;
            self.splits.push(Split {
                pc: running.pc + 1,
                mask: rest,
                wait: Wait::Nothing,
            });
            self.splits[0].mask = active;
        }
        Ok(self.park(Wait::Barrier((id & 15) as u8)))
    }

    /// Instructions that need the lanes of a mask in one place.
    pub(super) fn together(&mut self, inst: &Inst, active: u32) -> Flow {
        if active == 0 {
            return Flow::Next;
        }
        let members = self.members(inst);
        let forced = std::mem::take(&mut self.forced);
        if let Some(members) = &members {
            let missing = lanes(active).any(|l| members[l] & self.live & !self.splits[0].mask != 0);
            if missing && !forced && self.splits.len() > 1 {
                return self.park(Wait::Lanes);
            }
        }
        // Lanes with the same member mask are one group.
        let mut left = active;
        while left != 0 {
            let group = match &members {
                None => left,
                Some(m) => {
                    let mask = m[first(left)];
                    lanes(left)
                        .filter(|&l| m[l] == mask)
                        .fold(0, |g, l| g | 1 << l)
                }
            };
            left &= !group;
            self.exchange(inst, group);
        }
        Flow::Next
    }

    fn members(&self, inst: &Inst) -> Option<[u32; LANES]> {
        let row = match inst.op {
            Op::Shfl { sync: true, .. } => inst.imm as u32,
            Op::Vote { sync: true, .. } | Op::WarpSync | Op::Elect => inst.a,
            Op::Match { .. } | Op::Redux(_) => inst.b,
            _ => return None,
        };
        Some(*self.regs.r32(row))
    }

    fn exchange(&mut self, inst: &Inst, group: u32) {
        match &inst.op {
            Op::Shfl { mode, .. } => self.shfl(inst, *mode, group),
            Op::Vote { mode, .. } => self.vote(inst, *mode, group),
            Op::Match { all, wide } => self.matching(inst, *all, *wide, group),
            Op::Redux(redux) => self.redux(inst, *redux, group),
            Op::Elect => {
                let leader = first(group);
                set(&mut self.regs, inst.d, group, leader as u32);
                self.regs.set_pred(inst.p, 1 << leader, group);
            }
            _ => {}
        }
    }

    fn shfl(&mut self, inst: &Inst, mode: ShflMode, group: u32) {
        let (a, b, c) = (
            *self.regs.r32(inst.a),
            *self.regs.r32(inst.b),
            *self.regs.r32(inst.c),
        );
        let mut out = a;
        let mut valid = 0;
        for lane in 0..LANES {
            let (bval, cval) = (b[lane] & 31, c[lane] & 31);
            let segment = c[lane] >> 8 & 31;
            let own = lane as u32;
            let max = own & segment | cval & !segment;
            let min = own & segment;
            let (from, inside) = match mode {
                // For `up` the clamp is a lower bound.
                ShflMode::Up => {
                    let from = own.wrapping_sub(bval);
                    (from, from.cast_signed() >= max.cast_signed())
                }
                ShflMode::Down => (own + bval, own + bval <= max),
                ShflMode::Bfly => (own ^ bval, (own ^ bval) <= max),
                ShflMode::Idx => {
                    let from = min | bval & !segment;
                    (from, from <= max)
                }
            };
            if inside {
                valid |= 1 << lane;
                out[lane] = a[from as usize & 31];
            }
        }
        u32::put(&mut self.regs, inst.d, &out, group);
        self.regs.set_pred(inst.p, valid, group);
    }

    fn vote(&mut self, inst: &Inst, mode: VoteMode, group: u32) {
        let holds = self.pred(inst.s) & group;
        let all = |holds: bool| if holds { u32::MAX } else { 0 };
        match mode {
            VoteMode::Ballot => set(&mut self.regs, inst.d, group, holds),
            VoteMode::All => self.regs.set_pred(inst.p, all(holds == group), group),
            VoteMode::Any => self.regs.set_pred(inst.p, all(holds != 0), group),
            VoteMode::Uni => self
                .regs
                .set_pred(inst.p, all(holds == group || holds == 0), group),
        }
    }

    fn matching(&mut self, inst: &Inst, all: bool, wide: bool, group: u32) {
        let value = |l: usize| {
            if wide {
                self.regs.r64(inst.a)[l]
            } else {
                u64::from(self.regs.r32(inst.a)[l])
            }
        };
        let mut out = [0; LANES];
        for lane in lanes(group) {
            out[lane] = lanes(group)
                .filter(|&l| value(l) == value(lane))
                .fold(0, |m, l| m | 1 << l);
        }
        if all {
            let same = out[first(group)] == group;
            set(&mut self.regs, inst.d, group, if same { group } else { 0 });
            self.regs
                .set_pred(inst.p, if same { u32::MAX } else { 0 }, group);
        } else {
            u32::put(&mut self.regs, inst.d, &out, group);
        }
    }

    fn redux(&mut self, inst: &Inst, redux: Redux, group: u32) {
        let a = *self.regs.r32(inst.a);
        let values = lanes(group).map(|l| a[l]);
        let signed = lanes(group).map(|l| a[l].cast_signed());
        let out = match redux {
            Redux::Add => values.fold(0, u32::wrapping_add),
            Redux::MinU => values.min().unwrap_or(0),
            Redux::MaxU => values.max().unwrap_or(0),
            Redux::MinS => signed.min().unwrap_or(0).cast_unsigned(),
            Redux::MaxS => signed.max().unwrap_or(0).cast_unsigned(),
            Redux::And => values.fold(u32::MAX, |x, y| x & y),
            Redux::Or => values.fold(0, |x, y| x | y),
            Redux::Xor => values.fold(0, |x, y| x ^ y),
            Redux::MinF { abs, nan } => float_redux(values, abs, nan, f32::min),
            Redux::MaxF { abs, nan } => float_redux(values, abs, nan, f32::max),
        };
        set(&mut self.regs, inst.d, group, out);
    }
}

fn float_redux(
    values: impl Iterator<Item = u32>,
    abs: bool,
    nan: bool,
    f: fn(f32, f32) -> f32,
) -> u32 {
    let value = |bits: u32| {
        if abs {
            f32::from_bits(bits).abs()
        } else {
            f32::from_bits(bits)
        }
    };
    let reduced = values.map(value).reduce(|x, y| {
        if nan && (x.is_nan() || y.is_nan()) {
            NAN_F32
        } else {
            f(x, y)
        }
    });
    canon(reduced.unwrap_or(NAN_F32)).to_bits()
}
