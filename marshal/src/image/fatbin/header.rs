//! The header of one fatbin entry.

use super::super::bytes::{slice_at, u16_at, u32_at, u64_at, until_nul};
use super::super::expand::Compression;
use super::super::{Arch, Variant};
use super::EntryKind;

/// The header of an entry, or of a group's member, which has the same form.
pub(super) struct Header<'a> {
    pub(super) kind: u16,
    /// In a group's member: where it begins. Elsewhere the header's own length.
    pub(super) offset_in_group: u32,
    /// The entry's length with padding.
    pub(super) padded_bytes: u64,
    pub(super) compressed_bytes: u32,
    /// Where the description of the compiler options is, if there is one.
    options_at: u32,
    sm: u32,
    name_at: u32,
    name_bytes: u32,
    flags: u64,
    pub(super) expanded_bytes: u64,
    /// All of it, with what is appended to the fields.
    bytes: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads a header that `bytes` is as long as.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            kind: u16_at(bytes, 0)?,
            offset_in_group: u32_at(bytes, 4)?,
            padded_bytes: u64_at(bytes, 8)?,
            compressed_bytes: u32_at(bytes, 16)?,
            options_at: u32_at(bytes, 20)?,
            sm: u32_at(bytes, 28)?,
            name_at: u32_at(bytes, 32)?,
            name_bytes: u32_at(bytes, 36)?,
            flags: u64_at(bytes, 40)?,
            expanded_bytes: u64_at(bytes, 56)?,
            bytes,
        })
    }

    /// Reads a member's header and returns what comes after it. Its length is not written
    /// down: it ends, 8-byte aligned, behind the NUL of the last text in it.
    pub(super) fn split_member(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let open_ended = Self::read(bytes)?;
        let mut end = FIELDS_BYTES as u64;
        if open_ended.name_at != 0 {
            end = end.max(text_end(open_ended.name_at, open_ended.name_bytes));
        }
        if let Some((text_at, text_bytes)) = open_ended.options_place() {
            end = end.max(text_end(text_at, text_bytes));
        }
        let (header, rest) = bytes.split_at_checked(usize::try_from(end).ok()?)?;
        Some((Self::read(header)?, rest))
    }

    /// What a group's header says about its members: how many there are, and their headers.
    pub(super) fn group(&self) -> Option<(u32, &'a [u8])> {
        let at = usize::try_from(self.options_at).ok()?;
        let count = u32_at(self.bytes, at)?;
        let table_bytes = u64::from(u32_at(self.bytes, at.checked_add(4)?)?);
        let table = slice_at(self.bytes, at as u64, table_bytes)?;
        Some((count, table.get(GROUP_FIELDS_BYTES..)?))
    }

    /// `None` if it is said to be compressed in two ways.
    pub(super) const fn compression(&self) -> Option<Compression> {
        match (self.flags & FLAG_LZ4 != 0, self.flags & FLAG_ZSTD != 0) {
            (false, false) => Some(Compression::None),
            (true, false) => Some(Compression::Lz4),
            (false, true) => Some(Compression::Zstd),
            (true, true) => None,
        }
    }

    pub(super) const fn entry_kind(&self) -> EntryKind {
        match self.kind {
            1 => EntryKind::Ptx,
            2 => EntryKind::Elf,
            8 => EntryKind::LtoIr,
            16 => EntryKind::Mercury,
            other => EntryKind::Other(other),
        }
    }

    pub(super) const fn arch(&self) -> Arch {
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

    pub(super) const fn is_debug(&self) -> bool {
        self.flags & FLAG_DEBUG != 0
    }

    pub(super) fn name(&self) -> &'a str {
        self.text(self.name_at, self.name_bytes)
    }

    pub(super) fn options(&self) -> &'a str {
        self.options_place()
            .map_or("", |(at, bytes)| self.text(at, bytes))
    }

    /// Where the options are. For machine code, what is there is no text.
    fn options_place(&self) -> Option<(u32, u32)> {
        let at = usize::try_from(self.options_at).ok()?;
        if at < FIELDS_BYTES {
            return None;
        }
        Some((
            u32_at(self.bytes, at)?,
            u32_at(self.bytes, at.checked_add(4)?)?,
        ))
    }

    /// Text in the header; empty if there is none, or something else.
    fn text(&self, at: u32, bytes: u32) -> &'a str {
        let text = slice_at(self.bytes, u64::from(at), u64::from(bytes));
        let text = text.and_then(|text| until_nul(text, 0)).unwrap_or_default();
        let text = std::str::from_utf8(text).unwrap_or_default();
        if text.contains(char::is_control) {
            ""
        } else {
            text.trim()
        }
    }
}

/// Where a text ends, with a NUL and padding.
fn text_end(at: u32, bytes: u32) -> u64 {
    u64::from(at)
        .saturating_add(u64::from(bytes))
        .saturating_add(1)
        .next_multiple_of(8)
}

const FIELDS_BYTES: usize = 64;
const GROUP_FIELDS_BYTES: usize = 8;
const FLAG_DEBUG: u64 = 0x2;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;
/// Architecture names that end in `a`.
const FLAG_SPECIFIC: u64 = 0x10_0000;
/// Architecture names that end in `f`.
const FLAG_FAMILY: u64 = 0x20_0000;
