//! What a thread looked up last, so that it finds it again without a lock: a kernel is launched over and over.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use farcall_marshal::status::CuResult;

use crate::handle::{STEP, Table};
use crate::module::Function;
use crate::stream::Stream;

/// Objects that are remembered: more than a training step uses of one kind, and their handles follow each other.
const SLOTS: usize = 64;

thread_local! {
    pub(crate) static FUNCTIONS: Recent<Function> = const { Recent::new() };
    pub(crate) static STREAMS: Recent<Stream> = const { Recent::new() };
    static END: End = const { End };
}

/// Lets go of what the thread remembers when it ends.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        FUNCTIONS.with(Recent::forget);
        STREAMS.with(Recent::forget);
    }
}

/// Whether the calling thread can still say that it ends: from then on it remembers nothing.
fn is_watched() -> bool {
    END.try_with(|_| ()).is_ok()
}

/// Objects of one table that the calling thread looked up. A thread-local without a destructor, so that using it needs
/// no look at the thread's state.
///
/// What it holds is known to be in the table as long as the table's version is the one that it was filled at: it keeps
/// objects alive, it never makes a forgotten one usable. An object is taken out for as long as it is used, which needs
/// neither a lock nor a count.
pub(crate) struct Recent<T> {
    /// Version of the table that all of it belongs to.
    version: Cell<u64>,
    /// The handle of what is in the same place of `objects`, or was taken from there.
    handles: [Cell<u64>; SLOTS],
    objects: ManuallyDrop<[Cell<Option<Arc<T>>>; SLOTS]>,
}

impl<T> Recent<T> {
    pub(crate) const fn new() -> Self {
        Self {
            version: Cell::new(0),
            handles: [const { Cell::new(0) }; SLOTS],
            objects: ManuallyDrop::new([const { Cell::new(None) }; SLOTS]),
        }
    }

    /// The object of `table` with this handle, to be used and given back with [`Self::put`].
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    #[inline]
    pub(crate) fn take(&self, table: &Table<T>, handle: u64) -> CuResult<Arc<T>> {
        let at = slot(handle);
        if self.version.get() == table.version()
            && self
                .handles
                .get(at)
                .is_some_and(|known| known.get() == handle)
            && let Some(object) = self.objects.get(at).and_then(Cell::take)
        {
            return Ok(object);
        }
        self.remember(table, handle)
    }

    /// Gives back what [`Self::take`] gave.
    #[inline]
    pub(crate) fn put(&self, handle: u64, object: Arc<T>) {
        let at = slot(handle);
        if self
            .handles
            .get(at)
            .is_some_and(|known| known.get() == handle)
            && let Some(place) = self.objects.get(at)
        {
            drop(place.replace(Some(object)));
        }
    }

    /// A share of the object of `table` with this handle.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    #[inline]
    pub(crate) fn get(&self, table: &Table<T>, handle: u64) -> CuResult<Arc<T>> {
        let object = self.take(table, handle)?;
        let share = Arc::clone(&object);
        self.put(handle, object);
        Ok(share)
    }

    /// Looks the object up in `table`, and makes its place ready for it if it can be remembered.
    #[cold]
    fn remember(&self, table: &Table<T>, handle: u64) -> CuResult<Arc<T>> {
        // Before the look-up: an object that is forgotten meanwhile is forgotten here, too.
        let version = table.version();
        let object = table.get(handle)?;
        if is_watched() {
            if self.version.get() != version {
                self.forget();
                self.version.set(version);
            }
            let at = slot(handle);
            if let (Some(known), Some(place)) = (self.handles.get(at), self.objects.get(at)) {
                known.set(handle);
                // What had this place before has another handle.
                drop(place.take());
            }
        }
        Ok(object)
    }

    /// Lets go of everything. What is in use meanwhile has no place to go back to.
    fn forget(&self) {
        self.version.set(0);
        self.handles.iter().for_each(|known| known.set(0));
        self.objects.iter().for_each(|place| drop(place.take()));
    }
}

#[inline]
fn slot(handle: u64) -> usize {
    // Below SLOTS, which fits every usize.
    usize::try_from(handle / STEP % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::Recent;
    use crate::handle::{Kind, Table};
    use std::sync::Arc;

    thread_local! {
        static RECENT: Recent<u32> = const { Recent::new() };
    }

    fn filled() -> (Table<u32>, u64, u64) {
        let table = Table::new(Kind::Function);
        let (a, b) = (table.reserve(), table.reserve());
        table.insert(a, Arc::new(1));
        table.insert(b, Arc::new(2));
        (table, a, b)
    }

    fn look(table: &Table<u32>, handle: u64) -> Option<u32> {
        RECENT.with(|recent| {
            let object = recent.take(table, handle).ok()?;
            let inner = recent.get(table, handle).ok();
            assert_eq!(inner.as_deref(), Some(&*object), "used while it is in use");
            let value = *object;
            recent.put(handle, object);
            Some(value)
        })
    }

    #[test]
    fn what_was_looked_up_is_found_without_the_table() {
        let (table, a, b) = filled();
        assert_eq!((look(&table, a), look(&table, b)), (Some(1), Some(2)));
        let kept = table.get(a).ok();
        assert_eq!(kept.map(|object| Arc::strong_count(&object)), Some(3));
        assert_eq!((look(&table, a), look(&table, b)), (Some(1), Some(2)));
        assert_eq!((look(&table, 0), look(&table, a + 8)), (None, None));
    }

    #[test]
    fn what_was_forgotten_is_gone_everywhere_and_let_go_of() {
        let (table, a, b) = filled();
        let (kept, c) = (table.get(a).ok(), table.reserve());
        table.insert(c, Arc::new(3));
        assert_eq!((look(&table, a), look(&table, b)), (Some(1), Some(2)));
        assert_eq!(look(&table, c), Some(3));
        assert!(table.remove(a).is_ok());
        assert_eq!((look(&table, a), look(&table, b)), (None, Some(2)));
        assert_eq!(look(&table, c), Some(3), "what was not forgotten is there");
        assert_eq!(kept.map(|object| Arc::strong_count(&object)), Some(1));
    }

    #[test]
    fn another_table_with_the_same_handles_is_another() {
        let (first, a, _) = filled();
        assert_eq!(look(&first, a), Some(1));
        let second = Table::new(Kind::Function);
        assert_eq!(second.reserve(), a);
        assert_eq!(look(&second, a), None);
        second.insert(a, Arc::new(7));
        assert_eq!((look(&second, a), look(&first, a)), (Some(7), Some(1)));
    }

    #[test]
    fn handles_that_share_a_place_are_told_apart() {
        let table = Table::new(Kind::Function);
        let handles: Vec<u64> = (0..200).map(|_| table.reserve()).collect();
        for (handle, value) in handles.iter().zip(0..) {
            table.insert(*handle, Arc::new(value));
        }
        for _ in 0..2 {
            for (handle, value) in handles.iter().zip(0..) {
                assert_eq!(look(&table, *handle), Some(value));
            }
        }
    }
}
