//! The completion thread: asks the driver which fences have passed, and does what waited for them.
//!
//! It polls (`cuEventQuery`, about a microsecond each) instead of being called by the driver: a host function in a
//! stream costs that stream tens of microseconds and all host functions of a process share one thread. It looks
//! again at once for a while after the last fence that passed, then after 1/32 of the time waited so far, at most 250 us: so
//! a wait is at most about 3 % longer than it must be, and a long one costs next to no CPU.
#![forbid(unsafe_code)]

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use farcall_marshal::status::CuStatus;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::driver::Fence;
use crate::executor::outbox::Outbox;
use crate::limits::STACK_BYTES;

/// How long it asks without a pause.
const SPIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_micros(250);

/// What is to be done when fences have passed, with the first error among them.
pub(crate) type Done = Box<dyn FnOnce(CuStatus) + Send>;

struct Task {
    fences: Vec<Arc<Fence>>,
    outcome: CuStatus,
    done: Done,
}

#[derive(Default)]
struct Inbox {
    tasks: Vec<Task>,
    is_stopping: bool,
}

/// Everything that waits for the device.
pub(crate) struct Completion {
    inbox: Mutex<Inbox>,
    changed: Condvar,
    outbox: Arc<dyn Outbox>,
    thread: std::sync::Once,
    this: Weak<Self>,
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

impl Completion {
    /// Nothing waits. Starts no thread. What tasks say is flushed to `outbox`.
    pub(crate) fn new(outbox: Arc<dyn Outbox>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            inbox: Mutex::default(),
            changed: Condvar::new(),
            outbox,
            thread: std::sync::Once::new(),
            this: this.clone(),
        })
    }

    /// Does `done` on the completion thread when all fences have passed. Does not block. Tasks whose fences pass at the
    /// same time are done in the order in which they came.
    pub(crate) fn when(&self, fences: Vec<Arc<Fence>>, done: Done) {
        self.inbox.lock().tasks.push(Task {
            fences,
            outcome: CuStatus::SUCCESS,
            done,
        });
        self.thread.call_once(|| self.start());
        self.changed.notify_one();
    }

    /// Ends the thread; what still waits is dropped.
    pub(crate) fn stop(&self) {
        self.inbox.lock().is_stopping = true;
        self.changed.notify_one();
    }

    fn start(&self) {
        let this = self.this.clone();
        let builder = std::thread::Builder::new()
            .name("completion".to_owned())
            .stack_size(2 * STACK_BYTES);
        let started = builder.spawn(move || {
            if let Some(this) = this.upgrade() {
                this.run();
            }
        });
        if let Err(error) = started {
            // Without it nothing of this session is ever answered.
            log::error!("the completion thread cannot be started: {error}");
            std::process::abort();
        }
    }

    fn run(&self) {
        let mut waiting: Vec<Task> = Vec::new();
        let mut since = Instant::now();
        loop {
            let mut inbox = self.inbox.lock();
            while waiting.is_empty() && inbox.tasks.is_empty() && !inbox.is_stopping {
                // Who waited once mostly waits again soon: waking up takes longer than a short wait.
                if since.elapsed() < SPIN {
                    MutexGuard::unlocked(&mut inbox, std::thread::yield_now);
                    continue;
                }
                self.changed.wait(&mut inbox);
                since = Instant::now();
            }
            if inbox.is_stopping {
                return;
            }
            waiting.append(&mut inbox.tasks);
            drop(inbox);
            if self.pass(&mut waiting) {
                since = Instant::now();
            } else {
                self.pause(since.elapsed());
            }
        }
    }

    /// Does what can be done; whether anything could.
    fn pass(&self, waiting: &mut Vec<Task>) -> bool {
        let passed: Vec<Task> = waiting.extract_if(.., Task::has_passed).collect();
        let any = !passed.is_empty();
        for task in passed {
            (task.done)(task.outcome);
        }
        if any {
            self.outbox.flush();
        }
        any
    }

    fn pause(&self, waited: Duration) {
        if waited < SPIN {
            return std::thread::yield_now();
        }
        let mut inbox = self.inbox.lock();
        if inbox.tasks.is_empty() && !inbox.is_stopping {
            self.changed
                .wait_for(&mut inbox, (waited / 32).min(PAUSE_MAX));
        }
    }
}

impl Task {
    fn has_passed(&mut self) -> bool {
        while let Some(fence) = self.fences.last() {
            match fence.poll() {
                None => return false,
                Some(CuStatus::SUCCESS) => {}
                Some(error) => self.outcome = error,
            }
            self.fences.pop();
        }
        true
    }
}
