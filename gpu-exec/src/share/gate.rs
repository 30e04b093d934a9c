//! An executor's way to the token of its devices.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::board::{Member, STUCK};
use crate::limits::STACK_BYTES;

/// How long the token is kept for a program that is about to launch again.
const LINGER: Duration = Duration::from_millis(1);

/// How a session launches.
#[derive(Debug, Default)]
struct Pace {
    /// Since when it has nothing to do.
    rests_since: Option<Instant>,
    /// It came back within [`LINGER`] the last time.
    is_quick: bool,
}

/// Lets launches through or holds them back. Devices are the session's ordinals.
pub(crate) struct Gate {
    member: Member,
    /// The server's numbers.
    devices: Vec<usize>,
    /// By device: the session waits for the token.
    waits: Vec<AtomicBool>,
    paces: Vec<Mutex<Pace>>,
    /// By device: the watcher gives the token back if nothing comes.
    lingers: Vec<AtomicBool>,
    /// The watcher sleeps until it is told something, however long that takes.
    is_dormant: AtomicBool,
    watcher: Once,
    opened: OnceLock<Box<dyn Fn() + Send + Sync>>,
    this: Weak<Self>,
}

impl Gate {
    /// The gate of a session that has entered; its devices in the order of the client's ordinals. Starts no thread.
    pub(crate) fn new(member: Member, devices: Vec<usize>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            waits: devices.iter().map(|_| AtomicBool::new(false)).collect(),
            lingers: devices.iter().map(|_| AtomicBool::new(false)).collect(),
            paces: devices.iter().map(|_| Mutex::default()).collect(),
            member,
            devices,
            is_dormant: AtomicBool::new(false),
            watcher: Once::new(),
            opened: OnceLock::new(),
            this: this.clone(),
        })
    }

    /// Whom to tell, on a thread of its own, that launches may be let through which were held back.
    pub(crate) fn on_open(&self, tell: impl Fn() + Send + Sync + 'static) {
        let _ = self.opened.set(Box::new(tell));
    }

    /// Whether a launch may go to the device now; if not, who waits is told later. One load where nobody takes turns. Does not block.
    pub(crate) fn admits(&self, ordinal: usize) -> bool {
        let Some(device) = self.devices.get(ordinal).copied() else {
            return true;
        };
        if !self.member.takes_turns(device) {
            return true;
        }
        self.come_back(ordinal);
        self.wait_for(ordinal, true);
        if self.member.ask(device) {
            self.wait_for(ordinal, false);
            return true;
        }
        self.watch();
        // Turns may have ended while it asked, before anybody saw that it waits.
        !self.member.takes_turns(device)
    }

    /// Whether sessions take turns on a device now. One load.
    pub(crate) fn takes_turns(&self, ordinal: usize) -> bool {
        let device = self.devices.get(ordinal);
        device.is_some_and(|device| self.member.takes_turns(*device))
    }

    /// Whether launches are to be measured. One load.
    pub(crate) fn is_measured(&self, ordinal: usize) -> bool {
        let device = self.devices.get(ordinal);
        device.is_some_and(|device| self.member.is_measured(*device))
    }

    /// Whether all devices go on without turns, measuring or loss. One load per device of the session.
    pub(crate) fn is_quiet(&self) -> bool {
        self.devices
            .iter()
            .all(|device| self.member.is_quiet(*device))
    }

    /// Whether a device is lost. One load.
    pub(crate) fn is_lost(&self, ordinal: usize) -> bool {
        let device = self.devices.get(ordinal);
        device.is_some_and(|device| self.member.is_lost(*device))
    }

    /// Device time of work that has ended.
    pub(crate) fn charge(&self, ordinal: usize, time: Duration, launches: u64) {
        if let Some(device) = self.devices.get(ordinal) {
            let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            self.member.charge(*device, ns, launches);
        }
    }

    /// Whether this session has the token, and others have waited long enough for it.
    pub(crate) fn must_yield(&self, ordinal: usize) -> bool {
        let device = self.devices.get(ordinal);
        device.is_some_and(|device| {
            self.member.takes_turns(*device) && self.member.must_yield(*device)
        })
    }

    /// Others are to go on, though this session has more to do.
    pub(crate) fn hand_on(&self, ordinal: usize) {
        if let Some(device) = self.devices.get(ordinal)
            && self.member.takes_turns(*device)
        {
            self.member.hand_on(*device);
        }
    }

    /// Nothing of this session runs on the device. Others may, but for a session that is owed time and mostly comes back at once:
    /// the time is returned after which to ask again, should it have nothing to do until then.
    ///
    /// A program that waits for each kernel before it launches the next would else lose its turn in every gap, however small its
    /// neighbour's share is.
    pub(crate) fn rest(&self, ordinal: usize) -> Option<Duration> {
        let (device, pace) = (*self.devices.get(ordinal)?, self.paces.get(ordinal)?);
        if !self.member.takes_turns(device) || !self.member.holds(device) {
            return None;
        }
        let mut pace = pace.lock();
        let idle = pace.rests_since.get_or_insert_with(Instant::now).elapsed();
        let left = LINGER.saturating_sub(idle);
        if pace.is_quick && !left.is_zero() && self.member.is_owed(device) {
            return Some(left);
        }
        pace.is_quick &= !left.is_zero();
        self.member.pay(device, idle);
        self.member.hand_on(device);
        None
    }

    /// As [`Self::rest`], but the gate asks again itself.
    pub(crate) fn rest_watched(&self, ordinal: usize) {
        if self.rest(ordinal).is_some() {
            if let Some(flag) = self.lingers.get(ordinal) {
                flag.store(true, Ordering::SeqCst);
            }
            self.watch();
        }
    }

    /// As [`Self::rest`], for all devices: the least of the times.
    pub(crate) fn rest_all(&self) -> Option<Duration> {
        (0..self.devices.len())
            .filter_map(|ordinal| self.rest(ordinal))
            .min()
    }

    /// There is something to do again.
    fn come_back(&self, ordinal: usize) {
        let Some(pace) = self.paces.get(ordinal) else {
            return;
        };
        if let Some(flag) = self.lingers.get(ordinal) {
            flag.store(false, Ordering::SeqCst);
        }
        let mut pace = pace.lock();
        if let Some(since) = pace.rests_since.take() {
            pace.is_quick = since.elapsed() < LINGER;
        }
    }

    fn wait_for(&self, ordinal: usize, waits: bool) {
        if let Some(flag) = self.waits.get(ordinal) {
            flag.store(waits, Ordering::SeqCst);
        }
    }

    /// Sees to it that somebody looks after the token that this session waits for.
    fn watch(&self) {
        self.watcher.call_once(|| self.start());
        if self.is_dormant.swap(false, Ordering::SeqCst) {
            self.member.nudge();
        }
    }

    fn start(&self) {
        let this = self.this.clone();
        let builder = std::thread::Builder::new()
            .name("turns".to_owned())
            .stack_size(2 * STACK_BYTES);
        let started = builder.spawn(move || {
            let Some(mut seen) = this.upgrade().map(|this| this.member.signals()) else {
                return;
            };
            // A first look: the token may have come before this thread began to look at the signals.
            if let Some(this) = this.upgrade() {
                this.tell();
            }
            while let Some(this) = this.upgrade() {
                this.watch_once(&mut seen);
            }
        });
        if let Err(error) = started {
            // Without it a launch that waits is never let through.
            log::error!("the thread that takes turns cannot be started: {error}");
            std::process::abort();
        }
    }

    /// Sleeps until something is told; tells the device. While the session waits for a token, sees to it that nobody keeps it
    /// who is stuck.
    fn watch_once(&self, seen: &mut u32) {
        self.is_dormant.store(true, Ordering::SeqCst);
        let waiting: Vec<(usize, u64)> = self.waiting().collect();
        let stuck = (!waiting.is_empty()).then_some(STUCK);
        let timeout = self.end_lingering().into_iter().chain(stuck).min();
        if timeout.is_some() {
            self.is_dormant.store(false, Ordering::SeqCst);
        }
        self.member.wait(*seen, timeout);
        let now = self.member.signals();
        if now != *seen {
            *seen = now;
            return self.tell();
        }
        if timeout != stuck {
            return;
        }
        for (device, changes) in &waiting {
            self.member.take_from_stuck(*device, *changes);
        }
        // Asking again does no harm.
        if !waiting.is_empty() {
            self.tell();
        }
    }

    /// Gives back what was kept for long enough; when to look again for the others.
    fn end_lingering(&self) -> Option<Duration> {
        let lingering = self.lingers.iter().enumerate();
        let lingering = lingering.filter(|(_, flag)| flag.load(Ordering::SeqCst));
        let left = lingering.filter_map(|(ordinal, flag)| {
            let left = self.rest(ordinal);
            flag.store(left.is_some(), Ordering::SeqCst);
            left
        });
        left.min()
    }

    /// Devices whose token this session waits for, and how often something has changed there.
    fn waiting(&self) -> impl Iterator<Item = (usize, u64)> {
        let flags = self.waits.iter().zip(&self.devices);
        flags
            .filter(|(flag, device)| {
                flag.load(Ordering::SeqCst) && self.member.takes_turns(**device)
            })
            .map(|(_, device)| (*device, self.member.changes(*device)))
    }

    fn tell(&self) {
        if let Some(opened) = self.opened.get() {
            opened();
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::{Gate, Member};
    use crate::ledger::Slot;
    use crate::share::board::Board;

    /// The gate of the only session of so many devices.
    pub(crate) fn alone(devices: usize) -> Arc<Gate> {
        let board = Arc::new(Board::create().unwrap());
        gate(&board, 0, 1000, devices)
    }

    fn gate(board: &Arc<Board>, slot: usize, permille: u16, devices: usize) -> Arc<Gate> {
        board.enter(Slot(slot), (0..devices).map(|device| (device, permille)));
        let member = Member::new(board.clone(), Slot(slot));
        Gate::new(member, (0..devices).collect())
    }

    #[test]
    fn who_waits_is_told_of_the_token() {
        let board = Arc::new(Board::create().unwrap());
        let (one, two) = (gate(&board, 0, 500, 1), gate(&board, 1, 500, 1));
        let (tell, told) = channel();
        two.on_open(move || tell.send(()).unwrap());
        assert!(one.admits(0) && !two.admits(0));
        assert_eq!(one.rest_all(), None);
        while !two.admits(0) {
            told.recv().unwrap();
        }
        assert!(!one.admits(0));
    }

    #[test]
    fn who_waits_is_told_of_the_end_of_the_holder_and_of_turns() {
        let board = Arc::new(Board::create().unwrap());
        let (one, two) = (gate(&board, 0, 500, 1), gate(&board, 1, 500, 1));
        let (tell, told) = channel();
        two.on_open(move || tell.send(()).unwrap());
        assert!(one.admits(0) && !two.admits(0));
        board.leave(Slot(0));
        while !two.admits(0) {
            told.recv().unwrap();
        }
        assert!(!two.member.takes_turns(0), "alone");
    }

    #[test]
    fn who_is_owed_time_and_comes_back_at_once_keeps_the_token() {
        let board = Arc::new(Board::create().unwrap());
        let (one, two) = (gate(&board, 0, 500, 1), gate(&board, 1, 500, 1));
        assert!(two.admits(0));
        two.charge(0, Duration::from_millis(20), 1);
        two.hand_on(0);
        assert!(one.admits(0) && !two.admits(0));
        assert_eq!(one.rest_all(), None, "not seen to come back yet");
        assert!(two.admits(0) && !one.admits(0));
        two.hand_on(0);
        assert!(!two.admits(0));
        assert!(one.rest_all().is_some(), "came back at once");
        assert!(!two.admits(0) && one.admits(0));
        assert!(one.rest_all().is_some());
        while one.rest_all().is_some() {}
        assert!(two.admits(0), "it took too long");
    }

    #[test]
    fn a_holder_that_is_stuck_is_passed_by() {
        let board = Arc::new(Board::create().unwrap());
        let (one, two) = (gate(&board, 0, 500, 1), gate(&board, 1, 500, 1));
        let (tell, told) = channel();
        two.on_open(move || tell.send(()).unwrap());
        assert!(one.admits(0) && !two.admits(0));
        while !two.admits(0) {
            told.recv().unwrap();
        }
        one.charge(0, Duration::from_secs(3), 1);
        assert!(!one.admits(0), "it has lost the token");
    }
}
