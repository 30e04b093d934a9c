//! Arrays. Their layout is nobody's business but the driver's, so here an array is device memory with its rows where textures
//! of such memory want them.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};

use crate::abi::CUDA_ARRAY3D_DESCRIPTOR;

/// An array, or a level of a mipmapped one.
pub(crate) struct Array {
    pub(crate) descriptor: CUDA_ARRAY3D_DESCRIPTOR,
    /// Its first byte on the device.
    pub(crate) address: u64,
    /// Whether it is a level of a mipmapped array, which frees it.
    pub(crate) is_level: bool,
}

/// A mipmapped array.
pub(crate) struct Mipmapped {
    pub(crate) address: u64,
    /// Handles of the levels.
    pub(crate) levels: Vec<u64>,
}

/// Bytes of one channel, of `CUarray_format`.
///
/// # Errors
/// `INVALID_VALUE`: a format that only textures have, or none.
pub(crate) fn channel_bytes(format: u32) -> CuResult<usize> {
    match format {
        0x01 | 0x08 => Ok(1),
        0x02 | 0x09 | 0x10 => Ok(2),
        0x03 | 0x0a | 0x20 => Ok(4),
        _ => Err(CuStatus::INVALID_VALUE),
    }
}

/// Columns, rows and slices with at least one of each, columns in bytes.
///
/// # Errors
/// `INVALID_VALUE`: an unknown format, a number of channels other than 1, 2, 4, no width, or more than can be.
pub(crate) fn extent_bytes(descriptor: &CUDA_ARRAY3D_DESCRIPTOR) -> CuResult<[u64; 3]> {
    const EDGE_MAX: usize = 1 << 20;
    let channels = descriptor.NumChannels as usize;
    let element = channel_bytes(descriptor.Format)? * channels;
    let edges = [descriptor.Width, descriptor.Height, descriptor.Depth];
    let is_odd = !matches!(channels, 1 | 2 | 4) || descriptor.Width == 0;
    if is_odd || edges.iter().any(|edge| *edge > EDGE_MAX) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let [width, height, depth] = edges.map(|edge| edge.max(1) as u64);
    Ok([width * element as u64, height, depth])
}

/// Rows of textures begin at multiples of this: `CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT`, 32 on every GPU.
const ROW_ALIGNMENT: u64 = 32;

/// From one row to the next, of an array of these edges.
pub(crate) fn row_bytes([columns, rows, slices]: [u64; 3]) -> u64 {
    if rows == 1 && slices == 1 {
        return columns;
    }
    columns.next_multiple_of(ROW_ALIGNMENT)
}

impl Array {
    /// From one row to the next.
    pub(crate) fn row_bytes(&self) -> u64 {
        row_bytes(self.extent_bytes())
    }

    /// Columns, rows and slices, columns in bytes.
    pub(crate) fn extent_bytes(&self) -> [u64; 3] {
        // It was checked when the array was made.
        extent_bytes(&self.descriptor).unwrap_or_default()
    }

    /// Bytes of an element.
    pub(crate) fn element_bytes(&self) -> usize {
        channel_bytes(self.descriptor.Format).unwrap_or(1) * self.descriptor.NumChannels as usize
    }
}
