//! Host-to-device copies over the bulk plane.
//!
//! Where the stream has nothing before the copy, the bytes are received where they belong. Else they
//! are received ahead into a buffer, up to a limit, so that the bulk connection does not stand still
//! behind a long kernel; past the limit they are received when the stream gets there.

use std::sync::Arc;

use farcall_marshal::status::CuStatus;

use crate::executor::outbox::{Failure, Outbox};
use crate::limits::DISCARD_BYTES_MAX;
use crate::sys::raw;
use crate::sys::staging::Staging;

/// One transfer.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Destination.
    pub(crate) dst: u64,
    /// Size in bytes.
    pub(crate) count: u64,
    /// Number of the transfer.
    pub(crate) id: u64,
    /// Where it is received ahead of its stream.
    pub(crate) staging: Option<Arc<Staging>>,
}

impl Upload {
    /// Whether the stream can go on with it: it was not received ahead, or has come.
    pub(crate) fn is_ready(&self) -> bool {
        self.staging
            .as_ref()
            .is_none_or(|staging| staging.contents().is_some())
    }

    /// Judges what came.
    pub(crate) fn outcome(&self, came: Option<usize>) -> Result<(), Failure> {
        match came {
            Some(bytes) if bytes as u64 == self.count => Ok(()),
            Some(bytes) => {
                let message = format!(
                    "bulk transfer {} has {bytes} bytes, its copy {}",
                    self.id, self.count
                );
                Err(Failure::new(CuStatus::INVALID_VALUE, message))
            }
            None => Err(Failure::new(
                CuStatus::UNKNOWN,
                format!("bulk transfer {} did not come", self.id),
            )),
        }
    }

    /// Receives straight into device memory.
    ///
    /// # Safety
    /// `dst..dst + count` lies in one block of device memory, which is not freed before `done` is called.
    pub(crate) unsafe fn receive_in_place(
        &self,
        outbox: &dyn Outbox,
        done: impl FnOnce(Option<usize>) + Send + 'static,
    ) {
        let len = usize::try_from(self.count).unwrap_or(0);
        // SAFETY: the caller promises that the block stays until `done` is called.
        unsafe { outbox.bulk_post(self.id, raw::pointer(self.dst), len, Box::new(done)) };
    }
}

/// Receives a transfer into a buffer.
pub(crate) fn receive_ahead(
    outbox: &dyn Outbox,
    id: u64,
    staging: &Arc<Staging>,
    len: usize,
    done: impl FnOnce() + Send + 'static,
) {
    let held = staging.clone();
    let done = move |came: Option<usize>| {
        held.filled(came.unwrap_or(0));
        done();
    };
    // SAFETY: `done` holds the buffer, which so outlives the transfer, and nobody reads it before `filled`.
    unsafe { outbox.bulk_post(id, staging.destination(), len, Box::new(done)) };
}

/// Takes a transfer off the bulk plane that nobody wants, so that those behind it can come.
pub(crate) fn discard(outbox: &dyn Outbox, id: u64, count: u64) {
    // A longer one ends the session: the transport takes no more than was posted.
    let len = usize::try_from(count.min(DISCARD_BYTES_MAX)).unwrap_or(0);
    receive_ahead(outbox, id, &Arc::new(Staging::new(len)), len, || ());
}
