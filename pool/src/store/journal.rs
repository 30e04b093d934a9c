//! A batch of changes as bytes, in parts of a size that a key-value store takes.
#![forbid(unsafe_code)]

use std::io::{self, Read as _};

use crate::state::Change;

/// Of zstd: fast, and records in JSON get little smaller beyond it.
const COMPRESSION_LEVEL: i32 = 1;
/// More than all records of any pool.
const BYTES_MAX: u64 = 4 << 30;

/// The changes in parts of at most `part_bytes_max`, one at least. Allocates.
///
/// # Errors
/// No memory.
pub(super) fn pack(changes: &[Change], part_bytes_max: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut plain = Vec::new();
    for (key, value) in changes {
        put(&mut plain, key.as_bytes());
        plain.push(u8::from(value.is_some()));
        put(&mut plain, value.as_deref().unwrap_or_default());
    }
    let packed = zstd::stream::encode_all(plain.as_slice(), COMPRESSION_LEVEL)?;
    Ok(packed.chunks(part_bytes_max).map(<[u8]>::to_vec).collect())
}

/// The changes whose parts these are, in their order.
///
/// # Errors
/// They are not what was packed.
pub(super) fn unpack(parts: &[&[u8]]) -> io::Result<Vec<Change>> {
    let packed = parts.concat();
    let mut plain = Vec::new();
    zstd::stream::Decoder::new(packed.as_slice())?
        .take(BYTES_MAX)
        .read_to_end(&mut plain)?;
    let (mut rest, mut changes) = (plain.as_slice(), Vec::new());
    while !rest.is_empty() {
        let key = String::from_utf8(take(&mut rest)?).map_err(|_| broken())?;
        let (is_put, behind) = rest.split_first().ok_or_else(broken)?;
        rest = behind;
        let value = take(&mut rest)?;
        changes.push((key, (*is_put == 1).then_some(value)));
    }
    Ok(changes)
}

fn put(into: &mut Vec<u8>, bytes: &[u8]) {
    into.extend((bytes.len() as u64).to_le_bytes());
    into.extend(bytes);
}

fn take(from: &mut &[u8]) -> io::Result<Vec<u8>> {
    let (length, behind) = from.split_first_chunk::<8>().ok_or_else(broken)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| broken())?;
    let (bytes, behind) = behind.split_at_checked(length).ok_or_else(broken)?;
    *from = behind;
    Ok(bytes.to_vec())
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no journal")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{pack, unpack};

    #[test]
    fn what_was_packed_comes_back_and_nothing_else() {
        let changes: Vec<_> = (0..1000_u32)
            .map(|at| {
                let value =
                    (!at.is_multiple_of(3)).then(|| at.to_le_bytes().repeat(at as usize % 50));
                (format!("key/{at}"), value)
            })
            .collect();
        for part_bytes_max in [100, 1 << 20] {
            let parts = pack(&changes, part_bytes_max).unwrap();
            assert!(parts.iter().all(|it| it.len() <= part_bytes_max));
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            assert_eq!(unpack(&parts).unwrap(), changes);
            assert!(unpack(&parts[..parts.len() - 1]).is_err());
        }
        assert!(unpack(&[b"[1, 2]"]).is_err());
    }
}
