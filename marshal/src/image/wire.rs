//! Sending an image once: its hash, and its form on the wire.

use super::bytes::{u32_at, u64_at};
use super::{ImageError, expand};

/// The hash that names an image between client and server (BLAKE3).
#[must_use]
pub fn content_hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// Compresses an image for sending.
///
/// The result is a header of 16 bytes (how it is stored, and the original length) and the
/// bytes: compressed, or as they are where that is not shorter. Allocates the result. Meant
/// for a load, not for a call on the data path: 300 MB/s or more on one core.
#[must_use]
pub fn compress_for_wire(bytes: &[u8]) -> Vec<u8> {
    let compressed = zstd::bulk::compress(bytes, LEVEL)
        .ok()
        .filter(|compressed| compressed.len() < bytes.len());
    let (method, body) = match &compressed {
        Some(compressed) => (METHOD_ZSTD, compressed.as_slice()),
        None => (METHOD_STORED, bytes),
    };
    let mut wire = Vec::with_capacity(HEADER_BYTES.saturating_add(body.len()));
    wire.extend_from_slice(&method.to_le_bytes());
    wire.extend_from_slice(&0_u32.to_le_bytes());
    wire.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    wire.extend_from_slice(body);
    wire
}

/// Undoes [`compress_for_wire`].
///
/// Allocates at most `bytes_max`.
///
/// # Errors
/// [`ImageError::TooLarge`] if the original was longer than `bytes_max`, and others if these
/// are not the bytes that [`compress_for_wire`] made.
pub fn expand_from_wire(wire: &[u8], bytes_max: usize) -> Result<Vec<u8>, ImageError> {
    const MALFORMED: ImageError = ImageError::Malformed {
        what: "an image's wire header",
    };
    let header = || Some((u32_at(wire, 0)?, u32_at(wire, 4)?, u64_at(wire, 8)?));
    let (method, reserved, original_bytes) = header().ok_or(ImageError::Truncated {
        what: "an image's wire header",
        needed_bytes: HEADER_BYTES as u64,
        have_bytes: wire.len() as u64,
    })?;
    let original = usize::try_from(original_bytes)
        .ok()
        .filter(|&bytes| bytes <= bytes_max)
        .ok_or(ImageError::TooLarge {
            what: "an image",
            bytes: original_bytes,
            max_bytes: bytes_max as u64,
        })?;
    let body = wire.get(HEADER_BYTES..).unwrap_or_default();
    match (method, reserved) {
        (METHOD_STORED, 0) if body.len() == original => Ok(body.to_vec()),
        (METHOD_ZSTD, 0) => expand::zstd_frames(body, original),
        _ => Err(MALFORMED),
    }
}

const HEADER_BYTES: usize = 16;
const METHOD_STORED: u32 = 0;
const METHOD_ZSTD: u32 = 1;
/// Cubins shrink by about as much at level 1 as at higher ones, several times faster.
const LEVEL: i32 = 1;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn images_survive_the_wire() {
        let noise: Vec<u8> = (0_u64..5000)
            .flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes())
            .collect();
        for image in [&b""[..], b"x", &[0; 10_000], &noise] {
            let wire = compress_for_wire(image);
            assert!(wire.len() <= image.len() + HEADER_BYTES);
            assert_eq!(expand_from_wire(&wire, image.len()).unwrap(), image);
        }
        assert!(compress_for_wire(&[0; 10_000]).len() < 100);
    }

    #[test]
    fn the_limit_holds() {
        let wire = compress_for_wire(&[0; 10_000]);
        assert_eq!(
            expand_from_wire(&wire, 9_999),
            Err(ImageError::TooLarge {
                what: "an image",
                bytes: 10_000,
                max_bytes: 9_999
            })
        );
        // A header that promises less than the frame has.
        let mut lie = wire;
        lie[8..16].copy_from_slice(&100_u64.to_le_bytes());
        assert!(expand_from_wire(&lie, 1 << 20).is_err());
    }

    #[test]
    fn what_was_not_made_here_is_refused() {
        let wire = compress_for_wire(&[7; 100]);
        for length in 0..wire.len() {
            assert!(expand_from_wire(&wire[..length], 1000).is_err(), "{length}");
        }
        for at in 0..8 {
            let mut changed = wire.clone();
            changed[at] ^= 0x40;
            assert!(expand_from_wire(&changed, 1000).is_err(), "{at}");
        }
    }
}
