//! The trailing edge: a thread of the client that sends what gathered when the program makes
//! no further call, and receives when nobody waits. It sleeps when there is nothing to do.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Endpoint;
use super::ahead::GATHERS;
use super::pulse::Pulse;
use super::stats::Flush;
use crate::sys::event::EventFd;
use crate::sys::poll::{IN, PollSet, precise_timers};
use crate::sys::sync::fence;

/// While the program is active, how often to look for frames that nobody waits for.
const TICK: Duration = Duration::from_millis(10);
/// The same while bulk data is expected.
const TICK_BULK: Duration = Duration::from_millis(1);
/// How long the bulk plane may have this thread at a time.
const BULK_TURN: Duration = Duration::from_millis(100);
/// How long a full connection is left to the thread that waits for room in it. What that thread leaves behind when it
/// makes no further call waits so long at most.
const LED_NAP: Duration = Duration::from_micros(500);
/// Rounds without work before a busy flusher sleeps again: waking it costs a system call.
const LINGER_ROUNDS: u32 = 20;
/// A program that appends so much in one gathering time fills batches by itself: this thread leaves them
/// to it and takes longer steps.
const BUSY_BYTES: u64 = 1 << 10;
/// How many gathering times the last records of a busy program may wait at first, and when it stays busy: each look
/// takes a processor from the program or from its server.
const BUSY_GATHERS: u32 = 5;
const BUSY_GATHERS_MAX: u32 = 20;

const ASLEEP: u32 = 0;
const AWAKE: u32 = 1;
/// Asleep until the present leader leaves.
const DELEGATED: u32 = 2;

/// What the flusher shares with the threads that kick it.
#[derive(Debug)]
pub(super) struct Trailing {
    state: AtomicU32,
    wake: EventFd,
    stop: AtomicBool,
    exited: AtomicBool,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Counts turns at leading, to tell an active program from a quiet one.
    activity: AtomicU64,
    /// Gathering times of one round; only the flusher uses it.
    gathers: AtomicU32,
}

impl Trailing {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            state: AtomicU32::new(ASLEEP),
            wake: EventFd::new()?,
            stop: AtomicBool::new(false),
            exited: AtomicBool::new(false),
            thread: Mutex::new(None),
            activity: AtomicU64::new(0),
            gathers: AtomicU32::new(1),
        })
    }
}

impl Trailing {
    /// Makes the flusher look at everything again.
    pub(super) fn wake(&self) {
        self.wake.set();
    }

    /// Chooses the length of the next round from what the program did in the last one.
    fn pace(&self, appended_bytes: u64, time: Duration, gather: Duration) {
        let busy = u128::from(appended_bytes) * gather.as_nanos()
            >= u128::from(BUSY_BYTES) * time.as_nanos();
        let longer = (self.gathers.load(Relaxed) * 2).clamp(BUSY_GATHERS, BUSY_GATHERS_MAX);
        self.gathers.store(if busy { longer } else { 1 }, Relaxed);
    }

    /// A thread of the program leads. Called by the leader only.
    pub(super) fn note_activity(&self) {
        self.activity
            .store(self.activity.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

impl Endpoint {
    pub(super) fn start_flusher(&self) -> io::Result<()> {
        let own = Self {
            shared: Arc::clone(&self.shared),
            counted: false,
        };
        let thread = std::thread::Builder::new()
            .name("farcall-flush".into())
            .stack_size(256 << 10)
            .spawn(move || own.flusher_loop())?;
        if let Some(trailing) = &self.shared.trailing {
            *trailing.thread.lock() = Some(thread);
        }
        Ok(())
    }

    /// Makes whoever looks after trailing edges look.
    pub(super) fn kick_trailing(&self) {
        let Some(trailing) = &self.shared.trailing else {
            return self.wake_leader();
        };
        // SYNC: Dekker with the flusher's going to sleep: it sets ASLEEP, then looks for work.
        fence(SeqCst);
        if trailing.state.load(SeqCst) != AWAKE && trailing.state.swap(AWAKE, SeqCst) != AWAKE {
            trailing.wake.set();
        }
    }

    /// After leadership was dropped: someone who waits should take it, and a flusher that
    /// relied on the leader looks after the connection again.
    pub(super) fn release_lead(&self) {
        self.shared.events.advance();
        if let Some(trailing) = &self.shared.trailing
            && trailing.state.load(SeqCst) == DELEGATED
        {
            self.kick_trailing();
        }
    }

    /// Ends the flusher thread and waits for it a little. A thread that the end of the process
    /// took away already is not waited for.
    pub(super) fn stop_flusher(&self, patience: Duration) {
        let Some(trailing) = &self.shared.trailing else {
            return;
        };
        trailing.stop.store(true, SeqCst);
        trailing.wake.set();
        let Some(thread) = trailing.thread.lock().take() else {
            return;
        };
        if thread.thread().id() == std::thread::current().id() {
            return;
        }
        let deadline = Instant::now() + patience;
        while !trailing.exited.load(Acquire) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        if trailing.exited.load(Acquire) {
            // It has nothing left to do but return.
            let _ = thread.join();
        }
    }

    fn flusher_loop(&self) {
        precise_timers();
        let Some(trailing) = &self.shared.trailing else {
            return;
        };
        let mut quiet_rounds = 0;
        let mut seen_activity = 0;
        let shared = &*self.shared;
        let mut pulse = Pulse::new(shared.tuning.keepalive);
        // After a resume the bulk plane has to catch up.
        let mut bulk_due = false;
        while !trailing.stop.load(SeqCst) {
            self.beat(&mut pulse);
            if shared.needs_attention() && !shared.closed.load(SeqCst) {
                bulk_due |= self.look_after_link(trailing);
            }
            if bulk_due {
                bulk_due = !self.reopen_bulk(BULK_TURN);
                continue;
            }
            let is_ahead = shared.ahead.is_on() && !shared.want_write.load(SeqCst);
            let worked = if is_ahead {
                self.send_ahead()
            } else {
                self.trailing_round()
            };
            quiet_rounds = if worked { 0 } else { quiet_rounds + 1 };
            if worked && !is_ahead {
                continue;
            }
            if quiet_rounds < LINGER_ROUNDS && trailing.state.load(SeqCst) == AWAKE {
                // A busy program that waits for its server is back before this is over.
                let gathers = trailing.gathers.load(Relaxed);
                let time = shared.tuning.gather * if is_ahead { GATHERS } else { gathers };
                self.nap(time, false);
                continue;
            }
            trailing.state.store(ASLEEP, SeqCst);
            fence(SeqCst);
            if !self.has_trailing_work() {
                let activity = trailing.activity.load(Relaxed);
                let active = activity != seen_activity;
                seen_activity = activity;
                self.long_sleep(active, &pulse);
            }
            if trailing.state.load(SeqCst) == AWAKE {
                quiet_rounds = 0;
            }
        }
        trailing.exited.store(true, SeqCst);
    }

    /// Nobody else may be there to notice a loss; and it is this thread that dials. Whether the session was
    /// resumed.
    fn look_after_link(&self, trailing: &Trailing) -> bool {
        let shared = &*self.shared;
        if !shared.link.is_down() {
            let _ = self.poll();
            return false;
        }
        let nap = |time: Duration| {
            let mut set = PollSet::new();
            set.add(trailing.wake.raw(), IN);
            let _ = set.wait(Some(time));
            trailing.wake.clear();
        };
        self.reconnect(&|| trailing.stop.load(SeqCst), &nap)
    }

    /// Sends what a program that runs ahead has issued since the last look. Whether it has.
    fn send_ahead(&self) -> bool {
        let shared = &*self.shared;
        let has_work = !shared.closed.load(Acquire) && shared.gathered.load(Acquire);
        if has_work {
            // What was sent before is most likely acknowledged, and the next record need not look.
            let _ = self.poll();
            self.flush_for(Flush::Timer);
        }
        has_work
    }

    fn has_trailing_work(&self) -> bool {
        self.shared.gathered.load(SeqCst) || self.shared.want_write.load(SeqCst)
    }

    /// Waits for the acknowledgement or the end of the gathering time, then sends. Returns
    /// whether there was anything to do.
    fn trailing_round(&self) -> bool {
        let shared = &*self.shared;
        if shared.closed.load(Acquire) || !self.has_trailing_work() {
            return false;
        }
        let Some(trailing) = &shared.trailing else {
            return false;
        };
        let gathers = trailing.gathers.load(Relaxed);
        let gather = shared.tuning.gather * gathers;
        // A busy program looks at the connection itself, with every batch.
        let is_busy = gathers > 1;
        let (start, first) = (Instant::now(), shared.tail());
        while self.has_trailing_work() && start.elapsed() < gather {
            // Receiving the acknowledgement sends what gathered.
            let moved = matches!(self.poll(), Ok(true));
            if !moved && shared.gathered.load(Acquire) {
                self.nap(gather.saturating_sub(start.elapsed()), !is_busy);
            } else if shared.want_write.load(SeqCst) {
                self.nap(if is_busy { gather } else { TICK }, !is_busy);
                self.transmit(Flush::Forced);
            }
        }
        self.flush_for(Flush::Timer);
        trailing.pace(shared.tail() - first, start.elapsed(), shared.tuning.gather);
        true
    }

    /// Sleeps for a moment; with `socket` also until the connection moves, if nobody leads.
    fn nap(&self, time: Duration, socket: bool) {
        let shared = &*self.shared;
        let Some(trailing) = &shared.trailing else {
            return;
        };
        let mut set = PollSet::new();
        set.add(trailing.wake.raw(), IN);
        let mut write = socket && shared.want_write.load(SeqCst);
        // Who leads waits for room, too, and need not be woken beside this thread. When it leaves, it most likely
        // goes on and fills the room: waking this one for that would cost the program a system call and a wake-up of
        // another processor each time, so this one looks again by itself.
        let led = write && shared.rx.is_held();
        let time = if led { time.min(LED_NAP) } else { time };
        write &= !led;
        let watch = socket && !led && !shared.rx.is_held();
        let stream = shared.link.stream();
        let idle = !(watch || write) || stream.arm(&mut set, watch, write);
        if idle {
            let _ = set.wait(Some(time));
        }
        if watch || write {
            stream.disarm();
            self.pass_on();
        }
        if set.ready(0) {
            trailing.wake.clear();
        }
    }

    /// Sleeps until kicked. While the program is `active`, its own threads receive, and this
    /// one only looks now and then; when it has gone quiet, the connection is watched.
    fn long_sleep(&self, active: bool, pulse: &Pulse) {
        let shared = &*self.shared;
        let Some(trailing) = &shared.trailing else {
            return;
        };
        let mut set = PollSet::new();
        set.add(trailing.wake.raw(), IN);
        let bulk = shared.bulk_posted.load(Relaxed) > 0;
        let over = shared.closed.load(SeqCst);
        let delegated = !active && !over && self.delegate(trailing);
        let watch = !active && !over && !delegated;
        let stream = shared.link.stream();
        let idle = if watch {
            self.acknowledge();
            stream.arm(&mut set, true, false)
        } else {
            true
        };
        let timeout = match (active && !over, bulk && !over) {
            (_, true) => Some(TICK_BULK),
            (true, false) => Some(TICK),
            (false, false) => None,
        };
        let beat = pulse.left().filter(|_| !over);
        let timeout = [timeout, beat, shared.link.trouble_left()]
            .into_iter()
            .flatten()
            .min();
        if idle && (over || !shared.link.is_pressing()) {
            let _ = set.wait(timeout);
        }
        if watch {
            stream.disarm();
        }
        if set.ready(0) {
            trailing.wake.clear();
        }
        if !shared.closed.load(SeqCst) && !shared.rx.is_held() {
            let _ = self.poll();
        } else if watch {
            self.pass_on();
        }
    }

    /// Leaves the connection to a thread that leads already, to sleep until it leaves. False if there is none.
    fn delegate(&self, trailing: &Trailing) -> bool {
        if !self.shared.rx.is_held() {
            return false;
        }
        let delegated = trailing
            .state
            .compare_exchange(ASLEEP, DELEGATED, SeqCst, SeqCst)
            .is_ok();
        // SYNC: Dekker with `release_lead`: it drops the lead, then looks for DELEGATED.
        fence(SeqCst);
        // A kick meanwhile makes the wake descriptor readable: no sleep then either.
        delegated && self.shared.rx.is_held()
    }

    /// A wake-up that this thread took may have been meant for a leader that sleeps.
    fn pass_on(&self) {
        if self.shared.rx.is_held() {
            self.wake_leader();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_busy_program_is_left_alone_and_a_quiet_one_is_not() {
        const GATHER: Duration = Duration::from_micros(10);
        let trailing = Trailing::new().unwrap();
        let after = |bytes: u64, rounds: u32| {
            trailing.pace(bytes, GATHER * rounds, GATHER);
            trailing.gathers.load(Relaxed)
        };
        assert_eq!(after(BUSY_BYTES, 1), BUSY_GATHERS);
        assert_eq!(after(BUSY_BYTES * 5, 5), BUSY_GATHERS * 2);
        assert_eq!(after(BUSY_BYTES * 10, 10), BUSY_GATHERS_MAX);
        assert_eq!(after(BUSY_BYTES * 20, 20), BUSY_GATHERS_MAX);
        assert_eq!(after(BUSY_BYTES * 19, 20), 1);
        assert_eq!(after(0, 1), 1);
    }
}
