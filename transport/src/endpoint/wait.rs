//! Waiting: one of the waiting threads leads and receives for all; each polls for a while
//! and then sleeps.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::Endpoint;
use super::receive::Rx;
use super::stats::Flush;
use crate::error::{CloseReason, WaitError};
use crate::sys::lead::Lead;
use crate::sys::poll::{IN, PollSet};
use crate::sys::processors::Processors;
use crate::sys::sync::fence;

/// How long a thread that does not lead polls before it sleeps: the leader does the work.
const FOLLOW_SPIN: Duration = Duration::from_micros(5);
/// How often a sleeping follower that waits for bulk room looks whether it may lead.
const FOLLOW_BULK: Duration = Duration::from_millis(1);

/// How long a server polls for more before it acknowledges alone: about what that acknowledgement's system
/// call would take.
const ACK_DELAY: Duration = Duration::from_micros(3);

/// Looks at memory between two rounds of everything else that a polling leader does, for a backend that shows there
/// whether something came.
const LOOKS: u32 = 16;
/// The same before the clock is looked at for the first time: about a microsecond.
const BRIEF_LOOKS: u32 = 64;

/// Rounds of looks, before a thread that may use one processor only lets others of its process have it between two: as
/// long as an answer from the next processor takes.
const LONE_ROUNDS: u32 = 4;

/// The end of an added delay is polled for: a timer would come too late.
const DELAY_SPIN: Duration = Duration::from_micros(120);

/// What of the bulk plane to wait for, beside what it delivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum BulkWait {
    #[default]
    Nothing,
    /// That it takes more.
    Room,
    /// Progress of a transfer beside the stream.
    Beside,
}

/// How to wait.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    /// Wake for the bulk plane, too.
    pub(super) bulk: BulkWait,
    /// What is waited for takes far longer than waking up: sleep without polling first.
    pub(super) sleeps_at_once: bool,
    /// Only what is there now counts.
    pub(super) is_glance: bool,
    pub(super) deadline: Option<Instant>,
    /// The same from the first look at the clock on: a near peer's answer is here before.
    pub(super) timeout: Option<Duration>,
}

impl How {
    /// The clock is looked at.
    fn begin(&mut self) {
        if let Some(timeout) = self.timeout.take() {
            self.deadline = Instant::now().checked_add(timeout);
        }
    }
}

/// How a turn at leading ended.
enum Turn {
    Done,
    TimedOut,
    Closed,
}

impl Endpoint {
    /// Waits until `done` says so, flushing first and receiving meanwhile. `done` is looked at
    /// after every batch of frames that arrives and after [`Endpoint::notify`].
    ///
    /// Blocks: polls for [`crate::Tuning::spin`], then sleeps. Allocates nothing.
    ///
    /// # Errors
    /// [`WaitError`]; `done` is looked at once more before any of them is returned.
    pub fn wait_until(
        &self,
        done: &dyn Fn() -> bool,
        timeout: Option<Duration>,
    ) -> Result<(), WaitError> {
        if done() {
            return Ok(());
        }
        self.check()?;
        if self.shared.rx.is_mine() {
            return Err(WaitError::InHandler);
        }
        self.shared.ahead.ends();
        self.flush_for(Flush::Forced);
        let how = How {
            is_glance: timeout.is_some_and(|timeout| timeout.is_zero()),
            timeout,
            ..How::default()
        };
        self.wait_as(&mut || done(), how)
    }

    /// The loop of a server: receives until the session is over, acknowledging as soon as
    /// nothing more is there, and sending what other threads appended.
    ///
    /// Blocks until the session is over, which any thread can bring about with
    /// [`Endpoint::close`].
    pub fn run(&self) -> CloseReason {
        let mut never = || false;
        loop {
            match self.wait_core(&mut never, false, None) {
                Err(WaitError::Closed(why)) => return why,
                Err(WaitError::InHandler) => return CloseReason::Local,
                Ok(()) | Err(WaitError::TimedOut) => {}
            }
        }
    }

    /// Makes every waiting thread look at its condition again: for when something else than a
    /// frame made it true.
    pub fn notify(&self) {
        if self.shared.mark.is_set() {
            self.shared.events.advance();
            self.wake_leader();
        }
    }

    /// Waits for `done`; with `bulk_write` also wakes when the bulk plane takes more. May be
    /// called from inside a handler, if `done` does not depend on delivered frames.
    pub(super) fn wait_core(
        &self,
        done: &mut dyn FnMut() -> bool,
        bulk_write: bool,
        deadline: Option<Instant>,
    ) -> Result<(), WaitError> {
        let how = How {
            bulk: if bulk_write {
                BulkWait::Room
            } else {
                BulkWait::Nothing
            },
            deadline,
            ..How::default()
        };
        self.wait_as(done, how)
    }

    /// The same, as `how` says.
    pub(super) fn wait_as(
        &self,
        done: &mut dyn FnMut() -> bool,
        mut how: How,
    ) -> Result<(), WaitError> {
        let shared = &*self.shared;
        loop {
            let turn = if let Some(lead) = shared.rx.nested() {
                how.begin();
                let turn = self.lead(&lead, done, how);
                shared.events.advance();
                turn
            } else if let Some(lead) = shared.rx.try_lead() {
                if let Some(trailing) = &shared.trailing {
                    trailing.note_activity();
                }
                let turn = if self.look_briefly(&lead, done, how) {
                    Turn::Done
                } else {
                    how.begin();
                    self.lead(&lead, done, how)
                };
                drop(lead);
                self.release_lead();
                turn
            } else {
                how.begin();
                match self.follow(done, how) {
                    Some(turn) => turn,
                    None => continue,
                }
            };
            return match turn {
                Turn::Done => Ok(()),
                _ if done() => Ok(()),
                Turn::TimedOut => Err(WaitError::TimedOut),
                Turn::Closed => Err(WaitError::Closed(shared.reason())),
            };
        }
    }

    /// Polls memory alone, where that shows what comes, for as long as a near peer takes to answer. Whether `done`.
    fn look_briefly(&self, lead: &Lead<'_, Rx>, done: &mut dyn FnMut() -> bool, how: How) -> bool {
        let shared = &*self.shared;
        if how.is_glance || how.sleeps_at_once || self.expects_more(how) {
            return false;
        }
        for _ in 0..BRIEF_LOOKS {
            match lead.with(|rx| rx.stream.has_news()) {
                None => return false,
                Some(false) => std::hint::spin_loop(),
                Some(true) => {
                    self.pump(lead);
                    if done() {
                        shared.spin.hit();
                        return true;
                    }
                    shared.events.advance();
                    if shared.closed.load(Acquire) {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// Whether something else than the stream has to be looked at, or who answers cannot while this side polls.
    fn expects_more(&self, how: How) -> bool {
        let shared = &*self.shared;
        how.bulk != BulkWait::Nothing
            || shared.bulk_posted.load(Relaxed) != 0
            || !shared.tuning.added_rtt.is_zero()
            || shared.processors == Processors::One
    }

    fn lead(&self, lead: &Lead<'_, Rx>, done: &mut dyn FnMut() -> bool, how: How) -> Turn {
        let shared = &*self.shared;
        let mut idle = Idle::default();
        loop {
            if shared.closed.load(Acquire) {
                return Turn::Closed;
            }
            let moved = self.pump(lead);
            if done() {
                if idle.since.is_some() {
                    shared.spin.hit();
                }
                return Turn::Done;
            }
            if moved {
                shared.events.advance();
                if idle.since.is_some() {
                    shared.spin.hit();
                }
                idle = Idle::default();
                self.linger(lead, how);
                continue;
            }
            let now = Instant::now();
            if how.deadline.is_some_and(|at| now >= at) {
                return Turn::TimedOut;
            }
            let since = *idle.since.get_or_insert(now);
            self.tell_peer(&mut idle, now - since);
            if !how.sleeps_at_once && now - since < shared.spin.time() {
                idle.rounds += 1;
                self.look_out(lead, how, idle.rounds);
                continue;
            }
            self.flush_for(Flush::Forced);
            self.acknowledge();
            let left = how.deadline.map(|at| at - now);
            let slept = self.sleep_leading(lead, done, how.bulk, left);
            if how.sleeps_at_once || !slept {
                continue;
            }
            // Whatever it was that ended the sleep, poll a little for more of it.
            let woken = Instant::now();
            shared.spin.slept(woken - now);
            idle = Idle {
                since: Some(woken),
                ..idle
            };
        }
    }

    /// Something came. Where it is plain that nothing more is there, a server sends what gathered meanwhile, without a
    /// round in vain before.
    fn linger(&self, lead: &Lead<'_, Rx>, how: How) {
        let shared = &*self.shared;
        if !self.is_quiet(lead, how) {
            return;
        }
        if shared.prompt_ack {
            self.flush_for(Flush::Forced);
        }
        self.look_out(lead, how, 0);
    }

    /// Whether memory shows that nothing has come.
    fn is_quiet(&self, lead: &Lead<'_, Rx>, how: How) -> bool {
        !how.sleeps_at_once && lead.with(|rx| rx.stream.has_news()) == Some(false)
    }

    /// Polls for a moment, before everything is looked at again: the stream alone where memory shows whether something
    /// came, and nothing else is expected.
    fn look_out(&self, lead: &Lead<'_, Rx>, how: How, round: u32) {
        if self.expects_more(how) {
            return self.relax(round);
        }
        let could_look = lead.with(|rx| {
            for _ in 0..LOOKS {
                match rx.stream.has_news() {
                    Some(false) => std::hint::spin_loop(),
                    Some(true) => return true,
                    None => return false,
                }
            }
            true
        });
        if !could_look {
            self.relax(round);
        } else if self.shared.processors == Processors::OneOfSeveral && round >= LONE_ROUNDS {
            std::thread::yield_now();
        }
    }

    /// Nothing arrives at the moment: sends what gathered. A server acknowledges then, but not in the same
    /// moment: the peer's next record is often a call that waits, and its reply carries the acknowledgement
    /// without a system call of its own.
    fn tell_peer(&self, idle: &mut Idle, quiet: Duration) {
        if !self.shared.prompt_ack || idle.acknowledged {
            self.flush_stale(idle);
            return;
        }
        self.flush_for(Flush::Forced);
        if quiet >= ACK_DELAY {
            self.acknowledge();
            idle.acknowledged = true;
        }
    }

    /// Sends what gathered for too long, and retries what the connection did not take.
    fn flush_stale(&self, idle: &mut Idle) {
        let shared = &*self.shared;
        if shared.want_write.load(Relaxed) {
            self.transmit(Flush::Forced);
        }
        if !shared.gathered.load(Acquire) {
            idle.gathering = None;
        } else if shared.prompt_ack {
            self.transmit(Flush::Timer);
        } else {
            let since = *idle.gathering.get_or_insert_with(Instant::now);
            if since.elapsed() >= shared.tuning.gather {
                self.transmit(Flush::Timer);
                idle.gathering = None;
            }
        }
    }

    /// Sleeps until there may be something to do; false where an added delay ends too soon for that.
    fn sleep_leading(
        &self,
        lead: &Lead<'_, Rx>,
        done: &mut dyn FnMut() -> bool,
        bulk: BulkWait,
        timeout: Option<Duration>,
    ) -> bool {
        let shared = &*self.shared;
        // SYNC: Dekker with `wake_leader`: either it sees that we sleep and wakes us, or we see
        // below what it announced.
        shared.leader_sleeps.store(true, SeqCst);
        fence(SeqCst);
        let delay = lead.with(|rx| rx.delay_left(shared.tuning.added_rtt));
        let room = lead.with(|rx| rx.room(shared.rx_ring.bytes()) > 0);
        if delay.is_some_and(|left| left < DELAY_SPIN) {
            shared.leader_sleeps.store(false, SeqCst);
            return false;
        }
        let timeout = match (timeout, delay.map(|left| left - DELAY_SPIN)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let timeout = match (timeout, shared.link.trouble_left()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let mut set = PollSet::new();
        set.add(shared.wake.raw(), IN);
        let (bulk_idle, armed) = self.arm_bulk(&mut set, bulk);
        let stream = shared.link.stream();
        let idle = stream.arm(&mut set, room, shared.want_write.load(SeqCst)) && bulk_idle;
        let stop = done()
            || shared.closed.load(SeqCst)
            || shared.gathered.load(SeqCst)
            || shared.link.is_pressing();
        if idle && !stop {
            shared.counters.add(&shared.counters.sleeps, 1);
            // An error here (no memory for the call) only means polling on.
            let _ = set.wait(timeout);
        }
        stream.disarm();
        drop(armed);
        shared.leader_sleeps.store(false, SeqCst);
        if set.ready(0) {
            shared.wake.clear();
        }
        true
    }

    /// Waits while another thread leads. None: try to lead.
    fn follow(&self, done: &mut dyn FnMut() -> bool, how: How) -> Option<Turn> {
        let shared = &*self.shared;
        let start = Instant::now();
        shared.events.enter();
        let turn = loop {
            let seen = shared.events.epoch();
            if done() {
                break Some(Turn::Done);
            }
            if shared.closed.load(SeqCst) {
                break Some(Turn::Closed);
            }
            if !shared.rx.is_held() {
                break None;
            }
            let now = Instant::now();
            if how.deadline.is_some_and(|at| now >= at) {
                break Some(Turn::TimedOut);
            }
            if now - start < FOLLOW_SPIN {
                self.relax(LONE_ROUNDS);
                continue;
            }
            let left = how.deadline.map(|at| at - now);
            if how.bulk != BulkWait::Nothing {
                let mut set = PollSet::new();
                let (idle, armed) = self.arm_bulk_follower(&mut set, how.bulk);
                if idle {
                    let _ = set.wait(Some(left.map_or(FOLLOW_BULK, |l| l.min(FOLLOW_BULK))));
                }
                drop(armed);
            } else {
                shared.counters.add(&shared.counters.sleeps, 1);
                shared.events.sleep(seen, left);
            }
        };
        shared.events.leave();
        turn
    }

    /// Between two looks, the how-manieth since something came.
    fn relax(&self, round: u32) {
        match self.shared.processors {
            Processors::One => std::thread::yield_now(),
            Processors::OneOfSeveral if round >= LONE_ROUNDS => std::thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }

    /// Wakes the leader if it sleeps.
    pub(super) fn wake_leader(&self) {
        fence(SeqCst);
        if self.shared.leader_sleeps.load(SeqCst) {
            self.shared.wake.set();
        }
    }

    /// Sees to it that someone waits for the connection to take more.
    pub(super) fn wake_writer(&self) {
        if self.shared.rx.is_mine() {
            return;
        }
        self.wake_leader();
        self.kick_trailing();
    }

    /// Sees to it that someone receives soon.
    pub(super) fn wake_receiver(&self) {
        self.wake_writer();
    }
}

/// Since when a leader had nothing to do.
#[derive(Default)]
struct Idle {
    since: Option<Instant>,
    /// Looks since then.
    rounds: u32,
    gathering: Option<Instant>,
    /// Whether what arrived before has been acknowledged.
    acknowledged: bool,
}
