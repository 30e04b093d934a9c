//! Waking threads that poll descriptors: an eventfd.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// A counter that can be polled.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// An eventfd that another process made.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// To pass it on.
    pub(crate) fn borrow(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Makes the descriptor readable. A full counter is readable already.
    pub(crate) fn set(&self) {
        let one = 1u64;
        // SAFETY: 8 readable bytes.
        unsafe { libc::write(self.raw(), ptr::from_ref(&one).cast(), 8) };
    }

    /// Makes it unreadable until the next `set`.
    pub(crate) fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: 8 writable bytes.
        unsafe { libc::read(self.raw(), ptr::from_mut(&mut count).cast(), 8) };
    }
}

/// A duration for the kernel; longer than 68 years is cut.
pub(crate) fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::from(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)),
        tv_nsec: libc::c_long::from(duration.subsec_nanos()),
    }
}
