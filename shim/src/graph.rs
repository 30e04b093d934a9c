//! Graphs: what the program builds or captures. All of it is client memory, so building sends nothing and every question
//! about a graph is answered here.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use crate::process::process;

mod definition;
mod exec;
mod kernel;
mod memory;
mod user_object;

pub(crate) use definition::{Definition, Node, Snapshot, kind};
pub(crate) use exec::GraphExec;
pub(crate) use kernel::KernelParts;
pub(crate) use memory::{GraphMemory, find as find_memory};
pub(crate) use user_object::{References, UserObject};

/// A graph that the program holds.
pub(crate) struct Graph {
    pub(crate) handle: u64,
    /// `cuGraphGetId`.
    pub(crate) id: u32,
    pub(crate) definition: Mutex<Definition>,
    /// Handle of the graph that it was cloned from; 0 = none.
    pub(crate) origin: u64,
    /// Whether it belongs to a node of another graph, which destroys it.
    pub(crate) is_owned: bool,
    pub(crate) references: References,
    /// Handles of the nodes, in their order, as far as they were asked for.
    node_handles: Mutex<Vec<u64>>,
}

/// What a node handle names.
pub(crate) struct GraphNode {
    pub(crate) graph: u64,
    pub(crate) index: usize,
    /// Parameters as they were last told to the program, which looks at them in place.
    pub(crate) told: Mutex<Told>,
}

/// Values of kernel parameters and the pointers to them.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) values: Vec<u64>,
    pub(crate) pointers: Vec<u64>,
}

impl Graph {
    /// A graph without nodes, known to the program by its handle.
    pub(crate) fn create() -> CuResult<Arc<Self>> {
        Self::with(Definition::default(), 0, false)
    }

    fn with(definition: Definition, origin: u64, is_owned: bool) -> CuResult<Arc<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let graphs = &process()?.graphs;
        let handle = graphs.reserve();
        let graph = Arc::new(Self {
            handle,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            definition: Mutex::new(definition),
            origin,
            is_owned,
            references: References::default(),
            node_handles: Mutex::default(),
        });
        graphs.insert(handle, Arc::clone(&graph));
        Ok(graph)
    }

    /// Handle of the node at a position.
    pub(crate) fn node(&self, index: usize) -> CuResult<u64> {
        let table = &process()?.graph_nodes;
        let mut handles = self.node_handles.lock();
        for index in handles.len()..=index {
            let handle = table.reserve();
            let node = GraphNode {
                graph: self.handle,
                index,
                told: Mutex::default(),
            };
            table.insert(handle, Arc::new(node));
            handles.push(handle);
        }
        handles.get(index).copied().ok_or(CuStatus::INVALID_VALUE)
    }

    /// Position of a node of this graph.
    ///
    /// # Errors
    /// `INVALID_VALUE`: another graph's, or destroyed.
    pub(crate) fn position(&self, node: u64) -> CuResult<u32> {
        let node = process()?.graph_nodes.get(node);
        let node = node.map_err(|_| CuStatus::INVALID_VALUE)?;
        if node.graph != self.handle {
            return Err(CuStatus::INVALID_VALUE);
        }
        u32::try_from(node.index).map_err(|_| CuStatus::INVALID_VALUE)
    }

    /// Takes a node out.
    pub(crate) fn destroy_node(&self, index: usize, handle: u64) -> CuResult {
        let child = match self.definition.lock().nodes.get(index) {
            Some(Node::Child(child)) => Some(*child),
            _ => None,
        };
        self.definition.lock().destroy(index);
        process()?.graph_nodes.remove(handle)?;
        child.map_or(Ok(()), forget)
    }

    /// The graph as it is now, child graphs included.
    pub(crate) fn snapshot(&self) -> CuResult<Snapshot> {
        let definition = self.definition.lock().clone();
        let mut children = HashMap::new();
        for (index, node) in definition.nodes.iter().enumerate() {
            if let Node::Child(child) = node {
                children.insert(index, process()?.graphs.get(*child)?.snapshot()?);
            }
        }
        Ok(Snapshot {
            graph: self.handle,
            definition,
            children,
        })
    }

    /// A copy with nodes of its own. `is_owned`: for a node of another graph.
    ///
    /// # Errors
    /// `NOT_SUPPORTED`: it allocates or frees memory (cuda.h).
    pub(crate) fn copy(&self, is_owned: bool) -> CuResult<Arc<Self>> {
        let mut definition = self.definition.lock().clone();
        for node in &mut definition.nodes {
            match node {
                Node::Alloc(_) | Node::Free(_) => return Err(CuStatus::NOT_SUPPORTED),
                Node::Child(child) => {
                    let copy = process()?.graphs.get(*child)?.copy(true)?;
                    *child = copy.handle;
                }
                _ => {}
            }
        }
        let copy = Self::with(definition, self.handle, is_owned)?;
        for (object, count) in self.references.list() {
            object.retain(count)?;
            copy.references.add(object, count);
        }
        Ok(copy)
    }
}

/// Forgets a graph, its nodes and the graphs that belong to them.
pub(crate) fn forget(handle: u64) -> CuResult {
    let process = process()?;
    let graph = process.graphs.remove(handle)?;
    for node in graph.node_handles.lock().drain(..) {
        let _ = process.graph_nodes.remove(node);
    }
    for object in graph.references.clear() {
        crate::ptr::call_host_function(object.destroy, object.object);
    }
    let children: Vec<u64> = graph
        .definition
        .lock()
        .nodes
        .iter()
        .filter_map(|node| match node {
            Node::Child(child) => Some(*child),
            _ => None,
        })
        .collect();
    children.into_iter().try_for_each(forget)
}
