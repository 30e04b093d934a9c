//! Texture and surface objects: a description in memory of the session, whose address is the handle.
#![forbid(unsafe_code)]

use farcall_marshal::record::Head;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::texture::{
    FLAG_INTEGERS, FLAG_LINEAR_FILTER, FLAG_NORMALIZED, FLAG_SRGB, KIND_LINEAR,
};
use farcall_marshal::wire::{CuTexObjectCreate, CuTexObjectCreateReply};
use farcall_ptx::{AddressMode, Format, Texture};

use super::Answer;
use crate::device::cpu::CpuDevice;
use crate::device::cpu::memory::{Block, BlockKind};
use crate::device::cpu::work::Work;
use crate::executor::outbox::Reply;

impl CpuDevice {
    pub(super) fn create_texture(&self, head: &Head, record: &CuTexObjectCreate) -> Answer {
        let made = self.context(head).and_then(|context| {
            let texture = described(record)?;
            let block = Block {
                bytes: Texture::ENCODED_BYTES as u64,
                kind: BlockKind::Texture,
                context: context.key.0,
                device: context.device,
                readable: true,
                writable: false,
            };
            let object = self.streams.memory.place(block, 1)?;
            self.streams.memory.initialize(object, &texture.encode())?;
            Ok(object)
        });
        let (status, object) = match made {
            Ok(object) => (CuStatus::SUCCESS, object),
            Err(status) => (status, 0),
        };
        self.outbox
            .record(Reply::to(head), status, &CuTexObjectCreateReply { object });
        Ok(())
    }

    pub(super) fn destroy_texture(&self, head: &Head, object: u64) -> Answer {
        match self.context(head) {
            Ok(context) => self.streams.submit_after_all(
                Reply::to(head),
                context.key,
                Work::RemoveTexture { addr: object },
            ),
            Err(status) => self.outbox.finish(Reply::to(head), Err(status.into())),
        }
        Ok(())
    }
}

/// What the record describes. Its memory is not looked at: a kernel's fetches are checked one by one.
fn described(record: &CuTexObjectCreate) -> CuResult<Texture> {
    let format = Format::of_code(record.format).ok_or(CuStatus::INVALID_VALUE)?;
    let mode = |code| AddressMode::of_code(code).ok_or(CuStatus::INVALID_VALUE);
    let flag = |bit: u32| record.flags & bit != 0;
    if !matches!(record.channels, 1 | 2 | 4) {
        return Err(CuStatus::INVALID_VALUE);
    }
    if record.width == 0 || record.height == 0 || record.depth == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    Ok(Texture {
        address: record.address,
        width: record.width,
        height: record.height,
        depth: record.depth,
        row_bytes: u32::try_from(record.row_bytes).map_err(|_| CuStatus::INVALID_VALUE)?,
        format,
        channels: record.channels,
        modes: [
            mode(record.mode_x)?,
            mode(record.mode_y)?,
            mode(record.mode_z)?,
        ],
        is_linear: flag(FLAG_LINEAR_FILTER),
        is_normalized: flag(FLAG_NORMALIZED),
        reads_integers: flag(FLAG_INTEGERS),
        is_srgb: flag(FLAG_SRGB),
        is_plain: record.kind == KIND_LINEAR,
        border: [
            record.border_r,
            record.border_g,
            record.border_b,
            record.border_a,
        ]
        .map(f32::from_bits),
    })
}
