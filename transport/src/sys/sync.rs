//! The atomics that lock-free parts use; `tests/loom.rs` puts loom's in their place.
#![forbid(unsafe_code)]

pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
