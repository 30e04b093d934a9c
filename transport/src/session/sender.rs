//! The sending direction: what is gathered, sealed, acknowledged, and how far one may go.

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::error::Violation;
use crate::num::{align8, to_u64, to_usize};

const HEADER: u64 = FRAME_HEADER_BYTES as u64;

/// Positions of the sending direction: `acked <= sealed <= tail`. The open frame, if there is
/// one, lies between `sealed` and `tail`; everything from `acked` on is retained for replay.
#[derive(Clone, Debug)]
pub struct Sender {
    tail: u64,
    sealed: u64,
    acked: u64,
    credit: u64,
    ring_bytes: u64,
    frame_bytes_max: u64,
    /// Up to here records of the open frame may go, as far as was known when it was opened; 0 without one.
    open_limit: u64,
}

/// Whether and where a record may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Write it at this position, then [`Sender::commit`].
    At(u64),
    /// The open frame has no room for it: [`Sender::seal`], then claim again.
    SealFirst,
    /// The ring or the credits are exhausted until the peer acknowledges or grants.
    Blocked,
}

impl Sender {
    /// A fresh direction. `credit` is the peer's first grant.
    #[must_use]
    pub fn new(ring_bytes: u64, credit: u64, frame_bytes_max: u32) -> Self {
        Self {
            tail: 0,
            sealed: 0,
            acked: 0,
            credit,
            ring_bytes,
            frame_bytes_max: u64::from(frame_bytes_max),
            open_limit: 0,
        }
    }

    /// [`Self::claim`] in the open frame, by what was known when it was opened: a few instructions. Where this gives
    /// nothing, [`Self::claim`] may.
    #[inline]
    #[must_use]
    pub fn claim_open(&self, len: usize) -> Option<u64> {
        // At least a byte, so that a limit of 0 is none.
        let end = self.tail.saturating_add(to_u64(align8(len.max(1))));
        (end <= self.open_limit).then_some(self.tail)
    }

    /// Asks for room for `len` bytes. Ring space is free up to `released`, which is `acked`
    /// unless the caller still reads bytes before that (a write in progress).
    #[inline]
    #[must_use]
    pub fn claim(&self, len: usize, released: u64) -> Claim {
        let len = to_u64(align8(len));
        let limit = self.credit.min(released.saturating_add(self.ring_bytes));
        let (at, payload) = if self.is_open() {
            (self.tail, self.tail - self.sealed - HEADER + len)
        } else {
            (self.tail + HEADER, len)
        };
        if payload > self.frame_bytes_max {
            return Claim::SealFirst;
        }
        if at + len > limit {
            Claim::Blocked
        } else {
            Claim::At(at)
        }
    }

    /// The record at `at` (from [`Claim::At`]) is written and has `len` bytes. Returns the
    /// position after it, and whether it opened a frame.
    #[inline]
    pub fn commit(&mut self, at: u64, len: usize) -> (u64, bool) {
        let opened = !self.is_open();
        self.tail = at + to_u64(align8(len));
        (self.tail, opened)
    }

    /// A frame was opened: ring space is free up to `released`, as for [`Self::claim`], and so it stays.
    #[inline]
    pub fn opened(&mut self, released: u64) {
        let frame_end = self.sealed + HEADER + self.frame_bytes_max;
        let ring_end = released.saturating_add(self.ring_bytes);
        self.open_limit = self.credit.min(ring_end).min(frame_end);
    }

    /// Ends the open frame: the caller writes the returned header at the returned position,
    /// and may then send up to [`Sender::sealed`].
    #[inline]
    pub fn seal(&mut self, ack: u64, credit: u64) -> Option<(u64, FrameHeader)> {
        if !self.is_open() {
            return None;
        }
        let at = self.sealed;
        // Bounded by frame_bytes_max, which is a u32.
        let len = u32::try_from(self.tail - at - HEADER).unwrap_or(u32::MAX);
        self.sealed = self.tail;
        self.open_limit = 0;
        Some((at, FrameHeader::new(FrameKind::Data, len, at, ack, credit)))
    }

    /// Acknowledgement and credit that came from the peer; old ones change nothing. Returns
    /// whether either moved.
    ///
    /// # Errors
    /// [`Violation::AckAhead`].
    #[inline]
    pub fn on_ack(&mut self, ack: u64, credit: u64) -> Result<bool, Violation> {
        if ack > self.sealed {
            return Err(Violation::AckAhead {
                got: ack,
                sent: self.sealed,
            });
        }
        let moved = ack > self.acked || credit > self.credit;
        self.acked = self.acked.max(ack);
        self.credit = self.credit.max(credit);
        Ok(moved)
    }

    /// Whether records are gathered in an open frame.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.tail != self.sealed
    }

    /// Whether the peer has not acknowledged everything that was sealed.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.acked != self.sealed
    }

    /// Payload bytes gathered in the open frame.
    #[must_use]
    pub fn gathered(&self) -> usize {
        to_usize((self.tail - self.sealed).saturating_sub(HEADER))
    }

    /// End of the last sealed frame.
    #[inline]
    #[must_use]
    pub fn sealed(&self) -> u64 {
        self.sealed
    }

    /// Start of what is retained.
    #[inline]
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// End of everything written.
    #[must_use]
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Whether sending can go on at `at` after a reconnect: the peer has everything before.
    /// `frame_len` gives the payload length of the retained frame at a position.
    ///
    /// # Errors
    /// [`Violation::ResumePosition`] when it is not a frame boundary that is retained.
    pub fn resume(&mut self, at: u64, frame_len: impl Fn(u64) -> u32) -> Result<(), Violation> {
        let mut boundary = self.acked;
        while boundary < at && boundary < self.sealed {
            boundary += HEADER + u64::from(frame_len(boundary));
        }
        if boundary != at {
            return Err(Violation::ResumePosition(at));
        }
        self.acked = at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(claim: Claim) -> u64 {
        match claim {
            Claim::At(at) => at,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn records_gather_into_one_frame() {
        let mut s = Sender::new(4096, 4096, 128);
        let first = at(s.claim(5, s.acked()));
        assert_eq!(first, 32);
        assert_eq!(s.commit(first, 5), (40, true));
        let second = at(s.claim(64, s.acked()));
        assert_eq!(s.commit(second, 64), (104, false));
        let (pos, header) = s.seal(7, 9).unwrap();
        assert_eq!(
            (pos, header.len(), header.seq(), header.ack()),
            (0, 72, 0, 7)
        );
        assert!(s.in_flight() && !s.is_open());
        assert!(s.on_ack(104, 4096).unwrap());
        assert!(!s.in_flight());
    }

    #[test]
    fn ring_and_credit_block_and_reopen() {
        let mut s = Sender::new(256, 1 << 20, 128);
        for _ in 0..2 {
            let p = at(s.claim(96, s.acked()));
            s.commit(p, 96);
            s.seal(0, 0);
        }
        assert_eq!(s.claim(8, s.acked()), Claim::Blocked);
        s.on_ack(128, 0).unwrap();
        assert_eq!(
            s.claim(8, 0),
            Claim::Blocked,
            "bytes before 128 are still being read"
        );
        assert_eq!(s.claim(8, 128), Claim::At(256 + 32));
        let mut s = Sender::new(4096, 64, 128);
        assert_eq!(s.claim(40, 0), Claim::Blocked);
        s.on_ack(0, 72).unwrap();
        assert_eq!(s.claim(40, 0), Claim::At(32));
    }

    #[test]
    fn a_full_frame_is_sealed_first() {
        let mut s = Sender::new(4096, 4096, 64);
        let p = at(s.claim(64, 0));
        s.commit(p, 64);
        assert_eq!(s.claim(1, 0), Claim::SealFirst);
        s.seal(0, 0).unwrap();
        assert_eq!(s.claim(1, 0), Claim::At(96 + 32));
    }

    #[test]
    fn what_is_known_of_the_open_frame_never_gives_more_than_a_claim() {
        for (ring, credit, frame) in [(512, 4096, 256), (4096, 200, 256), (4096, 4096, 64)] {
            let mut s = Sender::new(ring, credit, frame);
            assert_eq!(
                (s.claim_open(0), s.claim_open(8)),
                (None, None),
                "none is open"
            );
            let p = at(s.claim(8, 0));
            s.commit(p, 8);
            assert_eq!(s.claim_open(8), None, "nothing is known of it");
            s.opened(0);
            let mut records = 0;
            while let Some(p) = s.claim_open(8) {
                assert_eq!(s.claim(8, 0), Claim::At(p));
                s.commit(p, 8);
                records += 1;
            }
            assert!(records > 0 && !matches!(s.claim(8, 0), Claim::At(_)));
            s.seal(0, 0).unwrap();
            assert_eq!(s.claim_open(8), None, "sealed");
        }
    }

    #[test]
    fn acknowledging_the_future_is_a_violation() {
        let mut s = Sender::new(4096, 4096, 64);
        assert_eq!(s.on_ack(1, 0), Err(Violation::AckAhead { got: 1, sent: 0 }));
    }

    #[test]
    fn resume_takes_only_retained_boundaries() {
        let mut s = Sender::new(4096, 4096, 64);
        for _ in 0..3 {
            let p = at(s.claim(16, 0));
            s.commit(p, 16);
            s.seal(0, 0);
        }
        s.on_ack(48, 0).unwrap();
        for bad in [0, 40, 50, 97, 145, 192] {
            assert!(s.clone().resume(bad, |_| 16).is_err(), "{bad}");
        }
        for good in [48, 96, 144] {
            assert!(s.clone().resume(good, |_| 16).is_ok(), "{good}");
        }
    }
}
