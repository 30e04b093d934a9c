//! The device thread: runs what waits, oldest ready operation first.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use farcall_marshal::status::CuStatus;
use parking_lot::MutexGuard;

use super::Streams;
use crate::device::cpu::memory::Turn;
use crate::device::cpu::state::{Queued, State, StreamKey};
use crate::device::cpu::upload::discard;
use crate::device::cpu::work::Work;
use crate::limits::{QUEUED_BYTES_MAX, QUEUED_MAX};

/// Stack of the device thread, which also runs blocks of kernels.
const DEVICE_STACK_BYTES: usize = 2 << 20;
/// How long the device thread looks for more work before it sleeps.
const SPIN: Duration = Duration::from_micros(30);

impl Streams {
    /// A queue that is too long makes its client wait, unless what it waits for can only come from that client, or
    /// this is the device thread (which receives while it sends).
    pub(super) fn make_room<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let full = |state: &State| {
            state.queued_count >= QUEUED_MAX || state.queued_bytes >= QUEUED_BYTES_MAX
        };
        let is_device = self.thread_id.get() == Some(&std::thread::current().id());
        while !is_device && full(&state) && !state.waits_for_client() && !state.stopping {
            self.changed.wait(&mut state);
        }
        state
    }

    /// Lets the device thread look again; starts it with the first operation that it has to run.
    pub(super) fn wake(&self, state: MutexGuard<'_, State>) {
        let any = state.queued_count > 0;
        drop(state);
        if any {
            self.thread.call_once(|| self.start_thread());
        }
        self.changed.notify_all();
    }

    fn start_thread(&self) {
        let this = self.this.clone();
        let builder = std::thread::Builder::new()
            .name("device".to_owned())
            .stack_size(DEVICE_STACK_BYTES);
        let started = builder.spawn(move || {
            if let Some(this) = this.upgrade() {
                let _ = this.thread_id.set(std::thread::current().id());
            }
            while let Some(this) = this.upgrade() {
                if !this.run_next() {
                    return;
                }
            }
        });
        if let Err(error) = started {
            // Without it nothing of this session can go on.
            log::error!("the device thread cannot be started: {error}");
            std::process::abort();
        }
    }

    /// Runs the next operation. False when the session is over.
    fn run_next(&self) -> bool {
        let Some((turn, key, queued, lost)) = self.take_next() else {
            return false;
        };
        let Queued { work, reply, .. } = queued;
        // Frees go on in a lost context: the memory is given back.
        let frees = matches!(
            work,
            Work::Remove { .. } | Work::RemoveGlobals { .. } | Work::EndContext { .. }
        );
        if lost == CuStatus::SUCCESS || frees {
            self.run(turn, reply, key, work);
        } else {
            if let Work::Upload(upload) = &work {
                match &upload.staging {
                    Some(_) => {
                        self.state.lock().staged_bytes -= usize::try_from(upload.count).unwrap_or(0)
                    }
                    None => discard(&*self.outbox, upload.id, upload.count),
                }
            }
            self.complete(key, Some(reply), Err(lost.into()), Some(turn));
        }
        true
    }

    /// Waits for an operation that can begin, and for the turn.
    fn take_next(&self) -> Option<(Turn, StreamKey, Queued, CuStatus)> {
        let mut idle_since = None;
        let mut state = self.state.lock();
        loop {
            if state.stopping {
                return None;
            }
            if state.turn.is_some()
                && let Some((key, queued)) = state.next()
                && let Some(turn) = state.turn.take()
            {
                let health = state
                    .context_of(key)
                    .map_or(CuStatus::SUCCESS, |context| state.health(context));
                return Some((turn, key, queued, health));
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() < SPIN {
                MutexGuard::unlocked(&mut state, std::thread::yield_now);
            } else {
                match self.gate.rest_all() {
                    Some(time) => drop(self.changed.wait_for(&mut state, time)),
                    None => {
                        self.changed.wait(&mut state);
                        idle_since = None;
                    }
                }
            }
        }
    }
}
