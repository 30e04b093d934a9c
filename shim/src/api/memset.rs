//! Memsets, all of them one record each.
#![forbid(unsafe_code)]

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemsetD2D8Async, CuMemsetD8Async};

use super::stream;

/// Fills `count` elements of `width` bytes. Asynchronous to the host in every form (cuda.h: memset functions are
/// asynchronous with respect to the host, except on pinned memory).
fn fill(mode: StreamMode, dst: u64, count: usize, handle: u64, value: u32, width: u32) -> CuResult {
    if !dst.is_multiple_of(u64::from(width)) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let stream = stream(mode, handle)?;
    if count == 0 {
        return Ok(());
    }
    super::check_device_range(&stream, dst, count as u64 * u64::from(width))?;
    stream.issue(&CuMemsetD8Async {
        dst,
        count: count as u64,
        stream: stream.id,
        value,
        width,
    })
}

#[allow(clippy::too_many_arguments)]
fn fill_rows(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    width: usize,
    height: usize,
    handle: u64,
    value: u32,
    element: u32,
) -> CuResult {
    let row_bytes = width
        .checked_mul(element as usize)
        .ok_or(CuStatus::INVALID_VALUE)?;
    if !dst.is_multiple_of(u64::from(element)) || (height > 1 && pitch < row_bytes) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let stream = stream(mode, handle)?;
    if width == 0 || height == 0 {
        return Ok(());
    }
    let span = (height as u64 - 1)
        .checked_mul(pitch as u64)
        .and_then(|rows| rows.checked_add(row_bytes as u64));
    super::check_device_range(&stream, dst, span.ok_or(CuStatus::INVALID_VALUE)?)?;
    stream.issue(&CuMemsetD2D8Async {
        dst,
        pitch: pitch as u64,
        row_count: height as u64,
        row_elements: width as u64,
        stream: stream.id,
        value,
        width: element,
    })
}

pub(crate) fn cuMemsetD8_v2(mode: StreamMode, dst: u64, value: u8, count: usize) -> CuResult {
    fill(mode, dst, count, 0, u32::from(value), 1)
}

pub(crate) fn cuMemsetD16_v2(mode: StreamMode, dst: u64, value: u16, count: usize) -> CuResult {
    fill(mode, dst, count, 0, u32::from(value), 2)
}

pub(crate) fn cuMemsetD32_v2(mode: StreamMode, dst: u64, value: u32, count: usize) -> CuResult {
    fill(mode, dst, count, 0, value, 4)
}

pub(crate) fn cuMemsetD8Async(
    mode: StreamMode,
    dst: u64,
    value: u8,
    count: usize,
    handle: u64,
) -> CuResult {
    fill(mode, dst, count, handle, u32::from(value), 1)
}

pub(crate) fn cuMemsetD16Async(
    mode: StreamMode,
    dst: u64,
    value: u16,
    count: usize,
    handle: u64,
) -> CuResult {
    fill(mode, dst, count, handle, u32::from(value), 2)
}

pub(crate) fn cuMemsetD32Async(
    mode: StreamMode,
    dst: u64,
    value: u32,
    count: usize,
    handle: u64,
) -> CuResult {
    fill(mode, dst, count, handle, value, 4)
}

pub(crate) fn cuMemsetD2D8_v2(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
) -> CuResult {
    fill_rows(mode, dst, pitch, width, height, 0, u32::from(value), 1)
}

pub(crate) fn cuMemsetD2D16_v2(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    value: u16,
    width: usize,
    height: usize,
) -> CuResult {
    fill_rows(mode, dst, pitch, width, height, 0, u32::from(value), 2)
}

pub(crate) fn cuMemsetD2D32_v2(
    mode: StreamMode,
    dst: u64,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
) -> CuResult {
    fill_rows(mode, dst, pitch, width, height, 0, value, 4)
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
    fill_rows(mode, dst, pitch, width, height, handle, u32::from(value), 1)
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
    fill_rows(mode, dst, pitch, width, height, handle, u32::from(value), 2)
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
    fill_rows(mode, dst, pitch, width, height, handle, value, 4)
}
