//! How `cuTexObjectCreate`'s record describes a texture or surface object. Kinds, formats, channels and modes are numbers of
//! cuda.h; edges count texels and are 1 where there is no such dimension; the border is bits of floats.

/// `kind`: `CU_RESOURCE_TYPE_ARRAY`.
pub const KIND_ARRAY: u32 = 0;
/// `kind`: `CU_RESOURCE_TYPE_LINEAR`.
pub const KIND_LINEAR: u32 = 2;
/// `kind`: `CU_RESOURCE_TYPE_PITCH2D`.
pub const KIND_PITCH2D: u32 = 3;

/// `flags`: neighbours are weighed.
pub const FLAG_LINEAR_FILTER: u32 = 1;
/// `flags`: coordinates go from 0 to 1.
pub const FLAG_NORMALIZED: u32 = 2;
/// `flags`: channels of 8 or 16 bits are read as integers.
pub const FLAG_INTEGERS: u32 = 4;
/// `flags`: colours are sRGB.
pub const FLAG_SRGB: u32 = 8;
/// `flags`: a surface, which kernels load from and store to without conversion.
pub const FLAG_SURFACE: u32 = 16;
/// `flags`: the last dimension counts layers.
pub const FLAG_LAYERED: u32 = 32;
