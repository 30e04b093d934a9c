//! Expanding what a fatbin holds compressed, within bounds.

use super::ImageError;

/// The most that one compressed image may expand to: 1 GiB.
///
/// The largest cubins seen in shipped libraries are well under 200 MB.
pub const EXPANDED_BYTES_MAX: usize = 1 << 30;

/// How a fatbin entry's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// As they are.
    None,
    /// One LZ4 block (CUDA up to 12, and `--compress-mode=speed` later).
    Lz4,
    /// Zstandard frames (CUDA 12.8 and later).
    Zstd,
}

/// Expands `stored` to exactly `expanded_bytes`.
///
/// Allocates that much, once it has been found plausible.
pub(super) fn expand(
    stored: &[u8],
    compression: Compression,
    expanded_bytes: usize,
) -> Result<Vec<u8>, ImageError> {
    if expanded_bytes > EXPANDED_BYTES_MAX {
        return Err(ImageError::TooLarge {
            what: "an expanded image",
            bytes: expanded_bytes as u64,
            max_bytes: EXPANDED_BYTES_MAX as u64,
        });
    }
    match compression {
        Compression::None => Ok(stored.to_vec()),
        Compression::Lz4 => lz4(stored, expanded_bytes),
        Compression::Zstd => zstd_frames(stored, expanded_bytes),
    }
}

/// Expands Zstandard frames to exactly `expanded_bytes`; the caller has bounded that. What
/// expands to more is given up where it would go beyond.
pub(super) fn zstd_frames(stored: &[u8], expanded_bytes: usize) -> Result<Vec<u8>, ImageError> {
    const CORRUPT: ImageError = ImageError::CorruptCompression { what: "zstd" };
    let expanded = zstd::bulk::decompress(stored, expanded_bytes).map_err(|_unspecific| CORRUPT)?;
    if expanded.len() == expanded_bytes {
        Ok(expanded)
    } else {
        Err(CORRUPT)
    }
}

/// A byte of LZ4 stands for at most 255 of the original, beyond the last few.
const LZ4_RATIO_MAX: usize = 255;

fn lz4(stored: &[u8], expanded_bytes: usize) -> Result<Vec<u8>, ImageError> {
    const CORRUPT: ImageError = ImageError::CorruptCompression { what: "LZ4" };
    if expanded_bytes
        > stored
            .len()
            .saturating_mul(LZ4_RATIO_MAX)
            .saturating_add(64)
    {
        return Err(CORRUPT);
    }
    let mut expanded = vec![0; expanded_bytes];
    let written =
        lz4_flex::block::decompress_into(stored, &mut expanded).map_err(|_unspecific| CORRUPT)?;
    if written == expanded_bytes {
        Ok(expanded)
    } else {
        Err(CORRUPT)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_compressed_comes_back() {
        let original: Vec<u8> = (0..100_000_u32)
            .map(|n| u8::try_from(n / 7 % 251).unwrap())
            .collect();
        let lz4_block = lz4_flex::block::compress(&original);
        assert_eq!(
            expand(&lz4_block, Compression::Lz4, original.len()).unwrap(),
            original
        );
        let zstd_frame = zstd::bulk::compress(&original, 1).unwrap();
        assert_eq!(
            expand(&zstd_frame, Compression::Zstd, original.len()).unwrap(),
            original
        );
    }

    #[test]
    fn a_wrong_size_is_an_error() {
        let original = vec![7_u8; 1000];
        let lz4_block = lz4_flex::block::compress(&original);
        let zstd_frame = zstd::bulk::compress(&original, 1).unwrap();
        for wrong in [0, 999, 1001, 4000] {
            assert!(expand(&lz4_block, Compression::Lz4, wrong).is_err());
            assert!(expand(&zstd_frame, Compression::Zstd, wrong).is_err());
        }
    }

    #[test]
    fn bombs_are_refused_before_they_allocate() {
        assert!(matches!(
            expand(&[0; 64], Compression::Zstd, EXPANDED_BYTES_MAX + 1),
            Err(ImageError::TooLarge { .. })
        ));
        assert!(matches!(
            expand(&[0; 64], Compression::Lz4, EXPANDED_BYTES_MAX),
            Err(ImageError::CorruptCompression { .. })
        ));
        // A frame that really holds more than it was announced with.
        let bomb = zstd::bulk::compress(&vec![0; 8 << 20], 1).unwrap();
        assert!(bomb.len() < 4096);
        assert!(expand(&bomb, Compression::Zstd, 4096).is_err());
    }
}
