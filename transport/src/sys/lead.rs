//! Leadership: the right to use the receive side, taken by one of the waiting threads.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

/// A value that the leading thread uses. Like a mutex that is only ever tried, and whose
/// holder may ask for it again while it runs a handler.
#[derive(Debug)]
pub(crate) struct LeadCell<T> {
    /// Token of the leading thread, or 0.
    holder: AtomicU32,
    /// Whether the holder has the value borrowed; used by the holder only.
    borrowed: Cell<bool>,
    value: UnsafeCell<T>,
}

// SAFETY: `value` and `borrowed` are touched only by the thread whose token is in `holder`;
// taking and releasing it order one holder's accesses before the next one's.
unsafe impl<T: Send> Sync for LeadCell<T> {}

impl<T> LeadCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            holder: AtomicU32::new(0),
            borrowed: Cell::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Leadership, unless someone (the caller included) has it.
    pub(crate) fn try_lead(&self) -> Option<Lead<'_, T>> {
        // SYNC: SeqCst, because a follower must not miss both the release and the wake-up that
        // follows it; Acquire pairs with the Release in `Lead::drop`.
        self.holder
            .compare_exchange(0, thread_token(), Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
            .then(|| Lead {
                cell: self,
                nested: false,
                not_send: PhantomData,
            })
    }

    /// The caller's own leadership, from inside a handler that it runs.
    pub(crate) fn nested(&self) -> Option<Lead<'_, T>> {
        self.is_mine().then(|| Lead {
            cell: self,
            nested: true,
            not_send: PhantomData,
        })
    }

    /// Whether the calling thread leads.
    pub(crate) fn is_mine(&self) -> bool {
        self.holder.load(Ordering::Relaxed) == thread_token()
    }

    /// Whether any thread leads.
    pub(crate) fn is_held(&self) -> bool {
        self.holder.load(Ordering::SeqCst) != 0
    }
}

/// Leadership, until dropped. Stays on its thread.
#[derive(Debug)]
pub(crate) struct Lead<'a, T> {
    cell: &'a LeadCell<T>,
    nested: bool,
    not_send: PhantomData<*const ()>,
}

impl<T> Lead<'_, T> {
    /// Whether this is the inner one of two.
    pub(crate) fn is_nested(&self) -> bool {
        self.nested
    }

    /// Uses the value. Must not be called from inside `f`.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        struct Unborrow<'a>(&'a Cell<bool>);
        impl Drop for Unborrow<'_> {
            fn drop(&mut self) {
                self.0.set(false);
            }
        }
        assert!(
            !self.cell.borrowed.replace(true),
            "receive side used twice at once"
        );
        let unborrow = Unborrow(&self.cell.borrowed);
        // SAFETY: this thread holds the cell, and `borrowed` was false: no other reference.
        let result = f(unsafe { &mut *self.cell.value.get() });
        drop(unborrow);
        result
    }
}

impl<T> Drop for Lead<'_, T> {
    fn drop(&mut self) {
        if !self.nested {
            self.cell.holder.store(0, Ordering::SeqCst);
        }
    }
}

/// A number of this thread that no other thread of the process has.
#[inline]
fn thread_token() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local! {
        static TOKEN: Cell<u32> = const { Cell::new(0) };
    }
    TOKEN.with(|token| {
        if token.get() == 0 {
            token.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        token.get()
    })
}
