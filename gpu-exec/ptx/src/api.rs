//! The public types.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::error::{Fault, LoadError, PtxError};
use crate::exec::code::{Code, ConstValue};
use crate::exec::engine::Pool;
use crate::exec::regs::R;
use crate::lower::Compiled;

/// A compiled PTX module, independent of where its globals will live.
#[derive(Debug)]
pub struct Module {
    compiled: Compiled,
}

impl Module {
    /// Parses and compiles PTX text. Total: any input gives a module or an error.
    ///
    /// # Errors
    /// Names the line and, inside a function, the instruction that cannot be compiled.
    pub fn parse(text: &str) -> Result<Self, PtxError> {
        Ok(Self {
            compiled: crate::lower::compile(&crate::parse::parse(text)?)?,
        })
    }

    /// The kernels (`.entry`) in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &KernelInfo> {
        self.compiled.kernels.iter().map(|(info, _)| info)
    }

    /// The module-scope `.global` and `.const` variables in the order of the text.
    pub fn globals(&self) -> impl Iterator<Item = &GlobalInfo> {
        self.compiled.globals.iter().map(|g| &g.info)
    }
}

/// What a launch needs to know about a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelInfo {
    /// Name as in the text (mangled for C++).
    pub name: String,
    /// Parameters in order.
    pub params: Vec<ParamInfo>,
    /// Size of the parameter image in bytes: end of the last parameter.
    pub param_bytes: u32,
    /// Static shared memory in bytes.
    pub shared_static_bytes: u32,
    /// Local memory of one thread in bytes.
    pub local_bytes: u32,
    /// Estimate of 32-bit registers per thread.
    pub registers: u32,
    /// Most threads a block may have (`.maxntid`, else 1024).
    pub max_threads_per_block: u32,
    /// The exact block shape that `.reqntid` asks for.
    pub reqntid: Option<[u32; 3]>,
}

/// Place of one kernel parameter in the parameter image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamInfo {
    /// Offset in bytes.
    pub offset_bytes: u32,
    /// Size in bytes.
    pub size_bytes: u32,
    /// Alignment in bytes.
    pub align_bytes: u32,
}

/// Where a module-scope variable lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GlobalSpace {
    /// `.global`: writable by kernels.
    Global,
    /// `.const`: read-only to kernels.
    Const,
}

/// A module-scope variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalInfo {
    /// Name as in the text.
    pub name: String,
    /// Size in bytes; 0 for an `.extern` array without a size.
    pub bytes: u64,
    /// Alignment in bytes, a power of two.
    pub align_bytes: u64,
    /// Address space.
    pub space: GlobalSpace,
    /// Declared `.extern`: another module defines it.
    pub external: bool,
    /// Declared `.attribute(.managed)`.
    pub managed: bool,
    /// Initial bytes before relocation; shorter than `bytes` when the rest is zero.
    pub init: Vec<u8>,
}

/// A module whose globals have addresses.
#[derive(Debug)]
pub struct LoadedModule {
    module: Arc<Module>,
    /// Address of each global, in the order of the module.
    addrs: Vec<u64>,
    images: Vec<(u64, Vec<u8>)>,
    kernels: Vec<Kernel>,
}

impl LoadedModule {
    /// Asks `place` for the address of every global (`.extern` ones too) and resolves
    /// all references to them.
    ///
    /// # Errors
    /// A global without an address, or at one that its alignment forbids.
    pub fn load(
        module: Arc<Module>,
        place: &mut dyn FnMut(&GlobalInfo) -> Option<u64>,
    ) -> Result<Self, LoadError> {
        let mut addrs = Vec::new();
        for global in module.globals() {
            let Some(addr) = place(global) else {
                return Err(LoadError::NotPlaced(global.name.clone()));
            };
            if addr % global.align_bytes != 0 {
                let (name, align_bytes) = (global.name.clone(), global.align_bytes);
                return Err(LoadError::Misaligned {
                    name,
                    addr,
                    align_bytes,
                });
            }
            addrs.push(addr);
        }
        let images = images(&module.compiled, &addrs);
        let kernels = module.compiled.kernels.iter().map(|(info, code)| Kernel {
            info: Arc::new(info.clone()),
            code: Arc::clone(code),
            consts: constants(code, &addrs),
        });
        let kernels = kernels.collect();
        Ok(Self {
            module,
            addrs,
            images,
            kernels,
        })
    }

    /// Initial images of all globals that this module defines: (address, bytes), zeros included,
    /// relocations resolved. The caller writes them before the first launch.
    pub fn images(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.images
            .iter()
            .map(|(addr, bytes)| (*addr, bytes.as_slice()))
    }

    /// Address and size in bytes of a global.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        let mut globals = self.module.globals().zip(&self.addrs);
        globals
            .find(|(g, _)| g.name == name)
            .map(|(g, addr)| (*addr, g.bytes))
    }

    /// A kernel by name.
    pub fn kernel(&self, name: &str) -> Option<Kernel> {
        self.kernels.iter().find(|k| k.info.name == name).cloned()
    }
}

fn images(compiled: &Compiled, addrs: &[u64]) -> Vec<(u64, Vec<u8>)> {
    let defined = compiled
        .globals
        .iter()
        .zip(addrs)
        .filter(|(g, _)| !g.info.external);
    let images = defined.map(|(global, &addr)| {
        let mut bytes = global.info.init.clone();
        // The size was bounded when the module was compiled.
        bytes.resize(usize::try_from(global.info.bytes).unwrap_or(bytes.len()), 0);
        for piece in &global.pieces {
            let value =
                addrs[piece.global as usize].wrapping_add_signed(piece.addend) >> piece.shift;
            let at = usize::try_from(piece.offset).unwrap_or(usize::MAX);
            let count = piece.bytes.min(8) as usize;
            if let Some(to) = bytes.get_mut(at..).and_then(|b| b.get_mut(..count)) {
                to.copy_from_slice(&value.to_le_bytes()[..count]);
            }
        }
        (addr, bytes)
    });
    images.collect()
}

/// Values of the constant registers: (row, rows, value).
fn constants(code: &Code, addrs: &[u64]) -> Arc<[(R, u32, u64)]> {
    let value = |value: ConstValue| match value {
        ConstValue::Bits(bits) => bits,
        ConstValue::Global { index, addend } => addrs[index as usize].wrapping_add_signed(addend),
        ConstValue::DynamicShared { addend } => {
            u64::from(code.dynamic_shared_offset).wrapping_add_signed(addend)
        }
    };
    code.consts
        .iter()
        .map(|c| (c.row, c.rows, value(c.value)))
        .collect()
}

/// A kernel that can be launched. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Kernel {
    info: Arc<KernelInfo>,
    pub(crate) code: Arc<Code>,
    pub(crate) consts: Arc<[(R, u32, u64)]>,
}

impl Kernel {
    /// What the kernel expects.
    pub fn info(&self) -> &KernelInfo {
        &self.info
    }
}

/// An allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Whether kernels may write.
    pub writable: bool,
}

/// The caller's allocations in device memory.
///
/// # Safety
/// A range that [`find`](Self::find) returned must stay mapped readable (and writable, if it says so) in this
/// process until the launch that was given this map has returned, and nothing in this process
/// may hold a Rust reference into it during that time.
pub unsafe trait MemoryMap: Send + Sync {
    /// The allocation that contains `addr`. Called rarely: hits are cached per instruction.
    fn find(&self, addr: u64) -> Option<Region>;

    /// Memory for a kernel that calls `malloc`: its first byte, a multiple of 16. [`find`](Self::find) finds it from then
    /// on, and as long as the launch lasts also when it was released.
    fn allocate(&self, bytes: u64) -> Option<u64> {
        let _ = bytes;
        None
    }

    /// A kernel calls `free`. False: nothing was allocated there.
    fn release(&self, addr: u64) -> bool {
        let _ = addr;
        false
    }
}

/// One kernel launch.
#[derive(Clone)]
pub struct Launch<'a> {
    /// What to run.
    pub kernel: &'a Kernel,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub dynamic_shared_bytes: u32,
    /// The parameter image, laid out as [`KernelInfo::params`] says.
    pub params: &'a [u8],
    /// What the kernel may touch.
    pub memory: Arc<dyn MemoryMap>,
    /// Raise it to end the launch early with [`FaultKind::Cancelled`](crate::FaultKind::Cancelled).
    pub cancel: Arc<AtomicBool>,
    /// All blocks make progress together, so that they may wait for each other.
    pub cooperative: bool,
}

/// What a finished launch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaunchReport {
    /// Instructions, counted once per thread that executed them.
    pub thread_instructions: u64,
    /// Bytes that `printf` wrote.
    pub printf: Vec<u8>,
    /// Wall time in nanoseconds.
    pub elapsed_ns: u64,
    /// Processor time of the thread that worked most: what [`Self::elapsed_ns`] is on a machine that does nothing else.
    pub busy: Duration,
}

/// Runs launches on a pool of worker threads, which start with the first launch that needs them.
#[derive(Debug)]
pub struct Engine {
    pool: Pool,
}

impl Engine {
    /// An engine that runs blocks on up to `workers` threads, the caller of [`launch`](Self::launch)
    /// being one of them. Starts no thread.
    pub fn new(workers: usize) -> Self {
        Self {
            pool: Pool::new(workers),
        }
    }

    /// Runs a kernel. Blocks until every block of the grid is done or one has faulted.
    ///
    /// # Errors
    /// The first fault; blocks that had not started by then never run.
    pub fn launch(&self, launch: &Launch<'_>) -> Result<LaunchReport, Box<Fault>> {
        self.pool.launch(launch)
    }
}
