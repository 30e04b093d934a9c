//! Graphs: definitions are client memory, executables are sent one way.
#![forbid(unsafe_code)]

use std::ffi::c_char;
use std::sync::Arc;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::record;
use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use super::{stream, to_device, to_host};
use crate::abi::CUDA_GRAPH_INSTANTIATE_PARAMS;
use crate::capture::{Graph, GraphExec, GraphNode, Node};
use crate::context;
use crate::hooks::Callback;
use crate::process::process;
use crate::ptr::Out;
use crate::stream::Stream;

/// Flags of an instantiation that change nothing here: free on launch, upload, device launch, node priority.
const INSTANTIATE_FLAGS: u64 = 15;

pub(crate) fn cuGraphCreate(place: Out<u64>, flags: u32) -> CuResult {
    if flags != 0 || place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    let graphs = &process()?.graphs;
    let handle = graphs.reserve();
    graphs.insert(
        handle,
        Arc::new(Graph {
            definition: Mutex::default(),
            node_handles: Mutex::default(),
        }),
    );
    place.set(handle)
}

pub(crate) fn cuGraphDestroy(handle: u64) -> CuResult {
    let process = process()?;
    let graph = process.graphs.remove(handle)?;
    for node in graph.node_handles.lock().drain(..) {
        let _ = process.graph_nodes.remove(node);
    }
    Ok(())
}

/// Handles of some nodes, with cuda.h's way of asking for the count first.
fn list_nodes(
    handle: u64,
    places: Out<u64>,
    count: Out<usize>,
    wanted: impl Fn(&Graph) -> Vec<usize>,
) -> CuResult {
    let process = process()?;
    let graph = process.graphs.get(handle)?;
    let indices = wanted(&graph);
    if places.is_null() {
        return count.set(indices.len());
    }
    let capacity = count.get()?;
    let mut handles = graph.node_handles.lock();
    for index in handles.len()..graph.definition.lock().nodes.len() {
        let node = process.graph_nodes.reserve();
        process.graph_nodes.insert(
            node,
            Arc::new(GraphNode {
                graph: handle,
                index,
            }),
        );
        handles.push(node);
    }
    for slot in 0..capacity {
        // Entries past the end are set to null (cuda.h).
        let node = indices
            .get(slot)
            .and_then(|index| handles.get(*index))
            .copied()
            .unwrap_or(0);
        places.set_at(slot, node);
    }
    count.set(indices.len().min(capacity))
}

pub(crate) fn cuGraphGetNodes(handle: u64, places: Out<u64>, count: Out<usize>) -> CuResult {
    list_nodes(handle, places, count, |graph| {
        (0..graph.definition.lock().nodes.len()).collect()
    })
}

pub(crate) fn cuGraphGetRootNodes(handle: u64, places: Out<u64>, count: Out<usize>) -> CuResult {
    list_nodes(handle, places, count, |graph| {
        graph.definition.lock().roots()
    })
}

pub(crate) fn cuGraphNodeGetType(handle: u64, kind: Out<u32>) -> CuResult {
    let process = process()?;
    let node = process.graph_nodes.get(handle)?;
    let graph = process.graphs.get(node.graph)?;
    let definition = graph.definition.lock();
    kind.set(
        definition
            .nodes
            .get(node.index)
            .ok_or(CuStatus::INVALID_HANDLE)?
            .kind(),
    )
}

fn instantiate(place: Out<u64>, handle: u64, flags: u64) -> CuResult {
    if place.is_null() || flags & !INSTANTIATE_FLAGS != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let process = process()?;
    let graph = process.graphs.get(handle)?;
    let exec = GraphExec::instantiate(context::current()?, &graph.definition.lock(), flags)?;
    let exec_handle = process.graph_execs.reserve();
    process.graph_execs.insert(exec_handle, Arc::new(exec));
    place.set(exec_handle)
}

pub(crate) fn cuGraphInstantiateWithFlags(place: Out<u64>, handle: u64, flags: u64) -> CuResult {
    instantiate(place, handle, flags)
}

pub(crate) fn cuGraphInstantiate_v2(
    place: Out<u64>,
    handle: u64,
    error_node: Out<u64>,
    log: Out<c_char>,
    log_bytes: usize,
) -> CuResult {
    error_node.set_if(0);
    if log_bytes > 0 {
        log.set_if(0);
    }
    instantiate(place, handle, 0)
}

pub(crate) fn cuGraphInstantiateWithParams(
    mode: StreamMode,
    place: Out<u64>,
    handle: u64,
    params: Out<CUDA_GRAPH_INSTANTIATE_PARAMS>,
) -> CuResult {
    let _ = mode;
    let mut values = params.get()?;
    let result = instantiate(place, handle, values.flags);
    values.hErrNode_out = 0;
    values.result_out = u32::from(result.is_err());
    params.set(values)?;
    result
}

pub(crate) fn cuGraphLaunch(mode: StreamMode, handle: u64, stream_handle: u64) -> CuResult {
    let exec = process()?.graph_execs.get(handle)?;
    exec.launch(&stream(mode, stream_handle)?)
}

/// The server has the graph since it was instantiated.
pub(crate) fn cuGraphUpload(mode: StreamMode, handle: u64, stream_handle: u64) -> CuResult {
    process()?.graph_execs.get(handle)?;
    stream(mode, stream_handle).map(|_| ())
}

pub(crate) fn cuGraphExecDestroy(handle: u64) -> CuResult {
    process()?.graph_execs.remove(handle)?.destroy()
}

/// Runs one node of a graph that touches the program.
pub(crate) fn run_node(stream: &Stream, node: &Node) -> CuResult {
    match node {
        Node::Record(bytes) => {
            let moved = record::with_stream(bytes, stream.id).ok_or(CuStatus::UNKNOWN)?;
            stream.issue_encoded(&moved)
        }
        Node::FromHost { to, from, len } => to_device(stream, *to, *from, *len),
        // What lands in pageable memory may land late too: the program synchronizes before it looks.
        Node::ToHost { to, from, len } => to_host(stream, *to, *from, *len, true),
        Node::HostFunction {
            function,
            user_data,
        } => super::call_back(
            stream,
            Callback::HostFunction {
                function: *function,
                user_data: *user_data,
            },
        ),
    }
}
