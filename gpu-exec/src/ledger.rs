//! Who has how much memory of which device: one word per device and session, in memory that the
//! supervisor and its executors share.
//!
//! A session's word is written by its executor alone. To allocate, an executor adds to its own word and
//! then sums the words of the device; if the sum is too large it takes its addition back. All claims
//! that were accepted were visible to every later check, so the accepted ones never exceed the
//! device; at worst two claims at the very limit refuse each other, and try again. A dead executor's
//! share is returned by setting its words to 0: nothing else records it.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::limits::{DEVICES_MAX, SESSIONS_MAX};
use crate::sys::shared::SharedWords;

/// Attempts of a claim that meets another at the limit.
const ATTEMPTS: u32 = 16;

/// The words of all devices and sessions.
#[derive(Debug)]
pub(crate) struct Ledger {
    words: SharedWords,
}

/// Number of a session's words; the supervisor gives each to one session at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Slot(pub(crate) usize);

impl Ledger {
    /// A ledger in which nothing is allocated.
    ///
    /// # Errors
    /// No memory or descriptors.
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self {
            words: SharedWords::create(DEVICES_MAX * SESSIONS_MAX)?,
        })
    }

    /// The ledger of another process.
    ///
    /// # Errors
    /// Not the file of a ledger.
    pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            words: SharedWords::open(file, DEVICES_MAX * SESSIONS_MAX)?,
        })
    }

    /// To be sent to an executor.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.words.file()
    }

    /// Bytes of a device that sessions have.
    pub(crate) fn used(&self, device: usize) -> u64 {
        let first = device * SESSIONS_MAX;
        (first..first + SESSIONS_MAX)
            .filter_map(|index| self.words.get(index))
            .fold(0, |sum, word| {
                sum.saturating_add(word.load(Ordering::SeqCst))
            })
    }

    /// Returns a session's share, after its process is gone.
    pub(crate) fn clear(&self, slot: Slot) {
        for device in 0..DEVICES_MAX {
            if let Some(word) = self.words.get(device * SESSIONS_MAX + slot.0) {
                word.store(0, Ordering::SeqCst);
            }
        }
    }
}

/// What one session may have of one device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// Number of the device on the server.
    pub(crate) device: usize,
    /// Bytes of the device.
    pub(crate) total_bytes: u64,
    /// Bytes that this session may allocate.
    pub(crate) limit_bytes: u64,
}

/// One session's view of the ledger.
#[derive(Debug)]
pub(crate) struct Account {
    ledger: Arc<Ledger>,
    slot: Slot,
    allowances: Vec<Allowance>,
    /// Several threads of an executor allocate.
    turn: Mutex<()>,
}

impl Account {
    /// The account of the session in `slot`; its devices in the order of the client's ordinals.
    pub(crate) fn new(ledger: Arc<Ledger>, slot: Slot, allowances: Vec<Allowance>) -> Self {
        Self {
            ledger,
            slot,
            allowances,
            turn: Mutex::new(()),
        }
    }

    /// Claims memory of the client's device `ordinal`; false where that exceeds the session's limit or the
    /// device.
    pub(crate) fn charge(&self, ordinal: usize, bytes: u64) -> bool {
        let Some(allowance) = self.allowances.get(ordinal) else {
            return false;
        };
        let Some(own) = self
            .ledger
            .words
            .get(allowance.device * SESSIONS_MAX + self.slot.0)
        else {
            return false;
        };
        let _turn = self.turn.lock();
        let within = own
            .load(Ordering::SeqCst)
            .checked_add(bytes)
            .is_some_and(|sum| sum <= allowance.limit_bytes);
        if !within {
            return false;
        }
        for _ in 0..ATTEMPTS {
            own.fetch_add(bytes, Ordering::SeqCst);
            if self.ledger.used(allowance.device) <= allowance.total_bytes {
                return true;
            }
            own.fetch_sub(bytes, Ordering::SeqCst);
            std::thread::yield_now();
        }
        false
    }

    /// Returns what [`Self::charge`] claimed.
    pub(crate) fn release(&self, ordinal: usize, bytes: u64) {
        let word = self
            .allowances
            .get(ordinal)
            .and_then(|a| self.ledger.words.get(a.device * SESSIONS_MAX + self.slot.0));
        if let Some(own) = word {
            let _turn = self.turn.lock();
            let left = own.load(Ordering::SeqCst).saturating_sub(bytes);
            own.store(left, Ordering::SeqCst);
        }
    }

    /// Bytes that this session has of a device.
    #[cfg(test)]
    pub(crate) fn used(&self, ordinal: usize) -> u64 {
        let word = self
            .allowances
            .get(ordinal)
            .and_then(|a| self.ledger.words.get(a.device * SESSIONS_MAX + self.slot.0));
        word.map_or(0, |word| word.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::{Account, Allowance, Ledger, Slot};

    pub(crate) fn account(
        ledger: &Arc<Ledger>,
        slot: usize,
        limit_bytes: u64,
        total_bytes: u64,
    ) -> Account {
        Account::new(
            ledger.clone(),
            Slot(slot),
            vec![Allowance {
                device: 0,
                total_bytes,
                limit_bytes,
            }],
        )
    }

    #[test]
    fn a_session_stays_within_its_limit() {
        let ledger = Arc::new(Ledger::create().unwrap());
        let account = account(&ledger, 3, 1000, 5000);
        assert!(account.charge(0, 1000));
        assert!(!account.charge(0, 1));
        account.release(0, 400);
        assert!(!account.charge(0, 401));
        assert!(account.charge(0, 400));
        assert!(!account.charge(0, u64::MAX));
        assert!(!account.charge(1, 1), "no such device");
    }

    #[test]
    fn sessions_together_stay_within_the_device() {
        let ledger = Arc::new(Ledger::create().unwrap());
        let (one, two) = (
            account(&ledger, 0, 800, 1000),
            account(&ledger, 1, 800, 1000),
        );
        assert!(one.charge(0, 800));
        assert!(!two.charge(0, 201));
        assert!(two.charge(0, 200));
        assert_eq!(ledger.used(0), 1000);
        ledger.clear(Slot(0));
        assert_eq!(ledger.used(0), 200);
        assert!(two.charge(0, 600));
    }

    #[test]
    fn claims_from_many_threads_never_exceed_the_device() {
        let ledger = Arc::new(Ledger::create().unwrap());
        let accepted: u64 = std::thread::scope(|scope| {
            let claim = |slot| {
                let account = account(&ledger, slot, 1000, 1000);
                move || (0..200).filter(|_| account.charge(0, 7)).count() as u64
            };
            let threads: Vec<_> = (0..4).map(|slot| scope.spawn(claim(slot))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(ledger.used(0), accepted * 7);
        assert_eq!(accepted, 1000 / 7);
    }
}
