//! Executable graphs.
//!
//! A graph is cut at its host functions, for the stream has to wait for the client there. What is between them becomes one
//! graph of the driver each. Where that cannot be (a driver without graphs, or nodes that are no graph nodes) the
//! operations are issued one by one, in their topological order, at every launch.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use farcall_marshal::record::{Head, Record};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuEventRecordWithFlags, CuLaunchHostFunc, CuLaunchKernel, CuLaunchKernelEx, CuMemcpy3DAsyncV2,
    CuMemcpyDtoDAsyncV2, CuMemcpyHtoDAsyncV2, CuMemsetD2D8Async, CuMemsetD8Async,
    CuStreamWaitEvent,
};

use super::abroad::is_abroad;
use super::driver::{self, Flow, Region, Slab};
use super::issue::{Later, Progress, Shared};
use super::modules::Modules;
use super::op::{Fill, Launch, Op};
use super::perform::on;
use super::state::{LaneKey, State};
use super::turns::Turn;
use crate::device::box_copy::BoxCopy;
use crate::device::graph_records::{self, check_count, decoded};
use crate::executor::outbox::{Failure, Reply};

const FLAG_COOPERATIVE: u32 = 1;

/// Nodes in topological order, and which depend on which.
#[derive(Debug, Default)]
pub(crate) struct Definition {
    nodes: Vec<Op<'static>>,
    edges: Vec<(usize, usize)>,
    flags: u64,
}

/// A graph; its definition may still be on its way.
#[derive(Debug, Default)]
pub(crate) struct GraphExec {
    definition: OnceLock<Result<Definition, Failure>>,
    /// Made at the first launch: only then are all functions known.
    segments: OnceLock<Vec<Segment>>,
}

#[derive(Debug)]
enum Segment {
    /// A graph of the driver, and the pinned memory that its copies read.
    Native {
        exec: driver::GraphExec,
        _memory: Vec<Region>,
    },
    /// A node that is issued as what it is.
    Node(usize),
    Host {
        callback: u64,
    },
}

impl GraphExec {
    /// Whether it can be launched, or refused: its definition has come, and all its functions are known.
    pub(crate) fn is_ready(&self) -> bool {
        let is_known = |node: &Op<'_>| match node {
            Op::Launch(launch) => launch.function.resolved().is_some(),
            _ => true,
        };
        match self.definition.get() {
            None => false,
            Some(Err(_)) => true,
            Some(Ok(definition)) => {
                self.segments.get().is_some() || definition.nodes.iter().all(is_known)
            }
        }
    }

    /// The definition has come, or is none.
    pub(crate) fn define(&self, definition: Result<Definition, Failure>) {
        let _ = self.definition.set(definition);
    }
}

impl Shared {
    /// Runs the segments of a graph that is ready, from one on, at its turn.
    pub(crate) fn run_graph<'a>(
        &self,
        state: &mut State,
        later: &mut Later,
        lane: LaneKey,
        reply: Reply,
        (exec, from): (Arc<GraphExec>, usize),
        turn: Turn,
    ) -> Progress<'a> {
        let Some(Ok(definition)) = exec.definition.get() else {
            return Progress::Given(Err(Failure::new(
                CuStatus::INVALID_HANDLE,
                "the graph was not instantiated",
            )));
        };
        if exec.segments.get().is_none() {
            let _ = exec.segments.set(segments(state, lane, definition));
        }
        let segments = exec.segments.get().map(Vec::as_slice).unwrap_or_default();
        let mut turn = turn;
        for (at, segment) in segments.iter().enumerate().skip(from) {
            let outcome = match segment {
                Segment::Native { exec, .. } => {
                    let outcome = on(state, lane, |stream| stream.launch_graph(exec));
                    // One kernel, however often it is cut. Nodes that are issued by themselves are counted by themselves.
                    self.launched(state, lane, std::mem::replace(&mut turn, Turn::Free));
                    outcome.map_err(Failure::from)
                }
                Segment::Host { callback } => {
                    let rest = (at + 1 < segments.len()).then(|| Op::Graph {
                        exec: exec.clone(),
                        from: at + 1,
                    });
                    return self.host(state, later, lane, reply, *callback, rest);
                }
                Segment::Node(node) => match definition
                    .nodes
                    .get(*node)
                    .map(|node| self.perform(state, later, lane, reply, borrowed(node)))
                {
                    Some(Progress::Blocked(_)) => {
                        return Progress::Blocked(Op::Graph {
                            exec: exec.clone(),
                            from: at,
                        });
                    }
                    Some(Progress::Given(outcome)) => outcome,
                    _ => Ok(()),
                },
            };
            if let Err(failure) = outcome {
                return Progress::Given(Err(failure));
            }
        }
        Progress::Given(Ok(()))
    }
}

/// Reads a definition: `node_bytes` bytes of records, then edges.
///
/// # Errors
/// What is no such thing; a record that is no stream operation; a function that is not there.
pub(crate) fn decode(
    modules: &Modules,
    data: &[u8],
    node_bytes: usize,
    node_count: u64,
    flags: u64,
) -> Result<Definition, Failure> {
    let invalid = |message: String| Failure::new(CuStatus::INVALID_VALUE, message);
    check_count(node_count)?;
    let (records, edges) = data
        .split_at_checked(node_bytes)
        .ok_or_else(|| invalid("a graph shorter than its nodes".to_owned()))?;
    let nodes = graph_records::nodes(records, node_count, |head, body| {
        Ok(node(modules, head, body)?.into_owned())
    })?;
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes) as usize;
    let pairs = edges.as_chunks::<8>().0.iter();
    let edges: Vec<(usize, usize)> = pairs
        .filter_map(|pair| Some((word(pair.first_chunk()?), word(pair.last_chunk()?))))
        .collect();
    if edges
        .iter()
        .any(|(from, to)| from >= to || *to >= nodes.len())
    {
        return Err(invalid("an edge against the order of the nodes".to_owned()));
    }
    Ok(Definition {
        nodes,
        edges,
        flags,
    })
}

/// `cuLaunchKernel`.
///
/// # Errors
/// `INVALID_HANDLE`: no such function.
pub(crate) fn launch<'a>(
    modules: &Modules,
    record: &CuLaunchKernel<'a>,
) -> Result<Op<'a>, Failure> {
    Ok(Op::Launch(Launch {
        function: modules.function(record.function)?,
        grid: [record.grid_x, record.grid_y, record.grid_z],
        block: [record.block_x, record.block_y, record.block_z],
        shared_bytes: record.shared_bytes,
        cooperative: record.flags & FLAG_COOPERATIVE != 0,
        params: Cow::Borrowed(record.params),
        attributes: Cow::Borrowed(&[]),
    }))
}

/// `cuLaunchKernelEx`.
///
/// # Errors
/// `INVALID_HANDLE`: no such function.
pub(crate) fn launch_ex<'a>(
    modules: &Modules,
    record: &CuLaunchKernelEx<'a>,
) -> Result<Op<'a>, Failure> {
    Ok(Op::Launch(Launch {
        function: modules.function(record.function)?,
        grid: [record.grid_x, record.grid_y, record.grid_z],
        block: [record.block_x, record.block_y, record.block_z],
        shared_bytes: record.shared_bytes,
        cooperative: record.flags & FLAG_COOPERATIVE != 0,
        params: Cow::Borrowed(record.params),
        attributes: Cow::Borrowed(record.attributes),
    }))
}

/// `cuMemcpyHtoDAsync_v2` whose bytes are in the record.
///
/// # Errors
/// The length is not what the record says.
pub(crate) fn write<'a>(record: &CuMemcpyHtoDAsyncV2<'a>) -> Result<Op<'a>, Failure> {
    if record.data.len() as u64 != record.count || record.bulk != 0 {
        return Err(Failure::new(
            CuStatus::INVALID_VALUE,
            format!("{} bytes for a copy of {}", record.data.len(), record.count),
        ));
    }
    Ok(if record.count == 0 {
        Op::Nothing
    } else {
        Op::Write {
            dst: record.dst,
            data: Cow::Borrowed(record.data),
        }
    })
}

/// `cuMemcpyDtoDAsync_v2`.
pub(crate) fn copy(record: &CuMemcpyDtoDAsyncV2) -> Op<'static> {
    if record.count == 0 {
        Op::Nothing
    } else {
        Op::Copy {
            dst: record.dst,
            src: record.src,
            count: record.count,
        }
    }
}

/// `cuMemcpy3DAsync_v2`.
pub(crate) fn copy_box(record: &CuMemcpy3DAsyncV2) -> Op<'static> {
    Op::CopyBox(BoxCopy::of(record))
}

/// `cuMemsetD8Async` and its wider kin.
pub(crate) fn fill(record: &CuMemsetD8Async) -> Op<'static> {
    let &CuMemsetD8Async {
        dst,
        count,
        value,
        width,
        ..
    } = record;
    Op::Fill(Fill {
        dst,
        pitch: 0,
        row_count: 1,
        row_elements: count,
        value,
        width,
    })
}

/// `cuMemsetD2D8Async` and its wider kin.
pub(crate) fn fill_rows(record: &CuMemsetD2D8Async) -> Op<'static> {
    let &CuMemsetD2D8Async {
        dst,
        pitch,
        row_count,
        row_elements,
        value,
        width,
        ..
    } = record;
    Op::Fill(Fill {
        dst,
        pitch,
        row_count,
        row_elements,
        value,
        width,
    })
}

fn node<'a>(modules: &Modules, head: &Head, body: &'a [u8]) -> Result<Op<'a>, Failure> {
    Ok(match head.number {
        CuLaunchKernel::NUMBER => launch(modules, &decoded(body)?)?,
        CuLaunchKernelEx::NUMBER => launch_ex(modules, &decoded(body)?)?,
        CuMemcpyHtoDAsyncV2::NUMBER => write(&decoded(body)?)?,
        CuMemcpyDtoDAsyncV2::NUMBER => copy(&decoded(body)?),
        CuMemcpy3DAsyncV2::NUMBER => copy_box(&decoded(body)?),
        CuMemsetD8Async::NUMBER => fill(&decoded(body)?),
        CuMemsetD2D8Async::NUMBER => fill_rows(&decoded(body)?),
        CuLaunchHostFunc::NUMBER => Op::HostFunc {
            callback: decoded::<CuLaunchHostFunc>(body)?.callback,
        },
        CuEventRecordWithFlags::NUMBER | CuStreamWaitEvent::NUMBER => {
            return Err(Failure::new(
                CuStatus::NOT_SUPPORTED,
                "an event as a node of a graph",
            ));
        }
        number => {
            return Err(Failure::new(
                CuStatus::NOT_SUPPORTED,
                format!("record {number} as a node of a graph"),
            ));
        }
    })
}

fn borrowed<'a>(node: &'a Op<'static>) -> Op<'a> {
    match node {
        Op::Write { dst, data } => Op::Write {
            dst: *dst,
            data: Cow::Borrowed(data),
        },
        Op::Launch(launch) => Op::Launch(Launch {
            function: launch.function.clone(),
            params: Cow::Borrowed(&launch.params),
            attributes: Cow::Borrowed(&launch.attributes),
            ..*launch
        }),
        other => other.clone(),
    }
}

/// Cuts a graph at its host functions and gives the parts to the driver.
fn segments(state: &mut State, lane: LaneKey, definition: &Definition) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut start = 0;
    let count = definition.nodes.len();
    for at in 0..=count {
        let callback = match definition.nodes.get(at) {
            Some(Op::HostFunc { callback }) => Some(*callback),
            Some(_) => continue,
            None => None,
        };
        if start < at {
            match native(state, lane, definition, start, at) {
                Ok(segment) => segments.push(segment),
                Err(status) => {
                    log::debug!(
                        "{} nodes of a graph are issued one by one: {status}",
                        at - start
                    );
                    segments.extend((start..at).map(Segment::Node));
                }
            }
        }
        segments.extend(callback.map(|callback| Segment::Host { callback }));
        start = at + 1;
    }
    segments
}

fn native(
    state: &mut State,
    lane: LaneKey,
    definition: &Definition,
    start: usize,
    end: usize,
) -> CuResult<Segment> {
    let context = state
        .lanes
        .get(&lane)
        .ok_or(CuStatus::INVALID_HANDLE)?
        .stream
        .context()
        .clone();
    let mut graph = driver::Graph::new(&context)?;
    let mut regions = Vec::new();
    let nodes = definition.nodes.get(start..end).unwrap_or_default();
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (from, to) in &definition.edges {
        if let (Some(from), Some(after)) = (
            from.checked_sub(start),
            to.checked_sub(start).and_then(|to| after.get_mut(to)),
        ) {
            after.push(from);
        }
    }
    // A graph of the driver works on one device.
    let ends = |node: &Op<'_>| match node {
        Op::Copy { dst, src, .. } => [*dst, *src],
        Op::Fill(Fill { dst, .. }) | Op::Write { dst, .. } => [*dst; 2],
        _ => [0; 2],
    };
    let mut addresses = nodes.iter().flat_map(ends);
    if addresses.any(|addr| is_abroad(state, lane, addr)) {
        return Err(CuStatus::NOT_SUPPORTED);
    }
    let memory = &state.memory;
    for (node, after) in nodes.iter().zip(&after) {
        match node {
            Op::Launch(launch) => match launch.function.resolved() {
                Some(Ok(function)) => graph.add_kernel(after, function, &launch.as_driver())?,
                _ => return Err(CuStatus::INVALID_HANDLE),
            },
            Op::Copy { dst, src, count } => graph.add_copy(
                after,
                memory.extent(*dst, *count)?,
                memory.extent(*src, *count)?,
            )?,
            Op::Fill(fill) => match fill.resolve(memory)? {
                Some((extent, rows)) => graph.add_fill(after, extent, rows, fill.value)?,
                None => return Err(CuStatus::NOT_SUPPORTED),
            },
            Op::Write { dst, data } => {
                // Lives as long as the graph, so it has pinned memory of its own.
                let slab = Slab::new(&context, data.len().next_multiple_of(4096))?;
                let region = slab.take(data.len(), Flow::Down);
                let mut region = region.ok_or(CuStatus::OUT_OF_MEMORY)?;
                region.write(0, data);
                graph.add_upload(after, memory.extent(*dst, data.len() as u64)?, &mut region)?;
                regions.push(region);
            }
            _ => return Err(CuStatus::NOT_SUPPORTED),
        }
    }
    Ok(Segment::Native {
        exec: graph.instantiate(definition.flags)?,
        _memory: regions,
    })
}
