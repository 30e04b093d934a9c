//! Memsets, all of them one record each.
#![forbid(unsafe_code)]

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::record::{Head, Record, split, to_vec};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemsetD2D8Async, CuMemsetD8Async};

use super::stream;
use crate::abi::CUDA_MEMSET_NODE_PARAMS;
use crate::crossing;
use crate::process::process;
use crate::stream::Stream;

/// The stream of a fill; `None`: that of a call that has none, which is over when it returns where the program sees the
/// memory (cuda.h: memset functions are asynchronous to the host, except on pinned memory and managed memory).
type OnStream = Option<u64>;

/// Fills `count` elements of `width` bytes.
fn fill(
    mode: StreamMode,
    dst: u64,
    count: usize,
    on: OnStream,
    value: u32,
    width: u32,
) -> CuResult {
    if !dst.is_multiple_of(u64::from(width)) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let stream = stream(mode, on.unwrap_or(0))?;
    if count == 0 {
        return Ok(());
    }
    let bytes = (count as u64).checked_mul(u64::from(width));
    let bytes = bytes.ok_or(CuStatus::INVALID_VALUE)?;
    at_owner(&stream, dst, on, |stream| {
        let target = super::check_target(stream, dst, bytes)?;
        let record = CuMemsetD8Async {
            dst,
            count: count as u64,
            stream: stream.id,
            value,
            width,
        };
        stream.issue_for(target.only_devices, &record)
    })
}

/// Memory of another server is filled there, in the order of the stream.
fn at_owner(
    stream: &Stream,
    dst: u64,
    on: OnStream,
    fill: impl FnOnce(&Stream) -> CuResult,
) -> CuResult {
    let is_over = on.is_none() && super::is_seen(dst)?;
    match crossing::abroad(stream, dst)? {
        None => {
            fill(stream)?;
            if is_over {
                super::finish_now(stream)?;
            }
        }
        Some(owner) => {
            crossing::run_at(owner, stream, fill)?;
            if is_over {
                crossing::finish_at(owner)?;
            }
        }
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn fill_rows(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    width: usize,
    height: usize,
    on: OnStream,
    value: u32,
    element: u32,
) -> CuResult {
    let row_bytes = width
        .checked_mul(element as usize)
        .ok_or(CuStatus::INVALID_VALUE)?;
    if !dst.is_multiple_of(u64::from(element)) || (height > 1 && pitch < row_bytes) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let stream = stream(mode, on.unwrap_or(0))?;
    if width == 0 || height == 0 {
        return Ok(());
    }
    let span = (height as u64 - 1)
        .checked_mul(pitch as u64)
        .and_then(|rows| rows.checked_add(row_bytes as u64));
    let span = span.ok_or(CuStatus::INVALID_VALUE)?;
    at_owner(&stream, dst, on, |stream| {
        let target = super::check_target(stream, dst, span)?;
        let record = CuMemsetD2D8Async {
            dst,
            pitch: pitch as u64,
            row_count: height as u64,
            row_elements: width as u64,
            stream: stream.id,
            value,
            width: element,
        };
        stream.issue_for(target.only_devices, &record)
    })
}

/// A memset node.
pub(super) struct Filling<'a>(&'a CUDA_MEMSET_NODE_PARAMS);

impl<'a> Filling<'a> {
    /// # Errors
    /// `INVALID_VALUE`: elements of another size than 1, 2, 4, rows that overlap, or memory that is not there.
    pub(super) fn of(params: &'a CUDA_MEMSET_NODE_PARAMS) -> CuResult<Self> {
        let element = params.elementSize as usize;
        let row = params.width.checked_mul(element);
        let row = row.ok_or(CuStatus::INVALID_VALUE)? as u64;
        let is_odd = !matches!(element, 1 | 2 | 4) || !params.dst.is_multiple_of(element as u64);
        let overlaps = params.height > 1 && (params.pitch as u64) < row;
        if is_odd || overlaps || row == 0 || params.height == 0 {
            return Err(CuStatus::INVALID_VALUE);
        }
        let span = (params.height as u64 - 1)
            .checked_mul(params.pitch as u64)
            .and_then(|rows| rows.checked_add(row))
            .ok_or(CuStatus::INVALID_VALUE)?;
        let memory = &process()?.memory;
        let known = memory.covering(params.dst, span);
        known.ok_or(CuStatus::INVALID_VALUE)?;
        Ok(Self(params))
    }

    /// The record, for no stream yet.
    pub(super) fn to_record(&self, context: u32) -> CuResult<Vec<u8>> {
        let params = self.0;
        Ok(to_vec(
            Head::request(CuMemsetD2D8Async::NUMBER, context, 0),
            &CuMemsetD2D8Async {
                dst: params.dst,
                pitch: params.pitch as u64,
                row_count: params.height as u64,
                row_elements: params.width as u64,
                stream: 0,
                value: params.value,
                width: params.elementSize,
            },
        ))
    }

    /// What the program would have described.
    ///
    /// # Errors
    /// `INVALID_VALUE`: another record.
    pub(super) fn read(bytes: &[u8]) -> CuResult<CUDA_MEMSET_NODE_PARAMS> {
        let invalid = |_| CuStatus::INVALID_VALUE;
        let size = |value: u64| usize::try_from(value).map_err(|_| CuStatus::INVALID_VALUE);
        let (head, body, _) = split(bytes).map_err(invalid)?;
        match head.number {
            CuMemsetD2D8Async::NUMBER => {
                let fill = CuMemsetD2D8Async::decode_body(body).map_err(invalid)?;
                Ok(CUDA_MEMSET_NODE_PARAMS {
                    dst: fill.dst,
                    pitch: size(fill.pitch)?,
                    value: fill.value,
                    elementSize: fill.width,
                    width: size(fill.row_elements)?,
                    height: size(fill.row_count)?,
                })
            }
            CuMemsetD8Async::NUMBER => {
                let fill = CuMemsetD8Async::decode_body(body).map_err(invalid)?;
                Ok(CUDA_MEMSET_NODE_PARAMS {
                    dst: fill.dst,
                    pitch: 0,
                    value: fill.value,
                    elementSize: fill.width,
                    width: size(fill.count)?,
                    height: 1,
                })
            }
            _ => Err(CuStatus::INVALID_VALUE),
        }
    }
}

pub(crate) fn cuMemsetD8_v2(mode: StreamMode, dst: u64, value: u8, count: usize) -> CuResult {
    fill(mode, dst, count, None, u32::from(value), 1)
}

pub(crate) fn cuMemsetD16_v2(mode: StreamMode, dst: u64, value: u16, count: usize) -> CuResult {
    fill(mode, dst, count, None, u32::from(value), 2)
}

pub(crate) fn cuMemsetD32_v2(mode: StreamMode, dst: u64, value: u32, count: usize) -> CuResult {
    fill(mode, dst, count, None, value, 4)
}

pub(crate) fn cuMemsetD8Async(
    mode: StreamMode,
    dst: u64,
    value: u8,
    count: usize,
    handle: u64,
) -> CuResult {
    fill(mode, dst, count, Some(handle), u32::from(value), 1)
}

pub(crate) fn cuMemsetD16Async(
    mode: StreamMode,
    dst: u64,
    value: u16,
    count: usize,
    handle: u64,
) -> CuResult {
    fill(mode, dst, count, Some(handle), u32::from(value), 2)
}

pub(crate) fn cuMemsetD32Async(
    mode: StreamMode,
    dst: u64,
    value: u32,
    count: usize,
    handle: u64,
) -> CuResult {
    fill(mode, dst, count, Some(handle), value, 4)
}

pub(crate) fn cuMemsetD2D8_v2(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
) -> CuResult {
    fill_rows(mode, dst, pitch, width, height, None, u32::from(value), 1)
}

pub(crate) fn cuMemsetD2D16_v2(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    value: u16,
    width: usize,
    height: usize,
) -> CuResult {
    fill_rows(mode, dst, pitch, width, height, None, u32::from(value), 2)
}

pub(crate) fn cuMemsetD2D32_v2(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
) -> CuResult {
    fill_rows(mode, dst, pitch, width, height, None, value, 4)
}

pub(crate) fn cuMemsetD2D8Async(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
    handle: u64,
) -> CuResult {
    fill_rows(
        mode,
        dst,
        pitch,
        width,
        height,
        Some(handle),
        u32::from(value),
        1,
    )
}

pub(crate) fn cuMemsetD2D16Async(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    value: u16,
    width: usize,
    height: usize,
    handle: u64,
) -> CuResult {
    fill_rows(
        mode,
        dst,
        pitch,
        width,
        height,
        Some(handle),
        u32::from(value),
        2,
    )
}

pub(crate) fn cuMemsetD2D32Async(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
    handle: u64,
) -> CuResult {
    fill_rows(mode, dst, pitch, width, height, Some(handle), value, 4)
}
