//! The driver API, one function per exported call. Everything here is safe code over checked wrappers; what the
//! program's pointers promise is `ptr`'s business.
#![forbid(unsafe_code)]

mod context;
mod copy;
mod device;
mod event;
mod function;
mod graph;
mod host_memory;
mod init;
mod launch;
mod memory;
mod memset;
mod module;
mod occupancy;
mod pointer;
mod pool;
mod stream;
mod stream_capture;
mod virtual_memory;

pub(crate) use context::*;
pub(crate) use copy::*;
pub(crate) use device::*;
pub(crate) use event::*;
pub(crate) use function::*;
pub(crate) use graph::*;
pub(crate) use host_memory::*;
pub(crate) use init::*;
pub(crate) use launch::*;
pub(crate) use memory::*;
pub(crate) use memset::*;
pub(crate) use module::*;
pub(crate) use occupancy::*;
pub(crate) use pointer::*;
pub(crate) use pool::*;
pub(crate) use stream::*;
pub(crate) use stream_capture::*;
pub(crate) use virtual_memory::*;
