//! The fenced part of the `cuda` device: the real driver, loaded at run time, behind safe types.
//!
//! Every `unsafe` block of the device is in this folder. What the types promise:
//! - an object exists as long as its value: handles are never copied out, `Drop` ends them, and every object
//!   holds its context;
//! - a range of device memory is named only with [`Extent`], which its maker vouches for;
//! - host memory that a device reads or writes is a [`Region`] of a pinned slab, whose slab outlives the copy
//!   (its drop waits for the context), and is read only after the [`Fence`] behind the copy has passed.
//!
//! What no type can promise: a kernel of the client can write anywhere in its own process' unified address space, pinned
//! slabs included. An executor process serves one client, so that client can hurt only its own session.
//!
//! Statuses are plain numbers here: cudarc's `CUresult` is a Rust enum, which a newer driver's code would make
//! undefined behaviour; from cudarc come the layouts (`driver::sys`), checked at compile time.

mod code;
mod context;
mod copy;
mod graph;
mod host;
mod memory;
mod table;
mod tensor_map;
mod texture;
mod watch;

pub(crate) use code::{Function, Launch, Module};
pub(crate) use context::{Context, Event, Fence, Stream};
pub(crate) use graph::{Graph, GraphExec, Rows};
pub(crate) use host::{Flow, HostBlock, Landing, Region, Slab, receive, receive_staged};
pub(crate) use memory::{Extent, Mapping, Physical, PlainBlock, VirtualRange};
pub(crate) use table::{Driver, LoadError};
pub(crate) use tensor_map::TensorMap;
pub(crate) use texture::{Texels, Texture};
pub(crate) use watch::{Blocked, Kind, Watch, take_suspicion};
