//! Conversions.
#![forbid(unsafe_code)]
// Converting between types with saturation or truncation is what these instructions do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_lossless
)]

use super::arith::ints;
use super::float::{rm_code, rm_of, rounding};
use super::func::{Lower, Result};
use super::mods::Mods;
use crate::exec::alu::{AluFn, bin, un};
use crate::exec::num::{self, Bf16, F16, F32_FMT, F64_FMT, Rm, canon, ftz, sat, sat64};
use crate::parse::ast::{Operand, Ty};

const FTZ: u64 = 1;
const SAT: u64 = 2;
const RELU: u64 = 4;
const FINITE: u64 = 8;
/// Rounding to an integral value, by the same codes as `rm_code`.
const INTEGRAL: u64 = 16;
const RM_SHIFT: u64 = 8;

fn integral_rounding(name: &str) -> Option<Rm> {
    Some(match name {
        "rni" => Rm::Ne,
        "rzi" => Rm::Zero,
        "rmi" => Rm::Down,
        "rpi" => Rm::Up,
        _ => return None,
    })
}

#[inline(always)]
fn integral(x: f64, imm: u64) -> f64 {
    match imm >> RM_SHIFT {
        0 => x.round_ties_even(),
        1 => x.trunc(),
        2 => x.floor(),
        _ => x.ceil(),
    }
}

/// A float as double, subnormals flushed if asked.
trait Wide: Copy {
    fn wide(self, imm: u64) -> f64;
}

impl Wide for f32 {
    #[inline(always)]
    fn wide(self, imm: u64) -> f64 {
        if imm & FTZ != 0 {
            ftz(self) as f64
        } else {
            self as f64
        }
    }
}
impl Wide for f64 {
    #[inline(always)]
    fn wide(self, _: u64) -> f64 {
        self
    }
}
impl Wide for F16 {
    #[inline(always)]
    fn wide(self, _: u64) -> f64 {
        self.f32() as f64
    }
}
impl Wide for Bf16 {
    #[inline(always)]
    fn wide(self, _: u64) -> f64 {
        self.f32() as f64
    }
}

#[inline(always)]
fn to_f32(x: f64, imm: u64) -> f32 {
    let x = if imm & INTEGRAL != 0 {
        integral(x, imm) as f32
    } else {
        match imm >> RM_SHIFT {
            0 => x as f32,
            code => f32::from_bits(num::convert(x, F32_FMT, rm_of(code)) as u32),
        }
    };
    let x = if imm & FTZ != 0 {
        ftz(canon(x))
    } else {
        canon(x)
    };
    let x = if imm & RELU != 0 && !(x > 0.0 || x.is_nan()) {
        0.0
    } else {
        x
    };
    if imm & SAT != 0 { sat(x) } else { x }
}

fn to_f64(x: f64, imm: u64) -> f64 {
    let x = if imm & INTEGRAL != 0 {
        integral(x, imm)
    } else {
        x
    };
    if imm & SAT != 0 { sat64(x) } else { x }
}

macro_rules! to_half {
    ($name:ident, $t:ident) => {
        fn $name(x: f64, imm: u64) -> $t {
            let h = if imm & INTEGRAL != 0 {
                $t::of_f64(integral(x, imm))
            } else {
                $t::of_rm(x, rm_of(imm >> RM_SHIFT))
            };
            let h = if imm & RELU != 0 && h.0 & 0x8000 != 0 && !h.is_nan() {
                $t(0)
            } else {
                h
            };
            let h = if imm & FINITE != 0 { h.satfinite() } else { h };
            if imm & SAT != 0 {
                $t::of(sat(h.f32()))
            } else {
                h
            }
        }
    };
}
to_half!(to_f16, F16);
to_half!(to_bf16, Bf16);

/// Rounds a single to 10 fraction bits.
fn to_tf32(x: f32, imm: u64) -> u32 {
    if x.is_nan() {
        return 0x7fff_ffff;
    }
    let bits = x.to_bits();
    if x.is_infinite() {
        return bits;
    }
    let rounded = match rm_of(imm >> RM_SHIFT) {
        Rm::Na => bits + 0x1000,
        Rm::Zero => bits,
        _ => bits + 0xfff + (bits >> 13 & 1),
    } & !0x1fff;
    if imm & FINITE != 0 && rounded & 0x7fff_ffff >= 0x7f80_0000 {
        return rounded & 0x8000_0000 | 0x7f7f_e000;
    }
    if imm & RELU != 0 && rounded >> 31 != 0 {
        0
    } else {
        rounded
    }
}

fn float_to_int(from: Ty, to: Ty, imm: u64) -> Result<AluFn> {
    macro_rules! from_float {
        ($f:ty) => {
            ints!(to, D => if imm == INTEGRAL | rm_code(Rm::Zero) << RM_SHIFT {
                un!($f => D, |x| x.wide(0) as D)
            } else {
                un!($f => D, |x, imm| integral(x.wide(imm), imm) as D)
            })
        };
    }
    Ok(match from {
        Ty::F32 => from_float!(f32),
        Ty::F64 => from_float!(f64),
        Ty::F16 => from_float!(F16),
        _ => from_float!(Bf16),
    })
}

fn int_to_float(from: Ty, to: Ty) -> Result<AluFn> {
    Ok(match to {
        Ty::F32 => ints!(from, S => un!(S => f32, |x, imm| {
            let y = match imm >> RM_SHIFT {
                0 => x as f32,
                code => f32::from_bits(num::convert_int(x as i128, F32_FMT, rm_of(code)) as u32),
            };
            if imm & SAT != 0 { sat(y) } else { y }
        })),
        Ty::F64 => ints!(from, S => un!(S => f64, |x, imm| {
            let y = match imm >> RM_SHIFT {
                0 => x as f64,
                code => f64::from_bits(num::convert_int(x as i128, F64_FMT, rm_of(code))),
            };
            if imm & SAT != 0 { sat64(y) } else { y }
        })),
        Ty::F16 => ints!(from, S => un!(slow S => F16, |x, imm| {
            let h = F16(num::convert_int(x as i128, num::F16_FMT, rm_of(imm >> RM_SHIFT)) as u16);
            if imm & SAT != 0 { F16::of(sat(h.f32())) } else { h }
        })),
        _ => ints!(from, S => un!(slow S => Bf16, |x, imm| {
            Bf16(num::convert_int(x as i128, num::BF16_FMT, rm_of(imm >> RM_SHIFT)) as u16)
        })),
    })
}

fn float_to_float(from: Ty, to: Ty) -> Result<AluFn> {
    macro_rules! from_float {
        ($f:ty) => {
            match to {
                Ty::F32 => un!($f => f32, |x, imm| to_f32(x.wide(imm), imm)),
                Ty::F64 => un!($f => f64, |x, imm| to_f64(x.wide(imm), imm)),
                Ty::F16 => un!(slow $f => F16, |x, imm| to_f16(x.wide(imm), imm)),
                _ => un!(slow $f => Bf16, |x, imm| to_bf16(x.wide(imm), imm)),
            }
        };
    }
    Ok(match from {
        Ty::F32 => from_float!(f32),
        Ty::F64 => from_float!(f64),
        Ty::F16 => from_float!(F16),
        _ => from_float!(Bf16),
    })
}

fn int_to_int(from: Ty, to: Ty, saturate: bool) -> Result<AluFn> {
    Ok(ints!(from, S => {
        let source = to;
        if saturate {
            ints!(source, D => un!(S => D, |x| (x as i128).clamp(D::MIN as i128, D::MAX as i128) as D))
        } else {
            ints!(source, D => un!(S => D, |x| x as D))
        }
    }))
}

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn cvt(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        if mods.flag("pack") {
            return self.cvt_pack(mods, ops);
        }
        let mut imm = 0;
        if let Some(rm) = mods.pick(integral_rounding) {
            imm |= INTEGRAL | rm_code(rm) << RM_SHIFT;
        } else if let Some(rm) = mods.pick(rounding) {
            imm |= rm_code(rm) << RM_SHIFT;
        }
        for (name, flag) in [
            ("ftz", FTZ),
            ("sat", SAT),
            ("relu", RELU),
            ("satfinite", FINITE),
        ] {
            if mods.flag(name) {
                imm |= flag;
            }
        }
        let (to, from) = (mods.ty()?, mods.ty()?);
        if let [d, a, b] = ops {
            return self.cvt_pair(to, from, d, a, b, imm);
        }
        let [d, a] = ops else {
            return Err("two operands are needed".to_owned());
        };
        let f = match (from.float(), to.float()) {
            _ if to == Ty::Tf32 && from == Ty::F32 => un!(f32 => u32, |x, imm| to_tf32(x, imm)),
            (false, false) => int_to_int(from, to, imm & SAT != 0)?,
            (false, true) if !pair_type(to) => int_to_float(from, to)?,
            (true, false) if !pair_type(from) => float_to_int(from, to, imm)?,
            (true, true) if !pair_type(from) && !pair_type(to) => float_to_float(from, to)?,
            _ => return Err(format!("no conversion from {from:?} to {to:?}")),
        };
        let a = self.src(a, from)?;
        self.dst_sign_extended(d, to, |lower, d| {
            lower.alu(f, d, &[a]).imm = imm;
        })
    }

    /// As `dst_extended`, and a signed narrow result fills a 32-bit register too.
    fn dst_sign_extended(
        &mut self,
        d: &Operand<'t>,
        to: Ty,
        emit: impl FnOnce(&mut Self, crate::exec::regs::R),
    ) -> Result<()> {
        let declared = self.declared(d).map_or(0, Ty::bytes);
        let fill = matches!(to, Ty::S8 | Ty::S16) && declared > to.bytes();
        self.dst_extended(d, to, |lower, d| {
            emit(lower, d);
            if fill {
                let f = if to == Ty::S8 {
                    un!(u32 => i32, |x| x as i8 as i32)
                } else {
                    un!(u32 => i32, |x| x as i16 as i32)
                };
                lower.alu(f, d, &[d]);
            }
            Ok(())
        })
    }

    /// `cvt.rn.f16x2.f32 d, a, b`: a in the upper half.
    fn cvt_pair(
        &mut self,
        to: Ty,
        from: Ty,
        d: &Operand<'t>,
        a: &Operand<'t>,
        b: &Operand<'t>,
        imm: u64,
    ) -> Result<()> {
        if from != Ty::F32 {
            return Err(format!("no packed conversion from {from:?}"));
        }
        let (a, b) = (self.src(a, from)?, self.src(b, from)?);
        let f = match to {
            Ty::F16x2 => bin!(slow f32, f32 => u32, |x, y, imm| {
                (to_f16(x.wide(imm), imm).0 as u32) << 16 | to_f16(y.wide(imm), imm).0 as u32
            }),
            Ty::Bf16x2 => bin!(slow f32, f32 => u32, |x, y, imm| {
                (to_bf16(x.wide(imm), imm).0 as u32) << 16 | to_bf16(y.wide(imm), imm).0 as u32
            }),
            _ => return Err(format!("no packed conversion to {to:?}")),
        };
        let d = self.dst(d, to)?;
        self.alu(f, d, &[a, b]).imm = imm;
        Ok(())
    }

    /// `cvt.pack.sat.s16.s32 d, a, b`, with a third operand `cvt.pack.sat.s8.s32.b32 d, a, b, c`.
    fn cvt_pack(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        mods.flag("sat");
        let (to, _) = (mods.ty()?, mods.ty()?);
        let clamp = match to {
            Ty::S16 => {
                bin!(i32, i32 => u32, |x, y| pack16(x.clamp(-32768, 32767), y.clamp(-32768, 32767)))
            }
            Ty::U16 => bin!(i32, i32 => u32, |x, y| pack16(x.clamp(0, 65535), y.clamp(0, 65535))),
            Ty::S8 => bin!(i32, i32 => u32, |x, y| pack8(x.clamp(-128, 127), y.clamp(-128, 127))),
            Ty::U8 => bin!(i32, i32 => u32, |x, y| pack8(x.clamp(0, 255), y.clamp(0, 255))),
            _ => return Err(format!("no packed conversion to {to:?}")),
        };
        match ops {
            [d, a, b] if to.bytes() == 2 => {
                let (a, b) = (self.src(a, Ty::S32)?, self.src(b, Ty::S32)?);
                let d = self.dst(d, Ty::B32)?;
                self.alu(clamp, d, &[a, b]);
            }
            [d, a, b, c] if to.bytes() == 1 => {
                mods.ty()?;
                let (a, b, c) = (
                    self.src(a, Ty::S32)?,
                    self.src(b, Ty::S32)?,
                    self.src(c, Ty::B32)?,
                );
                let t = self.temp(Ty::B32);
                self.alu(clamp, t, &[a, b]);
                let d = self.dst(d, Ty::B32)?;
                self.alu(bin!(u32, u32 => u32, |x, y| x | y << 16), d, &[t, c]);
            }
            _ => return Err("wrong number of operands".to_owned()),
        }
        Ok(())
    }
}

#[inline(always)]
fn pack16(hi: i32, lo: i32) -> u32 {
    (hi as u32) << 16 | lo as u32 & 0xffff
}

#[inline(always)]
fn pack8(hi: i32, lo: i32) -> u32 {
    (hi as u32 & 0xff) << 8 | lo as u32 & 0xff
}

fn pair_type(ty: Ty) -> bool {
    matches!(ty, Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32)
}
