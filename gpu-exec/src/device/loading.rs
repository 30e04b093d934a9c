//! What every device does to load a module: a thread of its own, the image from the wire or the cache, the answers.
#![forbid(unsafe_code)]

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use farcall_marshal::image::{content_hash, expand_from_wire};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuModuleGetGlobalV2Reply, CuModuleLoadDataReply};
use parking_lot::Mutex;

use crate::cache::Cache;
use crate::executor::outbox::{Failure, Outbox, Reply, clipped};
use crate::limits::{IMAGE_BYTES_MAX, LOADS_MAX};

/// A thread that takes loads one after the other; it starts with the first.
#[derive(Debug)]
pub(crate) struct Loader<L> {
    loads: Mutex<Option<SyncSender<L>>>,
}

impl<L: Send + 'static> Loader<L> {
    /// Starts no thread.
    pub(crate) fn new() -> Self {
        Self {
            loads: Mutex::new(None),
        }
    }

    /// Queues a load for `serve`, which the first call starts. Does not wait.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`: too many wait. `OPERATING_SYSTEM`: no thread. `UNKNOWN`: the thread is gone.
    pub(crate) fn hand_over(
        &self,
        load: L,
        stack_bytes: usize,
        serve: impl FnOnce(Receiver<L>) + Send + 'static,
    ) -> Result<(), Failure> {
        let mut loads = self.loads.lock();
        let sender = match &*loads {
            Some(sender) => sender,
            None => {
                let (sender, receiver) = sync_channel(LOADS_MAX);
                let builder = std::thread::Builder::new()
                    .name("loader".to_owned())
                    .stack_size(stack_bytes);
                builder
                    .spawn(move || serve(receiver))
                    .map_err(|error| Failure::new(CuStatus::OPERATING_SYSTEM, error.to_string()))?;
                loads.insert(sender)
            }
        };
        sender.try_send(load).map_err(|refused| match refused {
            TrySendError::Full(_) => {
                Failure::new(CuStatus::OUT_OF_MEMORY, "too many modules are being loaded")
            }
            TrySendError::Disconnected(_) => Failure::new(CuStatus::UNKNOWN, "the loader is gone"),
        })
    }
}

/// A module that is not loaded yet, and what was asked of it meanwhile.
#[derive(Debug)]
pub(crate) struct Waiting<Q> {
    /// In the order of their records.
    pub(crate) questions: Vec<Q>,
    /// The image came neither with the load nor from the cache: the client sends it in a second load of the same module.
    is_wanted: bool,
}

impl<Q> Waiting<Q> {
    /// Nothing was asked so far.
    pub(crate) fn new() -> Self {
        Self {
            questions: Vec::new(),
            is_wanted: false,
        }
    }

    /// The client is asked for the image.
    pub(crate) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// A second load came; whether it was wanted.
    pub(crate) fn take_wanted(&mut self) -> bool {
        std::mem::take(&mut self.is_wanted)
    }
}

/// A module's image as a record announces it.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) total_bytes: u64,
    pub(crate) bulk: u64,
    pub(crate) hash: [u8; 32],
    /// As it came inside the record; not looked at if there is a bulk transfer.
    pub(crate) packed: Vec<u8>,
}

impl Image {
    /// The image that came with the load, expanded and verified; `None` if none came. Blocks for a bulk transfer.
    ///
    /// # Errors
    /// `INVALID_IMAGE`: it did not come, or is not what was announced.
    pub(crate) fn receive(&self, outbox: &dyn Outbox) -> Result<Option<Vec<u8>>, Failure> {
        let invalid = |message: String| Failure::new(CuStatus::INVALID_IMAGE, message);
        let came;
        let packed = if self.bulk == 0 {
            &self.packed
        } else {
            let len = usize::try_from(self.total_bytes)
                .unwrap_or(usize::MAX)
                .min(IMAGE_BYTES_MAX);
            came = outbox.bulk_receive(self.bulk, len);
            came.as_ref()
                .ok_or_else(|| invalid(format!("bulk transfer {} did not come", self.bulk)))?
        };
        if packed.is_empty() {
            return Ok(None);
        }
        let image = expand_from_wire(packed, IMAGE_BYTES_MAX)
            .map_err(|error| invalid(error.to_string()))?;
        if content_hash(&image) != self.hash {
            return Err(invalid("the image is not what its hash says".to_owned()));
        }
        Ok(Some(image))
    }

    /// Whether the load failed because the client believed the image to be in the cache; it is to hear that, and sends it.
    pub(crate) fn is_missing(&self, reply: Reply, failure: &Failure) -> bool {
        let is_named_only = self.bulk == 0 && self.packed.is_empty();
        is_named_only && reply.ticket != 0 && failure.status == CuStatus::FILE_NOT_FOUND
    }

    /// What was received, kept for the next load of it; or what was kept of an earlier one.
    ///
    /// # Errors
    /// `FILE_NOT_FOUND`: nothing was.
    pub(crate) fn kept(&self, sent: Option<Vec<u8>>, cache: &Cache) -> Result<Vec<u8>, Failure> {
        match sent {
            Some(image) => {
                cache.store(&self.hash, &image);
                Ok(image)
            }
            None => cache
                .load(&self.hash)
                .ok_or_else(|| Failure::new(CuStatus::FILE_NOT_FOUND, "not in the module cache")),
        }
    }
}

/// Ends a load; where nobody waits, a failure is told by a notice.
pub(crate) fn answer_load(outbox: &dyn Outbox, reply: Reply, failure: &Failure) {
    if reply.ticket == 0 && failure.status != CuStatus::SUCCESS {
        outbox.notice(reply, failure);
    }
    let message = clipped(&failure.message);
    outbox.record(reply, failure.status, &CuModuleLoadDataReply { message });
}

/// Answers where a variable is (address, bytes).
pub(crate) fn answer_global(outbox: &dyn Outbox, reply: Reply, found: CuResult<(u64, u64)>) {
    match found {
        Ok((addr, bytes)) => outbox.record(
            reply,
            CuStatus::SUCCESS,
            &CuModuleGetGlobalV2Reply { addr, bytes },
        ),
        Err(status) => outbox.finish(reply, Err(status.into())),
    }
}
