//! Records in etcd, written by the node that leads.
//!
//! A commit is one transaction that holds only while this node leads and the version is what it was. etcd bounds the operations
//! of a transaction (128 by default) and its bytes (1.5 MiB): a larger batch is first kept in a journal, and then moved to its records. Parts of
//! a journal count for nothing until the key that says how many there are is written, with the next version: that is the commit. Whoever
//! loads finishes what was committed, and drops what was not.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::{Records, Store, StoreError, Version, journal};
use crate::etcd::election::Leadership;
use crate::etcd::{Compare, Entry, EtcdError, Operation, Outcome};
use crate::state::Change;

const PREFIX: &str = "farcall/pool/";
const RECORD: &str = "farcall/pool/record/";
const VERSION: &str = "farcall/pool/version";
/// How many parts the journal of the last commit has, as long as it is not moved.
const JOURNAL: &str = "farcall/pool/journal";
const PART: &str = "farcall/pool/journal/";
/// Changes of one transaction, beside version and journal.
const CHANGES_MAX: usize = 120;
/// Bytes of one transaction: etcd takes 1.5 MiB, with all that is around them.
const BYTES_MAX: usize = 512 << 10;
/// A commit that etcd does not take for so long has failed; by then another node leads.
const PATIENCE: Duration = Duration::from_secs(6);

/// The store of the node that leads.
#[derive(Debug)]
pub struct EtcdStore {
    leadership: Leadership,
    /// What this node has loaded or committed last: nobody else writes while it leads.
    known: Version,
}

impl EtcdStore {
    /// For one leadership: another needs another.
    #[must_use]
    pub fn new(leadership: Leadership) -> Self {
        Self {
            leadership,
            known: Version::default(),
        }
    }

    /// Does a transaction while this node leads, until etcd answers.
    fn transact(
        &self,
        compare: &[Compare<'_>],
        operations: &[Operation<'_>],
    ) -> Result<Outcome, StoreError> {
        let mut all = vec![self.leadership.fence()];
        all.extend_from_slice(compare);
        let since = Instant::now();
        loop {
            let keys = [crate::etcd::election::LEADER, VERSION];
            match self.leadership.etcd().transact(&all, operations, &keys) {
                Ok(outcome) => return Ok(outcome),
                Err(error) if since.elapsed() > PATIENCE => return Err(failed(&error)),
                Err(error) => {
                    log::warn!("{error}");
                    std::thread::park_timeout(Duration::from_millis(100));
                }
            }
        }
    }

    /// The commit itself: `operations` and the next version.
    fn advance(
        &self,
        expected: Version,
        operations: Vec<Operation<'_>>,
    ) -> Result<Version, StoreError> {
        let next = Version(expected.0 + 1);
        let (was, will) = (expected.0.to_string(), next.0.to_string());
        let unchanged = match expected {
            Version(0) => Compare::Created(VERSION, 0),
            _ => Compare::Value(VERSION, was.as_bytes()),
        };
        let mut operations = operations;
        operations.push(Operation::Put {
            key: VERSION,
            value: will.as_bytes(),
            lease: 0,
        });
        let Outcome::Refused(entries) = self.transact(&[unchanged], &operations)? else {
            return Ok(next);
        };
        let leads = entries.iter().any(|entry| self.leadership.is_own(entry));
        let found = version(&entries)?;
        // Nobody else writes while this node leads: an earlier attempt has succeeded, and its answer was lost.
        if leads && found == next {
            return Ok(next);
        }
        Err(StoreError::Conflict { expected, found })
    }

    /// Does operations as far as this node leads, as many transactions as it takes.
    fn carry_out(&self, operations: &[Operation<'_>]) -> Result<(), StoreError> {
        for part in batches(operations) {
            if let Outcome::Refused(_) = self.transact(&[], part)? {
                return Err(self.deposed());
            }
        }
        Ok(())
    }

    /// Commits what is too much for one transaction.
    fn commit_journal(&self, expected: Version, changes: &[Change]) -> Result<Version, StoreError> {
        let parts = journal::pack(changes, BYTES_MAX).map_err(|error| bad_journal(&error))?;
        let names: Vec<String> = (0..parts.len()).map(part_name).collect();
        let puts = names.iter().zip(&parts);
        let puts: Vec<Operation<'_>> = puts
            .map(|(key, value)| Operation::Put {
                key,
                value,
                lease: 0,
            })
            .collect();
        self.carry_out(&puts)?;
        let count = parts.len().to_string();
        let kept = Operation::Put {
            key: JOURNAL,
            value: count.as_bytes(),
            lease: 0,
        };
        let next = self.advance(expected, vec![kept])?;
        self.settle(changes, &names)?;
        Ok(next)
    }

    /// Moves what the journal holds to its records; then it is over.
    fn settle(&self, changes: &[Change], parts: &[String]) -> Result<(), StoreError> {
        let keys = keys(changes);
        let mut operations = operations(changes, &keys);
        operations.push(Operation::Delete(JOURNAL));
        operations.extend(parts.iter().map(|part| Operation::Delete(part)));
        self.carry_out(&operations)
    }

    /// Finishes what another leader has committed, and drops what it has not. Whether anything has changed.
    fn finish(&self, entries: &[Entry]) -> Result<bool, StoreError> {
        let is_part = |entry: &&Entry| entry.key.starts_with(PART);
        let parts: Vec<&Entry> = entries.iter().filter(is_part).collect();
        let names: Vec<String> = parts.iter().map(|part| part.key.clone()).collect();
        let Some(kept) = entries.iter().find(|entry| entry.key == JOURNAL) else {
            let left: Vec<_> = names.iter().map(|name| Operation::Delete(name)).collect();
            self.carry_out(&left)?;
            return Ok(!left.is_empty());
        };
        let count = std::str::from_utf8(&kept.value).ok();
        let count: Option<usize> = count.and_then(|text| text.parse().ok());
        // Those behind them are left over from one that was never committed.
        let bytes: Vec<&[u8]> = parts.iter().map(|part| part.value.as_slice()).collect();
        let bytes = count.and_then(|count| bytes.get(..count));
        let changes = bytes.map(journal::unpack).transpose();
        let changes = changes.map_err(|error| bad_journal(&error))?;
        let changes = changes.ok_or_else(|| bad_journal(&"parts of it are missing"))?;
        self.settle(&changes, &names)?;
        Ok(true)
    }

    fn deposed(&self) -> StoreError {
        StoreError::Failed {
            path: PREFIX.to_owned(),
            why: "this node does not lead any more".to_owned(),
        }
    }
}

impl Store for EtcdStore {
    fn check_current(&self) -> Result<(), StoreError> {
        if self.leadership.is_over() {
            return Err(self.deposed());
        }
        Ok(())
    }

    fn load(&mut self) -> Result<Records, StoreError> {
        let read = || self.leadership.etcd().all(PREFIX);
        let mut entries = read().map_err(|error| failed(&error))?;
        if self.finish(&entries)? {
            entries = read().map_err(|error| failed(&error))?;
        }
        if !entries.iter().any(|entry| self.leadership.is_own(entry)) {
            return Err(self.deposed());
        }
        let version = version(&entries)?;
        self.known = version;
        let records = entries.into_iter().filter_map(|entry| {
            let key = entry.key.strip_prefix(RECORD)?.to_owned();
            Some((key, entry.value))
        });
        Ok((version, records.collect()))
    }

    fn commit(&mut self, expected: Version, changes: &[Change]) -> Result<Version, StoreError> {
        let found = self.known;
        if expected != found {
            return Err(StoreError::Conflict { expected, found });
        }
        let keys = keys(changes);
        let operations = operations(changes, &keys);
        let is_small = batches(&operations).nth(1).is_none();
        self.known = if is_small {
            self.advance(expected, operations)?
        } else {
            self.commit_journal(expected, changes)?
        };
        Ok(self.known)
    }
}

/// Operations in groups that etcd takes as one transaction each.
fn batches<'a, 'b>(operations: &'b [Operation<'a>]) -> impl Iterator<Item = &'b [Operation<'a>]> {
    let mut rest = operations;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut sum = 0;
        let fits = rest.iter().take(CHANGES_MAX).take_while(|operation| {
            sum += bytes_of(operation);
            sum <= BYTES_MAX
        });
        // One alone must do, however large it is.
        let (batch, behind) = rest.split_at(fits.count().max(1));
        rest = behind;
        Some(batch)
    })
}

fn bytes_of(operation: &Operation<'_>) -> usize {
    match operation {
        Operation::Put { key, value, .. } => key.len() + value.len(),
        Operation::Delete(key) => key.len(),
    }
}

/// Parts in their order, as etcd lists them.
fn part_name(number: usize) -> String {
    format!("{PART}{number:06}")
}

fn bad_journal(why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Failed {
        path: JOURNAL.to_owned(),
        why: why.to_string(),
    }
}

fn keys(changes: &[Change]) -> Vec<String> {
    let key = |(key, _): &Change| format!("{RECORD}{key}");
    changes.iter().map(key).collect()
}

/// The last change of a key counts, and a transaction may name a key once only.
fn operations<'a>(changes: &'a [Change], keys: &'a [String]) -> Vec<Operation<'a>> {
    let mut last = rustc_hash::FxHashMap::default();
    for (at, key) in keys.iter().enumerate() {
        last.insert(key.as_str(), at);
    }
    let all = changes.iter().zip(keys).enumerate();
    let counting = all.filter(|(at, (_, key))| last.get(key.as_str()) == Some(at));
    counting
        .map(|(_, ((_, value), key))| match value {
            Some(value) => Operation::Put {
                key,
                value,
                lease: 0,
            },
            None => Operation::Delete(key),
        })
        .collect()
}

fn version(entries: &[Entry]) -> Result<Version, StoreError> {
    let Some(entry) = entries.iter().find(|entry| entry.key == VERSION) else {
        return Ok(Version(0));
    };
    let text = std::str::from_utf8(&entry.value).unwrap_or_default();
    text.parse().map(Version).map_err(|_| StoreError::Failed {
        path: VERSION.to_owned(),
        why: format!("{text:?} is no version"),
    })
}

fn failed(error: &EtcdError) -> StoreError {
    StoreError::Failed {
        path: PREFIX.to_owned(),
        why: error.to_string(),
    }
}
