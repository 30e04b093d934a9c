//! Whom a thread that polls keeps from working.

use std::sync::OnceLock;
use std::thread;

/// The processors that polling takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processors {
    /// The system has one: the peer, if it is here, cannot answer while this side polls.
    One,
    /// This process may use one of several. Its peer most likely has another, but its own threads wait.
    OneOfSeveral,
    /// There are others to use.
    Several,
}

impl Processors {
    /// Those of the calling thread. Reads files of the system the first time.
    pub(crate) fn of_this_thread() -> Self {
        static IS_ALONE: OnceLock<bool> = OnceLock::new();
        if !thread::available_parallelism().is_ok_and(|usable| usable.get() == 1) {
            return Self::Several;
        }
        // SAFETY: a plain question without pointers.
        let is_alone = || unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) } <= 1;
        if *IS_ALONE.get_or_init(is_alone) {
            Self::One
        } else {
            Self::OneOfSeveral
        }
    }
}
