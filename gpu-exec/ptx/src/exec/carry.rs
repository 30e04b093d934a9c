//! Handlers that are more than a function of one lane's sources: carries and selections.
#![forbid(unsafe_code)]

use std::marker::PhantomData;

use super::alu::Handler;
use super::code::Inst;
use super::regs::{LANES, Lane, Regs};

/// `d = a + b + s`, carry to `p`.
pub(crate) struct AddCarry<T>(PhantomData<T>);
/// `d = a - b - s`, borrow to `p`.
pub(crate) struct SubBorrow<T>(PhantomData<T>);
/// `d = s ? a : b`
pub(crate) struct Select<T>(PhantomData<T>);
/// `d = a & b` and the like on predicates: the truth table of (a, b) is in `imm`.
pub(crate) struct PredLogic;

pub(crate) trait Carry: Lane {
    fn add(self, other: Self, carry: bool) -> (Self, bool);
    fn sub(self, other: Self, borrow: bool) -> (Self, bool);
}

macro_rules! carry_impl {
    ($($t:ident)*) => {$(
        impl Carry for $t {
            #[inline(always)]
            fn add(self, other: Self, carry: bool) -> (Self, bool) {
                let (x, o) = self.overflowing_add(other);
                let (x, p) = x.overflowing_add(Self::from(carry));
                (x, o | p)
            }
            #[inline(always)]
            fn sub(self, other: Self, borrow: bool) -> (Self, bool) {
                let (x, o) = self.overflowing_sub(other);
                let (x, p) = x.overflowing_sub(Self::from(borrow));
                (x, o | p)
            }
        }
    )*};
}
carry_impl!(u32 u64);

#[inline(always)]
fn carried<T: Carry>(regs: &mut Regs, inst: &Inst, mask: u32, f: impl Fn(T, T, bool) -> (T, bool)) {
    let (a, b, s) = (
        T::get(regs, inst.a),
        T::get(regs, inst.b),
        regs.pred(inst.s),
    );
    let mut out = a;
    let mut bits = 0;
    for l in 0..LANES {
        let (x, carry) = f(a[l], b[l], s >> l & 1 != 0);
        out[l] = x;
        bits |= u32::from(carry) << l;
    }
    T::put(regs, inst.d, &out, mask);
    regs.set_pred(inst.p, bits, mask);
}

impl<T: Carry> Handler for AddCarry<T> {
    #[inline(always)]
    fn run(regs: &mut Regs, inst: &Inst, mask: u32) {
        carried::<T>(regs, inst, mask, T::add);
    }
}

impl<T: Carry> Handler for SubBorrow<T> {
    #[inline(always)]
    fn run(regs: &mut Regs, inst: &Inst, mask: u32) {
        carried::<T>(regs, inst, mask, T::sub);
    }
}

impl<T: Lane> Handler for Select<T> {
    #[inline(always)]
    fn run(regs: &mut Regs, inst: &Inst, mask: u32) {
        let (a, b, s) = (
            T::get(regs, inst.a),
            T::get(regs, inst.b),
            regs.pred(inst.s),
        );
        let mut out = b;
        for l in 0..LANES {
            out[l] = if s >> l & 1 != 0 { a[l] } else { b[l] };
        }
        T::put(regs, inst.d, &out, mask);
    }
}

impl Handler for PredLogic {
    #[inline(always)]
    fn run(regs: &mut Regs, inst: &Inst, mask: u32) {
        // Sources are predicate operands in `s` and `q`.
        let (a, b) = (regs.pred(inst.s), regs.pred(inst.q));
        let table = |bit: u64, lanes: u32| if inst.imm >> bit & 1 != 0 { lanes } else { 0 };
        let out = table(0, !a & !b) | table(1, a & !b) | table(2, !a & b) | table(3, a & b);
        regs.set_pred(inst.p, out, mask);
    }
}
