//! `mma.sync` and `ldmatrix`.
#![forbid(unsafe_code)]

use super::func::{Lower, Result};
use super::mods::Mods;
use super::select::split;
use crate::exec::code::{LdMatrix, MemSpace, Mma, MmaIn, Op};
use crate::exec::regs::R;
use crate::parse::ast::{Operand, Space, Ty};

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn matrix(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        if mods.name() == "ldmatrix" {
            self.ldmatrix(mods, ops)
        } else {
            self.mma(mods, ops)
        }
    }

    fn fragment(&mut self, operand: &Operand<'t>, count: usize, out: bool) -> Result<Vec<R>> {
        let list = match operand {
            Operand::Vector(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        if list.len() != count {
            return Err(format!("a fragment of {count} registers is needed"));
        }
        list.iter()
            .map(|o| {
                if out {
                    self.dst(o, Ty::B32)
                } else {
                    self.src(o, Ty::B32)
                }
            })
            .collect()
    }

    fn mma(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        mods.flag("sync");
        mods.flag("aligned");
        let k = mods
            .pick(|m| m.strip_prefix("m16n8k")?.parse::<u32>().ok())
            .ok_or("only shapes m16n8k* are supported")?;
        if !mods.flag("row") || !mods.flag("col") {
            return Err("only row.col is supported".to_owned());
        }
        mods.flag("satfinite");
        let types = [mods.ty()?, mods.ty()?, mods.ty()?, mods.ty()?];
        let input = match (types[1], types[2]) {
            (Ty::F16, Ty::F16) => MmaIn::F16,
            (Ty::Bf16, Ty::Bf16) => MmaIn::Bf16,
            (Ty::Tf32, Ty::Tf32) => MmaIn::Tf32,
            (a @ (Ty::U8 | Ty::S8), b @ (Ty::U8 | Ty::S8)) => MmaIn::I8 {
                a_signed: a.signed(),
                b_signed: b.signed(),
            },
            _ => return Err("these input types are not supported".to_owned()),
        };
        let bits = match input {
            MmaIn::Tf32 => 32,
            MmaIn::I8 { .. } => 8,
            _ => 16,
        };
        let supported = matches!((bits, k), (16, 8 | 16) | (32, 4 | 8) | (8, 16 | 32));
        if !supported || types[0] != types[3] {
            return Err("this shape is not supported".to_owned());
        }
        let half_out = types[0] == Ty::F16;
        let [d, a, b, c] = ops else {
            return Err("four operands are needed".to_owned());
        };
        let per_lane = (16 * k * bits / 32 / 32) as usize;
        let mma = Mma {
            k,
            input,
            half_out,
            a: self.fragment(a, per_lane, false)?,
            b: self.fragment(b, per_lane / 2, false)?,
            c: self.fragment(c, if half_out { 2 } else { 4 }, false)?,
            d: self.fragment(d, if half_out { 2 } else { 4 }, true)?,
        };
        self.emit(Op::Mma(Box::new(mma)));
        Ok(())
    }

    fn ldmatrix(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        mods.flag("sync");
        mods.flag("aligned");
        let transpose = mods.flag("trans");
        if !mods.flag("m8n8") {
            return Err("only m8n8 is supported".to_owned());
        }
        let count = mods.pick(|m| match m {
            "x1" => Some(1),
            "x2" => Some(2),
            "x4" => Some(4),
            _ => None,
        });
        let space = mods.space();
        if mods.ty()? != Ty::B16 {
            return Err("only b16 is supported".to_owned());
        }
        let (d, rest) = split(ops)?;
        let d = self.fragment(d, count.unwrap_or(1), true)?;
        let (address, space) = self.address(
            rest.first().ok_or("no address")?,
            space.or(Some(Space::Generic)),
        )?;
        let generic = space == MemSpace::Generic;
        let inst = self.emit(Op::LdMatrix(Box::new(LdMatrix {
            transpose,
            wide: address.wide,
            generic,
            d,
        })));
        inst.a = address.base;
        inst.imm = address.offset.cast_unsigned();
        Ok(())
    }
}
