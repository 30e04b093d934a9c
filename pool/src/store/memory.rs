//! Records in memory: for tests and simulations.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::{Records, Store, StoreError, Version};
use crate::state::Change;

/// Forgets everything with the process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    version: Version,
    records: BTreeMap<String, Vec<u8>>,
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Records, StoreError> {
        let records = self.records.iter();
        let records = records.map(|(key, value)| (key.clone(), value.clone()));
        Ok((self.version, records.collect()))
    }

    fn commit(&mut self, expected: Version, changes: &[Change]) -> Result<Version, StoreError> {
        if expected != self.version {
            return Err(StoreError::Conflict {
                expected,
                found: self.version,
            });
        }
        for (key, value) in changes {
            match value {
                Some(value) => drop(self.records.insert(key.clone(), value.clone())),
                None => drop(self.records.remove(key)),
            }
        }
        self.version.0 += 1;
        Ok(self.version)
    }
}
