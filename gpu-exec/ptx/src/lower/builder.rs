//! The code of a kernel while functions are added to it: registers, constants, variables' places.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::Symbols;
use super::func::Result;
use crate::exec::code::{Code, ConstReg, ConstValue, FUNC_BASE};
use crate::exec::regs::{P, R};
use crate::parse::ast::{Space, VarSpace};

/// The code of a kernel while its functions are added to it.
pub(super) struct Builder<'m, 't> {
    pub(super) syms: &'m Symbols<'t>,
    pub(super) code: Code,
    consts: HashMap<(ConstValue, u32), R>,
    /// Shared variables of the module that this kernel uses.
    shared: HashMap<&'t str, u32>,
    /// Entry pc and return-address row of the functions that are already in.
    pub(super) entries: HashMap<&'t str, (u32, R)>,
    dynamic_shared_align: u32,
}

impl<'m, 't> Builder<'m, 't> {
    pub(super) fn new(syms: &'m Symbols<'t>) -> Self {
        Self {
            syms,
            code: Code::default(),
            consts: HashMap::new(),
            shared: HashMap::new(),
            entries: HashMap::new(),
            dynamic_shared_align: 16,
        }
    }

    pub(super) fn finish(mut self) -> Code {
        self.code.dynamic_shared_offset = self
            .code
            .shared_static_bytes
            .next_multiple_of(self.dynamic_shared_align);
        self.code
    }

    pub(super) fn constant(&mut self, value: ConstValue, rows: u32) -> R {
        if let Some(&row) = self.consts.get(&(value, rows)) {
            return row;
        }
        let row = self.new_rows(rows);
        self.code.consts.push(ConstReg { value, row, rows });
        self.consts.insert((value, rows), row);
        row
    }

    pub(super) fn new_rows(&mut self, rows: u32) -> R {
        let row = self.code.rows;
        self.code.rows += rows;
        // A 128-bit register is used as two of 64 bits.
        let width = rows.min(2);
        self.code
            .registers
            .extend((0..rows / width).map(|i| (row + i * width, width)));
        row
    }

    pub(super) fn place_shared(&mut self, bytes: u64, align: u32) -> Result<u32> {
        let at = self.code.shared_static_bytes.next_multiple_of(align);
        let end = u64::from(at) + bytes;
        if end > 1 << 20 {
            return Err("more shared memory than any device has".to_owned());
        }
        self.code.shared_static_bytes = u32::try_from(end).unwrap_or(u32::MAX);
        Ok(at)
    }

    pub(super) fn place_local(&mut self, bytes: u64, align: u32) -> Result<u32> {
        let at = self.code.local_bytes.next_multiple_of(align);
        let end = u64::from(at) + bytes;
        if end > 512 << 10 {
            return Err("more local memory than a thread can have".to_owned());
        }
        self.code.local_bytes = u32::try_from(end).unwrap_or(u32::MAX);
        Ok(at)
    }

    /// The constant register with the address of a module-scope symbol, in its own space.
    pub(super) fn symbol(&mut self, name: &str, addend: i64, rows: u32) -> Result<R> {
        if let Some(number) = self.syms.function_number(name) {
            let value = ConstValue::Bits(FUNC_BASE + 16 * u64::from(number));
            return Ok(self.constant(value, 2));
        }
        if let Some(index) = self.syms.global_index(name) {
            if rows != 2 {
                return Err(format!("the address of `{name}` has 64 bits"));
            }
            return Ok(self.constant(ConstValue::Global { index, addend }, rows));
        }
        let Some(var) = self.syms.var(name) else {
            return Err(format!("`{name}` is not declared"));
        };
        let value = match var.space {
            VarSpace::Mem(Space::Shared) if var.external || var.count == 0 => {
                self.dynamic_shared_align = self.dynamic_shared_align.max(var.align);
                ConstValue::DynamicShared { addend }
            }
            VarSpace::Mem(Space::Shared) => {
                let at = match self.shared.get(var.name) {
                    Some(&at) => at,
                    None => {
                        let at = self.place_shared(var.bytes(), var.align)?;
                        self.shared.insert(var.name, at);
                        at
                    }
                };
                ConstValue::Bits(u64::from(at).wrapping_add_signed(addend))
            }
            _ => {
                let at = self.place_local(var.bytes(), var.align)?;
                ConstValue::Bits(u64::from(at).wrapping_add_signed(addend))
            }
        };
        Ok(self.constant(value, rows))
    }

    pub(super) fn new_pred(&mut self) -> P {
        self.code.preds += 1;
        self.code.preds * 2
    }
}
