//! Keepalive: who has said nothing for a while says something, who hears nothing for longer takes the
//! peer for lost. And the server's clock for sessions that wait to be resumed.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::Endpoint;
use super::send::CTL_PING;
use crate::error::CloseReason;
use crate::options::SILENCE_KEEPALIVES;
use crate::sys::event::EventFd;
use crate::sys::poll::{IN, PollSet};

/// Stack of the server's thread, which calls nothing deep.
const STACK_BYTES: usize = 128 << 10;

/// What the thread that keeps time remembers. Counts tell it what the others did, so that they need not
/// look at the clock.
#[derive(Debug)]
pub(super) struct Pulse {
    keepalive: Duration,
    last: Instant,
    said: u64,
    heard: u64,
    heard_at: Instant,
    /// Nothing was heard at the last look: look more often.
    doubts: bool,
}

/// In how many parts a keepalive is divided while the peer is silent.
const DOUBTS: u32 = 4;

impl Pulse {
    pub(super) fn new(keepalive: Duration) -> Self {
        let now = Instant::now();
        Self {
            keepalive,
            last: now,
            said: 0,
            heard: 0,
            heard_at: now,
            doubts: false,
        }
    }

    /// How long to wait between two looks.
    fn step(&self) -> Duration {
        self.keepalive / if self.doubts { DOUBTS } else { 1 }
    }

    /// When to look again; None: never.
    pub(super) fn left(&self) -> Option<Duration> {
        (!self.keepalive.is_zero()).then(|| self.step().saturating_sub(self.last.elapsed()))
    }
}

impl Endpoint {
    /// Looks whether it is time to say something, or to give the peer up. Costs a look at the clock.
    pub(super) fn beat(&self, pulse: &mut Pulse) {
        let shared = &*self.shared;
        let now = Instant::now();
        let since = now - pulse.last;
        if pulse.keepalive.is_zero() || since < pulse.step() || shared.closed.load(Acquire) {
            return;
        }
        pulse.last = now;
        self.prod_bulk();
        let counters = &shared.counters;
        let heard = counters.heard();
        // After a pause of this process the peer's words may still lie unread.
        let slept = since > 2 * pulse.keepalive;
        pulse.doubts = heard == pulse.heard && !slept && !shared.link.is_down();
        if !pulse.doubts {
            pulse.heard_at = now;
        }
        pulse.heard = heard;
        let said = shared.sent.load(Relaxed) + counters.controls_out.load(Relaxed);
        let quiet = said == pulse.said;
        pulse.said = said;
        let silence = now - pulse.heard_at;
        if silence >= pulse.keepalive * SILENCE_KEEPALIVES && !self.is_readable() {
            let text = format!("nothing heard for {:.1} s", silence.as_secs_f64());
            let why = io::Error::new(io::ErrorKind::TimedOut, text);
            self.report_loss(shared.link.epoch(), CloseReason::lost(why), Duration::ZERO);
            pulse.heard_at = now;
        } else if quiet && !shared.link.is_down() {
            self.send_control(CTL_PING);
            // What this sent is no reason to be quiet the next time.
            pulse.said = shared.sent.load(Relaxed) + counters.controls_out.load(Relaxed);
        }
    }

    /// Nothing is said on the bulk plane to keep it alive, so what a device may have missed there is brought to its mind.
    fn prod_bulk(&self) {
        let Some(bulk) = self.shared.bulk_in.try_lock() else {
            return;
        };
        let stream = bulk.stream.clone();
        drop(bulk);
        if let Some(stream) = stream {
            stream.prod();
        }
    }

    /// Whether something lies unread, because whoever receives is busy.
    fn is_readable(&self) -> bool {
        let stream = self.shared.link.stream();
        let mut set = PollSet::new();
        let idle = stream.arm(&mut set, true, false);
        let readable = !idle || matches!(set.wait(Some(Duration::ZERO)), Ok(true));
        stream.disarm();
        readable
    }

    /// Server: starts the thread that keeps time.
    pub(super) fn start_pulse(&self) -> io::Result<()> {
        let own = Self {
            shared: Arc::clone(&self.shared),
            counted: false,
        };
        std::thread::Builder::new()
            .name("farcall-pulse".into())
            .stack_size(STACK_BYTES)
            .spawn(move || own.pulse_loop())?;
        Ok(())
    }

    fn pulse_loop(&self) {
        let shared = &*self.shared;
        let Some(wake) = &shared.pulse else {
            return;
        };
        let stream = shared.link.stream();
        let process = stream.peer_process().and_then(|fd| fd.try_clone().ok());
        drop(stream);
        let mut pulse = Pulse::new(shared.tuning.keepalive);
        while !shared.closed.load(SeqCst) {
            self.beat(&mut pulse);
            let left = match self.expire() {
                Some(left) => Some(pulse.left().map_or(left, |beat| beat.min(left))),
                None => pulse.left(),
            };
            let ended = self.pulse_sleep(wake, left, process.as_ref().map(AsRawFd::as_raw_fd));
            if ended && let Some((why, _)) = shared.link.lost() {
                self.fail(why);
            }
        }
    }

    /// Sleeps; true when the peer's process, if it is known, turned out to have ended while there is no
    /// connection to it.
    fn pulse_sleep(&self, wake: &EventFd, time: Option<Duration>, process: Option<i32>) -> bool {
        let mut set = PollSet::new();
        set.add(wake.raw(), IN);
        let watched = process.filter(|_| self.shared.link.is_down());
        if let Some(process) = watched {
            set.add(process, IN);
        }
        if self.shared.closed.load(SeqCst) {
            return false;
        }
        let _ = set.wait(time);
        if set.ready(0) {
            wake.clear();
        }
        watched.is_some() && set.ready(1)
    }

    /// Makes the helper thread look: the client's flusher, the server's pulse.
    pub(super) fn wake_helper(&self) {
        if let Some(trailing) = &self.shared.trailing {
            trailing.wake();
        }
        if let Some(wake) = &self.shared.pulse {
            wake.set();
        }
    }
}
