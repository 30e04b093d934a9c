//! Packs registers into fewer rows. For now each has its own.
#![forbid(unsafe_code)]

use crate::exec::code::Code;

/// Returns an estimate of the registers a thread uses.
pub(super) fn allocate(code: &mut Code) -> u32 {
    code.rows.clamp(1, 255)
}
