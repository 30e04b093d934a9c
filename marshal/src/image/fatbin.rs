//! The fatbin container: code for several architectures, one entry each.
//!
//! A header of 16 bytes, then entries: an entry header of 64 bytes or more, then the entry's
//! bytes, padded. The header's length is a field, because newer toolkits append to it: names,
//! compiler options, and the table of an entry that several images share.

mod header;

use self::header::Header;
use super::bytes::{slice_at, u16_at, u32_at, u64_at};
use super::expand::Compression;
use super::{Arch, ImageError};

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
        let stored = Stored::split(rest).ok_or(ImageError::Malformed {
            what: "a fatbin entry",
        })?;
        rest = stored.rest;
        if stored.header.kind == KIND_GROUP {
            stored.push_members(&mut entries)?;
        } else {
            entries.push(stored.entry()?);
        }
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

/// An entry as it lies in the container.
struct Stored<'a> {
    header: Header<'a>,
    bytes: &'a [u8],
    compression: Compression,
    /// What comes after it.
    rest: &'a [u8],
}

impl<'a> Stored<'a> {
    fn split(bytes: &'a [u8]) -> Option<Self> {
        let header_bytes = usize::try_from(u32_at(bytes, 4)?).ok()?;
        let (header, after) = bytes.split_at_checked(header_bytes)?;
        let header = Header::read(header)?;
        let padded_bytes = usize::try_from(header.padded_bytes).ok()?;
        let (padded, rest) = after.split_at_checked(padded_bytes)?;
        let compression = header.compression()?;
        let stored_bytes = match compression {
            Compression::None => padded_bytes,
            _ => usize::try_from(header.compressed_bytes).ok()?,
        };
        Some(Self {
            bytes: padded.get(..stored_bytes)?,
            compression,
            header,
            rest,
        })
    }

    fn expanded_bytes(&self) -> Result<usize, ImageError> {
        match self.compression {
            Compression::None => Ok(self.bytes.len()),
            _ => size(self.header.expanded_bytes),
        }
    }

    fn entry(&self) -> Result<Entry<'a>, ImageError> {
        let expanded_bytes = self.expanded_bytes()?;
        Ok(self.entry_of(&self.header, expanded_bytes, None))
    }

    /// The entries of a group: behind a count and a length, their headers.
    fn push_members(&self, entries: &mut Vec<Entry<'a>>) -> Result<(), ImageError> {
        const MALFORMED: ImageError = ImageError::Malformed {
            what: "a group of fatbin entries",
        };
        let group_bytes = self.expanded_bytes()?;
        let (count, mut headers) = self.header.group().ok_or(MALFORMED)?;
        for _ in 0..count {
            let (member, rest) = Header::split_member(headers).ok_or(MALFORMED)?;
            headers = rest;
            let part = Member {
                offset: u64::from(member.offset_in_group),
                group_bytes,
            };
            let expanded_bytes = size(member.padded_bytes)?;
            entries.push(self.entry_of(&member, expanded_bytes, Some(part)));
        }
        Ok(())
    }

    fn entry_of(
        &self,
        header: &Header<'a>,
        expanded_bytes: usize,
        member: Option<Member>,
    ) -> Entry<'a> {
        Entry {
            kind: header.entry_kind(),
            arch: header.arch(),
            compression: self.compression,
            expanded_bytes,
            debug: header.is_debug(),
            name: header.name(),
            options: header.options(),
            stored: self.bytes,
            member,
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
/// Several images compressed as one (`--concat`).
const KIND_GROUP: u16 = 0x100;
