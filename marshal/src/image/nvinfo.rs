//! The attributes in a cubin's `.nv.info` sections.
//!
//! A section is a sequence of records: a format byte, an attribute byte, and 16 bits that are
//! the value itself or, in format 4, the length of the value that follows.

use super::ImageError;
use super::bytes::{u16_at, u32_at};

/// One attribute that this crate knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    /// `EIATTR_KPARAM_INFO` or its second form: one parameter of a kernel.
    Param {
        ordinal: u16,
        offset_bytes: u16,
        size_bytes: u16,
    },
    /// `EIATTR_CBANK_PARAM_SIZE`: all parameters of a kernel.
    ParamBytes(u16),
    /// `EIATTR_MAX_THREADS`: `__launch_bounds__`.
    MaxThreads([u32; 3]),
    /// `EIATTR_REQNTID`: the block size a kernel requires.
    RequiredBlock([u32; 3]),
    /// `EIATTR_CTA_PER_CLUSTER`: `__cluster_dims__`.
    ClusterBlocks([u32; 3]),
    /// `EIATTR_EXPLICIT_CLUSTER`.
    ExplicitCluster,
    /// `EIATTR_MAX_CLUSTER_RANK`.
    MaxClusterBlocks(u32),
    /// `EIATTR_NUM_BARRIERS`.
    Barriers(u16),
    /// `EIATTR_REGCOUNT` of the function with this symbol.
    Registers { symbol: u32, count: u32 },
    /// `EIATTR_FRAME_SIZE` of the function with this symbol.
    FrameBytes { symbol: u32, bytes: u32 },
    /// `EIATTR_MIN_STACK_SIZE` of the function with this symbol, with all that it calls.
    StackBytes { symbol: u32, bytes: u32 },
}

/// Calls `each` with every attribute of a section that this crate knows.
///
/// # Errors
/// [`ImageError::Malformed`] if the records do not fill the section.
pub(super) fn for_each(section: &[u8], mut each: impl FnMut(Attribute)) -> Result<(), ImageError> {
    let mut rest = section;
    while !rest.is_empty() {
        let record = split(rest).ok_or(ImageError::Malformed {
            what: "an attribute in .nv.info",
        })?;
        if let Some(attribute) = known(&record)? {
            each(attribute);
        }
        rest = record.rest;
    }
    Ok(())
}

struct Record<'a> {
    code: u8,
    /// The value of formats 1 to 3, the length of format 4.
    short: u16,
    payload: &'a [u8],
    rest: &'a [u8],
}

fn split(section: &[u8]) -> Option<Record<'_>> {
    let (&[format, code, low, high], after) = section.split_first_chunk::<4>()?;
    let short = u16::from_le_bytes([low, high]);
    let (payload, rest) = match format {
        FORMAT_NONE | FORMAT_BYTE | FORMAT_HALF => (&[][..], after),
        FORMAT_SIZED => after.split_at_checked(usize::from(short))?,
        _ => return None,
    };
    Some(Record {
        code,
        short,
        payload,
        rest,
    })
}

fn known(record: &Record<'_>) -> Result<Option<Attribute>, ImageError> {
    let payload = record.payload;
    let pair = || Some((u32_at(payload, 0)?, u32_at(payload, 4)?));
    let triple = || {
        Some([
            u32_at(payload, 0)?,
            u32_at(payload, 4)?,
            u32_at(payload, 8)?,
        ])
    };
    let attribute = match record.code {
        KPARAM_INFO => param(payload, |word| u16::try_from(word >> 18).ok()),
        KPARAM_INFO_V2 => param(payload, |word| u16::try_from(word & 0xffff).ok()),
        CBANK_PARAM_SIZE => Some(Attribute::ParamBytes(record.short)),
        MAX_THREADS => triple().map(Attribute::MaxThreads),
        REQNTID => triple().map(Attribute::RequiredBlock),
        CTA_PER_CLUSTER => triple().map(Attribute::ClusterBlocks),
        EXPLICIT_CLUSTER => Some(Attribute::ExplicitCluster),
        MAX_CLUSTER_RANK => u32_at(payload, 0).map(Attribute::MaxClusterBlocks),
        NUM_BARRIERS => Some(Attribute::Barriers(record.short)),
        REGCOUNT => pair().map(|(symbol, count)| Attribute::Registers { symbol, count }),
        FRAME_SIZE => pair().map(|(symbol, bytes)| Attribute::FrameBytes { symbol, bytes }),
        MIN_STACK_SIZE => pair().map(|(symbol, bytes)| Attribute::StackBytes { symbol, bytes }),
        _ => return Ok(None),
    };
    attribute.map(Some).ok_or(ImageError::Malformed {
        what: "the length of an attribute in .nv.info",
    })
}

/// `size` takes the size out of the last word, where the two forms keep it differently.
fn param(payload: &[u8], size: impl Fn(u32) -> Option<u16>) -> Option<Attribute> {
    Some(Attribute::Param {
        ordinal: u16_at(payload, 4)?,
        offset_bytes: u16_at(payload, 6)?,
        size_bytes: size(u32_at(payload, 8)?)?,
    })
}

const FORMAT_NONE: u8 = 1;
const FORMAT_BYTE: u8 = 2;
const FORMAT_HALF: u8 = 3;
const FORMAT_SIZED: u8 = 4;

const MAX_THREADS: u8 = 0x05;
const REQNTID: u8 = 0x10;
const FRAME_SIZE: u8 = 0x11;
const MIN_STACK_SIZE: u8 = 0x12;
const KPARAM_INFO: u8 = 0x17;
const CBANK_PARAM_SIZE: u8 = 0x19;
const REGCOUNT: u8 = 0x2f;
const CTA_PER_CLUSTER: u8 = 0x3d;
const EXPLICIT_CLUSTER: u8 = 0x3e;
const MAX_CLUSTER_RANK: u8 = 0x3f;
/// Since CUDA 12.1, for parameters beyond 4 KB.
const KPARAM_INFO_V2: u8 = 0x45;
const NUM_BARRIERS: u8 = 0x4c;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all(section: &[u8]) -> Result<Vec<Attribute>, ImageError> {
        let mut found = Vec::new();
        for_each(section, |attribute| found.push(attribute))?;
        Ok(found)
    }

    #[test]
    fn both_forms_of_a_parameter() {
        // As ptxas wrote them: ordinal 1 at 8, 8 bytes; ordinal 3 at 0x2010, 20000 bytes.
        let first = [4, 0x17, 12, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0xf0, 0x21, 0];
        let second = [
            4, 0x45, 12, 0, 0, 0, 0, 0, 3, 0, 0x10, 0x20, 0x20, 0x4e, 0, 5,
        ];
        let section = [first, second].concat();
        assert_eq!(
            all(&section).unwrap(),
            [
                Attribute::Param {
                    ordinal: 1,
                    offset_bytes: 8,
                    size_bytes: 8
                },
                Attribute::Param {
                    ordinal: 3,
                    offset_bytes: 0x2010,
                    size_bytes: 20_000
                },
            ]
        );
    }

    #[test]
    fn unknown_attributes_are_stepped_over() {
        let section = [4, 0xee, 2, 0, 9, 9, 1, 0xdd, 0, 0, 3, 0x19, 24, 0];
        assert_eq!(all(&section).unwrap(), [Attribute::ParamBytes(24)]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        for section in [
            &[4, 0x17, 12, 0, 1][..],
            &[4, 0x17, 4, 0, 0, 0, 0, 0],
            &[9, 0x17, 0, 0],
            &[3, 0x19],
        ] {
            assert!(all(section).is_err(), "{section:?}");
        }
    }
}
