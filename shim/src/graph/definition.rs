//! What a graph is made of: nodes, the edges between them, and the order that they allow.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use farcall_marshal::record;
use farcall_marshal::status::{CuResult, CuStatus};

use super::memory::GraphMemory;
use crate::abi::CUDA_MEMCPY3D;
use crate::event::Event;
use crate::ptr::HostPtr;

/// One node of a graph.
#[derive(Clone)]
pub(crate) enum Node {
    /// A stream operation as it would travel.
    Record(Vec<u8>),
    /// A copy from host memory, whose bytes are those of the launch, not of the capture.
    FromHost {
        to: u64,
        from: HostPtr,
        len: usize,
    },
    /// A copy to host memory.
    ToHost {
        to: HostPtr,
        from: u64,
        len: usize,
    },
    /// A copy of a box, as the program described it.
    Copy(Box<CUDA_MEMCPY3D>),
    /// A host function.
    HostFunction {
        function: usize,
        user_data: u64,
    },
    /// Only joins others.
    Empty,
    /// The graph with this handle, which belongs to the node.
    Child(u64),
    EventRecord(Arc<Event>),
    EventWait(Arc<Event>),
    Alloc(Arc<GraphMemory>),
    Free(u64),
    /// Destroyed by the program.
    Gone,
}

/// `CUgraphNodeType`.
pub(crate) mod kind {
    pub(crate) const KERNEL: u32 = 0;
    pub(crate) const MEMCPY: u32 = 1;
    pub(crate) const MEMSET: u32 = 2;
    pub(crate) const HOST: u32 = 3;
    pub(crate) const GRAPH: u32 = 4;
    pub(crate) const EMPTY: u32 = 5;
    pub(crate) const WAIT_EVENT: u32 = 6;
    pub(crate) const EVENT_RECORD: u32 = 7;
    pub(crate) const MEM_ALLOC: u32 = 10;
    pub(crate) const MEM_FREE: u32 = 11;
}

impl Node {
    /// `CUgraphNodeType`.
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Self::FromHost { .. } | Self::ToHost { .. } | Self::Copy(_) => kind::MEMCPY,
            Self::HostFunction { .. } => kind::HOST,
            Self::Empty | Self::Gone => kind::EMPTY,
            Self::Child(_) => kind::GRAPH,
            Self::EventRecord(_) => kind::EVENT_RECORD,
            Self::EventWait(_) => kind::WAIT_EVENT,
            Self::Alloc(_) => kind::MEM_ALLOC,
            Self::Free(_) => kind::MEM_FREE,
            Self::Record(bytes) => {
                let symbol = record::split(bytes)
                    .ok()
                    .and_then(|(head, ..)| farcall_marshal::catalogue::call(head.number))
                    .map_or("", |call| call.symbol);
                match symbol {
                    s if s.starts_with("cuLaunchKernel") => kind::KERNEL,
                    s if s.starts_with("cuMemset") => kind::MEMSET,
                    _ => kind::MEMCPY,
                }
            }
        }
    }

    /// Whether only the client can run it, because it touches host memory, calls the program or changes what the
    /// client knows.
    pub(crate) fn needs_client(&self) -> bool {
        !matches!(self, Self::Record(_) | Self::Empty | Self::Gone)
    }
}

/// Nodes and the edges between them, by position.
#[derive(Clone, Default)]
pub(crate) struct Definition {
    pub(crate) nodes: Vec<Node>,
    pub(crate) edges: Vec<(u32, u32)>,
    /// Edges that carry data (`CUgraphEdgeData`), which change nothing here.
    pub(crate) edge_data: HashMap<(u32, u32), [u8; 8]>,
}

impl Definition {
    pub(crate) fn add(&mut self, node: Node, after: &[u32]) -> u32 {
        let index = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(node);
        for from in after {
            if !self.edges.contains_tail(*from, index) {
                self.edges.push((*from, index));
            }
        }
        index
    }

    /// Positions of the nodes that there are.
    pub(crate) fn living(&self) -> Vec<usize> {
        let is_living =
            |(index, node): (usize, &Node)| (!matches!(node, Node::Gone)).then_some(index);
        self.nodes
            .iter()
            .enumerate()
            .filter_map(is_living)
            .collect()
    }

    /// Nodes that depend on no other.
    pub(crate) fn roots(&self) -> Vec<usize> {
        let behind: HashSet<u32> = self.edges.iter().map(|(_, to)| *to).collect();
        let mut roots = self.living();
        roots.retain(|index| !behind.contains(&u32::try_from(*index).unwrap_or(u32::MAX)));
        roots
    }

    /// Takes a node and its edges out; the positions of the others stay.
    pub(crate) fn destroy(&mut self, index: usize) {
        if let Some(node) = self.nodes.get_mut(index) {
            *node = Node::Gone;
        }
        self.edges
            .retain(|(from, to)| *from as usize != index && *to as usize != index);
        self.edge_data
            .retain(|(from, to), _| *from as usize != index && *to as usize != index);
    }

    /// Positions in an order that the edges allow.
    ///
    /// # Errors
    /// `INVALID_VALUE`: the edges make a circle.
    pub(crate) fn order(&self) -> CuResult<Vec<usize>> {
        let count = self.nodes.len();
        if self.edges.iter().all(|(from, to)| from < to) {
            return Ok((0..count).collect());
        }
        let mut missing = vec![0_usize; count];
        for (_, to) in &self.edges {
            if let Some(missing) = missing.get_mut(*to as usize) {
                *missing += 1;
            }
        }
        let next = self.neighbours(|(from, to)| (from, to));
        let mut order: Vec<usize> = (0..count)
            .filter(|at| missing.get(*at) == Some(&0))
            .collect();
        let mut at = 0;
        while let Some(index) = order.get(at).copied() {
            at += 1;
            for to in next.get(index).into_iter().flatten() {
                if let Some(missing) = missing.get_mut(*to as usize) {
                    *missing -= 1;
                    if *missing == 0 {
                        order.push(*to as usize);
                    }
                }
            }
        }
        if order.len() == count {
            Ok(order)
        } else {
            Err(CuStatus::INVALID_VALUE)
        }
    }

    /// Per node those that an edge leads to or from.
    fn neighbours(&self, turn: impl Fn((u32, u32)) -> (u32, u32)) -> Vec<Vec<u32>> {
        let mut lists = vec![Vec::new(); self.nodes.len()];
        for edge in &self.edges {
            let (at, other) = turn(*edge);
            if let Some(list) = lists.get_mut(at as usize) {
                list.push(other);
            }
        }
        lists
    }
}

/// Looks for an edge among the last ones, where a node that is just being added has its own.
trait ContainsTail {
    fn contains_tail(&self, from: u32, to: u32) -> bool;
}

impl ContainsTail for Vec<(u32, u32)> {
    fn contains_tail(&self, from: u32, to: u32) -> bool {
        self.iter()
            .rev()
            .take_while(|(_, other)| *other == to)
            .any(|(other, _)| *other == from)
    }
}

/// A graph with all that its nodes contain, as it was at one moment.
#[derive(Clone, Default)]
pub(crate) struct Snapshot {
    /// The graph's handle.
    pub(crate) graph: u64,
    pub(crate) definition: Definition,
    /// Child graphs by the position of their node.
    pub(crate) children: HashMap<usize, Self>,
}

/// Nodes in an order that can be run, without those that do nothing.
#[derive(Default)]
pub(crate) struct Flat {
    pub(crate) nodes: Vec<Node>,
    pub(crate) edges: Vec<(u32, u32)>,
}

impl Snapshot {
    /// The snapshot of the graph with this handle, here or further in.
    pub(crate) fn find(&mut self, graph: u64) -> Option<&mut Self> {
        if self.graph == graph {
            return Some(self);
        }
        self.children
            .values_mut()
            .find_map(|child| child.find(graph))
    }

    /// One list of nodes; those in `disabled` (graph, position) only join others.
    ///
    /// # Errors
    /// `INVALID_VALUE`: the edges make a circle.
    pub(crate) fn flatten(&self, disabled: &HashSet<(u64, usize)>) -> CuResult<Flat> {
        let mut flat = Flat::default();
        self.place(disabled, &[], &mut flat)?;
        Ok(flat)
    }

    /// Adds the nodes behind `before`; the last ones.
    fn place(
        &self,
        disabled: &HashSet<(u64, usize)>,
        before: &[u32],
        flat: &mut Flat,
    ) -> CuResult<Vec<u32>> {
        let definition = &self.definition;
        let behind = definition.neighbours(|(from, to)| (to, from));
        let mut is_last = vec![true; definition.nodes.len()];
        for (from, _) in &definition.edges {
            if let Some(last) = is_last.get_mut(*from as usize) {
                *last = false;
            }
        }
        // Per node the placed nodes that stand for it.
        let mut ends: Vec<Vec<u32>> = vec![Vec::new(); definition.nodes.len()];
        for index in definition.order()? {
            let Some(node) = definition.nodes.get(index) else {
                continue;
            };
            let after = match behind.get(index).map_or(&[][..], Vec::as_slice) {
                [] => before.to_vec(),
                from => union(from.iter().filter_map(|from| ends.get(*from as usize))),
            };
            let end = match node {
                _ if disabled.contains(&(self.graph, index)) => after,
                Node::Empty | Node::Gone => after,
                Node::Child(_) => match self.children.get(&index) {
                    Some(child) => child.place(disabled, &after, flat)?,
                    None => after,
                },
                node => vec![flat.push(node.clone(), &after)],
            };
            if let Some(slot) = ends.get_mut(index) {
                *slot = end;
            }
        }
        let last = ends.iter().zip(&is_last).filter(|(_, last)| **last);
        let ends = union(last.map(|(ends, _)| ends));
        Ok(if definition.nodes.is_empty() {
            before.to_vec()
        } else {
            ends
        })
    }
}

impl Flat {
    fn push(&mut self, node: Node, after: &[u32]) -> u32 {
        let index = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(node);
        self.edges.extend(after.iter().map(|from| (*from, index)));
        index
    }
}

fn union<'a>(lists: impl Iterator<Item = &'a Vec<u32>>) -> Vec<u32> {
    let mut all: Vec<u32> = lists.flatten().copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use super::{Definition, Node, Snapshot};

    fn work() -> Node {
        Node::Free(0)
    }

    fn snapshot(graph: u64, nodes: Vec<Node>, edges: &[(u32, u32)]) -> Snapshot {
        Snapshot {
            graph,
            definition: Definition {
                nodes,
                edges: edges.to_vec(),
                ..Definition::default()
            },
            ..Snapshot::default()
        }
    }

    #[test]
    fn edges_against_the_order_of_creation_decide() {
        let graph = snapshot(1, vec![work(), work(), work()], &[(2, 0), (0, 1)]);
        assert_eq!(graph.definition.order().unwrap(), [2, 0, 1]);
        let flat = graph.flatten(&HashSet::new()).unwrap();
        assert_eq!(flat.edges, [(0, 1), (1, 2)]);
        let circle = snapshot(1, vec![work(), work()], &[(0, 1), (1, 0)]);
        assert!(circle.definition.order().is_err());
    }

    #[test]
    fn what_does_nothing_only_joins() {
        let nodes = vec![work(), work(), Node::Empty, work(), work()];
        let edges = [(0, 2), (1, 2), (2, 3), (3, 4)];
        let graph = snapshot(7, nodes, &edges);
        let flat = graph.flatten(&HashSet::new()).unwrap();
        assert_eq!(flat.nodes.len(), 4);
        assert_eq!(flat.edges, [(0, 2), (1, 2), (2, 3)]);
        let flat = graph.flatten(&HashSet::from([(7, 3)])).unwrap();
        assert_eq!(flat.edges, [(0, 2), (1, 2)], "a disabled node joins too");
    }

    #[test]
    fn a_child_stands_between_what_is_before_and_after_its_node() {
        let mut graph = snapshot(1, vec![work(), Node::Child(2), work()], &[(0, 1), (1, 2)]);
        let child = snapshot(2, vec![work(), work()], &[]);
        graph.children.insert(1, child);
        let flat = graph.flatten(&HashSet::new()).unwrap();
        assert_eq!(flat.edges, [(0, 1), (0, 2), (1, 3), (2, 3)]);
        graph.children.insert(1, snapshot(2, Vec::new(), &[]));
        let flat = graph.flatten(&HashSet::new()).unwrap();
        assert_eq!(flat.edges, [(0, 1)], "an empty child joins too");
    }

    #[test]
    fn a_destroyed_node_leaves_the_others_where_they_are() {
        let mut definition = Definition::default();
        let first = definition.add(work(), &[]);
        let second = definition.add(work(), &[first]);
        definition.add(work(), &[second, second]);
        assert_eq!(definition.edges.len(), 2, "an edge is there once");
        definition.destroy(1);
        assert_eq!(definition.living(), [0, 2]);
        assert_eq!(definition.roots(), [0, 2]);
    }
}
