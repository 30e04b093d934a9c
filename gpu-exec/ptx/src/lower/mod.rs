//! Lowers a parsed module: lays out variables and parameters, compiles every kernel.
#![forbid(unsafe_code)]

mod arith;
mod atomics;
mod bits;
mod builder;
mod call;
mod cmp;
mod control;
mod cvt;
mod float;
mod func;
mod globals;
mod half;
mod matrix;
mod memory;
mod mods;
mod regalloc;
mod select;
mod special;
mod texture;
mod warp;

use std::collections::HashMap;
use std::sync::Arc;

use crate::api::{GlobalInfo, KernelInfo, ParamInfo};
use crate::error::PtxError;
use crate::exec::code::Code;
use crate::parse::ast::{Ast, Func, Operand, Space, Stmt, Var, VarSpace};
use builder::Builder;
use func::Lower;
pub(crate) use func::NONE;
pub(crate) use globals::Global;

/// A compiled module.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) kernels: Vec<(KernelInfo, Arc<Code>)>,
    pub(crate) globals: Vec<Global>,
}

/// Compiles a parsed module.
pub(crate) fn compile(ast: &Ast<'_>) -> Result<Compiled, PtxError> {
    let syms = Symbols::new(ast)?;
    let globals = globals::layout(&syms)?;
    let mut kernels = Vec::new();
    let mut linked = std::collections::HashSet::new();
    for func in ast.funcs.iter().filter(|f| f.entry && f.body.is_some()) {
        kernels.push(kernel(&syms, func, &mut linked)?);
    }
    // Functions that no kernel reaches are compiled too: a bad instruction must not wait in them.
    for func in ast.funcs.iter().filter(|f| !f.entry && f.body.is_some()) {
        if linked.insert(func.name) {
            let mut builder = Builder::new(&syms);
            link(&syms, &mut builder, func, &mut linked)?;
        }
    }
    Ok(Compiled { kernels, globals })
}

fn kernel<'m, 't>(
    syms: &'m Symbols<'t>,
    func: &'m Func<'t>,
    linked: &mut std::collections::HashSet<&'t str>,
) -> Result<(KernelInfo, Arc<Code>), PtxError> {
    let place = |m: String| PtxError::new(func.line, func.column, m);
    let params = param_layout(func).map_err(place)?;
    let mut builder = Builder::new(syms);
    link(syms, &mut builder, func, linked)?;
    let mut code = builder.finish();
    let registers = regalloc::allocate(&mut code);
    let ntid = func.reqntid.or(func.maxntid);
    let max = ntid.map_or(1024, |n| {
        n.iter()
            .fold(1u32, |a, &b| a.saturating_mul(b))
            .clamp(1, 1024)
    });
    let info = KernelInfo {
        name: func.name.to_owned(),
        param_bytes: params.last().map_or(0, |p| p.offset_bytes + p.size_bytes),
        params,
        shared_static_bytes: code.shared_static_bytes,
        local_bytes: code.local_bytes,
        registers,
        max_threads_per_block: max,
        reqntid: func.reqntid,
    };
    Ok((info, Arc::new(code)))
}

/// Adds `root` to the builder, everything it may call first.
fn link<'m, 't>(
    syms: &'m Symbols<'t>,
    builder: &mut Builder<'m, 't>,
    root: &'m Func<'t>,
    linked: &mut std::collections::HashSet<&'t str>,
) -> Result<(), PtxError> {
    let mut order = Vec::new();
    visit(syms, root, &mut Vec::new(), &mut order)?;
    if order.len() > 1 || order.first().is_some_and(|f| !f.entry) {
        builder
            .place_local(syms.abi_bytes, 16)
            .map_err(|m| PtxError::new(root.line, root.column, m))?;
    }
    for func in order {
        Lower::run(builder, func)?;
        linked.insert(func.name);
    }
    let code = &mut builder.code;
    code.functions = builder
        .entries
        .iter()
        .filter_map(|(name, &(pc, row))| Some((syms.function_number(name)?, pc, row)))
        .collect();
    Ok(())
}

/// Depth-first, callees before callers: what runs at lower addresses runs first when
/// lanes diverge, so callees return to lanes that wait.
fn visit<'m, 't>(
    syms: &'m Symbols<'t>,
    func: &'m Func<'t>,
    path: &mut Vec<&'t str>,
    order: &mut Vec<&'m Func<'t>>,
) -> Result<(), PtxError> {
    if order.iter().any(|f| std::ptr::eq(*f, func)) {
        return Ok(());
    }
    if path.contains(&func.name) {
        let message = format!("`{}` calls itself: recursion is not supported", func.name);
        return Err(PtxError::new(func.line, func.column, message));
    }
    if path.len() > 200 {
        return Err(PtxError::new(
            func.line,
            func.column,
            "calls nested too deeply",
        ));
    }
    path.push(func.name);
    for stmt in func.body.iter().flatten() {
        let Stmt::Inst(inst) = stmt else { continue };
        if inst.opcode != "call" && !inst.opcode.starts_with("call.") {
            continue;
        }
        let target = inst.operands.iter().find_map(|o| match o {
            Operand::Name(name) => Some(*name),
            _ => None,
        });
        let Some(target) = target else { continue };
        if let Some(callee) = syms.func(target) {
            visit(syms, callee, path, order)?;
        } else if target.starts_with('%') {
            // Any function may be meant; one that is on the path would be recursion.
            let all: Vec<_> = syms
                .functions()
                .filter(|f| !path.contains(&f.name))
                .collect();
            for callee in all {
                visit(syms, callee, path, order)?;
            }
        }
    }
    path.pop();
    order.push(func);
    Ok(())
}

/// Module-scope names.
pub(crate) struct Symbols<'t> {
    vars: HashMap<&'t str, Var<'t>>,
    /// Names of `.global` and `.const` variables in order.
    globals: Vec<&'t str>,
    global_numbers: HashMap<&'t str, u32>,
    funcs: Vec<Func<'t>>,
    func_numbers: HashMap<&'t str, u32>,
    /// Bytes that any call passes through local memory.
    abi_bytes: u64,
}

impl<'t> Symbols<'t> {
    fn new(ast: &Ast<'t>) -> Result<Self, PtxError> {
        let mut syms = Self {
            vars: HashMap::new(),
            globals: Vec::new(),
            global_numbers: HashMap::new(),
            funcs: Vec::new(),
            func_numbers: HashMap::new(),
            abi_bytes: 0,
        };
        for var in &ast.vars {
            syms.add_var(var)?;
        }
        for func in &ast.funcs {
            syms.add_func(func)?;
        }
        Ok(syms)
    }

    fn add_var(&mut self, var: &Var<'t>) -> Result<(), PtxError> {
        if let Some(known) = self.vars.get_mut(var.name) {
            // An `.extern` declaration and its definition may both be there.
            if known.external {
                *known = var.clone();
            } else if !var.external {
                let message = format!("`{}` is declared twice", var.name);
                return Err(PtxError::new(var.line, var.column, message));
            }
            return Ok(());
        }
        if matches!(var.space, VarSpace::Mem(Space::Global | Space::Const)) {
            let number = u32::try_from(self.globals.len()).unwrap_or(u32::MAX);
            self.global_numbers.insert(var.name, number);
            self.globals.push(var.name);
        }
        self.vars.insert(var.name, var.clone());
        Ok(())
    }

    fn add_func(&mut self, func: &Func<'t>) -> Result<(), PtxError> {
        if let Ok(params) = call::layout(&func.params) {
            self.abi_bytes = self.abi_bytes.max(u64::from(params.bytes));
        }
        if let Ok(rets) = call::layout(&func.rets) {
            self.abi_bytes = self.abi_bytes.max(u64::from(rets.bytes));
        }
        for stmt in func.body.iter().flatten() {
            if let Stmt::CallPrototype { params, rets, .. } = stmt {
                for list in [params, rets] {
                    if let Ok(layout) = call::layout(list) {
                        self.abi_bytes = self.abi_bytes.max(u64::from(layout.bytes));
                    }
                }
            }
        }
        if let Some(&number) = self.func_numbers.get(func.name) {
            let known = &mut self.funcs[number as usize];
            if known.body.is_none() {
                *known = func.clone();
            } else if func.body.is_some() {
                let message = format!("`{}` is defined twice", func.name);
                return Err(PtxError::new(func.line, func.column, message));
            }
            return Ok(());
        }
        let number = u32::try_from(self.funcs.len()).unwrap_or(u32::MAX);
        self.func_numbers.insert(func.name, number);
        self.funcs.push(func.clone());
        Ok(())
    }

    fn var(&self, name: &str) -> Option<&Var<'t>> {
        self.vars.get(name)
    }

    fn global_index(&self, name: &str) -> Option<u32> {
        self.global_numbers.get(name).copied()
    }

    fn function_number(&self, name: &str) -> Option<u32> {
        self.func_numbers.get(name).copied()
    }

    /// A device function or kernel that has a body.
    fn func(&self, name: &str) -> Option<&Func<'t>> {
        let func = &self.funcs[*self.func_numbers.get(name)? as usize];
        (func.body.is_some() && !func.entry).then_some(func)
    }

    /// A device function as declared, body or not.
    fn func_head(&self, name: &str) -> Option<&Func<'t>> {
        Some(&self.funcs[*self.func_numbers.get(name)? as usize])
    }

    fn functions(&self) -> impl Iterator<Item = &Func<'t>> {
        self.funcs.iter().filter(|f| f.body.is_some() && !f.entry)
    }
}

/// Offsets of a kernel's parameters in its parameter image.
fn param_layout(func: &Func<'_>) -> Result<Vec<ParamInfo>, String> {
    Ok(call::layout(&func.params)?.items)
}

impl GlobalInfo {
    fn of(var: &Var<'_>, init: Vec<u8>) -> Self {
        Self {
            name: var.name.to_owned(),
            bytes: var.bytes(),
            align_bytes: u64::from(var.align),
            space: match var.space {
                VarSpace::Mem(Space::Const) => crate::api::GlobalSpace::Const,
                _ => crate::api::GlobalSpace::Global,
            },
            external: var.external,
            managed: var.managed,
            init,
        }
    }
}
