//! A warp's registers, structure of arrays: one row holds 32 lanes of 4 bytes.
//!
//! A 64-bit register takes two consecutive rows and is read as 32 lanes of 8 bytes. 8- and
//! 16-bit registers take a whole row, zero-extended. Predicates are 32-bit masks.
#![forbid(unsafe_code)]

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, transmute, transmute_mut, transmute_ref,
};

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// Index of a register's first row.
pub(crate) type R = u32;

/// Predicate operand: index * 2 + negated. Predicate 0 is always true.
pub(crate) type P = u32;

/// The operand that is always true: an instruction without a guard.
pub(crate) const P_TRUE: P = 0;

/// 32 lanes of 4 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(crate) struct Row(pub(crate) [u32; LANES]);

/// The register file of one warp.
#[derive(Debug, Default)]
pub(crate) struct Regs {
    pub(crate) rows: Vec<Row>,
    pub(crate) preds: Vec<u32>,
}

impl Regs {
    /// All registers zero, predicate 0 true.
    pub(crate) fn new(rows: u32, preds: u32) -> Self {
        let mut regs = Self {
            rows: vec![Row([0; LANES]); rows as usize],
            preds: vec![0; preds as usize + 1],
        };
        regs.preds[0] = u32::MAX;
        regs
    }

    /// The lanes for which a predicate operand holds.
    #[inline(always)]
    pub(crate) fn pred(&self, p: P) -> u32 {
        self.preds[(p >> 1) as usize] ^ 0u32.wrapping_sub(p & 1)
    }

    /// Writes a predicate in the lanes of `mask`. Writing predicate 0 is a sink.
    #[inline(always)]
    pub(crate) fn set_pred(&mut self, p: P, bits: u32, mask: u32) {
        if p != P_TRUE {
            let slot = &mut self.preds[(p >> 1) as usize];
            *slot = (*slot & !mask) | (bits & mask);
        }
    }

    #[inline(always)]
    pub(crate) fn r32(&self, r: R) -> &[u32; LANES] {
        &self.rows[r as usize].0
    }

    #[inline(always)]
    pub(crate) fn r32_mut(&mut self, r: R) -> &mut [u32; LANES] {
        &mut self.rows[r as usize].0
    }

    #[inline(always)]
    pub(crate) fn r64(&self, r: R) -> &[u64; LANES] {
        let r = r as usize;
        let rows: &[Row; 2] = self.rows[r..].first_chunk().unwrap_or_else(|| no_row());
        transmute_ref!(rows)
    }

    #[inline(always)]
    pub(crate) fn r64_mut(&mut self, r: R) -> &mut [u64; LANES] {
        let r = r as usize;
        let rows: &mut [Row; 2] = self.rows[r..].first_chunk_mut().unwrap_or_else(|| no_row());
        transmute_mut!(rows)
    }
}

#[cold]
fn no_row() -> ! {
    unreachable!("the compiler sizes the register file")
}

/// A value that a register's lanes can hold.
pub(crate) trait Lane: Copy {
    /// Reads all lanes.
    fn get(regs: &Regs, r: R) -> [Self; LANES];
    /// Writes the lanes of `mask`.
    fn put(regs: &mut Regs, r: R, v: &[Self; LANES], mask: u32);
    /// What an inactive lane computes with.
    fn zero() -> Self;
}

#[inline(always)]
fn blend<T: Copy>(to: &mut [T; LANES], v: &[T; LANES], mask: u32) {
    if mask == u32::MAX {
        *to = *v;
        return;
    }
    for l in 0..LANES {
        to[l] = if mask >> l & 1 != 0 { v[l] } else { to[l] };
    }
}

// For u32 and u64 the transmutation changes nothing.
macro_rules! lane_wide {
    ($($t:ty, $bits:ty, $get:ident, $get_mut:ident;)*) => {$(
        impl Lane for $t {
            #[inline(always)]
            #[allow(clippy::useless_transmute)]
            fn get(regs: &Regs, r: R) -> [Self; LANES] {
                transmute!(*regs.$get(r))
            }
            #[inline(always)]
            fn put(regs: &mut Regs, r: R, v: &[Self; LANES], mask: u32) {
                let v: &[$bits; LANES] = transmute_ref!(v);
                blend(regs.$get_mut(r), v, mask);
            }
            #[inline(always)]
            fn zero() -> Self {
                <$t>::default()
            }
        }
    )*};
}

lane_wide! {
    u32, u32, r32, r32_mut;
    i32, u32, r32, r32_mut;
    f32, u32, r32, r32_mut;
    u64, u64, r64, r64_mut;
    i64, u64, r64, r64_mut;
    f64, u64, r64, r64_mut;
}

/// An IEEE binary16 value, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct F16(pub(crate) u16);

/// A bfloat16 value, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bf16(pub(crate) u16);

macro_rules! lane_narrow {
    ($($t:ty, |$from:ident| $get:expr, |$v:ident| $put:expr;)*) => {$(
        impl Lane for $t {
            #[inline(always)]
            fn get(regs: &Regs, r: R) -> [Self; LANES] {
                regs.r32(r).map(|$from| $get)
            }
            #[inline(always)]
            fn put(regs: &mut Regs, r: R, v: &[Self; LANES], mask: u32) {
                blend(regs.r32_mut(r), &v.map(|$v| $put), mask);
            }
            #[inline(always)]
            fn zero() -> Self {
                <$t>::default()
            }
        }
    )*};
}

// Narrowing is what a narrow register means; sign-extended values keep zero upper bits.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]
mod narrow {
    use super::{Bf16, F16, LANES, Lane, R, Regs, blend};
    lane_narrow! {
        u16, |x| x as u16, |v| u32::from(v);
        i16, |x| x as i16, |v| u32::from(v as u16);
        u8, |x| x as u8, |v| u32::from(v);
        i8, |x| x as i8, |v| u32::from(v as u8);
        F16, |x| F16(x as u16), |v| u32::from(v.0);
        Bf16, |x| Bf16(x as u16), |v| u32::from(v.0);
    }
}
