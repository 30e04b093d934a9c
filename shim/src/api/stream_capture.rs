//! Capturing streams: all of it is client memory.
#![forbid(unsafe_code)]

use std::cell::Cell;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};

use super::{graph, stream};
use crate::abi::CUgraphEdgeData;
use crate::capture;
use crate::graph::Graph;
use crate::ptr::{HostPtr, In, Out};

/// `CUstreamCaptureStatus`.
const NONE: u32 = 0;
const ACTIVE: u32 = 1;
const INVALIDATED: u32 = 2;

pub(crate) fn cuStreamBeginCapture_v2(
    mode: StreamMode,
    handle: u64,
    capture_mode: u32,
) -> CuResult {
    let stream = stream(mode, handle)?;
    capture::begin(&stream, capture_mode, None, Vec::new())
}

/// As CUDA 10.0 had it: with the mode that forbids most.
pub(crate) fn cuStreamBeginCapture(mode: StreamMode, handle: u64) -> CuResult {
    cuStreamBeginCapture_v2(mode, handle, 0)
}

pub(crate) fn cuStreamBeginCaptureToGraph(
    mode: StreamMode,
    handle: u64,
    graph_handle: u64,
    after: In<u64>,
    data: In<CUgraphEdgeData>,
    count: usize,
    capture_mode: u32,
) -> CuResult {
    let stream = stream(mode, handle)?;
    let graph = graph(graph_handle)?;
    let after = positions(&graph, after, data, count)?;
    capture::begin(&stream, capture_mode, Some(graph), after)
}

/// Positions of nodes that the program names.
fn positions(
    graph: &Graph,
    nodes: In<u64>,
    data: In<CUgraphEdgeData>,
    count: usize,
) -> CuResult<Vec<u32>> {
    (0..count)
        .map(|slot| {
            if !data.is_null() {
                data.get_at(slot)?.checked()?;
            }
            graph.position(nodes.get_at(slot)?)
        })
        .collect()
}

pub(crate) fn cuStreamUpdateCaptureDependencies(
    mode: StreamMode,
    handle: u64,
    nodes: Out<u64>,
    count: usize,
    flags: u32,
) -> CuResult {
    let no_data = HostPtr::from_address(0).input();
    cuStreamUpdateCaptureDependencies_v2(mode, handle, nodes, no_data, count, flags)
}

pub(crate) fn cuStreamUpdateCaptureDependencies_v2(
    mode: StreamMode,
    handle: u64,
    nodes: Out<u64>,
    data: In<CUgraphEdgeData>,
    count: usize,
    flags: u32,
) -> CuResult {
    // CU_STREAM_ADD_CAPTURE_DEPENDENCIES, CU_STREAM_SET_CAPTURE_DEPENDENCIES.
    if flags > 1 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let stream = stream(mode, handle)?;
    let capture = stream.capturing()?.ok_or(CuStatus::ILLEGAL_STATE)?;
    let tips = positions(&capture.graph, nodes.as_input(), data, count)?;
    capture.set_tips(stream.id, &tips, flags == 0);
    Ok(())
}

pub(crate) fn cuStreamEndCapture(mode: StreamMode, handle: u64, place: Out<u64>) -> CuResult {
    let stream = stream(mode, handle)?;
    place.set_if(0);
    place.set(capture::end(&stream)?.handle)
}

pub(crate) fn cuStreamIsCapturing(mode: StreamMode, handle: u64, status: Out<u32>) -> CuResult {
    let stream = stream(mode, handle)?;
    status.set(state(&stream).0)
}

/// Status, number of the capture, graph.
fn state(stream: &crate::stream::Stream) -> (u32, u64, u64) {
    if !capture::any() {
        return (NONE, 0, 0);
    }
    match &*stream.capture.lock() {
        None => (NONE, 0, 0),
        Some(capture) if capture.is_invalid() => (INVALIDATED, capture.id, capture.graph.handle),
        Some(capture) => (ACTIVE, capture.id, capture.graph.handle),
    }
}

pub(crate) fn cuStreamGetCaptureInfo(
    mode: StreamMode,
    handle: u64,
    status: Out<u32>,
    id: Out<u64>,
) -> CuResult {
    let stream = stream(mode, handle)?;
    let (now, number, _) = state(&stream);
    status.set(now)?;
    if now == ACTIVE {
        id.set_if(number);
    }
    Ok(())
}

pub(crate) fn cuStreamGetCaptureInfo_v2(
    mode: StreamMode,
    handle: u64,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<u64>,
    dependencies: Out<*const u64>,
    count: Out<usize>,
) -> CuResult {
    cuStreamGetCaptureInfo_v3(
        mode,
        handle,
        status,
        id,
        graph,
        dependencies,
        null_edges(),
        count,
    )
}

fn null_edges() -> Out<*const CUgraphEdgeData> {
    crate::ptr::HostPtr::from_address(0).out()
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuStreamGetCaptureInfo_v3(
    mode: StreamMode,
    handle: u64,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<u64>,
    dependencies: Out<*const u64>,
    edges: Out<*const CUgraphEdgeData>,
    count: Out<usize>,
) -> CuResult {
    let stream = stream(mode, handle)?;
    let (now, number, graph_handle) = state(&stream);
    status.set(now)?;
    let Some(capture) = stream.capturing()? else {
        return Ok(());
    };
    let (nodes, node_count) = capture.dependencies(stream.id)?;
    id.set_if(number);
    graph.set_if(graph_handle);
    dependencies.set_if(nodes);
    // Edges of a capture carry no data of their own.
    edges.set_if(std::ptr::null());
    count.set_if(node_count);
    Ok(())
}

thread_local! {
    static MODE: Cell<u32> = const { Cell::new(0) };
}

pub(crate) fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) -> CuResult {
    let new = mode.get()?;
    if new > 2 {
        return Err(CuStatus::INVALID_VALUE);
    }
    mode.set(MODE.replace(new))
}
