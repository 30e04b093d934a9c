//! Runs operations: at once on the calling thread where nothing is in their way and they are short, else
//! on the device thread, one at a time, oldest ready one first.
//!
//! Locks: the state is never held while an operation runs or a message is sent.

use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use farcall_marshal::record::{Head, encode, record_bytes};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{CuMemcpyDtoHAsyncV2Reply, HostFuncDue};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::graph::GraphExec;
use super::kernels::Kernels;
use super::memory::{Memory, Turn};
use super::state::{ContextKey, InFlight, Queued, State, StreamKey, Wait};
use super::upload::{Upload, discard, receive_ahead};
use super::work::{Work, may_free};
use crate::executor::outbox::{Failure, Outbox, Reply};
use crate::limits::{QUEUED_BYTES_MAX, QUEUED_MAX, STAGING_BYTES_MAX};
use crate::sys::staging::Staging;

/// Stack of the device thread, which also runs blocks of kernels.
const DEVICE_STACK_BYTES: usize = 2 << 20;
/// How long the device thread looks for more work before it sleeps.
const SPIN: Duration = Duration::from_micros(30);

/// All streams of a session and who runs them.
#[derive(Debug)]
pub(crate) struct Streams {
    state: Mutex<State>,
    /// The state has changed for the device thread, or for a loop that waits for room.
    changed: Condvar,
    pub(crate) memory: Arc<Memory>,
    pub(crate) outbox: Arc<dyn Outbox>,
    kernels: Kernels,
    epoch: Instant,
    thread: std::sync::Once,
    thread_id: std::sync::OnceLock<ThreadId>,
    this: Weak<Self>,
}

/// How an operation went on.
enum Progress {
    Done(Result<(), Failure>),
    /// Answered, too.
    Answered,
    /// Somebody else completes it.
    Parked,
}

impl Streams {
    /// No streams yet. Starts no thread.
    pub(crate) fn new(
        memory: Arc<Memory>,
        turn: Turn,
        outbox: Arc<dyn Outbox>,
        kernels: Kernels,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            state: Mutex::new(State::new(turn)),
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

    /// Runs an issued operation on this thread.
    fn run_here(
        &self,
        mut state: MutexGuard<'_, State>,
        reply: Reply,
        key: StreamKey,
        work: Work<'_>,
    ) {
        let Some(turn) = state.turn.take() else {
            return;
        };
        state.begin(
            key,
            if matches!(work, Work::Read { .. }) {
                InFlight::Answering
            } else {
                InFlight::Running
            },
        );
        drop(state);
        self.run(turn, reply, key, work);
    }

    /// Runs an operation that has begun, completes it, gives the turn back.
    fn run(&self, mut turn: Turn, reply: Reply, key: StreamKey, work: Work<'_>) {
        match self.perform(&mut turn, reply, key, work) {
            Progress::Done(outcome) => self.complete(key, Some(reply), outcome, Some(turn)),
            Progress::Answered => self.complete(key, None, Ok(()), Some(turn)),
            Progress::Parked => {
                let mut state = self.state.lock();
                state.turn = Some(turn);
                self.wake(state);
            }
        }
    }

    fn perform(&self, turn: &mut Turn, reply: Reply, key: StreamKey, work: Work<'_>) -> Progress {
        let memory = &self.memory;
        let done = |outcome: Result<(), CuStatus>| Progress::Done(outcome.map_err(Failure::from));
        match work {
            Work::Nothing => Progress::Done(Ok(())),
            Work::Record { event } => {
                self.reach(key, event);
                Progress::Done(Ok(()))
            }
            Work::Write { dst, data } => done(memory.write(turn, dst, &data)),
            Work::Upload(upload) => self.perform_upload(turn, reply, key, &upload),
            Work::Read { src, count, bulk } => self.read(turn, reply, src, count, bulk),
            Work::Copy { dst, src, count } => done(memory.copy(turn, dst, src, count)),
            Work::Fill(fill) => done(fill.run(memory, turn)),
            Work::Launch(launch) => {
                let context = reply.context;
                Progress::Done(self.kernels.run(turn, memory, &launch, &|text| {
                    self.outbox.kernel_output(context, text)
                }))
            }
            Work::Graph { exec, stream, from } => {
                self.perform_graph(turn, reply, key, &exec, stream, from)
            }
            Work::HostFunc { callback, stream } => self.call_host(
                reply,
                key,
                HostFuncDue {
                    callback,
                    stream,
                    status: 0,
                },
                None,
            ),
            Work::Insert { addr, block } => Progress::Done(
                memory
                    .insert(addr, block)
                    .map_err(|status| refused_block(status, addr, block.bytes)),
            ),
            Work::Remove { addr, host } => {
                done(memory.remove(turn, addr, |block| may_free(block, host)))
            }
            Work::RemoveGlobals { addrs } => {
                for addr in addrs {
                    let _ = memory.remove(turn, addr, |block| {
                        block.kind == super::memory::BlockKind::Global
                    });
                }
                Progress::Done(Ok(()))
            }
            Work::EndContext { context } => {
                memory.remove_all(turn, |block| block.context == context);
                Progress::Done(Ok(()))
            }
        }
    }

    /// Runs nodes in order; a host function interrupts them.
    fn perform_graph(
        &self,
        turn: &mut Turn,
        reply: Reply,
        key: StreamKey,
        exec: &Arc<GraphExec>,
        stream: u64,
        from: usize,
    ) -> Progress {
        for (at, node) in exec.nodes().iter().enumerate().skip(from) {
            if let Work::HostFunc { callback, .. } = *node {
                let due = HostFuncDue {
                    callback,
                    stream,
                    status: 0,
                };
                return self.call_host(
                    reply,
                    key,
                    due,
                    Some(Work::Graph {
                        exec: exec.clone(),
                        stream,
                        from: at + 1,
                    }),
                );
            }
            if let Progress::Done(Err(failure)) = self.perform(turn, reply, key, node.borrowed()) {
                return Progress::Done(Err(failure));
            }
        }
        Progress::Done(exec.outcome())
    }

    fn call_host(
        &self,
        reply: Reply,
        key: StreamKey,
        due: HostFuncDue,
        rest: Option<Work<'static>>,
    ) -> Progress {
        self.state.lock().begin(
            key,
            InFlight::HostFunc {
                callback: due.callback,
                reply,
                rest,
            },
        );
        self.outbox.host_func_due(reply.context, due);
        Progress::Parked
    }

    fn perform_upload(
        &self,
        turn: &mut Turn,
        reply: Reply,
        key: StreamKey,
        upload: &Arc<Upload>,
    ) -> Progress {
        let Some(staging) = &upload.staging else {
            let mut state = self.state.lock();
            state.begin(key, InFlight::Upload);
            self.receive_in_place(state, reply, key, upload);
            return Progress::Parked;
        };
        self.state.lock().staged_bytes -= usize::try_from(upload.count).unwrap_or(0);
        let data = staging.contents().unwrap_or_default();
        let outcome = upload.outcome(Some(data.len()));
        Progress::Done(outcome.and_then(|()| Ok(self.memory.write(turn, upload.dst, data)?)))
    }

    /// Device to host: the answer is written straight from device memory.
    fn read(&self, turn: &mut Turn, reply: Reply, src: u64, count: u64, bulk: u64) -> Progress {
        let sent = self.memory.with_bytes(turn, src, count, |bytes| {
            let inline = if bulk == 0 { bytes } else { &[] };
            if bulk != 0 {
                self.outbox.bulk_send(bulk, bytes);
            }
            let record = CuMemcpyDtoHAsyncV2Reply { data: inline };
            let head = Head::reply(reply.call, 0, reply.ticket);
            self.outbox
                .append(record_bytes(&record), &mut |out| encode(head, &record, out));
        });
        match sent {
            Ok(()) => Progress::Answered,
            Err(status) => Progress::Done(Err(Failure::new(
                status,
                format!("no {count} bytes at {src:#x}"),
            ))),
        }
    }

    /// An event's record is reached.
    fn reach(&self, key: StreamKey, event: u64) {
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        let here = Wait {
            stream: key,
            position: state.running_position(key),
        };
        if let Ok(event) = state.events.get_mut(event)
            && event.recorded == Some(here)
        {
            event.reached_ns = Some(now);
        }
    }

    /// Completes the begun operation of a stream, then answers it and those who waited for it.
    fn complete(
        &self,
        key: StreamKey,
        reply: Option<Reply>,
        outcome: Result<(), Failure>,
        turn: Option<Turn>,
    ) {
        let mut state = self.state.lock();
        let context = state.context_of(key);
        let mut lost_before = false;
        if let (Some(context), Err(failure)) = (context, &outcome) {
            lost_before = state.health(context) != CuStatus::SUCCESS;
            if failure.status.is_sticky() {
                state.lose_context(context, failure.status);
            }
        }
        let released = state.complete(key);
        if turn.is_some() {
            state.turn = turn;
        }
        self.wake(state);
        if let Some(reply) = reply {
            self.finish_in(reply, lost_before, outcome);
        }
        for (reply, status) in released {
            self.outbox.status(reply, status);
        }
        self.outbox.flush();
    }

    /// Ends a record; a lost context has told so once, so it gives no more notices. A sticky failure is told even
    /// where a ticket is answered.
    fn finish_in(&self, reply: Reply, lost_before: bool, outcome: Result<(), Failure>) {
        match outcome {
            Err(failure) if lost_before => self.outbox.status(reply, failure.status),
            Err(failure) => {
                if failure.status.is_sticky() && reply.ticket != 0 {
                    self.outbox.notice(reply, &failure);
                }
                self.outbox.finish(reply, Err(failure));
            }
            Ok(()) => self.outbox.finish(reply, Ok(())),
        }
    }

    fn refuse(&self, reply: Reply, work: &Work<'_>, failure: Failure) {
        if let Work::Upload(upload) = work {
            discard(&*self.outbox, upload.id, upload.count);
        }
        self.outbox.finish(reply, Err(failure));
    }

    fn refuse_lost(&self, reply: Reply, work: &Work<'_>, health: CuStatus) {
        if let Work::Upload(upload) = work {
            discard(&*self.outbox, upload.id, upload.count);
        }
        self.outbox.status(reply, health);
    }

    /// A queue that is too long makes its client wait, unless what it waits for can only come from that client, or
    /// this is the device thread (which receives while it sends).
    fn make_room<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
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
    fn wake(&self, state: MutexGuard<'_, State>) {
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
                self.changed.wait(&mut state);
                idle_since = None;
            }
        }
    }
}

fn refused_block(status: CuStatus, addr: u64, bytes: u64) -> Failure {
    let why = if status == CuStatus::OUT_OF_MEMORY {
        "over the limit of the session or the device"
    } else {
        "not free or not in the range"
    };
    Failure::new(status, format!("{bytes} bytes at {addr:#x}: {why}"))
}
