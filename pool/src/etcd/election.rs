//! Which of several pool nodes decides: the one that holds a key of etcd, for as long as it keeps the key's lease.
//!
//! What the leader writes is compared with that key in the same transaction, so a node that has lost it, and does not know
//! yet, changes nothing.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{CALL_MAX, Compare, Entry, Etcd, EtcdError, Operation, Outcome};

/// How long a leader that is silent stays one.
pub const LEASE_TTL: Duration = Duration::from_secs(8);
/// A leader that has not reached etcd for so long stops to answer.
pub const SILENT_MAX: Duration = Duration::from_millis(3500);
/// How often the lease is kept alive.
pub const KEEP_EVERY: Duration = Duration::from_secs(1);
// It has stopped before another can lead, with a second to spare.
const _: () = assert!(
    SILENT_MAX.as_millis() + KEEP_EVERY.as_millis() + CALL_MAX.as_millis() + 1000
        < LEASE_TTL.as_millis()
);

/// The key that the leader holds; its value says where the leader is.
pub(crate) const LEADER: &str = "farcall/pool/leader";

/// What an attempt to lead came to.
#[derive(Debug)]
pub enum Attempt {
    /// This node leads.
    Leading(Leadership),
    /// Another node does, which is there.
    Following(String),
}

/// Leading, for as long as [`Leadership::keep`] is called and says so.
#[derive(Clone, Debug)]
pub struct Leadership {
    etcd: Etcd,
    lease: i64,
    /// Revision at which the leader's key was made: no two leaderships have the same.
    created: i64,
    /// When etcd was last asked, and kept the lease; all clones know.
    reached: Arc<Mutex<Instant>>,
}

impl Leadership {
    /// Tries to lead, as the node at `address`. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn attempt(etcd: &Etcd, address: &str) -> Result<Attempt, EtcdError> {
        // A look costs etcd nothing; a transaction is for when there is something to win.
        if let Some(other) = leader(etcd)? {
            return Ok(Attempt::Following(told(&other)));
        }
        let reached = Instant::now();
        let lease = etcd.grant(LEASE_TTL)?;
        let put = Operation::Put {
            key: LEADER,
            value: address.as_bytes(),
            lease,
        };
        // Whether it succeeded is looked up: an answer that was lost may have been a yes.
        let outcome = etcd.transact(&[Compare::Created(LEADER, 0)], &[put], &[]);
        match leader(etcd)? {
            Some(own) if own.lease == lease => Ok(Attempt::Leading(Self {
                etcd: etcd.clone(),
                lease,
                created: own.created,
                reached: Arc::new(Mutex::new(reached)),
            })),
            Some(other) => {
                let _ = etcd.revoke(lease);
                Ok(Attempt::Following(told(&other)))
            }
            None => {
                let _ = etcd.revoke(lease);
                let why = match outcome {
                    Err(error) => return Err(error),
                    Ok(Outcome::Done) => "the leader's key is gone again",
                    Ok(Outcome::Refused(_)) => "the leader's key came and went",
                };
                Err(EtcdError::Unreachable(why.to_owned()))
            }
        }
    }

    /// Keeps leading; false: this node does not lead any more. Blocks for a few seconds at most.
    pub fn keep(&mut self) -> bool {
        let asked = Instant::now();
        match self.etcd.keep(self.lease) {
            Ok(true) => *self.reached.lock() = asked,
            Ok(false) => return false,
            Err(error) => log::warn!("{error}"),
        }
        !self.is_over()
    }

    /// Does something that may take longer than etcd may be out of sight, and keeps leading meanwhile. Blocks for as long as that takes,
    /// and then for the last look at etcd.
    pub fn kept<T>(&self, work: impl FnOnce() -> T) -> T {
        let (working, over) = channel::<()>();
        std::thread::scope(|scope| {
            let mut own = self.clone();
            scope.spawn(move || {
                while over.recv_timeout(KEEP_EVERY) == Err(RecvTimeoutError::Timeout) && own.keep()
                {
                }
            });
            let result = work();
            drop(working);
            result
        })
    }

    /// Whether the lease may have ended, as far as this node knows.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.reached.lock().elapsed() > SILENT_MAX
    }

    /// Lets another node lead at once.
    pub fn resign(&self) {
        let _ = self.etcd.revoke(self.lease);
    }

    pub(crate) fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// Holds as long as this node leads.
    pub(crate) fn fence(&self) -> Compare<'static> {
        Compare::Created(LEADER, self.created)
    }

    /// Whether this is the leader's key of this leadership.
    pub(crate) fn is_own(&self, entry: &Entry) -> bool {
        entry.key == LEADER && entry.created == self.created
    }
}

fn leader(etcd: &Etcd) -> Result<Option<Entry>, EtcdError> {
    Ok(etcd.all(LEADER)?.into_iter().next())
}

fn told(entry: &Entry) -> String {
    String::from_utf8_lossy(&entry.value).into_owned()
}
