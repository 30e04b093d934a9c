//! The file (redb): blocks by level, hour and thing, and a journal of the current hour.
#![forbid(unsafe_code)]

use std::fmt;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::block;
use super::hour::{Hour, means};
use super::{Sample, Samples};

/// Level, hour since the epoch, thing.
type BlockKey = (u8, u32, &'static str);

const BLOCKS: TableDefinition<'_, BlockKey, &[u8]> = TableDefinition::new("blocks");
const JOURNAL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("journal");

/// How fine, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Each sample, for a day.
    Sample,
    /// Means over a minute, for a week.
    Minute,
    /// Means over ten minutes, for a year.
    TenMinutes,
}

impl Level {
    const ALL: [Self; 3] = [Self::Sample, Self::Minute, Self::TenMinutes];

    /// Samples of which one mean is made.
    pub(super) const fn samples(self) -> usize {
        match self {
            Self::Sample => 1,
            Self::Minute => 6,
            Self::TenMinutes => 60,
        }
    }

    /// Full hours that are kept. The current one comes on top.
    const fn hours(self) -> u64 {
        match self {
            Self::Sample => 25,
            Self::Minute => 7 * 24 + 1,
            Self::TenMinutes => 366 * 24,
        }
    }
}

/// The history cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct HistoryError {
    /// Its file.
    pub path: String,
    /// What the system said.
    pub why: String,
}

pub(super) struct File {
    database: Database,
    path: PathBuf,
}

impl File {
    pub(super) fn open(path: &Path) -> Result<Self, HistoryError> {
        let failed = |why: &dyn fmt::Display| HistoryError {
            path: path.display().to_string(),
            why: why.to_string(),
        };
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(path);
        drop(file.map_err(|error| failed(&error))?);
        let database = Database::create(path).map_err(|error| failed(&error))?;
        let file = Self {
            database,
            path: path.to_owned(),
        };
        file.make_tables().map_err(|error| file.failed(&error))?;
        Ok(file)
    }

    /// A file in memory.
    pub(super) fn in_memory() -> Result<Self, HistoryError> {
        let path = PathBuf::from("memory");
        let failed = |why: redb::Error| HistoryError {
            path: "memory".to_owned(),
            why: why.to_string(),
        };
        let backend = redb::backends::InMemoryBackend::new();
        let database = Database::builder().create_with_backend(backend);
        let database = database.map_err(|error| failed(error.into()))?;
        let file = Self { database, path };
        file.make_tables().map_err(failed)?;
        Ok(file)
    }

    /// Rows of the journal, oldest first. One that cannot be read is left out: it is ten seconds.
    pub(super) fn journal(&self) -> Result<Vec<(u64, Samples)>, HistoryError> {
        self.read_journal().map_err(|error| self.failed(&error))
    }

    /// Adds rows to the journal. Durable when it returns.
    pub(super) fn append<'a>(
        &self,
        rows: impl Iterator<Item = &'a (u64, Samples)>,
    ) -> Result<(), HistoryError> {
        self.write_journal(rows)
            .map_err(|error| self.failed(&error))
    }

    /// Writes the blocks of an hour, forgets its journal, and what is too old.
    pub(super) fn close(&self, hour: &Hour) -> Result<(), HistoryError> {
        self.write_blocks(hour).map_err(|error| self.failed(&error))
    }

    /// A block of one hour; empty if there is none.
    pub(super) fn block(
        &self,
        level: Level,
        hours: std::ops::Range<u64>,
        thing: &str,
    ) -> Result<Vec<(u64, Vec<Sample>)>, HistoryError> {
        self.read_blocks(level, hours, thing)
            .map_err(|error| self.failed(&error))
    }

    /// How many hours there are of each level, of the things together.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> Result<[u64; 3], redb::Error> {
        let reading = self.database.begin_read()?;
        let table = reading.open_table(BLOCKS)?;
        let mut counts = [0; 3];
        for entry in table.iter()? {
            let (key, _) = entry?;
            counts[usize::from(key.value().0)] += 1;
        }
        Ok(counts)
    }

    fn make_tables(&self) -> Result<(), redb::Error> {
        let writing = self.database.begin_write()?;
        writing.open_table(BLOCKS)?;
        writing.open_table(JOURNAL)?;
        writing.commit()?;
        Ok(())
    }

    fn read_journal(&self) -> Result<Vec<(u64, Samples)>, redb::Error> {
        let reading = self.database.begin_read()?;
        let table = reading.open_table(JOURNAL)?;
        let mut rows = Vec::new();
        for entry in table.iter()? {
            let (slot, row) = entry?;
            match block::unpack_row(row.value()) {
                Ok(samples) => rows.push((slot.value(), samples)),
                Err(error) => log::warn!("{}: a row is left out: {error}", self.path.display()),
            }
        }
        Ok(rows)
    }

    fn write_journal<'a>(
        &self,
        rows: impl Iterator<Item = &'a (u64, Samples)>,
    ) -> Result<(), redb::Error> {
        let writing = self.database.begin_write()?;
        {
            let mut table = writing.open_table(JOURNAL)?;
            for (slot, samples) in rows {
                table.insert(slot, block::pack_row(samples)?.as_slice())?;
            }
        }
        writing.commit()?;
        Ok(())
    }

    fn write_blocks(&self, hour: &Hour) -> Result<(), redb::Error> {
        let writing = self.database.begin_write()?;
        {
            let mut table = writing.open_table(BLOCKS)?;
            for level in Level::ALL {
                for (thing, samples) in hour.things() {
                    let packed = block::pack(&means(samples, level.samples()))?;
                    let key = (level as u8, number(hour.number()), thing);
                    table.insert(key, packed.as_slice())?;
                }
                let oldest = (hour.number() + 1).saturating_sub(level.hours());
                let first = (level as u8, 0, "");
                let end = (level as u8, number(oldest), "");
                table.retain_in(first..end, |_, _| false)?;
            }
            let mut journal = writing.open_table(JOURNAL)?;
            let end = (hour.number() + 1) * super::SLOTS as u64;
            journal.retain_in(..end, |_, _| false)?;
        }
        writing.commit()?;
        Ok(())
    }

    fn read_blocks(
        &self,
        level: Level,
        hours: std::ops::Range<u64>,
        thing: &str,
    ) -> Result<Vec<(u64, Vec<Sample>)>, redb::Error> {
        let reading = self.database.begin_read()?;
        let table = reading.open_table(BLOCKS)?;
        let mut blocks = Vec::new();
        for hour in hours {
            if let Some(packed) = table.get((level as u8, number(hour), thing))? {
                let samples = block::unpack(packed.value()).unwrap_or_default();
                blocks.push((hour, samples));
            }
        }
        Ok(blocks)
    }

    fn failed(&self, error: &redb::Error) -> HistoryError {
        HistoryError {
            path: self.path.display().to_string(),
            why: error.to_string(),
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Hours fit until the year 492,000.
fn number(hour: u64) -> u32 {
    u32::try_from(hour).unwrap_or(u32::MAX)
}
