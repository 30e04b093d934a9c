//! The header of a frame.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::Violation;

/// Bytes of [`FrameHeader`] on the wire.
pub const FRAME_HEADER_BYTES: usize = 32;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Part of the stream, with a payload.
    Data,
    /// Acknowledgement and credit alone.
    Ack,
    /// Asks for a `Pong` with the same `seq`.
    Ping,
    /// Answers a `Ping`.
    Pong,
    /// The last frame: the stream ends at `seq`.
    Close,
}

/// What every frame begins with. Little-endian.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    kind: u8,
    reserved: u8,
    reserved2: U16,
    /// Payload bytes that follow: a multiple of 8, zero unless `Data`.
    len: U32,
    /// `Data`: position of this header. `Close`: end of the stream. `Ping`: any number. `Ack`: bytes that
    /// have arrived on the bulk plane.
    seq: U64,
    /// Everything before this position of the other direction has arrived.
    ack: U64,
    /// The other direction may be sent up to this position.
    credit: U64,
}

const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);
const _: () = assert!(FRAME_HEADER_BYTES.is_multiple_of(8));

impl FrameHeader {
    /// A header to send.
    #[must_use]
    pub fn new(kind: FrameKind, len: u32, seq: u64, ack: u64, credit: u64) -> Self {
        let kind = match kind {
            FrameKind::Data => 1,
            FrameKind::Ack => 2,
            FrameKind::Ping => 3,
            FrameKind::Pong => 4,
            FrameKind::Close => 5,
        };
        Self {
            kind,
            reserved: 0,
            reserved2: U16::ZERO,
            len: U32::new(len),
            seq: U64::new(seq),
            ack: U64::new(ack),
            credit: U64::new(credit),
        }
    }

    /// Checks a header that came from the peer. Total: any 32 bytes give a header that is in
    /// order, or the rule that they break.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES], len_max: u32) -> Result<Self, Violation> {
        let header: Self = zerocopy::transmute!(*bytes);
        let kind = header.kind_checked()?;
        if header.reserved != 0 || header.reserved2 != U16::ZERO {
            return Err(Violation::Reserved);
        }
        let len = header.len.get();
        let limit = if kind == FrameKind::Data { len_max } else { 0 };
        if len > limit {
            return Err(Violation::FrameTooLong { bytes: len, limit });
        }
        if !len.is_multiple_of(8) {
            return Err(Violation::FrameUnaligned(len));
        }
        Ok(header)
    }

    fn kind_checked(&self) -> Result<FrameKind, Violation> {
        Ok(match self.kind {
            1 => FrameKind::Data,
            2 => FrameKind::Ack,
            3 => FrameKind::Ping,
            4 => FrameKind::Pong,
            5 => FrameKind::Close,
            other => return Err(Violation::FrameKind(other)),
        })
    }

    /// What it is. (Unknown kinds do not get past [`FrameHeader::decode`].)
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        self.kind_checked().unwrap_or(FrameKind::Ack)
    }

    /// Payload bytes.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len.get()
    }

    /// Whether there is no payload.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len.get() == 0
    }

    /// See the field.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq.get()
    }

    /// See the field.
    #[must_use]
    pub fn ack(&self) -> u64 {
        self.ack.get()
    }

    /// See the field.
    #[must_use]
    pub fn credit(&self) -> u64 {
        self.credit.get()
    }

    /// The bytes to send.
    #[must_use]
    pub fn bytes(&self) -> [u8; FRAME_HEADER_BYTES] {
        zerocopy::transmute!(*self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layout_is_fixed() {
        let header = FrameHeader::new(FrameKind::Data, 64, 0x0102, 0x0304, 0x0506);
        let mut expected = [0u8; 32];
        expected[0] = 1;
        expected[4] = 64;
        expected[8..10].copy_from_slice(&[2, 1]);
        expected[16..18].copy_from_slice(&[4, 3]);
        expected[24..26].copy_from_slice(&[6, 5]);
        assert_eq!(header.bytes(), expected);
    }

    #[test]
    fn bad_headers_are_named() {
        let good = FrameHeader::new(FrameKind::Data, 64, 0, 0, 0).bytes();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            FrameHeader::decode(&bytes, 64).map(|h| h.len())
        };
        assert_eq!(with(0, 1), Ok(64));
        assert_eq!(with(0, 9), Err(Violation::FrameKind(9)));
        assert_eq!(with(1, 1), Err(Violation::Reserved));
        assert_eq!(with(3, 1), Err(Violation::Reserved));
        assert_eq!(
            with(4, 72),
            Err(Violation::FrameTooLong {
                bytes: 72,
                limit: 64
            })
        );
        assert_eq!(with(4, 63), Err(Violation::FrameUnaligned(63)));
        assert_eq!(
            with(0, 2),
            Err(Violation::FrameTooLong {
                bytes: 64,
                limit: 0
            })
        );
    }

    proptest! {
        #[test]
        fn decoding_is_total(bytes in any::<[u8; 32]>(), max in any::<u32>()) {
            if let Ok(header) = FrameHeader::decode(&bytes, max) {
                prop_assert!(header.len() <= max);
                prop_assert_eq!(header.bytes(), bytes);
            }
        }
    }
}
