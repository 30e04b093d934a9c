//! Tells a forked child from its parent without a system call: a page that the kernel wipes
//! in children.

use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// One word that reads nonzero in the process that made it and zero in its children.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForkMark(&'static AtomicU32);

/// If the kernel cannot wipe pages: only [`ForkMark::clear`] makes a child inert.
static UNWIPED: AtomicU32 = AtomicU32::new(1);

impl ForkMark {
    /// The mark of this process. A child that opens its own session gets a fresh one.
    pub(crate) fn current() -> Self {
        static MARK: OnceLock<ForkMark> = OnceLock::new();
        let mark = *MARK.get_or_init(|| Self(wiped_page().unwrap_or(&UNWIPED)));
        if !mark.is_set() {
            // A child: its parent's sessions keep the wiped page, its own get another.
            static CHILD: OnceLock<ForkMark> = OnceLock::new();
            let child = *CHILD.get_or_init(|| Self(wiped_page().unwrap_or(&UNWIPED)));
            if child.is_set() {
                return child;
            }
            return Self(wiped_page().unwrap_or(&UNWIPED));
        }
        mark
    }

    /// False in a child of the process that made the mark.
    #[inline]
    pub(crate) fn is_set(self) -> bool {
        self.0.load(Relaxed) != 0
    }

    /// Says by hand that this process is a child.
    pub(crate) fn clear(self) {
        self.0.store(0, Relaxed);
    }
}

fn wiped_page() -> Option<&'static AtomicU32> {
    const PAGE_BYTES: usize = 4096;
    // SAFETY: a new private mapping; nothing existing is touched.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            PAGE_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the page mapped above, whole.
    if unsafe { libc::madvise(page, PAGE_BYTES, libc::MADV_WIPEONFORK) } != 0 {
        return None;
    }
    // SAFETY: page-aligned, zero-initialised, never unmapped (leaked on purpose: one page).
    let word = unsafe { &*page.cast::<AtomicU32>() };
    word.store(1, Relaxed);
    Some(word)
}
