//! What the parser produces: names unresolved, types known.
#![forbid(unsafe_code)]

/// A fundamental type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[rustfmt::skip]
pub(crate) enum Ty {
    B8, B16, B32, B64, B128,
    U8, U16, U32, U64,
    S8, S16, S32, S64,
    F16, F16x2, Bf16, Bf16x2, Tf32, F32, F64,
    F32x2, U16x2, S16x2,
    Pred,
}

impl Ty {
    #[rustfmt::skip]
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "b8" => Self::B8, "b16" => Self::B16, "b32" => Self::B32, "b64" => Self::B64, "b128" => Self::B128,
            "u8" => Self::U8, "u16" => Self::U16, "u32" => Self::U32, "u64" => Self::U64,
            "s8" => Self::S8, "s16" => Self::S16, "s32" => Self::S32, "s64" => Self::S64,
            "f16" => Self::F16, "f16x2" => Self::F16x2, "bf16" => Self::Bf16, "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32, "f32" => Self::F32, "f64" => Self::F64,
            "f32x2" => Self::F32x2, "u16x2" => Self::U16x2, "s16x2" => Self::S16x2,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::B8 | Self::U8 | Self::S8 | Self::Pred => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 2,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 | Self::F32x2 => 8,
            Self::B128 => 16,
            _ => 4,
        }
    }

    /// Rows of 32 lanes x 4 bytes that a register of this type takes.
    pub(crate) fn rows(self) -> u32 {
        self.bytes().div_ceil(4)
    }

    pub(crate) fn signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn float(self) -> bool {
        matches!(
            self,
            Self::F16
                | Self::F16x2
                | Self::Bf16
                | Self::Bf16x2
                | Self::Tf32
                | Self::F32
                | Self::F64
        )
    }
}

/// A state space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

impl Space {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "global" => Self::Global,
            "const" => Self::Const,
            "shared" | "shared::cta" | "shared::cluster" => Self::Shared,
            "local" => Self::Local,
            "param" | "param::entry" | "param::func" => Self::Param,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Ast<'t> {
    pub(crate) version: (u32, u32),
    pub(crate) target: &'t str,
    pub(crate) vars: Vec<Var<'t>>,
    pub(crate) funcs: Vec<Func<'t>>,
}

/// A declared variable or parameter outside of the register space.
#[derive(Debug, Clone)]
pub(crate) struct Var<'t> {
    pub(crate) name: &'t str,
    pub(crate) space: VarSpace,
    pub(crate) ty: Ty,
    pub(crate) align: u32,
    /// Number of elements (vector width included); 0 for an array without a size.
    pub(crate) count: u64,
    pub(crate) init: Option<Init<'t>>,
    pub(crate) external: bool,
    pub(crate) managed: bool,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Var<'_> {
    /// Saturating: a size that does not fit is refused where the variable is placed.
    pub(crate) fn bytes(&self) -> u64 {
        self.count.saturating_mul(u64::from(self.ty.bytes()))
    }
}

/// Space of a variable; `.reg` occurs for parameters of `.func`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VarSpace {
    Mem(Space),
    Reg,
}

#[derive(Debug, Clone)]
pub(crate) enum Init<'t> {
    Int(u64),
    F32(u32),
    F64(u64),
    /// Address of a symbol; `generic` makes it a generic address, `mask` picks a byte (`0xFF00(sym)`).
    Sym {
        name: &'t str,
        addend: i64,
        generic: bool,
        mask: Option<u64>,
    },
    List(Vec<Self>),
}

#[derive(Debug, Clone)]
pub(crate) struct Func<'t> {
    pub(crate) name: &'t str,
    pub(crate) entry: bool,
    pub(crate) params: Vec<Var<'t>>,
    pub(crate) rets: Vec<Var<'t>>,
    /// None for a prototype.
    pub(crate) body: Option<Vec<Stmt<'t>>>,
    pub(crate) maxntid: Option<[u32; 3]>,
    pub(crate) reqntid: Option<[u32; 3]>,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

#[derive(Debug, Clone)]
pub(crate) enum Stmt<'t> {
    /// `{`: a scope of names.
    Open,
    /// `}`
    Close,
    Label(&'t str),
    /// `.reg`: `count` is for `%r<n>`, `vec` for `.v2`/`.v4`.
    Reg {
        name: &'t str,
        ty: Ty,
        vec: u32,
        count: Option<u32>,
    },
    Var(Var<'t>),
    Inst(Box<Inst<'t>>),
    BranchTargets {
        label: &'t str,
        targets: Vec<&'t str>,
    },
    CallPrototype {
        label: &'t str,
        params: Vec<Var<'t>>,
        rets: Vec<Var<'t>>,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Inst<'t> {
    pub(crate) guard: Option<(&'t str, bool)>,
    /// Opcode as written, with modifiers.
    pub(crate) opcode: &'t str,
    pub(crate) operands: Vec<Operand<'t>>,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand<'t> {
    /// Register, symbol or label; a component suffix (`%tid.x`) is part of the name.
    Name(&'t str),
    /// `!p`
    Not(&'t str),
    /// `sym+4`
    Offset(&'t str, i64),
    Int(u64),
    F32(u32),
    F64(u64),
    /// `[a+4]`
    Address(Box<Self>, i64),
    /// `[a, {x, y}]`: a texture or surface, and coordinates.
    Texel(Box<Self>, Vec<Self>),
    /// `{a, b}`
    Vector(Vec<Self>),
    /// `(a, b)` of a call.
    List(Vec<Self>),
    /// `p|q`
    Pair(Box<Self>, Box<Self>),
}
