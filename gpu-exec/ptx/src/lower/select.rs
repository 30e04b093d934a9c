//! From an opcode to the function that lowers it.
#![forbid(unsafe_code)]

use super::func::{Lower, Result};
use super::mods::Mods;
use crate::exec::alu::un;
use crate::exec::regs::R;
use crate::parse::ast::{Operand, Ty};

impl<'t> Lower<'_, '_, 't> {
    /// Lowers one instruction; modifiers that stay unused are refused by the caller.
    #[rustfmt::skip]
    pub(super) fn select(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        match mods.name() {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "abs" | "neg" | "min" | "max" => self.arithmetic(mods, ops),
            "addc" | "subc" | "madc" => self.int(mods, ops, None),
            "mul24" | "mad24" | "sad" | "dp4a" | "dp2a" => self.int(mods, ops, None),
            "sqrt" | "rsqrt" | "rcp" | "sin" | "cos" | "ex2" | "lg2" | "tanh" | "copysign" => self.math(mods, ops),
            "testp" => self.testp(mods, ops),
            "popc" | "clz" | "brev" | "bfind" | "bfe" | "bfi" | "bmsk" | "szext" | "fns" | "prmt" => self.bits(mods, ops),
            "and" | "or" | "xor" | "not" | "cnot" | "lop3" => self.logic(mods, ops),
            "shl" | "shr" | "shf" => self.shift(mods, ops),
            "setp" | "set" => self.compare(mods, ops),
            "selp" | "slct" => self.choose(mods, ops),
            "mov" => self.mov(mods, ops),
            "cvt" => self.cvt(mods, ops),
            "cvta" | "isspacep" | "mapa" => self.address_space(mods, ops),
            "ld" | "ldu" => self.load(mods, ops),
            "st" => self.store(mods, ops),
            "prefetch" | "prefetchu" | "discard" | "applypriority" => self.hint(mods),
            "cp" => self.cp_async(mods, ops),
            "atom" | "red" => self.atom(mods, ops),
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "pmevent" | "griddepcontrol" | "setmaxnreg" => self.control(mods, ops),
            "membar" | "fence" => self.fence(mods),
            "bar" | "barrier" => self.barrier(mods, ops),
            "shfl" | "vote" | "match" | "activemask" | "redux" | "elect" => self.warp(mods, ops),
            "mma" | "ldmatrix" => self.matrix(mods, ops),
            "tex" | "tld4" | "suld" | "sust" | "txq" | "suq" => self.texture(mods, ops),
            "stacksave" | "stackrestore" | "alloca" => Err("dynamic stack allocation is not supported".to_owned()),
            _ => Err("unknown instruction".to_owned()),
        }
    }

    fn arithmetic(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let ty = mods
            .parts
            .iter()
            .rev()
            .find_map(|p| Ty::parse(p))
            .ok_or("no type")?;
        match ty {
            Ty::F32 | Ty::F64 | Ty::F32x2 => self.float(mods, ops),
            Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 => self.half(mods, ops),
            _ => self.int(mods, ops, Some(ty)),
        }
    }

    pub(super) fn copy32(&mut self, d: R, a: R) {
        self.alu(un!(u32 => u32, |x| x), d, &[a]);
    }

    pub(super) fn copy(&mut self, d: R, a: R, ty: Ty) {
        match ty.rows() {
            1 => self.copy32(d, a),
            2 => {
                self.alu(un!(u64 => u64, |x| x), d, &[a]);
            }
            _ => {
                self.alu(un!(u64 => u64, |x| x), d, &[a]);
                self.alu(un!(u64 => u64, |x| x), d + 2, &[a + 2]);
            }
        }
    }

    /// All sources with one type.
    pub(super) fn sources<const N: usize>(
        &mut self,
        ops: &[Operand<'t>],
        ty: Ty,
    ) -> Result<[R; N]> {
        self.sources_typed(ops, &[ty; N])
    }

    /// Sources with a type each.
    pub(super) fn sources_typed<const N: usize>(
        &mut self,
        ops: &[Operand<'t>],
        ty: &[Ty; N],
    ) -> Result<[R; N]> {
        if ops.len() != N {
            return Err(format!("{} source operands, {N} are needed", ops.len()));
        }
        let mut regs = [0; N];
        for ((r, op), ty) in regs.iter_mut().zip(ops).zip(ty) {
            *r = self.src(op, *ty)?;
        }
        Ok(regs)
    }
}

/// Splits off the destination.
pub(super) fn split<'o, 't>(
    ops: &'o [Operand<'t>],
) -> Result<(&'o Operand<'t>, &'o [Operand<'t>])> {
    ops.split_first().ok_or_else(|| "no operands".to_owned())
}
