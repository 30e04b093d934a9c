//! Streams, contexts and events as the bookkeeping sees them.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use farcall_marshal::status::CuStatus;

use super::driver::{Event, Fence, Region, Stream, Texture};
use super::memory::Owner;
use super::op::{After, Op};
use crate::executor::outbox::Reply;

/// Internal number of a stream, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey(pub(super) u64);

/// Internal number of a context, never reused (a reset makes a new one of the same name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContextKey(pub(super) u64);

/// Everything issued to a stream up to a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    pub(crate) lane: LaneKey,
    pub(crate) position: u64,
}

/// An operation that cannot be given to the driver yet.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) op: Op<'static>,
    pub(crate) reply: Reply,
    pub(crate) waits: Vec<Wait>,
    pub(super) order: u64,
}

/// Something that waits for all streams of a context.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) key: ContextKey,
    pub(crate) reply: Reply,
    pub(crate) after: After,
    pub(crate) waits: Vec<Wait>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneKind {
    Legacy,
    Blocking,
    NonBlocking,
}

/// A host function of the client that its stream waits for.
#[derive(Debug)]
pub(crate) struct Hosted {
    pub(crate) callback: u64,
    pub(crate) reply: Reply,
    /// What is left of the operation.
    pub(crate) rest: Option<Op<'static>>,
    /// The client has been told.
    pub(crate) is_due: bool,
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) key: ContextKey,
    pub(crate) stream: Stream,
    /// The client's number; 0: the legacy stream.
    pub(crate) handle: u64,
    pub(crate) hosted: Option<Hosted>,
    /// Pinned memory that copies given to the driver read from; goes with the next fence.
    pub(crate) pending: Vec<Region>,
    /// The fence behind everything given to the driver; `None` if there is something newer.
    pub(crate) fence: Option<Arc<Fence>>,
    /// Whether anything was given to the driver at all.
    pub(crate) is_used: bool,
    /// Reads whose answers are under way.
    pub(crate) unanswered: Arc<AtomicUsize>,
    /// The last zeroing of fresh memory, of any context, that the stream waits for.
    pub(crate) zeroed: u64,
    pub(super) kind: LaneKind,
    pub(super) queue: VecDeque<Queued>,
    pub(super) issued: u64,
    pub(super) passed: u64,
    /// Destroyed by the client; goes when everything was given to the driver.
    pub(super) is_retired: bool,
}

/// A context.
#[derive(Debug)]
pub(crate) struct ContextState {
    /// The client's number.
    pub(crate) number: u32,
    pub(crate) owner: Owner,
    pub(crate) is_primary: bool,
    /// Sticky error.
    pub(crate) error: Option<CuStatus>,
    pub(crate) legacy: LaneKey,
    pub(crate) lanes: Vec<LaneKey>,
    /// Zeroes fresh memory, beside everything else.
    pub(crate) zeroer: Option<Stream>,
    /// The number that its last zeroing has in the session, and the event behind it.
    pub(crate) zeroing: u64,
    pub(crate) zeroed: Option<Arc<Event>>,
    /// Fences behind streams that were destroyed.
    pub(crate) orphans: Vec<Arc<Fence>>,
    /// Texture objects by what kernels name them by.
    pub(crate) textures: HashMap<u64, Texture>,
}

/// An event.
#[derive(Debug)]
pub(crate) struct EventState {
    pub(crate) key: ContextKey,
    pub(crate) event: Arc<Event>,
    /// The last record.
    pub(crate) recorded: Option<Wait>,
}
