//! Attributes of streams: hints and domains that the program reads back.
#![forbid(unsafe_code)]

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};

use super::stream;
use crate::ptr::HostPtr;

/// Bytes of a value (`CUstreamAttrValue`).
const VALUE_BYTES: usize = 64;
/// `CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY` and `_PRIORITY`.
const SYNCHRONIZATION_POLICY: u32 = 3;
const PRIORITY: u32 = 8;

/// Access policy window, synchronization policy, priority, memory domains (map and domain).
fn check(attribute: u32) -> CuResult {
    if matches!(attribute, 1 | SYNCHRONIZATION_POLICY | PRIORITY | 9 | 10) {
        Ok(())
    } else {
        Err(CuStatus::INVALID_VALUE)
    }
}

pub(crate) fn cuStreamGetAttribute(
    mode: StreamMode,
    handle: u64,
    attribute: u32,
    place: HostPtr,
) -> CuResult {
    check(attribute)?;
    let stream = stream(mode, handle)?;
    let mut value = [0; VALUE_BYTES];
    match stream.attributes.lock().get(&attribute) {
        Some(known) => value = *known,
        None => {
            // What a new stream has: its own priority, CU_SYNC_POLICY_AUTO, the domain 0 for local work and 1 for remote.
            let first = match attribute {
                PRIORITY => stream.priority.to_le_bytes(),
                SYNCHRONIZATION_POLICY => 1_u32.to_le_bytes(),
                9 => [0, 1, 0, 0],
                _ => [0; 4],
            };
            if let Some(start) = value.first_chunk_mut::<4>() {
                *start = first;
            }
        }
    }
    place.write(&value)
}

pub(crate) fn cuStreamSetAttribute(
    mode: StreamMode,
    handle: u64,
    attribute: u32,
    value: HostPtr,
) -> CuResult {
    check(attribute)?;
    let stream = stream(mode, handle)?;
    let bytes = value.bytes(VALUE_BYTES)?.first_chunk::<VALUE_BYTES>();
    let bytes = *bytes.ok_or(CuStatus::INVALID_VALUE)?;
    if attribute == SYNCHRONIZATION_POLICY && !(1..=4).contains(&bytes[0]) {
        return Err(CuStatus::INVALID_VALUE);
    }
    stream.attributes.lock().insert(attribute, bytes);
    Ok(())
}

pub(crate) fn cuStreamCopyAttributes(mode: StreamMode, to: u64, from: u64) -> CuResult {
    let (to, from) = (stream(mode, to)?, stream(mode, from)?);
    if !std::ptr::eq(to.context, from.context) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let attributes = from.attributes.lock().clone();
    *to.attributes.lock() = attributes;
    Ok(())
}
