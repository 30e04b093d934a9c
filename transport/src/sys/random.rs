//! Unpredictable bytes from the kernel.

use std::fs::File;
use std::io::{self, Read as _};

/// 16 random bytes, for session ids, keys and other secrets. Blocks only while the machine has just been started and has no randomness.
///
/// # Errors
/// The system has none.
pub fn random16() -> io::Result<[u8; 16]> {
    let mut bytes = [0u8; 16];
    // The call itself: glibc has a function for it since 2.25 only.
    // SAFETY: 16 writable bytes. Up to 256 bytes come whole or not at all.
    let got = unsafe { libc::syscall(libc::SYS_getrandom, bytes.as_mut_ptr(), bytes.len(), 0) };
    if got == 16 {
        return Ok(bytes);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    // Linux before 3.17.
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
