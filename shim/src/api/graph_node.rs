//! Nodes of graphs that are device operations: made by the program, asked for and changed, in a graph and in an executable one.
#![forbid(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::launch::check_attribute;
use super::memset::Filling;
use super::{graph, kernel_parts, node};
use crate::abi::{
    CUDA_KERNEL_NODE_PARAMS, CUDA_KERNEL_NODE_PARAMS_v1, CUDA_MEMCPY3D, CUDA_MEMSET_NODE_PARAMS,
    CUgraphEdgeData,
};
use crate::box_copy::{self, BoxCopy};
use crate::context::{self, Context};
use crate::graph::{GraphExec, Node};
use crate::process::process;
use crate::ptr::{HostPtr, In, Out};

/// Adds a node behind others.
pub(super) fn add(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    data: In<CUgraphEdgeData>,
    count: usize,
    make: impl FnOnce() -> CuResult<Node>,
) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    let graph = graph(handle)?;
    let mut before = Vec::with_capacity(count.min(1024));
    for slot in 0..count {
        let position = graph.position(after.get_at(slot)?)?;
        let bytes = if data.is_null() {
            [0; 8]
        } else {
            data.get_at(slot)?.checked()?
        };
        if before.iter().any(|(known, _)| *known == position) {
            return Err(CuStatus::INVALID_VALUE);
        }
        before.push((position, bytes));
    }
    let node = make()?;
    let index = {
        let mut definition = graph.definition.lock();
        let positions: Vec<u32> = before.iter().map(|(position, _)| *position).collect();
        let index = definition.add(node, &positions);
        for (position, bytes) in before {
            if bytes != [0; 8] {
                definition.edge_data.insert((position, index), bytes);
            }
        }
        index
    };
    place.set(graph.node(index as usize)?)
}

/// No edge data.
pub(super) fn plain() -> In<CUgraphEdgeData> {
    HostPtr::from_address(0).input()
}

/// The context that a node names; 0 is the current one.
fn context_of(handle: u64) -> CuResult<&'static Context> {
    if handle == 0 {
        context::current()
    } else {
        context::by_handle(handle)
    }
}

/// Looks at a node.
pub(super) fn look<R>(handle: u64, look: impl FnOnce(&Node) -> CuResult<R>) -> CuResult<R> {
    let (node, graph) = node(handle)?;
    let definition = graph.definition.lock();
    look(
        definition
            .nodes
            .get(node.index)
            .ok_or(CuStatus::INVALID_VALUE)?,
    )
}

/// Changes a node of a graph.
pub(super) fn change(handle: u64, change: impl FnOnce(&mut Node) -> CuResult) -> CuResult {
    let (node, graph) = node(handle)?;
    let mut definition = graph.definition.lock();
    let node = definition.nodes.get_mut(node.index);
    change(node.ok_or(CuStatus::INVALID_VALUE)?)
}

/// Changes a node of an executable graph.
pub(super) fn change_in(
    exec: u64,
    handle: u64,
    change: impl FnOnce(&mut Node) -> CuResult,
) -> CuResult {
    let exec: Arc<GraphExec> = process()?.graph_execs.get(exec)?;
    let node = node(handle)?.0;
    exec.change(node.graph, node.index, change)
}

/// Puts `new` in the place of a node of the same kind.
pub(super) fn replace(old: &mut Node, new: Node) -> CuResult {
    if old.kind() != new.kind() {
        return Err(CuStatus::INVALID_VALUE);
    }
    *old = new;
    Ok(())
}

// ---- kernels

pub(super) fn kernel_node(params: &CUDA_KERNEL_NODE_PARAMS) -> CuResult<Node> {
    let handle = if params.func == 0 {
        params.kern
    } else {
        params.func
    };
    let context = context_of(params.ctx)?;
    let parts = kernel_parts(
        context,
        handle,
        params.gridDim,
        params.blockDim,
        params.sharedMemBytes,
        HostPtr::from_address(params.kernelParams).out::<*mut c_void>(),
        HostPtr::from_address(params.extra).out::<*mut c_void>(),
    )?;
    Ok(Node::Record(parts.to_record()))
}

/// A kernel of the node as it was, with what else was set on it.
pub(super) fn replace_kernel(old: &mut Node, params: &CUDA_KERNEL_NODE_PARAMS) -> CuResult {
    let attributes = old.as_kernel()?.attributes;
    let mut parts = kernel_node(params)?.as_kernel()?;
    parts.attributes = attributes;
    *old = Node::Record(parts.to_record());
    Ok(())
}

pub(crate) fn cuGraphAddKernelNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    params: In<CUDA_KERNEL_NODE_PARAMS_v1>,
) -> CuResult {
    let params = params.get()?.widened();
    add(place, handle, after, plain(), count, || {
        kernel_node(&params)
    })
}

pub(crate) fn cuGraphAddKernelNode_v2(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    params: In<CUDA_KERNEL_NODE_PARAMS>,
) -> CuResult {
    let params = params.get()?;
    add(place, handle, after, plain(), count, || {
        kernel_node(&params)
    })
}

/// The launch as the program described it. Its parameters lie in the node until it is asked again.
pub(super) fn kernel_params(handle: u64) -> CuResult<CUDA_KERNEL_NODE_PARAMS> {
    let parts = look(handle, Node::as_kernel)?;
    let process = process()?;
    let function = process
        .functions
        .find(|function| function.has_id(parts.function));
    let function = function.ok_or(CuStatus::INVALID_HANDLE)?;
    let node = process.graph_nodes.get(handle)?;
    let mut told = node.told.lock();
    let (words, rest) = parts.params.as_chunks::<8>();
    told.values = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    told.values.push(u64::from_le_bytes(last));
    let base = told.values.as_ptr().addr() as u64;
    told.pointers = function
        .info()?
        .params
        .iter()
        .map(|param| base + u64::from(param.offset_bytes))
        .collect();
    Ok(CUDA_KERNEL_NODE_PARAMS {
        func: function.handle,
        gridDim: parts.grid,
        blockDim: parts.block,
        sharedMemBytes: parts.shared_bytes,
        kernelParams: told.pointers.as_ptr().addr() as u64,
        extra: 0,
        kern: 0,
        ctx: 0,
    })
}

pub(crate) fn cuGraphKernelNodeGetParams(
    handle: u64,
    place: Out<CUDA_KERNEL_NODE_PARAMS_v1>,
) -> CuResult {
    place.set(kernel_params(handle)?.narrowed())
}

pub(crate) fn cuGraphKernelNodeGetParams_v2(
    handle: u64,
    place: Out<CUDA_KERNEL_NODE_PARAMS>,
) -> CuResult {
    place.set(kernel_params(handle)?)
}

pub(crate) fn cuGraphKernelNodeSetParams(
    handle: u64,
    params: In<CUDA_KERNEL_NODE_PARAMS_v1>,
) -> CuResult {
    let params = params.get()?.widened();
    change(handle, |node| replace_kernel(node, &params))
}

pub(crate) fn cuGraphKernelNodeSetParams_v2(
    handle: u64,
    params: In<CUDA_KERNEL_NODE_PARAMS>,
) -> CuResult {
    let params = params.get()?;
    change(handle, |node| replace_kernel(node, &params))
}

pub(crate) fn cuGraphExecKernelNodeSetParams(
    exec: u64,
    handle: u64,
    params: In<CUDA_KERNEL_NODE_PARAMS_v1>,
) -> CuResult {
    let params = params.get()?.widened();
    change_in(exec, handle, |node| replace_kernel(node, &params))
}

pub(crate) fn cuGraphExecKernelNodeSetParams_v2(
    exec: u64,
    handle: u64,
    params: In<CUDA_KERNEL_NODE_PARAMS>,
) -> CuResult {
    let params = params.get()?;
    change_in(exec, handle, |node| replace_kernel(node, &params))
}

/// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE` and the last one of cuda.h 13.
const COOPERATIVE: u32 = 2;
const ATTRIBUTE_LAST: u32 = 18;

pub(crate) fn cuGraphKernelNodeGetAttribute(
    handle: u64,
    attribute: u32,
    place: HostPtr,
) -> CuResult {
    let parts = look(handle, Node::as_kernel)?;
    if attribute == 0 || attribute > ATTRIBUTE_LAST {
        return Err(CuStatus::INVALID_VALUE);
    }
    place.write(&parts.attribute(attribute))
}

pub(crate) fn cuGraphKernelNodeSetAttribute(
    handle: u64,
    attribute: u32,
    value: HostPtr,
) -> CuResult {
    check_attribute(attribute)?;
    let bytes = value.bytes(64)?.first_chunk::<64>().copied();
    let bytes = bytes.ok_or(CuStatus::INVALID_VALUE)?;
    change(handle, |node| {
        let mut parts = node.as_kernel()?;
        parts.set_attribute(attribute, bytes);
        if attribute == COOPERATIVE {
            parts.flags = u32::from(bytes.iter().take(4).any(|byte| *byte != 0));
        }
        *node = Node::Record(parts.to_record());
        Ok(())
    })
}

pub(crate) fn cuGraphKernelNodeCopyAttributes(to: u64, from: u64) -> CuResult {
    let source = look(from, Node::as_kernel)?;
    change(to, |node| {
        let mut parts = node.as_kernel()?;
        (parts.attributes, parts.flags) = (source.attributes, source.flags);
        *node = Node::Record(parts.to_record());
        Ok(())
    })
}

// ---- copies

pub(super) fn copy_node(params: CUDA_MEMCPY3D, context: u64) -> CuResult<Node> {
    context_of(context)?;
    BoxCopy::resolve(&params)?;
    Ok(Node::Copy(Box::new(params)))
}

pub(crate) fn cuGraphAddMemcpyNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    params: In<CUDA_MEMCPY3D>,
    context: u64,
) -> CuResult {
    let params = params.get()?;
    add(place, handle, after, plain(), count, || {
        copy_node(params, context)
    })
}

pub(super) fn copy_params(handle: u64) -> CuResult<CUDA_MEMCPY3D> {
    look(handle, box_copy::describe)
}

pub(crate) fn cuGraphMemcpyNodeGetParams(handle: u64, place: Out<CUDA_MEMCPY3D>) -> CuResult {
    place.set(copy_params(handle)?)
}

pub(crate) fn cuGraphMemcpyNodeSetParams(handle: u64, params: In<CUDA_MEMCPY3D>) -> CuResult {
    let new = copy_node(params.get()?, 0)?;
    change(handle, |node| replace(node, new))
}

pub(crate) fn cuGraphExecMemcpyNodeSetParams(
    exec: u64,
    handle: u64,
    params: In<CUDA_MEMCPY3D>,
    context: u64,
) -> CuResult {
    let new = copy_node(params.get()?, context)?;
    change_in(exec, handle, |node| replace(node, new))
}

// ---- memsets

pub(super) fn memset_node(params: &CUDA_MEMSET_NODE_PARAMS, context: u64) -> CuResult<Node> {
    let record = Filling::of(params)?.to_record(context_of(context)?.id)?;
    Ok(Node::Record(record))
}

pub(crate) fn cuGraphAddMemsetNode(
    place: Out<u64>,
    handle: u64,
    after: In<u64>,
    count: usize,
    params: In<CUDA_MEMSET_NODE_PARAMS>,
    context: u64,
) -> CuResult {
    let params = params.get()?;
    add(place, handle, after, plain(), count, || {
        memset_node(&params, context)
    })
}

pub(super) fn memset_params(handle: u64) -> CuResult<CUDA_MEMSET_NODE_PARAMS> {
    look(handle, |node| match node {
        Node::Record(bytes) => Filling::read(bytes),
        _ => Err(CuStatus::INVALID_VALUE),
    })
}

pub(crate) fn cuGraphMemsetNodeGetParams(
    handle: u64,
    place: Out<CUDA_MEMSET_NODE_PARAMS>,
) -> CuResult {
    place.set(memset_params(handle)?)
}

pub(crate) fn cuGraphMemsetNodeSetParams(
    handle: u64,
    params: In<CUDA_MEMSET_NODE_PARAMS>,
) -> CuResult {
    let new = memset_node(&params.get()?, 0)?;
    change(handle, |node| replace(node, new))
}

pub(crate) fn cuGraphExecMemsetNodeSetParams(
    exec: u64,
    handle: u64,
    params: In<CUDA_MEMSET_NODE_PARAMS>,
    context: u64,
) -> CuResult {
    let new = memset_node(&params.get()?, context)?;
    change_in(exec, handle, |node| replace(node, new))
}
