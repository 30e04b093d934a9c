//! Texture and surface objects: what a program describes, checked, and as the record says it.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::texture::{
    FLAG_INTEGERS, FLAG_LAYERED, FLAG_LINEAR_FILTER, FLAG_NORMALIZED, FLAG_SRGB, FLAG_SURFACE,
    KIND_ARRAY, KIND_LINEAR, KIND_PITCH2D,
};
use farcall_marshal::wire::CuTexObjectCreate;

use crate::abi::{CUDA_RESOURCE_DESC, CUDA_RESOURCE_VIEW_DESC, CUDA_TEXTURE_DESC};
use crate::array::channel_bytes;
use crate::context::Context;
use crate::process::process;

/// `CU_RESOURCE_TYPE_MIPMAPPED_ARRAY`.
const KIND_MIPMAPPED: u32 = 1;
/// `CUDA_ARRAY3D_LAYERED` and `CUDA_ARRAY3D_CUBEMAP`.
const ARRAY_LAYERED: u32 = 0x01;
const ARRAY_CUBEMAP: u32 = 0x04;
/// `CU_TRSF_*`.
const READ_AS_INTEGER: u32 = 0x01;
const NORMALIZED_COORDINATES: u32 = 0x02;
const SRGB: u32 = 0x10;
/// How often plain memory begins where a texture may: `CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT`, and of rows
/// `..._PITCH_ALIGNMENT`.
const ALIGNMENT: u64 = 512;
const PITCH_ALIGNMENT: u64 = 32;
/// The last `CUaddress_mode`.
const BORDER: u32 = 3;

/// An object as the program described it.
#[derive(Clone, Copy)]
pub(crate) struct TextureObject {
    /// The context it was made in.
    pub(crate) context: &'static Context,
    pub(crate) resource: CUDA_RESOURCE_DESC,
    /// A surface has none.
    pub(crate) texture: Option<CUDA_TEXTURE_DESC>,
    pub(crate) view: Option<CUDA_RESOURCE_VIEW_DESC>,
}

/// Texels in device memory.
struct Texels {
    address: u64,
    row_bytes: u64,
    format: u32,
    channels: u32,
    edges: [u64; 3],
    is_layered: bool,
}

impl TextureObject {
    /// The record that makes it.
    ///
    /// # Errors
    /// `INVALID_VALUE`: what cuda.h does not allow. `NOT_SUPPORTED`: mipmapped arrays, cube maps, views that differ from
    /// what they view.
    pub(crate) fn record(&self) -> CuResult<CuTexObjectCreate> {
        let texels = self.texels()?;
        self.check_view(&texels)?;
        let sampling = self.texture.as_ref();
        let modes = sampling.map_or([BORDER; 3], |texture| texture.addressMode);
        if modes.iter().any(|mode| *mode > BORDER)
            || sampling.is_some_and(|texture| texture.filterMode > 1)
        {
            return Err(CuStatus::INVALID_VALUE);
        }
        let edge = |value: u64| u32::try_from(value).map_err(|_| CuStatus::INVALID_VALUE);
        let border = sampling.map_or([0.0; 4], |texture| texture.borderColor);
        Ok(CuTexObjectCreate {
            address: texels.address,
            row_bytes: texels.row_bytes,
            kind: self.resource.resType,
            width: edge(texels.edges[0])?,
            height: edge(texels.edges[1])?,
            depth: edge(texels.edges[2])?,
            format: texels.format,
            channels: texels.channels,
            mode_x: modes[0],
            mode_y: modes[1],
            mode_z: modes[2],
            flags: self.flags(texels.is_layered),
            border_r: border[0].to_bits(),
            border_g: border[1].to_bits(),
            border_b: border[2].to_bits(),
            border_a: border[3].to_bits(),
        })
    }

    fn flags(&self, is_layered: bool) -> u32 {
        let layered = if is_layered { FLAG_LAYERED } else { 0 };
        let Some(texture) = &self.texture else {
            return FLAG_SURFACE | layered;
        };
        let flag = |theirs: u32, ours: u32| if texture.flags & theirs != 0 { ours } else { 0 };
        let filter = if texture.filterMode == 1 {
            FLAG_LINEAR_FILTER
        } else {
            0
        };
        layered
            | filter
            | flag(NORMALIZED_COORDINATES, FLAG_NORMALIZED)
            | flag(READ_AS_INTEGER, FLAG_INTEGERS)
            | flag(SRGB, FLAG_SRGB)
    }

    fn texels(&self) -> CuResult<Texels> {
        match self.resource.resType {
            KIND_ARRAY => of_array(self.resource.res[0]),
            KIND_LINEAR if self.texture.is_some() => of_linear(&self.resource.res),
            KIND_PITCH2D if self.texture.is_some() => of_pitched(&self.resource.res),
            KIND_MIPMAPPED => Err(CuStatus::NOT_SUPPORTED),
            _ => Err(CuStatus::INVALID_VALUE),
        }
    }

    /// A view may only say again what is there.
    fn check_view(&self, texels: &Texels) -> CuResult {
        let Some(view) = self.view else {
            return Ok(());
        };
        let edges = [view.width, view.height, view.depth].map(|edge| edge.max(1) as u64);
        let is_whole = edges == texels.edges && view.firstMipmapLevel == 0 && view.firstLayer == 0;
        // CU_RES_VIEW_FORMAT_NONE.
        if is_whole && view.format == 0 {
            Ok(())
        } else {
            Err(CuStatus::NOT_SUPPORTED)
        }
    }
}

fn of_array(handle: u64) -> CuResult<Texels> {
    let array = process()?.arrays.get(handle)?;
    let descriptor = &array.descriptor;
    if descriptor.Flags & ARRAY_CUBEMAP != 0 {
        return Err(CuStatus::NOT_SUPPORTED);
    }
    let edges = [descriptor.Width, descriptor.Height, descriptor.Depth];
    Ok(Texels {
        address: array.address,
        row_bytes: array.row_bytes(),
        format: descriptor.Format,
        channels: descriptor.NumChannels,
        edges: edges.map(|edge| edge.max(1) as u64),
        is_layered: descriptor.Flags & ARRAY_LAYERED != 0,
    })
}

/// Format and channels, and the bytes of a texel.
fn layout(word: u64) -> CuResult<(u32, u32, u64)> {
    // Two numbers of 32 bits in a word, as they lie in memory.
    let format = u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
    let channels = u32::try_from(word >> 32).unwrap_or(0);
    if !matches!(channels, 1 | 2 | 4) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let bytes = channel_bytes(format)? as u64 * u64::from(channels);
    Ok((format, channels, bytes))
}

fn of_linear(res: &[u64; 16]) -> CuResult<Texels> {
    let (address, bytes) = (res[0], res[2]);
    let (format, channels, texel) = layout(res[1])?;
    if !address.is_multiple_of(ALIGNMENT) || bytes < texel {
        return Err(CuStatus::INVALID_VALUE);
    }
    check_memory(address, bytes)?;
    Ok(Texels {
        address,
        row_bytes: 0,
        format,
        channels,
        edges: [bytes / texel, 1, 1],
        is_layered: false,
    })
}

fn of_pitched(res: &[u64; 16]) -> CuResult<Texels> {
    let (address, width, height, row_bytes) = (res[0], res[2], res[3], res[4]);
    let (format, channels, texel) = layout(res[1])?;
    let row = width.checked_mul(texel).ok_or(CuStatus::INVALID_VALUE)?;
    let is_aligned = address.is_multiple_of(ALIGNMENT) && row_bytes.is_multiple_of(PITCH_ALIGNMENT);
    if !is_aligned || width == 0 || height == 0 || row_bytes < row {
        return Err(CuStatus::INVALID_VALUE);
    }
    let bytes = (height - 1)
        .checked_mul(row_bytes)
        .and_then(|bytes| bytes.checked_add(row));
    check_memory(address, bytes.ok_or(CuStatus::INVALID_VALUE)?)?;
    Ok(Texels {
        address,
        row_bytes,
        format,
        channels,
        edges: [width, height, 1],
        is_layered: false,
    })
}

/// `INVALID_VALUE` unless it is one piece of the program's device memory.
fn check_memory(address: u64, bytes: u64) -> CuResult {
    let known = process()?.memory.covering(address, bytes);
    known.map(|_| ()).ok_or(CuStatus::INVALID_VALUE)
}
