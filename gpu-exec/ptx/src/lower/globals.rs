//! Initial images of module-scope variables.
#![forbid(unsafe_code)]

use super::Symbols;
use crate::api::GlobalInfo;
use crate::error::PtxError;
use crate::exec::code::FUNC_BASE;
use crate::exec::num::{Bf16, F16};
use crate::parse::ast::{Init, Ty, Var};

/// A variable with the places in its image that hold addresses.
#[derive(Debug)]
pub(crate) struct Global {
    pub(crate) info: GlobalInfo,
    pub(crate) pieces: Vec<Piece>,
}

/// An address (or one byte of it) inside an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
    /// Number of the variable whose address it is.
    pub(crate) global: u32,
    pub(crate) addend: i64,
    /// Right shift applied to the address (`0xFF00(sym)` takes byte 1).
    pub(crate) shift: u32,
}

/// Bigger images are refused: an initialized array is spelled out in the text.
const BYTES_MAX: u64 = 1 << 34;

pub(super) fn layout(syms: &Symbols<'_>) -> Result<Vec<Global>, PtxError> {
    syms.globals
        .iter()
        .filter_map(|name| syms.var(name))
        .map(|var| global(syms, var))
        .collect()
}

fn global(syms: &Symbols<'_>, var: &Var<'_>) -> Result<Global, PtxError> {
    let place = |m: String| PtxError::new(var.line, var.column, m);
    if var.bytes() > BYTES_MAX {
        return Err(place(format!("`{}` is too large", var.name)));
    }
    let mut image = Image {
        syms,
        ty: var.ty,
        bytes: Vec::new(),
        pieces: Vec::new(),
    };
    if let Some(init) = &var.init {
        image.put(init).map_err(place)?;
    }
    if image.bytes.len() as u64 > var.bytes() {
        return Err(place(format!(
            "`{}` has more initial values than elements",
            var.name
        )));
    }
    Ok(Global {
        info: GlobalInfo::of(var, image.bytes),
        pieces: image.pieces,
    })
}

struct Image<'s, 't> {
    syms: &'s Symbols<'t>,
    ty: Ty,
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
}

impl Image<'_, '_> {
    fn put(&mut self, init: &Init<'_>) -> Result<(), String> {
        let size = self.ty.bytes() as usize;
        match init {
            Init::List(items) => return items.iter().try_for_each(|item| self.put(item)),
            Init::Sym {
                name, addend, mask, ..
            } => return self.address(name, *addend, *mask),
            Init::Int(v) => {
                let bits = self.int(*v);
                self.bytes
                    .extend_from_slice(&bits.to_le_bytes()[..size.min(16)]);
            }
            Init::F32(bits) if self.ty == Ty::F64 => {
                self.bytes
                    .extend_from_slice(&f64::from(f32::from_bits(*bits)).to_le_bytes());
            }
            Init::F32(bits) => self
                .bytes
                .extend_from_slice(&bits.to_le_bytes()[..size.min(4)]),
            Init::F64(bits) => self.double(*bits),
        }
        Ok(())
    }

    #[allow(
        clippy::cast_possible_wrap,
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation
    )]
    fn int(&self, v: u64) -> u128 {
        match self.ty {
            Ty::F64 => u128::from((v as i64 as f64).to_bits()),
            Ty::F32 => u128::from((v as i64 as f32).to_bits()),
            _ => u128::from(v),
        }
    }

    #[allow(clippy::cast_possible_truncation)]
    fn double(&mut self, bits: u64) {
        let x = f64::from_bits(bits);
        match self.ty {
            Ty::F32 => self.bytes.extend_from_slice(&(x as f32).to_le_bytes()),
            Ty::F16 => self
                .bytes
                .extend_from_slice(&F16::of_f64(x).0.to_le_bytes()),
            Ty::Bf16 => self
                .bytes
                .extend_from_slice(&Bf16::of_f64(x).0.to_le_bytes()),
            _ => self
                .bytes
                .extend_from_slice(&bits.to_le_bytes()[..self.ty.bytes().min(8) as usize]),
        }
    }

    fn address(&mut self, name: &str, addend: i64, mask: Option<u64>) -> Result<(), String> {
        let shift = mask.map_or(0, |m| m.trailing_zeros().min(56));
        let bytes = self.ty.bytes();
        if let Some(number) = self.syms.function_number(name) {
            let value = (FUNC_BASE + 16 * u64::from(number)) >> shift;
            self.bytes
                .extend_from_slice(&value.to_le_bytes()[..bytes.min(8) as usize]);
            return Ok(());
        }
        let Some(global) = self.syms.global_index(name) else {
            return Err(format!(
                "`{name}` is no variable whose address can be an initial value"
            ));
        };
        if mask.is_none() && bytes != 8 {
            return Err(format!("the address of `{name}` has 64 bits"));
        }
        self.pieces.push(Piece {
            offset: self.bytes.len() as u64,
            bytes,
            global,
            addend,
            shift,
        });
        self.bytes.resize(self.bytes.len() + bytes as usize, 0);
        Ok(())
    }
}
