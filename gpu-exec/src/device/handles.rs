//! Tables from the numbers that a client chose to what they stand for.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use farcall_marshal::status::{CuResult, CuStatus};

/// A bounded table. Numbers are the client's: a bad choice costs only the client's own time.
#[derive(Debug)]
pub(crate) struct HandleTable<T> {
    entries: HashMap<u64, T, BuildHasherDefault<NumberHasher>>,
    entries_max: usize,
}

impl<T> HandleTable<T> {
    /// An empty table for at most `entries_max` handles.
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            entries: HashMap::default(),
            entries_max,
        }
    }

    /// Adds a handle.
    ///
    /// # Errors
    /// `INVALID_HANDLE`: 0 or in use. `OUT_OF_MEMORY`: the table is full.
    pub(crate) fn insert(&mut self, handle: u64, value: T) -> CuResult {
        if handle == 0 || self.entries.contains_key(&handle) {
            return Err(CuStatus::INVALID_HANDLE);
        }
        if self.entries.len() >= self.entries_max {
            return Err(CuStatus::OUT_OF_MEMORY);
        }
        self.entries.insert(handle, value);
        Ok(())
    }

    /// What a handle stands for.
    ///
    /// # Errors
    /// `INVALID_HANDLE`: nothing.
    pub(crate) fn get(&self, handle: u64) -> CuResult<&T> {
        self.entries.get(&handle).ok_or(CuStatus::INVALID_HANDLE)
    }

    /// As [`Self::get`].
    ///
    /// # Errors
    /// `INVALID_HANDLE`: nothing.
    pub(crate) fn get_mut(&mut self, handle: u64) -> CuResult<&mut T> {
        self.entries
            .get_mut(&handle)
            .ok_or(CuStatus::INVALID_HANDLE)
    }

    /// Takes a handle out.
    ///
    /// # Errors
    /// `INVALID_HANDLE`: nothing.
    pub(crate) fn remove(&mut self, handle: u64) -> CuResult<T> {
        self.entries.remove(&handle).ok_or(CuStatus::INVALID_HANDLE)
    }

    /// Keeps the entries that `keep` picks.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.entries.retain(|_, value| keep(value));
    }
}

/// Spreads numbers by a multiplication.
#[derive(Debug, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use farcall_marshal::status::CuStatus;

    use super::HandleTable;

    #[test]
    fn tables_are_bounded_and_say_what_is_wrong() {
        let mut table = HandleTable::new(2);
        assert_eq!(table.insert(0, 'z'), Err(CuStatus::INVALID_HANDLE));
        table.insert(7, 'a').unwrap();
        assert_eq!(table.insert(7, 'b'), Err(CuStatus::INVALID_HANDLE));
        table.insert(u64::MAX, 'c').unwrap();
        assert_eq!(table.insert(8, 'd'), Err(CuStatus::OUT_OF_MEMORY));
        assert_eq!(table.get(7), Ok(&'a'));
        assert_eq!(table.remove(7), Ok('a'));
        assert_eq!(table.remove(7), Err(CuStatus::INVALID_HANDLE));
        table.insert(8, 'd').unwrap();
        assert_eq!(table.get(9), Err(CuStatus::INVALID_HANDLE));
    }
}
