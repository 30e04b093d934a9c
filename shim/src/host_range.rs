//! Which of a session's addresses for pinned memory are whose: both sides have it at the same ones.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};

use crate::memory::PAGE;
use crate::reserve::Range;

/// Addresses of a session's host range.
#[derive(Default)]
pub(crate) struct HostRange {
    /// Behind all that was given.
    next: u64,
    /// Pieces that nobody uses, by size: they are given again.
    unused: BTreeMap<u64, Vec<u64>>,
    /// Start and size of pieces that were given back, and the stamp of the last work that may use them, as the server
    /// frees in the order of the device. The oldest is in front.
    freed: VecDeque<(u64, u64, u64)>,
}

impl HostRange {
    /// Start and size of addresses for so many bytes; `has_finished`: whether the work before a stamp is known to have run.
    pub(crate) fn take(
        &mut self,
        range: Range,
        bytes: u64,
        has_finished: impl Fn(u64) -> bool,
    ) -> Option<(u64, u64)> {
        let reserved_bytes = bytes.checked_next_multiple_of(PAGE)?;
        let is_unused = |(_, _, stamp): &mut (u64, u64, u64)| has_finished(*stamp);
        while let Some((start, size, _)) = self.freed.pop_front_if(is_unused) {
            self.give_unused(start, size);
        }
        if let Some(start) = self.unused.get_mut(&reserved_bytes).and_then(Vec::pop) {
            return Some((start, reserved_bytes));
        }
        // A guard page behind each piece catches programs that run over its end.
        let end = self.next.checked_add(reserved_bytes)?.checked_add(PAGE)?;
        let start = range.start + self.next;
        if end > range.bytes {
            return None;
        }
        self.next = end;
        Some((start, reserved_bytes))
    }

    /// Gives back what work up to this stamp may use.
    pub(crate) fn give(&mut self, start: u64, reserved_bytes: u64, stamp: u64) {
        self.freed.push_back((start, reserved_bytes, stamp));
    }

    /// Gives back what no work uses.
    pub(crate) fn give_unused(&mut self, start: u64, reserved_bytes: u64) {
        self.unused.entry(reserved_bytes).or_default().push(start);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::HostRange;
    use crate::memory::PAGE;
    use crate::reserve::Range;

    const RANGE: Range = Range {
        start: 1 << 40,
        bytes: 16 * PAGE,
    };

    #[test]
    fn addresses_are_given_again_once_no_work_can_use_them() {
        let mut addresses = HostRange::default();
        let mut given = Vec::new();
        while let Some((start, bytes)) = addresses.take(RANGE, 3 * PAGE - 1, |_| false) {
            assert_eq!(bytes, 3 * PAGE);
            assert!(
                given.iter().all(|other| start.abs_diff(*other) > bytes),
                "a page between"
            );
            given.push(start);
        }
        assert_eq!(given.len(), 4);
        addresses.give(given[0], 3 * PAGE, 5);
        addresses.give(given[1], 3 * PAGE, 7);
        assert!(addresses.take(RANGE, 3 * PAGE, |stamp| stamp < 5).is_none());
        let again = addresses.take(RANGE, 3 * PAGE, |stamp| stamp <= 5);
        assert_eq!(again, Some((given[0], 3 * PAGE)));
        assert!(
            addresses
                .take(RANGE, 3 * PAGE, |stamp| stamp <= 5)
                .is_none()
        );
        addresses.give_unused(given[2], 3 * PAGE);
        assert!(addresses.take(RANGE, 3 * PAGE, |_| false).is_some());
        // Nothing is as large as all addresses there are.
        assert!(addresses.take(RANGE, u64::MAX - PAGE, |_| true).is_none());
    }
}
