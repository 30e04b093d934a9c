//! Records in one file (redb): a commit is one durable transaction.
#![forbid(unsafe_code)]

use std::fmt;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableTable as _, TableDefinition};

use super::{Records, Store, StoreError, Version};
use crate::state::Change;

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const VERSION: TableDefinition<'_, (), u64> = TableDefinition::new("version");

/// One file, used by one process at a time.
pub struct EmbeddedStore {
    database: Database,
    path: PathBuf,
}

impl EmbeddedStore {
    /// Opens the store in `path`, or makes it; only this user can read it.
    ///
    /// # Errors
    /// Another process has it, it cannot be written, or it is not a store.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |why: String| StoreError::Failed {
            path: path.display().to_string(),
            why,
        };
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(path);
        let file = file.map_err(|error| failed(error.to_string()))?;
        drop(file);
        let database = Database::create(path);
        let store = Self {
            database: database.map_err(|error| failed(error.to_string()))?,
            path: path.to_owned(),
        };
        store.make_tables().map_err(|error| store.failed(&error))?;
        Ok(store)
    }

    fn make_tables(&self) -> Result<(), redb::Error> {
        let writing = self.database.begin_write()?;
        writing.open_table(RECORDS)?;
        writing.open_table(VERSION)?;
        writing.commit()?;
        Ok(())
    }

    fn read(&self) -> Result<Records, redb::Error> {
        let reading = self.database.begin_write()?;
        let version = version(&reading)?;
        let mut records = Vec::new();
        {
            let table = reading.open_table(RECORDS)?;
            for entry in table.iter()? {
                let (key, value) = entry?;
                records.push((key.value().to_owned(), value.value().to_vec()));
            }
        }
        reading.abort()?;
        Ok((version, records))
    }

    fn write(
        &self,
        expected: Version,
        changes: &[Change],
    ) -> Result<Result<Version, Version>, redb::Error> {
        let writing = self.database.begin_write()?;
        let found = version(&writing)?;
        if found != expected {
            writing.abort()?;
            return Ok(Err(found));
        }
        {
            let mut table = writing.open_table(RECORDS)?;
            for (key, value) in changes {
                match value {
                    Some(value) => drop(table.insert(key.as_str(), value.as_slice())?),
                    None => drop(table.remove(key.as_str())?),
                }
            }
            let mut table = writing.open_table(VERSION)?;
            table.insert((), found.0 + 1)?;
        }
        writing.commit()?;
        Ok(Ok(Version(found.0 + 1)))
    }

    fn failed(&self, error: &redb::Error) -> StoreError {
        StoreError::Failed {
            path: self.path.display().to_string(),
            why: error.to_string(),
        }
    }
}

impl Store for EmbeddedStore {
    fn load(&mut self) -> Result<Records, StoreError> {
        self.read().map_err(|error| self.failed(&error))
    }

    fn commit(&mut self, expected: Version, changes: &[Change]) -> Result<Version, StoreError> {
        let outcome = self.write(expected, changes);
        outcome
            .map_err(|error| self.failed(&error))?
            .map_err(|found| StoreError::Conflict { expected, found })
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn version(transaction: &redb::WriteTransaction) -> Result<Version, redb::Error> {
    let table = transaction.open_table(VERSION)?;
    let found = table.get(())?;
    Ok(Version(found.map_or(0, |value| value.value())))
}
