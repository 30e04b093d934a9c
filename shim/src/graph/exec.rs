//! Executable graphs: sent to the server as a whole, or run node by node where a node touches the program.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use farcall_marshal::record::INLINE_BYTES_MAX;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuGraphExecDestroy, CuGraphInstantiateWithFlags, CuGraphLaunch};
use parking_lot::Mutex;

use super::definition::{Flat, Node, Snapshot, kind};
use super::user_object::References;
use super::{Graph, KernelParts};
use crate::coherent;
use crate::context::Context;
use crate::hooks::Callback;
use crate::memory;
use crate::stream::Stream;

/// `CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`.
const AUTO_FREE: u64 = 1;

/// An instantiated graph.
pub(crate) struct GraphExec {
    context: &'static Context,
    pub(crate) flags: u64,
    /// `cuGraphExecGetId`.
    pub(crate) id: u32,
    /// What a launch sends: the graph's number on the server. 0 = look at the state.
    ready: AtomicU64,
    state: Mutex<State>,
    references: References,
}

struct State {
    snapshot: Snapshot,
    disabled: HashSet<(u64, usize)>,
    /// Whether the snapshot was changed after it was prepared.
    is_stale: bool,
    /// Its number on the server; 0 = not there.
    sent: u64,
    /// Nodes that the client runs itself; empty where the server has the graph.
    expanded: Vec<Node>,
}

/// `CUgraphExecUpdateResult`, and the position of the node that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) result: u32,
    pub(crate) node: Option<usize>,
}

impl GraphExec {
    /// Takes the graph as it is now and sends it.
    ///
    /// # Errors
    /// `INVALID_VALUE`: the edges make a circle.
    pub(crate) fn instantiate(
        context: &'static Context,
        graph: &Graph,
        flags: u64,
    ) -> CuResult<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let references = References::default();
        for (object, count) in graph.references.list() {
            object.retain(count)?;
            references.add(object, count);
        }
        let exec = Self {
            context,
            flags,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            ready: AtomicU64::new(0),
            state: Mutex::new(State {
                snapshot: graph.snapshot()?,
                disabled: HashSet::new(),
                is_stale: true,
                sent: 0,
                expanded: Vec::new(),
            }),
            references,
        };
        exec.prepare(&mut exec.state.lock())?;
        Ok(exec)
    }

    pub(crate) fn launch(&self, stream: &Arc<Stream>) -> CuResult {
        let ready = self.ready.load(Ordering::Acquire);
        if ready != 0 && stream.capturing()?.is_none() {
            let _sending = coherent::before_graph(stream)?;
            return stream.issue(&CuGraphLaunch {
                exec: ready,
                stream: stream.id,
            });
        }
        self.launch_slowly(stream)
    }

    /// Sends what a launch needs, if it was changed.
    pub(crate) fn upload(&self) -> CuResult {
        self.prepare(&mut self.state.lock())
    }

    /// Changes a node.
    ///
    /// # Errors
    /// `INVALID_VALUE`: it is not in this graph; else as `change`.
    pub(crate) fn change(
        &self,
        graph: u64,
        index: usize,
        change: impl FnOnce(&mut Node) -> CuResult,
    ) -> CuResult {
        let mut state = self.state.lock();
        let inner = state.snapshot.find(graph).ok_or(CuStatus::INVALID_VALUE)?;
        let node = inner.definition.nodes.get_mut(index);
        change(node.ok_or(CuStatus::INVALID_VALUE)?)?;
        self.spoil(&mut state);
        Ok(())
    }

    /// Gives a child node another graph of the same shape.
    ///
    /// # Errors
    /// `INVALID_VALUE`: no such node, or another shape.
    pub(crate) fn change_child(&self, graph: u64, index: usize, child: &Graph) -> CuResult {
        let mut state = self.state.lock();
        let inner = state.snapshot.find(graph).ok_or(CuStatus::INVALID_VALUE)?;
        let old = inner.children.get_mut(&index);
        let old = old.ok_or(CuStatus::INVALID_VALUE)?;
        let mut new = child.snapshot()?;
        if compare(old, &new).is_some() {
            return Err(CuStatus::INVALID_VALUE);
        }
        new.graph = old.graph;
        *old = new;
        self.spoil(&mut state);
        Ok(())
    }

    /// Whether a kernel, memset or copy node runs.
    pub(crate) fn is_enabled(&self, graph: u64, index: usize) -> CuResult<bool> {
        let mut state = self.state.lock();
        state.check_switch(graph, index)?;
        Ok(!state.disabled.contains(&(graph, index)))
    }

    /// Switches a kernel, memset or copy node on or off.
    pub(crate) fn enable(&self, graph: u64, index: usize, is_enabled: bool) -> CuResult {
        let mut state = self.state.lock();
        state.check_switch(graph, index)?;
        if is_enabled {
            state.disabled.remove(&(graph, index));
        } else {
            state.disabled.insert((graph, index));
        }
        self.spoil(&mut state);
        Ok(())
    }

    /// Takes over the parameters of a graph of the same shape; what differs if it has another.
    pub(crate) fn update(&self, graph: &Graph) -> CuResult<Option<Difference>> {
        let mut new = graph.snapshot()?;
        let mut state = self.state.lock();
        if let Some(difference) = compare(&state.snapshot, &new) {
            return Ok(Some(difference));
        }
        rename(&state.snapshot, &mut new);
        state.snapshot = new;
        self.spoil(&mut state);
        Ok(None)
    }

    pub(crate) fn destroy(&self) -> CuResult {
        let sent = std::mem::take(&mut self.state.lock().sent);
        if !self.context.is_alive() {
            return Ok(());
        }
        if sent != 0 {
            self.context
                .session()
                .send(self.context.id, &CuGraphExecDestroy { exec: sent })?;
        }
        if self.references.is_empty() {
            return Ok(());
        }
        // Objects live until the launches that may use them have run.
        for object in self.references.clear() {
            let callback = Callback::HostFunction {
                function: object.destroy,
                user_data: object.object,
            };
            crate::api::call_back(self.context.legacy(), callback)?;
        }
        Ok(())
    }

    fn spoil(&self, state: &mut State) {
        state.is_stale = true;
        self.ready.store(0, Ordering::Release);
    }

    #[cold]
    fn launch_slowly(&self, stream: &Arc<Stream>) -> CuResult {
        let mut state = self.state.lock();
        self.prepare(&mut state)?;
        if let Some(capture) = stream.capturing()? {
            let nodes = state.snapshot.flatten(&state.disabled)?.nodes;
            return nodes
                .into_iter()
                .try_for_each(|node| capture.add(stream.id, node));
        }
        if state.expanded.is_empty() {
            let exec = state.sent;
            drop(state);
            let _sending = coherent::before_graph(stream)?;
            return stream.issue(&CuGraphLaunch {
                exec,
                stream: stream.id,
            });
        }
        self.check_memory(&state, stream)?;
        let _sending = coherent::before_graph(stream)?;
        let nodes = state.expanded.clone();
        drop(state);
        nodes
            .iter()
            .try_for_each(|node| crate::api::run_node(stream, node))
    }

    /// Memory that an earlier launch allocated and nothing has freed: freed now if that was asked for.
    fn check_memory(&self, state: &State, stream: &Stream) -> CuResult {
        for node in &state.expanded {
            if let Node::Alloc(memory) = node
                && memory.is_live()
            {
                if self.flags & AUTO_FREE == 0 {
                    return Err(CuStatus::INVALID_VALUE);
                }
                memory.free(stream)?;
            }
        }
        Ok(())
    }

    fn prepare(&self, state: &mut State) -> CuResult {
        if !state.is_stale {
            return Ok(());
        }
        let mut flat = state.snapshot.flatten(&state.disabled)?;
        for node in &mut flat.nodes {
            crate::api::lower(self.context, node)?;
        }
        let old = std::mem::take(&mut state.sent);
        if flat.nodes.iter().any(Node::needs_client) {
            state.expanded = flat.nodes;
        } else {
            state.expanded = Vec::new();
            state.sent = self.send(&flat)?;
        }
        if old != 0 {
            self.context
                .session()
                .send(self.context.id, &CuGraphExecDestroy { exec: old })?;
        }
        state.is_stale = false;
        self.ready.store(state.sent, Ordering::Release);
        Ok(())
    }

    fn send(&self, flat: &Flat) -> CuResult<u64> {
        let session = self.context.session();
        let exec = session.new_id();
        let mut data = Vec::new();
        for node in &flat.nodes {
            if let Node::Record(bytes) = node {
                data.extend_from_slice(bytes);
            }
        }
        let node_bytes = data.len() as u64;
        for (from, to) in &flat.edges {
            data.extend_from_slice(&from.to_le_bytes());
            data.extend_from_slice(&to.to_le_bytes());
        }
        let is_inline = data.len() <= INLINE_BYTES_MAX;
        let bulk = if is_inline { 0 } else { session.new_id() };
        let record = CuGraphInstantiateWithFlags {
            exec,
            flags: self.flags,
            node_count: flat.nodes.len() as u64,
            node_bytes,
            edge_count: flat.edges.len() as u64,
            bulk,
            data: if is_inline { &data } else { &[] },
        };
        session.send(self.context.id, &record)?;
        if !is_inline {
            memory::send_bulk(session, bulk, &data)?;
        }
        Ok(exec)
    }
}

impl State {
    /// Only kernels, memsets and copies can be switched off (cuda.h).
    fn check_switch(&mut self, graph: u64, index: usize) -> CuResult {
        let inner = self.snapshot.find(graph).ok_or(CuStatus::INVALID_VALUE)?;
        match inner.definition.nodes.get(index).map(Node::kind) {
            Some(kind::KERNEL | kind::MEMSET | kind::MEMCPY) => Ok(()),
            _ => Err(CuStatus::INVALID_VALUE),
        }
    }
}

/// What keeps one graph from taking over the other's parameters.
fn compare(old: &Snapshot, new: &Snapshot) -> Option<Difference> {
    const TOPOLOGY_CHANGED: u32 = 2;
    const NODE_TYPE_CHANGED: u32 = 3;
    let (before, after) = (&old.definition, &new.definition);
    let is_same: HashSet<_> = before.edges.iter().collect();
    let changed = after.edges.iter().find(|edge| !is_same.contains(edge));
    if before.nodes.len() != after.nodes.len()
        || before.edges.len() != after.edges.len()
        || changed.is_some()
    {
        return Some(Difference {
            result: TOPOLOGY_CHANGED,
            node: changed.map(|(_, to)| *to as usize),
        });
    }
    for (index, (before, after)) in before.nodes.iter().zip(&after.nodes).enumerate() {
        let both_gone = matches!(before, Node::Gone) == matches!(after, Node::Gone);
        if before.kind() != after.kind() || !both_gone {
            return Some(Difference {
                result: NODE_TYPE_CHANGED,
                node: Some(index),
            });
        }
    }
    let children = old.children.iter();
    let mut pairs = children.filter_map(|(at, child)| Some((at, child, new.children.get(at)?)));
    pairs.find_map(|(at, before, after)| {
        compare(before, after).map(|difference| Difference {
            node: Some(*at),
            ..difference
        })
    })
}

/// The program goes on naming nodes of the graph that was instantiated.
fn rename(old: &Snapshot, new: &mut Snapshot) {
    new.graph = old.graph;
    for (at, child) in &mut new.children {
        if let Some(old) = old.children.get(at) {
            rename(old, child);
        }
    }
}

impl Node {
    /// The launch that it is.
    ///
    /// # Errors
    /// `INVALID_VALUE`: it is none.
    pub(crate) fn as_kernel(&self) -> CuResult<KernelParts> {
        match self {
            Self::Record(bytes) => KernelParts::of(bytes),
            _ => Err(CuStatus::INVALID_VALUE),
        }
    }
}
