//! Words written in the order of a stream. Waiting for a word is refused: no device here says that it can
//! (`CU_DEVICE_ATTRIBUTE_CAN_USE_*_STREAM_MEM_OPS`, `..._STREAM_WAIT_VALUE_NOR`).
#![forbid(unsafe_code)]

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemcpyHtoDAsyncV2, CuMemsetD8Async};

use super::stream;
use crate::ptr::HostPtr;
use crate::stream::Stream;

/// `CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER`.
const WRITE_FLAGS: u32 = 1;
/// `CU_STREAM_WAIT_VALUE_NOR | FLUSH`.
const WAIT_FLAGS: u32 = 3 | 1 << 30;
/// Operations of a batch, and bytes of each.
const BATCH_MAX: u32 = 256;
const OPERATION_BYTES: usize = 48;

fn write(stream: &Stream, address: u64, value: u64, width: u64, flags: u32) -> CuResult {
    if flags & !WRITE_FLAGS != 0 || !address.is_multiple_of(width) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let _target = super::check_target(stream, address, width)?;
    match u32::try_from(value) {
        Ok(value) if width == 4 => stream.issue(&CuMemsetD8Async {
            dst: address,
            count: 1,
            stream: stream.id,
            value,
            width: 4,
        }),
        _ => stream.issue(&CuMemcpyHtoDAsyncV2 {
            dst: address,
            count: width,
            stream: stream.id,
            bulk: 0,
            data: &value.to_le_bytes(),
        }),
    }
}

fn refuse_wait(stream: &Stream, address: u64, width: u64, flags: u32) -> CuResult {
    if flags & !WAIT_FLAGS != 0 || !address.is_multiple_of(width) {
        return Err(CuStatus::INVALID_VALUE);
    }
    super::check_source(stream, address, width)?;
    Err(CuStatus::NOT_SUPPORTED)
}

pub(crate) fn cuStreamWriteValue32_v2(
    mode: StreamMode,
    handle: u64,
    address: u64,
    value: u32,
    flags: u32,
) -> CuResult {
    let stream = stream(mode, handle)?;
    write(&stream, address, u64::from(value), 4, flags)
}

pub(crate) fn cuStreamWriteValue64_v2(
    mode: StreamMode,
    handle: u64,
    address: u64,
    value: u64,
    flags: u32,
) -> CuResult {
    write(&*stream(mode, handle)?, address, value, 8, flags)
}

pub(crate) use cuStreamWriteValue32_v2 as cuStreamWriteValue32;
pub(crate) use cuStreamWriteValue64_v2 as cuStreamWriteValue64;

/// `CUstreamBatchMemOpType`.
mod operation {
    pub(super) const WAIT_32: u32 = 1;
    pub(super) const WRITE_32: u32 = 2;
    pub(super) const FLUSH_REMOTE_WRITES: u32 = 3;
    pub(super) const WAIT_64: u32 = 4;
    pub(super) const WRITE_64: u32 = 5;
    pub(super) const BARRIER: u32 = 6;
}

/// Each operation: what, address, value, flags, 8 bytes apart.
pub(crate) fn cuStreamBatchMemOp_v2(
    mode: StreamMode,
    handle: u64,
    count: u32,
    list: HostPtr,
    flags: u32,
) -> CuResult {
    let stream = stream(mode, handle)?;
    if flags != 0 || count > BATCH_MAX {
        return Err(CuStatus::INVALID_VALUE);
    }
    for index in 0..count as usize {
        let at = list.offset(index * OPERATION_BYTES);
        let address = at.offset(8).input::<u64>().get()?;
        let value = at.offset(16).input::<u64>().get()?;
        let flags = at.offset(24).input::<u32>().get()?;
        match at.input::<u32>().get()? {
            operation::WRITE_32 => {
                let value = value & u64::from(u32::MAX);
                write(&stream, address, value, 4, flags)?;
            }
            operation::WRITE_64 => write(&stream, address, value, 8, flags)?,
            operation::WAIT_32 => refuse_wait(&stream, address, 4, flags)?,
            operation::WAIT_64 => refuse_wait(&stream, address, 8, flags)?,
            // The order of a stream is all the barrier there is to have.
            operation::BARRIER => {}
            operation::FLUSH_REMOTE_WRITES => return Err(CuStatus::NOT_SUPPORTED),
            _ => return Err(CuStatus::INVALID_VALUE),
        }
    }
    Ok(())
}

pub(crate) use cuStreamBatchMemOp_v2 as cuStreamBatchMemOp;
