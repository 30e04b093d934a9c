//! Tensor maps, made by the driver.
#![forbid(unsafe_code)]

use farcall_marshal::record::Head;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuTensorMapEncodeTiled, CuTensorMapEncodeTiledReply};

use super::CudaDevice;
use super::driver::TensorMap;
use crate::device::Violation;
use crate::executor::outbox::{Failure, Reply};

/// Kinds of the record that are carried.
const TILED: u32 = 1;
const IM2COL: u32 = 2;
const REPLACE_ADDRESS: u32 = 4;
const RANK_MAX: u32 = 5;

impl CudaDevice {
    /// `cuTensorMapEncode*`: answered at once, the driver only computes.
    pub(super) fn tensor_map(
        &self,
        head: &Head,
        record: &CuTensorMapEncodeTiled<'_>,
    ) -> Result<(), Violation> {
        match encode(self.driver, record) {
            Ok(map) => {
                let reply = CuTensorMapEncodeTiledReply { map: &map };
                self.outbox
                    .record(Reply::to(head), CuStatus::SUCCESS, &reply);
                Ok(())
            }
            Err(status) => self.finish(head, Err(Failure::from(status))),
        }
    }
}

fn encode(
    driver: &'static super::driver::Driver,
    record: &CuTensorMapEncodeTiled<'_>,
) -> CuResult<[u8; 128]> {
    if record.kind == REPLACE_ADDRESS {
        let map = record
            .params
            .try_into()
            .map_err(|_| CuStatus::INVALID_VALUE)?;
        return TensorMap::of(map).readdressed(driver, record.address);
    }
    let mut rest = record.params;
    let head = words::<6>(&mut rest)?;
    let [_, rank, ..] = head;
    if rank == 0 || rank > RANK_MAX {
        return Err(CuStatus::INVALID_VALUE);
    }
    let count = rank as usize;
    let (map, address) = (TensorMap::default(), record.address);
    match record.kind {
        TILED => {
            let (edges, steps) = (list(&mut rest, count)?, list(&mut rest, count)?);
            let (sizes, strides) = shape(rest, count)?;
            map.tiled(driver, address, head, &sizes, &strides, &edges, &steps)
        }
        IM2COL if rank >= 3 => {
            let pixels = words::<2>(&mut rest)?;
            let mut corner = || -> CuResult<Vec<i32>> {
                let corner = list(&mut rest, count - 2)?;
                Ok(corner.into_iter().map(u32::cast_signed).collect())
            };
            let corners = (corner()?, corner()?);
            let steps = list(&mut rest, count)?;
            let (sizes, strides) = shape(rest, count)?;
            map.im2col(
                driver,
                address,
                head,
                pixels,
                &sizes,
                &strides,
                (&corners.0, &corners.1),
                &steps,
            )
        }
        _ => Err(CuStatus::NOT_SUPPORTED),
    }
}

fn words<const N: usize>(rest: &mut &[u8]) -> CuResult<[u32; N]> {
    list(rest, N)?
        .try_into()
        .map_err(|_| CuStatus::INVALID_VALUE)
}

fn list(rest: &mut &[u8], count: usize) -> CuResult<Vec<u32>> {
    let (front, back) = rest
        .split_at_checked(count * 4)
        .ok_or(CuStatus::INVALID_VALUE)?;
    *rest = back;
    let (words, _) = front.as_chunks::<4>();
    Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

/// Sizes, then the strides of all dimensions but the first.
fn shape(rest: &[u8], count: usize) -> CuResult<(Vec<u64>, Vec<u64>)> {
    let (words, []) = rest.as_chunks::<8>() else {
        return Err(CuStatus::INVALID_VALUE);
    };
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    if words.len() != 2 * count - 1 {
        return Err(CuStatus::INVALID_VALUE);
    }
    let (sizes, strides) = words.split_at(count);
    Ok((sizes.to_vec(), strides.to_vec()))
}
