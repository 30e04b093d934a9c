//! The memory in which sessions of one server take turns.
//!
//! Every change is one atomic operation on one word, so a process that is killed anywhere leaves nothing locked:
//! the supervisor then clears its words and hands on what it held. All orderings are sequentially consistent: who asks
//! sets its bit and then looks whether the token is free, who frees the token looks for bits afterwards, so one of
//! them sees the other.
//!
//! A holder is named with the generation of its slot: a token that was handed to a session which died meanwhile does not become
//! its successor's.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::device::describe::WHOLE_PERMILLE;
use crate::ledger::Slot;
use crate::limits::{DEVICES_MAX, SESSIONS_MAX};
use crate::sys::shared::SharedWords;

/// A holder that is ahead of another by so much virtual time (device time of a session with the whole device) gives way.
pub(crate) const SLICE_NS: u64 = 5_000_000;
/// Most virtual time that a session may be behind: it gets that much at once after a pause.
pub(crate) const CREDIT_NS: u64 = 50_000_000;
/// Most virtual time that a session may be ahead: after one very long kernel it waits no longer than that.
const DEBT_NS: u64 = 2_000_000_000;
/// A holder of whose work nothing ends for so long has the token taken from it.
pub(crate) const STUCK: Duration = Duration::from_secs(1);
/// Least weight of a session that asked for no share, where shares leave nothing.
const REST_PERMILLE_MIN: u64 = 50;

/// Flags in [`ACTIVE`]: device time is measured whether sessions take turns or not; the device is lost.
const MEASURED: u64 = 1 << 62;
const LOST: u64 = 1 << 63;
const FLAGS: u64 = MEASURED | LOST;

const WANT_WORDS: usize = SESSIONS_MAX / 64;
/// Words of a device: sessions that take turns (0: nobody does) and the flags below, holder, virtual time, changes of anything.
const ACTIVE: usize = 0;
const HOLDER: usize = 1;
const VIRTUAL: usize = 2;
const CHANGES: usize = 3;
/// Launches after which the device shall be lost (0: never), and launches so far while that is not 0.
const LOSE_AFTER: usize = 4;
const LAUNCHED: usize = 5;
/// One bit per session that waits for the token.
const WANTS: usize = 6;
/// Words per session of a device: asked share in thousandths (0: it does not have the device), weight, virtual
/// time, device time in nanoseconds, launches.
const ASKED: usize = WANTS + WANT_WORDS;
const WEIGHT: usize = ASKED + SESSIONS_MAX;
const PASS: usize = WEIGHT + SESSIONS_MAX;
const BUSY: usize = PASS + SESSIONS_MAX;
const LAUNCHES: usize = BUSY + SESSIONS_MAX;
const DEVICE_WORDS: usize = LAUNCHES + SESSIONS_MAX;
/// Per session: generation, and the word that its executor sleeps on.
const GENERATION: usize = DEVICES_MAX * DEVICE_WORDS;
const SIGNAL: usize = GENERATION + SESSIONS_MAX;
const WORDS: usize = SIGNAL + SESSIONS_MAX;

/// All devices of a server.
#[derive(Debug)]
pub(crate) struct Board {
    words: SharedWords,
}

/// What a session has had of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time that its kernels ran, in nanoseconds.
    pub(crate) busy_ns: u64,
    /// Kernels, where they are counted.
    pub(crate) launches: u64,
}

impl Board {
    /// A board without sessions.
    ///
    /// # Errors
    /// No memory or descriptors.
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self {
            words: SharedWords::create(WORDS)?,
        })
    }

    /// The board of another process.
    ///
    /// # Errors
    /// Not the file of a board.
    pub(crate) fn open(file: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            words: SharedWords::open(file, WORDS)?,
        })
    }

    /// To be sent to an executor.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.words.file()
    }

    /// A session begins, with its devices and their shares in thousandths. The supervisor alone calls this, and [`Self::leave`].
    pub(crate) fn enter(&self, slot: Slot, devices: impl IntoIterator<Item = (usize, u16)>) {
        self.word(GENERATION + slot.0).fetch_add(1, SeqCst);
        for (device, permille) in devices {
            self.set(device, BUSY + slot.0, 0);
            self.set(device, LAUNCHES + slot.0, 0);
            self.set(device, PASS + slot.0, self.get(device, VIRTUAL));
            self.set(device, ASKED + slot.0, permille.max(1).into());
            self.weigh(device);
        }
    }

    /// The process of a session is gone, wherever it was.
    pub(crate) fn leave(&self, slot: Slot) {
        for device in 0..DEVICES_MAX {
            if self.get(device, ASKED + slot.0) == 0 {
                continue;
            }
            self.set(device, ASKED + slot.0, 0);
            self.set(device, WEIGHT + slot.0, 0);
            self.clear_want(device, slot.0);
            self.weigh(device);
            let holder = self.get(device, HOLDER);
            match slot_of(holder) {
                Some(held) if held == slot.0 => self.hand_on(device, holder),
                // Whoever went may have been about to wake it.
                Some(other) => self.signal(other),
                None => self.offer(device),
            }
        }
    }

    /// Lets executors measure device time of all their work.
    pub(crate) fn measure(&self, device: usize) {
        self.device_word(device, ACTIVE).fetch_or(MEASURED, SeqCst);
    }

    /// For tests of what follows: the device is lost after so many launches.
    pub(crate) fn lose_after(&self, device: usize, launches: u64) {
        self.set(device, LOSE_AFTER, launches.max(1));
    }

    /// The device is out of service.
    pub(crate) fn lose(&self, device: usize) {
        self.device_word(device, ACTIVE).fetch_or(LOST, SeqCst);
    }

    /// Whether the supervisor or some executor found the device lost.
    pub(crate) fn is_lost(&self, device: usize) -> bool {
        self.get(device, ACTIVE) & LOST != 0
    }

    /// What the session in a slot has had of a device.
    pub(crate) fn usage(&self, slot: Slot, device: usize) -> Usage {
        Usage {
            busy_ns: self.get(device, BUSY + slot.0),
            launches: self.get(device, LAUNCHES + slot.0),
        }
    }

    /// Who asked for a share has that weight; the others divide what is left evenly.
    fn weigh(&self, device: usize) {
        let asked: Vec<(usize, u64)> = (0..SESSIONS_MAX)
            .map(|slot| (slot, self.get(device, ASKED + slot)))
            .filter(|(_, asked)| *asked != 0)
            .collect();
        let whole = u64::from(WHOLE_PERMILLE);
        let is_part = |asked: u64| asked < whole;
        let parts: u64 = asked.iter().map(|(_, a)| *a).filter(|a| is_part(*a)).sum();
        let others = asked.iter().filter(|(_, a)| !is_part(*a)).count() as u64;
        let rest = whole.saturating_sub(parts) / others.max(1);
        for (slot, asked) in &asked {
            let weight = if is_part(*asked) {
                *asked
            } else {
                rest.max(REST_PERMILLE_MIN)
            };
            self.set(device, WEIGHT + slot, weight);
        }
        let takes_turns = parts > 0 && asked.len() > 1;
        let active = if takes_turns { asked.len() as u64 } else { 0 };
        let changed = |before: u64| Some(before & FLAGS | active);
        let word = self.device_word(device, ACTIVE);
        let before = word.fetch_update(SeqCst, SeqCst, changed);
        if before.is_ok_and(|before| before & !FLAGS != 0) && active == 0 {
            for slot in self.wanting(device) {
                self.signal(slot);
            }
        }
    }

    /// Gives the token of `holder` to who is furthest behind, or to nobody. Nothing happens if it is not the holder any more.
    fn hand_on(&self, device: usize, holder: u64) {
        let mut from = holder;
        loop {
            let next = self.furthest_behind(device);
            let to = next.map_or(0, |slot| self.name(slot));
            let word = self.device_word(device, HOLDER);
            if word.compare_exchange(from, to, SeqCst, SeqCst).is_err() {
                return;
            }
            self.device_word(device, CHANGES).fetch_add(1, SeqCst);
            let Some(next) = next else {
                return self.offer(device);
            };
            if self.take_hold(device, next, to) {
                return self.signal(next);
            }
            // It died while it was chosen, and its end may have been seen before it held the token.
            from = to;
        }
    }

    /// A free token goes to who wants it.
    fn offer(&self, device: usize) {
        if self.get(device, HOLDER) == 0 && self.furthest_behind(device).is_some() {
            self.hand_on(device, 0);
        }
    }

    /// Notes that a session holds the token; false if that session is over.
    fn take_hold(&self, device: usize, slot: usize, name: u64) -> bool {
        if self.get(device, WEIGHT + slot) == 0 || self.name(slot) != name {
            return false;
        }
        self.clear_want(device, slot);
        let pass = self.get(device, PASS + slot);
        self.device_word(device, VIRTUAL).fetch_max(pass, SeqCst);
        true
    }

    fn furthest_behind(&self, device: usize) -> Option<usize> {
        self.wanting(device)
            .min_by_key(|slot| (self.get(device, PASS + slot), *slot))
    }

    /// Slots that wait for the token.
    fn wanting(&self, device: usize) -> impl Iterator<Item = usize> {
        (0..WANT_WORDS).flat_map(move |at| {
            let mut bits = self.get(device, WANTS + at);
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits.checked_sub(1)?;
                Some(at * 64 + bit)
            })
        })
    }

    fn clear_want(&self, device: usize, slot: usize) {
        let word = self.device_word(device, WANTS + slot / 64);
        word.fetch_and(!(1 << (slot % 64)), SeqCst);
    }

    /// Wakes the executor of a session.
    fn signal(&self, slot: usize) {
        self.word(SIGNAL + slot).fetch_add(1, SeqCst);
        self.words.wake(SIGNAL + slot);
    }

    /// A slot's session as a holder: never 0.
    fn name(&self, slot: usize) -> u64 {
        let generation = self.word(GENERATION + slot).load(SeqCst);
        generation << 16 | (slot as u64 + 1)
    }

    fn get(&self, device: usize, at: usize) -> u64 {
        self.device_word(device, at).load(SeqCst)
    }

    fn set(&self, device: usize, at: usize, value: u64) {
        self.device_word(device, at).store(value, SeqCst);
    }

    fn device_word(&self, device: usize, at: usize) -> &AtomicU64 {
        self.word(device * DEVICE_WORDS + at)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // All indices are sums of the bounds above; a wrong one must not end an executor.
        static NOWHERE: AtomicU64 = AtomicU64::new(0);
        self.words.get(index).unwrap_or(&NOWHERE)
    }
}

fn slot_of(holder: u64) -> Option<usize> {
    usize::try_from(holder & 0xffff).ok()?.checked_sub(1)
}

/// One session at the board.
#[derive(Debug)]
pub(crate) struct Member {
    board: Arc<Board>,
    slot: usize,
    name: u64,
}

impl Member {
    /// The session in `slot`, which has entered.
    pub(crate) fn new(board: Arc<Board>, slot: Slot) -> Self {
        let name = board.name(slot.0);
        Self {
            board,
            slot: slot.0,
            name,
        }
    }

    /// Whether sessions take turns on the device. One load.
    pub(crate) fn takes_turns(&self, device: usize) -> bool {
        self.active(device) & !FLAGS != 0
    }

    /// Whether launches are measured, be it that sessions take turns. One load.
    pub(crate) fn is_measured(&self, device: usize) -> bool {
        self.active(device) & !LOST != 0
    }

    /// Whether nobody takes turns, measures, or has lost the device. One load.
    pub(crate) fn is_quiet(&self, device: usize) -> bool {
        self.active(device) == 0
    }

    /// Whether the device is lost. One load.
    pub(crate) fn is_lost(&self, device: usize) -> bool {
        self.active(device) & LOST != 0
    }

    /// Tells all sessions and the supervisor that the device is lost.
    pub(crate) fn lose(&self, device: usize) {
        self.board.lose(device);
    }

    fn active(&self, device: usize) -> u64 {
        let word = self.board.device_word(device, ACTIVE);
        word.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether this session has the token.
    pub(crate) fn holds(&self, device: usize) -> bool {
        self.board.get(device, HOLDER) == self.name
    }

    /// Asks for the token; true if this session has it. Else [`Self::wait`] returns when it has. Does not block.
    pub(crate) fn ask(&self, device: usize) -> bool {
        let board = &*self.board;
        if self.holds(device) {
            return true;
        }
        let floor = board.get(device, VIRTUAL).saturating_sub(CREDIT_NS);
        let pass = board.device_word(device, PASS + self.slot);
        pass.fetch_max(floor, SeqCst);
        let word = board.device_word(device, WANTS + self.slot / 64);
        word.fetch_or(1 << (self.slot % 64), SeqCst);
        board.offer(device);
        self.holds(device)
    }

    /// Counts device time of this session's work that has ended.
    pub(crate) fn charge(&self, device: usize, ns: u64, launches: u64) {
        let board = &*self.board;
        board
            .device_word(device, BUSY + self.slot)
            .fetch_add(ns, SeqCst);
        board
            .device_word(device, LAUNCHES + self.slot)
            .fetch_add(launches, SeqCst);
        if self.takes_turns(device) {
            self.advance(device, ns);
        }
        let lose_after = board.get(device, LOSE_AFTER);
        if lose_after != 0 {
            let word = board.device_word(device, LAUNCHED);
            if word.fetch_add(launches, SeqCst) + launches >= lose_after {
                self.lose(device);
            }
        }
    }

    /// Counts time for which this session kept others from the device without using it; none where nobody waits.
    pub(crate) fn pay(&self, device: usize, time: Duration) {
        if self.least_other(device).is_some() {
            self.advance(device, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn advance(&self, device: usize, ns: u64) {
        let board = &*self.board;
        let weight = board.get(device, WEIGHT + self.slot).max(1);
        let virtual_ns = ns.saturating_mul(u64::from(WHOLE_PERMILLE)) / weight;
        let least_other = self.least_other(device);
        let ceiling = least_other.map_or(u64::MAX, |least| least.saturating_add(DEBT_NS));
        let word = board.device_word(device, PASS + self.slot);
        let advanced = |before: u64| before.max(before.saturating_add(virtual_ns).min(ceiling));
        let before = word.fetch_update(SeqCst, SeqCst, |before| Some(advanced(before)));
        let pass = before.map_or(0, advanced);
        let least = least_other.map_or(pass, |other| other.min(pass));
        board.device_word(device, VIRTUAL).fetch_max(least, SeqCst);
        board.device_word(device, CHANGES).fetch_add(1, SeqCst);
    }

    /// Whether somebody else is behind by so much that this session shall give the token up.
    pub(crate) fn must_yield(&self, device: usize) -> bool {
        let own = self.board.get(device, PASS + self.slot);
        self.least_other(device)
            .is_some_and(|other| other.saturating_add(SLICE_NS) < own)
    }

    /// Whether all who wait are ahead of this session by more than a slice.
    pub(crate) fn is_owed(&self, device: usize) -> bool {
        let own = self.board.get(device, PASS + self.slot);
        self.least_other(device)
            .is_none_or(|other| own.saturating_add(SLICE_NS) < other)
    }

    /// Gives the token to who is furthest behind, if this session has it.
    pub(crate) fn hand_on(&self, device: usize) {
        if self.holds(device) {
            self.board.hand_on(device, self.name);
        }
    }

    /// How often this session was told something; for [`Self::wait`].
    pub(crate) fn signals(&self) -> u32 {
        let count = self.board.word(SIGNAL + self.slot).load(SeqCst);
        u32::try_from(count & u64::from(u32::MAX)).unwrap_or(0)
    }

    /// Sleeps until this session is told something after `seen`; `timeout` at most.
    pub(crate) fn wait(&self, seen: u32, timeout: Option<Duration>) {
        self.board.words.wait(SIGNAL + self.slot, seen, timeout);
    }

    /// Wakes whoever sleeps in [`Self::wait`] of this session.
    pub(crate) fn nudge(&self) {
        self.board.signal(self.slot);
    }

    /// How often anything changed on a device: to see who is stuck.
    pub(crate) fn changes(&self, device: usize) -> u64 {
        self.board.get(device, CHANGES)
    }

    /// Takes the token from a holder of whom nothing was heard since `changes`, for who is furthest behind. Its work goes on
    /// beside that of the others.
    pub(crate) fn take_from_stuck(&self, device: usize, changes: u64) {
        let holder = self.board.get(device, HOLDER);
        if holder != 0 && holder != self.name && self.changes(device) == changes {
            self.board.hand_on(device, holder);
        }
    }

    fn least_other(&self, device: usize) -> Option<u64> {
        let others = self.board.wanting(device).filter(|slot| *slot != self.slot);
        others.map(|slot| self.board.get(device, PASS + slot)).min()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::{Board, Member, WEIGHT};
    use crate::ledger::Slot;

    fn pair() -> (Arc<Board>, Member, Member) {
        let board = Arc::new(Board::create().unwrap());
        board.enter(Slot(0), [(0, 250)]);
        board.enter(Slot(1), [(0, 750)]);
        let member = |slot| Member::new(board.clone(), Slot(slot));
        let (one, two) = (member(0), member(1));
        (board, one, two)
    }

    #[test]
    fn nobody_takes_turns_alone_or_without_shares() {
        let board = Arc::new(Board::create().unwrap());
        board.enter(Slot(0), [(0, 1000), (1, 250)]);
        let one = Member::new(board.clone(), Slot(0));
        assert!(!one.takes_turns(0) && !one.takes_turns(1));
        board.enter(Slot(1), [(0, 1000)]);
        assert!(!one.takes_turns(0), "two that asked for no share");
        board.enter(Slot(2), [(1, 500)]);
        assert!(!one.takes_turns(0) && one.takes_turns(1));
        board.leave(Slot(2));
        assert!(!one.takes_turns(1));
    }

    #[test]
    fn who_asked_for_no_share_has_what_is_left() {
        let board = Board::create().unwrap();
        board.enter(Slot(0), [(0, 1000)]);
        board.enter(Slot(1), [(0, 1000)]);
        board.enter(Slot(2), [(0, 400)]);
        let weight = |slot: usize| board.get(0, WEIGHT + slot);
        assert_eq!([weight(0), weight(1), weight(2)], [300, 300, 400]);
        board.enter(Slot(3), [(0, 900)]);
        assert_eq!([weight(0), weight(2), weight(3)], [50, 400, 900]);
        board.leave(Slot(3));
        board.leave(Slot(1));
        assert_eq!([weight(0), weight(2)], [600, 400]);
    }

    #[test]
    fn the_token_has_one_holder_and_is_handed_on() {
        let (_board, one, two) = pair();
        assert!(one.ask(0) && one.ask(0));
        assert!(!two.ask(0));
        let seen = two.signals();
        one.hand_on(0);
        assert!(two.holds(0) && !one.holds(0));
        assert_ne!(two.signals(), seen, "told so");
        two.hand_on(0);
        assert!(!two.holds(0), "free");
        assert!(one.ask(0));
    }

    #[test]
    fn a_holder_that_dies_leaves_the_token_to_the_next() {
        let (board, one, two) = pair();
        assert!(one.ask(0));
        assert!(!two.ask(0));
        board.leave(Slot(0));
        assert!(two.holds(0));
        assert!(!two.takes_turns(0), "alone now");
        board.enter(Slot(0), [(0, 500)]);
        assert!(!one.holds(0), "a name is not used again");
    }

    #[test]
    fn one_that_waited_and_died_gets_nothing() {
        let (board, one, two) = pair();
        board.enter(Slot(2), [(0, 100)]);
        let three = Member::new(board.clone(), Slot(2));
        assert!(one.ask(0));
        assert!(!two.ask(0) && !three.ask(0));
        board.leave(Slot(1));
        one.hand_on(0);
        assert!(three.holds(0) && !two.holds(0));
    }

    #[test]
    fn a_stuck_holder_loses_the_token_and_one_that_works_does_not() {
        let (_board, one, two) = pair();
        assert!(one.ask(0));
        assert!(!two.ask(0));
        let changes = two.changes(0);
        one.charge(0, 1000, 1);
        two.take_from_stuck(0, changes);
        assert!(one.holds(0), "something has changed");
        two.take_from_stuck(0, two.changes(0));
        assert!(two.holds(0));
        one.hand_on(0);
        assert!(two.holds(0), "not the holder's any more");
    }

    #[test]
    fn usage_is_counted_without_turns_too() {
        let board = Arc::new(Board::create().unwrap());
        board.enter(Slot(5), [(3, 1000)]);
        let one = Member::new(board.clone(), Slot(5));
        one.charge(3, 1500, 2);
        one.charge(3, 500, 1);
        let usage = board.usage(Slot(5), 3);
        assert_eq!((usage.busy_ns, usage.launches), (2000, 3));
        board.leave(Slot(5));
        board.enter(Slot(5), [(3, 1000)]);
        assert_eq!(board.usage(Slot(5), 3).busy_ns, 0);
    }
}
