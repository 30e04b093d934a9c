//! Who gets which part of which GPU: capacity, placement, order. No clock, no I/O, no randomness.
#![forbid(unsafe_code)]

pub(crate) mod cluster;
pub(crate) mod place;
pub(crate) mod queue;
pub(crate) mod span;

pub(crate) use cluster::{Cluster, Gpu, Node};
pub(crate) use queue::{Queue, Tag};
