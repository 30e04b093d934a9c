//! How long an image is, from its first bytes.

use super::bytes::{u16_at, u32_at, u64_at};
use super::{ImageError, elf, fatbin};

/// The largest image that is looked at: 2 GiB.
pub const IMAGE_BYTES_MAX: usize = 2 << 30;

/// What the first bytes of an image say about its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Ask again with a prefix of this many bytes; always more than was given, and never more
    /// than the image has, if the image is what it says it is.
    NeedMore(usize),
    /// The image is this many bytes long.
    Total(usize),
    /// Text: the image runs up to its NUL.
    Text,
    /// A wrapper as nvcc embeds it, which points to the image.
    Wrapper {
        /// Address of the fatbin, in the process that holds the wrapper.
        data_ptr: u64,
        /// 1: one fatbin. 2: `filename_ptr` is an array of fatbins to be linked.
        version: u32,
        /// Address of a file name, or what `version` 2 makes of it.
        filename_ptr: u64,
    },
}

/// What the first bytes of an image say about its length.
///
/// Begin with a prefix of four bytes, which every image has, and lengthen it as
/// [`Extent::NeedMore`] asks. Few calls are needed: three for a cubin, two for a fatbin.
/// Allocates nothing.
///
/// # Errors
/// [`ImageError::NotAnImage`] if no image begins like that, and other variants if the
/// headers contradict themselves or say more than [`IMAGE_BYTES_MAX`].
pub fn extent(prefix: &[u8]) -> Result<Extent, ImageError> {
    let Some(first) = prefix.first_chunk::<4>() else {
        return short(prefix);
    };
    match u32::from_le_bytes(*first) {
        fatbin::WRAPPER_MAGIC => Ok(wrapper(prefix)),
        fatbin::MAGIC => fatbin_extent(prefix),
        elf::MAGIC => elf_extent(prefix),
        LTO_IR_MAGIC => Err(ImageError::Unsupported { what: "LTO IR" }),
        LLVM_BITCODE_MAGIC => Err(ImageError::Unsupported {
            what: "LLVM bitcode",
        }),
        fatbin::OLD_MAGIC => Err(ImageError::Unsupported {
            what: "a fatbin of CUDA 3 or earlier",
        }),
        _ if looks_like_text(prefix) => Ok(Extent::Text),
        _ => Err(ImageError::NotAnImage { first: *first }),
    }
}

/// Whether an image that begins so is text. PTX may begin with blank lines and comments, and a
/// text may be shorter than the four bytes that are looked at.
pub(super) fn looks_like_text(prefix: &[u8]) -> bool {
    let mut text = prefix
        .iter()
        .take(4)
        .take_while(|&&byte| byte != 0)
        .peekable();
    text.peek().is_some() && text.all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

const LTO_IR_MAGIC: u32 = 0x7f4e_43ed;
const LLVM_BITCODE_MAGIC: u32 = 0xdec0_4342;

/// Fewer than four bytes: only a text can be so short, and its NUL shows that it is.
fn short(prefix: &[u8]) -> Result<Extent, ImageError> {
    match prefix.iter().position(|&byte| byte == 0) {
        None => Ok(Extent::NeedMore(4)),
        Some(0) => Err(ImageError::NotAnImage { first: [0; 4] }),
        Some(_) => Ok(Extent::Text),
    }
}

fn wrapper(prefix: &[u8]) -> Extent {
    let fields = || {
        Some(Extent::Wrapper {
            version: u32_at(prefix, 4)?,
            data_ptr: u64_at(prefix, 8)?,
            filename_ptr: u64_at(prefix, 16)?,
        })
    };
    fields().unwrap_or(Extent::NeedMore(fatbin::WRAPPER_BYTES))
}

fn fatbin_extent(prefix: &[u8]) -> Result<Extent, ImageError> {
    let (Some(header_bytes), Some(body_bytes)) = (u16_at(prefix, 6), u64_at(prefix, 8)) else {
        return Ok(Extent::NeedMore(fatbin::HEADER_BYTES));
    };
    total("a fatbin", u64::from(header_bytes).checked_add(body_bytes))
}

fn elf_extent(prefix: &[u8]) -> Result<Extent, ImageError> {
    let Some(header) = elf::Header::read(prefix)? else {
        return Ok(Extent::NeedMore(elf::HEADER_BYTES));
    };
    let Some(count) = header.section_count(prefix) else {
        return total("a section header", header.table_end(1)).map(more);
    };
    // The section table is at the end, or close to it.
    let table_end = total("a section table", header.table_end(count))?;
    match table_end {
        Extent::Total(bytes) if bytes > prefix.len() => Ok(Extent::NeedMore(bytes)),
        _ => total("a cubin", header.file_end(prefix, count)),
    }
}

fn more(extent: Extent) -> Extent {
    match extent {
        Extent::Total(bytes) => Extent::NeedMore(bytes),
        other => other,
    }
}

fn total(what: &'static str, bytes: Option<u64>) -> Result<Extent, ImageError> {
    let bytes = bytes.unwrap_or(u64::MAX);
    match usize::try_from(bytes) {
        Ok(bytes) if bytes <= IMAGE_BYTES_MAX => Ok(Extent::Total(bytes)),
        _ => Err(ImageError::TooLarge {
            what,
            bytes,
            max_bytes: IMAGE_BYTES_MAX as u64,
        }),
    }
}
