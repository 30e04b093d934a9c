//! Module images: what `cuModuleLoadData` and its kin are handed.
//!
//! CUDA passes an image as a bare pointer. This module says how long the image is
//! ([`extent`]), opens it ([`Image`]: a fatbin, one cubin, or PTX text), picks what one device
//! can run ([`select`]), and reads from that what a launch needs to know ([`inspect`]): the
//! layout of every kernel's parameters, above all. [`content_hash`], [`compress_for_wire`] and
//! [`expand_from_wire`] serve sending an image once.
//!
//! The steps of a load: read a prefix until [`extent`] is satisfied, [`Image::open`],
//! [`select`] for the server's device, [`inspect`] the selected bytes, hash them, and send
//! them if the server has not seen that hash.
//!
//! Nothing here trusts its input: any bytes give a value or an [`ImageError`]. Work and memory
//! are linear in the input, or in [`EXPANDED_BYTES_MAX`] where something is decompressed. No
//! function blocks or does I/O.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod arch;
mod bytes;
mod container;
mod cubin;
mod elf;
mod error;
mod expand;
mod extent;
mod fatbin;
mod info;
mod nvinfo;
mod ptx;
mod select;
mod wire;

pub use arch::{Arch, Variant};
pub use container::{Form, Image};
pub use error::{ImageError, ImageErrorClass};
pub use expand::{Compression, EXPANDED_BYTES_MAX};
pub use extent::{Extent, IMAGE_BYTES_MAX, extent};
pub use fatbin::{Entry, EntryKind};
pub use info::{
    Cluster, CodeKind, GlobalInfo, KernelInfo, ModuleInfo, ParamSpec, Resources, inspect,
};
pub use select::{Accepts, Selected, Target, select};
pub use wire::{compress_for_wire, content_hash, expand_from_wire};
