//! A buffer that the transport fills while nobody reads it.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Written by one party until [`Staging::filled`], read by others afterwards.
#[derive(Debug)]
pub(crate) struct Staging {
    bytes: UnsafeCell<Box<[u8]>>,
    /// `PENDING`, or how many bytes have come.
    filled: AtomicUsize,
}

const PENDING: usize = usize::MAX;

// SAFETY: writes happen before the release store of `filled`, reads after its acquire load.
unsafe impl Sync for Staging {}

impl Staging {
    /// A zeroed buffer; the pages are touched when data comes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            bytes: UnsafeCell::new(vec![0; bytes].into_boxed_slice()),
            filled: AtomicUsize::new(PENDING),
        }
    }

    /// Where the writer puts its bytes. The pointer is valid as long as self.
    pub(crate) fn destination(&self) -> *mut u8 {
        let boxed = self.bytes.get();
        // SAFETY: before `filled` nobody holds a reference to the contents (`contents` gives none out).
        unsafe { (*boxed).as_mut_ptr() }
    }

    /// The writer is done and touches the buffer no more. Pairs with the load in [`Self::contents`].
    pub(crate) fn filled(&self, bytes: usize) {
        self.filled.store(bytes, Ordering::Release);
    }

    /// What has come, once the writer is done.
    pub(crate) fn contents(&self) -> Option<&[u8]> {
        let filled = self.filled.load(Ordering::Acquire);
        if filled == PENDING {
            return None;
        }
        let boxed = self.bytes.get();
        // SAFETY: the writer is done (acquire above), so nothing writes any more.
        let all: &[u8] = unsafe { &*boxed };
        all.get(..filled)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Staging;

    #[test]
    fn contents_appear_when_filled() {
        let staging = Staging::new(8);
        assert!(staging.contents().is_none());
        // SAFETY: eight bytes, not filled yet.
        unsafe { staging.destination().write_bytes(5, 8) };
        staging.filled(8);
        assert_eq!(staging.contents().unwrap(), [5; 8]);
    }
}
