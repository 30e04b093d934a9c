//! Copies of boxes, copies with arrays, and many copies in one call.
#![forbid(unsafe_code)]

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemAllocAsync, CuMemFreeAsync, CuMemFreeV2};

use super::stream;
use crate::abi::{
    CUDA_MEMCPY2D, CUDA_MEMCPY3D, CUDA_MEMCPY3D_BATCH_OP, CUmemcpy3DOperand, CUmemcpyAttributes,
};
use crate::box_copy::BoxCopy;
use crate::crossing;
use crate::memory::{self, Allocation};
use crate::process::process;
use crate::ptr::{HostPtr, In, Out};
use crate::stream::Stream;

/// `CUmemorytype`.
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;
const UNIFIED: u32 = 4;

/// Memory that lives as long as a copy, in the order of its stream.
pub(crate) fn passage(stream: &Stream, len: usize) -> CuResult<Allocation> {
    let allocation = memory::take(stream.context, len as u64, 0)?;
    if !stream.session().places_memory() {
        let record = CuMemAllocAsync {
            addr: allocation.start,
            bytes: allocation.reserved_bytes,
            stream: stream.id,
        };
        stream
            .issue(&record)
            .inspect_err(|_| memory::release(&allocation))?;
    }
    process()?.memory.insert(allocation);
    Ok(allocation)
}

/// Its end.
pub(crate) fn end_passage(stream: &Stream, allocation: &Allocation) -> CuResult {
    let addr = allocation.start;
    process()?.memory.remove(addr, &[allocation.kind])?;
    let sent = if stream.session().places_memory() {
        let context = stream.context;
        context.session().send(context.id, &CuMemFreeV2 { addr })
    } else {
        stream.issue(&CuMemFreeAsync {
            addr,
            stream: stream.id,
        })
    };
    memory::release(allocation);
    sent
}

/// `is_async`: the program goes on before it has run.
fn copy_box(mode: StreamMode, copy: CUDA_MEMCPY3D, handle: u64, is_async: bool) -> CuResult {
    let stream = stream(mode, handle)?;
    let resolved = BoxCopy::resolve(&copy)?;
    if let Some(capture) = stream.capturing()? {
        if crossing::is_abroad(&resolved, &stream)? {
            return Err(crossing::spoil(&capture));
        }
        return resolved.capture(&stream, &capture, copy);
    }
    if process()?.has_several_servers() {
        crossing::copy_box(&resolved, &stream, is_async)?;
    } else {
        resolved.run(&stream, is_async)?;
    }
    if !is_async && resolved.src.is_host && !resolved.dst.is_host {
        return stream.session().uploaded(&stream);
    }
    Ok(())
}

pub(crate) fn cuMemcpy2D_v2(mode: StreamMode, copy: In<CUDA_MEMCPY2D>) -> CuResult {
    copy_box(mode, copy.get()?.as_box(), 0, false)
}

pub(crate) fn cuMemcpy2DUnaligned_v2(mode: StreamMode, copy: In<CUDA_MEMCPY2D>) -> CuResult {
    cuMemcpy2D_v2(mode, copy)
}

pub(crate) fn cuMemcpy2DAsync_v2(
    mode: StreamMode,
    copy: In<CUDA_MEMCPY2D>,
    handle: u64,
) -> CuResult {
    copy_box(mode, copy.get()?.as_box(), handle, true)
}

pub(crate) fn cuMemcpy3D_v2(mode: StreamMode, copy: In<CUDA_MEMCPY3D>) -> CuResult {
    copy_box(mode, copy.get()?, 0, false)
}

pub(crate) fn cuMemcpy3DAsync_v2(
    mode: StreamMode,
    copy: In<CUDA_MEMCPY3D>,
    handle: u64,
) -> CuResult {
    copy_box(mode, copy.get()?, handle, true)
}

/// The contexts stand where other copies have reserved words; an address says itself where it is.
pub(crate) fn cuMemcpy3DPeer(mode: StreamMode, copy: In<CUDA_MEMCPY3D>) -> CuResult {
    copy_box(mode, copy.get()?, 0, false)
}

pub(crate) fn cuMemcpy3DPeerAsync(
    mode: StreamMode,
    copy: In<CUDA_MEMCPY3D>,
    handle: u64,
) -> CuResult {
    copy_box(mode, copy.get()?, handle, true)
}

// ---- arrays, of which some bytes of a row are named by their offset

/// An end of a copy of bytes.
#[derive(Clone, Copy)]
enum Bytes {
    Host(HostPtr),
    Device(u64),
    Array(u64, usize),
}

fn copy_bytes(
    mode: StreamMode,
    to: Bytes,
    from: Bytes,
    bytes: usize,
    handle: u64,
    is_async: bool,
) -> CuResult {
    let mut copy = CUDA_MEMCPY3D {
        WidthInBytes: bytes,
        Height: 1,
        Depth: 1,
        ..CUDA_MEMCPY3D::default()
    };
    match from {
        Bytes::Host(at) => (copy.srcMemoryType, copy.srcHost) = (HOST, at.address()),
        Bytes::Device(at) => (copy.srcMemoryType, copy.srcDevice) = (DEVICE, at),
        Bytes::Array(array, offset) => {
            (copy.srcMemoryType, copy.srcArray, copy.srcXInBytes) = (ARRAY, array, offset);
        }
    }
    match to {
        Bytes::Host(at) => (copy.dstMemoryType, copy.dstHost) = (HOST, at.address()),
        Bytes::Device(at) => (copy.dstMemoryType, copy.dstDevice) = (DEVICE, at),
        Bytes::Array(array, offset) => {
            (copy.dstMemoryType, copy.dstArray, copy.dstXInBytes) = (ARRAY, array, offset);
        }
    }
    if bytes == 0 {
        return Ok(());
    }
    copy_box(mode, copy, handle, is_async)
}

pub(crate) fn cuMemcpyHtoA_v2(
    mode: StreamMode,
    array: u64,
    offset: usize,
    from: HostPtr,
    bytes: usize,
) -> CuResult {
    let to = Bytes::Array(array, offset);
    copy_bytes(mode, to, Bytes::Host(from), bytes, 0, false)
}

pub(crate) fn cuMemcpyHtoAAsync_v2(
    mode: StreamMode,
    array: u64,
    offset: usize,
    from: HostPtr,
    bytes: usize,
    handle: u64,
) -> CuResult {
    let to = Bytes::Array(array, offset);
    copy_bytes(mode, to, Bytes::Host(from), bytes, handle, true)
}

pub(crate) fn cuMemcpyAtoH_v2(
    mode: StreamMode,
    to: HostPtr,
    array: u64,
    offset: usize,
    bytes: usize,
) -> CuResult {
    let from = Bytes::Array(array, offset);
    copy_bytes(mode, Bytes::Host(to), from, bytes, 0, false)
}

pub(crate) fn cuMemcpyAtoHAsync_v2(
    mode: StreamMode,
    to: HostPtr,
    array: u64,
    offset: usize,
    bytes: usize,
    handle: u64,
) -> CuResult {
    let from = Bytes::Array(array, offset);
    copy_bytes(mode, Bytes::Host(to), from, bytes, handle, true)
}

pub(crate) fn cuMemcpyDtoA_v2(
    mode: StreamMode,
    array: u64,
    offset: usize,
    from: u64,
    bytes: usize,
) -> CuResult {
    let to = Bytes::Array(array, offset);
    copy_bytes(mode, to, Bytes::Device(from), bytes, 0, false)
}

pub(crate) fn cuMemcpyAtoD_v2(
    mode: StreamMode,
    to: u64,
    array: u64,
    offset: usize,
    bytes: usize,
) -> CuResult {
    let from = Bytes::Array(array, offset);
    copy_bytes(mode, Bytes::Device(to), from, bytes, 0, false)
}

pub(crate) fn cuMemcpyAtoA_v2(
    mode: StreamMode,
    to: u64,
    to_offset: usize,
    from: u64,
    from_offset: usize,
    bytes: usize,
) -> CuResult {
    let (to, from) = (Bytes::Array(to, to_offset), Bytes::Array(from, from_offset));
    copy_bytes(mode, to, from, bytes, 0, false)
}

// ---- many copies

/// `CUmemcpySrcAccessOrder`.
fn check_order(order: u32) -> CuResult {
    if matches!(order, 1..=3) {
        Ok(())
    } else {
        Err(CuStatus::INVALID_VALUE)
    }
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuMemcpyBatchAsync(
    mode: StreamMode,
    dsts: Out<u64>,
    srcs: Out<u64>,
    sizes: Out<usize>,
    count: usize,
    attributes: Out<CUmemcpyAttributes>,
    indices: Out<usize>,
    attribute_count: usize,
    failed: Out<usize>,
    handle: u64,
) -> CuResult {
    failed.set_if(usize::MAX);
    cuMemcpyBatchAsync_v2(
        mode,
        dsts,
        srcs,
        sizes,
        count,
        attributes,
        indices,
        attribute_count,
        handle,
    )
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuMemcpyBatchAsync_v2(
    mode: StreamMode,
    dsts: Out<u64>,
    srcs: Out<u64>,
    sizes: Out<usize>,
    count: usize,
    attributes: Out<CUmemcpyAttributes>,
    indices: Out<usize>,
    attribute_count: usize,
    handle: u64,
) -> CuResult {
    // cuda.h: at least one copy and one attribute, the first for the first copy, in ascending order; a stream of its own.
    if count == 0 || attribute_count == 0 || attribute_count > count || handle == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let mut last = None;
    for at in 0..attribute_count {
        check_order(attributes.get_at(at)?.srcAccessOrder)?;
        let index = indices.get_at(at)?;
        let is_next = last.map_or(index == 0, |last| index > last);
        if !is_next || index >= count {
            return Err(CuStatus::INVALID_VALUE);
        }
        last = Some(index);
    }
    for at in 0..count {
        let (dst, src, bytes) = (dsts.get_at(at)?, srcs.get_at(at)?, sizes.get_at(at)?);
        if dst == 0 || src == 0 || bytes == 0 {
            return Err(CuStatus::INVALID_VALUE);
        }
    }
    for at in 0..count {
        let (dst, src, bytes) = (dsts.get_at(at)?, srcs.get_at(at)?, sizes.get_at(at)?);
        super::cuMemcpyAsync(mode, dst, src, bytes, handle)?;
    }
    Ok(())
}

pub(crate) fn cuMemcpyWithAttributesAsync(
    mode: StreamMode,
    dst: u64,
    src: u64,
    bytes: usize,
    attributes: Out<CUmemcpyAttributes>,
    handle: u64,
) -> CuResult {
    check_order(attributes.get()?.srcAccessOrder)?;
    super::cuMemcpyAsync(mode, dst, src, bytes, handle)
}

pub(crate) fn cuMemcpy3DBatchAsync(
    mode: StreamMode,
    count: usize,
    list: Out<CUDA_MEMCPY3D_BATCH_OP>,
    failed: Out<usize>,
    flags: u64,
    handle: u64,
) -> CuResult {
    failed.set_if(usize::MAX);
    cuMemcpy3DBatchAsync_v2(mode, count, list, flags, handle)
}

pub(crate) fn cuMemcpy3DBatchAsync_v2(
    mode: StreamMode,
    count: usize,
    list: Out<CUDA_MEMCPY3D_BATCH_OP>,
    flags: u64,
    handle: u64,
) -> CuResult {
    if count == 0 || flags != 0 || handle == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let copies: CuResult<Vec<CUDA_MEMCPY3D>> =
        (0..count).map(|at| described(&list.get_at(at)?)).collect();
    copies?
        .into_iter()
        .try_for_each(|copy| copy_box(mode, copy, handle, true))
}

pub(crate) fn cuMemcpy3DWithAttributesAsync(
    mode: StreamMode,
    op: Out<CUDA_MEMCPY3D_BATCH_OP>,
    flags: u64,
    handle: u64,
) -> CuResult {
    if flags != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    copy_box(mode, described(&op.get()?)?, handle, true)
}

/// A copy of a batch, whose sizes are in elements: of the array if there is one, else of one byte.
fn described(op: &CUDA_MEMCPY3D_BATCH_OP) -> CuResult<CUDA_MEMCPY3D> {
    check_order(op.srcAccessOrder)?;
    let [width, height, depth] = op.extent;
    if width == 0 || height == 0 || depth == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let mut element = 1;
    for operand in [&op.src, &op.dst] {
        if operand.type_ == CUmemcpy3DOperand::ARRAY {
            element = process()?.arrays.get(operand.words[0])?.element_bytes();
        }
    }
    let bytes = |elements: usize| elements.checked_mul(element).ok_or(CuStatus::INVALID_VALUE);
    let mut copy = CUDA_MEMCPY3D {
        WidthInBytes: bytes(width)?,
        Height: height,
        Depth: depth,
        ..CUDA_MEMCPY3D::default()
    };
    let size = |word: u64| usize::try_from(word).map_err(|_| CuStatus::INVALID_VALUE);
    // Pointer: address, elements of a row, rows of a layer. Array: handle, offset in elements.
    let rows = |operand: &CUmemcpy3DOperand| -> CuResult<(usize, usize)> {
        let (row, layer) = (size(operand.words[1])?, size(operand.words[2])?);
        Ok((
            bytes(if row == 0 { width } else { row })?,
            if layer == 0 { height } else { layer },
        ))
    };
    match op.src.type_ {
        CUmemcpy3DOperand::POINTER => {
            (copy.srcMemoryType, copy.srcDevice) = (UNIFIED, op.src.words[0]);
            (copy.srcPitch, copy.srcHeight) = rows(&op.src)?;
        }
        CUmemcpy3DOperand::ARRAY => {
            (copy.srcMemoryType, copy.srcArray) = (ARRAY, op.src.words[0]);
            copy.srcXInBytes = bytes(size(op.src.words[1])?)?;
            (copy.srcY, copy.srcZ) = (size(op.src.words[2])?, size(op.src.words[3])?);
        }
        _ => return Err(CuStatus::INVALID_VALUE),
    }
    match op.dst.type_ {
        CUmemcpy3DOperand::POINTER => {
            (copy.dstMemoryType, copy.dstDevice) = (UNIFIED, op.dst.words[0]);
            (copy.dstPitch, copy.dstHeight) = rows(&op.dst)?;
        }
        CUmemcpy3DOperand::ARRAY => {
            (copy.dstMemoryType, copy.dstArray) = (ARRAY, op.dst.words[0]);
            copy.dstXInBytes = bytes(size(op.dst.words[1])?)?;
            (copy.dstY, copy.dstZ) = (size(op.dst.words[2])?, size(op.dst.words[3])?);
        }
        _ => return Err(CuStatus::INVALID_VALUE),
    }
    Ok(copy)
}
