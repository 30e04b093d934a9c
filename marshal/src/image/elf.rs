//! The parts of ELF that a cubin uses: 64 bit, little-endian, sections and symbols.

use super::bytes::{slice_at, u16_at, u32_at, u64_at, until_nul};
use super::{Arch, ImageError, Variant};

/// `\x7fELF`.
pub(super) const MAGIC: u32 = 0x464c_457f;
pub(super) const HEADER_BYTES: usize = 64;

pub(super) const SHT_SYMTAB: u32 = 2;
pub(super) const SHT_STRTAB: u32 = 3;
pub(super) const SHT_NOTE: u32 = 7;
pub(super) const SHT_NOBITS: u32 = 8;
pub(super) const SHT_SYMTAB_SHNDX: u32 = 18;

/// The ELF header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    os_abi: u8,
    /// `ET_REL` or `ET_EXEC`.
    kind: u16,
    flags: u32,
    program_offset: u64,
    program_count: u16,
    section_offset: u64,
    section_count_short: u16,
    names_index_short: u16,
}

impl Header {
    /// Reads the header of a cubin; `None` if the bytes end before it does.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] for ELF files that are no 64-bit cubins, and
    /// [`ImageError::Malformed`] for impossible ones.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, ImageError> {
        let Some(header) = bytes.get(..HEADER_BYTES) else {
            return Ok(None);
        };
        let malformed = |what| ImageError::Malformed { what };
        let ident = header
            .first_chunk::<16>()
            .ok_or(malformed("an ELF header"))?;
        let [.., class, data, _version, os_abi, _, _, _, _, _, _, _, _] = *ident;
        if class != CLASS_64 || data != DATA_LITTLE_ENDIAN {
            return Err(ImageError::Unsupported {
                what: "a 32-bit or big-endian ELF file",
            });
        }
        if u16_at(header, 18) != Some(MACHINE_CUDA) {
            return Err(ImageError::Unsupported {
                what: "an ELF file with no GPU code",
            });
        }
        let read = || {
            let section_size = u16_at(header, 58)?;
            let program_size = u16_at(header, 54)?;
            let fields = Self {
                os_abi,
                kind: u16_at(header, 16)?,
                flags: u32_at(header, 48)?,
                program_offset: u64_at(header, 32)?,
                program_count: u16_at(header, 56)?,
                section_offset: u64_at(header, 40)?,
                section_count_short: u16_at(header, 60)?,
                names_index_short: u16_at(header, 62)?,
            };
            let sizes_fit = usize::from(section_size) == SECTION_BYTES
                && (fields.program_count == 0 || usize::from(program_size) == PROGRAM_BYTES);
            (sizes_fit && fields.section_offset >= HEADER_BYTES as u64).then_some(fields)
        };
        read().map(Some).ok_or(malformed("an ELF header"))
    }

    /// The architecture the machine code is for.
    pub(super) const fn arch(&self) -> Arch {
        let (sm, specific) = if self.os_abi == OS_ABI_CUDA_V2 {
            ((self.flags >> 8) & 0xff, self.flags & 0x8 != 0)
        } else {
            (self.flags & 0xff, self.flags & 0x800 != 0)
        };
        let variant = if specific {
            Variant::Specific
        } else {
            Variant::Portable
        };
        Arch { sm, variant }
    }

    /// The virtual architecture it was compiled from, where the header says so.
    pub(super) const fn virtual_sm(&self) -> Option<u32> {
        if self.os_abi == OS_ABI_CUDA_V2 {
            None
        } else {
            Some((self.flags >> 16) & 0xff)
        }
    }

    pub(super) const fn is_relocatable(&self) -> bool {
        self.kind == KIND_RELOCATABLE
    }

    /// How many sections there are. With very many the first section's header says it, and
    /// the answer is `None` while the bytes end before that.
    pub(super) fn section_count(&self, bytes: &[u8]) -> Option<u64> {
        if self.section_count_short != 0 {
            return Some(u64::from(self.section_count_short));
        }
        let size_field = self.section_offset.checked_add(32)?;
        u64_at(bytes, usize::try_from(size_field).ok()?)
    }

    /// Where a table of `count` sections ends; `None` if that overflows.
    pub(super) fn table_end(&self, count: u64) -> Option<u64> {
        count
            .checked_mul(SECTION_BYTES as u64)?
            .checked_add(self.section_offset)
    }

    /// Where the file ends, given its section table; `None` if that overflows.
    ///
    /// NVIDIA's own kinds of sections are left out: some of them take no space in the file
    /// whatever their size says, and the tables come behind all of them.
    pub(super) fn file_end(&self, bytes: &[u8], count: u64) -> Option<u64> {
        let table_end = self.table_end(count)?;
        let table_bytes = table_end.checked_sub(self.section_offset)?;
        let programs_bytes = u64::from(self.program_count).checked_mul(PROGRAM_BYTES as u64)?;
        let programs_end = self.program_offset.checked_add(programs_bytes)?;
        let mut end = table_end.max(programs_end);
        for entry in slice_at(bytes, self.section_offset, table_bytes)?.chunks(SECTION_BYTES) {
            let section = Section::read(entry)?;
            if section.kind < SHT_VENDOR && section.kind != SHT_NULL && section.kind != SHT_NOBITS {
                end = end.max(section.offset.checked_add(section.size)?);
            }
        }
        Some(end)
    }

    /// The index of the section that holds section names.
    fn names_index(&self, first: Option<&Section>) -> Option<usize> {
        if self.names_index_short == INDEX_ELSEWHERE {
            usize::try_from(first?.link).ok()
        } else {
            Some(usize::from(self.names_index_short))
        }
    }
}

/// One section header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    name: u32,
    pub(super) kind: u32,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) link: u32,
    pub(super) info: u32,
}

impl Section {
    fn read(entry: &[u8]) -> Option<Self> {
        Some(Self {
            name: u32_at(entry, 0)?,
            kind: u32_at(entry, 4)?,
            offset: u64_at(entry, 24)?,
            size: u64_at(entry, 32)?,
            link: u32_at(entry, 40)?,
            info: u32_at(entry, 44)?,
        })
    }
}

/// One symbol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    pub(super) name: u32,
    info: u8,
    /// Visibility, and what CUDA adds to it.
    pub(super) other: u8,
    /// Section index; [`INDEX_ELSEWHERE`] is resolved already.
    pub(super) section: u32,
    pub(super) size: u64,
}

impl Symbol {
    pub(super) const fn is_object(&self) -> bool {
        self.info & 0xf == 1
    }

    pub(super) const fn is_function(&self) -> bool {
        self.info & 0xf == 2
    }
}

/// An ELF file whose section table is in bounds.
#[derive(Debug)]
pub(super) struct Elf<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) header: Header,
    pub(super) sections: Vec<Section>,
    names: &'a [u8],
}

impl<'a> Elf<'a> {
    /// Reads the headers. Allocates the section table, at most the size of `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let truncated = |needed_bytes| ImageError::Truncated {
            what: "a section table",
            needed_bytes,
            have_bytes: bytes.len() as u64,
        };
        let header = Header::read(bytes)?.ok_or(truncated(HEADER_BYTES as u64))?;
        let table = || {
            let table_end = header.table_end(header.section_count(bytes)?)?;
            let table_bytes = table_end.checked_sub(header.section_offset)?;
            slice_at(bytes, header.section_offset, table_bytes)
        };
        let table = table().ok_or(truncated(header.section_offset))?;
        let sections: Vec<_> = table
            .chunks_exact(SECTION_BYTES)
            .filter_map(Section::read)
            .collect();
        let names_section = header
            .names_index(sections.first())
            .and_then(|index| sections.get(index))
            // Where a file was cut off, what follows in memory is most often zeros: no string table.
            .filter(|section| section.kind == SHT_STRTAB)
            .ok_or(ImageError::Malformed {
                what: "the index of section names",
            })?;
        let names = data(bytes, names_section)?;
        Ok(Self {
            bytes,
            header,
            sections,
            names,
        })
    }

    /// A section's bytes.
    pub(super) fn data(&self, section: &Section) -> Result<&'a [u8], ImageError> {
        data(self.bytes, section)
    }

    /// Whether a section's name begins with `prefix`. Give a NUL at the end for the whole name.
    pub(super) fn name_begins(&self, section: &Section, prefix: &[u8]) -> bool {
        let at = usize::try_from(section.name).unwrap_or(usize::MAX);
        self.names
            .get(at..)
            .is_some_and(|name| name.starts_with(prefix))
    }

    /// The symbols, in order, and the strings that their names are in.
    pub(super) fn symbols(&self) -> Result<(Vec<Symbol>, &'a [u8]), ImageError> {
        let Some(table) = self.sections.iter().find(|s| s.kind == SHT_SYMTAB) else {
            return Ok((Vec::new(), &[]));
        };
        let strings = usize::try_from(table.link)
            .ok()
            .and_then(|index| self.sections.get(index))
            .ok_or(ImageError::Malformed {
                what: "the index of symbol names",
            })?;
        let elsewhere = self.sections.iter().find(|s| s.kind == SHT_SYMTAB_SHNDX);
        let elsewhere = elsewhere.map_or(Ok(&[][..]), |section| self.data(section))?;
        let mut wide_indices = elsewhere.chunks_exact(4);
        let read = |entry: &[u8]| {
            let wide_index = wide_indices.next().and_then(|index| u32_at(index, 0));
            let section = match u16_at(entry, 6)? {
                INDEX_ELSEWHERE => wide_index?,
                index => u32::from(index),
            };
            Some(Symbol {
                name: u32_at(entry, 0)?,
                info: *entry.get(4)?,
                other: *entry.get(5)?,
                section,
                size: u64_at(entry, 16)?,
            })
        };
        let symbols: Option<Vec<_>> = self
            .data(table)?
            .chunks_exact(SYMBOL_BYTES)
            .map(read)
            .collect();
        let symbols = symbols.ok_or(ImageError::Malformed {
            what: "a symbol's section index",
        })?;
        Ok((symbols, self.data(strings)?))
    }
}

/// Reads names out of a string table without reading more, in sum, than an honest file has.
#[derive(Debug)]
pub(super) struct NameReader<'a> {
    strings: &'a [u8],
    budget_bytes: usize,
}

impl<'a> NameReader<'a> {
    /// Names may overlap in the table (`b` inside `a.b`), so the budget is a few times its size.
    pub(super) const fn new(strings: &'a [u8]) -> Self {
        Self {
            strings,
            budget_bytes: strings.len().saturating_mul(8),
        }
    }

    pub(super) fn read(&mut self, at: u32) -> Result<&'a str, ImageError> {
        const BAD: ImageError = ImageError::Malformed {
            what: "a symbol's name",
        };
        let at = usize::try_from(at).map_err(|_too_far| BAD)?;
        let name = until_nul(self.strings, at).ok_or(BAD)?;
        self.budget_bytes = self.budget_bytes.checked_sub(name.len()).ok_or(BAD)?;
        std::str::from_utf8(name).map_err(|_not_text| BAD)
    }
}

fn data<'a>(bytes: &'a [u8], section: &Section) -> Result<&'a [u8], ImageError> {
    if section.kind == SHT_NOBITS {
        return Ok(&[]);
    }
    slice_at(bytes, section.offset, section.size).ok_or(ImageError::Truncated {
        what: "a section",
        needed_bytes: section.offset.saturating_add(section.size),
        have_bytes: bytes.len() as u64,
    })
}

const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const MACHINE_CUDA: u16 = 190;
/// The ABI of CUDA 13 (and of Blackwell in 12.8), which moved the architecture within the flags.
const OS_ABI_CUDA_V2: u8 = 0x41;
const KIND_RELOCATABLE: u16 = 1;
const SHT_NULL: u32 = 0;
const SHT_VENDOR: u32 = 0x6000_0000;
/// `SHN_XINDEX`: the index did not fit into its 16 bits and is elsewhere.
const INDEX_ELSEWHERE: u16 = 0xffff;
const SECTION_BYTES: usize = 64;
const PROGRAM_BYTES: usize = 56;
const SYMBOL_BYTES: usize = 24;
