//! Integer arithmetic.
#![forbid(unsafe_code)]
// Widening and narrowing products are what these instructions are.
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
use crate::exec::carry::{AddCarry, SubBorrow};
use crate::exec::regs::{P_TRUE, R};
use crate::parse::ast::{Operand, Ty};

/// Picks the Rust type of an integer type.
macro_rules! ints {
    ($ty:expr, $t:ident => $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => {
                type $t = u16;
                $e
            }
            Ty::S16 => {
                type $t = i16;
                $e
            }
            Ty::U32 | Ty::B32 => {
                type $t = u32;
                $e
            }
            Ty::S32 => {
                type $t = i32;
                $e
            }
            Ty::U64 | Ty::B64 => {
                type $t = u64;
                $e
            }
            Ty::S64 => {
                type $t = i64;
                $e
            }
            Ty::U8 | Ty::B8 => {
                type $t = u8;
                $e
            }
            Ty::S8 => {
                type $t = i8;
                $e
            }
            other => return Err(format!("not for type {other:?}")),
        }
    };
}
pub(super) use ints;

/// What differs by width and sign.
pub(super) trait Int: Sized {
    fn mul_hi(self, other: Self) -> Self;
    fn div_gpu(self, other: Self) -> Self;
    fn rem_gpu(self, other: Self) -> Self;
    fn abs_gpu(self) -> Self;
    fn abs_diff_gpu(self, other: Self) -> Self;
}

macro_rules! int_impl {
    ($($t:ident $wide:ident $abs:expr;)*) => {$(
        impl Int for $t {
            #[inline(always)]
            fn mul_hi(self, other: Self) -> Self {
                ((self as $wide * other as $wide) >> Self::BITS) as Self
            }
            /// All ones when dividing by zero; the one overflow wraps.
            #[inline(always)]
            fn div_gpu(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_div(other) }
            }
            #[inline(always)]
            fn rem_gpu(self, other: Self) -> Self {
                if other == 0 { self } else { self.wrapping_rem(other) }
            }
            #[inline(always)]
            fn abs_gpu(self) -> Self {
                #[allow(clippy::redundant_closure_call)]
                ($abs)(self)
            }
            #[inline(always)]
            fn abs_diff_gpu(self, other: Self) -> Self {
                if self < other { other.wrapping_sub(self) } else { self.wrapping_sub(other) }
            }
        }
    )*};
}

int_impl! {
    u8 u16 |x| x;
    i8 i16 i8::wrapping_abs;
    u16 u32 |x| x;
    i16 i32 i16::wrapping_abs;
    u32 u64 |x| x;
    i32 i64 i32::wrapping_abs;
    u64 u128 |x| x;
    i64 i128 i64::wrapping_abs;
}

fn simple(name: &str, ty: Ty, sat: bool) -> Result<AluFn> {
    if sat {
        return match (name, ty) {
            ("add", Ty::S32) => Ok(bin!(i32, i32 => i32, |x, y| x.saturating_add(y))),
            ("sub", Ty::S32) => Ok(bin!(i32, i32 => i32, |x, y| x.saturating_sub(y))),
            _ => Err("`.sat` is for s32".to_owned()),
        };
    }
    Ok(match name {
        "add" => ints!(ty, T => bin!(T, T => T, |x, y| x.wrapping_add(y))),
        "sub" => ints!(ty, T => bin!(T, T => T, |x, y| x.wrapping_sub(y))),
        "div" => ints!(ty, T => bin!(slow T, T => T, |x, y| x.div_gpu(y))),
        "rem" => ints!(ty, T => bin!(slow T, T => T, |x, y| x.rem_gpu(y))),
        "min" => ints!(ty, T => bin!(T, T => T, |x, y| x.min(y))),
        "max" => ints!(ty, T => bin!(T, T => T, |x, y| x.max(y))),
        _ => return Err("unknown integer instruction".to_owned()),
    })
}

fn mul_lo(ty: Ty) -> Result<AluFn> {
    Ok(ints!(ty, T => bin!(T, T => T, |x, y| x.wrapping_mul(y))))
}

fn mul_hi(ty: Ty) -> Result<AluFn> {
    Ok(ints!(ty, T => bin!(T, T => T, |x, y| x.mul_hi(y))))
}

fn mul_wide(ty: Ty) -> Result<(AluFn, Ty)> {
    Ok(match ty {
        Ty::U16 => (bin!(u16, u16 => u32, |x, y| x as u32 * y as u32), Ty::U32),
        Ty::S16 => (bin!(i16, i16 => i32, |x, y| x as i32 * y as i32), Ty::S32),
        Ty::U32 => (bin!(u32, u32 => u64, |x, y| x as u64 * y as u64), Ty::U64),
        Ty::S32 => (bin!(i32, i32 => i64, |x, y| x as i64 * y as i64), Ty::S64),
        _ => return Err("`.wide` is for 16 and 32 bits".to_owned()),
    })
}

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn int(
        &mut self,
        mods: &mut Mods<'t>,
        ops: &[Operand<'t>],
        _: Option<Ty>,
    ) -> Result<()> {
        let name = mods.name();
        if matches!(name, "dp4a" | "dp2a") {
            return self.dot(mods, ops);
        }
        let ty = mods.ty()?;
        let (d, rest) = split(ops)?;
        let sat = mods.flag("sat");
        match name {
            "add" | "sub" | "addc" | "subc"
                if name.ends_with('c') || mods.parts.contains(&"cc") =>
            {
                self.carry(mods, ty, d, rest)
            }
            "mul" | "mul24" => self.mul(mods, ty, d, rest),
            "mad" | "madc" | "mad24" => self.mad(mods, ty, d, rest, sat),
            "abs" | "neg" => {
                let [a] = self.sources(rest, ty)?;
                let d = self.dst(d, ty)?;
                let f = match name {
                    "abs" => ints!(ty, T => un!(T => T, |x| x.abs_gpu())),
                    _ => ints!(ty, T => un!(T => T, |x| x.wrapping_neg())),
                };
                self.alu(f, d, &[a]);
                Ok(())
            }
            "sad" => {
                let [a, b, c] = self.sources(rest, ty)?;
                let d = self.dst(d, ty)?;
                let f =
                    ints!(ty, T => ter!(T, T, T => T, |x, y, z| z.wrapping_add(x.abs_diff_gpu(y))));
                self.alu(f, d, &[a, b, c]);
                Ok(())
            }
            _ if matches!(ty, Ty::U16x2 | Ty::S16x2) => self.packed(name, ty, d, rest),
            _ => {
                let [a, b] = self.sources(rest, ty)?;
                if mods.flag("relu") {
                    let zero = self.src(&Operand::Int(0), ty)?;
                    let t = self.temp(ty);
                    self.alu(simple(name, ty, sat)?, t, &[a, b]);
                    let d = self.dst(d, ty)?;
                    self.alu(simple("max", ty, false)?, d, &[t, zero]);
                    return Ok(());
                }
                let d = self.dst(d, ty)?;
                self.alu(simple(name, ty, sat)?, d, &[a, b]);
                Ok(())
            }
        }
    }

    fn packed(&mut self, name: &str, ty: Ty, d: &Operand<'t>, rest: &[Operand<'t>]) -> Result<()> {
        let [a, b] = self.sources(rest, ty)?;
        let d = self.dst(d, ty)?;
        macro_rules! pair {
            ($t:ty, |$x:ident, $y:ident| $e:expr) => {
                bin!(u32, u32 => u32, |p, q| {
                    let f = |$x: $t, $y: $t| $e as u16 as u32;
                    f(p as $t, q as $t) | f((p >> 16) as $t, (q >> 16) as $t) << 16
                })
            };
        }
        let f = match (name, ty) {
            ("add", _) => pair!(u16, |x, y| x.wrapping_add(y)),
            ("sub", _) => pair!(u16, |x, y| x.wrapping_sub(y)),
            ("min", Ty::U16x2) => pair!(u16, |x, y| x.min(y)),
            ("max", Ty::U16x2) => pair!(u16, |x, y| x.max(y)),
            ("min", _) => pair!(i16, |x, y| x.min(y)),
            ("max", _) => pair!(i16, |x, y| x.max(y)),
            _ => return Err("not for packed integers".to_owned()),
        };
        self.alu(f, d, &[a, b]);
        Ok(())
    }

    fn mul(
        &mut self,
        mods: &mut Mods<'t>,
        ty: Ty,
        d: &Operand<'t>,
        rest: &[Operand<'t>],
    ) -> Result<()> {
        let (f, out) = self.product(mods, ty)?;
        let [a, b] = self.sources(rest, ty)?;
        let d = self.dst(d, out)?;
        self.alu(f, d, &[a, b]);
        Ok(())
    }

    fn product(&mut self, mods: &mut Mods<'t>, ty: Ty) -> Result<(AluFn, Ty)> {
        if mods.name().ends_with("24") {
            let hi = mods.flag("hi");
            mods.flag("lo");
            return Ok(match (ty, hi) {
                (Ty::U32, false) => (
                    bin!(u32, u32 => u32, |x, y| (x & 0xff_ffff).wrapping_mul(y & 0xff_ffff)),
                    ty,
                ),
                (Ty::U32, true) => (
                    bin!(u32, u32 => u32, |x, y| (((x & 0xff_ffff) as u64 * (y & 0xff_ffff) as u64) >> 16) as u32),
                    ty,
                ),
                (Ty::S32, false) => (
                    bin!(i32, i32 => i32, |x, y| (x << 8 >> 8).wrapping_mul(y << 8 >> 8)),
                    ty,
                ),
                (Ty::S32, true) => (
                    bin!(i32, i32 => i32, |x, y| (((x << 8 >> 8) as i64 * (y << 8 >> 8) as i64) >> 16) as i32),
                    ty,
                ),
                _ => return Err("only for u32 and s32".to_owned()),
            });
        }
        if mods.flag("wide") {
            return mul_wide(ty);
        }
        if mods.flag("hi") {
            return Ok((mul_hi(ty)?, ty));
        }
        if mods.flag("lo") {
            return Ok((mul_lo(ty)?, ty));
        }
        Err("`.lo`, `.hi` or `.wide` is missing".to_owned())
    }

    fn mad(
        &mut self,
        mods: &mut Mods<'t>,
        ty: Ty,
        d: &Operand<'t>,
        rest: &[Operand<'t>],
        sat: bool,
    ) -> Result<()> {
        let carries = mods.name() == "madc" || mods.parts.contains(&"cc");
        let lo = mods.parts.contains(&"lo") && mods.name() == "mad";
        let (f, out) = self.product(mods, ty)?;
        let [a, b, c] = self.sources_typed(rest, &[ty, ty, out])?;
        let d = self.dst(d, out)?;
        if lo && !carries && !sat {
            let f = ints!(ty, T => ter!(T, T, T => T, |x, y, z| x.wrapping_mul(y).wrapping_add(z)));
            self.alu(f, d, &[a, b, c]);
            return Ok(());
        }
        let t = self.temp(out);
        self.alu(f, t, &[a, b]);
        if carries {
            return self.add_carry(mods, out, false, mods.name() == "madc", d, t, c);
        }
        self.alu(simple("add", out, sat)?, d, &[t, c]);
        Ok(())
    }

    fn carry(
        &mut self,
        mods: &mut Mods<'t>,
        ty: Ty,
        d: &Operand<'t>,
        rest: &[Operand<'t>],
    ) -> Result<()> {
        let [a, b] = self.sources(rest, ty)?;
        let d = self.dst(d, ty)?;
        let name = mods.name();
        self.add_carry(
            mods,
            ty,
            name.starts_with("sub"),
            name.ends_with('c'),
            d,
            a,
            b,
        )
    }

    #[allow(clippy::too_many_arguments)]
    fn add_carry(
        &mut self,
        mods: &mut Mods<'t>,
        ty: Ty,
        sub: bool,
        takes: bool,
        d: R,
        a: R,
        b: R,
    ) -> Result<()> {
        let f = match (ty.bytes(), sub) {
            (4, false) => alu::<AddCarry<u32>>(),
            (8, false) => alu::<AddCarry<u64>>(),
            (4, true) => alu::<SubBorrow<u32>>(),
            (8, true) => alu::<SubBorrow<u64>>(),
            _ => return Err("carries are for 32 and 64 bits".to_owned()),
        };
        let (gives, carry) = (mods.flag("cc"), self.carry);
        let inst = self.alu(f, d, &[a, b]);
        inst.s = if takes { carry } else { P_TRUE ^ 1 };
        inst.p = if gives { carry } else { P_TRUE };
        Ok(())
    }

    fn dot(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (d, rest) = split(ops)?;
        let (a_ty, b_ty) = (mods.ty()?, mods.ty()?);
        let hi = mods.flag("hi");
        mods.flag("lo");
        let [a, b, c] = self.sources(rest, Ty::U32)?;
        let d = self.dst(d, Ty::U32)?;
        let f = if mods.name() == "dp4a" {
            ter!(u32, u32, u32 => u32, |x, y, z, imm| {
                (0..4).fold(z, |sum, i| {
                    let (p, q) = (byte(x, i, imm & 1 != 0), byte(y, i, imm & 2 != 0));
                    sum.wrapping_add(p.wrapping_mul(q) as u32)
                })
            })
        } else {
            ter!(u32, u32, u32 => u32, |x, y, z, imm| {
                (0..2).fold(z, |sum, i| {
                    let h = (x >> (16 * i)) as u16;
                    let p = if imm & 1 != 0 { h as i16 as i32 } else { h as i32 };
                    let q = byte(y, i + if imm & 4 != 0 { 2 } else { 0 }, imm & 2 != 0);
                    sum.wrapping_add(p.wrapping_mul(q) as u32)
                })
            })
        };
        self.alu(f, d, &[a, b, c]).imm =
            u64::from(a_ty.signed()) | u64::from(b_ty.signed()) << 1 | u64::from(hi) << 2;
        Ok(())
    }
}

#[inline(always)]
fn byte(x: u32, i: u32, signed: bool) -> i32 {
    let b = (x >> (8 * i)) as u8;
    if signed { b as i8 as i32 } else { b as i32 }
}
