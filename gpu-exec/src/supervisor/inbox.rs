//! What other threads tell the keeper.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use farcall_transport::{Incoming, SessionId};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::admission::{ActivityAnswer, Admitted};
use super::health::Finding;
use super::usage::UsageAnswer;

/// Something happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A client that may come in, and what it may have, where that was decided.
    Client(Incoming, Option<Admitted>),
    /// A further connection of a session.
    Further(Incoming),
    /// An executor process is gone, its memory too.
    Reaped(u64),
    /// A lease is over, and why.
    EndLease(u64, String),
    /// Somebody wants to know what goes on.
    Activity(ActivityAnswer),
    /// Somebody wants to know what sessions have had.
    Usage(UsageAnswer),
    /// A link of another server's session to the session of this name.
    Peer(Incoming, SessionId),
    /// What became of an executor's wish for a connection: executor, number.
    Dialed(u64, u64, io::Result<OwnedFd>),
    /// A GPU has been checked.
    Checked(u32, Result<(), Finding>),
    /// Time to stop.
    Stop,
}

/// A queue whose arrivals wake a poll.
#[derive(Debug)]
pub(crate) struct Inbox {
    queue: Mutex<VecDeque<Event>>,
    wake: EventFd,
}

impl Inbox {
    /// An empty queue.
    ///
    /// # Errors
    /// No descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let wake =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            queue: Mutex::default(),
            wake,
        })
    }

    /// Adds an event.
    pub(crate) fn send(&self, event: Event) {
        self.queue.lock().push_back(event);
        // Full means that it is awake anyway.
        let _ = self.wake.write(1);
    }

    /// Takes all events.
    pub(crate) fn take(&self) -> VecDeque<Event> {
        let _ = self.wake.read();
        std::mem::take(&mut *self.queue.lock())
    }

    /// Readable when there are events.
    pub(crate) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
