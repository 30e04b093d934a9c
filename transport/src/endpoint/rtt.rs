//! The estimate of the round trip, from what the session sends anyway.
#![forbid(unsafe_code)]

use std::time::Instant;

/// One frame of so many is timed: reading the clock twice takes longer than sending and receiving a small frame over
/// shared memory.
const PROBE_EVERY: u64 = 16;
/// By which part of its distance a slower round trip moves the estimate.
const SLOWER_PART: u64 = 64;

/// Times frames and pings.
#[derive(Debug, Default)]
pub(super) struct Rtt {
    /// When the frame that ends at this position left.
    probe: Option<(u64, Instant)>,
    /// When a ping left whose answer has not come: where little is sent, acknowledgements wait for the next record.
    ping: Option<Instant>,
    /// The estimate in nanoseconds; 0 = none yet.
    ns: u64,
}

impl Rtt {
    /// In nanoseconds; 0 = not known yet.
    pub(super) fn ns(&self) -> u64 {
        self.ns
    }

    /// A frame leaves, the how-manieth, which ends at this position. Whether it is timed.
    #[inline]
    pub(super) fn leaves(&mut self, frame: u64, end: u64) -> bool {
        let is_timed = frame % PROBE_EVERY == 1 && self.probe.is_none();
        if is_timed {
            self.probe = Some((end, Instant::now()));
        }
        is_timed
    }

    /// A ping leaves.
    pub(super) fn pinged(&mut self) {
        self.ping = Some(Instant::now());
    }

    /// Everything before this position has arrived.
    #[inline]
    pub(super) fn acknowledged(&mut self, position: u64) {
        if let Some((end, left)) = self.probe
            && position >= end
        {
            self.probe = None;
            self.sample(left);
        }
    }

    /// A ping was answered.
    pub(super) fn ponged(&mut self) {
        if let Some(left) = self.ping.take() {
            self.sample(left);
        }
    }

    /// The connection is another: what is on its way says nothing about it.
    pub(super) fn forget(&mut self) {
        (self.probe, self.ping) = (None, None);
    }

    fn sample(&mut self, left: Instant) {
        let sample_ns = u64::try_from(left.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.ns = smooth(self.ns, sample_ns);
    }
}

/// Follows the fastest round trips: a late acknowledgement says little about the path.
fn smooth(rtt_ns: u64, sample_ns: u64) -> u64 {
    if rtt_ns == 0 || sample_ns < rtt_ns {
        sample_ns
    } else {
        rtt_ns + (sample_ns - rtt_ns) / SLOWER_PART
    }
}

#[cfg(test)]
mod tests {
    use super::{Rtt, smooth};

    #[test]
    fn the_fastest_counts_most() {
        assert_eq!(smooth(0, 500), 500);
        assert_eq!(smooth(500, 300), 300);
        assert_eq!(smooth(300, 300 + 640), 310);
    }

    #[test]
    fn a_ping_is_a_sample_and_each_is_answered_once() {
        let mut rtt = Rtt::default();
        rtt.ponged();
        assert_eq!(rtt.ns(), 0, "none was sent");
        rtt.pinged();
        rtt.forget();
        rtt.ponged();
        assert_eq!(rtt.ns(), 0, "over another connection");
        rtt.pinged();
        rtt.ponged();
        let first = rtt.ns();
        assert!(first > 0);
        rtt.ponged();
        assert_eq!(rtt.ns(), first);
    }

    #[test]
    fn a_frame_is_a_sample_once_all_of_it_has_arrived() {
        let mut rtt = Rtt::default();
        rtt.leaves(2, 64);
        rtt.acknowledged(64);
        assert_eq!(rtt.ns(), 0, "one of sixteen");
        rtt.leaves(17, 128);
        rtt.acknowledged(127);
        assert_eq!(rtt.ns(), 0);
        rtt.acknowledged(128);
        assert!(rtt.ns() > 0);
    }
}
