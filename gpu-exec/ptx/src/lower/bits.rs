//! Bit manipulation, logic, shifts.
#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_lossless
)]

use super::func::{Lower, Result};
use super::mods::Mods;
use super::select::split;
use crate::exec::alu::{AluFn, alu, bin, ter, un};
use crate::exec::carry::PredLogic;
use crate::parse::ast::{Operand, Ty};

/// Unsigned types by width.
macro_rules! words {
    ($ty:expr, $t:ident => $e:expr) => {
        match $ty.bytes() {
            2 => {
                type $t = u16;
                $e
            }
            4 => {
                type $t = u32;
                $e
            }
            8 => {
                type $t = u64;
                $e
            }
            _ => return Err(format!("not for type {:?}", $ty)),
        }
    };
}

/// 32 and 64 bits, unsigned.
macro_rules! wide_words {
    ($ty:expr, $t:ident => $e:expr) => {
        match $ty.bytes() {
            4 => {
                type $t = u32;
                $e
            }
            8 => {
                type $t = u64;
                $e
            }
            _ => return Err(format!("not for type {:?}", $ty)),
        }
    };
}

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn bits(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (d, rest) = split(ops)?;
        if mods.name() == "prmt" {
            return self.prmt(mods, d, rest);
        }
        let ty = mods.ty()?;
        match mods.name() {
            "popc" => self.count(
                ty,
                d,
                rest,
                wide_words!(ty, T => un!(T => u32, |x| x.count_ones())),
            ),
            "clz" => self.count(
                ty,
                d,
                rest,
                wide_words!(ty, T => un!(T => u32, |x| x.leading_zeros())),
            ),
            "brev" => {
                let [a] = self.sources(rest, ty)?;
                let d = self.dst(d, ty)?;
                self.alu(
                    wide_words!(ty, T => un!(T => T, |x| x.reverse_bits())),
                    d,
                    &[a],
                );
                Ok(())
            }
            "bfind" => self.bfind(mods, ty, d, rest),
            "bfe" => self.bfe(ty, d, rest),
            "bfi" => self.bfi(ty, d, rest),
            "bmsk" => {
                let wrap = mods.flag("wrap");
                mods.flag("clamp");
                let [a, b] = self.sources(rest, Ty::U32)?;
                let d = self.dst(d, Ty::U32)?;
                self.alu(
                    bin!(u32, u32 => u32, |x, y, imm| bmsk(x, y, imm != 0)),
                    d,
                    &[a, b],
                )
                .imm = wrap.into();
                Ok(())
            }
            "szext" => {
                let wrap = mods.flag("wrap");
                mods.flag("clamp");
                let [a, b] = self.sources(rest, Ty::U32)?;
                let d = self.dst(d, Ty::U32)?;
                self.alu(
                    bin!(u32, u32 => u32, |x, y, imm| szext(x, y, imm & 1 != 0, imm & 2 != 0)),
                    d,
                    &[a, b],
                )
                .imm = u64::from(wrap) | u64::from(ty.signed()) << 1;
                Ok(())
            }
            _ => {
                let [a, b, c] = self.sources_typed(rest, &[Ty::U32, Ty::U32, Ty::S32])?;
                let d = self.dst(d, Ty::U32)?;
                self.alu(
                    ter!(u32, u32, i32 => u32, |x, y, z| fns(x, y, z)),
                    d,
                    &[a, b, c],
                );
                Ok(())
            }
        }
    }

    fn count(&mut self, ty: Ty, d: &Operand<'t>, rest: &[Operand<'t>], f: AluFn) -> Result<()> {
        let [a] = self.sources(rest, ty)?;
        let d = self.dst(d, Ty::U32)?;
        self.alu(f, d, &[a]);
        Ok(())
    }

    fn bfind(
        &mut self,
        mods: &mut Mods<'t>,
        ty: Ty,
        d: &Operand<'t>,
        rest: &[Operand<'t>],
    ) -> Result<()> {
        let shift = mods.flag("shiftamt");
        let [a] = self.sources(rest, ty)?;
        let d = self.dst(d, Ty::U32)?;
        macro_rules! find {
            ($t:ty, $x:ident, $value:expr) => {
                un!($t => u32, |$x, imm| {
                    let zeros = ($value).leading_zeros();
                    let bits = <$t>::BITS;
                    if zeros == bits { u32::MAX } else if imm != 0 { zeros } else { bits - 1 - zeros }
                })
            };
        }
        let f = match ty {
            Ty::U32 => find!(u32, x, x),
            Ty::U64 => find!(u64, x, x),
            Ty::S32 => find!(i32, x, (x ^ (x >> 31)) as u32),
            Ty::S64 => find!(i64, x, (x ^ (x >> 63)) as u64),
            _ => return Err(format!("not for type {ty:?}")),
        };
        self.alu(f, d, &[a]).imm = shift.into();
        Ok(())
    }

    fn bfe(&mut self, ty: Ty, d: &Operand<'t>, rest: &[Operand<'t>]) -> Result<()> {
        let [a, b, c] = self.sources_typed(rest, &[ty, Ty::U32, Ty::U32])?;
        let d = self.dst(d, ty)?;
        let f = match ty {
            Ty::U32 => ter!(u32, u32, u32 => u32, |x, y, z| bfe(x as u64, y, z, 32, false) as u32),
            Ty::S32 => ter!(u32, u32, u32 => u32, |x, y, z| bfe(x as u64, y, z, 32, true) as u32),
            Ty::U64 => ter!(u64, u32, u32 => u64, |x, y, z| bfe(x, y, z, 64, false)),
            Ty::S64 => ter!(u64, u32, u32 => u64, |x, y, z| bfe(x, y, z, 64, true)),
            _ => return Err(format!("not for type {ty:?}")),
        };
        self.alu(f, d, &[a, b, c]);
        Ok(())
    }

    fn bfi(&mut self, ty: Ty, d: &Operand<'t>, rest: &[Operand<'t>]) -> Result<()> {
        let [a, b, c, e] = self.sources_typed(rest, &[ty, ty, Ty::U32, Ty::U32])?;
        let d = self.dst(d, ty)?;
        let field = self.temp(Ty::U32);
        self.alu(
            bin!(u32, u32 => u32, |x, y| x & 0xff | (y & 0xff) << 8),
            field,
            &[c, e],
        );
        let f = match ty.bytes() {
            4 => {
                ter!(u32, u32, u32 => u32, |x, y, z| bfi(x as u64, y as u64, z & 0xff, z >> 8, 32) as u32)
            }
            _ => ter!(u64, u64, u32 => u64, |x, y, z| bfi(x, y, z & 0xff, z >> 8, 64)),
        };
        self.alu(f, d, &[a, b, field]);
        Ok(())
    }

    fn prmt(&mut self, mods: &mut Mods<'t>, d: &Operand<'t>, rest: &[Operand<'t>]) -> Result<()> {
        mods.ty()?;
        let mode = mods.pick(|m| match m {
            "f4e" => Some(1),
            "b4e" => Some(2),
            "rc8" => Some(3),
            "ecl" => Some(4),
            "ecr" => Some(5),
            "rc16" => Some(6),
            _ => None,
        });
        let [a, b, c] = self.sources(rest, Ty::U32)?;
        let d = self.dst(d, Ty::U32)?;
        let f = ter!(u32, u32, u32 => u32, |x, y, z, imm| prmt(x, y, selector(z, imm)));
        self.alu(f, d, &[a, b, c]).imm = mode.unwrap_or(0);
        Ok(())
    }

    pub(super) fn logic(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (d, rest) = split(ops)?;
        if mods.name() == "lop3" {
            return self.lop3(mods, d, rest);
        }
        let ty = mods.ty()?;
        if ty == Ty::Pred {
            return self.logic_pred(mods.name(), d, rest);
        }
        if matches!(mods.name(), "not" | "cnot") {
            let [a] = self.sources(rest, ty)?;
            let d = self.dst(d, ty)?;
            let f = match mods.name() {
                "not" => words!(ty, T => un!(T => T, |x| !x)),
                _ => words!(ty, T => un!(T => T, |x| T::from(x == 0))),
            };
            self.alu(f, d, &[a]);
            return Ok(());
        }
        let [a, b] = self.sources(rest, ty)?;
        let d = self.dst(d, ty)?;
        let f = match mods.name() {
            "and" => words!(ty, T => bin!(T, T => T, |x, y| x & y)),
            "or" => words!(ty, T => bin!(T, T => T, |x, y| x | y)),
            _ => words!(ty, T => bin!(T, T => T, |x, y| x ^ y)),
        };
        self.alu(f, d, &[a, b]);
        Ok(())
    }

    fn logic_pred(&mut self, name: &str, d: &Operand<'t>, rest: &[Operand<'t>]) -> Result<()> {
        let table = match name {
            "and" => 0b1000,
            "or" => 0b1110,
            "xor" => 0b0110,
            "not" => 0b0101,
            _ => return Err("not for predicates".to_owned()),
        };
        let (a, b) = match (name, rest) {
            ("not", [a]) => (self.pred(a)?, 0),
            ("and" | "or" | "xor", [a, b]) => (self.pred(a)?, self.pred(b)?),
            _ => return Err("wrong number of operands".to_owned()),
        };
        // `not` looks at its one source only: its second is constantly true.
        let table = if name == "not" { 0b0101 } else { table };
        let p = self.pred_dst(d)?;
        let inst = self.alu(alu::<PredLogic>(), super::func::NONE, &[]);
        (inst.p, inst.s, inst.q, inst.imm) = (p, a, b, table);
        Ok(())
    }

    fn lop3(&mut self, mods: &mut Mods<'t>, d: &Operand<'t>, rest: &[Operand<'t>]) -> Result<()> {
        mods.ty()?;
        let combine = mods.pick(|m| match m {
            "and" => Some(0b1000),
            "or" => Some(0b1110),
            _ => None,
        });
        let (sources, table) = match rest {
            [a, b, c, Operand::Int(table)] => ([a, b, c], *table),
            [a, b, c, Operand::Int(table), _] => ([a, b, c], *table),
            _ => return Err("three sources and a table are needed".to_owned()),
        };
        let [a, b, c] = self.sources(&sources.map(Clone::clone), Ty::U32)?;
        let f = ter!(u32, u32, u32 => u32, |x, y, z, imm| lop3(x, y, z, imm));
        let Some(op) = combine else {
            let d = self.dst(d, Ty::U32)?;
            self.alu(f, d, &[a, b, c]).imm = table;
            return Ok(());
        };
        let (d, p) = match d {
            Operand::Pair(d, p) => (self.dst(d, Ty::U32)?, self.pred_dst(p)?),
            _ => return Err("two destinations are needed".to_owned()),
        };
        let q = self.pred(&rest[4.min(rest.len() - 1)])?;
        self.alu(f, d, &[a, b, c]).imm = table;
        let zero = self.src(&Operand::Int(0), Ty::U32)?;
        let inst = self.alu(
            crate::exec::alu::cmp!(u32, |x, y| x != y),
            super::func::NONE,
            &[d, zero],
        );
        (inst.p, inst.s) = (p, q);
        inst.imm = if op == 0b1000 {
            crate::exec::alu::COMBINE_AND
        } else {
            crate::exec::alu::COMBINE_OR
        };
        Ok(())
    }

    pub(super) fn shift(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (d, rest) = split(ops)?;
        let ty = mods.ty()?;
        if mods.name() == "shf" {
            return self.funnel(mods, d, rest);
        }
        let [a, b] = self.sources_typed(rest, &[ty, Ty::U32])?;
        let d = self.dst(d, ty)?;
        // Amounts of the width or more are clamped to the width.
        let f = match (mods.name(), ty) {
            ("shl", _) => {
                words!(ty, T => bin!(T, u32 => T, |x, y| if y < T::BITS { x << (y & (T::BITS - 1)) } else { 0 }))
            }
            (_, Ty::S16) => bin!(i16, u32 => i16, |x, y| x >> y.min(15)),
            (_, Ty::S32) => bin!(i32, u32 => i32, |x, y| x >> y.min(31)),
            (_, Ty::S64) => bin!(i64, u32 => i64, |x, y| x >> y.min(63)),
            _ => {
                words!(ty, T => bin!(T, u32 => T, |x, y| if y < T::BITS { x >> (y & (T::BITS - 1)) } else { 0 }))
            }
        };
        self.alu(f, d, &[a, b]);
        Ok(())
    }

    fn funnel(&mut self, mods: &mut Mods<'t>, d: &Operand<'t>, rest: &[Operand<'t>]) -> Result<()> {
        let [a, b, c] = self.sources(rest, Ty::U32)?;
        let d = self.dst(d, Ty::U32)?;
        let left = mods.flag("l");
        if !left && !mods.flag("r") {
            return Err("`.l` or `.r` is missing".to_owned());
        }
        let wrap = mods.flag("wrap");
        mods.flag("clamp");
        let f = if left {
            ter!(u32, u32, u32 => u32, |x, y, z, imm| {
                let n = if imm != 0 { z & 31 } else { z.min(32) };
                (((y as u64) << 32 | x as u64) << n >> 32) as u32
            })
        } else {
            ter!(u32, u32, u32 => u32, |x, y, z, imm| {
                let n = if imm != 0 { z & 31 } else { z.min(32) };
                (((y as u64) << 32 | x as u64) >> n) as u32
            })
        };
        self.alu(f, d, &[a, b, c]).imm = wrap.into();
        Ok(())
    }
}

/// Ones from bit `at`, `len` of them.
#[inline(always)]
fn bmsk(at: u32, len: u32, wrap: bool) -> u32 {
    if wrap {
        let (at, len) = (at & 31, len & 31);
        return (((1u64 << len) - 1) << at) as u32;
    }
    if at > 31 {
        return 0;
    }
    ((((1u64 << len.min(32)) - 1) << at) & 0xffff_ffff) as u32
}

/// Sign- or zero-extends from `bits` bits.
#[inline(always)]
fn szext(x: u32, bits: u32, wrap: bool, signed: bool) -> u32 {
    let bits = if wrap { bits & 31 } else { bits.min(32) };
    match bits {
        0 => 0,
        32 => x,
        n if signed => ((x << (32 - n)) as i32 >> (32 - n)) as u32,
        n => x & ((1 << n) - 1),
    }
}

/// Position of the n-th set bit from `base`, upwards or downwards.
#[inline(always)]
fn fns(mask: u32, base: u32, offset: i32) -> u32 {
    let base = base & 31;
    if offset == 0 {
        return if mask >> base & 1 != 0 {
            base
        } else {
            u32::MAX
        };
    }
    let step = offset.signum();
    let mut left = offset.unsigned_abs();
    let mut at = base as i32;
    while (0..32).contains(&at) {
        if mask >> at & 1 != 0 {
            left -= 1;
            if left == 0 {
                return at as u32;
            }
        }
        at += step;
    }
    u32::MAX
}

#[inline(always)]
fn bfe(x: u64, at: u32, len: u32, width: u32, signed: bool) -> u64 {
    let (at, len) = (at & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    let top = (at + len - 1).min(width - 1);
    let sign = signed && x >> top & 1 != 0;
    let kept = len.min(width.saturating_sub(at));
    let field = if kept == 0 {
        0
    } else {
        x >> at & (u64::MAX >> (64 - kept))
    };
    if sign && kept < 64 {
        field | u64::MAX << kept
    } else {
        field
    }
}

#[inline(always)]
fn bfi(x: u64, into: u64, at: u32, len: u32, width: u32) -> u64 {
    let kept = len.min(width.saturating_sub(at));
    if kept == 0 {
        return into;
    }
    let ones = (u64::MAX >> (64 - kept)) << at;
    into & !ones | x << at & ones
}

/// The generic selector that a prmt mode stands for.
#[inline(always)]
fn selector(z: u32, mode: u64) -> u32 {
    let i = z & 3;
    match mode {
        1 => 0x3210 + 0x1111 * i,
        2 => [0x5670, 0x6701, 0x7012, 0x0123][i as usize],
        3 => 0x1111 * i,
        4 => [0x3210, 0x3211, 0x3222, 0x3333][i as usize],
        5 => [0x0000, 0x1110, 0x2210, 0x3210][i as usize],
        6 => {
            if i & 1 == 0 {
                0x1010
            } else {
                0x3232
            }
        }
        _ => z,
    }
}

#[inline(always)]
fn prmt(x: u32, y: u32, select: u32) -> u32 {
    let both = (y as u64) << 32 | x as u64;
    let mut out = 0;
    for i in 0..4 {
        let s = select >> (4 * i);
        let byte = (both >> (8 * (s & 7))) as u8;
        let byte = if s & 8 != 0 {
            ((byte as i8) >> 7) as u8
        } else {
            byte
        };
        out |= (byte as u32) << (8 * i);
    }
    out
}

/// Any function of three bits: bit `a<<2 | b<<1 | c` of the table.
#[inline(always)]
fn lop3(a: u32, b: u32, c: u32, table: u64) -> u32 {
    let bit = |i: u64, lanes: u32| lanes & 0u32.wrapping_sub((table >> i & 1) as u32);
    bit(0, !a & !b & !c)
        | bit(1, !a & !b & c)
        | bit(2, !a & b & !c)
        | bit(3, !a & b & c)
        | bit(4, a & !b & !c)
        | bit(5, a & !b & c)
        | bit(6, a & b & !c)
        | bit(7, a & b & c)
}
