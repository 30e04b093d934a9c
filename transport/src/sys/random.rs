//! Unpredictable bytes from the kernel.

use std::io;

/// 16 random bytes, for session ids and keys.
pub(crate) fn random16() -> io::Result<[u8; 16]> {
    let mut bytes = [0u8; 16];
    // SAFETY: 16 writable bytes. Up to 256 bytes come whole or not at all.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == 16 {
        Ok(bytes)
    } else {
        Err(io::Error::last_os_error())
    }
}
