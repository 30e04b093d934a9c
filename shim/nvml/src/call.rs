//! What every C function does around its own work.
#![forbid(unsafe_code)]

use std::ffi::c_uint;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::device::Device;
use crate::library::{self, Library};
use crate::status::{NvmlResult, Status};

/// `nvmlDevice_t`: the device's number plus one, so that a wrong one is an error and never an address.
pub(crate) type Handle = usize;

/// Runs a function's inside; a panic must not unwind into C.
pub(crate) fn answer(inside: impl FnOnce() -> NvmlResult) -> c_uint {
    match catch_unwind(AssertUnwindSafe(inside)) {
        Ok(Ok(())) => Status::SUCCESS.0,
        Ok(Err(status)) => status.0,
        Err(_) => Status::UNKNOWN.0,
    }
}

/// Handle of the device of that number.
pub(crate) fn handle(index: u32) -> NvmlResult<Handle> {
    usize::try_from(index)
        .ok()
        .and_then(|index| index.checked_add(1))
        .ok_or(Status::UNKNOWN)
}

/// Number of the device of that handle, which there may not be.
pub(crate) fn index_of(handle: Handle) -> NvmlResult<u32> {
    handle
        .checked_sub(1)
        .and_then(|index| u32::try_from(index).ok())
        .ok_or(Status::INVALID_ARGUMENT)
}

/// The device of that handle, and what it belongs to. Does not block.
pub(crate) fn known(handle: Handle) -> NvmlResult<(Arc<Library>, Device)> {
    let library = library::library()?;
    let device = library.device(index_of(handle)?)?;
    Ok((library, device))
}
