//! Copies and fills of memory that is known by its address only.

use std::ptr;

/// Copies `data` to `dst`.
///
/// # Safety
/// `dst..dst + data.len()` is mapped writable, and no Rust reference points into it.
pub(crate) unsafe fn write(dst: u64, data: &[u8]) {
    // SAFETY: the caller vouches for the destination; it is foreign memory, so it cannot overlap `data`.
    unsafe { ptr::copy_nonoverlapping(data.as_ptr(), pointer(dst), data.len()) };
}

/// Copies `bytes` bytes, which may overlap.
///
/// # Safety
/// Both ranges are mapped, the destination writable, and no Rust reference points into it.
pub(crate) unsafe fn copy(dst: u64, src: u64, bytes: usize) {
    // SAFETY: the caller vouches for both ranges.
    unsafe { ptr::copy(pointer(src).cast_const(), pointer(dst), bytes) };
}

/// Writes `count` elements of `width` (1, 2 or 4) bytes.
///
/// # Safety
/// `count * width` bytes from `dst` are mapped writable, and no Rust reference points into them.
pub(crate) unsafe fn fill(dst: u64, count: usize, value: u32, width: u32) {
    let [low, second, ..] = value.to_le_bytes();
    if width == 1 || value == 0 {
        // SAFETY: the caller vouches for the range.
        unsafe { ptr::write_bytes(pointer(dst), low, count * width as usize) };
    } else if width == 2 {
        let element = u16::from_le_bytes([low, second]);
        fill_elements(dst, count, element);
    } else {
        fill_elements(dst, count, value);
    }
}

/// Views memory as bytes.
///
/// # Safety
/// The range is mapped for as long as the slice lives, and nothing writes to it in that time.
pub(crate) unsafe fn bytes<'a>(src: u64, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller vouches for the range; bytes have no alignment and no invalid values.
    unsafe { std::slice::from_raw_parts(pointer(src), len) }
}

fn fill_elements<T: Copy>(dst: u64, count: usize, value: T) {
    let mut at = pointer(dst).cast::<T>();
    for _ in 0..count {
        // SAFETY: only called by `fill`, whose caller vouches for `count` elements from `dst`; unaligned
        // stores need no alignment.
        unsafe { at.write_unaligned(value) };
        at = at.wrapping_add(1);
    }
}

/// Device addresses are host addresses of this process.
pub(crate) fn pointer(address: u64) -> *mut u8 {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "64-bit hosts only: see the assertion below"
    )]
    ptr::with_exposed_provenance_mut(address as usize)
}

const _: () = assert!(
    size_of::<usize>() == size_of::<u64>(),
    "device addresses are host addresses"
);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{fill, pointer};

    #[test]
    fn elements_are_little_endian_and_bounded() {
        for (width, want) in [
            (1_u32, [4, 4, 4, 4, 0]),
            (2, [4, 3, 4, 3, 0]),
            (4, [4, 3, 2, 1, 0]),
        ] {
            let mut out = [0_u8; 5];
            let count = 4 / width as usize;
            // SAFETY: four of five bytes of a live array.
            unsafe {
                fill(
                    out.as_mut_ptr().expose_provenance() as u64,
                    count,
                    0x0102_0304,
                    width,
                )
            };
            assert_eq!(out, want, "width {width}");
        }
        assert_eq!(pointer(4096).addr(), 4096);
    }
}
