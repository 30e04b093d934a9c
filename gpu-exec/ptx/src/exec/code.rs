//! Compiled code: what the lowering produces and the warps execute.
#![forbid(unsafe_code)]

use super::alu::AluFn;
use super::regs::{P, R};

/// Window of generic addresses for a block's shared memory: no host mapping can be there.
pub(crate) const SHARED_BASE: u64 = 0x0100_0000_0000_0000;
/// Window of generic addresses for a thread's local memory.
pub(crate) const LOCAL_BASE: u64 = 0x0200_0000_0000_0000;
/// Window of generic addresses for the kernel's parameters.
pub(crate) const PARAM_BASE: u64 = 0x0300_0000_0000_0000;
/// "Addresses" of device functions: this plus 16 times the function's number.
pub(crate) const FUNC_BASE: u64 = 0x0400_0000_0000_0000;
/// Bytes of each window.
pub(crate) const WINDOW_BYTES: u64 = 0x0100_0000_0000_0000;

/// One instruction. Which operand fields mean something depends on `op`.
#[derive(Debug, Clone)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    /// Lanes in which it runs.
    pub(crate) guard: P,
    pub(crate) d: R,
    pub(crate) a: R,
    pub(crate) b: R,
    pub(crate) c: R,
    /// First and second destination predicate, source predicate.
    pub(crate) p: P,
    pub(crate) q: P,
    pub(crate) s: P,
    pub(crate) imm: u64,
}

/// What an instruction does.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Computes `d` or `p` from `a`, `b`, `c`.
    Alu(AluFn),
    /// Jumps to `imm` in the lanes of the guard.
    Bra,
    /// Jumps to entry `a` of the table.
    Brx(Box<[u32]>),
    /// Calls the code at `imm`; the return address goes to row `d`.
    Call,
    /// Calls the function whose address is in `a`.
    CallIndirect,
    /// Returns to the address in row `a`.
    Ret,
    Exit,
    Trap,
    /// Special register to `d`.
    Special(Special),
    Ld(Box<Mem>),
    St(Box<Mem>),
    /// Copies `imm` bytes inside a thread's local memory.
    CopyLocal {
        to: u32,
        from: u32,
    },
    Atom(Box<Atom>),
    /// Copies `imm` bytes from global `[b]` to shared `[a]`.
    CpAsync(Box<CpAsync>),
    Bar(BarOp),
    /// `bar.warp.sync a`
    WarpSync,
    Shfl {
        mode: ShflMode,
        sync: bool,
    },
    Vote {
        mode: VoteMode,
        sync: bool,
    },
    Match {
        all: bool,
        wide: bool,
    },
    Redux(Redux),
    Elect,
    ActiveMask,
    Fence,
    /// Spin hint: lets other lanes and warps run.
    Nanosleep,
    /// `vprintf(format in local [a], arguments in local [b])`
    Vprintf,
    AssertFail,
    /// `d = malloc(a)`
    Malloc,
    /// `free(a)`
    Free,
    Mma(Box<Mma>),
    LdMatrix(Box<LdMatrix>),
    /// Fetches from the texture `a`.
    Tex(Box<Tex>),
    /// Loads from or stores to the surface `a`.
    Surf(Box<Surf>),
    /// A property of the texture or surface `a`, to `d`.
    TexQuery(TexQuery),
}

/// Space of a memory access after lowering: constants are global memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemSpace {
    Generic,
    Global,
    Shared,
    Local,
    /// The kernel's parameter image.
    Param,
}

/// A load or store: `count` elements of `bytes` each at `[a + imm]`.
#[derive(Debug, Clone)]
pub(crate) struct Mem {
    pub(crate) space: MemSpace,
    /// The address register has 64 bits.
    pub(crate) wide: bool,
    /// Bytes of one element: 1, 2, 4, 8, 16.
    pub(crate) bytes: u32,
    /// Sign-extend a 1- or 2-byte element to its register.
    pub(crate) signed: bool,
    /// Registers of the elements; None is a sink.
    pub(crate) regs: Vec<Option<R>>,
    /// Spin loops are made of these.
    pub(crate) volatile: bool,
    /// Number of this access among the kernel's: names its range cache.
    pub(crate) cache: u32,
}

/// An atomic: `d = [a + imm]; [a + imm] = f(d, b, c)`.
#[derive(Debug, Clone)]
pub(crate) struct Atom {
    pub(crate) space: MemSpace,
    pub(crate) wide: bool,
    pub(crate) kind: AtomKind,
    pub(crate) ty: AtomTy,
    /// False for `red`.
    pub(crate) returns: bool,
    pub(crate) cache: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomKind {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Exch,
    Cas,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomTy {
    U16,
    U32,
    S32,
    U64,
    S64,
    F32,
    F64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
}

/// Addresses of an asynchronous copy; `size` holds the bytes to read, the rest is zero.
#[derive(Debug, Clone)]
pub(crate) struct CpAsync {
    pub(crate) a_wide: bool,
    pub(crate) size: Option<R>,
    pub(crate) a_offset: i64,
    pub(crate) b_offset: i64,
    pub(crate) cache: u32,
}

/// A CTA barrier: id in `a`, thread count in `b` if `counted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BarOp {
    pub(crate) counted: bool,
    pub(crate) kind: BarKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    /// `d` = number of threads for which `s` holds.
    Popc,
    /// `p` = whether `s` holds for all.
    And,
    /// `p` = whether `s` holds for any.
    Or,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redux {
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
    And,
    Or,
    Xor,
    MinF { abs: bool, nan: bool },
    MaxF { abs: bool, nan: bool },
}

/// `mma.sync.m16n8kK`: D (d) = A (a) x B (b) + C (c).
#[derive(Debug, Clone)]
pub(crate) struct Mma {
    pub(crate) k: u32,
    pub(crate) input: MmaIn,
    /// C and D are f16 pairs, else f32 (or s32 for integers).
    pub(crate) half_out: bool,
    pub(crate) d: Vec<R>,
    pub(crate) a: Vec<R>,
    pub(crate) b: Vec<R>,
    pub(crate) c: Vec<R>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MmaIn {
    F16,
    Bf16,
    Tf32,
    I8 { a_signed: bool, b_signed: bool },
}

#[derive(Debug, Clone)]
pub(crate) struct LdMatrix {
    pub(crate) transpose: bool,
    pub(crate) wide: bool,
    pub(crate) generic: bool,
    pub(crate) d: Vec<R>,
}

/// Where in a texture or surface.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// A layer's number, where there are layers.
    pub(crate) layer: Option<R>,
    /// One to three.
    pub(crate) coordinates: Vec<R>,
}

/// A texture fetch: four registers get what is there.
#[derive(Debug, Clone)]
pub(crate) struct Tex {
    pub(crate) place: Place,
    /// Coordinates are numbers of texels, else floating-point.
    pub(crate) is_indexed: bool,
    /// `tld4`: this channel of four neighbours, instead of all channels of one place.
    pub(crate) gathers: Option<u8>,
    pub(crate) d: [R; 4],
}

/// A surface access: elements of `bytes` each, the first coordinate in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Surf {
    pub(crate) place: Place,
    pub(crate) bytes: u32,
    pub(crate) stores: bool,
    pub(crate) outside: Outside,
    pub(crate) regs: Vec<R>,
}

/// What a surface access outside of the surface does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outside {
    Trap,
    Clamp,
    Zero,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TexQuery {
    Width,
    Height,
    Depth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    Clock,
    Clock64,
    ClockHi,
    GlobalTimer,
    GlobalTimerLo,
    GlobalTimerHi,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicSmem,
    TotalSmem,
    /// Halves of the address of the grid barrier's workspace.
    EnvReg(u8),
    Zero,
    One,
}

/// Where the value of a constant register comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ConstValue {
    Bits(u64),
    /// Address of a module variable by its number.
    Global {
        index: u32,
        addend: i64,
    },
    /// Shared-space offset of the dynamic shared memory.
    DynamicShared {
        addend: i64,
    },
}

/// A constant register: row and number of rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConstReg {
    pub(crate) value: ConstValue,
    pub(crate) row: R,
    pub(crate) rows: u32,
}

/// A kernel with all functions that it may call.
#[derive(Debug, Default)]
pub(crate) struct Code {
    pub(crate) insts: Vec<Inst>,
    /// PTX line of each instruction.
    pub(crate) lines: Vec<u32>,
    pub(crate) entry: u32,
    pub(crate) consts: Vec<ConstReg>,
    pub(crate) rows: u32,
    /// First row and number of rows of every register, while the code is being made.
    pub(crate) registers: Vec<(R, u32)>,
    pub(crate) preds: u32,
    /// Range caches of global accesses.
    pub(crate) caches: u32,
    /// Entry points for indirect calls: (function number, pc, row of its return address).
    pub(crate) functions: Vec<(u32, u32, R)>,
    pub(crate) shared_static_bytes: u32,
    /// Offset of the dynamic shared memory: the static bytes, aligned.
    pub(crate) dynamic_shared_offset: u32,
    pub(crate) local_bytes: u32,
}
