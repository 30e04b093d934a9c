//! Graphs as wholes: made, copied, described, instantiated, launched.
#![forbid(unsafe_code)]

use std::ffi::c_char;
use std::fmt::Write as _;
use std::sync::Arc;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::record;
use farcall_marshal::status::{CuResult, CuStatus};

use super::{stream, to_device, to_host};
use crate::abi::{CUDA_GRAPH_INSTANTIATE_PARAMS, CUgraphExecUpdateResultInfo};
use crate::box_copy::BoxCopy;
use crate::context::{self, Context};
use crate::graph::{self, Graph, GraphExec, Node, UserObject};
use crate::hooks::Callback;
use crate::process::process;
use crate::ptr::{HostPtr, Out, Text};
use crate::stream::Stream;

/// Flags of an instantiation: free on launch, upload, device launch, node priority.
const INSTANTIATE_FLAGS: u64 = 15;
/// `CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH`: the handle would mean something to kernels.
const DEVICE_LAUNCH: u64 = 4;

/// The graph with a handle.
pub(crate) fn graph(handle: u64) -> CuResult<Arc<Graph>> {
    process()?
        .graphs
        .get(handle)
        .map_err(|_| CuStatus::INVALID_VALUE)
}

pub(crate) fn cuGraphCreate(place: Out<u64>, flags: u32) -> CuResult {
    if flags != 0 || place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    place.set(Graph::create()?.handle)
}

pub(crate) fn cuGraphDestroy(handle: u64) -> CuResult {
    if process()?.graphs.get(handle)?.is_owned {
        return Err(CuStatus::INVALID_VALUE);
    }
    graph::forget(handle)
}

pub(crate) fn cuGraphClone(place: Out<u64>, original: u64) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    place.set(graph(original)?.copy(false)?.handle)
}

pub(crate) fn cuGraphGetId(handle: u64, place: Out<u32>) -> CuResult {
    place.set(graph(handle)?.id)
}

fn instantiate(place: Out<u64>, handle: u64, flags: u64) -> CuResult {
    if place.is_null() || flags & !INSTANTIATE_FLAGS != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Err(CuStatus::NOT_SUPPORTED);
    }
    let exec = GraphExec::instantiate(context::current()?, &*graph(handle)?, flags)?;
    let execs = &process()?.graph_execs;
    let handle = execs.reserve();
    execs.insert(handle, Arc::new(exec));
    place.set(handle)
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

pub(crate) use cuGraphInstantiate_v2 as cuGraphInstantiate;

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

pub(crate) fn cuGraphUpload(mode: StreamMode, handle: u64, stream_handle: u64) -> CuResult {
    let exec = process()?.graph_execs.get(handle)?;
    stream(mode, stream_handle)?;
    exec.upload()
}

pub(crate) fn cuGraphExecDestroy(handle: u64) -> CuResult {
    process()?.graph_execs.remove(handle)?.destroy()
}

pub(crate) fn cuGraphExecGetFlags(handle: u64, place: Out<u64>) -> CuResult {
    place.set(process()?.graph_execs.get(handle)?.flags)
}

pub(crate) fn cuGraphExecGetId(handle: u64, place: Out<u32>) -> CuResult {
    place.set(process()?.graph_execs.get(handle)?.id)
}

pub(crate) fn cuGraphExecUpdate_v2(
    handle: u64,
    source: u64,
    place: Out<CUgraphExecUpdateResultInfo>,
) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    let (result, node) = update(handle, source)?;
    place.set(CUgraphExecUpdateResultInfo {
        result,
        errorNode: node,
        errorFromNode: 0,
    })?;
    outcome_of_update(result)
}

pub(crate) fn cuGraphExecUpdate(
    handle: u64,
    source: u64,
    node_place: Out<u64>,
    result_place: Out<u32>,
) -> CuResult {
    let (result, node) = update(handle, source)?;
    node_place.set_if(node);
    result_place.set(result)?;
    outcome_of_update(result)
}

/// `CUgraphExecUpdateResult` and the node that is to blame.
fn update(handle: u64, source: u64) -> CuResult<(u32, u64)> {
    let exec = process()?.graph_execs.get(handle)?;
    let source = graph(source)?;
    let Some(difference) = exec.update(&source)? else {
        return Ok((0, 0));
    };
    let node = difference.node.and_then(|index| source.node(index).ok());
    Ok((difference.result, node.unwrap_or(0)))
}

fn outcome_of_update(result: u32) -> CuResult {
    if result == 0 {
        Ok(())
    } else {
        Err(CuStatus::GRAPH_EXEC_UPDATE_FAILURE)
    }
}

/// Replaces a copy by the record that it is, where both ends are on the device.
pub(crate) fn lower(context: &'static Context, node: &mut Node) -> CuResult {
    if let Node::Copy(description) = node {
        let copy = BoxCopy::resolve(description)?;
        if let Some(bytes) = copy.to_record(context.id)? {
            *node = Node::Record(bytes);
        }
    }
    Ok(())
}

/// Runs one node of a graph that touches the program.
pub(crate) fn run_node(stream: &Arc<Stream>, node: &Node) -> CuResult {
    match node {
        Node::Record(bytes) => {
            let moved = record::with_stream(bytes, stream.id).ok_or(CuStatus::UNKNOWN)?;
            stream.issue_encoded(&moved)
        }
        Node::FromHost { to, from, len } => to_device(stream, *to, *from, *len),
        // What lands in pageable memory may land late too: the program synchronizes before it looks.
        Node::ToHost { to, from, len } => to_host(stream, *to, *from, *len, true),
        Node::Copy(description) => BoxCopy::resolve(description)?.run(stream, true),
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
        Node::EventRecord(event) => event.record(stream, 0),
        Node::EventWait(event) => event.make_wait(stream, 0),
        Node::Alloc(memory) => memory.allocate(stream),
        Node::Free(address) => graph::find_memory(*address)
            .ok_or(CuStatus::INVALID_VALUE)?
            .free(stream),
        // They were taken out when the graph was flattened.
        Node::Child(_) | Node::Empty | Node::Gone => Ok(()),
    }
}

/// Writes the graph in the language of Graphviz, on the client.
pub(crate) fn cuGraphDebugDotPrint(handle: u64, path: Text, _flags: u32) -> CuResult {
    const NAMES: [&str; 12] = [
        "KERNEL",
        "MEMCPY",
        "MEMSET",
        "HOST",
        "GRAPH",
        "EMPTY",
        "WAIT_EVENT",
        "EVENT_RECORD",
        "EXT_SEMAS_SIGNAL",
        "EXT_SEMAS_WAIT",
        "MEM_ALLOC",
        "MEM_FREE",
    ];
    let graph = graph(handle)?;
    let definition = graph.definition.lock();
    let mut text = format!(
        "digraph dot {{\nsubgraph cluster_{0} {{\nlabel=\"graph_{0}\"\n",
        graph.id
    );
    for index in definition.living() {
        let kind = definition.nodes.get(index).map_or(0, Node::kind) as usize;
        let name = NAMES.get(kind).copied().unwrap_or("?");
        let node = format!("graph_{}_node_{index}", graph.id);
        let _ = writeln!(
            text,
            "\"{node}\" [shape=\"record\" label=\"{index}\\n{name}\"];"
        );
    }
    for (from, to) in &definition.edges {
        let id = graph.id;
        let _ = writeln!(
            text,
            "\"graph_{id}_node_{from}\" -> \"graph_{id}_node_{to}\";"
        );
    }
    text.push_str("}\n}\n");
    std::fs::write(path.get()?, text).map_err(|_| CuStatus::OPERATING_SYSTEM)
}

pub(crate) fn cuUserObjectCreate(
    place: Out<u64>,
    object: HostPtr,
    destroy: usize,
    count: u32,
    flags: u32,
) -> CuResult {
    /// `CU_USER_OBJECT_NO_DESTRUCTOR_SYNC`, which must be set (cuda.h).
    const NO_DESTRUCTOR_SYNC: u32 = 1;
    if place.is_null() || destroy == 0 || count == 0 || flags != NO_DESTRUCTOR_SYNC {
        return Err(CuStatus::INVALID_VALUE);
    }
    let objects = &process()?.user_objects;
    let handle = objects.reserve();
    let object = UserObject::new(object.address(), destroy, count);
    objects.insert(handle, Arc::new(object));
    place.set(handle)
}

pub(crate) fn cuUserObjectRetain(handle: u64, count: u32) -> CuResult {
    user_object(handle, count)?.retain(count)
}

pub(crate) fn cuUserObjectRelease(handle: u64, count: u32) -> CuResult {
    end_if_unused(&*user_object(handle, count)?, count)
}

fn end_if_unused(object: &UserObject, count: u32) -> CuResult {
    if object.release(count)? {
        crate::ptr::call_host_function(object.destroy, object.object);
    }
    Ok(())
}

fn user_object(handle: u64, count: u32) -> CuResult<Arc<UserObject>> {
    if count == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    process()?
        .user_objects
        .get(handle)
        .map_err(|_| CuStatus::INVALID_VALUE)
}

pub(crate) fn cuGraphRetainUserObject(
    handle: u64,
    object: u64,
    count: u32,
    flags: u32,
) -> CuResult {
    /// `CU_GRAPH_USER_OBJECT_MOVE`: the caller's references become the graph's.
    const MOVE: u32 = 1;
    let (graph, object) = (graph(handle)?, user_object(object, count)?);
    match flags {
        0 => object.retain(count)?,
        MOVE => {}
        _ => return Err(CuStatus::INVALID_VALUE),
    }
    graph.references.add(object, count);
    Ok(())
}

pub(crate) fn cuGraphReleaseUserObject(handle: u64, object: u64, count: u32) -> CuResult {
    let (graph, object) = (graph(handle)?, user_object(object, count)?);
    graph.references.take(&object, count)?;
    end_if_unused(&object, count)
}
