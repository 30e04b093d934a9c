//! Arrays: device memory that copies, textures and surfaces name.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::{allocate, cuMemFree_v2};
use crate::abi::{CUDA_ARRAY_DESCRIPTOR, CUDA_ARRAY_MEMORY_REQUIREMENTS, CUDA_ARRAY3D_DESCRIPTOR};
use crate::array::{Array, Mipmapped, extent_bytes, row_bytes};
use crate::process::process;
use crate::ptr::{In, Out};

/// What the flags ask for that is here: layers, cube maps, use by surfaces and as a texture. Sparse arrays, those of
/// deferred memory and of video are not.
const FLAGS: u32 = 0x01 | 0x02 | 0x04 | 0x08;
/// Levels of memory begin at multiples of this.
const ALIGNMENT: usize = 512;

fn bytes_of(descriptor: &CUDA_ARRAY3D_DESCRIPTOR) -> CuResult<usize> {
    if descriptor.Flags & !FLAGS != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let [columns, rows, slices] = extent_bytes(descriptor)?;
    let bytes = row_bytes([columns, rows, slices])
        .checked_mul(rows)
        .and_then(|slice| slice.checked_mul(slices));
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or(CuStatus::OUT_OF_MEMORY)
}

fn create(place: Out<u64>, descriptor: CUDA_ARRAY3D_DESCRIPTOR) -> CuResult {
    if place.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    let array = Array {
        descriptor,
        address: allocate(bytes_of(&descriptor)?)?,
        is_level: false,
    };
    let arrays = &process()?.arrays;
    let handle = arrays.reserve();
    arrays.insert(handle, Arc::new(array));
    place.set(handle)
}

pub(crate) fn cuArrayCreate_v2(place: Out<u64>, descriptor: In<CUDA_ARRAY_DESCRIPTOR>) -> CuResult {
    let flat = descriptor.get()?;
    create(
        place,
        CUDA_ARRAY3D_DESCRIPTOR {
            Width: flat.Width,
            Height: flat.Height,
            Depth: 0,
            Format: flat.Format,
            NumChannels: flat.NumChannels,
            Flags: 0,
        },
    )
}

pub(crate) fn cuArray3DCreate_v2(
    place: Out<u64>,
    descriptor: In<CUDA_ARRAY3D_DESCRIPTOR>,
) -> CuResult {
    create(place, descriptor.get()?)
}

pub(crate) fn cuArrayGetDescriptor_v2(place: Out<CUDA_ARRAY_DESCRIPTOR>, handle: u64) -> CuResult {
    let full = process()?.arrays.get(handle)?.descriptor;
    place.set(CUDA_ARRAY_DESCRIPTOR {
        Width: full.Width,
        Height: full.Height,
        Format: full.Format,
        NumChannels: full.NumChannels,
    })
}

pub(crate) fn cuArray3DGetDescriptor_v2(
    place: Out<CUDA_ARRAY3D_DESCRIPTOR>,
    handle: u64,
) -> CuResult {
    place.set(process()?.arrays.get(handle)?.descriptor)
}

pub(crate) fn cuArrayDestroy(handle: u64) -> CuResult {
    let arrays = &process()?.arrays;
    if arrays.get(handle)?.is_level {
        return Err(CuStatus::INVALID_HANDLE);
    }
    cuMemFree_v2(arrays.remove(handle)?.address)
}

pub(crate) fn cuArrayGetMemoryRequirements(
    place: Out<CUDA_ARRAY_MEMORY_REQUIREMENTS>,
    handle: u64,
    ordinal: i32,
) -> CuResult {
    let process = process()?;
    process.device(ordinal)?;
    place.set(CUDA_ARRAY_MEMORY_REQUIREMENTS {
        size: bytes_of(&process.arrays.get(handle)?.descriptor)?,
        alignment: ALIGNMENT,
        reserved: [0; 4],
    })
}

/// Arrays of several planes are video formats, which there are none of.
pub(crate) fn cuArrayGetPlane(_place: Out<u64>, handle: u64, _plane: u32) -> CuResult {
    process()?.arrays.get(handle)?;
    Err(CuStatus::INVALID_VALUE)
}

pub(crate) fn cuMipmappedArrayCreate(
    place: Out<u64>,
    descriptor: In<CUDA_ARRAY3D_DESCRIPTOR>,
    count: u32,
) -> CuResult {
    let base = descriptor.get()?;
    if place.is_null() || count == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let longest = base.Width.max(base.Height).max(base.Depth);
    let count_max = longest.checked_ilog2().map_or(1, |log| log + 1);
    let mut levels = Vec::new();
    let mut total = 0_usize;
    for level in 0..count.min(count_max) {
        let half = |edge: usize| if edge == 0 { 0 } else { (edge >> level).max(1) };
        let descriptor = CUDA_ARRAY3D_DESCRIPTOR {
            Width: half(base.Width),
            Height: half(base.Height),
            Depth: half(base.Depth),
            ..base
        };
        levels.push((descriptor, total));
        total = bytes_of(&descriptor)?
            .checked_next_multiple_of(ALIGNMENT)
            .and_then(|bytes| total.checked_add(bytes))
            .ok_or(CuStatus::OUT_OF_MEMORY)?;
    }
    let address = allocate(total)?;
    let process = process()?;
    let add = |(descriptor, offset): (CUDA_ARRAY3D_DESCRIPTOR, usize)| {
        let handle = process.arrays.reserve();
        let array = Array {
            descriptor,
            address: address + offset as u64,
            is_level: true,
        };
        process.arrays.insert(handle, Arc::new(array));
        handle
    };
    let levels = levels.into_iter().map(add).collect();
    let handle = process.mipmapped.reserve();
    let whole = Mipmapped { address, levels };
    process.mipmapped.insert(handle, Arc::new(whole));
    place.set(handle)
}

pub(crate) fn cuMipmappedArrayGetLevel(place: Out<u64>, handle: u64, level: u32) -> CuResult {
    let whole = process()?.mipmapped.get(handle)?;
    let level = whole.levels.get(level as usize);
    place.set(*level.ok_or(CuStatus::INVALID_VALUE)?)
}

pub(crate) fn cuMipmappedArrayDestroy(handle: u64) -> CuResult {
    let process = process()?;
    let whole = process.mipmapped.remove(handle)?;
    for level in &whole.levels {
        process.arrays.remove(*level)?;
    }
    cuMemFree_v2(whole.address)
}
