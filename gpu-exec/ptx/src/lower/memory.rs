//! Loads, stores, address spaces.
#![forbid(unsafe_code)]

use super::func::{Entity, Lower, NONE, Result};
use super::mods::{Mods, cache_hint, order_or_scope};
use super::select::split;
use crate::exec::alu::{bin, cmp, un};
use crate::exec::code::{
    CpAsync, LOCAL_BASE, Mem, MemSpace, Op, PARAM_BASE, SHARED_BASE, WINDOW_BYTES,
};
use crate::exec::regs::R;
use crate::parse::ast::{Operand, Space, Ty};

/// An address operand: register, whether it has 64 bits, constant offset.
pub(super) struct Address {
    pub(super) base: R,
    pub(super) wide: bool,
    pub(super) offset: i64,
}

/// Modifiers that ask for an access that another thread's write is seen by: spin loops use these.
fn synchronizing(parts: &[&str]) -> bool {
    parts
        .iter()
        .any(|p| matches!(*p, "volatile" | "relaxed" | "acquire" | "cv" | "mmio"))
}

impl<'t> Lower<'_, '_, 't> {
    /// Resolves `[a+4]`; the space of a symbol refines a generic or `.param` access.
    pub(super) fn address(
        &mut self,
        operand: &Operand<'t>,
        space: Option<Space>,
    ) -> Result<(Address, MemSpace)> {
        let Operand::Address(base, offset) = operand else {
            return Err("an address in brackets is needed".to_owned());
        };
        let mut mem = match space {
            None | Some(Space::Generic) => MemSpace::Generic,
            Some(Space::Global | Space::Const) => MemSpace::Global,
            Some(Space::Shared) => MemSpace::Shared,
            Some(Space::Local) => MemSpace::Local,
            Some(Space::Param) if self.func.entry => MemSpace::Param,
            Some(Space::Param) => MemSpace::Local,
        };
        let (base, wide) = match &**base {
            Operand::Name(name) => match self.lookup(name).cloned() {
                Some(Entity::Reg { r, ty }) => (r, ty.rows() == 2),
                Some(Entity::Local { .. }) => {
                    mem = MemSpace::Local;
                    (self.src(base, Ty::U32)?, false)
                }
                Some(Entity::Shared(_)) => {
                    mem = MemSpace::Shared;
                    (self.src(base, Ty::U32)?, false)
                }
                Some(Entity::Param(_)) => {
                    mem = MemSpace::Param;
                    (self.src(base, Ty::U32)?, false)
                }
                Some(_) => return Err(format!("`{name}` is no address")),
                None => {
                    let wide = matches!(mem, MemSpace::Global | MemSpace::Generic);
                    if mem == MemSpace::Generic {
                        mem = self.symbol_space(name);
                    }
                    (self.src(base, if wide { Ty::U64 } else { Ty::U32 })?, wide)
                }
            },
            Operand::Int(_) => (self.src(base, Ty::U64)?, true),
            _ => return Err("malformed address".to_owned()),
        };
        Ok((
            Address {
                base,
                wide,
                offset: *offset,
            },
            mem,
        ))
    }

    fn symbol_space(&self, name: &str) -> MemSpace {
        match self.b.syms.var(name).map(|v| v.space) {
            Some(crate::parse::ast::VarSpace::Mem(Space::Shared)) => MemSpace::Shared,
            Some(crate::parse::ast::VarSpace::Mem(Space::Local)) => MemSpace::Local,
            _ => MemSpace::Global,
        }
    }

    pub(super) fn next_cache(&mut self) -> u32 {
        self.b.code.caches += 1;
        self.b.code.caches - 1
    }

    /// What `ld` and `st` share: modifiers.
    fn access(&mut self, mods: &mut Mods<'t>) -> Result<(Option<Space>, usize, Ty, bool)> {
        let volatile = synchronizing(&mods.parts);
        let space = mods.space();
        mods.ignore(|m| order_or_scope(m) || cache_hint(m) || matches!(m, "volatile" | "unified"));
        let count = mods.pick(|m| match m {
            "v2" => Some(2),
            "v4" => Some(4),
            "v8" => Some(8),
            _ => None,
        });
        Ok((space, count.unwrap_or(1), mods.ty()?, volatile))
    }

    fn elements<'o>(count: usize, operand: &'o Operand<'t>) -> Result<&'o [Operand<'t>]> {
        let list = match operand {
            Operand::Vector(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        if list.len() == count {
            Ok(list)
        } else {
            Err(format!("{count} elements are needed"))
        }
    }

    pub(super) fn load(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let (space, count, ty, volatile) = self.access(mods)?;
        let (d, rest) = split(ops)?;
        let at = rest.first().ok_or("no address")?;
        let (address, space) = self.address(at, space)?;
        let mut regs = Vec::with_capacity(count);
        let mut extend = Vec::new();
        for element in Self::elements(count, d)? {
            if *element == Operand::Name("_") {
                regs.push(None);
            } else if self.declared(element).is_some_and(|t| t.rows() == 2) && ty.rows() == 1 {
                let narrow = self.temp(Ty::U32);
                regs.push(Some(narrow));
                extend.push((self.dst(element, Ty::U64)?, narrow));
            } else {
                regs.push(Some(self.dst(element, ty)?));
            }
        }
        let cache = self.next_cache();
        let mem = Mem {
            space,
            wide: address.wide,
            bytes: ty.bytes(),
            signed: ty.signed(),
            regs,
            volatile,
            cache,
        };
        let inst = self.emit(Op::Ld(Box::new(mem)));
        inst.a = address.base;
        inst.imm = address.offset.cast_unsigned();
        for (d, narrow) in extend {
            let f = if ty.signed() {
                un!(i32 => i64, |x| i64::from(x))
            } else {
                un!(u32 => u64, |x| u64::from(x))
            };
            self.alu(f, d, &[narrow]);
        }
        Ok(())
    }

    pub(super) fn store(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let async_store = mods.parts.get(1) == Some(&"async");
        if async_store {
            return Err("asynchronous stores need clusters".to_owned());
        }
        let (space, count, ty, volatile) = self.access(mods)?;
        let [at, value, ..] = ops else {
            return Err("two operands are needed".to_owned());
        };
        let (address, space) = self.address(at, space)?;
        let mut regs = Vec::with_capacity(count);
        for element in Self::elements(count, value)? {
            regs.push(Some(self.src(element, ty)?));
        }
        let cache = self.next_cache();
        let mem = Mem {
            space,
            wide: address.wide,
            bytes: ty.bytes(),
            signed: false,
            regs,
            volatile,
            cache,
        };
        let inst = self.emit(Op::St(Box::new(mem)));
        inst.a = address.base;
        inst.imm = address.offset.cast_unsigned();
        Ok(())
    }

    /// Prefetches and hints do nothing.
    #[allow(clippy::unnecessary_wraps)]
    pub(super) fn hint(&mut self, mods: &mut Mods<'t>) -> Result<()> {
        mods.ignore(|_| true);
        Ok(())
    }

    /// `cvta`, `isspacep`: windows of the generic address space.
    pub(super) fn address_space(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let [d, a] = ops else {
            return Err("two operands are needed".to_owned());
        };
        let is_space = mods.name() == "isspacep";
        let to = mods.flag("to");
        let space = mods.space().ok_or("no address space")?;
        let base = match space {
            Space::Shared => SHARED_BASE,
            Space::Local => LOCAL_BASE,
            Space::Param => PARAM_BASE,
            _ => 0,
        };
        let a = match a {
            Operand::Name(name)
                if self.declared(a).is_none() && base != 0 && self.lookup(name).is_none() =>
            {
                self.src(a, Ty::U64)?
            }
            a => self.src(
                a,
                if self.declared(a).is_some_and(|t| t.rows() == 1) {
                    Ty::U32
                } else {
                    Ty::U64
                },
            )?,
        };
        if is_space {
            let p = self.pred_dst(d)?;
            let window = self.src(&Operand::Int(base), Ty::U64)?;
            let f = cmp!(u64, |x, y| x & !(WINDOW_BYTES - 1) == y);
            self.alu(f, NONE, &[a, window]).p = p;
            return Ok(());
        }
        if mods.name() == "mapa" {
            return Err("`mapa` needs clusters".to_owned());
        }
        if mods.ty()?.bytes() != 8 {
            return Err("addresses have 64 bits".to_owned());
        }
        let d = self.dst(d, Ty::U64)?;
        // The null pointer of a space stays null in both directions only for global memory, as on hardware.
        let window = self.src(&Operand::Int(base), Ty::U64)?;
        let f = if to {
            bin!(u64, u64 => u64, |x, y| x.wrapping_sub(y))
        } else {
            bin!(u64, u64 => u64, |x, y| x.wrapping_add(y))
        };
        self.alu(f, d, &[a, window]);
        Ok(())
    }

    /// `cp.async`: done at once, so that commits and waits have nothing to do.
    pub(super) fn cp_async(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        if !mods.flag("async") {
            return Err("unknown instruction".to_owned());
        }
        if mods.flag("commit_group") || mods.flag("wait_group") || mods.flag("wait_all") {
            return Ok(());
        }
        if mods
            .parts
            .iter()
            .any(|p| matches!(*p, "bulk" | "mbarrier" | "reduce"))
        {
            return Err("bulk copies and their barriers are not supported".to_owned());
        }
        mods.ignore(|m| {
            matches!(m, "ca" | "cg" | "global") || m.starts_with("shared") || m.starts_with("L2::")
        });
        let [to, from, Operand::Int(bytes), rest @ ..] = ops else {
            return Err("two addresses and a size are needed".to_owned());
        };
        if !matches!(bytes, 4 | 8 | 16) {
            return Err("the size must be 4, 8 or 16".to_owned());
        }
        let (to, _) = self.address(to, Some(Space::Shared))?;
        let (from, _) = self.address(from, Some(Space::Global))?;
        let size = match rest.first() {
            Some(size) if self.declared(size) != Some(Ty::Pred) => Some(self.src(size, Ty::U32)?),
            Some(_) => return Err("ignore-src predicates are not supported".to_owned()),
            None => None,
        };
        let cache = self.next_cache();
        let copy = CpAsync {
            a_wide: to.wide,
            size,
            a_offset: to.offset,
            b_offset: from.offset,
            cache,
        };
        let inst = self.emit(Op::CpAsync(Box::new(copy)));
        (inst.a, inst.b, inst.imm) = (to.base, from.base, *bytes);
        Ok(())
    }
}
