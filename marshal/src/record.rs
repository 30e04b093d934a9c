//! Records: a 16-byte head and a body, little-endian, padded to 8 bytes, several in a frame.
//!
//! ```text
//! 0        4         6        8      12       16
//! | bytes  | number  | flags  | ctx  | ticket | body ...
//! ```
//! `bytes` counts the head and the padding. A record whose sender waits carries a ticket; the reply
//! repeats number and ticket and carries the `CUresult` where the request has its context.
//! Decoders are total: any bytes give a record or a [`DecodeError`].
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a record's head.
pub const HEAD_BYTES: usize = 16;

/// Largest copy that travels inside its record; more goes over the bulk plane. Half a frame, so that a
/// copy never waits for a frame of its own (transport frames hold 256 KiB at most).
pub const INLINE_BYTES_MAX: usize = 64 << 10;

/// Flag of a request whose way the server tells (`trace_step`), for `farcall trace --steps`.
pub const FLAG_TRACED: u16 = 2;
/// Flag of a reply.
pub const FLAG_REPLY: u16 = 1;
const FLAGS_KNOWN: u16 = FLAG_REPLY | FLAG_TRACED;

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the head or the body's lengths say.
    #[error("{record}: truncated")]
    Truncated {
        /// Name of the record, or `head`.
        record: &'static str,
    },
    /// A length in the head that no record can have.
    #[error("a record of {bytes} bytes cannot be")]
    BadLength {
        /// As the head gives it.
        bytes: u32,
    },
    /// Reserved bits or bytes are not zero.
    #[error("{record}: reserved bytes are not zero")]
    Reserved {
        /// Name of the record, or `head`.
        record: &'static str,
    },
    /// Bytes after the last field.
    #[error("{record}: {bytes} bytes too many")]
    Trailing {
        /// Name of the record.
        record: &'static str,
        /// How many.
        bytes: usize,
    },
    /// Text that is not UTF-8.
    #[error("{record}: text is not UTF-8")]
    Text {
        /// Name of the record.
        record: &'static str,
    },
    /// No record has this number.
    #[error("no record has the number {number}")]
    UnknownRecord {
        /// As the head gives it.
        number: u16,
    },
}

/// A typed record: knows its number, its size, and both directions.
pub trait Record<'a>: Sized {
    /// Permanent number.
    const NUMBER: u16;
    /// Name of the call or message.
    const NAME: &'static str;

    /// Bytes of the encoded body, a multiple of 8.
    fn body_bytes(&self) -> usize;

    /// Writes the body to `out`, which has [`Self::body_bytes`] bytes. Does not allocate.
    fn encode_body(&self, out: &mut [u8]);

    /// Reads a body; variable parts borrow from it.
    ///
    /// # Errors
    /// Anything but exactly one valid body.
    fn decode_body(body: &'a [u8]) -> Result<Self, DecodeError>;
}

/// A record whose only variable part is bytes, which can be written where they will be sent from.
pub trait Fill<'a>: Record<'a> {
    /// Bytes of the encoded body with a variable part of `len` bytes.
    fn filled_bytes(len: usize) -> usize;

    /// Writes to `out`, which has [`Self::filled_bytes`] bytes, all but the variable part, for which `len` bytes are
    /// given back. Does not allocate.
    fn encode_fixed<'o>(&self, len: usize, out: &'o mut [u8]) -> &'o mut [u8];
}

/// A record's head, in native form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Number of the record.
    pub number: u16,
    /// `FLAG_*`.
    pub flags: u16,
    /// Request: context that the call is made in. Reply: `CUresult`.
    pub context: u32,
    /// Reply slot, 0 where nobody waits.
    pub ticket: u32,
}

impl Head {
    /// Head of a request.
    #[must_use]
    pub const fn request(number: u16, context: u32, ticket: u32) -> Self {
        Self {
            number,
            flags: 0,
            context,
            ticket,
        }
    }

    /// Head of the reply to a request.
    #[must_use]
    pub const fn reply(number: u16, status: u32, ticket: u32) -> Self {
        Self {
            number,
            flags: FLAG_REPLY,
            context: status,
            ticket,
        }
    }

    /// Whether the sender wants to hear of its way.
    #[must_use]
    pub const fn is_traced(&self) -> bool {
        self.flags & FLAG_TRACED != 0
    }

    /// Whether it heads a reply.
    #[must_use]
    pub const fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct WireHead {
    bytes: U32,
    number: U16,
    flags: U16,
    context: U32,
    ticket: U32,
}

const _: () = assert!(size_of::<WireHead>() == HEAD_BYTES);

/// Bytes of a whole record with this body, head included.
#[must_use]
#[inline]
pub fn record_bytes<'a>(body: &impl Record<'a>) -> usize {
    body.body_bytes().saturating_add(HEAD_BYTES)
}

/// Writes head and body to `out`, which has [`record_bytes`] bytes. Does not allocate.
#[inline]
pub fn encode<'a>(head: Head, body: &impl Record<'a>, out: &mut [u8]) {
    let rest = put_head(head, out);
    body.encode_body(rest);
}

/// Bytes of a whole record with a variable part of `len` bytes, head included.
#[must_use]
#[inline]
pub fn filled_record_bytes<'a, R: Fill<'a>>(len: usize) -> usize {
    R::filled_bytes(len).saturating_add(HEAD_BYTES)
}

/// Writes head and body to `out`, which has [`filled_record_bytes`] bytes; `fill` writes the variable part of `len` bytes
/// in its place, whatever `body` has there. Does not allocate.
#[inline]
pub fn encode_filled<'a, T>(
    head: Head,
    body: &impl Fill<'a>,
    len: usize,
    out: &mut [u8],
    fill: impl FnOnce(&mut [u8]) -> T,
) -> T {
    let rest = put_head(head, out);
    fill(body.encode_fixed(len, rest))
}

/// Writes a record with no body (a reply that is only a status).
#[inline]
pub fn encode_bare(head: Head, out: &mut [u8]) {
    put_head(head, out);
}

/// A new buffer with the encoded record.
#[must_use]
pub fn to_vec<'a>(head: Head, body: &impl Record<'a>) -> Vec<u8> {
    let mut out = vec![0; record_bytes(body)];
    encode(head, body, &mut out);
    out
}

/// Splits the first record off `frame`: its head, its body, what follows.
///
/// # Errors
/// Truncated, impossible length, unknown flags.
#[inline]
pub fn split(frame: &[u8]) -> Result<(Head, &[u8], &[u8]), DecodeError> {
    let (head, _) =
        WireHead::ref_from_prefix(frame).map_err(|_| DecodeError::Truncated { record: "head" })?;
    let bytes = head.bytes.get() as usize;
    if bytes < HEAD_BYTES || !bytes.is_multiple_of(8) {
        return Err(DecodeError::BadLength {
            bytes: head.bytes.get(),
        });
    }
    if head.flags.get() & !FLAGS_KNOWN != 0 {
        return Err(DecodeError::Reserved { record: "head" });
    }
    let (record, rest) = frame
        .split_at_checked(bytes)
        .ok_or(DecodeError::Truncated { record: "body" })?;
    let (_, body) = record
        .split_at_checked(HEAD_BYTES)
        .ok_or(DecodeError::Truncated { record: "head" })?;
    let head = Head {
        number: head.number.get(),
        flags: head.flags.get(),
        context: head.context.get(),
        ticket: head.ticket.get(),
    };
    Ok((head, body, rest))
}

/// An encoded record as it would be on another stream; `None` if it is no stream operation.
#[must_use]
pub fn with_stream(record: &[u8], stream: u64) -> Option<Vec<u8>> {
    let (head, ..) = split(record).ok()?;
    let at = crate::wire::stream_offset(head.number)?.checked_add(HEAD_BYTES)?;
    let mut moved = record.to_vec();
    moved
        .get_mut(at..at.checked_add(8)?)?
        .copy_from_slice(&stream.to_le_bytes());
    Some(moved)
}

#[inline]
fn put_head(head: Head, out: &mut [u8]) -> &mut [u8] {
    let wire = WireHead {
        bytes: U32::new(length(out.len())),
        number: U16::new(head.number),
        flags: U16::new(head.flags),
        context: U32::new(head.context),
        ticket: U32::new(head.ticket),
    };
    put(out, wire.as_bytes())
}

/// `n` rounded up to a multiple of 8.
#[inline]
pub(crate) const fn padded(n: usize) -> usize {
    n.saturating_add(7) & !7
}

/// A length as it travels. Frames are far smaller than 4 GiB, so saturation is refused at the sender.
#[inline]
pub(crate) fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Copies `bytes` to the front of `out`, returns the rest. A short `out` takes nothing: the caller
/// sized it with `body_bytes`.
#[inline]
pub(crate) fn put<'o>(out: &'o mut [u8], bytes: &[u8]) -> &'o mut [u8] {
    match out.split_at_mut_checked(bytes.len()) {
        Some((front, rest)) => {
            front.copy_from_slice(bytes);
            rest
        }
        None => &mut [],
    }
}

/// [`put`], then zeros up to a multiple of 8.
#[inline]
pub(crate) fn put_padded<'o>(out: &'o mut [u8], bytes: &[u8]) -> &'o mut [u8] {
    let Some((field, rest)) = out.split_at_mut_checked(padded(bytes.len())) else {
        return &mut [];
    };
    put(open_padded(field, bytes.len()), bytes);
    rest
}

/// The first `len` bytes of `out`, and zeros behind them up to a multiple of 8. A short `out` gives nothing.
#[inline]
pub(crate) fn open_padded(out: &mut [u8], len: usize) -> &mut [u8] {
    let Some(field) = out.get_mut(..padded(len)) else {
        return &mut [];
    };
    // The last word first, whole: one store where clearing up to seven bytes would be a call.
    if let Some(last) = field.last_chunk_mut::<8>() {
        *last = [0; 8];
    }
    field.get_mut(..len).unwrap_or_default()
}

/// Takes `len` bytes and their padding off the front.
#[inline]
pub(crate) fn take_padded<'a>(
    from: &'a [u8],
    len: u32,
    record: &'static str,
) -> Result<(&'a [u8], &'a [u8]), DecodeError> {
    let len = len as usize;
    let (part, rest) = from
        .split_at_checked(padded(len))
        .ok_or(DecodeError::Truncated { record })?;
    let (bytes, pad) = part
        .split_at_checked(len)
        .ok_or(DecodeError::Truncated { record })?;
    if pad.iter().any(|b| *b != 0) {
        return Err(DecodeError::Reserved { record });
    }
    Ok((bytes, rest))
}

#[inline]
pub(crate) fn text<'a>(bytes: &'a [u8], record: &'static str) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| DecodeError::Text { record })
}

/// The body alone, in a new buffer.
pub(crate) fn encoded<'a>(body: &impl Record<'a>) -> Vec<u8> {
    let mut out = vec![0; body.body_bytes()];
    body.encode_body(&mut out);
    out
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )]
    use super::{DecodeError, Head, Record, split, to_vec, with_stream};
    use crate::wire::{CuLaunchKernel, CuMemcpyHtoDAsyncV2, CuModuleGetFunction};

    fn launch(params: &[u8]) -> CuLaunchKernel<'_> {
        CuLaunchKernel {
            function: 7,
            stream: 0,
            grid_x: 1,
            grid_y: 2,
            grid_z: 3,
            block_x: 4,
            block_y: 5,
            block_z: 6,
            shared_bytes: 48,
            flags: 0,
            params,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let params = [1, 2, 3];
        let bytes = to_vec(
            Head::request(CuLaunchKernel::NUMBER, 9, 11),
            &launch(&params),
        );
        let (head, body, rest) = split(&bytes).unwrap();
        assert_eq!(
            (head.number, head.context, head.ticket),
            (CuLaunchKernel::NUMBER, 9, 11)
        );
        assert_eq!(CuLaunchKernel::decode_body(body).unwrap(), launch(&params));
        assert!(rest.is_empty());
    }

    #[test]
    fn trailing_and_missing_bytes_are_refused() {
        let bytes = to_vec(Head::request(1, 0, 0), &launch(&[9; 16]));
        let (_, body, _) = split(&bytes).unwrap();
        let short = &body[..body.len() - 8];
        assert_eq!(
            CuLaunchKernel::decode_body(short),
            Err(DecodeError::Truncated {
                record: "cuLaunchKernel"
            })
        );
        let mut long = body.to_vec();
        long.extend_from_slice(&[0; 8]);
        assert!(matches!(
            CuLaunchKernel::decode_body(&long),
            Err(DecodeError::Trailing { bytes: 8, .. })
        ));
    }

    #[test]
    fn padding_must_be_zero() {
        let mut bytes = to_vec(Head::request(1, 0, 0), &launch(&[9; 3]));
        *bytes.last_mut().unwrap() = 1;
        let (_, body, _) = split(&bytes).unwrap();
        assert!(matches!(
            CuLaunchKernel::decode_body(body),
            Err(DecodeError::Reserved { .. })
        ));
    }

    #[test]
    fn text_must_be_utf8() {
        let record = CuModuleGetFunction {
            function: 1,
            module: 2,
            name: "ab",
        };
        let mut bytes = to_vec(Head::request(1, 0, 0), &record);
        let at = bytes.len() - 8;
        bytes[at] = 0xff;
        let (_, body, _) = split(&bytes).unwrap();
        assert!(matches!(
            CuModuleGetFunction::decode_body(body),
            Err(DecodeError::Text { .. })
        ));
    }

    #[test]
    fn a_record_moves_to_another_stream() {
        let moved = with_stream(
            &to_vec(Head::request(CuLaunchKernel::NUMBER, 0, 0), &launch(&[1])),
            77,
        )
        .unwrap();
        let (_, body, _) = split(&moved).unwrap();
        assert_eq!(CuLaunchKernel::decode_body(body).unwrap().stream, 77);
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        let record = CuMemcpyHtoDAsyncV2 {
            dst: 1,
            count: 2,
            stream: 3,
            bulk: 0,
            data: &[1; 8],
        };
        let mut bytes = to_vec(Head::request(1, 0, 0), &record);
        bytes[0] = 4;
        assert!(matches!(
            split(&bytes),
            Err(DecodeError::BadLength { bytes: 4 })
        ));
        bytes[0] = 248;
        assert!(matches!(split(&bytes), Err(DecodeError::Truncated { .. })));
    }
}
