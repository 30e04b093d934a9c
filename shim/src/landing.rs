//! Bulk transfers into the program's memory.
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
