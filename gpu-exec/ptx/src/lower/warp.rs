//! Instructions in which the lanes of a warp talk to each other.
#![forbid(unsafe_code)]

use super::func::{Lower, NONE, Result};
use super::mods::Mods;
use super::select::split;
use crate::exec::code::{Op, Redux, ShflMode, VoteMode};
use crate::exec::regs::P_TRUE;
use crate::parse::ast::{Operand, Ty};

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn warp(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let sync = mods.flag("sync");
        let (d, rest) = split(ops)?;
        match mods.name() {
            "shfl" => self.shfl(mods, sync, d, rest),
            "vote" => self.vote(mods, sync, d, rest),
            "match" => self.matching(mods, d, rest),
            "activemask" => {
                mods.ty()?;
                let d = self.dst(d, Ty::B32)?;
                self.emit(Op::ActiveMask).d = d;
                Ok(())
            }
            "redux" => self.redux(mods, d, rest),
            _ => {
                let (d, p) = match d {
                    Operand::Pair(d, p) => (self.dst(d, Ty::B32)?, self.pred_dst(p)?),
                    _ => return Err("two destinations are needed".to_owned()),
                };
                let [mask] = self.sources(rest, Ty::B32)?;
                let inst = self.emit(Op::Elect);
                (inst.d, inst.p, inst.a) = (d, p, mask);
                Ok(())
            }
        }
    }

    fn shfl(
        &mut self,
        mods: &mut Mods<'t>,
        sync: bool,
        d: &Operand<'t>,
        rest: &[Operand<'t>],
    ) -> Result<()> {
        let mode = mods.pick(|m| match m {
            "up" => Some(ShflMode::Up),
            "down" => Some(ShflMode::Down),
            "bfly" => Some(ShflMode::Bfly),
            "idx" => Some(ShflMode::Idx),
            _ => None,
        });
        let mode = mode.ok_or("no mode")?;
        mods.ty()?;
        let (d, p) = match d {
            Operand::Pair(d, p) => (self.dst(d, Ty::B32)?, self.pred_dst(p)?),
            d => (self.dst(d, Ty::B32)?, P_TRUE),
        };
        let (values, mask) = match (sync, rest) {
            (true, [values @ .., mask]) => (values, Some(self.src(mask, Ty::B32)?)),
            (false, values) => (values, None),
            _ => return Err("no member mask".to_owned()),
        };
        let [a, b, c] = self.sources(values, Ty::B32)?;
        let inst = self.emit(Op::Shfl { mode, sync });
        (inst.d, inst.p, inst.a, inst.b, inst.c) = (d, p, a, b, c);
        inst.imm = u64::from(mask.unwrap_or(NONE));
        Ok(())
    }

    fn vote(
        &mut self,
        mods: &mut Mods<'t>,
        sync: bool,
        d: &Operand<'t>,
        rest: &[Operand<'t>],
    ) -> Result<()> {
        let mode = mods.pick(|m| match m {
            "all" => Some(VoteMode::All),
            "any" => Some(VoteMode::Any),
            "uni" => Some(VoteMode::Uni),
            "ballot" => Some(VoteMode::Ballot),
            _ => None,
        });
        let mode = mode.ok_or("no mode")?;
        mods.ty()?;
        let (mut r, mut p) = (NONE, P_TRUE);
        match mode {
            VoteMode::Ballot => r = self.dst(d, Ty::B32)?,
            _ => p = self.pred_dst(d)?,
        }
        let s = self.pred(rest.first().ok_or("no source")?)?;
        let mask = match (sync, rest.get(1)) {
            (true, Some(mask)) => self.src(mask, Ty::B32)?,
            (false, None) => NONE,
            _ => return Err("wrong number of operands".to_owned()),
        };
        let inst = self.emit(Op::Vote { mode, sync });
        (inst.d, inst.p, inst.s, inst.a) = (r, p, s, mask);
        Ok(())
    }

    fn matching(
        &mut self,
        mods: &mut Mods<'t>,
        d: &Operand<'t>,
        rest: &[Operand<'t>],
    ) -> Result<()> {
        let all = mods.flag("all");
        if !all && !mods.flag("any") {
            return Err("`.any` or `.all` is missing".to_owned());
        }
        let ty = mods.ty()?;
        let (d, p) = match d {
            Operand::Pair(d, p) => (self.dst(d, Ty::B32)?, self.pred_dst(p)?),
            d => (self.dst(d, Ty::B32)?, P_TRUE),
        };
        let [a, mask] = self.sources_typed(rest, &[ty, Ty::B32])?;
        let inst = self.emit(Op::Match {
            all,
            wide: ty.rows() == 2,
        });
        (inst.d, inst.p, inst.a, inst.b) = (d, p, a, mask);
        Ok(())
    }

    fn redux(&mut self, mods: &mut Mods<'t>, d: &Operand<'t>, rest: &[Operand<'t>]) -> Result<()> {
        let (abs, nan) = (mods.flag("abs"), mods.flag("NaN"));
        let name = mods.pick(|m| {
            ["add", "min", "max", "and", "or", "xor"]
                .into_iter()
                .find(|n| *n == m)
        });
        let ty = mods.ty()?;
        let redux = match (name.unwrap_or(""), ty) {
            ("add", Ty::U32 | Ty::S32) => Redux::Add,
            ("min", Ty::U32) => Redux::MinU,
            ("max", Ty::U32) => Redux::MaxU,
            ("min", Ty::S32) => Redux::MinS,
            ("max", Ty::S32) => Redux::MaxS,
            ("and", Ty::B32) => Redux::And,
            ("or", Ty::B32) => Redux::Or,
            ("xor", Ty::B32) => Redux::Xor,
            ("min", Ty::F32) => Redux::MinF { abs, nan },
            ("max", Ty::F32) => Redux::MaxF { abs, nan },
            _ => return Err(format!("not for type {ty:?}")),
        };
        let [a, mask] = self.sources(rest, Ty::B32)?;
        let d = self.dst(d, Ty::B32)?;
        let inst = self.emit(Op::Redux(redux));
        (inst.d, inst.a, inst.b) = (d, a, mask);
        Ok(())
    }
}
