//! Which memory the application has lent for transfers without a copy.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;

/// Lent memory is registered in slices of this size: what one registration of every device can cover.
const SLICE_BYTES: usize = 1 << 30;

/// Ranges of addresses, by the first one.
#[derive(Debug, Default)]
pub(super) struct Lent {
    ranges: BTreeMap<usize, usize>,
}

impl Lent {
    /// Adds a range. Ranges that it overlaps are no longer lent: they were not given back, and are other memory now.
    pub(super) fn add(&mut self, range: &Range<usize>) {
        self.ranges
            .retain(|start, end| *start >= range.end || *end <= range.start);
        self.ranges.insert(range.start, range.end);
    }

    /// Takes the range that begins at `start` out.
    pub(super) fn remove(&mut self, start: usize) -> Option<Range<usize>> {
        Some(start..self.ranges.remove(&start)?)
    }

    /// The slice of lent memory that `at` lies in.
    pub(super) fn slice(&self, at: usize) -> Option<Range<usize>> {
        let (&start, &end) = self.ranges.range(..=at).next_back()?;
        let slice = start + (at - start) / SLICE_BYTES * SLICE_BYTES;
        (at < end).then(|| slice..end.min(slice.saturating_add(SLICE_BYTES)))
    }

    /// The slice that holds all of a range.
    pub(super) fn holding(&self, at: usize, bytes: usize) -> Option<Range<usize>> {
        let slice = self.slice(at)?;
        (bytes <= slice.end - at).then_some(slice)
    }

    /// Whether all of a range is lent, in however many slices.
    pub(super) fn covers(&self, at: usize, bytes: usize) -> bool {
        let before = self.ranges.range(..=at).next_back();
        before.is_some_and(|(_, end)| end.checked_sub(at).is_some_and(|room| bytes <= room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_lie_in_their_range_and_hold_what_was_asked() {
        let mut lent = Lent::default();
        let start = 0x1000;
        lent.add(&(start..start + 2 * SLICE_BYTES + 100));
        assert_eq!(lent.slice(start - 1), None);
        assert_eq!(lent.slice(start), Some(start..start + SLICE_BYTES));
        let last = start + 2 * SLICE_BYTES;
        assert_eq!(lent.slice(last + 99), Some(last..last + 100));
        assert_eq!(lent.slice(last + 100), None);
        assert_eq!(lent.holding(last, 101), None);
        assert_eq!(lent.holding(last - 1, 2), None);
        assert!(lent.covers(last - 1, 2));
        assert!(!lent.covers(last, 101));
        // Memory at the same place that was never given back.
        lent.add(&(start + 8..start + 16));
        assert_eq!(lent.slice(last), None);
        assert_eq!(lent.remove(start), None);
        assert_eq!(lent.remove(start + 8), Some(start + 8..start + 16));
        assert_eq!(lent.slice(start + 8), None);
    }
}
