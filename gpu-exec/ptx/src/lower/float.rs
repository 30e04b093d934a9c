//! Single and double precision arithmetic and functions.
#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, clippy::cast_lossless)]

use super::func::{Lower, NONE, Result};
use super::mods::Mods;
use super::select::split;
use crate::exec::alu::{AluFn, bin, cmp, ter, un};
use crate::exec::num::{self, F32_FMT, F64_FMT, NAN_F32, Rm, canon, ftz, sat, sat64};
use crate::parse::ast::{Operand, Ty};

const FTZ: u64 = 1;
const SAT: u64 = 2;
const NAN: u64 = 4;
const XORSIGN: u64 = 8;
const RM_SHIFT: u64 = 8;

/// Rounding modifier.
pub(super) fn rounding(name: &str) -> Option<Rm> {
    Some(match name {
        "rn" => Rm::Ne,
        "rna" => Rm::Na,
        "rz" => Rm::Zero,
        "rm" => Rm::Down,
        "rp" => Rm::Up,
        _ => return None,
    })
}

pub(super) fn rm_code(rm: Rm) -> u64 {
    match rm {
        Rm::Ne => 0,
        Rm::Zero => 1,
        Rm::Down => 2,
        Rm::Up => 3,
        Rm::Na => 4,
    }
}

pub(super) fn rm_of(code: u64) -> Rm {
    match code {
        1 => Rm::Zero,
        2 => Rm::Down,
        3 => Rm::Up,
        4 => Rm::Na,
        _ => Rm::Ne,
    }
}

#[inline(always)]
fn pre(x: f32, imm: u64) -> f32 {
    if imm & FTZ != 0 { ftz(x) } else { x }
}

#[inline(always)]
fn post(x: f32, imm: u64) -> f32 {
    let x = if imm & FTZ != 0 {
        ftz(canon(x))
    } else {
        canon(x)
    };
    if imm & SAT != 0 { sat(x) } else { x }
}

#[inline(always)]
fn post64(x: f64, imm: u64) -> f64 {
    if imm & SAT != 0 { sat64(x) } else { x }
}

/// One instruction in three forms: plain, with `.ftz`/`.sat`, with a directed rounding.
macro_rules! forms2 {
    ($imm:expr, $exact:path, |$x:ident, $y:ident| $e:expr) => {
        match $imm {
            0 => bin!(f32, f32 => f32, |$x, $y| canon($e)),
            i if i >> RM_SHIFT == 0 => bin!(f32, f32 => f32, |p, q, imm| {
                let ($x, $y) = (pre(p, imm), pre(q, imm));
                post($e, imm)
            }),
            _ => bin!(slow f32, f32 => f32, |p, q, imm| {
                let exact = $exact(pre(p, imm) as f64, pre(q, imm) as f64, F32_FMT, rm_of(imm >> RM_SHIFT));
                post(f32::from_bits(exact as u32), imm)
            }),
        }
    };
}

macro_rules! forms2_64 {
    ($imm:expr, $exact:path, |$x:ident, $y:ident| $e:expr) => {
        match $imm >> RM_SHIFT {
            0 => bin!(f64, f64 => f64, |$x, $y, imm| post64($e, imm)),
            _ => bin!(slow f64, f64 => f64, |p, q, imm| {
                f64::from_bits($exact(p, q, F64_FMT, rm_of(imm >> RM_SHIFT)))
            }),
        }
    };
}

fn sub(a: f64, b: f64, fmt: num::Fmt, rm: Rm) -> u64 {
    num::add(a, -b, fmt, rm)
}

fn binary(name: &str, ty: Ty, imm: u64) -> Result<AluFn> {
    Ok(match (name, ty) {
        ("add", Ty::F32) => forms2!(imm, num::add, |x, y| x + y),
        ("sub", Ty::F32) => forms2!(imm, sub, |x, y| x - y),
        ("mul", Ty::F32) => forms2!(imm, num::mul, |x, y| x * y),
        ("div", Ty::F32) => forms2!(imm, num::div, |x, y| x / y),
        ("min", Ty::F32) => bin!(f32, f32 => f32, |x, y, imm| min_max(x, y, imm, true)),
        ("max", Ty::F32) => bin!(f32, f32 => f32, |x, y, imm| min_max(x, y, imm, false)),
        ("add", Ty::F64) => forms2_64!(imm, num::add, |x, y| x + y),
        ("sub", Ty::F64) => forms2_64!(imm, sub, |x, y| x - y),
        ("mul", Ty::F64) => forms2_64!(imm, num::mul, |x, y| x * y),
        ("div", Ty::F64) => forms2_64!(imm, num::div, |x, y| x / y),
        ("min", Ty::F64) => bin!(f64, f64 => f64, |x, y| min_max64(x, y, true)),
        ("max", Ty::F64) => bin!(f64, f64 => f64, |x, y| min_max64(x, y, false)),
        ("copysign", Ty::F32) => bin!(f32, f32 => f32, |x, y| y.copysign(x)),
        ("copysign", Ty::F64) => bin!(f64, f64 => f64, |x, y| y.copysign(x)),
        _ => return Err(format!("not for type {ty:?}")),
    })
}

fn fma(ty: Ty, imm: u64) -> Result<AluFn> {
    Ok(match ty {
        Ty::F32 if imm == 0 => ter!(f32, f32, f32 => f32, |x, y, z| canon(x.mul_add(y, z))),
        Ty::F32 if imm >> RM_SHIFT == 0 => ter!(f32, f32, f32 => f32, |x, y, z, imm| {
            post(pre(x, imm).mul_add(pre(y, imm), pre(z, imm)), imm)
        }),
        Ty::F32 => ter!(slow f32, f32, f32 => f32, |x, y, z, imm| {
            let (x, y, z) = (pre(x, imm) as f64, pre(y, imm) as f64, pre(z, imm) as f64);
            post(f32::from_bits(num::fma(x, y, z, F32_FMT, rm_of(imm >> RM_SHIFT)) as u32), imm)
        }),
        Ty::F64 if imm >> RM_SHIFT == 0 => ter!(f64, f64, f64 => f64, |x, y, z| x.mul_add(y, z)),
        Ty::F64 => ter!(slow f64, f64, f64 => f64, |x, y, z, imm| {
            f64::from_bits(num::fma(x, y, z, F64_FMT, rm_of(imm >> RM_SHIFT)))
        }),
        _ => return Err(format!("not for type {ty:?}")),
    })
}

/// NaN loses unless `.NaN`; -0 is below +0.
#[inline(always)]
fn min_max(x: f32, y: f32, imm: u64, min: bool) -> f32 {
    let (mut x, mut y) = (pre(x, imm), pre(y, imm));
    let sign = (x.to_bits() ^ y.to_bits()) & 0x8000_0000;
    if imm & XORSIGN != 0 {
        (x, y) = (x.abs(), y.abs());
    }
    let ordered = if x == y {
        let bits = if min {
            x.to_bits() | y.to_bits()
        } else {
            x.to_bits() & y.to_bits()
        };
        f32::from_bits(bits)
    } else if (x < y) == min {
        x
    } else {
        y
    };
    let out = if x.is_nan() {
        canon(y)
    } else if y.is_nan() {
        x
    } else {
        ordered
    };
    let out = if imm & NAN != 0 && (x.is_nan() || y.is_nan()) {
        NAN_F32
    } else {
        out
    };
    if imm & XORSIGN != 0 && !out.is_nan() {
        f32::from_bits(out.to_bits() | sign)
    } else {
        out
    }
}

#[inline(always)]
fn min_max64(x: f64, y: f64, min: bool) -> f64 {
    let ordered = if x == y {
        let bits = if min {
            x.to_bits() | y.to_bits()
        } else {
            x.to_bits() & y.to_bits()
        };
        f64::from_bits(bits)
    } else if (x < y) == min {
        x
    } else {
        y
    };
    if x.is_nan() {
        y
    } else if y.is_nan() {
        x
    } else {
        ordered
    }
}

/// Two singles in one 64-bit register.
macro_rules! pair {
    (|$x:ident, $y:ident| $e:expr) => {
        bin!(u64, u64 => u64, |p, q| {
            let f = |$x: f32, $y: f32| canon($e).to_bits() as u64;
            let part = |v: u64, i: u32| f32::from_bits((v >> (32 * i)) as u32);
            f(part(p, 0), part(q, 0)) | f(part(p, 1), part(q, 1)) << 32
        })
    };
}

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn float(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (d, rest) = split(ops)?;
        let name = mods.name();
        let imm = self.float_flags(mods);
        let ty = mods.ty()?;
        if ty == Ty::F32x2 {
            return self.float_pair(name, d, rest);
        }
        match name {
            "fma" | "mad" => {
                let [a, b, c] = self.sources(rest, ty)?;
                let d = self.dst(d, ty)?;
                self.alu(fma(ty, imm)?, d, &[a, b, c]).imm = imm;
            }
            "abs" | "neg" => {
                let [a] = self.sources(rest, ty)?;
                let d = self.dst(d, ty)?;
                let f = match (name, ty) {
                    ("abs", Ty::F32) => un!(f32 => f32, |x, imm| pre(x, imm).abs()),
                    ("neg", Ty::F32) => un!(f32 => f32, |x, imm| -pre(x, imm)),
                    ("abs", _) => un!(f64 => f64, |x| x.abs()),
                    _ => un!(f64 => f64, |x| -x),
                };
                self.alu(f, d, &[a]).imm = imm;
            }
            "min" | "max" if rest.len() == 3 => {
                let [a, b, c] = self.sources(rest, ty)?;
                let t = self.temp(ty);
                let f = binary(name, ty, imm)?;
                self.alu(f, t, &[a, b]).imm = imm;
                let d = self.dst(d, ty)?;
                self.alu(f, d, &[t, c]).imm = imm;
            }
            _ => {
                let [a, b] = self.sources(rest, ty)?;
                let d = self.dst(d, ty)?;
                self.alu(binary(name, ty, imm)?, d, &[a, b]).imm = imm;
            }
        }
        Ok(())
    }

    fn float_pair(&mut self, name: &str, d: &Operand<'t>, rest: &[Operand<'t>]) -> Result<()> {
        if name == "fma" {
            let [a, b, c] = self.sources(rest, Ty::F32x2)?;
            let d = self.dst(d, Ty::F32x2)?;
            let f = ter!(u64, u64, u64 => u64, |x, y, z| {
                let part = |v: u64, i: u32| f32::from_bits((v >> (32 * i)) as u32);
                let f = |i| canon(part(x, i).mul_add(part(y, i), part(z, i))).to_bits() as u64;
                f(0) | f(1) << 32
            });
            self.alu(f, d, &[a, b, c]);
            return Ok(());
        }
        let [a, b] = self.sources(rest, Ty::F32x2)?;
        let d = self.dst(d, Ty::F32x2)?;
        let f = match name {
            "add" => pair!(|x, y| x + y),
            "sub" => pair!(|x, y| x - y),
            "mul" => pair!(|x, y| x * y),
            _ => return Err("not for packed singles".to_owned()),
        };
        self.alu(f, d, &[a, b]);
        Ok(())
    }

    /// Flags that the handlers read from `imm`. `.approx` and `.full` are met by the exact result.
    fn float_flags(&mut self, mods: &mut Mods<'t>) -> u64 {
        mods.ignore(|m| matches!(m, "approx" | "full"));
        let mut imm = mods.pick(rounding).map_or(0, |rm| rm_code(rm) << RM_SHIFT);
        for (name, flag) in [
            ("ftz", FTZ),
            ("sat", SAT),
            ("NaN", NAN),
            ("xorsign", XORSIGN),
        ] {
            if mods.flag(name) {
                imm |= flag;
            }
        }
        if imm & XORSIGN != 0 {
            mods.flag("abs");
        }
        imm
    }

    pub(super) fn math(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (d, rest) = split(ops)?;
        let name = mods.name();
        let approx = mods.parts.contains(&"approx");
        let imm = self.float_flags(mods);
        let ty = mods.ty()?;
        if name == "copysign" {
            let [a, b] = self.sources(rest, ty)?;
            let d = self.dst(d, ty)?;
            self.alu(binary(name, ty, 0)?, d, &[a, b]);
            return Ok(());
        }
        let [a] = self.sources(rest, ty)?;
        let d = self.dst(d, ty)?;
        let f = match ty {
            Ty::F32 => function(name, imm)?,
            Ty::F64 => function64(name, imm, approx)?,
            _ => return self.half_function(name, ty, d, a),
        };
        self.alu(f, d, &[a]).imm = imm;
        Ok(())
    }

    pub(super) fn testp(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (d, rest) = split(ops)?;
        let test = mods.parts.get(1).copied().unwrap_or("");
        mods.flag(test);
        let ty = mods.ty()?;
        let [a] = self.sources(rest, ty)?;
        let p = self.pred_dst(d)?;
        macro_rules! tests {
            ($t:ty) => {
                match test {
                    "finite" => cmp!($t, |x, _y| x.is_finite()),
                    "infinite" => cmp!($t, |x, _y| x.is_infinite()),
                    "number" => cmp!($t, |x, _y| !x.is_nan()),
                    "notanumber" => cmp!($t, |x, _y| x.is_nan()),
                    "normal" => cmp!($t, |x, _y| x.is_normal()),
                    "subnormal" => cmp!($t, |x, _y| x.is_subnormal()),
                    _ => return Err("unknown test".to_owned()),
                }
            };
        }
        let f = if ty == Ty::F64 {
            tests!(f64)
        } else {
            tests!(f32)
        };
        self.alu(f, NONE, &[a, a]).p = p;
        Ok(())
    }
}

fn function(name: &str, imm: u64) -> Result<AluFn> {
    macro_rules! f {
        (|$x:ident| $e:expr) => {
            un!(slow f32 => f32, |p, imm| {
                let $x = pre(p, imm);
                post($e, imm)
            })
        };
    }
    Ok(match name {
        "sqrt" if imm >> RM_SHIFT != 0 => un!(slow f32 => f32, |x, imm| {
            post(f32::from_bits(num::sqrt(pre(x, imm) as f64, F32_FMT, rm_of(imm >> RM_SHIFT)) as u32), imm)
        }),
        "rcp" if imm >> RM_SHIFT != 0 => un!(slow f32 => f32, |x, imm| {
            post(f32::from_bits(num::div(1.0, pre(x, imm) as f64, F32_FMT, rm_of(imm >> RM_SHIFT)) as u32), imm)
        }),
        "sqrt" => un!(f32 => f32, |x, imm| post(pre(x, imm).sqrt(), imm)),
        "rcp" => un!(f32 => f32, |x, imm| post(1.0 / pre(x, imm), imm)),
        "rsqrt" => un!(f32 => f32, |x, imm| post((1.0 / (pre(x, imm) as f64).sqrt()) as f32, imm)),
        "sin" => f!(|x| x.sin()),
        "cos" => f!(|x| x.cos()),
        "ex2" => f!(|x| x.exp2()),
        "lg2" => f!(|x| x.log2()),
        "tanh" => f!(|x| x.tanh()),
        _ => return Err("unknown function".to_owned()),
    })
}

fn function64(name: &str, imm: u64, approx: bool) -> Result<AluFn> {
    // The approximations of double precision give the upper half of the result only.
    Ok(match name {
        "rcp" if approx => un!(f64 => f64, |x| upper(1.0 / flush64(x))),
        "rsqrt" => un!(f64 => f64, |x| upper(1.0 / flush64(x).sqrt())),
        "sqrt" if imm >> RM_SHIFT == 0 => un!(f64 => f64, |x| x.sqrt()),
        "rcp" if imm >> RM_SHIFT == 0 => un!(f64 => f64, |x| 1.0 / x),
        "sqrt" => {
            un!(slow f64 => f64, |x, imm| f64::from_bits(num::sqrt(x, F64_FMT, rm_of(imm >> RM_SHIFT))))
        }
        "rcp" => {
            un!(slow f64 => f64, |x, imm| f64::from_bits(num::div(1.0, x, F64_FMT, rm_of(imm >> RM_SHIFT))))
        }
        _ => return Err("not for double precision".to_owned()),
    })
}

#[inline(always)]
fn flush64(x: f64) -> f64 {
    if x.abs() < f64::MIN_POSITIVE {
        0.0f64.copysign(x)
    } else {
        x
    }
}

#[inline(always)]
fn upper(x: f64) -> f64 {
    f64::from_bits(flush64(x).to_bits() & 0xffff_ffff_0000_0000)
}
