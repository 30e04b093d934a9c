//! What can be wrong with an image.

/// Why an image was refused.
///
/// [`ImageError::class`] says which CUDA error a program expects for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The bytes begin like no kind of image.
    #[error("not a module image: it begins with {first:02x?}")]
    NotAnImage {
        /// The first bytes (zeroes where there were fewer).
        first: [u8; 4],
    },
    /// A structure reaches beyond the end of the bytes.
    #[error("truncated image: {what} needs {needed_bytes} bytes, of {have_bytes}")]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Where it ends, or how long it is.
        needed_bytes: u64,
        /// What there is.
        have_bytes: u64,
    },
    /// A field contradicts the format or another field.
    #[error("malformed image: {what}")]
    Malformed {
        /// The field or structure.
        what: &'static str,
    },
    /// A size is beyond what this crate handles.
    #[error("{what} of {bytes} bytes is over the limit of {max_bytes}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// Compressed data does not expand to what its header promises.
    #[error("corrupt {what} data")]
    CorruptCompression {
        /// The compression.
        what: &'static str,
    },
    /// A kind of image that cannot be loaded from memory, or not by this crate.
    #[error("{what} cannot be loaded as a module")]
    Unsupported {
        /// The kind.
        what: &'static str,
    },
    /// Nothing in the image runs on the device.
    #[error("no code for a device of sm_{device_sm}; the image has {offered}")]
    NoBinaryForGpu {
        /// The device, as major * 10 + minor.
        device_sm: u32,
        /// What the image offers, for a person to read.
        offered: String,
    },
    /// PTX that cannot be right.
    #[error("invalid PTX, line {line}: {what}")]
    InvalidPtx {
        /// The line, counted from 1.
        line: u32,
        /// What is wrong there.
        what: &'static str,
    },
}

/// The CUDA error code an [`ImageError`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageErrorClass {
    /// `CUDA_ERROR_INVALID_IMAGE` (200).
    InvalidImage,
    /// `CUDA_ERROR_NO_BINARY_FOR_GPU` (209).
    NoBinaryForGpu,
    /// `CUDA_ERROR_INVALID_PTX` (218).
    InvalidPtx,
    /// `CUDA_ERROR_INVALID_SOURCE` (300).
    InvalidSource,
}

impl ImageError {
    /// The CUDA error that a program expects for this.
    #[must_use]
    pub const fn class(&self) -> ImageErrorClass {
        match self {
            Self::NotAnImage { .. }
            | Self::Truncated { .. }
            | Self::Malformed { .. }
            | Self::TooLarge { .. }
            | Self::CorruptCompression { .. } => ImageErrorClass::InvalidImage,
            Self::Unsupported { .. } => ImageErrorClass::InvalidSource,
            Self::NoBinaryForGpu { .. } => ImageErrorClass::NoBinaryForGpu,
            Self::InvalidPtx { .. } => ImageErrorClass::InvalidPtx,
        }
    }
}
