//! Memory that has a descriptor, and so can be in several processes or at several addresses.

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// An empty memory file, closed on exec; `name` is for people who look at the process.
///
/// # Errors
/// No descriptors.
pub(crate) fn create(name: &CStr) -> io::Result<OwnedFd> {
    // The call itself: glibc has a function for it since 2.27 only.
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: just created, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
