//! `farcallMark`: a program (or the script around it) names what it does next, and `--stats` counts each part alone.
//!
//! Fenced `unsafe`: an exported C function.

use std::ffi::c_char;

use crate::ptr::Text;
use crate::{global, observe};

/// `int farcallMark(const char *name)`: from here on, calls belong to the phase `name`. Costs a load and returns 0
/// where nothing is counted; returns 1 (`CUDA_ERROR_INVALID_VALUE`) without a name.
///
/// # Safety
/// `name` is null or a text with its NUL.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn farcallMark(name: *const c_char) -> u32 {
    if !observe::is_on() {
        return 0;
    }
    // SAFETY: the caller's promise is the one this function asks for.
    let name = unsafe { Text::from_program(name) };
    match name.get() {
        Ok(name) => {
            observe::mark(name, global::process());
            0
        }
        Err(status) => status.0,
    }
}
