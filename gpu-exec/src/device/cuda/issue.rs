//! Gives operations to the driver: at once where nothing is in their way, else when that has gone.
//!
//! Driver calls are made with the state locked: the order of the calls is the order of the operations. Nothing is said
//! to the client and nothing is received with it locked, since the transport may call back: what there is to say is
//! gathered in [`Later`].
#![forbid(unsafe_code)]

use std::sync::{Arc, Weak};

use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::HostFuncDue;
use parking_lot::{Mutex, MutexGuard};

use super::completion::Completion;
use super::copies::{Transfer, discard as discard_transfer};
use super::driver::Fence;
use super::memory::Memory;
use super::op::Op;
use super::perform::prepare;
use super::sender::Sender;
use super::state::{ContextKey, LaneKey, Queued, State, Wait};
use crate::executor::outbox::{Failure, Outbox, Reply};
use crate::share::gate::Gate;

/// A session's streams and who serves them.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) completion: Arc<Completion>,
    pub(crate) outbox: Arc<dyn Outbox>,
    pub(crate) sender: Sender,
    pub(crate) gate: Arc<Gate>,
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
    pub(crate) fn new(memory: Memory, outbox: Arc<dyn Outbox>, gate: Arc<Gate>) -> Arc<Self> {
        let shared = Arc::new_cyclic(|this: &Weak<Self>| Self {
            gate,
            state: Mutex::new(State::new(memory)),
            completion: Completion::new(outbox.clone()),
            sender: Sender::new(outbox.clone()),
            outbox,
            this: this.clone(),
        });
        let told = shared.weak();
        shared.gate.on_open(move || {
            if let Some(shared) = told.upgrade() {
                shared.turn_has_come();
            }
        });
        shared
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
            later.drops.extend(lane.map(super::op::DropLater::new));
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
