//! Memory that the client maps itself.
#![forbid(unsafe_code)]

use farcall_marshal::record::Head;
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{CuMemCreate, CuMemMap, CuMemRelease, CuMemSetAccess, CuMemUnmap};

use super::Answer;
use crate::device::cpu::CpuDevice;
use crate::device::cpu::memory::{Block, BlockKind, access_bits};
use crate::device::cpu::work::Work;
use crate::executor::outbox::Reply;

impl CpuDevice {
    /// `cuMemCreate`.
    pub(super) fn create_physical(&self, head: &Head, record: &CuMemCreate) -> Answer {
        let device = record.device as usize;
        let outcome = if device < self.device_count {
            let memory = &self.streams.memory;
            memory.create_physical(record.handle, record.bytes, device)
        } else {
            Err(CuStatus::INVALID_DEVICE)
        };
        self.finish_healthy(head, outcome)
    }

    /// `cuMemRelease`.
    pub(super) fn release_physical(&self, head: &Head, record: &CuMemRelease) -> Answer {
        let outcome = self.streams.memory.release_physical(record.handle);
        self.finish_healthy(head, outcome)
    }

    /// `cuMemMap`, for everybody from now on.
    pub(super) fn map_physical(&self, head: &Head, record: &CuMemMap) -> Answer {
        let &CuMemMap {
            addr,
            bytes,
            offset,
            handle: physical,
            access,
        } = record;
        let reply = Reply::to(head);
        match self.context(head) {
            Ok(context) => {
                let (readable, writable) = access_bits(access);
                let block = Block {
                    bytes,
                    kind: BlockKind::Mapped { physical, offset },
                    // Mappings outlive contexts.
                    context: 0,
                    device: context.device,
                    readable,
                    writable,
                };
                self.streams.allocate(reply, context.key, None, addr, block);
            }
            Err(status) => self.outbox.finish(reply, Err(status.into())),
        }
        Ok(())
    }

    /// `cuMemUnmap`, after all that was issued before.
    pub(super) fn unmap_physical(&self, head: &Head, record: &CuMemUnmap) -> Answer {
        let reply = Reply::to(head);
        let &CuMemUnmap { addr, bytes } = record;
        match self.context(head) {
            Ok(context) => {
                self.streams
                    .submit_after_all(reply, context.key, Work::Unmap { addr, bytes });
            }
            Err(status) => self.outbox.finish(reply, Err(status.into())),
        }
        Ok(())
    }

    /// `cuMemSetAccess`.
    pub(super) fn set_access(&self, head: &Head, record: &CuMemSetAccess) -> Answer {
        let &CuMemSetAccess {
            addr,
            bytes,
            device,
            access,
        } = record;
        // All CPU devices are one memory: what counts is what the client's first device of the mapping may do.
        let is_own = self
            .context(head)
            .is_ok_and(|context| context.device == device as usize);
        let outcome = if is_own {
            self.streams.memory.set_access(addr, bytes, access)
        } else {
            Ok(())
        };
        self.finish_healthy(head, outcome)
    }
}
