//! Stream capture and graphs. The client builds the graph itself from the calls that a capturing stream is
//! given, so capturing sends nothing and every question about a graph is answered here.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use farcall_marshal::record::{self, INLINE_BYTES_MAX};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuGraphExecDestroy, CuGraphInstantiateWithFlags, CuGraphLaunch};
use parking_lot::Mutex;

use crate::context::Context;
use crate::handle::Table;
use crate::memory;
use crate::ptr::HostPtr;
use crate::stream::{STREAM_NON_BLOCKING, Stream};

/// One node of a graph.
#[derive(Clone)]
pub(crate) enum Node {
    /// A stream operation as it would travel.
    Record(Vec<u8>),
    /// A copy from host memory, whose bytes are those of the launch, not of the capture.
    FromHost { to: u64, from: HostPtr, len: usize },
    /// A copy to host memory.
    ToHost { to: HostPtr, from: u64, len: usize },
    /// A host function.
    HostFunction { function: usize, user_data: u64 },
}

impl Node {
    /// `CUgraphNodeType`.
    pub(crate) fn kind(&self) -> u32 {
        const KERNEL: u32 = 0;
        const MEMCPY: u32 = 1;
        const MEMSET: u32 = 2;
        const HOST: u32 = 3;
        const EVENT_RECORD: u32 = 7;
        match self {
            Self::FromHost { .. } | Self::ToHost { .. } => MEMCPY,
            Self::HostFunction { .. } => HOST,
            Self::Record(bytes) => {
                let symbol = record::split(bytes)
                    .ok()
                    .and_then(|(head, ..)| farcall_marshal::catalogue::call(head.number))
                    .map_or("", |c| c.symbol);
                match symbol {
                    s if s.starts_with("cuLaunch") => KERNEL,
                    s if s.starts_with("cuMemset") => MEMSET,
                    s if s.starts_with("cuMemcpy") => MEMCPY,
                    _ => EVENT_RECORD,
                }
            }
        }
    }

    /// Whether only the client can run it, because it touches host memory or calls the program.
    fn needs_client(&self) -> bool {
        matches!(
            self,
            Self::FromHost { .. } | Self::ToHost { .. } | Self::HostFunction { .. }
        )
    }
}

/// Nodes in topological order and the edges between them.
#[derive(Clone, Default)]
pub(crate) struct Definition {
    pub(crate) nodes: Vec<Node>,
    pub(crate) edges: Vec<(u32, u32)>,
}

impl Definition {
    fn add(&mut self, node: Node, after: &[u32]) -> u32 {
        let index = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(node);
        self.edges.extend(after.iter().map(|from| (*from, index)));
        index
    }

    /// Nodes that depend on no other.
    pub(crate) fn roots(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|index| !self.edges.iter().any(|(_, to)| *to as usize == *index))
            .collect()
    }
}

/// A graph that the program holds.
pub(crate) struct Graph {
    pub(crate) definition: Mutex<Definition>,
    /// Handles of the nodes, in their order.
    pub(crate) node_handles: Mutex<Vec<u64>>,
}

/// What a node handle names.
pub(crate) struct GraphNode {
    pub(crate) graph: u64,
    pub(crate) index: usize,
}

/// Where a stream of a capture stood.
pub(crate) type CaptureMark = Vec<u32>;

/// A capture under way.
pub(crate) struct Capture {
    pub(crate) id: u64,
    pub(crate) graph_handle: u64,
    context: &'static Context,
    origin: u64,
    invalid: AtomicBool,
    build: Mutex<Build>,
    /// Handles of the nodes so far, and those last told to the program, which looks at them in place.
    nodes: Mutex<(Vec<u64>, Vec<u64>)>,
}

#[derive(Default)]
struct Build {
    definition: Definition,
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

/// Starts a capture on `stream`.
pub(crate) fn begin(stream: &Arc<Stream>, mode: u32, graph_handle: u64) -> CuResult {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if stream.id == 0 {
        return Err(CuStatus::STREAM_CAPTURE_UNSUPPORTED);
    }
    if mode > 2 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let mut slot = stream.capture.lock();
    if slot.is_some() {
        return Err(CuStatus::ILLEGAL_STATE);
    }
    let capture = Arc::new(Capture {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        graph_handle,
        context: stream.context,
        origin: stream.id,
        invalid: AtomicBool::new(false),
        nodes: Mutex::default(),
        build: Mutex::new(Build {
            members: vec![Arc::clone(stream)],
            ..Build::default()
        }),
    });
    *slot = Some(Arc::clone(&capture));
    CAPTURES.lock().push(capture);
    ACTIVE.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Ends the capture that began on `stream`; the graph it made.
pub(crate) fn end(stream: &Arc<Stream>) -> CuResult<(u64, Graph)> {
    let capture = stream
        .capture
        .lock()
        .clone()
        .ok_or(CuStatus::ILLEGAL_STATE)?;
    if capture.origin != stream.id {
        return Err(CuStatus::STREAM_CAPTURE_UNMATCHED);
    }
    let mut build = capture.build.lock();
    for member in build.members.drain(..) {
        *member.capture.lock() = None;
    }
    CAPTURES
        .lock()
        .retain(|other| !Arc::ptr_eq(other, &capture));
    ACTIVE.fetch_sub(1, Ordering::Relaxed);
    capture.check()?;
    let joined = build.reached_from(capture.origin);
    if build
        .tips
        .values()
        .flatten()
        .any(|tip| !joined.contains(tip))
    {
        return Err(CuStatus::STREAM_CAPTURE_UNJOINED);
    }
    let graph = Graph {
        definition: Mutex::new(std::mem::take(&mut build.definition)),
        node_handles: Mutex::new(std::mem::take(&mut capture.nodes.lock().0)),
    };
    Ok((capture.graph_handle, graph))
}

impl Build {
    /// Nodes that the origin's last nodes depend on, themselves included.
    fn reached_from(&self, origin: u64) -> Vec<u32> {
        let mut reached = self.tips.get(&origin).cloned().unwrap_or_default();
        let mut at = 0;
        while let Some(node) = reached.get(at).copied() {
            for (from, _) in self.definition.edges.iter().filter(|(_, to)| *to == node) {
                if !reached.contains(from) {
                    reached.push(*from);
                }
            }
            at += 1;
        }
        reached
    }
}

impl Capture {
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
        let index = build.definition.add(node, &after);
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

    /// Handles of the nodes that the stream's next one will depend on: an array that stays until it is asked
    /// for again, and its length.
    pub(crate) fn dependencies(
        &self,
        stream: u64,
        table: &Table<GraphNode>,
    ) -> (*const u64, usize) {
        let mark = self.mark(stream);
        let count = self.build.lock().definition.nodes.len();
        let mut nodes = self.nodes.lock();
        let (known, told) = &mut *nodes;
        for index in known.len()..count {
            let handle = table.reserve();
            table.insert(
                handle,
                Arc::new(GraphNode {
                    graph: self.graph_handle,
                    index,
                }),
            );
            known.push(handle);
        }
        *told = mark
            .iter()
            .filter_map(|index| known.get(*index as usize))
            .copied()
            .collect();
        (told.as_ptr(), told.len())
    }

    /// `stream` waits for `mark`, and so takes part in the capture from now on.
    pub(crate) fn join(self: &Arc<Self>, stream: &Arc<Stream>, mark: &CaptureMark) -> CuResult {
        self.check()?;
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
        let mut build = self.build.lock();
        let tips = build.tips.entry(stream.id).or_default();
        for node in mark {
            if !tips.contains(node) {
                tips.push(*node);
            }
        }
        Ok(())
    }
}

/// An instantiated graph.
pub(crate) struct GraphExec {
    context: &'static Context,
    id: u64,
    /// Nodes that the client has to run itself, in order; empty where the server has the whole graph.
    expanded: Vec<Node>,
}

impl GraphExec {
    /// Sends the graph to the server, or keeps it where some node touches the program.
    pub(crate) fn instantiate(
        context: &'static Context,
        definition: &Definition,
        flags: u64,
    ) -> CuResult<Self> {
        let session = context.session();
        let id = session.new_id();
        if definition.nodes.iter().any(Node::needs_client) {
            return Ok(Self {
                context,
                id,
                expanded: definition.nodes.clone(),
            });
        }
        let mut data = Vec::new();
        let mut count = 0_u64;
        for node in &definition.nodes {
            if let Node::Record(bytes) = node {
                data.extend_from_slice(bytes);
                count += 1;
            }
        }
        let node_bytes = data.len() as u64;
        for (from, to) in &definition.edges {
            data.extend_from_slice(&from.to_le_bytes());
            data.extend_from_slice(&to.to_le_bytes());
        }
        let is_inline = data.len() <= INLINE_BYTES_MAX;
        let bulk = if is_inline { 0 } else { session.new_id() };
        session.send(
            context.id,
            &CuGraphInstantiateWithFlags {
                exec: id,
                flags,
                node_count: count,
                node_bytes,
                edge_count: definition.edges.len() as u64,
                bulk,
                data: if is_inline { &data } else { &[] },
            },
        )?;
        if !is_inline {
            memory::send_bulk(session, bulk, &data)?;
        }
        Ok(Self {
            context,
            id,
            expanded: Vec::new(),
        })
    }

    pub(crate) fn launch(&self, stream: &Arc<Stream>) -> CuResult {
        if self.expanded.is_empty() {
            return stream.issue(&CuGraphLaunch {
                exec: self.id,
                stream: stream.id,
            });
        }
        if let Some(capture) = stream.capturing()? {
            return self
                .expanded
                .iter()
                .try_for_each(|node| capture.add(stream.id, node.clone()));
        }
        self.expanded
            .iter()
            .try_for_each(|node| crate::api::run_node(stream, node))
    }

    pub(crate) fn destroy(&self) -> CuResult {
        if self.expanded.is_empty() && self.context.is_alive() {
            self.context
                .session()
                .send(self.context.id, &CuGraphExecDestroy { exec: self.id })?;
        }
        Ok(())
    }
}
