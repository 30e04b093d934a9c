//! What an executor drives: one trait, and the devices behind it.
//!
//! A device implements [`Dispatch`], one method per record, for a whole session (all GPUs that it was given). The
//! loop thread calls them in the order of the records. A method never waits for the device; it sees to
//! it that `head.ticket` is answered once, now or from another thread, through the session's outbox.

use farcall_marshal::wire::{Dispatch, HostFuncDone};

pub(crate) mod attributes;
pub(crate) mod box_copy;
pub(crate) mod cpu;
pub(crate) mod cpu_limits;
pub(crate) mod cuda;
pub(crate) mod describe;
pub(crate) mod graph_records;
pub(crate) mod handles;
pub(crate) mod loading;

/// A session's devices.
pub(crate) trait Device: Dispatch<Output = Result<(), Violation>> + Send {
    /// The client's host function has returned.
    ///
    /// # Errors
    /// It was not due.
    fn host_func_done(&mut self, record: HostFuncDone) -> Result<(), Violation>;

    /// The session is over: ends what runs. Does not wait.
    fn close(&mut self);
}

/// What no correct client sends: ends the session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// Bytes that are no record.
    #[error("malformed record: {0}")]
    Record(#[from] farcall_marshal::record::DecodeError),
    /// A reply, or a message that only the server sends.
    #[error("record {0} is not a client's")]
    Direction(u16),
    /// The end of a host function that was not asked for.
    #[error("host function {0} was not due")]
    HostFunc(u64),
    /// A number that the rules forbid.
    #[error("{0}")]
    Rule(&'static str),
}
