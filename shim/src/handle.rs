//! Handles: numbers that the program sees as pointers, never reused, each of one kind.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::RwLock;

/// What a handle names. The kind stands in bits 40..46, so that a stream is never taken for an event and
/// the number still looks like a user-space pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Context = 1,
    Stream,
    Event,
    Module,
    Library,
    Function,
    Graph,
    GraphNode,
    GraphExec,
    Pool,
    LogCallback,
    Physical,
    Array,
    Mipmapped,
    UserObject,
    Linker,
}

const KIND_SHIFT: u32 = 40;
/// Distance of two handles: objects of a real driver are never closer, and programs align by it.
pub(crate) const STEP: u64 = 16;
/// Distance of the first versions of two tables: no table forgets so many objects.
const VERSION_STEP: u64 = 1 << 40;

/// Objects of one kind by handle.
pub(crate) struct Table<T> {
    kind: Kind,
    next: AtomicU64,
    /// Changes when an object is forgotten. No two tables, of a process and of its parent included, ever have the same.
    version: AtomicU64,
    map: RwLock<HashMap<u64, Arc<T>, BuildHasherDefault<SpreadHasher>>>,
}

impl<T> Table<T> {
    pub(crate) fn new(kind: Kind) -> Self {
        static TABLES: AtomicU64 = AtomicU64::new(1);
        Self {
            kind,
            next: AtomicU64::new(1),
            version: AtomicU64::new(TABLES.fetch_add(1, Ordering::Relaxed) * VERSION_STEP),
            map: RwLock::default(),
        }
    }

    /// A handle that no object had before.
    pub(crate) fn reserve(&self) -> u64 {
        (u64::from(self.kind as u8) << KIND_SHIFT)
            + self.next.fetch_add(1, Ordering::Relaxed) * STEP
    }

    /// Makes `object` known under a handle from [`Self::reserve`].
    pub(crate) fn insert(&self, handle: u64, object: Arc<T>) {
        self.map.write().insert(handle, object);
    }

    /// The object, or `INVALID_HANDLE`.
    #[inline]
    pub(crate) fn get(&self, handle: u64) -> CuResult<Arc<T>> {
        self.map
            .read()
            .get(&handle)
            .cloned()
            .ok_or(CuStatus::INVALID_HANDLE)
    }

    /// Changes whenever an object is forgotten.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        // SYNC: pairs with the Release in `forgot`: who reads the new version does not find the object any more.
        self.version.load(Ordering::Acquire)
    }

    fn forgot(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Forgets the object, or `INVALID_HANDLE`.
    pub(crate) fn remove(&self, handle: u64) -> CuResult<Arc<T>> {
        let removed = self.map.write().remove(&handle);
        self.forgot();
        removed.ok_or(CuStatus::INVALID_HANDLE)
    }

    /// Some object that `wanted` picks. Looks at all of them.
    pub(crate) fn find(&self, wanted: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        self.map
            .read()
            .values()
            .find(|object| wanted(object))
            .cloned()
    }

    /// The handle of an object. Looks at all of them.
    pub(crate) fn handle_of(&self, object: &Arc<T>) -> Option<u64> {
        self.map
            .read()
            .iter()
            .find(|(_, known)| Arc::ptr_eq(known, object))
            .map(|(handle, _)| *handle)
    }

    /// Forgets every object that `keep` refuses.
    pub(crate) fn retain(&self, keep: impl Fn(&T) -> bool) {
        self.map.write().retain(|_, object| keep(object));
        self.forgot();
    }
}

/// Handles are sequential numbers that this process chose: multiplying spreads them enough.
#[derive(Default)]
pub(crate) struct SpreadHasher(u64);

impl Hasher for SpreadHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        // 2^64 / golden ratio (Knuth, The Art of Computer Programming 6.4).
        let mixed = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Table};
    use farcall_marshal::status::CuStatus;
    use std::sync::Arc;

    #[test]
    fn a_handle_is_never_given_twice_and_dies_once() {
        let table = Table::new(Kind::Stream);
        let (a, b) = (table.reserve(), table.reserve());
        assert_ne!(a, b);
        table.insert(a, Arc::new(7));
        assert_eq!(table.get(a).map(|v| *v), Ok(7));
        assert_eq!(table.get(b), Err(CuStatus::INVALID_HANDLE));
        assert_eq!(table.remove(a).map(|v| *v), Ok(7));
        assert_eq!(table.remove(a), Err(CuStatus::INVALID_HANDLE));
    }

    #[test]
    fn kinds_do_not_overlap() {
        let events: Table<()> = Table::new(Kind::Event);
        let streams: Table<()> = Table::new(Kind::Stream);
        assert_ne!(events.reserve(), streams.reserve());
    }
}
