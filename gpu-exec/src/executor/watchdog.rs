//! Looks whether driver calls come back, and tells the supervisor of those that do not, and of errors that may mean that a GPU is lost.
//!
//! A long call is no broken driver: compiling takes minutes, and a launch may wait for room behind kernels that run for
//! hours. So what counts is what a call does (`driver/watch.rs`): one that has nothing to wait for is given the patience
//! of the server, one that compiles twenty times as much, and one that may wait for the device any time, while a fresh process
//! finds the GPU in order.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use farcall_transport::Endpoint;

use crate::control::{self, Report, Stuck, Verdict};
use crate::device::cuda::driver::{Blocked, Kind, Watch, take_suspicion};
use crate::limits::STACK_BYTES;

/// Looks within the patience.
const LOOKS: u32 = 8;
/// A session's GPUs are not suspected again for so long: a program may fail all the time.
const SUSPECT_AGAIN: Duration = Duration::from_secs(10);
/// How many times the patience compilers get.
const SLOW_FACTOR: u32 = 20;

/// What the thread that looks needs.
pub(super) struct Watchdog {
    /// To the supervisor.
    pub(super) control: OwnedFd,
    /// For how long a call that waits for nothing may block.
    pub(super) patience: Duration,
    /// For how long a session outlives its connection.
    pub(super) grace: Duration,
    /// The session, once it is open.
    pub(super) endpoint: Arc<OnceLock<Endpoint>>,
}

impl Watchdog {
    /// Starts the thread, which ends with the process.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn start(self) -> io::Result<()> {
        let builder = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .stack_size(STACK_BYTES);
        builder.spawn(move || self.run()).map(drop)
    }

    fn run(self) {
        let period = self.patience / LOOKS;
        let (mut watch, mut judge) = (Watch::default(), Judge::new(self.patience, self.grace));
        let mut suspect = Duration::ZERO;
        loop {
            std::thread::park_timeout(period);
            suspect = suspect.saturating_sub(period);
            if suspect.is_zero()
                && let Some(status) = take_suspicion()
            {
                suspect = SUSPECT_AGAIN;
                let report = Report::Suspect { status: status.0 };
                let _ = control::send(self.control.as_fd(), &report, &[], &[], &[]);
            }
            let blocked = watch.look(period);
            let is_alone = || self.endpoint.get().is_some_and(Endpoint::has_hung_up);
            let Some(stuck) = judge.look(&blocked, period, is_alone) else {
                continue;
            };
            let report = Report::Stuck(stuck);
            // A supervisor that is gone ends this process by other means.
            let _ = control::send(self.control.as_fd(), &report, &[], &[], &[]);
        }
    }
}

/// Decides what is worth telling.
struct Judge {
    patience: Duration,
    grace: Duration,
    /// When to tell of a call that may wait for the device: it is asked after at growing intervals.
    device_due: Duration,
    /// For how long a call has blocked and nobody been there to wait for it.
    alone: Duration,
    is_told: bool,
}

impl Judge {
    fn new(patience: Duration, grace: Duration) -> Self {
        Self {
            patience,
            grace,
            device_due: patience,
            alone: Duration::ZERO,
            is_told: false,
        }
    }

    fn look(
        &mut self,
        blocked: &[Blocked],
        passed: Duration,
        is_alone: impl Fn() -> bool,
    ) -> Option<Stuck> {
        let of_kind = |kind: Kind, least: Duration| {
            let long = |it: &&Blocked| it.kind == kind && it.waited >= least;
            blocked.iter().find(long)
        };
        if self.is_told {
            return None;
        }
        let tell = |verdict, blocked: &Blocked| {
            Some(Stuck {
                verdict,
                call: blocked.call.to_owned(),
                thread: blocked.thread.clone(),
                waited_ms: u64::try_from(blocked.waited.as_millis()).unwrap_or(u64::MAX),
            })
        };
        let wedged = of_kind(Kind::Prompt, self.patience);
        let wedged = wedged.or_else(|| of_kind(Kind::Slow, self.patience * SLOW_FACTOR));
        if let Some(wedged) = wedged {
            self.is_told = true;
            return tell(Verdict::Wedged, wedged);
        }
        let long = blocked.iter().find(|it| it.waited >= self.patience);
        self.alone = match long {
            Some(_) if is_alone() => self.alone + passed,
            _ => Duration::ZERO,
        };
        if let Some(long) = long.filter(|_| self.alone > self.grace) {
            self.is_told = true;
            return tell(Verdict::Abandoned, long);
        }
        let Some(waits) = of_kind(Kind::Device, self.device_due) else {
            if of_kind(Kind::Device, self.patience).is_none() {
                self.device_due = self.patience;
            }
            return None;
        };
        self.device_due = waits.waited * 2;
        tell(Verdict::Waits, waits)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::{Blocked, Judge, Kind, Verdict};

    const STEP: Duration = Duration::from_secs(5);

    /// What is told, and when, of a call that never comes back; the connection is lost from `alone_from` on.
    fn told(kind: Kind, seconds: u64, alone_from: u64) -> Vec<(u64, Verdict)> {
        let mut judge = Judge::new(Duration::from_secs(30), Duration::from_secs(60));
        let mut told = Vec::new();
        for at in (5..=seconds).step_by(5) {
            let blocked = Blocked {
                call: "cuSomething",
                kind,
                thread: "main".to_owned(),
                waited: Duration::from_secs(at),
            };
            let stuck = judge.look(&[blocked], STEP, || at >= alone_from);
            told.extend(stuck.map(|stuck| (at, stuck.verdict)));
        }
        told
    }

    #[test]
    fn what_a_call_does_decides_how_long_it_may_take() {
        let never = u64::MAX;
        assert_eq!(told(Kind::Prompt, 100, never), [(30, Verdict::Wedged)]);
        assert_eq!(told(Kind::Slow, 1000, never), [(600, Verdict::Wedged)]);
        let asked = [30, 60, 120, 240, 480, 960].map(|at| (at, Verdict::Waits));
        assert_eq!(told(Kind::Device, 1000, never), asked);
    }

    #[test]
    fn a_long_call_of_a_client_that_is_gone_ends_with_the_grace() {
        assert_eq!(
            told(Kind::Device, 200, 100),
            [
                (30, Verdict::Waits),
                (60, Verdict::Waits),
                (120, Verdict::Waits),
                (160, Verdict::Abandoned)
            ]
        );
        assert_eq!(told(Kind::Slow, 100, 0), [(90, Verdict::Abandoned)]);
    }
}
