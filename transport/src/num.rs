//! Lossless number conversions for 64-bit targets, the only ones CUDA has.
#![forbid(unsafe_code)]

const _: () = assert!(usize::BITS == 64, "positions are 64 bits wide");

/// A length as a stream position.
pub(crate) const fn to_u64(n: usize) -> u64 {
    n as u64
}

/// A position as an index.
#[expect(
    clippy::cast_possible_truncation,
    reason = "usize has 64 bits here, asserted above"
)]
pub(crate) const fn to_usize(n: u64) -> usize {
    n as usize
}

/// The next multiple of 8. Saturates, so that no length can wrap to a small one.
pub(crate) const fn align8(n: usize) -> usize {
    n.saturating_add(7) & !7
}
