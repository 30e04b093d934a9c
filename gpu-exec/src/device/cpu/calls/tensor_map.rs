//! Tensor maps.
#![forbid(unsafe_code)]

use farcall_marshal::record::Head;
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{CuTensorMapEncodeTiled, CuTensorMapEncodeTiledReply};

use super::Answer;
use crate::device::cpu::CpuDevice;
use crate::executor::outbox::{Failure, Reply};

const MAP_BYTES: usize = 128;

impl CpuDevice {
    /// `soft` runs no kernel that uses maps; on `null` nobody looks at them, so any bytes do that depend on what is asked.
    pub(super) fn tensor_map(&self, head: &Head, record: &CuTensorMapEncodeTiled<'_>) -> Answer {
        if self.runs_kernels {
            let why = "the soft device has no tensor maps";
            return self.finish(head, Err(Failure::new(CuStatus::NOT_SUPPORTED, why)));
        }
        let mut map = [0; MAP_BYTES];
        let (address, rest) = map.split_at_mut(8);
        address.copy_from_slice(&record.address.to_le_bytes());
        let mut hash = blake3::Hasher::new();
        hash.update(&record.kind.to_le_bytes());
        hash.update(record.params);
        hash.finalize_xof().fill(rest);
        let reply = CuTensorMapEncodeTiledReply { map: &map };
        self.outbox
            .record(Reply::to(head), CuStatus::SUCCESS, &reply);
        Ok(())
    }
}
