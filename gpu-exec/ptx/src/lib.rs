//! Parses PTX and runs it on the CPU.
//!
//! # Quick start
//! [`Module::parse`] turns PTX text into a compiled module, or names the instruction and
//! the line it does not know. [`LoadedModule::load`] places the module's globals at device
//! addresses that the caller chooses. [`Engine::launch`] runs a kernel and blocks until
//! every block is done.
//!
//! # Memory model
//! Device addresses are host virtual addresses of this process. Every access of a kernel
//! to global memory is checked against the caller's [`MemoryMap`] before it is made;
//! shared, local, parameter and constant accesses are checked against their sizes. A bad
//! access ends the launch with a [`Fault`] and touches nothing.
//!
//! # Thread safety
//! [`Module`], [`LoadedModule`], [`Kernel`] and [`Engine`] are `Send + Sync`; several threads may
//! launch on one engine at a time.

mod api;
mod error;
mod exec;
mod lower;
mod parse;
mod texture;

pub use api::{
    Engine, GlobalInfo, GlobalSpace, Kernel, KernelInfo, Launch, LaunchReport, LoadedModule,
    MemoryMap, Module, ParamInfo, Region,
};
pub use error::{Fault, FaultKind, LoadError, PtxError};
pub use texture::{AddressMode, Format, Texture};
