//! Calls: parameters travel through one area at the start of local memory.
//!
//! The callee copies its parameters into its own frame first, the caller copies results out
//! right after the return: the area is free again whenever another call can happen. Frames are
//! static, one per function, which is why recursion is refused.
#![forbid(unsafe_code)]

use super::func::{Entity, Lower, Result};
use super::mods::Mods;
use crate::api::ParamInfo;
use crate::exec::code::{ConstValue, Mem, MemSpace, Op};
use crate::exec::regs::R;
use crate::parse::ast::{Func, Operand, Ty, Var, VarSpace};

/// Offsets of a parameter list.
pub(super) struct Layout {
    pub(super) items: Vec<ParamInfo>,
    pub(super) bytes: u32,
}

/// Places the list one after the other, each aligned.
pub(super) fn layout(vars: &[Var<'_>]) -> Result<Layout> {
    let mut at = 0u32;
    let mut items = Vec::with_capacity(vars.len());
    for var in vars {
        let size = u32::try_from(var.bytes()).ok().filter(|b| *b <= 1 << 16);
        let size = size.ok_or_else(|| format!("parameter `{}` is too large", var.name))?;
        let offset = at.next_multiple_of(var.align);
        items.push(ParamInfo {
            offset_bytes: offset,
            size_bytes: size,
            align_bytes: var.align,
        });
        at = offset + size;
        if at > 1 << 16 {
            return Err("too many parameters".to_owned());
        }
    }
    Ok(Layout { items, bytes: at })
}

/// Results of the function being lowered.
#[derive(Default)]
pub(super) struct Abi {
    rets: Vec<(Entity<'static>, ParamInfo, Ty)>,
}

impl<'t> Lower<'_, '_, 't> {
    /// Parameters from the area into the frame.
    pub(super) fn prologue(&mut self) -> Result<()> {
        let params = layout(&self.func.params)?;
        for (item, var) in params.items.iter().zip(&self.func.params) {
            if var.space == VarSpace::Reg {
                self.register(var.name, var.ty)?;
                if let Some(&Entity::Reg { r, .. }) = self.lookup(var.name) {
                    self.local_load(r, item.offset_bytes, var.ty);
                }
                continue;
            }
            let offset = self
                .b
                .place_local(u64::from(item.size_bytes), item.align_bytes)?;
            self.define(
                var.name,
                Entity::Local {
                    offset,
                    bytes: item.size_bytes,
                },
            )?;
            self.copy_local(offset, item.offset_bytes, item.size_bytes);
        }
        let rets = layout(&self.func.rets)?;
        for (item, var) in rets.items.iter().zip(&self.func.rets) {
            let entity = if var.space == VarSpace::Reg {
                self.register(var.name, var.ty)?;
                match self.lookup(var.name) {
                    Some(&Entity::Reg { r, ty }) => Entity::Reg { r, ty },
                    _ => return Err("a predicate cannot be returned".to_owned()),
                }
            } else {
                let offset = self
                    .b
                    .place_local(u64::from(item.size_bytes), item.align_bytes)?;
                self.define(
                    var.name,
                    Entity::Local {
                        offset,
                        bytes: item.size_bytes,
                    },
                )?;
                Entity::Local {
                    offset,
                    bytes: item.size_bytes,
                }
            };
            self.abi.rets.push((entity, *item, var.ty));
        }
        Ok(())
    }

    /// `ret`: results into the area, then back; a kernel's threads exit.
    pub(super) fn emit_return(&mut self) {
        if self.func.entry {
            self.emit(Op::Exit);
            return;
        }
        for (entity, item, ty) in std::mem::take(&mut self.abi.rets) {
            match &entity {
                Entity::Reg { r, .. } => self.local_store(*r, item.offset_bytes, ty),
                Entity::Local { offset, bytes } => {
                    self.copy_local(item.offset_bytes, *offset, *bytes)
                }
                _ => {}
            }
            self.abi.rets.push((entity, item, ty));
        }
        let row = self.return_row;
        self.emit(Op::Ret).a = row;
    }

    fn copy_local(&mut self, to: u32, from: u32, bytes: u32) {
        let inst = self.emit(Op::CopyLocal { to, from });
        inst.imm = u64::from(bytes);
    }

    pub(super) fn local_load(&mut self, d: R, offset: u32, ty: Ty) {
        let mem = local_mem(d, ty);
        let a = self.b.constant(ConstValue::Bits(u64::from(offset)), 1);
        self.emit(Op::Ld(mem)).a = a;
    }

    fn local_store(&mut self, r: R, offset: u32, ty: Ty) {
        let mem = local_mem(r, ty);
        let a = self.b.constant(ConstValue::Bits(u64::from(offset)), 1);
        self.emit(Op::St(mem)).a = a;
    }

    pub(super) fn call(&mut self, mods: &mut Mods<'t>, operands: &[Operand<'t>]) -> Result<()> {
        mods.flag("uni");
        let (rets, rest) = match operands {
            [Operand::List(rets), rest @ ..] => (rets.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let Some((Operand::Name(target), rest)) = rest.split_first() else {
            return Err("no function to call".to_owned());
        };
        let (args, proto) = match rest {
            [Operand::List(args), proto @ ..] => (args.as_slice(), proto.first()),
            [proto] => (&[][..], Some(proto)),
            [] => (&[][..], None),
            _ => return Err("malformed call".to_owned()),
        };
        if self.lookup(target).is_none() {
            return self.call_direct(target, rets, args);
        }
        let proto = match proto {
            Some(Operand::Name(name)) => match self.lookup(name) {
                Some(Entity::Proto(at)) => self.protos[*at].clone(),
                _ => match self.b.syms.func_head(name) {
                    Some(func) => Func {
                        body: None,
                        ..func.clone()
                    },
                    None => return Err(format!("no prototype `{name}`")),
                },
            },
            _ => return Err("an indirect call needs a prototype".to_owned()),
        };
        let address = self.src(&Operand::Name(target), Ty::U64)?;
        self.pass(&proto.params, args)?;
        self.emit(Op::CallIndirect).a = address;
        self.collect(&proto.rets, rets)
    }

    fn call_direct(
        &mut self,
        target: &str,
        rets: &[Operand<'t>],
        args: &[Operand<'t>],
    ) -> Result<()> {
        let syms = self.b.syms;
        let Some(head) = syms.func_head(target) else {
            return Err(format!("no function `{target}`"));
        };
        if head.body.is_none() {
            return self.intrinsic(target, rets, args);
        }
        let Some(&(pc, row)) = self.b.entries.get(target) else {
            return Err(format!("`{target}` cannot be called here"));
        };
        self.pass(&head.params, args)?;
        let inst = self.emit(Op::Call);
        inst.imm = u64::from(pc);
        inst.d = row;
        self.collect(&head.rets, rets)
    }

    fn pass(&mut self, formals: &[Var<'t>], args: &[Operand<'t>]) -> Result<()> {
        if formals.len() != args.len() {
            return Err(format!(
                "{} parameters passed, {} declared",
                args.len(),
                formals.len()
            ));
        }
        for ((item, formal), arg) in layout(formals)?.items.iter().zip(formals).zip(args) {
            match self.local_var(arg) {
                Some((offset, bytes)) => {
                    self.copy_local(item.offset_bytes, offset, bytes.min(item.size_bytes));
                }
                None => {
                    let r = self.src(arg, formal.ty)?;
                    self.local_store(r, item.offset_bytes, formal.ty);
                }
            }
        }
        Ok(())
    }

    fn collect(&mut self, formals: &[Var<'t>], rets: &[Operand<'t>]) -> Result<()> {
        if formals.len() != rets.len() {
            return Err(format!(
                "{} results taken, {} declared",
                rets.len(),
                formals.len()
            ));
        }
        for ((item, formal), ret) in layout(formals)?.items.iter().zip(formals).zip(rets) {
            match self.local_var(ret) {
                Some((offset, bytes)) => {
                    self.copy_local(offset, item.offset_bytes, bytes.min(item.size_bytes));
                }
                None => {
                    let r = self.dst(ret, formal.ty)?;
                    self.local_load(r, item.offset_bytes, formal.ty);
                }
            }
        }
        Ok(())
    }

    fn local_var(&self, operand: &Operand<'t>) -> Option<(u32, u32)> {
        match operand {
            Operand::Name(name) => match self.lookup(name)? {
                Entity::Local { offset, bytes } => Some((*offset, *bytes)),
                _ => None,
            },
            _ => None,
        }
    }

    /// A value passed to an intrinsic, in a register.
    fn passed(&mut self, operand: &Operand<'t>, ty: Ty) -> Result<R> {
        match self.local_var(operand) {
            Some((offset, _)) => {
                let r = self.temp(ty);
                self.local_load(r, offset, ty);
                Ok(r)
            }
            None => self.src(operand, ty),
        }
    }

    /// The result of a function that the driver provides, to where the program wants it.
    fn give_back(&mut self, rets: &[Operand<'t>], d: R, ty: Ty) -> Result<()> {
        match rets.first().map(|ret| (self.local_var(ret), ret)) {
            Some((Some((offset, _)), _)) => self.local_store(d, offset, ty),
            Some((None, ret)) => {
                let r = self.dst(ret, ty)?;
                self.copy(r, d, ty);
            }
            None => {}
        }
        Ok(())
    }

    /// Functions that the driver provides.
    fn intrinsic(&mut self, name: &str, rets: &[Operand<'t>], args: &[Operand<'t>]) -> Result<()> {
        match (name, args) {
            ("vprintf", [format, values]) => {
                let format = self.passed(format, Ty::U64)?;
                let values = self.passed(values, Ty::U64)?;
                let d = self.temp(Ty::U32);
                let inst = self.emit(Op::Vprintf);
                (inst.d, inst.a, inst.b) = (d, format, values);
                self.give_back(rets, d, Ty::U32)
            }
            ("malloc", [bytes]) => {
                let bytes = self.passed(bytes, Ty::U64)?;
                let d = self.temp(Ty::U64);
                let inst = self.emit(Op::Malloc);
                (inst.d, inst.a) = (d, bytes);
                self.give_back(rets, d, Ty::U64)
            }
            ("free", [address]) => {
                let address = self.passed(address, Ty::U64)?;
                self.emit(Op::Free).a = address;
                Ok(())
            }
            ("__assertfail", [message, file, line, function, ..]) => {
                let message = self.passed(message, Ty::U64)?;
                let file = self.passed(file, Ty::U64)?;
                let line = self.passed(line, Ty::U32)?;
                let function = self.passed(function, Ty::U64)?;
                let inst = self.emit(Op::AssertFail);
                (inst.a, inst.b, inst.c, inst.d) = (message, file, line, function);
                Ok(())
            }
            _ => Err(format!(
                "`{name}` has no body and is not a function of the driver"
            )),
        }
    }
}

fn local_mem(r: R, ty: Ty) -> Box<Mem> {
    Box::new(Mem {
        space: MemSpace::Local,
        wide: false,
        bytes: ty.bytes(),
        signed: ty.signed(),
        regs: vec![Some(r)],
        volatile: false,
        cache: 0,
    })
}
