//! Lowers one function: names to registers, statements to instructions.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::builder::Builder;
use super::mods::Mods;
use crate::error::PtxError;
use crate::exec::alu::{AluFn, un};
use crate::exec::code::{ConstValue, Inst, Op};
use crate::exec::regs::{P, P_TRUE, R};
use crate::parse::ast::{self, Func, Operand, Space, Stmt, Ty, Var, VarSpace};

/// What goes wrong inside an instruction; the place is added by the caller.
pub(super) type Result<T> = std::result::Result<T, String>;

/// Unused register field.
pub(crate) const NONE: R = u32::MAX;

/// What a name means.
#[derive(Debug, Clone)]
pub(super) enum Entity<'t> {
    Reg {
        r: R,
        ty: Ty,
    },
    Pred(P),
    /// A kernel parameter at this offset of the image.
    Param(u32),
    /// A variable in local memory.
    Local {
        offset: u32,
        bytes: u32,
    },
    Shared(u32),
    Label(usize),
    Table(Vec<&'t str>),
    Proto(usize),
}

/// Lowering of one function into a builder.
pub(super) struct Lower<'b, 'm, 't> {
    pub(super) b: &'b mut Builder<'m, 't>,
    pub(super) func: &'m Func<'t>,
    scopes: Vec<HashMap<String, Entity<'t>>>,
    labels: Vec<Option<u32>>,
    fixups: Vec<(usize, usize)>,
    pub(super) protos: Vec<Func<'t>>,
    pub(super) guard: P,
    line: u32,
    /// Row with the return address; NONE in a kernel.
    pub(super) return_row: R,
    /// Offsets in local memory at which parameters and results are passed.
    pub(super) abi: super::call::Abi,
    pub(super) carry: P,
}

impl<'b, 'm, 't> Lower<'b, 'm, 't> {
    /// Appends the code of `func`.
    pub(super) fn run(
        b: &'b mut Builder<'m, 't>,
        func: &'m Func<'t>,
    ) -> std::result::Result<(), PtxError> {
        let place = |m: String| PtxError::new(func.line, func.column, m);
        let entry = u32::try_from(b.code.insts.len()).unwrap_or(u32::MAX);
        let carry = b.new_pred();
        let mut lower = Self {
            b,
            func,
            scopes: vec![HashMap::new()],
            labels: Vec::new(),
            fixups: Vec::new(),
            protos: Vec::new(),
            guard: P_TRUE,
            line: func.line,
            return_row: NONE,
            abi: super::call::Abi::default(),
            carry,
        };
        if func.entry {
            lower.b.code.entry = entry;
            for (param, var) in super::param_layout(func)
                .map_err(place)?
                .iter()
                .zip(&func.params)
            {
                lower
                    .define(var.name, Entity::Param(param.offset_bytes))
                    .map_err(place)?;
            }
        } else {
            lower.return_row = lower.b.new_rows(1);
            lower.b.entries.insert(func.name, (entry, lower.return_row));
            lower.prologue().map_err(place)?;
        }
        let body = func.body.as_deref().unwrap_or(&[]);
        lower.scan_labels(body, 0).map_err(place)?;
        for (at, stmt) in body.iter().enumerate() {
            lower.stmt(stmt, body, at)?;
        }
        // A body may end without `ret`.
        lower.guard = P_TRUE;
        lower.emit_return();
        lower.resolve().map_err(place)
    }

    fn stmt(
        &mut self,
        stmt: &Stmt<'t>,
        body: &[Stmt<'t>],
        at: usize,
    ) -> std::result::Result<(), PtxError> {
        let here = |m: String| PtxError::new(self.func.line, self.func.column, m);
        match stmt {
            Stmt::Open => {
                self.scopes.push(HashMap::new());
                self.scan_labels(body, at + 1).map_err(here)
            }
            Stmt::Close => {
                self.scopes.pop();
                Ok(())
            }
            Stmt::Label(name) => {
                if let Some(Entity::Label(label)) = self.lookup(name).cloned() {
                    self.labels[label] = Some(self.pc());
                }
                Ok(())
            }
            Stmt::Reg {
                name,
                ty,
                vec,
                count,
            } => self.registers(name, *ty, *vec, *count).map_err(here),
            Stmt::Var(var) => self
                .variable(var)
                .map_err(|m| PtxError::new(var.line, var.column, m)),
            Stmt::BranchTargets { .. } | Stmt::CallPrototype { .. } => Ok(()),
            Stmt::Inst(inst) => self.instruction(inst),
        }
    }

    fn instruction(&mut self, inst: &ast::Inst<'t>) -> std::result::Result<(), PtxError> {
        self.line = inst.line;
        let place =
            |m: String| PtxError::new(inst.line, inst.column, m).in_instruction(inst.opcode);
        self.guard = match inst.guard {
            None => P_TRUE,
            Some((name, negated)) => self.pred_named(name).map_err(place)? ^ u32::from(negated),
        };
        let mut mods = Mods::new(inst.opcode);
        self.select(&mut mods, &inst.operands).map_err(place)?;
        mods.done().map_err(place)
    }

    /// Labels and tables of the scope that starts at `from`, so that forward references resolve.
    fn scan_labels(&mut self, body: &[Stmt<'t>], from: usize) -> Result<()> {
        let mut open = 0u32;
        for stmt in &body[from..] {
            match stmt {
                Stmt::Open => open += 1,
                Stmt::Close if open == 0 => break,
                Stmt::Close => open -= 1,
                Stmt::Label(name) if open == 0 => {
                    self.labels.push(None);
                    self.define(name, Entity::Label(self.labels.len() - 1))?;
                }
                Stmt::BranchTargets { label, targets } if open == 0 => {
                    self.define(label, Entity::Table(targets.clone()))?;
                }
                Stmt::CallPrototype {
                    label,
                    params,
                    rets,
                } if open == 0 => {
                    let proto = Func {
                        name: label,
                        entry: false,
                        params: params.clone(),
                        rets: rets.clone(),
                        body: None,
                        maxntid: None,
                        reqntid: None,
                        line: self.line,
                        column: 0,
                    };
                    self.protos.push(proto);
                    self.define(label, Entity::Proto(self.protos.len() - 1))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn registers(&mut self, name: &str, ty: Ty, vec: u32, count: Option<u32>) -> Result<()> {
        let Some(count) = count else {
            if vec == 1 {
                return self.register(name, ty);
            }
            return (0..vec as usize).try_for_each(|i| {
                self.register(&format!("{name}.{}", ["x", "y", "z", "w"][i]), ty)
            });
        };
        (0..count).try_for_each(|i| self.register(&format!("{name}{i}"), ty))
    }

    pub(super) fn register(&mut self, name: &str, ty: Ty) -> Result<()> {
        let entity = match ty {
            Ty::Pred => Entity::Pred(self.b.new_pred()),
            _ => Entity::Reg {
                r: self.b.new_rows(ty.rows()),
                ty,
            },
        };
        self.define(name, entity)
    }

    fn variable(&mut self, var: &Var<'t>) -> Result<()> {
        let entity = match var.space {
            VarSpace::Mem(Space::Shared) => {
                Entity::Shared(self.b.place_shared(var.bytes(), var.align)?)
            }
            VarSpace::Mem(Space::Local | Space::Param) => {
                let offset = self.b.place_local(var.bytes(), var.align)?;
                Entity::Local {
                    offset,
                    bytes: u32::try_from(var.bytes()).unwrap_or(u32::MAX),
                }
            }
            _ => {
                return Err(format!(
                    "`{}`: this space cannot be declared in a function",
                    var.name
                ));
            }
        };
        self.define(var.name, entity)
    }

    pub(super) fn define(&mut self, name: &str, entity: Entity<'t>) -> Result<()> {
        let Some(scope) = self.scopes.last_mut() else {
            return Err("`}` without `{`".to_owned());
        };
        match scope.insert(name.to_owned(), entity) {
            Some(_) if name != "_" => Err(format!("`{name}` is declared twice")),
            _ => Ok(()),
        }
    }

    pub(super) fn lookup(&self, name: &str) -> Option<&Entity<'t>> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name))
    }

    pub(super) fn pc(&self) -> u32 {
        u32::try_from(self.b.code.insts.len()).unwrap_or(u32::MAX)
    }

    /// Appends an instruction under the current guard.
    pub(super) fn emit(&mut self, op: Op) -> &mut Inst {
        let code = &mut self.b.code;
        code.lines.push(self.line);
        code.insts.push(Inst {
            op,
            guard: self.guard,
            d: NONE,
            a: NONE,
            b: NONE,
            c: NONE,
            p: P_TRUE,
            q: P_TRUE,
            s: P_TRUE,
            imm: 0,
        });
        let last = code.insts.len() - 1;
        &mut code.insts[last]
    }

    /// Appends a computation with up to three sources.
    pub(super) fn alu(&mut self, f: AluFn, d: R, sources: &[R]) -> &mut Inst {
        let inst = self.emit(Op::Alu(f));
        inst.d = d;
        for (field, source) in [&mut inst.a, &mut inst.b, &mut inst.c]
            .into_iter()
            .zip(sources)
        {
            *field = *source;
        }
        inst
    }

    /// Appends a jump to a label.
    pub(super) fn jump(&mut self, label: &str) -> Result<()> {
        let Some(Entity::Label(label)) = self.lookup(label).cloned() else {
            return Err(format!("no label `{label}`"));
        };
        self.fixups.push((self.b.code.insts.len(), label));
        self.emit(Op::Bra);
        Ok(())
    }

    /// Appends an indirect jump: its targets are label numbers until `resolve`.
    pub(super) fn jump_table(&mut self, index: R, table: &str) -> Result<()> {
        let Some(Entity::Table(names)) = self.lookup(table).cloned() else {
            return Err(format!("no branch table `{table}`"));
        };
        let mut targets = Vec::new();
        for name in names {
            match self.lookup(name) {
                Some(Entity::Label(label)) => targets.push(u32::try_from(*label).unwrap_or(0)),
                _ => return Err(format!("no label `{name}`")),
            }
        }
        self.fixups.push((self.b.code.insts.len(), usize::MAX));
        self.emit(Op::Brx(targets.into())).a = index;
        Ok(())
    }

    fn resolve(&mut self) -> Result<()> {
        let pc =
            |label: usize| self.labels[label].ok_or_else(|| "a label without a place".to_owned());
        for &(at, label) in &self.fixups {
            let inst = &mut self.b.code.insts[at];
            match &mut inst.op {
                Op::Brx(targets) => {
                    for target in targets {
                        *target = pc(*target as usize)?;
                    }
                }
                _ => inst.imm = u64::from(pc(label)?),
            }
        }
        Ok(())
    }

    pub(super) fn temp(&mut self, ty: Ty) -> R {
        self.b.new_rows(ty.rows())
    }

    /// A source of type `ty`: register, special register, literal or symbol address.
    pub(super) fn src(&mut self, operand: &Operand<'t>, ty: Ty) -> Result<R> {
        match operand {
            Operand::Name(name) => self.named(name, 0, ty),
            Operand::Offset(name, offset) => self.named(name, *offset, ty),
            Operand::Int(_) | Operand::F32(_) | Operand::F64(_) => {
                let bits = literal(operand, ty)?;
                Ok(self.b.constant(ConstValue::Bits(bits), ty.rows()))
            }
            _ => Err("this operand must be a register or a constant".to_owned()),
        }
    }

    fn named(&mut self, name: &str, offset: i64, ty: Ty) -> Result<R> {
        let at = |o: u32| ConstValue::Bits(u64::from(o).wrapping_add_signed(offset));
        match self.lookup(name).cloned() {
            Some(Entity::Reg { r, ty: reg }) if offset == 0 => self.fit(r, reg, ty, name),
            Some(Entity::Local { offset, .. } | Entity::Shared(offset) | Entity::Param(offset)) => {
                Ok(self.b.constant(at(offset), ty.rows()))
            }
            Some(_) => Err(format!("`{name}` cannot be used here")),
            None => {
                if let Some((special, own)) = super::special::parse(name) {
                    let r = self.temp(own);
                    self.emit(Op::Special(special)).d = r;
                    return self.widen(r, own, ty);
                }
                if name.starts_with('%') {
                    return Err(format!("`{name}` is not declared"));
                }
                self.b.symbol(name, offset, ty.rows())
            }
        }
    }

    /// A register as type `ty`: a wider one gives its low bits.
    fn fit(&mut self, r: R, reg: Ty, ty: Ty, name: &str) -> Result<R> {
        if reg.rows() == ty.rows() {
            return Ok(r);
        }
        if reg.rows() == 2 && ty.rows() == 1 {
            let low = self.temp(Ty::U32);
            self.alu(un!(u64 => u32, |x| (x & 0xffff_ffff) as u32), low, &[r]);
            return Ok(low);
        }
        Err(format!(
            "`{name}` has {} bits, {} are needed",
            reg.bytes() * 8,
            ty.bytes() * 8
        ))
    }

    fn widen(&mut self, r: R, own: Ty, ty: Ty) -> Result<R> {
        if own.rows() >= ty.rows() {
            return self.fit(r, own, ty, "%");
        }
        let wide = self.temp(Ty::U64);
        self.alu(un!(u32 => u64, |x| u64::from(x)), wide, &[r]);
        Ok(wide)
    }

    /// The register of a destination of type `ty`, with the same number of rows.
    pub(super) fn dst(&mut self, operand: &Operand<'t>, ty: Ty) -> Result<R> {
        match operand {
            Operand::Name("_") => Ok(self.temp(ty)),
            Operand::Name(name) => match self.lookup(name) {
                Some(Entity::Reg { r, ty: reg }) if reg.rows() == ty.rows() => Ok(*r),
                Some(Entity::Reg { ty: reg, .. }) => Err(format!(
                    "`{name}` has {} bits, the result {}",
                    reg.bytes() * 8,
                    ty.bytes() * 8
                )),
                _ => Err(format!("`{name}` is not a register")),
            },
            _ => Err("the destination must be a register".to_owned()),
        }
    }

    /// Runs `emit` with a destination of type `ty`; a wider register is then extended into.
    pub(super) fn dst_extended(
        &mut self,
        operand: &Operand<'t>,
        ty: Ty,
        emit: impl FnOnce(&mut Self, R) -> Result<()>,
    ) -> Result<()> {
        if let Operand::Name(name) = operand
            && let Some(&Entity::Reg { r, ty: reg }) = self.lookup(name)
            && reg.rows() == 2
            && ty.rows() == 1
        {
            let narrow = self.temp(Ty::U32);
            emit(self, narrow)?;
            let extend = match ty {
                Ty::S32 | Ty::S16 | Ty::S8 => un!(i32 => i64, |x| i64::from(x)),
                _ => un!(u32 => u64, |x| u64::from(x)),
            };
            self.alu(extend, r, &[narrow]);
            return Ok(());
        }
        let r = self.dst(operand, ty)?;
        emit(self, r)
    }

    pub(super) fn pred_named(&self, name: &str) -> Result<P> {
        match self.lookup(name) {
            Some(Entity::Pred(p)) => Ok(*p),
            _ => Err(format!("`{name}` is not a predicate")),
        }
    }

    /// A predicate source: `p`, `!p`, or a constant.
    pub(super) fn pred(&mut self, operand: &Operand<'t>) -> Result<P> {
        match operand {
            Operand::Name(name) => self.pred_named(name),
            Operand::Not(name) => Ok(self.pred_named(name)? ^ 1),
            Operand::Int(0) => Ok(P_TRUE ^ 1),
            Operand::Int(_) => Ok(P_TRUE),
            _ => Err("this operand must be a predicate".to_owned()),
        }
    }

    /// A predicate destination; `_` is a sink.
    pub(super) fn pred_dst(&self, operand: &Operand<'t>) -> Result<P> {
        match operand {
            Operand::Name("_") => Ok(P_TRUE),
            Operand::Name(name) => self.pred_named(name),
            _ => Err("this destination must be a predicate".to_owned()),
        }
    }

    /// The type a register was declared with.
    pub(super) fn declared(&self, operand: &Operand<'t>) -> Option<Ty> {
        match operand {
            Operand::Name(name) => match self.lookup(name)? {
                Entity::Reg { ty, .. } => Some(*ty),
                Entity::Pred(_) => Some(Ty::Pred),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Bits of a literal in a type.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]
fn literal(operand: &Operand<'_>, ty: Ty) -> Result<u64> {
    use crate::exec::num::{Bf16, F16};
    let as_float = |x: f64| match ty {
        Ty::F64 => x.to_bits(),
        Ty::F16 => u64::from(F16::of_f64(x).0),
        Ty::Bf16 => u64::from(Bf16::of_f64(x).0),
        _ => u64::from((x as f32).to_bits()),
    };
    Ok(match operand {
        Operand::Int(v) if matches!(ty, Ty::F32 | Ty::F64 | Ty::F16 | Ty::Bf16) => {
            as_float(*v as i64 as f64)
        }
        Operand::Int(v) if ty.rows() == 1 => u64::from(*v as u32),
        Operand::Int(v) => *v,
        Operand::F32(bits) if ty == Ty::F64 => f64::from(f32::from_bits(*bits)).to_bits(),
        Operand::F32(bits) => u64::from(*bits),
        Operand::F64(bits) if ty.float() => as_float(f64::from_bits(*bits)),
        Operand::F64(bits) if ty.bytes() == 8 => *bits,
        _ => return Err("a literal of another type is needed".to_owned()),
    })
}
