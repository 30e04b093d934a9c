//! The receiving direction: what has arrived, what is granted, what is out of order.

use super::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::error::Violation;

const HEADER: u64 = FRAME_HEADER_BYTES as u64;

/// Positions of the receiving direction: `consumed <= expected <= consumed + window`.
#[derive(Clone, Debug)]
pub struct Receiver {
    expected: u64,
    consumed: u64,
    window_bytes: u64,
}

/// What to do with a data frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next one: deliver it.
    Deliver,
    /// It arrived before: drop it. On an ordered transport a violation.
    Duplicate,
    /// Something before it is missing: drop it. On an ordered transport a violation.
    Gap,
}

impl Receiver {
    /// A fresh direction that grants `window_bytes`.
    #[must_use]
    pub fn new(window_bytes: u64) -> Self {
        Self {
            expected: 0,
            consumed: 0,
            window_bytes,
        }
    }

    /// Judges a data frame (a decoded header) and, if it is the next one, counts it as arrived.
    ///
    /// # Errors
    /// [`Violation::CreditExceeded`], [`Violation::Overlap`].
    #[inline]
    pub fn on_data(&mut self, header: &FrameHeader) -> Result<Verdict, Violation> {
        let seq = header.seq();
        let end =
            seq.checked_add(HEADER + u64::from(header.len()))
                .ok_or(Violation::CreditExceeded {
                    got: u64::MAX,
                    granted: self.credit(),
                })?;
        if seq != self.expected {
            return if seq > self.expected {
                Ok(Verdict::Gap)
            } else if end <= self.expected {
                Ok(Verdict::Duplicate)
            } else {
                Err(Violation::Overlap {
                    expected: self.expected,
                    got: seq,
                })
            };
        }
        if end > self.credit() {
            return Err(Violation::CreditExceeded {
                got: end,
                granted: self.credit(),
            });
        }
        self.expected = end;
        Ok(Verdict::Deliver)
    }

    /// As [`Receiver::on_data`] where the transport keeps order, so that nothing but the next
    /// frame can come.
    ///
    /// # Errors
    /// Any violation of the order or of the credits.
    #[inline]
    pub fn on_ordered_data(&mut self, header: &FrameHeader) -> Result<(), Violation> {
        let expected = self.expected;
        match self.on_data(header)? {
            Verdict::Deliver => Ok(()),
            Verdict::Duplicate => Err(Violation::Overlap {
                expected,
                got: header.seq(),
            }),
            Verdict::Gap => Err(Violation::Gap {
                expected,
                got: header.seq(),
            }),
        }
    }

    /// The stream ends at `seq`.
    ///
    /// # Errors
    /// [`Violation::Gap`] when frames before the end are missing.
    pub fn on_close(&self, seq: u64) -> Result<(), Violation> {
        if seq == self.expected {
            Ok(())
        } else {
            Err(Violation::Gap {
                expected: self.expected,
                got: seq,
            })
        }
    }

    /// The application is done with a frame of `len` payload bytes: its room is free again.
    #[inline]
    pub fn on_consumed(&mut self, len: u32) {
        self.consumed += HEADER + u64::from(len);
    }

    /// Everything before this has arrived.
    #[inline]
    #[must_use]
    pub fn ack(&self) -> u64 {
        self.expected
    }

    /// The peer may send up to this.
    #[inline]
    #[must_use]
    pub fn credit(&self) -> u64 {
        self.consumed + self.window_bytes
    }
}

/// Whether so much room came free since the peer was last told that it should know at once,
/// lest it stand still.
#[inline]
#[must_use]
pub fn credit_is_due(credit: u64, told: u64, window_bytes: u64) -> bool {
    credit - told >= window_bytes / 4
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::session::frame::FrameKind;

    fn data(seq: u64, len: u32) -> FrameHeader {
        FrameHeader::new(FrameKind::Data, len, seq, 0, 0)
    }

    #[test]
    fn order_is_judged() {
        let mut r = Receiver::new(1024);
        assert_eq!(r.on_data(&data(0, 32)), Ok(Verdict::Deliver));
        assert_eq!(r.on_data(&data(0, 32)), Ok(Verdict::Duplicate));
        assert_eq!(r.on_data(&data(128, 32)), Ok(Verdict::Gap));
        assert_eq!(
            r.on_data(&data(0, 64)),
            Err(Violation::Overlap {
                expected: 64,
                got: 0
            })
        );
        assert_eq!(
            r.on_ordered_data(&data(0, 0)),
            Err(Violation::Overlap {
                expected: 64,
                got: 0
            })
        );
        assert_eq!(
            r.on_close(100),
            Err(Violation::Gap {
                expected: 64,
                got: 100
            })
        );
        assert_eq!(r.on_close(64), Ok(()));
    }

    #[test]
    fn the_window_moves_with_consumption() {
        let mut r = Receiver::new(128);
        r.on_ordered_data(&data(0, 32)).unwrap();
        r.on_ordered_data(&data(64, 32)).unwrap();
        assert_eq!(
            r.on_ordered_data(&data(128, 0)),
            Err(Violation::CreditExceeded {
                got: 160,
                granted: 128
            })
        );
        assert!(!credit_is_due(r.credit(), 128, 128));
        r.on_consumed(32);
        assert_eq!((r.ack(), r.credit()), (128, 192));
        assert!(credit_is_due(r.credit(), 128, 128));
        r.on_ordered_data(&data(128, 0)).unwrap();
    }

    #[test]
    fn positions_at_the_end_of_the_number_range_do_not_wrap() {
        let mut r = Receiver::new(128);
        assert!(r.on_data(&data(u64::MAX - 8, 64)).is_err());
    }
}
