//! The linker.
#![forbid(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::module::{clear_logs, read_file};
use crate::context;
use crate::link::{Input, Linker};
use crate::module::Code;
use crate::process::process;
use crate::ptr::{HostPtr, Out, Text};

/// `CUjitInputType`.
mod kind {
    pub(super) const CUBIN: u32 = 0;
    pub(super) const PTX: u32 = 1;
    pub(super) const FATBINARY: u32 = 2;
    /// Objects, libraries of them, NVVM bitcode.
    pub(super) const OTHERS: std::ops::RangeInclusive<u32> = 3..=5;
}

pub(crate) fn cuLinkCreate_v2(
    count: u32,
    options: Out<u32>,
    values: Out<*mut c_void>,
    place: Out<u64>,
) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    context::current()?;
    clear_logs(count, options, values)?;
    let linkers = &process()?.linkers;
    let handle = linkers.reserve();
    linkers.insert(handle, Arc::new(Linker::default()));
    place.set(handle)
}

fn add(handle: u64, input_kind: u32, bytes: &[u8]) -> CuResult {
    let linker = process()?.linkers.get(handle)?;
    let bytes = match input_kind {
        kind::PTX => bytes.split(|byte| *byte == 0).next().unwrap_or_default(),
        kind::CUBIN | kind::FATBINARY => bytes,
        k if kind::OTHERS.contains(&k) => return Err(CuStatus::NOT_SUPPORTED),
        _ => return Err(CuStatus::INVALID_VALUE),
    };
    // Opening it says what a driver would say of a broken one.
    Code::from_bytes(bytes, context::current()?.device)?;
    if input_kind != kind::PTX {
        return linker.add(Input::Code(bytes.to_vec()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| CuStatus::INVALID_PTX)?;
    linker.add(Input::Ptx(text.to_owned()))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuLinkAddData_v2(
    handle: u64,
    input_kind: u32,
    data: HostPtr,
    bytes: usize,
    _name: Text,
    count: u32,
    options: Out<u32>,
    values: Out<*mut c_void>,
) -> CuResult {
    clear_logs(count, options, values)?;
    add(handle, input_kind, data.bytes(bytes)?)
}

/// The path is the client's.
pub(crate) fn cuLinkAddFile_v2(
    handle: u64,
    input_kind: u32,
    path: Text,
    count: u32,
    options: Out<u32>,
    values: Out<*mut c_void>,
) -> CuResult {
    clear_logs(count, options, values)?;
    add(handle, input_kind, &read_file(path)?)
}

pub(crate) fn cuLinkComplete(handle: u64, place: Out<*mut c_void>, size: Out<usize>) -> CuResult {
    let (image, bytes) = process()?.linkers.get(handle)?.complete()?;
    place.set(image.cast_mut().cast())?;
    size.set_if(bytes);
    Ok(())
}

pub(crate) fn cuLinkDestroy(handle: u64) -> CuResult {
    process()?.linkers.remove(handle).map(|_| ())
}

pub(crate) use cuLinkAddData_v2 as cuLinkAddData;
pub(crate) use cuLinkAddFile_v2 as cuLinkAddFile;
pub(crate) use cuLinkCreate_v2 as cuLinkCreate;
