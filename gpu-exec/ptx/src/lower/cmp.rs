//! Comparisons, selection and `mov`.
#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_lossless
)]

use super::func::{Entity, Lower, NONE, Result};
use super::mods::Mods;
use super::select::split;
use crate::exec::alu::{AluFn, COMBINE_AND, COMBINE_OR, COMBINE_XOR, alu, bin, cmp, ter, un};
use crate::exec::carry::{PredLogic, Select};
use crate::exec::num::{Bf16, F16, ftz};
use crate::exec::regs::{P, P_TRUE, R};
use crate::parse::ast::{Operand, Ty};

/// A comparison operator.
#[derive(Debug, Clone, Copy)]
#[rustfmt::skip]
enum Rel { Eq, Ne, Lt, Le, Gt, Ge, Equ, Neu, Ltu, Leu, Gtu, Geu, Num, Nan }

#[rustfmt::skip]
fn rel(name: &str) -> Option<Rel> {
    Some(match name {
        "eq" => Rel::Eq, "ne" => Rel::Ne, "lt" | "lo" => Rel::Lt, "le" | "ls" => Rel::Le,
        "gt" | "hi" => Rel::Gt, "ge" | "hs" => Rel::Ge,
        "equ" => Rel::Equ, "neu" => Rel::Neu, "ltu" => Rel::Ltu, "leu" => Rel::Leu,
        "gtu" => Rel::Gtu, "geu" => Rel::Geu, "num" => Rel::Num, "nan" => Rel::Nan,
        _ => return None,
    })
}

macro_rules! int_cmp {
    ($rel:expr, $t:ty) => {
        match $rel {
            Rel::Eq => cmp!($t, |x, y| x == y),
            Rel::Ne => cmp!($t, |x, y| x != y),
            Rel::Lt => cmp!($t, |x, y| x < y),
            Rel::Le => cmp!($t, |x, y| x <= y),
            Rel::Gt => cmp!($t, |x, y| x > y),
            Rel::Ge => cmp!($t, |x, y| x >= y),
            other => return Err(format!("{other:?} is for floats")),
        }
    };
}

// The negated comparisons are what "or unordered" means.
macro_rules! float_cmp {
    ($rel:expr, $t:ty, $f:expr) => {{
        #[allow(
            clippy::neg_cmp_op_on_partial_ord,
            clippy::nonminimal_bool,
            clippy::redundant_closure_call
        )]
        let f = match $rel {
            Rel::Eq => cmp!($t, |x, y| $f(x) == $f(y)),
            // Ordered: false if either is NaN.
            Rel::Ne => cmp!($t, |x, y| $f(x) < $f(y) || $f(x) > $f(y)),
            Rel::Lt => cmp!($t, |x, y| $f(x) < $f(y)),
            Rel::Le => cmp!($t, |x, y| $f(x) <= $f(y)),
            Rel::Gt => cmp!($t, |x, y| $f(x) > $f(y)),
            Rel::Ge => cmp!($t, |x, y| $f(x) >= $f(y)),
            Rel::Equ => cmp!($t, |x, y| !($f(x) < $f(y) || $f(x) > $f(y))),
            Rel::Neu => cmp!($t, |x, y| $f(x) != $f(y)),
            Rel::Ltu => cmp!($t, |x, y| !($f(x) >= $f(y))),
            Rel::Leu => cmp!($t, |x, y| !($f(x) > $f(y))),
            Rel::Gtu => cmp!($t, |x, y| !($f(x) <= $f(y))),
            Rel::Geu => cmp!($t, |x, y| !($f(x) < $f(y))),
            Rel::Num => cmp!($t, |x, y| !$f(x).is_nan() && !$f(y).is_nan()),
            Rel::Nan => cmp!($t, |x, y| $f(x).is_nan() || $f(y).is_nan()),
        };
        f
    }};
}

fn comparison(rel: Rel, ty: Ty, flush: bool) -> Result<AluFn> {
    Ok(match ty {
        Ty::U8 | Ty::B8 => int_cmp!(rel, u8),
        Ty::S8 => int_cmp!(rel, i8),
        Ty::U16 | Ty::B16 => int_cmp!(rel, u16),
        Ty::S16 => int_cmp!(rel, i16),
        Ty::U32 | Ty::B32 => int_cmp!(rel, u32),
        Ty::S32 => int_cmp!(rel, i32),
        Ty::U64 | Ty::B64 => int_cmp!(rel, u64),
        Ty::S64 => int_cmp!(rel, i64),
        Ty::F32 if flush => float_cmp!(rel, f32, ftz),
        Ty::F32 => float_cmp!(rel, f32, |x: f32| x),
        Ty::F64 => float_cmp!(rel, f64, |x: f64| x),
        Ty::F16 => float_cmp!(rel, F16, F16::f32),
        Ty::Bf16 => float_cmp!(rel, Bf16, Bf16::f32),
        other => return Err(format!("not for type {other:?}")),
    })
}

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn compare(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let rel = mods.pick(rel).ok_or("no comparison")?;
        let combine = mods.pick(|m| match m {
            "and" => Some(COMBINE_AND),
            "or" => Some(COMBINE_OR),
            "xor" => Some(COMBINE_XOR),
            _ => None,
        });
        let flush = mods.flag("ftz");
        let (d, rest) = split(ops)?;
        let (sources, s) = match (combine, rest) {
            (Some(_), [sources @ .., s]) => (sources, self.pred(s)?),
            (None, sources) => (sources, P_TRUE),
            _ => return Err("a predicate source is missing".to_owned()),
        };
        let first = mods.ty()?;
        let ty = if mods.name() == "set" {
            mods.ty()?
        } else {
            first
        };
        if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
            return self.compare_pair(
                mods.name() == "set",
                first,
                ty,
                rel,
                d,
                sources,
                combine.unwrap_or(0),
                s,
            );
        }
        let [a, b] = self.sources(sources, ty)?;
        let f = comparison(rel, ty, flush)?;
        if mods.name() == "set" {
            let p = self.b.new_pred();
            self.comparing(f, a, b, combine.unwrap_or(0), (p, P_TRUE, s));
            let d = self.dst(d, first)?;
            return self.boolean(d, p, first);
        }
        let (p, q) = match d {
            Operand::Pair(p, q) => (self.pred_dst(p)?, self.pred_dst(q)?),
            p => (self.pred_dst(p)?, P_TRUE),
        };
        self.comparing(f, a, b, combine.unwrap_or(0), (p, q, s));
        Ok(())
    }

    fn comparing(&mut self, f: AluFn, a: R, b: R, combine: u64, (p, q, s): (P, P, P)) {
        let inst = self.alu(f, NONE, &[a, b]);
        (inst.p, inst.q, inst.s, inst.imm) = (p, q, s, combine);
    }

    /// `d` = the type's "true" where `p` holds, else 0.
    fn boolean(&mut self, d: R, p: P, ty: Ty) -> Result<()> {
        let one = match ty {
            Ty::F32 => 0x3f80_0000,
            Ty::F16 => 0x3c00,
            Ty::Bf16 => 0x3f80,
            Ty::U16 | Ty::S16 | Ty::U32 | Ty::S32 => u64::MAX >> (64 - 8 * ty.bytes()),
            _ => return Err(format!("not for type {ty:?}")),
        };
        let (one, zero) = (
            self.src(&Operand::Int(one), Ty::B32)?,
            self.src(&Operand::Int(0), Ty::B32)?,
        );
        self.alu(alu::<Select<u32>>(), d, &[one, zero]).s = p;
        Ok(())
    }

    /// f16x2 and bf16x2: each half has its own result.
    #[allow(clippy::too_many_arguments)]
    fn compare_pair(
        &mut self,
        set: bool,
        out: Ty,
        ty: Ty,
        rel: Rel,
        d: &Operand<'t>,
        sources: &[Operand<'t>],
        combine: u64,
        s: P,
    ) -> Result<()> {
        let [a, b] = self.sources(sources, ty)?;
        let half = if ty == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 };
        let f = comparison(rel, half, false)?;
        let (lo, hi) = match d {
            Operand::Pair(p, q) if !set => (self.pred_dst(p)?, self.pred_dst(q)?),
            _ if set => (self.b.new_pred(), self.b.new_pred()),
            _ => return Err("two predicates are needed".to_owned()),
        };
        let (upper_a, upper_b) = (self.temp(Ty::B32), self.temp(Ty::B32));
        for (upper, whole) in [(upper_a, a), (upper_b, b)] {
            self.alu(un!(u32 => u32, |x| x >> 16), upper, &[whole]);
        }
        self.comparing(f, a, b, combine, (lo, P_TRUE, s));
        self.comparing(f, upper_a, upper_b, combine, (hi, P_TRUE, s));
        if !set {
            return Ok(());
        }
        let d = self.dst(d, out)?;
        let one = match out {
            Ty::F16x2 => Ty::F16,
            Ty::Bf16x2 => Ty::Bf16,
            _ => Ty::U16,
        };
        let (x, y) = (self.temp(Ty::B32), self.temp(Ty::B32));
        self.boolean(x, lo, one)?;
        self.boolean(y, hi, one)?;
        self.alu(
            bin!(u32, u32 => u32, |x, y| x & 0xffff | y << 16),
            d,
            &[x, y],
        );
        Ok(())
    }

    pub(super) fn choose(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (d, rest) = split(ops)?;
        let ty = mods.ty()?;
        if mods.name() == "slct" {
            return self.slct(mods, ty, d, rest);
        }
        let [a, b, p] = rest else {
            return Err("three sources are needed".to_owned());
        };
        let (a, b) = (self.src(a, ty)?, self.src(b, ty)?);
        let s = self.pred(p)?;
        let d = self.dst(d, ty)?;
        let f = if ty.rows() == 2 {
            alu::<Select<u64>>()
        } else {
            alu::<Select<u32>>()
        };
        self.alu(f, d, &[a, b]).s = s;
        Ok(())
    }

    fn slct(
        &mut self,
        mods: &mut Mods<'t>,
        ty: Ty,
        d: &Operand<'t>,
        rest: &[Operand<'t>],
    ) -> Result<()> {
        let flush = mods.flag("ftz");
        let by = mods.ty()?;
        let [a, b, c] = self.sources_typed(rest, &[ty, ty, by])?;
        let d = self.dst(d, ty)?;
        let f = match (ty.rows(), by) {
            (1, Ty::S32) => ter!(u32, u32, i32 => u32, |x, y, z| if z >= 0 { x } else { y }),
            (_, Ty::S32) => ter!(u64, u64, i32 => u64, |x, y, z| if z >= 0 { x } else { y }),
            (1, _) => {
                ter!(u32, u32, f32 => u32, |x, y, z, imm| if (if imm != 0 { ftz(z) } else { z }) >= 0.0 { x } else { y })
            }
            (_, _) => {
                ter!(u64, u64, f32 => u64, |x, y, z, imm| if (if imm != 0 { ftz(z) } else { z }) >= 0.0 { x } else { y })
            }
        };
        self.alu(f, d, &[a, b, c]).imm = flush.into();
        Ok(())
    }

    pub(super) fn mov(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let [d, a] = ops else {
            return Err("two operands are needed".to_owned());
        };
        let vec = mods.pick(|m| match m {
            "v2" => Some(2),
            "v4" => Some(4),
            _ => None,
        });
        let ty = mods.ty()?;
        if ty == Ty::Pred {
            let (p, s) = (self.pred_dst(d)?, self.pred(a)?);
            let inst = self.alu(alu::<PredLogic>(), NONE, &[]);
            (inst.p, inst.s, inst.imm) = (p, s, 0b1010);
            return Ok(());
        }
        match (d, a) {
            (Operand::Vector(ds), Operand::Vector(sources)) if ds.len() == sources.len() => {
                for (d, a) in ds.iter().zip(sources) {
                    self.mov_one(d, a, ty)?;
                }
                Ok(())
            }
            (Operand::Vector(parts), whole) => self.unpack(parts, whole, ty),
            (whole, Operand::Vector(parts)) => self.pack(whole, parts, ty),
            (Operand::Name(d), Operand::Name(a)) if vec.is_some() => {
                for part in ["x", "y", "z", "w"].iter().take(vec.unwrap_or(0)) {
                    let (d, a) = (format!("{d}.{part}"), format!("{a}.{part}"));
                    match (self.lookup(&d).cloned(), self.lookup(&a).cloned()) {
                        (Some(Entity::Reg { r: d, .. }), Some(Entity::Reg { r: a, .. })) => {
                            self.copy(d, a, ty)
                        }
                        _ => return Err("not vector registers".to_owned()),
                    }
                }
                Ok(())
            }
            _ => self.mov_one(d, a, ty),
        }
    }

    fn mov_one(&mut self, d: &Operand<'t>, a: &Operand<'t>, ty: Ty) -> Result<()> {
        let a = self.src(a, ty)?;
        self.dst_extended(d, ty, |lower, d| {
            lower.copy(d, a, ty);
            Ok(())
        })
    }

    /// `mov.b32 {lo, hi}, r`
    fn unpack(&mut self, parts: &[Operand<'t>], whole: &Operand<'t>, ty: Ty) -> Result<()> {
        let a = self.src(whole, ty)?;
        let part = part_type(ty, parts.len())?;
        // The parts may overwrite the source, so they are all read first.
        let mut halves = Vec::new();
        for i in 0..parts.len() as u64 {
            let t = self.temp(part);
            let f = match (ty.bytes(), part.bytes()) {
                (16, 8) => {
                    self.copy(t, a + 2 * i as u32, Ty::B64);
                    halves.push(t);
                    continue;
                }
                (16, 4) => {
                    let half = a + 2 * (i as u32 / 2);
                    self.alu(un!(u64 => u32, |x, imm| (x >> imm) as u32), t, &[half])
                        .imm = 32 * (i % 2);
                    halves.push(t);
                    continue;
                }
                (8, 4) => un!(u64 => u32, |x, imm| (x >> imm) as u32),
                (8, 2) => un!(u64 => u32, |x, imm| (x >> imm) as u16 as u32),
                (8, _) => un!(u64 => u32, |x, imm| (x >> imm) as u8 as u32),
                (_, 2) => un!(u32 => u32, |x, imm| (x >> imm) as u16 as u32),
                _ => un!(u32 => u32, |x, imm| (x >> imm) as u8 as u32),
            };
            self.alu(f, t, &[a]).imm = i * 8 * u64::from(part.bytes());
            halves.push(t);
        }
        for (d, t) in parts.iter().zip(halves) {
            if *d != Operand::Name("_") {
                let d = self.dst(d, part)?;
                self.copy(d, t, part);
            }
        }
        Ok(())
    }

    /// `mov.b32 r, {lo, hi}`
    fn pack(&mut self, whole: &Operand<'t>, parts: &[Operand<'t>], ty: Ty) -> Result<()> {
        let part = part_type(ty, parts.len())?;
        let mut sources = Vec::new();
        for p in parts {
            sources.push(self.src(p, part)?);
        }
        let d = self.dst(whole, ty)?;
        let bits = 8 * u64::from(part.bytes());
        match (ty.bytes(), part.bytes()) {
            (16, 8) => {
                for (i, s) in sources.into_iter().enumerate() {
                    self.copy(d + 2 * i as u32, s, Ty::B64);
                }
            }
            (16, _) => {
                for (i, pair) in sources.chunks(2).enumerate() {
                    self.alu(
                        bin!(u32, u32 => u64, |x, y| x as u64 | (y as u64) << 32),
                        d + 2 * i as u32,
                        pair,
                    );
                }
            }
            (8, 4) => {
                self.alu(
                    bin!(u32, u32 => u64, |x, y| x as u64 | (y as u64) << 32),
                    d,
                    &sources,
                );
            }
            (8, _) => {
                let t = self.temp(Ty::B64);
                self.alu(bin!(u32, u32 => u64, |x, y, imm| x as u64 & !(u64::MAX << imm) | (y as u64 & !(u64::MAX << imm)) << imm), t, &sources[..2]).imm = bits;
                for (i, s) in sources.iter().enumerate().skip(2) {
                    let f = bin!(u64, u32 => u64, |x, y, imm| x | (y as u64 & !(u64::MAX << (imm & 0xff))) << (imm >> 8));
                    self.alu(f, t, &[t, *s]).imm = bits | (bits * i as u64) << 8;
                }
                self.copy(d, t, Ty::B64);
            }
            _ => {
                let t = self.temp(Ty::B32);
                self.alu(bin!(u32, u32 => u32, |x, y, imm| x & !(u32::MAX << imm) | (y & !(u32::MAX << imm)) << imm), t, &sources[..2]).imm = bits;
                for (i, s) in sources.iter().enumerate().skip(2) {
                    let f = bin!(u32, u32 => u32, |x, y, imm| x | (y & 0xff) << imm);
                    self.alu(f, t, &[t, *s]).imm = bits * i as u64;
                }
                self.copy(d, t, Ty::B32);
            }
        }
        Ok(())
    }
}

fn part_type(ty: Ty, parts: usize) -> Result<Ty> {
    match (ty.bytes(), parts) {
        (2, 2) | (4, 4) | (8, 8) => Ok(Ty::B8),
        (4, 2) | (8, 4) => Ok(Ty::B16),
        (8, 2) | (16, 4) => Ok(Ty::B32),
        (16, 2) => Ok(Ty::B64),
        _ => Err("the parts do not make the whole".to_owned()),
    }
}
