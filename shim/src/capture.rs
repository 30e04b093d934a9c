//! Stream capture: operations of a capturing stream become nodes of a graph instead of being sent.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use crate::context::Context;
use crate::crossing;
use crate::graph::{self, Graph, Node};
use crate::stream::{STREAM_NON_BLOCKING, Stream};

/// `CU_STREAM_CAPTURE_MODE_RELAXED`, the last of the modes.
const MODE_RELAXED: u32 = 2;

/// Where a stream of a capture stood.
pub(crate) type CaptureMark = Vec<u32>;

/// A capture under way.
pub(crate) struct Capture {
    pub(crate) id: u64,
    pub(crate) graph: Arc<Graph>,
    /// Whether the graph was made for the capture.
    is_new: bool,
    context: &'static Context,
    origin: u64,
    /// The one thread that may end it; none of a relaxed capture.
    thread: Option<ThreadId>,
    invalid: AtomicBool,
    build: Mutex<Build>,
    /// Handles of the nodes last told to the program, which looks at them in place.
    told: Mutex<Vec<u64>>,
}

#[derive(Default)]
struct Build {
    /// Per stream the nodes that its next one depends on.
    tips: HashMap<u64, Vec<u32>>,
    members: Vec<Arc<Stream>>,
}

static ACTIVE: AtomicUsize = AtomicUsize::new(0);
static CAPTURES: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());

/// Whether any stream of the process captures. One load on the path of every operation.
#[inline]
pub(crate) fn any() -> bool {
    ACTIVE.load(Ordering::Relaxed) != 0
}

/// An operation on the legacy stream would wait for a capturing stream: it spoils the capture.
pub(crate) fn forbid_legacy(context: &Context) -> CuResult {
    let captures = CAPTURES.lock();
    let spoiled = captures.iter().find(|capture| {
        std::ptr::eq(capture.context, context)
            && capture
                .build
                .lock()
                .members
                .iter()
                .any(|stream| stream.flags & STREAM_NON_BLOCKING == 0)
    });
    match spoiled {
        None => Ok(()),
        Some(capture) => {
            capture.invalidate();
            Err(CuStatus::STREAM_CAPTURE_IMPLICIT)
        }
    }
}

/// A context that captures cannot be waited for: it spoils the capture.
pub(crate) fn forbid_synchronize(context: &Context) -> CuResult {
    if !any() {
        return Ok(());
    }
    let captures = CAPTURES.lock();
    match captures
        .iter()
        .find(|capture| std::ptr::eq(capture.context, context))
    {
        None => Ok(()),
        Some(capture) => {
            capture.invalidate();
            Err(CuStatus::STREAM_CAPTURE_UNSUPPORTED)
        }
    }
}

/// Starts a capture on `stream`, into a new graph or into `graph` behind the nodes `after` of it.
pub(crate) fn begin(
    stream: &Arc<Stream>,
    mode: u32,
    graph: Option<Arc<Graph>>,
    after: CaptureMark,
) -> CuResult {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if stream.id == 0 {
        return Err(CuStatus::STREAM_CAPTURE_UNSUPPORTED);
    }
    if mode > MODE_RELAXED {
        return Err(CuStatus::INVALID_VALUE);
    }
    let mut slot = stream.capture.lock();
    if slot.is_some() {
        return Err(CuStatus::ILLEGAL_STATE);
    }
    let capture = Arc::new(Capture {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        is_new: graph.is_none(),
        graph: graph.map_or_else(Graph::create, Ok)?,
        context: stream.context,
        origin: stream.id,
        thread: (mode != MODE_RELAXED).then(|| thread::current().id()),
        invalid: AtomicBool::new(false),
        told: Mutex::default(),
        build: Mutex::new(Build {
            members: vec![Arc::clone(stream)],
            tips: HashMap::from([(stream.id, after)]),
        }),
    });
    *slot = Some(Arc::clone(&capture));
    CAPTURES.lock().push(capture);
    ACTIVE.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Ends the capture that began on `stream`; its graph. What a bad capture built is thrown away, but not a graph that was
/// there before.
pub(crate) fn end(stream: &Arc<Stream>) -> CuResult<Arc<Graph>> {
    let capture = stream
        .capture
        .lock()
        .clone()
        .ok_or(CuStatus::ILLEGAL_STATE)?;
    if capture.origin != stream.id {
        return Err(CuStatus::STREAM_CAPTURE_UNMATCHED);
    }
    if capture
        .thread
        .is_some_and(|thread| thread != thread::current().id())
    {
        return Err(CuStatus::STREAM_CAPTURE_WRONG_THREAD);
    }
    // One lock after the other: who looks through all captures holds them in another order.
    CAPTURES
        .lock()
        .retain(|other| !Arc::ptr_eq(other, &capture));
    ACTIVE.fetch_sub(1, Ordering::Relaxed);
    let members = std::mem::take(&mut capture.build.lock().members);
    for member in members {
        *member.capture.lock() = None;
    }
    let build = capture.build.lock();
    let outcome = capture.check().and_then(|()| {
        let joined = capture.reached_from(build.tips.get(&capture.origin));
        let is_joined = |tip: &u32| joined.contains(tip);
        if build.tips.values().flatten().all(is_joined) {
            Ok(())
        } else {
            Err(CuStatus::STREAM_CAPTURE_UNJOINED)
        }
    });
    drop(build);
    if outcome.is_err() && capture.is_new {
        let _ = graph::forget(capture.graph.handle);
    }
    outcome.map(|()| Arc::clone(&capture.graph))
}

impl Capture {
    /// These nodes and all that they depend on.
    fn reached_from(&self, tips: Option<&Vec<u32>>) -> Vec<u32> {
        let definition = self.graph.definition.lock();
        let mut reached = tips.cloned().unwrap_or_default();
        let mut at = 0;
        while let Some(node) = reached.get(at).copied() {
            for (from, _) in definition.edges.iter().filter(|(_, to)| *to == node) {
                if !reached.contains(from) {
                    reached.push(*from);
                }
            }
            at += 1;
        }
        reached
    }

    pub(crate) fn check(&self) -> CuResult {
        if self.invalid.load(Ordering::Relaxed) {
            Err(CuStatus::STREAM_CAPTURE_INVALIDATED)
        } else {
            Ok(())
        }
    }

    pub(crate) fn is_invalid(&self) -> bool {
        self.invalid.load(Ordering::Relaxed)
    }

    pub(crate) fn invalidate(&self) {
        self.invalid.store(true, Ordering::Relaxed);
    }

    /// Adds a node behind what the stream did before.
    pub(crate) fn add(&self, stream: u64, node: Node) -> CuResult {
        let mut build = self.build.lock();
        let after = build.tips.remove(&stream).unwrap_or_default();
        let index = self.graph.definition.lock().add(node, &after);
        build.tips.insert(stream, vec![index]);
        Ok(())
    }

    /// What an event recorded on the stream now stands for.
    pub(crate) fn mark(&self, stream: u64) -> CaptureMark {
        self.build
            .lock()
            .tips
            .get(&stream)
            .cloned()
            .unwrap_or_default()
    }

    /// Sets, or adds to, what the stream's next node depends on.
    pub(crate) fn set_tips(&self, stream: u64, tips: &[u32], is_added: bool) {
        let mut build = self.build.lock();
        let known = build.tips.entry(stream).or_default();
        if !is_added {
            known.clear();
        }
        for tip in tips {
            if !known.contains(tip) {
                known.push(*tip);
            }
        }
    }

    /// Handles of the nodes that the stream's next one will depend on: an array that stays until it is asked
    /// for again, and its length.
    pub(crate) fn dependencies(&self, stream: u64) -> CuResult<(*const u64, usize)> {
        let handles = self.mark(stream).into_iter();
        let handles: CuResult<Vec<u64>> = handles
            .map(|index| self.graph.node(index as usize))
            .collect();
        let mut told = self.told.lock();
        *told = handles?;
        Ok((told.as_ptr(), told.len()))
    }

    /// `stream` waits for `mark`, and so takes part in the capture from now on.
    pub(crate) fn join(self: &Arc<Self>, stream: &Arc<Stream>, mark: &CaptureMark) -> CuResult {
        self.check()?;
        if !std::ptr::eq(self.context.session(), stream.session()) {
            return Err(crossing::spoil(self));
        }
        if !CAPTURES
            .lock()
            .iter()
            .any(|capture| Arc::ptr_eq(capture, self))
        {
            return Err(CuStatus::CAPTURED_EVENT);
        }
        let mut slot = stream.capture.lock();
        match &*slot {
            Some(other) if !Arc::ptr_eq(other, self) => return Err(CuStatus::STREAM_CAPTURE_MERGE),
            Some(_) => {}
            None => {
                *slot = Some(Arc::clone(self));
                self.build.lock().members.push(Arc::clone(stream));
            }
        }
        self.set_tips(stream.id, mark, true);
        Ok(())
    }
}
