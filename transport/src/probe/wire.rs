//! The records of a probe.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Payload of the hello that asks for a probe.
pub(super) const PAYLOAD: &[u8] = b"farcall probe 1\0";
/// Longest bulk transfer of a probe: the server has a buffer of this size for each.
pub(super) const TRANSFER_BYTES_MAX: u64 = 16 << 20;
/// Bytes of [`Head`] on the wire.
pub(super) const HEAD_BYTES: usize = 24;

/// What is asked, and the answer to it: the same head comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Send the record back.
    Echo,
    /// Receive a bulk transfer, then say so.
    Sink,
    /// Send a bulk transfer.
    Source,
}

/// Begins every record of a probe; the rest is filler.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    operation: U32,
    /// Of the record, head included; a multiple of 8.
    record_bytes: U32,
    /// Names the question, and the bulk transfer.
    id: U64,
    /// Of the bulk transfer.
    transfer_bytes: U64,
}

const _: () = assert!(size_of::<Head>() == HEAD_BYTES);

impl Head {
    pub(super) fn new(
        operation: Operation,
        record_bytes: u32,
        id: u64,
        transfer_bytes: u64,
    ) -> Self {
        let operation = match operation {
            Operation::Echo => 1,
            Operation::Sink => 2,
            Operation::Source => 3,
        };
        Self {
            operation: U32::new(operation),
            record_bytes: U32::new(record_bytes),
            id: U64::new(id),
            transfer_bytes: U64::new(transfer_bytes),
        }
    }

    /// The first record of `frame`, and what follows it. Total; `None` for what is no record.
    pub(super) fn split(frame: &[u8]) -> Option<(Self, &[u8], &[u8])> {
        let (head, _) = Self::read_from_prefix(frame).ok()?;
        let len = head.record_bytes.get() as usize;
        let fits = len >= HEAD_BYTES && len.is_multiple_of(8);
        let (record, rest) = frame.split_at_checked(len).filter(|_| fits)?;
        let fits = head.operation().is_some() && head.transfer_bytes() <= TRANSFER_BYTES_MAX;
        fits.then_some((head, record, rest))
    }

    pub(super) fn operation(&self) -> Option<Operation> {
        Some(match self.operation.get() {
            1 => Operation::Echo,
            2 => Operation::Sink,
            3 => Operation::Source,
            _ => return None,
        })
    }

    pub(super) fn id(&self) -> u64 {
        self.id.get()
    }

    pub(super) fn transfer_bytes(&self) -> u64 {
        self.transfer_bytes.get()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_come_back() {
        let mut frame = Head::new(Operation::Echo, 32, 7, 0).as_bytes().to_vec();
        frame.resize(32, 9);
        frame.extend_from_slice(Head::new(Operation::Sink, 24, 8, 100).as_bytes());
        let (head, record, rest) = Head::split(&frame).unwrap();
        assert_eq!(
            (head.operation(), head.id(), record.len()),
            (Some(Operation::Echo), 7, 32)
        );
        let (head, _, rest) = Head::split(rest).unwrap();
        assert_eq!((head.id(), head.transfer_bytes()), (8, 100));
        assert!(Head::split(rest).is_none());
    }

    proptest! {
        #[test]
        fn splitting_is_total(bytes in prop::collection::vec(any::<u8>(), 0..80), op in 0u32..5, len in 0u32..90) {
            let mut frame = bytes;
            if frame.len() >= 8 {
                frame[..4].copy_from_slice(&op.to_le_bytes());
                frame[4..8].copy_from_slice(&len.to_le_bytes());
            }
            if let Some((_, record, rest)) = Head::split(&frame) {
                prop_assert!(record.len() >= HEAD_BYTES);
                prop_assert_eq!(record.len() + rest.len(), frame.len());
            }
        }
    }
}
