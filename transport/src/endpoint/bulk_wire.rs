//! The bulk plane's header, and a cursor over what is to be sent.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::Violation;
use crate::stream::Stream;

/// Bytes of [`BulkHeader`] on the wire.
pub(crate) const BULK_HEADER_BYTES: usize = 32;
const MAGIC: u32 = 0x6b6c_7562;
/// The bytes are in the receiver's memory already, and do not follow.
const PLACED: u32 = 0x6b6c_7570;
/// Most parts that one system call sends.
const PARTS_MAX: usize = 64;

/// What every transfer begins with; `len` bytes follow, unless it says that they are in place.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct BulkHeader {
    magic: U32,
    reserved: U32,
    id: U64,
    len: U64,
    reserved2: U64,
}

const _: () = assert!(size_of::<BulkHeader>() == BULK_HEADER_BYTES);

impl BulkHeader {
    pub(crate) fn new(id: u64, len: u64) -> Self {
        Self {
            magic: U32::new(MAGIC),
            reserved: U32::ZERO,
            id: U64::new(id),
            len: U64::new(len),
            reserved2: U64::ZERO,
        }
    }

    /// Of a transfer whose bytes are in place.
    pub(crate) fn placed(id: u64, len: u64) -> Self {
        Self {
            magic: U32::new(PLACED),
            ..Self::new(id, len)
        }
    }

    /// Whether the bytes are in place.
    pub(super) fn is_placed(&self) -> bool {
        self.magic.get() == PLACED
    }

    /// Checks a header from the peer. Total.
    pub(crate) fn decode(bytes: &[u8; BULK_HEADER_BYTES]) -> Result<Self, Violation> {
        let header: Self = zerocopy::transmute!(*bytes);
        let clean = header.reserved == U32::ZERO && header.reserved2 == U64::ZERO;
        if matches!(header.magic.get(), MAGIC | PLACED) && clean {
            Ok(header)
        } else {
            Err(Violation::BulkHeader)
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id.get()
    }

    pub(super) fn len(&self) -> u64 {
        self.len.get()
    }

    pub(crate) fn bytes(&self) -> [u8; BULK_HEADER_BYTES] {
        zerocopy::transmute!(*self)
    }
}

/// How far a transfer has been sent: a header, then parts.
pub(super) struct Cursor<'a, 'b> {
    all: (&'a [u8], &'a [IoSlice<'b>]),
    head: &'a [u8],
    parts: &'a [IoSlice<'b>],
    /// Sent bytes of the first part that is left.
    offset: usize,
    /// Sent bytes of the whole.
    position: usize,
}

impl<'a, 'b> Cursor<'a, 'b> {
    pub(super) fn new(head: &'a [u8], parts: &'a [IoSlice<'b>]) -> Self {
        let mut cursor = Self {
            all: (head, parts),
            head,
            parts,
            offset: 0,
            position: 0,
        };
        cursor.skip_empty();
        cursor
    }

    /// Sent bytes of the whole.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Goes on somewhere else; costs nothing where it stands.
    pub(super) fn seek(&mut self, position: usize) {
        if position != self.position {
            *self = Self::new(self.all.0, self.all.1);
            self.advance(position);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.head.is_empty() && self.parts.is_empty()
    }

    /// Sends as much as the stream takes now.
    pub(super) fn send(&mut self, stream: &dyn Stream) -> io::Result<()> {
        while !self.is_done() {
            let mut slices = [IoSlice::new(&[]); PARTS_MAX];
            let mut count = 0;
            if !self.head.is_empty() {
                slices[0] = IoSlice::new(self.head);
                count = 1;
            }
            for (n, part) in self.parts.iter().take(PARTS_MAX - 1).enumerate() {
                slices[count] = IoSlice::new(&part[if n == 0 { self.offset } else { 0 }..]);
                count += 1;
            }
            match stream.send(&slices[..count]) {
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, sent: usize) {
        self.position += sent;
        let of_head = sent.min(self.head.len());
        self.head = &self.head[of_head..];
        let mut left = sent - of_head;
        while let Some(part) = self.parts.first() {
            let rest = part.len() - self.offset;
            if left < rest {
                self.offset += left;
                return;
            }
            left -= rest;
            self.parts = &self.parts[1..];
            self.offset = 0;
        }
    }

    fn skip_empty(&mut self) {
        while self.parts.first().is_some_and(|part| part.is_empty()) {
            self.parts = &self.parts[1..];
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_is_total(bytes in any::<[u8; 32]>(), id in any::<u64>(), len in any::<u64>()) {
            if let Ok(header) = BulkHeader::decode(&bytes) {
                prop_assert_eq!(header.bytes(), bytes);
            }
            let header = BulkHeader::decode(&BulkHeader::new(id, len).bytes()).unwrap();
            prop_assert_eq!((header.id(), header.len(), header.is_placed()), (id, len, false));
            let header = BulkHeader::decode(&BulkHeader::placed(id, len).bytes()).unwrap();
            prop_assert_eq!((header.id(), header.len(), header.is_placed()), (id, len, true));
        }

        #[test]
        fn cursor_sends_every_byte_once(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..6),
            steps in prop::collection::vec(1usize..7, 64),
        ) {
            let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let mut cursor = Cursor::new(b"head", &slices);
            let expected: Vec<u8> = [b"head".to_vec(), parts.concat()].concat();
            let mut at = 0;
            for step in steps {
                let step = step.min(expected.len() - at);
                cursor.advance(step);
                at += step;
                prop_assert_eq!(cursor.is_done(), at == expected.len());
                prop_assert_eq!(cursor.position(), at);
                if cursor.is_done() { break; }
            }
            let back = at / 2;
            cursor.seek(back);
            prop_assert_eq!(cursor.position(), back);
            cursor.advance(expected.len() - back);
            prop_assert!(cursor.is_done());
        }
    }
}
