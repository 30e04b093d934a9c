//! Bulk transfers into the program's memory, and pinned memory that they need no copy for.
//!
//! Fenced `unsafe`: the transport writes to a raw destination until it says that it is done.

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_transport::Endpoint;

use crate::ptr::HostPtr;
use crate::ticket::Pending;

/// Announces where transfer `id` is to be written; `pending` hears when all of it is there.
pub(crate) fn expect(
    endpoint: &Endpoint,
    id: u64,
    to: HostPtr,
    len: usize,
    pending: Arc<Pending>,
) -> CuResult {
    let done = Box::new(move |result: Result<usize, farcall_transport::BulkError>| {
        let is_whole = matches!(result, Ok(got) if got == len);
        pending.transferred(if is_whole {
            Ok(())
        } else {
            Err(CuStatus::DEVICE_UNAVAILABLE)
        });
    });
    // SAFETY: `to` is a destination of a copy, which the C contract keeps valid for `len` bytes until the call
    // returns (pageable memory: the call waits for `done`) or until the stream is synchronized (pinned memory: the
    // synchronization and `cuMemFreeHost` wait for `done`).
    unsafe { endpoint.bulk_post(id, to.raw(), len, done) }.map_err(|_| CuStatus::DEVICE_UNAVAILABLE)
}

/// Lets copies from and to pinned memory go straight over the wire, where the transport can do that.
pub(crate) fn lend(endpoint: &Endpoint, at: HostPtr, bytes: u64) {
    let Ok(bytes) = usize::try_from(bytes) else {
        return;
    };
    // SAFETY: pages of ours, opened by `memory::take_host` and closed behind `take_back`; or the program's, which
    // the C contract keeps mapped until `cuMemHostUnregister`. The program owns their bytes, all of them are
    // initialised (pages from the system), and this library only copies from and to them.
    unsafe { endpoint.bulk_lend(at.raw(), bytes) };
}

/// Pinned memory is about to be none. Copies from and to it are over.
pub(crate) fn take_back(endpoint: &Endpoint, at: HostPtr) {
    endpoint.bulk_reclaim(at.raw());
}
