//! The fatbin container: code for several architectures, one entry each.
//!
//! A header of 16 bytes, then entries: an entry header of 64 bytes or more, then the entry's
//! bytes, padded. The header's length is a field, because newer toolkits append to it: names,
//! compiler options, and the table of an entry that several images share.

use super::bytes::{slice_at, u16_at, u32_at, u64_at, until_nul};
use super::expand::Compression;
use super::{Arch, ImageError, Variant};

/// Of the container itself.
pub(super) const MAGIC: u32 = 0xba55_ed50;
/// Of the structure that nvcc embeds in host code, pointing to the container.
pub(super) const WRAPPER_MAGIC: u32 = 0x4662_43b1;
/// Of the format before it.
pub(super) const OLD_MAGIC: u32 = 0x1ee5_5a01;
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const WRAPPER_BYTES: usize = 24;

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// PTX text.
    Ptx,
    /// A cubin.
    Elf,
    /// LTO IR, for a linker.
    LtoIr,
    /// Machine code in the portable form that newer drivers finish ("Mercury").
    Mercury,
    /// A kind this crate does not know, by its number.
    Other(u16),
}

/// One image in a fatbin. A bare cubin or PTX text counts as one entry too.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// What it holds.
    pub kind: EntryKind,
    /// The architecture it is for.
    pub arch: Arch,
    /// How it is stored.
    pub compression: Compression,
    /// Its size as the header gives it; an upper bound for PTX that is not compressed, which
    /// is padded.
    pub expanded_bytes: usize,
    /// Compiled with debug information.
    pub debug: bool,
    /// The name of the source file; most have none.
    pub name: &'a str,
    /// Compiler options that go with it; most have none.
    pub options: &'a str,
    /// The stored bytes. Entries that are compressed together have the same.
    pub(super) stored: &'a [u8],
    /// Where among the expanded bytes this entry is, if it is not all of them.
    pub(super) member: Option<Member>,
}

/// A part of what several entries were compressed to together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) offset: u64,
    /// What all of them expand to.
    pub(super) group_bytes: usize,
}

impl Entry<'_> {
    /// How many bytes the entry takes in the image, with what is compressed together with it.
    #[must_use]
    pub const fn stored_bytes(&self) -> usize {
        self.stored.len()
    }
}

/// The entries of the fatbin that `bytes` begins with.
///
/// Allocates the list, which is no longer than `bytes`.
pub(super) fn entries(bytes: &[u8]) -> Result<Vec<Entry<'_>>, ImageError> {
    let mut rest = body(bytes)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let header = RawEntry::read(rest).ok_or(ImageError::Malformed {
            what: "a fatbin entry",
        })?;
        header.push_to(&mut entries)?;
        rest = header.rest;
    }
    Ok(entries)
}

fn body(bytes: &[u8]) -> Result<&[u8], ImageError> {
    let header = || Some((u16_at(bytes, 4)?, u16_at(bytes, 6)?, u64_at(bytes, 8)?));
    let truncated = |needed_bytes| ImageError::Truncated {
        what: "a fatbin",
        needed_bytes,
        have_bytes: bytes.len() as u64,
    };
    let (version, header_bytes, body_bytes) = header().ok_or(truncated(HEADER_BYTES as u64))?;
    if version != VERSION || usize::from(header_bytes) < HEADER_BYTES {
        return Err(ImageError::Malformed {
            what: "a fatbin's header",
        });
    }
    let needed_bytes = body_bytes.saturating_add(u64::from(header_bytes));
    slice_at(bytes, u64::from(header_bytes), body_bytes).ok_or(truncated(needed_bytes))
}

/// An entry's header, with what it delimits.
struct RawEntry<'a> {
    fields: Fields,
    /// The whole header, with what is appended to it.
    header: &'a [u8],
    stored: &'a [u8],
    rest: &'a [u8],
}

/// The first 64 bytes, which members of a group have in the same form.
struct Fields {
    kind: u16,
    /// The header's length; in a group's member, where it begins.
    header_or_offset: u32,
    /// The entry's length with padding.
    padded_bytes: u64,
    compressed_bytes: u32,
    /// Where the compiler options are described.
    options_at: u32,
    sm: u32,
    name_at: u32,
    name_bytes: u32,
    flags: u64,
    expanded_bytes: u64,
}

impl Fields {
    fn read(header: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u16_at(header, 0)?,
            header_or_offset: u32_at(header, 4)?,
            padded_bytes: u64_at(header, 8)?,
            compressed_bytes: u32_at(header, 16)?,
            options_at: u32_at(header, 20)?,
            sm: u32_at(header, 28)?,
            name_at: u32_at(header, 32)?,
            name_bytes: u32_at(header, 36)?,
            flags: u64_at(header, 40)?,
            expanded_bytes: u64_at(header, 56)?,
        })
    }

    const fn arch(&self) -> Arch {
        let variant = if self.flags & FLAG_SPECIFIC != 0 {
            Variant::Specific
        } else if self.flags & FLAG_FAMILY != 0 {
            Variant::Family
        } else {
            Variant::Portable
        };
        Arch {
            sm: self.sm,
            variant,
        }
    }

    const fn entry_kind(&self) -> EntryKind {
        match self.kind {
            1 => EntryKind::Ptx,
            2 => EntryKind::Elf,
            8 => EntryKind::LtoIr,
            16 => EntryKind::Mercury,
            other => EntryKind::Other(other),
        }
    }
}

impl<'a> RawEntry<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let fields = Fields::read(bytes)?;
        let header_bytes = usize::try_from(fields.header_or_offset).ok()?;
        if header_bytes < ENTRY_BYTES {
            return None;
        }
        let (header, after) = bytes.split_at_checked(header_bytes)?;
        let padded_bytes = usize::try_from(fields.padded_bytes).ok()?;
        let (padded, rest) = after.split_at_checked(padded_bytes)?;
        let stored_bytes = if fields.flags & (FLAG_LZ4 | FLAG_ZSTD) == 0 {
            padded_bytes
        } else {
            usize::try_from(fields.compressed_bytes).ok()?
        };
        Some(Self {
            stored: padded.get(..stored_bytes)?,
            fields,
            header,
            rest,
        })
    }

    fn push_to(&self, entries: &mut Vec<Entry<'a>>) -> Result<(), ImageError> {
        let whole = self.entry()?;
        if self.fields.kind != KIND_GROUP {
            entries.push(whole);
            return Ok(());
        }
        let members = self.members().ok_or(ImageError::Malformed {
            what: "a group of fatbin entries",
        })?;
        for member in members {
            let fields = Fields::read(member).ok_or(ImageError::Malformed {
                what: "a member of a group of fatbin entries",
            })?;
            entries.push(Entry {
                kind: fields.entry_kind(),
                arch: fields.arch(),
                expanded_bytes: size(fields.padded_bytes)?,
                debug: fields.flags & FLAG_DEBUG != 0,
                member: Some(Member {
                    offset: u64::from(fields.header_or_offset),
                    group_bytes: whole.expanded_bytes,
                }),
                ..whole.clone()
            });
        }
        Ok(())
    }

    fn entry(&self) -> Result<Entry<'a>, ImageError> {
        let fields = &self.fields;
        let (compression, expanded_bytes) =
            match (fields.flags & FLAG_LZ4 != 0, fields.flags & FLAG_ZSTD != 0) {
                (false, false) => (Compression::None, self.stored.len()),
                (true, false) => (Compression::Lz4, size(fields.expanded_bytes)?),
                (false, true) => (Compression::Zstd, size(fields.expanded_bytes)?),
                (true, true) => {
                    return Err(ImageError::Malformed {
                        what: "the compression of a fatbin entry",
                    });
                }
            };
        Ok(Entry {
            kind: fields.entry_kind(),
            arch: fields.arch(),
            compression,
            expanded_bytes,
            debug: fields.flags & FLAG_DEBUG != 0,
            name: self.text(fields.name_at, fields.name_bytes),
            options: self.options().unwrap_or_default(),
            stored: self.stored,
            member: None,
        })
    }

    /// The headers of a group's members: a count, a length, and 64 bytes for each.
    fn members(&self) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        let table_at = u64::from(self.fields.options_at);
        let table_at = if table_at == 0 {
            ENTRY_BYTES as u64
        } else {
            table_at
        };
        let count = u32_at(self.header, usize::try_from(table_at).ok()?)?;
        let table_bytes = u64::from(count).checked_mul(ENTRY_BYTES as u64)?;
        let table = slice_at(self.header, table_at.checked_add(8)?, table_bytes)?;
        Some(table.chunks_exact(ENTRY_BYTES))
    }

    fn options(&self) -> Option<&'a str> {
        let at = usize::try_from(self.fields.options_at).ok()?;
        if at < ENTRY_BYTES || self.fields.kind == KIND_GROUP {
            return None;
        }
        let text_at = u32_at(self.header, at)?;
        let text_bytes = u32_at(self.header, at.checked_add(4)?)?;
        // Some entries keep other things than text there.
        Some(self.text(text_at, text_bytes))
    }

    /// Text in the header; empty if there is none, or none that is text.
    fn text(&self, at: u32, bytes: u32) -> &'a str {
        let text = slice_at(self.header, u64::from(at), u64::from(bytes));
        let text = text.and_then(|text| until_nul(text, 0)).unwrap_or_default();
        let text = std::str::from_utf8(text).unwrap_or_default();
        if text.contains(char::is_control) {
            ""
        } else {
            text.trim()
        }
    }
}

fn size(bytes: u64) -> Result<usize, ImageError> {
    usize::try_from(bytes).map_err(|_too_large| ImageError::TooLarge {
        what: "a fatbin entry",
        bytes,
        max_bytes: usize::MAX as u64,
    })
}

const VERSION: u16 = 1;
const ENTRY_BYTES: usize = 64;
/// Several images compressed as one (`--concat`).
const KIND_GROUP: u16 = 0x100;
const FLAG_DEBUG: u64 = 0x2;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;
/// Architecture names that end in `a`.
const FLAG_SPECIFIC: u64 = 0x10_0000;
/// Architecture names that end in `f`.
const FLAG_FAMILY: u64 = 0x20_0000;
