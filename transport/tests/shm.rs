//! The suite over shared memory.
#![allow(clippy::unwrap_used)]

mod support;

suite!(support::Shm);
