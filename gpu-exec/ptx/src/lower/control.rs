//! Branches, returns, barriers.
#![forbid(unsafe_code)]

use super::func::{Lower, Result};
use super::mods::Mods;
use crate::exec::code::{BarKind, BarOp, Op};
use crate::exec::regs::P_TRUE;
use crate::parse::ast::{Operand, Ty};

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn control(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        match (mods.name(), ops) {
            ("bra", [Operand::Name(label)]) => {
                mods.flag("uni");
                self.jump(label)
            }
            ("brx", [index, Operand::Name(table)]) => {
                mods.flag("idx");
                mods.flag("uni");
                let index = self.src(index, Ty::U32)?;
                self.jump_table(index, table)
            }
            ("call", _) => self.call(mods, ops),
            ("ret", []) => {
                mods.flag("uni");
                self.emit_return();
                Ok(())
            }
            ("exit", []) => {
                self.emit(Op::Exit);
                Ok(())
            }
            ("trap" | "brkpt", []) => {
                self.emit(Op::Trap);
                Ok(())
            }
            ("nanosleep", _) => {
                mods.ty()?;
                self.emit(Op::Nanosleep);
                Ok(())
            }
            // Events, programmatic launches and register hints have no effect on results.
            ("pmevent" | "griddepcontrol" | "setmaxnreg", _) => {
                mods.ignore(|_| true);
                Ok(())
            }
            _ => Err("malformed operands".to_owned()),
        }
    }

    /// `bar`, `barrier` in all forms, `bar.warp.sync`.
    pub(super) fn barrier(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        if mods.flag("warp") {
            mods.flag("sync");
            let mask = self.src(ops.first().ok_or("no mask")?, Ty::U32)?;
            self.emit(Op::WarpSync).a = mask;
            return Ok(());
        }
        mods.ignore(|m| matches!(m, "cta" | "aligned"));
        if mods.flag("cluster") {
            // A cluster is one block here: arriving needs no one else, waiting is a block barrier.
            mods.ignore(|m| matches!(m, "release" | "relaxed" | "acquire"));
            if mods.flag("arrive") {
                return Ok(());
            }
            mods.flag("wait");
            return self.bar(BarKind::Sync, &[Operand::Int(0)]);
        }
        if mods.flag("arrive") {
            return self.bar(BarKind::Arrive, ops);
        }
        if mods.flag("red") {
            return self.bar_red(mods, ops);
        }
        mods.flag("sync");
        self.bar(BarKind::Sync, ops)
    }

    fn bar(&mut self, kind: BarKind, ops: &[Operand<'t>]) -> Result<()> {
        let id = self.src(ops.first().unwrap_or(&Operand::Int(0)), Ty::U32)?;
        let count = ops
            .get(1)
            .map(|count| self.src(count, Ty::U32))
            .transpose()?;
        let inst = self.emit(Op::Bar(BarOp {
            counted: count.is_some(),
            kind,
        }));
        inst.a = id;
        if let Some(count) = count {
            inst.b = count;
        }
        Ok(())
    }

    fn bar_red(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let kind = mods.pick(|m| match m {
            "popc" => Some(BarKind::Popc),
            "and" => Some(BarKind::And),
            "or" => Some(BarKind::Or),
            _ => None,
        });
        let kind = kind.ok_or("no reduction")?;
        mods.ty()?;
        let [d, id, middle @ .., s] = ops else {
            return Err("operands are missing".to_owned());
        };
        let id = self.src(id, Ty::U32)?;
        let count = middle
            .first()
            .map(|count| self.src(count, Ty::U32))
            .transpose()?;
        let s = self.pred(s)?;
        let (mut r, mut p) = (super::func::NONE, P_TRUE);
        match kind {
            BarKind::Popc => r = self.dst(d, Ty::U32)?,
            _ => p = self.pred_dst(d)?,
        }
        let inst = self.emit(Op::Bar(BarOp {
            counted: count.is_some(),
            kind,
        }));
        (inst.d, inst.a, inst.p, inst.s) = (r, id, p, s);
        if let Some(count) = count {
            inst.b = count;
        }
        Ok(())
    }
}
