//! Nodes of graphs that are no device operations: host functions, child graphs, events, memory.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::graph_node::{add, change, change_in, look, plain, replace};
use super::{graph, node};
use crate::abi::{CUDA_HOST_NODE_PARAMS, CUDA_MEM_ALLOC_NODE_PARAMS};
use crate::context;
use crate::event::Event;
use crate::graph::{GraphExec, GraphMemory, Node, find_memory};
use crate::process::process;
use crate::ptr::{In, Out};

pub(super) fn host_node(params: CUDA_HOST_NODE_PARAMS) -> CuResult<Node> {
    let function = usize::try_from(params.function).map_err(|_| CuStatus::INVALID_VALUE)?;
    if function == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    Ok(Node::HostFunction {
        function,
        user_data: params.userData,
    })
}

pub(crate) fn cuGraphAddHostNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    params: In<CUDA_HOST_NODE_PARAMS>,
) -> CuResult {
    let params = params.get()?;
    add(place, handle, after, plain(), count, || host_node(params))
}

pub(super) fn host_params(handle: u64) -> CuResult<CUDA_HOST_NODE_PARAMS> {
    look(handle, |node| match node {
        Node::HostFunction {
            function,
            user_data,
        } => Ok(CUDA_HOST_NODE_PARAMS {
            function: *function as u64,
            userData: *user_data,
        }),
        _ => Err(CuStatus::INVALID_VALUE),
    })
}

pub(crate) fn cuGraphHostNodeGetParams(handle: u64, place: Out<CUDA_HOST_NODE_PARAMS>) -> CuResult {
    place.set(host_params(handle)?)
}

pub(crate) fn cuGraphHostNodeSetParams(handle: u64, params: In<CUDA_HOST_NODE_PARAMS>) -> CuResult {
    let new = host_node(params.get()?)?;
    change(handle, |node| replace(node, new))
}

pub(crate) fn cuGraphExecHostNodeSetParams(
    exec: u64,
    handle: u64,
    params: In<CUDA_HOST_NODE_PARAMS>,
) -> CuResult {
    let new = host_node(params.get()?)?;
    change_in(exec, handle, |node| replace(node, new))
}

// ---- empty nodes and child graphs

pub(crate) fn cuGraphAddEmptyNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
) -> CuResult {
    add(place, handle, after, plain(), count, || Ok(Node::Empty))
}

pub(super) fn child_node(child: u64) -> CuResult<Node> {
    Ok(Node::Child(graph(child)?.copy(true)?.handle))
}

pub(crate) fn cuGraphAddChildGraphNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    child: u64,
) -> CuResult {
    if child == handle {
        return Err(CuStatus::INVALID_VALUE);
    }
    add(place, handle, after, plain(), count, || child_node(child))
}

pub(crate) fn cuGraphChildGraphNodeGetGraph(handle: u64, place: Out<u64>) -> CuResult {
    place.set(look(handle, |node| match node {
        Node::Child(child) => Ok(*child),
        _ => Err(CuStatus::INVALID_VALUE),
    })?)
}

pub(crate) fn cuGraphExecChildGraphNodeSetParams(exec: u64, handle: u64, child: u64) -> CuResult {
    let exec: Arc<GraphExec> = process()?.graph_execs.get(exec)?;
    let node = node(handle)?.0;
    exec.change_child(node.graph, node.index, &*graph(child)?)
}

// ---- events

pub(super) fn event(handle: u64) -> CuResult<Arc<Event>> {
    process()?
        .events
        .get(handle)
        .map_err(|_| CuStatus::INVALID_VALUE)
}

pub(crate) fn cuGraphAddEventRecordNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    event_handle: u64,
) -> CuResult {
    add(place, handle, after, plain(), count, || {
        Ok(Node::EventRecord(event(event_handle)?))
    })
}

pub(crate) fn cuGraphAddEventWaitNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    event_handle: u64,
) -> CuResult {
    add(place, handle, after, plain(), count, || {
        Ok(Node::EventWait(event(event_handle)?))
    })
}

fn event_of(handle: u64, is_record: bool) -> CuResult<u64> {
    let event = look(handle, |node| match node {
        Node::EventRecord(event) if is_record => Ok(Arc::clone(event)),
        Node::EventWait(event) if !is_record => Ok(Arc::clone(event)),
        _ => Err(CuStatus::INVALID_VALUE),
    })?;
    let events = &process()?.events;
    events.handle_of(&event).ok_or(CuStatus::INVALID_HANDLE)
}

pub(crate) fn cuGraphEventRecordNodeGetEvent(handle: u64, place: Out<u64>) -> CuResult {
    place.set(event_of(handle, true)?)
}

pub(crate) fn cuGraphEventWaitNodeGetEvent(handle: u64, place: Out<u64>) -> CuResult {
    place.set(event_of(handle, false)?)
}

pub(crate) fn cuGraphEventRecordNodeSetEvent(handle: u64, event_handle: u64) -> CuResult {
    let new = Node::EventRecord(event(event_handle)?);
    change(handle, |node| replace(node, new))
}

pub(crate) fn cuGraphEventWaitNodeSetEvent(handle: u64, event_handle: u64) -> CuResult {
    let new = Node::EventWait(event(event_handle)?);
    change(handle, |node| replace(node, new))
}

pub(crate) fn cuGraphExecEventRecordNodeSetEvent(
    exec: u64,
    handle: u64,
    event_handle: u64,
) -> CuResult {
    let new = Node::EventRecord(event(event_handle)?);
    change_in(exec, handle, |node| replace(node, new))
}

pub(crate) fn cuGraphExecEventWaitNodeSetEvent(
    exec: u64,
    handle: u64,
    event_handle: u64,
) -> CuResult {
    let new = Node::EventWait(event(event_handle)?);
    change_in(exec, handle, |node| replace(node, new))
}

// ---- memory

pub(super) fn alloc_node(params: &CUDA_MEM_ALLOC_NODE_PARAMS) -> CuResult<(u64, Node)> {
    /// `CU_MEM_LOCATION_TYPE_DEVICE`.
    const DEVICE: u32 = 1;
    let pool = &params.poolProps;
    if pool.location.type_ != DEVICE || pool.handleTypes != 0 || params.bytesize == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let device = process()?.device(pool.location.id)?;
    let memory = GraphMemory::new(context::of_device(device)?, params.bytesize)?;
    Ok((memory.address(), Node::Alloc(memory)))
}

pub(crate) fn cuGraphAddMemAllocNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    params: Out<CUDA_MEM_ALLOC_NODE_PARAMS>,
) -> CuResult {
    let mut values = params.get()?;
    add(place, handle, after, plain(), count, || {
        let (address, node) = alloc_node(&values)?;
        values.dptr = address;
        params.set(values)?;
        Ok(node)
    })
}

pub(super) fn free_node(address: u64) -> CuResult<Node> {
    find_memory(address).ok_or(CuStatus::INVALID_VALUE)?;
    Ok(Node::Free(address))
}

pub(crate) fn cuGraphAddMemFreeNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    address: u64,
) -> CuResult {
    add(place, handle, after, plain(), count, || free_node(address))
}

pub(super) fn alloc_params(handle: u64) -> CuResult<CUDA_MEM_ALLOC_NODE_PARAMS> {
    let memory = look(handle, |node| match node {
        Node::Alloc(memory) => Ok(Arc::clone(memory)),
        _ => Err(CuStatus::INVALID_VALUE),
    })?;
    Ok(CUDA_MEM_ALLOC_NODE_PARAMS::on_device(
        memory.ordinal(),
        memory.bytes,
        memory.address(),
    ))
}

pub(crate) fn cuGraphMemAllocNodeGetParams(
    handle: u64,
    place: Out<CUDA_MEM_ALLOC_NODE_PARAMS>,
) -> CuResult {
    place.set(alloc_params(handle)?)
}

pub(crate) fn cuGraphMemFreeNodeGetParams(handle: u64, place: Out<u64>) -> CuResult {
    place.set(look(handle, |node| match node {
        Node::Free(address) => Ok(*address),
        _ => Err(CuStatus::INVALID_VALUE),
    })?)
}

// ---- whether a node runs

pub(crate) fn cuGraphNodeGetEnabled(exec: u64, handle: u64, place: Out<u32>) -> CuResult {
    let exec: Arc<GraphExec> = process()?.graph_execs.get(exec)?;
    let node = node(handle)?.0;
    place.set(u32::from(exec.is_enabled(node.graph, node.index)?))
}

pub(crate) fn cuGraphNodeSetEnabled(exec: u64, handle: u64, is_enabled: u32) -> CuResult {
    let exec: Arc<GraphExec> = process()?.graph_execs.get(exec)?;
    let node = node(handle)?.0;
    exec.enable(node.graph, node.index, is_enabled != 0)
}
