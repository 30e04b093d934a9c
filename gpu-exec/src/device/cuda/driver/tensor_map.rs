//! Tensor maps: the driver computes 128 bytes out of a description.

use std::ffi::c_void;

use farcall_marshal::status::{CuResult, CuStatus};

use super::table::{Driver, check};

/// Dimensions of a map.
const RANK_MAX: usize = 5;

/// A map, aligned as the driver wants it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct TensorMap([u8; 128]);

impl Default for TensorMap {
    fn default() -> Self {
        Self([0; 128])
    }
}

/// What a map is about: data type, rank, interleave, swizzle, promotion, fill.
pub(crate) type MapHead = [u32; 6];

impl TensorMap {
    /// A map that is there.
    pub(crate) fn of(bytes: [u8; 128]) -> Self {
        Self(bytes)
    }

    /// `cuTensorMapEncodeTiled`.
    ///
    /// # Errors
    /// `INVALID_VALUE`: lists that are not as long as the rank says; else as the driver.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn tiled(
        mut self,
        driver: &Driver,
        address: u64,
        head: MapHead,
        sizes: &[u64],
        strides: &[u64],
        edges: &[u32],
        steps: &[u32],
    ) -> CuResult<[u8; 128]> {
        let [data_type, rank, interleave, swizzle, promotion, fill] = head;
        check_lists(rank, sizes, strides, &[edges.len(), steps.len()])?;
        let encode = driver.table.cuTensorMapEncodeTiled;
        let encode = encode.ok_or(CuStatus::NOT_SUPPORTED)?;
        // SAFETY: a place for a map, aligned; lists as long as the rank (strides: one less), checked above. The address is
        // computed with, not followed. The enumerations are plain numbers in this binding, which the driver checks.
        check(unsafe {
            (encode.call())(
                self.0.as_mut_ptr().cast(),
                data_type,
                rank,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                edges.as_ptr(),
                steps.as_ptr(),
                interleave,
                swizzle,
                promotion,
                fill,
            )
        })?;
        Ok(self.0)
    }

    /// `cuTensorMapEncodeIm2col`; `pixels`: channels per pixel, pixels per column.
    ///
    /// # Errors
    /// As [`Self::tiled`].
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn im2col(
        mut self,
        driver: &Driver,
        address: u64,
        head: MapHead,
        pixels: [u32; 2],
        sizes: &[u64],
        strides: &[u64],
        corners: (&[i32], &[i32]),
        steps: &[u32],
    ) -> CuResult<[u8; 128]> {
        let [data_type, rank, interleave, swizzle, promotion, fill] = head;
        let (lower, upper) = corners;
        let corner = |list: &[i32]| list.len() + 2;
        check_lists(
            rank,
            sizes,
            strides,
            &[steps.len(), corner(lower), corner(upper)],
        )?;
        let encode = driver.table.cuTensorMapEncodeIm2col;
        let encode = encode.ok_or(CuStatus::NOT_SUPPORTED)?;
        // SAFETY: as for `tiled`; corners have two entries less than the rank, checked above.
        check(unsafe {
            (encode.call())(
                self.0.as_mut_ptr().cast(),
                data_type,
                rank,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                lower.as_ptr(),
                upper.as_ptr(),
                pixels[0],
                pixels[1],
                steps.as_ptr(),
                interleave,
                swizzle,
                promotion,
                fill,
            )
        })?;
        Ok(self.0)
    }

    /// `cuTensorMapReplaceAddress`.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn readdressed(mut self, driver: &Driver, address: u64) -> CuResult<[u8; 128]> {
        let replace = driver.table.cuTensorMapReplaceAddress;
        let replace = replace.ok_or(CuStatus::NOT_SUPPORTED)?;
        // SAFETY: a whole map, aligned; the address is written into it, not followed.
        check(unsafe { (replace.call())(self.0.as_mut_ptr().cast(), address as *mut c_void) })?;
        Ok(self.0)
    }
}

fn check_lists(rank: u32, sizes: &[u64], strides: &[u64], others: &[usize]) -> CuResult {
    let count = rank as usize;
    let are_whole = sizes.len() == count
        && strides.len() + 1 == count
        && others.iter().all(|len| *len == count);
    if are_whole && (1..=RANK_MAX).contains(&count) {
        Ok(())
    } else {
        Err(CuStatus::INVALID_VALUE)
    }
}
