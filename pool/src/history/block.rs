//! Samples as bytes: column by column, so that figures which hardly change compress to hardly anything.
#![forbid(unsafe_code)]

use std::io;

use super::{FIGURES, Sample};

/// Of zstd: fast, and these columns get no smaller beyond it.
const COMPRESSION_LEVEL: i32 = 1;
/// More samples than any block has.
const BYTES_MAX: usize = 1 << 20;

/// The samples of one thing, compressed. Allocates.
///
/// # Errors
/// No memory.
pub(super) fn pack(samples: &[Sample]) -> io::Result<Vec<u8>> {
    let columns = (0..FIGURES).flat_map(|figure| samples.iter().map(move |it| it.0[figure]));
    let bytes: Vec<u8> = columns.flat_map(f32::to_le_bytes).collect();
    zstd::bulk::compress(&bytes, COMPRESSION_LEVEL)
}

/// What was packed; a block that is not one, or of other figures, is an error.
///
/// # Errors
/// It cannot be read.
pub(super) fn unpack(bytes: &[u8]) -> io::Result<Vec<Sample>> {
    let bytes = zstd::bulk::decompress(bytes, BYTES_MAX)?;
    let values: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]))
        .collect();
    if !values.len().is_multiple_of(FIGURES) || !bytes.len().is_multiple_of(4) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let count = values.len() / FIGURES;
    let sample =
        |index: usize| Sample(std::array::from_fn(|figure| values[figure * count + index]));
    Ok((0..count).map(sample).collect())
}

/// Samples of many things at one time: a row of the journal.
///
/// # Errors
/// No memory.
pub(super) fn pack_row(samples: &[(String, Sample)]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(samples.len() * 64);
    for (thing, sample) in samples {
        // Names are at most 200 bytes; a longer one would not be found again.
        let length = u16::try_from(thing.len()).unwrap_or(u16::MAX);
        bytes.extend(length.to_le_bytes());
        bytes.extend(thing.bytes().take(length.into()));
        bytes.extend(sample.0.iter().flat_map(|value| value.to_le_bytes()));
    }
    zstd::bulk::compress(&bytes, COMPRESSION_LEVEL)
}

/// What was packed.
///
/// # Errors
/// It cannot be read.
pub(super) fn unpack_row(bytes: &[u8]) -> io::Result<Vec<(String, Sample)>> {
    let bytes = zstd::bulk::decompress(bytes, 64 * BYTES_MAX)?;
    let mut rest = bytes.as_slice();
    let mut samples = Vec::new();
    while !rest.is_empty() {
        let length = u16::from_le_bytes(take(&mut rest)?);
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let (name, after) = rest.split_at_checked(length.into()).ok_or_else(bad)?;
        let name = std::str::from_utf8(name).map_err(|_| bad())?;
        rest = after;
        let mut sample = Sample::default();
        for value in &mut sample.0 {
            *value = f32::from_le_bytes(take(&mut rest)?);
        }
        samples.push((name.to_owned(), sample));
    }
    Ok(samples)
}

fn take<const N: usize>(rest: &mut &[u8]) -> io::Result<[u8; N]> {
    let (first, after) = rest
        .split_first_chunk()
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    *rest = after;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Figure, Sample};
    use super::{pack, pack_row, unpack, unpack_row};

    #[test]
    fn what_was_packed_comes_back_and_is_small() {
        let sample = Sample::default().with(Figure::Sessions, 3.0);
        let bytes = pack(&vec![sample; 360]).unwrap();
        assert!(bytes.len() < 200, "{}", bytes.len());
        let back = unpack(&bytes).unwrap();
        assert_eq!(back.len(), 360);
        assert!((back[359].get(Figure::Sessions) - 3.0).abs() < f32::EPSILON);
        assert!(back[0].get(Figure::Gpus).is_nan());
    }

    #[test]
    fn damaged_blocks_are_errors() {
        let row = vec![("server/a".to_owned(), Sample::default())];
        let bytes = pack_row(&row).unwrap();
        assert_eq!(unpack_row(&bytes).unwrap()[0].0, "server/a");
        assert!(unpack_row(&bytes[..bytes.len() - 1]).is_err());
        assert!(unpack(b"nonsense").is_err());
        let short = zstd::bulk::compress(&[9, 0, b'a'], 1).unwrap();
        assert!(unpack_row(&short).is_err());
        assert!(unpack(&short).is_err());
    }
}
