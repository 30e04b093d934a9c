//! The full barrier of Dekker's handshakes, on the path of every frame.

use std::sync::atomic::Ordering;

/// `fence(SeqCst)`, which alone is ever asked for. On x86-64 that compiles to `mfence`, and a locked read-modify-write
/// orders as much (Intel's manual, volume 3, 9.2) in a third of the time on Intel's processors; crossbeam does the same.
#[inline]
pub(crate) fn fence(order: Ordering) {
    debug_assert_eq!(order, Ordering::SeqCst);
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: adds nothing to a mapped word of this thread's own stack: its value stays; only flags change, and the compiler moves no access across it (no `nomem`).
    unsafe {
        std::arch::asm!("lock or dword ptr [rsp], 0", options(nostack));
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    std::sync::atomic::fence(order);
}
