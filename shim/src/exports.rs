//! The exported symbols of `libcuda.so.1`, generated from the catalogue.
//!
//! Fenced `unsafe`: each function receives what a C program passes, and only wraps it.
#![allow(
    non_snake_case,
    unused_variables,
    clippy::missing_safety_doc,
    clippy::cast_lossless,
    clippy::cast_sign_loss,
    clippy::ptr_as_ptr,
    clippy::too_many_arguments,
    clippy::unnecessary_cast,
    clippy::redundant_closure,
    clippy::fn_to_numeric_cast_any,
    clippy::unused_unit,
    clippy::no_effect_underscore_binding
)]

use farcall_marshal::catalogue::StreamMode;

use crate::ptr::{HostPtr, In, Out, Text};

include!(concat!(env!("OUT_DIR"), "/exports.rs"));

/// Address of an exported function.
pub(crate) struct Address(pub(crate) *const ());

// SAFETY: the address of a function is never written through and is the same in every thread.
unsafe impl Sync for Address {}

/// Address of an exported symbol.
pub(crate) fn address(symbol: &str) -> Option<*const ()> {
    let at = ADDRESSES.binary_search_by_key(&symbol, |row| row.0).ok()?;
    ADDRESSES.get(at).map(|row| row.1.0)
}
