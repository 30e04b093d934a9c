//! What can go wrong: in the text, at load, and while a kernel runs.
#![forbid(unsafe_code)]

/// PTX text that cannot be compiled. Found by [`Module::parse`](crate::Module::parse), never at launch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ptx line {line}, column {column}: {message}{}", at_instruction(.instruction))]
pub struct PtxError {
    /// Line in the text, counted from 1; 0 when the error belongs to no line.
    pub line: u32,
    /// Column in the line, in bytes, counted from 1.
    pub column: u32,
    /// The instruction as written (opcode with its modifiers), empty outside instructions.
    pub instruction: String,
    /// What is wrong.
    pub message: String,
}

/// A module that cannot be placed in memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The caller's placement gave no address for this global.
    #[error("no address for global `{0}`")]
    NotPlaced(String),
    /// The caller's placement gave an address that the declared alignment forbids.
    #[error("address {addr:#x} of global `{name}` is not aligned to {align_bytes}")]
    Misaligned {
        /// The global.
        name: String,
        /// What the placement returned.
        addr: u64,
        /// What the module asks for.
        align_bytes: u64,
    },
}

/// Why and where a launch ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel {kernel}, ptx line {line}, block {block:?}, thread {thread:?}: {kind}")]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// The kernel that was launched.
    pub kernel: String,
    /// Line of the faulting instruction in the PTX text, 0 if none is to blame.
    pub line: u32,
    /// Block coordinates x, y, z.
    pub block: [u32; 3],
    /// Thread coordinates x, y, z inside the block.
    pub thread: [u32; 3],
}

/// The kinds of [`Fault`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// An access outside of every allocation, or a write to a read-only one.
    #[error("illegal address {addr:#x} ({bytes} bytes, {})", access(.write))]
    IllegalAddress {
        /// First byte of the access.
        addr: u64,
        /// Size of the access in bytes.
        bytes: u32,
        /// Whether it was a store or an atomic.
        write: bool,
    },
    /// An access that is not a multiple of its size.
    #[error("misaligned address {addr:#x} ({bytes} bytes)")]
    MisalignedAddress {
        /// First byte of the access.
        addr: u64,
        /// Size of the access in bytes.
        bytes: u32,
    },
    /// An instruction met operands that it has no meaning for (an indirect call to no function).
    #[error("illegal instruction: {0}")]
    IllegalInstruction(String),
    /// `trap` or `brkpt` ran.
    #[error("trap")]
    Trap,
    /// A device-side `assert` failed.
    #[error("{file}:{line}: {function}: assertion `{message}` failed")]
    Assert {
        /// The asserted expression.
        message: String,
        /// Source file.
        file: String,
        /// Source line.
        line: u32,
        /// Source function.
        function: String,
    },
    /// Every live thread of a block waits at a barrier that can never complete.
    #[error("barrier deadlock")]
    BarrierDeadlock,
    /// The launch's cancel flag was raised.
    #[error("cancelled")]
    Cancelled,
    /// Grid, block, shared memory or parameters that the kernel cannot be launched with.
    #[error("invalid launch: {0}")]
    InvalidLaunch(String),
}

impl PtxError {
    pub(crate) fn new(line: u32, column: u32, message: impl Into<String>) -> Self {
        Self {
            line,
            column,
            instruction: String::new(),
            message: message.into(),
        }
    }

    #[allow(dead_code, reason = "the parser uses it")]
    pub(crate) fn in_instruction(mut self, instruction: &str) -> Self {
        if self.instruction.is_empty() {
            self.instruction = instruction.to_owned();
        }
        self
    }
}

fn at_instruction(instruction: &str) -> String {
    if instruction.is_empty() {
        String::new()
    } else {
        format!(" in `{instruction}`")
    }
}

fn access(write: &bool) -> &'static str {
    if *write { "write" } else { "read" }
}
