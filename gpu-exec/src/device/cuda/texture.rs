//! Texture objects. Memory with a pitch is what the driver takes for a 2D texture; what only arrays can be (one and three
//! dimensions, layers, surfaces) is refused, because arrays are plain memory here.
#![forbid(unsafe_code)]

use farcall_marshal::record::Head;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::texture::{
    FLAG_INTEGERS, FLAG_LAYERED, FLAG_LINEAR_FILTER, FLAG_NORMALIZED, FLAG_SRGB, FLAG_SURFACE,
    KIND_ARRAY, KIND_LINEAR, KIND_PITCH2D,
};
use farcall_marshal::wire::{CuTexObjectCreate, CuTexObjectCreateReply};

use super::CudaDevice;
use super::driver::{Texels, Texture};
use super::issue::Later;
use super::op::{After, DropLater};
use super::state::State;
use crate::device::Violation;
use crate::executor::outbox::Reply;

/// `CU_TRSF_*` of cuda.h.
const READ_AS_INTEGER: u32 = 0x01;
const NORMALIZED_COORDINATES: u32 = 0x02;
const SRGB: u32 = 0x10;

impl CudaDevice {
    pub(super) fn create_texture(
        &self,
        head: &Head,
        record: &CuTexObjectCreate,
    ) -> Result<(), Violation> {
        let mut state = self.shared.state();
        let made = self.make_texture(&mut state, head, record);
        drop(state);
        let (status, object) = match made {
            Ok(object) => (CuStatus::SUCCESS, object),
            Err(status) => (status, 0),
        };
        let reply = CuTexObjectCreateReply { object };
        self.outbox.record(Reply::to(head), status, &reply);
        Ok(())
    }

    fn make_texture(
        &self,
        state: &mut State,
        head: &Head,
        record: &CuTexObjectCreate,
    ) -> CuResult<u64> {
        let key = state.named(head.context)?;
        let texels = texels(state, record)?;
        let context = state
            .contexts
            .get_mut(&key)
            .ok_or(CuStatus::INVALID_CONTEXT)?;
        let texture = Texture::create(&context.owner.context, &texels)?;
        let object = texture.object;
        context.textures.insert(object, texture);
        Ok(object)
    }

    /// Behind everything that may use it.
    pub(super) fn destroy_texture(&self, head: &Head, object: u64) -> Result<(), Violation> {
        let mut state = self.shared.state();
        let found = state.named(head.context).and_then(|key| {
            let context = state.contexts.get_mut(&key);
            let texture = context.and_then(|context| context.textures.remove(&object));
            texture
                .map(|texture| (key, texture))
                .ok_or(CuStatus::INVALID_VALUE)
        });
        let mut later = Later::default();
        match found {
            Ok((key, texture)) => self.shared.after_all(
                &mut state,
                &mut later,
                Reply::to(head),
                key,
                After::Drop(DropLater::new(texture)),
            ),
            Err(status) => later.outcomes.push((Reply::to(head), Err(status.into()))),
        }
        drop(state);
        self.shared.settle(later);
        Ok(())
    }
}

fn texels(state: &State, record: &CuTexObjectCreate) -> CuResult<Texels> {
    let is_flat = record.height > 1 && record.depth == 1;
    let kind = match record.kind {
        KIND_LINEAR => KIND_LINEAR,
        KIND_PITCH2D => KIND_PITCH2D,
        KIND_ARRAY if is_flat && record.flags & (FLAG_SURFACE | FLAG_LAYERED) == 0 => KIND_PITCH2D,
        _ => return Err(CuStatus::NOT_SUPPORTED),
    };
    let channel_bytes = match record.format {
        0x01 | 0x08 => 1,
        0x02 | 0x09 | 0x10 => 2,
        0x03 | 0x0a | 0x20 => 4,
        _ => return Err(CuStatus::INVALID_VALUE),
    };
    let row = u64::from(record.width) * channel_bytes * u64::from(record.channels);
    let rows = u64::from(record.height).saturating_sub(1);
    let bytes = rows
        .checked_mul(record.row_bytes)
        .and_then(|bytes| bytes.checked_add(row))
        .ok_or(CuStatus::INVALID_VALUE)?;
    let flag = |ours: u32, theirs: u32| if record.flags & ours != 0 { theirs } else { 0 };
    Ok(Texels {
        kind,
        memory: state.memory.extent(record.address, bytes)?,
        format: record.format,
        channels: record.channels,
        shape: [
            u64::from(record.width),
            u64::from(record.height),
            record.row_bytes,
        ],
        sampling: [
            record.mode_x,
            record.mode_y,
            record.mode_z,
            flag(FLAG_LINEAR_FILTER, 1),
            flag(FLAG_INTEGERS, READ_AS_INTEGER)
                | flag(FLAG_NORMALIZED, NORMALIZED_COORDINATES)
                | flag(FLAG_SRGB, SRGB),
        ],
        border: [
            record.border_r,
            record.border_g,
            record.border_b,
            record.border_a,
        ],
    })
}
