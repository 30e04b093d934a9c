//! What a launch needs to know about a module, and where it comes from.

use super::{Arch, ImageError, cubin, elf, extent, fatbin, ptx};

/// The kind of code in a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeKind {
    /// Text that the driver compiles when it loads it.
    Ptx,
    /// Machine code in an ELF file.
    Elf,
}

/// What is in a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// PTX or machine code.
    pub kind: CodeKind,
    /// The architecture the code is for.
    pub arch: Arch,
    /// The virtual architecture it was compiled from, as major * 10 + minor.
    pub virtual_sm: u32,
    /// Whether this still has to be linked with other code.
    pub relocatable: bool,
    /// Constant memory that all its variables take.
    pub const_bytes: u32,
    /// The kernels, in the order of the image. Names are unique in an image that loads.
    pub kernels: Vec<KernelInfo>,
    /// Variables in global and constant memory, in the order of the image.
    pub globals: Vec<GlobalInfo>,
}

/// One kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelInfo {
    /// The (mangled) name.
    pub name: String,
    /// The parameters, in order.
    ///
    /// Empty although `param_bytes` is not zero where the image does not say how they are laid
    /// out (machine code that no NVIDIA compiler made): see [`KernelInfo::has_layout`].
    pub params: Vec<ParamSpec>,
    /// The parameters together, with the padding between them.
    pub param_bytes: u32,
    /// What it occupies.
    pub resources: Resources,
    /// The most threads in a block that the source promised, if it did.
    pub max_threads: Option<u32>,
    /// The one block size that it may be launched with, if it says so.
    pub required_block: Option<[u32; 3]>,
    /// Thread-block clusters.
    pub cluster: Cluster,
    /// What `CU_FUNC_ATTRIBUTE_PTX_VERSION` is: major * 10 + minor of the virtual architecture.
    pub ptx_version: u32,
    /// What `CU_FUNC_ATTRIBUTE_BINARY_VERSION` is. PTX becomes binary on the device, whose own
    /// version then holds: 0 here.
    pub binary_version: u32,
}

impl KernelInfo {
    /// Whether `params` describes the parameters, so that single ones can be copied.
    #[must_use]
    pub const fn has_layout(&self) -> bool {
        self.param_bytes == 0 || !self.params.is_empty()
    }
}

/// Where one parameter lies in the parameter block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamSpec {
    /// Offset in the block.
    pub offset_bytes: u32,
    /// Its size, without padding.
    pub size_bytes: u32,
}

/// What a kernel occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// Shared memory that its declarations take, without what the system reserves.
    pub shared_static_bytes: u32,
    /// Local memory per thread: its stack, with all that it calls where that is known.
    pub local_bytes: u32,
    /// Registers per thread; 0 in PTX.
    pub registers: u32,
    /// Named barriers; 0 in PTX and older machine code.
    pub barriers: u32,
}

/// What a kernel says about thread-block clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cluster {
    /// The cluster size that it must be launched with.
    pub required: Option<[u32; 3]>,
    /// Whether it has to be launched with a cluster size.
    pub explicit: bool,
    /// The most blocks in a cluster.
    pub blocks_max: Option<u32>,
}

/// One variable in device memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalInfo {
    /// The (mangled) name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// In constant memory.
    pub is_const: bool,
    /// `__managed__`.
    pub is_managed: bool,
}

/// Reads what a launch needs from a cubin or from PTX.
///
/// PTX is not parsed, only scanned for its declarations, so invalid PTX may pass; whoever
/// compiles it says so. Time and memory are linear in `bytes`.
///
/// # Errors
/// [`ImageError::Unsupported`] for a fatbin ([`select`](super::select()) from it first), and the variant
/// that says what is wrong with a malformed image.
pub fn inspect(bytes: &[u8]) -> Result<ModuleInfo, ImageError> {
    let first = bytes.first_chunk::<4>().copied().unwrap_or_default();
    match u32::from_le_bytes(first) {
        elf::MAGIC => cubin::inspect(bytes),
        fatbin::MAGIC | fatbin::WRAPPER_MAGIC => Err(ImageError::Unsupported {
            what: "a whole fatbin",
        }),
        _ if extent::looks_like_text(bytes) => ptx::inspect(bytes),
        _ => Err(ImageError::NotAnImage { first }),
    }
}
