//! Copies of rows and slices at a distance, on the device.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::CuMemcpy3DAsyncV2;

/// One end: first byte, distances of rows and of slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BoxEnd {
    pub(crate) addr: u64,
    pub(crate) pitch: u64,
    pub(crate) slice: u64,
}

/// `depth` slices of `height` rows of `width` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BoxCopy {
    pub(crate) dst: BoxEnd,
    pub(crate) src: BoxEnd,
    pub(crate) width: u64,
    pub(crate) height: u64,
    pub(crate) depth: u64,
}

impl BoxCopy {
    /// As a record says it.
    pub(crate) fn of(record: &CuMemcpy3DAsyncV2) -> Self {
        Self {
            dst: BoxEnd {
                addr: record.dst,
                pitch: record.dst_pitch,
                slice: record.dst_slice,
            },
            src: BoxEnd {
                addr: record.src,
                pitch: record.src_pitch,
                slice: record.src_slice,
            },
            width: record.width,
            height: record.height,
            depth: record.depth,
        }
    }

    /// Whether there is nothing to copy.
    pub(crate) fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0 || self.depth == 0
    }

    /// All bytes.
    ///
    /// # Errors
    /// `INVALID_VALUE`: more than can be.
    pub(crate) fn bytes(&self) -> CuResult<u64> {
        let rows = self.height.checked_mul(self.depth);
        rows.and_then(|rows| rows.checked_mul(self.width))
            .ok_or(CuStatus::INVALID_VALUE)
    }

    /// From the first byte of an end to its last one.
    ///
    /// # Errors
    /// `INVALID_VALUE`: more than can be.
    pub(crate) fn span(&self, end: &BoxEnd) -> CuResult<u64> {
        let slices = self.depth.saturating_sub(1).checked_mul(end.slice);
        let rows = self.height.saturating_sub(1).checked_mul(end.pitch);
        slices
            .zip(rows)
            .and_then(|(slices, rows)| slices.checked_add(rows)?.checked_add(self.width))
            .filter(|span| end.addr.checked_add(*span).is_some())
            .ok_or(CuStatus::INVALID_VALUE)
    }

    /// Whether rows and slices lie behind each other at both ends, which also bounds their number by the span.
    ///
    /// # Errors
    /// `INVALID_VALUE` if not.
    pub(crate) fn check(&self) -> CuResult {
        for end in [&self.dst, &self.src] {
            let rows = self.height.checked_mul(end.pitch);
            let are_rows = self.height == 1 || end.pitch >= self.width;
            let are_slices = self.depth == 1 || rows.is_some_and(|rows| end.slice >= rows);
            if !are_rows || !are_slices || (self.depth > 1 && end.slice < self.width) {
                return Err(CuStatus::INVALID_VALUE);
            }
        }
        self.bytes().map(|_| ())
    }

    /// Where each row goes and comes from; call after [`Self::check`] and [`Self::span`].
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u64, u64)> {
        let copy = *self;
        let at = |end: BoxEnd, z: u64, y: u64| end.addr + z * end.slice + y * end.pitch;
        (0..copy.depth).flat_map(move |z| {
            (0..copy.height).map(move |y| (at(copy.dst, z, y), at(copy.src, z, y)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{BoxCopy, BoxEnd};

    fn copy(width: u64, height: u64, depth: u64, pitch: u64, slice: u64) -> BoxCopy {
        let end = |addr| BoxEnd { addr, pitch, slice };
        BoxCopy {
            dst: end(1000),
            src: end(5000),
            width,
            height,
            depth,
        }
    }

    #[test]
    fn rows_are_where_the_distances_say() {
        let copy = copy(4, 2, 2, 10, 30);
        assert!(copy.check().is_ok());
        assert_eq!(copy.span(&copy.dst), Ok(44));
        let rows = [(1000, 5000), (1010, 5010), (1030, 5030), (1040, 5040)];
        assert!(copy.rows().eq(rows));
    }

    #[test]
    fn what_overlaps_or_is_too_large_is_refused() {
        assert!(copy(11, 2, 1, 10, 0).check().is_err(), "rows");
        assert!(copy(4, 3, 2, 10, 20).check().is_err(), "slices");
        assert!(copy(1, u64::MAX, u64::MAX, 1, 1).check().is_err(), "count");
        let wide = copy(u64::MAX, 1, 1, 0, 0);
        assert!(wide.span(&wide.dst).is_err(), "past the last address");
    }
}
