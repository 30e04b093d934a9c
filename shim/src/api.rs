//! The driver API, one function per exported call. Everything here is safe code over checked wrappers; what the
//! program's pointers promise is `ptr`'s business.
#![forbid(unsafe_code)]

mod advice;
mod array;
mod context;
mod copy;
mod copy_box;
mod device;
mod event;
mod function;
mod graph;
mod graph_edges;
mod graph_generic;
mod graph_node;
mod graph_node_host;
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
mod stream_attribute;
mod stream_capture;
mod stream_memory;
mod virtual_memory;

pub(crate) use advice::*;
pub(crate) use array::*;
pub(crate) use context::*;
pub(crate) use copy::*;
pub(crate) use copy_box::*;
pub(crate) use device::*;
pub(crate) use event::*;
pub(crate) use function::*;
pub(crate) use graph::*;
pub(crate) use graph_edges::*;
pub(crate) use graph_generic::*;
pub(crate) use graph_node::*;
pub(crate) use graph_node_host::*;
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
pub(crate) use stream_attribute::*;
pub(crate) use stream_capture::*;
pub(crate) use stream_memory::*;
pub(crate) use virtual_memory::*;
