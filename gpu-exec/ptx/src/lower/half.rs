//! Half precision: f16, bf16 and their pairs. Each result is rounded once.
#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, clippy::cast_lossless)]

use super::func::{Lower, Result};
use super::mods::Mods;
use super::select::split;
use crate::exec::alu::{AluFn, bin, ter, un};
use crate::exec::num::{Bf16, F16};
use crate::exec::regs::R;
use crate::parse::ast::{Operand, Ty};

const FTZ: u64 = 1;
const SAT: u64 = 2;
const NAN: u64 = 4;
const RELU: u64 = 8;
const XORSIGN: u64 = 16;

/// What both formats offer.
trait Half: Copy {
    fn f32(self) -> f32;
    fn of(x: f32) -> Self;
    fn raw(self) -> u16;
    fn from_raw(bits: u16) -> Self;
    /// Smallest normal number.
    const TINY: f32;
}

macro_rules! half_impl {
    ($($t:ident $tiny:expr;)*) => {$(
        impl Half for $t {
            #[inline(always)]
            fn f32(self) -> f32 { Self::f32(self) }
            #[inline(always)]
            fn of(x: f32) -> Self { Self::of(x) }
            #[inline(always)]
            fn raw(self) -> u16 { self.0 }
            #[inline(always)]
            fn from_raw(bits: u16) -> Self { Self(bits) }
            const TINY: f32 = $tiny;
        }
    )*};
}
half_impl! {
    F16 6.103_515_6e-5;
    Bf16 f32::MIN_POSITIVE;
}

#[inline(always)]
fn flush<H: Half>(x: H) -> H {
    if x.f32().abs() < H::TINY {
        H::from_raw(x.raw() & 0x8000)
    } else {
        x
    }
}

#[inline(always)]
fn pre<H: Half>(x: H, imm: u64) -> H {
    if imm & FTZ != 0 { flush(x) } else { x }
}

#[inline(always)]
fn post<H: Half>(x: H, imm: u64) -> H {
    let x = if imm & FTZ != 0 { flush(x) } else { x };
    if imm & (SAT | RELU) == 0 {
        return x;
    }
    let v = x.f32();
    if imm & SAT != 0 {
        return H::of(crate::exec::num::sat(v));
    }
    if v < 0.0 { H::from_raw(0) } else { x }
}

#[inline(always)]
fn min_max<H: Half>(x: H, y: H, imm: u64, min: bool) -> H {
    let (mut x, mut y) = (pre(x, imm), pre(y, imm));
    let sign = (x.raw() ^ y.raw()) & 0x8000;
    if imm & XORSIGN != 0 {
        (x, y) = (H::from_raw(x.raw() & 0x7fff), H::from_raw(y.raw() & 0x7fff));
    }
    let (p, q) = (x.f32(), y.f32());
    let nan = H::from_raw(0x7fff);
    let out = if p.is_nan() && q.is_nan() || imm & NAN != 0 && (p.is_nan() || q.is_nan()) {
        return nan;
    } else if p.is_nan() {
        y
    } else if q.is_nan() {
        x
    } else if p == q {
        H::from_raw(if min {
            x.raw() | y.raw()
        } else {
            x.raw() & y.raw()
        })
    } else if (p < q) == min {
        x
    } else {
        y
    };
    if imm & XORSIGN != 0 {
        H::from_raw(out.raw() | sign)
    } else {
        post(out, imm)
    }
}

/// The instruction on one half and on pairs, in both formats.
macro_rules! halves {
    ($ty:expr, $h:ident, ($($x:ident),+), $imm:ident, $e:expr, $maker:ident, [$($one:ty),+], [$($pair:ty),+]) => {
        match $ty {
            Ty::F16 => { type $h = F16; $maker!(slow $($one),+ => u16, |$($x),+, $imm| { $(let $x = $h::from_raw($x);)+ $e.raw() }) }
            Ty::Bf16 => { type $h = Bf16; $maker!(slow $($one),+ => u16, |$($x),+, $imm| { $(let $x = $h::from_raw($x);)+ $e.raw() }) }
            Ty::F16x2 => { type $h = F16; $maker!(slow $($pair),+ => u32, |$($x),+, $imm| both(|i| { $(let $x = $h::from_raw(($x >> i) as u16);)+ $e.raw() })) }
            Ty::Bf16x2 => { type $h = Bf16; $maker!(slow $($pair),+ => u32, |$($x),+, $imm| both(|i| { $(let $x = $h::from_raw(($x >> i) as u16);)+ $e.raw() })) }
            other => return Err(format!("not for type {other:?}")),
        }
    };
}

macro_rules! half1 {
    ($ty:expr, $h:ident, |$x:ident, $imm:ident| $e:expr) => {
        halves!($ty, $h, ($x), $imm, $e, un, [u16], [u32])
    };
}
macro_rules! half2 {
    ($ty:expr, $h:ident, |$x:ident, $y:ident, $imm:ident| $e:expr) => {
        halves!($ty, $h, ($x, $y), $imm, $e, bin, [u16, u16], [u32, u32])
    };
}
macro_rules! half3 {
    ($ty:expr, $h:ident, |$x:ident, $y:ident, $z:ident, $imm:ident| $e:expr) => {
        halves!(
            $ty,
            $h,
            ($x, $y, $z),
            $imm,
            $e,
            ter,
            [u16, u16, u16],
            [u32, u32, u32]
        )
    };
}

#[inline(always)]
fn both(f: impl Fn(u32) -> u16) -> u32 {
    f(0) as u32 | (f(16) as u32) << 16
}

fn binary(name: &str, ty: Ty) -> Result<AluFn> {
    // Sums and products of halves are exact enough in single precision for one rounding to be right.
    Ok(match name {
        "add" => half2!(ty, H, |x, y, imm| post(
            H::of(pre(x, imm).f32() + pre(y, imm).f32()),
            imm
        )),
        "sub" => half2!(ty, H, |x, y, imm| post(
            H::of(pre(x, imm).f32() - pre(y, imm).f32()),
            imm
        )),
        "mul" => half2!(ty, H, |x, y, imm| post(
            H::of(pre(x, imm).f32() * pre(y, imm).f32()),
            imm
        )),
        "min" => half2!(ty, H, |x, y, imm| min_max::<H>(x, y, imm, true)),
        "max" => half2!(ty, H, |x, y, imm| min_max::<H>(x, y, imm, false)),
        _ => return Err(format!("not for type {ty:?}")),
    })
}

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn half(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (d, rest) = split(ops)?;
        let name = mods.name();
        mods.flag("rn");
        let mut imm = 0;
        for (modifier, flag) in [
            ("ftz", FTZ),
            ("sat", SAT),
            ("NaN", NAN),
            ("relu", RELU),
            ("xorsign", XORSIGN),
        ] {
            if mods.flag(modifier) {
                imm |= flag;
            }
        }
        if imm & XORSIGN != 0 {
            mods.flag("abs");
        }
        let ty = mods.ty()?;
        let out = self.dst(d, ty)?;
        match name {
            "fma" => {
                let [a, b, c] = self.sources(rest, ty)?;
                let f = half3!(ty, H, |x, y, z, imm| post(
                    H::fma(pre(x, imm), pre(y, imm), pre(z, imm)),
                    imm
                ));
                self.alu(f, out, &[a, b, c]).imm = imm;
            }
            "abs" | "neg" => {
                let [a] = self.sources(rest, ty)?;
                let f = match name {
                    "abs" => half1!(ty, H, |x, imm| H::from_raw(pre(x, imm).raw() & 0x7fff)),
                    _ => half1!(ty, H, |x, imm| H::from_raw(pre(x, imm).raw() ^ 0x8000)),
                };
                self.alu(f, out, &[a]).imm = imm;
            }
            _ => {
                let [a, b] = self.sources(rest, ty)?;
                self.alu(binary(name, ty)?, out, &[a, b]).imm = imm;
            }
        }
        Ok(())
    }

    /// `ex2.approx.f16` and the like.
    pub(super) fn half_function(&mut self, name: &str, ty: Ty, d: R, a: R) -> Result<()> {
        let f = match name {
            "ex2" => half1!(ty, H, |x, _imm| H::of(x.f32().exp2())),
            "tanh" => half1!(ty, H, |x, _imm| H::of(x.f32().tanh())),
            _ => return Err("not for half precision".to_owned()),
        };
        self.alu(f, d, &[a]);
        Ok(())
    }
}
