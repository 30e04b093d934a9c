//! Work that may have changed shared memory, and about which the device has not been asked since.
#![forbid(unsafe_code)]

/// What a program waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// A stream, by its context and number; 0 = the legacy stream.
    Stream(u32, u64),
    /// All of a context.
    Context(u32),
}

/// Such work, by stream.
#[derive(Default)]
pub(super) struct Works(Vec<Work>);

struct Work {
    context: u32,
    stream: u64,
    /// Whether the legacy stream waits for it.
    is_blocking: bool,
    /// Stamps of the first and the last of it, or stamps around them.
    first: u64,
    last: u64,
    /// Waits that may have been for it, because streams wait for each other, each with the stamp at which bytes came.
    tried: Vec<(Waited, u64)>,
}

impl Works {
    /// Work with stamps from `first` to `last` was sent.
    pub(super) fn add(
        &mut self,
        (context, stream): (u32, u64),
        is_blocking: bool,
        first: u64,
        last: u64,
    ) {
        let of_stream = |work: &&mut Work| work.context == context && work.stream == stream;
        match self.0.iter_mut().find(of_stream) {
            Some(work) => {
                work.first = work.first.min(first);
                work.last = work.last.max(last);
            }
            None => self.0.push(Work {
                context,
                stream,
                is_blocking,
                first,
                last,
                tried: Vec::new(),
            }),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Contexts that have work.
    pub(super) fn contexts(&self) -> Vec<u32> {
        let mut contexts: Vec<u32> = self.0.iter().map(|work| work.context).collect();
        contexts.sort_unstable();
        contexts.dedup();
        contexts
    }

    /// Whether all there is is this stream's, from this stamp on.
    pub(super) fn are_only(&self, (context, stream): (u32, u64), first: u64) -> bool {
        self.0
            .iter()
            .all(|work| work.context == context && work.stream == stream && work.first >= first)
    }

    /// Whether bytes have to be fetched after a wait up to a stamp. Work of other streams counts: the one that was waited
    /// for may have waited for them.
    pub(super) fn are_due(&self, waited: Waited, stamp: u64) -> bool {
        self.0.iter().any(|work| {
            let tried = work.tried.iter().find(|(other, _)| *other == waited);
            work.first <= stamp && tried.is_none_or(|(_, tried)| *tried < stamp)
        })
    }

    /// Bytes came that are as new as such a wait.
    pub(super) fn came(&mut self, waited: Waited, stamp: u64) {
        self.0.retain_mut(|work| {
            if work.first > stamp {
                return true;
            }
            if work.is_part_of(waited) {
                work.first = stamp + 1;
                return work.last > stamp;
            }
            match work.tried.iter_mut().find(|(other, _)| *other == waited) {
                Some((_, tried)) => *tried = stamp.max(*tried),
                None => work.tried.push((waited, stamp)),
            }
            true
        });
    }

    /// A context has gone.
    pub(super) fn forget(&mut self, context: u32) {
        self.0.retain(|work| work.context != context);
    }

    /// There is none any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Work {
    /// Whether it is behind for certain when that is.
    fn is_part_of(&self, waited: Waited) -> bool {
        match waited {
            Waited::Context(context) => self.context == context,
            Waited::Stream(context, stream) => {
                self.context == context
                    && (self.stream == stream || (stream == 0 && self.is_blocking))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Waited, Works};

    const A: (u32, u64) = (1, 10);
    const B: (u32, u64) = (1, 11);

    fn waited((context, stream): (u32, u64)) -> Waited {
        Waited::Stream(context, stream)
    }

    #[test]
    fn a_wait_for_one_stream_leaves_the_work_of_another() {
        let mut works = Works::default();
        works.add(A, true, 5, 5);
        works.add(B, true, 6, 6);
        assert!(!works.are_due(waited(A), 4), "before all of it");
        assert!(works.are_due(waited(B), 6));
        works.came(waited(B), 6);
        assert!(!works.are_due(waited(B), 6), "that has come");
        assert!(works.are_due(waited(B), 7), "B may have waited for A since");
        assert!(works.are_due(waited(A), 5), "A had not been waited for");
        works.came(waited(A), 5);
        assert!(works.is_empty());
    }

    #[test]
    fn work_behind_the_point_stays() {
        let mut works = Works::default();
        works.add(A, true, 5, 5);
        works.add(A, true, 8, 9);
        works.came(waited(A), 7);
        assert!(!works.are_due(waited(A), 7));
        assert!(works.are_due(waited(A), 9));
    }

    #[test]
    fn the_legacy_stream_stands_for_those_that_wait_for_it() {
        let mut works = Works::default();
        works.add(A, true, 5, 5);
        works.add(B, false, 6, 6);
        works.came(waited((1, 0)), 9);
        assert!(works.are_only(B, 6) && !works.is_empty());
        works.add((2, 12), true, 7, 7);
        assert_eq!(works.contexts(), [1, 2]);
        works.came(Waited::Context(1), 9);
        assert!(works.are_only((2, 12), 7) && !works.is_empty());
        works.forget(2);
        assert!(works.is_empty());
    }
}
