//! Who has how much memory of which device: one word per device and session, in memory that the
//! supervisor and its executors share.
//!
//! A session's word is written by its executor alone. To allocate, an executor adds to its own word and
//! then sums the words of the device; if the sum is too large it takes its addition back. All claims
//! that were accepted were visible to every later check, so the accepted ones never exceed the
//! device; at worst two claims at the very limit refuse each other, and try again. A dead executor's
//! share is returned by setting its words to 0: nothing else records it. Pinned memory of the host is counted like one device more.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::limits::{DEVICES_MAX, SESSIONS_MAX};
use crate::sys::shared::SharedWords;

/// After the words of all devices: what lease a session belongs to (0 = none), frames received, tickets
/// received, tickets answered.
const LEASES: usize = (HOST + 1) * SESSIONS_MAX;
const FRAMES: usize = LEASES + SESSIONS_MAX;
const ASKED: usize = FRAMES + SESSIONS_MAX;
const ANSWERED: usize = ASKED + SESSIONS_MAX;
const WORDS: usize = ANSWERED + SESSIONS_MAX;

/// Where a device would be: pinned memory of the host.
const HOST: usize = DEVICES_MAX;

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
            words: SharedWords::create(WORDS)?,
        })
    }

    /// The ledger of another process.
    ///
    /// # Errors
    /// Not the file of a ledger.
    pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            words: SharedWords::open(file, WORDS)?,
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

    /// Bytes of a device that one session has.
    pub(crate) fn used_by(&self, slot: Slot, device: usize) -> u64 {
        self.word(device * SESSIONS_MAX + slot.0)
    }

    /// Bytes of a device that the sessions of a lease have.
    pub(crate) fn used_by_lease(&self, device: usize, lease: u64) -> u64 {
        let of_lease = |slot: &usize| self.word(LEASES + slot) == lease;
        let words = (0..SESSIONS_MAX).filter(of_lease);
        words.fold(0, |sum, slot| {
            sum.saturating_add(self.word(device * SESSIONS_MAX + slot))
        })
    }

    /// What lease a session belongs to; before its executor is told of the session.
    pub(crate) fn set_lease(&self, slot: Slot, lease: u64) {
        if let Some(word) = self.words.get(LEASES + slot.0) {
            word.store(lease, Ordering::SeqCst);
        }
    }

    /// How a session works.
    pub(crate) fn pulse(&self, slot: Slot) -> Pulse {
        // Answered first: a ticket that comes and is answered in between counts as waited for, which does no harm.
        let answered = self.word(ANSWERED + slot.0);
        Pulse {
            frames: self.word(FRAMES + slot.0),
            is_waited_for: self.word(ASKED + slot.0) > answered,
        }
    }

    /// A session has received a frame with so many tickets.
    pub(crate) fn received(&self, slot: Slot, tickets: u64) {
        self.add(FRAMES + slot.0, 1);
        if tickets > 0 {
            self.add(ASKED + slot.0, tickets);
        }
    }

    /// A session has answered a ticket.
    pub(crate) fn answered(&self, slot: Slot) {
        self.add(ANSWERED + slot.0, 1);
    }

    fn add(&self, index: usize, count: u64) {
        if let Some(word) = self.words.get(index) {
            word.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn word(&self, index: usize) -> u64 {
        let word = self.words.get(index);
        word.map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// Returns a session's share, after its process is gone.
    pub(crate) fn clear(&self, slot: Slot) {
        for part in [LEASES, FRAMES, ASKED, ANSWERED] {
            if let Some(word) = self.words.get(part + slot.0) {
                word.store(0, Ordering::SeqCst);
            }
        }
        for device in 0..=HOST {
            if let Some(word) = self.words.get(device * SESSIONS_MAX + slot.0) {
                word.store(0, Ordering::SeqCst);
            }
        }
    }
}

/// How a session works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pulse {
    /// Frames received so far.
    pub(crate) frames: u64,
    /// Whether the client waits for an answer.
    pub(crate) is_waited_for: bool,
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

impl Allowance {
    /// What it may have of the host's pinned memory, of which all sessions may have `total_bytes`.
    pub(crate) fn host(total_bytes: u64, limit_bytes: u64) -> Self {
        Self {
            device: HOST,
            total_bytes,
            limit_bytes,
        }
    }
}

/// One session's view of the ledger.
#[derive(Debug)]
pub(crate) struct Account {
    ledger: Arc<Ledger>,
    slot: Slot,
    allowances: Vec<Allowance>,
    host: Allowance,
    /// Several threads of an executor allocate.
    turn: Mutex<()>,
}

impl Account {
    /// The account of the session in `slot`; its devices in the order of the client's ordinals.
    pub(crate) fn new(
        ledger: Arc<Ledger>,
        slot: Slot,
        allowances: Vec<Allowance>,
        host: Allowance,
    ) -> Self {
        Self {
            ledger,
            slot,
            allowances,
            host,
            turn: Mutex::new(()),
        }
    }

    /// Claims memory of the client's device `ordinal`; false where that exceeds the session's limit or the
    /// device.
    pub(crate) fn charge(&self, ordinal: usize, bytes: u64) -> bool {
        let allowance = self.allowances.get(ordinal);
        allowance.is_some_and(|allowance| self.claim(allowance, bytes))
    }

    /// Claims pinned memory of the host; false where that exceeds what this session, or all of them, may have.
    pub(crate) fn charge_host(&self, bytes: u64) -> bool {
        self.claim(&self.host, bytes)
    }

    fn claim(&self, allowance: &Allowance, bytes: u64) -> bool {
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
            let fits = self.ledger.used(allowance.device) <= allowance.total_bytes;
            if fits && self.lease_has_room(allowance) {
                return true;
            }
            own.fetch_sub(bytes, Ordering::SeqCst);
            std::thread::yield_now();
        }
        false
    }

    /// Sessions of one lease share its limit, as sessions of all leases share the device.
    fn lease_has_room(&self, allowance: &Allowance) -> bool {
        let lease = self.ledger.word(LEASES + self.slot.0);
        lease == 0 || self.ledger.used_by_lease(allowance.device, lease) <= allowance.limit_bytes
    }

    /// Returns what [`Self::charge`] claimed.
    pub(crate) fn release(&self, ordinal: usize, bytes: u64) {
        if let Some(allowance) = self.allowances.get(ordinal) {
            self.give_back(allowance, bytes);
        }
    }

    /// Returns what [`Self::charge_host`] claimed.
    pub(crate) fn release_host(&self, bytes: u64) {
        self.give_back(&self.host, bytes);
    }

    fn give_back(&self, allowance: &Allowance, bytes: u64) {
        let word = allowance.device * SESSIONS_MAX + self.slot.0;
        if let Some(own) = self.ledger.words.get(word) {
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
            Allowance::host(total_bytes, limit_bytes),
        )
    }

    #[test]
    fn pinned_memory_of_the_host_is_shared_by_all_sessions() {
        let ledger = Arc::new(Ledger::create().unwrap());
        let (one, two) = (
            account(&ledger, 0, 800, 1000),
            account(&ledger, 1, 800, 1000),
        );
        assert!(!one.charge_host(801), "its limit");
        assert!(
            one.charge_host(800) && one.charge(0, 800),
            "apart from a device's"
        );
        assert!(!two.charge_host(201), "what all may have");
        one.release_host(100);
        assert!(two.charge_host(300));
        ledger.clear(Slot(0));
        assert!(two.charge_host(500));
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
    fn sessions_of_a_lease_share_its_limit() {
        let ledger = Arc::new(Ledger::create().unwrap());
        let (one, two, other) = (
            account(&ledger, 0, 600, 1000),
            account(&ledger, 1, 600, 1000),
            account(&ledger, 2, 600, 1000),
        );
        ledger.set_lease(Slot(0), 7);
        ledger.set_lease(Slot(1), 7);
        ledger.set_lease(Slot(2), 8);
        assert!(one.charge(0, 500));
        assert!(!two.charge(0, 101));
        assert!(two.charge(0, 100));
        assert!(other.charge(0, 400));
        ledger.clear(Slot(0));
        assert!(two.charge(0, 500));
    }

    #[test]
    fn a_pulse_shows_work_and_waiting() {
        let ledger = Ledger::create().unwrap();
        ledger.received(Slot(1), 0);
        assert!(!ledger.pulse(Slot(1)).is_waited_for);
        ledger.received(Slot(1), 2);
        ledger.answered(Slot(1));
        let pulse = ledger.pulse(Slot(1));
        assert!(pulse.is_waited_for && pulse.frames == 2);
        ledger.answered(Slot(1));
        assert!(!ledger.pulse(Slot(1)).is_waited_for);
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
