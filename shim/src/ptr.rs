//! What a program passes by pointer, wrapped once at the boundary.
//!
//! Fenced `unsafe`. The one precondition is the C contract of cuda.h: a pointer is null or valid, for the
//! type that the header declares, until the call returns. `exports` builds these wrappers from exactly the
//! arguments of the call that is running, which is what makes the methods safe to call inside it.

use std::ffi::{CStr, c_char, c_void};

use farcall_marshal::status::{CuResult, CuStatus};

/// Where a result goes.
#[derive(Clone, Copy)]
pub(crate) struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// # Safety
    /// `at` is null, or valid for writes of what the call documents until the call returns.
    pub(crate) unsafe fn from_program(at: *mut T) -> Self {
        Self(at)
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Stores a result that the caller must take; null is `INVALID_VALUE`.
    pub(crate) fn set(self, value: T) -> CuResult {
        if self.0.is_null() {
            return Err(CuStatus::INVALID_VALUE);
        }
        self.set_if(value);
        Ok(())
    }

    /// Stores a result that the caller may decline with null.
    pub(crate) fn set_if(self, value: T) {
        self.set_at(0, value);
    }

    /// Stores element `index` of an array that the call documents to be long enough.
    pub(crate) fn set_at(self, index: usize, value: T) {
        if self.0.is_null() {
            return;
        }
        // SAFETY: the caller of the C function promised an array of more than `index` elements.
        let at = unsafe { self.0.add(index) };
        // SAFETY: not null, valid for writes by the C contract; unaligned writes are allowed for.
        unsafe { at.write_unaligned(value) };
    }

    /// What stands there now (in-out arguments).
    pub(crate) fn get(self) -> CuResult<T> {
        self.get_at(0)
    }

    /// An array that the header declares writable and the call only reads.
    pub(crate) fn as_input(self) -> In<T> {
        In(self.0.cast_const())
    }

    /// Element `index` of an in-out array.
    pub(crate) fn get_at(self, index: usize) -> CuResult<T> {
        In(self.0.cast_const()).get_at(index)
    }
}

impl Out<c_char> {
    /// Writes text with its NUL, cut to `capacity` bytes.
    pub(crate) fn set_text(self, text: &str, capacity: i32) -> CuResult {
        let capacity = usize::try_from(capacity).map_err(|_| CuStatus::INVALID_VALUE)?;
        if self.0.is_null() || capacity == 0 {
            return Err(CuStatus::INVALID_VALUE);
        }
        let cut = text.len().min(capacity - 1);
        for (index, byte) in text
            .as_bytes()
            .iter()
            .take(cut)
            .chain(std::iter::once(&0))
            .enumerate()
        {
            self.set_at(index, c_char::from_ne_bytes([*byte]));
        }
        Ok(())
    }
}

impl Out<*mut c_void> {
    /// Pointer `index` of an array of pointers, as a place to read from.
    pub(crate) fn pointer_at(self, index: usize) -> CuResult<HostPtr> {
        Ok(HostPtr(self.get_at(index)?))
    }
}

/// What the program hands in by pointer.
#[derive(Clone, Copy)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// # Safety
    /// `at` is null, or valid for reads of what the call documents until the call returns.
    pub(crate) unsafe fn from_program(at: *const T) -> Self {
        Self(at)
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The value; null is `INVALID_VALUE`.
    pub(crate) fn get(self) -> CuResult<T> {
        self.get_at(0)
    }

    /// Element `index` of an array.
    pub(crate) fn get_at(self, index: usize) -> CuResult<T> {
        if self.0.is_null() {
            return Err(CuStatus::INVALID_VALUE);
        }
        // SAFETY: the caller of the C function promised an array of more than `index` elements.
        let at = unsafe { self.0.add(index) };
        // SAFETY: not null, valid for reads by the C contract; unaligned reads are allowed for.
        Ok(unsafe { at.read_unaligned() })
    }
}

/// A NUL-terminated string of the program.
#[derive(Clone, Copy)]
pub(crate) struct Text(*const c_char);

impl Text {
    /// # Safety
    /// `at` is null, or points to a NUL-terminated string that stays until the call returns.
    pub(crate) unsafe fn from_program<T>(at: *const T) -> Self {
        Self(at.cast())
    }

    /// The text, lossily decoded; null is `INVALID_VALUE`.
    pub(crate) fn get(self) -> CuResult<String> {
        if self.0.is_null() {
            return Err(CuStatus::INVALID_VALUE);
        }
        // SAFETY: not null, NUL-terminated by the C contract.
        let text = unsafe { CStr::from_ptr(self.0) };
        Ok(text.to_string_lossy().into_owned())
    }
}

/// Host memory of the program: a source or destination of a copy, an image, or an opaque value.
#[derive(Clone, Copy)]
pub(crate) struct HostPtr(*mut c_void);

// SAFETY: only an address; what may be done with it is decided where it is used.
unsafe impl Send for HostPtr {}
// SAFETY: as above.
unsafe impl Sync for HostPtr {}

impl HostPtr {
    /// # Safety
    /// `at` is null, or valid for what the call documents until the call returns (copies that CUDA lets run
    /// later: until the stream has been synchronized).
    pub(crate) unsafe fn from_program<T>(at: *const T) -> Self {
        Self(at.cast_mut().cast())
    }

    /// An address that an earlier call gave to the program or got from it.
    pub(crate) fn from_address(at: u64) -> Self {
        Self(at as *mut c_void)
    }

    pub(crate) fn address(self) -> u64 {
        self.0 as u64
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// As the place of a typed result.
    pub(crate) fn out<T: Copy>(self) -> Out<T> {
        Out(self.0.cast())
    }

    /// As the place of a typed argument.
    pub(crate) fn input<T: Copy>(self) -> In<T> {
        In(self.0.cast_const().cast())
    }

    /// The address `offset` bytes on.
    pub(crate) fn offset(self, offset: usize) -> Self {
        Self(self.0.wrapping_byte_add(offset))
    }

    /// The program's bytes. The slice must not outlive the call.
    pub(crate) fn bytes<'a>(self, len: usize) -> CuResult<&'a [u8]> {
        if len == 0 {
            return Ok(&[]);
        }
        if self.0.is_null() {
            return Err(CuStatus::INVALID_VALUE);
        }
        // SAFETY: not null, `len` readable bytes by the C contract of the running call; a program that
        // changes them meanwhile has a data race of its own.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast_const().cast(), len) })
    }

    /// The program's bytes, if all of them are mapped. For lengths that the program's data claims and the program
    /// did not pass itself: a corrupt header must be an error, not a fault.
    pub(crate) fn mapped_bytes<'a>(self, len: usize) -> CuResult<&'a [u8]> {
        const PAGE: usize = 4096;
        let start = self.0 as usize & !(PAGE - 1);
        let end = (self.0 as usize)
            .checked_add(len)
            .ok_or(CuStatus::INVALID_IMAGE)?;
        let mut residency = vec![0_u8; (end - start).div_ceil(PAGE)];
        // SAFETY: asks about pages, touches none of them; the vector has one byte per page.
        let known =
            unsafe { libc::mincore(start as *mut c_void, end - start, residency.as_mut_ptr()) };
        if known == 0 {
            self.bytes(len)
        } else {
            Err(CuStatus::INVALID_IMAGE)
        }
    }

    /// Copies into the program's memory.
    pub(crate) fn write(self, bytes: &[u8]) -> CuResult {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(CuStatus::INVALID_VALUE);
        }
        // SAFETY: not null, that many writable bytes by the C contract; our reply buffer does not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.cast(), bytes.len()) };
        Ok(())
    }

    /// Moves within the program's memory; the ranges may overlap.
    pub(crate) fn copy_from(self, source: Self, len: usize) -> CuResult {
        if len == 0 {
            return Ok(());
        }
        if self.0.is_null() || source.0.is_null() {
            return Err(CuStatus::INVALID_VALUE);
        }
        // SAFETY: both not null and valid for `len` bytes by the C contract.
        unsafe { std::ptr::copy(source.0.cast_const().cast::<u8>(), self.0.cast::<u8>(), len) };
        Ok(())
    }

    /// Where the NUL of a text is.
    pub(crate) fn text_len(self) -> CuResult<usize> {
        if self.0.is_null() {
            return Err(CuStatus::INVALID_VALUE);
        }
        // SAFETY: not null; the caller found the start of a text image, which runs to its NUL.
        let text = unsafe { CStr::from_ptr(self.0.cast_const().cast()) };
        Ok(text.to_bytes().len())
    }

    /// The raw destination of a transfer.
    pub(crate) fn raw(self) -> *mut u8 {
        self.0.cast()
    }
}

/// Calls a host function of the program.
pub(crate) fn call_host_function(function: usize, user_data: u64) {
    if function == 0 {
        return;
    }
    // SAFETY: the program passed it as a CUhostFn, whose type this is.
    let function: unsafe extern "C" fn(*mut c_void) = unsafe { std::mem::transmute(function) };
    // SAFETY: the program promised that it can be called once with its user data.
    unsafe { function(user_data as *mut c_void) };
}

/// Calls a stream callback of the program.
pub(crate) fn call_stream_callback(function: usize, stream: u64, status: u32, user_data: u64) {
    if function == 0 {
        return;
    }
    // SAFETY: the program passed it as a CUstreamCallback, whose type this is.
    let function: unsafe extern "C" fn(u64, u32, *mut c_void) =
        unsafe { std::mem::transmute(function) };
    // SAFETY: the program promised that it can be called once with its user data.
    unsafe { function(stream, status, user_data as *mut c_void) };
}
/// Calls the block-size-to-shared-memory function of an occupancy question.
pub(crate) fn call_block_size_function(function: usize, block: i32) -> usize {
    if function == 0 {
        return 0;
    }
    // SAFETY: the program passed it as a CUoccupancyB2DSize, whose type this is.
    let function: unsafe extern "C" fn(i32) -> usize = unsafe { std::mem::transmute(function) };
    // SAFETY: it takes any block size.
    unsafe { function(block) }
}
