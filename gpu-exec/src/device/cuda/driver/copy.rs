//! Copies between device memory, of one device or of two.

use std::sync::Arc;

use cudarc::driver::sys;
use farcall_marshal::status::{CuResult, CuStatus};

use super::context::{Context, Stream};
use super::memory::Extent;
use super::table::check;
use crate::device::box_copy::{BoxCopy, BoxEnd};

impl Stream {
    /// Copies between device memory. `src` and `dst` have the same size.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn copy(&self, dst: Extent, src: Extent) -> CuResult {
        self.context.make_current()?;
        let (table, bytes) = (&self.context.driver.table, dst.bytes.min(src.bytes));
        let copy = if dst.is_host || src.is_host {
            table.cuMemcpyAsync
        } else {
            table.cuMemcpyDtoDAsync_v2
        };
        // SAFETY: both extents were vouched for.
        check(unsafe { (copy.call())(dst.addr, src.addr, bytes, self.raw) })
    }

    /// Copies between memory of two devices, whose contexts are `ends`, the destination's first.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn copy_peer(&self, dst: Extent, src: Extent, ends: &[Arc<Context>; 2]) -> CuResult {
        self.context.make_current()?;
        let bytes = dst.bytes.min(src.bytes);
        let ([to, from], copy) = (ends, self.context.driver.table.cuMemcpyPeerAsync);
        // SAFETY: both extents were vouched for, and both contexts live.
        check(unsafe { (copy.call())(dst.addr, to.raw, src.addr, from.raw, bytes, self.raw) })
    }

    /// Copies rows and slices between device memory; the extents are those of the whole box.
    ///
    /// # Errors
    /// `INVALID_VALUE`: rows that leave an extent, or slices that no driver can name; else as the driver.
    pub(crate) fn copy_box(&self, dst: Extent, src: Extent, copy: &BoxCopy) -> CuResult {
        let (to, from) = (
            Side::of(&dst, &copy.dst, copy)?,
            Side::of(&src, &copy.src, copy)?,
        );
        let request = sys::CUDA_MEMCPY3D {
            srcXInBytes: 0,
            srcY: 0,
            srcZ: 0,
            srcLOD: 0,
            srcMemoryType: from.kind,
            srcHost: std::ptr::null(),
            srcDevice: src.addr,
            srcArray: std::ptr::null_mut(),
            reserved0: std::ptr::null_mut(),
            srcPitch: from.pitch,
            srcHeight: from.rows,
            dstXInBytes: 0,
            dstY: 0,
            dstZ: 0,
            dstLOD: 0,
            dstMemoryType: to.kind,
            dstHost: std::ptr::null_mut(),
            dstDevice: dst.addr,
            dstArray: std::ptr::null_mut(),
            reserved1: std::ptr::null_mut(),
            dstPitch: to.pitch,
            dstHeight: to.rows,
            WidthInBytes: size(copy.width)?,
            Height: size(copy.height)?,
            Depth: size(copy.depth)?,
        };
        self.context.make_current()?;
        let copy = self.context.driver.table.cuMemcpy3DAsync_v2;
        // SAFETY: a valid request, whose rows lie in extents that were vouched for (`Side::of`).
        check(unsafe { (copy.call())(&raw const request, self.raw) })
    }

    /// The same between memory of two devices, whose contexts are `ends`; destinations first.
    ///
    /// # Errors
    /// As [`Self::copy_box`].
    pub(crate) fn copy_box_peer(
        &self,
        (dst, src): (Extent, Extent),
        ends: &[Arc<Context>; 2],
        copy: &BoxCopy,
    ) -> CuResult {
        let (to, from) = (
            Side::of(&dst, &copy.dst, copy)?,
            Side::of(&src, &copy.src, copy)?,
        );
        let [to_context, from_context] = ends;
        let request = sys::CUDA_MEMCPY3D_PEER {
            srcXInBytes: 0,
            srcY: 0,
            srcZ: 0,
            srcLOD: 0,
            srcMemoryType: from.kind,
            srcHost: std::ptr::null(),
            srcDevice: src.addr,
            srcArray: std::ptr::null_mut(),
            srcContext: std::ptr::with_exposed_provenance_mut(from_context.raw),
            srcPitch: from.pitch,
            srcHeight: from.rows,
            dstXInBytes: 0,
            dstY: 0,
            dstZ: 0,
            dstLOD: 0,
            dstMemoryType: to.kind,
            dstHost: std::ptr::null_mut(),
            dstDevice: dst.addr,
            dstArray: std::ptr::null_mut(),
            dstContext: std::ptr::with_exposed_provenance_mut(to_context.raw),
            dstPitch: to.pitch,
            dstHeight: to.rows,
            WidthInBytes: size(copy.width)?,
            Height: size(copy.height)?,
            Depth: size(copy.depth)?,
        };
        self.context.make_current()?;
        let copy = self.context.driver.table.cuMemcpy3DPeerAsync;
        // SAFETY: a valid request with living contexts, whose rows lie in extents that were vouched for (`Side::of`).
        check(unsafe { (copy.call())(&raw const request, self.raw) })
    }
}

/// One end of a copy of a box, as a driver names it.
struct Side {
    kind: sys::CUmemorytype,
    pitch: usize,
    rows: usize,
}

impl Side {
    /// # Errors
    /// `INVALID_VALUE`: rows that leave the extent, or slices that no driver can name.
    fn of(extent: &Extent, end: &BoxEnd, copy: &BoxCopy) -> CuResult<Self> {
        if extent.addr != end.addr || copy.span(end)? > extent.bytes as u64 {
            return Err(CuStatus::INVALID_VALUE);
        }
        Ok(Self {
            kind: match extent.is_host {
                true => sys::CUmemorytype::CU_MEMORYTYPE_UNIFIED,
                false => sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            },
            pitch: size(end.pitch.max(copy.width))?,
            // The distance of slices is in rows.
            rows: match copy.depth {
                0 | 1 => 0,
                _ if end.pitch != 0 && end.slice.is_multiple_of(end.pitch) => {
                    size(end.slice / end.pitch)?
                }
                _ => return Err(CuStatus::INVALID_VALUE),
            },
        })
    }
}

fn size(value: u64) -> CuResult<usize> {
    usize::try_from(value).map_err(|_| CuStatus::INVALID_VALUE)
}

// The layout of cuda.h.
const _: () = assert!(size_of::<sys::CUDA_MEMCPY3D_PEER>() == size_of::<sys::CUDA_MEMCPY3D>());
