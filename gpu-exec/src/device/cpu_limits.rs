//! What one block may have on the CPU devices.
#![forbid(unsafe_code)]

/// Shared memory of a block that needs no attribute.
pub(crate) const SHARED_BYTES_DEFAULT: u32 = 48 << 10;
/// Shared memory of a block with `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(crate) const SHARED_BYTES_OPTIN: u32 = 227 << 10;
/// Most threads of a block.
pub(crate) const BLOCK_THREADS_MAX: u64 = 1024;
