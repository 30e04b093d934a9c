//! Credits: what may be under way to the peer, in messages (each takes one of its posted
//! receives) and in bytes of its inbox. Pure; both sides count the same messages, so that a
//! credit is a number of messages only.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::error::VerbsError;
use crate::num::{to_u64, to_usize};

/// The sender's half.
#[derive(Debug)]
pub(super) struct Outgoing {
    messages_max: usize,
    bytes_max: usize,
    /// Sizes of the messages that the peer has not freed, oldest first.
    sizes: VecDeque<u32>,
    used_bytes: usize,
    /// Messages sent since the beginning.
    sent: u64,
    freed: u64,
}

impl Outgoing {
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self {
            messages_max,
            bytes_max,
            sizes: VecDeque::with_capacity(messages_max),
            used_bytes: 0,
            sent: 0,
            freed: 0,
        }
    }

    /// Bytes that the next message may have.
    #[inline]
    pub(super) fn room(&self) -> usize {
        if self.sizes.len() == self.messages_max {
            0
        } else {
            self.bytes_max - self.used_bytes
        }
    }

    /// Messages sent since the beginning.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Messages that the peer has freed since the beginning.
    pub(super) fn freed(&self) -> u64 {
        self.freed
    }

    /// A message of at most `room()` bytes left.
    #[inline]
    pub(super) fn on_sent(&mut self, bytes: u32) {
        debug_assert!(bytes as usize <= self.room());
        self.sizes.push_back(bytes);
        self.used_bytes += bytes as usize;
        self.sent += 1;
    }

    /// The peer has freed this many messages since the beginning.
    ///
    /// # Errors
    /// More than were sent. Fewer than before is an old word, and no news.
    #[inline]
    pub(super) fn on_freed(&mut self, total: u64) -> Result<(), VerbsError> {
        if total > self.sent {
            return Err(VerbsError::Protocol(
                "credit for messages that were not sent",
            ));
        }
        while self.freed < total {
            let bytes = self.sizes.pop_front().unwrap_or(0);
            self.used_bytes -= bytes as usize;
            self.freed += 1;
        }
        Ok(())
    }
}

/// The receiver's half, where messages are announced with their sizes.
#[derive(Debug)]
pub(super) struct Incoming {
    messages_max: usize,
    bytes_max: usize,
    /// What is left of each message that arrived, oldest first.
    left: VecDeque<u32>,
    available: usize,
}

impl Incoming {
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self {
            messages_max,
            bytes_max,
            left: VecDeque::with_capacity(messages_max),
            available: 0,
        }
    }

    /// Bytes that may be read.
    #[inline]
    pub(super) fn available(&self) -> usize {
        self.available
    }

    /// A message arrived.
    ///
    /// # Errors
    /// It, or its bytes, are more than the credits allowed.
    #[inline]
    pub(super) fn on_message(&mut self, bytes: u32) -> Result<(), VerbsError> {
        let total = self.available + bytes as usize;
        if self.left.len() == self.messages_max || total > self.bytes_max {
            return Err(VerbsError::Protocol("more than the credits allow"));
        }
        self.left.push_back(bytes);
        self.available = total;
        Ok(())
    }

    /// `bytes`, at most `available()`, were read. Returns how many messages that finished.
    #[inline]
    pub(super) fn on_read(&mut self, mut bytes: usize) -> u64 {
        self.available -= bytes;
        let mut finished = 0;
        while let Some(front) = self.left.front_mut() {
            let take = bytes.min(*front as usize);
            *front -= u32::try_from(take).unwrap_or(*front);
            bytes -= take;
            if *front > 0 {
                break;
            }
            self.left.pop_front();
            finished += 1;
        }
        finished
    }
}

/// When credits go back without data to ride on: after a quarter, so that at most eight such
/// messages are unread at the peer at any time ([`CREDIT_RESERVE`]).
#[inline]
pub(super) fn credit_is_due(
    messages: u64,
    bytes: u64,
    messages_max: usize,
    bytes_max: usize,
) -> bool {
    messages >= to_u64(messages_max / 4) || bytes >= to_u64(bytes_max / 4)
}

/// Receives that are posted beyond the messages, for credits, the end, and completions that the
/// receiver has not looked at.
pub(super) const CREDIT_RESERVE: usize = 64;

/// What an immediate value says: credits for so many messages, and the size of the message that
/// comes with it. Both 0: nothing more comes.
#[inline]
pub(super) fn pack(credits: u64, bytes: u32) -> (u32, u64) {
    let credits = credits.min((1 << CREDIT_BITS) - 1);
    let high = u32::try_from(credits).unwrap_or(0) << BYTES_BITS;
    (high | bytes, credits)
}

/// Takes an immediate value apart: credits, bytes.
#[inline]
pub(super) fn unpack(immediate: u32) -> (u64, u32) {
    (
        u64::from(immediate >> BYTES_BITS),
        immediate & ((1 << BYTES_BITS) - 1),
    )
}

const BYTES_BITS: u32 = 20;
const CREDIT_BITS: u32 = 32 - BYTES_BITS;
/// Most bytes of a message.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// In the place of a message's size: a word of the status page changed.
pub(super) const WORDS_CHANGED: u32 = 1 << (BYTES_BITS - 1);
const _: () = assert!(MESSAGE_BYTES_MAX < WORDS_CHANGED as usize);

/// A total as a word that shows by itself whether it is whole: the number and its complement.
pub(super) fn checked_word(total: u64) -> [u8; 16] {
    let mut word = [0; 16];
    word[..8].copy_from_slice(&total.to_le_bytes());
    word[8..].copy_from_slice(&(!total).to_le_bytes());
    word
}

/// The total of a whole word; None while it is being written, or never was.
pub(super) fn read_word(word: &[u8; 16]) -> Option<u64> {
    let (halves, _) = word.as_chunks::<8>();
    let [number, complement] = [halves[0], halves[1]].map(u64::from_le_bytes);
    (!number == complement).then_some(number)
}

/// Position of a byte count.
pub(super) fn advance(position: u64, bytes: usize) -> u64 {
    position.wrapping_add(to_u64(bytes))
}

/// Ring sizes that a peer may have: a power of two that we can stage.
pub(super) fn ring_bytes(bytes: u32) -> Option<usize> {
    (bytes.is_power_of_two() && (1 << 16..=1 << 26).contains(&bytes))
        .then(|| to_usize(bytes.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A sender and a receiver with a wire between, against plain sums.
        #[test]
        fn both_sides_count_the_same(steps in prop::collection::vec((0u8..3, 1usize..3000), 1..400)) {
            let (messages_max, bytes_max) = (8, 4096);
            let mut out = Outgoing::new(messages_max, bytes_max);
            let mut incoming = Incoming::new(messages_max, bytes_max);
            let (mut sent, mut read, mut finished) = (0usize, 0usize, 0u64);
            let mut ends = std::collections::VecDeque::new();
            for (what, size) in steps {
                match what {
                    0 if out.room() > 0 => {
                        let bytes = u32::try_from(size.min(out.room())).unwrap();
                        out.on_sent(bytes);
                        incoming.on_message(bytes).unwrap();
                        sent += bytes as usize;
                        ends.push_back(sent);
                    }
                    1 => {
                        let bytes = size.min(incoming.available());
                        finished += incoming.on_read(bytes);
                        read += bytes;
                    }
                    _ => out.on_freed(finished).unwrap(),
                }
                prop_assert_eq!(incoming.available(), sent - read);
                let whole = ends.iter().filter(|end| **end <= read).count();
                prop_assert_eq!(finished, whole as u64);
            }
            // Everything read and freed: all room is back.
            finished += incoming.on_read(incoming.available());
            out.on_freed(finished).unwrap();
            prop_assert_eq!(out.room(), bytes_max);
        }

        #[test]
        fn immediates_round_trip(credits in 0u64..5000, bytes in 0u32..=(64 << 10)) {
            let (immediate, told) = pack(credits, bytes);
            prop_assert_eq!(unpack(immediate), (told, bytes));
            prop_assert_eq!(told, credits.min(4095));
        }

        #[test]
        fn torn_words_are_not_read(old in any::<u64>(), new in any::<u64>(), cut in 0usize..16) {
            let mut torn = checked_word(old);
            torn[..cut].copy_from_slice(&checked_word(new)[..cut]);
            if let Some(total) = read_word(&torn) {
                prop_assert!(total == old || total == new);
            }
        }
    }

    #[test]
    fn what_breaks_the_rules_is_named() {
        let mut out = Outgoing::new(2, 100);
        out.on_sent(60);
        assert!(out.on_freed(2).is_err());
        out.on_sent(40);
        assert_eq!(out.room(), 0);
        out.on_freed(1).unwrap();
        assert_eq!(out.room(), 60);
        out.on_freed(0).unwrap();
        assert_eq!((out.room(), out.freed(), out.sent()), (60, 1, 2));
        let mut incoming = Incoming::new(2, 100);
        incoming.on_message(60).unwrap();
        assert!(incoming.on_message(41).is_err());
        incoming.on_message(40).unwrap();
        assert!(incoming.on_message(0).is_err());
        assert_eq!(read_word(&[0; 16]), None);
        assert_eq!(ring_bytes(1 << 20), Some(1 << 20));
        assert_eq!(ring_bytes(3 << 20), None);
    }
}
