//! Transfers between the memory of both ends, beside the bytes of the stream: the server reads from and
//! writes to memory that the client has registered, and nothing is copied on the way.
//!
//! The client *offers* memory to be read, or *grants* memory to be written. Offers and grants, and the answer
//! to an offer, are no part of the stream's bytes: they are lost with the connection, and then the transfer
//! goes over the next connection's stream. Whoever uses this makes sure that the bytes of a transfer
//! count once.
#![forbid(unsafe_code)]

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;

/// A stream that can do this. Nothing here blocks, except where it says so.
pub(crate) trait Direct: Send + Sync {
    /// Client: offers `offer.bytes` at `offer.at` to be read; `lent` is the lent memory around them. One offer
    /// at a time. False: the memory cannot be registered. Registering memory for the first time takes a
    /// while (some 60 ns per KiB).
    ///
    /// # Errors
    /// The connection is broken.
    fn offer(&self, offer: &Piece, lent: &Range<usize>) -> io::Result<bool>;

    /// Client: what became of the offer.
    ///
    /// # Errors
    /// The connection is broken.
    fn answer(&self) -> io::Result<Answer>;

    /// Server: the client's offer that has not been answered.
    ///
    /// # Errors
    /// The connection is broken.
    fn offered(&self) -> io::Result<Option<Piece>>;

    /// Server: answers the offer: everything of it was read, or will not be.
    ///
    /// # Errors
    /// The connection is broken.
    fn reply(&self, taken: bool) -> io::Result<()>;

    /// Client: lets transfer `piece.id` be written to `piece.at`. None: not now. Returns what
    /// [`Direct::take_back`] wants once the transfer is over. Takes as long as [`Direct::offer`].
    ///
    /// # Errors
    /// The connection is broken.
    fn grant(&self, piece: &Piece, lent: &Range<usize>) -> io::Result<Option<Slot>>;

    /// Client: the transfer is over.
    fn take_back(&self, slot: Slot);

    /// Server: where transfer `id` may be written.
    ///
    /// # Errors
    /// The connection is broken.
    fn granted(&self, id: u64) -> io::Result<Option<Piece>>;

    /// Server: goes on reading `job` into `memory`, which is where it was the last time; true when all of it
    /// is there. `lent` is the lent memory around it, where it is lent.
    /// Until then, or until [`Direct::halt`] has returned, the device may write to `memory` at any time.
    ///
    /// # Errors
    /// The connection is broken; [`io::ErrorKind::OutOfMemory`]: nothing was begun, as no memory can be had.
    fn read(
        &self,
        job: &mut Job,
        memory: &mut [MaybeUninit<u8>],
        lent: Option<&Range<usize>>,
    ) -> io::Result<bool>;

    /// Server: goes on writing `job` from `memory`; true when all of it has arrived.
    ///
    /// # Errors
    /// As [`Direct::read`].
    fn write(&self, job: &mut Job, memory: &[u8], lent: Option<&Range<usize>>) -> io::Result<bool>;

    /// Makes sure that nobody writes any more: neither our device to the memory of jobs that are under way,
    /// nor the peer to what was granted. The connection is broken then. Blocks for some microseconds, for
    /// 0.6 s at most.
    fn halt(&self);

    /// Memory is about to be freed: no registration of it is kept.
    fn forget(&self, range: &Range<usize>);
}

/// A piece of a transfer, and where its client has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offers: where in the stream the transfer begins.
    pub(crate) start: u64,
    /// Number of the transfer.
    pub(crate) id: u64,
    /// Where the piece is, in the client's memory.
    pub(crate) at: u64,
    pub(crate) bytes: u64,
    /// Offers: where in the transfer it is, and how long that is.
    pub(crate) offset: u64,
    pub(crate) total: u64,
    /// The key of the client's registration; filled in by the stream.
    pub(crate) key: u32,
}

/// Where a grant is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(pub(crate) u8);

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Pending,
    Taken,
    Declined,
}

/// One piece under way.
pub(crate) struct Job {
    pub(crate) piece: Piece,
    /// Bytes of work that was posted, and that is done.
    pub(crate) posted: usize,
    pub(crate) done: usize,
    /// Numbers and lengths of what is posted and not done.
    pub(crate) under_way: VecDeque<(u64, usize)>,
    /// Whether it has begun.
    pub(crate) begun: bool,
    /// What keeps the memory registered; None: it goes through staging.
    pub(crate) lease: Option<Box<dyn Any + Send>>,
    pub(crate) key: u32,
}

impl Job {
    pub(crate) fn new(piece: Piece) -> Self {
        Self {
            piece,
            posted: 0,
            done: 0,
            under_way: VecDeque::new(),
            begun: false,
            lease: None,
            key: 0,
        }
    }
}
