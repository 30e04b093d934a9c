//! Where the pool's records are kept. A record is durable when [`Store::commit`] has returned.
#![forbid(unsafe_code)]

use crate::state::Change;

mod embedded;
mod etcd;
mod journal;
mod memory;

pub use embedded::EmbeddedStore;
pub use etcd::EtcdStore;
pub use memory::MemoryStore;

/// Rises by one with every commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

/// All records and the version that they are of.
pub type Records = (Version, Vec<(String, Vec<u8>)>);

/// Keeps records.
///
/// Several pool nodes may share one: a commit says which version it was made from, and is refused where
/// another came between. What was refused has not happened; the node loads again and decides anew.
pub trait Store: Send {
    /// All records.
    ///
    /// # Errors
    /// The store cannot be read.
    fn load(&mut self) -> Result<Records, StoreError>;

    /// Makes all changes durable, or none. Blocks until that is so.
    ///
    /// # Errors
    /// The store is not at `expected`, or cannot be written.
    fn commit(&mut self, expected: Version, changes: &[Change]) -> Result<Version, StoreError>;

    /// Whether what was loaded and committed is still all that there is: no other node can have committed since. Does not block.
    ///
    /// # Errors
    /// Another node may have: what is known here must not be told any more.
    fn check_current(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Why records are not kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another node has committed.
    #[error("the store is at version {}, not {}", .found.0, .expected.0)]
    Conflict {
        /// What the commit was made from.
        expected: Version,
        /// What the store is at.
        found: Version,
    },
    /// The file system, or the file.
    #[error("{path}: {why}")]
    Failed {
        /// The store's file.
        path: String,
        /// What it said.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{EmbeddedStore, MemoryStore, Store, StoreError, Version};

    /// What every store does.
    fn conforms(store: &mut dyn Store) {
        let (start, records) = store.load().unwrap();
        assert!(records.is_empty());
        let put = |key: &str, value: &str| (key.to_owned(), Some(value.as_bytes().to_vec()));
        let one = store
            .commit(start, &[put("b", "1"), put("a", "2")])
            .unwrap();
        assert!(one > start);
        assert!(matches!(
            store.commit(start, &[put("a", "3")]),
            Err(StoreError::Conflict { .. })
        ));
        let two = store
            .commit(one, &[put("b", "4"), ("a".to_owned(), None)])
            .unwrap();
        let (version, records) = store.load().unwrap();
        assert_eq!(version, two);
        assert_eq!(records, vec![("b".to_owned(), b"4".to_vec())]);
    }

    #[test]
    fn memory() {
        conforms(&mut MemoryStore::default());
    }

    #[test]
    fn embedded_also_after_opening_it_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool.redb");
        conforms(&mut EmbeddedStore::open(&path).unwrap());
        let (version, records) = EmbeddedStore::open(&path).unwrap().load().unwrap();
        assert_eq!((version, records.len()), (Version(2), 1));
        let bad = directory.path().join("other");
        std::fs::write(&bad, "this is no store at all").unwrap();
        assert!(EmbeddedStore::open(&bad).is_err());
    }
}
