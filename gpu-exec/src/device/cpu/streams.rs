//! Runs operations: at once on the calling thread where nothing is in their way and they are short, else
//! on the device thread, one at a time, oldest ready one first.
//!
//! Locks: the state is never held while an operation runs or a message is sent.

use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::Instant;

use farcall_marshal::status::CuStatus;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::kernels::Kernels;
use super::memory::{Memory, Turn};
use super::state::{ContextKey, InFlight, State, StreamKey, Wait};
use super::upload::{Upload, discard, receive_ahead};
use super::work::Work;
use crate::device::describe::LOST_ADVICE;
use crate::executor::outbox::{Failure, Outbox, Reply};
use crate::limits::STAGING_BYTES_MAX;
use crate::sys::staging::Staging;

use self::perform::refused_block;
use crate::share::gate::Gate;

mod perform;
mod thread;

/// All streams of a session and who runs them.
#[derive(Debug)]
pub(crate) struct Streams {
    state: Mutex<State>,
    /// The state has changed for the device thread, or for a loop that waits for room.
    changed: Condvar,
    pub(crate) memory: Arc<Memory>,
    pub(crate) outbox: Arc<dyn Outbox>,
    kernels: Kernels,
    gate: Arc<Gate>,
    epoch: Instant,
    thread: std::sync::Once,
    thread_id: std::sync::OnceLock<ThreadId>,
    this: Weak<Self>,
}

impl Streams {
    /// No streams yet. Starts no thread.
    pub(crate) fn new(
        memory: Arc<Memory>,
        turn: Turn,
        outbox: Arc<dyn Outbox>,
        kernels: Kernels,
        gate: Arc<Gate>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            state: Mutex::new(State::new(turn, gate.clone())),
            gate: told(gate, this.clone()),
            changed: Condvar::new(),
            memory,
            outbox,
            kernels,
            epoch: Instant::now(),
            thread: std::sync::Once::new(),
            thread_id: std::sync::OnceLock::new(),
            this: this.clone(),
        })
    }

    /// The bookkeeping.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Issues an operation to the stream that `handle` names.
    pub(crate) fn submit(&self, reply: Reply, context: ContextKey, handle: u64, work: Work<'_>) {
        let state = self.state.lock();
        match state.resolve(context, handle) {
            Ok(key) => self.issue(state, reply, key, Vec::new(), work),
            Err(status) => {
                drop(state);
                self.refuse(reply, &work, status.into());
            }
        }
    }

    /// Does an operation for which there is nothing to do, and for which nobody waits, at once, if nothing can be in its
    /// way. False: it has to be submitted.
    pub(crate) fn pass(&self, context: ContextKey, handle: u64) -> bool {
        self.gate.is_quiet() && self.state.lock().pass(context, handle)
    }

    /// Lets a stream wait for an event's record.
    pub(crate) fn submit_waiting(
        &self,
        reply: Reply,
        context: ContextKey,
        handle: u64,
        recorded: Option<Wait>,
    ) {
        let state = self.state.lock();
        match state.resolve(context, handle) {
            Ok(key) => {
                let waits = recorded
                    .into_iter()
                    .filter(|wait| wait.stream != key)
                    .collect();
                self.issue(state, reply, key, waits, Work::Nothing);
            }
            Err(status) => {
                drop(state);
                self.outbox.finish(reply, Err(status.into()));
            }
        }
    }

    /// Something that an operation waits for has come.
    pub(crate) fn look_again(&self) {
        self.wake(self.state.lock());
        self.outbox.flush();
    }

    /// Issues an operation that waits for all that was issued to its context, and nobody waits for it.
    pub(crate) fn submit_after_all(&self, reply: Reply, context: ContextKey, work: Work<'_>) {
        let state = self.state.lock();
        let waits = state.pending_of(context);
        match state.memory_stream(context) {
            Some(key) => self.issue_free(state, reply, key, waits, work),
            None => {
                drop(state);
                self.outbox
                    .finish(reply, Err(CuStatus::INVALID_CONTEXT.into()));
            }
        }
    }

    /// Issues a free in the order of a stream.
    pub(crate) fn submit_free(
        &self,
        reply: Reply,
        context: ContextKey,
        handle: u64,
        work: Work<'_>,
    ) {
        let state = self.state.lock();
        match state.resolve(context, handle) {
            Ok(key) => self.issue_free(state, reply, key, Vec::new(), work),
            Err(status) => {
                drop(state);
                self.outbox.finish(reply, Err(status.into()));
            }
        }
    }

    /// Makes fresh memory: now, or, if it does not fit beside memory that is about to be freed, after that. `stream`: in
    /// whose order the memory will be used; `None`: anybody's from now on.
    pub(crate) fn allocate(
        &self,
        reply: Reply,
        context: ContextKey,
        stream: Option<u64>,
        addr: u64,
        block: super::memory::Block,
    ) {
        let mut state = self.state.lock();
        let outcome = match state.health(context) {
            CuStatus::SUCCESS => self.memory.insert(addr, block),
            error => Err(error),
        };
        let frees = if outcome.is_err() {
            state.pending_frees()
        } else {
            Vec::new()
        };
        let sick = state.health(context) != CuStatus::SUCCESS;
        if outcome.is_ok() || frees.is_empty() || sick {
            drop(state);
            return self.finish_in(
                reply,
                sick,
                outcome.map_err(|status| refused_block(status, addr, block.bytes)),
            );
        }
        let key = match stream {
            Some(handle) => state.resolve(context, handle).ok(),
            None => state.memory_stream(context),
        };
        let Some(key) = key else {
            drop(state);
            return self
                .outbox
                .finish(reply, Err(CuStatus::INVALID_HANDLE.into()));
        };
        let position = state.issue(key);
        debug_assert!(position > 0, "the stream exists");
        let frees = frees
            .into_iter()
            .filter(|wait| wait.stream != key)
            .collect();
        state.enqueue(key, Work::Insert { addr, block }, reply, frees);
        if stream.is_none() {
            state.set_fence(key);
        }
        self.wake(state);
    }

    /// The client's function has returned. False if none is due.
    pub(crate) fn host_func_done(&self, handle: u64, callback: u64) -> bool {
        let mut state = self.state.lock();
        let Some((key, reply, rest)) = state.host_func(handle, callback) else {
            return false;
        };
        match rest {
            Some(work) => {
                state.resume(key, work, reply);
                self.wake(state);
            }
            None => {
                drop(state);
                self.complete(key, Some(reply), Ok(()), None);
            }
        }
        true
    }

    /// Ends the device thread and the kernel that it runs.
    pub(crate) fn stop(&self) {
        self.kernels.cancel();
        self.state.lock().stopping = true;
        self.changed.notify_all();
    }

    fn issue_free(
        &self,
        mut state: MutexGuard<'_, State>,
        reply: Reply,
        key: StreamKey,
        waits: Vec<Wait>,
        work: Work<'_>,
    ) {
        // Counted as pending before it can run: an allocation may have to wait for it.
        let work = work.into_owned();
        let mut waits = waits;
        waits.retain(|wait| wait.stream != key);
        state.implicit_waits(key, &mut waits);
        state.issue(key);
        state.note_free(key);
        if state.is_free(key, &waits) && !state.is_held(&work) && state.turn.is_some() {
            return self.run_here(state, reply, key, work);
        }
        state.enqueue(key, work, reply, waits);
        self.wake(state);
    }

    fn issue(
        &self,
        mut state: MutexGuard<'_, State>,
        reply: Reply,
        key: StreamKey,
        mut waits: Vec<Wait>,
        work: Work<'_>,
    ) {
        let health = state
            .context_of(key)
            .map_or(CuStatus::INVALID_CONTEXT, |context| state.health(context));
        if health != CuStatus::SUCCESS {
            drop(state);
            return self.refuse_lost(reply, &work, health);
        }
        if let Some(failure) = self.device_loss(&mut state, key) {
            drop(state);
            return self.refuse(reply, &work, failure);
        }
        state = self.make_room(state);
        state.implicit_waits(key, &mut waits);
        let position = state.issue(key);
        if let Work::Record { event } = &work {
            let context = state.context_of(key);
            if let Ok(event) = state.events.get_mut(*event)
                && context == Some(event.context)
            {
                event.recorded = Some(Wait {
                    stream: key,
                    position,
                });
                event.reached_ns = None;
            }
        }
        if let Work::Upload(upload) = &work {
            return self.issue_upload(state, reply, key, waits, upload);
        }
        if work.is_quick()
            && state.is_free(key, &waits)
            && !state.is_held(&work)
            && state.turn.is_some()
        {
            if work.is_nothing() {
                return self.pass_over(state, reply, key);
            }
            return self.run_here(state, reply, key, work);
        }
        state.enqueue(key, work.into_owned(), reply, waits);
        self.wake(state);
    }

    fn issue_upload(
        &self,
        mut state: MutexGuard<'_, State>,
        reply: Reply,
        key: StreamKey,
        waits: Vec<Wait>,
        upload: &Arc<Upload>,
    ) {
        let work = Work::Upload(upload.clone());
        if state.is_free(key, &waits) && !state.is_held(&work) {
            state.begin(key, InFlight::Upload);
            return self.receive_in_place(state, reply, key, upload);
        }
        let len = usize::try_from(upload.count).unwrap_or(usize::MAX);
        if state.staged_bytes.saturating_add(len) > STAGING_BYTES_MAX {
            state.enqueue(key, work, reply, waits);
            return self.wake(state);
        }
        state.staged_bytes += len;
        let staging = Arc::new(Staging::new(len));
        let staged = Upload {
            staging: Some(staging.clone()),
            ..Upload {
                staging: None,
                ..**upload
            }
        };
        state.enqueue(key, Work::Upload(Arc::new(staged)), reply, waits);
        drop(state);
        let this = self.this.clone();
        receive_ahead(&*self.outbox, upload.id, &staging, len, move || {
            if let Some(this) = this.upgrade() {
                this.look_again();
            }
        });
    }

    /// Why a stream's context is lost that was well, if its device is lost.
    fn device_loss(&self, state: &mut State, key: StreamKey) -> Option<Failure> {
        if self.gate.is_quiet() {
            return None;
        }
        let (context, device) = (state.context_of(key)?, state.device_of(key)?);
        if !self.gate.is_lost(device) || state.health(context) != CuStatus::SUCCESS {
            return None;
        }
        let status = CuStatus::DEVICE_UNAVAILABLE;
        state.lose_context(context, status);
        Some(Failure::new(
            status,
            format!("GPU {device} is lost: {LOST_ADVICE}"),
        ))
    }

    /// Receives an upload that its stream has begun.
    fn receive_in_place(
        &self,
        mut state: MutexGuard<'_, State>,
        reply: Reply,
        key: StreamKey,
        upload: &Arc<Upload>,
    ) {
        if let Err(status) = self.memory.check(upload.dst, upload.count) {
            drop(state);
            discard(&*self.outbox, upload.id, upload.count);
            let message = format!("no {} bytes at {:#x}", upload.count, upload.dst);
            return self.complete(key, Some(reply), Err(Failure::new(status, message)), None);
        }
        state
            .posted
            .push((key, upload.dst, upload.dst + upload.count));
        drop(state);
        let (this, held) = (self.this.clone(), upload.clone());
        let done = move |came: Option<usize>| {
            let Some(this) = this.upgrade() else { return };
            this.state
                .lock()
                .posted
                .retain(|(stream, ..)| *stream != key);
            this.complete(key, Some(reply), held.outcome(came), None);
        };
        // SAFETY: checked to be one block above, while the state was locked; since then it stands in `posted`, and
        // nothing that frees it begins before `done` takes it out (`State::is_held`).
        unsafe { upload.receive_in_place(&*self.outbox, done) };
    }
}

/// A gate that lets the streams look again when it opens.
fn told(gate: Arc<Gate>, streams: Weak<Streams>) -> Arc<Gate> {
    gate.on_open(move || {
        if let Some(streams) = streams.upgrade() {
            streams.look_again();
        }
    });
    gate
}
