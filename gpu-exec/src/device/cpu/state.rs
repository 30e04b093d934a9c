//! Order of operations: streams, what they wait for, contexts, events. Pure bookkeeping: runs nothing.
//!
//! A stream is a queue whose operations complete in order, so "everything issued to stream S so far" is one
//! number: its position. All dependencies are positions: an event is the position of its record, the
//! legacy stream waits for the positions of the blocking streams, a free for those of all streams.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use farcall_marshal::status::{CuResult, CuStatus};

use super::memory::Turn;
use super::work::Work;
use crate::device::handles::HandleTable;
use crate::executor::outbox::Reply;
use crate::limits::{EVENTS_MAX, STREAMS_MAX};
use crate::share::gate::Gate;

mod contexts;

/// Internal number of a stream, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StreamKey(u64);

/// Internal number of a context, never reused (a reset makes a new one of the same name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContextKey(pub(crate) u64);

/// Everything issued to a stream up to a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) stream: StreamKey,
    pub(crate) position: u64,
}

/// An operation that waits.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) work: Work<'static>,
    pub(crate) reply: Reply,
    pub(crate) waits: Vec<Wait>,
    order: u64,
}

/// A queue of operations that complete in order.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) context: ContextKey,
    kind: StreamKind,
    queue: VecDeque<Queued>,
    issued: u64,
    completed: u64,
    /// The operation after `completed` has begun.
    in_flight: Option<InFlight>,
    /// Destroyed by the client; goes when it is empty.
    retired: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamKind {
    Legacy,
    Blocking,
    NonBlocking,
    /// Frees and what waits for them.
    Memory,
}

/// What a begun operation is.
#[derive(Clone, Debug)]
pub(crate) enum InFlight {
    /// Runs on some thread of ours.
    Running,
    /// Answers its reply itself, just before it completes.
    Answering,
    /// Waits for the bulk plane.
    Upload,
    /// Waits for the client's function.
    HostFunc {
        callback: u64,
        reply: Reply,
        rest: Option<Work<'static>>,
    },
}

/// A context: streams and a state of health.
#[derive(Debug)]
struct Context {
    /// The session's ordinal.
    device: usize,
    /// Sticky error.
    error: Option<CuStatus>,
    legacy: StreamKey,
    memory: StreamKey,
    streams: Vec<StreamKey>,
}

/// An event.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) context: ContextKey,
    pub(crate) timed: bool,
    /// The last record.
    pub(crate) recorded: Option<Wait>,
    /// When it was reached.
    pub(crate) reached_ns: Option<u64>,
}

/// Somebody who waits for positions.
#[derive(Debug)]
struct Waiter {
    waits: Vec<Wait>,
    context: ContextKey,
    reply: Reply,
}

/// All streams of a session.
#[derive(Debug)]
pub(crate) struct State {
    /// The right to run operations, while nobody does.
    pub(crate) turn: Option<Turn>,
    /// Holds launches back while it is another session's turn on the device.
    gate: Arc<Gate>,
    pub(crate) events: HandleTable<Event>,
    /// Uploads that write to device memory now.
    pub(crate) posted: Vec<(StreamKey, u64, u64)>,
    pub(crate) queued_count: usize,
    pub(crate) queued_bytes: usize,
    pub(crate) staged_bytes: usize,
    pub(crate) stopping: bool,
    streams: FxHashMap<StreamKey, Stream>,
    contexts: FxHashMap<ContextKey, Context>,
    handles: HandleTable<StreamKey>,
    waiters: Vec<Waiter>,
    active: Vec<StreamKey>,
    frees: Vec<Wait>,
    /// An allocation that waits for a free: what is issued later may need it.
    fence: Option<Wait>,
    /// Operations issued to any stream and not completed.
    unfinished: u64,
    keys: u64,
    order: u64,
}

impl State {
    pub(crate) fn new(turn: Turn, gate: Arc<Gate>) -> Self {
        Self {
            turn: Some(turn),
            gate,
            events: HandleTable::new(EVENTS_MAX),
            posted: Vec::new(),
            queued_count: 0,
            queued_bytes: 0,
            staged_bytes: 0,
            stopping: false,
            streams: FxHashMap::default(),
            contexts: FxHashMap::default(),
            handles: HandleTable::new(STREAMS_MAX),
            waiters: Vec::new(),
            active: Vec::new(),
            frees: Vec::new(),
            fence: None,
            unfinished: 0,
            keys: 0,
            order: 0,
        }
    }

    /// The stream that a handle names in a context.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub(crate) fn resolve(&self, context: ContextKey, handle: u64) -> CuResult<StreamKey> {
        if handle == 0 {
            return self
                .contexts
                .get(&context)
                .map(|context| context.legacy)
                .ok_or(CuStatus::INVALID_CONTEXT);
        }
        self.handles.get(handle).copied()
    }

    /// The hidden stream for frees.
    pub(crate) fn memory_stream(&self, context: ContextKey) -> Option<StreamKey> {
        self.contexts.get(&context).map(|context| context.memory)
    }

    /// The context of a stream.
    pub(crate) fn context_of(&self, stream: StreamKey) -> Option<ContextKey> {
        self.streams.get(&stream).map(|stream| stream.context)
    }

    /// The session's ordinal of a stream's device.
    pub(crate) fn device_of(&self, stream: StreamKey) -> Option<usize> {
        let context = self.context_of(stream)?;
        Some(self.contexts.get(&context)?.device)
    }

    /// Everything issued to a stream so far.
    pub(crate) fn position(&self, stream: StreamKey) -> Option<Wait> {
        self.streams.get(&stream).map(|s| Wait {
            stream,
            position: s.issued,
        })
    }

    /// What is not done of a context, the hidden streams included.
    pub(crate) fn pending_of(&self, context: ContextKey) -> Vec<Wait> {
        let Some(context) = self.contexts.get(&context) else {
            return Vec::new();
        };
        context
            .streams
            .iter()
            .filter_map(|key| self.pending(*key))
            .collect()
    }

    /// What frees are not done.
    pub(crate) fn pending_frees(&mut self) -> Vec<Wait> {
        let mut frees = std::mem::take(&mut self.frees);
        frees.retain(|wait| !self.is_done(*wait));
        self.frees.clone_from(&frees);
        frees
    }

    /// Notes that the operation last issued to a stream frees memory.
    pub(crate) fn note_free(&mut self, stream: StreamKey) {
        self.frees.extend(self.pending(stream));
    }

    /// Lets everything issued later wait for what was issued to this stream.
    pub(crate) fn set_fence(&mut self, stream: StreamKey) {
        self.fence = self.position(stream);
    }

    /// Whether a position has been reached.
    pub(crate) fn is_done(&self, wait: Wait) -> bool {
        self.streams
            .get(&wait.stream)
            .is_none_or(|stream| stream.completed >= wait.position)
    }

    /// What an operation for this stream must wait for besides those before it in the stream.
    pub(crate) fn implicit_waits(&mut self, key: StreamKey, waits: &mut Vec<Wait>) {
        if let Some(fence) = self.fence {
            if self.is_done(fence) {
                self.fence = None;
            } else if fence.stream != key {
                waits.push(fence);
            }
        }
        let Some(stream) = self.streams.get(&key) else {
            return;
        };
        let Some(context) = self.contexts.get(&stream.context) else {
            return;
        };
        match stream.kind {
            StreamKind::Blocking => waits.extend(self.pending(context.legacy)),
            StreamKind::Legacy => {
                let blocking = |key: &&StreamKey| {
                    self.streams
                        .get(key)
                        .is_some_and(|s| s.kind == StreamKind::Blocking)
                };
                waits.extend(
                    context
                        .streams
                        .iter()
                        .filter(blocking)
                        .filter_map(|key| self.pending(*key)),
                );
            }
            StreamKind::NonBlocking | StreamKind::Memory => {}
        }
    }

    /// Counts an operation in; it is either begun or queued next. Returns its position.
    pub(crate) fn issue(&mut self, key: StreamKey) -> u64 {
        let unfinished = &mut self.unfinished;
        self.streams.get_mut(&key).map_or(0, |stream| {
            *unfinished += 1;
            stream.issued += 1;
            stream.issued
        })
    }

    /// Counts an operation in for which there is nothing to do, and completes it, if nothing else is under way in the
    /// session: then nothing is in its way, and nobody waits. False: it has to be issued.
    pub(crate) fn pass(&mut self, context: ContextKey, handle: u64) -> bool {
        if self.unfinished != 0 || self.turn.is_none() || !self.waiters.is_empty() {
            return false;
        }
        let Ok(key) = self.resolve(context, handle) else {
            return false;
        };
        let Some(stream) = self.streams.get_mut(&key) else {
            return false;
        };
        let context = self.contexts.get(&stream.context);
        let is_well = context.is_some_and(|context| context.error.is_none());
        if is_well {
            stream.issued += 1;
            stream.completed += 1;
        }
        is_well
    }

    /// Whether an operation issued now could begin now, apart from the turn.
    pub(crate) fn is_free(&self, key: StreamKey, waits: &[Wait]) -> bool {
        let idle = self
            .streams
            .get(&key)
            .is_some_and(|s| s.queue.is_empty() && s.in_flight.is_none());
        idle && waits.iter().all(|wait| self.is_done(*wait))
    }

    /// Whether uploads in progress hold the operation back.
    pub(crate) fn is_held(&self, work: &Work<'_>) -> bool {
        self.posted
            .iter()
            .any(|(_, start, end)| work.is_held_by(*start, *end))
    }

    /// Marks the operation after the completed ones as begun.
    pub(crate) fn begin(&mut self, key: StreamKey, how: InFlight) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.in_flight = Some(how);
        }
    }

    /// Queues an issued operation.
    pub(crate) fn enqueue(
        &mut self,
        key: StreamKey,
        work: Work<'static>,
        reply: Reply,
        waits: Vec<Wait>,
    ) {
        self.order += 1;
        self.queued_count += 1;
        self.queued_bytes += work.held_bytes();
        let order = self.order;
        if let Some(stream) = self.streams.get_mut(&key) {
            if stream.queue.is_empty() {
                self.active.push(key);
            }
            stream.queue.push_back(Queued {
                work,
                reply,
                waits,
                order,
            });
        }
    }

    /// Puts the rest of a begun operation back: it goes on before everything else of its stream.
    pub(crate) fn resume(&mut self, key: StreamKey, work: Work<'static>, reply: Reply) {
        self.order += 1;
        self.queued_count += 1;
        self.queued_bytes += work.held_bytes();
        let order = self.order;
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.in_flight = None;
            if stream.queue.is_empty() {
                self.active.push(key);
            }
            stream.queue.push_front(Queued {
                work,
                reply,
                waits: Vec::new(),
                order,
            });
        }
    }

    /// Takes the oldest operation that can begin, marks it as begun.
    pub(crate) fn next(&mut self) -> Option<(StreamKey, Queued)> {
        let can_begin = |key: &StreamKey| {
            let stream = self.streams.get(key)?;
            let head = stream.queue.front()?;
            let ready =
                stream.in_flight.is_none() && head.waits.iter().all(|wait| self.is_done(*wait));
            let can = ready
                && head.work.has_come()
                && !self.is_held(&head.work)
                && (!head.work.takes_turns() || self.is_admitted(*key));
            can.then_some(head.order)
        };
        let ready = self
            .active
            .iter()
            .filter_map(|key| can_begin(key).map(|order| (order, *key)));
        let (_, key) = ready.min_by_key(|(order, _)| *order)?;
        let stream = self.streams.get_mut(&key)?;
        let queued = stream.queue.pop_front()?;
        stream.in_flight = Some(if matches!(queued.work, Work::Read { .. }) {
            InFlight::Answering
        } else {
            InFlight::Running
        });
        if stream.queue.is_empty() {
            self.active.retain(|active| *active != key);
        }
        self.queued_count -= 1;
        self.queued_bytes -= queued.work.held_bytes();
        Some((key, queued))
    }

    /// Position of the operation that a stream has begun.
    pub(crate) fn running_position(&self, key: StreamKey) -> u64 {
        self.streams
            .get(&key)
            .map_or(0, |stream| stream.completed + 1)
    }

    /// Ends the operation that a stream has begun; whom to answer now, with what.
    pub(crate) fn complete(&mut self, key: StreamKey) -> Vec<(Reply, CuStatus)> {
        let Some(stream) = self.streams.get_mut(&key) else {
            return Vec::new();
        };
        stream.in_flight = None;
        stream.completed += 1;
        self.unfinished -= 1;
        let (context, gone) = (
            stream.context,
            stream.retired && stream.completed == stream.issued,
        );
        if gone {
            self.streams.remove(&key);
            self.drop_empty_context(context);
        }
        if self.waiters.is_empty() {
            Vec::new()
        } else {
            self.release_waiters()
        }
    }

    /// Answers `reply` when all of `waits` are done: now (the status is returned), or by [`Self::complete`].
    pub(crate) fn wait(
        &mut self,
        context: ContextKey,
        mut waits: Vec<Wait>,
        reply: Reply,
    ) -> Option<CuStatus> {
        waits.retain(|wait| !self.is_done(*wait));
        if waits.is_empty() {
            return Some(self.health(context));
        }
        self.waiters.push(Waiter {
            waits,
            context,
            reply,
        });
        None
    }

    /// Whether a position is reached, or will be as soon as an answer is sent: then the waiter is told later.
    pub(crate) fn query(
        &mut self,
        context: ContextKey,
        wait: Wait,
        reply: Reply,
    ) -> Option<CuStatus> {
        let answering = self.streams.get(&wait.stream).is_some_and(|stream| {
            matches!(stream.in_flight, Some(InFlight::Answering))
                && stream.completed + 1 >= wait.position
        });
        if answering || self.is_done(wait) {
            return self.wait(context, vec![wait], reply);
        }
        Some(match self.health(context) {
            CuStatus::SUCCESS => CuStatus::NOT_READY,
            error => error,
        })
    }

    /// The stream whose host function with this number is due.
    pub(crate) fn host_func(
        &self,
        handle: u64,
        callback: u64,
    ) -> Option<(StreamKey, Reply, Option<Work<'static>>)> {
        self.streams
            .iter()
            .find_map(|(key, stream)| match &stream.in_flight {
                Some(InFlight::HostFunc {
                    callback: due,
                    reply,
                    rest,
                }) if *due == callback => {
                    let named = handle == 0
                        || self
                            .handles
                            .get(handle)
                            .map_or(stream.retired, |named| named == key);
                    named.then(|| (*key, *reply, rest.clone()))
                }
                _ => None,
            })
    }

    /// Whether some stream waits for the client.
    pub(crate) fn waits_for_client(&self) -> bool {
        let outside = |s: &Stream| {
            matches!(
                s.in_flight,
                Some(InFlight::Upload | InFlight::HostFunc { .. })
            )
        };
        self.staged_bytes > 0 || self.streams.values().any(outside)
    }

    /// `SUCCESS` or the sticky error.
    pub(crate) fn health(&self, context: ContextKey) -> CuStatus {
        self.contexts
            .get(&context)
            .and_then(|context| context.error)
            .unwrap_or(CuStatus::SUCCESS)
    }

    /// Whether a kernel of this stream may run now; in a lost context nothing runs, so that need not wait.
    fn is_admitted(&self, stream: StreamKey) -> bool {
        let context = self.context_of(stream);
        let is_lost = context.is_none_or(|context| self.health(context) != CuStatus::SUCCESS);
        is_lost
            || self
                .device_of(stream)
                .is_none_or(|device| self.gate.admits(device))
    }

    fn release_waiters(&mut self) -> Vec<(Reply, CuStatus)> {
        let mut waiters = std::mem::take(&mut self.waiters);
        let released = waiters.extract_if(.., |waiter| {
            waiter.waits.iter().all(|wait| self.is_done(*wait))
        });
        let released = released
            .map(|waiter| (waiter.reply, self.health(waiter.context)))
            .collect();
        self.waiters = waiters;
        released
    }

    fn pending(&self, key: StreamKey) -> Option<Wait> {
        let stream = self.streams.get(&key)?;
        (stream.completed < stream.issued).then_some(Wait {
            stream: key,
            position: stream.issued,
        })
    }
}
