//! Sleeping and waking: an eventfd for threads that poll descriptors, an event count on a
//! futex for threads that only wait for other threads.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
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

/// Lets threads wait until something that they check themselves may have changed.
///
/// A waiter reads [`EventCount::epoch`], checks its condition, then sleeps while the epoch
/// stands; whoever changes the condition calls [`EventCount::advance`] afterwards. No wake-up
/// is lost: either the waiter sees the change, or the epoch it read is old.
#[derive(Debug, Default)]
pub(crate) struct EventCount {
    epoch: AtomicU32,
    waiters: AtomicU32,
}

impl EventCount {
    /// Announces a waiter, so that `advance` takes the trouble.
    pub(crate) fn enter(&self) {
        // SYNC: SeqCst pairs with `advance`: either it sees this waiter, or this waiter's
        // following check sees what was done before `advance`.
        self.waiters.fetch_add(1, SeqCst);
    }

    pub(crate) fn leave(&self) {
        self.waiters.fetch_sub(1, SeqCst);
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(SeqCst)
    }

    /// Wakes every waiter. Costs a load when there is none.
    pub(crate) fn advance(&self) {
        std::sync::atomic::fence(SeqCst);
        if self.waiters.load(SeqCst) == 0 {
            return;
        }
        self.epoch.fetch_add(1, SeqCst);
        // SAFETY: a valid word; FUTEX_WAKE takes no further pointer.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.epoch.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                i32::MAX,
            )
        };
    }

    /// Sleeps while the epoch is `seen`, at most `timeout`. May return early.
    pub(crate) fn sleep(&self, seen: u32, timeout: Option<Duration>) {
        let spec = timeout.map(timespec);
        let spec_ptr = spec.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: a valid word and a null or valid timespec, both outliving the call.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.epoch.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                seen,
                spec_ptr,
            )
        };
    }
}

/// A duration for the kernel; longer than 68 years is cut.
pub(crate) fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::from(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)),
        tv_nsec: libc::c_long::from(duration.subsec_nanos()),
    }
}
