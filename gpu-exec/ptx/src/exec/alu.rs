//! Instructions that only compute: one call does all 32 lanes.
//!
//! [`un!`], [`bin!`] and [`ter!`] make a handler from an expression over one lane. Every
//! handler exists twice, compiled for any CPU and for x86-64-v3, and [`AluFn`] holds the one this
//! CPU can run. This is a fenced unsafe module: the fence is the feature check.

use super::code::Inst;
use super::regs::{LANES, Lane, Regs};

/// A handler that this CPU can run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AluFn(unsafe fn(&mut Regs, &Inst, u32));

impl AluFn {
    /// Runs the instruction in the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn call(self, regs: &mut Regs, inst: &Inst, mask: u32) {
        // SAFETY: the field is private and only `alu` makes values: it stores a function with target features
        // only after the CPU was seen to have all of them; without them, a safe function.
        unsafe { (self.0)(regs, inst, mask) }
    }
}

/// What a handler does; `#[inline(always)]` so that both entry points compile it.
pub(crate) trait Handler {
    fn run(regs: &mut Regs, inst: &Inst, mask: u32);
}

/// The entry point of `H` for this CPU.
pub(crate) fn alu<H: Handler>() -> AluFn {
    #[cfg(target_arch = "x86_64")]
    if v3() {
        return AluFn(entry_v3::<H>);
    }
    AluFn(entry_any::<H>)
}

fn entry_any<H: Handler>(regs: &mut Regs, inst: &Inst, mask: u32) {
    H::run(regs, inst, mask);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,f16c")]
fn entry_v3<H: Handler>(regs: &mut Regs, inst: &Inst, mask: u32) {
    H::run(regs, inst, mask);
}

#[cfg(target_arch = "x86_64")]
fn v3() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx2")
        && has!("fma")
        && has!("bmi1")
        && has!("bmi2")
        && has!("lzcnt")
        && has!("popcnt")
        && has!("f16c")
}

/// One lane of an instruction with one source.
pub(crate) trait Un {
    type A: Lane;
    type O: Lane;
    /// Worth computing only in active lanes.
    const SLOW: bool = false;
    fn f(a: Self::A, imm: u64) -> Self::O;
}

/// One lane of an instruction with two sources.
pub(crate) trait Bin {
    type A: Lane;
    type B: Lane;
    type O: Lane;
    const SLOW: bool = false;
    fn f(a: Self::A, b: Self::B, imm: u64) -> Self::O;
}

/// One lane of an instruction with three sources.
pub(crate) trait Ter {
    type A: Lane;
    type B: Lane;
    type C: Lane;
    type O: Lane;
    const SLOW: bool = false;
    fn f(a: Self::A, b: Self::B, c: Self::C, imm: u64) -> Self::O;
}

/// One lane of a comparison.
pub(crate) trait Cmp {
    type A: Lane;
    fn f(a: Self::A, b: Self::A) -> bool;
}

pub(crate) struct H1<T>(T);
pub(crate) struct H2<T>(T);
pub(crate) struct H3<T>(T);
pub(crate) struct HCmp<T>(T);

#[inline(always)]
fn lanes<O: Lane>(slow: bool, mask: u32, f: impl Fn(usize) -> O) -> [O; LANES] {
    let mut out = [O::zero(); LANES];
    if slow && mask != u32::MAX {
        let mut left = mask;
        while left != 0 {
            let l = left.trailing_zeros() as usize;
            left &= left - 1;
            out[l] = f(l);
        }
    } else {
        for (l, out) in out.iter_mut().enumerate() {
            *out = f(l);
        }
    }
    out
}

impl<T: Un> Handler for H1<T> {
    #[inline(always)]
    fn run(regs: &mut Regs, inst: &Inst, mask: u32) {
        let a = T::A::get(regs, inst.a);
        let imm = inst.imm;
        let out = lanes(T::SLOW, mask, |l| T::f(a[l], imm));
        T::O::put(regs, inst.d, &out, mask);
    }
}

impl<T: Bin> Handler for H2<T> {
    #[inline(always)]
    fn run(regs: &mut Regs, inst: &Inst, mask: u32) {
        let a = T::A::get(regs, inst.a);
        let b = T::B::get(regs, inst.b);
        let imm = inst.imm;
        let out = lanes(T::SLOW, mask, |l| T::f(a[l], b[l], imm));
        T::O::put(regs, inst.d, &out, mask);
    }
}

impl<T: Ter> Handler for H3<T> {
    #[inline(always)]
    fn run(regs: &mut Regs, inst: &Inst, mask: u32) {
        let a = T::A::get(regs, inst.a);
        let b = T::B::get(regs, inst.b);
        let c = T::C::get(regs, inst.c);
        let imm = inst.imm;
        let out = lanes(T::SLOW, mask, |l| T::f(a[l], b[l], c[l], imm));
        T::O::put(regs, inst.d, &out, mask);
    }
}

/// How a comparison's result is combined with the source predicate.
pub(crate) const COMBINE_AND: u64 = 1;
pub(crate) const COMBINE_OR: u64 = 2;
pub(crate) const COMBINE_XOR: u64 = 3;

/// `q = !t op s`, `p = t op s`.
#[inline(always)]
pub(crate) fn combine(regs: &mut Regs, inst: &Inst, t: u32, mask: u32) {
    let s = regs.pred(inst.s);
    let (p, q) = match inst.imm {
        COMBINE_AND => (t & s, !t & s),
        COMBINE_OR => (t | s, !t | s),
        COMBINE_XOR => (t ^ s, !t ^ s),
        _ => (t, !t),
    };
    regs.set_pred(inst.p, p, mask);
    regs.set_pred(inst.q, q, mask);
}

impl<T: Cmp> Handler for HCmp<T> {
    #[inline(always)]
    fn run(regs: &mut Regs, inst: &Inst, mask: u32) {
        let a = T::A::get(regs, inst.a);
        let b = T::A::get(regs, inst.b);
        let mut bits = 0u32;
        for l in 0..LANES {
            bits |= u32::from(T::f(a[l], b[l])) << l;
        }
        combine(regs, inst, bits, mask);
    }
}

macro_rules! un {
    ($a:ty => $o:ty, |$x:ident| $e:expr) => { un!(@ false, $a => $o, |$x, _imm| $e) };
    ($a:ty => $o:ty, |$x:ident, $imm:ident| $e:expr) => { un!(@ false, $a => $o, |$x, $imm| $e) };
    (slow $a:ty => $o:ty, |$x:ident| $e:expr) => { un!(@ true, $a => $o, |$x, _imm| $e) };
    (slow $a:ty => $o:ty, |$x:ident, $imm:ident| $e:expr) => { un!(@ true, $a => $o, |$x, $imm| $e) };
    (@ $slow:expr, $a:ty => $o:ty, |$x:ident, $imm:ident| $e:expr) => {{
        struct Op;
        impl $crate::exec::alu::Un for Op {
            type A = $a;
            type O = $o;
            const SLOW: bool = $slow;
            #[inline(always)]
            fn f($x: $a, $imm: u64) -> $o { $e }
        }
        $crate::exec::alu::alu::<$crate::exec::alu::H1<Op>>()
    }};
}

macro_rules! bin {
    ($a:ty, $b:ty => $o:ty, |$x:ident, $y:ident| $e:expr) => { bin!(@ false, $a, $b => $o, |$x, $y, _imm| $e) };
    ($a:ty, $b:ty => $o:ty, |$x:ident, $y:ident, $imm:ident| $e:expr) => { bin!(@ false, $a, $b => $o, |$x, $y, $imm| $e) };
    (slow $a:ty, $b:ty => $o:ty, |$x:ident, $y:ident| $e:expr) => { bin!(@ true, $a, $b => $o, |$x, $y, _imm| $e) };
    (slow $a:ty, $b:ty => $o:ty, |$x:ident, $y:ident, $imm:ident| $e:expr) => { bin!(@ true, $a, $b => $o, |$x, $y, $imm| $e) };
    (@ $slow:expr, $a:ty, $b:ty => $o:ty, |$x:ident, $y:ident, $imm:ident| $e:expr) => {{
        struct Op;
        impl $crate::exec::alu::Bin for Op {
            type A = $a;
            type B = $b;
            type O = $o;
            const SLOW: bool = $slow;
            #[inline(always)]
            fn f($x: $a, $y: $b, $imm: u64) -> $o { $e }
        }
        $crate::exec::alu::alu::<$crate::exec::alu::H2<Op>>()
    }};
}

macro_rules! ter {
    ($a:ty, $b:ty, $c:ty => $o:ty, |$x:ident, $y:ident, $z:ident| $e:expr) => { ter!(@ false, $a, $b, $c => $o, |$x, $y, $z, _imm| $e) };
    ($a:ty, $b:ty, $c:ty => $o:ty, |$x:ident, $y:ident, $z:ident, $imm:ident| $e:expr) => { ter!(@ false, $a, $b, $c => $o, |$x, $y, $z, $imm| $e) };
    (slow $a:ty, $b:ty, $c:ty => $o:ty, |$x:ident, $y:ident, $z:ident| $e:expr) => { ter!(@ true, $a, $b, $c => $o, |$x, $y, $z, _imm| $e) };
    (slow $a:ty, $b:ty, $c:ty => $o:ty, |$x:ident, $y:ident, $z:ident, $imm:ident| $e:expr) => { ter!(@ true, $a, $b, $c => $o, |$x, $y, $z, $imm| $e) };
    (@ $slow:expr, $a:ty, $b:ty, $c:ty => $o:ty, |$x:ident, $y:ident, $z:ident, $imm:ident| $e:expr) => {{
        struct Op;
        impl $crate::exec::alu::Ter for Op {
            type A = $a;
            type B = $b;
            type C = $c;
            type O = $o;
            const SLOW: bool = $slow;
            #[inline(always)]
            fn f($x: $a, $y: $b, $z: $c, $imm: u64) -> $o { $e }
        }
        $crate::exec::alu::alu::<$crate::exec::alu::H3<Op>>()
    }};
}

macro_rules! cmp {
    ($a:ty, |$x:ident, $y:ident| $e:expr) => {{
        struct Op;
        impl $crate::exec::alu::Cmp for Op {
            type A = $a;
            #[inline(always)]
            fn f($x: $a, $y: $a) -> bool {
                $e
            }
        }
        $crate::exec::alu::alu::<$crate::exec::alu::HCmp<Op>>()
    }};
}

pub(crate) use {bin, cmp, ter, un};
