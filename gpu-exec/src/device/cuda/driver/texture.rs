//! Texture objects of plain memory.

use std::sync::Arc;

use cudarc::driver::sys;
use farcall_marshal::status::CuResult;

use super::context::Context;
use super::memory::Extent;
use super::table::check;

/// Words of 8 bytes of `CUDA_RESOURCE_DESC`, and of 4 bytes of `CUDA_TEXTURE_DESC`. As plain numbers, because cudarc's
/// enumerations must not hold what a client sends.
const RESOURCE_WORDS: usize = 18;
const TEXTURE_WORDS: usize = 26;
const _: () = assert!(size_of::<sys::CUDA_RESOURCE_DESC>() == 8 * RESOURCE_WORDS);
const _: () = assert!(size_of::<sys::CUDA_TEXTURE_DESC>() == 4 * TEXTURE_WORDS);

/// What a texture shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Texels {
    /// `CUresourcetype`: linear or 2D with a pitch.
    pub(crate) kind: u32,
    /// All of its memory.
    pub(crate) memory: Extent,
    /// `CUarray_format`.
    pub(crate) format: u32,
    /// Channels of a texel.
    pub(crate) channels: u32,
    /// Texels of a row, rows, and bytes from one to the next; looked at for 2D.
    pub(crate) shape: [u64; 3],
    /// `CUaddress_mode` of three dimensions, then `CUfilter_mode` and the flags of cuda.h.
    pub(crate) sampling: [u32; 5],
    /// Bits of the border's colour.
    pub(crate) border: [u32; 4],
}

/// A texture object.
#[derive(Debug)]
pub(crate) struct Texture {
    context: Arc<Context>,
    /// What kernels name it by.
    pub(crate) object: u64,
}

impl Texture {
    /// `cuTexObjectCreate`.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn create(context: &Arc<Context>, texels: &Texels) -> CuResult<Self> {
        context.make_current()?;
        let mut resource = [0_u64; RESOURCE_WORDS];
        resource[0] = u64::from(texels.kind);
        resource[1] = texels.memory.addr;
        resource[2] = u64::from(texels.channels) << 32 | u64::from(texels.format);
        if texels.kind == farcall_marshal::texture::KIND_LINEAR {
            resource[3] = texels.memory.bytes as u64;
        } else {
            resource[3..6].copy_from_slice(&texels.shape);
        }
        let mut texture = [0_u32; TEXTURE_WORDS];
        texture[..5].copy_from_slice(&texels.sampling);
        texture[10..14].copy_from_slice(&texels.border);
        let mut object = 0;
        let create = context.driver.table.cuTexObjectCreate;
        // SAFETY: both structures have cuda.h's size and layout, the memory is living device memory (`Extent`), and the
        // driver checks the numbers. No view.
        check(unsafe {
            (create.call())(
                &raw mut object,
                resource.as_ptr().cast(),
                texture.as_ptr().cast(),
                std::ptr::null(),
            )
        })?;
        Ok(Self {
            context: context.clone(),
            object,
        })
    }
}

impl Drop for Texture {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: made by `create`, destroyed once.
            unsafe { (self.context.driver.table.cuTexObjectDestroy.call())(self.object) };
        }
    }
}
