//! Samples as bytes: column by column, so that figures which hardly change compress to hardly anything.
//!
//! Both say how many figures a sample has: figures are added at the end, and what was written before stays readable. What does
//! not say it has [`FIGURES_AT_FIRST`].
#![forbid(unsafe_code)]

use std::io;

use super::{FIGURES, Sample};

/// Of zstd: fast, and these columns get no smaller beyond it.
const COMPRESSION_LEVEL: i32 = 1;
/// More samples than any block has.
const BYTES_MAX: usize = 1 << 20;
/// How many figures there were when blocks and rows did not say it.
const FIGURES_AT_FIRST: usize = 9;
/// What a row begins with that says it: longer than a name can be.
const COUNTED: [u8; 2] = [0xff; 2];
const _: () = assert!(FIGURES <= u8::MAX as usize);

/// The samples of one thing, compressed. Allocates.
///
/// # Errors
/// No memory.
pub(super) fn pack(samples: &[Sample]) -> io::Result<Vec<u8>> {
    let columns = (0..FIGURES).flat_map(|figure| samples.iter().map(move |it| it.0[figure]));
    let mut bytes: Vec<u8> = columns.flat_map(f32::to_le_bytes).collect();
    // At the end, where it leaves the values aligned: a block without it is a multiple of four bytes long.
    bytes.push(figures_byte());
    zstd::bulk::compress(&bytes, COMPRESSION_LEVEL)
}

// Checked above.
#[allow(clippy::cast_possible_truncation)]
const fn figures_byte() -> u8 {
    FIGURES as u8
}

/// What was packed; a block that is not one, or has figures that this version does not know, is an error.
///
/// # Errors
/// It cannot be read.
pub(super) fn unpack(bytes: &[u8]) -> io::Result<Vec<Sample>> {
    let bytes = zstd::bulk::decompress(bytes, BYTES_MAX)?;
    let (figures, bytes) = match bytes.split_last() {
        Some((figures, rest)) if rest.len().is_multiple_of(4) => (usize::from(*figures), rest),
        _ => (FIGURES_AT_FIRST, bytes.as_slice()),
    };
    let (values, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || !(1..=FIGURES).contains(&figures) || values.len() % figures != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let count = values.len() / figures;
    let mut samples = vec![Sample::default(); count];
    for (figure, column) in values.chunks_exact(count.max(1)).enumerate() {
        for (sample, value) in samples.iter_mut().zip(column) {
            sample.0[figure] = f32::from_le_bytes(*value);
        }
    }
    Ok(samples)
}

/// Samples of many things at one time: a row of the journal.
///
/// # Errors
/// No memory.
pub(super) fn pack_row(samples: &[(String, Sample)]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(samples.len() * 100);
    bytes.extend(COUNTED);
    bytes.push(figures_byte());
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
    let mut figures = FIGURES_AT_FIRST;
    if let Some(counted) = rest.strip_prefix(&COUNTED) {
        rest = counted;
        figures = usize::from(u8::from_le_bytes(take(&mut rest)?));
    }
    if figures > FIGURES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    while !rest.is_empty() {
        let length = u16::from_le_bytes(take(&mut rest)?);
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let (name, after) = rest.split_at_checked(length.into()).ok_or_else(bad)?;
        let name = std::str::from_utf8(name).map_err(|_| bad())?;
        rest = after;
        let mut sample = Sample::default();
        for value in sample.0.iter_mut().take(figures) {
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
        let newer = zstd::bulk::compress(&[0, 0, 0, 0, 200], 1).unwrap();
        assert!(unpack(&newer).is_err());
        let newer = zstd::bulk::compress(&[0xff, 0xff, 200], 1).unwrap();
        assert!(unpack_row(&newer).is_err());
    }

    #[test]
    fn what_has_fewer_figures_stays_readable() {
        // Two samples of the nine figures that there were: 0 to 8, and 10 to 18.
        let columns = (0_u8..9).flat_map(|figure| [f32::from(figure), f32::from(10 + figure)]);
        let old: Vec<u8> = columns.flat_map(f32::to_le_bytes).collect();
        let back = unpack(&zstd::bulk::compress(&old, 1).unwrap()).unwrap();
        assert_eq!(back.len(), 2);
        assert!((back[1].get(Figure::WaitedMs) - 18.0).abs() < f32::EPSILON);
        assert!(back[1].get(Figure::CallsPerS).is_nan());
        let mut old = vec![1, 0, b'x'];
        old.extend((0_u8..9).flat_map(|figure| f32::from(figure).to_le_bytes()));
        old.extend([1, 0, b'y']);
        old.extend((0_u8..9).flat_map(|figure| f32::from(figure).to_le_bytes()));
        let back = unpack_row(&zstd::bulk::compress(&old, 1).unwrap()).unwrap();
        assert_eq!(back[1].0, "y");
        assert!((back[1].1.get(Figure::GpusHeld) - 1.0).abs() < f32::EPSILON);
        assert!(back[1].1.get(Figure::RttUs).is_nan());
    }
}
