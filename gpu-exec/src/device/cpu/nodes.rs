//! Records of stream operations to operations: of a call, and of a graph's nodes.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use farcall_marshal::record::{Head, INLINE_BYTES_MAX, Record};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{
    CuLaunchHostFunc, CuLaunchKernel, CuLaunchKernelEx, CuMemAllocAsync, CuMemFreeAsync,
    CuMemcpy3DAsyncV2, CuMemcpyDtoDAsyncV2, CuMemcpyHtoDAsyncV2, CuMemsetD2D8Async,
    CuMemsetD8Async,
};

use super::function::Code;
use super::memory::{Block, BlockKind};
use super::modules::Modules;
use super::work::{Fill, Launch, Work};
use crate::device::box_copy::BoxCopy;
use crate::device::graph_records::{self, check_count, decoded};
use crate::executor::outbox::Failure;

/// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE` and `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`.
const ATTRIBUTE_COOPERATIVE: u32 = 2;
const ATTRIBUTE_CLUSTER_DIMENSION: u32 = 4;
const ATTRIBUTE_BYTES: usize = 72;
const FLAG_COOPERATIVE: u32 = 1;

/// `cuLaunchKernel`.
///
/// # Errors
/// No such function, or it cannot be launched like this.
pub(crate) fn launch<'a>(
    modules: &Modules,
    record: &CuLaunchKernel<'a>,
) -> Result<Work<'a>, Failure> {
    let function = modules.function(record.function)?;
    let grid = [record.grid_x, record.grid_y, record.grid_z];
    let block = [record.block_x, record.block_y, record.block_z];
    function.check(grid, block, record.shared_bytes, record.params)?;
    let params = match function.code() {
        Code::Kernel(kernel) => record
            .params
            .get(..kernel.info().param_bytes as usize)
            .unwrap_or(record.params),
        Code::Nothing => &[],
    };
    Ok(Work::Launch(Launch {
        function,
        grid,
        block,
        shared_bytes: record.shared_bytes,
        cooperative: record.flags & FLAG_COOPERATIVE != 0,
        params: Cow::Borrowed(params),
    }))
}

/// `cuLaunchKernelEx`.
///
/// # Errors
/// As [`launch`]; clusters, where kernels are run.
pub(crate) fn launch_ex<'a>(
    modules: &Modules,
    record: &CuLaunchKernelEx<'a>,
) -> Result<Work<'a>, Failure> {
    let mut flags = record.flags;
    let mut clustered = false;
    let (entries, []) = record.attributes.as_chunks::<ATTRIBUTE_BYTES>() else {
        return Err(Failure::new(
            CuStatus::INVALID_VALUE,
            "launch attributes are 72 bytes each",
        ));
    };
    for entry in entries {
        let word = |at: usize| {
            entry
                .get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        match word(0) {
            ATTRIBUTE_COOPERATIVE if word(8) != 0 => flags |= FLAG_COOPERATIVE,
            ATTRIBUTE_CLUSTER_DIMENSION => {
                clustered |= [word(8), word(12), word(16)].iter().any(|edge| *edge > 1)
            }
            // The others are hints.
            _ => {}
        }
    }
    let plain = CuLaunchKernel {
        function: record.function,
        stream: record.stream,
        grid_x: record.grid_x,
        grid_y: record.grid_y,
        grid_z: record.grid_z,
        block_x: record.block_x,
        block_y: record.block_y,
        block_z: record.block_z,
        shared_bytes: record.shared_bytes,
        flags,
        params: record.params,
    };
    let work = launch(modules, &plain)?;
    match &work {
        Work::Launch(launch) if clustered && !launch.function.is_quick() => Err(Failure::new(
            CuStatus::NOT_SUPPORTED,
            "the soft device has no thread block clusters",
        )),
        _ => Ok(work),
    }
}

/// `cuMemcpyHtoDAsync_v2` whose bytes are in the record.
///
/// # Errors
/// The length is not what the record says.
pub(crate) fn write<'a>(record: &CuMemcpyHtoDAsyncV2<'a>) -> Result<Work<'a>, Failure> {
    if record.data.len() as u64 != record.count || record.bulk != 0 {
        return Err(Failure::new(
            CuStatus::INVALID_VALUE,
            format!("{} bytes for a copy of {}", record.data.len(), record.count),
        ));
    }
    if record.count == 0 {
        return Ok(Work::Nothing);
    }
    Ok(Work::Write {
        dst: record.dst,
        data: Cow::Borrowed(record.data),
    })
}

/// `cuMemcpyDtoDAsync_v2`.
pub(crate) fn copy(record: &CuMemcpyDtoDAsyncV2) -> Work<'static> {
    match record.count {
        0 => Work::Nothing,
        count => Work::Copy {
            dst: record.dst,
            src: record.src,
            count,
        },
    }
}

/// `cuMemcpy3DAsync_v2`.
pub(crate) fn copy_box(record: &CuMemcpy3DAsyncV2) -> Work<'static> {
    Work::CopyBox(BoxCopy::of(record))
}

/// `cuMemsetD8Async` and its wider kin.
pub(crate) fn fill(record: &CuMemsetD8Async) -> Work<'static> {
    let &CuMemsetD8Async {
        dst,
        count,
        value,
        width,
        ..
    } = record;
    Work::Fill(Fill {
        dst,
        pitch: 0,
        row_count: 1,
        row_elements: count,
        value,
        width,
    })
}

/// `cuMemsetD2D8Async` and its wider kin.
pub(crate) fn fill_rows(record: &CuMemsetD2D8Async) -> Work<'static> {
    let &CuMemsetD2D8Async {
        dst,
        pitch,
        row_count,
        row_elements,
        value,
        width,
        ..
    } = record;
    Work::Fill(Fill {
        dst,
        pitch,
        row_count,
        row_elements,
        value,
        width,
    })
}

/// The operations of a graph.
///
/// # Errors
/// A record that does not decode, is no stream operation, or cannot be launched.
pub(crate) fn graph(
    modules: &Modules,
    records: &[u8],
    node_count: u64,
    owner: Block,
) -> Result<Vec<Work<'static>>, Failure> {
    check_count(node_count)?;
    graph_records::nodes(records, node_count, |head, body| {
        Ok(node(modules, head, body, owner)?.into_owned())
    })
}

fn node<'a>(
    modules: &Modules,
    head: &Head,
    body: &'a [u8],
    owner: Block,
) -> Result<Work<'a>, Failure> {
    Ok(match head.number {
        CuLaunchKernel::NUMBER => launch(modules, &decoded(body)?)?,
        CuLaunchKernelEx::NUMBER => launch_ex(modules, &decoded(body)?)?,
        CuMemcpyHtoDAsyncV2::NUMBER => write(&decoded(body)?)?,
        CuMemcpyDtoDAsyncV2::NUMBER => copy(&decoded(body)?),
        CuMemcpy3DAsyncV2::NUMBER => copy_box(&decoded(body)?),
        CuMemsetD8Async::NUMBER => fill(&decoded(body)?),
        CuMemsetD2D8Async::NUMBER => fill_rows(&decoded(body)?),
        CuLaunchHostFunc::NUMBER => {
            let record: CuLaunchHostFunc = decoded(body)?;
            Work::HostFunc {
                callback: record.callback,
                stream: record.stream,
            }
        }
        CuMemAllocAsync::NUMBER => {
            let record: CuMemAllocAsync = decoded(body)?;
            Work::Insert {
                addr: record.addr,
                block: Block {
                    bytes: record.bytes,
                    kind: BlockKind::Device,
                    ..owner
                },
            }
        }
        CuMemFreeAsync::NUMBER => {
            let record: CuMemFreeAsync = decoded(body)?;
            Work::Remove {
                addr: record.addr,
                host: false,
            }
        }
        number => {
            return Err(Failure::new(
                CuStatus::NOT_SUPPORTED,
                format!("record {number} as a node of a graph"),
            ));
        }
    })
}

/// Whether a device-to-host copy can be answered in its reply.
pub(crate) fn fits_inline(count: u64) -> bool {
    count <= INLINE_BYTES_MAX as u64
}
