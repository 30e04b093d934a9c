//! Times between events. Programs that measure record pairs of events in a row and ask for the times afterwards, one after
//! the other; so the first question asks for the times between all neighbours that come after, too, and the others
//! are answered here.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

/// So many recordings are remembered.
const POINTS_MAX: usize = 4096;
/// So many times are asked for at once.
const QUESTIONS_MAX: usize = 1024;

/// An event as it was recorded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) context: u32,
    /// Number of the event.
    pub(crate) event: u64,
    /// Of the recording; greater than that of earlier ones.
    pub(crate) stamp: u64,
}

/// The recordings of one session, the latest ones, of events that take the time.
#[derive(Default)]
pub(crate) struct Timings {
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    entries: VecDeque<Entry>,
    /// Stamp of the last recording of each event.
    latest: HashMap<u64, u64>,
}

struct Entry {
    point: Point,
    /// Milliseconds since the entry before, once they are known.
    gap_ms: Option<f32>,
}

impl Timings {
    pub(crate) fn recorded(&self, point: Point) {
        let mut log = self.log.lock();
        if log.entries.len() == POINTS_MAX {
            log.entries.pop_front();
        }
        log.latest.insert(point.event, point.stamp);
        log.entries.push_back(Entry {
            point,
            gap_ms: None,
        });
    }

    pub(crate) fn forget(&self, event: u64) {
        self.log.lock().latest.remove(&event);
    }

    /// Milliseconds between two recordings, if they are known.
    pub(crate) fn known_ms(&self, start: Point, end: Point) -> Option<f32> {
        let log = self.log.lock();
        let (before, at) = log.neighbours(end)?;
        at.gap_ms.filter(|_| before.point == start)
    }

    /// What may well be asked for after the time between these two: neighbours of which the time is not known.
    pub(crate) fn next(&self, start: Point, end: Point) -> Vec<(Point, Point)> {
        let log = self.log.lock();
        let Some(at) = log.position(end) else {
            return Vec::new();
        };
        let is_pair = log
            .neighbours(end)
            .is_some_and(|(before, _)| before.point == start);
        if !is_pair {
            return Vec::new();
        }
        let rest = log.entries.range(at..);
        rest.clone()
            .zip(rest.skip(1))
            .filter(|(_, to)| to.gap_ms.is_none() && to.point.context == start.context)
            .filter(|(from, to)| log.is_pair(from.point, to.point))
            .map(|(from, to)| (from.point, to.point))
            .take(QUESTIONS_MAX)
            .collect()
    }

    /// The time between two neighbours was answered.
    pub(crate) fn answered(&self, end: Point, ms: f32) {
        let mut log = self.log.lock();
        if let Some(at) = log.position(end)
            && let Some(entry) = log.entries.get_mut(at)
        {
            entry.gap_ms = Some(ms);
        }
    }
}

impl Log {
    fn position(&self, point: Point) -> Option<usize> {
        // Threads that record at once may come here in another order: then it is asked once more.
        let by_stamp = |entry: &Entry| entry.point.stamp.cmp(&point.stamp);
        let at = self.entries.binary_search_by(by_stamp).ok()?;
        (self.entries.get(at)?.point == point).then_some(at)
    }

    fn neighbours(&self, end: Point) -> Option<(&Entry, &Entry)> {
        let at = self.position(end)?;
        Some((self.entries.get(at.checked_sub(1)?)?, self.entries.get(at)?))
    }

    /// Whether the server knows both as they were recorded then, in one context.
    fn is_pair(&self, from: Point, to: Point) -> bool {
        let is_latest = |point: Point| self.latest.get(&point.event) == Some(&point.stamp);
        from.context == to.context && is_latest(from) && is_latest(to)
    }
}

#[cfg(test)]
mod tests {
    use super::{POINTS_MAX, Point, Timings};

    fn point(event: u64, stamp: u64) -> Point {
        Point {
            context: 1,
            event,
            stamp,
        }
    }

    fn recorded(events: &[u64]) -> (Timings, Vec<Point>) {
        let timings = Timings::default();
        let points: Vec<Point> = (10..).zip(events).map(|(at, e)| point(*e, at)).collect();
        for point in &points {
            timings.recorded(*point);
        }
        (timings, points)
    }

    #[test]
    fn the_first_question_brings_the_answers_of_the_next() {
        let (timings, points) = recorded(&[1, 2, 3, 4]);
        assert_eq!(timings.known_ms(points[0], points[1]), None);
        let next = timings.next(points[0], points[1]);
        assert_eq!(next, [(points[1], points[2]), (points[2], points[3])]);
        timings.answered(points[3], 2.5);
        assert_eq!(timings.known_ms(points[2], points[3]), Some(2.5));
        assert_eq!(
            timings.known_ms(points[1], points[3]),
            None,
            "no neighbours"
        );
        let next = timings.next(points[0], points[1]);
        assert_eq!(next, [(points[1], points[2])]);
    }

    #[test]
    fn what_was_recorded_again_or_destroyed_is_not_asked_for() {
        let (timings, points) = recorded(&[1, 2, 3, 4, 3]);
        timings.answered(points[2], 1.0);
        timings.forget(4);
        assert!(timings.next(points[0], points[1]).is_empty());
        assert_eq!(
            timings.known_ms(points[1], points[4]),
            None,
            "another recording of the same event"
        );
    }

    #[test]
    fn a_far_pair_asks_for_itself_alone() {
        let (timings, points) = recorded(&[1, 2, 3]);
        assert!(timings.next(points[0], points[2]).is_empty());
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let timings = Timings::default();
        for at in 1..=POINTS_MAX as u64 + 2 {
            timings.recorded(point(at, at));
        }
        assert!(timings.next(point(1, 1), point(2, 2)).is_empty());
        assert!(!timings.next(point(3, 3), point(4, 4)).is_empty());
    }
}
