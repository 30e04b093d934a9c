//! Tensor maps: 128 bytes whose format is the driver's own, so the server's driver makes them. A map is asked for once per
//! description; for other addresses it is patched, where the address stands in the map as it is (cuda.h has a call that
//! replaces the address alone, so nothing else depends on it).
#![forbid(unsafe_code)]

use std::collections::HashMap;

use farcall_marshal::record::Record;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuTensorMapEncodeTiled, CuTensorMapEncodeTiledReply};
use parking_lot::Mutex;

use crate::context;
use crate::ptr::{HostPtr, In};

/// Bytes of a map, and what it must be aligned to.
const MAP_BYTES: usize = 128;
const MAP_ALIGNMENT: u64 = 64;
/// Kinds of the record.
const TILED: u32 = 1;
const IM2COL: u32 = 2;
const IM2COL_WIDE: u32 = 3;
const REPLACE_ADDRESS: u32 = 4;
/// Descriptions that are remembered.
const KNOWN_MAX: usize = 4096;

type Map = [u8; MAP_BYTES];
/// Maps by the program's number of the device, kind and description, with the address that each was made for.
type Known = HashMap<(u32, u32, Vec<u8>), (u64, Map)>;

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

/// A description as it travels: words of 4 bytes, then the addresses' worth of 8.
#[derive(Default)]
struct Description(Vec<u8>);

impl Description {
    fn word(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn words(
        &mut self,
        list: In<u32>,
        count: usize,
        allowed: std::ops::RangeInclusive<u32>,
    ) -> CuResult {
        for index in 0..count {
            let value = list.get_at(index)?;
            if !allowed.contains(&value) {
                return Err(CuStatus::INVALID_VALUE);
            }
            self.word(value);
        }
        Ok(())
    }

    /// Sizes of the tensor and strides between the elements of all but its first dimension.
    fn shape(&mut self, rank: usize, sizes: In<u64>, strides: In<u64>) -> CuResult {
        for index in 0..rank {
            let size = sizes.get_at(index)?;
            if size == 0 || size > 1 << 32 {
                return Err(CuStatus::INVALID_VALUE);
            }
            self.0.extend_from_slice(&size.to_le_bytes());
        }
        for index in 0..rank.saturating_sub(1) {
            let stride = strides.get_at(index)?;
            if !stride.is_multiple_of(16) || stride >= 1 << 40 {
                return Err(CuStatus::INVALID_VALUE);
            }
            self.0.extend_from_slice(&stride.to_le_bytes());
        }
        Ok(())
    }
}

/// What every map must keep to (cuda.h).
fn check(place: HostPtr, address: HostPtr, rank: u32, enums: [(u32, u32); 5]) -> CuResult {
    let is_aligned = place.address().is_multiple_of(MAP_ALIGNMENT)
        && address.address().is_multiple_of(16)
        && !place.is_null();
    let are_known = enums.iter().all(|(value, last)| value <= last);
    if is_aligned && are_known && (1..=5).contains(&rank) {
        Ok(())
    } else {
        Err(CuStatus::INVALID_VALUE)
    }
}

fn encode(place: HostPtr, kind: u32, address: u64, description: Vec<u8>) -> CuResult {
    // Their format is that of a generation of GPUs.
    let ordinal = context::current()?.device.ordinal;
    let key = (ordinal, kind, description);
    if let Some((known, map)) = KNOWN.lock().get_or_insert_default().get(&key)
        && let Some(map) = readdressed(map, *known, address)
    {
        return place.write(&map);
    }
    let map = ask(kind, address, &key.2)?;
    place.write(&map)?;
    let mut known = KNOWN.lock();
    let known = known.get_or_insert_default();
    if known.len() < KNOWN_MAX {
        known.insert(key, (address, map));
    }
    Ok(())
}

/// The same map for another address, if the map begins with the address that it was made for.
fn readdressed(map: &Map, known: u64, address: u64) -> Option<Map> {
    if known == address {
        return Some(*map);
    }
    let mut map = *map;
    let start = map.first_chunk_mut::<8>()?;
    if known == 0 || *start != known.to_le_bytes() {
        return None;
    }
    *start = address.to_le_bytes();
    Some(map)
}

fn ask(kind: u32, address: u64, params: &[u8]) -> CuResult<Map> {
    let context = context::current()?;
    let reply = context.session().ask(
        context.id,
        &CuTensorMapEncodeTiled {
            kind,
            address,
            params,
        },
    )?;
    let reply = CuTensorMapEncodeTiledReply::decode_body(&reply).map_err(|_| CuStatus::UNKNOWN)?;
    reply.map.try_into().map_err(|_| CuStatus::UNKNOWN)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuTensorMapEncodeTiled(
    place: HostPtr,
    data_type: u32,
    rank: u32,
    address: HostPtr,
    sizes: In<u64>,
    strides: In<u64>,
    box_sizes: In<u32>,
    element_strides: In<u32>,
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
) -> CuResult {
    let enums = [
        (data_type, 15),
        (interleave, 2),
        (swizzle, 6),
        (promotion, 3),
        (fill, 1),
    ];
    check(place, address, rank, enums)?;
    if interleave != 0 && rank < 3 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let count = rank as usize;
    let mut description = Description::default();
    for value in [data_type, rank, interleave, swizzle, promotion, fill] {
        description.word(value);
    }
    description.words(box_sizes, count, 1..=256)?;
    description.words(element_strides, count, 1..=8)?;
    description.shape(count, sizes, strides)?;
    encode(place, TILED, address.address(), description.0)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuTensorMapEncodeIm2col(
    place: HostPtr,
    data_type: u32,
    rank: u32,
    address: HostPtr,
    sizes: In<u64>,
    strides: In<u64>,
    lower: In<i32>,
    upper: In<i32>,
    channels: u32,
    pixels: u32,
    element_strides: In<u32>,
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
) -> CuResult {
    let enums = [
        (data_type, 15),
        (interleave, 2),
        (swizzle, 6),
        (promotion, 3),
        (fill, 1),
    ];
    check(place, address, rank, enums)?;
    if rank < 3 || channels > 256 || pixels > 1024 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let count = rank as usize;
    let mut description = Description::default();
    for value in [
        data_type, rank, interleave, swizzle, promotion, fill, channels, pixels,
    ] {
        description.word(value);
    }
    for corner in [lower, upper] {
        for index in 0..count - 2 {
            description.word(corner.get_at(index)?.cast_unsigned());
        }
    }
    description.words(element_strides, count, 1..=8)?;
    description.shape(count, sizes, strides)?;
    encode(place, IM2COL, address.address(), description.0)
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn cuTensorMapEncodeIm2colWide(
    place: HostPtr,
    data_type: u32,
    rank: u32,
    address: HostPtr,
    sizes: In<u64>,
    strides: In<u64>,
    lower: i32,
    upper: i32,
    channels: u32,
    pixels: u32,
    element_strides: In<u32>,
    interleave: u32,
    mode: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
) -> CuResult {
    let enums = [
        (data_type, 15),
        (interleave, 2),
        (swizzle, 6),
        (promotion, 3),
        (fill, 1),
    ];
    check(place, address, rank, enums)?;
    if rank < 3 || channels > 256 || pixels > 1024 || mode > 1 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let count = rank as usize;
    let mut description = Description::default();
    for value in [
        data_type, rank, interleave, swizzle, promotion, fill, channels, pixels, mode,
    ] {
        description.word(value);
    }
    description.word(lower.cast_unsigned());
    description.word(upper.cast_unsigned());
    description.words(element_strides, count, 1..=8)?;
    description.shape(count, sizes, strides)?;
    encode(place, IM2COL_WIDE, address.address(), description.0)
}

pub(crate) fn cuTensorMapReplaceAddress(place: HostPtr, address: HostPtr) -> CuResult {
    check(place, address, 1, [(0, 0); 5])?;
    let old = place.bytes(MAP_BYTES)?.to_vec();
    let map = ask(REPLACE_ADDRESS, address.address(), &old)?;
    place.write(&map)
}

#[cfg(test)]
mod tests {
    use super::readdressed;

    #[test]
    fn a_map_is_patched_only_where_its_address_stands() {
        let mut map = [7; 128];
        assert_eq!(readdressed(&map, 0x1000, 0x2000), None);
        assert_eq!(readdressed(&map, 0x1000, 0x1000), Some(map));
        map[..8].copy_from_slice(&0x1000_u64.to_le_bytes());
        let mut expected = map;
        expected[..8].copy_from_slice(&0x2000_u64.to_le_bytes());
        assert_eq!(readdressed(&map, 0x1000, 0x2000), Some(expected));
    }
}
