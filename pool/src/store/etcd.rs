//! Records in etcd, written by the node that leads.
//!
//! A commit is one transaction that holds only while this node leads and the version is what it was. etcd bounds the operations
//! of a transaction (128 by default): a larger batch is first kept whole in a journal, which is the commit, and then moved
//! to its records; whoever loads finishes that.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::{Records, Store, StoreError, Version};
use crate::etcd::election::Leadership;
use crate::etcd::{Compare, Entry, EtcdError, Operation, Outcome};
use crate::state::Change;

const PREFIX: &str = "farcall/pool/";
const RECORD: &str = "farcall/pool/record/";
const VERSION: &str = "farcall/pool/version";
const JOURNAL: &str = "farcall/pool/journal";
/// Changes of one transaction, beside version and journal.
const CHANGES_MAX: usize = 120;
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

    /// Moves what the journal holds to its records.
    fn settle(&self, changes: &[Change]) -> Result<(), StoreError> {
        let keys = keys(changes);
        let mut operations = operations(changes, &keys);
        operations.push(Operation::Delete(JOURNAL));
        for part in operations.chunks(CHANGES_MAX) {
            if let Outcome::Refused(_) = self.transact(&[], part)? {
                return Err(self.deposed());
            }
        }
        Ok(())
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
        if let Some(journal) = entries.iter().find(|entry| entry.key == JOURNAL) {
            let changes: Vec<Change> =
                serde_json::from_slice(&journal.value).map_err(|error| StoreError::Failed {
                    path: JOURNAL.to_owned(),
                    why: error.to_string(),
                })?;
            self.settle(&changes)?;
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
        if changes.len() <= CHANGES_MAX {
            let keys = keys(changes);
            self.known = self.advance(expected, operations(changes, &keys))?;
            return Ok(self.known);
        }
        let journal = serde_json::to_vec(changes).map_err(|error| StoreError::Failed {
            path: JOURNAL.to_owned(),
            why: error.to_string(),
        })?;
        let kept = Operation::Put {
            key: JOURNAL,
            value: &journal,
            lease: 0,
        };
        self.known = self.advance(expected, vec![kept])?;
        self.settle(changes)?;
        Ok(self.known)
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
