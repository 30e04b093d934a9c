//! Gives operations to the driver: at once where nothing is in their way, else when that has gone.
//!
//! Driver calls are made with the state locked: the order of the calls is the order of the operations. Nothing is said
//! to the client and nothing is received with it locked, since the transport may call back: what there is to say is
//! gathered in [`Later`].
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::HostFuncDue;
use parking_lot::{Mutex, MutexGuard};

use super::completion::Completion;
use super::copies::{Sender, Transfer, discard as discard_transfer};
use super::driver::{Event, Fence, Stream};
use super::memory::{BlockKind, Memory};
use super::op::{After, Fill, Launch, Op};
use super::state::{ContextKey, Detached, Hosted, LaneKey, Queued, State, Wait};
use crate::executor::outbox::{Failure, Outbox, Reply};

const STREAM_NON_BLOCKING: u32 = 1;
const EVENT_DISABLE_TIMING: u32 = 2;

/// A session's streams and who serves them.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) completion: Arc<Completion>,
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) sender: Sender,
    is_closed: AtomicBool,
    this: Weak<Self>,
}

/// What is said and done when the state is not locked any more.
#[derive(Debug, Default)]
pub(crate) struct Later {
    pub(crate) outcomes: Vec<(Reply, Result<(), Failure>)>,
    pub(crate) notices: Vec<(Reply, Failure)>,
    pub(crate) dues: Vec<(u32, HostFuncDue)>,
    pub(crate) arrivals: Vec<super::copies::Arrival>,
    pub(crate) discards: Vec<(u64, u64)>,
    pub(crate) drops: Vec<super::op::DropLater>,
}

/// How an operation went on.
pub(crate) enum Progress<'a> {
    /// The driver has it, or has refused it.
    Given(Result<(), Failure>),
    /// The driver has it; somebody else answers.
    Answering,
    /// It cannot go on yet.
    Blocked(Op<'a>),
    /// The stream waits for the client.
    Hosted,
}

impl Shared {
    /// No streams yet. Starts no thread.
    pub(crate) fn new(memory: Memory, outbox: Arc<dyn Outbox>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            state: Mutex::new(State::new(memory)),
            completion: Completion::new(outbox.clone()),
            sender: Sender::new(outbox.clone()),
            outbox,
            is_closed: AtomicBool::new(false),
            this: this.clone(),
        })
    }

    /// The bookkeeping.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// For tasks, which must not keep the session alive.
    pub(crate) fn weak(&self) -> Weak<Self> {
        self.this.clone()
    }

    /// Issues an operation to the stream that `handle` names. `extra`: what else it waits for.
    pub(crate) fn submit(&self, reply: Reply, key: ContextKey, handle: u64, op: Op<'_>) {
        let mut later = Later::default();
        let mut state = self.state.lock();
        match state.resolve(key, handle) {
            Ok(lane) => self.submit_to(&mut state, &mut later, reply, lane, Vec::new(), op),
            Err(status) => refuse(&mut later, reply, &op, status.into()),
        }
        drop(state);
        self.settle(later);
    }

    /// As [`Self::submit`], to a stream that is known, behind `waits` too.
    pub(crate) fn submit_to(
        &self,
        state: &mut State,
        later: &mut Later,
        reply: Reply,
        lane: LaneKey,
        mut waits: Vec<Wait>,
        op: Op<'_>,
    ) {
        let health = state.health_of(lane);
        if health != CuStatus::SUCCESS {
            return refuse_lost(later, reply, &op, health);
        }
        if state.is_behind() {
            state.implicit_waits(lane, &mut waits);
        }
        let position = state.issue(lane);
        if let Op::Record { handle, .. } = &op
            && let Ok(event) = state.events.get_mut(*handle)
        {
            event.recorded = Some(Wait { lane, position });
        }
        if !state.is_free(lane, &waits) {
            return state.enqueue(lane, op.into_owned(), reply, waits);
        }
        if let Some(op) = self.run(state, later, lane, reply, op) {
            state.enqueue_first(lane, op.into_owned(), reply);
        }
    }

    /// Does `after` when everything issued to the context so far is done.
    pub(crate) fn after_all(
        &self,
        state: &mut State,
        later: &mut Later,
        reply: Reply,
        key: ContextKey,
        after: After,
    ) {
        let waits = if state.is_behind() {
            state.unpassed_of(key)
        } else {
            Vec::new()
        };
        let detached = Detached {
            key,
            reply,
            after,
            waits,
        };
        if detached.waits.is_empty() {
            self.detach(state, later, detached)
        } else {
            state.detached.push(detached)
        }
    }

    /// Something that operations wait for has come.
    pub(crate) fn pump(&self) {
        let mut later = Later::default();
        let mut state = self.state.lock();
        if state.is_behind() {
            self.advance(&mut state, &mut later);
        }
        drop(state);
        self.settle(later);
        self.outbox.flush();
    }

    /// Gives the driver all that it can be given now.
    pub(crate) fn advance(&self, state: &mut State, later: &mut Later) {
        let mut blocked = Vec::new();
        loop {
            self.place_waiting(state, later);
            if let Some((lane, Queued { op, reply, .. })) = state.next(&blocked) {
                if let Some(op) = self.run(state, later, lane, reply, op) {
                    state.enqueue_first(lane, op, reply);
                    blocked.push(lane);
                }
            } else if let Some(detached) = state.next_detached() {
                self.detach(state, later, detached);
            } else {
                return;
            }
        }
    }

    /// Says and does what was put off. The state must not be locked.
    pub(crate) fn settle(&self, later: Later) {
        let Later {
            outcomes,
            notices,
            dues,
            arrivals,
            discards,
            drops,
        } = later;
        for (reply, failure) in notices {
            self.outbox.notice(reply, &failure);
        }
        for (reply, outcome) in outcomes {
            self.outbox.finish(reply, outcome);
        }
        for (context, due) in dues {
            self.outbox.host_func_due(context, due);
        }
        for (id, count) in discards {
            discard_transfer(&*self.outbox, id, count);
        }
        for arrival in arrivals {
            self.expect(arrival);
        }
        drop(drops);
    }

    /// The client's function has returned. False if none is due.
    pub(crate) fn host_func_done(&self, callback: u64) -> bool {
        let mut later = Later::default();
        let mut state = self.state.lock();
        let Some(lane) = state.hosted(callback) else {
            return false;
        };
        self.end_hosted(&mut state, &mut later, lane, CuStatus::SUCCESS);
        self.advance(&mut state, &mut later);
        drop(state);
        self.settle(later);
        true
    }

    /// Answers when the work in front of a fence is done.
    pub(crate) fn answer_at(&self, key: ContextKey, reply: Reply, fences: Vec<Arc<Fence>>) {
        let this = self.weak();
        self.completion.when(
            fences,
            Box::new(move |status| {
                if let Some(this) = this.upgrade() {
                    let status = this.judge(key, status);
                    this.outbox.status(reply, status);
                }
            }),
        );
    }

    /// What is to be said of work that ended with `status`: a context's own error comes first. Loses the context if need be.
    pub(crate) fn judge(&self, key: ContextKey, status: CuStatus) -> CuStatus {
        let mut later = Later::default();
        let mut state = self.state.lock();
        let health = state.health(key);
        if health == CuStatus::SUCCESS && status.is_sticky() {
            self.lose(&mut state, &mut later, key, Failure::from(status), 0);
        }
        drop(state);
        self.settle(later);
        if health == CuStatus::SUCCESS {
            status
        } else {
            health
        }
    }

    /// Makes a context unusable: says so once, and answers whoever waits in its queues.
    pub(crate) fn lose(
        &self,
        state: &mut State,
        later: &mut Later,
        key: ContextKey,
        failure: Failure,
        call: u16,
    ) {
        let Some(context) = state
            .contexts
            .get_mut(&key)
            .filter(|context| context.error.is_none())
        else {
            return;
        };
        context.error = Some(failure.status);
        let (number, status) = (context.number, failure.status);
        later.notices.push((
            Reply {
                call,
                context: number,
                ticket: 0,
            },
            failure,
        ));
        for Queued { op, reply, .. } in state.take_queued(key) {
            refuse_lost(later, reply, &op, status);
        }
        let hosted: Vec<LaneKey> = state
            .lanes
            .iter()
            .filter(|(_, lane)| lane.key == key && lane.hosted.is_some())
            .map(|(at, _)| *at)
            .collect();
        for lane in hosted {
            self.end_hosted(state, later, lane, status);
        }
    }

    /// The session is over.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.completion.stop();
        self.sender.stop();
    }

    /// Gives an issued operation to the driver; returned if it cannot go on yet.
    fn run<'a>(
        &self,
        state: &mut State,
        later: &mut Later,
        lane: LaneKey,
        reply: Reply,
        op: Op<'a>,
    ) -> Option<Op<'a>> {
        let progress = match prepare(state, lane) {
            Ok(()) => self.perform(state, later, lane, reply, op),
            Err(status) => Progress::Given(Err(status.into())),
        };
        match progress {
            Progress::Blocked(op) => return Some(op),
            Progress::Hosted => return None,
            Progress::Answering => {}
            Progress::Given(outcome) => self.given(state, later, lane, reply, outcome),
        }
        state.pass(lane);
        self.end_spent(state, later, lane);
        None
    }

    /// Ends a stream that the client has destroyed, if nothing is queued there.
    pub(crate) fn end_spent(&self, state: &mut State, later: &mut Later, lane: LaneKey) {
        if state.is_spent(lane) {
            // A failure belongs to the context, which will tell.
            let fence = self.fence(state, lane).ok().flatten();
            let lane = state.take_spent(lane, fence);
            later
                .drops
                .extend(lane.map(super::op::DropLater::new));
        }
    }

    /// Answers an operation that the driver has taken or refused.
    fn given(
        &self,
        state: &mut State,
        later: &mut Later,
        lane: LaneKey,
        reply: Reply,
        outcome: Result<(), Failure>,
    ) {
        let Some(key) = state.lanes.get(&lane).map(|lane| lane.key) else {
            return;
        };
        let outcome = match outcome {
            Ok(()) if reply.ticket == 0 => return,
            Ok(()) => self.fence(state, lane).map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(fence) => self.answer_at(key, reply, Vec::from_iter(fence)),
            Err(failure) => {
                if failure.status.is_sticky() {
                    self.lose(state, later, key, failure.clone(), reply.call);
                    later
                        .outcomes
                        .extend((reply.ticket != 0).then_some((reply, Err(failure))));
                } else {
                    later.outcomes.push((reply, Err(failure)));
                }
            }
        }
    }

    pub(crate) fn perform<'a>(
        &self,
        state: &mut State,
        later: &mut Later,
        lane: LaneKey,
        reply: Reply,
        op: Op<'a>,
    ) -> Progress<'a> {
        match op {
            Op::Nothing => Progress::Given(Ok(())),
            Op::Record { handle, event } => {
                Progress::Given(record(state, lane, handle, &event).map_err(Failure::from))
            }
            Op::Wait { event } => Progress::Given(
                on(state, lane, |stream| stream.wait(&event)).map_err(Failure::from),
            ),
            Op::Write { dst, data } => self.write(state, lane, dst, data),
            Op::Upload { dst, transfer, at } => self.upload(state, lane, dst, transfer, at),
            Op::Read {
                src,
                count,
                bulk,
                at,
                gathering,
            } => self.read(state, lane, reply, src, count, (bulk, at, gathering)),
            Op::Copy { dst, src, count } => Progress::Given(copy(state, lane, dst, src, count)),
            Op::Fill(request) => {
                Progress::Given(fill(state, lane, &request).map_err(Failure::from))
            }
            Op::Launch(launch) => self.launch(state, lane, launch),
            Op::Graph { exec, from } => self.run_graph(state, later, lane, reply, exec, from),
            Op::HostFunc { callback } => self.host(state, later, lane, reply, callback, None),
            Op::Alloc { addr, bytes, kind } => self.retry_alloc(state, lane, addr, bytes, kind),
            Op::Free { addr } => Progress::Given(self.free_in_order(state, lane, addr)),
        }
    }

    fn launch<'a>(&self, state: &mut State, lane: LaneKey, launch: Launch<'a>) -> Progress<'a> {
        match launch.function.resolved() {
            None => Progress::Blocked(Op::Launch(launch)),
            Some(Err(failure)) => Progress::Given(Err(failure.clone())),
            Some(Ok(function)) => {
                let outcome = on(state, lane, |stream| {
                    stream.launch(function, &launch.as_driver())
                });
                Progress::Given(outcome.map_err(|status| {
                    Failure::new(status, format!("launch of {}", launch.function.name()))
                }))
            }
        }
    }

    /// Lets a stream wait until the client has called its function.
    pub(crate) fn host<'a>(
        &self,
        state: &mut State,
        later: &mut Later,
        lane: LaneKey,
        reply: Reply,
        callback: u64,
        rest: Option<Op<'static>>,
    ) -> Progress<'a> {
        let fence = match self.fence(state, lane) {
            Ok(fence) => fence,
            Err(status) => return Progress::Given(Err(status.into())),
        };
        let is_due = fence.is_none();
        let Some(waiting) = state.lanes.get_mut(&lane) else {
            return Progress::Given(Err(CuStatus::INVALID_HANDLE.into()));
        };
        waiting.hosted = Some(Hosted {
            callback,
            reply,
            rest,
            is_due,
        });
        let handle = waiting.handle;
        let due = HostFuncDue {
            callback,
            stream: handle,
            status: 0,
        };
        let Some(fence) = fence else {
            later.dues.push((reply.context, due));
            return Progress::Hosted;
        };
        let this = self.weak();
        let reached = move |status: CuStatus| {
            let Some(this) = this.upgrade() else { return };
            let mut later = Later::default();
            let mut state = this.state.lock();
            if status == CuStatus::SUCCESS {
                let hosted = state
                    .lanes
                    .get_mut(&lane)
                    .and_then(|lane| lane.hosted.as_mut());
                if let Some(hosted) = hosted.filter(|hosted| hosted.callback == callback) {
                    hosted.is_due = true;
                    later.dues.push((reply.context, due));
                }
            } else if let Some(key) = state.lanes.get(&lane).map(|lane| lane.key) {
                this.end_hosted(&mut state, &mut later, lane, status);
                this.lose(
                    &mut state,
                    &mut later,
                    key,
                    Failure::from(status),
                    reply.call,
                );
            }
            drop(state);
            this.settle(later);
        };
        self.completion.when(vec![fence], Box::new(reached));
        Progress::Hosted
    }

    /// The stream goes on after the client's function, or ends with an error before it.
    fn end_hosted(&self, state: &mut State, later: &mut Later, lane: LaneKey, status: CuStatus) {
        let Some(Hosted { reply, rest, .. }) = state
            .lanes
            .get_mut(&lane)
            .and_then(|lane| lane.hosted.take())
        else {
            return;
        };
        match rest {
            Some(op) if status == CuStatus::SUCCESS => return state.enqueue_first(lane, op, reply),
            _ => {}
        }
        state.pass(lane);
        self.end_spent(state, later, lane);
        let outcome = if status == CuStatus::SUCCESS {
            Ok(())
        } else {
            Err(status.into())
        };
        if reply.ticket != 0 {
            later.outcomes.push((reply, outcome));
        }
    }

    /// The fence behind everything that the driver has of a stream; `None` if that is nothing.
    pub(crate) fn fence(&self, state: &mut State, lane: LaneKey) -> CuResult<Option<Arc<Fence>>> {
        let Some(lane) = state.lanes.get_mut(&lane).filter(|lane| lane.is_used) else {
            return Ok(None);
        };
        if lane.fence.is_none() {
            let fence = lane.stream.fence()?;
            self.attach(lane, &fence);
        }
        Ok(lane.fence.clone())
    }

    /// Fences behind everything that the driver has of a context.
    fn fences_of(&self, state: &mut State, key: ContextKey) -> CuResult<Vec<Arc<Fence>>> {
        let lanes = state
            .contexts
            .get(&key)
            .map(|context| context.lanes.clone())
            .unwrap_or_default();
        let mut fences = Vec::with_capacity(lanes.len() + 1);
        for lane in lanes {
            fences.extend(self.fence(state, lane)?);
        }
        if let Some(context) = state.contexts.get(&key) {
            fences.extend(context.zeroed.clone().map(Fence::of));
            fences.extend_from_slice(&context.orphans);
        }
        Ok(fences)
    }

    fn detach(&self, state: &mut State, later: &mut Later, detached: Detached) {
        let Detached {
            key, reply, after, ..
        } = detached;
        if let After::Event(event) = after {
            return self.answer_at(key, reply, vec![Fence::of(event)]);
        }
        let fences = if state.health(key) == CuStatus::SUCCESS {
            self.fences_of(state, key)
        } else {
            Ok(Vec::new())
        };
        let fences = fences.unwrap_or_else(|status| {
            self.lose(state, later, key, Failure::from(status), reply.call);
            Vec::new()
        });
        if let After::Free { addr, host } = after {
            if let Err(status) = state.memory.condemn(addr, host) {
                let failure = Failure::new(status, format!("nothing to free at {addr:#x}"));
                return later.outcomes.push((reply, Err(failure)));
            }
            state.frees += 1;
        }
        let this = self.weak();
        let done = move |status: CuStatus| {
            if let Some(this) = this.upgrade() {
                let status = this.judge(key, status);
                this.finish_after(key, after);
                this.outbox.status(reply, status);
                this.pump();
            }
        };
        self.completion.when(fences, Box::new(done));
    }

    fn finish_after(&self, key: ContextKey, after: After) {
        match after {
            After::Answer | After::Event(_) => {}
            After::Free { addr, .. } => {
                let mut state = self.state.lock();
                state.frees -= 1;
                let block = state.memory.take(addr);
                drop(state);
                drop(block);
            }
            After::Drop(value) => drop(value),
            After::EndContext => {
                let mut state = self.state.lock();
                let blocks = state.memory.take_all(key);
                let rest = state.remove_context(key);
                drop(state);
                drop(blocks);
                drop(rest);
            }
        }
    }

    /// `cuMemFreeAsync`: condemned now, gone when the stream gets there.
    fn free_in_order(&self, state: &mut State, lane: LaneKey, addr: u64) -> Result<(), Failure> {
        state
            .memory
            .condemn(addr, false)
            .map_err(|status| Failure::new(status, format!("nothing to free at {addr:#x}")))?;
        let Some(key) = state.lanes.get(&lane).map(|lane| lane.key) else {
            return Ok(());
        };
        let fence = self.fence(state, lane)?;
        state.frees += 1;
        let this = self.weak();
        let done = move |status: CuStatus| {
            if let Some(this) = this.upgrade() {
                this.judge(key, status);
                this.finish_after(key, After::Free { addr, host: false });
                this.pump();
            }
        };
        self.completion.when(Vec::from_iter(fence), Box::new(done));
        Ok(())
    }

    /// Makes fresh memory: now, or, if it does not fit beside memory that is about to be freed, after that. `stream`: in whose
    /// order the memory will be used; `None`: anybody's from now on. Returns the address, if it is there now.
    ///
    /// # Errors
    /// As [`Memory::insert`].
    pub(crate) fn allocate(
        &self,
        reply: Reply,
        key: ContextKey,
        stream: Option<u64>,
        addr: u64,
        bytes: u64,
        kind: BlockKind,
    ) -> Result<Option<u64>, Failure> {
        let mut state = self.state.lock();
        let outcome = match state.health(key) {
            CuStatus::SUCCESS => insert(&mut state, key, addr, bytes, kind),
            error => return Err(error.into()),
        };
        let may_come = outcome.is_err() && addr != 0 && state.may_free();
        if !may_come {
            return outcome
                .map(Some)
                .map_err(|status| refused_block(status, addr, bytes));
        }
        let lane = state.resolve(key, stream.unwrap_or(0))?;
        let mut waits = Vec::new();
        state.implicit_waits(lane, &mut waits);
        state.issue(lane);
        state.enqueue(lane, Op::Alloc { addr, bytes, kind }, reply, waits);
        if stream.is_none() {
            state.set_barrier(lane);
        }
        Ok(None)
    }

    fn retry_alloc<'a>(
        &self,
        state: &mut State,
        lane: LaneKey,
        addr: u64,
        bytes: u64,
        kind: BlockKind,
    ) -> Progress<'a> {
        let Some(key) = state.lanes.get(&lane).map(|lane| lane.key) else {
            return Progress::Given(Ok(()));
        };
        match insert(state, key, addr, bytes, kind) {
            Err(_) if state.may_free() => Progress::Blocked(Op::Alloc { addr, bytes, kind }),
            outcome => Progress::Given(
                outcome
                    .map(|_| ())
                    .map_err(|status| refused_block(status, addr, bytes)),
            ),
        }
    }
}

/// Gives something to the driver on a stream.
pub(crate) fn on(
    state: &mut State,
    lane: LaneKey,
    give: impl FnOnce(&Stream) -> CuResult,
) -> CuResult {
    state.use_lane(lane)?;
    let lane = state.lanes.get(&lane).ok_or(CuStatus::INVALID_HANDLE)?;
    give(&lane.stream)
}

/// Lets a stream wait for the zeroing of memory that it may be about to use.
fn prepare(state: &mut State, at: LaneKey) -> CuResult {
    let Some(lane) = state.lanes.get_mut(&at) else {
        return Ok(());
    };
    let Some(context) = state.contexts.get(&lane.key) else {
        return Ok(());
    };
    if lane.zeroed == context.zeroings {
        return Ok(());
    }
    lane.zeroed = context.zeroings;
    match context.zeroed.clone() {
        Some(event) => on(state, at, |stream| stream.wait(&event)),
        None => Ok(()),
    }
}

fn insert(
    state: &mut State,
    key: ContextKey,
    addr: u64,
    bytes: u64,
    kind: BlockKind,
) -> CuResult<u64> {
    let State {
        memory, contexts, ..
    } = state;
    let context = contexts.get_mut(&key).ok_or(CuStatus::INVALID_CONTEXT)?;
    let addr = memory.insert(&context.owner, addr, bytes, kind)?;
    if !Memory::needs_zeros(kind) {
        return Ok(addr);
    }
    let zeroed = memory.extent(addr, bytes).and_then(|extent| {
        let driver_context = &context.owner.context;
        let zeroer = match context.zeroer.take() {
            Some(stream) => stream,
            None => Stream::create(driver_context, STREAM_NON_BLOCKING, 0)?,
        };
        let zeroer = context.zeroer.insert(zeroer);
        zeroer.fill(extent, 0, 1)?;
        let event = match context.zeroed.take() {
            Some(event) => event,
            None => Arc::new(Event::create(driver_context, EVENT_DISABLE_TIMING)?),
        };
        context.zeroings += 1;
        zeroer.record(context.zeroed.insert(event))
    });
    if zeroed.is_err() {
        drop(memory.take(addr));
    }
    zeroed.map(|()| addr)
}

fn record(state: &mut State, lane: LaneKey, handle: u64, event: &Arc<Event>) -> CuResult {
    // Recorded again on another stream meanwhile, or destroyed: nobody asks for this record.
    let is_last = state
        .events
        .get(handle)
        .is_ok_and(|event| event.recorded.is_some_and(|wait| wait.lane == lane));
    if is_last {
        on(state, lane, |stream| stream.record(event))
    } else {
        Ok(())
    }
}

fn copy(state: &mut State, lane: LaneKey, dst: u64, src: u64, count: u64) -> Result<(), Failure> {
    let extents = state
        .memory
        .extent(dst, count)
        .and_then(|dst| Ok((dst, state.memory.extent(src, count)?)));
    let (to, from) = extents.map_err(|status| {
        Failure::new(status, format!("no {count} bytes at {dst:#x} or {src:#x}"))
    })?;
    Ok(on(state, lane, |stream| stream.copy(to, from))?)
}

fn fill(state: &mut State, lane: LaneKey, fill: &Fill) -> CuResult {
    let Some((extent, rows)) = fill.resolve(&state.memory)? else {
        return Ok(());
    };
    if rows.count == 1 {
        return on(state, lane, |stream| {
            stream.fill(extent, fill.value, fill.width)
        });
    }
    on(state, lane, |stream| {
        stream.fill_rows(
            extent,
            rows.pitch,
            rows.count,
            rows.elements,
            fill.value,
            fill.width,
        )
    })
}

/// Refuses an operation that was not issued.
fn refuse(later: &mut Later, reply: Reply, op: &Op<'_>, failure: Failure) {
    discard(later, op);
    later.outcomes.push((reply, Err(failure)));
}

/// Answers an operation of a lost context, which has told so once.
fn refuse_lost(later: &mut Later, reply: Reply, op: &Op<'_>, health: CuStatus) {
    discard(later, op);
    if reply.ticket != 0 {
        later.outcomes.push((reply, Err(health.into())));
    }
}

fn discard(later: &mut Later, op: &Op<'_>) {
    if let Op::Upload { transfer, .. } = op
        && Transfer::take_unposted(transfer)
    {
        later.discards.push((transfer.id(), transfer.count()));
    }
}

fn refused_block(status: CuStatus, addr: u64, bytes: u64) -> Failure {
    let why = match status {
        CuStatus::OUT_OF_MEMORY => "over the limit of the session or the device",
        CuStatus::NOT_SUPPORTED => "the device cannot use host memory at the program's address",
        _ => "not free or not in the range",
    };
    Failure::new(status, format!("{bytes} bytes at {addr:#x}: {why}"))
}
