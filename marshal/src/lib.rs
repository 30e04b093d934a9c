//! What travels between the program and the device, and what it means: the catalogue of CUDA driver
//! calls, their wire records, and module images. Does no I/O and has no `unsafe`.
//!
//! - [`catalogue`]: every function of cuda.h with its permanent number, class and versions;
//! - [`record`]: heads and bodies of records, encoded in place and decoded in place;
//! - [`wire`]: one type per record, generated from `catalogue/driver.cat`;
//! - [`status`]: CUDA result codes, passed through unchanged;
//! - [`calltrace`]: the record of a program's calls, to be played again;
//! - [`places`]: addresses that are usually free on both sides;
//! - [`text`]: words of a peer, fit for a log;
//! - [`texture`]: how records describe textures and surfaces;
//! - [`image`]: fatbins, cubins and PTX: what is in them and what a device needs of them.
#![forbid(unsafe_code)]

pub mod calltrace;
pub mod catalogue;
pub mod image;
pub mod places;
pub mod record;
pub mod status;
pub mod text;
pub mod texture;
pub mod wire;
