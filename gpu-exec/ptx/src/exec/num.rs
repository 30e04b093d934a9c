//! Number formats and exact rounding: what the CPU's own arithmetic does not offer.
#![forbid(unsafe_code)]
// Bit manipulation of numbers is the purpose of this module: every narrowing is meant.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_lossless
)]

pub(crate) use super::regs::{Bf16, F16};

/// Rounding direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rm {
    /// To nearest, ties to even.
    Ne,
    /// To nearest, ties away from zero.
    Na,
    Zero,
    Down,
    Up,
}

/// A binary interchange format: precision with the hidden bit, largest exponent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fmt {
    p: i32,
    emax: i32,
}

pub(crate) const F16_FMT: Fmt = Fmt { p: 11, emax: 15 };
pub(crate) const BF16_FMT: Fmt = Fmt { p: 8, emax: 127 };
pub(crate) const F32_FMT: Fmt = Fmt { p: 24, emax: 127 };
pub(crate) const F64_FMT: Fmt = Fmt { p: 53, emax: 1023 };

/// The finite value ±mant x 2^exp; mant < 2^126.
#[derive(Debug, Clone, Copy)]
struct Exact {
    neg: bool,
    mant: u128,
    exp: i32,
}

impl Exact {
    fn of(x: f64) -> Self {
        let bits = x.to_bits();
        let biased = (bits >> 52 & 0x7ff) as i32;
        let frac = u128::from(bits & ((1 << 52) - 1));
        let (mant, exp) = if biased == 0 {
            (frac, -1074)
        } else {
            (frac | 1 << 52, biased - 1075)
        };
        Self {
            neg: bits >> 63 != 0,
            mant,
            exp,
        }
    }

    fn bits(self) -> i32 {
        128 - self.mant.leading_zeros() as i32
    }

    /// Drops `n` low bits, keeping a sticky one.
    fn shift_right(mant: u128, n: i32) -> (u128, bool) {
        match n {
            0 => (mant, false),
            1..=127 => (mant >> n, mant & ((1 << n) - 1) != 0),
            _ => (0, mant != 0),
        }
    }

    fn mul(self, other: Self) -> Self {
        Self {
            neg: self.neg ^ other.neg,
            mant: self.mant * other.mant,
            exp: self.exp + other.exp,
        }
    }

    /// The sum, its lowest bit sticky. Both nonzero.
    fn add(self, other: Self) -> Self {
        let (mut x, y) = if self.exp >= other.exp {
            (self, other)
        } else {
            (other, self)
        };
        let room = (x.exp - y.exp).min(124 - x.bits()).max(0);
        x.mant <<= room;
        x.exp -= room;
        let (ym, sticky) = Self::shift_right(y.mant, x.exp - y.exp);
        let (xm, ym) = (x.mant << 1, ym << 1 | u128::from(sticky));
        let (neg, mant) = if x.neg == y.neg {
            (x.neg, xm + ym)
        } else if xm >= ym {
            (x.neg, xm - ym)
        } else {
            (y.neg, ym - xm)
        };
        Self {
            neg,
            mant,
            exp: x.exp - 1,
        }
    }

    /// Bits of the value in `fmt`.
    fn round(self, fmt: Fmt, rm: Rm) -> u64 {
        let sign = u64::from(self.neg) << width_minus_1(fmt);
        if self.mant == 0 {
            return sign;
        }
        let emin = 1 - fmt.emax;
        let e = self.exp + self.bits() - 1;
        let q = e.max(emin) - (fmt.p - 1);
        let shift = q - self.exp;
        let (mut kept, half, rest) = if shift <= 0 {
            (self.mant << -shift, false, false)
        } else {
            let (above, rest) = Self::shift_right(self.mant, shift - 1);
            (above >> 1, above & 1 != 0, rest)
        };
        let up = match rm {
            Rm::Ne => half && (rest || kept & 1 != 0),
            Rm::Na => half,
            Rm::Zero => false,
            Rm::Down => self.neg && (half || rest),
            Rm::Up => !self.neg && (half || rest),
        };
        kept += u128::from(up);
        let hidden = 1u64 << (fmt.p - 1);
        // A carry out of the fraction moves into the exponent by itself.
        let biased_less_one = (q + fmt.p - 1 - emin) as u64;
        let bits = kept as u64 + (biased_less_one * hidden);
        let infinity = (2 * fmt.emax as u64 + 1) * hidden;
        if bits < infinity {
            return sign | bits;
        }
        let to_infinity = match rm {
            Rm::Ne | Rm::Na => true,
            Rm::Zero => false,
            Rm::Down => self.neg,
            Rm::Up => !self.neg,
        };
        sign | if to_infinity { infinity } else { infinity - 1 }
    }
}

fn width_minus_1(fmt: Fmt) -> u32 {
    // Exponent field of a format whose largest exponent is 2^(w-1) - 1 has w bits.
    (fmt.p - 1) as u32 + (fmt.emax + 1).trailing_zeros() + 1
}

fn special(x: f64, fmt: Fmt) -> u64 {
    let hidden = 1u64 << (fmt.p - 1);
    let infinity = (2 * fmt.emax as u64 + 1) * hidden;
    if x.is_nan() {
        return match fmt.p {
            53 => x.to_bits() | 1 << 51,
            _ => (1 << width_minus_1(fmt)) - 1,
        };
    }
    let sign = u64::from(x.is_sign_negative()) << width_minus_1(fmt);
    if x == 0.0 { sign } else { sign | infinity }
}

fn plain(x: f64) -> bool {
    x.is_finite() && x != 0.0
}

/// `x` in `fmt`, as bits. NaN becomes the canonical NaN of narrower formats.
pub(crate) fn convert(x: f64, fmt: Fmt, rm: Rm) -> u64 {
    if plain(x) {
        Exact::of(x).round(fmt, rm)
    } else {
        special(x, fmt)
    }
}

/// An integer in `fmt`, as bits.
pub(crate) fn convert_int(x: i128, fmt: Fmt, rm: Rm) -> u64 {
    Exact {
        neg: x < 0,
        mant: x.unsigned_abs(),
        exp: 0,
    }
    .round(fmt, rm)
}

/// `a + b` rounded once.
pub(crate) fn add(a: f64, b: f64, fmt: Fmt, rm: Rm) -> u64 {
    if !(plain(a) && plain(b)) {
        let sum = a + b;
        // x + 0 rounds x; opposite zeros give -0 only when rounding down.
        if sum == 0.0 && a.is_sign_negative() != b.is_sign_negative() {
            return special(if rm == Rm::Down { -0.0 } else { 0.0 }, fmt);
        }
        return convert(sum, fmt, rm);
    }
    let sum = Exact::of(a).add(Exact::of(b));
    if sum.mant == 0 {
        return special(if rm == Rm::Down { -0.0 } else { 0.0 }, fmt);
    }
    sum.round(fmt, rm)
}

/// `a * b` rounded once.
pub(crate) fn mul(a: f64, b: f64, fmt: Fmt, rm: Rm) -> u64 {
    if !(plain(a) && plain(b)) {
        return special(a * b, fmt);
    }
    Exact::of(a).mul(Exact::of(b)).round(fmt, rm)
}

/// `a * b + c` rounded once.
pub(crate) fn fma(a: f64, b: f64, c: f64, fmt: Fmt, rm: Rm) -> u64 {
    if !(plain(a) && plain(b)) {
        let product = a * b;
        return add(product, c, fmt, rm);
    }
    if c == 0.0 {
        return mul(a, b, fmt, rm);
    }
    if !c.is_finite() {
        return special(c, fmt);
    }
    let sum = Exact::of(a).mul(Exact::of(b)).add(Exact::of(c));
    if sum.mant == 0 {
        return special(if rm == Rm::Down { -0.0 } else { 0.0 }, fmt);
    }
    sum.round(fmt, rm)
}

/// `a / b` rounded once.
pub(crate) fn div(a: f64, b: f64, fmt: Fmt, rm: Rm) -> u64 {
    if !(plain(a) && plain(b)) {
        return special(a / b, fmt);
    }
    let (mut a, b) = (Exact::of(a), Exact::of(b));
    let room = 124 - a.bits();
    a.mant <<= room;
    a.exp -= room;
    let quotient = a.mant / b.mant;
    let sticky = u128::from(a.mant % b.mant != 0);
    Exact {
        neg: a.neg ^ b.neg,
        mant: quotient << 1 | sticky,
        exp: a.exp - b.exp - 1,
    }
    .round(fmt, rm)
}

/// The square root of `a` rounded once.
pub(crate) fn sqrt(a: f64, fmt: Fmt, rm: Rm) -> u64 {
    if !plain(a) || a < 0.0 {
        return special(a.sqrt(), fmt);
    }
    let mut a = Exact::of(a);
    let mut room = 124 - a.bits();
    room -= (a.exp - room) & 1;
    a.mant <<= room;
    a.exp -= room;
    let root = a.mant.isqrt();
    let sticky = u128::from(root * root != a.mant);
    Exact {
        neg: false,
        mant: root << 1 | sticky,
        exp: a.exp / 2 - 1,
    }
    .round(fmt, rm)
}

/// The canonical NaN of single precision.
pub(crate) const NAN_F32: f32 = f32::from_bits(0x7fff_ffff);

/// Any NaN becomes the canonical one. Compares bits: the optimizer takes any NaN for as good as another.
#[inline(always)]
pub(crate) fn canon(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 {
        0x7fff_ffff
    } else {
        bits
    })
}

/// Subnormals become zero of the same sign.
#[inline(always)]
pub(crate) fn ftz(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        f32::from_bits(x.to_bits() & 0x8000_0000)
    } else {
        x
    }
}

/// Clamp to [0, 1]; NaN becomes 0.
#[inline(always)]
pub(crate) fn sat(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// As [`sat`] for double precision.
#[inline(always)]
pub(crate) fn sat64(x: f64) -> f64 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// To single precision, inexact results made odd: a second rounding is then harmless.
fn to_f32_odd(x: f64) -> f32 {
    let near = x as f32;
    let exact = f64::from(near);
    if exact == x || x.is_nan() || near.to_bits() & 1 == 1 {
        return near;
    }
    let bits = near.to_bits();
    if near == 0.0 {
        return f32::from_bits(bits | 1);
    }
    // The odd neighbour on the side of `x`; from infinity that is the largest finite number.
    let outward = x.abs() > exact.abs();
    f32::from_bits(if outward { bits + 1 } else { bits - 1 })
}

macro_rules! half {
    ($name:ident, $fmt:ident, $from:expr, $to:expr) => {
        impl $name {
            /// The value in single precision, exactly.
            #[inline(always)]
            pub(crate) fn f32(self) -> f32 {
                #[allow(clippy::redundant_closure_call)]
                ($from)(self.0)
            }

            /// Rounds to nearest even.
            #[inline(always)]
            pub(crate) fn of(x: f32) -> Self {
                #[allow(clippy::redundant_closure_call)]
                Self(($to)(x))
            }

            /// Rounds a double once.
            pub(crate) fn of_f64(x: f64) -> Self {
                Self::of(to_f32_odd(x))
            }

            /// `a * b + c` rounded once.
            pub(crate) fn fma(a: Self, b: Self, c: Self) -> Self {
                let (a, b, c) = (f64::from(a.f32()), f64::from(b.f32()), f64::from(c.f32()));
                Self(fma(a, b, c, $fmt, Rm::Ne) as u16)
            }

            pub(crate) fn of_rm(x: f64, rm: Rm) -> Self {
                Self(convert(x, $fmt, rm) as u16)
            }

            pub(crate) fn is_nan(self) -> bool {
                self.f32().is_nan()
            }

            /// Clamps to the largest finite value, NaN to `NaN`.
            pub(crate) fn satfinite(self) -> Self {
                let infinity = (convert(f64::INFINITY, $fmt, Rm::Ne)) as u16;
                if self.0 & 0x7fff == infinity {
                    Self(self.0 - 1)
                } else {
                    self
                }
            }
        }
    };
}

half!(F16, F16_FMT, f16_to_f32, f32_to_f16);
half!(
    Bf16,
    BF16_FMT,
    |bits: u16| f32::from_bits(u32::from(bits) << 16),
    f32_to_bf16
);

#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    // Reading the bits as a single of exponent e-112 and scaling by 2^112 handles subnormals too.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let special = f32::from_bits(magnitude << 13 | 0x7f80_0000);
    let value = if magnitude >= 0x7c00 { special } else { scaled };
    f32::from_bits(value.to_bits() | sign)
}

#[inline(always)]
fn f32_to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let bits = if magnitude > 0x7f80_0000 {
        return 0x7fff;
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Adding 0.5 puts the subnormal's last bit at the sum's last bit; the addition rounds.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000
    } else {
        let odd = magnitude >> 13 & 1;
        (magnitude - 0x3800_0000 + 0xfff + odd) >> 13
    };
    sign | bits as u16
}

#[inline(always)]
fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        0x7fff
    } else {
        ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_round_trips_and_rounds_like_the_exact_path() {
        for bits in 0..=u16::MAX {
            let (h, b) = (F16(bits), Bf16(bits));
            if !h.is_nan() {
                assert_eq!(F16::of(h.f32()), h);
            }
            if !b.is_nan() {
                assert_eq!(Bf16::of(b.f32()), b);
            }
        }
        for i in 0..2_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(0x9e37_79b1));
            assert_eq!(
                u64::from(F16::of(x).0),
                convert(x.into(), F16_FMT, Rm::Ne),
                "{x:e}"
            );
            assert_eq!(
                u64::from(Bf16::of(x).0),
                convert(x.into(), BF16_FMT, Rm::Ne),
                "{x:e}"
            );
        }
    }

    #[test]
    fn exact_rounding_agrees_with_the_cpu_to_nearest() {
        let mut seed = 0x1234_5678_9abc_def1u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for i in 0..200_000 {
            let spread = |r: u64| {
                if i % 2 == 0 {
                    f64::from_bits(r)
                } else {
                    (r as i64 >> 20) as f64
                }
            };
            let (a, b, c) = (spread(next()), spread(next()), spread(next()));
            let check = |got: u64, want: f64, what: &str| {
                let got = f64::from_bits(got);
                assert!(
                    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                    "{what} {a:e} {b:e} {c:e}: {got:e} {want:e}"
                );
            };
            check(add(a, b, F64_FMT, Rm::Ne), a + b, "add");
            check(mul(a, b, F64_FMT, Rm::Ne), a * b, "mul");
            check(div(a, b, F64_FMT, Rm::Ne), a / b, "div");
            check(sqrt(a, F64_FMT, Rm::Ne), a.sqrt(), "sqrt");
            check(fma(a, b, c, F64_FMT, Rm::Ne), a.mul_add(b, c), "fma");
            assert_eq!(
                convert(a, F32_FMT, Rm::Ne) as u32,
                canon(a as f32).to_bits(),
                "{a:e}"
            );
        }
    }

    #[test]
    fn directed_rounding_brackets_the_value() {
        let third = |rm| f64::from_bits(div(1.0, 3.0, F64_FMT, rm));
        assert!(third(Rm::Down) < third(Rm::Up));
        assert_eq!(third(Rm::Zero), third(Rm::Down));
        let over = |rm| convert(1e300, F32_FMT, rm) as u32;
        assert_eq!(over(Rm::Zero), f32::MAX.to_bits());
        assert_eq!(over(Rm::Up), f32::INFINITY.to_bits());
        assert_eq!(add(1.0, -1.0, F64_FMT, Rm::Down), (-0.0f64).to_bits());
    }
}
