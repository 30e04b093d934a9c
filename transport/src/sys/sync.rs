//! What lock-free parts use; `tests/loom.rs` puts loom's in its place.
#![forbid(unsafe_code)]

pub(crate) use super::barrier::fence;
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// In how many parts of a shared ring the writer learns what was consumed: each is as much as one look takes out of it.
pub(crate) const TOLD_PARTS: u64 = 8;
