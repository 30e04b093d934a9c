//! An opened image: the list of what is in it.

use super::elf::{self, Header};
use super::expand::{self, Compression};
use super::{Entry, EntryKind, ImageError, extent, fatbin, ptx};

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// A container of entries.
    Fatbin,
    /// A single cubin.
    Elf,
    /// A single PTX text.
    Ptx,
}

/// An image, with the list of what is in it. Nothing is expanded yet.
#[derive(Debug, Clone)]
pub struct Image<'a> {
    form: Form,
    entries: Vec<Entry<'a>>,
}

impl<'a> Image<'a> {
    /// Opens an image. Text ends at its first NUL, if it has one; what follows a fatbin in
    /// `bytes` is left out of account.
    ///
    /// Reads headers only, but the whole of a text.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] for a wrapper, which has a pointer to follow first, and for
    /// images that are no modules; other variants for images that are broken.
    pub fn open(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let first = bytes.first_chunk::<4>().copied().unwrap_or_default();
        match u32::from_le_bytes(first) {
            fatbin::MAGIC => Ok(Self {
                form: Form::Fatbin,
                entries: fatbin::entries(bytes)?,
            }),
            fatbin::WRAPPER_MAGIC => Err(ImageError::Unsupported {
                what: "a pointer to a fatbin",
            }),
            elf::MAGIC => Self::of_elf(bytes),
            _ if extent::looks_like_text(bytes) => Self::of_text(bytes),
            // Says what is wrong with it.
            _ => Err(extent::extent(bytes)
                .err()
                .unwrap_or(ImageError::NotAnImage { first })),
        }
    }

    /// What the image is.
    #[must_use]
    pub const fn form(&self) -> Form {
        self.form
    }

    /// What is in the image, in its order.
    #[must_use]
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    fn of_elf(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let header = Header::read(bytes)?.ok_or(ImageError::Truncated {
            what: "an ELF header",
            needed_bytes: elf::HEADER_BYTES as u64,
            have_bytes: bytes.len() as u64,
        })?;
        let entry = bare(EntryKind::Elf, header.arch(), bytes);
        Ok(Self {
            form: Form::Elf,
            entries: vec![entry],
        })
    }

    fn of_text(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let text = without_nul(bytes);
        let entry = bare(EntryKind::Ptx, ptx::header(text)?.arch, text);
        Ok(Self {
            form: Form::Ptx,
            entries: vec![entry],
        })
    }
}

impl<'a> Entry<'a> {
    /// The entry's bytes, expanded if need be: borrowed when they are stored as they are.
    ///
    /// PTX comes without the NULs that pad it.
    ///
    /// # Errors
    /// [`ImageError::CorruptCompression`], [`ImageError::TooLarge`], or
    /// [`ImageError::Malformed`] if the entry lies outside of what it was compressed with.
    pub fn expand(&self) -> Result<std::borrow::Cow<'a, [u8]>, ImageError> {
        use std::borrow::Cow;
        let text = self.kind == EntryKind::Ptx;
        if self.compression == Compression::None {
            let part = self.part(self.stored)?;
            return Ok(Cow::Borrowed(if text { without_nul(part) } else { part }));
        }
        let group_bytes = self.member.map_or(self.expanded_bytes, |m| m.group_bytes);
        let mut expanded = expand::expand(self.stored, self.compression, group_bytes)?;
        if self.member.is_some() {
            expanded = self.part(&expanded)?.to_vec();
        }
        if text {
            expanded.truncate(without_nul(&expanded).len());
        }
        Ok(Cow::Owned(expanded))
    }

    /// This entry's share of what its group expands to.
    fn part<'b>(&self, group: &'b [u8]) -> Result<&'b [u8], ImageError> {
        let Some(member) = self.member else {
            return Ok(group);
        };
        super::bytes::slice_at(group, member.offset, self.expanded_bytes as u64).ok_or(
            ImageError::Malformed {
                what: "a member of a group of fatbin entries",
            },
        )
    }
}

fn bare(kind: EntryKind, arch: super::Arch, bytes: &[u8]) -> Entry<'_> {
    Entry {
        kind,
        arch,
        compression: Compression::None,
        expanded_bytes: bytes.len(),
        debug: false,
        name: "",
        options: "",
        stored: bytes,
        member: None,
    }
}

fn without_nul(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == 0).next().unwrap_or(text)
}
