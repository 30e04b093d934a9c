//! Sleeping on a word of this process's memory.

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::event::timespec;

/// Sleeps while `word` is `seen`, at most `timeout`. May return early.
pub(crate) fn wait(word: &AtomicU32, seen: u32, timeout: Option<Duration>) {
    let spec = timeout.map(timespec);
    let spec_ptr = spec.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: a valid word and a null or valid timespec, both outliving the call.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            seen,
            spec_ptr,
        )
    };
}

/// Wakes everyone who sleeps on `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: a valid word; FUTEX_WAKE takes no further pointer.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            i32::MAX,
        )
    };
}
