//! Access of one device to another's memory, which no device here offers (`cuDeviceCanAccessPeer`); copies work all the same.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};

use crate::context;

pub(crate) fn cuCtxEnablePeerAccess(peer: u64, flags: u32) -> CuResult {
    let current = context::current()?;
    let peer = context::by_handle(peer)?;
    if flags != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    if std::ptr::eq(current.device, peer.device) {
        return Err(CuStatus::INVALID_CONTEXT);
    }
    Err(CuStatus::PEER_ACCESS_UNSUPPORTED)
}

pub(crate) fn cuCtxDisablePeerAccess(peer: u64) -> CuResult {
    context::current()?;
    context::by_handle(peer)?;
    Err(CuStatus::PEER_ACCESS_NOT_ENABLED)
}
