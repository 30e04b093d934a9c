//! What only the device sees, at the end of a stream: uploads, whose bytes have left the program's memory when the call
//! returns, memsets and copies of device memory, and records of events without a time. A synchronization has nothing to wait for behind the last other operation.
#![forbid(unsafe_code)]

use parking_lot::Mutex;

/// Such operations that were sent on a stream since anything else was.
#[derive(Default)]
pub(crate) struct Unseen {
    run: Mutex<Run>,
}

/// Stamps around operations that follow each other.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Of the last operation before them.
    before: u64,
    /// Of the last of them.
    last: u64,
}

impl Unseen {
    /// An operation gets its stamp of `stamp`, which says first which stamp was the last before.
    pub(crate) fn add<E>(&self, stamp: impl FnOnce() -> Result<(u64, u64), E>) -> Result<u64, E> {
        // Held over both: two at once get their stamps in the order in which they extend the run.
        let mut run = self.run.lock();
        let (previous, last) = stamp()?;
        let follows = run.last == previous && run.last != 0;
        let before = if follows { run.before } else { previous };
        *run = Run { before, last };
        Ok(last)
    }

    /// Where the stream's last operation has this stamp: the stamp that has to be waited for.
    pub(crate) fn wait_for(&self, last: u64) -> u64 {
        let run = *self.run.lock();
        if run.last == last { run.before } else { last }
    }
}

#[cfg(test)]
mod tests {
    use super::Unseen;

    fn add(unseen: &Unseen, previous: u64, last: u64) {
        assert_eq!(unseen.add::<()>(|| Ok((previous, last))), Ok(last));
    }

    #[test]
    fn they_are_not_waited_for_and_what_is_before_them_is() {
        let unseen = Unseen::default();
        assert_eq!(unseen.wait_for(7), 7, "nothing at all");
        add(&unseen, 7, 8);
        add(&unseen, 8, 9);
        assert_eq!(unseen.wait_for(9), 7);
        assert_eq!(unseen.wait_for(10), 10, "something else came behind");
        add(&unseen, 10, 11);
        assert_eq!(unseen.wait_for(11), 10);
    }

    #[test]
    fn a_stream_that_begins_with_them_has_nothing_to_wait_for() {
        let unseen = Unseen::default();
        add(&unseen, 0, 1);
        add(&unseen, 1, 2);
        assert_eq!(unseen.wait_for(2), 0);
    }
}
