//! Nodes by `CUgraphNodeParams`: one structure for every kind, 16 bytes of head and a union of 232.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};

use super::node;
use super::{graph_node as nodes, graph_node_host as others};
use crate::abi::{
    CUDA_HOST_NODE_PARAMS, CUDA_KERNEL_NODE_PARAMS, CUDA_MEM_ALLOC_NODE_PARAMS, CUDA_MEMCPY3D,
    CUDA_MEMSET_NODE_PARAMS, CUgraphEdgeData,
};
use crate::graph::{Node, kind};
use crate::ptr::{HostPtr, In, Out};

/// Where the union begins.
const UNION: usize = 16;
/// Where `CUDA_MEMCPY_NODE_PARAMS` has its context and the copy itself.
const COPY_CONTEXT: usize = UNION + 8;
const COPY: usize = UNION + 16;
/// Where `CUDA_MEMSET_NODE_PARAMS_v2` has its context.
const MEMSET_CONTEXT: usize = UNION + 40;
/// Where `CUDA_MEM_ALLOC_NODE_PARAMS_v2` gets the address.
const ALLOC_ADDRESS: usize = UNION + 112;

fn word(params: HostPtr, at: usize) -> CuResult<u64> {
    params.offset(at).input::<u64>().get()
}

/// The node that the structure describes. Memory gets its address told in it.
fn make(params: HostPtr) -> CuResult<Node> {
    let at = params.offset(UNION);
    match params.input::<u32>().get()? {
        kind::KERNEL => nodes::kernel_node(&at.input::<CUDA_KERNEL_NODE_PARAMS>().get()?),
        kind::MEMCPY => nodes::copy_node(
            params.offset(COPY).input::<CUDA_MEMCPY3D>().get()?,
            word(params, COPY_CONTEXT)?,
        ),
        kind::MEMSET => nodes::memset_node(
            &at.input::<CUDA_MEMSET_NODE_PARAMS>().get()?,
            word(params, MEMSET_CONTEXT)?,
        ),
        kind::HOST => others::host_node(at.input::<CUDA_HOST_NODE_PARAMS>().get()?),
        kind::GRAPH => others::child_node(word(params, UNION)?),
        kind::EMPTY => Ok(Node::Empty),
        kind::WAIT_EVENT => Ok(Node::EventWait(others::event(word(params, UNION)?)?)),
        kind::EVENT_RECORD => Ok(Node::EventRecord(others::event(word(params, UNION)?)?)),
        kind::MEM_ALLOC => {
            let values = at.input::<CUDA_MEM_ALLOC_NODE_PARAMS>().get()?;
            let (address, node) = others::alloc_node(&values)?;
            params.offset(ALLOC_ADDRESS).out::<u64>().set(address)?;
            Ok(node)
        }
        kind::MEM_FREE => others::free_node(word(params, UNION)?),
        // Conditional nodes, external semaphores, batches of memory operations.
        8 | 9 | 12..=15 => Err(CuStatus::NOT_SUPPORTED),
        _ => Err(CuStatus::INVALID_VALUE),
    }
}

pub(crate) fn cuGraphAddNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    params: HostPtr,
) -> CuResult {
    nodes::add(place, handle, after, nodes::plain(), count, || make(params))
}

pub(crate) fn cuGraphAddNode_v2(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    data: In<CUgraphEdgeData>,
    count: usize,
    params: HostPtr,
) -> CuResult {
    nodes::add(place, handle, after, data, count, || make(params))
}

/// Changes a node to what the structure says, if it is of that kind.
fn set(node: &mut Node, params: HostPtr) -> CuResult {
    match params.input::<u32>().get()? {
        kind::KERNEL => {
            let at = params.offset(UNION);
            nodes::replace_kernel(node, &at.input::<CUDA_KERNEL_NODE_PARAMS>().get()?)
        }
        kind::MEMCPY | kind::MEMSET | kind::HOST | kind::WAIT_EVENT | kind::EVENT_RECORD => {
            nodes::replace(node, make(params)?)
        }
        _ => Err(CuStatus::INVALID_VALUE),
    }
}

pub(crate) fn cuGraphNodeSetParams(handle: u64, params: HostPtr) -> CuResult {
    nodes::change(handle, |node| set(node, params))
}

pub(crate) fn cuGraphExecNodeSetParams(exec: u64, handle: u64, params: HostPtr) -> CuResult {
    if params.input::<u32>().get()? == kind::GRAPH {
        return super::cuGraphExecChildGraphNodeSetParams(exec, handle, word(params, UNION)?);
    }
    nodes::change_in(exec, handle, |node| set(node, params))
}

pub(crate) fn cuGraphNodeGetParams(handle: u64, params: HostPtr) -> CuResult {
    let (known, graph) = node(handle)?;
    let kind = {
        let definition = graph.definition.lock();
        let node = definition.nodes.get(known.index);
        node.ok_or(CuStatus::INVALID_VALUE)?.kind()
    };
    params.write(&[0; 256])?;
    params.out::<u32>().set(kind)?;
    let at = params.offset(UNION);
    match kind {
        kind::KERNEL => at.out().set(nodes::kernel_params(handle)?),
        kind::MEMCPY => params.offset(COPY).out().set(nodes::copy_params(handle)?),
        kind::MEMSET => at.out().set(nodes::memset_params(handle)?),
        kind::HOST => at.out().set(others::host_params(handle)?),
        kind::GRAPH => super::cuGraphChildGraphNodeGetGraph(handle, at.out()),
        kind::WAIT_EVENT => super::cuGraphEventWaitNodeGetEvent(handle, at.out()),
        kind::EVENT_RECORD => super::cuGraphEventRecordNodeGetEvent(handle, at.out()),
        kind::MEM_ALLOC => at.out().set(others::alloc_params(handle)?),
        kind::MEM_FREE => super::cuGraphMemFreeNodeGetParams(handle, at.out()),
        _ => Ok(()),
    }
}
