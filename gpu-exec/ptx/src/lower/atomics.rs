//! Atomics, fences.
#![forbid(unsafe_code)]

use super::func::{Lower, NONE, Result};
use super::mods::{Mods, cache_hint, order_or_scope};
use crate::exec::code::{Atom, AtomKind, AtomTy, Op};
use crate::parse::ast::{Operand, Ty};

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn atom(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let returns = mods.name() == "atom";
        if mods.flag("async") {
            return Err("asynchronous reductions need clusters".to_owned());
        }
        let space = mods.space();
        mods.ignore(|m| order_or_scope(m) || cache_hint(m));
        let kind = mods.pick(kind).ok_or("no operation")?;
        let count = mods.pick(|m| match m {
            "v2" => Some(2u32),
            "v4" => Some(4),
            _ => None,
        });
        let ty = mods.ty()?;
        let atom_ty = atom_type(kind, ty)?;
        let (d, rest) = if returns {
            let (d, rest) = super::select::split(ops)?;
            (Some(d), rest)
        } else {
            (None, ops)
        };
        let [at, values @ ..] = rest else {
            return Err("no address".to_owned());
        };
        let (address, space) = self.address(at, space)?;
        // A vector of atomics is atomic per element only.
        let lanes: Vec<Vec<Operand<'t>>> = match count {
            None => vec![values.to_vec()],
            Some(n) => match values.first() {
                Some(Operand::Vector(list)) if list.len() == n as usize => {
                    list.iter().map(|v| vec![v.clone()]).collect()
                }
                _ => return Err("a vector source is needed".to_owned()),
            },
        };
        for (i, values) in (0i64..).zip(&lanes) {
            let d = match (d, count) {
                (Some(Operand::Vector(list)), Some(_)) => list.get(usize::try_from(i).unwrap_or(0)),
                (d, _) => d,
            };
            let d = match d {
                Some(d) => self.dst(d, ty)?,
                None => NONE,
            };
            let (b, c) = match (kind, values.as_slice()) {
                (AtomKind::Cas, [b, c, ..]) => (self.src(b, ty)?, self.src(c, ty)?),
                (AtomKind::Cas, _) | (_, []) => return Err("a source is missing".to_owned()),
                (_, [b, ..]) => (self.src(b, ty)?, NONE),
            };
            let cache = self.next_cache();
            let atom = Atom {
                space,
                wide: address.wide,
                kind,
                ty: atom_ty,
                returns,
                cache,
            };
            let inst = self.emit(Op::Atom(Box::new(atom)));
            (inst.d, inst.a, inst.b, inst.c) = (d, address.base, b, c);
            inst.imm = (address.offset + i * i64::from(ty.bytes())).cast_unsigned();
        }
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(super) fn fence(&mut self, mods: &mut Mods<'t>) -> Result<()> {
        mods.ignore(|m| {
            order_or_scope(m)
                || m.starts_with("proxy")
                || m.starts_with("sync_restrict")
                || matches!(m, "alias" | "async" | "mbarrier_init")
        });
        self.emit(Op::Fence);
        Ok(())
    }
}

fn kind(name: &str) -> Option<AtomKind> {
    Some(match name {
        "add" => AtomKind::Add,
        "min" => AtomKind::Min,
        "max" => AtomKind::Max,
        "and" => AtomKind::And,
        "or" => AtomKind::Or,
        "xor" => AtomKind::Xor,
        "inc" => AtomKind::Inc,
        "dec" => AtomKind::Dec,
        "exch" => AtomKind::Exch,
        "cas" => AtomKind::Cas,
        _ => return None,
    })
}

fn atom_type(kind: AtomKind, ty: Ty) -> Result<AtomTy> {
    let bitwise = matches!(
        kind,
        AtomKind::And | AtomKind::Or | AtomKind::Xor | AtomKind::Exch | AtomKind::Cas
    );
    Ok(match ty {
        Ty::B16 | Ty::U16 if bitwise => AtomTy::U16,
        Ty::B32 | Ty::U32 => AtomTy::U32,
        Ty::S32 => AtomTy::S32,
        Ty::B64 | Ty::U64 => AtomTy::U64,
        Ty::S64 => AtomTy::S64,
        Ty::F32 => AtomTy::F32,
        Ty::F64 => AtomTy::F64,
        Ty::F16 => AtomTy::F16,
        Ty::F16x2 => AtomTy::F16x2,
        Ty::Bf16 => AtomTy::Bf16,
        Ty::Bf16x2 => AtomTy::Bf16x2,
        _ => return Err(format!("not for type {ty:?}")),
    })
}
