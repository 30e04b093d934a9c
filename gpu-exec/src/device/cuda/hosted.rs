//! Host functions of the client: their stream stands still, nothing else does.
//!
//! The driver's own host functions are not used: all of a process share one thread, which would have to wait for the client.
//! Instead nothing behind the function is given to the driver before the client has called it.
#![forbid(unsafe_code)]

use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::HostFuncDue;

use super::issue::{Later, Progress, Shared};
use super::op::Op;
use super::state::{Hosted, LaneKey, State};
use crate::executor::outbox::{Failure, Reply};

impl Shared {
    /// The client's function has returned. False if none is due.
    pub(crate) fn host_func_done(&self, callback: u64) -> bool {
        let mut later = Later::default();
        let mut state = self.state();
        let Some(lane) = state.hosted(callback) else {
            return false;
        };
        self.end_hosted(&mut state, &mut later, lane, CuStatus::SUCCESS);
        self.advance(&mut state, &mut later);
        drop(state);
        self.settle(later);
        true
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
            let mut state = this.state();
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
    pub(crate) fn end_hosted(
        &self,
        state: &mut State,
        later: &mut Later,
        lane: LaneKey,
        status: CuStatus,
    ) {
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
}
