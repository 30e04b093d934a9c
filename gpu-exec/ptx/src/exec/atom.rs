//! Atomics. On global memory they are atomics of the host; a block's shared memory belongs to
//! one thread of the host, so plain reads and writes are atomic there.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::access::{Addrs, addresses, bounds, refused, windows};
use super::block::{Cx, Shared};
use super::code::{Atom, AtomKind, AtomTy, Inst, MemSpace};
use super::mem::{Cell, lanes};
use super::num::{Bf16, F16};
use super::regs::{LANES, Lane};
use super::warp::{Trouble, Warp};

impl Warp {
    pub(super) fn atom(
        &mut self,
        inst: &Inst,
        atom: &Atom,
        mask: u32,
        cx: &mut Cx<'_>,
        shared: &mut Shared,
    ) -> Result<(), Trouble> {
        let addrs = addresses(&self.regs, inst.a, atom.wide, inst.imm);
        let targets = match atom.space {
            MemSpace::Generic => windows(&addrs, mask),
            space => [
                (space, mask, 0),
                (space, 0, 0),
                (space, 0, 0),
                (space, 0, 0),
            ],
        };
        let width = atom.ty.bytes();
        let operand = |r: u32| match (r, width) {
            (super::super::lower::NONE, _) => [0; LANES],
            (r, 8) => *self.regs.r64(r),
            (r, _) => self.regs.r32(r).map(u64::from),
        };
        let (b, c) = (operand(inst.b), operand(inst.c));
        let mut old = [0u64; LANES];
        for (space, lanes, base) in targets {
            if lanes != 0 {
                let addrs = addrs.map(|a| a.wrapping_sub(base));
                self.atom_space(atom, space, &addrs, lanes, (&b, &c), &mut old, cx, shared)?;
            }
        }
        if atom.returns {
            match width {
                8 => u64::put(&mut self.regs, inst.d, &old, mask),
                // The old value has no more than `width` bytes.
                _ => u32::put(
                    &mut self.regs,
                    inst.d,
                    &old.map(|v| (v & 0xffff_ffff) as u32),
                    mask,
                ),
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn atom_space(
        &mut self,
        atom: &Atom,
        space: MemSpace,
        addrs: &Addrs,
        mask: u32,
        (b, c): (&Addrs, &Addrs),
        old: &mut Addrs,
        cx: &mut Cx<'_>,
        shared: &mut Shared,
    ) -> Result<(), Trouble> {
        let width = atom.ty.bytes();
        if space == MemSpace::Global {
            let cache = &mut cx.caches[atom.cache as usize];
            let found = cx.job.mem.check(cache, addrs, mask, width, true);
            let checked = found.map_err(|r| refused(r, width, true))?;
            for l in lanes(mask) {
                old[l] = match (width, atom.kind, atom.ty) {
                    (4, AtomKind::Add, AtomTy::U32 | AtomTy::S32) => {
                        u64::from(checked.atomic32(l).fetch_add(low(b[l]), SeqCst))
                    }
                    (4, ..) => swap(checked.atomic32(l), |x| {
                        low(apply(atom, x.into(), b[l], c[l]))
                    })
                    .into(),
                    (8, ..) => swap64(checked.atomic64(l), |x| apply(atom, x, b[l], c[l])),
                    _ => swap16(checked.atomic16(l), |x| {
                        (apply(atom, x.into(), b[l], c[l]) & 0xffff) as u16
                    })
                    .into(),
                };
            }
            return Ok(());
        }
        let (bytes, stride) = match space {
            MemSpace::Shared => (shared.bytes.as_mut_slice(), 0),
            MemSpace::Local => (self.local.as_mut_slice(), cx.code.local_bytes as usize),
            _ => (&mut [][..], 0),
        };
        let limit = if stride == 0 { bytes.len() } else { stride };
        bounds(addrs, mask, width, limit).map_err(|r| refused(r, width, true))?;
        for l in lanes(mask) {
            let at = addrs[l] as usize + l * stride;
            let word = bytes.get_mut(at..).unwrap_or(&mut []);
            old[l] = match width {
                8 => <u64 as Cell>::from_le(word),
                4 => <u32 as Cell>::from_le(word).into(),
                _ => <u16 as Cell>::from_le(word).into(),
            };
            let new = apply(atom, old[l], b[l], c[l]);
            match width {
                8 => new.put_le(word),
                4 => low(new).put_le(word),
                _ => ((new & 0xffff) as u16).put_le(word),
            }
        }
        Ok(())
    }
}

fn low(x: u64) -> u32 {
    (x & 0xffff_ffff) as u32
}

macro_rules! swap {
    ($($name:ident $atomic:ident $t:ident;)*) => {$(
        fn $name(word: &std::sync::atomic::$atomic, f: impl Fn($t) -> $t) -> $t {
            let mut seen = word.load(Relaxed);
            loop {
                match word.compare_exchange_weak(seen, f(seen), SeqCst, Relaxed) {
                    Ok(old) => return old,
                    Err(now) => seen = now,
                }
            }
        }
    )*};
}
swap! {
    swap16 AtomicU16 u16;
    swap AtomicU32 u32;
    swap64 AtomicU64 u64;
}

impl AtomTy {
    pub(super) fn bytes(self) -> u32 {
        match self {
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::U64 | Self::S64 | Self::F64 => 8,
            _ => 4,
        }
    }
}

/// The new value. Bits of all types travel as u64.
fn apply(atom: &Atom, x: u64, b: u64, c: u64) -> u64 {
    match (atom.kind, atom.ty) {
        (AtomKind::And, _) => x & b,
        (AtomKind::Or, _) => x | b,
        (AtomKind::Xor, _) => x ^ b,
        (AtomKind::Exch, _) => b,
        (AtomKind::Cas, AtomTy::U16) => {
            if x & 0xffff == b & 0xffff {
                c
            } else {
                x
            }
        }
        (AtomKind::Cas, _) => {
            if x == b {
                c
            } else {
                x
            }
        }
        (AtomKind::Inc, _) => {
            if low(x) >= low(b) {
                0
            } else {
                x + 1
            }
        }
        (AtomKind::Dec, _) => {
            if x == 0 || low(x) > low(b) {
                b
            } else {
                x - 1
            }
        }
        (kind, AtomTy::S32) => {
            let (x, b) = (low(x).cast_signed(), low(b).cast_signed());
            u64::from(integer(kind, x, b, i32::wrapping_add).cast_unsigned())
        }
        (kind, AtomTy::U32) => integer(kind, low(x), low(b), u32::wrapping_add).into(),
        (kind, AtomTy::S64) => {
            integer(kind, x.cast_signed(), b.cast_signed(), i64::wrapping_add).cast_unsigned()
        }
        (kind, AtomTy::U64) => integer(kind, x, b, u64::wrapping_add),
        (kind, AtomTy::F64) => float(kind, f64::from_bits(x), f64::from_bits(b)).to_bits(),
        (kind, AtomTy::F32) => single(kind, f32::from_bits(low(x)), f32::from_bits(low(b)))
            .to_bits()
            .into(),
        (kind, ty) => halves(kind, ty, low(x), low(b)).into(),
    }
}

fn integer<T: Ord>(kind: AtomKind, x: T, b: T, add: fn(T, T) -> T) -> T {
    match kind {
        AtomKind::Min => x.min(b),
        AtomKind::Max => x.max(b),
        _ => add(x, b),
    }
}

fn float(kind: AtomKind, x: f64, b: f64) -> f64 {
    match kind {
        AtomKind::Min => x.min(b),
        AtomKind::Max => x.max(b),
        _ => x + b,
    }
}

fn single(kind: AtomKind, x: f32, b: f32) -> f32 {
    super::num::canon(match kind {
        AtomKind::Min => x.min(b),
        AtomKind::Max => x.max(b),
        _ => x + b,
    })
}

fn halves(kind: AtomKind, ty: AtomTy, x: u32, b: u32) -> u32 {
    // Taking the low half is the point.
    let half = |x: u32, b: u32| match ty {
        AtomTy::F16 | AtomTy::F16x2 => {
            F16::of(single(kind, F16(x as u16).f32(), F16(b as u16).f32())).0
        }
        _ => Bf16::of(single(kind, Bf16(x as u16).f32(), Bf16(b as u16).f32())).0,
    };
    match ty {
        AtomTy::F16x2 | AtomTy::Bf16x2 => {
            u32::from(half(x, b)) | u32::from(half(x >> 16, b >> 16)) << 16
        }
        _ => half(x, b).into(),
    }
}
