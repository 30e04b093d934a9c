//! Which of a session's addresses for device memory are whose.
//!
//! The server maps memory in granules of 2 MiB, and a granule is one device's. So each device fills windows of its own,
//! which are whole granules and stay its own; reservations of the program, which may be mapped for any device, are granules too.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::reserve::Range;

/// Device memory is given in pieces of this size, at addresses that are multiples of it.
pub(crate) const GRANULE: u64 = 512;
/// Pieces of at least this size start at multiples of it, as a driver's do, and so do windows.
const LARGE: u64 = 2 << 20;
/// Least addresses that a device takes for itself at once.
const WINDOW_BYTES: u64 = 64 << 20;

/// Addresses of one session's device memory.
pub(crate) struct DeviceRange {
    /// What no device has: for windows, and for reservations.
    shared: Pieces,
    /// By the session's number of the device.
    devices: Vec<Pieces>,
}

impl DeviceRange {
    pub(crate) fn new(range: Range) -> Self {
        // Null is no memory, wherever a server begins.
        let start = range.start.max(LARGE);
        Self {
            shared: Pieces::new(start, range.start.saturating_add(range.bytes)),
            devices: Vec::new(),
        }
    }

    /// Addresses for memory of a device. `has_finished`: whether the work before a stamp is known to have run.
    pub(crate) fn take(
        &mut self,
        device: u32,
        bytes: u64,
        has_finished: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let align = if bytes >= LARGE { LARGE } else { GRANULE };
        let device = usize::try_from(device).ok()?;
        while self.devices.len() <= device {
            self.devices.push(Pieces::new(0, 0));
        }
        let own = self.devices.get_mut(device)?;
        let found = own.take_same_size(bytes, align, &has_finished);
        if let Some(start) = found.or_else(|| own.take_fresh(bytes, align)) {
            return Some(start);
        }
        let exact = bytes.checked_next_multiple_of(LARGE)?;
        for window in [exact.max(WINDOW_BYTES), exact] {
            if let Some(start) = self.shared.take(window, LARGE, &has_finished) {
                own.widen(start, window);
                return own.take_fresh(bytes, align);
            }
        }
        own.take_from_free(bytes, align, &has_finished)
    }

    /// Gives addresses of a device back; `stamp`: of the last work that may use them.
    pub(crate) fn give(&mut self, device: u32, start: u64, bytes: u64, stamp: u64) {
        let own = usize::try_from(device).map(|device| self.devices.get_mut(device));
        if let Ok(Some(own)) = own {
            own.free.insert(start, (bytes, stamp));
        }
    }

    /// Addresses that are no device's yet: whole granules, at a multiple of `align`.
    pub(crate) fn reserve(
        &mut self,
        bytes: u64,
        align: u64,
        has_finished: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let bytes = bytes.checked_next_multiple_of(LARGE)?;
        self.shared.take(bytes, align.max(LARGE), &has_finished)
    }

    /// Gives a reservation back; `stamp`: of the last work that may use it.
    pub(crate) fn unreserve(&mut self, start: u64, bytes: u64, stamp: u64) {
        let bytes = bytes.next_multiple_of(LARGE);
        self.shared.free.insert(start, (bytes, stamp));
    }
}

/// Addresses that are divided into pieces.
///
/// First fit by size, best first; freed pieces are used again only when the work before the free is known to
/// have run, because the server frees in the order of the device.
struct Pieces {
    /// First address never given, and the end of those.
    fresh: u64,
    end: u64,
    /// Freed pieces by start: length and the stamp of the free.
    free: BTreeMap<u64, (u64, u64)>,
}

impl Pieces {
    const fn new(start: u64, end: u64) -> Self {
        Self {
            fresh: start,
            end,
            free: BTreeMap::new(),
        }
    }

    /// Adds addresses that were never used. What was left of those before stays, as a free piece or with them.
    fn widen(&mut self, start: u64, bytes: u64) {
        if start != self.end {
            if self.fresh < self.end {
                self.free.insert(self.fresh, (self.end - self.fresh, 0));
            }
            self.fresh = start;
        }
        self.end = start + bytes;
    }

    fn take(&mut self, bytes: u64, align: u64, has_finished: &impl Fn(u64) -> bool) -> Option<u64> {
        self.take_same_size(bytes, align, has_finished)
            .or_else(|| self.take_fresh(bytes, align))
            .or_else(|| self.take_from_free(bytes, align, has_finished))
    }

    /// A freed piece that fits exactly.
    fn take_same_size(
        &mut self,
        bytes: u64,
        align: u64,
        has_finished: &impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let (start, _) = self.free.iter().find(|(start, (len, stamp))| {
            *len == bytes && start.is_multiple_of(align) && has_finished(*stamp)
        })?;
        let start = *start;
        self.free.remove(&start);
        Some(start)
    }

    fn take_fresh(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let start = self.fresh.checked_next_multiple_of(align)?;
        let end = start.checked_add(bytes).filter(|end| *end <= self.end)?;
        self.fresh = end;
        Some(start)
    }

    /// Everything has been given out once: cut a piece out of finished free space, neighbours joined. What is not
    /// finished stays by itself, or it would hold up its neighbours.
    fn take_from_free(
        &mut self,
        bytes: u64,
        align: u64,
        has_finished: &impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let mut joined: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (start, (len, stamp)) in std::mem::take(&mut self.free) {
            match joined.last_entry() {
                Some(mut last)
                    if *last.key() + last.get().0 == start
                        && has_finished(stamp)
                        && has_finished(last.get().1) =>
                {
                    let (old_len, old_stamp) = *last.get();
                    last.insert((old_len + len, old_stamp.max(stamp)));
                }
                _ => {
                    joined.insert(start, (len, stamp));
                }
            }
        }
        self.free = joined;
        let (piece, at) = self.free.iter().find_map(|(start, (len, stamp))| {
            let at = start.checked_next_multiple_of(align)?;
            (has_finished(*stamp) && at + bytes <= start + len).then_some((*start, at))
        })?;
        let (len, stamp) = self.free.remove(&piece)?;
        if at > piece {
            self.free.insert(piece, (at - piece, stamp));
        }
        let end = piece + len;
        if end > at + bytes {
            self.free.insert(at + bytes, (end - at - bytes, stamp));
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::{DeviceRange, GRANULE, LARGE, Pieces, WINDOW_BYTES};
    use crate::reserve::Range;

    const BASE: u64 = 0x10_0000;

    fn pieces(bytes: u64) -> Pieces {
        Pieces::new(BASE, BASE + bytes)
    }

    fn range(bytes: u64) -> DeviceRange {
        let start = BASE + GRANULE;
        DeviceRange::new(Range { start, bytes })
    }

    #[test]
    fn a_freed_piece_waits_for_the_work_before_it() {
        let mut range = range(16 << 20);
        let first = range.take(0, 512, |_| true);
        range.give(0, first.unwrap(), 512, 5);
        assert_ne!(range.take(0, 512, |stamp| stamp < 5), first);
        assert_eq!(range.take(0, 512, |stamp| stamp <= 5), first);
    }

    /// Whatever is taken and given back in whatever order: no granule is ever two devices', nor a device's and a reservation's.
    #[test]
    fn no_granule_is_shared() {
        let mut range = range(200 * LARGE);
        let mut seed = 1_u64;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        // Of each living piece: its owner (3: a reservation) and size. Of each granule: its owner, and how many pieces lie there.
        let (mut living, mut granules) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..20_000 {
            let owner = u32::try_from(draw(4)).unwrap();
            let sizes = [512, 4096, LARGE, 3 * LARGE + 512, WINDOW_BYTES];
            let bytes = sizes[usize::try_from(draw(5)).unwrap()];
            let taken = match owner {
                3 => range.reserve(bytes, LARGE, |_| true),
                device => range.take(device, bytes, |_| true),
            };
            if let Some(start) = taken {
                assert!(living.insert(start, (owner, bytes)).is_none());
                for granule in start / LARGE..(start + bytes).div_ceil(LARGE) {
                    let (has, count) = granules.entry(granule).or_insert((owner, 0));
                    assert_eq!(*has, owner, "granule {granule}");
                    *count += 1;
                }
            }
            if !living.is_empty() && (taken.is_none() || draw(2) == 0) {
                let at = usize::try_from(draw(living.len() as u64)).unwrap();
                let (start, (owner, bytes)) = living.iter().nth(at).map(|(a, b)| (*a, *b)).unwrap();
                living.remove(&start);
                match owner {
                    3 => range.unreserve(start, bytes, 0),
                    device => range.give(device, start, bytes, 0),
                }
                for granule in start / LARGE..(start + bytes).div_ceil(LARGE) {
                    let (_, count) = granules.get_mut(&granule).unwrap();
                    *count -= 1;
                    if *count == 0 {
                        granules.remove(&granule);
                    }
                }
            }
        }
    }

    #[test]
    fn one_device_s_pieces_lie_side_by_side_across_its_windows() {
        let mut range = range(8 * WINDOW_BYTES);
        let first = range.take(0, WINDOW_BYTES - 512, |_| true).unwrap();
        let second = range.take(0, 512, |_| true).unwrap();
        let third = range.take(0, 512, |_| true).unwrap();
        assert_eq!(
            [second, third],
            [512, 0].map(|less| first + WINDOW_BYTES - less)
        );
    }

    #[test]
    fn what_is_left_of_a_range_is_used_to_its_end() {
        let mut range = range(3 * LARGE + LARGE / 2);
        assert!(range.take(0, 512, |_| true).is_some());
        assert!(range.take(1, LARGE, |_| true).is_some());
        let all = range.take(0, 2 * LARGE, |_| true);
        assert_eq!(all, None, "only one granule is left");
        assert!(range.reserve(LARGE, LARGE, |_| true).is_some());
        assert!(range.take(0, LARGE / 2, |_| true).is_some());
    }

    #[test]
    fn a_piece_that_is_not_finished_holds_up_no_neighbour() {
        let mut range = pieces(8 * GRANULE);
        let start = range.take(8 * GRANULE, GRANULE, &|_| true).unwrap();
        range.free.insert(start, (7 * GRANULE, 0));
        range.free.insert(start + 7 * GRANULE, (GRANULE, 9));
        let finished = |stamp| stamp < 9;
        let mut take =
            |count, finished: &dyn Fn(u64) -> bool| range.take(count * GRANULE, GRANULE, &finished);
        assert_eq!(take(2, &finished), Some(start));
        assert_eq!(take(6, &finished), None);
        assert_eq!(take(6, &|_| true), Some(start + 2 * GRANULE));
    }

    #[test]
    fn freed_neighbours_are_joined_when_the_range_is_used_up() {
        let mut range = pieces(2048);
        let mut taken = || range.take(512, GRANULE, &|_| true);
        let pieces: Vec<u64> = std::iter::from_fn(&mut taken).collect();
        assert_eq!(pieces.len(), 4);
        range.free.insert(pieces[1], (512, 1));
        range.free.insert(pieces[2], (512, 1));
        assert_eq!(range.take(1024, GRANULE, &|_| true), Some(pieces[1]));
        assert_eq!(range.take(512, GRANULE, &|_| true), None);
    }
}
