//! Questions about the shape of a graph, and changes of it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::graph;
use crate::abi::CUgraphEdgeData;
use crate::graph::{Graph, GraphNode, Node};
use crate::process::process;
use crate::ptr::{HostPtr, In, Out};

/// A node, and the graph that it is in.
pub(crate) fn node(handle: u64) -> CuResult<(Arc<GraphNode>, Arc<Graph>)> {
    let node = process()?
        .graph_nodes
        .get(handle)
        .map_err(|_| CuStatus::INVALID_VALUE)?;
    let graph = graph(node.graph)?;
    Ok((node, graph))
}

/// Handles of some nodes, with cuda.h's way of asking for the count first. Entries past the end are set to null.
fn list(graph: &Graph, places: Out<u64>, count: Out<usize>, indices: &[usize]) -> CuResult {
    if places.is_null() {
        return count.set(indices.len());
    }
    let capacity = count.get()?;
    for slot in 0..capacity {
        let node = match indices.get(slot) {
            Some(index) => graph.node(*index)?,
            None => 0,
        };
        places.set_at(slot, node);
    }
    count.set(indices.len().min(capacity))
}

pub(crate) fn cuGraphGetNodes(handle: u64, places: Out<u64>, count: Out<usize>) -> CuResult {
    let graph = graph(handle)?;
    let indices = graph.definition.lock().living();
    list(&graph, places, count, &indices)
}

pub(crate) fn cuGraphGetRootNodes(handle: u64, places: Out<u64>, count: Out<usize>) -> CuResult {
    let graph = graph(handle)?;
    let indices = graph.definition.lock().roots();
    list(&graph, places, count, &indices)
}

pub(crate) fn cuGraphNodeGetType(handle: u64, kind: Out<u32>) -> CuResult {
    let (node, graph) = node(handle)?;
    let definition = graph.definition.lock();
    let node = definition.nodes.get(node.index);
    kind.set(node.ok_or(CuStatus::INVALID_VALUE)?.kind())
}

pub(crate) fn cuGraphNodeGetContainingGraph(handle: u64, place: Out<u64>) -> CuResult {
    place.set(node(handle)?.0.graph)
}

pub(crate) fn cuGraphNodeGetLocalId(handle: u64, place: Out<u32>) -> CuResult {
    place.set(u32::try_from(node(handle)?.0.index).unwrap_or(u32::MAX))
}

/// A number of its own for every node.
pub(crate) fn cuGraphNodeGetToolsId(handle: u64, place: Out<u64>) -> CuResult {
    node(handle)?;
    place.set(handle)
}

pub(crate) fn cuGraphNodeFindInClone(place: Out<u64>, original: u64, clone: u64) -> CuResult {
    let (node, _) = node(original)?;
    let clone = graph(clone)?;
    let has_it = clone.origin == node.graph
        && matches!(
            clone.definition.lock().nodes.get(node.index),
            Some(copy) if !matches!(copy, Node::Gone)
        );
    if !has_it {
        return Err(CuStatus::INVALID_VALUE);
    }
    place.set(clone.node(node.index)?)
}

pub(crate) fn cuGraphDestroyNode(handle: u64) -> CuResult {
    let (node, graph) = node(handle)?;
    let is_memory = matches!(
        graph.definition.lock().nodes.get(node.index),
        Some(Node::Alloc(_) | Node::Free(_))
    );
    if is_memory {
        // cuda.h: nodes of memory cannot be destroyed.
        return Err(CuStatus::NOT_SUPPORTED);
    }
    graph.destroy_node(node.index, handle)
}

/// No edge data.
fn no_data<T: Copy>() -> Out<T> {
    HostPtr::from_address(0).out()
}

pub(crate) fn cuGraphGetEdges(
    handle: u64,
    from: Out<u64>,
    to: Out<u64>,
    count: Out<usize>,
) -> CuResult {
    cuGraphGetEdges_v2(handle, from, to, no_data(), count)
}

pub(crate) fn cuGraphGetEdges_v2(
    handle: u64,
    from: Out<u64>,
    to: Out<u64>,
    data: Out<CUgraphEdgeData>,
    count: Out<usize>,
) -> CuResult {
    let graph = graph(handle)?;
    let (edges, known) = {
        let definition = graph.definition.lock();
        (definition.edges.clone(), definition.edge_data.clone())
    };
    if from.is_null() && to.is_null() {
        return count.set(edges.len());
    }
    if from.is_null() || to.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    if data.is_null() && !known.is_empty() {
        return Err(CuStatus::LOSSY_QUERY);
    }
    let capacity = count.get()?;
    for slot in 0..capacity {
        let edge = edges.get(slot);
        let (first, second) = match edge {
            Some((from, to)) => (graph.node(*from as usize)?, graph.node(*to as usize)?),
            None => (0, 0),
        };
        from.set_at(slot, first);
        to.set_at(slot, second);
        let bytes = edge.and_then(|edge| known.get(edge)).copied();
        data.set_at(slot, CUgraphEdgeData::of(bytes.unwrap_or_default()));
    }
    count.set(edges.len().min(capacity))
}

/// Which end of an edge is asked for.
#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

fn neighbours(
    handle: u64,
    side: Side,
    places: Out<u64>,
    data: Out<CUgraphEdgeData>,
    count: Out<usize>,
) -> CuResult {
    let (node, graph) = node(handle)?;
    let (edges, known) = {
        let definition = graph.definition.lock();
        let own = |(from, to): &&(u32, u32)| match side {
            Side::Before => *to as usize == node.index,
            Side::After => *from as usize == node.index,
        };
        let edges: Vec<(u32, u32)> = definition.edges.iter().filter(own).copied().collect();
        (edges, definition.edge_data.clone())
    };
    if !places.is_null() {
        let capacity = count.get()?;
        let of_these = |edge: &(u32, u32)| known.contains_key(edge);
        if data.is_null() && edges.iter().any(of_these) {
            return Err(CuStatus::LOSSY_QUERY);
        }
        for slot in 0..capacity {
            let bytes = edges.get(slot).and_then(|edge| known.get(edge)).copied();
            data.set_at(slot, CUgraphEdgeData::of(bytes.unwrap_or_default()));
        }
    }
    let others: Vec<usize> = edges
        .iter()
        .map(|(from, to)| match side {
            Side::Before => *from as usize,
            Side::After => *to as usize,
        })
        .collect();
    list(&graph, places, count, &others)
}

pub(crate) fn cuGraphNodeGetDependencies(
    handle: u64,
    places: Out<u64>,
    count: Out<usize>,
) -> CuResult {
    neighbours(handle, Side::Before, places, no_data(), count)
}

pub(crate) fn cuGraphNodeGetDependencies_v2(
    handle: u64,
    places: Out<u64>,
    data: Out<CUgraphEdgeData>,
    count: Out<usize>,
) -> CuResult {
    neighbours(handle, Side::Before, places, data, count)
}

pub(crate) fn cuGraphNodeGetDependentNodes(
    handle: u64,
    places: Out<u64>,
    count: Out<usize>,
) -> CuResult {
    neighbours(handle, Side::After, places, no_data(), count)
}

pub(crate) fn cuGraphNodeGetDependentNodes_v2(
    handle: u64,
    places: Out<u64>,
    data: Out<CUgraphEdgeData>,
    count: Out<usize>,
) -> CuResult {
    neighbours(handle, Side::After, places, data, count)
}

/// An edge by positions, and its data.
type Edge = ((u32, u32), [u8; 8]);

/// Edges that the program names.
fn named(
    graph: &Graph,
    from: In<u64>,
    to: In<u64>,
    data: In<CUgraphEdgeData>,
    count: usize,
) -> CuResult<Vec<Edge>> {
    (0..count)
        .map(|slot| {
            let edge = (
                graph.position(from.get_at(slot)?)?,
                graph.position(to.get_at(slot)?)?,
            );
            let data = if data.is_null() {
                [0; 8]
            } else {
                data.get_at(slot)?.checked()?
            };
            Ok((edge, data))
        })
        .collect()
}

pub(crate) fn cuGraphAddDependencies(
    handle: u64,
    from: In<u64>,
    to: In<u64>,
    count: usize,
) -> CuResult {
    cuGraphAddDependencies_v2(handle, from, to, HostPtr::from_address(0).input(), count)
}

pub(crate) fn cuGraphAddDependencies_v2(
    handle: u64,
    from: In<u64>,
    to: In<u64>,
    data: In<CUgraphEdgeData>,
    count: usize,
) -> CuResult {
    let graph = graph(handle)?;
    let edges = named(&graph, from, to, data, count)?;
    let mut definition = graph.definition.lock();
    let is_bad = |((from, to), _): &Edge| from == to || definition.edges.contains(&(*from, *to));
    if edges.iter().any(is_bad) {
        return Err(CuStatus::INVALID_VALUE);
    }
    for (edge, data) in edges {
        definition.edges.push(edge);
        if data != [0; 8] {
            definition.edge_data.insert(edge, data);
        }
    }
    Ok(())
}

pub(crate) fn cuGraphRemoveDependencies(
    handle: u64,
    from: In<u64>,
    to: In<u64>,
    count: usize,
) -> CuResult {
    cuGraphRemoveDependencies_v2(handle, from, to, HostPtr::from_address(0).input(), count)
}

pub(crate) fn cuGraphRemoveDependencies_v2(
    handle: u64,
    from: In<u64>,
    to: In<u64>,
    data: In<CUgraphEdgeData>,
    count: usize,
) -> CuResult {
    let graph = graph(handle)?;
    let edges = named(&graph, from, to, data, count)?;
    let mut definition = graph.definition.lock();
    if edges
        .iter()
        .any(|(edge, _)| !definition.edges.contains(edge))
    {
        return Err(CuStatus::INVALID_VALUE);
    }
    for (edge, _) in edges {
        definition.edges.retain(|known| *known != edge);
        definition.edge_data.remove(&edge);
    }
    Ok(())
}
