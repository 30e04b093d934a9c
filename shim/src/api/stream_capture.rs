//! Capturing streams: all of it is client memory.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::Arc;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};

use super::stream;
use crate::abi::CUgraphEdgeData;
use crate::capture;
use crate::process::process;
use crate::ptr::Out;

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
    let graph = process()?.graphs.reserve();
    capture::begin(&stream, capture_mode, graph)
}

pub(crate) fn cuStreamEndCapture(mode: StreamMode, handle: u64, place: Out<u64>) -> CuResult {
    let stream = stream(mode, handle)?;
    match capture::end(&stream) {
        Ok((graph_handle, graph)) => {
            process()?.graphs.insert(graph_handle, Arc::new(graph));
            place.set(graph_handle)
        }
        Err(status) => {
            place.set_if(0);
            Err(status)
        }
    }
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
        Some(capture) if capture.is_invalid() => (INVALIDATED, capture.id, capture.graph_handle),
        Some(capture) => (ACTIVE, capture.id, capture.graph_handle),
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
    let (nodes, node_count) = capture.dependencies(stream.id, &process()?.graph_nodes);
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
