//! Self-validating lines, for devices whose completions are too dear to poll: the receiver
//! looks at memory, and each cache line proves by a checksum that it is the one that is awaited,
//! and whole. Nothing is assumed about the order in which the device makes bytes visible. Pure.
#![forbid(unsafe_code)]

/// A cache line.
pub(super) const LINE_BYTES: usize = 64;
/// Bytes of the stream in a line; the rest is its head: checksum (4), length (1), flags (1), 0 (2).
pub(super) const PAYLOAD_BYTES: usize = LINE_BYTES - HEAD_BYTES;
const HEAD_BYTES: usize = 8;
/// In the flags: the message ends with this line.
const LAST: u8 = 1;

/// What is in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) payload: [u8; PAYLOAD_BYTES],
    pub(super) len: usize,
    /// The message ends here.
    pub(super) last: bool,
}

/// Lays out line number `number` (counted from the beginning of the stream).
#[inline]
pub(super) fn encode(number: u64, payload: &[u8], last: bool) -> [u8; LINE_BYTES] {
    let mut line = [0; LINE_BYTES];
    let len = payload.len().min(PAYLOAD_BYTES);
    line[4] = u8::try_from(len).unwrap_or(0);
    line[5] = if last { LAST } else { 0 };
    line[HEAD_BYTES..HEAD_BYTES + len].copy_from_slice(&payload[..len]);
    let check = checksum(number, &line);
    line[..4].copy_from_slice(&check.to_le_bytes());
    line
}

/// Looks at a copy of the place where line `number` is awaited. None: it is not there, or not
/// whole. What a hostile peer puts there is at worst a wrong payload.
#[inline]
pub(super) fn decode(number: u64, line: &[u8; LINE_BYTES]) -> Option<Line> {
    let check = u32::from_le_bytes([line[0], line[1], line[2], line[3]]);
    let len = usize::from(line[4]);
    if check != checksum(number, line) || len > PAYLOAD_BYTES || line[5] & !LAST != 0 {
        return None;
    }
    let mut payload = [0; PAYLOAD_BYTES];
    payload.copy_from_slice(&line[HEAD_BYTES..]);
    Some(Line {
        payload,
        len,
        last: line[5] & LAST != 0,
    })
}

/// Over everything but itself, seeded with the line's number, so that what a former lap left
/// there does not pass. Multiply and rotate, as hashes of hash tables do: a torn line passes
/// once in 2^32.
#[inline]
fn checksum(number: u64, line: &[u8; LINE_BYTES]) -> u32 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = number.wrapping_add(1).wrapping_mul(PRIME);
    let (words, _) = line.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let mut word = u64::from_le_bytes(*word);
        if n == 0 {
            word &= !0xffff_ffff;
        }
        hash = (hash.rotate_left(23) ^ word).wrapping_mul(PRIME);
    }
    let folded = hash ^ (hash >> 32);
    // Never 0, so that fresh memory holds no line.
    u32::try_from(folded & 0xffff_ffff).unwrap_or(0).max(1)
}

/// Lines of a message of so many bytes.
#[inline]
pub(super) fn lines(bytes: usize) -> usize {
    bytes.div_ceil(PAYLOAD_BYTES)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_round_trip(number in any::<u64>(), payload in prop::collection::vec(any::<u8>(), 0..=56), last in any::<bool>()) {
            let line = encode(number, &payload, last);
            let back = decode(number, &line).unwrap();
            prop_assert_eq!((&back.payload[..back.len], back.last), (&payload[..], last));
        }

        /// Whatever part of a line is visible, in whatever grain: only the whole one is taken.
        #[test]
        fn a_torn_line_is_not_taken(
            number in 4096u64..1 << 40,
            old in prop::collection::vec(any::<u8>(), 56),
            new in prop::collection::vec(any::<u8>(), 56),
            visible in any::<u64>(),
        ) {
            let before = encode(number - 4096, &old, true);
            let after = encode(number, &new, true);
            let mut seen = before;
            for at in 0..LINE_BYTES {
                if visible >> at & 1 == 1 { seen[at] = after[at]; }
            }
            prop_assert_eq!(decode(number, &seen).is_some(), seen == after);
        }

        #[test]
        fn decoding_is_total(number in any::<u64>(), line in prop::collection::vec(any::<u8>(), 64)) {
            let _ = decode(number, line.as_slice().try_into().unwrap());
        }
    }

    #[test]
    fn fresh_memory_and_former_laps_hold_no_line() {
        for number in 0..10_000 {
            assert!(decode(number, &[0; LINE_BYTES]).is_none());
        }
        let line = encode(7, b"seven", true);
        assert!(decode(7, &line).is_some());
        assert!(
            (0..100)
                .filter(|n| *n != 7)
                .all(|n| decode(n, &line).is_none())
        );
        assert_eq!((lines(0), lines(1), lines(56), lines(57)), (0, 1, 1, 2));
    }
}
