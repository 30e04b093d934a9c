//! Reading a cubin: kernels from its symbols, their properties from the sections that belong
//! to the section of their code.

use super::bytes::u16_at;
use super::elf::{Elf, NameReader, SHT_NOBITS, SHT_NOTE, Symbol};
use super::nvinfo::{self, Attribute};
use super::{
    Cluster, CodeKind, GlobalInfo, ImageError, KernelInfo, ModuleInfo, ParamSpec, Resources,
};

/// See [`inspect`](super::inspect()).
pub(super) fn inspect(bytes: &[u8]) -> Result<ModuleInfo, ImageError> {
    let elf = Elf::parse(bytes)?;
    let (symbols, strings) = elf.symbols()?;
    let mut code = CodeTable::new(&elf);
    let mut const_bytes = 0_u32;
    let mut virtual_sm = elf.header.virtual_sm();
    for section in &elf.sections {
        match section.kind {
            SHT_CUDA_INFO => code.read_info(&elf, section, &symbols)?,
            SHT_NOBITS if elf.name_begins(section, b".nv.shared.") => {
                if let Some(owner) = code.of_section(section.info) {
                    owner.shared_bytes = size_u32(section.size)?;
                }
            }
            SHT_PROGBITS if elf.name_begins(section, b".nv.constant3\0") => {
                const_bytes = size_u32(section.size)?;
            }
            SHT_NOTE if elf.name_begins(section, b".note.nv.cuinfo\0") => {
                let noted = u16_at(elf.data(section)?, CUINFO_VIRTUAL_SM_AT);
                virtual_sm = noted.map(u32::from).or(virtual_sm);
            }
            _ => {}
        }
    }
    let arch = elf.header.arch();
    let virtual_sm = virtual_sm.unwrap_or(arch.sm);
    let mut names = NameReader::new(strings);
    let mut module = ModuleInfo {
        kind: CodeKind::Elf,
        arch,
        virtual_sm,
        relocatable: elf.header.is_relocatable(),
        const_bytes,
        kernels: Vec::new(),
        globals: Vec::new(),
    };
    for symbol in &symbols {
        if symbol.is_function() && symbol.other & OTHER_KERNEL != 0 {
            let name = names.read(symbol.name)?;
            let kernel = code.kernel(name, symbol.section, &module)?;
            module.kernels.push(kernel);
        } else if let Some(is_const) = variable_space(&elf, symbol) {
            module.globals.push(GlobalInfo {
                name: names.read(symbol.name)?.to_owned(),
                bytes: symbol.size,
                is_const,
                is_managed: symbol.other & OTHER_MANAGED != 0,
            });
        }
    }
    Ok(module)
}

/// Whether a symbol is a variable, and if so whether in constant memory.
fn variable_space(elf: &Elf<'_>, symbol: &Symbol) -> Option<bool> {
    if !symbol.is_object() {
        return None;
    }
    let index = usize::try_from(symbol.section).ok()?;
    let section = elf.sections.get(index)?;
    if elf.name_begins(section, b".nv.constant3\0") {
        return Some(true);
    }
    let global =
        elf.name_begins(section, b".nv.global\0") || elf.name_begins(section, b".nv.global.init\0");
    global.then_some(false)
}

/// What is known about the code in one section.
#[derive(Debug, Clone, Default)]
struct Code {
    /// (ordinal, layout), in the order of the image.
    params: Vec<(u16, ParamSpec)>,
    param_bytes: Option<u32>,
    shared_bytes: u32,
    frame_bytes: u32,
    stack_bytes: Option<u32>,
    registers: u32,
    barriers: u32,
    max_threads: Option<u32>,
    required_block: Option<[u32; 3]>,
    cluster: Cluster,
}

/// [`Code`] by the index of its section, which is how other sections refer to it.
struct CodeTable {
    by_section: Vec<Code>,
    /// What may still be read from `.nv.info`. In an honest file its sections do not overlap,
    /// so together they are no longer than the file.
    info_budget_bytes: u64,
}

impl CodeTable {
    fn new(elf: &Elf<'_>) -> Self {
        Self {
            by_section: vec![Code::default(); elf.sections.len()],
            info_budget_bytes: elf.bytes.len() as u64,
        }
    }

    fn of_section(&mut self, index: u32) -> Option<&mut Code> {
        self.by_section.get_mut(usize::try_from(index).ok()?)
    }

    fn of_symbol(&mut self, symbols: &[Symbol], index: u32) -> Option<&mut Code> {
        let symbol = symbols.get(usize::try_from(index).ok()?)?;
        self.of_section(symbol.section)
    }

    /// Reads one `.nv.info` section: of one function, or of the file, which names functions by
    /// their symbols.
    fn read_info(
        &mut self,
        elf: &Elf<'_>,
        section: &super::elf::Section,
        symbols: &[Symbol],
    ) -> Result<(), ImageError> {
        self.info_budget_bytes =
            self.info_budget_bytes
                .checked_sub(section.size)
                .ok_or(ImageError::Malformed {
                    what: "overlapping .nv.info sections",
                })?;
        let data = elf.data(section)?;
        nvinfo::for_each(data, |attribute| match attribute {
            Attribute::Registers { symbol, count } => {
                if let Some(code) = self.of_symbol(symbols, symbol) {
                    code.registers = code.registers.max(count);
                }
            }
            Attribute::FrameBytes { symbol, bytes } => {
                if let Some(code) = self.of_symbol(symbols, symbol) {
                    code.frame_bytes = code.frame_bytes.max(bytes);
                }
            }
            Attribute::StackBytes { symbol, bytes } => {
                if let Some(code) = self.of_symbol(symbols, symbol) {
                    code.stack_bytes = (bytes != STACK_UNBOUNDED).then_some(bytes);
                }
            }
            own => {
                if let Some(code) = self.of_section(section.info) {
                    code.note(own);
                }
            }
        })
    }

    fn kernel(
        &mut self,
        name: &str,
        section: u32,
        module: &ModuleInfo,
    ) -> Result<KernelInfo, ImageError> {
        let code =
            self.of_section(section)
                .filter(|_| section != 0)
                .ok_or(ImageError::Malformed {
                    what: "a kernel without code",
                })?;
        let (params, param_bytes) = code.layout()?;
        // From this architecture on the system's share comes first in every kernel's section.
        let reserved_bytes = if module.arch.sm >= 90 {
            RESERVED_SHARED_BYTES
        } else {
            0
        };
        Ok(KernelInfo {
            name: name.to_owned(),
            params,
            param_bytes,
            resources: Resources {
                shared_static_bytes: code.shared_bytes.saturating_sub(reserved_bytes),
                local_bytes: code.stack_bytes.unwrap_or(code.frame_bytes),
                registers: code.registers,
                barriers: code.barriers,
            },
            max_threads: code.max_threads,
            required_block: code.required_block,
            cluster: code.cluster,
            ptx_version: module.virtual_sm,
            binary_version: module.arch.sm,
        })
    }
}

impl Code {
    fn note(&mut self, attribute: Attribute) {
        match attribute {
            Attribute::Param {
                ordinal,
                offset_bytes,
                size_bytes,
            } => {
                let spec = ParamSpec {
                    offset_bytes: u32::from(offset_bytes),
                    size_bytes: u32::from(size_bytes),
                };
                self.params.push((ordinal, spec));
            }
            Attribute::ParamBytes(bytes) => self.param_bytes = Some(u32::from(bytes)),
            Attribute::MaxThreads([x, y, z]) => {
                self.max_threads = Some(x.saturating_mul(y).saturating_mul(z));
            }
            Attribute::RequiredBlock(block) => self.required_block = Some(block),
            Attribute::ClusterBlocks(blocks) => self.cluster.required = Some(blocks),
            Attribute::ExplicitCluster => self.cluster.explicit = true,
            Attribute::MaxClusterBlocks(blocks) => self.cluster.blocks_max = Some(blocks),
            Attribute::Barriers(count) => self.barriers = u32::from(count),
            Attribute::Registers { .. }
            | Attribute::FrameBytes { .. }
            | Attribute::StackBytes { .. } => {}
        }
    }

    /// The parameters in order, checked: every ordinal once, none overlapping the next, all
    /// within the block. Takes them out, as one section has one kernel.
    fn layout(&mut self) -> Result<(Vec<ParamSpec>, u32), ImageError> {
        let mut params = std::mem::take(&mut self.params);
        params.sort_unstable_by_key(|&(ordinal, _)| ordinal);
        let mut end = 0_u32;
        for (expected, &(ordinal, spec)) in params.iter().enumerate() {
            if usize::from(ordinal) != expected || spec.offset_bytes < end {
                return Err(ImageError::Malformed {
                    what: "a kernel's parameter list",
                });
            }
            end = spec.offset_bytes.saturating_add(spec.size_bytes);
        }
        let param_bytes = self.param_bytes.unwrap_or(end);
        if end > param_bytes {
            return Err(ImageError::Malformed {
                what: "the size of a kernel's parameters",
            });
        }
        let specs = params.into_iter().map(|(_, spec)| spec).collect();
        Ok((specs, param_bytes))
    }
}

fn size_u32(bytes: u64) -> Result<u32, ImageError> {
    u32::try_from(bytes).map_err(|_too_large| ImageError::TooLarge {
        what: "a memory section",
        bytes,
        max_bytes: u64::from(u32::MAX),
    })
}

const SHT_PROGBITS: u32 = 1;
const SHT_CUDA_INFO: u32 = 0x7000_0000;
/// In a symbol's `other`: a kernel.
const OTHER_KERNEL: u8 = 0x10;
/// In a symbol's `other`: a managed variable.
const OTHER_MANAGED: u8 = 0x04;
/// After the note's header and its owner, a `u16` of the note's own version.
const CUINFO_VIRTUAL_SM_AT: usize = 26;
/// `EIATTR_MIN_STACK_SIZE` of recursive functions.
const STACK_UNBOUNDED: u32 = u32::MAX;
const RESERVED_SHARED_BYTES: u32 = 1024;
