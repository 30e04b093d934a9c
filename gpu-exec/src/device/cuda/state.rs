//! Order of what is handed to the driver: streams, contexts, events. Pure bookkeeping.
//!
//! The driver orders what it has been given. Some operations cannot be given to it yet: an upload whose bytes are on
//! their way, a launch whose module is being loaded, whatever stands behind a host function of the client. They wait
//! in the queue of their stream, and with them everything that must come after them. A stream hands its operations
//! on in order, so "everything issued to stream S so far" is one number, its position, and all dependencies are
//! positions: an event is the position of its record, the legacy stream waits for the blocking streams and they for it.
//! While nothing waits anywhere, which is nearly always, none of this is looked at.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::copies::Transfer;
use super::driver::{Context, Fence, Slab, Stream};
pub(crate) use super::lane::{
    ContextKey, ContextState, Detached, EventState, Hosted, Lane, LaneKey, LaneKind, Queued, Wait,
};
use super::memory::{Memory, Owner};
use super::op::{After, Op};
use super::turns::Meter;
use crate::device::handles::HandleTable;
use crate::executor::outbox::Reply;
use crate::limits::{CONTEXTS_MAX, EVENTS_MAX, STREAMS_MAX};

/// Everything of a session that the loop and the completion thread share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) memory: Memory,
    pub(crate) events: HandleTable<EventState>,
    pub(crate) contexts: HashMap<ContextKey, ContextState>,
    pub(crate) lanes: HashMap<LaneKey, Lane>,
    pub(crate) detached: Vec<Detached>,
    /// Uploads received into memory that is not pinned.
    pub(crate) staged_bytes: usize,
    /// Reads being put together in such memory.
    pub(crate) gathered_bytes: usize,
    /// Bytes that queued operations hold.
    pub(crate) queued_bytes: usize,
    pub(crate) queued_count: usize,
    /// Transfers that wait for room, in the order in which they come.
    pub(crate) arriving: VecDeque<(ContextKey, Arc<Transfer>)>,
    /// Frees that the device has not reached.
    pub(crate) frees: usize,
    /// How often fresh memory was zeroed, in all contexts.
    pub(crate) zeroings: u64,
    /// Pinned memory for copies, by the session's ordinals of the devices: all contexts of one share it.
    pub(crate) slabs: HashMap<usize, Arc<Slab>>,
    /// Kernels that are measured, by the session's ordinals.
    pub(crate) meters: HashMap<usize, Meter>,
    names: HashMap<u32, ContextKey>,
    handles: HandleTable<LaneKey>,
    /// Operations issued and not given to the driver, of all streams.
    behind: usize,
    /// An allocation that waits for a free: what is issued later may need it.
    barrier: Option<Wait>,
    keys: u64,
    order: u64,
}

impl State {
    pub(crate) fn new(memory: Memory) -> Self {
        Self {
            memory,
            events: HandleTable::new(EVENTS_MAX),
            contexts: HashMap::new(),
            lanes: HashMap::new(),
            detached: Vec::new(),
            staged_bytes: 0,
            gathered_bytes: 0,
            queued_bytes: 0,
            queued_count: 0,
            arriving: VecDeque::new(),
            frees: 0,
            zeroings: 0,
            slabs: HashMap::new(),
            meters: HashMap::new(),
            names: HashMap::new(),
            handles: HandleTable::new(STREAMS_MAX),
            behind: 0,
            barrier: None,
            keys: 0,
            order: 0,
        }
    }

    /// Makes a context of the client's name `number`, in place of one that had it.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`: too many.
    pub(crate) fn add_context(
        &mut self,
        number: u32,
        device: usize,
        ordinal: u32,
        context: Arc<Context>,
        is_primary: bool,
    ) -> CuResult {
        if self.contexts.len() >= CONTEXTS_MAX {
            return Err(CuStatus::OUT_OF_MEMORY);
        }
        let key = ContextKey(self.next_key());
        let legacy = self.add_lane(key, Stream::legacy(&context), 0, LaneKind::Legacy);
        let owner = Owner {
            key,
            device,
            ordinal,
            context,
        };
        let state = ContextState {
            number,
            owner,
            is_primary,
            error: None,
            legacy,
            lanes: vec![legacy],
            zeroer: None,
            zeroing: 0,
            zeroed: None,
            orphans: Vec::new(),
            textures: HashMap::new(),
        };
        self.contexts.insert(key, state);
        self.names.insert(number, key);
        Ok(())
    }

    /// The context of this name.
    ///
    /// # Errors
    /// `INVALID_CONTEXT`.
    pub(crate) fn named(&self, number: u32) -> CuResult<ContextKey> {
        self.names
            .get(&number)
            .copied()
            .ok_or(CuStatus::INVALID_CONTEXT)
    }

    /// The primary context of the client's device.
    pub(crate) fn primary_of(&self, device: usize) -> Option<ContextKey> {
        let mut living = self.names.values().filter_map(|key| self.contexts.get(key));
        living
            .find(|context| context.is_primary && context.owner.device == device)
            .map(|context| context.owner.key)
    }

    /// Forgets the name and the handles of a context. The rest goes with [`Self::remove_context`].
    pub(crate) fn retire_context(&mut self, key: ContextKey) {
        self.names.retain(|_, named| *named != key);
        let lanes = &self.lanes;
        self.handles
            .retain(|lane| lanes.get(lane).is_some_and(|lane| lane.key != key));
    }

    /// Takes out what is left of a context: its events and streams, then itself, and the device's pinned memory with the last.
    pub(crate) fn remove_context(
        &mut self,
        key: ContextKey,
    ) -> (Vec<Lane>, Option<ContextState>, Option<Arc<Slab>>) {
        self.events.retain(|event| event.key != key);
        let gone: Vec<LaneKey> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.key == key)
            .map(|(at, _)| *at)
            .collect();
        let lanes: Vec<Lane> = gone
            .into_iter()
            .filter_map(|at| self.lanes.remove(&at))
            .collect();
        for lane in &lanes {
            self.behind -= usize::try_from(lane.issued - lane.passed)
                .unwrap_or(0)
                .min(self.behind);
            self.queued_count -= lane.queue.len();
            self.queued_bytes -= lane
                .queue
                .iter()
                .map(|queued| queued.op.held_bytes())
                .sum::<usize>();
        }
        let context = self.contexts.remove(&key);
        let device = context.as_ref().map(|context| context.owner.device);
        let is_its = |other: &ContextState| Some(other.owner.device) == device;
        let slab = match device {
            Some(device) if !self.contexts.values().any(is_its) => self.slabs.remove(&device),
            _ => None,
        };
        (lanes, context, slab)
    }

    /// Makes a stream of the client.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `OUT_OF_MEMORY`: as the handle table says.
    pub(crate) fn add_stream(
        &mut self,
        key: ContextKey,
        handle: u64,
        stream: Stream,
        kind: LaneKind,
    ) -> CuResult {
        self.handles.insert(handle, LaneKey(self.keys + 1))?;
        let lane = self.add_lane(key, stream, handle, kind);
        if let Some(context) = self.contexts.get_mut(&key) {
            context.lanes.push(lane);
        }
        Ok(())
    }

    /// Forgets a stream's handle; its work goes on.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub(crate) fn retire_stream(&mut self, handle: u64) -> CuResult<LaneKey> {
        let key = self.handles.remove(handle)?;
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.is_retired = true;
        }
        Ok(key)
    }

    /// Whether a stream was destroyed and everything was given to the driver.
    pub(crate) fn is_spent(&self, key: LaneKey) -> bool {
        self.lanes
            .get(&key)
            .is_some_and(|lane| lane.is_retired && lane.passed == lane.issued)
    }

    /// Takes out a stream that is spent; its last fence stays with the context.
    pub(crate) fn take_spent(&mut self, key: LaneKey, fence: Option<Arc<Fence>>) -> Option<Lane> {
        let lane = self.lanes.get(&key)?;
        if let Some(context) = self.contexts.get_mut(&lane.key) {
            context.orphans.retain(|fence| fence.poll().is_none());
            context.orphans.extend(fence);
        }
        if let Some(context) = self.contexts.get_mut(&lane.key) {
            context.lanes.retain(|other| *other != key);
        }
        self.lanes.remove(&key)
    }

    /// The stream that a handle names in a context.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub(crate) fn resolve(&self, key: ContextKey, handle: u64) -> CuResult<LaneKey> {
        if handle == 0 {
            return self
                .contexts
                .get(&key)
                .map(|context| context.legacy)
                .ok_or(CuStatus::INVALID_CONTEXT);
        }
        self.handles.get(handle).copied()
    }

    /// Something is about to be given to the driver on a stream: its last fence is no longer behind everything, and
    /// neither is the legacy stream's, which waits for the blocking streams.
    ///
    /// # Errors
    /// `INVALID_HANDLE`: no such stream.
    pub(crate) fn use_lane(&mut self, key: LaneKey) -> CuResult {
        let lane = self.lanes.get_mut(&key).ok_or(CuStatus::INVALID_HANDLE)?;
        lane.is_used = true;
        lane.fence = None;
        if lane.kind == LaneKind::Blocking
            && let Some(legacy) = self.contexts.get(&lane.key).map(|context| context.legacy)
            && let Some(legacy) = self.lanes.get_mut(&legacy)
        {
            legacy.is_used = true;
            legacy.fence = None;
        }
        Ok(())
    }

    /// `SUCCESS` or the sticky error.
    pub(crate) fn health(&self, key: ContextKey) -> CuStatus {
        self.contexts
            .get(&key)
            .map_or(CuStatus::SUCCESS, |context| {
                context.error.unwrap_or(CuStatus::SUCCESS)
            })
    }

    /// The health of a stream's context.
    pub(crate) fn health_of(&self, lane: LaneKey) -> CuStatus {
        self.lanes
            .get(&lane)
            .map_or(CuStatus::INVALID_CONTEXT, |lane| self.health(lane.key))
    }

    /// Everything issued to a stream so far.
    pub(crate) fn position(&self, lane: LaneKey) -> Wait {
        Wait {
            lane,
            position: self.lanes.get(&lane).map_or(0, |state| state.issued),
        }
    }

    /// Whether everything up to a position was given to the driver.
    pub(crate) fn has_passed(&self, wait: Wait) -> bool {
        self.lanes
            .get(&wait.lane)
            .is_none_or(|lane| lane.passed >= wait.position)
    }

    /// Whether anything waits to be given to the driver.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind > 0 || !self.detached.is_empty()
    }

    /// Positions of a context that have not passed.
    pub(crate) fn unpassed_of(&self, key: ContextKey) -> Vec<Wait> {
        let lanes = self
            .contexts
            .get(&key)
            .map(|context| context.lanes.clone())
            .unwrap_or_default();
        let mut waits: Vec<Wait> = lanes
            .into_iter()
            .filter_map(|lane| self.unpassed(lane))
            .collect();
        waits.extend(self.barrier.filter(|wait| !self.has_passed(*wait)));
        waits
    }

    /// Lets everything issued later wait for what was issued to this stream.
    pub(crate) fn set_barrier(&mut self, lane: LaneKey) {
        self.barrier = Some(self.position(lane));
    }

    /// What an operation for this stream must wait for besides those before it in the stream.
    pub(crate) fn implicit_waits(&self, key: LaneKey, waits: &mut Vec<Wait>) {
        waits.extend(
            self.barrier
                .filter(|wait| wait.lane != key && !self.has_passed(*wait)),
        );
        let Some(lane) = self.lanes.get(&key) else {
            return;
        };
        let Some(context) = self.contexts.get(&lane.key) else {
            return;
        };
        match lane.kind {
            LaneKind::Blocking => waits.extend(self.unpassed(context.legacy)),
            LaneKind::Legacy => {
                let blocking = |at: &&LaneKey| {
                    self.lanes
                        .get(at)
                        .is_some_and(|lane| lane.kind == LaneKind::Blocking)
                };
                waits.extend(
                    context
                        .lanes
                        .iter()
                        .filter(blocking)
                        .filter_map(|at| self.unpassed(*at)),
                );
            }
            LaneKind::NonBlocking => {}
        }
    }

    /// Counts an operation in; it is either given to the driver or queued next. Returns its position.
    pub(crate) fn issue(&mut self, key: LaneKey) -> u64 {
        self.behind += 1;
        self.lanes.get_mut(&key).map_or(0, |lane| {
            lane.issued += 1;
            lane.issued
        })
    }

    /// The operation after those that have passed was given to the driver, or has failed.
    pub(crate) fn pass(&mut self, key: LaneKey) {
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.passed += 1;
            self.behind -= 1;
        }
    }

    /// Whether an operation issued now could be given to the driver now.
    pub(crate) fn is_free(&self, key: LaneKey, waits: &[Wait]) -> bool {
        let free = self
            .lanes
            .get(&key)
            .is_some_and(|lane| lane.queue.is_empty() && lane.hosted.is_none());
        free && waits.iter().all(|wait| self.has_passed(*wait))
    }

    /// Queues an issued operation.
    pub(crate) fn enqueue(
        &mut self,
        key: LaneKey,
        op: Op<'static>,
        reply: Reply,
        waits: Vec<Wait>,
    ) {
        let order = self.count_in(&op);
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.queue.push_back(Queued {
                op,
                reply,
                waits,
                order,
            });
        }
    }

    /// Puts an operation, or the rest of one, before everything else of its stream.
    pub(crate) fn enqueue_first(&mut self, key: LaneKey, op: Op<'static>, reply: Reply) {
        let order = self.count_in(&op);
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.queue.push_front(Queued {
                op,
                reply,
                waits: Vec::new(),
                order,
            });
        }
    }

    /// Takes the oldest operation whose waits have passed, of the streams that are not in `blocked`.
    pub(crate) fn next(&mut self, blocked: &[LaneKey]) -> Option<(LaneKey, Queued)> {
        if self.queued_count == 0 {
            return None;
        }
        let ready = self
            .lanes
            .iter()
            .filter(|(key, lane)| lane.hosted.is_none() && !blocked.contains(key));
        let ready = ready.filter_map(|(key, lane)| {
            let head = lane.queue.front()?;
            head.waits
                .iter()
                .all(|wait| self.has_passed(*wait))
                .then_some((head.order, *key))
        });
        let (_, key) = ready.min_by_key(|(order, _)| *order)?;
        let queued = self.lanes.get_mut(&key)?.queue.pop_front()?;
        self.queued_count -= 1;
        self.queued_bytes -= queued.op.held_bytes();
        Some((key, queued))
    }

    /// Whether memory will be freed when what waits has gone on.
    pub(crate) fn may_free(&self) -> bool {
        let queued = || {
            self.lanes
                .values()
                .flat_map(|lane| &lane.queue)
                .any(|queued| matches!(queued.op, Op::Free { .. }))
        };
        let detached = || {
            self.detached.iter().any(|detached| {
                matches!(
                    detached.after,
                    After::Free { .. } | After::Unmap { .. } | After::EndContext
                )
            })
        };
        self.frees > 0 || detached() || queued()
    }

    /// Takes the first detached operation whose waits have passed.
    pub(crate) fn next_detached(&mut self) -> Option<Detached> {
        let at = self
            .detached
            .iter()
            .position(|detached| detached.waits.iter().all(|wait| self.has_passed(*wait)))?;
        Some(self.detached.remove(at))
    }

    /// The stream that waits for the client's function with this number, once that was told to be due.
    pub(crate) fn hosted(&self, callback: u64) -> Option<LaneKey> {
        let waits = |lane: &Lane| {
            lane.hosted
                .as_ref()
                .is_some_and(|hosted| hosted.is_due && hosted.callback == callback)
        };
        self.lanes
            .iter()
            .find(|(_, lane)| waits(lane))
            .map(|(key, _)| *key)
    }

    /// Everything that is queued in a lost context.
    pub(crate) fn take_queued(&mut self, key: ContextKey) -> Vec<Queued> {
        let mut taken = Vec::new();
        for lane in self.lanes.values_mut().filter(|lane| lane.key == key) {
            let count = lane.queue.len();
            lane.passed += count as u64;
            self.behind -= count;
            self.queued_count -= count;
            self.queued_bytes -= lane
                .queue
                .iter()
                .map(|queued| queued.op.held_bytes())
                .sum::<usize>();
            taken.extend(lane.queue.drain(..));
        }
        taken
    }

    fn count_in(&mut self, op: &Op<'static>) -> u64 {
        self.order += 1;
        self.queued_count += 1;
        self.queued_bytes += op.held_bytes();
        self.order
    }

    fn unpassed(&self, lane: LaneKey) -> Option<Wait> {
        let state = self.lanes.get(&lane)?;
        (state.passed < state.issued).then_some(Wait {
            lane,
            position: state.issued,
        })
    }

    fn add_lane(
        &mut self,
        key: ContextKey,
        stream: Stream,
        handle: u64,
        kind: LaneKind,
    ) -> LaneKey {
        let at = LaneKey(self.next_key());
        let lane = Lane {
            key,
            stream,
            handle,
            hosted: None,
            pending: Vec::new(),
            fence: None,
            is_used: false,
            unanswered: Arc::default(),
            zeroed: 0,
            kind,
            queue: VecDeque::new(),
            issued: 0,
            passed: 0,
            is_retired: false,
        };
        self.lanes.insert(at, lane);
        at
    }

    fn next_key(&mut self) -> u64 {
        self.keys += 1;
        self.keys
    }
}
