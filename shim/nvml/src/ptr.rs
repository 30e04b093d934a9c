//! What a program passes by pointer, wrapped once at the boundary. Fenced `unsafe`.
//!
//! The one precondition is the C contract of nvml.h: a pointer is null or valid, for the type and length that
//! the header declares, until the call returns. `exports` builds these wrappers from exactly the arguments of the
//! call that is running, which is what makes their methods safe inside it.

use std::ffi::{CStr, c_char, c_uint};

use crate::status::{NvmlResult, Status};

/// Where a result goes.
#[derive(Clone, Copy)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// # Safety
    /// `at` is null, or valid for writes until the call returns.
    pub(crate) unsafe fn new(at: *mut T) -> Self {
        Self(at)
    }

    pub(crate) fn set(self, value: T) -> NvmlResult {
        if self.0.is_null() {
            return Err(Status::INVALID_ARGUMENT);
        }
        // SAFETY: not null, so valid for writes by the promise of `new`; unaligned is allowed for.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }
}

/// Where a text goes.
#[derive(Clone, Copy)]
pub(crate) struct Text(*mut c_char, usize);

impl Text {
    /// # Safety
    /// `at` is null, or has room for `length` bytes until the call returns.
    pub(crate) unsafe fn new(at: *mut c_char, length: c_uint) -> Self {
        Self(at, usize::try_from(length).unwrap_or(0))
    }

    /// Writes `text` and its NUL, or nothing.
    pub(crate) fn set(self, text: &str) -> NvmlResult {
        if self.0.is_null() {
            return Err(Status::INVALID_ARGUMENT);
        }
        if text.len() >= self.1 {
            return Err(Status::INSUFFICIENT_SIZE);
        }
        let to = self.0.cast::<u8>();
        // SAFETY: more than `text.len()` bytes by the promise of `new` and the check above.
        unsafe { to.copy_from_nonoverlapping(text.as_ptr(), text.len()) };
        // SAFETY: within the room, as above.
        let end = unsafe { to.add(text.len()) };
        // SAFETY: as above: there is one more byte than the text has.
        unsafe { end.write(0) };
        Ok(())
    }
}

/// # Safety
/// `at` is null, or valid for reads until the call returns.
pub(crate) unsafe fn get<T: Copy>(at: *const T) -> NvmlResult<T> {
    if at.is_null() {
        return Err(Status::INVALID_ARGUMENT);
    }
    // SAFETY: not null, so valid for reads by this function's condition; unaligned is allowed for.
    Ok(unsafe { at.read_unaligned() })
}

/// # Safety
/// `at` is null, or a text with its NUL until the call returns.
pub(crate) unsafe fn text(at: *const c_char) -> NvmlResult<String> {
    if at.is_null() {
        return Err(Status::INVALID_ARGUMENT);
    }
    // SAFETY: not null, so a text with its NUL by this function's condition.
    Ok(unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned())
}
